//! `keelstone query`: entries, blocks, transactions, accounts and functions, with proof if asked for.
//!
//! Asks the node that runs over this home directory if there is one, else reads the directory itself.

use super::{proof, tx};
use crate::api::{Chain, Entries, Entry, Page, RangeProof, Receipt};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::misfits;
use crate::out::{Ink, Out, grouped, short};
use crate::world::{self, Table};
use clap::{Args, Subcommand};
use keelstone_codec::{Hash, Height, Key, Namespace, Root, unhex};
use keelstone_execution::{PublicKey, Registry};
use keelstone_ledger::xian::{CONTRACTS, EntryKey};
use serde::Serialize;
use serde_json::json;
use std::fmt::Display;
use std::str::FromStr;

/// Look up state, blocks, transactions and accounts
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    entry: EntryOptions,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List entries of a namespace
    List {
        /// The namespace
        namespace: String,
        /// What keys begin with
        #[arg(default_value = "")]
        prefix: String,
        /// The prefix is hexadecimal
        #[arg(long)]
        hex: bool,
        /// At this height instead of the last
        #[arg(long)]
        height: Option<u64>,
        /// How many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Go on after the key that the last answer gave as next
        #[arg(long)]
        after: Option<String>,
        /// Ask for a proof that these are all of their range of keys, and verify it
        #[arg(long)]
        prove: bool,
    },
    /// Show a block
    Block {
        /// Its height, or latest
        #[arg(default_value = "latest")]
        height: Which,
    },
    /// Show a transaction and its receipt
    Tx {
        /// Its identity
        id: String,
    },
    /// Show what an account needs to know for its next transaction
    Account {
        /// The public key, or the name of a key here
        key: String,
    },
    /// List what can be called, with the form of its arguments
    Functions,
    /// List the places of the state that this program knows, with the form of their keys and values
    Places,
}

/// How many rows, unless told otherwise.
const ROWS: u16 = 100;

/// Which block: that of a height, or the last.
#[derive(Debug, Clone, Copy)]
struct Which(Option<Height>);

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self(None)),
            _ => match text.parse() {
                Ok(height) => Ok(Self(Some(Height(height)))),
                Err(error) => Err(format!("expected a height or latest: {error}")),
            },
        }
    }
}

#[derive(Debug, Args)]
struct EntryOptions {
    /// The namespace, such as agents; or the whole name of a contract's entry, such as currency.balances:address; or,
    /// with nothing behind it, a table: agents and the like, or any collection, NAMESPACE/PLACE, as `query places` lists them
    #[arg(required = true)]
    namespace: Option<String>,
    /// The key: of a table as the table shows it (the parts of a pair with a comma between; the first of them alone for all
    /// rows that begin with them), else as text
    key: Option<String>,
    /// The key is hexadecimal: all its bytes, as query list gives them
    #[arg(long)]
    hex: bool,
    /// At this height instead of the last
    #[arg(long)]
    height: Option<u64>,
    /// Ask for a proof, and verify it: of the entry, or of a table that these are all rows of their range of keys
    #[arg(long)]
    prove: bool,
    /// Of a table: agents of this name, memes of this author, alliances of this member, relationships about this agent
    #[arg(long, conflicts_with_all = ["key", "hex", "height", "prove"])]
    of: Option<String>,
    /// Of a table: how many rows [default: 100]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: Option<u16>,
    /// Of a table: go on after the key that the last answer gave as next
    #[arg(long)]
    after: Option<String>,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    match options.what {
        None => entry(options.entry, context),
        Some(What::List { namespace, prefix, hex, height, limit, after, prove }) => {
            let after = after.map(|after| key_bytes(&after, true)).transpose()?;
            let page = Page { prefix: key_bytes(&prefix, hex)?, after, limit: usize::from(limit) };
            list(&parsed("namespace", Namespace::new(&namespace))?, &page, height.map(Height), prove, context)
        }
        Some(What::Block { height }) => block(height.0, context),
        Some(What::Tx { id }) => transaction(&parsed("id", Hash::from_hex(&id))?, context),
        Some(What::Account { key }) => account(&tx::sender(&key, context)?, context),
        Some(What::Functions) => functions(context),
        Some(What::Places) => places(context),
    }
}

fn parsed<T, E: Display>(what: &str, result: Result<T, E>) -> Result<T, Failure> {
    result.map_err(|error| Failure::usage(format!("{what}: {error}")))
}

fn key_bytes(text: &str, hexadecimal: bool) -> Result<Vec<u8>, Failure> {
    if hexadecimal { parsed("key", unhex(text)) } else { Ok(text.as_bytes().to_vec()) }
}

/// A namespace and a key in it, as people write them. A key of a table is written as the table shows it. What is no such
/// key stands for its own bytes only if these are a key of another place in a namespace of that name: else it is mistyped, and
/// would be proven absent.
pub(super) fn place(
    namespace: &str,
    key: &str,
    hexadecimal: bool,
    registry: &Registry,
) -> Result<(Namespace, Key), Failure> {
    if hexadecimal {
        // All bytes of a key, whatever they are.
    } else if let Some(Table { space, place, .. }) = world::table(registry, namespace) {
        if let Some(bytes) = world::key(registry, space, place, key) {
            return Ok((parsed("namespace", Namespace::new(space))?, parsed("key", Key::new(bytes))?));
        }
        if space != namespace || world::place_of(registry, space, key.as_bytes()).is_none() {
            let message = format!("{key:?} is no key of the table {namespace}");
            let hint = format!("keelstone query {namespace} shows those there are; --hex takes all bytes of any key");
            return Err(Failure::usage(message).hint(hint));
        }
    } else if world::single(registry, namespace).is_some() {
        return Err(Failure::usage(format!("{namespace} is a single value: it has no keys")));
    } else if namespace.contains('/') {
        return Err(no_table(namespace, registry));
    }
    let namespace = parsed("namespace", Namespace::new(namespace))?;
    let key = if namespace.as_str() == CONTRACTS && !hexadecimal {
        parsed("key", EntryKey::named(key))?.key().clone()
    } else {
        parsed("key", Key::new(key_bytes(key, hexadecimal)?))?
    };
    Ok((namespace, key))
}

/// Says to people what there is where they found nothing, if the key is none that this program knows a place for. Whether that can
/// be told changes nothing.
pub(super) fn hint_at_what_there_is(
    chain: &dyn Chain,
    (namespace, key): (&Namespace, &Key),
    height: Option<Height>,
    context: &Context<'_>,
) {
    let (out, registry) = (context.out, &context.application.registry);
    let known = namespace.as_str() == CONTRACTS || world::place_of(registry, namespace.as_str(), key).is_some();
    if out.is_json() || known {
        return;
    }
    let Ok(page) = chain.entries(namespace, &Page { limit: 1, ..Page::default() }, height, false) else { return };
    let mut hint = match page.entries.into_iter().next() {
        Some(pair) => {
            let lists = out.called(&format!("keelstone query list {namespace} lists them, --hex takes one"));
            format!("keys of {namespace} are like {}; {lists}", readable(&pair.key))
        }
        None => format!(
            "nothing is in the namespace {namespace}; there are the tables {}",
            world::names(registry).join(", ")
        ),
    };
    let places = world::collections(registry, namespace.as_str());
    if !places.is_empty() {
        hint = format!("{hint}; what takes keys as they are shown is {}", places.join(", "));
    }
    out.say(out.ink(Ink::Quiet, hint));
}

/// What is asked for by a name and perhaps a key.
enum Asked<'a> {
    Entry(Namespace, Key),
    /// Those whose keys begin so.
    Rows(Table<'a>, Vec<u8>),
}

impl<'a> Asked<'a> {
    fn of(name: &'a str, key: Option<&str>, hexadecimal: bool, registry: &'a Registry) -> Result<Self, Failure> {
        let entry = |(namespace, key)| Self::Entry(namespace, key);
        if let Some(key) = key {
            if !hexadecimal
                && let Some(table) = world::table(registry, name)
                && let Some(begins) = world::beginning(registry, table.space, table.place, key)
                && world::key(registry, table.space, table.place, key).is_none()
            {
                return Ok(Self::Rows(table, begins));
            }
            return place(name, key, hexadecimal, registry).map(entry);
        }
        if let Some((namespace, place)) = world::single(registry, name) {
            // The key is the place itself, whatever keys people write in a namespace of this name.
            return Ok(Self::Entry(
                parsed("namespace", Namespace::new(namespace))?,
                parsed("key", Key::new(place.as_bytes()))?,
            ));
        }
        if let Some(table) = world::table(registry, name) {
            return Ok(Self::Rows(table, table.prefix()));
        }
        // The name of a contract's entry has a point in it, that of a table has none; that of a namespace may.
        let is_of_a_space =
            name.split_once('/').is_some_and(|(space, _)| !world::collections(registry, space).is_empty());
        if name.contains('.') && !is_of_a_space {
            place(CONTRACTS, name, hexadecimal, registry).map(entry)
        } else {
            Err(no_table(name, registry))
        }
    }
}

fn entry(options: EntryOptions, context: &Context<'_>) -> Result<Exit, Failure> {
    let name = options.namespace.as_deref().unwrap_or_default();
    let (namespace, key) = match Asked::of(name, options.key.as_deref(), options.hex, &context.application.registry)? {
        Asked::Entry(namespace, key) => (namespace, key),
        Asked::Rows(found, begins) => return table(&options, found, begins, context),
    };
    if options.limit.is_some() || options.after.is_some() {
        return Err(Failure::usage("--limit and --after are for rows, and this is one entry"));
    }
    let (chain, height) = (context.chain()?, options.height.map(Height));
    let entry = chain.entry(&namespace, &key, height, options.prove)?;
    if options.prove {
        proof::verify(&entry, parsed("root", Root::from_hex(&entry.root))?)?;
    }
    show_entry(&entry, context);
    if entry.value.is_none() {
        hint_at_what_there_is(&*chain, (&namespace, &key), height, context);
    }
    let value = entry.value.as_deref().map(bytes_of).transpose()?;
    let misfit = value.and_then(|value| misfits::of_entry(&context.application.registry, &namespace, &key, &value));
    let warnings: Vec<String> = misfit.into_iter().collect();
    context.out.warn(&warnings);
    // What is to be verified is the answer as it came.
    let shown = if options.prove { &[][..] } else { &warnings };
    context.out.emit(&Warned { shown: &entry, warnings: shown });
    Ok(if entry.value.is_some() { Exit::Ok } else { Exit::NotFound })
}

/// Names the tables there are to whoever asked for another.
fn no_table(name: &str, registry: &Registry) -> Failure {
    let space = name.split_once('/').map_or(name, |(space, _)| space);
    let (there, hint) = match world::collections(registry, space) {
        places if places.is_empty() => {
            let hint = "keelstone query NAMESPACE KEY asks for one entry, query list NAMESPACE for all of them";
            (world::names(registry), hint.to_owned())
        }
        places => (places, format!("keelstone query list {space} lists all entries of that namespace")),
    };
    let there =
        if there.is_empty() { "this program knows none".to_owned() } else { format!("there are {}", there.join(", ")) };
    Failure::not_found(format!("there is no table {name:?}; {there}")).hint(hint)
}

/// Rows of a table, keys and values by field.
fn table(options: &EntryOptions, table: Table<'_>, prefix: Vec<u8>, context: &Context<'_>) -> Result<Exit, Failure> {
    let Table { space, place, by } = table;
    let registry = &context.application.registry;
    let namespace = parsed("namespace", Namespace::new(space))?;
    let after = options.after.as_deref().map(|after| key_bytes(after, true)).transpose()?;
    let page = Page { prefix, after, limit: usize::from(options.limit.unwrap_or(ROWS)) };
    let chain = context.chain()?;
    let mut found = match (&options.of, by) {
        (None, _) => entries(&*chain, &namespace, &page, options.height.map(Height), options.prove)?,
        (Some(of), Some(by)) => chain.lookup(by, of, &page)?,
        (Some(_), None) => {
            let with = world::tables(registry).filter(|(_, table)| table.by.is_some());
            return Err(Failure::usage(match &with.map(|(name, _)| name).collect::<Vec<_>>()[..] {
                [] => "--of: nothing is looked up by anything but its key in this program".to_owned(),
                with => format!("--of is for {}", with.join(", ")),
            }));
        }
    };
    let rows = misfits::rows(registry, &namespace, place, &found);
    let (rows, warnings) = rows.map_err(|error| Failure::error(format!("the answer: {error}")))?;
    let out = context.out;
    for row in &rows {
        out.say(format_args!("{} {}", out.ink(Ink::Value, &row.key), row.value));
        if out.is_broken() {
            break;
        }
    }
    more(&found, context);
    out.warn(&warnings);
    if found.proof.is_some() {
        // What the proof is of goes with it, and nothing else.
        found.rows = Some(rows);
        out.emit(&found);
    } else {
        let shown = json!({ "height": found.height, "root": found.root, "rows": rows, "next": found.next });
        out.emit(&Warned { shown: &shown, warnings: &warnings });
    }
    Ok(Exit::Ok)
}

/// What programs are shown, with what is to be said of it, if there is something.
#[derive(Serialize)]
struct Warned<'a, T> {
    #[serde(flatten)]
    shown: &'a T,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

/// The bytes of what a node answered in hexadecimal.
fn bytes_of(digits: &str) -> Result<Vec<u8>, Failure> {
    unhex(digits).map_err(|error| Failure::error(format!("the answer: {error}")))
}

/// A page of entries; if it is to be proven, with a proof that was verified and is of what was asked for.
fn entries(
    chain: &dyn Chain,
    namespace: &Namespace,
    page: &Page,
    height: Option<Height>,
    prove: bool,
) -> Result<Entries, Failure> {
    let found = chain.entries(namespace, page, height, prove)?;
    if prove {
        let last = found.next.as_ref().map(unhex).transpose();
        let last = last.map_err(|error| Failure::error(format!("the answer: {error}")))?;
        let shown = proof::verify_range(&found, parsed("root", Root::from_hex(&found.root))?)?;
        if shown != (namespace.clone(), page.range_to(last.as_deref())) {
            return Err(Failure::integrity("the proof is of other keys than were asked for"));
        }
    }
    Ok(found)
}

/// What stands below a page: that there is more, and what is proven.
fn more(found: &Entries, context: &Context<'_>) {
    let out = context.out;
    if let Some(next) = &found.next {
        out.say(out.ink(Ink::Quiet, format_args!("there is more: --after {next}")));
    }
    if let Some(RangeProof { proof, .. }) = &found.proof {
        show_proof(&found.root, found.height, proof, context);
    }
}

/// The root that a proof was verified under, and how large it is.
fn show_proof(root: &str, height: u64, proof: &str, context: &Context<'_>) {
    let out = context.out;
    out.row("height", grouped(height));
    out.row("root", root);
    let size = grouped(proof.len() as u64 / 2);
    out.row("proof", format_args!("{size} bytes, {} under this root", out.ink(Ink::Good, "verified")));
}

fn show_entry(entry: &Entry, context: &Context<'_>) {
    let out = context.out;
    match (&entry.value, &entry.text) {
        (Some(_), Some(text)) => out.say(text),
        (Some(value), None) => out.say(value),
        (None, _) => out.say(out.ink(Ink::Quiet, "no such entry")),
    }
    match &entry.proof {
        Some(proof) => show_proof(&entry.root, entry.height, proof, context),
        None => {
            out.row("height", grouped(entry.height));
            out.row("root", &entry.root);
        }
    }
}

fn list(
    namespace: &Namespace,
    page: &Page,
    height: Option<Height>,
    prove: bool,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let found = entries(&*context.chain()?, namespace, page, height, prove)?;
    let out = context.out;
    for pair in &found.entries {
        out.say(format_args!("{} {}", out.ink(Ink::Value, readable(&pair.key)), readable(&pair.value)));
        if out.is_broken() {
            break;
        }
    }
    more(&found, context);
    out.emit(&found);
    Ok(Exit::Ok)
}

/// Hexadecimal as text if it is printable text, else as it is.
fn readable(digits: &str) -> String {
    let text = unhex(digits).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.filter(|text| !text.chars().any(char::is_control)).unwrap_or_else(|| digits.to_owned())
}

fn block(height: Option<Height>, context: &Context<'_>) -> Result<Exit, Failure> {
    let block = context.chain()?.block(height)?;
    let out = context.out;
    out.row("height", grouped(block.height));
    out.row("time", block.time);
    out.row("root", block.root.as_deref().unwrap_or("no longer kept"));
    out.row("previous root", block.previous_root.as_deref().unwrap_or("no longer kept"));
    out.row("record", block.record_hash.as_deref().unwrap_or("none: the block changed nothing"));
    for id in &block.transactions {
        out.row("transaction", id);
    }
    out.emit(&block);
    Ok(Exit::Ok)
}

fn transaction(id: &Hash, context: &Context<'_>) -> Result<Exit, Failure> {
    let transaction = context.chain()?.transaction(id)?;
    let out = context.out;
    let receipt = &transaction.receipt;
    out.row("transaction", &transaction.id);
    out.row("sender", &transaction.sender);
    out.row("block", format_args!("{} at {}", grouped(receipt.height), receipt.index));
    for (index, operation) in transaction.operations.iter().enumerate() {
        let link = receipt.outcomes.get(index).map_or_else(String::new, |outcome| short(&outcome.state_hash));
        let call = format_args!("{} {}", out.ink(Ink::Value, &operation.function), operation.args).to_string();
        out.row(&format!("operation {index}"), format_args!("{call} {}", out.ink(Ink::Quiet, link)));
    }
    show_outcomes(receipt, out);
    match &receipt.failure {
        None => out.row("outcome", out.ink(Ink::Good, format_args!("succeeded, gas {}", grouped(receipt.gas_used)))),
        Some(failure) => {
            let text = format!("failed at operation {}: {} (code {})", failure.operation, failure.reason, failure.code);
            out.row("outcome", out.ink(Ink::Bad, text));
        }
    }
    out.emit(&transaction);
    Ok(Exit::Ok)
}

/// What the operations of a bundle that took effect gave, and the events they told.
pub(super) fn show_outcomes(receipt: &Receipt, out: &Out) {
    for outcome in &receipt.outcomes {
        if !outcome.result.is_null() {
            out.row("result", &outcome.result);
        }
        for event in &outcome.events {
            let name = event["name"].as_str().unwrap_or_default();
            out.row("event", format_args!("{} {}", out.ink(Ink::Value, name), event["data"]));
        }
    }
}

fn account(key: &PublicKey, context: &Context<'_>) -> Result<Exit, Failure> {
    let account = context.chain()?.account(key)?;
    let out = context.out;
    out.row("account", &account.key);
    out.row("next nonce", account.nonce);
    out.row("operations", grouped(account.sequence));
    out.row("state hash", &account.state_hash);
    out.emit(&account);
    Ok(Exit::Ok)
}

fn functions(context: &Context<'_>) -> Result<Exit, Failure> {
    let functions = context.chain()?.functions()?;
    let out = context.out;
    for function in &functions {
        let needs =
            if function.needs.is_empty() { String::new() } else { format!(" needs {}", function.needs.join(", ")) };
        let heights = match (function.first_height, function.last_height) {
            (None, None) => String::new(),
            (Some(first), None) => format!(" from height {first}"),
            (None, Some(last)) => format!(" until height {last}"),
            (Some(first), Some(last)) => format!(" at heights {first} to {last}"),
        };
        let hook = function.hook.as_ref().map_or_else(String::new, |hook| format!(" by the chain, {hook}"));
        let told = format!("{hook}{needs}{heights}");
        out.say(format_args!("{}{}", out.ink(Ink::Title, &function.name), out.ink(Ink::Quiet, told)));
        out.say(format_args!("    {}", function.args));
    }
    out.emit(&functions);
    Ok(Exit::Ok)
}

/// What lies where, with the form of keys and values, as this program knows it: nobody is asked.
fn places(context: &Context<'_>) -> Result<Exit, Failure> {
    let registry = &context.application.registry;
    let places = world::places(registry);
    let out = context.out;
    for place in &places {
        let of = |(name, table): (&'static str, Table<'_>)| {
            (table.space == place.namespace && table.place == place.place).then(|| format!(" ({name})"))
        };
        let table = world::tables(registry).find_map(of).unwrap_or_default();
        let name = format!("{}/{}", place.namespace, place.place);
        out.say(format_args!("{}{table} {}", out.ink(Ink::Title, name), out.ink(Ink::Quiet, &place.kind)));
        match &place.key {
            Some(key) => out.say(format_args!("    {key}: {}", place.value)),
            None => out.say(format_args!("    {}", place.value)),
        }
    }
    out.emit(&places);
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::Text;
    use keelstone_execution::{Item, Map, namespace};

    /// An application's own namespace, of the name of a table, with rows whose keys any text could be.
    #[namespace("agents")]
    struct Agents {
        #[expect(dead_code, reason = "the declaration is what is asked")]
        all: Map<Text<20>, u64>,
        #[expect(dead_code, reason = "the declaration is what is asked")]
        count: Item<u64>,
    }

    #[namespace("my.app")]
    struct Pointed {
        #[expect(dead_code, reason = "the declaration is what is asked")]
        rows: Map<u64, u64>,
        #[expect(dead_code, reason = "the declaration is what is asked")]
        value: Item<u64>,
    }

    fn asked(name: &str) -> String {
        let mut registry = Registry::new();
        registry.declare::<Agents>().declare::<Pointed>();
        match Asked::of(name, None, false, &registry) {
            Ok(Asked::Entry(namespace, key)) => format!("{namespace} {}", key.escape_ascii()),
            Ok(Asked::Rows(table, _)) => format!("rows of {}/{}", table.space, table.place),
            Err(failure) => failure.message,
        }
    }

    /// Of a program without the built-in tables none is named, and of a key that is mistyped nothing is asked.
    #[test]
    fn what_is_mistyped_is_told_with_what_there_is() {
        let mut registry = Registry::new();
        registry.declare::<Pointed>();
        let of = |name: &str, key: Option<&str>| match Asked::of(name, key, false, &registry) {
            Ok(Asked::Entry(namespace, key)) => format!("{namespace} {}", key.escape_ascii()),
            Ok(Asked::Rows(table, _)) => format!("rows of {}/{}", table.space, table.place),
            Err(failure) => failure.message,
        };
        for name in ["nope/x", "my.app/typo"] {
            for key in [None, Some("7")] {
                let told = of(name, key);
                assert!(told.contains("there are my.app/rows, my.app/value"), "{told}");
            }
        }
        assert_eq!(of("my.app/rows", Some("7")), "my.app rows/\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x07");
        assert!(of("my.app/rows", Some("7x")).contains("no key of the table"));
        assert!(of("my.app/value", Some("7")).contains("single value"));

        // A table whose namespace has its name: the keys of other places are written as they are.
        let registry = keelstone_ledger::modules::standard();
        let of = |key: &str| place("agents", key, false, &registry).map(|(_, key)| key.as_slice().to_vec());
        assert_eq!(of("stake_total").expect("a place"), b"stake_total");
        let short = "ab".repeat(32).split_off(1);
        assert_eq!(of(&short).expect_err("a digit is missing").exit, Exit::Usage);
    }

    #[test]
    fn a_name_with_a_slash_is_a_place_of_its_namespace() {
        assert_eq!(asked("agents"), "rows of agents/all");
        assert_eq!(asked("agents/count"), "agents count", "a place is no key that somebody wrote");
        assert_eq!(asked("my.app/rows"), "rows of my.app/rows", "a namespace may have a point in its name");
        assert_eq!(asked("my.app/value"), "my.app value");
        assert!(asked("currency.balances:a/b").starts_with(CONTRACTS), "and so may a contract's entry");
        assert!(asked("agents/none").starts_with("there is no table"));
    }
}
