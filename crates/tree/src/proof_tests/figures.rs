//! Figures, not claims: how fast proofs are made and verified. Run with
//! `cargo test -p keelstone-tree --lib proof_figures -- --ignored --nocapture`.

use super::*;
use crate::Verifier;
use std::hint::black_box;
use std::time::Instant;

const ENTRIES: u64 = 1_000_000;
const PROOFS: u64 = 10_000;

/// Times `run` over `items` in pieces, so that other work on the machine shows in the mean and not in the best.
fn rate<T>(what: &str, items: &[T], mut run: impl FnMut(&T)) {
    let begin = Instant::now();
    let pieces = items.chunks(100).map(|piece| {
        let since = Instant::now();
        piece.iter().for_each(&mut run);
        since.elapsed().as_nanos() / piece.len() as u128
    });
    let best = pieces.min().expect("there are items");
    let mean = begin.elapsed().as_nanos() / items.len() as u128;
    println!("{what}: {best} ns at best, {mean} ns on average, {} /s at best", 1_000_000_000 / best);
}

#[test]
#[ignore = "takes a minute and proves nothing"]
fn proof_figures() {
    let hashed = |i: u64| Key::new(Sha256::hash(&i.to_le_bytes()).0.to_vec()).unwrap();
    let entries = (0..ENTRIES).map(|i| (hashed(i), value(&[i as u8; 100]))).collect();
    let tree = Grown::new::<Blake3>(&State::from([(ns("bench"), entries)]));
    for (what, first) in [("present", 0), ("absent", ENTRIES)] {
        let picks = (0..PROOFS).map(|i| first + i * 7919 % ENTRIES);
        let queries: Vec<_> = picks.map(|i| [Query::Key(ns("bench"), hashed(i))]).collect();
        rate(&format!("{what}, made"), &queries, |query| drop(black_box(prove_bytes(&tree, query).unwrap())));
        let proofs = queries.iter().map(|query| (prove_bytes(&tree, query).unwrap(), query));
        let proofs: Vec<_> = proofs.collect();
        println!("{what}, mean bytes: {}", proofs.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() / proofs.len());
        rate(&format!("{what}, decoded"), &proofs, |(bytes, _)| drop(black_box(Proof::decode(bytes).unwrap())));
        rate(&format!("{what}, decoded and verified"), &proofs, |(bytes, query)| {
            black_box(verify::<Blake3>(bytes, tree.root(), *query).unwrap());
        });
        let mut verifier = Verifier::<Blake3>::new(tree.root(), ProofLimits::default());
        rate(&format!("{what}, the same by a verifier with a memory"), &proofs, |(bytes, query)| {
            black_box(verifier.verify(bytes, *query).unwrap());
        });
        rate(&format!("{what}, the same without questions"), &proofs, |(bytes, _)| {
            let proof = Proof::decode(bytes).unwrap();
            black_box(proof.verify_unasked::<Blake3>(tree.root(), &ProofLimits::default()).unwrap());
        });
    }
    let mut image = [7u8; 128];
    rate("a node hashed", &[(); 10_000], |()| {
        let hash = Blake3::hash_node(&image);
        image[64..96].copy_from_slice(&hash.0);
    });
    black_box(image);
}
