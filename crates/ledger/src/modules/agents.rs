//! Agents: who acts, by key, and what kind of character they are.
//!
//! An agent is named by the key that registered it. All traits are fixed-point and bounded, and so is reputation,
//! which only what others do can change (see `memes`).
//!
//! Rules: `spec/ledger.md`, MODULE-2.

use super::Society;
use crate::keys;
use keelstone_codec::{BoundedSet, Fixed, Text};
use keelstone_execution::{Context, Denied, Draft, Map, PublicKey, Stop, Transition, View, denied, ensure};
use keelstone_macros::{Decode, Encode, event, namespace, transition};

/// Most traits of one agent.
pub const TRAITS_MAX: usize = 16;
/// Reputation lies within this much of zero.
pub const REPUTATION_MAX: Fixed = Fixed::from_micros(100 * Fixed::SCALE);

/// The namespace `agents`.
#[namespace("agents")]
pub struct Agents {
    /// Agents by their key.
    pub by_key: Map<PublicKey, Agent>,
}

/// What is known of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Agent {
    /// What it is called; names may repeat, keys do not.
    pub name: Text<64>,
    /// Its character.
    pub personality: Personality,
    /// What else is said of it.
    pub traits: BoundedSet<Text<32>, TRAITS_MAX>,
    /// What it is doing.
    pub status: Status,
    /// What others think of it, within [`REPUTATION_MAX`] of zero.
    pub reputation: Fixed,
}

/// Five dimensions of a character, each from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Personality {
    /// How readily it takes to what is new.
    pub openness: Fixed,
    /// How careful it is.
    pub conscientiousness: Fixed,
    /// How much it seeks company.
    pub extraversion: Fixed,
    /// How easily it agrees.
    pub agreeableness: Fixed,
    /// How easily it is upset.
    pub neuroticism: Fixed,
}

impl Personality {
    /// Halfway in everything.
    pub const AVERAGE: Self = Self::even(Fixed::from_micros(500_000));

    /// The same in everything.
    #[must_use]
    pub const fn even(value: Fixed) -> Self {
        Self {
            openness: value,
            conscientiousness: value,
            extraversion: value,
            agreeableness: value,
            neuroticism: value,
        }
    }

    fn check(&self) -> Result<(), Denied> {
        for (name, value) in [
            ("openness", self.openness),
            ("conscientiousness", self.conscientiousness),
            ("extraversion", self.extraversion),
            ("agreeableness", self.agreeableness),
            ("neuroticism", self.neuroticism),
        ] {
            ensure!((Fixed::ZERO..=Fixed::ONE).contains(&value), "{name} is 0 to 1, not {value}");
        }
        Ok(())
    }
}

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub enum Status {
    /// Taking part.
    #[default]
    Active,
    /// Away for a while.
    Resting,
    /// Gone for good: it can do nothing any more but come back to life by [`SetStatus`].
    Retired,
}

/// An agent came to be.
#[event("agents.registered")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its key.
    pub agent: PublicKey,
    /// Its name.
    pub name: Text<64>,
}

/// An agent changed its status.
#[event("agents.status_changed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusChanged {
    /// Its key.
    pub agent: PublicKey,
    /// What it is doing now.
    pub status: Status,
}

impl Agents {
    /// An agent that may act.
    ///
    /// # Errors
    /// [`Denied`] if it is not registered or has retired.
    pub fn active(&self, key: &PublicKey) -> Result<Agent, Denied> {
        let agent = self.by_key.get(key)?.ok_or_else(|| denied!("{key} is no agent"))?;
        ensure!(agent.status != Status::Retired, "{key} has retired");
        Ok(agent)
    }

    /// Moves an agent's reputation, which stays within its bounds.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn add_reputation(&mut self, key: &PublicKey, by: Fixed) -> Result<(), Stop> {
        if let Some(mut agent) = self.by_key.get(key)? {
            agent.reputation = clamped(agent.reputation, by, REPUTATION_MAX);
            self.by_key.insert(key, &agent)?;
        }
        Ok(())
    }
}

/// `value + by`, kept within `limit` of zero.
pub(super) fn clamped(value: Fixed, by: Fixed, limit: Fixed) -> Fixed {
    let least = Fixed::from_micros(-limit.micros());
    let beyond = if by < Fixed::ZERO { least } else { limit };
    value.checked_add(by).unwrap_or(beyond).clamp(least, limit)
}

/// Registers the sender as an agent.
#[transition("agents.register/1", needs = "agents.act")]
pub struct Register {
    /// Its name.
    pub name: Text<64>,
    /// Its character.
    pub personality: Personality,
    /// What else is said of it.
    pub traits: BoundedSet<Text<32>, TRAITS_MAX>,
}

impl Transition<Society> for Register {
    type Output = ();

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        keys::check_key(&cx.sender()).map_err(|error| denied!("{error}"))?;
        ensure!(!self.name.is_empty(), "an agent has a name");
        ensure!(!world.agents.by_key.contains(&cx.sender())?, "{} is an agent already", cx.sender());
        self.personality.check()
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let agent = Agent {
            name: self.name.clone(),
            personality: self.personality,
            traits: self.traits.clone(),
            status: Status::Active,
            reputation: Fixed::ZERO,
        };
        world.agents.by_key.insert(&cx.sender(), &agent)?;
        Ok(cx.emit(&Registered { agent: cx.sender(), name: agent.name })?)
    }
}

/// Changes what the sender says of itself; what is `None` stays.
#[transition("agents.update/1", needs = "agents.act")]
pub struct Update {
    /// A new name.
    pub name: Option<Text<64>>,
    /// A new character.
    pub personality: Option<Personality>,
    /// New traits.
    pub traits: Option<BoundedSet<Text<32>, TRAITS_MAX>>,
}

impl Transition<Society> for Update {
    type Output = ();

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        ensure!(self.name.as_ref().is_none_or(|name| !name.is_empty()), "an agent has a name");
        self.personality.as_ref().map_or(Ok(()), Personality::check)
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let mut agent = world.agents.active(&cx.sender())?;
        if let Some(name) = &self.name {
            agent.name = name.clone();
        }
        if let Some(personality) = self.personality {
            agent.personality = personality;
        }
        if let Some(traits) = &self.traits {
            agent.traits = traits.clone();
        }
        Ok(world.agents.by_key.insert(&cx.sender(), &agent)?)
    }
}

/// Says what the sender is doing.
#[transition("agents.set_status/1", needs = "agents.act")]
pub struct SetStatus {
    /// What.
    pub status: Status,
}

impl Transition<Society> for SetStatus {
    type Output = ();

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        ensure!(world.agents.by_key.contains(&cx.sender())?, "{} is no agent", cx.sender());
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let mut agent = world.agents.by_key.get(&cx.sender())?.ok_or_else(|| denied!("{} is no agent", cx.sender()))?;
        agent.status = self.status;
        world.agents.by_key.insert(&cx.sender(), &agent)?;
        Ok(cx.emit(&StatusChanged { agent: cx.sender(), status: self.status })?)
    }
}
