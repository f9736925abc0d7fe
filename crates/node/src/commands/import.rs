//! `keelstone import xian PATH`: a new chain that begins with another network's state.

use super::init::{BlocksBy, create, fresh_genesis};
use super::proof::read_input;
use crate::cli::Context;
use crate::exit::{Exit, Failure};
use crate::out::grouped;
use clap::{Args, Subcommand};
use keelstone_ledger::xian::Import;
use keelstone_ledger::{Genesis, GenesisError};
use std::path::{Path, PathBuf};

/// Make a new chain from another network's state
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    /// From a genesis or state export of a Xian network, or the storage directory of a node of it
    Xian {
        /// The export, `-` for standard input; or the directory that holds `contract_state`, of a node that is stopped
        #[arg(value_name = "PATH")]
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
    let mut genesis = fresh_genesis(&chain_id, &hasher)?;
    let import = if file.is_dir() {
        storage(&file, &mut genesis, context)?
    } else {
        genesis.import_xian(&read_input(&file)?).map_err(|error| refused(&file, &error))?
    };
    let count = |count: usize| grouped(u64::try_from(count).unwrap_or(u64::MAX));
    context.out.row("entries", count(import.entries().len()));
    context.out.row("nonces", count(import.nonces().len()));
    create(genesis, BlocksBy::OwnKey, None, context)
}

fn refused(file: &Path, error: &GenesisError) -> Failure {
    Failure::usage(format!("{}: {error}", file.display()))
}

#[cfg(feature = "hdf5")]
fn storage(directory: &Path, genesis: &mut Genesis, context: &Context<'_>) -> Result<Import, Failure> {
    use crate::xian_storage::{self, StorageError};
    let bar = context.out.progress("contracts", 0);
    let read = xian_storage::read(directory, |total| {
        bar.set_length(total as u64);
        bar.inc(1);
    });
    bar.finish_and_clear();
    let storage = read.map_err(|error| match (error.io(), &error) {
        (Some(source), _) => Failure::io(&error, source),
        (None, StorageError::Changed { .. }) => Failure::usage(error.to_string()).hint("stop the node, or name a copy"),
        (None, _) => Failure::usage(error.to_string()),
    })?;
    let import = genesis.import_xian_json(storage.document).map_err(|error| refused(directory, &error))?;
    context.out.row("contracts", grouped(storage.contracts as u64));
    context.out.row("left out", format_args!("{} keys of compiled code", grouped(storage.compiled)));
    Ok(import)
}

#[cfg(not(feature = "hdf5"))]
fn storage(directory: &Path, _: &mut Genesis, _: &Context<'_>) -> Result<Import, Failure> {
    let message = format!("{} is a directory, and this program was built without HDF5", directory.display());
    Err(Failure::usage(message).hint("build it with `--features hdf5`, or export the state with the node's own tool"))
}
