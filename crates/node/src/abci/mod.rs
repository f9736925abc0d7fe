//! The chain as the ABCI 2.0 application of CometBFT: the engine connects to a socket here and asks.
//!
//! CometBFT opens four connections, for consensus, its pool, questions and snapshots. Each is served in its own order
//! and none waits for another: questions are answered from immutable views while a block runs. What reads the store
//! runs off the threads that serve sockets. The engine is trusted with the order of transactions, not with bytes:
//! frames are bounded before they are decoded, and a call that fails or panics is answered with an exception, at which
//! CometBFT stops.
//!
//! How to run it: `docs/cometbft.md`. The messages are CometBFT's own (`tendermint-proto`, `v0_38`), which 0.38, 0.39
//! and 0.40 share.

mod application;
mod certifier;
mod frame;
pub(crate) mod hostile;
mod patience;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use application::Application;
pub(crate) use certifier::Certifier;
pub use frame::{FIELDS_MAX, FRAME_BYTES_MAX, FrameError, Frames, STRUCTURE_BYTES_MAX, check_size};
pub(crate) use server::{Calls, Server};
