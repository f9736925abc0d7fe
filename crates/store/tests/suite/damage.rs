//! Damage: whatever changes on the disk is detected or harmless, never a wrong or missing value.

use crate::support::{Model, Random, TestStore, apply, count, put, random_diff, root_of, small};
use keelstone_codec::Height;
use keelstone_store::files::MemoryFiles;
use keelstone_store::{CheckLevel, Options, StoreError};
use keelstone_tree::{KeyRange, Read};
use std::collections::BTreeMap;
use std::sync::Arc;

type Image = BTreeMap<String, Vec<u8>>;

fn options() -> Options {
    Options { segment_bytes: 64 << 10, page_segment_bytes: 64 << 10, flush_bytes: 48 << 10, ..small() }
}

/// A store of 256 KiB or more with flushed and unflushed commits, and the state at each height.
fn sample() -> (Image, Vec<Model>) {
    let files = MemoryFiles::new();
    let store = TestStore::create(Arc::new(files.clone()), options()).unwrap();
    let mut random = Random(11);
    let mut line = Vec::new();
    let mut state = Model::new();
    for height in 0..300 {
        let diff = random_diff(&mut random);
        apply(&mut state, &diff);
        store.commit(Height(height), diff).unwrap();
        line.push(state.clone());
    }
    drop(store);
    let image = files.image();
    assert!(image.values().map(Vec::len).sum::<usize>() >= 256 << 10);
    (image, line)
}

enum Verdict {
    /// Something said so: opening, reading, or the full check.
    Detected,
    Harmless,
}

/// Opens a changed store and reads all of it: every answer it gives must be right.
fn judge(image: &Image, line: &[Model], what: &str) -> Verdict {
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
    assert_eq!(store.root(), root_of(line.last().unwrap()), "{what}");
    let mut detected = store.stats().superblock_repaired.is_some();
    let view = store.view();
    for (name, entries) in line.last().unwrap() {
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
    for height in [0, 40, 170] {
        match store.view_at(Height(height)) {
            Ok(view) => assert_eq!(view.root(), root_of(&line[height as usize]), "{what}"),
            Err(_) => detected = true,
        }
    }
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    if detected || !report.is_sound() { Verdict::Detected } else { Verdict::Harmless }
}

fn places(image: &Image) -> Vec<(String, usize)> {
    image.iter().flat_map(|(name, bytes)| (0..bytes.len()).map(|at| (name.clone(), at))).collect()
}

/// spec: STORE-1, STORE-2. W-01, C-01: one flipped bit in any of many random places is found, and never reads as something else.
#[test]
fn w01_c01_every_flipped_bit_is_found() {
    let (image, line) = sample();
    let places = places(&image);
    let mut random = Random(count("KEELSTONE_SEED", 1));
    for _ in 0..count("KEELSTONE_FLIPS", 1000) {
        let (name, at) = &places[random.below(places.len() as u64) as usize];
        let bit = random.below(8);
        let mut image = image.clone();
        image.get_mut(name).unwrap()[*at] ^= 1 << bit;
        let what = format!("{name} byte {at} bit {bit}");
        assert!(matches!(judge(&image, &line, &what), Verdict::Detected), "{what}: not found");
    }
}

/// A sector that reads as zeros is lost data, and is found wherever something was written.
#[test]
fn w01_zeroed_and_swapped_sectors_are_found_or_harmless() {
    let (image, line) = sample();
    let mut random = Random(2);
    for (name, bytes) in &image {
        for _ in 0..40 {
            let sectors = bytes.len() / 512;
            let (a, b) = (random.below(sectors as u64) as usize * 512, random.below(sectors as u64) as usize * 512);
            let mut swapped = image.clone();
            let file = swapped.get_mut(name).unwrap();
            let first = bytes[a..a + 512].to_vec();
            file.copy_within(b..b + 512, a);
            file[b..b + 512].copy_from_slice(&first);
            judge(&swapped, &line, &format!("{name}: sectors {a} and {b} swapped"));
        }
    }
}

/// A file that is cut at any length is damage: every file has its size from the start.
#[test]
fn w02_a_truncated_file_is_never_an_older_store() {
    let (image, line) = sample();
    let mut random = Random(3);
    for (name, bytes) in &image {
        let steps = bytes.len() / 512;
        for step in (0..steps).filter(|_| random.below(3) == 0) {
            let mut image = image.clone();
            image.get_mut(name).unwrap().truncate(step * 512);
            let what = format!("{name} cut to {}", step * 512);
            assert!(matches!(judge(&image, &line, &what), Verdict::Detected), "{what}: not found");
        }
        let mut image = image.clone();
        image.remove(name);
        let what = format!("{name} removed");
        assert!(matches!(judge(&image, &line, &what), Verdict::Detected), "{what}: not found");
    }
}

/// spec: STORE-4. One bad slot is told of and mended from the other; two are an error that says what to do.
#[test]
fn w03_one_bad_superblock_slot_is_mended_and_two_are_reported() {
    let (image, line) = sample();
    for slot in [0, 4096] {
        let mut image = image.clone();
        image.get_mut("superblock").unwrap()[slot + 100] ^= 4;
        let files = MemoryFiles::from_image(&image);
        let store = TestStore::open(Arc::new(files.clone()), options()).unwrap();
        assert_eq!(store.root(), root_of(line.last().unwrap()));
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
    let (mut image, _) = sample();
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
    let (mut image, _) = sample();
    let name = image.keys().find(|name| name.ends_with(".pages")).cloned().unwrap();
    image.remove(&name);
    match TestStore::open(Arc::new(MemoryFiles::from_image(&image)), options()) {
        Err(StoreError::Lost { file, .. }) => assert_eq!(file, name),
        other => panic!("{other:?}"),
    }
}
