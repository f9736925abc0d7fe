//! `keelstone snapshot to-genesis`: the genesis of a new network that begins with the state of a snapshot.
//!
//! What the application made of its state goes along; what the engine keeps of the old chain does not: its facts, block
//! records, sessions, nonces, bundles in flight and audit belong to the old chain id, under which everything was signed
//! and linked. The new network has keys, grants and a name of its own.

use super::{Source, expected, genesis_if_any, show, trusted};
use crate::cli::Context;
use crate::commands::init::{now, validator};
use crate::commands::proof::FILE_BYTES_MAX;
use crate::exit::{Exit, Failure};
use crate::out::{bytes, grouped, short};
use clap::Args;
use keelstone_codec::{ChainId, Decode as _, Height, Key, Namespace, Value};
use keelstone_execution::{PublicKey, SYSTEM_NAMESPACES};
use keelstone_ledger::{CHAIN, ChainFacts, Genesis, check_key};
use keelstone_sync::library::{Info, LibraryError};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

/// Most bytes of keys and values a genesis file takes: it is JSON, held in memory and read by every node. A larger state
/// goes on as the same chain, by `restore`.
const STATE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A height of this home's snapshots, or the path of an archive
    snapshot: Source,
    /// The new network's name
    #[arg(long)]
    chain_id: String,
    /// A public key that may make blocks; may be repeated. None: anybody's, for development
    #[arg(long)]
    producer: Vec<String>,
    /// A validator, for a chain under CometBFT, as `keelstone init` takes it; may be repeated
    #[arg(long = "validator", value_name = "KEY=POWER", conflicts_with = "producer")]
    validators: Vec<String>,
    /// The height of the new network's first block
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    initial_height: u64,
    /// The root you trust; without it the one the snapshot says is used
    #[arg(long)]
    root: Option<String>,
    /// The file to write, which must not exist; `keelstone init --genesis` takes it
    #[arg(long, short)]
    out: PathBuf,
}

/// What is taken of a snapshot.
#[derive(Default)]
struct Taken {
    state: BTreeMap<(Namespace, Key), Value>,
    bytes: u64,
    facts: Option<Vec<u8>>,
    /// Entries of the engine's own namespaces.
    left: u64,
}

impl Taken {
    fn take(&mut self, namespace: &Namespace, key: &[u8], value: &[u8]) -> Result<(), LibraryError> {
        if SYSTEM_NAMESPACES.contains(&namespace.as_str()) {
            self.left += 1;
            if namespace.as_str() == CHAIN && key == b"facts" {
                self.facts = Some(value.to_vec());
            }
            return Ok(());
        }
        self.bytes += u64::try_from(key.len() + value.len()).unwrap_or(u64::MAX);
        if self.bytes > STATE_BYTES_MAX {
            let file = "the state of the applications".to_owned();
            return Err(LibraryError::TooLarge { file, found: self.bytes, limit: STATE_BYTES_MAX });
        }
        let fits = "a proven entry has a key and a value";
        let (key, value) = (Key::new(key).expect(fits), Value::new(value.to_vec()).expect(fits));
        self.state.insert((namespace.clone(), key), value);
        Ok(())
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain_id = ChainId::new(&options.chain_id).map_err(|error| Failure::usage(format!("--chain-id: {error}")))?;
    let producers = options.producer.iter().map(|text| producer(text)).collect::<Result<Vec<_>, _>>()?;
    let validators = options.validators.iter().map(|text| validator(text)).collect::<Result<Vec<_>, _>>()?;
    trusted(options.root.as_deref())?;
    let expected = expected(genesis_if_any(context)?.as_ref(), options.root.as_deref())?;
    let mut taken = Taken::default();
    let bar = context.out.progress("reading", 0);
    let read = options.snapshot.read(context, |origin| {
        origin.entries(&expected, &mut |name, key, value| taken.take(name, key, value), &mut show(&bar))
    });
    bar.finish_and_clear();
    let info = read?;
    if info.chain_id == chain_id {
        let message = format!("the snapshot is of {chain_id}: a new network needs a name of its own");
        return Err(Failure::usage(message).hint("keelstone snapshot restore goes on with the same network"));
    }
    let facts = facts(&info, taken.facts.as_deref())?;
    let entries = u64::try_from(taken.state.len()).unwrap_or(u64::MAX);
    let genesis = Genesis {
        hasher: facts.hasher,
        initial_height: Height(options.initial_height),
        // No block of the new network is earlier than what its state remembers.
        time: now().max(facts.genesis_time),
        limits: facts.limits,
        producers,
        validators,
        state: taken.state,
        ..Genesis::new(chain_id)
    };
    let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
    let text = genesis.to_json().to_pretty() + "\n";
    let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
    if size > FILE_BYTES_MAX {
        let (size, limit) = (bytes(size), bytes(FILE_BYTES_MAX));
        return Err(Failure::usage(format!("the genesis would have {size}, the limit is {limit}")));
    }
    std::fs::File::create_new(&options.out)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Failure::usage(format!("{} exists already", options.out.display())),
            _ => Failure::io(format_args!("could not write {}", options.out.display()), &error),
        })?;

    let out = context.out;
    out.row("chain", &genesis.chain_id);
    out.row("genesis", short(first.hash));
    out.row("from", format_args!("{} at height {}", info.chain_id, grouped(info.id.height.0)));
    out.row("state", format_args!("{} entries, {}", grouped(entries), bytes(taken.bytes)));
    out.row("left behind", format_args!("{} entries of the old chain's engine", grouped(taken.left)));
    out.row("written", options.out.display());
    super::say_trust(out, options.root.is_some(), options.snapshot.is_archive());
    out.emit(&json!({
        "chain_id": genesis.chain_id.as_str(), "genesis_hash": first.hash, "entries": entries, "bytes": taken.bytes,
        "left": taken.left, "file": options.out, "from": { "height": info.id.height, "root": info.root },
    }));
    Ok(Exit::Ok)
}

fn producer(text: &str) -> Result<PublicKey, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::usage(format!("--producer {text}: {error}"));
    let key = PublicKey::from_hex(text).map_err(|error| usage(&error))?;
    check_key(&key).map_err(|error| usage(&error))?;
    Ok(key)
}

/// What the old chain says of itself, which its limits are taken from.
fn facts(info: &Info, encoded: Option<&[u8]>) -> Result<ChainFacts, Failure> {
    let encoded = encoded.ok_or_else(|| Failure::usage(format!("{} has no facts in its state", info.chain_id)))?;
    ChainFacts::from_bytes(encoded)
        .map_err(|error| Failure::usage(format!("the facts of {} do not decode: {error}", info.chain_id)))
}
