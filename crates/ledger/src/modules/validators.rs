//! Validators: who votes on a chain under another consensus engine.
//!
//! Only who was granted it may change the set, or what an application's own functions and hooks let change it; and only a chain that
//! began with validators has one. A change is told to the engine with the block that made it and counts two blocks later.
//!
//! Rules: `spec/ledger.md`, LEDGER-8, and `spec/modules.md`, MODULE-7.

pub use crate::chain::ChainSpace;
use crate::keys;
use crate::validators::Validators;
use keelstone_execution::{Capability, Context, Denied, Draft, PublicKey, Registry, Stop, Transition, denied};
use keelstone_macros::{event, transition};

/// What it takes to change the validators.
pub const SET_VALIDATOR: Capability = Capability::new("chain.set_validator");

/// A validator's power was set.
#[event("chain.validator_set")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatorSet {
    /// Whose.
    pub key: PublicKey,
    /// The new power; 0: it left.
    pub power: u64,
}

/// Gives a key a voting power; 0 takes it out of the validators.
#[transition("chain.set_validator/1", needs = SET_VALIDATOR)]
pub struct SetValidator {
    /// The Ed25519 key.
    pub key: PublicKey,
    /// Its power.
    pub power: u64,
}

/// Registers the function of this module and its event, for a chain that takes no more of the built-in ones. The capability
/// [`SET_VALIDATOR`] is reserved. Functions of an application may have [`ChainSpace`] in their worlds then.
pub fn register(registry: &mut Registry) -> &mut Registry {
    // What is in the namespace `chain` is the engine's.
    let registry = registry.reserve(SET_VALIDATOR).register_system::<ChainSpace, SetValidator>();
    registry.event::<ValidatorSet>().open::<ChainSpace>()
}

impl ChainSpace {
    /// The validators; none on a chain that makes its own blocks.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn validators(&self) -> Result<Option<Validators>, Stop> {
        self.validators.get()
    }

    /// Gives a key a voting power, in place of the one it has; 0 takes it out of the validators. Emits [`ValidatorSet`]. Who may
    /// have that done is for the function that calls this to say. It is the engine's state: no part of an operation's diff, and not
    /// undone when an async bundle is taken back. Costs a step for each validator.
    ///
    /// # Errors
    /// [`Denied`] where the chain makes its own blocks, of a key that may not act, and of a set that cannot be
    /// ([`crate::ValidatorsError`]): it is as it was.
    // spec: MODULE-7
    pub fn set_power(&mut self, key: PublicKey, power: u64, cx: &mut Context) -> Result<(), Denied> {
        keys::check_key(&key).map_err(|error| denied!("{error}"))?;
        let without = || denied!("this chain makes its own blocks: it has no validators");
        let validators: Validators = self.validators.get()?.ok_or_else(without)?;
        cx.step(validators.active.len() as u64)?;
        let changed = validators.with(key, power).map_err(|error| denied!("{error}"))?;
        self.validators.set(&changed)?;
        Ok(cx.emit(&ValidatorSet { key, power })?)
    }
}

impl Transition<ChainSpace> for SetValidator {
    type Output = ();

    fn apply(&self, world: &mut Draft<ChainSpace>, cx: &mut Context) -> Result<(), Denied> {
        world.set_power(self.key, self.power, cx)
    }
}
