//! The same story has the same roots, receipts and events, whoever tells it: another process, more threads, other orders.

use crate::tools::*;
use crate::walk::Walk;
use keelstone_codec::{Bytes, Encode, Fixed, Hash, Key, Namespace, Tag, TaggedHasher, Text, Timestamp, Value};
use keelstone_ledger::modules::{memes, social};
use keelstone_ledger::{Genesis, Verdict};
use keelstone_tree::{Backing, Blake3, Diff, MemoryTree, PageAt, Pages, Place, Read, ReadError, Tree};
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// D-02: a first state written down in 1,000 orders has one root and one genesis hash; and put into a tree in as many, a few
/// entries at a time, one root.
#[test]
fn d02_order_of_entries_does_not_matter() {
    let mut entries: Vec<(&str, Vec<u8>, Vec<u8>)> = (0..60u8)
        .map(|number| {
            let space = ["app", "app.a", "zoo"][usize::from(number % 3)];
            (space, vec![number.wrapping_mul(97), number / 7], vec![number; usize::from(number) + 1])
        })
        .collect();
    let mut seed = 7u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let begins = Genesis::new(chain_id()).to_json().to_string();
    let begins = begins.trim_end().strip_suffix('}').unwrap();
    let (mut spaces, mut written) = (["app", "app.a", "zoo"], BTreeSet::new());
    let (mut firsts, mut roots) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..1_000 {
        (1..entries.len()).rev().for_each(|at| entries.swap(at, random(at + 1)));
        (1..spaces.len()).rev().for_each(|at| spaces.swap(at, random(at + 1)));
        let space = |name: &&str| {
            let own = entries.iter().filter(|(space, ..)| space == name);
            let own = own.map(|(_, key, value)| format!("\"{}\":\"{}\"", hex::encode(key), hex::encode(value)));
            format!("\"{name}\":{{{}}}", own.collect::<Vec<_>>().join(","))
        };
        let text = format!("{begins},\"state\":{{{}}}}}", spaces.iter().map(space).collect::<Vec<_>>().join(","));
        let first = Genesis::parse(text.as_bytes()).unwrap().first_state().unwrap();
        firsts.insert((first.hash, MemoryTree::<Blake3>::new().apply(&first.diff)));
        written.insert(text);

        let mut tree = Tree::empty(&Pages::<Blake3>::new(Arc::new(Nothing)));
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let (some, others) = rest.split_at(random(7).min(rest.len() - 1) + 1);
            let write = |(space, key, value): &(&str, Vec<u8>, Vec<u8>)| {
                let key = Key::new(key.clone()).unwrap();
                (Namespace::new(space).unwrap(), key, Some(Value::new(value.clone()).unwrap()))
            };
            let diff: Diff = some.iter().map(write).collect();
            tree = tree.prepare(&diff).unwrap().commit(|index| Place(index as u64 + 1));
            rest = others;
        }
        roots.insert(tree.root());
    }
    assert_eq!((written.len(), firsts.len(), roots.len()), (1_000, 1, 1));
}

/// A disk of a tree that is in memory.
struct Nothing;

impl Backing for Nothing {
    fn page(&self, at: PageAt) -> Result<Bytes, ReadError> {
        Err(ReadError::damaged(format!("{at:?} is not there")))
    }
    fn value(&self, at: Place, _: u32) -> Result<Value, ReadError> {
        Err(ReadError::damaged(format!("{at:?} is not there")))
    }
}

/// D-03: whatever it was built for, and on, and with which checks: the story has the hash that is written down. A change of it is a
/// change of what chains come to.
#[test]
fn d03_the_story_is_the_one_that_is_written_down() {
    golden::check("story.json", &serde_json::json!({ "roots, receipts and events": told().to_string() }));
}

/// The hash of every root, receipt and event of blocks in which anybody does anything, run on so many threads while as
/// many others read what is there.
fn saga(seed: u64, threads: usize, readers: usize) -> Hash {
    const SAGA: Tag = Tag::new("test/saga");
    let threads = NonZeroUsize::new(threads).expect("somebody runs the blocks");
    let chain = chain_of(&crate::walk::genesis()).on_threads(threads);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let view = chain.view();
                    let memes = Namespace::new("memes").unwrap();
                    let found = view.scan(&memes, keelstone_tree::KeyRange::all()).take(50).flatten().count();
                    assert!(found <= 50 && view.prove(&[keelstone_tree::Query::Key(memes, place())]).is_ok());
                }
            });
        }
        let mut hasher = TaggedHasher::new(SAGA);
        let mut walk = Walk::begin(seed);
        let functions = chain.registry().functions();
        for height in 1..=10 * scale().min(10) {
            for _ in 0..OPERATIONS {
                let (person, operation) = walk.any_call(&functions, height);
                let nonce = chain.next_nonce(&key(person).public()).unwrap().unwrap();
                // Without the capability it is refused at the door, on every node alike.
                let refused = chain.submit(&signed(person, nonce, vec![operation]).to_bytes()).err();
                hasher.value(&refused.map(|refusal| refusal.to_string()));
            }
            let made = chain.produce(Timestamp(height * 1_000), proposer()).unwrap();
            hasher.value(&made.root).value(&made.receipts);
            made.receipts.iter().flat_map(|receipt| receipt.events()).for_each(|(_, event)| {
                hasher.value(event);
            });
        }
        done.store(true, Ordering::Relaxed);
        hasher.finish()
    })
}

fn place() -> Key {
    Key::new(*b"next_meme").unwrap()
}

/// Operations of a block.
const OPERATIONS: u64 = 200;

/// What the environment asks for: 20 is the whole of it, 20 seeds of 100 blocks.
fn scale() -> u64 {
    golden::count("KEELSTONE_TEST_SCALE", 1)
}

/// What the child processes of the test below run. Says when it thinks it is.
#[test]
fn saga_is_told() {
    let Some(seed) = std::env::var("KEELSTONE_SAGA").ok().and_then(|seed| seed.parse().ok()) else { return };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    println!("told {} at {now}", saga(seed, 2, 0));
}

/// A library that has a process believe that it is three years later.
#[cfg(target_os = "linux")]
fn later(directory: &std::path::Path) -> std::path::PathBuf {
    let (source, library) = (directory.join("later.c"), directory.join("later.so"));
    let text = "#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
        int clock_gettime(clockid_t id, struct timespec *at) {\n\
        long failed = syscall(SYS_clock_gettime, id, at);\n\
        if (!failed && id == CLOCK_REALTIME) at->tv_sec += 94608000;\n\
        return (int)failed;\n}\n";
    std::fs::write(&source, text).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success(), "the linker that built this test builds this too");
    library
}

/// D-03, D-05: 20 seeds, each told five times (alone on one thread; run on one, two and eight threads while as many others
/// read; and by another process in another time zone and three years later): 100 blocks of 200 operations have the same
/// roots, receipts and events. One seed and a tenth of the blocks unless `KEELSTONE_TEST_SCALE` asks for more; `cargo
/// xtask determinism` asks for all.
#[test]
#[cfg(target_os = "linux")]
fn d05_neither_readers_nor_clocks_nor_zones_change_a_saga() {
    let directory = tempfile::tempdir().unwrap();
    let later = later(directory.path());
    for seed in 0..scale().min(20) {
        let own = saga(seed, 1, 0);
        for threads in [1, 2, 8] {
            assert_eq!(saga(seed, threads, threads), own, "seed {seed}, {threads} threads");
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "determinism::saga_is_told", "--nocapture"])
            .env("KEELSTONE_SAGA", seed.to_string())
            .env("TZ", "Pacific/Kiritimati")
            .env("LD_PRELOAD", &later)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("told {own} at ")), "seed {seed}: {text}");
        let then: u64 = text.split(" at ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(then > now + 90_000_000, "its clock was not shifted");
        println!("seed {seed}: told five times alike, {own}");
    }
}
