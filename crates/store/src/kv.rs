//! A plain key-value database for what needs no root: blocks, receipts, indexes.
//!
//! The database below is not trusted with integrity: one flipped bit in a file of redb 4.4 can read as a wrong value
//! without an error. So every record carries a hash of its key and value, and a record that does not match is an error,
//! never an answer. A record that a damaged database no longer finds cannot be told from one that was never written:
//! whoever needs that (a block at every height) must know what to expect.

use crate::StoreError;
use keelstone_codec::{Tag, TaggedHasher};
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

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
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
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

/// A [`Kv`] in a redb file.
pub struct RedbKv {
    database: Database,
    file: String,
}

impl fmt::Debug for RedbKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedbKv({})", self.file)
    }
}

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
const RECORD: Tag = Tag::new("kv-record");
const HASH_LEN: usize = 32;

impl RedbKv {
    /// Opens the database at `path`, or makes it. redb holds the file's lock.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Io`], [`StoreError::Damaged`] if redb itself finds damage.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = path.display().to_string();
        let database = Database::create(path).map_err(|error| failure("open", &file, error))?;
        let kv = Self { database, file };
        // A table exists once written to; reads may then rely on it.
        kv.write(Batch::new())?;
        Ok(kv)
    }

    fn failed<E: Into<redb::Error>>(&self, doing: &'static str) -> impl Fn(E) -> StoreError + '_ {
        move |error| failure(doing, &self.file, error)
    }

    /// The value of a stored record, which must carry the hash of its key and value.
    fn unseal(&self, key: &[u8], record: &[u8]) -> Result<Vec<u8>, StoreError> {
        let what = || format!("the record of key {} does not match its hash", key.escape_ascii());
        match record.split_at_checked(HASH_LEN) {
            Some((hash, value)) if hash == seal(key, value) => Ok(value.to_vec()),
            _ => Err(StoreError::damaged(&self.file, 0, what())),
        }
    }
}

fn seal(key: &[u8], value: &[u8]) -> [u8; HASH_LEN] {
    let mut hasher = TaggedHasher::new(RECORD);
    hasher.value(&(key.len() as u64)).update(key).update(value);
    hasher.finish().0
}

fn failure(doing: &'static str, file: &str, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse { pid: None },
        redb::Error::Corrupted(what) => StoreError::damaged(file, 0, what),
        redb::Error::Io(error) => StoreError::io(doing, file)(error),
        other => StoreError::io(doing, file)(std::io::Error::other(other)),
    }
}

impl Kv for RedbKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let read = self.database.begin_read().map_err(self.failed("read"))?;
        let table = read.open_table(TABLE).map_err(self.failed("read"))?;
        let Some(record) = table.get(key).map_err(self.failed("read"))? else { return Ok(None) };
        self.unseal(key, record.value()).map(Some)
    }

    fn range(&self, range: &Range) -> Result<Vec<Record>, StoreError> {
        let Some(bounds) = range.bounds() else { return Ok(Vec::new()) };
        let read = self.database.begin_read().map_err(self.failed("read"))?;
        let table = read.open_table(TABLE).map_err(self.failed("read"))?;
        let found = table.range::<&[u8]>(bounds).map_err(self.failed("read"))?;
        let checked = |record: Result<(Guard<'_>, Guard<'_>), _>| {
            let (key, record) = record.map_err(self.failed("read"))?;
            let value = self.unseal(key.value(), record.value())?;
            Ok((key.value().to_vec(), value))
        };
        if range.reverse {
            found.rev().take(range.limit).map(checked).collect()
        } else {
            found.take(range.limit).map(checked).collect()
        }
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut write = self.database.begin_write().map_err(self.failed("write"))?;
        write.set_durability(Durability::Immediate).map_err(self.failed("write"))?;
        {
            let mut table = write.open_table(TABLE).map_err(self.failed("write"))?;
            for (key, value) in &batch.changes {
                match value {
                    Some(value) => {
                        let record = [seal(key, value).as_slice(), value].concat();
                        table.insert(key.as_slice(), record.as_slice()).map_err(self.failed("write"))?;
                    }
                    None => drop(table.remove(key.as_slice()).map_err(self.failed("write"))?),
                }
            }
        }
        write.commit().map_err(self.failed("commit"))
    }
}
