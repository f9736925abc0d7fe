//! `keelstone rollback HEIGHT --yes`: makes an earlier height the last one again.

use super::db::confirmed;
use crate::cli::Context;
use crate::exit::{Exit, Failure};
use crate::out::grouped;
use crate::snapshots::forget_above;
use clap::Args;
use keelstone_codec::Height;
use serde_json::json;

/// Make an earlier height the last one again
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The height to go back to
    height: u64,
    /// Yes, forget the blocks above it
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain = context.open_chain()?;
    let before = chain.status()?.height;
    let lost = before.saturating_sub(options.height);
    confirmed(options.yes, &format!("this forgets {} blocks above height {}", grouped(lost), options.height))?;
    let root = chain.rollback(Height(options.height))?;
    forget_above(&context.home, Height(options.height))?;
    context.out.row("height", format_args!("{} (was {})", grouped(options.height), grouped(before)));
    context.out.row("root", root.0);
    context.out.emit(&json!({ "height": options.height, "height_before": before, "root": root.0 }));
    Ok(Exit::Ok)
}
