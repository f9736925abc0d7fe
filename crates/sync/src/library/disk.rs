//! Files of a library: what they are called, and how one comes to be whole or not at all.

use super::LibraryError;
use super::index::{INDEX_BYTES_MAX, Stored};
use keelstone_codec::{Hash, Height};
use keelstone_store::files::{self, Files};
use std::io;
use std::sync::Arc;

/// What the names of index files end in.
const INDEX: &str = ".snapshot";
/// What the names of chunk files end in.
const CHUNK: &str = ".chunk";
/// What the names of files end in that are being written.
const TEMPORARY: &str = ".tmp";
/// What is put behind the names of files that were found damaged.
const DAMAGED: &str = ".bad";

/// Which snapshot: its height, and the format it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The height of the state.
    pub height: Height,
    /// The format of the chunks.
    pub format: u32,
}

/// What a file of a library is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Index(SnapshotId),
    Chunk(Hash),
    Temporary,
    Damaged,
    Other,
}

impl FileKind {
    pub(crate) fn of(name: &str) -> Self {
        if name.ends_with(TEMPORARY) {
            return Self::Temporary;
        }
        if name.ends_with(DAMAGED) {
            return Self::Damaged;
        }
        let chunk = name.strip_suffix(CHUNK).and_then(|digits| Hash::from_hex(digits).ok());
        if let Some(hash) = chunk.filter(|hash| chunk_file(hash) == name) {
            return Self::Chunk(hash);
        }
        let parts = name.strip_suffix(INDEX).and_then(|rest| rest.split_once('-'));
        let id = parts.and_then(|(height, format)| {
            Some(SnapshotId { height: Height(height.parse().ok()?), format: format.parse().ok()? })
        });
        // A name has one spelling.
        id.filter(|id| index_file(id) == name).map_or(Self::Other, Self::Index)
    }
}

// spec: LIB-1
pub(crate) fn index_file(id: &SnapshotId) -> String {
    format!("{:020}-{}{INDEX}", id.height.0, id.format)
}

// spec: LIB-1, SNAP-8
pub(crate) fn chunk_file(name: &Hash) -> String {
    format!("{name}{CHUNK}")
}

/// What a file that is being written will be called.
pub(crate) fn finished(name: &str) -> Option<&str> {
    name.strip_suffix(TEMPORARY)
}

pub(crate) fn damaged_file(name: &str) -> String {
    format!("{name}{DAMAGED}")
}

/// What a file that was set aside was called.
pub(crate) fn set_aside_from(name: &str) -> Option<&str> {
    name.strip_suffix(DAMAGED)
}

/// Puts a file of this content in place, whole. It is durable under its name once the directory is synced.
pub(crate) fn write(files: &dyn Files, name: &str, bytes: &[u8]) -> Result<(), LibraryError> {
    let temporary = format!("{name}{TEMPORARY}");
    let written = files::make(files, &temporary, name, bytes.len() as u64, bytes);
    written.map(drop).map_err(|error| {
        // What cannot be removed now is swept at the next start.
        let _ = files.remove(&temporary);
        LibraryError::io("write", name)(error)
    })
}

/// Reads a whole file whose size is checked against a limit first. None if there is no such file.
///
/// A file that opens and of which the disk twice says that it cannot be read is damaged as one of other bytes is: its sectors are
/// bad. One that does not open may be whole, and the process out of descriptors or rights; and for want of memory, or of a
/// network that files lie behind, no disk is to blame.
// spec: LIB-4
fn read(files: &dyn Files, name: &str, limit: u64) -> Result<Option<Vec<u8>>, LibraryError> {
    let failed = || LibraryError::io("read", name);
    let file = match files.open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed()(error)),
    };
    let whole = || -> io::Result<Result<Vec<u8>, u64>> {
        let size = file.len()?;
        let Some(len) = usize::try_from(size).ok().filter(|_| size <= limit) else { return Ok(Err(size)) };
        let mut bytes = vec![0; len];
        file.read_at(0, &mut bytes)?;
        Ok(Ok(bytes))
    };
    match whole().or_else(|_| whole()) {
        Ok(Ok(bytes)) => Ok(Some(bytes)),
        Ok(Err(found)) => Err(LibraryError::TooLarge { file: name.to_owned(), found, limit }),
        Err(error) if is_bad_sector(&error) => {
            Err(LibraryError::Damaged { file: name.to_owned(), what: format!("it cannot be read: {error}") })
        }
        Err(error) => Err(failed()(error)),
    }
}

/// What a disk says of sectors that it cannot read: EIO, which is 5 on every Unix; or that the file ends before its end.
fn is_bad_sector(error: &io::Error) -> bool {
    error.raw_os_error() == Some(5) || error.kind() == io::ErrorKind::UnexpectedEof
}

/// The bytes of an index file.
pub(crate) fn read_index(files: &dyn Files, id: &SnapshotId) -> Result<Option<Vec<u8>>, LibraryError> {
    read(files, &index_file(id), INDEX_BYTES_MAX)
}

/// The bytes of a chunk's file, compared with its size and digest. No more is read than the index says there is.
// spec: LIB-4, LIB-6
pub(crate) fn read_chunk(files: &dyn Files, chunk: &Stored) -> Result<Vec<u8>, LibraryError> {
    let file = chunk_file(&chunk.name);
    let damaged = |what: String| LibraryError::Damaged { file: file.clone(), what };
    let other_size = |found: u64| Err(damaged(format!("it has {found} bytes, the index says {}", chunk.bytes)));
    match read(files, &file, u64::from(chunk.bytes)) {
        Ok(Some(bytes)) if bytes.len() == chunk.bytes as usize => {
            check_digest(chunk, &bytes)?;
            Ok(bytes)
        }
        Ok(Some(bytes)) => other_size(bytes.len() as u64),
        Ok(None) => Err(damaged("it is missing".to_owned())),
        Err(LibraryError::TooLarge { found, .. }) => other_size(found),
        Err(error) => Err(error),
    }
}

/// Compares the bytes of a chunk's file with what the index says of them.
pub(crate) fn check_digest(chunk: &Stored, bytes: &[u8]) -> Result<(), LibraryError> {
    let found = super::index::digest(bytes);
    if found == chunk.digest {
        return Ok(());
    }
    let what = format!("its digest is {found}, the index says {}", chunk.digest);
    Err(LibraryError::Damaged { file: chunk_file(&chunk.name), what })
}

/// Renames a damaged file out of the way, so that it can still be looked at.
pub(crate) fn set_aside(files: &dyn Files, name: &str) -> Result<(), LibraryError> {
    match files.rename(name, &damaged_file(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LibraryError::io("rename", name)(error)),
        _ => Ok(()),
    }
}

/// Removes a file that need not be there.
pub(crate) fn remove(files: &dyn Files, name: &str) -> Result<(), LibraryError> {
    match files.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LibraryError::io("remove", name)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn sync(files: &dyn Files) -> Result<(), LibraryError> {
    files.sync_directory().map_err(LibraryError::io("sync", "the directory"))
}

/// The names of all files.
pub(crate) fn list(files: &Arc<dyn Files>) -> Result<Vec<String>, LibraryError> {
    files.list().map_err(LibraryError::io("list", "the directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec: LIB-1. A file's name says what it is, and each has one name.
    #[test]
    fn names_have_one_spelling() {
        let id = SnapshotId { height: Height(1000), format: 1 };
        assert_eq!(index_file(&id), "00000000000000001000-1.snapshot");
        assert_eq!(FileKind::of(&index_file(&id)), FileKind::Index(id));
        let name = Hash([0xab; 32]);
        assert_eq!(FileKind::of(&chunk_file(&name)), FileKind::Chunk(name));
        let upper = chunk_file(&name).replace("ab", "AB");
        for other in ["1000-1.snapshot", "+0000000000000001000-1.snapshot", "x.snapshot", ".chunk", "LOCK", &upper] {
            assert_eq!(FileKind::of(other), FileKind::Other, "{other}");
        }
        assert_eq!(FileKind::of("00000000000000001000-1.snapshot.tmp"), FileKind::Temporary);
        assert_eq!(FileKind::of(&damaged_file(&chunk_file(&name))), FileKind::Damaged);
    }
}
