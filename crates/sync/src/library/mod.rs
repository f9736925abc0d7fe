//! Snapshots on a disk: made from a version of the state, kept, checked, served, and carried from place to place.
//!
//! A library is a flat directory of one chain's snapshots. Chunks are files named by what they hold, so snapshots that
//! have parts in common share their files; an index for each snapshot says which chunks it has. The index is written
//! last, after everything it names is durable and was read back and proven against the root: a snapshot that is listed
//! is whole, wherever a crash fell. Nothing of what a disk gives is used before it is compared with its digest, and what
//! does not match is set aside together with the snapshots that need it.
//!
//! An archive is one snapshot in a directory or a tar of its own, and comes from a stranger: each chunk is proven before
//! it is written, and what is written has names of our own making.
//!
//! Readers run beside one writer. Nothing here has a clock or a thread: who makes snapshots when is the node's business.
//!
//! Layout and rules: `spec/library.md`, LIB-1 to LIB-9. Vectors: `spec/vectors/library.json`.

mod archive;
mod create;
mod disk;
mod extract;
mod index;
mod line;
mod tar;
mod verify;

pub use archive::{Expected, Origin};
pub use create::{Listener, Making, Phase, Progress};
pub use disk::SnapshotId;
pub(crate) use disk::{chunk_file, index_file};
pub use extract::{EXTRACT_BYTES_MAX, Extract, TakeError, Taken, take};
pub use index::{INDEX_BYTES_MAX, Index, Stored};
pub use tar::{Stream, TarError};
pub use verify::Each;

use crate::snapshot::{PackError, PlanError};
use disk::FileKind;
use keelstone_codec::{ChainId, Decode, Encode, Hash, Root};
use keelstone_store::files::{Files, Guard, LockError};
use keelstone_tree::{HashKind, ReadError, Totals};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A directory of snapshots. Clones share it.
#[derive(Debug, Clone)]
pub struct Library {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: Arc<dyn Files>,
    /// None if it was opened only to look at.
    lock: Option<Box<dyn Guard>>,
    /// Held by whoever writes or removes files. Readers do not wait for it.
    writing: Mutex<()>,
    /// Held by whoever sets files aside, from reading them for the last time until it is done, and by whoever writes for the
    /// moment in which it asks what is needed or lists a snapshot. So what was written anew is not set aside for what it
    /// replaced.
    aside: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    snapshots: BTreeMap<SnapshotId, Held>,
    /// The chunk files, and how many snapshots need each.
    needed: BTreeMap<Hash, (Stored, u32)>,
}

#[derive(Debug)]
struct Held {
    index: Arc<Index>,
    info: Info,
    pins: u32,
}

/// What is known of a snapshot without reading its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its height and format.
    pub id: SnapshotId,
    /// The chain it is of.
    pub chain_id: ChainId,
    /// The hasher of that chain's tree.
    pub hasher: HashKind,
    /// The most a chunk may weigh, a parameter of the chain.
    pub chunk_weight_max: u32,
    /// The root of the state.
    pub root: Root,
    /// The snapshot's hash, which its chain, height, root and cut decide.
    pub hash: Hash,
    /// What is agreed of it, encoded.
    pub metadata: Vec<u8>,
    /// Chunks in all.
    pub chunks: u32,
    /// Chunks that hold the skeleton, which come first.
    pub pages: u32,
    /// Number and bytes of the entries.
    pub totals: Totals,
    /// Bytes of its chunks as they are stored and sent.
    pub bytes: u64,
}

/// What was found and removed when a library was opened or cleaned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files that were being written.
    pub temporary: u64,
    /// Chunk files that no snapshot needs.
    pub unneeded: u64,
    /// Files that had been set aside as damaged.
    pub set_aside: u64,
    /// Snapshots that cannot be used, and why; for whoever only looks also those that were set aside. They are no longer listed.
    pub damaged: Vec<(SnapshotId, String)>,
}

/// Why a library did not do what it was asked. Each variant says who has to act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// Another process writes to this directory.
    #[error("the snapshots are in use{}", .pid.map_or_else(String::new, |pid| format!(" by pid {pid}")))]
    InUse {
        /// The holder, if it left its number.
        pid: Option<u32>,
    },
    /// The library was opened only to look at. The caller's to mend.
    #[error("these snapshots were opened only to look at")]
    ReadOnly,
    /// There is no such snapshot.
    #[error("there is no snapshot of height {height}", height = .0.height)]
    NotFound(SnapshotId),
    /// The snapshot is being read. Try again when it is not.
    #[error("the snapshot of height {height} is being read", height = .0.height)]
    Pinned(SnapshotId),
    /// Bytes on our own disk are not what was written. What is damaged was set aside.
    #[error("{file} is damaged: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// What was compared.
        what: String,
    },
    /// A file is larger than any of its kind. Whoever made it has to act.
    #[error("{file} has {found} bytes, the limit is {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// Its bytes.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk has no room for it. Nothing was written (spec: LIB-6).
    #[error("{needed} bytes are needed and {reserve} are to stay free, but {free} are free")]
    NoRoom {
        /// Bytes that would be written.
        needed: u64,
        /// Bytes that are to stay free.
        reserve: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The machine failed.
    #[error("could not {doing} {file}: {source}")]
    Io {
        /// The action.
        doing: &'static str,
        /// The file.
        file: String,
        /// What the machine said.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
    /// The state could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The state cannot be cut into a snapshot.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A chunk cannot be made.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Chunks do not prove the state they are said to be of: damage if they are our own, else a forgery.
    #[error("chunk {index}: {what}")]
    Unproven {
        /// The chunk.
        index: u32,
        /// What the verifier says.
        what: String,
    },
    /// An archive that is none. Whoever made it has to act; nothing of it is used.
    #[error("{0}")]
    Archive(String),
    /// A tar that is not of the one form that is taken.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An archive of another chain, or of another cut of it.
    #[error("the archive's {what} is {found}, here it is {expected}")]
    Foreign {
        /// What differs.
        what: &'static str,
        /// What the archive says.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// An archive of a state that is not the trusted one.
    #[error("the archive's root is {found}, here it is {expected}")]
    OtherRoot {
        /// What the archive says.
        found: Root,
        /// What it must be.
        expected: Root,
    },
}

impl LibraryError {
    fn io(doing: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { doing, file, source }
    }

    /// The same, with the directory before the name of the file.
    #[must_use]
    pub fn within(mut self, directory: &Path) -> Self {
        if let Self::Damaged { file, .. } | Self::TooLarge { file, .. } | Self::Io { file, .. } = &mut self
            && !file.contains([std::path::MAIN_SEPARATOR, ' '])
        {
            *file = directory.join(&*file).display().to_string();
        }
        self
    }

    /// Whether bytes are not what they must be, as against a machine that failed or a caller who asked wrongly.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Unproven { .. } | Self::Read(ReadError::Damaged { .. }))
    }
}

impl Library {
    /// Opens a library, or begins one in an empty directory, for this process alone. Sweeps what a crash left: files that
    /// were being written, and chunks of snapshots that never came to be (spec: LIB-3).
    ///
    /// # Errors
    /// [`LibraryError::InUse`], [`LibraryError::Io`]. A damaged snapshot is no error: it is set aside and named.
    pub fn open(files: Arc<dyn Files>) -> Result<(Self, Swept), LibraryError> {
        let lock = files.lock().map_err(|error| match error {
            LockError::InUse { pid } => LibraryError::InUse { pid },
            LockError::Io(source) => LibraryError::Io { doing: "lock", file: "the directory".to_owned(), source },
        })?;
        let library = Self::over(files, Some(lock));
        let mut swept = library.shared.load(true)?;
        let more = library.shared.sweep(false)?;
        (swept.temporary, swept.unneeded) = (more.temporary, more.unneeded);
        Ok((library, swept))
    }

    /// Opens a library only to look at it, also while another process writes to it. Nothing is changed.
    ///
    /// # Errors
    /// [`LibraryError::Io`].
    pub fn inspect(files: Arc<dyn Files>) -> Result<(Self, Swept), LibraryError> {
        let library = Self::over(files, None);
        let found = library.shared.load(false)?;
        Ok((library, found))
    }

    fn over(files: Arc<dyn Files>, lock: Option<Box<dyn Guard>>) -> Self {
        let shared =
            Shared { files, lock, writing: Mutex::default(), aside: Mutex::default(), state: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// All snapshots, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Info> {
        self.shared.state().snapshots.values().rev().map(|held| held.info.clone()).collect()
    }

    /// A snapshot, held so that it stays for as long as the pin lives; none if there is none.
    #[must_use]
    pub fn pin(&self, id: SnapshotId) -> Option<Pin> {
        let mut state = self.shared.state();
        let held = state.snapshots.get_mut(&id)?;
        held.pins += 1;
        Some(Pin { shared: Arc::clone(&self.shared), info: held.info.clone(), index: Arc::clone(&held.index) })
    }

    /// A chunk as it is sent; none if there is no such snapshot or chunk.
    ///
    /// # Errors
    /// As [`Pin::chunk`].
    pub fn chunk(&self, id: SnapshotId, index: u32) -> Result<Option<Vec<u8>>, LibraryError> {
        self.pin(id).map_or(Ok(None), |pin| pin.chunk(index))
    }

    /// Removes a snapshot and the chunks that no other needs (spec: LIB-5).
    ///
    /// # Errors
    /// [`LibraryError::NotFound`], [`LibraryError::Pinned`], [`LibraryError::ReadOnly`], [`LibraryError::Io`].
    pub fn delete(&self, id: SnapshotId) -> Result<(), LibraryError> {
        let _writing = self.shared.writing()?;
        self.shared.delete(id)
    }

    /// Removes all but the newest `count` snapshots. Those that are being read stay until the next time.
    ///
    /// # Errors
    /// As [`Self::delete`].
    pub fn keep(&self, count: u64) -> Result<Vec<SnapshotId>, LibraryError> {
        let _writing = self.shared.writing()?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let surplus: Vec<SnapshotId> = {
            let state = self.shared.state();
            let older = state.snapshots.iter().rev().skip(count);
            older.filter(|(_, held)| held.pins == 0).map(|(id, _)| *id).collect()
        };
        let mut removed = Vec::with_capacity(surplus.len());
        for id in surplus {
            match self.shared.delete(id) {
                Ok(()) => removed.push(id),
                // Somebody began to read it just now.
                Err(LibraryError::Pinned(_) | LibraryError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Removes everything no snapshot needs, also what was set aside as damaged.
    ///
    /// # Errors
    /// [`LibraryError::ReadOnly`], [`LibraryError::Io`].
    pub fn gc(&self) -> Result<Swept, LibraryError> {
        let _writing = self.shared.writing()?;
        self.shared.sweep(true)
    }
}

/// A snapshot that stays for as long as this lives.
#[derive(Debug)]
pub struct Pin {
    shared: Arc<Shared>,
    info: Info,
    index: Arc<Index>,
}

impl Pin {
    /// What is known of it.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Its table of contents.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// A chunk as it is sent, compared with its digest; none above the last.
    ///
    /// # Errors
    /// [`LibraryError::Damaged`] if the file is not what was written: every snapshot that needs it is then no longer
    /// listed (spec: LIB-4). [`LibraryError::Io`] if it could not be read.
    pub fn chunk(&self, index: u32) -> Result<Option<Vec<u8>>, LibraryError> {
        let Some(stored) = self.index.chunks.get(index as usize) else { return Ok(None) };
        let files = &*self.shared.files;
        let read = disk::read_chunk(files, stored);
        // Whoever only looks may find that the owner has removed the snapshot: that is no damage.
        if read.is_err() && self.shared.lock.is_none() && disk::read_index(files, &self.info.id)?.is_none() {
            return Err(LibraryError::NotFound(self.info.id));
        }
        match read {
            Err(error) if error.is_damage() => self.shared.read_or_set_aside(stored).map(Some),
            read => read.map(Some),
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Gone if it was found damaged meanwhile; and one that was made anew in its place is held by pins of its own.
        let mut state = self.shared.state();
        let held = state.snapshots.get_mut(&self.info.id).filter(|held| Arc::ptr_eq(&held.index, &self.index));
        if let Some(held) = held {
            held.pins = held.pins.saturating_sub(1);
        }
    }
}

impl Info {
    /// What an index says.
    #[must_use]
    pub fn of(index: &Index) -> Self {
        let metadata = &index.metadata;
        Self {
            id: index.id(),
            chain_id: metadata.chain_id.clone(),
            hasher: metadata.hasher,
            chunk_weight_max: metadata.chunk_weight_max,
            root: index.root,
            hash: index.hash(),
            metadata: metadata.to_bytes(),
            chunks: metadata.chunks,
            pages: metadata.pages,
            totals: index.totals,
            bytes: index.bytes(),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn aside(&self) -> MutexGuard<'_, ()> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to write and remove files.
    fn writing(&self) -> Result<MutexGuard<'_, ()>, LibraryError> {
        if self.lock.is_none() {
            return Err(LibraryError::ReadOnly);
        }
        Ok(self.writing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads all indexes. Those that cannot be used are set aside if the library is our own.
    fn load(&self, own: bool) -> Result<Swept, LibraryError> {
        let names = disk::list(&self.files)?;
        let present: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let mut swept = Swept::default();
        for name in &names {
            let FileKind::Index(id) = FileKind::of(name) else { continue };
            let missing = |index: &Index| {
                let lacks = |chunk: &Stored| !present.contains(disk::chunk_file(&chunk.name).as_str());
                index.files().into_iter().find(lacks)
            };
            let problem = match read_index(&*self.files, &id)? {
                // Removed meanwhile by the process that owns the library.
                None => continue,
                Some(Err(problem)) => problem,
                Some(Ok(index)) => match missing(&index) {
                    Some(chunk) => format!("{} is missing", disk::chunk_file(&chunk.name)),
                    None => match self.state().add(id, Arc::new(index)) {
                        Ok(()) => continue,
                        Err(problem) => problem.to_owned(),
                    },
                },
            };
            if own {
                disk::set_aside(&*self.files, name)?;
            }
            swept.damaged.push((id, problem));
        }
        if own {
            if !swept.damaged.is_empty() {
                disk::sync(&*self.files)?;
            }
            return Ok(swept);
        }
        for name in names.iter().filter_map(|name| disk::set_aside_from(name)) {
            if let FileKind::Index(id) = FileKind::of(name)
                && !self.state().snapshots.contains_key(&id)
                && swept.damaged.iter().all(|(damaged, _)| *damaged != id)
            {
                swept.damaged.push((id, "it was set aside as damaged".to_owned()));
            }
        }
        Ok(swept)
    }

    /// Removes temporary files and chunks nobody needs; with `damaged` also what was set aside.
    fn sweep(&self, damaged: bool) -> Result<Swept, LibraryError> {
        let mut swept = Swept::default();
        for name in disk::list(&self.files)? {
            let counter = match FileKind::of(&name) {
                FileKind::Temporary => &mut swept.temporary,
                FileKind::Chunk(hash) if !self.state().needed.contains_key(&hash) => &mut swept.unneeded,
                FileKind::Damaged if damaged => &mut swept.set_aside,
                _ => continue,
            };
            *counter += 1;
            disk::remove(&*self.files, &name)?;
        }
        disk::sync(&*self.files)?;
        Ok(swept)
    }

    /// Removes a snapshot: the index first, so that a crash in between leaves chunks nobody needs, never a snapshot
    /// that lacks some. The caller holds the right to write.
    // spec: LIB-5
    fn delete(&self, id: SnapshotId) -> Result<(), LibraryError> {
        let unneeded = {
            let mut state = self.state();
            let held = state.snapshots.get(&id).ok_or(LibraryError::NotFound(id))?;
            if held.pins > 0 {
                return Err(LibraryError::Pinned(id));
            }
            state.take(&id)
        };
        disk::remove(&*self.files, &disk::index_file(&id))?;
        disk::sync(&*self.files)?;
        for chunk in unneeded {
            disk::remove(&*self.files, &disk::chunk_file(&chunk))?;
        }
        disk::sync(&*self.files)
    }

    /// Reads a chunk whose file was found damaged once more: it may have been written anew meanwhile. If it is still
    /// damaged, every snapshot that needs it leaves the list, and chunk and indexes are set aside.
    // spec: LIB-4
    fn read_or_set_aside(&self, chunk: &Stored) -> Result<Vec<u8>, LibraryError> {
        let _aside = self.aside();
        let read = disk::read_chunk(&*self.files, chunk);
        if read.as_ref().is_err_and(LibraryError::is_damage) {
            self.set_aside(chunk);
        }
        read
    }

    /// Takes every snapshot that needs a damaged chunk out of the list, and sets chunk and indexes aside. A file that no
    /// snapshot needs as it was to be is left alone: it was set aside before, and what stands there now is another's.
    fn set_aside(&self, chunk: &Stored) {
        let ids: Vec<SnapshotId> = {
            let mut state = self.state();
            let needs = |held: &Held| held.index.chunks.contains(chunk);
            let ids: Vec<_> = state.snapshots.iter().filter(|(_, held)| needs(held)).map(|(id, _)| *id).collect();
            for id in &ids {
                // Chunks that nobody needs any more are removed by the next sweep.
                state.take(id);
            }
            ids
        };
        if self.lock.is_none() || ids.is_empty() {
            return;
        }
        let names = ids.iter().map(disk::index_file).chain([disk::chunk_file(&chunk.name)]);
        for name in names {
            // A disk that cannot even rename: the snapshots are off the list, and the next start finds the damage again.
            let _ = disk::set_aside(&*self.files, &name);
        }
        let _ = disk::sync(&*self.files);
    }
}

impl State {
    fn add(&mut self, id: SnapshotId, index: Arc<Index>) -> Result<(), &'static str> {
        let files = index.files();
        // Two indexes that differ about one file cannot both be right.
        let differs = |stored: &Stored| self.needed.get(&stored.name).is_some_and(|(other, _)| other != stored);
        if files.iter().any(differs) {
            return Err("it says of a chunk what another snapshot does not");
        }
        for stored in files {
            self.needed.entry(stored.name).or_insert((stored, 0)).1 += 1;
        }
        let info = Info::of(&index);
        self.snapshots.insert(id, Held { index, info, pins: 0 });
        Ok(())
    }

    /// Takes a snapshot off the list and says which chunks nobody needs any more.
    fn take(&mut self, id: &SnapshotId) -> Vec<Hash> {
        let Some(held) = self.snapshots.remove(id) else { return Vec::new() };
        let mut unneeded = Vec::new();
        for stored in held.index.files() {
            if let Some((_, count)) = self.needed.get_mut(&stored.name) {
                *count -= 1;
                if *count == 0 {
                    self.needed.remove(&stored.name);
                    unneeded.push(stored.name);
                }
            }
        }
        unneeded
    }
}

/// An index, which must be of the snapshot its file's name says, or what is wrong with it; none if there is no such file.
// spec: LIB-2, LIB-4
fn read_index(files: &dyn Files, id: &SnapshotId) -> Result<Option<Result<Index, String>>, LibraryError> {
    let index = match disk::read_index(files, id) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => Index::from_bytes(&bytes).map_err(|error| error.to_string()),
        Err(LibraryError::Damaged { what, .. }) => Err(what),
        Err(LibraryError::TooLarge { found, limit, .. }) => Err(format!("it has {found} bytes, the limit is {limit}")),
        Err(error) => return Err(error),
    };
    Ok(Some(index.and_then(|index| match index.id() == *id {
        true => Ok(index),
        false => Err("it is of another snapshot than its name says".to_owned()),
    })))
}
