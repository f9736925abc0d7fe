//! Who waits for whom: commits, flushes and compactions keep step, so that what waits has a bound and no commit waits for long.
//!
//! The flusher and the compactor are threads of the store's own. What they and the commits tell one another are [`Signals`]; a store
//! without threads does the same work in turn.
//!
//! Rules: `spec/store.md`, STORE-7, STORE-12, STORE-17.

use crate::flush::Upkeep;
use crate::segment::SegmentId;
use crate::shared::{Shared, Writer};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::{Options, StoreError};
use keelstone_codec::Height;
use keelstone_tree::Hasher;
use std::collections::VecDeque;
use std::sync::PoisonError;

/// Commits may be ahead of a compaction by one such part of what begins one.
const AHEAD: u64 = 8;

/// What the store's threads tell one another.
#[derive(Debug, Default)]
pub(crate) struct Signals {
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
    /// Of a store that was just opened.
    pub(crate) fn new(unflushed: u64, open_log: Option<SegmentId>) -> Self {
        Self { unflushed, compact_at: u64::MAX, open_log, ..Self::default() }
    }

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

impl<H: Hasher> Shared<H> {
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

    pub(crate) fn signals(&self) -> MutexGuard<'_, Signals> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the log that no flush has covered.
    pub(crate) fn unflushed(&self) -> u64 {
        self.signals().unflushed
    }

    /// Garbage that is worth a pass.
    pub(crate) fn compact_at(&self) -> u64 {
        self.signals().compact_at
    }

    /// Ends the lives of the flusher and the compactor.
    pub(crate) fn close(&self) {
        self.signals().closing = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.signals().closing
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
    pub(crate) fn count_pages(&self, signals: &mut Signals) -> bool {
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
    pub(crate) fn flush_in_background(&self) {
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
    pub(crate) fn compact_in_background(&self) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Retention;
    use crate::check::CheckLevel;
    use crate::files::{Fault, FaultyFiles, Files as _, MemoryFiles};
    use keelstone_codec::{Key, Namespace, Value};
    use keelstone_tree::{Blake3, Diff};
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

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
