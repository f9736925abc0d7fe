//! Locks that are held while something is read: the standard library's, unless interleavings are tried
//! (`tools/interleaved-tree`). The locks of shards stay what they are: nobody waits for one, and who has one alone lets go of
//! it before anybody else can have a turn.

#[cfg(interleaved)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(interleaved))]
pub(crate) use std::sync::{Mutex, MutexGuard};
