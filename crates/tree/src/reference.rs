//! The tree as its rules say it, and nothing else: what the fast tree is measured against.
//!
//! A state is a map of maps and its root is computed from nothing but the contents, recursively, one hash at a time.
//! This module shares no code with the rest of the crate, on purpose: bits, critical bits, preimages and hashing are
//! written a second time, straight from the rules, so that a mistake would have to be made twice to go unseen. It is
//! slow and it recurses once per level; it belongs in tests and audits.
//!
//! Rules: `spec/tree.md`, TREE-1 to TREE-6. Vectors: `spec/vectors/tree.json`.

use keelstone_codec::{Hash, Root};
use std::collections::BTreeMap;

/// The entries of one namespace, by key.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// A whole state: the entries of every namespace, by name. An empty namespace counts as absent.
pub type State = BTreeMap<String, Entries>;

/// The hash function of a chain, as a plain function.
pub type HashFunction = fn(&[u8]) -> [u8; 32];

/// BLAKE3-256.
#[must_use]
pub fn blake3(data: &[u8]) -> [u8; 32] {
    ::blake3::hash(data).into()
}

/// SHA-256.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    <::sha2::Sha256 as ::sha2::Digest>::digest(data).into()
}

/// The root of a state under the hash function of a [`crate::Hasher`].
///
/// # Panics
/// As [`root_with`].
#[must_use]
pub fn root<H: crate::Hasher>(state: &State) -> Root {
    match H::KIND {
        crate::HashKind::Blake3 => root_with(blake3, state),
        crate::HashKind::Sha256 => root_with(sha256, state),
    }
}

/// The root of a state under a hash function.
///
/// # Panics
/// If the state breaks TREE-1 (an empty key or value, a name or key too long): tests are to build legal states.
#[must_use]
pub fn root_with(hash: HashFunction, state: &State) -> Root {
    let mut spaces: Vec<Item> = Vec::new();
    for (name, entries) in state {
        if let Some((root, count, bytes)) = namespace_with(hash, entries) {
            assert!((1..=32).contains(&name.len()), "a namespace has a name of 1 to 32 bytes");
            // spec: TREE-4 (tag 03), TREE-6
            let mut image = [0u8; 128];
            image[0] = 3;
            image[1..3].copy_from_slice(&u16::try_from(name.len()).expect("at most 32").to_le_bytes());
            image[3..11].copy_from_slice(&count.to_le_bytes());
            image[11..19].copy_from_slice(&bytes.to_le_bytes());
            image[64..96].copy_from_slice(&hash(name.as_bytes()));
            image[96..].copy_from_slice(&hash(&root));
            spaces.push(Item { bits: bits_of(name.as_bytes()), hash: hash(&image), count, bytes });
        }
    }
    // spec: TREE-6
    if spaces.is_empty() { Root(Hash(hash(&[0; 128]))) } else { Root(Hash(fold(hash, 4, &spaces).0)) }
}

/// The root, number of entries and sum of bytes of one namespace; none if it has no entry.
///
/// # Panics
/// As [`root_with`].
#[must_use]
pub fn namespace_with(hash: HashFunction, entries: &Entries) -> Option<([u8; 32], u64, u64)> {
    let mut leaves: Vec<Item> = Vec::new();
    for (key, value) in entries {
        assert!((1..=255).contains(&key.len()), "a key has 1 to 255 bytes");
        assert!((1..=8 << 20).contains(&value.len()), "a value has 1 byte to 8 MiB");
        // spec: TREE-4 (tag 01)
        let mut image = [0u8; 128];
        image[0] = 1;
        image[1..3].copy_from_slice(&u16::try_from(key.len()).expect("at most 255").to_le_bytes());
        image[3..7].copy_from_slice(&u32::try_from(value.len()).expect("at most 8 MiB").to_le_bytes());
        image[64..96].copy_from_slice(&hash(key));
        image[96..].copy_from_slice(&hash(value));
        // spec: TREE-5
        let bytes = (key.len() + value.len()) as u64;
        leaves.push(Item { bits: bits_of(key), hash: hash(&image), count: 1, bytes });
    }
    if leaves.is_empty() { None } else { Some(fold(hash, 2, &leaves)) }
}

/// A leaf of either level.
struct Item {
    bits: Vec<bool>,
    hash: [u8; 32],
    count: u64,
    bytes: u64,
}

/// The hash, count and bytes of the tree over sorted items, with inner nodes of the given tag.
fn fold(hash: HashFunction, tag: u8, items: &[Item]) -> ([u8; 32], u64, u64) {
    if let [only] = items {
        return (only.hash, only.count, only.bytes);
    }
    // spec: TREE-3: the least bit in which the keys do not all agree; sorted, so the split is one place.
    let critical = (0..).find(|&i| items.iter().any(|item| bit_at(item, i) != bit_at(&items[0], i)));
    let critical = critical.expect("keys differ, so they differ in some bit");
    let split = items.iter().position(|item| bit_at(item, critical)).expect("one of the sides has the bit set");
    assert!(items[split..].iter().all(|item| bit_at(item, critical)), "sorted keys split in one place");

    let (left, left_count, left_bytes) = fold(hash, tag, &items[..split]);
    let (right, right_count, right_bytes) = fold(hash, tag, &items[split..]);
    // spec: TREE-4 (tags 02 and 04)
    let mut image = [0u8; 128];
    image[0] = tag;
    image[1..3].copy_from_slice(&u16::try_from(critical).expect("at most 9 * 255").to_le_bytes());
    image[3..11].copy_from_slice(&left_count.to_le_bytes());
    image[11..19].copy_from_slice(&left_bytes.to_le_bytes());
    image[19..27].copy_from_slice(&right_count.to_le_bytes());
    image[27..35].copy_from_slice(&right_bytes.to_le_bytes());
    image[64..96].copy_from_slice(&left);
    image[96..].copy_from_slice(&right);
    (hash(&image), left_count + right_count, left_bytes + right_bytes)
}

/// A key as the bits the tree sees: before each byte a 1 that says "there is a byte" (spec: TREE-2).
fn bits_of(key: &[u8]) -> Vec<bool> {
    key.iter().flat_map(|byte| [true].into_iter().chain((0..8).map(move |j| byte & (0x80 >> j) != 0))).collect()
}

/// Beyond the end of a key all bits are 0 (spec: TREE-2).
fn bit_at(item: &Item, i: usize) -> bool {
    item.bits.get(i).copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(entries: &[(&str, &[u8], &[u8])]) -> State {
        let mut out = State::new();
        for (name, key, value) in entries {
            out.entry((*name).to_owned()).or_default().insert(key.to_vec(), value.to_vec());
        }
        out
    }

    /// spec: TREE-6
    #[test]
    fn a_state_without_entries_has_the_root_of_128_zeros() {
        assert_eq!(root_with(blake3, &State::new()).0.0, blake3(&[0; 128]));
        assert_eq!(root_with(sha256, &State::from([("a".to_owned(), Entries::new())])).0.0, sha256(&[0; 128]));
    }

    /// spec: TREE-2, TREE-3, TREE-4: two keys worked out by hand. `00` is a prefix of `0000`, and they part at bit 9,
    /// which says whether there is a second byte.
    #[test]
    fn two_entries_give_the_root_worked_out_by_hand() {
        for hash in [blake3, sha256] {
            let leaf = |key: &[u8], value: &[u8]| {
                let [key_len, value_len] = [key.len(), value.len()].map(|len| u8::try_from(len).unwrap());
                let mut image = vec![1, key_len, 0, value_len, 0, 0, 0];
                image.resize(64, 0);
                image.extend(hash(key));
                image.extend(hash(value));
                hash(&image)
            };
            let mut inner = vec![2, 9, 0];
            for sum in [1u64, 3, 1, 5] {
                inner.extend(sum.to_le_bytes());
            }
            inner.resize(64, 0);
            inner.extend(leaf(&[0], b"ab"));
            inner.extend(leaf(&[0, 0], b"abc"));
            let mut space = vec![3, 1, 0];
            for sum in [2u64, 8] {
                space.extend(sum.to_le_bytes());
            }
            space.resize(64, 0);
            space.extend(hash(b"n"));
            space.extend(hash(&hash(&inner)));
            let found = root_with(hash, &state(&[("n", &[0], b"ab"), ("n", &[0, 0], b"abc")]));
            assert_eq!(found.0.0, hash(&space));
        }
    }
}
