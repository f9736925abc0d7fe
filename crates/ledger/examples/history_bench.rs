//! What the history of operations takes, before and after it is packed, and how long packing and reading it take.
//!
//! ```sh
//! cargo run --release -p keelstone-ledger --example history_bench -- 20000 1000    # operations, and how many a block
//! ```
//!
//! Payments between 100 accounts and posts, each a signed transaction of its own, on a chain in memory. Bytes are those of
//! the records of the database. Plain audit records are those of AUDIT-5.
#![expect(clippy::float_arithmetic, reason = "rates for people; nothing here is state")]
#![expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails says so")]
#![expect(clippy::print_stdout, reason = "it prints what it found")]

use keelstone_codec::{BoundedSet, ChainId, Encode as _, Fixed, Height, Text, Timestamp};
use keelstone_execution::{Bundle, Mode, Operation};
use keelstone_ledger::modules::{agents, contracts, memes, standard};
use keelstone_ledger::{Genesis, Ledger, PoolLimits, SecretKey, SignedTransaction, Transaction};
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::{Kv, MemoryKv, Range};
use keelstone_store::{Options, Store};
use keelstone_tree::Blake3;
use std::sync::Arc;
use std::time::Instant;

const ACCOUNTS: u8 = 100;

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn signed(chain_id: &ChainId, person: u8, nonce: u64, operation: Operation) -> SignedTransaction {
    let transaction = Transaction {
        chain_id: chain_id.clone(),
        sender: key(person).public(),
        nonce,
        expiry_height: Height(100_000),
        session: None,
        bundle: Bundle::new(Mode::Sync, vec![operation]).unwrap(),
    };
    transaction.sign(&key(person))
}

fn operation(number: u64, person: u8) -> Operation {
    if number.is_multiple_of(4) {
        return Operation::of(&memes::Post { text: Text::new(format!("meme number {number} of {person}")).unwrap() });
    }
    let to = key(u8::try_from((number * 7 + 13) % u64::from(ACCOUNTS)).unwrap()).public().to_string();
    let amount = Text::new((number % 50 + 1).to_string()).unwrap();
    Operation::of(&contracts::Transfer { to: Text::new(to).unwrap(), amount })
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>().unwrap());
    let (count, per_block) = (numbers.next().unwrap_or(20_000), numbers.next().unwrap_or(1_000));
    let chain_id = ChainId::new("history-1").unwrap();
    let mut genesis = Genesis::new(chain_id.clone());
    genesis.limits.block_gas_max = u64::MAX / 4;
    let balances: Vec<String> = (0..ACCOUNTS)
        .map(|person| format!(r#"{{"key":"currency.balances:{}","value":1000000000}}"#, key(person).public()))
        .collect();
    genesis.import_xian(format!("[{}]", balances.join(",")).as_bytes()).unwrap();
    let kv = Arc::new(MemoryKv::new());
    let store = Store::<Blake3>::create(Arc::new(MemoryFiles::new()), Options::default()).unwrap();
    let pool = PoolLimits { count_max: 1 << 20, bytes_max: 1 << 30, per_sender_max: 1 << 20 };
    let chain = Ledger::create(store, kv.clone(), standard(), &genesis, pool).unwrap();

    let mut nonces = vec![0u64; usize::from(ACCOUNTS)];
    let mut submit = |person: u8, operation| {
        let nonce = &mut nonces[usize::from(person)];
        chain.submit(&signed(&chain_id, person, *nonce, operation).to_bytes()).unwrap();
        *nonce += 1;
    };
    for person in 0..ACCOUNTS {
        let personality = agents::Personality::even(Fixed::from_micros(800_000));
        let name = Text::new(format!("agent {person}")).unwrap();
        submit(person, Operation::of(&agents::Register { name, personality, traits: BoundedSet::default() }));
    }
    chain.produce(Timestamp(1), key(200).public()).unwrap();
    let first = chain.height();
    let (mut done, mut committing) = (0, 0.0);
    while done < count {
        for number in done..(done + per_block).min(count) {
            let person = u8::try_from(number % u64::from(ACCOUNTS)).unwrap();
            submit(person, operation(number, person));
        }
        let started = Instant::now();
        let made = chain.produce(Timestamp(done), key(200).public()).unwrap();
        committing += started.elapsed().as_secs_f64();
        done += made.block.transactions.len() as u64;
        assert!(made.receipts.iter().all(keelstone_ledger::Receipt::succeeded), "all of them take effect");
    }

    let kept = |kind: u8| -> usize {
        let from = [&[kind], first.next().0.to_be_bytes().as_slice()].concat();
        let range = Range { start: from, end: Some(vec![kind + 1]), reverse: false, limit: usize::MAX };
        kv.range(&range).unwrap().iter().map(|(_, value)| value.len()).sum()
    };
    let heights = || (first.next().0..=chain.height().0).map(Height);
    let mut plain = [0usize; 3];
    let mut seconds = [0.0; 3];
    let operations = count as f64;
    for height in heights() {
        let mut timed = |at: usize, read: &dyn Fn() -> usize| {
            let started = Instant::now();
            let bytes = read();
            seconds[at] += started.elapsed().as_secs_f64();
            plain[at] += bytes;
        };
        timed(0, &|| chain.block(height).unwrap().to_bytes().len());
        timed(1, &|| chain.receipts(height).unwrap().to_bytes().len());
        timed(2, &|| chain.block_audit(height).unwrap().unwrap().pack().len());
    }
    println!("{count} operations, {per_block} a block; committed at {:.0} a second", operations / committing);
    println!("{:<10} {:>12} {:>12} {:>8} {:>14}", "", "plain B/op", "kept B/op", "share", "read op/s");
    let mut sums = (0, 0);
    for (at, (name, kind)) in [("bodies", b'b'), ("receipts", b'r'), ("audit", b'a')].into_iter().enumerate() {
        let (plain, kept) = (plain[at], kept(kind));
        sums = (sums.0 + plain, sums.1 + kept);
        let (per, share) = (|bytes: usize| bytes as f64 / operations, kept as f64 / plain as f64);
        println!("{name:<10} {:>12.1} {:>12.1} {share:>8.2} {:>14.0}", per(plain), per(kept), operations / seconds[at]);
    }
    let share = sums.1 as f64 / sums.0 as f64;
    println!("{:<10} {:>12.1} {:>12.1} {share:>8.2}", "all", sums.0 as f64 / operations, sums.1 as f64 / operations);
    let started = Instant::now();
    let verdict = chain.verify_audit(&mut |_| {}).unwrap();
    assert_eq!(verdict.fault, None);
    let replayed = started.elapsed().as_secs_f64();
    println!("verified the log of {} records in {replayed:.2} s", verdict.verified);
}
