//! `keelstone history NAMESPACE KEY`: every change of an entry, with the operation that made it and a proof.

use super::proof;
use super::query::{hint_at_what_there_is, place};
use crate::api;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::out::{Ink, bytes, grouped, short};
use clap::Args;
use keelstone_codec::{Height, Root};

/// Show what an entry held over time, and which operations changed it
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The namespace, or a table as `query` takes it
    namespace: String,
    /// The key: of a table as the table shows it (the parts of a pair with a comma between), else as text
    key: String,
    /// The key is hexadecimal: all its bytes, as query list gives them
    #[arg(long)]
    hex: bool,
    /// The first height [default: the lowest whose state is kept]
    #[arg(long, value_name = "H")]
    from: Option<u64>,
    /// The last height [default: the last of the chain]
    #[arg(long, value_name = "H")]
    to: Option<u64>,
    /// How many changes
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let registry = &context.application.registry;
    let (namespace, key) = place(&options.namespace, &options.key, options.hex, registry)?;
    let heights = (options.from.map(Height), options.to.map(Height));
    let chain = context.chain()?;
    let history = chain.history(&namespace, &key, heights, usize::from(options.limit))?;
    for change in &history.changes {
        let root = Root::from_hex(&change.root).map_err(|error| Failure::integrity(format!("the root: {error}")))?;
        proof::verify(&claim(&history, change), root)?;
    }
    let out = context.out;
    for change in &history.changes {
        let held = match (&change.value, &change.text) {
            (None, _) => out.ink(Ink::Bad, "deleted"),
            (Some(_), Some(text)) => text.clone(),
            (Some(value), None) => bytes(value.len() as u64 / 2),
        };
        let by = match change.by.as_str() {
            "operation" => change
                .operations
                .iter()
                .map(|operation| match &operation.record {
                    Some(entry) => format!("record {} by {}", entry.index, short(&entry.who)),
                    None => format!("state hash {}", short(&operation.state_hash)),
                })
                .collect::<Vec<_>>()
                .join(", "),
            other => other.to_owned(),
        };
        out.say(format_args!("{:>8}  {held}  ({by})", change.height));
    }
    let (first, last) = (grouped(history.from), grouped(history.to));
    out.row("heights", format_args!("{first} to {last}, {} changes, proofs verified", history.changes.len()));
    // What did not change may be there for longer than states are kept; what never was has no history.
    let is_there = !history.changes.is_empty() || {
        let entry = chain.entry(&namespace, &key, Some(Height(history.to)), false)?;
        entry.value.is_some()
    };
    if !is_there {
        out.say(out.ink(Ink::Quiet, "no such entry in these heights"));
        hint_at_what_there_is(&*chain, (&namespace, &key), None, context);
    }
    if let Some(next) = history.next {
        out.say(format_args!("more: --from {next}"));
    }
    out.emit(&history);
    // Later heights may have it.
    Ok(if is_there || history.next.is_some() { Exit::Ok } else { Exit::NotFound })
}

/// A change as an answer about the entry at its height, for the one verifier there is.
fn claim(history: &api::History, change: &api::Change) -> api::Entry {
    api::Entry {
        namespace: history.namespace.clone(),
        key: history.key.clone(),
        height: change.height,
        root: change.root.clone(),
        hasher: history.hasher.clone(),
        text: None,
        value: change.value.clone(),
        proof: Some(change.proof.clone()),
    }
}
