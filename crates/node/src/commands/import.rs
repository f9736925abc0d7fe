//! `keelstone import xian PATH`: a new chain that begins with another network's state.

use super::init::{BlocksBy, create, fresh_genesis, validator};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::out::grouped;
use clap::{Args, Subcommand};
use keelstone_codec::Height;
use keelstone_execution::{Capability, PublicKey};
use keelstone_ledger::xian::Import;
use keelstone_ledger::{Genesis, GenesisError, check_key};
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
        /// The new network's name [default: the program's, and -dev]
        #[arg(long)]
        chain_id: Option<String>,
        /// The hasher of the state tree: blake3 or sha256
        #[arg(long, default_value = "blake3")]
        hasher: String,
        /// A validator, for a chain under CometBFT, as `keelstone init` takes it; may be repeated
        #[arg(long = "validator", value_name = "KEY=POWER")]
        validators: Vec<String>,
        /// The height of the new network's first block
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
        initial_height: u64,
        /// A reserved capability that a key has from the start, such as contracts.patch; may be repeated
        #[arg(long = "grant", value_name = "KEY=CAPABILITY")]
        grants: Vec<String>,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let From::Xian { file, chain_id, hasher, validators, initial_height, grants } = options.from;
    context.config()?;
    let mut genesis = fresh_genesis(&context.chain_id(chain_id), &hasher)?;
    genesis.initial_height = Height(initial_height);
    genesis.validators = validators.iter().map(|text| validator(text)).collect::<Result<_, _>>()?;
    for text in &grants {
        let (key, capability) = grant(text)?;
        genesis.grants.entry(key).or_default().insert(capability);
    }
    let import = if file.is_dir() {
        storage(&file, &mut genesis, context)?
    } else {
        genesis.import_xian(&read_input(&file)?).map_err(|error| refused(&file, &error))?
    };
    let count = |count: usize| grouped(u64::try_from(count).unwrap_or(u64::MAX));
    context.out.row("entries", count(import.entries().len()));
    context.out.row("nonces", count(import.nonces().len()));
    let made_by = if genesis.validators.is_empty() { BlocksBy::OwnKey } else { BlocksBy::CometBft };
    create(genesis, made_by, None, told(&import), context)
}

/// What is not as whoever imports may expect it.
fn told(import: &Import) -> Vec<String> {
    let mut told = Vec::new();
    let left_out: Vec<&str> = import.left_out().collect();
    if !left_out.is_empty() {
        let names = listed(&left_out);
        told.push(format!("nothing is taken from these members of the document, which an export has again: {names}"));
    }
    let cannot_act: Vec<&str> = import.cannot_act().collect();
    if !cannot_act.is_empty() {
        let (count, names) = (cannot_act.len(), listed(&cannot_act));
        told.push(format!(
            "accounts that cannot act, since their last nonce is none that another follows: {count}: {names}"
        ));
    }
    told
}

/// Names, as many as one reads.
fn listed(names: &[&str]) -> String {
    const NAMED_MAX: usize = 8;
    let mut text = names.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    text
}

/// Reads `KEY=CAPABILITY`.
fn grant(text: &str) -> Result<(PublicKey, Capability), Failure> {
    let wrong = |what: &dyn std::fmt::Display| Failure::usage(format!("--grant {text}: {what}"));
    let (key, capability) = text.split_once('=').ok_or_else(|| wrong(&"expected KEY=CAPABILITY"))?;
    let key = PublicKey::from_hex(key).map_err(|error| wrong(&error))?;
    check_key(&key).map_err(|error| wrong(&error))?;
    Ok((key, Capability::parse(capability).map_err(|error| wrong(&error))?))
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
