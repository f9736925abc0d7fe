//! `keelstone status`: where the chain stands.

use crate::api::{FollowFigures, SnapshotFigures};
use crate::clock::now;
use crate::cometbft::rpc::Rpc;
use crate::config::EngineKind;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::follower::follow;
use crate::library::look_into_library;
use crate::out::{Ink, bytes, grouped};
use crate::p2p::{SILENT, Seen};
use clap::Args;
use serde_json::json;
use std::time::Duration;

/// How long the engine may be silent: what it is asked it knows without asking anybody.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Show where the chain stands
#[derive(Debug, Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain = context.chain()?;
    let mut status = chain.status()?;
    if status.api.is_none()
        && let Some((library, _)) = look_into_library(&context.home)?
    {
        status.snapshots = Some(SnapshotFigures::of(&library.list()));
    }
    let (config, _) = context.config()?;
    if config.engine.kind == EngineKind::CometBft && !context.asks_elsewhere() {
        status.engine = Some(Rpc::at(&config.engine.rpc).timeout(ENGINE_TIMEOUT).standing());
    }
    if status.api.is_none() && config.engine.kind == EngineKind::Follow {
        // What keeps it from following anybody is what `keelstone node` says.
        let follow = follow(&context.home.read_genesis()?, &config).ok();
        status.following = follow.map(|follow| FollowFigures::of(&Seen::new(&follow), status.height));
    }
    if status.api.is_none() {
        // No node was asked, so this program is what answers.
        status.application = context.application.named();
    }
    context.warn_of_another_interface(&status);
    let mut warnings = chain.misread();
    if status.api.is_none() {
        warnings.extend(context.of_another_program());
    }
    let out = context.out;
    out.row("chain", &status.chain_id);
    out.row("height", grouped(status.height));
    out.row("root", &status.root);
    out.row("hasher", &status.hasher);
    out.row("interface", &status.interface);
    let of = status.application.as_ref().map_or_else(String::new, |own| format!(", {} {}", own.name, own.version));
    out.row("version", format_args!("Keelstone {}{of}", status.version));
    out.row("state", format_args!("{} entries, {}", grouped(status.entries), bytes(status.entry_bytes)));
    out.row("history", format_args!("from height {}", grouped(status.lowest_height)));
    if let Some(limits) = &status.limits {
        let (count, room) =
            (grouped(u64::from(limits.block_transactions_max)), bytes(u64::from(limits.block_bytes_max)));
        let (block, bundle) = (grouped(limits.block_gas_max), grouped(limits.bundle_gas_max));
        out.row("limits", format_args!("{count} transactions, {room}, {block} gas a block; {bundle} gas a bundle"));
    }
    out.row("waiting", format_args!("{} transactions", grouped(status.waiting)));
    if let Some(failed) = &status.failed {
        out.row("failed", out.ink(Ink::Bad, failed));
    }
    if let Some(scrub) = &status.scrub {
        let done = u128::from(scrub.done_bytes) * 100;
        let of_this = done.checked_div(u128::from(scrub.total_bytes)).unwrap_or_default();
        out.row("scrub", format_args!("{} passes, {of_this} % of the next", grouped(scrub.passes)));
        if scrub.problems > 0 {
            let names = out.called("keelstone db check names them");
            let found = format!("{} problems found: {names}", grouped(scrub.problems));
            out.row("damage", out.ink(Ink::Bad, &found));
        }
    }
    if let Some(snapshots) = &status.snapshots {
        let newest = snapshots.newest_height.map_or_else(String::new, |height| format!(", newest {}", grouped(height)));
        out.row("snapshots", format_args!("{}{newest}", grouped(snapshots.count)));
    }
    if let Some(following) = &status.following {
        let behind = match (following.behind_blocks, following.certified_height) {
            (Some(0), _) => "as far as is certified".to_owned(),
            (Some(behind), Some(certified)) => {
                format!("{} blocks behind certified height {}", grouped(behind), grouped(certified))
            }
            _ if status.api.is_none() => "and is not running".to_owned(),
            _ => "nobody has certified a height to it yet".to_owned(),
        };
        out.row("follows", format_args!("{}, {behind}", following.manner));
        out.row("producer", following.producer.who());
        if let Some(said_at) = following.said_at {
            let seconds = now().0.saturating_sub(said_at) / 1000;
            let said = format!("{} s ago", grouped(seconds));
            let is_late = seconds >= SILENT.as_secs();
            out.row("last word", if is_late { out.ink(Ink::Bad, &said) } else { said });
        }
        if let Some(refused) = &following.refused {
            out.row("refused", format_args!("the last word that did not count: {refused}"));
        }
        if let (Some(missing), Some(from)) = (following.missing_height, following.kept_from) {
            let gap = format!("no peer has height {}, what they have begins at {}", grouped(missing), grouped(from));
            out.row("gap", out.ink(Ink::Bad, &gap));
        }
    }
    if let Some(engine) = &status.engine {
        out.row("cometbft", engine);
    }
    out.row("node", status.api.as_deref().unwrap_or("not running"));
    out.warn(&warnings);
    let mut shown = json!(status);
    shown["warnings"] = warnings.into();
    out.emit(&shown);
    Ok(Exit::Ok)
}
