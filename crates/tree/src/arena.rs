//! The arena: pages by number, in memory or not, shared by all versions of a state.
//!
//! A page never changes once it is in the arena. A new version brings new pages for what it changed and says which of
//! its parent's pages it no longer has; everything else it shares. Pages are not counted one by one: who still needs a
//! page follows from the versions that are alive ([`Versions`]).
//!
//! A page that has been written out can be dropped from memory and is read again when it is needed. What comes back
//! from [`Backing`] is not trusted: it is decoded strictly and proven by the hash its parent holds (spec: TREE-18).
//! Only pages without pages below them are dropped, since the numbers of those below live in their parent.

use crate::page::{Page, PageId, Slot, Spare};
use crate::stored::{self, Expected};
use crate::{Backing, Hasher, PageAt, ReadError};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Chunk `n` of the arena has `FIRST_CHUNK << n` cells, so cells never move and finding one takes no
/// lock.
const FIRST_CHUNK: u32 = 1 << 10;
const CHUNKS: usize = 22;
/// Loading a page is done under one of this many locks, so that no page is loaded twice at a time.
const LOAD_LOCKS: usize = 64;

/// The pages of a state and its versions. Share one among all versions of one store.
pub struct Pages<H> {
    backing: Arc<dyn Backing>,
    chunks: [OnceLock<Box<[Cell]>>; CHUNKS],
    versions: Mutex<Versions>,
    loading: [Mutex<()>; LOAD_LOCKS],
    memory: AtomicUsize,
    unwritten: AtomicUsize,
    /// Where eviction goes on: it takes the arena round and round.
    hand: AtomicU32,
    /// For each thread that makes pages.
    spare: Mutex<Box<[Spare]>>,
    threads: NonZeroUsize,
    _hasher: PhantomData<fn() -> H>,
}

/// What stands at one number. Its lock is held for a few instructions at a time, never while anything is read.
#[derive(Default)]
struct Cell(Mutex<Held>);

#[derive(Default)]
struct Held {
    page: Option<Arc<Page>>,
    /// Where the page is written.
    at: Option<PageAt>,
    /// The version that made the page.
    birth: u64,
    /// Used since the hand of eviction last passed.
    used: bool,
}

impl Cell {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an arena holds at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesStats {
    /// Bytes of pages in memory, about.
    pub memory_bytes: usize,
    /// Pages that were never written: they stay in memory.
    pub unwritten_pages: usize,
    /// Numbers in use: pages of all versions, in memory or not.
    pub pages: usize,
    /// Versions that are alive, and those whose pages another still needs.
    pub versions: usize,
}

impl<H: Hasher> Pages<H> {
    /// An arena without pages, over the place where written ones are.
    #[must_use]
    pub fn new(backing: Arc<dyn Backing>) -> Arc<Self> {
        Self::on_threads(backing, NonZeroUsize::MIN)
    }

    /// As [`Pages::new`]. Large diffs are applied by so many threads, to the same result.
    #[must_use]
    pub fn on_threads(backing: Arc<dyn Backing>, threads: NonZeroUsize) -> Arc<Self> {
        Arc::new(Self {
            backing,
            chunks: [const { OnceLock::new() }; CHUNKS],
            versions: Mutex::default(),
            loading: [const { Mutex::new(()) }; LOAD_LOCKS],
            memory: AtomicUsize::new(0),
            unwritten: AtomicUsize::new(0),
            hand: AtomicU32::new(0),
            spare: Mutex::new((0..threads.get()).map(|_| Spare::default()).collect()),
            threads,
            _hasher: PhantomData,
        })
    }

    /// Figures for metrics and back-pressure.
    #[must_use]
    pub fn stats(&self) -> PagesStats {
        let versions = self.versions();
        PagesStats {
            memory_bytes: self.memory.load(Ordering::Relaxed),
            unwritten_pages: self.unwritten.load(Ordering::Relaxed),
            pages: versions.end as usize - versions.free.len(),
            versions: versions.all.len(),
        }
    }

    /// Drops pages that are written and have not been used of late, until at most `memory_bytes` are held or nothing
    /// more can go. Returns the bytes held afterwards. What is dropped must be readable through [`Backing`] by now.
    pub fn evict(&self, memory_bytes: usize) -> usize {
        let end = self.versions().end;
        // Once round takes the marks of use away, a second time round finds what has none.
        for _ in 0..u64::from(end) * 2 {
            if self.memory.load(Ordering::Relaxed) <= memory_bytes {
                break;
            }
            let id = PageId(self.hand.fetch_add(1, Ordering::Relaxed) % end);
            let mut held = self.cell(id).lock();
            if held.at.is_none() || mem::take(&mut held.used) {
                continue;
            }
            let gone = held.page.take_if(|page| page.children().next().is_none());
            drop(held);
            if let Some(page) = gone {
                self.memory.fetch_sub(page.memory(), Ordering::Relaxed);
            }
        }
        self.memory.load(Ordering::Relaxed)
    }

    pub(crate) fn backing(&self) -> &dyn Backing {
        &*self.backing
    }

    /// A page, read and proven if it is not in memory.
    pub(crate) fn load(&self, id: PageId, expected: &Expected<'_>) -> Result<Arc<Page>, ReadError> {
        if let Some(page) = self.touch(id) {
            return Ok(page);
        }
        self.read(id, expected, true)
    }

    /// A page as [`Pages::load`] finds it, for one who goes by: it does not count as used, and if it has to be read and
    /// has no pages below it, it is not kept.
    pub(crate) fn load_in_passing(&self, id: PageId, expected: &Expected<'_>) -> Result<Arc<Page>, ReadError> {
        match self.peek(id) {
            Some(page) => Ok(page),
            None => self.read(id, expected, false),
        }
    }

    /// Reads a page and proves it, and keeps it if that is wanted or numbers were given to pages below it.
    fn read(&self, id: PageId, expected: &Expected<'_>, keep: bool) -> Result<Arc<Page>, ReadError> {
        let _loading = self.loading(id);
        if let Some(page) = self.peek(id) {
            return Ok(page);
        }
        let Held { at, birth, .. } = *self.cell(id).lock();
        let at = at.expect("a page that is not in memory was written");
        let bytes = self.backing.page(at)?;
        let mut made = Vec::new();
        let decoded = stored::decode::<H>(&bytes, expected, |at| {
            let id = self.reserve();
            made.push(id);
            // Not younger than its parent, and given up with it (see `Versions`).
            *self.cell(id).lock() = Held { page: None, at: Some(at), birth, used: false };
            id
        });
        let page = match decoded {
            Ok(page) => Arc::new(page),
            Err(error) => {
                self.give_back(&made);
                return Err(ReadError::damaged(format!("page of {} bytes at {:#x}: {error}", at.len, at.place)));
            }
        };
        if keep || !made.is_empty() {
            self.memory.fetch_add(page.memory(), Ordering::Relaxed);
            self.cell(id).lock().page = Some(page.clone());
        }
        Ok(page)
    }

    /// The page if it is in memory, which then counts as used.
    pub(crate) fn touch(&self, id: PageId) -> Option<Arc<Page>> {
        let mut held = self.cell(id).lock();
        held.used = true;
        held.page.clone()
    }

    /// The page if it is in memory.
    pub(crate) fn peek(&self, id: PageId) -> Option<Arc<Page>> {
        self.cell(id).lock().page.clone()
    }

    /// Where a page is written, if it is.
    pub(crate) fn at(&self, id: PageId) -> Option<PageAt> {
        self.cell(id).lock().at
    }

    /// Notes where a page was written.
    pub(crate) fn written(&self, id: PageId, at: PageAt) {
        let before = self.cell(id).lock().at.replace(at);
        assert!(before.is_none(), "a page is written once");
        self.unwritten.fetch_sub(1, Ordering::Relaxed);
    }

    /// On how many threads a large diff is applied.
    pub(crate) fn threads(&self) -> usize {
        self.threads.get()
    }

    /// Bodies to make pages with. Give back what is left.
    pub(crate) fn spare(&self) -> Spare {
        self.spares().iter_mut().max_by_key(|spare| spare.len()).map(mem::take).unwrap_or_default()
    }

    pub(crate) fn give_back_spare(&self, spare: Spare) {
        if let Some(emptiest) = self.spares().iter_mut().min_by_key(|spare| spare.len()) {
            emptiest.join(spare);
        }
    }

    fn spares(&self) -> MutexGuard<'_, Box<[Spare]>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number nobody uses.
    pub(crate) fn reserve(&self) -> PageId {
        self.reserve_one(&mut self.versions())
    }

    /// So many numbers that nobody uses.
    pub(crate) fn reserve_many(&self, count: usize, ids: &mut Vec<PageId>) {
        let mut versions = self.versions();
        ids.extend((0..count).map(|_| self.reserve_one(&mut versions)));
    }

    fn reserve_one(&self, versions: &mut Versions) -> PageId {
        if let Some(id) = versions.free.pop() {
            return id;
        }
        let id = PageId(versions.end);
        let (chunk, _) = locate(id);
        assert!(chunk < CHUNKS, "an arena holds at most four thousand million pages");
        self.chunks[chunk].get_or_init(|| (0..FIRST_CHUNK << chunk).map(|_| Cell::default()).collect());
        versions.end += 1;
        id
    }

    /// Returns numbers from [`Pages::reserve_many`] of which no use was made.
    pub(crate) fn give_back_reserved(&self, ids: Vec<PageId>) {
        self.versions().free.extend(ids);
    }

    /// Returns numbers from [`Pages::reserve`] that came to nothing.
    pub(crate) fn give_back(&self, ids: &[PageId]) {
        for id in ids {
            *self.cell(*id).lock() = Held::default();
        }
        self.versions().free.extend_from_slice(ids);
    }

    /// Makes a version from pages that are all new, and returns its number. It is alive until [`Pages::release`].
    pub(crate) fn publish(
        &self,
        parent: Option<u64>,
        roots: Vec<PageId>,
        retired: Vec<PageId>,
        pages: impl Iterator<Item = (PageId, Page)>,
    ) -> u64 {
        let number = self.versions().add(parent, roots, retired);
        let (mut memory, mut count) = (0, 0);
        for (id, page) in pages {
            memory += page.memory();
            count += 1;
            *self.cell(id).lock() = Held { page: Some(Arc::new(page)), at: None, birth: number, used: true };
        }
        self.memory.fetch_add(memory, Ordering::Relaxed);
        self.unwritten.fetch_add(count, Ordering::Relaxed);
        number
    }

    /// Makes a version whose root pages are written and not in memory.
    pub(crate) fn publish_written(&self, roots: &[PageAt]) -> (u64, Vec<PageId>) {
        let ids: Vec<PageId> = roots.iter().map(|_| self.reserve()).collect();
        let number = self.versions().add(None, ids.clone(), Vec::new());
        for (id, at) in ids.iter().zip(roots) {
            *self.cell(*id).lock() = Held { page: None, at: Some(*at), birth: number, used: false };
        }
        (number, ids)
    }

    /// Ends a version: pages that no other needs are gone.
    pub(crate) fn release(&self, number: u64) {
        let mut freed = Vec::new();
        self.versions().release(number, &mut freed, self);
        let (mut memory, mut unwritten) = (0, 0);
        let mut spare = Spare::default();
        for id in &freed {
            let held = mem::take(&mut *self.cell(*id).lock());
            unwritten += usize::from(held.at.is_none());
            if let Some(page) = held.page {
                memory += page.memory();
                if let Some(page) = Arc::into_inner(page) {
                    spare.put(page);
                }
            }
        }
        self.give_back_spare(spare);
        self.memory.fetch_sub(memory, Ordering::Relaxed);
        self.unwritten.fetch_sub(unwritten, Ordering::Relaxed);
        // Only now: a number in the free list can be used again at once.
        self.versions().free.append(&mut freed);
    }

    fn cell(&self, id: PageId) -> &Cell {
        let (chunk, offset) = locate(id);
        &self.chunks[chunk].get().expect("a number in use has a cell")[offset]
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        // Every change of the versions is complete before anything in it can panic.
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loading(&self, id: PageId) -> MutexGuard<'_, ()> {
        self.loading[id.0 as usize % LOAD_LOCKS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Hasher> fmt::Debug for Pages<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pages").field(&self.stats()).finish()
    }
}

/// The chunk and the offset of a number.
fn locate(id: PageId) -> (usize, usize) {
    let shifted = u64::from(id.0) + u64::from(FIRST_CHUNK);
    let chunk = shifted.ilog2() - FIRST_CHUNK.ilog2();
    let offset = usize::try_from(shifted - (u64::from(FIRST_CHUNK) << chunk)).expect("an offset is below 2^32");
    (chunk as usize, offset)
}

/// Which versions there are, and which pages go with them.
///
/// Versions form a tree: each is made from a parent, and two may share one (a draft that was dropped, an old height
/// rebuilt). A version remembers the pages of its parent that it no longer has. Since numbers ascend and a page is not
/// younger than the page above it, a page of version `v` is shared with its parent `p` exactly if its birth is at most
/// `p`; so what a version alone has can be found from its roots down.
#[derive(Default)]
struct Versions {
    all: BTreeMap<u64, Version>,
    last: u64,
    free: Vec<PageId>,
    /// Numbers from here on were never used.
    end: u32,
}

struct Version {
    parent: Option<u64>,
    children: Vec<u64>,
    alive: bool,
    roots: Vec<PageId>,
    /// Pages of the parent that this version and all after it lack.
    retired: Vec<PageId>,
}

impl Versions {
    fn add(&mut self, parent: Option<u64>, roots: Vec<PageId>, retired: Vec<PageId>) -> u64 {
        self.last += 1;
        let number = self.last;
        if let Some(parent) = parent {
            let parent = self.all.get_mut(&parent).expect("a version is made from one that is alive");
            parent.children.push(number);
        }
        self.all.insert(number, Version { parent, children: Vec::new(), alive: true, roots, retired });
        number
    }

    fn release<H: Hasher>(&mut self, number: u64, freed: &mut Vec<PageId>, pages: &Pages<H>) {
        self.all.get_mut(&number).expect("a version is released once").alive = false;
        let mut next = Some(number);
        while let Some(number) = next.take() {
            let version = &self.all[&number];
            if version.alive {
                return;
            }
            match version.children[..] {
                [] => next = self.drop_last(number, freed, pages),
                [child] => self.join(number, child, freed, pages),
                // Its children share pages through it.
                _ => {}
            }
        }
    }

    /// Drops a version that nothing was made from; returns its parent.
    fn drop_last<H: Hasher>(&mut self, number: u64, freed: &mut Vec<PageId>, pages: &Pages<H>) -> Option<u64> {
        let version = self.all.remove(&number).expect("it was just looked at");
        let mut open = version.roots;
        while let Some(id) = open.pop() {
            let held = pages.cell(id).lock();
            if version.parent.is_some_and(|parent| held.birth <= parent) {
                continue;
            }
            freed.push(id);
            open.extend(held.page.iter().flat_map(|page| page.children()));
        }
        let parent = version.parent?;
        self.all.get_mut(&parent).expect("parents outlive their children").children.retain(|child| *child != number);
        Some(parent)
    }

    /// Takes a version out from between its parent and its only child. What it alone had is gone; what it had lost,
    /// its child has lost too.
    fn join<H: Hasher>(&mut self, number: u64, child: u64, freed: &mut Vec<PageId>, pages: &Pages<H>) {
        let mut version = self.all.remove(&number).expect("it was just looked at");
        let heir = self.all.get_mut(&child).expect("children are known to their parents");
        for id in heir.retired.drain(..) {
            match version.parent {
                Some(parent) if pages.cell(id).lock().birth <= parent => version.retired.push(id),
                _ => freed.push(id),
            }
        }
        heir.parent = version.parent;
        if let Some(parent) = version.parent {
            heir.retired = version.retired;
            let siblings = &mut self.all.get_mut(&parent).expect("parents outlive their children").children;
            *siblings.iter_mut().find(|sibling| **sibling == number).expect("it was made from there") = child;
        }
    }
}

/// What a parent's slot says of the page below it.
pub(crate) fn expected<'a>(slot: &Slot, prefix: &'a [u8]) -> Option<(PageId, Expected<'a>)> {
    match slot {
        Slot::Child { hash, totals, id, crit } => {
            Some((*id, Expected { hash: *hash, totals: *totals, below: Some((*crit, prefix)) }))
        }
        Slot::Entry { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_chunk_after_chunk() {
        let mut expected = (0, 0);
        for id in 0..FIRST_CHUNK * 9 {
            assert_eq!(locate(PageId(id)), expected);
            expected.1 += 1;
            if expected.1 == (FIRST_CHUNK as usize) << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
    }
}
