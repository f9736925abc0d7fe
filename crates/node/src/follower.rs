//! The thread that keeps a chain up with a producer elsewhere.

use crate::config::Config;
use crate::engine::Engine;
use crate::exit::Failure;
use crate::keyfile::PRODUCER;
use crate::library::snapshot_params;
use crate::p2p::{Ends, Follow, Following, Network, Over, Trust, Until};
use keelstone_ledger::Genesis;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// A running follower.
pub(crate) struct Follower {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Whom and how a home follows.
///
/// # Errors
/// A usage failure if there is nobody to follow, or nobody whose word counts.
pub(crate) fn follow(genesis: &Genesis, config: &Config) -> Result<Follow, Failure> {
    if !genesis.validators.is_empty() {
        let message = "this chain has validators: its blocks are made by CometBFT";
        return Err(Failure::usage(message).hint("keelstone node --engine cometbft"));
    }
    let p2p = &config.p2p;
    if p2p.dials_nobody() && !p2p.enabled {
        return Err(Failure::usage("there is nobody to follow").hint("name peers in p2p.peers"));
    }
    let trust = Trust::of(genesis, &p2p.trust_keys, p2p.trust_period_ms)?;
    if trust.keys.is_empty() {
        let message = "the genesis names no producer whose word could be trusted";
        return Err(Failure::usage(message).hint(format!(
            "p2p.trust_keys names one: keelstone keys show {PRODUCER} says it on the node that makes blocks"
        )));
    }
    let request_timeout = Duration::from_millis(p2p.request_timeout_ms);
    let producer_api = p2p.producer_api.0.clone();
    Ok(Follow { params: snapshot_params(genesis), trust, manner: p2p.follow, request_timeout, producer_api })
}

impl Follower {
    /// Starts following. `over` is called once, if it comes to an end that nobody asked for; a gap is one if `gap_ends`.
    pub(crate) fn start(
        runtime: &Handle,
        engine: Arc<dyn Engine>,
        network: Network,
        follow: Follow,
        ends: impl FnOnce(watch::Receiver<bool>) -> Ends,
        gap_ends: bool,
        over: impl FnOnce(Over) + Send + 'static,
    ) -> Result<Self, Failure> {
        let (stop, stopped) = watch::channel(false);
        let (runtime, ends) = (runtime.clone(), ends(stopped));
        let run = move || {
            let follows = || match Following::new(&runtime, &*engine, network, follow, ends) {
                Ok(mut following) => following.run(Until::Stopped { gap_ends }),
                Err(failure) => Over::Failed(failure),
            };
            // Who follows no more says so, whatever the reason.
            let ended = catch_unwind(AssertUnwindSafe(follows));
            match ended.unwrap_or_else(|_| Over::Failed(Failure::error("following met a bug"))) {
                Over::Done => {}
                why => over(why),
            }
        };
        let thread = std::thread::Builder::new().name("follower".to_owned()).spawn(run);
        let thread = thread.map_err(|error| Failure::io("could not start following", &error))?;
        Ok(Self { stop, thread })
    }

    /// Lets the height that is being taken in become durable, and takes in no other.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }
}
