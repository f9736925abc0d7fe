//! Snapshots: one version of the state, cut into pieces that prove themselves, and what it takes to receive one.
//!
//! The root of a version is all a receiver trusts. A [`snapshot::Plan`] cuts a version into chunks whose contents follow
//! from the root and a chain's parameters alone, so all nodes make the same ones. The first chunks are the upper part of
//! the tree itself; they prove themselves page by page, and every other chunk is checked against them before a byte of
//! it is used. Nothing a sender says about a snapshot is believed.
//!
//! Formats and rules: `spec/snapshot.md`, SNAP; `spec/library.md`, LIB; `spec/peers.md`, PEER; `spec/consistency.md`, CHECK;
//! `spec/recovery.md`, RECOVER. Vectors: the files of the same names in `spec/vectors`, and `mirror.json`.
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
