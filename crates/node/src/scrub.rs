//! The scrub of a running node: what is stored is looked at again, slice after slice, at a rate that nobody notices.
//!
//! The store knows what comes next and what it found ([`keelstone_store::Store::scrub`]); here is the clock. Blocks go
//! first: before each slice it is seen whether one is at work ([`crate::way`]). Damage is told at once, to the log, to
//! whoever listens to events, to health and to whoever mends ([`crate::mend`]); nothing ends: what is sound is served on.

use crate::config;
use crate::damage::Damage;
use crate::engine::Engine;
use crate::exit::Failure;
use crate::health::Health;
use crate::http::Hub;
use crate::mend::{Look, Mender};
use crate::metrics::Metrics;
use crate::telling::{Event, Id};
use crate::way::{Yielding, step_back};
use keelstone_store::{ScrubStanding, Scrubbed};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long to wait after a slice that could not be looked at, or whose place could not be kept: the machine has other troubles.
const TROUBLE_PAUSE: Duration = Duration::from_secs(60);

/// A running scrub.
pub(crate) struct Scrubber {
    stop: SyncSender<()>,
    thread: JoinHandle<()>,
}

/// Who hears of what is found.
pub(crate) struct Tell {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) health: Arc<Health>,
    pub(crate) mender: Arc<Mender>,
}

impl Scrubber {
    /// Goes on where the last pass stood. None if the configuration wants none; damage that is known is told all the same.
    pub(crate) fn start(engine: &Arc<dyn Engine>, config: &config::Store, tell: Tell) -> Result<Option<Self>, Failure> {
        tell.standing(&engine.scrub_standing(), tell.mender.look());
        if config.scrub_bytes_per_second == 0 {
            return Ok(None);
        }
        let (stop, stopped) = sync_channel(1);
        let scrubbing = Scrubbing {
            slice_bytes: config.scrub_slice_bytes,
            bytes_per_second: config.scrub_bytes_per_second,
            rest: Duration::from_secs(config.scrub_rest_s),
            tell,
        };
        let (yielding, engine) = (Yielding::to(&engine.way()), Arc::downgrade(engine));
        let thread = std::thread::Builder::new().name("scrub".to_owned()).spawn(move || {
            step_back();
            scrubbing.until(&stopped, || {
                yielding.step();
                let engine = engine.upgrade()?;
                Some((engine.scrub(scrubbing.slice_bytes), engine.scrub_standing()))
            });
        });
        let thread = thread.map_err(|error| Failure::io("could not start the scrub", &error))?;
        Ok(Some(Self { stop, thread }))
    }

    /// Scrubs no longer. The next start goes on where it stood.
    pub(crate) fn stop(self) {
        // Full means: told already.
        let _ = self.stop.try_send(());
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }
}

struct Scrubbing {
    slice_bytes: u64,
    bytes_per_second: u64,
    rest: Duration,
    tell: Tell,
}

impl Scrubbing {
    /// Takes slice after slice until it is told to stop, or there is nothing left to look at.
    fn until(
        &self,
        stopped: &Receiver<()>,
        mut slice: impl FnMut() -> Option<(Result<Scrubbed, Failure>, ScrubStanding)>,
    ) {
        let mut pause = Duration::ZERO;
        // From when the present pass looks.
        let mut pass = self.tell.mender.look();
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let since = Instant::now();
            let look = self.tell.mender.look();
            let Some((scrubbed, standing)) = slice() else { return };
            // Before it is mended, so that it is known that there was something.
            self.tell.standing(&standing, look);
            pause = match scrubbed {
                Ok(scrubbed) => {
                    let pause = self.pause(&scrubbed, since.elapsed());
                    self.tell.scrubbed(&scrubbed, look);
                    if scrubbed.is_pass_done {
                        if standing.problems == 0 {
                            self.tell.mender.found_whole(pass);
                        }
                        pass = self.tell.mender.look();
                    }
                    pause
                }
                Err(failure) => {
                    tracing::warn!(%failure, "a slice of the scrub could not be looked at, and is tried again");
                    TROUBLE_PAUSE
                }
            };
        }
    }

    /// How long to do nothing after a slice that took so long.
    fn pause(&self, scrubbed: &Scrubbed, took: Duration) -> Duration {
        if scrubbed.is_pass_done {
            return self.rest;
        }
        let nanos = u128::from(scrubbed.bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).saturating_sub(took)
    }
}

impl Tell {
    fn scrubbed(&self, scrubbed: &Scrubbed, look: Look) {
        self.metrics.store_scrubbed_bytes.inc_by(scrubbed.bytes);
        for problem in &scrubbed.problems {
            let damage = Damage::of(problem);
            tracing::error!(kind = damage.kind, problem = damage.message, "stored bytes are damaged");
            let json = serde_json::json!(damage).to_string().into();
            self.hub.tell(None, || vec![Event { id: Id::AsBefore, kind: "damage", json }]);
        }
        if !scrubbed.problems.is_empty() {
            self.mender.found_damage(look);
            self.mender.learn(look, &scrubbed.problems);
            self.mender.by_itself();
        }
    }

    fn standing(&self, standing: &ScrubStanding, look: Look) {
        self.metrics.scrub_stands(standing);
        if standing.problems > 0 && !self.mender.mended_since(look) {
            self.health.damaged.store(true, Ordering::Relaxed);
        }
    }
}
