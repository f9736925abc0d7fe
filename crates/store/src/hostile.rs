//! For fuzzing only: what nobody outside the crate can reach, fed with any bytes. Not part of the interface.
//!
//! Checksums and hashes that a fuzzer could not guess are put behind the input, so that what lies behind them is reached;
//! the same input is also read as it is. Trusts nothing and panics when a promise is broken. All is read as of the store
//! of the golden vectors, `spec/vectors/store.json`. Called by `tools/hostile` (docs/decisions/0007).

use crate::files::SECTOR_BYTES;
use crate::flush::Table;
use crate::kv::wal;
use crate::record::{self, Layout, Record, Step};
use crate::scrub::Cursor;
use crate::sector::{Found, PAYLOAD_BYTES, Seal, StoreId};
use crate::segment::{Kind, SegmentId, Spot};
use crate::superblock::{self, Slot};
use keelstone_codec::{Decode, Encode};

/// The store of the golden vectors.
const STORE: StoreId = [0x5a; 16];
/// A sector's payload and stamp: all but its checksum.
const COVERED_BYTES: usize = SECTOR_BYTES - 4;

/// Reads a record of the log without its hash, and says whether it is one (spec: STORE-3, STORE-5).
///
/// # Panics
/// If a record is accepted that has another encoding.
#[must_use]
pub fn log_record(body: &[u8]) -> bool {
    let start = Spot { segment: SegmentId::first(Kind::Log), offset: 504 };
    assert!(Record::decode(&STORE, start, &body.to_vec().into()).is_err(), "a record's hash was guessed");
    let mut bytes = body.to_vec();
    record::finish(&STORE, &mut bytes);
    let Ok(found) = Record::decode(&STORE, start, &bytes.into()) else { return false };
    let again = match (found.head.step, found.root) {
        (Step::Commit, _) => {
            let diff = found.diff();
            let layout = Layout::of(&diff).expect("what fits in the input fits in a record");
            let news = found.writes.iter().map(|write| write.new.as_ref().map(|(place, _)| *place));
            assert!(layout.places(start).eq(news), "a value lies elsewhere than its record says");
            let olds: Vec<_> = found.writes.iter().map(|write| write.old).collect();
            record::encode_commit(&found.head, &diff, &olds)
        }
        (Step::Rollback | Step::Continue | Step::Base | Step::Mark, root) => {
            record::encode_small(found.head, root.expect("a record without a diff has its root"))
        }
    };
    assert_eq!(again, body, "a second encoding was accepted");
    true
}

/// Reads the second sector of the first log segment, with its checksum or without, and says whether it is whole
/// (spec: STORE-1, STORE-2).
///
/// # Panics
/// If a sector is accepted that has another encoding, or in another place.
#[must_use]
pub fn sector(input: &[u8]) -> bool {
    let seal = Seal::new(&STORE, SegmentId::first(Kind::Log).code());
    let mut sector = input.to_vec();
    if input.len() == COVERED_BYTES {
        sector.extend_from_slice(&seal.checksum(1, input).to_le_bytes());
    }
    if sector.len() != SECTOR_BYTES {
        return false;
    }
    let Found::Valid(stamp) = seal.check(1, &sector) else { return false };
    let mut again = Vec::new();
    seal.write(1, stamp.generation, stamp.starts, &sector[..PAYLOAD_BYTES], &mut again);
    assert_eq!(again, sector, "a second encoding was accepted");
    assert_eq!(seal.check(2, &sector), Found::Damaged, "a sector was accepted in another place");
    true
}

/// Reads a slot of the superblock without its sector's checksum, and says whether it is good (spec: STORE-4).
///
/// # Panics
/// If a slot is accepted that has another encoding, or in the place of the other.
#[must_use]
pub fn superblock(input: &[u8]) -> bool {
    let Ok(covered) = <&[u8; COVERED_BYTES]>::try_from(input) else { return false };
    let store: StoreId = covered[12..28].try_into().expect("sixteen bytes");
    let read = |index: u32| {
        let checksum = superblock::seal(&store).checksum(index, covered);
        let sector = [covered.as_slice(), &checksum.to_le_bytes()].concat();
        let whole = sector.as_slice().try_into().expect("a sector");
        match superblock::read_slot(index, whole) {
            Ok(Slot::Good(found)) => Some((sector, found)),
            Ok(Slot::Bad(_)) | Err(_) => None,
        }
    };
    let slots = [read(0), read(1)];
    assert!(slots.iter().flatten().count() < 2, "one write is good in both slots");
    let Some((index, (sector, found))) = (0..).zip(slots).find_map(|(index, slot)| Some((index, slot?))) else {
        return false;
    };
    let mut again = Vec::new();
    superblock::seal(&store).write(index, found.generation, false, &found.to_bytes(), &mut again);
    assert_eq!(again, sector, "a second encoding was accepted");
    true
}

/// Reads what is kept of a scrub, its sector's stamp and checksum put behind it, and says whether it is taken up
/// (spec: STORE-13).
///
/// # Panics
/// If a cursor is accepted that has another encoding.
#[must_use]
pub fn scrub(payload: &[u8]) -> bool {
    if payload.len() > PAYLOAD_BYTES {
        return false;
    }
    let mut sector = Vec::new();
    crate::scrub::seal(&STORE).write(0, 0, false, payload, &mut sector);
    let Ok(sector) = <[u8; SECTOR_BYTES]>::try_from(sector) else { return false };
    let Some(cursor) = Cursor::of_sector(&STORE, &sector) else { return false };
    assert_eq!(cursor.to_sector(&STORE), sector, "a second encoding was accepted");
    true
}

/// Reads the table a superblock points at, and says whether it is one (spec: STORE-4).
///
/// # Panics
/// If a table is accepted that has another encoding.
#[must_use]
pub fn table(input: &[u8]) -> bool {
    let Ok(table) = Table::from_bytes(input) else { return false };
    assert_eq!(table.to_bytes(), input, "a second encoding was accepted");
    true
}

/// Reads a record of the log in front of a database without its hash, and says whether it is one (spec: STORE-15).
///
/// # Panics
/// If a record is accepted that has another encoding.
#[must_use]
pub fn kv_wal(input: &[u8]) -> bool {
    assert!(wal::read_record(input).is_err(), "a record's hash was guessed");
    let Some((number, changes)) = input.split_first_chunk() else { return false };
    let record = wal::record_of(u32::from_le_bytes(*number), changes);
    let Ok((number, changes)) = wal::read_record(&record) else { return false };
    assert_eq!(wal::record(number, &changes), Some(record), "a second encoding was accepted");
    true
}
