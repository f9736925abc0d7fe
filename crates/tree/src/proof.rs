//! Proofs of what is, and what is not, in the state under a root: their form and their bytes.
//!
//! A proof is a pruned tree: the state's own tree, in which every part that no question needs is replaced by its hash.
//! Whoever holds the root checks it with no store at hand ([`Proof::verify`]) and asks it questions. Nothing here does
//! I/O, and every byte is taken to come from an adversary: reading one takes time and memory linear in its length, and
//! no count in it is believed before what it counts has been read.
//!
//! ```text
//! proof      00                                                      the format, then one state node
//! state      00 hash[32]                                             opaque: the whole state unseen
//!            07                                                      the empty state
//!            inner (of state nodes)
//!            06 len name count bytes entry-node                      a namespace; opaque: its entries unseen
//! entry      00 hash[32]                                             opaque: only right behind a namespace
//!            inner (of entry nodes)
//!            04 len key len value                                    a leaf
//!            05 len key len hash[32]                                 a stub: the value's length and hash
//! inner      01 crit count bytes count bytes left right              both children follow
//!            02 crit count bytes count bytes hash[32] right          the left child is opaque
//!            03 crit count bytes count bytes hash[32] left           the right child is opaque
//! ```
//!
//! Numbers are minimal LEB128. An inner node with two opaque children cannot be written down.
//!
//! Rules: `spec/tree.md`, TREE-7. Vectors: `spec/vectors/proof.json`.

use crate::{Level, Totals};
use keelstone_codec::{
    Bytes, DecodeError, Hash, KEY_LEN_MAX, NAMESPACE_LEN_MAX, Namespace, Reader, Root, VALUE_LEN_MAX, put_varint,
};
use std::ops::Range;

/// The first byte of a proof.
pub(crate) const FORMAT: u8 = 0;

/// The kinds of nodes, as their first bytes.
pub(crate) mod tag {
    pub(crate) const OPAQUE: u8 = 0;
    pub(crate) const INNER: u8 = 1;
    pub(crate) const INNER_LEFT_OPAQUE: u8 = 2;
    pub(crate) const INNER_RIGHT_OPAQUE: u8 = 3;
    pub(crate) const LEAF: u8 = 4;
    pub(crate) const STUB: u8 = 5;
    pub(crate) const NAMESPACE: u8 = 6;
    pub(crate) const EMPTY: u8 = 7;
}

/// A pruned tree, well formed but not yet verified: it proves nothing until [`Proof::verify`] has found the root.
#[derive(Clone, Debug)]
pub struct Proof {
    pub(crate) bytes: Bytes,
    /// Parents before children, left before right, but an opaque right child right behind its parent.
    pub(crate) nodes: Vec<Node>,
}

/// How much a verifier is willing to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofLimits {
    /// Most bytes of an encoded proof.
    pub bytes: usize,
    /// Most nodes, opaque ones included.
    pub nodes: usize,
}

impl Default for ProofLimits {
    /// 9 MiB, which holds the longest value and its way, and 2^18 nodes.
    fn default() -> Self {
        Self { bytes: 9 << 20, nodes: 1 << 18 }
    }
}

/// A node of a pruned tree.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Zero until verification computes it, but for opaque nodes.
    pub(crate) hash: Hash,
    /// What its parent says is below it; at the top, its own sum.
    pub(crate) totals: Totals,
    pub(crate) shape: Shape,
}

/// What a node shows. Numbers are places in [`Proof::nodes`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    Opaque,
    Empty,
    Inner {
        level: Level,
        crit: u16,
        left: u32,
        right: u32,
        /// The first and the last leaf shown below, of the same level.
        leaves: [u32; 2],
    },
    Namespace {
        name: Slice,
        tree: u32,
    },
    Entry {
        key: Slice,
        value_len: u32,
        /// The value of a leaf, the value's hash in a stub.
        body: Slice,
        /// Whether this is a leaf.
        shown: bool,
    },
}

/// A part of [`Proof::bytes`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    at: u32,
    len: u32,
}

impl Slice {
    pub(crate) fn len(self) -> usize {
        self.len as usize
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.at as usize..(self.at + self.len) as usize
    }
}

/// Why a proof is refused. Whoever made it has to act, except for [`ProofError::WrongRoot`], where it may be us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// Larger than the verifier's own limits.
    #[error("proof has {found} {what} or more, the limit is {limit}")]
    TooLarge {
        /// Bytes or nodes.
        what: &'static str,
        /// How many there are at least.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A format or kind of node from a later version, or none at all.
    #[error("unsupported {what} {found}: known are 0 to {known}")]
    Unsupported {
        /// Format or node.
        what: &'static str,
        /// The byte found.
        found: u8,
        /// The highest one known.
        known: u8,
    },
    /// Bytes that are no proof.
    #[error("malformed proof: {0}")]
    Malformed(#[from] DecodeError),
    /// Totals no subtree has (spec: TREE-5).
    #[error("{what}, but totals of {totals:?} are stated")]
    Totals {
        /// The rule.
        what: &'static str,
        /// What the parent says.
        totals: Totals,
    },
    /// Sums that do not add up (spec: TREE-5). Where the root turns out to be certified, the chain itself is broken:
    /// halt and report.
    #[error("sums do not add up: {stated:?} stated by the parent, {found:?} found below")]
    Sums {
        /// What the parent says.
        stated: Totals,
        /// What the node says.
        found: Totals,
    },
    /// A critical bit no tree has at this place (spec: TREE-5, TREE-12). This bounds depth.
    #[error("critical bit {found} must be {what} {limit}")]
    CriticalBit {
        /// The rule.
        what: &'static str,
        /// The bit.
        found: u16,
        /// What it was compared with.
        limit: u16,
    },
    /// The proof is of another state: another height, another store, or forged.
    #[error("proof leads to root {found}, not to {expected}")]
    WrongRoot {
        /// The root the verifier holds.
        expected: Root,
        /// The root the proof leads to.
        found: Root,
    },
    /// Keys that do not stand where the tree would have put them (spec: TREE-8), under the right root: whoever made
    /// that root broke the rules.
    #[error("key {} is at a place that is not its own: {what}", key.escape_ascii())]
    Misplaced {
        /// The rule.
        what: &'static str,
        /// The key, or the name.
        key: Vec<u8>,
    },
    /// More than the questions need, perhaps the answer to others (spec: TREE-7).
    #[error("proof shows {what}{}, which no question needs", key.escape_ascii())]
    Bloated {
        /// What kind of surplus.
        what: &'static str,
        /// The key, or the name.
        key: Vec<u8>,
    },
}

/// Every check a verifier makes, so that tests can leave out one at a time and show what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    BytesLimit,
    NodesLimit,
    Format,
    KeyLength,
    NameText,
    ValueLength,
    Trailing,
    CountIsPositive,
    BytesCoverCount,
    SumsDoNotOverflow,
    SumsAddUp,
    CritInRange,
    CritGrows,
    DepthWithinKey,
    Root,
    KeyTakesTheTurns,
    NeighboursPartAtCrit,
    NothingUnasked,
}

/// Which checks are made. Outside tests there is only [`Every`].
pub(crate) trait Checks: Copy {
    fn makes(self, check: Check) -> bool;
}

/// All of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Every;

impl Checks for Every {
    #[inline(always)]
    fn makes(self, _: Check) -> bool {
        true
    }
}

impl Proof {
    /// Reads a proof within the default limits.
    ///
    /// # Errors
    /// [`ProofError::TooLarge`], [`ProofError::Unsupported`], [`ProofError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProofError> {
        Self::decode_within(bytes, &ProofLimits::default())
    }

    /// Reads a proof that may be larger, or must be smaller, than the default limits.
    ///
    /// # Errors
    /// As [`Proof::decode`].
    pub fn decode_within(bytes: &[u8], limits: &ProofLimits) -> Result<Self, ProofError> {
        read(bytes, limits, Every, Vec::new())
    }

    /// The one encoding of this proof.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// The encoding, without a copy.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn slice(&self, slice: Slice) -> &[u8] {
        &self.bytes[slice.range()]
    }

    pub(crate) fn shared(&self, slice: Slice) -> Bytes {
        self.bytes.slice(slice.range())
    }

    /// The key of an entry or the name of a namespace; nothing for other nodes.
    pub(crate) fn key_of(&self, node: u32) -> &[u8] {
        match self.nodes[node as usize].shape {
            Shape::Entry { key, .. } => self.slice(key),
            Shape::Namespace { name, .. } => self.slice(name),
            Shape::Opaque | Shape::Empty | Shape::Inner { .. } => &[],
        }
    }
}

/// A node still to be read: where its number goes, and what its parent says of it.
struct Pending {
    parent: u32,
    side: Side,
    level: Level,
    totals: Option<Totals>,
}

#[derive(Clone, Copy)]
enum Side {
    Top,
    Left,
    Right,
    Tree,
}

// spec: TREE-7, TREE-8: size caps first, then decoding, which hashes nothing.
pub(crate) fn read(
    bytes: &[u8],
    limits: &ProofLimits,
    checks: impl Checks,
    room: Vec<Node>,
) -> Result<Proof, ProofError> {
    // Places in the bytes are kept in 32 bits whatever the limits say.
    let limit = limits.bytes.min(u32::MAX as usize);
    if bytes.len() > limit && checks.makes(Check::BytesLimit) {
        return Err(ProofError::TooLarge { what: "bytes", found: bytes.len() as u64, limit: limit as u64 });
    }
    let mut input = Input { reader: Reader::new(bytes), len: bytes.len(), checks };
    let format = input.reader.byte()?;
    if format != FORMAT && checks.makes(Check::Format) {
        return Err(ProofError::Unsupported { what: "proof format", found: format, known: FORMAT });
    }
    // Enough for the way of one key in most states. What has been read, not what is claimed, makes it grow.
    let mut nodes = room;
    nodes.clear();
    nodes.reserve((bytes.len() / 20).min(256) + 2);
    let mut pending = Vec::with_capacity(8);
    let mut next = Some(Pending { parent: 0, side: Side::Top, level: Level::Namespaces, totals: None });
    while let Some(Pending { parent, side, level, totals }) = next {
        let at = number(nodes.len());
        match (side, nodes.get_mut(parent as usize).map(|node| &mut node.shape)) {
            (Side::Left, Some(Shape::Inner { left, .. })) => *left = at,
            (Side::Right, Some(Shape::Inner { right, .. })) => *right = at,
            (Side::Tree, Some(Shape::Namespace { tree, .. })) => *tree = at,
            _ => {}
        }
        let node_tag = input.reader.byte()?;
        next = None;
        match (node_tag, level, side) {
            (tag::OPAQUE, _, Side::Top | Side::Tree) => {
                nodes.push(Node { hash: input.hash()?, totals: totals.unwrap_or_default(), shape: Shape::Opaque })
            }
            (tag::EMPTY, Level::Namespaces, Side::Top) => {
                nodes.push(Node { hash: Hash::ZERO, totals: Totals::default(), shape: Shape::Empty });
            }
            (tag::INNER | tag::INNER_LEFT_OPAQUE | tag::INNER_RIGHT_OPAQUE, ..) => {
                let crit = u16::try_from(input.reader.varint()?)
                    .map_err(|_| DecodeError::Invalid { what: "critical bit above 16 bits" })?;
                let [left, right] = [input.totals()?, input.totals()?];
                let totals = totals.unwrap_or(Totals {
                    count: left.count.saturating_add(right.count),
                    bytes: left.bytes.saturating_add(right.bytes),
                });
                // Nothing is in the tree before its children are read; every place is written once they are.
                let shape = Shape::Inner { level, crit, left: at + 1, right: at + 1, leaves: [0; 2] };
                nodes.push(Node { hash: Hash::ZERO, totals, shape });
                if node_tag != tag::INNER {
                    let totals = if node_tag == tag::INNER_LEFT_OPAQUE { left } else { right };
                    nodes.push(Node { hash: input.hash()?, totals, shape: Shape::Opaque });
                }
                if node_tag == tag::INNER {
                    pending.push(Pending { parent: at, side: Side::Right, level, totals: Some(right) });
                }
                next = Some(match node_tag {
                    tag::INNER_LEFT_OPAQUE => Pending { parent: at, side: Side::Right, level, totals: Some(right) },
                    _ => Pending { parent: at, side: Side::Left, level, totals: Some(left) },
                });
            }
            (tag::NAMESPACE, Level::Namespaces, _) => {
                let name = input.name()?;
                let own = input.totals()?;
                let shape = Shape::Namespace { name, tree: at + 1 };
                nodes.push(Node { hash: Hash::ZERO, totals: totals.unwrap_or(own), shape });
                next = Some(Pending { parent: at, side: Side::Tree, level: Level::Entries, totals: Some(own) });
            }
            (tag::LEAF | tag::STUB, Level::Entries, _) => {
                let key = input.key()?;
                let value_len = input.value_len()?;
                let shown = node_tag == tag::LEAF;
                let body = input.slice(if shown { value_len as usize } else { 32 })?;
                let totals = totals.unwrap_or_default();
                nodes.push(Node { hash: Hash::ZERO, totals, shape: Shape::Entry { key, value_len, body, shown } });
            }
            (tag::OPAQUE..=tag::EMPTY, ..) => {
                return Err(DecodeError::Invalid { what: "node at a place its kind cannot have" }.into());
            }
            (found, ..) => return Err(ProofError::Unsupported { what: "proof node", found, known: tag::EMPTY }),
        }
        if nodes.len() > limits.nodes && checks.makes(Check::NodesLimit) {
            return Err(ProofError::TooLarge { what: "nodes", found: nodes.len() as u64, limit: limits.nodes as u64 });
        }
        if next.is_none() {
            next = pending.pop();
        }
    }
    if checks.makes(Check::Trailing) {
        input.reader.finish()?;
    }
    Ok(Proof { bytes: Bytes::copy_from_slice(bytes), nodes })
}

/// A place among the nodes. There are fewer than bytes, and those fit.
fn number(at: usize) -> u32 {
    u32::try_from(at).expect("a proof has fewer than 2^32 bytes and two nodes to a byte at most")
}

/// A reader that knows where it is, with the limits of TREE-1.
struct Input<'a, C> {
    reader: Reader<'a>,
    len: usize,
    checks: C,
}

impl<C: Checks> Input<'_, C> {
    fn hash(&mut self) -> Result<Hash, DecodeError> {
        Ok(Hash(self.reader.array()?))
    }

    fn totals(&mut self) -> Result<Totals, DecodeError> {
        Ok(Totals { count: self.reader.varint()?, bytes: self.reader.varint()? })
    }

    fn slice(&mut self, len: usize) -> Result<Slice, DecodeError> {
        let at = self.len - self.reader.left();
        self.reader.take(len)?;
        Ok(Slice { at: number(at), len: number(len) })
    }

    fn length(&mut self, what: &'static str, limit: usize, check: Check) -> Result<usize, DecodeError> {
        let found = self.reader.varint()?;
        if self.checks.makes(check) {
            if found > limit as u64 {
                return Err(DecodeError::TooLarge { what, found, limit: limit as u64 });
            }
            if found == 0 {
                return Err(DecodeError::Invalid { what });
            }
        }
        usize::try_from(found).map_err(|_| DecodeError::Invalid { what })
    }

    // spec: TREE-1
    fn key(&mut self) -> Result<Slice, DecodeError> {
        let len = self.length("key length", KEY_LEN_MAX, Check::KeyLength)?;
        self.slice(len)
    }

    fn value_len(&mut self) -> Result<u32, DecodeError> {
        let len = self.length("value length", VALUE_LEN_MAX, Check::ValueLength)?;
        u32::try_from(len).map_err(|_| DecodeError::Invalid { what: "value length" })
    }

    fn name(&mut self) -> Result<Slice, DecodeError> {
        let len = self.length("name length", NAMESPACE_LEN_MAX, Check::NameText)?;
        let at = self.reader.clone();
        let name = self.slice(len)?;
        let text = std::str::from_utf8(at.clone().take(len)?);
        let legal = text.is_ok_and(|text| Namespace::new(text).is_ok());
        if !legal && self.checks.makes(Check::NameText) {
            return Err(DecodeError::Invalid { what: "namespace" });
        }
        Ok(name)
    }
}

/// Writes a proof node by node, in the order of the format. The prover sees to it that the order is right.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Self {
        // Enough for the way of one key in most states, and a short value.
        let mut out = Vec::with_capacity(2048);
        out.push(FORMAT);
        Self(out)
    }

    pub(crate) fn empty(&mut self) {
        self.0.push(tag::EMPTY);
    }

    pub(crate) fn opaque(&mut self, hash: &Hash) {
        self.0.push(tag::OPAQUE);
        self.0.extend_from_slice(&hash.0);
    }

    /// The children that are not opaque must follow.
    pub(crate) fn inner(&mut self, crit: u16, totals: [Totals; 2], opaque: Opaque<'_>) {
        let mut node = Packed::new(match opaque {
            Opaque::Neither => tag::INNER,
            Opaque::Left(_) => tag::INNER_LEFT_OPAQUE,
            Opaque::Right(_) => tag::INNER_RIGHT_OPAQUE,
        });
        node.varint(u64::from(crit));
        for totals in totals {
            node.varint(totals.count);
            node.varint(totals.bytes);
        }
        if let Opaque::Left(hash) | Opaque::Right(hash) = opaque {
            node.hash(hash);
        }
        self.0.extend_from_slice(node.as_slice());
    }

    /// An inner node of which one child is shown, which must follow: the right one if `side`.
    pub(crate) fn one_sided(&mut self, crit: u16, totals: [Totals; 2], side: bool, hidden: &Hash) {
        self.inner(crit, totals, if side { Opaque::Left(hidden) } else { Opaque::Right(hidden) });
    }

    /// The top of its entries must follow.
    pub(crate) fn namespace(&mut self, name: &[u8], totals: Totals) {
        self.0.push(tag::NAMESPACE);
        self.bytes(name);
        self.totals(totals);
    }

    pub(crate) fn leaf(&mut self, key: &[u8], value: &[u8]) {
        self.0.push(tag::LEAF);
        self.bytes(key);
        self.bytes(value);
    }

    pub(crate) fn stub(&mut self, key: &[u8], value_len: u32, value_hash: &Hash) {
        self.0.push(tag::STUB);
        self.bytes(key);
        put_varint(&mut self.0, u64::from(value_len));
        self.0.extend_from_slice(&value_hash.0);
    }

    fn totals(&mut self, totals: Totals) {
        put_varint(&mut self.0, totals.count);
        put_varint(&mut self.0, totals.bytes);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        put_varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// An inner node while it is written: proofs are made of them, and byte by byte into a vector they cost more than anything
/// else about a proof.
struct Packed {
    bytes: [u8; Self::LEN_MAX],
    len: usize,
}

impl Packed {
    /// A kind, a critical bit, four totals and a hash, and what a word written at their end may reach over it.
    const LEN_MAX: usize = 1 + 3 + 4 * 10 + 32 + 8;

    fn new(tag: u8) -> Self {
        let mut bytes = [0; Self::LEN_MAX];
        bytes[0] = tag;
        Self { bytes, len: 1 }
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N], len: usize) {
        self.bytes[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += len;
    }

    /// A minimal LEB128 integer (spec: CODEC-3).
    fn varint(&mut self, value: u64) {
        let bits = 64 - value.leading_zeros();
        if bits > 56 {
            let mut bytes = Vec::with_capacity(10);
            put_varint(&mut bytes, value);
            return bytes.into_iter().for_each(|byte| self.put([byte], 1));
        }
        let len = bits.div_ceil(7).max(1);
        // Groups of seven bits are moved apart: fours of them, pairs, single ones.
        let fours = value & 0x0fff_ffff | (value & 0x00ff_ffff_f000_0000) << 4;
        let pairs = fours & 0x0000_3fff_0000_3fff | (fours & 0x0fff_c000_0fff_c000) << 2;
        let groups = pairs & 0x007f_007f_007f_007f | (pairs & 0x3f80_3f80_3f80_3f80) << 1;
        let more = 0x8080_8080_8080_8080 & ((1 << (8 * (len - 1))) - 1);
        self.put((groups | more).to_le_bytes(), len as usize);
    }

    fn hash(&mut self, hash: &Hash) {
        self.put(hash.0, hash.0.len());
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Which child of an inner node a proof replaces by its hash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Opaque<'h> {
    Neither,
    Left(&'h Hash),
    Right(&'h Hash),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// spec: CODEC-3. However it is put together, a number is written as numbers are.
        #[test]
        fn packed_numbers_are_the_encoding(values in prop::collection::vec((any::<u64>(), 0u32..64), 0..4)) {
            let mut packed = Packed::new(tag::INNER);
            let mut plain = vec![tag::INNER];
            for value in values.into_iter().map(|(value, shift)| value >> shift) {
                packed.varint(value);
                put_varint(&mut plain, value);
            }
            prop_assert_eq!(packed.as_slice(), plain);
        }
    }
}
