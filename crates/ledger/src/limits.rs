//! The limits of a chain: part of its rules, as it begins with them and as it changes them.
//!
//! A genesis says what a chain begins with, and that stands among its facts for ever. Limits that were changed stand beside
//! those, and a block runs under the ones in the state before it: whoever proposes one, or lets a transaction wait for one,
//! knows them beforehand.
//!
//! Rules: `spec/ledger.md`, GENESIS-1 and LEDGER-10.

use crate::chain::{self, ChainFacts};
use keelstone_codec::{Decode as _, LIST_MAX, Value};
use keelstone_execution::bundles::{FORGET_BYTES_MAX, IN_FLIGHT_MAX};
use keelstone_execution::{BundleLimits, CHANGE_BYTES_MAX, Changes, OPERATIONS_MAX};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Read, ReadError};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// What a chunk of a snapshot may weigh: below, there are too many; above, one may not fit into an engine's message.
pub const SNAPSHOT_CHUNK_BYTES: RangeInclusive<u32> = (64 << 10)..=(10 << 20);
/// Most bytes of all transactions of a block, and so of one. An async bundle is stored with all its operations by the
/// transaction that submits it, and what begins in a block changes no more than a sync bundle may.
pub const BLOCK_BYTES_MAX: u64 = 64 << 20;
/// Most blocks that an async bundle may be in flight: no height of it comes near the last there is.
pub const BUNDLE_BLOCKS_MAX: u64 = 1 << 62;

/// What a submission writes beside the operations: a record, a place in three lists, and the keys of the operations' pieces.
const SUBMISSION_BYTES_MAX: u64 = 8 << 20;
// spec: BLOCK-7
const _: () = assert!(
    BLOCK_BYTES_MAX + SUBMISSION_BYTES_MAX <= CHANGE_BYTES_MAX,
    "the largest submission changes no more than a bundle"
);

/// Bytes that batches of a block may have changed when another operation of theirs begins. The share of gas comes to about a
/// third of that where operations are small.
pub(crate) const SHARE_CHANGE_BYTES_MAX: u64 = 64 << 20;
/// Bytes that a block may have changed when another transaction begins: those batches leave room for one.
// spec: BLOCK-7
pub(crate) const FULL_CHANGE_BYTES: u64 = SHARE_CHANGE_BYTES_MAX + CHANGE_BYTES_MAX + FORGET_BYTES_MAX;

/// What limits of a running chain leave at least to a transaction, in bytes and gas: enough for the one that changes them again.
const TRANSACTION_BYTES_LEAST: u32 = 4 << 10;
const BUNDLE_GAS_LEAST: u64 = 1_000_000;

/// Limits that all nodes of a chain keep to: part of its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainLimits {
    /// Bytes of one encoded, signed transaction.
    pub transaction_bytes_max: u32,
    /// Operations of one bundle.
    pub bundle_operations_max: u32,
    /// Gas of one bundle.
    pub bundle_gas_max: u64,
    /// Transactions of one block.
    pub block_transactions_max: u32,
    /// Bytes of all transactions of one block.
    pub block_bytes_max: u32,
    /// Gas of all bundles of one block. A block stops taking transactions when it is used up.
    pub block_gas_max: u64,
    /// How many blocks ahead a transaction may expire.
    pub expiry_blocks_max: u64,
    /// What a chunk of a snapshot may weigh. All nodes must cut alike: two that do not share no snapshot. It stays what the
    /// genesis said.
    pub snapshot_chunk_bytes: u32,
    /// Gas of a block that is kept for async bundles. What they leave goes to transactions, never the reverse.
    pub continuation_gas_max: u64,
    /// Async bundles in flight.
    pub bundles_max: u32,
    /// Async bundles of one key in flight.
    pub bundles_per_key_max: u32,
    /// Bytes of the operations of all async bundles in flight.
    pub bundles_bytes_max: u64,
    /// Keys that one async bundle may write.
    pub bundle_undo_entries_max: u32,
    /// Bytes of what those keys held before, with the keys.
    pub bundle_undo_bytes_max: u64,
    /// How many blocks an async bundle may be in flight, and then wait for its owner's decision.
    pub bundle_blocks_max: u64,
}

/// Why limits are none that a chain can have. Whoever asks for them has to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LimitsError(String);

impl Default for ChainLimits {
    fn default() -> Self {
        Self {
            transaction_bytes_max: 2 << 20,
            bundle_operations_max: 65_535,
            bundle_gas_max: 1_000_000_000,
            block_transactions_max: 10_000,
            block_bytes_max: 16 << 20,
            block_gas_max: 10_000_000_000,
            expiry_blocks_max: 1_000_000,
            snapshot_chunk_bytes: 4 << 20,
            continuation_gas_max: Self::continuation_share(10_000_000_000, 1_000_000_000),
            bundles_max: 64,
            bundles_per_key_max: 4,
            bundles_bytes_max: 64 << 20,
            bundle_undo_entries_max: 131_072,
            bundle_undo_bytes_max: 64 << 20,
            bundle_blocks_max: 100_000,
        }
    }
}

impl ChainLimits {
    /// The part of a block's gas that is kept for async bundles, if a genesis does not say: a quarter, or what one bundle
    /// leaves if that is less. None is left where a bundle takes a whole block.
    // spec: EXEC-6
    #[must_use]
    pub fn continuation_share(block_gas_max: u64, bundle_gas_max: u64) -> u64 {
        (block_gas_max / 4).min(block_gas_max.saturating_sub(bundle_gas_max))
    }

    /// What async bundles in flight may take.
    #[must_use]
    pub fn bundles(&self) -> BundleLimits {
        BundleLimits {
            in_flight_max: self.bundles_max,
            per_key_max: self.bundles_per_key_max,
            bytes_max: self.bundles_bytes_max,
            undo_entries_max: self.bundle_undo_entries_max,
            undo_bytes_max: self.bundle_undo_bytes_max,
            blocks_max: self.bundle_blocks_max,
            operation_gas_max: self.bundle_gas_max,
            share_gas_max: self.continuation_gas_max,
            share_change_bytes_max: SHARE_CHANGE_BYTES_MAX,
        }
    }

    /// The limits under which the next block runs on a state: what it was changed to, else what the chain began with.
    ///
    /// # Errors
    /// [`ReadError`]; a record that does not decode is damage.
    // spec: LEDGER-10
    pub fn read(state: &dyn Read, facts: &ChainFacts) -> Result<Self, ReadError> {
        Ok(chain::changed_limits(state)?.unwrap_or(facts.limits))
    }

    /// The limits that a block left, if it changed them.
    ///
    /// # Errors
    /// [`ReadError`] if they do not decode: damage.
    pub(crate) fn changed_by(changes: &Changes) -> Result<Option<Self>, ReadError> {
        let (namespace, key) = chain::limits_place();
        let after: Option<&Value> = changes.find(&namespace, &key).and_then(|change| change.after.as_ref());
        let decoded = after.map(|value| Self::from_bytes(value)).transpose();
        decoded.map_err(|error| ReadError::damaged(format!("changed limits do not decode: {error}")))
    }

    /// What limits must be to one another, and to what a block's encoding can hold.
    ///
    /// # Errors
    /// [`LimitsError`] says what they are not.
    // spec: GENESIS-1
    pub fn check(&self) -> Result<(), LimitsError> {
        if self.transaction_bytes_max > self.block_bytes_max || self.bundle_gas_max > self.block_gas_max {
            return wrong("one transaction must fit into a block");
        }
        // Whatever the bundles in flight do, a block has room for a transaction.
        let both = self.continuation_gas_max.checked_add(self.bundle_gas_max);
        if self.continuation_gas_max == 0 || both.is_none_or(|both| both > self.block_gas_max) {
            return wrong("continuation_gas_max is at least 1, and with bundle_gas_max a part of block_gas_max");
        }
        if u64::from(self.block_bytes_max) > BLOCK_BYTES_MAX {
            return wrong(format!("block_bytes_max is at most {BLOCK_BYTES_MAX}"));
        }
        if self.bundle_blocks_max > BUNDLE_BLOCKS_MAX {
            return wrong(format!("bundle_blocks_max is at most {BUNDLE_BLOCKS_MAX}"));
        }
        if self.bundles_max as usize > IN_FLIGHT_MAX {
            return wrong(format!("bundles_max is at most {IN_FLIGHT_MAX}"));
        }
        // More than a bundle can hold would be a limit that no bundle meets. spec: EXEC-19
        if self.bundle_operations_max as usize > OPERATIONS_MAX {
            return wrong(format!("bundle_operations_max is at most {OPERATIONS_MAX}"));
        }
        if self.block_transactions_max as usize > LIST_MAX {
            return wrong(format!("block_transactions_max is at most {LIST_MAX}"));
        }
        if !SNAPSHOT_CHUNK_BYTES.contains(&self.snapshot_chunk_bytes) {
            let (least, most) = (SNAPSHOT_CHUNK_BYTES.start(), SNAPSHOT_CHUNK_BYTES.end());
            return wrong(format!("snapshot_chunk_bytes is {least} to {most}"));
        }
        let mut limits = *self;
        match fields(&mut limits).iter().find(|(_, field)| field.value() == 0) {
            Some((name, _)) => wrong(format!("{name} is at least 1")),
            None => Ok(()),
        }
    }

    /// Whether a running chain, which began with others, may change its limits to these.
    ///
    /// # Errors
    /// [`LimitsError`] says why not.
    // spec: LEDGER-10
    pub fn may_follow(&self, began_with: &Self) -> Result<(), LimitsError> {
        self.check()?;
        if self.snapshot_chunk_bytes != began_with.snapshot_chunk_bytes {
            let stays = began_with.snapshot_chunk_bytes;
            return wrong(format!(
                "snapshot_chunk_bytes stays {stays}, as the genesis said: all snapshots are cut by it"
            ));
        }
        // Limits that no transaction meets could be changed by none.
        if self.transaction_bytes_max < TRANSACTION_BYTES_LEAST {
            return wrong(format!("transaction_bytes_max of a running chain is at least {TRANSACTION_BYTES_LEAST}"));
        }
        if self.bundle_gas_max < BUNDLE_GAS_LEAST {
            return wrong(format!("bundle_gas_max of a running chain is at least {BUNDLE_GAS_LEAST}"));
        }
        Ok(())
    }
}

fn wrong(what: impl Into<String>) -> Result<(), LimitsError> {
    Err(LimitsError(what.into()))
}

/// One limit, whatever its width.
pub(crate) enum LimitField<'a> {
    Narrow(&'a mut u32),
    Wide(&'a mut u64),
}
impl LimitField<'_> {
    pub(crate) fn value(&self) -> u64 {
        match self {
            Self::Narrow(field) => u64::from(**field),
            Self::Wide(field) => **field,
        }
    }
}

/// The limits by name: the one list that reading and writing share.
pub(crate) fn fields(limits: &mut ChainLimits) -> [(&'static str, LimitField<'_>); 15] {
    [
        ("transaction_bytes_max", LimitField::Narrow(&mut limits.transaction_bytes_max)),
        ("bundle_operations_max", LimitField::Narrow(&mut limits.bundle_operations_max)),
        ("bundle_gas_max", LimitField::Wide(&mut limits.bundle_gas_max)),
        ("block_transactions_max", LimitField::Narrow(&mut limits.block_transactions_max)),
        ("block_bytes_max", LimitField::Narrow(&mut limits.block_bytes_max)),
        ("block_gas_max", LimitField::Wide(&mut limits.block_gas_max)),
        ("expiry_blocks_max", LimitField::Wide(&mut limits.expiry_blocks_max)),
        ("snapshot_chunk_bytes", LimitField::Narrow(&mut limits.snapshot_chunk_bytes)),
        ("continuation_gas_max", LimitField::Wide(&mut limits.continuation_gas_max)),
        ("bundles_max", LimitField::Narrow(&mut limits.bundles_max)),
        ("bundles_per_key_max", LimitField::Narrow(&mut limits.bundles_per_key_max)),
        ("bundles_bytes_max", LimitField::Wide(&mut limits.bundles_bytes_max)),
        ("bundle_undo_entries_max", LimitField::Narrow(&mut limits.bundle_undo_entries_max)),
        ("bundle_undo_bytes_max", LimitField::Wide(&mut limits.bundle_undo_bytes_max)),
        ("bundle_blocks_max", LimitField::Wide(&mut limits.bundle_blocks_max)),
    ]
}
