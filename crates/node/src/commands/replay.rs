//! `keelstone replay`: runs blocks again, all from the genesis on or a range, and compares every root.

use crate::context::Context;
use crate::engine::Replayed;
use crate::exit::{Exit, Failure};
use crate::out::{Ink, grouped};
use clap::Args;
use keelstone_codec::Height;
use serde_json::json;

/// Run blocks again and compare every root
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The first block, on the state before it as it is kept [default: the first of the chain, on the genesis]
    #[arg(long, value_name = "H")]
    from: Option<u64>,
    /// The last block [default: the last of the chain]
    #[arg(long, value_name = "H")]
    to: Option<u64>,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    if let (Some(from), Some(to)) = (options.from, options.to)
        && from > to
    {
        return Err(Failure::usage(format!("--from {from} is above --to {to}")));
    }
    let chain = context.open_chain()?;
    let out = context.out;
    let bar = out.progress("replaying", 0);
    let replayed = chain.replay(options.from.map(Height), options.to.map(Height), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let Replayed { from, to, replayed } = replayed.map_err(|failure| context.of_whom(failure))?;
    out.say(out.ink(Ink::Good, "✓ the same blocks give the same roots"));
    out.row("heights", format_args!("{} to {}", grouped(from.0), grouped(to.0)));
    out.row("blocks", grouped(replayed.blocks));
    if replayed.without_block > 0 {
        out.row("without a block", format_args!("{} (they left nothing)", grouped(replayed.without_block)));
    }
    out.row("transactions", grouped(replayed.transactions));
    out.row("roots compared", grouped(replayed.compared));
    out.row("root", replayed.root.0);
    out.emit(&json!({
        "blocks": replayed.blocks, "without_block": replayed.without_block, "transactions": replayed.transactions,
        "roots_compared": replayed.compared, "from": from.0, "height": to.0, "root": replayed.root.0,
    }));
    Ok(Exit::Ok)
}
