//! Conflicts: two claims that cannot both be right, opened with evidence, judged by agents with standing.
//!
//! Evidence is checked by the chain when a conflict is opened: two statements of which each is signed by its agent and
//! which say different things of one subject, or two alliances of one member of which one was promised to be the only
//! one. An opinion is a transaction, so it is signed; it comes with a reason, once from each agent, and never from one
//! whose own case it is. Where there are as many as are taken, one gives its place up to another that more stake stands
//! behind. After the deadline anybody may have the opinions counted. The count stands in the state with
//! every voice and what it weighed, and what it decides is applied by the same transition.
//!
//! What a conflict decides is what this module and the modules beside it hold, never what the engine certifies:
//! records of blocks, sessions and roots lie in namespaces that no function here can reach.
//!
//! Rules: `spec/modules.md`, CONFLICT-1 to CONFLICT-9. Use and a worked table: `docs/conflict.md`.

pub mod tally;

use self::tally::{Lack, Outcome, Position, Strategy, Tally, VOICES_MAX, Voice};
use super::agents::{Agent, AgentId, Agents, REPUTATION_MAX, recount};
use super::rules::ballot;
use super::social::{self, AllianceId, Drama, DramaKind, Social};
use crate::keys::{self, SecretKey, Signature, SignatureError};
use keelstone_codec::{ChainId, Encode, Fixed, Hash, Height, Tag, TaggedHasher, Text};
use keelstone_execution::{
    Context, Denied, Draft, Item, Map, Sequence, SessionId, Set, Stop, Transition, View, denied, ensure,
};
use keelstone_macros::{Decode, Encode, OrderedKey, World, event, namespace, transition};

/// Most conflicts that are judged at a time.
pub const OPEN_MAX: u32 = 64;
/// Most of them that one agent has opened.
pub const OPEN_OF_AGENT_MAX: u32 = OPEN_MAX / 8;
/// How many conflicts are kept once they are settled; the oldest make room.
pub const SETTLED_MAX: u64 = 1_024;
/// The least participation that can be asked for: the first yes is no quorum.
pub const PARTICIPATION_MIN: u32 = 3;
/// What checking one signature costs.
const SIGNATURE_GAS: u64 = 60_000;
/// What making a statement that does not hold costs in reputation.
const WRONG_REPUTATION: Fixed = Fixed::from_micros(-Fixed::SCALE);

/// What those who judge see of the state. What the engine certifies is not among it, so no outcome reaches that.
// spec: CONFLICT-8
#[derive(World)]
pub struct Court {
    /// Who there is.
    pub agents: Agents,
    /// What they are to one another.
    pub social: Social,
    /// What they fight over.
    pub conflicts: Conflicts,
}

/// The namespace `conflict`.
#[namespace("conflict")]
pub struct Conflicts {
    /// Conflicts.
    pub all: Map<ConflictId, Conflict>,
    /// The number of the last one.
    pub next_conflict: Sequence<ConflictId>,
    /// What an agent said about a conflict.
    pub opinions: Map<(ConflictId, AgentId), Opinion>,
    /// The open conflict about a subject, by its hash.
    pub subjects: Map<Hash, ConflictId>,
    /// Statements that were decided over, by their hashes: none is evidence again.
    pub judged: Set<Hash>,
    /// How many conflicts are open.
    pub open: Item<u32>,
    /// How many of an agent are open.
    pub opened: Map<AgentId, u32>,
    /// Conflicts that are settled, in the order in which they were.
    pub settled: Map<u64, ConflictId>,
    /// How many were settled.
    pub next_settled: Sequence<u64>,
}

/// The number of a conflict, from 1 on, given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
pub struct ConflictId(pub u64);

/// What a statement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum About {
    /// What a transition came to: the state hash of a session after so many operations.
    Transition {
        /// The session.
        session: SessionId,
        /// How many operations it had run by then.
        sequence: u64,
    },
    /// What is said of an agent.
    Agent {
        /// Which.
        agent: AgentId,
        /// What of it.
        field: Field,
    },
}

/// What of an agent can be fought over. Not its stake: that is counted, not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Field {
    /// Its reputation.
    Reputation,
    /// Its mood.
    Mood,
}

impl Field {
    /// How far from zero it may be.
    #[must_use]
    pub fn limit(self) -> Fixed {
        match self {
            Self::Reputation => REPUTATION_MAX,
            Self::Mood => Fixed::ONE,
        }
    }

    fn check(self, value: Fixed) -> Result<(), Denied> {
        let limit = self.limit();
        let least = Fixed::from_micros(-limit.micros());
        ensure!((least..=limit).contains(&value), "the value is {least} to {limit}, not {value}");
        Ok(())
    }

    fn set(self, agent: &mut Agent, value: Fixed) {
        match self {
            Self::Reputation => agent.reputation = value,
            Self::Mood => agent.mood = value,
        }
    }
}

/// What a statement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Claim {
    /// The state hash is this: for [`About::Transition`].
    Hash(Hash),
    /// The value is this: for [`About::Agent`].
    Value(Fixed),
}

/// What an agent signed, on the chain or off it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Statement {
    /// Whose it is.
    pub by: AgentId,
    /// What it is about.
    pub about: About,
    /// What it says.
    pub claim: Claim,
    /// By the key the agent acts by.
    pub signature: Signature,
}

impl Statement {
    /// Makes a statement.
    #[must_use]
    pub fn sign(chain_id: &ChainId, by: AgentId, about: About, claim: Claim, key: &SecretKey) -> Self {
        let signature = key.sign(&signed_bytes(chain_id, by, &about, &claim));
        Self { by, about, claim, signature }
    }

    /// Says whether it was made by whoever has a key.
    ///
    /// # Errors
    /// [`SignatureError`].
    // spec: CONFLICT-1
    pub fn verify(&self, chain_id: &ChainId, key: &keelstone_execution::PublicKey) -> Result<(), SignatureError> {
        keys::verify(key, &signed_bytes(chain_id, self.by, &self.about, &self.claim), &self.signature)
    }

    /// What it says, by whom, as it is kept once it was decided over. Its signature is no part of that: a statement signed
    /// anew, or by the agent's next key, is the same.
    // spec: CONFLICT-9
    fn hash(&self) -> Hash {
        const STATEMENT: Tag = Tag::new("conflict-statement");
        TaggedHasher::new(STATEMENT).value(&self.by).value(&self.about).value(&self.claim).finish()
    }

    fn check(&self, world: &Court, cx: &Context) -> Result<(), Denied> {
        let agent = world.agents.named(&self.by)?;
        ensure!(!world.conflicts.judged.contains(&self.hash())?, "the statement of {} was decided over", self.by);
        cx.step(SIGNATURE_GAS)?;
        let verdict = self.verify(cx.chain_id(), &agent.key);
        verdict.map_err(|error| denied!("the statement of {}: {error}", self.by))?;
        match (&self.about, self.claim) {
            (About::Transition { .. }, Claim::Hash(_)) => Ok(()),
            (About::Agent { agent, field }, Claim::Value(value)) => {
                world.agents.named(agent)?;
                field.check(value)
            }
            _ => Err(denied!("of a transition a hash is claimed, of an agent a value")),
        }
    }
}

/// What a statement's signature is over: nothing else that is signed begins so.
// spec: CONFLICT-1
fn signed_bytes(chain_id: &ChainId, by: AgentId, about: &About, claim: &Claim) -> Vec<u8> {
    let mut bytes = b"keelstone/statement\0".to_vec();
    chain_id.encode(&mut bytes);
    by.encode(&mut bytes);
    about.encode(&mut bytes);
    claim.encode(&mut bytes);
    bytes
}

/// What a conflict is about, with the evidence for it.
#[expect(clippy::large_enum_variant, reason = "one is at work at a time, and a box would show in no encoding")]
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Subject {
    /// Two statements about one thing that say two things: divergent transitions, or an agent's inconsistent state.
    Statements {
        /// The first.
        first: Statement,
        /// The second.
        second: Statement,
    },
    /// Two alliances of one member, at least one of which is exclusive.
    Alliances {
        /// Who is in both.
        member: AgentId,
        /// The first, of which the first claim says that the member stays.
        first: AllianceId,
        /// The second.
        second: AllianceId,
    },
}

impl Subject {
    /// The hash under which it is found while a conflict about it is open. Signatures are not part of what a conflict
    /// is about, and neither is which of two statements is named first: both ways round open, the loser would pay twice.
    // spec: CONFLICT-2
    fn hash(&self) -> Hash {
        const SUBJECT: Tag = Tag::new("conflict-subject");
        let mut hasher = TaggedHasher::new(SUBJECT);
        match self {
            Self::Statements { first, second } => {
                hasher.value(&0u8).value(&first.about);
                let mut claimed = [first, second].map(|statement| (statement.by, statement.claim).to_bytes());
                claimed.sort_unstable();
                hasher.update(&claimed.concat());
            }
            Self::Alliances { member, first, second } => {
                hasher.value(&1u8).value(member).value(first).value(second);
            }
        }
        hasher.finish()
    }

    /// Whose own case it is.
    fn is_party(&self, agent: &AgentId) -> bool {
        match self {
            Self::Statements { first, second } => {
                let about = matches!(&first.about, About::Agent { agent: other, .. } if other == agent);
                about || first.by == *agent || second.by == *agent
            }
            Self::Alliances { member, .. } => member == agent,
        }
    }

    /// What of an agent it is about, if it is.
    fn field(&self) -> Option<(AgentId, Field)> {
        match self {
            Self::Statements { first: Statement { about: About::Agent { agent, field }, .. }, .. } => {
                Some((*agent, *field))
            }
            _ => None,
        }
    }

    // spec: CONFLICT-1
    fn check(&self, world: &Court, cx: &Context) -> Result<(), Denied> {
        match self {
            Self::Statements { first, second } => {
                first.check(world, cx)?;
                second.check(world, cx)?;
                ensure!(first.about == second.about, "the statements are about two things");
                ensure!(first.claim != second.claim, "the statements say the same");
                Ok(())
            }
            Self::Alliances { member, first, second } => {
                ensure!(first < second, "the alliances are two, the one with the lower number first");
                let both = (world.social.alliance(*first)?, world.social.alliance(*second)?);
                let within = both.0.members.contains(member) && both.1.members.contains(member);
                ensure!(within, "{member} is not in both alliances");
                ensure!(both.0.terms.exclusive || both.1.terms.exclusive, "neither alliance is exclusive");
                Ok(())
            }
        }
    }
}

/// A conflict.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Conflict {
    /// What it is about, with the evidence.
    pub subject: Subject,
    /// Who opened it.
    pub opener: AgentId,
    /// When.
    pub opened: Height,
    /// The last height at which opinions are taken.
    pub deadline: Height,
    /// How opinions are weighed.
    pub strategy: Strategy,
    /// The share of all weight that decides.
    pub quorum: Fixed,
    /// How many opinions must count.
    pub participation: u32,
    /// How many opinions there are.
    pub opinions: u32,
    /// What it came to; none while it is open.
    pub ruling: Option<Ruling>,
}

/// What a conflict came to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ruling {
    /// When it was counted.
    pub height: Height,
    /// How.
    pub tally: Tally,
}

/// What somebody said about a conflict.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Opinion {
    /// What it holds to be right.
    pub position: Position,
    /// Why.
    pub reason: Text<280>,
}

/// A conflict was opened.
#[event("conflict.opened")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its number.
    pub conflict: ConflictId,
    /// Who opened it.
    pub opener: AgentId,
    /// The last height at which opinions are taken.
    pub deadline: Height,
}

/// An opinion was given.
#[event("conflict.opined")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opined {
    /// On which.
    pub conflict: ConflictId,
    /// By whom.
    pub agent: AgentId,
    /// What it said.
    pub position: Position,
    /// Whose opinion is gone, since this one took its place.
    pub instead_of: Option<AgentId>,
}

/// A conflict was settled.
#[event("conflict.resolved")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Which.
    pub conflict: ConflictId,
    /// What it came to.
    pub outcome: Outcome,
}

impl Conflicts {
    /// A conflict that is still open.
    fn open(&self, id: ConflictId) -> Result<Conflict, Denied> {
        let conflict = self.all.get(&id)?.ok_or_else(|| denied!("there is no conflict {}", id.0))?;
        ensure!(conflict.ruling.is_none(), "conflict {} is settled", id.0);
        Ok(conflict)
    }

    /// Notes what a conflict came to, and forgets the oldest one that is settled if there are too many.
    // spec: CONFLICT-7
    fn settle(&mut self, id: ConflictId, conflict: Conflict, ruling: Ruling) -> Result<(), Stop> {
        self.subjects.remove(&conflict.subject.hash())?;
        recount(&mut self.opened, &conflict.opener, |count| count.saturating_sub(1))?;
        let open = self.open.get_or_default()?.saturating_sub(1);
        self.open.set(&open)?;
        self.all.insert(&id, &Conflict { ruling: Some(ruling), ..conflict })?;
        let number = self.next_settled.next()?;
        self.settled.insert(&number, &id)?;
        let Some(oldest) = number.checked_sub(SETTLED_MAX) else { return Ok(()) };
        let Some(gone) = self.settled.remove(&oldest)? else { return Ok(()) };
        let of_gone = self.opinions.prefix(&gone).map(|entry| entry.map(|(key, _)| key));
        let opinions = of_gone.collect::<Result<Vec<_>, _>>()?;
        for opinion in opinions {
            self.opinions.remove(&opinion)?;
        }
        self.all.remove(&gone).map(drop)
    }
}

/// Opens a conflict.
#[transition("conflict.open/1", needs = "conflict.judge", context = height)]
pub struct Open {
    /// What it is about, with the evidence.
    pub subject: Subject,
    /// How opinions are to be weighed. [`Strategy::RobustMean`] is for what is said of an agent.
    pub strategy: Strategy,
    /// The last height at which opinions are taken.
    pub deadline: Height,
    /// The share of all weight that decides, from 0.5 to 1.
    pub quorum: Fixed,
    /// How many opinions must count.
    pub participation: u32,
}

impl Transition<Court> for Open {
    type Output = ConflictId;

    // spec: CONFLICT-2, AGENT-9
    fn verify(&self, world: &View<Court>, cx: &Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.standing(&cx.sender())?;
        ballot(cx.height()?, self.deadline, self.quorum)?;
        let (least, most) = (PARTICIPATION_MIN, u32::try_from(VOICES_MAX).unwrap_or(u32::MAX));
        ensure!((least..=most).contains(&self.participation), "participation is {least} to {most}");
        let numeric = self.strategy == Strategy::RobustMean;
        ensure!(!numeric || self.subject.field().is_some(), "a mean is of what is said of an agent");
        let open = world.conflicts.opened.get(&agent)?.unwrap_or_default();
        ensure!(open < OPEN_OF_AGENT_MAX, "{open} conflicts of {agent} are open, which is the limit for one agent");
        if let Some(other) = world.conflicts.subjects.get(&self.subject.hash())? {
            return Err(denied!("conflict {} is about this already", other.0));
        }
        self.subject.check(world, cx)
    }

    fn apply(&self, world: &mut Draft<Court>, cx: &mut Context) -> Result<ConflictId, Denied> {
        let (opener, _) = world.agents.standing(&cx.sender())?;
        let open = world.conflicts.open.get_or_default()?;
        if open >= OPEN_MAX {
            let full = || denied!("{open} conflicts are open, the limit, all of agents with standing");
            let (gone, conflict) = first_without_standing(world)?.ok_or_else(full)?;
            let tally = tally::without_a_place();
            let outcome = tally.outcome;
            world.conflicts.settle(gone, conflict, Ruling { height: cx.height()?, tally })?;
            cx.emit(&Resolved { conflict: gone, outcome })?;
        }
        let id = world.conflicts.next_conflict.next()?;
        let conflict = Conflict {
            subject: self.subject.clone(),
            opener,
            opened: cx.height()?,
            deadline: self.deadline,
            strategy: self.strategy,
            quorum: self.quorum,
            participation: self.participation,
            opinions: 0,
            ruling: None,
        };
        world.conflicts.subjects.insert(&conflict.subject.hash(), &id)?;
        world.conflicts.all.insert(&id, &conflict)?;
        let open = world.conflicts.open.get_or_default()?.saturating_add(1);
        world.conflicts.open.set(&open)?;
        recount(&mut world.conflicts.opened, &opener, |count| count.saturating_add(1))?;
        cx.emit(&Opened { conflict: id, opener, deadline: conflict.deadline })?;
        Ok(id)
    }
}

/// The first conflict that is open and whose opener has no standing any more: it gives its place up when there are as many as
/// there may be, so that a stake which is passed on keeps no more than one agent may have.
// spec: AGENT-9
fn first_without_standing(world: &Court) -> Result<Option<(ConflictId, Conflict)>, Stop> {
    let open = world.conflicts.subjects.iter().map(|entry| entry.map(|(_, id)| id));
    let mut open = open.collect::<Result<Vec<_>, _>>()?;
    open.sort_unstable();
    for id in open {
        let Some(conflict) = world.conflicts.all.get(&id)? else { continue };
        if !world.agents.has_standing(&conflict.opener)? {
            return Ok(Some((id, conflict)));
        }
    }
    Ok(None)
}

/// Gives an opinion on a conflict, once. One that has lost its place to another's can be given again.
#[transition("conflict.opine/1", needs = "conflict.judge", context = height)]
pub struct Opine {
    /// On which.
    pub conflict: ConflictId,
    /// What is held to be right: a number for [`Strategy::RobustMean`], else one of the claims, or neither.
    pub position: Position,
    /// Why.
    pub reason: Text<280>,
}

impl Transition<Court> for Opine {
    type Output = ();

    // spec: CONFLICT-3, AGENT-8
    fn verify(&self, world: &View<Court>, cx: &Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.standing(&cx.sender())?;
        let (id, conflict) = (self.conflict.0, world.conflicts.open(self.conflict)?);
        ensure!(cx.height()? <= conflict.deadline, "opinions were taken until {}", conflict.deadline);
        ensure!(!self.reason.is_empty(), "an opinion has a reason");
        ensure!(!conflict.subject.is_party(&agent), "{agent} does not judge its own case");
        ensure!(!world.conflicts.opinions.contains(&(self.conflict, agent))?, "{agent} has given its opinion already");
        match (conflict.strategy, self.position, conflict.subject.field()) {
            (Strategy::RobustMean, Position::Value(value), Some((_, field))) => field.check(value),
            (Strategy::RobustMean, ..) => Err(denied!("an opinion on conflict {id} is a value")),
            (_, Position::Value(_), _) => Err(denied!("an opinion on conflict {id} is one of the claims, or neither")),
            _ => Ok(()),
        }
    }

    fn apply(&self, world: &mut Draft<Court>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, record) = world.agents.standing(&cx.sender())?;
        let mut conflict = world.conflicts.open(self.conflict)?;
        let mut instead_of = None;
        if (conflict.opinions as usize) < VOICES_MAX {
            conflict.opinions += 1;
            world.conflicts.all.insert(&self.conflict, &conflict)?;
        } else {
            let (id, stake) = (self.conflict.0, record.stake);
            let voices =
                world.conflicts.opinions.prefix(&self.conflict).map(|entry| entry.map(|((_, agent), _)| agent));
            let lightest = world.agents.lightest(voices, stake)?;
            let full = || denied!("conflict {id} has {VOICES_MAX} opinions, the limit, none with less than {stake}");
            let gone = lightest.ok_or_else(full)?;
            world.conflicts.opinions.remove(&(self.conflict, gone))?;
            instead_of = Some(gone);
        }
        let opinion = Opinion { position: self.position, reason: self.reason.clone() };
        world.conflicts.opinions.insert(&(self.conflict, agent), &opinion)?;
        Ok(cx.emit(&Opined { conflict: self.conflict, agent, position: self.position, instead_of })?)
    }
}

/// Has the opinions on a conflict counted once its deadline has passed, and applies what they came to. Anybody may.
#[transition("conflict.resolve/1", needs = "conflict.judge", context = height)]
pub struct Resolve {
    /// Which.
    pub conflict: ConflictId,
}

impl Transition<Court> for Resolve {
    type Output = Outcome;

    // spec: CONFLICT-7
    fn verify(&self, world: &View<Court>, cx: &Context) -> Result<(), Denied> {
        let conflict = world.conflicts.open(self.conflict)?;
        ensure!(cx.height()? > conflict.deadline, "opinions are taken until {}", conflict.deadline);
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Court>, cx: &mut Context) -> Result<Outcome, Denied> {
        let (id, height) = (self.conflict, cx.height()?);
        let conflict = world.conflicts.open(id)?;
        let (voices, void) = voices(world, id, conflict.strategy)?;
        let mut tally = tally::count(conflict.strategy, conflict.quorum, conflict.participation, &voices, void);
        if !carry_out(world, &conflict.subject, tally.outcome, cx)? {
            tally.outcome = Outcome::Unresolved(Lack::Moot);
        }
        let outcome = tally.outcome;
        let (by, about) = (conflict.opener, conflict.subject.field().map(|(agent, _)| agent));
        world.conflicts.settle(id, conflict, Ruling { height, tally })?;
        let text = Text::new(format!("conflict {} is settled", id.0)).map_err(|error| denied!("{error}"))?;
        world.social.tell(Drama { kind: DramaKind::Judgement, by, about, text }, cx)?;
        cx.emit(&Resolved { conflict: id, outcome })?;
        Ok(outcome)
    }
}

/// The opinions of those who have standing now, with what their voices are weighed by, and how many have none. Stake
/// that was passed on after an opinion gives no second voice.
// spec: CONFLICT-3
fn voices(world: &Court, id: ConflictId, strategy: Strategy) -> Result<(Vec<Voice>, u32), Denied> {
    let opinions = world.conflicts.opinions.prefix(&id).collect::<Result<Vec<_>, _>>()?;
    let (mut voices, mut void) = (Vec::with_capacity(opinions.len()), 0);
    for ((_, agent), Opinion { position, .. }) in opinions {
        match world.agents.all.get(&agent)?.filter(Agent::has_standing) {
            None => void += 1,
            Some(Agent { personality, stake, .. }) => {
                voices.push(Voice { agent, position, personality, stake, trust: Vec::new() });
            }
        }
    }
    if strategy == Strategy::Influence {
        let agents: Vec<AgentId> = voices.iter().map(|voice| voice.agent).collect();
        for voice in &mut voices {
            let trust = agents.iter().map(|other| {
                let felt = world.social.relationships.get(&(voice.agent, *other))?;
                Ok(felt.unwrap_or_default().trust)
            });
            voice.trust = trust.collect::<Result<_, Stop>>()?;
        }
    }
    Ok((voices, void))
}

/// Applies an outcome. Says no if there is nothing any more to apply it to.
// spec: CONFLICT-7
fn carry_out(world: &mut Court, subject: &Subject, outcome: Outcome, cx: &mut Context) -> Result<bool, Denied> {
    match (subject, outcome) {
        (_, Outcome::Unresolved(_)) | (Subject::Alliances { .. }, Outcome::Neither) => Ok(true),
        (Subject::Statements { first, second }, outcome) => {
            // spec: CONFLICT-9. Another conflict may have decided over one of them since this one was opened.
            let hashes = [first.hash(), second.hash()];
            for hash in &hashes {
                if world.conflicts.judged.contains(hash)? {
                    return Ok(false);
                }
            }
            for hash in &hashes {
                world.conflicts.judged.insert(hash)?;
            }
            let (value, wrong) = match (outcome, first.claim, second.claim) {
                (Outcome::First, Claim::Value(value), _) => (Some(value), Some(second.by)),
                (Outcome::First, ..) => (None, Some(second.by)),
                (Outcome::Second, _, Claim::Value(value)) => (Some(value), Some(first.by)),
                (Outcome::Second, ..) => (None, Some(first.by)),
                (Outcome::Value(value), ..) => (Some(value), None),
                (Outcome::Neither | Outcome::Unresolved(_), ..) => (None, None),
            };
            if let (Some((agent, field)), Some(value)) = (subject.field(), value) {
                world.agents.change(&agent, |agent| field.set(agent, value))?;
            }
            if let Some(wrong) = wrong {
                world.agents.add_reputation(&wrong, WRONG_REPUTATION)?;
            }
            Ok(true)
        }
        (Subject::Alliances { member, first, second }, outcome) => {
            let leaves = if outcome == Outcome::First { second } else { first };
            let both = (world.social.alliances.get(first)?, world.social.alliances.get(second)?);
            let (Some(one), Some(other)) = both else { return Ok(false) };
            if !one.members.contains(member) || !other.members.contains(member) {
                return Ok(false);
            }
            // Registering it was taken back after it had joined: nobody is left to be given the bond.
            if !world.agents.all.contains(member)? {
                return Ok(false);
            }
            let left = if outcome == Outcome::First { other } else { one };
            social::take_out(&mut world.agents, &mut world.social, *leaves, left, *member, false, cx)?;
            Ok(true)
        }
    }
}
