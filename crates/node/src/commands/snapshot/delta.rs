//! `keelstone snapshot delta FROM TO`: what changed between two heights, as a file that `restore --delta` applies.

use crate::cli::Context;
use crate::exit::{Exit, Failure};
use crate::out::{bytes, grouped};
use clap::Args;
use keelstone_codec::{Decode as _, Encode as _, Height};
use keelstone_ledger::Genesis;
use keelstone_sync::delta::Delta;
use serde_json::json;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Bytes of a delta file: the most a delta weighs, and what names and counts add.
const FILE_BYTES_MAX: u64 = 320 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The height it applies to
    from: u64,
    /// The height it leads to
    to: u64,
    /// The file to write, which must not exist
    #[arg(long, short)]
    out: PathBuf,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let delta = context.open_chain()?.delta(Height(options.from), Height(options.to))?;
    let encoded = delta.to_bytes();
    File::create_new(&options.out)
        .and_then(|mut file| file.write_all(&encoded).and_then(|()| file.sync_all()))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Failure::usage(format!("{} exists already", options.out.display())),
            _ => Failure::io(format_args!("could not write {}", options.out.display()), &error),
        })?;
    let size = u64::try_from(encoded.len()).unwrap_or(u64::MAX);
    let writes = delta.diff.iter().count();
    let out = context.out;
    out.row("from", format_args!("height {}, root {}", grouped(options.from), delta.from.1));
    out.row("to", format_args!("height {}, root {}", grouped(options.to), delta.to.1));
    out.row("changes", grouped(u64::try_from(writes).unwrap_or(u64::MAX)));
    out.row("written", format_args!("{}, {}", options.out.display(), bytes(size)));
    out.emit(&json!({
        "from": { "height": delta.from.0, "root": delta.from.1 }, "to": { "height": delta.to.0, "root": delta.to.1 },
        "changes": writes, "bytes": size, "file": options.out,
    }));
    Ok(Exit::Ok)
}

/// Reads a delta of this chain. Nothing it says is believed before the root it leads to was found.
pub(super) fn read(file: &Path, genesis: &Genesis) -> Result<Delta, Failure> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::usage(format!("there is no file {}", file.display())),
        _ => Failure::io(format_args!("could not read {}", file.display()), &error),
    };
    let wrong = |what: &dyn std::fmt::Display| Failure::usage(format!("{}: {what}", file.display()));
    let mut encoded = Vec::new();
    File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut encoded)).map_err(failed)?;
    if u64::try_from(encoded.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(wrong(&format_args!("longer than {}", bytes(FILE_BYTES_MAX))));
    }
    let delta = Delta::from_bytes(&encoded).map_err(|error| wrong(&error))?;
    delta.check(&genesis.chain_id, genesis.hasher, delta.from, delta.to)?;
    Ok(delta)
}
