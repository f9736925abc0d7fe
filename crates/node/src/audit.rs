//! The audit log as JSON: records as they are shown, checkpoint files, and exports that an outsider can verify.
//!
//! Every line of an export carries the record's bytes, what they say, and a proof of its place; whoever reads one renders
//! the bytes again and compares, so that what a person reads is what was proven. Forms: `docs/audit.md`.

use crate::api;
use crate::exit::{Exit, Failure};
use crate::strict_json;
use keelstone_codec::{ChainId, Decode, Encode, Hash, Height, Root, unhex};
use keelstone_execution::mmr::{Mmr, MmrConsistency, MmrInclusion};
use keelstone_execution::{FunctionHash, Registry};
use keelstone_ledger::{
    AuditEvent, AuditLog, AuditProof, AuditRecord, AuditWalk, Checkpoint, KnownOfHeight, LoggedRecord, SignedCheckpoint,
};
use keelstone_tree::{Blake3, HashKind, Sha256};
use serde_json::{Value, json};
use std::io::{BufRead, Read as _};

/// The form of an export that this program writes and reads.
const EXPORT: u32 = 2;
/// No honest line of an export is longer: the first holds a proof of a chain's facts, which name at most 1,024 keys.
const LINE_BYTES_MAX: u64 = 256 * 1024;

/// A function by its name, if this program has it.
fn function(registry: &Registry, hash: &FunctionHash) -> Value {
    registry.function(hash).map_or_else(|| json!(hash.0.to_string()), |entry| json!(entry.label()))
}

/// What a record says.
fn said(registry: &Registry, event: &AuditEvent) -> Value {
    match event {
        AuditEvent::Operation(operation) => json!({
            "bundle": operation.bundle.to_string(), "operation": operation.operation,
            "session": operation.session.to_string(), "sequence": operation.sequence,
            "function": function(registry, &operation.function), "args": operation.args.to_string(),
            "result": operation.result.to_string(), "diff": operation.diff.digest.to_string(),
            "changed": operation.diff.entries, "before": operation.before.0.to_string(),
            "after": operation.after.0.to_string(),
        }),
        AuditEvent::RolledBack { by, bundle, session, before, after, diff, .. } => json!({
            "bundle": bundle.to_string(), "by": by.to_string(), "session": session.to_string(),
            "before": before.0.to_string(), "after": after.0.to_string(), "diff": diff.to_string(),
        }),
        AuditEvent::Failed { bundle, operation, function: called, code, .. } => json!({
            "bundle": bundle.to_string(), "operation": operation, "function": function(registry, called),
            "code": code,
        }),
        AuditEvent::Submitted { bundle, session, operations, .. } => json!({
            "bundle": bundle.to_string(), "session": session.to_string(), "operations": operations,
        }),
        AuditEvent::Ended { bundle, session, operations, abandoned, state_hash, .. } => json!({
            "bundle": bundle.to_string(), "session": session.to_string(), "operations": operations,
            "abandoned": abandoned, "state_hash": state_hash.0.to_string(),
        }),
        AuditEvent::Block(block) => json!({
            "time": block.time.0, "before": block.before.0.to_string(),
            "previous_record": block.previous_record.to_string(),
            "transactions_root": block.transactions_root.to_string(),
            "receipts_root": block.receipts_root.to_string(),
            "continuations_root": block.continuations_root.to_string(),
        }),
    }
}

/// A record as it is shown.
pub(crate) fn show(registry: &Registry, logged: &LoggedRecord) -> api::AuditEntry {
    let record = &logged.record;
    api::AuditEntry {
        index: logged.index,
        height: record.height.0,
        kind: record.kind().to_owned(),
        who: record.who().to_string(),
        said: said(registry, &record.event),
        record: hex::encode(record.to_bytes()),
    }
}

/// A record with its proof, as it is answered. Nothing is said beside what the proof says.
pub(crate) fn show_proof(registry: &Registry, proof: &AuditProof, hasher: HashKind) -> api::AuditAnswer {
    let logged = LoggedRecord { index: proof.inclusion.index, record: proof.record.clone() };
    api::AuditAnswer {
        entry: show(registry, &logged),
        height: proof.height.0,
        root: proof.root.0.to_string(),
        hasher: hasher.to_string(),
        proof: hex::encode(proof.to_bytes()),
    }
}

/// Where the log stands, as it is answered.
pub(crate) fn show_checkpoint(
    (checkpoint, state_proof): (&Checkpoint, &[u8]),
    since: Option<(u64, MmrConsistency)>,
    hasher: &str,
) -> api::AuditCheckpoint {
    api::AuditCheckpoint {
        chain_id: checkpoint.chain_id.to_string(),
        genesis_hash: checkpoint.genesis_hash.to_string(),
        height: checkpoint.height.0,
        root: checkpoint.root.0.to_string(),
        hasher: hasher.to_owned(),
        count: checkpoint.log.count(),
        log: hex::encode(checkpoint.log.to_bytes()),
        state_proof: hex::encode(state_proof),
        since: since.as_ref().map(|(count, _)| *count),
        consistency: since.map(|(_, proof)| hex::encode(proof.to_bytes())),
    }
}

/// What hexadecimal digits encode.
///
/// # Errors
/// [`Exit::Usage`](crate::exit::Exit::Usage) for what are no digits, [`Exit::Integrity`](crate::exit::Exit::Integrity) for bytes that
/// encode nothing of the kind: which of the bytes was changed does not matter.
pub(crate) fn decoded<T: Decode>(what: &str, digits: &str) -> Result<T, Failure> {
    let bytes = unhex(digits).map_err(|error| Failure::usage(format!("{what}: {error}")))?;
    T::from_bytes(&bytes).map_err(|error| Failure::integrity(format!("{what}: {error}")))
}

/// Reads back what [`show_checkpoint`] shows.
pub(crate) fn read_checkpoint(shown: &api::AuditCheckpoint) -> Result<Checkpoint, Failure> {
    let usage = |what: &str, error: &dyn std::fmt::Display| Failure::usage(format!("{what}: {error}"));
    let log: Mmr<AuditLog> = decoded("the log", &shown.log)?;
    if log.count() != shown.count {
        return Err(Failure::usage(format!("the log has {} records, not {}", log.count(), shown.count)));
    }
    Ok(Checkpoint {
        chain_id: ChainId::new(&shown.chain_id).map_err(|error| usage("the chain id", &error))?,
        genesis_hash: Hash::from_hex(&shown.genesis_hash).map_err(|error| usage("the genesis' hash", &error))?,
        height: Height(shown.height),
        root: Root::from_hex(&shown.root).map_err(|error| usage("the root", &error))?,
        log,
    })
}

/// Reads back what [`show_checkpoint`] shows, once its proof holds: that the state of its root says so. Gives the height of the
/// last block record as well.
// spec: AUDIT-14
pub(crate) fn proven_checkpoint(shown: &api::AuditCheckpoint) -> Result<(Checkpoint, Option<Height>), Failure> {
    let checkpoint = read_checkpoint(shown)?;
    let hasher = shown.hasher.parse::<HashKind>().map_err(|error| Failure::usage(format!("the hasher: {error}")))?;
    let proof = unhex(&shown.state_proof).map_err(|error| Failure::usage(format!("the proof: {error}")))?;
    let last = match hasher {
        HashKind::Blake3 => checkpoint.verify_state::<Blake3>(&proof),
        HashKind::Sha256 => checkpoint.verify_state::<Sha256>(&proof),
    };
    let last = last.map_err(|error| Failure::integrity(error.to_string()))?;
    Ok((checkpoint, last))
}

/// Refuses a checkpoint of another chain.
pub(crate) fn check_same_chain(kept: &Checkpoint, found: &Checkpoint) -> Result<(), Failure> {
    let of =
        |checkpoint: &Checkpoint| format!("chain {} with genesis {}", checkpoint.chain_id, checkpoint.genesis_hash);
    match same_chain(kept, found) {
        true => Ok(()),
        false => {
            Err(Failure::integrity(format!("the checkpoint is of another chain: {}, this is {}", of(kept), of(found))))
        }
    }
}

/// Refuses a checkpoint that says something else of its height than what is known of it.
// spec: AUDIT-7
pub(crate) fn check_known(kept: &Checkpoint, known: &KnownOfHeight) -> Result<(), Failure> {
    let height = kept.height;
    if let Some(root) = known.root.filter(|root| *root != kept.root) {
        return Err(Failure::integrity(format!(
            "the checkpoint of height {height} has root {}, it is {root}",
            kept.root
        )));
    }
    let kept = kept.log.count();
    match known.count.filter(|count| *count != kept) {
        Some(count) => Err(Failure::integrity(format!(
            "the checkpoint has {kept} records, at height {height} the log had {count}"
        ))),
        None => Ok(()),
    }
}

/// Whether two checkpoints are of one chain.
fn same_chain(one: &Checkpoint, other: &Checkpoint) -> bool {
    (&one.chain_id, one.genesis_hash) == (&other.chain_id, other.genesis_hash)
}

/// The proof in an answer that a log goes on from an earlier one.
pub(crate) fn read_consistency(shown: &api::AuditCheckpoint) -> Result<MmrConsistency, Failure> {
    let digits = shown.consistency.as_ref().ok_or_else(|| Failure::usage("there is no proof of consistency in it"))?;
    decoded("the proof of consistency", digits)
}

/// A signed checkpoint as a file: what it says for people, and its bytes.
pub(crate) fn signed_json(signed: &SignedCheckpoint) -> Value {
    let checkpoint = &signed.checkpoint;
    json!({
        "chain_id": checkpoint.chain_id.to_string(),
        "genesis_hash": checkpoint.genesis_hash.to_string(),
        "height": checkpoint.height.0,
        "root": checkpoint.root.0.to_string(),
        "count": checkpoint.log.count(),
        "log_root": checkpoint.log.root().to_string(),
        "signer": signed.signer.to_string(),
        "checkpoint": hex::encode(signed.to_bytes()),
    })
}

/// Reads a signed checkpoint. Its signature is verified, and what it says for people is what the bytes say.
pub(crate) fn read_signed(text: &[u8]) -> Result<SignedCheckpoint, Failure> {
    let value: Value = strict_json::parse(text).map_err(|error| Failure::usage(format!("the checkpoint: {error}")))?;
    let digits = value.get("checkpoint").and_then(Value::as_str);
    let digits = digits.ok_or_else(|| Failure::usage("the checkpoint file has no member \"checkpoint\""))?;
    let signed: SignedCheckpoint = decoded("the checkpoint", digits)?;
    if signed_json(&signed) != value {
        return Err(Failure::integrity("the checkpoint file says something else than what was signed"));
    }
    signed.verify().map_err(|error| Failure::integrity(format!("the checkpoint: {error}")))?;
    Ok(signed)
}

/// The first line of an export.
pub(crate) fn export_head(shown: &api::AuditCheckpoint, from: u64, to: u64) -> Value {
    json!({ "audit_export": EXPORT, "from": from, "to": to, "checkpoint": shown })
}

/// The line of a record in an export.
pub(crate) fn export_line(registry: &Registry, logged: &LoggedRecord, proof: &MmrInclusion) -> Value {
    json!({ "entry": show(registry, logged), "proof": hex::encode(proof.to_bytes()) })
}

/// The lines of an export, each of them bounded; `shown` is what it is called. One that is none is damage.
pub(crate) fn lines(mut input: impl BufRead, shown: String) -> impl Iterator<Item = Result<String, Failure>> {
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if let Err(error) = read {
            return Some(Err(Failure::io(format_args!("could not read {shown}"), &error)));
        }
        let line = match line.pop() {
            None => return None,
            Some(b'\n') => String::from_utf8(line).map_err(|_| "a line is no UTF-8".to_owned()),
            Some(_) => Err(format!("a line ends early, or is longer than {LINE_BYTES_MAX} bytes")),
        };
        Some(line.map_err(|what| Failure::integrity(format!("{shown}: {what}"))))
    })
}

/// What a verified export holds.
#[derive(Debug)]
pub(crate) struct Exported {
    /// Where the log stood. The state of its root says so.
    pub(crate) checkpoint: Checkpoint,
    /// The hasher of that state.
    pub(crate) hasher: String,
    /// The height of the last block that changed anything; none before the first.
    pub(crate) last: Option<Height>,
    /// Its first record.
    pub(crate) from: u64,
    /// How many.
    pub(crate) records: u64,
}

/// The first record of an export that is wrong.
#[derive(Debug)]
pub(crate) struct BadRecord {
    pub(crate) index: u64,
    pub(crate) what: String,
}

/// The first line of an export.
struct Head {
    from: u64,
    to: u64,
    checkpoint: Checkpoint,
    hasher: String,
    last: Option<Height>,
}

/// Reads the first line of an export, and proves it.
fn read_head(line: &str) -> Result<Head, Failure> {
    let head: Value = strict_json::parse(line.as_bytes()).map_err(|error| Failure::usage(error.to_string()))?;
    let number = |name: &str| head.get(name).and_then(Value::as_u64);
    let (Some(version), Some(from), Some(to)) = (number("audit_export"), number("from"), number("to")) else {
        return Err(Failure::usage("it is not the head of an export"));
    };
    if version != u64::from(EXPORT) {
        let what = if version < u64::from(EXPORT) { "export it anew" } else { "a later version reads it" };
        return Err(Failure::usage(format!("the export has form {version}, this program reads {EXPORT}: {what}")));
    }
    let shown = head.get("checkpoint").cloned().unwrap_or_default();
    let shown: api::AuditCheckpoint =
        serde_json::from_value(shown).map_err(|error| Failure::usage(error.to_string()))?;
    let rendered = export_head(&shown, from, to).to_string();
    if shown.since.is_some() || shown.consistency.is_some() || rendered != line {
        return Err(Failure::usage("it is written otherwise than the head of an export"));
    }
    let (checkpoint, last) = proven_checkpoint(&shown)?;
    if to > checkpoint.log.count() || from > to {
        return Err(Failure::usage(format!("{from} to {to} of {} records", checkpoint.log.count())));
    }
    Ok(Head { from, to, checkpoint, hasher: shown.hasher, last })
}

/// A checkpoint that was kept, and how far it was compared with an export.
// spec: AUDIT-7
struct Kept<'a> {
    kept: &'a Checkpoint,
    /// Whether the export begins with the first record of all.
    whole: bool,
    /// The log up to the record that is looked at next.
    grown: Mmr<AuditLog>,
    /// The height of the record before.
    before: Option<Height>,
    /// Whether its records were met; its root is that before the next block.
    counted: bool,
    compared: bool,
}

impl<'a> Kept<'a> {
    fn begin(kept: &'a Checkpoint, head: &Head) -> Result<Self, Failure> {
        check_same_chain(kept, &head.checkpoint)?;
        let mut compared = false;
        if kept.log == head.checkpoint.log {
            // Nothing was changed between the two, whatever their heights.
            let (height, found) = (kept.height, &head.checkpoint);
            if kept.root != found.root {
                let message =
                    format!("the checkpoint has root {}, the same log stands under {}", kept.root, found.root);
                return Err(Failure::integrity(message));
            }
            if let Some(last) = head.last.filter(|last| *last > height) {
                return Err(Failure::integrity(format!(
                    "the checkpoint of height {height} has a record of block {last}"
                )));
            }
            compared = height <= found.height;
        }
        Ok(Self { kept, whole: head.from == 0, grown: Mmr::default(), before: None, counted: false, compared })
    }

    /// Looks at the next record, and at the root before its block if it is that of one.
    fn step(&mut self, record: &AuditRecord, root_before: Option<Root>) -> Result<(), String> {
        let Checkpoint { height, root, log, .. } = self.kept;
        if self.compared || !self.whole {
            return Ok(());
        }
        if !self.counted && log.count() == self.grown.count() {
            if *log != self.grown {
                return Err(format!("the {} records before it are not those of the checkpoint", log.count()));
            }
            if let Some(before) = self.before.filter(|before| before > height) {
                return Err(format!("the checkpoint of height {height} has a record of block {before}"));
            }
            if record.height <= *height {
                return Err(format!("the checkpoint of height {height} lacks this record of block {}", record.height));
            }
            self.counted = true;
        }
        if let (true, Some(before)) = (self.counted, root_before) {
            if before != *root {
                return Err(format!("its block stands on root {before}, the checkpoint of height {height} has {root}"));
            }
            self.compared = true;
        }
        self.grown.append(&record.item());
        self.before = Some(record.height);
        Ok(())
    }
}

/// Verifies an export line by line: that the state of its root holds its log; of each record that it is the next, its proof, that it
/// can follow those before it, and that what the line says for people is what its bytes say. A checkpoint that is trusted must be
/// that of the export, or that of a part of it from the start. Without a root that is trusted everything is shown to be in the log
/// of the root that the export names, and no more.
// spec: AUDIT-15
pub(crate) fn verify_export(
    registry: &Registry,
    mut lines: impl Iterator<Item = Result<String, Failure>>,
    root: Option<Root>,
    kept: Option<&Checkpoint>,
) -> Result<Result<Exported, BadRecord>, Failure> {
    let head = lines.next().ok_or_else(|| Failure::integrity("the export is empty"))??;
    // Whoever asks gave a file: what is wrong in it is none of their doing.
    let damaged = |failure: Failure| Failure::integrity(format!("line 1: {}", failure.message));
    let head = read_head(&head).map_err(damaged)?;
    let found = &head.checkpoint;
    if let Some(root) = root.filter(|root| *root != found.root) {
        return Err(Failure::integrity(format!("the export is under root {}, not under {root}", found.root)));
    }
    let mut kept = kept.map(|kept| Kept::begin(kept, &head)).transpose()?;
    let mut walk = AuditWalk::begin(found.chain_id.clone(), found.genesis_hash, head.from);
    let mut index = head.from;
    let bad = |index, what: String| Ok(Err(BadRecord { index, what }));
    for line in lines {
        let line = match line {
            Err(failure) if failure.exit == Exit::Integrity => return bad(index, failure.message),
            line => line?,
        };
        if index == head.to {
            return bad(index, "a line follows the last record".to_owned());
        }
        let Ok(value) = strict_json::parse::<Value>(line.as_bytes()) else {
            return bad(index, "the line is no JSON".to_owned());
        };
        let record = value.pointer("/entry/record").and_then(Value::as_str).map(|digits| decoded("record", digits));
        let proof = value.get("proof").and_then(Value::as_str).map(|digits| decoded("proof", digits));
        let (Some(Ok(record)), Some(Ok(proof))) = (record, proof) else {
            return bad(index, "the line holds no record and proof".to_owned());
        };
        let (record, proof): (AuditRecord, MmrInclusion) = (record, proof);
        if proof.index != index {
            return bad(index, format!("record {} stands where {index} should", proof.index));
        }
        if !found.log.includes(&record.item(), &proof) {
            return bad(index, "the record is not in the log at this place".to_owned());
        }
        let stepped = walk.step(&record).and_then(|before| match &mut kept {
            Some(kept) => kept.step(&record, before),
            None => Ok(()),
        });
        if let Err(what) = stepped {
            return bad(index, what);
        }
        let logged = LoggedRecord { index, record };
        let rendered = export_line(registry, &logged, &proof).to_string();
        if rendered != line {
            return bad(index, "the line says something else than the record".to_owned());
        }
        index += 1;
    }
    if index < head.to {
        let to = head.to;
        return bad(index, format!("the export ends before record {index}; it should hold those up to {to}"));
    }
    // The state names its last record, which is the log's.
    if head.to == found.log.count() && index > head.from && walk.ended() != head.last {
        let last = head.last.map_or_else(|| "none".to_owned(), |last| last.to_string());
        return bad(index - 1, format!("it should end the last block of the state, which is {last}"));
    }
    if let Some(Kept { kept, compared: false, .. }) = kept {
        let (count, height) = (kept.log.count(), kept.height);
        let message = format!(
            "a checkpoint of {count} records and height {height} cannot be compared with records {} to {} of height {}",
            head.from, head.to, found.height
        );
        return Err(
            Failure::usage(message).hint("export from the first record up to the end, later than the checkpoint")
        );
    }
    let Head { from, to, checkpoint, hasher, last } = head;
    Ok(Ok(Exported { checkpoint, hasher, last, from, records: to - from }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::CHAIN_ID_LEN_MAX;
    use keelstone_ledger::SecretKey;

    /// `docs/audit.md` says so. No log has more peaks than one of 2^63 - 1 records, and no chain a longer name.
    #[test]
    fn the_longest_checkpoint_takes_less_than_5_kb() {
        let count = (1_u64 << 63) - 1;
        let mut log = count.to_bytes();
        (0..count.count_ones()).for_each(|peak| log.extend([u8::try_from(peak).expect("below 64"); 32]));
        let checkpoint = Checkpoint {
            chain_id: ChainId::new(&"c".repeat(CHAIN_ID_LEN_MAX)).expect("the longest name"),
            genesis_hash: Hash([1; 32]),
            height: Height(u64::MAX),
            root: Root(Hash([2; 32])),
            log: Mmr::from_bytes(&log).expect("a log with all its peaks"),
        };
        let file = signed_json(&checkpoint.sign(&SecretKey::from_seed(&[7; 32]))).to_string();
        assert_eq!(read_signed(file.as_bytes()).expect("read back").checkpoint.log.count(), count);
        assert!(file.len() < 5_000, "{} bytes", file.len());
    }
}
