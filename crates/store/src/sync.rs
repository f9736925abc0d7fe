//! Locks, channels, counters and threads: the standard library's, unless interleavings are tried.
//!
//! `tools/interleaved-store` builds this very crate with `cfg(interleaved)`. Then each of them is a place where a scheduler
//! decides who goes on, so that a test can try thousands of orders and repeat the one that failed.

#[cfg(interleaved)]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread,
};
#[cfg(not(interleaved))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread,
};
