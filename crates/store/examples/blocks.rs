//! A quick look at the speed of the store: load, durable blocks, reads, scan, open. The full workload against other
//! engines is `keelstone bench store`.
//!
//! `cargo run --release -p keelstone-store --example blocks -- DIRECTORY [KEYS]`

use keelstone_codec::{Height, Key, Namespace, Value};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Store};
use keelstone_tree::{Blake3, Diff, Hasher, KeyRange, Query, Read};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

fn key(number: u64) -> Key {
    Key::new(Blake3::hash(&number.to_le_bytes()).0).expect("32 bytes are a key")
}

fn value(number: u64) -> Value {
    let hash = Blake3::hash(&number.to_le_bytes()).0;
    Value::new([&hash[..], &hash, &hash, &hash[..4]].concat()).expect("100 bytes are a value")
}

fn diff(namespace: &Namespace, writes: impl Iterator<Item = (u64, Option<u64>)>) -> Diff {
    let sorted: BTreeMap<_, _> = writes.map(|(at, to)| ((namespace.clone(), key(at)), to.map(value))).collect();
    sorted.into()
}

/// Processor time of this process so far, in milliseconds: what counts on a machine that has other things to do.
fn processor_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("a directory for the store");
    let keys: u64 = arguments.next().map_or(1_000_000, |text| text.parse().expect("a number of keys"));
    let files = || Arc::new(Directory::new(&path).expect("a usable directory"));
    let namespace = Namespace::new("bench").expect("a name");
    let store = Store::<Blake3>::create(files(), Options::default()).expect("a new store");
    let mut height = 0;
    let mut commit = |diff: Diff| {
        let start = Instant::now();
        store.commit(Height(height), diff).expect("a commit");
        height += 1;
        start.elapsed()
    };
    let before = std::cell::Cell::new(processor_ms());
    let rate = |what: &str, count: u64, time: std::time::Duration| {
        let (now, rate) = (processor_ms(), u128::from(count) * 1_000_000 / time.as_micros().max(1));
        println!("{what}: {count} in {time:.2?}, {rate} a second; {} ms of processor time since", now - before.get());
        before.set(processor_ms());
    };

    let blocks = (0..keys / 10_000).map(|block| (block * 10_000..(block + 1) * 10_000).map(|n| (n, Some(n))));
    let load: std::time::Duration = blocks.map(|block| commit(diff(&namespace, block))).sum();
    rate("load", keys / 10_000 * 10_000, load);

    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 33
    };
    let (mut times, mut fresh) = (Vec::new(), keys);
    for block in 0..200 {
        let mut writes: Vec<(u64, Option<u64>)> = (0..800).map(|_| (next() % keys, Some(next()))).collect();
        writes.extend((0..100).map(|_| (next() % keys, None)));
        writes.extend((fresh..fresh + 100).map(|n| (n, Some(n + block))));
        fresh += 100;
        times.push(commit(diff(&namespace, writes.into_iter())));
    }
    rate("updates", 200_000, times.iter().sum());
    times.sort();
    println!("block: median {:.2?}, p99 {:.2?}, most {:.2?}", times[100], times[198], times[199]);

    let view = store.view();
    let wanted: Vec<Key> = (0..200_000).map(|_| key(next() % keys)).collect();
    for pass in ["reads, first pass", "reads, second pass"] {
        let start = Instant::now();
        let found = wanted.iter().filter(|key| view.get(&namespace, key).expect("readable").is_some()).count();
        rate(pass, 200_000, start.elapsed());
        assert!(found > 150_000);
    }
    let start = Instant::now();
    let bytes: usize = wanted[..10_000]
        .iter()
        .map(|key| view.prove(&[Query::Key(namespace.clone(), key.clone())]).expect("provable").encode().len())
        .sum();
    rate("proofs", 10_000, start.elapsed());
    println!("proof: {} bytes", bytes / 10_000);
    let start = Instant::now();
    let count = view.scan(&namespace, KeyRange::all()).filter(|entry| entry.is_ok()).count() as u64;
    rate("scan", count, start.elapsed());

    let entries: Vec<_> = view.scan(&namespace, KeyRange::all()).map(|entry| entry.expect("readable")).collect();
    let mut blocks: Vec<Diff> = Vec::new();
    for part in entries.chunks(50_000) {
        let writes =
            part.iter().map(|(key, value)| keelstone_tree::Write { key: key.clone(), value: Some(value.clone()) });
        blocks.push(Diff::new(vec![(namespace.clone(), writes.collect())]).expect("sorted"));
    }
    let import = format!("{path}/import");
    let second = Store::<Blake3>::create(Arc::new(Directory::new(&import).expect("usable")), Options::default());
    let second = second.expect("a new store");
    let start = Instant::now();
    for (height, block) in (0..).zip(blocks) {
        second.commit(Height(height), block).expect("a commit");
    }
    rate("import", count, start.elapsed());
    assert_eq!(second.root(), store.root());
    drop((view, second));

    let root = store.root();
    println!("{:?}", store.stats());
    drop(store);
    let start = Instant::now();
    let store = Store::<Blake3>::open(files(), Options::default()).expect("it opens");
    println!("open: {:.2?}", start.elapsed());
    assert_eq!(store.root(), root);
}
