//! What must be refused before it runs, each with an error of its own.

use crate::tools::*;
use keelstone_codec::{Blob, ChainId, Encode, Hash, Height, Text, Timestamp};
use keelstone_execution::{
    ARGS_BYTES_MAX, Batching, Bundle, FunctionHash, Mode, Operation, SessionError, SessionId, SubmitError,
};
use keelstone_ledger::modules::{contracts, memes};
use keelstone_ledger::{
    Block, Genesis, Ledger, PoolError, PoolLimits, ProposalError, Refusal, Refused, Transaction, Verdict,
};

fn post() -> Operation {
    op(&memes::Post { text: Text::new("hello").unwrap() })
}

fn refused(chain: &Chain, transaction: Transaction, person: u8) -> Refusal {
    chain.submit(&transaction.sign(&key(person)).to_bytes()).expect_err("it must be refused")
}

/// spec: TX-1, TX-6, TX-7. The first effect stays, and a second one there is not: by nonce, chain, time or session.
#[test]
fn x02_replays_are_refused_and_the_first_effect_stays() {
    let chain = chain();
    let first = signed(1, 0, vec![register("ada")]);
    block(&chain, std::slice::from_ref(&first));
    let root = chain.root();
    let again = chain.submit(&first.to_bytes()).expect_err("a replay");
    assert!(matches!(again, Refusal::NonceUsed { next: 1, found: 0 }), "{again}");

    let elsewhere = Transaction { chain_id: ChainId::new("test-2").unwrap(), ..unsigned(1, 1, vec![post()]) };
    assert!(matches!(refused(&chain, elsewhere, 1), Refusal::WrongChain { .. }));
    let late = Transaction { expiry_height: Height(1), ..unsigned(1, 1, vec![post()]) };
    assert!(matches!(refused(&chain, late, 1), Refusal::Expired { expiry: Height(1), height: Height(2) }));
    let forever = Transaction { expiry_height: Height(u64::MAX), ..unsigned(1, 1, vec![post()]) };
    assert!(matches!(refused(&chain, forever, 1), Refusal::ExpiresTooLate { .. }));
    let strange = Transaction { session: Some(SessionId(Hash([3; 32]))), ..unsigned(1, 1, vec![post()]) };
    assert!(matches!(refused(&chain, strange, 1), Refusal::Session(SessionError::Unknown(_))));
    let foreign = SessionId::root(&chain_id(), &key(1).public());
    let foreign = Transaction { session: Some(foreign), ..unsigned(2, 0, vec![post()]) };
    assert!(matches!(refused(&chain, foreign, 2), Refusal::Session(SessionError::NotYours(_))));
    assert_eq!((chain.root(), chain.pool().count), (root, 0));

    // The same in a block that another engine made: no effect, no nonce used, and a receipt that says why.
    let transactions = vec![first.clone(), signed(1, 5, vec![post()]), signed(1, 1, vec![post()])];
    let block = Block { height: Height(2), time: Timestamp(9_000), proposer: proposer(), transactions };
    let made = chain.commit(chain.run(block, Refused::Receipt).unwrap()).unwrap();
    let codes: Vec<u16> = made
        .receipts
        .iter()
        .map(|receipt| match &receipt.verdict {
            Verdict::Refused { code, .. } => *code,
            _ => 0,
        })
        .collect();
    assert_eq!(codes, [8, 9, 0], "used, gap, run");
    assert_eq!(chain.next_nonce(&key(1).public()).unwrap(), Some(2));
    assert_eq!(chain.transaction(&first.id()).unwrap().unwrap().height, Height(1), "the first stays in the index");
}

/// spec: TX-5, TX-8.
#[test]
fn x03_bundles_and_arguments_outside_the_limits_are_refused() {
    assert!(Bundle::new(Mode::Sync, vec![]).is_err());
    assert!(Bundle::new(Mode::Sync, vec![post(); 65_536]).is_err());
    assert!(Blob::<ARGS_BYTES_MAX>::new(vec![0; 10 << 20]).is_err());
    let mut genesis = Genesis::new(chain_id());
    genesis.limits.bundle_operations_max = 3;
    genesis.limits.transaction_bytes_max = 1_000;
    let chain = chain_of(&genesis);
    assert!(matches!(
        refused(&chain, unsigned(1, 0, vec![post(); 4]), 1),
        Refusal::TooManyOperations { found: 4, limit: 3 }
    ));
    let unknown = Operation { function: FunctionHash(Hash([9; 32])), ..post() };
    assert!(matches!(
        refused(&chain, unsigned(1, 0, vec![post(), unknown]), 1),
        Refusal::UnknownFunction { operation: 1, .. }
    ));
    let large = Operation { args: Blob::new(vec![0; 1_000]).unwrap(), ..post() };
    assert!(matches!(refused(&chain, unsigned(1, 0, vec![large]), 1), Refusal::TooLarge { limit: 1_000, .. }));
    let patch = op(&contracts::Patch { entries: Default::default() });
    assert!(matches!(refused(&chain, unsigned(1, 0, vec![patch]), 1), Refusal::Session(SessionError::Lacks { .. })));
    let mode = Mode::Async(Batching::until(Height(u64::MAX)));
    let waits = Transaction { bundle: Bundle::new(mode, vec![post()]).unwrap(), ..unsigned(1, 0, vec![post()]) };
    assert!(matches!(refused(&chain, waits, 1), Refusal::Async(SubmitError::LastHeight { .. })));
    // Bytes that decode to nothing, to less, or to more.
    let good = signed(1, 0, vec![post()]).to_bytes();
    for bytes in [&[][..], &good[..good.len() - 1], &[good.as_slice(), &[0]].concat(), &[0xff; 900]] {
        assert!(matches!(chain.submit(bytes), Err(Refusal::Decode(_))));
    }
    assert_eq!(chain.pool().count, 0);
}

/// spec: TX-6. Counters at their ends are errors, never wrapped.
#[test]
fn x07_nonces_and_heights_at_their_ends_are_checked() {
    let mut genesis = Genesis::new(chain_id());
    let last = u64::MAX - 1;
    let file = format!(r#"{{"genesis":[],"nonces":[{{"key":"{}","value":{last}}}]}}"#, key(1).public());
    genesis.import_xian(file.as_bytes()).unwrap();
    genesis.limits.expiry_blocks_max = u64::MAX;
    let chain = chain_of(&genesis);
    assert_eq!(chain.next_nonce(&key(1).public()).unwrap(), Some(u64::MAX));
    let transaction = Transaction { expiry_height: Height(u64::MAX), ..unsigned(1, u64::MAX, vec![post()]) };
    assert!(matches!(refused(&chain, transaction, 1), Refusal::NoNonce));
    let far = Transaction { expiry_height: Height(u64::MAX), ..unsigned(2, u64::MAX - 1, vec![post()]) };
    assert!(matches!(refused(&chain, far, 2), Refusal::Pool(PoolError::NonceTooFar { .. })));
    // An imported nonce that is no number: the account is kept as it is, and cannot act.
    let mut genesis = Genesis::new(chain_id());
    let file = format!(r#"{{"genesis":[],"nonces":[{{"key":"{}","value":-1.5}}]}}"#, key(1).public());
    genesis.import_xian(file.as_bytes()).unwrap();
    let chain = chain_of(&genesis);
    assert!(matches!(refused(&chain, unsigned(1, 0, vec![post()]), 1), Refusal::NoNonce));
}

/// A block that uses up its gas leaves the rest for the next one, in the same order.
#[test]
fn x09_full_block_leaves_the_rest_for_the_next() {
    let mut genesis = Genesis::new(chain_id());
    (genesis.limits.bundle_gas_max, genesis.limits.block_gas_max) = (1_000_000, 1_100_000);
    genesis.limits.continuation_gas_max = 100_000;
    let chain = chain_of(&genesis);
    for nonce in 0..5 {
        let operations = if nonce == 0 { vec![register("ada")] } else { vec![post()] };
        chain.submit(&signed(1, nonce, operations).to_bytes()).unwrap();
    }
    let mut counts = Vec::new();
    while chain.pool().count > 0 {
        let made = chain.produce(Timestamp(1), proposer()).unwrap();
        assert!(made.receipts.iter().all(keelstone_ledger::Receipt::succeeded));
        counts.push(made.receipts.len());
        assert!(counts.len() < 6, "{counts:?}");
    }
    assert_eq!(counts.iter().sum::<usize>(), 5);
    assert!(counts.len() > 1, "{counts:?}");
}

/// spec: LEDGER-6. What fails to execute is no reason against a proposed block; what does not decode is.
#[test]
fn proposals_are_judged_by_form_alone() {
    let chain = chain();
    let good = signed(1, 0, vec![post()]).to_bytes();
    let mut forged = signed(1, 7, vec![post()]);
    forged.signature.0[0] ^= 1;
    assert!(chain.judge(&[&good, &forged.to_bytes()]).is_ok());
    assert!(matches!(
        chain.judge(&[&good, &good[1..]]),
        Err(ProposalError::Transaction { index: 1, source: Refusal::Decode(_) })
    ));
    let large = vec![0; 3 << 20];
    let found = chain.judge(&[&large]);
    assert!(matches!(found, Err(ProposalError::Transaction { index: 0, source: Refusal::TooLarge { .. } })));
    let found = chain.judge(&vec![good.as_slice(); 10_001]);
    assert!(matches!(found, Err(ProposalError::TooLarge { what: "transactions", found: 10_001, .. })));
    let found = chain.judge(&[large.as_slice(); 6]);
    assert!(matches!(found, Err(ProposalError::TooLarge { what: "bytes of transactions", .. })));
    for nonce in 0..4 {
        chain.submit(&signed(1, nonce, vec![post()]).to_bytes()).unwrap();
    }
    let two = chain.propose(Timestamp(1), proposer(), good.len() * 2 + 1).unwrap();
    assert_eq!(two.transactions.len(), 2, "a proposal keeps to the bytes it is given");
}

/// spec: LEDGER-4. Only the chain's producers make blocks, where it names any.
#[test]
fn blocks_of_strangers_are_refused() {
    let mut genesis = Genesis::new(chain_id());
    genesis.producers = vec![key(100).public()];
    let chain = Ledger::create(
        store(),
        std::sync::Arc::new(keelstone_store::kv::MemoryKv::new()),
        keelstone_ledger::modules::standard(),
        &genesis,
        PoolLimits::default(),
    )
    .unwrap();
    assert!(chain.produce(Timestamp(1), key(101).public()).is_err());
    assert!(chain.produce(Timestamp(1), key(100).public()).is_ok());
}
