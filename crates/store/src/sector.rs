//! The sector: 504 bytes of payload, a stamp and a checksum. Every file of the store is made of them.
//!
//! The checksum covers the store, the segment and the sector's number, so a sector of another store, file or place is as
//! wrong as a flipped bit. The stamp says in which session of the store the sector was written, so that what a crash
//! left behind the end of the log can be told from damage.
//!
//! Layout and rules: `spec/store.md`, STORE-1 and STORE-2.

use crate::files::SECTOR_BYTES;

/// Payload bytes of a sector.
pub(crate) const PAYLOAD_BYTES: usize = PAYLOAD as usize;
/// The same, for sums with offsets.
pub(crate) const PAYLOAD: u32 = 504;

const STAMP_AT: usize = PAYLOAD_BYTES;
const CHECKSUM_AT: usize = PAYLOAD_BYTES + 4;

/// The bytes of a sector.
pub(crate) type Sector = [u8; SECTOR_BYTES];

/// The identity of a store: sixteen bytes chosen when it is made.
pub(crate) type StoreId = [u8; 16];

/// In which session a sector was written, and whether a record starts in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Sessions are counted from one; each open is one (spec: STORE-2).
    pub(crate) generation: u32,
    /// Whether the first byte of a record is the first byte of this sector.
    pub(crate) starts: bool,
}

impl Stamp {
    fn to_u32(self) -> u32 {
        assert!(self.generation < 1 << 31, "a store is opened fewer than 2^31 times");
        self.generation << 1 | u32::from(self.starts)
    }

    fn from_u32(bits: u32) -> Self {
        Self { generation: bits >> 1, starts: bits & 1 == 1 }
    }
}

/// What a sector turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// All zero: never written.
    Zero,
    /// Written whole, with this stamp.
    Valid(Stamp),
    /// Neither: damage.
    Damaged,
}

/// Computes the checksums of one segment's sectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seal {
    seed: u32,
}

impl Seal {
    /// For the segment with this code (see [`crate::segment::SegmentId::code`]).
    pub(crate) fn new(store: &StoreId, segment: u64) -> Self {
        let seed = crc32c::crc32c(store);
        Self { seed: crc32c::crc32c_append(seed, &segment.to_le_bytes()) }
    }

    pub(crate) fn checksum(self, number: u32, covered: &[u8]) -> u32 {
        let seed = crc32c::crc32c_append(self.seed, &number.to_le_bytes());
        crc32c::crc32c_append(seed, covered)
    }

    /// Appends the sectors of a payload to `out`, the last one filled up with zeros. `starts`: a record starts here.
    // spec: STORE-1
    pub(crate) fn write(self, first: u32, generation: u32, starts: bool, payload: &[u8], out: &mut Vec<u8>) {
        out.reserve(payload.len().div_ceil(PAYLOAD_BYTES) * SECTOR_BYTES);
        for (number, part) in (first..).zip(payload.chunks(PAYLOAD_BYTES)) {
            let at = out.len();
            out.extend_from_slice(part);
            out.resize(at + PAYLOAD_BYTES, 0);
            let stamp = Stamp { generation, starts: starts && number == first };
            out.extend_from_slice(&stamp.to_u32().to_le_bytes());
            let checksum = self.checksum(number, &out[at..]);
            out.extend_from_slice(&checksum.to_le_bytes());
        }
    }

    /// Says what the bytes of a sector are.
    // spec: STORE-2
    pub(crate) fn check(self, number: u32, sector: &[u8]) -> Found {
        assert_eq!(sector.len(), SECTOR_BYTES, "sectors are read whole");
        let word = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().expect("four bytes"));
        if word(CHECKSUM_AT) == self.checksum(number, &sector[..CHECKSUM_AT]) {
            return Found::Valid(Stamp::from_u32(word(STAMP_AT)));
        }
        if sector.iter().all(|byte| *byte == 0) { Found::Zero } else { Found::Damaged }
    }

    /// What a damaged sector may have been before one byte of it changed: every sector that differs from it in one byte and
    /// was never written, or whose checksum holds. It is one, if it was no more than a byte: of other damage, one in thirty
    /// thousand looks as if there were one. Takes some milliseconds.
    pub(crate) fn one_byte_off(self, number: u32, sector: &Sector) -> Vec<Sector> {
        let mut found = Vec::new();
        let mut candidate = *sector;
        for at in 0..SECTOR_BYTES {
            for byte in (0..=u8::MAX).filter(|byte| *byte != sector[at]) {
                candidate[at] = byte;
                if self.check(number, &candidate) != Found::Damaged {
                    found.push(candidate);
                }
            }
            candidate[at] = sector[at];
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec: STORE-1. A sector moved to another place, file or store is damage, and so is every flipped bit.
    #[test]
    fn a_sector_is_valid_only_where_it_was_written() {
        let seal = Seal::new(&[7; 16], 3);
        let mut sector = Vec::new();
        seal.write(9, 5, true, b"payload", &mut sector);
        assert_eq!(seal.check(9, &sector), Found::Valid(Stamp { generation: 5, starts: true }));
        assert_eq!(seal.check(8, &sector), Found::Damaged);
        assert_eq!(Seal::new(&[7; 16], 4).check(9, &sector), Found::Damaged);
        assert_eq!(Seal::new(&[8; 16], 3).check(9, &sector), Found::Damaged);
        for bit in 0..SECTOR_BYTES * 8 {
            let mut flipped = sector.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(seal.check(9, &flipped), Found::Damaged, "bit {bit}");
        }
        assert_eq!(seal.check(9, &[0; SECTOR_BYTES]), Found::Zero);
    }

    /// spec: STORE-16. Whichever byte of a sector changed, the checksum tells what it was, and nothing else.
    #[test]
    fn a_sector_with_one_byte_changed_is_told_by_its_checksum() {
        let seal = Seal::new(&[7; 16], 3);
        let mut right = Vec::new();
        seal.write(9, 5, true, &[0x5a; 400], &mut right);
        let right: Sector = right.try_into().unwrap();
        for sector in [right, [0; SECTOR_BYTES]] {
            for at in (0..SECTOR_BYTES).step_by(37).chain([STAMP_AT, CHECKSUM_AT, SECTOR_BYTES - 1]) {
                let mut changed = sector;
                changed[at] ^= 0x81;
                assert_eq!(seal.one_byte_off(9, &changed), [sector], "byte {at}");
            }
        }
        let mut lost = right;
        lost[..200].fill(1);
        assert_eq!(seal.one_byte_off(9, &lost), [] as [Sector; 0]);
    }
}
