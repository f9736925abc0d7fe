//! How many operations a second come through: signed bundles, from submission to the durable commit.
//!
//! [`solo`] hands bundles to a chain that makes its own blocks, as the API would, and waits until all are durable:
//! signatures and capabilities checked, waited in the pool, picked, run, put under a root, synced with their receipts and
//! the indexes. [`under_cometbft`] does the same with one CometBFT node between, over its RPC.
//!
//! Every bundle pays from an account of its own turn to addresses nobody else pays, so none fails and none stands in
//! another's way. They are made and signed beforehand, which is not timed. What the figures were: `docs/performance.md`.

use crate::clock::now;
use crate::config::Config;
use crate::engine;
use crate::exit::Failure;
use crate::home::Home;
use crate::metrics::Metrics;
use crate::producer::Producer;
use crate::testnet::hosts::Hosts;
use crate::testnet::layout::{Layout, Wish};
use crate::testnet::load::{self, Report, millis, within};
use crate::testnet::network::Network;
use crate::testnet::owner::{Held, Owner};
use keelstone_codec::{ChainId, Encode as _, Height, Root, Text};
use keelstone_execution::{Bundle, Mode, Operation, PublicKey, Registry};
use keelstone_ledger::modules::contracts;
use keelstone_ledger::{Genesis, SecretKey, SignedTransaction, Transaction};
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bundles that may wait for a block, below what the pool holds.
const WAITING_MAX: u64 = 8_000;
/// Of one account, below what the pool takes of one.
const WAITING_OF_ONE_MAX: u64 = 200;
/// How long a block may take before the chain is taken for dead.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for the first block.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) bundles: u64,
    /// In each.
    pub(crate) operations: u64,
    pub(crate) accounts: u64,
    /// That submit, beside the one that makes blocks.
    pub(crate) submitters: u64,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Throughput {
    pub(crate) bundles: u64,
    pub(crate) operations: u64,
    pub(crate) blocks: u64,
    /// From the first submission to the last durable block.
    pub(crate) millis: u64,
    pub(crate) bundles_per_s: u64,
    pub(crate) operations_per_s: u64,
    /// From a bundle's submission to its durable block.
    pub(crate) latency_p50_ms: u64,
    pub(crate) latency_p99_ms: u64,
    pub(crate) root: Root,
}

/// An account's key: the same in each run.
fn key(account: u64) -> SecretKey {
    let mut seed = [0x5e; 32];
    seed[..8].copy_from_slice(&account.to_le_bytes());
    SecretKey::from_seed(&seed)
}

/// A genesis in which every account has money, and `producer` makes the blocks.
fn genesis(load: &Load, producer: PublicKey) -> Result<Genesis, Failure> {
    let chain_id = ChainId::new("bench").expect("a constant");
    let mut genesis = Genesis { time: now(), producers: vec![producer], ..Genesis::new(chain_id) };
    let balance = |account| {
        let owner = key(account).public();
        serde_json::json!({ "key": format!("currency.balances:{owner}"), "value": load.bundles * load.operations })
    };
    let entries: Vec<_> = (0..load.accounts).map(balance).collect();
    let state = serde_json::to_string(&entries).expect("names and numbers are JSON");
    genesis.import_xian(state.as_bytes()).map_err(|error| Failure::error(error.to_string()))?;
    Ok(genesis)
}

fn bundle(chain_id: &ChainId, load: &Load, number: u64) -> SignedTransaction {
    let (account, nonce) = (number % load.accounts, number / load.accounts);
    let pay = |operation| {
        let to = Text::new(format!("friend {operation} of {account}")).expect("a short word");
        Operation::of(&contracts::Transfer { to, amount: Text::new("1").expect("a short word") })
    };
    let bundle = Bundle::new(Mode::Sync, (0..load.operations).map(pay).collect());
    let key = key(account);
    let transaction = Transaction {
        chain_id: chain_id.clone(),
        sender: key.public(),
        nonce,
        // As far ahead as a chain allows: how many blocks there will be is what is measured.
        expiry_height: Height(keelstone_ledger::ChainLimits::default().expiry_blocks_max),
        session: None,
        bundle: bundle.expect("the command line bounds the operations of a bundle"),
    };
    transaction.sign(&key)
}

/// Sends all of it to a chain in `directory`, with `config`, and waits for the last block.
pub(crate) fn solo(directory: &Path, load: &Load, config: &Config, registry: &Registry) -> Result<Throughput, Failure> {
    let home = Home::new(directory.to_owned());
    let producer = key(u64::MAX);
    let genesis = genesis(load, producer.public())?;
    home.write_genesis(&genesis)?;
    let engine = engine::open(&home, config, registry)?;
    let signed: Vec<SignedTransaction> =
        (0..load.bundles).map(|number| bundle(&genesis.chain_id, load, number)).collect();
    let bytes: Vec<Vec<u8>> = signed.iter().map(|transaction| transaction.to_bytes()).collect();

    let (told, heard) = channel();
    let telling = Mutex::new(told.clone());
    engine.on_commit(Box::new(move |block| {
        let ids = block.block.transactions.iter().map(|tx| (tx.transaction.sender, tx.transaction.nonce)).collect();
        let failed = block.receipts.iter().filter(|receipt| !receipt.succeeded()).count();
        let made = Made { ids, failed, root: block.root, durable: Instant::now() };
        // Nobody listens any more once the last bundle was found.
        let _ = telling.lock().unwrap_or_else(PoisonError::into_inner).send(Told::Block(made));
    }));
    let metrics = Arc::new(Metrics::new());
    let making = Producer::start(engine.clone(), producer.public(), &config.blocks, metrics, || {})
        .map_err(|error| Failure::io("could not start making blocks", &error))?;

    // A place for each bundle that may wait; given back by the block that has it.
    let window = WAITING_MAX.min(load.accounts.saturating_mul(WAITING_OF_ONE_MAX));
    let (place, places) = sync_channel::<()>(usize::try_from(window).expect("a few thousand"));
    let submit = |own: u64| {
        let mut submitted = Vec::new();
        // The bundles of one account in order: whoever submits one submits them all.
        for number in (0..load.bundles).filter(|number| number % load.accounts % load.submitters == own) {
            if place.send(()).is_err() {
                break;
            }
            submitted.push((number, Instant::now()));
            if let Err(refusal) = engine.submit(&bytes[index(number)]) {
                let _ = told.send(Told::Refused(format!("bundle {number} was refused: {refusal}")));
                break;
            }
        }
        submitted
    };
    let begun = Instant::now();
    let (submitted, followed) = std::thread::scope(|scope| {
        let submitters: Vec<_> = (0..load.submitters).map(|own| scope.spawn(move || submit(own))).collect();
        let followed = follow(&heard, &places, load.bundles);
        // Whoever waits for a place waits no longer.
        drop(places);
        let done = submitters.into_iter().flat_map(|thread| thread.join().expect("submitting does not panic"));
        (done.collect::<Vec<_>>(), followed)
    });
    making.stop();
    let followed = followed?;
    let last = followed.durable.values().max().copied().unwrap_or(begun);
    let mut latencies = Vec::with_capacity(submitted.len());
    for (number, submitted) in submitted {
        let Transaction { sender, nonce, .. } = &signed[index(number)].transaction;
        latencies.push(millis(followed.durable[&(*sender, *nonce)] - submitted));
    }
    latencies.sort_unstable();
    let took = millis(last - begun).max(1);
    let operations = load.bundles * load.operations;
    Ok(Throughput {
        bundles: load.bundles,
        operations,
        blocks: followed.blocks,
        millis: took,
        bundles_per_s: load.bundles * 1_000 / took,
        operations_per_s: operations * 1_000 / took,
        latency_p50_ms: within(&latencies, 50),
        latency_p99_ms: within(&latencies, 99),
        root: followed.root,
    })
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("as many are in memory")
}

/// What the threads tell the one that waits.
enum Told {
    Block(Made),
    Refused(String),
}

/// A durable block.
struct Made {
    ids: Vec<(PublicKey, u64)>,
    failed: usize,
    root: Root,
    durable: Instant,
}

/// What the blocks held.
struct Followed {
    /// When each bundle was durable, by account and nonce.
    durable: HashMap<(PublicKey, u64), Instant>,
    blocks: u64,
    root: Root,
}

/// Takes in blocks until so many bundles are in them, and gives their places back.
fn follow(heard: &Receiver<Told>, places: &Receiver<()>, bundles: u64) -> Result<Followed, Failure> {
    let mut followed = Followed { durable: HashMap::new(), blocks: 0, root: Root::default() };
    while (followed.durable.len() as u64) < bundles {
        match heard.recv_timeout(PATIENCE) {
            Ok(Told::Block(made)) if made.failed == 0 => {
                for id in made.ids {
                    followed.durable.insert(id, made.durable);
                    // It was taken before the bundle was submitted.
                    let _ = places.try_recv();
                }
                followed.blocks += 1;
                followed.root = made.root;
            }
            Ok(Told::Block(made)) => return Err(Failure::error(format!("{} bundles of a block failed", made.failed))),
            Ok(Told::Refused(why)) => return Err(Failure::error(why)),
            Err(_) => return Err(Failure::error(format!("no block within {} s", PATIENCE.as_secs()))),
        }
    }
    Ok(followed)
}

/// Sends bundles of one operation to one validator under CometBFT in `directory`, at `rate` a second for so long. What is
/// reported is what came into blocks: of more than fits, the rest is held back.
pub(crate) fn under_cometbft(
    directory: &Path,
    cometbft: PathBuf,
    program: PathBuf,
    settings: Vec<String>,
    (rate, seconds): (u32, u64),
) -> Result<Report, Failure> {
    let held = Held::take(directory)?;
    let wish = Wish {
        chain_id: "bench".to_owned(),
        validators: 1,
        hosts: Hosts::Loopback,
        cometbft,
        settings,
        // A block as soon as there is something for one.
        engine_settings: vec!["consensus.timeout_commit=0s".to_owned(), "tx_index.indexer=null".to_owned()],
        ballast: 0,
        chunk_bytes: None,
        supervised: false,
    };
    let layout = Layout::create(directory, &wish)?;
    let (owner, _) = Owner::new(Network::start(layout.clone(), program, &held)?);
    let deadline = Instant::now() + PATIENCE;
    let begun = loop {
        match owner.status() {
            Ok(nodes) if nodes.iter().all(|node| node.height > Some(0)) => break Ok(()),
            Err(failure) => break Err(failure),
            Ok(_) if Instant::now() > deadline => break Err(Failure::error("CometBFT made no block")),
            Ok(_) => std::thread::sleep(LOOK_EVERY),
        }
    };
    let report = begun.and_then(|()| load::run(&layout, rate, seconds, &AtomicBool::new(false)));
    owner.stop();
    drop(held);
    report
}
