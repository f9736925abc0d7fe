//! The arena: pages by number, in memory or not, shared by all versions of a state.
//!
//! A page never changes once it is in the arena. A new version brings new pages for what it changed and says which of
//! its parent's pages it no longer has; everything else it shares. Pages are not counted one by one: who still needs a
//! page follows from the versions that are alive ([`Versions`]).
//!
//! A page that has been written out can be dropped from memory and is read again when it is needed. What comes back
//! from [`Backing`] is not trusted: it is decoded strictly and proven by the hash its parent holds (spec: TREE-18).
//! Only pages without pages below them are dropped, since the numbers of those below live in their parent.
//!
//! Nothing that stands at a number is ever changed but by taking it away, which asks for the lock of a thousand numbers
//! alone. So whoever applies a diff holds these locks shared ([`Reading`]) and meets pages without a lock or a count for
//! each. Who takes away never waits for them: what is held is taken away later. Hence a lock that is wanted shared
//! is always had at once.

use crate::descent::TOGETHER;
use crate::fresh::NewPage;
use crate::page::{Page, PageId, Slot, Spare};
use crate::spread::Hands;
use crate::stored::{self, Expected};
use crate::sync::{Mutex, MutexGuard};
use crate::{Backing, Hasher, PageAt, Place, ReadError};
use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::marker::PhantomData;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

/// Numbers that share a lock.
const SHARD: u32 = 1 << 10;
/// Chunk `n` of the arena has `1 << n` shards, so shards never move and finding one takes no lock.
const CHUNKS: usize = 22;
/// Pages that may wait to be taken apart.
const GONE_MAX: usize = 8192;
/// Loading a page is done under one of this many locks, so that no page is loaded twice at a time.
const LOAD_LOCKS: usize = 64;

/// The pages of a state and its versions. Share one among all versions of one store.
pub struct Pages<H> {
    backing: Arc<dyn Backing>,
    chunks: [OnceLock<Box<[Shard]>>; CHUNKS],
    versions: Mutex<Versions>,
    /// Numbers that nobody needs, and whose pages could not be taken away yet.
    dead: Mutex<Vec<PageId>>,
    /// Pages that were taken away and wait to be taken apart.
    gone: Mutex<Vec<Arc<Page>>>,
    loading: [Mutex<()>; LOAD_LOCKS],
    memory: AtomicUsize,
    unwritten: AtomicUsize,
    /// Where eviction goes on: it takes the arena round and round.
    hand: AtomicU32,
    /// For each thread that makes pages.
    spare: Mutex<Box<[Spare]>>,
    hands: Hands,
    _hasher: PhantomData<fn() -> H>,
}

/// What stands at a thousand numbers.
type Cells = Box<[Cell]>;

struct Shard(RwLock<Cells>);

/// What stands at one number.
#[derive(Default)]
#[repr(align(64))]
struct Cell {
    page: OnceLock<Arc<Page>>,
    /// Where the page is written.
    at: OnceLock<PageAt>,
    /// The version that made the page.
    birth: AtomicU64,
    /// Used since the hand of eviction last passed.
    used: AtomicBool,
}

impl Cell {
    /// The page, which then counts as used.
    fn touch(&self) -> Option<&Arc<Page>> {
        // Stored only when it changes, so that readers of one page do not fight over its cache line.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        self.page.get()
    }

    fn birth(&self) -> u64 {
        self.birth.load(Ordering::Relaxed)
    }

    /// Puts a page into an empty cell.
    fn put(&self, page: Arc<Page>) {
        assert!(self.page.set(page).is_ok(), "a page never changes");
    }

    fn put_place(&self, at: PageAt) {
        assert!(self.at.set(at).is_ok(), "a page is written once");
    }
}

impl Shard {
    fn new() -> Self {
        Self(RwLock::new((0..SHARD).map(|_| Cell::default()).collect()))
    }

    /// Never waits for long: whoever has it alone takes something away and is done, and nobody waits to have it alone.
    fn read(&self) -> RwLockReadGuard<'_, Cells> {
        // Nothing panics between two changes that belong together.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To take something away; none while others read here.
    fn alone(&self) -> Option<RwLockWriteGuard<'_, Cells>> {
        match self.0.try_write() {
            Ok(cells) => Some(cells),
            Err(TryLockError::Poisoned(cells)) => Some(cells.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Pages in memory, which stay there for as long as this lives. Numbers that were given out since are not in it.
pub(crate) struct Reading<'p>(Vec<RwLockReadGuard<'p, Cells>>);

impl Reading<'_> {
    /// A page if it is in memory, which then counts as used.
    pub(crate) fn touch(&self, id: PageId) -> Option<&Arc<Page>> {
        let cells = self.0.get((id.0 / SHARD) as usize)?;
        cells[(id.0 % SHARD) as usize].touch()
    }

    fn cell(&self, id: PageId) -> &Cell {
        &self.0[(id.0 / SHARD) as usize][(id.0 % SHARD) as usize]
    }

    /// Where a page is written, if it is.
    pub(crate) fn at(&self, id: PageId) -> Option<PageAt> {
        self.cell(id).at.get().copied()
    }

    /// Looks at pages all at once, where looking at one after the other would wait for each.
    fn look(&self, ids: impl Iterator<Item = PageId>) {
        let cells = ids.map(|id| self.cell(id));
        black_box(cells.filter_map(|cell| cell.page.get()).fold(0, |sum, page| sum ^ page.memory()));
    }

    /// Whether a page was used of late: asked ahead, so that [`Reading::touch`] need not wait for its cell.
    pub(crate) fn is_used(&self, id: PageId) -> bool {
        let cells = self.0.get((id.0 / SHARD) as usize);
        cells.is_some_and(|cells| cells[(id.0 % SHARD) as usize].used.load(Ordering::Relaxed))
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
            dead: Mutex::default(),
            gone: Mutex::default(),
            loading: [const { Mutex::new(()) }; LOAD_LOCKS],
            memory: AtomicUsize::new(0),
            unwritten: AtomicUsize::new(0),
            hand: AtomicU32::new(0),
            spare: Mutex::new((0..threads.get()).map(|_| Spare::default()).collect()),
            hands: Hands::new(threads),
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
    ///
    /// While a diff is being applied, what it may meet stays. Whoever applies one after the other calls
    /// [`Pages::evict_some`] in between.
    pub fn evict(&self, memory_bytes: usize) -> usize {
        // Once round takes the marks of use away, a second time round finds what has none.
        let end = self.versions().end;
        self.evict_some(memory_bytes, u64::from(end) * 2)
    }

    /// As [`Pages::evict`], but looks at no more than so many pages, and goes on behind them the next time.
    pub fn evict_some(&self, memory_bytes: usize, pages: u64) -> usize {
        let end = self.versions().end;
        let pages = if end == 0 { 0 } else { pages };
        for _ in 0..pages {
            if self.memory.load(Ordering::Relaxed) <= memory_bytes {
                break;
            }
            let id = PageId(self.hand.fetch_add(1, Ordering::Relaxed) % end);
            let (shard, offset) = self.shard(id);
            let Some(mut cells) = shard.alone() else { continue };
            let cell = &mut cells[offset];
            if cell.at.get().is_none() || mem::take(cell.used.get_mut()) {
                continue;
            }
            if cell.page.get().is_some_and(|page| page.children().next().is_none()) {
                let gone = cell.page.take();
                drop(cells);
                self.memory.fetch_sub(gone.map_or(0, |page| page.memory()), Ordering::Relaxed);
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
        let (at, birth) = self.with(id, |cell| (cell.at.get().copied(), cell.birth()));
        let at = at.expect("a page that is not in memory was written");
        let bytes = self.backing.page(at)?;
        let mut below = Vec::new();
        let decoded = stored::decode::<H>(&bytes, expected, |at| {
            let id = self.reserve();
            below.push((id, at));
            id
        });
        let page = match decoded {
            Ok(page) => Arc::new(page),
            Err(error) => {
                self.give_back(below.into_iter().map(|(id, _)| id));
                return Err(ReadError::damaged(format!("page of {} bytes at {:#x}: {error}", at.len, at.place)));
            }
        };
        for (id, at) in &below {
            self.with(*id, |cell| {
                // Not younger than its parent, and given up with it (see `Versions`).
                cell.birth.store(birth, Ordering::Relaxed);
                cell.put_place(*at);
            });
        }
        if keep || !below.is_empty() {
            self.memory.fetch_add(page.memory(), Ordering::Relaxed);
            self.with(id, |cell| cell.put(page.clone()));
        }
        Ok(page)
    }

    /// The page if it is in memory, which then counts as used.
    pub(crate) fn touch(&self, id: PageId) -> Option<Arc<Page>> {
        self.with(id, |cell| cell.touch().cloned())
    }

    /// The page if it is in memory.
    pub(crate) fn peek(&self, id: PageId) -> Option<Arc<Page>> {
        self.with(id, |cell| cell.page.get().cloned())
    }

    /// Where a page is written, if it is.
    pub(crate) fn at(&self, id: PageId) -> Option<PageAt> {
        self.with(id, |cell| cell.at.get().copied())
    }

    /// Notes where a page was written.
    pub(crate) fn written(&self, id: PageId, at: PageAt) {
        self.with(id, |cell| cell.put_place(at));
        self.unwritten.fetch_sub(1, Ordering::Relaxed);
    }

    /// The threads on which a large diff is applied.
    pub(crate) fn hands(&self) -> &Hands {
        &self.hands
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
        self.chunks[chunk].get_or_init(|| (0..1 << chunk).map(|_| Shard::new()).collect());
        versions.end += 1;
        id
    }

    /// Returns numbers that were reserved and of which no use was made.
    pub(crate) fn give_back(&self, ids: impl IntoIterator<Item = PageId>) {
        self.versions().free.extend(ids);
    }

    /// Holds all pages that are in memory where they are, until it is dropped.
    pub(crate) fn reading(&self) -> Reading<'_> {
        Reading(self.chunks.iter().map_while(OnceLock::get).flatten().map(Shard::read).collect())
    }

    /// Makes a version from pages that are all new, and returns its number. It is alive until [`Pages::release`]. `places` says
    /// where the value of each entry is that the diff wrote.
    pub(crate) fn publish(
        &self,
        parent: Option<u64>,
        roots: Vec<PageId>,
        retired: Vec<PageId>,
        pages: Vec<Vec<NewPage>>,
        places: &[Place],
    ) -> u64 {
        let number = self.versions().add(parent, roots, retired);
        let reading = self.reading();
        let counts = self.hands.each(pages, |pages| {
            black_box(pages.iter().fold(0, |sum, new| sum ^ reading.cell(new.id).birth()));
            let (count, mut memory) = (pages.len(), 0);
            for new in pages {
                let (id, page) = new.settled(places);
                memory += page.memory();
                let cell = reading.cell(id);
                cell.birth.store(number, Ordering::Relaxed);
                cell.used.store(true, Ordering::Relaxed);
                cell.put(Arc::new(page));
            }
            (count, memory)
        });
        for (count, memory) in counts {
            self.unwritten.fetch_add(count, Ordering::Relaxed);
            self.memory.fetch_add(memory, Ordering::Relaxed);
        }
        number
    }

    /// Makes a version whose root pages are written and not in memory.
    pub(crate) fn publish_written(&self, roots: &[PageAt]) -> (u64, Vec<PageId>) {
        let ids: Vec<PageId> = roots.iter().map(|_| self.reserve()).collect();
        let number = self.versions().add(None, ids.clone(), Vec::new());
        for (id, at) in ids.iter().zip(roots) {
            self.with(*id, |cell| {
                cell.birth.store(number, Ordering::Relaxed);
                cell.put_place(*at);
            });
        }
        (number, ids)
    }

    /// Ends a version: pages that no other needs are gone, or go when nobody is at them.
    pub(crate) fn release(&self, number: u64) {
        let mut dead = mem::take(&mut *self.dead());
        let reading = self.reading();
        self.versions().release(number, &mut dead, &reading);
        reading.look(dead.iter().copied());
        drop(reading);
        let (mut unwritten, mut memory) = (0, 0);
        let mut free = Vec::with_capacity(dead.len());
        let mut gone = Vec::with_capacity(dead.len());
        dead.retain(|id| {
            let (shard, offset) = self.shard(*id);
            let Some(mut cells) = shard.alone() else { return true };
            let cell = mem::take(&mut cells[offset]);
            drop(cells);
            unwritten += usize::from(cell.at.get().is_none());
            if let Some(page) = cell.page.into_inner() {
                memory += page.memory();
                gone.push(page);
            }
            free.push(*id);
            false
        });
        self.memory.fetch_sub(memory, Ordering::Relaxed);
        self.unwritten.fetch_sub(unwritten, Ordering::Relaxed);
        // Only now: a number in the free list can be used again at once.
        self.give_back(free);
        self.dead().append(&mut dead);
        let mut waiting = self.gone();
        waiting.append(&mut gone);
        if waiting.len() > GONE_MAX {
            drop(waiting);
            self.take_apart();
        }
    }

    /// Takes pages that are gone apart, to make new ones of: most of it is waiting for memory.
    pub(crate) fn take_apart(&self) {
        let gone = mem::take(&mut *self.gone());
        let mut spare = Spare::default();
        let mut gone = gone.into_iter();
        while gone.len() > 0 {
            black_box(gone.as_slice().iter().take(TOGETHER).fold(0, |sum, page| sum ^ page.touch()));
            gone.by_ref().take(TOGETHER).filter_map(Arc::into_inner).for_each(|page| spare.put(page));
        }
        self.give_back_spare(spare);
    }

    fn gone(&self) -> MutexGuard<'_, Vec<Arc<Page>>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dead(&self) -> MutexGuard<'_, Vec<PageId>> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stands at a number in use.
    fn with<T>(&self, id: PageId, look: impl FnOnce(&Cell) -> T) -> T {
        let (shard, offset) = self.shard(id);
        look(&shard.read()[offset])
    }

    fn shard(&self, id: PageId) -> (&Shard, usize) {
        let (chunk, shard) = locate(id);
        (&self.chunks[chunk].get().expect("a number in use has a cell")[shard], (id.0 % SHARD) as usize)
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

/// The chunk that the shard of a number is in, and its place there.
fn locate(id: PageId) -> (usize, usize) {
    let shifted = id.0 / SHARD + 1;
    let chunk = shifted.ilog2();
    (chunk as usize, (shifted - (1 << chunk)) as usize)
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

    fn release(&mut self, number: u64, freed: &mut Vec<PageId>, reading: &Reading<'_>) {
        self.all.get_mut(&number).expect("a version is released once").alive = false;
        let mut next = Some(number);
        while let Some(number) = next.take() {
            let version = &self.all[&number];
            if version.alive {
                return;
            }
            match version.children[..] {
                [] => next = self.drop_last(number, freed, reading),
                [child] => self.join(number, child, freed, reading),
                // Its children share pages through it.
                _ => {}
            }
        }
    }

    /// Drops a version that nothing was made from; returns its parent.
    fn drop_last(&mut self, number: u64, freed: &mut Vec<PageId>, reading: &Reading<'_>) -> Option<u64> {
        let version = self.all.remove(&number).expect("it was just looked at");
        let mut open = version.roots;
        while let Some(id) = open.pop() {
            let cell = reading.cell(id);
            if version.parent.is_none_or(|parent| cell.birth() > parent) {
                freed.push(id);
                open.extend(cell.page.get().into_iter().flat_map(|page| page.children()));
            }
        }
        let parent = version.parent?;
        self.all.get_mut(&parent).expect("parents outlive their children").children.retain(|child| *child != number);
        Some(parent)
    }

    /// Takes a version out from between its parent and its only child. What it alone had is gone; what it had lost,
    /// its child has lost too.
    fn join(&mut self, number: u64, child: u64, freed: &mut Vec<PageId>, reading: &Reading<'_>) {
        let mut version = self.all.remove(&number).expect("it was just looked at");
        let heir = self.all.get_mut(&child).expect("children are known to their parents");
        for id in heir.retired.drain(..) {
            match version.parent {
                Some(parent) if reading.cell(id).birth() <= parent => version.retired.push(id),
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
    fn shards_fill_chunk_after_chunk() {
        let mut expected = (0, 0);
        for shard in 0..1000 {
            assert_eq!(locate(PageId(shard * SHARD)), expected);
            assert_eq!(locate(PageId(shard * SHARD + SHARD - 1)), expected);
            expected.1 += 1;
            if expected.1 == 1 << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        assert_eq!(locate(PageId(u32::MAX)).0, CHUNKS);
    }
}
