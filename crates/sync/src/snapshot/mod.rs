//! How a version becomes chunks, and chunks a version again.
//!
//! | to | see |
//! | --- | --- |
//! | cut a version and read its chunks | [`Plan`] |
//! | say what a snapshot is | [`Metadata`], [`snapshot_hash`] |
//! | make a chunk ready for transfer | [`pack`], [`Packer`], [`unpack`] |
//! | prove chunks, or single units, from wherever they come | [`Skeleton`] |
//! | ask about a part of a version, and read only that | [`Part`] |
//! | receive a snapshot as an engine hands it over | [`Restore`] |
//!
//! Rules: `spec/snapshot.md`.

mod body;
mod cut;
mod metadata;
mod page;
mod part;
mod plan;
mod restore;
mod skeleton;
mod staging;
#[cfg(test)]
mod tests;
mod unit;
mod wire;

pub use cut::{CHUNKS_MAX, NODES_MAX, TooLarge};
pub use metadata::{FORMAT, METADATA_BYTES_MAX, Metadata, SnapshotParams, snapshot_hash};
pub use part::{Fetch, Part, PartNode};
pub use plan::{Plan, PlanError};
pub use restore::{
    ChunkVerdict, EntriesError, Offer, OfferVerdict, Restore, RestoreError, RestoreLimits, RestoreProgress,
};
pub use skeleton::{CheckedChunk, ChunkError, Fault, PageError, PartOf, Skeleton};
pub(crate) use skeleton::{Place, hand_on};
pub use staging::StagingError;
pub(crate) use staging::{StagingFiles, failed};
#[cfg(test)]
pub(crate) use tests::forged::{SMALL, two_units};
pub use unit::{Unit, UnitError, UnitName};
pub use wire::{PackError, Packer, UnpackError, WIRE_BYTES_MAX, pack, unpack};
