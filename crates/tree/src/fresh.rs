//! New pages, whose hashes are computed for many of them together.
//!
//! Pages come in with their slots, those below before those above. Every node that has to be hashed is noted under its
//! height; now and then all that is due is hashed, lowest first, height by height over many pages, so that lanes are
//! full and the pages still in a near cache. A page hands the hash of its root up to the page above it.

use crate::page::{self, Node, Page, PageId, SLOTS_MAX, Slot, Spare, Spot};
use crate::preimage::{self, Preimage};
use crate::tree::entry;
use crate::{Entry, Hasher, Place};
use keelstone_codec::Hash;

/// Nodes hashed at a time: enough to fill lanes, few enough to stay in the nearest cache.
const HASH_BATCH: usize = 64;
/// New pages are hashed in groups of this many: enough to fill lanes at every height, few enough that they are still
/// in the second cache from being made.
pub(crate) const HASH_PAGES: usize = 128;

/// A page that did not exist before. Its hashes may still be due.
pub(crate) struct NewPage {
    pub(crate) id: PageId,
    pub(crate) page: Page,
    /// Entries of this diff: their place is the index of their change.
    pub(crate) fresh: u32,
    /// Who wants to know its hash.
    up: Up,
    /// The height of its root over the changes below it; none if nothing below changed.
    height: Option<u16>,
}

#[derive(Clone, Copy)]
enum Up {
    Nobody,
    Page(usize, u8),
}

/// What a slot of a new page is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing changed.
    Clean,
    /// Itself done, but nodes above it are not what they were: a neighbour went, or it was made in a limb.
    Touched,
    /// An entry this diff wrote; its hash is due.
    Fresh,
    /// A new page whose hash is due.
    New(usize),
}

impl NewPage {
    /// The page as it will stay: `places` says where the value of each change is.
    pub(crate) fn settled(mut self, places: &[Place]) -> (PageId, Page) {
        for slot in page::each(self.fresh) {
            let Slot::Entry { place, .. } = self.page.slot_mut(slot) else { unreachable!("only entries are fresh") };
            *place = places[usize::try_from(place.0).expect("it was an index")];
        }
        (self.id, self.page)
    }
}

/// New pages in the order they were made, and what of them is to be hashed.
pub(crate) struct NewPages {
    all: Vec<NewPage>,
    /// What is to be hashed, by height over what has its hash: new page and packed spot.
    due: Vec<Vec<(u32, u8)>>,
    /// New pages below this index have all their hashes.
    hashed: usize,
    /// Bodies to make pages with.
    pub(crate) spare: Spare,
}

impl NewPages {
    pub(crate) fn new(spare: Spare) -> Self {
        Self { all: Vec::new(), due: Vec::new(), hashed: 0, spare }
    }

    /// The pages, and bodies that are left.
    pub(crate) fn into_parts(self) -> (Vec<NewPage>, Spare) {
        assert_eq!(self.hashed, self.all.len(), "all is hashed before it is used");
        (self.all, self.spare)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Gives all pages away, in the order they were made. Nothing may be built on them any more.
    pub(crate) fn drain(&mut self) -> Vec<Page> {
        assert_eq!(self.hashed, self.all.len(), "all is hashed before it is used");
        self.hashed = 0;
        self.all.drain(..).map(|new| new.page).collect()
    }

    pub(crate) fn page(&self, new: usize) -> &Page {
        &self.all[new].page
    }

    /// Takes in a page, sums up its totals and notes what of it is to be hashed. `lost` says which nodes are not what
    /// they were even if nothing below them changed. Hashes all that is due if enough has come together.
    pub(crate) fn settle<H: Hasher>(
        &mut self,
        id: PageId,
        mut page: Page,
        states: &[State],
        lost: impl Fn(usize) -> bool,
    ) -> usize {
        let index = self.all.len();
        let number = u32::try_from(index).expect("a diff makes fewer than 2^32 pages");
        // For slots, then for nodes, as they are packed: one more than the height if something at or below it changed,
        // else zero.
        let mut heights = [0u16; 2 * SLOTS_MAX];
        let mut fresh = 0;
        for (slot, state) in states.iter().enumerate() {
            heights[slot] = match *state {
                State::Clean => 0,
                State::Touched => 1,
                State::Fresh => {
                    fresh |= 1 << slot;
                    self.note(0, number, Spot::Slot(slot));
                    1
                }
                State::New(below) => {
                    self.all[below].up = Up::Page(index, Spot::Slot(slot).pack());
                    if below < self.hashed {
                        // Its slot was made before its hash was; nobody will hand it up any more.
                        let hash = self.all[below].page.top().hash;
                        page.slot_mut(slot).set_hash(hash);
                    }
                    self.all[below].height.map_or(0, |height| height + 1)
                }
            };
        }
        let shape = page.shape.clone();
        for node in shape.order().iter().map(|node| usize::from(*node)) {
            let below = shape.packed_children(node).map(|spot| heights[usize::from(spot)]);
            let below = below[0].max(below[1]);
            if below == 0 && !lost(node) {
                continue;
            }
            let height = below.max(1);
            heights[usize::from(Spot::Node(node).pack())] = height + 1;
            let [left, right] = shape.children(node);
            page.node_mut(node).totals = page.totals_at(left) + page.totals_at(right);
            self.note(height, number, Spot::Node(node));
        }
        let height = heights[usize::from(shape.root().pack())].checked_sub(1);
        self.all.push(NewPage { id, page, fresh, up: Up::Nobody, height });
        if self.all.len() - self.hashed >= HASH_PAGES {
            self.hash::<H>();
        }
        index
    }

    /// Hashes what is due, lowest first, and hands hashes up from page to page. A page above that is not made yet takes
    /// them when it is.
    pub(crate) fn hash<H: Hasher>(&mut self) {
        let mut preimages: Vec<Preimage> = Vec::with_capacity(HASH_BATCH);
        let [mut hashes, mut key_hashes] = [[Hash::ZERO; HASH_BATCH]; 2];
        let all = &mut self.all;
        for batch in self.due.iter().flat_map(|height| height.chunks(HASH_BATCH)) {
            preimages.clear();
            let mut keys = [&[][..]; HASH_BATCH];
            let mut count = 0;
            for (index, spot) in batch {
                if let Spot::Slot(slot) = Spot::unpack(*spot) {
                    keys[count] = all[*index as usize].page.shape.key(slot);
                    count += 1;
                }
            }
            H::hash_many(&keys[..count], &mut key_hashes[..count]);
            let mut key_hashes = key_hashes.iter();
            preimages.extend(batch.iter().map(|(index, spot)| {
                let page = &all[*index as usize].page;
                match Spot::unpack(*spot) {
                    Spot::Node(node) => page.preimage(node),
                    Spot::Slot(slot) => {
                        let key = page.shape.key(slot);
                        let Entry { value_len, value_hash, .. } = entry(page.slot(slot)).expect("only entries are due");
                        let key_hash = key_hashes.next().expect("one for each slot");
                        preimage::leaf(preimage::short_len(key), value_len, key_hash, &value_hash)
                    }
                }
            }));
            H::hash_nodes(&preimages, &mut hashes[..batch.len()]);
            for ((index, spot), hash) in batch.iter().zip(hashes) {
                let NewPage { page, up, .. } = &mut all[*index as usize];
                match Spot::unpack(*spot) {
                    Spot::Node(node) => page.node_mut(node).hash = hash,
                    Spot::Slot(slot) => page.slot_mut(slot).set_hash(hash),
                }
                if let (true, Up::Page(above, slot)) = (page.shape.root() == Spot::unpack(*spot), *up) {
                    all[above].page.slot_mut(usize::from(slot)).set_hash(hash);
                }
            }
        }
        self.due.iter_mut().for_each(Vec::clear);
        for page in &mut self.all[self.hashed..] {
            // What builds on it from now on need not wait for it.
            page.height = page.height.map(|_| 0);
        }
        self.hashed = self.all.len();
    }

    /// The slot for a new page.
    pub(crate) fn child(&self, new: usize) -> (Slot, State) {
        let NewPage { id, page, height, .. } = &self.all[new];
        let Node { hash, totals } = page.top();
        let crit = page.shape.root_crit().unwrap_or(0);
        (Slot::Child { hash, totals, id: *id, crit }, if height.is_some() { State::New(new) } else { State::Clean })
    }

    fn note(&mut self, height: u16, new: u32, spot: Spot) {
        let height = usize::from(height);
        if self.due.len() <= height {
            self.due.resize_with(height + 1, Vec::new);
        }
        self.due[height].push((new, spot.pack()));
    }
}
