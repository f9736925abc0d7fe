//! Recovery: a state that is lost or damaged is had again, in one of several ways, and nothing counts before it is
//! proven.
//!
//! [`recover`] tries one strategy after the other until a result stands. What a strategy says of its own result is not
//! believed: its height and root are compared with the target, and the state is checked as deeply as configured,
//! before it takes the place of what was there. Whatever failed, and why, is in the [`Report`], which is signed and
//! can be checked by anybody who has the signer's key.
//!
//! Pure: what a strategy does to files and peers is behind [`World`].
//!
//! Rules: `spec/recovery.md`, RECOVER-1 to RECOVER-5 and RECOVER-7. Vectors: `spec/vectors/recovery.json`.

mod report;
#[cfg(test)]
mod tests;

pub use report::{Attempt, REASON_BYTES_MAX, REPORT_BYTES_MAX, Report, SignedReport};

use crate::library::LibraryError;
use crate::peers::Version;
use keelstone_codec::{Height, Root};
use keelstone_macros::{Decode, Encode};
use keelstone_store::StoreError;
use std::fmt;

/// A way to have a state again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[codec(shapeless)]
pub enum Strategy {
    /// The newest snapshot of this node below the target, and the blocks since.
    LocalSnapshot,
    /// A snapshot that other nodes serve, chunk by chunk from any of them, and the blocks since.
    PeerStateSync,
    /// The blocks from the genesis on.
    BlockReplay,
    /// A snapshot's files from somewhere else, and the blocks since.
    NetworkSnapshot,
}

impl Strategy {
    /// All of them, in the order in which they are tried unless told otherwise.
    pub const ALL: [Self; 4] = [Self::LocalSnapshot, Self::PeerStateSync, Self::BlockReplay, Self::NetworkSnapshot];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LocalSnapshot => "local_snapshot",
            Self::PeerStateSync => "peer_state_sync",
            Self::BlockReplay => "block_replay",
            Self::NetworkSnapshot => "network_snapshot",
        }
    }

    /// The strategy of a word.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What says that the root of a target is the chain's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum Trust {
    /// Consensus signed it.
    Consensus,
    /// Whoever asked for the recovery named it.
    Given,
    /// This node's own record of it, on a chain without validators.
    OwnRecord,
    /// A producer that is trusted signed it, on a chain without validators.
    Producer,
}

impl Trust {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consensus => "consensus",
            Self::Given => "given",
            Self::OwnRecord => "own_record",
            Self::Producer => "producer",
        }
    }
}

/// How much of a result is checked, beside its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[codec(shapeless)]
pub enum Depth {
    /// The store's frame.
    Quick,
    /// Every stored byte, every page, and every value by its hash.
    Full,
}

impl Depth {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }
}

/// Why a strategy came to nothing. Each says who has to act.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failed {
    /// It has nothing to work with: no snapshot, no peers, no blocks.
    #[error("{0}")]
    Unavailable(String),
    /// It would run more blocks than is allowed.
    #[error("it takes {needed} blocks, the limit is {limit}")]
    TooFar {
        /// How many blocks.
        needed: u64,
        /// `recovery.max_block_replay`.
        limit: u64,
    },
    /// What it works with is damaged.
    #[error("{0}")]
    Damaged(String),
    /// Whoever it got it from sent what cannot be true.
    #[error("{0}")]
    Misbehaved(String),
    /// The disk has no room for its result. Nothing of it was written.
    #[error("it takes {needed} bytes of the disk, {free} are free")]
    NoRoom {
        /// Bytes that it would write.
        needed: u64,
        /// Bytes that may be used.
        free: u64,
    },
    /// The machine failed.
    #[error("{0}")]
    Machine(String),
    /// It said that it was done, and its result is another state.
    #[error("it came to height {} with root {}, the target is height {} with root {}", .found.height, .found.root, .target.height, .target.root)]
    WrongState {
        /// The target.
        target: Version,
        /// What it came to.
        found: Version,
    },
    /// Its result did not stand the check.
    #[error("its result did not stand the check: {0}")]
    Unsound(String),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        let what = causes(&error);
        match error {
            error if error.is_damage() => Self::Damaged(what),
            StoreError::WrongRoot { .. } | StoreError::BadEntry { .. } => Self::Misbehaved(what),
            _ => Self::Machine(what),
        }
    }
}

impl From<LibraryError> for Failed {
    fn from(error: LibraryError) -> Self {
        let what = causes(&error);
        match error {
            LibraryError::NoRoom { needed, reserve, free } => {
                Self::NoRoom { needed, free: free.saturating_sub(reserve) }
            }
            LibraryError::NotFound(_) => Self::Unavailable(what),
            LibraryError::Archive(_)
            | LibraryError::Tar(_)
            | LibraryError::Foreign { .. }
            | LibraryError::OtherRoot { .. } => Self::Misbehaved(what),
            error if error.is_damage() => Self::Damaged(what),
            _ => Self::Machine(what),
        }
    }
}

/// An error and its sources on one line, leaving out those whose text the one before already holds: how a report says
/// why something failed.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// What a strategy came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    /// The height and the root, as the state says.
    pub at: Version,
    /// Entries of the state.
    pub entries: u64,
    /// Blocks that were run.
    pub blocks: u64,
}

/// What the strategies work on. Each builds its result aside; nothing counts before [`World::settle`].
pub trait World {
    /// How long a strategy would take, in milliseconds; none if it cannot be said, as of one that has nothing to work
    /// with.
    fn estimate_ms(&mut self, strategy: Strategy, target: &Version) -> Option<u64>;

    /// Builds the target in a place aside.
    ///
    /// # Errors
    /// [`Failed`].
    fn build(&mut self, strategy: Strategy, target: &Version) -> Result<Built, Failed>;

    /// Reads again what was built, from the disk, and says what it is.
    ///
    /// # Errors
    /// [`Failed`] if anything of it is not what it must be.
    fn check(&mut self, depth: Depth) -> Result<Version, Failed>;

    /// Removes what was built. What was proven on the way may stay for the next strategy.
    fn discard(&mut self);

    /// Makes what was built the state that counts, at once and durably.
    ///
    /// # Errors
    /// [`Failed::Machine`]. What counted before counts still.
    fn settle(&mut self) -> Result<(), Failed>;
}

/// What a recovery came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Each strategy that was tried, in order.
    pub attempts: Vec<(Strategy, Result<Built, Failed>)>,
}

impl Outcome {
    /// What was built and counts now, if anything does.
    #[must_use]
    pub fn recovered(&self) -> Option<(Strategy, Built)> {
        let (strategy, result) = self.attempts.last()?;
        result.as_ref().ok().map(|built| (*strategy, *built))
    }
}

/// The strategies in the order of the time they would take, in milliseconds, those of which it cannot be said last.
// spec: RECOVER-2
pub fn by_time(world: &mut dyn World, target: &Version) -> Vec<(Strategy, Option<u64>)> {
    let mut order = Strategy::ALL.map(|strategy| (strategy, world.estimate_ms(strategy, target)));
    order.sort_unstable_by_key(|(strategy, ms)| (ms.unwrap_or(u64::MAX), *strategy));
    order.to_vec()
}

/// Tries strategies until one has built the target, and its result stands.
// spec: RECOVER-1, RECOVER-3
pub fn recover(order: &[Strategy], target: &Version, depth: Depth, world: &mut dyn World) -> Outcome {
    let mut attempts = Vec::new();
    for strategy in order {
        let result = attempt(*strategy, target, depth, world);
        let done = result.is_ok();
        if !done {
            world.discard();
        }
        attempts.push((*strategy, result));
        if done {
            break;
        }
    }
    Outcome { attempts }
}

fn attempt(strategy: Strategy, target: &Version, depth: Depth, world: &mut dyn World) -> Result<Built, Failed> {
    let built = world.build(strategy, target)?;
    let differs = |found: Version| match found == *target {
        true => Ok(()),
        false => Err(Failed::WrongState { target: *target, found }),
    };
    // What it says, and what the disk says: the one is cheap, the other is what will be served.
    differs(built.at)?;
    differs(world.check(depth)?)?;
    world.settle()?;
    Ok(built)
}

/// The height and root that a recovery must come to, and why it is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The height.
    pub height: Height,
    /// The root.
    pub root: Root,
    /// Why.
    pub trust: Trust,
}

impl Target {
    /// The version.
    #[must_use]
    pub fn version(&self) -> Version {
        Version { height: self.height, root: self.root }
    }
}
