//! The store itself (for now in memory, with the diffs in a file each, so that others can build on its interface).

use crate::files::{Files, Guard, LockError};
use crate::{Options, StoreError, View};
use keelstone_codec::{Decode, Encode, Hash, Height, Key, Namespace, Root, Value};
use keelstone_tree::{Diff, Hasher, MemoryTree, Read};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Durable versions of the state. Shared freely between threads; one process owns a directory.
#[derive(Debug)]
pub struct Store<H: Hasher> {
    files: Arc<dyn Files>,
    _lock: Box<dyn Guard>,
    inner: RwLock<Inner<H>>,
}

#[derive(Debug)]
struct Inner<H: Hasher> {
    epoch: u64,
    low: Option<Height>,
    versions: BTreeMap<Height, (Diff, Arc<MemoryTree<H>>, Root)>,
}

/// A diff whose root is known and that nobody has committed. Dropped, it never happened (spec: STORE-9).
#[derive(Debug, Clone)]
pub struct Prepared<H: Hasher> {
    before: Root,
    root: Root,
    diff: Diff,
    tree: Arc<MemoryTree<H>>,
}

impl<H: Hasher> Prepared<H> {
    /// The root the state will have.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
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

/// How thorough a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckLevel {
    /// Superblocks, segment headers and the unflushed log.
    Quick,
    /// Every page and every value by its hash, every sector of the log by its checksum.
    Full,
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

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// Pages proven by their hash.
    pub pages: u64,
    /// Values proven by their hash.
    pub values: u64,
    /// Log records whose checksum and links hold.
    pub records: u64,
    /// Sectors whose checksum holds.
    pub sectors: u64,
    /// What is wrong, at most the first 1,000.
    pub problems: Vec<StoreError>,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Values moved.
    pub values_moved: u64,
    /// Pages written again.
    pub pages_moved: u64,
    /// Bytes of segments removed.
    pub bytes_freed: u64,
}

/// Figures of a store at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries in the last version.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub entry_bytes: u64,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// Segments of the log.
    pub log_segments: u64,
    /// Segments that compaction wrote values to.
    pub value_segments: u64,
    /// Segments of pages.
    pub page_segments: u64,
    /// Bytes of values and pages that no retained version needs.
    pub garbage_bytes: u64,
    /// Bytes of diffs that the pages do not have yet.
    pub unflushed_bytes: u64,
    /// Bytes of pages in memory.
    pub cache_bytes: u64,
    /// Bytes of value blocks in memory.
    pub value_cache_bytes: u64,
    /// Views at a height other than the last that are open.
    pub views: u64,
    /// Commits since the store was opened.
    pub commits: u64,
    /// Bytes written to files since the store was opened.
    pub written_bytes: u64,
}

impl<H: Hasher> Store<H> {
    /// Makes a store where there is none.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::InUse`], [`StoreError::Io`].
    pub fn create(files: Arc<dyn Files>, options: Options) -> Result<Self, StoreError> {
        let store = Self::attach(files, options)?;
        if store.inner().versions.is_empty() { Ok(store) } else { Err(StoreError::Exists) }
    }

    /// Opens a store that exists.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::InUse`], [`StoreError::Damaged`], [`StoreError::Io`], ...
    pub fn open(files: Arc<dyn Files>, options: Options) -> Result<Self, StoreError> {
        Self::attach(files, options)
    }

    /// Whether the directory holds a store.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn exists(files: &dyn Files) -> Result<bool, StoreError> {
        Ok(!files.list().map_err(StoreError::io("list", "the directory"))?.iter().all(|name| name == "LOCK"))
    }

    fn attach(files: Arc<dyn Files>, _: Options) -> Result<Self, StoreError> {
        let lock = files.lock().map_err(|error| match error {
            LockError::InUse { pid } => StoreError::InUse { pid },
            LockError::Io(error) => StoreError::io("lock", "LOCK")(error),
        })?;
        let mut inner = Inner { epoch: 0, low: None, versions: BTreeMap::new() };
        let mut tree = MemoryTree::<H>::new();
        for name in files.list().map_err(StoreError::io("list", "the directory"))? {
            let Some(height) = name.strip_prefix("diff-").and_then(|height| height.parse().ok()) else { continue };
            let file = files.open(&name).map_err(StoreError::io("open", &name))?;
            let mut bytes = vec![0; usize::try_from(file.len().unwrap_or(0)).unwrap_or(0)];
            file.read_at(0, &mut bytes).map_err(StoreError::io("read", &name))?;
            let diff = Diff::from_bytes(&bytes).map_err(|error| StoreError::damaged(&name, 0, error.to_string()))?;
            let root = tree.apply(&diff);
            inner.versions.insert(Height(height), (diff, Arc::new(tree.clone()), root));
        }
        inner.low = inner.versions.keys().next().copied();
        Ok(Self { files, _lock: lock, inner: RwLock::new(inner) })
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner<H>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner_mut(&self) -> RwLockWriteGuard<'_, Inner<H>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last committed height, none before the first.
    #[must_use]
    pub fn height(&self) -> Option<Height> {
        self.view().height()
    }

    /// The lowest height that can be viewed, none before the first commit.
    #[must_use]
    pub fn low(&self) -> Option<Height> {
        self.inner().low
    }

    /// The root of the last version.
    #[must_use]
    pub fn root(&self) -> Root {
        self.view().root()
    }

    /// How often history was rolled back.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner().epoch
    }

    /// Computes the root a diff would lead to. Nothing of it is durable, and it can be repeated (spec: STORE-9).
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::Read`].
    pub fn prepare(&self, diff: Diff) -> Result<Prepared<H>, StoreError> {
        let view = self.view();
        let mut tree = MemoryTree::clone(&view.tree);
        let root = tree.apply(&diff);
        Ok(Prepared { before: view.root, root, diff, tree: Arc::new(tree) })
    }

    /// Commits a diff: when this returns, it is durable.
    ///
    /// # Errors
    /// [`StoreError::WrongHeight`], [`StoreError::TooLarge`], [`StoreError::Poisoned`], [`StoreError::Io`], ...
    pub fn commit(&self, height: Height, diff: Diff) -> Result<Root, StoreError> {
        let prepared = self.prepare(diff)?;
        self.commit_prepared(height, prepared)
    }

    /// Commits what was prepared on the last version.
    ///
    /// # Errors
    /// [`StoreError::Stale`], and as [`Self::commit`].
    pub fn commit_prepared(&self, height: Height, prepared: Prepared<H>) -> Result<Root, StoreError> {
        let current = self.root();
        if prepared.before != current {
            return Err(StoreError::Stale { prepared: prepared.before, current });
        }
        let mut inner = self.inner_mut();
        if let Some((last, _)) = inner.versions.last_key_value().filter(|(last, _)| last.next() != height) {
            return Err(StoreError::WrongHeight { expected: last.next(), found: height });
        }
        let name = format!("diff-{:020}", height.0);
        let bytes = prepared.diff.to_bytes();
        let file = self.files.create(&name, bytes.len() as u64).map_err(StoreError::io("create", &name))?;
        file.write_at(0, &bytes).and_then(|()| file.sync()).map_err(StoreError::io("write", &name))?;
        self.files.sync_directory().map_err(StoreError::io("sync", &name))?;
        inner.low.get_or_insert(height);
        inner.versions.insert(height, (prepared.diff, prepared.tree, prepared.root));
        Ok(prepared.root)
    }

    /// The last version.
    #[must_use]
    pub fn view(&self) -> View<H> {
        match self.inner().versions.last_key_value() {
            Some((height, (_, tree, root))) => View { height: Some(*height), root: *root, tree: Arc::clone(tree) },
            None => {
                let mut tree = MemoryTree::new();
                View { height: None, root: tree.apply(&Diff::default()), tree: Arc::new(tree) }
            }
        }
    }

    /// The version at a retained height.
    ///
    /// # Errors
    /// [`StoreError::NotRetained`] with the heights there are, [`StoreError::Empty`], or what reading says.
    pub fn view_at(&self, height: Height) -> Result<View<H>, StoreError> {
        let inner = self.inner();
        let kept = inner.versions.get(&height).filter(|_| inner.low.is_some_and(|low| low <= height));
        match kept {
            Some((_, tree, root)) => Ok(View { height: Some(height), root: *root, tree: Arc::clone(tree) }),
            None => Err(Self::not_retained(&inner, height)),
        }
    }

    fn not_retained(inner: &Inner<H>, height: Height) -> StoreError {
        match (inner.low, inner.versions.last_key_value()) {
            (Some(low), Some((high, _))) => StoreError::NotRetained { height, low, high: *high },
            _ => StoreError::Empty,
        }
    }

    /// What a retained height changed, with what it replaced.
    ///
    /// # Errors
    /// As [`Self::view_at`].
    pub fn diff_at(&self, height: Height) -> Result<CommittedDiff, StoreError> {
        let inner = self.inner();
        let Some((diff, _, _)) = inner.versions.get(&height).filter(|_| inner.low.is_some_and(|low| low <= height))
        else {
            return Err(Self::not_retained(&inner, height));
        };
        let mut empty = MemoryTree::new();
        let none = (Diff::default(), Arc::new(empty.clone()), empty.apply(&Diff::default()));
        let (_, before, root_before) = inner.versions.range(..height).next_back().map_or(&none, |(_, version)| version);
        let mut changes = Vec::with_capacity(diff.len());
        for (namespace, write) in diff.iter() {
            let old = before.get(namespace, &write.key)?.map(|value| H::hash(&value));
            let (namespace, key) = (namespace.clone(), write.key.clone());
            changes.push(Change { namespace, key, old, new: write.value.clone() });
        }
        Ok(CommittedDiff { height, root_before: *root_before, changes })
    }

    /// Makes an earlier height the last one again, durably, under a new epoch (spec: STORE-5).
    ///
    /// # Errors
    /// [`StoreError::CannotRollBack`], and as [`Self::commit`].
    pub fn rollback(&self, to: Height) -> Result<Root, StoreError> {
        let view = self.view_at(to)?;
        let mut inner = self.inner_mut();
        let later = inner.versions.split_off(&to.next());
        for height in later.keys() {
            let name = format!("diff-{:020}", height.0);
            self.files.remove(&name).map_err(StoreError::io("remove", &name))?;
        }
        inner.epoch += 1;
        Ok(view.root)
    }

    /// Gives up all heights before `before`. Their space is freed as compaction gets to it.
    ///
    /// # Errors
    /// [`StoreError::NotRetained`] above the last height, and as [`Self::commit`].
    pub fn prune(&self, before: Height) -> Result<(), StoreError> {
        let mut inner = self.inner_mut();
        if inner.versions.last_key_value().is_none_or(|(last, _)| *last < before) {
            return Err(Self::not_retained(&inner, before));
        }
        inner.low = inner.low.max(Some(before));
        Ok(())
    }

    /// Moves what lives out of segments that are mostly garbage, and removes segments nobody needs. Commits and reads go
    /// on meanwhile.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn compact(&self, _progress: &mut dyn FnMut(Progress)) -> Result<Compacted, StoreError> {
        Ok(Compacted::default())
    }

    /// Looks for damage and changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the disk cannot be read at all. Damage is in the report.
    pub fn check(&self, _level: CheckLevel, _progress: &mut dyn FnMut(Progress)) -> Result<CheckReport, StoreError> {
        Ok(CheckReport::default())
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let totals = self.view().totals();
        Stats { entries: totals.count, entry_bytes: totals.bytes, ..Stats::default() }
    }

    /// Writes the pages of the last version and a superblock, so that the next open has nothing to replay.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Flushes and lets go of the directory. Dropping a store does the latter only; nothing acknowledged is lost either
    /// way.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn close(self) -> Result<(), StoreError> {
        self.flush()
    }
}
