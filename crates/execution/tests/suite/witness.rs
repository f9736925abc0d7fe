//! Execution over a witness: the same bundle, no store, the same hashes.

use crate::common::*;
use keelstone_codec::{Key, Namespace, Value};
use keelstone_execution::{BlockDraft, Caller, Changes, Finished, Halt, Limits, Operation, ReadSet, Recorder};
use keelstone_tree::{Blake3, Grown, KeyRange, Proof, ProofLimits, Query, Read, Verified, prove};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn start() -> State {
    let mut state = State::new();
    commit(&mut state, (1..20).map(|to| mint(to, u64::from(to))).collect());
    commit(&mut state, vec![op(&Flood { count: 5, bytes: 20 })]);
    state
}

fn grown(state: &State) -> Grown {
    let mut all: BTreeMap<Namespace, BTreeMap<Key, Value>> = BTreeMap::new();
    for name in ["bank", "other", "sessions"].map(space) {
        let entries: BTreeMap<Key, Value> = state.scan(&name, KeyRange::all()).map(Result::unwrap).collect();
        all.insert(name, entries);
    }
    Grown::new::<Blake3>(&all)
}

pub(crate) fn witness(state: &State, queries: &[Query]) -> Verified<Blake3> {
    let proof = prove(&grown(state), queries).unwrap();
    let proof = Proof::decode(&proof.encode()).unwrap();
    proof.verify::<Blake3>(state.root(), queries, &ProofLimits::default()).unwrap()
}

fn run_over(state: impl Read + 'static, operations: &[Operation]) -> Result<(Finished, Changes), Halt> {
    let registry = registry();
    let mut draft = BlockDraft::begin(&registry, state, block(3));
    let result = draft.execute(Caller::root(key(1)), &bundle(operations.to_vec()), Limits::default())?;
    Ok((result.unwrap(), draft.finish()))
}

fn recorded(state: &State, operations: &[Operation]) -> (Finished, Changes, ReadSet) {
    let recorder = Recorder::new(state.clone());
    let (finished, changes) = run_over(recorder.clone(), operations).unwrap();
    (finished, changes, recorder.reads())
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (1..30u8, 1..50u64).prop_map(|(to, amount)| mint(to, amount)),
        Just(op(&Audit)),
        Just(op(&Nothing)),
        Just(op(&Look)),
        (1..3u64).prop_map(|count| op(&Flood { count, bytes: 5 })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// spec: EXEC-17, EXEC-15. What a run reads is a witness of the run: over it, every hash, event and unit of gas is
    /// the same as over the whole state, and the new root follows from it.
    #[test]
    fn a_run_over_its_witness_is_the_run_over_the_state(operations in prop::collection::vec(operation(), 1..6)) {
        let mut state = start();
        let (full, changes, reads) = recorded(&state, &operations);
        let witness = witness(&state, &reads.queries());
        let next = witness.apply(&changes.to_diff()).unwrap();
        let (over_witness, same_changes) = run_over(witness, &operations).unwrap();
        prop_assert_eq!(&full.outcomes, &over_witness.outcomes);
        prop_assert_eq!(full.gas_used, over_witness.gas_used);
        prop_assert_eq!(&changes, &same_changes);
        prop_assert_eq!(next, state.apply(&changes.to_diff()));
    }
}

/// spec: EXEC-17. With any one question left out, the run ends in WitnessIncomplete or in the same hashes: never in
/// others, and never in "absent".
#[test]
fn a_witness_that_lacks_something_is_incomplete_not_different() {
    let state = start();
    let operations = [mint(40, 1), op(&Audit), op(&Flood { count: 1, bytes: 3 })];
    let (full, _, reads) = recorded(&state, &operations);
    let queries = reads.queries();
    let mut incomplete = 0;
    for left_out in 0..queries.len() {
        let mut fewer = queries.clone();
        fewer.remove(left_out);
        match run_over(witness(&state, &fewer), &operations) {
            Ok((finished, _)) => assert_eq!(finished.outcomes, full.outcomes, "without {:?}", queries[left_out]),
            Err(Halt::WitnessIncomplete { .. }) => incomplete += 1,
            Err(halt) => panic!("{halt}"),
        }
    }
    assert!(incomplete >= 4, "{incomplete} of {}", queries.len());
}

/// spec: EXEC-17. A scan over a range of which only single keys are shown is incomplete.
#[test]
fn a_range_is_proven_whole_or_not_at_all() {
    let state = start();
    let (_, _, reads) = recorded(&state, &[op(&Audit)]);
    assert!(!reads.ranges.is_empty());
    let keys_only: Vec<Query> = reads.queries().into_iter().filter(|query| matches!(query, Query::Key(..))).collect();
    assert!(matches!(run_over(witness(&state, &keys_only), &[op(&Audit)]), Err(Halt::WitnessIncomplete { .. })));
}

/// spec: EXEC-17. A bundle that could not be judged leaves the draft as it was, and the draft goes on.
#[test]
fn a_halt_leaves_the_draft_as_it_was() {
    let state = start();
    let (_, _, reads) = recorded(&state, &[mint(1, 1)]);
    let registry = registry();
    let mut draft = BlockDraft::begin(&registry, witness(&state, &reads.queries()), block(3));
    let run = |draft: &mut BlockDraft<'_>, operation| {
        draft.execute(Caller::root(key(1)), &bundle(vec![mint(1, 1), operation]), Limits::default())
    };
    run(&mut draft, mint(1, 1)).unwrap().unwrap();
    let before = draft.changes();
    assert!(matches!(run(&mut draft, mint(9, 1)), Err(Halt::WitnessIncomplete { .. })));
    assert_eq!(draft.changes(), before);
    run(&mut draft, mint(1, 1)).unwrap().unwrap();
}

/// A scan that stops early asks for no more than it saw.
#[test]
fn a_scan_is_recorded_as_far_as_it_went() {
    let state = start();
    let recorder = Recorder::new(state);
    let bank = space("bank");
    let seen: Vec<Key> =
        recorder.scan(&bank, KeyRange::prefix(b"balances/")).take(2).map(|entry| entry.unwrap().0).collect();
    let back: Vec<Key> =
        recorder.scan(&bank, KeyRange::prefix(b"balances/").reversed()).take(1).map(|entry| entry.unwrap().0).collect();
    let reads = recorder.reads();
    let mut behind = seen[1].to_vec();
    behind.push(0);
    assert!(reads.ranges.contains(&(bank.clone(), b"balances/".to_vec(), Some(behind))));
    assert!(reads.ranges.contains(&(bank, back[0].to_vec(), Some(b"balances0".to_vec()))));
}
