//! Durable, verifiable versions of the state tree over a small file trait.
//!
//! The store takes a diff and gives a root that survives the power: a commit is acknowledged once its diff is synced in a
//! log, and the tree's pages follow in the background. Versions are immutable and cheap, so any retained height can be
//! read and proven while commits go on. Every byte read from the disk is checked, by a checksum or by its hash.
//!
//! [`Store`] is the whole of it; [`files`] the disk below; [`kv`] a plain key-value database for what needs no root.
//!
//! Formats and rules: `spec/store.md`, all of STORE. Vectors: `spec/vectors/store.json`.
#![forbid(unsafe_code)]

mod answers;
mod appender;
mod build;
mod cache;
mod check;
mod commit;
mod compact;
mod error;
pub mod files;
mod flush;
pub mod frames;
mod history;
#[doc(hidden)]
pub mod hostile;
pub mod kv;
mod log;
mod look;
mod mend;
mod options;
mod pace;
mod record;
mod recover;
mod repair;
mod scrub;
mod sector;
mod segment;
mod segments;
mod shared;
mod store;
mod superblock;
mod sync;
mod version;
mod view;

pub use build::Building;
pub use check::{CheckLevel, CheckReport};
pub use commit::Prepared;
pub use compact::Compacted;
pub use error::StoreError;
pub use mend::{Accept, Mended, Supplier, Wanted};
pub use options::{Options, Retention};
pub use repair::{Loss, RepairError, Repaired, RepairedFrom, Source, Take};
pub use scrub::{ScrubStanding, Scrubbed};
pub use store::{Change, CommittedDiff, Progress, Stats, Store};
pub use view::View;

#[cfg(test)]
mod vectors;
