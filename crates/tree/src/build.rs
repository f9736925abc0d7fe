//! Building a version from its entries in order: pages from the bottom up, in one pass, in bounded memory.
//!
//! Neighbours part at a critical bit, and once a lesser one follows, everything below the node between them has been
//! seen (spec: TREE-3). So what is open is the right edge of the tree: the nodes whose right side is still coming, and
//! what hangs to their left. Two subtrees that are complete and together too many slots for a page become pages (spec: TREE-17); these
//! are hashed some hundred at a time and handed out to be written, those below before those above.
//!
//! The pages differ from those that commits would have made; the root does not (spec: TREE-17).

use crate::apply::Subtree;
use crate::fresh::{HASH_PAGES, NewPages, State};
use crate::page::{Page, PageId, SLOTS_MAX, Shape, Slot, Spare};
use crate::preimage;
use crate::tree::{Top, TopSpace};
use crate::{Hasher, NODE_LEN, PageAt, Place, Totals, bits, stored};
use keelstone_codec::{Hash, Namespace};
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;

/// What the tree needs of an entry besides its key and the place of its value; see [`Leaf::of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Length of the value in bytes.
    pub value_len: u32,
    /// The hash of the value.
    pub value_hash: Hash,
    /// The hash of the leaf (spec: TREE-4).
    pub hash: Hash,
}

impl Leaf {
    /// Hashes entries, each a key and a value, and appends a leaf for each to `out`. Hashing many at a time fills lanes.
    ///
    /// # Panics
    /// If a key has more than 65,535 bytes or a value more than 4 GiB.
    pub fn of<'a, H: Hasher>(entries: impl Iterator<Item = (&'a [u8], &'a [u8])>, out: &mut Vec<Self>) {
        let mut batch: Vec<(&[u8], &[u8])> = Vec::with_capacity(LEAVES);
        let mut entries = entries.peekable();
        while entries.peek().is_some() {
            batch.clear();
            batch.extend(entries.by_ref().take(LEAVES));
            leaves::<H>(&batch, |leaf| out.push(leaf));
        }
    }
}

/// Entries hashed together: enough to fill lanes, few enough to stay in the nearest cache.
pub(crate) const LEAVES: usize = 64;

/// Hashes at most [`LEAVES`] entries, each a key and a value, and hands out a leaf for each.
pub(crate) fn leaves<H: Hasher>(entries: &[(&[u8], &[u8])], each: impl FnMut(Leaf)) {
    let count = entries.len();
    let (mut keys, mut values) = ([&[][..]; LEAVES], [&[][..]; LEAVES]);
    for (((key, value), to_key), to_value) in entries.iter().zip(&mut keys).zip(&mut values) {
        (*to_key, *to_value) = (key, value);
    }
    let [mut key_hashes, mut value_hashes, mut hashes] = [[Hash::ZERO; LEAVES]; 3];
    H::hash_many(&keys[..count], &mut key_hashes[..count]);
    H::hash_many(&values[..count], &mut value_hashes[..count]);
    let mut images = [[0; NODE_LEN]; LEAVES];
    for (index, (image, (key, value))) in images.iter_mut().zip(entries).enumerate() {
        let value_len = u32::try_from(value.len()).expect("a value has at most 8 MiB");
        *image = preimage::leaf(preimage::short_len(key), value_len, &key_hashes[index], &value_hashes[index]);
    }
    H::hash_nodes(&images[..count], &mut hashes[..count]);
    let leaf = |((value, value_hash), hash): ((&&[u8], &Hash), &Hash)| Leaf {
        value_len: u32::try_from(value.len()).expect("it was looked at above"),
        value_hash: *value_hash,
        hash: *hash,
    };
    values[..count].iter().zip(&value_hashes).zip(&hashes).map(leaf).for_each(each);
}

/// A version that is being built from its entries. It holds the right edge of the tree and some pages that are not
/// written yet: about a megabyte, whatever the number of entries.
pub struct Build<H> {
    spaces: Vec<TopSpace>,
    /// The namespace the entries now come from.
    namespace: Option<Namespace>,
    pieces: Vec<Piece>,
    /// The keys of the pieces, one after the other.
    keys: Vec<u8>,
    /// The critical bits between the pieces.
    crits: Vec<u16>,
    /// Nodes whose right side is still coming: their critical bit, and what is on their left.
    waiting: Vec<(u16, Subtree)>,
    /// Pages that are not written yet, in the order they were made.
    new: NewPages,
    /// Where written pages lie that pieces or pages in `new` refer to, by number; pages in `new` have the numbers behind.
    places: Vec<PageAt>,
    totals: Totals,
    _hasher: PhantomData<fn() -> H>,
}

/// An entry, or a page that stands for a subtree.
#[derive(Clone, Copy)]
struct Piece {
    /// Where its key ends in [`Build::keys`]; of a page, any key in it.
    key_end: usize,
    slot: Slot,
    state: State,
}

impl<H: Hasher> Default for Build<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Hasher> Build<H> {
    /// Begins with nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            spaces: Vec::new(),
            namespace: None,
            pieces: Vec::new(),
            keys: Vec::new(),
            crits: Vec::new(),
            waiting: Vec::new(),
            new: NewPages::new(Spare::default()),
            places: Vec::new(),
            totals: Totals::default(),
            _hasher: PhantomData,
        }
    }

    /// Takes the next entry. Pages that are complete are handed to `write` now and then, those below before those above;
    /// it says where it put them.
    ///
    /// # Errors
    /// Whatever `write` says. There is no going on after that.
    ///
    /// # Panics
    /// If the entry does not come after the one before it, by namespace and then by key.
    pub fn push<E>(
        &mut self,
        namespace: &Namespace,
        key: &[u8],
        leaf: &Leaf,
        place: Place,
        write: &mut impl FnMut(&[u8]) -> Result<PageAt, E>,
    ) -> Result<(), E> {
        if self.namespace.as_ref() != Some(namespace) {
            assert!(self.namespace.as_ref() < Some(namespace), "namespaces strictly ascend");
            self.end_namespace(write)?;
            self.namespace = Some(namespace.clone());
        } else {
            let last = &self.keys[self.key_start(self.pieces.len() - 1)..];
            let crit = bits::crit(last, key).filter(|crit| bits::bit(key, *crit)).expect("keys strictly ascend");
            let left = self.close(Some(crit));
            self.crits.push(crit);
            self.waiting.push((crit, left));
        }
        self.keys.extend_from_slice(key);
        let Leaf { value_len, value_hash, hash } = *leaf;
        let slot = Slot::Entry { hash, value_hash, place, value_len };
        self.pieces.push(Piece { key_end: self.keys.len(), slot, state: State::Clean });
        self.totals += Totals::entry(key.len(), value_len);
        if self.new.len() < HASH_PAGES { Ok(()) } else { self.write_out(write) }
    }

    /// Entries and bytes taken so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Writes what is left and says where the version begins.
    ///
    /// # Errors
    /// Whatever `write` says.
    pub fn finish<E>(mut self, write: &mut impl FnMut(&[u8]) -> Result<PageAt, E>) -> Result<Top, E> {
        self.end_namespace(write)?;
        Ok(Top::new(self.spaces))
    }

    /// Completes the nodes that a lesser critical bit follows. Returns the subtree that ends with the last piece.
    // spec: TREE-17
    fn close(&mut self, next: Option<u16>) -> Subtree {
        let mut last = Subtree { slots: 1, level: 0 };
        while let Some((_, left)) = self.waiting.pop_if(|(crit, _)| next.is_none_or(|next| next < *crit)) {
            let start = self.pieces.len() - last.slots;
            let mut sides = [left, last];
            if last.becomes_page(left) {
                self.wrap(start);
                sides[1] = last.page();
            }
            if left.becomes_page(last) {
                self.wrap_before(start - left.slots, start);
                sides[0] = left.page();
            }
            last = sides[0].with(sides[1]);
        }
        last
    }

    /// Makes a page of the pieces from `first` to before `start`; it takes their place before the others.
    fn wrap_before(&mut self, first: usize, start: usize) {
        let (keys, right_keys) = (self.key_start(start), self.keys.split_off(self.key_start(start)));
        let right = self.pieces.split_off(start);
        let right_crits = self.crits.split_off(start - 1);
        self.wrap(first);
        let shift = keys - self.keys.len();
        self.pieces.extend(right.into_iter().map(|piece| Piece { key_end: piece.key_end - shift, ..piece }));
        self.keys.extend(right_keys);
        self.crits.extend(right_crits);
    }

    /// Makes a page of the pieces from `start` on; it takes their place.
    fn wrap(&mut self, start: usize) {
        let pieces = &self.pieces[start..];
        let keys = (start..self.pieces.len()).map(|index| {
            let piece = &self.pieces[index];
            let key = &self.keys[self.key_start(index)..piece.key_end];
            match piece.slot {
                Slot::Entry { .. } => (key, None),
                Slot::Child { crit, .. } => (key, Some(crit)),
            }
        });
        let shape = Arc::new(Shape::new(&self.crits[start..], keys));
        let mut states = [State::Clean; SLOTS_MAX];
        states.iter_mut().zip(pieces).for_each(|(state, piece)| *state = piece.state);
        let count = pieces.len();
        let slots = pieces.iter().map(|piece| piece.slot);
        let page = Page::new(shape, slots, std::iter::empty(), &mut self.new.spare);

        let number = self.places.len() + self.new.len();
        let id = PageId(u32::try_from(number).expect("a few hundred pages have numbers at a time"));
        let new = self.new.settle::<H>(id, page, &states[..count], |_| true);
        let (slot, state) = self.new.child(new);
        let key_end = self.pieces[start].key_end;
        self.pieces.truncate(start);
        self.keys.truncate(key_end);
        self.crits.truncate(start);
        self.pieces.push(Piece { key_end, slot, state });
    }

    fn key_start(&self, piece: usize) -> usize {
        piece.checked_sub(1).map_or(0, |before| self.pieces[before].key_end)
    }

    /// Hashes what is due and hands out all pages that were made.
    fn write_out<E>(&mut self, write: &mut impl FnMut(&[u8]) -> Result<PageAt, E>) -> Result<(), E> {
        self.new.hash::<H>();
        for piece in &mut self.pieces {
            if let State::New(new) = piece.state {
                (piece.slot, piece.state) = (self.new.child(new).0, State::Clean);
            }
        }
        for page in self.new.drain() {
            let bytes = stored::encode(&page, |below| self.places[below.0 as usize]);
            self.places.push(write(&bytes)?);
            self.new.spare.put(page);
        }
        // From here on only pieces refer to pages.
        let before = mem::take(&mut self.places);
        for piece in &mut self.pieces {
            if let Slot::Child { id, .. } = &mut piece.slot {
                self.places.push(before[id.0 as usize]);
                *id = PageId(u32::try_from(self.places.len() - 1).expect("a few hundred pieces are open at a time"));
            }
        }
        Ok(())
    }

    fn end_namespace<E>(&mut self, write: &mut impl FnMut(&[u8]) -> Result<PageAt, E>) -> Result<(), E> {
        let Some(name) = self.namespace.take() else { return Ok(()) };
        self.close(None);
        if !matches!(self.pieces[..], [Piece { slot: Slot::Child { .. }, .. }]) {
            self.wrap(0);
        }
        self.write_out(write)?;
        let Some(Piece { slot: Slot::Child { hash, totals, id, .. }, .. }) = self.pieces.pop() else {
            unreachable!("all pieces are in one page")
        };
        self.spaces.push(TopSpace { name, totals, root: hash, at: self.places[id.0 as usize] });
        self.places.clear();
        self.keys.clear();
        Ok(())
    }
}
