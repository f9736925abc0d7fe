//! `keelstone rollback HEIGHT --yes`: makes an earlier height the last one again.

use super::db::confirmed;
use crate::cli::Context;
use crate::cometbft::rpc::Rpc;
use crate::exit::{Exit, Failure, causes};
use crate::out::grouped;
use crate::own_log::{OwnLog, standing};
use crate::snapshots::{forget_above, hold_library};
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
    if options.height == before {
        context.out.row("height", format_args!("{} already: there is nothing to take back", grouped(before)));
        context.out.emit(&json!({ "height": before, "height_before": before, "root": status.root }));
        return Ok(Exit::Ok);
    }
    let lost = before.saturating_sub(options.height);
    confirmed(options.yes, &format!("this forgets {} blocks above height {}", grouped(lost), options.height))?;
    let to = Height(options.height);
    // Held from before there is no way back: snapshots above that height are of a history that is no more.
    let library = hold_library(&context.home)?;
    let root =
        OwnLog::of(&context.home).around(&NodeEvent::RolledBack { to }, || standing(&*chain), || chain.rollback(to))?;
    let forgotten = forget_above(library.as_ref(), &context.home, to);
    let warnings: Vec<String> = forgotten.err().map(|failure| failure.message).into_iter().collect();
    context.out.row("height", format_args!("{} (was {})", grouped(options.height), grouped(before)));
    context.out.row("root", root.0);
    context.out.warn(&warnings);
    context
        .out
        .emit(&json!({ "height": options.height, "height_before": before, "root": root.0, "warnings": warnings }));
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
