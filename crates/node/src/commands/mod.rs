//! The commands, one to a file, each with its `Options` and `run`. Commands that inspect never write.

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod bundle;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod conflict;
pub(crate) mod db;
pub(crate) mod demo;
pub(crate) mod export;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod keys;
pub(crate) mod node;
pub(crate) mod proof;
pub(crate) mod query;
pub(crate) mod rebuild;
pub(crate) mod replay;
pub(crate) mod rollback;
pub(crate) mod snapshot;
pub(crate) mod statesync;
pub(crate) mod status;
pub(crate) mod testnet;
mod testnet_demo;
pub(crate) mod token;
pub(crate) mod tx;
