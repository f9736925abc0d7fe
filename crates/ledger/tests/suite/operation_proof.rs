//! Proofs that one operation took effect: of every one that did, and of nothing else.

use crate::audit::{begin, live};
use crate::tools::*;
use keelstone_codec::{BoundedList, ChainId, Decode as _, Encode as _, Hash, Height, StateHash};
use keelstone_execution::{BundleId, SessionId};
use keelstone_ledger::{
    AuditEvent, AuditOperation, LedgerError, OperationProof, OperationProofError, Together, TxId, Verdict,
};
use keelstone_tree::{Blake3, Sha256};
use std::sync::Arc;

/// A chain on which everything that can happen did, with every operation that took effect.
fn lived() -> (Chain, Vec<(Height, AuditOperation)>) {
    let chain = begin(&Arc::default());
    live(&chain);
    let (records, _) = chain.audit_records(0, usize::MAX, &|_| true).unwrap();
    let operation = |height, event| match event {
        AuditEvent::Operation(operation) => Some((height, operation)),
        _ => None,
    };
    let operations = records.into_iter().filter_map(|logged| operation(logged.record.height, logged.record.event));
    let operations = operations.collect();
    (chain, operations)
}

fn proof(chain: &Chain, operation: &AuditOperation) -> OperationProof {
    chain.operation_proof(&operation.bundle, operation.operation).unwrap().unwrap()
}

/// spec: BLOCK-3, HISTORY-10. Each operation that took effect, in one block or in a batch of any, is proven under the last
/// root, as one of its bundle and of its session; what never took effect is not.
#[test]
fn every_operation_is_proven_under_the_last_root() {
    let (chain, operations) = lived();
    let (mut batches, mut several) = (0, 0);
    for (height, operation) in &operations {
        let proof = proof(&chain, operation);
        proof.verify::<Blake3>().unwrap();
        assert_eq!((proof.root, proof.height, proof.block), (chain.root(), chain.height(), *height));
        assert_eq!((proof.together.bundle(), proof.index()), (operation.bundle, operation.operation));
        assert_eq!((proof.together.session(), proof.sequence), (operation.session, operation.sequence));
        assert_eq!((proof.before, proof.operation.state_hash), (operation.before, operation.after));
        assert_eq!(OperationProof::from_bytes(&proof.to_bytes()), Ok(proof.clone()));
        batches += usize::from(matches!(proof.together, Together::Batch { .. }));
        several += usize::from(proof.in_list.count > 1);
    }
    assert!(batches > 100 && several > batches, "{batches} of batches, {several} that were not alone");
    for (_, operation) in &operations {
        let behind = operations.iter().filter(|(_, other)| other.bundle == operation.bundle).count();
        let index = u32::try_from(behind).unwrap();
        assert_eq!(chain.operation_proof(&operation.bundle, index).unwrap(), None, "the bundle has no more");
    }
    assert_eq!(chain.operation_proof(&BundleId(Hash([1; 32])), 0).unwrap(), None);
}

/// spec: HISTORY-10. Whatever is changed in a proof, it is found, and named by what it belongs to.
#[test]
fn a_changed_proof_names_the_first_thing_that_is_wrong() {
    let (chain, operations) = lived();
    let of = |batch: bool| {
        let proofs = operations.iter().map(|(_, operation)| proof(&chain, operation));
        let mut proofs = proofs.filter(|proof| matches!(proof.together, Together::Batch { .. }) == batch);
        proofs.find(|proof| proof.in_list.count > 1).unwrap()
    };
    let said = |change: &dyn Fn(&mut OperationProof), proof: &OperationProof| {
        let mut proof = proof.clone();
        change(&mut proof);
        proof.verify::<Blake3>().unwrap_err()
    };
    for good in [of(false), of(true)] {
        good.verify::<Blake3>().unwrap();
        let error = good.verify::<Sha256>().unwrap_err();
        assert!(matches!(error, OperationProofError::Hasher { .. }), "{error}");
        let error = said(&|proof| proof.root.0.0[0] ^= 1, &good);
        assert!(matches!(error, OperationProofError::State(_)), "{error}");
        let error = said(&|proof| (proof.block, proof.height) = (proof.block.next(), proof.height.next()), &good);
        assert!(matches!(error, OperationProofError::State(_) | OperationProofError::NoRecord { .. }), "{error}");
        let error = said(&|proof| proof.height = proof.block.prev().unwrap(), &good);
        assert!(matches!(error, OperationProofError::Height { .. }), "{error}");
        // A block without a record: what the state's proof shows is that it has none.
        let (namespace, key) = keelstone_ledger::BlockRecord::place(Height(900));
        let absent = chain.view().prove(&[keelstone_tree::Query::Key(namespace, key)]).unwrap().encode();
        let none = OperationProof {
            block: Height(900),
            height: Height(900),
            state: keelstone_codec::Blob::new(absent).unwrap(),
            ..good.clone()
        };
        let error = none.verify::<Blake3>().unwrap_err();
        assert!(matches!(error, OperationProofError::NoRecord { block: Height(900), .. }), "{error}");
        type Change = fn(&mut OperationProof);
        let elsewhere: [Change; 8] = [
            |proof| proof.operation.gas_used += 1,
            |proof| proof.operation.result = keelstone_codec::Blob::new(*b"else").unwrap(),
            |proof| proof.in_list.index ^= 1,
            |proof| proof.in_list.count += 1,
            |proof| proof.in_list.siblings = BoundedList::default(),
            |proof| proof.in_block.count += 1,
            |proof| proof.in_block.index += 1,
            |proof| match &mut proof.together {
                Together::Receipt { session, .. } | Together::Batch { session, .. } => {
                    *session = SessionId(Hash([1; 32]));
                }
            },
        ];
        for (number, change) in elsewhere.iter().enumerate() {
            let error = said(change, &good);
            assert!(matches!(error, OperationProofError::NotInBlock { .. }), "change {number}: {error}");
        }
        let not_linked: [Change; 4] = [
            |proof| proof.sequence += 1,
            |proof| proof.before = StateHash(Hash([1; 32])),
            |proof| proof.args = Hash([1; 32]),
            |proof| proof.chain_id = ChainId::new("other-1").unwrap(),
        ];
        for (number, change) in not_linked.iter().enumerate() {
            let error = said(change, &good);
            assert!(matches!(error, OperationProofError::Link { .. }), "change {number}: {error}");
        }
        // As a receipt a batch is another thing than as a batch, and the reverse.
        let other = match &good.together {
            Together::Receipt { transaction, session, gas_used } => Together::Batch {
                bundle: BundleId(transaction.0),
                by: None,
                session: *session,
                first: 0,
                is_complete: true,
                state_hash: good.operation.state_hash,
                gas_used: *gas_used,
            },
            Together::Batch { bundle, session, gas_used, .. } => {
                Together::Receipt { transaction: TxId(bundle.0), session: *session, gas_used: *gas_used }
            }
        };
        let error = OperationProof { together: other, ..good }.verify::<Blake3>().unwrap_err();
        assert!(matches!(error, OperationProofError::NotInBlock { .. }), "{error}");
    }
}

/// spec: HISTORY-10. A root before the operation's block proves nothing of it, any from there on does; and what is asked of
/// records that were given up says so.
#[test]
fn a_later_root_proves_it_as_well_and_pruned_records_are_named() {
    let chain = chain();
    let first = block(&chain, &[signed(1, 0, vec![register("ada"), post("one")])]);
    let bundle = BundleId(first.receipts[0].transaction.0);
    let at_once = chain.operation_proof(&bundle, 1).unwrap().unwrap();
    assert_eq!(at_once.root, first.root);
    let later = block(&chain, &[signed(2, 0, vec![register("bob")])]);
    let proof = chain.operation_proof(&bundle, 1).unwrap().unwrap();
    assert_eq!((proof.root, proof.block), (later.root, Height(1)));
    assert_eq!(
        (&proof.operation, proof.sequence, &proof.together),
        (&at_once.operation, 1, &at_once.together),
        "what is proven is the same"
    );
    let Verdict::Succeeded { operations, .. } = &first.receipts[0].verdict else { panic!("it succeeded") };
    assert_eq!(proof.operation, operations[1]);

    chain.prune_audit(Height(2)).unwrap();
    match chain.operation_proof(&bundle, 1) {
        Err(LedgerError::NoAudit { height }) => assert_eq!(height, Height(1)),
        other => panic!("{other:?}"),
    }
}
