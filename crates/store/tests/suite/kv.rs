//! One suite over both key-value databases.

use crate::support::Random;
use keelstone_store::StoreError;
use keelstone_store::kv::{Batch, Kv, MemoryKv, Range, RedbKv, catches_panics};
use std::collections::BTreeMap;
use std::sync::Once;

fn on_each(test: impl Fn(&dyn Kv)) {
    test(&MemoryKv::new());
    let directory = tempfile::tempdir().unwrap();
    test(&RedbKv::open(&directory.path().join("kv.redb")).unwrap());
}

#[test]
fn both_databases_do_as_a_plain_map() {
    on_each(|kv| {
        let mut random = Random(4);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for _ in 0..60 {
            let mut batch = Batch::new();
            for _ in 0..random.below(8) {
                let key: Vec<u8> = (0..random.below(4)).map(|_| random.below(4) as u8 * 0x55).collect();
                if random.below(3) == 0 {
                    batch.delete(key.clone());
                    model.remove(&key);
                } else {
                    let value = vec![random.below(256) as u8; random.below(50) as usize];
                    batch.put(key.clone(), value.clone());
                    model.insert(key, value);
                }
            }
            kv.write(batch).unwrap();
            let all = Range { start: Vec::new(), end: None, reverse: false, limit: usize::MAX };
            let expected: Vec<_> = model.clone().into_iter().collect();
            assert_eq!(kv.range(&all).unwrap(), expected);
            assert_eq!(kv.range(&all.reversed()).unwrap(), expected.iter().rev().cloned().collect::<Vec<_>>());
            let prefix = [0x55];
            let under: Vec<_> = expected.iter().filter(|(key, _)| key.starts_with(&prefix)).take(3).cloned().collect();
            assert_eq!(kv.range(&Range::prefix(&prefix, 3)).unwrap(), under);
            let nothing = Range { start: vec![9], end: Some(vec![1]), reverse: false, limit: 9 };
            assert_eq!(kv.range(&nothing).unwrap(), []);
            for key in [&[][..], &[0x55], &[0xff, 0]] {
                assert_eq!(kv.get(key).unwrap(), model.get(key).cloned());
            }
        }
    });
}

#[test]
fn records_survive_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kv.redb");
    let mut batch = Batch::new();
    batch.put(*b"key", *b"value");
    RedbKv::open(&path).unwrap().write(batch).unwrap();
    assert_eq!(RedbKv::open(&path).unwrap().get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
}

fn filled(path: &std::path::Path, value: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    let mut batch = Batch::new();
    for n in 0..50u32 {
        batch.put(n.to_be_bytes(), value(n));
    }
    RedbKv::open(path).unwrap().write(batch).unwrap();
    std::fs::read(path).unwrap()
}

/// Panics that are caught say nothing, which they would at length.
fn hear_no_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !catches_panics() {
                hook(info);
            }
        }));
    });
}

/// What a file of other bytes reads as, which is an error or nothing wrong. It never panics, not when it is closed either.
fn answers_of(path: &std::path::Path, bytes: &[u8], value: impl Fn(u32) -> Vec<u8>) -> Result<(), StoreError> {
    hear_no_caught_panics();
    std::fs::write(path, bytes).unwrap();
    let kv = RedbKv::open(path)?;
    let answers = (0..50u32).map(|n| kv.get(&n.to_be_bytes())).collect::<Result<Vec<_>, _>>();
    let all = kv.range(&Range::prefix(b"", 100));
    let mut batch = Batch::new();
    batch.put(*b"later", vec![1; 1_100_000]);
    let written = kv.write(batch);
    for (n, found) in (0..50u32).zip(answers?) {
        assert!(found.is_none_or(|found| found == value(n)), "a wrong value of {n}");
    }
    for (key, found) in all? {
        let n = u32::from_be_bytes(key.try_into().expect("a key that was written"));
        assert_eq!(found, value(n), "a wrong value of {n}");
    }
    written
}

/// One flipped bit in the file may make redb answer wrongly; the record's own hash makes that an error. So does a panic.
#[test]
fn w01_a_flipped_bit_never_reads_as_another_value() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kv.redb");
    let value = |n: u32| vec![n as u8; 200];
    let whole = filled(&path, value);
    let wal = std::fs::read(path.with_extension("wal")).unwrap();
    let mut random = Random(6);
    let mut detected = 0;
    for flip in 0..80 {
        // For the most part where values are, or what leads to them.
        let at = loop {
            let at = random.below(whole.len() as u64) as usize;
            if flip % 4 == 0 || whole[at] != 0 && at > 4096 {
                break at;
            }
        };
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << random.below(8);
        std::fs::write(path.with_extension("wal"), &wal).unwrap();
        match answers_of(&path, &bytes, value) {
            Ok(()) => {}
            Err(StoreError::Damaged { .. } | StoreError::Lost { .. }) => detected += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(detected > 8, "{detected} of 80 were noticed");
}

/// Whole blocks of the file in other bytes, a file cut short, and one with nothing in it: redb panics over some of that. What the
/// log holds is not given up for an empty file.
#[test]
fn w01_what_is_no_database_any_more_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kv.redb");
    let value = |n: u32| vec![n as u8; 200];
    let whole = filled(&path, value);
    let wal = std::fs::read(path.with_extension("wal")).unwrap();
    let mut random = Random(7);
    let mut broken: Vec<Vec<u8>> = Vec::new();
    for block in whole.chunks(4096).enumerate().map(|(number, _)| number * 4096) {
        let mut bytes = whole.clone();
        bytes[block..].iter_mut().take(4096).for_each(|byte| *byte = random.below(256) as u8);
        broken.push(bytes);
        broken.push(whole[..block].to_vec());
        broken.push(whole[..block + 100].to_vec());
    }
    let mut detected = 0;
    for (number, bytes) in broken.iter().enumerate() {
        std::fs::write(path.with_extension("wal"), &wal).unwrap();
        match answers_of(&path, bytes, value) {
            Ok(()) => assert!(!bytes.is_empty(), "nothing at all"),
            Err(StoreError::Damaged { .. } | StoreError::Lost { .. }) => detected += 1,
            Err(other) => panic!("{number}: {other}"),
        }
        if bytes.is_empty() {
            assert_eq!(std::fs::read(path.with_extension("wal")).unwrap(), wal);
        }
    }
    assert!(detected * 2 > broken.len(), "{detected} of {}", broken.len());
}
