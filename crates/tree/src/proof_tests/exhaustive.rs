//! Every small tree, every small batch of writes.

use super::*;
use crate::{Answer, WitnessError};

const KEYS: [&[u8]; 6] = [&[0], &[0, 0], &[1], &[0x80], &[0x80, 0], &[0xff]];

/// The ways to spread the six keys over namespaces: all in one, beside another that is never touched, and over two.
const SPREADS: [[&str; 6]; 2] = [["a"; 6], ["a", "a", "a", "b", "b", "b"]];

fn state_of(spread: [&str; 6], bystander: bool, members: u32) -> State {
    let mut all = State::new();
    if bystander {
        all = state(&[("aa", b"by", b"stander"), ("aa", b"by2", b"stander")]);
    }
    for (i, name) in spread.into_iter().enumerate() {
        if members >> i & 1 == 1 {
            all.entry(ns(name)).or_default().insert(key(KEYS[i]), value(&vec![7; i + 1]));
        }
    }
    all
}

/// All batches of at most three writes, each a new value or a deletion.
fn batches() -> Vec<Vec<(usize, bool)>> {
    let mut batches = vec![vec![]];
    for len in 0..3 {
        let longer: Vec<_> = batches
            .iter()
            .filter(|batch: &&Vec<(usize, bool)>| batch.len() == len)
            .flat_map(|batch| {
                let from = batch.last().map_or(0, |(last, _)| last + 1);
                (from..6).flat_map(move |i| [true, false].map(|put| [batch.as_slice(), &[(i, put)]].concat()))
            })
            .collect();
        batches.extend(longer);
    }
    batches
}

fn diff_of(spread: [&str; 6], batch: &[(usize, bool)]) -> Diff {
    batch.iter().map(|&(i, put)| (ns(spread[i]), key(KEYS[i]), put.then(|| value(b"new")))).collect()
}

fn every_witness_gives_the_reference_root<H: Hasher>() {
    let batches = batches();
    assert_eq!(batches.len(), 1 + 12 + 60 + 160);
    for (spread, bystander) in [(SPREADS[0], false), (SPREADS[0], true), (SPREADS[1], false)] {
        // The reference's roots, one a state: batches lead from one of these to another, or to a changed value.
        for members in (0u32..64).filter(|members| members.count_ones() <= 5) {
            let old = state_of(spread, bystander, members);
            let tree = Grown::new::<H>(&old);
            assert_eq!(tree.root(), reference_root::<H>(&old));
            for batch in &batches {
                let diff = diff_of(spread, batch);
                let queries = diff.queries();
                let witness =
                    prove(&tree, &queries).unwrap().verify::<H>(tree.root(), &queries, &ProofLimits::default());
                let found = witness.unwrap().apply(&diff);
                let mut new = old.clone();
                apply_plainly(&mut new, &diff);
                assert_eq!(found, Ok(reference_root::<H>(&new)), "{old:?} {diff:?}");
            }
        }
    }
}

/// spec: TREE-11
#[test]
fn every_small_witness_gives_the_reference_root_under_blake3() {
    every_witness_gives_the_reference_root::<Blake3>();
}

/// spec: TREE-11
#[test]
fn every_small_witness_gives_the_reference_root_under_sha256() {
    every_witness_gives_the_reference_root::<Sha256>();
}

/// spec: TREE-9, TREE-11. A witness for other keys gives the right root or says which key it lacks, never a wrong root.
#[test]
fn a_witness_for_other_keys_gives_the_right_root_or_none() {
    let (mut right, mut refused) = (0, 0);
    let singles: Vec<_> = batches().into_iter().filter(|batch| batch.len() <= 1).collect();
    for members in (0u32..64).filter(|members| members.count_ones() <= 5) {
        let old = state_of(SPREADS[1], false, members);
        let tree = Grown::new::<Blake3>(&old);
        for shown in &singles {
            let queries = diff_of(SPREADS[1], shown).queries();
            let witness =
                prove(&tree, &queries).unwrap().verify::<Blake3>(tree.root(), &queries, &ProofLimits::default());
            let witness = witness.unwrap();
            for written in &singles {
                let diff = diff_of(SPREADS[1], written);
                match witness.apply(&diff) {
                    Ok(root) => {
                        let mut new = old.clone();
                        apply_plainly(&mut new, &diff);
                        assert_eq!(root, reference_root::<Blake3>(&new), "{old:?} {diff:?} shown {queries:?}");
                        right += 1;
                    }
                    Err(WitnessError::Incomplete { namespace, key }) => {
                        let (name, write) = diff.iter().next().unwrap();
                        assert_eq!((name, write.key.as_slice()), (&namespace, key.as_slice()));
                        refused += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
    assert!(right > 2_000 && refused > 2_000, "both happen: {right}, {refused}");
}

/// spec: TREE-9, TREE-10. Every question of one or two keys to every small tree has the model's answer, and every
/// other question asked of the same proof has the model's answer or none.
#[test]
fn every_small_proof_answers_as_the_model_does() {
    let name = ns("a");
    for members in 0u32..64 {
        let state = state_of(SPREADS[0], true, members);
        let model = |i: usize| state.get(&name).and_then(|entries| entries.get(KEYS[i])).cloned();
        let (tree, root) = (Grown::new::<Blake3>(&state), reference_root::<Blake3>(&state));
        for pair in (0..6).flat_map(|i| (i..6).map(move |j| [i, j])) {
            let queries = pair.map(|i| Query::Key(name.clone(), key(KEYS[i])));
            let sent = prove(&tree, &queries).unwrap().encode();
            let verified = verify::<Blake3>(&sent, root, &queries).unwrap();
            for (i, asked) in KEYS.iter().enumerate() {
                let expected = model(i).map_or(Answer::Absent, Answer::Present);
                let found = verified.get(&name, asked);
                let unknown = found == Answer::Unknown && !pair.contains(&i);
                assert!(unknown || found == expected, "{state:?} {asked:?}: {found:?}");
            }
        }
    }
}
