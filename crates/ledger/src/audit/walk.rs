//! What follows from the records alone: that each is one that can follow those before it.
//!
//! Whoever has a stretch of the log and no chain walks along it. That the records stand in the log is shown by proofs, and that the
//! log is the chain's by a root that is trusted; what is checked here holds of every log that a chain wrote, so a made-up one
//! that does not keep to it is found with no root at hand. Everything is taken to come from an adversary. What is remembered of a
//! session is a tenth of the line that brought it.
//!
//! Rules: `spec/audit.md`, AUDIT-15.

use super::{AuditEvent, AuditRecord};
use keelstone_codec::{ChainId, Hash, Height, Root, StateHash, Timestamp};
use keelstone_execution::bundles::BundleId;
use keelstone_execution::{SessionId, rollback_link};
use std::collections::BTreeMap;

/// A stretch of the log, as far as it was walked.
#[derive(Clone, Debug)]
pub struct AuditWalk {
    chain_id: ChainId,
    genesis_hash: Hash,
    /// Whether it begins with the first record of all.
    whole: bool,
    /// How many operations each session ran, where that is known, and its state hash.
    sessions: BTreeMap<SessionId, (Option<u64>, StateHash)>,
    /// The height of the last record, and whether that ended its block.
    last: Option<(Height, bool)>,
    time: Timestamp,
    blocks: u64,
    /// The bundle whose operation must be the next record, since it took another bundle back.
    asked_for: Option<BundleId>,
}

impl AuditWalk {
    /// Begins at a place of the log of a chain.
    #[must_use]
    pub fn begin(chain_id: ChainId, genesis_hash: Hash, from: u64) -> Self {
        Self {
            chain_id,
            genesis_hash,
            whole: from == 0,
            sessions: BTreeMap::new(),
            last: None,
            time: Timestamp(0),
            blocks: 0,
            asked_for: None,
        }
    }

    /// Goes on to the next record. Gives the root before its block, if it is that of one.
    ///
    /// # Errors
    /// Why no chain writes this record behind those before.
    // spec: AUDIT-15
    pub fn step(&mut self, record: &AuditRecord) -> Result<Option<Root>, String> {
        let height = record.height;
        match self.last {
            Some((last, false)) if height != last => {
                return Err(format!("it is of height {height}, and the record of block {last} is absent"));
            }
            Some((last, true)) if height <= last => {
                return Err(format!("it is of height {height}, and block {last} has ended before it"));
            }
            _ => {}
        }
        let is_block = matches!(record.event, AuditEvent::Block(_));
        if let Some(by) = self.asked_for.take() {
            match &record.event {
                AuditEvent::Operation(operation) if operation.bundle == by => {}
                AuditEvent::RolledBack { by: again, .. } if *again == by => {}
                _ => return Err(format!("a bundle was taken back before it, by no operation of {by}")),
            }
        }
        let before = match &record.event {
            AuditEvent::Operation(operation) => {
                let link = operation.link(&self.chain_id);
                if link != operation.after {
                    return Err(format!("its state hash {} is not its link, {}", operation.after.0, link.0));
                }
                self.goes_on(operation.session, Some(operation.sequence), operation.before)?;
                let sequence = operation.sequence.checked_add(1).ok_or("there is no such place in a session")?;
                self.sessions.insert(operation.session, (Some(sequence), operation.after));
                None
            }
            AuditEvent::RolledBack { by, bundle, session, before, after, diff, .. } => {
                let link = rollback_link(before, &bundle.0, diff);
                if link != *after {
                    return Err(format!("its state hash {} is not its link, {}", after.0, link.0));
                }
                let sequence = self.goes_on(*session, None, *before)?;
                self.sessions.insert(*session, (sequence, *after));
                self.asked_for = Some(*by);
                None
            }
            AuditEvent::Block(block) => {
                if block.time < self.time {
                    return Err(format!("its time {} is before that of the block before, {}", block.time, self.time));
                }
                if self.whole && self.blocks == 0 && block.previous_record != self.genesis_hash {
                    return Err(format!(
                        "the first block stands on {}, the genesis has hash {}",
                        block.previous_record, self.genesis_hash
                    ));
                }
                self.time = block.time;
                self.blocks += 1;
                Some(block.before)
            }
            AuditEvent::Failed { .. } | AuditEvent::Submitted { .. } | AuditEvent::Ended { .. } => None,
        };
        self.last = Some((height, is_block));
        Ok(before)
    }

    /// Whether a session goes on from where it stood; gives how many operations it had run.
    fn goes_on(&self, session: SessionId, sequence: Option<u64>, before: StateHash) -> Result<Option<u64>, String> {
        let Some((known, stood)) = self.sessions.get(&session) else {
            return match (self.whole, sequence) {
                (true, Some(sequence)) if sequence > 0 => {
                    Err(format!("session {} ran {sequence} operations that have no record", session.0))
                }
                (true, None) => Ok(Some(0)),
                (_, sequence) => Ok(sequence),
            };
        };
        if before != *stood {
            return Err(format!("session {} stood at {}, not at {}", session.0, stood.0, before.0));
        }
        match (known, sequence) {
            (Some(known), Some(sequence)) if *known != sequence => {
                Err(format!("session {} had run {known} operations, not {sequence}", session.0))
            }
            (known, _) => Ok(*known),
        }
    }

    /// The height of the block that the last record ended; none if it ended none.
    #[must_use]
    pub fn ended(&self) -> Option<Height> {
        self.last.filter(|(_, ended)| *ended).map(|(height, _)| height)
    }
}
