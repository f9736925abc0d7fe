//! Recovery from the command line: each strategy on real files, one after the other, and a node that does it by itself.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, copy, expect, keelstone, post, program, register, send, until};
use crate::sync::{peer, serve};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A chain at height 4, its root, and a snapshot of height 2.
fn busy_chain() -> (TempDir, Value) {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    for text in ["second", "third", "fourth"] {
        send(home.path(), 0, &json!([post(text)]));
    }
    let create = ["snapshot", "--set", "snapshots.reserve_percent=0", "create", "--height", "2"];
    expect(home.path(), 0, &create);
    let status = expect(home.path(), 0, &["status"]);
    (home, status)
}

fn generation(home: &Path) -> PathBuf {
    let current = fs::read_to_string(home.join("data/CURRENT")).unwrap();
    home.join("data").join(current.trim())
}

/// Overwrites both slots of the store's superblock: nothing of the state can be opened.
fn damage(home: &Path) {
    lose(home);
    expect(home, 12, &["status"]);
}

/// As [`damage`], for who has seen already that it is so.
fn lose(home: &Path) {
    let file = generation(home).join("state/superblock");
    let len = fs::metadata(&file).unwrap().len();
    fs::write(&file, vec![0x5a; usize::try_from(len).unwrap()]).unwrap();
}

/// A damaged chunk in every snapshot of the home.
fn damage_snapshots(home: &Path) {
    for entry in fs::read_dir(home.join("data/snapshots")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "chunk") {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
}

fn strategies(report: &Value) -> Vec<(String, bool)> {
    let attempts = report["attempts"].as_array().unwrap();
    attempts
        .iter()
        .map(|attempt| (attempt["strategy"].as_str().unwrap().to_owned(), attempt["failed"].is_null()))
        .collect()
}

/// spec: RECOVER-1, RECOVER-3. A snapshot and the blocks since give the last root again; what was before the snapshot
/// is there too, the report says what was done, and only who signed it can have.
#[test]
fn a_lost_state_is_had_again_from_a_snapshot_and_the_blocks_since() {
    let (home, before) = busy_chain();
    damage(home.path());
    expect(home.path(), 2, &["recover"]);
    let plan = expect(home.path(), 0, &["recover", "--dry-run"]);
    assert_eq!((&plan["height"], &plan["root"], &plan["trust"]), (&json!(4), &before["root"], &json!("own_record")));
    expect(home.path(), 12, &["status"]);
    let report = expect(home.path(), 0, &["recover", "--yes", "--strategy", "local_snapshot"]);
    assert_eq!(strategies(&report), [("local_snapshot".to_owned(), true)]);
    assert_eq!((&report["height"], &report["attempts"][0]["blocks"]), (&json!(4), &json!(2)));
    let after = expect(home.path(), 0, &["status"]);
    assert_eq!((&after["root"], &after["height"]), (&before["root"], &before["height"]));
    expect(home.path(), 0, &["query", "block", "1"]);
    assert_eq!(expect(home.path(), 0, &["check", "--full"])["verdict"], "consistent");
    send(home.path(), 0, &json!([post("it goes on")]));

    let file = report["report"].as_str().unwrap();
    let verified =
        expect(home.path(), 0, &["recover", "verify-report", file, "--key", report["signed_by"].as_str().unwrap()]);
    assert_eq!((&verified["height"], &verified["recovered_by"]), (&json!(4), &json!("local_snapshot")));
    expect(home.path(), 12, &["recover", "verify-report", file, "--key", &"ab".repeat(32)]);
    let mut bytes = fs::read(file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(file, &bytes).unwrap();
    expect(home.path(), 12, &["recover", "verify-report", file]);
    fs::write(file, &bytes[..last]).unwrap();
    expect(home.path(), 12, &["recover", "verify-report", file]);
}

/// spec: RECOVER-1, RECOVER-6. The blocks alone give it too, to any height and time there was, and no more of them
/// are run than is allowed.
#[test]
fn a_lost_state_is_had_again_from_its_blocks() {
    let (home, before) = busy_chain();
    let second = expect(home.path(), 0, &["query", "block", "2"]);
    damage(home.path());
    let replay = ["recover", "--yes", "--strategy", "block_replay"];
    let limited = [&replay[..], &["--set", "recovery.max_block_replay=3"]].concat();
    let failure = expect(home.path(), 12, &limited);
    assert!(failure["error"]["message"].as_str().unwrap().contains("takes 4 blocks, the limit is 3"), "{failure}");
    expect(home.path(), 12, &["status"]);
    let root = "ab".repeat(32);
    let wrong = [&replay[..], &["--to", "4", "--root", &root]].concat();
    let failure = expect(home.path(), 12, &wrong);
    assert!(failure["error"]["message"].as_str().unwrap().contains("came to height 4 with root"), "{failure}");
    assert_eq!(strategies(&expect(home.path(), 0, &replay)), [("block_replay".to_owned(), true)]);
    assert_eq!(expect(home.path(), 0, &["status"])["root"], before["root"]);

    let time = format!("@{}", second["time"]);
    let report = expect(home.path(), 0, &[&replay[..], &["--to", &time]].concat());
    assert_eq!((&report["height"], &report["root"]), (&json!(2), &second["root"]));
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 2);
    expect(home.path(), 14, &[&replay[..], &["--to", "9"]].concat());
    expect(home.path(), 2, &[&replay[..], &["--to", "soon"]].concat());
    expect(home.path(), 2, &["recover", "--yes", "--strategy", "hope"]);
}

/// spec: RECOVER-1. A state that is whole is there to begin with where nothing but the blocks beside it is damaged or gone: it says
/// itself what is to be had, or whoever asks does. So it is where they lost some that it was made of.
#[test]
fn a_state_that_is_whole_outlives_the_blocks_beside_it() {
    type Spoil = fn(&Path);
    let ways: [(Spoil, &[&str]); 3] = [
        (
            |blocks| {
                let mut file = fs::OpenOptions::new().write(true).open(blocks).unwrap();
                file.write_all(&[0x5a; 20]).unwrap();
            },
            &[],
        ),
        (|blocks| fs::write(blocks.with_extension("wal"), "").unwrap(), &[]),
        (
            |blocks| ["redb", "wal"].iter().for_each(|end| fs::remove_file(blocks.with_extension(end)).unwrap()),
            &["--to", "2"],
        ),
    ];
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    send(home.path(), 0, &json!([post("second")]));
    let before = expect(home.path(), 0, &["status"]);
    let root = before["root"].as_str().unwrap();
    for (spoil, target) in ways {
        spoil(&generation(home.path()).join("blocks.redb"));
        if target.is_empty() {
            expect(home.path(), 12, &["status"]);
            expect(home.path(), 12, &["db", "check"]);
        }
        let given = if target.is_empty() { vec![] } else { [target, &["--root", root]].concat() };
        let report = expect(home.path(), 0, &[&["recover", "--yes"][..], &given].concat());
        let trust = if given.is_empty() { "own_record" } else { "given" };
        assert_eq!((&report["recovered_by"], &report["trust"]), (&json!("local_snapshot"), &json!(trust)), "{report}");
        let after = expect(home.path(), 0, &["status"]);
        assert_eq!((&after["root"], &after["height"]), (&before["root"], &before["height"]));
    }
    expect(home.path(), 0, &["db", "check"]);
    send(home.path(), 0, &json!([post("it goes on")]));

    // Blocks of an earlier day: the state came further than they, and is not taken back to them.
    let blocks = generation(home.path()).join("blocks.redb");
    let earlier = ["redb", "wal"].map(|end| fs::read(blocks.with_extension(end)).unwrap());
    send(home.path(), 0, &json!([post("fourth")]));
    send(home.path(), 0, &json!([post("fifth")]));
    let before = expect(home.path(), 0, &["status"]);
    ["redb", "wal"].iter().zip(earlier).for_each(|(end, bytes)| fs::write(blocks.with_extension(end), bytes).unwrap());
    let found = expect(home.path(), 12, &["db", "check"]);
    assert!(found["problems"].to_string().contains("the last block that is here of 3"), "{found}");
    let report = expect(home.path(), 0, &["recover", "--yes"]);
    assert_eq!((&report["height"], &report["root"]), (&json!(5), &before["root"]), "{report}");
    assert!(report["warnings"].to_string().contains("of blocks 4 to 5"), "{report}");
}

/// Flips a bit of the root that the database of blocks has of a height.
fn spoil_root(blocks: &Path, root: &str) {
    let digits: Vec<u8> =
        root.bytes().map(|digit| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap()).collect();
    let root: Vec<u8> = digits.chunks(2).map(|pair| (pair[0] << 4) | pair[1]).collect();
    let mut bytes = fs::read(blocks).unwrap();
    let places: Vec<usize> = (0..bytes.len() - root.len()).filter(|at| bytes[*at..].starts_with(&root)).collect();
    assert!(!places.is_empty(), "the root is there");
    places.into_iter().for_each(|at| bytes[at] ^= 1);
    fs::write(blocks, bytes).unwrap();
}

/// spec: RECOVER-9, RECOVER-10. One record of the blocks that is damaged makes a chain none that never had a block: the heights below
/// are had again, by who is told to, and what there is of the blocks above is kept. Where the state is whole nothing of it is lost.
#[test]
fn a_damaged_record_does_not_take_a_chain_back_to_its_genesis() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    send(home.path(), 0, &json!([post("second")]));
    let second = expect(home.path(), 0, &["status"]);
    send(home.path(), 0, &json!([post("third")]));
    let third = expect(home.path(), 0, &["status"]);
    let blocks = generation(home.path()).join("blocks.redb");
    spoil_root(&blocks, third["root"].as_str().unwrap());
    // Nothing beside the data says that there was a height.
    let _ = fs::remove_dir_all(home.path().join("audit"));
    let place = tempfile::tempdir().unwrap();
    copy(home.path(), place.path());
    let report = expect(place.path(), 0, &["recover", "--yes"]);
    assert_eq!((&report["height"], &report["root"]), (&json!(3), &third["root"]), "{report}");
    let kept = place.path().join("data/blocks-of-gen-000001");
    assert!(report["warnings"].to_string().contains(kept.to_str().unwrap()) && kept.join("blocks.redb").exists());
    expect(place.path(), 0, &["db", "check"]);

    lose(home.path());
    let _ = fs::remove_dir_all(home.path().join("audit"));
    let output = keelstone(home.path(), &["node", "--json", "--set", "http.listen=127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(12) && said.contains("of height 2"), "{said}");
    let report = expect(home.path(), 0, &["recover", "--yes"]);
    assert_eq!((&report["height"], &report["root"]), (&json!(2), &second["root"]), "{report}");
    let kept = home.path().join("data/blocks-of-gen-000001");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains(kept.to_str().unwrap()) && kept.join("blocks.redb").exists(), "{report}");
    expect(home.path(), 0, &["db", "check"]);
    send(home.path(), 0, &json!([post("it goes on")]));
}

/// spec: RECOVER-1, RECOVER-9. Of a power cut that took the mark of the last block, and damaged the blocks, the state is had again with
/// that block, for it may have been acknowledged.
#[test]
fn a_last_block_that_nobody_can_speak_for_is_kept() {
    let home = chain();
    let node = Node::start(home.path(), &[]);
    send(home.path(), 0, &json!([register(), post("first")]));
    send(home.path(), 0, &json!([post("second")]));
    let before = expect(home.path(), 0, &["status"]);
    let cut = tempfile::tempdir().unwrap();
    copy(home.path(), cut.path());
    drop(node);
    fs::remove_file(cut.path().join("api.json")).unwrap();
    let state = generation(cut.path()).join("state");
    let is_log = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "log");
    let mut logs: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path()).filter(is_log).collect();
    logs.sort();
    let mut bytes = fs::read(&logs[0]).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let sector = end / 512 * 512;
    bytes[sector..=end].fill(0);
    fs::write(&logs[0], bytes).unwrap();
    fs::write(generation(cut.path()).join("blocks.wal"), "").unwrap();
    expect(cut.path(), 12, &["status"]);
    let report = expect(cut.path(), 0, &["recover", "--yes"]);
    assert_eq!((&report["height"], &report["root"]), (&before["height"], &before["root"]), "{report}");
    let after = expect(cut.path(), 0, &["status"]);
    assert_eq!((&after["root"], &after["height"]), (&before["root"], &before["height"]));
}

/// What is advised where blocks are damaged works, on a chain with validators too: it takes a root that consensus certified.
#[test]
fn on_a_chain_with_validators_a_root_has_to_be_named_for_blocks_that_are_damaged() {
    let home = tempfile::tempdir().unwrap();
    let validator = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a=10";
    expect(home.path(), 0, &["init", "--validator", validator]);
    let status = expect(home.path(), 0, &["status"]);
    fs::write(generation(home.path()).join("blocks.redb"), b"nothing").unwrap();
    let output = keelstone(home.path(), &["db", "check"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(12) && said.contains("--to HEIGHT --root ROOT"), "{said}");
    let failure = expect(home.path(), 12, &["recover", "--yes"]);
    assert!(failure["error"]["hint"].to_string().contains("app_hash"), "{failure}");
    let named = ["recover", "--yes", "--to", "0", "--root", status["root"].as_str().unwrap()];
    let report = expect(home.path(), 0, &named);
    assert!(report["warnings"].to_string().contains("blocks-of-gen-000001"), "{report}");
    expect(home.path(), 0, &["db", "check"]);
}

/// spec: RECOVER-1. A state that is gone where one counted is damage, and is had again; so is that of a chain that has no block
/// yet, since its genesis says it, and the beginning of any other.
#[test]
fn a_state_that_is_gone_is_damage_and_had_again() {
    let home = chain();
    let first = expect(home.path(), 0, &["status"]);
    fs::remove_file(generation(home.path()).join("state/superblock")).unwrap();
    let found = expect(home.path(), 12, &["db", "check"]);
    assert!(found["problems"].to_string().contains("superblock"), "{found}");
    let node = Node::start(home.path(), &[]);
    assert_eq!(node.json("/v1/status").1["root"], first["root"]);
    drop(node);
    send(home.path(), 0, &json!([register(), post("first")]));
    let before = expect(home.path(), 0, &["status"]);
    fs::remove_dir_all(generation(home.path()).join("state")).unwrap();
    expect(home.path(), 12, &["status"]);
    assert!(!generation(home.path()).join("state").exists(), "who looks makes none");
    let report = expect(home.path(), 0, &["recover", "--yes"]);
    assert_eq!((&report["height"], &report["root"]), (&json!(1), &before["root"]), "{report}");
    let report = expect(home.path(), 0, &["recover", "--yes", "--to", "0"]);
    assert_eq!((&report["height"], &report["root"]), (&json!(0), &first["root"]), "{report}");
}

/// spec: RECOVER-2, RECOVER-3. What comes first has nothing to work with, what comes next is damaged, what comes third
/// is too much: the fourth counts, and the report says why each of the others came to nothing.
#[test]
fn strategies_are_tried_in_order_until_one_stands() {
    let (home, before) = busy_chain();
    let archive = tempfile::tempdir().unwrap();
    let tar = archive.path().join("state.tar");
    let tar = tar.to_str().unwrap();
    expect(home.path(), 0, &["snapshot", "--set", "snapshots.reserve_percent=0", "export", "2", tar]);
    damage_snapshots(home.path());
    damage(home.path());
    let source = format!("recovery.sources={tar}");
    let order = "recovery.strategies=peer_state_sync,local_snapshot,block_replay,network_snapshot";
    let all = ["recover", "--yes", "--set", order, "--set", "recovery.max_block_replay=3", "--set", &source];
    let report = expect(home.path(), 0, &all);
    let expected =
        [("peer_state_sync", false), ("local_snapshot", false), ("block_replay", false), ("network_snapshot", true)];
    assert_eq!(strategies(&report), expected.map(|(name, done)| (name.to_owned(), done)));
    let why = |at: usize| report["attempts"][at]["failed"].as_str().unwrap().to_owned();
    assert!(why(0).contains("no peer is configured"), "{}", why(0));
    assert!(why(1).contains("damaged") || why(1).contains("digest"), "{}", why(1));
    assert!(why(2).contains("the limit is 3"), "{}", why(2));
    assert_eq!(expect(home.path(), 0, &["status"])["root"], before["root"]);
}

/// spec: RECOVER-1, SNAP-7. Of two nodes that serve a snapshot one has damaged its chunks: whatever it sends is proven
/// first, the other is asked, and the state is whole.
#[test]
fn a_lost_state_is_had_again_from_nodes_of_which_one_is_damaged() {
    let (home, before) = busy_chain();
    let [bad, good] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    copy(home.path(), bad.path());
    copy(home.path(), good.path());
    damage_snapshots(bad.path());
    fs::remove_dir_all(home.path().join("data/snapshots")).unwrap();
    damage(home.path());
    let serving = ["snapshots.enabled=true", "snapshots.reserve_percent=0"];
    let [bad, good] = [&bad, &good].map(|home| Node::start(home.path(), &serving));
    let peers = format!("check.peers=http://{},http://{}", bad.address, good.address);
    let report = expect(home.path(), 0, &["recover", "--yes", "--strategy", "peer_state_sync", "--set", &peers]);
    assert_eq!(
        (strategies(&report), &report["attempts"][0]["blocks"]),
        (vec![("peer_state_sync".to_owned(), true)], &json!(2))
    );
    assert_eq!(expect(home.path(), 0, &["status"])["root"], before["root"]);
    assert!(!home.path().join("data/joining").exists(), "what was staged is gone");
}

/// A mirror of the snapshot of a home.
fn mirror(home: &Path, to: &Path, part: &[&str]) {
    let export = ["mirror", "--set", "snapshots.reserve_percent=0", "export", to.to_str().unwrap()];
    expect(home, 0, &[&export[..], part].concat());
}

/// Changes every chunk of a mirror.
fn damage_mirror(mirror: &Path) {
    let files = fs::read_dir(mirror).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.extension().is_some_and(|ending| ending == "chunk")) {
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
    }
}

/// A server that sends whoever comes one byte at a time, without end. It lives as long as the test process.
fn drip() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let answer = b"HTTP/1.0 200 OK\r\n\r\n".iter().chain(std::iter::repeat(&0));
                for byte in answer {
                    if stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    address
}

/// What [`recover_by`] sets beside what it is told: nobody is waited for long.
const PATIENCE: [&str; 4] = ["--set", "p2p.request_timeout_ms=1500", "--set", "p2p.stall_timeout_ms=3000"];

/// A recovery by strategies in an order, with settings.
fn recover_by(home: &Path, code: i32, order: &str, settings: &[String]) -> Value {
    let order = format!("recovery.strategies={order}");
    let mut arguments = vec!["recover", "--yes", "--set", &order];
    arguments.extend(PATIENCE);
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    expect(home, code, &arguments)
}

/// spec: RECOVER-1, RECOVER-7. Peers over libp2p give the very target, whoever else of them cannot be reached or is behind; one
/// that is behind gives what the blocks here go on from. A node that starts asks them by itself.
#[test]
fn a_lost_state_is_had_again_from_peers_over_libp2p() {
    let (home, before) = busy_chain();
    let [level, behind] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    copy(home.path(), level.path());
    copy(home.path(), behind.path());
    expect(behind.path(), 0, &["rollback", "3", "--yes"]);
    fs::remove_dir_all(home.path().join("data/snapshots")).unwrap();
    let (level, behind) = (peer(level.path(), &[]), peer(behind.path(), &[]));
    let peers = |addresses: &[&str]| format!("p2p.peers={}", addresses.join(","));
    let several = peers(&["127.0.0.1:1", &behind.1, &level.1]);
    for (peers, blocks) in [(several, 0), (peers(&[&behind.1]), 1)] {
        lose(home.path());
        let report = recover_by(home.path(), 0, "peer_state_sync", &[peers]);
        assert_eq!(
            (strategies(&report), &report["attempts"][0]["blocks"]),
            (vec![("peer_state_sync".to_owned(), true)], &json!(blocks))
        );
        let after = expect(home.path(), 0, &["status"]);
        assert_eq!((&after["root"], &after["height"]), (&before["root"], &before["height"]));
        assert!(!home.path().join("data/joining").exists(), "what was staged is gone");
    }
    expect(home.path(), 0, &["query", "block", "1"]);
    damage(home.path());
    let level = peers(&[&level.1]);
    drop(Node::start(home.path(), &[&level, "recovery.strategies=peer_state_sync"]));
    assert_eq!(expect(home.path(), 0, &["status"])["root"], before["root"]);
    // The blocks are lost as well: the root has to be given, and is all that is needed.
    lose(home.path());
    fs::write(generation(home.path()).join("blocks.redb"), b"nothing").unwrap();
    let given = ["recover", "--yes", "--to", "4", "--root", before["root"].as_str().unwrap()];
    let report = expect(home.path(), 0, &[&given[..], &["--set", &level]].concat());
    assert_eq!((&report["recovered_by"], &report["trust"]), (&json!("peer_state_sync"), &json!("given")));
    assert_eq!(expect(home.path(), 0, &["check", "--full"])["verdict"], "consistent");
}

/// spec: RECOVER-1, RECOVER-7. Mirrors give it, over HTTP and in a directory, those of peers too; beside one whose files are
/// changed the other is asked, and one alone whose files are changed gives nothing.
#[test]
fn a_lost_state_is_had_again_from_mirrors() {
    let (home, before) = busy_chain();
    let place = tempfile::tempdir().unwrap();
    let [bad, good] = ["bad", "good"].map(|name| place.path().join(name));
    mirror(home.path(), &good, &[]);
    copy(&good, &bad);
    damage_mirror(&bad);
    fs::remove_dir_all(home.path().join("data/snapshots")).unwrap();
    let [bad_web, good_web] = [&bad, &good].map(|mirror| format!("http://{}/some/where", serve(mirror.clone())));
    let sources = |place: &str| format!("recovery.sources={place}");
    let good = good.to_str().unwrap();
    for setting in [sources(&good_web), sources(&format!("{bad_web},{good}")), format!("p2p.mirrors={good_web}")] {
        lose(home.path());
        let report = recover_by(home.path(), 0, "network_snapshot", &[setting]);
        assert_eq!(report["attempts"][0]["blocks"], 2);
        assert_eq!(expect(home.path(), 0, &["status"])["root"], before["root"]);
    }
    damage(home.path());
    let failure = recover_by(home.path(), 12, "network_snapshot", &[sources(&bad_web)]);
    let message = failure["error"]["message"].as_str().unwrap();
    assert!(message.contains("nobody is left to ask") && message.contains("cannot be true"), "{message}");
    expect(home.path(), 12, &["status"]);
    // What needs to be known first is known: the node goes by the mirror when it starts.
    let node = Node::start(home.path(), &[&sources(&good_web), "recovery.strategies=network_snapshot"]);
    assert_eq!(node.json("/v1/status").1["root"], before["root"]);
}

/// spec: RECOVER-2, RECOVER-3. C-02: whichever way a strategy fails, over real sockets and files, the next is tried and its
/// result counts; the report says what was wrong.
#[test]
fn c02_each_strategy_gives_way_to_the_next_in_each_of_its_ways() {
    let (home, before) = busy_chain();
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    // Mirrors: honest, changed, without an index, of a part, and of another chain.
    mirror(home.path(), &path("whole"), &[]);
    for name in ["changed", "cut"] {
        copy(&path("whole"), &path(name));
    }
    damage_mirror(&path("changed"));
    let index = fs::read_dir(path("cut")).unwrap().map(|entry| entry.unwrap().path());
    for file in index.filter(|file| file.extension().is_some_and(|ending| ending == "snapshot")) {
        fs::remove_file(file).unwrap();
    }
    mirror(home.path(), &path("part"), &["--namespace", "agents"]);
    let (other, _) = busy_chain();
    mirror(other.path(), &path("other"), &[]);
    // Peers: honest, of another chain, of the same that went another way, and a node whose snapshot is damaged.
    let [level, forked, serving] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    copy(home.path(), level.path());
    copy(home.path(), serving.path());
    damage_snapshots(serving.path());
    copy(home.path(), forked.path());
    expect(forked.path(), 0, &["rollback", "3", "--yes"]);
    send(forked.path(), 0, &json!([post("another fourth")]));
    let [level, forked, other] = [&level, &forked, &other].map(|home| peer(home.path(), &[]));
    let serving = Node::start(serving.path(), &["snapshots.enabled=true", "snapshots.reserve_percent=0"]);

    let limit = || "recovery.max_block_replay=1".to_owned();
    let peers = |peer: &str| format!("p2p.peers={peer}");
    let sources = |place: &str| format!("recovery.sources={place}");
    let (local, from_peers, network) = ("local_snapshot", "peer_state_sync", "network_snapshot");
    let (blocks, level) = ("block_replay", peers(&level.1));
    let ways: Vec<(&str, &str, Vec<String>, &str)> = vec![
        (local, from_peers, vec![limit(), level.clone()], "it takes 2 blocks, the limit is 1"),
        (blocks, from_peers, vec![limit(), level.clone()], "it takes 4 blocks, the limit is 1"),
        (from_peers, blocks, vec![], "no peer is configured"),
        (from_peers, blocks, vec![peers("127.0.0.1:1")], "nobody could be reached"),
        (from_peers, blocks, vec![peers(&other.1)], "it says that height 4 has root"),
        (from_peers, blocks, vec![peers(&forked.1)], "it says that height 4 has root"),
        (from_peers, blocks, vec!["check.peers=http://127.0.0.1:1".to_owned()], "did not answer"),
        (from_peers, blocks, vec![format!("check.peers=http://{}", serving.address)], "of a snapshot of height 2"),
        (network, blocks, vec![], "no place is configured"),
        (network, blocks, vec![sources(&text("nowhere"))], "No such file"),
        (network, blocks, vec![sources("http://127.0.0.1:1/state")], "refused"),
        (network, blocks, vec![sources(&format!("http://{}/elsewhere", serve(path("whole"))))], "not found"),
        (network, blocks, vec![sources(&format!("http://{}/state", drip()))], "the answer takes too long"),
        (network, blocks, vec![sources(&text("changed"))], "nobody is left to ask"),
        (network, blocks, vec![sources(&text("cut"))], "No such file"),
        (network, blocks, vec![sources(&text("part"))], "alone"),
        (network, blocks, vec![sources(&text("other"))], "which is"),
        (network, from_peers, vec![sources(&text("whole")), limit(), level.clone()], "the limit is 1"),
    ];
    let fails = |first: &str, next: &str, settings: &[String], why: &str| {
        lose(home.path());
        let report = recover_by(home.path(), 0, &format!("{first},{next}"), settings);
        let expected = [(first.to_owned(), false), (next.to_owned(), true)];
        assert_eq!(strategies(&report), expected, "{settings:?}: {report}");
        let said = report["attempts"][0]["failed"].as_str().unwrap();
        assert!(said.contains(why), "{settings:?}: {said}");
        assert_eq!(report["root"], before["root"]);
    };
    for (first, next, settings, why) in &ways {
        fails(first, next, settings, why);
    }
    damage_snapshots(home.path());
    fails(local, from_peers, std::slice::from_ref(&level), "");
    fs::remove_dir_all(home.path().join("data/snapshots")).unwrap();
    fails(local, blocks, &[], "there are no snapshots here");
    assert_eq!(expect(home.path(), 0, &["check", "--full"])["verdict"], "consistent");
    // Nothing is left of the blocks: the strategies that need them give way to the one that needs none.
    let last = generation(home.path()).join("blocks.redb");
    lose(home.path());
    fs::write(last, b"nothing").unwrap();
    let root = before["root"].as_str().unwrap();
    let order = format!("recovery.strategies={blocks},{network},{from_peers}");
    let source = sources(&text("whole"));
    let given = ["recover", "--yes", "--to", "4", "--root", root, "--set", &order, "--set", &source, "--set", &level];
    let report = expect(home.path(), 0, &given);
    assert_eq!(report["recovered_by"], from_peers, "{report}");
}

/// A node whose state is damaged has it again by itself when it starts, and says so; one that must not do that does
/// not start, and nothing is changed.
#[test]
fn a_node_recovers_a_damaged_state_when_it_starts() {
    let (home, before) = busy_chain();
    damage(home.path());
    let mut command = program();
    command.args(["node", "--json", "--set", "http.listen=127.0.0.1:0", "--set", "recovery.automatic=false", "--home"]);
    let output = command.arg(home.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(12));
    expect(home.path(), 12, &["status"]);
    let node = Node::start(home.path(), &[]);
    let (_, status) = node.json("/v1/status");
    assert_eq!((&status["root"], &status["height"]), (&before["root"], &before["height"]));
    drop(node);
    assert_eq!(fs::read_dir(home.path().join("recoveries")).unwrap().count(), 1);

    // With nothing to recover from it does not start either, and says what was tried.
    damage_snapshots(home.path());
    damage(home.path());
    fs::write(generation(home.path()).join("blocks.redb"), b"nothing").unwrap();
    let output = keelstone(home.path(), &["node", "--json", "--set", "http.listen=127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(12), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What takes long is told to stop: it ends, its end is on record as its beginning is, the old state is kept, and what is said is how to
/// go on.
#[test]
fn what_is_told_to_stop_ends_and_says_so() {
    let (home, before) = busy_chain();
    // Whoever dials it waits: it says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("p2p.peers={}", silent.local_addr().unwrap());
    let ended = |home: &Path, sign: &str, arguments: &[&str]| {
        let mut command = program();
        command.args(arguments).args(["--json", "--set", &silent, "--home"]).arg(home);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        until("it has begun", || home.join(sign).is_dir());
        let since = Instant::now();
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(since.elapsed() < Duration::from_secs(10), "it went on for {:?}", since.elapsed());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let last = |home: &Path, kind: &str| {
        let shown = expect(home, 0, &["audit", "node", "show", "--kind", kind]);
        let record = shown["records"].as_array().unwrap().last().unwrap().clone();
        assert!(record["step"] == "failed" && record.to_string().contains("stopped by a signal"), "{record}");
    };
    let root = before["root"].as_str().unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let genesis = home.path().join("genesis.json");
    let sync = ["sync", "--genesis", genesis.to_str().unwrap(), "--trust-height", "4", "--trust-hash", root];
    let roomy = ["--set", "snapshots.reserve_percent=0"];
    let (code, said) = ended(fresh.path(), "data/joining", &[&sync[..], &roomy].concat());
    assert!(code == Some(1) && said.contains("stopped by a signal") && said.contains("goes on"), "{code:?} {said}");
    last(fresh.path(), "restored");

    damage(home.path());
    let only = ["--set", "recovery.strategies=peer_state_sync"];
    let (code, said) = ended(home.path(), "recoveries", &[&["recover", "--yes"][..], &only].concat());
    assert!(
        code == Some(1) && said.contains("stopped by a signal") && said.contains("data/joining"),
        "{code:?} {said}"
    );
    last(home.path(), "recovered");
    fs::remove_dir_all(home.path().join("recoveries")).unwrap();
    let node = [&["node", "--set", "http.listen=127.0.0.1:0"][..], &only].concat();
    let (code, said) = ended(home.path(), "recoveries", &node);
    assert_eq!(code, Some(0), "{said}");
    last(home.path(), "recovered");
    expect(home.path(), 12, &["status"]);
}

/// spec: RECOVER-8. A strategy for whose result there is no room writes nothing, and says what it takes and what is free.
#[test]
fn a_strategy_for_which_there_is_no_room_gives_way() {
    let (home, before) = busy_chain();
    damage(home.path());
    // As long as eight terabytes, and empty: what a state takes that is made of all blocks is what the one here took.
    let large = fs::File::create(generation(home.path()).join("state/large")).unwrap();
    large.set_len(8 << 40).unwrap();
    let report = recover_by(home.path(), 0, "block_replay,local_snapshot", &[]);
    let expected = [("block_replay", false), ("local_snapshot", true)];
    assert_eq!(strategies(&report), expected.map(|(name, done)| (name.to_owned(), done)));
    let said = report["attempts"][0]["failed"].as_str().unwrap();
    let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(matches!(numbers[..], [needed, free] if needed >= 8 << 40 && free < needed), "{said}");
    assert_eq!(expect(home.path(), 0, &["status"])["root"], before["root"]);
}

/// Damage that is not in the way of opening a store stops nothing: what is proven good is served, what takes the
/// damaged bytes is refused as damaged, a full check finds it and nothing takes it for a sample, and a recovery mends
/// it.
#[test]
fn what_is_proven_good_is_served_while_the_rest_is_damaged() {
    let (home, _) = busy_chain();
    // Far from what every start reads: values are read in blocks of some kilobytes.
    let more = |number: usize| {
        send(
            home.path(),
            0,
            &json!((0..8).map(|at| post(&format!("{number}.{at} {}", "x".repeat(200)))).collect::<Vec<_>>()),
        )
    };
    (0..3).for_each(|number| drop(more(number)));
    send(home.path(), 0, &json!([post("a needle that is found again")]));
    (3..6).for_each(|number| drop(more(number)));
    let node = Node::start(home.path(), &[]);
    node.signal("TERM");
    let mut node = node;
    assert_eq!(node.wait(std::time::Duration::from_secs(30)), Some(0), "what is in the log is written out");
    let mut damaged = 0;
    for entry in fs::read_dir(generation(home.path()).join("state")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let places: Vec<usize> =
            bytes.windows(8).enumerate().filter(|(_, found)| found == b"a needle").map(|(at, _)| at).collect();
        places.iter().for_each(|at| bytes[*at] ^= 1);
        damaged += places.len();
        fs::write(&path, bytes).unwrap();
    }
    assert!(damaged > 0, "the text of a meme is stored as it is");

    let before = expect(home.path(), 0, &["status"]);
    expect(home.path(), 0, &["query", "agents"]);
    expect(home.path(), 12, &["query", "memes"]);
    // One that mends by itself has it whole again while it is looked at.
    let node = Node::start(home.path(), &["recovery.automatic=false", "check.auto_repair=false"]);
    let (status, body) = node.json("/v1/entries/memes");
    assert_eq!((status, &body["error"]["code"]), (500, &json!("damaged")));
    assert_eq!(node.json("/v1/entries/agents").0, 200);
    let found = expect(home.path(), 12, &["check", "--full"]);
    assert!(found["discrepancies"].as_array().unwrap().iter().any(|found| found["kind"] == "storage"), "{found}");
    assert_eq!(node.get("/readyz").0, 503);
    drop(node);
    let report = expect(home.path(), 0, &["recover", "--yes"]);
    assert_eq!(report["root"], before["root"]);
    assert_eq!(expect(home.path(), 0, &["check", "--full"])["verdict"], "consistent");
    expect(home.path(), 0, &["query", "memes"]);
}

/// Runs a command that reads a pipe, tells it to stop there, and says what it said: it hears signals before it reads. Read again, the
/// pipe is empty.
fn stopped_at(pipe: &Path, content: &[u8], home: &Path, arguments: &[&str]) -> String {
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    let mut command = program();
    command.args(arguments).args(["--json", "--home"]).arg(home);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = fs::OpenOptions::new().write(true).open(pipe).unwrap();
    // How often the thread that hears signals went to sleep, if it sleeps.
    let sleeps = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().map(|task| task.unwrap().path());
        let named = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "signals\n");
        let status = fs::read_to_string(tasks.into_iter().find(named)?.join("status")).ok()?;
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        status.contains("State:\tS").then(|| count.trim().parse::<u64>().unwrap())
    };
    until("it waits for signals", || sleeps().is_some());
    let before = sleeps();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    until("the signal was heard", || sleeps() > before);
    first.write_all(content).unwrap();
    drop(first);
    let ended = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                drop(fs::OpenOptions::new().write(true).open(pipe).unwrap());
            }
        });
        let output = child.wait_with_output().unwrap();
        ended.store(true, Ordering::Relaxed);
        // Whoever is about to open it waits for a reader.
        let reader = fs::OpenOptions::new().read(true).write(true).open(pipe).unwrap();
        (output, reader)
    });
    fs::remove_file(pipe).unwrap();
    let (status, said) = (output.0.status, String::from_utf8_lossy(&output.0.stderr).into_owned());
    assert!(status.code() == Some(1) && said.contains("stopped by a signal"), "{arguments:?}: {status:?} {said}");
    said
}

/// What works on the disk for long ends with a word when it is told to stop; its end is on record if its beginning is, and nothing is half
/// done.
#[test]
fn what_works_on_the_disk_is_told_to_stop_and_leaves_nothing_half_done() {
    let (home, before) = busy_chain();
    let generations = || {
        let names = fs::read_dir(home.path().join("data")).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with("gen-"));
        names.collect::<std::collections::BTreeSet<String>>()
    };
    let counts = generations();
    let is_as_before = || {
        let now = expect(home.path(), 0, &["status"]);
        assert_eq!((&now["height"], &now["root"]), (&before["height"], &before["root"]));
        assert_eq!(generations(), counts);
    };
    let (pipe, genesis) = (home.path().join("pipe"), fs::read(home.path().join("genesis.json")).unwrap());
    let given = pipe.to_str().unwrap();
    let restore = ["snapshot", "restore", "2", "--genesis", given, "--yes", "--set", "snapshots.reserve_percent=0"];
    let said = stopped_at(&pipe, &genesis, home.path(), &restore);
    assert!(said.contains("nothing was changed"), "{said}");
    let shown = expect(home.path(), 0, &["audit", "node", "show", "--kind", "restored"]);
    let record = shown["records"].as_array().unwrap().last().unwrap().clone();
    assert!(record["step"] == "failed" && record.to_string().contains("stopped by a signal"), "{record}");
    is_as_before();

    let config = home.path().join("keelstone.toml");
    let commands = [
        &["check", "--full"][..],
        &["check", "--repair"],
        &["db", "check"],
        &["db", "check", "--repair"],
        &["db", "compact"],
        &["db", "prune", "--before", "3", "--yes"],
    ];
    for command in commands {
        let settings = fs::read(&config).unwrap();
        fs::remove_file(&config).unwrap();
        stopped_at(&config, b"", home.path(), command);
        fs::write(&config, settings).unwrap();
        is_as_before();
    }
}
