//! Deltas between states in memory, honest and forged.

use crate::delta::{ApplyError, DELTA_WEIGHT_MAX, Delta, DeltaError};
use crate::testing::{State, name, state, states};
use keelstone_codec::{ChainId, Decode, DecodeError, Encode, Height, Key, Root, Value};
use keelstone_tree::{Blake3, Branch, Diff, Grown, HashKind, Opened, ReadError, Walk};
use proptest::prelude::*;
use std::cell::Cell;
use std::convert::Infallible;

const FROM: Height = Height(3);
const TO: Height = Height(9);

fn chain() -> ChainId {
    ChainId::new("test-1").unwrap()
}

fn between(older: &Grown, later: &Grown) -> Delta {
    let (from, to) = ((FROM, older.root()), (TO, later.root()));
    Delta::between(chain(), HashKind::Blake3, (older, from), (later, to)).unwrap()
}

fn applied(delta: &Delta, older: &Grown) -> Result<State, ApplyError<Infallible>> {
    let (mut out, mut last) = (State::new(), None);
    delta.entries(older, |namespace, key, value| {
        let this = Some((namespace.clone(), key.clone()));
        assert!(last < this, "entries come in order");
        last = this;
        out.entry(namespace.clone()).or_default().insert(key.clone(), Value::new(value.to_vec()).unwrap());
        Ok(())
    })?;
    Ok(out)
}

/// What differs, found by looking at everything.
fn naive(older: &State, later: &State) -> Diff {
    let all = |state: &State| -> std::collections::BTreeMap<_, _> {
        let flat = state.iter().flat_map(|(name, entries)| {
            entries.iter().map(move |(key, value)| ((name.clone(), key.clone()), value.clone()))
        });
        flat.collect()
    };
    let (older, later) = (all(older), all(later));
    let gone = older.keys().filter(|at| !later.contains_key(*at)).map(|(name, key)| (name.clone(), key.clone(), None));
    let new = later.iter().filter(|(at, value)| older.get(*at) != Some(value));
    gone.chain(new.map(|((name, key), value)| (name.clone(), key.clone(), Some(value.clone())))).collect()
}

fn changed(mut state: State, by: &State, drop: usize) -> State {
    for (name, entries) in by {
        let changed = state.entry(name.clone()).or_default();
        for (number, (key, value)) in entries.iter().enumerate() {
            if (number + drop).is_multiple_of(3) {
                changed.remove(key);
            } else {
                changed.insert(key.clone(), value.clone());
            }
        }
        if changed.is_empty() {
            state.remove(name);
        }
    }
    state
}

proptest! {
    /// spec: SNAP-17. A delta is what looking at everything finds, has one encoding, and turns the one state into the
    /// other, whatever the two have in common.
    #[test]
    fn a_delta_is_the_net_change_and_leads_from_one_state_to_the_other(
        older in states(), other in states(), is_near: bool, drop in 0usize..3,
    ) {
        let later = if is_near { changed(older.clone(), &other, drop) } else { other };
        let versions = (Grown::new::<Blake3>(&older), Grown::new::<Blake3>(&later));
        let delta = between(&versions.0, &versions.1);
        prop_assert_eq!(&delta.diff, &naive(&older, &later));
        prop_assert_eq!(applied(&delta, &versions.0).unwrap(), later);
        let back = between(&versions.1, &versions.0);
        prop_assert_eq!(applied(&back, &versions.1).unwrap(), older);
        prop_assert_eq!(Delta::from_bytes(&delta.to_bytes()), Ok(delta));
    }

    /// spec: SNAP-17. A delta with one bit changed is refused, or leads to another root, or is of something else.
    #[test]
    fn a_changed_delta_never_leads_to_the_same_root(
        older in states(), other in states(), at: prop::sample::Index, bit in 0..8u32,
    ) {
        let later = changed(older.clone(), &other, 1);
        let versions = (Grown::new::<Blake3>(&older), Grown::new::<Blake3>(&later));
        let delta = between(&versions.0, &versions.1);
        let mut bytes = delta.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let Ok(forged) = Delta::from_bytes(&bytes) else { return Ok(()) };
        prop_assert_eq!(forged.to_bytes(), bytes, "a second encoding was read");
        if forged.check(&chain(), HashKind::Blake3, delta.from, delta.to).is_err() {
            return Ok(());
        }
        match applied(&forged, &versions.0) {
            Ok(found) => prop_assert_ne!(Grown::new::<Blake3>(&found).root(), versions.1.root()),
            Err(error) => prop_assert!(matches!(error, ApplyError::Delta(DeltaError::NoChange { .. })), "{}", error),
        }
    }
}

/// Counts how many nodes are opened.
struct Counted<'v>(&'v Grown, Cell<usize>);

impl Walk for Counted<'_> {
    type Node = u32;
    fn top(&self) -> Result<Option<Branch<u32>>, ReadError> {
        self.0.top()
    }
    fn open<'n>(&'n self, node: &'n u32) -> Result<Opened<'n, u32>, ReadError> {
        self.1.set(self.1.get() + 1);
        self.0.open(node)
    }
    fn value(&self, node: &u32) -> Result<Value, ReadError> {
        self.0.value(node)
    }
}

/// spec: SNAP-17. What two versions share is stepped over.
#[test]
fn a_delta_costs_what_changed() {
    let older = state(20_000);
    let mut later = older.clone();
    let (key, value) = (Key::new(*b"new").unwrap(), Value::new(&b"new"[..]).unwrap());
    later.values_mut().next().unwrap().insert(key, value);
    let versions = (Grown::new::<Blake3>(&older), Grown::new::<Blake3>(&later));
    let counted = (Counted(&versions.0, Cell::new(0)), Counted(&versions.1, Cell::new(0)));
    let (from, to) = ((FROM, versions.0.root()), (TO, versions.1.root()));
    let delta = Delta::between(chain(), HashKind::Blake3, (&counted.0, from), (&counted.1, to)).unwrap();
    assert_eq!(delta.diff.len(), 1);
    assert!(counted.0.1.get() + counted.1.1.get() < 200, "{} and {} nodes", counted.0.1.get(), counted.1.1.get());
}

/// A delta of another chain, another start or another end is told apart before anything of it is used.
#[test]
fn a_delta_of_something_else_is_refused_by_what_differs() {
    let versions = (Grown::new::<Blake3>(&state(10)), Grown::new::<Blake3>(&state(12)));
    let delta = between(&versions.0, &versions.1);
    let (from, to) = (delta.from, delta.to);
    delta.check(&chain(), HashKind::Blake3, from, to).unwrap();
    let other_chain = ChainId::new("test-2").unwrap();
    let other_root = Root(HashKind::Blake3.hash(b"other"));
    for (error, word) in [
        (delta.check(&other_chain, HashKind::Blake3, from, to), "of chain"),
        (delta.check(&chain(), HashKind::Sha256, from, to), "hashed with"),
        (delta.check(&chain(), HashKind::Blake3, (FROM, other_root), to), "from"),
        (delta.check(&chain(), HashKind::Blake3, (Height(4), from.1), to), "from"),
        (delta.check(&chain(), HashKind::Blake3, from, (TO, other_root)), "to"),
        (delta.check(&chain(), HashKind::Blake3, from, (Height(10), to.1)), "to"),
    ] {
        assert!(error.unwrap_err().to_string().contains(word));
    }
    let backwards = Delta::between(chain(), HashKind::Blake3, (&versions.1, to), (&versions.0, from));
    assert!(matches!(backwards, Err(DeltaError::Heights { .. })));
    let encoded = Delta { from: to, to: from, ..delta.clone() }.to_bytes();
    assert!(matches!(Delta::from_bytes(&encoded), Err(DecodeError::Invalid { .. })));
    // No state has the last height there is.
    let last = |height| Delta::from_bytes(&Delta { to: (Height(height), to.1), ..delta.clone() }.to_bytes());
    assert!(last(u64::MAX - 1).is_ok());
    assert!(matches!(last(u64::MAX), Err(DecodeError::Invalid { .. })));
}

/// spec: SNAP-17. There is one delta between two versions: a write that changes nothing is refused.
#[test]
fn a_write_that_changes_nothing_is_refused() {
    let older = state(10);
    let versions = (Grown::new::<Blake3>(&older), Grown::new::<Blake3>(&state(12)));
    let honest = between(&versions.0, &versions.1);
    let (space, entries) = older.first_key_value().unwrap();
    let (key, value) = entries.first_key_value().unwrap();
    for (space, key, value) in [
        (space.clone(), key.clone(), Some(value.clone())),
        (space.clone(), Key::new(*b"absent").unwrap(), None),
        (name("absent"), key.clone(), None),
    ] {
        let bloated: Diff = [(space, key, value)].into_iter().collect();
        let delta = Delta { diff: honest.diff.clone().then(bloated), ..honest.clone() };
        let error = applied(&delta, &versions.0).unwrap_err();
        assert!(matches!(error, ApplyError::Delta(DeltaError::NoChange { .. })), "{error}");
    }
}

/// spec: SNAP-17. More than the limit is not made.
#[test]
fn a_delta_has_a_greatest_weight() {
    let value = Value::new(vec![1; 8 << 20]).unwrap();
    let entries = |count: u8| (0..count).map(|n| (Key::new([n]).unwrap(), value.clone())).collect();
    let empty = Grown::new::<Blake3>(&State::new());
    for (count, fits) in [(31, true), (32, false)] {
        let full = Grown::new::<Blake3>(&State::from([(name("big"), entries(count))]));
        let (from, to) = ((FROM, empty.root()), (TO, full.root()));
        match Delta::between(chain(), HashKind::Blake3, (&empty, from), (&full, to)) {
            Ok(delta) => assert!(fits && delta.diff.len() == 31),
            Err(error) => {
                assert!(!fits && matches!(error, DeltaError::TooLarge { limit: DELTA_WEIGHT_MAX }), "{error}")
            }
        }
    }
}
