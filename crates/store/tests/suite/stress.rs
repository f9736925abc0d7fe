//! Readers and proofs while blocks commit, and flushes, compactions, prunes and rollbacks run.

use crate::support::{Random, TestStore, count, namespace};
use keelstone_codec::{Height, Key, Value};
use keelstone_store::files::MemoryFiles;
use keelstone_store::{CheckLevel, Options, Retention, StoreError};
use keelstone_tree::{Blake3, Diff, KeyRange, ProofLimits, Query, Read, ReadError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const KEYS: u64 = 120;

fn options() -> Options {
    Options {
        segment_bytes: 32 << 10,
        page_segment_bytes: 32 << 10,
        flush_bytes: 16 << 10,
        cache_bytes: 32 << 10,
        value_cache_bytes: 64 << 10,
        history: Retention::Heights(30),
        recent_versions: 3,
        background: true,
        ..Options::default()
    }
}

/// Every height writes itself into each key, so that two heights can never be mixed unnoticed.
fn block(height: u64) -> Diff {
    let value = |key: u64| Value::new([height.to_be_bytes(), key.to_be_bytes()].concat()).unwrap();
    (0..KEYS).map(|key| (namespace("a"), Key::new(key.to_be_bytes()).unwrap(), Some(value(key)))).collect()
}

/// Reads a height in every way there is: whatever else goes on, all of it is of that height.
fn read(store: &TestStore, random: &mut Random) -> Result<(), ReadError> {
    let view = match (random.below(2), store.low(), store.height()) {
        (0, Some(low), Some(high)) => match store.view_at(Height(low.0 + random.below(high.0 - low.0 + 1))) {
            Ok(view) => view,
            Err(StoreError::NotRetained { .. }) => return Ok(()),
            Err(StoreError::Read(error)) => return Err(error),
            Err(error) => panic!("{error}"),
        },
        _ => store.view(),
    };
    let Some(height) = view.height() else { return Ok(()) };
    let key = random.below(KEYS).to_be_bytes();
    let value = view.get(&namespace("a"), &key)?.expect("every height has every key");
    assert_eq!(value[..], [height.0.to_be_bytes(), key].concat());
    let query = Query::Key(namespace("a"), Key::new(key).unwrap());
    let proof = view.prove(std::slice::from_ref(&query))?;
    let verified = proof.verify::<Blake3>(view.root(), &[query], &ProofLimits::default());
    drop(verified.unwrap_or_else(|error| panic!("height {height}: {error}")));
    let mut count = 0;
    for entry in view.scan(&namespace("a"), KeyRange::all()) {
        assert_eq!(entry?.1[..8], height.0.to_be_bytes());
        count += 1;
    }
    assert_eq!(count, KEYS);
    Ok(())
}

/// Tells the readers to stop, also when the writer panics.
pub(crate) struct End<'a>(pub(crate) &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// spec: STORE-6, STORE-12. Nobody who reads sees anything of what is written meanwhile.
#[test]
fn readers_see_one_height_each_while_everything_goes_on() {
    let store = TestStore::create(Arc::new(MemoryFiles::new()), options()).unwrap();
    store.commit(Height(0), block(0)).unwrap();
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (store, done, reads) = (&store, &done, &reads);
            scope.spawn(move || {
                let mut random = Random(reader);
                while !done.load(Ordering::Relaxed) {
                    read(store, &mut random).unwrap_or_else(|error| panic!("{error}"));
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _end = End(&done);
        let mut random = Random(99);
        let mut height = 0;
        for _ in 0..count("KEELSTONE_STRESS_BLOCKS", 1500) {
            match random.below(60) {
                0 if height > 10 => {
                    // What a prune gave up is no height to go back to.
                    let low = store.low().map_or(0, |low| low.0);
                    height = (height - 1 - random.below(3)).max(low);
                    store.rollback(Height(height)).unwrap();
                }
                1 => drop(store.compact(&mut |_| {}).unwrap()),
                2 => store.prune(Height(height - height.min(5))).unwrap(),
                _ => {
                    height += 1;
                    store.commit(Height(height), block(height)).unwrap();
                }
            }
        }
    });
    let report = store.check(CheckLevel::Full, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    assert!(reads.into_inner() > 0);
    let stats = store.stats();
    assert!(stats.compactions > 0, "{stats:?}");
}
