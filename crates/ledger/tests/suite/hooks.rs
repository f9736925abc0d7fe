//! What a chain does by itself in its blocks, and rules that change at a height.

use crate::tools::*;
use keelstone_codec::{Decode as _, Encode as _, Height, Timestamp};
use keelstone_execution::bundles::{RollBack, Status};
use keelstone_execution::{
    Batching, Bundle, Context, Denied, Draft, Function, Item, Map, Mode, Operation, PublicKey, Registry, SessionId,
    Transition, When, denied, namespace, transition,
};
use keelstone_ledger::{
    AuditEvent, AuditWalk, Block, Bodies, Certified, ChangedBy, Continuation, Executed, Genesis, KeyError, Ledger,
    LedgerError, PoolLimits, Progress, RebuildError, Refused, ReplayError, Replayed, Signature, SignedTransaction,
    TakeError, Until, Verdict, check_key, execute, verify_transition,
};
use keelstone_store::Store;
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::{Batch, Kv as _, MemoryKv};
use keelstone_tree::Blake3;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;

#[namespace("market")]
struct Market {
    /// What is offered, and at what price.
    offers: Map<u64, u64>,
    /// How the hook that ends a block behaves.
    mood: Item<u8>,
    /// What every hook and transaction says that it was there, in order.
    order: Item<Vec<u8>>,
}

impl Market {
    fn was_there(&mut self, who: u8) -> Result<(), Denied> {
        let mut order = self.order.get_or_default()?;
        order.push(who);
        Ok(self.order.set(&order)?)
    }
}

#[transition("market.offer/1")]
struct Offer {
    at: u64,
    price: u64,
    mood: u8,
}

impl Transition<Market> for Offer {
    type Output = ();
    fn apply(&self, market: &mut Draft<Market>, _: &mut Context) -> Result<(), Denied> {
        market.offers.insert(&self.at, &self.price)?;
        market.mood.set(&self.mood)?;
        market.was_there(b'o')
    }
}

/// Lowers every price by a coin, as long as there is something to lower.
fn decay(market: &mut Draft<Market>, by: u64) -> Result<(), Denied> {
    let offers: Vec<(u64, u64)> = market.offers.iter().collect::<Result<_, _>>()?;
    let mut lowered = false;
    for (at, price) in offers.into_iter().filter(|(_, price)| *price > 0) {
        market.offers.insert(&at, &price.saturating_sub(by))?;
        lowered = true;
    }
    if lowered { market.was_there(b'd') } else { Ok(()) }
}

#[transition("market.decay/1")]
struct Decay;

impl Transition<Market> for Decay {
    type Output = ();
    fn apply(&self, market: &mut Draft<Market>, _: &mut Context) -> Result<(), Denied> {
        decay(market, 1)
    }
}

#[transition("market.decay/2")]
struct FasterDecay;

impl Transition<Market> for FasterDecay {
    type Output = ();
    fn apply(&self, market: &mut Draft<Market>, _: &mut Context) -> Result<(), Denied> {
        decay(market, 10)
    }
}

const FAILS: u8 = 101;
const PANICS: u8 = 102;
const SPINS: u8 = 103;

/// Ends a block as it was told to.
#[transition("market.close/1")]
struct Close;

impl Transition<Market> for Close {
    type Output = ();
    fn apply(&self, market: &mut Draft<Market>, cx: &mut Context) -> Result<(), Denied> {
        let mood = market.mood.get_or_default()?;
        if mood == 0 {
            return Ok(());
        }
        market.was_there(b'c')?;
        match mood {
            FAILS => Err(denied!("closed")),
            PANICS => panic!("closed"),
            SPINS => loop {
                cx.step(1_000_000)?;
            },
            _ => Ok(market.mood.set(&(mood - 1))?),
        }
    }
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<Market, Offer>().begin_block::<Market, Decay>().end_block::<Market, Close>();
    registry.check().unwrap();
    registry
}

fn genesis() -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    (genesis.limits.bundle_gas_max, genesis.limits.continuation_gas_max) = (4_000_000, 10_000_000);
    genesis
}

fn market(registry: Registry) -> Chain {
    Ledger::create(store(), Arc::new(MemoryKv::new()), registry, &genesis(), PoolLimits::default()).unwrap()
}

fn offer(at: u64, price: u64, mood: u8) -> Operation {
    op(&Offer { at, price, mood })
}

fn look<T>(chain: &Chain, look: impl FnOnce(&Market) -> T) -> T {
    look(&keelstone_execution::View::<Market>::over(chain.view()))
}

fn price(chain: &Chain, at: u64) -> u64 {
    look(chain, |market| market.offers.get(&at).unwrap().unwrap())
}

/// The next block, as another engine would have it: whatever is in it.
fn next(chain: &Chain, transactions: Vec<SignedTransaction>) -> Vec<Continuation> {
    let height = chain.height().next();
    let block = Block { height, time: Timestamp(height.0 * 1_000), proposer: proposer(), transactions };
    chain.commit(chain.run(block, Refused::Receipt).unwrap()).unwrap().continuations.clone()
}

#[namespace("clock")]
struct Clock {
    /// When the hook that looks at the clock rings.
    alarm: Item<u64>,
    /// The times at which it did, and what was drawn then.
    rang: Map<u64, keelstone_codec::Hash>,
}

#[transition("clock.wind/1")]
struct Wind {
    at: u64,
}

impl Transition<Clock> for Wind {
    type Output = ();
    fn apply(&self, clock: &mut Draft<Clock>, _: &mut Context) -> Result<(), Denied> {
        Ok(clock.alarm.set(&self.at)?)
    }
}

/// Asks for all there is to ask of a block, in every block, and does something once it is time.
#[transition("clock.ring/1", context = [height, time, random])]
struct Ring;

impl Transition<Clock> for Ring {
    type Output = ();
    fn apply(&self, clock: &mut Draft<Clock>, cx: &mut Context) -> Result<(), Denied> {
        let (time, drawn) = (cx.time()?.0, cx.random()?);
        if clock.alarm.get()?.is_none_or(|at| time < at) {
            return Ok(());
        }
        clock.alarm.take()?;
        Ok(clock.rang.insert(&time, &drawn)?)
    }
}

/// Unwinds the alarm of whoever is early.
#[transition("clock.early/1", context = time)]
struct Early;

impl Transition<Clock> for Early {
    type Output = ();
    fn apply(&self, clock: &mut Draft<Clock>, cx: &mut Context) -> Result<(), Denied> {
        if clock.alarm.get()?.is_some_and(|at| cx.time().is_ok_and(|time| time.0 < at)) {
            clock.alarm.take()?;
        }
        Ok(())
    }
}

/// As [`Early`], whatever time it is.
#[transition("clock.unwind/1")]
struct Unwind;

impl Transition<Clock> for Unwind {
    type Output = ();
    fn apply(&self, clock: &mut Draft<Clock>, _: &mut Context) -> Result<(), Denied> {
        clock.alarm.take()?;
        Ok(())
    }
}

/// Everything by which the history of a chain is compared with what its blocks come to.
fn history_holds(chain: &Chain) {
    history_holds_from(chain, &genesis());
}

pub(crate) fn history_holds_from(chain: &Chain, genesis: &Genesis) {
    let last = chain.height();
    assert_eq!(chain.replay(Height(1)..=last, &mut |_, _| ()).unwrap().root, chain.root());
    assert_eq!(chain.replay_from_genesis(genesis, last, &mut |_, _| ()).unwrap().root, chain.root());
    let kv = Arc::new(MemoryKv::new());
    let (rebuilt, _) = chain.rebuild(genesis, last, store(), kv, &mut |_, _| ()).unwrap();
    assert_eq!((rebuilt.root(), rebuilt.height()), (chain.root(), last));
    let verdict = chain.verify_audit(&mut |_| ()).unwrap();
    assert!(verdict.fault.is_none() && verdict.verified == verdict.count, "{verdict:?}");
    let mut walk = AuditWalk::begin(chain_id(), chain.genesis_hash(), 0);
    for logged in chain.audit_records(0, usize::MAX, &|_| true).unwrap().0 {
        walk.step(&logged.record).unwrap();
    }
    for height in (1..=last.0).map(Height) {
        let receipts = chain.receipts(height).unwrap();
        if receipts.iter().any(|receipt| matches!(receipt.verdict, Verdict::Refused { .. })) {
            continue; // No proof of a transition has a transaction that is refused.
        }
        let claim = chain.transition(height).unwrap();
        let executed = verify_transition::<Blake3>(chain.registry(), &claim).unwrap();
        assert_eq!(executed.continuations, chain.continuations(height).unwrap());
        assert_eq!(executed.record, chain.header(height).unwrap().record);
    }
}

/// spec: EXEC-23, TX-4. Nobody can be the chain.
#[test]
fn nobody_signs_for_the_chain() {
    assert!(matches!(check_key(&PublicKey::CHAIN), Err(KeyError::SmallOrder { .. })), "its key is of small order");
    let chain = market(registry());
    // The neutral point and nothing: for a key of small order the equation holds, whatever is signed.
    let mut forged = signed(1, 0, vec![offer(1, 1, 0)]);
    forged.transaction.sender = PublicKey::CHAIN;
    forged.signature = Signature(std::array::from_fn(|at| u8::from(at == 0)));
    assert_eq!(chain.submit(&forged.to_bytes()).unwrap_err().code(), 4);
    next(&chain, vec![forged]);
    assert!(matches!(chain.receipts(Height(1)).unwrap()[0].verdict, Verdict::Refused { code: 4, .. }));
    // Nor act in its session, nor call what is there for it alone.
    let mut inside = unsigned(1, 0, vec![offer(1, 1, 0)]);
    inside.session = Some(SessionId::root(&chain_id(), &PublicKey::CHAIN));
    assert!(chain.submit(&inside.sign(&key(1)).to_bytes()).is_err());
    assert_eq!(chain.submit(&signed(1, 0, vec![op(&Decay)]).to_bytes()).unwrap_err().code(), 13);
}

/// spec: BLOCK-8, LEDGER-3. Hooks run around a block's transactions, the record certifies what they did, and whatever runs the
/// block again comes to the same. Where they do nothing, the chain is idle.
#[test]
fn blocks_do_work_of_their_own_and_idle_without_it() {
    let chain = market(registry());
    let root = chain.root();
    for _ in 0..3 {
        assert!(next(&chain, vec![]).is_empty());
        assert_eq!((chain.root(), chain.header(chain.height()).unwrap().record), (root, None));
    }
    assert!(!chain.has_due_work().unwrap() && chain.produce_if_due(Timestamp(9_000), proposer()).unwrap().is_none());

    // A price that the hook meets in the next block, and a mood that the hook meets at once.
    let made = next(&chain, vec![signed(1, 0, vec![offer(1, 3, 5)])]);
    let [Continuation { bundle, by: None, first: 0, .. }] = made.as_slice() else { panic!("{made:?}") };
    assert_eq!((*bundle, price(&chain, 1)), (When::EndBlock.bundle(), 3));
    let both = next(&chain, vec![signed(1, 1, vec![offer(2, 1, 5)])]);
    assert_eq!(
        both.iter().map(|one| one.bundle).collect::<Vec<_>>(),
        [When::BeginBlock.bundle(), When::EndBlock.bundle()]
    );
    assert_eq!(look(&chain, |market| market.order.get().unwrap().unwrap()), b"ocdoc");
    let record = chain.header(chain.height()).unwrap().record.unwrap();
    assert_eq!((record.transactions, record.continuations), (1, 2));
    // Without any transaction, until there is nothing to do: two coins of the first, one of the second.
    let quiet = next(&chain, vec![]);
    assert_eq!((quiet.len(), price(&chain, 1), price(&chain, 2)), (2, 1, 0));
    let mut busy = 0;
    while !next(&chain, vec![]).is_empty() {
        busy += 1;
    }
    assert!((1..10).contains(&busy), "{busy}");
    let root = chain.root();
    assert!(next(&chain, vec![]).is_empty() && chain.root() == root, "it is idle again");
    history_holds(&chain);
    // Who changed an entry, and what the log says of it.
    let market = keelstone_codec::Namespace::new("market").unwrap();
    let mut at = keelstone_execution::entry_prefix("offers");
    at.extend(1u64.to_be_bytes());
    let at = keelstone_codec::Key::new(at).unwrap();
    let found = chain.key_history(&market, &at, Height(5)..=Height(5), 9).unwrap();
    let ChangedBy::Operations(by) = &found.changes[0].by else { panic!("{:?}", found.changes[0].by) };
    let AuditEvent::Operation(logged) = &by[0].1.as_ref().unwrap().record.event else { panic!("an operation") };
    assert_eq!((logged.sender, logged.function, logged.operation), (PublicKey::CHAIN, Decay::hash(), 0));
    assert!(matches!(chain.height_until(Until::Record(0)), Ok(Height(4))));
}

/// spec: BLOCK-8, EXEC-15. On any number of threads.
#[test]
fn work_of_a_blocks_own_is_the_same_on_several_threads() {
    let told = |executed: &Executed| {
        let Executed { block, receipts, continuations, changes, record, audit, .. } = executed;
        format!("{block:?}{receipts:?}{continuations:?}{changes:?}{record:?}{audit:?}")
    };
    let mut chain = market(registry());
    next(&chain, vec![signed(1, 0, vec![offer(1, 30, 9)])]);
    for height in 2..6 {
        let transactions = (10..40u8).map(|person| {
            let operations = (0..3).map(|n| offer(u64::from(person % 7), 20 + n, 9)).collect();
            signed(person, height - 2, operations)
        });
        let block = Block {
            height: Height(height),
            time: Timestamp(height * 1_000),
            proposer: proposer(),
            transactions: transactions.collect(),
        };
        let view = chain.view();
        let root = view.root();
        let expected = execute(chain.registry(), view, root, block.clone(), Refused::Receipt).unwrap();
        assert_eq!((expected.continuations.len(), expected.beforehand.transactions), (2, 0));
        let mut last = None;
        for threads in [1, 2, 8] {
            chain = chain.on_threads(NonZeroUsize::new(threads).unwrap());
            let pending = last.insert(chain.run(block.clone(), Refused::Receipt).unwrap());
            assert_eq!(told(pending.executed()), told(&expected), "{threads} threads");
        }
        chain.commit(last.unwrap()).unwrap();
    }
    history_holds(&chain);
}

/// spec: BLOCK-8, EXEC-23. A hook that fails, panics or spins leaves a word and nothing else; the block's transactions take
/// effect, and the chain goes on.
#[test]
fn a_hook_that_fails_stops_nothing() {
    let chain = market(registry());
    for (nonce, (mood, code)) in (0u64..).zip([(FAILS, 3), (PANICS, 6), (SPINS, 4)]) {
        let made = next(&chain, vec![signed(1, nonce, vec![offer(nonce, 0, mood)])]);
        let [Continuation { progress: Progress::Stopped(failure), gas_used, .. }] = made.as_slice() else {
            panic!("{made:?}")
        };
        assert_eq!((failure.code, failure.function), (code, Close::hash()));
        assert!(*gas_used <= genesis().limits.bundle_gas_max);
        assert_eq!(look(&chain, |market| market.order.get().unwrap().unwrap().len() as u64), 1 + nonce);
        assert!(chain.receipts(chain.height()).unwrap()[0].succeeded());
    }
    let logged = chain.audit_records(0, usize::MAX, &|_| true).unwrap().0;
    let failed = logged.iter().filter(
        |logged| matches!(logged.record.event, AuditEvent::Failed { sender: PublicKey::CHAIN, function, .. } if function == Close::hash()),
    );
    assert_eq!(failed.count(), 3);
    history_holds(&chain);
}

/// spec: BLOCK-8, BLOCK-2. What hooks use leaves a block all the gas it has for transactions, and takes none of it.
#[test]
fn hooks_and_transactions_have_gas_of_their_own() {
    let mut genesis = genesis();
    (genesis.limits.block_gas_max, genesis.limits.continuation_gas_max) = (4_100_000, 100_000);
    let chain: Chain =
        Ledger::create(store(), Arc::new(MemoryKv::new()), registry(), &genesis, PoolLimits::default()).unwrap();
    let made = next(&chain, vec![signed(1, 0, vec![offer(1, 1, SPINS)]), signed(1, 1, vec![offer(1, 1, SPINS)])]);
    assert_eq!(made[0].gas_used, genesis.limits.bundle_gas_max, "it had all that one may use");
    let receipts = chain.receipts(chain.height()).unwrap();
    assert!(receipts[0].succeeded() && receipts[1].succeeded(), "{receipts:?}");
}

/// spec: HISTORY-10, BLOCK-8. Whatever a hook did is proven like a batch, under any later root, as what it was in that block and no
/// other; where it left nothing, or failed, there is nothing to prove.
#[test]
fn what_a_hook_did_is_proven() {
    let chain = market(registry());
    next(&chain, vec![signed(1, 0, vec![offer(1, 3, 2)])]);
    next(&chain, vec![signed(1, 1, vec![offer(2, 9, FAILS)])]);
    for _ in 0..3 {
        next(&chain, vec![]);
    }
    let mut proven = 0;
    for height in (1..=chain.height().0).map(Height) {
        let continuations = chain.continuations(height).unwrap();
        for when in When::ALL {
            let proof = chain.hook_proof(height, when, None, 0).unwrap();
            let did = continuations.iter().find(|one| one.bundle == when.bundle() && !one.operations().is_empty());
            assert_eq!(proof.is_some(), did.is_some(), "{height}, {when:?}");
            assert_eq!(chain.hook_proof(height, when, None, 1).unwrap(), None, "there is one of each");
            let Some((proof, did)) = proof.zip(did) else { continue };
            proof.verify::<Blake3>().unwrap();
            assert_eq!((proof.block, proof.root, proof.index()), (height, chain.root(), 0));
            assert_eq!((&proof.operation, proof.together.bundle()), (&did.operations()[0], when.bundle()));
            // Nor is it good for another block, in which the same bundle is another.
            let elsewhere = keelstone_ledger::OperationProof { block: height.next(), ..proof };
            assert!(elsewhere.verify::<Blake3>().is_err());
            proven += 1;
        }
    }
    assert_eq!(proven, 5, "the price fell in four blocks, and one was closed");
    assert_eq!(chain.operation_proof(&When::EndBlock.bundle(), 0).unwrap(), None, "of which block was not said");
    let ahead = chain.hook_proof(Height(99), When::EndBlock, None, 0).unwrap_err();
    assert!(matches!(ahead, LedgerError::NotYet { .. }), "{ahead}");
}

/// spec: LEDGER-3, HISTORY-2, HISTORY-4, BLOCK-8. No record says what time it was in a block in which nothing was left, and a hook
/// may ask. Whoever runs the same block comes to the same, at once or later; and where what is kept of it says another time, that
/// either comes to the same or is told at that very block, for its record is there or not.
#[test]
fn a_time_that_no_record_has_decides_nothing_unseen() {
    let begin = |kv: Arc<MemoryKv>| -> Chain {
        let mut registry = registry();
        registry.register::<Clock, Wind>().end_block::<Clock, Ring>();
        registry.check().unwrap();
        Ledger::create(store(), kv, registry, &genesis(), PoolLimits::default()).unwrap()
    };
    let live = |times: &[u64]| {
        let kv = Arc::new(MemoryKv::new());
        let chain = begin(kv.clone());
        for time in times {
            let height = chain.height().next();
            let transactions =
                if height == Height(1) { vec![signed(1, 0, vec![op(&Wind { at: 3_500 })])] } else { vec![] };
            let block = Block { height, time: Timestamp(*time), proposer: proposer(), transactions };
            chain.commit(chain.run(block, Refused::Receipt).unwrap()).unwrap();
        }
        (chain, kv)
    };
    let rang = |chain: &Chain| -> Vec<u64> {
        let clock = keelstone_execution::View::<Clock>::over(chain.view());
        clock.rang.iter().map(|rang| rang.unwrap().0).collect()
    };
    let (chain, kv) = live(&[1_000, 2_000, 3_000, 4_000, 5_000]);
    let recorded = |chain: &Chain| -> Vec<u64> {
        (1..=5).filter(|height| chain.header(Height(*height)).unwrap().record.is_some()).collect()
    };
    assert_eq!((rang(&chain), recorded(&chain)), (vec![4_000], vec![1, 4]));
    history_holds(&chain);

    // Another that was told other times of the blocks that left nothing stands where this one does; one that was told it is time
    // does not.
    let (other, other_kv) = live(&[1_000, 2_500, 3_400, 4_000, 5_000]);
    assert_eq!((other.root(), recorded(&other)), (chain.root(), vec![1, 4]));
    let (early, early_kv) = live(&[1_000, 2_000, 3_600, 4_000, 5_000]);
    assert_eq!((rang(&early), recorded(&early)), (vec![3_600], vec![1, 3]));
    assert_ne!(early.root(), chain.root());

    let body = [&b"b"[..], &3u64.to_be_bytes()].concat();
    let replayed = |from: &MemoryKv| {
        let mut batch = Batch::new();
        batch.put(body.clone(), from.get(&body).unwrap().unwrap());
        kv.write(batch).unwrap();
        chain.replay(Height(1)..=Height(5), &mut |_, _| ())
    };
    assert_eq!(replayed(&other_kv).unwrap().root, chain.root());
    let found = replayed(&early_kv).unwrap_err();
    assert!(matches!(&found, ReplayError::Differs { height: Height(3), .. }), "{found}");
}

/// spec: SNAP-11, BLOCK-8. Who takes in the blocks of others is not told the time of one that left nothing. That a hook would have
/// done something at another time is no sign that the state here is another.
#[test]
fn a_block_that_left_nothing_is_taken_in_whatever_time_it_had() {
    let begin = |asks: bool| -> Chain {
        let mut registry = registry();
        registry.register::<Clock, Wind>();
        match asks {
            true => registry.begin_block::<Clock, Early>(),
            false => registry.begin_block::<Clock, Unwind>(),
        };
        registry.check().unwrap();
        Ledger::create(store(), Arc::new(MemoryKv::new()), registry, &genesis(), PoolLimits::default()).unwrap()
    };
    let (chain, follower) = (begin(true), begin(true));
    let step = |height: Height| {
        let header = chain.header(height).unwrap();
        let block = header.record.is_some().then(|| chain.block(height).unwrap());
        (Certified { height, record: header.record, root: header.root.unwrap() }, block)
    };
    for (height, time) in [(1, 1_000), (2, 4_000), (3, 5_000)] {
        let transactions = match height {
            2 => vec![],
            _ => vec![signed(1, (height - 1) / 2, vec![op(&Wind { at: 3_500 })])],
        };
        let block = Block { height: Height(height), time: Timestamp(time), proposer: proposer(), transactions };
        chain.commit(chain.run(block, Refused::Receipt).unwrap()).unwrap();
        let (certified, block) = step(Height(height));
        assert_eq!(certified.record.is_none(), height == 2);
        if height == 2 {
            let empty = Block { time: follower.time(), ..chain.block(Height(2)).unwrap() };
            let run = follower.run(empty, Refused::Receipt).unwrap();
            assert_ne!(run.root(), certified.root, "at the time that is known here it is early");
        }
        let taken = follower.take_block(&certified, block).unwrap();
        assert_eq!((follower.root(), taken.is_kept), (chain.root(), height != 2));
    }
    // What asks for nothing comes to the same at any time: there it is another state, or another program.
    let other = begin(false);
    let (first, block) = step(Height(1));
    other.take_block(&first, block).unwrap();
    let error = other.take_block(&step(Height(2)).0, None).unwrap_err();
    assert!(matches!(error, TakeError::Differs { height: Height(2), .. }), "{error}");
    assert_eq!(other.height(), Height(1));
}

/// spec: SNAP-20, HISTORY-4, HISTORY-7, RECOVER-1. A node that took in a height that left nothing without its block runs its history
/// again all the same. A block that is lost of a height that left something is missed.
#[test]
fn history_runs_again_over_a_height_that_left_nothing_and_has_no_block() {
    let mut registry = registry();
    registry.register::<Clock, Wind>().begin_block::<Clock, Early>();
    registry.check().unwrap();
    let begin = |kv: &Arc<MemoryKv>| -> Chain {
        Ledger::create(store(), kv.clone(), registry.clone(), &genesis(), PoolLimits::default()).unwrap()
    };
    let (chain, kv) = (begin(&Arc::default()), Arc::<MemoryKv>::default());
    let follower = begin(&kv);
    for (height, time) in [(1, 1_000), (2, 4_000), (3, 4_000), (4, 5_000), (5, 6_000)] {
        let transactions = match height {
            1 => vec![signed(1, 0, vec![op(&Wind { at: 3_500 })])],
            4 => vec![signed(1, 1, vec![op(&Wind { at: 9_000 })])],
            _ => vec![],
        };
        let block = Block { height: Height(height), time: Timestamp(time), proposer: proposer(), transactions };
        chain.commit(chain.run(block, Refused::Receipt).unwrap()).unwrap();
        let header = chain.header(Height(height)).unwrap();
        let certified = Certified { height: Height(height), record: header.record, root: header.root.unwrap() };
        match &certified.record {
            Some(_) => follower.take_block(&certified, Some(chain.block(Height(height)).unwrap())).unwrap(),
            None => follower.take_diff(&certified, &keelstone_tree::Diff::default()).unwrap(),
        };
    }
    let has_block = |height: &u64| follower.block(Height(*height)).is_ok();
    let kept: Vec<u64> = (1..=5).filter(has_block).collect();
    assert_eq!((kept.as_slice(), follower.root()), (&[1, 4, 5][..], chain.root()));

    let count = |found: Replayed| (found.blocks, found.without_block, found.compared, found.root);
    let all = follower.replay_from_genesis(&genesis(), Height(5), &mut |_, _| ()).unwrap();
    assert_eq!(count(all), (3, 2, 6, chain.root()));
    let range = follower.replay(Height(2)..=Height(4), &mut |_, _| ()).unwrap();
    assert_eq!(count(range), (1, 2, 4, chain.root_at(Height(4)).unwrap().unwrap()));

    let made = Arc::<MemoryKv>::default();
    let (again, rebuilt) = follower.rebuild(&genesis(), Height(5), store(), made.clone(), &mut |_, _| ()).unwrap();
    assert_eq!((rebuilt.blocks, rebuilt.without_block, rebuilt.roots_compared), (3, 2, 6));
    assert_eq!((again.root(), again.height()), (chain.root(), Height(5)));
    assert_eq!(again.replay(Height(1)..=Height(5), &mut |_, _| ()).unwrap().without_block, 2);

    let bodies = Bodies::over(kv.clone());
    let fresh = begin(&Arc::default());
    assert_eq!(fresh.run_kept(&bodies, Height(5), &mut |_| ControlFlow::Continue(())).unwrap(), 3);
    assert_eq!((fresh.root(), fresh.height()), (chain.root(), Height(5)));
    // Such a height counts as of the time of the last block that is known below it.
    for (time, expected) in [(999, 0), (1_000, 3), (3_400, 3), (4_999, 3), (5_000, 4), (5_999, 4), (6_000, 5)] {
        let until = follower.height_until(Until::Time(Timestamp(time))).unwrap();
        let kept = bodies.at_time(Timestamp(time), Height(0)).unwrap();
        assert_eq!((until.0, kept.map_or(0, |height| height.0)), (expected, expected), "{time}");
    }
    for height in (1..=5).map(Height) {
        let before = follower.root_at(height.prev().unwrap()).unwrap();
        bodies.lead_over(height, before).unwrap();
    }

    let body = [&b"b"[..], &4u64.to_be_bytes()].concat();
    kv.write(std::mem::take(Batch::new().delete(body))).unwrap();
    let is_missed = |error: &LedgerError| matches!(error, LedgerError::NoBlock { height: Height(4) });
    let replayed = follower.replay(Height(1)..=Height(5), &mut |_, _| ()).unwrap_err();
    assert!(matches!(&replayed, ReplayError::Ledger(error) if is_missed(error)), "{replayed}");
    let rebuilt = follower.rebuild(&genesis(), Height(5), store(), Arc::<MemoryKv>::default(), &mut |_, _| ());
    assert!(matches!(rebuilt.map(|_| ()).unwrap_err(), RebuildError::Ledger(error) if is_missed(&error)));
    let run = begin(&Arc::default()).run_kept(&bodies, Height(5), &mut |_| ControlFlow::Continue(()));
    assert!(is_missed(&run.unwrap_err()));
    assert!(is_missed(&bodies.lead_over(Height(4), follower.root_at(Height(3)).unwrap()).unwrap_err()));
    assert!(is_missed(&bodies.at_time(Timestamp(4_999), Height(0)).unwrap_err()));
}

/// spec: EXEC-23, GENESIS-1. Rules that begin or end with the chain: what is there below its first block alone never was, and what is
/// there in its first block alone is there once.
#[test]
fn rules_begin_and_end_with_the_first_block() {
    let mut registry = Registry::new();
    registry.register::<Market, Offer>();
    registry.during(..Height(7), |registry| {
        registry.begin_block::<Market, Decay>().register::<Market, Decay>();
    });
    registry.during(Height(7)..=Height(7), |registry| {
        registry.end_block::<Market, FasterDecay>();
    });
    registry.during(Height(u64::MAX).., |registry| {
        registry.end_block::<Market, Close>();
    });
    registry.check().unwrap();
    let mut genesis = genesis();
    genesis.initial_height = Height(7);
    let chain: Chain =
        Ledger::create(store(), Arc::new(MemoryKv::new()), registry, &genesis, PoolLimits::default()).unwrap();
    assert_eq!(chain.height(), Height(6));
    assert_eq!(chain.submit(&signed(1, 0, vec![op(&Decay)]).to_bytes()).unwrap_err().code(), 13);
    let dry = chain.dry_run(&unsigned(1, 0, vec![op(&Decay)]), Timestamp(7_000)).unwrap_err();
    assert!(dry.to_string().contains("is not registered"), "{dry}");
    let transactions = vec![signed(1, 0, vec![offer(1, 50, 9)]), signed(1, 1, vec![op(&Decay)])];
    let made = next(&chain, transactions);
    assert_eq!((made.len(), price(&chain, 1)), (1, 40), "{made:?}");
    assert!(!chain.receipts(Height(7)).unwrap()[1].succeeded());
    assert!(next(&chain, vec![]).is_empty());
    assert_eq!(price(&chain, 1), 40);
    assert_eq!(chain.replay(Height(7)..=Height(8), &mut |_, _| ()).unwrap().root, chain.root());
    assert_eq!(chain.replay_from_genesis(&genesis, Height(8), &mut |_, _| ()).unwrap().root, chain.root());
}

/// spec: EXEC-9, EXEC-10, BLOCK-8. What the chain itself writes over is noted as what others write: a bundle is not taken back
/// over it.
#[test]
fn a_bundle_is_not_taken_back_over_what_the_chain_did() {
    let chain = market(registry());
    let mut operations = vec![offer(1, 9, 0)];
    // It stops at its second operation, and so is in flight when the hook lowers its price.
    operations.push(Operation { args: keelstone_codec::Blob::new(vec![1]).unwrap(), ..offer(2, 9, 0) });
    let borders = keelstone_codec::BoundedSet::new([1]).unwrap();
    let mode = Mode::Async(Batching { borders, ..Batching::until(Height(1_000)) });
    let mut submitted = unsigned(1, 0, operations.clone());
    submitted.bundle = Bundle::new(mode, operations).unwrap();
    let submitted = submitted.sign(&key(1));
    let bundle = keelstone_execution::BundleId(submitted.id().0);
    next(&chain, vec![submitted]);
    while chain.has_due_work().unwrap() {
        next(&chain, vec![]);
    }
    assert!(matches!(chain.bundle(&bundle).unwrap().unwrap().status, Status::Stopped(_)));
    assert!(price(&chain, 1) < 9, "the chain lowered it meanwhile");
    next(&chain, vec![signed(1, 1, vec![op(&RollBack { bundle })])]);
    let receipt = &chain.receipts(chain.height()).unwrap()[0];
    assert!(!receipt.succeeded(), "{receipt:?}");
    history_holds(&chain);
}

/// spec: EXEC-23. A program with rules from a height on runs the history of one that did not have them yet, also where somebody
/// called a function before it was there, and both change at the block that was agreed on.
#[test]
fn rules_change_at_a_height_and_history_stays() {
    let (files, kv) = (MemoryFiles::new(), Arc::new(MemoryKv::new()));
    let mut before = Registry::new();
    before.begin_block::<Market, Decay>().register::<Market, Offer>();
    let store = Store::create(Arc::new(files.clone()), options()).unwrap();
    let chain: Chain = Ledger::create(store, kv.clone(), before, &genesis(), PoolLimits::default()).unwrap();
    next(&chain, vec![signed(1, 0, vec![offer(1, 100, 0)])]);
    let early = signed(2, 0, vec![op(&FasterDecay)]);
    next(&chain, vec![early.clone()]);
    next(&chain, vec![]);
    assert_eq!((price(&chain, 1), chain.height()), (98, Height(3)));
    let root = chain.root();
    drop(chain);

    let mut after = Registry::new();
    after.register::<Market, Offer>();
    after.during(..Height(6), |registry| {
        registry.begin_block::<Market, Decay>();
    });
    after.during(Height(6).., |registry| {
        registry.begin_block::<Market, FasterDecay>().register::<Market, FasterDecay>();
    });
    let store = Store::open(Arc::new(files), options()).unwrap();
    let chain: Chain = Ledger::open(store, kv, after, PoolLimits::default()).unwrap();
    assert_eq!(chain.root(), root);
    history_holds(&chain);
    let lowered: Vec<u64> = (4..8)
        .map(|_| {
            next(&chain, vec![]);
            price(&chain, 1)
        })
        .collect();
    assert_eq!((lowered, chain.height()), (vec![97, 96, 86, 76], Height(7)));
    next(&chain, vec![early]);
    assert_eq!(price(&chain, 1), 56, "by the chain, and by whoever calls it now");
    history_holds(&chain);
    // What is kept says the same of itself to whoever decodes it.
    let kept = chain.continuations(Height(8)).unwrap();
    assert_eq!(Vec::<Continuation>::from_bytes(&kept.to_bytes()).unwrap(), kept);
}
