//! Committing: one descent of the diff, then the record's sync beside the hashing and beside what the caller has to
//! write; and taking commits back.
//!
//! Rules: `spec/store.md`, STORE-3, STORE-5, STORE-8 and STORE-9.

use crate::log::{Append, Appended};
use crate::record::{self, Head, Layout, Step};
use crate::shared::{Shared, Writer};
use crate::sync::atomic::Ordering;
use crate::sync::mpsc;
use crate::sync::thread::{self, JoinHandle};
use crate::version::Version;
use crate::{Retention, StoreError};
use keelstone_codec::{Height, Root};
use keelstone_tree::{Diff, Hasher, Place};
use keelstone_tree::{Draft, Entry, Passed};
use std::sync::Arc;

/// A diff whose root is known and that nobody has committed. Dropped, it never happened (spec: STORE-9).
pub struct Prepared<H: Hasher> {
    diff: Diff,
    layout: Layout,
    draft: Draft<H>,
    before: Root,
    /// The turn of the writer it was prepared in. In a later one, values may lie elsewhere.
    turn: u64,
}

impl<H: Hasher> Prepared<H> {
    /// The root the state will have.
    #[must_use]
    pub fn root(&self) -> Root {
        self.draft.root()
    }

    /// The root of the version it was prepared on.
    #[must_use]
    pub fn root_before(&self) -> Root {
        self.before
    }

    /// The writes.
    #[must_use]
    pub fn diff(&self) -> &Diff {
        &self.diff
    }
}

impl<H: Hasher> std::fmt::Debug for Prepared<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} writes that lead from {} to {}", self.diff.len(), self.before, self.root())
    }
}

impl<H: Hasher> Shared<H> {
    pub(crate) fn prepare(&self, diff: Diff) -> Result<Prepared<H>, StoreError> {
        let layout = Layout::of(&diff)?;
        let (turn, version) = {
            let writer = self.writer();
            (writer.turn, self.current())
        };
        let draft = version.tree.prepare(&diff)?;
        Ok(Prepared { diff, layout, draft, before: version.root, turn })
    }

    // spec: STORE-3
    pub(crate) fn commit(
        &self,
        height: Height,
        diff: &Diff,
        beside: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Root, StoreError> {
        let layout = Layout::of(diff)?;
        self.wait_for_room()?;
        let mut writer = self.writer_in_turn();
        let _poisoned = self.poisoned_by_panic();
        let version = self.next_after(height)?;
        // The record leaves for the disk as soon as the descent has found what it replaces; hashing goes on beside.
        let mut waiting = None;
        let draft = version.tree.prepare_with(diff, |replaced| {
            waiting = Some(self.begin_append(&mut writer, &version, height, diff, &layout, replaced));
        })?;
        let waiting = waiting.expect("a draft was made, so its descent was done")?.with(beside);
        self.finish_append(&mut writer, &version, height, waiting, draft, diff, &layout)
    }

    pub(crate) fn commit_prepared(
        &self,
        height: Height,
        prepared: Prepared<H>,
        beside: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Root, StoreError> {
        self.wait_for_room()?;
        let mut writer = self.writer_in_turn();
        let version = self.next_after(height)?;
        if prepared.before != version.root {
            return Err(StoreError::Stale { prepared: prepared.before, current: version.root });
        }
        if prepared.turn != writer.turn {
            // The same root, but compaction may have moved values meanwhile.
            drop(writer);
            return self.commit(height, &prepared.diff, beside);
        }
        let Prepared { diff, draft, layout, .. } = prepared;
        let _poisoned = self.poisoned_by_panic();
        let waiting = self.begin_append(&mut writer, &version, height, &diff, &layout, draft.replaced())?;
        let waiting = waiting.with(beside);
        self.finish_append(&mut writer, &version, height, waiting, draft, &diff, &layout)
    }

    /// The version that `height` continues.
    fn next_after(&self, height: Height) -> Result<Arc<Version<H>>, StoreError> {
        self.check_poison()?;
        let version = self.current();
        let expected = version.height.map_or(height, Height::next);
        // None could follow the highest there is.
        match expected == height && height != Height(u64::MAX) {
            true => Ok(version),
            false => Err(StoreError::WrongHeight { expected, found: height }),
        }
    }

    /// Sends the record of a diff on its way.
    fn begin_append(
        &self,
        writer: &mut Writer,
        version: &Version<H>,
        height: Height,
        diff: &Diff,
        layout: &Layout,
        replaced: &[Option<Entry>],
    ) -> Result<Waiting, StoreError> {
        let last = version.height.unwrap_or(height);
        self.poisoning(|| writer.log.make_room(layout.len, version.epoch, last, version.root))?;
        let head = Head {
            len: layout.len,
            step: Step::Commit,
            epoch: version.epoch,
            height,
            root_before: version.root,
            previous: writer.log.hash(),
            parent: version.record,
        };
        let olds: Vec<Option<Place>> = replaced.iter().map(|old| old.map(|entry| entry.place)).collect();
        Ok(self.send(writer.log.append(record::encode_commit(&head, diff, &olds))))
    }

    /// Puts together the version a record leads to, and puts it in place once the record is durable.
    #[expect(clippy::too_many_arguments, reason = "the two halves of a commit share what the first one found")]
    fn finish_append(
        &self,
        writer: &mut Writer,
        before: &Version<H>,
        height: Height,
        waiting: Waiting,
        draft: Draft<H>,
        diff: &Diff,
        layout: &Layout,
    ) -> Result<Root, StoreError> {
        // While the record is on its way, its place is known: the version is put together, and nobody sees it yet.
        let start = writer.log.end();
        let places: Vec<Option<Place>> = layout.places(start).collect();
        let new =
            places.iter().zip(diff.iter()).map(|(place, (_, write))| Some(((*place)?, write.value.as_ref()?.len())));
        let passed = draft.pass();
        self.segments.count_commit(new, draft.replaced(), height);
        self.segments.count_passed(&passed);
        self.count_let_lie(draft.replaced(), &passed);
        let tree = draft.commit(|index| places[index].expect("asked only for values"));
        let version = Version::new(Some(height), before.epoch, tree, Some(start), self.passes());
        let root = version.root;
        let written = self.answers().map(|answers| (answers, answers.look(diff)));
        let appended = self.poisoning(|| waiting.wait())?;
        writer.log.advance(&appended);
        self.poisoning(|| writer.log.mark(version.epoch, height, root))?;
        version.join_line(written.map(|(answers, written)| answers.advance(diff, &written)));
        self.install(writer, version);
        self.wrote(writer, appended.bytes);
        Ok(root)
    }

    /// Counts what a compaction will once get of what a commit replaced. Values that history keeps are not.
    fn count_let_lie(&self, replaced: &[Option<Entry>], passed: &Passed) {
        let pages: u64 = passed.unneeded.iter().map(|page| u64::from(page.len)).sum();
        let values: u64 = match self.options.history {
            Retention::All => 0,
            Retention::Heights(_) => replaced.iter().flatten().map(|entry| u64::from(entry.value_len)).sum(),
        };
        self.counts().let_lie.fetch_add(pages + values, Ordering::Relaxed);
    }

    // spec: STORE-5
    pub(crate) fn rollback(&self, to: Height) -> Result<Root, StoreError> {
        // Upkeep waits: a flush must not write a version that is being taken back.
        let _upkeep = self.upkeep();
        let mut writer = self.sound_writer()?;
        let _poisoned = self.poisoned_by_panic();
        let current = self.current();
        let (target, undone) = self.undo(&current, to).map_err(|error| match error {
            StoreError::NotRetained { height: to, low, high } => StoreError::CannotRollBack { to, low, high },
            other => other,
        })?;
        let epoch = current.epoch + 1;
        let appended = self.poisoning(|| {
            let last = current.height.unwrap_or(to);
            writer.log.make_room(record::SMALL_BYTES as u64, current.epoch, last, current.root)?;
            let head = Head {
                len: 0,
                step: Step::Rollback,
                epoch,
                height: to,
                root_before: current.root,
                previous: writer.log.hash(),
                parent: target.record,
            };
            self.send(writer.log.append(record::encode_small(head, target.root))).wait()
        })?;
        writer.log.advance(&appended);
        let version = Version::new(Some(to), epoch, target.tree.clone(), target.record, target.passes);
        let root = version.root;
        self.poisoning(|| writer.log.mark(epoch, to, root))?;
        undone.iter().for_each(|undone| self.segments.count_undone(undone));
        self.install_rollback(&mut writer, version);
        self.wrote(&mut writer, appended.bytes);
        Ok(root)
    }

    /// Starts an append on the syncing thread if there is one.
    fn send(&self, append: Append) -> Waiting {
        match &self.syncer {
            Some(syncer) => syncer.send(append),
            None => Waiting::Done(Box::new(append.run())),
        }
    }
}

/// A record that is being made durable.
pub(crate) enum Waiting {
    Done(Box<Result<Appended, StoreError>>),
    Sent(mpsc::Receiver<Result<Appended, StoreError>>),
}

impl Waiting {
    /// Does `work` meanwhile. The record is waited for whatever comes of it: nothing may be written behind one that is on
    /// its way. If the work fails, the commit does.
    fn with(self, work: impl FnOnce() -> Result<(), StoreError>) -> Self {
        match work() {
            Ok(()) => self,
            Err(error) => Self::Done(Box::new(self.wait().and(Err(error)))),
        }
    }

    fn wait(self) -> Result<Appended, StoreError> {
        match self {
            Self::Done(result) => *result,
            // The sender goes away unanswered only if its thread died over this record.
            Self::Sent(answer) => answer.recv().unwrap_or_else(|_| {
                Err(StoreError::io("sync", "the log")(std::io::Error::other("the syncing thread is gone")))
            }),
        }
    }
}

type Job = (Append, mpsc::SyncSender<Result<Appended, StoreError>>);

/// The thread that makes records durable while their roots are hashed.
#[derive(Debug)]
pub(crate) struct Syncer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    pub(crate) fn start() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || {
            for (append, answer) in inbox {
                // Nobody waiting any more means that nobody was told.
                let _ = answer.send(append.run());
            }
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    fn send(&self, append: Append) -> Waiting {
        let (answer, waiting) = mpsc::sync_channel(1);
        if let Some(jobs) = &self.jobs {
            // If the thread is gone, the answer's sender is dropped with the job, and waiting says so.
            let _ = jobs.send((append, answer));
        }
        Waiting::Sent(waiting)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
