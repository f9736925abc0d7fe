//! What an outsider keeps of the log, and what it is shown of it.
//!
//! Everything here is checked with no store at hand, and comes from an adversary until it is.
//!
//! Rules: `spec/audit.md`, AUDIT-7, AUDIT-8 and AUDIT-14. Vectors: `spec/vectors/audit.json`.

use super::{AuditLog, AuditRecord, log_place};
use crate::chain::{self, ChainFacts};
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

    /// What a proof has to show of the state, so that everything the checkpoint says is found in it.
    pub(crate) fn places() -> [(Namespace, Key); 4] {
        let [facts, genesis_hash, tip] = chain::places();
        [log_place(), facts, genesis_hash, tip]
    }

    /// Checks that the state under its root holds this log and is of this chain and genesis, and gives the height of the last
    /// block record in it; none before the first. The height is at least that. Whether the root is the chain's is the reader's to
    /// know.
    ///
    /// # Errors
    /// [`AuditProofError`]: the first thing that is wrong.
    // spec: AUDIT-14
    pub fn verify_state<H: Hasher>(&self, proof: &[u8]) -> Result<Option<Height>, AuditProofError> {
        let places = Self::places();
        let [log, facts, genesis_hash, tip] = all_shown::<H, 4>(proof, self.root, &places)?;
        let other = |what: String| AuditProofError::OtherChain { root: self.root, what };
        let log = log.map_or_else(|| Some(Mmr::default()), |value| Mmr::from_bytes(&value).ok());
        if log.as_ref() != Some(&self.log) {
            return Err(AuditProofError::OtherLog { root: self.root, count: self.log.count() });
        }
        let facts = facts.and_then(|value| ChainFacts::from_bytes(&value).ok());
        let facts = facts.ok_or_else(|| other("its facts do not decode".to_owned()))?;
        if (&facts.chain_id, facts.hasher) != (&self.chain_id, H::KIND) {
            return Err(other(format!("it is of {} under {}", facts.chain_id, facts.hasher)));
        }
        let found = genesis_hash.and_then(|value| Hash::from_bytes(&value).ok());
        if found != Some(self.genesis_hash) {
            return Err(other(format!("its genesis has hash {}", found.unwrap_or_default())));
        }
        let tip = tip.map(|value| Height::from_bytes(&value)).transpose();
        let tip = tip.map_err(|error| other(format!("the height of its last record does not decode: {error}")))?;
        let lowest = tip.or_else(|| facts.initial_height.prev()).unwrap_or_default();
        if self.height < lowest {
            return Err(other(format!("its last record is of height {lowest}, above {}", self.height)));
        }
        Ok(tip)
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
    let [value] = all_shown::<H, 1>(proof, root, &[(namespace, key)])?;
    Ok(value)
}

/// As [`shown`], of several places with one proof.
fn all_shown<H: Hasher, const N: usize>(
    proof: &[u8],
    root: Root,
    places: &[(Namespace, Key); N],
) -> Result<[Option<Vec<u8>>; N], ProofError> {
    let limits = ProofLimits { bytes: STATE_PROOF_BYTES_MAX, ..ProofLimits::default() };
    let queries = places.each_ref().map(|(namespace, key)| Query::Key(namespace.clone(), key.clone()));
    let shown = Proof::decode_within(proof, &limits)?.verify::<H>(root, &queries, &limits)?;
    Ok(places.each_ref().map(|(namespace, key)| match shown.get(namespace, key) {
        Answer::Present(value) => Some(value.to_vec()),
        _ => None,
    }))
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
    /// The state is of another chain, genesis or height.
    #[error("the state with root {root} is another one: {what}")]
    OtherChain {
        /// The state's root.
        root: Root,
        /// What was compared.
        what: String,
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
