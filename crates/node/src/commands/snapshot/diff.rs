//! `keelstone snapshot diff A B`: which entries one state has that the other has not, or has otherwise.
//!
//! Both snapshots are read to their end, each on a thread of its own, and merged in the order of their keys: nothing is
//! held but a few batches, and whatever is compared was proven.

use super::{Source, expected, genesis_if_any};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::out::grouped;
use clap::Args;
use keelstone_codec::Namespace;
use keelstone_sync::delta::DeltaError;
use keelstone_sync::library::{Expected, Info, LibraryError};
use serde_json::json;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Entries handed over at once.
const BATCH: usize = 1024;
/// Batches that may wait.
const BATCHES: usize = 4;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The first: a height, or the path of an archive
    from: Source,
    /// The second
    to: Source,
    /// Entries to show; all are counted
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

type Entry = (Namespace, Vec<u8>, Vec<u8>);

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Added,
    Changed,
    Removed,
}

impl Change {
    const fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    added: u64,
    changed: u64,
    removed: u64,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let expected = expected(genesis_if_any(context)?.as_ref(), None)?;
    let mut counts: BTreeMap<Namespace, Counts> = BTreeMap::new();
    let mut shown = Vec::new();
    let mut note = |change: Change, namespace: &Namespace, key: &[u8], _: &[u8]| {
        let counts = counts.entry(namespace.clone()).or_default();
        match change {
            Change::Added => counts.added += 1,
            Change::Changed => counts.changed += 1,
            Change::Removed => counts.removed += 1,
        }
        if shown.len() < options.limit {
            shown.push((change, namespace.clone(), key.to_vec()));
        }
        Ok(())
    };
    let (old, new) = compare((&options.from, &options.to), &expected, &context.home, &mut note)?;

    let out = context.out;
    out.row("from", format_args!("height {}", grouped(old.id.height.0)));
    out.row("to", format_args!("height {}", grouped(new.id.height.0)));
    for (namespace, counts) in &counts {
        let (added, changed, removed) = (grouped(counts.added), grouped(counts.changed), grouped(counts.removed));
        out.row(namespace.as_str(), format_args!("{added} added, {changed} changed, {removed} removed"));
    }
    if counts.is_empty() {
        out.say("the states are equal");
    }
    for (change, namespace, key) in &shown {
        out.say(format_args!("  {:<8} {namespace} {}", change.word(), key.escape_ascii()));
    }
    let namespaces: serde_json::Map<String, serde_json::Value> = counts
        .iter()
        .map(|(name, counts)| {
            let counts = json!({ "added": counts.added, "changed": counts.changed, "removed": counts.removed });
            (name.to_string(), counts)
        })
        .collect();
    let entries: Vec<_> = shown
        .iter()
        .map(|(change, name, key)| json!({ "change": change.word(), "namespace": name.as_str(), "key": hex::encode(key) }))
        .collect();
    out.emit(&json!({
        "from": { "height": old.id.height, "root": old.root }, "to": { "height": new.id.height, "root": new.root },
        "equal": old.root == new.root, "namespaces": namespaces, "entries": entries,
    }));
    Ok(Exit::Ok)
}

/// Hears of an entry that differs: its key, and its value in the second state, empty if it is not there.
pub(super) type Note<'a> = &'a mut dyn FnMut(Change, &Namespace, &[u8], &[u8]) -> Result<(), DeltaError>;

/// Reads two snapshots to their ends and tells of every entry in which they differ, in order.
pub(super) fn compare(
    (from, to): (&Source, &Source),
    expected: &Expected,
    home: &Home,
    note: Note<'_>,
) -> Result<(Info, Info), Failure> {
    // Only what reading needs goes to the other threads.
    std::thread::scope(|scope| {
        let (send_old, old) = sync_channel(BATCHES);
        let (send_new, new) = sync_channel(BATCHES);
        let first = scope.spawn(move || read(from, home, expected, &send_old));
        let second = scope.spawn(move || read(to, home, expected, &send_new));
        let merged = merge(old, new, note);
        let bug = |_| Failure::error("a reader panicked");
        let both = (first.join().map_err(bug)?, second.join().map_err(bug)?);
        // Nobody listened any more to those who read.
        merged?;
        Ok((both.0?, both.1?))
    })
}

/// Reads a snapshot to its end and hands its entries over in order.
fn read(source: &Source, home: &Home, expected: &Expected, sink: &SyncSender<Vec<Entry>>) -> Result<Info, Failure> {
    let mut batch = Vec::with_capacity(BATCH);
    // Nobody listens any more if the other side failed: then this one may end.
    let gone = |_| LibraryError::Stopped;
    let info = source.read(home, |origin| {
        let mut each = |namespace: &Namespace, key: &[u8], value: &[u8]| {
            batch.push((namespace.clone(), key.to_vec(), value.to_vec()));
            if batch.len() == BATCH {
                sink.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).map_err(gone)?;
            }
            Ok(())
        };
        let info = origin.entries(expected, &mut each, &mut |_| ControlFlow::Continue(()))?;
        sink.send(std::mem::take(&mut batch)).map_err(gone)?;
        Ok(info)
    })?;
    Ok(info)
}

/// Goes through two states in the order of their keys and notes where they differ.
fn merge(old: Receiver<Vec<Entry>>, new: Receiver<Vec<Entry>>, note: Note<'_>) -> Result<(), DeltaError> {
    let (mut old, mut new) = (old.into_iter().flatten().peekable(), new.into_iter().flatten().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => (&old.0, &old.1).cmp(&(&new.0, &new.1)),
        };
        let (old, new) = match order {
            Ordering::Less => (old.next(), None),
            Ordering::Greater => (None, new.next()),
            Ordering::Equal => (old.next(), new.next()),
        };
        match (old, new) {
            (Some(old), None) => note(Change::Removed, &old.0, &old.1, &[])?,
            (None, Some(new)) => note(Change::Added, &new.0, &new.1, &new.2)?,
            (Some(old), Some(new)) if old.2 != new.2 => note(Change::Changed, &new.0, &new.1, &new.2)?,
            _ => {}
        }
    }
}
