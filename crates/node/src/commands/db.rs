//! `keelstone db stats|check|prune|compact`: care of what is on the disk.

use crate::cli::Context;
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::out::{Ink, bytes, grouped};
use crate::own_log::{OwnLog, standing};
use clap::{Args, Subcommand};
use keelstone_codec::Height;
use keelstone_ledger::NodeEvent;
use keelstone_store::CheckLevel;
use serde_json::json;

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
    let chain = context.open_chain()?;
    match options.action {
        Action::Stats => stats(&*chain, context),
        Action::Check { quick } => {
            return check(&*chain, if quick { CheckLevel::Quick } else { CheckLevel::Full }, context);
        }
        Action::Prune { before, yes } => {
            let status = chain.status()?;
            let lost = before.saturating_sub(status.lowest_height);
            confirmed(yes, &format!("this forgets the states of {} heights below {before}", grouped(lost)))?;
            let below = Height(before);
            let event = NodeEvent::PrunedStates { below };
            OwnLog::of(&context.home).around(&event, || standing(&*chain), || chain.prune(below))?;
            let lowest = chain.status()?.lowest_height;
            context.out.row("lowest height", grouped(lowest));
            context.out.emit(&json!({ "lowest_height": lowest, "height": status.height }));
        }
        Action::Compact => {
            let bar = context.out.progress("compacting", 0);
            let compacted = chain.compact(&mut |progress| {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
            });
            bar.finish_and_clear();
            let compacted = compacted?;
            context.out.row("freed", bytes(compacted.bytes_freed));
            context.out.row("values moved", grouped(compacted.values_moved));
            context.out.row("pages moved", grouped(compacted.pages_moved));
            context.out.emit(&json!({
                "bytes_freed": compacted.bytes_freed, "values_moved": compacted.values_moved,
                "pages_moved": compacted.pages_moved,
            }));
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
    out.emit(&json!({
        "entries": stats.entries, "entry_bytes": stats.entry_bytes, "disk_bytes": stats.disk_bytes,
        "log_segments": log, "value_segments": values, "page_segments": pages,
        "garbage_bytes": stats.garbage_bytes, "unflushed_bytes": stats.unflushed_bytes,
        "cache_bytes": stats.cache_bytes, "value_cache_bytes": stats.value_cache_bytes,
    }));
}

fn check(chain: &dyn Engine, level: CheckLevel, context: &Context<'_>) -> Result<Exit, Failure> {
    let out = context.out;
    let bar = out.progress("checking", 0);
    let report = chain.check(level, &mut |progress| {
        bar.set_message(progress.what);
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    let report = report?;
    for problem in &report.problems {
        out.say(format_args!("{} {problem}", out.ink(Ink::Bad, "✗")));
    }
    let sound = report.problems.is_empty();
    if sound {
        out.say(out.ink(Ink::Good, "✓ nothing is damaged"));
    }
    out.row("values", grouped(report.values));
    out.row("log records", grouped(report.records));
    out.row("sectors", grouped(report.sectors));
    out.emit(&json!({
        "sound": sound, "values": report.values, "records": report.records,
        "sectors": report.sectors,
        "problems": report.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
    }));
    Ok(if sound { Exit::Ok } else { Exit::Integrity })
}
