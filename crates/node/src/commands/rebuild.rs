//! `keelstone rebuild --to-height|--to-time|--to-operation … --out DIR`: the chain as it was, in a home of its own.
//!
//! The chain here is only read. The new home has the genesis, the configuration and the data; keys stay where they are.

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::newfile;
use crate::out::{Ink, grouped};
use crate::own_log::{OwnLog, Stood, Who, standing};
use clap::Args;
use keelstone_codec::{Height, Timestamp};
use keelstone_ledger::{NodeEvent, NodeStep, Standing, TxId, Until, cut};
use serde_json::json;
use std::path::PathBuf;

/// Make the chain as it was at a height, time or operation, in a new directory
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    to: To,
    /// The new home; it must not exist, or be empty; one whose rebuilding was cut off is begun again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct To {
    /// Up to this height
    #[arg(long, value_name = "H")]
    to_height: Option<u64>,
    /// Up to the last block that is not after this time, in milliseconds since 1970
    #[arg(long, value_name = "MS")]
    to_time: Option<u64>,
    /// Up to the block of an operation: the place of its record in the audit log, or its transaction's identity
    #[arg(long, value_name = "INDEX|TX")]
    to_operation: Option<String>,
}

impl To {
    fn until(&self) -> Result<Until, Failure> {
        match (self.to_height, self.to_time, &self.to_operation) {
            (Some(height), ..) => Ok(Until::Height(Height(height))),
            (_, Some(time), _) => Ok(Until::Time(Timestamp(time))),
            (.., Some(text)) => match (text.parse(), TxId::from_hex(text)) {
                (Ok(index), _) if text.len() < 64 => Ok(Until::Record(index)),
                (_, Ok(id)) => Ok(Until::Transaction(id)),
                _ => Err(Failure::usage(format!(
                    "--to-operation: {text:?} is neither the place of an audit record nor a transaction"
                ))),
            },
            (None, None, None) => Err(Failure::usage("say up to where")),
        }
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let until = options.to.until()?;
    let out = context.out;
    let chain = context.open_chain()?;
    let home = Home::new(options.out.clone());
    let bar = out.progress("rebuilding", 0);
    let rebuilt = chain.rebuild(until, &home, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let rebuilt = rebuilt.map_err(|failure| context.of_whom(failure))?;
    let into = cut(options.out.display().to_string());
    let before = standing(&*chain);
    let after = Some(Standing { height: rebuilt.height, root: rebuilt.root });
    let event = NodeEvent::Rebuilt { to: rebuilt.height, into };
    OwnLog::of(&context.home).note(Who::User, event, NodeStep::Done, Stood { before, after })?;
    if let Ok(config) = std::fs::read(context.home.config()) {
        newfile::write(&home.config(), &config)?;
    }
    out.say(out.ink(Ink::Good, "✓ every block came to what the chain's record says"));
    out.row("height", format_args!("{} (from {})", grouped(rebuilt.height.0), grouped(rebuilt.from.0)));
    out.row("blocks", grouped(rebuilt.blocks));
    if rebuilt.without_block > 0 {
        out.row("without a block", format_args!("{} (they left nothing)", grouped(rebuilt.without_block)));
    }
    out.row("operations", grouped(rebuilt.operations));
    out.row("roots compared", grouped(rebuilt.roots_compared));
    out.row("root", rebuilt.root.0);
    out.row("home", options.out.display());
    out.emit(&json!({
        "height": rebuilt.height.0, "from": rebuilt.from.0, "root": rebuilt.root.0, "blocks": rebuilt.blocks,
        "without_block": rebuilt.without_block, "operations": rebuilt.operations, "roots_compared": rebuilt.roots_compared,
        "home": options.out.display().to_string(),
    }));
    Ok(Exit::Ok)
}
