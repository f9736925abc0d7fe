//! Bundles from the command line: foreseen and proven with no store; submitted in batches, watched, stopped by a failure,
//! corrected, taken back.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, expect, expect_of, post, program, register};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

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
    assert!(
        done["updated_height"].as_u64() >= done["submitted_height"].as_u64().map(|height| height + 3),
        "a batch a block: {done}"
    );
    let id = done["id"].as_str().unwrap();
    assert_eq!(expect(home.path(), 0, &["bundle", "status", id]), done);
    assert_eq!(expect(home.path(), 0, &["bundle", "list"]), json!([]), "nothing is in flight");
    expect(home.path(), 14, &["bundle", "status", &"00".repeat(32)]);
    assert_eq!(expect(home.path(), 0, &["replay"])["height"], done["updated_height"], "blocks of batches are replayed");
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

/// What a document shows between a fence and the next.
fn shown<'a>(document: &'a str, fence: &str) -> &'a str {
    document.split_once(fence).unwrap().1.split_once("```").unwrap().0
}

/// The example of `docs/bundles.md`, run in a directory of its own: with a chain in `home`, and its files beside.
fn example() -> TempDir {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bundles.md")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("first.json"), shown(&document, "```json\n")).unwrap();
    for line in shown(&document, "```sh\n").lines() {
        let (words, comment) = line.split_once('#').unwrap_or((line, ""));
        let code = comment.split(' ').find_map(|word| word.trim_end_matches(':').parse().ok()).unwrap_or(0);
        let mut words = words.split_whitespace();
        assert_eq!(words.next(), Some("keelstone"));
        let words: Vec<&str> = words.collect();
        run(&directory, code, &words);
    }
    directory
}

fn run(directory: &TempDir, code: i32, arguments: &[&str]) -> Value {
    let mut command = program();
    command.current_dir(directory.path()).args(arguments).args(["--json", "--home", "home"]);
    expect_of(command, code)
}

/// spec: EXEC-17, HISTORY-8. What the documents tell is what happens, and what was foreseen is what the chain found.
#[test]
fn the_example_of_the_documents_runs_as_it_is_written() {
    let directory = example();
    let foreseen = run(&directory, 0, &["bundle", "verify", "sure.proof"]);
    let id = foreseen["transaction"]["id"].as_str().unwrap();
    let found = run(&directory, 0, &["query", "tx", id]);
    let outcomes = foreseen["receipt"]["outcomes"].as_array().unwrap();
    assert_eq!((outcomes.len(), &found["receipt"]["outcomes"]), (2, &foreseen["receipt"]["outcomes"]));
    let [first, second] = [0, 1].map(|at| &foreseen["transaction"]["operations"][at]);
    assert_eq!(first["expected_diff"], outcomes[0]["state_hash"], "{first}");
    assert_eq!(second["expected_own_diff"], outcomes[1]["diff_digest"], "{second}");
}

/// spec: HISTORY-9. Who changes a proof, trusts another root, or brings a file that is no witness is told what is wrong.
#[test]
fn what_is_wrong_with_a_proof_or_a_witness_is_told() {
    let directory = example();
    let file = directory.path().join("sure.proof");
    let good = std::fs::read(&file).unwrap();
    let verified = run(&directory, 0, &["bundle", "verify", "sure.proof"]);
    let (old, new) = (verified["old_root"].as_str().unwrap(), verified["new_root"].as_str().unwrap());
    run(&directory, 0, &["bundle", "verify", "sure.proof", "--old-root", old, "--new-root", new]);
    let told = |code, arguments: &[&str]| {
        let answer = run(&directory, code, &[&["bundle"], arguments].concat());
        answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    assert!(told(12, &["verify", "sure.proof", "--old-root", new]).contains("old root"));
    assert!(told(12, &["verify", "sure.proof", "--new-root", old]).contains("new root"));
    let mut changed = good.clone();
    // A byte of a name in the bundle: what was signed is another thing now.
    let at = changed.windows(3).position(|bytes| bytes == b"Ada").unwrap();
    changed[at] ^= 1;
    std::fs::write(&file, &changed).unwrap();
    assert!(told(12, &["verify", "sure.proof"]).contains("signature"));
    // What is cut off was a proof; what is something else was given by mistake.
    std::fs::write(&file, &good[..good.len() - 1]).unwrap();
    assert!(told(12, &["verify", "sure.proof"]).contains("no bundle proof"));
    std::fs::write(&file, "{}").unwrap();
    assert!(told(2, &["verify", "sure.proof"]).contains("no bundle proof"));

    // By now the nonce is used.
    run(&directory, 0, &["bundle", "witness", "first.bundle", "--out", "later.witness"]);
    assert!(told(13, &["simulate", "first.bundle", "--witness", "later.witness"]).contains("nonce 0 was used"));
    run(&directory, 0, &["bundle", "witness", "first.json", "--from", "producer", "--out", "later.witness"]);
    let fails =
        run(&directory, 13, &["bundle", "simulate", "first.json", "--from", "producer", "--witness", "later.witness"]);
    assert!(fails["receipt"]["failure"]["reason"].as_str().unwrap().contains("is an agent already"), "{fails}");
    assert!(
        told(13, &["expect", "first.json", "--from", "producer", "--witness", "later.witness"]).contains("operation 0")
    );
    let text = json!({ "operations": [post("when?")] }).to_string();
    std::fs::write(directory.path().join("post.json"), text).unwrap();
    let post = ["post.json", "--from", "producer"];
    run(&directory, 0, &[&["bundle", "witness"], &post[..], &["--out", "post.witness"]].concat());
    run(&directory, 0, &[&["bundle", "simulate"], &post[..], &["--witness", "post.witness"]].concat());
    assert!(told(2, &[&["expect"], &post[..], &["--witness", "post.witness"]].concat()).contains("the block's height"));
    assert!(told(2, &[&["simulate"], &post[..], &["--witness", "first.json"]].concat()).contains("the witness"));
}

/// spec: HISTORY-10. One operation is proven, of a bundle in one block and of one in batches, by a directory and by a running
/// node alike; whoever gets the file checks it with nothing else, and is told what is wrong with another.
#[test]
fn one_operation_is_proven_to_an_outsider() {
    let home = chain();
    let done = submit(home.path(), 0, &[register(), post("one"), post("two")]);
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("operation.json");
    let (id, path) = (done["id"].as_str().unwrap(), file.to_str().unwrap());
    let proven = expect(home.path(), 0, &["bundle", "prove-operation", id, "1", "--out", path]);
    assert_eq!((&proven["valid"], &proven["operation"], &proven["bundle"]), (&json!(true), &json!(1), &done["id"]));
    assert_eq!((&proven["function"], &proven["sequence"]), (&json!("memes.post/1"), &json!(1)));
    assert_eq!((&proven["height"], &proven["claimed"]["height"].is_u64()), (&Value::Null, &true), "it is in no proof");
    let root = proven["root"].as_str().unwrap();
    let verified = expect(elsewhere.path(), 0, &["bundle", "verify-operation", path, "--root", root]);
    assert_eq!((&verified["outcome"], &verified["root_given"]), (&proven["outcome"], &json!(true)));

    expect(elsewhere.path(), 12, &["bundle", "verify-operation", path, "--root", &"00".repeat(32)]);
    let text = std::fs::read_to_string(&file).unwrap();
    for (part, other, code) in [
        ("\"block\":", "\"block\":9", 12),
        ("\"proof\":\"0", "\"proof\":\"f", 12),
        ("\"proof\":\"0", "\"proof\":\"F", 2),
        ("{", "{\"more\":1,", 2),
        ("{", "[", 2),
    ] {
        std::fs::write(&file, text.replacen(part, other, 1)).unwrap();
        expect(elsewhere.path(), code, &["bundle", "verify-operation", path]);
    }
    expect(home.path(), 14, &["bundle", "prove-operation", id, "3"]);
    expect(home.path(), 14, &["bundle", "prove-operation", &"00".repeat(32), "0"]);

    let _node = Node::start(home.path(), &[]);
    let answer = expect(home.path(), 0, &["bundle", "prove-operation", id, "1"]);
    assert_eq!((&answer["proof"], &answer["outcome"]), (&proven["proof"], &proven["outcome"]));
}

/// A running node gives the witness that its directory gives.
#[test]
fn a_node_gives_a_witness_of_a_bundle_that_nobody_signed() {
    let home = chain();
    let file = home.path().join("register.json");
    std::fs::write(&file, json!({ "operations": [register()] }).to_string()).unwrap();
    let ask = ["bundle", "witness", file.to_str().unwrap(), "--from", "producer"];
    let alone = expect(home.path(), 0, &ask);
    let node = Node::start(home.path(), &[]);
    assert_eq!(expect(home.path(), 0, &ask), alone);
    let request = "POST /v1/witness HTTP/1.1\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n";
    let host = format!("Host: {}\r\nContent-Length: 3\r\n\r\nabc", node.address);
    let (status, body) = node.exchange(format!("{request}{host}").as_bytes());
    assert!(status == 400 && body.contains("no transaction"), "{status}: {body}");
    drop(node);
    let witness = home.path().join("witness");
    std::fs::write(&witness, alone.to_string()).unwrap();
    let simulate = ["bundle", "simulate", file.to_str().unwrap(), "--from", "producer", "--witness"];
    expect(home.path(), 0, &[&simulate[..], &[witness.to_str().unwrap()]].concat());
}
