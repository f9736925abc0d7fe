//! What is checked of a transaction before it runs, and the one list of reasons to refuse it.
//!
//! Refused means: not run, no nonce used, no receipt on a chain that makes its own blocks. The same checks run when a
//! transaction arrives, against the last committed state, and again in its block, against the state just before it;
//! only the second verdict counts, since anything may have happened between.
//!
//! Rules: `spec/ledger.md`, TX-5 to TX-10.

use crate::chain::ChainFacts;
use crate::keys::SignatureError;
use crate::limits::{ChainLimits, FULL_CHANGE_BYTES};
use crate::mempool::PoolError;
use crate::modules::agents::{self, Places};
use crate::nonces;
use crate::transaction::SignedTransaction;
use keelstone_codec::{ChainId, DecodeError, Encode as _, Hash, Height, Timestamp};
use keelstone_execution::bundles::{BundleLimits, HOLD, check_submission};
use keelstone_execution::{
    Activity, Batch, BatchEnd, BlockContext, BlockDraft, BundleId, Bundles, Capability, Changes, FunctionHash, Halt,
    Mode, PublicKey, Registry, SessionError, SessionId, Sessions, Stop, SubmitError, TransactionContext, View, When,
};
use keelstone_tree::{Read, ReadError};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a transaction is refused before it runs. The sender has to act, but for [`Refusal::State`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// More bytes than the chain takes.
    #[error("the transaction has {found} bytes, the limit is {limit}")]
    TooLarge {
        /// Its bytes.
        found: usize,
        /// The limit.
        limit: u32,
    },
    /// The bytes are no transaction.
    #[error("the bytes are no transaction: {0}")]
    Decode(#[from] DecodeError),
    /// It is for another network.
    #[error("the transaction is for chain {found}, this is {expected}")]
    WrongChain {
        /// This network.
        expected: ChainId,
        /// The transaction's.
        found: ChainId,
    },
    /// Key or signature is not good.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Its time is over.
    #[error("the transaction expired at height {expiry}, the next block is {height}")]
    Expired {
        /// The last height at which it could have entered a block.
        expiry: Height,
        /// The block it would have to enter.
        height: Height,
    },
    /// It would be good for longer than the chain allows.
    #[error("the transaction expires at height {expiry}, the latest allowed is {latest}")]
    ExpiresTooLate {
        /// Its last height.
        expiry: Height,
        /// The latest.
        latest: Height,
    },
    /// The nonce was used: a replay, or a mistake.
    #[error("nonce {found} was used, the account's next is {next}")]
    NonceUsed {
        /// The account's next nonce.
        next: u64,
        /// The transaction's.
        found: u64,
    },
    /// Nonces before this one are still missing. Only a block says so; a pool lets it wait.
    #[error("nonce {found} leaves a gap, the account's next is {next}")]
    NonceGap {
        /// The account's next nonce.
        next: u64,
        /// The transaction's.
        found: u64,
    },
    /// The account has no nonce that could be counted on, or has used them all.
    #[error("the account has no next nonce")]
    NoNonce,
    /// More operations than the chain takes.
    #[error("the bundle has {found} operations, the limit is {limit}")]
    TooManyOperations {
        /// How many.
        found: usize,
        /// The limit.
        limit: u32,
    },
    /// The bundle is to run in batches, and is not taken in.
    #[error("the async bundle is not taken in: {0}")]
    Async(#[from] SubmitError),
    /// No function has this hash.
    #[error("operation {operation} calls {function}, which is not registered")]
    UnknownFunction {
        /// The operation's index.
        operation: usize,
        /// The hash.
        function: FunctionHash,
    },
    /// The session may not do this.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The program's own function before transactions does not let it in.
    #[error("{function} does not let it in: {reason}")]
    Hook {
        /// Its name and version.
        function: String,
        /// What it said, or why it could not say anything.
        reason: String,
    },
    /// The block has no gas left. The transaction may enter the next.
    #[error("the block has used {gas_used} gas and has no room for another bundle")]
    BlockFull {
        /// What was used.
        gas_used: u64,
    },
    /// The pool does not take it.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The state could not be read here: no verdict about the transaction.
    #[error("the state could not be read: {0}")]
    State(#[from] ReadError),
}

impl Refusal {
    /// A number that stands for the reason in receipts and answers; numbers are never given anew.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 1,
            Self::Decode(_) => 2,
            Self::WrongChain { .. } => 3,
            Self::Signature(SignatureError::Key(_)) => 4,
            Self::Signature(_) => 5,
            Self::Expired { .. } => 6,
            Self::ExpiresTooLate { .. } => 7,
            Self::NonceUsed { .. } => 8,
            Self::NonceGap { .. } => 9,
            Self::NoNonce => 10,
            Self::TooManyOperations { .. } => 11,
            Self::Async(_) => 12,
            Self::UnknownFunction { .. } => 13,
            Self::Session(SessionError::Lacks { .. }) => 14,
            Self::Session(_) => 15,
            Self::BlockFull { .. } => 16,
            Self::Pool(_) => 17,
            Self::State(_) => 18,
            Self::Hook { .. } => 19,
        }
    }

    /// Whether the transaction may be good later, as it is: it is kept, not thrown away.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::BlockFull { .. } | Self::NonceGap { .. } | Self::State(_) | Self::Pool(_))
    }
}

/// Whether the chain takes so many bytes of a transaction.
// spec: TX-5
pub(crate) fn size(limits: &ChainLimits, found: usize) -> Result<(), Refusal> {
    let limit = limits.transaction_bytes_max;
    if found as u64 > u64::from(limit) { Err(Refusal::TooLarge { found, limit }) } else { Ok(()) }
}

/// What needs no state but the chain's facts and limits.
// spec: TX-5, TX-7
pub(crate) fn facts(
    facts: &ChainFacts,
    limits: &ChainLimits,
    signed: &SignedTransaction,
    height: Height,
) -> Result<(), Refusal> {
    let transaction = &signed.transaction;
    if transaction.chain_id != facts.chain_id {
        return Err(Refusal::WrongChain { expected: facts.chain_id.clone(), found: transaction.chain_id.clone() });
    }
    let expiry = transaction.expiry_height;
    if expiry < height {
        return Err(Refusal::Expired { expiry, height });
    }
    let latest = Height(height.0.saturating_add(limits.expiry_blocks_max));
    if expiry > latest {
        return Err(Refusal::ExpiresTooLate { expiry, latest });
    }
    let (found, limit) = (transaction.bundle.operations().len(), limits.bundle_operations_max);
    if found as u64 > u64::from(limit) {
        return Err(Refusal::TooManyOperations { found, limit });
    }
    Ok(())
}

/// What bundles in flight may take, if one of this sender is to be the next: a half of the places and bytes is for keys whose
/// agents have standing, where there is any. Keys are free, and would take all; so would one stake that is passed on.
// spec: TX-9
fn limits_for(agents: Result<bool, Stop>, limits: BundleLimits) -> Result<BundleLimits, Stop> {
    let kept = match agents {
        Ok(kept) => kept,
        Err(Stop::Read(error)) => return Err(error.into()),
        // Only a genesis of raw entries can put something else there; it must not keep bundles from being taken in.
        Err(_) => false,
    };
    let (places, bytes) = if kept { (limits.in_flight_max / 2, limits.bytes_max / 2) } else { (0, 0) };
    let (in_flight_max, bytes_max) = (limits.in_flight_max - places, limits.bytes_max - bytes);
    Ok(BundleLimits { in_flight_max, bytes_max, ..limits })
}

/// An async bundle has a place among those in flight, and every operation fits a batch.
// spec: EXEC-6, EXEC-7
fn may_submit(
    registry: &Registry,
    bundles: &Bundles,
    signed: &SignedTransaction,
    limits: &BundleLimits,
    height: Height,
) -> Result<Result<(), Refusal>, Stop> {
    let transaction = &signed.transaction;
    let (id, owner) = (BundleId(signed.id().0), &transaction.sender);
    let verdict = check_submission(bundles, registry, id, owner, &transaction.bundle, height, limits)?;
    Ok(verdict.map_err(Refusal::from))
}

/// The functions are known, and the session may call them all.
// spec: TX-8
fn may_call(
    registry: &Registry,
    sessions: &Sessions,
    chain_id: &ChainId,
    signed: &SignedTransaction,
    height: Height,
) -> Result<Result<(), Refusal>, Stop> {
    let transaction = &signed.transaction;
    let (mut needs, mut seen) = (BTreeSet::<Capability>::new(), BTreeSet::new());
    for (operation, call) in transaction.bundle.operations().iter().enumerate() {
        if !seen.insert(call.function) {
            continue;
        }
        let Some(entry) = registry.function_at(&call.function, height) else {
            return Ok(Err(Refusal::UnknownFunction { operation, function: call.function }));
        };
        needs.extend(entry.needs.iter().cloned());
    }
    if matches!(transaction.bundle.mode(), Mode::Async(batching) if batching.hold) {
        needs.insert(HOLD);
    }
    let sender = transaction.sender;
    let id = transaction.session.unwrap_or_else(|| SessionId::root(chain_id, &sender));
    let Some(record) = sessions.find(chain_id, &id, &sender)? else {
        return Ok(Err(SessionError::Unknown(id).into()));
    };
    if record.owner != sender {
        return Ok(Err(SessionError::NotYours(id).into()));
    }
    let needs: Vec<Capability> = needs.into_iter().collect();
    Ok(sessions.authorize(id, &record, &needs, registry, height)?.map_err(Refusal::from))
}

/// Everything about a transaction whose signature is good, against the block's draft. Gives the nonce it leaves.
///
/// # Errors
/// The outer one if the state could not be read; the inner one is the verdict.
pub(crate) fn in_block(
    registry: &Registry,
    draft: &mut BlockDraft<'_>,
    chain: &ChainFacts,
    limits: &ChainLimits,
    signed: &SignedTransaction,
    height: Height,
) -> Result<Result<u64, Refusal>, ReadError> {
    let verdict = facts(chain, limits, signed, height).and_then(|()| {
        let (next, found) = (nonce(draft, &signed.transaction.sender)?, signed.transaction.nonce);
        if found > next {
            return Err(Refusal::NonceGap { next, found });
        }
        used_up(next, found)
    });
    let verdict = verdict.and_then(|after| {
        let called =
            draft.edit(|sessions: &mut Sessions| may_call(registry, sessions, &chain.chain_id, signed, height));
        answered(called)?;
        if *signed.transaction.bundle.mode() != Mode::Sync {
            let kept =
                draft.edit(|world: &mut Places| agents::is_kept_from(registry, world, &signed.transaction.sender));
            let limits = answered(limits_for(kept, limits.bundles()).map(Ok))?;
            let taken = draft.edit(|bundles: &mut Bundles| may_submit(registry, bundles, signed, &limits, height));
            answered(taken)?;
        }
        Ok(after)
    });
    match verdict {
        Err(Refusal::State(error)) => Err(error),
        verdict => Ok(verdict),
    }
}

/// What the program's functions around transactions hear of one, if there are any at this height.
// spec: EXEC-25
pub(crate) fn around(registry: &Registry, signed: &SignedTransaction, height: Height) -> Option<TransactionContext> {
    let SignedTransaction { transaction, .. } = signed;
    let heard = || TransactionContext::new(transaction.sender, signed.to_bytes().len() as u64, &transaction.bundle);
    registry.has_transaction_hooks(height).then(heard)
}

/// The program's own functions let it in; the draft's newest layer has what they wrote then.
// spec: EXEC-25, TX-10
pub(crate) fn let_in(
    registry: &Registry,
    draft: &mut BlockDraft<'_>,
    limits: &ChainLimits,
    heard: &Arc<TransactionContext>,
) -> Result<Result<Vec<Batch>, Refusal>, Halt> {
    let batches = draft.run_transaction_hooks(When::BeforeTransaction, heard, limits.bundle_gas_max)?;
    match batches.last().map(|last| &last.end) {
        Some(BatchEnd::Stopped(failure)) => {
            let function = registry.function(&failure.function).map(|entry| entry.label());
            let function = function.unwrap_or_else(|| failure.function.to_string());
            Ok(Err(Refusal::Hook { function, reason: failure.reason.to_string() }))
        }
        _ => Ok(Ok(batches)),
    }
}

/// What is cheap, however long the transaction is: all that is asked before its signature.
// spec: TX-5
pub(crate) fn before_signature(
    state: &dyn Read,
    chain: &ChainFacts,
    limits: &ChainLimits,
    signed: &SignedTransaction,
    height: Height,
) -> Result<(), Refusal> {
    facts(chain, limits, signed, height)?;
    used_up(nonce(state, &signed.transaction.sender)?, signed.transaction.nonce).map(drop)
}

/// Everything else about a transaction whose signature is good, against a committed state.
pub(crate) fn in_pool(
    registry: &Registry,
    state: impl Read + Clone + 'static,
    chain: &ChainFacts,
    limits: &ChainLimits,
    signed: &SignedTransaction,
    height: Height,
) -> Result<(), Refusal> {
    let sessions = View::<Sessions>::over(state.clone());
    answered(may_call(registry, &sessions, &chain.chain_id, signed, height))?;
    if *signed.transaction.bundle.mode() == Mode::Sync {
        return Ok(());
    }
    let places = View::<Places>::over(state.clone());
    let kept = agents::is_kept_from(registry, &places, &signed.transaction.sender);
    let limits = answered(limits_for(kept, limits.bundles()).map(Ok))?;
    answered(may_submit(registry, &View::<Bundles>::over(state), signed, &limits, height))
}

/// What the program's own functions say of one that arrives, on a committed state, as if it came alone in the next block, at the
/// time of the last. Who makes that block, and its randomness, nobody knows yet.
// spec: TX-10
pub(crate) fn by_hooks(
    registry: &Registry,
    activity: &Activity,
    state: impl Read + 'static,
    (chain, limits): (&ChainFacts, &ChainLimits),
    signed: &SignedTransaction,
    next: (Height, Timestamp),
) -> Result<(), Refusal> {
    let Some(heard) = around(registry, signed, next.0) else { return Ok(()) };
    let mut draft = unmade_block(registry, activity, state, chain, next);
    let_in(registry, &mut draft, limits, &Arc::new(heard)).map_err(unanswered)?.map(drop)
}

/// A block that nobody has made.
fn unmade_block<'a>(
    registry: &'a Registry,
    activity: &'a Activity,
    state: impl Read + 'static,
    chain: &ChainFacts,
    (height, time): (Height, Timestamp),
) -> BlockDraft<'a> {
    let (proposer, seed) = (PublicKey::CHAIN, Hash::ZERO);
    let block = BlockContext { chain_id: chain.chain_id.clone(), height, time, proposer, seed };
    BlockDraft::begin(registry, state, block).watched(activity)
}

fn unanswered(halt: Halt) -> ReadError {
    match halt {
        Halt::Read(error) => error,
        halt => ReadError::damaged(halt.to_string()),
    }
}

/// What the program's own functions say of transactions that are to stand in one block, each on what they wrote for those in front of
/// it: whoever can pay for one is not let in twice.
// spec: TX-10, LEDGER-6
pub(crate) struct Entrance<'a> {
    registry: &'a Registry,
    limits: &'a ChainLimits,
    height: Height,
    draft: BlockDraft<'a>,
    gas_used: u64,
}

impl<'a> Entrance<'a> {
    /// That of the next block on a state; none if nobody is kept out.
    pub(crate) fn of(
        registry: &'a Registry,
        activity: &'a Activity,
        state: impl Read + 'static,
        (chain, limits): (&ChainFacts, &'a ChainLimits),
        next: (Height, Timestamp),
    ) -> Option<Self> {
        registry.has_transaction_hooks(next.0).then(|| {
            let draft = unmade_block(registry, activity, state, chain, next);
            Self { registry, limits, height: next.0, draft, gas_used: 0 }
        })
    }

    /// Whether one is let in behind the others; what was written for it stays if so.
    pub(crate) fn lets_in(&mut self, signed: &SignedTransaction) -> Result<bool, ReadError> {
        let Some(heard) = around(self.registry, signed, self.height).map(Arc::new) else { return Ok(true) };
        let gas_max = self.limits.bundle_gas_max;
        let (called, changes) =
            self.draft.apart(|draft| draft.run_transaction_hooks(When::BeforeTransaction, &heard, gas_max));
        let batches = called.map_err(unanswered)?;
        self.gas_used = batches.iter().fold(self.gas_used, |sum, batch| sum.saturating_add(batch.gas_used));
        let is_let_in = !matches!(batches.last().map(|last| &last.end), Some(BatchEnd::Stopped(_)));
        if is_let_in {
            self.draft.adopt(changes);
        }
        Ok(is_let_in)
    }

    /// Whether asking has taken as much as a whole block may: nobody is asked any more.
    // spec: BLOCK-2, BLOCK-7
    pub(crate) fn is_closed(&self) -> bool {
        self.gas_used.saturating_add(self.limits.bundle_gas_max) > self.limits.block_gas_max
            || self.draft.look(Changes::bytes) > FULL_CHANGE_BYTES
    }
}

/// The next nonce of an account.
pub(crate) fn nonce(state: &dyn Read, sender: &PublicKey) -> Result<u64, Refusal> {
    nonces::next_nonce(state, sender)?.ok_or(Refusal::NoNonce)
}

/// The nonce after `found`, unless it is used or the last there is.
fn used_up(next: u64, found: u64) -> Result<u64, Refusal> {
    if found < next {
        return Err(Refusal::NonceUsed { next, found });
    }
    found.checked_add(1).ok_or(Refusal::NoNonce)
}

fn answered<T>(verdict: Result<Result<T, Refusal>, Stop>) -> Result<T, Refusal> {
    match verdict {
        Ok(verdict) => verdict,
        Err(Stop::Read(error)) => Err(Refusal::State(error)),
        Err(stop) => Err(Refusal::State(ReadError::damaged(format!("sessions and bundles: {stop}")))),
    }
}
