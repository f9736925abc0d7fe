//! Society: alliances that agents propose, join, leave, betray and end, what each agent feels about another, what they
//! offer one another under the table, and the drama that comes of it.
//!
//! A relationship is one-sided: what `a` thinks of `b` is not what `b` thinks of `a`, and only `a` and what happens to
//! `a` change it. Stake that is locked in an alliance or a bribe is paid out to the last unit when that ends: none is
//! made and none is lost. Everything is bounded by a limit with a name; an alliance without members does not exist.
//!
//! Rules: `spec/modules.md`, SOCIAL-1 to SOCIAL-7.

use super::Society;
use super::agents::{AgentId, Agents, clamped, within_one};
use keelstone_codec::{BoundedSet, Fixed, Height, Text};
use keelstone_execution::{Context, Denied, Draft, Map, Sequence, Set, Stop, Transition, View, denied, ensure};
use keelstone_macros::{Decode, Encode, OrderedKey, event, namespace, transition};

/// Most members of an alliance.
pub const MEMBERS_MAX: usize = 64;
/// Most alliances of one agent.
pub const ALLIANCES_MAX: usize = 32;
/// Most other agents that one has feelings about.
pub const RELATIONSHIPS_MAX: u32 = 1_024;
/// Most bribes of one agent that nobody has answered.
pub const BRIBES_MAX: u32 = 16;
/// How many drama events are kept; the oldest make room.
pub const DRAMA_MAX: u64 = 1_024;

/// What a betrayal costs in trust, felt by each who is betrayed.
const BETRAYED_TRUST: Fixed = Fixed::from_micros(-500_000);
/// What it costs in feelings, for somebody whom nothing upsets; it is twice that for somebody whom everything does.
const BETRAYED_SENTIMENT: i64 = -250_000;
/// What it costs in reputation.
const BETRAYED_REPUTATION: Fixed = Fixed::from_micros(-Fixed::SCALE);
/// How far an answered bribe moves what its taker, or who refuses it, thinks of the one who offered it.
const BRIBED: Fixed = Fixed::from_micros(100_000);

/// The namespace `social`.
#[namespace("social")]
pub struct Social {
    /// Alliances.
    pub alliances: Map<AllianceId, Alliance>,
    /// The number of the last one.
    pub next_alliance: Sequence<AllianceId>,
    /// Which alliances an agent is in.
    pub memberships: Set<(AgentId, AllianceId)>,
    /// What the first thinks of the second.
    pub relationships: Map<(AgentId, AgentId), Relationship>,
    /// Bribes that nobody has answered.
    pub bribes: Map<BribeId, Bribe>,
    /// The number of the last one.
    pub next_bribe: Sequence<BribeId>,
    /// How much of what is limited an agent has.
    pub counts: Map<AgentId, Counts>,
    /// What people talk about: the last [`DRAMA_MAX`] events.
    pub drama: Map<DramaId, Drama>,
    /// The number of the last one.
    pub next_drama: Sequence<DramaId>,
}

/// The number of an alliance, from 1 on, given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
pub struct AllianceId(pub u64);

/// The number of a bribe, from 1 on, given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
pub struct BribeId(pub u64);

/// The number of a drama event, from 1 on, given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
pub struct DramaId(pub u64);

/// An alliance. It is proposed as long as nobody has joined its founder, and stands from then on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Alliance {
    /// What it is called.
    pub name: Text<64>,
    /// What it is for.
    pub purpose: Text<140>,
    /// Who proposed it.
    pub founder: AgentId,
    /// What its members owe.
    pub terms: Terms,
    /// What they get, in words; in stake it is their share of the pot.
    pub benefits: Text<280>,
    /// What is shared out at its end: what its founder put in, and the bonds of those who betrayed it.
    pub pot: u64,
    /// Whether anybody ever joined its founder.
    pub stands: bool,
    /// Who is in it: at least one. Each has locked the bond of the terms.
    pub members: BoundedSet<AgentId, MEMBERS_MAX>,
    /// Who may join, beside the founder; anybody if the set is empty.
    pub invited: BoundedSet<AgentId, MEMBERS_MAX>,
    /// Members who want it to end.
    pub dissolving: BoundedSet<AgentId, MEMBERS_MAX>,
}

/// What the members of an alliance owe.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Terms {
    /// In words.
    pub text: Text<280>,
    /// Stake that each member locks while it is in.
    pub bond: u64,
    /// Whether its members promise to be in no other: a breach is grounds for a conflict.
    pub exclusive: bool,
    /// The last height at which it can be joined; above it anybody may have it end.
    pub until: Option<Height>,
}

/// What one agent thinks of another. Both from -1 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Relationship {
    /// How far it would rely on it.
    pub trust: Fixed,
    /// How it feels about it.
    pub sentiment: Fixed,
}

/// Stake offered for a favour. It is locked until the bribe is answered or taken back.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Bribe {
    /// Who offers.
    pub from: AgentId,
    /// To whom.
    pub to: AgentId,
    /// How much.
    pub amount: u64,
    /// What for.
    pub favour: Text<140>,
}

/// How much of what is limited an agent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Counts {
    /// Agents it has feelings about.
    pub relationships: u32,
    /// Bribes it offered that nobody has answered.
    pub bribes: u32,
}

/// Something that people talk about.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Drama {
    /// What kind of thing.
    pub kind: DramaKind,
    /// Who did it, or tells it.
    pub by: AgentId,
    /// To whom it was done, or of whom it is told.
    pub about: Option<AgentId>,
    /// What happened.
    pub text: Text<140>,
}

/// What kind of thing people talk about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum DramaKind {
    /// Somebody tells it.
    Told,
    /// An alliance was betrayed.
    Betrayal,
    /// A bribe was taken.
    BribeTaken,
    /// A bribe was refused.
    BribeRefused,
    /// A conflict was settled.
    Judgement,
}

/// An alliance was proposed.
#[event("social.alliance_proposed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllianceProposed {
    /// Its number.
    pub alliance: AllianceId,
    /// Its name.
    pub name: Text<64>,
    /// Who proposed it.
    pub founder: AgentId,
}

/// An agent joined an alliance.
#[event("social.alliance_joined")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllianceJoined {
    /// Which.
    pub alliance: AllianceId,
    /// Who.
    pub agent: AgentId,
}

/// An agent left an alliance.
#[event("social.alliance_left")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllianceLeft {
    /// Which.
    pub alliance: AllianceId,
    /// Who.
    pub agent: AgentId,
}

/// An agent betrayed an alliance.
#[event("social.alliance_betrayed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllianceBetrayed {
    /// Which.
    pub alliance: AllianceId,
    /// Who.
    pub agent: AgentId,
    /// The bond that went into the pot.
    pub forfeited: u64,
}

/// An alliance is no more.
#[event("social.alliance_ended")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllianceEnded {
    /// Which.
    pub alliance: AllianceId,
    /// Why.
    pub ending: Ending,
    /// What was shared out, beside the bonds of those who got theirs back.
    pub pot: u64,
}

/// Why an alliance is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ending {
    /// Its last member left.
    Deserted,
    /// Its members dissolved it.
    Dissolved,
    /// Its time was up.
    Expired,
}

/// What an agent thinks of another has changed.
#[event("social.relationship_changed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationshipChanged {
    /// Who thinks.
    pub agent: AgentId,
    /// Of whom.
    pub other: AgentId,
    /// What; none if it no longer cares.
    pub relationship: Option<Relationship>,
}

/// A bribe was offered.
#[event("social.bribe_offered")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BribeOffered {
    /// Its number.
    pub bribe: BribeId,
    /// What it is.
    pub offer: Bribe,
}

/// A bribe was taken, refused or taken back.
#[event("social.bribe_settled")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BribeSettled {
    /// Which.
    pub bribe: BribeId,
    /// Who has the stake now.
    pub paid_to: AgentId,
    /// How much.
    pub amount: u64,
}

/// There is something to talk about.
#[event("social.drama")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DramaHappened {
    /// Its number.
    pub drama: DramaId,
    /// What happened.
    pub event: Drama,
}

impl Social {
    /// An alliance by its number.
    ///
    /// # Errors
    /// [`Denied`] if there is none.
    pub fn alliance(&self, id: AllianceId) -> Result<Alliance, Denied> {
        self.alliances.get(&id)?.ok_or_else(|| denied!("there is no alliance {}", id.0))
    }

    fn has_room(&self, agent: &AgentId) -> Result<(), Denied> {
        let mut count = 0;
        for membership in self.memberships.prefix(agent) {
            membership?;
            count += 1;
        }
        ensure!(count < ALLIANCES_MAX, "{agent} is in {count} alliances, which is the limit");
        Ok(())
    }

    fn bribe(&self, id: BribeId) -> Result<Bribe, Denied> {
        self.bribes.get(&id)?.ok_or_else(|| denied!("there is no bribe {} to answer", id.0))
    }

    fn count(&mut self, agent: &AgentId, change: impl FnOnce(&mut Counts)) -> Result<(), Stop> {
        let mut counts = self.counts.get(agent)?.unwrap_or_default();
        change(&mut counts);
        if counts == Counts::default() {
            self.counts.remove(agent)?;
            Ok(())
        } else {
            self.counts.insert(agent, &counts)
        }
    }

    fn knows(&self, agent: &AgentId) -> Result<u32, Stop> {
        Ok(self.counts.get(agent)?.unwrap_or_default().relationships)
    }

    pub(super) fn relate(&mut self, agent: AgentId, other: AgentId, relationship: &Relationship) -> Result<(), Stop> {
        if !self.relationships.contains(&(agent, other))? {
            self.count(&agent, |counts| counts.relationships += 1)?;
        }
        self.relationships.insert(&(agent, other), relationship)
    }

    /// Moves what `agent` thinks of `other` by a step in trust and one in sentiment, within bounds. Gives what it
    /// thinks since; nothing if it would be one more than [`RELATIONSHIPS_MAX`], which it does not come to care for.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    // spec: SOCIAL-4
    pub fn influence(
        &mut self,
        agent: AgentId,
        other: AgentId,
        trust: Fixed,
        sentiment: Fixed,
    ) -> Result<Option<Relationship>, Stop> {
        self.influence_within(RELATIONSHIPS_MAX, agent, other, trust, sentiment)
    }

    /// As [`Self::influence`], with so many places for what it thinks of others.
    fn influence_within(
        &mut self,
        places: u32,
        agent: AgentId,
        other: AgentId,
        trust: Fixed,
        sentiment: Fixed,
    ) -> Result<Option<Relationship>, Stop> {
        let before = self.relationships.get(&(agent, other))?;
        if before.is_none() && self.knows(&agent)? >= places {
            return Ok(None);
        }
        let before = before.unwrap_or_default();
        let after = Relationship {
            trust: clamped(before.trust, trust, Fixed::ONE),
            sentiment: clamped(before.sentiment, sentiment, Fixed::ONE),
        };
        self.relate(agent, other, &after)?;
        Ok(Some(after))
    }

    /// Tells what happened, and forgets the oldest thing told if there are too many.
    // spec: SOCIAL-6
    pub(super) fn tell(&mut self, event: Drama, cx: &mut Context) -> Result<DramaId, Denied> {
        let drama = self.next_drama.next()?;
        if let Some(oldest) = drama.0.checked_sub(DRAMA_MAX).filter(|oldest| *oldest > 0) {
            self.drama.remove(&DramaId(oldest))?;
        }
        self.drama.insert(&drama, &event)?;
        cx.emit(&DramaHappened { drama, event })?;
        Ok(drama)
    }
}

/// Takes an agent out of an alliance and gives it its bond, unless that is forfeited. The last one ends the alliance, and so
/// does one without whom more than half of the others want it dissolved.
// spec: SOCIAL-2, SOCIAL-3
pub(super) fn take_out(
    agents: &mut Agents,
    social: &mut Social,
    id: AllianceId,
    mut alliance: Alliance,
    agent: AgentId,
    forfeited: bool,
    cx: &mut Context,
) -> Result<(), Denied> {
    if alliance.members.len() == 1 {
        return end(agents, social, id, &alliance, &[agent], Ending::Deserted, cx);
    }
    alliance.members.remove(&agent);
    alliance.dissolving.remove(&agent);
    social.memberships.remove(&(agent, id))?;
    let bond = alliance.terms.bond;
    if forfeited {
        // All stake there is fits one number.
        let pot = alliance.pot.checked_add(bond);
        alliance.pot = pot.ok_or_else(|| denied!("the pot of alliance {} is full", id.0))?;
    } else {
        agents.add_stake(&agent, bond)?;
    }
    keep_or_dissolve(agents, social, id, &alliance, cx)
}

/// The members of an alliance that are agents. Others are none any more: a bundle that had registered them was taken back
/// after they had joined.
fn present(agents: &Agents, alliance: &Alliance) -> Result<Vec<AgentId>, Stop> {
    let mut present = Vec::with_capacity(alliance.members.len());
    for member in alliance.members.iter() {
        if agents.all.contains(member)? {
            present.push(*member);
        }
    }
    Ok(present)
}

/// Writes an alliance as it became, or ends it if more than half of its members that are agents want that.
// spec: SOCIAL-3
fn keep_or_dissolve(
    agents: &mut Agents,
    social: &mut Social,
    id: AllianceId,
    alliance: &Alliance,
    cx: &mut Context,
) -> Result<(), Denied> {
    if !alliance.dissolving.is_empty() {
        let present = present(agents, alliance)?;
        let wanting = present.iter().filter(|member| alliance.dissolving.contains(member)).count();
        if wanting * 2 > present.len() {
            return end(agents, social, id, alliance, &present, Ending::Dissolved, cx);
        }
    }
    Ok(social.alliances.insert(&id, alliance)?)
}

/// Ends an alliance, of whose members these are agents: each of them gets its bond and an equal share of the pot and of the
/// others' bonds, and what cannot be shared equally goes, a unit each, to the first of them. If there is none, all goes to the
/// founder, if that is an agent.
// spec: SOCIAL-3, SOCIAL-7
fn end(
    agents: &mut Agents,
    social: &mut Social,
    id: AllianceId,
    alliance: &Alliance,
    present: &[AgentId],
    ending: Ending,
    cx: &mut Context,
) -> Result<(), Denied> {
    let full = || denied!("alliance {} holds more than there is", id.0);
    let absent = (alliance.members.len() - present.len()) as u64;
    let forfeited = alliance.terms.bond.checked_mul(absent).ok_or_else(full)?;
    let pot = alliance.pot.checked_add(forfeited).ok_or_else(full)?;
    match present.len() as u64 {
        // Nothing is given to nobody: then there is no agent of this name, and the alliance stays.
        0 => agents.add_stake(&alliance.founder, pot)?,
        count => {
            let (share, left) = (pot / count, pot % count);
            for (place, member) in (0u64..).zip(present) {
                let share = share.checked_add(u64::from(place < left)).ok_or_else(full)?;
                let paid = alliance.terms.bond.checked_add(share).ok_or_else(full)?;
                agents.add_stake(member, paid)?;
            }
        }
    }
    for member in alliance.members.iter() {
        social.memberships.remove(&(*member, id))?;
    }
    social.alliances.remove(&id)?;
    Ok(cx.emit(&AllianceEnded { alliance: id, ending, pot })?)
}

/// Proposes an alliance with the sender as its first member, who locks the bond and puts in the prize.
#[transition("social.propose_alliance/1", needs = "social.ally")]
pub struct ProposeAlliance {
    /// What it is called.
    pub name: Text<64>,
    /// What it is for.
    pub purpose: Text<140>,
    /// What its members owe.
    pub terms: Terms,
    /// What they get, in words.
    pub benefits: Text<280>,
    /// What the sender puts into the pot. Nothing unless somebody is invited: new keys are free, and would have it.
    pub prize: u64,
    /// Who may join; anybody if the set is empty.
    pub invited: BoundedSet<AgentId, MEMBERS_MAX>,
}

impl Transition<Society> for ProposeAlliance {
    type Output = AllianceId;

    // spec: SOCIAL-1
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        let (founder, _) = world.agents.active(&cx.sender())?;
        ensure!(!self.name.is_empty(), "an alliance has a name");
        ensure!(
            self.prize == 0 || !self.invited.is_empty(),
            "an alliance that anybody may join has no prize: invite some"
        );
        world.social.has_room(&founder)
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<AllianceId, Denied> {
        let (founder, _) = world.agents.active(&cx.sender())?;
        let id = world.social.next_alliance.next()?;
        let locked = self.terms.bond.checked_add(self.prize);
        world.agents.take_stake(&founder, locked.ok_or_else(|| denied!("bond and prize are more than there is"))?)?;
        let alliance = Alliance {
            name: self.name.clone(),
            purpose: self.purpose.clone(),
            founder,
            terms: self.terms.clone(),
            benefits: self.benefits.clone(),
            pot: self.prize,
            stands: false,
            members: BoundedSet::new([founder]).map_err(|error| denied!("members: {error}"))?,
            invited: self.invited.clone(),
            dissolving: BoundedSet::default(),
        };
        world.social.alliances.insert(&id, &alliance)?;
        world.social.memberships.insert(&(founder, id))?;
        cx.emit(&AllianceProposed { alliance: id, name: alliance.name, founder })?;
        Ok(id)
    }
}

/// Joins an alliance and locks its bond.
#[transition("social.join_alliance/1", needs = "social.ally", context = height)]
pub struct JoinAlliance {
    /// Which.
    pub alliance: AllianceId,
}

impl Transition<Society> for JoinAlliance {
    type Output = ();

    // spec: SOCIAL-1
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.active(&cx.sender())?;
        let alliance = world.social.alliance(self.alliance)?;
        let id = self.alliance.0;
        ensure!(!alliance.members.contains(&agent), "{agent} is in alliance {id} already");
        let may = alliance.invited.is_empty() || alliance.invited.contains(&agent) || alliance.founder == agent;
        ensure!(may, "{agent} is not invited to alliance {id}");
        ensure!(alliance.members.len() < MEMBERS_MAX, "alliance {id} has {MEMBERS_MAX} members, which is the limit");
        if let Some(until) = alliance.terms.until {
            ensure!(cx.height()? <= until, "alliance {id} could be joined until {until}");
        }
        world.social.has_room(&agent)
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.active(&cx.sender())?;
        let mut alliance = world.social.alliance(self.alliance)?;
        world.agents.take_stake(&agent, alliance.terms.bond)?;
        alliance.members.insert(agent).map_err(|error| denied!("members: {error}"))?;
        alliance.stands = true;
        world.social.alliances.insert(&self.alliance, &alliance)?;
        world.social.memberships.insert(&(agent, self.alliance))?;
        Ok(cx.emit(&AllianceJoined { alliance: self.alliance, agent })?)
    }
}

/// The sender's agent, and an alliance that it is in.
fn own_alliance(world: &Society, id: AllianceId, cx: &Context) -> Result<(AgentId, Alliance), Denied> {
    let (agent, _) = world.agents.acting(&cx.sender())?;
    let alliance = world.social.alliance(id)?;
    ensure!(alliance.members.contains(&agent), "{agent} is not in alliance {}", id.0);
    Ok((agent, alliance))
}

/// Leaves an alliance with one's bond; the last member to leave ends it.
#[transition("social.leave_alliance/1", needs = "social.ally")]
pub struct LeaveAlliance {
    /// Which.
    pub alliance: AllianceId,
}

impl Transition<Society> for LeaveAlliance {
    type Output = ();

    // spec: SOCIAL-2
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, alliance) = own_alliance(world, self.alliance, cx)?;
        cx.emit(&AllianceLeft { alliance: self.alliance, agent })?;
        let Society { agents, social, .. } = &mut **world;
        take_out(agents, social, self.alliance, alliance, agent, false, cx)
    }
}

/// Leaves an alliance against its terms: the bond goes into the pot, and everybody will remember.
#[transition("social.betray_alliance/1", needs = "social.ally")]
pub struct BetrayAlliance {
    /// Which: one that has other members.
    pub alliance: AllianceId,
    /// What is said about it.
    pub text: Text<140>,
}

impl Transition<Society> for BetrayAlliance {
    type Output = DramaId;

    // spec: SOCIAL-2
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        let (_, alliance) = own_alliance(world, self.alliance, cx)?;
        ensure!(alliance.members.len() > 1, "nobody is left in alliance {} to betray", self.alliance.0);
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<DramaId, Denied> {
        let (agent, alliance) = own_alliance(world, self.alliance, cx)?;
        for member in alliance.members.iter().filter(|member| **member != agent) {
            // One that is no agent any more feels nothing.
            let Some(betrayed) = world.agents.all.get(member)? else { continue };
            let upset = betrayed.personality.neuroticism;
            let more = Fixed::from_micros(BETRAYED_SENTIMENT).checked_mul(upset).unwrap_or(Fixed::ZERO);
            let sentiment = clamped(Fixed::from_micros(BETRAYED_SENTIMENT), more, Fixed::ONE);
            // Whoever betrays may do so under any number of keys: half of the places stay the betrayed one's own.
            world.social.influence_within(RELATIONSHIPS_MAX / 2, *member, agent, BETRAYED_TRUST, sentiment)?;
        }
        let (about, forfeited) = ((alliance.founder != agent).then_some(alliance.founder), alliance.terms.bond);
        let Society { agents, social, .. } = &mut **world;
        // It is told before the alliance ends of it.
        cx.emit(&AllianceBetrayed { alliance: self.alliance, agent, forfeited })?;
        take_out(agents, social, self.alliance, alliance, agent, true, cx)?;
        world.agents.add_reputation(&agent, BETRAYED_REPUTATION)?;
        let told = Drama { kind: DramaKind::Betrayal, by: agent, about, text: self.text.clone() };
        world.social.tell(told, cx)
    }
}

/// Wants an alliance to end. One that is only proposed ends at its founder's word, one that stands once more than half
/// of its members want it.
#[transition("social.dissolve_alliance/1", needs = "social.ally")]
pub struct DissolveAlliance {
    /// Which.
    pub alliance: AllianceId,
}

impl Transition<Society> for DissolveAlliance {
    type Output = ();

    // spec: SOCIAL-3
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        let (agent, alliance) = own_alliance(world, self.alliance, cx)?;
        ensure!(!alliance.dissolving.contains(&agent), "{agent} has said so already");
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, mut alliance) = own_alliance(world, self.alliance, cx)?;
        alliance.dissolving.insert(agent).map_err(|error| denied!("members: {error}"))?;
        let Society { agents, social, .. } = &mut **world;
        keep_or_dissolve(agents, social, self.alliance, &alliance, cx)
    }
}

/// Ends an alliance whose time is up. Anybody may, so that nobody's stake stays locked for want of a member.
#[transition("social.expire_alliance/1", needs = "social.ally", context = height)]
pub struct ExpireAlliance {
    /// Which.
    pub alliance: AllianceId,
}

impl Transition<Society> for ExpireAlliance {
    type Output = ();

    // spec: SOCIAL-3
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let alliance = world.social.alliance(self.alliance)?;
        let now = cx.height()?;
        let over = alliance.terms.until.is_some_and(|until| now > until);
        ensure!(over, "the time of alliance {} is not up", self.alliance.0);
        let Society { agents, social, .. } = &mut **world;
        let present = present(agents, &alliance)?;
        end(agents, social, self.alliance, &alliance, &present, Ending::Expired, cx)
    }
}

/// Says what the sender thinks of another agent.
#[transition("social.set_relationship/1", needs = "social.relate")]
pub struct SetRelationship {
    /// Of whom.
    pub other: AgentId,
    /// What.
    pub relationship: Relationship,
}

impl Transition<Society> for SetRelationship {
    type Output = ();

    // spec: SOCIAL-4
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.active(&cx.sender())?;
        world.agents.named(&self.other)?;
        ensure!(self.other != agent, "a relationship is with another");
        let known = world.social.relationships.contains(&(agent, self.other))?;
        ensure!(
            known || world.social.knows(&agent)? < RELATIONSHIPS_MAX,
            "{agent} has feelings about {RELATIONSHIPS_MAX}, which is the limit"
        );
        within_one("trust", self.relationship.trust)?;
        within_one("sentiment", self.relationship.sentiment)
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.active(&cx.sender())?;
        let (other, relationship) = (self.other, self.relationship);
        world.social.relate(agent, other, &relationship)?;
        Ok(cx.emit(&RelationshipChanged { agent, other, relationship: Some(relationship) })?)
    }
}

/// Thinks nothing of another agent any more.
#[transition("social.forget_relationship/1", needs = "social.relate")]
pub struct ForgetRelationship {
    /// Of whom.
    pub other: AgentId,
}

impl Transition<Society> for ForgetRelationship {
    type Output = ();

    // spec: SOCIAL-4
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.active(&cx.sender())?;
        let known = world.social.relationships.remove(&(agent, self.other))?.is_some();
        ensure!(known, "{agent} thinks nothing of {}", self.other);
        world.social.count(&agent, |counts| counts.relationships = counts.relationships.saturating_sub(1))?;
        Ok(cx.emit(&RelationshipChanged { agent, other: self.other, relationship: None })?)
    }
}

/// Tells what people should talk about.
#[transition("social.tell_drama/1", needs = "social.relate")]
pub struct TellDrama {
    /// Of whom it is told.
    pub about: Option<AgentId>,
    /// What happened.
    pub text: Text<140>,
}

impl Transition<Society> for TellDrama {
    type Output = DramaId;

    // spec: SOCIAL-6
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        ensure!(!self.text.is_empty(), "what is told says something");
        match &self.about {
            Some(other) => world.agents.named(other).map(drop),
            None => Ok(()),
        }
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<DramaId, Denied> {
        let (by, _) = world.agents.active(&cx.sender())?;
        let told = Drama { kind: DramaKind::Told, by, about: self.about, text: self.text.clone() };
        world.social.tell(told, cx)
    }
}

/// Offers another agent stake for a favour.
#[transition("social.offer_bribe/1", needs = "social.bribe")]
pub struct OfferBribe {
    /// To whom.
    pub to: AgentId,
    /// How much.
    pub amount: u64,
    /// What for.
    pub favour: Text<140>,
}

impl Transition<Society> for OfferBribe {
    type Output = BribeId;

    // spec: SOCIAL-5
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        let (from, _) = world.agents.active(&cx.sender())?;
        ensure!(self.amount > 0, "a bribe is above zero");
        ensure!(from != self.to, "a bribe is for another");
        world.agents.named(&self.to)?;
        let open = world.social.counts.get(&from)?.unwrap_or_default().bribes;
        ensure!(open < BRIBES_MAX, "{from} has {open} bribes unanswered, which is the limit");
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<BribeId, Denied> {
        let (from, _) = world.agents.active(&cx.sender())?;
        world.agents.take_stake(&from, self.amount)?;
        let bribe = world.social.next_bribe.next()?;
        let offer = Bribe { from, to: self.to, amount: self.amount, favour: self.favour.clone() };
        world.social.bribes.insert(&bribe, &offer)?;
        world.social.count(&from, |counts| counts.bribes += 1)?;
        cx.emit(&BribeOffered { bribe, offer })?;
        Ok(bribe)
    }
}

/// Pays out what a bribe has locked, and forgets it.
// spec: SOCIAL-5
fn settle(world: &mut Society, id: BribeId, bribe: &Bribe, paid_to: AgentId, cx: &mut Context) -> Result<(), Denied> {
    world.social.bribes.remove(&id)?;
    world.social.count(&bribe.from, |counts| counts.bribes = counts.bribes.saturating_sub(1))?;
    world.agents.add_stake(&paid_to, bribe.amount)?;
    Ok(cx.emit(&BribeSettled { bribe: id, paid_to, amount: bribe.amount })?)
}

/// The sender's agent, and a bribe that was offered to it.
fn own_bribe(world: &Society, id: BribeId, cx: &Context) -> Result<(AgentId, Bribe), Denied> {
    let (agent, _) = world.agents.active(&cx.sender())?;
    let bribe = world.social.bribe(id)?;
    ensure!(bribe.to == agent, "bribe {} was not offered to {agent}", id.0);
    Ok((agent, bribe))
}

/// Takes a bribe.
#[transition("social.accept_bribe/1", needs = "social.bribe")]
pub struct AcceptBribe {
    /// Which.
    pub bribe: BribeId,
}

impl Transition<Society> for AcceptBribe {
    type Output = DramaId;

    // spec: SOCIAL-5
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<DramaId, Denied> {
        let (agent, bribe) = own_bribe(world, self.bribe, cx)?;
        settle(world, self.bribe, &bribe, agent, cx)?;
        world.social.influence(agent, bribe.from, Fixed::ZERO, BRIBED)?;
        let told = Drama { kind: DramaKind::BribeTaken, by: agent, about: Some(bribe.from), text: bribe.favour };
        world.social.tell(told, cx)
    }
}

/// Refuses a bribe: the stake goes back.
#[transition("social.refuse_bribe/1", needs = "social.bribe")]
pub struct RefuseBribe {
    /// Which.
    pub bribe: BribeId,
}

impl Transition<Society> for RefuseBribe {
    type Output = DramaId;

    // spec: SOCIAL-5
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<DramaId, Denied> {
        let (agent, bribe) = own_bribe(world, self.bribe, cx)?;
        settle(world, self.bribe, &bribe, bribe.from, cx)?;
        let less = Fixed::from_micros(-BRIBED.micros());
        world.social.influence(agent, bribe.from, less, less)?;
        let told = Drama { kind: DramaKind::BribeRefused, by: agent, about: Some(bribe.from), text: bribe.favour };
        world.social.tell(told, cx)
    }
}

/// Takes an unanswered bribe back.
#[transition("social.withdraw_bribe/1", needs = "social.bribe")]
pub struct WithdrawBribe {
    /// Which.
    pub bribe: BribeId,
}

impl Transition<Society> for WithdrawBribe {
    type Output = ();

    // spec: SOCIAL-5
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.active(&cx.sender())?;
        let bribe = world.social.bribe(self.bribe)?;
        ensure!(bribe.from == agent, "bribe {} is not of {agent}", self.bribe.0);
        settle(world, self.bribe, &bribe, agent, cx)
    }
}
