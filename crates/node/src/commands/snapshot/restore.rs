//! `keelstone snapshot restore`: the state of a snapshot becomes the state of this home.
//!
//! The state is built aside from proven chunks, its root is computed anew and compared, and only then is it the home's.
//! What came before the snapshot is not in it: blocks and receipts begin at the next height.

use super::{Source, delta, expected, genesis_file, show};
use crate::cli::Context;
use crate::commands::db::confirmed;
use crate::config::Config;
use crate::engine::{self, Aside};
use crate::exit::{Exit, Failure};
use crate::out::{Ink, bytes, grouped};
use crate::snapshots::forget_above;
use clap::Args;
use keelstone_codec::{Height, Key, Namespace, Root};
use keelstone_ledger::Genesis;
use keelstone_store::files::{Directory, Files as _};
use keelstone_sync::delta::{ApplyError, Delta};
use keelstone_sync::library::{Each, Expected, LibraryError, Listener, Origin};
use keelstone_tree::{HashKind, Totals};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A height of this home's snapshots, or the path of an archive
    snapshot: Source,
    /// The root you trust; without it the one the snapshot says is used
    #[arg(long)]
    root: Option<String>,
    /// The genesis of the chain, for a home that has none
    #[arg(long)]
    genesis: Option<PathBuf>,
    /// What changed since, to restore the height it leads to; `--root` is then the root of that
    #[arg(long)]
    delta: Option<PathBuf>,
    /// Yes, put it in the place of the state that is here
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(options: Options, config: &Config, context: &Context<'_>) -> Result<Exit, Failure> {
    let home = &context.home;
    let (genesis, fresh) = match &options.genesis {
        Some(_) if home.genesis().exists() => {
            return Err(Failure::usage("this home has a genesis already; leave out --genesis"));
        }
        Some(file) => (genesis_file(file)?, true),
        None => (home.read_genesis()?, false),
    };
    let mut expected = expected(Some(&genesis), options.root.as_deref())?;
    let delta = options.delta.as_deref().map(|file| delta::read(file, &genesis)).transpose()?;
    if let Some(delta) = &delta {
        // The root that is trusted is where the delta leads; it has to begin where the snapshot ends.
        if let Some(root) = expected.root.filter(|root| *root != delta.to.1) {
            return Err(Failure::usage(format!("the delta leads to root {}, not to {root}", delta.to.1)));
        }
        expected.root = Some(delta.from.1);
    }
    let info = options.snapshot.read(context, |origin| origin.inspect(&expected))?;
    let (height, root) = delta.as_ref().map_or((info.id.height, info.root), |delta| delta.to);
    let started = Instant::now();
    let aside = Aside::of(home)?;
    if aside.replaces() {
        let what = format!(
            "this forgets the state, the blocks and the receipts here, and puts height {height} in their place"
        );
        confirmed(options.yes, &what)?;
    }
    let built = aside.directory().and_then(|directory| {
        check_room(&directory, room_of(info.totals), config)?;
        let plan =
            Plan { snapshot: &options.snapshot, expected: &expected, delta: delta.as_ref(), target: (height, root) };
        build(&plan, genesis.hasher, Some(&genesis), directory, context)
    });
    built.inspect_err(|_| aside.give_up())?;
    if fresh {
        home.write_genesis(&genesis)?;
    }
    aside.settle()?;
    forget_above(home, height)?;
    engine::open(home, config, &context.application.registry)?;
    let seconds = started.elapsed().as_secs_f64();

    let out = context.out;
    out.say(out.ink(Ink::Good, "✓ restored, and the root is what it must be"));
    out.row("height", grouped(height.0));
    out.row("root", root);
    out.row("snapshot", format_args!("{} entries, {}", grouped(info.totals.count), bytes(info.totals.bytes)));
    super::say_trust(out, options.root.is_some(), options.snapshot.is_archive());
    out.emit(&super::with(
        &info,
        json!({ "height": height, "root": root, "root_given": options.root.is_some(), "seconds": seconds }),
    ));
    Ok(Exit::Ok)
}

/// About what a state takes on a disk: keys, values, and as much of the tree as an entry takes.
pub(crate) fn room_of(state: Totals) -> u64 {
    state.bytes.saturating_add(state.count.saturating_mul(128))
}

/// Refuses before anything is written what would fill the disk.
pub(crate) fn check_room(directory: &Directory, needed: u64, config: &Config) -> Result<(), Failure> {
    let room = directory.room().map_err(|error| Failure::io(directory.path().display(), &error))?;
    let reserve = room.total_bytes / 100 * config.snapshots.reserve_percent;
    match room.free_bytes.checked_sub(reserve).is_some_and(|usable| needed <= usable) {
        true => Ok(()),
        false => Err(LibraryError::NoRoom { needed, reserve, free: room.free_bytes }.into()),
    }
}

/// Builds the state of a snapshot in a directory that is thrown away.
pub(super) fn rehearse(snapshot: &Source, expected: &Expected, context: &Context<'_>) -> Result<(), Failure> {
    let info = snapshot.read(context, |origin| origin.inspect(expected))?;
    let data = context.home.data();
    let place = if data.is_dir() { data } else { std::env::temp_dir() };
    let place = Scratch(place.join(format!("rehearsal-{}", std::process::id())));
    let directory = Directory::new(&place.0).map_err(|error| Failure::io(place.0.display(), &error))?;
    let plan = Plan { snapshot, expected, delta: None, target: (info.id.height, info.root) };
    build(&plan, info.hasher, None, Arc::new(directory), context)
}

/// A directory that is removed when this is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is only in the way of the disk.
        let _ = std::fs::remove_dir_all(AsRef::<Path>::as_ref(&self.0));
    }
}

/// What is built of what.
struct Plan<'a> {
    snapshot: &'a Source,
    expected: &'a Expected,
    delta: Option<&'a Delta>,
    target: (Height, Root),
}

fn build(
    plan: &Plan<'_>,
    hasher: HashKind,
    genesis: Option<&Genesis>,
    directory: Arc<Directory>,
    context: &Context<'_>,
) -> Result<(), Failure> {
    let bar = context.out.progress("restoring", 0);
    let built = engine::build_state(genesis, hasher, directory, plan.target, &mut |each| {
        let mut failed = None;
        let read = plan.snapshot.read(context, |origin| match plan.delta {
            None => origin.entries(plan.expected, each, &mut show(&bar)).map(drop),
            Some(delta) => changed(origin, plan.expected, delta, each, &mut show(&bar)).map_err(|error| match error {
                ApplyError::Taker(error) => error,
                ApplyError::Delta(error) => {
                    failed = Some(error);
                    LibraryError::Stopped
                }
            }),
        });
        failed.map_or(read, |error| Err(error.into()))
    });
    bar.finish_and_clear();
    built
}

/// Hands out the entries of a snapshot with the changes of a delta in their places.
fn changed(
    origin: Origin<'_>,
    expected: &Expected,
    delta: &Delta,
    each: Each<'_>,
    listener: Listener<'_>,
) -> Result<(), ApplyError<LibraryError>> {
    let mut applying = delta.apply();
    let mut put = |name: &Namespace, key: &Key, value: &[u8]| each(name, key, value);
    let mut failed = None;
    let read = origin.entries(
        expected,
        &mut |name, key, value| {
            let key = Key::new(key).expect("a proven entry has a key");
            applying.entry(name, &key, value, &mut put).map_err(|error| {
                failed = Some(error);
                LibraryError::Stopped
            })
        },
        listener,
    );
    if let Some(error) = failed {
        return Err(error);
    }
    read.map_err(ApplyError::Taker)?;
    applying.finish(&mut put)
}
