//! `keelstone rollback HEIGHT --yes`: makes an earlier height the last one again.

use super::db::confirmed;
use crate::cometbft::rpc::Rpc;
use crate::context::Context;
use crate::exit::{Exit, Failure, causes};
use crate::library::{forget_above, hold_library};
use crate::out::grouped;
use crate::own_log::{OwnLog, standing};
use clap::Args;
use keelstone_codec::Height;
use keelstone_ledger::NodeEvent;
use serde_json::json;

/// Make an earlier height the last one again
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The height to go back to
    height: u64,
    /// Yes, forget the blocks above it
    #[arg(long)]
    yes: bool,
    /// The height of CometBFT's state, under which this chain runs; asked of its RPC if it is not given
    #[arg(long, value_name = "H")]
    engine_height: Option<u64>,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain = context.open_chain()?;
    if !context.home.read_genesis()?.validators.is_empty() {
        under_engine(&options, context)?;
    }
    let status = chain.status()?;
    let before = status.height;
    let to = Height(options.height);
    // There is nothing to ask about then; who does not ask is answered where it is tried, and that is on record.
    if to.0 > before && !options.yes {
        return Err(Failure::not_found(format!("there is no height {to} yet: the last is {}", grouped(before))));
    }
    let is_there = to.0 == before;
    if !is_there {
        let lost = before.saturating_sub(to.0);
        confirmed(options.yes, &format!("this forgets {} blocks above height {to}", grouped(lost)))?;
    }
    // Held from before there is no way back: snapshots above that height are of a history that is no more.
    let held = hold_library(&context.home)?;
    let root = match is_there {
        true => status.root,
        false => {
            let own = OwnLog::of(&context.home);
            own.around(&NodeEvent::RolledBack { to }, || standing(&*chain), || chain.rollback(to))?.0.to_string()
        }
    };
    // Also where a rollback before this one was cut off.
    let forgotten = forget_above(held, &context.home, to);
    let warnings: Vec<String> = forgotten.err().map(|failure| failure.message).into_iter().collect();
    match is_there {
        true => context.out.row("height", format_args!("{} already: there is nothing to take back", grouped(before))),
        false => context.out.row("height", format_args!("{} (was {})", grouped(to.0), grouped(before))),
    }
    context.out.row("root", &root);
    context.out.warn(&warnings);
    context.out.emit(&json!({ "height": options.height, "height_before": before, "root": root, "warnings": warnings }));
    Ok(Exit::Ok)
}

/// CometBFT replays to an application that is one block behind it; one that is further behind or ahead has lost what
/// the engine relies on.
// spec: STORE-5
fn under_engine(options: &Options, context: &Context<'_>) -> Result<(), Failure> {
    let engine = match options.engine_height {
        Some(height) => height,
        None => Rpc::of_engine(&context.config()?.0.engine.rpc).height().map_err(|error| {
            Failure::usage(format!("CometBFT's height is not known: {}", causes(&error)))
                .hint("--engine-height H says it; cometbft rollback takes CometBFT one height back and prints it")
        })?,
    };
    let height = options.height;
    if height == engine || height.checked_add(1) == Some(engine) {
        return Ok(());
    }
    let message =
        format!("CometBFT stands at height {engine}: this chain can go back to {engine} or one below, not to {height}");
    let hint = match height < engine {
        true => {
            format!("cometbft rollback --hard takes CometBFT back one height; run it {} times first", engine - height)
        }
        false => "nothing above CometBFT's height can be kept: roll back to that height".to_owned(),
    };
    Err(Failure::usage(message).hint(hint))
}
