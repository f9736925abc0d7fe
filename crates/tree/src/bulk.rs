//! The top of a subtree from its sorted entries alone: for whoever is handed many and has only to know what they come to.
//!
//! The shape of a tree follows from the critical bits between neighbours (spec: TREE-3), so nothing is built but a few
//! arrays. Leaves are hashed in lanes as they come; inner nodes in lanes too, all of one height at a time, the lowest
//! first. Nothing recurses, whatever the depth.

use crate::build::{LEAVES, leaves};
use crate::preimage::{self, Level, Preimage};
use crate::{Hasher, NODE_LEN, Totals, bits};
use keelstone_codec::Hash;
use std::marker::PhantomData;

/// How many nodes are handed to the hasher at once.
const LANES: usize = 64;

/// What a parent would say of a subtree, and where its keys part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subtree {
    /// The hash of its top node.
    pub hash: Hash,
    /// What is in it.
    pub totals: Totals,
    /// The critical bit of its top node; none for a single leaf.
    pub crit: Option<u16>,
}

/// A key that does not come after the one before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("keys must strictly ascend: {:?} follows {:?}", .after.escape_ascii().to_string(), .before.escape_ascii().to_string())]
pub struct OutOfOrder {
    /// The one that came first.
    pub before: Vec<u8>,
    /// The one that came behind it.
    pub after: Vec<u8>,
}

/// Takes leaves of one level in order and says what they come to. It holds about 70 bytes for each, and keeps its room
/// for the next subtree.
#[derive(Debug)]
pub struct Bulk<H> {
    level: Level,
    last: Vec<u8>,
    /// Leaves that are not hashed yet.
    waiting: Vec<Preimage>,
    /// Critical bits between neighbours.
    crits: Vec<u16>,
    /// Leaves, then inner nodes: number `i` of them stands between leaf `i` and `i + 1`.
    nodes: Vec<(Hash, Totals)>,
    heights: Vec<u16>,
    children: Vec<[u32; 2]>,
    order: Vec<u32>,
    _hasher: PhantomData<H>,
}

impl<H: Hasher> Bulk<H> {
    /// No leaves yet.
    #[must_use]
    pub fn new(level: Level) -> Self {
        Self {
            level,
            last: Vec::with_capacity(keelstone_codec::KEY_LEN_MAX),
            waiting: Vec::with_capacity(LANES),
            crits: Vec::new(),
            nodes: Vec::new(),
            heights: Vec::new(),
            children: Vec::new(),
            order: Vec::new(),
            _hasher: PhantomData,
        }
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// [`OutOfOrder`]; what was taken before stays.
    ///
    /// # Panics
    /// For a level of namespaces, or an entry that breaks TREE-1.
    pub fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<(), OutOfOrder> {
        self.entries(&[(key, value)])
    }

    /// Takes the next entries, each a key and a value. Sixty-four at a time fill lanes; one by one costs four times as much.
    ///
    /// # Errors
    /// [`OutOfOrder`]; what came before it stays.
    ///
    /// # Panics
    /// As [`Bulk::entry`].
    pub fn entries(&mut self, entries: &[(&[u8], &[u8])]) -> Result<(), OutOfOrder> {
        assert_eq!(self.level, Level::Entries, "entries are leaves of their own level");
        for batch in entries.chunks(LEAVES) {
            let first = self.nodes.len();
            let taken = batch.iter().try_for_each(|(key, value)| {
                self.neighbour(key)?;
                let value_len = u32::try_from(value.len()).expect("a value has at most 8 MiB");
                self.nodes.push((Hash::ZERO, Totals::entry(key.len(), value_len)));
                Ok(())
            });
            let mut nodes = self.nodes[first..].iter_mut();
            leaves::<H>(&batch[..nodes.len()], |leaf| {
                nodes.next().expect("one for each leaf").0 = leaf.hash;
            });
            taken?;
        }
        Ok(())
    }

    /// Takes the next namespace, by its name and what its entries come to.
    ///
    /// # Errors
    /// [`OutOfOrder`]; what was taken before stays.
    ///
    /// # Panics
    /// For a level of entries.
    pub fn namespace(&mut self, name: &[u8], entries: &Subtree) -> Result<(), OutOfOrder> {
        assert_eq!(self.level, Level::Namespaces, "namespaces are leaves of their own level");
        let hashes = [H::hash(name), H::hash(&entries.hash.0)];
        let image = preimage::namespace(preimage::short_len(name), entries.totals, &hashes[0], &hashes[1]);
        self.leaf(name, entries.totals, image)
    }

    fn leaf(&mut self, key: &[u8], totals: Totals, image: Preimage) -> Result<(), OutOfOrder> {
        self.neighbour(key)?;
        self.nodes.push((Hash::ZERO, totals));
        self.waiting.push(image);
        if self.waiting.len() == LANES {
            self.hash_leaves();
        }
        Ok(())
    }

    /// Notes where the next key parts from the one before.
    fn neighbour(&mut self, key: &[u8]) -> Result<(), OutOfOrder> {
        if !self.nodes.is_empty() {
            match bits::crit(&self.last, key) {
                Some(crit) if bits::bit(key, crit) => self.crits.push(crit),
                _ => return Err(OutOfOrder { before: self.last.clone(), after: key.to_vec() }),
            }
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        Ok(())
    }

    fn hash_leaves(&mut self) {
        let mut hashes = [Hash::ZERO; LANES];
        let hashes = &mut hashes[..self.waiting.len()];
        H::hash_nodes(&self.waiting, hashes);
        let first = self.nodes.len() - hashes.len();
        for ((hash, _), found) in self.nodes[first..].iter_mut().zip(hashes) {
            *hash = *found;
        }
        self.waiting.clear();
    }

    /// What the leaves taken so far come to, none if there are none; and starts anew. The cost is linear.
    pub fn finish(&mut self) -> Option<Subtree> {
        self.hash_leaves();
        let leaves = self.nodes.len();
        let top = leaves.checked_sub(1).map(|last| {
            let top = self.shape(leaves);
            self.nodes.resize(leaves + last, (Hash::ZERO, Totals::default()));
            self.hash_inner(leaves);
            let (hash, totals) = self.nodes[top as usize];
            Subtree { hash, totals, crit: (top as usize).checked_sub(leaves).map(|inner| self.crits[inner]) }
        });
        self.nodes.clear();
        self.crits.clear();
        self.last.clear();
        top
    }

    /// Finds the children and heights of all inner nodes, and the top.
    fn shape(&mut self, leaves: usize) -> u32 {
        let number = |index: usize| u32::try_from(index).expect("a subtree in memory has fewer than 2^31 leaves");
        self.heights.clear();
        self.heights.resize(2 * leaves - 1, 0);
        self.children.clear();
        self.children.resize(leaves - 1, [0; 2]);
        // A node is complete when a lesser critical bit follows: then everything below it has been seen.
        let mut open: Vec<u32> = Vec::new();
        let mut below = 0;
        for leaf in 0..leaves {
            below = number(leaf);
            while let Some(inner) =
                open.pop_if(|inner| self.crits.get(leaf).is_none_or(|next| *next < self.crits[*inner as usize]))
            {
                let children = &mut self.children[inner as usize];
                children[1] = below;
                below = number(leaves) + inner;
                let heights = children.map(|child| self.heights[child as usize]);
                // Critical bits grow on the way down and have 16 bits, so heights have.
                self.heights[below as usize] = 1 + heights[0].max(heights[1]);
            }
            if leaf + 1 < leaves {
                self.children[leaf][0] = below;
                open.push(number(leaf));
            }
        }
        below
    }

    /// Hashes the inner nodes, those of one height together.
    fn hash_inner(&mut self, leaves: usize) {
        let heights = &self.heights[leaves..];
        let highest = heights.iter().copied().max().unwrap_or(0);
        let mut ends = vec![0usize; usize::from(highest) + 1];
        for height in heights {
            ends[usize::from(*height)] += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            sum += std::mem::replace(end, sum);
        }
        self.order.clear();
        self.order.resize(heights.len(), 0);
        for (inner, height) in (0..).zip(heights) {
            let end = &mut ends[usize::from(*height)];
            self.order[*end] = inner;
            *end += 1;
        }

        let mut images = [[0; NODE_LEN]; LANES];
        let mut hashes = [Hash::ZERO; LANES];
        let mut first = 0;
        for end in ends {
            for batch in self.order[first..end].chunks(LANES) {
                for (inner, image) in batch.iter().zip(&mut images) {
                    let [left, right] = self.children[*inner as usize].map(|child| self.nodes[child as usize]);
                    let crit = self.crits[*inner as usize];
                    *image = preimage::inner(self.level, crit, [left.1, right.1], [&left.0, &right.0]);
                    self.nodes[leaves + *inner as usize].1 = left.1 + right.1;
                }
                H::hash_nodes(&images[..batch.len()], &mut hashes[..batch.len()]);
                for (inner, hash) in batch.iter().zip(&hashes) {
                    self.nodes[leaves + *inner as usize].0 = *hash;
                }
            }
            first = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Blake3, Diff, MemoryTree, Sha256, reference};
    use keelstone_codec::{Key, Namespace, Value};
    use proptest::prelude::*;

    fn bulk_root<H: Hasher>(state: &reference::State) -> Option<Subtree> {
        let (mut names, mut entries) = (Bulk::<H>::new(Level::Namespaces), Bulk::<H>::new(Level::Entries));
        for (name, space) in state {
            for (key, value) in space {
                entries.entry(key, value).unwrap();
            }
            if let Some(subtree) = entries.finish() {
                names.namespace(name.as_bytes(), &subtree).unwrap();
            }
        }
        names.finish()
    }

    fn states() -> impl Strategy<Value = reference::State> {
        let byte = prop_oneof![Just(0u8), Just(0x80), Just(0xff), any::<u8>()];
        let entries = prop::collection::btree_map(
            prop::collection::vec(byte, 1..6),
            prop::collection::vec(any::<u8>(), 1..70),
            0..200,
        );
        prop::collection::btree_map("[a-c]{1,3}", entries, 0..5)
    }

    proptest! {
        /// spec: TREE-3, TREE-4. Sorted entries come to the hash the naive reference finds, under both hashers.
        #[test]
        fn entries_in_bulk_come_to_the_reference_root(state in states()) {
            for (found, expected) in [
                (bulk_root::<Blake3>(&state), reference::root::<Blake3>(&state)),
                (bulk_root::<Sha256>(&state), reference::root::<Sha256>(&state)),
            ] {
                match found {
                    Some(found) => prop_assert_eq!(found.hash, expected.0),
                    None => prop_assert!(state.values().all(reference::Entries::is_empty)),
                }
            }
        }
    }

    /// spec: TREE-5. Totals and the critical bit are those of the top, and a second subtree knows nothing of the first.
    #[test]
    fn a_subtree_says_its_totals_and_where_its_keys_part() {
        let mut bulk = Bulk::<Blake3>::new(Level::Entries);
        assert_eq!(bulk.finish(), None);
        for _ in 0..2 {
            bulk.entry(&[0], b"ab").unwrap();
            bulk.entry(&[0, 0], b"abc").unwrap();
            let found = bulk.finish().unwrap();
            assert_eq!((found.totals, found.crit), (Totals { count: 2, bytes: 8 }, Some(9)));
        }
        bulk.entry(&[7], b"x").unwrap();
        assert_eq!(bulk.finish().unwrap().crit, None);
    }

    #[test]
    fn keys_that_do_not_ascend_are_refused() {
        let mut bulk = Bulk::<Blake3>::new(Level::Entries);
        bulk.entry(b"b", b"1").unwrap();
        for key in [&b"b"[..], b"a", b"aa"] {
            let error = bulk.entry(key, b"1").unwrap_err();
            assert_eq!((error.before.as_slice(), error.after.as_slice()), (&b"b"[..], key));
        }
        bulk.entry(b"ba", b"1").unwrap();
    }

    /// SS-59: a path as deep as keys allow takes no more stack than a flat one.
    #[test]
    fn ss59_the_deepest_path_is_hashed_without_recursion() {
        let name = Namespace::new("deep").unwrap();
        let keys: std::collections::BTreeSet<Vec<u8>> = (0..255usize)
            .flat_map(|len| {
                (0..9).map(move |bit| {
                    let mut key = vec![0xff; len];
                    key.extend((bit > 0).then(|| !(0xffu8 >> (bit - 1))));
                    key
                })
            })
            .filter(|key| !key.is_empty())
            .collect();
        let value = Value::new(&b"v"[..]).unwrap();
        let writes = keys.iter().map(|key| (name.clone(), Key::new(key.clone()).unwrap(), Some(value.clone())));
        let root = MemoryTree::<Blake3>::new().apply(&writes.collect::<Diff>());
        let mut bulk = Bulk::<Blake3>::new(Level::Entries);
        keys.iter().for_each(|key| bulk.entry(key, &value).unwrap());
        let entries = bulk.finish().unwrap();
        assert!(keys.len() > 2_000, "{}", keys.len());
        let mut names = Bulk::<Blake3>::new(Level::Namespaces);
        names.namespace(b"deep", &entries).unwrap();
        assert_eq!(names.finish().unwrap().hash, root.0);
    }
}
