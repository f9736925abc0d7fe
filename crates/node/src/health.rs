//! Whether a node is any use: what whoever works in it finds, and whoever asks it is told.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

/// Whether this node is any use.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// A write failed: nothing more is committed until the node restarts.
    pub(crate) failed: AtomicBool,
    /// Stored bytes are damaged, as a scrub found.
    pub(crate) damaged: AtomicBool,
    /// So much was mended of late that nothing more is.
    pub(crate) mends_no_more: AtomicBool,
    /// The node is stopping.
    pub(crate) stopping: AtomicBool,
    /// The last check found that the state here is damaged, or not the certified one.
    pub(crate) inconsistent: AtomicBool,
    /// The function that somebody asked about and that does not end, if there is one.
    endless: Mutex<Option<&'static str>>,
}

impl Health {
    /// Takes note of which function does not end that somebody asked about; says whether that is news.
    // spec: EXEC-13
    pub(crate) fn note_endless(&self, function: Option<&'static str>) -> bool {
        let mut endless = self.endless.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *endless, function) != function
    }

    /// What is to be said of it.
    pub(crate) fn endless(&self) -> Option<String> {
        let function = (*self.endless.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(format!("nothing is run for a question: {function} was asked about, does not end, and cannot be stopped"))
    }
}
