//! The world a chain begins with: agents, what they feel, alliances and rules, as a genesis file says them.
//!
//! A genesis comes from a stranger: every bound that functions keep is kept here too, unknown members are refused, and
//! what is wrong is named. Rules: `spec/modules.md`, MODULE-2.

use super::agents::{Agent, AgentId, Agents, Personality, REPUTATION_MAX, Status, TRAITS_MAX, within_one};
use super::rules::{ADOPTED_MAX, Adoption, Count, PARTICIPATION_MIN, Rule, Rules};
use super::social::{ALLIANCES_MAX, Alliance, MEMBERS_MAX, RELATIONSHIPS_MAX, Relationship, Social, Terms};
use crate::json::{Json, Number};
use crate::keys::check_key;
use keelstone_codec::{BoundedSet, Fixed, Height, Text};
use keelstone_execution::{BlockDraft, PublicKey, Stop};
use keelstone_macros::World;
use std::collections::BTreeMap;
use std::fmt::Display;

/// Most agents that a genesis begins with.
pub const AGENTS_MAX: usize = 65_536;
/// Most alliances that a genesis begins with.
const FIRST_ALLIANCES_MAX: usize = 4_096;

/// What a genesis puts into the modules' namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    /// Agents, by the key that names them and that they act by.
    pub agents: BTreeMap<AgentId, Agent>,
    /// What the first thinks of the second.
    pub relationships: BTreeMap<(AgentId, AgentId), Relationship>,
    /// Alliances, numbered from 1 on.
    pub alliances: Vec<FirstAlliance>,
    /// Rules in force, numbered from 1 on: title and text.
    pub rules: Vec<(Text<64>, Text<1024>)>,
}

/// An alliance that there was from the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstAlliance {
    /// What it is called.
    pub name: Text<64>,
    /// What it is for.
    pub purpose: Text<140>,
    /// Whether its members promise to be in no other.
    pub exclusive: bool,
    /// Who is in it. The first of them founded it.
    pub members: Vec<AgentId>,
}

/// Everything that a genesis writes.
#[derive(World)]
struct Everything {
    agents: Agents,
    social: Social,
    rules: Rules,
}

impl Beginning {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the member `world` of a genesis file.
    ///
    /// # Errors
    /// What is wrong, and where.
    // spec: MODULE-2, GENESIS-1
    pub(crate) fn parse(json: &Json) -> Result<Self, String> {
        let mut out = Self::default();
        for (name, value) in object("world", json)? {
            match name.as_str() {
                "agents" => out.agents = agents(value)?,
                "relationships" => out.relationships = relationships(value)?,
                "alliances" => out.alliances = alliances(value)?,
                "rules" => out.rules = rules(value)?,
                _ => return Err(format!("the world has no member {name:?}")),
            }
        }
        out.check()?;
        Ok(out)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// What is wrong, and where.
    // spec: MODULE-2
    pub(crate) fn check(&self) -> Result<(), String> {
        let known = |agent: &AgentId| {
            if self.agents.contains_key(agent) { Ok(()) } else { Err(format!("{agent} is no agent of this genesis")) }
        };
        at_most("agents", self.agents.len(), AGENTS_MAX)?;
        let mut stake = 0u64;
        for (id, agent) in &self.agents {
            check_key(&id.0).map_err(|error| error.to_string())?;
            let said = |error: &dyn Display| format!("agent {id}: {error}");
            if agent.name.is_empty() {
                return Err(said(&"an agent has a name"));
            }
            agent.personality.check().map_err(|error| said(&error))?;
            within_one("mood", agent.mood).map_err(|error| said(&error))?;
            let least = Fixed::from_micros(-REPUTATION_MAX.micros());
            if !(least..=REPUTATION_MAX).contains(&agent.reputation) {
                return Err(said(&format!("reputation is {least} to {REPUTATION_MAX}, not {}", agent.reputation)));
            }
            if agent.key != id.0 || agent.offered_key.is_some() || agent.status != Status::Active {
                return Err(said(&"an agent begins active, by the key that names it"));
            }
            stake = stake.checked_add(agent.stake).ok_or("all stake together is below 2^64")?;
        }
        let mut counts: BTreeMap<AgentId, usize> = BTreeMap::new();
        for ((agent, other), relationship) in &self.relationships {
            known(agent)?;
            known(other)?;
            if agent == other {
                return Err(format!("{agent}: a relationship is with another"));
            }
            within_one("trust", relationship.trust).map_err(|error| error.to_string())?;
            within_one("sentiment", relationship.sentiment).map_err(|error| error.to_string())?;
            *counts.entry(*agent).or_default() += 1;
        }
        let most = counts.into_values().max().unwrap_or_default();
        at_most("relationships of one agent", most, RELATIONSHIPS_MAX as usize)?;
        at_most("alliances", self.alliances.len(), FIRST_ALLIANCES_MAX)?;
        let mut memberships: BTreeMap<AgentId, usize> = BTreeMap::new();
        for FirstAlliance { name, members, .. } in &self.alliances {
            at_most("members", members.len(), MEMBERS_MAX)?;
            if name.is_empty() || members.is_empty() {
                return Err("an alliance has a name and a member".to_owned());
            }
            for (place, member) in members.iter().enumerate() {
                known(member)?;
                if members[..place].contains(member) {
                    return Err(format!("{member} is twice in {:?}", &**name));
                }
                *memberships.entry(*member).or_default() += 1;
            }
        }
        let most = memberships.into_values().max().unwrap_or_default();
        at_most("alliances of one agent", most, ALLIANCES_MAX)?;
        at_most("rules", self.rules.len(), ADOPTED_MAX as usize)?;
        if self.rules.iter().any(|(title, text)| title.is_empty() || text.is_empty()) {
            return Err("a rule has a title and says something".to_owned());
        }
        Ok(())
    }

    /// The member `world` of a genesis file.
    pub(crate) fn to_json(&self) -> Json {
        let text = |text: &dyn Display| Json::Text(text.to_string());
        let whole = |number: u64| Json::Number(Number::from(number));
        let list = |members: Vec<Json>| Json::List(members);
        let agents = self.agents.iter().map(|(id, agent)| {
            let traits = agent.traits.iter().map(|one| text(one)).collect();
            let personality = agent.personality.named().map(|(name, value)| (name, text(&value)));
            members([
                ("key", text(id)),
                ("name", text(&agent.name)),
                ("personality", members(personality)),
                ("traits", list(traits)),
                ("mood", text(&agent.mood)),
                ("reputation", text(&agent.reputation)),
                ("stake", whole(agent.stake)),
            ])
        });
        let relationships = self.relationships.iter().map(|((agent, other), felt)| {
            members([
                ("agent", text(agent)),
                ("other", text(other)),
                ("trust", text(&felt.trust)),
                ("sentiment", text(&felt.sentiment)),
            ])
        });
        let alliances = self.alliances.iter().map(|alliance| {
            members([
                ("name", text(&alliance.name)),
                ("purpose", text(&alliance.purpose)),
                ("exclusive", Json::Bool(alliance.exclusive)),
                ("members", list(alliance.members.iter().map(|member| text(member)).collect())),
            ])
        });
        let rules = self.rules.iter().map(|(title, said)| members([("title", text(title)), ("text", text(said))]));
        members([
            ("agents", list(agents.collect())),
            ("relationships", list(relationships.collect())),
            ("alliances", list(alliances.collect())),
            ("rules", list(rules.collect())),
        ])
    }

    /// Writes it all into an empty state.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub(crate) fn write(&self, draft: &mut BlockDraft<'_>, height: Height) -> Result<(), Stop> {
        if self.is_empty() {
            return Ok(());
        }
        draft.edit(|world: &mut Everything| {
            let mut stake = 0u64;
            for (id, agent) in &self.agents {
                world.agents.admit(*id, agent)?;
                stake = stake.saturating_add(agent.stake);
            }
            if stake > 0 {
                world.agents.stake_total.set(&stake)?;
            }
            for ((agent, other), relationship) in &self.relationships {
                world.social.relate(*agent, *other, relationship)?;
            }
            for alliance in &self.alliances {
                let id = world.social.next_alliance.next()?;
                let members = alliance.members.iter().copied();
                let record = Alliance {
                    name: alliance.name.clone(),
                    purpose: alliance.purpose.clone(),
                    founder: alliance.members[0],
                    terms: Terms { exclusive: alliance.exclusive, ..Terms::default() },
                    benefits: Text::default(),
                    pot: 0,
                    stands: alliance.members.len() > 1,
                    members: BoundedSet::new(members).expect("a genesis is checked before it is written"),
                    invited: BoundedSet::default(),
                    dissolving: BoundedSet::default(),
                };
                for member in &alliance.members {
                    world.social.memberships.insert(&(*member, id))?;
                }
                world.social.alliances.insert(&id, &record)?;
            }
            for (title, text) in &self.rules {
                let id = world.rules.next_rule.next()?;
                let rule = Rule {
                    title: title.clone(),
                    text: text.clone(),
                    proposer: AgentId(PublicKey(keelstone_codec::Hash::ZERO)),
                    repeals: None,
                    deadline: height,
                    quorum: Fixed::ONE,
                    participation: PARTICIPATION_MIN,
                    votes: 0,
                    adopted: Some(Adoption { height, count: Count::default() }),
                };
                world.rules.all.insert(&id, &rule)?;
            }
            if !self.rules.is_empty() {
                let mut counts = world.rules.counts.get_or_default()?;
                counts.adopted = u32::try_from(self.rules.len()).unwrap_or(ADOPTED_MAX);
                world.rules.counts.set(&counts)?;
            }
            Ok(())
        })
    }
}

fn at_most(what: &str, found: usize, limit: usize) -> Result<(), String> {
    if found > limit { Err(format!("there are {found} {what}, the limit is {limit}")) } else { Ok(()) }
}

fn members<const N: usize>(list: [(&str, Json); N]) -> Json {
    Json::Object(list.map(|(name, value)| (name.to_owned(), value)).into())
}

fn object<'a>(what: &str, json: &'a Json) -> Result<&'a [(String, Json)], String> {
    match json {
        Json::Object(members) => Ok(members),
        _ => Err(format!("{what} is an object")),
    }
}

fn list<'a>(what: &str, json: &'a Json) -> Result<&'a [Json], String> {
    match json {
        Json::List(list) => Ok(list),
        _ => Err(format!("{what} is a list")),
    }
}

fn text<const N: usize>(what: &str, json: &Json) -> Result<Text<N>, String> {
    let text = json.as_text().ok_or_else(|| format!("{what} is a text"))?;
    Text::new(text).map_err(|error| format!("{what}: {error}"))
}

/// A decimal, as text or as a number of JSON.
fn decimal(what: &str, json: &Json) -> Result<Fixed, String> {
    let text = match json {
        Json::Number(number) => number.as_str(),
        other => other.as_text().ok_or_else(|| format!("{what} is a number"))?,
    };
    Fixed::parse(text).map_err(|_| format!("{what} has up to six places, not {text:?}"))
}

fn agent_id(what: &str, json: &Json) -> Result<AgentId, String> {
    let text = json.as_text().ok_or_else(|| format!("{what} is a public key"))?;
    PublicKey::from_hex(text).map(AgentId).map_err(|error| format!("{what}: {error}"))
}

fn flag(what: &str, json: &Json) -> Result<bool, String> {
    match json {
        Json::Bool(flag) => Ok(*flag),
        _ => Err(format!("{what} is true or false")),
    }
}

fn agents(json: &Json) -> Result<BTreeMap<AgentId, Agent>, String> {
    let mut out = BTreeMap::new();
    for entry in list("agents", json)? {
        let (mut id, mut name) = (None, None);
        let mut agent = Agent::new(
            PublicKey(keelstone_codec::Hash::ZERO),
            Text::default(),
            Personality::AVERAGE,
            BoundedSet::default(),
        );
        for (member, value) in object("an agent", entry)? {
            match member.as_str() {
                "key" => id = Some(agent_id(member, value)?),
                "name" => name = Some(text(member, value)?),
                "personality" => agent.personality = personality(value)?,
                "traits" => {
                    let traits = list(member, value)?.iter().map(|one| text("a trait", one));
                    let traits: Vec<Text<32>> = traits.collect::<Result<_, _>>()?;
                    at_most("traits", traits.len(), TRAITS_MAX)?;
                    agent.traits = BoundedSet::new(traits).map_err(|error| format!("traits: {error}"))?;
                }
                "mood" => agent.mood = decimal(member, value)?,
                "reputation" => agent.reputation = decimal(member, value)?,
                "stake" => match value {
                    Json::Number(number) => {
                        let stake = number.as_str().parse();
                        agent.stake = stake.map_err(|_| "stake is a number from 0 to 2^64 - 1".to_owned())?;
                    }
                    _ => return Err("stake is a number".to_owned()),
                },
                _ => return Err(format!("an agent has no member {member:?}")),
            }
        }
        let id = id.ok_or("an agent has a key")?;
        agent.key = id.0;
        agent.name = name.ok_or("an agent has a name")?;
        if out.insert(id, agent).is_some() {
            return Err(format!("agent {id} stands twice"));
        }
    }
    Ok(out)
}

fn personality(json: &Json) -> Result<Personality, String> {
    let mut out = Personality::AVERAGE;
    for (member, value) in object("a personality", json)? {
        let value = decimal(member, value)?;
        match member.as_str() {
            "openness" => out.openness = value,
            "conscientiousness" => out.conscientiousness = value,
            "extraversion" => out.extraversion = value,
            "agreeableness" => out.agreeableness = value,
            "neuroticism" => out.neuroticism = value,
            _ => return Err(format!("a personality has no member {member:?}")),
        }
    }
    Ok(out)
}

fn relationships(json: &Json) -> Result<BTreeMap<(AgentId, AgentId), Relationship>, String> {
    let mut out = BTreeMap::new();
    for entry in list("relationships", json)? {
        let (mut agent, mut other, mut felt) = (None, None, Relationship::default());
        for (member, value) in object("a relationship", entry)? {
            match member.as_str() {
                "agent" => agent = Some(agent_id(member, value)?),
                "other" => other = Some(agent_id(member, value)?),
                "trust" => felt.trust = decimal(member, value)?,
                "sentiment" => felt.sentiment = decimal(member, value)?,
                _ => return Err(format!("a relationship has no member {member:?}")),
            }
        }
        let (Some(agent), Some(other)) = (agent, other) else {
            return Err("a relationship has an agent and an other".to_owned());
        };
        if out.insert((agent, other), felt).is_some() {
            return Err(format!("what {agent} thinks of {other} stands twice"));
        }
    }
    Ok(out)
}

fn alliances(json: &Json) -> Result<Vec<FirstAlliance>, String> {
    let mut out = Vec::new();
    for entry in list("alliances", json)? {
        let (name, purpose) = (Text::default(), Text::default());
        let mut alliance = FirstAlliance { name, purpose, exclusive: false, members: Vec::new() };
        for (member, value) in object("an alliance", entry)? {
            match member.as_str() {
                "name" => alliance.name = text(member, value)?,
                "purpose" => alliance.purpose = text(member, value)?,
                "exclusive" => alliance.exclusive = flag(member, value)?,
                "members" => {
                    let members = list(member, value)?.iter().map(|one| agent_id("a member", one));
                    alliance.members = members.collect::<Result<_, _>>()?;
                }
                _ => return Err(format!("an alliance has no member {member:?}")),
            }
        }
        out.push(alliance);
    }
    Ok(out)
}

fn rules(json: &Json) -> Result<Vec<(Text<64>, Text<1024>)>, String> {
    let mut out = Vec::new();
    for entry in list("rules", json)? {
        let (mut title, mut said) = (Text::default(), Text::default());
        for (member, value) in object("a rule", entry)? {
            match member.as_str() {
                "title" => title = text(member, value)?,
                "text" => said = text(member, value)?,
                _ => return Err(format!("a rule has no member {member:?}")),
            }
        }
        out.push((title, said));
    }
    Ok(out)
}
