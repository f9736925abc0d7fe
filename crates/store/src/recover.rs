//! Making a store, and opening one: the superblock, then what the log has beyond it.

use crate::appender::Appender;
use crate::files::{Files, Guard, LockError};
use crate::flush::{Table, Upkeep, table_place};
use crate::history::{self, Index, Steps, Undone};
use crate::log::{self, Log, Tail};
use crate::record::{Record, Step};
use crate::segment::{Kind, SegmentId, Spot};
use crate::segments::Segments;
use crate::shared::{Shared, Writer};
use crate::superblock::{self, Flushed, Superblock, SuperblockFile};
use crate::version::{Version, Versions};
use crate::{Options, StoreError};
use keelstone_codec::{Hash, Height, Root};
use keelstone_tree::{Draft, Hasher, Place};
use keelstone_tree::{Pages, Tree};
use std::sync::Arc;

impl<H: Hasher> Shared<H> {
    /// Makes a store where there is none. It exists from one rename on (spec: STORE-10).
    pub(crate) fn create(files: Arc<dyn Files>, options: Options) -> Result<Self, StoreError> {
        let (lock, segments) = clear_ground(&files, &options)?;
        let log = Log::create(Arc::clone(&segments), options.segment_bytes)?;
        let (generation, size) = (log.generation(), options.page_segment_bytes);
        let pages = Appender::new(Arc::clone(&segments), Kind::Pages, None, generation, size)?;
        let version = Version::new(None, 0, Tree::empty(&options.arena(&segments)), None, 0);
        Self::found(options, lock, segments, log, pages, None, version)
    }

    /// Makes the store exist, with everything it refers to durable: `table` says where the first version lies, unless
    /// it is that without a height.
    pub(crate) fn found(
        options: Options,
        lock: Box<dyn Guard>,
        segments: Arc<Segments>,
        log: Log,
        pages: Appender,
        table: Option<(Spot, u32, Hash)>,
        version: Arc<Version<H>>,
    ) -> Result<Self, StoreError> {
        let flushed = Flushed {
            height: version.height,
            root: version.root,
            table,
            record: version.record,
            log_hash: log.hash(),
            log: log.end(),
            pages: pages.end(),
        };
        let (store, generation, low) = (*segments.store(), log.generation(), version.height);
        let first = Superblock { store, hasher: H::KIND, sequence: 1, generation, epoch: 0, low, flushed };
        SuperblockFile::build(segments.files(), &first)?;
        SuperblockFile::switch(segments.files())?;

        let (file, superblock, _) = SuperblockFile::open(segments.files())?;
        let upkeep = Upkeep { file, superblock, pages, retired: Vec::new(), written: None };
        let mut index = Index::default();
        let mut versions = Versions::new(options.bounds());
        versions.replace_last(&version);
        if let (Some(height), Some(record)) = (version.height, version.record) {
            index.push(height, record);
        }
        let found = Found { version, low, index, versions, repaired: None, torn: false, in_doubt: None };
        Ok(Self::assemble(options, lock, segments, Writer::new(log, 0), upkeep, found))
    }

    /// Opens a store: the version the superblock names, then every record the log has beyond it.
    pub(crate) fn open(files: Arc<dyn Files>, options: Options) -> Result<Self, StoreError> {
        Self::open_at(files, options, STRIDE)
    }

    fn open_at(files: Arc<dyn Files>, options: Options, stride: Stride) -> Result<Self, StoreError> {
        let lock = files.lock().map_err(lock_error)?;
        let (file, superblock, repaired) = SuperblockFile::open(&*files)?;
        if superblock.hasher != H::KIND {
            let (expected, found) = (H::KIND.to_string(), superblock.hasher.to_string());
            return Err(StoreError::WrongHasher { expected, found });
        }
        let Replayed { segments, kept, index, versions, low, version, bytes, tail } =
            match Replayed::of(&files, &options, &superblock, stride) {
                Err(Failed::Together(_)) => Replayed::of(&files, &options, &superblock, ALONE),
                other => other,
            }
            .map_err(|(Failed::Together(error) | Failed::Store(error))| error)?;

        if let Some(marked) = tail.marked.filter(|marked| *marked != version.root) {
            let (file, offset) = (tail.segment.name(), u64::from(tail.next) * crate::files::SECTOR_BYTES as u64);
            let what = format!("the log ends with root {}, its mark says {marked}", version.root);
            return Err(StoreError::damaged(file, offset, what));
        }
        tail.make_durable()?;
        // A session of its own, so that what is written from now on can be told from what a crash left behind.
        let generation = superblock.generation.max(tail.generation) + 1;
        let superblock = Superblock { generation, sequence: superblock.sequence + 1, ..superblock };
        file.write(&superblock)?;
        // A rollback may have come back to a value that was moved before the crash; only a pass over the state can tell.
        let emptied = (version.epoch == superblock.epoch).then(|| version.height.unwrap_or(Height(0)));
        let flushed = superblock.flushed;
        clean_up(&segments, &kept, flushed.log.segment, tail.segment.id(), emptied)?;

        let (torn, in_doubt) = (tail.torn, version.height.filter(|_| tail.is_in_doubt()));
        let log = Log::resume(Arc::clone(&segments), tail, generation, options.segment_bytes);
        if torn {
            log.cut(version.height.map(|height| (version.epoch, height, version.root)))?;
        }
        let (start, size) = (flushed.pages, options.page_segment_bytes);
        let pages = Appender::new(Arc::clone(&segments), Kind::Pages, start, generation, size)?;
        let upkeep = Upkeep { file, superblock, pages, retired: Vec::new(), written: None };
        let found = Found { version, low, index, versions, repaired, torn, in_doubt };
        Ok(Self::assemble(options, lock, segments, Writer::new(log, bytes), upkeep, found))
    }
}

/// What opening found.
pub(crate) struct Found<H: Hasher> {
    pub(crate) version: Arc<Version<H>>,
    pub(crate) low: Option<Height>,
    pub(crate) index: Index,
    pub(crate) versions: Versions<H>,
    /// What was wrong with a superblock slot that has been written anew.
    pub(crate) repaired: Option<StoreError>,
    /// Whether a record that was never acknowledged has been cut.
    pub(crate) torn: bool,
    /// The last height, if nothing says that its commit was acknowledged.
    pub(crate) in_doubt: Option<Height>,
}

/// Takes a directory in which no store is, and sweeps it.
pub(crate) fn clear_ground(
    files: &Arc<dyn Files>,
    options: &Options,
) -> Result<(Box<dyn Guard>, Arc<Segments>), StoreError> {
    let lock = files.lock().map_err(lock_error)?;
    if !sweep(&**files)? {
        return Err(StoreError::Exists);
    }
    let store = match options.id {
        Some(id) => id,
        None => random_id()?,
    };
    let segments = Segments::new(Arc::clone(files), store, options.block_bytes());
    Ok((lock, Arc::new(segments)))
}

/// Removes what a store that did not come to be left behind: it belongs to nobody. False, and nothing is touched, if
/// there is a store.
pub(crate) fn sweep(files: &dyn Files) -> Result<bool, StoreError> {
    let names = list(files)?;
    if names.iter().any(|name| name == superblock::FILE) {
        return Ok(false);
    }
    for name in names.iter().filter(|name| name.ends_with(".new") || is_segment(name)) {
        files.remove(name).map_err(StoreError::io("remove", name))?;
    }
    Ok(true)
}

pub(crate) fn lock_error(error: LockError) -> StoreError {
    match error {
        LockError::InUse { pid } => StoreError::InUse { pid },
        LockError::Io(error) => StoreError::io("lock", "LOCK")(error),
    }
}

pub(crate) fn list(files: &dyn Files) -> Result<Vec<String>, StoreError> {
    files.list().map_err(StoreError::io("list", "the directory"))
}

/// Whether a file name is that of some store's segment.
fn is_segment(name: &str) -> bool {
    let Some((stem, extension)) = name.split_once('.') else { return false };
    let kind = matches!(extension, "log" | "values" | "pages");
    kind && stem.len() == 19 && stem.as_bytes()[8] == b'-'
}

fn random_id() -> Result<[u8; 16], StoreError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| StoreError::io("draw", "the store's id")(std::io::Error::other(error.to_string())))?;
    Ok(id)
}

/// Bytes of pages that [`open_aside`] keeps: those above the ones that are looked at.
const ASIDE_BYTES: usize = 64 << 20;

/// Opens the segments that a superblock's table names, and the tree that begins in it.
pub(crate) fn open_tree<H: Hasher>(
    segments: &Arc<Segments>,
    flushed: &Flushed,
    arena: &Arc<Pages<H>>,
) -> Result<Tree<H>, StoreError> {
    let Some((spot, len, hash)) = table_place(flushed) else {
        segments.open(flushed.log.segment)?;
        return Ok(Tree::empty(arena));
    };
    let bytes = segments.open(spot.segment)?.read(spot.offset, len)?;
    let damaged =
        |what: String| StoreError::damaged(spot.segment.file_name(segments.store()), spot.offset.into(), what);
    if Table::hash(&bytes) != hash {
        return Err(damaged(format!("the table's hash is {}, the superblock says {hash}", Table::hash(&bytes))));
    }
    let table = <Table as keelstone_codec::Decode>::from_bytes(&bytes).map_err(|error| damaged(error.to_string()))?;
    segments.open_all(table.segments)?;
    Ok(Tree::open(arena, &table.top, flushed.root)?)
}

/// As [`open_tree`], with pages of its own of which few are kept in memory: for whoever looks at everything once.
pub(crate) fn open_aside<H: Hasher>(segments: &Arc<Segments>, flushed: &Flushed) -> Result<Tree<H>, StoreError> {
    let arena = Pages::new(segments.clone());
    arena.keep_within(ASIDE_BYTES);
    open_tree(segments, flushed, &arena)
}

/// Removes what a session that did not end well left behind and nothing refers to.
fn clean_up(
    segments: &Segments,
    kept: &[SegmentId],
    log_from: SegmentId,
    log_to: SegmentId,
    emptied: Option<Height>,
) -> Result<(), StoreError> {
    for name in list(segments.files())? {
        if name.ends_with(".new") {
            segments.files().remove(&name).map_err(StoreError::io("remove", &name))?;
            continue;
        }
        let Some(id) = SegmentId::of_file_name(segments.store(), &name) else { continue };
        match id.kind {
            _ if kept.contains(&id) => {}
            // The one after the last may have been made in good time; it was looked at, and nothing is in it.
            Kind::Log if (log_from..=log_to.next()).contains(&id) => {}
            // It goes when the records do that may say that an old value lies here.
            Kind::Values => {
                if let Some(usage) = segments.usage().get_mut(&id) {
                    usage.emptied = emptied;
                }
            }
            Kind::Log | Kind::Pages => segments.remove(id)?,
        }
    }
    segments.files().sync_directory().map_err(StoreError::io("sync", "the directory"))
}

/// How much of the log is applied in one step.
#[derive(Clone, Copy)]
struct Stride {
    /// Bytes in memory of commits that are applied as if they were one: what is above many writes is built once for all of them.
    bytes: u64,
    /// Of these, so many writes at a time, in the order of their keys: what they replace is let go of before the next ones
    /// replace more.
    writes: usize,
}

/// In bytes, more than the longest log takes in memory that commits do not wait behind (twice [`Options::flush_bytes`]), with updates
/// of 100 bytes. In writes, each of which replaces some 3 KiB of pages at most, so many that a page high up is made once for many.
const STRIDE: Stride = Stride { bytes: 128 << 20, writes: 1 << 12 };
/// Record by record.
const ALONE: Stride = Stride { bytes: 0, writes: usize::MAX };

/// Why a log could not be replayed.
enum Failed {
    /// Commits that were applied as if they were one lead to another root than they should. Record by record it is found
    /// which of them does.
    Together(StoreError),
    Store(StoreError),
}

impl<E: Into<StoreError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

/// What the superblock names and the log has beyond it.
struct Replayed<H: Hasher> {
    segments: Arc<Segments>,
    /// What the superblock knows.
    kept: Vec<SegmentId>,
    index: Index,
    versions: Versions<H>,
    low: Option<Height>,
    version: Arc<Version<H>>,
    bytes: u64,
    tail: Tail,
}

impl<H: Hasher> Replayed<H> {
    fn of(files: &Arc<dyn Files>, options: &Options, superblock: &Superblock, stride: Stride) -> Result<Self, Failed> {
        let segments = Arc::new(Segments::new(Arc::clone(files), superblock.store, options.block_bytes()));
        let tree = open_tree(&segments, &superblock.flushed, &options.arena(&segments))?;
        let kept: Vec<SegmentId> = segments.all().iter().map(|segment| segment.id()).collect();
        // Records may say that an old value lies where it was moved to before the crash.
        for name in list(&**files)? {
            if let Some(id) = SegmentId::of_file_name(segments.store(), &name).filter(|id| id.kind == Kind::Values) {
                segments.open(id)?;
            }
        }

        let flushed = superblock.flushed;
        let version = Version::new(flushed.height, superblock.epoch, tree, flushed.record, 0);
        let mut replay = Replay {
            segments: &segments,
            index: Index::default(),
            versions: Versions::new(options.bounds()),
            low: superblock.low,
            version,
            ahead: Vec::new(),
            ahead_bytes: 0,
            recent: options.recent_versions.max(1),
            bytes: 0,
            stride,
            has_failed: false,
        };
        if let (Some(height), Some(record)) = (flushed.height, flushed.record) {
            replay.index.push(height, record);
        }
        replay.versions.replace_last(&replay.version);
        let visit = &mut |spot, record| replay.step(spot, record);
        let tail = log::replay(&segments, flushed.log, flushed.log_hash, visit);
        let tail = tail.and_then(|tail| replay.settle().map(|()| tail));
        let Replay { index, versions, low, version, bytes, has_failed, .. } = replay;
        let tail = tail.map_err(|error| if has_failed { Failed::Together(error) } else { Failed::Store(error) })?;
        Ok(Self { segments, kept, index, versions, low, version, bytes, tail })
    }
}

/// The state of a replay between two records.
struct Replay<'a, H: Hasher> {
    segments: &'a Arc<Segments>,
    index: Index,
    versions: Versions<H>,
    low: Option<Height>,
    /// As far as records are applied.
    version: Arc<Version<H>>,
    /// Commits beyond it. Each follows the one before it, but for its root, which is not known yet.
    ahead: Vec<(Spot, Record)>,
    ahead_bytes: u64,
    /// Versions at the end that somebody may want to see.
    recent: usize,
    bytes: u64,
    stride: Stride,
    /// Whether commits that were applied together led to another root than they should.
    has_failed: bool,
}

impl<H: Hasher> Replay<'_, H> {
    /// Takes one record in; it must continue the one before it in every respect (spec: STORE-3). Its root is compared by
    /// the time [`Self::settle`] has gone through.
    fn step(&mut self, spot: Spot, record: Record) -> Result<(), StoreError> {
        let head = record.head;
        let (epoch, height, parent) = match self.ahead.last() {
            Some((spot, last)) => (last.head.epoch, Some(last.head.height), Some(*spot)),
            None => (self.version.epoch, self.version.height, self.version.record),
        };
        let wrong = |what: String| Err(self.damaged(spot, what));
        match head.step {
            Step::Commit => {
                let follows = height.is_none_or(|last| head.height.prev() == Some(last));
                if !follows || head.height == Height(u64::MAX) || head.epoch != epoch {
                    let at = (epoch, height);
                    return wrong(format!("epoch {} height {} follows {at:?}", head.epoch, head.height));
                }
                if head.parent != parent {
                    return wrong(format!("its parent is {:?}, not {parent:?}", head.parent));
                }
                self.index.push(head.height, spot);
                self.low.get_or_insert(head.height);
                self.ahead_bytes += held(&record);
                self.ahead.push((spot, record));
                if self.ahead_bytes > self.stride.bytes {
                    // The last one stays: it says what root the others come to.
                    self.together(self.ahead.len() - 1)?;
                }
            }
            Step::Rollback => {
                if epoch.checked_add(1) != Some(head.epoch) || height.is_none_or(|last| head.height > last) {
                    let at = (epoch, height);
                    return wrong(format!("rollback to epoch {} height {} follows {at:?}", head.epoch, head.height));
                }
                self.settle()?;
                self.follows(spot, &record)?;
                let expected = record.root.expect("a rollback has a root");
                self.version = self.rollback(head.height, head.epoch, expected)?;
                self.versions.commit(&self.version);
            }
            Step::Base => return wrong("the history begins anew in the middle of it".into()),
            Step::Mark => return wrong("the mark of another record stands here".into()),
            Step::Continue => unreachable!("the log follows these by itself"),
        }
        self.bytes += head.len;
        Ok(())
    }

    /// Applies all that was taken in, the last of it record by record, so that the versions they lead to are at hand.
    fn settle(&mut self) -> Result<(), StoreError> {
        self.together(self.ahead.len().saturating_sub(self.recent))?;
        self.ahead_bytes = 0;
        std::mem::take(&mut self.ahead).into_iter().try_for_each(|(spot, record)| self.alone(spot, record))
    }

    /// Applies the first of the commits that were taken in as if they were one, and compares the root with that which the
    /// one after them follows.
    fn together(&mut self, count: usize) -> Result<(), StoreError> {
        let later = self.ahead.split_off(count);
        let first = std::mem::replace(&mut self.ahead, later);
        self.ahead_bytes = self.ahead.iter().map(|(_, record)| held(record)).sum();
        if first.len() < 2 {
            return first.into_iter().try_for_each(|(spot, record)| self.alone(spot, record));
        }
        // Those before are nobody's, and hold on to all that this one replaces.
        self.versions.retain(|_| false);
        self.apply(first)?;
        let (spot, next) = self.ahead.first().expect("the last one stays");
        let followed = self.follows(*spot, next);
        self.has_failed |= followed.is_err();
        followed
    }

    /// Applies one commit.
    fn alone(&mut self, spot: Spot, record: Record) -> Result<(), StoreError> {
        self.follows(spot, &record)?;
        self.apply(vec![(spot, record)])
    }

    /// Applies commits, of which there is one at least, as if they were one.
    fn apply(&mut self, commits: Vec<(Spot, Record)>) -> Result<(), StoreError> {
        let &(spot, Record { head, .. }) = commits.last().expect("there is one at least");
        let mut steps = Steps::with_capacity(commits.iter().map(|(_, record)| record.writes.len()).sum());
        for (_, record) in commits {
            self.segments.count(new_values(&record), std::iter::empty(), record.head.height);
            record.writes.into_iter().for_each(|logged| steps.redo(logged));
        }
        let mut replaced = Vec::new();
        let mut writes = steps.settle(&mut |place, len| replaced.push((place, len as u64))).into_iter();
        loop {
            let (draft, places) = history::prepare(&self.version.tree, writes.by_ref().take(self.stride.writes))?;
            let entries = draft.replaced().iter().flatten();
            replaced.extend(entries.map(|entry| (entry.place, u64::from(entry.value_len))));
            self.segments.count_dead(replaced.drain(..));
            self.segments.count_passed(&draft.pass());
            let tree = draft.commit(|index| places[index].expect("asked only for values").0);
            self.version = Version::new(Some(head.height), head.epoch, tree, Some(spot), 0);
            if writes.len() == 0 {
                break;
            }
        }
        self.versions.commit(&self.version);
        Ok(())
    }

    /// Checks that a record follows the root that the state has.
    fn follows(&self, spot: Spot, record: &Record) -> Result<(), StoreError> {
        let (says, has) = (record.head.root_before, self.version.root);
        if says == has {
            return Ok(());
        }
        Err(self.damaged(spot, format!("the record follows root {says}, the state before has {has}")))
    }

    fn damaged(&self, spot: Spot, what: String) -> StoreError {
        let offset = u64::from(spot.sector()) * crate::files::SECTOR_BYTES as u64;
        StoreError::damaged(spot.segment.file_name(self.segments.store()), offset, what)
    }

    fn rollback(&mut self, to: Height, epoch: u64, expected: Root) -> Result<Arc<Version<H>>, StoreError> {
        let before = Arc::clone(&self.version);
        let mut undone = Vec::new();
        let target = match before.height == Some(to) {
            true => before,
            false => {
                let (index, segments) = (&mut self.index, self.segments);
                let mut spot = |height| loop {
                    if let Some(spot) = index.find(segments, &before, height)? {
                        return Ok(spot);
                    }
                };
                let mut made = |draft: &Draft<H>, places: &[_]| undone.push(Undone::of(draft, places));
                history::rebuild(segments, &before, to, &mut spot, expected, &mut made)?
            }
        };
        undone.iter().for_each(|undone| self.segments.count_undone(undone));
        self.versions.retain(|version| version.height <= Some(to));
        self.index.truncate(to);
        self.segments.forget_emptied(to);
        let version = Version::new(Some(to), epoch, target.tree.clone(), target.record, 0);
        if version.root != expected {
            let what = format!("rollback to {to} gives root {}, the log says {expected}", version.root);
            return Err(StoreError::damaged("the log", 0, what));
        }
        Ok(version)
    }
}

/// Bytes of a commit in memory.
fn held(record: &Record) -> u64 {
    record.head.len + size_of_val(&*record.writes) as u64
}

/// Where the new values of a commit lie, and their lengths.
fn new_values(record: &Record) -> impl Iterator<Item = Option<(Place, usize)>> {
    record.writes.iter().map(|logged| logged.new.as_ref().map(|(place, value)| (*place, value.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compact::Compacted;
    use crate::files::MemoryFiles;
    use crate::record::{Head, Layout, encode_commit, encode_small};
    use keelstone_codec::{Key, Value};
    use keelstone_tree::{Blake3, Diff, Read as _};

    /// spec: STORE-11. A history begins once: a base behind the superblock is damage, whatever it says.
    #[test]
    fn a_base_in_the_middle_of_a_history_is_damage() {
        let options = Options { segment_bytes: 8 << 10, background: false, ..Options::default() };
        let files = MemoryFiles::new();
        let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options.clone()).unwrap();
        let (root, writer) = (shared.current().root, shared.writer());
        let (step, previous) = (Step::Base, writer.log.hash());
        let head = Head { len: 0, step, epoch: 0, height: Height(3), root_before: root, previous, parent: None };
        writer.log.append(encode_small(head, root)).run().unwrap();
        drop(writer);
        drop(shared);
        match Shared::<Blake3>::open(Arc::new(files), options) {
            Err(StoreError::Damaged { what, .. }) => assert!(what.contains("begins anew"), "{what}"),
            other => panic!("{:?}", other.map(|shared| shared.low())),
        }
    }

    /// Commits of `count` heights to one namespace: new keys, keys written again and again, and keys that go.
    fn commits(shared: &Shared<Blake3>, count: u64, bytes: usize) {
        let name = keelstone_codec::Namespace::new("a").unwrap();
        for height in 0..count {
            let write = |key: u64, value: Option<u8>| {
                let value = value.map(|byte| Value::new(vec![byte; bytes]).unwrap());
                (name.clone(), Key::new(key.to_be_bytes()).unwrap(), value)
            };
            let byte = u8::try_from(height).unwrap();
            let gone = (height > 2).then(|| write(1_000 + height - 3, None));
            let writes = [write(1, Some(byte)), write(1_000 + height, Some(byte)), write(height % 3, Some(byte))];
            shared.commit(Height(height), &writes.into_iter().chain(gone).collect::<Diff>(), || Ok(())).unwrap();
        }
    }

    /// spec: STORE-3. What opening makes of many records at once is what the commits made one by one: the root, what
    /// lives in each segment, the versions at hand.
    #[test]
    fn records_applied_together_leave_what_they_left_one_by_one() {
        // All of them in one stride, of a few writes at a time; in strides of a few records; one by one.
        let few = Stride { writes: 5, ..STRIDE };
        let short = Stride { bytes: 2_000, ..few };
        for (count, bytes, stride) in
            [(40, 30, STRIDE), (40, 30, few), (40, 30, short), (40, 30, ALONE), (30, 20_000, few)]
        {
            let options = Options { segment_bytes: 1 << 20, background: false, ..Options::default() };
            let files = MemoryFiles::new();
            let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options.clone()).unwrap();
            commits(&shared, count, bytes);
            let files = MemoryFiles::from_image(&files.image());
            let opened = Shared::<Blake3>::open_at(Arc::new(files), options, stride).unwrap();
            assert_eq!(opened.current().root, shared.current().root);
            assert_eq!(opened.current().tree.totals(), shared.current().tree.totals());
            let used = |shared: &Shared<Blake3>| -> Vec<_> {
                let usage = shared.segments.usage();
                usage.iter().filter(|(_, usage)| usage.written > 0).map(|(id, usage)| (*id, *usage)).collect()
            };
            assert_eq!(used(&opened), used(&shared));
            for height in 0..count {
                let height = Height(height);
                assert_eq!(opened.version_at(height).unwrap().root, shared.version_at(height).unwrap().root);
            }
        }
    }

    /// spec: STORE-3. Of a record that says other than what was committed the next one has the wrong root: it is named,
    /// wherever among many it stands.
    #[test]
    fn a_record_that_follows_another_root_is_named_among_many() {
        for wrong in [0, 6, 18] {
            let options = Options { background: false, ..Options::default() };
            let files = MemoryFiles::new();
            let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options.clone()).unwrap();
            let name = keelstone_codec::Namespace::new("a").unwrap();
            let (mut tree, mut parent, mut places) = (shared.current().tree.clone(), None, Vec::new());
            let mut writer = shared.writer();
            for number in 0..20 {
                let write =
                    |byte| (name.clone(), Key::new([number]).unwrap(), Some(Value::new(vec![byte; 30]).unwrap()));
                let told: Diff = [write(u8::from(number == wrong))].into_iter().collect();
                let (step, height, root_before) = (Step::Commit, Height(u64::from(number)), tree.root());
                let (len, previous) = (Layout::of(&told).unwrap().len, writer.log.hash());
                let head = Head { len, step, epoch: 0, height, root_before, previous, parent };
                let at = writer.log.end();
                let appended = writer.log.append(encode_commit(&head, &told, &[None])).run().unwrap();
                writer.log.advance(&appended);
                parent = Some(at);
                places.push(at);
                tree = tree.prepare(&[write(0)].into_iter().collect()).unwrap().commit(|_| Place(at.to_u64()));
            }
            drop(writer);
            drop(shared);
            match Shared::<Blake3>::open(Arc::new(files), options) {
                Err(StoreError::Damaged { offset, what, .. }) => {
                    assert!(what.contains("follows root"), "{what}");
                    let sector = places[usize::from(wrong) + 1].sector();
                    assert_eq!(offset, u64::from(sector) * crate::files::SECTOR_BYTES as u64);
                }
                other => panic!("{:?}", other.map(|shared| shared.low())),
            }
        }
    }

    /// Compaction moves a value, the next commit replaces it, and a rollback brings it back, all of it told by the log
    /// alone. After a crash it lives in a segment that no superblock knows, and stays there.
    #[test]
    fn a_value_that_was_moved_replaced_and_rolled_back_to_survives_a_crash() {
        let options = Options { segment_bytes: 8 << 10, recent_versions: 1, background: false, ..Options::default() };
        let files = MemoryFiles::new();
        let name = keelstone_codec::Namespace::new("a").unwrap();
        let put = |shared: &Shared<Blake3>, height, key: &str, byte| {
            let value = Value::new(vec![byte; 500]).unwrap();
            let diff: Diff = [(name.clone(), Key::new(key.as_bytes()).unwrap(), Some(value))].into_iter().collect();
            shared.commit(Height(height), &diff, || Ok(())).unwrap();
        };
        let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options.clone()).unwrap();
        put(&shared, 0, "kept", 1);
        (1..40).for_each(|height| put(&shared, height, "changing", 2));
        shared.prune(Height(39)).unwrap();
        shared.flush(&mut shared.upkeep()).unwrap();
        let mut done = Compacted::default();
        let victims = shared.victims(&shared.upkeep(), None);
        shared.empty(&victims, &mut done, &mut |_| true).unwrap();
        assert!(done.values_moved > 0);
        (40..44).for_each(|height| put(&shared, height, "kept", 3));
        shared.rollback(Height(39)).unwrap();
        // As a kill leaves it: nothing was flushed since.
        let files = MemoryFiles::from_image(&files.image());
        drop(shared);

        let shared = Shared::<Blake3>::open(Arc::new(files), options).unwrap();
        for height in 40..44 {
            put(&shared, height, "changing", 4);
            shared.prune(Height(height)).unwrap();
            shared.flush(&mut shared.upkeep()).unwrap();
        }
        let value = shared.current().tree.get(&name, b"kept").unwrap();
        assert_eq!(value, Some(Value::new(vec![1; 500]).unwrap()));
    }
}
