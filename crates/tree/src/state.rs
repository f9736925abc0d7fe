//! The upper level of the state: the tree of namespaces, small enough to be held whole (spec: TREE-3, TREE-4, TREE-6).

use crate::page::{Node, PageId};
use crate::preimage::{self, Level};
use crate::{Hasher, Totals, bits};
use keelstone_codec::{Hash, Namespace, Root};

/// A namespace of one version.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub(crate) name: Namespace,
    pub(crate) totals: Totals,
    /// The namespace root.
    pub(crate) hash: Hash,
    /// The page that has the namespace root.
    pub(crate) page: PageId,
    /// The hash of the namespace's leaf in the state tree.
    pub(crate) leaf: Hash,
}

impl Space {
    /// Computes the leaf from everything else.
    pub(crate) fn seal<H: Hasher>(&mut self) {
        let name = self.name.as_bytes();
        let image = preimage::namespace(preimage::short_len(name), self.totals, &H::hash(name), &H::hash(&self.hash.0));
        self.leaf = H::hash_node(&image);
    }
}

/// A node of the state tree: a namespace by its index, or the inner node between namespace `i` and `i + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateSpot {
    Space(usize),
    Inner(usize),
}

/// The inner nodes above the namespaces of one version.
#[derive(Debug, Default)]
pub(crate) struct StateTree {
    pub(crate) crits: Vec<u16>,
    pub(crate) children: Vec<[StateSpot; 2]>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) top: Option<StateSpot>,
    root: Root,
    totals: Totals,
}

impl StateTree {
    /// The tree above sealed namespaces, which ascend by name.
    pub(crate) fn new<H: Hasher>(spaces: &[Space]) -> Self {
        let crit = |pair: &[Space]| bits::crit(pair[0].name.as_bytes(), pair[1].name.as_bytes());
        let crits: Vec<u16> = spaces.windows(2).map(|pair| crit(pair).expect("names differ")).collect();
        let mut out = Self {
            children: vec![[StateSpot::Space(0); 2]; crits.len()],
            nodes: vec![Node::default(); crits.len()],
            crits,
            top: None,
            root: Root(H::hash_node(&preimage::empty())),
            totals: Totals::default(),
        };
        // As in a page: a node is complete when a lesser critical bit follows.
        let mut waiting: Vec<usize> = Vec::new();
        for space in 0..spaces.len() {
            let mut below = StateSpot::Space(space);
            while let Some(node) =
                waiting.pop_if(|node| out.crits.get(space).is_none_or(|next| *next < out.crits[*node]))
            {
                out.children[node][1] = below;
                let [left, right] = out.children[node].map(|child| out.at(spaces, child));
                let totals = [left.totals, right.totals];
                let image = preimage::inner(Level::Namespaces, out.crits[node], totals, [&left.hash, &right.hash]);
                out.nodes[node] = Node { hash: H::hash_node(&image), totals: left.totals + right.totals };
                below = StateSpot::Inner(node);
            }
            if space < out.crits.len() {
                out.children[space][0] = below;
                waiting.push(space);
            }
            out.top = Some(below);
        }
        if let Some(top) = out.top {
            let top = out.at(spaces, top);
            (out.root, out.totals) = (Root(top.hash), top.totals);
        }
        out
    }

    /// Hash and totals of a spot.
    pub(crate) fn at(&self, spaces: &[Space], spot: StateSpot) -> Node {
        match spot {
            StateSpot::Space(space) => Node { hash: spaces[space].leaf, totals: spaces[space].totals },
            StateSpot::Inner(node) => self.nodes[node],
        }
    }

    pub(crate) fn root(&self) -> Root {
        self.root
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }
}
