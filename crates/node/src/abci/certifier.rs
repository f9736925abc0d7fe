//! Compares every root with the one the engine certifies.
//!
//! ABCI hands an application neither signatures nor, with a block, the hash it should come to, so the engine's RPC is
//! asked, on a thread of its own: blocks do not wait for it. What it answers is verified ([`super::certificate`]), so a
//! wrong answer is merely no answer. A root that is certified and not ours ends the node.
//!
//! Rule: `spec/ledger.md`, LEDGER-7.

use crate::cometbft::certificate::{self, Certificate};
use crate::cometbft::rpc::Rpc;
use crate::engine::Engine;
use crate::exit::causes;
use crate::metrics::Metrics;
use keelstone_codec::{Height, Root};
use prost::Message as _;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tendermint_proto::v0_38::types::SignedHeader;

/// Headers that wait to be asked for, when blocks came quicker than they may be or a restart left some out; the roots
/// before those count as unknown.
const BACKLOG_MAX: u64 = 1024;
/// Headers asked for at once: CometBFT answers ten.
const TOGETHER_MAX: usize = 8;
/// How long to wait after an exchange before the next, which makes 32 headers a second. Where blocks come quicker, as when
/// a node catches up, they need the processor that asking takes, a tenth of a block's: the newest are asked for meanwhile,
/// the others when there is time.
const PACE: Duration = Duration::from_millis(250);

/// How long a stop waits for the exchange that is under way. An engine that stands still holds one up for its whole timeout.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// How often it is looked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A running comparison.
pub(crate) struct Certifier {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

/// The engine certifies another root than this node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Differs {
    pub(crate) height: Height,
    pub(crate) certified: Root,
    pub(crate) own: Root,
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { height, certified, own } = self;
        write!(f, "the engine certifies root {} for height {height}, this node has {}", certified.0, own.0)
    }
}

/// What a comparison came to.
enum Compared {
    Agreed(Box<Certificate>),
    Unknown(String),
    Differs(Differs),
}

impl Certifier {
    /// Compares from the next block on. `halt` is called once, if a root differs.
    pub(crate) fn start(
        engine: &Arc<dyn Engine>,
        rpc: Rpc,
        metrics: Arc<Metrics>,
        halt: impl FnOnce(Differs) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let (stop, tip) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (waker, reached) = (wake.clone(), tip.clone());
        engine.on_commit(Box::new(move |committed| {
            reached.store(committed.block.height.0, Ordering::Release);
            // Full means: woken already.
            let _ = waker.try_send(());
        }));
        let (stopped, engine) = (stop.clone(), Arc::downgrade(engine));
        let thread = std::thread::Builder::new().name("certifier".to_owned()).spawn(move || {
            let mut due = Due::default();
            while (!due.heights.is_empty() || woken.recv().is_ok()) && !stopped.load(Ordering::Relaxed) {
                let Some(engine) = engine.upgrade() else { return };
                let missed = due.reach(&*engine, tip.load(Ordering::Acquire));
                metrics.certified("unknown", missed);
                let heights = due.take();
                let answers = ask(&rpc, &heights);
                if stopped.load(Ordering::Relaxed) {
                    // Nobody may wait for this thread any more; the next start asks again.
                    return;
                }
                if let Some(differs) = take_in(&*engine, &heights, answers, &metrics) {
                    return halt(differs);
                }
                // It may be let go of meanwhile.
                drop(engine);
                // A stop ends the wait.
                std::thread::park_timeout(PACE);
            }
        })?;
        Ok(Self { stop, wake, thread })
    }

    /// Compares no longer. An exchange that does not end soon is left alone, and what it brings is not looked at.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.wake.try_send(());
        self.thread.thread().unpark();
        let until = Instant::now() + STOP_GRACE;
        // A panic of the thread was reported when it happened.
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The heights whose headers are still to be asked for.
#[derive(Debug, Default)]
struct Due {
    heights: BTreeSet<u64>,
    reached: u64,
}

impl Due {
    /// Adds all heights since the last time, up to `tip`; at first those near the tip that a restart has left without a
    /// certificate, and the tip. Says how many will not be asked for, because there are too many.
    fn reach(&mut self, engine: &dyn Engine, tip: u64) -> u64 {
        let first = self.reached.max(tip.saturating_sub(BACKLOG_MAX)) + 1;
        let left_out = |height: &u64| {
            let before = Height(*height).prev();
            // Who cannot be asked now is not asked again: it is a root less that is compared.
            before.is_some_and(|before| engine.lacks_certificate(before).unwrap_or(false))
                && engine.voters_at(Height(*height)).is_ok_and(|voters| voters.is_some())
        };
        let mut missed = 0;
        match self.reached {
            0 => self.heights.extend((first..=tip).filter(|height| *height == tip || left_out(height))),
            reached => {
                missed = first - reached - 1;
                self.heights.extend(first..=tip);
            }
        }
        let waiting = self.heights.split_off(&tip.saturating_sub(BACKLOG_MAX - 1));
        missed += std::mem::replace(&mut self.heights, waiting).len() as u64;
        self.reached = tip;
        missed
    }

    /// The newest of them, in order.
    fn take(&mut self) -> Vec<u64> {
        let from = self.heights.iter().rev().nth(TOGETHER_MAX - 1).copied().unwrap_or(0);
        self.heights.split_off(&from).into_iter().collect()
    }
}

/// What the engine has of some heights.
fn ask(rpc: &Rpc, heights: &[u64]) -> Vec<Result<Value, String>> {
    if heights.is_empty() {
        return vec![];
    }
    match rpc.commits(heights) {
        Ok(answers) => answers.into_iter().map(|answer| answer.map_err(|error| causes(&error))).collect(),
        Err(error) => vec![Err(causes(&error)); heights.len()],
    }
}

/// Compares the roots below the headers of some heights and says what came of it; the first root that differs.
fn take_in(
    engine: &dyn Engine,
    heights: &[u64],
    answers: Vec<Result<Value, String>>,
    metrics: &Metrics,
) -> Option<Differs> {
    for (height, answer) in heights.iter().map(|height| Height(*height)).zip(answers) {
        let signed = answer
            .and_then(|commit| certificate::of_answer(commit).map_err(|error| format!("the engine's commit: {error}")));
        match compare(engine, height, signed) {
            Compared::Agreed(certificate) => {
                metrics.certified("agreed", 1);
                metrics.certified_height.set(i64::try_from(certificate.height.0).unwrap_or(i64::MAX));
                engine.keep_certificate(certificate.height, certificate.signed.encode_to_vec());
            }
            Compared::Unknown(why) => {
                metrics.certified("unknown", 1);
                tracing::debug!(%height, why, "what the engine certifies is unknown");
            }
            Compared::Differs(differs) => {
                metrics.certified("differs", 1);
                return Some(differs);
            }
        }
    }
    None
}

/// Compares the root below the header of a height; none was had for a reason.
// spec: LEDGER-7
fn compare(engine: &dyn Engine, height: Height, signed: Result<SignedHeader, String>) -> Compared {
    let unknown = |why: &dyn std::error::Error| Compared::Unknown(causes(why));
    let chain_id = match engine.status() {
        Ok(status) => status.chain_id,
        Err(error) => return unknown(&error),
    };
    let voters = match engine.voters_at(height) {
        Ok(Some(voters)) => voters,
        Ok(None) => return Compared::Unknown("who votes there is no longer kept".to_owned()),
        Err(failure) => return unknown(&failure),
    };
    let signed = match signed {
        Ok(signed) => signed,
        Err(why) => return Compared::Unknown(why),
    };
    let certificate = match certificate::verify(signed, &chain_id, height, &voters) {
        Ok(certificate) => certificate,
        Err(error) => return unknown(&error),
    };
    match engine.root_after(certificate.height) {
        Ok(Some(own)) if own == certificate.root => Compared::Agreed(Box::new(certificate)),
        Ok(Some(own)) => Compared::Differs(Differs { height: certificate.height, certified: certificate.root, own }),
        Ok(None) => Compared::Unknown("the root is no longer kept".to_owned()),
        Err(failure) => unknown(&failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abci::tests::{Place, block, key, register};
    use crate::cometbft::certificate::{header_hash, vote_bytes};
    use crate::engine::consensus::certified_root;
    use crate::exit::Exit;
    use keelstone_codec::ChainId;
    use keelstone_sync::consistency::{self, Certified};
    use tendermint_proto::v0_38::types::{BlockId, BlockIdFlag, Commit, CommitSig, Header};

    /// A header with this app hash, signed by the validator with this number.
    fn header(height: u64, app_hash: &[u8], signer: u8) -> SignedHeader {
        let height = i64::try_from(height).unwrap();
        let header =
            Header { chain_id: "abci-test".to_owned(), height, app_hash: app_hash.to_vec(), ..Header::default() };
        let block_id = BlockId { hash: header_hash(&header).to_vec(), part_set_header: None };
        let mut commit = Commit { height, round: 0, block_id: Some(block_id.clone()), signatures: vec![] };
        let mut vote = CommitSig {
            block_id_flag: BlockIdFlag::Commit.into(),
            validator_address: crate::cometbft::keys::address_of(&key(signer).public()).to_vec(),
            ..CommitSig::default()
        };
        vote.signature = key(signer).sign(&vote_bytes("abci-test", &commit, &block_id, &vote)).0.to_vec();
        commit.signatures.push(vote);
        SignedHeader { header: Some(header), commit: Some(commit) }
    }

    /// spec: LEDGER-7. Agreed, unknown or another: only a verified header can say that a root is wrong.
    #[test]
    fn a_root_is_compared_with_what_was_verified_and_with_nothing_else() {
        let place = Place::new();
        let node = place.start();
        let mut client = node.connect();
        client.init(&place);
        let roots = [1, 2].map(|height| {
            let root = client.finalize(block(height, vec![register(u8::try_from(height).unwrap(), 0)])).app_hash;
            client.commit();
            root
        });
        let engine = &*node.engine;
        let compared = |signed: Result<SignedHeader, String>| compare(engine, Height(2), signed);
        let Compared::Agreed(certificate) = compared(Ok(header(2, &roots[0], 100))) else { panic!("it is the root") };
        assert_eq!(certificate.height, Height(1));
        engine.keep_certificate(certificate.height, certificate.signed.encode_to_vec());
        let kept = engine.block(Some(Height(1))).unwrap().certificate.unwrap();
        assert_eq!(kept, hex::encode(certificate.signed.encode_to_vec()));
        client.finalize(block(3, vec![]));
        client.commit();
        drop(client);
        node.stop();

        let node = place.start();
        let engine = &*node.engine;
        assert_eq!(engine.block(Some(Height(1))).unwrap().certificate, Some(kept), "it was written with block 3");
        let mut due = Due::default();
        assert_eq!(due.reach(engine, 3), 0);
        assert_eq!(due.take(), [1, 3], "the certificate of block 1 was written, so 2 is not asked for");
        let compared = |signed: Result<SignedHeader, String>| compare(engine, Height(2), signed);
        // What no block took with it is written when the chain is closed.
        engine.keep_certificate(Height(2), vec![7]);
        engine.write_certificates().unwrap();
        assert!(!engine.lacks_certificate(Height(2)).unwrap());
        for unknown in [Err("no answer".to_owned()), Ok(header(2, &roots[1], 1)), Ok(header(3, &roots[1], 100))] {
            assert!(matches!(compared(unknown), Compared::Unknown(_)));
        }
        let Compared::Differs(differs) = compared(Ok(header(2, &roots[1], 100))) else { panic!("it is another") };
        assert_eq!((differs.height, differs.own.0.as_bytes().as_slice()), (Height(1), &roots[0][..]));
        assert!(differs.to_string().contains("the engine certifies root"), "{differs}");
        node.stop();

        let node = place.start();
        assert_eq!(node.engine.block(Some(Height(2))).unwrap().certificate.as_deref(), Some("07"));
        node.stop();
    }

    /// spec: LEDGER-7, CHECK-1. What is kept of a header and certifies nothing is damage, and not the lack of a header.
    #[test]
    fn a_kept_header_that_certifies_nothing_is_damage() {
        let place = Place::new();
        let node = place.start();
        let mut client = node.connect();
        client.init(&place);
        let root = client.finalize(block(1, vec![register(1, 0)])).app_hash;
        client.commit();
        for height in 2..=3 {
            client.finalize(block(height, vec![]));
            client.commit();
        }
        drop(client);
        let (engine, chain_id) = (&*node.engine, ChainId::new("abci-test").unwrap());
        let certified = || certified_root(engine, &chain_id, Height(1));
        let due = consistency::Due { from: None, entries: 1, peers: 0, roots: 0, number: 0 };
        let picked = || {
            let picked = engine.pick(&due).unwrap();
            assert_eq!(picked.at.height, Height(1));
            (picked.certified, picked.sample.damaged.len())
        };
        assert_eq!(certified().unwrap(), None);
        assert_eq!(picked(), (Certified::Nothing, 0));
        engine.keep_certificate(Height(1), header(2, &root, 100).encode_to_vec());
        let expected = certified().unwrap().unwrap();
        assert_eq!(expected.0.as_bytes().as_slice(), &root[..]);
        assert_eq!(picked(), (Certified::Root(expected), 0));
        for damaged in [vec![7], header(2, &root, 1).encode_to_vec()] {
            engine.keep_certificate(Height(1), damaged);
            assert_eq!(certified().unwrap_err().exit, Exit::Integrity);
            assert_eq!(picked(), (Certified::Nothing, 1));
        }
        node.stop();
    }

    /// L-06: an engine that takes a question and stands still then does not hold up a stop.
    #[test]
    fn l06_an_engine_that_does_not_answer_does_not_hold_up_a_stop() {
        let place = Place::new();
        let node = place.start();
        let mut client = node.connect();
        client.init(&place);
        let engine = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let rpc = Rpc::new(&engine.local_addr().unwrap().to_string()).unwrap();
        let halt = |differs: Differs| panic!("{differs}");
        let certifier = Certifier::start(&node.engine, rpc, Arc::new(Metrics::new()), halt).unwrap();
        client.finalize(block(1, vec![]));
        client.commit();
        let asked = engine.accept().unwrap();
        let began = Instant::now();
        certifier.stop();
        assert!(began.elapsed() < Duration::from_secs(5), "it waits for an answer");
        drop(asked);
        node.stop();
    }

    /// The newest first, the others when there is time, and no more of them wait than may.
    #[test]
    fn headers_are_asked_for_from_the_newest_down() {
        let place = Place::new();
        let node = place.start();
        let engine = &*node.engine;
        let mut due = Due { reached: 1, ..Due::default() };
        assert_eq!(due.reach(engine, 20), 0);
        assert_eq!(due.take(), (13..=20).collect::<Vec<_>>());
        assert_eq!(due.reach(engine, 21), 0);
        assert_eq!(due.take(), [6, 7, 8, 9, 10, 11, 12, 21]);
        assert_eq!(due.reach(engine, 21), 0, "nothing came");
        assert_eq!(due.take(), [2, 3, 4, 5]);
        assert_eq!(due.take(), [0; 0]);
        assert_eq!(due.reach(engine, 22), 0);
        assert_eq!(due.reach(engine, 22 + BACKLOG_MAX), 1, "22 makes room");
        assert_eq!(due.reach(engine, 24 + 3 * BACKLOG_MAX), 2 + 2 * BACKLOG_MAX);
        assert_eq!(due.heights.len() as u64, BACKLOG_MAX);
        node.stop();
    }
}
