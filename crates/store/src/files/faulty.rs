//! A simulated disk that does to a store what real ones do on their worst days, from a seed.
//!
//! Every change is counted, so a test can let the n-th one go wrong ([`FaultyFiles::fail_at`]). What was not synced is
//! kept apart from what was: [`FaultyFiles::after_power_cut`] makes the disk that could be found after the power comes
//! back, with any subset of the unsynced sectors, sizes and directory entries, in any order. A disk that keeps a
//! [`Journal`] can be cut at every change without living through it again.
//!
//! A sync that fails is as treacherous as on a real system: what it should have written counts as clean from then on, so
//! it can be read, and no later sync writes it.

use super::memory::{FlagLock, span};
use super::{EIO, EMFILE, File, Files, Guard, LockError, SECTOR_BYTES};
use keelstone_codec::splitmix64;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What goes wrong at a chosen change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This change and every later one fails: the power is off. Reads fail too.
    PowerCut,
    /// This change fails with EIO, half of it done; later ones work.
    Io,
    /// This change and every later one fails with EIO, each half done; reads go on.
    IoForever,
    /// This change fails with ENOSPC, nothing of it done; later ones work.
    NoSpace,
    /// From this change on whatever takes room fails with ENOSPC: making a file, writing. The rest works.
    NoSpaceForever,
    /// This change, if it is a write, stops short with ENOSPC; later ones work. Another change fails with ENOSPC.
    ShortWrite,
    /// From here on every sync says it worked and does nothing.
    SyncLies,
    /// From here on every directory sync says it worked and does nothing.
    DirectorySyncLies,
}

/// What goes wrong with chosen reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadFault {
    /// They fail with EIO.
    Io,
    /// One bit of what they read is not what is on the disk.
    Flip,
}

/// A simulated disk. Clones share it.
#[derive(Debug, Clone)]
pub struct FaultyFiles {
    disk: Arc<Mutex<Disk>>,
    locked: Arc<AtomicBool>,
}

/// Everything that changed a disk since it was made, so that it can be cut anywhere in between.
#[derive(Debug, Clone)]
pub struct Journal {
    changes: Arc<[Change]>,
    disk: Disk,
    next: usize,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    random: Random,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    /// What a power cut leaves of the directory for certain.
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    changes: u64,
    reads: u64,
    fail_change: Option<(u64, Fault)>,
    fail_reads: Option<(u64, u64, ReadFault)>,
    off: bool,
    /// Nothing can be opened.
    no_descriptors: bool,
    broken: bool,
    full: bool,
    sync_lies: bool,
    directory_sync_lies: bool,
    /// What was asked for, if anybody wants to know.
    journal: Option<Vec<Change>>,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Every unsynced version of each sector, oldest first.
    pending: BTreeMap<usize, Vec<Vec<u8>>>,
    /// No byte of it can be read.
    bad: bool,
    /// Versions that a failed sync left behind: they may be on the disk, and no sync will bring them there any more.
    orphaned: BTreeMap<usize, Vec<Vec<u8>>>,
}

/// One change of the disk.
#[derive(Debug, Clone)]
enum Change {
    Create { len: usize },
    Name(NameChange),
    Write { inode: usize, start: usize, bytes: Vec<u8> },
    Sync { inode: usize },
    SyncDirectory,
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String, usize),
}

impl FaultyFiles {
    /// An empty disk whose randomness comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(Disk { random: Random::new(seed), ..Disk::default() })
    }

    /// As [`Self::new`], and every change is kept for [`Self::journal`].
    #[must_use]
    pub fn recorded(seed: u64) -> Self {
        Self::with(Disk { random: Random::new(seed), journal: Some(Vec::new()), ..Disk::default() })
    }

    fn with(disk: Disk) -> Self {
        Self { disk: Arc::new(Mutex::new(disk)), locked: Arc::default() }
    }

    /// How many changes (creations, writes, syncs, renames, removals, directory syncs) were asked for so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.disk().changes
    }

    /// How many reads were asked for so far.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.disk().reads
    }

    /// Lets the change with this number (counted as in [`Self::changes`], from zero) go wrong.
    pub fn fail_at(&self, change: u64, fault: Fault) {
        self.disk().fail_change = Some((change, fault));
    }

    /// Lets `count` reads from number `from` on fail with EIO.
    pub fn fail_reads(&self, from: u64, count: u64) {
        self.disk().fail_reads = Some((from, count, ReadFault::Io));
    }

    /// Lets `count` reads from number `from` on have one wrong bit each, while the disk itself is right.
    pub fn flip_reads(&self, from: u64, count: u64) {
        self.disk().fail_reads = Some((from, count, ReadFault::Flip));
    }

    /// Lets every read of a file fail with EIO, whatever name it gets: its sectors are bad. One that is made anew is not.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn spoil(&self, name: &str) {
        let mut disk = self.disk();
        let inode = disk.names[name];
        disk.inodes[inode].bad = true;
    }

    /// From here on every opening and making of a file fails with EMFILE: the process has no descriptors left. What is open
    /// works on.
    pub fn run_out_of_descriptors(&self) {
        self.disk().no_descriptors = true;
    }

    /// Ends all faults that go on: the disk was exchanged, room was made. What a fault has done stays.
    pub fn mend(&self) {
        let mut disk = self.disk();
        (disk.fail_change, disk.fail_reads, disk.no_descriptors) = (None, None, false);
        (disk.broken, disk.full, disk.sync_lies, disk.directory_sync_lies) = (false, false, false, false);
    }

    /// What could be found after the power failed now: synced data, and of the rest any subset, chosen by `seed`.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> Self {
        Self::with(self.disk().after_power_cut(seed))
    }

    /// All changes since the disk was made, of a disk made with [`Self::recorded`]. None failed.
    ///
    /// # Panics
    /// If nothing was recorded.
    #[must_use]
    pub fn journal(&self) -> Journal {
        let changes = self.disk().journal.clone().expect("the disk was made to keep a journal");
        Journal { changes: changes.into(), disk: Disk::default(), next: 0 }
    }

    /// A plain copy of every file, by name, synced or not.
    #[must_use]
    pub fn image(&self) -> BTreeMap<String, Vec<u8>> {
        let disk = self.disk();
        disk.names.iter().map(|(name, inode)| (name.clone(), disk.inodes[*inode].bytes.clone())).collect()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal {
    /// The number of the change that comes next, as [`FaultyFiles::changes`] counts.
    #[must_use]
    pub fn next(&self) -> u64 {
        // Making a file is kept as two steps, of which naming it is the change that counts.
        self.disk.changes
    }

    /// Lets the next change happen. Says whether there was one.
    pub fn advance(&mut self) -> bool {
        while let Some(change) = self.changes.get(self.next) {
            self.disk.apply(change.clone());
            self.next += 1;
            if !matches!(change, Change::Create { .. }) {
                self.disk.changes += 1;
                return true;
            }
        }
        false
    }

    /// What could be found if the power failed during the next change, chosen by `seed`.
    #[must_use]
    pub fn cut(&self, seed: u64) -> FaultyFiles {
        let mut disk = self.disk.clone();
        for change in &self.changes[self.next..] {
            match change {
                Change::Create { .. } => disk.apply(change.clone()),
                Change::Name(change) => disk.pending_names.push(change.clone()),
                Change::Write { .. } => disk.apply(change.clone()),
                // A sync that is cut has brought down any part of what was to be synced: that is what is pending.
                Change::Sync { .. } | Change::SyncDirectory => {}
            }
            if !matches!(change, Change::Create { .. }) {
                break;
            }
        }
        FaultyFiles::with(disk.after_power_cut(seed))
    }
}

impl Inode {
    fn after_power_cut(&self, random: &mut Random) -> Self {
        let mut bytes = self.durable.clone();
        if bytes.len() < self.bytes.len() && random.chance(2) {
            bytes.resize(self.bytes.len(), 0);
        }
        // None of the versions that were never brought down, or any one of them.
        for sector in
            self.pending.keys().chain(self.orphaned.keys().filter(|sector| !self.pending.contains_key(sector)))
        {
            let start = sector * SECTOR_BYTES;
            let versions = || self.orphaned.get(sector).into_iter().chain(self.pending.get(sector)).flatten();
            let chosen = versions().nth(random.below(versions().count() + 1));
            if let Some(version) = chosen.filter(|version| start + version.len() <= bytes.len()) {
                bytes[start..start + version.len()].copy_from_slice(version);
            }
        }
        Self { durable: bytes.clone(), bytes, bad: self.bad, ..Self::default() }
    }

    /// Writes bytes that are not durable yet.
    fn write(&mut self, start: usize, new: &[u8]) {
        self.bytes[start..start + new.len()].copy_from_slice(new);
        let first = start / SECTOR_BYTES;
        let last = (start + new.len()).div_ceil(SECTOR_BYTES);
        for sector in first..last {
            let from = sector * SECTOR_BYTES;
            let to = (from + SECTOR_BYTES).min(self.bytes.len());
            self.pending.entry(sector).or_default().push(self.bytes[from..to].to_vec());
        }
    }

    fn sync(&mut self) {
        self.durable.resize(self.bytes.len(), 0);
        for sector in std::mem::take(&mut self.pending).into_keys() {
            let from = sector * SECTOR_BYTES;
            let to = (from + SECTOR_BYTES).min(self.bytes.len());
            self.durable[from..to].copy_from_slice(&self.bytes[from..to]);
            self.orphaned.remove(&sector);
        }
    }

    fn fail_sync(&mut self) {
        for (sector, versions) in std::mem::take(&mut self.pending) {
            self.orphaned.entry(sector).or_default().extend(versions);
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

impl Disk {
    /// Counts a change and says whether it goes wrong, and how.
    fn change(&mut self, takes_room: bool) -> Result<Option<Fault>, io::Error> {
        if self.off {
            return Err(eio());
        }
        let number = self.changes;
        self.changes += 1;
        match self.fail_change.filter(|(at, _)| *at == number).map(|(_, fault)| fault) {
            Some(Fault::PowerCut) => {
                self.off = true;
                return Ok(Some(Fault::PowerCut));
            }
            Some(Fault::IoForever) => self.broken = true,
            Some(Fault::NoSpaceForever) => self.full = true,
            Some(Fault::SyncLies) => self.sync_lies = true,
            Some(Fault::DirectorySyncLies) => self.directory_sync_lies = true,
            Some(Fault::NoSpace) => return Err(no_space()),
            Some(fault @ (Fault::Io | Fault::ShortWrite)) => return Ok(Some(fault)),
            None => {}
        }
        if self.full && takes_room {
            return Err(no_space());
        }
        Ok(self.broken.then_some(Fault::Io))
    }

    /// A change that is not to fail.
    fn apply(&mut self, change: Change) {
        match change {
            Change::Create { len } => self.inodes.push(Inode { bytes: vec![0; len], ..Inode::default() }),
            Change::Name(change) => {
                change.apply(&mut self.names);
                self.pending_names.push(change);
            }
            Change::Write { inode, start, bytes } => self.inodes[inode].write(start, &bytes),
            Change::Sync { inode } => self.inodes[inode].sync(),
            Change::SyncDirectory => {
                self.durable_names = self.names.clone();
                self.pending_names.clear();
            }
        }
    }

    /// Applies a change and keeps it in the journal.
    fn perform(&mut self, change: Change) {
        if let Some(journal) = &mut self.journal {
            journal.push(change.clone());
        }
        self.apply(change);
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        // A change of names that fails did not happen; one cut by the power may or may not have.
        match self.change(matches!(change, NameChange::Link(..)))? {
            Some(Fault::PowerCut) => self.pending_names.push(change),
            Some(Fault::ShortWrite) => return Err(no_space()),
            Some(_) => {}
            None => {
                self.perform(Change::Name(change));
                return Ok(());
            }
        }
        Err(eio())
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn after_power_cut(&self, seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x9e37_79b9_7f4a_7c15);
        let mut names = self.durable_names.clone();
        for change in &self.pending_names {
            if random.chance(2) {
                change.apply(&mut names);
            }
        }
        // What has no name any more is gone; the rest gets new numbers.
        let (mut inodes, mut renamed) = (Vec::new(), BTreeMap::new());
        for inode in names.values_mut() {
            *inode = *renamed.entry(*inode).or_insert_with(|| {
                inodes.push(self.inodes[*inode].after_power_cut(&mut random));
                inodes.len() - 1
            });
        }
        Self { random: Random::new(seed), inodes, durable_names: names.clone(), names, ..Self::default() }
    }
}

impl Files for FaultyFiles {
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk();
        if disk.no_descriptors {
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        if disk.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        let inode = disk.inodes.len();
        disk.perform(Change::Create { len });
        disk.change_names(NameChange::Link(name.to_owned(), inode))?;
        Ok(Arc::new(FaultyFile { disk: Arc::clone(&self.disk), inode }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let disk = self.disk();
        if disk.off {
            return Err(eio());
        }
        if disk.no_descriptors {
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        let inode = disk.find(name)?;
        Ok(Arc::new(FaultyFile { disk: Arc::clone(&self.disk), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let inode = disk.find(from)?;
        disk.change_names(NameChange::Rename(from.to_owned(), to.to_owned(), inode))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        disk.find(name)?;
        disk.change_names(NameChange::Unlink(name.to_owned()))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let disk = self.disk();
        if disk.off { Err(eio()) } else { Ok(disk.names.keys().cloned().collect()) }
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = self.disk();
        if let Some(fault) = disk.change(false)? {
            return Err(failure(fault));
        }
        if !disk.directory_sync_lies {
            disk.perform(Change::SyncDirectory);
        }
        Ok(())
    }

    fn lock(&self) -> Result<Box<dyn Guard>, LockError> {
        FlagLock::take(&self.locked)
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: Arc<Mutex<Disk>>,
    inode: usize,
}

impl FaultyFile {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().inodes[self.inode].bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let number = disk.reads;
        disk.reads += 1;
        let chosen = disk.fail_reads.filter(|(from, count, _)| number >= *from && number - from < *count);
        let fault = chosen.map(|(.., fault)| fault);
        if disk.off || fault == Some(ReadFault::Io) || disk.inodes[self.inode].bad {
            return Err(eio());
        }
        let bytes = &disk.inodes[self.inode].bytes;
        let range = span(offset, out.len(), bytes.len())?;
        out.copy_from_slice(&bytes[range]);
        if fault == Some(ReadFault::Flip) && !out.is_empty() {
            let bit = disk.random.below(out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let range = span(offset, new.len(), disk.inodes[self.inode].bytes.len())?;
        let Some(fault) = disk.change(true)? else {
            disk.perform(Change::Write { inode: self.inode, start: range.start, bytes: new.to_vec() });
            return Ok(());
        };
        // A write that fails stops anywhere; what came before may reach the disk all the same.
        let done = disk.random.below(new.len() + 1) / SECTOR_BYTES * SECTOR_BYTES;
        disk.inodes[self.inode].write(range.start, &new[..done]);
        Err(failure(fault))
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk();
        match disk.change(false)? {
            Some(Fault::PowerCut) => return Err(eio()),
            Some(fault) => {
                disk.inodes[self.inode].fail_sync();
                return Err(failure(fault));
            }
            None => {}
        }
        if !disk.sync_lies {
            disk.perform(Change::Sync { inode: self.inode });
        }
        Ok(())
    }
}

/// What the caller of a failed change is told.
fn failure(fault: Fault) -> io::Error {
    if fault == Fault::ShortWrite { no_space() } else { eio() }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(EIO)
}

fn no_space() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// Small, seeded, and good enough to choose sectors.
#[derive(Debug, Clone, Default)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}
