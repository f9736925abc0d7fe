//! The disk as the store sees it: a flat directory of files of fixed size, in three forms.
//!
//! [`Directory`] is a real directory, [`MemoryFiles`] a quick one in memory, [`FaultyFiles`] a simulated disk that
//! tears and drops what was not synced, fails on demand and flips bits, all from a seed. [`Interposed`] puts something
//! before any of them. The store sees only the two traits, so every crash and every fault can be tried without a real disk.
//!
//! The fault model (spec: STORE-2): a sector of 512 bytes is written whole or not at all; sectors that were not synced
//! appear in any subset; a file's size and a directory's entries are safe only after a sync of their own.

mod faulty;
mod interposed;
mod memory;
mod real;

pub use faulty::{Fault, FaultyFiles, Journal};
pub use interposed::{Act, GoOn, Interposed};
pub use memory::MemoryFiles;
pub use real::Directory;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// What a disk writes whole or not at all, in bytes (spec: STORE-1).
pub const SECTOR_BYTES: usize = 512;

/// What a system says of a disk that fails, when all its files are open, and when those are that a process may have. `ErrorKind` has
/// no name for them, and POSIX gives no numbers; all unixes have these.
pub(crate) const EIO: i32 = 5;
pub(crate) const ENFILE: i32 = 23;
pub(crate) const EMFILE: i32 = 24;

/// A flat directory of files.
pub trait Files: Debug + Send + Sync {
    /// Makes a new file of `len` zero bytes whose blocks are allocated. It is durable only after [`File::sync`] and
    /// [`Files::sync_directory`].
    ///
    /// # Errors
    /// `AlreadyExists`, `StorageFull`, or what the disk says.
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>>;

    /// Opens a file to read and, unless the directory was opened only to read, to write.
    ///
    /// # Errors
    /// `NotFound`, or what the disk says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Renames a file over whatever `to` is.
    ///
    /// # Errors
    /// What the disk says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Handles that are open keep reading it.
    ///
    /// # Errors
    /// What the disk says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of all files, sorted.
    ///
    /// # Errors
    /// What the disk says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Something in the directory that is no regular file with a UTF-8 name, and so is not listed: a link, a device, a
    /// directory. Whoever takes a directory from a stranger refuses one that has such a thing.
    ///
    /// # Errors
    /// What the disk says.
    fn stranger(&self) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// How much room there is: for those who want to know before they write much.
    ///
    /// # Errors
    /// What the disk says.
    fn room(&self) -> io::Result<Room> {
        Ok(Room { free_bytes: u64::MAX, total_bytes: u64::MAX })
    }

    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// What the disk says.
    fn sync_directory(&self) -> io::Result<()>;

    /// Takes the directory for this process, for as long as the guard lives.
    ///
    /// # Errors
    /// [`LockError::InUse`] if another holder has it.
    fn lock(&self) -> Result<Box<dyn Guard>, LockError>;
}

/// Removes a file, if it is there.
pub(crate) fn remove_if_there(files: &dyn Files, name: &str) -> io::Result<()> {
    match files.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes a file that has its name only once it is whole: made and synced under another one, then renamed. `bytes` are its
/// first, the others are zero. The name is durable after [`Files::sync_directory`].
///
/// # Errors
/// What the disk says. Under the other name something may be left, which the next attempt removes.
pub fn make(files: &dyn Files, building: &str, name: &str, len: u64, bytes: &[u8]) -> io::Result<Arc<dyn File>> {
    // What an earlier attempt left is none of ours to keep.
    remove_if_there(files, building)?;
    let file = files.create(building, len)?;
    if !bytes.is_empty() {
        file.write_at(0, bytes)?;
    }
    file.sync()?;
    files.rename(building, name)?;
    Ok(file)
}

/// How much room a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Bytes there are in all.
    pub total_bytes: u64,
}

/// A file of fixed size.
pub trait File: Debug + Send + Sync {
    /// The size in bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, or what the disk says.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What the disk says; how much of it was written is then unknown.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all that was written durable (`fdatasync`).
    ///
    /// # Errors
    /// What the disk says. After an error nobody knows what is on the disk (spec: STORE-8).
    fn sync(&self) -> io::Result<()>;

    /// Says that the first `len` bytes will not be read soon: the system need not keep in memory what of them is on the
    /// disk. Nothing else changes. What a disk does not know how to do it leaves, as this does.
    fn evict(&self, len: u64) {
        let _ = len;
    }
}

/// Holds a directory's lock until it is dropped.
pub trait Guard: Debug + Send + Sync {}

/// Why a directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process (or another store in this one) has it.
    #[error("in use{}", by(.pid))]
    InUse {
        /// The holder, as far as it left its number.
        pid: Option<u32>,
    },
    /// The lock file could not be opened or locked.
    #[error("the lock file cannot be used")]
    Io(#[from] io::Error),
}

fn by(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by pid {pid}"))
}
