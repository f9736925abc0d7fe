//! `keelstone snapshot extract`: the entries of one namespace, or of one prefix of its keys, with a proof that these are
//! all of them. Only the chunks that hold them are read.

use super::{Source, expected, genesis_if_any, say_trust, trusted};
use crate::api;
use crate::cli::Context;
use crate::commands::proof::rooted;
use crate::exit::{Exit, Failure};
use crate::newfile;
use crate::out::{Ink, bytes, grouped};
use clap::Args;
use keelstone_codec::{Namespace, Root};
use keelstone_tree::{Blake3, HashKind, Hasher, Proof, ProofError, ProofLimits, Query, RangeAnswer, Sha256};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A height of this home's snapshots, or the path of an archive
    snapshot: Source,
    /// The namespace
    namespace: String,
    /// Only keys that begin with this text
    #[arg(long, conflicts_with = "prefix_hex")]
    prefix: Option<String>,
    /// Only keys that begin with these bytes, in hexadecimal
    #[arg(long)]
    prefix_hex: Option<String>,
    /// The root you trust; without it the one the snapshot says is used
    #[arg(long)]
    root: Option<String>,
    /// The file to write, which must not exist; `keelstone proof verify` checks it. `-` for standard output
    #[arg(long, short)]
    out: PathBuf,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let namespace = Namespace::new(&options.namespace).map_err(|error| Failure::usage(error.to_string()))?;
    let prefix = match (&options.prefix, &options.prefix_hex) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(digits)) => {
            hex::decode(digits).map_err(|error| Failure::usage(format!("--prefix-hex: {error}")))?
        }
        (None, None) => Vec::new(),
    };
    trusted(options.root.as_deref())?;
    let expected = expected(genesis_if_any(context)?.as_ref(), options.root.as_deref())?;
    let found = options.snapshot.read(context, |origin| origin.extract(&expected, &namespace, &prefix))?;
    let info = &found.info;
    let pair = |(key, value): &(keelstone_codec::Key, keelstone_codec::Value)| api::Pair {
        key: hex::encode(key),
        value: hex::encode(value),
    };
    let extract = api::Extract {
        chain_id: info.chain_id.to_string(),
        height: info.id.height.0,
        root: info.root.0.to_string(),
        hasher: info.hasher.to_string(),
        namespace: namespace.to_string(),
        prefix: hex::encode(&prefix),
        entries: found.entries.iter().map(pair).collect(),
        proof: hex::encode(&found.proof),
    };
    let text = serde_json::to_string_pretty(&extract).expect("text and numbers have JSON") + "\n";
    let out = context.out;
    if options.out == Path::new("-") {
        out.write(&text);
        return Ok(Exit::Ok);
    }
    newfile::write(&options.out, text.as_bytes())?;
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    out.say(out.ink(Ink::Good, "✓ these are all the entries, and the proof says so"));
    out.row("entries", grouped(count(found.entries.len())));
    out.row("proof", bytes(count(found.proof.len())));
    out.row("height", grouped(info.id.height.0));
    out.row("root", info.root);
    out.row("written", options.out.display());
    say_trust(out, options.root.is_some(), options.snapshot.is_archive());
    out.emit(&json!({
        "file": options.out, "entries": found.entries.len(), "proof_bytes": found.proof.len(),
        "units_read": found.units_read, "height": info.id.height, "root": info.root,
        "root_given": options.root.is_some(),
    }));
    Ok(Exit::Ok)
}

/// Checks what [`run`] wrote, with no store and no network.
pub(crate) fn verify(extract: &api::Extract, given: Option<Root>, context: &Context<'_>) -> Result<Exit, Failure> {
    let usage = |what: &str, error: &dyn std::fmt::Display| Failure::usage(format!("{what}: {error}"));
    let root = rooted(given, &extract.root)?;
    let namespace = Namespace::new(&extract.namespace).map_err(|error| usage("the namespace", &error))?;
    let prefix = hex::decode(&extract.prefix).map_err(|error| usage("the prefix", &error))?;
    let proof = hex::decode(&extract.proof).map_err(|error| usage("the proof", &error))?;
    let hasher: HashKind = extract.hasher.parse().map_err(|error| usage("the hasher", &error))?;
    let shown = match hasher {
        HashKind::Blake3 => shown::<Blake3>(&proof, root, &namespace, &prefix),
        HashKind::Sha256 => shown::<Sha256>(&proof, root, &namespace, &prefix),
    }
    .map_err(|error| Failure::integrity(format!("the proof does not hold: {error}")))?;
    if shown != extract.entries {
        let message = "the file lists other entries than the proof shows";
        return Err(Failure::integrity(message));
    }
    let out = context.out;
    out.say(format_args!("{} {}", out.ink(Ink::Good, "✓"), out.ink(Ink::Good, "the proof holds")));
    let prefix = prefix.escape_ascii();
    out.row("entries", format_args!("{} in {namespace} that begin with {prefix:?}", shown.len()));
    let source = if given.is_some() { "given" } else { "from the file: trust it on other grounds" };
    out.row("root", format_args!("{} ({source})", crate::out::short(root)));
    out.emit(&json!({
        "valid": true, "entries": shown.len(), "root": root, "root_given": given.is_some(),
        "namespace": namespace.as_str(), "prefix": extract.prefix, "height": extract.height,
    }));
    Ok(Exit::Ok)
}

/// All entries that the proof shows there to be.
fn shown<H: Hasher>(
    proof: &[u8],
    root: Root,
    namespace: &Namespace,
    prefix: &[u8],
) -> Result<Vec<api::Pair>, ProofError> {
    // The file has a limit of its own; the proof in it may be as large.
    let limits = ProofLimits { bytes: proof.len(), nodes: proof.len() };
    let query = [Query::Prefix(namespace.clone(), prefix.to_vec())];
    let verified = Proof::decode_within(proof, &limits)?.verify::<H>(root, &query, &limits)?;
    let RangeAnswer::Complete(entries) = verified.prefix(namespace, prefix) else {
        unreachable!("a proof that verifies for a question answers it");
    };
    let pair = |(key, value): (keelstone_codec::Key, keelstone_codec::Value)| api::Pair {
        key: hex::encode(&key),
        value: hex::encode(&value),
    };
    Ok(entries.into_iter().map(pair).collect())
}
