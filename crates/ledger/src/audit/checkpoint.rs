//! What an outsider keeps of the log, and what it is shown of it.
//!
//! Everything here is checked with no store at hand, and comes from an adversary until it is.
//!
//! Rules: `spec/audit.md`, AUDIT-7 and AUDIT-8. Vectors: `spec/vectors/audit.json`.

use super::{AuditLog, AuditRecord, log_place};
use crate::keys::{self, SecretKey, Signature, SignatureError, verify};
use keelstone_codec::{Blob, ChainId, Decode as _, Hash, Height, Key, Namespace, Root, Tag};
use keelstone_execution::PublicKey;
use keelstone_execution::mmr::{Mmr, MmrInclusion};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Answer, Hasher, Proof, ProofError, ProofLimits, Query};

const CHECKPOINT: Tag = Tag::new("audit/checkpoint");

/// Where the log stood at a height: all it takes to find out later whether it was only added to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Checkpoint {
    /// The chain.
    pub chain_id: ChainId,
    /// The hash of its genesis.
    pub genesis_hash: Hash,
    /// The height.
    pub height: Height,
    /// The root of the state at that height, which holds the log.
    pub root: Root,
    /// The log.
    pub log: Mmr<AuditLog>,
}

/// A checkpoint with the signature of whoever says so.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct SignedCheckpoint {
    /// What is said.
    pub checkpoint: Checkpoint,
    /// Who says so.
    pub signer: PublicKey,
    /// The signature over [`Checkpoint::sign_bytes`].
    pub signature: Signature,
}

impl Checkpoint {
    /// The bytes that are signed: `keelstone/audit/checkpoint`, a zero byte, and the encoding.
    // spec: AUDIT-7
    #[must_use]
    pub fn sign_bytes(&self) -> Vec<u8> {
        keys::sign_bytes(CHECKPOINT, self)
    }

    /// Signs it.
    #[must_use]
    pub fn sign(self, key: &SecretKey) -> SignedCheckpoint {
        let signature = key.sign(&self.sign_bytes());
        SignedCheckpoint { checkpoint: self, signer: key.public(), signature }
    }
}

impl SignedCheckpoint {
    /// Verifies the signature. Whether the signer is one to believe is the reader's to know.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(&self) -> Result<(), SignatureError> {
        verify(&self.signer, &self.checkpoint.sign_bytes(), &self.signature)
    }
}

/// That a record stands at its place in the log of a state, and that this is the log of that state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct AuditProof {
    /// The record.
    pub record: AuditRecord,
    /// Its place in the log.
    pub inclusion: MmrInclusion,
    /// The log.
    pub log: Mmr<AuditLog>,
    /// The height of the state.
    pub height: Height,
    /// The state's root.
    pub root: Root,
    /// A proof that the state holds the log.
    pub state: Blob<STATE_PROOF_BYTES_MAX>,
}

/// Most bytes of the proof that a state holds an entry with a small value: a log, or a block's record.
pub(crate) const STATE_PROOF_BYTES_MAX: usize = 1 << 20;

/// The value of the entry at a place, as a proof shows it under a root; none if it is absent, or not shown.
///
/// # Errors
/// [`ProofError`].
pub(crate) fn shown<H: Hasher>(
    proof: &[u8],
    root: Root,
    (namespace, key): (Namespace, Key),
) -> Result<Option<Vec<u8>>, ProofError> {
    let limits = ProofLimits { bytes: STATE_PROOF_BYTES_MAX, ..ProofLimits::default() };
    let query = Query::Key(namespace.clone(), key.clone());
    let shown = Proof::decode_within(proof, &limits)?.verify::<H>(root, &[query], &limits)?;
    match shown.get(&namespace, &key) {
        Answer::Present(value) => Ok(Some(value.to_vec())),
        _ => Ok(None),
    }
}

/// What is wrong with a proof about the log. Whoever made it has to act.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditProofError {
    /// The proof of the state is none.
    #[error("the log in the state: {0}")]
    State(#[from] ProofError),
    /// The state holds another log.
    #[error("the state with root {root} does not hold this log of {count} records")]
    OtherLog {
        /// The state's root.
        root: Root,
        /// Records of the log that was shown.
        count: u64,
    },
    /// The record does not stand there.
    #[error("record {index} is not in the log of {count} records")]
    Absent {
        /// The place.
        index: u64,
        /// Records of the log.
        count: u64,
    },
}

impl AuditProof {
    /// Checks it against the root it names. Whether that is the chain's root is the reader's to know.
    ///
    /// # Errors
    /// [`AuditProofError`]: the first thing that is wrong.
    // spec: AUDIT-8
    pub fn verify<H: Hasher>(&self) -> Result<(), AuditProofError> {
        let (count, index) = (self.log.count(), self.inclusion.index);
        let shown = shown::<H>(&self.state, self.root, log_place())?.and_then(|value| Mmr::from_bytes(&value).ok());
        if shown.as_ref() != Some(&self.log) {
            return Err(AuditProofError::OtherLog { root: self.root, count });
        }
        match self.log.includes(&self.record.item(), &self.inclusion) {
            true => Ok(()),
            false => Err(AuditProofError::Absent { index, count }),
        }
    }
}
