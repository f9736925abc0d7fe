//! Why a ledger did not do what it was asked: by who has to act.

use crate::check::Refusal;
use crate::genesis::GenesisError;
use crate::run::BlockError;
use keelstone_codec::{Height, Timestamp};
use keelstone_execution::RegistryError;
use keelstone_store::StoreError;
use keelstone_tree::ReadError;

/// Why the ledger did not do what it was asked. Each variant says who has to act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The program's functions clash. Its developer has to act.
    #[error("the registry is not one: {0}")]
    Registry(#[from] RegistryError),
    /// The genesis is none. Whoever wrote it has to act.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The store has no chain yet. Create one.
    #[error("the store has no genesis")]
    NoGenesis,
    /// The store already has a chain.
    #[error("the store already has a chain, at height {height}")]
    Exists {
        /// Its height.
        height: Height,
    },
    /// The chain hashes with another hasher than this store.
    #[error("the chain hashes with {expected}, the store with {found}")]
    WrongHasher {
        /// What the genesis says.
        expected: String,
        /// What the store was opened with.
        found: &'static str,
    },
    /// A block cannot follow this state, or the state cannot be read.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A block was not the next one.
    #[error("block {found} is not the next, which is {expected}")]
    NotNext {
        /// The next height.
        expected: Height,
        /// The block's.
        found: Height,
    },
    /// The time of a block runs backwards.
    #[error("the time {found} is before the last block's, {last}")]
    Time {
        /// The last block's.
        last: Timestamp,
        /// The one given.
        found: Timestamp,
    },
    /// This node does not have the block's body: it began with a snapshot above it, or lost it.
    #[error("this node does not have block {height}")]
    NoBlock {
        /// The height.
        height: Height,
    },
    /// This node does not keep an audit record: it began with a snapshot above it, or pruned it.
    #[error("this node does not keep audit record {index}: its records begin with {first}")]
    NoRecord {
        /// The record.
        index: u64,
        /// The first that is kept.
        first: u64,
    },
    /// This node does not keep a block's audit records: it began with a snapshot above it, or pruned them.
    #[error("this node does not keep the audit records of block {height}")]
    NoAudit {
        /// The block.
        height: Height,
    },
    /// There is no such block yet.
    #[error("there is no block {height}, the last is {last}")]
    NotYet {
        /// What was asked for.
        height: Height,
        /// The last height.
        last: Height,
    },
    /// A witness would be larger than any proof with one may be. Whoever asked has to ask for less at once.
    #[error("the witness has {found} bytes, the limit is {limit}")]
    WitnessTooLarge {
        /// Its bytes.
        found: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A block that was run again came to something else than is kept of it. What is kept is damaged, or this program is
    /// another than the one that made it.
    #[error("block {height} differs from what is kept of it: {what}")]
    Differs {
        /// The block.
        height: Height,
        /// What was compared.
        what: String,
    },
    /// What the database gave is not what the state commits to. Repair from a peer.
    #[error("block {height} is damaged in the database: {what}")]
    Damaged {
        /// The block.
        height: Height,
        /// What was compared.
        what: String,
    },
    /// The store or the database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ReadError> for LedgerError {
    fn from(error: ReadError) -> Self {
        Self::Store(error.into())
    }
}

impl LedgerError {
    /// Whether our own bytes are wrong.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Differs { .. } => true,
            Self::Store(error) => error.is_damage(),
            Self::Block(BlockError::Halt(keelstone_execution::Halt::Read(error))) => {
                matches!(error, ReadError::Damaged { .. })
            }
            _ => false,
        }
    }
}

/// Why a proposed block is not voted for. Its proposer has to act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposalError {
    /// The block is above a limit of the chain.
    #[error("the block has {found} {what}, the limit is {limit}")]
    TooLarge {
        /// `transactions` or `bytes of transactions`.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        limit: u32,
    },
    /// A transaction is none.
    #[error("transaction {index}: {source}")]
    Transaction {
        /// Its place.
        index: usize,
        /// What is wrong with it.
        source: Refusal,
    },
    /// The chain's limits could not be read here: no verdict about the block, and so no vote for it.
    #[error("the state could not be read: {0}")]
    State(#[from] ReadError),
}
