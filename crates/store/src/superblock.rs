//! The superblock: from where the store is opened, in two slots that are written in turn.
//!
//! A slot is one sector, so it is written whole or not at all, and the other slot always holds the state before. A slot
//! that is damaged is told of and written anew from the other; two damaged slots are the end of what a store can mend
//! by itself.
//!
//! Layout and rules: `spec/store.md`, STORE-4 and STORE-10.

use crate::StoreError;
use crate::files::{File, Files, SECTOR_BYTES, remove_if_there};
use crate::sector::{Found, PAYLOAD_BYTES, Seal, Stamp, StoreId};
use crate::segment::{FORMAT, Kind, Spot};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Height, Reader, Root};
use keelstone_tree::HashKind;
use std::io;
use std::sync::Arc;

/// The file that makes a directory a store.
pub(crate) const FILE: &str = "superblock";
/// Under this name a new store is built until one rename makes it the store (spec: STORE-10).
pub(crate) const BUILDING: &str = "superblock.new";

const MAGIC: [u8; 8] = *b"keelstor";

/// The slots lie in different 4 KiB blocks, so that a disk that writes those whole cannot hurt both.
const SLOT_BYTES: u64 = 4096;
const FILE_BYTES: u64 = 2 * SLOT_BYTES;

/// The most that slots written and rollbacks are believed to be, and openings: half of what they can be counted to.
const COUNT_MAX: u64 = 1 << 63;
const GENERATION_MAX: u32 = 1 << 30;

/// A version of the state as the superblock names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// The height, none before the first commit.
    pub(crate) height: Option<Height>,
    pub(crate) root: Root,
    /// Where the table of namespaces and segments lies, its length and hash; none for the empty state.
    pub(crate) table: Option<(Spot, u32, Hash)>,
    /// The record that led to this version.
    pub(crate) record: Option<Spot>,
    /// The hash of the last record in the log before `log`.
    pub(crate) log_hash: Hash,
    /// The sector of the log where what came later begins.
    pub(crate) log: Spot,
    /// Where the next page may be written.
    pub(crate) pages: Option<Spot>,
}

/// What a slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) store: StoreId,
    pub(crate) hasher: HashKind,
    /// Counts the writes of slots. Odd ones go to the first slot, even ones to the second.
    pub(crate) sequence: u64,
    /// The session of the store, counted from one.
    pub(crate) generation: u32,
    /// How often history was rolled back.
    pub(crate) epoch: u64,
    /// The lowest height that is kept.
    pub(crate) low: Option<Height>,
    pub(crate) flushed: Flushed,
}

impl Encode for Superblock {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        FORMAT.encode(out);
        self.store.encode(out);
        self.hasher.encode(out);
        self.sequence.encode(out);
        self.generation.encode(out);
        self.epoch.encode(out);
        self.low.encode(out);
        let flushed = &self.flushed;
        flushed.height.encode(out);
        flushed.root.encode(out);
        flushed.table.map(|(spot, len, hash)| (spot.to_u64(), len, hash)).encode(out);
        flushed.record.map(Spot::to_u64).encode(out);
        flushed.log_hash.encode(out);
        flushed.log.to_u64().encode(out);
        flushed.pages.map(Spot::to_u64).encode(out);
    }
}

fn spot(place: u64) -> Result<Spot, DecodeError> {
    Spot::from_u64(place).map_err(|_| DecodeError::Invalid { what: "place" })
}

impl Superblock {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let store = Decode::decode(input)?;
        let hasher = Decode::decode(input)?;
        let (sequence, generation, epoch) = Decode::decode(input)?;
        let low: Option<Height> = Decode::decode(input)?;
        let (height, root) = Decode::decode(input)?;
        let table: Option<(u64, u32, Hash)> = Decode::decode(input)?;
        let table = table.map(|(place, len, hash)| Ok((spot(place)?, len, hash))).transpose()?;
        let record = Option::decode(input)?.map(spot).transpose()?;
        let log_hash = Decode::decode(input)?;
        let log = spot(u64::decode(input)?)?;
        let pages = Option::decode(input)?.map(spot).transpose()?;
        let flushed = Flushed { height, root, table, record, log_hash, log, pages };
        let lies = |spot: Option<Spot>, kind| spot.is_none_or(|spot| spot.segment.kind == kind && spot.sector() > 0);
        if !lies(Some(log), Kind::Log) || !lies(record, Kind::Log) || !lies(pages, Kind::Pages) {
            return Err(DecodeError::Invalid { what: "place" });
        }
        // What is counted on from here has room.
        let is_within = sequence <= COUNT_MAX && epoch <= COUNT_MAX && generation <= GENERATION_MAX;
        if !is_within || low.max(height) == Some(Height(u64::MAX)) {
            return Err(DecodeError::Invalid { what: "count" });
        }
        Ok(Self { store, hasher, sequence, generation, epoch, low, flushed })
    }
}

/// What one slot holds.
#[derive(Debug)]
pub(crate) enum Slot {
    Good(Superblock),
    Bad(StoreError),
}

/// The superblock's file.
#[derive(Debug)]
pub(crate) struct SuperblockFile {
    file: Arc<dyn File>,
}

impl SuperblockFile {
    /// Writes both slots of a new store under [`BUILDING`], synced. [`Self::switch`] makes it the store.
    pub(crate) fn build(files: &dyn Files, first: &Superblock) -> Result<(), StoreError> {
        remove_if_there(files, BUILDING).map_err(StoreError::io("remove", BUILDING))?;
        let file = files.create(BUILDING, FILE_BYTES).map_err(StoreError::io("create", BUILDING))?;
        let building = Self { file };
        building.write(first)?;
        building.write(&Superblock { sequence: first.sequence + 1, ..*first })
    }

    /// Makes the store that was built the store of the directory, by one rename.
    // spec: STORE-10
    pub(crate) fn switch(files: &dyn Files) -> Result<(), StoreError> {
        files.rename(BUILDING, FILE).map_err(StoreError::io("rename", BUILDING))?;
        files.sync_directory().map_err(StoreError::io("sync", "the directory"))
    }

    /// Reads both slots: the newer good one, and what is wrong with the other if something is.
    // spec: STORE-4
    pub(crate) fn open(files: &dyn Files) -> Result<(Self, Superblock, Option<StoreError>), StoreError> {
        let file = files.open(FILE).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { file: FILE },
            _ => StoreError::io("open", FILE)(error),
        })?;
        let opened = Self { file };
        match opened.slots()? {
            [Slot::Good(first), Slot::Good(second)] if first.store != second.store => {
                Err(StoreError::damaged(FILE, 0, "the two slots are of different stores"))
            }
            [Slot::Good(first), Slot::Good(second)] => {
                Ok((opened, if first.sequence > second.sequence { first } else { second }, None))
            }
            [Slot::Good(good), Slot::Bad(bad)] | [Slot::Bad(bad), Slot::Good(good)] => Ok((opened, good, Some(bad))),
            // A disk that cannot be read may be read another day.
            [Slot::Bad(error @ StoreError::Io { .. }), Slot::Bad(_)]
            | [Slot::Bad(_), Slot::Bad(error @ StoreError::Io { .. })] => Err(error),
            [Slot::Bad(first), Slot::Bad(second)] => {
                let what =
                    format!("neither slot can be read: {first}; {second}; restore the store from a peer or a backup");
                Err(StoreError::damaged(FILE, 0, what))
            }
        }
    }

    /// The slots that are good, the later first.
    pub(crate) fn good_slots(files: &dyn Files) -> Result<Vec<Superblock>, StoreError> {
        let (opened, later, _) = Self::open(files)?;
        let other = opened.slots()?.into_iter().filter_map(|slot| match slot {
            Slot::Good(slot) if slot != later => Some(slot),
            _ => None,
        });
        Ok(std::iter::once(later).chain(other).collect())
    }

    fn slots(&self) -> Result<[Slot; 2], StoreError> {
        let len = self.file.len().map_err(StoreError::io("open", FILE))?;
        if len != FILE_BYTES {
            return Err(StoreError::damaged(FILE, len, format!("the file has {len} bytes, not {FILE_BYTES}")));
        }
        Ok([self.slot(0)?, self.slot(1)?])
    }

    /// Reads one slot. A newer format is an error, since nothing of it may be touched, and so is a shortage; damage is told in the
    /// slot, and so is a sector that cannot be read, which is how a disk mostly loses one.
    // spec: STORE-4
    fn slot(&self, index: u32) -> Result<Slot, StoreError> {
        let offset = u64::from(index) * SLOT_BYTES;
        let mut sector = [0; SECTOR_BYTES];
        let read = self.file.read_at(offset, &mut sector).or_else(|_| self.file.read_at(offset, &mut sector));
        match read.map_err(StoreError::io("read", FILE)) {
            Ok(()) => read_slot(index, &sector),
            Err(shortage) if shortage.is_shortage() => Err(shortage),
            Err(unreadable) => Ok(Slot::Bad(unreadable)),
        }
    }

    /// Writes the slot whose turn it is, durably.
    pub(crate) fn write(&self, superblock: &Superblock) -> Result<(), StoreError> {
        let index = slot_of(superblock.sequence);
        let payload = superblock.to_bytes();
        assert!(payload.len() <= PAYLOAD_BYTES, "a superblock fits in a sector");
        let mut sector = Vec::new();
        seal(&superblock.store).write(index, superblock.generation, false, &payload, &mut sector);
        self.file.write_at(u64::from(index) * SLOT_BYTES, &sector).map_err(StoreError::io("write", FILE))?;
        self.file.sync().map_err(StoreError::io("sync", FILE))
    }

    /// Writes zeros where nobody writes, durably.
    pub(crate) fn clear_between(&self) -> Result<(), StoreError> {
        let zeros = vec![0; usize::try_from(SLOT_BYTES).expect("a small constant") - SECTOR_BYTES];
        for slot in [0, SLOT_BYTES] {
            self.file.write_at(slot + SECTOR_BYTES as u64, &zeros).map_err(StoreError::io("write", FILE))?;
        }
        self.file.sync().map_err(StoreError::io("sync", FILE))
    }

    /// What is wrong with the file: slots that are bad, bytes between them that nobody writes, or that it cannot be read.
    pub(crate) fn check(&self) -> Vec<StoreError> {
        self.look().unwrap_or_else(|error| vec![error])
    }

    fn look(&self) -> Result<Vec<StoreError>, StoreError> {
        let mut problems: Vec<_> = Vec::new();
        for slot in self.slots()? {
            if let Slot::Bad(error) = slot {
                problems.push(error);
            }
        }
        let mut bytes = vec![0; usize::try_from(FILE_BYTES).expect("a small constant")];
        if let Err(error) = self.file.read_at(0, &mut bytes) {
            problems.push(StoreError::io("read", FILE)(error));
            return Ok(problems);
        }
        let unused = |at: usize| at as u64 % SLOT_BYTES >= SECTOR_BYTES as u64;
        if let Some(at) = (0..bytes.len()).find(|at| unused(*at) && bytes[*at] != 0) {
            problems.push(StoreError::damaged(FILE, at as u64, "a byte that nobody writes is not zero"));
        }
        Ok(problems)
    }
}

/// Says what the sector of a slot holds. Only one sector says a superblock: what nobody writes must be as it was.
// spec: STORE-4
pub(crate) fn read_slot(index: u32, sector: &[u8; SECTOR_BYTES]) -> Result<Slot, StoreError> {
    let offset = u64::from(index) * SLOT_BYTES;
    let bad = |what: String| Ok(Slot::Bad(StoreError::damaged(FILE, offset, what)));

    let mut input = Reader::new(&sector[..PAYLOAD_BYTES]);
    let magic: [u8; 8] = input.array().expect("a sector holds the magic");
    let format = u32::decode(&mut input).expect("a sector holds the format");
    // The seal needs the store's id, which follows; every format keeps these three fields where they are.
    let store: StoreId = input.clone().array().expect("a sector holds the id");
    let Found::Valid(stamp) = seal(&store).check(index, sector) else {
        return bad("the checksum does not match".into());
    };
    if magic != MAGIC {
        return bad("this is no superblock".into());
    }
    if format > FORMAT {
        return Err(StoreError::Unsupported { found: format, known: FORMAT });
    }
    let found = match Superblock::decode(&mut input) {
        Ok(found) => found,
        Err(error) => return bad(error.to_string()),
    };
    if slot_of(found.sequence) != index {
        return bad(format!("write {} belongs in the other slot", found.sequence));
    }
    if stamp != (Stamp { generation: found.generation, starts: false }) {
        return bad(format!("it is of session {}, its sector is stamped {stamp:?}", found.generation));
    }
    let rest = input.take(input.left()).expect("no more than is left");
    if rest.iter().any(|byte| *byte != 0) {
        return bad("the bytes behind it are not zero".into());
    }
    Ok(Slot::Good(found))
}

/// Superblocks count as a segment of their own in checksums.
pub(crate) fn seal(store: &StoreId) -> Seal {
    Seal::new(store, u64::MAX)
}

fn slot_of(sequence: u64) -> u32 {
    u32::from(sequence.is_multiple_of(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentId;

    /// spec: STORE-4. A slot with a good checksum that nothing could come after, or that points where nothing of that kind lies.
    #[test]
    fn a_slot_that_no_store_wrote_is_bad() {
        let at = |kind, number| Spot::of_sector(SegmentId { kind, number }, 1);
        let flushed = Flushed {
            height: Some(Height(7)),
            root: Root::default(),
            table: None,
            record: Some(at(Kind::Log, 1)),
            log_hash: Hash::ZERO,
            log: at(Kind::Log, 1),
            pages: Some(at(Kind::Pages, 1)),
        };
        let low = Some(Height(3));
        let (store, hasher) = ([7; 16], HashKind::Blake3);
        let good = Superblock { store, hasher, sequence: 2, generation: 1, epoch: 0, low, flushed };
        let slot = |superblock: &Superblock| {
            let mut sector = Vec::new();
            let index = slot_of(superblock.sequence);
            seal(&store).write(index, superblock.generation, false, &superblock.to_bytes(), &mut sector);
            read_slot(index, &sector.try_into().unwrap()).unwrap()
        };
        assert!(matches!(slot(&good), Slot::Good(found) if found == good));
        let flushed_with = |change: fn(&mut Flushed)| {
            let mut bad = good;
            change(&mut bad.flushed);
            bad
        };
        let bad = [
            Superblock { sequence: u64::MAX, ..good },
            Superblock { generation: (1 << 31) - 1, ..good },
            Superblock { epoch: u64::MAX, ..good },
            Superblock { low: Some(Height(u64::MAX)), ..good },
            flushed_with(|flushed| flushed.height = Some(Height(u64::MAX))),
            flushed_with(|flushed| flushed.log.segment.number = (1 << 30) - 1),
            flushed_with(|flushed| flushed.log.segment.kind = Kind::Values),
            flushed_with(|flushed| flushed.log.offset = 0),
            flushed_with(|flushed| flushed.pages = Some(flushed.log)),
            flushed_with(|flushed| flushed.pages.as_mut().unwrap().offset = 17),
            flushed_with(|flushed| flushed.record = flushed.pages),
        ];
        for bad in bad {
            assert!(matches!(slot(&bad), Slot::Bad(_)), "{bad:?}");
        }
    }
}
