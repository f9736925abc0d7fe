//! A page: a connected part of a namespace's tree with up to 32 slots, in memory.
//!
//! Its slots stand in key order. A slot is an entry, or the root of another page below. Between two neighbours stands
//! exactly one inner node, the lowest that has both below it, so the critical bits between neighbours say the whole
//! shape: the least of them is the root, and so on down on both sides. Inserting and removing a slot is inserting and
//! removing in two arrays.
//!
//! Which nodes share a page is a matter of storage only; no hash depends on it (spec: TREE-3, TREE-17). What never
//! changes when values change, the [`Shape`], is shared between the versions of a page, so a copy is two short arrays.
#![expect(clippy::cast_possible_truncation, reason = "slots and nodes are counted below 64")]

use crate::preimage::{self, Level, Preimage};
use crate::{Place, Totals, bits};
use keelstone_codec::Hash;
use std::sync::Arc;

/// Most slots of a page (spec: TREE-17).
pub(crate) const SLOTS_MAX: usize = 32;
const NODES_MAX: usize = SLOTS_MAX - 1;
/// How [`Shape::children`] writes an inner node; numbers below are slots.
const NODE: u8 = SLOTS_MAX as u8;

/// The number of a page in the arena. Stable while any version holds the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageId(pub(crate) u32);

/// What stands at the lower edge of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    /// An entry of the state; its key is in the shape.
    Entry { hash: Hash, value_hash: Hash, place: Place, value_len: u32 },
    /// The root of another page, with what it says of itself: `crit` is the critical bit of that root.
    Child { hash: Hash, totals: Totals, id: PageId, crit: u16 },
}

impl Slot {
    #[inline]
    pub(crate) fn hash(&self) -> &Hash {
        match self {
            Self::Entry { hash, .. } | Self::Child { hash, .. } => hash,
        }
    }

    /// The page below, if there is one.
    #[inline]
    pub(crate) fn below(&self) -> Option<PageId> {
        match self {
            Self::Child { id, .. } => Some(*id),
            Self::Entry { .. } => None,
        }
    }

    #[inline]
    pub(crate) fn set_hash(&mut self, new: Hash) {
        match self {
            Self::Entry { hash, .. } | Self::Child { hash, .. } => *hash = new,
        }
    }

    #[inline]
    pub(crate) fn totals(&self, key: &[u8]) -> Totals {
        match self {
            Self::Entry { value_len, .. } => Totals::entry(key.len(), *value_len),
            Self::Child { totals, .. } => *totals,
        }
    }
}

/// What an inner node says of itself to its parent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node {
    pub(crate) hash: Hash,
    pub(crate) totals: Totals,
}

/// A place inside a page: a slot, or the inner node between slot `i` and `i + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    Slot(usize),
    Node(usize),
}

impl Spot {
    #[inline]
    pub(crate) fn unpack(code: u8) -> Self {
        if code < NODE { Self::Slot(usize::from(code)) } else { Self::Node(usize::from(code - NODE)) }
    }

    /// As one number below 64.
    #[inline]
    pub(crate) fn pack(self) -> u8 {
        match self {
            Self::Slot(slot) => slot as u8,
            Self::Node(node) => NODE + node as u8,
        }
    }
}

/// The keys and critical bits of a page.
///
/// In the order in which a descent needs them: the two cache lines that lead a key to its slot, then the one that finds
/// the slot's key. A page far down is in no cache, and each line of it is a wait.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Shape {
    len: u8,
    /// The page's own root, packed.
    root: u8,
    /// Critical bit of the node between slot `i` and `i + 1`.
    crits: [u16; NODES_MAX],
    /// The two children of each node, packed.
    children: [[u8; 2]; NODES_MAX],
    /// Where the key of each slot ends in `keys`.
    ends: [u16; SLOTS_MAX],
    /// The key of an entry; of a child, the bits above its root's critical bit, which all its keys share.
    keys: Box<[u8]>,
    /// All nodes, children before parents.
    order: [u8; NODES_MAX],
}

impl Shape {
    /// A shape from the critical bits between neighbours, and for each slot its key, with the critical bit at which
    /// to cut it if the slot is a child.
    pub(crate) fn new<'a>(crits: &[u16], keys: impl Iterator<Item = (&'a [u8], Option<u16>)> + Clone) -> Self {
        assert!(crits.len() < SLOTS_MAX, "a page has at most {SLOTS_MAX} slots");
        let mut out = Self {
            len: crits.len() as u8 + 1,
            root: Spot::Slot(0).pack(),
            crits: [0; NODES_MAX],
            children: [[0; 2]; NODES_MAX],
            order: [0; NODES_MAX],
            ends: [0; SLOTS_MAX],
            keys: Box::default(),
        };
        out.crits[..crits.len()].copy_from_slice(crits);

        let mut bytes = Vec::with_capacity(keys.clone().map(|(key, _)| key.len()).sum());
        let mut count = 0;
        for (key, cut) in keys {
            match cut {
                None => bytes.extend_from_slice(key),
                Some(crit) => extend_prefix(&mut bytes, key, crit),
            }
            out.ends[count] = u16::try_from(bytes.len()).expect("32 keys of 255 bytes");
            count += 1;
        }
        assert_eq!(count, usize::from(out.len), "one key for each slot");
        out.keys = bytes.into();

        // A node is complete when a lesser critical bit follows: then everything below it has been seen.
        let mut waiting = [0u8; NODES_MAX];
        let (mut depth, mut done) = (0, 0);
        for slot in 0..count {
            let mut below = Spot::Slot(slot).pack();
            while depth > 0 {
                let node = usize::from(waiting[depth - 1]);
                if slot < crits.len() && crits[node] < crits[slot] {
                    break;
                }
                out.children[node][1] = below;
                out.order[done] = node as u8;
                below = Spot::Node(node).pack();
                done += 1;
                depth -= 1;
            }
            if slot < crits.len() {
                out.children[slot][0] = below;
                waiting[depth] = slot as u8;
                depth += 1;
            }
        }
        debug_assert_eq!(done, crits.len(), "every node was completed");
        if let Some(last) = done.checked_sub(1) {
            out.root = Spot::Node(usize::from(out.order[last])).pack();
        }
        out
    }

    /// Number of slots.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Critical bits between neighbours.
    #[inline]
    pub(crate) fn crits(&self) -> &[u16] {
        &self.crits[..self.len() - 1]
    }

    /// The nodes, children before parents.
    #[inline]
    pub(crate) fn order(&self) -> &[u8] {
        &self.order[..self.len() - 1]
    }

    /// The children of a node.
    #[inline]
    pub(crate) fn children(&self, node: usize) -> [Spot; 2] {
        self.children[node].map(Spot::unpack)
    }

    /// The same, packed.
    #[inline]
    pub(crate) fn packed_children(&self, node: usize) -> [u8; 2] {
        self.children[node]
    }

    /// The page's own root.
    #[inline]
    pub(crate) fn root(&self) -> Spot {
        Spot::unpack(self.root)
    }

    /// The critical bit of the page's root, if the root is an inner node.
    #[inline]
    pub(crate) fn root_crit(&self) -> Option<u16> {
        match self.root() {
            Spot::Node(node) => Some(self.crits[node]),
            Spot::Slot(_) => None,
        }
    }

    /// The key of an entry, or the prefix of a child.
    #[inline]
    pub(crate) fn key(&self, slot: usize) -> &[u8] {
        let start = if slot == 0 { 0 } else { usize::from(self.ends[slot - 1]) };
        &self.keys[start..usize::from(self.ends[slot])]
    }

    /// The slot a key's bits lead to. Only critical bits are looked at: the key may differ from the slot's elsewhere.
    #[inline]
    pub(crate) fn route(&self, key: &[u8]) -> usize {
        let mut at = self.root();
        loop {
            match at {
                Spot::Slot(slot) => return slot,
                Spot::Node(node) => {
                    let side = usize::from(bits::bit(key, self.crits[node]));
                    at = Spot::unpack(self.children[node][side]);
                }
            }
        }
    }

    /// Looks at what leads a key to its slot and to the slot's key, so that it is near when it is needed.
    #[inline]
    pub(crate) fn touch(&self) -> u8 {
        self.len ^ self.children[NODES_MAX / 2][0] ^ self.ends[SLOTS_MAX / 2] as u8 ^ self.order[NODES_MAX - 1]
    }

    /// The slots of the largest subtree that has `slot` in it and no critical bit at or above `crit`.
    pub(crate) fn span(&self, slot: usize, crit: u16) -> (usize, usize) {
        let crits = self.crits();
        let (mut first, mut last) = (slot, slot);
        while first > 0 && crits[first - 1] > crit {
            first -= 1;
        }
        while last < crits.len() && crits[last] > crit {
            last += 1;
        }
        (first, last)
    }

    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.keys.len() + 16
    }
}

/// Appends the bits of `key` above `crit`, as whole bytes with zeros behind.
pub(crate) fn extend_prefix(out: &mut Vec<u8>, key: &[u8], crit: u16) {
    let (whole, within) = (usize::from(crit / 9), u32::from(crit % 9));
    out.extend_from_slice(&key[..whole]);
    if within > 1 {
        out.push(key[whole] & !(0xff >> (within - 1)));
    } else if within == 1 {
        out.push(0);
    }
}

/// A page in memory.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) shape: Arc<Shape>,
    body: Body,
    memory: u32,
}

/// The slots and nodes of a page, with room for a round number of slots so that it can be used again.
#[derive(Debug)]
struct Body {
    slots: Box<[Slot]>,
    nodes: Box<[Node]>,
}

impl Body {
    fn memory(&self) -> usize {
        size_of_val(&*self.slots) + size_of_val(&*self.nodes)
    }
}

/// Room for this many slots, or twice, thrice, four times as many.
const ROOM: usize = SLOTS_MAX / 4;
/// Bodies of pages that are gone, by room. Copies of pages are made at the rate at which old ones go, so most need no
/// allocation.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    bodies: [Vec<Body>; 4],
}
/// Most bodies kept of each room: about 20 MiB in all, for each thread that makes pages.
const SPARE_MAX: usize = 2048;

impl Spare {
    /// Takes the body of a page that is gone.
    pub(crate) fn put(&mut self, page: Page) {
        let kept = &mut self.bodies[page.body.slots.len() / ROOM - 1];
        if kept.len() < SPARE_MAX {
            kept.push(page.body);
        }
    }

    /// Number of bodies.
    pub(crate) fn len(&self) -> usize {
        self.bodies.iter().map(Vec::len).sum()
    }

    /// Adds what another has.
    pub(crate) fn join(&mut self, other: Self) {
        for (kept, more) in self.bodies.iter_mut().zip(other.bodies) {
            if kept.is_empty() {
                *kept = more;
            } else {
                let room = SPARE_MAX.saturating_sub(kept.len());
                kept.extend(more.into_iter().take(room));
            }
        }
    }

    /// A body for so many slots, of any contents.
    fn take(&mut self, slots: usize) -> Body {
        let rooms = slots.div_ceil(ROOM);
        self.bodies[rooms - 1].pop().unwrap_or_else(|| Body {
            slots: vec![NO_SLOT; rooms * ROOM].into(),
            nodes: vec![Node::default(); rooms * ROOM - 1].into(),
        })
    }
}

const NO_SLOT: Slot = Slot::Entry { hash: Hash::ZERO, value_hash: Hash::ZERO, place: Place(0), value_len: 0 };

impl Page {
    /// A page of given slots and nodes.
    pub(crate) fn new(
        shape: Arc<Shape>,
        slots: impl Iterator<Item = Slot>,
        nodes: impl Iterator<Item = Node>,
        spare: &mut Spare,
    ) -> Self {
        let body = spare.take(shape.len());
        let memory = size_of::<Self>() + body.memory() + shape.memory() + 64;
        let mut page = Self { shape, body, memory: u32::try_from(memory).expect("a page has a few thousand bytes") };
        page.slots_mut().iter_mut().zip(slots).for_each(|(to, from)| *to = from);
        page.nodes_mut().iter_mut().zip(nodes).for_each(|(to, from)| *to = from);
        page
    }

    /// A copy to be changed.
    pub(crate) fn copy(&self, spare: &mut Spare) -> Self {
        let mut page = Self { shape: self.shape.clone(), body: spare.take(self.shape.len()), memory: self.memory };
        page.slots_mut().copy_from_slice(self.slots());
        page.nodes_mut().copy_from_slice(self.nodes());
        page
    }

    #[inline]
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.body.slots[..self.shape.len()]
    }

    #[inline]
    pub(crate) fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.body.slots[..self.shape.len()]
    }

    /// The inner nodes; node `i` stands between slot `i` and `i + 1`.
    #[inline]
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.body.nodes[..self.shape.len() - 1]
    }

    #[inline]
    pub(crate) fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.body.nodes[..self.shape.len() - 1]
    }

    /// Hash and totals of a spot.
    #[inline]
    pub(crate) fn at(&self, spot: Spot) -> Node {
        match spot {
            Spot::Slot(slot) => Node { hash: *self.body.slots[slot].hash(), totals: self.totals(slot) },
            Spot::Node(node) => self.body.nodes[node],
        }
    }

    /// Hash and totals of the page's root.
    #[inline]
    pub(crate) fn top(&self) -> Node {
        self.at(self.shape.root())
    }

    #[inline]
    pub(crate) fn totals(&self, slot: usize) -> Totals {
        self.body.slots[slot].totals(self.shape.key(slot))
    }

    #[inline]
    pub(crate) fn totals_at(&self, spot: Spot) -> Totals {
        match spot {
            Spot::Slot(slot) => self.totals(slot),
            Spot::Node(node) => self.body.nodes[node].totals,
        }
    }

    /// The preimage of an inner node, from what its children say.
    #[inline]
    pub(crate) fn preimage(&self, node: usize) -> Preimage {
        let [left, right] = self.shape.children(node).map(|spot| self.at(spot));
        let crit = self.shape.crits[node];
        preimage::inner(Level::Entries, crit, [left.totals, right.totals], [&left.hash, &right.hash])
    }

    /// Bytes of memory held, about; a shape that several pages share counts for each.
    pub(crate) fn memory(&self) -> usize {
        self.memory as usize
    }

    /// Ids of the pages below.
    pub(crate) fn children(&self) -> impl Iterator<Item = PageId> {
        self.slots().iter().filter_map(Slot::below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec: TREE-3. The shape made from critical bits routes every key to its own slot.
    #[test]
    fn critical_bits_say_the_whole_shape() {
        let mut keys: Vec<Vec<u8>> =
            (0u32..32).map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..4].to_vec()).collect();
        keys[3] = vec![0];
        keys[4] = vec![0, 0];
        keys[5] = vec![0, 0, 0, 1];
        keys.sort();
        for count in 1..=keys.len() {
            let keys = &keys[..count];
            let crits: Vec<u16> = keys.windows(2).map(|pair| bits::crit(&pair[0], &pair[1]).unwrap()).collect();
            let shape = Shape::new(&crits, keys.iter().map(|key| (key.as_slice(), None)));
            for (slot, key) in keys.iter().enumerate() {
                assert_eq!((shape.route(key), shape.key(slot)), (slot, key.as_slice()));
            }
            for (done, node) in shape.order().iter().map(|node| usize::from(*node)).enumerate() {
                for child in shape.children(node) {
                    if let Spot::Node(child) = child {
                        assert!(crits[child] > crits[node], "critical bits grow on the way down");
                        assert!(shape.order()[..done].contains(&(child as u8)), "children come first");
                    }
                }
            }
        }
    }

    #[test]
    fn a_prefix_keeps_the_bits_above_its_critical_bit() {
        for crit in 0..27 {
            let key = [0xa5, 0xff, 0x3c];
            let mut prefix = Vec::new();
            extend_prefix(&mut prefix, &key, crit);
            assert!(bits::crit(&prefix, &key).is_none_or(|found| found >= crit), "at {crit}");
            assert_eq!(prefix.len(), usize::from(crit).div_ceil(9));
        }
    }
}
