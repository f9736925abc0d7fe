//! The commands, one to a file, each with its `Options` and `run`. Commands that inspect never write.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod keys;
