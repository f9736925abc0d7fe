//! `keelstone db check --repair`: of what is left of a damaged state a whole one is made, at the very root it stood at.
//!
//! The store says what it can come back from ([`keelstone_store::Store::repair`]): its own log, a version of its own, or
//! snapshots, of which all are offered that this home has, and the one that is given. The new state is built aside and takes
//! the place of the damaged one by one rename; blocks and receipts go with it. If the root cannot be reached, nothing is
//! changed, and what is lost is named.

use super::confirmed;
use crate::context::Context;
use crate::damage::Damage;
use crate::engine::{self, Aside};
use crate::exit::{Exit, Failure, causes};
use crate::interrupt::Stop;
use crate::library::{self, expected, look_into_library};
use crate::out::{Ink, grouped};
use keelstone_codec::{Height, Namespace};
use keelstone_ledger::Genesis;
use keelstone_store::{Loss, RepairError, RepairedFrom, StoreError, Take};
use keelstone_sync::library::{Expected, LibraryError, SnapshotId};
use serde_json::{Value, json};
use std::ops::ControlFlow;

/// A snapshot that may help.
struct Offer {
    source: library::Source,
    id: SnapshotId,
    expected: Expected,
}

/// Repairs the state of this home. `found` is what a check said before, for programs.
pub(super) fn run(
    from: Option<library::Source>,
    yes: bool,
    mut found: Value,
    stop: &Stop,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let out = context.out;
    let (config, _) = context.config()?;
    let genesis = context.home.read_genesis()?;
    let offers = offers(from, &genesis, context)?;
    let aside = Aside::of(&context.home)?;
    let bar = out.progress("repairing", 0);
    let mended = engine::repair(&aside, &genesis, &config, &offers_as_sources(&offers, context), &mut |progress| {
        bar.set_message(progress.what);
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        !stop.is_asked()
    });
    bar.finish_and_clear();
    let mended = match mended {
        Ok(Some(mended)) => mended,
        Ok(None) => {
            aside.give_up();
            stop.check().map_err(|stopped| stopped.hint("nothing was changed: the same again begins anew"))?;
            return Err(Failure::error("the repair was cut off"));
        }
        Err(error) => {
            aside.give_up();
            let (target, losses) = match error {
                RepairError::Lost { target, losses } => (target, losses),
                RepairError::Store(error) => return Err(error.into()),
                error => return Err(Failure::error(causes(&error))),
            };
            let bad = out.ink(Ink::Bad, "✗");
            out.say(format_args!("{bad} the state cannot be made whole from what is here; lost are"));
            losses.iter().for_each(|loss| out.say(format_args!("  {}", describe(loss))));
            found["repaired"] = Value::Null;
            found["lost"] = losses.iter().map(show).collect();
            found["target"] = json!(target.map(|(height, root)| json!({ "height": height, "root": root })));
            out.emit(&found);
            return Ok(Exit::Integrity);
        }
    };
    if let Some((first, end)) = mended.lost {
        let what = format!("this gives up the states of heights {first} to {}, which are damaged", end.0 - 1);
        confirmed(yes, &what).inspect_err(|_| aside.give_up())?;
    }
    aside.take_over_files()?;
    let warnings = aside.settle()?;
    engine::open(&context.home, &config, &context.application.registry)?;

    let origin = match mended.from {
        RepairedFrom::Log => "its log".to_owned(),
        RepairedFrom::Version(height) => format!("its version of height {} and the log behind", grouped(height.0)),
        RepairedFrom::Source(height) => format!("the snapshot of height {} and the log behind", grouped(height.0)),
        _ => "what was left of it".to_owned(),
    };
    out.say(out.ink(Ink::Good, "✓ repaired, and the root is what it was"));
    out.row("height", grouped(mended.height.0));
    out.row("root", mended.root);
    out.row("made from", origin);
    if let Some((first, end)) = mended.lost {
        out.row("lost", format_args!("the states of heights {} to {}", grouped(first.0), grouped(end.0 - 1)));
    }
    out.warn(&warnings);
    let from = match mended.from {
        RepairedFrom::Log => json!({ "kind": "log" }),
        RepairedFrom::Version(height) => json!({ "kind": "version", "height": height }),
        RepairedFrom::Source(height) => json!({ "kind": "snapshot", "height": height }),
        _ => Value::Null,
    };
    found["repaired"] = json!({
        "height": mended.height, "root": mended.root, "from": from,
        "lost_heights": mended.lost.map(|(first, end)| json!({ "from": first, "to": end.0 - 1 })),
        "warnings": warnings,
    });
    out.emit(&found);
    Ok(Exit::Ok)
}

/// The snapshot that is given, and all of this home that say what they are.
fn offers(from: Option<library::Source>, genesis: &Genesis, context: &Context<'_>) -> Result<Vec<Offer>, Failure> {
    let mut offers = Vec::new();
    let mut offer = |source: library::Source| -> Result<(), Failure> {
        let expected = expected(Some(genesis), None)?;
        let info = source.read(&context.home, |origin| origin.inspect(&expected))?;
        offers.push(Offer { source, id: info.id, expected: Expected { root: Some(info.root), ..expected } });
        Ok(())
    };
    from.map_or(Ok(()), &mut offer)?;
    // One that cannot be read helps nobody, and hinders nobody.
    if let Ok(Some((library, _))) = look_into_library(&context.home) {
        for info in library.list() {
            let _ = offer(library::Source::Kept(info.id));
        }
    }
    Ok(offers)
}

/// What the engine is handed: height, root and entries of each.
fn offers_as_sources<'a>(offers: &'a [Offer], context: &'a Context<'_>) -> Vec<engine::Whole<'a>> {
    let whole = |offer: &'a Offer| engine::Whole {
        height: offer.id.height,
        root: offer.expected.root.expect("it was put there"),
        entries: Box::new(move |take: Take<'_>| entries(offer, context, take)),
    };
    offers.iter().map(whole).collect()
}

/// Hands over the entries of a snapshot, each proven under its root.
fn entries(offer: &Offer, context: &Context<'_>, take: Take<'_>) -> Result<(), StoreError> {
    let mut failed = None;
    let mut each = |namespace: &Namespace, key: &[u8], value: &[u8]| {
        take(namespace, key, value).map_err(|error| {
            failed = Some(error);
            LibraryError::Stopped
        })
    };
    let read = offer
        .source
        .read(&context.home, |origin| origin.entries(&offer.expected, &mut each, &mut |_| ControlFlow::Continue(())));
    match (failed, read) {
        (Some(error), _) => Err(error),
        (None, Ok(_)) => Ok(()),
        (None, Err(failure)) => {
            Err(StoreError::Damaged { file: "the snapshot".to_owned(), offset: 0, what: failure.message })
        }
    }
}

fn heights(after: Option<Height>, to: Option<Height>) -> String {
    let from = after.map_or_else(|| "the first".to_owned(), |after| grouped(after.0 + 1));
    to.map_or_else(|| format!("heights from {from} on"), |to| format!("heights {from} to {}", grouped(to.0)))
}

/// A loss for people.
fn describe(loss: &Loss) -> String {
    match loss {
        Loss::Entries(problem) => problem.to_string(),
        Loss::Version(problem) => format!("the last version that was flushed: {problem}"),
        Loss::Records { after, to, problem } => format!("records of {}: {problem}", heights(*after, *to)),
        _ => "something this version of the program does not know".to_owned(),
    }
}

/// A loss for programs.
fn show(loss: &Loss) -> Value {
    match loss {
        Loss::Entries(problem) => json!({ "kind": "entries", "problem": Damage::of(problem) }),
        Loss::Version(problem) => json!({ "kind": "version", "problem": Damage::of(problem) }),
        Loss::Records { after, to, problem } => json!({
            "kind": "records", "after": after, "to": to, "problem": Damage::of(problem),
        }),
        _ => Value::Null,
    }
}
