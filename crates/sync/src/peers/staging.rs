//! Where proven pages and units wait until all are there.
//!
//! A batch is the units of one answer, with their names before them and a digest before all. It is written at once, so
//! units and the note that they are there come to the disk together or not at all. Nothing is synced; what a crash tears
//! does not match its digest and ends its file. What survives one is proven again before it counts, so the digest guards
//! against accidents only. Batches stand one behind the other in files: making a file costs more than filling it.
//!
//! Units are found by name, whatever version they were fetched for: a target that moves keeps those it shares. That
//! names say what bytes are, not where they stand, does no harm: where they stand is the skeleton's to say, and is
//! checked when the entries are read in order.
//!
//! A page of the skeleton is a file by its number. It has no digest: whoever reads it back proves it as if a peer had sent
//! it.
//!
//! Rules: `spec/peers.md`, PEER-9.

use super::{RESPONSE_BYTES_MAX, UNITS_MAX};
use crate::snapshot::{StagingError, StagingFiles, UnitName, failed};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Reader, Tag, TaggedHasher};
use keelstone_store::files::{File, Files};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes of a batch: what one answer can hold once unpacked, and its names.
const BATCH_BYTES_MAX: usize = RESPONSE_BYTES_MAX + HEAD_BYTES + UNIT_HEAD_BYTES * UNITS_MAX;
/// Bytes of a file, unless its only batch is larger.
const FILE_BYTES: usize = 1 << 20;
/// Bytes before the heads of a batch's units: digest, length and number.
const HEAD_BYTES: usize = 32 + 4 + 4;
/// Bytes before a batch's units for each of them.
const UNIT_HEAD_BYTES: usize = 1 + 32 + 4;

const STAGED: Tag = Tag::new("peers-staged");

/// The units that are there.
#[derive(Debug)]
pub(super) struct Staging {
    files: StagingFiles,
    batch_files: BTreeMap<u64, BatchFile>,
    units: BTreeMap<UnitName, Slot>,
    /// The file that is being filled.
    open: Option<Open>,
    /// The batch that was read last: units that follow one another mostly share one.
    last: Option<((u64, u32), Vec<u8>)>,
}

/// A file of batches.
#[derive(Debug, Default)]
struct BatchFile {
    /// By where they begin: their lengths and digests.
    batches: BTreeMap<u32, (u32, Hash)>,
    names: Vec<UnitName>,
    /// Bytes of the units.
    bytes: u64,
    /// Written by us since we were opened: then its units are what was proven.
    proven: bool,
}

/// What stands before a batch's units.
#[derive(Debug)]
struct Batch {
    /// Bytes of it all.
    len: u32,
    digest: Hash,
    heads: Vec<(UnitName, u32)>,
}

/// A file that has room.
#[derive(Debug)]
struct Open {
    number: u64,
    file: Arc<dyn File>,
    end: u32,
    size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    batch_file: u64,
    /// Where its batch begins, and where the unit does in that.
    batch: u32,
    at: u32,
    len: u32,
}

impl Staging {
    /// Takes over a directory, which nobody else may use, with what a crash left there. Reads all of it, and removes
    /// files that begin with no whole batch.
    pub(super) fn open(files: Arc<dyn Files>) -> Result<Self, StagingError> {
        let files = StagingFiles(files);
        let mut staging = Self { files, batch_files: BTreeMap::new(), units: BTreeMap::new(), open: None, last: None };
        for file in staging.files.list()? {
            let Some(number) = file_number(&file) else { continue };
            // A file that cannot be read is of no more use than one that is torn.
            let read = staging.files.read(&file, BATCH_BYTES_MAX.max(FILE_BYTES)).ok().flatten();
            let bytes = read.unwrap_or_default();
            let mut at = 0;
            while let Some(batch) = decode(&bytes[at..]) {
                let start = u32::try_from(at).expect("a file has at most 17 MB");
                at += batch.len as usize;
                staging.note((number, start), batch, false);
            }
            if at == 0 {
                staging.files.remove(&file)?;
            }
        }
        Ok(staging)
    }

    pub(super) fn has(&self, name: &UnitName) -> bool {
        self.units.contains_key(name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Whether a unit was proven since the directory was opened.
    pub(super) fn is_proven(&self, name: &UnitName) -> bool {
        self.units.get(name).is_some_and(|slot| self.batch_files[&slot.batch_file].proven)
    }

    /// Writes proven units, with the note that they are there.
    pub(super) fn write(&mut self, units: &[(UnitName, &[u8])]) -> Result<(), StagingError> {
        let heads: Vec<(UnitName, u32)> = units
            .iter()
            .map(|(name, bytes)| (*name, u32::try_from(bytes.len()).expect("a unit has at most 16 MB")))
            .collect();
        let (digest, bytes) = encode(&heads, units);
        let batch = Batch { len: u32::try_from(bytes.len()).expect("a batch has at most 17 MB"), digest, heads };
        // One that fails is written no further: nobody knows how much of it came to the disk.
        let mut open = match self.open.take().filter(|open| open.end as usize + bytes.len() <= open.size) {
            Some(open) => open,
            None => {
                let number = self.batch_files.last_key_value().map_or(0, |(last, _)| last + 1);
                let size = FILE_BYTES.max(bytes.len());
                Open { number, file: self.files.create(&file_name(number), size)?, end: 0, size }
            }
        };
        let written = open.file.write_at(open.end.into(), &bytes);
        written.map_err(failed("write", &file_name(open.number)))?;
        let start = open.end;
        open.end += batch.len;
        self.note((open.number, start), batch, true);
        self.open = Some(open);
        Ok(())
    }

    /// The bytes of a unit; none if it is not there, or its file no longer holds what was written. Then the whole file
    /// is forgotten.
    pub(super) fn read(&mut self, name: &UnitName) -> Result<Option<Vec<u8>>, StagingError> {
        let Some(Slot { batch_file, batch, at, len }) = self.units.get(name).copied() else { return Ok(None) };
        let place = (batch_file, batch);
        if self.last.as_ref().is_none_or(|(last, _)| *last != place) {
            let (batch_len, written) = self.batch_files[&batch_file].batches[&batch];
            let bytes = self
                .files
                .read_part(&file_name(batch_file), batch.into(), batch_len as usize)?
                .filter(|bytes| decode(bytes).is_some_and(|batch| batch.digest == written));
            match bytes {
                Some(bytes) => self.last = Some((place, bytes)),
                None => {
                    self.forget(batch_file)?;
                    return Ok(None);
                }
            }
        }
        let (_, bytes) = self.last.as_ref().expect("it was read just now");
        Ok(Some(bytes[at as usize..at as usize + len as usize].to_vec()))
    }

    /// The bytes of a page that was written; none if it is not there or has more than it can have.
    pub(super) fn page(&self, page: u32, bytes_max: u32) -> Result<Option<Vec<u8>>, StagingError> {
        self.files.read(&page_file(page), usize::try_from(bytes_max).unwrap_or(usize::MAX))
    }

    /// Writes a proven page.
    pub(super) fn write_page(&self, page: u32, bytes: &[u8]) -> Result<(), StagingError> {
        self.files.write(&page_file(page), bytes)
    }

    /// Removes the pages from one on.
    pub(super) fn forget_pages(&self, from: u32) -> Result<(), StagingError> {
        for file in self.files.list()? {
            if page_number(&file).is_some_and(|page| page >= from) {
                self.files.remove(&file)?;
            }
        }
        Ok(())
    }

    /// Forgets the file of a unit.
    pub(super) fn forget_unit(&mut self, name: &UnitName) -> Result<(), StagingError> {
        self.units.get(name).map(|slot| slot.batch_file).map_or(Ok(()), |batch_file| self.forget(batch_file))
    }

    /// Makes room: of each file of which less than half is wanted, all is forgotten. So what is staged never takes more
    /// than twice what is wanted, but for what the files were made larger than it.
    pub(super) fn keep(&mut self, wanted: impl Fn(&UnitName) -> bool) -> Result<(), StagingError> {
        let of_use = |batch_file: &BatchFile| -> u64 {
            batch_file.names.iter().filter(|name| wanted(name)).map(|name| u64::from(self.units[name].len)).sum()
        };
        let useless: Vec<u64> = self
            .batch_files
            .iter()
            .filter(|(_, batch_file)| of_use(batch_file) < batch_file.bytes.div_ceil(2))
            .map(|(number, _)| *number)
            .collect();
        useless.into_iter().try_for_each(|number| self.forget(number))
    }

    /// Forgets and removes everything.
    pub(super) fn clear(&mut self) -> Result<(), StagingError> {
        self.forget_pages(0)?;
        self.keep(|_| false)
    }

    fn note(&mut self, (number, start): (u64, u32), batch: Batch, proven: bool) {
        let Batch { len, digest, heads } = batch;
        let batch_file = self.batch_files.entry(number).or_default();
        batch_file.batches.insert(start, (len, digest));
        batch_file.proven = proven;
        let mut at = u32::try_from(HEAD_BYTES + UNIT_HEAD_BYTES * heads.len()).expect("units of a batch are limited");
        for (name, len) in heads {
            // A unit that another batch has too, after a crash, counts where it was seen first.
            if let std::collections::btree_map::Entry::Vacant(vacant) = self.units.entry(name) {
                vacant.insert(Slot { batch_file: number, batch: start, at, len });
                batch_file.names.push(name);
            }
            at += len;
            batch_file.bytes += u64::from(len);
        }
    }

    fn forget(&mut self, number: u64) -> Result<(), StagingError> {
        if let Some(batch_file) = self.batch_files.remove(&number) {
            for name in &batch_file.names {
                self.units.remove(name);
            }
        }
        self.last.take_if(|((last, _), _)| *last == number);
        self.open.take_if(|open| open.number == number);
        self.files.remove(&file_name(number))
    }
}

/// The bytes of a batch, with their digest before them.
// spec: PEER-9
fn encode(heads: &[(UnitName, u32)], units: &[(UnitName, &[u8])]) -> (Hash, Vec<u8>) {
    let bytes: usize = units.iter().map(|(_, bytes)| bytes.len()).sum();
    let len = 4 + UNIT_HEAD_BYTES * heads.len() + bytes;
    let mut out = Vec::with_capacity(32 + 4 + len);
    out.resize(32, 0);
    u32::try_from(len).expect("a batch has at most 17 MB").encode(&mut out);
    u32::try_from(heads.len()).expect("units of a batch are limited").encode(&mut out);
    for (name, len) in heads {
        name.of_namespaces.encode(&mut out);
        name.hash.encode(&mut out);
        len.encode(&mut out);
    }
    units.iter().for_each(|(_, bytes)| out.extend_from_slice(bytes));
    let digest = digest(&out[32..]);
    out[..32].copy_from_slice(&digest.0);
    (digest, out)
}

fn digest(body: &[u8]) -> Hash {
    TaggedHasher::new(STAGED).update(body).finish()
}

/// The batch that these bytes begin with, if it is whole.
fn decode(bytes: &[u8]) -> Option<Batch> {
    let (stored, rest) = bytes.split_first_chunk::<32>()?;
    let (len, _) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len);
    let rest = rest.get(..4 + len as usize)?;
    let digest = digest(rest);
    if digest.0 != *stored {
        return None;
    }
    let heads = || -> Result<_, DecodeError> {
        let mut input = Reader::new(&rest[4..]);
        let count = input.length("units of a batch", UNITS_MAX)?;
        let mut heads = Vec::with_capacity(count.min(input.left() / UNIT_HEAD_BYTES));
        for _ in 0..count {
            let name = UnitName { of_namespaces: bool::decode(&mut input)?, hash: Hash::decode(&mut input)? };
            heads.push((name, u32::decode(&mut input)?));
        }
        for (_, len) in &heads {
            input.take(*len as usize)?;
        }
        input.finish()?;
        Ok(heads)
    };
    heads().ok().map(|heads| Batch { len: 32 + 4 + len, digest, heads })
}

fn file_name(number: u64) -> String {
    format!("units-{number:012}")
}

fn file_number(file: &str) -> Option<u64> {
    let number = file.strip_prefix("units-")?.parse().ok()?;
    (file_name(number) == file).then_some(number)
}

fn page_file(page: u32) -> String {
    format!("page-{page:08}")
}

fn page_number(file: &str) -> Option<u32> {
    let page = file.strip_prefix("page-")?.parse().ok()?;
    (page_file(page) == file).then_some(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_store::files::{FaultyFiles, MemoryFiles};

    fn name(byte: u8) -> UnitName {
        UnitName { of_namespaces: byte % 2 == 1, hash: Hash([byte; 32]) }
    }

    /// spec: PEER-9. A power cut leaves batches whole or gone, and what is left reads as it was written.
    #[test]
    fn a_power_cut_leaves_whole_batches_or_none() {
        for seed in 0..200 {
            let files = FaultyFiles::new(seed);
            let mut staging = Staging::open(Arc::new(files.clone())).unwrap();
            for batch in 0..6u8 {
                let bodies: Vec<Vec<u8>> = (0..3).map(|unit| vec![batch; 300 * (1 + unit)]).collect();
                let units: Vec<_> = (0..3).map(|unit| (name(batch * 3 + unit), &*bodies[usize::from(unit)])).collect();
                staging.write(&units).unwrap();
            }
            let mut found = Staging::open(Arc::new(files.after_power_cut(seed))).unwrap();
            for unit in 0..18u8 {
                let (batch, name) = (unit / 3, name(unit));
                assert_eq!(found.has(&name), found.has(&self::name(batch * 3)), "seed {seed}: a batch in part");
                assert!(!found.is_proven(&name), "seed {seed}: what a crash left was proven by nobody");
                if let Some(bytes) = found.read(&name).unwrap() {
                    assert_eq!(bytes, vec![batch; 300 * (1 + usize::from(unit % 3))], "seed {seed}");
                }
            }
        }
    }

    /// spec: PEER-9. What is staged for nothing is removed as soon as it is more than half of a file.
    #[test]
    fn files_that_are_mostly_of_no_use_are_removed() {
        let files = MemoryFiles::new();
        let mut staging = Staging::open(Arc::new(files.clone())).unwrap();
        let bytes = vec![7; 600 << 10];
        staging.write(&[(name(1), &bytes[..200 << 10]), (name(2), &bytes[..400 << 10])]).unwrap();
        staging.write(&[(name(3), &bytes)]).unwrap();
        assert_eq!(files.list().unwrap().len(), 2, "a file takes no more");
        staging.keep(|unit| *unit == name(2)).unwrap();
        assert!(staging.has(&name(2)) && staging.has(&name(1)) && !staging.has(&name(3)));
        staging.keep(|unit| *unit == name(1)).unwrap();
        assert!(!staging.has(&name(1)) && files.list().unwrap().is_empty());
    }

    /// spec: PEER-9. Pages are found by number, one that is longer than it can be is not read, and they go from one on.
    #[test]
    fn pages_wait_beside_the_batches() {
        let files = MemoryFiles::new();
        let mut staging = Staging::open(Arc::new(files.clone())).unwrap();
        for page in 0..3u8 {
            staging.write_page(page.into(), &[page; 10]).unwrap();
        }
        staging.write(&[(name(1), &[1; 10])]).unwrap();
        assert_eq!(staging.page(2, 10).unwrap(), Some(vec![2; 10]));
        assert_eq!((staging.page(2, 9).unwrap(), staging.page(3, 10).unwrap()), (None, None));
        staging.forget_pages(1).unwrap();
        assert_eq!(files.list().unwrap(), ["page-00000000", "units-000000000000"]);
        staging.clear().unwrap();
        assert!(files.list().unwrap().is_empty());
    }

    /// spec: PEER-9. Batches share a file; after a restart those before a torn one are there, and no other is added to that file.
    #[test]
    fn what_stands_before_a_torn_batch_is_kept() {
        let files = MemoryFiles::new();
        let mut staging = Staging::open(Arc::new(files.clone())).unwrap();
        for unit in 1..=3 {
            staging.write(&[(name(unit), &[unit; 1000])]).unwrap();
        }
        assert_eq!(files.list().unwrap(), ["units-000000000000"]);
        let second = 36 + 4 + UNIT_HEAD_BYTES as u64 + 1000;
        files.open("units-000000000000").unwrap().write_at(second + 500, &[9]).unwrap();
        let mut found = Staging::open(Arc::new(files.clone())).unwrap();
        assert_eq!([1, 2, 3].map(|unit| found.has(&name(unit))), [true, false, false]);
        found.write(&[(name(4), &[4; 1000])]).unwrap();
        assert_eq!(files.list().unwrap(), ["units-000000000000", "units-000000000001"]);
        let mut found = Staging::open(Arc::new(files)).unwrap();
        assert_eq!(found.read(&name(1)).unwrap(), Some(vec![1; 1000]));
        assert_eq!(found.read(&name(4)).unwrap(), Some(vec![4; 1000]));
    }

    /// A file that no longer holds what was written is forgotten with all that was in it.
    #[test]
    fn a_batch_that_rots_is_forgotten() {
        let files = MemoryFiles::new();
        let mut staging = Staging::open(Arc::new(files.clone())).unwrap();
        staging.write(&[(name(1), &[1; 10]), (name(2), &[2; 20])]).unwrap();
        files.open("units-000000000000").unwrap().write_at(124, &[9]).unwrap();
        assert!(staging.read(&name(2)).unwrap().is_none());
        assert!(!staging.has(&name(1)));
    }
}
