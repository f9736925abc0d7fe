//! Many lives of a node that joins, of one that has joined and follows, of one that keeps its state whole, and of one that recovers:
//! the machines of `keelstone_sync`, a real store or ledger, and around them a network and a disk that do their worst, in one thread and
//! from one seed.
//!
//! Each run has five peers, of which, but for recoveries, one at least is honest; what the others do is drawn from [`Manner`]. Messages are
//! late, out of order or lost, peers go and come back, the node is killed and its power is cut, its disk fills up and
//! fails, and the chain grows and prunes meanwhile. After a minute the storm ends: only the liars are left, and in some
//! runs a chain that goes on growing.
//!
//! What must hold, in every run: nobody is banned who did not lie, and it ends within bounds on time and requests. Of
//! whoever joins: nothing that was not proven is written; nothing that is staged is staged again; the state that comes out
//! is the certified one. Of whoever follows: after each height, and whenever it starts again, its root is the chain's;
//! what was taken in is there; it comes to the last height that is certified. Of whoever tends a state, under which bytes
//! change that nobody wrote: whatever can be read is the chain's; nothing is repaired to another root, or too often; all of
//! it can be read in the end. Of whoever recovers, also where no peer is honest: what counts is the old state, untouched, or the target,
//! whole, and the target in the end if anything leads there. A run is repeated from its seed alone. [`toy`], [`careless`],
//! [`neglect`] and [`Blunder`] have clients with planted bugs, which show that each of these is looked at.
#![forbid(unsafe_code)]

mod blocks;
pub mod careless;
mod chain;
mod dice;
mod disk;
mod following;
mod joining;
mod liar;
pub mod neglect;
mod recovering;
mod tending;
pub mod toy;
mod world;

pub use dice::Dice;
use following::Following;
pub use following::Follows;
use joining::Joining;
use keelstone_codec::{Key, Namespace};
use keelstone_store::files::Files;
use keelstone_sync::peers::{Effect, EntriesError, Event, Joiner, Settings, Tick, Version};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::Blake3;
pub use liar::Manner;
pub use recovering::Blunder;
use recovering::Recovering;
use std::convert::Infallible;
use std::sync::Arc;
use tending::Tending;
pub use tending::{Careful, Tends};
pub use world::Outcome;
use world::World;

/// Peers of a run.
pub(crate) const PEERS: usize = 5;

/// Why entries were not handed out.
#[derive(Debug)]
pub enum Gap {
    /// Some are missing: go on.
    Missing,
    /// It is over.
    Ended(String),
}

/// What a joiner begins with, as [`Joiner::open`] takes it.
#[derive(Debug)]
pub struct Beginning {
    /// The staging directory.
    pub files: Arc<dyn Files>,
    /// What the chain agrees on.
    pub params: SnapshotParams,
    /// What the joiner may choose.
    pub settings: Settings,
    /// The version to fetch.
    pub target: Version,
    /// When it begins.
    pub now: Tick,
    /// The seed of what it draws.
    pub seed: u64,
}

/// What is tried out of whoever joins: the machine of the product, or a toy.
pub trait Client: Sized {
    /// Begins or goes on.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn open(beginning: Beginning) -> Result<Self, String>;
    /// As [`Joiner::step`].
    fn step(&mut self, now: Tick, event: Event<'_>) -> Vec<Effect>;
    /// As [`Joiner::wakeup`].
    fn wakeup(&self, now: Tick) -> Option<Tick>;
    /// As [`Joiner::entries`].
    ///
    /// # Errors
    /// [`Gap`].
    fn entries(&mut self, each: &mut dyn FnMut(&Namespace, &Key, &[u8])) -> Result<(), Gap>;
}

impl Client for Joiner<Blake3> {
    fn open(Beginning { files, params, settings, target, now, seed }: Beginning) -> Result<Self, String> {
        Self::open(files, params, settings, target, now, seed).map_err(|error| error.to_string())
    }

    fn step(&mut self, now: Tick, event: Event<'_>) -> Vec<Effect> {
        let effects = Self::step(self, now, event);
        let progress = self.progress(now);
        let total = progress.total.unwrap_or_default();
        assert!(progress.done.count <= total.count && progress.done.bytes <= total.bytes, "{progress:?}");
        effects
    }

    fn wakeup(&self, now: Tick) -> Option<Tick> {
        Self::wakeup(self, now)
    }

    fn entries(&mut self, each: &mut dyn FnMut(&Namespace, &Key, &[u8])) -> Result<(), Gap> {
        let handed = Self::entries(self, |name, key, value| {
            each(name, key, value);
            Ok::<_, Infallible>(())
        });
        handed.map_err(|error| match error {
            EntriesError::Incomplete { .. } => Gap::Missing,
            EntriesError::Ended(ended) => Gap::Ended(ended.to_string()),
            EntriesError::Taker(never) => match never {},
        })
    }
}

/// One run of a node that joins.
///
/// # Errors
/// What does not hold.
pub fn run<C: Client>(seed: u64) -> Result<Outcome, String> {
    World::<Joining<C>>::new(seed, None).run()
}

/// One run in which one peer is honest and the other four all behave like this.
///
/// # Errors
/// What does not hold.
pub fn run_among<C: Client>(seed: u64, liars: Manner) -> Result<Outcome, String> {
    World::<Joining<C>>::new(seed, Some(liars)).run()
}

/// One run of a node that has joined and follows.
///
/// # Errors
/// What does not hold.
pub fn follow<F: Follows>(seed: u64) -> Result<Outcome, String> {
    World::<Following<F>>::new(seed, None).run()
}

/// As [`follow`], and one peer is honest and the other four all behave like this.
///
/// # Errors
/// What does not hold.
pub fn follow_among<F: Follows>(seed: u64, liars: Manner) -> Result<Outcome, String> {
    World::<Following<F>>::new(seed, Some(liars)).run()
}

/// One run of a node that keeps its state whole.
///
/// # Errors
/// What does not hold.
pub fn tend<T: Tends>(seed: u64) -> Result<Outcome, String> {
    Tending::<T>::new(seed, None).run()
}

/// One run of a node that recovers a damaged state, with the blunder of that number.
///
/// # Errors
/// What does not hold.
pub fn recover<const BLUNDER: usize>(seed: u64) -> Result<Outcome, String> {
    Recovering::<BLUNDER>::new(seed).run()
}

/// As [`tend`], and one peer is honest and the other four all behave like this.
///
/// # Errors
/// What does not hold.
pub fn tend_among<T: Tends>(seed: u64, liars: Manner) -> Result<Outcome, String> {
    Tending::<T>::new(seed, Some(liars)).run()
}
