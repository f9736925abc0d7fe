//! The report of a recovery: who signs it, where it is kept, and how it reads.

use super::Recovered;
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::interrupt::Stop;
use crate::keyfile::{KeyDir, PRODUCER, Stored};
use crate::newfile;
use keelstone_codec::Encode as _;
use keelstone_execution::PublicKey;
use keelstone_ledger::{SecretKey, Signature, verify};
use keelstone_sync::recovery::{Failed, Report, SignedReport, Strategy};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The key that reports are signed with: the producer's, or one of the node's own, made when it is needed first. Nobody is
/// asked for a passphrase by a node that recovers while it starts, so the producer's must be in the clear; and a key that cannot
/// be read is no reason to leave a state damaged.
pub(super) fn signer(home: &Home) -> Result<SecretKey, Failure> {
    const NODE: &str = "node";
    let keys = KeyDir::new(home.path());
    let producer = match keys.path(PRODUCER)?.exists() {
        true => keys.stored(PRODUCER).map_or_else(
            |failure| {
                tracing::warn!(%failure, "the report is signed with the key {NODE:?}");
                None
            },
            Stored::into_plain,
        ),
        false => None,
    };
    producer.map_or_else(|| keys.load_or_make(NODE), Ok)
}

/// Where reports are kept.
pub(super) fn reports(home: &Home) -> Result<PathBuf, Failure> {
    let directory = home.path().join("recoveries");
    newfile::create_dir(&directory).map_err(|error| Failure::io(directory.display(), &error))?;
    Ok(directory)
}

// spec: RECOVER-5
pub(super) fn sign(key: &SecretKey, report: Report) -> SignedReport {
    let signature = key.sign(&report.sign_bytes()).0;
    SignedReport { key: key.public().0, signature, report }
}

pub(super) fn keep(path: &Path, signed: &SignedReport) -> Result<(), Failure> {
    newfile::write(path, &signed.to_bytes())
}

/// Checks who signed a report; the key is compared with the one that is expected, if one is.
// spec: RECOVER-5
pub(crate) fn verify_report(signed: &SignedReport, expected: Option<&PublicKey>) -> Result<(), Failure> {
    let key = PublicKey(signed.key);
    if let Some(expected) = expected.filter(|expected| **expected != key) {
        return Err(Failure::integrity(format!("the report is signed by {key}, not by {expected}")));
    }
    verify(&key, &signed.report.sign_bytes(), &Signature(signed.signature))
        .map_err(|error| Failure::integrity(format!("the report: {error}")))
}

/// A report as JSON.
pub(crate) fn show(signed: &SignedReport) -> Value {
    let SignedReport { report, key, .. } = signed;
    let attempt = |attempt: &keelstone_sync::recovery::Attempt| {
        json!({
            "strategy": attempt.strategy.name(), "failed": attempt.failed.as_ref().map(ToString::to_string),
            "entries": attempt.entries, "blocks": attempt.blocks,
        })
    };
    json!({
        "chain_id": report.chain_id.to_string(),
        "genesis_hash": report.genesis_hash.to_string(),
        "began": report.began.0,
        "ended": report.ended.0,
        "height": report.height.0,
        "root": report.root.to_string(),
        "trust": report.trust.name(),
        "checked": report.depth.name(),
        "recovered_by": report.recovered_by().map(Strategy::name),
        "attempts": report.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "signed_by": PublicKey(*key).to_string(),
    })
}

/// What is said where nothing was recovered: why, and whether it is this machine that has to be looked at.
pub(crate) fn failure(recovered: &Recovered, stop: &Stop) -> Failure {
    if let Err(stopped) = stop.check() {
        let message = format!("{}: nothing was recovered, and the old state is kept", stopped.message);
        return Failure { message, ..stopped }
            .hint("the same again goes on with what was fetched, which waits in data/joining");
    }
    let failed: Vec<_> = recovered
        .outcome
        .attempts
        .iter()
        .filter_map(|(strategy, result)| Some((strategy, result.as_ref().err()?)))
        .collect();
    let said: Vec<String> = failed.iter().map(|(strategy, failed)| format!("{strategy}: {failed}")).collect();
    // One that had nothing to work with says nothing of what the others met.
    let mut met = failed.iter().filter(|(_, failed)| !matches!(failed, Failed::Unavailable(_))).peekable();
    let is_machine =
        met.peek().is_some() && met.all(|(_, failed)| matches!(failed, Failed::Machine(_) | Failed::NoRoom { .. }));
    let (exit, hint) = match is_machine {
        true => (Exit::Error, "the old state is kept; look at this machine and its disk, and try again"),
        false => (Exit::Integrity, "the old state is kept; docs/recovery.md says what else there is"),
    };
    Failure::new(exit, format!("nothing was recovered; {}", said.join("; "))).hint(hint)
}
