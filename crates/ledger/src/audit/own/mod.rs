//! A node's own audit log: what one node did to its state, its history and its settings, which no chain can say.
//!
//! Rolling back, pruning, restoring and recovering are things of one machine, so they are in no replicated state. Each is a
//! [`NodeRecord`]: who, when by that machine's clock, what, and where the state stood before and after. Records are linked
//! by hash, their links form a Merkle mountain range like that of the chain's log, and the node signs where the log stands
//! after each. So whoever changes, drops, moves or repeats a record without the node's key is found out, and the first such
//! record is named; whoever has the key, or sets the whole directory back, is found out by a [`NodeCheckpoint`] that
//! somebody else keeps.
//!
//! This file is what the log is; [`NodeLog`] is where it lies on a disk. Both take what they read for an adversary's.
//!
//! Rules: `spec/audit.md`, AUDIT-10 to AUDIT-13. Vectors: `spec/vectors/audit.json`.

mod files;

pub use files::{NodeLog, NodeLogError, NodeLogLimits, NodeVerdict};

use crate::keys::{self, SecretKey, Signature, SignatureError, verify};
use keelstone_codec::{Hash, Height, Root, Tag, TaggedHasher, Text, Timestamp};
use keelstone_execution::PublicKey;
use keelstone_execution::mmr::{Domain, Mmr};
use keelstone_macros::{Decode, Encode};

const RECORD: Tag = Tag::new("node-audit/record");
const LOG: Tag = Tag::new("node-audit/log");

/// Longest name of who did something, in bytes.
pub const NODE_WHO_BYTES_MAX: usize = 128;
/// Longest place, source or reason in a record, in bytes.
pub const NODE_TEXT_BYTES_MAX: usize = 512;
/// Longest list of settings in a record, in bytes.
pub const NODE_SETTINGS_BYTES_MAX: usize = 4_096;

/// The kind of range that a node's own log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAudit {}

impl Domain for NodeAudit {
    const LEAF: Tag = Tag::new("node-audit/leaf");
    const INNER: Tag = Tag::new("node-audit/inner");
    const ROOT: Tag = Tag::new("node-audit/root");
}

/// One record of the log.
// spec: AUDIT-10
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct NodeRecord {
    /// When, by the machine's clock.
    pub time: Timestamp,
    /// Who: a user of the machine, or the node by itself.
    pub who: Text<NODE_WHO_BYTES_MAX>,
    /// What.
    pub event: NodeEvent,
    /// How far it was.
    pub step: NodeStep,
    /// Where the state stood before; none if there was none, or it has no part in this.
    pub before: Option<Standing>,
    /// Where it stood afterwards.
    pub after: Option<Standing>,
}

/// Where a state stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Standing {
    /// Its height.
    pub height: Height,
    /// Its root.
    pub root: Root,
}

/// How far something was when it was put on record.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum NodeStep {
    /// It is about to begin. What cannot be undone is put on record before and after: if nothing follows this, it was cut off.
    Begun,
    /// It is done.
    Done,
    /// It was not done.
    Failed {
        /// Why.
        reason: Text<NODE_TEXT_BYTES_MAX>,
    },
}

/// What a node did.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum NodeEvent {
    /// Made an earlier height the last one again.
    RolledBack {
        /// That height.
        to: Height,
    },
    /// Forgot states.
    PrunedStates {
        /// Those below this height.
        below: Height,
    },
    /// Gave up records of the chain's audit log.
    PrunedAudit {
        /// Those below this height.
        below: Height,
    },
    /// Took the state of a snapshot.
    Restored {
        /// Where it is from.
        source: Text<NODE_TEXT_BYTES_MAX>,
    },
    /// Built the chain as it was, somewhere else.
    Rebuilt {
        /// Up to this height.
        to: Height,
        /// Where.
        into: Text<NODE_TEXT_BYTES_MAX>,
    },
    /// Took back a last block that was not whole when the power or the process went.
    TookBack {
        /// The block.
        height: Height,
    },
    /// Made a snapshot.
    MadeSnapshot {
        /// Of this height.
        height: Height,
    },
    /// Removed a snapshot.
    RemovedSnapshot {
        /// Of this height.
        height: Height,
    },
    /// Began to run with other settings than before.
    Configured {
        /// The hash of the settings before; none if none are known.
        before: Option<Hash>,
        /// The hash of these.
        after: Hash,
        /// Those that are not the default, one to a line.
        settings: Text<NODE_SETTINGS_BYTES_MAX>,
    },
    /// Cut what was not whole behind the last record, which had never been acknowledged.
    CutTail {
        /// How many bytes.
        bytes: u64,
    },
    /// Forgot records of this log.
    Forgot {
        /// Those before this one.
        first: u64,
    },
    /// Mended what was damaged of its stored state.
    Mended {
        /// What was damaged; once it is done, what was had again and from where.
        what: Text<NODE_TEXT_BYTES_MAX>,
    },
    /// Had a lost or damaged state again.
    Recovered {
        /// By which strategy, and where the report lies.
        how: Text<NODE_TEXT_BYTES_MAX>,
    },
}

impl NodeEvent {
    /// All kinds, as [`Self::kind`] says them.
    pub const KINDS: [&'static str; 13] = [
        "rolled_back",
        "pruned_states",
        "pruned_audit",
        "restored",
        "rebuilt",
        "took_back",
        "made_snapshot",
        "removed_snapshot",
        "configured",
        "cut_tail",
        "forgot",
        "mended",
        "recovered",
    ];

    /// Its kind, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RolledBack { .. } => "rolled_back",
            Self::PrunedStates { .. } => "pruned_states",
            Self::PrunedAudit { .. } => "pruned_audit",
            Self::Restored { .. } => "restored",
            Self::Rebuilt { .. } => "rebuilt",
            Self::TookBack { .. } => "took_back",
            Self::MadeSnapshot { .. } => "made_snapshot",
            Self::RemovedSnapshot { .. } => "removed_snapshot",
            Self::Configured { .. } => "configured",
            Self::CutTail { .. } => "cut_tail",
            Self::Forgot { .. } => "forgot",
            Self::Mended { .. } => "mended",
            Self::Recovered { .. } => "recovered",
        }
    }
}

/// Text cut to its bound, at the border of a character: what is said of a machine may be longer than a record.
#[must_use]
pub fn cut<const N: usize>(mut text: String) -> Text<N> {
    text.truncate(text.floor_char_boundary(N));
    Text::new(text).expect("just cut")
}

/// Where the log stands: all it takes to append to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct NodeLogState {
    /// The link of the last record; zero before the first.
    pub link: Hash,
    /// The range of all links.
    pub log: Mmr<NodeAudit>,
}

impl NodeLogState {
    /// Where it stands after a record.
    // spec: AUDIT-11
    #[must_use]
    pub fn after(&self, record: &NodeRecord) -> Self {
        let link = TaggedHasher::new(RECORD).value(&self.link).value(record).finish();
        let mut log = self.log.clone();
        log.append(&link);
        Self { link, log }
    }

    fn sign_bytes(&self) -> Vec<u8> {
        keys::sign_bytes(LOG, self)
    }

    fn sign(&self, key: &SecretKey) -> Signature {
        key.sign(&self.sign_bytes())
    }

    /// Where it stands, with the signature of the node.
    #[must_use]
    pub fn signed(self, key: &SecretKey) -> NodeCheckpoint {
        NodeCheckpoint { key: key.public(), signature: self.sign(key), state: self }
    }
}

/// Where a log stood, as the node says.
// spec: AUDIT-11
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct NodeCheckpoint {
    /// The node's key.
    pub key: PublicKey,
    /// Where the log stood.
    pub state: NodeLogState,
    /// The signature.
    pub signature: Signature,
}

impl NodeCheckpoint {
    /// Verifies the signature. Whether the key is the node's is the reader's to know.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(&self) -> Result<(), SignatureError> {
        verify(&self.key, &self.state.sign_bytes(), &self.signature)
    }
}

/// A record with the node's signature over where the log stands after it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct SignedNodeRecord {
    /// The record.
    pub record: NodeRecord,
    /// The signature.
    pub signature: Signature,
}

/// A log that is followed record by record, from a signed beginning.
#[derive(Clone, Debug)]
pub struct NodeWalk {
    key: PublicKey,
    state: NodeLogState,
}

impl NodeWalk {
    /// Begins where a checkpoint says.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn begin(checkpoint: &NodeCheckpoint) -> Result<Self, SignatureError> {
        checkpoint.verify()?;
        Ok(Self { key: checkpoint.key, state: checkpoint.state.clone() })
    }

    /// How many records come before the next.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.state.log.count()
    }

    /// The node's key.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// Where the log stands here.
    #[must_use]
    pub fn state(&self) -> &NodeLogState {
        &self.state
    }

    /// Takes the next record on trust: a signature further on covers it.
    fn follow(&mut self, next: &SignedNodeRecord) {
        self.state = self.state.after(&next.record);
    }

    /// Takes the next record, if the node signed that it follows.
    ///
    /// # Errors
    /// [`SignatureError`]: it is not the next one.
    // spec: AUDIT-13
    pub fn take(&mut self, next: &SignedNodeRecord) -> Result<(), SignatureError> {
        let state = self.state.after(&next.record);
        verify(&self.key, &state.sign_bytes(), &next.signature)?;
        self.state = state;
        Ok(())
    }
}
