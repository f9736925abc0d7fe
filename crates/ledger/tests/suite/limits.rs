//! Limits that a running chain changes: from which block on, for whom, and what they do to what is on its way.

use crate::tools::*;
use keelstone_codec::{BoundedSet, Encode, Height, Namespace, Root, Text, Timestamp};
use keelstone_execution::bundles::{BundleId, Resume, RollBack, Status};
use keelstone_execution::{
    Batching, Bundle, Context, Denied, Draft, Item, Map, Mode, Operation, Registry, Transition, World, namespace,
    transition,
};
use keelstone_ledger::modules::limits::{self, ChainSpace, SET_LIMITS, SetLimits};
use keelstone_ledger::modules::memes;
use keelstone_ledger::{
    AuditWalk, Block, BlockError, BundleProof, Certified, Chain as Facts, ChainLimits, Committed, Genesis, Ledger,
    LedgerError, PoolLimits, Progress, ProposalError, Receipt, Refusal, Refused, SignedTransaction, Transaction,
    Verdict, verify_transition,
};
use keelstone_store::kv::MemoryKv;
use keelstone_tree::{Blake3, Read as _};
use std::sync::Arc;

/// Who may change the limits.
const KEEPER: u8 = 9;

#[namespace("shelf")]
struct Shelf {
    places: Map<u64, u64>,
    /// What the bytes of a block's transactions are to be, once a hook has seen to it.
    wanted: Item<u32>,
}

/// Fills places, each with a number of its own.
#[transition("shelf.put/1")]
struct Put {
    from: u64,
    count: u64,
}

impl Transition<Shelf> for Put {
    type Output = ();
    fn apply(&self, shelf: &mut Draft<Shelf>, _: &mut Context) -> Result<(), Denied> {
        for at in self.from..self.from.saturating_add(self.count) {
            shelf.places.insert(&at, &at)?;
        }
        Ok(())
    }
}

/// The same for one place, by a function that says how much it may use.
#[transition("shelf.lift/1", gas = 3_000_000)]
struct Lift {
    at: u64,
}

impl Transition<Shelf> for Lift {
    type Output = ();
    fn apply(&self, shelf: &mut Draft<Shelf>, _: &mut Context) -> Result<(), Denied> {
        Ok(shelf.places.insert(&self.at, &self.at)?)
    }
}

#[transition("shelf.want/1")]
struct Want {
    bytes: u32,
}

impl Transition<Shelf> for Want {
    type Output = ();
    fn apply(&self, shelf: &mut Draft<Shelf>, _: &mut Context) -> Result<(), Denied> {
        Ok(shelf.wanted.set(&self.bytes)?)
    }
}

#[derive(World)]
struct Keeping {
    shelf: Shelf,
    chain: ChainSpace,
}

#[transition("shelf.see_to_it/1")]
struct SeeToIt;

impl Transition<Keeping> for SeeToIt {
    type Output = ();
    fn apply(&self, world: &mut Draft<Keeping>, cx: &mut Context) -> Result<(), Denied> {
        let Some(block_bytes_max) = world.shelf.wanted.take()? else { return Ok(()) };
        let limits = ChainLimits { block_bytes_max, ..world.chain.limits()? };
        world.chain.set_limits(&limits, cx)
    }
}

fn registry() -> Registry {
    let mut registry = keelstone_ledger::modules::standard();
    registry.register::<Shelf, Put>().register::<Shelf, Lift>().register::<Shelf, Want>();
    registry.end_block::<Keeping, SeeToIt>();
    registry.check().unwrap();
    registry
}

fn genesis() -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    (genesis.limits.bundle_gas_max, genesis.limits.continuation_gas_max) = (4_000_000, 10_000_000);
    genesis.limits.transaction_bytes_max = 8_000;
    genesis.grants.insert(key(KEEPER).public(), [SET_LIMITS].into());
    genesis
}

fn begun() -> Chain {
    Ledger::create(store(), Arc::new(MemoryKv::new()), registry(), &genesis(), PoolLimits::default()).unwrap()
}

/// The next block, as another engine would have it: whatever is in it.
fn decide(chain: &Chain, transactions: Vec<SignedTransaction>) -> Arc<Committed> {
    let height = chain.height().next();
    let time = Timestamp(height.0 * 1_000).max(chain.time());
    let block = Block { height, time, proposer: proposer(), transactions };
    chain.commit(chain.run(block, Refused::Receipt).unwrap()).unwrap()
}

fn set(chain: &Chain, change: impl FnOnce(&mut ChainLimits)) -> SignedTransaction {
    let mut limits = chain.limits().unwrap();
    change(&mut limits);
    let nonce = chain.next_nonce(&key(KEEPER).public()).unwrap().unwrap();
    signed(KEEPER, nonce, vec![op(&SetLimits { limits })])
}

/// Changes the limits in a block of its own.
fn changed(chain: &Chain, change: impl FnOnce(&mut ChainLimits)) {
    let made = decide(chain, vec![set(chain, change)]);
    assert!(made.receipts[0].succeeded(), "{:?}", made.receipts);
}

fn code(receipt: &Receipt) -> Option<u16> {
    match receipt.verdict {
        Verdict::Refused { code, .. } => Some(code),
        _ => None,
    }
}

fn reason(receipt: &Receipt) -> String {
    let Verdict::Failed(failure) = &receipt.verdict else { panic!("{receipt:?}") };
    failure.reason.to_string()
}

fn puts(count: usize) -> Vec<Operation> {
    vec![op(&Put { from: 0, count: 1 }); count]
}

/// A transaction of about so many bytes.
fn of_bytes(person: u8, nonce: u64, bytes: usize) -> SignedTransaction {
    let text = "x".repeat(280);
    signed(person, nonce, vec![op(&memes::Post { text: Text::new(text).unwrap() }); bytes / 320])
}

/// Everything by which the history of a chain is compared with what its blocks come to.
fn history_holds(chain: &Chain) {
    let last = chain.height();
    assert_eq!(chain.replay(Height(1)..=last, &mut |_, _| ()).unwrap().root, chain.root());
    assert_eq!(chain.replay(last..=last, &mut |_, _| ()).unwrap().root, chain.root());
    assert_eq!(chain.replay_from_genesis(&genesis(), last, &mut |_, _| ()).unwrap().root, chain.root());
    let (rebuilt, _) = chain.rebuild(&genesis(), last, store(), Arc::new(MemoryKv::new()), &mut |_, _| ()).unwrap();
    assert_eq!((rebuilt.root(), rebuilt.limits().unwrap()), (chain.root(), chain.limits().unwrap()));
    let verdict = chain.verify_audit(&mut |_| ()).unwrap();
    assert!(verdict.fault.is_none() && verdict.verified == verdict.count, "{verdict:?}");
    let mut walk = AuditWalk::begin(chain_id(), chain.genesis_hash(), 0);
    for logged in chain.audit_records(0, usize::MAX, &|_| true).unwrap().0 {
        walk.step(&logged.record).unwrap();
    }
    for height in (1..=last.0).map(Height) {
        let claim = chain.transition(height).unwrap();
        let refused = chain.receipts(height).unwrap().iter().any(|receipt| code(receipt).is_some());
        assert_eq!(verify_transition::<Blake3>(chain.registry(), &claim).is_ok(), !refused, "height {height}");
    }
    // A node that takes the blocks in, or what they changed, comes to the same limits.
    for by_diff in [false, true] {
        let other = begun();
        for height in (1..=last.0).map(Height) {
            let record = chain.header(height).unwrap().record;
            let certified = Certified { height, record, root: chain.root_at(height).unwrap().unwrap() };
            match by_diff {
                false => other.take_block(&certified, Some(chain.block(height).unwrap())).unwrap(),
                true => {
                    let changes = chain.run_again(height).changes;
                    other.take_diff(&certified, &changes.to_diff()).unwrap()
                }
            };
        }
        assert_eq!(other.limits().unwrap(), chain.limits().unwrap());
    }
}

trait RunAgain {
    fn run_again(&self, height: Height) -> keelstone_ledger::Executed;
}
impl RunAgain for Chain {
    fn run_again(&self, height: Height) -> keelstone_ledger::Executed {
        let before = self.view_at(height.prev().unwrap()).unwrap();
        let (root, block): (Root, Block) = (before.root(), self.block(height).unwrap());
        keelstone_ledger::execute(self.registry(), before, root, block, Refused::Receipt).unwrap()
    }
}

/// spec: LEDGER-10, MODULE-12. A block runs under the limits before it, up and down, and the chain stays the chain of its genesis.
#[test]
fn changed_limits_count_from_the_next_block_on() {
    let chain = begun();
    let stands = || {
        let space = Namespace::new("chain").unwrap();
        chain.view().get(&space, b"limits").unwrap().map(|value| value.to_vec())
    };
    assert_eq!((stands(), chain.limits().unwrap()), (None, genesis().limits));

    let down = set(&chain, |limits| (limits.bundle_operations_max, limits.transaction_bytes_max) = (2, 4_096));
    let made = decide(&chain, vec![down, signed(1, 0, puts(3))]);
    assert!(made.receipts.iter().all(Receipt::succeeded), "behind it in its block, what fitted before: {made:?}");
    let limits = chain.limits().unwrap();
    assert_eq!((limits.bundle_operations_max, stands()), (2, Some(limits.to_bytes())));
    assert_eq!(chain.submit(&signed(1, 1, puts(3)).to_bytes()).unwrap_err().code(), 11);
    assert_eq!(chain.submit(&of_bytes(1, 1, 5_000).to_bytes()).unwrap_err().code(), 1);
    let made = decide(&chain, vec![signed(1, 1, puts(3)), signed(1, 1, puts(2))]);
    assert_eq!(made.receipts.iter().map(code).collect::<Vec<_>>(), [Some(11), None]);

    // Above what the genesis said.
    let up = set(&chain, |limits| (limits.bundle_operations_max, limits.transaction_bytes_max) = (90, 30_000));
    let made = decide(&chain, vec![up, signed(1, 2, puts(3))]);
    assert_eq!(made.receipts.iter().map(code).collect::<Vec<_>>(), [None, Some(11)], "nor does it count for itself");
    let large = of_bytes(1, 2, 20_000);
    assert!(large.to_bytes().len() > 8_000);
    chain.submit(&large.to_bytes()).unwrap();
    assert_eq!(chain.choose(&[&large.to_bytes()], usize::MAX, 6).unwrap(), [0]);
    chain.judge(&[&large.to_bytes()]).unwrap();
    let made = chain.produce(Timestamp(9_000), proposer()).unwrap();
    assert_eq!(made.block.transactions.len(), 1);

    assert_eq!(chain.facts(), &genesis().facts());
    assert_eq!(chain.genesis_hash(), genesis().first_state().unwrap().hash);
    let read = Facts::read(&chain.view()).unwrap().unwrap();
    assert_eq!((read.limits.bundle_operations_max, read.facts.limits), (90, genesis().limits));
    let before = Facts::read(&chain.view_at(Height(2)).unwrap()).unwrap().unwrap();
    assert_eq!(before.limits.bundle_operations_max, 2, "each height has its own");
    history_holds(&chain);
}

/// spec: LEDGER-10, BLOCK-2, LEDGER-6. Blocks and proposals are held to the limits before them.
#[test]
fn blocks_and_proposals_keep_to_the_limits_before_them() {
    let chain = begun();
    changed(&chain, |limits| {
        (limits.block_transactions_max, limits.block_gas_max) = (2, 9_000_000);
        limits.continuation_gas_max = 5_000_000;
    });
    let three: Vec<_> = (1..=3).map(|person| signed(person, 0, puts(1))).collect();
    let height = chain.height().next();
    let block = Block { height, time: Timestamp(5_000), proposer: proposer(), transactions: three.clone() };
    let refused = chain.run(block, Refused::Receipt).unwrap_err();
    assert!(matches!(refused, LedgerError::Block(BlockError::TooLarge { found: 3, limit: 2, .. })), "{refused}");
    let bytes: Vec<Vec<u8>> = three.iter().map(SignedTransaction::to_bytes).collect();
    let bytes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let refused = chain.judge(&bytes).unwrap_err();
    assert!(matches!(refused, ProposalError::TooLarge { found: 3, limit: 2, .. }), "{refused}");
    assert_eq!(chain.choose(&bytes, usize::MAX, 6).unwrap().len(), 2);
    for bytes in &bytes {
        chain.submit(bytes).unwrap();
    }
    for left in [2, 1] {
        let made = chain.produce(Timestamp(6_000), proposer()).unwrap();
        assert_eq!(made.block.transactions.len(), left);
    }
    // Gas of a bundle, and of a block: of two that use much, the second waits.
    let much = |person, nonce| signed(person, nonce, vec![op(&Put { from: 0, count: 300 })]);
    let made = decide(&chain, vec![much(1, 1), much(2, 1)]);
    assert!(made.receipts.iter().all(Receipt::succeeded), "{:?}", made.receipts);
    // As much as another that finds the places filled.
    let used = made.receipts[1].gas_used;
    assert!(used > 1_000_000, "{used}");
    changed(&chain, |limits| {
        (limits.bundle_gas_max, limits.continuation_gas_max) = (used + 1, 1_000_000);
        limits.block_gas_max = used * 2;
    });
    let made = decide(&chain, vec![much(1, 2), much(2, 2)]);
    assert_eq!(made.receipts.iter().map(code).collect::<Vec<_>>(), [None, Some(16)]);
    changed(&chain, |limits| limits.bundle_gas_max = used - 1);
    let out_of_gas = much(2, 2);
    let (setting, foreseen) = chain.dry_run(&out_of_gas.transaction, chain.time()).unwrap();
    assert!(matches!(&foreseen.receipt.verdict, Verdict::Failed(failure) if failure.code == 4), "{foreseen:?}");
    let witness = chain.witness(&out_of_gas.transaction, chain.time()).unwrap();
    let proof = keelstone_codec::Blob::new(witness.proof).unwrap();
    let proof = BundleProof::make::<Blake3>(chain.registry(), setting, out_of_gas.clone(), proof).unwrap();
    assert_eq!(proof.verify::<Blake3>(chain.registry()).unwrap().receipt, foreseen.receipt);
    let made = decide(&chain, vec![out_of_gas]);
    assert_eq!(made.receipts[0], foreseen.receipt);
    history_holds(&chain);
}

/// spec: MODULE-12, LEDGER-10. Whoever was granted it changes limits, to what a chain can have and can change again.
#[test]
fn limits_that_a_chain_may_not_have_are_denied() {
    let chain = begun();
    let stranger = signed(8, 0, vec![op(&SetLimits { limits: genesis().limits })]);
    assert_eq!(chain.submit(&stranger.to_bytes()).unwrap_err().code(), 14);
    type Change = fn(&mut ChainLimits);
    let wrong: [(&str, Change); 9] = [
        ("bundles_max is at least 1", |limits| limits.bundles_max = 0),
        ("block_bytes_max is at most 67108864", |limits| limits.block_bytes_max = (64 << 20) + 1),
        ("fit into a block", |limits| limits.block_bytes_max = 7_999),
        ("continuation_gas_max", |limits| limits.continuation_gas_max = 0),
        ("part of block_gas_max", |limits| limits.block_gas_max = 13_999_999),
        ("bundle_operations_max is at most", |limits| limits.bundle_operations_max = 65_536),
        ("snapshot_chunk_bytes stays 4194304", |limits| limits.snapshot_chunk_bytes /= 2),
        ("transaction_bytes_max of a running chain is at least 4096", |limits| limits.transaction_bytes_max = 4_095),
        ("bundle_gas_max of a running chain is at least 1000000", |limits| limits.bundle_gas_max = 999_999),
    ];
    for (what, change) in wrong {
        let made = decide(&chain, vec![set(&chain, change)]);
        let found = reason(&made.receipts[0]);
        assert!(found.contains(what), "{what}: {found}");
        assert_eq!(chain.limits().unwrap(), genesis().limits);
    }
    // The least there may be leave room for the way back.
    changed(&chain, |limits| {
        *limits = ChainLimits {
            transaction_bytes_max: 4_096,
            bundle_operations_max: 1,
            bundle_gas_max: 1_000_000,
            block_transactions_max: 1,
            block_bytes_max: 4_096,
            block_gas_max: 1_000_001,
            expiry_blocks_max: 1,
            continuation_gas_max: 1,
            bundles_max: 1,
            bundles_per_key_max: 1,
            bundles_bytes_max: 1,
            bundle_undo_entries_max: 1,
            bundle_undo_bytes_max: 1,
            bundle_blocks_max: 1,
            ..*limits
        }
    });
    let back = Transaction {
        expiry_height: chain.height().next(),
        ..set(&chain, |limits| *limits = genesis().limits).transaction
    };
    chain.submit(&back.sign(&key(KEEPER)).to_bytes()).unwrap();
    let made = chain.produce(Timestamp(99_000), proposer()).unwrap();
    assert!(made.receipts[0].succeeded(), "{:?}", made.receipts);
    assert_eq!(chain.limits().unwrap(), genesis().limits);
    history_holds(&chain);
}

/// spec: POOL-4. What the limits no longer take leaves the pool with the block that changed them: nothing stands in front of what
/// they take for ever.
#[test]
fn what_no_longer_fits_leaves_the_pool() {
    let chain = begun();
    let far = Transaction { expiry_height: Height(90_000), ..unsigned(3, 0, puts(1)) }.sign(&key(3));
    let near = |person, operations| {
        Transaction { expiry_height: Height(40), ..unsigned(person, 0, operations) }.sign(&key(person))
    };
    let (many, near) = (near(2, puts(5)), near(4, puts(1)));
    let waiting = [of_bytes(1, 0, 7_000), many, far, near.clone()];
    for waiting in &waiting {
        chain.submit(&waiting.to_bytes()).unwrap();
    }
    changed(&chain, |limits| {
        (limits.transaction_bytes_max, limits.block_bytes_max) = (4_096, 4_096);
        (limits.bundle_operations_max, limits.expiry_blocks_max) = (4, 50);
    });
    let left: Vec<bool> = waiting.iter().map(|waiting| chain.waiting(&waiting.id()).is_some()).collect();
    assert_eq!(left, [false, false, false, true]);
    assert_eq!(chain.pool().bytes, near.to_bytes().len());
    let made = chain.produce(Timestamp(5_000), proposer()).unwrap();
    assert_eq!(made.block.transactions, [near]);
    let [size, operations, expiry] = [0, 1, 2].map(|at| chain.submit(&waiting[at].to_bytes()).unwrap_err());
    assert!(matches!(size, Refusal::TooLarge { limit: 4_096, .. }), "{size}");
    assert!(matches!(operations, Refusal::TooManyOperations { limit: 4, .. }), "{operations}");
    assert!(matches!(expiry, Refusal::ExpiresTooLate { .. }), "{expiry}");
}

/// spec: LEDGER-10, HISTORY-3. A rollback over a change takes it back, and the chain goes on under what it had.
#[test]
fn a_rollback_takes_a_change_back() {
    let chain = begun();
    decide(&chain, vec![signed(1, 0, puts(3))]);
    changed(&chain, |limits| limits.bundle_operations_max = 2);
    decide(&chain, vec![signed(1, 1, puts(2))]);
    assert!(chain.submit(&signed(1, 2, puts(3)).to_bytes()).is_err());
    chain.rollback(Height(1)).unwrap();
    assert_eq!(chain.limits().unwrap(), genesis().limits);
    assert_eq!(block(&chain, &[signed(1, 1, puts(3))]).receipts.len(), 1);
    changed(&chain, |limits| limits.bundle_operations_max = 4);
    assert_eq!(block(&chain, &[signed(1, 2, puts(4))]).receipts.len(), 1);
    history_holds(&chain);
}

fn batched(
    person: u8,
    nonce: u64,
    borders: impl IntoIterator<Item = u32>,
    operations: Vec<Operation>,
) -> SignedTransaction {
    let batching = Batching { borders: BoundedSet::new(borders).unwrap(), ..Batching::until(Height(500)) };
    let bundle = Bundle::new(Mode::Async(batching), operations.clone()).unwrap();
    Transaction { bundle, ..unsigned(person, nonce, operations) }.sign(&key(person))
}

fn status(chain: &Chain, of: &SignedTransaction) -> (Status, u32) {
    let record = chain.bundle(&BundleId(of.id().0)).unwrap().unwrap();
    (record.status, record.current_operation)
}

/// spec: LEDGER-10, EXEC-6, EXEC-7. Bundles in flight stay so, however many may be submitted; an operation that may not have what it
/// takes any more stops its bundle, which goes on under other limits, is taken back, or ends by itself.
#[test]
fn bundles_in_flight_cross_a_change() {
    let chain = begun();
    let lift = |at| op(&Lift { at });
    let put = |from| op(&Put { from, count: 1 });
    // One that declares more than there will be, two that write more keys than one may, one that asks for nothing much.
    let heavy = batched(1, 0, 1..4, (0..4).map(lift).collect());
    let [wide, other] = [2u8, 3].map(|person| {
        let from = u64::from(person) * 10;
        batched(person, 0, 1..4, (from..from + 4).map(put).collect())
    });
    let light = batched(4, 0, 1..6, vec![put(90); 6]);
    let all = [heavy.clone(), wide.clone(), other.clone(), light.clone()];
    block(&chain, &all);
    decide(&chain, vec![]);
    assert!(all.iter().all(|one| status(&chain, one) == (Status::Running, 1)), "one operation of each");

    // What is in flight has its batch of this block under the limits before it.
    changed(&chain, |limits| {
        (limits.bundle_gas_max, limits.bundles_max, limits.bundle_undo_entries_max) = (2_000_000, 1, 2);
        (limits.bundles_bytes_max, limits.bundle_blocks_max) = (1_000, 400);
    });
    assert!(all.iter().all(|one| status(&chain, one) == (Status::Running, 2)));
    let made = decide(&chain, vec![batched(5, 0, [], vec![put(70)])]);
    assert_eq!(code(&made.receipts[0]), Some(12), "no more are taken in: {:?}", made.receipts);
    for (one, what) in [(&heavy, "gas that an operation may use"), (&wide, "keys that a bundle wrote")] {
        let of_it = made.continuations.iter().find(|continuation| continuation.bundle.0 == one.id().0).unwrap();
        let Progress::Stopped(failure) = &of_it.progress else { panic!("{of_it:?}") };
        assert!(failure.reason.contains(what), "{}", failure.reason);
        assert!(matches!(status(&chain, one), (Status::Stopped(_), 2)));
    }
    while chain.has_due_work().unwrap() && status(&chain, &light).0 == Status::Running {
        decide(&chain, vec![]);
    }
    assert_eq!(status(&chain, &light), (Status::Complete, 6), "others go on to their end");

    // One of those that stopped is taken back, also under these limits; others go on once there is room.
    let back = signed(3, 1, vec![op(&RollBack { bundle: BundleId(other.id().0) })]);
    let made = decide(&chain, vec![back]);
    assert!(made.receipts[0].succeeded(), "{:?}", made.receipts);
    let resumed = |person, of: &SignedTransaction| signed(person, 1, vec![op(&Resume { bundle: BundleId(of.id().0) })]);
    changed(&chain, |limits| (limits.bundle_gas_max, limits.bundle_undo_entries_max) = (3_000_000, 4));
    decide(&chain, vec![resumed(1, &heavy), resumed(2, &wide)]);
    while chain.has_due_work().unwrap() {
        decide(&chain, vec![]);
    }
    assert_eq!(status(&chain, &heavy), (Status::Complete, 4));
    assert_eq!(status(&chain, &wide), (Status::Complete, 4));
    assert_eq!(status(&chain, &other).0, Status::RolledBack);
    assert!(chain.bundles().unwrap().is_empty());
    history_holds(&chain);
}

/// spec: LEDGER-10, EXEC-7. A bundle that stopped, and that its owner leaves, ends by itself, under whatever limits.
#[test]
fn a_bundle_that_a_change_stopped_ends_by_itself() {
    let chain = begun();
    let mut heavy = batched(1, 0, 1..4, (0..4).map(|at| op(&Lift { at })).collect()).transaction;
    let batching = Batching { borders: BoundedSet::new(1..4).unwrap(), ..Batching::until(Height(5)) };
    heavy.bundle = Bundle::new(Mode::Async(batching), heavy.bundle.operations().to_vec()).unwrap();
    let heavy = heavy.sign(&key(1));
    block(&chain, std::slice::from_ref(&heavy));
    changed(&chain, |limits| (limits.bundle_gas_max, limits.bundle_blocks_max) = (2_000_000, 3));
    let mut blocks = 0;
    while !chain.bundles().unwrap().is_empty() {
        decide(&chain, vec![]);
        blocks += 1;
        assert!(blocks < 20, "{:?}", chain.bundles());
    }
    assert_eq!(
        (status(&chain, &heavy).0, chain.height()),
        (Status::Abandoned, Height(9)),
        "three blocks past the sixth"
    );
    history_holds(&chain);
}

/// spec: MODULE-12, EXEC-23. An application's own hook may set limits; those of the module apply, and what cannot be is refused.
#[test]
fn a_hook_of_an_application_sets_limits() {
    let chain = begun();
    decide(&chain, vec![signed(1, 0, vec![op(&Want { bytes: 9_000 })])]);
    assert_eq!(chain.limits().unwrap(), ChainLimits { block_bytes_max: 9_000, ..genesis().limits });
    let made = decide(&chain, vec![signed(1, 1, vec![op(&Want { bytes: 7_000 })])]);
    let Progress::Stopped(failure) = &made.continuations[0].progress else { panic!("{:?}", made.continuations) };
    assert!(failure.reason.contains("fit into a block"), "{}", failure.reason);
    assert_eq!(chain.limits().unwrap().block_bytes_max, 9_000);

    let mut closed = Registry::new();
    closed.register::<Keeping, SeeToIt>();
    assert!(closed.check().is_err(), "without the module the namespace is the engine's");
    limits::register(&mut closed).check().unwrap();
}
