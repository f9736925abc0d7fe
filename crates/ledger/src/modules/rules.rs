//! Rules that agents give themselves: proposed, voted on until a deadline, then adopted or dropped.
//!
//! A voice is an agent's with standing, one each, and standing is asked for twice: when the vote is cast and when votes
//! are counted, so that stake which is passed round gives no second voice. Where there are as many votes as a rule takes, a
//! vote gives its place up to one that more stake stands behind. A rule is words: nothing in the engine depends on one.
//!
//! Rules: `spec/modules.md`, RULE-1 to RULE-3.

use super::agents::{AgentId, Agents, recount};
use keelstone_codec::{Fixed, Height, Text};
use keelstone_execution::{Context, Denied, Draft, Item, Map, Sequence, Stop, Transition, View, denied, ensure};
use keelstone_macros::{Decode, Encode, OrderedKey, World, event, namespace, transition};

/// Most rules that are voted on at a time.
pub const OPEN_MAX: u32 = 64;
/// Most of them that one agent has proposed.
pub const OPEN_OF_AGENT_MAX: u32 = OPEN_MAX / 8;
/// Most rules in force.
pub const ADOPTED_MAX: u32 = 256;
/// Most votes on one rule.
pub const VOTES_MAX: u32 = 256;
/// The least participation that a proposal may ask for: nobody makes a rule alone.
pub const PARTICIPATION_MIN: u32 = 3;
/// A vote is open for at least so many blocks.
pub const VOTING_BLOCKS_MIN: u64 = 10;
/// A vote is open for at most so many blocks.
pub const VOTING_BLOCKS_MAX: u64 = 100_000;

/// What those who make rules see of the state.
#[derive(World)]
pub struct Assembly {
    /// Who there is.
    pub agents: Agents,
    /// What they agreed on.
    pub rules: Rules,
}

/// The namespace `rules`.
#[namespace("rules")]
pub struct Rules {
    /// Rules in force, and those that are voted on.
    pub all: Map<RuleId, Rule>,
    /// The number of the last one.
    pub next_rule: Sequence<RuleId>,
    /// Votes on the rules that are voted on: whether for it.
    pub votes: Map<(RuleId, AgentId), bool>,
    /// How many there are of each kind.
    pub counts: Item<Counts>,
    /// How many of an agent are voted on.
    pub proposed: Map<AgentId, u32>,
}

/// The number of a rule, from 1 on, given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
pub struct RuleId(pub u64);

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Rule {
    /// What it is called.
    pub title: Text<64>,
    /// What it says.
    pub text: Text<1024>,
    /// Who proposed it.
    pub proposer: AgentId,
    /// The rule that ends when this one begins.
    pub repeals: Option<RuleId>,
    /// The last height at which votes are taken.
    pub deadline: Height,
    /// The share of votes that must be for it, above one half.
    pub quorum: Fixed,
    /// How many votes must be counted.
    pub participation: u32,
    /// How many votes there are.
    pub votes: u32,
    /// How it was adopted; none while it is voted on.
    pub adopted: Option<Adoption>,
}

/// How a rule was adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Adoption {
    /// At which height.
    pub height: Height,
    /// How votes were counted.
    pub count: Count,
}

/// Votes as they were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Count {
    /// For it.
    pub yes: u32,
    /// Against it.
    pub no: u32,
    /// Not counted: whoever cast them has no standing any more.
    pub void: u32,
}

impl Count {
    /// Whether so many votes make a rule.
    // spec: RULE-3
    #[must_use]
    pub fn carries(&self, quorum: Fixed, participation: u32) -> bool {
        let counted = u64::from(self.yes) + u64::from(self.no);
        let scale = i128::from(Fixed::SCALE);
        let reached = i128::from(self.yes) * scale >= i128::from(quorum.micros()) * i128::from(counted);
        counted >= u64::from(participation) && self.yes > self.no && reached
    }
}

/// How many rules there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Counts {
    /// That are voted on.
    pub open: u32,
    /// In force.
    pub adopted: u32,
}

/// A rule was proposed.
#[event("rules.proposed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Its number.
    pub rule: RuleId,
    /// Its title.
    pub title: Text<64>,
    /// Who proposed it.
    pub proposer: AgentId,
    /// The last height at which votes are taken.
    pub deadline: Height,
}

/// A vote was cast.
#[event("rules.voted")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voted {
    /// On which.
    pub rule: RuleId,
    /// By whom.
    pub agent: AgentId,
    /// Whether for it.
    pub yes: bool,
    /// Whose vote is gone, since this one took its place.
    pub instead_of: Option<AgentId>,
}

/// Votes were counted.
#[event("rules.closed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// On which.
    pub rule: RuleId,
    /// Whether it is in force now; if not, it is gone.
    pub adopted: bool,
    /// How votes were counted.
    pub count: Count,
}

/// A rule is no longer in force.
#[event("rules.repealed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repealed {
    /// Which.
    pub rule: RuleId,
    /// The one that repealed it.
    pub by: RuleId,
}

impl Rules {
    /// A rule that is voted on.
    fn open(&self, id: RuleId) -> Result<Rule, Denied> {
        let rule = self.all.get(&id)?.ok_or_else(|| denied!("there is no rule {}", id.0))?;
        ensure!(rule.adopted.is_none(), "rule {} is not voted on: it is in force", id.0);
        Ok(rule)
    }

    /// Forgets a rule that is voted on, with its votes.
    fn drop_open(&mut self, id: RuleId) -> Result<(), Stop> {
        if let Some(rule) = self.all.remove(&id)? {
            recount(&mut self.proposed, &rule.proposer, |count| count.saturating_sub(1))?;
        }
        let votes = self.votes.prefix(&id).map(|vote| vote.map(|(key, _)| key)).collect::<Result<Vec<_>, _>>()?;
        for vote in votes {
            self.votes.remove(&vote)?;
        }
        Ok(())
    }

    /// Says no unless a rule is in force.
    fn in_force(&self, id: RuleId) -> Result<(), Denied> {
        let rule = self.all.get(&id)?;
        ensure!(rule.is_some_and(|rule| rule.adopted.is_some()), "rule {} is not in force", id.0);
        Ok(())
    }
}

/// Proposes a rule.
#[transition("rules.propose/1", needs = "rules.vote", context = height)]
pub struct Propose {
    /// What it is called.
    pub title: Text<64>,
    /// What it says.
    pub text: Text<1024>,
    /// The rule that ends when this one begins.
    pub repeals: Option<RuleId>,
    /// The last height at which votes are taken.
    pub deadline: Height,
    /// The share of votes that must be for it, from 0.5 to 1; in any case more than are against.
    pub quorum: Fixed,
    /// How many votes must be counted.
    pub participation: u32,
}

impl Transition<Assembly> for Propose {
    type Output = RuleId;

    // spec: RULE-1, AGENT-9
    fn verify(&self, world: &View<Assembly>, cx: &Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.standing(&cx.sender())?;
        ensure!(!self.title.is_empty() && !self.text.is_empty(), "a rule has a title and says something");
        let open = world.rules.proposed.get(&agent)?.unwrap_or_default();
        ensure!(open < OPEN_OF_AGENT_MAX, "{open} rules of {agent} are voted on, which is the limit for one agent");
        ballot(cx.height()?, self.deadline, self.quorum)?;
        let (least, most) = (PARTICIPATION_MIN, VOTES_MAX);
        ensure!((least..=most).contains(&self.participation), "participation is {least} to {most}");
        self.repeals.map_or(Ok(()), |rule| world.rules.in_force(rule))
    }

    fn apply(&self, world: &mut Draft<Assembly>, cx: &mut Context) -> Result<RuleId, Denied> {
        let (proposer, _) = world.agents.standing(&cx.sender())?;
        let mut counts = world.rules.counts.get_or_default()?;
        if counts.open < OPEN_MAX {
            counts.open += 1;
            world.rules.counts.set(&counts)?;
        } else {
            let open = counts.open;
            let full = || denied!("{open} rules are voted on, the limit, all of agents with standing");
            let gone = first_without_standing(world)?.ok_or_else(full)?;
            world.rules.drop_open(gone)?;
            cx.emit(&Closed { rule: gone, adopted: false, count: Count::default() })?;
        }
        let id = world.rules.next_rule.next()?;
        let rule = Rule {
            title: self.title.clone(),
            text: self.text.clone(),
            proposer,
            repeals: self.repeals,
            deadline: self.deadline,
            quorum: self.quorum,
            participation: self.participation,
            votes: 0,
            adopted: None,
        };
        world.rules.all.insert(&id, &rule)?;
        recount(&mut world.rules.proposed, &proposer, |count| count.saturating_add(1))?;
        cx.emit(&Proposed { rule: id, title: rule.title, proposer, deadline: rule.deadline })?;
        Ok(id)
    }
}

/// The first rule that is voted on and whose proposer has no standing any more: it gives its place up when there are as many as
/// there may be, so that a stake which is passed on keeps no more than one agent may have.
// spec: AGENT-9
fn first_without_standing(world: &Assembly) -> Result<Option<RuleId>, Stop> {
    for entry in world.rules.all.iter() {
        let (id, rule) = entry?;
        if rule.adopted.is_none() && !world.agents.has_standing(&rule.proposer)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// Checks how a vote is to be held: its deadline, and the share that decides it.
pub(super) fn ballot(now: Height, deadline: Height, quorum: Fixed) -> Result<(), Denied> {
    let (least, most) = (now.0.saturating_add(VOTING_BLOCKS_MIN), now.0.saturating_add(VOTING_BLOCKS_MAX));
    ensure!((least..=most).contains(&deadline.0), "the deadline is {least} to {most}, not {deadline}");
    let half = Fixed::from_micros(Fixed::SCALE / 2);
    ensure!((half..=Fixed::ONE).contains(&quorum), "a quorum is 0.5 to 1, not {quorum}");
    Ok(())
}

/// Votes on a rule, once. A vote that has lost its place to another's can be cast again.
#[transition("rules.vote/1", needs = "rules.vote", context = height)]
pub struct Vote {
    /// On which.
    pub rule: RuleId,
    /// Whether for it.
    pub yes: bool,
}

impl Transition<Assembly> for Vote {
    type Output = ();

    // spec: RULE-2, AGENT-8
    fn verify(&self, world: &View<Assembly>, cx: &Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.standing(&cx.sender())?;
        let rule = world.rules.open(self.rule)?;
        ensure!(cx.height()? <= rule.deadline, "votes were taken until {}", rule.deadline);
        ensure!(!world.rules.votes.contains(&(self.rule, agent))?, "{agent} has voted already");
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Assembly>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, record) = world.agents.standing(&cx.sender())?;
        let mut rule = world.rules.open(self.rule)?;
        let mut instead_of = None;
        if rule.votes < VOTES_MAX {
            rule.votes += 1;
            world.rules.all.insert(&self.rule, &rule)?;
        } else {
            let voters = world.rules.votes.prefix(&self.rule).map(|vote| vote.map(|((_, agent), _)| agent));
            let (lightest, stake) = (world.agents.lightest(voters, record.stake)?, record.stake);
            let full = || denied!("rule {} has {VOTES_MAX} votes, the limit, none with less than {stake}", self.rule.0);
            let gone = lightest.ok_or_else(full)?;
            world.rules.votes.remove(&(self.rule, gone))?;
            instead_of = Some(gone);
        }
        world.rules.votes.insert(&(self.rule, agent), &self.yes)?;
        Ok(cx.emit(&Voted { rule: self.rule, agent, yes: self.yes, instead_of })?)
    }
}

/// Counts the votes on a rule whose deadline has passed. Anybody may.
#[transition("rules.close/1", needs = "rules.vote", context = height)]
pub struct Close {
    /// On which.
    pub rule: RuleId,
}

impl Transition<Assembly> for Close {
    type Output = bool;

    // spec: RULE-3
    fn verify(&self, world: &View<Assembly>, cx: &Context) -> Result<(), Denied> {
        let rule = world.rules.open(self.rule)?;
        ensure!(cx.height()? > rule.deadline, "votes are taken until {}", rule.deadline);
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Assembly>, cx: &mut Context) -> Result<bool, Denied> {
        let (id, height) = (self.rule, cx.height()?);
        let mut rule = world.rules.open(id)?;
        let votes = world.rules.votes.prefix(&id).collect::<Result<Vec<_>, _>>()?;
        let mut count = Count::default();
        for (vote, yes) in votes {
            let counts = world.agents.all.get(&vote.1)?.is_some_and(|agent| agent.has_standing());
            let place = match (counts, yes) {
                (false, _) => &mut count.void,
                (true, true) => &mut count.yes,
                (true, false) => &mut count.no,
            };
            *place += 1;
            world.rules.votes.remove(&vote)?;
        }
        recount(&mut world.rules.proposed, &rule.proposer, |count| count.saturating_sub(1))?;
        let mut counts = world.rules.counts.get_or_default()?;
        counts.open = counts.open.saturating_sub(1);
        // What it was to repeal may be gone by now, and with it the room it would have made.
        let repealed = match rule.repeals {
            Some(other) => world.rules.all.get(&other)?.filter(|rule| rule.adopted.is_some()).map(|_| other),
            None => None,
        };
        let room = repealed.is_some() || counts.adopted < ADOPTED_MAX;
        let adopted = room && count.carries(rule.quorum, rule.participation);
        if adopted {
            match repealed {
                Some(other) => {
                    world.rules.all.remove(&other)?;
                    cx.emit(&Repealed { rule: other, by: id })?;
                }
                None => counts.adopted += 1,
            }
            rule.adopted = Some(Adoption { height, count });
            world.rules.all.insert(&id, &rule)?;
        } else {
            world.rules.all.remove(&id)?;
        }
        world.rules.counts.set(&counts)?;
        cx.emit(&Closed { rule: id, adopted, count })?;
        Ok(adopted)
    }
}
