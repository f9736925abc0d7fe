//! Checks from the command line: of a directory, of a running node, and against another node.

use crate::support::{Node, chain, copy, expect, post, register, send};
use serde_json::{Value, json};
use std::fs;

/// A chain of its own, with nobody to ask, is consistent with itself; the cursor goes on from check to check, and
/// damage that is in the way is found.
#[test]
fn a_chain_without_peers_is_checked_against_itself() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    for text in ["second", "third"] {
        send(home.path(), 0, &json!([post(text)]));
    }
    for arguments in [&["check"][..], &["check", "--quick"], &["check", "--peers"], &["check", "--full"]] {
        let found = expect(home.path(), 0, arguments);
        assert_eq!((&found["verdict"], &found["certified"]["by"]), (&json!("consistent"), &json!("own_blocks")));
        assert_eq!((&found["whole_state"], &found["discrepancies"]), (&json!(false), &json!([])));
        assert_eq!(found["every_value_read"], json!(arguments.contains(&"--full")));
    }
    let status = expect(home.path(), 0, &["check", "status"]);
    assert_eq!((&status["running"], &status["cursor"]["passes"]), (&json!(false), &json!(3)));
    let piece = ["check", "--set", "check.account_sample_size=2"];
    let first = expect(home.path(), 0, &piece)["cursor"].clone();
    let second = expect(home.path(), 0, &piece)["cursor"].clone();
    assert_eq!((&first["entries"], &second["entries"]), (&json!(2), &json!(4)));
    assert_ne!(first["next"], second["next"]);
    // A cursor that cannot be read costs nothing but what it kept.
    let cursor = home.path().join("data/check.cursor");
    let mut bytes = fs::read(&cursor).unwrap();
    bytes[9] ^= 1;
    fs::write(&cursor, bytes).unwrap();
    assert_eq!(expect(home.path(), 0, &piece)["cursor"]["entries"], 2);
    expect(home.path(), 2, &["check", "pause"]);
    expect(home.path(), 2, &["check", "--full", "--quick"]);
    expect(home.path(), 2, &["check", "--set", "check.peers=nowhere"]);
}

/// Two nodes begin alike and part. Each finds out, says what the other said, and where it began; a node that does not
/// answer makes the result unknown, and what others say of their root takes neither out of service.
#[test]
fn a_node_finds_the_height_and_the_entry_at_which_another_parts() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("both")]));
    let other = tempfile::tempdir().unwrap();
    copy(home.path(), other.path());
    for number in 0..4 {
        send(home.path(), 0, &json!([post(&format!("here {number}"))]));
        send(other.path(), 0, &json!([post(&format!("there {number}"))]));
    }
    let there = Node::start(other.path(), &[]);
    let peer = format!("http://{}", there.address);
    let with: &[&str] = &["--set", &format!("check.peers={peer}")];

    let found = expect(home.path(), 12, &[&["check", "--peers"], with].concat());
    let opinion = &found["peers"][0];
    assert_eq!(
        (&found["verdict"], &opinion["peer"], &opinion["said"]),
        (&json!("inconsistent"), &json!(peer), &json!("differs"))
    );
    let kinds = |found: &Value| -> Vec<String> {
        found["discrepancies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|found| found["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(kinds(&found).iter().any(|kind| kind == "state_root"), "{found}");

    let parted = expect(home.path(), 12, &["check", "diverge", "--with", &peer]);
    assert_eq!((&parted["last_same_height"], &parted["height"]), (&json!(1), &json!(2)));
    assert_ne!(parted["our_value"], parted["their_value"]);
    assert!(parted["questions"].as_u64().unwrap() < 64);

    // The same from a node that runs, over its own socket.
    let here = Node::start(home.path(), &[with[1]]);
    assert_eq!(expect(home.path(), 12, &["check", "diverge", "--with", &peer])["height"], 2);
    let found = expect(home.path(), 12, &["check"]);
    assert_eq!(found["peers"][0]["said"], "differs");
    let status = expect(home.path(), 0, &["check", "status"]);
    assert_eq!((&status["running"], &status["last"]["verdict"]), (&json!(true), &json!("inconsistent")));
    assert!(status["alarm"].as_str().unwrap().contains("the certified state is kept"), "{status}");
    assert_eq!(here.get("/readyz").0, 200, "what a peer says takes no node out of service");
    let metrics = here.get("/metrics").1;
    assert!(metrics.contains("check_made_checks_total{outcome=\"inconsistent\"} 1"), "{metrics}");
    let unheard = ["check", "--peers", "--set", &format!("check.peers={peer}")];
    let refused = expect(home.path(), 2, &unheard);
    assert!(refused["error"]["message"].as_str().unwrap().contains("check.peers"), "{refused}");
    assert_eq!(expect(home.path(), 0, &["check", "pause"])["paused"], true);
    assert_eq!(expect(home.path(), 0, &["check", "resume"])["paused"], false);

    // Nobody is there any more.
    drop(there);
    let found = expect(home.path(), 17, &["check", "--peers"]);
    assert_eq!((&found["verdict"], &found["peers"][0]["said"]), (&json!("unknown"), &json!("nothing")));
    expect(home.path(), 1, &["check", "diverge", "--with", &peer]);
    drop(here);
    let same = tempfile::tempdir().unwrap();
    copy(home.path(), same.path());
    let twin = Node::start(same.path(), &[]);
    let peer = format!("http://{}", twin.address);
    let found = expect(home.path(), 0, &["check", "--set", &format!("check.peers={peer}")]);
    assert_eq!((&found["verdict"], &found["peers"][0]["said"]), (&json!("consistent"), &json!("agrees")));
    assert_eq!(expect(home.path(), 0, &["check", "diverge", "--with", &peer])["differs"], false);
}
