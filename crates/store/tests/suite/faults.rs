//! Power cuts and failing disks, at every change a store makes.

use crate::life::{Lived, Real, Script, cut_power, fail_changes, fail_reads};
use crate::support::{Random, TestStore, contents, count, put, random_diff, root_of, small, try_contents, watched};
use crate::toy::Bug;
use keelstone_codec::Height;
use keelstone_store::files::{Act, Fault, FaultyFiles, MemoryFiles};
use keelstone_store::{Options, StoreError};
use keelstone_tree::ReadError;
use std::sync::Arc;

/// Steps of a life.
const STEPS: usize = 60;

/// spec: STORE-1, STORE-2, STORE-4, STORE-5, STORE-10. The power fails at every single change of many lives, and what
/// comes back is any subset of what was not synced; in a fifth of the cases it fails again while the store recovers. The
/// store opens, nothing acknowledged is missing, nothing is wrong, and life goes on.
#[test]
fn a_power_cut_at_any_change_loses_nothing_acknowledged() {
    let (cuts, first) = (count("KEELSTONE_CUTS", 20_000), count("KEELSTONE_SEED", 0));
    match cut_power(&Real, first, STEPS, cuts) {
        Ok(done) => println!("{done} power cuts"),
        Err(wrong) => panic!("{wrong}"),
    }
}

/// A store that is in the middle of its life when the power goes: it says so and does not panic, whatever it was at.
#[test]
fn a_power_cut_is_an_error_of_whatever_was_under_way() {
    let script = Script::new(5, STEPS);
    let changes = Lived::new(&Real, Script::new(5, STEPS)).changes();
    for cut in 0..changes {
        let files = FaultyFiles::new(5);
        files.fail_at(cut, Fault::PowerCut);
        assert!(script.live(&Real, &files, &mut |_| {}).is_err(), "cut {cut}: the power is off");
    }
}

/// The simulator is worth something: with a directory sync that does nothing, files are lost, and it is noticed.
#[test]
fn w07_without_directory_syncs_the_power_cut_loses_files() {
    let lost = (0..40).any(|cut| {
        let files = FaultyFiles::new(3);
        files.fail_at(0, Fault::DirectorySyncLies);
        drop(Script::new(3, STEPS).live(&Real, &files, &mut |_| {}).expect("nobody was told"));
        TestStore::open(Arc::new(files.after_power_cut(cut)), Real::options()).is_err()
    });
    assert!(lost, "dropping directory syncs must show");
}

/// A disk that only says it synced can take a store back to an earlier height. It never makes a wrong one, and whoever
/// knows the height that was acknowledged sees it at once.
#[test]
fn w04_a_lying_disk_shows_as_an_older_height_or_as_damage() {
    let script = Script::new(5, STEPS);
    let changes = Lived::new(&Real, Script::new(5, STEPS)).changes();
    let mut noticed = 0;
    for from in (10..changes).step_by(3) {
        let files = FaultyFiles::new(5);
        files.fail_at(from, Fault::SyncLies);
        let height = script.live(&Real, &files, &mut |_| {}).expect("nobody was told").height();
        let Ok(store) = TestStore::open(Arc::new(files.after_power_cut(from)), Real::options()) else {
            noticed += 1;
            continue;
        };
        // Whatever height it is, what it holds is a state that hashes to its root, or is reported as damaged.
        match try_contents(&store.view()) {
            Ok(found) => assert_eq!(root_of(&found), store.root(), "from {from}"),
            Err(error) => assert!(matches!(error, ReadError::Damaged { .. }), "from {from}: {error}"),
        }
        noticed += u64::from(store.height() < height);
    }
    assert!(noticed > 10, "a lying disk must lose something: {noticed}");
}

/// The faults of a change, each a way in which disks fail.
const FAULTS: [Fault; 5] = [Fault::Io, Fault::IoForever, Fault::NoSpace, Fault::NoSpaceForever, Fault::ShortWrite];

/// spec: STORE-8. Every write, sync, rename, creation and removal of a life fails, in each way. After it nothing is
/// acknowledged until the store is opened again, and reads go on; nothing acknowledged is lost, also not when the power
/// fails afterwards or after the store was opened again: what a failed sync left unwritten is written anew.
#[test]
fn w06_a_failed_change_stops_writing_and_loses_nothing() {
    let seeds = count("KEELSTONE_FAULT_SEEDS", 2);
    let cases: Vec<_> = (0..seeds).flat_map(|seed| FAULTS.map(|fault| (100 + seed, fault))).collect();
    let tried: u64 = std::thread::scope(|scope| {
        let work = |first: usize| {
            let cases = cases.iter().skip(first).step_by(2);
            let tried = cases.map(|(seed, fault)| fail_changes(&Real, &Script::new(*seed, STEPS), *fault, 0, 1));
            tried.sum::<Result<u64, String>>().unwrap_or_else(|wrong| panic!("{wrong}"))
        };
        let threads = [0, 1].map(|first| scope.spawn(move || work(first)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(tried > seeds * 1000, "many changes fail: {tried}");
}

/// One wrong bit in any one read, or every read from one on failing: an error, or the right answer.
#[test]
fn w06_w01_a_wrong_or_failing_read_never_gives_a_wrong_answer() {
    for seed in 0..4 {
        for flips in [true, false] {
            fail_reads(&Real, &Script::new(seed, STEPS), flips).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

/// A single read that fails is tried again, and nobody notices.
#[test]
fn w06_a_read_that_fails_once_is_tried_again() {
    let (script, files) = (Script::new(9, STEPS), FaultyFiles::new(9));
    let whole = contents(&script.live(&Real, &files, &mut |_| {}).expect("a sound disk").view());
    for at in 0..60 {
        let files = files.after_power_cut(at);
        files.fail_reads(at, 1);
        let store = TestStore::open(Arc::new(files), Real::options()).expect("one failed read does no harm");
        assert_eq!(contents(&store.view()), whole);
    }
}

/// spec: STORE-4. One slot of the superblock cannot be read, which is how a disk loses a sector: the other is taken, and it is written
/// anew. If neither can be, the disk is what failed, and no bytes are said to be wrong.
#[test]
fn w06_a_slot_that_cannot_be_read_is_written_anew_from_the_other() {
    let files = FaultyFiles::new(4);
    let store = TestStore::create(Arc::new(files.clone()), small()).unwrap();
    for height in 0..5 {
        put(&store, height, "key", b"value");
    }
    store.flush().unwrap();
    let root = put(&store, 5, "key", b"another");
    drop(store);
    for slot in [0, 1] {
        let files = files.after_power_cut(slot);
        let open = || TestStore::open(Arc::new(files.clone()), small());
        // Each slot is read first of all, and once more if it cannot be.
        files.fail_reads(files.reads() + slot, 2);
        let store = open().unwrap_or_else(|error| panic!("slot {slot}: {error}"));
        assert_eq!((store.height(), store.root()), (Some(Height(5)), root));
        assert!(store.stats().superblock_repaired.is_some(), "slot {slot}");
        drop(store);
        let store = open().unwrap();
        assert_eq!((store.stats().superblock_repaired, store.root()), (None, root));
    }
    files.fail_reads(files.reads(), 4);
    let error = TestStore::open(Arc::new(files.clone()), small()).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert_eq!(TestStore::open(Arc::new(files), small()).unwrap().root(), root);
}

/// spec: STORE-8. A flush that panics has left something half done and never comes: the commits that wait for it hear of it.
#[test]
fn who_waits_for_a_flush_that_panics_is_told() {
    let files = watched(MemoryFiles::new(), |name, act| {
        assert!(!matches!(act, Act::Sync) || !name.ends_with(".pages"), "a flush is to panic");
    });
    let options = Options { background: true, ..small() };
    let store = TestStore::create(Arc::new(files), options).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut random = Random(7);
        let failed = (0..10_000).find_map(|height| store.commit(Height(height), random_diff(&mut random)).err());
        let failed = failed.expect("there is room for few");
        tell.send((failed, store.rollback(Height(0)).unwrap_err(), store.view().root())).unwrap();
    });
    let waited = told.recv_timeout(std::time::Duration::from_secs(60));
    let (commit, rollback, _) = waited.expect("nobody waits for ever");
    for error in [commit, rollback] {
        assert!(matches!(&error, StoreError::Poisoned { reason } if reason.contains("panic")), "{error}");
    }
}

/// Every test of this file, on a toy.
fn all(bug: Bug, rounds: u64) -> Result<(), String> {
    cut_power(&bug, 40, STEPS, 700 * rounds)?;
    let script = Script::new(41, STEPS);
    for fault in FAULTS {
        // Writes and syncs alternate: an odd stride meets both.
        fail_changes(&bug, &script, fault, 0, 3)?;
    }
    for flips in [true, false] {
        fail_reads(&bug, &script, flips)?;
    }
    Ok(())
}

/// These tests find what is wrong with a store: a toy that keeps its promises passes, one with any of many planted bugs
/// does not.
#[test]
fn a_toy_store_passes_and_each_of_its_planted_bugs_is_caught() {
    all(Bug::None, 2).unwrap_or_else(|wrong| panic!("the sound toy: {wrong}"));
    for bug in Bug::ALL {
        match all(bug, 4) {
            Ok(()) => panic!("{bug:?} was not noticed"),
            Err(noticed) => println!("{bug:?}: {noticed}"),
        }
    }
}

/// spec: STORE-2. The power fails in a commit, and once more in a shorter or longer one behind it: whatever sectors of either are on the disk,
/// what was acknowledged before is there.
#[test]
fn a_torn_record_over_what_is_left_of_another_is_no_damage() {
    const SECTOR: usize = 512;
    type Image = std::collections::BTreeMap<String, Vec<u8>>;
    fn log(image: &Image) -> &Vec<u8> {
        image.iter().find(|(name, _)| name.ends_with("1.log")).expect("one segment does").1
    }
    /// The sectors of a commit's record: those in which two images of the log differ but for the last, the mark, which is written once
    /// the others are synced.
    fn changed(before: &Image, after: &Image) -> Vec<usize> {
        let (before, after) = (log(before), log(after));
        let differs = |at: &usize| before[at * SECTOR..][..SECTOR] != after[at * SECTOR..][..SECTOR];
        let mut found: Vec<usize> = (0..before.len() / SECTOR).filter(differs).collect();
        found.pop();
        found
    }
    /// `before`, with those of the sectors that a commit has changed of which a bit is set.
    fn some_of(before: &Image, after: &Image, chosen: u32) -> Image {
        let mut image = before.clone();
        let name = image.keys().find(|name| name.ends_with("1.log")).expect("one segment does").clone();
        for (_, at) in changed(before, after).into_iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1) {
            image.get_mut(&name).expect("it is there")[at * SECTOR..][..SECTOR]
                .copy_from_slice(&log(after)[at * SECTOR..][..SECTOR]);
        }
        image
    }
    let options = || Options { segment_bytes: 64 << 10, flush_bytes: u64::MAX / 2, ..small() };
    let open = |image: &Image| {
        let files = MemoryFiles::from_image(image);
        (files.clone(), TestStore::open(Arc::new(files), options()))
    };
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), options()).unwrap();
    put(&store, 0, "key", b"kept");
    let kept = files.image();
    for lengths in [[2_000, 700], [700, 2_000], [1_200, 1_200]] {
        let (first_files, store) = open(&kept);
        let begun = first_files.image();
        put(&store.unwrap(), 1, "key", &vec![1; lengths[0]]);
        let first = first_files.image();
        for torn in 1..(1 << changed(&begun, &first).len()) - 1 {
            let (second_files, store) = open(&some_of(&begun, &first, torn));
            let store = store.unwrap_or_else(|error| panic!("sectors {torn:b} of {}: {error}", lengths[0]));
            assert_eq!(store.height(), Some(Height(0)));
            let begun = second_files.image();
            put(&store, 1, "key", &vec![2; lengths[1]]);
            let second = second_files.image();
            let sectors = changed(&begun, &second).len();
            for again in 0..(1 << sectors) - 1 {
                let what = format!("sectors {torn:b} of {}, then {again:b} of {}", lengths[0], lengths[1]);
                let store = open(&some_of(&begun, &second, again)).1.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(store.height(), Some(Height(0)), "{what}");
            }
        }
    }
}
