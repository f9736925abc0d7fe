//! A directory in memory: quick, and as safe as the process.

use super::{File, Files, Guard, LockError};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A directory in memory. Clones share their files, so a store can be dropped and opened again.
#[derive(Debug, Clone, Default)]
pub struct MemoryFiles {
    entries: Arc<Mutex<BTreeMap<String, Arc<MemoryFile>>>>,
    locked: Arc<AtomicBool>,
}

impl MemoryFiles {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of every file, by name: the disk as it is now.
    #[must_use]
    pub fn image(&self) -> BTreeMap<String, Vec<u8>> {
        self.entries().iter().map(|(name, file)| (name.clone(), file.bytes().clone())).collect()
    }

    /// A directory with the given files.
    #[must_use]
    pub fn from_image(image: &BTreeMap<String, Vec<u8>>) -> Self {
        let files = Self::new();
        for (name, bytes) in image {
            let file = Arc::new(MemoryFile { bytes: Mutex::new(bytes.clone()) });
            files.entries().insert(name.clone(), file);
        }
        files
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Arc<MemoryFile>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, name: &str) -> io::Result<Arc<MemoryFile>> {
        self.entries().get(name).cloned().ok_or_else(|| not_found(name))
    }
}

impl Files for MemoryFiles {
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        let mut entries = self.entries();
        if entries.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} exists")));
        }
        let file = Arc::new(MemoryFile { bytes: Mutex::new(vec![0; len]) });
        entries.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.entry(name)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut entries = self.entries();
        let file = entries.remove(from).ok_or_else(|| not_found(from))?;
        entries.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.entries().remove(name).map(drop).ok_or_else(|| not_found(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.entries().keys().cloned().collect())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Box<dyn Guard>, LockError> {
        FlagLock::take(&self.locked)
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name} does not exist"))
}

/// A lock within one process.
#[derive(Debug)]
pub(super) struct FlagLock(Arc<AtomicBool>);

impl FlagLock {
    pub(super) fn take(flag: &Arc<AtomicBool>) -> Result<Box<dyn Guard>, LockError> {
        if flag.swap(true, Ordering::AcqRel) {
            return Err(LockError::InUse { pid: Some(std::process::id()) });
        }
        Ok(Box::new(Self(Arc::clone(flag))))
    }
}

impl Drop for FlagLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Guard for FlagLock {}

#[derive(Debug)]
struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryFile {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        let range = span(offset, out.len(), bytes.len())?;
        out.copy_from_slice(&bytes[range]);
        Ok(())
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes();
        let range = span(offset, new.len(), bytes.len())?;
        bytes[range].copy_from_slice(new);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The range of `count` bytes from `offset` in a file of `len` bytes. Files here never grow: the store gives every file
/// its size when it makes it.
pub(super) fn span(offset: u64, count: usize, len: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok().filter(|start| *start <= len && len - *start >= count);
    let start = start.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(start..start + count)
}
