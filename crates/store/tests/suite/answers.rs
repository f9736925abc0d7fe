//! Keys that are read again: whatever happened since, each view is told what it holds, and damage is still damage.

use crate::support::{Model, Random, TestStore, apply, count, namespace, put, random_diff, small};
use keelstone_codec::Height;
use keelstone_store::files::{Files, MemoryFiles};
use keelstone_store::{CheckLevel, Options, StoreError, View};
use keelstone_tree::{Blake3, Read};
use std::sync::Arc;

/// Reads keys, most of them not for the first time, of which every view says what its state says.
fn read(views: &[(View<Blake3>, Model)], random: &mut Random) {
    for _ in 0..6 {
        let (view, state) = &views[random.below(views.len() as u64) as usize];
        let name = ["a", "b", "cc"][random.below(3) as usize];
        let key: Vec<u8> = (0..1 + random.below(2)).map(|_| [0, 0x41, 0x80, 0xff][random.below(4) as usize]).collect();
        let found = view.get(&namespace(name), &key).unwrap().map(|value| value.to_vec());
        assert_eq!(found, state.get(name).and_then(|entries| entries.get(&key)).cloned(), "{view:?} {name} {key:?}");
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    // No room for what was read, for a little of it, for all.
    let value_cache_bytes = [0, 32 << 10, 1 << 20][random.below(3) as usize];
    let options = Options { value_cache_bytes, ..small() };
    let files = Arc::new(MemoryFiles::new());
    let mut store = TestStore::create(files.clone(), options.clone()).unwrap();
    // The state at every height, and views that are held, the last one always among them.
    let mut states = vec![Model::new()];
    store.commit(Height(0), random_diff(&mut random)).unwrap();
    states[0] = crate::support::contents(&store.view());
    let mut views = Vec::new();
    for _ in 0..150 {
        match random.below(20) {
            0 => {
                let to = random.below(states.len() as u64);
                store.rollback(Height(to)).unwrap();
                states.truncate(to as usize + 1);
            }
            1 => drop(store.compact(&mut |_| {}).unwrap()),
            2 => store.flush().unwrap(),
            3 if random.below(4) == 0 => {
                views.clear();
                store.close().unwrap();
                store = TestStore::open(files.clone(), options.clone()).unwrap();
            }
            4..7 => {
                let at = random.below(states.len() as u64);
                views.push((store.view_at(Height(at)).unwrap(), states[at as usize].clone()));
            }
            _ => {
                let diff = random_diff(&mut random);
                let mut state = states[states.len() - 1].clone();
                apply(&mut state, &diff);
                if random.below(3) == 0 {
                    let prepared = store.prepare(diff).unwrap();
                    store.commit_prepared(Height(states.len() as u64), prepared).unwrap();
                } else {
                    store.commit(Height(states.len() as u64), diff).unwrap();
                }
                states.push(state);
            }
        }
        if views.len() > 5 {
            views.swap_remove(random.below(5) as usize);
        }
        views.push((store.view(), states[states.len() - 1].clone()));
        read(&views, &mut random);
    }
    assert!(store.stats().value_cache_bytes <= value_cache_bytes, "{:?}", store.stats());
}

/// spec: STORE-5, STORE-6. Over commits, rollbacks to earlier heights, compactions, and views that outlive them.
#[test]
fn a_key_that_is_read_again_answers_as_its_version_does() {
    let first = count("KEELSTONE_SEED", 1);
    for seed in first..first + count("KEELSTONE_ANSWERS", 100) {
        println!("seed {seed}");
        run(seed);
    }
}

/// What was read lately reads on, as it was; who looks for damage finds it.
#[test]
fn damage_below_what_was_read_is_still_found() {
    let options = Options { value_cache_bytes: 1 << 20, ..small() };
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), options).unwrap();
    for height in 0..40 {
        put(&store, height, &format!("key {height}"), &[height as u8 + 1; 100]);
    }
    store.flush().unwrap();
    let view = store.view();
    let read = |height: u64| view.get(&namespace("a"), format!("key {height}").as_bytes()).unwrap().unwrap();
    (0..40).for_each(|height| drop(read(height)));
    let image = files.image();
    let (name, at) = image
        .iter()
        .find_map(|(name, bytes)| Some((name, bytes.windows(100).position(|window| window == [6; 100])?)))
        .unwrap();
    files.open(name).unwrap().write_at(at as u64, &[7]).unwrap();
    assert_eq!(read(5)[..], [6; 100]);
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    assert!(report.problems.iter().any(StoreError::is_damage), "{report:?}");
    let mut found = Vec::new();
    while store.scrub_standing().passes == 0 {
        found.extend(store.scrub(4096).unwrap().problems);
    }
    assert!(found.iter().any(StoreError::is_damage), "{found:?}");
}
