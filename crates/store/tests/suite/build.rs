//! Stores built from a whole state: what they are afterwards, and what is left if it does not come to that.

use crate::support::{
    Model, Random, TestStore, apply, contents, count, namespace, push_all, put, random_diff, root_of, small, watched,
};
use keelstone_codec::{Height, Key, Root};
use keelstone_store::files::{Act, Fault, FaultyFiles, Files, MemoryFiles, SECTOR_BYTES};
use keelstone_store::{CheckLevel, Options, Store, StoreError};
use keelstone_tree::{Blake3, HashKind, Hasher, KeyRange, Read, Sha256, reference};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const BASE: Height = Height(41);

fn root_under<H: Hasher>(model: &Model) -> Root {
    match H::KIND {
        HashKind::Blake3 => reference::root_with(reference::blake3, model),
        HashKind::Sha256 => reference::root_with(reference::sha256, model),
    }
}

fn random_state(random: &mut Random, diffs: u64) -> Model {
    let mut model = Model::new();
    (0..diffs).for_each(|_| apply(&mut model, &random_diff(random)));
    model
}

/// `count` entries of two namespaces.
fn large_state(count: u64) -> Model {
    let mut random = Random(count);
    let mut model = Model::new();
    for at in 0..count {
        let name = if at % 5 == 0 { "b" } else { "a" };
        let key = [random.next().to_be_bytes(), at.to_be_bytes()].concat();
        model.entry(name.to_owned()).or_default().insert(key, vec![at as u8; 1 + random.below(90) as usize]);
    }
    model
}

fn build<H: Hasher>(files: Arc<dyn Files>, options: Options, model: &Model) -> Result<Store<H>, StoreError> {
    let mut building = Store::build(files, options, BASE)?;
    push_all(&mut building, model)?;
    building.finish(root_under::<H>(model))
}

/// Files of a store, as against the lock.
fn left_behind(files: &dyn Files) -> Vec<String> {
    files.list().unwrap().into_iter().filter(|name| name != "LOCK").collect()
}

fn goes_on_like_one_that_was_committed_to<H: Hasher>(seed: u64) {
    let mut random = Random(seed);
    let diffs = random.below(80);
    let mut model = random_state(&mut random, diffs);
    let (built_files, committed_files) = (MemoryFiles::new(), MemoryFiles::new());
    let built = build::<H>(Arc::new(built_files.clone()), small(), &model).unwrap();
    let committed: Store<H> = Store::create(Arc::new(committed_files), small()).unwrap();
    let all = model.iter().flat_map(|(name, entries)| entries.iter().map(move |(key, value)| (name, key, value)));
    let all = all.map(|(name, key, value)| {
        let value = keelstone_codec::Value::new(value.clone()).unwrap();
        (namespace(name), Key::new(key.as_slice()).unwrap(), Some(value))
    });
    assert_eq!(committed.commit(BASE, all.collect()).unwrap(), built.root(), "seed {seed}");

    for height in BASE.0 + 1..BASE.0 + 30 {
        let diff = random_diff(&mut random);
        apply(&mut model, &diff);
        let roots = [&built, &committed].map(|store| store.commit(Height(height), diff.clone()).unwrap());
        assert_eq!(roots, [root_under::<H>(&model); 2], "seed {seed} height {height}");
    }
    assert_eq!(contents(&built.view()), model, "seed {seed}");
    drop(built);
    let built: Store<H> = Store::open(Arc::new(built_files), small()).unwrap();
    assert_eq!((built.root(), contents(&built.view())), (root_under::<H>(&model), model), "seed {seed}");
    let report = built.check(CheckLevel::Full, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "seed {seed}: {:?}", report.problems);
}

/// spec: STORE-11. A store built from a state has its root, and from there on the roots of one that got there by
/// commits, before and after it is opened again.
#[test]
fn a_built_store_goes_on_like_one_that_was_committed_to() {
    let first = count("KEELSTONE_SEED", 1);
    for seed in first..first + count("KEELSTONE_BUILDS", 40) {
        goes_on_like_one_that_was_committed_to::<Blake3>(seed);
        goes_on_like_one_that_was_committed_to::<Sha256>(seed);
    }
}

/// spec: STORE-11. Threads, many batches, many segments: all entries are there, proven from the root.
#[test]
fn a_large_store_is_built_by_several_threads() {
    let model = large_state(20_000);
    let options = Options {
        background: true,
        segment_bytes: 256 << 10,
        page_segment_bytes: 256 << 10,
        cache_bytes: 1 << 20,
        ..small()
    };
    let files = MemoryFiles::new();
    let store = build::<Blake3>(Arc::new(files.clone()), options.clone(), &model).unwrap();
    let totals = store.view().totals();
    assert_eq!(totals.count, 20_000);
    assert!(store.stats().value_segments > 2 && store.stats().page_segments > 2);
    drop(store);
    let store = TestStore::open(Arc::new(files), options).unwrap();
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    assert_eq!(report.values, 20_000);
    assert_eq!(contents(&store.view()), model);
}

/// spec: STORE-18. Each segment is twice the one before while a store is built, and fits it from then on.
#[test]
fn a_built_store_goes_on_with_segments_that_fit() {
    let model = large_state(20_000);
    let options = Options { background: false, garbage_percent: 0, ..Options::default() };
    let files = MemoryFiles::new();
    let store = build::<Blake3>(Arc::new(files.clone()), options, &model).unwrap();
    for height in BASE.0 + 1..BASE.0 + 6 {
        let all = model["a"].keys().map(|key| {
            let value = keelstone_codec::Value::new(height.to_be_bytes().to_vec()).unwrap();
            (namespace("a"), Key::new(key.as_slice()).unwrap(), Some(value))
        });
        store.commit(Height(height), all.collect()).unwrap();
        store.flush().unwrap();
    }
    let sizes: Vec<usize> =
        files.image().iter().filter(|(name, _)| name.ends_with(".pages")).map(|(_, file)| file.len()).collect();
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size == 4 << 20), "{sizes:?}");
}

/// A scan of everything reads each value block once and gives none a place in the cache, where other readers' are.
#[test]
fn a_long_scan_does_not_fill_the_value_cache() {
    let model = large_state(20_000);
    let options = Options { segment_bytes: 256 << 10, value_cache_bytes: 1 << 20, ..small() };
    let files = FaultyFiles::new(1);
    let store = build::<Blake3>(Arc::new(files.clone()), options, &model).unwrap();
    let view = store.view();
    for key in model["a"].keys().step_by(2_000) {
        view.get(&namespace("a"), key).unwrap();
    }
    let (stats, reads) = (store.stats(), files.reads());
    assert_eq!(view.scan(&namespace("a"), KeyRange::all()).count(), model["a"].len());
    let now = store.stats();
    assert!(now.value_cache_bytes <= stats.value_cache_bytes + (64 << 10), "{stats:?} then {now:?}");
    let blocks = now.disk_bytes / (16 * 512);
    let pages = now.entries / 16;
    assert!(files.reads() - reads < blocks + pages, "{} reads, {blocks} blocks, {pages} pages", files.reads() - reads);
}

/// spec: STORE-11. The height it was built at is the lowest: it can be viewed and rolled back to, nothing below can, and
/// what it changed is not known.
#[test]
fn history_begins_at_the_height_a_store_was_built_at() {
    let model = random_state(&mut Random(3), 30);
    let store = build::<Blake3>(Arc::new(MemoryFiles::new()), small(), &model).unwrap();
    assert_eq!((store.height(), store.low(), store.epoch()), (Some(BASE), Some(BASE), 0));
    assert!(matches!(store.commit(Height(7), keelstone_tree::Diff::default()), Err(StoreError::WrongHeight { .. })));
    for height in 42..60 {
        put(&store, height, "key", &[height as u8]);
    }
    assert_eq!(contents(&store.view_at(BASE).unwrap()), model);
    assert!(matches!(store.view_at(Height(40)), Err(StoreError::NotRetained { low: BASE, .. })));
    assert!(matches!(store.diff_at(Height(40)), Err(StoreError::NotRetained { low: BASE, .. })));
    assert!(matches!(store.diff_at(BASE), Err(StoreError::NoDiff { height: BASE })));
    assert_eq!(store.diff_at(Height(42)).unwrap().root_before, root_of(&model));
    assert!(matches!(store.rollback(Height(40)), Err(StoreError::CannotRollBack { low: BASE, .. })));
    assert_eq!(store.rollback(BASE).unwrap(), root_of(&model));
    put(&store, 42, "other", b"line");
    assert_eq!(contents(&store.view_at(BASE).unwrap()), model);
}

/// spec: STORE-11. Another root than the expected one is an error of its own, and leaves nothing in the way.
#[test]
fn entries_of_another_root_make_no_store() {
    let model = random_state(&mut Random(4), 30);
    for background in [false, true] {
        let (files, options) = (MemoryFiles::new(), Options { background, ..small() });
        let mut building = TestStore::build(Arc::new(files.clone()), options.clone(), BASE).unwrap();
        push_all(&mut building, &model).unwrap();
        let wrong = Root::default();
        match building.finish(wrong) {
            Err(StoreError::WrongRoot { expected, found }) => assert_eq!((expected, found), (wrong, root_of(&model))),
            other => panic!("{other:?}"),
        }
        assert_eq!(left_behind(&files), [""; 0]);
        assert!(matches!(TestStore::open(Arc::new(files.clone()), options.clone()), Err(StoreError::Missing { .. })));
        build::<Blake3>(Arc::new(files.clone()), options.clone(), &model).unwrap();
        let again = TestStore::build(Arc::new(files), options, BASE);
        assert!(matches!(again, Err(StoreError::Exists)), "{again:?}");
    }
}

/// A store that is not finished leaves nothing behind, and keeps others out of its directory until then.
#[test]
fn a_building_that_is_dropped_leaves_nothing() {
    let files = MemoryFiles::new();
    let mut building = TestStore::build(Arc::new(files.clone()), small(), BASE).unwrap();
    push_all(&mut building, &large_state(5_000)).unwrap();
    assert!(!left_behind(&files).is_empty());
    assert!(matches!(TestStore::create(Arc::new(files.clone()), small()), Err(StoreError::InUse { .. })));
    drop(building);
    assert_eq!(left_behind(&files), [""; 0]);
}

/// What is built does not fill the system's memory: values leave it as soon as they are synced, each segment as far as it was
/// written. Pages stay, for whoever opens the store.
#[test]
fn values_that_are_built_leave_memory() {
    let files = MemoryFiles::new();
    // By file: how often it was synced, and how many bytes were evicted.
    let seen: Arc<Mutex<BTreeMap<String, (u64, u64)>>> = Arc::default();
    let watched = {
        let seen = Arc::clone(&seen);
        watched(files.clone(), move |name, act| {
            let mut seen = seen.lock().unwrap();
            let (syncs, evicted) = seen.entry(name.to_owned()).or_default();
            match act {
                Act::Sync => *syncs += 1,
                Act::Evict(len) => {
                    // One sync makes the file, the next what was written to it.
                    assert!(*syncs > 1, "{name} was not synced since it was made");
                    *evicted = len.max(*evicted);
                }
                _ => {}
            }
        })
    };
    let options = Options { segment_bytes: 64 << 10, background: true, ..small() };
    build::<Blake3>(Arc::new(watched), options, &large_state(5_000)).unwrap();
    let left = left_behind(&files);
    let (values, others): (Vec<_>, Vec<_>) = left.iter().partition(|name| name.ends_with(".values"));
    let (_, full) = values.split_last().unwrap();
    assert!(full.len() > 2, "{values:?}");
    let seen = seen.lock().unwrap();
    for name in full {
        let (len, evicted) = (files.open(name).unwrap().len().unwrap(), seen[*name].1);
        assert!(evicted <= len && evicted + 2 * SECTOR_BYTES as u64 > len, "{name}: {evicted} of {len} bytes");
    }
    assert!(others.iter().all(|name| seen[*name].1 == 0), "{others:?}");
}

/// spec: STORE-11. Entries out of order and values that are none are refused by name; the others make the store.
#[test]
fn entries_that_cannot_be_are_refused_and_not_taken() {
    let model = random_state(&mut Random(5), 30);
    let mut building = TestStore::build(Arc::new(MemoryFiles::new()), small(), BASE).unwrap();
    let key = |bytes: &[u8]| Key::new(bytes).unwrap();
    assert!(matches!(building.push(&namespace("a"), &key(b"k"), b""), Err(StoreError::BadEntry { .. })));
    let long = vec![1; keelstone_codec::VALUE_LEN_MAX + 1];
    assert!(matches!(building.push(&namespace("a"), &key(b"k"), &long), Err(StoreError::BadEntry { .. })));
    let mut entries = 0;
    for (name, values) in &model {
        for (at, value) in values {
            building.push(&namespace(name), &key(at), value).unwrap();
            entries += 1;
            for (name, at) in [(name.as_str(), &at[..]), (name.as_str(), &at[..at.len() - 1]), ("0", &at[..])] {
                let Ok(at) = Key::new(at) else { continue };
                match building.push(&namespace(name), &at, value) {
                    Err(StoreError::BadEntry { namespace, key, .. }) => {
                        assert_eq!((namespace.as_str(), key), (name, at));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert_eq!(building.totals().count, entries);
    building.finish(root_of(&model)).unwrap();
}

fn changes_of(model: &Model, options: &Options) -> u64 {
    let files = FaultyFiles::new(1);
    drop(build::<Blake3>(Arc::new(files.clone()), options.clone(), model).unwrap());
    files.changes()
}

/// spec: STORE-10, STORE-11. The power fails at every single change of a building. There is no store then, and the
/// directory can be built in again; or there is the whole one, which only the last changes can leave.
#[test]
fn a_power_cut_while_building_leaves_no_store_or_all_of_it() {
    let options = Options { segment_bytes: 6 << 10, page_segment_bytes: 6 << 10, ..small() };
    let mut whole = 0;
    for seed in 0..count("KEELSTONE_CUT_SEEDS", 4) {
        let model = random_state(&mut Random(seed), 60);
        for cut in 0..changes_of(&model, &options) {
            let what = format!("seed {seed} cut {cut}");
            let files = FaultyFiles::new(seed);
            files.fail_at(cut, Fault::PowerCut);
            build::<Blake3>(Arc::new(files.clone()), options.clone(), &model).expect_err("the power is off");
            let after: Arc<FaultyFiles> = Arc::new(files.after_power_cut(seed ^ cut));
            let store = match TestStore::open(after.clone(), options.clone()) {
                Ok(store) => {
                    whole += 1;
                    store
                }
                Err(StoreError::Missing { .. }) => build::<Blake3>(after.clone(), options.clone(), &model)
                    .unwrap_or_else(|error| panic!("{what}: built again: {error}")),
                Err(error) => panic!("{what}: {error}"),
            };
            assert_eq!((store.height(), store.root()), (Some(BASE), root_of(&model)), "{what}");
            assert_eq!(contents(&store.view()), model, "{what}");
            put(&store, BASE.0 + 1, "next", b"height");
            drop(store);
            // What was built and what was committed since is still there after one more cut.
            let after = Arc::new(after.after_power_cut(cut));
            let store = TestStore::open(after, options.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(store.height(), Some(Height(BASE.0 + 1)), "{what}");
            let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
            assert!(report.is_sound(), "{what}: {:?}", report.problems);
        }
    }
    assert!(whole < 4 * count("KEELSTONE_CUT_SEEDS", 4), "{whole} cuts left a store: it comes to be at the very end");
}

/// spec: STORE-8, STORE-11. Whatever write or sync fails, by whichever thread, the building says so, takes nothing more
/// and is not a store; what failed is done anew on the next attempt.
#[test]
fn a_failed_write_ends_a_building() {
    for (background, fault) in [(false, Fault::Io), (false, Fault::NoSpace), (true, Fault::Io)] {
        let options = Options { background, segment_bytes: 24 << 10, page_segment_bytes: 24 << 10, ..small() };
        let model = large_state(3_000);
        for at in (0..changes_of(&model, &options)).step_by(3) {
            let what = format!("{fault:?} at {at}, background {background}");
            let files = FaultyFiles::new(at);
            files.fail_at(at, fault);
            let error = match TestStore::build(Arc::new(files.clone()), options.clone(), BASE) {
                Err(error) => error,
                Ok(mut building) => match push_all(&mut building, &model) {
                    Ok(()) => building.finish(root_of(&model)).expect_err("something failed"),
                    Err(error) => {
                        let again = building.push(&namespace("z"), &Key::new(&b"k"[..]).unwrap(), b"v");
                        assert!(matches!(again, Err(StoreError::Poisoned { .. })), "{what}: {again:?}");
                        error
                    }
                },
            };
            assert!(matches!(error, StoreError::Io { .. }), "{what}: {error}");
            match TestStore::open(Arc::new(files.clone()), options.clone()) {
                Err(StoreError::Missing { .. }) => {
                    let store = build::<Blake3>(Arc::new(files), options.clone(), &model).unwrap();
                    assert_eq!(store.root(), root_of(&model), "{what}");
                }
                // Only the sync after the last rename can leave one.
                Ok(store) => assert_eq!(store.root(), root_of(&model), "{what}"),
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
}
