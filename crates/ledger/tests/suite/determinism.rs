//! The same story has the same roots, receipts and events, whoever tells it: another process, more threads, other orders.

use crate::tools::*;
use keelstone_codec::{Fixed, Hash, Key, Namespace, Tag, TaggedHasher, Text, Value};
use keelstone_ledger::modules::{memes, social};
use keelstone_ledger::{Genesis, Verdict};
use keelstone_tree::{Blake3, MemoryTree};
use std::collections::BTreeSet;
use std::process::Command;

/// Tells a story of forty people, and hashes every root, receipt and event of it.
fn told() -> Hash {
    const STORY: Tag = Tag::new("test/story");
    let chain = chain();
    let mut hasher = TaggedHasher::new(STORY);
    let mut tell = |transactions: Vec<_>| {
        let made = block(&chain, &transactions);
        hasher.value(&made.root).value(&made.receipts);
        for receipt in &made.receipts {
            assert!(!matches!(receipt.verdict, Verdict::Refused { .. }));
            for (_, event) in receipt.events() {
                hasher.value(event);
            }
        }
    };
    let people = 1..=40u8;
    tell(people.clone().map(|person| signed(person, 0, vec![register(&format!("agent {person}"))])).collect());
    let post = |person: u8| op(&memes::Post { text: Text::new(format!("from {person}")).unwrap() });
    let form = |person: u8| propose(&format!("of {person}"), &[]);
    tell(people.clone().map(|person| signed(person, 1, vec![post(person), form(person)])).collect());
    let react = |person: u8| {
        let reaction = Fixed::from_micros(i64::from(person) * 24_999 - 500_000);
        op(&memes::React { meme: memes::MemeId(u64::from(person % 7) + 1), reaction })
    };
    let join = |person: u8| op(&social::JoinAlliance { alliance: social::AllianceId(u64::from(person % 3) + 1) });
    tell(people.clone().map(|person| signed(person, 2, vec![react(person), join(person)])).collect());
    hasher.value(&chain.root()).finish()
}

/// What the child processes of the test below run.
#[test]
fn story_is_told() {
    println!("told {}", told());
}

/// D-02: a new process each time, so that nothing that differs between processes can enter.
#[test]
fn d02_new_processes_tell_the_same_story() {
    let own = told();
    for run in 0..3 {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "determinism::story_is_told", "--nocapture"])
            .env("TZ", ["UTC", "Asia/Tokyo", "America/New_York"][run])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("told {own}")), "run {run}: {text}");
    }
}

/// D-03: one, two and eight threads, each with a chain of its own.
#[test]
fn d03_threads_tell_the_same_story() {
    for threads in [1, 2, 8] {
        let handles: Vec<_> = (0..threads).map(|_| std::thread::spawn(told)).collect();
        let found: BTreeSet<Hash> = handles.into_iter().map(|handle| handle.join().unwrap()).collect();
        assert_eq!(found, BTreeSet::from([told()]), "{threads} threads");
    }
}

/// D-02: a first state put together in 1,000 orders has one root and one genesis hash.
#[test]
fn d02_order_of_entries_does_not_matter() {
    let mut entries: Vec<((Namespace, Key), Value)> = (0..60u8)
        .map(|number| {
            let space = Namespace::new(["app", "app.a", "zoo"][usize::from(number % 3)]).unwrap();
            let key = Key::new(vec![number.wrapping_mul(97), number / 7]).unwrap();
            ((space, key), Value::new(vec![number; usize::from(number) + 1]).unwrap())
        })
        .collect();
    let (mut found, mut seed) = (BTreeSet::new(), 7u64);
    for _ in 0..1_000 {
        for at in (1..entries.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            entries.swap(at, usize::try_from(seed >> 33).unwrap() % (at + 1));
        }
        let mut genesis = Genesis::new(chain_id());
        genesis.state = entries.iter().cloned().collect();
        let first = genesis.first_state().unwrap();
        found.insert((first.hash, MemoryTree::<Blake3>::new().apply(&first.diff)));
    }
    assert_eq!(found.len(), 1);
}
