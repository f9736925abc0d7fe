//! `keelstone replay`: runs all blocks again from the genesis and compares every root.

use crate::cli::Context;
use crate::exit::{Exit, Failure};
use crate::out::{Ink, grouped};
use clap::Args;
use serde_json::json;

/// Run all blocks again from the genesis and compare every root
#[derive(Debug, Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain = context.open_chain()?;
    let out = context.out;
    let bar = out.progress("replaying", 0);
    let replayed = chain.replay(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let replayed = replayed?;
    out.say(out.ink(Ink::Good, "✓ the same blocks give the same roots"));
    out.row("blocks", grouped(replayed.blocks));
    out.row("transactions", grouped(replayed.transactions));
    out.row("roots compared", grouped(replayed.compared));
    out.row("root", replayed.root.0);
    out.emit(&json!({
        "blocks": replayed.blocks, "transactions": replayed.transactions, "roots_compared": replayed.compared,
        "height": replayed.height.0, "root": replayed.root.0,
    }));
    Ok(Exit::Ok)
}
