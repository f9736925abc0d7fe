//! The write-ahead log in front of a database: what was written and is not in it yet.
//!
//! A small batch touches a dozen pages of a B-tree, and each is written. Here it is one record of one file, written and
//! synced, and the tree gets hundreds of them at once. Trusts nothing that it reads: what is neither a whole record nor was
//! never written is damage.
//!
//! Layout and rules: `spec/store.md`, STORE-15.

use crate::StoreError;
use crate::files::{self, File, Files, SECTOR_BYTES};
use crate::sector::{Found, PAYLOAD_BYTES, Seal, StoreId};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Reader, Tag, TaggedHasher, put_length};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of the file: some five hundred blocks with bodies of a kilobyte, which the database takes in ten milliseconds.
pub(crate) const WAL_BYTES: u64 = 1 << 20;
/// What follows the name of one that is being made, as of the database beside it. A rename takes it off.
pub(crate) const BUILDING: &str = ".new";
const RECORD: Tag = Tag::new("kv-wal");
/// Number, length and hash.
const HEAD_BYTES: usize = 4 + 4 + 32;
/// It belongs to the one database beside it.
const STORE: StoreId = [0; 16];

/// What a batch changes.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A log that is open.
#[derive(Debug)]
pub(crate) struct Wal {
    file: Arc<dyn File>,
    name: String,
    sectors: u32,
    /// Which records count: those of this time around.
    generation: u32,
    /// The number of the next record.
    next: u32,
    /// The sector it begins in.
    sector: u32,
    /// Whether sectors of a record that was cut off lie behind the last.
    is_torn: bool,
    has_failed: bool,
}

fn seal() -> Seal {
    Seal::new(&STORE, u64::MAX - 2)
}

/// A record, without its sectors. None if no file is long enough.
pub(crate) fn record(number: u32, changes: &Changes) -> Option<Vec<u8>> {
    let changes = encode(changes);
    (changes.len() as u64 <= WAL_BYTES).then(|| record_of(number, &changes))
}

/// A record of changes that are encoded.
// spec: STORE-15
pub(crate) fn record_of(number: u32, changes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(changes.len()).expect("shorter than the file");
    [number.to_bytes(), len.to_bytes(), hash(number, changes).to_bytes(), changes.to_vec()].concat()
}

fn hash(number: u32, payload: &[u8]) -> Hash {
    let mut hasher = TaggedHasher::new(RECORD);
    hasher.value(&number).update(payload);
    hasher.finish()
}

/// Number, length and hash of a record that begins where the bytes do.
fn head(bytes: &[u8]) -> Result<(u32, usize, Hash), DecodeError> {
    let mut input = Reader::new(bytes);
    let (number, len, hash) = <(u32, u32, Hash)>::decode(&mut input)?;
    Ok((number, usize::try_from(len).unwrap_or(usize::MAX), hash))
}

/// Reads a record that is whole, and says its number.
// spec: STORE-15
pub(crate) fn read_record(bytes: &[u8]) -> Result<(u32, Changes), DecodeError> {
    let (number, len, expected) = head(bytes)?;
    let payload = &bytes[HEAD_BYTES..];
    if payload.len() != len || hash(number, payload) != expected {
        return Err(DecodeError::Invalid { what: "record" });
    }
    Ok((number, decode(payload)?))
}

/// Changes in the order of their keys. As many and as long as the file has room for: the codec's own limits of lists are lower.
fn encode(changes: &Changes) -> Vec<u8> {
    let mut out = Vec::new();
    put_length(&mut out, changes.len());
    for (key, value) in changes {
        put_bytes(&mut out, key);
        out.push(u8::from(value.is_some()));
        value.iter().for_each(|value| put_bytes(&mut out, value));
    }
    out
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

// spec: STORE-15
fn decode(bytes: &[u8]) -> Result<Changes, DecodeError> {
    let limit = usize::try_from(WAL_BYTES).expect("a small constant");
    let mut input = Reader::new(bytes);
    let mut changes = Changes::new();
    for _ in 0..input.length("changes", limit)? {
        let key = input.bytes("key", limit)?;
        let value = match input.byte()? {
            0 => None,
            1 => Some(input.bytes("value", limit)?.to_vec()),
            found => return Err(DecodeError::UnknownTag { what: "change", found: u64::from(found) }),
        };
        if changes.last_key_value().is_some_and(|(last, _)| last.as_slice() >= key) {
            return Err(DecodeError::NotCanonical { what: "keys of changes must strictly ascend" });
        }
        changes.insert(key.to_vec(), value);
    }
    input.finish()?;
    Ok(changes)
}

fn sectors_of(bytes: usize) -> usize {
    bytes.div_ceil(PAYLOAD_BYTES)
}

impl Wal {
    /// Makes an empty one, in the place of any that is there.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn create(files: &dyn Files, name: &str, bytes: u64) -> Result<Self, StoreError> {
        let building = format!("{name}{BUILDING}");
        let made = files::make(files, &building, name, bytes, &[]);
        let made = made.and_then(|file| files.sync_directory().map(|()| file));
        let file = made.map_err(StoreError::io("create", name))?;
        Self::over(file, name, bytes, 1)
    }

    /// Whether there is one that holds anything.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub(crate) fn was_written_to(files: &dyn Files, name: &str, bytes: u64) -> Result<bool, StoreError> {
        let file = match files.open(name) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(StoreError::io("open", name)(error)),
        };
        let wal = Self::over(file, name, bytes, 0)?;
        Ok(wal.read()?.iter().any(|byte| *byte != 0))
    }

    fn read(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; self.sectors as usize * SECTOR_BYTES];
        self.file.read_at(0, &mut bytes).map_err(StoreError::io("read", &*self.name))?;
        Ok(bytes)
    }

    /// Under its name a file has the size that it was made with from the first: one that is shorter has lost what stood there,
    /// which a file with nothing in it would not show.
    // spec: STORE-15
    fn over(file: Arc<dyn File>, name: &str, made_with: u64, generation: u32) -> Result<Self, StoreError> {
        let bytes = file.len().map_err(StoreError::io("read", name))?;
        if bytes != made_with || bytes > WAL_BYTES || bytes % SECTOR_BYTES as u64 != 0 {
            let what = format!("it has {bytes} bytes, and was made with {made_with}, sectors of {SECTOR_BYTES}");
            return Err(StoreError::damaged(name, 0, what));
        }
        let sectors = u32::try_from(bytes / SECTOR_BYTES as u64).expect("bounded");
        let (name, is_torn, has_failed) = (name.to_owned(), false, false);
        Ok(Self { file, name, sectors, generation, next: 0, sector: 0, is_torn, has_failed })
    }

    /// Opens one that was made with so many bytes, whose database says that records of this generation count, and says what is in it, the later above the
    /// earlier. What was being written when the power went, and never acknowledged, may be there or not.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Lost`], or what the disk says.
    // spec: STORE-15
    pub(crate) fn open(
        files: &dyn Files,
        name: &str,
        bytes: u64,
        generation: u32,
    ) -> Result<(Self, Changes), StoreError> {
        let file = files.open(name).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                StoreError::Lost { file: name.to_owned(), what: "its database was written behind it".to_owned() }
            }
            _ => StoreError::io("open", name)(error),
        })?;
        let mut wal = Self::over(file, name, bytes, generation)?;
        let bytes = wal.read()?;
        let sectors: Vec<&[u8]> = bytes.chunks(SECTOR_BYTES).collect();
        let damaged = |sector: usize, what: String| StoreError::damaged(name, (sector * SECTOR_BYTES) as u64, what);
        // Of each sector of this generation, whether a record begins in it.
        let mut begins = Vec::with_capacity(sectors.len());
        for (number, sector) in (0..).zip(&sectors) {
            begins.push(match seal().check(number, sector) {
                Found::Valid(stamp) if stamp.generation == generation => Some(stamp.starts),
                Found::Valid(stamp) if stamp.generation > generation => {
                    let what = format!(
                        "it is of generation {}, and the database, which says {generation}, of an earlier day",
                        stamp.generation
                    );
                    return Err(damaged(number as usize, what));
                }
                Found::Valid(_) | Found::Zero => None,
                Found::Damaged => return Err(damaged(number as usize, "its checksum does not match".to_owned())),
            });
        }
        let mut changes = Changes::new();
        let mut at = 0;
        while begins.get(at) == Some(&Some(true)) {
            let (_, len, _) = head(sectors[at]).map_err(|error| damaged(at, error.to_string()))?;
            let end = len.checked_add(HEAD_BYTES).map(|bytes| at.saturating_add(sectors_of(bytes)));
            let end = end.filter(|end| *end <= sectors.len());
            let end = end.ok_or_else(|| damaged(at, format!("a record of {len} bytes does not fit here")))?;
            if begins[at + 1..end].iter().any(|begins| *begins != Some(false)) {
                // Torn: it was being written when the power went.
                break;
            }
            let whole: Vec<u8> = sectors[at..end].iter().flat_map(|sector| &sector[..PAYLOAD_BYTES]).copied().collect();
            let (number, read) =
                read_record(&whole[..HEAD_BYTES + len]).map_err(|error| damaged(at, error.to_string()))?;
            if number != wal.next {
                return Err(damaged(at, format!("record {number} stands where record {} should", wal.next)));
            }
            changes.extend(read);
            (at, wal.next) = (end, wal.next + 1);
        }
        // One record is on its way at a time, so none begins behind one that is not whole.
        if let Some(behind) = begins.iter().skip(at + 1).position(|begins| *begins == Some(true)) {
            let what = format!(
                "a record begins at byte {}, and record {} is lost",
                (at + 1 + behind) * SECTOR_BYTES,
                wal.next
            );
            return Err(damaged(at, what));
        }
        wal.is_torn = begins[at..].iter().any(Option::is_some);
        wal.sector = u32::try_from(at).expect("bounded");
        Ok((wal, changes))
    }

    /// Makes changes durable, or says that there is no room for them.
    ///
    /// # Errors
    /// What the disk says; from then on each call is refused, since nobody knows what is on the disk (spec: STORE-8).
    pub(crate) fn append(&mut self, changes: &Changes) -> Result<bool, StoreError> {
        self.check()?;
        let room = (self.sectors - self.sector) as usize;
        let Some(record) = record(self.next, changes).filter(|record| sectors_of(record.len()) <= room) else {
            return Ok(false);
        };
        let mut raw = Vec::new();
        seal().write(self.sector, self.generation, true, &record, &mut raw);
        let offset = u64::from(self.sector) * SECTOR_BYTES as u64;
        let written = self.file.write_at(offset, &raw).and_then(|()| self.file.sync());
        written.map_err(|error| {
            self.has_failed = true;
            StoreError::io("write", &self.name)(error)
        })?;
        self.sector += u32::try_from(raw.len() / SECTOR_BYTES).expect("it fits");
        self.next += 1;
        Ok(true)
    }

    /// Whether it may still be written to.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a write failed before.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match self.has_failed {
            false => Ok(()),
            true => {
                let what = "an earlier write failed, and what is on the disk is known once it is opened again";
                Err(StoreError::io("write", &self.name)(std::io::Error::other(what)))
            }
        }
    }

    /// Refuses all that comes.
    pub(crate) fn fail(&mut self) {
        self.has_failed = true;
    }

    /// Whether it has nothing of its generation, not even what was cut off.
    pub(crate) fn is_empty(&self) -> bool {
        self.next == 0 && !self.is_torn
    }

    /// Which records count.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The generation that begins once the database has all that is here.
    pub(crate) fn next_generation(&self) -> u32 {
        self.generation + 1
    }

    /// Begins anew: the database has all that was here, and says so.
    pub(crate) fn restart(&mut self) {
        (self.generation, self.next, self.sector, self.is_torn) = (self.next_generation(), 0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Fault, FaultyFiles, MemoryFiles};

    const NAME: &str = "blocks.wal";

    fn changes(number: u8, bytes: usize) -> Changes {
        let removed = (vec![7], None);
        [removed, (vec![0, number], Some(vec![number + 1; bytes]))].into_iter().collect()
    }

    /// spec: STORE-15. What was acknowledged is there after a power cut at any change of the disk, in order and without a
    /// gap; of what was under way, all or nothing.
    #[test]
    fn a_power_cut_at_any_change_loses_no_record() {
        let whole: Changes = (0..12).flat_map(|number| changes(number, 300 * usize::from(number))).collect();
        for seed in 0..8u64 {
            let files = FaultyFiles::new(seed);
            let mut wal = Wal::create(&files, NAME, 64 << 10).unwrap();
            let before = files.changes();
            for number in 0..12 {
                assert!(wal.append(&changes(number, 300 * usize::from(number))).unwrap());
            }
            for cut in before..files.changes() {
                let files = FaultyFiles::new(seed);
                let mut wal = Wal::create(&files, NAME, 64 << 10).unwrap();
                files.fail_at(cut, Fault::PowerCut);
                let acknowledged =
                    (0..12).take_while(|n| wal.append(&changes(*n, 300 * usize::from(*n))).is_ok()).count();
                assert!(wal.check().is_err() && wal.append(&changes(0, 0)).is_err(), "nothing is written behind it");
                let after = files.after_power_cut(seed + cut);
                let (found, read) =
                    Wal::open(&after, NAME, 64 << 10, 1).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                let count = found.next as usize;
                assert!(count == acknowledged || count == acknowledged + 1, "seed {seed}, cut {cut}: {count}");
                let up_to = vec![0, u8::try_from(count).unwrap()];
                let expected = whole.iter().filter(|(key, _)| **key < up_to || (count > 0 && **key == [7]));
                assert_eq!(read, expected.map(|(key, value)| (key.clone(), value.clone())).collect(), "cut {cut}");
            }
        }
    }

    /// spec: STORE-15. A changed bit anywhere in what was written is damage, with the place; so are a record that is gone
    /// before another, a database of an earlier day, a log that is gone, and one of another size.
    #[test]
    fn w01_a_changed_bit_of_the_log_in_front_is_damage() {
        let files = MemoryFiles::new();
        let mut wal = Wal::create(&files, NAME, 8 << 10).unwrap();
        for number in 0..4 {
            assert!(wal.append(&changes(number, 600)).unwrap());
        }
        assert!(wal.append(&changes(4, 600)).unwrap() && !wal.append(&changes(5, 8 << 10)).unwrap(), "no room");
        let (_, all) = Wal::open(&files, NAME, 8 << 10, 1).unwrap();
        assert_eq!(all.len(), 6);
        let used = wal.sector as usize * SECTOR_BYTES;
        let mut bytes = vec![0; used];
        wal.file.read_at(0, &mut bytes).unwrap();
        for (at, byte) in (0..).zip(&bytes) {
            wal.file.write_at(at, &[byte ^ (1 << (at % 8))]).unwrap();
            let error = Wal::open(&files, NAME, 8 << 10, 1).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "byte {at}: {error}");
            wal.file.write_at(at, &[*byte]).unwrap();
        }
        wal.file.write_at(0, &[0; 1024]).unwrap();
        assert!(Wal::open(&files, NAME, 8 << 10, 1).unwrap_err().to_string().contains("record 0 is lost"));
        wal.file.write_at(0, &bytes[..1024]).unwrap();
        assert!(Wal::open(&files, NAME, 8 << 10, 0).unwrap_err().to_string().contains("of an earlier day"));
        wal.restart();
        assert!(Wal::open(&files, NAME, 8 << 10, 2).unwrap().0.is_empty(), "records of before do not count");
        assert!(wal.append(&changes(9, 10)).unwrap());
        assert_eq!(Wal::open(&files, NAME, 8 << 10, 2).unwrap().1, changes(9, 10));
        files.remove(NAME).unwrap();
        assert!(matches!(Wal::open(&files, NAME, 8 << 10, 2), Err(StoreError::Lost { .. })));
        files.create(NAME, 700).unwrap();
        assert!(Wal::open(&files, NAME, 8 << 10, 2).unwrap_err().to_string().contains("it has 700 bytes"));
        // Whole sectors, and none at all: what they would read as is a log with nothing in it.
        for shorter in [4 << 10, 0] {
            files.remove(NAME).unwrap();
            files.create(NAME, shorter).unwrap();
            let expected = format!("it has {shorter} bytes");
            assert!(Wal::open(&files, NAME, 8 << 10, 2).unwrap_err().to_string().contains(&expected));
            assert!(Wal::was_written_to(&files, NAME, 8 << 10).unwrap_err().is_damage());
        }
    }

    /// spec: STORE-15. What is acknowledged is read back, as much of it as the file has room for: one long value, and many
    /// changes.
    #[test]
    fn what_fits_in_the_file_is_read_back() {
        let long = Changes::from([(b"body".to_vec(), Some(vec![7; 1_000_000]))]);
        let many: Changes = (0..70_000u32).map(|number| (number.to_be_bytes().to_vec(), None)).collect();
        for changes in [long, many] {
            let files = MemoryFiles::new();
            let mut wal = Wal::create(&files, NAME, WAL_BYTES).unwrap();
            assert!(wal.append(&changes).unwrap());
            assert!(Wal::open(&files, NAME, WAL_BYTES, 1).unwrap().1 == changes);
        }
    }

    /// spec: STORE-15. Sectors that are whole, and no record or not the one that comes next: damage, each by what is wrong.
    #[test]
    fn whole_sectors_that_are_no_record_are_damage() {
        let opened = |written: &[(u32, Vec<u8>)]| {
            let files = MemoryFiles::new();
            let wal = Wal::create(&files, NAME, 8 << 10).unwrap();
            for (sector, record) in written {
                let mut raw = Vec::new();
                seal().write(*sector, 1, true, record, &mut raw);
                wal.file.write_at(u64::from(*sector) * SECTOR_BYTES as u64, &raw).unwrap();
            }
            Wal::open(&files, NAME, 8 << 10, 1).map(|(_, found)| found)
        };
        let good = |number| record(number, &changes(3, 20)).unwrap();
        assert_eq!(opened(&[(0, good(0)), (1, good(1))]).unwrap(), changes(3, 20));
        let mut long = good(0);
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut other = good(0);
        *other.last_mut().unwrap() ^= 1;
        let none = record_of(0, &[9; 12]);
        for (written, expected) in [
            (vec![(0, long)], "does not fit here"),
            (vec![(0, other)], "record"),
            (vec![(0, none)], "changes is 151587081, the limit is 1048576"),
            (vec![(0, good(0)), (1, good(2))], "record 2 stands where record 1 should"),
        ] {
            match opened(&written) {
                Err(StoreError::Damaged { what, .. }) => assert!(what.contains(expected), "{what}"),
                found => panic!("{expected}: {found:?}"),
            }
        }
        let files = MemoryFiles::new();
        files.create(NAME, WAL_BYTES + SECTOR_BYTES as u64).unwrap();
        let error = Wal::open(&files, NAME, WAL_BYTES, 1).unwrap_err();
        assert!(error.to_string().contains("was made with 1048576"), "{error}");
    }
}
