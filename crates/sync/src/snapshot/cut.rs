//! How a tree is cut: which of its nodes are opened, which are units, and which units share a chunk.
//!
//! The cut follows from hashes and totals alone, so a creator finds it from a version and a receiver finds the same from
//! proven pages. Both levels of the state are one tree here: below a namespace hangs the root of its entries.
//!
//! Nodes are kept in the order in which they are opened, breadth first: the children to be opened of those before a node
//! say where it stands, and nothing else has to be kept of that.
//!
//! Rules: `spec/snapshot.md`, SNAP-1, SNAP-2, SNAP-5.

use super::metadata::CHUNK_WEIGHT_MAX;
use keelstone_codec::{Hash, KEY_LEN_MAX, Namespace, Tag, TaggedHasher, VALUE_LEN_MAX};
use keelstone_tree::{Level, Totals};
use std::fmt;
use std::ops::Range;

/// Most nodes of a skeleton, and so about the most units of a snapshot (spec: SNAP-5). Both sides hold some 130 bytes for
/// each.
pub const NODES_MAX: usize = 1 << 21;

/// Most chunks of a snapshot: CometBFT takes no more (spec: SNAP-2).
pub const CHUNKS_MAX: u32 = 100_000;

/// A group is a subtree of at most so many times W (spec: SNAP-2).
const GROUP_PARCELS: u64 = 64;

/// A parcel is at most so many levels deep above its units (spec: SNAP-1).
const PARCEL_DEPTH_MAX: u8 = 8;

/// Most bytes of an opened node in a page; a page has at most W bytes (spec: SNAP-5).
const NODE_BYTES_MAX: u32 = 96;

/// A state that has more of something than a snapshot can hold. Choose a greater W, or live without snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot would have {found} {what}, the limit is {limit}")]
pub struct TooLarge {
    /// Nodes of the skeleton, or chunks.
    pub what: &'static str,
    /// How many.
    pub found: usize,
    /// The limit.
    pub limit: usize,
}

/// What a parent says of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) hash: Hash,
    pub(super) totals: Totals,
}

/// An opened node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Keys part at a critical bit.
    Inner { crit: u16, children: [Child; 2] },
    /// A namespace, by its name, and the root of its entries.
    Namespace { name: Namespace, tree: Child },
}

impl Shape {
    pub(super) fn children(&self) -> &[Child] {
        match self {
            Self::Inner { children, .. } => children,
            Self::Namespace { tree, .. } => std::slice::from_ref(tree),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) shape: Shape,
    /// Of the node itself; the child of a namespace is an entry or an inner node of entries.
    pub(super) level: Level,
    /// What it is a child of; none for the top.
    pub(super) parent: Option<Edge>,
    /// The namespace it is in, or is: the number of that node.
    space: Option<u32>,
    /// How many levels of its parcel there are down to it, itself counted; zero above the parcels.
    depth: u8,
}

impl Node {
    pub(super) fn level_below(&self) -> Level {
        match self.shape {
            Shape::Inner { .. } => self.level,
            Shape::Namespace { .. } => Level::Entries,
        }
    }
}

/// A child, by its parent and its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) node: u32,
    pub(super) side: u8,
}

/// Whether a subtree is a single entry.
fn is_entry(level: Level, totals: Totals) -> bool {
    matches!(level, Level::Entries) && totals.count == 1
}

/// The weight of a subtree whose parent says this of it (spec: SNAP-1).
pub(super) fn weight(level: Level, totals: Totals) -> u64 {
    let each = match level {
        Level::Entries => 16,
        // Any of its entries may be the only one of a namespace, and then brings its name along.
        Level::Namespaces => 48,
    };
    totals.bytes.saturating_add(totals.count.saturating_mul(each))
}

/// What a unit weighs at most: U, which follows from W (spec: SNAP-1).
fn unit_weight_max(chunk_weight_max: u32) -> u32 {
    (chunk_weight_max / 32).max(64 << 10).min(chunk_weight_max / 8)
}

/// Most bytes of a chunk: W, or the one entry that is larger (spec: SNAP-1). Never more than the largest W allows.
pub(super) fn chunk_bytes_max(chunk_weight_max: u32) -> u32 {
    let entry = u32::try_from(VALUE_LEN_MAX + KEY_LEN_MAX + 16).expect("a little above 8 MiB");
    chunk_weight_max.clamp(entry, CHUNK_WEIGHT_MAX)
}

/// The opened nodes of a version, as far as they are known.
#[derive(Clone)]
pub(super) struct Cut {
    chunk_weight_max: u32,
    /// Of the whole state.
    pub(super) totals: Totals,
    nodes: Vec<Node>,
    /// The children before it are opened or units.
    next: Edge,
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cut({} nodes above {:?})", self.nodes.len(), self.totals)
    }
}

impl Cut {
    pub(super) fn new(chunk_weight_max: u32, totals: Totals) -> Self {
        Self { chunk_weight_max, totals, nodes: Vec::new(), next: Edge { node: 0, side: 0 } }
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn chunk_weight_max(&self) -> u32 {
        self.chunk_weight_max
    }

    /// How many nodes a page has, but for the last (spec: SNAP-5).
    pub(super) fn page_nodes(&self) -> usize {
        (self.chunk_weight_max / NODE_BYTES_MAX).max(1) as usize
    }

    /// How many pages the nodes fill. A state without entries has one too.
    pub(super) fn pages(&self) -> usize {
        self.nodes.len().div_ceil(self.page_nodes()).max(1)
    }

    /// The nodes of a page.
    pub(super) fn page(&self, index: usize) -> Range<usize> {
        let first = index * self.page_nodes();
        first..self.nodes.len().min(first + self.page_nodes())
    }

    /// Whether a child of an opened node is a parcel, or in one.
    fn is_in_parcel(&self, level: Level, totals: Totals) -> bool {
        is_entry(level, totals) || weight(level, totals) <= u64::from(self.chunk_weight_max)
    }

    /// Whether a child of an opened node is opened. If not, it is a unit (spec: SNAP-1).
    pub(super) fn opens(&self, node: &Node, totals: Totals) -> bool {
        let level = node.level_below();
        let is_unit = || {
            let is_light = weight(level, totals) <= u64::from(unit_weight_max(self.chunk_weight_max));
            is_light || is_entry(level, totals) || node.depth == PARCEL_DEPTH_MAX
        };
        !(self.is_in_parcel(level, totals) && is_unit())
    }

    /// The child that is to be opened next, none when all are: then every other child is a unit.
    pub(super) fn next(&self) -> Option<Edge> {
        let mut at = self.next;
        while let Some(node) = self.nodes.get(at.node as usize) {
            match node.shape.children().get(usize::from(at.side)) {
                Some(child) if self.opens(node, child.totals) => return Some(at),
                Some(_) => at.side += 1,
                None => at = Edge { node: at.node + 1, side: 0 },
            }
        }
        None
    }

    pub(super) fn child(&self, edge: Edge) -> (Level, Child) {
        let parent = &self.nodes[edge.node as usize];
        (parent.level_below(), parent.shape.children()[usize::from(edge.side)])
    }

    /// Adds the node that stands at `parent`, which is what [`Cut::next`] said; none for the top.
    pub(super) fn push(&mut self, parent: Option<Edge>, level: Level, shape: Shape) -> Result<(), TooLarge> {
        if self.nodes.len() == NODES_MAX {
            return Err(TooLarge { what: "nodes in its skeleton", found: NODES_MAX + 1, limit: NODES_MAX });
        }
        if let Some(Edge { node, side }) = parent {
            self.next = Edge { node, side: side + 1 };
        }
        let space = match (&shape, parent) {
            (Shape::Namespace { .. }, _) => Some(u32::try_from(self.nodes.len()).expect("nodes are limited")),
            (Shape::Inner { .. }, parent) => parent.and_then(|edge| self.nodes[edge.node as usize].space),
        };
        let depth = parent.map_or(0, |edge| {
            let (level, child) = self.child(edge);
            match self.is_in_parcel(level, child.totals) {
                true => self.nodes[edge.node as usize].depth + 1,
                false => 0,
            }
        });
        self.nodes.push(Node { shape, level, parent, space, depth });
        Ok(())
    }

    /// Takes back all nodes from `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        if let Some(first) = self.nodes.get(len) {
            self.next = first.parent.unwrap_or(Edge { node: 0, side: 0 });
        }
        self.nodes.truncate(len);
    }

    /// Packs the units into chunks. All nodes have to be there.
    pub(super) fn pack(&self) -> Result<Packed, TooLarge> {
        debug_assert!(self.next().is_none(), "the skeleton is whole");
        // The opened children, in order, are the nodes from the second on.
        let mut opened = 0u32;
        let mut below = |cut: &Self, node: &Node| -> [Option<u32>; 2] {
            let mut out = [None; 2];
            for (child, below) in node.shape.children().iter().zip(&mut out) {
                if cut.opens(node, child.totals) {
                    opened += 1;
                    *below = Some(opened);
                }
            }
            out
        };
        let below: Vec<[Option<u32>; 2]> = self.nodes.iter().map(|node| below(self, node)).collect();

        let mut packed = Packed { units: Vec::new(), chunks: Vec::new() };
        let mut open: Option<(Option<u32>, u64)> = None;
        let mut groups = 0;
        // Down the left side first: units come in the order of their keys.
        let mut stack: Vec<(Edge, Option<u32>)> = Vec::new();
        let push = |stack: &mut Vec<_>, node: u32, group| {
            let sides: &[u8] = if self.nodes[node as usize].shape.children().len() == 2 { &[1, 0] } else { &[0] };
            stack.extend(sides.iter().map(|side| (Edge { node, side: *side }, group)));
        };
        let group_weight_max = GROUP_PARCELS * u64::from(self.chunk_weight_max);
        if let Some(top) = self.nodes.first() {
            let group = (weight(top.level, self.totals) <= group_weight_max).then_some(groups);
            push(&mut stack, 0, group);
        }
        while let Some((edge, group)) = stack.pop() {
            let (level, child) = self.child(edge);
            let weight = weight(level, child.totals);
            let opened = below[edge.node as usize][usize::from(edge.side)];
            if !self.is_in_parcel(level, child.totals) {
                let group = group.or_else(|| {
                    groups += 1;
                    (weight <= group_weight_max).then_some(groups)
                });
                push(&mut stack, opened.expect("what is above the parcels is opened"), group);
                continue;
            }
            // spec: SNAP-2. Parcels that hang beside groups are in none, and those without one between them share chunks:
            // else a spine with something heavy at its end would make a chunk of each tooth.
            if self.nodes[edge.node as usize].depth == 0 {
                match &mut open {
                    Some((last, sum))
                        if *last == group && sum.saturating_add(weight) <= u64::from(self.chunk_weight_max) =>
                    {
                        *sum += weight
                    }
                    _ => {
                        packed.chunks.push(u32::try_from(packed.units.len()).expect("units are limited as nodes are"));
                        open = Some((group, weight));
                    }
                }
            }
            match opened {
                Some(node) => push(&mut stack, node, group),
                None => packed.units.push(edge),
            }
        }
        let (chunks, limit) = (self.pages() + packed.chunks.len(), CHUNKS_MAX as usize);
        if chunks > limit {
            return Err(TooLarge { what: "chunks", found: chunks, limit });
        }
        Ok(packed)
    }

    /// The sides taken from the top down to a child.
    pub(super) fn path(&self, edge: Edge) -> Vec<u8> {
        let mut path = vec![edge.side];
        let mut at = edge.node;
        while let Some(parent) = self.nodes[at as usize].parent {
            path.push(parent.side);
            at = parent.node;
        }
        path.reverse();
        path
    }

    /// The namespace a unit of entries is in.
    pub(super) fn namespace(&self, edge: Edge) -> &Namespace {
        let space = self.nodes[edge.node as usize].space.expect("entries hang below a namespace");
        match &self.nodes[space as usize].shape {
            Shape::Namespace { name, .. } => name,
            Shape::Inner { .. } => unreachable!("it was noted as a namespace"),
        }
    }
}

/// The units in the order of their keys, and where each chunk of them begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) units: Vec<Edge>,
    chunks: Vec<u32>,
}

impl Packed {
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The chunk a unit is in, pages not counted, and the first unit of that chunk.
    pub(super) fn chunk_of(&self, unit: u32) -> (u32, u32) {
        let chunk = self.chunks.partition_point(|first| *first <= unit) - 1;
        (u32::try_from(chunk).expect("the number of chunks is limited"), self.chunks[chunk])
    }

    /// The units of a chunk; pages are not counted.
    pub(super) fn chunk(&self, index: usize) -> &[Edge] {
        let Range { start, end } = self.range(index);
        &self.units[start as usize..end as usize]
    }

    /// Their numbers.
    pub(super) fn range(&self, index: usize) -> Range<u32> {
        let all = u32::try_from(self.units.len()).expect("units are limited as nodes are");
        self.chunks[index]..self.chunks.get(index + 1).copied().unwrap_or(all)
    }
}

const CHUNK: Tag = Tag::new("snapshot-chunk");

/// The name of a chunk of these units: equal names, equal bytes (spec: SNAP-4).
pub(super) fn chunk_name(cut: &Cut, units: &[Edge]) -> Hash {
    let mut hasher = TaggedHasher::new(CHUNK);
    for unit in units {
        let (level, child) = cut.child(*unit);
        hasher.update(&[match level {
            Level::Entries => 0,
            Level::Namespaces => 1,
        }]);
        hasher.value(&child.hash);
    }
    hasher.finish()
}
