//! What the tests share: keys, a chain in memory, and signed transactions.

use keelstone_codec::{BoundedSet, Fixed, Text};
use keelstone_codec::{ChainId, Encode, Height, Timestamp};
use keelstone_execution::bundles::{BundleId, RollBack};
use keelstone_execution::{Batching, Bundle, Function, Mode, Operation};
use keelstone_ledger::modules::{agents, memes, social, standard};
use keelstone_ledger::{
    Committed, Genesis, Ledger, PoolLimits, PublicKey, Receipt, SecretKey, SignedTransaction, Transaction,
};
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::MemoryKv;
use keelstone_store::{Options, Store};
use keelstone_tree::Blake3;
use std::sync::Arc;

pub(crate) type Chain = Ledger<Blake3>;

/// The key of the person with this number.
pub(crate) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

pub(crate) fn chain_id() -> ChainId {
    ChainId::new("test-1").unwrap()
}

pub(crate) fn options() -> Options {
    // Little in memory: each of some thousand stores would take all of it anew.
    let value_cache_bytes = 8 << 20;
    Options {
        segment_bytes: 1 << 20,
        page_segment_bytes: 1 << 20,
        value_cache_bytes,
        background: false,
        ..Options::default()
    }
}

pub(crate) fn store() -> Store<Blake3> {
    Store::create(Arc::new(MemoryFiles::new()), options()).unwrap()
}

/// A chain in memory with this genesis.
pub(crate) fn chain_of(genesis: &Genesis) -> Chain {
    Ledger::create(store(), Arc::new(MemoryKv::new()), standard(), genesis, PoolLimits::default()).unwrap()
}

/// A chain in memory with nothing special about it.
pub(crate) fn chain() -> Chain {
    chain_of(&Genesis::new(chain_id()))
}

/// A transaction of the person's root session.
pub(crate) fn unsigned(person: u8, nonce: u64, operations: Vec<Operation>) -> Transaction {
    Transaction {
        chain_id: chain_id(),
        sender: key(person).public(),
        nonce,
        expiry_height: Height(100_000),
        session: None,
        bundle: Bundle::new(Mode::Sync, operations).unwrap(),
    }
}

pub(crate) fn signed(person: u8, nonce: u64, operations: Vec<Operation>) -> SignedTransaction {
    unsigned(person, nonce, operations).sign(&key(person))
}

pub(crate) fn op(arguments: &impl Function) -> Operation {
    Operation::of(arguments)
}

pub(crate) fn register(name: &str) -> Operation {
    let personality = agents::Personality::even(Fixed::from_micros(800_000));
    op(&agents::Register { name: Text::new(name).unwrap(), personality, traits: Default::default() })
}

pub(crate) fn post(text: &str) -> Operation {
    op(&memes::Post { text: Text::new(text).unwrap() })
}

/// A proposal of an alliance with no terms, for these people, or for all if there are none.
pub(crate) fn propose(name: &str, invited: &[u8]) -> Operation {
    op(&social::ProposeAlliance {
        name: Text::new(name).unwrap(),
        purpose: Text::default(),
        terms: social::Terms::default(),
        benefits: Text::default(),
        prize: 0,
        invited: BoundedSet::new(invited.iter().map(|person| who(*person))).unwrap(),
    })
}

/// The agent that this person registers.
pub(crate) fn who(person: u8) -> agents::AgentId {
    agents::AgentId(key(person).public())
}

/// A genesis on which these people are agents with so much stake, like those whom [`register`] registers.
pub(crate) fn staked(people: impl IntoIterator<Item = (u8, u64)>) -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    for (person, stake) in people {
        let name = Text::new(format!("agent {person}")).unwrap();
        let personality = agents::Personality::even(Fixed::from_micros(800_000));
        let agent = agents::Agent::new(key(person).public(), name, personality, Default::default());
        genesis.world.agents.insert(who(person), agents::Agent { stake, ..agent });
    }
    genesis
}

pub(crate) fn proposer() -> PublicKey {
    key(200).public()
}

/// Makes a block of these, all of which must be taken in.
pub(crate) fn block(chain: &Chain, transactions: &[SignedTransaction]) -> Arc<Committed> {
    for transaction in transactions {
        chain.submit(&transaction.to_bytes()).unwrap();
    }
    let made = chain.produce(Timestamp(chain.height().0 * 1_000), proposer()).unwrap();
    assert_eq!(made.block.transactions.len(), transactions.len(), "everything submitted is in the block");
    made
}

/// Registers the person, whom 1 gives so much, who does this with it, and whose registration is then taken back with its bundle:
/// as long as it has no more than before, nothing of its record has changed since.
pub(crate) fn never_was(chain: &Chain, person: u8, given: u64, does: Vec<Operation>) {
    let operations = vec![register("nobody"), op(&agents::SetMood { mood: Fixed::ONE })];
    let mut submitted = unsigned(person, 0, operations.clone());
    let batching = Batching { borders: BoundedSet::new([1]).unwrap(), ..Batching::until(Height(5_000)) };
    submitted.bundle = Bundle::new(Mode::Async(batching), operations).unwrap();
    let submitted = submitted.sign(&key(person));
    let bundle = BundleId(submitted.id().0);
    block(chain, &[submitted]);
    let next = chain.next_nonce(&key(1).public()).unwrap().unwrap();
    let gift = op(&agents::GiveStake { to: who(person), amount: given });
    let back = signed(person, 2, vec![op(&RollBack { bundle })]);
    let made = block(chain, &[signed(1, next, vec![gift]), signed(person, 1, does), back]);
    made.receipts.iter().for_each(|receipt| assert!(receipt.succeeded(), "{receipt:?}"));
}

/// Makes a block of one transaction.
pub(crate) fn one(chain: &Chain, person: u8, operations: Vec<Operation>) -> Receipt {
    let nonce = chain.next_nonce(&key(person).public()).unwrap().unwrap();
    block(chain, &[signed(person, nonce, operations)]).receipts[0].clone()
}
