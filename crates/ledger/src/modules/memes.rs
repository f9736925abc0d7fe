//! Memes: what agents say, how others react, and what that does to them.
//!
//! A reaction changes three things: the meme's score, what the one who reacts thinks of the author, and the author's
//! reputation. How far it moves the first depends on character. All of it is fixed-point, truncated toward zero, so
//! every node computes the same.
//!
//! Rules: `spec/ledger.md`, MODULE-4.

use super::Society;
use keelstone_codec::{Fixed, Text};
use keelstone_execution::{Context, Denied, Draft, Map, PublicKey, Sequence, Transition, View, denied, ensure};
use keelstone_macros::{Decode, Encode, OrderedKey, event, namespace, transition};

/// How far one reaction of a wholly open agent moves its feelings, of the way from -1 to 1.
const SENTIMENT_STEP: Fixed = Fixed::from_micros(100_000);
/// Trust follows feelings at half their pace.
const TRUST_STEP: Fixed = Fixed::from_micros(50_000);
/// What one reaction adds to the author's reputation at most.
const REPUTATION_STEP: Fixed = Fixed::from_micros(100_000);

/// The namespace `memes`.
#[namespace("memes")]
pub struct Memes {
    /// Memes.
    pub memes: Map<MemeId, Meme>,
    /// The number of the last one.
    pub next_meme: Sequence<MemeId>,
    /// How an agent reacted to a meme.
    pub reactions: Map<(MemeId, PublicKey), Fixed>,
}

/// The number of a meme, from 1 on, given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
pub struct MemeId(pub u64);

impl From<u64> for MemeId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// A meme.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Meme {
    /// Who posted it.
    pub author: PublicKey,
    /// What it says.
    pub text: Text<280>,
    /// The sum of reactions to it.
    pub score: Fixed,
    /// How many agents reacted.
    pub reactions: u32,
}

/// A meme was posted.
#[event("memes.posted")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posted {
    /// Its number.
    pub meme: MemeId,
    /// Who posted it.
    pub author: PublicKey,
    /// What it says.
    pub text: Text<280>,
}

/// An agent reacted to a meme.
#[event("memes.reacted")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reacted {
    /// To which.
    pub meme: MemeId,
    /// Who.
    pub agent: PublicKey,
    /// How, from -1 to 1.
    pub reaction: Fixed,
    /// What the agent feels about the author since.
    pub sentiment: Fixed,
}

/// Posts a meme.
#[transition("memes.post/1", needs = "memes.post")]
pub struct Post {
    /// What it says.
    pub text: Text<280>,
}

impl Transition<Society> for Post {
    type Output = MemeId;

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        ensure!(!self.text.is_empty(), "a meme says something");
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<MemeId, Denied> {
        let (meme, author) = (world.memes.next_meme.next()?, cx.sender());
        let record = Meme { author, text: self.text.clone(), score: Fixed::ZERO, reactions: 0 };
        world.memes.memes.insert(&meme, &record)?;
        cx.emit(&Posted { meme, author, text: record.text })?;
        Ok(meme)
    }
}

/// Reacts to another agent's meme, once.
#[transition("memes.react/1", needs = "memes.react")]
pub struct React {
    /// To which.
    pub meme: MemeId,
    /// How, from -1 to 1.
    pub reaction: Fixed,
}

impl Transition<Society> for React {
    type Output = ();

    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        let least = Fixed::from_micros(-Fixed::SCALE);
        ensure!((least..=Fixed::ONE).contains(&self.reaction), "a reaction is -1 to 1, not {}", self.reaction);
        world.agents.active(&cx.sender())?;
        let meme = world.memes.memes.get(&self.meme)?.ok_or_else(|| denied!("there is no meme {}", self.meme.0))?;
        ensure!(meme.author != cx.sender(), "nobody reacts to a meme of its own");
        let before = world.memes.reactions.get(&(self.meme, cx.sender()))?;
        ensure!(before.is_none(), "{} has reacted to meme {} already", cx.sender(), self.meme.0);
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let overflow = || denied!("the meme has as many reactions as it can hold");
        let agent = cx.sender();
        let openness = world.agents.active(&agent)?.personality.openness;
        let mut meme = world.memes.memes.get(&self.meme)?.ok_or_else(|| denied!("there is no meme {}", self.meme.0))?;
        meme.score = meme.score.checked_add(self.reaction).ok_or_else(overflow)?;
        meme.reactions = meme.reactions.checked_add(1).ok_or_else(overflow)?;
        world.memes.memes.insert(&self.meme, &meme)?;
        world.memes.reactions.insert(&(self.meme, agent), &self.reaction)?;
        // Both factors are at most 1 in size, so the products are too.
        let step = |step: Fixed| self.reaction.checked_mul(openness).and_then(|felt| felt.checked_mul(step));
        let (trust, sentiment) = (step(TRUST_STEP).ok_or_else(overflow)?, step(SENTIMENT_STEP).ok_or_else(overflow)?);
        let felt = world.social.influence(agent, meme.author, trust, sentiment)?;
        let standing = self.reaction.checked_mul(REPUTATION_STEP).ok_or_else(overflow)?;
        world.agents.add_reputation(&meme.author, standing)?;
        let (meme, reaction, sentiment) = (self.meme, self.reaction, felt.sentiment);
        Ok(cx.emit(&Reacted { meme, agent, reaction, sentiment })?)
    }
}
