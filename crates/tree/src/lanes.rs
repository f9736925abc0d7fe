//! BLAKE3 of many short inputs at once: keys and values, which have lengths of their own.
//!
//! BLAKE3's own lanes take whole blocks only, so they serve nodes and nothing else. These take up to eight inputs of up to
//! one chunk side by side, whatever their lengths: each lane carries its length and flags, and a lane that is done is
//! taken out. About 17 ns a block, where one by one takes 55. The instructions are picked at run time by `fearless_simd`;
//! tests hold all lengths equal to `blake3::hash`.

use crate::hasher::{BLOCK_LEN, CHUNK_END, CHUNK_LEN, CHUNK_START, IV, ROOT, bytes_of, finish_chunk, hash_one};
use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, u32x8};
use keelstone_codec::Hash;
use std::array;

/// Inputs side by side.
const LANES: usize = 8;
/// As long as so many lanes are at work, they are quicker than one after the other.
const LANES_MIN: usize = 3;

/// In which order each round takes the words of a block (BLAKE3 paper, table 2, applied again and again).
const SCHEDULE: [[usize; 16]; 7] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8],
    [3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1],
    [10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6],
    [12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4],
    [9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7],
    [11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13],
];

/// Hashes inputs, each as `blake3::hash` would.
///
/// # Panics
/// If the two slices differ in length.
pub(crate) fn hash_many(inputs: &[&[u8]], out: &mut [Hash]) {
    assert_eq!(inputs.len(), out.len(), "one hash for each input");
    if inputs.len() < LANES_MIN {
        inputs.iter().zip(out).for_each(|(input, out)| *out = hash_one(input));
        return;
    }
    dispatch!(Level::new(), simd => hash_groups(simd, inputs, out));
}

#[inline(always)]
fn hash_groups<S: Simd>(simd: S, inputs: &[&[u8]], out: &mut [Hash]) {
    for (inputs, out) in inputs.chunks(LANES).zip(out.chunks_mut(LANES)) {
        hash_group(simd, inputs, out);
    }
}

/// Blocks an input takes in lanes: none if it has more than one chunk, which is a tree that others know how to hash.
fn blocks_of(input: &[u8]) -> usize {
    if input.len() > CHUNK_LEN { 0 } else { input.len().div_ceil(BLOCK_LEN).max(1) }
}

#[inline(always)]
fn hash_group<S: Simd>(simd: S, inputs: &[&[u8]], out: &mut [Hash]) {
    let mut blocks = [0; LANES];
    blocks.iter_mut().zip(inputs).for_each(|(blocks, input)| *blocks = blocks_of(input));
    let mut words: [u32x8<S>; 8] = IV.map(|word| u32x8::splat(simd, word));
    let mut done = 0;
    while blocks.iter().filter(|blocks| **blocks > done).count() >= LANES_MIN {
        let mut padded = [[0; BLOCK_LEN]; LANES];
        let mut lens = [0; LANES];
        let mut flags = [if done == 0 { u32::from(CHUNK_START) } else { 0 }; LANES];
        for (lane, input) in inputs.iter().enumerate().filter(|(lane, _)| blocks[*lane] > done) {
            let rest = &input[done * BLOCK_LEN..];
            let len = rest.len().min(BLOCK_LEN);
            padded[lane][..len].copy_from_slice(&rest[..len]);
            lens[lane] = u32::try_from(len).expect("a block has 64 bytes");
            if blocks[lane] == done + 1 {
                flags[lane] |= u32::from(CHUNK_END | ROOT);
            }
        }
        let block = transpose_blocks(simd, &padded);
        words = compress(simd, words, &block, u32x8::simd_from(simd, lens), u32x8::simd_from(simd, flags));
        done += 1;
        if blocks.contains(&done) {
            let words = lanes_of(words);
            for (lane, out) in out.iter_mut().enumerate().filter(|(lane, _)| blocks[*lane] == done) {
                *out = bytes_of(words[lane]);
            }
        }
    }
    let words = lanes_of(words);
    for (lane, (input, out)) in inputs.iter().zip(out).enumerate() {
        if blocks[lane] > done {
            *out = finish_chunk(words[lane], done, input);
        } else if blocks[lane] == 0 {
            *out = hash_one(input);
        }
    }
}

/// The words of each lane.
#[inline(always)]
fn lanes_of<S: Simd>(words: [u32x8<S>; 8]) -> [[u32; 8]; LANES] {
    transpose(words).map(|lane| array::from_fn(|word| lane[word]))
}

/// The words of one block of each lane, first words first.
#[inline(always)]
fn transpose_blocks<S: Simd>(simd: S, blocks: &[[u8; BLOCK_LEN]; LANES]) -> [u32x8<S>; 16] {
    let half = |half: usize| {
        let row = |lane: usize| {
            let words = &blocks[lane].as_chunks::<4>().0[half * 8..half * 8 + 8];
            u32x8::simd_from(simd, array::from_fn(|word| u32::from_le_bytes(words[word])))
        };
        transpose(array::from_fn(row))
    };
    let [low, high] = [half(0), half(1)];
    array::from_fn(|word| if word < 8 { low[word] } else { high[word - 8] })
}

/// Turns rows into columns: three perfect shuffles of eight rows of eight.
#[inline(always)]
fn transpose<S: Simd>(rows: [u32x8<S>; 8]) -> [u32x8<S>; 8] {
    let mut rows = rows;
    for _ in 0..3 {
        let mut next = rows;
        for row in 0..4 {
            (next[2 * row], next[2 * row + 1]) = rows[row].interleave(rows[row + 4]);
        }
        rows = next;
    }
    rows
}

/// One block in every lane; the counter of a first chunk is zero.
#[inline(always)]
fn compress<S: Simd>(
    simd: S,
    words: [u32x8<S>; 8],
    block: &[u32x8<S>; 16],
    lens: u32x8<S>,
    flags: u32x8<S>,
) -> [u32x8<S>; 8] {
    let iv = |word: usize| u32x8::splat(simd, IV[word]);
    let zero = u32x8::splat(simd, 0);
    let [a, b, c, d, e, f, g, h] = words;
    let mut state = [a, b, c, d, e, f, g, h, iv(0), iv(1), iv(2), iv(3), zero, zero, lens, flags];
    round::<S, 0>(&mut state, block);
    round::<S, 1>(&mut state, block);
    round::<S, 2>(&mut state, block);
    round::<S, 3>(&mut state, block);
    round::<S, 4>(&mut state, block);
    round::<S, 5>(&mut state, block);
    round::<S, 6>(&mut state, block);
    array::from_fn(|word| state[word] ^ state[word + 8])
}

#[inline(always)]
fn round<S: Simd, const ROUND: usize>(state: &mut [u32x8<S>; 16], block: &[u32x8<S>; 16]) {
    let word = |index: usize| block[SCHEDULE[ROUND][index]];
    mix(state, [0, 4, 8, 12], word(0), word(1));
    mix(state, [1, 5, 9, 13], word(2), word(3));
    mix(state, [2, 6, 10, 14], word(4), word(5));
    mix(state, [3, 7, 11, 15], word(6), word(7));
    mix(state, [0, 5, 10, 15], word(8), word(9));
    mix(state, [1, 6, 11, 12], word(10), word(11));
    mix(state, [2, 7, 8, 13], word(12), word(13));
    mix(state, [3, 4, 9, 14], word(14), word(15));
}

/// The quarter round (BLAKE3 paper, section 2.2).
#[inline(always)]
fn mix<S: Simd>(state: &mut [u32x8<S>; 16], [a, b, c, d]: [usize; 4], first: u32x8<S>, second: u32x8<S>) {
    state[a] = state[a] + state[b] + first;
    state[d] = turn(state[d] ^ state[a], 16);
    state[c] += state[d];
    state[b] = turn(state[b] ^ state[c], 12);
    state[a] = state[a] + state[b] + second;
    state[d] = turn(state[d] ^ state[a], 8);
    state[c] += state[d];
    state[b] = turn(state[b] ^ state[c], 7);
}

#[inline(always)]
fn turn<S: Simd>(words: u32x8<S>, by: u32) -> u32x8<S> {
    (words >> by) | (words << (32 - by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(inputs: &[&[u8]]) {
        let mut found = vec![Hash::ZERO; inputs.len()];
        hash_many(inputs, &mut found);
        for (input, found) in inputs.iter().zip(found) {
            assert_eq!(found.0, *blake3::hash(input).as_bytes(), "{} bytes", input.len());
        }
    }

    /// spec: TREE-4. Lanes hash any input as the plain function does, whatever lies beside it.
    #[test]
    fn equal_lengths_of_all_sizes_equal_the_plain_hash() {
        let bytes: Vec<u8> = (0..1_300u32).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        for len in 0..=1_100 {
            let inputs: Vec<&[u8]> = (0..11).map(|start| &bytes[start * 3..start * 3 + len]).collect();
            check(&inputs);
        }
        for count in 0..40 {
            check(&vec![&bytes[..100]; count]);
        }
    }

    proptest! {
        #[test]
        fn lengths_may_be_mixed(inputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1_200), 0..20)) {
            check(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }

        /// The instructions of older processors come to the same.
        #[test]
        fn levels_agree(inputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 8)) {
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let mut found = [Hash::ZERO; 8];
            dispatch!(Level::baseline(), simd => hash_groups(simd, &inputs, &mut found));
            for (input, found) in inputs.iter().zip(found) {
                prop_assert_eq!(found.0, *blake3::hash(input).as_bytes());
            }
        }
    }
}
