//! What this program knows about CometBFT from outside: its key files, its configuration file and its RPC.
//!
//! Nothing here speaks ABCI. The files are written in CometBFT's own formats, so that the engine stays unmodified; what
//! its RPC answers is taken to come from a stranger: bounded, and compared with a second node before it is trusted.

pub(crate) mod base64;
pub(crate) mod certificate;
pub(crate) mod config_file;
pub(crate) mod genesis;
pub(crate) mod home;
pub(crate) mod hostile;
pub(crate) mod keys;
pub(crate) mod light;
pub(crate) mod rpc;
pub(crate) mod trust;
