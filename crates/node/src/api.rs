//! What a chain answers, as JSON: the same types for the HTTP API, its client and the command line.
//!
//! [`Chain`] is what can be asked. A chain in this process and one behind HTTP both answer it, so a command does not
//! care whether a node is running. Hashes, keys and bytes are lower-case hexadecimal, times milliseconds since 1970.

use crate::call::wide;
use crate::exit::{Exit, Failure};
use keelstone_codec::{Hash, Height, Key, Namespace};
use keelstone_execution::{PublicKey, SessionId};
use keelstone_ledger::{AuditRecord, ChainLimits};
use keelstone_store::ScrubStanding;
use keelstone_sync::library::Info;
use keelstone_tree::KeyRange;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;
use utoipa::ToSchema;

/// The most bytes of values one listing returns.
pub(crate) const ENTRIES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A chain that can be asked and given transactions.
pub(crate) trait Chain: Send + Sync {
    /// Where the chain stands.
    fn status(&self) -> Result<Status, Refusal>;
    /// Takes in an encoded, signed transaction.
    fn submit(&self, transaction: &[u8]) -> Result<Submitted, Refusal>;
    /// One entry of the state at a height, the last if none is given.
    fn entry(&self, namespace: &Namespace, key: &Key, at: Option<Height>, prove: bool) -> Result<Entry, Refusal>;
    /// Up to `limit` entries whose keys begin with `prefix`, after the key `after`.
    fn entries(&self, namespace: &Namespace, page: &Page, at: Option<Height>, prove: bool) -> Result<Entries, Refusal>;
    /// Up to `limit` entries of the last state that an index has under a value, after the key `after`.
    fn lookup(&self, by: By, of: &str, page: &Page) -> Result<Entries, Refusal>;
    /// A block; the last if no height is given.
    fn block(&self, height: Option<Height>) -> Result<Block, Refusal>;
    /// A transaction and what became of it.
    fn transaction(&self, id: &Hash) -> Result<Transaction, Refusal>;
    /// What an account needs to know to send its next transaction.
    fn account(&self, key: &PublicKey) -> Result<Account, Refusal>;
    /// A session, and whether it may act in the next block.
    fn session(&self, id: &SessionId) -> Result<Session, Refusal>;
    /// A page of sessions.
    fn sessions(&self, wanted: &SessionsWanted) -> Result<SessionList, Refusal>;
    /// The checkpoint of an async bundle, also of one that ended.
    fn bundle(&self, id: &Hash) -> Result<BundleStatus, Refusal>;
    /// The async bundles in flight.
    fn bundles(&self) -> Result<Vec<BundleStatus>, Refusal>;
    /// What anybody needs to run an encoded transaction, signed or not, with no store at hand.
    fn witness(&self, transaction: &[u8]) -> Result<Witness, Refusal>;
    /// What an encoded transaction, signed or not, would come to if it came now. Nothing is taken in.
    fn dry_run(&self, transaction: &[u8]) -> Result<DryRun, Refusal>;
    /// That an operation of a bundle took effect, sync or async, proven in the last state; or, where a block is said, a function
    /// that the chain called in it by itself.
    fn operation_proof(&self, bundle: &Hash, index: u32, at: Option<HookAt>) -> Result<OperationAnswer, Refusal>;
    /// Records of the audit log.
    fn audit(&self, wanted: &AuditWanted) -> Result<Audit, Refusal>;
    /// One record of the audit log, with the proof that it is in the log of the last state.
    fn audit_proof(&self, index: u64) -> Result<AuditAnswer, Refusal>;
    /// Where the audit log stands; with the proof that it goes on from its first so many records, if a count is given.
    fn audit_checkpoint(&self, since: Option<u64>) -> Result<AuditCheckpoint, Refusal>;
    /// Up to `limit` changes of an entry between two heights, those of all that is kept if none are given.
    fn history(
        &self,
        namespace: &Namespace,
        key: &Key,
        heights: (Option<Height>, Option<Height>),
        limit: usize,
    ) -> Result<History, Refusal>;
    /// What can be called.
    fn functions(&self) -> Result<Vec<Function>, Refusal>;
    /// What this program does not read of the state as it was written. A node has said so when it started.
    fn misread(&self) -> Vec<String> {
        Vec::new()
    }
    /// Has whoever answers wait no longer than this from now on where it is told to ask again later. One in this process never is.
    fn hurry(&self, _within: Duration) {}
}

/// Why a chain did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Refusal {
    /// The question makes no sense.
    #[error("{0}")]
    Bad(String),
    /// Not from there, or not with this token or without one.
    #[error("{message}")]
    Forbidden {
        /// Why not.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// This is asked too often from here. Nothing was done.
    #[error("{message}")]
    TooMany {
        /// What there was too much of.
        message: String,
        /// How long to wait.
        after: Duration,
    },
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The transaction is in no block yet.
    #[error("transaction {0} waits for a block")]
    Waiting(Hash),
    /// The height was kept once, or is not reached yet.
    #[error("height {asked} is not kept: {}", there_are(.lowest, .highest))]
    Height {
        /// The height asked for.
        asked: u64,
        /// The lowest whose state is kept.
        lowest: u64,
        /// The highest there is; below the lowest if there is none.
        highest: u64,
    },
    /// The height is that of the genesis, or below it: it never had a block.
    #[error("height {asked} has no block, it is not above the genesis: {}", there_are(.lowest, .highest))]
    NoBlock {
        /// The height asked for.
        asked: u64,
        /// The lowest whose block is kept.
        lowest: u64,
        /// The highest there is; below the lowest if there is none.
        highest: u64,
    },
    /// The rules of the chain refuse the transaction.
    // spec: TX-5
    #[error("{code}: {message}")]
    Refused {
        /// The number of the reason.
        code: String,
        /// What was compared.
        message: String,
    },
    /// This node makes no blocks: whoever does is named.
    #[error("{0}")]
    Follows(MadeBy),
    /// As much waits as may.
    #[error("{0}")]
    Busy(String),
    /// Stored bytes are not what they must be.
    #[error("{0}")]
    Damaged(String),
    /// The machine failed.
    #[error("{0}")]
    Failed(String),
}

fn there_are(lowest: &u64, highest: &u64) -> String {
    match lowest > highest {
        true => format!("there is none here yet, the next is {lowest}"),
        false => format!("the lowest is {lowest}, the highest {highest}"),
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let exit = match &refusal {
            Refusal::Bad(_) | Refusal::Forbidden { .. } => Exit::Usage,
            Refusal::NotFound(_) | Refusal::Waiting(_) | Refusal::Height { .. } | Refusal::NoBlock { .. } => {
                Exit::NotFound
            }
            Refusal::Refused { .. } => Exit::Refused,
            Refusal::Follows(_) => Exit::Usage,
            Refusal::Damaged(_) => Exit::Integrity,
            Refusal::TooMany { .. } | Refusal::Busy(_) | Refusal::Failed(_) => Exit::Error,
        };
        let failure = Self::new(exit, refusal.to_string());
        match refusal {
            Refusal::Follows(MadeBy { api: Some(api), .. }) => failure.hint(format!("keelstone tx send --node {api}")),
            Refusal::Forbidden { hint: Some(hint), .. } => failure.hint(hint),
            Refusal::TooMany { after, .. } => failure.hint(format!("ask again in {} s", after.as_secs())),
            _ => failure,
        }
    }
}

/// Who makes the blocks that a node follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct MadeBy {
    /// The keys whose word for a height counts; one of them makes the next block.
    pub(crate) keys: Vec<String>,
    /// Where its node takes transactions; null if this node was not told.
    pub(crate) api: Option<String>,
}

impl MadeBy {
    /// The keys, and where their node is, in words.
    pub(crate) fn who(&self) -> String {
        let at = self.api.as_ref().map_or_else(String::new, |api| format!(" at {api}"));
        format!("{}{at}", self.keys.join(" or "))
    }
}

impl fmt::Display for MadeBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this node follows and makes no blocks; the node of {} does: send it there", self.who())
    }
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionsWanted {
    /// Those with a name below the root session of this key, by name; without it all, by identity.
    pub(crate) of: Option<PublicKey>,
    /// Of those with a name, the one of this name and those below it.
    pub(crate) below: Option<String>,
    /// What the answer before gave as next.
    pub(crate) after: Option<String>,
    pub(crate) limit: usize,
}

/// Which records to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditWanted {
    /// The first place.
    pub(crate) from: Option<u64>,
    /// Only of this height.
    pub(crate) height: Option<Height>,
    /// Only of this kind.
    pub(crate) kind: Option<String>,
    /// Only whose doing is this key's.
    pub(crate) who: Option<PublicKey>,
    /// At most so many.
    pub(crate) limit: usize,
}

impl AuditWanted {
    /// Whether a record is one of these.
    pub(crate) fn picks(&self, record: &AuditRecord) -> bool {
        self.height.is_none_or(|height| record.height == height)
            && self.kind.as_ref().is_none_or(|kind| record.kind() == kind)
            && self.who.is_none_or(|who| record.who() == who)
    }

    /// What is wrong with it, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.kind {
            Some(kind) if !AuditRecord::KINDS.contains(&kind.as_str()) => {
                Err(format!("there is no kind {kind:?}; there are {}", AuditRecord::KINDS.join(", ")))
            }
            _ => Ok(()),
        }
    }
}

/// What entries are looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Agents, by what they are called.
    Name,
    /// Memes, by who posted them.
    Author,
    /// Alliances, by who is in them.
    Member,
    /// Relationships, by whom they are about.
    Other,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Author => "author",
            Self::Member => "member",
            Self::Other => "other",
        })
    }
}

impl FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Name, Self::Author, Self::Member, Self::Other];
        all.into_iter()
            .find(|by| by.to_string() == text)
            .ok_or_else(|| format!("there is no index {text:?}; there are name, author, member and other"))
    }
}

/// Which entries of a namespace to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    pub(crate) prefix: Vec<u8>,
    pub(crate) after: Option<Vec<u8>>,
    pub(crate) limit: usize,
}

impl Page {
    /// The keys it is of, were it without a limit.
    pub(crate) fn range(&self) -> KeyRange {
        let mut range = KeyRange::prefix(&self.prefix);
        if let Some(after) = &self.after {
            range.start = range.start.max(behind(after));
        }
        range
    }

    /// The keys that it is of, if its last one is this, and more were to follow.
    pub(crate) fn range_to(&self, last: Option<&[u8]>) -> KeyRange {
        let range = self.range();
        match last {
            Some(last) => KeyRange { end: Some(behind(last)), ..range },
            None => range,
        }
    }
}

/// The first key above another: that one with a zero byte behind it.
fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Where a chain stands.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Status {
    /// The network's name.
    pub(crate) chain_id: String,
    /// The version of Keelstone that answers.
    pub(crate) version: String,
    /// The application built with it, if it says its own version.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) application: Option<Named>,
    /// The hasher of the state tree.
    pub(crate) hasher: String,
    /// The hash of the genesis.
    pub(crate) genesis_hash: String,
    /// The hash of what the program declares: functions, events, and what lies where (spec: EXEC-22).
    pub(crate) interface: String,
    /// The height of the last block.
    pub(crate) height: u64,
    /// The lowest height whose state can be asked for.
    pub(crate) lowest_height: u64,
    /// The root of the state at `height`.
    pub(crate) root: String,
    /// The time of the last block, in milliseconds since 1970.
    pub(crate) time: u64,
    /// The limits under which the next block runs, by the names of `limits` in a genesis.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) limits: Option<ChainLimits>,
    /// Entries in the state.
    pub(crate) entries: u64,
    /// Bytes of keys and values in the state.
    pub(crate) entry_bytes: u64,
    /// Transactions that wait for a block.
    pub(crate) waiting: u64,
    /// Of these, those that a block could take: no earlier nonce of their sender is missing.
    #[serde(default)]
    pub(crate) ready: u64,
    /// Where the scrub stands: stored bytes that are looked at again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) scrub: Option<ScrubFigures>,
    /// What snapshots there are; null on a node that makes none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) snapshots: Option<SnapshotFigures>,
    /// Why nothing is committed any more until the node restarts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) failed: Option<String>,
    /// How a node that follows a producer stands to what is certified.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) following: Option<FollowFigures>,
    /// Where CometBFT stands, if it makes the blocks and was asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) engine: Option<EngineStanding>,
    /// Where the API of the node that answers listens, if it was asked through it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) api: Option<String>,
}

/// A program and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Named {
    /// What it is called.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
}

/// Where the scrub stands.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ScrubFigures {
    /// Passes over the whole store that came to their end.
    pub(crate) passes: u64,
    /// Bytes the present pass has looked at.
    pub(crate) done_bytes: u64,
    /// Bytes it will have looked at in the end, about.
    pub(crate) total_bytes: u64,
    /// Problems that are known; 0 once a whole pass has found none.
    pub(crate) problems: u64,
}

impl From<ScrubStanding> for ScrubFigures {
    fn from(standing: ScrubStanding) -> Self {
        let ScrubStanding { passes, done_bytes, total_bytes, problems } = standing;
        Self { passes, done_bytes, total_bytes, problems }
    }
}

/// How a node that follows stands to what is certified.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct FollowFigures {
    /// How heights are taken in: `execute` or `apply`.
    pub(crate) manner: String,
    /// Who makes the blocks.
    pub(crate) producer: MadeBy,
    /// The newest height that a producer has certified, as far as this node has heard since it started.
    pub(crate) certified_height: Option<u64>,
    /// How many blocks this node is behind that.
    pub(crate) behind_blocks: Option<u64>,
    /// When a producer last said so, by its clock.
    pub(crate) said_at: Option<u64>,
    /// The next height, if no peer has it any more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) missing_height: Option<u64>,
    /// From where on some peer has heights then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) kept_from: Option<u64>,
    /// Why the last word of a peer's that did not count did not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) refused: Option<String>,
}

/// Which snapshots there are, in short.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct SnapshotFigures {
    /// How many.
    pub(crate) count: u64,
    /// The height of the newest.
    pub(crate) newest_height: Option<u64>,
    /// Bytes of its chunks as they are sent.
    pub(crate) newest_bytes: Option<u64>,
}

impl SnapshotFigures {
    /// Of a list, the newest first.
    pub(crate) fn of(list: &[Info]) -> Self {
        Self {
            count: u64::try_from(list.len()).unwrap_or(u64::MAX),
            newest_height: list.first().map(|info| info.id.height.0),
            newest_bytes: list.first().map(|info| info.bytes),
        }
    }
}

/// The snapshots of a node.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct Snapshots {
    /// Whether the node makes snapshots and serves them.
    pub(crate) enabled: bool,
    /// Heights between snapshots.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) interval: Option<u64>,
    /// Snapshots that are kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) keep: Option<u64>,
    /// The height of the oldest there is: blocks above it are kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) oldest_height: Option<u64>,
    /// The snapshot that is being made, if one is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) making: Option<SnapshotProgress>,
    /// Those that are offered, the newest first.
    pub(crate) snapshots: Vec<Snapshot>,
}

/// How far a snapshot has come.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct SnapshotProgress {
    /// Its height.
    pub(crate) height: u64,
    /// `making`: chunks are made of the state. `proving`: they are read back and proven.
    pub(crate) phase: String,
    /// Chunks done in this phase.
    pub(crate) chunks_done: u32,
    /// Chunks in all.
    pub(crate) chunks: u32,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Snapshot {
    /// The height of the state.
    pub(crate) height: u64,
    /// The format of its chunks.
    pub(crate) format: u32,
    /// The chain it is of.
    pub(crate) chain_id: String,
    /// The root of the state.
    pub(crate) root: String,
    /// The snapshot's hash.
    pub(crate) hash: String,
    /// Chunks in all.
    pub(crate) chunks: u32,
    /// Chunks that hold the upper part of the tree, which come first.
    pub(crate) pages: u32,
    /// Entries of the state.
    pub(crate) entries: u64,
    /// Bytes of their keys and values.
    pub(crate) entry_bytes: u64,
    /// Bytes of its chunks as they are sent.
    pub(crate) bytes: u64,
}

impl Snapshot {
    pub(crate) fn of(info: &Info) -> Self {
        Self {
            height: info.id.height.0,
            format: info.id.format,
            chain_id: info.chain_id.to_string(),
            root: info.root.0.to_string(),
            hash: info.hash.to_string(),
            chunks: info.chunks,
            pages: info.pages,
            entries: info.totals.count,
            entry_bytes: info.totals.bytes,
            bytes: info.bytes,
        }
    }
}

/// Where CometBFT stands, as its RPC says (`sync_info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct EngineStanding {
    /// The address that was asked.
    pub(crate) rpc: String,
    /// Why it did not answer, if it did not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) error: Option<String>,
    /// Its last block.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) height: Option<u64>,
    /// Its first block.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) earliest_height: Option<u64>,
    /// Whether it is still behind the others.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) catching_up: Option<bool>,
}

impl std::fmt::Display for EngineStanding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(error) = &self.error {
            return f.write_str(error);
        }
        let (height, earliest) = (self.height.unwrap_or_default(), self.earliest_height.unwrap_or_default());
        let state = match (self.catching_up, height) {
            (Some(true), _) => "catching up",
            // An engine that nobody gives the first block says that it has caught up.
            (_, 0) => "no block yet",
            _ => "in step",
        };
        write!(f, "height {height}, blocks from {earliest}, {state}")
    }
}

/// A transaction that was taken in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Submitted {
    /// Its identity.
    pub(crate) id: String,
}

/// What was read again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Reloaded {
    /// Tokens that are taken now, beside the one of the node's own commands.
    pub(crate) tokens: usize,
    /// SHA-256 of the certificate that is shown from now on, on a node that speaks HTTPS.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) certificate: Option<String>,
}

/// One entry of the state.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// The namespace.
    pub(crate) namespace: String,
    /// The key.
    pub(crate) key: String,
    /// The height of the state.
    pub(crate) height: u64,
    /// The root of the state.
    pub(crate) root: String,
    /// The hasher the proof is checked with.
    pub(crate) hasher: String,
    /// The value, or null if there is no such entry.
    #[serde(deserialize_with = "said")]
    pub(crate) value: Option<String>,
    /// The value as text, if it is text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) text: Option<String>,
    /// The proof of the answer under `root`, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) proof: Option<String>,
}

/// A member that may be null, and has to be there: an absence is said.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer)
}

/// A proof of all that running a transaction reads and writes, and where it would be run if it came now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Witness {
    /// The chain.
    pub(crate) chain_id: String,
    /// The hasher the proof is checked with.
    pub(crate) hasher: String,
    /// The root of the last state.
    pub(crate) root: String,
    /// The height of the next block.
    pub(crate) height: u64,
    /// A time that block may have, in milliseconds since 1970.
    pub(crate) time: u64,
    /// Somebody who may make that block.
    pub(crate) proposer: String,
    /// The proof under `root`, in hexadecimal.
    pub(crate) proof: String,
}

/// What a transaction would come to if it came now, alone in the next block. Others may come before it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DryRun {
    /// The root of the state it was run on, the last.
    pub(crate) root: String,
    /// A time that block may have, in milliseconds since 1970.
    pub(crate) time: u64,
    /// How many entries of the state it would change, its nonce and its session's record included.
    pub(crate) entries_changed: u64,
    /// Bytes of their keys and of the values they would hold.
    pub(crate) bytes_changed: u64,
    /// The receipt it would get; an async bundle the one it would get as a sync one, with the gas of 16 such.
    pub(crate) receipt: Receipt,
    /// What the chain would do around it by itself.
    #[serde(default)]
    pub(crate) continuations: Vec<Continuation>,
}

/// Entries of a namespace, in the order of their keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entries {
    /// The height of the state.
    pub(crate) height: u64,
    /// The root of the state.
    pub(crate) root: String,
    /// The entries.
    pub(crate) entries: Vec<Pair>,
    /// The same by field, if they were asked for by their place.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) rows: Option<Vec<Row>>,
    /// The key to ask after for more, if there is more.
    pub(crate) next: Option<String>,
    /// That these are all entries of a range of keys, if a proof was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) proof: Option<RangeProof>,
}

/// An entry by the types of its place, as arguments are written in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    /// The key.
    pub(crate) key: Value,
    /// The value.
    pub(crate) value: Value,
}

/// The proof that some entries are all of a range of keys, present or not.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RangeProof {
    /// The namespace.
    pub(crate) namespace: String,
    /// The first key of the range; nothing for the first of all.
    pub(crate) start: String,
    /// The first key behind the range; null if there is none.
    pub(crate) end: Option<String>,
    /// The hasher the proof is checked with.
    pub(crate) hasher: String,
    /// The proof, under the root of the state.
    pub(crate) proof: String,
}

/// All entries of a prefix of a namespace, with the proof of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Extract {
    /// The chain.
    pub(crate) chain_id: String,
    /// The height of the state.
    pub(crate) height: u64,
    /// The root of the state.
    pub(crate) root: String,
    /// The hasher the proof is checked with.
    pub(crate) hasher: String,
    /// The namespace.
    pub(crate) namespace: String,
    /// What the keys begin with; nothing for the whole namespace.
    pub(crate) prefix: String,
    /// The entries, in the order of their keys.
    pub(crate) entries: Vec<Pair>,
    /// The proof that these are all, under `root`.
    pub(crate) proof: String,
}

/// Where the chain did by itself what is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HookAt {
    /// In this block.
    Block(Height),
    /// Around this transaction.
    Transaction(Hash),
}

/// An operation that took effect, proven by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OperationAnswer {
    /// The network's name.
    pub(crate) chain_id: String,
    /// Its bundle.
    pub(crate) bundle: String,
    /// When the chain called it by itself: `begin_block`, `end_block`, `before_transaction` or `after_transaction`; none of what
    /// somebody signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hook: Option<String>,
    /// The transaction around which the chain called it, or which hurried the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
    /// Its index in the bundle, or among those that the chain called then.
    pub(crate) operation: u32,
    /// The block it took effect in.
    pub(crate) block: u64,
    /// Its function, by name if the program that answers has it.
    pub(crate) function: String,
    /// The hash of its arguments.
    pub(crate) args: String,
    /// Its result, digest of changes, events and state hash.
    pub(crate) outcome: Outcome,
    /// Its session.
    pub(crate) session: String,
    /// How many operations the session had run before.
    pub(crate) sequence: u64,
    /// The session's state hash before.
    pub(crate) before: String,
    /// Height of the state it is proven in, by the word of whoever proves it.
    pub(crate) height: u64,
    /// That state's root.
    pub(crate) root: String,
    /// The hasher of the state tree.
    pub(crate) hasher: String,
    /// The encoded proof (`spec/ledger.md`, HISTORY-10).
    pub(crate) proof: String,
}

/// A record of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct AuditEntry {
    /// Its place in the log.
    pub(crate) index: u64,
    /// The height of its block.
    pub(crate) height: u64,
    /// What happened: `operation`, `rolled_back`, `failed`, `submitted`, `ended` or `block`.
    pub(crate) kind: String,
    /// The key whose doing it was; of a block, that made it.
    pub(crate) who: String,
    /// What the record says, by kind.
    pub(crate) said: Value,
    /// The record's encoding.
    pub(crate) record: String,
}

/// Records of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Audit {
    /// The place of the first record that is kept.
    pub(crate) first: u64,
    /// How many records the log has.
    pub(crate) count: u64,
    /// The records, in order.
    pub(crate) records: Vec<AuditEntry>,
    /// Where to go on, if there may be more.
    pub(crate) next: Option<u64>,
}

/// A record of the audit log, proven.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct AuditAnswer {
    /// The record.
    pub(crate) entry: AuditEntry,
    /// Height of the state whose log it is in.
    pub(crate) height: u64,
    /// That state's root.
    pub(crate) root: String,
    /// The hasher of the state tree.
    pub(crate) hasher: String,
    /// The encoded proof (`spec/audit.md`, AUDIT-8).
    pub(crate) proof: String,
}

/// Where the audit log stands.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct AuditCheckpoint {
    /// The network's name.
    pub(crate) chain_id: String,
    /// The hash of the genesis.
    pub(crate) genesis_hash: String,
    /// The height.
    pub(crate) height: u64,
    /// The root of the state, which holds the log.
    pub(crate) root: String,
    /// The hasher of the state tree.
    pub(crate) hasher: String,
    /// How many records the log has.
    pub(crate) count: u64,
    /// The encoding of its count and peaks (`spec/audit.md`, AUDIT-1).
    pub(crate) log: String,
    /// The encoded proof that the state says all of that (`spec/audit.md`, AUDIT-14).
    pub(crate) state_proof: String,
    /// The earlier number of records that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) since: Option<u64>,
    /// The encoded proof that the log goes on from these (`spec/audit.md`, AUDIT-2).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) consistency: Option<String>,
}

/// What an entry held over time.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct History {
    /// The namespace.
    pub(crate) namespace: String,
    /// The key.
    pub(crate) key: String,
    /// The hasher of the state tree.
    pub(crate) hasher: String,
    /// The first height that was looked at.
    pub(crate) from: u64,
    /// The last height that was looked at.
    pub(crate) to: u64,
    /// The changes, the earliest first.
    pub(crate) changes: Vec<Change>,
    /// The height to go on with, if there may be more.
    pub(crate) next: Option<u64>,
}

/// A change of an entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Change {
    /// The height that made it.
    pub(crate) height: u64,
    /// The hash of the value before, under the chain's hasher; null if there was none.
    pub(crate) before: Option<String>,
    /// The value since; null if it was deleted.
    pub(crate) value: Option<String>,
    /// The value as text, if it has one.
    pub(crate) text: Option<String>,
    /// What changed it: `operation`, `chain` for what the chain writes itself, or `unknown` if the state before is not kept.
    pub(crate) by: String,
    /// The operations that did, in order; the last left the value.
    pub(crate) operations: Vec<ChangeOperation>,
    /// The root of the state at this height.
    pub(crate) root: String,
    /// The encoded proof of the value, or of its absence, under that root.
    pub(crate) proof: String,
}

/// An operation that changed an entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ChangeOperation {
    /// The state hash of its session afterwards.
    pub(crate) state_hash: String,
    /// Its record in the audit log; null if that is not kept.
    pub(crate) record: Option<AuditEntry>,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Pair {
    /// The key.
    pub(crate) key: String,
    /// The value.
    pub(crate) value: String,
}

/// A block: its record, the root after it, and its transactions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Block {
    /// Its height.
    pub(crate) height: u64,
    /// Its time, in milliseconds since 1970.
    pub(crate) time: u64,
    /// The key that made it; null for a block that changed nothing.
    pub(crate) proposer: Option<String>,
    /// The root of the state after it; null if neither that state nor its root is kept.
    pub(crate) root: Option<String>,
    /// The root of the state before it.
    pub(crate) previous_root: Option<String>,
    /// The encoding of its record (`spec/ledger.md`, LEDGER-2); null for a block that changed nothing.
    pub(crate) record: Option<String>,
    /// The hash of its record, which the next record names; null for a block that changed nothing.
    pub(crate) record_hash: Option<String>,
    /// The hash of the record before it.
    pub(crate) previous_record: Option<String>,
    /// The root over its transactions.
    pub(crate) transactions_root: Option<String>,
    /// The root over its receipts.
    pub(crate) receipts_root: Option<String>,
    /// The digest of everything it wrote but its own record.
    pub(crate) diff_digest: Option<String>,
    /// The header of the next block with the signatures of its validators, in CometBFT's encoding (`SignedHeader`): what
    /// certifies `root`, verified. Only of a chain under CometBFT, and only once there is such a header.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) certificate: Option<String>,
    /// The identities of its transactions, in order.
    pub(crate) transactions: Vec<String>,
    /// What it did for async bundles, and by itself, in order.
    pub(crate) continuations: Vec<Continuation>,
}

/// What a block did for an async bundle; or by itself, as a batch of one operation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Continuation {
    /// The bundle.
    pub(crate) bundle: String,
    /// `begin_block`, `end_block`, `before_transaction` or `after_transaction`, if the chain called a function by itself: `bundle` is
    /// none then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) hook: Option<String>,
    /// The function that the chain called so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) function: Option<String>,
    /// The transaction that resumed it, or around which the chain called a function; none if the chain went on by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) by: Option<String>,
    /// `advanced`, `complete`, `stopped`, `expired` or `abandoned`.
    pub(crate) progress: String,
    /// The first operation that was to run.
    pub(crate) first: u32,
    /// How many took effect.
    pub(crate) operations: u32,
    /// The session's state hash at the checkpoint afterwards.
    pub(crate) state_hash: String,
    /// What it used.
    pub(crate) gas_used: u64,
    /// Why it stopped, if it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) failure: Option<FailureText>,
    /// The events its operations told, by name.
    pub(crate) events: Vec<Value>,
}

/// A transaction and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Transaction {
    /// Its identity.
    pub(crate) id: String,
    /// The account it is of.
    pub(crate) sender: String,
    /// How many of the account's transactions came before it.
    pub(crate) nonce: u64,
    /// The last height at which it may enter a block.
    pub(crate) expiry_height: u64,
    /// The session it runs in, if not the account's own.
    pub(crate) session: Option<String>,
    /// What it does.
    pub(crate) operations: Vec<Operation>,
    /// Its encoding, signed: what was sent, and stands under the block's transactions root (`spec/ledger.md`, BLOCK-3).
    pub(crate) transaction: String,
    /// Where it stands under the block's transactions root: its index, their number, and the hashes beside its way.
    pub(crate) place: String,
    /// What became of it.
    pub(crate) receipt: Receipt,
}

/// One operation of a bundle.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Operation {
    /// The function's name and version, or its hash if this program does not know it.
    pub(crate) function: String,
    /// The arguments, by name.
    pub(crate) args: Value,
    /// The state hash its sender expects after it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) expected_diff: Option<String>,
    /// The digest its own diff had to have.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) expected_own_diff: Option<String>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Receipt {
    /// The transaction.
    pub(crate) id: String,
    /// The block it is in.
    pub(crate) height: u64,
    /// Its place in the block.
    pub(crate) index: u32,
    /// Whether its bundle took effect.
    pub(crate) succeeded: bool,
    /// What it used.
    pub(crate) gas_used: u64,
    /// Why the bundle failed, if it did. Nothing of it remains then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) failure: Option<FailureText>,
    /// How many operations the async bundle has, if the transaction submitted one. The bundle is called as the
    /// transaction is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) submitted: Option<u32>,
    /// What each operation came to, if the bundle took effect.
    pub(crate) outcomes: Vec<Outcome>,
    /// Its encoding (`spec/ledger.md`, BLOCK-4). Only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) receipt: Option<String>,
    /// Where it stands under the receipts root of its block's record (`spec/ledger.md`, BLOCK-3). Only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) place: Option<String>,
}

/// Why a bundle failed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct FailureText {
    /// Which operation.
    pub(crate) operation: u32,
    /// The kind, as a number that never changes its meaning (`spec/chain.md`, EXEC-5); 0 of an async bundle whose last
    /// height went by.
    pub(crate) code: u16,
    /// Why, for people.
    pub(crate) reason: String,
    /// The hash the operation expected, if that is why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) expected: Option<String>,
    /// The hash that was found instead.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) actual: Option<String>,
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Outcome {
    /// The link of the hash chain it added.
    pub(crate) state_hash: String,
    /// The digest of what it changed.
    pub(crate) diff_digest: String,
    /// What it used.
    pub(crate) gas_used: u64,
    /// The result, by name.
    pub(crate) result: Value,
    /// The events it told, by name.
    pub(crate) events: Vec<Value>,
}

/// What an account needs to know to send its next transaction.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Account {
    /// The account's key.
    pub(crate) key: String,
    /// The nonce of its next transaction, those that wait counted.
    pub(crate) nonce: u64,
    /// The state hash of its own session, the last link of its chain.
    pub(crate) state_hash: String,
    /// How many operations that session has run.
    pub(crate) sequence: u64,
}

/// A session: what its record says, and whether it may act in the next block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Session {
    /// Its identity.
    pub(crate) id: String,
    /// The key that acts in it.
    pub(crate) owner: String,
    /// The session it was made from; null for a root session.
    pub(crate) parent: Option<String>,
    /// What people call it: a path, or nothing.
    pub(crate) name: String,
    /// What it was given; null for a root session, which holds all that the chain does not reserve.
    pub(crate) capabilities: Option<Vec<String>>,
    /// What of that it may do now, since everything above it holds it too. Only of an open session that was asked for alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) holds: Option<Vec<String>>,
    /// The last height at which it may act, if it has one.
    #[serde(with = "wide")]
    #[schema(schema_with = wide::schema)]
    pub(crate) last_height: Option<u64>,
    /// `open`; `closed` or `expired`, itself or by one above it.
    pub(crate) status: String,
    /// The session that is closed or expired: this one, or the nearest above it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) because: Option<String>,
    /// How many operations it has run.
    pub(crate) sequence: u64,
    /// The last link of its chain.
    pub(crate) state_hash: String,
    /// How many notes it keeps.
    pub(crate) notes: u32,
}

/// A page of sessions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct SessionList {
    /// The height of the state.
    pub(crate) height: u64,
    /// The sessions, by name or by identity.
    pub(crate) sessions: Vec<Session>,
    /// What to ask after for more, if there is more.
    pub(crate) next: Option<String>,
}

/// Where an async bundle stands.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct BundleStatus {
    /// Its identity: that of the transaction which submitted it.
    pub(crate) id: String,
    /// The key that submitted it.
    pub(crate) owner: String,
    /// The session it runs in.
    pub(crate) session: String,
    /// `running`, `stopped`, `complete`, `rolled_back` or `abandoned`.
    pub(crate) status: String,
    /// Why it stopped, if it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) failure: Option<FailureText>,
    /// How many operations took effect.
    pub(crate) current_operation: u32,
    /// How many it has.
    pub(crate) total_operations: u32,
    /// Whether all took effect.
    pub(crate) is_complete: bool,
    /// The session's state hash at the checkpoint.
    pub(crate) state_hash: String,
    /// The root of the list of its operations.
    pub(crate) operations: String,
    /// How often an operation was replaced.
    pub(crate) revision: u32,
    /// Keys it wrote, as long as it can be taken back.
    pub(crate) undo_entries: u32,
    /// The height at which it was submitted.
    pub(crate) submitted_height: u64,
    /// The last height at which the chain goes on with it.
    pub(crate) last_height: u64,
    /// The height of its last change.
    pub(crate) updated_height: u64,
}

/// A place of the state, and what lies there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Place {
    /// The namespace.
    pub(crate) namespace: String,
    /// The place in it.
    pub(crate) place: String,
    /// `item` or `sequence`, a single value; `map`, `set` or `log`, which have rows.
    pub(crate) kind: String,
    /// What the keys of rows look like. Those of a log are the numbers of its elements.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) key: Option<Value>,
    /// What values look like. Those of a set are 1.
    pub(crate) value: Value,
}

/// A function that can be called.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Function {
    /// Its name and version.
    pub(crate) name: String,
    /// Its hash.
    pub(crate) hash: String,
    /// What a session must hold to call it.
    pub(crate) needs: Vec<String>,
    /// What its arguments look like.
    pub(crate) args: Value,
    /// What its result looks like.
    pub(crate) output: Value,
    /// `begin_block`, `end_block`, `before_transaction` or `after_transaction`, if this is about the chain calling it by itself, and not
    /// about what transactions call.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) hook: Option<String>,
    /// The first height at which it is there, if not all are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) first_height: Option<u64>,
    /// The last, likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) last_height: Option<u64>,
}

/// A number, in the one form it is written in here: no sign, and no zeros before it.
pub(crate) fn decimal<N: FromStr<Err = ParseIntError> + ToString>(text: &str) -> Result<N, String> {
    let number: N = text.parse().map_err(|error: ParseIntError| error.to_string())?;
    match number.to_string() == text {
        true => Ok(number),
        false => Err(format!("expected {}, found {text:?}", number.to_string())),
    }
}
