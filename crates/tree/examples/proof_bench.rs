//! What it costs to read and verify proofs of one key each, one by one and many together, on one thread.
//!
//! ```text
//! cargo run --release -p keelstone-tree --example proof_bench [keys]
//! ```
//!
//! Keys are 32 bytes and values 100. Figures are nanoseconds of processor time for each proof, where Linux tells.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends when something is wrong")]

use keelstone_codec::{Key, Namespace, Value};
use keelstone_tree::{Blake3, Grown, Proof, ProofLimits, Query, prove_bytes};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::slice;
use std::time::Duration;

const PROOFS: usize = 2_000;
const PASSES: usize = 100;

/// Time this thread has been on a processor, where the system tells.
fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default())
}

fn each(mut pass: impl FnMut()) -> u128 {
    let start = on_processor();
    (0..PASSES).for_each(|_| pass());
    (on_processor() - start).as_nanos() / (PROOFS * PASSES) as u128
}

fn main() {
    let count = std::env::args().nth(1).map_or(300_000, |text| text.parse().unwrap());
    let name = Namespace::new("bench").unwrap();
    let key = |number: usize| Key::new(&blake3::hash(&number.to_le_bytes()).as_bytes()[..]).unwrap();
    let value = Value::new(vec![7; 100]).unwrap();
    let entries: BTreeMap<Key, Value> = (0..count).map(|number| (key(number), value.clone())).collect();
    let tree = Grown::new::<Blake3>(&BTreeMap::from([(name.clone(), entries)]));
    let (root, limits) = (tree.root(), ProofLimits::default());
    let proofs: Vec<(Query, Vec<u8>)> = (0..PROOFS)
        .map(|number| Query::Key(name.clone(), key(number * (count / PROOFS))))
        .map(|query| (query.clone(), prove_bytes(&tree, &[query]).unwrap()))
        .collect();
    let decoded = |bytes: &[u8]| Proof::decode(bytes).unwrap();
    let asked = |query: &Query| match query {
        Query::Key(namespace, key) => (namespace.clone(), key.clone()),
        _ => unreachable!("only keys are asked for"),
    };
    let keys: Vec<(Namespace, Key)> = proofs.iter().map(|(query, _)| asked(query)).collect();
    for _ in 0..3 {
        let read = each(|| proofs.iter().for_each(|(_, bytes)| drop(black_box(decoded(bytes)))));
        let alone = each(|| {
            for (query, bytes) in &proofs {
                black_box(decoded(bytes).verify::<Blake3>(root, slice::from_ref(query), &limits).unwrap());
            }
        });
        let one_pass = each(|| {
            for ((_, bytes), (namespace, key)) in proofs.iter().zip(&keys) {
                black_box(Proof::verify_key::<Blake3>(bytes, root, namespace, key, &limits).unwrap());
            }
        });
        let together = each(|| {
            let proofs = proofs.iter().zip(&keys).map(|((_, bytes), (namespace, key))| (&**bytes, namespace, key));
            let verified = Proof::verify_many::<Blake3>(proofs, root, &limits);
            assert!(verified.iter().all(Result::is_ok));
        });
        println!(
            "read {read} ns, read and verified by nodes {alone} ns, in one pass {one_pass} ns, together {together} ns"
        );
    }
}
