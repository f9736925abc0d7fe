//! `keelstone init`: a new chain in a home directory.

use crate::cli::Context;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::keyfile::KeyDir;
use crate::out::short;
use clap::Args;
use keelstone_codec::{ChainId, Timestamp};
use keelstone_ledger::{Genesis, SecretKey};
use keelstone_tree::HashKind;
use serde_json::json;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The name of the key that makes blocks.
pub(crate) const PRODUCER: &str = "producer";

/// Make a new chain in the home directory
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The network's name
    #[arg(long, default_value = "keelstone-dev")]
    chain_id: String,
    /// The hasher of the state tree: blake3, or sha256 for verifiers in Go
    #[arg(long, default_value = "blake3")]
    hasher: String,
    /// Take this genesis instead of making one; its producers then need a key here
    #[arg(long, conflicts_with_all = ["chain_id", "hasher"])]
    genesis: Option<PathBuf>,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    context.config()?;
    let genesis = match &options.genesis {
        Some(file) => {
            let text = super::proof::read_input(file)?;
            Genesis::parse(&text).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?
        }
        None => fresh_genesis(&options.chain_id, &options.hasher)?,
    };
    create(genesis, options.genesis.is_none(), context)
}

/// A genesis of this name, at this moment.
pub(crate) fn fresh_genesis(chain_id: &str, hasher: &str) -> Result<Genesis, Failure> {
    let chain_id = ChainId::new(chain_id).map_err(|error| Failure::usage(format!("--chain-id: {error}")))?;
    let hasher: HashKind = hasher.parse().map_err(|error| Failure::usage(format!("--hasher: {error}")))?;
    Ok(Genesis { hasher, time: now(), ..Genesis::new(chain_id) })
}

/// The machine's clock. It enters state only as the time of a block.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Makes the chain of a genesis; with `own_producer`, of a key made here.
pub(crate) fn create(mut genesis: Genesis, own_producer: bool, context: &Context<'_>) -> Result<Exit, Failure> {
    let home = &context.home;
    if home.genesis().exists() {
        return Err(Failure::usage(format!("there is a chain in {} already", home.path().display())));
    }
    let keys = KeyDir::new(home.path());
    if !keys.names()?.iter().any(|name| name == PRODUCER) {
        let key = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
        keys.save(PRODUCER, &key)?;
    }
    if own_producer {
        genesis.producers = vec![keys.load(PRODUCER)?.public()];
    }
    let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
    home.write_genesis(&genesis)?;
    if !home.config().exists() {
        std::fs::write(home.config(), Config::default().to_toml())
            .map_err(|error| Failure::io("could not write keelstone.toml", &error))?;
    }
    let chain = context.open_chain()?;
    let status = chain.status()?;
    chain.flush()?;

    let out = context.out;
    out.row("chain", &genesis.chain_id);
    out.row("home", home.path().display());
    out.row("genesis", short(first.hash));
    out.row("root", &status.root);
    out.say("");
    out.say("next: keelstone node");
    out.emit(&json!({
        "chain_id": genesis.chain_id.as_str(), "home": home.path(), "genesis_hash": first.hash, "root": status.root,
        "height": status.height, "entries": status.entries,
    }));
    Ok(Exit::Ok)
}
