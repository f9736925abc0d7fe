//! Validators: what a chain under another engine knows of who votes.

use crate::tools::*;
use keelstone_codec::{Encode, Height, Timestamp};
use keelstone_execution::{
    Context, Denied, Draft, Map, Registry, RegistryError, Transition, World, namespace, transition,
};
use keelstone_ledger::modules::validators::{self, ChainSpace, SET_VALIDATOR, SetValidator};
use keelstone_ledger::{
    Block, BlockError, Executed, Genesis, GenesisError, Ledger, LedgerError, POWER_MAX, PoolLimits, Progress,
    PublicKey, Refused, Validator, Validators, ValidatorsError, Verdict,
};
use keelstone_store::kv::MemoryKv;
use std::sync::Arc;

fn validator(person: u8, power: u64) -> Validator {
    Validator { key: key(person).public(), power }
}

fn sorted(mut all: Vec<Validator>) -> Vec<Validator> {
    all.sort_unstable();
    all
}

/// A chain with validators 1, 2 and 3, where person 9 may change them.
fn genesis() -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    genesis.validators = sorted(vec![validator(1, 10), validator(2, 20), validator(3, 30)]);
    genesis.grants.insert(key(9).public(), [SET_VALIDATOR].into());
    genesis
}

fn set(nonce: u64, person: u8, power: u64) -> keelstone_ledger::SignedTransaction {
    signed(9, nonce, vec![op(&SetValidator { key: key(person).public(), power })])
}

/// Runs and commits a block by this proposer.
fn decide(
    chain: &Chain,
    proposer: u8,
    transactions: Vec<keelstone_ledger::SignedTransaction>,
) -> Result<Executed, LedgerError> {
    let height = chain.height().next();
    let time = Timestamp(height.0 * 1_000);
    let block = Block { height, time, proposer: key(proposer).public(), transactions };
    let pending = chain.run(block, Refused::Receipt)?;
    let executed = pending.executed().clone();
    chain.commit(pending)?;
    Ok(executed)
}

fn reason(executed: &Executed) -> String {
    match &executed.receipts[0].verdict {
        Verdict::Failed(failure) => failure.reason.to_string(),
        other => panic!("{other:?}"),
    }
}

/// spec: LEDGER-4, LEDGER-8, GENESIS-2. The first validators are state, so a node without a genesis knows them.
#[test]
fn the_state_says_who_votes() {
    let chain = chain_of(&genesis());
    let read = Validators::read(&chain.view()).unwrap().unwrap();
    assert_eq!(read.active.to_vec(), genesis().validators);
    assert!(read.left.is_empty());
    assert_eq!(Validators::read(&self::chain().view()).unwrap(), None);
    let text = genesis().to_json().to_pretty();
    assert_eq!(Genesis::parse(text.as_bytes()).unwrap(), genesis());
    let hash = |genesis: &Genesis| genesis.first_state().unwrap().hash;
    let other = Genesis { validators: vec![validator(1, 10)], ..genesis() };
    assert_ne!(hash(&genesis()), hash(&other), "who votes is part of what a chain is");
}

/// spec: LEDGER-8, MODULE-7. A block tells the engine what it changed, net: nothing for what it took back.
#[test]
fn a_change_is_told_with_its_block() {
    let chain = chain_of(&genesis());
    let changed = decide(&chain, 1, vec![set(0, 4, 5), set(1, 2, 0), set(2, 3, 31)]).unwrap();
    assert_eq!(changed.validators, sorted(vec![validator(4, 5), validator(2, 0), validator(3, 31)]));
    let read = Validators::read(&chain.view()).unwrap().unwrap();
    assert_eq!(read.active.to_vec(), sorted(vec![validator(1, 10), validator(3, 31), validator(4, 5)]));
    assert_eq!((read.left.to_vec(), read.changed), (vec![key(2).public()], Height(1)));
    let back = decide(&chain, 1, vec![set(3, 4, 6), set(4, 4, 5)]).unwrap();
    assert_eq!(back.validators, vec![]);
    let plain = decide(&chain, 1, vec![signed(5, 0, vec![register("ada")])]).unwrap();
    assert_eq!(plain.validators, vec![]);
}

/// spec: BLOCK-2, LEDGER-8. Changes of block H count from H + 2, so who left with H may make H + 1 and nothing later.
#[test]
fn who_left_may_make_one_more_block() {
    let chain = chain_of(&genesis());
    decide(&chain, 2, vec![set(0, 2, 0)]).unwrap();
    decide(&chain, 2, vec![signed(5, 0, vec![register("ada")])]).unwrap();
    let refused = decide(&chain, 2, vec![]).unwrap_err();
    assert!(matches!(refused, LedgerError::Block(BlockError::Proposer { proposer }) if proposer == key(2).public()));
    let stranger = decide(&chain, 7, vec![]).unwrap_err();
    assert!(matches!(stranger, LedgerError::Block(BlockError::Proposer { .. })));
    decide(&chain, 1, vec![]).unwrap();
}

/// spec: MODULE-7.
#[test]
fn validators_are_changed_by_whoever_was_granted_it_and_never_run_out() {
    let chain = chain_of(&genesis());
    let denied = |transactions| reason(&decide(&chain, 1, transactions).unwrap());
    let stranger = signed(8, 0, vec![op(&SetValidator { key: key(8).public(), power: 1 })]);
    let executed = decide(&chain, 1, vec![stranger]).unwrap();
    assert!(matches!(executed.receipts[0].verdict, Verdict::Refused { code: 14, .. }), "{:?}", executed.receipts);
    assert!(denied(vec![set(0, 5, 0)]).contains("is no validator"));
    assert!(denied(vec![set(1, 5, POWER_MAX)]).contains("together"));
    let small = op(&SetValidator { key: PublicKey(keelstone_codec::Hash::ZERO), power: 1 });
    assert!(denied(vec![signed(9, 2, vec![small])]).contains("small order"));
    decide(&chain, 1, vec![set(3, 2, 0), set(4, 3, 0)]).unwrap();
    assert!(denied(vec![set(5, 1, 0)]).contains("last validator"));

    let mut solo = Genesis::new(chain_id());
    solo.grants.insert(key(9).public(), [SET_VALIDATOR].into());
    let solo = chain_of(&solo);
    let made = block(&solo, &[set(0, 1, 1)]);
    let Verdict::Failed(failure) = &made.receipts[0].verdict else { panic!("{:?}", made.receipts) };
    assert!(failure.reason.contains("makes its own blocks"), "{}", failure.reason);
}

/// spec: GENESIS-1, LEDGER-8.
#[test]
fn a_genesis_with_impossible_validators_is_none() {
    let with = |validators: Vec<Validator>| Genesis { validators, ..genesis() }.first_state().unwrap_err();
    let twice = with(vec![validator(1, 1), validator(1, 2)]);
    assert!(matches!(twice, GenesisError::Validators(ValidatorsError::Key { what: "stands twice", .. })));
    let none = with(vec![validator(1, 0)]);
    assert!(matches!(none, GenesisError::Validators(ValidatorsError::Key { what: "has no power", .. })));
    let much = with(vec![validator(1, POWER_MAX), validator(2, 1)]);
    assert!(matches!(much, GenesisError::Validators(ValidatorsError::TooMuchPower { .. })));
    let both = Genesis { producers: vec![key(1).public()], ..genesis() };
    assert!(matches!(both.first_state(), Err(GenesisError::Invalid { name: "producers", .. })));
    for wrong in [
        r#"{"chain_id":"x","validators":[{"key":"00"}]}"#,
        r#"{"chain_id":"x","validators":[{"power":1}]}"#,
        r#"{"chain_id":"x","validators":[{"key":"00","power":1,"name":"x"}]}"#,
        r#"{"chain_id":"x","validators":{}}"#,
        r#"{"chain_id":"x","limits":{"snapshot_chunk_bytes":1024}}"#,
        r#"{"chain_id":"x","limits":{"snapshot_chunk_bytes":10485761}}"#,
    ] {
        assert!(Genesis::parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

/// spec: LEDGER-6. What is picked for a block can be run: nonces go on from the state, the lowest first, and it fits.
#[test]
fn a_proposal_is_what_goes_on_from_the_state() {
    let chain = chain_of(&genesis());
    let all = [
        signed(5, 1, vec![register("second")]).to_bytes(),
        signed(6, 2, vec![register("after a gap")]).to_bytes(),
        signed(5, 0, vec![register("first")]).to_bytes(),
        signed(7, 0, vec![register("other")]).to_bytes(),
        signed(7, 0, vec![register("same nonce")]).to_bytes(),
        b"no transaction".to_vec(),
    ];
    let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    assert_eq!(chain.choose(&all, usize::MAX, 6).unwrap(), [2, 0, 3]);
    let room = all[2].len() + all[0].len() + 11;
    assert_eq!(chain.choose(&all, room, 6).unwrap(), [2], "each counts with its frame");
    assert_eq!(chain.choose(&all, room + 1, 6).unwrap(), [2, 0]);
    assert_eq!(chain.choose(&all, 0, 6).unwrap(), [0; 0]);
}

#[namespace("stakes")]
struct Stakes {
    /// Powers that are to count from the end of the block on.
    due: Map<PublicKey, u64>,
}

#[derive(World)]
struct Staking {
    stakes: Stakes,
    chain: ChainSpace,
}

#[transition("stakes.put/1")]
struct Put {
    who: PublicKey,
    power: u64,
}

impl Transition<Stakes> for Put {
    type Output = ();

    fn apply(&self, stakes: &mut Draft<Stakes>, _: &mut Context) -> Result<(), Denied> {
        Ok(stakes.due.insert(&self.who, &self.power)?)
    }
}

#[transition("stakes.count/1")]
struct Count;

impl Transition<Staking> for Count {
    type Output = ();

    fn apply(&self, world: &mut Draft<Staking>, cx: &mut Context) -> Result<(), Denied> {
        let due: Vec<(PublicKey, u64)> = world.stakes.due.iter().collect::<Result<_, _>>()?;
        for (who, power) in due {
            world.chain.set_power(who, power, cx)?;
            world.stakes.due.remove(&who)?;
        }
        Ok(())
    }
}

/// spec: MODULE-7, EXEC-23, LEDGER-8. Who votes may be what an application's own hook makes of its stakes; what it cannot be is
/// refused as to anybody, and the set stays.
#[test]
fn a_hook_of_an_application_decides_who_votes() {
    let mut registry = Registry::new();
    registry.register::<Stakes, Put>().end_block::<Staking, Count>();
    let closed = registry.check().unwrap_err();
    assert!(matches!(closed, RegistryError::Reserved { name: "chain", .. }), "{closed}");
    validators::register(&mut registry);
    registry.check().expect("the module opens it, in whatever order they are registered");

    let (kv, limits) = (Arc::new(MemoryKv::new()), PoolLimits::default());
    let chain: Chain = Ledger::create(store(), kv, registry, &genesis(), limits).unwrap();
    let put = |nonce, person: u8, power| signed(9, nonce, vec![op(&Put { who: key(person).public(), power })]);
    let changed = decide(&chain, 1, vec![put(0, 4, 5), put(1, 2, 0)]).unwrap();
    assert_eq!(changed.validators, sorted(vec![validator(4, 5), validator(2, 0)]));
    let now = sorted(vec![validator(1, 10), validator(3, 30), validator(4, 5)]);
    assert_eq!(Validators::read(&chain.view()).unwrap().unwrap().active.to_vec(), now);

    let refused = decide(&chain, 1, vec![put(2, 4, 9), put(3, 5, POWER_MAX)]).unwrap();
    let [hook] = &refused.continuations[..] else { panic!("{:?}", refused.continuations) };
    let Progress::Stopped(failure) = &hook.progress else { panic!("{hook:?}") };
    assert!(failure.reason.contains("together"), "{}", failure.reason);
    assert_eq!(refused.validators, vec![], "all of it or nothing");
    assert_eq!(Validators::read(&chain.view()).unwrap().unwrap().active.to_vec(), now);

    // Nor does a chain vote itself away: what was wished before stands in the way of nothing once it is taken back.
    let nobody = [1, 3, 4, 5].map(|person| op(&Put { who: key(person).public(), power: 0 }));
    let refused = decide(&chain, 1, vec![signed(9, 4, nobody.to_vec())]).unwrap();
    let [hook] = &refused.continuations[..] else { panic!("{:?}", refused.continuations) };
    let Progress::Stopped(failure) = &hook.progress else { panic!("{hook:?}") };
    assert!(failure.reason.contains("validator"), "{}", failure.reason);
    assert_eq!(Validators::read(&chain.view()).unwrap().unwrap().active.to_vec(), now);
}
