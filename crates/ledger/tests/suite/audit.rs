//! The audit log: that it says what happened, that nothing of it can be changed unseen, and that it outlives the records.

use crate::tools::*;
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Height, Text, Timestamp, put_varint};
use keelstone_execution::bundles::{BundleId, Resume, RollBack};
use keelstone_execution::mmr::{MMR_COUNT_MAX, Mmr};
use keelstone_execution::{Batching, Bundle, FunctionHash, Mode, Operation, PublicKey};
use keelstone_ledger::modules::{contracts, standard};
use keelstone_ledger::{
    AUDIT_RECORDS_MAX, AuditEvent, AuditLog, AuditProof, AuditProofError, AuditRecord, AuditWalk, Block, BlockAudit,
    Checkpoint, Genesis, Ledger, LedgerError, PoolLimits, Receipt, Refused, SignedTransaction, Transaction, Verdict,
    read_log,
};
use keelstone_store::Store;
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::{Batch, Kv, MemoryKv};
use keelstone_tree::{Blake3, Diff, KeyRange, Read as _, Sha256, Write};
use std::sync::Arc;

pub(crate) fn genesis() -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    let balance = format!(r#"[{{"key":"currency.balances:{}","value":5000}}]"#, key(1).public());
    genesis.import_xian(balance.as_bytes()).unwrap();
    (genesis.limits.bundle_gas_max, genesis.limits.continuation_gas_max) = (4_000_000, 10_000_000);
    genesis
}

pub(crate) fn begin(kv: &Arc<MemoryKv>) -> Chain {
    Ledger::create(store(), kv.clone(), standard(), &genesis(), PoolLimits::default()).unwrap()
}

fn pay(to: u8) -> Operation {
    op(&contracts::Transfer { to: Text::new(format!("person {to}")).unwrap(), amount: Text::new("1").unwrap() })
}

/// An async bundle of so many payments.
fn payments(nonce: u64, count: u8, height: u64) -> SignedTransaction {
    let operations: Vec<_> = (0..count).map(pay).collect();
    let mode = Mode::Async(Batching::until(Height(height)));
    Transaction { bundle: Bundle::new(mode, operations.clone()).unwrap(), ..unsigned(1, nonce, operations) }
        .sign(&key(1))
}

/// All that may happen: operations, failures, an async bundle that is taken back half way, one that is completed, one
/// that time ends, empty blocks. Fifteen blocks or so.
pub(crate) fn live(chain: &Chain) {
    block(chain, &[signed(1, 0, vec![register("ada")]), signed(2, 0, vec![register("bob"), post("hello")])]);
    let bundle = payments(1, 200, 500);
    block(chain, std::slice::from_ref(&bundle));
    chain.produce(Timestamp(2_000), proposer()).unwrap();
    block(chain, &[signed(1, 2, vec![op(&RollBack { bundle: BundleId(bundle.id().0) })]), signed(2, 1, vec![pay(9)])]);
    block(chain, &[payments(3, 3, 500)]);
    chain.produce(Timestamp(5_000), proposer()).unwrap();
    chain.produce(Timestamp(5_000), proposer()).unwrap();
    for nonce in 2..6 {
        block(chain, &[signed(2, nonce, vec![post("a"), post("b"), post("c")])]);
    }
    block(chain, &[payments(4, 250, 14)]);
    while chain.height() < Height(16) {
        chain.produce(Timestamp(chain.height().0 * 1_000), proposer()).unwrap();
    }
    block(chain, &[signed(2, 6, vec![post("last")])]);
}

fn all(chain: &Chain) -> Vec<AuditRecord> {
    let (records, next) = chain.audit_records(0, usize::MAX, &|_| true).unwrap();
    assert_eq!(next, None);
    assert!(records.iter().zip(0..).all(|(record, index)| record.index == index));
    records.into_iter().map(|record| record.record).collect()
}

fn log(chain: &Chain) -> Mmr<AuditLog> {
    read_log(&chain.view()).unwrap()
}

/// spec: LEDGER-5, AUDIT-3, AUDIT-4. Everything that happened has one record, in order, and the state holds the log of
/// exactly these.
#[test]
fn every_operation_failure_rollback_and_block_has_one_record() {
    let chain = begin(&Arc::default());
    live(&chain);
    let records = all(&chain);
    let items: Vec<_> = records.iter().map(AuditRecord::item).collect();
    assert_eq!(Mmr::of(&items), log(&chain));
    let count = |kind| records.iter().filter(|record| record.kind() == kind).count();
    for kind in AuditRecord::KINDS {
        assert!(count(kind) > 0, "nothing of the kind {kind} happened");
    }
    let (mut operations, mut blocks, mut failed) = (0, 0, 0);
    for height in (1..=chain.height().0).map(Height) {
        let receipts = chain.receipts(height).unwrap();
        failed += receipts.iter().filter(|receipt| !receipt.succeeded()).count();
        operations += receipts
            .iter()
            .map(|receipt| match &receipt.verdict {
                keelstone_ledger::Verdict::Succeeded { operations, .. } => operations.len(),
                _ => 0,
            })
            .sum::<usize>();
        for continuation in chain.continuations(height).unwrap() {
            operations += continuation.operations().len();
            failed += usize::from(matches!(continuation.progress, keelstone_ledger::Progress::Stopped(_)));
        }
        blocks += usize::from(chain.header(height).unwrap().record.is_some());
    }
    assert_eq!((count("operation"), count("block"), count("failed")), (operations, blocks, failed));
    assert!(records.len() > 256, "{} records do not reach a kept top", records.len());
    // Each operation's record checks itself, and stands on the one before it in its session.
    let mut sessions = std::collections::BTreeMap::new();
    for record in &records {
        match &record.event {
            AuditEvent::Operation(operation) => {
                assert_eq!(operation.link(&chain_id()), operation.after);
                let before = sessions.insert(operation.session, operation.after);
                assert!(before.is_none_or(|before| before == operation.before), "{record:?}");
            }
            AuditEvent::RolledBack { session, before, after, .. } => {
                assert_eq!(sessions.insert(*session, *after), Some(*before), "{record:?}");
            }
            _ => {}
        }
    }
    let verdict = chain.verify_audit(&mut |_| {}).unwrap();
    assert_eq!((verdict.fault, verdict.verified), (None, records.len() as u64));
}

/// A generator of numbers, from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % limit as u64).unwrap()
    }
}

/// Changes a record in one of its fields.
fn edit(event: &mut AuditEvent, numbers: &mut Numbers) {
    let flip = |bytes: &mut [u8; 32], numbers: &mut Numbers| bytes[numbers.below(32)] ^= 1 << numbers.below(8);
    match event {
        AuditEvent::Operation(operation) => match numbers.below(9) {
            0 => flip(&mut operation.sender.0.0, numbers),
            1 => flip(&mut operation.bundle.0.0, numbers),
            2 => operation.operation += 1,
            3 => flip(&mut operation.session.0.0, numbers),
            4 => operation.sequence += 1,
            5 => flip(&mut operation.function.0.0, numbers),
            6 => flip(&mut operation.args.0, numbers),
            7 => flip(&mut operation.before.0.0, numbers),
            _ => operation.diff.entries += 1,
        },
        AuditEvent::RolledBack { before, .. } => flip(&mut before.0.0, numbers),
        AuditEvent::Failed { code, .. } => *code += 1,
        AuditEvent::Submitted { operations, .. } => *operations += 1,
        AuditEvent::Ended { abandoned, .. } => *abandoned = !*abandoned,
        AuditEvent::Block(block) => flip(&mut block.before.0.0, numbers),
    }
}

/// Records as the database keeps them, when they are not compressed.
// spec: HISTORY-11
pub(crate) fn as_kept(audit: &BlockAudit) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, audit.first);
    bytes.push(0);
    bytes.extend(audit.pack());
    bytes
}

/// spec: AUDIT-6. A record that was edited, dropped, swapped with another or repeated is found, and the first place at
/// which the log is not what it was is named: 1,000 of 1,000.
#[test]
fn a_tampered_history_is_found_and_the_first_bad_record_named() {
    let kv: Arc<MemoryKv> = Arc::default();
    let chain = begin(&kv);
    live(&chain);
    let heights: Vec<Height> =
        (1..=chain.height().0).map(Height).filter(|height| chain.block_audit(*height).unwrap().is_some()).collect();
    let (mut seed, mut tampered) = (0, 0);
    while tampered < 1_000 {
        seed += 1;
        let mut numbers = Numbers(seed);
        let height = heights[numbers.below(heights.len())];
        let honest = chain.block_audit(height).unwrap().unwrap();
        let mut audit = honest.clone();
        let (at, other) = (numbers.below(audit.events.len()), numbers.below(audit.events.len()));
        match numbers.below(4) {
            0 => edit(&mut audit.events[at], &mut numbers),
            1 => drop(audit.events.remove(at)),
            2 => audit.events.swap(at, other),
            _ => audit.events.insert(other, audit.events[at].clone()),
        }
        let differs = honest.events.iter().zip(&audit.events).position(|(a, b)| a != b);
        let shorter = honest.events.len().min(audit.events.len());
        let Some(first) = differs.or((honest.events.len() != audit.events.len()).then_some(shorter)) else { continue };
        tampered += 1;
        let mut place = vec![b'a'];
        place.extend_from_slice(&height.0.to_be_bytes());
        kv.write(std::mem::take(Batch::new().put(place.clone(), as_kept(&audit)))).unwrap();
        let verdict = chain.verify_audit(&mut |_| {}).unwrap();
        let fault = verdict.fault.unwrap_or_else(|| panic!("seed {seed}: a tampered history passed"));
        assert_eq!(fault.index, honest.first + first as u64, "seed {seed}: {}", fault.what);
        assert_eq!(fault.height, height, "seed {seed}");
        kv.write(std::mem::take(Batch::new().put(place, as_kept(&honest)))).unwrap();
    }
    assert_eq!(chain.verify_audit(&mut |_| {}).unwrap().fault, None);
}

/// spec: AUDIT-8. Every record is proven under the root of the last state; the proof is good for no other record, place,
/// root or hasher.
#[test]
fn every_record_is_proven_under_the_last_root() {
    let chain = begin(&Arc::default());
    live(&chain);
    let records = all(&chain);
    for (index, record) in (0u64..).zip(&records) {
        let proof = chain.audit_proof(index).unwrap().unwrap();
        assert_eq!((&proof.record, proof.root), (record, chain.root()));
        proof.verify::<Blake3>().unwrap();
        assert_eq!(AuditProof::from_bytes(&proof.to_bytes()), Ok(proof.clone()));
        let other = records[(usize::try_from(index).unwrap() + 1) % records.len()].clone();
        let error = AuditProof { record: other, ..proof.clone() }.verify::<Blake3>().unwrap_err();
        assert!(matches!(error, AuditProofError::Absent { index: at, .. } if at == index), "{error}");
        let mut moved = proof.clone();
        moved.inclusion.index ^= 1;
        let error = moved.verify::<Blake3>().unwrap_err();
        assert!(matches!(error, AuditProofError::Absent { index: at, .. } if at == index ^ 1), "{error}");
        let shorter = Mmr::of(&records[1..].iter().map(AuditRecord::item).collect::<Vec<_>>());
        let error = AuditProof { log: shorter, ..proof.clone() }.verify::<Blake3>().unwrap_err();
        assert!(matches!(error, AuditProofError::OtherLog { root, .. } if root == proof.root), "{error}");
        let root = chain.root_at(Height(3)).unwrap().unwrap();
        let error = AuditProof { root, ..proof.clone() }.verify::<Blake3>().unwrap_err();
        assert!(matches!(error, AuditProofError::State(_)), "{error}");
        let error = proof.verify::<Sha256>().unwrap_err();
        assert!(matches!(error, AuditProofError::State(_)), "{error}");
    }
    assert_eq!(chain.audit_proof(records.len() as u64).unwrap(), None);
}

/// spec: AUDIT-14. What a checkpoint says is proven by the state of its root, and nothing else is.
#[test]
fn what_a_checkpoint_says_is_in_the_state() {
    let chain = begin(&Arc::default());
    let (empty, proof) = chain.prove_checkpoint().unwrap();
    assert_eq!(empty.verify_state::<Blake3>(&proof).unwrap(), None);
    live(&chain);
    let (checkpoint, proof) = chain.prove_checkpoint().unwrap();
    assert_eq!(checkpoint, chain.audit_checkpoint().unwrap());
    assert_eq!(checkpoint.verify_state::<Blake3>(&proof).unwrap(), Some(chain.height()));
    let later = Checkpoint { height: chain.height().next(), ..checkpoint.clone() };
    assert_eq!(later.verify_state::<Blake3>(&proof).unwrap(), Some(chain.height()), "its height is a claim");
    type Edit = fn(&mut Checkpoint);
    let edits: [Edit; 5] = [
        |one| one.chain_id = keelstone_codec::ChainId::new("other").unwrap(),
        |one| one.genesis_hash = Hash([1; 32]),
        |one| one.height = one.height.prev().unwrap(),
        |one| one.root = keelstone_codec::Root(Hash::ZERO),
        |one| one.log.append(&Hash([1; 32])),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let mut other = checkpoint.clone();
        edit(&mut other);
        other.verify_state::<Blake3>(&proof).expect_err(&format!("edit {number} is believed"));
    }
    checkpoint.verify_state::<Sha256>(&proof).unwrap_err();
    // The proof of the log alone says nothing of the chain.
    let log = chain.audit_proof(0).unwrap().unwrap();
    checkpoint.verify_state::<Blake3>(&log.state).unwrap_err();
}

/// spec: AUDIT-15. Along the log of a chain everything follows, wherever one begins. What was made up is found with no root at
/// hand: a record that is edited where that shows, left out, moved or repeated.
#[test]
fn records_that_no_chain_writes_are_found_on_the_way() {
    let chain = begin(&Arc::default());
    live(&chain);
    let records = all(&chain);
    let walk = |from: usize, records: &[AuditRecord]| {
        let mut walk = AuditWalk::begin(chain_id(), chain.genesis_hash(), from as u64);
        let refused = records.iter().position(|record| walk.step(record).is_err());
        (refused, walk.ended())
    };
    for from in [0, 1, 2, 17, 200, records.len() - 1] {
        assert_eq!(walk(from, &records[from..]), (None, Some(chain.height())), "from {from}");
    }
    let other =
        AuditWalk::begin(keelstone_codec::ChainId::new("other").unwrap(), chain.genesis_hash(), 0).step(&records[0]);
    assert!(other.unwrap_err().contains("link"));
    let mut numbers = Numbers(7);
    let flip = |hash: &mut Hash| hash.0[5] ^= 1;
    for at in 0..records.len() {
        let found = |name: &str, edited: &[AuditRecord], places: std::ops::RangeInclusive<usize>| {
            let (refused, ended) = walk(0, edited);
            // What is left out at the end shows by the block that it does not end.
            let refused = refused.or((ended != Some(chain.height())).then_some(edited.len()));
            assert!(
                refused.is_some_and(|found| places.contains(&found)),
                "{name} at {at}: {refused:?} {:?}",
                records[at]
            );
        };
        let mut edited = records.clone();
        let shows = match &mut edited[at].event {
            AuditEvent::Operation(operation) => {
                match numbers.below(6) {
                    0 => flip(&mut operation.session.0),
                    1 => operation.sequence += 1,
                    2 => flip(&mut operation.function.0),
                    3 => flip(&mut operation.args),
                    4 => flip(&mut operation.before.0),
                    _ => flip(&mut operation.after.0),
                }
                true
            }
            AuditEvent::RolledBack { diff, .. } => {
                flip(diff);
                true
            }
            _ => false,
        };
        if shows {
            found("edited", &edited, at..=at);
        }
        let mut lower = records.clone();
        lower[at].height = Height(0);
        found("lowered", &lower, at..=at + 1);
        if !matches!(
            records[at].event,
            AuditEvent::Failed { .. } | AuditEvent::Submitted { .. } | AuditEvent::Ended { .. }
        ) {
            let mut dropped = records.clone();
            dropped.remove(at);
            // The last operation of a session is missed by nobody but its log.
            let last = |record: &AuditRecord| match &record.event {
                AuditEvent::Operation(operation) => Some(operation.session),
                _ => None,
            };
            let session = last(&records[at]);
            if session.is_none() || records[at + 1..].iter().any(|record| last(record) == session) {
                found("dropped", &dropped, at..=records.len());
            }
            let mut repeated = records.clone();
            repeated.insert(at, records[at].clone());
            found("repeated", &repeated, at..=at + 1);
        }
    }
}

/// spec: AUDIT-7. Of every height it is known how many records the log had, and what the root was, though few versions are kept.
#[test]
fn what_a_checkpoint_says_of_its_height_can_be_compared() {
    let chain = begin(&Arc::default());
    let mut stood = vec![(chain.root(), 0)];
    for nonce in 0..4 {
        block(&chain, &[signed(2, nonce, vec![if nonce == 0 { register("bob") } else { post("on") }])]);
        stood.push((chain.root(), chain.audit_checkpoint().unwrap().log.count()));
        chain.produce(chain.time(), proposer()).unwrap();
        stood.push((chain.root(), chain.audit_checkpoint().unwrap().log.count()));
    }
    chain.store().prune(chain.height()).unwrap();
    assert_eq!(chain.root_at(Height(2)).unwrap(), None, "the version is not kept");
    for (height, (root, count)) in (0..).map(Height).zip(&stood) {
        let known = chain.known_of(height).unwrap();
        assert_eq!((known.root, known.count), (Some(*root), Some(*count)), "height {height}");
    }
    let above = chain.height().next();
    assert!(matches!(chain.known_of(above), Err(LedgerError::NotYet { .. })));
    chain.prune_audit(Height(5)).unwrap();
    let known = chain.known_of(Height(2)).unwrap();
    assert_eq!((known.root, known.count), (None, None), "its records were given up");
}

/// The state at the end, in a store of its own, with a database that knows nothing: what a snapshot gives.
pub(crate) fn restored(chain: &Chain, kv: &Arc<MemoryKv>) -> Chain {
    let view = chain.view();
    let parts = view.namespaces().into_iter().map(|(namespace, _)| {
        let entries = view.scan(&namespace, KeyRange::all());
        let writes =
            entries.map(|entry| entry.map(|(key, value)| Write { key, value: Some(value) }).unwrap()).collect();
        (namespace, writes)
    });
    let store = Store::create(Arc::new(MemoryFiles::new()), options()).unwrap();
    store.commit(view.height().unwrap(), Diff::new(parts.collect()).unwrap()).unwrap();
    assert_eq!(store.root(), chain.root());
    Ledger::open(store, kv.clone(), standard(), PoolLimits::default()).unwrap()
}

/// spec: LEDGER-5, AUDIT-4. A node that took its state from a snapshot appends to the same log, and proves what it saw.
#[test]
fn a_node_that_state_synced_goes_on_appending() {
    let chain = begin(&Arc::default());
    live(&chain);
    let joined = restored(&chain, &Arc::default());
    let first = log(&chain).count();
    assert_eq!(joined.audit_range().unwrap(), first..first);
    assert_eq!(joined.verify_audit(&mut |_| {}).unwrap().fault, None);
    for nonce in 7..20 {
        let transaction = signed(2, nonce, (0..30).map(|_| post("on")).collect());
        assert_eq!(block(&chain, std::slice::from_ref(&transaction)).root, block(&joined, &[transaction]).root);
    }
    assert_eq!(log(&chain), log(&joined));
    let range = joined.audit_range().unwrap();
    assert_eq!((range.start, range.end), (first, log(&chain).count()));
    for index in range.clone() {
        assert_eq!(joined.audit_proof(index).unwrap(), chain.audit_proof(index).unwrap());
    }
    let verdict = joined.verify_audit(&mut |_| {}).unwrap();
    assert_eq!((verdict.fault, verdict.first, verdict.verified), (None, first, range.end - first));
    match joined.audit_proof(first - 1) {
        Err(LedgerError::NoRecord { index, first: found }) => assert_eq!((index, found), (first - 1, first)),
        other => panic!("{other:?}"),
    }
}

/// spec: AUDIT-9. What is left after records were given up still verifies against the state, and is still proven.
#[test]
fn what_remains_after_pruning_still_verifies() {
    let chain = begin(&Arc::default());
    live(&chain);
    let proofs: Vec<_> = (0..log(&chain).count()).map(|index| chain.audit_proof(index).unwrap()).collect();
    for before in [1, 3, 4, 9, 12, 400] {
        let first = chain.prune_audit(Height(before)).unwrap();
        assert_eq!(first, chain.audit_range().unwrap().start);
        let verdict = chain.verify_audit(&mut |_| {}).unwrap();
        assert_eq!((verdict.fault, verdict.first), (None, first), "before {before}");
        for (index, proof) in (0u64..).zip(&proofs) {
            match chain.audit_proof(index) {
                Ok(found) => assert_eq!((index >= first, &found), (true, proof)),
                Err(LedgerError::NoRecord { .. }) => assert!(index < first),
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(chain.audit_range().unwrap().start > 256 && !chain.audit_range().unwrap().is_empty());
    block(&chain, &[signed(2, 7, vec![post("and on")])]);
    assert_eq!(chain.verify_audit(&mut |_| {}).unwrap().fault, None);
}

/// spec: AUDIT-6, AUDIT-9, TX-2. A block of another engine may hold a transaction twice, or once more with a bad signature:
/// one of them is run, what it resumed is said once, and that is what verifies.
#[test]
fn a_transaction_that_stands_twice_in_a_block_is_no_fault() {
    let chain = begin(&Arc::default());
    let bundle = payments(0, 250, 500);
    block(&chain, std::slice::from_ref(&bundle));
    let resume = op(&Resume { bundle: BundleId(bundle.id().0) });
    for (nonce, first) in [(1, true), (2, false)] {
        let good = signed(1, nonce, vec![resume.clone()]);
        let again = match first {
            true => good.clone(),
            false => SignedTransaction { signature: signed(2, 0, vec![post("other")]).signature, ..good.clone() },
        };
        assert_eq!(good.id(), again.id());
        let transactions = if first { vec![good.clone(), again] } else { vec![again, good.clone()] };
        let (height, time) = (chain.height().next(), Timestamp(chain.height().0 * 1_000));
        let made = Block { height, time, proposer: proposer(), transactions };
        let made = chain.commit(chain.run(made, Refused::Receipt).unwrap()).unwrap();
        let ran: Vec<_> = made.receipts.iter().map(Receipt::succeeded).collect();
        assert_eq!(ran, [first, !first]);
        assert!(made.receipts.iter().any(|receipt| matches!(receipt.verdict, Verdict::Refused { .. })));
        assert_eq!(made.continuations.iter().filter(|one| one.by == Some(good.id())).count(), 1);
        assert_eq!(chain.verify_audit(&mut |_| {}).unwrap().fault, None);
    }
    assert!(chain.prune_audit(chain.height()).unwrap() > 0);
}

/// Where it does not decode from where on records are kept, blocks go on, and the damage is still told afterwards.
#[test]
fn damage_of_where_records_begin_is_not_written_over() {
    let kv = Arc::new(MemoryKv::new());
    let chain = begin(&kv);
    live(&chain);
    kv.write(std::mem::take(Batch::new().put(b"A".to_vec(), vec![0xff; 3]))).unwrap();
    block(&chain, &[signed(2, 7, vec![post("and on")])]);
    chain.rollback(Height(3)).unwrap();
    assert!(matches!(chain.audit_range(), Err(LedgerError::Damaged { .. })));
    let fault = chain.verify_audit(&mut |_| {}).unwrap().fault.unwrap();
    assert!(fault.index == 0 && fault.what.contains("does not decode"), "{fault:?}");
}

/// spec: AUDIT-7. An outsider's checkpoint finds out a log that was cut and went on otherwise, and only such a one.
#[test]
fn a_checkpoint_finds_truncation() {
    let chain = begin(&Arc::default());
    live(&chain);
    let checkpoint = chain.audit_checkpoint().unwrap().sign(&key(7));
    checkpoint.verify().unwrap();
    let mut forged = checkpoint.clone();
    forged.checkpoint.height = Height(3);
    assert!(forged.verify().is_err());
    let before = &checkpoint.checkpoint.log;
    for nonce in 7..9 {
        block(&chain, &[signed(2, nonce, vec![post("on")])]);
        let now = chain.audit_checkpoint().unwrap();
        let proof = chain.prove_since(&now, before.count()).unwrap().unwrap();
        assert!(before.extends_to(&now.log, &proof));
    }
    // The last record the outsider knew of is taken back, and as many come in its place.
    chain.rollback(Height(16)).unwrap();
    assert_eq!(chain.verify_audit(&mut |_| {}).unwrap().fault, None);
    for nonce in 6..9 {
        block(&chain, &[signed(2, nonce, vec![post("otherwise")])]);
    }
    assert_eq!(chain.verify_audit(&mut |_| {}).unwrap().fault, None);
    let now = chain.audit_checkpoint().unwrap();
    let proof = chain.prove_since(&now, before.count()).unwrap().unwrap();
    assert!(!before.extends_to(&now.log, &proof));
    assert_eq!(chain.prove_since(&now, now.log.count() + 1).unwrap(), None);
}

/// spec: AUDIT-5. Packed records are a third of their size, and read back as what they were.
#[test]
fn records_are_packed_to_a_third() {
    let chain = begin(&Arc::default());
    live(&chain);
    let (mut packed, mut plain) = (0, 0);
    for height in (1..=chain.height().0).map(Height) {
        let Some(audit) = chain.block_audit(height).unwrap() else { continue };
        let bytes = audit.pack();
        assert_eq!(BlockAudit::unpack(&chain_id(), &bytes), Ok(audit.clone()));
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(BlockAudit::unpack(&chain_id(), &longer).is_err());
        packed += bytes.len();
        plain += audit.records().map(|record| record.to_bytes().len()).sum::<usize>();
    }
    assert!(packed * 3 < plain, "{packed} bytes of {plain}");
}

/// spec: HISTORY-11. What is known already is not kept again: receipts take little more than half of what they would, and the
/// audit records of transactions, which a block's body and receipts say, less than half of their packed form.
#[test]
fn history_is_kept_against_what_is_known() {
    let kv: Arc<MemoryKv> = Arc::default();
    let chain = begin(&kv);
    live(&chain);
    let (mut plain, mut kept) = ([0; 2], [0; 2]);
    for height in (1..=chain.height().0).map(Height) {
        let Some(audit) = chain.block_audit(height).unwrap() else { continue };
        // The arguments of batches are those of another block.
        if !chain.continuations(height).unwrap().is_empty() {
            continue;
        }
        let at = |kind: u8| kv.get(&[&[kind], height.0.to_be_bytes().as_slice()].concat()).unwrap().unwrap().len();
        plain = [plain[0] + chain.receipts(height).unwrap().to_bytes().len(), plain[1] + audit.pack().len()];
        kept = [kept[0] + at(b'r'), kept[1] + at(b'a')];
    }
    assert!(kept[0] * 10 < plain[0] * 6 && kept[1] * 2 < plain[1], "{kept:?} of {plain:?}");
}

/// spec: HISTORY-11. Whichever byte of a block's audit records is changed, as they are kept, it is found, and told of that block.
#[test]
fn changed_audit_records_are_damage() {
    let kv: Arc<MemoryKv> = Arc::default();
    let chain = begin(&kv);
    live(&chain);
    let place = [b"a".as_slice(), &8u64.to_be_bytes()].concat();
    let honest = kv.get(&place).unwrap().unwrap();
    for at in 0..honest.len() {
        let mut changed = honest.clone();
        changed[at] ^= 0x10;
        kv.write(std::mem::take(Batch::new().put(place.clone(), changed))).unwrap();
        let found = chain.block_audit(Height(8));
        assert!(matches!(found, Err(LedgerError::Damaged { height: Height(8), .. })), "byte {at}: {found:?}");
        if at % 16 == 0 {
            assert_eq!(chain.verify_audit(&mut |_| {}).unwrap().fault.unwrap().height, Height(8));
        }
    }
    kv.write(std::mem::take(Batch::new().put(place, honest))).unwrap();
    assert_eq!(chain.verify_audit(&mut |_| {}).unwrap().fault, None);
}

/// spec: HISTORY-11. Without its body a block's audit records cannot be read, and no other's are touched.
#[test]
fn a_lost_body_takes_the_records_of_its_block_and_no_others() {
    let kv: Arc<MemoryKv> = Arc::default();
    let chain = begin(&kv);
    live(&chain);
    let body = [b"b".as_slice(), &8u64.to_be_bytes()].concat();
    kv.write(std::mem::take(Batch::new().delete(body))).unwrap();
    assert!(matches!(chain.block_audit(Height(8)), Err(LedgerError::NoBlock { height: Height(8) })));
    for height in (1..=chain.height().0).map(Height).filter(|height| *height != Height(8)) {
        chain.block_audit(height).unwrap();
    }
    assert!(matches!(chain.verify_audit(&mut |_| {}), Err(LedgerError::NoBlock { height: Height(8) })));
}

/// spec: AUDIT-5. Records are packed in one way: a hash that is written again, a number no hash has, and more than a block
/// or a log takes are refused.
#[test]
fn packed_records_have_one_encoding_and_bounds() {
    let hash = |number| Hash([number; 32]);
    let (sender, bundle, function) = (PublicKey(hash(9)), BundleId(hash(8)), FunctionHash(hash(7)));
    let failed = AuditEvent::Failed { sender, bundle, operation: 0, function, code: 7 };
    let audit = BlockAudit { height: Height(1), first: 0, events: vec![failed.clone(), failed] };
    let packed = audit.pack();
    assert_eq!(BlockAudit::unpack(&chain_id(), &packed), Ok(audit));
    let (begin, second) = packed.split_at(packed.len() - 6);
    assert_eq!(second, [2, 1, 2, 0, 3, 7], "all its hashes are known");
    let with = |second: &[&[u8]]| {
        let bytes = [begin, &second.concat()].concat();
        BlockAudit::unpack(&chain_id(), &bytes).unwrap_err()
    };
    assert!(matches!(with(&[&[2, 0], &hash(9).0, &[2, 0, 3, 7]]), DecodeError::NotCanonical { .. }));
    assert!(matches!(with(&[&[2, 1, 2, 0, 4, 7]]), DecodeError::TooLarge { found: 4, limit: 3, .. }));
    assert!(matches!(with(&[&[6, 1, 2, 0, 3, 7]]), DecodeError::UnknownTag { .. }));
    assert!(matches!(with(&[&[2, 1, 2, 0, 3, 0x80, 0x80, 4]]), DecodeError::TooLarge { found: 65_536, .. }));

    let numbers = |numbers: [u64; 3]| {
        let mut bytes = Vec::new();
        numbers.iter().for_each(|number| put_varint(&mut bytes, *number));
        BlockAudit::unpack(&chain_id(), &bytes).unwrap_err()
    };
    let most = AUDIT_RECORDS_MAX as u64;
    assert!(matches!(numbers([1, 0, most]), DecodeError::Truncated { .. }));
    assert!(matches!(numbers([1, 0, most + 1]), DecodeError::TooLarge { limit, .. } if limit == most));
    assert!(matches!(numbers([1, MMR_COUNT_MAX - 1, 1]), DecodeError::Truncated { .. }));
    assert!(matches!(numbers([1, MMR_COUNT_MAX, 1]), DecodeError::TooLarge { limit: MMR_COUNT_MAX, .. }));
}

/// The golden bytes of `spec/vectors/audit.json`.
fn vectors() -> serde_json::Value {
    use serde_json::json;
    let hexed = |bytes: Vec<u8>| hex::encode(bytes);
    let ranges: Vec<_> = (0..8u8)
        .map(|count| {
            let items: Vec<_> = (0..count).map(|number| Hash([number; 32])).collect();
            let range = Mmr::<AuditLog>::of(&items);
            json!({ "rule": "AUDIT-1", "items": items, "encoding": hexed(range.to_bytes()), "root": range.root().to_string() })
        })
        .collect();
    let chain = begin(&Arc::default());
    live(&chain);
    let records = all(&chain);
    let kinds = AuditRecord::KINDS.map(|kind| {
        let record = records.iter().find(|record| record.kind() == kind).unwrap();
        json!({ "rule": "AUDIT-3", "kind": kind, "encoding": hexed(record.to_bytes()), "item": record.item().to_string() })
    });
    let packed = chain.block_audit(Height(1)).unwrap().unwrap();
    let checkpoint = chain.audit_checkpoint().unwrap();
    let proof = chain.audit_proof(0).unwrap().unwrap();
    let since = chain.prove_since(&checkpoint, 5).unwrap().unwrap();
    json!({
        "ranges": ranges,
        "records": kinds,
        "packed": { "rule": "AUDIT-5", "height": 1, "bytes": hexed(packed.pack()) },
        "checkpoint": {
            "rule": "AUDIT-7", "seed": hex::encode([7; 32]), "encoding": hexed(checkpoint.to_bytes()),
            "sign_bytes": hexed(checkpoint.sign_bytes()), "signed": hexed(checkpoint.sign(&key(7)).to_bytes()),
        },
        "inclusion": { "rules": ["AUDIT-2", "AUDIT-8"], "index": 0, "encoding": hexed(proof.inclusion.to_bytes()) },
        "node": crate::node_log::vectors(),
        "consistency": { "rule": "AUDIT-2", "since": 5, "encoding": hexed(since.to_bytes()) },
    })
}

/// spec: AUDIT-1, AUDIT-2, AUDIT-3, AUDIT-5, AUDIT-7. Written anew with `KEELSTONE_BLESS=1` only.
#[test]
fn bytes_of_the_log_are_those_of_the_golden_vectors() {
    golden::check("audit.json", &vectors());
}
