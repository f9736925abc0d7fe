//! The scrub: damage is found while the store is at work, all of it, and by whoever opens the store next.

use crate::support::{Random, TestStore, namespace, put, random_diff, small};
use keelstone_codec::{Height, Key, Value};
use keelstone_store::files::{Fault, FaultyFiles, Files, MemoryFiles};
use keelstone_store::{CheckLevel, Options, Retention, StoreError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a slice: a few sectors, a few entries.
const SLICE: u64 = 4096;

fn sample(files: &MemoryFiles) -> TestStore {
    let store = TestStore::create(Arc::new(files.clone()), small()).unwrap();
    let mut random = Random(5);
    for height in 0..120 {
        store.commit(Height(height), random_diff(&mut random)).unwrap();
    }
    store.flush().unwrap();
    store
}

/// Scrubs to the end of a pass. What was found, and how many slices it took.
fn pass(store: &TestStore) -> (Vec<StoreError>, u64) {
    let mut found = Vec::new();
    for slices in 1..100_000 {
        let scrubbed = store.scrub(SLICE).unwrap();
        found.extend(scrubbed.problems);
        if scrubbed.is_pass_done {
            return (found, slices);
        }
    }
    panic!("a pass has an end");
}

/// spec: STORE-13. A sound store has no problems, whatever is committed, flushed, compacted and pruned between slices.
#[test]
fn a_pass_over_a_sound_store_finds_nothing_whatever_goes_on_meanwhile() {
    let files = MemoryFiles::new();
    let store = sample(&files);
    let mut random = Random(6);
    let (mut height, mut done) = (120, 0);
    while done < 4 {
        let scrubbed = store.scrub(SLICE).unwrap();
        assert!(scrubbed.problems.is_empty(), "{:?}", scrubbed.problems);
        let standing = store.scrub_standing();
        assert!(standing.done_bytes <= standing.total_bytes && standing.problems == 0, "{standing:?}");
        done += u64::from(scrubbed.is_pass_done);
        match random.below(12) {
            0 => store.flush().unwrap(),
            1 => store.prune(Height(height - 5)).unwrap(),
            2 => {
                store.compact(&mut |_| {}).unwrap();
            }
            3 if height > 130 && store.low().is_none_or(|low| low.0 < height - 2) => {
                height -= 2;
                store.rollback(Height(height - 1)).unwrap();
            }
            _ => {
                store.commit(Height(height), random_diff(&mut random)).unwrap();
                height += 1;
            }
        }
    }
    assert_eq!(store.scrub_standing().passes, 4);
}

/// spec: STORE-13. A flipped bit in any sector that is settled, in any file, is found by one pass.
#[test]
fn w01_one_pass_finds_a_flipped_bit_in_any_file() {
    let files = MemoryFiles::new();
    let store = sample(&files);
    let image = files.image();
    let mut random = Random(7);
    let mut kinds = BTreeSet::new();
    for (name, bytes) in &image {
        // The scrub's own file is there from its first slice on, and may be damaged.
        let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        if name == "scrub" || written.is_empty() {
            continue;
        }
        let at = written[random.below(written.len() as u64) as usize];
        let file = files.open(name).unwrap();
        file.write_at(at as u64, &[bytes[at] ^ 1 << random.below(8)]).unwrap();
        let (found, _) = pass(&store);
        // What will change yet, behind the end of the log, is not looked at while the store is open.
        let log = name.ends_with(".log") && image.keys().rfind(|name| name.ends_with(".log")) == Some(name);
        assert!(log || found.iter().any(StoreError::is_damage), "{name} byte {at}: {found:?}");
        kinds.insert(name.rsplit('.').next().unwrap().to_owned());
        file.write_at(at as u64, &bytes[at..=at]).unwrap();
        let (found, _) = pass(&store);
        assert!(found.is_empty() && store.scrub_standing().problems == 0, "{name}: {found:?}");
    }
    assert!(kinds.len() >= 3, "{kinds:?}");
}

/// spec: STORE-13. A sector of an old record that was lost whole has no bad checksum; in the middle of the log it is found.
#[test]
fn w04_a_sector_that_never_reached_the_disk_is_found_in_the_log_and_under_the_state() {
    let files = MemoryFiles::new();
    let store = sample(&files);
    let name = files.list().unwrap().into_iter().find(|name| name.ends_with(".log")).unwrap();
    let bytes = files.image()[&name].clone();
    let file = files.open(&name).unwrap();
    for sector in [1, 2, 3] {
        file.write_at(sector * 512, &[0; 512]).unwrap();
        let (found, _) = pass(&store);
        assert!(found.iter().any(|problem| problem.to_string().contains("is empty, but")), "{sector}: {found:?}");
        let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
        assert!(!report.is_sound(), "a full check finds it too");
        file.write_at(0, &bytes).unwrap();
    }
    for name in files.list().unwrap().iter().filter(|name| name.ends_with(".pages")) {
        let file = files.open(name).unwrap();
        file.write_at(512, &vec![0; file.len().unwrap() as usize - 512]).unwrap();
    }
    let (found, _) = pass(&store);
    assert!(found.iter().any(StoreError::is_damage), "{found:?}");
}

/// Damage in one page or value costs what lies below it and nothing else, and all of it is named.
#[test]
fn a_full_check_names_every_piece_that_is_lost_and_reads_the_rest() {
    let files = MemoryFiles::new();
    let options = Options { segment_bytes: 256 << 10, page_segment_bytes: 256 << 10, flush_bytes: 1 << 20, ..small() };
    let store = TestStore::create(Arc::new(files.clone()), options).unwrap();
    let entry = |key: u64| {
        let value = Value::new(vec![7; 900]).unwrap();
        (namespace("a"), Key::new(key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).unwrap(), Some(value))
    };
    const KEYS: u64 = 250;
    store.commit(Height(0), (0..KEYS).map(entry).collect()).unwrap();
    store.flush().unwrap();
    let image = files.image();
    let flip = |name: &str, at: usize| files.open(name).unwrap().write_at(at as u64, &[image[name][at] ^ 1]).unwrap();
    // Two values, far from one another, and a page: the first that was written, so one without pages below.
    let log = image.keys().find(|name| name.ends_with(".log")).unwrap();
    let pages = image.keys().find(|name| name.ends_with(".pages")).unwrap();
    flip(log, 40 * 512 + 100);
    flip(log, 300 * 512 + 100);
    flip(pages, 512 + 100);
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    let lost: u64 = report
        .problems
        .iter()
        .map(|problem| match problem {
            StoreError::Unreadable { entries, .. } => *entries,
            _ => 0,
        })
        .sum();
    assert!((3..KEYS / 2).contains(&lost), "{:?}", report.problems);
    assert_eq!(report.values + lost, KEYS, "each entry is read or named as lost: {:?}", report.problems);
    assert!(report.problems.iter().all(StoreError::is_damage));
}

/// spec: STORE-13. Where a pass stands survives the store, and so does that damage was found, until a pass finds none.
#[test]
fn a_pass_goes_on_where_it_stood_and_a_restart_forgets_no_damage() {
    let files = MemoryFiles::new();
    let store = sample(&files);
    let (_, slices) = pass(&store);
    (0..slices / 2).for_each(|_| drop(store.scrub(SLICE).unwrap()));
    let stood = store.scrub_standing();
    drop(store);
    let store = TestStore::open(Arc::new(files.clone()), small()).unwrap();
    assert_eq!(store.scrub_standing().done_bytes, stood.done_bytes);
    let (found, rest) = pass(&store);
    assert!(found.is_empty() && rest < slices, "{rest} slices after half of {slices}");
    assert_eq!(store.scrub_standing().passes, 2);

    let name = files.list().unwrap().into_iter().find(|name| name.ends_with(".log")).unwrap();
    let before = files.image()[&name].clone();
    files.open(&name).unwrap().write_at(700, &[before[700] ^ 1]).unwrap();
    while store.scrub_standing().problems == 0 {
        store.scrub(SLICE).unwrap();
    }
    drop(store);
    let store = TestStore::open(Arc::new(files.clone()), small()).unwrap();
    let standing = store.scrub_standing();
    assert!(standing.problems > 0 && standing.done_bytes == 0, "it begins anew: {standing:?}");
    files.open(&name).unwrap().write_at(700, &before[700..701]).unwrap();
    pass(&store);
    assert_eq!(store.scrub_standing().problems, 0, "a whole pass found none");
}

/// spec: STORE-13. Without descriptors nothing can be looked at, which is no damage: a slice and a check fail, and what they
/// were to look at is looked at later.
#[test]
fn l06_a_lack_of_descriptors_is_no_damage() {
    let files = FaultyFiles::new(1);
    let store = TestStore::create(Arc::new(files.clone()), small()).unwrap();
    let mut random = Random(5);
    for height in 0..120 {
        store.commit(Height(height), random_diff(&mut random)).unwrap();
    }
    store.flush().unwrap();
    let (_, whole) = pass(&store);
    let mut failed = 0;
    for slice in 0..whole {
        let stood = store.scrub_standing();
        files.run_out_of_descriptors();
        match store.scrub(SLICE) {
            Err(error) => {
                assert!(error.is_shortage() && !error.is_damage(), "{error}");
                assert_eq!(store.scrub_standing(), stood, "slice {slice} is not behind us");
                failed += 1;
                files.mend();
                assert!(store.scrub(SLICE).unwrap().problems.is_empty());
            }
            // The first slice is the superblock, which is open.
            Ok(scrubbed) => assert!(scrubbed.problems.is_empty() && slice == 0, "slice {slice}: {scrubbed:?}"),
        }
        files.mend();
    }
    assert_eq!((store.scrub_standing().passes, store.scrub_standing().problems), (2, 0));
    assert_eq!(failed, whole - 1);

    files.run_out_of_descriptors();
    for level in [CheckLevel::Quick, CheckLevel::Full] {
        let error = store.check(level, &mut |_| {}).unwrap_err();
        assert!(error.is_shortage(), "{error}");
    }
    files.mend();
    assert!(store.check(CheckLevel::Full, &mut |_| {}).unwrap().is_sound());
}

/// L-06, spec: STORE-8. Commits, flushes and compactions go on where descriptors lack for a while, and end where they lack for good.
#[test]
fn l06_a_lack_of_descriptors_is_waited_out_by_whoever_makes_files() {
    let files = FaultyFiles::new(2);
    let options = Options { history: Retention::Heights(3), background: true, ..small() };
    let store = TestStore::create(Arc::new(files.clone()), options.clone()).unwrap();
    let mut random = Random(6);
    let mut height = 0;
    let mut commit = |store: &TestStore| {
        let done = store.commit(Height(height), random_diff(&mut random));
        height += u64::from(done.is_ok());
        done
    };
    for _ in 0..40 {
        commit(&store).unwrap();
    }
    for _ in 0..3 {
        files.run_out_of_descriptors();
        let relief = std::thread::spawn({
            let files = files.clone();
            move || {
                std::thread::sleep(Duration::from_millis(150));
                files.mend();
            }
        });
        let before = files.list().unwrap();
        let began = Instant::now();
        // More than there is room for.
        while began.elapsed() < Duration::from_millis(300) {
            commit(&store).unwrap();
        }
        relief.join().unwrap();
        store.flush().unwrap();
        assert!(files.list().unwrap().iter().any(|name| !before.contains(name)), "no file was to be made meanwhile");
    }
    let root = store.root();
    drop(store);
    let store = TestStore::open(Arc::new(files.clone()), options).unwrap();
    assert_eq!(store.root(), root);
    assert!(store.check(CheckLevel::Full, &mut |_| {}).unwrap().is_sound());

    let began = Instant::now();
    files.run_out_of_descriptors();
    let ended = (0..10_000).find_map(|_| commit(&store).err()).expect("no store has room for all of that");
    assert!(ended.is_shortage() || matches!(ended, StoreError::Poisoned { .. }), "{ended}");
    assert!(matches!(commit(&store), Err(StoreError::Poisoned { .. })), "until it is opened again");
    store.close().unwrap_err();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "closed after {took:?}: who lacks descriptors waits for all that lack them");
}

/// spec: STORE-13. Where the scrub stands cannot be kept, for as long as the disk takes nothing: what it finds is told all the same, and
/// again by the next slice, which looks at the same.
#[test]
fn what_a_scrub_finds_is_told_though_its_place_cannot_be_kept() {
    let files = FaultyFiles::new(3);
    let store = TestStore::create(Arc::new(files.clone()), small()).unwrap();
    put(&store, 0, "key", b"value");
    let superblock = files.open("superblock").unwrap();
    let fail = || files.fail_at(files.changes(), Fault::IoForever);
    fail();
    assert!(matches!(store.scrub(SLICE), Err(StoreError::Io { .. })), "there is nothing to tell but that");
    files.mend();
    superblock.write_at(600, &[1]).unwrap();
    fail();
    for _ in 0..2 {
        let scrubbed = store.scrub(SLICE).unwrap();
        assert!(!scrubbed.is_pass_done && scrubbed.problems.iter().all(StoreError::is_damage), "{scrubbed:?}");
        assert_eq!((scrubbed.problems.len(), store.scrub_standing().done_bytes), (1, 0));
        assert!(store.scrub_standing().problems > 0);
    }
    files.mend();
    superblock.write_at(600, &[0]).unwrap();
    let _ = pass(&store);
    assert!(pass(&store).0.is_empty());
    assert_eq!(store.scrub_standing().problems, 0);
}

/// spec: STORE-13. Nothing depends on the file: any byte of it may be anything.
#[test]
fn a_damaged_cursor_only_begins_a_pass_anew() {
    let files = MemoryFiles::new();
    let store = sample(&files);
    (0..5).for_each(|_| drop(store.scrub(SLICE).unwrap()));
    assert!(store.scrub_standing().done_bytes > 0);
    let root = store.root();
    drop(store);
    let mut image = files.image();
    for at in (0..512).step_by(7) {
        let mut image = image.clone();
        image.get_mut("scrub").unwrap()[at] ^= 4;
        let store = TestStore::open(Arc::new(MemoryFiles::from_image(&image)), small()).unwrap();
        assert_eq!((store.root(), store.scrub_standing().done_bytes), (root, 0), "byte {at}");
        put(&store, 120, "key", b"value");
        assert!(pass(&store).0.is_empty());
    }
    image.insert("scrub".to_owned(), Vec::new());
    let store = TestStore::open(Arc::new(MemoryFiles::from_image(&image)), small()).unwrap();
    assert!(pass(&store).0.is_empty());
}
