//! `keelstone init`: a new chain in a home directory.

use crate::clock::now;
use crate::cometbft::base64::from_base64;
use crate::cometbft::genesis::engine_genesis;
use crate::config::{Config, EngineKind, PeerAddress};
use crate::context::Context;
use crate::engine::{open_held, refuse_to_forget};
use crate::exit::{Exit, Failure};
use crate::generations::Generations;
use crate::home::Home;
use crate::input::FILE_BYTES_MAX;
use crate::keyfile::{KeyDir, PRODUCER};
use crate::misfits;
use crate::newfile;
use crate::out::{bytes, short};
use crate::room;
use clap::Args;
use keelstone_codec::{ChainId, Hash};
use keelstone_execution::{Capability, PublicKey, Registry};
use keelstone_ledger::modules::beginning::Beginning;
use keelstone_ledger::{Genesis, Inherited, SecretKey, Validator, check_key};
use keelstone_store::files::Directory;
use keelstone_tree::{HashKind, Totals};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Make a new chain in the home directory
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The network's name [default: the program's, and -dev]
    #[arg(long)]
    chain_id: Option<String>,
    /// The hasher of the state tree: blake3, or sha256 for verifiers in Go
    #[arg(long, default_value = "blake3")]
    hasher: String,
    /// Take this genesis instead of making one; its producers then need a key here
    #[arg(long, conflicts_with_all = ["chain_id", "hasher", "validators", "snapshot_chunk_bytes"])]
    genesis: Option<PathBuf>,
    /// A peer to have the blocks of that genesis from, HOST:PORT or ID@HOST:PORT: this node is to follow, and makes no key; may
    /// be repeated
    #[arg(long, requires = "genesis", value_name = "PEER")]
    follow: Vec<PeerAddress>,
    /// The state that the genesis inherits: a tar as `keelstone snapshot export` writes it
    #[arg(long, requires = "genesis", value_name = "FILE")]
    state: Option<PathBuf>,
    /// A validator, for a chain under CometBFT: its Ed25519 key, in hexadecimal or as CometBFT writes it, and its voting
    /// power; may be repeated
    #[arg(long = "validator", value_name = "KEY=POWER")]
    validators: Vec<String>,
    /// What a chunk of a snapshot may weigh, in bytes, on all nodes of the chain [default: 4194304]
    #[arg(long, value_name = "BYTES")]
    snapshot_chunk_bytes: Option<u32>,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    // That it can be read is known before anything is made.
    context.config()?;
    let genesis = match &options.genesis {
        Some(file) => {
            refuse_too_long(file)?;
            let text = crate::input::read_input(file)?;
            Genesis::parse(&text).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?
        }
        None => {
            let mut genesis = fresh_genesis(&context.chain_id(options.chain_id.clone()), &options.hasher)?;
            genesis.validators = options.validators.iter().map(|text| validator(text)).collect::<Result<_, _>>()?;
            if let Some(bytes) = options.snapshot_chunk_bytes {
                genesis.limits.snapshot_chunk_bytes = bytes;
            }
            genesis
        }
    };
    let made_by = match (genesis.validators.is_empty(), &options.genesis, &options.follow[..]) {
        (false, _, []) => BlocksBy::CometBft,
        (false, ..) => {
            return Err(Failure::usage("--follow: this chain has validators, and CometBFT makes its blocks"));
        }
        (true, None, _) => BlocksBy::OwnKey,
        (true, Some(_), []) => BlocksBy::GivenKeys,
        (true, Some(_), peers) => BlocksBy::Elsewhere(peers),
    };
    if genesis.inherits.is_none() && options.state.is_some() {
        return Err(Failure::usage("this genesis inherits no state; leave out --state"));
    }
    create(genesis, made_by, options.state.as_deref(), Vec::new(), context)
}

/// Refuses a file above the limit with the ways that lead on: a chain that begins with much has it from elsewhere.
// spec: GENESIS-1
fn refuse_too_long(file: &Path) -> Result<(), Failure> {
    if !std::fs::metadata(file).is_ok_and(|found| found.len() > FILE_BYTES_MAX) {
        return Ok(());
    }
    let message = format!("{} is longer than {}", file.display(), bytes(FILE_BYTES_MAX));
    let hint = "a chain begins with more by `inherits`: begin one with a part, write the rest with transactions, then \
                keelstone snapshot create and snapshot to-genesis make a genesis and an archive of it, for init --genesis --state";
    Err(Failure::usage(message).hint(hint))
}

/// Copies the archive of an inherited state into the home, where it is read when the chain begins, or begins anew.
fn bring(archive: &Path, inherited: &Inherited, config: &Config, home: &Home) -> Result<(), Failure> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::usage(format!("there is no file {}", archive.display())),
        _ => Failure::io(format_args!("could not copy {}", archive.display()), &error),
    };
    let found = std::fs::metadata(archive).map_err(failed)?;
    if !found.is_file() {
        let message = format!("{} is no tar of a snapshot", archive.display());
        return Err(Failure::usage(message).hint("keelstone snapshot export H NAME.tar writes one"));
    }
    let directory = Directory::new(home.path()).map_err(|error| Failure::io(home.path().display(), &error))?;
    let state = Totals { count: inherited.entries, bytes: inherited.bytes };
    room::check(&directory, found.len().saturating_add(room::of(state)), config.snapshots.reserve_percent)?;
    let fresh = home.inherited().with_extension("tar.new");
    std::fs::copy(archive, &fresh)
        .and_then(|_| std::fs::File::open(&fresh)?.sync_all())
        .and_then(|()| std::fs::rename(&fresh, home.inherited()))
        .inspect_err(|_| drop(std::fs::remove_file(&fresh)))
        .map_err(failed)
}

/// Reads `KEY=POWER`.
pub(crate) fn validator(text: &str) -> Result<Validator, Failure> {
    let wrong = |what: &str| Failure::usage(format!("--validator {text}: {what}"));
    // A key as CometBFT writes it ends in `=` itself.
    let (key, power) = text.rsplit_once('=').ok_or_else(|| wrong("expected KEY=POWER"))?;
    let power = power.parse().map_err(|_| wrong("the power is a number"))?;
    let key = match from_base64(key).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
        Some(bytes) => PublicKey(Hash(bytes)),
        None => {
            PublicKey::from_hex(key).map_err(|_| wrong("the key is 64 lower-case hexadecimal digits, or base64"))?
        }
    };
    check_key(&key).map_err(|error| wrong(&error.to_string()))?;
    Ok(Validator { key, power })
}

/// A genesis of this name, at this moment.
pub(crate) fn fresh_genesis(chain_id: &str, hasher: &str) -> Result<Genesis, Failure> {
    let chain_id = ChainId::new(chain_id).map_err(|error| Failure::usage(format!("--chain-id: {error}")))?;
    let hasher: HashKind = hasher.parse().map_err(|error| Failure::usage(format!("--hasher: {error}")))?;
    Ok(Genesis { hasher, time: now(), ..Genesis::new(chain_id) })
}

/// Who is to make the blocks of a chain that begins in a home.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BlocksBy<'a> {
    /// This node, with a key made here, which becomes the genesis' producer.
    OwnKey,
    /// This node, with a key of a producer that the genesis names, or any if it names none.
    GivenKeys,
    /// CometBFT.
    CometBft,
    /// A node elsewhere; blocks come from these peers.
    Elsewhere(&'a [PeerAddress]),
}

/// Makes the chain of a genesis, with the state that it inherits, if that is given, and says beside it what is to be told of that.
pub(crate) fn create(
    genesis: Genesis,
    made_by: BlocksBy<'_>,
    state: Option<&Path>,
    told: Vec<String>,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let home = &context.home;
    if home.genesis().exists() {
        return Err(home.is_taken());
    }
    if matches!(made_by, BlocksBy::Elsewhere(_)) && home.config().exists() {
        let message = format!("--follow: there is {} already", home.config().display());
        return Err(
            Failure::usage(message).hint("set engine.kind = \"follow\" and p2p.peers there, and leave --follow out")
        );
    }
    if matches!(made_by, BlocksBy::OwnKey | BlocksBy::GivenKeys) {
        // Before anything is written: a home that cannot begin is none.
        refuse_to_forget(home, &genesis)?;
    }
    // Held before anything is written: who builds a state here for a chain has no genesis yet.
    let held = Generations::open(&home.data())?;
    if home.genesis().exists() {
        return Err(home.is_taken());
    }
    if let (Some(inherited), Some(archive)) = (&genesis.inherits, state) {
        bring(archive, inherited, &context.config()?.0, home)?;
    }
    let inherits = genesis.inherits.is_some();
    begin(genesis, made_by, held, told, context).inspect_err(|_| {
        if inherits {
            // What was refused must not look like a chain.
            let _ = std::fs::remove_file(home.genesis());
        }
        if state.is_some() {
            let _ = std::fs::remove_file(home.inherited());
        }
    })
}

/// Writes what makes a home that is held, and opens its chain.
fn begin(
    mut genesis: Genesis,
    made_by: BlocksBy<'_>,
    held: Generations,
    mut warnings: Vec<String>,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let home = &context.home;
    let keys = KeyDir::new(home.path());
    let under_engine = matches!(made_by, BlocksBy::CometBft);
    let here = matches!(made_by, BlocksBy::OwnKey | BlocksBy::GivenKeys);
    if here && !keys.names()?.iter().any(|name| name == PRODUCER) {
        let key = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
        keys.save(PRODUCER, &key)?;
    }
    if let BlocksBy::OwnKey = made_by {
        genesis.producers = vec![keys.public(PRODUCER)?];
    }
    let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
    home.write_genesis(&genesis)?;
    if !home.config().exists() {
        let mut config = Config::default();
        match made_by {
            BlocksBy::OwnKey | BlocksBy::GivenKeys => {}
            BlocksBy::CometBft => config.engine.kind = EngineKind::CometBft,
            BlocksBy::Elsewhere(peers) => {
                config.engine.kind = EngineKind::Follow;
                config.p2p.peers = peers.to_vec();
            }
        }
        // Cut short it would be one that leaves everything to the defaults.
        newfile::write(&home.config(), config.to_toml().as_bytes())?;
    }
    warnings.extend(unused(&genesis, &context.application.registry));
    let out = context.out;
    out.row("chain", &genesis.chain_id);
    out.row("home", home.path().display());
    out.row("genesis", short(first.hash));
    let status = match &genesis.inherits {
        Some(_) if under_engine && !home.inherited().exists() => {
            out.row("state", "is not here: this node can only join the others, by state sync");
            None
        }
        _ => {
            let (config, _) = context.config()?;
            let chain = open_held(held, home, &config, &context.application.registry)?;
            chain.flush()?;
            context.note_program();
            Some(chain.status()?)
        }
    };
    if let Some(status) = &status {
        out.row("root", &status.root);
    }
    out.warn(&warnings);
    out.say("");
    let engine = under_engine.then(|| engine_genesis(&genesis, first.hash, &[]));
    if let Some(engine) = &engine {
        out.say("in CometBFT's genesis must stand (--json gives it as engine_genesis):");
        for (name, value) in engine.as_object().into_iter().flatten() {
            out.say(format_args!("  {}: {value}", json!(name)));
        }
    }
    let at = if context.home_given { format!(" --home {}", home.path().display()) } else { String::new() };
    out.say(format_args!("next: {}{at}", out.called("keelstone node")));
    let mut shown = json!({
        "chain_id": genesis.chain_id.as_str(), "home": home.path(), "genesis_hash": first.hash,
        "root": status.as_ref().map(|status| &status.root), "height": status.as_ref().map(|status| status.height),
        "entries": status.as_ref().map(|status| status.entries), "warnings": warnings,
    });
    if let Some(engine) = engine {
        shown["engine_genesis"] = engine;
    }
    out.emit(&shown);
    Ok(Exit::Ok)
}

/// What of a genesis this program can do nothing with: entries at a place of its functions, and of another type; capabilities it
/// does not know; a world without the modules that read it. They may be those of another version, so they are told of, and not
/// refused.
// spec: GENESIS-1
fn unused(genesis: &Genesis, registry: &Registry) -> Vec<String> {
    let entries = genesis.state.iter().filter_map(|((namespace, key), value)| {
        misfits::of_entry(registry, namespace, key, value).map(|misfit| format!("genesis: {misfit}"))
    });
    let mut told = misfits::told(entries);

    let functions = registry.functions();
    let needed = |capability: &Capability| functions.iter().any(|function| function.needs.contains(capability));
    let granted: BTreeSet<&Capability> = genesis.grants.values().flatten().collect();
    let unknown =
        granted.into_iter().filter(|capability| !registry.reserved().contains(*capability) && !needed(capability));
    told.extend(unknown.map(|capability| {
        format!(
            "genesis: grants: no function of this program needs {capability}, and it is not reserved: it has no effect"
        )
    }));

    let Beginning { agents, relationships, alliances, rules } = &genesis.world;
    let parts = [
        ("agents", "agents", agents.is_empty()),
        ("relationships", "social", relationships.is_empty()),
        ("alliances", "social", alliances.is_empty()),
        ("rules", "rules", rules.is_empty()),
    ];
    let unread = parts
        .into_iter()
        .filter(|(_, module, is_empty)| !is_empty && !registry.spaces().any(|space| space.name == *module));
    told.extend(unread.map(|(part, module, _)| {
        format!(
            "genesis: world: this program does not have the module {module}, which reads {part} (modules::register)"
        )
    }));
    told
}
