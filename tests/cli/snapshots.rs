//! Snapshots from the command line: made, proven, carried to another home, restored; and made by a running node.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, expect, keelstone, post, program, register, send};
use keelstone::codec::{Decode as _, Encode as _, Hash, Height, Root};
use keelstone::sync::delta::Delta;
use keelstone::sync::library::Index;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A chain with a few entries, at height 3.
fn busy_chain() -> TempDir {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    send(home.path(), 0, &json!([post("second"), post("third")]));
    send(home.path(), 0, &json!([post("fourth")]));
    home
}

/// A command whose disk may be as full as it likes.
fn snapshot(home: &Path, code: i32, arguments: &[&str]) -> Value {
    expect(home, code, &[&["snapshot", "--set", "snapshots.reserve_percent=0"], arguments].concat())
}

/// A new home with the genesis of another.
fn sibling(home: &Path) -> (TempDir, String) {
    let other = tempfile::tempdir().unwrap();
    (other, home.join("genesis.json").to_str().unwrap().to_owned())
}

fn chunk_files(home: &Path) -> Vec<std::path::PathBuf> {
    let listed = fs::read_dir(home.join("data/snapshots")).unwrap();
    let mut files: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "chunk"));
    files.sort();
    files
}

/// Made here, exported as one file and as a directory, proven and restored elsewhere: the same root, and blocks go on.
#[test]
fn a_snapshot_travels_to_another_home_and_comes_to_the_same_root() {
    let home = busy_chain();
    let status = expect(home.path(), 0, &["status"]);
    let made = snapshot(home.path(), 0, &["create"]);
    assert_eq!((&made["height"], &made["root"]), (&json!(3), &status["root"]));
    assert_eq!(snapshot(home.path(), 0, &["list"])["snapshots"], json!([made]));
    assert_eq!(expect(home.path(), 0, &["status"])["snapshots"]["newest_height"], 3);
    let verified = snapshot(home.path(), 0, &["verify", "3", "--restore"]);
    assert_eq!((&verified["valid"], &verified["restored"]), (&json!(true), &json!(true)));

    let carried = tempfile::tempdir().unwrap();
    let (tar, directory) = (carried.path().join("state.tar"), carried.path().join("state"));
    let (tar, directory) = (tar.to_str().unwrap(), directory.to_str().unwrap());
    snapshot(home.path(), 0, &["export", "3", tar]);
    snapshot(home.path(), 0, &["export", "3", directory]);
    snapshot(home.path(), 2, &["export", "3", tar]);
    snapshot(home.path(), 2, &["export", "3", directory]);
    snapshot(home.path(), 14, &["export", "2", "elsewhere.tar"]);
    let nothing = carried.path().join("nothing");
    snapshot(home.path(), 14, &["export", "2", nothing.to_str().unwrap()]);
    assert!(!nothing.exists(), "the directory of a snapshot that there is not");

    let root = made["root"].as_str().unwrap();
    for archive in [tar, directory] {
        let inspected = snapshot(home.path(), 0, &["inspect", archive, "--chunks"]);
        assert_eq!(
            inspected["chunk_list"].as_array().map(Vec::len),
            made["chunks"].as_u64().map(|count| usize::try_from(count).unwrap())
        );
        snapshot(home.path(), 0, &["verify", archive, "--root", root]);
        snapshot(home.path(), 12, &["verify", archive, "--root", &"ab".repeat(32)]);

        let (other, genesis) = sibling(home.path());
        let restored = snapshot(other.path(), 0, &["restore", archive, "--root", root, "--genesis", &genesis]);
        assert_eq!(restored["root"], made["root"]);
        let there = expect(other.path(), 0, &["status"]);
        assert_eq!((&there["height"], &there["root"]), (&json!(3), &status["root"]));
        assert_eq!(expect(other.path(), 0, &["db", "check"])["sound"], true);
        // The chain goes on from there, with the key that makes blocks.
        fs::create_dir_all(other.path().join("keys")).unwrap();
        fs::copy(home.path().join("keys/producer.key.json"), other.path().join("keys/producer.key.json")).unwrap();
        send(other.path(), 0, &json!([post("fifth")]));
        assert_eq!(expect(other.path(), 0, &["status"])["height"], 4);
        snapshot(other.path(), 0, &["import", archive]);
        assert_eq!(snapshot(other.path(), 0, &["list"])["snapshots"], json!([made]));
        // Of the heights before there are no blocks here, which is said with the heights of which there are.
        let node = Node::start(other.path(), &[]);
        for path in ["/v1/blocks/3", "/v1/events?from=3"] {
            let (code, body) = node.json(path);
            assert_eq!((code, &body["error"]["code"]), (410, &json!("gone")), "{path}");
            let heights = (&body["error"]["lowest_height"], &body["error"]["highest_height"]);
            assert_eq!(heights, (&json!(4), &json!(4)), "{path}");
        }
        assert_eq!(node.get("/v1/blocks/4").0, 200);
    }
}

/// A snapshot's directory with another height, whose index is made anew.
fn of_height(directory: &Path, to: &Path, height: u64) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !name.ends_with(".snapshot") {
            fs::copy(entry.path(), to.join(name)).unwrap();
            continue;
        }
        let mut index = Index::from_bytes(&fs::read(entry.path()).unwrap()).unwrap();
        index.metadata.height = Height(height);
        fs::write(to.join(format!("{height:020}-1.snapshot")), index.to_bytes()).unwrap();
    }
}

/// spec: SNAP-19. An archive's height is its maker's word, and the state says as much of it as it can: no home is made of one that
/// no block could follow. Above the last record nothing is known, since a chain may stand still.
#[test]
fn an_archive_of_another_height_is_refused_where_its_state_says_so() {
    let home = busy_chain();
    let made = snapshot(home.path(), 0, &["create"]);
    let carried = tempfile::tempdir().unwrap();
    let directory = carried.path().join("state");
    snapshot(home.path(), 0, &["export", "3", directory.to_str().unwrap()]);
    let root = made["root"].as_str().unwrap();
    for height in [2, 1, (1 << 62) + 1, u64::MAX - 2, u64::MAX - 1] {
        let other = carried.path().join(format!("at-{height}"));
        of_height(&directory, &other, height);
        let archive = other.to_str().unwrap();
        let (place, genesis) = sibling(home.path());
        snapshot(home.path(), 12, &["verify", archive, "--root", root]);
        snapshot(place.path(), 12, &["verify", archive, "--root", root, "--restore"]);
        snapshot(home.path(), 12, &["import", archive, "--root", root]);
        snapshot(place.path(), 12, &["restore", archive, "--root", root, "--genesis", &genesis]);
        assert!(!place.path().join("data/CURRENT").exists(), "nothing counts");
        let out = place.path().join("new.json");
        snapshot(place.path(), 12, &["to-genesis", archive, "--chain-id", "new", "--out", out.to_str().unwrap()]);
    }
    let idle = carried.path().join("idle");
    of_height(&directory, &idle, 70);
    let (place, genesis) = sibling(home.path());
    let archive = idle.to_str().unwrap();
    assert_eq!(snapshot(home.path(), 0, &["verify", archive, "--root", root])["last_block"], 3);
    let restored = snapshot(place.path(), 0, &["restore", archive, "--root", root, "--genesis", &genesis]);
    assert_eq!((&restored["height"], &restored["last_block"]), (&json!(70), &json!(3)));
    fs::create_dir_all(place.path().join("keys")).unwrap();
    fs::copy(home.path().join("keys/producer.key.json"), place.path().join("keys/producer.key.json")).unwrap();
    send(place.path(), 0, &json!([post("it goes on")]));
    assert_eq!(expect(place.path(), 0, &["status"])["height"], 71);
}

/// spec: CHECK-1. What was put here and nobody vouched for is not known to be the chain's, until blocks are made on it.
#[test]
fn a_restored_state_is_certified_by_a_root_that_was_given_or_by_blocks_made_on_it() {
    let home = busy_chain();
    let made = snapshot(home.path(), 0, &["create"]);
    let carried = tempfile::tempdir().unwrap();
    let tar = carried.path().join("state.tar");
    let tar = tar.to_str().unwrap();
    snapshot(home.path(), 0, &["export", "3", tar]);
    let restore = |more: &[&str]| {
        let (place, genesis) = sibling(home.path());
        let restored = snapshot(place.path(), 0, &[&["restore", tar, "--genesis", &genesis], more].concat());
        (place, restored["warnings"].clone())
    };
    let (place, warnings) = restore(&["--root", made["root"].as_str().unwrap()]);
    assert_eq!(warnings, json!([]));
    let found = expect(place.path(), 0, &["check"]);
    assert_eq!((&found["verdict"], &found["certified"]["by"]), (&json!("consistent"), &json!("given")));

    let (place, warnings) = restore(&[]);
    assert!(warnings[0].as_str().unwrap().contains("--root"), "{warnings}");
    for arguments in [&["check"][..], &["check", "--full"]] {
        let found = expect(place.path(), 17, arguments);
        assert_eq!((&found["verdict"], &found["certified"]), (&json!("unknown"), &json!(null)), "{found}");
    }
    fs::create_dir_all(place.path().join("keys")).unwrap();
    fs::copy(home.path().join("keys/producer.key.json"), place.path().join("keys/producer.key.json")).unwrap();
    send(place.path(), 0, &json!([post("on it")]));
    let found = expect(place.path(), 0, &["check"]);
    assert_eq!((&found["verdict"], &found["certified"]["by"]), (&json!("consistent"), &json!("own_blocks")));
}

/// a snapshot of another network is no snapshot of this one.
#[test]
fn a08_an_archive_of_another_chain_is_refused_by_name() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    let carried = tempfile::tempdir().unwrap();
    let tar = carried.path().join("state.tar");
    let tar = tar.to_str().unwrap();
    snapshot(home.path(), 0, &["export", "3", tar]);
    let other = tempfile::tempdir().unwrap();
    expect(other.path(), 0, &["init", "--chain-id", "other"]);
    for command in ["verify", "import", "restore"] {
        let error = snapshot(other.path(), 2, &[command, tar]);
        let said = error["error"]["message"].as_str().unwrap();
        assert!(said.contains("test") && said.contains("other"), "{said}");
    }
    // Nor does one lead to the other, for those who are of neither.
    snapshot(other.path(), 0, &["create"]);
    let (theirs, delta) = (carried.path().join("theirs.tar"), carried.path().join("delta"));
    let (theirs, delta) = (theirs.to_str().unwrap(), delta.to_str().unwrap());
    snapshot(other.path(), 0, &["export", "0", theirs]);
    let error = snapshot(&carried.path().join("nowhere"), 2, &["delta", theirs, tar, "--out", delta]);
    let said = error["error"]["message"].as_str().unwrap();
    assert!(said.contains("is of other") && said.contains("of test"), "{said}");
}

/// A byte that changed on the disk is found by whoever looks, and named; the snapshot is then set aside.
#[test]
fn a_flipped_byte_is_found_and_named() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    let chunk = &chunk_files(home.path())[0];
    let mut bytes = fs::read(chunk).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(chunk, bytes).unwrap();
    let error = snapshot(home.path(), 12, &["verify", "3"]);
    let name = chunk.file_name().unwrap().to_str().unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains(name), "{error}");
    let tar = home.path().join("out.tar");
    snapshot(home.path(), 12, &["export", "3", tar.to_str().unwrap()]);
    assert!(!tar.exists(), "half an archive is left");
    // Looking changes nothing; making it again puts it right.
    assert!(chunk.exists());
    snapshot(home.path(), 0, &["delete", "3", "--yes"]);
    snapshot(home.path(), 0, &["create"]);
    snapshot(home.path(), 0, &["verify", "3"]);
}

/// Changes a byte of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A damaged snapshot is made anew by whoever asks for it, a running node too, and is not said to be there before it is proven. What
/// is refused leaves no directory behind.
#[test]
fn a_damaged_snapshot_is_not_said_to_be_made() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    let damage = || {
        // All of it: what was exported before damage is met stays, to be gone on with.
        chunk_files(home.path()).iter().for_each(|file| flip(file, 9));
        let error = snapshot(home.path(), 12, &["verify", "3"]);
        let place = home.path().join("data/snapshots");
        assert!(error["error"]["message"].as_str().unwrap().contains(place.to_str().unwrap()), "{error}");
    };
    damage();
    let into = home.path().join("out");
    snapshot(home.path(), 12, &["export", "3", into.to_str().unwrap()]);
    expect(home.path(), 12, &["mirror", "export", into.to_str().unwrap()]);
    assert!(!into.exists(), "an empty directory is left");
    snapshot(home.path(), 0, &["create", "--height", "3"]);
    snapshot(home.path(), 0, &["verify", "3"]);
    for enabled in ["snapshots.enabled=true", "snapshots.enabled=false"] {
        let node = Node::start(home.path(), &[enabled, "snapshots.reserve_percent=0"]);
        damage();
        snapshot(home.path(), 0, &["create", "--height", "3"]);
        snapshot(home.path(), 0, &["verify", "3"]);
        drop(node);
    }
    snapshot(home.path(), 0, &["export", "3", into.to_str().unwrap()]);
}

/// A snapshot whose index is damaged is damaged and not absent, for whoever asks for it, also once it was set aside; and a directory
/// that cannot be looked into does not hold no snapshots.
#[test]
fn a_damaged_index_is_damage_and_what_cannot_be_read_is_an_error() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    let kept = home.path().join("data/snapshots");
    let listed = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path());
    let index = listed.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "snapshot")).unwrap();
    flip(&index, 48);
    let into = home.path().join("out");
    let to = into.to_str().unwrap();
    let is_named = |arguments: &[&str]| {
        let failed = snapshot(home.path(), 12, arguments);
        let message = failed["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("is damaged") && message.contains(kept.to_str().unwrap()), "{message}");
    };
    let ask = || {
        for arguments in [
            &["verify", "3"][..],
            &["inspect", "3"],
            &["export", "3", to],
            &["restore", "3", "--yes"],
            &["diff", "3", "3"],
        ] {
            is_named(arguments);
        }
        for mirror in [&["mirror", "export", to][..], &["mirror", "export", to, "--height", "3"]] {
            let failed = expect(home.path(), 12, mirror);
            assert!(failed["error"]["message"].as_str().unwrap().contains("is damaged"), "{failed}");
        }
        assert_eq!(snapshot(home.path(), 0, &["list"])["damaged"][0]["height"], 3);
        assert!(!into.exists());
        snapshot(home.path(), 14, &["verify", "2"]);
    };
    ask();
    // Whoever opens the library to write sets it aside.
    snapshot(home.path(), 14, &["delete", "3", "--yes"]);
    assert!(!index.exists());
    ask();
    snapshot(home.path(), 0, &["create", "--height", "3"]);
    snapshot(home.path(), 0, &["verify", "3"]);
    assert_eq!(snapshot(home.path(), 0, &["list"])["damaged"], json!([]));
    // As a directory that this user may not enter.
    fs::remove_dir_all(&kept).unwrap();
    std::os::unix::fs::symlink(&kept, &kept).unwrap();
    let failed = snapshot(home.path(), 1, &["list"]);
    assert!(failed["error"]["message"].as_str().unwrap().contains(kept.to_str().unwrap()), "{failed}");
    fs::remove_file(&kept).unwrap();
    assert_eq!(snapshot(home.path(), 0, &["list"])["snapshots"], json!([]));
}

/// a tar for which there is no room is refused before it is begun.
#[test]
fn a05_a_tar_for_which_there_is_no_room_is_not_begun() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    let tar = home.path().join("out.tar");
    let arguments =
        ["snapshot", "export", "3", tar.to_str().unwrap(), "--set", "snapshots.reserve_percent=90", "--json"];
    let refused = keelstone(home.path(), &arguments);
    // On a disk that is nine tenths empty there is room all the same.
    if refused.status.code() != Some(0) {
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("are to stay free") && !tar.exists(), "{said}");
    }
}

/// What two heights differ in, by namespace and by key.
#[test]
fn the_difference_of_two_snapshots_names_namespaces_and_keys() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    snapshot(home.path(), 0, &["create", "--height", "2"]);
    let found = snapshot(home.path(), 0, &["diff", "2", "3", "--limit", "1000"]);
    assert_eq!(
        (&found["from"]["height"], &found["to"]["height"], &found["equal"]),
        (&json!(2), &json!(3), &json!(false))
    );
    // `memes/` and the number of the meme, in hexadecimal.
    let meme = json!({ "change": "added", "namespace": "memes", "key": "6d656d65732f0000000000000004" });
    assert!(found["entries"].as_array().unwrap().contains(&meme), "{found}");
    assert_eq!(found["namespaces"]["blocks"], json!({ "added": 1, "changed": 0, "removed": 0 }));
    let back = snapshot(home.path(), 0, &["diff", "3", "2"]);
    assert_eq!(back["namespaces"]["memes"]["removed"], found["namespaces"]["memes"]["added"]);
    assert_eq!(snapshot(home.path(), 0, &["diff", "3", "3"])["equal"], true);
}

/// L-07: what removes something needs a yes, and a directory that is in use is left alone.
#[test]
fn l07_removing_a_snapshot_needs_a_yes_and_an_idle_directory() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    snapshot(home.path(), 2, &["delete", "3"]);
    snapshot(home.path(), 14, &["delete", "9", "--yes"]);
    let node = Node::start(home.path(), &["snapshots.enabled=true"]);
    snapshot(home.path(), 2, &["delete", "3"]);
    for command in [&["import", "x.tar"][..], &["restore", "3", "--yes"]] {
        snapshot(home.path(), 11, command);
    }
    // Looking is allowed.
    assert_eq!(snapshot(home.path(), 0, &["list"])["snapshots"][0]["height"], 3);
    snapshot(home.path(), 0, &["verify", "3"]);
    drop(node);
    snapshot(home.path(), 0, &["delete", "3", "--yes"]);
    assert_eq!(snapshot(home.path(), 0, &["list"])["snapshots"], json!([]));
    assert_eq!(chunk_files(home.path()).len(), 0);
}

/// Asks a node to make a snapshot and to say when it is offered, and comes back once it waits for the blocks that takes.
fn waits_for_blocks(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"{\"create_snapshot\":{\"height\":null,\"until_offered\":true}}\n").unwrap();
    let told = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    assert!(told.into_iter().any(|line| line.contains("waiting")), "it waits");
    stream
}

/// The owner of a running node has it make, offer and remove snapshots, whether or not it makes any by itself; nobody
/// else reaches the socket.
#[test]
fn a_running_node_makes_and_removes_snapshots_for_its_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = busy_chain();
    let socket = home.path().join("data/control.sock");
    for enabled in ["true", "false"] {
        let settings = [&format!("snapshots.enabled={enabled}"), "snapshots.reserve_percent=0"];
        let node = Node::start(home.path(), &settings);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let status = expect(home.path(), 0, &["status"]);
        let made = snapshot(home.path(), 0, &["create"]);
        assert_eq!((&made["height"], &made["root"]), (&status["height"], &status["root"]));
        assert_eq!(made["offered"], false, "two blocks must stand above it");
        let height = made["height"].to_string();
        snapshot(home.path(), 0, &["verify", &height]);
        // Again, and an older one, whose state is kept; one that is not is named.
        assert_eq!(snapshot(home.path(), 0, &["create"])["hash"], made["hash"]);
        let older = snapshot(home.path(), 0, &["create", "--height", "1"]);
        assert_eq!((&older["height"], &older["offered"]), (&json!(1), &json!(enabled == "true")));
        snapshot(home.path(), 14, &["create", "--height", "999"]);
        match enabled {
            "true" => {
                let waiting = {
                    let home = home.path().to_owned();
                    std::thread::spawn(move || snapshot(&home, 0, &["create", "--until-offered"]))
                };
                until(&node, "/v1/snapshots", |found| found["making"].is_null());
                send(home.path(), 0, &json!([post("one above")]));
                send(home.path(), 0, &json!([post("two above")]));
                // The one that waits may have begun only now, and then two more blocks are its turn.
                while !waiting.is_finished() {
                    send(home.path(), 0, &json!([post("and another")]));
                }
                let offered = waiting.join().unwrap();
                assert_eq!(offered["offered"], true);
                let listed = node.json("/v1/snapshots").1["snapshots"].clone();
                assert!(listed.as_array().unwrap().iter().any(|each| each["hash"] == offered["hash"]), "{listed}");
                snapshot(home.path(), 0, &["delete", &offered["height"].to_string(), "--yes"]);
            }
            _ => drop(snapshot(home.path(), 2, &["create", "--until-offered"])),
        }
        if enabled == "true" {
            // Those who wait for blocks that do not come, and go away, are in nobody's way.
            let waiting: Vec<_> = (0..8).map(|_| waits_for_blocks(&socket)).collect();
            drop(waiting);
        }
        snapshot(home.path(), 14, &["delete", "999", "--yes"]);
        for listed in snapshot(home.path(), 0, &["list"])["snapshots"].as_array().unwrap() {
            snapshot(home.path(), 0, &["delete", &listed["height"].to_string(), "--yes"]);
        }
        assert_eq!(snapshot(home.path(), 0, &["gc"])["unneeded"], 0);
        assert_eq!(chunk_files(home.path()).len(), 0);
        node.signal("TERM");
        let mut node = node;
        assert_eq!(node.wait(Duration::from_secs(30)), Some(0));
        assert!(!socket.exists(), "it goes with the node");
    }
    // A node that was killed leaves its socket behind, and nobody is at the other end.
    let node = Node::start(home.path(), &[]);
    node.signal("KILL");
    drop(node);
    assert!(socket.exists());
    snapshot(home.path(), 0, &["create"]);
    snapshot(home.path(), 2, &["create", "--until-offered"]);
}

/// Waits until a node's answer is what is wanted.
fn until(node: &Node, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let (_, found) = node.json(path);
        if wanted(&found) {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{path} still says {found}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running node makes snapshots at its interval, keeps the newest, offers those with two blocks above them (SS-40), and
/// serves their chunks.
#[test]
fn ss40_a_node_makes_snapshots_at_its_interval_and_offers_them_two_blocks_later() {
    let home = chain();
    let settings =
        ["snapshots.enabled=true", "snapshots.interval=2", "snapshots.keep=2", "snapshots.reserve_percent=0"];
    let node = Node::start(home.path(), &settings);
    send(home.path(), 0, &json!([register()]));
    send(home.path(), 0, &json!([post("two")]));
    until(&node, "/metrics", |_| node.get("/metrics").1.contains("snapshot_created_snapshots_total 1"));
    assert_eq!(node.json("/v1/snapshots").1["snapshots"], json!([]), "made, and not offered yet");
    send(home.path(), 0, &json!([post("three")]));
    assert_eq!(node.json("/v1/snapshots").1["snapshots"], json!([]));
    send(home.path(), 0, &json!([post("four")]));
    let found =
        until(&node, "/v1/snapshots", |found| found["snapshots"].as_array().is_some_and(|list| list.len() == 1));
    let block = node.json("/v1/blocks/2").1;
    assert_eq!((&found["snapshots"][0]["height"], &found["snapshots"][0]["root"]), (&json!(2), &block["root"]));
    assert_eq!(node.json("/v1/status").1["snapshots"]["newest_height"], 2);
    // SS-43: chunks that are there, and those that are not.
    assert_eq!(node.get("/v1/snapshots/2/chunks/0").0, 200);
    for path in ["/v1/snapshots/2/chunks/9999", "/v1/snapshots/3/chunks/0", "/v1/snapshots/2/chunks/4294967295"] {
        assert_eq!(node.get(path).0, 404, "{path}");
    }
    assert_eq!(node.get("/v1/snapshots/2/chunks/x").0, 400);
    for text in ["five", "six", "seven", "eight"] {
        send(home.path(), 0, &json!([post(text)]));
        until(&node, "/v1/snapshots", |found| found["making"].is_null());
    }
    let metrics = node.get("/metrics").1;
    assert!(metrics.contains("snapshot_refused_chunks_total{reason=\"unknown\"}"), "{metrics}");
    node.signal("TERM");
    let mut node = node;
    assert_eq!(node.wait(Duration::from_secs(30)), Some(0));
    let listed = snapshot(home.path(), 0, &["list"]);
    let heights: Vec<u64> =
        listed["snapshots"].as_array().unwrap().iter().map(|s| s["height"].as_u64().unwrap()).collect();
    // The one that was served from stays a while; of the others the newest two are kept.
    assert!(heights.starts_with(&[8, 6]) || heights.starts_with(&[6, 4]), "{heights:?}");
    assert!(heights.len() <= 3, "{heights:?}");
    snapshot(home.path(), 0, &["verify", &heights[0].to_string(), "--restore"]);
}

/// SS-41: why a chunk is not served is said: it is damaged, and once that is known its snapshot is none.
#[test]
fn ss41_a_damaged_chunk_is_told_as_damage() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    for file in chunk_files(home.path()) {
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let node = Node::start(home.path(), &["snapshots.enabled=true", "snapshots.reserve_percent=0"]);
    for (status, code) in [(500, "damaged"), (404, "not_found")] {
        let (found, body) = node.json("/v1/snapshots/3/chunks/0");
        assert_eq!((found, &body["error"]["code"]), (status, &json!(code)), "{body}");
    }
}

/// SS-37: a node that is killed while it makes a snapshot lists nothing half made, and leaves nothing behind.
#[test]
fn ss37_a_kill_while_making_leaves_nothing_listed() {
    let home = chain();
    let settings =
        ["snapshots.enabled=true", "snapshots.interval=1", "snapshots.keep=100", "snapshots.reserve_percent=0"];
    for round in 0..4u64 {
        let node = Node::start(home.path(), &settings);
        let calls = if round == 0 { json!([register()]) } else { json!([post(&format!("round {round}"))]) };
        send(home.path(), 0, &calls);
        // Somewhere in the middle of it.
        std::thread::sleep(Duration::from_micros(300 * round * round));
        node.signal("KILL");
        drop(node);
        fs::write(home.path().join("data/snapshots/half.tmp"), "x").unwrap();
        let listed = snapshot(home.path(), 0, &["list"]);
        assert_eq!(listed["damaged"], json!([]), "round {round}");
        for listed in listed["snapshots"].as_array().unwrap() {
            snapshot(home.path(), 0, &["verify", &listed["height"].to_string()]);
        }
        snapshot(home.path(), 0, &["gc"]);
        assert!(!home.path().join("data/snapshots/half.tmp").exists(), "swept when opened");
    }
}

/// A rollback takes the snapshots of the heights it forgets along.
#[test]
fn a_rollback_removes_the_snapshots_above_it() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    snapshot(home.path(), 0, &["create", "--height", "2"]);
    expect(home.path(), 0, &["rollback", "2", "--yes"]);
    let listed = snapshot(home.path(), 0, &["list"]);
    assert_eq!(listed["snapshots"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed["snapshots"][0]["height"], 2);
}

/// a snapshot that would fill the disk is not made.
#[test]
fn a05_a_reserve_that_is_not_there_refuses_with_a_hint() {
    let home = busy_chain();
    let free = keelstone(home.path(), &["snapshot", "create", "--set", "snapshots.reserve_percent=90", "--json"]);
    // On a disk that is nine tenths empty there is room all the same.
    if free.status.code() == Some(1) {
        let said = String::from_utf8_lossy(&free.stderr).into_owned();
        assert!(said.contains("are to stay free") && said.contains("reserve_percent"), "{said}");
        assert_eq!(chunk_files(home.path()).len(), 0);
    }
    let shorthand = program().args(["node", "--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shorthand.stdout).contains("--enable-snapshots"));
}

/// A restore in the place of a state needs a yes, leaves what was there until the new state is whole, and takes the
/// snapshots above it along.
#[test]
fn a_state_is_replaced_as_a_whole_or_not_at_all() {
    let home = busy_chain();
    let tar = home.path().join("two.tar");
    let tar = tar.to_str().unwrap();
    let old = snapshot(home.path(), 0, &["create", "--height", "2"]);
    snapshot(home.path(), 0, &["create"]);
    snapshot(home.path(), 0, &["export", "2", tar]);
    snapshot(home.path(), 2, &["restore", tar]);
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 3);
    // Damaged in the middle: nothing changed.
    let mut bytes = fs::read(tar).unwrap();
    let middle = bytes.len() - 1500;
    bytes[middle] ^= 1;
    let damaged = home.path().join("damaged.tar");
    fs::write(&damaged, bytes).unwrap();
    let refused = keelstone(home.path(), &["snapshot", "restore", damaged.to_str().unwrap(), "--yes"]);
    assert!(matches!(refused.status.code(), Some(2 | 12)), "{refused:?}");
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 3);
    snapshot(home.path(), 0, &["restore", "2", "--yes"]);
    let status = expect(home.path(), 0, &["status"]);
    assert_eq!((&status["height"], &status["root"]), (&json!(2), &old["root"]));
    assert_eq!(snapshot(home.path(), 0, &["list"])["snapshots"], json!([old]));
    // Another genesis of the same name is another chain.
    let (other, _) = sibling(home.path());
    let mut genesis: Value =
        serde_json::from_str(&fs::read_to_string(home.path().join("genesis.json")).unwrap()).unwrap();
    genesis["time"] = json!(genesis["time"].as_u64().unwrap() + 1);
    let file = other.path().join("genesis-2.json");
    fs::write(&file, genesis.to_string()).unwrap();
    let error = snapshot(other.path(), 2, &["restore", tar, "--genesis", file.to_str().unwrap()]);
    assert!(error["error"]["message"].as_str().unwrap().contains("belongs to"), "{error}");
    assert!(!other.path().join("genesis.json").exists(), "a home that was refused stays empty");
}

/// A snapshot and what changed since come to the later height, under the later root.
#[test]
fn a_delta_takes_an_old_snapshot_to_a_later_height() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create", "--height", "1"]);
    let file = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (tar, delta) = (file("one.tar"), file("delta"));
    snapshot(home.path(), 0, &["export", "1", &tar]);
    let made = snapshot(home.path(), 0, &["delta", "1", "3", "--out", &delta]);
    snapshot(home.path(), 2, &["delta", "1", "3", "--out", &delta]);
    snapshot(home.path(), 2, &["delta", "3", "1", "--out", &file("backwards")]);
    snapshot(home.path(), 14, &["delta", "1", "9", "--out", &file("beyond")]);
    let status = expect(home.path(), 0, &["status"]);
    assert_eq!((&made["to"]["height"], &made["to"]["root"]), (&json!(3), &status["root"]));
    // Between two snapshots it is the same, byte for byte: also beside a node, and with no chain at hand.
    snapshot(home.path(), 2, &["delta", &tar, "3", "--out", &file("no snapshot of the other")]);
    snapshot(home.path(), 0, &["create"]);
    let later = file("three.tar");
    snapshot(home.path(), 0, &["export", "3", &later]);
    let node = Node::start(home.path(), &[]);
    snapshot(home.path(), 0, &["delta", "1", "3", "--out", &file("beside")]);
    drop(node);
    let nowhere = home.path().join("nowhere");
    snapshot(&nowhere, 0, &["delta", &tar, &later, "--out", &file("nowhere.delta")]);
    snapshot(&nowhere, 2, &["delta", &later, &tar, "--out", &file("backwards")]);
    for other in ["beside", "nowhere.delta"] {
        assert_eq!(fs::read(file(other)).unwrap(), fs::read(&delta).unwrap(), "{other}");
    }
    let (other, genesis) = sibling(home.path());
    let restore = |code: i32, delta: &str, root: &str| {
        snapshot(other.path(), code, &["restore", &tar, "--delta", delta, "--root", root, "--genesis", &genesis])
    };
    restore(2, &delta, &"ab".repeat(32));
    // One that says something else of the later state is found out by the root.
    let mut bytes = fs::read(&delta).unwrap();
    let text = bytes.windows(6).position(|window| window == b"fourth").unwrap();
    bytes[text] = b'F';
    fs::write(file("forged"), bytes).unwrap();
    let root = status["root"].as_str().unwrap();
    restore(12, &file("forged"), root);
    let restored = restore(0, &delta, root);
    assert_eq!((&restored["height"], &restored["root"]), (&json!(3), &status["root"]));
    // What it was restored from is named with the height it is of.
    assert_eq!((&restored["snapshot"]["height"], &restored["hash"]), (&json!(1), &json!(null)), "{restored}");
    // In two steps it is the same, in their order only, and the last of them is found out as well.
    let steps = [("1", "2", file("first")), ("2", "3", file("second"))];
    for (from, to, delta) in &steps {
        snapshot(home.path(), 0, &["delta", from, to, "--out", delta]);
    }
    let again = |code: i32, deltas: [&str; 2]| {
        let (third, _) = sibling(home.path());
        let deltas = ["--delta", deltas[0], "--delta", deltas[1]];
        snapshot(third.path(), code, &[&["restore", &tar, "--root", root, "--genesis", &genesis], &deltas[..]].concat())
    };
    assert_eq!(again(0, [&steps[0].2, &steps[1].2])["root"], status["root"]);
    let too_many = [&["restore", &tar][..], &["--delta", &steps[0].2].repeat(65), &["--yes"]].concat();
    let refused = snapshot(home.path(), 2, &too_many);
    assert!(refused["error"]["message"].as_str().unwrap().contains("64 is the limit"), "{refused}");
    again(2, [&steps[1].2, &steps[0].2]);
    let mut bytes = fs::read(&steps[1].2).unwrap();
    let text = bytes.windows(6).position(|window| window == b"fourth").unwrap();
    bytes[text] = b'F';
    fs::write(file("forged-step"), bytes).unwrap();
    again(12, [&steps[0].2, &file("forged-step")]);
    // One that writes what the one before it has written is named, whatever root it claims to lead to.
    let mut twice = Delta::from_bytes(&fs::read(&delta).unwrap()).unwrap();
    (twice.from, twice.to) = (twice.to, (Height(4), Root(Hash([0xab; 32]))));
    fs::write(file("twice"), twice.to_bytes()).unwrap();
    let (third, _) = sibling(home.path());
    let arguments = ["restore", &tar, "--delta", &delta, "--delta", &file("twice"), "--genesis", &genesis];
    let error = snapshot(third.path(), 12, &arguments);
    assert!(error["error"]["message"].as_str().unwrap().contains("changes nothing at"), "{error}");
    let many = [&["restore", &tar, "--genesis", &genesis][..], &["--delta", &delta].repeat(65)].concat();
    let error = snapshot(third.path(), 2, &many);
    assert!(error["error"]["message"].as_str().unwrap().contains("64 is the limit"), "{error}");
    let there = expect(other.path(), 0, &["status"]);
    assert_eq!((&there["height"], &there["root"]), (&json!(3), &status["root"]));
}

/// One namespace or prefix alone, with the proof that it is all of it; changed by one entry, it does not hold.
#[test]
fn a_namespace_is_taken_out_alone_and_proves_that_it_is_whole() {
    let home = busy_chain();
    let made = snapshot(home.path(), 0, &["create"]);
    let root = made["root"].as_str().unwrap();
    let file = home.path().join("memes.json");
    let name = file.to_str().unwrap();
    let taken = snapshot(home.path(), 0, &["extract", "3", "memes", "--root", root, "--out", name]);
    snapshot(home.path(), 2, &["extract", "3", "memes", "--out", name]);
    let listed = expect(home.path(), 0, &["query", "list", "memes"]);
    let count = listed["entries"].as_array().unwrap().len();
    let written: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&written["entries"], written["entries"].as_array().map(Vec::len)), (&listed["entries"], Some(count)));
    assert_eq!(taken["entries"], count);
    let prefixed = home.path().join("prefix.json");
    let alone = ["extract", "3", "memes", "--prefix", "memes/", "--out", prefixed.to_str().unwrap()];
    assert_eq!(snapshot(home.path(), 0, &alone)["entries"], 4);
    // With no chain at hand.
    let nowhere = home.path().join("nowhere");
    let verified = expect(&nowhere, 0, &["proof", "verify", name, "--root", root]);
    assert_eq!((&verified["valid"], &verified["entries"]), (&json!(true), &json!(count)));
    expect(&nowhere, 12, &["proof", "verify", name, "--root", &"ab".repeat(32)]);
    let told = |file: &Path| {
        String::from_utf8(keelstone(&nowhere, &["proof", "verify", file.to_str().unwrap()]).stdout).unwrap()
    };
    assert!(told(&prefixed).contains("in memes whose keys begin with \"memes/\"\n"), "{}", told(&prefixed));
    assert!(told(&file).contains(" in memes\n"), "{}", told(&file));
    let mut short = written.clone();
    short["entries"].as_array_mut().unwrap().pop();
    let mut narrower = written;
    narrower["prefix"] = json!("00");
    for forged in [short, narrower] {
        fs::write(&file, forged.to_string()).unwrap();
        expect(&nowhere, 12, &["proof", "verify", name]);
    }
    let tar = home.path().join("state.tar");
    snapshot(home.path(), 0, &["export", "3", tar.to_str().unwrap()]);
    let none = ["extract", tar.to_str().unwrap(), "nobody", "--prefix", "x", "--out", "-"];
    let absent = keelstone(&nowhere, &[&["snapshot"][..], &none].concat());
    let absent: Value = serde_json::from_slice(&absent.stdout).unwrap();
    assert_eq!((&absent["entries"], &absent["root"]), (&json!([]), &json!(root)));
}

/// An entry that no function of this program could read is told of when a chain begins with it.
#[test]
fn a_genesis_with_entries_of_other_types_says_so() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("begin.json");
    // `next_meme` has eight bytes, and nobody knows the namespace beside it.
    let next_meme = "6e6578745f6d656d65";
    let state = json!({ "memes": { next_meme: "01" }, "elsewhere": { "00": "01" } });
    fs::write(&file, json!({ "chain_id": "test", "time": 1, "state": state }).to_string()).unwrap();
    let begun = expect(&home.path().join("home"), 0, &["init", "--genesis", file.to_str().unwrap()]);
    let [warning] = &begun["warnings"].as_array().unwrap()[..] else { panic!("{begun}") };
    let warning = warning.as_str().unwrap();
    assert!(warning.contains(&format!("memes {next_meme}")), "{warning}");
}

/// A new network that begins with the state of an old one, under a name and keys of its own.
#[test]
fn a_snapshot_becomes_the_genesis_of_a_new_network() {
    let home = busy_chain();
    snapshot(home.path(), 0, &["create"]);
    let other = tempfile::tempdir().unwrap();
    let key = expect(other.path(), 0, &["keys", "new", "producer"])["public"].as_str().unwrap().to_owned();
    let file = other.path().join("new.json");
    let name = file.to_str().unwrap();
    snapshot(home.path(), 2, &["to-genesis", "3", "--chain-id", "test", "--out", name]);
    let arguments =
        ["to-genesis", "3", "--chain-id", "fork", "--producer", &key, "--initial-height", "500", "--out", name];
    let made = snapshot(home.path(), 0, &arguments);
    assert!(made["entries"].as_u64().unwrap() > 4 && made["left"].as_u64().unwrap() > 0, "{made}");
    let begun = expect(other.path(), 0, &["init", "--genesis", name]);
    assert_eq!((&begun["genesis_hash"], &begun["height"]), (&made["genesis_hash"], &json!(499)));
    let memes = |home: &Path| expect(home, 0, &["query", "list", "memes"])["entries"].clone();
    assert_eq!(memes(other.path()), memes(home.path()));
    // Its sender is an agent already, and its nonce begins anew.
    let key = home.path().join("keys/producer.key.json");
    expect(other.path(), 0, &["keys", "import", "ada", key.to_str().unwrap()]);
    let bundle = other.path().join("post.json");
    fs::write(&bundle, json!({ "operations": [post("here too")] }).to_string()).unwrap();
    let sent = expect(other.path(), 0, &["tx", "send", bundle.to_str().unwrap(), "--from", "ada"]);
    assert_eq!(sent["receipt"]["height"], 500);
}

/// A state too large for a file is named by the genesis and comes from the archive beside it (GENESIS-4); the new network
/// has it whole, with the grants, and makes blocks on it.
#[test]
fn a_state_of_any_size_becomes_the_beginning_of_a_new_network() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let (old, new) = (work.path().join("old"), work.path().join("new"));
    let key = |home: &Path| expect(home, 0, &["keys", "new", "producer"])["public"].as_str().unwrap().to_owned();
    let (own, anew) = (key(&old), key(&new));
    let value = "5a".repeat(1 << 20);
    let state: serde_json::Map<String, Value> = (0..17).map(|n| (format!("{n:02x}"), json!(value))).collect();
    let genesis = json!({
        "chain_id": "old", "producers": [own], "grants": { &own: ["contracts.patch", "chain.set_limits"] },
        "state": { "blobs": state },
    });
    fs::write(path("old.json"), genesis.to_string()).unwrap();
    expect(&old, 0, &["init", "--genesis", &path("old.json")]);
    // spec: LEDGER-10. What its limits are by then, not what they began as, is what the new chain begins with.
    let mut limits = expect(&old, 0, &["status"])["limits"].clone();
    assert_eq!(limits["block_transactions_max"], 10_000);
    limits["block_transactions_max"] = json!(77);
    let set_limits = json!({ "call": "chain.set_limits/1", "args": { "limits": limits } });
    send(&old, 0, &json!([register(), post("first"), set_limits]));
    assert_eq!(expect(&old, 0, &["status"])["limits"], limits);
    snapshot(&old, 0, &["create"]);
    let (tar, file) = (path("state.tar"), path("new.json"));
    snapshot(&old, 0, &["export", "1", &tar]);
    let arguments = ["to-genesis", &tar, "--chain-id", "new", "--producer", &anew, "--out", &file];
    let made = snapshot(&work.path().join("nowhere"), 0, &arguments);
    assert_eq!((&made["inherits"], &made["grants"]), (&json!(true), &json!(1)));
    assert!(made["bytes"].as_u64().unwrap() > 17 << 20, "{made}");
    assert!(fs::metadata(&file).unwrap().len() < 4096, "the file names the state and does not hold it");
    let written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(written["limits"], limits);

    // Without the archive, with half of it, with something else, or with one that nobody asked for there is no chain.
    let whole = fs::read(&tar).unwrap();
    fs::write(path("half.tar"), &whole[..whole.len() / 2]).unwrap();
    let init = |code: i32, more: &[&str]| {
        expect(&new, code, &[&["init", "--set", "snapshots.reserve_percent=0"], more].concat())
    };
    init(2, &["--genesis", &file]);
    init(2, &["--genesis", &file, "--state", &path("none.tar")]);
    init(2, &["--genesis", &file, "--state", &path("half.tar")]);
    init(2, &["--genesis", &file, "--state", &file]);
    init(2, &["--genesis", &path("old.json"), "--state", &tar]);
    assert!(!new.join("genesis.json").exists() && !new.join("genesis.tar").exists(), "what was refused left nothing");
    let begun = init(0, &["--genesis", &file, "--state", &tar]);
    assert_eq!(begun["genesis_hash"], made["genesis_hash"]);

    // A node that is to join others under CometBFT needs no archive to be made, and can do nothing else.
    let (joiner, file_2) = (work.path().join("joiner"), path("validators.json"));
    let validator = format!("{anew}=10");
    let arguments =
        ["to-genesis", &tar, "--chain-id", "new", "--validator", &validator, "--no-grants", "--out", &file_2];
    let without = snapshot(&work.path().join("nowhere"), 0, &arguments);
    assert_eq!((&without["grants"], without["left"].as_u64()), (&json!(0), made["left"].as_u64().map(|left| left + 1)));
    assert_eq!(expect(&joiner, 0, &["init", "--genesis", &file_2])["root"], Value::Null);
    let without = expect(&joiner, 2, &["status"]);
    assert!(without["error"]["message"].as_str().unwrap().contains("which is not here"), "{without}");

    // A node makes blocks on it: the entries are there, the agent is, and its nonce begins anew.
    let node = Node::start(&new, &["snapshots.reserve_percent=0"]);
    let found = expect(&new, 0, &["query", "blobs", "10", "--hex", "--prove"]);
    assert_eq!(found["value"].as_str().map(str::len), Some(value.len()));
    expect(&new, 0, &["keys", "import", "ada", old.join("keys/producer.key.json").to_str().unwrap()]);
    fs::write(path("post.json"), json!({ "operations": [post("here too")] }).to_string()).unwrap();
    let sent = expect(&new, 0, &["tx", "send", &path("post.json"), "--from", "ada"]);
    assert_eq!(sent["receipt"]["height"], 1);
    // What restores its snapshots needs the genesis, not the old archive.
    let later = snapshot(&new, 0, &["create"]);
    drop(node);
    snapshot(&new, 0, &["export", "1", &path("later.tar")]);
    let third = work.path().join("third");
    let restored = snapshot(&third, 0, &["restore", &path("later.tar"), "--genesis", &file]);
    assert_eq!(restored["root"], later["root"]);
    assert_eq!(expect(&new, 0, &["replay"])["blocks"], 1);
}

/// Whoever waits on a chain that stands still is told for what.
#[test]
fn what_a_snapshot_waits_for_is_said() {
    let home = busy_chain();
    let _node = Node::start(home.path(), &["snapshots.enabled=true", "snapshots.reserve_percent=0"]);
    for (json, expected) in [(true, "\"offered_from\":5"), (false, "waiting for block 5")] {
        let mut command = program();
        command.args(["snapshot", "create", "--until-offered", "--home"]).arg(home.path());
        if json {
            command.arg("--json");
        }
        let mut child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(expected), "{line}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
