//! For fuzzing only: what nobody outside the crate can reach, fed with any bytes. Not part of the interface.
//!
//! Each function reads as the node does what comes from outside, says whether it accepted it, and panics when a promise
//! is broken; beside it are inputs that it accepts. Signatures and hashes that a fuzzer could not guess are those of the
//! inputs, so whatever is believed has to say what these say. Called by `tools/hostile` (docs/decisions/0007).

pub use crate::abci::hostile::{abci_request, abci_request_seeds};
use crate::audit;
use crate::client::Answer;
pub use crate::cometbft::hostile::{engine_header, engine_header_seeds};
pub use crate::cometbft::light::hostile::{light_block, light_block_seeds};
use crate::exit::{Exit, Failure};
use crate::own_log;
pub use crate::p2p::hostile::{nearby_packet, nearby_packet_seeds, peer_frame, peer_frame_seeds};
use keelstone_codec::{ChainId, Encode as _, Hash, Height, Root, Text, Timestamp};
use keelstone_execution::{Bundle, Mode, Operation, Registry};
use keelstone_ledger::modules::{agents, memes, standard};
use keelstone_ledger::{
    Checkpoint, Genesis, Ledger, LedgerError, NodeCheckpoint, NodeEvent, NodeLog, NodeLogLimits, NodeRecord, NodeStep,
    PoolLimits, SecretKey, Signature, SignedCheckpoint, SignedNodeRecord, Standing, Transaction, cut,
};
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::MemoryKv;
use keelstone_store::{Options, Store};
use keelstone_tree::{Blake3, HashKind};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Reads what a server of HTTP answered, and says whether it is an answer. What it refuses is made a failure of.
///
/// # Panics
/// If the body is another than what follows the head, or somebody who did not ask for it is left alone.
#[must_use]
pub fn http_answer(input: &[u8]) -> bool {
    let Some(answer) = Answer::parse(input.to_vec()) else { return false };
    let (head, body) = input.split_at(input.len() - answer.body.len());
    assert!(body == answer.body && head.ends_with(b"\r\n\r\n"), "the body is another");
    assert_eq!(head.windows(4).filter(|four| four == b"\r\n\r\n").count(), 1, "the body begins earlier");
    match answer.wait() {
        Some(wait) => assert!(answer.status == 429 && wait >= Duration::from_secs(1), "it is asked again at once"),
        None => assert_ne!(answer.status, 429, "it is not left alone"),
    }
    if let Ok(refusal) = answer.refused() {
        assert_ne!(Failure::from(refusal).exit, Exit::Ok, "a refusal is no success");
    }
    true
}

/// Inputs that [`http_answer`] accepts: of each kind of refusal, and none.
#[must_use]
pub fn http_answer_seeds() -> Vec<Vec<u8>> {
    let refused = |status: u16, headers: &str, code: &str| {
        let error = json!({ "error": { "code": code, "message": "8: nonce 0 was used", "hint": "wait for a block" } });
        format!("HTTP/1.1 {status} No\r\n{headers}\r\n{error}").into_bytes()
    };
    let made_by = json!({ "code": "follows", "message": "it follows", "producer": { "api": "http://127.0.0.1:1" } });
    vec![
        b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"height\":3}".to_vec(),
        refused(429, "Retry-After: 7\r\n", "too_many"),
        refused(404, "", "not_found"),
        refused(403, "", "forbidden"),
        refused(422, "", "refused"),
        format!("HTTP/1.1 409 Conflict\r\n\r\n{}", json!({ "error": made_by })).into_bytes(),
    ]
}

// ---- what is handed on of the audit logs

/// A chain with a log, all of it exported.
struct Audited {
    registry: Registry,
    lines: Vec<String>,
    /// Where the log stood.
    end: Checkpoint,
    /// Where it stood before the last block.
    before: Checkpoint,
}

fn key() -> SecretKey {
    SecretKey::from_seed(&[5; 32])
}

static AUDITED: LazyLock<Audited> = LazyLock::new(|| {
    const SMALL: &str = "a small chain in memory";
    let store = Store::<Blake3>::create(Arc::new(MemoryFiles::new()), Options::default()).expect(SMALL);
    let genesis = Genesis::new(ChainId::new("hostile-1").expect("a name"));
    let kv = Arc::new(MemoryKv::new());
    let ledger = Ledger::create(store, kv, standard(), &genesis, PoolLimits::default()).expect(SMALL);
    let block = |nonce: u64, operation| {
        let transaction = Transaction {
            chain_id: genesis.chain_id.clone(),
            sender: key().public(),
            nonce,
            expiry_height: Height(9),
            session: None,
            bundle: Bundle::new(Mode::Sync, vec![operation]).expect("one operation"),
        };
        ledger.submit(&transaction.sign(&key()).to_bytes()).expect(SMALL);
        ledger.produce(Timestamp(nonce + 5), key().public()).expect(SMALL);
    };
    let name = Text::new("Ada").expect("short");
    let personality = agents::Personality::even(keelstone_codec::Fixed::from_micros(800_000));
    block(0, Operation::of(&agents::Register { name, personality, traits: Default::default() }));
    let before = ledger.audit_checkpoint().expect(SMALL);
    block(1, Operation::of(&memes::Post { text: Text::new("hello").expect("short") }));

    let registry = standard();
    let (end, state) = ledger.prove_checkpoint().expect(SMALL);
    let count = end.log.count();
    let shown = audit::show_checkpoint((&end, &state), None, HashKind::Blake3.name());
    let mut lines = vec![audit::export_head(&shown, 0, count).to_string()];
    let each = ledger.export_audit::<LedgerError>(&end, 0..count, &mut |logged, proof| {
        lines.push(audit::export_line(&registry, logged, proof).to_string());
        Ok(())
    });
    each.expect(SMALL);
    Audited { registry, lines, end, before }
});

static SIGNED: LazyLock<SignedCheckpoint> = LazyLock::new(|| AUDITED.end.clone().sign(&key()));

/// The lines of an export, as they are read from a file.
fn lines(input: &[u8]) -> impl Iterator<Item = Result<String, Failure>> {
    audit::lines(input, "the export".to_owned())
}

fn text(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line, "\n"]).collect::<String>().into_bytes()
}

/// Verifies an export of the audit log, or a checkpoint of it that somebody kept, and says whether it holds (spec:
/// AUDIT-7, AUDIT-15).
///
/// # Panics
/// If it says something else under the root of the honest one, if an honest checkpoint contradicts it, or if one that is
/// forged does not; or if a checkpoint counts that the honest key did not sign.
#[must_use]
pub fn audit_export(input: &[u8]) -> bool {
    let is_checkpoint = audit::read_signed(input).is_ok_and(|found| {
        assert!(found == *SIGNED || found.signer != SIGNED.signer, "nobody signed {found:?}");
        true
    });
    let honest = &*AUDITED;
    let verify = |root, kept| audit::verify_export(&honest.registry, lines(input), root, kept);
    let Ok(Ok(found)) = verify(None, None) else { return is_checkpoint };
    if found.checkpoint.root != honest.end.root {
        return true;
    }
    // The height above the last block that changed anything is nowhere in the state.
    let height = found.checkpoint.height;
    assert_eq!(found.checkpoint, Checkpoint { height, ..honest.end.clone() }, "two truths under one root");
    let [from, count] = [found.from, found.records].map(|number| usize::try_from(number).expect("few records"));
    let said: Vec<String> = lines(input).skip(1).map(|line| line.expect("it was verified")).collect();
    assert_eq!(said, honest.lines[1 + from..][..count], "two truths of one record");
    // What is only a part of the log may not be comparable.
    let kept = verify(Some(honest.end.root), Some(&honest.before));
    assert!(
        kept.map_or_else(|failure| failure.exit == Exit::Usage, |kept| kept.is_ok()),
        "a checkpoint is contradicted"
    );
    let forged = Checkpoint { root: Root(Hash([9; 32])), ..honest.before.clone() };
    assert!(!matches!(verify(None, Some(&forged)), Ok(Ok(_))), "a forged checkpoint is not contradicted");
    true
}

/// Inputs that [`audit_export`] accepts: all records, those of the last block, and a checkpoint.
#[must_use]
pub fn audit_export_seeds() -> Vec<Vec<u8>> {
    let Audited { lines, before, .. } = &*AUDITED;
    let mut head: Value = serde_json::from_str(&lines[0]).expect("written above");
    head["from"] = json!(before.log.count());
    let first = usize::try_from(before.log.count()).expect("few records");
    let part = [&[head.to_string()], &lines[1 + first..]].concat();
    vec![text(lines), text(&part), audit::signed_json(&SIGNED).to_string().into_bytes()]
}

/// The own log of a node: where it begins, its records, and where it stands.
struct Own {
    start: NodeCheckpoint,
    records: Vec<SignedNodeRecord>,
    end: NodeCheckpoint,
}

static OWN: LazyLock<Own> = LazyLock::new(|| {
    const SMALL: &str = "a small log in memory";
    let log = NodeLog::new(Arc::new(MemoryFiles::new()), NodeLogLimits::default());
    let standing = |height| Some(Standing { height: Height(height), root: Root(Hash([2; 32])) });
    let steps = [NodeStep::Begun, NodeStep::Failed { reason: cut("the disk is full".to_owned()) }, NodeStep::Done];
    for (step, time) in steps.into_iter().zip(5..) {
        let event = NodeEvent::RolledBack { to: Height(3) };
        let (who, time) = (cut("uid 7".to_owned()), Timestamp(time));
        let record = NodeRecord { time, who, event, step, before: standing(9), after: standing(3) };
        log.append(&key(), &record).expect(SMALL);
    }
    let mut records = Vec::new();
    log.verify(None, &mut |_, next| records.push(next.clone())).expect(SMALL);
    let [start, end] = [log.start(), log.checkpoint()].map(|found| found.expect(SMALL).expect("it was begun"));
    Own { start, records, end }
});

impl Own {
    /// Whether the node signed this of where its log stood.
    fn signed(&self, signature: &Signature) -> bool {
        *signature == self.start.signature || self.records.iter().any(|record| record.signature == *signature)
    }

    fn lines(&self) -> Vec<Value> {
        let records = (0..).zip(&self.records).map(|(index, next)| own_log::export_line(index, next));
        [own_log::export_head(&self.start)].into_iter().chain(records).chain([own_log::export_end(&self.end)]).collect()
    }
}

/// Verifies an export of a node's own log, or a checkpoint of it that somebody kept, and says whether it holds (spec:
/// AUDIT-13).
///
/// # Panics
/// If the honest key signed it and it says something else than the honest one, or something in it is not signed.
#[must_use]
pub fn node_log_export(input: &[u8]) -> bool {
    let (honest, key) = (&*OWN, OWN.start.key);
    let is_checkpoint = own_log::read_checkpoint(input).is_ok_and(|found| {
        assert!(found.key != key || honest.signed(&found.signature), "nobody signed {found:?}");
        true
    });
    let mut records = Vec::new();
    let mut each = |index, next: &SignedNodeRecord| records.push(own_log::export_line(index, next));
    let verdict = own_log::verify_export(lines(input), Some(key), &mut each);
    if !verdict.is_ok_and(|verdict| verdict.fault.is_none()) {
        return is_checkpoint;
    }
    let said: Vec<Value> =
        lines(input).map(|line| serde_json::from_str(&line.expect("it was verified")).expect("JSON")).collect();
    let [head, shown @ .., end] = said.as_slice() else { panic!("an export without a head and an end: {said:?}") };
    assert_eq!(shown, records, "what is shown is not what was verified");
    let first = head["from"].as_u64().and_then(|first| usize::try_from(first).ok()).expect("a number of records");
    let expected = &honest.lines()[1..][first..][..shown.len()];
    assert_eq!(shown, expected, "two truths of one node");
    for place in [&head["start"], &end["end"]] {
        assert!(own_log::read_checkpoint(place.to_string().as_bytes()).is_ok(), "nobody signed {place}");
    }
    true
}

/// Inputs that [`node_log_export`] accepts: all of it, nothing behind its end, and a checkpoint.
#[must_use]
pub fn node_log_export_seeds() -> Vec<Vec<u8>> {
    let text = |lines: &[Value]| self::text(&lines.iter().map(ToString::to_string).collect::<Vec<_>>());
    let (lines, end) = (OWN.lines(), &OWN.end);
    let nothing = [own_log::export_head(end), own_log::export_end(end)];
    vec![text(&lines), text(&nothing), own_log::checkpoint_json(end).to_string().into_bytes()]
}
