//! Async bundles: batches, checkpoints, failure, correction, and taking back, against a plain model.

use crate::common::*;
use keelstone_codec::{BoundedSet, Decode as _, Encode as _, Hash, Height, Key, Namespace, StateHash};
use keelstone_execution::bundles::{
    Abandon, Batch, BatchEnd, BundleId, BundleLimits, BundleRecord, Bundles, HOLD, Resume, Retry, RollBack, Status,
    StopReason, SubmitError, Submitted, Totals,
};
use keelstone_execution::{
    Batching, BlockDraft, Bundle, Caller, Context, Denied, Draft, Failed, FailureKind, Finished, Limits, Map, Mode,
    Operation, Registry, SessionId, Sessions, Transition, View, cost, denied, ensure, is_application, list_root,
    namespace, rollback_link, transition,
};
use keelstone_tree::{Diff, KeyRange, Read as _, Write};
use std::collections::{BTreeMap, BTreeSet};

/// Numbered cells, and a number that none takes.
#[namespace("cells")]
struct Cells {
    cells: Map<u8, u64>,
}

const UNLUCKY: u64 = 13;

/// Sets or clears a cell, and returns what it held.
#[transition("cells.put/1")]
#[derive(Clone, Debug)]
struct Put {
    cell: u8,
    value: Option<u64>,
}

impl Transition<Cells> for Put {
    type Output = Option<u64>;
    fn apply(&self, world: &mut Draft<Cells>, _: &mut Context) -> Result<Option<u64>, Denied> {
        ensure!(self.value != Some(UNLUCKY), "{UNLUCKY} is unlucky");
        let held = world.cells.get(&self.cell)?;
        match &self.value {
            Some(value) => world.cells.insert(&self.cell, value)?,
            None => drop(world.cells.remove(&self.cell)?),
        }
        Ok(held)
    }
}

/// Adds to a cell: an operation that must not run twice.
#[transition("cells.add/1", gas = 200_000)]
#[derive(Clone, Debug)]
struct Add {
    cell: u8,
    amount: u64,
}

impl Transition<Cells> for Add {
    type Output = u64;
    fn apply(&self, world: &mut Draft<Cells>, _: &mut Context) -> Result<u64, Denied> {
        let sum = world.cells.get(&self.cell)?.unwrap_or(0).checked_add(self.amount);
        let sum = sum.ok_or_else(|| denied!("too much"))?;
        world.cells.insert(&self.cell, &sum)?;
        Ok(sum)
    }
}

/// May use more than any share.
#[transition("cells.costly/1", gas = 9_000_000_000)]
#[derive(Clone, Debug)]
struct Costly;

impl Transition<Cells> for Costly {
    type Output = ();
    fn apply(&self, _: &mut Draft<Cells>, _: &mut Context) -> Result<(), Denied> {
        Ok(())
    }
}

/// Many numbered rows.
#[namespace("rows")]
struct Rows {
    rows: Map<u32, u8>,
}

/// Fills so many rows.
#[transition("rows.fill/1")]
#[derive(Clone, Debug)]
struct Fill {
    from: u32,
    count: u32,
}

impl Transition<Rows> for Fill {
    type Output = ();
    fn apply(&self, world: &mut Draft<Rows>, _: &mut Context) -> Result<(), Denied> {
        Ok((self.from..self.from + self.count).try_for_each(|row| world.rows.insert(&row, &1))?)
    }
}

fn fill(from: u32, count: u32) -> Operation {
    op(&Fill { from, count })
}

/// Empties a row.
#[transition("rows.clear/1")]
#[derive(Clone, Debug)]
struct Clear {
    row: u32,
}

impl Transition<Rows> for Clear {
    type Output = ();
    fn apply(&self, world: &mut Draft<Rows>, _: &mut Context) -> Result<(), Denied> {
        world.rows.remove(&self.row)?;
        Ok(())
    }
}

fn whole(operation: Operation) -> Bundle {
    bundle(vec![operation])
}

fn put(cell: u8, value: u64) -> Operation {
    op(&Put { cell, value: Some(value) })
}

fn add(cell: u8, amount: u64) -> Operation {
    op(&Add { cell, amount })
}

fn with_cells() -> Registry {
    let registry = registry()
        .with::<Cells, Put>()
        .with::<Cells, Add>()
        .with::<Cells, Costly>()
        .with::<Rows, Fill>()
        .with::<Rows, Clear>();
    registry.check().unwrap();
    registry
}

fn limits() -> BundleLimits {
    BundleLimits {
        in_flight_max: 6,
        per_key_max: 2,
        bytes_max: 4 << 20,
        undo_entries_max: 1_000,
        undo_bytes_max: 1 << 20,
        blocks_max: 100,
        operation_gas_max: 300_000,
        share_gas_max: 1_000_000,
        share_change_bytes_max: 64 << 20,
    }
}

/// A chain without a ledger: a state, a height, and blocks.
struct Chain {
    registry: Registry,
    state: State,
    height: u64,
    limits: BundleLimits,
}

impl Chain {
    fn new() -> Self {
        Self { registry: with_cells(), state: State::new(), height: 0, limits: limits() }
    }

    /// Makes a block: what is due, batches, then `work`. Gives the batches.
    fn block<T>(&mut self, work: impl FnOnce(&mut BlockDraft<'_>, &BundleLimits) -> T) -> (Vec<Batch>, T) {
        self.height += 1;
        let mut draft = BlockDraft::begin(&self.registry, self.state.clone(), block(self.height));
        let mut batches = draft.expire_bundles(&self.limits).unwrap();
        batches.extend(draft.continue_bundles(&self.limits).unwrap());
        let out = work(&mut draft, &self.limits);
        self.state.apply(&draft.finish().to_diff());
        (batches, out)
    }

    fn idle(&mut self) -> Vec<Batch> {
        self.block(|_, _| ()).0
    }

    fn submit(&mut self, name: u8, sender: u8, batching: Batching, operations: Vec<Operation>) -> BundleId {
        self.try_submit(name, sender, batching, operations).unwrap().bundle
    }

    fn try_submit(
        &mut self,
        name: u8,
        sender: u8,
        batching: Batching,
        operations: Vec<Operation>,
    ) -> Result<Submitted, SubmitError> {
        let bundle = Bundle::new(Mode::Async(batching), operations).unwrap();
        self.block(|draft, limits| draft.submit(id(name), Caller::root(key(sender)), &bundle, limits).unwrap()).1
    }

    /// Runs a sync bundle in a block of its own, called `name`.
    fn run(&mut self, name: u8, sender: u8, operations: Vec<Operation>) -> (Vec<Batch>, Result<Finished, Failed>) {
        let caller = Caller { bundle: Some(id(name)), ..Caller::root(key(sender)) };
        self.block(|draft, _| draft.execute(caller, &bundle(operations), Limits::default()).unwrap())
    }

    fn record(&self, bundle: BundleId) -> BundleRecord {
        View::<Bundles>::over(self.state.clone()).records.get(&bundle).unwrap().unwrap()
    }

    fn cells(&self) -> BTreeMap<u8, u64> {
        View::<Cells>::over(self.state.clone()).cells.iter().map(Result::unwrap).collect()
    }

    fn session(&self, sender: u8) -> (u64, StateHash) {
        let sessions = View::<Sessions>::over(self.state.clone());
        let id = SessionId::root(&chain_id(), &key(sender));
        let record = sessions.find(&chain_id(), &id, &key(sender)).unwrap().unwrap();
        (record.sequence, record.state_hash)
    }

    /// Makes blocks until nothing runs.
    fn settle(&mut self) -> Vec<Batch> {
        let mut all = Vec::new();
        loop {
            let batches = self.idle();
            if batches.is_empty() {
                return all;
            }
            all.extend(batches);
        }
    }

    /// The sums over bundles in flight are what their records come to, and those that run are queued.
    fn assert_sums(&self) {
        let bundles = View::<Bundles>::over(self.state.clone());
        let records = bundles.records.iter().map(Result::unwrap);
        let flying: Vec<_> = records.filter(|(_, record)| record.is_in_flight()).collect();
        let mut owners: BTreeMap<_, u32> = BTreeMap::new();
        flying.iter().for_each(|(_, record)| *owners.entry(record.owner).or_default() += 1);
        assert_eq!(bundles.owners.iter().map(Result::unwrap).collect::<BTreeMap<_, _>>(), owners);
        let in_flight = u32::try_from(flying.len()).unwrap();
        let totals = Totals { in_flight, bytes: flying.iter().map(|(_, record)| record.room).sum() };
        assert_eq!(bundles.totals.get().unwrap(), (in_flight > 0).then_some(totals));
        let running = flying.iter().filter(|(_, record)| record.status == Status::Running).map(|(id, _)| *id);
        assert_eq!(bundles.queue.iter().map(Result::unwrap).collect::<Vec<_>>(), running.collect::<Vec<_>>());
    }

    /// Keys in the namespace of bundles, but for records.
    fn left_over(&self) -> usize {
        let all = self.state.scan(&space("bundles"), KeyRange::all()).map(Result::unwrap);
        all.filter(|(key, _)| !key.starts_with(b"records/")).count()
    }
}

fn id(name: u8) -> BundleId {
    BundleId(Hash([name; 32]))
}

fn until(height: u64) -> Batching {
    Batching::until(Height(height))
}

/// The root of a list of operations.
fn digest(operations: &[Operation]) -> Hash {
    list_root(&operations.iter().map(Operation::list_hash).collect::<Vec<_>>())
}

fn advanced(batch: &Batch) -> usize {
    match &batch.end {
        BatchEnd::Advanced { outcomes, .. } => outcomes.len(),
        other => panic!("{other:?}"),
    }
}

/// spec: EXEC-6, EXEC-7. However a bundle is cut, it comes to the links, results and entries of one that ran at once, and
/// leaves nothing but its record.
#[test]
fn batches_come_to_what_one_run_comes_to() {
    let operations: Vec<Operation> = (0..300u64).map(|n| add(u8::try_from(n % 7).unwrap(), n)).collect();
    let mut whole = Chain::new();
    let whole_run = whole.run(9, 1, operations.clone()).1.unwrap();
    for share in [300_000, 1_000_000, 20_000_000, u64::MAX] {
        let mut chain = Chain::new();
        (chain.limits.share_gas_max, chain.limits.blocks_max) = (share, 1_000);
        let bundle = chain.submit(1, 1, until(400), operations.clone());
        let batches = chain.settle();
        assert!(batches.iter().all(|batch| batch.gas_used <= share.saturating_add(1_000_000)), "{share}");
        let outcomes: Vec<_> = batches
            .into_iter()
            .flat_map(|batch| match batch.end {
                BatchEnd::Advanced { outcomes, .. } => outcomes,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(outcomes, whole_run.outcomes, "{share}");
        assert_eq!((chain.cells(), chain.session(1)), (whole.cells(), whole.session(1)));
        let record = chain.record(bundle);
        assert!(record.is_complete() && record.current_operation == 300);
        assert_eq!(record.state_hash, whole.session(1).1);
        assert_eq!(chain.left_over(), 0, "{share}");
    }
}

/// spec: EXEC-8. The author's borders end batches, whatever the budget would allow.
#[test]
fn an_authors_borders_end_batches() {
    let mut chain = Chain::new();
    chain.limits.share_gas_max = 1_000_000_000;
    let borders = BoundedSet::new([3, 4, 9]).unwrap();
    chain.submit(1, 1, Batching { borders, ..until(50) }, (0..10).map(|n| put(n, 1)).collect());
    let sizes: Vec<_> = chain.settle().iter().map(|batch| (batch.first, advanced(batch))).collect();
    assert_eq!(sizes, [(0, 3), (3, 1), (4, 5), (9, 1)]);
}

/// spec: EXEC-6. One batch each and block, in turn; whom the share did not reach is the first in the next block.
#[test]
fn bundles_in_flight_take_turns_and_none_starves() {
    let mut chain = Chain::new();
    for sender in 1..=5u8 {
        chain.submit(sender, sender, until(90), (0..40).map(|n| add(sender, n)).collect());
    }
    let mut served: BTreeMap<BundleId, u64> = BTreeMap::new();
    loop {
        let batches = chain.idle();
        let Some(last) = batches.last() else { break };
        assert!(batches.iter().map(|batch| batch.gas_used).sum::<u64>() <= 1_200_000, "the share, and an undo");
        let distinct: BTreeSet<_> = batches.iter().map(|batch| batch.bundle).collect();
        assert_eq!(distinct.len(), batches.len(), "one batch each");
        for batch in &batches {
            let waited = chain.height - served.insert(batch.bundle, chain.height).unwrap_or(chain.height);
            assert!(waited <= 5, "{} waited {waited} blocks", batch.bundle);
        }
        let cursor = View::<Bundles>::over(chain.state.clone()).cursor.get().unwrap();
        assert!(cursor.is_none_or(|cursor| cursor == last.bundle));
    }
    assert_eq!(chain.cells(), (1..=5u8).map(|cell| (cell, 780)).collect());
    assert_eq!(chain.left_over(), 0);
}

/// spec: EXEC-6, EXEC-7. What cannot be served is refused at the door, each for its own reason.
#[test]
fn bundles_above_a_limit_are_not_taken_in() {
    let mut chain = Chain::new();
    let last = |found| matches!(found, Err(SubmitError::LastHeight { .. }));
    assert!(last(chain.try_submit(1, 1, until(1), vec![put(1, 1)])), "its height is the block's own");
    assert!(last(chain.try_submit(1, 1, until(200), vec![put(1, 1)])));
    // What is due above the last height there is never comes.
    chain.limits.blocks_max = u64::MAX;
    assert!(last(chain.try_submit(1, 1, until(u64::MAX), vec![put(1, 1)])));
    chain.limits.blocks_max = limits().blocks_max;
    let costly = chain.try_submit(1, 1, until(50), vec![put(1, 1), op(&Costly)]);
    assert!(matches!(costly, Err(SubmitError::Gas { operation: 1, found: 9_000_000_000, limit: 300_000, .. })));
    let unknown = Operation { function: keelstone_execution::FunctionHash(Hash([3; 32])), ..put(1, 1) };
    let unknown = chain.try_submit(1, 1, until(50), vec![unknown]);
    assert!(matches!(unknown, Err(SubmitError::UnknownFunction { operation: 0, .. })));
    let hold = Batching { hold: true, ..until(50) };
    assert!(matches!(chain.try_submit(1, 1, hold, vec![put(1, 1)]), Err(SubmitError::Session(_))));
    assert_eq!(chain.left_over(), 0, "nothing of them is kept");

    let sleeper = || vec![put(1, 1), put(1, UNLUCKY)];
    chain.submit(1, 1, until(90), sleeper());
    chain.submit(2, 1, until(90), sleeper());
    assert_eq!(chain.try_submit(3, 1, until(90), sleeper()), Err(SubmitError::OfKey { limit: 2 }));
    assert_eq!(chain.try_submit(1, 2, until(90), sleeper()), Err(SubmitError::Known(id(1))));
    chain.limits.bytes_max = 3 * (64 << 10);
    assert!(matches!(chain.try_submit(3, 2, until(90), sleeper()), Err(SubmitError::Bytes { .. })));
    chain.limits.bytes_max = 4 << 20;
    for name in 3..=6 {
        chain.submit(name, name, until(90), sleeper());
    }
    assert_eq!(chain.try_submit(7, 7, until(90), sleeper()), Err(SubmitError::InFlight { limit: 6 }));
    assert!(chain.run(20, 1, vec![op(&Abandon { bundle: id(1) })]).1.is_ok());
    chain.submit(7, 7, until(90), sleeper());
}

/// spec: EXEC-7, EXEC-12. A failure stops at the last checkpoint with the reason on record; a corrected operation is
/// taken for one that did not take effect, and for nothing else.
#[test]
fn failure_stops_at_the_checkpoint_and_is_corrected() {
    let mut chain = Chain::new();
    let borders = BoundedSet::new([2, 4]).unwrap();
    let operations = vec![add(1, 1), add(1, 1), add(1, 1), add(1, 1), add(1, 1), put(2, UNLUCKY), add(3, 1)];
    let bundle = chain.submit(1, 1, Batching { borders, ..until(90) }, operations.clone());
    let batches = chain.settle();
    let stopped = batches.last().unwrap();
    let BatchEnd::Stopped(failure) = &stopped.end else { panic!("{stopped:?}") };
    assert_eq!((stopped.first, failure.operation, failure.code), (4, 5, 3));
    assert_eq!(chain.cells(), BTreeMap::from([(1, 4)]), "the batch of the failure left nothing");
    let record = chain.record(bundle);
    assert_eq!((record.current_operation, record.revision), (4, 0));
    assert_eq!(record.status, Status::Stopped(StopReason::Failed(failure.clone())));
    assert_eq!(record.state_hash, chain.session(1).1);

    // Resumed as it is, it fails alike.
    assert!(chain.run(20, 1, vec![op(&Resume { bundle })]).1.is_ok());
    assert!(matches!(chain.idle()[0].end, BatchEnd::Stopped(_)));
    assert!(chain.idle().is_empty());

    let mut corrected = operations;
    corrected[5] = put(2, 14);
    let good =
        Retry { bundle, operation: 5, replacement: corrected[5].clone(), revision: 1, operations: digest(&corrected) };
    let refused = |chain: &mut Chain, sender: u8, retry: Retry| {
        let failed = chain.run(21, sender, vec![op(&retry)]).1.unwrap_err();
        let FailureKind::Denied(reason) = failed.kind else { panic!("{failed}") };
        reason
    };
    assert!(refused(&mut chain, 1, Retry { operation: 3, ..good.clone() }).contains("took effect"));
    assert!(refused(&mut chain, 1, Retry { operation: 7, ..good.clone() }).contains("has 7 operations"));
    assert!(refused(&mut chain, 1, Retry { revision: 2, ..good.clone() }).contains("next revision"));
    assert!(refused(&mut chain, 1, Retry { replacement: put(2, 15), ..good.clone() }).contains("become"));
    assert!(refused(&mut chain, 2, good.clone()).contains("not yours"));
    assert!(chain.run(22, 1, vec![op(&good)]).1.is_ok());
    let batches = chain.settle();
    assert_eq!(batches.iter().map(advanced).sum::<usize>(), 3);
    let record = chain.record(bundle);
    assert!(record.is_complete());
    assert_eq!((record.revision, record.operations), (1, digest(&corrected)));
    assert_eq!(chain.cells(), BTreeMap::from([(1, 5), (2, 14), (3, 1)]));
    assert!(refused(&mut chain, 1, good).contains("has ended"));
}

/// spec: EXEC-6, EXEC-12. A bundle that another ends before its turn has no turn; whether it ran before or not.
#[test]
fn a_bundle_that_another_ends_before_its_turn_is_passed_over() {
    for taken_back in [false, true] {
        let mut chain = Chain::new();
        let (other, own) = (id(2), id(1));
        let end = if taken_back { op(&RollBack { bundle: other }) } else { op(&Abandon { bundle: other }) };
        let borders = BoundedSet::new([1]).unwrap();
        let ended = Bundle::new(Mode::Async(Batching { borders, ..until(90) }), vec![put(1, 1), put(2, 2)]).unwrap();
        let ending = Bundle::new(Mode::Async(until(90)), vec![end]).unwrap();
        let submit = |chain: &mut Chain, bundles: &[(BundleId, &Bundle)]| {
            let submitted = |draft: &mut BlockDraft<'_>, limits: &BundleLimits| {
                for (id, bundle) in bundles {
                    draft.submit(*id, Caller::root(key(1)), bundle, limits).unwrap().unwrap();
                }
            };
            chain.block(submitted).0
        };
        if taken_back {
            submit(&mut chain, &[(other, &ended)]);
            assert_eq!(submit(&mut chain, &[(own, &ending)]).len(), 1, "the first of its batches");
        } else {
            submit(&mut chain, &[(other, &ended), (own, &ending)]);
        }
        let batches = chain.idle();
        assert_eq!(batches.iter().map(|batch| batch.bundle).collect::<Vec<_>>(), [own]);
        assert!(chain.record(own).is_complete());
        let status = if taken_back { Status::RolledBack } else { Status::Abandoned };
        assert_eq!((chain.record(other).status, chain.cells().len()), (status, 0));
        assert_eq!((chain.idle().len(), chain.left_over()), (0, 0));
        chain.assert_sums();
    }
}

/// spec: EXEC-12. What a bundle is corrected by cannot manage that bundle: it fails as any operation does, and what is
/// kept of all in flight stays whole.
#[test]
fn no_operation_manages_the_bundle_it_is_of() {
    for (work, beside, last) in (0..4)
        .flat_map(|work| [(work, false), (work, true)])
        .flat_map(|(work, beside)| [false, true].map(|last| (work, beside, last)))
    {
        let mut chain = Chain::new();
        if beside {
            chain.submit(7, 2, until(90), vec![put(5, 5), put(6, UNLUCKY)]);
            chain.settle();
        }
        let mut operations = vec![put(1, 1), put(2, UNLUCKY)];
        if !last {
            operations.extend([put(3, 3), put(4, 4)]);
        }
        let borders = BoundedSet::new([1]).unwrap();
        let bundle = chain.submit(1, 1, Batching { borders, ..until(90) }, operations.clone());
        chain.settle();
        operations[1] = put(2, 2);
        let corrected = digest(&operations);
        operations[1] = match work {
            0 => op(&Abandon { bundle }),
            1 => op(&RollBack { bundle }),
            2 => op(&Resume { bundle }),
            _ => op(&Retry { bundle, operation: 1, replacement: put(2, 2), revision: 2, operations: corrected }),
        };
        let replacement = operations[1].clone();
        let retry = Retry { bundle, operation: 1, replacement, revision: 1, operations: digest(&operations) };
        chain.run(20, 1, vec![op(&retry)]).1.unwrap();
        let case = format!("work {work}, another bundle {beside}, last {last}");
        let batches = chain.settle();
        let BatchEnd::Stopped(failure) = &batches[0].end else { panic!("{case}: {batches:?}") };
        assert_eq!((batches.len(), failure.operation, failure.code), (1, 1, 3), "{case}");
        chain.assert_sums();
        let record = chain.record(bundle);
        assert_eq!((record.current_operation, record.operations), (1, digest(&operations)), "{case}");

        // It is its owner's as before.
        operations[1] = put(2, 2);
        let (replacement, operations) = (operations[1].clone(), corrected);
        let retry = Retry { bundle, operation: 1, replacement, revision: 2, operations };
        chain.run(21, 1, vec![op(&retry)]).1.unwrap();
        chain.settle();
        assert!(chain.record(bundle).is_complete(), "{case}");
        chain.assert_sums();
    }
}

/// spec: EXEC-8. A session that is closed between two batches runs no further operation.
#[test]
fn a_closed_session_stops_its_bundle_at_the_checkpoint() {
    let mut chain = Chain::new();
    chain.limits.share_gas_max = 300_000;
    let bundle = chain.submit(1, 1, until(90), (0..20).map(|n| put(n, 1)).collect());
    assert_eq!(chain.idle().len(), 1);
    let session = chain.record(bundle).session;
    chain.block(|draft, _| {
        draft
            .edit(|sessions: &mut Sessions| {
                let record = sessions.records.get(&session)?.unwrap();
                sessions.records.insert(&session, &keelstone_execution::Session { closed: true, ..record })
            })
            .unwrap();
    });
    let done = chain.record(bundle).current_operation;
    let batch = &chain.idle()[0];
    let BatchEnd::Stopped(failure) = &batch.end else { panic!("{batch:?}") };
    assert_eq!((failure.operation, failure.code), (done, 9));
    assert_eq!(chain.cells().len(), done as usize);
}

/// spec: EXEC-9, EXEC-10, EXEC-11. What a bundle did is taken back whole: values, absences and deletions; the session's
/// chain goes on over it.
#[test]
fn rollback_restores_what_was_there_and_extends_the_chain() {
    let mut chain = Chain::new();
    chain.run(20, 2, vec![put(1, 7), put(2, 8), put(3, 9)]).1.unwrap();
    let before = chain.cells();
    let mut operations = vec![put(1, 70), op(&Put { cell: 2, value: None }), put(9, 1), put(1, 71)];
    operations.push(put(4, UNLUCKY));
    let borders = BoundedSet::new([1, 2, 3, 4]).unwrap();
    let bundle = chain.submit(1, 1, Batching { borders, ..until(90) }, operations);
    chain.settle();
    assert_eq!(chain.cells(), BTreeMap::from([(1, 71), (3, 9), (9, 1)]));
    let (sequence, previous) = chain.session(1);
    let (_, finished) = chain.run(21, 1, vec![op(&RollBack { bundle })]);
    let finished = finished.unwrap();
    assert_eq!(chain.cells(), before);
    assert_eq!(chain.record(bundle).status, Status::RolledBack);
    assert_eq!(chain.left_over(), 0);
    // The rollback's own operation stands on the rollback's link.
    let digest = finished.outcomes[0].diff.digest;
    assert_eq!(Hash::from_bytes(&finished.outcomes[0].result), Ok(digest));
    let rolled = rollback_link(&previous, &bundle.0, &digest);
    assert_eq!(chain.record(bundle).state_hash, rolled);
    let link = keelstone_execution::Link {
        chain_id: &chain_id(),
        session: SessionId::root(&chain_id(), &key(1)),
        sequence,
        previous: rolled,
        function: <RollBack as keelstone_execution::Function>::hash(),
        args: keelstone_execution::args_hash(&RollBack { bundle }.to_bytes()),
        result: keelstone_execution::result_hash(&digest.to_bytes()),
        diff: digest,
    };
    assert_eq!(chain.session(1), (sequence + 1, link.state_hash()));
}

/// X-10: a later transaction changed one of the bundle's keys: refused, naming height, who and the key; nothing is lost.
#[test]
fn x10_rollback_after_a_later_change_is_refused_by_name() {
    let mut chain = Chain::new();
    let bundle = chain.submit(1, 1, until(90), vec![put(1, 1), put(2, 2), put(3, 3), put(4, UNLUCKY)]);
    chain.limits.share_gas_max = 300_000;
    chain.settle();
    assert_eq!(chain.cells().len(), 3);
    chain.run(33, 2, vec![put(3, 30)]).1.unwrap();
    let height = chain.height;
    chain.run(34, 2, vec![put(2, 20)]).1.unwrap();
    let cells = chain.cells();
    let failed = chain.run(35, 1, vec![op(&RollBack { bundle })]).1.unwrap_err();
    let FailureKind::Denied(reason) = &failed.kind else { panic!("{failed}") };
    assert!(reason.contains(&format!("at height {} by {}", height + 1, id(34).0)), "{reason}");
    assert!(reason.contains(r"cells/cells/\x02"), "{reason}");
    assert_eq!(chain.cells(), cells, "nothing was restored");
    assert!(chain.record(bundle).is_in_flight());

    // Back to what the bundle left is what it left. The other key still stands in the way.
    chain.run(36, 2, vec![put(2, 2)]).1.unwrap();
    let failed = chain.run(37, 1, vec![op(&RollBack { bundle })]).1.unwrap_err();
    assert!(failed.to_string().contains(r"cells/cells/\x03"), "{failed}");
    chain.run(38, 2, vec![put(3, 3)]).1.unwrap();
    chain.run(39, 1, vec![op(&RollBack { bundle })]).1.unwrap();
    assert_eq!(chain.cells(), BTreeMap::new());
}

/// X-10: the bundle itself wrote over what another wrote in between. Its key holds its own last value, and taking that
/// back would take the other's away with it.
#[test]
fn x10_what_a_bundle_wrote_over_is_not_lost_either() {
    let mut chain = Chain::new();
    let borders = BoundedSet::new([1, 2]).unwrap();
    let operations = vec![add(1, 5), add(1, 5), put(4, UNLUCKY)];
    let bundle = chain.submit(1, 1, Batching { borders, ..until(90) }, operations);
    let (batches, _) = chain.run(33, 2, vec![add(1, 100)]);
    assert_eq!(batches.len(), 1);
    chain.settle();
    assert_eq!(chain.cells(), BTreeMap::from([(1, 110)]));
    let failed = chain.run(36, 1, vec![op(&RollBack { bundle })]).1.unwrap_err();
    assert!(failed.to_string().contains(&id(33).0.to_string()), "{failed}");
    assert_eq!(chain.cells(), BTreeMap::from([(1, 110)]));
}

/// spec: EXEC-10. So it is where another changed the key and changed it back before the bundle wrote it again: both of its
/// changes lie between the bundle's first write and its last.
#[test]
fn x10_what_another_changed_back_in_between_is_not_taken_back_either() {
    for after in [false, true] {
        let mut chain = Chain::new();
        let borders = BoundedSet::new([1, 2]).unwrap();
        let operations = vec![put(1, 1), put(1, 3), put(4, UNLUCKY)];
        let name = chain.submit(1, 1, Batching { borders, ..until(90) }, operations);
        // In a block behind the batch that the block begins with.
        let change = |chain: &mut Chain, value: u64| {
            let bundle = bundle(vec![put(1, 2), put(1, value)]);
            let caller = Caller { bundle: Some(id(33)), ..Caller::root(key(2)) };
            let changed = |draft: &mut BlockDraft<'_>, _: &BundleLimits| {
                draft.execute(caller, &bundle, Limits::default()).unwrap().unwrap();
            };
            assert_eq!(chain.block(changed).0.len(), 1);
        };
        if after {
            assert_eq!(chain.idle().len(), 1);
            change(&mut chain, 3);
        } else {
            change(&mut chain, 1);
        }
        chain.settle();
        assert_eq!(chain.cells(), BTreeMap::from([(1, 3)]));
        let taken_back = chain.run(36, 1, vec![op(&RollBack { bundle: name })]).1;
        // After the last write it is no more than what EXEC-10 compares: the key holds what the bundle left.
        assert_eq!(taken_back.is_ok(), after, "{taken_back:?}");
        if let Err(failed) = taken_back {
            assert!(failed.to_string().contains(&id(33).0.to_string()), "{failed}");
            assert_eq!(chain.cells(), BTreeMap::from([(1, 3)]));
        }
    }
}

/// spec: EXEC-19. What operations come to is known without encoding them.
#[test]
fn an_operation_is_as_long_as_it_says() {
    let (one, plain) = (Some(Hash([1; 32])), put(1, 1));
    for (expected_diff, expected_own_diff) in [(None, None), (one, None), (None, one), (one, one)] {
        let expected_diff = expected_diff.map(StateHash);
        let operation = Operation { expected_diff, expected_own_diff, ..plain.clone() };
        assert_eq!(operation.encoded_len(), operation.to_bytes().len() as u64);
    }
}

/// spec: EXEC-13. Each bundle in flight that wrote a key is paid for by whoever writes it then, and by nobody who writes another.
#[test]
fn a_write_pays_for_those_who_wrote_the_key_before() {
    let gas = |writers: u8| {
        let mut chain = Chain::new();
        for name in 1..=writers {
            let borders = BoundedSet::new([1]).unwrap();
            chain.submit(name, name, Batching { borders, ..until(90) }, vec![add(1, 1), put(4, UNLUCKY)]);
        }
        chain.settle();
        [1, 2].map(|cell| chain.run(33 + cell, 9, vec![put(cell, 7)]).1.unwrap().gas_used)
    };
    let [one, many] = [gas(1), gas(5)];
    assert_eq!(many[0] - one[0], 4 * cost::WRITER);
    assert_eq!(many[1], one[1]);
}

/// spec: EXEC-10. A bundle that holds keeps every other writer off its keys until it ends, and takes a grant to do so.
#[test]
fn held_keys_are_kept_until_the_bundle_ends() {
    let mut chain = Chain::new();
    chain.block(|draft, _| {
        draft.edit(|sessions: &mut Sessions| sessions.grants.insert(&key(1), &BTreeSet::from([HOLD]))).unwrap();
    });
    let operations = vec![put(1, 1), put(2, UNLUCKY)];
    let borders = BoundedSet::new([1]).unwrap();
    let bundle = chain.submit(1, 1, Batching { hold: true, borders, ..until(90) }, operations);
    chain.settle();
    let failed = chain.run(20, 2, vec![put(5, 5), put(1, 2)]).1.unwrap_err();
    assert_eq!(failed.operation, 1);
    assert!(matches!(&failed.kind, FailureKind::Held { bundle: by, .. } if *by == bundle), "{failed}");
    let other = chain.submit(2, 3, until(90), vec![put(1, 3)]);
    assert!(matches!(&chain.idle()[0].end, BatchEnd::Stopped(failure) if failure.code == 11));
    assert!(chain.record(other).is_in_flight());
    chain.run(21, 1, vec![op(&RollBack { bundle })]).1.unwrap();
    chain.run(22, 2, vec![put(1, 2)]).1.unwrap();
    assert_eq!(chain.cells(), BTreeMap::from([(1, 2)]));
}

/// spec: EXEC-7. Time stops a bundle, leaves its owner as long again to have it taken back, and then leaves it as it is.
#[test]
fn a_bundle_past_its_last_height_is_stopped_and_in_the_end_abandoned() {
    let mut chain = Chain::new();
    let borders = BoundedSet::new(1..20).unwrap();
    let late =
        chain.submit(1, 1, Batching { borders: borders.clone(), ..until(4) }, (0..20).map(|n| put(n, 1)).collect());
    let failing = chain.submit(2, 2, until(6), vec![put(30, UNLUCKY)]);
    let mut seen = Vec::new();
    while chain.height < 120 {
        for batch in chain.idle() {
            if !matches!(batch.end, BatchEnd::Advanced { .. } | BatchEnd::Stopped(_)) {
                seen.push((chain.height, batch.bundle, matches!(batch.end, BatchEnd::Expired)));
            }
        }
        if chain.height == 10 {
            let failed = chain.run(20, 1, vec![op(&Resume { bundle: late })]).1.unwrap_err();
            assert!(failed.to_string().contains("last height"), "{failed}");
        }
    }
    assert_eq!(seen, [(5, late, true), (105, late, false), (107, failing, false)]);
    assert_eq!(chain.record(late).status, Status::Abandoned);
    assert_eq!(chain.cells().len(), 3, "what was done stays");
    assert_eq!(chain.left_over(), 0);
}

/// spec: EXEC-7. What is kept for taking a bundle back is bounded; the operation that would pass the bound fails.
#[test]
fn what_is_kept_for_undoing_is_bounded() {
    let mut chain = Chain::new();
    chain.limits.undo_entries_max = 3;
    let operations: Vec<Operation> = [1u8, 2, 1, 3, 2, 4].map(|cell| put(cell, u64::from(cell) + 1)).into();
    let borders = BoundedSet::new([1, 2, 3, 4, 5]).unwrap();
    let bundle = chain.submit(1, 1, Batching { borders, ..until(90) }, operations);
    let batches = chain.settle();
    assert!(matches!(&batches[5].end, BatchEnd::Stopped(failure) if failure.operation == 5 && failure.code == 5));
    assert_eq!(chain.record(bundle).undo_entries, 3);
    chain.run(20, 1, vec![op(&RollBack { bundle })]).1.unwrap();
    assert_eq!((chain.cells().len(), chain.left_over()), (0, 0));
}

/// A chain with room for bundles that write many keys.
fn wide() -> Chain {
    let mut chain = Chain::new();
    let (gas, limits) = (1_000_000_000, chain.limits);
    chain.limits = BundleLimits { undo_entries_max: 1 << 20, undo_bytes_max: 1 << 30, ..limits };
    (chain.limits.operation_gas_max, chain.limits.share_gas_max) = (gas, 100 * gas);
    chain
}

/// How many keys are kept for undoing.
fn kept(chain: &Chain) -> usize {
    View::<Bundles>::over(chain.state.clone()).undo.iter().count()
}

/// As many as are forgotten at a time.
const AT_A_TIME: usize = 65_536;

/// spec: EXEC-9. An owner who ends a bundle pays for what is forgotten with it; of a large one so much is forgotten at a
/// time, and the chain goes on with the rest by itself. It holds its place until then, and nothing else.
#[test]
fn ending_a_bundle_is_charged_and_takes_no_more_than_a_block_has_time_for() {
    let mut chain = wide();
    let grant = |sessions: &mut Sessions| sessions.grants.insert(&key(1), &BTreeSet::from([HOLD]));
    chain.block(|draft, _| draft.edit(grant).unwrap());
    let stopping = |from| vec![fill(from, 70_000), put(1, UNLUCKY)];
    let batching = || Batching { borders: BoundedSet::new([1]).unwrap(), hold: true, ..until(90) };
    let [left, taken_back] = [1u8, 2].map(|name| {
        let bundle = chain.submit(name, 1, batching(), stopping(u32::from(name) * 100_000));
        assert_eq!(chain.settle().len(), 2);
        bundle
    });
    let beside = chain.submit(3, 2, until(90), vec![put(1, UNLUCKY)]);
    chain.settle();
    assert_eq!(kept(&chain), 140_000);
    for (name, (bundle, end, gas)) in (30..)
        .zip([(left, op(&Abandon { bundle: left }), 5_000), (taken_back, op(&RollBack { bundle: taken_back }), 6_000)])
    {
        let before = kept(&chain);
        let finished = chain.run(name, 1, vec![end]).1.unwrap();
        let least = gas * AT_A_TIME as u64;
        assert!((least..least + least / 5).contains(&finished.gas_used), "{} gas", finished.gas_used);
        assert_eq!(kept(&chain), before - AT_A_TIME);
        let record = chain.record(bundle);
        assert!(!record.is_in_flight());
        assert!(chain.run(40, 1, vec![op(&Abandon { bundle })]).1.unwrap_err().to_string().contains("has ended"));
        assert_eq!((kept(&chain), chain.record(bundle)), (before - 70_000, record), "the next block forgot the rest");
    }
    assert_eq!(View::<Bundles>::over(chain.state.clone()).totals.get().unwrap().unwrap().in_flight, 1);
    chain.run(41, 2, vec![op(&Abandon { bundle: beside })]).1.unwrap();
    assert_eq!(chain.left_over(), 0);
    assert_eq!(View::<Rows>::over(chain.state.clone()).rows.iter().count(), 70_000, "one was taken back");
}

/// spec: EXEC-9, EXEC-10. What is not forgotten yet of a bundle that held its keys holds them no more.
#[test]
fn a_bundle_that_ended_holds_nothing() {
    let mut chain = wide();
    let grant = |sessions: &mut Sessions| sessions.grants.insert(&key(1), &BTreeSet::from([HOLD]));
    chain.block(|draft, _| draft.edit(grant).unwrap());
    let operations = vec![fill(0, 70_000), put(1, UNLUCKY)];
    let batching = Batching { borders: BoundedSet::new([1]).unwrap(), hold: true, ..until(90) };
    let bundle = chain.submit(1, 1, batching, operations);
    chain.settle();
    let unfill = op(&Clear { row: 69_999 });
    assert!(matches!(chain.run(30, 2, vec![unfill.clone()]).1.unwrap_err().kind, FailureKind::Held { .. }));
    let both = |draft: &mut BlockDraft<'_>, _: &BundleLimits| {
        let caller = |name, person| Caller { bundle: Some(id(name)), ..Caller::root(key(person)) };
        let abandon = whole(op(&Abandon { bundle }));
        draft.execute(caller(31, 1), &abandon, Limits::default()).unwrap().unwrap();
        draft.execute(caller(32, 2), &whole(unfill), Limits::default()).unwrap().unwrap();
    };
    chain.block(both);
    assert_eq!(kept(&chain), 70_000 - AT_A_TIME);
    assert!(chain.idle().is_empty());
    assert_eq!(chain.left_over(), 0);
}

/// spec: EXEC-6, EXEC-9. What time ends, and what ends by itself, is forgotten in as many blocks as it takes: what a block
/// does for that does not grow with how many bundles end in it.
#[test]
fn bundles_that_end_together_are_forgotten_one_after_the_other() {
    let mut chain = wide();
    chain.limits.blocks_max = 8;
    let borders = || BoundedSet::new([1]).unwrap();
    let ids = [1u8, 2].map(|name| {
        let operations = vec![fill(u32::from(name) * 100_000, 40_000), put(1, UNLUCKY)];
        let bundle = Bundle::new(Mode::Async(Batching { borders: borders(), ..until(6) }), operations).unwrap();
        (id(name), bundle)
    });
    chain.block(|draft, limits| {
        for (id, bundle) in &ids {
            draft.submit(*id, Caller::root(key(id.0.0[0])), bundle, limits).unwrap().unwrap();
        }
    });
    chain.settle();
    assert_eq!(kept(&chain), 80_000);
    let ended = loop {
        let batches = chain.idle();
        if batches.iter().any(|batch| matches!(batch.end, BatchEnd::Abandoned)) {
            break batches;
        }
        assert!(chain.height < 40);
    };
    assert_eq!((ended.len(), kept(&chain)), (2, 80_000 - AT_A_TIME));
    assert!(ids.iter().all(|(id, _)| chain.record(*id).status == Status::Abandoned));
    assert!(chain.idle().is_empty());
    assert_eq!(chain.left_over(), 0);

    // So it is with one that completes.
    chain.limits.blocks_max = 100;
    let complete = chain.submit(3, 1, until(90), vec![fill(500_000, 70_000)]);
    assert_eq!(chain.idle().len(), 1);
    assert!(chain.record(complete).is_complete());
    assert_eq!(kept(&chain), 70_000 - AT_A_TIME);
    assert!(chain.idle().is_empty());
    assert_eq!(chain.left_over(), 0);
}

/// spec: EXEC-6. Batches of a block begin no further operation once they have changed so much, and go on in the next.
#[test]
fn batches_end_where_a_block_has_changed_enough() {
    let mut chain = Chain::new();
    (chain.limits.share_gas_max, chain.limits.share_change_bytes_max) = (1_000_000_000, 1_000);
    let operations: Vec<_> = (0..40).map(|cell| put(cell, u64::from(cell) + 20)).collect();
    let ids = [1, 2].map(|person| chain.submit(person, person, until(90), operations.clone()));
    let mut blocks = 0;
    let mut most = 0;
    loop {
        let batches = chain.idle();
        let Some(last) = batches.last() else { break };
        blocks += 1;
        let bytes: u64 = batches.iter().map(|batch| batch.changed_bytes).sum();
        let operations: usize = batches.iter().map(advanced).sum();
        most = most.max(bytes / operations as u64);
        assert!(bytes < 1_000 + 2 * most, "{bytes} bytes of {operations} operations, the last of {}", last.bundle);
    }
    assert!((10..60).contains(&blocks), "{blocks} blocks, {most} bytes an operation");
    assert!(ids.iter().all(|id| chain.record(*id).is_complete()));
    assert_eq!((chain.cells().len(), chain.left_over()), (40, 0));
}

/// spec: EXEC-13. A bundle that would change more than one may fails, also for what is noted of others and what it
/// restores; nothing of it is left.
#[test]
fn a_bundle_that_changes_too_much_fails() {
    let mut chain = Chain::new();
    let borders = BoundedSet::new([9]).unwrap();
    let operations = (0..9).map(|cell| put(cell, 1)).chain([put(1, UNLUCKY)]).collect();
    let bundle = chain.submit(1, 1, Batching { borders, ..until(90) }, operations);
    chain.limits.share_gas_max = 100_000_000;
    chain.settle();
    let cells = chain.cells();
    let mut run = |person: u8, operations: Vec<Operation>, change_bytes_max| {
        let (caller, limits) = (Caller::root(key(person)), Limits { change_bytes_max, ..Limits::default() });
        let bundle = Bundle::new(Mode::Sync, operations).unwrap();
        let ran = chain.block(|draft, _| draft.execute(caller, &bundle, limits).unwrap()).1;
        (ran, chain.cells())
    };
    let (ran, after) = run(1, vec![op(&RollBack { bundle })], 700);
    let failed = ran.unwrap_err();
    assert!(failed.to_string().contains("bytes changed by a bundle"), "{failed}");
    assert_eq!(after, cells);
    // The same writes, to keys that a bundle in flight wrote and to others.
    let writes = |from: u8| (from..from + 9).map(|cell| put(cell, 2)).collect::<Vec<_>>();
    let (ran, after) = run(2, writes(0), 2_000);
    assert!(matches!(&ran.unwrap_err().kind, FailureKind::Stopped(keelstone_execution::Stop::Limit { .. })));
    assert_eq!(after, cells);
    run(2, writes(100), 2_000).0.unwrap();
    run(2, writes(0), 20_000).0.unwrap();
}

/// spec: EXEC-4. Expectations hold at any operation of an async bundle, in either meaning.
#[test]
fn expectations_are_met_or_stop_the_bundle() {
    let mut chain = Chain::new();
    let plain: Vec<Operation> = (0..9).map(|n| add(n, 1)).collect();
    let plain = Bundle::new(Mode::Async(until(90)), plain).unwrap();
    let (registry, state) = (with_cells(), chain.state.clone());
    let caller = Caller::root(key(1));
    let expecting = keelstone_execution::expect(&registry, state, block(5), caller, &plain, Limits::default()).unwrap();
    let mut wrong = expecting.operations().to_vec();
    wrong[7].expected_own_diff = Some(Hash([1; 32]));
    wrong[7].expected_diff = None;
    wrong[8].expected_diff = None;
    let borders = BoundedSet::new(1..9).unwrap();
    let stopped = chain.submit(1, 1, Batching { borders, ..until(90) }, wrong);
    chain.settle();
    let Status::Stopped(StopReason::Failed(failure)) = chain.record(stopped).status else {
        panic!("it expects wrongly")
    };
    assert_eq!((failure.operation, failure.code, failure.expected), (7, 8, Some(Hash([1; 32]))));
    chain = Chain::new();
    let met = chain.submit(1, 1, until(90), expecting.operations().to_vec());
    chain.settle();
    assert!(chain.record(met).is_complete());
}

/// spec: EXEC-7. As many operations as the format has numbers for.
#[test]
fn the_longest_bundle_there_is_runs_to_its_end() {
    let mut chain = Chain::new();
    chain.limits = BundleLimits {
        share_gas_max: 2_500_000_000,
        operation_gas_max: 1_000_000_000,
        bytes_max: 64 << 20,
        ..chain.limits
    };
    let operations: Vec<Operation> = (0..65_535u32).map(|n| add(u8::try_from(n % 200).unwrap(), 1)).collect();
    let bundle = chain.submit(1, 1, until(90), operations);
    let batches = chain.settle();
    assert!(batches.len() > 1);
    assert!(chain.record(bundle).is_complete());
    assert_eq!(chain.cells().values().sum::<u64>(), 65_535);
}

/// A state made anew from another's entries: what a node has that took it from someone.
fn carried_over(state: &State) -> State {
    let mut parts: Vec<(Namespace, Vec<Write>)> = Vec::new();
    for name in ["bundles", "cells", "sessions"] {
        let entries = state.scan(&space(name), KeyRange::all()).map(Result::unwrap);
        let writes: Vec<_> = entries.map(|(key, value)| Write { key, value: Some(value) }).collect();
        if !writes.is_empty() {
            parts.push((space(name), writes));
        }
    }
    let mut out = State::new();
    out.apply(&Diff::new(parts).unwrap());
    assert_eq!(out.root(), state.root());
    out
}

// ---- against a model ---------------------------------------------------------------------------------------------

/// What one operation of the model does.
#[derive(Clone)]
enum Task {
    Put(u8, Option<u64>),
    Resume(BundleId),
    Abandon(BundleId),
    RollBack(BundleId),
    /// With what the replacement does.
    Retry(Box<Retry>, Box<Task>),
}

impl Task {
    fn operation(&self) -> Operation {
        match self {
            Self::Put(cell, value) => op(&Put { cell: *cell, value: *value }),
            Self::Resume(bundle) => op(&Resume { bundle: *bundle }),
            Self::Abandon(bundle) => op(&Abandon { bundle: *bundle }),
            Self::RollBack(bundle) => op(&RollBack { bundle: *bundle }),
            Self::Retry(retry, _) => op(&**retry),
        }
    }
}

fn operations(tasks: &[Task]) -> Vec<Operation> {
    tasks.iter().map(Task::operation).collect()
}

/// What the model knows of a bundle: a list of single operations, and for every cell it wrote what stood there, what it
/// left, and whether it wrote over another's.
#[derive(Default)]
struct Flight {
    owner: u8,
    tasks: Vec<Task>,
    next: usize,
    revision: u32,
    stopped: bool,
    wrote: BTreeMap<u8, (Option<u64>, Option<u64>, bool)>,
    /// Cells of those that another changed, if only for a time.
    changed: BTreeSet<u8>,
}

struct Model {
    cells: BTreeMap<u8, u64>,
    flights: BTreeMap<BundleId, Flight>,
}

impl Model {
    fn write(&mut self, by: Option<BundleId>, cell: u8, value: Option<u64>) {
        if self.cells.get(&cell).copied() != value {
            let others = self.flights.iter_mut().filter(|(id, _)| Some(**id) != by);
            others.filter(|(_, flight)| flight.wrote.contains_key(&cell)).for_each(|(_, flight)| {
                flight.changed.insert(cell);
            });
        }
        match value {
            Some(value) => self.cells.insert(cell, value),
            None => self.cells.remove(&cell),
        };
    }

    /// One operation of a bundle. Every one is a batch of its own.
    fn step(&mut self, id: BundleId) {
        let flight = &self.flights[&id];
        let (owner, task) = (flight.owner, flight.tasks[flight.next].clone());
        let done = self.run(Some(id), owner, &task);
        let flight = self.flights.get_mut(&id).expect("no bundle ends itself");
        if !done {
            flight.stopped = true;
            return;
        }
        flight.next += 1;
        if flight.next == flight.tasks.len() {
            self.flights.remove(&id);
        }
    }

    /// What somebody does, or an operation of a bundle. Whether it may.
    fn run(&mut self, by: Option<BundleId>, owner: u8, task: &Task) -> bool {
        let target = match task {
            Task::Put(_, Some(UNLUCKY)) => return false,
            Task::Put(cell, value) => {
                self.put(by, *cell, *value);
                return true;
            }
            Task::Resume(id) | Task::Abandon(id) | Task::RollBack(id) => *id,
            Task::Retry(retry, _) => retry.bundle,
        };
        let flight = match self.flights.get_mut(&target) {
            Some(flight) if flight.owner == owner && by != Some(target) => flight,
            _ => return false,
        };
        match task {
            Task::RollBack(_) => return self.roll_back(by, target),
            Task::Abandon(_) => drop(self.flights.remove(&target)),
            Task::Retry(retry, replacement) => {
                let (at, mut tasks) = (retry.operation as usize, flight.tasks.clone());
                if !(flight.next..tasks.len()).contains(&at) {
                    return false;
                }
                tasks[at] = (**replacement).clone();
                if retry.revision != flight.revision + 1 || retry.operations != digest(&operations(&tasks)) {
                    return false;
                }
                (flight.tasks, flight.revision, flight.stopped) = (tasks, retry.revision, false);
            }
            _ => flight.stopped = false,
        }
        true
    }

    fn put(&mut self, by: Option<BundleId>, cell: u8, value: Option<u64>) {
        let held = self.cells.get(&cell).copied();
        if held != value
            && let Some(flight) = by.and_then(|by| self.flights.get_mut(&by))
        {
            let wrote = flight.wrote.entry(cell).or_insert((held, held, false));
            wrote.2 |= wrote.1 != held || flight.changed.contains(&cell);
            wrote.1 = value;
        }
        self.write(by, cell, value);
    }

    fn roll_back(&mut self, by: Option<BundleId>, id: BundleId) -> bool {
        let flight = &self.flights[&id];
        let same = |(cell, (_, after, over)): (&u8, &(Option<u64>, Option<u64>, bool))| {
            !over && self.cells.get(cell).copied() == *after
        };
        if !flight.wrote.iter().all(same) {
            return false;
        }
        let flight = self.flights.remove(&id).unwrap();
        for (cell, (before, ..)) in flight.wrote {
            self.put(by, cell, before);
        }
        true
    }

    /// Something to do about one of the bundles in flight, or about `own`, which comes.
    fn managing(&self, own: BundleId, draw: &mut dyn FnMut(u64) -> u64) -> Task {
        let ids: Vec<_> = self.flights.keys().copied().chain([own]).collect();
        let bundle = ids[usize::try_from(draw(ids.len() as u64)).unwrap()];
        match (draw(6), self.flights.get(&bundle)) {
            (0, _) => Task::Resume(bundle),
            (1, _) => Task::Abandon(bundle),
            (2, _) | (_, None) => Task::RollBack(bundle),
            (_, Some(flight)) => {
                let at = flight.next + usize::try_from(draw((flight.tasks.len() - flight.next) as u64)).unwrap();
                let replacement = match draw(4) {
                    0 => Task::Abandon(bundle),
                    1 => Task::RollBack(bundle),
                    _ => write(draw),
                };
                let mut tasks = flight.tasks.clone();
                tasks[at] = replacement.clone();
                let retry = Retry {
                    bundle,
                    operation: u32::try_from(at).unwrap(),
                    replacement: replacement.operation(),
                    revision: flight.revision + 1,
                    operations: digest(&operations(&tasks)),
                };
                Task::Retry(Box::new(retry), Box::new(replacement))
            }
        }
    }
}

/// A write of some cell, or one that fails.
fn write(draw: &mut dyn FnMut(u64) -> u64) -> Task {
    let cell = u8::try_from(draw(5)).unwrap();
    let value = match draw(8) {
        0 => None,
        1 => Some(UNLUCKY),
        more => Some(more + draw(3)),
    };
    Task::Put(cell, value)
}

fn random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

/// X-10, spec: EXEC-6, EXEC-9, EXEC-10, EXEC-12. In 1,000 random interleavings of async bundles, transactions, what
/// either does about bundles in flight, and nodes that take the state from another in the middle, cells, sums and what runs
/// are the model's after every block.
#[test]
fn x10_interleavings_are_those_of_the_model() {
    let (mut taken_back, mut refused, mut by_bundles) = (0, 0, 0);
    for case in 0..1_000u64 {
        let mut seed = case;
        let mut chain = Chain::new();
        let mut model = Model { cells: BTreeMap::new(), flights: BTreeMap::new() };
        let mut names = 0u8;
        for _ in 0..16 {
            names += 1;
            // The chain's own batches come first in every block, in the order of the ring.
            let work = random(&mut seed, 10);
            let mut draw = |below| random(&mut seed, below);
            let owner = 1 + u8::try_from(draw(3)).unwrap();
            let ids: Vec<_> = model.flights.keys().copied().collect();
            let picked = (!ids.is_empty()).then(|| ids[usize::try_from(draw(ids.len() as u64)).unwrap()]);
            let name = id(names);
            let (batches, said) = match (work, picked) {
                (0..=2, _) => {
                    let count = 1 + draw(6);
                    let mut one = || if draw(3) == 0 { model.managing(name, &mut draw) } else { write(&mut draw) };
                    let tasks: Vec<_> = (0..count).map(|_| one()).collect();
                    let operations = operations(&tasks);
                    let borders = BoundedSet::new(1..u32::try_from(operations.len()).unwrap()).unwrap();
                    let bundle = Bundle::new(Mode::Async(Batching { borders, ..until(90) }), operations).unwrap();
                    let (batches, taken) = chain
                        .block(|draft, limits| draft.submit(name, Caller::root(key(owner)), &bundle, limits).unwrap());
                    let flight = taken.ok().map(|_| Flight { owner, tasks, ..Flight::default() });
                    (batches, Said::Took(name, flight))
                }
                (3..=5, Some(bundle)) => {
                    let owner = model.flights[&bundle].owner;
                    let task = match work {
                        3 => Task::RollBack(bundle),
                        4 => Task::Resume(bundle),
                        _ => model.managing(bundle, &mut draw),
                    };
                    let (batches, result) = chain.run(names, owner, vec![task.operation()]);
                    (batches, Said::Did(owner, vec![task], result.is_ok()))
                }
                (6, _) => {
                    chain.state = carried_over(&chain.state);
                    (chain.idle(), Said::Nothing)
                }
                (7, _) => (chain.idle(), Said::Nothing),
                _ => {
                    let count = 1 + draw(2);
                    let tasks: Vec<_> = (0..count).map(|_| write(&mut draw)).collect();
                    let (batches, result) = chain.run(names, owner, operations(&tasks));
                    (batches, Said::Did(owner, tasks, result.is_ok()))
                }
            };
            let at = format!("case {case}, block {}", chain.height);
            for batch in batches {
                let flight = &model.flights[&batch.bundle];
                let manages = !matches!(flight.tasks[flight.next], Task::Put(..));
                by_bundles += u32::from(manages && matches!(batch.end, BatchEnd::Advanced { .. }));
                model.step(batch.bundle);
            }
            match said {
                Said::Took(name, Some(flight)) => drop(model.flights.insert(name, flight)),
                Said::Did(owner, tasks, done) => match &tasks[..] {
                    [task @ Task::RollBack(_)] => {
                        assert_eq!(model.run(None, owner, task), done, "{at}");
                        if done { taken_back += 1 } else { refused += 1 }
                    }
                    tasks if tasks.iter().any(|task| matches!(task, Task::Put(_, Some(UNLUCKY)))) => {
                        assert!(!done, "{at}");
                    }
                    tasks => tasks.iter().for_each(|task| assert_eq!(model.run(None, owner, task), done, "{at}")),
                },
                _ => {}
            }
            assert_eq!(chain.cells(), model.cells, "{at}");
            let running: BTreeSet<_> =
                model.flights.iter().filter(|(_, flight)| !flight.stopped).map(|(id, _)| *id).collect();
            let queue: BTreeSet<_> =
                View::<Bundles>::over(chain.state.clone()).queue.iter().map(Result::unwrap).collect();
            assert_eq!(queue, running, "{at}");
            chain.assert_sums();
        }
    }
    assert!(taken_back > 100 && refused > 100, "{taken_back} taken back, {refused} refused");
    assert!(by_bundles > 100, "{by_bundles} by bundles");
}

enum Said {
    Nothing,
    Took(BundleId, Option<Flight>),
    Did(u8, Vec<Task>, bool),
}

/// Nothing the engine keeps of bundles counts in an operation's diff.
#[test]
fn what_is_kept_of_bundles_is_outside_every_diff() {
    assert!(!is_application(&space("bundles")));
    let mut chain = Chain::new();
    let bundle = chain.submit(1, 1, until(90), vec![put(1, 1), put(2, 2)]);
    let batch = chain.idle().pop().unwrap();
    let BatchEnd::Advanced { outcomes, is_complete: true } = batch.end else { panic!("two operations fit") };
    assert!(outcomes.iter().all(|outcome| outcome.diff.entries == 1));
    let place = [b"records/".as_slice(), bundle.as_bytes()].concat();
    let stored = chain.state.get(&space("bundles"), &Key::new(place).unwrap()).unwrap().unwrap();
    assert_eq!(BundleRecord::from_bytes(&stored), Ok(chain.record(bundle)));
}
