//! What a bundle comes to, before it is sent and with no store at hand; and a proof of that for anybody.
//!
//! [`foresee`] runs one transaction as the only one of the next block. It takes anything that can be read, so a client
//! runs it over a *witness*: a proof of all that the run reads. A [`BundleProof`] says: this bundle, on the state under
//! this root, comes to this receipt and leads to that root. Whoever gets one checks the signature, runs the bundle over
//! the witness with the functions it knows, and works out the new root. It believes nothing it is given, and what it
//! answers is either yes or the first thing that is wrong.
//!
//! The new root is that of the state with what the transaction changes and nothing else. A block adds its own record,
//! so [`crate::TransitionProof`] speaks of the roots of blocks; this speaks of what a bundle does, whoever makes the
//! block and whenever.
//!
//! Rules: `spec/ledger.md`, HISTORY-8 and HISTORY-9. Vectors: `spec/vectors/ledger.json`.

use crate::block::{Block, Continuation, OperationReceipt, Receipt, Verdict};
use crate::chain::Chain;
use crate::check::Refusal;
use crate::keys::{Signature, SignatureError};
use crate::ledger::{Ledger, LedgerError};
use crate::run::{self, BlockError, Run};
use crate::transaction::{SignedTransaction, Transaction};
use crate::transition::{self, Part, WITNESS_BYTES_MAX, first_difference};
use crate::validators::Validators;
use keelstone_codec::{Blob, Hash, Height, Namespace, Root, Timestamp};
use keelstone_execution::{BlockDraft, Changes, Halt, PublicKey, Recorder, Registry};
use keelstone_macros::{Decode, Encode};
use keelstone_store::View;
use keelstone_tree::{HashKind, Hasher, ProofError, Read, ReadError, WitnessError};

/// Where a bundle is run: a state, and what its block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Setting {
    /// The root of the state before.
    pub old_root: Root,
    /// The block's height.
    pub height: Height,
    /// The block's time.
    pub time: Timestamp,
    /// Who makes the block.
    pub proposer: PublicKey,
}

/// What a transaction would come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// The receipt it would get.
    pub receipt: Receipt,
    /// What the chain would do around it by itself.
    pub continuations: Vec<Continuation>,
    /// What it would change: its nonce, its session's record, what its operations write, what the chain does around it, and what
    /// is noted of its sender.
    pub changes: Changes,
}

/// A claim of what a bundle comes to on a state, and what it takes to check it.
// spec: HISTORY-8
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct BundleProof {
    /// The hasher of the chain's tree.
    pub hasher: HashKind,
    /// Where it is run.
    pub setting: Setting,
    /// The bundle, with its sender's signature.
    pub transaction: SignedTransaction,
    /// The receipt it is said to get.
    pub receipt: Receipt,
    /// The root of the state with what it is said to change.
    pub new_root: Root,
    /// A proof under the old root of all that running it reads, and of the way of all that it writes.
    pub witness: Blob<WITNESS_BYTES_MAX>,
}

/// Why nothing can be said of what a transaction comes to.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ForesightError {
    /// The witness does not show something the bundle reads or writes. Ask for one that does.
    #[error("the witness does not show {namespace}/{}", key.escape_ascii())]
    Incomplete {
        /// Where.
        namespace: Namespace,
        /// The first key that is not shown.
        key: Vec<u8>,
    },
    /// The block cannot follow the state. Whoever chose the setting has to act.
    #[error("the block: {0}")]
    Block(BlockError),
    /// The transaction would be refused. Its sender has to act.
    #[error("the transaction would be refused: {0}")]
    Refused(Refusal),
    /// The state could not be read here: no verdict about the bundle.
    #[error(transparent)]
    Halt(Halt),
}

impl From<Halt> for ForesightError {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::WitnessIncomplete { namespace, key } => Self::Incomplete { namespace, key },
            halt => Self::Halt(halt),
        }
    }
}
impl From<BlockError> for ForesightError {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Halt(halt) => halt.into(),
            error => Self::Block(error),
        }
    }
}

/// What is wrong with a [`BundleProof`]. Whoever made it has to act, but for [`ForesightError::Halt`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BundleProofError {
    /// It is of a chain with another hasher.
    #[error("the proof is of a chain that hashes with {found}, not with {expected}")]
    Hasher {
        /// The hasher it is verified with.
        expected: &'static str,
        /// The proof's.
        found: &'static str,
    },
    /// The signature is not good.
    #[error("the signature: {0}")]
    Signature(#[from] SignatureError),
    /// The witness is no proof under the old root.
    #[error("the witness: {0}")]
    Witness(#[from] ProofError),
    /// The bundle cannot be run on what the witness shows.
    #[error(transparent)]
    Foresight(#[from] ForesightError),
    /// The receipt is not the one the bundle gets.
    #[error("the receipt's {field} is {found}, running the bundle gives {expected}")]
    Receipt {
        /// The first part that differs, with the operation's index if it is one's.
        field: String,
        /// What running the bundle gives.
        expected: String,
        /// What the receipt says.
        found: String,
    },
    /// The new root is not the one the bundle leads to.
    #[error("the new root is said to be {found}, running the bundle gives {expected}")]
    Root {
        /// What running the bundle gives.
        expected: Root,
        /// What was claimed.
        found: Root,
    },
    /// The old root commits to sums that no state has.
    #[error("the old root commits to sums that no state has")]
    Overflow,
}

impl From<WitnessError> for BundleProofError {
    fn from(error: WitnessError) -> Self {
        match error {
            WitnessError::Incomplete { namespace, key } => {
                Self::Foresight(ForesightError::Incomplete { namespace, key })
            }
            _ => Self::Overflow,
        }
    }
}

/// Runs one transaction as the only one of a block, over whatever shows what it reads. Its signature is not looked at.
///
/// An async bundle is run as if it were a sync one, with the gas of 16 such: it comes to the links
/// of its batches, unless others write to what it reads between them, or its session runs something else.
///
/// # Errors
/// [`ForesightError`]. A bundle that fails is no error: that is what its receipt says.
// spec: EXEC-17, HISTORY-8
pub fn foresee(
    registry: &Registry,
    state: impl Read + 'static,
    setting: &Setting,
    transaction: &Transaction,
) -> Result<Foreseen, ForesightError> {
    let Setting { old_root, height, time, proposer } = *setting;
    let block = Block { height, time, proposer, transactions: Vec::new() };
    let (Chain { facts, limits, .. }, _, context) = run::ground(&state, old_root, &block, (0, 0))?;
    let share = limits.bundles();
    let run = Run { registry, facts: &facts, limits: &limits, share: &share, height };
    // A signature is no part of what a bundle comes to.
    let signed = SignedTransaction { transaction: transaction.clone(), signature: Signature([0; 64]) };
    let mut draft = BlockDraft::begin(registry, state, context);
    let (ran, changes) = draft.apart(|draft| run.as_one(draft, &signed));
    let (receipt, continuations) = ran?.map_err(ForesightError::Refused)?;
    Ok(Foreseen { receipt, continuations, changes })
}

impl BundleProof {
    /// Makes the proof of what a bundle comes to, over a witness: with no store at hand.
    ///
    /// # Errors
    /// As [`BundleProof::verify`], but for what a proof says beside the witness.
    pub fn make<H: Hasher>(
        registry: &Registry,
        setting: Setting,
        transaction: SignedTransaction,
        witness: Blob<WITNESS_BYTES_MAX>,
    ) -> Result<Self, BundleProofError> {
        transaction.verify()?;
        let state = transition::witness::<H>(&witness, setting.old_root)?;
        let Foreseen { receipt, changes, .. } = foresee(registry, state.clone(), &setting, &transaction.transaction)?;
        let new_root = state.apply(&changes.to_diff())?;
        Ok(Self { hasher: H::KIND, setting, transaction, receipt, new_root, witness })
    }

    /// Checks that the bundle, on the state under the old root, comes to the receipt and leads to the new root. The
    /// chain's functions are all it takes; whoever trusts the old root may trust the rest then.
    ///
    /// # Errors
    /// [`BundleProofError`]: the first thing that is wrong, in this order: hasher, signature, witness, block, transaction, receipt,
    /// new root.
    // spec: HISTORY-9
    pub fn verify<H: Hasher>(&self, registry: &Registry) -> Result<Foreseen, BundleProofError> {
        if self.hasher != H::KIND {
            return Err(BundleProofError::Hasher { expected: H::KIND.name(), found: self.hasher.name() });
        }
        self.transaction.verify()?;
        let state = transition::witness::<H>(&self.witness, self.setting.old_root)?;
        let foreseen = foresee(registry, state.clone(), &self.setting, &self.transaction.transaction)?;
        same_receipt(&foreseen.receipt, &self.receipt)?;
        let expected = state.apply(&foreseen.changes.to_diff())?;
        if expected != self.new_root {
            return Err(BundleProofError::Root { expected, found: self.new_root });
        }
        Ok(foreseen)
    }
}

/// Names the first part in which two receipts differ.
pub(crate) fn same_receipt(expected: &Receipt, found: &Receipt) -> Result<(), BundleProofError> {
    let differ = |field: &str, expected: String, found: String| match expected == found {
        true => Ok(()),
        false => Err(BundleProofError::Receipt { field: field.to_owned(), expected, found }),
    };
    differ("transaction", expected.transaction.to_string(), found.transaction.to_string())?;
    if let (Verdict::Succeeded { session, operations }, Verdict::Succeeded { session: other, operations: others }) =
        (&expected.verdict, &found.verdict)
    {
        differ("session", session.to_string(), other.to_string())?;
        for (index, (expected, found)) in operations.iter().zip(others).enumerate() {
            same_operation(index, expected, found)?;
        }
        differ("number of operations", operations.len().to_string(), others.len().to_string())?;
    }
    differ("verdict", format!("{:?}", expected.verdict), format!("{:?}", found.verdict))?;
    differ("gas", expected.gas_used.to_string(), found.gas_used.to_string())
}

fn same_operation(index: usize, expected: &OperationReceipt, found: &OperationReceipt) -> Result<(), BundleProofError> {
    let fields: [Part<OperationReceipt>; 6] = [
        ("function", |operation| operation.function.to_string()),
        ("result", |operation| hex::encode(&*operation.result)),
        ("diff", |operation| format!("{:?}", operation.diff)),
        ("state hash", |operation| operation.state_hash.to_string()),
        ("events", |operation| format!("{:?}", operation.events)),
        ("gas", |operation| operation.gas_used.to_string()),
    ];
    match first_difference(&fields, expected, found) {
        None => Ok(()),
        Some((field, expected, found)) => {
            Err(BundleProofError::Receipt { field: format!("{field} of operation {index}"), expected, found })
        }
    }
}

/// A proof under a root of all that running a transaction reads, and of the way of all that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Where the transaction would be run if it came now.
    pub setting: Setting,
    /// The encoded proof.
    pub proof: Vec<u8>,
}

impl<H: Hasher> Ledger<H> {
    /// The witness of what a transaction would read and write in the next block, made at this time: also of one that would
    /// fail or be refused, as far as it gets.
    ///
    /// Costs a run of the bundle and a proof of all it touches.
    ///
    /// # Errors
    /// [`LedgerError::WitnessTooLarge`] above [`WITNESS_BYTES_MAX`]; what reading the state says.
    // spec: HISTORY-8
    pub fn witness(&self, transaction: &Transaction, time: Timestamp) -> Result<Witness, LedgerError> {
        let view = self.view();
        let setting = self.setting(&view, time)?;
        let recorder = Recorder::new(view.clone());
        let mut queries = match foresee(self.registry(), recorder.clone(), &setting, transaction) {
            Ok(foreseen) => foreseen.changes.to_diff().queries(),
            Err(ForesightError::Halt(halt)) => return Err(BlockError::Halt(halt).into()),
            // As far as it gets is all that anybody who runs it will read.
            Err(_) => Vec::new(),
        };
        queries.extend(recorder.take().queries());
        let proof = view.prove(&queries)?.encode();
        match proof.len() {
            found if found > WITNESS_BYTES_MAX => Err(LedgerError::WitnessTooLarge { found, limit: WITNESS_BYTES_MAX }),
            _ => Ok(Witness { setting, proof }),
        }
    }

    /// What a transaction would come to if it came now, alone in the next block, made at this time. As [`foresee`], on the last
    /// state: its signature is not looked at, and nothing is kept.
    ///
    /// Costs a run of the bundle.
    ///
    /// # Errors
    /// [`ForesightError`]. A bundle that fails is no error: that is what its receipt says.
    // spec: HISTORY-8
    pub fn dry_run(&self, transaction: &Transaction, time: Timestamp) -> Result<(Setting, Foreseen), ForesightError> {
        let view = self.view();
        let setting = self.setting(&view, time).map_err(Halt::from)?;
        let foreseen = foresee(self.registry(), view, &setting, transaction)?;
        Ok((setting, foreseen))
    }

    /// Where a transaction would be run if it came now, in a block that is made at this time.
    fn setting(&self, view: &View<H>, time: Timestamp) -> Result<Setting, ReadError> {
        let height = view.height().unwrap_or_else(|| self.genesis_height()).next();
        let proposer = match Validators::read(view)? {
            Some(validators) => validators.active.first().map(|validator| validator.key),
            None => self.facts().producers.first().copied(),
        };
        // Where anybody may make a block, nobody stands for anybody.
        let proposer = proposer.unwrap_or(PublicKey(Hash::ZERO));
        Ok(Setting { old_root: view.root(), height, time: time.max(self.time()), proposer })
    }
}
