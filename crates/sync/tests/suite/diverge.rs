//! Where two large chains part, over real stores: how many questions it takes.

use crate::peer::Peer;
use keelstone_codec::{Height, Key, Namespace, Value, splitmix64};
use keelstone_store::files::{Directory, Files, MemoryFiles};
use keelstone_store::{Options, Store};
use keelstone_sync::consistency::{QUESTIONS_MAX, first_difference, first_height};
use keelstone_sync::peers::Version;
use keelstone_tree::Blake3;
use std::sync::Arc;

const HEIGHTS: u64 = 1_000;
/// Above so many entries the stores are on the disk.
const IN_MEMORY_MAX: u64 = 1_000_000;

fn name() -> Namespace {
    Namespace::new("accounts").unwrap()
}

fn key(number: u64) -> Key {
    let mut seed = number;
    Key::new(splitmix64(&mut seed).to_be_bytes()).unwrap()
}

fn value(number: u64) -> Value {
    Value::new(number.to_be_bytes().to_vec()).unwrap()
}

/// A chain of so many entries from its first height on and 1,000 heights, in which from `other` on one of the entries,
/// that no block touches, is another: height and number.
fn chain(files: Arc<dyn Files>, count: u64, other: Option<(u64, u64)>) -> Store<Blake3> {
    let mut keys: Vec<(Key, u64)> = (0..count).map(|number| (key(number), number)).collect();
    keys.sort_unstable();
    let mut building = Store::<Blake3>::build(files, Options::default(), Height(1)).unwrap();
    for (key, number) in &keys {
        building.push(&name(), key, &value(*number)).unwrap();
    }
    drop(keys);
    let store = building.finish_as_found().unwrap();
    for height in 2..=HEIGHTS {
        let mut writes = vec![(name(), key(height % 100), Some(value(height)))];
        if let Some((_, number)) = other.filter(|(from, _)| *from == height) {
            writes.push((name(), key(number), Some(value(u64::MAX))));
        }
        store.commit(Height(height), writes.into_iter().collect()).unwrap();
    }
    store
}

/// spec: CHECK-5, CHECK-6. One key among 100,000 and one height among 1,000, over real stores and the real server: found in
/// fewer questions than any search may ask, both together. `cargo xtask diverge` has ten million keys.
#[test]
fn one_key_among_many_and_one_height_among_a_thousand_take_at_most_64_questions() {
    let count = golden::count("KEELSTONE_DIVERGE_ENTRIES", 100_000);
    let directory = tempfile::tempdir().unwrap();
    let files = |name: &str| -> Arc<dyn Files> {
        match count > IN_MEMORY_MAX {
            true => Arc::new(Directory::new(directory.path().join(name)).unwrap()),
            false => Arc::new(MemoryFiles::new()),
        }
    };
    let (at, number) = (HEIGHTS / 3, 100 + count / 3);
    let ours = chain(files("ours"), count, None);
    let mut peer = Peer::of(chain(files("theirs"), count, Some((at, number))));
    let mut own = |height| Ok(ours.view_at(height).ok().map(|view| view.root()));
    let (parting, heights) = first_height((Height(1), Height(HEIGHTS)), &mut own, &mut peer).unwrap();
    assert_eq!((parting.ours.height, parting.last_same.unwrap().height), (Height(at), Height(at - 1)));
    let view = ours.view_at(parting.ours.height).unwrap();
    let theirs = Version { height: parting.ours.height, root: parting.theirs };
    let (found, keys) = first_difference::<Blake3, _>(&view, theirs, &mut peer).unwrap();
    assert_eq!((found.namespace, &found.key), (name(), &key(number)));
    assert!(found.ours.is_some() && found.theirs.is_some());
    println!("{count} entries, {HEIGHTS} heights: {heights} questions for the height, {keys} for the key");
    assert!(heights + keys <= QUESTIONS_MAX);
}
