//! How long blocks take on one thread and on several: `cargo run -p keelstone-ledger --example parallel -- [THREADS [LOAD]]`.
//!
//! A chain in memory on which 2,000 accounts have money, and blocks of 2,000 operations: payments, once each account one of
//! its own, so that no payment is in another's way; once all of them the same; and approvals of one account, alone in their
//! bundles, ten in each, and all in one; and blocks of one operation. What is timed is a block's run, from
//! signatures to the new root. Each block is run in turn on one thread and on THREADS, and every run comes to one root.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on says so")]

use keelstone_codec::{Blob, BoundedList, ChainId, Height, Text, Timestamp};
use keelstone_execution::{Batching, Bundle, Mode, Operation};
use keelstone_ledger::modules::{contracts, sessions, standard};
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
    genesis.grants.insert(key(0).public(), [contracts::PATCH].into());
    let options = Options { background: false, ..Options::default() };
    let store = Store::create(Arc::new(MemoryFiles::new()), options).unwrap();
    let kv = Arc::new(MemoryKv::new());
    Ledger::create(store, kv, standard(), &genesis, PoolLimits::default()).unwrap().on_threads(threads)
}

/// What a block holds.
#[derive(Clone, Copy)]
enum Load {
    /// A payment of every account to an address of its own.
    Apart,
    /// A payment of every account to one address.
    Same,
    /// Approvals of one account, none in another's way, so many in a bundle: of which an async one runs in a later block.
    One { in_a_bundle: u64, is_async: bool },
    /// Patches of one account, in one bundle, each of so many entries of so many bytes.
    Patches { operations: u64, entries: u64, bytes: usize },
    /// Notes of one account, in one bundle, of 4,096 bytes each: they share a count.
    Notes,
    /// One approval and nothing else.
    Single,
}

impl Load {
    fn name(self) -> String {
        match self {
            Self::Apart => "payments, nobody in another's way".to_owned(),
            Self::Same => "payments, everybody in everybody's way".to_owned(),
            Self::One { in_a_bundle, is_async: false } => {
                format!("approvals of one account, {in_a_bundle} in a bundle")
            }
            Self::One { in_a_bundle, is_async: true } => format!("approvals of one account, {in_a_bundle} in flight"),
            Self::Patches { operations, entries, bytes } => {
                format!("{operations} patches of {entries} entries of {bytes} bytes, in one bundle")
            }
            Self::Notes => "notes of one account, in one bundle".to_owned(),
            Self::Single => "one approval".to_owned(),
        }
    }

    /// Operations of a block.
    fn operations(self) -> u64 {
        match self {
            Self::Single => 1,
            Self::Patches { operations, .. } => operations,
            Self::Notes => 50,
            _ => u64::from(ACCOUNTS),
        }
    }

    fn transactions(self, height: u64) -> Vec<SignedTransaction> {
        match self {
            Self::Apart => (0..ACCOUNTS).map(|of| pay(of, height - 1, format!("friend of {of}"))).collect(),
            Self::Same => (0..ACCOUNTS).map(|of| pay(of, height - 1, "everybody's friend".to_owned())).collect(),
            Self::Patches { operations, entries, bytes } => {
                let patch = |number| patch(height, number, entries, bytes);
                let bundle = Bundle::new(Mode::Sync, (0..operations).map(patch).collect()).unwrap();
                vec![signed(0, height - 1, bundle)]
            }
            Self::Notes => {
                let bundle = Bundle::new(Mode::Sync, (0..self.operations()).map(|at| note(height, at)).collect());
                vec![signed(0, height - 1, bundle.unwrap())]
            }
            Self::Single => vec![signed(0, height - 1, Bundle::one(approve(height)))],
            Self::One { in_a_bundle, is_async } => {
                let bundles = self.operations() / in_a_bundle;
                let first = (height - 1) * bundles;
                let mode = match is_async {
                    true => Mode::Async(Batching::until(Height(height + 50))),
                    false => Mode::Sync,
                };
                let operations = |nonce: u64| (nonce * in_a_bundle..(nonce + 1) * in_a_bundle).map(approve).collect();
                let bundle = |nonce: u64| Bundle::new(mode.clone(), operations(nonce)).unwrap();
                (first..first + bundles).map(|nonce| signed(0, nonce, bundle(nonce))).collect()
            }
        }
    }
}

fn pay(number: u16, nonce: u64, to: String) -> SignedTransaction {
    let (to, amount) = (Text::new(to).unwrap(), Text::new("1").unwrap());
    signed(number, nonce, Bundle::one(Operation::of(&contracts::Transfer { to, amount })))
}

fn approve(number: u64) -> Operation {
    let spender = Text::new(format!("spender {number}")).unwrap();
    Operation::of(&contracts::Approve { spender, amount: Text::new("1").unwrap() })
}

fn patch(height: u64, number: u64, entries: u64, bytes: usize) -> Operation {
    let entry = |at: u64| contracts::PatchEntry {
        key: Text::new(format!("con_{height}.of_{number}:{at}")).unwrap(),
        value: Some(Text::new(format!("{:?}", "x".repeat(bytes))).unwrap()),
        comment: Text::default(),
    };
    Operation::of(&contracts::Patch { entries: BoundedList::new((0..entries).map(entry).collect()).unwrap() })
}

fn note(height: u64, number: u64) -> Operation {
    let value = Some(Blob::new(vec![7; 4_096]).unwrap());
    Operation::of(&sessions::Note { key: Text::new(format!("{height} {number}")).unwrap(), value })
}

fn signed(number: u16, nonce: u64, bundle: Bundle) -> SignedTransaction {
    let transaction = Transaction {
        chain_id: ChainId::new("bench").unwrap(),
        sender: key(number).public(),
        nonce,
        expiry_height: Height(100_000),
        session: None,
        bundle,
    };
    transaction.sign(&key(number))
}

/// The time of the median block.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |text| text.parse().unwrap());
    let counts = [NonZeroUsize::MIN, NonZeroUsize::new(threads).unwrap()];
    let one = |in_a_bundle, is_async| Load::One { in_a_bundle, is_async };
    let patches = |operations, entries, bytes| Load::Patches { operations, entries, bytes };
    let picked = std::env::args().nth(2).unwrap_or_default();
    let loads = [
        Load::Apart,
        Load::Same,
        one(1, false),
        one(10, false),
        one(2_000, false),
        one(2_000, true),
        Load::Notes,
        patches(400, 1, 10),
        patches(400, 5, 100),
        patches(100, 50, 100),
        patches(40, 1, 100_000),
        Load::Single,
    ];
    for load in loads.into_iter().filter(|load| load.name().contains(&picked)) {
        let chains = counts.map(chain);
        let (mut times, mut taken) = ([Vec::new(), Vec::new()], 0);
        // One operation is soon run.
        for height in 1..=if load.operations() == 1 { 50 * BLOCKS } else { BLOCKS } {
            let transactions = load.transactions(height);
            let mut roots = Vec::new();
            for (chain, times) in chains.iter().zip(&mut times) {
                let (time, proposer) = (Timestamp(height), key(0).public());
                let block = Block { height: Height(height), time, proposer, transactions: transactions.clone() };
                let started = Instant::now();
                let pending = chain.run(block, Refused::Receipt).unwrap();
                times.push(started.elapsed());
                assert!(pending.executed().receipts.iter().all(|receipt| receipt.succeeded()));
                let beforehand = pending.executed().beforehand;
                taken += beforehand.taken + beforehand.operations_taken;
                roots.push(chain.commit(pending).unwrap().root);
            }
            assert_eq!(roots[0], roots[1], "threads make no difference");
        }
        let rate = |time: Duration| load.operations() * 1_000_000 / u64::try_from(time.as_micros()).unwrap().max(1);
        let blocks = times[0].len() as u64;
        let [one, several] = times.map(median);
        println!(
            "{}: 1 thread {one:.1?} a block ({} operations/s), {threads} threads {several:.1?} ({} operations/s), {taken} of \
             {} taken from beforehand",
            load.name(),
            rate(one),
            rate(several),
            blocks * load.operations(),
        );
    }
}
