//! `keelstone proof verify`: checks a proof with nothing but the proof and a root. No store, no network.
//!
//! A root is of one state and does not say of which height, nor of which chain. What a file says of these is the word of whoever
//! wrote it, and is shown as `claimed`.

use crate::api;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::out::{Ink, bytes, short};
use crate::strict_json;
use crate::world;
use clap::{Args, Subcommand};
use keelstone_codec::{Key, Namespace, Root, unhex};
use keelstone_tree::{
    Answer, Blake3, HashKind, Hasher, KeyRange, Proof, ProofError, ProofLimits, Query, RangeAnswer, Sha256,
};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Check a proof without a store
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Verify what `query --prove --json` or `query list --prove --json` printed, or `snapshot extract` wrote
    Verify {
        /// The file; `-` for standard input
        file: PathBuf,
        /// The root you trust; without it the one in the file is used, which proves nothing about where it is from
        #[arg(long)]
        root: Option<String>,
    },
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let Action::Verify { file, root } = options.action;
    let given = root
        .map(|text| Root::from_hex(&text).map_err(|error| Failure::usage(format!("the root: {error}"))))
        .transpose()?;
    let text = read_input(&file)?;
    let wrong = |error| Failure::usage(format!("{}: {error}", file.display()));
    let said: Value = strict_json::parse_object(&text).map_err(wrong)?;
    match (said.get("entries"), said.get("prefix")) {
        (Some(_), Some(_)) => {
            let extract = strict_json::parse_object(&text).map_err(wrong)?;
            return super::snapshot::extract::verify(&extract, given, context);
        }
        (Some(_), None) => return range(&strict_json::parse_object(&text).map_err(wrong)?, given, context),
        (None, _) => {}
    }
    let claim: api::Entry = strict_json::parse_object(&text).map_err(wrong)?;
    let (root, given) = (rooted(given, &claim.root)?, given.is_some());
    let value = verify(&claim, root)?;

    let out = context.out;
    let key = unhex(&claim.key).unwrap_or_default();
    let answer = value.as_ref().map_or("absent".to_owned(), |value| format!("present, {}", bytes(value.len() as u64)));
    out.say(format_args!("{} {}", out.ink(Ink::Good, "✓"), out.ink(Ink::Good, "the proof holds")));
    out.row("entry", format_args!("{} {}", claim.namespace, String::from_utf8_lossy(&key).escape_debug()));
    out.row("answer", answer);
    out.row("root", rooted_how(root, given));
    out.emit(&json!({
        "valid": true, "present": value.is_some(), "value": value.map(hex::encode), "root": root, "root_given": given,
        "namespace": claim.namespace, "key": claim.key, "claimed": { "height": claim.height },
    }));
    Ok(Exit::Ok)
}

/// Says of which keys a page is all, if its proof holds.
fn range(found: &api::Entries, given: Option<Root>, context: &Context<'_>) -> Result<Exit, Failure> {
    let (root, given) = (rooted(given, &found.root)?, given.is_some());
    let (namespace, range) = verify_range(found, root)?;
    let rows = check_rows(found, &namespace, context)?;
    let out = context.out;
    out.say(format_args!("{} {}", out.ink(Ink::Good, "✓"), out.ink(Ink::Good, "the proof holds")));
    out.row("entries", format_args!("{}, all there are in {namespace}", found.entries.len()));
    let from = format!("from \"{}\"", range.start.escape_ascii());
    let to = range.end.as_ref().map_or_else(|| "on".to_owned(), |end| format!("to before \"{}\"", end.escape_ascii()));
    out.row("keys", format_args!("{from} {to}"));
    if rows == Some(false) {
        out.row("rows", "not checked: this program does not know the types of these entries");
    }
    out.row("root", rooted_how(root, given));
    let mut shown = json!({
        "valid": true, "entries": found.entries.len(), "root": root, "root_given": given, "namespace": namespace.as_str(),
        "start": hex::encode(&range.start), "end": range.end.map(hex::encode), "claimed": { "height": found.height },
    });
    if let Some(checked) = rows {
        shown["rows_checked"] = checked.into();
    }
    out.emit(&shown);
    Ok(Exit::Ok)
}

/// Checks that the rows beside the entries are what these say by the types of this program: nobody is to read what was not
/// proven. False if it does not know the types; none if there are no rows.
fn check_rows(found: &api::Entries, namespace: &Namespace, context: &Context<'_>) -> Result<Option<bool>, Failure> {
    let Some(rows) = &found.rows else { return Ok(None) };
    let registry = &context.application.registry;
    let differ = |message: &str| Err(Failure::integrity(message));
    if rows.len() != found.entries.len() {
        return differ("there is not a row to each entry that is proven");
    }
    // All of a page are of one place.
    let first = found.entries.first().and_then(|pair| unhex(&pair.key).ok());
    let place = first.and_then(|key| world::place_of(registry, namespace.as_str(), &key));
    let Some(place) = place else { return Ok(Some(rows.is_empty())) };
    let said = world::rows(registry, namespace.as_str(), place, found);
    match said.map_err(|error| Failure::usage(format!("the entries: {error}")))? == *rows {
        true => Ok(Some(true)),
        false => differ("the rows are not what the entries that are proven say by the types of this program"),
    }
}

/// A root, and why it is trusted, for people.
pub(crate) fn rooted_how(root: Root, given: bool) -> String {
    let source = if given { "given" } else { "from the file: trust it on other grounds" };
    format!("{} ({source})", short(root))
}

/// The root a file says, which has to be the one that is trusted, if one is.
pub(crate) fn rooted(given: Option<Root>, said: &str) -> Result<Root, Failure> {
    let said = Root::from_hex(said).map_err(|error| Failure::usage(format!("the root: {error}")))?;
    match given {
        Some(given) if given != said => {
            Err(Failure::integrity(format!("the file is of a state with root {said}, not with root {given}")))
        }
        _ => Ok(said),
    }
}

/// Checks a claimed answer against a root, and returns the value that is proven, or none for a proven absence.
///
/// # Errors
/// [`Exit::Usage`] for what is no claim at all, [`Exit::Integrity`] for one that does not hold, saying what differs.
pub(crate) fn verify(claim: &api::Entry, root: Root) -> Result<Option<Vec<u8>>, Failure> {
    let digits = claim.proof.as_ref().ok_or_else(|| Failure::usage("there is no proof in it; query with --prove"))?;
    let usage = |what: &str, error: &dyn std::fmt::Display| Failure::usage(format!("{what}: {error}"));
    let proof = unhex(digits).map_err(|error| usage("the proof", &error))?;
    let namespace = Namespace::new(&claim.namespace).map_err(|error| usage("the namespace", &error))?;
    let key = unhex(&claim.key).map_err(|error| usage("the key", &error))?;
    let key = Key::new(key).map_err(|error| usage("the key", &error))?;
    let hasher: HashKind = claim.hasher.parse().map_err(|error| usage("the hasher", &error))?;
    let claimed = claim.value.as_ref().map(unhex).transpose().map_err(|error| usage("the value", &error))?;

    let queries = [Query::Key(namespace.clone(), key.clone())];
    let limits = ProofLimits::default();
    let checked = Proof::decode(&proof).and_then(|proof| match hasher {
        HashKind::Blake3 => proof.verify::<Blake3>(root, &queries, &limits).map(|proven| proven.get(&namespace, &key)),
        HashKind::Sha256 => proof.verify::<Sha256>(root, &queries, &limits).map(|proven| proven.get(&namespace, &key)),
    });
    let answer =
        checked.map_err(|error: ProofError| Failure::integrity(format!("the proof does not hold: {error}")))?;
    let proven = match answer {
        Answer::Present(value) => Some(value.to_vec()),
        Answer::Absent => None,
        Answer::Unknown => return Err(Failure::integrity("the proof does not show this entry, present or absent")),
    };
    if proven != claimed {
        let word = |value: &Option<Vec<u8>>| {
            value.as_ref().map_or("absence".to_owned(), |value| format!("{} bytes", value.len()))
        };
        let (claimed, proven) = (word(&claimed), word(&proven));
        return Err(Failure::integrity(format!(
            "the answer claims {claimed}, the proof shows another value ({proven})"
        )));
    }
    Ok(proven)
}

/// Checks that a page lists all entries of the range it names, under a root, and returns which range that is.
///
/// # Errors
/// As [`verify`].
pub(crate) fn verify_range(found: &api::Entries, root: Root) -> Result<(Namespace, KeyRange), Failure> {
    let claim = found.proof.as_ref().ok_or_else(|| Failure::usage("there is no proof in it; query with --prove"))?;
    let usage = |what: &str, error: &dyn std::fmt::Display| Failure::usage(format!("{what}: {error}"));
    let bytes = |what: &str, digits: &str| unhex(digits).map_err(|error| usage(what, &error));
    let namespace = Namespace::new(&claim.namespace).map_err(|error| usage("the namespace", &error))?;
    let start = bytes("the start", &claim.start)?;
    let end = claim.end.as_ref().map(|end| bytes("the end", end)).transpose()?;
    let range = KeyRange { start, end, reverse: false };
    let hasher: HashKind = claim.hasher.parse().map_err(|error| usage("the hasher", &error))?;
    let query = Query::Range(namespace.clone(), range.clone());
    if shown(hasher, &bytes("the proof", &claim.proof)?, root, &query)? != found.entries {
        return Err(Failure::integrity("other entries are listed than the proof shows"));
    }
    Ok((namespace, range))
}

/// All entries of the range or prefix that a question is about, as a proof shows them.
///
/// # Errors
/// [`Exit::Integrity`] for a proof that does not hold.
pub(crate) fn shown(hasher: HashKind, proof: &[u8], root: Root, query: &Query) -> Result<Vec<api::Pair>, Failure> {
    fn entries<H: Hasher>(proof: &[u8], root: Root, query: &Query) -> Result<RangeAnswer, ProofError> {
        // What it came in has a limit of its own; the proof in it may be as large.
        let limits = ProofLimits { bytes: proof.len(), nodes: proof.len() };
        let verified = Proof::decode_within(proof, &limits)?.verify::<H>(root, std::slice::from_ref(query), &limits)?;
        Ok(match query {
            Query::Range(namespace, range) => verified.range(namespace, range),
            Query::Prefix(namespace, prefix) => verified.prefix(namespace, prefix),
            _ => RangeAnswer::Complete(Vec::new()),
        })
    }
    let answer = match hasher {
        HashKind::Blake3 => entries::<Blake3>(proof, root, query),
        HashKind::Sha256 => entries::<Sha256>(proof, root, query),
    };
    let pair = |(key, value): &_| api::Pair { key: hex::encode(key), value: hex::encode(value) };
    match answer.map_err(|error| Failure::integrity(format!("the proof does not hold: {error}")))? {
        RangeAnswer::Complete(entries) => Ok(entries.iter().map(pair).collect()),
        RangeAnswer::Incomplete { .. } => Err(Failure::integrity("the proof does not show all of these keys")),
    }
}
