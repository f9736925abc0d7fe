//! What a recovery did, in a form that is signed and can be checked without the node.
//!
//! Layout and rules: `spec/recovery.md`, RECOVER-4, RECOVER-5. Vectors: `spec/vectors/recovery.json`.

use super::{Depth, Outcome, Strategy, Target, Trust};
use keelstone_codec::{
    BoundedList, ChainId, Decode, DecodeError, Encode, Hash, Height, Reader, Root, Tag, Text, Timestamp,
};
use keelstone_macros::{Decode, Encode};

/// Most bytes of a reason: what is longer is cut.
pub const REASON_BYTES_MAX: usize = 512;
/// Most bytes of a signed report.
pub const REPORT_BYTES_MAX: usize = 16 << 10;
/// Attempts in a report: each strategy once.
const ATTEMPTS_MAX: usize = Strategy::ALL.len();

/// What is signed begins with `keelstone/`, this and a zero byte.
const TAG: Tag = Tag::new("recovery-report");

/// One strategy that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Attempt {
    /// Which.
    pub strategy: Strategy,
    /// Why it came to nothing; none of the one whose result counts.
    pub failed: Option<Text<REASON_BYTES_MAX>>,
    /// Entries of the state it built; none of one that failed, and so for the blocks.
    pub entries: u64,
    /// Blocks it ran for that.
    pub blocks: u64,
}

/// What a recovery did.
// spec: RECOVER-4
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Report {
    /// The format, 1.
    pub version: u8,
    /// The chain.
    pub chain_id: ChainId,
    /// The hash of its genesis.
    pub genesis_hash: Hash,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// The height that was to be had again.
    pub height: Height,
    /// Its root.
    pub root: Root,
    /// Why that root was trusted.
    pub trust: Trust,
    /// How the result was checked.
    pub depth: Depth,
    /// What was tried, in order.
    pub attempts: BoundedList<Attempt, ATTEMPTS_MAX>,
}

impl Report {
    /// The format there is.
    pub const VERSION: u8 = 1;

    /// Of a recovery of a chain.
    #[must_use]
    pub fn of(
        (chain_id, genesis_hash): (ChainId, Hash),
        (began, ended): (Timestamp, Timestamp),
        target: &Target,
        depth: Depth,
        outcome: &Outcome,
    ) -> Self {
        let attempt = |(strategy, result): &(Strategy, Result<super::Built, super::Failed>)| match result {
            Ok(built) => Attempt { strategy: *strategy, failed: None, entries: built.entries, blocks: built.blocks },
            Err(failed) => {
                Attempt { strategy: *strategy, failed: Some(cut(&failed.to_string())), entries: 0, blocks: 0 }
            }
        };
        let attempts: Vec<Attempt> = outcome.attempts.iter().take(ATTEMPTS_MAX).map(attempt).collect();
        Self {
            version: Self::VERSION,
            chain_id,
            genesis_hash,
            began,
            ended,
            height: target.height,
            root: target.root,
            trust: target.trust,
            depth,
            attempts: BoundedList::new(attempts).expect("no more than there are strategies"),
        }
    }

    /// The strategy whose result counts, if one does.
    #[must_use]
    pub fn recovered_by(&self) -> Option<Strategy> {
        self.attempts.iter().find(|attempt| attempt.failed.is_none()).map(|attempt| attempt.strategy)
    }

    /// What is signed of it.
    // spec: RECOVER-5
    #[must_use]
    pub fn sign_bytes(&self) -> Vec<u8> {
        let mut bytes = [b"keelstone/", TAG.name().as_bytes(), &[0]].concat();
        self.encode(&mut bytes);
        bytes
    }
}

/// A reason, as much of it as fits.
fn cut(reason: &str) -> Text<REASON_BYTES_MAX> {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let plain: String = reason[..end].chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    Text::new(plain).expect("cut to its limit; no letter was put in the place of a shorter one")
}

/// A report with the key that signed it.
// spec: RECOVER-5
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReport {
    /// The report.
    pub report: Report,
    /// The signer's Ed25519 key.
    pub key: Hash,
    /// The signature over [`Report::sign_bytes`]. Any 64 bytes, until verified by whoever holds the key.
    pub signature: [u8; 64],
}

impl Encode for SignedReport {
    fn encode(&self, out: &mut Vec<u8>) {
        self.report.encode(out);
        self.key.encode(out);
        out.extend_from_slice(&self.signature);
    }
}

impl Decode for SignedReport {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if input.left() > REPORT_BYTES_MAX {
            let (found, limit) = (input.left() as u64, REPORT_BYTES_MAX as u64);
            return Err(DecodeError::TooLarge { what: "recovery report", found, limit });
        }
        let report = Report::decode(input)?;
        if report.version != Report::VERSION {
            return Err(DecodeError::Invalid { what: "recovery report: its version is not 1" });
        }
        let attempts = &report.attempts;
        let failed = attempts.iter().take(attempts.len().saturating_sub(1)).all(|attempt| attempt.failed.is_some());
        if attempts.is_empty() || !failed {
            return Err(DecodeError::Invalid { what: "recovery report: only the last attempt can have succeeded" });
        }
        Ok(Self { report, key: Hash::decode(input)?, signature: input.array()? })
    }
}
