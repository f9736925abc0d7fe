//! The hash function of a tree: a type parameter with two instances, and the name by which a chain picks one.
//!
//! Every node of the tree is the hash of exactly 128 bytes (spec: TREE-4), which is two BLAKE3 blocks in one chunk. Whole
//! blocks are what BLAKE3's SIMD code takes many of at once, so nodes are hashed in lanes: about 16 ns each
//! where one by one takes 110. The entry point for that, `blake3::platform`, is outside the crate's public promise: its
//! version is pinned, and a test holds it equal to `blake3::hash`.

use crate::lanes;
use blake3::platform::{MAX_SIMD_DEGREE, Platform};
use keelstone_codec::{Decode, DecodeError, Describe, Encode, Hash, Reader, Shape, Variant};
use sha2::Digest as _;
use std::fmt;
use std::str::FromStr;

/// Length of a node's preimage in bytes (spec: TREE-4).
pub const NODE_LEN: usize = 128;

/// Half a node's preimage: its head, or the two hashes behind it.
pub type Half = [u8; NODE_LEN / 2];

/// A hash function of 32 bytes under which ICS-23 proofs are sound: BLAKE3-256 or SHA-256.
pub trait Hasher: Copy + Default + fmt::Debug + Send + Sync + 'static {
    /// Which of the two this is, for what is written down.
    const KIND: HashKind;

    /// What hashing a head leads to, from where its tail is hashed.
    type Mid: Copy + Default + fmt::Debug + Send + Sync;

    /// Hashes a key, a value or a name.
    fn hash(data: &[u8]) -> Hash;

    /// Hashes keys, values and names, each exactly as [`Hasher::hash`] would, in SIMD lanes where the machine has them.
    ///
    /// # Panics
    /// If the two slices differ in length.
    fn hash_many(inputs: &[&[u8]], out: &mut [Hash]);

    /// Hashes node preimages, each exactly as [`Hasher::hash`] would, in SIMD lanes where the machine has them.
    ///
    /// # Panics
    /// If the two slices differ in length.
    fn hash_nodes(preimages: &[[u8; NODE_LEN]], out: &mut [Hash]);

    /// Begins the hashes of nodes with their heads, in SIMD lanes where the machine has them. On the way up from a leaf a
    /// node's tail is known last, but all heads are known from the start.
    ///
    /// # Panics
    /// If the two slices differ in length.
    fn hash_heads(heads: &[Half], out: &mut [Self::Mid]);

    /// Ends the hash of a node with its tail: the same as [`Hasher::hash_node`] of both.
    #[must_use]
    fn hash_tail(mid: &Self::Mid, tail: &Half) -> Hash;

    /// Hashes one node preimage.
    #[must_use]
    fn hash_node(preimage: &[u8; NODE_LEN]) -> Hash {
        Self::hash(preimage)
    }
}

/// BLAKE3-256: the default.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Blake3;

/// SHA-256: for chains whose ICS-23 proofs must verify in Go, which knows no BLAKE3.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Sha256;

/// The name of a [`Hasher`], for configuration and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HashKind {
    /// [`Blake3`]
    #[default]
    Blake3,
    /// [`Sha256`]
    Sha256,
}

// From the BLAKE3 paper, table 3 and section 2.2.
pub(crate) const CHUNK_LEN: usize = 1024;
pub(crate) const BLOCK_LEN: usize = 64;
pub(crate) const CHUNK_START: u8 = 1;
pub(crate) const CHUNK_END: u8 = 2;
pub(crate) const ROOT: u8 = 8;
pub(crate) const IV: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];

impl Hasher for Blake3 {
    const KIND: HashKind = HashKind::Blake3;
    type Mid = [u32; 8];

    fn hash(data: &[u8]) -> Hash {
        hash_one(data)
    }

    fn hash_many(inputs: &[&[u8]], out: &mut [Hash]) {
        lanes::hash_many(inputs, out);
    }

    fn hash_heads(heads: &[Half], out: &mut [[u32; 8]]) {
        assert_eq!(heads.len(), out.len(), "one result for each head");
        let platform = Platform::detect();
        let mut results = [0; MAX_SIMD_DEGREE * 32];
        for (heads, out) in heads.chunks(MAX_SIMD_DEGREE).zip(out.chunks_mut(MAX_SIMD_DEGREE)) {
            let mut lanes = [&heads[0]; MAX_SIMD_DEGREE];
            lanes.iter_mut().zip(heads).for_each(|(lane, head)| *lane = head);
            // Seven lanes are taken as four, two and one. Eight take less time, and the eighth is thrown away.
            let taken =
                if heads.len() < 3 { heads.len() } else { heads.len().next_multiple_of(4).min(MAX_SIMD_DEGREE) };
            let (lanes, results) = (&lanes[..taken], &mut results[..taken * 32]);
            platform.hash_many(lanes, &IV, 0, blake3::IncrementCounter::No, 0, CHUNK_START, 0, results);
            for (out, result) in out.iter_mut().zip(results.as_chunks::<32>().0) {
                for (word, bytes) in out.iter_mut().zip(result.as_chunks::<4>().0) {
                    *word = u32::from_le_bytes(*bytes);
                }
            }
        }
    }

    fn hash_tail(mid: &[u32; 8], tail: &Half) -> Hash {
        let mut words = *mid;
        Platform::detect().compress_in_place(&mut words, tail, 64, 0, CHUNK_END | ROOT);
        bytes_of(words)
    }

    fn hash_node(preimage: &[u8; NODE_LEN]) -> Hash {
        // The same two compressions as below, without the machinery for inputs of any length.
        let mut hash = [0; 32];
        Platform::detect().hash_many(
            &[preimage],
            &IV,
            0,
            blake3::IncrementCounter::No,
            0,
            CHUNK_START,
            CHUNK_END | ROOT,
            &mut hash,
        );
        Hash(hash)
    }

    fn hash_nodes(preimages: &[[u8; NODE_LEN]], out: &mut [Hash]) {
        assert_eq!(preimages.len(), out.len(), "one hash for each preimage");
        let platform = Platform::detect();
        let mut hashes = [0; MAX_SIMD_DEGREE * 32];
        for (preimages, out) in preimages.chunks(MAX_SIMD_DEGREE).zip(out.chunks_mut(MAX_SIMD_DEGREE)) {
            let mut lanes = [&preimages[0]; MAX_SIMD_DEGREE];
            for (lane, preimage) in lanes.iter_mut().zip(preimages) {
                *lane = preimage;
            }
            // Two whole blocks are one chunk, and that chunk is the root: the last block carries both flags.
            platform.hash_many(
                &lanes[..preimages.len()],
                &IV,
                0,
                blake3::IncrementCounter::No,
                0,
                CHUNK_START,
                CHUNK_END | ROOT,
                &mut hashes[..preimages.len() * 32],
            );
            for (out, hash) in out.iter_mut().zip(hashes.as_chunks::<32>().0) {
                *out = Hash(*hash);
            }
        }
    }
}

/// BLAKE3 of one input. One of a single chunk does without the machinery for inputs of any length.
pub(crate) fn hash_one(data: &[u8]) -> Hash {
    // More than one chunk is a tree, which others know how to hash.
    if data.len() > CHUNK_LEN { Hash(*blake3::hash(data).as_bytes()) } else { finish_chunk(IV, 0, data) }
}

/// The hash of an input of one chunk of which some whole blocks, but not the last, have led to `words`.
pub(crate) fn finish_chunk(mut words: [u32; 8], done: usize, data: &[u8]) -> Hash {
    let platform = Platform::detect();
    let mut start = if done == 0 { CHUNK_START } else { 0 };
    let (blocks, last) = data.split_at(data.len().saturating_sub(1) / BLOCK_LEN * BLOCK_LEN);
    for block in &blocks.as_chunks::<BLOCK_LEN>().0[done..] {
        platform.compress_in_place(&mut words, block, 64, 0, start);
        start = 0;
    }
    let mut block = [0; BLOCK_LEN];
    block[..last.len()].copy_from_slice(last);
    let len = u8::try_from(last.len()).expect("a block has 64 bytes");
    platform.compress_in_place(&mut words, &block, len, 0, start | CHUNK_END | ROOT);
    bytes_of(words)
}

/// A hash as BLAKE3 has it while it computes.
pub(crate) fn bytes_of(words: [u32; 8]) -> Hash {
    let mut hash = Hash::ZERO;
    for (bytes, word) in hash.0.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    hash
}

/// SHA-256 has no lanes here, so nothing is gained by beginning with the heads: they are kept as they are.
#[derive(Clone, Copy, Debug)]
pub struct Sha256Mid(Half);

impl Default for Sha256Mid {
    fn default() -> Self {
        Self([0; NODE_LEN / 2])
    }
}

impl Hasher for Sha256 {
    const KIND: HashKind = HashKind::Sha256;
    type Mid = Sha256Mid;

    fn hash_heads(heads: &[Half], out: &mut [Sha256Mid]) {
        assert_eq!(heads.len(), out.len(), "one result for each head");
        out.iter_mut().zip(heads).for_each(|(out, head)| *out = Sha256Mid(*head));
    }

    fn hash_tail(mid: &Sha256Mid, tail: &Half) -> Hash {
        Hash(sha2::Sha256::new().chain_update(mid.0).chain_update(tail).finalize().into())
    }

    fn hash(data: &[u8]) -> Hash {
        Hash(sha2::Sha256::digest(data).into())
    }

    fn hash_many(inputs: &[&[u8]], out: &mut [Hash]) {
        assert_eq!(inputs.len(), out.len(), "one hash for each input");
        inputs.iter().zip(out).for_each(|(input, out)| *out = Self::hash(input));
    }

    fn hash_nodes(preimages: &[[u8; NODE_LEN]], out: &mut [Hash]) {
        assert_eq!(preimages.len(), out.len(), "one hash for each preimage");
        for (preimage, out) in preimages.iter().zip(out) {
            *out = Self::hash(preimage);
        }
    }
}

impl HashKind {
    /// Hashes with the hasher of this name, for code that learns it at run time.
    #[must_use]
    pub fn hash(self, data: &[u8]) -> Hash {
        match self {
            Self::Blake3 => Blake3::hash(data),
            Self::Sha256 => Sha256::hash(data),
        }
    }

    /// The name in configuration and genesis files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }
}
impl fmt::Display for HashKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
impl FromStr for HashKind {
    type Err = UnknownHasher;
    fn from_str(name: &str) -> Result<Self, UnknownHasher> {
        [Self::Blake3, Self::Sha256]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownHasher { found: name.to_owned() })
    }
}
impl Encode for HashKind {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Blake3 => 0,
            Self::Sha256 => 1,
        });
    }
}
impl Describe for HashKind {
    fn shape() -> Shape {
        let variant = |tag, name| Variant { tag, name, shape: Shape::Unit };
        Shape::Choice(vec![variant(0, "Blake3"), variant(1, "Sha256")])
    }
}
impl Decode for HashKind {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.byte()? {
            0 => Ok(Self::Blake3),
            1 => Ok(Self::Sha256),
            found => Err(DecodeError::UnknownTag { what: "hasher", found: u64::from(found) }),
        }
    }
}

/// A hasher name nobody knows. The caller's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown hasher {found:?}: there are \"blake3\" and \"sha256\"")]
pub struct UnknownHasher {
    /// The name.
    pub found: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec: TREE-4. Lanes hash a node exactly as the plain function does, whatever the number of nodes.
    #[test]
    fn lanes_equal_the_plain_hash() {
        fn check<H: Hasher>() {
            for count in 0..70usize {
                let preimages: Vec<[u8; NODE_LEN]> = (0..count)
                    .map(|i| std::array::from_fn(|j| u8::try_from((i * 131 + j * 7) % 251).unwrap()))
                    .collect();
                let mut out = vec![Hash::ZERO; count];
                H::hash_nodes(&preimages, &mut out);
                let heads: Vec<Half> =
                    preimages.iter().map(|image| *image.first_chunk().expect("the first half")).collect();
                let mut mids = vec![H::Mid::default(); count];
                H::hash_heads(&heads, &mut mids);
                for ((preimage, hash), mid) in preimages.iter().zip(&out).zip(&mids) {
                    assert_eq!(*hash, H::hash(preimage), "{} of {count} nodes", H::KIND);
                    assert_eq!(*hash, H::hash_node(preimage));
                    assert_eq!(*hash, H::hash_tail(mid, preimage.last_chunk().expect("the second half")));
                }
            }
        }
        check::<Blake3>();
        check::<Sha256>();
    }

    /// spec: TREE-4. Keys and values hash to the same, many at once or one by one.
    #[test]
    fn many_inputs_hash_as_one_by_one() {
        fn check<H: Hasher>() {
            let bytes: Vec<u8> = (0..200).collect();
            let inputs: Vec<&[u8]> = (0..40).map(|len| &bytes[..len * 5]).collect();
            let mut out = vec![Hash::ZERO; inputs.len()];
            H::hash_many(&inputs, &mut out);
            inputs.iter().zip(out).for_each(|(input, hash)| assert_eq!(hash, H::hash(input)));
        }
        check::<Blake3>();
        check::<Sha256>();
    }

    /// Short inputs are hashed without BLAKE3's own machinery, and to the same hash.
    #[test]
    fn hashes_of_all_lengths_equal_the_plain_hash() {
        let bytes: Vec<u8> = (0..2_200u32).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        for len in 0..=bytes.len() {
            assert_eq!(Blake3::hash(&bytes[..len]).0, *blake3::hash(&bytes[..len]).as_bytes(), "{len} bytes");
        }
    }

    #[test]
    fn a_hasher_is_found_by_its_name() {
        for kind in [HashKind::Blake3, HashKind::Sha256] {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(HashKind::from_bytes(&kind.to_bytes()), Ok(kind));
        }
        assert_eq!("md5".parse::<HashKind>(), Err(UnknownHasher { found: "md5".into() }));
        assert!(HashKind::from_bytes(&[2]).is_err());
    }
}
