//! Agents: who acts, by which key, what kind of character they are, and what they stake.
//!
//! An agent is named for good by the key that registered it, and acts by a key that it can change: the old key offers,
//! the new one takes. All of its traits are fixed-point and bounded. Reputation is changed by others only, and only by
//! those with standing, which is stake; stake comes from the genesis or a grant and is then moved and never made, so no
//! number of new keys adds up to a voice.
//!
//! What the engine itself notes, when an agent last acted and which blocks it made, stands in records of its own that
//! no function writes: they are system writes, so they are in no operation's diff.
//!
//! Rules: `spec/modules.md`, AGENT-1 to AGENT-6, AGENT-7, AGENT-8, AGENT-9.

use super::Society;
use crate::keys;
use keelstone_codec::{BoundedSet, Fixed, Height, Text};
use keelstone_execution::bundles::Bundles;
use keelstone_execution::{
    BlockDraft, Capability, Context, Denied, Draft, Halt, Item, Map, PublicKey, Registry, Stop, Transition, View,
    denied, ensure,
};
use keelstone_macros::{Decode, Encode, OrderedKey, World, event, namespace, transition};
use std::fmt;

/// Most traits of one agent.
pub const TRAITS_MAX: usize = 16;
/// Reputation lies within this much of zero.
pub const REPUTATION_MAX: Fixed = Fixed::from_micros(100 * Fixed::SCALE);
/// The least stake that gives an agent standing.
pub const STANDING_STAKE_MIN: u64 = 100;
/// The reserved capability to make stake.
pub const GRANT_STAKE: Capability = Capability::new("agents.grant_stake");

/// The namespace `agents`.
#[namespace("agents")]
pub struct Agents {
    /// Agents.
    pub all: Map<AgentId, Agent>,
    /// The agent that acts by a key.
    pub by_key: Map<PublicKey, AgentId>,
    /// All stake there is: of agents, and what is locked in alliances and bribes.
    pub stake_total: Item<u64>,
    /// When an agent last acted. Written by the engine alone.
    pub activity: Map<AgentId, Activity>,
    /// Blocks that an agent made. Written by the engine alone.
    pub production: Map<AgentId, Production>,
    /// How an agent came by the standing that was paid to it last. None for those who have had theirs since the genesis.
    pub standings: Map<AgentId, Standing>,
    /// The number of the last meme, which tells what was posted before somebody came by standing: most that pays stake sees
    /// no memes.
    pub last_meme: Item<u64>,
    /// The last height at which an async bundle was taken in. Written by the engine alone.
    pub last_bundle: Item<Height>,
}

/// An agent's name for good: the key that registered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, OrderedKey)]
pub struct AgentId(pub PublicKey);

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Agent {
    /// The key it acts by.
    pub key: PublicKey,
    /// The key that may take over from it.
    pub offered_key: Option<PublicKey>,
    /// What it is called; names may repeat, agents do not.
    pub name: Text<64>,
    /// Its character.
    pub personality: Personality,
    /// What else is said of it.
    pub traits: BoundedSet<Text<32>, TRAITS_MAX>,
    /// How it feels, from -1 to 1.
    pub mood: Fixed,
    /// What it is doing.
    pub status: Status,
    /// What others think of it, within [`REPUTATION_MAX`] of zero.
    pub reputation: Fixed,
    /// What it has to lose, in units that cannot be divided.
    pub stake: u64,
}

impl Agent {
    /// A new one, which nobody knows yet.
    #[must_use]
    pub fn new(
        key: PublicKey,
        name: Text<64>,
        personality: Personality,
        traits: BoundedSet<Text<32>, TRAITS_MAX>,
    ) -> Self {
        Self {
            key,
            offered_key: None,
            name,
            personality,
            traits,
            mood: Fixed::ZERO,
            status: Status::Active,
            reputation: Fixed::ZERO,
            stake: 0,
        }
    }

    /// Whether its voice counts beyond itself (spec: AGENT-4).
    #[must_use]
    pub fn has_standing(&self) -> bool {
        self.status != Status::Retired && self.stake >= STANDING_STAKE_MIN
    }

    /// Moves its reputation, which stays within its bounds.
    pub(super) fn think_of(&mut self, step: Fixed) {
        self.reputation = clamped(self.reputation, step, REPUTATION_MAX);
    }

    /// Moves its mood by a step that is as large as it is easily upset.
    pub(super) fn feel(&mut self, step: Fixed) {
        let felt = step.checked_mul(self.personality.neuroticism).unwrap_or(Fixed::ZERO);
        self.mood = clamped(self.mood, felt, Fixed::ONE);
    }
}

/// How an agent came by its standing.
// spec: AGENT-7
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Standing {
    /// The last meme that was posted by then; 0 if none was.
    pub after: u64,
    /// The last meme whose author's reputation it moved; 0 if it moved none. Written when it speaks: what paid the stake cannot be
    /// taken back any more from then on (EXEC-10), or the same stake would speak again at whoever gave it.
    pub spoke_on: u64,
    /// The last height at which an async bundle had been taken in by then, or when the agent's key was taken: for those bundles
    /// the same stake may stand already.
    pub after_bundle: Height,
}

/// When an agent last acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Activity {
    /// The block of its last transaction that took effect.
    pub height: Height,
    /// How many of its transactions took effect.
    pub transactions: u64,
}

/// What an agent did as a producer of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Production {
    /// The last block it made that was not empty.
    pub height: Height,
    /// How many such blocks.
    pub blocks: u64,
    /// How many transactions they held.
    pub transactions: u64,
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

    /// The five with their names.
    pub(super) fn named(&self) -> [(&'static str, Fixed); 5] {
        [
            ("openness", self.openness),
            ("conscientiousness", self.conscientiousness),
            ("extraversion", self.extraversion),
            ("agreeableness", self.agreeableness),
            ("neuroticism", self.neuroticism),
        ]
    }

    pub(super) fn check(&self) -> Result<(), Denied> {
        for (name, value) in self.named() {
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
    /// Gone: it can do nothing any more but leave alliances, change its key, and come back by [`SetStatus`].
    Retired,
}

/// An agent came to be.
#[event("agents.registered")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Which.
    pub agent: AgentId,
    /// Its name.
    pub name: Text<64>,
}

/// An agent changed its status.
#[event("agents.status_changed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusChanged {
    /// Which.
    pub agent: AgentId,
    /// What it is doing now.
    pub status: Status,
}

/// An agent acts by another key.
#[event("agents.key_changed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChanged {
    /// Which.
    pub agent: AgentId,
    /// The key it acts by now.
    pub key: PublicKey,
}

/// Stake moved from one agent to another.
#[event("agents.stake_given")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StakeGiven {
    /// From this one; none if it was made by a grant.
    pub from: Option<AgentId>,
    /// To this one.
    pub to: AgentId,
    /// How much.
    pub amount: u64,
}

impl Agents {
    /// An agent by its name.
    ///
    /// # Errors
    /// [`Denied`] if there is none.
    pub fn named(&self, id: &AgentId) -> Result<Agent, Denied> {
        self.all.get(id)?.ok_or_else(|| denied!("{id} is no agent"))
    }

    /// The agent that acts by a key, whatever its status.
    ///
    /// # Errors
    /// [`Denied`] if there is none.
    pub fn acting(&self, key: &PublicKey) -> Result<(AgentId, Agent), Denied> {
        let id = self.by_key.get(key)?.ok_or_else(|| denied!("{key} is no agent"))?;
        Ok((id, self.named(&id)?))
    }

    /// The agent that acts by a key and may act.
    ///
    /// # Errors
    /// [`Denied`] if there is none, or it has retired.
    pub fn active(&self, key: &PublicKey) -> Result<(AgentId, Agent), Denied> {
        let (id, agent) = self.acting(key)?;
        ensure!(agent.status != Status::Retired, "{id} has retired");
        Ok((id, agent))
    }

    /// The agent that acts by a key, may act, and has standing.
    ///
    /// # Errors
    /// [`Denied`] if it has not.
    pub fn standing(&self, key: &PublicKey) -> Result<(AgentId, Agent), Denied> {
        let (id, agent) = self.active(key)?;
        let stake = agent.stake;
        ensure!(agent.has_standing(), "{id} stakes {stake}, and standing takes {STANDING_STAKE_MIN}");
        Ok((id, agent))
    }

    /// Whether an agent is there and has standing (still).
    pub(super) fn has_standing(&self, id: &AgentId) -> Result<bool, Stop> {
        Ok(self.all.get(id)?.is_some_and(|agent| agent.has_standing()))
    }

    /// Changes an agent, if there is one of this name.
    pub(super) fn change(&mut self, id: &AgentId, change: impl FnOnce(&mut Agent)) -> Result<(), Stop> {
        if let Some(mut agent) = self.all.get(id)? {
            change(&mut agent);
            self.all.insert(id, &agent)?;
        }
        Ok(())
    }

    /// Moves an agent's reputation, which stays within its bounds.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn add_reputation(&mut self, id: &AgentId, by: Fixed) -> Result<(), Stop> {
        self.change(id, |agent| agent.think_of(by))
    }

    /// Takes stake from an agent.
    pub(super) fn take_stake(&mut self, id: &AgentId, amount: u64) -> Result<(), Denied> {
        if amount == 0 {
            return Ok(());
        }
        let mut agent = self.named(id)?;
        let left = agent.stake.checked_sub(amount);
        agent.stake = left.ok_or_else(|| denied!("{id} stakes {}, which is less than {amount}", agent.stake))?;
        Ok(self.all.insert(id, &agent)?)
    }

    /// Gives stake to an agent that exists. All stake fits one number, so no agent's can pass it.
    pub(super) fn add_stake(&mut self, id: &AgentId, amount: u64) -> Result<(), Denied> {
        if amount == 0 {
            return Ok(());
        }
        let mut agent = self.named(id)?;
        let before = agent.stake;
        agent.stake =
            before.checked_add(amount).ok_or_else(|| denied!("{id} cannot stake {amount} more than {before}"))?;
        // spec: AGENT-7
        if before < STANDING_STAKE_MIN && agent.stake >= STANDING_STAKE_MIN {
            let (after, after_bundle) =
                (self.last_meme.get_or_default()?, self.last_bundle.get()?.unwrap_or(Height(0)));
            self.standings.insert(id, &Standing { after, spoke_on: 0, after_bundle })?;
        }
        Ok(self.all.insert(id, &agent)?)
    }

    /// Whether an agent has standing, and had come by it when a meme was posted. By the memes' numbers and by no height, so that
    /// what pays stake depends on the state alone.
    // spec: AGENT-7
    pub(super) fn may_speak_on(&self, id: &AgentId, agent: &Agent, meme: u64) -> Result<bool, Stop> {
        Ok(agent.has_standing() && self.standings.get(id)?.is_none_or(|standing| standing.after < meme))
    }

    /// As [`Self::may_speak_on`], and notes that it spoke there.
    // spec: AGENT-7
    pub(super) fn speaks_on(&mut self, id: &AgentId, agent: &Agent, meme: u64) -> Result<bool, Stop> {
        if !agent.has_standing() {
            return Ok(false);
        }
        let Some(standing) = self.standings.get(id)? else { return Ok(true) };
        let speaks = standing.after < meme;
        if speaks {
            self.standings.insert(id, &Standing { spoke_on: meme, ..standing })?;
        }
        Ok(speaks)
    }

    /// Whether all the stake there is gives nobody standing: then nothing is kept for those who have it.
    pub(super) fn nobody_stands(&self) -> Result<bool, Stop> {
        Ok(self.stake_total.get_or_default()? < STANDING_STAKE_MIN)
    }

    /// Of the agents that have the places of a ballot, the one whose place a newcomer with this stake takes: the one that
    /// weighs least, and of those the first by name. None if none weighs less. What has no standing (any more) weighs
    /// nothing, so that stake which is passed on takes no second place.
    // spec: AGENT-8
    pub(super) fn lightest(
        &self,
        holders: impl Iterator<Item = Result<AgentId, Stop>>,
        stake: u64,
    ) -> Result<Option<AgentId>, Stop> {
        let mut lightest = None;
        for holder in holders {
            let holder = holder?;
            let standing = self.all.get(&holder)?.filter(Agent::has_standing);
            let weighed = (standing.map_or(0, |agent| agent.stake), holder);
            lightest = Some(lightest.map_or(weighed, |least| weighed.min(least)));
        }
        Ok(lightest.filter(|(least, _)| *least < stake).map(|(_, holder)| holder))
    }

    /// Makes stake. All there is stays within one number.
    pub(super) fn make_stake(&mut self, id: &AgentId, amount: u64) -> Result<(), Denied> {
        let total = self.stake_total.get_or_default()?;
        let sum = total.checked_add(amount).ok_or_else(|| denied!("there is {total} stake, {amount} more is none"))?;
        self.add_stake(id, amount)?;
        Ok(self.stake_total.set(&sum)?)
    }

    /// Puts a new agent into the state.
    pub(super) fn admit(&mut self, id: AgentId, agent: &Agent) -> Result<(), Stop> {
        self.all.insert(&id, agent)?;
        self.by_key.insert(&agent.key, &id)
    }
}

/// Counts anew how much of something an agent has. Nothing is kept of none.
pub(super) fn recount(
    counts: &mut Map<AgentId, u32>,
    id: &AgentId,
    change: impl FnOnce(u32) -> u32,
) -> Result<(), Stop> {
    match change(counts.get(id)?.unwrap_or_default()) {
        0 => counts.remove(id).map(drop),
        count => counts.insert(id, &count),
    }
}

/// Whether a chain has the functions of this module, so that its agents are worth noting.
fn are_known(registry: &Registry) -> bool {
    registry.holds::<Agents>()
}

/// What is looked at to say whether a bundle may have a place that is kept for stake.
#[derive(World)]
pub(crate) struct Places {
    agents: Agents,
    bundles: Bundles,
}

/// Whether there is stake that gives standing, and none behind this key that stands for no bundle in flight yet: what is kept for agents
/// with standing is not for it. Whoever counts here had its standing when each of those in flight was taken in, so at a time no
/// more agents count than had standing at once.
// spec: TX-9
pub(crate) fn is_kept_from(registry: &Registry, world: &Places, key: &PublicKey) -> Result<bool, Stop> {
    let Places { agents, bundles } = world;
    if !are_known(registry) || agents.nobody_stands()? {
        return Ok(false);
    }
    let Some(id) = agents.by_key.get(key)? else { return Ok(true) };
    if !agents.has_standing(&id)? {
        return Ok(true);
    }
    let Some(standing) = agents.standings.get(&id)? else { return Ok(false) };
    for due in bundles.due.iter() {
        let record = bundles.records.get(&due?.1)?;
        if record.is_some_and(|record| record.submitted <= standing.after_bundle) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes that an async bundle was taken in, at the height of the block at work: a system write.
// spec: AGENT-7
pub(crate) fn note_bundle(registry: &Registry, draft: &mut BlockDraft<'_>) -> Result<(), Halt> {
    if !are_known(registry) {
        return Ok(());
    }
    let height = draft.context().height;
    system(draft, |agents| agents.last_bundle.set(&height))
}

/// Notes that the agent which acts by `sender` did, if there is one: a system write, so that no operation's diff holds
/// a height. What the entry held and is no such record counts as none.
// spec: AGENT-5
pub(crate) fn note_activity(registry: &Registry, draft: &mut BlockDraft<'_>, sender: &PublicKey) -> Result<(), Halt> {
    if !are_known(registry) {
        return Ok(());
    }
    let height = draft.context().height;
    system(draft, |agents| {
        let Some(id) = agents.by_key.get(sender)? else { return Ok(()) };
        let before = agents.activity.get(&id)?.unwrap_or_default();
        let transactions = before.transactions.saturating_add(1);
        agents.activity.insert(&id, &Activity { height, transactions })
    })
}

/// Credits the block at work to its proposer, if that is an agent's key.
// spec: AGENT-5
pub(crate) fn note_production(registry: &Registry, draft: &mut BlockDraft<'_>, transactions: u64) -> Result<(), Halt> {
    if !are_known(registry) {
        return Ok(());
    }
    let (height, proposer) = (draft.context().height, draft.context().proposer);
    system(draft, |agents| {
        let Some(id) = agents.by_key.get(&proposer)? else { return Ok(()) };
        let before = agents.production.get(&id)?.unwrap_or_default();
        let blocks = before.blocks.saturating_add(1);
        let transactions = before.transactions.saturating_add(transactions);
        agents.production.insert(&id, &Production { height, blocks, transactions })
    })
}

/// A system write that is left out where the state holds something else in its place, on every node alike: only a
/// genesis that writes raw entries can bring that about, and it must not stop the chain.
fn system(draft: &mut BlockDraft<'_>, write: impl FnOnce(&mut Agents) -> Result<(), Stop>) -> Result<(), Halt> {
    match draft.edit(write) {
        Err(Stop::Read(error)) => Err(error.into()),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// `value + by`, kept within `limit` of zero.
pub(super) fn clamped(value: Fixed, by: Fixed, limit: Fixed) -> Fixed {
    let least = Fixed::from_micros(-limit.micros());
    let beyond = if by < Fixed::ZERO { least } else { limit };
    value.checked_add(by).unwrap_or(beyond).clamp(least, limit)
}

/// Says no to a number that is not from -1 to 1.
pub(super) fn within_one(name: &str, value: Fixed) -> Result<(), Denied> {
    let least = Fixed::from_micros(-Fixed::SCALE);
    ensure!((least..=Fixed::ONE).contains(&value), "{name} is -1 to 1, not {value}");
    Ok(())
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

    // spec: AGENT-1
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        keys::check_key(&cx.sender()).map_err(|error| denied!("{error}"))?;
        ensure!(!self.name.is_empty(), "an agent has a name");
        ensure!(!world.agents.by_key.contains(&cx.sender())?, "{} is an agent already", cx.sender());
        ensure!(!world.agents.all.contains(&AgentId(cx.sender()))?, "{} was an agent's first key", cx.sender());
        self.personality.check()
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let agent = AgentId(cx.sender());
        let record = Agent::new(cx.sender(), self.name.clone(), self.personality, self.traits.clone());
        world.agents.admit(agent, &record)?;
        Ok(cx.emit(&Registered { agent, name: record.name })?)
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

    // spec: AGENT-2
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        ensure!(self.name.as_ref().is_none_or(|name| !name.is_empty()), "an agent has a name");
        self.personality.as_ref().map_or(Ok(()), Personality::check)
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (id, mut agent) = world.agents.active(&cx.sender())?;
        if let Some(name) = &self.name {
            agent.name = name.clone();
        }
        if let Some(personality) = self.personality {
            agent.personality = personality;
        }
        if let Some(traits) = &self.traits {
            agent.traits = traits.clone();
        }
        Ok(world.agents.all.insert(&id, &agent)?)
    }
}

/// Says how the sender feels.
#[transition("agents.set_mood/1", needs = "agents.act")]
pub struct SetMood {
    /// From -1 to 1.
    pub mood: Fixed,
}

impl Transition<Society> for SetMood {
    type Output = ();

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        within_one("mood", self.mood)
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (id, mut agent) = world.agents.active(&cx.sender())?;
        agent.mood = self.mood;
        Ok(world.agents.all.insert(&id, &agent)?)
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

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (id, mut agent) = world.agents.acting(&cx.sender())?;
        agent.status = self.status;
        world.agents.all.insert(&id, &agent)?;
        Ok(cx.emit(&StatusChanged { agent: id, status: self.status })?)
    }
}

/// Offers the sender's agent to another key, which may then take it; none takes an offer back.
#[transition("agents.offer_key/1", needs = "agents.rotate")]
pub struct OfferKey {
    /// The key that may act in its place.
    pub key: Option<PublicKey>,
}

impl Transition<Society> for OfferKey {
    type Output = ();

    // spec: AGENT-3
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.acting(&cx.sender())?;
        let Some(key) = &self.key else { return Ok(()) };
        keys::check_key(key).map_err(|error| denied!("{error}"))?;
        ensure!(!world.agents.by_key.contains(key)?, "{key} is an agent already");
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (id, mut agent) = world.agents.acting(&cx.sender())?;
        agent.offered_key = self.key;
        Ok(world.agents.all.insert(&id, &agent)?)
    }
}

/// Takes an agent that was offered to the sender's key. From here on the agent acts by this key and no other.
#[transition("agents.take_key/1", needs = "agents.rotate")]
pub struct TakeKey {
    /// Which.
    pub agent: AgentId,
}

impl Transition<Society> for TakeKey {
    type Output = ();

    // spec: AGENT-3
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        let agent = world.agents.named(&self.agent)?;
        ensure!(agent.offered_key == Some(cx.sender()), "{} is not offered to {}", self.agent, cx.sender());
        ensure!(!world.agents.by_key.contains(&cx.sender())?, "{} is an agent already", cx.sender());
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let mut agent = world.agents.named(&self.agent)?;
        // Each key may have bundles in flight: another one brings an agent no more of what is kept for its stake. spec: AGENT-7
        if let Some(after_bundle) = world.agents.last_bundle.get()? {
            let standing = world.agents.standings.get(&self.agent)?.unwrap_or_default();
            world.agents.standings.insert(&self.agent, &Standing { after_bundle, ..standing })?;
        }
        world.agents.by_key.remove(&agent.key)?;
        agent.key = cx.sender();
        agent.offered_key = None;
        world.agents.admit(self.agent, &agent)?;
        Ok(cx.emit(&KeyChanged { agent: self.agent, key: agent.key })?)
    }
}

/// Gives another agent some of the sender's stake.
#[transition("agents.give_stake/1", needs = "agents.stake")]
pub struct GiveStake {
    /// To whom.
    pub to: AgentId,
    /// How much.
    pub amount: u64,
}

impl Transition<Society> for GiveStake {
    type Output = ();

    // spec: AGENT-4
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        let (from, _) = world.agents.active(&cx.sender())?;
        ensure!(self.amount > 0, "an amount is above zero");
        ensure!(from != self.to, "stake is given to another");
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (from, _) = world.agents.active(&cx.sender())?;
        world.agents.take_stake(&from, self.amount)?;
        world.agents.add_stake(&self.to, self.amount)?;
        Ok(cx.emit(&StakeGiven { from: Some(from), to: self.to, amount: self.amount })?)
    }
}

/// Makes stake for an agent.
#[transition("agents.grant_stake/1", needs = GRANT_STAKE)]
pub struct GrantStake {
    /// For whom.
    pub to: AgentId,
    /// How much.
    pub amount: u64,
}

impl Transition<Society> for GrantStake {
    type Output = ();

    // spec: AGENT-4
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        ensure!(self.amount > 0, "an amount is above zero");
        world.agents.make_stake(&self.to, self.amount)?;
        Ok(cx.emit(&StakeGiven { from: None, to: self.to, amount: self.amount })?)
    }
}
