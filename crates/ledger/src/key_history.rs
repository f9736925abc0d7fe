//! What a key held over time: every change of it that is kept, and which operation made it.
//!
//! The store keeps what each height changed; a listing scans that, height by height, and says where it stopped. A change
//! is attributed by running its block again on the state before it, where that is kept. Nothing is indexed, so that a
//! commit pays nothing for it.

use crate::AuditEvent;
use crate::audit::LoggedRecord;
use crate::ledger::{Ledger, LedgerError};
use crate::run::{self, InOrder, Refused};
use keelstone_codec::{Hash, Height, Key, Namespace, Root, StateHash, Value};
use keelstone_store::StoreError;
use keelstone_tree::{Hasher, Query};
use std::ops::RangeInclusive;

/// Most heights that one listing looks at.
pub const KEY_HISTORY_HEIGHTS_MAX: u64 = 10_000;

/// One change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The height that changed it.
    pub height: Height,
    /// H(value) before, under the chain's hasher; none if the key was absent.
    pub before: Option<Hash>,
    /// The value since; none if the key was deleted.
    pub value: Option<Value>,
    /// What changed it.
    pub by: ChangedBy,
    /// The root of that height, and a proof of the value, or of its absence, under it.
    pub proof: (Root, Vec<u8>),
}

/// What changed a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangedBy {
    /// Operations, in order; the last left the value. Each with its record in the audit log, if that is kept.
    Operations(Vec<(StateHash, Option<LoggedRecord>)>),
    /// The chain itself: what no operation's own changes hold (spec: EXEC-2).
    Chain,
    /// Not known here: the state before the block, or the block, is not kept.
    Unknown,
}

/// A part of what a key held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHistory {
    /// Its changes, the earliest first.
    pub changes: Vec<KeyChange>,
    /// The heights that were looked at.
    pub heights: RangeInclusive<Height>,
    /// Where to go on; none at the end of what was asked for.
    pub next: Option<Height>,
}

impl<H: Hasher> Ledger<H> {
    /// The changes of a key at the heights of a range, at most `limit` of them. One call looks at 10,000 heights at most:
    /// at the diff of each, and for each change it runs a block.
    ///
    /// # Errors
    /// [`StoreError::NotRetained`] if the range begins below what is kept, [`LedgerError::NotYet`] if it does above the last
    /// height; otherwise what reading says.
    pub fn key_history(
        &self,
        namespace: &Namespace,
        key: &Key,
        heights: RangeInclusive<Height>,
        limit: usize,
    ) -> Result<KeyHistory, LedgerError> {
        let (from, last) = (*heights.start(), self.height());
        if from > last {
            return Err(LedgerError::NotYet { height: from, last });
        }
        let to = (*heights.end()).min(last);
        let low = self.store().low().unwrap_or_default();
        if from < low {
            return Err(StoreError::NotRetained { height: from, low, high: self.height() }.into());
        }
        let mut changes = Vec::new();
        let mut height = from;
        while height <= to && changes.len() < limit && height.0 - from.0 < KEY_HISTORY_HEIGHTS_MAX {
            match self.store().diff_at(height) {
                Ok(diff) => {
                    let found =
                        diff.changes.into_iter().find(|change| change.namespace == *namespace && change.key == *key);
                    if let Some(change) = found {
                        let view = self.view_at(height)?;
                        let proof = view.prove(&[Query::Key(namespace.clone(), key.clone())])?.encode();
                        let by = self.changed_by(namespace, key, height)?;
                        let (before, value) = (change.old, change.new);
                        changes.push(KeyChange { height, before, value, by, proof: (view.root(), proof) });
                    }
                }
                // Nothing is known of how this state came about: it was built as a whole, or is the last that is kept.
                Err(StoreError::NoDiff { .. }) => {}
                Err(StoreError::NotRetained { .. }) if height == low => {}
                Err(error) => return Err(error.into()),
            }
            height = height.next();
        }
        let last = height.prev().unwrap_or_default();
        Ok(KeyHistory { changes, heights: from..=last, next: (height <= to).then_some(height) })
    }

    /// Runs a block again, to see which of its operations wrote a key.
    fn changed_by(&self, namespace: &Namespace, key: &Key, height: Height) -> Result<ChangedBy, LedgerError> {
        let Some(below) = height.prev().filter(|below| *below >= self.genesis_height()) else {
            return Ok(ChangedBy::Unknown);
        };
        let before = match self.view_at(below) {
            Ok(view) => view,
            Err(StoreError::NotRetained { .. }) => return Ok(ChangedBy::Unknown),
            Err(error) => return Err(error.into()),
        };
        let block = match self.block(height) {
            Ok(block) => block,
            Err(LedgerError::NoBlock { .. }) => return Ok(ChangedBy::Unknown),
            Err(error) => return Err(error),
        };
        let root = before.root();
        let way = InOrder { noting: Some((namespace.clone(), key.clone())) };
        let executed = run::execute_with(self.registry(), before, root, block, Refused::Receipt, &way)?;
        if executed.noted.is_empty() {
            return Ok(ChangedBy::Chain);
        }
        let audit = self.block_audit(height)?;
        let logged = |state_hash: StateHash| {
            let audit = audit.as_ref()?;
            let is_it =
                |event: &AuditEvent| matches!(event, AuditEvent::Operation(operation) if operation.after == state_hash);
            let index = audit.first + audit.events.iter().position(is_it)? as u64;
            Some(LoggedRecord { index, record: audit.record(index)? })
        };
        // What a batch wrote that failed later has no record: it never took effect.
        let wrote = executed.noted.into_iter().map(|state_hash| (state_hash, logged(state_hash)));
        let wrote: Vec<_> = wrote.filter(|(_, record)| audit.is_none() || record.is_some()).collect();
        Ok(if wrote.is_empty() { ChangedBy::Chain } else { ChangedBy::Operations(wrote) })
    }
}
