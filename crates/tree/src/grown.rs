//! A state that is wholly in memory, grown from its contents, with every node of its tree: what a prover needs where there
//! are no pages, and a version that tests can read and walk.

use crate::preimage::{self, Level};
use crate::{Branch, Hasher, KeyRange, Opened, Read, ReadError, Scan, Totals, Walk, bits};
use keelstone_codec::{Hash, Key, Namespace, Root, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

/// A state with all its nodes. It never changes; build another for another state.
#[derive(Clone, Debug)]
pub struct Grown {
    nodes: Vec<(Hash, Totals, Shape)>,
    /// Where the leaves of each namespace stand among the nodes, in the order of their keys.
    leaves: BTreeMap<Namespace, Range<usize>>,
    top: Option<u32>,
    root: Root,
}

#[derive(Clone, Debug)]
enum Shape {
    Inner { crit: u16, left: u32, right: u32 },
    Entry { key: Key, value: Value, value_hash: Hash },
    Namespace { name: Namespace, tree: u32 },
}

impl Grown {
    /// Builds the nodes of a state. Namespaces without entries count as absent.
    #[must_use]
    pub fn new<H: Hasher>(state: &BTreeMap<Namespace, BTreeMap<Key, Value>>) -> Self {
        let root = Root(H::hash_node(&preimage::empty()));
        let mut grown = Self { nodes: Vec::new(), leaves: BTreeMap::new(), top: None, root };
        let mut names = Vec::new();
        for (name, entries) in state {
            let leaves = entries.iter().map(|(key, value)| {
                let value_len = u32::try_from(value.len()).expect("a value has at most 8 MiB");
                let value_hash = H::hash(value);
                let image = preimage::leaf(short(key.len()), value_len, &H::hash(key), &value_hash);
                let shape = Shape::Entry { key: key.clone(), value: value.clone(), value_hash };
                (H::hash_node(&image), Totals::entry(key.len(), value_len), shape)
            });
            let leaves: Vec<_> = leaves.collect();
            let first = grown.nodes.len();
            let leaves = leaves.into_iter().map(|leaf| grown.push(leaf)).collect::<Vec<_>>();
            let Some(tree) = grown.fold::<H>(Level::Entries, &leaves) else { continue };
            grown.leaves.insert(name.clone(), first..first + leaves.len());
            let (root, totals, _) = grown.nodes[tree as usize];
            let len = short(name.as_bytes().len());
            let image = preimage::namespace(len, totals, &H::hash(name.as_bytes()), &H::hash(&root.0));
            let shape = Shape::Namespace { name: name.clone(), tree };
            names.push(grown.push((H::hash_node(&image), totals, shape)));
        }
        grown.top = grown.fold::<H>(Level::Namespaces, &names);
        if let Some(top) = grown.top {
            grown.root = Root(grown.nodes[top as usize].0);
        }
        grown
    }

    /// The root of the state.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }

    fn push(&mut self, node: (Hash, Totals, Shape)) -> u32 {
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).expect("a state in memory has fewer than 2^32 nodes")
    }

    fn key(&self, leaf: u32) -> &[u8] {
        match &self.nodes[leaf as usize].2 {
            Shape::Entry { key, .. } => key,
            Shape::Namespace { name, .. } => name.as_bytes(),
            Shape::Inner { .. } => &[],
        }
    }

    /// The leaves of a namespace.
    fn leaves(&self, namespace: &Namespace) -> &[(Hash, Totals, Shape)] {
        self.leaves.get(namespace).map_or(&[], |leaves| &self.nodes[leaves.clone()])
    }

    /// Puts inner nodes over sorted leaves: neighbours join in the order of their critical bits, the greatest first.
    fn fold<H: Hasher>(&mut self, level: Level, leaves: &[u32]) -> Option<u32> {
        let mut waiting: Vec<(u16, u32)> = Vec::new();
        let mut last = *leaves.first()?;
        let mut node = last;
        for &leaf in &leaves[1..] {
            let crit = bits::crit(self.key(last), self.key(leaf)).expect("keys of a map differ");
            while let Some((above, left)) = waiting.pop_if(|(above, _)| *above > crit) {
                node = self.join::<H>(level, above, left, node);
            }
            waiting.push((crit, node));
            (last, node) = (leaf, leaf);
        }
        while let Some((above, left)) = waiting.pop() {
            node = self.join::<H>(level, above, left, node);
        }
        Some(node)
    }

    fn join<H: Hasher>(&mut self, level: Level, crit: u16, left: u32, right: u32) -> u32 {
        let [l, r] = [left, right].map(|node| &self.nodes[node as usize]);
        let hash = H::hash_node(&preimage::inner(level, crit, [l.1, r.1], [&l.0, &r.0]));
        let totals = l.1 + r.1;
        self.push((hash, totals, Shape::Inner { crit, left, right }))
    }

    fn branch(&self, node: u32) -> Branch<u32> {
        let (hash, totals, _) = self.nodes[node as usize];
        Branch { node, hash, totals }
    }
}

fn short(len: usize) -> u16 {
    u16::try_from(len).expect("keys and names have at most 255 bytes")
}

fn entry((_, _, shape): &(Hash, Totals, Shape)) -> (&Key, &Value) {
    match shape {
        Shape::Entry { key, value, .. } => (key, value),
        _ => unreachable!("the leaves of a namespace are entries"),
    }
}

impl Read for Grown {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        let leaves = self.leaves(namespace);
        let found = leaves.binary_search_by(|leaf| entry(leaf).0.as_slice().cmp(key)).ok();
        Ok(found.map(|at| entry(&leaves[at]).1.clone()))
    }

    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        let leaves = self.leaves(namespace);
        let below = |key: &[u8]| leaves.partition_point(|leaf| entry(leaf).0.as_slice() < key);
        let (start, end) = (below(&range.start), range.end.as_deref().map_or(leaves.len(), below));
        let found = leaves[start.min(end)..end].iter().map(|leaf| {
            let (key, value) = entry(leaf);
            Ok((key.clone(), value.clone()))
        });
        if range.reverse { Box::new(found.rev()) } else { Box::new(found) }
    }
}

impl Walk for Grown {
    type Node = u32;

    fn top(&self) -> Result<Option<Branch<u32>>, ReadError> {
        Ok(self.top.map(|top| self.branch(top)))
    }

    fn open<'n>(&'n self, node: &'n u32) -> Result<Opened<'n, u32>, ReadError> {
        Ok(match &self.nodes[*node as usize].2 {
            Shape::Inner { crit, left, right } => {
                Opened::Inner { crit: *crit, left: self.branch(*left), right: self.branch(*right) }
            }
            Shape::Entry { key, value, value_hash } => {
                let value_len = u32::try_from(value.len()).expect("a value has at most 8 MiB");
                Opened::Entry { key: Cow::Borrowed(key), value_len, value_hash: *value_hash }
            }
            Shape::Namespace { name, tree } => {
                Opened::Namespace { name: Cow::Borrowed(name), tree: self.branch(*tree) }
            }
        })
    }

    fn value(&self, node: &u32) -> Result<Value, ReadError> {
        match &self.nodes[*node as usize].2 {
            Shape::Entry { value, .. } => Ok(value.clone()),
            _ => panic!("only entries have values"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Blake3, Diff, MemoryTree};
    use proptest::prelude::*;

    proptest! {
        /// Whatever is asked of it is answered as by a state without nodes.
        #[test]
        fn reads_as_the_state_it_was_grown_from(
            keys in prop::collection::btree_set((0u8..3, prop::collection::vec(0u8..3, 1..4)), 0..40),
            (start, end) in (prop::collection::vec(0u8..4, 0..4), prop::option::of(prop::collection::vec(0u8..4, 0..4))),
            reverse: bool,
        ) {
            let name = |space: u8| Namespace::new(&format!("n{space}")).unwrap();
            let mut state: BTreeMap<Namespace, BTreeMap<Key, Value>> = BTreeMap::new();
            for (number, (space, key)) in (0u8..).zip(keys) {
                state.entry(name(space)).or_default().insert(Key::new(key).unwrap(), Value::new(vec![number]).unwrap());
            }
            let mut plain = MemoryTree::<Blake3>::new();
            let writes = state.iter().flat_map(|(name, entries)| {
                entries.iter().map(move |(key, value)| (name.clone(), key.clone(), Some(value.clone())))
            });
            plain.apply(&writes.collect::<Diff>());
            let grown = Grown::new::<Blake3>(&state);
            prop_assert_eq!(grown.root(), plain.root());
            let range = KeyRange { start: start.clone(), end, reverse };
            for space in 0..4 {
                let all = |read: &dyn Read| read.scan(&name(space), range.clone()).map(Result::unwrap).collect::<Vec<_>>();
                prop_assert_eq!(all(&grown), all(&plain));
                prop_assert_eq!(grown.get(&name(space), &start).unwrap(), plain.get(&name(space), &start).unwrap());
            }
        }
    }
}
