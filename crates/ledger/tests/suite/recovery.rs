//! What a key held over time, and a chain that is made anew as it was.

use crate::audit::{begin, genesis, live, restored};
use crate::tools::*;
use keelstone_codec::{Encode as _, Height, Key, Namespace, Timestamp, Value};
use keelstone_ledger::{
    AuditEvent, Bodies, ChangedBy, Genesis, KEY_HISTORY_HEIGHTS_MAX, LedgerError, RebuildError, Receipt, TxId, Until,
};
use keelstone_store::kv::{Batch, Kv, MemoryKv};
use keelstone_tree::{Answer, Blake3, Hasher as _, Proof, ProofLimits, Query, Read as _};
use std::ops::ControlFlow;
use std::sync::Arc;

fn place(namespace: &str, key: &str) -> (Namespace, Key) {
    (Namespace::new(namespace).unwrap(), Key::new(key.as_bytes().to_vec()).unwrap())
}

/// Every change of a key is listed with its height, a proof under that height's root, and the operation that made it, also
/// one of an async bundle and the one that took it back; a model that reads every height finds the same.
#[test]
fn history_of_a_key_is_every_change_with_operation_and_proof() {
    let chain = begin(&Arc::default());
    live(&chain);
    let balance = format!("currency.balances:{}", key(1).public());
    let mut operations = 0;
    for (namespace, key) in [place("contracts", &balance), place("contracts", "currency.balances:person 3")] {
        let history = chain.key_history(&namespace, &key, Height(0)..=chain.height(), 1_000).unwrap();
        assert_eq!(history.next, None);
        let mut expected = Vec::new();
        let mut last = None;
        for height in (0..=chain.height().0).map(Height) {
            let now = chain.view_at(height).unwrap().get(&namespace, &key).unwrap();
            if now != last {
                expected.push((height, last.as_ref().map(|value: &Value| Blake3::hash(value)), now.clone()));
                last = now;
            }
        }
        let found = history.changes.iter().map(|change| (change.height, change.before, change.value.clone()));
        let found: Vec<_> = found.collect();
        assert_eq!(found, expected);
        for change in &history.changes {
            let (root, proof) = &change.proof;
            assert_eq!(Some(*root), chain.root_at(change.height).unwrap());
            let query = [Query::Key(namespace.clone(), key.clone())];
            let shown = Proof::decode(proof).unwrap().verify::<Blake3>(*root, &query, &ProofLimits::default()).unwrap();
            match (&change.value, shown.get(&namespace, &key)) {
                (Some(value), Answer::Present(proven)) => assert_eq!(*value, proven),
                (None, Answer::Absent) => {}
                other => panic!("{other:?}"),
            }
            match &change.by {
                ChangedBy::Operations(wrote) => {
                    operations += wrote.len();
                    for (state_hash, logged) in wrote {
                        let logged = logged.as_ref().expect("all records are kept");
                        let AuditEvent::Operation(operation) = &logged.record.event else { panic!("{logged:?}") };
                        assert_eq!((operation.after, logged.record.height), (*state_hash, change.height));
                    }
                }
                by => assert_eq!((by, change.height), (&ChangedBy::Unknown, Height(0)), "a genesis is no operation"),
            }
        }
    }
    assert!(operations > 200, "{operations} operations");

    // A system write is nobody's operation.
    let (namespace, key) = keelstone_ledger::log_place();
    let history = chain.key_history(&namespace, &key, Height(1)..=chain.height(), 3).unwrap();
    assert!(history.changes.iter().all(|change| change.by == ChangedBy::Chain));
    // Three at a time, from where the last listing ended, all are found once.
    let mut heights: Vec<Height> = history.changes.iter().map(|change| change.height).collect();
    let mut next = history.next;
    while let Some(from) = next {
        let part = chain.key_history(&namespace, &key, from..=chain.height(), 3).unwrap();
        heights.extend(part.changes.iter().map(|change| change.height));
        next = part.next;
    }
    let written: Vec<_> =
        (1..=chain.height().0).map(Height).filter(|height| chain.header(*height).unwrap().record.is_some()).collect();
    assert_eq!(heights, written);
    chain.store().prune(Height(5)).unwrap();
    let early = chain.key_history(&namespace, &key, Height(3)..=Height(9), 10);
    assert!(matches!(early, Err(LedgerError::Store(keelstone_store::StoreError::NotRetained { .. }))));
    assert!(chain.key_history(&namespace, &key, Height(5)..=Height(9), 10).is_ok());
    let above = chain.height().next();
    let late = chain.key_history(&namespace, &key, above..=above.next(), 10);
    assert!(matches!(late, Err(LedgerError::NotYet { height, .. }) if height == above));
}

/// One listing looks at so many heights, and says where the next begins, also where it has found nothing.
#[test]
fn a_listing_of_a_key_ends_after_so_many_heights() {
    let chain = begin(&Arc::default());
    for _ in 0..=KEY_HISTORY_HEIGHTS_MAX {
        chain.produce(Timestamp(1_000), proposer()).unwrap();
    }
    let (namespace, key) = place("contracts", "nothing");
    let low = chain.store().low().unwrap();
    let last = Height(low.0 + KEY_HISTORY_HEIGHTS_MAX - 1);
    let history = chain.key_history(&namespace, &key, low..=chain.height(), 1).unwrap();
    assert_eq!((history.changes.len(), history.heights, history.next), (0, low..=last, Some(last.next())));
    let rest = chain.key_history(&namespace, &key, last.next()..=chain.height(), 1).unwrap();
    assert_eq!((rest.heights, rest.next), (last.next()..=chain.height(), None));
}

fn rebuild(chain: &Chain, to: Height) -> Result<(Chain, keelstone_ledger::Rebuilt), RebuildError> {
    chain.rebuild(&genesis(), to, store(), Arc::new(MemoryKv::new()), &mut |_, _| {})
}

/// spec: HISTORY-7. A chain made anew up to any height is the chain as it was: root, log, blocks, receipts, and what comes
/// next. So it is where the states up to there are no longer kept.
#[test]
fn a_chain_is_rebuilt_to_any_height() {
    let chain = begin(&Arc::default());
    live(&chain);
    let roots: Vec<_> = (0..=chain.height().0).map(|height| chain.root_at(Height(height)).unwrap().unwrap()).collect();
    let next = signed(2, 7, vec![post("next")]);
    for pruned in [false, true] {
        if pruned {
            chain.store().prune(chain.height()).unwrap();
        }
        for (to, root) in (0u64..).zip(&roots) {
            let (made, rebuilt) = rebuild(&chain, Height(to)).unwrap();
            assert_eq!((rebuilt.height, rebuilt.root, made.root()), (Height(to), *root, *root));
            assert_eq!((rebuilt.from, rebuilt.blocks), (Height(0), to));
            if !pruned {
                assert_eq!(rebuilt.roots_compared, to + 1);
            }
            assert_eq!(made.verify_audit(&mut |_| {}).unwrap().fault, None);
            for height in (1..=to).map(Height) {
                assert_eq!(made.block(height).unwrap(), chain.block(height).unwrap());
                assert_eq!(made.receipts(height).unwrap(), chain.receipts(height).unwrap());
            }
        }
    }
    let (made, _) = rebuild(&chain, chain.height()).unwrap();
    assert_eq!(block(&made, std::slice::from_ref(&next)).root, block(&chain, &[next]).root);
}

/// spec: HISTORY-7. A time, a record and a transaction each mean the block they fall into.
#[test]
fn a_time_or_an_operation_means_its_block() {
    let chain = begin(&Arc::default());
    live(&chain);
    let until = |until| chain.height_until(until).unwrap();
    for height in (0..=chain.height().0).map(Height) {
        assert_eq!(until(Until::Height(height)), height);
        if height > Height(0) {
            let time = chain.block(height).unwrap().time;
            let last =
                (1..=chain.height().0).rev().map(Height).find(|h| chain.block(*h).unwrap().time <= time).unwrap();
            assert_eq!(until(Until::Time(time)), last);
            for receipt in chain.receipts(height).unwrap() {
                let Receipt { transaction, .. } = receipt;
                assert_eq!(until(Until::Transaction(transaction)), height);
            }
        }
        if let Some(audit) = chain.block_audit(height).unwrap() {
            for index in audit.first..audit.first + audit.events.len() as u64 {
                assert_eq!(until(Until::Record(index)), height);
            }
        }
    }
    assert_eq!(until(Until::Time(Timestamp(u64::MAX))), chain.height());
    let above = chain.height().next();
    assert!(matches!(chain.height_until(Until::Height(above)), Err(RebuildError::Ledger(LedgerError::NotYet { .. }))));
    let mut later = genesis();
    later.time = Timestamp(1_000);
    let late = chain_of(&later);
    assert_eq!(late.height_until(Until::Time(Timestamp(1_000))).unwrap(), Height(0));
    match late.height_until(Until::Time(Timestamp(999))) {
        Err(RebuildError::TooEarly { first, found }) => assert_eq!((first, found), (Timestamp(1_000), Timestamp(999))),
        other => panic!("{other:?}"),
    }
    // A node that took the state from another has no blocks from before, and does not look for one.
    let joined = restored(&chain, &Arc::default());
    let first = chain.height().next();
    for nonce in 7..12 {
        let transaction = signed(2, nonce, vec![post("on")]);
        block(&joined, std::slice::from_ref(&transaction));
        let time = block(&chain, &[transaction]).block.time;
        assert_eq!(joined.height_until(Until::Time(time)).unwrap(), chain.height_until(Until::Time(time)).unwrap());
    }
    let before = chain.block(first).unwrap().time.0 - 1;
    match joined.height_until(Until::Time(Timestamp(before))) {
        Err(RebuildError::Ledger(LedgerError::NoBlock { height })) => assert_eq!(height, first.prev().unwrap()),
        other => panic!("{other:?}"),
    }
    let none = TxId(keelstone_codec::Hash::ZERO);
    assert!(matches!(chain.height_until(Until::Transaction(none)), Err(RebuildError::NoTransaction(id)) if id == none));
    let last = chain.audit_range().unwrap().end;
    assert!(matches!(chain.height_until(Until::Record(last)), Err(RebuildError::Ledger(LedgerError::NoRecord { .. }))));
}

/// spec: HISTORY-7, SNAP-13. A node that took its state from a snapshot rebuilds what came after it, and says what it lacks
/// for the rest.
#[test]
fn history_that_is_missing_is_refused_by_name() {
    let chain = begin(&Arc::default());
    live(&chain);
    let joined = restored(&chain, &Arc::default());
    let base = chain.height();
    for nonce in 7..10 {
        let transaction = signed(2, nonce, vec![post("on")]);
        assert_eq!(block(&chain, std::slice::from_ref(&transaction)).root, block(&joined, &[transaction]).root);
    }
    for to in base.0..=joined.height().0 {
        let (made, rebuilt) = rebuild(&joined, Height(to)).unwrap();
        assert_eq!((rebuilt.from, Some(made.root())), (base, chain.root_at(Height(to)).unwrap()));
    }
    match rebuild(&joined, Height(4)).map(|_| ()) {
        Err(RebuildError::Missing { to, missing, low }) => assert_eq!((to, missing, low), (Height(4), Height(1), base)),
        other => panic!("{other:?}"),
    }
}

/// spec: HISTORY-7. What differs is named with its height, and nothing above it is made: another genesis, a damaged body,
/// audit records that were changed.
#[test]
fn a_rebuild_stops_at_the_first_height_that_differs() {
    let kv: Arc<MemoryKv> = Arc::default();
    let chain = begin(&kv);
    live(&chain);
    let mut other: Genesis = genesis();
    other.limits.bundles_max += 1;
    let foreign = chain.rebuild(&other, Height(3), store(), Arc::new(MemoryKv::new()), &mut |_, _| {}).map(|_| ());
    assert!(matches!(foreign, Err(RebuildError::Differs { height: Height(0), .. })), "{foreign:?}");

    let mut audit = chain.block_audit(Height(8)).unwrap().unwrap();
    audit.events.swap(0, 1);
    let at = |kind: u8| [&[kind], 8u64.to_be_bytes().as_slice()].concat();
    kv.write(std::mem::take(Batch::new().put(at(b'a'), crate::audit::as_kept(&audit)))).unwrap();
    assert!(rebuild(&chain, Height(7)).is_ok());
    let differs = rebuild(&chain, Height(12)).map(|_| ());
    assert!(matches!(differs, Err(RebuildError::Differs { height: Height(8), .. })), "{differs:?}");

    let body = kv.get(&at(b'b')).unwrap().unwrap();
    kv.write(std::mem::take(Batch::new().put(at(b'b'), &body[..body.len() - 1]))).unwrap();
    let damaged = rebuild(&chain, Height(12)).map(|_| ());
    assert!(
        matches!(damaged, Err(RebuildError::Ledger(LedgerError::Damaged { height: Height(8), .. }))),
        "{damaged:?}"
    );
}

/// spec: RECOVER-1, RECOVER-6. The blocks of a database, run again from the genesis, come to the chain they are of; the first of
/// which something else is kept than it comes to, or that is not whole, is named.
#[test]
fn kept_blocks_come_to_their_chain_or_the_height_that_does_not_is_named() {
    let kv: Arc<MemoryKv> = Arc::default();
    let chain = begin(&kv);
    live(&chain);
    chain.keep_certificate(Height(3), vec![7]);
    chain.write_certificates().unwrap();
    let (bodies, last) = (Bodies::over(kv.clone()), chain.height());
    assert_eq!(bodies.last().unwrap(), Some(last));
    for height in (1..=last.0).map(Height) {
        assert_eq!(bodies.block(height).unwrap(), chain.block(height).unwrap());
        assert_eq!(bodies.root(height).unwrap(), chain.root_at(height).unwrap());
    }
    assert_eq!(bodies.root(last.next()).unwrap(), None);
    let again = || {
        let fresh = begin(&Arc::default());
        let blocks = fresh.run_kept(&bodies, last, &mut |_| ControlFlow::Continue(()))?;
        Ok::<_, LedgerError>((blocks, fresh.root(), fresh.certificate(Height(3))?))
    };
    assert_eq!(again().unwrap(), (last.0, chain.root(), Some(vec![7])));
    // Broken off it stands where it came to.
    let fresh = begin(&Arc::default());
    assert_eq!(fresh.run_kept(&bodies, last, &mut |_| ControlFlow::Break(())).unwrap(), 1);
    assert_eq!(fresh.height(), Height(1));

    let at = |kind: u8, height: u64| [&[kind][..], &height.to_be_bytes()].concat();
    let put = |key: &[u8], value: Vec<u8>| {
        let mut batch = Batch::new();
        batch.put(key.to_vec(), value);
        kv.write(batch).unwrap();
    };
    for (kind, of_another, garbage) in [
        (b'b', "its body says height 8", "its body does not decode"),
        (b'r', "memes.post/1: transaction: replayed", "its receipts do not decode"),
        (b'o', "it comes to another root", "its root does not decode"),
    ] {
        // The other's receipts as they are when they are not compressed: a frame is made against its own body.
        let other = match kind {
            b'r' => [vec![0], chain.receipts(Height(8)).unwrap().to_bytes()].concat(),
            kind => kv.get(&at(kind, 8)).unwrap().unwrap(),
        };
        let key = at(kind, 9);
        let kept = kv.get(&key).unwrap().unwrap();
        for (value, expected) in [(other, of_another), (vec![0xff], garbage)] {
            put(&key, value);
            match again() {
                Err(
                    LedgerError::Damaged { height: Height(9), what } | LedgerError::Differs { height: Height(9), what },
                ) => assert!(what.contains(expected), "{what}"),
                found => panic!("{expected}: {found:?}"),
            }
        }
        let mut batch = Batch::new();
        batch.delete(key.clone());
        kv.write(batch).unwrap();
        match (kind, again()) {
            (b'o', found) => assert_eq!(found.unwrap().1, chain.root(), "a root need not be there"),
            (_, Err(LedgerError::NoBlock { height: Height(9) })) => {}
            (_, found) => panic!("{found:?}"),
        }
        put(&key, kept);
    }
    assert_eq!(again().unwrap().0, last.0);
}

/// The last block of a database that is not after a time is the one that looking at each finds.
#[test]
fn the_last_kept_block_by_a_time_is_found() {
    let kv: Arc<MemoryKv> = Arc::default();
    let chain = begin(&kv);
    live(&chain);
    let bodies = Bodies::over(kv);
    let times: Vec<(Height, u64)> =
        (1..=chain.height().0).map(|height| (Height(height), bodies.block(Height(height)).unwrap().time.0)).collect();
    assert!(times[0].1 < times[times.len() - 1].1, "{times:?}");
    for time in times.iter().flat_map(|(_, time)| [time.saturating_sub(1), *time, time + 1]) {
        // Above the genesis, also where there is none by that time.
        for genesis in [Height(0), Height(3)] {
            let expected = times.iter().rev().find(|(height, of)| *of <= time && *height > genesis);
            let found = bodies.at_time(Timestamp(time), genesis).unwrap();
            assert_eq!(found, expected.map(|(height, _)| *height), "{time}");
        }
    }
    let none = Bodies::over(Arc::new(MemoryKv::default()));
    assert_eq!((none.last().unwrap(), none.at_time(Timestamp(9), Height(0)).unwrap()), (None, None));
}

/// spec: HISTORY-7. A root is compared wherever it is kept: one that running the same block does not come to ends the rebuild
/// at that height, and so does a first state that is not what the chain says it is.
#[test]
fn a_rebuild_stops_where_a_kept_root_differs() {
    let chain = begin(&Arc::default());
    live(&chain);
    let nonce = chain.next_nonce(&key(2).public()).unwrap().unwrap();
    let made = block(&chain, &[signed(2, nonce, vec![post("and then")])]);
    let (last, honest) = (made.block.height, made.root);
    // The same block, record and receipts, and an entry in the state that no block wrote.
    let (namespace, planted) = place("contracts", "currency.balances:nobody");
    let plant = || (namespace.clone(), planted.clone(), Some(Value::new(vec![0]).unwrap()));
    chain.store().rollback(last.prev().unwrap()).unwrap();
    let diff = made.changes.to_diff();
    let writes = diff.iter().map(|(namespace, write)| (namespace.clone(), write.key.clone(), write.value.clone()));
    let other = chain.store().commit(last, writes.chain([plant()]).collect()).unwrap();
    assert_ne!(other, honest);
    assert!(rebuild(&chain, last.prev().unwrap()).is_ok());
    match rebuild(&chain, last).map(|_| ()) {
        Err(RebuildError::Differs { height, what }) => {
            assert_eq!((height, what), (last, format!("the root is {honest}, the chain's was {other}")));
        }
        found => panic!("{found:?}"),
    }

    // From a state instead of the genesis, into a store that holds something already.
    let joined = restored(&chain, &Arc::default());
    let used = store();
    let (namespace, key, value) = plant();
    let key = Key::new([key.as_slice(), b" at all"].concat()).unwrap();
    used.commit(last.prev().unwrap(), [(namespace, key, value)].into_iter().collect()).unwrap();
    let found = joined.rebuild(&genesis(), last, used, Arc::new(MemoryKv::new()), &mut |_, _| {}).map(|_| ());
    match found {
        Err(RebuildError::Differs { height, what }) => {
            assert!(
                what.starts_with("its entries give root ") && what.ends_with(&format!("the store says {other}")),
                "{what}"
            );
            assert_eq!(height, last);
        }
        found => panic!("{found:?}"),
    }
}
