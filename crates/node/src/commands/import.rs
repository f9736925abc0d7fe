//! `keelstone import xian FILE`: a new chain that begins with another network's exported state.

use super::init::{create, fresh_genesis};
use super::proof::read_input;
use crate::cli::Context;
use crate::exit::{Exit, Failure};
use crate::out::grouped;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Make a new chain from another network's export
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    /// From a genesis or state export of a Xian network
    Xian {
        /// The export; `-` for standard input
        file: PathBuf,
        /// The new network's name
        #[arg(long, default_value = "keelstone-dev")]
        chain_id: String,
        /// The hasher of the state tree: blake3 or sha256
        #[arg(long, default_value = "blake3")]
        hasher: String,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let From::Xian { file, chain_id, hasher } = options.from;
    context.config()?;
    let text = read_input(&file)?;
    let mut genesis = fresh_genesis(&chain_id, &hasher)?;
    let import = genesis.import_xian(&text).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
    let count = |count: usize| grouped(u64::try_from(count).unwrap_or(u64::MAX));
    context.out.row("entries", count(import.entries().len()));
    context.out.row("nonces", count(import.nonces().len()));
    create(genesis, true, context)
}
