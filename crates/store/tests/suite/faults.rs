//! Power cuts and failing disks, at every change a store makes.

use crate::life::{Lived, Real, Script, cut_power, fail_changes, fail_reads};
use crate::support::{TestStore, contents, count, root_of, try_contents};
use crate::toy::Bug;
use keelstone_store::files::{Fault, FaultyFiles};
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
