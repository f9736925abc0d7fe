//! The store: what one does with it. How it is done stands in the modules beside.

use crate::build::Building;
use crate::check::{CheckLevel, CheckReport};
use crate::commit::Prepared;
use crate::compact::Compacted;
use crate::files::Files;
use crate::mend::{Mended, Supplier};
use crate::scrub::{ScrubStanding, Scrubbed};
use crate::shared::Shared;
use crate::sync::thread::{self, JoinHandle};
use crate::{Options, StoreError, View};
use keelstone_codec::{Hash, Height, Key, Namespace, Root, Value};
use keelstone_tree::{Diff, Hasher};
use std::fmt;
use std::sync::Arc;

/// Durable versions of the state. Shared freely between threads; one process owns a directory.
///
/// Dropping a store lets go of its directory. Nothing acknowledged is lost by that, or by a kill at any moment.
pub struct Store<H: Hasher> {
    shared: Arc<Shared<H>>,
    /// The flusher and the compactor.
    threads: Vec<JoinHandle<()>>,
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
    /// [`ReadError::Gone`](keelstone_tree::ReadError::Gone) if the version it is rebuilt from expires meanwhile (spec: STORE-6).
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
        self.shared.close();
        for thread in self.threads.drain(..) {
            // One that panicked has poisoned the store, which was told to whoever waited for it.
            let _ = thread.join();
        }
    }
}
