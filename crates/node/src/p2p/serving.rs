//! Answering peers, on a thread of its own: reading the store and compressing takes milliseconds that nobody else waits.
//!
//! What may be asked for and how much of it is decided by [`keelstone_sync::peers::Server`]; here are only the queue, which is short and
//! tells whoever finds it full to come back, and the clock.

use crate::engine::versions::Answers;
use keelstone_codec::Encode as _;
use keelstone_sync::peers::{Frame, PeerId, Request, Response, Tick};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests that may wait for the thread.
const WAITING_MAX: usize = 64;
/// In how many milliseconds to come back when they do.
const COME_BACK_MS: u32 = 200;

/// What becomes of an answer's frame, which took so long to make.
pub(super) type Reply = Box<dyn FnOnce(Vec<u8>, Duration) + Send>;

enum Job {
    Answer { peer: PeerId, frame: Frame<Request>, reply: Reply },
    Gone(PeerId),
}

/// The thread that answers.
pub(super) struct Serving {
    jobs: SyncSender<Job>,
    thread: JoinHandle<()>,
}

impl Serving {
    pub(super) fn start(mut answers: Box<dyn Answers>) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel::<Job>(WAITING_MAX);
        let thread = std::thread::Builder::new().name("peers".to_owned()).spawn(move || {
            let start = Instant::now();
            let now = || Tick(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX));
            for job in waiting {
                match job {
                    Job::Answer { peer, frame, reply } => {
                        let begun = Instant::now();
                        let body = answers.answer(now(), peer, &frame.body);
                        let answer = Frame { id: frame.id, body }.to_bytes();
                        let took = begun.elapsed();
                        answers.worked(peer, took);
                        reply(answer, took);
                    }
                    Job::Gone(peer) => answers.gone(peer),
                }
            }
        })?;
        Ok(Self { jobs, thread })
    }

    /// Has a request answered. If too many wait, the answer is that.
    pub(super) fn answer(&self, peer: PeerId, frame: Frame<Request>, reply: Reply) {
        match self.jobs.try_send(Job::Answer { peer, frame, reply }) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                let Job::Answer { frame, reply, .. } = job else { return };
                let body = Response::Busy { retry_after_ms: COME_BACK_MS };
                reply(Frame { id: frame.id, body }.to_bytes(), Duration::ZERO);
            }
        }
    }

    /// Forgets a peer. Says whether there was room to say so; if not, it has to be said again.
    pub(super) fn gone(&self, peer: PeerId) -> bool {
        self.jobs.try_send(Job::Gone(peer)).is_ok()
    }

    /// Answers what waits, and no more.
    pub(super) fn stop(self) {
        drop(self.jobs);
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }
}
