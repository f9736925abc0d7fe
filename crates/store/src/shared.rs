//! What the store's threads share: the last version, the writer, history, and the word that nothing is written any more.
//!
//! Rules: `spec/store.md`, STORE-4, STORE-5, STORE-8.

use crate::answers::Answers;
use crate::commit::Syncer;
use crate::files::Guard;
use crate::flush::Upkeep;
use crate::history::{self, Index, Made, Undone};
use crate::log::{self, Log};
use crate::pace::Signals;
use crate::record::Step;
use crate::recover::Found;
use crate::scrub::{self, Scrub};
use crate::segment::{Kind, Spot};
use crate::segments::{Segments, Usage};
use crate::store::{Change, CommittedDiff, Stats};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::version::{Version, Versions};
use crate::{Options, Retention, StoreError};
use arc_swap::ArcSwap;
use keelstone_codec::Height;
use keelstone_tree::{Draft, Hasher, ReadError};
use std::sync::{Arc, PoisonError};

/// What the store's threads share. Locks are taken in the order scrub, compacting, upkeep, writer, history; never the other way.
pub(crate) struct Shared<H: Hasher> {
    pub(crate) options: Options,
    pub(crate) segments: Arc<Segments>,
    pub(crate) current: ArcSwap<Version<H>>,
    /// What was read of the last versions; none if there is no room for any.
    answers: Option<Arc<Answers>>,
    writer: Mutex<Writer>,
    upkeep: Mutex<Upkeep>,
    history: Mutex<History<H>>,
    /// One compaction at a time.
    pub(crate) compacting: Mutex<()>,
    pub(crate) signals: Mutex<Signals>,
    /// Told when there is something to do, when something is done, and when the store closes.
    pub(crate) changed: Condvar,
    poison: Mutex<Option<String>>,
    pub(crate) syncer: Option<Syncer>,
    /// One slice of a scrub at a time.
    pub(crate) scrub: Mutex<Scrub>,
    /// What compactions could not read, until the scrub has told it or it is mended. No other lock is taken under it.
    unreadable: Mutex<Vec<StoreError>>,
    commits: AtomicU64,
    pub(crate) counts: Counts,
    pub(crate) repaired: Option<StoreError>,
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
        let signals = Signals::new(writer.unflushed, open_log);
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

    pub(crate) fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, History<H>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(crate) fn poison(&self, error: &StoreError) {
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

    pub(crate) fn not_retained(&self, height: Height) -> StoreError {
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

    pub(crate) fn diff_at(&self, height: Height) -> Result<CommittedDiff, StoreError> {
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
        Stats {
            entries: totals.count,
            entry_bytes: totals.bytes,
            disk_bytes: self.segments.bytes(),
            log_segments: count(Kind::Log),
            value_segments: count(Kind::Values),
            page_segments: count(Kind::Pages),
            garbage_bytes: garbage,
            unflushed_bytes: self.unflushed(),
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
    use keelstone_codec::{Key, Namespace, Value};
    use keelstone_tree::{Blake3, Diff};
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
}
