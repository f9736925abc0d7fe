//! Syncing from peers: the messages, and the machines that speak them.
//!
//! | to | see |
//! | --- | --- |
//! | say it on a wire | [`Request`], [`Response`], [`Frame`] |
//! | take a version from many peers | [`Joiner`] |
//! | keep up with a chain that others make | [`Follower`] |
//! | give versions to peers | [`Server`] |
//!
//! The machines are pure: the caller brings events, a clock and a directory, and does what they say. Nothing a peer says
//! is believed, and nothing is written before it is proven.
//!
//! Rules: `spec/peers.md`.

mod follower;
#[cfg(test)]
mod follower_tests;
mod jobs;
mod joiner;
#[cfg(test)]
mod joiner_tests;
mod message;
mod progress;
mod server;
#[cfg(test)]
mod server_tests;
mod staging;
mod standing;
#[cfg(test)]
mod vectors;

pub use crate::snapshot::StagingError;
pub use follower::{Change, Diverged, FollowEffect, FollowEvent, Follower, Gap, Manner, Step};
use joiner::Dice;
pub use joiner::{Effect, Ended, EntriesError, Event, Joiner, Misconduct, PeerId, Settings, Tick};
pub use message::{
    BLOCK_BYTES_MAX, Body, CERTIFICATE_BYTES_MAX, Frame, HEIGHTS_MAX, HeightDiff, Heights, PROOF_BYTES_MAX, ProofBytes,
    REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Response, Status, UNITS_MAX, Version, Why,
};
pub use progress::Progress;
pub use server::{Server, ServerLimits, Versions, header_query};
use staging::Staging;
