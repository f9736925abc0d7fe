//! A disk with something in between: what is done to another disk passes a hook on its way, which may look on, wait, do it
//! in another way, or refuse it. For whoever gives way to others, and for tests that watch what is done or hold it up.

use super::{File, Files, Guard, LockError, Room};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::sync::Arc;

/// What is done to a directory or to a file of it. What is not named here passes by itself.
#[derive(Debug, Clone, Copy)]
pub enum Act<'a> {
    /// The file is made.
    Create,
    /// It gets this name.
    Rename(&'a str),
    /// It is removed.
    Remove,
    /// The directory is synced.
    SyncDirectory,
    /// Somebody asks for the room there is, and is told what this holds in the end.
    Room(&'a Cell<Room>),
    /// The file is read.
    Read,
    /// It is written.
    Write {
        /// The file itself, for who writes in another way.
        file: &'a dyn File,
        /// Where the first byte goes.
        offset: u64,
        /// What is written.
        bytes: &'a [u8],
    },
    /// It is synced.
    Sync,
    /// So many of its bytes will not be read soon.
    Evict(u64),
}

/// Has the disk beneath do what is asked for.
pub type GoOn<'a> = &'a mut dyn FnMut() -> io::Result<()>;

type Hook = dyn Fn(&str, Act<'_>, GoOn<'_>) -> io::Result<()> + Send + Sync;

/// A directory of which every act passes a hook.
#[derive(Clone)]
pub struct Interposed {
    files: Arc<dyn Files>,
    hook: Arc<Hook>,
}

struct InterposedFile {
    file: Arc<dyn File>,
    name: String,
    hook: Arc<Hook>,
}

impl Interposed {
    /// Puts a hook before a directory. It hears of the name by which a file was made or opened, which is empty for what is
    /// done to the directory alone; its answer is the one that is given.
    pub fn new(
        files: Arc<dyn Files>,
        hook: impl Fn(&str, Act<'_>, GoOn<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { files, hook: Arc::new(hook) }
    }

    fn file(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(InterposedFile { file, name: name.to_owned(), hook: Arc::clone(&self.hook) })
    }
}

impl fmt::Debug for Interposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

impl fmt::Debug for InterposedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Files for Interposed {
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let mut made = None;
        (self.hook)(name, Act::Create, &mut || {
            made = Some(self.files.create(name, len)?);
            Ok(())
        })?;
        // A hook that let nothing be made and did not say so.
        let file = made.ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(name, file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.file(name, self.files.open(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        (self.hook)(from, Act::Rename(to), &mut || self.files.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        (self.hook)(name, Act::Remove, &mut || self.files.remove(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn stranger(&self) -> io::Result<Option<String>> {
        self.files.stranger()
    }

    fn room(&self) -> io::Result<Room> {
        let room = Cell::new(self.files.room()?);
        (self.hook)("", Act::Room(&room), &mut || Ok(()))?;
        Ok(room.get())
    }

    fn sync_directory(&self) -> io::Result<()> {
        (self.hook)("", Act::SyncDirectory, &mut || self.files.sync_directory())
    }

    fn lock(&self) -> Result<Box<dyn Guard>, LockError> {
        self.files.lock()
    }
}

impl File for InterposedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        (self.hook)(&self.name, Act::Read, &mut || self.file.read_at(offset, out))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let act = Act::Write { file: &*self.file, offset, bytes };
        (self.hook)(&self.name, act, &mut || self.file.write_at(offset, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        (self.hook)(&self.name, Act::Sync, &mut || self.file.sync())
    }

    fn evict(&self, len: u64) {
        let evict = &mut || {
            self.file.evict(len);
            Ok(())
        };
        // Nothing depends on it, so nobody is told whether it was done.
        drop((self.hook)(&self.name, Act::Evict(len), evict));
    }
}
