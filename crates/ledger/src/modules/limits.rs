//! Limits: how large the transactions, blocks and async bundles of a running chain may be.
//!
//! Only who was granted it may change them, or what an application's own functions and hooks let change them. A change counts from
//! the next block on, so that whoever proposes that block knows it beforehand.
//!
//! Rules: `spec/ledger.md`, LEDGER-10, and `spec/modules.md`, MODULE-12.

pub use crate::chain::ChainSpace;
use crate::limits::ChainLimits;
use keelstone_execution::{Capability, Context, Denied, Draft, Registry, Transition, denied};
use keelstone_macros::{event, transition};

/// What it takes to change the limits.
pub const SET_LIMITS: Capability = Capability::new("chain.set_limits");

/// The limits were set.
#[event("chain.limits_set")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsSet {
    /// What they are from the next block on.
    pub limits: ChainLimits,
}

/// Gives the chain other limits, from the next block on.
#[transition("chain.set_limits/1", needs = SET_LIMITS)]
pub struct SetLimits {
    /// All of them, also those that stay.
    pub limits: ChainLimits,
}

/// Registers the function of this module and its event, for a chain that takes no more of the built-in ones. The capability
/// [`SET_LIMITS`] is reserved. Functions of an application may have [`ChainSpace`] in their worlds then.
pub fn register(registry: &mut Registry) -> &mut Registry {
    // What is in the namespace `chain` is the engine's.
    let registry = registry.reserve(SET_LIMITS).register_system::<ChainSpace, SetLimits>();
    registry.event::<LimitsSet>().open::<ChainSpace>()
}

impl ChainSpace {
    /// The limits from the next block on: also what this block has set already, which does not count for itself.
    ///
    /// # Errors
    /// [`Denied`] over a state that is no chain's, as in a test without a genesis.
    pub fn limits(&self) -> Result<ChainLimits, Denied> {
        match self.limits.get()? {
            Some(limits) => Ok(limits),
            None => self.began_with(),
        }
    }

    /// Gives the chain other limits, from the next block on. Emits [`LimitsSet`]. Who may have that done is for the function that
    /// calls this to say. It is the engine's state: no part of an operation's diff, and not undone when an async bundle is taken
    /// back.
    ///
    /// # Errors
    /// [`Denied`] of limits that no genesis could have, or that this chain may not change to ([`ChainLimits::may_follow`]): they
    /// are as they were.
    // spec: MODULE-12
    pub fn set_limits(&mut self, limits: &ChainLimits, cx: &mut Context) -> Result<(), Denied> {
        limits.may_follow(&self.began_with()?).map_err(|error| denied!("{error}"))?;
        self.limits.set(limits)?;
        Ok(cx.emit(&LimitsSet { limits: *limits })?)
    }

    fn began_with(&self) -> Result<ChainLimits, Denied> {
        let facts = self.facts.get()?;
        facts.map(|facts| facts.limits).ok_or_else(|| denied!("this state is no chain's: it has no limits"))
    }
}

impl Transition<ChainSpace> for SetLimits {
    type Output = ();

    fn apply(&self, world: &mut Draft<ChainSpace>, cx: &mut Context) -> Result<(), Denied> {
        world.set_limits(&self.limits, cx)
    }
}
