//! What queries look the world up by, beside its keys.
//!
//! Indexes are made from the state and lie outside it: nothing commits to them and no function can read one. Whoever
//! serves queries makes them once, keeps them up with each block's changes, and makes them anew whenever the state
//! under them becomes another: after a restore, a rollback, or a start. Rules: `spec/modules.md`, MODULE-4.

use super::agents::{Agent, AgentId, Agents};
use super::memes::{Meme, MemeId, Memes};
use super::social::{Alliance, AllianceId, Relationship, Social};
use keelstone_codec::Text;
use keelstone_execution::{Changes, Index, IndexError};
use keelstone_tree::Read;

/// The indexes of the modules. Memory: one key for each agent, meme, membership and relationship.
pub struct Indexes {
    /// Agents by their name, which several may share.
    pub agents_by_name: Index<AgentId, Agent, Text<64>>,
    /// Memes by their author.
    pub memes_by_author: Index<MemeId, Meme, AgentId>,
    /// Alliances by who is in them.
    pub alliances_by_member: Index<AllianceId, Alliance, AgentId>,
    /// Relationships by whom they are about.
    pub relationships_by_other: Index<(AgentId, AgentId), Relationship, AgentId>,
}

impl Indexes {
    /// Makes the indexes of a version of the state. Cost: a scan of these maps.
    ///
    /// # Errors
    /// [`IndexError`] if the state cannot be read, or holds something else in their place.
    // spec: MODULE-4
    pub fn of(state: &dyn Read) -> Result<Self, IndexError> {
        let mut indexes = Self {
            agents_by_name: Index::of::<Agents>("all", |_, agent: &Agent| vec![agent.name.clone()])?,
            memes_by_author: Index::of::<Memes>("memes", |_, meme: &Meme| vec![meme.author])?,
            alliances_by_member: Index::of::<Social>("alliances", |_, alliance: &Alliance| {
                alliance.members.iter().copied().collect()
            })?,
            relationships_by_other: Index::of::<Social>("relationships", |(_, other): &(AgentId, AgentId), _| {
                vec![*other]
            })?,
        };
        indexes.agents_by_name.rebuild(state)?;
        indexes.memes_by_author.rebuild(state)?;
        indexes.alliances_by_member.rebuild(state)?;
        indexes.relationships_by_other.rebuild(state)?;
        Ok(indexes)
    }

    /// Keeps the indexes up with what a block changed.
    ///
    /// # Errors
    /// [`IndexError`]; they are then to be made anew.
    // spec: MODULE-4
    pub fn apply(&mut self, changes: &Changes) -> Result<(), IndexError> {
        self.agents_by_name.apply(changes)?;
        self.memes_by_author.apply(changes)?;
        self.alliances_by_member.apply(changes)?;
        self.relationships_by_other.apply(changes)
    }
}
