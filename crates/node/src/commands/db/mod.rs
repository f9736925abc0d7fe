//! `keelstone db stats|check|prune|compact`: care of what is on the disk.

mod repair;

use crate::context::Context;
use crate::damage::Damage;
use crate::engine::{self, Engine};
use crate::exit::{Exit, Failure};
use crate::interrupt::Stop;
use crate::library;
use crate::out::{Ink, bytes, grouped};
use crate::own_log::{OwnLog, standing};
use clap::{Args, Subcommand};
use keelstone_codec::Height;
use keelstone_ledger::NodeEvent;
use keelstone_store::{CheckLevel, Progress, StoreError};
use serde_json::{Value, json};

/// Look after the data directory
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Figures of the store
    Stats,
    /// Check stored bytes; exit code 12 if any are not what they must be
    Check {
        /// Only superblocks, segment headers and the unflushed log
        #[arg(long)]
        quick: bool,
        /// If any are not, make the state whole at the root it stood at: from its log, a version of its own or a snapshot
        #[arg(long)]
        repair: bool,
        /// A snapshot to repair from besides those of this home: a height, or the path of an archive
        #[arg(long, requires = "repair")]
        from: Option<library::Source>,
        /// Yes, also if the states of some old heights are lost by it
        #[arg(long, requires = "repair")]
        yes: bool,
    },
    /// Forget the states below a height; blocks and receipts stay
    Prune {
        /// The lowest height to keep
        #[arg(long)]
        before: u64,
        /// Yes, forget them
        #[arg(long)]
        yes: bool,
    },
    /// Give back the room of what was forgotten
    Compact,
}

/// Destroying something needs a yes of its own.
pub(crate) fn confirmed(yes: bool, what: &str) -> Result<(), Failure> {
    match yes {
        true => Ok(()),
        false => Err(Failure::usage(what).hint("nothing was changed; add --yes if that is meant")),
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let open = || context.open_chain();
    match options.action {
        Action::Stats => stats(&*open()?, context),
        Action::Check { quick, repair, from, yes } => {
            let level = if quick { CheckLevel::Quick } else { CheckLevel::Full };
            let stop = Stop::on_signal()?;
            let (exit, found, is_mendable) = check(level, &stop, context)?;
            if repair && is_mendable {
                return repair::run(from, yes, found, &stop, context);
            }
            context.out.emit(&found);
            return Ok(exit);
        }
        Action::Prune { before, yes } => {
            let stop = Stop::on_signal()?;
            let chain = open()?;
            let status = chain.status()?;
            let lost = before.saturating_sub(status.lowest_height);
            confirmed(yes, &format!("this forgets the states of {} heights below {before}", grouped(lost)))?;
            let below = Height(before);
            // One write, which is waited for: what is on record as begun has ended.
            stop.check().map_err(|stopped| stopped.hint("nothing was forgotten"))?;
            let event = NodeEvent::PrunedStates { below };
            OwnLog::of(&context.home).around(&event, || standing(&*chain), || chain.prune(below))?;
            let lowest = chain.status()?.lowest_height;
            context.out.row("lowest height", grouped(lowest));
            context.out.emit(&json!({ "lowest_height": lowest, "height": status.height }));
        }
        Action::Compact => {
            let stop = Stop::on_signal()?;
            let chain = open()?;
            let bar = context.out.progress("compacting", 0);
            let compacted = chain.compact_while(&mut |progress| {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                !stop.is_asked()
            });
            bar.finish_and_clear();
            let compacted = compacted?;
            stop.check().map_err(|stopped| stopped.hint("nothing is lost: the same again begins anew"))?;
            for piece in &compacted.left {
                context.out.say(format_args!("{} left where it is: {piece}", context.out.ink(Ink::Bad, "✗")));
            }
            context.out.row("freed", bytes(compacted.bytes_freed));
            context.out.row("values moved", grouped(compacted.values_moved));
            context.out.row("pages moved", grouped(compacted.pages_moved));
            context.out.emit(&json!({
                "bytes_freed": compacted.bytes_freed, "values_moved": compacted.values_moved,
                "pages_moved": compacted.pages_moved,
                "left": compacted.left.iter().map(Damage::of).collect::<Vec<_>>(),
            }));
            if compacted.left.iter().any(StoreError::is_damage) {
                return Ok(Exit::Integrity);
            }
        }
    }
    Ok(Exit::Ok)
}

fn stats(chain: &dyn Engine, context: &Context<'_>) {
    let (stats, out) = (chain.stats(), context.out);
    out.row("entries", grouped(stats.entries));
    out.row("entry bytes", bytes(stats.entry_bytes));
    out.row("on disk", bytes(stats.disk_bytes));
    let (log, values, pages) = (stats.log_segments, stats.value_segments, stats.page_segments);
    out.row("segments", format_args!("{log} log, {values} value, {pages} page"));
    out.row("garbage", bytes(stats.garbage_bytes));
    out.row("unflushed", bytes(stats.unflushed_bytes));
    out.row("cached", format_args!("{} pages, {} values", bytes(stats.cache_bytes), bytes(stats.value_cache_bytes)));
    if let Some(what) = &stats.superblock_repaired {
        out.row("superblock", out.ink(Ink::Bad, format_args!("{what}; it was written anew from the other slot")));
    }
    out.emit(&json!({
        "entries": stats.entries, "entry_bytes": stats.entry_bytes, "disk_bytes": stats.disk_bytes,
        "log_segments": log, "value_segments": values, "page_segments": pages,
        "garbage_bytes": stats.garbage_bytes, "unflushed_bytes": stats.unflushed_bytes,
        "cache_bytes": stats.cache_bytes, "value_cache_bytes": stats.value_cache_bytes,
        "superblock_repaired": stats.superblock_repaired,
    }));
}

/// What a check found, said to people, and for programs; and whether there is damage that a repair is for.
fn check(level: CheckLevel, stop: &Stop, context: &Context<'_>) -> Result<(Exit, Value, bool), Failure> {
    let out = context.out;
    let (config, _) = context.config()?;
    let bar = out.progress("checking", 0);
    let mut show = |progress: Progress| {
        bar.set_message(progress.what);
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        !stop.is_asked()
    };
    let mut report = engine::check(&context.home, &config, level, &mut show)?;
    if report.is_none() {
        // The first look at a chain is what makes its data.
        context.open_chain()?;
        report = engine::check(&context.home, &config, level, &mut show)?;
    }
    bar.finish_and_clear();
    stop.check()?;
    let report = report.unwrap_or_default();
    for problem in report.problems() {
        out.say(format_args!("{} {problem}", out.ink(Ink::Bad, "✗")));
    }
    if report.superblock.is_some() {
        out.say("the slot of the superblock was written anew from the other: look at the disk");
    }
    let sound = report.problems().next().is_none();
    let mut warnings = Vec::new();
    if sound {
        // What is whole belongs together too: that is looked at when it is opened. And it may be of another program's types.
        warnings = context.open_chain()?.misfits();
        warnings.extend(context.of_another_program());
        out.say(out.ink(Ink::Good, "✓ nothing is damaged"));
    } else if report.blocks.is_some() {
        let way = match context.home.read_genesis()?.validators.is_empty() {
            true => "keelstone recover",
            false => "keelstone recover --to HEIGHT --root ROOT, with a root that the chain's headers name,",
        };
        out.say(format_args!(
            "blocks and receipts cannot be made whole here: {} goes on without them, and keeps what there is of them",
            out.called(way)
        ));
    }
    let state = &report.state;
    out.row("values", grouped(state.values));
    out.row("log records", grouped(state.records));
    out.row("sectors", grouped(state.sectors));
    out.row("block records", grouped(report.block_records));
    out.warn(&warnings);
    let found = json!({
        "sound": sound, "values": state.values, "records": state.records,
        "sectors": state.sectors, "block_records": report.block_records,
        "problems": report.problems().map(Damage::of).collect::<Vec<_>>(), "warnings": warnings,
    });
    Ok((if sound { Exit::Ok } else { Exit::Integrity }, found, !state.problems.is_empty()))
}
