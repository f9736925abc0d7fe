//! The root of a list of hashes (of a block's transactions, of a bundle's operations): a binary Merkle tree, with proofs
//! of its elements.
//!
//! The shape is that of RFC 6962: the left half is the largest power of two below the count. Leaves, inner nodes and
//! the root have domains of their own, and the root holds the count, so no list can pass for another and nothing can
//! be proven at a place that does not exist. Proofs are taken to come from an adversary.
//!
//! Layout: `spec/ledger.md`, BLOCK-3. Vectors: `spec/vectors/ledger.json`.

use keelstone_codec::{BoundedList, Hash, Tag, TaggedHasher};
use keelstone_macros::{Decode, Encode};
use serde::{Deserialize, Serialize};

const LEAF: Tag = Tag::new("list/leaf");
const INNER: Tag = Tag::new("list/inner");
const ROOT: Tag = Tag::new("list/root");

/// Most elements of a list, by the width of its count.
pub const LIST_COUNT_MAX: usize = u32::MAX as usize;

/// The root of a list of hashes.
///
/// # Panics
/// For more than [`LIST_COUNT_MAX`] elements, which no list has.
#[must_use]
pub fn list_root(items: &[Hash]) -> Hash {
    let count = u32::try_from(items.len()).expect("a list has fewer than 2^32 elements");
    sealed(count, &if items.is_empty() { Hash::ZERO } else { top(items) })
}

fn sealed(count: u32, top: &Hash) -> Hash {
    TaggedHasher::new(ROOT).value(&count).value(top).finish()
}

fn leaf(item: &Hash) -> Hash {
    TaggedHasher::new(LEAF).value(item).finish()
}

fn inner(left: &Hash, right: &Hash) -> Hash {
    TaggedHasher::new(INNER).value(left).value(right).finish()
}

/// How many elements stand on the left of a node over `count` of them, at least two.
fn left_of(count: usize) -> usize {
    1 << (usize::BITS - 1 - (count - 1).leading_zeros())
}

fn top(items: &[Hash]) -> Hash {
    match items {
        [] => unreachable!("both halves of a list of two or more have an element"),
        [item] => leaf(item),
        _ => {
            let (left, right) = items.split_at(left_of(items.len()));
            inner(&top(left), &top(right))
        }
    }
}

/// That an element stands at a place of a list: the hashes beside the way down to it, from the bottom up.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct ListProof {
    /// Its place, from 0.
    pub index: u32,
    /// How many elements the list has.
    pub count: u32,
    /// The hashes beside the way.
    pub siblings: BoundedList<Hash, 32>,
}

impl ListProof {
    /// Proves the element at `index`; none if there is no such place.
    #[must_use]
    pub fn of(items: &[Hash], index: usize) -> Option<Self> {
        let (at, count) = (u32::try_from(index).ok()?, u32::try_from(items.len()).ok()?);
        if index >= items.len() {
            return None;
        }
        let (mut siblings, mut rest, mut index) = (Vec::new(), items, index);
        while rest.len() > 1 {
            let (left, right) = rest.split_at(left_of(rest.len()));
            let beside = if index < left.len() {
                rest = left;
                right
            } else {
                index -= left.len();
                rest = right;
                left
            };
            siblings.push(top(beside));
        }
        siblings.reverse();
        let siblings = BoundedList::new(siblings).expect("a list of 2^32 elements is 32 levels deep");
        Some(Self { index: at, count, siblings })
    }

    /// Whether `item` stands at this place of the list with this root.
    #[must_use]
    pub fn verify(&self, root: &Hash, item: &Hash) -> bool {
        self.root_over(item).is_some_and(|found| found == *root)
    }

    /// The root of the list in which `item` stands at this place; none if no list has such a place, or the proof has
    /// another length than the way to it.
    #[must_use]
    pub fn root_over(&self, item: &Hash) -> Option<Hash> {
        if self.index >= self.count {
            return None;
        }
        // The turns on the way down follow from index and count alone.
        let (mut turns, mut index, mut count) = (Vec::new(), self.index as usize, self.count as usize);
        while count > 1 {
            let left = left_of(count);
            turns.push(index >= left);
            (index, count) = if index < left { (index, left) } else { (index - left, count - left) };
        }
        if turns.len() != self.siblings.len() {
            return None;
        }
        let up = turns.iter().rev().zip(self.siblings.iter());
        let found = up.fold(leaf(item), |node, (is_right, beside)| match is_right {
            true => inner(beside, &node),
            false => inner(&node, beside),
        });
        Some(sealed(self.count, &found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(count: usize) -> Vec<Hash> {
        (0..count).map(|index| leaf(&Hash([u8::try_from(index % 251).expect("small"); 32]))).collect()
    }

    /// spec: BLOCK-3. Every element of every small list is proven at its place and at no other, of no other list.
    #[test]
    fn elements_are_proven_at_their_place_only() {
        for count in 0..40 {
            let items = items(count);
            let root = list_root(&items);
            for index in 0..count {
                let proof = ListProof::of(&items, index).expect("a place of the list");
                assert!(proof.verify(&root, &items[index]));
                for (other, item) in items.iter().enumerate() {
                    assert_eq!(proof.verify(&root, item), other == index, "{count} elements, {index} as {other}");
                }
                for wrong in [
                    ListProof { index: proof.index + 1, ..proof.clone() },
                    ListProof { count: proof.count + 1, ..proof.clone() },
                    ListProof { count: proof.index, ..proof.clone() },
                    ListProof { siblings: BoundedList::default(), ..proof.clone() },
                ] {
                    assert!(wrong == proof || !wrong.verify(&root, &items[index]), "{wrong:?}");
                }
            }
            assert_eq!(ListProof::of(&items, count), None);
        }
    }

    #[test]
    fn lists_of_different_lengths_have_different_roots() {
        let roots: std::collections::BTreeSet<Hash> = (0..100).map(|count| list_root(&items(count))).collect();
        assert_eq!(roots.len(), 100);
    }
}
