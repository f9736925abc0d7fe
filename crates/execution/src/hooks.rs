//! What a chain does by itself: functions that it calls before and after the transactions of every block, and before and after
//! each of them.
//!
//! A *hook* is a registered function without arguments. Nobody signs for it: it runs in a session of
//! [`PublicKey::CHAIN`], a key that nobody holds, and needs no capability. Each runs in a layer of its own with limits of its
//! own, so that neither another hook nor a transaction decides whether it has enough. What fails is dropped with its layer and
//! told; what changes nothing and tells nothing is dropped too, as if it had not been called.
//!
//! Those around a transaction hear of it ([`TransactionContext`]) and may keep it out. They have a session for each account, so
//! that transactions of different accounts still have nothing in common.
//!
//! Rules: `spec/chain.md`, EXEC-23, EXEC-25.

use crate::ahead::Coming;
use crate::{
    Batch, BatchEnd, BlockDraft, BundleId, Entry, Failed, Failure, FailureKind, Halt, Limits, Operation, Outcome,
    PublicKey, Session, SessionId, Stop, TransactionContext,
};
use keelstone_codec::{Blob, Tag, TaggedHasher};
use keelstone_tree::ReadError;
use std::sync::Arc;

/// Bytes that all hooks of a block may change, each an equal part of it.
pub const HOOKS_CHANGE_BYTES_MAX: u64 = 8 << 20;
/// Of what a hook may change, the part that its events may have, and its result: they weigh four times their bytes (BLOCK-7).
const GIVEN_PART: u64 = 8;

/// The most gas of one hook around a transaction: some ten milliseconds, for it is also called when a transaction arrives, before
/// anything was paid for it.
pub const TRANSACTION_HOOK_GAS_MAX: u64 = 10_000_000;
/// Bytes that one hook around a transaction may change.
const TRANSACTION_HOOK_CHANGE_BYTES_MAX: u64 = 64 << 10;

/// When in a block the chain calls a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before all else.
    BeginBlock,
    /// After the last transaction.
    EndBlock,
    /// Before a transaction, which it may keep out.
    BeforeTransaction,
    /// After a transaction, whether that took effect or failed.
    AfterTransaction,
}

impl When {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::BeginBlock, Self::EndBlock, Self::BeforeTransaction, Self::AfterTransaction];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeginBlock => "begin_block",
            Self::EndBlock => "end_block",
            Self::BeforeTransaction => "before_transaction",
            Self::AfterTransaction => "after_transaction",
        }
    }

    /// Whether such a hook is called for a transaction, and not for a block.
    #[must_use]
    pub const fn is_of_transaction(self) -> bool {
        matches!(self, Self::BeforeTransaction | Self::AfterTransaction)
    }

    /// What stands for a bundle's identity where something is said of the hooks called then: the same in every block, and no
    /// bundle's.
    #[must_use]
    pub fn bundle(self) -> BundleId {
        const HOOK: Tag = Tag::new("hook");
        BundleId(TaggedHasher::new(HOOK).value(&self.number()).finish())
    }

    /// When those hooks are called of which this is said; none for a bundle's identity.
    #[must_use]
    pub fn of(bundle: &BundleId) -> Option<Self> {
        Self::ALL.into_iter().find(|when| when.bundle() == *bundle)
    }

    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::BeginBlock => 0,
            Self::EndBlock => 1,
            Self::BeforeTransaction => 2,
            Self::AfterTransaction => 3,
        }
    }
}

/// For whom hooks are called, and in which session.
struct Called<'c> {
    sender: PublicKey,
    session: SessionId,
    transaction: Option<&'c Arc<TransactionContext>>,
}

impl<'a> BlockDraft<'a> {
    /// Calls the hooks that begin or end a block, each with at most so much gas: as batches of one operation, whose number is
    /// the hook's place. Those that changed nothing and told nothing are left out.
    ///
    /// # Errors
    /// [`Halt`] if the state could not be read.
    // spec: EXEC-23
    pub fn run_hooks(&mut self, when: When, gas_max: u64) -> Result<Vec<Batch>, Halt> {
        let (registry, height) = (self.registry(), self.context().height);
        let count = registry.hooks_at(height).filter(|(at, _)| !at.is_of_transaction()).count();
        let Some(part) = HOOKS_CHANGE_BYTES_MAX.checked_div(count as u64) else { return Ok(Vec::new()) };
        let session = SessionId::root(&self.context().chain_id, &PublicKey::CHAIN);
        let called = Called { sender: PublicKey::CHAIN, session, transaction: None };
        let mut out = Vec::new();
        for (first, entry) in (0u32..).zip(registry.hooks_of(when, height)) {
            out.extend(self.call_hook(when, first, entry, &called, limits(gas_max, part))?);
        }
        Ok(out)
    }

    /// Calls the hooks before or after a transaction, each with at most so much gas and never more than
    /// [`TRANSACTION_HOOK_GAS_MAX`]: as [`BlockDraft::run_hooks`] does. Of those before one, the first that fails is the last
    /// that is called: the transaction is not let in, and whoever calls this drops what the others wrote.
    ///
    /// # Errors
    /// [`Halt`] if the state could not be read.
    // spec: EXEC-25
    pub fn run_transaction_hooks(
        &mut self,
        when: When,
        transaction: &Arc<TransactionContext>,
        gas_max: u64,
    ) -> Result<Vec<Batch>, Halt> {
        let limits = limits(gas_max.min(TRANSACTION_HOOK_GAS_MAX), TRANSACTION_HOOK_CHANGE_BYTES_MAX);
        let (registry, height, sender) = (self.registry(), self.context().height, transaction.sender);
        let session = SessionId::of_hooks(&self.context().chain_id, &sender);
        let called = Called { sender, session, transaction: Some(transaction) };
        let mut out = Vec::new();
        for (first, entry) in (0u32..).zip(registry.hooks_of(when, height)) {
            let batch = self.call_hook(when, first, entry, &called, limits)?;
            let has_failed = batch.as_ref().is_some_and(|batch| matches!(batch.end, BatchEnd::Stopped(_)));
            out.extend(batch);
            if has_failed && when == When::BeforeTransaction {
                break;
            }
        }
        Ok(out)
    }

    /// Calls one hook; none if it changed nothing and told nothing.
    fn call_hook(
        &self,
        when: When,
        first: u32,
        entry: &'a Entry,
        called: &Called<'_>,
        limits: Limits,
    ) -> Result<Option<Batch>, Halt> {
        let Called { sender, session, transaction } = *called;
        let operation = Operation {
            function: entry.hash,
            args: Blob::new(Vec::new()).expect("nothing is within any limit"),
            expected_diff: None,
            expected_own_diff: None,
        };
        let coming = Coming { bundle: None, sender, session, index: first, operation: &operation };
        self.handle().set_meter(limits);
        self.handle().push();
        let (end, state_hash, changed_bytes) = match self.hook(entry, &coming, transaction) {
            Ok(None) => {
                self.handle().pop();
                return Ok(None);
            }
            Ok(Some((outcome, record, bytes))) => {
                self.handle().merge();
                (BatchEnd::Advanced { outcomes: vec![outcome], is_complete: true }, record.state_hash, bytes)
            }
            Err(kind) => {
                self.handle().pop();
                if let FailureKind::Stopped(Stop::Read(error)) = kind {
                    return Err(error.into());
                }
                let gas_used = self.handle().meter().used();
                let failed = Failed { operation: first, function: entry.hash, kind, gas_used };
                let stood = self.handle().unmetered(|| self.record_now(&coming));
                let record = stood.map_err(|kind| match kind {
                    FailureKind::Stopped(Stop::Read(error)) => Halt::from(error),
                    kind => ReadError::damaged(format!("the record of a session of the chain: {kind}")).into(),
                })?;
                (BatchEnd::Stopped(Failure::from(&failed)), record.state_hash, 0)
            }
        };
        let (bundle, owner, gas_used) = (when.bundle(), PublicKey::CHAIN, self.handle().meter().used());
        Ok(Some(Batch { bundle, owner, session, first, state_hash, gas_used, changed_bytes, end }))
    }

    /// Runs a hook in the topmost layer; none if it changed nothing and told nothing.
    fn hook(
        &self,
        entry: &'a Entry,
        coming: &Coming<'_>,
        transaction: Option<&Arc<TransactionContext>>,
    ) -> Result<Option<(Outcome, Session, u64)>, FailureKind> {
        let begun = self.begin_hook(entry, coming, transaction)?;
        let called = self.call_operation(coming, begun)?;
        if called.events.is_empty() && self.handle().top().is_empty() {
            return Ok(None);
        }
        let (outcome, record) = self.finish_operation(coming, called, 0)?;
        // spec: EXEC-9. Nothing is noted for bundles in flight, which see by the value that it was changed: how many there are, and
        // what they hold, is nothing to the chain.
        Ok(Some((outcome, record, self.count_changes()?)))
    }
}

/// What one hook may use that may change so many bytes.
fn limits(gas_max: u64, change_bytes_max: u64) -> Limits {
    let given = change_bytes_max / GIVEN_PART;
    Limits { gas_max, change_bytes_max, event_bytes_max: given, result_bytes_max: given, ..Limits::default() }
}
