//! Damage on the disk: found while the node runs, named by a check, mended where that can be proven.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, expect, post, register, send};
use serde_json::json;
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file of the state by the ending of its name.
fn file(home: &Path, ending: &str) -> PathBuf {
    let state = std::fs::read_dir(home.join("data")).unwrap().map(|entry| entry.unwrap().path().join("state"));
    let files = state.filter(|path| path.is_dir()).flat_map(|path| std::fs::read_dir(path).unwrap());
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().find(|path| path.to_string_lossy().ends_with(ending)).expect("there is one")
}

/// Changes one bit of a byte; the same again changes it back.
fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Reads an event stream to the end of the event that begins so.
fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    while text.split_once(wanted).is_none_or(|(_, event)| !event.contains("\n\n")) {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the stream ended: {text}");
        text += &String::from_utf8_lossy(&bytes[..count]);
    }
    text
}

fn with_blocks() -> tempfile::TempDir {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    (0..4).for_each(|number| drop(send(home.path(), 0, &json!([post(&format!("meme {number}"))]))));
    home
}

/// spec: STORE-13. Damage that a scrub finds turns health bad and is told, and the node serves on.
#[test]
fn damage_that_a_scrub_finds_turns_health_bad_and_the_node_serves_on() {
    let home = with_blocks();
    let settings = ["store.scrub_rest_s=0", "store.scrub_bytes_per_second=1073741824"];
    let node = Node::start(home.path(), &settings);
    assert_eq!(node.get("/healthz").0, 200);
    let mut stream = node.connect();
    write!(stream, "GET /v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", node.address).unwrap();
    flip(&file(home.path(), ".log"), 700);
    let wait_for = |status: u16| {
        let since = Instant::now();
        while node.get("/healthz").0 != status {
            assert!(since.elapsed() < Duration::from_secs(60), "health does not become {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for(503);
    let events = read_until(&mut stream, "event: damage");
    assert!(events.contains("\"kind\":\"") && events.contains(".log"), "{events}");
    let (code, status) = node.json("/v1/status");
    assert_eq!(code, 200, "what is sound is served on");
    assert!(status["scrub"]["problems"].as_u64().unwrap() > 0, "{status}");
    assert!(
        node.get("/metrics").1.lines().any(|line| line.starts_with("store_damaged_problems ") && !line.ends_with(" 0"))
    );
    // A whole pass that finds none is what makes it good again.
    flip(&file(home.path(), ".log"), 700);
    wait_for(200);
}

/// spec: STORE-14. A state whose pages are damaged is named piece by piece, and made whole from its log; blocks stay.
#[test]
fn a_damaged_state_is_named_and_repaired_at_the_very_root() {
    let home = with_blocks();
    let root = expect(home.path(), 0, &["status"])["root"].clone();
    // Until a flush the pages are not on the disk yet.
    expect(home.path(), 0, &["db", "compact"]);
    let path = file(home.path(), ".pages");
    let bytes = std::fs::read(&path).unwrap();
    let last =
        (0..bytes.len() / 512).rfind(|sector| bytes[sector * 512..][..512].iter().any(|byte| *byte != 0)).unwrap();
    // All but the end: the table, which is the last thing written, and some pages.
    (1..last - 3).for_each(|sector| flip(&path, sector as u64 * 512 + 9));
    let found = expect(home.path(), 12, &["db", "check"]);
    assert_eq!(found["sound"], false);
    let problems = found["problems"].as_array().unwrap();
    assert!(problems.iter().any(|problem| problem["kind"] == "unreadable" && problem["entries"].as_u64() > Some(0)));
    assert!(problems.iter().any(|problem| problem["kind"] == "damaged" && problem["offset"].is_u64()));

    let repaired = expect(home.path(), 0, &["db", "check", "--repair"])["repaired"].clone();
    assert_eq!((&repaired["root"], &repaired["from"]["kind"]), (&root, &json!("log")), "{repaired}");
    assert_eq!(repaired["lost_heights"], json!(null));
    assert_eq!(expect(home.path(), 0, &["db", "check"])["sound"], true);
    assert_eq!(expect(home.path(), 0, &["status"])["root"], root);
    expect(home.path(), 0, &["replay"]);
    send(home.path(), 0, &json!([post("after")]));
    // Nothing is wrong any more: nothing is changed.
    assert_eq!(expect(home.path(), 0, &["db", "check", "--repair"]).get("repaired"), None);
}

/// spec: STORE-14. What cannot be made whole is left as it is, and what is lost is named; a snapshot of the root helps.
#[test]
fn what_is_lost_is_named_and_a_snapshot_brings_it_back() {
    let home = with_blocks();
    let root = expect(home.path(), 0, &["status"])["root"].clone();
    let archive = home.path().join("state.tar");
    expect(home.path(), 0, &["snapshot", "create"]);
    let height = expect(home.path(), 0, &["status"])["height"].to_string();
    expect(home.path(), 0, &["snapshot", "export", &height, archive.to_str().unwrap()]);
    expect(home.path(), 0, &["snapshot", "delete", &height, "--yes"]);
    // A value in the log, so neither the state nor the log has it.
    let log = file(home.path(), ".log");
    (1..4).for_each(|sector| flip(&log, sector * 512 + 300));
    let before = std::fs::read(&log).unwrap();
    let lost = expect(home.path(), 12, &["db", "check", "--repair"]);
    assert_eq!(lost["repaired"], json!(null));
    assert!(lost["lost"].as_array().unwrap().iter().any(|loss| loss["kind"] == "entries"), "{lost}");
    assert_eq!(std::fs::read(&log).unwrap(), before, "nothing was changed");

    let from = archive.to_str().unwrap();
    expect(home.path(), 2, &["db", "check", "--repair", "--from", from]);
    let repaired = expect(home.path(), 0, &["db", "check", "--repair", "--from", from, "--yes"])["repaired"].clone();
    assert_eq!((&repaired["root"], &repaired["from"]["kind"]), (&root, &json!("snapshot")), "{repaired}");
    assert!(repaired["lost_heights"]["to"].is_u64(), "{repaired}");
    assert_eq!(expect(home.path(), 0, &["db", "check"])["sound"], true);
    send(home.path(), 0, &json!([post("after")]));
}
