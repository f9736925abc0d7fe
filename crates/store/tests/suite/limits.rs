//! Bounds that have a name: versions held, bytes of a diff, drafts that nobody commits.

use crate::support::{TestStore, namespace, put, small};
use keelstone_codec::{Height, Key, Value};
use keelstone_store::files::MemoryFiles;
use keelstone_store::{Options, StoreError};
use keelstone_tree::{Diff, Read, ReadError};
use std::sync::Arc;

/// spec: STORE-6. Views that are held while very many newer versions come expire, the oldest first, with an error.
#[test]
fn the_oldest_view_expires_by_name() {
    let options = Options { views_max: 8, ..small() };
    let store = TestStore::create(Arc::new(MemoryFiles::new()), options).unwrap();
    let mut views = Vec::new();
    for height in 1..60 {
        put(&store, height, "key", &[height as u8]);
        views.push(store.view());
    }
    let read = |index: usize| views[index].get(&namespace("a"), b"key");
    assert!(matches!(read(0), Err(ReadError::Gone { .. })));
    assert_eq!(read(58).unwrap().as_deref(), Some(&[59][..]));
    // One that is asked for again and again is a version like any other: whoever asks now gets one that holds.
    for height in 60..120 {
        put(&store, height, "key", &[height as u8]);
        let again = store.view_at(Height(55)).unwrap();
        assert_eq!(again.get(&namespace("a"), b"key").unwrap().as_deref(), Some(&[55][..]), "at {height}");
        views.push(again);
        views.push(store.view());
    }
    // The height itself is kept: a new view of it can be had.
    let again = store.view_at(Height(1)).unwrap();
    assert_eq!(again.get(&namespace("a"), b"key").unwrap().as_deref(), Some(&[1][..]));
}

/// spec: STORE-7. A diff above the limit is refused before anything is written.
#[test]
fn a_diff_above_the_limit_is_refused() {
    let store = TestStore::create(Arc::new(MemoryFiles::new()), small()).unwrap();
    // One shared buffer: the limit is found without holding 256 MiB.
    let value = Value::new(vec![1; 8 << 20]).unwrap();
    let diff: Diff = (0..33u8).map(|n| (namespace("a"), Key::new([n]).unwrap(), Some(value.clone()))).collect();
    assert!(matches!(store.commit(Height(1), diff), Err(StoreError::TooLarge { .. })));
    put(&store, 1, "key", b"value");
}

/// spec: STORE-8, STORE-9, STORE-10. A draft is repeatable, leaves no trace, and is stale once another was committed.
#[test]
fn a_draft_leaves_no_trace_and_goes_stale() {
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), small()).unwrap();
    let root = put(&store, 1, "key", b"value");
    let diff = |value: &[u8]| -> Diff {
        [(namespace("a"), Key::new(*b"key").unwrap(), Some(Value::new(value.to_vec()).unwrap()))].into_iter().collect()
    };
    let before = files.image();
    let (first, second) = (store.prepare(diff(b"one")).unwrap(), store.prepare(diff(b"one")).unwrap());
    assert_eq!(first.root(), second.root());
    assert!(files.image() == before && store.root() == root, "nothing was written");
    store.commit_prepared(Height(2), first).unwrap();
    assert!(matches!(store.commit_prepared(Height(3), second), Err(StoreError::Stale { .. })));
}

/// spec: STORE-2, STORE-3, STORE-8. What is done beside a record is waited for: if it fails, so does the commit, and whether
/// its height counts is in doubt when the store is opened again. No other height ever is.
#[test]
fn a_commit_whose_companion_failed_is_in_doubt() {
    let files = MemoryFiles::new();
    let open = || TestStore::open(Arc::new(files.clone()), small()).unwrap();
    let store = TestStore::create(Arc::new(files.clone()), small()).unwrap();
    let diff = |value: &[u8]| -> Diff {
        [(namespace("a"), Key::new(*b"key").unwrap(), Some(Value::new(value.to_vec()).unwrap()))].into_iter().collect()
    };
    let mut done = 0;
    for (height, value) in [(1, b"one"), (2, b"two")] {
        let prepared = store.prepare(diff(value)).unwrap();
        let work = || {
            done += 1;
            Ok(())
        };
        store.commit_prepared_with(Height(height), prepared, work).unwrap();
    }
    assert_eq!(done, 2);
    let prepared = store.prepare(diff(b"three")).unwrap();
    let root = prepared.root();
    let failed = || Err(StoreError::Poisoned { reason: "the companion".to_owned() });
    assert!(store.commit_prepared_with(Height(3), prepared, failed).is_err());
    assert_eq!(store.height(), Some(Height(2)), "not acknowledged, so not there");
    assert!(matches!(store.commit(Height(3), diff(b"four")), Err(StoreError::Poisoned { .. })));
    drop(store);

    let store = open();
    assert_eq!((store.in_doubt(), store.height(), store.root()), (Some(Height(3)), Some(Height(3)), root));
    store.rollback(Height(2)).unwrap();
    drop(store);
    let store = open();
    assert_eq!((store.in_doubt(), store.height()), (None, Some(Height(2))), "a rollback is not in doubt");
    put(&store, 3, "key", b"five");
    drop(store);
    let store = open();
    assert_eq!((store.in_doubt(), store.height()), (None, Some(Height(3))), "it has its mark");
    store.close().unwrap();
    assert_eq!(open().in_doubt(), None, "a superblock covers it");
}

/// spec: STORE-4. No height could follow the highest there is, so none is committed there, nor is a store built there.
#[test]
fn the_highest_height_is_none_of_a_store() {
    let last = Height(u64::MAX);
    let store = TestStore::create(Arc::new(MemoryFiles::new()), small()).unwrap();
    assert!(matches!(store.commit(last, Diff::default()), Err(StoreError::WrongHeight { found, .. }) if found == last));
    put(&store, u64::MAX - 1, "key", b"value");
    assert!(matches!(store.commit(last, Diff::default()), Err(StoreError::WrongHeight { found, .. }) if found == last));
    let built = TestStore::build(Arc::new(MemoryFiles::new()), small(), last);
    assert!(matches!(built, Err(StoreError::WrongHeight { found, .. }) if found == last));
}
