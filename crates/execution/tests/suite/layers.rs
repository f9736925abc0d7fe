//! Drafts against a model: layered changes over a state read like one map.

use crate::common::*;
use keelstone_codec::{Key, Value};
use keelstone_execution::{
    BlockDraft, Caller, Context, Decode, Denied, Draft, Encode, Limits, Map, RawKey, Registry, Transition, denied,
    namespace, transition,
};
use keelstone_tree::{Diff, KeyRange, Read};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Raw keys, so that the model and the state share them.
#[namespace("raw")]
pub(crate) struct Raw {
    #[at("")]
    pub(crate) entries: Map<RawKey, u8>,
}

/// What a script may do. A scan returns what it saw.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) enum Step {
    Put(Vec<u8>, u8),
    Delete(Vec<u8>),
    Get(Vec<u8>),
    Scan {
        start: Vec<u8>,
        end: Vec<u8>,
        back: bool,
    },
    /// Deletes every entry of a range while scanning it.
    Clear {
        start: Vec<u8>,
        end: Vec<u8>,
    },
    Fail,
    /// Runs steps that may fail by themselves; what they saw is of interest only if they did not.
    Attempt(Vec<Step>),
}

#[transition("raw.script/1")]
pub(crate) struct Script {
    steps: Vec<Step>,
}

type Seen = Vec<Vec<(Vec<u8>, u8)>>;

impl Transition<Raw> for Script {
    type Output = Seen;

    fn apply(&self, raw: &mut Draft<Raw>, cx: &mut Context) -> Result<Seen, Denied> {
        run_steps(&self.steps, raw, cx)
    }
}

fn run_steps(steps: &[Step], raw: &mut Draft<Raw>, cx: &mut Context) -> Result<Seen, Denied> {
    let key = |bytes: &[u8]| RawKey::new(bytes);
    let mut seen = Seen::new();
    for step in steps {
        match step {
            Step::Put(at, value) => raw.entries.insert(&key(at)?, value)?,
            Step::Delete(at) => drop(raw.entries.remove(&key(at)?)?),
            Step::Get(at) => {
                let found = raw.entries.get(&key(at)?)?;
                seen.push(found.map(|value| (at.clone(), value)).into_iter().collect());
            }
            Step::Scan { start, end, back } => {
                let range = (key(start)?, key(end)?);
                let mut found = Vec::new();
                for entry in raw.entries.range(range.0..range.1) {
                    let (at, value) = entry?;
                    found.push((at.to_vec(), value));
                }
                if *back {
                    found = Vec::new();
                    for entry in raw.entries.iter_back() {
                        let (at, value) = entry?;
                        found.push((at.to_vec(), value));
                    }
                }
                seen.push(found);
            }
            Step::Clear { start, end } => {
                let range = key(start)?..=key(end)?;
                let found: Result<Vec<_>, _> = raw.entries.range(range).collect();
                for (at, _) in found? {
                    raw.entries.remove(&at)?;
                }
            }
            Step::Fail => return Err(denied!("as asked")),
            Step::Attempt(steps) => {
                if let Ok(found) = cx.attempt(|cx| run_steps(steps, raw, cx))? {
                    seen.extend(found);
                }
            }
        }
    }
    Ok(seen)
}

type Model = BTreeMap<Vec<u8>, u8>;

fn run_model(model: &mut Model, steps: &[Step]) -> Option<Seen> {
    let mut seen = Seen::new();
    let between = |model: &Model, start: &Vec<u8>, end: &Vec<u8>| -> Vec<(Vec<u8>, u8)> {
        model.iter().filter(|(key, _)| *key >= start && *key < end).map(|(key, value)| (key.clone(), *value)).collect()
    };
    for step in steps {
        match step {
            Step::Put(at, value) => drop(model.insert(at.clone(), *value)),
            Step::Delete(at) => drop(model.remove(at)),
            Step::Get(at) => seen.push(model.get(at).map(|value| (at.clone(), *value)).into_iter().collect()),
            Step::Scan { start, end, back: false } => seen.push(between(model, start, end)),
            Step::Scan { .. } => seen.push(model.iter().rev().map(|(key, value)| (key.clone(), *value)).collect()),
            Step::Clear { start, end } => model.retain(|key, _| key < start || key > end),
            Step::Fail => return None,
            Step::Attempt(steps) => {
                let mut after = model.clone();
                if let Some(found) = run_model(&mut after, steps) {
                    (*model, seen) = (after, [seen, found].concat());
                }
            }
        }
    }
    Some(seen)
}

fn key_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0x80), Just(0xff)], 1..4)
}

/// Attempts among steps, up to three within one another.
fn attempts(step: impl Strategy<Value = Step> + 'static) -> impl Strategy<Value = Step> {
    step.prop_recursive(3, 16, 5, |step| prop::collection::vec(step, 0..5).prop_map(Step::Attempt))
}

fn step() -> impl Strategy<Value = Step> {
    attempts(prop_oneof![
        6 => (key_bytes(), any::<u8>()).prop_map(|(at, value)| Step::Put(at, value)),
        4 => key_bytes().prop_map(Step::Delete),
        3 => key_bytes().prop_map(Step::Get),
        3 => (key_bytes(), key_bytes(), any::<bool>()).prop_map(|(start, end, back)| Step::Scan { start, end, back }),
        1 => (key_bytes(), key_bytes()).prop_map(|(start, end)| Step::Clear { start, end }),
        1 => Just(Step::Fail),
    ])
}

/// A step among few keys and values, so that keys are often back where they were.
fn narrow() -> impl Strategy<Value = Step> {
    let any = || prop::collection::vec(0u8..3, 1..3);
    attempts(prop_oneof![
        4 => (any(), 0u8..2).prop_map(|(at, value)| Step::Put(at, value)),
        3 => any().prop_map(Step::Delete),
        3 => (any(), any(), proptest::bool::ANY).prop_map(|(start, end, back)| Step::Scan { start, end, back }),
        1 => (any(), any()).prop_map(|(start, end)| Step::Clear { start, end }),
        1 => Just(Step::Fail),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// spec: EXEC-13, EXEC-15. However what came before is undone, a bundle costs what it costs in order: the block's changes are
    /// adopted, with those of bundles that are taken out again, and what every scan passes is what it passes where those never were.
    #[test]
    fn what_is_adopted_and_taken_out_again_leaves_no_trace_in_gas(
        start in prop::collection::btree_map(prop::collection::vec(0u8..3, 1..3), any::<bool>(), 0..12),
        batch in prop::collection::btree_map(prop::collection::vec(0u8..3, 1..3), prop::option::of(any::<bool>()), 0..12),
        groups in prop::collection::vec(prop::collection::vec(prop::collection::vec(narrow(), 0..8), 1..5), 2..4),
    ) {
        let registry = Registry::new().with::<Raw, Script>();
        let mut state = State::new();
        let raw = space("raw");
        let value = |value: bool| Value::new(vec![u8::from(value)]).unwrap();
        let write = |(at, held): (&Vec<u8>, &bool)| {
            (raw.clone(), Key::new(at.as_slice()).unwrap(), Some(value(*held)))
        };
        state.apply(&start.iter().map(write).collect::<Diff>());
        let begin = || {
            let mut draft = BlockDraft::begin(&registry, state.clone(), block(1));
            for (at, held) in &batch {
                draft.put(&raw, Key::new(at.as_slice()).unwrap(), held.map(value)).unwrap();
            }
            draft
        };
        let run = |draft: &mut BlockDraft<'_>, steps: &[Step]| {
            let bundle = bundle(vec![op(&Script { steps: steps.to_vec() })]);
            let (ran, changes) =
                draft.apart(|draft| draft.execute(Caller::root(key(1)), &bundle, Limits::default()).unwrap());
            let gas = match ran {
                Ok(finished) => finished.gas_used,
                Err(failed) => failed.gas_used,
            };
            draft.adopt(changes.clone());
            (gas, changes)
        };
        let mut shared = begin();
        for group in &groups {
            let mut own = begin();
            let mut done = Vec::new();
            for steps in group {
                let found = run(&mut shared, steps);
                prop_assert_eq!(&found, &run(&mut own, steps));
                done.push(found.1);
            }
            prop_assert_eq!(shared.changes(), own.changes());
            done.iter().rev().for_each(|changes| shared.adopt(changes.inverse()));
            prop_assert_eq!(shared.changes(), begin().changes());
        }
    }

    /// spec: EXEC-2, EXEC-5, EXEC-24. Bundles of scripts in one block, some of them failing, over a state that is not empty:
    /// every read and scan sees what the model holds, and the block's changes take the state to the model.
    #[test]
    fn layered_drafts_equal_a_model(
        start in prop::collection::btree_map(key_bytes(), any::<u8>(), 0..12),
        bundles in prop::collection::vec(prop::collection::vec(prop::collection::vec(step(), 0..8), 1..4), 1..5),
    ) {
        let registry = Registry::new().with::<Raw, Script>();
        let mut state = State::new();
        let raw = space("raw");
        let write = |(key, value): (&Vec<u8>, &u8)| {
            (raw.clone(), Key::new(key.as_slice()).unwrap(), Some(Value::new(vec![*value]).unwrap()))
        };
        state.apply(&start.iter().map(write).collect::<Diff>());

        let mut model = start;
        let mut draft = BlockDraft::begin(&registry, state.clone(), block(1));
        for scripts in bundles {
            let operations = scripts.iter().map(|steps| op(&Script { steps: steps.clone() })).collect();
            let result = draft.execute(Caller::root(key(1)), &bundle(operations), Limits::default()).unwrap();
            let mut after = model.clone();
            let expected: Option<Vec<Seen>> = scripts.iter().map(|steps| run_model(&mut after, steps)).collect();
            match (&expected, result) {
                (Some(expected), Ok(finished)) => {
                    let seen: Vec<Seen> = finished
                        .outcomes
                        .iter()
                        .map(|outcome| keelstone_codec::Decode::from_bytes(&outcome.result).unwrap())
                        .collect();
                    prop_assert_eq!(&seen, expected);
                    model = after;
                }
                (None, Err(failed)) => prop_assert_eq!(failed.kind.code(), 3, "{}", failed),
                (_, result) => prop_assert!(false, "{:?}", result.map(|_| ())),
            }
            // The draft, read as a state, holds what the model holds, in both directions.
            for range in [KeyRange::all(), KeyRange::all().reversed()] {
                let reverse = range.reverse;
                let found: Vec<(Vec<u8>, u8)> =
                    draft.scan(&raw, range).map(Result::unwrap).map(|(key, value)| (key.to_vec(), value[0])).collect();
                let mut held: Vec<(Vec<u8>, u8)> = model.iter().map(|(key, value)| (key.clone(), *value)).collect();
                if reverse {
                    held.reverse();
                }
                prop_assert_eq!(found, held);
            }
        }
        state.apply(&draft.finish().to_diff());
        let found: Model =
            state.scan(&raw, KeyRange::all()).map(Result::unwrap).map(|(key, value)| (key.to_vec(), value[0])).collect();
        prop_assert_eq!(found, model);
    }
}
