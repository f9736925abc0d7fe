//! Counting opinions: four strategies as pure functions of what was said and what each voice weighs.
//!
//! All arithmetic is on integers and cannot overflow, whatever the weights are: sums of at most [`VOICES_MAX`] weights
//! of 64 bits fit 128 bits, and the mean divides before it adds. The order of voices changes nothing.
//!
//! Rules: `spec/modules.md`, CONFLICT-4 to CONFLICT-6. A table worked out by hand is in `docs/conflict.md`.

use crate::modules::agents::{AgentId, Personality};
use keelstone_codec::{BoundedList, Fixed};
use keelstone_macros::{Decode, Encode};

/// Most opinions on one conflict.
pub const VOICES_MAX: usize = 64;
/// What a voice weighs if all are alike, and what each hands out as influence.
const UNIT: u64 = 1_000_000;
/// Values further from the median than so many times the median deviation are no inliers.
const DEVIATIONS: u128 = 3;

/// How opinions are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Strategy {
    /// Every voice weighs the same.
    Majority,
    /// A voice weighs 1, and up to a half more for openness and conscientiousness.
    Personality,
    /// Every voice hands out the same influence, among the voices it trusts; one that trusts none keeps its own.
    Influence,
    /// The mean of values, weighed by stake, without those that lie far from the median. For numbers only.
    RobustMean,
}

/// What somebody holds to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Position {
    /// The first claim.
    First,
    /// The second claim.
    Second,
    /// This number.
    Value(Fixed),
    /// Neither claim.
    Neither,
}

/// What is known of somebody who gave an opinion and has standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voice {
    /// Who.
    pub agent: AgentId,
    /// What it holds to be right.
    pub position: Position,
    /// Its character.
    pub personality: Personality,
    /// What it stakes.
    pub stake: u64,
    /// How far it trusts each of the voices, by their place in the list; its own place and what is not above zero do
    /// not count.
    pub trust: Vec<Fixed>,
}

/// One opinion as it was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Counted {
    /// Whose.
    pub agent: AgentId,
    /// What it said.
    pub position: Position,
    /// What it weighed.
    pub weight: u64,
    /// Whether it is among those that made the outcome: it said so, or is an inlier.
    pub carried: bool,
}

/// Why a conflict has no winner. Both sides stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Lack {
    /// Too few opinions counted.
    Participation,
    /// No answer is the heaviest: two weigh the same, and as much as any.
    Tie,
    /// The heaviest answer is not heavy enough.
    Quorum,
    /// What was fought over is not there any more, or the place of the conflict was another's.
    Moot,
}

/// What a conflict came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// The first claim holds.
    First,
    /// The second claim holds.
    Second,
    /// This number holds.
    Value(Fixed),
    /// Nothing was decided: both are kept.
    Unresolved(Lack),
    /// Neither claim holds: things stay as they are.
    Neither,
}

/// How opinions were counted. It stands in the state, so it can be proven and counted again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Tally {
    /// The opinions that counted, by agent.
    pub counted: BoundedList<Counted, VOICES_MAX>,
    /// How many did not count: those who gave them have no standing any more.
    pub void: u32,
    /// What those that made the outcome weigh; of the heaviest answer, if it is not heavy enough; 0 at a tie.
    pub carried: u128,
    /// What all of them weigh.
    pub total: u128,
    /// What it came to.
    pub outcome: Outcome,
}

/// What a conflict comes to that gave its place up to another: nothing is counted, nothing decided.
// spec: AGENT-9
pub(super) fn without_a_place() -> Tally {
    let (counted, outcome) = (BoundedList::default(), Outcome::Unresolved(Lack::Moot));
    Tally { counted, void: 0, carried: 0, total: 0, outcome }
}

/// Counts opinions.
///
/// `voices` are at most [`VOICES_MAX`], further ones do not count; positions that do not fit the strategy do not count
/// either.
// spec: CONFLICT-4, CONFLICT-5, CONFLICT-6
#[must_use]
pub fn count(strategy: Strategy, quorum: Fixed, participation: u32, voices: &[Voice], void: u32) -> Tally {
    let voices = &voices[..voices.len().min(VOICES_MAX)];
    let weights = match strategy {
        Strategy::Majority => vec![UNIT; voices.len()],
        Strategy::Personality => voices.iter().map(|voice| of_character(&voice.personality)).collect(),
        Strategy::Influence => influence(voices),
        Strategy::RobustMean => voices.iter().map(|voice| voice.stake).collect(),
    };
    let weighed = voices.iter().zip(weights).map(|(voice, weight)| {
        let (agent, position) = (voice.agent, voice.position);
        Counted { agent, position, weight, carried: false }
    });
    let mut counted: Vec<Counted> = weighed.collect();
    let total: u128 = counted.iter().map(|voice| u128::from(voice.weight)).sum();
    let leading = match strategy {
        Strategy::RobustMean => mean(&mut counted),
        _ => heaviest(&mut counted),
    };
    let carried: u128 = counted.iter().filter(|voice| voice.carried).map(|voice| u128::from(voice.weight)).sum();
    let scale = Fixed::SCALE.unsigned_abs();
    // 64 weights of 64 bits and a factor of 20 bits fit 128; a quorum above 1 may not, and is never reached.
    let needed = u128::from(quorum.micros().unsigned_abs()).saturating_mul(total);
    let reached = carried * u128::from(scale) >= needed;
    let enough = counted.len() as u64 >= u64::from(participation);
    let outcome = match leading {
        _ if !enough => Outcome::Unresolved(Lack::Participation),
        Some(_) if !reached => Outcome::Unresolved(Lack::Quorum),
        Some(outcome) => outcome,
        None => Outcome::Unresolved(Lack::Tie),
    };
    let counted = BoundedList::new(counted).expect("cut to the limit above");
    Tally { counted, void, carried, total, outcome }
}

/// 1 and up to a half more: a quarter of openness and conscientiousness each, so that whoever calls itself perfect
/// gains less over the others than it could by being two.
// spec: CONFLICT-5
fn of_character(personality: &Personality) -> u64 {
    let part = |value: Fixed| value.micros().clamp(0, Fixed::SCALE).unsigned_abs() / 4;
    UNIT + part(personality.openness) + part(personality.conscientiousness)
}

/// Hands out one unit a voice, in shares of its trust, rounded down; what is left stays with the voice.
// spec: CONFLICT-5
fn influence(voices: &[Voice]) -> Vec<u64> {
    let mut weights = vec![0u64; voices.len()];
    for (own, voice) in voices.iter().enumerate() {
        let trusted = |other: usize| {
            let trust = voice.trust.get(other).map_or(0, |trust| trust.micros());
            if other == own || trust <= 0 { 0 } else { trust.unsigned_abs() }
        };
        let all: u128 = (0..voices.len()).map(|other| u128::from(trusted(other))).sum();
        let mut left = UNIT;
        for (other, weight) in weights.iter_mut().enumerate() {
            if let Some(share) = (u128::from(UNIT) * u128::from(trusted(other))).checked_div(all) {
                let share = u64::try_from(share).unwrap_or(left).min(left);
                *weight += share;
                left -= share;
            }
        }
        weights[own] += left;
    }
    weights
}

/// The heaviest of three answers, if one is: the first claim, the second, neither. Marks those who said so.
// spec: CONFLICT-4
fn heaviest(counted: &mut [Counted]) -> Option<Outcome> {
    let answers =
        [(Position::First, Outcome::First), (Position::Second, Outcome::Second), (Position::Neither, Outcome::Neither)];
    let weight = |position: Position| -> u128 {
        counted.iter().filter(|voice| voice.position == position).map(|voice| u128::from(voice.weight)).sum()
    };
    let weights = answers.map(|(position, _)| weight(position));
    let most = weights.into_iter().max()?;
    let mut leading = answers.into_iter().zip(weights).filter(|(_, weight)| *weight == most);
    let (Some(((position, outcome), _)), None) = (leading.next(), leading.next()) else { return None };
    counted.iter_mut().for_each(|voice| voice.carried = voice.position == position);
    Some(outcome)
}

/// The least value at which half of the weight or more is reached.
fn median(mut values: Vec<(u128, u64)>) -> Option<u128> {
    values.sort_unstable();
    let total: u128 = values.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let mut sum = 0u128;
    values.into_iter().find_map(|(value, weight)| {
        sum += u128::from(weight);
        (weight > 0 && sum * 2 >= total).then_some(value)
    })
}

/// The mean of the values within three median deviations of the median, all weighed; marks whose they are.
// spec: CONFLICT-6
fn mean(counted: &mut [Counted]) -> Option<Outcome> {
    // Values count from the least number there is, so that none is negative.
    let least = i128::from(i64::MIN);
    let raised = |voice: &Counted| match voice.position {
        Position::Value(value) => u128::try_from(i128::from(value.micros()) - least).ok(),
        _ => None,
    };
    let said = |counted: &[Counted], of: &dyn Fn(u128) -> u128| {
        counted.iter().filter_map(|voice| Some((of(raised(voice)?), voice.weight))).collect::<Vec<_>>()
    };
    let middle = median(said(counted, &|value| value))?;
    let spread = median(said(counted, &|value| value.abs_diff(middle)))?;
    for voice in counted.iter_mut() {
        voice.carried = raised(voice).is_some_and(|value| value.abs_diff(middle) <= DEVIATIONS * spread);
    }
    let inliers =
        || counted.iter().filter(|voice| voice.carried).filter_map(|voice| Some((raised(voice)?, voice.weight)));
    let low = inliers().map(|(value, _)| value).min()?;
    let total: u128 = inliers().map(|(_, weight)| u128::from(weight)).sum();
    // Whole parts and remainders apart: each product fits 128 bits, their sum might not.
    let (mut whole, mut rest) = (0u128, 0u128);
    for (value, weight) in inliers() {
        let product = (value - low) * u128::from(weight);
        whole += product.checked_div(total)?;
        rest += product.checked_rem(total)?;
    }
    let mean = low + whole + rest.checked_div(total)?;
    let micros = i128::try_from(mean).ok()? + least;
    i64::try_from(micros).ok().map(|micros| Outcome::Value(Fixed::from_micros(micros)))
}
