//! Mending: an open store has again what is damaged, proven by its own hashes, or says what it cannot.

use crate::support::{Model, Random, TestStore, contents, namespace, put, root_of, small, try_contents};
use keelstone_codec::{Height, Key, Value};
use keelstone_store::files::{Files, MemoryFiles};
use keelstone_store::{Accept, CheckLevel, CheckReport, Mended, Options, StoreError, Supplier, Wanted};
use keelstone_tree::{Diff, KeyRange, Read};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) type Image = BTreeMap<String, Vec<u8>>;

pub(crate) fn key(number: u64) -> Key {
    Key::new(Random(number).next().to_be_bytes()).unwrap()
}

/// Some thousand entries in two namespaces over some heights, flushed; and the state.
fn sample(options: &Options) -> (MemoryFiles, Model) {
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), options.clone()).unwrap();
    let mut state = Model::new();
    for height in 0..6 {
        let writes = (0..400).map(|number| {
            let name = if number % 50 == 0 { "few" } else { "many" };
            let value = Value::new(vec![height as u8; 1 + (number % 60) as usize]).unwrap();
            (namespace(name), key(number + height * 300), Some(value))
        });
        let diff: Diff = writes.collect();
        crate::support::apply(&mut state, &diff);
        store.commit(Height(height), diff).unwrap();
    }
    store.close().unwrap();
    (files, state)
}

/// As [`sample`], and then a few changes at a time, each flushed: most pages they are in are written beside those before.
fn sample_beside(options: &Options) -> (MemoryFiles, Model) {
    let (files, mut state) = sample(options);
    let store = TestStore::open(Arc::new(files.clone()), options.clone()).unwrap();
    let before = store.stats().written_bytes;
    for height in 6..10 {
        let write =
            |number: u64| (namespace("many"), key(number * 61 + height), Some(Value::new(vec![9; 20]).unwrap()));
        let diff: Diff = (1..30u64).map(write).collect();
        crate::support::apply(&mut state, &diff);
        store.commit(Height(height), diff).unwrap();
        store.flush().unwrap();
    }
    assert!(store.stats().written_bytes - before < 120 << 10, "most of it is written beside what was there");
    store.close().unwrap();
    (files, state)
}

fn cold() -> Options {
    let (segment_bytes, page_segment_bytes) = (64 << 10, 1 << 20);
    // One flush at the end, so that all pages are of the state.
    Options { segment_bytes, page_segment_bytes, flush_bytes: 1 << 20, cache_bytes: 0, value_cache_bytes: 0, ..small() }
}

/// Somebody with a state of its own, asked so often.
pub(crate) struct Has<'a>(pub(crate) &'a Model, pub(crate) u64);

impl Supplier for Has<'_> {
    fn offer(&mut self, wanted: &Wanted, take: Accept<'_>) {
        self.1 += 1;
        let entries = self.0.get(wanted.namespace.as_str()).into_iter().flatten();
        let within = entries.filter(|(key, _)| wanted.range.contains(key));
        let offered: Vec<(Key, Value)> =
            within.map(|(key, value)| (Key::new(key.clone()).unwrap(), Value::new(value.clone()).unwrap())).collect();
        assert_eq!(offered.len() as u64, wanted.totals.count, "what is wanted is what is lost");
        // Others come first, with less, with more, and with something else.
        assert!(!take(&[]) && !take(&offered[1..]));
        let mut other = offered.clone();
        other[0].1 = Value::new(vec![0xee; other[0].1.len()]).unwrap();
        assert!(!take(&other), "another value is not what is lost");
        other = [&offered[..], &offered[..1]].concat();
        assert!(!take(&other));
        assert!(take(&offered), "this is what is lost");
    }
}

fn full(store: &TestStore) -> CheckReport {
    store.check(CheckLevel::Full, &mut |_| {}).unwrap()
}

/// The segment of pages, and its last sectors that were written: those of the last version.
fn last_pages(image: &Image, count: usize) -> (&str, std::ops::Range<usize>) {
    let (name, bytes) = image.iter().rfind(|(name, _)| name.ends_with(".pages")).unwrap();
    let last = bytes.chunks(512).rposition(|sector| sector.iter().any(|byte| *byte != 0)).unwrap();
    (name, last - count..last)
}

/// Damages a sector of an open store's file beyond what a checksum tells.
pub(crate) fn lose(files: &MemoryFiles, name: &str, sector: usize) {
    let noise: Vec<u8> = (0..512).map(|at| Random(at).next() as u8 | 1).collect();
    files.open(name).unwrap().write_at(sector as u64 * 512, &noise).unwrap();
}

/// Everything is as it was, now and after opening it anew.
fn assert_whole(store: TestStore, files: &MemoryFiles, state: &Model, what: &str) {
    for store in [store, TestStore::open(Arc::new(MemoryFiles::from_image(&files.image())), cold()).unwrap()] {
        assert_eq!(store.root(), root_of(state), "{what}");
        assert_eq!(contents(&store.view()), *state, "{what}");
        let found = full(&store);
        assert!(found.is_sound(), "{what}: {:?}", found.problems);
    }
}

/// spec: STORE-16. Whichever sector of pages is lost: until it is mended, what is read is right or damage; then what was lost
/// is had from somebody else, and the store is whole, with nothing left to find.
#[test]
fn whichever_sector_of_pages_is_lost_it_is_had_from_elsewhere() {
    let (files, state) = sample(&cold());
    let image = files.image();
    let name = image.keys().find(|name| name.ends_with(".pages")).unwrap();
    let written = image[name].chunks(512).rposition(|sector| sector.iter().any(|byte| *byte != 0)).unwrap();
    let mut supplied = 0;
    for sector in (0..=written).step_by(11) {
        let files = MemoryFiles::from_image(&image);
        let Ok(store) = TestStore::open(Arc::new(files.clone()), cold()) else { panic!("it is whole") };
        lose(&files, name, sector);
        let what = format!("sector {sector} of {name}");
        let found = full(&store);
        assert!(!found.is_sound(), "{what} is not found");
        if let Ok(read) = try_contents(&store.view()) {
            assert_eq!(read, state, "{what}");
        }
        let mut has = Has(&state, 0);
        let mended: Mended = store.mend(&found.problems, &mut has).unwrap();
        assert!(mended.left.is_empty(), "{what}: {mended:?}");
        assert_eq!(store.scrub_standing().problems, 0);
        supplied += has.1;
        assert_whole(store, &files, &state, &what);
    }
    assert!(supplied > 10, "of {written} sectors, {supplied} pieces were had from elsewhere");
}

/// spec: STORE-16, TREE-20. Whether a page is damaged or what it is written beside: both are named, and it is had again, from
/// somebody else or, if it is a bit, as the checksum of its sector tells.
#[test]
fn a_page_and_what_it_is_written_beside_are_had_again() {
    let (files, state) = sample_beside(&cold());
    let image = files.image();
    let name = image.keys().find(|name| name.ends_with(".pages")).unwrap();
    let written = image[name].chunks(512).rposition(|sector| sector.iter().any(|byte| *byte != 0)).unwrap();
    let mut supplied = 0;
    for sector in (1..=written).step_by(17) {
        for is_bit in [false, true] {
            let files = MemoryFiles::from_image(&image);
            let store = TestStore::open(Arc::new(files.clone()), cold()).unwrap();
            if is_bit {
                flip(&files, name, sector as u64 * 512 + 99);
            } else {
                lose(&files, name, sector);
            }
            let what = format!("sector {sector} of {name}, {}", if is_bit { "a bit" } else { "all of it" });
            let found = full(&store);
            assert!(!found.is_sound(), "{what} is not found");
            let mut has = Has(&state, 0);
            let mended =
                if is_bit { store.mend(&found.problems, &mut ()) } else { store.mend(&found.problems, &mut has) };
            let mended = mended.unwrap();
            assert!(mended.left.is_empty(), "{what}: {mended:?}");
            supplied += has.1;
            assert_whole(store, &files, &state, &what);
        }
    }
    assert!(supplied > 3, "{supplied} pieces were had from elsewhere");
}

/// spec: STORE-16. A value that is lost is had from somebody else and lies elsewhere then. What was lost with it of the log's
/// records is history, which is named, and heights that need it are damage, never something else.
#[test]
fn a_lost_value_is_had_from_elsewhere_and_lost_history_is_named() {
    let (files, state) = sample(&cold());
    let image = files.image();
    let name = image.keys().find(|name| name.ends_with(".log")).unwrap();
    let mut supplied = 0;
    for sector in (2..100).step_by(13) {
        let files = MemoryFiles::from_image(&image);
        let store = TestStore::open(Arc::new(files.clone()), cold()).unwrap();
        lose(&files, name, sector);
        let problems = full(&store).problems;
        // One sector costs no more than the values that lie in it.
        let unread = problems.iter().filter(|problem| matches!(problem, StoreError::Unreadable { .. })).count();
        assert!((1..40).contains(&unread), "{unread} values cannot be read");
        let mended = store.mend(&problems, &mut Has(&state, 0)).unwrap();
        assert!(
            matches!(&mended.left[..], [StoreError::Damaged { file, offset, .. }]
                if file == name && *offset == sector as u64 * 512),
            "{mended:?}"
        );
        supplied += mended.supplied_entries;
        assert_eq!(contents(&store.view()), state);
        for height in 0..6 {
            match store.view_at(Height(height)) {
                Ok(view) => drop(view.get(&namespace("many"), &key(1))),
                Err(error) => assert!(error.is_damage(), "{error}"),
            }
        }
        store.close().unwrap();
        let store = TestStore::open(Arc::new(files), cold()).unwrap();
        assert_eq!((contents(&store.view()), store.root()), (state.clone(), root_of(&state)));
    }
    assert!(supplied > 10, "{supplied} values were had from elsewhere");
}

/// A store in which a compaction has moved values, some of which only history needs since; the file they lie in, and how many
/// sectors of it were written.
fn sample_moved(options: &Options) -> (MemoryFiles, Model, String, usize) {
    let (files, mut state) = (MemoryFiles::new(), Model::new());
    let store = TestStore::create(Arc::new(files.clone()), options.clone()).unwrap();
    let mut commit = |height: u64, changes: &dyn Fn(u64) -> bool| {
        let write = |number: u64| {
            let value = vec![height as u8 + 1; 1 + (number % 120) as usize];
            (namespace("many"), key(number), Some(Value::new(value).unwrap()))
        };
        let diff: Diff = (0..3_000).filter(|number| changes(*number)).map(write).collect();
        crate::support::apply(&mut state, &diff);
        store.commit(Height(height), diff).unwrap();
    };
    // A quarter of what came first stays, and is moved.
    commit(0, &|_| true);
    commit(1, &|number| number % 4 > 0);
    commit(2, &|number| number % 4 > 0);
    store.flush().unwrap();
    store.prune(Height(2)).unwrap();
    assert!(store.compact(&mut |_| {}).unwrap().values_moved > 500);
    // Values lie there in the order of keys: half of those in the first half are of history then.
    commit(3, &|number| number % 8 == 0 && key(number).as_slice()[0] < 0x80);
    store.close().unwrap();
    let image = files.image();
    let (name, bytes) = image.iter().find(|(name, _)| name.ends_with(".values")).unwrap();
    let written = bytes.chunks(512).rposition(|sector| sector.iter().any(|byte| *byte != 0)).unwrap();
    (files, state, name.clone(), written)
}

/// spec: STORE-16. Damage of moved values, whatever lies there: what the state needs of it is had from elsewhere, and the sectors
/// are good again or given up, so that nothing of it is found again. An old height is as it was, or damage.
#[test]
fn sectors_of_moved_values_are_good_again_or_given_up_once_the_state_does_without_them() {
    let (files, state, name, written) = sample_moved(&cold());
    let image = files.image();
    let before = contents(&TestStore::open(Arc::new(files), cold()).unwrap().view_at(Height(2)).unwrap());
    let (mut supplied, mut good, mut given_up, mut history) = (0, 0, 0, 0);
    for sector in (1..written).step_by(4) {
        // A stroke across the border of two sectors; or one of them alone, with one of the problems it makes told.
        for stroke in [true, false] {
            let files = MemoryFiles::from_image(&image);
            let store = TestStore::open(Arc::new(files.clone()), cold()).unwrap();
            if stroke {
                files.open(&name).unwrap().write_at(sector as u64 * 512 + 460, &[0xa5; 300]).unwrap();
            } else {
                lose(&files, &name, sector);
            }
            let what = format!("sector {sector} of {name}, {stroke}");
            let mut problems = full(&store).problems;
            assert!(!problems.is_empty(), "{what}");
            problems.truncate(1);
            let mended = store.mend(&problems, &mut Has(&state, 0)).unwrap();
            assert!(mended.left.is_empty(), "{what}: {mended:?}");
            assert_eq!(mended.sectors + mended.given_up, 1 + u64::from(stroke), "{what}: {mended:?}");
            assert_eq!(store.scrub_standing().problems, 0, "{what}");
            supplied += mended.supplied_entries;
            good += mended.sectors;
            given_up += mended.given_up;
            match store.view_at(Height(2)).and_then(|view| Ok(try_contents(&view)?)) {
                Ok(read) => assert_eq!(read, before, "{what}"),
                Err(error) => {
                    assert!(error.is_damage(), "{what}: {error}");
                    history += 1;
                }
            }
            assert_whole(store, &files, &state, &what);
        }
    }
    assert!(supplied > 50 && good > 5 && given_up > 5 && history > 0, "{supplied} {good} {given_up} {history}");
}

/// spec: STORE-16. A sector of values in which something of the state lies that nobody has is given up by nobody.
#[test]
fn no_sector_is_given_up_that_the_state_needs() {
    let (files, state, name, written) = sample_moved(&cold());
    let image = files.image();
    let mut needed = 0;
    for sector in (1..written).step_by(4) {
        let files = MemoryFiles::from_image(&image);
        let store = TestStore::open(Arc::new(files.clone()), cold()).unwrap();
        lose(&files, &name, sector);
        let damaged = files.image()[&name].clone();
        let mended = store.mend(&full(&store).problems, &mut ()).unwrap();
        if try_contents(&store.view()).is_ok() {
            continue;
        }
        needed += 1;
        assert!(mended.given_up == 0 && !mended.left.is_empty(), "sector {sector}: {mended:?}");
        assert!(files.image()[&name] == damaged, "sector {sector} is as it was");
        let mended = store.mend(&mended.left, &mut Has(&state, 0)).unwrap();
        assert!(mended.left.is_empty(), "sector {sector}: {mended:?}");
    }
    assert!(needed > 5, "{needed}");
}

/// spec: STORE-16. What is in memory needs nobody else.
#[test]
fn what_is_still_in_memory_is_written_anew_from_there() {
    let warm = Options { cache_bytes: 1 << 30, value_cache_bytes: 1 << 30, ..cold() };
    let (files, state) = sample(&warm);
    let store = TestStore::open(Arc::new(files.clone()), warm).unwrap();
    for name in ["few", "many"] {
        // The first entries of a scan are read one by one, and kept.
        for key in state[name].keys() {
            assert!(store.view().get(&namespace(name), key).unwrap().is_some());
        }
    }
    let image = files.image();
    let (name, sectors) = last_pages(&image, 60);
    sectors.for_each(|sector| lose(&files, name, sector));
    let mended = store.mend(&full(&store).problems, &mut ()).unwrap();
    assert!(mended.left.is_empty() && mended.kept_pieces > 10 && mended.supplied_entries == 0, "{mended:?}");
    assert_whole(store, &files, &state, "from memory");
}

/// Changes one bit of a byte of an open store's file.
fn flip(files: &MemoryFiles, name: &str, at: u64) {
    let (file, mut byte) = (files.open(name).unwrap(), [0]);
    file.read_at(at, &mut byte).unwrap();
    file.write_at(at, &[byte[0] ^ 4]).unwrap();
}

/// spec: STORE-16. What is found damaged as an entry lies in a sector, which is found next: one mending is for both, whether
/// the entry was in memory or is told by the checksum of that sector.
#[test]
fn a_piece_that_is_had_again_leaves_no_damaged_sector_behind() {
    for (name, cache_bytes) in [(".log", 1 << 30), (".log", 0), (".pages", 1 << 30), (".pages", 0)] {
        let options = Options { cache_bytes, value_cache_bytes: cache_bytes, ..cold() };
        let (files, state) = sample(&options);
        let image = files.image();
        let (file, sectors) = match name {
            ".pages" => last_pages(&image, 60),
            _ => (image.keys().find(|file| file.ends_with(name)).unwrap().as_str(), 2..62),
        };
        let mut pieces = 0;
        for sector in sectors.step_by(6) {
            let store = TestStore::open(Arc::new(files.clone()), options.clone()).unwrap();
            assert_eq!(contents(&store.view()), state, "all of it is read, and in memory if there is room");
            flip(&files, file, sector as u64 * 512 + 99);
            let mut problems = full(&store).problems;
            assert!(!problems.is_empty(), "sector {sector} of {file}");
            problems.retain(|problem| matches!(problem, StoreError::Unreadable { .. }));
            pieces += problems.len();
            if !problems.is_empty() {
                let mended = store.mend(&problems, &mut ()).unwrap();
                assert!(mended.left.is_empty() && mended.sectors > 0, "sector {sector} of {file}: {mended:?}");
            } else {
                flip(&files, file, sector as u64 * 512 + 99);
            }
            let found = full(&store);
            assert!(found.is_sound(), "sector {sector} of {file}: {:?}", found.problems);
            store.close().unwrap();
        }
        assert!(pieces > 3, "{name}: {pieces} pieces were lost");
    }
}

/// spec: STORE-16. One byte of each of several sectors of a record changed before anybody looked: the hash of the record proves
/// them together. One that nothing tells leaves all of them, and they are named.
#[test]
fn a_record_with_several_damaged_sectors_is_proven_as_a_whole() {
    for (flipped, lost) in [(2, false), (3, false), (12, false), (2, true)] {
        let (files, state) = sample(&cold());
        let store = TestStore::open(Arc::new(files.clone()), cold()).unwrap();
        let image = files.image();
        let name = image.keys().find(|name| name.ends_with(".log")).unwrap();
        // The first record takes far more sectors than that, the one in which it begins among them.
        (1..=flipped).for_each(|sector| flip(&files, name, sector * 512 + 7 * sector));
        if lost {
            lose(&files, name, 20);
        }
        let mended = store.mend(&full(&store).problems, &mut Has(&state, 0)).unwrap();
        let left = mended.left.len() as u64;
        assert_eq!((mended.sectors, left), if lost { (0, flipped + 1) } else { (flipped, 0) }, "{mended:?}");
        assert_eq!(contents(&store.view()), state);
        if !lost {
            assert_eq!(files.image()[name], image[name], "every byte is what it was");
            assert_whole(store, &files, &state, "the record");
        }
    }
}

/// spec: STORE-2, STORE-16. A header that a later session has written anew says nothing of the records behind it: whoever opens the
/// store from there, since the later slot of the superblock is lost, has them all.
#[test]
fn a_header_that_was_mended_hides_no_record_of_an_earlier_session() {
    let files = MemoryFiles::new();
    let open = || TestStore::open(Arc::new(files.clone()), cold());
    let store = TestStore::create(Arc::new(files.clone()), cold()).unwrap();
    (0..3).for_each(|height| _ = put(&store, height, "key", &[height as u8]));
    let last = store.root();
    drop(store);
    let store = open().unwrap();
    let image = files.image();
    lose(&files, image.keys().find(|name| name.ends_with(".log")).unwrap(), 0);
    let mended = store.mend(&full(&store).problems, &mut ()).unwrap();
    assert!(mended.left.is_empty() && mended.sectors == 1, "{mended:?}");
    drop(store);
    // Two slots when it was made, one by the second session, and one by the mending.
    lose(&files, "superblock", 4096 / 512);
    let store = open().unwrap();
    assert!(store.stats().superblock_repaired.is_some());
    assert_eq!((store.height(), store.root()), (Some(Height(2)), last));
}

/// spec: STORE-16. Nobody has what is lost, or only something else: nothing is changed but what is proven, and it is named.
#[test]
fn what_nobody_has_stays_lost_and_is_named() {
    let (files, mut state) = sample(&cold());
    let image = files.image();
    let (name, sectors) = last_pages(&image, 8);
    let store = TestStore::open(Arc::new(files.clone()), cold()).unwrap();
    sectors.for_each(|sector| lose(&files, name, sector));
    let before = full(&store).problems;
    struct Liar(Model);
    impl Supplier for Liar {
        fn offer(&mut self, wanted: &Wanted, take: Accept<'_>) {
            let entries = self.0[wanted.namespace.as_str()].iter().filter(|(key, _)| wanted.range.contains(key));
            let offered: Vec<(Key, Value)> = entries
                .map(|(key, value)| (Key::new(key.clone()).unwrap(), Value::new(value.clone()).unwrap()))
                .collect();
            assert!(!take(&offered), "a lie was taken");
        }
    }
    let truth = state.clone();
    state.values_mut().flat_map(|entries| entries.values_mut()).for_each(|value| value[0] ^= 0x80);
    for _ in 0..2 {
        let mended = store.mend(&before, &mut Liar(state.clone())).unwrap();
        assert!(!mended.left.is_empty() && mended.supplied_entries == 0, "{mended:?}");
        assert!(mended.left.iter().all(StoreError::is_damage));
    }
    // Who comes later with what it was still helps.
    let mended = store.mend(&before, &mut Has(&truth, 0)).unwrap();
    assert!(mended.left.is_empty(), "{mended:?}");
    assert_whole(store, &files, &truth, "after all");
}

/// spec: STORE-16. The blocks that come while a store is mended, and after, are as ever; and what was changed in a lost page
/// meanwhile is what counts.
#[test]
fn commits_go_on_over_what_was_mended() {
    let (files, mut state) = sample(&cold());
    let store = TestStore::open(Arc::new(files.clone()), cold()).unwrap();
    let image = files.image();
    let (name, sectors) = last_pages(&image, 12);
    sectors.for_each(|sector| lose(&files, name, sector));
    let mended = store.mend(&full(&store).problems, &mut Has(&state, 0)).unwrap();
    assert!(mended.left.is_empty(), "{mended:?}");
    for height in 6..40 {
        let writes = (0..40).map(|number| {
            let value = (number % 3 > 0).then(|| Value::new(vec![height as u8; 9]).unwrap());
            (namespace("many"), key(number * 41 + height), value)
        });
        let diff: Diff = writes.collect();
        crate::support::apply(&mut state, &diff);
        assert_eq!(store.commit(Height(height), diff).unwrap(), root_of(&state));
    }
    store.compact(&mut |_| {}).unwrap();
    assert_eq!(store.view().scan(&namespace("many"), KeyRange::all()).count(), state["many"].len());
    assert_whole(store, &files, &state, "with blocks on it");
}
