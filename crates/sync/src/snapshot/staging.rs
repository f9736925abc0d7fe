//! The files in which what was proven waits until all is there.
//!
//! They are written whole and never synced: a crash may leave anything in them, so whoever reads one back checks it
//! against what was proven.

use keelstone_store::files::{File, Files};
use std::io;
use std::sync::Arc;

/// A failure of our own disk. Nobody else is to blame.
#[derive(Debug, Clone, thiserror::Error)]
#[error("could not {doing} {file} of the staging directory: {source}")]
pub struct StagingError {
    /// The action.
    pub doing: &'static str,
    /// The file.
    pub file: String,
    /// What the machine said.
    pub source: Arc<io::Error>,
}

/// A directory that nobody else uses.
#[derive(Debug, Clone)]
pub(crate) struct StagingFiles(pub(crate) Arc<dyn Files>);

impl StagingFiles {
    pub(crate) fn list(&self) -> Result<Vec<String>, StagingError> {
        self.0.list().map_err(failed("list", ""))
    }

    /// The bytes of a file; none if it is not there or larger than it can be.
    pub(crate) fn read(&self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, StagingError> {
        let read = || -> io::Result<Option<Vec<u8>>> {
            let file = self.0.open(name)?;
            let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
            if len > bytes_max {
                return Ok(None);
            }
            let mut bytes = vec![0; len];
            file.read_at(0, &mut bytes)?;
            Ok(Some(bytes))
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map_err(failed("read", name)),
        }
    }

    /// So many bytes of a file from an offset on; none if it is not there or shorter.
    pub(crate) fn read_part(&self, name: &str, offset: u64, len: usize) -> Result<Option<Vec<u8>>, StagingError> {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; len];
            self.0.open(name)?.read_at(offset, &mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => Ok(None),
            Err(error) => Err(failed("read", name)(error)),
        }
    }

    /// Makes a file of so many zero bytes.
    pub(crate) fn create(&self, name: &str, len: usize) -> Result<Arc<dyn File>, StagingError> {
        // A crash or a full disk may have left one.
        self.remove(name)?;
        self.0.create(name, len as u64).map_err(failed("make", name))
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StagingError> {
        self.create(name, bytes.len())?.write_at(0, bytes).map_err(failed("write", name))
    }

    /// Removes a file that need not be there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StagingError> {
        match self.0.remove(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(failed("remove", name)),
        }
    }
}

pub(crate) fn failed<'a>(doing: &'static str, file: &'a str) -> impl FnOnce(io::Error) -> StagingError + 'a {
    move |error| StagingError { doing, file: file.to_owned(), source: Arc::new(error) }
}
