//! `keelstone mirror export`: a snapshot as static files, for `keelstone sync --from` to take from a directory or from
//! any web server.

use super::init::{PRODUCER, now};
use crate::cli::Context;
use crate::exit::{Exit, Failure};
use crate::newfile;
use crate::out::{bytes, grouped};
use crate::snapshots::look_into_library;
use clap::{Args, Subcommand};
use keelstone_codec::{Blob, Encode as _, Height};
use keelstone_ledger::Attestation;
use keelstone_store::files::Directory;
use keelstone_sync::library::{LibraryError, SnapshotId};
use keelstone_sync::mirror::{HEAD_FILE, Head};
use keelstone_sync::snapshot::FORMAT;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Write a snapshot as static files that others can sync from
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write a snapshot of this home into a directory
    Export {
        /// A directory that does not exist or is empty
        to: PathBuf,
        /// The height of the snapshot [default: the newest]
        #[arg(long)]
        height: Option<u64>,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let Action::Export { to, height } = options.action;
    export(&to, height, context)
}

// spec: LIB-10
fn export(to: &Path, height: Option<u64>, context: &Context<'_>) -> Result<Exit, Failure> {
    let (home, out) = (&context.home, context.out);
    let genesis = home.read_genesis()?;
    let (config, _) = context.config()?;
    let none = || Failure::not_found("there is no snapshot to export").hint("keelstone snapshot create makes one");
    let (library, _) = look_into_library(home)?.ok_or_else(none)?;
    let id = match height {
        Some(height) => SnapshotId { height: Height(height), format: FORMAT },
        None => library.list().first().ok_or_else(none)?.id,
    };
    let pin = library.pin(id).ok_or(LibraryError::NotFound(id))?;
    let directory = Directory::new(to).map_err(|error| Failure::io(to.display(), &error))?;
    let reserve = u8::try_from(config.snapshots.reserve_percent).unwrap_or(u8::MAX);
    let bar = out.progress("copying", 0);
    let copied = library.export_directory(id, &directory, reserve, &mut |progress| {
        bar.set_length(u64::from(progress.total));
        bar.set_position(u64::from(progress.done));
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let info = copied?;
    // Whoever holds a producer's key says so; without, a root has to be given to whoever syncs.
    let keys = context.keys();
    let certificate = match keys.names()?.iter().any(|name| name == PRODUCER) && genesis.validators.is_empty() {
        true => {
            let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
            let attestation = Attestation {
                chain_id: genesis.chain_id.clone(),
                genesis_hash: first.hash,
                height: id.height,
                root: pin.index().root,
                said_at: now(),
            };
            attestation.sign(&keys.load(PRODUCER)?).to_bytes()
        }
        false => Vec::new(),
    };
    let certified = !certificate.is_empty();
    let certificate = Blob::new(certificate).expect("an attestation is short");
    // Last: a directory without a head is no mirror.
    newfile::write(&to.join(HEAD_FILE), &Head { height: id.height, certificate }.to_bytes())?;
    out.row("height", grouped(id.height.0));
    out.row("root", info.root);
    out.row("entries", grouped(info.totals.count));
    out.row("written", format_args!("{} into {}", bytes(info.bytes), to.display()));
    out.row("certified", if certified { "by this home's producer key" } else { "no: give the root with --trust-hash" });
    out.emit(&json!({
        "height": id.height, "root": info.root, "entries": info.totals.count, "bytes": info.bytes, "to": to,
        "certified": certified,
    }));
    Ok(Exit::Ok)
}
