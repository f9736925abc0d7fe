//! History as the database keeps it: compressed, and against what is known already.
//!
//! ```text
//! 00 bytes                                    as they are
//! 01 length u32, checksum u32, zstd frame     compressed; the length is that of what comes out
//! ```
//!
//! A block's receipts say again whose transactions they are of and which functions were called; its audit records say again
//! almost all of both, and hashes of the rest. So each is packed against what comes before it: receipts against the body
//! with the hashes that follow from it, audit records against all of that with the receipts and the hashes that follow from
//! them. What is left of an audit record is little more than where things stand. Nothing depends on another block, so each
//! is read by itself, and damage of one is damage of no other.
//!
//! Nothing is named by packed bytes: what comes out is decoded strictly and compared with the state, as it always was. The
//! database's bytes are taken to be damaged; the checksum is there because a frame has bits that nothing is read from, and
//! damage of those is damage all the same.
//!
//! Rules: `spec/ledger.md`, HISTORY-11. Vectors: `spec/vectors/ledger.json`.

use crate::block::{Block, BlockRecord, Continuation, OperationReceipt, Receipt};
use crate::transaction::TxId;
use keelstone_codec::Hash;
use keelstone_execution::{SessionId, args_hash, result_hash};
use keelstone_store::frames::{self, FrameError};
use std::borrow::Cow;

const RAW: u8 = 0;
const ZSTD: u8 = 1;

/// The level of zstd. Lower ones look at every third place of what is known only; higher ones gain next to nothing, since
/// what can be saved is repetition.
const LEVEL: i32 = 3;

/// Most bytes of a body, or of receipts, continuations or audit records, that are kept compressed: four times what a block
/// holds by default. Longer ones are kept as they are, so that no frame makes its reader reserve more.
pub(crate) const PACKED_BYTES_MAX: u32 = 64 << 20;

/// Why bytes are nothing that was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("there are no bytes")]
    Empty,
    #[error("their form is {0}, which nobody knows")]
    Form(u8),
    #[error("they end early")]
    Short,
    #[error("they have checksum {found:08x}, and say {said:08x}")]
    Checksum { found: u32, said: u32 },
    #[error("they say that they hold {found} bytes, the limit is {PACKED_BYTES_MAX}")]
    TooLarge { found: u32 },
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Packs bytes against what is known already; as they are if that is shorter.
// spec: HISTORY-11
pub(crate) fn pack(bytes: &[u8], known: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= PACKED_BYTES_MAX);
    // What cannot be compressed for lack of memory is as good as it is.
    let frame = len.and_then(|len| Some((len, frames::compress(bytes, known, LEVEL).ok()?)));
    match frame {
        Some((len, frame)) if 8 + frame.len() < bytes.len() => sealed(len, &frame),
        _ => [&[RAW], bytes].concat(),
    }
}

/// What was packed against the same known bytes. Reserves no more than [`PACKED_BYTES_MAX`].
///
/// # Errors
/// [`UnpackError`].
// spec: HISTORY-11
pub(crate) fn unpack<'a>(packed: &'a [u8], known: &[u8]) -> Result<Cow<'a, [u8]>, UnpackError> {
    let (form, rest) = packed.split_first().ok_or(UnpackError::Empty)?;
    match *form {
        RAW => Ok(Cow::Borrowed(rest)),
        ZSTD => {
            let (len, rest) = rest.split_first_chunk().ok_or(UnpackError::Short)?;
            let (said, frame) = rest.split_first_chunk().ok_or(UnpackError::Short)?;
            let (len, said) = (u32::from_le_bytes(*len), u32::from_le_bytes(*said));
            if len > PACKED_BYTES_MAX {
                return Err(UnpackError::TooLarge { found: len });
            }
            let found = checksum(len, frame);
            if found != said {
                return Err(UnpackError::Checksum { found, said });
            }
            Ok(Cow::Owned(frames::decompress(frame, len, known)?))
        }
        form => Err(UnpackError::Form(form)),
    }
}

/// The compressed form.
pub(crate) fn sealed(len: u32, frame: &[u8]) -> Vec<u8> {
    [&[ZSTD], &len.to_le_bytes()[..], &checksum(len, frame).to_le_bytes(), frame].concat()
}

/// CRC-32C of the length and the frame.
fn checksum(len: u32, frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&len.to_le_bytes()), frame)
}

/// What is known of a block, in the order in which it comes to be known.
pub(crate) struct Known(Vec<u8>);

impl Known {
    /// What a body says, and what follows from it: of each transaction its identity and its session.
    pub(crate) fn body(body: &[u8], block: &Block, ids: impl Iterator<Item = TxId>) -> Self {
        let mut known = Self(Vec::with_capacity(body.len() + 64 * block.transactions.len()));
        known.0.extend_from_slice(body);
        for (signed, id) in block.transactions.iter().zip(ids) {
            let transaction = &signed.transaction;
            let root = || SessionId::root(&transaction.chain_id, &transaction.sender);
            known.hash(&id.0);
            known.hash(&transaction.session.unwrap_or_else(root).0);
        }
        known
    }

    /// What receipts and continuations say, and what follows from them: of each operation the hashes of its arguments and
    /// of its result.
    pub(crate) fn outcomes(
        mut self,
        block: &Block,
        (receipts, parsed): (&[u8], &[Receipt]),
        (continuations, batches): (&[u8], &[Continuation]),
    ) -> Self {
        self.0.extend_from_slice(receipts);
        self.0.extend_from_slice(continuations);
        for (signed, receipt) in block.transactions.iter().zip(parsed) {
            for (called, ran) in signed.transaction.bundle.operations().iter().zip(receipt.operations()) {
                self.hash(&args_hash(&called.args));
                self.result(ran);
            }
        }
        batches.iter().flat_map(Continuation::operations).for_each(|ran| self.result(ran));
        self
    }

    /// What the block's record in state says, which its audit record says again.
    pub(crate) fn record(mut self, record: &BlockRecord) -> Self {
        self.hash(&record.previous_root.0);
        self.hash(&record.previous_record);
        self.hash(&record.transactions_root);
        self.hash(&record.receipts_root);
        self.hash(&record.continuations_root);
        self
    }

    fn result(&mut self, ran: &OperationReceipt) {
        self.hash(&result_hash(&ran.result));
    }

    fn hash(&mut self, hash: &Hash) {
        self.0.extend_from_slice(&hash.0);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec: HISTORY-11. What is packed is unpacked, with what was known; what cannot be made smaller takes one byte more.
    #[test]
    fn what_is_packed_is_unpacked() {
        let known: Vec<u8> = (0..40u8).flat_map(|number| args_hash(&[number]).0).collect();
        let noise: Vec<u8> = (0..40u8).flat_map(|number| result_hash(&[number]).0).collect();
        for bytes in [&[][..], &[0], &[7; 1000], &known[64..128], &noise] {
            for known in [&[][..], &known] {
                let packed = pack(bytes, known);
                assert!(packed.len() <= bytes.len() + 1);
                assert_eq!(unpack(&packed, known), Ok(Cow::Borrowed(bytes)));
            }
        }
        // A copy: what lies within the prefix itself is taken to have changed it.
        let repeated = known[32..1280].to_vec();
        assert!(pack(&repeated, &known).len() < 44);
    }

    /// spec: HISTORY-11. Whichever bit of a frame is another, it is damage: also one that nothing is read from.
    #[test]
    fn every_changed_bit_of_a_frame_is_found() {
        let known: Vec<u8> = (0..40u8).flat_map(|number| args_hash(&[number]).0).collect();
        let raw: Vec<u8> = [&known[64..320], &[7; 300], b"and more", &known[640..700]].concat();
        let packed = pack(&raw, &known);
        assert_eq!(packed[0], ZSTD);
        for bit in 8..packed.len() * 8 {
            let mut changed = packed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let found = unpack(&changed, &known);
            assert!(matches!(found, Err(UnpackError::Checksum { .. } | UnpackError::TooLarge { .. })), "bit {bit}");
        }
    }

    /// spec: HISTORY-11. S-06: what a damaged database says of a length reserves nothing beyond the limit, and what expands a
    /// thousandfold stops at what it says.
    #[test]
    fn s06_what_was_packed_stops_at_its_length() {
        let bomb = pack(&vec![0; 1 << 20], &[]);
        assert!(bomb.len() * 1000 < 1 << 20);
        let frame = &bomb[9..];
        let saying = |len: u32| sealed(len, frame);
        assert_eq!(saying(1 << 20), bomb);
        for len in [0, 1000, (1 << 20) - 1, (1 << 20) + 1] {
            assert!(matches!(unpack(&saying(len), &[]), Err(UnpackError::Frame(FrameError::Rule { .. }))), "{len}");
        }
        let found = PACKED_BYTES_MAX + 1;
        assert_eq!(unpack(&saying(found), &[]), Err(UnpackError::TooLarge { found }));
        assert_eq!(unpack(&[], &[]), Err(UnpackError::Empty));
        assert_eq!(unpack(&[2, 0], &[]), Err(UnpackError::Form(2)));
        for len in 1..9 {
            assert_eq!(unpack(&bomb[..len], &[]), Err(UnpackError::Short));
        }
        // Longer than the limit it is kept as it is.
        let long = vec![0; PACKED_BYTES_MAX as usize + 1];
        let packed = pack(&long, &[]);
        assert_eq!((packed[0], packed.len()), (RAW, long.len() + 1));
    }
}
