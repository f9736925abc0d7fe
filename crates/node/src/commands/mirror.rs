//! `keelstone mirror export`: a snapshot as static files, for `keelstone sync --from` to take from a directory or from
//! any web server.

use super::snapshot::extract::Prefix;
use crate::api::{Chain, Refusal};
use crate::clock::now;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::keyfile::PRODUCER;
use crate::library::{damaged, kept, look_into_library};
use crate::newfile;
use crate::out::{bytes, grouped};
use clap::{Args, Subcommand};
use keelstone_codec::{Blob, Decode as _, Encode as _, Height, Root};
use keelstone_ledger::Attestation;
use keelstone_sync::library::{Progress, SnapshotId};
use keelstone_sync::mirror::{HEAD_FILE, Head};
use keelstone_sync::snapshot::{FORMAT, PartOf};
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
        /// A directory that does not exist or is empty; one whose export was cut off is gone on with
        to: PathBuf,
        /// The height of the snapshot [default: the newest]
        #[arg(long)]
        height: Option<u64>,
        /// No more than this namespace, for others who take it alone
        #[arg(long)]
        namespace: Option<String>,
        #[command(flatten)]
        prefix: Prefix,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let Action::Export { to, height, namespace, prefix } = options.action;
    let part = namespace.map(|namespace| prefix.of(&namespace)).transpose()?;
    export(&to, height, part, context)
}

// spec: LIB-10, LIB-11
fn export(to: &Path, height: Option<u64>, part: Option<PartOf>, context: &Context<'_>) -> Result<Exit, Failure> {
    let (home, out) = (&context.home, context.out);
    let genesis = home.read_genesis()?;
    let (config, _) = context.config()?;
    let none = || Failure::not_found("there is no snapshot to export").hint("keelstone snapshot create makes one");
    let id = match height {
        Some(height) => SnapshotId { height: Height(height), format: FORMAT },
        None => {
            let (library, found) = look_into_library(home)?.ok_or_else(none)?;
            let newest = library.list().first().map(|info| info.id);
            newest.ok_or_else(|| found.damaged.last().map_or_else(none, |found| damaged(home, found)))?
        }
    };
    let (library, pin) = kept(home, id)?;
    // Whoever holds a producer's key says so; without, a root has to be given to whoever syncs. It is had before anything is
    // written.
    let keys = context.keys();
    let (producer, is_known) =
        match keys.names()?.iter().any(|name| name == PRODUCER) && genesis.validators.is_empty() {
            true => match root_here(&*context.chain()?, id.height)? {
                Some(root) if root == pin.index().root => (Some(keys.load(PRODUCER)?), true),
                Some(root) => {
                    let message = format!(
                        "the snapshot of height {} has root {}, this chain has {root}",
                        id.height,
                        pin.index().root
                    );
                    return Err(Failure::integrity(message)
                        .hint("it is of another history: keelstone snapshot delete removes it"));
                }
                None => (None, false),
            },
            false => (None, true),
        };
    // One of the very same is made anew, with what certifies it now: whoever was cut off at the end of it did not hear of that.
    let head = to.join(HEAD_FILE);
    let of_it = std::fs::read(&head).ok().and_then(|bytes| Head::from_bytes(&bytes).ok());
    let is_of_it = of_it.is_some_and(|head| head.height == id.height && head.part == part);
    if is_of_it && has_index(to, &pin.index().to_bytes()) {
        std::fs::remove_file(&head).map_err(|error| Failure::io(head.display(), &error))?;
    }
    let reserve = u8::try_from(config.snapshots.reserve_percent).unwrap_or(u8::MAX);
    let bar = out.progress("copying", 0);
    let mut show = |progress: Progress| {
        bar.set_length(u64::from(progress.total));
        bar.set_position(u64::from(progress.done));
        ControlFlow::Continue(())
    };
    let copied = newfile::directory(to, |directory| {
        Ok(match &part {
            Some(part) => library.export_part(id, part, directory, reserve, &mut show)?,
            None => library.export_directory(id, directory, reserve, &mut show)?.bytes,
        })
    });
    bar.finish_and_clear();
    let written = copied?;
    let info = pin.info().clone();
    let certificate = match &producer {
        Some(producer) => {
            let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
            let attestation = Attestation {
                chain_id: genesis.chain_id.clone(),
                genesis_hash: first.hash,
                height: id.height,
                root: pin.index().root,
                said_at: now(),
            };
            attestation.sign(producer).to_bytes()
        }
        None => Vec::new(),
    };
    let certified = !certificate.is_empty();
    let certificate = Blob::new(certificate).expect("an attestation is short");
    // Last: a directory without a head is no mirror.
    newfile::write(&head, &Head { height: id.height, certificate, part: part.clone() }.to_bytes())?;
    out.row("height", grouped(id.height.0));
    out.row("root", info.root);
    match &part {
        Some(part) => out.row("part", part),
        None => out.row("entries", grouped(info.totals.count)),
    }
    out.row("written", format_args!("{} into {}", bytes(written), to.display()));
    let says = match (certified, is_known) {
        (true, _) => "by this home's producer key",
        (false, true) => "no: give the root with --trust-hash",
        (false, false) => "no, this home has no root of that height on record: give it with --trust-hash",
    };
    out.row("certified", says);
    out.emit(&json!({
        "height": id.height, "root": info.root, "entries": info.totals.count, "bytes": written, "to": to,
        "certified": certified, "namespace": part.as_ref().map(|part| part.namespace.as_str()),
        "prefix": part.as_ref().map(|part| hex::encode(&part.prefix)),
    }));
    Ok(Exit::Ok)
}

/// Whether a directory has this index of a snapshot.
fn has_index(directory: &Path, index: &[u8]) -> bool {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut indexes = files.filter(|path| path.extension().is_some_and(|ending| ending == "snapshot"));
    indexes.any(|path| std::fs::read(path).is_ok_and(|found| found == index))
}

/// The root that this home's own chain has at a height; none if that is not on record here any more. A snapshot's own root is no
/// word for it: the directory may hold one of another history.
// spec: SNAP-12
fn root_here(chain: &dyn Chain, height: Height) -> Result<Option<Root>, Failure> {
    let status = chain.status()?;
    let block = |height| match chain.block(Some(height)) {
        Ok(block) => Ok(Some(block)),
        Err(Refusal::NotFound(_) | Refusal::Height { .. } | Refusal::NoBlock { .. }) => Ok(None),
        Err(refusal) => Err(refusal),
    };
    let root = match status.height == height.0 {
        true => Some(status.root),
        // A state that is no longer kept is named by the block that follows.
        false => match block(height)?.and_then(|block| block.root) {
            None => block(height.next())?.and_then(|block| block.previous_root),
            root => root,
        },
    };
    root.map(|root| Root::from_hex(&root)).transpose().map_err(|error| Failure::error(error.to_string()))
}
