//! Operations run beforehand on threads: a bundle comes to what it comes to in order, whatever its operations do to each
//! other.

use crate::common::*;
use keelstone_codec::{BoundedSet, Hash, Height, Key, StateHash, Text, splitmix64};
use keelstone_execution::bundles::{Batch, BatchEnd, BundleId, BundleLimits, Retry};
use keelstone_execution::{
    Activity, Ahead, Batching, BlockDraft, Bundle, Caller, Capability, Coming, Context, Denied, Draft, Failed,
    FailureKind, Finished, Foretold, Job, Limits, Map, Mode, Operation, OperationsAhead, Registry, Session, Sessions,
    Transition, denied, ensure, list_root, namespace, transition,
};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[namespace("shelf")]
struct Shelf {
    cells: Map<u32, u64>,
}

const SHELVE: Capability = Capability::new("shelf.add");

/// Adds to a cell, and says so.
#[transition("shelf.add/1", needs = SHELVE)]
struct Add {
    cell: u32,
    amount: u64,
}

impl Transition<Shelf> for Add {
    type Output = u64;
    fn apply(&self, shelf: &mut Draft<Shelf>, cx: &mut Context) -> Result<u64, Denied> {
        let sum = shelf.cells.get(&self.cell)?.unwrap_or(0).wrapping_add(self.amount);
        ensure!(sum % 4_001 != 13, "an unlucky sum");
        match sum % 11 {
            0 => drop(shelf.cells.remove(&self.cell)?),
            _ => shelf.cells.insert(&self.cell, &sum)?,
        }
        cx.emit(&Minted { amount: sum })?;
        Ok(sum)
    }
}

/// Adds up cells of a range, and puts the sum into another.
#[transition("shelf.sum/1")]
struct Sum {
    from: u32,
    to: u32,
    at_most: u8,
    into: u32,
}

impl Transition<Shelf> for Sum {
    type Output = u64;
    fn apply(&self, shelf: &mut Draft<Shelf>, _: &mut Context) -> Result<u64, Denied> {
        let found = shelf.cells.range(self.from..self.to).take(self.at_most.into());
        let sum = found
            .map(|cell| cell.map(|(_, sum)| sum))
            .try_fold(0u64, |all, cell| Ok::<_, Denied>(all.wrapping_add(cell?)))?;
        shelf.cells.insert(&self.into, &sum)?;
        Ok(sum)
    }
}

/// Writes down where in its session it stands.
#[transition("shelf.count/1")]
struct Count {
    into: u32,
}

impl Transition<Shelf> for Count {
    type Output = u64;
    fn apply(&self, shelf: &mut Draft<Shelf>, cx: &mut Context) -> Result<u64, Denied> {
        shelf.cells.insert(&self.into, &cx.sequence())?;
        Ok(cx.sequence())
    }
}

/// Takes so much gas.
#[transition("shelf.work/1")]
struct Work {
    gas: u64,
}

impl Transition<Shelf> for Work {
    type Output = ();
    fn apply(&self, _: &mut Draft<Shelf>, cx: &mut Context) -> Result<(), Denied> {
        Ok(cx.step(self.gas)?)
    }
}

/// What an operation can do to the session it runs in.
#[transition("shelf.self/1")]
struct Itself {
    what: u8,
}

impl Transition<Sessions> for Itself {
    type Output = StateHash;
    fn apply(&self, sessions: &mut Draft<Sessions>, cx: &mut Context) -> Result<StateHash, Denied> {
        let id = cx.session();
        let found = sessions.find(cx.chain_id(), &id, &cx.sender())?.ok_or_else(|| denied!("no session"))?;
        match self.what {
            0 => {}
            1 => sessions.records.insert(&id, &Session { closed: true, ..found.clone() })?,
            2 => sessions.records.insert(&id, &Session { name: Text::new("renamed").unwrap(), ..found.clone() })?,
            // What the owner of a root session was granted.
            3 => drop(sessions.grants.remove(&cx.sender())?),
            _ => return Ok(StateHash(Hash([sessions.records.iter().count().to_le_bytes()[0]; 32]))),
        }
        Ok(found.state_hash)
    }
}

fn shelves() -> Registry {
    let mut registry =
        registry().with::<Shelf, Add>().with::<Shelf, Sum>().with::<Shelf, Count>().with::<Shelf, Work>();
    registry.register_system::<Sessions, Itself>();
    registry.reserve(SHELVE);
    registry.check().unwrap();
    registry
}

/// A state in which keys 1 to 9 may add, and some cells hold something.
fn state(registry: &Registry) -> State {
    let mut state = State::new();
    let mut draft = BlockDraft::begin(registry, state.clone(), block(1));
    let granted =
        |sessions: &mut Sessions| (1..=9).try_for_each(|person| sessions.grants.insert(&key(person), &[SHELVE].into()));
    draft.edit(granted).unwrap();
    let filled = |shelf: &mut Shelf| (0..40u32).try_for_each(|cell| shelf.cells.insert(&(cell * 50), &u64::from(cell)));
    draft.edit(filled).unwrap();
    state.apply(&draft.finish().to_diff());
    state
}

/// Runs beforehand on so many threads, of which each takes what comes next.
struct On {
    threads: usize,
    state: State,
    gas_min: u64,
}

impl On {
    /// Whatever an operation uses.
    fn threads(threads: usize, state: &State) -> Self {
        Self { threads, state: state.clone(), gas_min: 0 }
    }
}

impl Ahead for On {
    fn run(&self, job: &Job<'_>) -> Vec<Option<Box<Foretold>>> {
        let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    let mut worker = job.begin(self.state.clone(), &Activity::default());
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= job.count() {
                            return;
                        }
                        let found = worker.run(at);
                        done.lock().unwrap().insert(at, found);
                    }
                });
            }
        });
        done.into_inner().unwrap().into_values().collect()
    }

    fn operation_gas_min(&self) -> u64 {
        self.gas_min
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        splitmix64(&mut self.0) % end
    }

    fn cell(&mut self, among: u64) -> u32 {
        u32::try_from(self.below(among)).unwrap()
    }

    /// One of the operations that fail, end the session or take something away, seldom.
    fn operation(&mut self, cells: u64, trouble: u64) -> Operation {
        if trouble > 0 && self.below(trouble) == 0 {
            let end = [End::Denied, End::Panic, End::Swallow, End::Undeclared][usize::try_from(self.below(4)).unwrap()];
            return match self.below(9) {
                0 => op(&Half { end }),
                1 => op(&Half { end: End::Gas }),
                what => op(&Itself { what: u8::try_from(what % 5).unwrap() }),
            };
        }
        match self.below(16) {
            0 => {
                let from = self.cell(cells);
                let (to, at_most) = (from + self.cell(cells / 10 + 2), u8::try_from(self.below(6)).unwrap());
                op(&Sum { from, to, at_most, into: self.cell(cells) })
            }
            1 if cells < 100 => op(&Count { into: self.cell(cells) }),
            2 if cells < 100 => [mint(1, 5), op(&Look), op(&Audit)][usize::try_from(self.below(3)).unwrap()].clone(),
            3 => op(&Work { gas: self.below(300_000) }),
            _ => op(&Add { cell: self.cell(cells), amount: self.below(1_000) }),
        }
    }
}

/// Everything by which one run differs from another.
fn told(ran: &[(Result<Finished, Failed>, u64)], draft: BlockDraft<'_>) -> (String, OperationsAhead) {
    let (noted, ahead) = (draft.noted(), draft.operations_ahead());
    (format!("{ran:?} {noted:?} {:?}", draft.finish()), ahead)
}

/// Bundles of several people, one after the other in one block, with so much gas each; on so many threads or on none.
fn run_all(
    registry: &Registry,
    state: &State,
    bundles: &[(u8, Vec<Operation>)],
    limits: Limits,
    threads: usize,
) -> (String, OperationsAhead, Vec<Result<Finished, Failed>>) {
    let on = On::threads(threads, state);
    let place = Key::new([b"cells/".as_slice(), &7u32.to_be_bytes()].concat()).unwrap();
    let draft = BlockDraft::begin(registry, state.clone(), block(2)).noting(space("shelf"), place);
    let mut draft = draft.ahead((threads > 0).then_some(&on as &dyn Ahead));
    let mut ran = Vec::new();
    for (name, (person, operations)) in (0u8..).zip(bundles) {
        let caller = Caller { bundle: Some(BundleId(Hash([name; 32]))), ..Caller::root(key(*person)) };
        let result = draft.execute(caller, &bundle(operations.clone()), limits).unwrap();
        ran.push((result, draft.changes().len() as u64));
    }
    let (told, ahead) = told(&ran, draft);
    (told, ahead, ran.into_iter().map(|(result, _)| result).collect())
}

/// spec: EXEC-15. Results, gas, events, errors, the chain of state hashes and every change are those of a run in order: of
/// operations in each other's way and of others, that fail in the middle, that expect what they do not come to, that lose
/// the right to go on, that change the session they run in or look at it, and that come to the end of what they may use.
#[test]
fn d03_operations_run_beforehand_come_to_what_they_come_to_in_order() {
    let registry = shelves();
    let state = state(&registry);
    let (mut all, mut failures) = (OperationsAhead::default(), BTreeMap::<String, u32>::new());
    for seed in 0..40u64 {
        let mut dice = Dice(seed);
        let cells = [3, 60, 3_000, 1 << 30][usize::try_from(dice.below(4)).unwrap()];
        let trouble = [0, 0, 40, 300][usize::try_from(dice.below(4)).unwrap()];
        let mut bundles: Vec<(u8, Vec<Operation>)> = Vec::new();
        for _ in 0..=dice.below(3) {
            let person = u8::try_from(1 + dice.below(2)).unwrap();
            let count = [30, 150, 500][usize::try_from(dice.below(3)).unwrap()];
            bundles.push((person, (0..count).map(|_| dice.operation(cells, trouble)).collect()));
        }
        let mut limits = Limits::default();
        match dice.below(6) {
            0 => limits.gas_max = 1_000_000 + dice.below(20_000_000),
            1 => limits.write_bytes_max = 1_000 + dice.below(20_000),
            2 => limits.events_max = dice.below(400),
            3 => limits.event_bytes_max = dice.below(8_000),
            4 => limits.result_bytes_max = dice.below(4_000),
            _ => {}
        }
        // What they come to, as expectations; one of them may be wrong.
        let (_, _, in_order) = run_all(&registry, &state, &bundles, limits, 0);
        for ((_, operations), ran) in bundles.iter_mut().zip(&in_order) {
            let Ok(finished) = ran else { continue };
            for (operation, outcome) in operations.iter_mut().zip(&finished.outcomes) {
                match dice.below(4) {
                    0 => operation.expected_diff = Some(outcome.state_hash),
                    1 => operation.expected_own_diff = Some(outcome.diff.digest),
                    _ => {}
                }
            }
            let at = usize::try_from(dice.below(4 * operations.len() as u64)).unwrap();
            if let Some(operation) = operations.get_mut(at) {
                match dice.below(2) {
                    0 => operation.expected_diff = Some(StateHash(Hash([9; 32]))),
                    _ => operation.expected_own_diff = Some(Hash([9; 32])),
                }
            }
        }
        let (expected, none, in_order) = run_all(&registry, &state, &bundles, limits, 0);
        assert_eq!(none, OperationsAhead::default());
        let mut found = Vec::new();
        for threads in [1, 2, 8] {
            let (told, ahead, _) = run_all(&registry, &state, &bundles, limits, threads);
            assert_eq!(told, expected, "seed {seed}, {threads} threads");
            found.push(ahead);
        }
        assert!(found.iter().all(|ahead| *ahead == found[0]), "seed {seed}: {found:?}");
        all.run += found[0].run;
        all.taken += found[0].taken;
        for failed in in_order.into_iter().filter_map(Result::err) {
            let kind = format!("{:?}", failed.kind).split(['(', ' ', '{']).next().unwrap().to_owned();
            *failures.entry(kind).or_default() += 1;
        }
    }
    assert!(all.run > 5_000 && all.taken > 2_000 && all.run - all.taken > 500, "{all:?}");
    for kind in ["Denied", "Stopped", "Session", "UnexpectedState", "UnexpectedDiff"] {
        assert!(failures.contains_key(kind), "{kind}: {failures:?}");
    }
}

/// spec: EXEC-15. What is in nobody's way is run once; of what all want, little is run twice.
#[test]
fn operations_in_nobodys_way_are_run_once() {
    let registry = shelves();
    let state = state(&registry);
    let apart: Vec<Operation> = (0..4_000u32).map(|n| op(&Add { cell: 10_001 + n, amount: 1 })).collect();
    let (_, ahead, ran) = run_all(&registry, &state, &[(1, apart)], Limits::default(), 2);
    assert!(ran[0].is_ok());
    assert_eq!(ahead, OperationsAhead { run: 3_999, taken: 3_999 });
    let same: Vec<Operation> = (0..4_000u32).map(|_| op(&Add { cell: 10_001, amount: 4_001 })).collect();
    let (_, ahead, _) = run_all(&registry, &state, &[(1, same)], Limits::default(), 2);
    assert!(ahead.run > 0 && ahead.run < 2_000, "{ahead:?}");
    // What is too little for threads is left alone.
    let few: Vec<Operation> = (0..20u32).map(|n| op(&Add { cell: 10_001 + n, amount: 1 })).collect();
    let (_, ahead, _) = run_all(&registry, &state, &[(1, few)], Limits::default(), 2);
    assert_eq!(ahead, OperationsAhead::default());
}

/// spec: EXEC-15. Operations that use less in the mean than it takes to hand one on are run in order.
#[test]
fn cheap_operations_are_run_in_order() {
    let registry = shelves();
    let state = state(&registry);
    let operations: Vec<Operation> = (0..400u32).map(|n| op(&Add { cell: 10_001 + n, amount: 1 })).collect();
    let run = |gas_min: u64| {
        let on = On { gas_min, ..On::threads(2, &state) };
        let mut draft = BlockDraft::begin(&registry, state.clone(), block(2)).ahead(Some(&on));
        let caller = Caller { bundle: Some(BundleId(Hash([1; 32]))), ..Caller::root(key(1)) };
        let finished = draft.execute(caller, &bundle(operations.clone()), Limits::default()).unwrap().unwrap();
        (finished.gas_used / 400, draft.operations_ahead().run, finished.record)
    };
    let (mean, all, record) = run(0);
    assert_eq!((all, run(mean + mean / 2)), (399, (mean, 0, record)));
}

/// spec: EXEC-15. A bundle that fails at once has not had more done for it than a few times what was charged before it.
#[test]
fn x04_what_is_done_for_nothing_is_bounded_by_what_was_charged() {
    let registry = shelves();
    let state = state(&registry);
    let cheap = |n: u32| op(&Add { cell: 10_001 + n, amount: 1 });
    let mut bundles = vec![(1, vec![cheap(0)])];
    for name in 0..20u32 {
        // The first fails, and many more would each take all they can get.
        let mut operations = vec![op(&Half { end: End::Denied })];
        operations.extend((0..500).map(|n| op(&Work { gas: 900_000_000 - u64::from(name * 500 + n) })));
        bundles.push((2, operations));
    }
    let (told, ahead, ran) = run_all(&registry, &state, &bundles, Limits::default(), 2);
    assert_eq!(told, run_all(&registry, &state, &bundles, Limits::default(), 0).0);
    assert!(ran[1..].iter().all(Result::is_err));
    // What follows a hand-out of which nothing was taken is run in order for as much gas, and twice that next time.
    assert!(ahead.run < 1_000 && ahead.taken == 0, "{ahead:?}");
}

fn bundle_limits() -> BundleLimits {
    BundleLimits {
        in_flight_max: 6,
        per_key_max: 3,
        bytes_max: 4 << 20,
        undo_entries_max: 2_000,
        undo_bytes_max: 1 << 20,
        blocks_max: 100,
        operation_gas_max: 1_000_000,
        share_gas_max: 40_000_000,
        share_change_bytes_max: 64 << 20,
    }
}

/// Blocks in which bundles of two people go on, until none is in flight; and a bundle of a third in each, on their cells.
fn in_batches(
    registry: &Registry,
    first: &State,
    bundles: &[(u8, Batching, Vec<Operation>)],
    limits: &BundleLimits,
    threads: usize,
) -> (String, OperationsAhead, usize) {
    let (mut state, mut out, mut all, mut advanced) = (first.clone(), String::new(), OperationsAhead::default(), 0);
    for height in 2..40u64 {
        let on = On::threads(threads, &state);
        let draft = BlockDraft::begin(registry, state.clone(), block(height));
        let mut draft = draft.ahead((threads > 0).then_some(&on as &dyn Ahead));
        let mut batches: Vec<Batch> = draft.expire_bundles(limits).unwrap();
        batches.extend(draft.continue_bundles(limits).unwrap());
        advanced += batches.iter().filter(|batch| format!("{:?}", batch.end).starts_with("Advanced")).count();
        out += &format!("{batches:?}");
        if height == 2 {
            for (name, (person, batching, operations)) in (0u8..).zip(bundles) {
                let bundle = Bundle::new(Mode::Async(batching.clone()), operations.clone()).unwrap();
                let id = BundleId(Hash([name; 32]));
                out += &format!("{:?}", draft.submit(id, Caller::root(key(*person)), &bundle, limits).unwrap());
            }
        }
        let caller = Caller { bundle: Some(BundleId(Hash([200; 32]))), ..Caller::root(key(3)) };
        let operations = (0..150u32).map(|n| op(&Add { cell: n * 7, amount: height })).collect();
        out += &format!("{:?}", draft.execute(caller, &bundle(operations), Limits::default()).unwrap());
        let ahead = draft.operations_ahead();
        (all.run, all.taken) = (all.run + ahead.run, all.taken + ahead.taken);
        let changes = draft.finish();
        out += &format!("{changes:?}");
        state.apply(&changes.to_diff());
    }
    (out, all, advanced)
}

/// spec: EXEC-6, EXEC-15. So do batches of bundles in flight: their borders, gas, undo, and where they stop.
#[test]
fn d03_batches_run_beforehand_come_to_what_they_come_to_in_order() {
    let registry = shelves();
    let state = state(&registry);
    let (mut all, mut advanced) = (OperationsAhead::default(), 0);
    for seed in 0..8u64 {
        let mut dice = Dice(100 + seed);
        let mut limits = bundle_limits();
        limits.share_gas_max = [10_000_000, 40_000_000, 400_000_000][usize::try_from(dice.below(3)).unwrap()];
        if seed == 5 {
            limits.share_change_bytes_max = 100_000;
        }
        let cells = [20, 2_000, 1 << 30][usize::try_from(dice.below(3)).unwrap()];
        let trouble = [0, 300][usize::try_from(dice.below(2)).unwrap()];
        let mut bundles = Vec::new();
        for person in [1, 1, 2] {
            let count = [100, 400, 900][usize::try_from(dice.below(3)).unwrap()];
            let operations = (0..count).map(|_| match dice.operation(cells, trouble) {
                // None that declares more than a batch has.
                operation if registry.function(&operation.function).unwrap().gas_max < u64::MAX => {
                    op(&Count { into: 1 })
                }
                operation => operation,
            });
            let operations: Vec<Operation> = operations.collect();
            let borders = BoundedSet::new((0..dice.below(4)).map(|_| 1 + dice.cell(count - 1))).unwrap();
            let batching = Batching { borders, hold: false, ..Batching::until(Height(30 + dice.below(20))) };
            bundles.push((person, batching, operations));
        }
        let (expected, none, batches) = in_batches(&registry, &state, &bundles, &limits, 0);
        assert_eq!(none, OperationsAhead::default());
        advanced += batches;
        let mut found = Vec::new();
        for threads in [1, 2, 8] {
            let (told, ahead, _) = in_batches(&registry, &state, &bundles, &limits, threads);
            assert!(told == expected, "seed {seed}, {threads} threads");
            found.push(ahead);
        }
        assert!(found.iter().all(|ahead| *ahead == found[0]), "seed {seed}: {found:?}");
        (all.run, all.taken) = (all.run + found[0].run, all.taken + found[0].taken);
    }
    assert!(advanced > 25 && all.taken > 3_000 && all.run - all.taken > 100, "{advanced} batches, {all:?}");
}

/// spec: EXEC-15. An operation of a bundle that is behind one that failed stands on another sequence than was foreseen: it
/// is taken if it did not ask for it.
#[test]
fn bundles_behind_one_that_fails_are_taken_unless_they_count() {
    let registry = shelves();
    let state = state(&registry);
    for counts in [false, true] {
        let run = |threads: usize| {
            let on = On::threads(threads, &state);
            let draft = BlockDraft::begin(&registry, state.clone(), block(2));
            let mut draft = draft.ahead((threads > 0).then_some(&on as &dyn Ahead));
            let one = |n: u8| match n {
                50 => vec![op(&Half { end: End::Denied })],
                n if counts => vec![op(&Count { into: 10_000 + u32::from(n) })],
                n => vec![op(&Add { cell: 10_000 + u32::from(n), amount: 1 })],
            };
            let bundles: Vec<(Caller, Bundle)> = (0..200u8)
                .map(|n| (Caller { bundle: Some(BundleId(Hash([n; 32]))), ..Caller::root(key(1)) }, bundle(one(n))))
                .collect();
            let mut out = String::new();
            for (at, (caller, bundle)) in bundles.iter().enumerate() {
                let coming =
                    || bundles[at..].iter().flat_map(|(caller, bundle)| Coming::of(&chain_id(), caller, bundle));
                let first = coming().next().unwrap();
                draft.look_ahead(&first, bundles.len() - at, |wanted| coming().take(wanted).collect());
                out += &format!("{:?}", draft.execute(*caller, bundle, Limits::default()).unwrap());
            }
            let ahead = draft.operations_ahead();
            (out + &format!("{:?}", draft.finish()), ahead)
        };
        let (expected, _) = run(0);
        let (told, ahead) = run(2);
        assert_eq!(told, expected);
        assert!(expected.contains("Failed"));
        let again = ahead.run - ahead.taken;
        assert!(ahead.run > 150 && if counts { again > 100 } else { again == 1 }, "{counts}: {ahead:?}");
    }
}

/// spec: EXEC-8, EXEC-15. A right that an operation takes away is missed by the next one, also if that was run before.
#[test]
fn a_right_taken_away_is_missed_by_what_was_run_beforehand() {
    let registry = shelves();
    let state = state(&registry);
    for what in [1, 3] {
        let mut operations: Vec<Operation> = (0..400u32).map(|n| op(&Add { cell: 10_001 + n, amount: 1 })).collect();
        operations[250] = op(&Itself { what });
        let bundles = [(1, operations)];
        let (told, ahead, ran) = run_all(&registry, &state, &bundles, Limits::default(), 2);
        assert_eq!(told, run_all(&registry, &state, &bundles, Limits::default(), 0).0);
        let failed = ran[0].as_ref().unwrap_err();
        assert!(failed.operation == 251 && matches!(failed.kind, FailureKind::Session(_)), "{failed:?}");
        assert!(ahead.run > 300, "{ahead:?}");
    }
}

/// A block in which a bundle in flight has a batch, its owner replaces an operation, and it goes on: what all of that comes
/// to, and what the batches do.
fn corrected(
    state: &State,
    operations: &[Operation],
    limits: &BundleLimits,
    threads: usize,
    correct: impl FnOnce(&Batch) -> (u32, Operation, u64),
) -> (String, OperationsAhead, [Batch; 2]) {
    let registry = shelves();
    let (id, caller) = (BundleId(Hash([77; 32])), Caller::root(key(1)));
    let mut state = state.clone();
    let mut draft = BlockDraft::begin(&registry, state.clone(), block(2));
    let submitted = Bundle::new(Mode::Async(Batching::until(Height(90))), operations.to_vec()).unwrap();
    draft.submit(id, caller, &submitted, limits).unwrap().unwrap();
    state.apply(&draft.finish().to_diff());

    let on = On::threads(threads, &state);
    let draft = BlockDraft::begin(&registry, state.clone(), block(3));
    let mut draft = draft.ahead((threads > 0).then_some(&on as &dyn Ahead));
    let first = draft.continue_bundles(limits).unwrap().pop().unwrap();
    let ahead = draft.operations_ahead();
    let (operation, replacement, gas) = correct(&first);
    let mut corrected = operations.to_vec();
    corrected[operation as usize] = replacement.clone();
    let root = list_root(&corrected.iter().map(Operation::list_hash).collect::<Vec<_>>());
    let retry = op(&Retry { bundle: id, operation, replacement, revision: 1, operations: root });
    let retried = draft.execute(caller, &bundle(vec![retry]), Limits::default()).unwrap().unwrap();
    let second = draft.continue_bundle(id, gas, limits).unwrap().unwrap();
    let told = format!("{first:?} {retried:?} {second:?}");
    (told + &format!("{:?}", draft.finish()), ahead, [first, second])
}

/// spec: EXEC-12, EXEC-15. What was handed out behind the end of a batch and not reached is not taken for what the owner put
/// in its place in the same block.
#[test]
fn an_operation_that_was_replaced_is_not_taken_for_the_old_one() {
    let state = state(&shelves());
    let limits = bundle_limits();
    let operations: Vec<Operation> = (0..2_000u32).map(|n| op(&Add { cell: 10_001 + n, amount: 1 })).collect();
    let run = |threads| {
        corrected(&state, &operations, &limits, threads, |first| {
            let BatchEnd::Advanced { outcomes, .. } = &first.end else { panic!("{first:?}") };
            let done = u32::try_from(outcomes.len()).unwrap();
            (done + 1, op(&Add { cell: 9_999, amount: 5 }), 10_000_000)
        })
    };
    let (expected, _, batches) = run(0);
    let (told, ahead, _) = run(2);
    assert!(ahead.run > ahead.taken + 2, "nothing was left of what was handed out: {ahead:?}");
    assert!(matches!(&batches[1].end, BatchEnd::Advanced { outcomes, .. } if outcomes.len() > 2));
    assert!(told == expected, "two threads come to something else");
}

/// spec: EXEC-7, EXEC-15. Nor is taken what read, beforehand, what a batch had written that then failed: nothing of that
/// happened.
#[test]
fn what_stood_on_a_batch_that_failed_is_not_taken() {
    let state = state(&shelves());
    let limits = bundle_limits();
    // The third fails for what the first left, which the fourth reads; then the first is replaced.
    let sum = |into| op(&Sum { from: 10_000, to: 10_001, at_most: 1, into });
    let unlucky = op(&Add { cell: 10_002, amount: 1 });
    let mut operations = vec![op(&Add { cell: 10_000, amount: 12 }), sum(10_002), unlucky, sum(10_004)];
    operations.extend((0..400u32).map(|n| op(&Add { cell: 20_000 + n, amount: 1 })));
    let run = |threads| {
        // So little gas that nothing is handed out again.
        corrected(&state, &operations, &limits, threads, |_| (0, op(&Add { cell: 30_000, amount: 1 }), 1_200_000))
    };
    let (expected, _, batches) = run(0);
    let (told, ahead, _) = run(2);
    assert!(matches!(batches[0].end, BatchEnd::Stopped(_)), "{:?}", batches[0]);
    assert!(matches!(&batches[1].end, BatchEnd::Advanced { outcomes, .. } if outcomes.len() > 3), "{:?}", batches[1]);
    assert!(ahead.run > 4, "{ahead:?}");
    assert!(told == expected, "two threads come to something else");
}
