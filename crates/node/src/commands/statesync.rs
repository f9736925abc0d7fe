//! `keelstone statesync configure`: makes a CometBFT node join its chain from a snapshot.
//!
//! Everything it writes is CometBFT's own configuration. What is trusted, a height and its block's hash, is asked of all
//! the nodes that are named, and they must agree.

use crate::cli::Context;
use crate::cometbft::config_file::{Edit, edited};
use crate::cometbft::rpc::Rpc;
use crate::cometbft::trust::{TRUST_PERIOD, Trust, TrustError, TrustPeriod, agree};
use crate::commands::init::now;
use crate::exit::{Exit, Failure, causes};
use crate::newfile;
use crate::out::grouped;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

/// Bytes a second to and from one peer. CometBFT's own default, 5,120,000, makes a snapshot of 1 GB a matter of minutes
/// whatever the network can do.
const RATE: u64 = 51_200_000;
/// No honest `config.toml` is longer.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Let a CometBFT node join its chain from a snapshot
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write [statesync] and the rates of CometBFT's config.toml, from what several nodes agree on
    Configure {
        /// The home directory of CometBFT; its config/config.toml is edited
        #[arg(long, value_name = "DIR")]
        cometbft_home: PathBuf,
        /// The RPC of a node to ask, as http://HOST:PORT; at least two
        #[arg(long, required = true, value_name = "URL")]
        rpc: Vec<String>,
        /// Begin trust at this height instead of 2,000 blocks below the tip, half way to it from the first block that the nodes
        /// keep, or where a third of the period is left
        #[arg(long, value_name = "H")]
        trust_height: Option<u64>,
        /// How long validators can be held to what they signed: shorter than the time in which they may leave
        #[arg(long, default_value = TRUST_PERIOD, value_name = "TIME")]
        trust_period: String,
        /// Bytes a second to and from one peer
        #[arg(long, default_value_t = RATE, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
        rate: u64,
        /// Leave the rates as they are
        #[arg(long)]
        keep_rates: bool,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let Action::Configure { cometbft_home, rpc, trust_height, trust_period, rate, keep_rates } = options.action;
    let period: TrustPeriod =
        trust_period.parse().map_err(|error| Failure::usage(format!("--trust-period {trust_period}: {error}")))?;
    let config = cometbft_home.join("config").join("config.toml");
    let text = read(&config)?;
    let nodes: Vec<Rpc> = rpc
        .iter()
        .map(|address| Rpc::new(address).map_err(|error| Failure::usage(format!("--rpc: {error}"))))
        .collect::<Result<_, _>>()?;
    let trust = agree(&nodes, trust_height, &period, now())?;
    check_genesis(&cometbft_home, &trust.chain_id, "the nodes are")?;

    let mut edits = enable(&nodes, &trust, &period);
    if !keep_rates {
        let rate = i64::try_from(rate).unwrap_or(i64::MAX);
        edits.extend([Edit::new("p2p", "send_rate", rate), Edit::new("p2p", "recv_rate", rate)]);
    }
    let fresh = edited(&text, &edits).map_err(|error| Failure::usage(format!("{}: {error}", config.display())))?;
    let changed = fresh != text;
    if changed {
        replace(&config, &fresh)?;
    }
    let out = context.out;
    out.row("chain", &trust.chain_id);
    out.row("trust height", grouped(trust.height));
    out.row("trust hash", &trust.block_hash);
    if let Some(first) = trust.kept_from {
        let first = grouped(first);
        out.row(
            "kept from",
            format_args!("{first}: start CometBFT before these nodes have forgotten the trusted block, too"),
        );
    }
    out.row("config", format_args!("{} {}", config.display(), if changed { "written" } else { "was so already" }));
    out.emit(&json!({
        "chain_id": trust.chain_id, "trust_height": trust.height, "trust_hash": trust.block_hash,
        "kept_from": trust.kept_from, "config": config, "changed": changed,
        "settings": edits.iter().map(ToString::to_string).collect::<Vec<_>>(),
    }));
    Ok(Exit::Ok)
}

/// What lets a node join from a snapshot.
pub(crate) fn enable(nodes: &[Rpc], trust: &Trust, period: &TrustPeriod) -> Vec<Edit> {
    let servers: Vec<String> = nodes.iter().map(|node| format!("http://{}", node.authority())).collect();
    vec![
        Edit::new("statesync", "enable", true),
        Edit::new("statesync", "rpc_servers", servers.join(",")),
        Edit::new("statesync", "trust_height", i64::try_from(trust.height).unwrap_or(i64::MAX)),
        Edit::new("statesync", "trust_hash", trust.block_hash.as_str()),
        Edit::new("statesync", "trust_period", period.to_string()),
    ]
}

/// Compares the chain of CometBFT's genesis, if there is one, with that of `others`: a node with another chain's would fail later
/// and say less.
pub(crate) fn check_genesis(cometbft_home: &Path, chain_id: &str, others: &str) -> Result<(), Failure> {
    let path = cometbft_home.join("config").join("genesis.json");
    let Ok(text) = fs::read(&path) else { return Ok(()) };
    let genesis: Value =
        serde_json::from_slice(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    match genesis.get("chain_id").and_then(Value::as_str) {
        Some(found) if found == chain_id => Ok(()),
        found => {
            let (found, path) = (found.unwrap_or("none"), path.display());
            Err(Failure::usage(format!("{path} is of chain {found}, {others} of chain {chain_id}")))
        }
    }
}

/// The text of a `config.toml`.
pub(crate) fn read(config: &Path) -> Result<String, Failure> {
    let shown = config.display();
    let length = fs::metadata(config).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::usage(format!("there is no {shown}")).hint("cometbft init --home DIR makes one")
        }
        _ => Failure::io(format_args!("could not read {shown}"), &error),
    })?;
    if length.len() > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("{shown} has {} bytes, at most {FILE_BYTES_MAX} are read", length.len())));
    }
    fs::read_to_string(config).map_err(|error| Failure::io(format_args!("could not read {shown}"), &error))
}

/// Puts a new text in the place of a file at once: a crash leaves the old one or the new one. The file is not ours: behind a
/// link it is the file that is replaced and not the link, and it stays its owner's, who may be another user.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    replace_after(path, text, || Ok(()))
}

/// As [`replace`], with something done before that, once the new text is on disk and nothing but its name is left to change:
/// what cannot be written at all is known by then.
pub(crate) fn replace_after(
    path: &Path,
    text: &str,
    before: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::io(format_args!("could not write {}", path.display()), &error);
    let path = fs::canonicalize(path).map_err(failed)?;
    let old = fs::metadata(&path).map_err(failed)?;
    let mut stopped = None;
    let before = || {
        before().map_err(|failure| {
            let error = std::io::Error::other(failure.message.clone());
            stopped = Some(failure);
            error
        })
    };
    let written = newfile::replace_as(&path, text.as_bytes(), |fresh| keep(fresh, &old), before);
    match stopped {
        Some(failure) => Err(failure),
        None => written.map_err(failed),
    }
}

/// Gives a file the owner, the group and the mode of the one whose place it takes.
fn keep(fresh: &File, before: &Metadata) -> std::io::Result<()> {
    let now = fresh.metadata()?;
    let (uid, gid) = (before.uid(), before.gid());
    if (now.uid(), now.gid()) != (uid, gid) {
        fchown(fresh, Some(uid), Some(gid)).map_err(|error| {
            let message = format!("it would not stay that of user {uid} and group {gid}: {error}");
            std::io::Error::new(error.kind(), message)
        })?;
    }
    fresh.set_permissions(before.permissions())
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        let message = causes(&error);
        match error {
            TrustError::TooFew { .. } | TrustError::SameNode(_) | TrustError::NotThere { .. } => {
                Self::usage(message).hint("give --rpc for two nodes that are run by different people")
            }
            TrustError::Disagree { .. } => {
                Self::integrity(message).hint("nothing was changed; find out which of them is on the right chain")
            }
            TrustError::Expired { .. } => Self::usage(message).hint(
                "give a later --trust-height if there is one, or a longer --trust-period if validators may not leave before",
            ),
            TrustError::Rpc(_) => Self::error(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    /// A `config.toml` may be a link to where an operator keeps it, belong to the user who runs CometBFT, and be read by
    /// others: all of that stays, and nothing is left beside it.
    #[test]
    fn a_file_that_is_edited_stays_where_and_whose_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (kept, config) = (dir.path().join("kept"), dir.path().join("home"));
        for directory in [&kept, &config] {
            fs::create_dir(directory).expect("made");
        }
        let (file, link) = (kept.join("real.toml"), config.join("config.toml"));
        fs::write(&file, "a = 1\n").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        // Who is not root has no other owner to give it.
        let is_root = chown(&file, Some(12_345), Some(54_321)).is_ok();
        symlink(&file, &link).expect("made");

        replace(&link, "a = 2\n").expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink(), "the link is one no more");
        assert_eq!(fs::read_to_string(&file).expect("readable"), "a = 2\n");
        let after = fs::metadata(&file).expect("there");
        assert_eq!(after.permissions().mode() & 0o777, 0o640);
        assert!(!is_root || (after.uid(), after.gid()) == (12_345, 54_321), "it is another's now");
        for directory in [&kept, &config] {
            assert_eq!(
                fs::read_dir(directory).expect("listed").count(),
                1,
                "something is left in {}",
                directory.display()
            );
        }
    }
}
