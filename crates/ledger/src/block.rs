//! Blocks, what became of each of their transactions, and the record each leaves in state.
//!
//! A block is a list of transactions with a height, a time and a proposer; [`crate::execute`] runs one. The record is part of the
//! state of its own height and holds everything of a header but its own root, so the root of a height certifies the block, its
//! changes and its receipts at once (spec: LEDGER-2).
//!
//! Layout and rules: `spec/ledger.md`, BLOCK-1 to BLOCK-9, LEDGER-2. Vectors: `spec/vectors/ledger.json`.

use crate::chain::BLOCKS;
use crate::transaction::{SignedTransaction, TxId};
use keelstone_codec::{
    Blob, Decode, Hash, Height, Key, Namespace, OrderedKey, Root, StateHash, Tag, Text, Timestamp, tagged,
};
use keelstone_execution::bundles::{Batch, BatchEnd, BundleId};
use keelstone_execution::{
    Emitted, Failure, Finished, FunctionHash, Outcome, PublicKey, RESULT_BYTES_MAX, SessionId, Summary, given_weight,
    list_root,
};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Read, ReadError};

/// Longest reason in a receipt, in bytes.
pub const REASON_BYTES_MAX: usize = keelstone_execution::FAILURE_REASON_BYTES_MAX;
/// A block as it is proposed and kept: everything that its execution depends on beside the state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Block {
    /// Its height.
    pub height: Height,
    /// Its time: not before that of the block below.
    pub time: Timestamp,
    /// Who made it.
    pub proposer: PublicKey,
    /// Its transactions, in order.
    pub transactions: Vec<SignedTransaction>,
}

impl Block {
    /// The root of its transactions.
    #[must_use]
    pub fn transactions_root(&self) -> Hash {
        list_root(&self.transactions.iter().map(SignedTransaction::list_hash).collect::<Vec<_>>())
    }
}

/// What the state says of a block: its header but for the root of its own height.
// spec: LEDGER-2
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct BlockRecord {
    /// Its height.
    pub height: Height,
    /// Its time.
    pub time: Timestamp,
    /// The state's root before it.
    pub previous_root: Root,
    /// The hash of the last record before it; of the first, the hash of the genesis.
    pub previous_record: Hash,
    /// Who made it.
    pub proposer: PublicKey,
    /// How many transactions it has.
    pub transactions: u32,
    /// The root of the list of its transactions (spec: BLOCK-3).
    pub transactions_root: Hash,
    /// The digest and sizes of everything it changed but this record.
    pub diff: Summary,
    /// The root of the list of its receipts.
    pub receipts_root: Hash,
    /// What it did for async bundles, in number.
    pub continuations: u32,
    /// The root of the list of that (spec: BLOCK-6).
    pub continuations_root: Hash,
}

impl BlockRecord {
    /// The hash by which the next record names this one.
    #[must_use]
    pub fn hash(&self) -> Hash {
        const RECORD: Tag = Tag::new("block-record");
        tagged(RECORD, self)
    }

    /// Whether it names this block, as far as a block is what was proposed.
    // spec: HISTORY-2
    #[must_use]
    pub fn is_of(&self, block: &Block) -> bool {
        (self.height, self.time, self.proposer) == (block.height, block.time, block.proposer)
            && self.transactions_root == block.transactions_root()
    }

    /// Reads the record of a height; none for a block that was empty, or is not there yet.
    ///
    /// # Errors
    /// [`ReadError`]; a record that does not decode is damage.
    pub fn read(state: &dyn Read, height: Height) -> Result<Option<Self>, ReadError> {
        let (namespace, key) = Self::place(height);
        let Some(value) = state.get(&namespace, &key)? else { return Ok(None) };
        match Self::from_bytes(&value) {
            Ok(record) => Ok(Some(record)),
            Err(error) => Err(ReadError::damaged(format!("the record of block {height} does not decode: {error}"))),
        }
    }

    /// Where the record of a height stands: so that one proof shows it.
    ///
    /// # Panics
    /// Never: a height is a key.
    #[must_use]
    pub fn place(height: Height) -> (Namespace, Key) {
        let mut key = Vec::with_capacity(8);
        height.encode_key(&mut key);
        (Namespace::new(BLOCKS).expect("a constant"), Key::new(key).expect("eight bytes"))
    }
}

/// What became of one transaction.
// spec: BLOCK-4
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Receipt {
    /// Which.
    pub transaction: TxId,
    /// What became of it.
    pub verdict: Verdict,
    /// Gas it used.
    pub gas_used: u64,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum Verdict {
    /// All its operations took effect.
    Succeeded {
        /// The session it ran in.
        session: SessionId,
        /// One for each operation.
        operations: Vec<OperationReceipt>,
    },
    /// None of its operations took effect; its nonce is used (spec: EXEC-5).
    Failed(Failure),
    /// It was not run at all; its nonce is not used. Only another engine puts such a transaction into a block.
    Refused {
        /// [`crate::Refusal::code`].
        code: u16,
        /// Why.
        reason: Text<REASON_BYTES_MAX>,
    },
    /// Its async bundle was taken in, and runs from the next block on.
    Submitted {
        /// The bundle: it is called as the transaction is.
        bundle: BundleId,
        /// The session it runs in.
        session: SessionId,
        /// How many operations it has.
        operations: u32,
    },
}

/// What a block did for an async bundle in flight; or what a function did that the chain called by itself, as a batch of that
/// one operation.
// spec: BLOCK-6, BLOCK-8, BLOCK-9
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Continuation {
    /// The bundle; of a hook what [`keelstone_execution::When::bundle`] says.
    pub bundle: BundleId,
    /// The transaction that hurried it, or around which the function was called; none if the chain did it by itself.
    pub by: Option<TxId>,
    /// The session it runs in.
    pub session: SessionId,
    /// The first operation that was to run.
    pub first: u32,
    /// What it came to.
    pub progress: Progress,
    /// The session's state hash at the bundle's checkpoint afterwards.
    pub state_hash: StateHash,
    /// Gas it used, that of undo included.
    pub gas_used: u64,
}

/// What a batch of an async bundle came to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum Progress {
    /// Operations took effect.
    Advanced {
        /// One for each.
        operations: Vec<OperationReceipt>,
        /// They were the bundle's last.
        is_complete: bool,
    },
    /// An operation failed, and nothing of the batch was kept.
    Stopped(Failure),
    /// The bundle's last height went by.
    Expired,
    /// Nobody decided over it in time: it is left as it stands.
    Abandoned,
}

impl Continuation {
    pub(crate) fn of(batch: Batch, by: Option<TxId>) -> Self {
        let Batch { bundle, session, first, state_hash, gas_used, end, .. } = batch;
        let progress = match end {
            BatchEnd::Advanced { outcomes, is_complete } => {
                Progress::Advanced { operations: outcomes.into_iter().map(OperationReceipt::of).collect(), is_complete }
            }
            BatchEnd::Stopped(failure) => Progress::Stopped(failure),
            BatchEnd::Expired => Progress::Expired,
            BatchEnd::Abandoned => Progress::Abandoned,
        };
        Self { bundle, by, session, first, progress, state_hash, gas_used }
    }

    /// The operations that took effect.
    #[must_use]
    pub fn operations(&self) -> &[OperationReceipt] {
        match &self.progress {
            Progress::Advanced { operations, .. } => operations,
            _ => &[],
        }
    }

    /// What its results and events weigh.
    pub(crate) fn weight(&self) -> u64 {
        weight(self.operations())
    }

    /// What was emitted, with the index of the operation that did.
    pub fn events(&self) -> impl Iterator<Item = (u32, &Emitted)> {
        (self.first..)
            .zip(self.operations())
            .flat_map(|(index, operation)| operation.events.iter().map(move |event| (index, event)))
    }
}

/// What one operation came to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OperationReceipt {
    /// The function it called.
    pub function: FunctionHash,
    /// The result's canonical encoding.
    pub result: Blob<RESULT_BYTES_MAX>,
    /// Its net change, by digest and sizes.
    pub diff: Summary,
    /// The session's state hash afterwards.
    pub state_hash: StateHash,
    /// What it emitted.
    pub events: Vec<Emitted>,
    /// Gas it used.
    pub gas_used: u64,
}

impl Receipt {
    /// Whether the transaction did what it asked for; of an async bundle, that it was taken in.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        matches!(self.verdict, Verdict::Succeeded { .. } | Verdict::Submitted { .. })
    }

    /// The operations that took effect; of an async bundle none, which are those of its batches.
    pub(crate) fn operations(&self) -> &[OperationReceipt] {
        match &self.verdict {
            Verdict::Succeeded { operations, .. } => operations,
            _ => &[],
        }
    }

    /// What was emitted, with the operation that did.
    pub fn events(&self) -> impl Iterator<Item = (usize, &Emitted)> {
        self.operations()
            .iter()
            .enumerate()
            .flat_map(|(index, operation)| operation.events.iter().map(move |e| (index, e)))
    }
}

pub(crate) fn text(mut reason: String) -> Text<REASON_BYTES_MAX> {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    Text::new(reason).expect("just cut")
}

impl OperationReceipt {
    fn of(outcome: Outcome) -> Self {
        Self {
            function: outcome.function,
            result: Blob::new(outcome.result).expect("execution has the same limit"),
            diff: outcome.diff,
            state_hash: outcome.state_hash,
            events: outcome.events,
            gas_used: outcome.gas_used,
        }
    }
}

/// What the results and events of operations weigh beside what a block changed.
// spec: BLOCK-7
pub(crate) fn weight(operations: &[OperationReceipt]) -> u64 {
    let weights = operations.iter().map(|operation| given_weight(&operation.result, &operation.events));
    weights.fold(0, u64::saturating_add)
}

pub(crate) fn succeeded(finished: Finished) -> (Verdict, u64) {
    let operations = finished.outcomes.into_iter().map(OperationReceipt::of).collect();
    (Verdict::Succeeded { session: finished.session, operations }, finished.gas_used)
}

/// The root of the list of what a block did for async bundles, and by itself.
// spec: BLOCK-6, BLOCK-8
pub(crate) fn continuations_root(continuations: &[Continuation]) -> Hash {
    list_root(&continuations.iter().map(Continuation::list_hash).collect::<Vec<_>>())
}
