//! Syncing from peers: the messages, and the two machines that speak them.
//!
//! | to | see |
//! | --- | --- |
//! | say it on a wire | [`Request`], [`Response`], [`Frame`] |
//!
//! Rules: `spec/peers.md`.

mod message;
#[cfg(test)]
mod vectors;

pub use message::{
    Body, Frame, HEIGHTS_MAX, HeightDiff, Heights, PROOF_BYTES_MAX, ProofBytes, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX,
    Request, Response, Status, UNITS_MAX, Version, Why,
};
