//! A watchdog over the functions: what a function does without asking its host cannot be stopped, only noticed.
//!
//! Metering ends every function that asks its host for something, the same on every node. A loop that asks for nothing
//! runs for ever. So a thread of its own looks at what is at work, and says when one call has run for longer than
//! `execution.watchdog_ms`.
//!
//! What follows depends on who had it run. A block that is being made was never committed: a node that ends itself there
//! has lost nothing that anybody was told, and so has a command. A question, which anybody may ask unsigned, must not be
//! the end of a node: that is told, and nothing more is run for one.
//!
//! Rule: `spec/chain.md`, EXEC-13.

use crate::exit::{Exit, Failure};
use keelstone_execution::Activity;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many times a call is looked at before it has used up its time.
const LOOKS: u32 = 10;
/// The longest time between two looks.
const LOOK_EVERY_MAX: Duration = Duration::from_millis(500);

/// A running watchdog. It watches no longer once it is dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    stop: SyncSender<()>,
    thread: JoinHandle<()>,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// How long the call at work has been seen to run.
    pub(crate) ran: Duration,
    /// Its function, if that is as long as one may.
    pub(crate) over: Option<&'static str>,
}

impl Watchdog {
    /// Watches `activity`. `told` hears of each look at a call that may run for `limit`.
    pub(crate) fn start(
        activity: Activity,
        limit: Duration,
        mut told: impl FnMut(Look) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let every = (limit / LOOKS).min(LOOK_EVERY_MAX);
            let mut watch = Watch::new(every);
            let mut last = Instant::now();
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let passed = last.elapsed();
                last += passed;
                let ran = watch.look(activity.current(), passed);
                let over = watch.call.filter(|_| ran >= limit);
                told(Look { ran, over: over.map(|(_, function)| function) });
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Watches no longer.
    pub(crate) fn stop(self) {
        // Full means: told already.
        let _ = self.stop.try_send(());
        // A panic of the thread was reported when it happened.
        let _ = self.thread.join();
    }
}

/// What a process ends with that is `who`: a function in it does not end. There is no other way to stop one: it is native code, and
/// what it holds stays held.
pub(crate) fn endless(who: &str, function: &str, ran: Duration) -> Failure {
    let ran_ms = ran.as_millis();
    let message = format!("the function {function} has run for {ran_ms} ms and cannot be stopped: the {who} halts");
    let hint = "a function must ask its host for something, or count its steps, in every loop (execution.watchdog_ms)";
    Failure::new(Exit::Halted, message).hint(hint)
}

/// What was at work at the last look, and how long it had run by then. Knows no clock.
struct Watch {
    every: Duration,
    call: Option<(u64, &'static str)>,
    ran: Duration,
}

impl Watch {
    fn new(every: Duration) -> Self {
        Self { every, call: None, ran: Duration::ZERO }
    }

    /// Takes in what is at work, `passed` after the last look, and says how long it has been seen to run.
    fn look(&mut self, call: Option<(u64, &'static str)>, passed: Duration) -> Duration {
        self.ran = match call.is_some() && call == self.call {
            // A process that was stopped for an hour did not run for an hour: a look that comes late counts for two.
            true => self.ran + passed.min(self.every * 2),
            false => Duration::ZERO,
        };
        self.call = call;
        self.ran
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(100);

    fn ran(looks: &[(Option<u64>, u64)]) -> Vec<u128> {
        let mut watch = Watch::new(EVERY);
        let look = |(serial, passed): &(Option<u64>, u64)| {
            watch.look(serial.map(|serial| (serial, "f")), Duration::from_millis(*passed)).as_millis()
        };
        looks.iter().map(look).collect()
    }

    /// spec: EXEC-13. However many calls follow one another, only the one at work counts.
    #[test]
    fn x09_the_time_of_one_call_is_never_counted_for_the_next() {
        assert_eq!(ran(&[(Some(1), 100), (Some(1), 100), (Some(1), 110)]), [0, 100, 210]);
        assert_eq!(ran(&[(Some(1), 100), (Some(1), 100), (Some(2), 100), (Some(2), 100)]), [0, 100, 0, 100]);
        assert_eq!(ran(&[(Some(1), 100), (Some(1), 100), (None, 100), (None, 100), (Some(2), 100)]), [0, 100, 0, 0, 0]);
    }

    #[test]
    fn x09_time_in_which_the_whole_process_stood_still_is_not_the_functions() {
        assert_eq!(ran(&[(Some(1), 100), (Some(1), 3_600_000)]), [0, 200]);
    }
}
