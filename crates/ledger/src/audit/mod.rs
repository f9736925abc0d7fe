//! The audit log of a chain: what happened, record after record, so that nothing of it can be changed unseen.
//!
//! Every block that is not empty appends its records to one Merkle mountain range. Its count and peaks, fewer than 64
//! hashes, are state: the root of a height certifies all that the log said up to there, and a node that took its state
//! from a snapshot goes on appending. The records themselves are kept in the database beside the bodies. They can be
//! pruned from below: the peaks of what is gone stay, and what remains is still proven against the state.
//!
//! A [`SignedCheckpoint`] lets an outsider keep where the log stood, and find out later whether it was only added to.
//! What the database holds is taken to be damaged, checkpoints and proofs to come from an adversary.
//!
//! What a node does by itself, to its own state and settings, has a log of its own: [`NodeLog`].
//!
//! Rules: `spec/audit.md`. Vectors: `spec/vectors/audit.json`.

mod checkpoint;
mod history;
mod own;
mod record;
mod walk;

pub use checkpoint::{AuditProof, AuditProofError, Checkpoint, SignedCheckpoint};
pub(crate) use checkpoint::{STATE_PROOF_BYTES_MAX, shown};
pub use history::{AuditFault, AuditVerdict, KnownOfHeight, LoggedRecord};
pub(crate) use history::{forget_audit, interrupt_audit, keep_audit};
pub use own::{
    NODE_SETTINGS_BYTES_MAX, NODE_TEXT_BYTES_MAX, NODE_WHO_BYTES_MAX, NodeAudit, NodeCheckpoint, NodeEvent, NodeLog,
    NodeLogError, NodeLogLimits, NodeLogState, NodeRecord, NodeStep, NodeVerdict, NodeWalk, SignedNodeRecord, Standing,
    cut,
};
pub(crate) use record::Collected;
pub use record::{AUDIT_RECORDS_MAX, AuditBlock, AuditEvent, AuditOperation, AuditRecord, BlockAudit};
pub use walk::AuditWalk;

use crate::run::Way;
use keelstone_codec::{Decode, Encode, Hash, Height, Key, Namespace, Tag, Value};
use keelstone_execution::BlockDraft;
use keelstone_execution::mmr::{Domain, Mmr, Place};
use keelstone_tree::{Read, ReadError};

/// The namespace of the log's peaks, which no function may write.
pub const AUDIT: &str = "audit";
const LOG: &str = "log";

/// The kind of range that the audit log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditLog {}

impl Domain for AuditLog {
    const LEAF: Tag = Tag::new("audit/leaf");
    const INNER: Tag = Tag::new("audit/inner");
    const ROOT: Tag = Tag::new("audit/root");
}

/// Subtrees of this level and above are kept; those below are found again from the records, at most 256 of them.
pub(crate) const KEPT_LEVEL: u8 = 8;

/// Where the state says how the log stands: so that one proof shows it.
///
/// # Panics
/// Never: both are constants.
// spec: AUDIT-4
#[must_use]
pub fn log_place() -> (Namespace, Key) {
    (Namespace::new(AUDIT).expect("a constant"), Key::new(LOG.as_bytes()).expect("a constant"))
}

/// How the log stands in a state.
///
/// # Errors
/// [`ReadError`]; a log that does not decode is damage.
pub fn read_log(state: &dyn Read) -> Result<Mmr<AuditLog>, ReadError> {
    let (namespace, key) = log_place();
    log_of(state.get(&namespace, &key)?)
}

fn log_of(value: Option<Value>) -> Result<Mmr<AuditLog>, ReadError> {
    match value {
        None => Ok(Mmr::default()),
        Some(value) => Mmr::from_bytes(&value)
            .map_err(|error| ReadError::damaged(format!("{AUDIT}/{LOG} does not decode: {error}"))),
    }
}

/// What a block adds to the log.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The log before.
    pub before: Mmr<AuditLog>,
    /// The records.
    pub records: BlockAudit,
    /// The tops that are kept of what became whole.
    pub(crate) tops: Vec<(Place, Hash)>,
}

/// Appends what a block did to the log in its draft: one write a block, whatever it did.
// spec: LEDGER-5, AUDIT-4
pub(crate) fn append(
    draft: &mut BlockDraft<'_>,
    height: Height,
    events: Vec<AuditEvent>,
    way: &impl Way,
) -> Result<Appended, ReadError> {
    let (namespace, key) = log_place();
    let before = log_of(draft.get(&namespace, &key)?)?;
    let items = way.each(events.len(), |at| AuditRecord { height, event: events[at].clone() }.item());
    let records = BlockAudit { height, first: before.count(), events };
    let (mut log, mut tops) = (before.clone(), Vec::new());
    for item in &items {
        log.append_seen(item, |place, top| {
            if place.level >= KEPT_LEVEL {
                tops.push((place, top));
            }
        });
    }
    let value = Value::new(log.to_bytes()).expect("a count and fewer than 64 hashes");
    draft.put(&namespace, key, Some(value))?;
    Ok(Appended { before, records, tops })
}
