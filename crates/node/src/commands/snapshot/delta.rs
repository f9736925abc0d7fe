//! `keelstone snapshot delta FROM TO`: what changed between two heights, as a file that `restore --delta` applies.
//!
//! It is found between two snapshots if both are at hand, by reading them; else between two states that are kept, by
//! walking where they differ. There is one delta between two heights, so it is the same.

use super::diff::{Change, compare};
use super::{Source, expected, genesis_if_any};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::library::look_into_library;
use crate::newfile;
use crate::out::{bytes, grouped};
use clap::Args;
use keelstone_codec::{Decode as _, Encode as _, Height, Key, Namespace, Value};
use keelstone_ledger::Genesis;
use keelstone_sync::delta::{Changes, Delta};
use serde_json::json;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Bytes of a delta file: the most a delta weighs, and what names and counts add.
const FILE_BYTES_MAX: u64 = 320 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What it applies to: a height, or the path of an archive
    from: Source,
    /// What it leads to
    to: Source,
    /// The file to write, which must not exist
    #[arg(long, short)]
    out: PathBuf,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let delta = match (has(&options.from, context)?, has(&options.to, context)?) {
        (true, true) => of_snapshots(&options.from, &options.to, context)?,
        _ => context.open_chain()?.delta(height(&options.from)?, height(&options.to)?)?,
    };
    let encoded = delta.to_bytes();
    newfile::write(&options.out, &encoded)?;
    let size = u64::try_from(encoded.len()).unwrap_or(u64::MAX);
    let writes = delta.diff.iter().count();
    let out = context.out;
    out.row("from", format_args!("height {}, root {}", grouped(delta.from.0.0), delta.from.1));
    out.row("to", format_args!("height {}, root {}", grouped(delta.to.0.0), delta.to.1));
    out.row("changes", grouped(u64::try_from(writes).unwrap_or(u64::MAX)));
    out.row("written", format_args!("{}, {}", options.out.display(), bytes(size)));
    out.emit(&json!({
        "from": { "height": delta.from.0, "root": delta.from.1 }, "to": { "height": delta.to.0, "root": delta.to.1 },
        "changes": writes, "bytes": size, "file": options.out,
    }));
    Ok(Exit::Ok)
}

/// Whether a snapshot is at hand.
fn has(source: &Source, context: &Context<'_>) -> Result<bool, Failure> {
    Ok(match source {
        Source::Kept(id) => look_into_library(&context.home)?
            .is_some_and(|(library, _)| library.list().iter().any(|info| info.id == *id)),
        Source::Archive(_) => true,
    })
}

/// The height of a state that is kept, where there is no snapshot of the other.
fn height(source: &Source) -> Result<Height, Failure> {
    match source {
        Source::Kept(id) => Ok(id.height),
        Source::Archive(path) => {
            let message = format!("{} is an archive, and there is no snapshot of the other height", path.display());
            Err(Failure::usage(message).hint("keelstone snapshot create makes one of a height whose state is kept"))
        }
    }
}

fn of_snapshots(from: &Source, to: &Source, context: &Context<'_>) -> Result<Delta, Failure> {
    let mut changes = Changes::default();
    let mut note = |change: Change, namespace: &Namespace, key: &[u8], value: &[u8]| {
        let fits = "a proven entry has a key and a value";
        let value = (change != Change::Removed).then(|| Value::new(value.to_vec()).expect(fits));
        changes.add(namespace, Key::new(key).expect(fits), value)
    };
    let expected = expected(genesis_if_any(context)?.as_ref(), None)?;
    let (old, new) = compare((from, to), &expected, &context.home, &mut note)?;
    if (&old.chain_id, old.hasher) != (&new.chain_id, new.hasher) {
        let message = format!(
            "the first is of {} under {}, the second of {} under {}",
            old.chain_id, old.hasher, new.chain_id, new.hasher
        );
        return Err(Failure::usage(message));
    }
    Ok(changes.into_delta(new.chain_id, new.hasher, (old.id.height, old.root), (new.id.height, new.root))?)
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
