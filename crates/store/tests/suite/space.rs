//! Room on the disk, and who waits for whom: garbage, views, segments made in good time, looking back.

use crate::support::{Random, TestStore, namespace, put, small, watched};
use keelstone_codec::{Height, Key, Root, Value};
use keelstone_store::files::{Act, Interposed, MemoryFiles};
use keelstone_store::{Options, Retention, StoreError};
use keelstone_tree::{Diff, Read, ReadError};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// The same 300 keys, some of them written anew.
fn overwrite(random: &mut Random) -> Diff {
    (0..40)
        .map(|_| {
            let key = Key::new(random.below(300).to_be_bytes()).unwrap();
            (namespace("a"), key, Some(Value::new(vec![random.below(256) as u8; 100]).unwrap()))
        })
        .collect()
}

fn short_history() -> Options {
    Options { history: Retention::Heights(2), segment_bytes: 32 << 10, page_segment_bytes: 32 << 10, ..small() }
}

/// spec: STORE-12. Whatever is written, and for however long, the store takes a bounded multiple of what lives in it, and
/// nobody has to ask for that.
#[test]
fn a_store_that_is_written_to_for_ever_stays_small() {
    let store = TestStore::create(Arc::new(MemoryFiles::new()), short_history()).unwrap();
    let mut random = Random(3);
    let mut most = 0;
    for height in 0..600 {
        store.commit(Height(height), overwrite(&mut random)).unwrap();
        most = most.max(store.stats().disk_bytes);
    }
    let stats = store.stats();
    assert!(stats.compactions > 3, "{stats:?}");
    // 600 blocks wrote 3 MB. Half of what lives, and two segments of each kind, is garbage that is left alone.
    assert!(stats.entry_bytes < 33 << 10 && most < 700 << 10, "{most} bytes at most, {stats:?}");
}

/// spec: STORE-12. Asked not to, it does not.
#[test]
fn without_a_share_nothing_is_compacted_by_itself() {
    let options = Options { garbage_percent: 0, ..short_history() };
    let store = TestStore::create(Arc::new(MemoryFiles::new()), options).unwrap();
    let mut random = Random(3);
    for height in 0..200 {
        store.commit(Height(height), overwrite(&mut random)).unwrap();
    }
    assert_eq!(store.stats().compactions, 0);
}

/// spec: STORE-6. A view may keep only so many bytes from being removed.
#[test]
fn a_view_that_keeps_too_many_bytes_expires_by_name() {
    let options = Options { view_bytes_max: 200 << 10, ..short_history() };
    let store = TestStore::create(Arc::new(MemoryFiles::new()), options).unwrap();
    let mut random = Random(4);
    store.commit(Height(0), overwrite(&mut random)).unwrap();
    let view = store.view();
    let read = || view.get(&namespace("a"), &7u64.to_be_bytes());
    for height in 1..600 {
        store.commit(Height(height), overwrite(&mut random)).unwrap();
        assert!(store.stats().view_bytes <= 200 << 10);
        match read() {
            Ok(_) => {}
            Err(ReadError::Gone { .. }) => break,
            Err(error) => panic!("height {height}: {error}"),
        }
    }
    assert!(matches!(read(), Err(ReadError::Gone { .. })), "600 blocks later it is gone");
    assert!(store.view().get(&namespace("a"), &7u64.to_be_bytes()).is_ok());
}

/// spec: STORE-6. A view may be held for only so many commits; the last version is no such view, however old.
#[test]
fn a_view_held_for_too_many_commits_expires_and_the_last_version_does_not() {
    let options = Options { view_age_max: 20, views_max: 10, ..small() };
    let store = TestStore::create(Arc::new(MemoryFiles::new()), options).unwrap();
    put(&store, 0, "key", b"first");
    let view = store.view();
    for height in 1..=20 {
        put(&store, height, "key", b"later");
    }
    assert!(view.get(&namespace("a"), b"key").is_ok(), "20 commits later");
    put(&store, 21, "key", b"last");
    assert!(matches!(view.get(&namespace("a"), b"key"), Err(ReadError::Gone { .. })));
    // Many looks back, and no commit: the last version stays everybody's.
    let views: Vec<_> = (0..40).map(|look| store.view_at(Height(look % 20)).unwrap()).collect();
    let expired = views.iter().filter(|view| view.get(&namespace("a"), b"key").is_err()).count();
    assert!(expired > 0, "more views than may be held");
    assert_eq!(store.view().get(&namespace("a"), b"key").unwrap().as_deref(), Some(&b"last"[..]));
    put(&store, 22, "key", b"after");
    assert_eq!(store.view().get(&namespace("a"), b"key").unwrap().as_deref(), Some(&b"after"[..]));
}

/// The next segment of the log is made when half of the last one is used up, and a commit finds it there.
#[test]
fn the_log_goes_on_in_a_segment_made_before_it_was_needed() {
    let files = MemoryFiles::new();
    let options = Options { segment_bytes: 32 << 10, flush_bytes: 4 << 10, garbage_percent: 0, ..small() };
    let mut store = TestStore::create(Arc::new(files.clone()), options.clone()).unwrap();
    let (mut random, mut early) = (Random(5), 0);
    let logs = |files: &MemoryFiles| files.image().keys().filter(|name| name.ends_with(".log")).count();
    for height in 0..60 {
        let before = logs(&files);
        store.commit(Height(height), overwrite(&mut random)).unwrap();
        early += usize::from(logs(&files) > before);
        if height % 11 == 0 {
            // One that was made and not used yet is as good after a crash.
            drop(store);
            store = TestStore::open(Arc::new(files.clone()), options.clone()).unwrap();
        }
    }
    assert!(early > 5, "{early} segments");
    let image = files.image();
    let last = image.keys().rfind(|name| name.ends_with(".log")).unwrap();
    let empty = image[last][512..].iter().all(|byte| *byte == 0);
    assert!(empty || image[last][16 << 10..].iter().all(|byte| *byte == 0), "the last one is spare, or half empty");
}

/// Where the reads of one thread wait until they are let go.
#[derive(Debug, Default)]
struct Gate {
    closed: bool,
    waiting: bool,
}

const SLOW: &str = "looks back";

/// A disk on which the reads of the thread that looks back wait while the gate is closed.
fn gated() -> (Interposed, Arc<(Mutex<Gate>, Condvar)>) {
    let shared = Arc::new((Mutex::new(Gate::default()), Condvar::new()));
    let files = {
        let shared = Arc::clone(&shared);
        watched(MemoryFiles::new(), move |_, act| {
            if matches!(act, Act::Read) && std::thread::current().name() == Some(SLOW) {
                let (gate, changed) = &*shared;
                let mut gate = gate.lock().unwrap();
                gate.waiting = true;
                changed.notify_all();
                drop(changed.wait_while(gate, |gate| gate.closed).unwrap());
            }
        })
    };
    (files, shared)
}

/// Looks back on a thread of its own, which is in the middle of it when this returns.
fn look_back_until_let_go(
    store: &Arc<TestStore>,
    (gate, changed): &(Mutex<Gate>, Condvar),
) -> JoinHandle<Result<Root, StoreError>> {
    gate.lock().unwrap().closed = true;
    let store = Arc::clone(store);
    let look = move || store.view_at(Height(3)).map(|view| view.root());
    let slow = std::thread::Builder::new().name(SLOW.into()).spawn(look).unwrap();
    drop(changed.wait_while(gate.lock().unwrap(), |gate| !gate.waiting).unwrap());
    slow
}

fn let_go((gate, changed): &(Mutex<Gate>, Condvar)) {
    gate.lock().unwrap().closed = false;
    changed.notify_all();
}

/// spec: STORE-6. A height is rebuilt from a version that expires meanwhile: pages of that may be gone, so it is said that it was held for
/// too long, and never that something is damaged.
#[test]
fn what_is_rebuilt_from_a_version_that_expires_is_gone() {
    let (files, shared) = gated();
    let options = Options { views_max: 1, recent_versions: 1, ..small() };
    let store = Arc::new(TestStore::create(Arc::new(files), options).unwrap());
    let roots: Vec<_> = (0..60).map(|height| put(&store, height, &format!("key {}", height % 7), b"value")).collect();
    let slow = look_back_until_let_go(&store, &shared);
    // It is in the middle of it, and goes by the last version of then. Now others are held.
    let held: Vec<_> = (60..64)
        .map(|height| {
            put(&store, height, "key 1", b"another");
            store.view()
        })
        .collect();
    assert!(store.stats().views <= 3);
    let_go(&shared);
    let found = slow.join().unwrap();
    assert!(matches!(found, Err(StoreError::Read(ReadError::Gone { .. }))), "{found:?}");
    drop(held);
    assert_eq!(store.view_at(Height(3)).unwrap().root(), roots[3], "once there is room");
}

/// Rebuilding an early height takes as long as it takes. Commits, rollbacks and other views do not wait for it, and what
/// it reads is not pruned away from under it.
#[test]
fn looking_back_holds_up_nobody() {
    let (files, shared) = gated();
    let store = Arc::new(TestStore::create(Arc::new(files), small()).unwrap());
    let roots: Vec<_> = (0..60).map(|height| put(&store, height, &format!("key {}", height % 7), b"value")).collect();
    let slow = look_back_until_let_go(&store, &shared);
    // It is in the middle of it.
    put(&store, 60, "key", b"value");
    assert_eq!(store.view_at(Height(58)).unwrap().root(), roots[58]);
    store.rollback(Height(50)).unwrap();
    put(&store, 51, "other", b"value");
    store.prune(Height(40)).unwrap();
    store.compact(&mut |_| {}).unwrap();
    let_go(&shared);
    match slow.join().unwrap() {
        // Asked for before it was given up, so either answer is right; a wrong root or damage is not.
        Ok(root) => assert_eq!(root, roots[3]),
        Err(error) => assert!(matches!(error, StoreError::NotRetained { .. }), "{error}"),
    }
    assert_eq!(store.view_at(Height(45)).unwrap().root(), roots[45]);
}
