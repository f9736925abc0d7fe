//! Who votes on a chain under another consensus engine, as the chain itself knows it.
//!
//! The engine asks for the first validators when the chain begins and is told of every change. A node that took its
//! state from a snapshot hears neither, so the set is state, in the namespace `chain`. The engine names a proposer by
//! its address only and goes on letting a validator propose for one more block after it has left, so those who left
//! lately stand here too.
//!
//! Rules: `spec/ledger.md`, LEDGER-4 and LEDGER-8.

use crate::chain::CHAIN;
use keelstone_codec::{BoundedList, Decode, Encode, Height, Key, Namespace, Value};
use keelstone_execution::{Changes, PublicKey};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Read, ReadError};

/// Most validators of a chain.
pub const VALIDATORS_MAX: usize = 1_024;
/// The most voting power all validators may have together: what CometBFT can count with.
pub const POWER_MAX: u64 = (1 << 60) - 1;

/// A key that votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Validator {
    /// Its Ed25519 key.
    pub key: PublicKey,
    /// Its voting power. 0, which stands in no set, says that it left.
    pub power: u64,
}

/// Who votes, and who did before the last change. Under `validators` in the namespace `chain`.
// spec: LEDGER-8
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Validators {
    /// Those who vote, in the order of their keys.
    pub active: BoundedList<Validator, VALIDATORS_MAX>,
    /// Those who left with the last change, in the order of their keys.
    pub left: BoundedList<PublicKey, VALIDATORS_MAX>,
    /// The block that made the last change; that of the genesis if none did.
    pub changed: Height,
}

/// Why a set of validators cannot become what is asked. Whoever asks has to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValidatorsError {
    /// More than an engine can count.
    #[error("{found} validators, the limit is {VALIDATORS_MAX}")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// More power than an engine can count.
    #[error("the validators have power {found} together, the limit is {POWER_MAX}")]
    TooMuchPower {
        /// How much.
        found: u128,
    },
    /// A key without power, or twice.
    #[error("{key}: {what}")]
    Key {
        /// Which.
        key: PublicKey,
        /// What is wrong.
        what: &'static str,
    },
    /// A chain cannot go on without any.
    #[error("{key} is the last validator")]
    Last {
        /// Which.
        key: PublicKey,
    },
}

impl Validators {
    /// The validators a chain begins with, at the height of its genesis.
    ///
    /// # Errors
    /// [`ValidatorsError`].
    pub fn new(mut active: Vec<Validator>, changed: Height) -> Result<Self, ValidatorsError> {
        active.sort_unstable();
        let twice = active.windows(2).find(|pair| pair[0].key == pair[1].key).map(|pair| (pair[0].key, "stands twice"));
        let none = active.iter().find(|validator| validator.power == 0).map(|found| (found.key, "has no power"));
        if let Some((key, what)) = twice.or(none) {
            return Err(ValidatorsError::Key { key, what });
        }
        let found = active.iter().map(|validator| u128::from(validator.power)).sum();
        if found > u128::from(POWER_MAX) {
            return Err(ValidatorsError::TooMuchPower { found });
        }
        let found = active.len();
        let active = BoundedList::new(active).map_err(|_| ValidatorsError::TooMany { found })?;
        Ok(Self { active, left: BoundedList::default(), changed })
    }

    /// The set in which a key has this power; 0 removes it. Who left with it is noted at the end of the block.
    ///
    /// # Errors
    /// [`ValidatorsError`]; the set is as it was.
    pub fn with(&self, key: PublicKey, power: u64) -> Result<Self, ValidatorsError> {
        let mut active = self.active.to_vec();
        let found = active.iter().position(|validator| validator.key == key);
        match (found, power) {
            (None, 0) => return Err(ValidatorsError::Key { key, what: "is no validator" }),
            (Some(_), 0) if active.len() == 1 => return Err(ValidatorsError::Last { key }),
            (Some(place), 0) => drop(active.remove(place)),
            (Some(place), power) => active[place].power = power,
            (None, power) => active.push(Validator { key, power }),
        }
        Ok(Self { active: Self::new(active, self.changed)?.active, ..self.clone() })
    }

    /// The set as block `height`, which began with `before`, leaves it: with those who left.
    pub(crate) fn settled(self, before: &Self, height: Height) -> Self {
        let left = self.since(before).into_iter().filter(|changed| changed.power == 0).map(|changed| changed.key);
        let left = BoundedList::new(left.collect()).expect("they were active, which as many may be");
        Self { left, changed: height, ..self }
    }

    /// Reads the validators of a chain; none if it makes its own blocks.
    ///
    /// # Errors
    /// [`ReadError`]; a record that does not decode is damage.
    pub fn read(state: &dyn Read) -> Result<Option<Self>, ReadError> {
        let (namespace, key) = Self::place();
        let Some(value) = state.get(&namespace, &key)? else { return Ok(None) };
        decoded(&value).map(Some)
    }

    /// Whether a key may make block `height`, on the state before it. What block H changes counts from block H + 2 on, so
    /// who left with it may still make block H + 1.
    // spec: LEDGER-8
    #[must_use]
    pub fn may_propose(&self, key: &PublicKey, height: Height) -> bool {
        let leaving = height == self.changed.next() && self.left.contains(key);
        leaving || self.active.iter().any(|validator| validator.key == *key)
    }

    /// All keys that may propose the next block, and perhaps some that no longer may.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.active.iter().map(|validator| &validator.key).chain(self.left.iter())
    }

    /// What turns `before` into this set: new and changed powers, and 0 for those who left, by key.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<Validator> {
        let power = |set: &Self, key: &PublicKey| set.active.iter().find(|v| v.key == *key).map_or(0, |v| v.power);
        let mut keys: Vec<PublicKey> = self.active.iter().chain(before.active.iter()).map(|v| v.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let changed = |key: PublicKey| {
            let now = power(self, &key);
            (now != power(before, &key)).then_some(Validator { key, power: now })
        };
        keys.into_iter().filter_map(changed).collect()
    }

    /// What a block did to the set, as (before, after); none if nothing.
    ///
    /// # Errors
    /// [`ReadError`] if a record does not decode: damage.
    pub(crate) fn changed_by(changes: &Changes) -> Result<Option<(Self, Self)>, ReadError> {
        let (namespace, key) = Self::place();
        let Some(change) = changes.find(&namespace, &key) else { return Ok(None) };
        let set = |value: &Option<Value>| value.as_ref().map_or(Ok(Self::default()), decoded);
        Ok(Some((set(&change.before)?, set(&change.after)?)))
    }

    /// Where the set stands.
    pub(crate) fn place() -> (Namespace, Key) {
        (Namespace::new(CHAIN).expect("a constant"), Key::new(*b"validators").expect("a constant"))
    }

    /// The value that stands there.
    pub(crate) fn value(&self) -> Value {
        Value::new(self.to_bytes()).expect("two counts at least, and at most 80 KiB")
    }
}

fn decoded(value: &Value) -> Result<Validators, ReadError> {
    Validators::from_bytes(value)
        .map_err(|error| ReadError::damaged(format!("{CHAIN}/validators does not decode: {error}")))
}
