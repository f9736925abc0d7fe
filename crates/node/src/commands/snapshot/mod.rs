//! `keelstone snapshot …`: make, look at, prove, carry and remove snapshots, with no network.
//!
//! Where a command takes a snapshot, that is a height of this home's library or the path of an archive: a directory or a
//! tar. Both go through the verifier that checks chunks of strangers. Commands that only read look into the library
//! beside a running node. `create`, `delete` and `gc` ask the node that runs here ([`crate::control`]); what else writes
//! needs the library for itself.

mod delta;
mod diff;
pub(crate) mod extract;
mod genesis;
pub(crate) mod restore;

use super::db::confirmed;
use crate::api::Snapshot;
use crate::config::Config;
use crate::context::Context;
use crate::control::{self, Created, Request, Told};
use crate::engine::{check_fits_genesis, unfit};
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::input::read_input;
use crate::interrupt::Stop;
use crate::library::{Source, expected, id, kept, look_into_library, open_library};
use crate::newfile;
use crate::out::{Ink, Out, bytes, grouped, short};
use crate::own_log::{OwnLog, Stood, Who};
use crate::room;
use crate::snapshots::{making, phase};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use keelstone_codec::{Encode as _, Height, Namespace};
use keelstone_ledger::{BlockRecord, CHAIN, Chain, Genesis, NodeEvent, NodeStep, check_fits, log_place};
use keelstone_store::files::{Directory, Files as _};
use keelstone_sync::library::{Expected, Info, Library, Progress};
use keelstone_tree::{Blake3, MemoryTree, ReadError};
use serde_json::json;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Make, prove, carry and restore snapshots of the state
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a snapshot now
    Create {
        /// The height of the state [default: the last]
        #[arg(long)]
        height: Option<u64>,
        /// Wait until the node that runs here offers it to others: two blocks must stand above it
        #[arg(long)]
        until_offered: bool,
    },
    /// List the snapshots of this home
    List,
    /// Show what a snapshot says of itself, without proving it
    Inspect {
        /// A height, or the path of an archive
        snapshot: Source,
        /// Also list its chunks, by name
        #[arg(long)]
        chunks: bool,
    },
    /// Prove every chunk of a snapshot against its root
    Verify {
        /// A height, or the path of an archive
        snapshot: Source,
        /// The root you trust; without it the one the snapshot says is used
        #[arg(long)]
        root: Option<String>,
        /// Also build a state of it, compare its root, and throw it away
        #[arg(long)]
        restore: bool,
    },
    /// Make the state of a snapshot the state of this home
    Restore(restore::Options),
    /// Write a snapshot into a directory, or one file if the name ends in .tar
    Export {
        /// Its height
        height: u64,
        /// A directory that does not exist or is empty, or a new file NAME.tar; a directory whose export was cut off is gone on with
        to: PathBuf,
    },
    /// Take a snapshot over from an archive
    Import {
        /// A directory, or a tar file
        from: PathBuf,
        /// The root you trust; without it the one the archive says is used
        #[arg(long)]
        root: Option<String>,
    },
    /// Take one namespace or key prefix out of a snapshot, with a proof that it is all of it
    Extract(extract::Options),
    /// Write the genesis of a new network that begins with a snapshot's state
    ToGenesis(genesis::Options),
    /// Write what changed between two heights, for `restore --delta`
    Delta(delta::Options),
    /// Show what two snapshots differ in
    Diff(diff::Options),
    /// Remove a snapshot
    Delete {
        /// Its height
        height: u64,
        /// Yes, remove it
        #[arg(long)]
        yes: bool,
    },
    /// Remove what no snapshot needs, and what was set aside as damaged
    Gc,
}

/// The genesis of this home, if there is a chain.
fn genesis_if_any(context: &Context<'_>) -> Result<Option<Genesis>, Failure> {
    match context.home.genesis().exists() {
        true => context.home.read_genesis().map(Some),
        false => Ok(None),
    }
}

/// Checks that a snapshot's state can be that of its chain at its height; no more of it is read, and proven, than that takes. Gives
/// the height of the last block in it: above that the height is the word of whoever made the snapshot.
// spec: SNAP-19
fn fits(
    snapshot: &Source,
    expected: &Expected,
    genesis: Option<&Genesis>,
    context: &Context<'_>,
) -> Result<Option<Height>, Failure> {
    let info = snapshot.read(&context.home, |origin| origin.inspect(expected))?;
    let mut state = MemoryTree::<Blake3>::new();
    let read = |state: &mut MemoryTree<Blake3>, (namespace, prefix): (Namespace, &[u8])| -> Result<(), Failure> {
        let found = snapshot.read(&context.home, |origin| origin.extract(expected, &namespace, prefix))?;
        let writes = found.entries.into_iter().map(|(key, value)| (namespace.clone(), key, Some(value)));
        state.apply(&writes.collect());
        Ok(())
    };
    read(&mut state, (Namespace::new(CHAIN).expect("a constant"), b""))?;
    let (audit, log) = log_place();
    read(&mut state, (audit, &log))?;
    let damaged = |error: ReadError| Failure::integrity(error.to_string());
    if let Some(tip) = Chain::read(&state).map_err(damaged)?.and_then(|chain| chain.tip) {
        let (blocks, key) = BlockRecord::place(tip);
        read(&mut state, (blocks, &key))?;
    }
    let height = info.id.height;
    let chain = match genesis {
        Some(genesis) => check_fits_genesis(&state, height, genesis)?,
        None => check_fits(&state, height, None).map_err(unfit)?,
    };
    match (&chain.facts.chain_id, chain.facts.hasher) == (&info.chain_id, info.hasher) {
        true => Ok(chain.tip),
        false => {
            let (found, hasher) = (&chain.facts.chain_id, chain.facts.hasher);
            let message = format!("the snapshot is of {}, its state of {found} under {hasher}", info.chain_id);
            Err(Failure::integrity(message))
        }
    }
}

/// Shows progress on a bar.
fn show(bar: &ProgressBar) -> impl FnMut(Progress) -> ControlFlow<()> + '_ {
    move |progress| {
        bar.set_message(phase(progress.phase));
        bar.set_length(u64::from(progress.total));
        bar.set_position(u64::from(progress.done));
        ControlFlow::Continue(())
    }
}

fn reserve(config: &Config) -> u8 {
    making(&config.snapshots).reserve_percent
}

/// What is known of a snapshot, for people.
fn rows(out: &Out, info: &Info) {
    show_snapshot(out, &Snapshot::of(info));
}

fn show_snapshot(out: &Out, snapshot: &Snapshot) {
    out.row("chain", &snapshot.chain_id);
    out.row("height", grouped(snapshot.height));
    out.row("root", &snapshot.root);
    out.row("hash", &snapshot.hash);
    out.row("state", format_args!("{} entries, {}", grouped(snapshot.entries), bytes(snapshot.entry_bytes)));
    let (chunks, pages) = (grouped(snapshot.chunks.into()), grouped(snapshot.pages.into()));
    out.row("chunks", format_args!("{chunks}, the first {pages} of them the tree, {}", bytes(snapshot.bytes)));
}

/// Says on standard error, once, which block a snapshot waits for: on a chain that stands still it may never come.
fn say_what_it_waits_for(told: &Told, out: &Out) {
    let Told::Waiting { height, offered_from } = told else { return };
    let line = match out.is_json() {
        true => json!({ "progress": told }).to_string(),
        false => {
            let (height, from) = (grouped(*height), grouped(*offered_from));
            format!("waiting for block {from}, from which on the snapshot of height {height} is offered")
        }
    };
    // With standard error closed nobody wants to know.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Makes a snapshot: the node that runs here does, or this process if none runs.
fn create(height: Option<u64>, until_offered: bool, config: &Config, context: &Context<'_>) -> Result<(), Failure> {
    context.home.check_chain()?;
    let out = context.out;
    let bar = out.progress("making", 0);
    let mut waits = false;
    let asked = control::ask(&context.home, &Request::CreateSnapshot { height, until_offered }, &mut |told| {
        if matches!(told, Told::Waiting { .. }) && !std::mem::replace(&mut waits, true) {
            bar.suspend(|| say_what_it_waits_for(&told, out));
        }
        let message = match &told {
            Told::Behind(other) => format!("after that of height {}", grouped(other.height)),
            Told::Making(progress) => progress.phase.clone(),
            Told::Waiting { offered_from, .. } => format!("offered from block {} on", grouped(*offered_from)),
        };
        bar.set_message(message);
        if let Told::Behind(progress) | Told::Making(progress) = told {
            bar.set_length(u64::from(progress.chunks));
            bar.set_position(u64::from(progress.chunks_done));
        }
    });
    bar.finish_and_clear();
    if let Some(created) = asked? {
        let Created { snapshot, offered } = serde_json::from_value(created)
            .map_err(|error| Failure::error(format!("the node that runs here answered something else: {error}")))?;
        show_snapshot(out, &snapshot);
        out.row("offered", if offered { "now" } else { "not yet" });
        let mut value = json!(snapshot);
        value["offered"] = offered.into();
        out.emit(&value);
        return Ok(());
    }
    if until_offered {
        return Err(Failure::usage("no node runs here, so nothing is offered").hint("leave out --until-offered"));
    }
    let chain = context.open_chain()?;
    let library = open_library(&context.home)?;
    let version = chain.version(height.map(Height))?;
    let bar = out.progress("making", 0);
    let made = version.snapshot(&library, &making(&config.snapshots), &mut show(&bar));
    bar.finish_and_clear();
    let info = made?;
    let event = NodeEvent::MadeSnapshot { height: info.id.height };
    OwnLog::of(&context.home).note(Who::User, event, NodeStep::Done, Stood::default())?;
    rows(out, &info);
    out.emit(&Snapshot::of(&info));
    Ok(())
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let (config, _) = context.config()?;
    let out = context.out;
    match options.action {
        Action::Create { height, until_offered } => create(height, until_offered, &config, context)?,
        Action::List => list(context)?,
        Action::Inspect { snapshot, chunks } => inspect(&snapshot, chunks, context)?,
        Action::Verify { snapshot, root, restore } => {
            let genesis = genesis_if_any(context)?;
            let expected = expected(genesis.as_ref(), root.as_deref())?;
            let stop = Stop::on_signal()?;
            if restore {
                let rehearsed = restore::rehearse(&snapshot, &expected, genesis.as_ref(), &config, &stop, context);
                stop.check().and(rehearsed)?;
            }
            let bar = out.progress("proving", 0);
            let mut shown = show(&bar);
            let mut go_on = |progress| if stop.is_asked() { ControlFlow::Break(()) } else { shown(progress) };
            let proven = snapshot.read(&context.home, |origin| origin.verify(&expected, &mut go_on));
            bar.finish_and_clear();
            stop.check()?;
            let info = proven?;
            let last = fits(&snapshot, &expected, genesis.as_ref(), context)?;
            out.say(out.ink(Ink::Good, "✓ every chunk is proven against the root"));
            rows(out, &info);
            out.row("last block", last.map_or_else(|| "none".to_owned(), |last| grouped(last.0)));
            say_trust(out, root.is_some(), snapshot.is_archive());
            let found = json!({
                "valid": true, "root_given": root.is_some(), "restored": restore, "last_block": last,
            });
            out.emit(&with(&info, found));
        }
        Action::Restore(options) => return restore::run(options, &config, context),
        Action::Export { height, to } => export(height, &to, &config, context)?,
        Action::Import { from, root } => {
            let genesis = context.home.read_genesis()?;
            let expected = expected(Some(&genesis), root.as_deref())?;
            let library = open_library(&context.home)?;
            let from = Source::Archive(from);
            fits(&from, &expected, Some(&genesis), context)?;
            let bar = out.progress("copying", 0);
            let imported =
                from.read(&context.home, |origin| library.import(origin, &expected, reserve(&config), &mut show(&bar)));
            bar.finish_and_clear();
            let info = imported?;
            rows(out, &info);
            say_trust(out, root.is_some(), true);
            out.emit(&with(&info, json!({ "root_given": root.is_some() })));
        }
        Action::Extract(options) => return extract::run(options, context),
        Action::ToGenesis(options) => return genesis::run(options, context),
        Action::Delta(options) => return delta::run(options, context),
        Action::Diff(options) => return diff::run(options, context),
        Action::Delete { height, yes } => {
            confirmed(yes, &format!("this removes the snapshot of height {height}"))?;
            if control::ask(&context.home, &Request::DeleteSnapshot { height }, &mut |_| ())?.is_none() {
                open_library(&context.home)?.delete(id(height))?;
                let event = NodeEvent::RemovedSnapshot { height: Height(height) };
                OwnLog::of(&context.home).note(Who::User, event, NodeStep::Done, Stood::default())?;
            }
            out.row("removed", format_args!("the snapshot of height {}", grouped(height)));
            out.emit(&json!({ "removed": height }));
        }
        Action::Gc => {
            let swept = match control::ask(&context.home, &Request::SweepSnapshots {}, &mut |_| ())? {
                Some(swept) => swept,
                None => control::swept(&open_library(&context.home)?.gc()?),
            };
            out.row("removed", format_args!("{} unneeded, {} damaged", swept["unneeded"], swept["damaged"]));
            out.emit(&swept);
        }
    }
    Ok(Exit::Ok)
}

/// A snapshot as JSON, with more members.
fn with(info: &Info, more: serde_json::Value) -> serde_json::Value {
    let mut value = json!(Snapshot::of(info));
    if let (Some(members), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
        members.extend(more);
    }
    value
}

/// An archive proves that it is a state of its root, not that the root is the chain's.
fn say_trust(out: &Out, given: bool, archive: bool) {
    if archive && !given {
        out.say(
            out.ink(Ink::Quiet, "  the root is what the archive says: compare it with one you trust, or give --root"),
        );
    }
}

fn list(context: &Context<'_>) -> Result<(), Failure> {
    context.home.check_chain()?;
    let (list, damaged) = match look_into_library(&context.home)? {
        Some((library, found)) => (library.list(), found.damaged),
        None => Default::default(),
    };
    let out = context.out;
    if list.is_empty() && damaged.is_empty() {
        out.say(out.called("there are no snapshots; keelstone snapshot create makes one"));
    }
    for info in &list {
        let (entries, chunks) = (grouped(info.totals.count), grouped(info.chunks.into()));
        let size = bytes(info.bytes);
        let height = format!("{:<12}", grouped(info.id.height.0));
        out.say(format_args!("  {height} {entries} entries  {chunks} chunks  {size}  root {}", short(info.root)));
    }
    for (id, why) in &damaged {
        out.say(format_args!("  {:<12} {} {why}", grouped(id.height.0), out.ink(Ink::Bad, "✗ damaged:")));
    }
    let damaged: Vec<_> = damaged.iter().map(|(id, why)| json!({ "height": id.height, "why": why })).collect();
    let list: Vec<Snapshot> = list.iter().map(Snapshot::of).collect();
    out.emit(&json!({ "snapshots": list, "damaged": damaged }));
    Ok(())
}

fn inspect(snapshot: &Source, chunks: bool, context: &Context<'_>) -> Result<(), Failure> {
    let out = context.out;
    let index = snapshot.read(&context.home, |origin| origin.index(&Expected::default()))?;
    let info = Info::of(&index);
    rows(out, &info);
    out.row("hasher", info.hasher);
    out.row("chunk weight", bytes(info.chunk_weight_max.into()));
    let listed = if chunks { index.chunks.as_slice() } else { &[] };
    for (number, chunk) in listed.iter().enumerate() {
        out.say(format_args!("  {number:<8} {} {}", chunk.name, bytes(chunk.bytes.into())));
    }
    let mut more = json!({ "hasher": info.hasher.to_string(), "chunk_weight_max": info.chunk_weight_max });
    if chunks {
        let chunk = |chunk: &keelstone_sync::library::Stored| json!({ "name": chunk.name, "bytes": chunk.bytes });
        more["chunk_list"] = listed.iter().map(chunk).collect();
    }
    out.emit(&with(&info, more));
    Ok(())
}

fn export(height: u64, to: &Path, config: &Config, context: &Context<'_>) -> Result<(), Failure> {
    let out = context.out;
    // Before anything is made where it is to go.
    let (library, pin) = kept(&context.home, id(height))?;
    let bar = out.progress("copying", 0);
    let exported = match to.extension().is_some_and(|ending| ending == "tar") {
        true => {
            let beside = newfile::parent(to);
            let place = Directory::to_read(beside).map_err(|error| Failure::io(beside.display(), &error))?;
            let headers = u64::from(pin.info().chunks).saturating_mul(2 * 512);
            let needed = pin.info().bytes.saturating_add(headers).saturating_add(pin.index().to_bytes().len() as u64);
            room::check(&place, needed, config.snapshots.reserve_percent)?;
            export_tar(&library, height, to, &bar)
        }
        false => newfile::directory(to, |directory| {
            // The index comes last: one that was cut off is gone on with, one that is whole is in the way as a tar is.
            let names = directory.list().map_err(|error| Failure::io(to.display(), &error))?;
            if names.iter().any(|name| name.ends_with(".snapshot")) {
                return Err(Failure::usage(format!("{} holds a snapshot already", to.display())));
            }
            Ok(library.export_directory(id(height), directory, reserve(config), &mut show(&bar))?)
        }),
    };
    bar.finish_and_clear();
    let info = exported?;
    rows(out, &info);
    out.row("written", to.display());
    out.emit(&with(&info, json!({ "to": to })));
    Ok(())
}

/// Writes a tar under a name that must be free.
fn export_tar(library: &Library, height: u64, to: &Path, bar: &ProgressBar) -> Result<Info, Failure> {
    newfile::create(to, |file| Ok(library.export_tar(id(height), file, &mut show(bar))?))
}

/// The genesis that a state which is taken from elsewhere belongs to: the home's, or for a home that has none the one that
/// is given. Says whether it is given.
pub(crate) fn genesis_for(home: &Home, given: Option<&Path>) -> Result<(Genesis, bool), Failure> {
    let Some(file) = given else { return Ok((home.read_genesis()?, false)) };
    let given = genesis_file(file)?;
    if !home.genesis().exists() {
        return Ok((given, true));
    }
    // Whoever was cut off may have written it.
    match home.read_genesis()? == given {
        true => Ok((given, false)),
        false => Err(Failure::usage("this home has another genesis already; leave out --genesis")),
    }
}

/// Writes the genesis of a home that had none when a state was begun to be built for it. Whoever put another one there since held no
/// lock: the state is not theirs.
pub(crate) fn complete_genesis(home: &Home, genesis: &Genesis) -> Result<(), Failure> {
    if home.genesis().exists() && home.read_genesis()? != *genesis {
        let message =
            format!("somebody put another genesis into {} while a state was built for it", home.path().display());
        return Err(Failure::error(message)
            .hint("that genesis was left as it is, and the state was not taken: --home DIR names another place"));
    }
    if home.genesis().exists() { Ok(()) } else { home.write_genesis(genesis) }
}

/// A genesis from a file.
fn genesis_file(file: &Path) -> Result<Genesis, Failure> {
    Genesis::parse(&read_input(file)?).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))
}
