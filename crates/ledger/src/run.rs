//! Running a block: a pure function of the state before it.
//!
//! [`execute`] reads through any [`Read`], a store's view or a witness, and gives the changes, the receipts and the record. In order:
//! what the chain does at a block's beginning, what is due of async bundles and their batches, the transactions with what is done
//! around each, and what the chain does at its end. How that is done may differ between nodes ([`Way`]), and makes no difference.
//!
//! Transactions are taken to come from an adversary, and so is their choice and order. Rules: `spec/ledger.md`, BLOCK-2,
//! BLOCK-5 to BLOCK-9, LEDGER-1 to LEDGER-3.

use crate::audit::{self, Appended, Collected};
use crate::block::{Block, BlockRecord, Continuation, Receipt, Verdict, continuations_root, succeeded, text, weight};
use crate::chain::{self, Chain, ChainFacts};
use crate::check::{self, Refusal};
use crate::keys::{SignatureError, verify_batch};
use crate::limits::{ChainLimits, FULL_CHANGE_BYTES, SHARE_CHANGE_BYTES_MAX};
use crate::modules::agents;
use crate::nonces;
use crate::parallel::{Beforehand, Oracle};
use crate::transaction::{SignedTransaction, TxId};
use crate::validators::{Validator, Validators};
use keelstone_codec::{
    Decode as _, Encode as _, Hash, Height, Key, Namespace, Root, StateHash, Tag, TaggedHasher, Timestamp, Value,
};
use keelstone_execution::bundles::{Batch, BundleId, BundleLimits, FORGET_BYTES_MAX, Resume, Submitted};
use keelstone_execution::{
    Activity, Ahead, BlockContext, BlockDraft, Bundle, CHANGE_BYTES_MAX, Caller, Changes, Failed, Failure, Finished,
    Function, HOOKS_CHANGE_BYTES_MAX, Halt, Limits, Mode, OperationsAhead, PublicKey, Registry, Summary,
    TransactionContext, TransactionEnd, When, list_root,
};
use keelstone_tree::{DIFF_BYTES_MAX, Read, ReadError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How many sync bundles' gas an async one may use where it is run as one, to foresee what it comes to.
const ASYNC_BUNDLES: u64 = 16;

/// How much a block may have changed, in bytes of keys and values, when something more begins; what results and events weigh is
/// in it, too. What begins there may change as much as one bundle may, and all of it has to fit into one diff: a block above that
/// could be committed by nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// When another operation of the chain's own batches begins.
    share: u64,
    /// When another transaction begins, or another operation of a batch that one hurried. The batches leave room for one.
    full: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self { share: SHARE_CHANGE_BYTES_MAX, full: FULL_CHANGE_BYTES }
    }
}

/// What a block writes at its end, beside what it forgets of bundles: its record, the peaks of its audit log, the validators.
const END_BYTES_MAX: u64 = 8 << 20;
// spec: BLOCK-7, BLOCK-8
const _: () = assert!(
    HOOKS_CHANGE_BYTES_MAX + FULL_CHANGE_BYTES + CHANGE_BYTES_MAX + FORGET_BYTES_MAX + END_BYTES_MAX <= DIFF_BYTES_MAX,
    "the largest block is a diff"
);

/// Why a block cannot be run on a state.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The state has no genesis.
    #[error("the state belongs to no chain: it has no genesis")]
    NoGenesis,
    /// The height does not follow. Whoever made the block has to act.
    #[error("block {found} does not follow: the last record is of {last}")]
    Height {
        /// The height of the last record, or of the genesis.
        last: Height,
        /// The block's.
        found: Height,
    },
    /// The time runs backwards. Whoever made the block has to act.
    #[error("block {height} has time {found}, which is before {last}")]
    Time {
        /// The block.
        height: Height,
        /// The time of the last record, or of the genesis.
        last: Timestamp,
        /// The block's.
        found: Timestamp,
    },
    /// The proposer may not make blocks.
    #[error("{proposer} may not make blocks of this chain")]
    Proposer {
        /// Who.
        proposer: PublicKey,
    },
    /// The block is above a limit of the chain.
    #[error("the block has {found} {what}, the limit is {limit}")]
    TooLarge {
        /// `transactions` or `bytes of transactions`.
        what: &'static str,
        /// How many.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The state could not be read here: no verdict about the block.
    #[error(transparent)]
    Halt(#[from] Halt),
}
impl From<ReadError> for BlockError {
    fn from(error: ReadError) -> Self {
        Self::Halt(error.into())
    }
}

/// What a block came to. Nothing of it is durable yet.
#[derive(Clone, Debug)]
pub struct Executed {
    /// The block that was run; a producer's, without what was refused.
    pub block: Block,
    /// One for each transaction.
    pub receipts: Vec<Receipt>,
    /// What it did for async bundles, in order: what time decided, the chain's own batches, those of transactions, each with what
    /// hooks did around it. In front of them what hooks did that begin a block, behind them what those did that end one.
    pub continuations: Vec<Continuation>,
    /// What it adds to the audit log; none for an empty block.
    pub audit: Option<Appended>,
    /// The state hashes after the operations that changed the key that was asked for.
    pub(crate) noted: Vec<StateHash>,
    /// Everything that changed, the record included. Empty for an empty block (spec: LEDGER-3).
    pub changes: Changes,
    /// The record; none for an empty block.
    pub record: Option<BlockRecord>,
    /// What a producer left out, and why.
    pub refused: Vec<(TxId, Refusal)>,
    /// New powers of validators, 0 for those who left: what the engine the chain runs under has to be told.
    pub validators: Vec<Validator>,
    /// The limits from the next block on, if it changed them: that engine has to hold what they allow.
    pub limits: Option<ChainLimits>,
    /// The next nonces of the accounts that acted.
    pub nonces: BTreeMap<PublicKey, u64>,
    /// How much of it was run beforehand, on several threads. Says nothing about the block.
    pub beforehand: Beforehand,
}

impl Executed {
    /// How many operations took effect.
    pub(crate) fn operations(&self) -> u64 {
        let receipts = self.receipts.iter().map(|receipt| receipt.operations().len());
        let continuations = self.continuations.iter().map(|continuation| continuation.operations().len());
        receipts.chain(continuations).map(|count| count as u64).sum()
    }
}

/// What is done with a transaction that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is left out of the block: for whoever makes the block.
    LeaveOut,
    /// It stands in the block, so it gets a receipt: for whoever is given the block.
    Receipt,
}

/// Runs a block on the state before it. Pure: the same inputs give the same bytes on every machine.
///
/// `previous_root` is the root of `state`; a caller that verifies knows it, a store's view says it.
///
/// # Errors
/// [`BlockError`]: the block cannot follow this state, or this node cannot read it. A transaction that fails is no
/// error.
// spec: LEDGER-2, LEDGER-3, EXEC-5
pub fn execute(
    registry: &Registry,
    state: impl Read + 'static,
    previous_root: Root,
    block: Block,
    refused: Refused,
) -> Result<Executed, BlockError> {
    execute_with(registry, state, previous_root, block, refused, &InOrder::default())
}

/// How a block is run: what may differ between nodes, and makes no difference. As it stands here: one transaction after
/// the other, and nothing beforehand.
pub(crate) trait Way {
    /// Where the function at work is told, for a watchdog (spec: EXEC-13), if not where the registry says.
    fn activity(&self) -> Option<&Activity> {
        None
    }
    /// The key of which is noted who changed it, if one is asked for.
    fn noting(&self) -> Option<(Namespace, Key)> {
        None
    }
    /// Who runs single operations beforehand, if somebody does.
    fn ahead(&self) -> Option<&dyn Ahead> {
        None
    }
    /// Works out something of each of so many, from its place alone, and gives it in their order.
    fn each<T: Send>(&self, count: usize, of: impl Fn(usize) -> T + Sync) -> Vec<T> {
        (0..count).map(of).collect()
    }
    /// The verdict on every signature.
    fn signatures(&self, transactions: &[SignedTransaction], _known: &[KnownBy]) -> Vec<Result<(), SignatureError>> {
        signatures(&transactions.iter().collect::<Vec<_>>())
    }
    /// Runs transactions beforehand, as far as it likes, on the state and on what the block has changed before them. What
    /// is good of it is found out where it is used (spec: EXEC-15).
    fn foretell(
        &self,
        _run: &Run<'_>,
        _before: &BlockDraft<'_>,
        _transactions: &[SignedTransaction],
        _known: &[KnownBy],
        _signatures: &[Result<(), SignatureError>],
    ) -> Oracle {
        Oracle::default()
    }
}

/// What a transaction is known by, and how long it is: what its bytes say, found once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownBy {
    pub(crate) id: TxId,
    /// The hash under which it stands in its block's list.
    listed: Hash,
    bytes: usize,
}

impl KnownBy {
    fn of(signed: &SignedTransaction) -> Self {
        Self { id: signed.id(), listed: signed.list_hash(), bytes: signed.to_bytes().len() }
    }
}

/// One transaction after the other, and nothing beforehand.
#[derive(Debug, Default)]
pub(crate) struct InOrder {
    /// The key of which is noted who changed it.
    pub(crate) noting: Option<(Namespace, Key)>,
}

impl Way for InOrder {
    fn noting(&self) -> Option<(Namespace, Key)> {
        self.noting.clone()
    }
}

/// As [`execute`], in a way of one's own.
pub(crate) fn execute_with(
    registry: &Registry,
    state: impl Read + 'static,
    previous_root: Root,
    block: Block,
    refused: Refused,
    way: &impl Way,
) -> Result<Executed, BlockError> {
    execute_within(registry, state, previous_root, block, refused, way, Room::default())
}

fn execute_within(
    registry: &Registry,
    state: impl Read + 'static,
    previous_root: Root,
    mut block: Block,
    refused: Refused,
    way: &impl Way,
    room: Room,
) -> Result<Executed, BlockError> {
    let transactions = std::mem::take(&mut block.transactions);
    let known = way.each(transactions.len(), |at| KnownBy::of(&transactions[at]));
    let size = (known.len(), known.iter().map(|known| known.bytes).sum());
    let (Chain { facts, limits, .. }, previous, context) = ground(&state, previous_root, &block, size)?;
    let mut out = Executed {
        block: block.clone(),
        receipts: Vec::new(),
        continuations: Vec::new(),
        audit: None,
        noted: Vec::new(),
        changes: Changes::default(),
        record: None,
        refused: Vec::new(),
        validators: Vec::new(),
        limits: None,
        nonces: BTreeMap::new(),
        beforehand: Beforehand::default(),
    };
    let mut draft = BlockDraft::begin(registry, state, context).ahead(way.ahead());
    if let Some(activity) = way.activity() {
        draft = draft.watched(activity);
    }
    if let Some((namespace, key)) = way.noting() {
        draft = draft.noting(namespace, key);
    }
    // spec: BLOCK-8. What the chain itself does has room and gas of its own: it takes nothing of either from others.
    let began = draft.run_hooks(When::BeginBlock, limits.bundle_gas_max)?;
    let of_hooks = draft.look(Changes::bytes);
    // spec: EXEC-6. What is due first, then the bundles in flight, then transactions, on what those leave.
    let share_change_bytes_max = room.share.saturating_add(of_hooks);
    let share = BundleLimits { share_change_bytes_max, ..limits.bundles() };
    let mut batches = draft.expire_bundles(&share)?;
    batches.extend(draft.continue_bundles(&share)?);
    // spec: AUDIT-4
    let mut happened = Collected::default();
    began.iter().chain(&batches).for_each(|batch| happened.batch(batch));
    let mut changed_bytes = draft.look(Changes::bytes).saturating_sub(of_hooks);
    let of_batches = batches.iter().fold(0u64, |sum, batch| sum.saturating_add(batch.gas_used));
    // spec: BLOCK-2. The undo of an operation may pass the share, and keeps no transaction out for that.
    let mut gas_used = of_batches.min(limits.block_gas_max.saturating_sub(limits.bundle_gas_max));
    let of_chain = |batch| Continuation::of(batch, None);
    out.continuations.extend(began.into_iter().map(of_chain));
    let continued: Vec<_> = batches.into_iter().map(of_chain).collect();
    changed_bytes = continued.iter().fold(changed_bytes, |sum, batch| sum.saturating_add(batch.weight()));
    out.continuations.extend(continued);
    let run = Run { registry, facts: &facts, limits: &limits, share: &share, height: block.height };
    let signatures = way.signatures(&transactions, &known);
    let mut oracle = way.foretell(&run, &draft, &transactions, &known, &signatures);
    let mut listed = Vec::with_capacity(transactions.len());
    let mut kept = vec![true; transactions.len()];
    for (index, (transaction, signature)) in transactions.iter().zip(signatures).enumerate() {
        let id = known[index].id;
        let ran = match signature {
            Err(error) => Err(error.into()),
            // spec: BLOCK-2, BLOCK-7
            Ok(())
                if gas_used.saturating_add(limits.bundle_gas_max) > limits.block_gas_max
                    || changed_bytes > room.full =>
            {
                oracle.was_not_run(index);
                Err(Refusal::BlockFull { gas_used })
            }
            // spec: EXEC-15. In order, and what was run beforehand is taken only if it is what would be found now.
            Ok(()) => match oracle.of(index) {
                Some((ran, changes)) => {
                    changed_bytes = changed_bytes.saturating_add(changes.bytes());
                    draft.adopt(changes);
                    ran
                }
                None => {
                    let gas = limits.block_gas_max.saturating_sub(gas_used);
                    let left = Left { gas, change_bytes: room.full.saturating_sub(changed_bytes) };
                    oracle.look_ahead(&draft, index, &transactions, &known);
                    let (ran, changes) = draft.apart(|draft| run.transaction(draft, transaction, id, left));
                    let ran = ran?;
                    changed_bytes = changed_bytes.saturating_add(changes.bytes());
                    oracle.was_run(index, &changes);
                    draft.adopt(changes);
                    ran
                }
            },
        };
        let Ran { next, before, verdict, gas_used: gas, did, behind } = match ran {
            Ok(ran) => ran,
            Err(refusal) if refused == Refused::LeaveOut => {
                out.refused.push((id, refusal));
                kept[index] = false;
                continue;
            }
            Err(refusal) => Ran {
                next: None,
                before: Vec::new(),
                verdict: Verdict::Refused { code: refusal.code(), reason: text(refusal.to_string()) },
                gas_used: 0,
                did: Collected::default(),
                behind: Vec::new(),
            },
        };
        before.iter().for_each(|batch| happened.batch(batch));
        happened.append(did);
        behind.iter().for_each(|batch| happened.batch(batch));
        out.nonces.extend(next.map(|next| (transaction.transaction.sender, next)));
        // spec: BLOCK-9
        let batches: Vec<_> = before.into_iter().chain(behind).map(|batch| Continuation::of(batch, Some(id))).collect();
        gas_used = batches.iter().fold(gas_used, |sum, batch| sum.saturating_add(batch.gas_used));
        changed_bytes = batches.iter().fold(changed_bytes, |sum, batch| sum.saturating_add(batch.weight()));
        out.continuations.extend(batches);
        gas_used = gas_used.saturating_add(gas);
        let receipt = Receipt { transaction: id, verdict, gas_used: gas };
        changed_bytes = changed_bytes.saturating_add(weight(receipt.operations()));
        out.receipts.push(receipt);
        listed.push(known[index].listed);
    }
    let ended = draft.run_hooks(When::EndBlock, limits.bundle_gas_max)?;
    ended.iter().for_each(|batch| happened.batch(batch));
    out.continuations.extend(ended.into_iter().map(of_chain));
    let kept = transactions.into_iter().zip(kept).filter_map(|(transaction, kept)| kept.then_some(transaction));
    out.block.transactions.extend(kept);
    let OperationsAhead { run: operations, taken: operations_taken } = draft.operations_ahead();
    out.beforehand = Beforehand { operations, operations_taken, ..oracle.figures() };
    // Of what time decides, some goes without saying: what is forgotten of a bundle that ended.
    if out.block.transactions.is_empty() && out.continuations.is_empty() && draft.look(Changes::is_empty) {
        return Ok(out); // spec: LEDGER-3
    }
    agents::note_production(registry, &mut draft, out.block.transactions.len() as u64)?;
    if let Some((before, after)) = draft.look(Validators::changed_by)? {
        let after = after.settled(&before, block.height);
        out.validators = after.since(&before);
        let (namespace, key) = Validators::place();
        draft.put(&namespace, key, Some(after.value()))?;
    }
    out.limits = draft.look(ChainLimits::changed_by)?;
    let (namespace, key, tip) = chain::tip_write(block.height);
    draft.put(&namespace, key, Some(tip))?;
    let mut record = BlockRecord {
        height: block.height,
        time: block.time,
        previous_root,
        previous_record: previous,
        proposer: block.proposer,
        transactions: u32::try_from(out.block.transactions.len()).expect("the count is within the chain's limit"),
        transactions_root: list_root(&listed),
        diff: Summary::default(),
        receipts_root: list_root(&way.each(out.receipts.len(), |at| out.receipts[at].list_hash())),
        continuations: u32::try_from(out.continuations.len()).expect("a bundle or a transaction has few batches each"),
        continuations_root: continuations_root(&out.continuations),
    };
    // The log says of the block what its record does, but for the digest of the changes, to which it belongs itself.
    happened.block(&record);
    out.audit = Some(audit::append(&mut draft, block.height, happened.into_events(), way)?);
    record.diff = draft.look(|changes| changes.summary_by(|count, hashes| way.each(count, hashes)));
    let (namespace, key) = BlockRecord::place(block.height);
    draft.put(&namespace, key, Some(Value::new(record.to_bytes()).expect("a record is small")))?;
    out.record = Some(record);
    out.noted = draft.noted();
    out.changes = draft.finish();
    Ok(out)
}

/// What a block stands on: the chain's facts and limits, the hash of the last record, and what functions may ask of the block. Of its
/// transactions only their size is looked at: how many, and how many bytes.
// spec: BLOCK-2, BLOCK-5
pub(crate) fn ground(
    state: &dyn Read,
    previous_root: Root,
    block: &Block,
    size: (usize, usize),
) -> Result<(Chain, Hash, BlockContext), BlockError> {
    let chain = Chain::read(state)?.ok_or(BlockError::NoGenesis)?;
    let previous = previous(state, &chain, block)?;
    fits(&chain, Validators::read(state)?.as_ref(), block, size)?;
    let context = BlockContext {
        chain_id: chain.facts.chain_id.clone(),
        height: block.height,
        time: block.time,
        proposer: block.proposer,
        seed: seed(&previous, block, &previous_root),
    };
    Ok((chain, previous, context))
}

/// What a block's transactions are run with.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) facts: &'a ChainFacts,
    /// Those that were in force before the block.
    pub(crate) limits: &'a ChainLimits,
    pub(crate) share: &'a BundleLimits,
    pub(crate) height: Height,
}

/// What a block has left for what a transaction hurries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Left {
    /// Gas, which is enough for its own bundle.
    gas: u64,
    /// Bytes that may be changed before another operation begins, those of its own bundle included.
    change_bytes: u64,
}

/// What a transaction came to that was not refused.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The next nonce of its account; none if it was not run after all.
    next: Option<u64>,
    /// What hooks did before it.
    before: Vec<Batch>,
    verdict: Verdict,
    gas_used: u64,
    /// What the audit log says of it.
    did: Collected,
    /// What it hurried, and what hooks did after it.
    behind: Vec<Batch>,
}

/// A transaction that may run: its nonce is used.
struct Admitted {
    /// The next nonce of its account.
    next: u64,
    /// What hooks around it hear of it; none if there are none.
    heard: Option<Arc<TransactionContext>>,
    /// What those did that are called before it.
    before: Vec<Batch>,
}

impl Run<'_> {
    /// Runs a transaction whose signature is good, and whose identity is `id`, in the draft's newest layer, which holds
    /// nothing yet. `left` decides about what it hurries, and about nothing else.
    pub(crate) fn transaction(
        &self,
        draft: &mut BlockDraft<'_>,
        signed: &SignedTransaction,
        id: TxId,
        left: Left,
    ) -> Result<Result<Ran, Refusal>, Halt> {
        let (bundle, sender) = (&signed.transaction.bundle, signed.transaction.sender);
        let Admitted { next, heard, before } = match self.admit(draft, signed)? {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let next = Some(next);
        let caller = caller(signed, id);
        let id = BundleId(id.0);
        let (mut did, mut behind) = (Collected::default(), Vec::new());
        if *bundle.mode() != Mode::Sync {
            let taken = draft.submit(id, caller, bundle, self.share)?;
            let taken = taken.map_err(|error| ReadError::damaged(format!("checked, and then: {error}")))?;
            did.submitted(sender, &taken);
            agents::note_bundle(self.registry, draft)?;
            agents::note_activity(self.registry, draft, &sender)?;
            let Submitted { bundle, session, operations, gas_used } = taken;
            let verdict = Verdict::Submitted { bundle, session, operations };
            behind.extend(self.after(draft, heard, &verdict, gas_used)?);
            return Ok(Ok(Ran { next, before, verdict, gas_used, did, behind }));
        }
        let bundle_gas_max = self.limits.bundle_gas_max;
        let (verdict, gas_used) = match self.execute(draft, caller, bundle, bundle_gas_max)? {
            Ok(finished) => {
                did.finished(sender, id, &finished);
                let used = before.iter().fold(finished.gas_used, |sum, batch| sum.saturating_add(batch.gas_used));
                let gas = left.gas.saturating_sub(used).min(bundle_gas_max);
                let change_bytes = left.change_bytes.saturating_sub(draft.look(Changes::bytes));
                behind = resumed(draft, signed, &finished, Left { gas, change_bytes }, self.share)?;
                succeeded(finished)
            }
            Err(failed) => {
                did.failed(sender, id, &failed);
                (Verdict::Failed(Failure::from(&failed)), failed.gas_used)
            }
        };
        behind.extend(self.after(draft, heard, &verdict, gas_used)?);
        Ok(Ok(Ran { next, before, verdict, gas_used, did, behind }))
    }

    /// Runs a transaction by itself, an async bundle as if it were a sync one, and gives the receipt it gets, and what the chain
    /// does around it. What it hurries is no part of it.
    // spec: HISTORY-7
    pub(crate) fn as_one(
        &self,
        draft: &mut BlockDraft<'_>,
        signed: &SignedTransaction,
    ) -> Result<Result<(Receipt, Vec<Continuation>), Refusal>, Halt> {
        let Admitted { heard, before: mut around, .. } = match self.admit(draft, signed)? {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let id = signed.id();
        let (whole, gas) = (signed.transaction.bundle.as_one(), self.limits.bundle_gas_max);
        let (bundle, gas_max) = match &whole {
            Some(whole) => (whole, gas.saturating_mul(ASYNC_BUNDLES)),
            None => (&signed.transaction.bundle, gas),
        };
        let (verdict, gas_used) = match self.execute(draft, caller(signed, id), bundle, gas_max)? {
            Ok(finished) => succeeded(finished),
            Err(failed) => (Verdict::Failed(Failure::from(&failed)), failed.gas_used),
        };
        around.extend(self.after(draft, heard, &verdict, gas_used)?);
        let around = around.into_iter().map(|batch| Continuation::of(batch, Some(id))).collect();
        Ok(Ok((Receipt { transaction: id, verdict, gas_used }, around)))
    }

    /// Whether a transaction may run, and its nonce used if so.
    fn admit(&self, draft: &mut BlockDraft<'_>, signed: &SignedTransaction) -> Result<Result<Admitted, Refusal>, Halt> {
        let next = match check::in_block(self.registry, draft, self.facts, self.limits, signed, self.height)? {
            Ok(next) => next,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let heard = check::around(self.registry, signed, self.height).map(Arc::new);
        let mut before = Vec::new();
        // spec: EXEC-25. In a layer of their own: if one of them does not let it in, nothing stays of the others.
        if let Some(heard) = &heard {
            let (verdict, changes) = draft.apart(|draft| check::let_in(self.registry, draft, self.limits, heard));
            before = match verdict? {
                Ok(before) => before,
                Err(refusal) => return Ok(Err(refusal)),
            };
            draft.adopt(changes);
        }
        // spec: EXEC-5. Before the bundle and outside its layer: a failure uses the nonce too.
        let (namespace, key) = nonces::nonce_place(&signed.transaction.sender);
        draft.put(&namespace, key, Some(nonces::record(next)))?;
        Ok(Ok(Admitted { next, heard, before }))
    }

    /// Calls the hooks after a transaction that was let in, which came to this.
    // spec: EXEC-25
    fn after(
        &self,
        draft: &mut BlockDraft<'_>,
        heard: Option<Arc<TransactionContext>>,
        verdict: &Verdict,
        gas_used: u64,
    ) -> Result<Vec<Batch>, Halt> {
        let Some(mut heard) = heard else { return Ok(Vec::new()) };
        let succeeded = !matches!(verdict, Verdict::Failed(_));
        Arc::make_mut(&mut heard).ended = Some(TransactionEnd { succeeded, gas_used });
        draft.run_transaction_hooks(When::AfterTransaction, &heard, self.limits.bundle_gas_max)
    }

    fn execute(
        &self,
        draft: &mut BlockDraft<'_>,
        caller: Caller,
        bundle: &Bundle,
        gas_max: u64,
    ) -> Result<Result<Finished, Failed>, Halt> {
        let finished = draft.execute(caller, bundle, Limits { gas_max, ..Limits::default() })?;
        if finished.is_ok() {
            agents::note_activity(self.registry, draft, &caller.sender)?;
        }
        Ok(finished)
    }
}

pub(crate) fn caller(signed: &SignedTransaction, id: TxId) -> Caller {
    let SignedTransaction { transaction, .. } = signed;
    Caller { sender: transaction.sender, session: transaction.session, bundle: Some(BundleId(id.0)) }
}

/// Goes on at once with the bundles that a transaction resumed: as far as the block has gas left, and all of them
/// together with no more than one bundle may use. Once each, however often one was resumed: a batch reads a piece of its
/// bundle's operations before anything is charged for it.
// spec: EXEC-6
fn resumed(
    draft: &mut BlockDraft<'_>,
    transaction: &SignedTransaction,
    finished: &Finished,
    mut left: Left,
    limits: &BundleLimits,
) -> Result<Vec<Batch>, Halt> {
    let (mut out, mut seen) = (Vec::new(), BTreeSet::new());
    for (operation, outcome) in transaction.transaction.bundle.operations().iter().zip(&finished.outcomes) {
        if outcome.function != Resume::hash() {
            continue;
        }
        // It took effect, so its arguments are those of the function.
        let Ok(Resume { bundle }) = Resume::from_bytes(&operation.args) else { continue };
        if !seen.insert(bundle) {
            continue;
        }
        let limits = BundleLimits { share_change_bytes_max: left.change_bytes, ..*limits };
        if let Some(batch) = draft.continue_bundle(bundle, left.gas, &limits)? {
            left.gas = left.gas.saturating_sub(batch.gas_used);
            left.change_bytes = left.change_bytes.saturating_sub(batch.changed_bytes);
            out.push(batch);
        }
    }
    Ok(out)
}

/// Checks that the block follows the last record, and gives that record's hash.
// spec: BLOCK-2
fn previous(state: &dyn Read, chain: &Chain, block: &Block) -> Result<Hash, BlockError> {
    let facts = &chain.facts;
    let genesis = facts.initial_height.prev().unwrap_or_default();
    let (last, time, hash) = match chain.tip {
        None => (genesis, facts.genesis_time, chain.genesis_hash),
        Some(tip) => {
            let record = BlockRecord::read(state, tip)?
                .ok_or_else(|| ReadError::damaged(format!("the record of the last block, {tip}, is absent")))?;
            (tip, record.time, record.hash())
        }
    };
    if block.height <= last {
        return Err(BlockError::Height { last, found: block.height });
    }
    if block.time < time {
        return Err(BlockError::Time { height: block.height, last: time, found: block.time });
    }
    Ok(hash)
}

/// Checks who made a block, and its limits.
// spec: BLOCK-2, LEDGER-8, LEDGER-10
fn fits(
    Chain { facts, limits, .. }: &Chain,
    validators: Option<&Validators>,
    block: &Block,
    (count, bytes): (usize, usize),
) -> Result<(), BlockError> {
    let may = match validators {
        Some(validators) => validators.may_propose(&block.proposer, block.height),
        None => facts.producers.is_empty() || facts.producers.contains(&block.proposer),
    };
    if !may {
        return Err(BlockError::Proposer { proposer: block.proposer });
    }
    for (what, found, limit) in [
        ("transactions", count, limits.block_transactions_max),
        ("bytes of transactions", bytes, limits.block_bytes_max),
    ] {
        if found as u64 > u64::from(limit) {
            return Err(BlockError::TooLarge { what, found: found as u64, limit: u64::from(limit) });
        }
    }
    Ok(())
}

/// The verdict on every signature: at once if all are good, one by one if not.
pub(crate) fn signatures(transactions: &[&SignedTransaction]) -> Vec<Result<(), SignatureError>> {
    let messages: Vec<Vec<u8>> = transactions.iter().map(|transaction| transaction.transaction.sign_bytes()).collect();
    let items: Vec<_> = transactions
        .iter()
        .zip(&messages)
        .map(|(transaction, message)| (transaction.transaction.sender, message.as_slice(), transaction.signature))
        .collect();
    match verify_batch(&items) {
        Ok(()) => vec![Ok(()); transactions.len()],
        Err(_) => transactions.iter().map(|transaction| transaction.verify()).collect(),
    }
}

/// What a block's randomness is drawn from. Known to its proposer beforehand: no more than a well-mixed number.
// spec: BLOCK-5
fn seed(previous: &Hash, block: &Block, previous_root: &Root) -> Hash {
    const SEED: Tag = Tag::new("block-seed");
    TaggedHasher::new(SEED).value(previous).value(previous_root).value(&block.height).value(&block.time).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::genesis::Genesis;
    use crate::keys::SecretKey;
    use crate::modules::{agents, sessions, standard};
    use crate::parallel::{InParallel, Threads};
    use crate::transaction::Transaction;
    use crate::vouched::Vouched;
    use keelstone_codec::{Blob, ChainId, Fixed, Text};
    use keelstone_execution::{
        Batching, Context, Denied, Draft, Item, Operation, SessionId, Transition, namespace, transition,
    };
    use keelstone_tree::{Blake3, MemoryTree};
    use std::num::NonZeroUsize;
    use std::sync::Mutex;

    fn key(person: u8) -> SecretKey {
        SecretKey::from_seed(&[person; 32])
    }

    /// Somebody registers an agent.
    fn arrival(person: u8, nonce: u64) -> SignedTransaction {
        let name = Text::new(format!("agent {person}")).unwrap();
        let personality = agents::Personality::even(Fixed::from_micros(800_000));
        let register = Operation::of(&agents::Register { name, personality, traits: Default::default() });
        let transaction = Transaction {
            chain_id: ChainId::new("test-1").unwrap(),
            sender: key(person).public(),
            nonce,
            expiry_height: Height(100),
            session: None,
            bundle: Bundle::new(Mode::Sync, vec![register]).unwrap(),
        };
        transaction.sign(&key(person))
    }

    /// spec: BLOCK-7. What is only read and given back weighs too: otherwise one small note, asked for again and again, would be
    /// receipts that no node can hold.
    #[test]
    fn a_block_that_gave_enough_takes_no_more() {
        let registry = standard();
        let mut state = MemoryTree::<Blake3>::new();
        let chain_id = ChainId::new("test-1").unwrap();
        state.apply(&Genesis::new(chain_id.clone()).first_state().unwrap().diff);
        let named = || Text::new("long").unwrap();
        let signed = |nonce, operations: Vec<Operation>| {
            let bundle = Bundle::new(Mode::Sync, operations).unwrap();
            let sender = key(1).public();
            Transaction { chain_id: chain_id.clone(), sender, nonce, expiry_height: Height(100), session: None, bundle }
                .sign(&key(1))
        };
        let note = sessions::Note { key: named(), value: Some(Blob::new(vec![7; 4_000]).unwrap()) };
        let session = SessionId::root(&chain_id, &key(1).public());
        let read = Operation::of(&sessions::ReadNote { session, key: named() });
        let mut transactions = vec![signed(0, vec![Operation::of(&note)])];
        transactions.extend((1..=20).map(|nonce| signed(nonce, vec![read.clone(); 10])));
        let block = Block { height: Height(1), time: Timestamp(1), proposer: key(200).public(), transactions };
        let room = Room { full: 1_000_000, ..Room::default() };
        let root = state.root();
        let run = execute_within(&registry, state, root, block, Refused::Receipt, &InOrder::default(), room).unwrap();
        let taken = run.receipts.iter().take_while(|receipt| receipt.succeeded()).count();
        // Ten times four thousand bytes, of which each counts four times, behind the note.
        assert_eq!(taken, 1 + 1_000_000 / 160_000 + 1, "{:?}", run.changes.bytes());
    }

    #[namespace("weighty")]
    struct Weighty {
        said: Item<u64>,
    }

    /// Says much, whatever is sent.
    #[transition("weighty.say/1")]
    struct Say;

    impl Transition<Weighty> for Say {
        type Output = Vec<u8>;
        fn apply(&self, weighty: &mut Draft<Weighty>, _: &mut Context) -> Result<Vec<u8>, Denied> {
            let said = weighty.said.get()?.unwrap_or_default();
            weighty.said.set(&(said + 1))?;
            Ok(vec![7; 4_000])
        }
    }

    /// spec: BLOCK-7, BLOCK-9. What hooks around transactions give weighs as what transactions give: else they would be records that no
    /// node can hold.
    #[test]
    fn what_hooks_gave_is_of_what_a_block_may_give() {
        let mut registry = standard();
        registry.before_transaction::<Weighty, Say>();
        registry.check().unwrap();
        let mut state = MemoryTree::<Blake3>::new();
        state.apply(&Genesis::new(ChainId::new("test-1").unwrap()).first_state().unwrap().diff);
        let transactions = (1..=20).map(|person| arrival(person, 0)).collect();
        let block = Block { height: Height(1), time: Timestamp(1), proposer: key(200).public(), transactions };
        let room = Room { full: 100_000, ..Room::default() };
        let root = state.root();
        let run = execute_within(&registry, state, root, block, Refused::Receipt, &InOrder::default(), room).unwrap();
        let taken = run.receipts.iter().take_while(|receipt| receipt.succeeded()).count();
        // Four thousand bytes, of which each counts four times, with each; what they change beside it is little.
        assert!(run.changes.bytes() < 40_000 && (5..=7).contains(&taken), "{taken}: {:?}", run.changes.bytes());
    }

    /// spec: BLOCK-7. What a block's own batches give at its beginning weighs, too, before any transaction.
    #[test]
    fn what_batches_gave_is_of_what_a_block_may_give() {
        let mut registry = standard();
        registry.register::<Weighty, Say>();
        registry.check().unwrap();
        let chain_id = ChainId::new("test-1").unwrap();
        let taken_beside = |said: usize| {
            let mut state = MemoryTree::<Blake3>::new();
            state.apply(&Genesis::new(chain_id.clone()).first_state().unwrap().diff);
            let mode = Mode::Async(Batching::until(Height(50)));
            let bundle = Bundle::new(mode, vec![Operation::of(&Say); said]).unwrap();
            let sent = Transaction {
                chain_id: chain_id.clone(),
                sender: key(30).public(),
                nonce: 0,
                expiry_height: Height(100),
                session: None,
                bundle,
            };
            let mut run = |height, transactions, room| {
                let proposer = key(200).public();
                let block = Block { height: Height(height), time: Timestamp(height), proposer, transactions };
                let (before, root) = (state.clone(), state.root());
                let way = InOrder::default();
                let run = execute_within(&registry, before, root, block, Refused::Receipt, &way, room).unwrap();
                state.apply(&run.changes.to_diff());
                run
            };
            run(1, vec![sent.sign(&key(30))], Room::default());
            let arrivals = (1..=20).map(|person| arrival(person, 0)).collect();
            let run = run(2, arrivals, Room { full: 100_000, ..Room::default() });
            let operations: usize = run.continuations.iter().map(|batch| batch.operations().len()).sum();
            assert!(operations == said && run.changes.bytes() < 40_000, "{operations}: {}", run.changes.bytes());
            run.receipts.iter().take_while(|receipt| receipt.succeeded()).count()
        };
        // Four thousand bytes each, of which each counts four times.
        assert_eq!((taken_beside(1), taken_beside(7)), (20, 0));
        assert!((1..20).contains(&taken_beside(6)));
    }

    /// spec: BLOCK-2, BLOCK-7. Once a block has changed so much, it takes no transaction more: with the number of one for
    /// which there is no gas, on any number of threads, and the next block takes them.
    #[test]
    fn a_block_that_changed_enough_takes_no_more() {
        let registry = standard();
        let mut state = MemoryTree::<Blake3>::new();
        state.apply(&Genesis::new(ChainId::new("test-1").unwrap()).first_state().unwrap().diff);
        // Two of each account, so that one stands behind one that is not taken.
        let transactions: Vec<_> =
            (0..2).flat_map(|nonce| (1..=20).map(move |person| arrival(person, nonce))).collect();
        let block = |height, transactions: &[SignedTransaction]| Block {
            height: Height(height),
            time: Timestamp(height),
            proposer: key(200).public(),
            transactions: transactions.to_vec(),
        };
        let room = Room { full: 4_000, ..Room::default() };
        let run = |block: Block, refused, threads: Option<usize>| {
            let (registry, state, root) = (&registry, state.clone(), state.root());
            match threads {
                None => execute_within(registry, state, root, block, refused, &InOrder::default(), room).unwrap(),
                Some(count) => {
                    let threads = Threads::new(NonZeroUsize::new(count).unwrap());
                    let (activity, vouched) = (Activity::default(), Mutex::new(Vouched::default()));
                    let way =
                        InParallel { state: state.clone(), activity: &activity, threads: &threads, vouched: &vouched };
                    execute_within(registry, state, root, block, refused, &way, room).unwrap()
                }
            }
        };
        let code = |receipt: &Receipt| match receipt.verdict {
            Verdict::Refused { code, .. } => Some(code),
            _ => None,
        };
        let whole = run(block(1, &transactions), Refused::Receipt, None);
        let taken = whole.receipts.iter().take_while(|receipt| receipt.succeeded()).count();
        assert!((2..20).contains(&taken), "{taken} were taken");
        assert!(whole.receipts[taken..].iter().all(|receipt| code(receipt) == Some(16)), "{:?}", whole.receipts);
        assert_eq!(whole.nonces.len(), taken, "whoever is refused uses no nonce");
        // It passes the bound with the last that began below it, and by no more.
        let given: u64 = whole.receipts.iter().map(|receipt| weight(receipt.operations())).sum();
        let (bytes, last) = (whole.changes.bytes() + given, room.full / taken as u64 * 3);
        assert!((room.full..room.full + last).contains(&bytes), "{bytes} bytes");
        for threads in [1, 2, 8] {
            let again = run(block(1, &transactions), Refused::Receipt, Some(threads));
            assert_eq!(format!("{:?}", again.receipts), format!("{:?}", whole.receipts), "{threads} threads");
            assert_eq!((again.changes, again.record), (whole.changes.clone(), whole.record.clone()));
        }
        // Whoever makes the block leaves them out, and they are good for the next.
        let made = run(block(1, &transactions), Refused::LeaveOut, Some(2));
        assert_eq!((made.block.transactions.len(), made.refused.len()), (taken, transactions.len() - taken));
        assert!(made.refused.iter().all(|(_, refusal)| refusal.is_temporary()));
        state.apply(&made.changes.to_diff());
        let execute = |transactions: &[SignedTransaction]| {
            let state = state.clone();
            let root = state.root();
            execute_within(&registry, state, root, block(2, transactions), Refused::Receipt, &InOrder::default(), room)
        };
        assert!(execute(&transactions[taken..20]).unwrap().receipts[0].succeeded());
    }
}
