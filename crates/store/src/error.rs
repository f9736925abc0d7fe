//! What can go wrong in the store, sorted by who has to act.

use crate::files::{EMFILE, ENFILE};
use keelstone_codec::{Height, Key, Namespace, Root};
use keelstone_tree::ReadError;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Why the store did not do what it was asked. Each variant says who has to act. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the directory. Stop it, or use another directory.
    #[error("the store is in use{}", .pid.map_or_else(String::new, |pid| format!(" by pid {pid}")))]
    InUse {
        /// The holder, if it left its number.
        pid: Option<u32>,
    },
    /// There is already a store where one was to be made. The caller's to mend.
    #[error("there is already a store here")]
    Exists,
    /// There is no store where one was to be opened. The caller's to mend.
    #[error("there is no store here: file `{file}` does not exist")]
    Missing {
        /// The file that makes a directory a store.
        file: &'static str,
    },
    /// Bytes on disk are not what was written. Nothing is guessed or cut: repair from a peer, a snapshot or a backup.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What was expected and found.
        what: String,
    },
    /// A file that belongs to the store is gone. Repair as for damage.
    #[error("{file} is missing: {what}")]
    Lost {
        /// The file.
        file: String,
        /// Who says it must be there.
        what: String,
    },
    /// The machine failed: disk full, I/O error, no permission.
    #[error("could not {doing} {file}: {source}")]
    Io {
        /// The action.
        doing: &'static str,
        /// The file.
        file: String,
        /// What the machine said.
        source: Arc<io::Error>,
    },
    /// The store was written in a format this version does not know. Use a newer version of the software.
    #[error("the store has format {found}; this version knows {known}")]
    Unsupported {
        /// The format on disk.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The store was made with another hash function. Open it as what it is.
    #[error("the store hashes with {found}, not {expected}")]
    WrongHasher {
        /// What the caller opened it as.
        expected: String,
        /// What the store says.
        found: String,
    },
    /// The height is not kept, or not reached yet. Ask for one between `low` and `high`.
    #[error("height {height} is not kept: the store has {low} to {high}")]
    NotRetained {
        /// What was asked for.
        height: Height,
        /// The lowest height kept.
        low: Height,
        /// The last height.
        high: Height,
    },
    /// Nothing was committed yet.
    #[error("the store has no height yet")]
    Empty,
    /// An earlier write or sync failed, so nobody knows what is on the disk. Reads go on; reopen to write (spec: STORE-8).
    #[error("the store stopped writing after: {reason}")]
    Poisoned {
        /// The failure.
        reason: String,
    },
    /// A commit that does not continue the history, or of the height `u64::MAX`, which none could follow. The caller's to mend.
    #[error("height {found} cannot be committed: the next is {expected}")]
    WrongHeight {
        /// The height that comes next.
        expected: Height,
        /// The height that was given.
        found: Height,
    },
    /// A prepared diff whose parent is no longer the last version. Prepare it again.
    #[error("prepared on {prepared}, but the store is at {current}")]
    Stale {
        /// The root the diff was prepared on.
        prepared: Root,
        /// The root of the last version.
        current: Root,
    },
    /// Something is above a limit (spec: STORE-7). The caller's to mend.
    #[error("{what} has {found} bytes, the limit is {limit}")]
    TooLarge {
        /// The thing.
        what: &'static str,
        /// Its bytes.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// An entry that a store cannot be built from (spec: STORE-11). The caller's to mend.
    #[error("entry {namespace}/{} cannot be built in: {what}", key.escape_ascii())]
    BadEntry {
        /// Where.
        namespace: Namespace,
        /// Its key.
        key: Key,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The entries a store was built from are not the state that was expected: whoever gave them was wrong.
    #[error("the entries have root {found}, {expected} was expected")]
    WrongRoot {
        /// The root of the state that was to be built.
        expected: Root,
        /// The root of the entries.
        found: Root,
    },
    /// The store was built at this height from its state: what the height changed is not known here.
    #[error("what height {height} changed is not known: the store was built at this height")]
    NoDiff {
        /// The height.
        height: Height,
    },
    /// A rollback that would go further back than history is kept.
    #[error("cannot roll back to {to}: the store has {low} to {high}")]
    CannotRollBack {
        /// What was asked for.
        to: Height,
        /// The lowest height kept.
        low: Height,
        /// The last height.
        high: Height,
    },
    /// Entries of the last version that cannot be read: one, or a whole piece of the tree. What they are is lost here;
    /// repair as for damage.
    #[error("{entries} {} of {namespace}, {} {}: {source}", if *entries == 1 { "entry" } else { "entries" },
        if *entries == 1 { "key" } else { "keys from" }, at.escape_ascii())]
    Unreadable {
        /// Where.
        namespace: Namespace,
        /// The key, or what the first of them begin with.
        at: Vec<u8>,
        /// How many.
        entries: u64,
        /// Why.
        source: ReadError,
    },
    /// State could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl StoreError {
    /// [`StoreError::Io`].
    pub(crate) fn io(doing: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { doing, file, source: Arc::new(source) }
    }

    /// [`StoreError::Damaged`].
    pub(crate) fn damaged(file: impl Into<String>, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.into(), offset, what: what.into() }
    }

    /// The same, with the directory before the name of the file: a store knows its files by their names alone, and whoever reads of one
    /// may have several.
    #[must_use]
    pub fn within(mut self, directory: &Path) -> Self {
        if let Self::Damaged { file, .. } | Self::Lost { file, .. } | Self::Io { file, .. } = &mut self
            && !file.contains([std::path::MAIN_SEPARATOR, ' '])
        {
            *file = directory.join(&*file).display().to_string();
        }
        self
    }

    /// Whether our own bytes are wrong, as against a machine that failed or a caller who asked wrongly.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Lost { .. } => true,
            Self::Read(error) | Self::Unreadable { source: error, .. } => matches!(error, ReadError::Damaged { .. }),
            _ => false,
        }
    }

    /// Whether the process or the machine was out of something for the moment, file descriptors or memory: nothing was
    /// learned of the bytes, and the same may work soon.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_shortage(source),
            Self::Read(ReadError::Io(source)) | Self::Unreadable { source: ReadError::Io(source), .. } => {
                is_shortage(source)
            }
            _ => false,
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
        || matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A store error met while reading state: damage stays damage.
impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Read(error) => error,
            StoreError::Unreadable { source, .. } => source,
            StoreError::Io { source, .. } => Self::Io(source),
            other => Self::damaged(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file is named with its directory once, and what is no file is not.
    #[test]
    fn a_file_is_named_with_its_directory() {
        let place = Path::new("state");
        let named = StoreError::damaged("a.log", 0, "a bit").within(place).within(Path::new("home"));
        assert_eq!(named.to_string(), format!("{} is damaged at byte 0: a bit", place.join("a.log").display()));
        let other = StoreError::damaged("the history", 0, "a root").within(place);
        assert_eq!(other.to_string(), "the history is damaged at byte 0: a root");
        let full = StoreError::io("create", "1.values")(io::ErrorKind::StorageFull.into()).within(place);
        assert!(full.to_string().contains(&*place.join("1.values").to_string_lossy()), "{full}");
    }

    /// L-06: what was lacking is told from what is wrong, however it was met.
    #[test]
    fn l06_a_shortage_is_no_damage_and_no_other_failure_is_one() {
        use io::ErrorKind::{Interrupted, NotFound, OutOfMemory, StorageFull, WouldBlock};
        const EIO: i32 = 5;
        let kind = |kind: io::ErrorKind| io::Error::from(kind);
        let lacking = [ENFILE, EMFILE].map(io::Error::from_raw_os_error).into_iter();
        let lacking = lacking.chain([OutOfMemory, WouldBlock, Interrupted].map(kind)).map(|error| (error, true));
        let failed = [io::Error::from_raw_os_error(EIO), kind(NotFound), kind(StorageFull)].map(|error| (error, false));
        for (error, expected) in lacking.chain(failed) {
            let source = Arc::new(error);
            let read = ReadError::Io(source.clone());
            let (namespace, at) = (Namespace::new("entries").unwrap(), Vec::new());
            for met in [
                StoreError::Io { doing: "open", file: "log".to_owned(), source: source.clone() },
                StoreError::Read(read.clone()),
                StoreError::Unreadable { namespace, at, entries: 1, source: read },
            ] {
                assert_eq!((met.is_shortage(), met.is_damage()), (expected, false), "{met}");
            }
        }
        assert!(!StoreError::damaged("log", 0, "a bit").is_shortage());
    }
}
