//! Which function is at work, for a watchdog on another thread.
//!
//! Metering stops a function at its next host call; a loop that makes none cannot be stopped deterministically. The
//! node watches from outside, and halts itself when one call takes too long, naming the function (spec: EXEC-13).
//! This crate knows no clock, so it only says what runs.

use std::sync::{Arc, Mutex, PoisonError};

/// A board on which execution writes what it is at. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    calls: u64,
    function: Option<&'static str>,
}

impl Activity {
    /// The call at work: its serial number and its function's name. If two looks a deadline apart show the same serial
    /// number, the call has run for all that time.
    #[must_use]
    pub fn current(&self) -> Option<(u64, &'static str)> {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.function.map(|function| (board.calls, function))
    }

    pub(crate) fn enter(&self, function: &'static str) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.calls = board.calls.wrapping_add(1);
        board.function = Some(function);
    }

    pub(crate) fn leave(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).function = None;
    }
}
