//! Async bundles from the command line: submitted, watched, stopped by a failure, corrected, taken back.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{chain, expect, post, register};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A file of operations that run in batches, one each.
pub(crate) fn file(home: &Path, calls: &[Value]) -> PathBuf {
    let path = home.join("batches.json");
    let borders: Vec<usize> = (1..calls.len()).collect();
    std::fs::write(&path, json!({ "operations": calls, "batches": { "borders": borders } }).to_string()).unwrap();
    path
}

/// Submits a bundle and waits for its end; what is known of it then.
pub(crate) fn submit(home: &Path, code: i32, calls: &[Value]) -> Value {
    let path = file(home, calls);
    expect(home, code, &["bundle", "submit", path.to_str().unwrap(), "--from", "producer"])
}

#[test]
fn a_bundle_runs_in_batches_until_it_is_complete() {
    let home = chain();
    let done = submit(home.path(), 0, &[register(), post("one"), post("two")]);
    assert_eq!((done["status"].as_str(), done["current_operation"].as_u64()), (Some("complete"), Some(3)));
    assert!(done["updated"].as_u64() >= done["submitted"].as_u64().map(|height| height + 3), "a batch a block: {done}");
    let id = done["id"].as_str().unwrap();
    assert_eq!(expect(home.path(), 0, &["bundle", "status", id]), done);
    assert_eq!(expect(home.path(), 0, &["bundle", "list"]), json!([]), "nothing is in flight");
    expect(home.path(), 14, &["bundle", "status", &"00".repeat(32)]);
    assert_eq!(expect(home.path(), 0, &["replay"])["height"], done["updated"], "blocks of batches are replayed");
}

#[test]
fn a_bundle_that_stopped_is_corrected_or_taken_back() {
    let home = chain();
    submit(home.path(), 0, &[register()]);
    let bad = [post("three"), register(), post("four")];

    let stopped = submit(home.path(), 13, &bad);
    assert_eq!((stopped["status"].as_str(), stopped["current_operation"].as_u64()), (Some("stopped"), Some(1)));
    assert!(stopped["failure"]["reason"].as_str().unwrap().contains("is an agent already"), "{stopped}");
    let id = stopped["id"].as_str().unwrap();
    assert_eq!(expect(home.path(), 0, &["bundle", "list"])[0]["id"], id);
    let good = file(home.path(), &[post("three"), post("instead"), post("four")]);
    let retry = ["bundle", "retry", id, good.to_str().unwrap(), "--operation", "1", "--from", "producer"];
    expect(home.path(), 0, &retry);
    let done = expect(home.path(), 0, &["bundle", "status", id]);
    assert_eq!((done["status"].as_str(), done["revision"].as_u64()), (Some("complete"), Some(1)), "{done}");

    let stopped = submit(home.path(), 13, &bad);
    let id = stopped["id"].as_str().unwrap();
    expect(home.path(), 0, &["bundle", "cancel", id, "--from", "producer"]);
    let gone = expect(home.path(), 0, &["bundle", "status", id]);
    assert_eq!(gone["status"], "rolled_back");
    assert_ne!(gone["state_hash"], stopped["state_hash"], "the chain of the session is extended, not cut");
}
