//! Power cuts and failing disks, at every change a store makes.

use crate::support::{Model, Random, TestStore, apply, contents, count, namespace, random_diff, root_of, small};
use keelstone_codec::Height;
use keelstone_store::files::{Fault, FaultyFiles};
use keelstone_store::{Options, StoreError};
use keelstone_tree::{KeyRange, Read};
use std::sync::Arc;

/// What was promised: the states of all acknowledged heights, and of the step that was under way.
#[derive(Default)]
struct Promise {
    created: bool,
    /// The state of each height of the line of history, the last one last.
    line: Vec<Model>,
    /// What the line will be if the step under way takes effect.
    pending: Option<Vec<Model>>,
}

fn options() -> Options {
    Options { segment_bytes: 4 << 10, page_segment_bytes: 6 << 10, flush_bytes: 3 << 10, ..small() }
}

/// A fixed piece of life with everything in it. Stops at the first error, which it returns.
fn live(files: &FaultyFiles, seed: u64, promise: &mut Promise) -> Result<(), StoreError> {
    let mut random = Random(seed);
    let store = TestStore::create(Arc::new(files.clone()), options())?;
    promise.created = true;
    for step in 0..36 {
        match step {
            11 | 27 => {
                let back = 1 + random.below(4);
                let to = promise.line.len() as u64 - 1 - back;
                promise.pending = Some(promise.line[..=to as usize].to_vec());
                store.rollback(Height(to))?;
            }
            18 => store.prune(Height(promise.line.len() as u64 - 3))?,
            20 | 33 => drop(store.compact(&mut |_| {})?),
            24 => store.flush()?,
            _ => {
                let diff = random_diff(&mut random);
                let mut state = promise.line.last().cloned().unwrap_or_default();
                apply(&mut state, &diff);
                let height = Height(promise.line.len() as u64);
                let mut line = promise.line.clone();
                line.push(state);
                promise.pending = Some(line);
                store.commit(height, diff)?;
            }
        }
        if let Some(line) = promise.pending.take() {
            promise.line = line;
        }
    }
    store.close()
}

/// What is opened is what was acknowledged, or that and the step under way.
fn assert_kept(store: &TestStore, promise: &Promise, what: &str) {
    let matches = |line: &Vec<Model>| {
        let height = (line.len() as u64).checked_sub(1).map(Height);
        store.height() == height && store.root() == root_of(line.last().unwrap_or(&Model::new()))
    };
    let line = std::iter::once(&promise.line).chain(&promise.pending).find(|line| matches(line));
    let line = line.unwrap_or_else(|| panic!("{what}: found {:?}, promised {}", store.height(), promise.line.len()));
    assert_eq!(contents(&store.view()), line.last().cloned().unwrap_or_default(), "{what}");
    for height in store.low().map_or(0, |low| low.0)..line.len() as u64 {
        let view = store.view_at(Height(height)).unwrap_or_else(|error| panic!("{what}: height {height}: {error}"));
        assert_eq!(view.root(), root_of(&line[height as usize]), "{what}: height {height}");
    }
}

fn changes_of(seed: u64) -> u64 {
    let files = FaultyFiles::new(seed);
    live(&files, seed, &mut Promise::default()).unwrap();
    files.changes()
}

/// spec: STORE-1, STORE-2, STORE-4, STORE-5, STORE-10. The power fails at every single change, and what comes back is
/// any subset of what was not synced. The store opens, and nothing acknowledged is missing.
#[test]
fn a_power_cut_at_any_change_loses_nothing_acknowledged() {
    for seed in 0..count("KEELSTONE_CUT_SEEDS", 4) {
        for cut in 0..changes_of(seed) {
            let files = FaultyFiles::new(seed);
            files.fail_at(cut, Fault::PowerCut);
            let mut promise = Promise::default();
            let error = live(&files, seed, &mut promise).expect_err("the power is off");
            let after = files.after_power_cut(seed ^ cut);
            let what = format!("seed {seed} cut {cut} ({error})");
            // Power that fails again while the store recovers changes nothing either.
            let again = seed % 2 == 1;
            if again {
                after.fail_at(cut % 5, Fault::PowerCut);
                drop(TestStore::open(Arc::new(after.clone()), options()));
            }
            let after = if again { after.after_power_cut(cut) } else { after };
            match TestStore::open(Arc::new(after), options()) {
                Ok(store) => assert_kept(&store, &promise, &what),
                Err(StoreError::Missing { .. }) if !promise.created => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
}

/// The simulator is worth something: with a directory sync that does nothing, files are lost, and it is noticed.
#[test]
fn w07_without_directory_syncs_the_power_cut_loses_files() {
    let seed = 3;
    let lost = (1..changes_of(seed)).step_by(7).any(|cut| {
        let files = FaultyFiles::new(seed);
        files.fail_at(0, Fault::DirectorySyncLies);
        let mut promise = Promise::default();
        live(&files, seed, &mut promise).unwrap();
        TestStore::open(Arc::new(files.after_power_cut(cut)), options()).is_err()
    });
    assert!(lost, "dropping directory syncs must show");
}

/// A disk that only says it synced can take a store back to an earlier height. It never makes a wrong one, and whoever
/// knows the height that was acknowledged sees it at once.
#[test]
fn w04_a_lying_disk_shows_as_an_older_height_or_as_damage() {
    let seed = 5;
    let mut noticed = 0;
    for from in (10..changes_of(seed)).step_by(3) {
        let files = FaultyFiles::new(seed);
        files.fail_at(from, Fault::SyncLies);
        let mut promise = Promise::default();
        live(&files, seed, &mut promise).unwrap();
        let Ok(store) = TestStore::open(Arc::new(files.after_power_cut(from)), options()) else {
            noticed += 1;
            continue;
        };
        if store.height().map_or(0, |height| height.0 + 1) < promise.line.len() as u64 {
            noticed += 1;
        }
        // Whatever height it is, what it holds is a state that hashes to its root.
        assert_eq!(root_of(&contents(&store.view())), store.root());
    }
    assert!(noticed > 10, "a lying disk must lose something");
}

/// spec: STORE-8. After a failed write or sync nothing is acknowledged until the store is opened again; reads go on.
#[test]
fn w06_a_failed_write_stops_writing_and_reading_goes_on() {
    for (seed, fault) in [(1, Fault::Io), (2, Fault::NoSpace)] {
        for at in 0..changes_of(seed) {
            let files = FaultyFiles::new(seed);
            files.fail_at(at, fault);
            let mut random = Random(seed);
            let what = format!("seed {seed} {fault:?} at {at}");
            let Ok(store) = TestStore::create(Arc::new(files.clone()), options()) else { continue };
            let mut line: Vec<Model> = Vec::new();
            let mut pending = None;
            let mut failed = None;
            for height in 0..60 {
                let diff = random_diff(&mut random);
                let mut state = line.last().cloned().unwrap_or_default();
                apply(&mut state, &diff);
                match store.commit(Height(height), diff) {
                    Ok(_) => line.push(state),
                    Err(error) => {
                        failed = Some(error);
                        pending = Some([line.clone(), vec![state]].concat());
                        break;
                    }
                }
            }
            let Some(error) = failed else { continue };
            assert!(matches!(error, StoreError::Io { .. }), "{what}: {error}");
            let again = store.commit(Height(line.len() as u64), random_diff(&mut random));
            assert!(matches!(again, Err(StoreError::Poisoned { .. })), "{what}: {again:?}");
            assert!(matches!(store.flush(), Err(StoreError::Poisoned { .. })), "{what}");
            assert_eq!(contents(&store.view()), line.last().cloned().unwrap_or_default(), "{what}");
            drop(store);
            let store = TestStore::open(Arc::new(files.clone()), options()).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_kept(&store, &Promise { created: true, line, pending }, &what);
        }
    }
}

/// A read that fails once is tried again; one that keeps failing is an error, never an absence.
#[test]
fn w06_a_failing_read_is_tried_again_and_then_reported() {
    let files = FaultyFiles::new(9);
    let mut promise = Promise::default();
    live(&files, 9, &mut promise).unwrap();
    let whole = promise.line.last().unwrap();
    for at in 0..40 {
        let files = files.after_power_cut(at);
        files.fail_reads(at, 1);
        let store = TestStore::open(Arc::new(files), options()).expect("one failed read does no harm");
        assert_eq!(contents(&store.view()), *whole);
    }
    for at in 0..40 {
        let files = files.after_power_cut(at);
        files.fail_reads(at, u64::MAX - at);
        match TestStore::open(Arc::new(files), options()) {
            Err(StoreError::Io { .. } | StoreError::Read(_)) => {}
            Err(other) => panic!("read {at}: {other}"),
            Ok(store) => {
                for (name, entries) in whole {
                    let scanned: Result<Vec<_>, _> = store.view().scan(&namespace(name), KeyRange::all()).collect();
                    assert!(scanned.is_err() || scanned.is_ok_and(|found| found.len() == entries.len()), "read {at}");
                }
            }
        }
    }
}
