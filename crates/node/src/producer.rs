//! The thread that makes blocks of a chain without another consensus: on demand, or by the clock.

use crate::clock::now;
use crate::config::{Blocks, Production};
use crate::engine::Engine;
use crate::exit::Failure;
use crate::metrics::Metrics;
use keelstone_execution::PublicKey;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running producer.
pub(crate) struct Producer {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Producer {
    /// Starts making blocks as `blocks` says. `failed` is called once if a block could not be committed: a failed
    /// write is final, so no further block is tried.
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        key: PublicKey,
        blocks: &Blocks,
        metrics: Arc<Metrics>,
        failed: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        engine.wake_on_submit(wake.clone());
        // Async bundles that were in flight when the node stopped wait for no transaction.
        let _ = wake.try_send(());
        let stop = Arc::new(AtomicBool::new(false));
        let interval = (blocks.production == Production::Interval).then(|| Duration::from_millis(blocks.interval_ms));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("producer".to_owned()).spawn(move || {
            let make = || -> Result<(), Failure> {
                while wait(&woken, interval, &stopped) {
                    make_blocks(&*engine, key, interval.is_some(), &metrics, &stopped)?;
                }
                Ok(())
            };
            // Who makes no blocks any more says so, whatever the reason.
            let ended = catch_unwind(AssertUnwindSafe(make));
            let ended = ended.unwrap_or_else(|_| Err(Failure::error("making it met a bug")));
            if let Err(failure) = ended {
                tracing::error!(%failure, "a block could not be committed; restart the node");
                failed();
            }
        })?;
        Ok(Self { stop, wake, thread })
    }

    /// Lets the block that is being made become durable, and makes no other.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.wake.try_send(());
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }
}

/// By the clock one block, empty if nothing waits; on demand as many as there are transactions and async bundles for.
fn make_blocks(
    engine: &dyn Engine,
    key: PublicKey,
    by_clock: bool,
    metrics: &Metrics,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    loop {
        let started = Instant::now();
        let made = engine.produce(now(), key, by_clock)?;
        if made.is_some() {
            metrics.block_seconds.observe(started.elapsed().as_secs_f64());
        }
        if by_clock || made.is_none() || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// Waits for the next block's time. False once the producer stops.
fn wait(woken: &Receiver<()>, interval: Option<Duration>, stop: &AtomicBool) -> bool {
    let Some(interval) = interval else {
        let woken = woken.recv();
        return woken.is_ok() && !stop.load(Ordering::Relaxed);
    };
    let next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let waited = woken.recv_timeout(left);
        if stop.load(Ordering::Relaxed) || waited == Err(RecvTimeoutError::Disconnected) {
            return false;
        }
        if waited == Err(RecvTimeoutError::Timeout) {
            return true;
        }
    }
}
