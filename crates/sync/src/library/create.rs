//! Making a snapshot from a version of the state: chunks first, each durable, read back and proven, then listed.

use super::index::{Index, Stored};
use super::line::{self, Line, Work};
use super::verify::Verifying;
use super::{Expected, Info, Library, LibraryError, Origin, Shared, SnapshotId, disk};
use crate::snapshot::{FORMAT, Plan, SnapshotParams};
use keelstone_codec::{Encode, Hash, Height, Root};
use keelstone_store::files::Room;
use keelstone_tree::{Read, Totals, Walk};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What is being done to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Chunks are made of the state, or taken over from another snapshot, and read back and proven.
    Making,
    /// Chunks are read and proven against the root.
    Proving,
    /// Chunks are copied from or to an archive.
    Copying,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Chunks done.
    pub done: u32,
    /// Chunks in all.
    pub total: u32,
}

/// Hears of progress, and says whether to go on.
pub type Listener<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// How snapshots are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Making {
    /// The level of zstd.
    pub level: i32,
    /// The share of the disk that is to stay free, in percent.
    pub reserve_percent: u8,
    /// Whether threads write and prove chunks while the next are read. The snapshot is the same, and so is the order in
    /// which files change; without them it takes longer and leaves more of the machine to others.
    pub background: bool,
}

impl Default for Making {
    /// Level 1, a tenth of the disk stays free, and threads help.
    fn default() -> Self {
        Self { level: 1, reserve_percent: 10, background: true }
    }
}

/// Reports progress, and turns a wish to stop into an error.
pub(super) fn tell(listener: Listener<'_>, phase: Phase, done: u32, total: u32) -> Result<(), LibraryError> {
    match listener(Progress { phase, done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(LibraryError::Stopped),
    }
}

/// Refuses before anything is written what would fill the disk.
// spec: LIB-6
pub(super) fn check_room(room: Room, reserve_percent: u8, needed: u64) -> Result<(), LibraryError> {
    let reserve = room.total_bytes / 100 * u64::from(reserve_percent);
    match room.free_bytes.checked_sub(reserve).is_some_and(|usable| needed <= usable) {
        true => Ok(()),
        false => Err(LibraryError::NoRoom { needed, reserve, free: room.free_bytes }),
    }
}

impl Library {
    /// Makes the snapshot of a version. Chunks another snapshot has are taken over. Once this returns, the snapshot is
    /// durable, was read back and proven, and is listed. One that is there already is proven and returned as it is, or made anew if
    /// it is damaged; one of the same height with another root is replaced.
    ///
    /// Reads the state once where it is not shared, and writes it once. Memory is the plan and two chunks, or with
    /// [`Making::background`] eight.
    ///
    /// # Errors
    /// [`LibraryError`]; nothing of the attempt is left.
    // spec: LIB-3
    pub fn create<V: Walk + Read>(
        &self,
        view: &V,
        params: &SnapshotParams,
        height: Height,
        root: Root,
        making: &Making,
        listener: Listener<'_>,
    ) -> Result<Info, LibraryError> {
        let _writing = self.shared.writing()?;
        let plan = Plan::of(view, params, height, root)?;
        let id = SnapshotId { height, format: FORMAT };
        if let Some(there) = self.pin(id).filter(|there| there.index.root == root) {
            // What is damaged of it is set aside by that.
            match Origin::Kept(&there).verify(&Expected::default(), &mut *listener) {
                Err(error) if error.is_damage() => {}
                proven => return proven,
            }
        }
        let totals = plan.totals();
        let room = self.shared.files.room().map_err(LibraryError::io("measure", "the disk"))?;
        check_room(room, making.reserve_percent, weight(&totals))?;

        let (root, totals, total) = (plan.root(), plan.totals(), plan.chunks());
        let mut index = Index { metadata: plan.metadata().clone(), root, totals, chunks: Vec::new() };
        let mut fresh = Fresh::new(&self.shared);
        let verifying = Verifying::begin(&index);
        let mut done = 0;
        let mut take = |fresh: &mut Fresh<'_>, stored: Option<Stored>| {
            let Some(stored) = stored else { return Ok(()) };
            fresh.stands(stored);
            done += 1;
            tell(listener, Phase::Making, done, total)
        };
        Line::run(&*self.shared.files, making, verifying, |line| {
            for number in 0..total {
                let name = plan.name(number);
                let damaged = fresh.look(&name)?;
                // A chunk like one that is on the line, or one whose file is set aside: what is on the line comes first, so
                // that files change in one order.
                while line.is_busy() && (damaged.is_some() || fresh.is_begun(&name)) {
                    take(&mut fresh, line.next()?)?;
                }
                damaged.map_or(Ok(()), |stored| fresh.look_again(stored))?;
                let work = match fresh.known.get(&name) {
                    Some(stored) => Work::There(*stored),
                    None => {
                        fresh.begin(name);
                        Work::Write(name, plan.body(view, number)?)
                    }
                };
                take(&mut fresh, line.put(work)?)?;
            }
            while line.is_busy() {
                take(&mut fresh, line.next()?)?;
            }
            Ok(())
        })?;
        index.chunks = fresh.take_chunks();
        fresh.list(index)
    }
}

/// About what a state takes as chunks that are not compressed, and its index.
fn weight(totals: &Totals) -> u64 {
    totals.bytes.saturating_add(totals.count.saturating_mul(16)).saturating_add(1 << 20)
}

/// The files of a snapshot that is not listed yet. Dropped, they are removed again.
pub(super) struct Fresh<'a> {
    shared: &'a Arc<Shared>,
    /// What was found or written, by name.
    known: BTreeMap<Hash, Stored>,
    /// What is written for this snapshot, or was to be.
    begun: BTreeSet<Hash>,
    chunks: Vec<Stored>,
}

impl<'a> Fresh<'a> {
    /// The caller holds the right to write.
    pub(super) fn new(shared: &'a Arc<Shared>) -> Self {
        Self { shared, known: BTreeMap::new(), begun: BTreeSet::new(), chunks: Vec::new() }
    }

    /// Whether a chunk is there already: written for this snapshot, or another's and undamaged.
    pub(super) fn has(&mut self, name: &Hash) -> Result<bool, LibraryError> {
        if let Some(damaged) = self.look(name)? {
            self.look_again(damaged)?;
        }
        Ok(self.known.contains_key(name))
    }

    /// Looks for a chunk among those of other snapshots, if it is not known yet. Returns one whose file is damaged.
    fn look(&mut self, name: &Hash) -> Result<Option<Stored>, LibraryError> {
        if self.known.contains_key(name) {
            return Ok(None);
        }
        let found = {
            // Who is setting it aside is done with that before it is written anew.
            let _aside = self.shared.aside();
            self.shared.state().needed.get(name).map(|(stored, _)| *stored)
        };
        let Some(stored) = found else { return Ok(None) };
        match disk::read_chunk(&*self.shared.files, &stored) {
            Ok(_) => {
                self.known.insert(*name, stored);
                Ok(None)
            }
            Err(error) if error.is_damage() => Ok(Some(stored)),
            Err(error) => Err(error),
        }
    }

    /// Looks at a chunk whose file was found damaged once more. It is set aside if it still is, and written anew.
    fn look_again(&mut self, stored: Stored) -> Result<(), LibraryError> {
        match self.shared.read_or_set_aside(&stored) {
            Ok(_) => {
                self.known.insert(stored.name, stored);
                Ok(())
            }
            Err(error) if error.is_damage() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether it is being written for this snapshot.
    fn is_begun(&self, name: &Hash) -> bool {
        !self.known.contains_key(name) && self.begun.contains(name)
    }

    /// Says that a chunk's file will be written now. Whatever comes of it, it goes again if the snapshot does not come to be.
    fn begin(&mut self, name: Hash) {
        self.begun.insert(name);
    }

    /// Writes a chunk that is not there.
    pub(super) fn write(&mut self, name: Hash, wire: &[u8]) -> Result<(), LibraryError> {
        self.begin(name);
        let stored = line::write(&*self.shared.files, name, wire)?;
        self.known.insert(name, stored);
        Ok(())
    }

    /// Makes a chunk that is there the next of the snapshot.
    ///
    /// # Panics
    /// If it is not there.
    pub(super) fn push(&mut self, name: &Hash) {
        self.chunks.push(self.known[name]);
    }

    /// Makes a chunk that now stands the next of the snapshot.
    fn stands(&mut self, stored: Stored) {
        self.known.insert(stored.name, stored);
        self.chunks.push(stored);
    }

    /// The chunks pushed so far.
    pub(super) fn take_chunks(&mut self) -> Vec<Stored> {
        std::mem::take(&mut self.chunks)
    }

    /// Makes the files a snapshot: from here on it is listed.
    pub(super) fn list(mut self, index: Index) -> Result<Info, LibraryError> {
        let (files, id) = (&*self.shared.files, index.id());
        // The chunks' names before the index that needs them.
        disk::sync(files)?;
        let replaced = {
            let mut state = self.shared.state();
            if state.snapshots.get(&id).is_some_and(|held| held.pins > 0) {
                return Err(LibraryError::Pinned(id));
            }
            state.take(&id)
        };
        let file = disk::index_file(&id);
        let written = disk::write(files, &file, &index.to_bytes()).and_then(|()| disk::sync(files));
        if written.is_err() {
            // Its chunks go too; an index that stays behind would name what is not there.
            let _ = disk::remove(files, &file);
        }
        written?;
        self.begun.clear();
        let index = Arc::new(index);
        let unneeded: Vec<Hash> = {
            // Nobody who read a file before this one was there judges by it what is listed now.
            let _aside = self.shared.aside();
            let mut state = self.shared.state();
            let added = state.add(id, Arc::clone(&index));
            added.expect("chunks that are shared are taken over as they are stored");
            replaced.into_iter().filter(|name| !state.needed.contains_key(name)).collect()
        };
        for name in unneeded {
            disk::remove(files, &disk::chunk_file(&name))?;
        }
        Ok(Info::of(&index))
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        for name in &self.begun {
            // What cannot be removed now is swept at the next start: no index needs it.
            let _ = disk::remove(&*self.shared.files, &disk::chunk_file(name));
        }
    }
}
