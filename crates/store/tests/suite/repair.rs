//! Repair: a whole store at the very root the damaged one stood at, or none and what is lost.

use crate::support::{Model, Random, TestStore, apply, contents, count, namespace, put, random_diff, root_of, small};
use keelstone_codec::{Height, Root};
use keelstone_store::files::MemoryFiles;
use keelstone_store::{CheckLevel, Loss, Options, RepairError, Repaired, RepairedFrom, Source, StoreError, Take};
use keelstone_tree::Blake3;
use std::collections::BTreeMap;
use std::sync::Arc;

type Image = BTreeMap<String, Vec<u8>>;

/// A life of some hundred heights with a rollback in it, the last few not flushed; and the state at each height.
fn sample(prune: bool) -> (Image, Vec<Model>) {
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), small()).unwrap();
    let mut random = Random(21);
    let (mut line, mut state) = (Vec::<Model>::new(), Model::new());
    for step in 0..130 {
        match step {
            70 => {
                store.rollback(Height(60)).unwrap();
                line.truncate(61);
                state = line[60].clone();
            }
            100 if prune => store.prune(Height(80)).unwrap(),
            101 if prune => {
                store.compact(&mut |_| {}).unwrap();
            }
            120 => store.flush().unwrap(),
            _ => {
                let diff = random_diff(&mut random);
                apply(&mut state, &diff);
                store.commit(Height(line.len() as u64), diff).unwrap();
                line.push(state.clone());
            }
        }
    }
    drop(store);
    (files.image(), line)
}

fn repair(image: &Image, sources: &mut [Source<'_>]) -> Result<Repaired<Blake3>, RepairError> {
    let options = Options { id: None, ..small() };
    let files = Arc::new(MemoryFiles::from_image(image));
    TestStore::repair(files, Arc::new(MemoryFiles::new()), &options, sources, &mut |_| {})
}

/// The repaired store is sound, at the state that is expected, has all heights from `low` on, and goes on.
fn assert_whole(repaired: &Repaired<Blake3>, line: &[Model], what: &str) {
    let store = &repaired.store;
    let last = line.len() as u64 - 1;
    assert_eq!((store.height(), store.root()), (Some(Height(last)), root_of(line.last().unwrap())), "{what}");
    assert_eq!(contents(&store.view()), *line.last().unwrap(), "{what}");
    let low = store.low().unwrap().0;
    for height in (low..=last).step_by(7).chain([low]) {
        assert_eq!(store.view_at(Height(height)).unwrap().root(), root_of(&line[height as usize]), "{what}: {height}");
    }
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{what}: {:?}", report.problems);
    put(store, last + 1, "key", b"value");
}

/// A state as a source.
fn hand_over(state: &Model) -> impl FnMut(Take<'_>) -> Result<(), StoreError> {
    move |take| {
        for (name, entries) in state {
            entries.iter().try_for_each(|(key, value)| take(&namespace(name), key, value))?;
        }
        Ok(())
    }
}

/// spec: STORE-14. Whatever byte is flipped, in a store with its whole log or with a part of it: a repair comes to the very
/// root, or makes nothing and says what is lost.
#[test]
fn w03_whatever_byte_is_flipped_a_repair_comes_to_the_very_root_or_names_what_is_lost() {
    for prune in [false, true] {
        let (image, line) = sample(prune);
        let places: Vec<(&str, usize)> = image
            .iter()
            .flat_map(|(name, bytes)| (0..bytes.len()).filter(|at| bytes[*at] != 0).map(|at| (name.as_str(), at)))
            .collect();
        let stride = count("KEELSTONE_REPAIR_STRIDE", 499) as usize;
        let (mut whole, mut lost) = (0, 0);
        for (name, at) in places.iter().step_by(stride) {
            let mut image = image.clone();
            image.get_mut(*name).unwrap()[*at] ^= 1 << (at % 8);
            let what = format!("{name} byte {at}");
            match repair(&image, &mut []) {
                Ok(repaired) => {
                    assert_whole(&repaired, &line, &what);
                    whole += 1;
                }
                Err(RepairError::Lost { losses, .. }) => {
                    assert!(!losses.is_empty(), "{what}: nothing is named");
                    // The whole log tells everything: without it, and with it damaged, less can be had again.
                    assert!(prune || name.ends_with(".log"), "{what}: {losses:?}");
                    lost += 1;
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
        assert!(whole > lost, "{whole} whole, {lost} lost");
    }
}

/// spec: STORE-14. What the log tells from its beginning needs neither pages nor a superblock, and loses nothing.
#[test]
fn w03_a_store_without_superblock_and_pages_comes_back_from_its_log() {
    let (mut image, line) = sample(false);
    image.retain(|name, _| !name.ends_with(".pages"));
    image.get_mut("superblock").unwrap().fill(0xaa);
    let repaired = repair(&image, &mut []).unwrap();
    assert_eq!((repaired.from, repaired.lost), (RepairedFrom::Log, None));
    assert_eq!(repaired.store.low(), Some(Height(0)));
    assert_whole(&repaired, &line, "from the log");
    image.remove("superblock");
    assert_whole(&repair(&image, &mut []).unwrap(), &line, "with no superblock at all");
}

/// spec: STORE-14. A repair that is cut off, at whatever it does, makes no store; the same again makes a whole one. By the log alone,
/// and by a version and what the log has behind it.
#[test]
fn a_repair_that_is_cut_off_makes_nothing() {
    let (image, line) = sample(false);
    let mut without_its_beginning = image.clone();
    let first = image.keys().find(|name| name.ends_with(".log")).unwrap();
    without_its_beginning.get_mut(first).unwrap()[512 * 3 + 8] ^= 1;
    let options = Options { id: None, ..small() };
    for (image, cuts_min) in [(image, 2), (without_its_beginning, 10)] {
        for last in 0.. {
            let (files, into) = (Arc::new(MemoryFiles::from_image(&image)), Arc::new(MemoryFiles::new()));
            let mut asked = 0;
            let mut go_on = |_| {
                asked += 1;
                asked <= last
            };
            let repaired = TestStore::repair_while(files.clone(), into.clone(), &options, &mut [], &mut go_on).unwrap();
            if let Some(repaired) = repaired {
                assert_whole(&repaired, &line, "to its end");
                assert!(last >= cuts_min, "it was cut off {last} times");
                break;
            }
            assert!(into.image().is_empty(), "{:?}", into.image().keys());
            if last % 8 == 0 {
                let again = TestStore::repair(files, into, &options, &mut [], &mut |_| {}).unwrap();
                assert_whole(&again, &line, "made again");
            }
        }
    }
}

/// spec: STORE-14. A record of old history that is damaged costs the heights up to the last in which a value of it stood, and
/// they are named.
#[test]
fn a_damaged_record_of_old_history_costs_the_heights_up_to_it() {
    let (mut image, line) = sample(false);
    let first = image.keys().find(|name| name.ends_with(".log")).cloned().unwrap();
    image.get_mut(&first).unwrap()[512 * 3 + 8] ^= 1;
    let repaired = repair(&image, &mut []).unwrap();
    assert_whole(&repaired, &line, "history");
    let Some((from, to)) = repaired.lost else { panic!("heights are lost") };
    assert_eq!((from, Some(to)), (Height(0), repaired.store.low()));
    assert!(matches!(repaired.from, RepairedFrom::Version(base) if base == to && to < Height(119)), "{repaired:?}");
}

/// spec: STORE-14. The last acknowledged record is lost, and its mark says which root it led to: a state of that root makes
/// the store whole, and one of another root does not.
#[test]
fn w08_a_last_record_that_is_lost_comes_back_from_a_snapshot_of_the_root_its_mark_says() {
    let (mut image, line) = sample(false);
    // The last two that begin in the log are the record and its mark.
    let starts =
        |bytes: &[u8]| (1..bytes.len() / 512).filter(|sector| bytes[sector * 512 + 504] & 1 == 1).collect::<Vec<_>>();
    let logs = image.iter_mut().filter(|(name, _)| name.ends_with(".log"));
    let (bytes, begins) = logs
        .map(|(_, bytes)| (starts(bytes), bytes))
        .rfind(|(begins, _)| begins.len() > 1)
        .map(|(begins, bytes)| (bytes, begins))
        .unwrap();
    bytes[begins[begins.len() - 2] * 512 + 200] ^= 1;
    let last = Height(line.len() as u64 - 1);
    let Err(RepairError::Lost { target, losses }) = repair(&image, &mut []) else { panic!("nothing else has it") };
    assert_eq!(target, Some((last, Some(root_of(line.last().unwrap())))));
    let lost = losses
        .iter()
        .any(|loss| matches!(loss, Loss::Records { after, to, .. } if *to == Some(last) && *after == last.prev()));
    assert!(lost, "{losses:?}");

    for (height, works) in [(last.0 as usize, true), (last.0 as usize - 1, false)] {
        let mut entries = hand_over(&line[height]);
        let root = root_of(&line[height]);
        let source = Source { height: last, root, entries: &mut entries };
        match repair(&image, &mut [source]) {
            Ok(repaired) if works => {
                assert_eq!(repaired.from, RepairedFrom::Source(last));
                assert_whole(&repaired, &line, "from a snapshot");
            }
            Err(RepairError::Lost { .. }) if !works => {}
            other => panic!("{other:?}"),
        }
    }
}

/// spec: STORE-14. A state of any height whose root the log says serves, with the log behind it; one that is not what it says
/// serves nobody.
#[test]
fn n04_lost_pages_and_a_pruned_log_come_back_from_an_older_snapshot_and_the_log() {
    let (mut image, line) = sample(true);
    image.retain(|name, _| !name.ends_with(".pages"));
    let first = image.keys().find(|name| name.ends_with(".log")).cloned().unwrap();
    image.get_mut(&first).unwrap()[512 * 3 + 8] ^= 1;
    let Err(RepairError::Lost { losses, .. }) = repair(&image, &mut []) else { panic!("the log does not reach back") };
    assert!(losses.iter().any(|loss| matches!(loss, Loss::Version(StoreError::Lost { .. }))), "{losses:?}");
    let height = line.len() - 6;
    let root = root_of(&line[height]);
    let from = |state: &Model, root: Root| {
        let mut entries = hand_over(state);
        repair(&image, &mut [Source { height: Height(height as u64), root, entries: &mut entries }])
    };
    let repaired = from(&line[height], root).unwrap();
    assert_eq!(repaired.from, RepairedFrom::Source(Height(height as u64)));
    assert_eq!(repaired.lost, Some((Height(80), Height(height as u64))));
    assert_whole(&repaired, &line, "from an older snapshot");
    // Another state under the root's name, and another state under its own.
    assert!(matches!(from(&line[height - 1], root), Err(RepairError::Lost { .. })));
    let other = root_of(&line[height - 1]);
    assert!(matches!(from(&line[height - 1], other), Err(RepairError::Lost { .. })));
}

/// spec: STORE-14. A store in use is not looked at, and the damaged one is left as it was.
#[test]
fn a_repair_changes_nothing_of_the_damaged_store_and_respects_its_lock() {
    let (mut image, _) = sample(false);
    image.get_mut("superblock").unwrap()[100] ^= 1;
    let files = MemoryFiles::from_image(&image);
    let options = small();
    let attempt = || {
        let into = Arc::new(MemoryFiles::new());
        TestStore::repair(Arc::new(files.clone()), into, &options, &mut [], &mut |_| {})
    };
    drop(attempt().unwrap());
    assert_eq!(files.image(), image);
    let _open = TestStore::open(Arc::new(files.clone()), small()).unwrap();
    assert!(matches!(attempt(), Err(RepairError::Store(StoreError::InUse { .. }))));
}
