//! New roots without a store: what a diff makes of a state of which only a proof is at hand.
//!
//! A witness is a verified proof that shows the way of every key written. Its leaves and opaque nodes, in order, stand
//! for all entries of the old state; writes are merged in and the tree is put up over the result again. An opaque node
//! moves as a whole: its hash and totals depend on nothing above it, and its leading bits, known from a leaf shown
//! beside it, are all it takes to find where it parts from its new neighbours.
//!
//! Rules: `spec/tree.md`, TREE-11.

use crate::bits::{bit, crit};
use crate::preimage;
use crate::proof::{Proof, Shape};
use crate::query::Region;
use crate::verify::{Answer, Verified};
use crate::{Diff, Hasher, Level, Query, Totals, Write};
use keelstone_codec::{Hash, Namespace, Root};
use std::cmp::Ordering;

/// Why a witness gives no new root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessError {
    /// The witness does not show the way of a written key. Ask for one that does, with [`Query::Write`].
    #[error("the witness does not show {namespace}/{}, which is written", key.escape_ascii())]
    Incomplete {
        /// Where.
        namespace: Namespace,
        /// The key.
        key: Vec<u8>,
    },
    /// Totals the old root commits to leave no room for these writes: whoever made that root broke the rules.
    #[error("sums above 64 bits: the old root commits to totals no state has")]
    Overflow,
}

impl Diff {
    /// The questions whose answers make a witness for this diff.
    #[must_use]
    pub fn queries(&self) -> Vec<Query> {
        self.iter().map(|(namespace, write)| Query::Write(namespace.clone(), write.key.clone())).collect()
    }
}

impl<H: Hasher> Verified<H> {
    /// The root of the state that `diff` makes of this one (spec: TREE-11).
    ///
    /// # Errors
    /// [`WitnessError::Incomplete`] names the first key the witness does not show.
    pub fn apply(&self, diff: &Diff) -> Result<Root, WitnessError> {
        if diff.is_empty() {
            return Ok(self.root());
        }
        let mut parts = diff.parts().iter().peekable();
        let mut names = Vec::new();
        for piece in pieces(&self.proof, 0) {
            while let Some((namespace, writes)) =
                parts.next_if(|(namespace, _)| piece.compare(namespace.as_bytes()) == Ordering::Greater)
            {
                names.extend(self.namespace_after(namespace, writes)?);
            }
            match parts.next_if(|(namespace, _)| piece.compare(namespace.as_bytes()) == Ordering::Equal) {
                Some((namespace, writes)) => names.extend(self.namespace_after(namespace, writes)?),
                None => names.push(piece),
            }
        }
        for (namespace, writes) in parts {
            names.extend(self.namespace_after(namespace, writes)?);
        }
        match join::<H>(Level::Namespaces, &names)? {
            Some((hash, _)) => Ok(Root(hash)),
            None => Ok(Root(H::hash_node(&preimage::empty()))),
        }
    }

    /// A namespace with its writes; none if it has no entry left (spec: TREE-6).
    fn namespace_after<'p>(
        &'p self,
        namespace: &'p Namespace,
        writes: &'p [Write],
    ) -> Result<Option<Piece<'p>>, WitnessError> {
        let incomplete = |write: &Write| {
            let key = write.key.as_slice().to_vec();
            WitnessError::Incomplete { namespace: namespace.clone(), key }
        };
        let old = match self.find_tree(namespace) {
            Answer::Present(tree) => pieces(&self.proof, tree),
            Answer::Absent => Vec::new(),
            Answer::Unknown => return Err(incomplete(&writes[0])),
        };
        let mut writes = writes.iter().peekable();
        let mut entries = Vec::with_capacity(old.len() + writes.len());
        for piece in old {
            while let Some(write) = writes.next_if(|write| piece.compare(&write.key) == Ordering::Greater) {
                entries.extend(Piece::written::<H>(write));
            }
            match writes.next_if(|write| piece.compare(&write.key) == Ordering::Equal) {
                // The key is somewhere in a part that is not shown, or is not there.
                Some(write) if piece.edge != Edge::None => return Err(incomplete(write)),
                Some(write) => entries.extend(Piece::written::<H>(write)),
                None => entries.push(piece),
            }
        }
        entries.extend(writes.filter_map(Piece::written::<H>));
        let Some((root, totals)) = join::<H>(Level::Entries, &entries)? else { return Ok(None) };
        let name = namespace.as_bytes();
        let len = u16::try_from(name.len()).expect("a name has at most 32 bytes");
        let hash = H::hash_node(&preimage::namespace(len, totals, &H::hash(name), &H::hash(&root.0)));
        Ok(Some(Piece { sample: name, edge: Edge::None, hash, totals }))
    }
}

/// A part of the old tree that goes into the new one as it is, or a new leaf.
#[derive(Clone, Debug)]
struct Piece<'p> {
    /// The key of a leaf; of an opaque node, a key that has its bits before the edge.
    sample: &'p [u8],
    edge: Edge,
    hash: Hash,
    totals: Totals,
}

/// How much is known of the keys of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    /// All: it is a leaf.
    None,
    /// An opaque node's: the sample's bits before `crit`, and there the bit `side`.
    At { crit: u16, side: bool },
    /// Nothing: it is the whole tree.
    Whole,
}

impl<'p> Piece<'p> {
    /// The leaf a write makes; none if it deletes.
    fn written<H: Hasher>(write: &'p Write) -> Option<Self> {
        let value = write.value.as_ref()?;
        let key = write.key.as_slice();
        let key_len = u16::try_from(key.len()).expect("a key has at most 255 bytes");
        let value_len = u32::try_from(value.len()).expect("a value has at most 8 MiB");
        let hash = H::hash_node(&preimage::leaf(key_len, value_len, &H::hash(key), &H::hash(value)));
        Some(Self { sample: key, edge: Edge::None, hash, totals: Totals::entry(key.len(), value_len) })
    }

    /// How the keys of this piece stand to `key`; equal if `key` is its own, or may be.
    fn compare(&self, key: &[u8]) -> Ordering {
        match self.edge {
            Edge::None => self.sample.cmp(key),
            Edge::At { crit, side } => Region { sample: self.sample, crit, side }.compare(key),
            Edge::Whole => Ordering::Equal,
        }
    }

    /// The least bit in which the keys of two pieces differ; none if what is known of them does not tell.
    fn crit(&self, other: &Self) -> Option<u16> {
        let known = [self, other].map(|piece| match piece.edge {
            Edge::None => u16::MAX,
            Edge::At { crit, .. } => crit,
            Edge::Whole => 0,
        });
        let known = known[0].min(known[1]);
        match crit(self.sample, other.sample) {
            Some(at) if at < known => Some(at),
            _ => (self.bit(known)? != other.bit(known)?).then_some(known),
        }
    }

    fn bit(&self, i: u16) -> Option<bool> {
        match self.edge {
            Edge::At { crit, side } if crit == i => Some(side),
            Edge::Whole => None,
            Edge::None | Edge::At { .. } => Some(bit(self.sample, i)),
        }
    }
}

/// The leaves and opaque nodes of a pruned tree, in order.
fn pieces(proof: &Proof, top: u32) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut stack: Vec<(u32, &[u8], Edge)> = vec![(top, &[], Edge::Whole)];
    while let Some((at, sample, edge)) = stack.pop() {
        let node = &proof.nodes[at as usize];
        let (hash, totals) = (node.hash, node.totals);
        match node.shape {
            Shape::Empty => {}
            Shape::Opaque => pieces.push(Piece { sample, edge, hash, totals }),
            Shape::Entry { .. } | Shape::Namespace { .. } => {
                pieces.push(Piece { sample: proof.key_of(at), edge: Edge::None, hash, totals });
            }
            Shape::Inner { crit, left, right, leaves: [first, _], .. } => {
                let sample = proof.key_of(first);
                stack.push((right, sample, Edge::At { crit, side: true }));
                stack.push((left, sample, Edge::At { crit, side: false }));
            }
        }
    }
    pieces
}

/// What stands next to a place in a pruned tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside<'p> {
    /// A leaf with this key.
    Leaf(&'p [u8]),
    /// A part that is not shown.
    Unseen,
    /// The end of the tree.
    Nothing,
}

/// What stands before a key's place, and what at or behind it.
pub(crate) fn around<'p>(proof: &'p Proof, top: u32, key: &[u8]) -> (Beside<'p>, Beside<'p>) {
    let pieces = pieces(proof, top);
    let at = pieces.partition_point(|piece| piece.compare(key) == Ordering::Less);
    let beside = |piece: Option<&Piece<'p>>| match piece {
        None => Beside::Nothing,
        Some(piece) if piece.edge == Edge::None => Beside::Leaf(piece.sample),
        Some(_) => Beside::Unseen,
    };
    let before = at.checked_sub(1).and_then(|before| pieces.get(before));
    (beside(before), beside(pieces.get(at)))
}

/// Puts inner nodes over pieces in order: neighbours join in the order of their critical bits, the greatest first.
fn join<H: Hasher>(level: Level, pieces: &[Piece<'_>]) -> Result<Option<(Hash, Totals)>, WitnessError> {
    let over = |crit, left: (Hash, Totals), right: (Hash, Totals)| {
        let hash = H::hash_node(&preimage::inner(level, crit, [left.1, right.1], [&left.0, &right.0]));
        let totals = left.1.checked_add(right.1).ok_or(WitnessError::Overflow)?;
        Ok((hash, totals))
    };
    let Some(first) = pieces.first() else { return Ok(None) };
    let mut waiting: Vec<(u16, (Hash, Totals))> = Vec::new();
    let mut node = (first.hash, first.totals);
    for pair in pieces.windows(2) {
        // Every new key's place was compared with every opaque piece beside it, and pieces of one verified tree part
        // at the critical bit of the node they hung from.
        let crit = pair[0].crit(&pair[1]).expect("pieces part where they are known");
        while let Some((above, left)) = waiting.pop_if(|(above, _)| *above > crit) {
            node = over(above, left, node)?;
        }
        waiting.push((crit, node));
        node = (pair[1].hash, pair[1].totals);
    }
    while let Some((above, left)) = waiting.pop() {
        node = over(above, left, node)?;
    }
    Ok(Some(node))
}
