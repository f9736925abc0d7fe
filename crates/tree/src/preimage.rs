//! The 128-byte preimages of nodes: a head of 64 bytes and two hashes.
//!
//! ```text
//!            0    1        3         11        19         27         35    64      96      128
//! inner      tag  crit u16 left cnt  left byt  right cnt  right byt  0..   left    right       02 entries, 04 state
//! leaf       01   klen u16 vlen u32 (3..7)                           0..   H(key)  H(value)
//! namespace  03   nlen u16 count    bytes (11..19)                   0..   H(name) H(namespace root)
//! empty      00   zeros
//! ```
//!
//! Integers are little-endian. Nothing here is ever transmitted: zeros and lengths are computed (spec: TREE-4).

use crate::{Half, NODE_LEN, Totals};
use keelstone_codec::Hash;

/// A node's preimage.
pub type Preimage = [u8; NODE_LEN];

/// The two levels of the state: entries under a namespace root, namespaces under the state root. Their nodes have
/// different tags, so that no part of one can stand in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The tree of one namespace's entries.
    Entries,
    /// The tree of namespaces.
    Namespaces,
}

const EMPTY: u8 = 0;
const ENTRY: u8 = 1;
const INNER_ENTRIES: u8 = 2;
const NAMESPACE: u8 = 3;
const INNER_NAMESPACES: u8 = 4;

/// The length of a key or name as a head has it.
pub(crate) fn short_len(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).expect("keys and names have at most 255 bytes")
}

/// The state without a namespace (spec: TREE-6).
#[must_use]
pub const fn empty() -> Preimage {
    [EMPTY; NODE_LEN]
}

/// The half of a preimage behind its head: two hashes.
#[inline]
pub(crate) fn tail(first: &Hash, second: &Hash) -> Half {
    let mut out = [0; NODE_LEN / 2];
    out[..32].copy_from_slice(&first.0);
    out[32..].copy_from_slice(&second.0);
    out
}

/// A preimage whose head is written by `head`, in place: moved, it would be read before it is through the store buffer.
#[inline(always)]
fn whole(first: &Hash, second: &Hash, head: impl FnOnce(&mut Half)) -> Preimage {
    let mut out = [0; NODE_LEN];
    head(out.first_chunk_mut().expect("the first half"));
    out[64..96].copy_from_slice(&first.0);
    out[96..].copy_from_slice(&second.0);
    out
}

/// Writes the head of an inner node that splits at critical bit `crit` over zeros (spec: TREE-3, TREE-4).
#[inline(always)]
pub(crate) fn put_inner_head(out: &mut Half, level: Level, crit: u16, totals: [Totals; 2]) {
    out[0] = match level {
        Level::Entries => INNER_ENTRIES,
        Level::Namespaces => INNER_NAMESPACES,
    };
    out[1..3].copy_from_slice(&crit.to_le_bytes());
    out[3..11].copy_from_slice(&totals[0].count.to_le_bytes());
    out[11..19].copy_from_slice(&totals[0].bytes.to_le_bytes());
    out[19..27].copy_from_slice(&totals[1].count.to_le_bytes());
    out[27..35].copy_from_slice(&totals[1].bytes.to_le_bytes());
}

/// An inner node.
#[must_use]
#[inline]
pub fn inner(level: Level, crit: u16, totals: [Totals; 2], hashes: [&Hash; 2]) -> Preimage {
    whole(hashes[0], hashes[1], |head| put_inner_head(head, level, crit, totals))
}

/// Writes the head of an entry over zeros: its key's and its value's length (spec: TREE-4). Their hashes follow.
#[inline(always)]
pub(crate) fn put_leaf_head(out: &mut Half, key_len: u16, value_len: u32) {
    out[0] = ENTRY;
    out[1..3].copy_from_slice(&key_len.to_le_bytes());
    out[3..7].copy_from_slice(&value_len.to_le_bytes());
}

/// An entry.
#[must_use]
#[inline]
pub fn leaf(key_len: u16, value_len: u32, key_hash: &Hash, value_hash: &Hash) -> Preimage {
    whole(key_hash, value_hash, |head| put_leaf_head(head, key_len, value_len))
}

/// Writes the head of a namespace over zeros: the length of its name, and its totals. The hash of its name follows, and
/// that of its root, which is to the state what a value is to a namespace (spec: TREE-4).
pub(crate) fn put_namespace_head(out: &mut Half, name_len: u16, totals: Totals) {
    out[0] = NAMESPACE;
    out[1..3].copy_from_slice(&name_len.to_le_bytes());
    out[3..11].copy_from_slice(&totals.count.to_le_bytes());
    out[11..19].copy_from_slice(&totals.bytes.to_le_bytes());
}

/// A namespace.
#[must_use]
pub fn namespace(name_len: u16, totals: Totals, name_hash: &Hash, root_hash: &Hash) -> Preimage {
    whole(name_hash, root_hash, |head| put_namespace_head(head, name_len, totals))
}
