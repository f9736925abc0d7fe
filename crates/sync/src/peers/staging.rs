//! Where proven pages and units wait until all are there.
//!
//! A batch is one file: the units of one answer, with their names before them and a digest before all. It is written
//! whole, so units and the note that they are there come to the disk together or not at all. Nothing is synced; what a
//! crash tears does not match its digest and is removed. What survives one is proven again before it counts, so the
//! digest guards against accidents only.
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
use crate::snapshot::{StagingError, StagingFiles, UnitName};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Reader, Tag, TaggedHasher};
use keelstone_store::files::Files;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes of a batch: what one answer can hold once unpacked, and its names.
const BATCH_BYTES_MAX: usize = RESPONSE_BYTES_MAX + 4 + HEAD_BYTES * UNITS_MAX + 32;
/// Bytes before a batch's units for each of them.
const HEAD_BYTES: usize = 1 + 32 + 4;

const STAGED: Tag = Tag::new("peers-staged");

/// The units that are there.
#[derive(Debug)]
pub(super) struct Staging {
    files: StagingFiles,
    batches: BTreeMap<u64, Batch>,
    units: BTreeMap<UnitName, Slot>,
    /// The batch that was read last: units that follow one another mostly share one.
    last: Option<(u64, Vec<u8>)>,
}

#[derive(Debug)]
struct Batch {
    digest: Hash,
    names: Vec<UnitName>,
    bytes: u64,
    /// Written by us since we were opened: then its units are what was proven.
    proven: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    batch: u64,
    at: u32,
    len: u32,
}

impl Staging {
    /// Takes over a directory, which nobody else may use, with what a crash left there. Reads all of it, and removes
    /// batches that are torn.
    pub(super) fn open(files: Arc<dyn Files>) -> Result<Self, StagingError> {
        let files = StagingFiles(files);
        let mut staging = Self { files, batches: BTreeMap::new(), units: BTreeMap::new(), last: None };
        for file in staging.files.list()? {
            let Some(number) = batch_number(&file) else { continue };
            // A file that cannot be read is of no more use than one that is torn.
            let read = staging.files.read(&file, BATCH_BYTES_MAX).ok().flatten();
            match read.and_then(|bytes| decode(&bytes)) {
                Some((digest, heads)) => staging.note(number, digest, &heads, false),
                None => staging.files.remove(&file)?,
            }
        }
        Ok(staging)
    }

    pub(super) fn has(&self, name: &UnitName) -> bool {
        self.units.contains_key(name)
    }

    /// Whether a unit was proven since the directory was opened.
    pub(super) fn is_proven(&self, name: &UnitName) -> bool {
        self.units.get(name).is_some_and(|slot| self.batches[&slot.batch].proven)
    }

    /// Writes proven units, with the note that they are there.
    pub(super) fn write(&mut self, units: &[(UnitName, &[u8])]) -> Result<(), StagingError> {
        let number = self.batches.last_key_value().map_or(0, |(last, _)| last + 1);
        let heads: Vec<(UnitName, u32)> = units
            .iter()
            .map(|(name, bytes)| (*name, u32::try_from(bytes.len()).expect("a unit has at most 16 MB")))
            .collect();
        let (digest, bytes) = encode(&heads, units);
        self.files.write(&batch_file(number), &bytes)?;
        self.note(number, digest, &heads, true);
        Ok(())
    }

    /// The bytes of a unit; none if it is not there, or its file no longer holds what was written. Then the whole batch
    /// is forgotten.
    pub(super) fn read(&mut self, name: &UnitName) -> Result<Option<Vec<u8>>, StagingError> {
        let Some(Slot { batch, at, len }) = self.units.get(name).copied() else { return Ok(None) };
        if self.last.as_ref().is_none_or(|(last, _)| *last != batch) {
            let bytes = self
                .files
                .read(&batch_file(batch), BATCH_BYTES_MAX)?
                .filter(|bytes| decode(bytes).is_some_and(|(digest, _)| digest == self.batches[&batch].digest));
            match bytes {
                Some(bytes) => self.last = Some((batch, bytes)),
                None => {
                    self.forget(batch)?;
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

    /// Forgets the batch of a unit.
    pub(super) fn forget_unit(&mut self, name: &UnitName) -> Result<(), StagingError> {
        self.units.get(name).map(|slot| slot.batch).map_or(Ok(()), |batch| self.forget(batch))
    }

    /// Makes room: of each batch of which less than half is wanted, all is forgotten. So what is staged never takes more
    /// than twice what is wanted.
    pub(super) fn keep(&mut self, wanted: impl Fn(&UnitName) -> bool) -> Result<(), StagingError> {
        let of_use = |batch: &Batch| -> u64 {
            batch.names.iter().filter(|name| wanted(name)).map(|name| u64::from(self.units[name].len)).sum()
        };
        let useless: Vec<u64> = self
            .batches
            .iter()
            .filter(|(_, batch)| of_use(batch) < batch.bytes.div_ceil(2))
            .map(|(number, _)| *number)
            .collect();
        useless.into_iter().try_for_each(|number| self.forget(number))
    }

    /// Forgets and removes everything.
    pub(super) fn clear(&mut self) -> Result<(), StagingError> {
        self.forget_pages(0)?;
        self.keep(|_| false)
    }

    fn note(&mut self, number: u64, digest: Hash, heads: &[(UnitName, u32)], proven: bool) {
        let mut at = u32::try_from(32 + 4 + HEAD_BYTES * heads.len()).expect("units of a batch are limited");
        let (mut names, mut bytes) = (Vec::with_capacity(heads.len()), 0);
        for (name, len) in heads {
            // A unit that another batch has too, after a crash, counts where it was seen first.
            if let std::collections::btree_map::Entry::Vacant(vacant) = self.units.entry(*name) {
                vacant.insert(Slot { batch: number, at, len: *len });
                names.push(*name);
            }
            at += len;
            bytes += u64::from(*len);
        }
        self.batches.insert(number, Batch { digest, names, bytes, proven });
    }

    fn forget(&mut self, number: u64) -> Result<(), StagingError> {
        if let Some(batch) = self.batches.remove(&number) {
            for name in &batch.names {
                self.units.remove(name);
            }
        }
        self.last.take_if(|(last, _)| *last == number);
        self.files.remove(&batch_file(number))
    }
}

/// The bytes of a batch, with their digest before them.
// spec: PEER-9
fn encode(heads: &[(UnitName, u32)], units: &[(UnitName, &[u8])]) -> (Hash, Vec<u8>) {
    let mut out = vec![0; 32];
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

/// What a batch holds, if it is whole.
fn decode(bytes: &[u8]) -> Option<(Hash, Vec<(UnitName, u32)>)> {
    let (stored, body) = bytes.split_first_chunk::<32>()?;
    let digest = digest(body);
    if digest.0 != *stored {
        return None;
    }
    let heads = || -> Result<_, DecodeError> {
        let mut input = Reader::new(body);
        let count = input.length("units of a batch", UNITS_MAX)?;
        let mut heads = Vec::with_capacity(count.min(input.left() / HEAD_BYTES));
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
    heads().ok().map(|heads| (digest, heads))
}

fn batch_file(number: u64) -> String {
    format!("batch-{number:012}")
}

fn batch_number(file: &str) -> Option<u64> {
    let number = file.strip_prefix("batch-")?.parse().ok()?;
    (batch_file(number) == file).then_some(number)
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

    /// spec: PEER-9. What is staged for nothing is removed as soon as it is more than half of a batch.
    #[test]
    fn batches_that_are_mostly_of_no_use_are_removed() {
        let files = MemoryFiles::new();
        let mut staging = Staging::open(Arc::new(files.clone())).unwrap();
        staging.write(&[(name(1), &[1; 10]), (name(2), &[2; 20])]).unwrap();
        staging.write(&[(name(3), &[3; 10])]).unwrap();
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
        assert_eq!(files.list().unwrap(), ["batch-000000000000", "page-00000000"]);
        staging.clear().unwrap();
        assert!(files.list().unwrap().is_empty());
    }

    /// A file that no longer holds what was written is forgotten with all that was in it.
    #[test]
    fn a_batch_that_rots_is_forgotten() {
        let files = MemoryFiles::new();
        let mut staging = Staging::open(Arc::new(files.clone())).unwrap();
        staging.write(&[(name(1), &[1; 10]), (name(2), &[2; 20])]).unwrap();
        files.open("batch-000000000000").unwrap().write_at(120, &[9]).unwrap();
        assert!(staging.read(&name(2)).unwrap().is_none());
        assert!(!staging.has(&name(1)));
    }
}
