//! A store of each format, kept as it was written: whoever has one must be able to open it.

use crate::support::{Model, Random, TestStore, apply, contents, put, random_diff, root_of, small};
use keelstone_codec::Height;
use keelstone_store::CheckLevel;
use keelstone_store::files::MemoryFiles;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The format of today. A new one gets a directory beside it, and this stays.
const FORMAT_0: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/format-0");
/// Largest fixture, in bytes.
const BYTES_MAX: u64 = 300_000;

/// What was done to the store that is kept, and the state at each height after it. With `store`, does it.
fn life(store: Option<&TestStore>) -> Vec<Model> {
    let (mut random, mut line) = (Random(0xf0), Vec::<Model>::new());
    let mut state = Model::new();
    for step in 0..64 {
        match (step, store) {
            (30, _) => {
                line.truncate(26);
                state = line[25].clone();
                if let Some(store) = store {
                    store.rollback(Height(25)).unwrap();
                }
            }
            (40, Some(store)) => store.prune(Height(10)).unwrap(),
            (44, Some(store)) => drop(store.compact(&mut |_| {}).unwrap()),
            (56, Some(store)) => store.flush().unwrap(),
            (40 | 44 | 56, None) => {}
            _ => {
                let diff = random_diff(&mut random);
                apply(&mut state, &diff);
                let height = Height(line.len() as u64);
                line.push(state.clone());
                if let Some(store) = store {
                    assert_eq!(store.commit(height, diff).unwrap(), root_of(&state));
                }
            }
        }
    }
    line
}

fn bless(directory: &Path) {
    let files = MemoryFiles::new();
    drop(life(Some(&TestStore::create(Arc::new(files.clone()), small()).unwrap())));
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir_all(directory).unwrap();
    for (name, bytes) in files.image() {
        std::fs::write(directory.join(name), bytes).unwrap();
    }
}

/// spec: STORE-4. The store of a format opens, all its heights have their roots, nothing in it is damaged, and it goes on.
#[test]
fn a_store_of_each_format_opens_and_is_sound() {
    let directory = Path::new(FORMAT_0);
    if std::env::var_os("KEELSTONE_BLESS").is_some() {
        bless(directory);
    }
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let image: BTreeMap<String, Vec<u8>> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect();
    assert!(image.values().map(|bytes| bytes.len() as u64).sum::<u64>() < BYTES_MAX);
    let store = TestStore::open(Arc::new(MemoryFiles::from_image(&image)), small()).unwrap();
    let line = life(None);
    assert_eq!(store.height(), Some(Height(line.len() as u64 - 1)));
    assert_eq!((store.low(), store.epoch()), (Some(Height(10)), 1));
    assert_eq!(contents(&store.view()), *line.last().unwrap());
    for (height, state) in line.iter().enumerate().skip(10) {
        assert_eq!(store.view_at(Height(height as u64)).unwrap().root(), root_of(state), "height {height}");
    }
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    put(&store, line.len() as u64, "key", b"value");
}
