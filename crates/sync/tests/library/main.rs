//! Snapshots on a disk that is cut off, fills up and rots, and archives from strangers.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod archives;
mod disk;
mod extracts;
mod support;
mod vectors;
