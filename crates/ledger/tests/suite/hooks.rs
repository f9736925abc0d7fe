//! What a chain does by itself in its blocks, and rules that change at a height.

use crate::tools::*;
use keelstone_codec::{Decode as _, Encode as _, Height, Timestamp};
use keelstone_execution::bundles::{RollBack, Status};
use keelstone_execution::{
    Batching, Bundle, Context, Denied, Draft, Function, Item, Map, Mode, Operation, PublicKey, Registry, SessionId,
    Transition, When, denied, namespace, transition,
};
use keelstone_ledger::{
    AuditEvent, AuditWalk, Block, ChangedBy, Continuation, Executed, Genesis, KeyError, Ledger, PoolLimits, Progress,
    Refused, Signature, SignedTransaction, Until, Verdict, check_key, execute, verify_transition,
};
use keelstone_store::Store;
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::MemoryKv;
use keelstone_tree::Blake3;
use std::num::NonZeroUsize;
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
