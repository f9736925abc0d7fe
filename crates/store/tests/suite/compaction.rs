//! Compaction: in slices of a bounded size, and past what it cannot read.

use crate::mend::{Has, Image, key, lose};
use crate::support::{Model, TestStore, apply, contents, namespace, root_of, small, try_contents};
use keelstone_codec::{Height, Value};
use keelstone_store::files::MemoryFiles;
use keelstone_store::{Compacted, Options, Retention, StoreError};
use keelstone_tree::Diff;
use std::sync::Arc;

/// Nothing of the state stays in memory, and nothing is compacted that nobody asked for.
fn cold() -> Options {
    let (segment_bytes, page_segment_bytes) = (32 << 10, 32 << 10);
    Options { segment_bytes, page_segment_bytes, cache_bytes: 0, value_cache_bytes: 0, garbage_percent: 0, ..small() }
}

/// A block in which every second or third key of some hundred is written, in two namespaces.
fn block(height: u64) -> Diff {
    let keys = (0..600).filter(|number| (number + height).is_multiple_of(2 + height % 2));
    let write = |number: u64| {
        let name = if number.is_multiple_of(50) { "few" } else { "many" };
        (namespace(name), key(number), Some(Value::new(vec![height as u8; 1 + (number % 90) as usize]).unwrap()))
    };
    keys.map(write).collect()
}

fn commit(store: &TestStore, state: &mut Model, heights: std::ops::Range<u64>) {
    for height in heights {
        let diff = block(height);
        apply(state, &diff);
        assert_eq!(store.commit(Height(height), diff).unwrap(), root_of(state));
    }
}

fn compact(store: &TestStore) -> Compacted {
    store.compact(&mut |_| {}).unwrap()
}

/// Garbage of every kind: in the log, in segments of values that an earlier compaction wrote, and of pages.
fn littered() -> (Image, Model) {
    let (files, mut state) = (MemoryFiles::new(), Model::new());
    let store = TestStore::create(Arc::new(files.clone()), cold()).unwrap();
    commit(&store, &mut state, 0..6);
    store.prune(Height(5)).unwrap();
    assert!(compact(&store).values_moved > 0);
    commit(&store, &mut state, 6..9);
    store.prune(Height(8)).unwrap();
    store.close().unwrap();
    // Opening removes what no superblock names any more.
    drop(TestStore::open(Arc::new(files.clone()), cold()).unwrap());
    (files.image(), state)
}

/// What compactions of damaged stores could not read.
#[derive(Debug, Default)]
struct Met {
    whole_namespaces: u64,
    pages: u64,
    values: u64,
    kept: u64,
    history: u64,
}

/// spec: STORE-16, STORE-17. Whichever sector is lost, of a top page, one below, or values in the log or elsewhere: the
/// compaction that meets it names it and goes past it, blocks go on, and nothing is removed that may be needed. Once it is
/// mended, the next one leaves nothing out, and the root is what it was.
#[test]
fn a_compaction_goes_past_what_it_cannot_read_and_takes_it_up_once_it_is_mended() {
    let (image, state) = littered();
    let mut met = Met::default();
    for (name, bytes) in image.iter().filter(|(name, _)| name.contains('-')) {
        let written = bytes.chunks(512).rposition(|sector| sector.iter().any(|byte| *byte != 0)).unwrap_or(0);
        for sector in (1..=written).step_by(5) {
            let (files, mut state) = (MemoryFiles::from_image(&image), state.clone());
            let store = TestStore::open(Arc::new(files.clone()), cold()).unwrap();
            lose(&files, name, sector);
            let what = format!("sector {sector} of {name}");
            let before = compact(&store);
            for piece in &before.left {
                match piece {
                    StoreError::Unreadable { at, .. } if at.is_empty() => met.whole_namespaces += 1,
                    StoreError::Unreadable { entries: 1, .. } => met.values += 1,
                    StoreError::Unreadable { .. } => met.pages += 1,
                    other => panic!("{what}: {other}"),
                }
                assert!(piece.is_damage(), "{what}: {piece}");
            }
            // The scrub tells whoever runs the store.
            assert_eq!(store.scrub_standing().problems, before.left.len() as u64, "{what}");
            let told = store.scrub(1).unwrap().problems;
            assert!(told.len() >= before.left.len(), "{what}: {told:?}");
            // Blocks go on over what is whole.
            let block: Diff = [(namespace("new"), key(1), Some(Value::new(vec![1]).unwrap()))].into_iter().collect();
            apply(&mut state, &block);
            assert_eq!(store.commit(Height(9), block).unwrap(), root_of(&state), "{what}");
            store.prune(Height(9)).unwrap();

            if before.left.is_empty() {
                // It needed none of it. Whoever does hears of damage.
                if let Ok(read) = try_contents(&store.view()) {
                    assert_eq!(read, state, "{what}");
                }
                continue;
            }
            met.kept += 1;
            let mended = store.mend(&before.left, &mut Has(&state, 0)).unwrap();
            assert!(mended.supplied_entries > 0, "{what}: {mended:?}");
            // What is left are bytes of the log that only history refers to: no more is known of them than that they are damaged.
            let of_history = |left: &StoreError| {
                matches!(left, StoreError::Damaged { file, .. } if file == name) && name.ends_with(".log")
            };
            assert!(mended.left.iter().all(of_history), "{what}: {mended:?}");
            assert!(!mended.left.is_empty() || store.scrub_standing().problems == 0, "{what}");
            met.history += u64::from(!mended.left.is_empty());
            let after = compact(&store);
            assert!(after.left.is_empty() && after.segments_emptied > 0, "{what}: {after:?}");
            assert_eq!((store.root(), contents(&store.view())), (root_of(&state), state.clone()), "{what}");
            drop(store);
            let store = TestStore::open(Arc::new(MemoryFiles::from_image(&files.image())), cold()).unwrap();
            assert_eq!((store.root(), contents(&store.view())), (root_of(&state), state), "{what}, opened anew");
        }
    }
    println!("{met:?}");
    assert!(
        met.whole_namespaces > 0 && met.pages > 5 && met.values > 10 && met.kept > 15 && met.history > 0,
        "{met:?}"
    );
}

/// spec: STORE-12, STORE-17. A store that compacts by itself goes on over what cannot be read, which it tells of, keeps small again
/// once that is mended, and nobody has to ask for it.
#[test]
fn what_was_left_is_taken_up_by_itself_once_it_is_mended() {
    let options = Options { history: Retention::Heights(2), garbage_percent: 50, ..cold() };
    let (files, mut state) = (MemoryFiles::new(), Model::new());
    let store = TestStore::create(Arc::new(files.clone()), options).unwrap();
    let write =
        |name: &str, number: u64, byte: u8| (namespace(name), key(number), Some(Value::new(vec![byte; 60]).unwrap()));
    let mut height = 0;
    let mut commit = |diff: Diff| {
        apply(&mut state, &diff);
        assert_eq!(store.commit(Height(height), diff).unwrap(), root_of(&state));
        height += 1;
        state.clone()
    };
    commit((0..200).map(|number| write("still", number, 1)).collect());
    store.flush().unwrap();
    let image = files.image();
    let pages = image.iter().find(|(name, _)| name.ends_with(".pages")).unwrap();
    let written = pages.1.chunks(512).rposition(|sector| sector.iter().any(|byte| *byte != 0)).unwrap();
    (1..=written).for_each(|sector| lose(&files, pages.0, sector));

    let mut blocks = |count: u64| {
        let blocks = (0..count).map(|block| (0..40).map(|number| write("busy", number, block as u8)).collect());
        blocks.map(&mut commit).last().unwrap()
    };
    let state = blocks(200);
    let littered = store.stats();
    assert!(littered.compactions > 1, "{littered:?}");
    let known = store.scrub_standing().problems;
    let problems = store.scrub(1).unwrap().problems;
    assert_eq!((problems.len() as u64, known), (known, known), "what was met is told");
    let lost = problems.iter().map(|problem| match problem {
        StoreError::Unreadable { namespace, entries, .. } if namespace.as_str() == "still" => *entries,
        other => panic!("{other}"),
    });
    // All but what was in memory.
    let lost: u64 = lost.sum();
    assert!((100..=200).contains(&lost), "{lost} entries");
    let mended = store.mend(&problems, &mut Has(&state, 0)).unwrap();
    assert!(mended.left.is_empty() && mended.supplied_entries == lost, "{mended:?}");

    let state = blocks(20);
    let clean = store.stats();
    assert!(clean.compactions > littered.compactions, "{clean:?}");
    assert!(clean.disk_bytes * 2 < littered.disk_bytes, "{} bytes of {}", clean.disk_bytes, littered.disk_bytes);
    assert_eq!((store.root(), contents(&store.view())), (root_of(&state), state));
}
