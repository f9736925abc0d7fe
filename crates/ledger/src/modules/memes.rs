//! Memes: what agents say, how others react, and what that does to them.
//!
//! A reaction changes four things: the meme's score and heat, what the one who reacts thinks of the author, the
//! author's mood, and, if the one who reacts has standing, the author's reputation; but none that it came by since the
//! meme was posted, since the stake behind that may have spoken on it already. How far it moves feelings depends
//! on character and on how fresh the meme still is. Nothing is written as a meme grows old: what it is worth at a height
//! follows from its record and that height. All of it is fixed-point, truncated toward zero, so every node computes the
//! same.
//!
//! Rules: `spec/modules.md`, MEME-1 to MEME-4.

use super::Society;
use super::agents::{AgentId, within_one};
use keelstone_codec::{Fixed, Height, Text};
use keelstone_execution::{Context, Denied, Draft, Map, Sequence, Set, Stop, Transition, View, denied, ensure};
use keelstone_macros::{Decode, Encode, OrderedKey, event, namespace, transition};

/// Most memes of one author; the oldest makes room for the next.
pub const MEMES_MAX: u32 = 1_024;
/// Most reactions to one meme.
pub const REACTIONS_MAX: u32 = 1_024;
/// So many of them are whoever's who comes first; the others are for those who speak on the meme. Keys are free, and would take all.
pub const REACTIONS_OPEN_MAX: u32 = REACTIONS_MAX / 2;
/// A meme's freshness and heat halve each time it has grown so many blocks older.
pub const HALVING_BLOCKS: u64 = 1_000;

/// How far one reaction of a wholly open agent moves its feelings, of the way from -1 to 1.
const SENTIMENT_STEP: Fixed = Fixed::from_micros(100_000);
/// Trust follows feelings at half their pace.
const TRUST_STEP: Fixed = Fixed::from_micros(50_000);
/// How far one reaction moves the mood of an author whom everything upsets.
const MOOD_STEP: Fixed = Fixed::from_micros(100_000);
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
    pub reactions: Map<(MemeId, AgentId), Fixed>,
    /// Who wrote which.
    pub authors: Set<(AgentId, MemeId)>,
    /// How many memes of an author there are.
    pub counts: Map<AgentId, u32>,
}

/// The number of a meme, from 1 on, given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, OrderedKey)]
pub struct MemeId(pub u64);

/// A meme.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Meme {
    /// Who posted it.
    pub author: AgentId,
    /// What it says.
    pub text: Text<280>,
    /// When it was posted.
    pub posted: Height,
    /// The sum of reactions to it.
    pub score: Fixed,
    /// The same sum, cooled down as of the last reaction. What it is now, [`Meme::heat`] says.
    pub warmth: Fixed,
    /// When the last reaction came.
    pub warmed: Height,
    /// How many agents reacted.
    pub reactions: u32,
}

impl Meme {
    /// How many times it has halved by a height.
    fn halvings(&self, at: Height) -> u64 {
        at.0.saturating_sub(self.posted.0) / HALVING_BLOCKS
    }

    /// What a reaction to it weighs at a height: 1 at first, half of that after each [`HALVING_BLOCKS`].
    // spec: MEME-3
    #[must_use]
    pub fn freshness(&self, at: Height) -> Fixed {
        halved(Fixed::ONE, self.halvings(at))
    }

    /// How much it is talked about at a height. A function of the record and the height: whoever looks, and however
    /// often, finds the same, and nothing is written for it.
    // spec: MEME-3
    #[must_use]
    pub fn heat(&self, at: Height) -> Fixed {
        halved(self.warmth, self.halvings(at).saturating_sub(self.halvings(self.warmed)))
    }
}

/// Half of a value, so many times over, truncated toward zero.
fn halved(value: Fixed, times: u64) -> Fixed {
    let divisor = u32::try_from(times).ok().and_then(|times| 1i64.checked_shl(times)).filter(|divisor| *divisor > 0);
    // 2^62 is above every value that an honest sum reaches, and 2^63 above every value there is but one.
    divisor.map_or(Fixed::ZERO, |divisor| Fixed::from_micros(value.micros() / divisor))
}

/// A meme was posted.
#[event("memes.posted")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posted {
    /// Its number.
    pub meme: MemeId,
    /// Who posted it.
    pub author: AgentId,
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
    pub agent: AgentId,
    /// How, from -1 to 1.
    pub reaction: Fixed,
    /// What the agent feels about the author since; none if it has feelings about too many already.
    pub sentiment: Option<Fixed>,
    /// How much the meme is talked about since.
    pub heat: Fixed,
}

/// A meme is gone: its author took it away, or posted more than are kept.
#[event("memes.removed")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Which.
    pub meme: MemeId,
}

impl Memes {
    /// A meme by its number.
    ///
    /// # Errors
    /// [`Denied`] if there is none.
    pub fn meme(&self, id: MemeId) -> Result<Meme, Denied> {
        self.memes.get(&id)?.ok_or_else(|| denied!("there is no meme {}", id.0))
    }

    /// Takes a meme away, with the reactions to it.
    // spec: MEME-4
    fn take_away(&mut self, author: AgentId, meme: MemeId) -> Result<(), Stop> {
        self.memes.remove(&meme)?;
        self.authors.remove(&(author, meme))?;
        let of_meme = self.reactions.prefix(&meme).map(|entry| entry.map(|(key, _)| key));
        let reactions = of_meme.collect::<Result<Vec<_>, _>>()?;
        for reaction in reactions {
            self.reactions.remove(&reaction)?;
        }
        let left = self.counts.get(&author)?.unwrap_or_default().saturating_sub(1);
        if left == 0 { self.counts.remove(&author).map(drop) } else { self.counts.insert(&author, &left) }
    }
}

/// Posts a meme.
#[transition("memes.post/1", needs = "memes.post", context = height)]
pub struct Post {
    /// What it says.
    pub text: Text<280>,
}

impl Transition<Society> for Post {
    type Output = MemeId;

    // spec: MEME-1
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        world.agents.active(&cx.sender())?;
        ensure!(!self.text.is_empty(), "a meme says something");
        Ok(())
    }

    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<MemeId, Denied> {
        let (author, _) = world.agents.active(&cx.sender())?;
        if world.memes.counts.get(&author)?.unwrap_or_default() >= MEMES_MAX {
            let oldest = world.memes.authors.prefix(&author).next().transpose()?;
            if let Some((_, meme)) = oldest {
                world.memes.take_away(author, meme)?;
                cx.emit(&Removed { meme })?;
            }
        }
        let (meme, now) = (world.memes.next_meme.next()?, cx.height()?);
        let text = self.text.clone();
        let (score, warmth) = (Fixed::ZERO, Fixed::ZERO);
        let record = Meme { author, text, posted: now, score, warmth, warmed: now, reactions: 0 };
        world.agents.last_meme.set(&meme.0)?;
        world.memes.memes.insert(&meme, &record)?;
        world.memes.authors.insert(&(author, meme))?;
        let count = world.memes.counts.get(&author)?.unwrap_or_default().saturating_add(1);
        world.memes.counts.insert(&author, &count)?;
        cx.emit(&Posted { meme, author, text: record.text })?;
        Ok(meme)
    }
}

/// Reacts to another agent's meme, once.
#[transition("memes.react/1", needs = "memes.react", context = height)]
pub struct React {
    /// To which.
    pub meme: MemeId,
    /// How, from -1 to 1.
    pub reaction: Fixed,
}

impl Transition<Society> for React {
    type Output = ();

    // spec: MEME-1
    fn verify(&self, world: &View<Society>, cx: &Context) -> Result<(), Denied> {
        within_one("a reaction", self.reaction)?;
        let (agent, record) = world.agents.active(&cx.sender())?;
        let meme = world.memes.meme(self.meme)?;
        ensure!(meme.author != agent, "nobody reacts to a meme of its own");
        let before = world.memes.reactions.get(&(self.meme, agent))?;
        ensure!(before.is_none(), "{agent} has reacted to meme {} already", self.meme.0);
        ensure!(meme.reactions < REACTIONS_MAX, "meme {} has {REACTIONS_MAX} reactions, the limit", self.meme.0);
        let is_open = meme.reactions < REACTIONS_OPEN_MAX
            || world.agents.nobody_stands()?
            || world.agents.may_speak_on(&agent, &record, self.meme.0)?;
        ensure!(
            is_open,
            "meme {} has {} reactions, and from {REACTIONS_OPEN_MAX} on places are for those who had standing when it was posted",
            self.meme.0,
            meme.reactions
        );
        Ok(())
    }

    // spec: MEME-2
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let overflow = || denied!("the meme has as many reactions as it can hold");
        let (agent, record) = world.agents.active(&cx.sender())?;
        let (mut meme, now) = (world.memes.meme(self.meme)?, cx.height()?);
        let (freshness, heat) = (meme.freshness(now), meme.heat(now));
        meme.score = meme.score.checked_add(self.reaction).ok_or_else(overflow)?;
        meme.warmth = heat.checked_add(self.reaction).ok_or_else(overflow)?;
        meme.warmed = now;
        meme.reactions = meme.reactions.checked_add(1).ok_or_else(overflow)?;
        world.memes.memes.insert(&self.meme, &meme)?;
        world.memes.reactions.insert(&(self.meme, agent), &self.reaction)?;
        // All factors are at most 1 in size, so the products are too.
        let fresh = self.reaction.checked_mul(freshness).ok_or_else(overflow)?;
        let felt = fresh.checked_mul(record.personality.openness).ok_or_else(overflow)?;
        let (trust, sentiment) = (felt.checked_mul(TRUST_STEP), felt.checked_mul(SENTIMENT_STEP));
        let (trust, sentiment) = (trust.ok_or_else(overflow)?, sentiment.ok_or_else(overflow)?);
        let felt = world.social.influence(agent, meme.author, trust, sentiment)?;
        let mood = fresh.checked_mul(MOOD_STEP).ok_or_else(overflow)?;
        let standing = fresh.checked_mul(REPUTATION_STEP).ok_or_else(overflow)?;
        let counts = world.agents.speaks_on(&agent, &record, self.meme.0)?;
        world.agents.change(&meme.author, |author| {
            author.feel(mood);
            if counts {
                author.think_of(standing);
            }
        })?;
        let (meme, heat, reaction, sentiment) =
            (self.meme, meme.warmth, self.reaction, felt.map(|felt| felt.sentiment));
        Ok(cx.emit(&Reacted { meme, agent, reaction, sentiment, heat })?)
    }
}

/// Takes one of the sender's own memes away, with the reactions to it.
#[transition("memes.remove/1", needs = "memes.post")]
pub struct Remove {
    /// Which.
    pub meme: MemeId,
}

impl Transition<Society> for Remove {
    type Output = ();

    // spec: MEME-4
    fn apply(&self, world: &mut Draft<Society>, cx: &mut Context) -> Result<(), Denied> {
        let (agent, _) = world.agents.active(&cx.sender())?;
        let meme = world.memes.meme(self.meme)?;
        ensure!(meme.author == agent, "meme {} is not of {agent}", self.meme.0);
        world.memes.take_away(agent, self.meme)?;
        Ok(cx.emit(&Removed { meme: self.meme })?)
    }
}
