//! The node: the command line, the HTTP API, metrics and configuration of a Keelstone chain.
//!
//! This is the only crate that touches the world: sockets, clocks, signals, terminals and files that are not the
//! store's. What a chain *does* comes in as the functions its registry holds, so an application of one's own gets
//! the whole command line by handing its registry to [`Application`].
//!
//! Everything that arrives over HTTP or in a file is taken to come from an adversary. How to run a node is written
//! down in `docs/`: `cli.md`, `configuration.md`, `http.md`, `cometbft.md`.
#![forbid(unsafe_code)]

mod abci;
mod alone;
mod api;
mod application;
mod audit;
mod authority;
mod bench;
mod bundle;
mod call;
mod check;
mod cli;
mod client;
mod clock;
mod cometbft;
mod commands;
mod config;
mod context;
mod control;
mod damage;
mod descriptors;
mod engine;
mod exit;
mod failures;
mod follower;
mod generations;
mod health;
mod home;
#[doc(hidden)]
pub mod hostile;
mod http;
mod input;
mod interrupt;
mod keyfile;
mod library;
mod mend;
mod metrics;
mod misfits;
mod newfile;
mod origin;
mod out;
mod own_log;
mod p2p;
mod passphrase;
mod processes;
mod producer;
mod recovery;
mod room;
mod scrub;
mod session;
mod snapshots;
mod story;
mod strict_json;
mod supervise;
mod telling;
mod testnet;
mod throughput;
mod tls;
mod tokens;
mod typed_key;
mod watchdog;
mod way;
mod world;
#[cfg(feature = "hdf5")]
mod xian_storage;

pub use abci::{FIELDS_MAX, FRAME_BYTES_MAX, FrameError, Frames, STRUCTURE_BYTES_MAX, check_size};
pub use application::Application;
pub use call::{arguments, shown};
pub use config::{
    AbciAddress, ApiAddress, Blocks, Check, Config, ConfigError, EngineKind, EngineSection, Execution, FileName,
    History, Http, HttpAddress, IntegrityDepth, Log, LogFilter, LogFormat, Mempool, NodeId, P2p, PeerAddress, Place,
    Production, Recovery, Snapshots, Store, Strategies,
};
pub use exit::{Exit, Failure};
pub use keyfile::key_file;
#[cfg(feature = "hdf5")]
pub use xian_storage::{At, FileError, Keys, NAMES_BYTES_MAX, READ_BYTES_MAX, keys_of_bytes};
