//! Snapshots: one version of the state, cut into pieces that prove themselves, and what it takes to receive one.
//!
//! The root of a version is all a receiver trusts. A [`snapshot::Plan`] cuts a version into chunks whose contents follow
//! from the root and a chain's parameters alone, so all nodes make the same ones. The first chunks are the upper part of
//! the tree itself; they prove themselves page by page, and every other chunk is checked against them before a byte of
//! it is used. Nothing a sender says about a snapshot is believed.
//!
//! Formats and rules: `spec/snapshot.md`, SNAP-1 to SNAP-17; `spec/library.md`, LIB-1 to LIB-10; `spec/peers.md`, PEER-1 to
//! PEER-21; `spec/consistency.md`, CHECK-1 to CHECK-8; `spec/recovery.md`, RECOVER-1 to RECOVER-6. Vectors: the files of
//! the same names in `spec/vectors`, and `mirror.json`.
#![forbid(unsafe_code)]

pub mod consistency;
pub mod delta;
pub mod library;
pub mod mirror;
pub mod peers;
pub mod recovery;
pub mod snapshot;

#[cfg(test)]
mod delta_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod vectors;
