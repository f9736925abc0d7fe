//! A tree in memory that owns its entries: for tests, simulation, and what fits.

use crate::preimage::{self, Level};
use crate::{Diff, Grown, Hasher, KeyRange, Proof, Query, Read, ReadError, Scan, Totals, bits, prove};
use keelstone_codec::{Hash, Key, Namespace, Root, Value};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Bound;

/// A whole state in memory. Cloning copies it.
#[derive(Clone, Debug, Default)]
pub struct MemoryTree<H> {
    state: BTreeMap<Namespace, BTreeMap<Key, Value>>,
    _hasher: PhantomData<H>,
}

impl<H: Hasher> MemoryTree<H> {
    /// The empty state.
    #[must_use]
    pub fn new() -> Self {
        Self { state: BTreeMap::new(), _hasher: PhantomData }
    }

    /// Applies a diff and returns the new root.
    pub fn apply(&mut self, diff: &Diff) -> Root {
        for (namespace, write) in diff.iter() {
            let entries = self.state.entry(namespace.clone()).or_default();
            match &write.value {
                Some(value) => drop(entries.insert(write.key.clone(), value.clone())),
                None => drop(entries.remove(&write.key)),
            }
        }
        self.state.retain(|_, entries| !entries.is_empty());
        self.root()
    }

    /// The namespaces that have entries, in order, with their totals.
    #[must_use]
    pub fn namespaces(&self) -> Vec<(Namespace, Totals)> {
        let weigh = |(key, value): (&Key, &Value)| Totals { count: 1, bytes: (key.len() + value.len()) as u64 };
        let sum = |entries: &BTreeMap<Key, Value>| entries.iter().map(weigh).fold(Totals::default(), |a, b| a + b);
        self.state.iter().map(|(name, entries)| (name.clone(), sum(entries))).collect()
    }

    /// The root of the state.
    #[must_use]
    pub fn root(&self) -> Root {
        let namespaces = self.state.iter().map(|(name, entries)| {
            let leaves = entries.iter().map(|(key, value)| {
                let key_len = preimage::short_len(key);
                let value_len = u32::try_from(value.len()).expect("at most 8 MiB");
                let hash = H::hash_node(&preimage::leaf(key_len, value_len, &H::hash(key), &H::hash(value)));
                (key.as_slice(), Totals::entry(key.len(), value_len), hash)
            });
            let (totals, root) = fold::<H>(Level::Entries, leaves).expect("a namespace has an entry");
            let name_len = preimage::short_len(name.as_bytes());
            let node = preimage::namespace(name_len, totals, &H::hash(name.as_bytes()), &H::hash(&root.0));
            (name.as_bytes(), totals, H::hash_node(&node))
        });
        match fold::<H>(Level::Namespaces, namespaces) {
            Some((_, hash)) => Root(hash),
            None => Root(H::hash_node(&preimage::empty())),
        }
    }

    /// A proof of what `queries` ask of this state. Builds all its nodes: for many proofs, keep a [`Grown`].
    #[must_use]
    pub fn prove(&self, queries: &[Query]) -> Proof {
        prove(&Grown::new::<H>(&self.state), queries).expect("nodes in memory can be read")
    }
}

/// The root of sorted leaves: the critical bits between neighbours make the shape, the least of them on top.
fn fold<'a, H: Hasher>(level: Level, leaves: impl Iterator<Item = (&'a [u8], Totals, Hash)>) -> Option<(Totals, Hash)> {
    let mut waiting: Vec<(u16, Totals, Hash)> = Vec::new();
    let mut last: Option<(&[u8], Totals, Hash)> = None;
    let join = |crit, left: (Totals, Hash), right: (Totals, Hash)| {
        let node = preimage::inner(level, crit, [left.0, right.0], [&left.1, &right.1]);
        (left.0 + right.0, H::hash_node(&node))
    };
    for leaf in leaves {
        if let Some((key, totals, hash)) = last {
            let crit = bits::crit(key, leaf.0).expect("keys strictly ascend");
            let mut node = (totals, hash);
            while let Some((above, totals, hash)) = waiting.pop_if(|(above, ..)| *above > crit) {
                node = join(above, (totals, hash), node);
            }
            waiting.push((crit, node.0, node.1));
        }
        last = Some(leaf);
    }
    let (_, totals, hash) = last?;
    Some(waiting.into_iter().rfold((totals, hash), |node, (crit, totals, hash)| join(crit, (totals, hash), node)))
}

impl<H: Hasher> Read for MemoryTree<H> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        Ok(self.state.get(namespace).and_then(|entries| entries.get(key)).cloned())
    }

    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        let Some(entries) = self.state.get(namespace).filter(|_| !range.is_empty()) else {
            return Box::new(std::iter::empty());
        };
        let end = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let found = entries.range::<[u8], _>((Bound::Included(range.start.as_slice()), end));
        let found = found.map(|(key, value)| Ok((key.clone(), value.clone())));
        if range.reverse { Box::new(found.rev()) } else { Box::new(found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Blake3, Sha256, reference};
    use proptest::prelude::*;

    fn writes() -> impl Strategy<Value = Vec<(u8, Vec<u8>, Option<u8>)>> {
        let byte = prop_oneof![Just(0u8), Just(0x80), Just(0xff), any::<u8>()];
        let key = prop::collection::vec(byte, 1..5);
        prop::collection::vec((0..3u8, key, prop::option::weighted(0.8, any::<u8>())), 0..60)
    }

    proptest! {
        /// spec: TREE-3, TREE-4, TREE-6. The root is the one the naive reference finds, under both hashers.
        #[test]
        fn roots_equal_the_reference(writes in writes()) {
            let (mut blake3, mut sha256) = (MemoryTree::<Blake3>::new(), MemoryTree::<Sha256>::new());
            let mut state = reference::State::new();
            for (space, key, value) in writes {
                let name = format!("n{space}");
                let value = value.map(|byte| vec![byte; usize::from(byte) + 1]);
                let entries = state.entry(name.clone()).or_default();
                match &value {
                    Some(value) => drop(entries.insert(key.clone(), value.clone())),
                    None => drop(entries.remove(&key)),
                }
                let (name, key) = (Namespace::new(&name).unwrap(), Key::new(key).unwrap());
                let diff: Diff = [(name, key, value.map(|value| Value::new(value).unwrap()))].into_iter().collect();
                prop_assert_eq!(blake3.apply(&diff), reference::root_with(reference::blake3, &state));
                prop_assert_eq!(sha256.apply(&diff), reference::root_with(reference::sha256, &state));
            }
        }
    }
}
