//! `keelstone snapshot to-genesis`: the genesis of a new network that begins with the state of a snapshot.
//!
//! What the application made of its state goes along; what the engine keeps of the old chain does not: its facts, block
//! records, sessions, nonces, bundles in flight and audit belong to the old chain id, under which everything was signed
//! and linked. Grants are rights of keys and name no chain, so they do go along. The new network has a name and makers of
//! its own.
//!
//! A small state stands in the file. A larger one stays in the snapshot, which every node is given beside the file: the
//! genesis names its root.

use super::{Source, expected, fits, genesis_if_any, show};
use crate::clock::now;
use crate::commands::init::validator;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::FILE_BYTES_MAX;
use crate::library::trusted;
use crate::newfile;
use crate::out::{bytes, grouped, short};
use clap::Args;
use keelstone_codec::{ChainId, Decode, Height, Key, Namespace, Value};
use keelstone_execution::{Capability, PublicKey, SYSTEM_NAMESPACES, Sessions, Space as _, View};
use keelstone_ledger::{CHAIN, ChainFacts, GENESIS_KEYS_MAX, Genesis, Inherited, check_key};
use keelstone_sync::library::{Info, LibraryError};
use keelstone_tree::{Blake3, MemoryTree};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Most bytes of keys and values that stand in a genesis file: it is JSON, held in memory and read by every node.
const INLINE_BYTES_MAX: u64 = 16 << 20;

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
    /// Leave the state in the snapshot and only name its root, as is done with more than 16 MiB
    #[arg(long)]
    inherit: bool,
    /// Leave the grants of reserved capabilities behind
    #[arg(long)]
    no_grants: bool,
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

type Grants = BTreeMap<PublicKey, BTreeSet<Capability>>;

/// What is taken of a snapshot.
#[derive(Default)]
struct Taken {
    /// What stands in the file; none if it is too much for one.
    state: Option<BTreeMap<(Namespace, Key), Value>>,
    entries: u64,
    bytes: u64,
    facts: Option<Vec<u8>>,
    /// The old chain's limits, if it changed them.
    limits: Option<Vec<u8>>,
    /// The entries of the grants; none if they are left behind too.
    grants: Option<Vec<(Namespace, Key, Option<Value>)>>,
    /// Entries of the engine's own namespaces.
    left: u64,
}

impl Taken {
    fn take(&mut self, namespace: &Namespace, key: &[u8], value: &[u8]) -> Result<(), LibraryError> {
        let fits = "a proven entry has a key and a value";
        let entry = || (Key::new(key).expect(fits), Value::new(value.to_vec()).expect(fits));
        if SYSTEM_NAMESPACES.contains(&namespace.as_str()) {
            if let Some(grants) = &mut self.grants
                && namespace.as_str() == Sessions::NAME
                && key.starts_with(b"grants/")
            {
                if grants.len() == GENESIS_KEYS_MAX {
                    let file = "the list of keys with grants".to_owned();
                    let limit = u64::try_from(GENESIS_KEYS_MAX).unwrap_or(u64::MAX);
                    return Err(LibraryError::TooLarge { file, found: limit + 1, limit });
                }
                let (key, value) = entry();
                grants.push((namespace.clone(), key, Some(value)));
                return Ok(());
            }
            self.left += 1;
            match (namespace.as_str(), key) {
                (CHAIN, b"facts") => self.facts = Some(value.to_vec()),
                (CHAIN, b"limits") => self.limits = Some(value.to_vec()),
                _ => {}
            }
            return Ok(());
        }
        self.entries += 1;
        self.bytes += u64::try_from(key.len() + value.len()).unwrap_or(u64::MAX);
        if self.bytes > INLINE_BYTES_MAX {
            self.state = None;
        }
        if let Some(state) = &mut self.state {
            let (key, value) = entry();
            state.insert((namespace.clone(), key), value);
        }
        Ok(())
    }
}

/// The grants among the entries of a state, as the sessions themselves read them.
fn grants(entries: Vec<(Namespace, Key, Option<Value>)>) -> Result<Grants, Failure> {
    let mut tree = MemoryTree::<Blake3>::new();
    tree.apply(&entries.into_iter().collect());
    let sessions = View::<Sessions>::over(tree);
    let grants = sessions.grants.iter().collect::<Result<_, _>>();
    grants.map_err(|stop| Failure::integrity(format!("the grants of the old chain cannot be read: {stop}")))
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain_id = ChainId::new(&options.chain_id).map_err(|error| Failure::usage(format!("--chain-id: {error}")))?;
    let producers = options.producer.iter().map(|text| producer(text)).collect::<Result<Vec<_>, _>>()?;
    let validators = options.validators.iter().map(|text| validator(text)).collect::<Result<Vec<_>, _>>()?;
    trusted(options.root.as_deref())?;
    let expected = expected(genesis_if_any(context)?.as_ref(), options.root.as_deref())?;
    fits(&options.snapshot, &expected, None, context)?;
    let mut taken = Taken {
        state: (!options.inherit).then(BTreeMap::new),
        grants: (!options.no_grants).then(Vec::new),
        ..Taken::default()
    };
    let bar = context.out.progress("reading", 0);
    let read = options.snapshot.read(&context.home, |origin| {
        origin.entries(&expected, &mut |name, key, value| taken.take(name, key, value), &mut show(&bar))
    });
    bar.finish_and_clear();
    let info = read?;
    if info.chain_id == chain_id {
        let message = format!("the snapshot is of {chain_id}: a new network needs a name of its own");
        return Err(Failure::usage(message).hint("keelstone snapshot restore goes on with the same network"));
    }
    let facts: ChainFacts = said(&info, "facts", taken.facts.as_deref())?
        .ok_or_else(|| Failure::usage(format!("{} has no facts in its state", info.chain_id)))?;
    // spec: LEDGER-10
    let limits = said(&info, "changed limits", taken.limits.as_deref())?.unwrap_or(facts.limits);
    let grants = taken.grants.map_or_else(|| Ok(Grants::new()), grants)?;
    let inherits = taken.state.is_none().then(|| Inherited {
        chain_id: facts.chain_id.clone(),
        height: info.id.height,
        root: info.root,
        entries: info.totals.count,
        bytes: info.totals.bytes,
    });
    let genesis = Genesis {
        hasher: facts.hasher,
        initial_height: Height(options.initial_height),
        // No block of the new network is earlier than what its state remembers.
        time: now().max(facts.genesis_time),
        limits,
        producers,
        validators,
        grants,
        state: taken.state.unwrap_or_default(),
        inherits,
        ..Genesis::new(chain_id)
    };
    let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
    let text = genesis.to_json().to_pretty() + "\n";
    let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
    if size > FILE_BYTES_MAX {
        let (size, limit) = (bytes(size), bytes(FILE_BYTES_MAX));
        return Err(Failure::usage(format!("the genesis would have {size}, the limit is {limit}")));
    }
    Genesis::parse(text.as_bytes()).map_err(|error| Failure::usage(error.to_string()))?;
    newfile::write(&options.out, text.as_bytes())?;

    let out = context.out;
    out.row("chain", &genesis.chain_id);
    out.row("genesis", short(first.hash));
    out.row("from", format_args!("{} at height {}", info.chain_id, grouped(info.id.height.0)));
    out.row("state", format_args!("{} entries, {}", grouped(taken.entries), bytes(taken.bytes)));
    for (key, granted) in &genesis.grants {
        let granted: Vec<&str> = granted.iter().map(Capability::as_str).collect();
        out.row("grant", format_args!("{} {}", short(key), granted.join(", ")));
    }
    out.row("left behind", format_args!("{} entries of the old chain's engine", grouped(taken.left)));
    out.row("written", options.out.display());
    if genesis.inherits.is_some() {
        out.say(format_args!("\nThe state stays in the snapshot. Each node of the new network needs both files:"));
        let archive = match &options.snapshot {
            Source::Kept(_) => {
                let export = out.called("keelstone snapshot export");
                out.say(format_args!("  {export} {} state.tar", info.id.height));
                Path::new("state.tar")
            }
            Source::Archive(path) => path,
        };
        let (genesis, archive) = (options.out.display(), archive.display());
        let init = out.called("keelstone init");
        out.say(format_args!("  {init} --genesis {genesis} --state {archive} --home NEW"));
    }
    super::say_trust(out, options.root.is_some(), options.snapshot.is_archive());
    out.emit(&json!({
        "chain_id": genesis.chain_id.as_str(), "genesis_hash": first.hash, "entries": taken.entries,
        "bytes": taken.bytes, "inherits": genesis.inherits.is_some(), "grants": genesis.grants.len(),
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

/// What the old chain says of itself, if it does.
fn said<T: Decode>(info: &Info, what: &str, encoded: Option<&[u8]>) -> Result<Option<T>, Failure> {
    let undecodable = |error| Failure::usage(format!("the {what} of {} do not decode: {error}", info.chain_id));
    encoded.map(T::from_bytes).transpose().map_err(undecodable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_keys_with_grants_than_a_genesis_takes_are_refused() {
        let sessions = Namespace::new(Sessions::NAME).expect("a constant");
        let mut taken = Taken { grants: Some(Vec::new()), ..Taken::default() };
        let mut take = |number: usize| taken.take(&sessions, format!("grants/{number}").as_bytes(), b"granted");
        for number in 0..GENESIS_KEYS_MAX {
            take(number).expect("as many as there may be");
        }
        assert!(matches!(take(GENESIS_KEYS_MAX), Err(LibraryError::TooLarge { found: 1_025, limit: 1_024, .. })));
    }
}
