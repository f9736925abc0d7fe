//! Damage: whatever changes on the disk is detected or harmless, never a wrong or missing value.

use crate::support::{Model, Random, TestStore, apply, count, put, random_diff, root_of, small, watched};
use keelstone_codec::{Height, Root};
use keelstone_store::files::{Act, Files, MemoryFiles};
use keelstone_store::{CheckLevel, Options, StoreError};
use keelstone_tree::{KeyRange, Read};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

type Image = BTreeMap<String, Vec<u8>>;

fn options() -> Options {
    Options { segment_bytes: 64 << 10, page_segment_bytes: 64 << 10, flush_bytes: 48 << 10, ..small() }
}

/// A store of 256 KiB or more, all of it flushed but for a few last commits, and the state at each height with its root. With
/// `close`, those too.
fn sample(close: bool) -> (Image, Vec<(Model, Root)>) {
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), options()).unwrap();
    let mut random = Random(11);
    let mut line = Vec::new();
    let mut state = Model::new();
    for height in 0..300 {
        let diff = random_diff(&mut random);
        apply(&mut state, &diff);
        if height == 294 {
            store.flush().unwrap();
        }
        store.commit(Height(height), diff).unwrap();
        line.push((state.clone(), root_of(&state)));
    }
    if close {
        store.close().unwrap();
    } else {
        drop(store);
    }
    let image = files.image();
    assert!(image.values().map(Vec::len).sum::<usize>() >= 256 << 10);
    (image, line)
}

enum Verdict {
    /// Something said so: opening, reading, or the full check.
    Detected,
    Harmless,
}

/// Opens a changed store and reads all of it: every answer it gives must be right. What still went unnoticed is looked for
/// in history and by a full check.
fn judge(image: &Image, line: &[(Model, Root)], what: &str) -> Verdict {
    let store = match TestStore::open(Arc::new(MemoryFiles::from_image(image)), options()) {
        Ok(store) => store,
        Err(error) => {
            assert!(
                error.is_damage() || matches!(error, StoreError::Unsupported { .. } | StoreError::Missing { .. }),
                "{what}: {error}"
            );
            return Verdict::Detected;
        }
    };
    assert_eq!(store.height(), Some(Height(line.len() as u64 - 1)), "{what}: silently older");
    let (state, root) = line.last().unwrap();
    assert_eq!(store.root(), *root, "{what}");
    let mut detected = store.stats().superblock_repaired.is_some();
    let view = store.view();
    for (name, entries) in state {
        let mut found = BTreeMap::new();
        let mut broken = false;
        for entry in view.scan(&crate::support::namespace(name), KeyRange::all()) {
            match entry {
                Ok((key, value)) => drop(found.insert(key.to_vec(), value.to_vec())),
                Err(_) => broken = true,
            }
        }
        detected |= broken;
        assert!(found.iter().all(|(key, value)| entries.get(key) == Some(value)), "{what}: a wrong value");
        assert!(broken || found.len() == entries.len(), "{what}: a missing value");
    }
    if detected {
        return Verdict::Detected;
    }
    for height in [290, 0] {
        match store.view_at(Height(height)) {
            Ok(view) => assert_eq!(view.root(), line[height as usize].1, "{what}"),
            Err(_) => detected = true,
        }
    }
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    if detected || !report.is_sound() { Verdict::Detected } else { Verdict::Harmless }
}

/// A check that reads everything ends, with nothing to say, each time it is told to: among the sectors and among the entries.
#[test]
fn a_check_ends_when_it_is_told_to() {
    let (image, _) = sample(true);
    let store = TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()).unwrap();
    let asked_until = |ends_at: usize| {
        let mut kinds = Vec::new();
        let report = store.check_while(CheckLevel::Full, &mut |progress| {
            kinds.push(progress.what);
            kinds.len() <= ends_at
        });
        (report.unwrap(), kinds)
    };
    let (report, kinds) = asked_until(usize::MAX);
    assert!(report.is_some_and(|report| report.is_sound()));
    let distinct: std::collections::BTreeSet<_> = kinds.iter().collect();
    assert!(distinct.len() >= 2, "{kinds:?}");
    for ends_at in 0..kinds.len() {
        let (report, asked) = asked_until(ends_at);
        assert!(report.is_none() && asked.len() == ends_at + 1, "told to end at question {ends_at}, {asked:?}");
    }
}

/// A write that stops half way through a sector until somebody has read it.
#[derive(Debug, Default)]
struct Half {
    is_due: bool,
    /// Of this file, and whether it was read since.
    done: Option<(String, bool)>,
}

/// spec: STORE-1. While a sector behind the end of the log is written, it can be read as half of it. That is no damage, and a check
/// beside commits finds none.
#[test]
fn a_sector_that_is_being_written_is_no_damage() {
    let (memory, half) = (MemoryFiles::new(), Arc::new((Mutex::<Half>::default(), Condvar::new())));
    let files = {
        let (memory, half) = (memory.clone(), Arc::clone(&half));
        watched(memory.clone(), move |name, act| {
            let (half, changed) = &*half;
            let mut state = half.lock().unwrap();
            match act {
                Act::Write { offset, .. } if state.is_due && name.ends_with(".log") && offset > 0 => {
                    memory.open(name).unwrap().write_at(offset, &[0xff; 100]).unwrap();
                    (state.is_due, state.done) = (false, Some((name.to_owned(), false)));
                    changed.notify_all();
                    let is_unread = |half: &mut Half| half.done.as_ref().is_some_and(|(_, is_read)| !is_read);
                    drop(changed.wait_timeout_while(state, std::time::Duration::from_secs(20), is_unread).unwrap());
                    // Time for the reader to read it, and to look again.
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                Act::Read => {
                    if let Some((file, is_read)) = &mut state.done
                        && file == name
                    {
                        *is_read = true;
                        changed.notify_all();
                    }
                }
                _ => {}
            }
        })
    };
    let options = Options { segment_bytes: 16 << 10, flush_bytes: 1 << 20, garbage_percent: 0, ..small() };
    let store = TestStore::create(Arc::new(files), options).unwrap();
    let mut height = 0;
    // The second segment is half full, and the third is made.
    while store.stats().log_segments < 3 {
        put(&store, height, "key", &[7; 100]);
        height += 1;
    }
    std::thread::scope(|threads| {
        let mut begun = false;
        let report = store.check_while(CheckLevel::Full, &mut |_| {
            if !std::mem::replace(&mut begun, true) {
                let (half, changed) = &*half;
                half.lock().unwrap().is_due = true;
                threads.spawn(|| put(&store, height, "key", b"value"));
                drop(changed.wait_while(half.lock().unwrap(), |half| half.done.is_none()).unwrap());
            }
            true
        });
        let report = report.unwrap().unwrap();
        assert!(report.is_sound(), "{:?}", report.problems);
    });
    let (half, _) = &*half;
    let (name, is_read) = half.lock().unwrap().done.clone().unwrap();
    assert!(is_read && name.ends_with("2.log"), "{name}");
    assert_eq!(store.height(), Some(Height(height)));
}

/// Runs a test of each case on all processors. Cases are numbers from zero.
fn each(cases: usize, test: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(case) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|case| *case < cases) {
                    test(case);
                }
            });
        }
    });
}

fn places(image: &Image) -> Vec<(&str, usize)> {
    image.iter().flat_map(|(name, bytes)| (0..bytes.len()).map(|at| (name.as_str(), at))).collect()
}

/// spec: STORE-1, STORE-2. W-01, C-01: the bytes of a store, those of the last acknowledged record included, each with one
/// random bit flipped: found, and never read as something else. Every n-th byte here; `cargo xtask flips` takes all.
#[test]
fn w01_c01_every_byte_with_a_flipped_bit_is_found() {
    let (image, line) = sample(false);
    let places = places(&image);
    let (seed, stride) = (count("KEELSTONE_SEED", 1), count("KEELSTONE_FLIP_STRIDE", 16) as usize);
    each(places.len() / stride, |case| {
        let (name, at) = places[case * stride + Random(seed ^ case as u64).below(stride as u64) as usize];
        let bit = Random(seed ^ at as u64).below(8);
        let mut image = image.clone();
        image.get_mut(name).unwrap()[at] ^= 1 << bit;
        let what = format!("{name} byte {at} bit {bit}");
        assert!(matches!(judge(&image, &line, &what), Verdict::Detected), "{what}: not found");
    });
}

/// Every sector and every block of 4 KiB that reads as zeros, and every one that stands where another belongs, in any
/// file: found, or nothing was there.
#[test]
fn w01_zeroed_and_swapped_sectors_and_blocks_are_found_or_harmless() {
    let (image, line) = sample(true);
    for size in [512, 4096] {
        let blocks: Vec<(&str, usize)> = image
            .iter()
            .flat_map(|(name, bytes)| (0..bytes.len() / size).map(|block| (name.as_str(), block * size)))
            .collect();
        each(blocks.len(), |case| {
            let (name, at) = blocks[case];
            let mut zeroed = image.clone();
            zeroed.get_mut(name).unwrap()[at..at + size].fill(0);
            judge(&zeroed, &line, &format!("{name}: {size} bytes at {at} zeroed"));
            let (other, there) = blocks[Random(case as u64).below(blocks.len() as u64) as usize];
            let mut swapped = image.clone();
            let (first, second) = (image[name][at..at + size].to_vec(), image[other][there..there + size].to_vec());
            swapped.get_mut(name).unwrap()[at..at + size].copy_from_slice(&second);
            swapped.get_mut(other).unwrap()[there..there + size].copy_from_slice(&first);
            judge(&swapped, &line, &format!("{size} bytes of {name} at {at} and {other} at {there} swapped"));
        });
    }
}

/// spec: STORE-2. An acknowledged record of which a sector, or all, reads as never written is damage while its mark is
/// there. Without the mark too, it is what a disk looks like that never got it.
#[test]
fn w08_a_zeroed_sector_of_the_last_record_is_damage() {
    let (image, line) = sample(false);
    let store = TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()).unwrap();
    assert_eq!(store.height(), Some(Height(line.len() as u64 - 1)));
    let log = image.keys().rfind(|name| name.ends_with(".log")).unwrap();
    // The mark is the last thing in the log.
    let bytes = &image[log];
    let mark =
        (0..bytes.len() / 512).rfind(|sector| bytes[sector * 512..][..512].iter().any(|byte| *byte != 0)).unwrap();
    let starts = |sector: &usize| bytes[sector * 512 + 504] & 1 == 1;
    let first = (1..mark).rfind(starts).unwrap();
    for from in first..mark {
        for to in from + 1..=mark {
            let mut image = image.clone();
            image.get_mut(log).unwrap()[from * 512..to * 512].fill(0);
            let error = TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()).unwrap_err();
            assert!(error.is_damage(), "sectors {from} to {to}: {error}");
        }
    }
    let mut image = image.clone();
    image.get_mut(log).unwrap()[first * 512..].fill(0);
    let store = TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()).unwrap();
    assert_eq!(store.root(), line[line.len() - 2].1);
}

/// A file that is cut at any length in steps of a sector is damage: every file has its size from the start.
#[test]
fn w02_a_truncated_file_is_never_an_older_store() {
    let (image, line) = sample(false);
    let cuts: Vec<(&str, Option<usize>)> = image
        .iter()
        .flat_map(|(name, bytes)| {
            let lens = (0..bytes.len() / 512).map(|sectors| Some(sectors * 512)).chain([None]);
            lens.map(move |len| (name.as_str(), len))
        })
        .collect();
    each(cuts.len(), |case| {
        let (name, len) = cuts[case];
        let mut image = image.clone();
        match len {
            Some(len) => image.get_mut(name).unwrap().truncate(len),
            None => drop(image.remove(name)),
        }
        let what = format!("{name} cut to {len:?}");
        assert!(matches!(judge(&image, &line, &what), Verdict::Detected), "{what}: not found");
    });
}

/// spec: STORE-4. One bad slot is told of and mended from the other; two are an error that says what to do.
#[test]
fn w03_one_bad_superblock_slot_is_mended_and_two_are_reported() {
    let (image, line) = sample(false);
    for slot in [0, 4096] {
        let mut image = image.clone();
        image.get_mut("superblock").unwrap()[slot + 100] ^= 4;
        let files = MemoryFiles::from_image(&image);
        let store = TestStore::open(Arc::new(files.clone()), options()).unwrap();
        assert_eq!(store.root(), line.last().unwrap().1);
        assert!(store.stats().superblock_repaired.is_some());
        drop(store);
        let store = TestStore::open(Arc::new(files), options()).unwrap();
        assert_eq!(store.stats().superblock_repaired, None, "both slots are good again");
    }
    let mut both = image;
    both.get_mut("superblock").unwrap()[100] ^= 4;
    both.get_mut("superblock").unwrap()[4196] ^= 4;
    let error = TestStore::open(Arc::new(MemoryFiles::from_image(&both)), options()).unwrap_err();
    assert!(error.to_string().contains("neither slot can be read") && error.is_damage(), "{error}");
}

/// spec: STORE-2. Damage in the last acknowledged record is damage, not a torn tail.
#[test]
fn w08_a_flip_in_the_last_record_is_never_cut_as_torn() {
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), options()).unwrap();
    put(&store, 1, "key", b"before");
    let before = files.image();
    put(&store, 2, "key", &[7; 900]);
    drop(store);
    let image = files.image();
    let log = "07070707-0000000001.log";
    let written: Vec<usize> = (0..image[log].len()).filter(|at| image[log][*at] != before[log][*at]).collect();
    let (first, last) = (written[0] / 512 * 512, written[written.len() - 1]);
    assert!(last - first > 900);
    let mut random = Random(8);
    // Behind the record stands its mark.
    for at in first..=last {
        let mut image = image.clone();
        image.get_mut(log).unwrap()[at] ^= 1 << random.below(8);
        match TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()) {
            Err(error) => assert!(error.is_damage(), "byte {at}: {error}"),
            Ok(store) => panic!("byte {at}: opened at {:?}", store.height()),
        }
    }
}

/// A sector with a good checksum but another content: what only the hash of a page or value can find.
fn reseal(file: &mut [u8], store: [u8; 16], code: u64, sector: usize) {
    let bytes = &mut file[sector * 512..][..512];
    let seed = crc32c::crc32c_append(crc32c::crc32c(&store), &code.to_le_bytes());
    let seed = crc32c::crc32c_append(seed, &(sector as u32).to_le_bytes());
    let checksum = crc32c::crc32c_append(seed, &bytes[..508]);
    bytes[508..].copy_from_slice(&checksum.to_le_bytes());
}

/// A page whose bytes do not hash to what its parent says is never used, whatever its checksum says.
#[test]
fn n01_a_page_that_is_not_its_hash_is_damage() {
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), options()).unwrap();
    for height in 1..40 {
        put(&store, height, &format!("key {height}"), b"value");
    }
    store.close().unwrap();
    let image = files.image();
    let pages = "07070707-0000000001.pages";
    let root = TestStore::open(Arc::new(files), options()).unwrap().root();
    let mut found = 0;
    for at in (512..8192).filter(|at| at % 512 < 504 && image[pages][*at] != 0).step_by(7) {
        let mut image = image.clone();
        let file = image.get_mut(pages).unwrap();
        file[at] ^= 1;
        reseal(file, [7; 16], 2 << 30 | 1, at / 512);
        match TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()) {
            Err(error) => assert!(error.is_damage(), "byte {at}: {error}"),
            Ok(store) => {
                assert_eq!(store.root(), root);
                let view = store.view();
                let scanned: Result<Vec<_>, _> = view.scan(&crate::support::namespace("a"), KeyRange::all()).collect();
                // Bytes of the table that is no part of the tree may change without harm to the state.
                if let Ok(entries) = scanned {
                    assert_eq!(entries.len(), 39, "byte {at}");
                    continue;
                }
            }
        }
        found += 1;
    }
    assert!(found > 50, "most bytes of pages are covered by hashes: {found}");
}

/// A store of a newer format is refused, and both versions are named.
#[test]
fn n03_a_newer_format_is_refused_with_both_versions() {
    let (mut image, _) = sample(false);
    for slot in [0, 1] {
        let file = image.get_mut("superblock").unwrap();
        file[slot * 4096 + 8] = 9;
        // The checksum counts slots, not sectors.
        let mut sector = file[slot * 4096..][..512].to_vec();
        let seed = crc32c::crc32c_append(crc32c::crc32c(&[7; 16]), &u64::MAX.to_le_bytes());
        let seed = crc32c::crc32c_append(seed, &(slot as u32).to_le_bytes());
        let checksum = crc32c::crc32c_append(seed, &sector[..508]);
        sector[508..].copy_from_slice(&checksum.to_le_bytes());
        file[slot * 4096..][..512].copy_from_slice(&sector);
    }
    let error = TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()).unwrap_err();
    assert!(matches!(error, StoreError::Unsupported { found: 9, known: 0 }), "{error}");
}

/// A file of pages that is gone is an error that names it, never an absent key.
#[test]
fn n04_a_missing_page_file_is_named_and_nothing_reads_as_absent() {
    let (mut image, _) = sample(false);
    let name = image.keys().find(|name| name.ends_with(".pages")).cloned().unwrap();
    image.remove(&name);
    match TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()) {
        Err(StoreError::Lost { file, .. }) => assert_eq!(file, name),
        other => panic!("{other:?}"),
    }
}
