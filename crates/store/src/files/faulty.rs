//! A simulated disk that does to a store what real ones do on their worst days, from a seed.
//!
//! Every change is counted, so a test can fail the n-th one ([`FaultyFiles::fail_at`]). What was not synced is kept
//! apart from what was: [`FaultyFiles::after_power_cut`] makes the disk that could be found after the power comes back,
//! with any subset of the unsynced sectors, sizes and directory entries.

use super::memory::{FlagLock, span};
use super::{File, Files, Guard, LockError, SECTOR_BYTES};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What goes wrong at a chosen change or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This change and every later one fails: the power is off. Reads fail too.
    PowerCut,
    /// This change fails with EIO, half of it done; later ones work.
    Io,
    /// This change fails with ENOSPC, nothing of it done; later ones work.
    NoSpace,
    /// From here on every sync says it worked and does nothing.
    SyncLies,
    /// From here on every directory sync says it worked and does nothing.
    DirectorySyncLies,
}

/// A simulated disk. Clones share it.
#[derive(Debug, Clone)]
pub struct FaultyFiles {
    disk: Arc<Mutex<Disk>>,
    locked: Arc<AtomicBool>,
}

#[derive(Debug)]
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
    fail_reads: Option<(u64, u64)>,
    off: bool,
    sync_lies: bool,
    directory_sync_lies: bool,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Every unsynced version of each sector, oldest first.
    pending: BTreeMap<usize, Vec<Vec<u8>>>,
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
        let disk = Disk {
            random: Random::new(seed),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            changes: 0,
            reads: 0,
            fail_change: None,
            fail_reads: None,
            off: false,
            sync_lies: false,
            directory_sync_lies: false,
        };
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
        self.disk().fail_reads = Some((from, count));
    }

    /// What could be found after the power failed now: synced data, and of the rest any subset, chosen by `seed`.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let disk = self.disk();
        let after = Self::new(seed);
        {
            let mut random = Random::new(seed ^ 0x9e37_79b9_7f4a_7c15);
            let mut new = after.disk();
            new.inodes = disk.inodes.iter().map(|inode| inode.after_power_cut(&mut random)).collect();
            let mut names = disk.durable_names.clone();
            for change in &disk.pending_names {
                if random.chance(2) {
                    change.apply(&mut names);
                }
            }
            new.durable_names.clone_from(&names);
            new.names = names;
        }
        after
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

impl Inode {
    fn after_power_cut(&self, random: &mut Random) -> Self {
        let mut bytes = self.durable.clone();
        if bytes.len() < self.bytes.len() && random.chance(2) {
            bytes.resize(self.bytes.len(), 0);
        }
        for (sector, versions) in &self.pending {
            let start = sector * SECTOR_BYTES;
            // None of the unsynced versions, or any one of them.
            let chosen = versions.get(random.below(versions.len() + 1));
            if let Some(version) = chosen.filter(|version| start + version.len() <= bytes.len()) {
                bytes[start..start + version.len()].copy_from_slice(version);
            }
        }
        Self { durable: bytes.clone(), bytes, pending: BTreeMap::new() }
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
        self.durable.clone_from(&self.bytes);
        self.pending.clear();
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
    fn change(&mut self) -> Result<Option<Fault>, io::Error> {
        if self.off {
            return Err(eio());
        }
        let number = self.changes;
        self.changes += 1;
        let fault = self.fail_change.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        match fault {
            Some(Fault::PowerCut) => self.off = true,
            Some(Fault::NoSpace) => return Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::SyncLies) => self.sync_lies = true,
            Some(Fault::DirectorySyncLies) => self.directory_sync_lies = true,
            Some(Fault::Io) | None => {}
        }
        Ok(fault.filter(|fault| matches!(fault, Fault::PowerCut | Fault::Io)))
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        // A change of names that fails did not happen; one cut by the power may or may not have.
        match self.change()? {
            Some(Fault::PowerCut) => self.pending_names.push(change),
            Some(_) => {}
            None => {
                change.apply(&mut self.names);
                self.pending_names.push(change);
                return Ok(());
            }
        }
        Err(eio())
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for FaultyFiles {
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk();
        if disk.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        let inode = disk.inodes.len();
        disk.inodes.push(Inode { bytes: vec![0; len], ..Inode::default() });
        disk.change_names(NameChange::Link(name.to_owned(), inode))?;
        Ok(Arc::new(FaultyFile { disk: Arc::clone(&self.disk), inode }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let disk = self.disk();
        if disk.off {
            return Err(eio());
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
        if disk.change()?.is_some() {
            return Err(eio());
        }
        if !disk.directory_sync_lies {
            disk.durable_names = disk.names.clone();
            disk.pending_names.clear();
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
        let fails = disk.fail_reads.is_some_and(|(from, count)| number >= from && number - from < count);
        if disk.off || fails {
            return Err(eio());
        }
        let bytes = &disk.inodes[self.inode].bytes;
        let range = span(offset, out.len(), bytes.len())?;
        out.copy_from_slice(&bytes[range]);
        Ok(())
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let range = span(offset, new.len(), disk.inodes[self.inode].bytes.len())?;
        let fault = disk.change()?;
        // A write that fails stops anywhere; what came before may reach the disk all the same.
        let done =
            if fault.is_some() { disk.random.below(new.len() + 1) / SECTOR_BYTES * SECTOR_BYTES } else { new.len() };
        disk.inodes[self.inode].write(range.start, &new[..done]);
        if fault.is_some() { Err(eio()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk();
        // A failed sync leaves everything unsynced, and no later sync will write it: the store must not go on.
        if disk.change()?.is_some() {
            return Err(eio());
        }
        if !disk.sync_lies {
            disk.inodes[self.inode].sync();
        }
        Ok(())
    }
}

fn eio() -> io::Error {
    io::Error::other("simulated I/O error")
}

/// SplitMix64: small, seeded, and good enough to choose sectors.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}
