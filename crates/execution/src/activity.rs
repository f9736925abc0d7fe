//! Which function is at work, for a watchdog on another thread.
//!
//! Metering stops a function at its next host call; a loop that makes none cannot be stopped deterministically. The
//! node watches from outside, and halts itself when one call takes too long, naming the function (spec: EXEC-13).
//! This crate knows no clock, so it only says what runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A board on which execution writes what it is at. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    calls: u64,
    /// The calls at work, by serial number: one for each thread that runs functions.
    running: BTreeMap<u64, &'static str>,
}

impl Activity {
    /// The call that has been at work longest: its serial number and its function's name. If two looks a deadline apart
    /// show the same serial number, the call has run for all that time.
    #[must_use]
    pub fn current(&self) -> Option<(u64, &'static str)> {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.running.first_key_value().map(|(call, function)| (*call, *function))
    }

    /// A call begins; what it is called when it ends.
    pub(crate) fn enter(&self, function: &'static str) -> u64 {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.calls = board.calls.wrapping_add(1);
        let call = board.calls;
        board.running.insert(call, function);
        call
    }

    pub(crate) fn leave(&self, call: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).running.remove(&call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec: EXEC-13, EXEC-15. While others come and go beside it, a call that does not end stays the one that is shown.
    #[test]
    fn the_call_that_began_first_is_shown() {
        let activity = Activity::default();
        assert_eq!(activity.current(), None);
        let stuck = activity.enter("stuck");
        for _ in 0..3 {
            let quick = activity.enter("quick");
            assert_eq!(activity.current(), Some((stuck, "stuck")));
            activity.leave(quick);
        }
        let second = activity.enter("second");
        activity.leave(stuck);
        assert_eq!(activity.current(), Some((second, "second")));
    }
}
