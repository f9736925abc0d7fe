//! How long blocks take on one thread and on several: `cargo run -p keelstone-ledger --example parallel -- [THREADS]`.
//!
//! A chain in memory on which 2,000 accounts have money, and blocks of 2,000 signed payments: once each account pays one of
//! its own, so that no payment is in another's way; once all of them pay the same. What is timed is a block's run, from
//! signatures to the new root. Each block is run in turn on one thread and on THREADS, and every run comes to one root.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on says so")]

use keelstone_codec::{ChainId, Height, Text, Timestamp};
use keelstone_execution::{Bundle, Operation};
use keelstone_ledger::modules::{contracts, standard};
use keelstone_ledger::{Block, Genesis, Ledger, PoolLimits, Refused, SecretKey, SignedTransaction, Transaction};
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::MemoryKv;
use keelstone_store::{Options, Store};
use keelstone_tree::Blake3;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ACCOUNTS: u16 = 2_000;
const BLOCKS: u64 = 12;

fn key(number: u16) -> SecretKey {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_le_bytes());
    SecretKey::from_seed(&seed)
}

fn chain(threads: NonZeroUsize) -> Ledger<Blake3> {
    let mut genesis = Genesis::new(ChainId::new("bench").unwrap());
    let account = |number| format!(r#"{{"key":"currency.balances:{}","value":1000}}"#, key(number).public());
    let accounts: Vec<String> = (0..ACCOUNTS).map(account).collect();
    genesis.import_xian(format!("[{}]", accounts.join(",")).as_bytes()).unwrap();
    let options = Options { background: false, ..Options::default() };
    let store = Store::create(Arc::new(MemoryFiles::new()), options).unwrap();
    let kv = Arc::new(MemoryKv::new());
    Ledger::create(store, kv, standard(), &genesis, PoolLimits::default()).unwrap().on_threads(threads)
}

/// A payment of every account, to somebody of its own or all to one.
fn payments(nonce: u64, apart: bool) -> Vec<SignedTransaction> {
    let pay = |number: u16| {
        let to = if apart { format!("friend of {number}") } else { "everybody's friend".to_owned() };
        let amount = Text::new("1").unwrap();
        let operation = Operation::of(&contracts::Transfer { to: Text::new(to).unwrap(), amount });
        let transaction = Transaction {
            chain_id: ChainId::new("bench").unwrap(),
            sender: key(number).public(),
            nonce,
            expiry_height: Height(100_000),
            session: None,
            bundle: Bundle::one(operation),
        };
        transaction.sign(&key(number))
    };
    (0..ACCOUNTS).map(pay).collect()
}

/// The time of the median block.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |text| text.parse().unwrap());
    let counts = [NonZeroUsize::MIN, NonZeroUsize::new(threads).unwrap()];
    for apart in [true, false] {
        let chains = counts.map(chain);
        let (mut times, mut taken) = ([Vec::new(), Vec::new()], 0);
        for height in 1..=BLOCKS {
            let transactions = payments(height - 1, apart);
            let mut roots = Vec::new();
            for (chain, times) in chains.iter().zip(&mut times) {
                let (time, proposer) = (Timestamp(height), key(0).public());
                let block = Block { height: Height(height), time, proposer, transactions: transactions.clone() };
                let started = Instant::now();
                let pending = chain.run(block, Refused::Receipt).unwrap();
                times.push(started.elapsed());
                assert!(pending.executed().receipts.iter().all(|receipt| receipt.succeeded()));
                taken += pending.executed().beforehand.taken;
                roots.push(chain.commit(pending).unwrap().root);
            }
            assert_eq!(roots[0], roots[1], "threads make no difference");
        }
        let load = if apart { "nobody in another's way" } else { "everybody in everybody's way" };
        let rate = |time: Duration| u64::from(ACCOUNTS) * 1_000_000 / u64::try_from(time.as_micros()).unwrap().max(1);
        let [one, several] = times.map(median);
        println!(
            "{load}: 1 thread {one:.1?} a block ({} payments/s), {threads} threads {several:.1?} ({} payments/s), {taken} \
             of {} taken from beforehand",
            rate(one),
            rate(several),
            BLOCKS * u64::from(ACCOUNTS),
        );
    }
}
