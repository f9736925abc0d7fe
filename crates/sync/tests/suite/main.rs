//! Snapshots and deltas of real stores: on a disk that is cut off, fills up and rots, and from strangers; what is mended from
//! peers; and where two chains part.
//!
//! One program, because each builds what it uses of the store and the tree anew.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod archives;
mod disk;
mod diverge;
mod extracts;
mod mend;
mod peer;
mod store;
mod support;
mod vectors;
