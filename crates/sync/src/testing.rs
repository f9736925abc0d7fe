//! States in memory for the tests of this crate.

use keelstone_codec::{Key, Namespace, Value};
use keelstone_tree::HashKind;
use proptest::prelude::*;
use std::collections::BTreeMap;

pub(crate) type State = BTreeMap<Namespace, BTreeMap<Key, Value>>;

pub(crate) fn name(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

/// So many entries in namespaces of very different sizes.
pub(crate) fn state(count: u32) -> State {
    let mut state = State::new();
    for number in 0..count {
        let hash = HashKind::Blake3.hash(&number.to_le_bytes());
        let name = name(&format!("n{}", u32::from(hash.0[0]).pow(2) / 4096));
        let (key, value) = (&hash.0[1..3 + usize::from(hash.0[3] % 20)], vec![hash.0[4]; 1 + number as usize % 90]);
        state.entry(name).or_default().insert(Key::new(key).unwrap(), Value::new(value).unwrap());
    }
    state
}

/// States with keys that are prefixes of others, in namespaces whose names are too.
pub(crate) fn states() -> impl Strategy<Value = State> {
    let byte = prop_oneof![Just(0u8), Just(0x80), Just(0xff), any::<u8>()];
    let key = prop::collection::vec(byte, 1..6).prop_map(|key| Key::new(key).unwrap());
    let value = prop::collection::vec(any::<u8>(), 1..200).prop_map(|value| Value::new(value).unwrap());
    let entries = prop_oneof![
        3 => prop::collection::btree_map(key.clone(), value.clone(), 1..4),
        1 => prop::collection::btree_map(key, value, 1..150),
    ];
    prop::collection::btree_map("[a-c]{1,4}", entries, 0..12)
        .prop_map(|spaces| spaces.into_iter().map(|(name, entries)| (self::name(&name), entries)).collect())
}
