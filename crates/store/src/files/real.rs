//! A directory of the real file system.

use super::{File, Files, Guard, LockError, Room};
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file whose OS lock says who owns the directory. Its content is the owner's process number, for people.
const LOCK_FILE: &str = "LOCK";

/// A directory of the real file system.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
    /// Open, so that syncing it takes no file descriptor that there may not be then.
    handle: Arc<fs::File>,
    /// Whether files are opened to write as well.
    writable: bool,
}

impl Directory {
    /// The directory at `path`, which is made if it does not exist. Symbolic links are followed: whoever set one up
    /// owns what it points at.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path)?;
        Self::opened(path, true)
    }

    /// The directory at `path`, which must exist.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or what the file system says.
    pub fn existing(path: impl Into<PathBuf>) -> io::Result<Self> {
        Self::there(path.into(), true)
    }

    /// The directory at `path`, which must exist, for whoever only reads it: it may be another's, or on a medium that nobody can
    /// write to. Files are opened to read, and writing to one fails. Who means to write opens it otherwise, and is told when
    /// a file is opened, not at the first write.
    ///
    /// # Errors
    /// As [`Self::existing`].
    pub fn to_read(path: impl Into<PathBuf>) -> io::Result<Self> {
        Self::there(path.into(), false)
    }

    fn there(path: PathBuf, writable: bool) -> io::Result<Self> {
        if !fs::metadata(&path)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is no directory", path.display())));
        }
        Self::opened(path, writable)
    }

    fn opened(path: PathBuf, writable: bool) -> io::Result<Self> {
        let handle = Arc::new(fs::File::open(&path)?);
        Ok(Self { path, handle, writable })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Files for Directory {
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let path = self.path.join(name);
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        // A later fdatasync must not have to write the file's size or block map, so both exist from the start.
        if let Err(error) = fs4::FileExt::allocate(&file, len) {
            // It keeps what room there was for some of it, and whoever filled the disk so could not write another byte.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(self.writable).open(self.path.join(name))?;
        Ok(Arc::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                // A name that is not UTF-8 is none of ours.
                names.extend(entry.file_name().into_string().ok());
            }
        }
        names.sort();
        Ok(names)
    }

    fn stranger(&self) -> io::Result<Option<String>> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() || entry.file_name().to_str().is_none() {
                return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
            }
        }
        Ok(None)
    }

    fn room(&self) -> io::Result<Room> {
        let stats = fs4::statvfs(&self.path)?;
        Ok(Room { free_bytes: stats.available_space(), total_bytes: stats.total_space() })
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn lock(&self) -> Result<Box<dyn Guard>, LockError> {
        let path = self.path.join(LOCK_FILE);
        let mut file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(fs4::TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The number is for people only; the lock itself is the operating system's.
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::InUse { pid });
            }
            Err(fs4::TryLockError::Error(error)) => return Err(error.into()),
        }
        // The number is for people: a full disk has no room for it, and is no reason not to open what lies there.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Box::new(RealLock { _file: file }))
    }
}

#[derive(Debug)]
struct RealLock {
    // The operating system lets go of the lock when the handle closes, however the process ends.
    _file: fs::File,
}

impl Guard for RealLock {}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
}

#[cfg(unix)]
impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    #[cfg(target_os = "linux")]
    fn evict(&self, len: u64) {
        use rustix::fs::{Advice, fadvise};
        // No length is all of the file. A page that is only partly of these bytes stays.
        if let Some(len) = std::num::NonZeroU64::new(len) {
            // Advice that is not taken costs memory, nothing else.
            let _ = fadvise(&self.file, 0, Some(len), Advice::DontNeed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that there is no room for is not there, and takes none of what there is.
    #[test]
    fn a_file_that_cannot_be_made_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = Directory::new(directory.path()).unwrap();
        files.create("large", 1 << 60).unwrap_err();
        assert_eq!(files.list().unwrap(), [] as [&str; 0]);
        files.create("large", 1 << 10).unwrap();
    }
}
