//! That one operation took effect, proven from a root without the rest of its bundle, its block or its session.
//!
//! What the operations of a bundle, or of a batch of an async one, came to forms a Merkle tree, whose root enters the
//! receipt or the batch in their place. So a chain of hashes leads from a state's root over a block's record and the list
//! of its receipts (or batches) down to one operation; and the operation's state hash, the link of its session, says which
//! one of the session's it was, on what it stood, and what it was given. An [`OperationProof`] shows all of that. Whoever
//! has a root they trust, of the operation's block or of any later one, checks it with no store and no function at hand.
//! Proofs are taken to come from an adversary.
//!
//! Rules: `spec/ledger.md`, BLOCK-3 and HISTORY-10. Vectors: `spec/vectors/ledger.json`.

use crate::audit::{AuditEvent, AuditOperation, STATE_PROOF_BYTES_MAX, shown};
use crate::block::{BlockRecord, Continuation, OperationReceipt, Progress, Receipt, Verdict};
use crate::ledger::{Ledger, LedgerError};
use crate::transaction::TxId;
use keelstone_codec::{Blob, ChainId, Decode as _, Hash, Height, Root, StateHash, Tag, TaggedHasher, tagged};
use keelstone_execution::{BundleId, Link, ListProof, SessionId, When, list_root, result_hash};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{HashKind, Hasher, ProofError, Query};

const RECEIPT: Tag = Tag::new("receipt");
const CONTINUATION: Tag = Tag::new("continuation");

/// What a block says of operations that took effect together, beside the operations.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum Together {
    /// The receipt of a transaction, all of whose bundle took effect.
    Receipt {
        /// The transaction: the bundle is called as it is.
        transaction: TxId,
        /// The session it ran in.
        session: SessionId,
        /// Gas it used.
        gas_used: u64,
    },
    /// A batch of an async bundle.
    Batch {
        /// The bundle.
        bundle: BundleId,
        /// The transaction that hurried it; none if the chain went on with it by itself.
        by: Option<TxId>,
        /// The session it runs in.
        session: SessionId,
        /// The index in the bundle of its first operation.
        first: u32,
        /// Its operations were the bundle's last.
        is_complete: bool,
        /// The session's state hash at the bundle's checkpoint afterwards.
        state_hash: StateHash,
        /// Gas it used, that of undo included.
        gas_used: u64,
    },
}

impl Together {
    /// The transaction that hurried it, or around which the chain did it by itself.
    #[must_use]
    pub fn by(&self) -> Option<TxId> {
        match self {
            Self::Receipt { .. } => None,
            Self::Batch { by, .. } => *by,
        }
    }

    /// What stands in the block's list for these, with the root of the list of their operations.
    // spec: BLOCK-3. The zero byte is the tag of the verdict, or of the progress: nothing else that has one has this form.
    fn list_hash(&self, operations: &Hash) -> Hash {
        match self {
            Self::Receipt { transaction, session, gas_used } => {
                let mut hasher = TaggedHasher::new(RECEIPT);
                hasher.value(transaction).value(&0u8).value(session).value(operations).value(gas_used).finish()
            }
            Self::Batch { bundle, by, session, first, is_complete, state_hash, gas_used } => {
                let mut hasher = TaggedHasher::new(CONTINUATION);
                hasher.value(bundle).value(by).value(session).value(first);
                hasher.value(&0u8).value(operations).value(is_complete).value(state_hash).value(gas_used).finish()
            }
        }
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> BundleId {
        match self {
            Self::Receipt { transaction, .. } => BundleId(transaction.0),
            Self::Batch { bundle, .. } => *bundle,
        }
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        match self {
            Self::Receipt { session, .. } | Self::Batch { session, .. } => *session,
        }
    }

    /// The index in the bundle of the first of these.
    #[must_use]
    pub fn first(&self) -> u32 {
        match self {
            Self::Receipt { .. } => 0,
            Self::Batch { first, .. } => *first,
        }
    }
}

/// The root of the operations of a receipt or a batch.
fn root_of(operations: &[OperationReceipt]) -> Hash {
    list_root(&operations.iter().map(OperationReceipt::list_hash).collect::<Vec<_>>())
}

impl OperationReceipt {
    /// The hash under which it stands in the list of its receipt or batch.
    // spec: BLOCK-3
    #[must_use]
    pub fn list_hash(&self) -> Hash {
        const OPERATION: Tag = Tag::new("operation-receipt");
        tagged(OPERATION, self)
    }
}

impl Receipt {
    /// The hash under which the receipt stands in its block's list.
    // spec: BLOCK-3
    #[must_use]
    pub fn list_hash(&self) -> Hash {
        match self.together() {
            Some((together, operations)) => together.list_hash(&root_of(operations)),
            None => tagged(RECEIPT, self),
        }
    }

    fn together(&self) -> Option<(Together, &[OperationReceipt])> {
        let Self { transaction, verdict, gas_used } = self;
        match verdict {
            Verdict::Succeeded { session, operations } => {
                let (transaction, session, gas_used) = (*transaction, *session, *gas_used);
                Some((Together::Receipt { transaction, session, gas_used }, operations))
            }
            Verdict::Failed(_) | Verdict::Refused { .. } | Verdict::Submitted { .. } => None,
        }
    }
}

impl Continuation {
    /// The hash under which it stands in its block's list.
    // spec: BLOCK-3
    #[must_use]
    pub fn list_hash(&self) -> Hash {
        match self.together() {
            Some((together, operations)) => together.list_hash(&root_of(operations)),
            None => tagged(CONTINUATION, self),
        }
    }

    fn together(&self) -> Option<(Together, &[OperationReceipt])> {
        let Self { bundle, by, session, first, state_hash, gas_used, .. } = *self;
        match &self.progress {
            Progress::Advanced { operations, is_complete } => {
                let is_complete = *is_complete;
                Some((Together::Batch { bundle, by, session, first, is_complete, state_hash, gas_used }, operations))
            }
            Progress::Stopped(_) | Progress::Expired | Progress::Abandoned => None,
        }
    }
}

/// That an operation took effect in a block, and where in the history of its session.
// spec: HISTORY-10
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct OperationProof {
    /// The hasher of the chain's tree.
    pub hasher: HashKind,
    /// The chain.
    pub chain_id: ChainId,
    /// The height of the state it is proven in: that of the operation's block, or any above. Which of them is the word of whoever
    /// made the proof.
    pub height: Height,
    /// That state's root.
    pub root: Root,
    /// The block it took effect in.
    pub block: Height,
    /// A proof that the state holds that block's record.
    pub state: Blob<STATE_PROOF_BYTES_MAX>,
    /// What it took effect together with.
    pub together: Together,
    /// Where that stands among the block's receipts, or its batches.
    pub in_block: ListProof,
    /// What it came to.
    pub operation: OperationReceipt,
    /// Where that stands among the operations.
    pub in_list: ListProof,
    /// How many operations its session had run before.
    pub sequence: u64,
    /// The session's state hash before.
    pub before: StateHash,
    /// The hash of its arguments.
    pub args: Hash,
}

/// What is wrong with an [`OperationProof`]. Whoever made it has to act.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationProofError {
    /// It is of a chain with another hasher.
    #[error("the proof is of a chain that hashes with {found}, not with {expected}")]
    Hasher {
        /// The hasher it is verified with.
        expected: &'static str,
        /// The proof's.
        found: &'static str,
    },
    /// The proof of the state is none.
    #[error("the record in the state: {0}")]
    State(#[from] ProofError),
    /// It is said to be of a state before the block.
    #[error("a state of height {height} has nothing of block {block}")]
    Height {
        /// The state's height, as the proof says.
        height: Height,
        /// The block.
        block: Height,
    },
    /// The state has no record of the block, or one that does not decode.
    #[error("the state with root {root} has no record of block {block}")]
    NoRecord {
        /// The state's root.
        root: Root,
        /// The block.
        block: Height,
    },
    /// Nothing of this kind stands at this place of the block.
    #[error("place {index} of block {block}'s {list} with root {root} has something else")]
    NotInBlock {
        /// `receipts` or `batches`.
        list: &'static str,
        /// The block.
        block: Height,
        /// The place.
        index: u32,
        /// What the block's record says of that list.
        root: Hash,
    },
    /// The operation's state hash is not the link of what the proof says of it.
    #[error("operation {index} led to state hash {found}, what the proof says of it to {expected}")]
    Link {
        /// The operation's index in its bundle.
        index: u32,
        /// The link of what the proof says.
        expected: StateHash,
        /// What the operation led to.
        found: StateHash,
    },
}

impl OperationProof {
    /// The operation's index in its bundle.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.together.first().saturating_add(self.in_list.index)
    }

    /// Checks it against the root it names. Whether that is the chain's root is the reader's to know.
    ///
    /// # Errors
    /// [`OperationProofError`]: the first thing that is wrong, in this order: hasher, height, state, record, place in the block
    /// with the operation's in the list, link.
    // spec: HISTORY-10
    pub fn verify<H: Hasher>(&self) -> Result<(), OperationProofError> {
        if self.hasher != H::KIND {
            return Err(OperationProofError::Hasher { expected: H::KIND.name(), found: self.hasher.name() });
        }
        let (root, block) = (self.root, self.block);
        if self.height < block {
            return Err(OperationProofError::Height { height: self.height, block });
        }
        let value = shown::<H>(&self.state, root, BlockRecord::place(block))?;
        let record = value.and_then(|value| BlockRecord::from_bytes(&value).ok());
        let record = record.ok_or(OperationProofError::NoRecord { root, block })?;
        let (list, root) = match self.together {
            Together::Receipt { .. } => ("receipts", record.receipts_root),
            Together::Batch { .. } => ("batches", record.continuations_root),
        };
        // The root of the operations is nowhere in the proof: it is what the operation and its place come to.
        let operations = self.in_list.root_over(&self.operation.list_hash());
        let stands =
            operations.is_some_and(|operations| self.in_block.verify(&root, &self.together.list_hash(&operations)));
        if !stands {
            return Err(OperationProofError::NotInBlock { list, block, index: self.in_block.index, root });
        }
        let (expected, found) = (self.link().state_hash(), self.operation.state_hash);
        match expected == found {
            true => Ok(()),
            false => Err(OperationProofError::Link { index: self.index(), expected, found }),
        }
    }

    /// The link that the operation is said to have added to its session's chain.
    fn link(&self) -> Link<'_> {
        Link {
            chain_id: &self.chain_id,
            session: self.together.session(),
            sequence: self.sequence,
            previous: self.before,
            function: self.operation.function,
            args: self.args,
            result: result_hash(&self.operation.result),
            diff: self.operation.diff.digest,
        }
    }
}

/// Where one of a list stands.
fn place(list: impl Iterator<Item = Hash>, at: usize) -> Option<ListProof> {
    ListProof::of(&list.collect::<Vec<_>>(), at)
}

/// An operation where it took effect.
struct Found {
    block: Height,
    together: Together,
    in_block: ListProof,
    operation: OperationReceipt,
    in_list: ListProof,
}

impl Found {
    /// The operation at an index of the bundle, if it is one of these.
    fn of(
        block: Height,
        (together, operations): (Together, &[OperationReceipt]),
        index: u32,
        in_block: impl FnOnce() -> Option<ListProof>,
    ) -> Option<Self> {
        let at = usize::try_from(index.checked_sub(together.first())?).ok()?;
        let operation = operations.get(at)?.clone();
        let in_list = place(operations.iter().map(OperationReceipt::list_hash), at)?;
        Some(Self { block, together, in_block: in_block()?, operation, in_list })
    }
}

impl<H: Hasher> Ledger<H> {
    /// Proves the operation at an index of a bundle, in the last state; none if no such operation took effect. It was
    /// verified. Reads one block; of an async bundle also what was done for any in the blocks since its submission.
    ///
    /// # Errors
    /// [`LedgerError::NoBlock`], [`LedgerError::NoAudit`] if the block or its audit records are not kept;
    /// [`LedgerError::Damaged`] if what is kept does not lead to the state.
    // spec: HISTORY-10
    pub fn operation_proof(&self, bundle: &BundleId, index: u32) -> Result<Option<OperationProof>, LedgerError> {
        self.find_operation(bundle, index)?.map(|found| self.prove_operation(found, bundle, index)).transpose()
    }

    /// Proves what the chain did by itself in a block, as [`Ledger::operation_proof`]: the hook at an index among those called
    /// then, and around that transaction if it was around one; none if that one left nothing there, or failed. The block has to
    /// be said, for in every block that bundle and that index are the same.
    ///
    /// # Errors
    /// As [`Ledger::operation_proof`]; [`LedgerError::NotYet`].
    // spec: HISTORY-10, BLOCK-8, BLOCK-9
    pub fn hook_proof(
        &self,
        block: Height,
        when: When,
        around: Option<TxId>,
        index: u32,
    ) -> Result<Option<OperationProof>, LedgerError> {
        let bundle = when.bundle();
        let is_it = |one: &Continuation| one.bundle == bundle && one.by == around;
        self.find_batched(block, index, is_it)?.map(|found| self.prove_operation(found, &bundle, index)).transpose()
    }

    fn prove_operation(&self, found: Found, bundle: &BundleId, index: u32) -> Result<OperationProof, LedgerError> {
        let Found { block, together, in_block, operation, in_list } = found;
        let damaged = |what: String| LedgerError::Damaged { height: block, what };
        // Where in its session it stands is in the log; its link vouches for that. Of what the chain does around transactions, several in
        // a block have one place: what each led to is its own.
        let audit = self.block_audit(block)?.ok_or(LedgerError::NoAudit { height: block })?;
        let is_it = |event: AuditEvent| match event {
            AuditEvent::Operation(found)
                if (found.bundle, found.operation, found.after) == (*bundle, index, operation.state_hash) =>
            {
                Some(found)
            }
            _ => None,
        };
        let AuditOperation { sequence, before, args, .. } = audit
            .events
            .into_iter()
            .find_map(is_it)
            .ok_or_else(|| damaged(format!("its audit records lack operation {index} of bundle {bundle}")))?;
        let view = self.view();
        let (namespace, key) = BlockRecord::place(block);
        let state = view.prove(&[Query::Key(namespace, key)])?.encode();
        let proof = OperationProof {
            hasher: H::KIND,
            chain_id: self.facts().chain_id.clone(),
            height: view.height().unwrap_or_default(),
            root: view.root(),
            block,
            state: Blob::new(state).expect("the proof of a key with a small value"),
            together,
            in_block,
            operation,
            in_list,
            sequence,
            before,
            args,
        };
        match proof.verify::<H>() {
            Ok(()) => Ok(proof),
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    fn find_operation(&self, bundle: &BundleId, index: u32) -> Result<Option<Found>, LedgerError> {
        let Some(record) = self.bundle(bundle)? else {
            // No async bundle, so all of it took effect in one block.
            let Some(located) = self.transaction(&TxId(bundle.0))? else { return Ok(None) };
            let Some(together) = located.receipt.together() else { return Ok(None) };
            let receipts = self.receipts(located.height)?;
            let in_block = || place(receipts.iter().map(Receipt::list_hash), located.index as usize);
            return Ok(Found::of(located.height, together, index, in_block));
        };
        let mut from = record.submitted;
        while let Some(height) = self.first_with_continuations(from, record.updated)? {
            from = height.next();
            if let Some(found) = self.find_batched(height, index, |one| one.bundle == *bundle)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The operation at an index, if it took effect in such a batch of this block.
    fn find_batched(
        &self,
        block: Height,
        index: u32,
        is_it: impl Fn(&Continuation) -> bool,
    ) -> Result<Option<Found>, LedgerError> {
        let all = self.continuations(block)?;
        Ok(all.iter().enumerate().filter(|(_, one)| is_it(one)).find_map(|(at, continuation)| {
            let in_block = || place(all.iter().map(Continuation::list_hash), at);
            Found::of(block, continuation.together()?, index, in_block)
        }))
    }
}
