//! For fuzzing only: what nobody outside the crate can reach, fed with any bytes. Not part of the interface.
//!
//! Checksums that a fuzzer could not guess are put before the input, so that what lies behind them is reached; the same
//! input is also read as it is. Trusts nothing and panics when a promise is broken. Called by `tools/hostile`
//! (docs/decisions/0007).

use crate::packed::{PACKED_BYTES_MAX, pack, sealed, unpack};

/// What the reader knows: something that honest frames go back to.
const KNOWN: &[u8] = b"what a block's body says, what its receipts say, and the hashes that follow from them";

/// Unpacks history as a database keeps it, and says whether it is history (spec: HISTORY-11).
///
/// # Panics
/// If more comes out than may, or what came out is not packed and unpacked to the same.
#[must_use]
pub fn packed(input: &[u8]) -> bool {
    let behind_a_checksum = input.split_first_chunk().map(|(len, frame)| sealed(u32::from_le_bytes(*len), frame));
    let read = |packed: &[u8]| {
        let Ok(found) = unpack(packed, KNOWN) else { return false };
        assert!(found.len() <= packed.len().max(PACKED_BYTES_MAX as usize), "more came out than may");
        let again = pack(&found, KNOWN);
        assert!(again.len() <= found.len() + 1, "packed it is larger");
        assert_eq!(unpack(&again, KNOWN).as_deref(), Ok(&*found), "packed it is something else");
        true
    };
    let whole = read(input);
    behind_a_checksum.is_some_and(|packed| read(&packed)) || whole
}

/// Inputs that [`packed`] accepts: of each form, as they are and behind a checksum.
#[must_use]
pub fn packed_seeds() -> Vec<Vec<u8>> {
    let again = [KNOWN, b", said again, and again", KNOWN].concat();
    let [plain, repeated] = [pack(b"short", KNOWN), pack(&again, KNOWN)];
    let behind = [&repeated[1..5], &repeated[9..]].concat();
    vec![plain, repeated, behind]
}
