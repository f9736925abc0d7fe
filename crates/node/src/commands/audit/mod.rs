//! `keelstone audit show|proof|verify|export|checkpoint|prune`: what happened on the chain, and whether it still says so;
//! and `audit node`, the same of what this node did by itself.

mod node;

use crate::api;
use crate::audit::{self, BadRecord};
use crate::commands::db::confirmed;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::keyfile::PRODUCER;
use crate::newfile;
use crate::out::{Ink, grouped, short};
use crate::own_log::{OwnLog, standing};
use clap::{Args, Subcommand};
use keelstone_codec::{Decode as _, Height, Root, unhex};
use keelstone_execution::PublicKey;
use keelstone_ledger::{AuditProof, AuditVerdict, Checkpoint, LedgerError, NodeEvent, SignedCheckpoint};
use keelstone_tree::{Blake3, HashKind, Sha256};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};

/// Look into the audit log, verify it, and hand it on
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List records: operations, failures, rollbacks, blocks
    Show {
        /// The place of the first record [default: the first that is kept, or that of --height]
        #[arg(long, value_name = "INDEX")]
        from: Option<u64>,
        /// Only of this height
        #[arg(long, value_name = "H")]
        height: Option<u64>,
        /// Only of this kind: operation, rolled_back, failed, submitted, ended, block
        #[arg(long)]
        kind: Option<String>,
        /// Only what this key did; of blocks, made
        #[arg(long, value_name = "KEY")]
        who: Option<String>,
        /// How many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Show one record with the proof that it is in the log of the state, and verify that
    Proof {
        /// Its place in the log
        index: u64,
        /// The root you trust; without it the one in the answer is used
        #[arg(long)]
        root: Option<String>,
    },
    /// Verify the log of this home, or an export; exit code 12 with the first bad record if it was tampered with
    Verify {
        /// An export to verify, with no chain at hand
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
        /// A checkpoint that was kept: the log must go on from it
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// The root you trust; without it the one in the export is used
        #[arg(long, requires = "export")]
        root: Option<String>,
    },
    /// Write records as lines of JSON, each with a proof of its place
    Export {
        /// The place of the first record [default: the first that is kept]
        #[arg(long, value_name = "INDEX")]
        from: Option<u64>,
        /// The place behind the last record [default: the end of the log]
        #[arg(long, value_name = "INDEX")]
        to: Option<u64>,
        /// The file [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Write a signed checkpoint, for somebody else to keep
    Checkpoint {
        /// The key that signs, by its name in this home
        #[arg(long, default_value = PRODUCER)]
        key: String,
        /// The file [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What this node did by itself: rollbacks, pruning, recovery, snapshots, settings
    Node(node::Options),
    /// Give up the records below a height; what remains is verified first, and still proven afterwards
    Prune {
        /// The lowest height whose records stay
        #[arg(long)]
        before: u64,
        /// Yes, forget them
        #[arg(long)]
        yes: bool,
    },
}

impl Options {
    /// Whether a chain is asked, rather than looked into here.
    pub(crate) fn asks(&self) -> bool {
        matches!(self.action, Action::Show { .. } | Action::Proof { .. } | Action::Checkpoint { .. })
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    match options.action {
        Action::Show { from, height, kind, who, limit } => {
            let who = who.map(|key| PublicKey::from_hex(&key)).transpose();
            let who = who.map_err(|error| Failure::usage(format!("--who: {error}")))?;
            show(&api::AuditWanted { from, height: height.map(Height), kind, who, limit: usize::from(limit) }, context)
        }
        Action::Proof { index, root } => proof(index, trusted(root)?, context),
        Action::Verify { export: Some(file), checkpoint, root } => {
            verify_file(&file, trusted(root)?, checkpoint.as_deref(), context)
        }
        Action::Verify { export: None, checkpoint, .. } => verify(checkpoint.as_deref(), context),
        Action::Export { from, to, out } => export(from, to, out.as_deref(), context),
        Action::Node(options) => node::run(options, context),
        Action::Checkpoint { key, out } => checkpoint(&key, out.as_deref(), context),
        Action::Prune { before, yes } => {
            let chain = context.open_chain()?;
            let (below, last) = (Height(before), Height(chain.status()?.height));
            if below > last {
                return Err(LedgerError::NotYet { height: below, last }.into());
            }
            confirmed(yes, &format!("this forgets the audit records below height {before}"))?;
            let event = NodeEvent::PrunedAudit { below };
            let own = OwnLog::of(&context.home);
            let first = own.around(&event, || standing(&*chain), || chain.prune_audit(below))?;
            context.out.row("first record", grouped(first));
            context.out.emit(&json!({ "first": first }));
            Ok(Exit::Ok)
        }
    }
}

/// The root a caller trusts.
fn trusted(root: Option<String>) -> Result<Option<Root>, Failure> {
    let root = root.map(|root| Root::from_hex(&root)).transpose();
    root.map_err(|error| Failure::usage(format!("--root: {error}")))
}

fn show(wanted: &api::AuditWanted, context: &Context<'_>) -> Result<Exit, Failure> {
    let page = context.chain()?.audit(wanted)?;
    let out = context.out;
    for entry in &page.records {
        let line = format!("{:>8}  {:>8}  {:<11} {}", entry.index, entry.height, entry.kind, short(&entry.who));
        out.say(format_args!("{line}  {}", brief(&entry.said)));
    }
    if let Some(next) = page.next {
        out.say(format_args!("more: --from {next}"));
    }
    out.emit(&page);
    Ok(Exit::Ok)
}

/// The parts of a record that fit on a line.
fn brief(said: &Value) -> String {
    let part = |name: &str| match said.get(name) {
        Some(Value::String(text)) if text.len() == 64 => Some(format!("{name} {}", short(text))),
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Null) | None => None,
        Some(other) => Some(format!("{name} {other}")),
    };
    ["function", "bundle", "operation", "operations", "code", "before", "after"]
        .iter()
        .filter_map(|name| part(name))
        .collect::<Vec<_>>()
        .join(", ")
}

fn proof(index: u64, root: Option<Root>, context: &Context<'_>) -> Result<Exit, Failure> {
    let answer = context.chain()?.audit_proof(index)?;
    let bytes = unhex(&answer.proof).map_err(|error| Failure::integrity(format!("the proof: {error}")))?;
    let proof = AuditProof::from_bytes(&bytes).map_err(|error| Failure::integrity(format!("the proof: {error}")))?;
    let hasher: HashKind =
        answer.hasher.parse().map_err(|_| Failure::integrity(format!("there is no hasher {:?}", answer.hasher)))?;
    if let Some(root) = root.filter(|root| *root != proof.root) {
        return Err(Failure::integrity(format!("the proof is under root {}, not under {root}", proof.root)));
    }
    let verdict = match hasher {
        HashKind::Blake3 => proof.verify::<Blake3>(),
        HashKind::Sha256 => proof.verify::<Sha256>(),
    };
    verdict.map_err(|error| Failure::integrity(error.to_string()))?;
    // What is shown is what was proven, not what the answer says beside it.
    let proven = audit::show_proof(&context.application.registry, &proof, hasher);
    if proven.entry.index != index || answer.entry.record != proven.entry.record {
        return Err(Failure::integrity(format!("the proof is of another record than {index}")));
    }
    let out = context.out;
    out.say(out.ink(Ink::Good, "✓ the record is in the log of this root"));
    out.row("record", format_args!("{} of {}, {}", index, grouped(proof.log.count()), proven.entry.kind));
    out.row("height", proven.entry.height);
    out.row("who", &proven.entry.who);
    out.row("root", &proven.root);
    out.emit(&proven);
    Ok(Exit::Ok)
}

fn verify(file: Option<&Path>, context: &Context<'_>) -> Result<Exit, Failure> {
    let kept = file.map(|file| audit::read_signed(&read_input(file)?)).transpose()?;
    let chain = context.open_chain()?;
    let out = context.out;
    let bar = out.progress("verifying", chain.status()?.height);
    let verdict = chain.verify_audit(&mut |height| bar.set_position(height.0));
    bar.finish_and_clear();
    let AuditVerdict { first, count, verified, fault } = verdict?;
    if let Some(fault) = fault {
        out.say(format_args!("{} record {}: {}", out.ink(Ink::Bad, "✗"), fault.index, fault.what));
        out.row("height", grouped(fault.height.0));
        out.emit(&json!({
            "valid": false, "bad_record": fault.index, "height": fault.height.0, "what": fault.what,
            "first": first, "count": count, "verified": verified,
        }));
        return Ok(Exit::Integrity);
    }
    let mut known = None;
    if let Some(SignedCheckpoint { checkpoint: kept, .. }) = &kept {
        check_goes_on(kept, &audit::read_checkpoint(&chain.audit_checkpoint(None)?)?)?;
        let known = &*known.insert(chain.known_of(kept.height)?);
        audit::check_known(kept, known)?;
        let answer = chain.audit_checkpoint(Some(kept.log.count()))?;
        let now = audit::read_checkpoint(&answer)?;
        if !kept.log.extends_to(&now.log, &audit::read_consistency(&answer)?) {
            return Err(Failure::integrity(format!(
                "the log does not go on from the checkpoint of height {}: its first {} records were others",
                kept.height,
                kept.log.count()
            )));
        }
    }
    // Nothing that was looked at is wrong where nothing was: that is no verdict about the records.
    let (valid, exit) = match (verified, count) {
        (0, 1..) => {
            let what = "nothing was verified: none of the log's records are kept here. Verify an export of a node that keeps them";
            out.say(format_args!("{} {what}", out.ink(Ink::Quiet, "?")));
            (Value::Null, Exit::Unknown)
        }
        _ => {
            let sound = "✓ every record that is kept is what its block says, and all are in the log of the state";
            out.say(out.ink(Ink::Good, sound));
            (Value::Bool(true), Exit::Ok)
        }
    };
    // Of a height whose records were given up, and whose version is not kept, only the log can be compared.
    let root_compared = known.is_some_and(|known| known.root.is_some());
    if let Some(kept) = &kept {
        out.say(out.ink(Ink::Good, "✓ the log goes on from the checkpoint"));
        let of_root = if root_compared { "" } else { "; its root is not known here any more" };
        out.row("checkpoint", format_args!("height {}{of_root}", grouped(kept.checkpoint.height.0)));
        out.row("signed by", kept.signer);
    }
    out.row("records", format_args!("{} to {}", grouped(first), grouped(count)));
    out.emit(&json!({
        "valid": valid, "first": first, "count": count, "verified": verified, "checkpoint": kept.is_some(),
        "checkpoint_root_compared": root_compared, "checkpoint_signer": kept.map(|kept| kept.signer.to_string()),
    }));
    Ok(exit)
}

/// Refuses a checkpoint of another chain, or one that the log is shorter than, or the chain below.
fn check_goes_on(kept: &Checkpoint, found: &Checkpoint) -> Result<(), Failure> {
    audit::check_same_chain(kept, found)?;
    if kept.height > found.height {
        let (kept, found) = (kept.height, found.height);
        return Err(Failure::integrity(format!(
            "the checkpoint is of height {kept}, the chain is at {found}: it was cut"
        )));
    }
    if kept.log.count() > found.log.count() {
        let (kept, found) = (kept.log.count(), found.log.count());
        return Err(Failure::integrity(format!("the checkpoint has {kept} records, the log has {found}: it was cut")));
    }
    Ok(())
}

/// The lines of a file, each of them bounded. One that is none is damage.
fn lines(file: &Path) -> Result<impl Iterator<Item = Result<String, Failure>>, Failure> {
    let shown = file.display().to_string();
    match File::open(file) {
        Ok(file) => Ok(audit::lines(BufReader::new(file), shown)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Failure::usage(format!("there is no file {shown}")))
        }
        Err(error) => Err(Failure::io(format_args!("could not open {shown}"), &error)),
    }
}

fn verify_file(
    file: &Path,
    root: Option<Root>,
    checkpoint: Option<&Path>,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let signed = checkpoint.map(|file| audit::read_signed(&read_input(file)?)).transpose()?;
    let kept = signed.as_ref().map(|signed| &signed.checkpoint);
    let out = context.out;
    match audit::verify_export(&context.application.registry, lines(file)?, root, kept)? {
        Ok(exported) => {
            out.say(out.ink(Ink::Good, "✓ every record of the export is in the log at its place"));
            out.row("records", format_args!("{} from {}", grouped(exported.records), grouped(exported.from)));
            let found = &exported.checkpoint;
            out.row("chain", format_args!("{}, genesis {}", found.chain_id, short(found.genesis_hash)));
            let trust = if root.is_some() { "given" } else { "the export's own: compare it with one you trust" };
            out.row("root", format_args!("{} ({trust})", found.root.0));
            out.row("log", format_args!("{}, in the state of this root", short(found.log.root())));
            let last = exported.last.map_or_else(|| "none".to_owned(), |last| grouped(last.0));
            out.row("last block", last);
            if let Some(signed) = &signed {
                out.row("checkpoint", format_args!("height {}", grouped(signed.checkpoint.height.0)));
                out.row("signed by", signed.signer);
            }
            // The height above the last record is nowhere in the state.
            out.emit(&json!({
                "valid": true, "from": exported.from, "records": exported.records, "root": found.root.0,
                "root_given": root.is_some(), "chain_id": found.chain_id.as_str(), "genesis_hash": found.genesis_hash,
                "hasher": exported.hasher, "log_root": found.log.root().to_string(), "last_block": exported.last,
                "claimed": { "height": found.height.0 }, "checkpoint": signed.is_some(),
                "checkpoint_signer": signed.as_ref().map(|signed| signed.signer.to_string()),
            }));
            Ok(Exit::Ok)
        }
        Err(BadRecord { index, what }) => {
            out.say(format_args!("{} record {index}: {what}", out.ink(Ink::Bad, "✗")));
            out.emit(&json!({ "valid": false, "bad_record": index, "what": what }));
            Ok(Exit::Integrity)
        }
    }
}

fn export(from: Option<u64>, to: Option<u64>, file: Option<&Path>, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain = context.open_chain()?;
    let Some(file) = file else {
        let range = chain.export_audit(from, to, &mut |line: &Value| {
            context.out.write(&format!("{line}\n"));
            match context.out.is_broken() {
                true => Err(Failure::error("standard output was closed")),
                false => Ok(()),
            }
        });
        return match range {
            // Its reader had enough.
            Err(_) if context.out.is_broken() => Ok(Exit::Ok),
            range => range.map(|_| Exit::Ok),
        };
    };
    let range = newfile::create(file, |out| {
        let mut line = |line: &Value| writeln!(out, "{line}").map_err(|error| newfile::failed(file, &error));
        chain.export_audit(from, to, &mut line)
    })?;
    let records = range.end - range.start;
    context.out.row("records", format_args!("{} from {}", grouped(records), grouped(range.start)));
    context.out.row("file", file.display());
    context.out.emit(&json!({ "from": range.start, "records": records, "file": file.display().to_string() }));
    Ok(Exit::Ok)
}

fn checkpoint(key: &str, file: Option<&Path>, context: &Context<'_>) -> Result<Exit, Failure> {
    let key = context.keys().load(key)?;
    let answer: api::AuditCheckpoint = context.chain()?.audit_checkpoint(None)?;
    // Nothing is signed that the state of its root does not say.
    let (checkpoint, _) = audit::proven_checkpoint(&answer)
        .map_err(|failure| Failure::integrity(format!("where the log stands: {}", failure.message)))?;
    let signed = checkpoint.sign(&key);
    let value = audit::signed_json(&signed);
    let text = format!("{value}\n");
    let Some(file) = file else {
        context.out.write(&text);
        return Ok(Exit::Ok);
    };
    newfile::write(file, text.as_bytes())?;
    context.out.row("height", grouped(signed.checkpoint.height.0));
    context.out.row("records", grouped(signed.checkpoint.log.count()));
    context.out.row("signer", signed.signer);
    context.out.emit(&value);
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::engine;
    use crate::home::Home;
    use crate::own_log::{self, Stood, Who};
    use keelstone_codec::{ChainId, Timestamp};
    use keelstone_ledger::modules::standard;
    use keelstone_ledger::{Genesis, NodeStep, SecretKey};

    /// Whichever byte of an export is another, and wherever it is cut off, that is damage or nothing that was signed: never
    /// a fault of the machine or of whoever asks.
    fn is_damage_or_nothing(export: &str, verify: &dyn Fn(&Path) -> Result<Exit, Failure>) {
        let place = tempfile::tempdir().expect("a temporary directory");
        let file = place.path().join("export");
        let exit = |bytes: &[u8]| {
            std::fs::write(&file, bytes).expect("written");
            verify(&file).unwrap_or_else(|failure| failure.exit)
        };
        let bytes = export.as_bytes();
        assert_eq!(exit(bytes), Exit::Ok);
        assert_eq!(exit(&bytes[..bytes.len() - 1]), Exit::Integrity, "the last line ends early");
        for index in 0..bytes.len() {
            let mut other = bytes.to_vec();
            other[index] ^= 1;
            let found = exit(&other);
            assert!(matches!(found, Exit::Ok | Exit::Integrity), "another byte at {index}: {found:?}");
            if index % 16 == 0 {
                other[index] = 0xff;
                assert_eq!(exit(&other), Exit::Integrity, "no UTF-8 at {index}");
                assert_eq!(exit(&bytes[..index]), Exit::Integrity, "cut at {index}");
            }
        }
    }

    /// spec: AUDIT-2
    #[test]
    fn an_export_that_was_tampered_with_is_damage() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        home.write_genesis(&Genesis::new(ChainId::new("audited").expect("a name"))).expect("written");
        let chain = engine::open(&home, &Config::default(), &standard()).expect("a new chain");
        for time in 1..=2 {
            chain.produce(Timestamp(time), SecretKey::from_seed(&[7; 32]).public(), true).expect("a block");
        }
        let mut export = String::new();
        let mut line = |line: &Value| {
            export.push_str(&format!("{line}\n"));
            Ok(())
        };
        chain.export_audit(None, None, &mut line).expect("exported");
        is_damage_or_nothing(&export, &|file| match audit::verify_export(&standard(), lines(file)?, None, None)? {
            Ok(_) => Ok(Exit::Ok),
            Err(_) => Ok(Exit::Integrity),
        });
    }

    /// spec: AUDIT-13
    #[test]
    fn an_export_of_the_node_s_own_log_that_was_tampered_with_is_damage() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let own = OwnLog::of(&Home::new(place.path().to_owned()));
        for height in 1..=2 {
            let event = NodeEvent::MadeSnapshot { height: Height(height) };
            own.note(Who::Node, event, NodeStep::Done, Stood::default()).expect("put on record");
        }
        let (start, end) = own.ends().expect("it can be read").expect("there is one");
        let mut text = vec![own_log::export_head(&start)];
        own.verify(None, &mut |index, next| text.push(own_log::export_line(index, next))).expect("it can be read");
        text.push(own_log::export_end(&end));
        let export: String = text.iter().map(|line| format!("{line}\n")).collect();
        is_damage_or_nothing(&export, &|file| {
            let verdict = own_log::verify_export(lines(file)?, None, &mut |_, _| {})?;
            Ok(if verdict.fault.is_none() { Exit::Ok } else { Exit::Integrity })
        });
    }
}
