//! Typed collections: where they put things, and what they give back.

use crate::common::*;
use keelstone_codec::{Encode, Fixed, Namespace, OrderedKey, Text, Value};
use keelstone_execution::{
    BlockDraft, Caller, Context, Denied, Draft, FailureKind, Item, Limits, Log, Map, OrderedKey as DeriveKey, RawKey,
    Registry, Sequence, Set, Stop, Transition, View, World, cost, namespace, transition,
};
use keelstone_execution::{Decode as DeriveDecode, Encode as DeriveEncode};
use keelstone_tree::{KeyRange, Read, ReadError, Scan};
use std::cell::Cell;
use std::rc::Rc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, DeriveKey, DeriveEncode, DeriveDecode)]
pub(crate) struct Id(u64);

#[namespace("shelf")]
pub(crate) struct Shelf {
    pub(crate) ids: Sequence<Id>,
    pub(crate) by_pair: Map<(u16, String), Fixed>,
    pub(crate) log: Log<Text<8>>,
    pub(crate) members: Set<Id>,
    pub(crate) pairs: Set<(u8, u8)>,
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
        assert_eq!(keys(shelf.by_pair.range_back(low.clone()..))?, ["3c", "2a", "1b"]);
        assert_eq!(keys(shelf.by_pair.range_back((3, "c".to_owned())..low.clone()))?, [] as [&str; 0]);
        assert_eq!(keys(shelf.by_pair.prefix_back(&1u16))?, ["1b", "1a"]);
        assert_eq!(shelf.by_pair.get_or_default(&(9, String::new()))?, Fixed::ZERO);
        assert!(!shelf.by_pair.is_empty()?);
        assert_eq!(shelf.by_pair.first()?.unwrap().0, (1, "a".to_owned()));
        assert_eq!(shelf.by_pair.last()?.unwrap().0, (3, "c".to_owned()));
        assert_eq!(shelf.by_pair.remove(&low)?, Fixed::from_int(1));
        assert_eq!((shelf.by_pair.remove(&low)?, shelf.by_pair.contains(&low)?), (None, false));

        assert!(shelf.members.is_empty()? && shelf.members.first()?.is_none() && shelf.members.last()?.is_none());
        assert!(shelf.members.insert(&Id(5))? && shelf.members.insert(&Id(4))? && !shelf.members.insert(&Id(5))?);
        assert_eq!(shelf.members.iter().collect::<Result<Vec<_>, _>>()?, [Id(4), Id(5)]);
        assert_eq!(shelf.members.range(Id(5)..).collect::<Result<Vec<_>, _>>()?, [Id(5)]);
        assert_eq!(shelf.members.iter_back().collect::<Result<Vec<_>, _>>()?, [Id(5), Id(4)]);
        assert_eq!(shelf.members.range_back(..Id(5)).collect::<Result<Vec<_>, _>>()?, [Id(4)]);
        assert_eq!((shelf.members.first()?, shelf.members.last()?), (Some(Id(4)), Some(Id(5))));
        for pair in [(1, 2), (1, 1), (2, 1)] {
            shelf.pairs.insert(&pair)?;
        }
        assert_eq!(shelf.pairs.prefix(&1u8).collect::<Result<Vec<_>, _>>()?, [(1, 1), (1, 2)]);
        assert_eq!(shelf.pairs.prefix_back(&1u8).collect::<Result<Vec<_>, _>>()?, [(1, 2), (1, 1)]);
        assert!(shelf.members.remove(&Id(4))? && !shelf.members.remove(&Id(4))? && !shelf.members.contains(&Id(4))?);

        let word = |text: &str| Text::<8>::new(text).unwrap();
        assert!(shelf.log.is_empty()? && shelf.log.first()?.is_none() && shelf.log.last()?.is_none());
        assert_eq!((shelf.log.push(&word("a"))?, shelf.log.push(&word("b"))?, shelf.log.len()?), (0, 1, 2));
        assert_eq!(shelf.log.iter().collect::<Result<Vec<_>, _>>()?, [word("a"), word("b")]);
        assert_eq!(shelf.log.iter_back().collect::<Result<Vec<_>, _>>()?, [word("b"), word("a")]);
        assert_eq!(
            (shelf.log.get(2)?, shelf.log.first()?, shelf.log.last()?),
            (None, Some(word("a")), Some(word("b")))
        );
        shelf.log.push(&word("c"))?;
        assert_eq!(shelf.log.range(1..).collect::<Result<Vec<_>, _>>()?, [word("b"), word("c")]);
        assert_eq!(shelf.log.range_back(..=1).collect::<Result<Vec<_>, _>>()?, [word("b"), word("a")]);

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

thread_local! {
    /// How many looks of [`LookIn`] were not refused. A draft runs on the thread of its test.
    static LOOKED: Cell<u64> = const { Cell::new(0) };
}

/// Opens scans that find nothing, each in one of the ways there are.
#[transition("shelf.look/1")]
struct LookIn {
    times: u64,
    way: u8,
}

impl Transition<Shelf> for LookIn {
    type Output = u64;

    fn apply(&self, shelf: &mut Draft<Shelf>, _: &mut Context) -> Result<u64, Denied> {
        let low = (1, String::new());
        for _ in 0..self.times {
            match self.way {
                0 => drop(shelf.by_pair.prefix(&7u16).next().transpose()?),
                1 => drop(shelf.by_pair.first()?),
                2 => drop(shelf.by_pair.last()?),
                3 => drop(shelf.by_pair.iter().next().transpose()?),
                4 => drop(shelf.by_pair.iter_back().next().transpose()?),
                5 => drop(shelf.by_pair.range(low.clone()..).next().transpose()?),
                6 => drop(shelf.members.iter().next().transpose()?),
                7 => drop(shelf.members.range(Id(5)..).next().transpose()?),
                8 => drop(shelf.log.iter().next().transpose()?),
                9 => drop(shelf.log.iter_back().next().transpose()?),
                // Not even asked for its first entry.
                _ => drop(shelf.by_pair.iter()),
            }
            LOOKED.set(LOOKED.get() + 1);
        }
        Ok(self.times)
    }
}

/// An empty state that counts how often the shelf is scanned in it.
#[derive(Clone, Default)]
struct Counting {
    scans: Rc<Cell<u64>>,
}

impl Read for Counting {
    fn get(&self, _: &Namespace, _: &[u8]) -> Result<Option<Value>, ReadError> {
        Ok(None)
    }
    fn scan<'a>(&'a self, namespace: &Namespace, _: KeyRange) -> Scan<'a> {
        if *namespace == space("shelf") {
            self.scans.set(self.scans.get() + 1);
        }
        Box::new(std::iter::empty())
    }
}

/// spec: EXEC-13. A scan is paid for when it is opened, also one that finds nothing: else a loop of them had no end.
#[test]
fn a_scan_that_finds_nothing_is_paid_for() {
    let registry = Registry::new().with::<Shelf, LookIn>();
    let run = |times: u64, way: u8| {
        LOOKED.set(0);
        let state = Counting::default();
        let mut draft = BlockDraft::begin(&registry, state.clone(), block(1));
        let bundle = bundle(vec![op(&LookIn { times, way })]);
        let limits = Limits { gas_max: 1_000_000, ..Limits::default() };
        (draft.execute(Caller::root(key(1)), &bundle, limits).unwrap(), state.scans.get())
    };
    for way in 0..=10 {
        let [none, two] = [0, 2].map(|times| run(times, way).0.unwrap().gas_used);
        assert!(two - none >= 2 * cost::SCAN_OPENED && two - none < 2 * cost::SCAN_OPENED + 200, "{way}: {two} {none}");
        if way == 10 {
            continue; // A loop that asks no scan for anything is not told that it was stopped.
        }
        let (endless, scans) = run(u64::MAX, way);
        let failed = endless.unwrap_err();
        assert!(matches!(failed.kind, FailureKind::Stopped(Stop::OutOfGas { limit: 1_000_000 })), "{way}: {failed}");
        assert_eq!(failed.gas_used, 1_000_000);
        assert!(scans > 400, "{way}: {scans}");
        assert_eq!(scans, LOOKED.get(), "{way}: the state was asked once it was refused");
    }
}

/// spec: EXEC-13. What bounds a scan is paid for by the byte: they are a caller's to choose.
#[test]
fn the_bounds_of_a_scan_are_paid_for() {
    let (_, state) = draft(|_| Ok(()));
    let registry = Registry::new().with::<Bounds, Between>();
    let gas = |long: u32| {
        let mut draft = BlockDraft::begin(&registry, state.clone(), block(1));
        let bundle = bundle(vec![op(&Between { long })]);
        draft.execute(Caller::root(key(1)), &bundle, Limits::default()).unwrap().unwrap().gas_used
    };
    assert_eq!(gas(20_000) - gas(10_000), 2 * 10_000 * cost::READ_BYTE);
}

#[namespace("bounds")]
struct Bounds {
    all: Map<String, u64>,
}

#[transition("bounds.between/1")]
struct Between {
    long: u32,
}

impl Transition<Bounds> for Between {
    type Output = ();

    fn apply(&self, bounds: &mut Draft<Bounds>, _: &mut Context) -> Result<(), Denied> {
        let [low, high] = ["a", "b"].map(|letter| letter.repeat(self.long as usize));
        assert!(bounds.all.range(low..high).next().is_none());
        Ok(())
    }
}
