//! The store: what one does with it. How it is done stands in the modules beside.

use crate::answers::Answers;
use crate::build::Building;
use crate::check::{CheckLevel, CheckReport};
use crate::commit::{Prepared, Syncer};
use crate::compact::Compacted;
use crate::files::{Files, Guard};
use crate::flush::Upkeep;
use crate::history::{self, Index, Made, Undone};
use crate::log::{self, Log};
use crate::mend::{Mended, Supplier};
use crate::record::Step;
use crate::recover::Found;
use crate::scrub::{self, Scrub, ScrubStanding, Scrubbed};
use crate::segment::{Kind, SegmentId, Spot};
use crate::segments::{Segments, Usage};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::version::{Version, Versions};
use crate::{Options, Retention, StoreError, View};
use arc_swap::ArcSwap;
use keelstone_codec::{Hash, Height, Key, Namespace, Root, Value};
use keelstone_tree::{Diff, Draft, Hasher, ReadError};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError};

/// Commits may be ahead of a compaction by one such part of what begins one.
const AHEAD: u64 = 8;

/// Durable versions of the state. Shared freely between threads; one process owns a directory.
///
/// Dropping a store lets go of its directory. Nothing acknowledged is lost by that, or by a kill at any moment.
pub struct Store<H: Hasher> {
    shared: Arc<Shared<H>>,
    /// The flusher and the compactor.
    threads: Vec<JoinHandle<()>>,
}

/// What the store's threads share. Locks are taken in the order scrub, compacting, upkeep, writer, history; never the other way.
pub(crate) struct Shared<H: Hasher> {
    pub(crate) options: Options,
    pub(crate) segments: Arc<Segments>,
    current: ArcSwap<Version<H>>,
    /// What was read of the last versions; none if there is no room for any.
    answers: Option<Arc<Answers>>,
    writer: Mutex<Writer>,
    upkeep: Mutex<Upkeep>,
    history: Mutex<History<H>>,
    /// One compaction at a time.
    pub(crate) compacting: Mutex<()>,
    signals: Mutex<Signals>,
    /// Told when there is something to do, when something is done, and when the store closes.
    changed: Condvar,
    poison: Mutex<Option<String>>,
    pub(crate) syncer: Option<Syncer>,
    /// One slice of a scrub at a time.
    pub(crate) scrub: Mutex<Scrub>,
    /// What compactions could not read, until the scrub has told it or it is mended. No other lock is taken under it.
    unreadable: Mutex<Vec<StoreError>>,
    commits: AtomicU64,
    counts: Counts,
    repaired: Option<StoreError>,
    torn: bool,
    pub(crate) in_doubt: Option<Height>,
    _lock: Box<dyn Guard>,
}

/// Where commits are appended. Whoever holds it commits.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) log: Log,
    /// Counts the versions put in place, so that what was prepared on an older one is known.
    pub(crate) turn: u64,
    /// Bytes of the log that no superblock covers yet.
    pub(crate) unflushed: u64,
}

impl Writer {
    pub(crate) fn new(log: Log, unflushed: u64) -> Self {
        Self { log, turn: 0, unflushed }
    }
}

#[derive(Debug)]
struct History<H: Hasher> {
    /// The lowest height that is kept.
    low: Option<Height>,
    /// Of the line of history that the index is of.
    epoch: u64,
    index: Index,
    versions: Versions<H>,
}

/// What the store's threads tell one another.
#[derive(Debug, Default)]
struct Signals {
    unflushed: u64,
    /// Bytes that pages keep in memory that no flush has written, after the last commit.
    unwritten: u64,
    /// Of those, what the last flush did not get: pages of other versions.
    unwritten_left: u64,
    /// The last height.
    height: Option<Height>,
    /// From such a height on what a compaction has emptied is let go of, and which pass that was.
    let_go_at: VecDeque<(Height, u64)>,
    /// The next segment of the log is to be made in good time.
    foreseen: bool,
    /// It could not be, and is not tried again before a flush, which may let go of something: on a full disk each commit would
    /// take what room is left, for nothing.
    in_vain: bool,
    /// Garbage that a compaction could reclaim, as counted at the last flush.
    garbage: u64,
    /// A compaction starts by itself at so much garbage.
    compact_at: u64,
    /// What a compaction must leave behind, for now.
    left: u64,
    /// A compaction that started by itself is under way.
    compacting: bool,
    /// How far it has got.
    pass: Pass,
    /// Commits that wait for it or for a flush, and checks that let it go first.
    held_back: u64,
    /// Where the log is written, as of the last commit.
    open_log: Option<SegmentId>,
    /// Commits that have room and wait for their turn to write.
    in_line: u64,
    /// A compaction lets those in line go first.
    giving_way: bool,
    closing: bool,
}

/// How far a compaction has got that commits keep step with.
#[derive(Debug, Default)]
struct Pass {
    /// Entries gone through, of all.
    passed: u64,
    total: u64,
    /// What commits had let lie when it began.
    began_at: u64,
}

impl Signals {
    /// Bytes of pages that the next flush will write.
    fn unwritten(&self) -> u64 {
        self.unwritten.saturating_sub(self.unwritten_left)
    }

    /// Whether enough waits for a flush.
    // spec: STORE-7
    fn is_time_to_flush(&self, options: &Options) -> bool {
        self.unflushed >= options.flush_bytes || self.unwritten() >= options.unwritten_bytes()
    }

    /// Whether history has gone past what a compaction has emptied.
    // spec: STORE-7
    fn is_time_to_let_go(&self) -> bool {
        self.let_go_at.front().is_some_and(|(at, _)| self.height >= Some(*at))
    }

    /// The last pass of which it has.
    fn lets_go(&mut self) -> Option<u64> {
        let mut last = None;
        while self.is_time_to_let_go() {
            last = self.let_go_at.pop_front().map(|(_, pass)| pass);
        }
        last
    }

    /// Whether so much does that commits wait for it. What a flush does not get stops nobody.
    // spec: STORE-7
    fn is_full(&self, options: &Options) -> bool {
        self.unflushed >= 2 * options.flush_bytes || self.unwritten() >= 2 * options.unwritten_bytes()
    }

    /// Garbage at which a compaction is worth its while: what the last one could not get does not count again.
    fn threshold(&self) -> u64 {
        self.compact_at.max(self.left.saturating_add(self.compact_at / 4))
    }

    fn is_time_to_compact(&self) -> bool {
        self.garbage >= self.threshold()
    }

    /// Whether commits wait for a compaction, now that they have let so much lie since the store was opened: of as much as
    /// begins one no larger part than what it has gone through of the state, and an eighth, so that nobody waits while it waits for a
    /// flush. So they go on at the pace of both, and when it is done little more lies there than what begins the next one. Never if
    /// none is under way: what cannot be reclaimed stops nobody.
    // spec: STORE-12
    fn is_ahead(&self, let_lie: u64) -> bool {
        let Pass { passed, total, began_at } = self.pass;
        let since = u128::from(let_lie.saturating_sub(began_at));
        let may = u128::from(passed + total / AHEAD) * u128::from(self.compact_at);
        self.compacting && since * u128::from(total) > may
    }
}

/// See [`Shared::poisoned_by_panic`].
pub(crate) struct PoisonedByPanic<'a, H: Hasher> {
    shared: &'a Shared<H>,
    /// Whether a panic was under way before: that one is none of this work's.
    was_panicking: bool,
}

impl<H: Hasher> Drop for PoisonedByPanic<'_, H> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            let panicked = StoreError::io("write to", "the store")(std::io::Error::other("a panic came between"));
            self.shared.poison(&panicked);
        }
    }
}

/// What happened since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) flush_waits: AtomicU64,
    pub(crate) compaction_waits: AtomicU64,
    pub(crate) compactions: AtomicU64,
    /// Passes that went through all of the state, and versions that flushes took.
    passes: AtomicU64,
    /// Bytes of segments that only views keep, as counted at the last flush.
    pub(crate) view_bytes: AtomicU64,
    /// Bytes that commits let lie: pages and values that they replaced, as far as a compaction will once get them.
    pub(crate) let_lie: AtomicU64,
}

/// A compaction that started by itself, for as long as it is under way. However it ends, nobody waits for it after.
struct Compacting<'a, H: Hasher>(&'a Shared<H>);

impl<'a, H: Hasher> Compacting<'a, H> {
    fn begin(shared: &'a Shared<H>) -> Self {
        let mut signals = shared.signals();
        (signals.compacting, signals.pass) = (true, Pass::default());
        drop(signals);
        Self(shared)
    }
}

impl<H: Hasher> Drop for Compacting<'_, H> {
    fn drop(&mut self) {
        let mut signals = self.0.signals();
        (signals.compacting, signals.pass) = (false, Pass::default());
        drop(signals);
        self.0.changed.notify_all();
    }
}

/// Keeps a height from being removed while somebody looks into it.
struct Pin<'a, H: Hasher> {
    shared: &'a Shared<H>,
    height: Height,
}

impl<'a, H: Hasher> Pin<'a, H> {
    fn new(shared: &'a Shared<H>, history: &mut History<H>, height: Height) -> Self {
        history.versions.pin(height);
        Self { shared, height }
    }
}

impl<H: Hasher> Drop for Pin<'_, H> {
    fn drop(&mut self) {
        self.shared.history().versions.unpin(self.height);
    }
}

/// One write of a committed diff, with what it replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// H(value) before, under the chain's hasher; none if the key was absent.
    pub old: Option<Hash>,
    /// The value since; none if the key was deleted.
    pub new: Option<Value>,
}

/// What a height changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedDiff {
    /// The height.
    pub height: Height,
    /// The root before it.
    pub root_before: Root,
    /// The writes in order.
    pub changes: Vec<Change>,
}

impl CommittedDiff {
    /// The plain diff: what to apply to the state before.
    #[must_use]
    pub fn diff(&self) -> Diff {
        self.changes.iter().map(|change| (change.namespace.clone(), change.key.clone(), change.new.clone())).collect()
    }
}

/// What a long piece of work tells of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Steps in all, as far as known.
    pub total: u64,
    /// What a step is.
    pub what: &'static str,
}

/// Figures of a store at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries in the last version.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub entry_bytes: u64,
    /// Bytes of all segments, as large as they were made.
    pub disk_bytes: u64,
    /// Segments of the log.
    pub log_segments: u64,
    /// Segments that compaction wrote values to.
    pub value_segments: u64,
    /// Segments of pages.
    pub page_segments: u64,
    /// Bytes of values and pages that the last version does not need, as far as counted.
    pub garbage_bytes: u64,
    /// Bytes of diffs that the pages do not have yet.
    pub unflushed_bytes: u64,
    /// Bytes of pages in memory.
    pub cache_bytes: u64,
    /// Bytes of values in memory: blocks of them, and what was read lately.
    pub value_cache_bytes: u64,
    /// Versions that somebody holds, those the store keeps at hand included.
    pub views: u64,
    /// Bytes of segments that are kept for nothing but views, as counted at the last flush.
    pub view_bytes: u64,
    /// Commits since the store was opened.
    pub commits: u64,
    /// Commits that waited for a flush, since the store was opened.
    pub flush_waits: u64,
    /// Commits that waited for a compaction, since the store was opened.
    pub compaction_waits: u64,
    /// Compactions since the store was opened, those that started by themselves included.
    pub compactions: u64,
    /// Bytes written to files since the store was opened.
    pub written_bytes: u64,
    /// Whether opening cut a record that had never been acknowledged.
    pub torn_tail_cut: bool,
    /// What opening found wrong with one of the two superblock slots, and wrote anew from the other.
    pub superblock_repaired: Option<String>,
}

impl<H: Hasher> Store<H> {
    /// Makes a store where there is none.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::InUse`], [`StoreError::Io`].
    pub fn create(files: Arc<dyn Files>, options: Options) -> Result<Self, StoreError> {
        Ok(Self::start(Shared::create(files, options)?))
    }

    /// Begins a store whose first version is a whole state at `height`, where there is none: its entries are pushed in
    /// order, and [`Building::finish`] makes it a store. Of history before `height` it knows nothing.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::InUse`], [`StoreError::Io`]; [`StoreError::WrongHeight`] at `u64::MAX`.
    pub fn build(files: Arc<dyn Files>, options: Options, height: Height) -> Result<Building<H>, StoreError> {
        Building::begin(files, options, height)
    }

    /// Opens a store: the last superblock, and every commit the log has beyond it.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::InUse`], [`StoreError::Unsupported`], [`StoreError::WrongHasher`], and
    /// [`StoreError::Damaged`] or [`StoreError::Lost`] if anything read is not what was written: only a record that was
    /// never acknowledged is ever cut.
    pub fn open(files: Arc<dyn Files>, options: Options) -> Result<Self, StoreError> {
        Ok(Self::start(Shared::open(files, options)?))
    }

    /// Whether the directory holds a store.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn exists(files: &dyn Files) -> Result<bool, StoreError> {
        let names = files.list().map_err(StoreError::io("list", "the directory"))?;
        Ok(names.iter().any(|name| name == crate::superblock::FILE))
    }

    pub(crate) fn start(shared: Shared<H>) -> Self {
        let shared = Arc::new(shared);
        let mut threads = Vec::new();
        if shared.options.background {
            for work in [Shared::flush_in_background, Shared::compact_in_background] {
                let shared = Arc::clone(&shared);
                threads.push(thread::spawn(move || work(&shared)));
            }
        }
        Self { shared, threads }
    }

    /// The last committed height, none before the first.
    #[must_use]
    pub fn height(&self) -> Option<Height> {
        self.shared.current().height
    }

    /// The lowest height that can be viewed, none before the first commit.
    #[must_use]
    pub fn low(&self) -> Option<Height> {
        self.shared.low()
    }

    /// The root of the last version.
    #[must_use]
    pub fn root(&self) -> Root {
        self.shared.current().root
    }

    /// How often history was rolled back.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.current().epoch
    }

    /// Computes the root a diff would lead to. Nothing of it is durable, and it can be repeated (spec: STORE-9).
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::Read`].
    pub fn prepare(&self, diff: Diff) -> Result<Prepared<H>, StoreError> {
        self.shared.prepare(diff)
    }

    /// Commits a diff: when this returns, it is durable. The sync runs beside the hashing.
    ///
    /// # Errors
    /// [`StoreError::WrongHeight`], [`StoreError::TooLarge`], [`StoreError::Poisoned`], [`StoreError::Io`], ...
    pub fn commit(&self, height: Height, diff: Diff) -> Result<Root, StoreError> {
        self.shared.commit(height, &diff, || Ok(()))
    }

    /// Commits what was prepared on the last version.
    ///
    /// # Errors
    /// [`StoreError::Stale`], and as [`Self::commit`].
    pub fn commit_prepared(&self, height: Height, prepared: Prepared<H>) -> Result<Root, StoreError> {
        self.shared.commit_prepared(height, prepared, || Ok(()))
    }

    /// As [`Self::commit_prepared`], and does `work` while the record is on its way to the disk: for what the caller has to
    /// make durable with this height and the store does not hold. The commit is acknowledged once both are done. A crash in
    /// between leaves either without the other, so whoever opens the store looks whether [`Self::in_doubt`] is whole.
    ///
    /// # Errors
    /// As [`Self::commit_prepared`]. If the work fails, its error; the record may be on the disk all the same, so the store
    /// then refuses further commits until it is opened again.
    // spec: STORE-3, STORE-8
    pub fn commit_prepared_with(
        &self,
        height: Height,
        prepared: Prepared<H>,
        work: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Root, StoreError> {
        self.shared.commit_prepared(height, prepared, work)
    }

    /// The last height, if opening found a record of its commit and nothing that says that it was acknowledged: neither a
    /// mark behind it nor a superblock that covers it. It may be whole all the same.
    // spec: STORE-2
    #[must_use]
    pub fn in_doubt(&self) -> Option<Height> {
        self.shared.in_doubt
    }

    /// What opening found wrong with one of the two superblock slots, and wrote anew from the other: a check finds nothing of it any
    /// more.
    // spec: STORE-4
    #[must_use]
    pub fn superblock_repaired(&self) -> Option<&StoreError> {
        self.shared.repaired.as_ref()
    }

    /// The last version.
    #[must_use]
    pub fn view(&self) -> View<H> {
        View::new(self.shared.current())
    }

    /// The version at a retained height: at hand if it is recent or was used lately, else rebuilt from the nearest one
    /// and the diffs between.
    ///
    /// # Errors
    /// [`StoreError::NotRetained`] with the heights there are, [`StoreError::Empty`], or what reading says, also
    /// [`ReadError::Gone`] if the version it is rebuilt from expires meanwhile (spec: STORE-6).
    pub fn view_at(&self, height: Height) -> Result<View<H>, StoreError> {
        self.shared.version_at(height).map(View::new)
    }

    /// What a retained height changed, with what it replaced.
    ///
    /// # Errors
    /// As [`Self::view_at`]; [`StoreError::NoDiff`] for the height the store was built at.
    pub fn diff_at(&self, height: Height) -> Result<CommittedDiff, StoreError> {
        self.shared.diff_at(height)
    }

    /// Makes an earlier height the last one again, durably, under a new epoch (spec: STORE-5). It undoes what was committed since, whatever
    /// versions are at hand: its cost is that of reading the records of those heights and the values that they replaced, and of
    /// one commit of all their keys. Commits wait meanwhile.
    ///
    /// # Errors
    /// [`StoreError::CannotRollBack`], and as [`Self::commit`].
    pub fn rollback(&self, to: Height) -> Result<Root, StoreError> {
        self.shared.rollback(to)
    }

    /// Gives up all heights before `before`. Their space is freed as compaction gets to it.
    ///
    /// # Errors
    /// [`StoreError::NotRetained`] above the last height, and as [`Self::commit`].
    pub fn prune(&self, before: Height) -> Result<(), StoreError> {
        self.shared.prune(before)
    }

    /// Moves what lives out of segments that are mostly garbage, and removes segments nobody needs. Commits and reads go
    /// on meanwhile. What cannot be read stays where it is, with the segments it may lie in, and is in the answer and in that
    /// of the next [`Self::scrub`] (spec: STORE-17).
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn compact(&self, progress: &mut dyn FnMut(Progress)) -> Result<Compacted, StoreError> {
        self.compact_while(&mut |done| {
            progress(done);
            true
        })
    }

    /// As [`Self::compact`], for as long as `go_on` says so, which is asked after each slice. What was moved by then stays moved,
    /// and no segment is removed for it yet: the next compaction goes through all of it again.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn compact_while(&self, go_on: &mut dyn FnMut(Progress) -> bool) -> Result<Compacted, StoreError> {
        self.shared.compact(None, go_on)
    }

    /// Looks for damage and changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the disk cannot be read at all, or something was lacking to read it
    /// ([`StoreError::is_shortage`]). Damage is in the report.
    pub fn check(&self, level: CheckLevel, progress: &mut dyn FnMut(Progress)) -> Result<CheckReport, StoreError> {
        let checked = self.check_while(level, &mut |done| {
            progress(done);
            true
        })?;
        Ok(checked.expect("nobody ends it"))
    }

    /// As [`Self::check`], for as long as `go_on` says so, which is asked every few tens of MiB. None if it said no.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_while(
        &self,
        level: CheckLevel,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<CheckReport>, StoreError> {
        self.shared.check(level, go_on)
    }

    /// Looks at the next slice of what is stored, about `bytes` of it and at least something, where the last slice ended,
    /// also if the store was opened anew since. When all has been looked at, a pass is done and the next slice begins
    /// another. Commits and reads go on meanwhile; a flush waits for a slice of entries.
    ///
    /// # Errors
    /// [`StoreError::Io`] if where the pass stands could not be kept, or something was lacking to look
    /// ([`StoreError::is_shortage`]): the next call looks at the same slice. Damage, and what cannot be read, is in the answer; if
    /// there is any, it is the answer also where the place could not be kept.
    pub fn scrub(&self, bytes: u64) -> Result<Scrubbed, StoreError> {
        self.shared.scrub(bytes)
    }

    /// Has again what is damaged: `problems`, as a check or a scrub named them, and what of the state is found to be lost
    /// with them. What is still in memory is written anew; the rest is asked of `supplier`, and proven by the hash that is
    /// held of it here before anything is written. Commits and reads go on meanwhile. Reads all pages of the state.
    ///
    /// # Errors
    /// As [`Self::commit`]. What is damaged still is in the answer.
    // spec: STORE-16
    pub fn mend(&self, problems: &[StoreError], supplier: &mut dyn Supplier) -> Result<Mended, StoreError> {
        self.shared.mend(problems, supplier)
    }

    /// Where the scrub stands, and whether damage is known.
    #[must_use]
    pub fn scrub_standing(&self) -> ScrubStanding {
        self.shared.scrub_standing()
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Writes the pages of the last version and a superblock, so that the next open has nothing to replay.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn flush(&self) -> Result<(), StoreError> {
        self.shared.flush(&mut self.shared.upkeep())
    }

    /// Flushes and lets go of the directory.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn close(self) -> Result<(), StoreError> {
        self.flush()
    }
}

impl<H: Hasher> fmt::Debug for Store<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store at {:?}", self.shared.current())
    }
}

impl<H: Hasher> Drop for Store<H> {
    fn drop(&mut self) {
        self.shared.signals().closing = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has poisoned the store, which was told to whoever waited for it.
            let _ = thread.join();
        }
    }
}

impl<H: Hasher> Shared<H> {
    pub(crate) fn assemble(
        options: Options,
        lock: Box<dyn Guard>,
        segments: Arc<Segments>,
        writer: Writer,
        upkeep: Upkeep,
        found: Found<H>,
    ) -> Self {
        let Found { version, low, index, versions, repaired, torn, in_doubt } = found;
        let syncer = options.background.then(Syncer::start);
        let open_log = version.height.map(|_| writer.log.end().segment);
        let signals = Signals { unflushed: writer.unflushed, compact_at: u64::MAX, open_log, ..Signals::default() };
        let (epoch, scrub) = (version.epoch, scrub::resumed(&segments));
        let answers = Answers::new(options.answer_bytes());
        version.join_line(answers.as_ref().map(Answers::start_over));
        Self {
            options,
            segments,
            current: ArcSwap::new(version),
            answers,
            writer: Mutex::new(writer),
            upkeep: Mutex::new(upkeep),
            history: Mutex::new(History { low, epoch, index, versions }),
            compacting: Mutex::default(),
            signals: Mutex::new(signals),
            changed: Condvar::new(),
            poison: Mutex::default(),
            syncer,
            scrub,
            unreadable: Mutex::default(),
            commits: AtomicU64::new(0),
            counts: Counts::default(),
            repaired,
            torn,
            in_doubt,
            _lock: lock,
        }
    }

    pub(crate) fn current(&self) -> Arc<Version<H>> {
        self.current.load_full()
    }

    pub(crate) fn answers(&self) -> Option<&Arc<Answers>> {
        self.answers.as_ref()
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer, for whoever goes by where the log ends: after a write that failed it may be beyond the last version.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`].
    // spec: STORE-8
    pub(crate) fn sound_writer(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        let writer = self.writer();
        self.check_poison()?;
        Ok(writer)
    }

    /// The writer, for a commit: a compaction takes no slice while one is in line for it.
    // spec: STORE-17
    pub(crate) fn writer_in_turn(&self) -> MutexGuard<'_, Writer> {
        self.signals().in_line += 1;
        let writer = self.writer();
        let mut signals = self.signals();
        signals.in_line -= 1;
        let is_awaited = signals.in_line == 0 && std::mem::take(&mut signals.giving_way);
        drop(signals);
        if is_awaited {
            self.changed.notify_all();
        }
        writer
    }

    /// Waits until no commit is in line for the writer.
    // spec: STORE-17
    pub(crate) fn give_way(&self) {
        let mut signals = self.signals();
        while signals.in_line > 0 {
            signals.giving_way = true;
            signals = self.changed.wait(signals).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, History<H>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signals(&self) -> MutexGuard<'_, Signals> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn low(&self) -> Option<Height> {
        self.history().low
    }

    /// The lowest height of which somebody holds a version, and the fewest passes that were over when one was made, but for `but`.
    pub(crate) fn lowest_held(&self, but: Option<&Arc<Version<H>>>) -> (Option<Height>, Option<u64>) {
        let versions = &mut self.history().versions;
        (versions.lowest(), versions.fewest_passes(but))
    }

    /// Expires the held version with the lowest height, of those below `below` and those made before so many passes were over.
    /// Says whether there was one.
    pub(crate) fn expire_lowest(&self, below: Height, passes: u64) -> bool {
        self.history().versions.expire_lowest(below, passes)
    }

    /// Passes that are over. Counted while nobody else has the writer.
    pub(crate) fn passes(&self) -> u64 {
        self.counts.passes.load(Ordering::Relaxed)
    }

    /// One more is over.
    pub(crate) fn pass_ends(&self) -> u64 {
        self.counts.passes.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Garbage that is worth a pass.
    pub(crate) fn compact_at(&self) -> u64 {
        self.signals().compact_at
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.signals().closing
    }

    /// What compactions could not read and nobody was told.
    pub(crate) fn unreadable(&self) -> MutexGuard<'_, Vec<StoreError>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what a compaction could not read for the scrub to tell: the latest knows best.
    // spec: STORE-17
    pub(crate) fn note_unreadable(&self, pieces: &[StoreError]) {
        let mut unreadable = self.unreadable();
        unreadable.clear();
        unreadable.extend(pieces.iter().filter(|piece| !piece.is_shortage()).cloned());
    }

    /// Keeps what a compaction cannot get, however long it takes: it must not count as a reason for the next one. What is let
    /// lie meanwhile does.
    // spec: STORE-12
    pub(crate) fn leave(&self, garbage: u64) {
        self.signals().left = garbage;
    }

    /// Has what was emptied by a pass let go of when history has gone on by so many heights: then it needs nothing of it.
    // spec: STORE-7
    pub(crate) fn let_go_after(&self, heights: u64, pass: Option<u64>) {
        let (Some(height), Some(pass)) = (self.current().height, pass) else { return };
        self.signals().let_go_at.push_back((Height(height.0.saturating_add(heights)), pass));
    }

    /// A compaction begins to go through so many entries.
    pub(crate) fn pass_begins(&self, total: u64) {
        let began_at = self.counts.let_lie.load(Ordering::Relaxed);
        self.signals().pass = Pass { passed: 0, total, began_at };
    }

    /// It has gone through so many of them by now.
    pub(crate) fn passed(&self, entries: u64) {
        let mut signals = self.signals();
        signals.pass.passed = entries;
        let is_awaited = signals.held_back > 0;
        drop(signals);
        if is_awaited {
            self.changed.notify_all();
        }
    }

    /// The segment that the log is written to, or was a moment ago; none before the first commit.
    pub(crate) fn open_log(&self) -> Option<SegmentId> {
        self.signals().open_log
    }

    /// What a compaction had to leave behind counts again as garbage that one can reclaim: it can be read now.
    // spec: STORE-17
    pub(crate) fn compact_again(&self) {
        self.signals().left = 0;
        self.changed.notify_all();
    }

    /// Lets go of versions kept at hand, all but the last.
    pub(crate) fn drop_recent(&self) {
        let current = self.current();
        self.history().versions.retain(|version| std::ptr::eq(version, &*current));
    }

    /// Refuses work after a failed write (spec: STORE-8).
    pub(crate) fn check_poison(&self) -> Result<(), StoreError> {
        match &*self.poison.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(StoreError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Runs something that writes. If it fails or panics, nobody knows what is on the disk: no more writes until the store is
    /// opened again (spec: STORE-8).
    pub(crate) fn poisoning<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let _poisoned = self.poisoned_by_panic();
        work().inspect_err(|error| self.poison(error))
    }

    /// Refuses all writes from here on. Not for who has the signals.
    // spec: STORE-8
    fn poison(&self, error: &StoreError) {
        let mut poison = self.poison.lock().unwrap_or_else(PoisonError::into_inner);
        poison.get_or_insert_with(|| error.to_string());
        drop(poison);
        // Whoever waits must hear that nothing will come of it. One that looked before has the signals until it waits, and is
        // told once it does.
        drop(self.signals());
        self.changed.notify_all();
    }

    /// For work others wait for, or that may not be gone on with when it was cut off: dropped by a panic in it, it leaves a store
    /// that writes nothing any more.
    // spec: STORE-8
    pub(crate) fn poisoned_by_panic(&self) -> PoisonedByPanic<'_, H> {
        PoisonedByPanic { shared: self, was_panicking: std::thread::panicking() }
    }

    /// Hands the upkeep to whoever commits wait for, if they do, and takes it again after: to a flush, or to a compaction that
    /// they are ahead of, which waits for one. Not in a store that is poisoned, which has neither.
    // spec: STORE-7, STORE-12
    pub(crate) fn give_way_with<'a>(&'a self, upkeep: MutexGuard<'a, Upkeep>) -> MutexGuard<'a, Upkeep> {
        let let_lie = self.counts.let_lie.load(Ordering::Relaxed);
        let mut signals = self.signals();
        let is_wanted = |signals: &Signals| {
            let waits = signals.is_full(&self.options) || signals.is_ahead(let_lie);
            waits && self.options.background && !signals.closing && self.check_poison().is_ok()
        };
        if !is_wanted(&signals) {
            return upkeep;
        }
        drop(upkeep);
        while is_wanted(&signals) {
            signals = self.wait_held_back(signals);
        }
        drop(signals);
        self.upkeep()
    }

    /// Waits for what a flush or a compaction comes to.
    fn wait_held_back<'a>(&self, mut signals: MutexGuard<'a, Signals>) -> MutexGuard<'a, Signals> {
        signals.held_back += 1;
        let mut signals = self.changed.wait(signals).unwrap_or_else(PoisonError::into_inner);
        signals.held_back -= 1;
        signals
    }

    /// Puts a committed version in place: from here on it is the last one.
    pub(crate) fn install(&self, writer: &mut Writer, version: Arc<Version<H>>) {
        let height = version.height.expect("only commits are installed");
        let mut history = self.history();
        history.low.get_or_insert(height);
        history.index.push(height, version.record.expect("a commit has a record"));
        history.versions.commit(&version);
        if let Retention::Heights(count) = self.options.history {
            let low = Height((height.0 + 1).saturating_sub(count.max(1)));
            history.raise_low(low);
        }
        drop(history);
        self.current.store(version);
        writer.turn += 1;
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts the same state with other places in the place of the last version.
    pub(crate) fn replace(&self, writer: &mut Writer, version: Arc<Version<H>>) {
        version.join_line(self.current().on_line().cloned());
        self.history().versions.replace_last(&version);
        self.current.store(version);
        writer.turn += 1;
        if self.count_pages(&mut self.signals()) {
            self.changed.notify_all();
        }
    }

    /// Puts an earlier version in place and forgets what came after it.
    pub(crate) fn install_rollback(&self, writer: &mut Writer, version: Arc<Version<H>>) {
        let height = version.height.expect("only heights are rolled back to");
        version.join_line(self.answers().map(Answers::start_over));
        let mut history = self.history();
        history.epoch = version.epoch;
        history.index.truncate(height);
        history.versions.retain(|version| version.height <= Some(height));
        history.versions.replace_last(&version);
        drop(history);
        self.segments.forget_emptied(height);
        self.current.store(version);
        writer.turn += 1;
    }

    /// Counts a commit's bytes and sees to it that they are flushed in time.
    pub(crate) fn wrote(&self, writer: &mut Writer, bytes: u64) {
        writer.unflushed += bytes;
        let mut signals = self.signals();
        (signals.unflushed, signals.height) = (writer.unflushed, self.current().height);
        signals.open_log = Some(writer.log.end().segment);
        signals.foreseen |= !signals.in_vain && writer.log.foresee().is_some();
        let due = self.count_pages(&mut signals) || signals.foreseen;
        drop(signals);
        // Waking threads that have nothing to do takes the processor from whoever waits for the next commit.
        if due {
            self.changed.notify_all();
        }
    }

    /// Counts what pages keep in memory that no flush has written, and says whether one is due.
    fn count_pages(&self, signals: &mut Signals) -> bool {
        signals.unwritten = self.current().tree.pages().unwritten_bytes() as u64;
        signals.is_time_to_flush(&self.options) || signals.is_time_to_let_go()
    }

    /// Counts garbage anew, so that compaction starts in time.
    pub(crate) fn recount(&self) {
        let (garbage, live) = self.reclaimable();
        let Options { garbage_percent: percent, flush_bytes, segment_bytes, page_segment_bytes, .. } = self.options;
        // Little garbage is not worth a pass, whatever its share.
        let largest = segment_bytes.max(page_segment_bytes);
        let least = flush_bytes.max(self.segments.fitting(largest) / 2 * 3).min(largest / 2 * 3);
        // What a flush covers is there twice until it is done, as records and as pages: that is of the room there is for garbage.
        let share = (live / 100 * percent).saturating_sub(flush_bytes);
        let compact_at = if percent == 0 { u64::MAX } else { least.max(share) };
        let mut signals = self.signals();
        (signals.garbage, signals.compact_at) = (garbage, compact_at);
        // What is gone without a compaction is left behind no more.
        signals.left = signals.left.min(garbage);
        drop(signals);
        self.changed.notify_all();
    }

    /// Counts what a flush has covered. `left`: bytes of pages that were not written before it either.
    pub(crate) fn flushed(&self, height: Option<Height>, bytes: u64, left: usize) {
        let mut writer = self.writer();
        writer.unflushed -= bytes;
        let mut signals = self.signals();
        (signals.unflushed, signals.unwritten_left, signals.in_vain) = (writer.unflushed, left as u64, false);
        signals.let_go_at.retain(|(at, _)| height < Some(*at));
        self.count_pages(&mut signals);
        drop((signals, writer));
        self.changed.notify_all();
    }

    /// Waits until there is room for another commit's bytes (spec: STORE-7, STORE-12).
    pub(crate) fn wait_for_room(&self) -> Result<(), StoreError> {
        if !self.options.background {
            return self.make_room();
        }
        let (mut flush_wait, mut compaction_wait) = (false, false);
        let let_lie = self.counts.let_lie.load(Ordering::Relaxed);
        let mut signals = self.signals();
        loop {
            let full = signals.is_full(&self.options);
            let ahead = signals.is_ahead(let_lie);
            (flush_wait, compaction_wait) = (flush_wait | full, compaction_wait | ahead);
            if !full && !ahead {
                break;
            }
            self.check_poison()?;
            signals = self.wait_held_back(signals);
        }
        drop(signals);
        self.counts.flush_waits.fetch_add(flush_wait.into(), Ordering::Relaxed);
        self.counts.compaction_waits.fetch_add(compaction_wait.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Waits until there is room for more pages: for whoever makes some without a commit. The last quarter of it is the commits'.
    // spec: STORE-7
    pub(crate) fn wait_for_pages(&self) -> Result<(), StoreError> {
        if !self.options.background {
            return self.flush_in_time();
        }
        let mut signals = self.signals();
        while signals.unwritten() >= self.options.unwritten_bytes() / 2 * 3 && !signals.closing {
            self.check_poison()?;
            signals = self.changed.wait(signals).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn flush_in_time(&self) -> Result<(), StoreError> {
        let is_time = self.signals().is_time_to_flush(&self.options);
        if is_time {
            return self.flush_and_remove(&mut self.upkeep());
        }
        let gone = self.signals().lets_go();
        gone.map_or(Ok(()), |pass| self.let_go(&mut self.upkeep(), pass))
    }

    /// Does what threads of their own would do, in turn.
    fn make_room(&self) -> Result<(), StoreError> {
        self.flush_in_time()?;
        if std::mem::take(&mut self.signals().foreseen) {
            self.make_next_segment();
        }
        if self.signals().is_time_to_compact() { self.compact_unasked() } else { Ok(()) }
    }

    /// Makes the segment that the log will go on in, so that no commit has to. If that fails, the commit that needs it
    /// tries again, and is told.
    fn make_next_segment(&self) {
        let Ok(writer) = self.sound_writer() else { return };
        let (foreseen, generation) = (writer.log.foresee(), writer.log.generation());
        drop(writer);
        if let Some((id, size)) = foreseen
            && self.segments.prepare(id, generation, size).is_err()
        {
            self.signals().in_vain = true;
        }
    }

    /// The flusher's life: flush whenever enough has come together, and make segments before they are needed.
    fn flush_in_background(&self) {
        let _poisoned = self.poisoned_by_panic();
        loop {
            let mut signals = self.signals();
            while !signals.is_time_to_flush(&self.options)
                && !signals.is_time_to_let_go()
                && !signals.foreseen
                && !signals.closing
            {
                signals = self.changed.wait(signals).unwrap_or_else(PoisonError::into_inner);
            }
            if signals.closing {
                return;
            }
            let foreseen = std::mem::take(&mut signals.foreseen);
            drop(signals);
            if foreseen {
                self.make_next_segment();
            }
            // The failure is kept as the poison that the next commit meets.
            if self.flush_in_time().is_err() {
                return;
            }
        }
    }

    /// The compactor's life: compact whenever there is enough garbage.
    fn compact_in_background(&self) {
        let _poisoned = self.poisoned_by_panic();
        loop {
            let mut signals = self.signals();
            while !signals.is_time_to_compact() && !signals.closing {
                signals = self.changed.wait(signals).unwrap_or_else(PoisonError::into_inner);
            }
            if signals.closing {
                return;
            }
            drop(signals);
            if self.compact_unasked().is_err() {
                return;
            }
        }
    }

    /// A compaction because there is too much garbage.
    // spec: STORE-12
    fn compact_unasked(&self) -> Result<(), StoreError> {
        let _compacting = Compacting::begin(self);
        let enough = {
            let signals = self.signals();
            signals.garbage.saturating_sub(signals.compact_at / 2)
        };
        let compacted = self.compact(Some(enough), &mut |_| true);
        self.recount();
        compacted.map(drop)
    }

    fn not_retained(&self, height: Height) -> StoreError {
        match (self.low(), self.current().height) {
            (Some(low), Some(high)) => StoreError::NotRetained { height, low, high },
            _ => StoreError::Empty,
        }
    }

    /// Refuses a height above the last version's, or below the lowest kept.
    fn check_kept(&self, current: &Version<H>, height: Height) -> Result<(), StoreError> {
        match current.height.is_none_or(|last| height > last) || self.low().is_none_or(|low| height < low) {
            true => Err(self.not_retained(height)),
            false => Ok(()),
        }
    }

    /// The version at a height between the lowest kept and the last.
    pub(crate) fn version_at(&self, height: Height) -> Result<Arc<Version<H>>, StoreError> {
        let current = self.current();
        if current.height == Some(height) {
            return Ok(current);
        }
        let (base, epoch, _pin) = {
            let mut history = self.history();
            if current.height.is_none_or(|last| height > last) || history.low.is_none_or(|low| height < low) {
                drop(history);
                return Err(self.not_retained(height));
            }
            if let Some(version) = history.versions.find(height) {
                return Ok(version);
            }
            let base = history.versions.nearest(height).unwrap_or_else(|| Arc::clone(&current));
            let epoch = history.epoch;
            (base, epoch, Pin::new(self, &mut history, height))
        };
        // Nothing is locked meanwhile, since it can take long. The pin keeps what is read from being removed.
        let rebuilt = self.rebuild(&current, &base, height, &mut |_, _| {});
        let mut history = self.history();
        if history.epoch != epoch || current.epoch != epoch {
            // A rollback came in between, and the records read may be of two lines. Rollbacks are rare: look again.
            drop(history);
            return self.version_at(height);
        }
        if base.is_expired() {
            // What it was made of was held for too long, and pages of it may be gone: so may some of its own.
            return Err(ReadError::Gone { reason: "newer versions came while it was rebuilt" }.into());
        }
        let version = rebuilt?;
        history.versions.add(&version);
        Ok(version)
    }

    /// The version at a height, made of the last one by undoing what came after it, whatever is at hand: so it is known what changes
    /// in what the last version needs. For who has the upkeep and the writer.
    pub(crate) fn undo(
        &self,
        current: &Arc<Version<H>>,
        height: Height,
    ) -> Result<(Arc<Version<H>>, Vec<Undone>), StoreError> {
        self.check_kept(current, height)?;
        if current.height == Some(height) {
            return Ok((Arc::clone(current), Vec::new()));
        }
        let mut undone = Vec::new();
        let mut made = |draft: &Draft<H>, places: &[_]| undone.push(Undone::of(draft, places));
        let version = self.rebuild(current, current, height, &mut made)?;
        Ok((version, undone))
    }

    fn rebuild(
        &self,
        current: &Version<H>,
        base: &Version<H>,
        height: Height,
        made: &mut Made<'_, H>,
    ) -> Result<Arc<Version<H>>, StoreError> {
        let next = self.spot_of(current, height.next())?;
        let expected = log::head_at(&self.segments, next)?.root_before;
        history::rebuild(&self.segments, base, height, &mut |height| self.spot_of(current, height), expected, made)
    }

    /// Where the record of a height lies. The index is locked for a few reads at a time only.
    fn spot_of(&self, current: &Version<H>, height: Height) -> Result<Spot, StoreError> {
        loop {
            if let Some(spot) = self.history().index.find(&self.segments, current, height)? {
                return Ok(spot);
            }
        }
    }

    fn diff_at(&self, height: Height) -> Result<CommittedDiff, StoreError> {
        let current = self.current();
        self.check_kept(&current, height)?;
        let _pin = Pin::new(self, &mut self.history(), height);
        let spot = self.spot_of(&current, height)?;
        let record = log::record_at(&self.segments, spot)?;
        if record.head.step == Step::Base {
            return Err(StoreError::NoDiff { height });
        }
        let mut changes = Vec::with_capacity(record.writes.len());
        for logged in record.writes {
            let old = logged.old.map(|place| self.segments.value_at(place)).transpose()?;
            let (namespace, key) = (logged.namespace, logged.key);
            let new = logged.new.map(|(_, value)| value);
            changes.push(Change { namespace, key, old: old.map(|value| H::hash(&value)), new });
        }
        Ok(CommittedDiff { height, root_before: record.head.root_before, changes })
    }

    /// Raises the lowest height that is kept, durably.
    pub(crate) fn prune(&self, before: Height) -> Result<(), StoreError> {
        // First, for a rollback that is under way has it too: nothing is given up that would be above the last height then.
        let mut upkeep = self.upkeep();
        self.check_poison()?;
        if self.current().height.is_none_or(|last| before > last) {
            return Err(self.not_retained(before));
        }
        self.history().raise_low(before);
        let (flushed, epoch) = (upkeep.superblock.flushed, upkeep.superblock.epoch);
        self.poisoning(|| self.write_superblock(&mut upkeep, flushed, epoch))
    }

    pub(crate) fn stats(&self) -> Stats {
        let current = self.current();
        let totals = current.tree.totals();
        let all = self.segments.all();
        let count = |kind| all.iter().filter(|segment| segment.id().kind == kind).count() as u64;
        let garbage = self.segments.usage().values().map(Usage::garbage).sum();
        // By itself, or it would be held while the history is asked for.
        let unflushed = self.signals().unflushed;
        Stats {
            entries: totals.count,
            entry_bytes: totals.bytes,
            disk_bytes: self.segments.bytes(),
            log_segments: count(Kind::Log),
            value_segments: count(Kind::Values),
            page_segments: count(Kind::Pages),
            garbage_bytes: garbage,
            unflushed_bytes: unflushed,
            cache_bytes: self.current().tree.pages().stats().memory_bytes as u64,
            value_cache_bytes: self.segments.cache().bytes() + self.answers().map_or(0, |answers| answers.bytes()),
            views: self.history().versions.held() as u64,
            view_bytes: self.counts.view_bytes.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            flush_waits: self.counts.flush_waits.load(Ordering::Relaxed),
            compaction_waits: self.counts.compaction_waits.load(Ordering::Relaxed),
            compactions: self.counts.compactions.load(Ordering::Relaxed),
            written_bytes: self.segments.written(),
            torn_tail_cut: self.torn,
            superblock_repaired: self.repaired.as_ref().map(ToString::to_string),
        }
    }
}

impl<H: Hasher> History<H> {
    fn raise_low(&mut self, low: Height) {
        if self.low.is_some_and(|before| before < low) {
            self.low = Some(low);
            self.index.forget_below(low);
            self.versions.retain(|version| version.height >= Some(low));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Fault, FaultyFiles, MemoryFiles};
    use keelstone_tree::Blake3;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Of heights that are kept no more, nothing is kept in memory either; one of them that somebody holds can be had again.
    #[test]
    fn records_are_known_of_the_heights_that_are_kept() {
        let options =
            Options { history: Retention::Heights(10), background: false, recent_versions: 1, ..Options::default() };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        for height in 0..100u64 {
            let value = Value::new(height.to_be_bytes().to_vec()).unwrap();
            let write = (Namespace::new("a").unwrap(), Key::new(*b"key").unwrap(), Some(value));
            shared.commit(Height(height), &[write].into_iter().collect::<Diff>(), || Ok(())).unwrap();
            assert!(shared.history().index.len() <= 10, "at height {height}");
        }
        for height in 90..100u64 {
            let value = shared.version_at(Height(height)).unwrap().get(&Namespace::new("a").unwrap(), b"key").unwrap();
            assert_eq!(value.as_deref(), Some(&height.to_be_bytes()[..]));
        }
        assert!(matches!(shared.version_at(Height(89)), Err(StoreError::NotRetained { .. })));
    }

    /// spec: STORE-17. A compaction takes no slice while a commit is in line for the writer, and goes on once none is.
    #[test]
    fn a_compaction_gives_way_to_commits_that_are_in_line() {
        let options = Options { background: false, ..Options::default() };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        let write = (Namespace::new("a").unwrap(), Key::new(*b"key").unwrap(), Some(Value::new(vec![1]).unwrap()));
        let diff: Diff = [write].into_iter().collect();
        shared.give_way();
        let (tell, told) = channel();
        std::thread::scope(|threads| {
            let writing = shared.writer();
            let committing = threads.spawn(|| shared.commit(Height(0), &diff, || Ok(())).unwrap());
            while shared.signals().in_line == 0 {
                std::thread::yield_now();
            }
            threads.spawn(|| {
                shared.give_way();
                tell.send(()).unwrap();
            });
            while !shared.signals().giving_way {
                std::thread::yield_now();
            }
            assert!(told.try_recv().is_err(), "a commit is in line");
            drop(writing);
            committing.join().unwrap();
            told.recv().unwrap();
        });
    }

    /// spec: STORE-12. What is let lie while a compaction is under way is garbage for the next one. Only what it cannot get is
    /// left behind, or each would let the store grow by what was written during the one before.
    #[test]
    fn what_is_let_lie_during_a_compaction_is_for_the_next_one() {
        let small = Options { segment_bytes: 8 << 10, page_segment_bytes: 8 << 10, ..Options::default() };
        let options = Options { history: Retention::Heights(1), garbage_percent: 0, background: false, ..small };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        let mut height = 0;
        let mut hundred_blocks = || {
            for _ in 0..100 {
                let key = Key::new(if height == 0 { *b"kept" } else { *b"busy" }).unwrap();
                let value = Some(Value::new(vec![1; 500]).unwrap());
                let diff: Diff = [(Namespace::new("a").unwrap(), key, value)].into_iter().collect();
                shared.commit(Height(height), &diff, || Ok(())).unwrap();
                height += 1;
            }
        };
        hundred_blocks();
        let mut meanwhile = 0;
        // As one that starts by itself.
        let compacting = Compacting::begin(&shared);
        let done = shared.compact(None, &mut |_| {
            if meanwhile == 0 {
                hundred_blocks();
            }
            meanwhile += 1;
            true
        });
        drop(compacting);
        let (emptied, (garbage, _), left) =
            (done.unwrap().segments_emptied, shared.reclaimable(), shared.signals().left);
        assert!(emptied > 3 && meanwhile > 0 && garbage > 30_000, "{emptied} segments, {garbage} bytes");
        assert!(left < garbage / 4, "{left} of {garbage} bytes are left behind");
    }

    /// spec: STORE-12. While a compaction is under way, commits let no larger part of what begins one lie than it has gone
    /// through, and an eighth; and nobody waits for one that was asked for.
    #[test]
    fn commits_keep_step_with_a_compaction() {
        let now = |compacting, passed| {
            let pass = Pass { passed, total: 1_000, began_at: 500 };
            Signals { compact_at: 100, compacting, pass, ..Signals::default() }
        };
        let ahead = |passed, let_lie| now(true, passed).is_ahead(let_lie);
        assert_eq!([499, 500, 512, 513].map(|let_lie| ahead(0, let_lie)), [false, false, false, true]);
        assert_eq!([513, 514].map(|let_lie| ahead(10, let_lie)), [false, true]);
        assert_eq!([612, 613].map(|let_lie| ahead(1_000, let_lie)), [false, true]);
        assert!(!now(false, 0).is_ahead(u64::MAX));
        let most = Signals { compact_at: u64::MAX, ..now(true, 1_000) };
        assert!(!most.is_ahead(u64::MAX), "no sum is too large");
        let yet_to_begin = Signals { pass: Pass::default(), ..now(true, 0) };
        assert!(!yet_to_begin.is_ahead(u64::MAX));
    }

    /// A compaction that commits are ahead of until it has passed thirty of its eighty.
    fn begin_behind_commits(shared: &Shared<Blake3>) -> Compacting<'_, Blake3> {
        let compacting = Compacting::begin(shared);
        shared.pass_begins(80);
        shared.signals().compact_at = 100;
        shared.counts().let_lie.store(50, Ordering::Relaxed);
        compacting
    }

    /// spec: STORE-12. A commit that is ahead of a compaction waits until a slice has caught up with it, and is counted once.
    #[test]
    fn a_commit_that_is_ahead_waits_for_a_slice() {
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), Options::default()).unwrap();
        let _compacting = begin_behind_commits(&shared);
        let (tell, told) = channel();
        std::thread::scope(|threads| {
            threads.spawn(|| tell.send(shared.wait_for_room()).unwrap());
            while shared.signals().held_back == 0 {
                std::thread::yield_now();
            }
            shared.passed(29);
            assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "it is ahead still");
            shared.passed(30);
            told.recv().unwrap().unwrap();
        });
        assert_eq!(shared.counts().compaction_waits.load(Ordering::Relaxed), 1);
        assert_eq!(shared.signals().held_back, 0);
    }

    /// spec: STORE-8. Whoever has looked whether a write failed, and waits for what comes of it, hears of one that fails in between.
    #[test]
    fn who_is_about_to_wait_hears_of_a_write_that_fails() {
        let options = Options { background: false, ..Options::default() };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        std::thread::scope(|threads| {
            let signals = shared.signals();
            shared.check_poison().unwrap();
            threads.spawn(|| shared.poisoning(|| Err::<(), _>(StoreError::Empty)).unwrap_err());
            while shared.check_poison().is_ok() {
                std::thread::yield_now();
            }
            // Time for whoever tells all that wait by now.
            std::thread::sleep(Duration::from_millis(50));
            let (_signals, waited) = shared.changed.wait_timeout(signals, Duration::from_secs(20)).unwrap();
            assert!(!waited.timed_out());
        });
    }

    /// spec: STORE-7, STORE-12. A check lets go of the upkeep while commits are ahead of a compaction, which may wait for it.
    #[test]
    fn a_check_gives_way_to_a_compaction_that_commits_are_ahead_of() {
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), Options::default()).unwrap();
        let _compacting = begin_behind_commits(&shared);
        let (tell, told) = channel();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                drop(shared.give_way_with(shared.upkeep()));
                tell.send(()).unwrap();
            });
            let soon = Duration::from_millis(50);
            assert!(told.recv_timeout(soon).is_err(), "they are ahead");
            drop(shared.upkeep());
            shared.passed(29);
            assert!(told.recv_timeout(soon).is_err(), "they are ahead still");
            shared.passed(30);
            told.recv_timeout(Duration::from_secs(20)).unwrap();
        });
        assert_eq!(shared.signals().held_back, 0);
    }

    /// spec: STORE-8. A store that writes nothing any more can be looked at, however much waits for a flush that will not come.
    #[test]
    fn a_store_that_is_poisoned_and_full_can_be_checked() {
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), Options::default()).unwrap();
        shared.commit(Height(0), &Diff::default(), || Ok(())).unwrap();
        shared.flush(&mut shared.upkeep()).unwrap();
        shared.signals().unflushed = u64::MAX;
        shared.poisoning(|| Err::<(), _>(StoreError::Empty)).unwrap_err();
        assert!(shared.check(CheckLevel::Full, &mut |_| true).unwrap().unwrap().is_sound());
    }

    /// spec: STORE-8. Of a commit that failed the record may be in the log, and no version of it here. Whoever waited meanwhile to
    /// write something does not, and the store opens.
    #[test]
    fn who_waited_while_a_commit_failed_writes_nothing() {
        type Work = fn(&Shared<Blake3>) -> Result<(), StoreError>;
        let works: [Work; 2] = [|shared| shared.rollback(Height(1)).map(drop), |shared| shared.prune(Height(1))];
        for work in works {
            let files = FaultyFiles::new(1);
            let options = Options { background: false, ..Options::default() };
            let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options.clone()).unwrap();
            let commit = |height: u64| {
                let value = Value::new(height.to_be_bytes().to_vec()).unwrap();
                let write = (Namespace::new("a").unwrap(), Key::new(*b"key").unwrap(), Some(value));
                shared.commit(Height(height), &[write].into_iter().collect::<Diff>(), || Ok(()))
            };
            for height in 0..3 {
                commit(height).unwrap();
            }
            std::thread::scope(|threads| {
                let upkeep = shared.upkeep();
                let waiting = threads.spawn(|| work(&shared));
                // Time to get to where it waits.
                std::thread::sleep(Duration::from_millis(50));
                // The record is written and synced; its mark is not.
                files.fail_at(files.changes() + 2, Fault::Io);
                commit(3).unwrap_err();
                let changes = files.changes();
                drop(upkeep);
                let error = waiting.join().unwrap().unwrap_err();
                assert!(matches!(error, StoreError::Poisoned { .. }), "{error}");
                assert_eq!(files.changes(), changes);
            });
            drop(shared);
            let opened = Shared::<Blake3>::open(Arc::new(files), options).unwrap();
            assert_eq!((opened.current().height, opened.low()), (Some(Height(3)), Some(Height(0))));
        }
    }

    /// A full disk has no room for the next segment of the log: it is not tried with each commit, but again once a flush may have
    /// let go of something.
    #[test]
    fn a_segment_that_could_not_be_made_in_good_time_is_tried_again_after_a_flush() {
        let once =
            Options { segment_bytes: 64 << 10, flush_bytes: u64::MAX / 2, garbage_percent: 0, ..Options::default() };
        let options = Options { background: false, ..once };
        let files = FaultyFiles::new(1);
        let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options).unwrap();
        let logs = || files.list().unwrap().iter().filter(|name| name.contains(".log")).count();
        let mut height = 0;
        let mut commit = || {
            let value = Value::new(vec![1; 500]).unwrap();
            let write = (Namespace::new("a").unwrap(), Key::new(*b"key").unwrap(), Some(value));
            shared.commit(Height(height), &[write].into_iter().collect::<Diff>(), || Ok(())).unwrap();
            height += 1;
        };
        while !shared.signals().foreseen {
            commit();
        }
        files.fail_at(files.changes(), Fault::NoSpace);
        for _ in 0..3 {
            commit();
            assert_eq!((shared.signals().foreseen, logs()), (false, 1));
        }
        shared.flush(&mut shared.upkeep()).unwrap();
        (0..2).for_each(|_| commit());
        assert_eq!(logs(), 2);
    }

    /// spec: STORE-12. What a compaction left behind may go without one, with a rollback or dead pages: it keeps none from beginning.
    #[test]
    fn what_is_gone_is_left_behind_no_more() {
        let options = Options { background: false, ..Options::default() };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        shared.leave(u64::MAX);
        shared.recount();
        let threshold = shared.signals().threshold();
        assert_eq!(threshold, shared.compact_at());
    }

    /// spec: STORE-7. Pages that no flush has written make a flush due and commits wait, as bytes of the log do; those that a
    /// flush does not get, since they are of versions that somebody holds, do neither.
    #[test]
    fn what_no_flush_can_write_stops_nobody() {
        let options = Options { flush_bytes: 1_000, cache_bytes: 400 << 20, ..Options::default() };
        let now = |unflushed, unwritten: u64, left: u64| {
            let (unwritten, unwritten_left) = (unwritten << 20, left << 20);
            let signals = Signals { unflushed, unwritten, unwritten_left, ..Signals::default() };
            (signals.is_time_to_flush(&options), signals.is_full(&options))
        };
        assert_eq!(
            [now(999, 99, 0), now(1_000, 0, 0), now(2_000, 0, 0)],
            [(false, false), (true, false), (true, true)]
        );
        assert_eq!([now(0, 100, 0), now(0, 199, 0), now(0, 200, 0)], [(true, false), (true, false), (true, true)]);
        assert_eq!(
            [now(0, 300, 201), now(0, 300, 200), now(0, 400, 200)],
            [(false, false), (true, false), (true, true)]
        );
        assert_eq!(now(0, 100, 300), (false, false), "they went meanwhile");
        let small = Options { cache_bytes: 0, ..options };
        assert_eq!(small.unwritten_bytes(), 8 << 20, "a flush of next to nothing is not worth it");
    }
}
