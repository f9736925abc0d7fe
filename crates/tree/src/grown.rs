//! The nodes of a tree that is wholly in memory, grown from its contents: what a prover needs where there are no pages.

use crate::preimage::{self, Level};
use crate::{Branch, Hasher, Opened, ReadError, Totals, Walk, bits};
use keelstone_codec::{Hash, Key, Namespace, Root, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// All nodes of a state. It never changes; build another for another state.
#[derive(Clone, Debug)]
pub struct Grown {
    nodes: Vec<(Hash, Totals, Shape)>,
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
        let mut grown = Self { nodes: Vec::new(), top: None, root: Root(H::hash_node(&preimage::empty())) };
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
            let leaves = leaves.into_iter().map(|leaf| grown.push(leaf)).collect::<Vec<_>>();
            let Some(tree) = grown.fold::<H>(Level::Entries, &leaves) else { continue };
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
