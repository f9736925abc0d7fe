//! Blocks, receipts, history, rollback.

use crate::tools::*;
use keelstone_codec::{Encode, Height, Text, Timestamp};
use keelstone_execution::View;
use keelstone_ledger::modules::{Society, agents, memes, social};
use keelstone_ledger::{BlockRecord, Verdict};

#[test]
fn a_story_of_agents_leaves_what_it_tells_in_state() {
    // Bob was there before, with standing, so that what he thinks counts.
    let chain = chain_of(&staked([(2, 100)]));
    let made = block(&chain, &[signed(1, 0, vec![register("ada")])]);
    assert!(made.receipts.iter().all(|receipt| receipt.succeeded()), "{:?}", made.receipts);
    let form = propose("loom", &[]);
    let post = memes::Post { text: Text::new("hello").unwrap() };
    let receipt = one(&chain, 1, vec![form, op(&post)]);
    assert!(receipt.succeeded(), "{receipt:?}");
    assert_eq!(receipt.events().count(), 2);
    let join = social::JoinAlliance { alliance: social::AllianceId(1) };
    let react = memes::React { meme: memes::MemeId(1), reaction: keelstone_codec::Fixed::ONE };
    let receipt = one(&chain, 2, vec![op(&join), op(&react)]);
    assert!(receipt.succeeded(), "{receipt:?}");

    let world = View::<Society>::over(chain.view());
    let (ada, bob) = (who(1), who(2));
    assert_eq!(world.social.alliances.get(&social::AllianceId(1)).unwrap().unwrap().members.len(), 2);
    let felt = world.social.relationships.get(&(bob, ada)).unwrap().unwrap();
    assert_eq!((felt.trust.to_string(), felt.sentiment.to_string()), ("0.040000".into(), "0.080000".into()));
    assert_eq!(world.agents.all.get(&ada).unwrap().unwrap().reputation.to_string(), "0.100000");
    assert_eq!(world.agents.all.get(&bob).unwrap().unwrap().status, agents::Status::Active);
}

/// spec: LEDGER-3. An empty block writes nothing, and the chain goes on all the same.
#[test]
fn empty_block_leaves_the_root() {
    let chain = chain();
    let root = chain.root();
    for height in 1..4 {
        let made = chain.produce(Timestamp(height), proposer()).unwrap();
        assert_eq!((made.block.height, made.root, made.record.clone()), (Height(height), root, None));
    }
    let made = block(&chain, &[signed(1, 0, vec![register("ada")])]);
    assert_eq!(made.block.height, Height(4));
    assert_ne!(made.root, root);
}

/// spec: LEDGER-1, LEDGER-2. The record of a block is in the state of its own height and chains to the last one.
#[test]
fn record_is_in_the_state_of_its_own_height() {
    let chain = chain();
    let before = chain.root();
    let first = block(&chain, &[signed(1, 0, vec![register("ada")])]);
    chain.produce(Timestamp(5_000), proposer()).unwrap();
    let second = block(&chain, &[signed(2, 0, vec![register("bob")])]);
    let record = first.record.clone().unwrap();
    assert_eq!(BlockRecord::read(&chain.view_at(Height(1)).unwrap(), Height(1)).unwrap(), Some(record.clone()));
    assert_eq!((record.previous_root, record.previous_record), (before, chain.genesis_hash()));
    assert_eq!(second.record.clone().unwrap().previous_record, record.hash());
    assert_eq!(second.record.clone().unwrap().previous_root, first.root);
    assert_eq!(chain.header(Height(3)).unwrap().root, Some(second.root));
    assert_eq!(chain.header(Height(2)).unwrap().record, None);
}

/// spec: EXEC-5. A transaction that fails leaves its receipt and its used nonce, and nothing of what it did.
#[test]
fn failed_transaction_uses_its_nonce_and_leaves_a_receipt() {
    let chain = chain();
    one(&chain, 1, vec![register("ada")]);
    let post = memes::Post { text: Text::new("hello").unwrap() };
    let receipt = one(&chain, 1, vec![op(&post), register("ada again")]);
    let Verdict::Failed(failure) = &receipt.verdict else { panic!("{receipt:?}") };
    assert_eq!(failure.operation, 1);
    assert!(failure.reason.contains("is an agent already"), "{}", &*failure.reason);
    assert_eq!(chain.next_nonce(&key(1).public()).unwrap(), Some(2));
    let world = View::<Society>::over(chain.view());
    assert_eq!(world.memes.next_meme.last().unwrap(), 0);
    let located = chain.transaction(&receipt.transaction).unwrap().unwrap();
    assert_eq!((located.height, located.index, located.receipt), (Height(2), 0, receipt));
}

/// spec: HISTORY-3, HISTORY-4.
#[test]
fn rollback_takes_blocks_receipts_and_index_with_it() {
    let chain = chain();
    let first = block(&chain, &[signed(1, 0, vec![register("ada")])]);
    let second = signed(2, 0, vec![register("bob")]);
    block(&chain, std::slice::from_ref(&second));
    assert_eq!(chain.rollback(Height(1)).unwrap(), first.root);
    assert!(chain.transaction(&second.id()).unwrap().is_none());
    assert!(chain.block(Height(2)).is_err());
    assert_eq!(chain.time(), first.block.time);
    let again = block(&chain, std::slice::from_ref(&second));
    assert_eq!(again.block.height, Height(2));
    assert_eq!(again.receipts[0].to_bytes(), chain.receipts(Height(2)).unwrap()[0].to_bytes());
}
