//! Claims about a chain in this process, without a node around it.

use super::consensus;
use super::{Engine as _, Local};
use crate::api::{self, Chain as _, Refusal};
use crate::config::Config;
use crate::home::Home;
use keelstone_codec::{ChainId, Decode as _, Encode as _, Hash, Height, Timestamp};
use keelstone_execution::bundles::Resume;
use keelstone_execution::{Bundle, BundleId, Mode, Operation};
use keelstone_ledger::modules::standard;
use keelstone_ledger::{
    BlockRecord, Genesis, ListProof, Receipt, SecretKey, SignedTransaction, Transaction, list_root,
};
use keelstone_tree::Blake3;
use std::sync::{Arc, PoisonError};

/// L-06: where the chain stands is known while the last chunk becomes a state, which takes as long as it takes.
#[test]
fn l06_where_the_chain_stands_does_not_wait_for_a_snapshot_that_is_taken_in() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = Home::new(dir.path().to_owned());
    let genesis = Genesis::new(ChainId::new("test").expect("a name"));
    let chain = Local::<Blake3>::open(&home, &Config::default(), &standard(), genesis, (true, None)).expect("begun");
    let chain = Arc::new(chain);
    let taken_in = chain.syncing.lock().expect("nobody's");
    let (tell, told) = std::sync::mpsc::channel();
    let asked = chain.clone();
    let asking = std::thread::spawn(move || {
        let _ = tell.send(consensus::stands_at(&*asked));
    });
    assert_eq!(told.recv_timeout(std::time::Duration::from_secs(30)), Ok(None), "it waits");
    drop(taken_in);
    asking.join().expect("it was told");
}

/// Behind the last height there is comes none, whoever asks for what was recorded of it.
#[test]
fn x07_the_audit_log_of_the_last_height_there_is_is_empty() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (home, genesis) = (Home::new(dir.path().to_owned()), Genesis::new(ChainId::new("test").expect("a name")));
    let chain = Local::<Blake3>::open(&home, &Config::default(), &standard(), genesis, (false, None)).expect("begun");
    for height in [u64::MAX - 1, u64::MAX] {
        let wanted = api::AuditWanted { height: Some(Height(height)), limit: 10, ..api::AuditWanted::default() };
        let found = chain.audit(&wanted).expect("an answer");
        assert!(found.records.is_empty() && found.next.is_none());
    }
}

fn resume(genesis: &Genesis, key: &SecretKey) -> Transaction {
    let resume = Operation::of(&Resume { bundle: BundleId(Hash([0; 32])) });
    Transaction {
        chain_id: genesis.chain_id.clone(),
        sender: key.public(),
        nonce: 0,
        expiry_height: Height(10),
        session: None,
        bundle: Bundle::new(Mode::Sync, vec![resume]).expect("a short bundle"),
    }
}

/// Of a block and its transactions enough is said to find the hash of its record, and the root of its transactions.
// spec: LEDGER-2, BLOCK-3
#[test]
fn a_block_can_be_checked_from_what_is_answered_of_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = Home::new(dir.path().to_owned());
    let genesis = Genesis::new(ChainId::new("test").expect("a name"));
    let key = SecretKey::from_seed(&[7; 32]);
    let signed = resume(&genesis, &key).sign(&key);
    let chain = Local::<Blake3>::open(&home, &Config::default(), &standard(), genesis, (false, None)).expect("begun");
    chain.submit(&signed.to_bytes()).expect("taken in");
    chain.produce(Timestamp(1), key.public(), false).expect("made");

    let bytes = |digits: &str| hex::decode(digits).expect("digits");
    let block = chain.block(Some(Height(1))).expect("there");
    let record = BlockRecord::from_bytes(&bytes(&block.record.expect("it changed something"))).expect("a record");
    assert_eq!(block.record_hash, Some(record.hash().to_string()));
    assert_eq!(block.proposer, Some(key.public().to_string()));
    let answer = chain.transaction(&signed.id().0).expect("in the block");
    assert_eq!(bytes(&answer.transaction), signed.to_bytes());
    let found = SignedTransaction::from_bytes(&bytes(&answer.transaction)).expect("a transaction");
    assert_eq!(list_root(&[found.list_hash()]), record.transactions_root);
    let place = |digits: &str| ListProof::from_bytes(&bytes(digits)).expect("a place");
    assert!(place(&answer.place).verify(&record.transactions_root, &found.list_hash()));
    let receipt = Receipt::from_bytes(&bytes(&answer.receipt.receipt.expect("it was asked for"))).expect("a receipt");
    assert_eq!((receipt.transaction, receipt.gas_used), (signed.id(), answer.receipt.gas_used));
    let stands = place(&answer.receipt.place.expect("it was asked for"));
    assert!(stands.verify(&record.receipts_root, &receipt.list_hash()), "a failure is proven as a success is");
}

#[test]
fn one_witness_is_made_at_a_time_and_a_bug_in_one_does_not_keep_others_from_being_made() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = Home::new(dir.path().to_owned());
    let genesis = Genesis::new(ChainId::new("test").expect("a name"));
    let transaction = resume(&genesis, &SecretKey::from_seed(&[7; 32])).to_bytes();
    let chain = Local::<Blake3>::open(&home, &Config::default(), &standard(), genesis, (false, None)).expect("begun");

    let one = chain.witnessing.lock().expect("nobody's");
    assert!(matches!(chain.witness(&transaction), Err(Refusal::Busy(_))));
    drop(one);
    std::thread::scope(|threads| {
        let bug = threads.spawn(|| {
            let _one = chain.witnessing.lock().expect("nobody's");
            assert!(transaction.is_empty(), "a bug while it is made");
        });
        assert!(bug.join().is_err());
    });
    chain.witness(&transaction).expect("the next one is made");
    let one = chain.witnessing.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(matches!(chain.dry_run(&transaction), Err(Refusal::Busy(_))));
    drop(one);
    chain.dry_run(&transaction).expect("nobody is asked about anything else");
}
