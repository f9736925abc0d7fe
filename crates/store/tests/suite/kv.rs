//! One suite over both key-value databases.

use crate::support::Random;
use keelstone_store::kv::{Batch, Kv, MemoryKv, Range, RedbKv};
use std::collections::BTreeMap;

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

/// One flipped bit in the file may make redb answer wrongly; the record's own hash makes that an error.
#[test]
fn w01_a_flipped_bit_never_reads_as_another_value() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kv.redb");
    let value = |n: u32| vec![n as u8; 200];
    let mut batch = Batch::new();
    for n in 0..50u32 {
        batch.put(n.to_be_bytes(), value(n));
    }
    RedbKv::open(&path).unwrap().write(batch).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut random = Random(6);
    let mut detected = 0;
    for _ in 0..40 {
        // In the part of the file that holds values.
        let at = loop {
            let at = random.below(whole.len() as u64) as usize;
            if whole[at] != 0 && at > 4096 {
                break at;
            }
        };
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << random.below(8);
        std::fs::write(&path, &bytes).unwrap();
        // redb may refuse or even panic over its own structures: both are detection, and no answer.
        let answers = std::panic::catch_unwind(|| {
            let kv = RedbKv::open(&path)?;
            (0..50u32).map(|n| kv.get(&n.to_be_bytes())).collect::<Result<Vec<_>, _>>()
        });
        match answers {
            Ok(Ok(answers)) => {
                let right = |(n, found): (usize, &Option<Vec<u8>>)| found.is_none() || *found == Some(value(n as u32));
                assert!(answers.iter().enumerate().all(right), "byte {at}: a wrong value");
            }
            _ => detected += 1,
        }
    }
    assert!(detected > 0, "some flips hit values");
}
