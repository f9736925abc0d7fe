//! Pages in memory: their bound, and that nothing but time depends on it.

use crate::support::{Random, TestStore, contents, namespace};
use keelstone_codec::{Height, Key, Value};
use keelstone_store::files::MemoryFiles;
use keelstone_store::{CheckLevel, Options, Retention, StoreError};
use keelstone_tree::{Blake3, Diff, Hasher as _, KeyRange, Query, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn key(number: u64) -> Key {
    Key::new(&Blake3::hash(&number.to_be_bytes()).0[..16]).unwrap()
}

/// A block that writes the keys of a range, each with a value of its height.
fn block(height: u64, keys: std::ops::Range<u64>) -> Diff {
    keys.map(|number| {
        (namespace("a"), key(number), Some(Value::new([height, number].map(u64::to_be_bytes).concat()).unwrap()))
    })
    .collect()
}

/// Reads, proofs, scans, checks and a scrub of a state many times the cache keep to the cache.
#[test]
fn pages_in_memory_keep_to_the_cache_however_they_are_read() {
    const KEYS: u64 = 20_000;
    // What versions at hand have alone is never written, and stays as long as they do.
    let options = Options { cache_bytes: 256 << 10, recent_versions: 1, background: false, ..Options::default() };
    let store = TestStore::create(Arc::new(MemoryFiles::new()), options).unwrap();
    store.commit(Height(0), block(0, 0..KEYS)).unwrap();
    let whole = store.stats().cache_bytes;
    assert!(whole > 10 * (256 << 10), "{whole} bytes of pages are many times the cache");
    store.flush().unwrap();
    let bounded = || {
        let bytes = store.stats().cache_bytes;
        assert!(bytes <= 256 << 10, "{bytes} bytes of pages");
    };
    bounded();
    let view = store.view();
    for number in 0..KEYS {
        assert!(view.get(&namespace("a"), &key(number)).unwrap().is_some());
        bounded();
        if number % 50 == 0 {
            view.prove(&[Query::Key(namespace("a"), key(number)), Query::Key(namespace("a"), key(number / 2))])
                .unwrap();
            bounded();
        }
    }
    assert_eq!(view.scan(&namespace("a"), KeyRange::all()).inspect(|_| bounded()).count() as u64, KEYS);
    assert!(store.check(CheckLevel::Full, &mut |_| {}).unwrap().is_sound());
    while store.scrub_standing().passes == 0 {
        assert!(store.scrub(1 << 20).unwrap().problems.is_empty());
        bounded();
    }
    // New pages stay until a flush has written them, and no longer.
    for height in 1..=20 {
        store.commit(Height(height), block(height, height * 50..height * 50 + 300)).unwrap();
    }
    store.compact(&mut |_| {}).unwrap();
    bounded();
}

/// spec: STORE-7. Pages that no flush has written are bounded, however little of the log they took.
#[test]
fn a_flush_is_due_when_new_pages_are_many() {
    let options = Options { flush_bytes: u64::MAX / 2, cache_bytes: 0, background: false, ..Options::default() };
    let store = TestStore::create(Arc::new(MemoryFiles::new()), options).unwrap();
    store.commit(Height(0), block(0, 0..60_000)).unwrap();
    let before = store.stats();
    assert!(before.cache_bytes > 8 << 20 && before.unflushed_bytes > 0, "{before:?}");
    store.commit(Height(1), block(1, 0..1)).unwrap();
    let after = store.stats();
    assert!(after.cache_bytes < 1 << 20 && after.unflushed_bytes < before.unflushed_bytes / 100, "{after:?}");
}

/// spec: STORE-4, STORE-6. A store that can keep no page answers as one that keeps all, every height of it: reads, proofs and
/// scans, while blocks commit and flushes, compactions and prunes run.
#[test]
fn a_store_without_a_cache_answers_as_one_that_keeps_everything() {
    const KEYS: u64 = 3_000;
    let options = |cache_bytes| Options {
        segment_bytes: 64 << 10,
        page_segment_bytes: 64 << 10,
        flush_bytes: 24 << 10,
        cache_bytes,
        value_cache_bytes: 64 << 10,
        history: Retention::Heights(20),
        recent_versions: 2,
        ..Options::default()
    };
    let [wide, narrow] = [1 << 30, 0].map(|cache_bytes| {
        let store = TestStore::create(Arc::new(MemoryFiles::new()), options(cache_bytes)).unwrap();
        store.commit(Height(0), block(0, 0..KEYS)).unwrap();
        store
    });
    let compared = |random: &mut Random, whole: bool| {
        let view = match (random.below(3), narrow.low(), narrow.height()) {
            (0, Some(low), Some(high)) => match narrow.view_at(Height(low.0 + random.below(high.0 - low.0 + 1))) {
                Err(StoreError::NotRetained { .. }) => return 0,
                view => view.unwrap(),
            },
            _ => narrow.view(),
        };
        // The other is a block ahead, at most; it may have pruned what is looked at by now.
        let other = match wide.view_at(view.height().unwrap()) {
            Err(StoreError::NotRetained { .. }) => return 0,
            other => other.unwrap(),
        };
        assert_eq!(view.root(), other.root());
        for _ in 0..20 {
            let keys = [0; 3].map(|_| key(random.below(KEYS + KEYS / 10)));
            assert_eq!(view.get(&namespace("a"), &keys[0]).unwrap(), other.get(&namespace("a"), &keys[0]).unwrap());
            let queries = keys.map(|key| Query::Key(namespace("a"), key));
            for asked in [&queries[..], &queries[..1]] {
                assert_eq!(view.prove_bytes(asked).unwrap(), other.prove_bytes(asked).unwrap());
            }
        }
        if whole {
            assert_eq!(contents(&view), contents(&other));
        }
        1
    };
    let (done, compared_views) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (done, compared, compared_views) = (&done, &compared, &compared_views);
            scope.spawn(move || {
                let mut random = Random(reader);
                while !done.load(Ordering::Relaxed) {
                    let whole = random.below(4) == 0;
                    compared_views.fetch_add(compared(&mut random, whole), Ordering::Relaxed);
                }
            });
        }
        let _end = crate::stress::End(&done);
        let mut random = Random(9);
        for height in 1..=120 {
            let writes = (0..100).map(|_| {
                let number = random.below(KEYS + KEYS / 10);
                let value = [height, number].map(u64::to_be_bytes).concat();
                (namespace("a"), key(number), (random.below(8) > 0).then(|| Value::new(value).unwrap()))
            });
            let diff: Diff = writes.collect();
            let root = wide.commit(Height(height), diff.clone()).unwrap();
            assert_eq!(narrow.commit(Height(height), diff).unwrap(), root);
            match random.below(12) {
                0 => {
                    wide.compact(&mut |_| {}).unwrap();
                    narrow.compact(&mut |_| {}).unwrap();
                }
                1 => {
                    wide.prune(Height(height - height.min(6))).unwrap();
                    narrow.prune(Height(height - height.min(6))).unwrap();
                }
                2 => narrow.flush().unwrap(),
                _ => {}
            }
        }
    });
    assert!(compared_views.into_inner() > 0);
    let mut random = Random(1);
    assert!((0..10).map(|_| compared(&mut random, true)).sum::<u64>() > 0);
    let report = narrow.check(CheckLevel::Full, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    // What versions at hand have alone is never written: here it is next to nothing.
    for height in 121..125 {
        wide.commit(Height(height), block(height, 0..1)).unwrap();
        narrow.commit(Height(height), block(height, 0..1)).unwrap();
    }
    narrow.flush().unwrap();
    let (wide, narrow) = (wide.stats(), narrow.stats());
    assert!(narrow.compactions > 0 && narrow.cache_bytes < wide.cache_bytes / 4, "{narrow:?} beside {wide:?}");
}
