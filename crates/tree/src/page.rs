//! A page: a connected part of a namespace's tree with up to 32 slots, in memory.
//!
//! Its slots stand in key order. A slot is an entry, or the root of another page below. Between two neighbours stands
//! exactly one inner node, the lowest that has both below it, so the critical bits between neighbours say the whole
//! shape: the least of them is the root, and so on down on both sides. Inserting and removing a slot is inserting and
//! removing in two arrays.
//!
//! Which nodes share a page is a matter of storage only; no hash depends on it (spec: TREE-3, TREE-17). What never
//! changes when values change, the [`Shape`], is shared between the versions of a page, and so is what did not change of the
//! rest: a copy is the few slots and nodes that did.
#![expect(clippy::cast_possible_truncation, reason = "slots and nodes are counted below 64")]

use crate::preimage::{self, Level, Preimage};
use crate::{PageAt, Place, Totals, bits};
use keelstone_codec::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// A page that lies whole on the disk, and what another page, made from it, still has of it: that one can be written as what
/// is new (spec: TREE-20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    place: u64,
    len: NonZeroU32,
    /// Its slots whose keys are followed: slots of the page have them too, in the same order.
    pub(crate) followed: u32,
    /// Of those, the ones that the page has as they are there.
    pub(crate) kept: u32,
    /// The page's other slots, those that have something new.
    pub(crate) new: u32,
    /// Of those, the ones that follow no slot of the base.
    pub(crate) added: u32,
}

/// Which slot of a page a slot that comes after it follows: it has the same key, and is of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) slot: u8,
    /// As it was.
    pub(crate) same: bool,
}

impl Base {
    /// None if nothing is kept, or there is nothing to keep of.
    pub(crate) fn new(at: PageAt, [followed, kept]: [u32; 2], [new, added]: [u32; 2]) -> Option<Self> {
        let len = NonZeroU32::new(at.len)?;
        (kept != 0).then_some(Self { place: at.place, len, followed, kept, new, added })
    }

    /// A page of so many slots that lies there, as it is.
    pub(crate) fn whole(at: PageAt, slots: usize) -> Option<Self> {
        Self::new(at, [first(slots); 2], [0; 2])
    }

    pub(crate) fn at(&self) -> PageAt {
        PageAt { place: self.place, len: self.len.get() }
    }

    /// What is left of it once a set of the page's slots has something new below the same keys.
    pub(crate) fn renewed(mut self, slots: u32) -> Self {
        for slot in each(slots & !self.new) {
            self.kept &= !(1 << self.of(slot));
        }
        self.new |= slots;
        self
    }

    /// What is left of it in a page that is put together from this one: `from` says of each of its slots which one of this
    /// page it follows, if it does. They stand in the same order.
    pub(crate) fn followed(&self, from: impl Iterator<Item = Option<Origin>>) -> Option<Self> {
        let [mut followed, mut kept, mut new, mut added] = [0; 4];
        for (slot, from) in from.enumerate() {
            match from.filter(|from| self.added >> from.slot & 1 == 0) {
                Some(from) => {
                    let of = self.of(usize::from(from.slot));
                    followed |= 1 << of;
                    let same = from.same && self.new >> from.slot & 1 == 0;
                    *if same { &mut kept } else { &mut new } |= if same { 1 << of } else { 1 << slot };
                }
                None => (new, added) = (new | 1 << slot, added | 1 << slot),
            }
        }
        Self::new(self.at(), [followed, kept], [new, added])
    }

    /// Which slot of the base a slot of the page follows that was not added.
    pub(crate) fn of(&self, slot: usize) -> usize {
        let before = slot - rank(self.added, slot);
        // As long as no slot came or went, it is the same.
        if self.followed >> slot & 1 == 1 && rank(self.followed, slot) == before {
            return slot;
        }
        each(self.followed).nth(before).expect("a slot that was not added follows one")
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
#[repr(C)]
pub(crate) struct Shape {
    /// The key of an entry; of a child, the bits above its root's critical bit, which all its keys share.
    keys: Box<[u8]>,
    len: u8,
    /// The page's own root, packed.
    root: u8,
    /// Critical bit of the node between slot `i` and `i + 1`.
    crits: [u16; NODES_MAX],
    /// The two children of each node, packed.
    children: [[u8; 2]; NODES_MAX],
    /// Where the key of each slot ends in `keys`.
    ends: [u16; SLOTS_MAX],
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

    /// Bytes of all keys.
    pub(crate) fn keys_len(&self) -> usize {
        self.keys.len()
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

    /// The nodes above a set of slots.
    pub(crate) fn above(&self, slots: u32) -> u32 {
        let mut set = u64::from(slots);
        for node in self.order().iter().map(|node| usize::from(*node)) {
            let [left, right] = self.children[node];
            set |= ((set >> left | set >> right) & 1) << (NODE + node as u8);
        }
        parts(set).1
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

/// A page in memory: whole, or what it has that a whole page behind it has not.
///
/// A diff changes one entry in most of the pages it meets, and the nodes above it: a tenth of a page. The rest stays where
/// it is and is in no cache, so a new page says only what is new, until that is too much.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) shape: Arc<Shape>,
    /// All slots and nodes; or those of `own`, in order.
    body: Body,
    /// Where all others stand. It is whole and has the same shape.
    whole: Option<Arc<Page>>,
    /// What stands in the page itself, if not all does: a bit for each packed spot.
    own: u64,
    /// What it can be written beside, or was, if it was not written whole.
    pub(crate) base: Option<Base>,
    memory: u32,
    /// How often the arena has it: at its number, and behind pages that say what is new.
    standing: AtomicU32,
}

/// The slots and nodes of a page, with room for a round number of them so that it can be used again.
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

/// Slots and nodes that a body has room for: first those of pages that say what is new, then those of whole ones.
const ROOMS: [(usize, usize); 6] = [(2, 8), (4, 12), (8, 7), (16, 15), (24, 23), (SLOTS_MAX, NODES_MAX)];
/// The most that a page may have of its own before it becomes whole.
const OWN_MAX: (usize, usize) = ROOMS[1];

/// Bodies of pages that are gone, by room. Copies of pages are made at the rate at which old ones go, so most need no
/// allocation.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    bodies: [Vec<Body>; ROOMS.len()],
}
/// Most bodies kept of each room: about 20 MiB in all, for each thread that makes pages.
const SPARE_MAX: usize = 2048;

impl Spare {
    /// Takes the body of a page that is gone, and of the page behind it if nobody else needs that.
    pub(crate) fn put(&mut self, page: Page) {
        let mut next = Some(page);
        while let Some(Page { body, whole, .. }) = next {
            let room = ROOMS.iter().position(|(slots, _)| *slots == body.slots.len()).expect("bodies have round sizes");
            if self.bodies[room].len() < SPARE_MAX {
                self.bodies[room].push(body);
            }
            next = whole.and_then(Arc::into_inner);
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

    /// A body for so many slots and nodes, of any contents.
    fn take(&mut self, slots: usize, nodes: usize) -> Body {
        let fits = |room: &(usize, usize)| slots <= room.0 && nodes <= room.1;
        let room = ROOMS.iter().position(fits).expect("the last has room for any page");
        self.bodies[room].pop().unwrap_or_else(|| Body {
            slots: vec![NO_SLOT; ROOMS[room].0].into(),
            nodes: vec![Node::default(); ROOMS[room].1].into(),
        })
    }
}

const NO_SLOT: Slot = Slot::Entry { hash: Hash::ZERO, value_hash: Hash::ZERO, place: Place(0), value_len: 0 };

/// The slots and the nodes of a set of packed spots.
fn parts(spots: u64) -> (u32, u32) {
    (spots as u32, (spots >> NODE) as u32)
}

/// The set of the first slots, one at least.
pub(crate) fn first(slots: usize) -> u32 {
    u32::MAX >> (SLOTS_MAX - slots)
}

/// How many bits of a set stand before this one.
fn rank(set: u32, bit: usize) -> usize {
    (set & ((1 << bit) - 1)).count_ones() as usize
}

/// The bits of a set, from the lowest on.
pub(crate) fn each(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (set != 0).then(|| set.trailing_zeros())?;
        set &= set - 1;
        Some(bit as usize)
    })
}

impl Page {
    /// A whole page of given slots and nodes.
    pub(crate) fn new(
        shape: Arc<Shape>,
        slots: impl Iterator<Item = Slot>,
        nodes: impl Iterator<Item = Node>,
        spare: &mut Spare,
    ) -> Self {
        let mut body = spare.take(shape.len(), shape.len() - 1);
        body.slots.iter_mut().zip(slots).for_each(|(to, from)| *to = from);
        body.nodes.iter_mut().zip(nodes).for_each(|(to, from)| *to = from);
        let memory = size_of::<Self>() + body.memory() + shape.memory() + 64;
        Self {
            shape,
            body,
            whole: None,
            own: 0,
            base: None,
            memory: u32::try_from(memory).expect("a page has a few thousand bytes"),
            standing: AtomicU32::new(0),
        }
    }

    /// A copy, in which slots of the set `changed` will have other hashes and those of `moved` will not. The changed ones
    /// may be of any contents, and the nodes above them are still without totals and hashes.
    pub(crate) fn copy(self: &Arc<Self>, changed: u32, moved: u32, spare: &mut Spare) -> Self {
        let above = self.shape.above(changed);
        let own = self.own | u64::from(changed | moved) | u64::from(above) << NODE;
        let (slots, nodes) = parts(own);
        if slots.count_ones() as usize > OWN_MAX.0 || nodes.count_ones() as usize > OWN_MAX.1 {
            return self.copy_whole(spare);
        }
        let mut body = spare.take(slots.count_ones() as usize, nodes.count_ones() as usize);
        // What will be another is not looked at: it is in no cache.
        for (to, slot) in body.slots.iter_mut().zip(each(slots)) {
            *to = if changed >> slot & 1 == 0 { *self.slot(slot) } else { NO_SLOT };
        }
        for (to, node) in body.nodes.iter_mut().zip(each(nodes)) {
            *to = if above >> node & 1 == 0 { *self.node(node) } else { Node::default() };
        }
        let whole = self.whole.as_ref().unwrap_or(self);
        let memory = size_of::<Self>() + body.memory() + 16;
        let memory = u32::try_from(memory).expect("a page has a few thousand bytes");
        let (shape, whole) = (self.shape.clone(), Some(whole.clone()));
        Self { shape, body, whole, own, base: None, memory, standing: AtomicU32::new(0) }
    }

    fn copy_whole(self: &Arc<Self>, spare: &mut Spare) -> Self {
        let (len, whole) = (self.shape.len(), self.whole.as_ref().unwrap_or(self));
        let mut body = spare.take(len, len - 1);
        body.slots[..len].copy_from_slice(&whole.body.slots[..len]);
        body.nodes[..len - 1].copy_from_slice(&whole.body.nodes[..len - 1]);
        let (slots, nodes) = parts(self.own);
        each(slots).zip(&self.body.slots).for_each(|(slot, own)| body.slots[slot] = *own);
        each(nodes).zip(&self.body.nodes).for_each(|(node, own)| body.nodes[node] = *own);
        let memory = size_of::<Self>() + body.memory() + self.shape.memory() + 64;
        let memory = u32::try_from(memory).expect("a page has a few thousand bytes");
        let shape = self.shape.clone();
        Self { shape, body, whole: None, own: 0, base: None, memory, standing: AtomicU32::new(0) }
    }

    /// What stands in a slot.
    #[inline]
    pub(crate) fn slot(&self, slot: usize) -> &Slot {
        match &self.whole {
            None => &self.body.slots[slot],
            Some(whole) => match parts(self.own).0 {
                own if own >> slot & 1 == 1 => &self.body.slots[rank(own, slot)],
                _ => &whole.body.slots[slot],
            },
        }
    }

    /// The same, to be changed.
    ///
    /// # Panics
    /// If the page was not made to be changed there.
    #[inline]
    pub(crate) fn slot_mut(&mut self, slot: usize) -> &mut Slot {
        let own = parts(self.own).0;
        assert!(self.whole.is_none() || own >> slot & 1 == 1, "what changes is the page's own");
        &mut self.body.slots[if self.whole.is_none() { slot } else { rank(own, slot) }]
    }

    /// All slots in order.
    #[inline]
    pub(crate) fn slots(&self) -> impl ExactSizeIterator<Item = &Slot> {
        (0..self.shape.len()).map(|slot| self.slot(slot))
    }

    /// The inner node between slot `node` and the next.
    #[inline]
    pub(crate) fn node(&self, node: usize) -> &Node {
        match &self.whole {
            None => &self.body.nodes[node],
            Some(whole) => match parts(self.own).1 {
                own if own >> node & 1 == 1 => &self.body.nodes[rank(own, node)],
                _ => &whole.body.nodes[node],
            },
        }
    }

    /// The same, to be changed.
    ///
    /// # Panics
    /// If the page was not made to be changed there.
    #[inline]
    pub(crate) fn node_mut(&mut self, node: usize) -> &mut Node {
        let own = parts(self.own).1;
        assert!(self.whole.is_none() || own >> node & 1 == 1, "what changes is the page's own");
        &mut self.body.nodes[if self.whole.is_none() { node } else { rank(own, node) }]
    }

    /// Hash and totals of a spot.
    #[inline]
    pub(crate) fn at(&self, spot: Spot) -> Node {
        match spot {
            Spot::Slot(slot) => Node { hash: *self.slot(slot).hash(), totals: self.totals(slot) },
            Spot::Node(node) => *self.node(node),
        }
    }

    /// Hash and totals of the page's root.
    #[inline]
    pub(crate) fn top(&self) -> Node {
        self.at(self.shape.root())
    }

    #[inline]
    pub(crate) fn totals(&self, slot: usize) -> Totals {
        self.slot(slot).totals(self.shape.key(slot))
    }

    #[inline]
    pub(crate) fn totals_at(&self, spot: Spot) -> Totals {
        match spot {
            Spot::Slot(slot) => self.totals(slot),
            Spot::Node(node) => self.node(node).totals,
        }
    }

    /// The preimage of an inner node, from what its children say.
    #[inline]
    pub(crate) fn preimage(&self, node: usize) -> Preimage {
        let [left, right] = self.shape.children(node).map(|spot| self.at(spot));
        let crit = self.shape.crits[node];
        preimage::inner(Level::Entries, crit, [left.totals, right.totals], [&left.hash, &right.hash])
    }

    /// Bytes of memory of the page itself, about; a shape that several whole pages share counts for each.
    pub(crate) fn memory(&self) -> usize {
        self.memory as usize
    }

    /// The same, with the page behind it.
    pub(crate) fn held(&self) -> usize {
        self.memory() + self.whole.as_ref().map_or(0, |whole| whole.memory())
    }

    /// Notes that the arena has it. Returns the bytes that it has in memory since and had not before.
    pub(crate) fn enter(&self) -> usize {
        let first = |page: &Self| page.standing.fetch_add(1, Ordering::Relaxed) == 0;
        let pages = [Some(self), self.whole.as_deref()].into_iter().flatten();
        pages.filter(|page| first(page)).map(Self::memory).sum()
    }

    /// Undoes one [`Page::enter`]. Returns the bytes that the arena no longer has.
    pub(crate) fn leave(&self) -> usize {
        let last = |page: &Self| page.standing.fetch_sub(1, Ordering::Relaxed) == 1;
        let pages = [Some(self), self.whole.as_deref()].into_iter().flatten();
        pages.filter(|page| last(page)).map(Self::memory).sum()
    }

    /// Whether the arena has pages that stand on this one.
    pub(crate) fn is_stood_on(&self) -> bool {
        self.standing.load(Ordering::Relaxed) > 1
    }

    /// Looks at what making a copy begins with, so that it is near when that is done.
    #[inline]
    pub(crate) fn touch(&self) -> u8 {
        self.shape.touch() ^ self.whole.as_ref().map_or(0, |whole| whole.memory as u8)
    }

    /// Ids of the pages below.
    pub(crate) fn children(&self) -> impl Iterator<Item = PageId> {
        self.slots().filter_map(Slot::below)
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

    /// However often a page is copied and changed, it says what a page does of which everything is copied each time; and no
    /// copy changes what it is a copy of.
    #[test]
    fn a_copy_that_says_what_is_new_is_a_whole_one() {
        let slot = |number: u64| Slot::Entry {
            hash: Hash([number as u8; 32]),
            value_hash: Hash::ZERO,
            place: Place(number),
            value_len: number as u32,
        };
        let node = |number: u64| Node { hash: Hash::ZERO, totals: Totals { count: number, bytes: number } };
        let mut keys: Vec<[u8; 4]> =
            (0u32..32).map(|i| *blake3::hash(&i.to_le_bytes()).as_bytes().first_chunk().unwrap()).collect();
        keys.sort_unstable();
        let (mut random, mut spare, mut number) = (1, Spare::default(), 0);
        for count in 2..=keys.len() {
            let keys = &keys[..count];
            let crits: Vec<u16> = keys.windows(2).map(|pair| bits::crit(&pair[0], &pair[1]).unwrap()).collect();
            let shape = Arc::new(Shape::new(&crits, keys.iter().map(|key| (&key[..], None))));
            let mut slots = vec![slot(0); count];
            let mut nodes = vec![node(0); count - 1];
            let mut page = Arc::new(Page::new(shape.clone(), slots.iter().copied(), nodes.iter().copied(), &mut spare));
            let says = |page: &Page| {
                let slots: Vec<u64> = page.slots().map(|slot| crate::tree::entry(slot).unwrap().place.0).collect();
                (slots, (0..count - 1).map(|node| page.node(node).totals.count).collect::<Vec<u64>>())
            };
            let mut partly = 0;
            for _ in 0..40 {
                let one_of = |random: &mut u64| 1u32 << (keelstone_codec::splitmix64(random) % count as u64);
                let (changed, moved) = (one_of(&mut random), one_of(&mut random));
                let moved = moved & !changed;
                let above = shape.above(changed);
                // A node is above a slot if that is among the slots that its subtree spans.
                for (node, crit) in crits.iter().enumerate() {
                    let (first, last) = shape.span(node, crit - 1);
                    let spans = (first..=last).any(|slot| changed >> slot & 1 == 1);
                    assert_eq!(above >> node & 1 == 1, spans, "node {node} of {count} slots");
                }
                let before = says(&page);
                let mut copy = page.copy(changed, moved, &mut spare);
                partly += usize::from(copy.whole.is_some());
                number += 1;
                for at in each(changed | moved) {
                    (slots[at], *copy.slot_mut(at)) = (slot(number), slot(number));
                }
                for at in each(above) {
                    (nodes[at], *copy.node_mut(at)) = (node(number), node(number));
                }
                assert_eq!(says(&page), before, "what was copied stays what it was");
                let before = std::mem::replace(&mut page, Arc::new(copy));
                Arc::into_inner(before).into_iter().for_each(|page| spare.put(page));
                let all = Page::new(shape.clone(), slots.iter().copied(), nodes.iter().copied(), &mut spare);
                assert_eq!(says(&page), says(&all));
                assert_eq!(page.top().totals, all.top().totals);
                spare.put(all);
            }
            assert!(partly >= 10, "{partly} copies of {count} slots were partial");
        }
    }

    /// However slots come, go and change, it is known which of the base are left, whose keys are, and which are not of it.
    #[test]
    fn what_is_left_of_a_base_is_known() {
        let mut random = 7;
        let mut below = |most: usize| (keelstone_codec::splitmix64(&mut random) % most as u64) as usize;
        let at = PageAt { place: 5, len: 70 };
        for _ in 0..2_000 {
            let slots = 1 + below(SLOTS_MAX);
            let mut base = Base::whole(at, slots).unwrap();
            // Of each slot of the page, which one of the base it follows, and whether it is as it was.
            let mut page: Vec<Option<(usize, bool)>> = (0..slots).map(|slot| Some((slot, true))).collect();
            for _ in 0..12 {
                if below(2) == 0 {
                    let slot = below(page.len());
                    page[slot] = page[slot].map(|(of, _)| (of, false));
                    base = base.renewed(1 << slot);
                } else {
                    let mut from: Vec<Option<Origin>> =
                        (0..page.len()).map(|slot| Some(Origin { slot: slot as u8, same: true })).collect();
                    match below(4) {
                        0 if from.len() < SLOTS_MAX => from.insert(below(from.len() + 1), None),
                        1 if from.len() > 1 => drop(from.remove(below(from.len()))),
                        2 => from[0].as_mut().unwrap().same = false,
                        _ => from[0] = None,
                    }
                    let follows = |from: Origin| {
                        let (of, same) = page[usize::from(from.slot)]?;
                        Some((of, same && from.same))
                    };
                    page = from.iter().map(|from| from.and_then(follows)).collect();
                    match base.followed(from.into_iter()) {
                        Some(next) => base = next,
                        None => assert!(page.iter().flatten().all(|(_, same)| !same)),
                    }
                }
                let set = |slots: &mut dyn Iterator<Item = usize>| slots.fold(0u32, |set, slot| set | 1 << slot);
                let followed = set(&mut page.iter().flatten().map(|(of, _)| *of));
                let kept = set(&mut page.iter().flatten().filter(|(_, same)| *same).map(|(of, _)| *of));
                if kept == 0 {
                    break;
                }
                let is_kept = |slot: &usize| page[*slot].is_some_and(|(_, same)| same);
                let new = set(&mut (0..page.len()).filter(|slot| !is_kept(slot)));
                let added = set(&mut (0..page.len()).filter(|slot| page[*slot].is_none()));
                assert_eq!(Some(base), Base::new(at, [followed, kept], [new, added]));
                for (slot, of) in page.iter().enumerate().filter_map(|(slot, from)| Some((slot, from.as_ref()?.0))) {
                    assert_eq!(base.of(slot), of);
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
