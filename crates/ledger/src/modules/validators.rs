//! Validators: who votes on a chain under another consensus engine.
//!
//! Only who was granted it may change the set, and only a chain that began with validators has one. A change is told to
//! the engine with the block that made it and counts two blocks later.
//!
//! Rules: `spec/ledger.md`, LEDGER-8, and `spec/modules.md`, MODULE-7.

use crate::keys;
use crate::validators::{ChainSpace, Validators};
use keelstone_execution::{Capability, Context, Denied, Draft, PublicKey, Registry, Transition, denied};
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
/// [`SET_VALIDATOR`] is reserved.
pub fn register(registry: &mut Registry) -> &mut Registry {
    // What is in the namespace `chain` is the engine's.
    registry.reserve(SET_VALIDATOR).register_system::<ChainSpace, SetValidator>().event::<ValidatorSet>()
}

impl Transition<ChainSpace> for SetValidator {
    type Output = ();

    fn apply(&self, world: &mut Draft<ChainSpace>, cx: &mut Context) -> Result<(), Denied> {
        keys::check_key(&self.key).map_err(|error| denied!("{error}"))?;
        let without = || denied!("this chain makes its own blocks: it has no validators");
        let validators: Validators = world.validators.get()?.ok_or_else(without)?;
        cx.step(validators.active.len() as u64)?;
        let changed = validators.with(self.key, self.power).map_err(|error| denied!("{error}"))?;
        world.validators.set(&changed)?;
        Ok(cx.emit(&ValidatorSet { key: self.key, power: self.power })?)
    }
}
