//! `keelstone audit node show|verify|export|checkpoint`: what this node did by itself, and whether it still says so.
//!
//! None of these writes to the log, needs a chain, or keeps a running node from anything.

use super::lines;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::newfile;
use crate::out::{Ink, grouped};
use crate::own_log::{
    OwnLog, checkpoint_json, export_end, export_head, export_line, read_checkpoint, show, verify_export,
};
use clap::{Args, Subcommand};
use keelstone_execution::PublicKey;
use keelstone_ledger::{NodeCheckpoint, NodeEvent, NodeVerdict, SignedNodeRecord};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::Write as _;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List records, the newest last
    Show {
        /// The place of the first record [default: as many as --limit before the end]
        #[arg(long, value_name = "INDEX")]
        from: Option<u64>,
        /// Only of this kind: rolled_back, pruned_states, pruned_audit, restored, rebuilt, took_back, made_snapshot,
        /// removed_snapshot, configured, cut_tail, forgot, mended, recovered
        #[arg(long)]
        kind: Option<String>,
        /// How many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Verify the log of this home, or an export; exit code 12 with the first bad record if it was tampered with
    Verify {
        /// An export to verify, with no home at hand
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
        /// The key the log must be signed with
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// A checkpoint that was kept: the log must go on from it
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
    },
    /// Write the log as lines of JSON
    Export {
        /// The file [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Write where the log stands, as the node signed it, for somebody else to keep
    Checkpoint {
        /// The file [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

pub(super) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let own = OwnLog::of(&context.home);
    match options.action {
        Action::Show { from, kind, limit } => list(&own, from, kind.as_deref(), usize::from(limit), context),
        Action::Verify { export, key, checkpoint } => {
            let key = key.map(|key| PublicKey::from_hex(&key)).transpose();
            let key = key.map_err(|error| Failure::usage(format!("--key: {error}")))?;
            let kept = checkpoint.map(|file| read_checkpoint(&read_input(&file)?)).transpose()?;
            let key = key.or_else(|| kept.as_ref().map(|kept| kept.key));
            let mut last = None;
            let mut each = |index, next: &SignedNodeRecord| {
                if kept.as_ref().is_some_and(|kept| kept.state.log.count() == index + 1) {
                    last = Some(next.signature);
                }
            };
            let verdict = match &export {
                Some(file) => verify_export(lines(file)?, key, &mut each)?,
                None => own.verify(key, &mut each)?.ok_or_else(none)?,
            };
            if let (Some(kept), None) = (&kept, &verdict.fault) {
                goes_on(kept, last, &verdict)?;
            }
            Ok(tell(&verdict, kept.is_some(), context))
        }
        Action::Export { out } => export(&own, out.as_deref(), context),
        Action::Checkpoint { out } => {
            let (_, checkpoint) = own.ends()?.ok_or_else(none)?;
            let value = checkpoint_json(&checkpoint);
            match out {
                Some(file) => {
                    newfile::write(&file, format!("{value}\n").as_bytes())?;
                    context.out.row("records", grouped(checkpoint.state.log.count()));
                    context.out.row("key", checkpoint.key);
                    context.out.emit(&value);
                }
                None => context.out.write(&format!("{value}\n")),
            }
            Ok(Exit::Ok)
        }
    }
}

fn none() -> Failure {
    Failure::not_found("this node has put nothing on record yet")
}

fn list(
    own: &OwnLog,
    from: Option<u64>,
    kind: Option<&str>,
    limit: usize,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    if let Some(kind) = kind.filter(|kind| !NodeEvent::KINDS.contains(kind)) {
        return Err(Failure::usage(format!("there is no kind {kind:?}; there are {}", NodeEvent::KINDS.join(", "))));
    }
    let mut records: VecDeque<Value> = VecDeque::new();
    let verdict = own.verify(None, &mut |index, next| {
        let wanted = kind.is_none_or(|kind| next.record.event.kind() == kind);
        if !wanted || from.is_some_and(|from| index < from || records.len() == limit) {
            return;
        }
        if records.len() == limit {
            records.pop_front();
        }
        records.push_back(show(index, &next.record));
    })?;
    let verdict = verdict.ok_or_else(none)?;
    let out = context.out;
    for record in &records {
        let part = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let height = |name: &str| record[name]["height"].as_u64().map_or_else(|| "-".to_owned(), grouped);
        let head = format!("{:>6}  {:>13}  {:<16} {:<6}", record["index"], record["time"], part("kind"), part("step"));
        let stood = format!("{} -> {}", height("before"), height("after"));
        out.say(format_args!("{head} {stood}  {}  {}", part("who"), record["said"]));
    }
    out.emit(&json!({ "first": verdict.first, "count": verdict.count, "records": records }));
    match verdict.fault {
        None => Ok(Exit::Ok),
        Some((index, what)) => Err(Failure::integrity(format!("record {index} is damaged: {what}"))),
    }
}

/// Refuses a log that does not go on from a checkpoint.
// spec: AUDIT-13
fn goes_on(
    kept: &NodeCheckpoint,
    found: Option<keelstone_ledger::Signature>,
    verdict: &NodeVerdict,
) -> Result<(), Failure> {
    let count = kept.state.log.count();
    match found {
        // One key signs one text in one way: the same signature is the same log.
        Some(found) if found == kept.signature => Ok(()),
        Some(_) => Err(Failure::integrity(format!("the first {count} records were others than the checkpoint's"))),
        None if count > verdict.count => {
            let found = verdict.count;
            Err(Failure::integrity(format!("the checkpoint has {count} records, the log has {found}: it was cut")))
        }
        None => Err(Failure::usage(format!(
            "a checkpoint of {count} records cannot be compared with a log that is kept from {} on",
            verdict.first
        ))),
    }
}

fn tell(verdict: &NodeVerdict, compared: bool, context: &Context<'_>) -> Exit {
    let NodeVerdict { key, first, count, verified, fault, torn } = verdict;
    let out = context.out;
    let mut shown = json!({
        "valid": fault.is_none(), "key": key, "first": first, "count": count, "verified": verified, "torn": torn,
        "checkpoint": compared,
    });
    if let Some((index, what)) = fault {
        out.say(format_args!("{} record {index}: {what}", out.ink(Ink::Bad, "✗")));
        (shown["bad_record"], shown["what"]) = (json!(index), json!(what));
        out.emit(&shown);
        return Exit::Integrity;
    }
    out.say(out.ink(Ink::Good, "✓ every record is the next that the node signed"));
    out.row("records", format_args!("{} to {}", grouped(*first), grouped(*count)));
    if let Some(key) = key {
        out.row("key", key);
    }
    if *torn > 0 {
        out.row("cut off", format_args!("{torn} bytes of a record that was never acknowledged"));
    }
    out.emit(&shown);
    Exit::Ok
}

fn export(own: &OwnLog, file: Option<&Path>, context: &Context<'_>) -> Result<Exit, Failure> {
    let (start, end) = own.ends()?.ok_or_else(none)?;
    let (first, count) = (start.state.log.count(), end.state.log.count());
    let mut text = vec![export_head(&start)];
    // What is appended while this reads is for the next export.
    let mut line = |index, next: &SignedNodeRecord| {
        if index < count {
            text.push(export_line(index, next));
        }
    };
    let verdict = own.verify(None, &mut line)?.ok_or_else(none)?;
    if let Some((index, what)) = verdict.fault {
        return Err(Failure::integrity(format!("record {index} is damaged: {what}")));
    }
    let records = count.saturating_sub(first);
    if text.len() as u64 != records + 1 {
        return Err(Failure::error("the node forgot records of the log meanwhile: try again"));
    }
    text.push(export_end(&end));
    match file {
        Some(file) => {
            newfile::create(file, |out| {
                text.iter().try_for_each(|line| writeln!(out, "{line}")).map_err(|error| newfile::failed(file, &error))
            })?;
            context.out.row("records", format_args!("{} from {}", grouped(records), grouped(first)));
            context.out.row("file", file.display());
            let file = file.display().to_string();
            context.out.emit(&json!({ "from": first, "records": records, "file": file }));
        }
        None => text.iter().for_each(|line| context.out.write(&format!("{line}\n"))),
    }
    Ok(Exit::Ok)
}
