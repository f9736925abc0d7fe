//! One snapshot in a directory or a tar of its own, to be carried to another machine without a network.
//!
//! An archive holds the files a library would: the index, and each chunk under its content name. It is a stranger's: its
//! index is believed in nothing but what it is compared with, each chunk is proven before it is written, and it is
//! written under the name of what it was proven to hold. A name, a size or an order other than the index calls for
//! refuses the whole of it, so there is no path, link or case to play with.
//!
//! Rules: `spec/library.md`, LIB-6 to LIB-8.

use super::create::{Fresh, Listener, Phase, check_room, tell};
use super::disk::{self, FileKind};
use super::index::{INDEX_BYTES_MAX, Index, Stored};
use super::tar::{self, Stream, TarReader, TarWriter};
use super::verify::{Each, Verifying};
use super::{Info, Library, LibraryError, Pin, SnapshotId};
use crate::snapshot::{PartOf, SnapshotParams};
use keelstone_codec::{Decode, Encode, Hash, Root};
use keelstone_store::files::Files;
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write;
use std::ops::Range;

/// What an archive must be of to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expected {
    /// The chain, its hasher and its cut; none takes any.
    pub params: Option<SnapshotParams>,
    /// The root of the state, from where it is trusted; none takes any, and proves only that the chunks belong together.
    pub root: Option<Root>,
}

impl Expected {
    /// Compares an index with what is expected.
    // spec: LIB-8
    fn check(&self, index: &Index) -> Result<(), LibraryError> {
        fn same<T: PartialEq + Display>(what: &'static str, found: &T, expected: &T) -> Result<(), LibraryError> {
            match found == expected {
                true => Ok(()),
                false => Err(LibraryError::Foreign { what, found: found.to_string(), expected: expected.to_string() }),
            }
        }
        if let Some(params) = &self.params {
            same("chain", &index.metadata.chain_id, &params.chain_id)?;
            same("hasher", &index.metadata.hasher, &params.hasher)?;
            same("chunk weight", &index.metadata.chunk_weight_max, &params.chunk_weight_max)?;
        }
        match self.root {
            Some(expected) if index.root != expected => Err(LibraryError::OtherRoot { found: index.root, expected }),
            _ => Ok(()),
        }
    }
}

/// Where the files of an archive come from.
pub(super) trait Source {
    /// The index, which is asked for once and first.
    fn index(&mut self) -> Result<Vec<u8>, LibraryError>;
    /// Hears of the index, before any chunk is asked for.
    fn prepare(&mut self, _: &Index) {}
    /// A chunk of the index. They are asked for in its order.
    fn chunk(&mut self, stored: &Stored) -> Result<Vec<u8>, LibraryError>;
    /// A chunk by its number, in any order. Not to be mixed with [`Self::chunk`].
    fn part(&mut self, number: u32, stored: &Stored) -> Result<Vec<u8>, LibraryError>;
    /// Sees to it that there is nothing else.
    fn finish(&mut self, index: &Index) -> Result<(), LibraryError>;
}

struct TarSource<'a> {
    tar: TarReader<'a>,
    /// Where the header of each chunk is.
    offsets: Vec<u64>,
}

impl Source for TarSource<'_> {
    fn index(&mut self) -> Result<Vec<u8>, LibraryError> {
        let (name, size) = self.tar.next()?.ok_or_else(|| LibraryError::Archive("the archive is empty".to_owned()))?;
        if !matches!(FileKind::of(&name), FileKind::Index(_)) {
            return Err(LibraryError::Archive(format!("the archive begins with {name}, not with an index")));
        }
        match usize::try_from(size) {
            Ok(len) if size <= INDEX_BYTES_MAX => Ok(self.tar.body(len)?),
            _ => Err(LibraryError::TooLarge { file: name, found: size, limit: INDEX_BYTES_MAX }),
        }
    }

    fn prepare(&mut self, index: &Index) {
        let mut offset = tar::file_bytes(index.to_bytes().len() as u64);
        for chunk in &index.chunks {
            self.offsets.push(offset);
            offset += tar::file_bytes(u64::from(chunk.bytes));
        }
    }

    fn chunk(&mut self, stored: &Stored) -> Result<Vec<u8>, LibraryError> {
        let expected = (disk::chunk_file(&stored.name), u64::from(stored.bytes));
        match self.tar.next()? {
            Some(found) if found == expected => {
                let bytes = self.tar.body(stored.bytes as usize)?;
                disk::check_digest(stored, &bytes)?;
                Ok(bytes)
            }
            Some((name, size)) => {
                let (file, bytes) = expected;
                let what = format!("{name} of {size} bytes stands where {file} of {bytes} bytes must");
                Err(LibraryError::Archive(what))
            }
            None => Err(LibraryError::Archive(format!("the archive lacks {}", expected.0))),
        }
    }

    fn part(&mut self, number: u32, stored: &Stored) -> Result<Vec<u8>, LibraryError> {
        let offset = self.offsets.get(number as usize).copied();
        let offset = offset.ok_or_else(|| LibraryError::Archive(format!("the archive lacks chunk {number}")))?;
        self.tar.seek(offset)?;
        self.chunk(stored)
    }

    fn finish(&mut self, _: &Index) -> Result<(), LibraryError> {
        match self.tar.next()? {
            None => Ok(()),
            Some((name, _)) => Err(LibraryError::Archive(format!("the archive holds {name}, which its index lacks"))),
        }
    }
}

struct KeptSource<'a> {
    pin: &'a Pin,
    next: u32,
}

impl Source for KeptSource<'_> {
    fn index(&mut self) -> Result<Vec<u8>, LibraryError> {
        Ok(self.pin.index.to_bytes())
    }

    fn chunk(&mut self, stored: &Stored) -> Result<Vec<u8>, LibraryError> {
        self.next += 1;
        self.part(self.next - 1, stored)
    }

    fn part(&mut self, number: u32, _: &Stored) -> Result<Vec<u8>, LibraryError> {
        self.pin.chunk(number)?.ok_or(LibraryError::NotFound(self.pin.info.id))
    }

    fn finish(&mut self, _: &Index) -> Result<(), LibraryError> {
        Ok(())
    }
}

struct DirectorySource<'a>(&'a dyn Files);

impl DirectorySource<'_> {
    fn names(&self) -> Result<Vec<String>, LibraryError> {
        self.0.list().map_err(LibraryError::io("list", "the archive"))
    }
}

impl Source for DirectorySource<'_> {
    fn index(&mut self) -> Result<Vec<u8>, LibraryError> {
        if let Some(name) = self.0.stranger().map_err(LibraryError::io("list", "the archive"))? {
            return Err(LibraryError::Archive(format!("{name:?} is no regular file; only those are taken")));
        }
        let mut id = None;
        for name in self.names()? {
            match FileKind::of(&name) {
                FileKind::Index(found) if id.is_none() => id = Some(found),
                FileKind::Index(_) => return Err(LibraryError::Archive("the archive holds two indexes".to_owned())),
                FileKind::Chunk(_) => {}
                _ => return Err(LibraryError::Archive(format!("{name:?} is no file of a snapshot"))),
            }
        }
        let none = || LibraryError::Archive("the archive holds no index".to_owned());
        disk::read_index(self.0, &id.ok_or_else(none)?)?.ok_or_else(none)
    }

    fn chunk(&mut self, stored: &Stored) -> Result<Vec<u8>, LibraryError> {
        disk::read_chunk(self.0, stored)
    }

    fn part(&mut self, _: u32, stored: &Stored) -> Result<Vec<u8>, LibraryError> {
        self.chunk(stored)
    }

    fn finish(&mut self, index: &Index) -> Result<(), LibraryError> {
        let known: BTreeSet<String> = index
            .files()
            .iter()
            .map(|chunk| disk::chunk_file(&chunk.name))
            .chain([disk::index_file(&index.id())])
            .collect();
        match self.names()?.into_iter().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(name) => Err(LibraryError::Archive(format!("the archive holds {name}, which its index lacks"))),
        }
    }
}

/// Where a snapshot is read from.
pub enum Origin<'a> {
    /// A library of our own.
    Kept(&'a Pin),
    /// A tar from a stranger.
    Tar(&'a mut dyn Stream),
    /// A directory from a stranger, which holds one snapshot and nothing else.
    Directory(&'a dyn Files),
}

impl<'a> Origin<'a> {
    pub(super) fn source(self) -> Box<dyn Source + 'a> {
        match self {
            Self::Kept(pin) => Box::new(KeptSource { pin, next: 0 }),
            Self::Tar(input) => Box::new(TarSource { tar: TarReader::new(input), offsets: Vec::new() }),
            Self::Directory(files) => Box::new(DirectorySource(files)),
        }
    }

    /// The index, compared with what is expected. Nothing it says is proven.
    ///
    /// # Errors
    /// [`LibraryError`] says what is wrong with it.
    pub fn index(self, expected: &Expected) -> Result<Index, LibraryError> {
        open(&mut *self.source(), expected)
    }

    /// What the index says of the snapshot, compared with what is expected. Nothing of it is proven.
    ///
    /// # Errors
    /// As [`Self::index`].
    pub fn inspect(self, expected: &Expected) -> Result<Info, LibraryError> {
        self.index(expected).map(|index| Info::of(&index))
    }

    /// Proves every chunk against the root of the index.
    ///
    /// # Errors
    /// [`LibraryError`] names what is wrong, and where.
    pub fn verify(self, expected: &Expected, listener: Listener<'_>) -> Result<Info, LibraryError> {
        read(&mut *self.source(), expected, None, listener)
    }

    /// As [`Self::verify`], and hands out all entries in order. Each is proven when it is handed out; that there are no
    /// others is proven once this returns.
    ///
    /// # Errors
    /// As [`Self::verify`], and what `each` says.
    pub fn entries(self, expected: &Expected, each: Each<'_>, listener: Listener<'_>) -> Result<Info, LibraryError> {
        read(&mut *self.source(), expected, Some(each), listener)
    }
}

/// The index of an archive, compared with what is expected of it.
pub(super) fn open(source: &mut dyn Source, expected: &Expected) -> Result<Index, LibraryError> {
    let bytes = source.index()?;
    let index = Index::from_bytes(&bytes).map_err(|error| LibraryError::Archive(format!("its index: {error}")))?;
    source.prepare(&index);
    expected.check(&index)?;
    Ok(index)
}

fn read(
    source: &mut dyn Source,
    expected: &Expected,
    mut each: Option<Each<'_>>,
    listener: Listener<'_>,
) -> Result<Info, LibraryError> {
    let index = open(source, expected)?;
    let total = index.metadata.chunks;
    let mut verifying = Verifying::begin(&index);
    for (number, stored) in (0u32..).zip(&index.chunks) {
        let each: Option<Each<'_>> = match &mut each {
            Some(each) => Some(&mut **each),
            None => None,
        };
        verifying.take(stored, &source.chunk(stored)?, each)?;
        tell(listener, Phase::Proving, number + 1, total)?;
    }
    source.finish(&index)?;
    Ok(Info::of(&index))
}

impl Library {
    /// Proves every chunk of a snapshot against its root, as a stranger would.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`]; [`LibraryError::Damaged`] or [`LibraryError::Unproven`] names the chunk.
    pub fn verify(&self, id: SnapshotId, listener: Listener<'_>) -> Result<Info, LibraryError> {
        let pin = self.pin(id).ok_or(LibraryError::NotFound(id))?;
        Origin::Kept(&pin).verify(&Expected::default(), listener)
    }

    /// Takes a snapshot over from an archive: proven chunk by chunk, durable and listed once this returns.
    ///
    /// # Errors
    /// [`LibraryError`]; nothing of the attempt is left.
    // spec: LIB-6, LIB-8
    pub fn import(
        &self,
        from: Origin<'_>,
        expected: &Expected,
        reserve_percent: u8,
        listener: Listener<'_>,
    ) -> Result<Info, LibraryError> {
        let _writing = self.shared.writing()?;
        let source = &mut *from.source();
        let mut index = open(source, expected)?;
        let total = index.metadata.chunks;
        let room = self.shared.files.room().map_err(LibraryError::io("measure", "the disk"))?;
        check_room(room, reserve_percent, index.bytes().saturating_add(index.to_bytes().len() as u64))?;
        let mut verifying = Verifying::begin(&index);
        let mut fresh = Fresh::new(&self.shared);
        for (number, stored) in (0u32..).zip(&index.chunks) {
            let wire = source.chunk(stored)?;
            verifying.take(stored, &wire, None)?;
            if !fresh.has(&stored.name)? {
                fresh.write(stored.name, &wire)?;
            }
            fresh.push(&stored.name);
            tell(listener, Phase::Copying, number + 1, total)?;
        }
        source.finish(&index)?;
        // What stands in our own files, which for a chunk that was here already may be other bytes of the same content.
        index.chunks = fresh.take_chunks();
        fresh.list(index)
    }

    /// Writes a snapshot as one tar.
    ///
    /// # Errors
    /// [`LibraryError`]; what was written is then no archive.
    // spec: LIB-7
    pub fn export_tar(
        &self,
        id: SnapshotId,
        out: &mut dyn Write,
        listener: Listener<'_>,
    ) -> Result<Info, LibraryError> {
        let pin = self.pin(id).ok_or(LibraryError::NotFound(id))?;
        let failed = || LibraryError::io("write", "the archive");
        let total = pin.index.metadata.chunks;
        let mut tar = TarWriter::new(out);
        tar.file(&disk::index_file(&id), &pin.index.to_bytes()).map_err(failed())?;
        for (number, stored) in (0u32..).zip(&pin.index.chunks) {
            let wire = pin.chunk(number)?.ok_or(LibraryError::NotFound(id))?;
            tar.file(&disk::chunk_file(&stored.name), &wire).map_err(failed())?;
            tell(listener, Phase::Copying, number + 1, total)?;
        }
        tar.finish().map_err(failed())?;
        Ok(pin.info.clone())
    }

    /// Writes a snapshot into a directory, its index last. What an export of this snapshot that was cut off left there is gone on
    /// with.
    ///
    /// # Errors
    /// [`LibraryError::Archive`] if there is anything else in it already; [`LibraryError::NoRoom`] before anything is written.
    pub fn export_directory(
        &self,
        id: SnapshotId,
        into: &dyn Files,
        reserve_percent: u8,
        listener: Listener<'_>,
    ) -> Result<Info, LibraryError> {
        let pin = self.pin(id).ok_or(LibraryError::NotFound(id))?;
        let all: Vec<u32> = (0..pin.index.metadata.chunks).collect();
        export(&pin, &all, into, reserve_percent, listener)?;
        Ok(pin.info.clone())
    }

    /// Writes what a part of a state needs of a snapshot into a directory, as [`Self::export_directory`] does: the pages, the chunks that hold it, and the
    /// index last, which names all chunks. Returns the bytes of these files.
    ///
    /// # Errors
    /// As [`Self::export_directory`], and [`LibraryError::Unproven`] for a page that is not the root's.
    // spec: LIB-11
    pub fn export_part(
        &self,
        id: SnapshotId,
        of: &PartOf,
        into: &dyn Files,
        reserve_percent: u8,
        listener: Listener<'_>,
    ) -> Result<u64, LibraryError> {
        let pin = self.pin(id).ok_or(LibraryError::NotFound(id))?;
        let wanted = match pin.index.metadata.hasher {
            HashKind::Blake3 => chunks_of::<Blake3>(&pin, of)?,
            HashKind::Sha256 => chunks_of::<Sha256>(&pin, of)?,
        };
        let numbers: Vec<u32> = (0..pin.index.metadata.pages).chain(wanted).collect();
        export(&pin, &numbers, into, reserve_percent, listener)
    }
}

/// The chunks that hold a part, by the pages of a snapshot.
fn chunks_of<H: Hasher>(pin: &Pin, of: &PartOf) -> Result<Range<u32>, LibraryError> {
    let mut source = KeptSource { pin, next: 0 };
    Ok(super::extract::skeleton::<H>(&mut source, &pin.index)?.chunks_of(of))
}

/// Writes chunks of a snapshot into a directory, the index last. Returns the bytes of these files. There may be nothing in it
/// but what an export of the very same left that was cut off: that is gone on with.
// spec: LIB-7
fn export(
    pin: &Pin,
    chunks: &[u32],
    into: &dyn Files,
    reserve_percent: u8,
    listener: Listener<'_>,
) -> Result<u64, LibraryError> {
    let id = pin.index.id();
    let bytes = pin.index.to_bytes();
    let mut seen = BTreeSet::new();
    let stored = |number: &u32| pin.index.chunks[*number as usize];
    let files: Vec<u32> = chunks.iter().copied().filter(|number| seen.insert(stored(number).name)).collect();
    let there = begun(&pin.index, &seen, into)?;
    let is_there = |number: &u32| there.contains(&stored(number).name);
    let size = |files: &mut dyn Iterator<Item = &u32>| files.map(|number| u64::from(stored(number).bytes)).sum::<u64>();
    let needed = size(&mut files.iter().filter(|number| !is_there(number)));
    let room = into.room().map_err(LibraryError::io("measure", "the disk"))?;
    check_room(room, reserve_percent, needed.saturating_add(bytes.len() as u64))?;
    let total = u32::try_from(files.len()).expect("chunks are limited");
    for (done, number) in (1u32..).zip(&files) {
        if !is_there(number) {
            let wire = pin.chunk(*number)?.ok_or(LibraryError::NotFound(id))?;
            disk::write(into, &disk::chunk_file(&stored(number).name), &wire)?;
        }
        tell(listener, Phase::Copying, done, total)?;
    }
    disk::sync(into)?;
    disk::write(into, &disk::index_file(&id), &bytes)?;
    disk::sync(into)?;
    Ok(size(&mut files.iter()))
}

/// The chunks of an export that are whole in a directory already. What was being written there is removed.
fn begun(index: &Index, wanted: &BTreeSet<Hash>, into: &dyn Files) -> Result<BTreeSet<Hash>, LibraryError> {
    let failed = || LibraryError::io("list", "the directory");
    let other = |name: String| LibraryError::Archive(format!("the directory is not empty: it holds {name:?}"));
    if let Some(name) = into.stranger().map_err(failed())? {
        return Err(other(name));
    }
    let names = into.list().map_err(failed())?;
    let id = index.id();
    let is_ours = |name: &str| match FileKind::of(name) {
        FileKind::Chunk(hash) => Ok(wanted.contains(&hash)),
        FileKind::Index(found) if found == id => {
            Ok(disk::read_index(into, &id)?.is_none_or(|found| found == index.to_bytes()))
        }
        _ => Ok::<_, LibraryError>(false),
    };
    // Looked at as a whole before anything is removed.
    let mut unfinished = Vec::new();
    for name in &names {
        let finished = disk::finished(name);
        match is_ours(finished.unwrap_or(name))? {
            true if finished.is_some() => unfinished.push(name),
            true => {}
            false => return Err(other(name.clone())),
        }
    }
    unfinished.into_iter().try_for_each(|name| disk::remove(into, name))?;
    // The disk is read once more, not believed: whatever cut it off may have cut a chunk short.
    let is_whole = |stored: &Stored| match disk::read_chunk(into, stored) {
        Ok(_) => Ok(true),
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error),
    };
    let mut there = BTreeSet::new();
    for stored in index.files().iter().filter(|stored| names.contains(&disk::chunk_file(&stored.name))) {
        if is_whole(stored)? {
            there.insert(stored.name);
        }
    }
    Ok(there)
}
