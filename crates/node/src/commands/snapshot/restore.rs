//! `keelstone snapshot restore`: the state of a snapshot becomes the state of this home.
//!
//! The state is built aside from proven chunks, its root is computed anew and compared, and only then is it the home's.
//! What came before the snapshot is not in it: blocks and receipts begin at the next height.

use super::{Source, complete_genesis, delta, expected, fits, genesis_for, show};
use crate::api::Snapshot;
use crate::commands::db::confirmed;
use crate::config::Config;
use crate::context::Context;
use crate::engine::{self, Aside};
use crate::exit::{Exit, Failure};
use crate::interrupt::Stop;
use crate::library::{forget_above, hold_library};
use crate::out::{Ink, bytes, grouped};
use crate::own_log::{OwnLog, Stood, Who, standing};
use crate::room;
use clap::Args;
use keelstone_codec::{Height, Key, Namespace, Root};
use keelstone_ledger::{Genesis, NodeEvent, NodeStep, Standing, cut};
use keelstone_store::files::{Directory, Files as _, Guard, LockError};
use keelstone_sync::delta::{ApplyError, Applying, Delta};
use keelstone_sync::library::{Each, Expected, LibraryError};
use keelstone_tree::HashKind;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Deltas that are applied at once: all are held in memory.
const DELTAS_MAX: usize = 64;
/// What a directory of a home is called that a state is built in to be thrown away; a number follows.
const REHEARSAL: &str = "rehearsal-";
/// So many are made in a home at once.
const REHEARSALS_MAX: u32 = 16;

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
    /// What changed since, to restore the height it leads to; `--root` is then the root of that. May be repeated, each from
    /// where the one before leads to
    #[arg(long)]
    delta: Vec<PathBuf>,
    /// Yes, put it in the place of the state that is here
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(options: Options, config: &Config, context: &Context<'_>) -> Result<Exit, Failure> {
    let (home, stop) = (&context.home, Stop::on_signal()?);
    let (genesis, fresh) = genesis_for(home, options.genesis.as_deref())?;
    let mut expected = expected(Some(&genesis), options.root.as_deref())?;
    let deltas = deltas(&options.delta, &genesis)?;
    if let (Some(first), Some(last)) = (deltas.first(), deltas.last()) {
        // The root that is trusted is where the deltas lead; they have to begin where the snapshot ends.
        if let Some(root) = expected.root.filter(|root| *root != last.to.1) {
            return Err(Failure::usage(format!("the delta leads to root {}, not to {root}", last.to.1)));
        }
        expected.root = Some(first.from.1);
    }
    let info = options.snapshot.read(&context.home, |origin| origin.inspect(&expected))?;
    // Before anything is built, and again of what was.
    fits(&options.snapshot, &expected, Some(&genesis), context)?;
    let (height, root) = deltas.last().map_or((info.id.height, info.root), |last| last.to);
    let started = Instant::now();
    // A state that cannot be opened is a reason to restore one.
    let before = match home.data().join("CURRENT").exists() {
        true => engine::open(home, config, &context.application.registry).ok().and_then(|chain| standing(&*chain)),
        false => None,
    };
    if before == Some(Standing { height, root }) && !options.yes {
        // Cut off once it counted, or done before.
        let out = context.out;
        out.say(out.ink(Ink::Good, "✓ this home has that state already"));
        out.emit(&super::with(&info, json!({ "height": height, "root": root, "replaced": false })));
        return Ok(Exit::Ok);
    }
    let aside = Aside::of(home)?;
    // Another may have begun a chain here before this one held the home. From here on nobody does.
    if fresh && home.genesis().exists() {
        aside.give_up();
        return Err(home.is_taken());
    }
    // A state that whoever has the genesis has is nothing to lose; it is there also where this was cut off and somebody looked.
    let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?.height;
    let is_first = before.is_some_and(|stands| stands.height <= first) && genesis.inherits.is_none();
    if aside.replaces() && !is_first {
        let what = format!(
            "this forgets the state, the blocks and the receipts here, and puts height {height} in their place"
        );
        confirmed(options.yes, &what).inspect_err(|_| aside.give_up())?;
    }
    // Held from before anything is built: snapshots above that height are of a history that is no more.
    let held = hold_library(home).inspect_err(|_| aside.give_up())?;
    let own = OwnLog::of(home);
    let event = NodeEvent::Restored { source: cut(options.snapshot.to_string()) };
    own.note(Who::User, event.clone(), NodeStep::Begun, Stood { before, after: None })?;
    let built = aside.directory().and_then(|directory| {
        room::check(&directory, room::of(info.totals), config.snapshots.reserve_percent)?;
        let plan = Plan { snapshot: &options.snapshot, expected: &expected, deltas: &deltas, target: (height, root) };
        build(&plan, genesis.hasher, Some(&genesis), directory, &stop, context)
    });
    let built = built.and_then(|last| {
        stop.check()?;
        if options.root.is_some() {
            aside.mark_given(height, root)?;
        }
        if fresh {
            complete_genesis(home, &genesis)?;
        }
        Ok(last)
    });
    let last = match built {
        Ok(last) => last,
        Err(failure) => {
            aside.give_up();
            // Where it was told to stop that is why, whatever broke off for it.
            let stopped =
                stop.check().map_err(|stopped| stopped.hint("nothing was changed: the same again begins anew"));
            let failure = stopped.err().unwrap_or(failure);
            let reason = cut(failure.message.clone());
            own.note(Who::User, event, NodeStep::Failed { reason }, Stood { before, after: before })?;
            return Err(failure);
        }
    };
    let left = aside.settle_at(height)?;
    // Once the state counts nothing that fails undoes that.
    let forgotten = forget_above(held, home, height);
    let stood = Stood { before, after: Some(Standing { height, root }) };
    let noted = own.note(Who::User, event, NodeStep::Done, stood);
    let failed = forgotten.err().into_iter().chain(noted.err()).map(|failure| failure.message);
    let untrusted = options.root.is_none().then(|| {
        "nothing but the snapshot says that this root is the chain's: compare it with one you trust, or give --root"
            .to_owned()
    });
    let warnings: Vec<String> = left.into_iter().chain(failed).chain(untrusted).collect();
    engine::open(home, config, &context.application.registry)?;
    let seconds = started.elapsed().as_secs_f64();

    let out = context.out;
    out.say(out.ink(Ink::Good, "✓ restored, and the root is what it must be"));
    out.row("height", grouped(height.0));
    out.row("last block", last.map_or_else(|| "none".to_owned(), |last| grouped(last.0)));
    out.row("root", root);
    let of = if deltas.is_empty() { String::new() } else { format!(" at height {}", grouped(info.id.height.0)) };
    out.row("snapshot", format_args!("{} entries, {}{of}", grouped(info.totals.count), bytes(info.totals.bytes)));
    out.warn(&warnings);
    let what = json!({
        "height": height, "root": root, "last_block": last, "root_given": options.root.is_some(), "seconds": seconds,
        "warnings": warnings,
    });
    match deltas.is_empty() {
        true => out.emit(&super::with(&info, what)),
        // What the snapshot is called and weighs is that of another height.
        false => {
            let mut what = what;
            what["chain_id"] = json!(info.chain_id);
            what["snapshot"] = json!(Snapshot::of(&info));
            out.emit(&what);
        }
    }
    Ok(Exit::Ok)
}

/// Builds the state of a snapshot in a directory that is thrown away.
pub(super) fn rehearse(
    snapshot: &Source,
    expected: &Expected,
    genesis: Option<&Genesis>,
    config: &Config,
    stop: &Stop,
    context: &Context<'_>,
) -> Result<(), Failure> {
    let info = snapshot.read(&context.home, |origin| origin.inspect(expected))?;
    let data = context.home.data();
    let place = if data.is_dir() { Scratch::in_home(&data)? } else { Scratch::elsewhere()? };
    let state = place.path.join("state");
    let directory = Directory::new(&state).map_err(|error| Failure::io(state.display(), &error))?;
    room::check(&directory, room::of(info.totals), config.snapshots.reserve_percent)?;
    let plan = Plan { snapshot, expected, deltas: &[], target: (info.id.height, info.root) };
    build(&plan, info.hasher, genesis, Arc::new(directory), stop, context).map(drop)
}

/// A directory that is removed when this is dropped.
struct Scratch {
    path: PathBuf,
    /// Held as long as it is used, in a home: what nobody holds was left by who was killed.
    _lock: Option<Box<dyn Guard>>,
}

impl Scratch {
    /// One in a data directory, once what nobody uses any more is removed there.
    fn in_home(data: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::io(data.display(), &error);
        for entry in std::fs::read_dir(data).map_err(failed)?.flatten() {
            let number = entry.file_name().to_str().and_then(|name| name.strip_prefix(REHEARSAL)?.parse::<u32>().ok());
            let lock = number.and_then(|_| Directory::existing(entry.path()).ok()?.lock().ok());
            if lock.is_some() {
                // What cannot be removed is only in the way of the disk.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        for number in 0..REHEARSALS_MAX {
            let path = data.join(format!("{REHEARSAL}{number}"));
            match Directory::new(&path).map_err(LockError::Io).and_then(|directory| directory.lock()) {
                Ok(lock) => {
                    let _ = std::fs::remove_dir_all(path.join("state"));
                    return Ok(Self { path, _lock: Some(lock) });
                }
                // Another's; or another removes what it took to be left behind.
                Err(LockError::InUse { .. }) => {}
                Err(LockError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(LockError::Io(error)) => return Err(failed(error)),
            }
        }
        Err(Failure::new(Exit::InUse, format!("{REHEARSALS_MAX} rehearsals are under way in {}", data.display())))
    }

    /// One in the system's place for such, under a name that nobody guesses.
    fn elsewhere() -> Result<Self, Failure> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| Failure::io("no randomness for a directory's name", &error))?;
        let path = std::env::temp_dir().join(format!("keelstone-{REHEARSAL}{}", hex::encode(random)));
        std::fs::create_dir(&path).map_err(|error| Failure::io(path.display(), &error))?;
        Ok(Self { path, _lock: None })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is only in the way of the disk.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// What is built of what.
struct Plan<'a> {
    snapshot: &'a Source,
    expected: &'a Expected,
    deltas: &'a [Delta],
    target: (Height, Root),
}

fn build(
    plan: &Plan<'_>,
    hasher: HashKind,
    genesis: Option<&Genesis>,
    directory: Arc<Directory>,
    stop: &Stop,
    context: &Context<'_>,
) -> Result<Option<Height>, Failure> {
    let bar = context.out.progress("restoring", 0);
    let built = engine::build_state(genesis, hasher, directory, plan.target, &mut |each| {
        let mut failed = None;
        let read = plan.snapshot.read(&context.home, |origin| {
            let mut changes: Vec<Applying<'_>> = plan.deltas.iter().map(Delta::apply).collect();
            // What is wrong with a delta is kept beside an error that stops the reading.
            let mut keep = |error| match error {
                ApplyError::Taker(error) => error,
                ApplyError::Delta(error) => {
                    failed = Some(error);
                    LibraryError::Stopped
                }
            };
            let mut each = |name: &Namespace, key: &[u8], value: &[u8]| match stop.is_asked() {
                true => Err(LibraryError::Stopped),
                false => each(name, key, value),
            };
            let mut all = |name: &Namespace, key: &[u8], value: &[u8]| {
                let key = Key::new(key).expect("a proven entry has a key");
                change(&mut changes, (name, &key, value), &mut each).map_err(&mut keep)
            };
            origin.entries(plan.expected, &mut all, &mut show(&bar))?;
            end(changes, &mut each).map_err(keep)
        });
        failed.map_or(read, |error| Err(error.into()))
    });
    bar.finish_and_clear();
    built
}

/// Reads deltas, each of which must begin where the one before leads to.
fn deltas(files: &[PathBuf], genesis: &Genesis) -> Result<Vec<Delta>, Failure> {
    if files.len() > DELTAS_MAX {
        return Err(Failure::usage(format!("{} deltas are given, {DELTAS_MAX} is the limit", files.len())));
    }
    let mut deltas: Vec<Delta> = Vec::with_capacity(files.len());
    for file in files {
        let delta = delta::read(file, genesis)?;
        if let Some(before) = deltas.last().filter(|before| before.to != delta.from) {
            let ((end, root), (height, other)) = (before.to, delta.from);
            let file = file.display();
            let message = format!(
                "{file} begins at height {height} with root {other}, the one before leads to {end} with {root}"
            );
            return Err(Failure::usage(message));
        }
        deltas.push(delta);
    }
    Ok(deltas)
}

/// Hands out an entry with the changes of all deltas in their places, the oldest first.
fn change(
    changes: &mut [Applying<'_>],
    (name, key, value): (&Namespace, &Key, &[u8]),
    each: Each<'_>,
) -> Result<(), ApplyError<LibraryError>> {
    let Some((oldest, later)) = changes.split_first_mut() else {
        return each(name, key, value).map_err(ApplyError::Taker);
    };
    let mut next = |name: &Namespace, key: &Key, value: &[u8]| change(later, (name, key, value), each);
    oldest.entry(name, key, value, &mut next).map_err(flat)
}

/// Hands out what the deltas have behind the last entry.
fn end(changes: Vec<Applying<'_>>, each: Each<'_>) -> Result<(), ApplyError<LibraryError>> {
    let mut changes = changes.into_iter();
    while let Some(oldest) = changes.next() {
        let later = changes.as_mut_slice();
        let mut next = |name: &Namespace, key: &Key, value: &[u8]| change(later, (name, key, value), each);
        oldest.finish(&mut next).map_err(flat)?;
    }
    Ok(())
}

/// Where the taker of a delta is another delta.
fn flat<E>(error: ApplyError<ApplyError<E>>) -> ApplyError<E> {
    match error {
        ApplyError::Taker(error) => error,
        ApplyError::Delta(error) => ApplyError::Delta(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Application;
    use crate::config::Config;
    use crate::generations::Fault;
    use crate::home::Home;
    use crate::library::open_library;
    use crate::snapshots::making;
    use keelstone_codec::{ChainId, Timestamp};
    use keelstone_ledger::SecretKey;
    use keelstone_ledger::modules::standard;
    use std::ops::ControlFlow;

    /// spec: STORE-10. What counts is whole, its blocks beside its state: whoever is killed once it counts leaves nothing that has
    /// to be made yet.
    #[test]
    fn a_state_from_elsewhere_counts_with_the_blocks_beside_it() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        let aside = Aside::of(&home).expect("nobody uses it");
        drop(aside.directory().expect("made"));
        aside.settle().expect("it counts");
        let current = std::fs::read_to_string(home.data().join("CURRENT")).expect("one counts");
        for file in ["blocks.redb", "blocks.wal"] {
            assert!(home.data().join(current.trim()).join(file).exists(), "{file}");
        }
    }

    /// A home whose chain is at height 2, with a snapshot of each height.
    fn chain() -> (tempfile::TempDir, Home, Config) {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        let mut config = Config::default();
        config.snapshots.reserve_percent = 0;
        home.write_genesis(&Genesis::new(ChainId::new("restored-1").expect("a name"))).expect("written");
        let chain = engine::open(&home, &config, &standard()).expect("a new chain");
        let library = open_library(&home).expect("a library");
        for height in 1..=2 {
            chain.produce(Timestamp(height), SecretKey::from_seed(&[7; 32]).public(), true).expect("a block");
            let version = chain.version(None).expect("the last");
            let go_on = &mut |_| ControlFlow::Continue(());
            version.snapshot(&library, &making(&config.snapshots), go_on).expect("a snapshot");
        }
        (place, home, config)
    }

    /// spec: STORE-5. Snapshots above the height that a state is put back to are of a history that is no more. Whoever is killed
    /// before they are removed leaves that to the next start; one that was not put back has them still.
    #[test]
    fn snapshots_of_a_history_that_is_no_more_go_at_the_next_start() {
        let (_place, home, config) = chain();
        let open = || engine::open(&home, &config, &standard()).expect("it opens");
        let listed = || {
            let list = open_library(&home).expect("a library").list();
            list.iter().map(|info| info.id.height.0).collect::<Vec<_>>()
        };
        let current = std::fs::read_to_string(home.data().join("CURRENT")).expect("one counts");
        let note = home.data().join(current.trim()).join("put-back");
        std::fs::write(&note, "1\n").expect("written");
        drop(open());
        assert!(listed() == [2, 1] && !note.exists(), "killed before it was put back");
        open().rollback(Height(1)).expect("put back");
        assert_eq!(listed(), [2, 1], "as if it were killed now");
        drop(open());
        assert!(listed() == [1] && !note.exists());
    }

    /// spec: STORE-10. Once a state counts, what it replaced being in the way of nothing but the disk is no failure.
    #[test]
    fn a_restored_state_counts_though_the_one_before_cannot_be_removed() {
        let (place, home, config) = chain();
        std::fs::write(Fault::Discard.file(&home.data()), "").expect("written");
        let directory = place.path().to_str().expect("UTF-8");
        let command = ["keelstone", "snapshot", "restore", "1", "--yes", "--set", "snapshots.reserve_percent=0"];
        let arguments = command.into_iter().chain(["--home", directory]).map(Into::into);
        assert_eq!(Application::new(standard()).run(arguments), Exit::Ok);
        let last = std::cell::RefCell::new(None);
        let mut each = |_, next: &keelstone_ledger::SignedNodeRecord| *last.borrow_mut() = Some(next.record.clone());
        OwnLog::of(&home).verify(None, &mut each).expect("it can be read");
        let last = last.take().expect("there is a record");
        assert_eq!((last.step, last.after.map(|after| after.height)), (NodeStep::Done, Some(Height(1))));
        assert!(home.data().join("gen-000001").is_dir(), "it could not be removed");
        std::fs::remove_file(Fault::Discard.file(&home.data())).expect("it was written");
        let chain = engine::open(&home, &config, &standard()).expect("it opens");
        assert_eq!(chain.status().expect("it stands").height, 1);
        assert!(!home.data().join("gen-000001").exists(), "the next start removed it");
    }
}
