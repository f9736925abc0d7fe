//! `keelstone snapshot extract`: the entries of one namespace, or of one prefix of its keys, with a proof that these are
//! all of them. Only the chunks that hold them are read.

use super::{Source, expected, genesis_if_any, say_trust};
use crate::api;
use crate::commands::proof;
use crate::context::Context;
use crate::exit::{Exit, Failure, causes};
use crate::library::trusted;
use crate::newfile;
use crate::out::{Ink, bytes, grouped};
use clap::Args;
use keelstone_codec::{ChainId, Height, KEY_LEN_MAX, Key, Namespace, Root, Value, unhex};
use keelstone_sync::library::TakeError;
use keelstone_sync::snapshot::PartOf;
use keelstone_tree::{HashKind, Query};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A height of this home's snapshots, or the path of an archive
    snapshot: Source,
    /// The namespace
    namespace: String,
    #[command(flatten)]
    prefix: Prefix,
    /// The root you trust; without it the one the snapshot says is used
    #[arg(long)]
    root: Option<String>,
    /// The file to write, which must not exist; `keelstone proof verify` checks it. `-` for standard output
    #[arg(long, short)]
    out: PathBuf,
}

/// Which keys of a namespace.
#[derive(Debug, Default, Args)]
pub(crate) struct Prefix {
    /// Only keys that begin with this text
    #[arg(long, requires = "namespace", conflicts_with = "prefix_hex")]
    prefix: Option<String>,
    /// Only keys that begin with these bytes, in hexadecimal
    #[arg(long, requires = "namespace")]
    prefix_hex: Option<String>,
}

impl Prefix {
    /// The part of a state that is meant.
    pub(crate) fn of(&self, namespace: &str) -> Result<PartOf, Failure> {
        let namespace = Namespace::new(namespace).map_err(|error| Failure::usage(error.to_string()))?;
        let prefix = match (&self.prefix, &self.prefix_hex) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(digits)) => unhex(digits).map_err(|error| Failure::usage(format!("--prefix-hex: {error}")))?,
            (None, None) => Vec::new(),
        };
        match prefix.len() {
            0..=KEY_LEN_MAX => Ok(PartOf { namespace, prefix }),
            len => Err(Failure::usage(format!("no key begins with {len} bytes: {KEY_LEN_MAX} is the limit"))),
        }
    }
}

/// What a part is of.
pub(crate) struct Of<'a> {
    pub(crate) chain_id: &'a ChainId,
    pub(crate) height: Height,
    pub(crate) root: Root,
    pub(crate) hasher: HashKind,
}

/// The text of a file that holds a part and its proof.
pub(crate) fn file(of: &Of<'_>, part: &PartOf, entries: &[(Key, Value)], proof: &[u8]) -> String {
    let pair = |(key, value): &(Key, Value)| api::Pair { key: hex::encode(key), value: hex::encode(value) };
    let extract = api::Extract {
        chain_id: of.chain_id.to_string(),
        height: of.height.0,
        root: of.root.0.to_string(),
        hasher: of.hasher.to_string(),
        namespace: part.namespace.to_string(),
        prefix: hex::encode(&part.prefix),
        entries: entries.iter().map(pair).collect(),
        proof: hex::encode(proof),
    };
    serde_json::to_string_pretty(&extract).expect("text and numbers have JSON") + "\n"
}

/// Writes such a file, which must not exist.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    newfile::write(path, text.as_bytes())
}

/// Why a part was not taken out of what was fetched and proven.
pub(crate) fn failed(error: TakeError) -> Failure {
    match error {
        TakeError::TooLarge { .. } => Failure::usage(error.to_string()).hint("ask for longer prefixes, one by one"),
        TakeError::Unproven(_) | TakeError::Read(_) => Failure::integrity(causes(&error)),
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let part = options.prefix.of(&options.namespace)?;
    trusted(options.root.as_deref())?;
    let expected = expected(genesis_if_any(context)?.as_ref(), options.root.as_deref())?;
    let found =
        options.snapshot.read(&context.home, |origin| origin.extract(&expected, &part.namespace, &part.prefix))?;
    let info = &found.info;
    let of = Of { chain_id: &info.chain_id, height: info.id.height, root: info.root, hasher: info.hasher };
    let text = file(&of, &part, &found.entries, &found.proof);
    let out = context.out;
    if options.out == Path::new("-") {
        out.write(&text);
        return Ok(Exit::Ok);
    }
    write(&options.out, &text)?;
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
    let root = proof::rooted(given, &extract.root)?;
    let namespace = Namespace::new(&extract.namespace).map_err(|error| usage("the namespace", &error))?;
    let prefix = unhex(&extract.prefix).map_err(|error| usage("the prefix", &error))?;
    let proof_bytes = unhex(&extract.proof).map_err(|error| usage("the proof", &error))?;
    let hasher: HashKind = extract.hasher.parse().map_err(|error| usage("the hasher", &error))?;
    let query = Query::Prefix(namespace.clone(), prefix.clone());
    let shown = proof::shown(hasher, &proof_bytes, root, &query)?;
    if shown != extract.entries {
        let message = "the file lists other entries than the proof shows";
        return Err(Failure::integrity(message));
    }
    let out = context.out;
    out.say(format_args!("{} {}", out.ink(Ink::Good, "✓"), out.ink(Ink::Good, "the proof holds")));
    let which = match prefix.is_empty() {
        true => String::new(),
        false => format!(" whose keys begin with \"{}\"", prefix.escape_ascii()),
    };
    out.row("entries", format_args!("{} in {namespace}{which}", shown.len()));
    out.row("root", proof::rooted_how(root, given.is_some()));
    out.emit(&json!({
        "valid": true, "entries": shown.len(), "root": root, "root_given": given.is_some(),
        "namespace": namespace.as_str(), "prefix": extract.prefix,
        "claimed": { "chain_id": extract.chain_id, "height": extract.height },
    }));
    Ok(Exit::Ok)
}
