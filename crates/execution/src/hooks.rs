//! What a chain does by itself in every block: functions that it calls before the block's transactions and after them.
//!
//! A *hook* is a registered function without arguments. Nobody signs for it: it runs in the root session of
//! [`PublicKey::CHAIN`], a key that nobody holds, and needs no capability. Each runs in a layer of its own with limits of its
//! own, so that neither another hook nor a transaction decides whether it has enough. What fails is dropped with its layer and
//! told; what changes nothing and tells nothing is dropped too, as if it had not been called.
//!
//! Rules: `spec/chain.md`, EXEC-23.

use crate::ahead::Coming;
use crate::{
    Batch, BatchEnd, BlockDraft, BundleId, Entry, Failed, Failure, FailureKind, Halt, Limits, Operation, Outcome,
    PublicKey, Session, SessionId, Stop,
};
use keelstone_codec::{Blob, Decode, Tag, TaggedHasher};
use keelstone_tree::ReadError;

/// Bytes that all hooks of a block may change, each an equal part of it.
pub const HOOKS_CHANGE_BYTES_MAX: u64 = 8 << 20;
/// Of what a hook may change, the part that its events may have, and its result: they weigh four times their bytes (BLOCK-7).
const GIVEN_PART: u64 = 8;

/// When in a block the chain calls a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before all else.
    BeginBlock,
    /// After the last transaction.
    EndBlock,
}

impl When {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::BeginBlock, Self::EndBlock];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeginBlock => "begin_block",
            Self::EndBlock => "end_block",
        }
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
        }
    }
}

impl<'a> BlockDraft<'a> {
    /// Calls the hooks of this place in a block, each with at most so much gas: as batches of one operation, whose number is
    /// the hook's place. Those that changed nothing and told nothing are left out.
    ///
    /// # Errors
    /// [`Halt`] if the state could not be read.
    // spec: EXEC-23
    pub fn run_hooks(&mut self, when: When, gas_max: u64) -> Result<Vec<Batch>, Halt> {
        let (registry, height) = (self.registry(), self.context().height);
        let count = registry.hooks().filter(|(_, entry)| entry.heights.contains(&height)).count();
        let Some(part) = HOOKS_CHANGE_BYTES_MAX.checked_div(count as u64) else { return Ok(Vec::new()) };
        let (event_bytes_max, result_bytes_max) = (part / GIVEN_PART, part / GIVEN_PART);
        let limits = Limits { gas_max, change_bytes_max: part, event_bytes_max, result_bytes_max, ..Limits::default() };
        let (bundle, owner, chain_id) = (when.bundle(), PublicKey::CHAIN, self.context().chain_id.clone());
        let session = SessionId::root(&chain_id, &owner);
        let due = registry.hooks().filter(|(at, entry)| *at == when && entry.heights.contains(&height));
        let mut out = Vec::new();
        for (first, (_, entry)) in (0u32..).zip(due) {
            let operation = Operation {
                function: entry.hash,
                args: Blob::new(Vec::new()).expect("nothing is within any limit"),
                expected_diff: None,
                expected_own_diff: None,
            };
            let coming = Coming { bundle: None, sender: owner, session, index: first, operation: &operation };
            self.handle().set_meter(limits);
            self.handle().push();
            let (end, state_hash, gas_used, changed_bytes) = match self.hook(entry, &coming) {
                Ok(None) => {
                    self.handle().pop();
                    continue;
                }
                Ok(Some((outcome, record, bytes))) => {
                    self.handle().merge();
                    let gas_used = self.handle().meter().used();
                    let end = BatchEnd::Advanced { outcomes: vec![outcome], is_complete: true };
                    (end, record.state_hash, gas_used, bytes)
                }
                Err(kind) => {
                    self.handle().pop();
                    if let FailureKind::Stopped(Stop::Read(error)) = kind {
                        return Err(error.into());
                    }
                    let gas_used = self.handle().meter().used();
                    let failed = Failed { operation: first, function: entry.hash, kind, gas_used };
                    let place = self.handle().space(Session::SPACE);
                    let record = match self.handle().peek(&place, &session.record_key())? {
                        Some(record) => Session::from_bytes(&record).map_err(|error| {
                            ReadError::damaged(format!("the record of the chain's session: {error}"))
                        })?,
                        None => Session::root(&chain_id, owner),
                    };
                    (BatchEnd::Stopped(Failure::from(&failed)), record.state_hash, gas_used, 0)
                }
            };
            out.push(Batch { bundle, owner, session, first, state_hash, gas_used, changed_bytes, end });
        }
        Ok(out)
    }

    /// Runs a hook in the topmost layer; none if it changed nothing and told nothing.
    fn hook(&self, entry: &'a Entry, coming: &Coming<'_>) -> Result<Option<(Outcome, Session, u64)>, FailureKind> {
        let begun = self.begin_hook(entry, coming)?;
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
