//! What the state holds of bundles in flight.
//!
//! Layout: `spec/chain.md`, EXEC-7, EXEC-9 and EXEC-21.

use crate::newtype::hash_newtype;
use crate::{Capability, Failure, Item, Map, Operation, PublicKey, SessionId, Set};
use keelstone_codec::{BoundedList, Hash, Height, Key, Namespace, StateHash, Tag, TaggedHasher, Value};
use keelstone_macros::{Decode, Encode, namespace};

/// Most bundles in flight that a chain's limits may allow.
pub const IN_FLIGHT_MAX: usize = 1_024;
/// Bytes of operations after which a piece is full.
pub const PIECE_BYTES: usize = 64 << 10;
/// Longest value that is kept for undoing, in bytes: its key, and what is said of it, must fit into a value with it.
pub const UNDO_VALUE_BYTES_MAX: usize = (8 << 20) - 1_024;

/// What a session needs to resume, correct, take back or abandon a bundle.
pub const MANAGE: Capability = Capability::new("bundles.manage");
/// What a session needs to keep others off the keys a bundle wrote.
pub const HOLD: Capability = Capability::new("bundles.hold");

hash_newtype! {
    /// The identity of an async bundle: that of the transaction which submitted it.
    BundleId
}

/// What a bundle is about.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Status {
    /// The chain goes on with it.
    Running,
    /// It stands at its last checkpoint until its owner or its time decides.
    Stopped(StopReason),
    /// All its operations took effect.
    Complete,
    /// What it did was taken back.
    RolledBack,
    /// It was left as it stood.
    Abandoned,
}

/// Why a bundle stopped.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StopReason {
    /// An operation failed, and nothing of its batch was kept.
    Failed(Failure),
    /// Its last height went by.
    Expired,
}

/// The checkpoint of a bundle: all but its operations and what it takes to undo it. Rewritten by every batch.
// spec: EXEC-7
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BundleRecord {
    /// The key that submitted it.
    pub owner: PublicKey,
    /// The session it runs in.
    pub session: SessionId,
    /// What it is about.
    pub status: Status,
    /// How many operations took effect: the index of the next.
    pub current_operation: u32,
    /// How many it has.
    pub total_operations: u32,
    /// The session's state hash after the last of them.
    pub state_hash: StateHash,
    /// The root of the list of its operations.
    pub operations: Hash,
    /// How often an operation was replaced.
    pub revision: u32,
    /// Whether others are kept off the keys it wrote.
    pub hold: bool,
    /// The first operation of the piece in which the next one lies.
    pub piece: u32,
    /// Bytes of its operations.
    pub bytes: u64,
    /// Bytes they may come to when operations are replaced.
    pub room: u64,
    /// Keys it wrote.
    pub undo_entries: u32,
    /// Bytes of what they held before.
    pub undo_bytes: u64,
    /// The height at which it was submitted.
    pub submitted: Height,
    /// The last height at which the chain goes on with it.
    pub last_height: Height,
    /// The height of the last batch, or of what was done to it since.
    pub updated: Height,
}

impl BundleRecord {
    /// Whether all operations took effect.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.status == Status::Complete
    }

    /// Whether it still has a place among the bundles in flight: it runs, or can be made to.
    #[must_use]
    pub fn is_in_flight(&self) -> bool {
        matches!(self.status, Status::Running | Status::Stopped(_))
    }
}

/// Some consecutive operations of a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Piece {
    /// Those of them that begin a batch, by index in the bundle.
    pub borders: Vec<u32>,
    /// The operations.
    pub operations: Vec<Operation>,
}

/// What a key held before a bundle first wrote it.
// spec: EXEC-9
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Before {
    /// Where.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// What it held.
    pub value: Option<Value>,
}

/// Which bundles in flight wrote a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Written {
    /// One for each, in the order of their first writes.
    pub writers: BoundedList<Writer, IN_FLIGHT_MAX>,
}

/// What a bundle in flight did to one key, and what others did since.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Writer {
    /// The bundle.
    pub bundle: BundleId,
    /// The number of its [`Before`].
    pub entry: u32,
    /// The hash of what it last wrote; none if it deleted the key.
    pub after: Option<Hash>,
    /// Whether it keeps others off.
    pub hold: bool,
    /// Who else changed the key last.
    pub changed: Option<Changer>,
    /// It wrote over what another had written after it. What it overwrote is nobody's to restore.
    pub overlaid: bool,
}

/// Who changed a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Changer {
    /// When.
    pub height: Height,
    /// The transaction whose bundle did, or the async bundle.
    pub bundle: Option<BundleId>,
}

/// Sums over the bundles in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Totals {
    /// How many there are.
    pub in_flight: u32,
    /// Bytes their operations may come to.
    pub bytes: u64,
}

/// The namespace `bundles`: async bundles in flight, and what became of those that were. The engine's own.
// spec: EXEC-21
#[namespace("bundles")]
pub struct Bundles {
    /// The checkpoints. Those of bundles that ended stay.
    pub records: Map<BundleId, BundleRecord>,
    /// Operations of bundles in flight, by the index of a piece's first.
    pub operations: Map<(BundleId, u32), Piece>,
    /// What their keys held before, in the order of first writes.
    pub undo: Map<(BundleId, u32), Before>,
    /// Who wrote which key, under [`key_hash`].
    pub written: Map<Hash, Written>,
    /// Those that run.
    pub queue: Set<BundleId>,
    /// Those in flight, by the height at which time decides over them.
    pub due: Set<(Height, BundleId)>,
    /// The one that was served last.
    pub cursor: Item<BundleId>,
    /// Sums over all in flight. Absent while there are none.
    pub totals: Item<Totals>,
    /// How many bundles of a key are in flight.
    pub owners: Map<PublicKey, u32>,
}

/// The hash under which a key stands among the written ones: keys of the state are longer than a part of a key may be.
#[must_use]
pub fn key_hash(namespace: &Namespace, key: &Key) -> Hash {
    const WRITTEN: Tag = Tag::new("bundle/key");
    TaggedHasher::new(WRITTEN).value(namespace).value(key).finish()
}
