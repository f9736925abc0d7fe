//! One version of the state, immutable: what it holds, in order, and what can be said of where it lies.
//!
//! A [`Tree`] shares its pages with the versions before and after it ([`Pages`]) and keeps them from being freed. It is
//! cheap to clone and can be read from any thread. A new version is made by [`Tree::prepare`].

use crate::arena::{Pages, Written, expected};
use crate::entries::{Entries, Glance, Lost, Met, ScanValues};
use crate::page::{self, Page, PageId, Slot};
use crate::state::{Space, StateTree};
use crate::stored::{self, Expected, PAGE_LEN_MAX};
use crate::{Hasher, KeyRange, PageAt, Place, Read, ReadError, Scan, Totals};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Key, Namespace, Reader, Root, Value, put_length};
use std::fmt;
use std::sync::Arc;

/// What the tree holds of a key: everything about its value but the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Length of the value in bytes.
    pub value_len: u32,
    /// The hash of the value under the chain's hasher.
    pub value_hash: Hash,
    /// Where the value is.
    pub place: Place,
}

impl Entry {
    /// Checks that a value is the one the tree commits to.
    pub(crate) fn check<H: Hasher>(&self, value: &[u8]) -> Result<(), ReadError> {
        let found = H::hash(value);
        if found == self.value_hash {
            return Ok(());
        }
        let (place, expected) = (self.place.0, self.value_hash);
        Err(ReadError::damaged(format!("value at {place:#x} has hash {found}, the tree says {expected}")))
    }
}

/// One version of the state. Pages it needs stay readable while it or a clone of it lives.
pub struct Tree<H: Hasher> {
    version: Arc<Version<H>>,
}

struct Version<H: Hasher> {
    pages: Arc<Pages<H>>,
    number: u64,
    spaces: Vec<Space>,
    state: StateTree,
}

impl<H: Hasher> Tree<H> {
    /// The empty state.
    #[must_use]
    pub fn empty(pages: &Arc<Pages<H>>) -> Self {
        let number = pages.publish(None, Vec::new(), Vec::new(), Vec::new(), &[]);
        Self::assemble(pages.clone(), number, Vec::new(), StateTree::new::<H>(&[]))
    }

    /// A version that was written: pages are read when they are needed.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] if `top` is not what stands under `root`.
    pub fn open(pages: &Arc<Pages<H>>, top: &Top, root: Root) -> Result<Self, ReadError> {
        let mut spaces = top.sealed::<H>();
        let state = StateTree::new::<H>(&spaces);
        if state.root() != root {
            return Err(ReadError::damaged(format!("the top has root {}, {root} was expected", state.root())));
        }
        let places: Vec<PageAt> = top.spaces.iter().map(|space| space.at).collect();
        let (number, ids) = pages.publish_written(&places);
        spaces.iter_mut().zip(ids).for_each(|(space, id)| space.page = id);
        Ok(Self::assemble(pages.clone(), number, spaces, state))
    }

    pub(crate) fn assemble(pages: Arc<Pages<H>>, number: u64, spaces: Vec<Space>, state: StateTree) -> Self {
        Self { version: Arc::new(Version { pages, number, spaces, state }) }
    }

    /// The root of the state.
    #[must_use]
    pub fn root(&self) -> Root {
        self.version.state.root()
    }

    /// Entries and bytes of the whole state.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.version.state.totals()
    }

    /// The namespaces in order, with their totals and namespace roots.
    pub fn namespaces(&self) -> impl ExactSizeIterator<Item = (&Namespace, Totals, Hash)> {
        self.version.spaces.iter().map(|space| (&space.name, space.totals, space.hash))
    }

    /// The arena this version shares with others.
    #[must_use]
    pub fn pages(&self) -> &Arc<Pages<H>> {
        &self.version.pages
    }

    /// What the tree holds of a key; none if the key is absent.
    ///
    /// # Errors
    /// [`ReadError`] if a page on the way could not be read.
    pub fn find(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Entry>, ReadError> {
        let Some(space) = self.space(namespace) else { return Ok(None) };
        let pages = &self.version.pages;
        let mut page = self.load_root(space)?;
        loop {
            let slot = page.shape.route(key);
            // What the page below has to be is put together only when it has to be read.
            let in_memory = page.slot(slot).below().and_then(|id| pages.touch(id));
            page = match in_memory {
                Some(below) => below,
                None => match expected(page.slot(slot), page.shape.key(slot)) {
                    Some((id, expected)) => pages.load(id, &expected)?,
                    None => return Ok(entry(page.slot(slot)).filter(|_| page.shape.key(slot) == key)),
                },
            };
        }
    }

    /// The value of an entry, read from where it is and checked against its hash.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] if it is not the value the tree commits to, or what [`crate::Backing`] says.
    pub fn value(&self, entry: &Entry) -> Result<Value, ReadError> {
        let value = self.version.pages.backing().value(entry.place, entry.value_len)?;
        entry.check::<H>(&value)?;
        Ok(value)
    }

    /// The values of many entries, read together and hashed together; none if any of them is not as it should be.
    #[must_use]
    pub fn values(&self, entries: &[Entry]) -> Option<Vec<Value>> {
        let wanted: Vec<(Place, u32)> = entries.iter().map(|entry| (entry.place, entry.value_len)).collect();
        let values = self.version.pages.backing().values(&wanted).ok()?;
        let bytes: Vec<&[u8]> = values.iter().map(|value| &**value).collect();
        let mut hashes = vec![Hash::ZERO; bytes.len()];
        H::hash_many(&bytes, &mut hashes);
        let expected = entries.iter().map(|entry| entry.value_hash);
        expected.eq(hashes).then_some(values)
    }

    /// Entries of a range of keys in the range's direction, without their values.
    #[must_use]
    pub fn entries(&self, namespace: &Namespace, range: KeyRange) -> Entries<H> {
        Entries::new(self, namespace, range)
    }

    /// Hands every page of this version that was never written to `write`, pages below before those above, and notes
    /// where `write` says it put them. Returns a word of them, to be kept until they can be read there. Afterwards
    /// [`Tree::top`] has all it takes to open this version again.
    ///
    /// A page of which little is new since it was last written whole is written as that, beside the whole one (spec: TREE-20), if
    /// `stays` says that what lies there will stay for as long as what is written now.
    ///
    /// One flush at a time may run over one arena.
    ///
    /// # Errors
    /// Whatever `write` says. What was written before counts as written.
    pub fn flush<E>(
        &self,
        stays: impl Fn(PageAt) -> bool,
        mut write: impl FnMut(&[u8]) -> Result<PageAt, E>,
    ) -> Result<Written<H>, E> {
        let pages = &self.version.pages;
        let unwritten = |id: PageId| pages.at(id).is_none();
        let open = |id: PageId| {
            let page = pages.peek(id).expect("an unwritten page is in memory");
            // What it still has of a page that is written is written, too.
            let may_be = page.base.map_or(page::first(page.shape.len()), |base| base.new);
            (id, page, may_be)
        };
        let mut written = Written::new(pages);
        for space in self.version.spaces.iter().filter(|space| unwritten(space.page)) {
            let mut path = vec![open(space.page)];
            while let Some((id, page, may_be)) = path.last_mut() {
                let mut below = page::each(*may_be).filter_map(|slot| Some((slot, page.slot(slot).below()?)));
                if let Some((slot, below)) = below.find(|(_, below)| unwritten(*below)) {
                    *may_be &= !page::first(slot + 1);
                    path.push(open(below));
                    continue;
                }
                let below = |below| pages.at(below).expect("pages below are written first");
                let base = page.base.filter(|base| stays(base.at()));
                let (bytes, is_whole) = match base {
                    Some(base) => stored::encode_beside(page, &base, below),
                    None => (stored::encode(page, below), true),
                };
                let at = write(&bytes)?;
                assert_eq!(at.len as usize, bytes.len(), "what is written is written in one piece");
                written.note(*id, page, at, is_whole);
                path.pop();
            }
        }
        Ok(written)
    }

    /// Where the namespaces of this version are written; none before a [`Tree::flush`] went through.
    #[must_use]
    pub fn top(&self) -> Option<Top> {
        let Version { pages, spaces, .. } = &*self.version;
        let space = |space: &Space| {
            let (name, totals, root) = (space.name.clone(), space.totals, space.hash);
            Some(TopSpace { name, totals, root, at: pages.at(space.page)? })
        };
        Some(Top { spaces: spaces.iter().map(space).collect::<Option<_>>()? })
    }

    /// Tells of each page that this version needs of the disk where it lies: pages that are written, and those beside which others
    /// are, or can be, written (spec: TREE-20). Whoever counts what is garbage must come to the same. Reads every page.
    ///
    /// # Errors
    /// [`ReadError`] if a page could not be read.
    pub fn needs(&self, mut needed: impl FnMut(PageAt)) -> Result<(), ReadError> {
        let pages = &self.version.pages;
        let mut open = Vec::new();
        for space in &self.version.spaces {
            open.push((space.page, pages.load_in_passing(space.page, &root_expected(space))?));
            while let Some((id, page)) = open.pop() {
                let lies = pages.lies(id);
                let [at, base] = lies.needs(&page);
                [at, if at.is_none() { lies.base(&page).map(|base| base.at()) } else { base }]
                    .into_iter()
                    .flatten()
                    .for_each(&mut needed);
                for slot in 0..page.shape.len() {
                    if let Some((id, expected)) = expected(page.slot(slot), page.shape.key(slot)) {
                        open.push((id, pages.load_in_passing(id, &expected)?));
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks through the entries from `from` on for what has to be written anew: values whose place is stale, and pages
    /// whose place is, or that of what they are written beside. Goes past what cannot be read, and names it. Reads at most about `pages_max` pages, finds at most about
    /// `bytes_max` bytes of stale values, a value more at most, and says where to go on. Without `stale_value` no value is stale, and
    /// entries are not looked at, nor pages kept in memory on whose way nothing is stale. See [`Tree::rewrite`].
    #[must_use]
    pub fn survey(
        &self,
        from: Option<&(Namespace, Key)>,
        (pages_max, bytes_max): (usize, u64),
        stale_page: impl Fn(Place) -> bool,
        stale_value: Option<impl Fn(Place) -> bool>,
    ) -> Survey {
        let is_stale = |place| stale_value.as_ref().is_some_and(|stale_value| stale_value(place));
        let mut survey = Survey::default();
        let (mut seen, mut bytes) = (0, 0);
        let first = from.map_or(0, |(name, _)| self.version.spaces.partition_point(|space| space.name < *name));
        for space in &self.version.spaces[first..] {
            let start = from.filter(|(name, _)| space.name == *name).map_or(&[][..], |(_, key)| key);
            let mut entries = self.entries(&space.name, KeyRange::from(start)).glancing();
            // Pages above the next entry are stale.
            let mut stale = false;
            let needs_stale = |[at, base]: [Option<Place>; 2]| at.into_iter().chain(base).any(&stale_page);
            seen += 1;
            // If it cannot be read, the walk says so.
            stale |= self.version.pages.glance(space.page, space.totals).is_ok_and(|top| needs_stale(top.needs));
            // Most entries are gone by where they lie in their page, and most pages where they lie: nothing of them is copied.
            while let Some(next) = entries.advance(&mut |met| match met {
                Met::Page(Glance { needs, entries, can_go_by, .. }) => {
                    seen += 1;
                    stale |= needs_stale(*needs);
                    let is_wanted = stale || stale_value.is_some() || seen > pages_max;
                    if !is_wanted && *can_go_by {
                        survey.entries += entries;
                        survey.seen_any = true;
                    }
                    is_wanted
                }
                Met::Entry(entry) => {
                    survey.entries += 1;
                    let is_wanted = stale || is_stale(entry.place) || seen > pages_max || bytes >= bytes_max;
                    survey.seen_any |= !is_wanted;
                    is_wanted
                }
            }) {
                let (key, entry) = match next {
                    Ok(found) => found,
                    Err(lost) => {
                        seen += 1;
                        survey.entries += lost.totals.count;
                        let behind = lost.range().end.and_then(|end| Key::new(end).ok());
                        survey.lost.push((space.name.clone(), lost));
                        if let Some(key) = behind.filter(|_| seen > pages_max) {
                            survey.next = Some((space.name.clone(), key));
                            return survey;
                        }
                        continue;
                    }
                };
                if (seen > pages_max || bytes >= bytes_max) && survey.seen_any {
                    survey.next = Some((space.name.clone(), key));
                    return survey;
                }
                survey.seen_any = true;
                let moves = is_stale(entry.place);
                if std::mem::take(&mut stale) || moves {
                    bytes += if moves { u64::from(entry.value_len) } else { 0 };
                    let namespace = space.name.clone();
                    survey.stale.push(Stale { namespace, key, value: moves.then_some(entry) });
                }
            }
        }
        survey
    }

    pub(crate) fn spaces(&self) -> &[Space] {
        &self.version.spaces
    }

    pub(crate) fn state(&self) -> &StateTree {
        &self.version.state
    }

    pub(crate) fn number(&self) -> u64 {
        self.version.number
    }

    pub(crate) fn space(&self, namespace: &Namespace) -> Option<&Space> {
        let spaces = &self.version.spaces;
        spaces.binary_search_by(|space| space.name.cmp(namespace)).ok().map(|index| &spaces[index])
    }

    pub(crate) fn load_root(&self, space: &Space) -> Result<Arc<Page>, ReadError> {
        self.version.pages.load(space.page, &root_expected(space))
    }
}

/// What a namespace says of its top page.
pub(crate) fn root_expected(space: &Space) -> Expected<'static> {
    Expected { hash: space.hash, totals: space.totals, below: None }
}

pub(crate) fn entry(slot: &Slot) -> Option<Entry> {
    match slot {
        Slot::Entry { value_hash, place, value_len, .. } => {
            Some(Entry { value_len: *value_len, value_hash: *value_hash, place: *place })
        }
        Slot::Child { .. } => None,
    }
}

impl<H: Hasher> Clone for Tree<H> {
    fn clone(&self) -> Self {
        Self { version: self.version.clone() }
    }
}
impl<H: Hasher> fmt::Debug for Tree<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("root", &self.root()).field("totals", &self.totals()).finish_non_exhaustive()
    }
}
impl<H: Hasher> Drop for Version<H> {
    fn drop(&mut self) {
        self.pages.release(self.number);
    }
}

impl<H: Hasher> Read for Tree<H> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.find(namespace, key)?.map(|entry| self.value(&entry)).transpose()
    }

    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        Box::new(ScanValues::new(self, self.entries(namespace, range)))
    }
}

/// What [`Tree::survey`] found.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// In order.
    pub stale: Vec<Stale>,
    /// What cannot be read, so that nobody knows what is stale below.
    pub lost: Vec<(Namespace, Lost)>,
    /// Where to go on; none at the end of the state.
    pub next: Option<(Namespace, Key)>,
    /// Entries that were gone by, those of pieces that cannot be read included.
    pub entries: u64,
    seen_any: bool,
}

/// A key on whose way something has to be written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Where.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// Its entry, if its value has to move; otherwise a page on the way to it has to.
    pub value: Option<Entry>,
}

/// Where the namespaces of a written version are (spec: TREE-19).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Top {
    /// Ascending by name.
    spaces: Vec<TopSpace>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopSpace {
    pub(crate) name: Namespace,
    pub(crate) totals: Totals,
    /// The namespace root.
    pub(crate) root: Hash,
    pub(crate) at: PageAt,
}

impl Top {
    pub(crate) fn new(spaces: Vec<TopSpace>) -> Self {
        assert!(spaces.is_sorted_by(|a, b| a.name < b.name), "namespaces strictly ascend");
        Self { spaces }
    }

    /// The root of the state.
    #[must_use]
    pub fn root<H: Hasher>(&self) -> Root {
        StateTree::new::<H>(&self.sealed::<H>()).root()
    }

    /// The namespaces, their pages still without numbers.
    fn sealed<H: Hasher>(&self) -> Vec<Space> {
        let space = |space: &TopSpace| {
            let TopSpace { name, totals, root, .. } = space.clone();
            let mut space = Space { name, totals, hash: root, page: PageId(0), leaf: Hash::ZERO };
            space.seal::<H>();
            space
        };
        self.spaces.iter().map(space).collect()
    }

    /// Where the top page of each namespace is.
    pub fn pages(&self) -> impl Iterator<Item = (&Namespace, PageAt)> {
        self.spaces.iter().map(|space| (&space.name, space.at))
    }
}

// spec: TREE-19
impl Encode for Top {
    fn encode(&self, out: &mut Vec<u8>) {
        put_length(out, self.spaces.len());
        for space in &self.spaces {
            space.name.encode(out);
            space.totals.encode(out);
            space.root.encode(out);
            space.at.encode(out);
        }
    }
}
impl Decode for Top {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut spaces: Vec<TopSpace> = Vec::new();
        let mut sum = Some(Totals::default());
        for _ in 0..u32::decode(input)? {
            let (name, totals) = (Namespace::decode(input)?, Totals::decode(input)?);
            let (root, at) = (Hash::decode(input)?, PageAt::decode(input)?);
            if spaces.last().is_some_and(|last| last.name >= name) {
                return Err(DecodeError::NotCanonical { what: "namespaces of a top must strictly ascend" });
            }
            sum = sum.and_then(|sum| sum.checked_add(totals));
            let is_page = at.place != u64::MAX && at.len as usize <= PAGE_LEN_MAX;
            if !is_page || totals.count == 0 || sum.is_none() {
                return Err(DecodeError::Invalid { what: "namespace of a top" });
            }
            spaces.push(TopSpace { name, totals, root, at });
        }
        Ok(Self { spaces })
    }
}
