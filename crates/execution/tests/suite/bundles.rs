//! Bundles: all or nothing, expectations, and what stands in the chain.

use crate::common::*;
use keelstone_codec::{Decode, Encode, Hash, Height, StateHash};
use keelstone_execution::{
    Batching, Bundle, BundleError, Caller, Change, Changes, ExpectError, FailureKind, Limits, Link, Mode, Operation,
    RestoreError, Session, SessionId, Stop, args_hash, expect, first_link, is_application, result_hash, runs_function,
};
use keelstone_tree::Read;
use proptest::prelude::*;
use std::panic::{set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// spec: EXEC-1. Every operation adds the link that the rule says, beginning with the session's first.
#[test]
fn state_hashes_are_the_links_of_what_was_run() {
    let operations = vec![mint(2, 10), mint(3, 5), op(&Echo { bytes: vec![1, 2] })];
    let (result, _) = run(&State::new(), operations.clone());
    let finished = result.unwrap();
    let session = SessionId::root(&chain_id(), &key(1));
    let mut previous = first_link(&chain_id(), &session, &StateHash::default());
    for (sequence, (operation, outcome)) in (0u64..).zip(operations.iter().zip(&finished.outcomes)) {
        let link = Link {
            chain_id: &chain_id(),
            session,
            sequence,
            previous,
            function: operation.function,
            args: args_hash(&operation.args),
            result: result_hash(&outcome.result),
            diff: outcome.diff.digest,
        };
        assert_eq!(outcome.state_hash, link.state_hash());
        previous = outcome.state_hash;
    }
    assert_eq!((finished.record.sequence, finished.record.state_hash), (3, previous));
}

/// The chain goes on from block to block, because the session's record is state.
#[test]
fn a_session_goes_on_where_it_stood() {
    let mut state = State::new();
    let first = commit(&mut state, vec![mint(2, 1)]);
    let second = commit(&mut state, vec![mint(2, 1)]);
    assert_eq!(second.record.sequence, 2);
    let (together, _) = run(&State::new(), vec![mint(2, 1), mint(2, 1)]);
    let together = together.unwrap();
    assert_eq!(together.outcomes[0].state_hash, first.outcomes[0].state_hash);
    assert_eq!(together.outcomes[1].state_hash, second.outcomes[0].state_hash);
}

/// spec: EXEC-2. The diff of an operation is its net change against the draft before it, without system writes.
#[test]
fn an_operations_diff_is_its_net_change_in_application_namespaces() {
    let mut state = State::new();
    commit(&mut state, vec![mint(1, 7)]);
    let finished = commit(&mut state, vec![op(&Audit), op(&Nothing)]);
    // The audit wrote the total that was there already; doing nothing changes nothing; both change the session.
    assert_eq!((finished.outcomes[0].diff.entries, finished.outcomes[1].diff.entries), (0, 0));
    assert_eq!(finished.outcomes[0].diff, finished.outcomes[1].diff);
    assert!(finished.changes.iter().all(|(namespace, ..)| !is_application(namespace)));
    assert_eq!(finished.changes.len(), 1, "the session's record");
}

/// spec: EXEC-4. X-04: a bundle whose expectation fails leaves nothing, and says index, expected and actual.
#[test]
fn x04_a_wrong_expected_diff_fails_the_bundle_and_names_what_was_found() {
    let (result, _) = run(&State::new(), vec![mint(2, 1), mint(2, 2), mint(2, 3)]);
    let actual = result.unwrap().outcomes[1].state_hash;
    let wrong = StateHash(Hash([9; 32]));
    let (result, changes) = run(&State::new(), vec![mint(2, 1), mint(2, 2).expecting(wrong), mint(2, 3)]);
    let failed = result.unwrap_err();
    assert_eq!((failed.operation, failed.kind.code()), (1, 7));
    let FailureKind::UnexpectedState { expected, actual: found } = failed.kind else { panic!("{failed}") };
    assert_eq!((expected, found), (wrong, actual));
    assert!(changes.is_empty());
    let (result, _) = run(&State::new(), vec![mint(2, 1), mint(2, 2).expecting(actual), mint(2, 3)]);
    result.unwrap();
}

/// spec: EXEC-4. The second meaning binds the operation's own diff alone, whatever went before.
#[test]
fn x04_an_expected_own_diff_binds_the_operation_alone() {
    let (result, _) = run(&State::new(), vec![mint(2, 1)]);
    let own = result.unwrap().outcomes[0].diff.digest;
    let mut expecting = mint(2, 1);
    expecting.expected_own_diff = Some(own);
    // An operation before it that touches nothing of it changes the state hash, not the diff.
    let (result, _) = run(&State::new(), vec![op(&Nothing), expecting.clone()]);
    result.unwrap();
    let (result, changes) = run(&State::new(), vec![mint(2, 4), expecting]);
    let failed = result.unwrap_err();
    let FailureKind::UnexpectedDiff { expected, actual } = failed.kind else { panic!("{failed}") };
    assert_eq!((failed.operation, expected), (1, own));
    assert!(actual != own && changes.is_empty());
}

/// spec: EXEC-4. Filled-in expectations are met, and nobody promises what depends on the block.
#[test]
fn expectations_are_filled_in_only_where_they_can_be_met() {
    let caller = Caller::root(key(1));
    let fill = |operations| expect(&registry(), State::new(), block(1), caller, &bundle(operations), Limits::default());
    let expecting = fill(vec![mint(2, 1), op(&Audit)]).unwrap();
    assert!(expecting.operations().iter().all(|operation| operation.expected_diff.is_some()));
    let (result, _) = run(&State::new(), expecting.operations().to_vec());
    result.unwrap();
    let error = fill(vec![mint(2, 1), op(&Look)]).unwrap_err();
    assert!(matches!(error, ExpectError::Unforeseeable { operation: 1, name: "bank.look", .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "operation 1 (bank.look) reads the block's height and time and randomness: its state hash cannot be foretold"
    );
    assert!(matches!(fill(vec![op(&Half { end: End::Denied })]), Err(ExpectError::Failed(_))));
}

/// spec: EXEC-4. What a function did not declare, it does not get, and it cannot hide that it asked.
#[test]
fn a_function_reads_of_the_block_only_what_it_declares() {
    let (result, _) = run(&State::new(), vec![op(&Half { end: End::Undeclared })]);
    let failed = result.unwrap_err();
    assert!(matches!(failed.kind, FailureKind::Stopped(Stop::Undeclared { what: "height" })), "{failed}");
    let (result, _) = run(&State::new(), vec![op(&Look), op(&Look)]);
    let outcomes = result.unwrap().outcomes;
    let seen = |index: usize| <(u64, u64, Hash, Hash)>::from_bytes(&outcomes[index].result).unwrap();
    let (first, second) = (seen(0), seen(1));
    assert_eq!((first.0, first.1), (1, 1_700_000_001_000));
    let drawn = std::collections::BTreeSet::from([first.2, first.3, second.2, second.3]);
    assert_eq!(drawn.len(), 4, "every draw is another");
}

/// spec: EXEC-5. A failure in the middle leaves what the block held before the bundle, to the byte.
#[test]
fn x05_a_bundle_that_fails_leaves_no_trace() {
    let mut state = State::new();
    commit(&mut state, vec![mint(1, 7)]);
    let registry = registry();
    for end in [End::Denied, End::Panic, End::PanicWhileScanning, End::Swallow, End::Gas, End::LongKey] {
        let mut draft = keelstone_execution::BlockDraft::begin(&registry, state.clone(), block(2));
        let run = |draft: &mut keelstone_execution::BlockDraft<'_>, operations| {
            draft.execute(Caller::root(key(1)), &bundle(operations), Limits::default()).unwrap()
        };
        run(&mut draft, vec![mint(1, 1)]).unwrap();
        let before = draft.changes();
        let failed = run(&mut draft, vec![mint(4, 4), op(&Half { end })]).unwrap_err();
        assert_eq!(failed.operation, 1, "{failed}");
        assert_eq!(draft.changes(), before, "{end:?}");
        // The draft goes on as if nothing had happened.
        run(&mut draft, vec![mint(1, 1)]).unwrap();
        let mut untouched = keelstone_execution::BlockDraft::begin(&registry, state.clone(), block(2));
        run(&mut untouched, vec![mint(1, 1)]).unwrap();
        run(&mut untouched, vec![mint(1, 1)]).unwrap();
        assert_eq!(draft.finish(), untouched.finish(), "{end:?}");
    }
}

/// a panic is caught at the boundary and says what it said; receipts do not.
#[test]
fn x05_a_panic_is_a_failure_and_the_engine_goes_on() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let (own, others) = (thread::current().id(), take_hook());
    set_hook(Box::new(move |panic| match thread::current().id() == own {
        true => TOLD.store(runs_function(), Ordering::Relaxed),
        false => others(panic),
    }));
    let (result, _) = run(&State::new(), vec![op(&Half { end: End::Panic })]);
    drop(take_hook());
    assert!(TOLD.load(Ordering::Relaxed) && !runs_function(), "a hook can tell it from a panic of the program");
    let failed = result.unwrap_err();
    let FailureKind::Panicked { message } = &failed.kind else { panic!("{failed}") };
    assert_eq!(message, "half way");
    assert_eq!(failed.kind.reason(), "the function panicked");
}

/// spec: EXEC-19. An async bundle is no atom, and is not run as one; its borders lie between its operations.
#[test]
fn async_bundles_are_submitted_and_not_run_as_one() {
    let batches = |borders: &[u32]| {
        let borders = keelstone_codec::BoundedSet::new(borders.iter().copied()).unwrap();
        Mode::Async(Batching { borders, ..Batching::until(Height(9)) })
    };
    for outside in [0, 2, u32::MAX] {
        let found = Bundle::new(batches(&[outside]), vec![op(&Nothing); 2]);
        assert_eq!(found, Err(BundleError::Border { border: outside, operations: 2 }));
    }
    let bundle = Bundle::new(batches(&[1]), vec![op(&Nothing); 2]).unwrap();
    assert_eq!(Bundle::from_bytes(&bundle.to_bytes()), Ok(bundle.clone()));
    let registry = registry();
    let mut draft = keelstone_execution::BlockDraft::begin(&registry, State::new(), block(1));
    let failed = draft.execute(Caller::root(key(1)), &bundle, Limits::default()).unwrap().unwrap_err();
    assert!(matches!(failed.kind, FailureKind::NotSync));
}

/// spec: EXEC-10. Committed changes are taken back only while every key still holds what they left there.
#[test]
fn committed_changes_are_restored_by_comparison_and_never_blindly() {
    let mut state = State::new();
    commit(&mut state, vec![mint(2, 10)]);
    let before = state.clone();
    let finished = commit(&mut state, vec![mint(2, 5), mint(3, 1)]);
    let application: Changes = finished
        .changes
        .iter()
        .filter(|(namespace, ..)| is_application(namespace))
        .map(|(namespace, key, change)| (namespace.clone(), key.clone(), change.clone()))
        .collect();

    let mut restored = state.clone();
    let back = application.restore(&state).unwrap();
    restored.apply(&back.to_diff());
    let bank = |state: &State| {
        state.scan(&space("bank"), keelstone_tree::KeyRange::all()).map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(bank(&restored), bank(&before));

    commit(&mut state, vec![mint(3, 1)]);
    let RestoreError::Changed { namespace, key, expected, found } = application.restore(&state).unwrap_err() else {
        panic!("someone changed a key since")
    };
    assert_eq!((namespace.as_str(), key.starts_with(b"balances/\x03")), ("bank", true));
    assert_eq!((expected.unwrap().to_vec(), found.unwrap().to_vec()), (1u64.to_bytes(), 2u64.to_bytes()));
}

fn changes() -> impl Strategy<Value = Vec<(u8, u8, Option<u8>)>> {
    prop::collection::vec((0..2u8, 0..6u8, prop::option::of(0..3u8)), 0..40)
}

proptest! {
    /// spec: EXEC-2, EXEC-3. However writes are cut into operations, the net change is the same, with the same digest.
    #[test]
    fn net_changes_do_not_depend_on_how_writes_are_batched(writes in changes(), cut in 1..8usize) {
        let value = |byte: &Option<u8>| byte.map(|byte| keelstone_codec::Value::new(vec![byte]).unwrap());
        let key_of = |byte: u8| keelstone_codec::Key::new(vec![byte]).unwrap();
        let mut state: std::collections::BTreeMap<(u8, u8), Option<u8>> = Default::default();
        let mut all = Vec::new();
        for batch in writes.chunks(cut) {
            for (space_of, key, after) in batch {
                let before = state.insert((*space_of, *key), *after).flatten();
                let change = Change { before: value(&before), after: value(after) };
                all.push((space(&format!("n{space_of}")), key_of(*key), change));
            }
        }
        let net: Changes = all.into_iter().collect();
        let touched = state.iter().filter(|(_, after)| after.is_some()).count();
        prop_assert_eq!(net.len(), touched, "from an empty state, what is left is what changed");
        prop_assert!(net.iter().all(|(_, _, change)| change.before != change.after));
        prop_assert_eq!(net.inverse().inverse(), net.clone());
        prop_assert_eq!(net.summary().entries, touched as u64);
        prop_assert!(net.is_empty() || net.summary().digest != net.inverse().summary().digest);
    }
}

/// The record a client sees is the one in the state.
#[test]
fn the_sessions_record_is_state() {
    let mut state = State::new();
    let finished = commit(&mut state, vec![mint(2, 1)]);
    let mut key_bytes = b"records/".to_vec();
    key_bytes.extend_from_slice(finished.session.as_bytes());
    let stored = state.get(&space("sessions"), &key_bytes).unwrap().unwrap();
    assert_eq!(Session::from_bytes(&stored), Ok(finished.record));
    let _: Operation = mint(1, 1);
}
