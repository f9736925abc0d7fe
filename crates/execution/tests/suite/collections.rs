//! Typed collections: where they put things, and what they give back.

use crate::common::*;
use keelstone_codec::{Encode, Fixed, OrderedKey, Text};
use keelstone_execution::{
    BlockDraft, Item, Limits, Log, Map, OrderedKey as DeriveKey, RawKey, Registry, Sequence, Set, View, World,
    namespace,
};
use keelstone_execution::{Decode as DeriveDecode, Encode as DeriveEncode};
use keelstone_tree::{KeyRange, Read};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, DeriveKey, DeriveEncode, DeriveDecode)]
pub(crate) struct Id(u64);

#[namespace("shelf")]
pub(crate) struct Shelf {
    pub(crate) ids: Sequence<Id>,
    pub(crate) by_pair: Map<(u16, String), Fixed>,
    pub(crate) log: Log<Text<8>>,
    pub(crate) members: Set<Id>,
    #[at("old")]
    pub(crate) renamed: Item<u8>,
}

fn draft<T>(edit: impl FnOnce(&mut Shelf) -> Result<T, keelstone_execution::Stop>) -> (T, State) {
    let registry = Registry::new();
    let mut draft = BlockDraft::begin(&registry, State::new(), block(1));
    let result = draft.edit(edit).unwrap();
    let mut state = State::new();
    state.apply(&draft.finish().to_diff());
    let _ = Limits::default();
    (result, state)
}

/// spec: EXEC-18. Single values at the place, entries behind the place and a slash.
#[test]
fn keys_are_the_place_and_the_entrys_own() {
    let ((), state) = draft(|shelf| {
        assert_eq!(shelf.ids.next()?, Id(1));
        assert_eq!(shelf.ids.next()?, Id(2));
        shelf.by_pair.insert(&(258, "ab".to_owned()), &Fixed::ONE)?;
        shelf.log.push(&Text::new("first").unwrap())?;
        shelf.members.insert(&Id(7))?;
        shelf.renamed.set(&3)
    });
    let found: Vec<(Vec<u8>, Vec<u8>)> = state
        .scan(&space("shelf"), KeyRange::all())
        .map(Result::unwrap)
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect();
    let entry = |key: &[u8], value: Vec<u8>| (key.to_vec(), value);
    assert_eq!(
        found,
        [
            entry(b"by_pair/\x01\x02ab\0\0", Fixed::ONE.to_bytes()),
            entry(b"ids", 2u64.to_bytes()),
            entry(b"log", 1u64.to_bytes()),
            entry(b"log/\0\0\0\0\0\0\0\0", b"\x05\0\0\0first".to_vec()),
            entry(b"members/\0\0\0\0\0\0\0\x07", vec![1]),
            entry(b"old", vec![3]),
        ]
    );
    let view = View::<Shelf>::over(state);
    assert_eq!(view.ids.last().unwrap(), 2);
    assert_eq!(view.by_pair.get(&(258, "ab".to_owned())).unwrap(), Some(Fixed::ONE));
    assert_eq!(view.log.get(0).unwrap(), Some(Text::new("first").unwrap()));
    assert_eq!(view.renamed.get().unwrap(), Some(3));
}

#[test]
fn collections_do_what_their_names_say() {
    draft(|shelf| {
        for (number, name) in [(1, "a"), (1, "b"), (2, "a"), (3, "c")] {
            shelf.by_pair.insert(&(number, name.to_owned()), &Fixed::from_int(i64::from(number)).unwrap())?;
        }
        let keys = |entries: keelstone_execution::Iter<'_, (u16, String), Fixed>| {
            entries
                .map(|entry| entry.map(|((number, name), _)| format!("{number}{name}")))
                .collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(keys(shelf.by_pair.iter())?, ["1a", "1b", "2a", "3c"]);
        assert_eq!(keys(shelf.by_pair.iter_back())?, ["3c", "2a", "1b", "1a"]);
        assert_eq!(keys(shelf.by_pair.prefix(&1u16))?, ["1a", "1b"]);
        let (low, high) = ((1, "b".to_owned()), (2, "a".to_owned()));
        assert_eq!(keys(shelf.by_pair.range(low.clone()..high.clone()))?, ["1b"]);
        assert_eq!(keys(shelf.by_pair.range(low.clone()..=high.clone()))?, ["1b", "2a"]);
        use std::ops::Bound::{Excluded, Unbounded};
        assert_eq!(keys(shelf.by_pair.range((Excluded(low.clone()), Unbounded)))?, ["2a", "3c"]);
        assert_eq!(keys(shelf.by_pair.range(high..low.clone()))?, [] as [&str; 0]);
        assert_eq!(shelf.by_pair.first()?.unwrap().0, (1, "a".to_owned()));
        assert_eq!(shelf.by_pair.last()?.unwrap().0, (3, "c".to_owned()));
        assert_eq!(shelf.by_pair.remove(&low)?, Fixed::from_int(1));
        assert_eq!((shelf.by_pair.remove(&low)?, shelf.by_pair.contains(&low)?), (None, false));

        assert!(shelf.members.insert(&Id(5))? && shelf.members.insert(&Id(4))? && !shelf.members.insert(&Id(5))?);
        assert_eq!(shelf.members.iter().collect::<Result<Vec<_>, _>>()?, [Id(4), Id(5)]);
        assert_eq!(shelf.members.range(Id(5)..).collect::<Result<Vec<_>, _>>()?, [Id(5)]);
        assert!(shelf.members.remove(&Id(4))? && !shelf.members.remove(&Id(4))? && !shelf.members.contains(&Id(4))?);

        let word = |text: &str| Text::<8>::new(text).unwrap();
        assert!(shelf.log.is_empty()?);
        assert_eq!((shelf.log.push(&word("a"))?, shelf.log.push(&word("b"))?, shelf.log.len()?), (0, 1, 2));
        assert_eq!(shelf.log.iter().collect::<Result<Vec<_>, _>>()?, [word("a"), word("b")]);
        assert_eq!(shelf.log.iter_back().collect::<Result<Vec<_>, _>>()?, [word("b"), word("a")]);
        assert_eq!(shelf.log.get(2)?, None);

        assert_eq!((shelf.renamed.get_or_default()?, shelf.renamed.take()?), (0, None));
        shelf.renamed.set(&9)?;
        assert_eq!((shelf.renamed.take()?, shelf.renamed.get()?), (Some(9), None));
        Ok(())
    });
}

/// A scan holds nothing back: other collections of the namespace can be written between two of its steps.
#[test]
fn one_collection_is_written_while_another_is_scanned() {
    let (copied, _) = draft(|shelf| {
        for id in 1..=3 {
            shelf.members.insert(&Id(id))?;
        }
        for id in shelf.members.iter() {
            shelf.by_pair.insert(&(1, id?.0.to_string()), &Fixed::ONE)?;
        }
        shelf.by_pair.iter().map(|entry| Ok(entry?.0.1)).collect::<Result<Vec<_>, _>>()
    });
    assert_eq!(copied, ["1", "2", "3"]);
}

#[test]
fn a_raw_key_is_its_bytes() {
    let key = RawKey::new(&b"currency.balances:alice"[..]).unwrap();
    let mut bytes = Vec::new();
    key.encode_key(&mut bytes);
    assert_eq!(bytes, b"currency.balances:alice");
    assert!(RawKey::new(Vec::new()).is_err() && RawKey::new(vec![0; 256]).is_err());
}

#[test]
fn a_world_lists_its_namespaces_and_collections() {
    let spaces = Both::spaces();
    assert_eq!(spaces.iter().map(|space| space.name).collect::<Vec<_>>(), ["bank", "other"]);
    let places: Vec<_> = spaces[0].collections.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, ["balances", "notes", "total", "ids", "closed", "history"]);
}
