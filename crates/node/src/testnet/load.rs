//! Signed bundles sent to a test network at a steady rate, and what became of them.
//!
//! Every sender is a fresh key that arrives as an agent with its first bundle and posts with each further one. It has one
//! transaction on its way at a time, so that nonces never race; the rate is kept by having enough senders. A bundle
//! counts once it is found in a block of a node that is asked for every block in turn. A sender whose bundle was not
//! taken sends it again later; where that is not known, another takes its place. Bundles go to the nodes that follow the
//! chain: one that catches up would refuse what the others take.

use super::layout::{ASK, Layout};
use crate::api::Chain as _;
use crate::client::Remote;
use crate::cometbft::rpc::{Rpc, RpcError};
use crate::exit::Failure;
use crate::story::{arrival, worker_bundle};
use keelstone_codec::{ChainId, Encode as _, Height};
use keelstone_ledger::{SecretKey, SignedTransaction};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// A function it calls, whose module a chain has to have.
pub(crate) const TAKES: &str = "memes.post/1";
/// Bundles a second at most: each is a connection of its own.
pub(crate) const RATE_MAX: u32 = 5_000;
/// How long a load may go on.
pub(crate) const SECONDS_MAX: u64 = 86_400;
/// Threads that send.
const SENDING_THREADS: u64 = 16;
/// Senders for each bundle a second: so many seconds a bundle may take into a block before the rate is missed.
const SENDERS_PER_RATE: u32 = 4;
/// How long the last bundles may take into a block.
const GRACE: Duration = Duration::from_secs(20);
/// How often it is looked for a new block.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often it is looked which nodes follow the chain.
const CHOOSE_EVERY: Duration = Duration::from_secs(1);
/// The number with which a node refuses what was sent before (spec: TX-5).
const NONCE_USED: u64 = 8;

/// What a load came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// Bundles that were handed to a node.
    pub(crate) sent: u64,
    /// Bundles that were found in a block.
    pub(crate) committed: u64,
    /// Bundles that a node refused, and why the first was.
    pub(crate) refused: u64,
    /// Why the first was refused.
    pub(crate) first_refusal: Option<String>,
    /// Bundles that were due while every sender still waited for its last one.
    pub(crate) held_back: u64,
    /// Bundles whose receipts were looked at, one of each block, and how many of those had failed.
    pub(crate) receipts_read: u64,
    /// How many of those had failed.
    pub(crate) receipts_failed: u64,
    /// Blocks that held any of them.
    pub(crate) blocks: u64,
    /// Milliseconds from the first bundle to the last block.
    pub(crate) millis: u64,
    /// Committed bundles a second, in hundredths.
    pub(crate) per_second_hundredths: u64,
    /// Milliseconds from sending to being found in a block: the median.
    pub(crate) latency_p50_ms: u64,
    /// The 99th of a hundred.
    pub(crate) latency_p99_ms: u64,
    /// The longest.
    pub(crate) latency_max_ms: u64,
}

struct Sender {
    key: SecretKey,
    /// Of its next bundle.
    nonce: u64,
}

impl Sender {
    fn fresh() -> Result<Self, Failure> {
        let key = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
        Ok(Self { key, nonce: 0 })
    }
}

/// What sending and following share.
struct Shared {
    free: VecDeque<Sender>,
    /// By the transaction's identity.
    under_way: BTreeMap<String, (Instant, Sender)>,
    latencies: Vec<u64>,
    report: Report,
    last_commit: Instant,
}

/// Sends for so long, waits for what is under way, and reports.
pub(crate) fn run(layout: &Layout, rate: u32, seconds: u64, stop: &AtomicBool) -> Result<Report, Failure> {
    let chain_id = ChainId::new(&layout.chain_id).map_err(|error| Failure::error(error.to_string()))?;
    let nodes = following(layout);
    if nodes.is_empty() {
        return Err(Failure::error("no node of the network answers and follows the chain"));
    }
    let nodes = RwLock::new(nodes);
    let mut free = VecDeque::new();
    for _ in 0..rate.saturating_mul(SENDERS_PER_RATE).max(8) {
        free.push_back(Sender::fresh()?);
    }
    let begun = Instant::now();
    let shared = Mutex::new(Shared {
        free,
        under_way: BTreeMap::new(),
        latencies: Vec::new(),
        report: Report::new(),
        last_commit: begun,
    });
    let height = AtomicU64::new(tip(layout).map_or(0, |(_, height)| height));
    let sending = AtomicBool::new(true);
    let ticket = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| follow(layout, &shared, &height, &sending));
        let chooser = scope.spawn(|| choose(layout, &nodes, &sending));
        let senders: Vec<_> = (0..SENDING_THREADS.min(u64::from(rate)))
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let number = ticket.fetch_add(1, Ordering::Relaxed);
                        let due = Duration::from_micros(number.saturating_mul(1_000_000) / u64::from(rate));
                        if due >= Duration::from_secs(seconds) {
                            break;
                        }
                        std::thread::sleep((begun + due).saturating_duration_since(Instant::now()));
                        let node = {
                            let nodes = nodes.read().unwrap_or_else(PoisonError::into_inner);
                            // Never empty.
                            nodes[usize::try_from(number).unwrap_or_default() % nodes.len()].clone()
                        };
                        send(&node, &chain_id, &shared, height.load(Ordering::Relaxed));
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.join().expect("sending does not panic");
        }
        sending.store(false, Ordering::Relaxed);
        follower.join().expect("following does not panic");
        chooser.join().expect("choosing does not panic");
    });
    let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(shared.finish(begun))
}

impl Report {
    fn new() -> Self {
        Self {
            sent: 0,
            committed: 0,
            refused: 0,
            first_refusal: None,
            held_back: 0,
            receipts_read: 0,
            receipts_failed: 0,
            blocks: 0,
            millis: 0,
            per_second_hundredths: 0,
            latency_p50_ms: 0,
            latency_p99_ms: 0,
            latency_max_ms: 0,
        }
    }
}

impl Shared {
    fn finish(mut self, begun: Instant) -> Report {
        self.latencies.sort_unstable();
        let at = |hundredths| within(&self.latencies, hundredths);
        let millis = millis(self.last_commit - begun).max(1);
        Report {
            millis,
            per_second_hundredths: self.report.committed.saturating_mul(100_000) / millis,
            latency_p50_ms: at(50),
            latency_p99_ms: at(99),
            latency_max_ms: at(100),
            ..self.report
        }
    }
}

/// What so many hundredths of sorted figures stay within; 0 if there are none.
pub(crate) fn within(sorted: &[u64], hundredths: usize) -> u64 {
    let index = sorted.len() * hundredths / 100;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// A time in whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A thread that panicked is reported by whoever joins it; figures can still be read.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends the next bundle of a sender that is free.
fn send(node: &Rpc, chain_id: &ChainId, shared: &Mutex<Shared>, height: u64) {
    let (id, signed) = {
        let mut shared = lock(shared);
        let Some(mut sender) = shared.free.pop_front() else {
            shared.report.held_back += 1;
            return;
        };
        let signed = bundle(chain_id, &sender, height);
        sender.nonce += 1;
        let id = signed.id().to_string();
        // Before it is sent: its block may be found before the node's answer is.
        shared.under_way.insert(id.clone(), (Instant::now(), sender));
        shared.report.sent += 1;
        (id, signed)
    };
    if let Err(error) = node.broadcast(&signed.to_bytes()) {
        let mut shared = lock(shared);
        // It may be in a block all the same if the answer was lost; then the sender is free already.
        if let Some((_, sender)) = shared.under_way.remove(&id) {
            shared.report.sent -= 1;
            shared.report.refused += 1;
            shared.report.first_refusal.get_or_insert_with(|| crate::exit::causes(&error));
            // Without randomness for a key there is one sender less.
            let next = match was_not_taken(&error) {
                true => Some(Sender { nonce: sender.nonce - 1, ..sender }),
                false => Sender::fresh().ok(),
            };
            shared.free.extend(next);
        }
    }
}

/// Whether it is sure that a node did not take a bundle, nor anybody else before.
fn was_not_taken(error: &RpcError) -> bool {
    match error {
        RpcError::Transaction { code, .. } => *code != NONCE_USED,
        RpcError::Refused { message, .. } => message.contains("mempool is full"),
        RpcError::Unreachable { source, .. } => source.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// The nodes that follow the chain.
fn following(layout: &Layout) -> Vec<Rpc> {
    let follows = |rpc: &Rpc| rpc.status().is_ok_and(|status| !status.catching_up);
    layout.nodes.iter().map(|node| node.rpc()).filter(follows).collect()
}

/// Looks now and then which nodes follow the chain, until nothing is sent any more. While none does the last that did stay.
fn choose(layout: &Layout, nodes: &RwLock<Vec<Rpc>>, sending: &AtomicBool) {
    let mut chosen = Instant::now();
    while sending.load(Ordering::Relaxed) {
        if chosen.elapsed() >= CHOOSE_EVERY {
            let found = following(layout);
            if !found.is_empty() {
                *nodes.write().unwrap_or_else(PoisonError::into_inner) = found;
            }
            chosen = Instant::now();
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn bundle(chain_id: &ChainId, sender: &Sender, height: u64) -> SignedTransaction {
    match sender.nonce {
        0 => arrival(chain_id, &sender.key, height + EXPIRY_BLOCKS),
        nonce => worker_bundle(chain_id, &sender.key, nonce, height + EXPIRY_BLOCKS),
    }
}

/// Blocks ahead at which a bundle expires, beyond what the story's own bundles allow.
const EXPIRY_BLOCKS: u64 = 1_000;

/// The first node that answers, and its height.
fn tip(layout: &Layout) -> Option<(Remote, u64)> {
    layout.nodes.iter().find_map(|node| {
        let remote = Remote::at(node.http, ASK);
        let height = remote.status().ok()?.height;
        Some((remote, height))
    })
}

/// Reads every block as it comes, until nothing is sent and nothing is under way any more.
fn follow(layout: &Layout, shared: &Mutex<Shared>, height: &AtomicU64, sending: &AtomicBool) {
    let mut ended = None;
    let mut next = height.load(Ordering::Relaxed) + 1;
    loop {
        if !sending.load(Ordering::Relaxed) {
            let since = *ended.get_or_insert_with(Instant::now);
            if lock(shared).under_way.is_empty() || since.elapsed() > GRACE {
                return;
            }
        }
        let Some((remote, tip)) = tip(layout) else {
            std::thread::sleep(LOOK_EVERY);
            continue;
        };
        while next <= tip {
            // A node that was restarted meanwhile: asked again in the next round.
            let Ok(block) = remote.block(Some(Height(next))) else { break };
            take_in(&remote, &block.transactions, &mut lock(shared));
            next += 1;
        }
        height.store(tip, Ordering::Relaxed);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Takes in the transactions of a block.
fn take_in(remote: &Remote, transactions: &[String], shared: &mut Shared) {
    let now = Instant::now();
    let mut own = None;
    for id in transactions {
        let Some((sent, sender)) = shared.under_way.remove(id) else { continue };
        shared.free.push_back(sender);
        shared.latencies.push(millis(now - sent));
        shared.report.committed += 1;
        shared.last_commit = now;
        own = Some(id);
    }
    let Some(id) = own else { return };
    shared.report.blocks += 1;
    let receipt = keelstone_codec::Hash::from_hex(id).ok().and_then(|id| remote.transaction(&id).ok());
    if let Some(transaction) = receipt {
        shared.report.receipts_read += 1;
        shared.report.receipts_failed += u64::from(!transaction.receipt.succeeded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    /// What is left of one sender after its third bundle met this answer: whether it has its key still, and its nonce.
    fn after(answer: Option<&'static str>) -> (bool, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let node = Rpc::new(&listener.local_addr().expect("bound").to_string()).expect("an address");
        let served = answer.map(|answer| {
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let _ = stream.read(&mut [0; 4096]).expect("a request");
                write!(stream, "HTTP/1.0 200 OK\r\n\r\n{answer}").expect("sent");
                stream.shutdown(std::net::Shutdown::Write).expect("sent");
                // A connection that is closed with something unread in it takes the answer with it.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            })
        });
        let sender = Sender::fresh().expect("randomness");
        let key = sender.key.public();
        let shared = Mutex::new(Shared {
            free: [Sender { nonce: 2, ..sender }].into(),
            under_way: BTreeMap::new(),
            latencies: Vec::new(),
            report: Report::new(),
            last_commit: Instant::now(),
        });
        send(&node, &ChainId::new("play").expect("a name"), &shared, 7);
        if let Some(served) = served {
            served.join().expect("served");
        }
        let mut shared = shared.into_inner().expect("nobody panicked");
        assert!(shared.under_way.is_empty());
        assert_eq!((shared.report.sent, shared.report.refused), (0, 1));
        let next = shared.free.pop_front().expect("a sender was lost");
        assert!(shared.free.is_empty(), "there is one more");
        (next.key.public() == key, next.nonce)
    }

    /// However long nodes refuse, there are as many senders as before: the same where its bundle is known not to be taken.
    #[test]
    fn a_refusal_costs_no_sender() {
        assert_eq!(after(Some(r#"{"result":{"code":9,"log":"a gap"}}"#)), (true, 2));
        assert_eq!(after(Some(r#"{"error":{"message":"x","data":"mempool is full: 1"}}"#)), (true, 2));
        assert_eq!(after(None), (true, 2), "nobody listens");
        assert_eq!(after(Some(r#"{"result":{"code":8,"log":"used"}}"#)), (false, 0));
        assert_eq!(after(Some("")), (false, 0), "the answer was lost");
    }
}
