//! Checking a step of a chain with no store at hand.
//!
//! A [`TransitionProof`] says: this block makes this new root of that old root. It carries a witness, a proof of all
//! the block reads and of the ways of all it writes, so a verifier runs the block itself: it checks every signature,
//! runs every operation with the functions it knows, and works out the new root from the witness. It needs the chain's
//! registry and nothing else, and believes nothing it is given. What it answers is either yes or the first thing that
//! is wrong.
//!
//! Whoever has the old root from a source it trusts, and a verified transition, may trust the new one.
//!
//! Rules: `spec/ledger.md`, HISTORY-5 and HISTORY-6.

use crate::SignatureError;
use crate::block::{Block, BlockRecord, Verdict};
use crate::ledger::{Ledger, LedgerError};
use crate::run::{self, BlockError, Executed, Refused};
use keelstone_codec::{Blob, Height, Root};
use keelstone_execution::{Halt, Recorder, Registry};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Hasher, Proof, ProofError, ProofLimits, Verified, WitnessError};

/// Most bytes of a witness.
pub const WITNESS_BYTES_MAX: usize = 64 << 20;

/// What a verifier takes of a witness.
const WITNESS_LIMITS: ProofLimits = ProofLimits { bytes: WITNESS_BYTES_MAX, nodes: 1 << 22 };

/// A claim that a block leads from one root to another, and what it takes to check it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct TransitionProof {
    /// The root before.
    pub old_root: Root,
    /// The root after.
    pub new_root: Root,
    /// The block.
    pub block: Block,
    /// The record the block is said to leave; none if it is empty.
    pub record: Option<BlockRecord>,
    /// A proof under the old root of all that the block reads, and of the way of all that it writes.
    pub witness: Blob<WITNESS_BYTES_MAX>,
}

/// What is wrong with a transition. Whoever made it has to act, but for [`TransitionError::Halt`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransitionError {
    /// A signature is not good.
    #[error("transaction {index}: {source}")]
    Signature {
        /// The transaction's place.
        index: usize,
        /// What is wrong.
        source: SignatureError,
    },
    /// The witness is no proof under the old root.
    #[error("the witness: {0}")]
    Witness(#[from] ProofError),
    /// The witness does not show something the block reads or writes.
    #[error("the witness does not show {what}")]
    Incomplete {
        /// Namespace and key.
        what: String,
    },
    /// The block cannot follow the old state.
    #[error("the block: {0}")]
    Block(BlockError),
    /// A transaction may not be in the block: it would not have been run.
    #[error("transaction {index} is refused: {reason}")]
    Refused {
        /// Its place.
        index: usize,
        /// Why.
        reason: String,
    },
    /// The record is not the one the block leaves.
    #[error("the record's {field} is {found}, running the block gives {expected}")]
    Record {
        /// The first field that differs.
        field: &'static str,
        /// What running the block gives.
        expected: String,
        /// What the record says.
        found: String,
    },
    /// The new root is not the one the block leads to.
    #[error("the new root is said to be {found}, running the block gives {expected}")]
    Root {
        /// What running the block gives.
        expected: Root,
        /// What was claimed.
        found: Root,
    },
    /// The old root commits to sums that no state has.
    #[error("the old root commits to sums that no state has")]
    Overflow,
    /// The functions at hand failed in a way that says nothing about the block.
    #[error(transparent)]
    Halt(Halt),
}

/// A witness that leads to a root, ready to be read.
///
/// # Errors
/// [`ProofError`].
pub fn witness<H: Hasher>(bytes: &[u8], root: Root) -> Result<Verified<H>, ProofError> {
    Proof::decode_within(bytes, &WITNESS_LIMITS)?.verify_unasked::<H>(root, &WITNESS_LIMITS)
}

/// Checks that a block leads from one root to another, and gives what it came to.
///
/// # Errors
/// [`TransitionError`]: the first thing that is wrong, in this order: signatures, witness, block, refused transactions,
/// record, new root.
// spec: HISTORY-6
pub fn verify_transition<H: Hasher>(registry: &Registry, claim: &TransitionProof) -> Result<Executed, TransitionError> {
    for (index, transaction) in claim.block.transactions.iter().enumerate() {
        transaction.verify().map_err(|source| TransitionError::Signature { index, source })?;
    }
    let state = witness::<H>(&claim.witness, claim.old_root)?;
    let executed = run::execute(registry, state.clone(), claim.old_root, claim.block.clone(), Refused::Receipt)
        .map_err(|error| match error {
            BlockError::Halt(Halt::WitnessIncomplete { namespace, key }) => {
                TransitionError::Incomplete { what: format!("{namespace}/{}", key.escape_ascii()) }
            }
            BlockError::Halt(halt) => TransitionError::Halt(halt),
            error => TransitionError::Block(error),
        })?;
    for (index, receipt) in executed.receipts.iter().enumerate() {
        if let Verdict::Refused { reason, .. } = &receipt.verdict {
            return Err(TransitionError::Refused { index, reason: reason.to_string() });
        }
    }
    same_record(executed.record.as_ref(), claim.record.as_ref())?;
    let expected = state.apply(&executed.changes.to_diff()).map_err(|error| match error {
        WitnessError::Incomplete { namespace, key } => {
            TransitionError::Incomplete { what: format!("{namespace}/{}", key.escape_ascii()) }
        }
        _ => TransitionError::Overflow,
    })?;
    if expected != claim.new_root {
        return Err(TransitionError::Root { expected, found: claim.new_root });
    }
    Ok(executed)
}

/// Names the first field in which two records differ.
pub(crate) fn same_record(expected: Option<&BlockRecord>, found: Option<&BlockRecord>) -> Result<(), TransitionError> {
    let (expected, found) = match (expected, found) {
        (None, None) => return Ok(()),
        (Some(expected), Some(found)) => (expected, found),
        (expected, found) => {
            let say = |record: Option<&BlockRecord>| if record.is_some() { "one" } else { "none" }.to_owned();
            return Err(TransitionError::Record { field: "existence", expected: say(expected), found: say(found) });
        }
    };
    let fields: [Part<BlockRecord>; 11] = [
        ("height", |record| record.height.to_string()),
        ("time", |record| record.time.to_string()),
        ("previous root", |record| record.previous_root.to_string()),
        ("previous record", |record| record.previous_record.to_string()),
        ("proposer", |record| record.proposer.to_string()),
        ("number of transactions", |record| record.transactions.to_string()),
        ("transactions root", |record| record.transactions_root.to_string()),
        ("receipts root", |record| record.receipts_root.to_string()),
        ("number of continuations", |record| record.continuations.to_string()),
        ("continuations root", |record| record.continuations_root.to_string()),
        ("diff", |record| format!("{:?}", record.diff)),
    ];
    match first_difference(&fields, expected, found) {
        None => Ok(()),
        Some((field, expected, found)) => Err(TransitionError::Record { field, expected, found }),
    }
}

/// The name of a part of something, and how what it holds is said.
pub(crate) type Part<T> = (&'static str, fn(&T) -> String);

/// The first part in which the found one differs from the expected one, with what each says there.
pub(crate) fn first_difference<T>(
    parts: &[Part<T>],
    expected: &T,
    found: &T,
) -> Option<(&'static str, String, String)> {
    parts.iter().find_map(|(name, say)| {
        let (expected, found) = (say(expected), say(found));
        (expected != found).then_some((*name, expected, found))
    })
}

impl<H: Hasher> Ledger<H> {
    /// Makes the proof that a height's block leads from the root before it to its own.
    ///
    /// # Errors
    /// [`LedgerError`] if the block or the versions on both sides of it are not kept.
    // spec: HISTORY-5
    pub fn transition(&self, height: Height) -> Result<TransitionProof, LedgerError> {
        let block = self.block(height)?;
        let below = height.prev().ok_or(LedgerError::NoBlock { height })?;
        let (before, after) = (self.view_at(below)?, self.view_at(height)?);
        let recorder = Recorder::new(before.clone());
        let executed = run::execute(self.registry(), recorder.clone(), before.root(), block.clone(), Refused::Receipt)?;
        let mut queries = recorder.take().queries();
        queries.extend(executed.changes.to_diff().queries());
        let witness = before.prove(&queries)?.encode();
        let found = witness.len() as u64;
        let witness = Blob::new(witness).map_err(|_| {
            let limit = WITNESS_BYTES_MAX as u64;
            keelstone_store::StoreError::TooLarge { what: "the witness", found, limit }
        })?;
        let (old_root, new_root) = (before.root(), after.root());
        Ok(TransitionProof { old_root, new_root, block, record: executed.record, witness })
    }
}
