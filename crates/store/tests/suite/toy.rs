//! A store as small as one can be, and as broken as one likes. Without a bug it keeps what it promises; with any one of
//! them the tests must notice, or they are not worth their time.
//!
//! A file `gen-N` holds a snapshot of all heights and room for a log; the file `current` says which N, in two slots of a
//! sector. A flush writes the next one aside and switches.

use crate::life::{Failure, Kind, Step, Subject};
use crate::support::{Model, apply, root_of};
use keelstone_codec::{Decode, Encode, Root};
use keelstone_store::files::{FaultyFiles, File, Files, SECTOR_BYTES};
use keelstone_tree::Diff;
use std::io;
use std::sync::Arc;

/// What is wrong with a toy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// A commit is acknowledged before its record is synced.
    AckBeforeSync,
    /// A new file is not made durable under its name before it is relied on.
    NoDirectorySync,
    /// What cannot be read at the end of the log is taken for a torn record, whatever it is.
    CutsDamage,
    /// The switch to a new file is durable before the file is.
    SwitchBeforeSync,
    /// The old file is removed before the switch to the new one is durable.
    RemovesTooEarly,
    /// The switch has one slot of two sectors instead of two slots of one.
    TornSwitch,
    /// After a failed write or sync it goes on as if nothing had been.
    GoesOnAfterFailure,
    /// Checksums are written and not looked at.
    NoChecksums,
    /// A read that fails reads as nothing.
    SwallowsReadErrors,
    /// A torn record is left where it is, and the next one is written over its first sectors only.
    WritesIntoTornTail,
    /// A rollback is kept in memory only.
    ForgetsRollback,
    /// A failed sync is tried again until it says yes.
    RetriesSync,
}

impl Bug {
    pub(crate) const ALL: [Self; 12] = [
        Self::AckBeforeSync,
        Self::NoDirectorySync,
        Self::CutsDamage,
        Self::SwitchBeforeSync,
        Self::RemovesTooEarly,
        Self::TornSwitch,
        Self::GoesOnAfterFailure,
        Self::NoChecksums,
        Self::SwallowsReadErrors,
        Self::WritesIntoTornTail,
        Self::ForgetsRollback,
        Self::RetriesSync,
    ];
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Damage("a file is gone".into()),
            _ => Self::Machine(error.to_string()),
        }
    }
}

const CURRENT: &str = "current";
/// Payload of a sector; behind it the number of its record, doubled, and one more in its first sector, and a checksum.
const PAYLOAD: usize = SECTOR_BYTES - 8;
/// Room for records behind a snapshot.
const ROOM: usize = 12 << 10;

impl Kind for Bug {
    type Store = Toy;

    fn create(&self, files: &FaultyFiles) -> Result<Toy, Failure> {
        let (file, next) = Toy::write_out(*self, files, 1, &[])?;
        file.sync()?;
        files.sync_directory()?;
        match files.remove("current.new") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let current = files.create("current.new", 2 * SECTOR_BYTES as u64)?;
        let mut toy =
            Toy { bug: *self, files: files.clone(), current, file, number: 1, next, line: vec![], failed: None };
        toy.switch()?;
        files.rename("current.new", CURRENT)?;
        files.sync_directory()?;
        Ok(toy)
    }

    fn open(&self, files: &FaultyFiles) -> Result<Toy, Failure> {
        let current = match files.open(CURRENT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Failure::Missing),
            opened => opened?,
        };
        let mut bytes = [0; 2 * SECTOR_BYTES];
        current.read_at(0, &mut bytes)?;
        let slot = |index: usize| -> Result<Option<u64>, Failure> {
            let found = unseal(*self, 0, index, &bytes[index * SECTOR_BYTES..][..SECTOR_BYTES])?;
            Ok(found.map(|(_, payload)| u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"))))
        };
        let number = match (self, slot(0)?, slot(1)?) {
            (Self::TornSwitch, first, second) => first.filter(|_| first == second),
            (_, first, second) => first.max(second),
        };
        let number = number.ok_or_else(|| Failure::Damage("nothing says which file counts".into()))?;
        let file = files.open(&name(number))?;
        let mut toy =
            Toy { bug: *self, files: files.clone(), current, file, number, next: 0, line: vec![], failed: None };
        if toy.read_in()? && *self != Self::WritesIntoTornTail {
            toy.step(0, &Step::Flush)?;
        }
        for other in files.list()?.iter().filter(|other| other.starts_with("gen-") && **other != name(toy.number)) {
            files.remove(other)?;
        }
        files.sync_directory()?;
        Ok(toy)
    }
}

fn name(number: u64) -> String {
    format!("gen-{number}")
}

/// The store.
#[derive(Debug)]
pub(crate) struct Toy {
    bug: Bug,
    files: FaultyFiles,
    current: Arc<dyn File>,
    file: Arc<dyn File>,
    number: u64,
    /// The sector the next record begins in.
    next: usize,
    /// The diff of each height.
    line: Vec<Diff>,
    failed: Option<String>,
}

fn seed(number: u64, sector: usize) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &sector.to_le_bytes())
}

/// The sectors of a record that begins in sector `first`.
fn seal(number: u64, first: usize, record: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, part) in record.chunks(PAYLOAD).enumerate() {
        let start = out.len();
        out.extend_from_slice(part);
        out.resize(start + PAYLOAD, 0);
        out.extend_from_slice(&(2 * first as u32 + u32::from(at == 0)).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c_append(seed(number, first + at), &out[start..]).to_le_bytes());
    }
    out
}

/// The tag and payload of a sector; none if it was never written.
fn unseal(bug: Bug, number: u64, at: usize, sector: &[u8]) -> Result<Option<(u32, &[u8])>, Failure> {
    let word = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().expect("four bytes"));
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let sound = word(PAYLOAD + 4) == crc32c::crc32c_append(seed(number, at), &sector[..PAYLOAD + 4]);
    if !sound && bug != Bug::NoChecksums {
        return Err(Failure::Damage(format!("sector {at}")));
    }
    Ok(Some((word(PAYLOAD), &sector[..PAYLOAD])))
}

/// A commit's record, or with a height that of a rollback.
fn record(diff: Option<&Diff>, rollback: u64) -> Vec<u8> {
    let body = diff.map_or_else(|| rollback.to_bytes(), Encode::to_bytes);
    let mut out = (body.len() as u32 * 2 + u32::from(diff.is_some())).to_bytes();
    out.extend_from_slice(&body);
    out
}

impl Toy {
    /// Makes a file of a number with the given heights in it, and says where the next record goes.
    fn write_out(bug: Bug, files: &FaultyFiles, number: u64, line: &[Diff]) -> Result<(Arc<dyn File>, usize), Failure> {
        let mut bytes = Vec::new();
        for diff in line {
            bytes.extend(seal(number, bytes.len() / SECTOR_BYTES, &record(Some(diff), 0)));
        }
        match files.remove(&name(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let file = files.create(&name(number), (bytes.len() + ROOM) as u64)?;
        file.write_at(0, &bytes)?;
        if bug != Bug::SwitchBeforeSync {
            file.sync()?;
        }
        Ok((file, bytes.len() / SECTOR_BYTES))
    }

    /// Says durably which file counts.
    fn switch(&mut self) -> Result<(), Failure> {
        let sector = |index| seal(0, index, &self.number.to_bytes());
        let index = (self.number % 2) as usize;
        match self.bug {
            Bug::TornSwitch => self.current.write_at(0, &[sector(0), sector(1)].concat())?,
            _ => self.current.write_at((index * SECTOR_BYTES) as u64, &sector(index))?,
        }
        Ok(self.current.sync()?)
    }

    /// Reads the records of the file. Says whether the last one is torn.
    fn read_in(&mut self) -> Result<bool, Failure> {
        let sectors = self.file.len()? as usize / SECTOR_BYTES;
        let mut bytes = vec![0; sectors * SECTOR_BYTES];
        match self.file.read_at(0, &mut bytes) {
            Err(_) if self.bug == Bug::SwallowsReadErrors => bytes.fill(0),
            read => read?,
        }
        let sector = |at: usize| unseal(self.bug, self.number, at, &bytes[at * SECTOR_BYTES..][..SECTOR_BYTES]);
        let damage = |what: &str| match self.bug {
            Bug::CutsDamage => Ok(true),
            _ => Err(Failure::Damage(what.into())),
        };
        while self.next < sectors {
            let first = match sector(self.next) {
                Ok(Some((tag, payload))) if tag == 2 * self.next as u32 + 1 => payload,
                Ok(None) => break,
                Ok(_) => return damage("no record begins here"),
                Err(_) if self.bug == Bug::CutsDamage => return Ok(true),
                Err(failure) => return Err(failure),
            };
            let head = u32::from_le_bytes(first[..4].try_into().expect("four bytes"));
            let count = (4 + head as usize / 2).div_ceil(PAYLOAD);
            if self.next + count > sectors {
                return damage("a record is too long");
            }
            let (mut whole, mut torn) = (Vec::new(), false);
            for at in self.next..self.next + count {
                match sector(at) {
                    Ok(Some((tag, payload))) if tag / 2 == self.next as u32 => whole.extend_from_slice(payload),
                    Ok(None) => torn = true,
                    Ok(_) => return damage("a sector of another record"),
                    Err(_) if self.bug == Bug::CutsDamage => return Ok(true),
                    Err(failure) => return Err(failure),
                }
            }
            if torn {
                return Ok(true);
            }
            let body = &whole[4..4 + head as usize / 2];
            match (head % 2, Diff::from_bytes(body), u64::from_bytes(body)) {
                (1, Ok(diff), _) => self.line.push(diff),
                (0, _, Ok(to)) => self.line.truncate(to as usize + 1),
                _ => return damage("no diff"),
            }
            self.next += count;
        }
        // Behind a first sector that was never written there may be others of the same record, of no other.
        let behind = (self.next..sectors).filter_map(|at| sector(at).ok().flatten());
        let tags: Vec<u32> = behind.map(|(tag, _)| tag).collect();
        match tags.iter().all(|tag| *tag == 2 * self.next as u32) {
            true => Ok(!tags.is_empty()),
            false => damage("a record behind the end"),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self.bug {
            Bug::RetriesSync => self.file.sync().or_else(|_| self.file.sync()),
            _ => self.file.sync(),
        }
    }

    fn append(&mut self, record: &[u8]) -> Result<(), Failure> {
        let sealed = seal(self.number, self.next, record);
        if self.next * SECTOR_BYTES + sealed.len() > self.file.len()? as usize {
            self.flush()?;
            return self.append(record);
        }
        self.file.write_at((self.next * SECTOR_BYTES) as u64, &sealed)?;
        if self.bug != Bug::AckBeforeSync {
            self.sync()?;
        }
        self.next += sealed.len() / SECTOR_BYTES;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let old = name(self.number);
        let (file, next) = Self::write_out(self.bug, &self.files, self.number + 1, &self.line)?;
        (self.file, self.next, self.number) = (file, next, self.number + 1);
        if self.bug == Bug::RemovesTooEarly {
            self.files.remove(&old)?;
        }
        if self.bug != Bug::NoDirectorySync {
            self.files.sync_directory()?;
        }
        self.switch()?;
        if self.bug == Bug::SwitchBeforeSync {
            self.file.sync()?;
        }
        if self.bug != Bug::RemovesTooEarly {
            self.files.remove(&old)?;
        }
        Ok(())
    }
}

impl Subject for Toy {
    fn step(&mut self, _height: u64, step: &Step) -> Result<(), Failure> {
        if let Some(reason) = &self.failed {
            return Err(Failure::Machine(reason.clone()));
        }
        let done = match step {
            Step::Commit(diff) => self.append(&record(Some(diff), 0)).map(|()| self.line.push(diff.clone())),
            Step::Rollback(to) => {
                let logged = if self.bug == Bug::ForgetsRollback { Ok(()) } else { self.append(&record(None, *to)) };
                logged.map(|()| self.line.truncate(*to as usize + 1))
            }
            Step::Flush | Step::Compact => self.flush(),
            Step::Prune(_) => Ok(()),
            Step::Reopen => unreachable!("whoever holds the store lets go of it"),
        };
        if let Err(failure) = &done
            && self.bug != Bug::GoesOnAfterFailure
        {
            self.failed = Some(failure.to_string());
        }
        done
    }

    fn height(&self) -> Option<u64> {
        (self.line.len() as u64).checked_sub(1)
    }

    fn low(&self) -> Option<u64> {
        Some(0)
    }

    fn state(&self) -> Result<Model, Failure> {
        let mut model = Model::new();
        self.line.iter().for_each(|diff| apply(&mut model, diff));
        Ok(model)
    }

    fn root_at(&self, height: u64) -> Result<Root, Failure> {
        let mut model = Model::new();
        self.line[..=height as usize].iter().for_each(|diff| apply(&mut model, diff));
        Ok(root_of(&model))
    }
}
