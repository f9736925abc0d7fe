//! Tests of proofs, verification and witnesses, against the naive reference and against forgers.
#![expect(clippy::cast_possible_truncation, reason = "lengths in tests are small")]

mod exhaustive;
mod figures;
mod forged;
mod hostile;
mod ics23;
mod paged;
mod properties;
mod vectors;

use crate::{
    Blake3, Diff, Grown, Hasher, KeyRange, Proof, ProofError, ProofLimits, Query, Sha256, Verified, prove, prove_bytes,
    reference,
};
use keelstone_codec::{Key, Namespace, Root, Value};
use std::collections::BTreeMap;

pub(super) type State = BTreeMap<Namespace, BTreeMap<Key, Value>>;

pub(super) fn ns(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

pub(super) fn key(bytes: &[u8]) -> Key {
    Key::new(bytes).unwrap()
}

pub(super) fn value(bytes: &[u8]) -> Value {
    Value::new(bytes.to_vec()).unwrap()
}

/// A state of `(namespace, key, value)`.
pub(super) fn state(entries: &[(&str, &[u8], &[u8])]) -> State {
    let mut state = State::new();
    for (name, k, v) in entries {
        state.entry(ns(name)).or_default().insert(key(k), value(v));
    }
    state
}

/// What the naive reference says of a state.
pub(super) fn reference_root<H: Hasher>(state: &State) -> Root {
    let plain = state.iter().map(|(name, entries)| {
        let entries = entries.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        (name.as_str().to_owned(), entries)
    });
    reference::root::<H>(&plain.collect())
}

/// Makes a proof, sends it as bytes, and verifies it.
pub(super) fn verified<H: Hasher>(state: &State, queries: &[Query]) -> Verified<H> {
    let tree = Grown::new::<H>(state);
    let sent = prove(&tree, queries).unwrap().encode();
    verify::<H>(&sent, tree.root(), queries).unwrap()
}

pub(super) fn verify<H: Hasher>(bytes: &[u8], root: Root, queries: &[Query]) -> Result<Verified<H>, ProofError> {
    Proof::decode(bytes)?.verify(root, queries, &ProofLimits::default())
}

pub(super) fn apply_plainly(state: &mut State, diff: &Diff) {
    for (namespace, write) in diff.iter() {
        let entries = state.entry(namespace.clone()).or_default();
        match &write.value {
            Some(value) => drop(entries.insert(write.key.clone(), value.clone())),
            None => drop(entries.remove(&write.key)),
        }
    }
    state.retain(|_, entries| !entries.is_empty());
}

/// A comb: one long key, and at each of `depth` bits one that parts from it there.
pub(super) fn comb(depth: usize) -> State {
    let mut entries = BTreeMap::new();
    let spine = vec![0u8; 255];
    entries.insert(key(&spine), value(b"spine"));
    // Bit 0 never parts keys: every key has a first byte.
    for bit in 1..=depth {
        let (position, within) = (bit / 9, bit % 9);
        let mut tooth = spine[..position].to_vec();
        if within > 0 {
            tooth.push(0x80 >> (within - 1));
        }
        entries.insert(key(&tooth), value(b"tooth"));
    }
    State::from([(ns("comb"), entries)])
}

/// How often a property is tried: `KEELSTONE_TEST_SCALE` multiplies.
pub(super) fn cases(default: u32) -> u32 {
    default * u32::try_from(golden::count("KEELSTONE_TEST_SCALE", 1)).expect("a small number")
}
