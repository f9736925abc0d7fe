//! Damage on the disk: found while the node runs, named by a check, mended where that can be proven.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, copy, expect, keelstone, post, register, send};
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

/// A snapshot of the last height in a file, and none in the library.
fn archived(home: &Path) -> PathBuf {
    let archive = home.join("state.tar");
    let height = expect(home, 0, &["status"])["height"].to_string();
    expect(home, 0, &["snapshot", "create"]);
    expect(home, 0, &["snapshot", "export", &height, archive.to_str().unwrap()]);
    expect(home, 0, &["snapshot", "delete", &height, "--yes"]);
    archive
}

/// spec: STORE-13. Damage that a scrub finds turns health bad and is told, and the node serves on.
#[test]
fn damage_that_a_scrub_finds_turns_health_bad_and_the_node_serves_on() {
    let home = with_blocks();
    let settings = ["store.scrub_rest_s=0", "store.scrub_bytes_per_second=1073741824", "check.auto_repair=false"];
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

/// spec: EXEC-17, STORE-8. A block that cannot be run, since the state cannot be read, is none: no verdict about what is in it, and no other
/// block after it. The node serves what it can, says why, and ends with 1; whole again it goes on with the very chain.
#[test]
fn a_node_that_cannot_read_what_a_block_takes_makes_no_block_any_more() {
    let home = with_blocks();
    let before = expect(home.path(), 0, &["status"]);
    // What is only in the log is read when the state is opened.
    expect(home.path(), 0, &["db", "compact"]);
    let log = file(home.path(), ".log");
    let bytes = std::fs::read(&log).unwrap();
    // The record of the agent that posts.
    let places: Vec<u64> = (0u64..).zip(bytes.windows(3)).filter(|(_, at)| at == b"Ada").map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    let damage = || places.iter().for_each(|at| flip(&log, *at));
    damage();
    let mut node = Node::start(home.path(), &["check.auto_repair=false"]);
    let refused = send(home.path(), 1, &json!([post("never")]));
    assert!(refused.to_string().contains("was taken in"), "{refused}");
    let (code, health) = node.get("/healthz");
    assert_eq!(code, 503, "{health}");
    let status = node.json("/v1/status").1;
    assert_eq!((&status["height"], &status["root"]), (&before["height"], &before["root"]));
    assert!(status["failed"].as_str().is_some_and(|failed| !failed.is_empty()), "{status}");
    let (code, again) = node.post_json(&json!({ "transaction": "00" }).to_string());
    assert!(code == 503 && again.contains("write_failed"), "{code} {again}");
    node.signal("TERM");
    assert_eq!(node.wait(Duration::from_secs(30)), Some(1));

    damage();
    let node = Node::start(home.path(), &["check.auto_repair=false"]);
    let sent = send(home.path(), 0, &json!([post("now")]));
    assert_eq!(sent["receipt"]["height"].as_u64(), before["height"].as_u64().map(|height| height + 1));
    drop(node);
    expect(home.path(), 0, &["replay"]);
}

/// The page segment's sectors that were written last are the table; those before it are pages of the state.
fn pages(home: &Path) -> (PathBuf, std::ops::Range<u64>) {
    // Until a flush the pages are not on the disk yet.
    expect(home, 0, &["db", "compact"]);
    let path = file(home, ".pages");
    let bytes = std::fs::read(&path).unwrap();
    let written = |sector: &usize| bytes[sector * 512..][..512].iter().any(|byte| *byte != 0);
    let last = (0..bytes.len() / 512).rfind(written).unwrap() as u64;
    (path, 1..last - 3)
}

/// spec: STORE-16, CHECK-10. A node mends by itself what its scrub finds, and puts that on record; three times in an hour. Then
/// it says that it does not, also after it was started again, until its owner has it mended.
#[test]
fn a_node_mends_by_itself_three_times_in_an_hour_and_says_when_it_does_no_more() {
    let home = with_blocks();
    let settings = ["store.scrub_rest_s=0", "store.scrub_bytes_per_second=1073741824"];
    let log = file(home.path(), ".log");
    let right = std::fs::read(&log).unwrap();
    let mut node = Node::start(home.path(), &settings);
    let counted = |node: &Node, outcome: &str| {
        let name = format!("store_made_mendings_total{{outcome=\"{outcome}\"}} ");
        let metrics = node.get("/metrics").1;
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or_default()
    };
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let since = Instant::now();
        while !done() {
            assert!(since.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for number in 1..=3 {
        flip(&log, 512 * number + 99);
        wait("it is not mended", &|| counted(&node, "whole") == number);
        wait("it is not well again", &|| node.get("/healthz").0 == 200);
    }
    assert_eq!(std::fs::read(&log).unwrap()[..2048], right[..2048], "every byte is what it was");
    let records = expect(home.path(), 0, &["audit", "node", "show", "--kind", "mended"]);
    let steps: Vec<&str> =
        records["records"].as_array().unwrap().iter().map(|record| record["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["begun", "done"].repeat(3), "{records}");

    flip(&log, 512 * 3 + 7);
    for _ in 0..2 {
        wait("it goes on mending", &|| node.get("/healthz").1.contains("no more are made"));
        let stopped = expect(home.path(), 0, &["check", "status"])["repairs"]["stopped"].clone();
        assert!(stopped.as_str().unwrap().contains("3 repairs within an hour"), "{stopped}");
        assert_eq!(node.get("/v1/status").0, 200, "what is sound is served on");
        drop(node);
        node = Node::start(home.path(), &settings);
    }
    let repaired = expect(home.path(), 0, &["check", "--repair"]);
    assert_eq!((&repaired["left"], &repaired["sectors"]), (&json!([]), &json!(1)), "{repaired}");
    wait("it is not well again", &|| node.get("/healthz").0 == 200);
}

/// spec: STORE-16, CHECK-10. What a check finds is mended by the node that made it, once, and it looks again: what it says of
/// itself is what it is then.
#[test]
fn damage_that_a_check_finds_is_mended_and_the_node_is_ready_again() {
    let home = with_blocks();
    let node = Node::start(home.path(), &["store.scrub_bytes_per_second=0"]);
    let log = file(home.path(), ".log");
    let right = std::fs::read(&log).unwrap();
    flip(&log, 1024 + 99);
    let found = expect(home.path(), 12, &["check", "--full"]);
    assert_eq!(found["verdict"], "inconsistent", "{found}");
    let now = expect(home.path(), 0, &["check", "status"]);
    assert_eq!((&now["last"]["verdict"], &now["alarm"]), (&json!("consistent"), &json!(null)), "{now}");
    assert_eq!(now["repairs"], json!({ "automatic": true, "waiting": 0, "left": 0, "stopped": null }));
    assert_eq!((node.get("/readyz").0, node.get("/healthz").0), (200, 200));
    assert_eq!(std::fs::read(&log).unwrap()[..4096], right[..4096], "every byte is what it was");
    let records = expect(home.path(), 0, &["audit", "node", "show", "--kind", "mended"]);
    assert_eq!(records["records"].as_array().unwrap().len(), 2, "begun and done: {records}");
    assert_eq!(expect(home.path(), 0, &["check", "--repair"])["found"], json!([]));
}

/// spec: CHECK-10. What nobody has is tried once, and again when somebody else can be asked; however often it is found, it uses up
/// nothing of what a node may mend in an hour, and its status says how much is left.
#[test]
fn what_cannot_be_mended_is_not_tried_again_before_somebody_else_can_be_asked() {
    let home = with_blocks();
    let archive = archived(home.path());
    let node = Node::start(home.path(), &["store.scrub_bytes_per_second=0"]);
    // Whole records of blocks that are long past: no memory and no state has them.
    let log = OpenOptions::new().write(true).open(file(home.path(), ".log")).unwrap();
    (1..4u64).for_each(|sector| log.write_all_at(&[0xa5; 512], sector * 512).unwrap());
    let checked = || {
        expect(home.path(), 12, &["check", "--full"]);
        let repairs = expect(home.path(), 0, &["check", "status"])["repairs"].clone();
        assert!(repairs["left"].as_u64() > Some(0) && repairs["stopped"].is_null(), "{repairs}");
        let records = expect(home.path(), 0, &["audit", "node", "show", "--kind", "mended"]);
        records["records"].as_array().unwrap().len()
    };
    assert_eq!([checked(), checked(), checked()], [2; 3], "begun and failed, once");
    expect(home.path(), 0, &["snapshot", "import", archive.to_str().unwrap()]);
    assert_eq!([checked(), checked(), checked()], [4; 3], "the snapshot was not asked before");
    assert_eq!(node.get("/v1/status").0, 200, "what is sound is served on");
}

/// C-03, spec: CHECK-4, CHECK-9. Of five nodes that are asked over real sockets four agree on another root. That is an alarm,
/// and nothing is changed here; and damage here is mended to the root that this node has, and to no other, though those four
/// are whom there is to ask.
#[test]
fn c03_four_of_five_nodes_with_another_root_change_nothing_here() {
    let home = with_blocks();
    let [same, parted, second, third, fourth] = [0; 5].map(|_| tempfile::tempdir().unwrap());
    copy(home.path(), parted.path());
    // What is compared stands two blocks below the last.
    for number in 0..3 {
        send(home.path(), 0, &json!([post(&format!("here {number}"))]));
        send(parted.path(), 0, &json!([post(&format!("there {number}"))]));
    }
    let (path, sectors) = pages(home.path());
    copy(home.path(), same.path());
    for other in [&second, &third, &fourth] {
        copy(parted.path(), other.path());
    }
    let root = expect(home.path(), 0, &["status"])["root"].clone();
    let others = [&parted, &second, &third, &fourth, &same].map(|other| Node::start(other.path(), &[]));
    let peers: Vec<String> = others.iter().map(|node| format!("http://{}", node.address)).collect();
    let peers = format!("check.peers={}", peers.join(","));
    let settings = [&peers, "check.peer_sample_size=5", "store.scrub_bytes_per_second=0"];
    let node = Node::start(home.path(), &settings);

    let found = expect(home.path(), 12, &["check"]);
    let said: Vec<&str> =
        found["peers"].as_array().unwrap().iter().map(|peer| peer["said"].as_str().unwrap()).collect();
    assert_eq!(said, ["differs", "differs", "differs", "differs", "agrees"], "{found}");
    let status = expect(home.path(), 0, &["check", "status"]);
    assert!(status["alarm"].as_str().unwrap().contains("the certified state is kept"), "{status}");
    assert_eq!(node.json("/v1/status").1["root"], root);
    let counted = node.get("/metrics").1;
    let mut mended = counted.lines().filter(|line| line.starts_with("store_made_mendings_total{"));
    assert!(mended.all(|line| line.ends_with(" 0")), "nothing was mended: {counted}");

    let damaged = OpenOptions::new().write(true).open(&path).unwrap();
    sectors.for_each(|sector| damaged.write_all_at(&[0xa5; 512], sector * 512).unwrap());
    let found = expect(home.path(), 12, &["check", "--full"]);
    let kinds = found["discrepancies"].as_array().unwrap();
    assert!(kinds.iter().any(|found| found["kind"] == "storage"), "{found}");
    assert!(node.get("/metrics").1.contains("store_made_mendings_total{outcome=\"whole\"} 1"));
    drop(node);
    assert_eq!(expect(home.path(), 0, &["db", "check"])["sound"], true);
    assert_eq!(expect(home.path(), 0, &["status"])["root"], root);
}

/// spec: STORE-16, CHECK-9. With no node running, damage is mended from the API of another node or from a snapshot, in its
/// place and at the very root; what nobody has is left and named.
#[test]
fn damage_is_mended_from_another_node_or_a_snapshot() {
    let home = with_blocks();
    let archive = archived(home.path());
    let (path, sectors) = pages(home.path());
    let (other, third) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy(home.path(), other.path());
    let root = expect(home.path(), 0, &["status"])["root"].clone();
    let damaged = OpenOptions::new().write(true).open(&path).unwrap();
    sectors.for_each(|sector| damaged.write_all_at(&[0xa5; 512], sector * 512).unwrap());
    copy(home.path(), third.path());

    let nobody = expect(home.path(), 12, &["check", "--repair", "--from", "snapshots"]);
    assert!(!nobody["left"].as_array().unwrap().is_empty(), "{nobody}");
    let there = Node::start(other.path(), &[]);
    let peers = format!("check.peers=http://{}", there.address);
    let mended = expect(home.path(), 0, &["check", "--repair", "--from", "peers", "--set", &peers]);
    assert!(mended["supplied_entries"].as_u64() > Some(0) && mended["left"] == json!([]), "{mended}");
    assert_eq!(mended["asked"][0]["said"], "pieces", "{mended}");
    assert_eq!(expect(home.path(), 0, &["db", "check"])["sound"], true);
    drop(there);

    let home = third;
    let mended = expect(home.path(), 0, &["check", "--repair", "--from", archive.to_str().unwrap()]);
    assert!(mended["supplied_entries"].as_u64() > Some(0) && mended["left"] == json!([]), "{mended}");
    assert_eq!(expect(home.path(), 0, &["db", "check"])["sound"], true);
    assert_eq!(expect(home.path(), 0, &["status"])["root"], root);
    send(home.path(), 0, &json!([post("after")]));
    assert_eq!(expect(home.path(), 0, &["check", "--repair"])["found"], json!([]));
}

/// spec: STORE-14. A state whose pages are damaged is named piece by piece, and made whole from its log; blocks stay.
#[test]
fn a_damaged_state_is_named_and_repaired_at_the_very_root() {
    let home = with_blocks();
    let root = expect(home.path(), 0, &["status"])["root"].clone();
    let (path, sectors) = pages(home.path());
    sectors.for_each(|sector| flip(&path, sector * 512 + 9));
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

/// spec: STORE-15, RECOVER-9. Blocks whose database is damaged are told as that by every command, however redb takes it, and named
/// by a check; a recovery begins again without them, and says so.
#[test]
fn damaged_blocks_are_named_and_left_behind() {
    let home = with_blocks();
    let status = expect(home.path(), 0, &["status"]);
    let (height, root) = (status["height"].to_string(), status["root"].as_str().unwrap().to_owned());
    let archive = archived(home.path());
    let checked = expect(home.path(), 0, &["db", "check"]);
    assert!(checked["block_records"].as_u64() > Some(4), "{checked}");
    let blocks = home.path().join("data/gen-000001/blocks.redb");
    let whole = std::fs::read(&blocks).unwrap();
    let log = std::fs::read(blocks.with_extension("wal")).unwrap();
    let recover = ["recover", "--to", &height, "--root", &root];
    let mut random = 7u64;
    let noise = std::iter::repeat_with(|| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 56) as u8
    });
    let noise: Vec<u8> = noise.take(4096).collect();
    let overwritten = |block: usize| [&whole[..block * 4096], &noise, &whole[(block + 1) * 4096..]].concat();
    let put = |bytes: &[u8]| {
        std::fs::write(&blocks, bytes).unwrap();
        std::fs::write(blocks.with_extension("wal"), &log).unwrap();
    };
    // Over some of these redb panics, some nobody needs, and some it cannot do without.
    let mut named = 0;
    for block in 1..whole.len() / 4096 {
        put(&overwritten(block));
        let output = keelstone(home.path(), &["--json", "replay"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 12)), "block {block}: {:?} {said}", output.status);
        assert!(!said.contains("panicked"), "block {block}: {said}");
        named += usize::from(said.contains("blocks.redb"));
    }
    assert!(named > 1, "{named} of {} blocks", whole.len() / 4096);
    for (number, bytes) in [overwritten(0), whole[..100].to_vec()].iter().enumerate() {
        put(bytes);
        for command in [&["status"][..], &["query", "block", "1"], &["replay"]] {
            let failed = expect(home.path(), 12, command);
            assert!(failed["error"]["message"].as_str().unwrap().contains("blocks.redb"), "{number}: {failed}");
        }
        let found = expect(home.path(), 12, &["db", "check", "--repair"]);
        assert_eq!((&found["sound"], found.get("repaired")), (&json!(false), None), "{number}: {found}");
        assert!(found["problems"][0]["file"].as_str().unwrap().ends_with("blocks.redb"), "{number}: {found}");
    }
    let archives = format!("recovery.sources={}", archive.display());
    let recovered = expect(home.path(), 0, &[&recover[..], &["--yes", "--set", &archives]].concat());
    let warnings = recovered["warnings"].as_array().unwrap();
    assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains("blocks.redb"), "{recovered}");
    assert_eq!(expect(home.path(), 0, &["status"])["root"], root);
    assert_eq!(expect(home.path(), 0, &["db", "check"])["sound"], true);
}

/// spec: STORE-4. A slot of the superblock that is damaged is written anew by whoever opens the store first, who says so: a check by
/// its exit code, also a repair by what it found, and the figures of the store. Nothing is wrong after that.
#[test]
fn a_damaged_slot_of_the_superblock_is_told_by_whoever_mends_it() {
    let home = with_blocks();
    let superblock = file(home.path(), "superblock");
    // The slot that was written last, and the other.
    for at in [165, 4096 + 165] {
        let damaged = || flip(&superblock, at);
        damaged();
        let stats = expect(home.path(), 0, &["db", "stats"]);
        assert!(stats["superblock_repaired"].as_str().unwrap().contains("superblock is damaged"), "{stats}");
        assert_eq!(expect(home.path(), 0, &["db", "stats"])["superblock_repaired"], json!(null));
        for check in [&["db", "check"][..], &["db", "check", "--quick"], &["db", "check", "--repair"]] {
            damaged();
            let found = expect(home.path(), 12, check);
            let (file, count) =
                (found["problems"][0]["file"].as_str().unwrap(), found["problems"].as_array().unwrap().len());
            assert_eq!((Path::new(file), count), (&*superblock, 1), "{found}");
            assert_eq!(expect(home.path(), 0, check)["sound"], true);
        }
        for check in [&["check"][..], &["check", "--quick"], &["check", "--full"]] {
            damaged();
            let found = expect(home.path(), 12, check);
            assert_eq!(found["discrepancies"][0]["kind"], "storage", "{found}");
            assert_eq!(expect(home.path(), 0, check)["verdict"], "consistent");
        }
        damaged();
        let mended = expect(home.path(), 0, &["check", "--repair"]);
        assert_eq!((mended["found"].as_array().unwrap().len(), &mended["left"]), (1, &json!([])), "{mended}");
        damaged();
        let node = Node::start(home.path(), &[]);
        assert_eq!(node.json("/v1/status").0, 200);
    }
    assert_eq!(expect(home.path(), 0, &["db", "check"])["sound"], true);
}

/// A repair of the state does not say that all is well where the blocks beside it keep the next command from opening the home; and
/// each file is named with its directory.
#[test]
fn a_repair_tells_of_blocks_that_cannot_be_opened() {
    let home = with_blocks();
    let wal = home.path().join("data/gen-000001/blocks.wal");
    let flip_blocks = || flip(&wal, 40);
    flip_blocks();
    let failed = expect(home.path(), 12, &["status"]);
    assert!(failed["error"]["message"].as_str().unwrap().contains(wal.to_str().unwrap()), "{failed}");
    let found = expect(home.path(), 12, &["check", "--repair"]);
    assert_eq!(found["left"][0]["file"], wal.to_str().unwrap(), "{found}");
    flip_blocks();
    assert_eq!(expect(home.path(), 0, &["check", "--repair"])["found"], json!([]));
    let log = file(home.path(), ".log");
    flip(&log, 700);
    let found = expect(home.path(), 12, &["db", "check"]);
    let files: Vec<_> =
        found["problems"].as_array().unwrap().iter().filter_map(|problem| problem["file"].as_str()).collect();
    assert!(files.contains(&log.to_str().unwrap()), "{found}");
}
