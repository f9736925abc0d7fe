//! The store's threads in thousands of orders: every lock, channel and wait of the store and of the tree under it is a
//! place where a scheduler decides who goes on. A lock that is waited for in a circle is a failure too.
//!
//! The scheduler takes its orders from a seed, `KEELSTONE_SEED` or 1, and a failure prints the order it had, for
//! `shuttle::replay`. `KEELSTONE_INTERLEAVINGS` is how many orders each test tries.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use golden::count;
use keelstone_codec::{Height, Key, Namespace, Value};
use keelstone_interleaved_store::files::{Fault, FaultyFiles, MemoryFiles};
use keelstone_interleaved_store::{CheckLevel, Options, Retention, Store, StoreError};
use keelstone_tree::{Blake3, Diff, KeyRange, Read, ReadError, Write};
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::Arc;
use shuttle::{Config, Runner, thread};

type TestStore = Store<Blake3>;

/// Keys of the state. Every height writes itself into each.
const KEYS: u64 = 6;
/// Where threads lose their turn at most, in half of the orders: most faults of this kind need one or two.
const DEPTH: usize = 3;

/// Tries a test in many orders: half of them any, half of them with few changes of who goes on.
fn in_every_order(orders: u64, test: impl Fn() + Send + Sync + Clone + 'static) {
    let (seed, orders) = (count("KEELSTONE_SEED", 1), count("KEELSTONE_INTERLEAVINGS", orders));
    println!("seed {seed}, {orders} orders");
    let half = usize::try_from(orders.div_ceil(2)).unwrap();
    let mut config = Config::new();
    config.max_steps = shuttle::MaxSteps::FailAfter(10_000_000);
    config.stack_size = 1 << 20;
    Runner::new(RandomScheduler::new_from_seed(seed, half), config.clone()).run(test.clone());
    Runner::new(PctScheduler::new_from_seed(seed, DEPTH, half), config).run(test);
}

/// As small as can be, so that each of the few commits has something to flush, compact and remove.
fn options(background: bool) -> Options {
    Options {
        segment_bytes: 4 << 10,
        page_segment_bytes: 4 << 10,
        flush_bytes: 2 << 10,
        cache_bytes: 2 << 10,
        value_cache_bytes: 16 << 10,
        recent_versions: 1,
        id: Some([7; 16]),
        background,
        ..Options::default()
    }
}

fn name() -> Namespace {
    Namespace::new("a").unwrap()
}

/// What a height writes: itself into every key, so that two heights can never be mixed unnoticed.
fn block(height: u64) -> Diff {
    let value = |key: u64| Value::new([&height.to_be_bytes()[..], &[u8::try_from(key).unwrap(); 60]].concat()).unwrap();
    (0..KEYS).map(|key| (name(), Key::new(key.to_be_bytes()).unwrap(), Some(value(key)))).collect()
}

fn commit(store: &TestStore, heights: std::ops::RangeInclusive<u64>) {
    for height in heights {
        store.commit(Height(height), block(height)).unwrap();
    }
}

/// One write of a diff.
fn one((space, write): (&Namespace, &Write)) -> (Namespace, Key, Option<Value>) {
    (space.clone(), write.key.clone(), write.value.clone())
}

/// Reads a version whole: all of it is of its height.
fn read(view: &keelstone_interleaved_store::View<Blake3>) -> Result<(), ReadError> {
    let Some(height) = view.height() else { return Ok(()) };
    let mut found = 0;
    for entry in view.scan(&name(), KeyRange::all()) {
        assert_eq!(entry?.1[..8], height.0.to_be_bytes(), "an entry of another height");
        found += 1;
    }
    assert_eq!(found, KEYS);
    Ok(())
}

/// The store is sound, and what a kill at this moment would leave opens at the same state.
fn sound(store: &TestStore, files: &MemoryFiles) {
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    let (height, root) = (store.height(), store.root());
    let image = MemoryFiles::from_image(&files.image());
    let again = TestStore::open(Arc::new(image), options(false)).unwrap();
    assert_eq!((again.height(), again.root()), (height, root));
    read(&again.view()).unwrap();
}

/// A store with some garbage in it.
fn sample(background: bool) -> (Arc<TestStore>, MemoryFiles) {
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), options(background)).unwrap();
    commit(&store, 0..=12);
    store.prune(Height(11)).unwrap();
    (Arc::new(store), files)
}

/// spec: STORE-4, STORE-12. A flush writes a version while a compaction moves values out from under it and marks segments
/// as empty: nothing that a superblock says is gone is needed, in no order of the two and of the commits beside them.
#[test]
fn flush_compaction_and_commits_in_every_order_leave_a_sound_store() {
    in_every_order(300, || {
        let (store, files) = sample(false);
        let flusher = thread::spawn({
            let store = Arc::clone(&store);
            move || (0..8).for_each(|_| store.flush().unwrap())
        });
        let compactor = thread::spawn({
            let store = Arc::clone(&store);
            move || {
                for _ in 0..3 {
                    store.compact(&mut |_| {}).unwrap();
                }
            }
        });
        for height in 13..=24 {
            commit(&store, height..=height);
            store.prune(Height(height - 1)).unwrap();
        }
        flusher.join().unwrap();
        compactor.join().unwrap();
        // What was marked as empty goes two superblocks later.
        for height in 25..=29 {
            commit(&store, height..=height);
            store.prune(Height(height)).unwrap();
            store.flush().unwrap();
        }
        sound(&store, &files);
    });
}

/// spec: STORE-4. A flush removes the last segment of moved values, which is empty, while a compaction begins another: the one
/// that is removed is never the one that was just made.
#[test]
fn a_segment_that_is_made_while_the_one_before_it_goes_stays() {
    in_every_order(6_000, || {
        let files = MemoryFiles::new();
        // Nothing is flushed, and so nothing removed, but by who is asked to.
        let options = Options { flush_bytes: 1 << 20, cache_bytes: 1 << 20, ..options(false) };
        let store = Arc::new(TestStore::create(Arc::new(files.clone()), options.clone()).unwrap());
        let commit = |heights: std::ops::RangeInclusive<u64>, only: Option<u64>| {
            for height in heights {
                let write = |key: u64| block(height).iter().nth(usize::try_from(key).unwrap()).map(one);
                let diff = only.map_or_else(|| block(height), |key| write(key).into_iter().collect());
                store.commit(Height(height), diff).unwrap();
                store.prune(Height(height)).unwrap();
            }
        };
        // Values are moved, and nothing of them is left once all keys have been written again.
        commit(0..=0, None);
        commit(1..=20, Some(0));
        assert!(store.compact(&mut |_| {}).unwrap().values_moved > 0);
        commit(21..=21, None);
        assert_eq!(store.compact(&mut |_| {}).unwrap().values_moved, 0);
        commit(22..=40, Some(0));
        let flusher = thread::spawn({
            let store = Arc::clone(&store);
            move || (0..2).for_each(|_| store.flush().unwrap())
        });
        assert!(store.compact(&mut |_| {}).unwrap().values_moved > 0);
        flusher.join().unwrap();
        let holds = |store: &TestStore| {
            for key in 0..KEYS {
                let found = store.view().get(&name(), &key.to_be_bytes()).unwrap().unwrap();
                assert_eq!(found[..8], if key == 0 { 40u64 } else { 21 }.to_be_bytes(), "key {key}");
            }
        };
        holds(&store);
        store.flush().unwrap();
        holds(&TestStore::open(Arc::new(MemoryFiles::from_image(&files.image())), options.clone()).unwrap());
    });
}

/// spec: STORE-6. A height that is looked into, or rebuilt, while it is pruned and its segments go: it reads as it was or
/// says that it is gone, never anything else.
#[test]
fn a_view_of_a_height_that_is_pruned_meanwhile_is_right_or_gone() {
    in_every_order(300, || {
        let (store, files) = sample(false);
        commit(&store, 13..=20);
        let reader = thread::spawn({
            let store = Arc::clone(&store);
            move || {
                for height in [12, 17, 19] {
                    let view = match store.view_at(Height(height)) {
                        Ok(view) => view,
                        Err(StoreError::NotRetained { .. }) => continue,
                        Err(error) => panic!("height {height}: {error}"),
                    };
                    match read(&view) {
                        Ok(()) | Err(ReadError::Gone { .. }) => {}
                        Err(error) => panic!("height {height}: {error}"),
                    }
                }
            }
        });
        store.prune(Height(19)).unwrap();
        store.compact(&mut |_| {}).unwrap();
        store.flush().unwrap();
        reader.join().unwrap();
        sound(&store, &files);
    });
}

/// spec: STORE-4, STORE-7, STORE-12. Threads of the store's own flush and compact; commits wait for them at their bounds, and
/// always come through. Nothing that is being written is emptied or removed: it takes some thousand orders to meet a
/// compaction that asks for the open segment just before a flush opens another.
#[test]
fn commits_that_wait_for_flush_and_compaction_always_come_through() {
    in_every_order(3_000, || {
        let files = MemoryFiles::new();
        let options = Options { history: Retention::Heights(2), garbage_percent: 20, ..options(true) };
        let store = TestStore::create(Arc::new(files.clone()), options).unwrap();
        commit(&store, 0..=40);
        read(&store.view()).unwrap();
        let (height, root) = (store.height(), store.root());
        drop(store);
        let again = TestStore::open(Arc::new(files), self::options(false)).unwrap();
        assert_eq!((again.height(), again.root()), (height, root));
        read(&again.view()).unwrap();
    });
}

/// spec: STORE-8. The disk fails at any moment, of a commit, a flush or a compaction: whoever commits hears of it, also who is about to
/// wait for what will not come, and what was acknowledged is there.
#[test]
fn whoever_commits_hears_of_a_disk_that_fails_whoever_met_it() {
    in_every_order(1_500, || {
        let files = FaultyFiles::new(1);
        let options = Options { history: Retention::Heights(2), garbage_percent: 20, ..options(true) };
        let store = TestStore::create(Arc::new(files.clone()), options).unwrap();
        files.fail_at(files.changes() + shuttle::rand::thread_rng().gen_range(0..250), Fault::IoForever);
        let failed = (0..=30).find_map(|height| store.commit(Height(height), block(height)).err());
        let acknowledged = store.height();
        if let Some(error) = failed {
            assert!(matches!(error, StoreError::Io { .. } | StoreError::Poisoned { .. }), "{error}");
            let next = acknowledged.map_or(0, |height| height.0 + 1);
            let again = store.commit(Height(next), block(next));
            assert!(matches!(again, Err(StoreError::Poisoned { .. })), "{again:?}");
        }
        drop(store);
        files.mend();
        let again = TestStore::open(Arc::new(files), self::options(false)).unwrap();
        assert!(again.height() == acknowledged || again.height() == Some(acknowledged.map_or(Height(0), Height::next)));
        read(&again.view()).unwrap();
    });
}

/// spec: STORE-4. Readers make room for the pages they read while a flush gives pages a place and has not synced them yet, and
/// while commits put new ones in memory: nobody misses a page, and nobody waits in a circle.
#[test]
fn readers_that_make_room_beside_flushes_and_commits_miss_no_page() {
    in_every_order(300, || {
        let files = MemoryFiles::new();
        let options = Options { cache_bytes: 0, ..options(false) };
        let store = Arc::new(TestStore::create(Arc::new(files.clone()), options).unwrap());
        // More than one page, so that there are some above others.
        let wide = |height: u64| -> Diff {
            let value = Value::new(height.to_be_bytes().repeat(2)).unwrap();
            (0..80u64).map(|key| (name(), Key::new(key.to_be_bytes()).unwrap(), Some(value.clone()))).collect()
        };
        store.commit(Height(0), wide(0)).unwrap();
        let flusher = thread::spawn({
            let store = Arc::clone(&store);
            move || (0..3).for_each(|_| store.flush().unwrap())
        });
        let readers: Vec<_> = (0..2u64)
            .map(|reader| {
                let store = Arc::clone(&store);
                thread::spawn(move || {
                    for round in 0..3 {
                        let view = store.view();
                        let height = view.height().unwrap().0.to_be_bytes();
                        for key in [reader, 7 * round + 1, 79] {
                            assert_eq!(view.get(&name(), &key.to_be_bytes()).unwrap().unwrap()[..8], height);
                        }
                        assert_eq!(view.scan(&name(), KeyRange::all()).map(Result::unwrap).count(), 80);
                    }
                })
            })
            .collect();
        for height in 1..=4 {
            store.commit(Height(height), wide(height)).unwrap();
        }
        flusher.join().unwrap();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{:?}", report.problems);
    });
}

/// Two callers commit, and one takes a height back: each commit continues the last version or is refused.
#[test]
fn two_who_commit_and_one_who_rolls_back_never_make_a_fork() {
    in_every_order(300, || {
        let (store, files) = sample(false);
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let store = Arc::clone(&store);
                thread::spawn(move || {
                    for _ in 0..3 {
                        let next = store.height().unwrap().0 + 1;
                        match store.commit(Height(next), block(next)) {
                            Ok(_) | Err(StoreError::WrongHeight { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        match store.rollback(Height(11)) {
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        read(&store.view()).unwrap();
        sound(&store, &files);
    });
}

/// spec: STORE-11. A store is built by three threads: one takes entries, one lays them down, one syncs.
#[test]
fn a_store_that_is_built_by_three_threads_is_the_same_in_every_order() {
    in_every_order(60, || {
        let files = MemoryFiles::new();
        let mut building = TestStore::build(Arc::new(files.clone()), options(true), Height(5)).unwrap();
        let value = vec![3; 300_000];
        for key in 0..16u64 {
            building.push(&name(), &Key::new(key.to_be_bytes()).unwrap(), &value).unwrap();
        }
        let store = building.finish_as_found().unwrap();
        let view = store.view();
        let found = view.scan(&name(), KeyRange::all()).map(|entry| assert_eq!(entry.unwrap().1[..], value[..]));
        assert_eq!(found.count(), 16);
    });
}

/// spec: STORE-13. A scrub beside commits, flushes and a compaction finds nothing, since nothing is wrong.
#[test]
fn a_scrub_beside_everything_else_finds_no_damage_where_there_is_none() {
    in_every_order(200, || {
        let (store, files) = sample(false);
        let scrubber = thread::spawn({
            let store = Arc::clone(&store);
            move || {
                while store.scrub_standing().passes == 0 {
                    let scrubbed = store.scrub(2 << 10).unwrap();
                    assert!(scrubbed.problems.is_empty(), "{:?}", scrubbed.problems);
                }
            }
        });
        commit(&store, 13..=15);
        store.compact(&mut |_| {}).unwrap();
        commit(&store, 16..=17);
        store.flush().unwrap();
        scrubber.join().unwrap();
        sound(&store, &files);
    });
}

/// spec: STORE-5, STORE-6. Readers ask for the same keys again and again, of the last version and of one they hold on to, while
/// commits write them and a rollback takes commits back: each is told what its version holds, whoever put in what is found.
#[test]
fn what_was_read_lately_is_never_what_another_version_holds() {
    in_every_order(600, || {
        let files = MemoryFiles::new();
        let store = Arc::new(TestStore::create(Arc::new(files.clone()), options(false)).unwrap());
        // Every second height leaves the first key as it is.
        let write = |height: u64| -> Diff {
            let value = Value::new(height.to_be_bytes().to_vec()).unwrap();
            (height % 2..2).map(|key| (name(), Key::new(key.to_be_bytes()).unwrap(), Some(value.clone()))).collect()
        };
        store.commit(Height(0), write(0)).unwrap();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let store = Arc::clone(&store);
                thread::spawn(move || {
                    let held = store.view();
                    for _ in 0..4 {
                        for view in [store.view(), held.clone()] {
                            let height = view.height().unwrap().0;
                            for key in 0..2u64 {
                                let expected = if key == 0 { height - height % 2 } else { height };
                                let found = view.get(&name(), &key.to_be_bytes()).unwrap().unwrap();
                                assert_eq!(found[..], expected.to_be_bytes(), "key {key} at height {height}");
                            }
                        }
                    }
                })
            })
            .collect();
        let commit = |height: u64| store.commit(Height(height), write(height)).unwrap();
        let _roots = [1, 2, 3].map(commit);
        store.rollback(Height(1)).unwrap();
        let _roots = [2, 3].map(commit);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
