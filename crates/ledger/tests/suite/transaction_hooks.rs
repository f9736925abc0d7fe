//! What a chain does by itself around transactions: fees, and who is let in.

use crate::hooks::history_holds_from;
use crate::tools::*;
use keelstone_codec::{Decode as _, Encode as _, Height, OrderedKey as _, Timestamp};
use keelstone_execution::{
    Batching, BlockContext, BlockDraft, Bundle, Context, Denied, Draft, Function, Item, Map, Mode, Operation,
    PublicKey, Registry, Session, SessionId, TRANSACTION_HOOK_GAS_MAX, Transition, View, When, denied, ensure, event,
    namespace, transition,
};
use keelstone_ledger::{
    AuditEvent, Block, BundleProof, ChangedBy, Continuation, Executed, ForesightError, Genesis, Ledger, PoolLimits,
    Progress, Refusal, Refused, SignedTransaction, Verdict, Witness, execute,
};
use keelstone_store::kv::MemoryKv;
use keelstone_tree::{Blake3, MemoryTree};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Calls of `Pay`, whether it is async, and what became of it.
type Heard = (u32, bool, Option<(bool, u64)>);

#[namespace("bank")]
struct Bank {
    balances: Map<PublicKey, u64>,
    /// What was paid, by who paid it: one entry for all would keep transactions from running side by side.
    paid: Map<PublicKey, u64>,
    /// How hooks behave.
    mood: Item<u8>,
    /// Where a hook writes much.
    marks: Map<u64, Vec<u8>>,
    /// What hooks heard of the last transaction of a key.
    heard: Map<PublicKey, Heard>,
}

#[event("bank.charged")]
struct Charged {
    amount: u64,
}

const BASE: u64 = 100;
const PANICS: u8 = 1;
const SPINS: u8 = 2;
const FAILS_AFTER: u8 = 3;
const SWELLS: u8 = 4;
const CLOSED: u8 = 5;

impl Bank {
    fn charge(&mut self, who: PublicKey, amount: u64) -> Result<(), Denied> {
        let balance = self.balances.get(&who)?.unwrap_or_default();
        let left = balance.checked_sub(amount).ok_or_else(|| denied!("{amount} is due, {balance} is there"))?;
        self.balances.insert(&who, &left)?;
        let paid = self.paid.get(&who)?.unwrap_or_default();
        Ok(self.paid.insert(&who, &(paid + amount))?)
    }
}

/// Pays from the sender to another; denied where there is too little.
#[transition("bank.pay/1")]
struct Pay {
    to: PublicKey,
    amount: u64,
}

impl Transition<Bank> for Pay {
    type Output = ();
    fn apply(&self, bank: &mut Draft<Bank>, cx: &mut Context) -> Result<(), Denied> {
        let balance = bank.balances.get(&cx.sender())?.unwrap_or_default();
        ensure!(balance >= self.amount, "too little");
        bank.balances.insert(&cx.sender(), &(balance - self.amount))?;
        let other = bank.balances.get(&self.to)?.unwrap_or_default();
        Ok(bank.balances.insert(&self.to, &(other + self.amount))?)
    }
}

#[transition("bank.mood/1")]
struct Mood {
    is: u8,
}

impl Transition<Bank> for Mood {
    type Output = ();
    fn apply(&self, bank: &mut Draft<Bank>, _: &mut Context) -> Result<(), Denied> {
        Ok(bank.mood.set(&self.is)?)
    }
}

/// Asks for what only hooks are told.
#[transition("bank.nosy/1")]
struct Nosy;

impl Transition<Bank> for Nosy {
    type Output = bool;
    fn apply(&self, _: &mut Draft<Bank>, cx: &mut Context) -> Result<bool, Denied> {
        Ok(cx.transaction().is_ok())
    }
}

/// Lets nobody in while the bank is closed.
#[transition("bank.gate/1")]
struct Gate;

impl Transition<Bank> for Gate {
    type Output = ();
    fn apply(&self, bank: &mut Draft<Bank>, _: &mut Context) -> Result<(), Denied> {
        ensure!(bank.mood.get_or_default()? != CLOSED, "it is closed");
        Ok(())
    }
}

/// Counts who comes in, in the place of the mood.
#[transition("bank.count/1")]
struct Count;

impl Transition<Bank> for Count {
    type Output = ();
    fn apply(&self, bank: &mut Draft<Bank>, _: &mut Context) -> Result<(), Denied> {
        let counted = bank.mood.get_or_default()?;
        Ok(bank.mood.set(&(counted + 10))?)
    }
}

/// Lets in two, and somebody in particular not at all.
#[transition("bank.turn_away/1")]
struct TurnAway;

impl Transition<Bank> for TurnAway {
    type Output = ();
    fn apply(&self, bank: &mut Draft<Bank>, cx: &mut Context) -> Result<(), Denied> {
        ensure!(cx.sender() != key(9).public() && bank.mood.get_or_default()? <= 20, "not today");
        Ok(())
    }
}

/// The fee that is due beforehand: so much for a transaction, and one for each operation.
#[transition("bank.charge/1")]
struct Charge;

impl Transition<Bank> for Charge {
    type Output = u64;
    fn apply(&self, bank: &mut Draft<Bank>, cx: &mut Context) -> Result<u64, Denied> {
        match bank.mood.get_or_default()? {
            PANICS => panic!("no fee today"),
            SPINS => loop {
                cx.step(100_000)?;
            },
            SWELLS => (0..20).try_for_each(|at: u64| bank.marks.insert(&at, &vec![7; 4_000]))?,
            _ => {}
        }
        let heard = cx.transaction()?;
        assert!(heard.ended.is_none() && heard.sender == cx.sender() && heard.bytes > 100);
        let (amount, noted) = (BASE + u64::from(heard.operations), (heard.calls::<Pay>(), heard.is_async, None));
        bank.charge(cx.sender(), amount)?;
        bank.heard.insert(&cx.sender(), &noted)?;
        cx.emit(&Charged { amount })?;
        Ok(amount)
    }
}

/// Gas that costs a coin.
const COIN_GAS: u64 = 10_000;

/// What the gas came to, as far as there is something.
#[transition("bank.settle/1")]
struct Settle;

impl Transition<Bank> for Settle {
    type Output = ();
    fn apply(&self, bank: &mut Draft<Bank>, cx: &mut Context) -> Result<(), Denied> {
        let ended = cx.transaction()?.ended.expect("it ran");
        let amount = (ended.gas_used / COIN_GAS).min(bank.balances.get(&cx.sender())?.unwrap_or_default());
        bank.charge(cx.sender(), amount)?;
        let noted = bank.heard.get(&cx.sender())?.unwrap_or_default();
        bank.heard.insert(&cx.sender(), &(noted.0, noted.1, Some((ended.succeeded, ended.gas_used))))?;
        ensure!(bank.mood.get_or_default()? != FAILS_AFTER, "it is not settled");
        Ok(())
    }
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<Bank, Pay>().register::<Bank, Mood>().register::<Bank, Nosy>().event::<Charged>();
    registry.before_transaction::<Bank, Charge>().after_transaction::<Bank, Settle>();
    registry.check().unwrap();
    registry
}

/// A chain on which the people from 1 to 40 have a thousand each.
fn genesis() -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    (genesis.limits.bundle_gas_max, genesis.limits.continuation_gas_max) = (40_000_000, 100_000_000);
    let functions = Registry::new();
    let block = BlockContext {
        chain_id: chain_id(),
        height: Height(0),
        time: Timestamp(0),
        proposer: proposer(),
        seed: keelstone_codec::Hash::ZERO,
    };
    let mut draft = BlockDraft::begin(&functions, MemoryTree::<Blake3>::new(), block);
    for person in 1..=40 {
        draft.edit(|bank: &mut Bank| bank.balances.insert(&key(person).public(), &1_000)).unwrap();
    }
    for (namespace, key, change) in draft.finish().iter() {
        genesis.state.insert((namespace.clone(), key.clone()), change.after.clone().unwrap());
    }
    genesis
}

fn bank(registry: Registry) -> Chain {
    Ledger::create(store(), Arc::new(MemoryKv::new()), registry, &genesis(), PoolLimits::default()).unwrap()
}

fn look<T>(chain: &Chain, look: impl FnOnce(&Bank) -> T) -> T {
    look(&View::<Bank>::over(chain.view()))
}

fn balance(chain: &Chain, person: u8) -> u64 {
    look(chain, |bank| bank.balances.get(&key(person).public()).unwrap().unwrap_or_default())
}

fn paid(chain: &Chain, person: u8) -> u64 {
    look(chain, |bank| bank.paid.get(&key(person).public()).unwrap().unwrap_or_default())
}

fn heard(chain: &Chain, person: u8) -> Heard {
    look(chain, |bank| bank.heard.get(&key(person).public()).unwrap().unwrap())
}

fn pay(to: u8, amount: u64) -> Operation {
    op(&Pay { to: key(to).public(), amount })
}

/// The next block, as another engine would have it: whatever is in it.
fn next(chain: &Chain, transactions: Vec<SignedTransaction>) -> Vec<Continuation> {
    let height = chain.height().next();
    let block = Block { height, time: Timestamp(height.0 * 1_000), proposer: proposer(), transactions };
    chain.commit(chain.run(block, Refused::Receipt).unwrap()).unwrap().continuations.clone()
}

/// spec: EXEC-25, BLOCK-9, TX-10. What is due before a transaction is taken whether it takes effect or fails, and what it used is
/// settled after it; the record certifies both, and whatever runs the history again comes to the same.
#[test]
fn a_fee_is_paid_whatever_becomes_of_the_transaction() {
    let chain = bank(registry());
    let good = signed(1, 0, vec![pay(2, 5), pay(3, 6)]);
    let bad = signed(2, 0, vec![pay(1, 1), pay(1, 1_000_000)]);
    let made = next(&chain, vec![good.clone(), bad.clone()]);
    let receipts = chain.receipts(chain.height()).unwrap();
    assert!(receipts[0].succeeded() && matches!(receipts[1].verdict, Verdict::Failed(_)), "{receipts:?}");
    let (before, after) = (When::BeforeTransaction.bundle(), When::AfterTransaction.bundle());
    let told: Vec<_> = made.iter().map(|one| (one.bundle, one.by)).collect();
    let expected = [(before, good.id()), (after, good.id()), (before, bad.id()), (after, bad.id())];
    assert_eq!(told, expected.map(|(bundle, id)| (bundle, Some(id))));
    assert_eq!(u64::from_bytes(&made[0].operations()[0].result).unwrap(), BASE + 2);
    assert_eq!(made[0].events().count(), 1);
    for (person, receipt, succeeded) in [(1, &receipts[0], true), (2, &receipts[1], false)] {
        assert_eq!(heard(&chain, person), (2, false, Some((succeeded, receipt.gas_used))));
        assert_eq!(paid(&chain, person), BASE + 2 + receipt.gas_used / COIN_GAS);
    }
    assert_eq!(balance(&chain, 1), 1_000 - 11 - paid(&chain, 1));
    assert_eq!(balance(&chain, 2), 1_000 + 5 - paid(&chain, 2), "of what failed the fee alone stays");
    let record = chain.header(chain.height()).unwrap().record.unwrap();
    assert_eq!((record.transactions, record.continuations), (2, 4));
    // In a session of the chain for each account, whose links go on from block to block.
    let id = SessionId::of_hooks(&chain_id(), &key(1).public());
    assert!(made[..2].iter().all(|one| one.session == id));
    next(&chain, vec![signed(1, 1, vec![pay(2, 1)])]);
    let session =
        |id: &SessionId| View::<keelstone_execution::Sessions>::over(chain.view()).records.get(id).unwrap().unwrap();
    let Session { owner, sequence, .. } = session(&id);
    assert_eq!((owner, sequence), (PublicKey::CHAIN, 4));
    assert_eq!(session(&SessionId::root(&chain_id(), &key(1).public())).sequence, 3, "its own is its own");
    // Nobody acts in it, and nobody calls what is there for the chain alone.
    for (session, code) in [(Some(id), 15), (Some(SessionId::of_hooks(&chain_id(), &key(9).public())), 15), (None, 13)]
    {
        let mut tried = unsigned(9, 0, vec![if session.is_some() { pay(1, 1) } else { op(&Charge) }]);
        tried.session = session;
        assert_eq!(chain.submit(&tried.sign(&key(9)).to_bytes()).unwrap_err().code(), code);
    }
    next(&chain, vec![signed(4, 0, vec![op(&Nosy)])]);
    assert!(
        matches!(&chain.receipts(chain.height()).unwrap()[0].verdict, Verdict::Failed(failure) if failure.code == 5)
    );
    history_holds_from(&chain, &genesis());
    let logged = chain.audit_records(0, usize::MAX, &|_| true).unwrap().0;
    let by_chain = logged.iter().filter(|logged| {
        matches!(&logged.record.event, AuditEvent::Operation(operation)
            if operation.sender == PublicKey::CHAIN && operation.function == Charge::hash())
    });
    assert_eq!(by_chain.count(), 4);
    // Who changed a balance, in order.
    let mut place = keelstone_execution::entry_prefix("balances");
    key(1).public().encode_key(&mut place);
    let (space, place) = (keelstone_codec::Namespace::new("bank").unwrap(), keelstone_codec::Key::new(place).unwrap());
    let found = chain.key_history(&space, &place, Height(1)..=Height(1), 9).unwrap();
    let ChangedBy::Operations(by) = &found.changes[0].by else { panic!("{:?}", found.changes[0].by) };
    let functions = by.iter().map(|(_, logged)| match &logged.as_ref().unwrap().record.event {
        AuditEvent::Operation(operation) => operation.function,
        other => panic!("{other:?}"),
    });
    assert_eq!(functions.collect::<Vec<_>>(), [Charge::hash(), Pay::hash(), Pay::hash(), Settle::hash()]);
}

/// spec: EXEC-25, HISTORY-10. What was done around one transaction of many is proven by itself.
#[test]
fn a_fee_is_proven_by_itself() {
    let chain = bank(registry());
    let sent: Vec<_> = (1..=3).map(|person| signed(person, 0, vec![pay(9, 1)])).collect();
    next(&chain, sent.clone());
    for (person, transaction) in (1..).zip(&sent) {
        for (when, function) in [(When::BeforeTransaction, Charge::hash()), (When::AfterTransaction, Settle::hash())] {
            let proof = chain.hook_proof(Height(1), when, Some(transaction.id()), 0).unwrap().unwrap();
            proof.verify::<Blake3>().unwrap();
            assert_eq!((proof.together.bundle(), proof.together.by()), (when.bundle(), Some(transaction.id())));
            assert_eq!(proof.operation.function, function);
            assert_eq!(proof.together.session(), SessionId::of_hooks(&chain_id(), &key(person).public()));
        }
        assert!(chain.hook_proof(Height(1), When::BeforeTransaction, Some(transaction.id()), 1).unwrap().is_none());
    }
    assert!(chain.hook_proof(Height(1), When::BeforeTransaction, None, 0).unwrap().is_none());
}

/// spec: TX-10, TX-5, POOL-4. Who does not pay is refused when the transaction arrives and in its block: nothing of it stays, its
/// nonce included.
#[test]
fn who_cannot_pay_is_not_let_in() {
    let chain = bank(registry());
    let poor = signed(50, 0, vec![pay(1, 0)]);
    let refusal = chain.submit(&poor.to_bytes()).unwrap_err();
    assert!(matches!(&refusal, Refusal::Hook { function, .. } if function == "bank.charge/1") && refusal.code() == 19);
    assert_eq!(refusal.to_string(), "bank.charge/1 does not let it in: denied: 101 is due, 0 is there");
    assert!(matches!(
        chain.dry_run(&poor.transaction, Timestamp(9)),
        Err(ForesightError::Refused(Refusal::Hook { .. }))
    ));
    // An engine that has it in a block all the same gets a receipt for it, and nothing else changes but what a block writes.
    assert!(next(&chain, vec![poor]).is_empty());
    let receipts = chain.receipts(chain.height()).unwrap();
    assert!(matches!(&receipts[0].verdict, Verdict::Refused { code: 19, reason } if reason.ends_with("0 is there")));
    assert_eq!(chain.next_nonce(&key(50).public()).unwrap(), Some(0));
    history_holds_from(&chain, &genesis());

    // Enough for the first of two: both are let in to wait, one pays, and the other goes.
    next(&chain, vec![signed(1, 0, vec![pay(51, 150)])]);
    for nonce in 0..2 {
        chain.submit(&signed(51, nonce, vec![pay(1, 0)]).to_bytes()).unwrap();
    }
    assert_eq!(chain.pool().count, 2);
    let made = chain.produce(Timestamp(100_000), proposer()).unwrap();
    assert_eq!((made.block.transactions.len(), chain.pool().count), (1, 0));
    assert_eq!(chain.next_nonce(&key(51).public()).unwrap(), Some(1));
    assert_eq!(paid(&chain, 51) + balance(&chain, 51), 150);
}

/// spec: LEDGER-6, TX-10. Whoever proposes a block has nobody in it who cannot pay behind the others there: a deposit for one transaction
/// gets nobody the room of many.
#[test]
fn a_proposal_has_nobody_in_it_who_cannot_pay() {
    let chain = bank(registry());
    next(&chain, vec![signed(1, 0, vec![pay(51, 250)])]);
    // Each is let in to wait, for the last state has enough for each by itself. Of the poor one's the first two can be paid.
    let of = |person: u8, nonces: std::ops::Range<u64>| nonces.map(move |nonce| signed(person, nonce, vec![pay(9, 0)]));
    let sent: Vec<_> = of(51, 0..5).chain(of(2, 0..2)).chain(of(50, 0..1)).chain(of(2, 2..3)).collect();
    for transaction in &sent[..7] {
        chain.submit(&transaction.to_bytes()).unwrap();
    }
    let bytes: Vec<_> = sent.iter().map(|transaction| transaction.to_bytes()).collect();
    let all: Vec<_> = bytes.iter().map(|bytes| &bytes[..]).collect();
    let chosen = chain.choose(&all, usize::MAX, 6).unwrap();
    assert_eq!(chosen, [0, 1, 5, 6, 8]);
    let room = bytes[..2].iter().map(|bytes| bytes.len() + 6).sum::<usize>() + bytes[5].len() + 6;
    assert_eq!(chain.choose(&all, room, 6).unwrap(), [0, 1, 5], "whoever is left out takes no room");
    assert_eq!((paid(&chain, 51), paid(&chain, 2)), (0, 0), "asking costs nobody anything");
    next(&chain, chosen.into_iter().map(|at| sent[at].clone()).collect());
    let receipts = chain.receipts(chain.height()).unwrap();
    assert!(receipts.len() == 5 && receipts.iter().all(keelstone_ledger::Receipt::succeeded), "{receipts:?}");
    // What would have been in it otherwise pays nothing, and has its room all the same.
    next(&chain, sent[2..5].to_vec());
    let receipts = chain.receipts(chain.height()).unwrap();
    assert!(receipts.iter().all(|receipt| matches!(receipt.verdict, Verdict::Refused { .. })), "{receipts:?}");
}

/// spec: LEDGER-6, EXEC-25. What an earlier hook wrote for somebody whom a later one keeps out is not there for those behind.
#[test]
fn who_is_left_out_of_a_proposal_leaves_nothing_behind() {
    let mut registry = registry();
    registry.before_transaction::<Bank, Count>().before_transaction::<Bank, TurnAway>();
    let chain = bank(registry);
    let sent = [9, 1, 2, 3].map(|person| signed(person, 0, vec![pay(8, 0)]).to_bytes());
    let all = sent.each_ref().map(|bytes| &bytes[..]);
    assert_eq!(chain.choose(&all, usize::MAX, 6).unwrap(), [1, 2]);
}

/// spec: LEDGER-6, BLOCK-2. Whoever proposes asks no more hooks than a block would call: their gas ends the choice as it ends a block,
/// also that of hooks which keep somebody out.
#[test]
fn asking_hooks_for_a_proposal_costs_no_more_than_a_block() {
    let chain = bank(registry());
    let made = next(&chain, vec![signed(1, 0, vec![pay(9, 0)])]);
    let asked = made.iter().find(|one| one.bundle == When::BeforeTransaction.bundle()).unwrap().gas_used;
    let bytes =
        |people: std::ops::RangeInclusive<u8>| people.map(|person| signed(person, 0, vec![pay(9, 0)]).to_bytes());
    let (good, poor): (Vec<_>, Vec<_>) = (bytes(1..=9).collect(), bytes(60..=60).collect());
    let chosen = |gas: u64, all: &[&[u8]]| {
        let mut tight = genesis();
        tight.limits.continuation_gas_max = 1;
        tight.limits.block_gas_max = tight.limits.bundle_gas_max + gas;
        let chain: Chain =
            Ledger::create(store(), Arc::new(MemoryKv::new()), registry(), &tight, PoolLimits::default()).unwrap();
        chain.choose(all, usize::MAX, 6).unwrap()
    };
    let good: Vec<_> = good.iter().map(|bytes| &bytes[..]).collect();
    // One more may begin as long as the limit is not passed.
    assert_eq!(chosen(3 * asked, &good), [0, 1, 2, 3]);
    assert_eq!(chosen(3 * asked - 1, &good), [0, 1, 2]);
    let behind_a_poor_one = [&poor[0], good[0]];
    assert_eq!(chosen(asked, &behind_a_poor_one), [1]);
    assert!(chosen(1, &behind_a_poor_one).is_empty());
}

/// spec: EXEC-25, TX-10. Whom a later hook keeps out has paid nothing to the one before it.
#[test]
fn who_is_not_let_in_pays_nothing() {
    let charge_first = || {
        let mut registry = registry();
        registry.before_transaction::<Bank, Gate>();
        registry
    };
    let gate_first = || {
        let mut registry = Registry::new();
        registry.register::<Bank, Pay>().register::<Bank, Mood>().event::<Charged>();
        registry.before_transaction::<Bank, Gate>().before_transaction::<Bank, Charge>();
        registry
    };
    for registry in [charge_first(), gate_first()] {
        registry.check().unwrap();
        who_meets_a_closed_gate_pays_nothing(&bank(registry));
    }
}

fn who_meets_a_closed_gate_pays_nothing(chain: &Chain) {
    let made = next(chain, vec![signed(1, 0, vec![op(&Mood { is: CLOSED })]), signed(2, 0, vec![pay(1, 7)])]);
    let receipts = chain.receipts(chain.height()).unwrap();
    assert!(receipts[0].succeeded());
    let Verdict::Refused { code: 19, reason } = &receipts[1].verdict else { panic!("{receipts:?}") };
    assert_eq!(reason.to_string(), "bank.gate/1 does not let it in: denied: it is closed");
    assert!(made.iter().all(|batch| batch.by != Some(receipts[1].transaction)), "{made:?}");
    assert_eq!((balance(chain, 2), paid(chain, 2)), (1_000, 0));
    assert!(paid(chain, 1) > BASE);
    assert_eq!(chain.next_nonce(&key(2).public()).unwrap(), Some(0));
    history_holds_from(chain, &genesis());
}

/// spec: BLOCK-2, BLOCK-9, EXEC-25. What hooks around a transaction use is of the block's gas.
#[test]
fn the_gas_of_hooks_is_the_blocks() {
    let chain = bank(registry());
    let around: u64 = next(&chain, vec![signed(1, 0, vec![pay(2, 5)])]).iter().map(|made| made.gas_used).sum();
    let own = chain.receipts(chain.height()).unwrap()[0].gas_used;
    assert!(around > 1);
    for (less, is_let_in) in [(0, true), (1, false)] {
        let mut tight = genesis();
        tight.limits.continuation_gas_max = 1;
        tight.limits.block_gas_max = tight.limits.bundle_gas_max + own + around - less;
        let chain: Chain =
            Ledger::create(store(), Arc::new(MemoryKv::new()), registry(), &tight, PoolLimits::default()).unwrap();
        next(&chain, vec![signed(1, 0, vec![pay(2, 5)]), signed(3, 0, vec![pay(2, 5)])]);
        let receipts = chain.receipts(chain.height()).unwrap();
        assert_eq!((receipts[0].succeeded(), receipts[1].succeeded()), (true, is_let_in), "{receipts:?}");
        let code = Refusal::BlockFull { gas_used: 0 }.code();
        let is_full = matches!(receipts[1].verdict, Verdict::Refused { code: found, .. } if found == code);
        assert_eq!(is_full, !is_let_in);
    }
}

/// spec: EXEC-25. A hook that breaks keeps everybody out before, and leaves what has happened after; it has little gas in either place.
#[test]
fn a_hook_that_breaks_is_told_and_bounded() {
    for (mood, said) in [(PANICS, "panicked"), (SPINS, "out of gas: the limit is 10000000"), (SWELLS, "65536")] {
        let chain = bank(registry());
        next(&chain, vec![signed(1, 0, vec![op(&Mood { is: mood })])]);
        let refusal = chain.submit(&signed(2, 0, vec![pay(1, 1)]).to_bytes()).unwrap_err();
        assert!(refusal.code() == 19 && refusal.to_string().contains(said), "{refusal}");
        next(&chain, vec![signed(2, 0, vec![pay(1, 1)])]);
        assert!(matches!(chain.receipts(chain.height()).unwrap()[0].verdict, Verdict::Refused { code: 19, .. }));
    }
    let chain = bank(registry());
    let made = next(&chain, vec![signed(1, 0, vec![op(&Mood { is: FAILS_AFTER })]), signed(2, 0, vec![pay(3, 7)])]);
    assert_eq!((balance(&chain, 3), paid(&chain, 2)), (1_007, BASE + 1), "what it wrote before it failed is not there");
    for after in [&made[1], &made[3]] {
        let Progress::Stopped(failure) = &after.progress else { panic!("{after:?}") };
        assert_eq!((failure.code, failure.function), (3, Settle::hash()));
    }
    assert!(chain.receipts(chain.height()).unwrap().iter().all(|receipt| receipt.succeeded()));
    let most = registry().hooks().map(|(_, entry)| entry.gas_max).min().unwrap();
    assert!(most > TRANSACTION_HOOK_GAS_MAX && made.iter().all(|one| one.gas_used <= TRANSACTION_HOOK_GAS_MAX));
    history_holds_from(&chain, &genesis());
}

/// spec: EXEC-25. An async bundle is charged once, when it is taken in.
#[test]
fn an_async_bundle_pays_when_it_is_taken_in() {
    let chain = bank(registry());
    let operations = vec![pay(2, 1), pay(2, 1), pay(2, 1)];
    let mut submitted = unsigned(1, 0, operations.clone());
    let borders = keelstone_codec::BoundedSet::new([1, 2]).unwrap();
    let mode = Mode::Async(Batching { borders, ..Batching::until(Height(1_000)) });
    submitted.bundle = Bundle::new(mode, operations).unwrap();
    next(&chain, vec![submitted.sign(&key(1))]);
    let noted = heard(&chain, 1);
    assert!(matches!(noted, (3, true, Some((true, _)))), "{noted:?}");
    let fee = paid(&chain, 1);
    while chain.has_due_work().unwrap() {
        assert!(next(&chain, vec![]).iter().all(|one| When::of(&one.bundle).is_none()));
    }
    assert_eq!((balance(&chain, 1), paid(&chain, 1)), (1_000 - 3 - fee, fee));
    history_holds_from(&chain, &genesis());
}

/// spec: EXEC-25, EXEC-15. Around transactions that are run side by side: the same on any number of threads, and what was run
/// beforehand is of use, since accounts share nothing by being charged.
#[test]
fn transactions_with_hooks_run_side_by_side() {
    let told = |executed: &Executed| {
        let Executed { block, receipts, continuations, changes, record, audit, .. } = executed;
        format!("{block:?}{receipts:?}{continuations:?}{changes:?}{record:?}{audit:?}")
    };
    let mut chain = bank(registry());
    for height in 1..4u64 {
        // The poor fall out on the way, and some pay each other.
        let transactions = (1..=40u8).map(|person| {
            let to = if person % 5 == 0 { 1 + person % 7 } else { person + 100 };
            signed(person, height - 1, vec![pay(to, u64::from(person) * 8), pay(to, 1)])
        });
        let (height, transactions) = (Height(height), transactions.collect());
        let block = Block { height, time: Timestamp(height.0 * 1_000), proposer: proposer(), transactions };
        let view = chain.view();
        let root = view.root();
        let expected = execute(chain.registry(), view, root, block.clone(), Refused::Receipt).unwrap();
        let mut last = None;
        for threads in [1, 2, 8] {
            chain = chain.on_threads(NonZeroUsize::new(threads).unwrap());
            let pending = last.insert(chain.run(block.clone(), Refused::Receipt).unwrap());
            assert_eq!(told(pending.executed()), told(&expected), "{threads} threads");
            let beforehand = pending.executed().beforehand;
            assert!(threads == 1 || beforehand.taken * 2 > 40, "{beforehand:?}");
        }
        chain.commit(last.unwrap()).unwrap();
    }
    history_holds_from(&chain, &genesis());
}

/// spec: EXEC-25, HISTORY-8. What is foreseen has what the chain does around the transaction in it, also over a witness.
#[test]
fn what_is_foreseen_has_the_fee_in_it() {
    let chain = bank(registry());
    let transaction = signed(1, 0, vec![pay(2, 5)]);
    let (_, foreseen) = chain.dry_run(&transaction.transaction, Timestamp(1_000)).unwrap();
    let Witness { setting, proof } = chain.witness(&transaction.transaction, Timestamp(1_000)).unwrap();
    let witness = keelstone_codec::Blob::new(proof).unwrap();
    let proof = BundleProof::make::<Blake3>(chain.registry(), setting, transaction.clone(), witness).unwrap();
    proof.verify::<Blake3>(chain.registry()).unwrap();
    assert_eq!(proof.receipt, foreseen.receipt);
    let made = next(&chain, vec![transaction]);
    assert_eq!((made, chain.receipts(Height(1)).unwrap()), (foreseen.continuations, vec![foreseen.receipt]));
}

/// spec: EXEC-25, EXEC-23. Fees may begin at a height.
#[test]
fn fees_begin_at_a_height() {
    let mut functions = Registry::new();
    functions.register::<Bank, Pay>().during(Height(2).., |registry| {
        registry.before_transaction::<Bank, Charge>();
    });
    let chain = bank(functions);
    next(&chain, vec![signed(1, 0, vec![pay(50, 5)])]);
    assert_eq!((balance(&chain, 1), balance(&chain, 50)), (995, 5));
    assert_eq!(chain.submit(&signed(50, 0, vec![pay(1, 1)]).to_bytes()).unwrap_err().code(), 19);
    next(&chain, vec![signed(1, 1, vec![pay(50, 5)])]);
    assert_eq!(balance(&chain, 1), 995 - 5 - BASE - 1);
    history_holds_from(&chain, &genesis());
}
