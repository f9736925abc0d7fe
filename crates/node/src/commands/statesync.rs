//! `keelstone statesync configure`: makes a CometBFT node join its chain from a snapshot.
//!
//! Everything it writes is CometBFT's own configuration. What is trusted, a height and its block's hash, is asked of all
//! the nodes that are named, and they must agree.

use crate::clock::now;
use crate::cometbft::config_file::{Edit, edited};
use crate::cometbft::home::{check_genesis, enable, read, replace};
use crate::cometbft::rpc::Rpc;
use crate::cometbft::trust::{TRUST_PERIOD, TrustError, TrustPeriod, agree};
use crate::context::Context;
use crate::exit::{Exit, Failure, causes};
use crate::out::grouped;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;

/// Bytes a second to and from one peer. CometBFT's own default, 5,120,000, makes a snapshot of 1 GB a matter of minutes
/// whatever the network can do.
const RATE: u64 = 51_200_000;

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
