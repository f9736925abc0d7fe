//! `keelstone export xian FILE`: the imported network's state, in its own form, equal as data to what came in.

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::newfile;
use crate::out::bytes;
use clap::{Args, Subcommand};
use keelstone_codec::Height;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write state in another network's form
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    to: To,
}

#[derive(Debug, Subcommand)]
enum To {
    /// To the form of a Xian network's export
    Xian {
        /// The file to write, which must not exist; `-` for standard output
        file: PathBuf,
        /// The state at this height instead of the last
        #[arg(long)]
        height: Option<u64>,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let To::Xian { file, height } = options.to;
    let text = context.open_chain()?.export_xian(height.map(Height))?.to_pretty() + "\n";
    if file == Path::new("-") {
        context.out.write(&text);
        return Ok(Exit::Ok);
    }
    newfile::write(&file, text.as_bytes())?;
    let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
    context.out.row("written", format_args!("{}, {}", file.display(), bytes(size)));
    context.out.emit(&json!({ "file": file, "bytes": size }));
    Ok(Exit::Ok)
}
