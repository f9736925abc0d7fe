//! A plain key-value database for what needs no root: blocks, receipts, indexes.
//!
//! The database below is not trusted with integrity: one flipped bit in a file of redb 4.4 can read as a wrong value
//! without an error. So every record carries a hash of its key and value, and a record that does not match is an error,
//! never an answer. And where redb panics over its own structures, that is caught, and is damage like any other. A record that a damaged database no longer finds cannot be told from one that was never written:
//! whoever needs that (a block at every height) must know what to expect.
//!
//! A write is durable in a log in front of it (STORE-15), and goes into the database with hundreds of others.

pub(crate) mod wal;

use crate::StoreError;
use crate::files::{self, Directory, Files as _};
use keelstone_codec::{Tag, TaggedHasher};
use redb::{Database, Durability, ReadableDatabase, TableDefinition, TableError, WriteTransaction};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use wal::{BUILDING, Changes, WAL_BYTES, Wal};

/// A record: its key and its value.
pub type Record = (Vec<u8>, Vec<u8>);

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);
type Guard<'a> = redb::AccessGuard<'a, &'static [u8]>;

/// Keys from `start` to before `end`, at most `limit` of them, in one of two directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first key, which need not exist.
    pub start: Vec<u8>,
    /// The first key behind the range; none: to the last.
    pub end: Option<Vec<u8>>,
    /// From the last key down.
    pub reverse: bool,
    /// The most records to return.
    pub limit: usize,
}

impl Range {
    /// Keys that begin with `prefix`, ascending.
    #[must_use]
    pub fn prefix(prefix: &[u8], limit: usize) -> Self {
        Self { start: prefix.to_vec(), end: keelstone_tree::prefix_end(prefix), reverse: false, limit }
    }

    /// The same keys in the other direction.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        self.reverse = !self.reverse;
        self
    }

    fn bounds(&self) -> Option<Bounds<'_>> {
        let empty = self.end.as_deref().is_some_and(|end| end <= self.start.as_slice());
        let end = self.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        (!empty).then_some((Bound::Included(&self.start), end))
    }
}

/// Changes that happen together or not at all. Of two to one key the later stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    changes: Changes,
}

impl Batch {
    /// No changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a record in place of whatever the key holds.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut Self {
        self.changes.insert(key.into(), Some(value.into()));
        self
    }

    /// Removes a record; an absent one stays absent.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) -> &mut Self {
        self.changes.insert(key.into(), None);
        self
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// An ordered map of bytes that survives the power.
pub trait Kv: fmt::Debug + Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the record's hash does not match, [`StoreError::Io`].
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// The records of a range, each checked.
    ///
    /// # Errors
    /// As [`Kv::get`].
    fn range(&self, range: &Range) -> Result<Vec<Record>, StoreError>;

    /// Makes all changes of a batch durable, or none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn write(&self, batch: Batch) -> Result<(), StoreError>;
}

/// A [`Kv`] in memory.
#[derive(Debug, Default)]
pub struct MemoryKv {
    records: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemoryKv {
    /// An empty database.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.records.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn range(&self, range: &Range) -> Result<Vec<Record>, StoreError> {
        let Some(bounds) = range.bounds() else { return Ok(Vec::new()) };
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let found = records.range::<[u8], _>(bounds).map(|(key, value)| (key.clone(), value.clone()));
        Ok(if range.reverse { found.rev().take(range.limit).collect() } else { found.take(range.limit).collect() })
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch.changes {
            match value {
                Some(value) => drop(records.insert(key, value)),
                None => drop(records.remove(&key)),
            }
        }
        Ok(())
    }
}

/// A [`Kv`] in a redb file, with a log of the same name in front of it.
///
/// A write that is small is one record of the log and one sync; a large one, or one that the log has no room for, goes into
/// redb with all before it. At most 1 MiB waits in memory.
pub struct RedbKv {
    /// None once it is closed, which may take a panic to be caught.
    database: Option<Database>,
    file: String,
    wal: Mutex<Wal>,
    /// What the log has and the database has not.
    recent: RwLock<Changes>,
}

impl fmt::Debug for RedbKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedbKv({})", self.file)
    }
}

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
/// The format of all this, and the generation of the log whose records are not here yet.
const GENERATION: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("generation");
const GENERATION_KEY: &[u8] = &[];
const FORMAT_KEY: &[u8] = b"format";
/// Of records, tables and the log. One that is newer is refused.
// spec: STORE-15
const FORMAT: u32 = 1;
/// Records that a check reads at a time.
const CHECK_RECORDS: usize = 256;
const RECORD: Tag = Tag::new("kv-record");
const HASH_LEN: usize = 32;

impl RedbKv {
    /// Opens the database at `path`, or makes it, and takes in what the log beside it has (the same name with `wal` for
    /// its extension). redb holds the file's lock.
    ///
    /// One that is made has its name only once it is whole, so a process that is killed meanwhile leaves none.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Io`], [`StoreError::Damaged`] if the log or redb itself is damaged,
    /// [`StoreError::Lost`] if there is no log any more, or nothing but the log, [`StoreError::Unsupported`] if a newer build wrote it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, WAL_BYTES)
    }

    /// Copies the files of a database that nobody writes to meanwhile. What they hold is durable when this returns; their names are
    /// once the directory is synced.
    ///
    /// # Errors
    /// What the file system says.
    pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
        for (from, to) in [(&*wal_of(from), &*wal_of(to)), (from, to)] {
            std::fs::copy(from, to)?;
            std::fs::File::open(to)?.sync_all()?;
        }
        Ok(())
    }

    // spec: STORE-15
    fn open_with(path: &Path, wal_bytes: u64) -> Result<Self, StoreError> {
        let file = path.display().to_string();
        guarded(&file, || Self::open_file(path, file.clone(), wal_bytes))
    }

    fn open_file(path: &Path, file: String, wal_bytes: u64) -> Result<Self, StoreError> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let files = Directory::existing(directory).map_err(StoreError::io("open", directory.display().to_string()))?;
        let log = wal_of(path);
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        let is_there = path.try_exists().map_err(StoreError::io("open", &*file))?;
        let database = match is_there {
            true => {
                evict(&files, path).map_err(StoreError::io("open", &*file))?;
                Database::open(path).map_err(|error| failure("open", &file, error))?
            }
            false => make(&files, path, (&name, wal_bytes))?,
        };
        let opened = Wal::open(&files, &name, wal_bytes, generation(&database, &file)?);
        let (wal, recent) = opened.map_err(|error| error.within(directory))?;
        let kv = Self { database: Some(database), file, wal: Mutex::new(wal), recent: RwLock::new(recent) };
        // A generation of its own: what a write that was cut off has left counts no more. With nothing in the log nothing is
        // written, so that a full disk keeps nobody from reading.
        let mut wal = kv.wal();
        if !wal.is_empty() {
            kv.take_in(&mut wal, &Changes::new())?;
        }
        drop(wal);
        Ok(kv)
    }

    /// Reads every record, each by its hash, and says how many there are. `go_on` hears of each few hundred, and ends it there
    /// by saying no.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for the first that is not what was written, and what the disk says.
    pub fn check(&self, go_on: &mut dyn FnMut(u64) -> bool) -> Result<u64, StoreError> {
        let mut range = Range::prefix(&[], CHECK_RECORDS);
        let mut checked = 0;
        loop {
            let records = self.range(&range)?;
            let Some((last, _)) = records.last() else { return Ok(checked) };
            range.start = [last.as_slice(), &[0]].concat();
            checked += records.len() as u64;
            if !go_on(checked) {
                return Ok(checked);
            }
        }
    }

    fn wal(&self) -> MutexGuard<'_, Wal> {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what the log has, and these changes above it, into the database, and begins the log anew.
    fn take_in(&self, wal: &mut Wal, changes: &Changes) -> Result<(), StoreError> {
        wal.check()?;
        // Nobody knows what became of it if it fails half way.
        let taken = self.commit(changes, wal.next_generation()).inspect_err(|_| wal.fail());
        taken?;
        wal.restart();
        Ok(())
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("it is open until it is dropped")
    }

    /// Moves what the log has, and these changes above it, into the database.
    fn commit(&self, changes: &Changes, generation: u32) -> Result<(), StoreError> {
        guarded(&self.file, || self.commit_below(changes, generation))
    }

    fn commit_below(&self, changes: &Changes, generation: u32) -> Result<(), StoreError> {
        let mut write = self.database().begin_write().map_err(self.failed("write"))?;
        write.set_durability(Durability::Immediate).map_err(self.failed("write"))?;
        {
            let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
            let mut table = write.open_table(TABLE).map_err(self.failed("write"))?;
            for (key, value) in recent.iter().filter(|(key, _)| !changes.contains_key(*key)).chain(changes) {
                match value {
                    Some(value) => {
                        let record = [seal(key, value).as_slice(), value].concat();
                        table.insert(key.as_slice(), record.as_slice()).map_err(self.failed("write"))?;
                    }
                    None => drop(table.remove(key.as_slice()).map_err(self.failed("write"))?),
                }
            }
        }
        // By itself: a table that is let go of while redb panics over another panics as well, and that ends the process.
        put_generation(&write, generation, &self.file)?;
        // Who reads waits for this: a batch is seen whole or not at all, and part of it may be hidden by what is let go of here.
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        write.commit().map_err(self.failed("commit"))?;
        recent.clear();
        Ok(())
    }

    fn failed<E: Into<redb::Error>>(&self, doing: &'static str) -> impl Fn(E) -> StoreError + '_ {
        move |error| failure(doing, &self.file, error)
    }

    /// The records of two runs in one order, where what is above hides what is below.
    fn merged<'a>(
        &self,
        above: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
        below: impl Iterator<Item = Result<(Guard<'a>, Guard<'a>), redb::StorageError>>,
        limit: usize,
        is_before: impl Fn(&[u8], &[u8]) -> bool,
    ) -> Result<Vec<Record>, StoreError> {
        let (mut above, mut below) = (above.peekable(), below.peekable());
        let mut found = Vec::new();
        while found.len() < limit {
            if let Some(Err(error)) = below.next_if(Result::is_err) {
                return Err(self.failed("read")(error));
            }
            let next_below = below.peek().and_then(|record| record.as_ref().ok()).map(|(key, _)| key.value());
            let is_next = |key: &[u8]| next_below.is_none_or(|other| !is_before(other, key));
            if let Some((key, value)) = above.next_if(|(key, _)| is_next(key)) {
                if next_below == Some(key) {
                    // Hidden by what is above it.
                    below.next();
                }
                found.extend(value.as_ref().map(|value| (key.clone(), value.clone())));
            } else if let Some(Ok((key, record))) = below.next() {
                found.push((key.value().to_vec(), unseal(&self.file, key.value(), record.value())?));
            } else {
                break;
            }
        }
        Ok(found)
    }
}

/// The value of a stored record, which must carry the hash of its key and value.
fn unseal(file: &str, key: &[u8], record: &[u8]) -> Result<Vec<u8>, StoreError> {
    let what = || format!("the record of key {} does not match its hash", key.escape_ascii());
    match record.split_at_checked(HASH_LEN) {
        Some((hash, value)) if hash == seal(key, value) => Ok(value.to_vec()),
        _ => Err(StoreError::damaged(file, 0, what())),
    }
}

fn seal(key: &[u8], value: &[u8]) -> [u8; HASH_LEN] {
    let mut hasher = TaggedHasher::new(RECORD);
    hasher.value(&(key.len() as u64)).update(key).update(value);
    hasher.finish().0
}

fn failure(doing: &'static str, file: &str, error: impl Into<redb::Error>) -> StoreError {
    use redb::Error as E;
    match error.into() {
        E::DatabaseAlreadyOpen => StoreError::InUse { pid: None },
        E::Corrupted(what) => StoreError::damaged(file, 0, what),
        // It ends too early, or does not begin as a database does.
        E::Io(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => {
            StoreError::damaged(file, 0, error.to_string())
        }
        E::Io(error) => StoreError::io(doing, file)(error),
        // All that was ever written is of one version, and both tables come with the first transaction.
        error @ (E::UpgradeRequired(_)
        | E::TableDoesNotExist(_)
        | E::TableTypeMismatch { .. }
        | E::TableIsMultimap(_)
        | E::TypeDefinitionChanged { .. }) => StoreError::damaged(file, 0, error.to_string()),
        other => StoreError::io(doing, file)(std::io::Error::other(other)),
    }
}

thread_local! {
    static IN_DATABASE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside the database, whose panics are caught and become damage: for a panic hook, which has nothing to
/// say of those.
#[must_use]
pub fn catches_panics() -> bool {
    IN_DATABASE.get()
}

/// Does what may panic over a damaged file: redb 4.4 takes the structures of its pages for what it wrote. Nothing of ours is left
/// half done by that, but for the log, which is given up if a write below fails.
fn guarded<T>(file: &str, run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let outer = IN_DATABASE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    IN_DATABASE.set(outer);
    result.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("nothing");
        Err(StoreError::damaged(file, 0, format!("the database cannot make sense of it, and says: {said}")))
    })
}

/// Lets the system forget what it keeps of a database in memory, so that what is read is what the disk has. After a sync that failed it
/// takes what never got there for written, and that would count as the database's, and its log begin anew over what the database
/// has lost with the power.
// spec: STORE-15
fn evict(files: &Directory, path: &Path) -> std::io::Result<()> {
    match files.open(&path.file_name().unwrap_or_default().to_string_lossy()) {
        Ok(file) => file.len().map(|len| file.evict(len)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes an empty database, and before it the log that it says counts. Under another name until it is whole, so a crash at any
/// moment leaves none, and at most a log with nothing in it.
// spec: STORE-15
fn make(files: &Directory, path: &Path, (log, wal_bytes): (&str, u64)) -> Result<Database, StoreError> {
    // Nothing is written to a log before there is a database that says that it counts.
    if Wal::was_written_to(files, log, wal_bytes)? {
        let what = "it is gone, and its log has records".to_owned();
        return Err(StoreError::Lost { file: path.display().to_string(), what });
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let building = format!("{name}{BUILDING}");
    let being_built = path.with_file_name(&building);
    let file = being_built.display().to_string();
    let io = |error: std::io::Error| StoreError::io("create", &*file)(error);
    files::remove_if_there(files, &building).map_err(io)?;
    let wal = Wal::create(files, log, wal_bytes)?;
    let failed = |error: redb::Error| failure("create", &file, error);
    let database = Database::create(&being_built).map_err(|error| failed(error.into()))?;
    let mut write = database.begin_write().map_err(|error| failed(error.into()))?;
    write.set_durability(Durability::Immediate).map_err(|error| failed(error.into()))?;
    // Reads may rely on both tables.
    drop(write.open_table(TABLE).map_err(|error| failed(error.into()))?);
    put_generation(&write, wal.generation(), &file)?;
    write.commit().map_err(|error| failed(error.into()))?;
    files.rename(&building, &name).and_then(|()| files.sync_directory()).map_err(io)?;
    Ok(database)
}

/// Writes which records of the log count that the database has not.
fn put_generation(write: &WriteTransaction, generation: u32, file: &str) -> Result<(), StoreError> {
    let failed = |error: redb::Error| failure("write", file, error);
    let mut table = write.open_table(GENERATION).map_err(|error| failed(error.into()))?;
    for (key, number) in [(FORMAT_KEY, FORMAT), (GENERATION_KEY, generation)] {
        let number = number.to_be_bytes();
        let record = [seal(key, &number).as_slice(), &number].concat();
        table.insert(key, record.as_slice()).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// Where the log of a database is.
fn wal_of(path: &Path) -> PathBuf {
    path.with_extension("wal")
}

/// The generation of the log that the database says counts. Every database that has its name says one.
// spec: STORE-15
fn generation(database: &Database, file: &str) -> Result<u32, StoreError> {
    let failed = |error: redb::Error| failure("open", file, error);
    let read = database.begin_read().map_err(|error| failed(error.into()))?;
    let missing = || StoreError::damaged(file, 0, "it does not say which generation of its log counts");
    let table = read.open_table(GENERATION).map_err(|error| match error {
        TableError::TableDoesNotExist(_) => missing(),
        error => failed(error.into()),
    })?;
    let number = |key: &[u8]| {
        let record = table.get(key).map_err(|error| failed(error.into()))?.ok_or_else(missing)?;
        let bytes = unseal(file, key, record.value())?;
        Ok::<_, StoreError>(u32::from_be_bytes(bytes.try_into().map_err(|_| missing())?))
    };
    let generation = number(GENERATION_KEY)?;
    // The first builds wrote none.
    let is_there = table.get(FORMAT_KEY).map_err(|error| failed(error.into()))?.is_some();
    match if is_there { number(FORMAT_KEY)? } else { 0 } {
        FORMAT => Ok(generation),
        found => Err(StoreError::Unsupported { found, known: FORMAT }),
    }
}

impl Kv for RedbKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        // Held until the answer is there: what leaves here is in the database first.
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = recent.get(key) {
            return Ok(value.clone());
        }
        guarded(&self.file, || {
            let read = self.database().begin_read().map_err(self.failed("read"))?;
            let table = read.open_table(TABLE).map_err(self.failed("read"))?;
            let Some(record) = table.get(key).map_err(self.failed("read"))? else { return Ok(None) };
            unseal(&self.file, key, record.value()).map(Some)
        })
    }

    fn range(&self, range: &Range) -> Result<Vec<Record>, StoreError> {
        let Some(bounds) = range.bounds() else { return Ok(Vec::new()) };
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        guarded(&self.file, || {
            let read = self.database().begin_read().map_err(self.failed("read"))?;
            let table = read.open_table(TABLE).map_err(self.failed("read"))?;
            let below = table.range::<&[u8]>(bounds).map_err(self.failed("read"))?;
            let above = recent.range::<[u8], _>(bounds);
            match range.reverse {
                false => self.merged(above, below, range.limit, |above, below| above < below),
                true => self.merged(above.rev(), below.rev(), range.limit, |above, below| above > below),
            }
        })
    }

    // spec: STORE-15
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut wal = self.wal();
        if !wal.append(&batch.changes)? {
            return self.take_in(&mut wal, &batch.changes);
        }
        self.recent.write().unwrap_or_else(PoisonError::into_inner).extend(batch.changes);
        Ok(())
    }
}

impl Drop for RedbKv {
    fn drop(&mut self) {
        let mut wal = self.wal();
        if !wal.is_empty() {
            // If it fails, the log still has it.
            let _ = self.take_in(&mut wal, &Changes::new());
        }
        drop(wal);
        let database = self.database.take();
        // What it does at the end is for itself: it can be opened without.
        let _ = guarded(&self.file, || {
            drop(database);
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a process that is killed had acknowledged is there when it is opened again, however large it was: in the log, or
    /// too large for that.
    // spec: STORE-15
    #[test]
    fn a_large_write_survives_a_process_that_did_not_close() {
        let directory = tempfile::tempdir().unwrap();
        let (path, copied) = (directory.path().join("kv.redb"), directory.path().join("copy.redb"));
        let kv = RedbKv::open(&path).unwrap();
        for bytes in [60_000, 70_000, 400_000, 900_000, 1_100_000, 3_000_000usize] {
            let mut batch = Batch::new();
            batch.put(bytes.to_be_bytes(), vec![7; bytes]);
            kv.write(batch).unwrap();
            // As it would be left: nothing is brought below.
            RedbKv::copy(&path, &copied).unwrap();
            let copy = RedbKv::open(&copied).unwrap();
            assert_eq!(copy.get(&bytes.to_be_bytes()).unwrap().map(|value| value.len()), Some(bytes));
        }
    }

    /// Whoever reads beside a write that goes past the log sees all of it or none, although a part of it is in the log too.
    #[test]
    fn a_batch_is_seen_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let kv = RedbKv::open_with(&directory.path().join("kv.redb"), 4 << 10).unwrap();
        let both = |number: u32| {
            let mut batch = Batch::new();
            batch.put(*b"first", number.to_be_bytes().to_vec());
            batch
        };
        kv.write(both(0)).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..120u32 {
                    // Small, so that the log has the first key, then one that only the database has room for.
                    kv.write(both(number)).unwrap();
                    let mut batch = both(number);
                    batch.put(*b"second", number.to_be_bytes().to_vec());
                    batch.put(*b"third", vec![7; 5 << 10]);
                    batch.put(*b"first", (number + 1000).to_be_bytes().to_vec());
                    kv.write(batch).unwrap();
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let found = kv.range(&Range::prefix(b"", 2)).unwrap();
                let number =
                    |at: usize| found.get(at).map_or(0, |(_, v)| u32::from_be_bytes(v[..4].try_into().unwrap()));
                let (first, second) = (number(0), number(1));
                // Between the two writes of a round the first is one ahead of what the second was written with.
                assert!(first == second + 1000 || first == second + 1 || second == 0, "{first} beside {second}");
            }
        });
    }

    /// A log so small that it is full again and again, and writes that do not fit in it at all: what is read is what was
    /// written last, from above and from below, also by whoever opens it after a process that did not close it.
    // spec: STORE-15
    #[test]
    fn what_is_in_the_log_and_what_is_below_it_are_one_map() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kv.redb");
        let mut kv = RedbKv::open_with(&path, 4 << 10).unwrap();
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut state = 7u64;
        let mut below = |bound: u8| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u8::try_from((state >> 33) % u64::from(bound)).unwrap()
        };
        for round in 0..400u16 {
            let filling = u8::try_from(round % 251).unwrap();
            let mut batch = Batch::new();
            for _ in 0..below(5) {
                let key = vec![below(40)];
                match below(3) {
                    0 => {
                        batch.delete(key.clone());
                        model.remove(&key);
                    }
                    _ => {
                        let bytes = if below(30) == 0 { 5_000 } else { usize::from(below(250)) };
                        batch.put(key.clone(), vec![filling; bytes]);
                        model.insert(key, vec![filling; bytes]);
                    }
                }
            }
            kv.write(batch).unwrap();
            if below(40) == 0 {
                let copied = directory.path().join("copy.redb");
                RedbKv::copy(&path, &copied).unwrap();
                let all = Range { start: Vec::new(), end: None, reverse: false, limit: usize::MAX };
                let copy = RedbKv::open_with(&copied, 4 << 10).unwrap();
                assert_eq!(copy.range(&all).unwrap(), kv.range(&all).unwrap(), "round {round}");
                // As a killed process leaves it: nothing is brought below.
                let image: Vec<_> =
                    ["kv.redb", "kv.wal"].map(|name| std::fs::read(directory.path().join(name)).unwrap()).into();
                drop(kv);
                for (name, bytes) in ["kv.redb", "kv.wal"].iter().zip(image) {
                    std::fs::write(directory.path().join(name), bytes).unwrap();
                }
                kv = RedbKv::open_with(&path, 4 << 10).unwrap();
            }
            let (start, end) = (vec![below(40)], Some(vec![below(45)]));
            for reverse in [false, true] {
                let range =
                    Range { start: start.clone(), end: end.clone(), reverse, limit: 1 + usize::from(below(20)) };
                let mut expected: Vec<Record> = match range.bounds() {
                    Some(bounds) => {
                        model.range::<[u8], _>(bounds).map(|(key, value)| (key.clone(), value.clone())).collect()
                    }
                    None => Vec::new(),
                };
                if reverse {
                    expected.reverse();
                }
                expected.truncate(range.limit);
                assert_eq!(kv.range(&range).unwrap(), expected, "round {round}, {range:?}");
            }
            let key = [below(40)];
            assert_eq!(kv.get(&key).unwrap(), model.get(key.as_slice()).cloned(), "round {round}");
        }
        assert!(kv.wal().next_generation() > 10, "it was full again and again");
        drop(kv);
        std::fs::remove_file(directory.path().join("kv.wal")).unwrap();
        assert!(matches!(RedbKv::open(&path), Err(StoreError::Lost { .. })));
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        assert!(write.delete_table(GENERATION).unwrap());
        write.commit().unwrap();
        drop(database);
        let error = RedbKv::open(&path).unwrap_err();
        assert!(error.to_string().contains("which generation of its log"), "{error}");
    }

    /// spec: STORE-15. A database has its name once it is whole: what a process that was killed while it made one left is made
    /// anew, and nothing that looks like one is taken for new, not an empty file either.
    #[test]
    fn a_database_has_its_name_once_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kv.redb");
        let building = directory.path().join("kv.redb.new");
        std::fs::write(&building, [0; 4096]).unwrap();
        drop(RedbKv::open(&path).unwrap());
        assert!(path.exists() && !building.exists());
        // Killed before the name was there: the log is whole, and nothing is in it.
        std::fs::rename(&path, &building).unwrap();
        drop(RedbKv::open(&path).unwrap());
        for nothing in [vec![], vec![0; 4096]] {
            std::fs::write(&path, nothing).unwrap();
            assert!(RedbKv::open(&path).unwrap_err().is_damage());
        }
        drop(Database::create(directory.path().join("other.redb")).unwrap());
        std::fs::rename(directory.path().join("other.redb"), &path).unwrap();
        assert!(RedbKv::open(&path).unwrap_err().to_string().contains("which generation of its log"));
    }

    /// spec: STORE-15. With nothing in the log an opening has nothing to write; a record that was cut off is left behind by a
    /// generation of its own.
    #[test]
    fn an_opening_writes_only_what_the_log_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kv.redb");
        let generation = || RedbKv::open(&path).unwrap().wal().generation();
        let first = generation();
        assert_eq!(generation(), first);
        let mut batch = Batch::new();
        batch.put(*b"key", vec![7; 1_000]);
        let copied = directory.path().join("copy.redb");
        let kv = RedbKv::open(&path).unwrap();
        kv.write(batch).unwrap();
        RedbKv::copy(&path, &copied).unwrap();
        drop(kv);
        assert_eq!(generation(), first + 1);
        // The last of its sectors never got there.
        let mut log = std::fs::read(wal_of(&copied)).unwrap();
        log[512..1536].fill(0);
        std::fs::write(wal_of(&copied), log).unwrap();
        let copy = RedbKv::open(&copied).unwrap();
        assert_eq!((copy.wal().generation(), copy.get(b"key").unwrap()), (first + 1, None));
    }

    /// spec: STORE-15. A log that was cut short has lost what was acknowledged, and is not taken for one with nothing in it.
    #[test]
    fn a_log_that_lost_its_records_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kv.redb");
        let mut batch = Batch::new();
        batch.put(*b"key", *b"value");
        let copied = directory.path().join("copy.redb");
        let kv = RedbKv::open(&path).unwrap();
        kv.write(batch).unwrap();
        for len in [0, 512, WAL_BYTES - 512] {
            RedbKv::copy(&path, &copied).unwrap();
            std::fs::OpenOptions::new().write(true).open(wal_of(&copied)).unwrap().set_len(len).unwrap();
            assert!(RedbKv::open(&copied).unwrap_err().is_damage(), "{len}");
        }
    }

    /// spec: STORE-15. Both versions are named.
    #[test]
    fn n03_a_database_of_another_format_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kv.redb");
        drop(RedbKv::open(&path).unwrap());
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        let newer = (FORMAT + 1).to_be_bytes();
        let record = [seal(FORMAT_KEY, &newer).as_slice(), &newer].concat();
        write.open_table(GENERATION).unwrap().insert(FORMAT_KEY, record.as_slice()).unwrap();
        write.commit().unwrap();
        drop(database);
        let error = RedbKv::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Unsupported { found, known } if found == FORMAT + 1 && known == FORMAT));
        // And one from before there were any.
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(GENERATION).unwrap().remove(FORMAT_KEY).unwrap();
        write.commit().unwrap();
        drop(database);
        let error = RedbKv::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Unsupported { found: 0, known } if known == FORMAT));
    }

    #[test]
    fn a_check_reads_every_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kv.redb");
        let kv = RedbKv::open(&path).unwrap();
        let mut batch = Batch::new();
        for number in 0..1_000u32 {
            batch.put(number.to_be_bytes(), vec![7; 300]);
        }
        kv.write(batch).unwrap();
        assert_eq!(kv.check(&mut |_| true).unwrap(), 1_000);
        assert!(kv.check(&mut |_| false).unwrap() < 1_000, "it was ended");
        drop(kv);
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(TABLE).unwrap().insert(999u32.to_be_bytes().as_slice(), [1; 332].as_slice()).unwrap();
        write.commit().unwrap();
        drop(database);
        let error = RedbKv::open(&path).unwrap().check(&mut |_| true).unwrap_err();
        assert!(error.is_damage(), "{error}");
    }
}
