//! The arena: pages by number, in memory or not, shared by all versions of a state.
//!
//! A page never changes once it is in the arena. A new version brings new pages for what it changed and says which of
//! its parent's pages it no longer has; everything else it shares. Pages are not counted one by one: who still needs a
//! page follows from the versions that are alive ([`Versions`]).
//!
//! A page that has been written out can be dropped from memory and is read again when it is needed. What comes back
//! from [`Backing`] is not trusted: it is decoded strictly and proven by the hash its parent holds (spec: TREE-18).
//! Of a page with pages below it the numbers of those stay, which are a fiftieth of it: other versions know them too.
//!
//! So the bytes of pages in memory have a bound ([`Pages::keep_within`]): whoever reads a page beyond it drops others
//! first, and if none can go it has the page for itself alone. What was never written stays, and so does what was
//! written and may not be readable yet ([`Written`]).
//!
//! Nothing that stands at a number is ever changed but by taking it away, which asks for the lock of a thousand numbers
//! alone. So whoever applies a diff holds these locks shared ([`Reading`]) and meets pages without a lock or a count for
//! each. Who takes away never waits for them: what is held is taken away later. Hence a lock that is wanted shared
//! is always had at once.

use crate::descent::TOGETHER;
use crate::entries::Glance;
use crate::fresh::NewPage;
use crate::page::{Base, Page, PageId, Slot, Spare};
use crate::spread::Hands;
use crate::stored::{self, Expected};
use crate::sync::{Mutex, MutexGuard};
use crate::{Backing, Hasher, PageAt, Place, ReadError, Totals};
use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::marker::PhantomData;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

/// Numbers that share a lock.
const SHARD: u32 = 1 << 10;
/// Chunk `n` of the arena has `1 << n` shards, so shards never move and finding one takes no lock.
const CHUNKS: usize = 22;
/// Pages that may wait to be taken apart.
const GONE_MAX: usize = 8192;
/// Of those that have waited, so many go with each version that ends: more than a block of a thousand writes leaves.
const BURIED_BESIDE: usize = 2048;
/// So many go at a time where nobody waits.
const TIDIED_TOGETHER: usize = 1024;
/// So many are taken apart ahead of a diff.
pub(crate) const APART_AHEAD: usize = 4096;
/// Loading a page is done under one of this many locks, so that no page is loaded twice at a time.
const LOAD_LOCKS: usize = 64;
/// Numbers next to one another that eviction looks at under one lock.
const RUN: u32 = 64;
/// Runs looked at for one page that is read beyond the bound: where one page of fifty is in memory, a dozen find one.
const READ_RUNS: u32 = 64;
/// Runs looked at for the new pages of a version: enough for those of a thousand writes far from one another.
const PUBLISH_RUNS: u32 = 1024;

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
    /// Numbers from here on were never used. It grows under the lock of the versions.
    end: AtomicU32,
    memory: AtomicUsize,
    /// Bytes that there may be when one more page is read.
    memory_max: AtomicUsize,
    unwritten: AtomicUsize,
    unwritten_memory: AtomicUsize,
    /// Flushes that began, and the last of those of which all can be read.
    flushes: AtomicU32,
    settled: AtomicU32,
    /// The run where eviction goes on: it takes the arena round and round.
    hand: AtomicU32,
    /// For each thread that makes pages.
    spare: Mutex<Box<[Spare]>>,
    hands: Hands,
    _hasher: PhantomData<fn() -> H>,
}

/// What stands at a thousand numbers.
type Cells = Box<[Cell]>;

/// Made when the first of its numbers is given out.
#[derive(Default)]
struct Shard(OnceLock<RwLock<Cells>>);

/// The place of what is not written. No page is ever written there (spec: TREE-17).
const NOWHERE: u64 = u64::MAX;
/// In the place of a base: nobody has looked yet what the page is written beside. If one ever lies there, it is looked at each time.
const NOT_LOOKED: u64 = u64::MAX - 1;

/// What stands at one number.
#[repr(align(64))]
struct Cell {
    page: OnceLock<Arc<Page>>,
    /// The numbers of the pages below, if there are any: known from when they were given until the number is free, whether
    /// the page is in memory or not.
    below: OnceLock<Box<Below>>,
    /// The version that made the page.
    birth: AtomicU64,
    /// Where the page is written, and how long it is there.
    place: AtomicU64,
    len: AtomicU16,
    /// Where the page lies that it is written beside, from when it was written or read: [`NOWHERE`] if it is whole.
    base: AtomicU64,
    /// The flush that wrote it; none if it was found written.
    flush: AtomicU32,
    /// Used since the hand of eviction last passed.
    used: AtomicBool,
    /// [`WRITTEN`], [`WHOLE`] and [`PASSED`]: of a page that a flush writes and a commit passes by at the same time, exactly one
    /// of the two learns that both happened.
    told: AtomicU8,
}

/// A flush has written it.
const WRITTEN: u8 = 1;
/// It did so whole, whatever it could have been written beside.
const WHOLE: u8 = 2;
/// The last version does without it.
const PASSED: u8 = 4;

/// Where a page lies as it was met, as short as it can be: a diff notes one for each page.
#[derive(Clone, Copy)]
pub(crate) struct Lies {
    place: u64,
    len: u32,
    /// Written whole by a flush. One that was read says itself what it is.
    is_whole: bool,
}

impl Lies {
    /// What a page, made from this one that lies here, can be written beside.
    pub(crate) fn base(&self, page: &Page) -> Option<Base> {
        match page.base {
            Some(base) if self.place == NOWHERE || !self.is_whole => Some(base),
            _ => Base::whole(self.at()?, page.shape.len()),
        }
    }

    /// Where it is written and what it is written beside, as far as it is.
    pub(crate) fn needs(&self, page: &Page) -> [Option<PageAt>; 2] {
        let at = self.at();
        [at, page.base.filter(|_| at.is_some() && !self.is_whole).map(|base| base.at())]
    }

    fn at(&self) -> Option<PageAt> {
        (self.place != NOWHERE).then_some(PageAt { place: self.place, len: self.len })
    }
}

/// In a box, so that a cell stays as long as a cache line.
struct Below(Box<[PageId]>);

impl Default for Cell {
    fn default() -> Self {
        Self {
            page: OnceLock::new(),
            below: OnceLock::new(),
            birth: AtomicU64::new(0),
            place: AtomicU64::new(NOWHERE),
            len: AtomicU16::new(0),
            base: AtomicU64::new(NOT_LOOKED),
            flush: AtomicU32::new(0),
            used: AtomicBool::new(false),
            told: AtomicU8::new(0),
        }
    }
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

    /// Where the page is written, if it is.
    fn at(&self) -> Option<PageAt> {
        let place = self.place.load(Ordering::Acquire);
        (place != NOWHERE).then(|| PageAt { place, len: self.len.load(Ordering::Relaxed).into() })
    }

    fn lies(&self) -> Lies {
        let place = self.place.load(Ordering::Acquire);
        let is_whole = self.told.load(Ordering::Relaxed) & WHOLE != 0;
        Lies { place, len: self.len.load(Ordering::Relaxed).into(), is_whole }
    }

    /// Where the page lies that it is written beside, if it is; none if nobody has looked yet. Whoever knows finds the numbers of the
    /// pages below with the page or at [`Cell::below`].
    fn beside(&self) -> Option<Option<Place>> {
        match self.base.load(Ordering::Acquire) {
            NOT_LOOKED => None,
            base => Some((base != NOWHERE).then_some(Place(base))),
        }
    }

    fn put_beside(&self, base: Option<PageAt>) {
        self.base.store(base.map_or(NOWHERE, |base| base.place), Ordering::Release);
    }

    /// Puts a page into an empty cell. Returns the bytes that are in memory since.
    fn put(&self, page: Arc<Page>) -> usize {
        let memory = page.enter();
        assert!(self.page.set(page).is_ok(), "a page never changes");
        memory
    }

    fn put_place(&self, at: PageAt, flush: u32) {
        assert_eq!(self.place.load(Ordering::Relaxed), NOWHERE, "a page is written once");
        assert_ne!(at.place, NOWHERE, "there is no such place");
        let len = u16::try_from(at.len).expect("a page has less than 64 KiB");
        self.len.store(len, Ordering::Relaxed);
        self.flush.store(flush, Ordering::Relaxed);
        self.place.store(at.place, Ordering::Release);
    }

    /// Notes where a page was found written.
    fn put_found(&self, at: PageAt) {
        self.put_place(at, 0);
        self.told.fetch_or(WRITTEN, Ordering::Release);
    }

    /// The numbers of the pages below, as far as they were given.
    fn below(&self) -> &[PageId] {
        self.below.get().map_or(&[], |below| &below.0)
    }

    /// Adds the numbers of the pages below to `out`, each once.
    fn put_below(&self, out: &mut Vec<PageId>) {
        let first = out.len();
        out.extend(self.page.get().into_iter().flat_map(|page| page.children()));
        let said = out.len();
        for id in self.below() {
            if !out[first..said].contains(id) {
                out.push(*id);
            }
        }
    }

    /// Takes the page away if it can go: if it can be read again, has not been used since this was last asked, and no
    /// other stands on it.
    fn take_page(&mut self, settled: u32) -> Option<Arc<Page>> {
        if *self.place.get_mut() == NOWHERE || *self.flush.get_mut() > settled {
            return None;
        }
        let page = self.page.get()?;
        if mem::take(self.used.get_mut()) || page.is_stood_on() {
            return None;
        }
        if self.below.get().is_none() && page.children().next().is_some() {
            let below = Below(page.children().collect());
            self.below.get_or_init(|| Box::new(below));
        }
        // What was mended in the place of another says of itself what is below it.
        if !page.children().eq(self.below().iter().copied()) {
            return None;
        }
        self.page.take()
    }
}

impl Shard {
    fn cells(&self) -> &RwLock<Cells> {
        self.0.get().expect("a number in use has a cell")
    }

    fn make(&self) {
        self.0.get_or_init(|| RwLock::new((0..SHARD).map(|_| Cell::default()).collect()));
    }

    /// Never waits for long: whoever has it alone takes something away and is done, and nobody waits to have it alone.
    fn read(&self) -> RwLockReadGuard<'_, Cells> {
        // Nothing panics between two changes that belong together.
        self.cells().read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To take something away; none while others read here.
    fn alone(&self) -> Option<RwLockWriteGuard<'_, Cells>> {
        match self.cells().try_write() {
            Ok(cells) => Some(cells),
            Err(TryLockError::Poisoned(cells)) => Some(cells.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Pages that a flush has written, on their way to where they can be read again: they stay in memory until
/// [`Written::settle`]. Dropped, they stay until another flush of the same arena settles.
#[must_use = "what is never settled stays in memory"]
pub struct Written<H: Hasher> {
    pages: Arc<Pages<H>>,
    flush: u32,
    count: usize,
    memory: usize,
    unneeded: Vec<PageAt>,
}

impl<H: Hasher> Written<H> {
    pub(crate) fn new(pages: &Arc<Pages<H>>) -> Self {
        let flush = pages.flushes.fetch_add(1, Ordering::Relaxed) + 1;
        Self { pages: pages.clone(), flush, count: 0, memory: 0, unneeded: Vec::new() }
    }

    /// Bytes of [`PagesStats::unwritten_bytes`] that were of these pages.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory
    }

    /// What the last version no longer needs since this flush: pages that others stood beside and that were now written whole,
    /// and what was written although the version has passed it by meanwhile.
    #[must_use]
    pub fn unneeded(&self) -> &[PageAt] {
        &self.unneeded
    }

    /// Notes where a page was written, and whether whole.
    pub(crate) fn note(&mut self, id: PageId, page: &Page, at: PageAt, is_whole: bool) {
        let pages = &*self.pages;
        let told = pages.with(id, |cell| {
            // Before the place: whoever sees that takes the page for what it is there.
            cell.told.fetch_or(if is_whole { WHOLE } else { 0 }, Ordering::Relaxed);
            cell.put_beside(page.base.filter(|_| !is_whole).map(|base| base.at()));
            cell.put_place(at, self.flush);
            cell.told.fetch_or(WRITTEN, Ordering::AcqRel)
        });
        if told & PASSED != 0 {
            self.unneeded.push(at);
        } else if is_whole {
            self.unneeded.extend(page.base.map(|base| base.at()));
        }
        pages.unwritten.fetch_sub(1, Ordering::Relaxed);
        pages.unwritten_memory.fetch_sub(page.held(), Ordering::Relaxed);
        self.count += 1;
        self.memory += page.held();
    }

    /// Says that all this flush has written, and any before it, can be read through [`Backing`] from now on, and will be
    /// after a crash. Returns how many pages this one wrote.
    pub fn settle(self) -> usize {
        self.pages.settled.fetch_max(self.flush, Ordering::Release);
        self.count
    }
}

impl<H: Hasher> fmt::Debug for Written<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages of flush {}", self.count, self.flush)
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

    /// Where a page lies as things stand.
    pub(crate) fn lies(&self, id: PageId) -> Lies {
        self.cell(id).lies()
    }

    /// Notes that the last version does without some pages. Tells, of each that it had not passed by before, where it is
    /// written and whether whole.
    pub(crate) fn pass<'a>(
        &'a self,
        ids: impl Iterator<Item = PageId> + Clone + 'a,
    ) -> impl Iterator<Item = Option<Option<(PageAt, bool)>>> + 'a {
        // All at once first: what follows waits for each.
        black_box(ids.clone().fold(0, |sum, id| sum ^ self.cell(id).told.load(Ordering::Relaxed)));
        ids.map(|id| {
            let cell = self.cell(id);
            let told = cell.told.fetch_or(PASSED, Ordering::AcqRel);
            (told & PASSED == 0).then(|| {
                let at = (told & WRITTEN != 0).then(|| cell.at().expect("it was written"));
                at.map(|at| (at, told & WHOLE != 0))
            })
        })
    }

    /// Looks at pages all at once, where looking at one after the other would wait for each.
    fn look(&self, ids: impl Iterator<Item = PageId> + Clone) {
        let pages = ids.filter_map(|id| self.cell(id).page.get());
        black_box(pages.clone().fold(0, |sum, page| sum ^ page.memory()));
        // And what they stand on.
        black_box(pages.fold(0, |sum, page| sum ^ page.held()));
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
    /// Bytes of pages in memory, about; what several stand on counts once. Besides, each number in use takes 64.
    pub memory_bytes: usize,
    /// Pages that were never written: they stay in memory.
    pub unwritten_pages: usize,
    /// Bytes that those keep in memory, at most; what several stand on counts for each.
    pub unwritten_bytes: usize,
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
            end: AtomicU32::new(0),
            memory: AtomicUsize::new(0),
            memory_max: AtomicUsize::new(usize::MAX),
            unwritten: AtomicUsize::new(0),
            unwritten_memory: AtomicUsize::new(0),
            flushes: AtomicU32::new(0),
            settled: AtomicU32::new(0),
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
            unwritten_bytes: self.unwritten_bytes(),
            pages: self.end() as usize - versions.free.len(),
            versions: versions.all.len(),
        }
    }

    /// Bytes that pages keep in memory that were never written, at most; see [`PagesStats::unwritten_bytes`].
    #[must_use]
    pub fn unwritten_bytes(&self) -> usize {
        self.unwritten_memory.load(Ordering::Relaxed)
    }

    /// Bounds the bytes of pages in memory; before, they have no bound. A page that is read is kept only within it. New pages
    /// stay until they are written, whatever the bound, and others go for them.
    pub fn keep_within(&self, memory_bytes: usize) {
        self.memory_max.store(memory_bytes, Ordering::Relaxed);
    }

    /// Drops pages that are written and have not been used of late, until at most `memory_bytes` are held or nothing
    /// more can go. Returns the bytes held afterwards. While a diff is being applied, what it may meet stays.
    pub fn evict(&self, memory_bytes: usize) -> usize {
        self.drop_some(memory_bytes, u32::MAX);
        self.memory.load(Ordering::Relaxed)
    }

    /// Drops pages that can go, until at most `memory_bytes` are held or so many runs of numbers were looked at.
    fn drop_some(&self, memory_bytes: usize, runs: u32) {
        let held = || self.memory.load(Ordering::Relaxed);
        let all = self.end().div_ceil(RUN);
        if all == 0 || held() <= memory_bytes {
            return;
        }
        let settled = self.settled.load(Ordering::Acquire);
        let mut gone = Vec::new();
        // Once round takes the marks of use away, a second time round finds what has none, a third what that stood on.
        for _ in 0..runs.min(all.saturating_mul(3)) {
            let (shard, first) = self.shard(PageId(self.hand.fetch_add(1, Ordering::Relaxed) % all * RUN));
            let Some(mut cells) = shard.alone() else { continue };
            for cell in &mut cells[first..first + RUN as usize] {
                if let Some(page) = cell.take_page(settled) {
                    self.memory.fetch_sub(page.leave(), Ordering::Relaxed);
                    gone.push(page);
                    if held() <= memory_bytes {
                        break;
                    }
                }
            }
            drop(cells);
            gone.clear();
            if held() <= memory_bytes {
                return;
            }
        }
    }

    /// Whether a page of so many bytes can be kept, after dropping others if need be.
    fn has_room(&self, memory_bytes: usize) -> bool {
        let memory_max = self.memory_max.load(Ordering::Relaxed);
        let Some(others) = memory_max.checked_sub(memory_bytes) else { return false };
        self.drop_some(others, READ_RUNS);
        self.memory.load(Ordering::Relaxed) <= others
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

    /// A page as [`Pages::load`] finds it, for one who goes by: it does not count as used, and is not kept if it has to be
    /// read.
    pub(crate) fn load_in_passing(&self, id: PageId, expected: &Expected<'_>) -> Result<Arc<Page>, ReadError> {
        match self.peek(id) {
            Some(page) => Ok(page),
            None => self.read(id, expected, false),
        }
    }

    /// What is known of a page at first sight. One that was neither written nor read here has its bytes looked at, once: that their
    /// check holds, and what they say.
    pub(crate) fn glance(&self, id: PageId, totals: Totals) -> Result<Glance, ReadError> {
        let look = |cell: &Cell| {
            let (page, beside) = (cell.page.get().cloned(), cell.beside());
            (page, cell.lies(), beside, cell.below().is_empty())
        };
        let (page, lies, beside, has_none_below) = self.with(id, look);
        let is_leaf = |slots: usize| totals.count == slots as u64;
        let at = lies.at().map(|at| Place(at.place));
        let (needs, can_go_by) = match (&page, beside) {
            (Some(page), _) => (lies.needs(page).map(|at| at.map(|at| Place(at.place))), is_leaf(page.shape.len())),
            (None, Some(base)) => ([at, base], has_none_below),
            (None, None) => {
                let at = lies.at().expect("a page that is not in memory was written");
                let (slots, base) = stored::glance(&*self.backing, at)?;
                // Numbers of pages below are given when it is read.
                if is_leaf(slots) {
                    self.with(id, |cell| cell.put_beside(base));
                }
                ([Some(at), base].map(|at| at.map(|at| Place(at.place))), is_leaf(slots))
            }
        };
        Ok(Glance { needs, entries: totals.count, can_go_by, page })
    }

    /// Reads a page and proves it, and keeps it if that is wanted and there is room.
    fn read(&self, id: PageId, expected: &Expected<'_>, keep: bool) -> Result<Arc<Page>, ReadError> {
        let _loading = self.loading(id);
        if let Some(page) = self.peek(id) {
            return Ok(page);
        }
        let (at, birth, known) = self.with(id, |cell| (cell.at(), cell.birth(), cell.below().to_vec()));
        let at = at.expect("a page that is not in memory was written");
        let (mut below, mut fresh) = (Vec::new(), Vec::new());
        let read = stored::read::<H>(&*self.backing, at, expected, |at| {
            let known = known.get(below.len()).copied().filter(|id| self.at(*id) == Some(at));
            let id = known.unwrap_or_else(|| {
                let id = self.reserve();
                fresh.push((id, at));
                id
            });
            below.push(id);
            id
        });
        let page = match read {
            Ok(page) => Arc::new(page),
            Err(error) => {
                self.give_back(fresh.into_iter().map(|(id, _)| id));
                return Err(error);
            }
        };
        for (id, at) in &fresh {
            self.with(*id, |cell| {
                // Not younger than its parent, and given up with it (see `Versions`).
                cell.birth.store(birth, Ordering::Relaxed);
                cell.put_found(*at);
            });
        }
        // A page that is read in the place of a damaged one may have other pages below it. It stays, since it alone knows them.
        let is_mended = !known.is_empty() && below != known;
        let stays = is_mended || (keep && self.has_room(page.memory()));
        self.with(id, |cell| {
            // Before it is there: whoever takes a page away gives the numbers below it, if nobody has, and may come as soon as it is.
            if known.is_empty() && !below.is_empty() {
                assert!(cell.below.set(Box::new(Below(below.into()))).is_ok(), "numbers are given once");
            }
            cell.put_beside(page.base.map(|base| base.at()));
            if stays {
                self.memory.fetch_add(cell.put(page.clone()), Ordering::Relaxed);
            }
        });
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
        self.with(id, Cell::at)
    }

    /// Where a page lies as things stand.
    pub(crate) fn lies(&self, id: PageId) -> Lies {
        self.with(id, Cell::lies)
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
        let id = PageId(self.end.load(Ordering::Relaxed));
        let (chunk, shard) = locate(id);
        assert!(chunk < CHUNKS, "an arena holds at most four thousand million pages");
        self.chunks[chunk].get_or_init(|| (0..1 << chunk).map(|_| Shard::default()).collect())[shard].make();
        self.end.store(id.0 + 1, Ordering::Release);
        id
    }

    /// Returns numbers that were reserved and of which no use was made.
    pub(crate) fn give_back(&self, ids: impl IntoIterator<Item = PageId>) {
        self.versions().free.extend(ids);
    }

    /// Holds all pages that are in memory where they are, until it is dropped.
    pub(crate) fn reading(&self) -> Reading<'_> {
        let shards = self.chunks.iter().map_while(OnceLock::get).flatten();
        Reading(shards.take_while(|shard| shard.0.get().is_some()).map(Shard::read).collect())
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
            let (count, mut memory, mut held) = (pages.len(), 0, 0);
            for new in pages {
                let (id, page) = new.settled(places);
                held += page.held();
                let cell = reading.cell(id);
                cell.birth.store(number, Ordering::Relaxed);
                cell.used.store(true, Ordering::Relaxed);
                memory += cell.put(Arc::new(page));
            }
            (count, memory, held)
        });
        for (count, memory, held) in counts {
            self.unwritten.fetch_add(count, Ordering::Relaxed);
            self.unwritten_memory.fetch_add(held, Ordering::Relaxed);
            self.memory.fetch_add(memory, Ordering::Relaxed);
        }
        drop(reading);
        self.drop_some(self.memory_max.load(Ordering::Relaxed), PUBLISH_RUNS);
        number
    }

    /// Makes a version whose root pages are written and not in memory.
    pub(crate) fn publish_written(&self, roots: &[PageAt]) -> (u64, Vec<PageId>) {
        let ids: Vec<PageId> = roots.iter().map(|_| self.reserve()).collect();
        let number = self.versions().add(None, ids.clone(), Vec::new());
        for (id, at) in ids.iter().zip(roots) {
            self.with(*id, |cell| {
                cell.birth.store(number, Ordering::Relaxed);
                cell.put_found(*at);
            });
        }
        (number, ids)
    }

    /// Ends a version: pages that no other needs are gone, or go when nobody is at them. What is left of longer ago, as when
    /// a version that was held for long has come to its end beside commits, goes with those that end later, some at a time: no
    /// commit waits for all of it.
    pub(crate) fn release(&self, number: u64) {
        let mut freed = Vec::new();
        let reading = self.reading();
        self.versions().release(number, &mut freed, &reading);
        drop(reading);
        let most = freed.len() + BURIED_BESIDE;
        self.dead().append(&mut freed);
        self.bury(most);
    }

    /// Lets go of pages that no version needs, as far as nobody is at any: for whoever has time.
    pub fn tidy(&self) {
        while self.bury(TIDIED_TOGETHER) > 0 {}
    }

    /// Takes the pages of so many dead numbers at most, and says of how many it did.
    fn bury(&self, most: usize) -> usize {
        let mut dead = {
            let mut all = self.dead();
            let left = all.len().saturating_sub(most);
            all.split_off(left)
        };
        self.reading().look(dead.iter().copied());
        let (mut unwritten, mut unwritten_memory, mut memory) = (0, 0, 0);
        let mut free = Vec::with_capacity(dead.len());
        let mut gone = Vec::with_capacity(dead.len());
        dead.retain(|id| {
            let (shard, offset) = self.shard(*id);
            let Some(mut cells) = shard.alone() else { return true };
            let cell = mem::take(&mut cells[offset]);
            drop(cells);
            let is_written = cell.at().is_some();
            unwritten += usize::from(!is_written);
            if let Some(page) = cell.page.into_inner() {
                unwritten_memory += if is_written { 0 } else { page.held() };
                memory += page.leave();
                gone.push(page);
            }
            free.push(*id);
            false
        });
        self.memory.fetch_sub(memory, Ordering::Relaxed);
        self.unwritten.fetch_sub(unwritten, Ordering::Relaxed);
        self.unwritten_memory.fetch_sub(unwritten_memory, Ordering::Relaxed);
        let buried = free.len();
        // Only now: a number in the free list can be used again at once.
        self.give_back(free);
        self.dead().append(&mut dead);
        let mut waiting = self.gone();
        waiting.append(&mut gone);
        if waiting.len() > GONE_MAX {
            drop(waiting);
            self.take_apart(usize::MAX);
        }
        buried
    }

    /// Takes so many pages that are gone apart, at most, to make new ones of: most of it is waiting for memory.
    pub(crate) fn take_apart(&self, most: usize) {
        let gone = {
            let mut all = self.gone();
            let left = all.len().saturating_sub(most);
            all.split_off(left)
        };
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

    fn end(&self) -> u32 {
        self.end.load(Ordering::Acquire)
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
                cell.put_below(&mut open);
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
