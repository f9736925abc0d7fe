//! Society: alliances that agents form, join and leave, and what each agent feels about another.
//!
//! A relationship is one-sided: what `a` thinks of `b` is not what `b` thinks of `a`, and only `a` and what happens to
//! `a` change it. Collections are bounded; an alliance without members does not exist.
//!
//! Rules: `spec/ledger.md`, MODULE-3.

use super::Society;
use super::agents::clamped;
use keelstone_codec::{BoundedSet, Fixed, Text};
use keelstone_execution::{
    Context, Denied, Draft, Map, PublicKey, Sequence, Set, Stop, Transition, View, denied, ensure,
};
use keelstone_macros::{Decode, Encode, OrderedKey, event, namespace, transition};

/// Most members of an alliance.
pub const MEMBERS_MAX: usize = 64;
/// Most alliances of one agent.
pub const ALLIANCES_MAX: usize = 32;

/// The namespace `social`.
#[namespace("social")]
pub struct Social {
    /// Alliances.
    pub alliances: Map<AllianceId, Alliance>,
    /// The number of the last one.
    pub next_alliance: Sequence<AllianceId>,
    /// Which alliances an agent is in.
    pub memberships: Set<(PublicKey, AllianceId)>,
    /// What the first thinks of the second.
    pub relationships: Map<(PublicKey, PublicKey), Relationship>,
}

/// The number of an alliance, from 1 on, given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
pub struct AllianceId(pub u64);

impl From<u64> for AllianceId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// An alliance.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Alliance {
    /// What it is called.
    pub name: Text<64>,
    /// What it is for.
    pub purpose: Text<140>,
    /// Who formed it.
    pub founder: PublicKey,
    /// Who is in it: at least one.
    pub members: BoundedSet<PublicKey, MEMBERS_MAX>,
    /// Who may join, beside the members; anybody if the set is empty.
    pub invited: BoundedSet<PublicKey, MEMBERS_MAX>,
}

/// What one agent thinks of another. Both from -1 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Relationship {
    /// How far it would rely on it.
    pub trust: Fixed,
    /// How it feels about it.
    pub sentiment: Fixed,
}

/// An alliance was formed.
#[event("social.alliance_formed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllianceFormed {
    /// Its number.
    pub alliance: AllianceId,
    /// Its name.
    pub name: Text<64>,
    /// Who formed it.
    pub founder: PublicKey,
}

/// An agent joined an alliance.
#[event("social.alliance_joined")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllianceJoined {
    /// Which.
    pub alliance: AllianceId,
    /// Who.
    pub agent: PublicKey,
}

/// An agent left an alliance.
#[event("social.alliance_left")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllianceLeft {
    /// Which.
    pub alliance: AllianceId,
    /// Who.
    pub agent: PublicKey,
    /// Whether it was the last member, so that the alliance is gone.
    pub dissolved: bool,
}

/// What an agent thinks of another has changed.
#[event("social.relationship_changed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationshipChanged {
    /// Who thinks.
    pub agent: PublicKey,
    /// Of whom.
    pub other: PublicKey,
    /// What.
    pub relationship: Relationship,
}

impl Social {
    fn alliance(&self, id: AllianceId) -> Result<Alliance, Denied> {
        self.alliances.get(&id)?.ok_or_else(|| denied!("there is no alliance {}", id.0))
    }

    fn has_room(&self, agent: &PublicKey) -> Result<(), Denied> {
        let mut count = 0;
        for membership in self.memberships.prefix(agent) {
            membership?;
            count += 1;
        }
        ensure!(count < ALLIANCES_MAX, "{agent} is in {count} alliances, which is the limit");
        Ok(())
    }

    /// Moves what `agent` thinks of `other` by a step in trust and one in sentiment, within bounds.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn influence(
        &mut self,
        agent: PublicKey,
        other: PublicKey,
        trust: Fixed,
        sentiment: Fixed,
    ) -> Result<Relationship, Stop> {
        let before = self.relationships.get(&(agent, other))?.unwrap_or_default();
        let after = Relationship {
            trust: clamped(before.trust, trust, Fixed::ONE),
            sentiment: clamped(before.sentiment, sentiment, Fixed::ONE),
        };
        self.relationships.insert(&(agent, other), &after)?;
        Ok(after)
    }
}

/// Forms an alliance with the sender as its first member.
#[transition("social.form_alliance/1", needs = "social.ally")]
pub struct FormAlliance {
    /// What it is called.
    pub name: Text<64>,
    /// What it is for.
    pub purpose: Text<140>,
    /// Who may join; anybody if the set is empty.
    pub invited: BoundedSet<PublicKey, MEMBERS_MAX>,
}

impl Transition<Society> for FormAlliance {
    type Output = AllianceId;

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        ensure!(!self.name.is_empty(), "an alliance has a name");
        world.social.has_room(&cx.sender())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<AllianceId, Denied> {
        let id = world.social.next_alliance.next()?;
        let founder = cx.sender();
        let members = BoundedSet::new([founder]).expect("one member is within the bound");
        let (name, purpose, invited) = (self.name.clone(), self.purpose.clone(), self.invited.clone());
        let alliance = Alliance { name, purpose, founder, members, invited };
        world.social.alliances.insert(&id, &alliance)?;
        world.social.memberships.insert(&(founder, id))?;
        cx.emit(&AllianceFormed { alliance: id, name: alliance.name, founder })?;
        Ok(id)
    }
}

/// Joins an alliance.
#[transition("social.join_alliance/1", needs = "social.ally")]
pub struct JoinAlliance {
    /// Which.
    pub alliance: AllianceId,
}

impl Transition<Society> for JoinAlliance {
    type Output = ();

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        let alliance = world.social.alliance(self.alliance)?;
        let (id, agent) = (self.alliance.0, cx.sender());
        ensure!(!alliance.members.contains(&agent), "{agent} is in alliance {id} already");
        let may = alliance.invited.is_empty() || alliance.invited.contains(&agent) || alliance.founder == agent;
        ensure!(may, "{agent} is not invited to alliance {id}");
        ensure!(alliance.members.len() < MEMBERS_MAX, "alliance {id} has {MEMBERS_MAX} members, which is the limit");
        world.social.has_room(&agent)
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let agent = cx.sender();
        let mut alliance = world.social.alliance(self.alliance)?;
        alliance.members.insert(agent).map_err(|error| denied!("members: {error}"))?;
        world.social.alliances.insert(&self.alliance, &alliance)?;
        world.social.memberships.insert(&(agent, self.alliance))?;
        Ok(cx.emit(&AllianceJoined { alliance: self.alliance, agent })?)
    }
}

/// Leaves an alliance; the last member to leave dissolves it.
#[transition("social.leave_alliance/1", needs = "social.ally")]
pub struct LeaveAlliance {
    /// Which.
    pub alliance: AllianceId,
}

impl Transition<Society> for LeaveAlliance {
    type Output = ();

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let agent = cx.sender();
        let mut alliance = world.social.alliance(self.alliance)?;
        ensure!(alliance.members.remove(&agent), "{agent} is not in alliance {}", self.alliance.0);
        let dissolved = alliance.members.is_empty();
        if dissolved {
            world.social.alliances.remove(&self.alliance)?;
        } else {
            world.social.alliances.insert(&self.alliance, &alliance)?;
        }
        world.social.memberships.remove(&(agent, self.alliance))?;
        Ok(cx.emit(&AllianceLeft { alliance: self.alliance, agent, dissolved })?)
    }
}

/// Says what the sender thinks of another agent.
#[transition("social.set_relationship/1", needs = "social.relate")]
pub struct SetRelationship {
    /// Of whom.
    pub other: PublicKey,
    /// What.
    pub relationship: Relationship,
}

impl Transition<Society> for SetRelationship {
    type Output = ();

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        ensure!(world.agents.by_key.contains(&self.other)?, "{} is no agent", self.other);
        ensure!(self.other != cx.sender(), "a relationship is with another");
        let least = Fixed::from_micros(-Fixed::SCALE);
        for (name, value) in [("trust", self.relationship.trust), ("sentiment", self.relationship.sentiment)] {
            ensure!((least..=Fixed::ONE).contains(&value), "{name} is -1 to 1, not {value}");
        }
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, other, relationship) = (cx.sender(), self.other, self.relationship);
        world.social.relationships.insert(&(agent, other), &relationship)?;
        Ok(cx.emit(&RelationshipChanged { agent, other, relationship })?)
    }
}
