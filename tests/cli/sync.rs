//! `keelstone sync` and `keelstone mirror`, with real nodes, real sockets and real processes that are killed.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, copy, expect, expect_of, post, program, register, send, until};
use keelstone::codec::splitmix64;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Settings of a node that speaks to peers on this machine.
const PEERS: [&str; 2] = ["p2p.enabled=true", "p2p.listen=127.0.0.1:0"];

/// A node, and how its peers call it.
pub(crate) fn peer(home: &Path, settings: &[&str]) -> (Node, String) {
    let mut command = program();
    command.args(["node", "--json", "--set", "http.listen=127.0.0.1:0", "--home"]).arg(home);
    for setting in PEERS.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    let node = Node::run(command);
    let address = node.said["p2p"].as_str().unwrap().to_owned();
    (node, address)
}

/// A chain with a few entries, at height 2.
fn busy_chain() -> TempDir {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    send(home.path(), 0, &json!([post("second"), post("third")]));
    home
}

/// The genesis of a home, as an argument.
fn genesis(home: &Path) -> String {
    home.join("genesis.json").to_str().unwrap().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A command whose disk may be as full as it likes.
fn sync(home: &Path, code: i32, arguments: &[&str]) -> Value {
    expect(home, code, &[&["sync", "--set", "snapshots.reserve_percent=0"], arguments].concat())
}

/// Without its genesis a home does not say what it holds: that is no reason to put something else in its place unasked.
#[test]
fn a_chain_whose_genesis_is_gone_is_not_replaced_unasked() {
    let home = busy_chain();
    let (_node, address) = peer(home.path(), &[]);
    let genesis = genesis(home.path());
    let other = busy_chain();
    fs::remove_file(other.path().join("genesis.json")).unwrap();
    let from = ["--peer", &address, "--genesis", &genesis];
    sync(other.path(), 2, &from);
    let kept = fs::read(other.path().join("data/CURRENT")).unwrap();
    sync(other.path(), 0, &[&from[..], &["--yes"]].concat());
    assert_ne!(fs::read(other.path().join("data/CURRENT")).unwrap(), kept);
}

/// spec: PEER-13. Over QUIC as over TCP; a node that does not listen for it is not reached by it.
#[cfg(feature = "quic")]
#[test]
fn a_state_is_taken_over_quic() {
    let home = busy_chain();
    let (node, address) = peer(home.path(), &["p2p.quic=true"]);
    let (_, status) = node.json("/v1/status");
    let other = tempfile::tempdir().unwrap();
    let (genesis, by_quic) = (genesis(home.path()), format!("{address}/quic"));
    let synced = sync(other.path(), 0, &["--peer", &by_quic, "--genesis", &genesis]);
    assert_eq!((&synced["height"], &synced["root"]), (&status["height"], &status["root"]));
    drop(node);
    let (_node, address) = peer(home.path(), &[]);
    let (third, by_quic) = (tempfile::tempdir().unwrap(), format!("{address}/quic"));
    let patience = ["--set", "p2p.stall_timeout_ms=1500", "--set", "p2p.request_timeout_ms=1500"];
    sync(third.path(), 16, &[&["--peer", &by_quic, "--genesis", &genesis][..], &patience].concat());
    let wrong = format!("{address}/tcp");
    sync(third.path(), 2, &["--peer", &wrong, "--genesis", &genesis]);
}

/// spec: PEER-23. Nobody names the node, and it is found on the network; if it does not say that it is there, nobody is.
#[test]
fn a_state_is_taken_from_a_node_that_is_found_nearby() {
    let home = busy_chain();
    let (node, _) = peer(home.path(), &["p2p.mdns=true"]);
    let (_, status) = node.json("/v1/status");
    let (other, genesis) = (tempfile::tempdir().unwrap(), genesis(home.path()));
    let near = ["--from", "peers", "--set", "p2p.mdns=true", "--set", "p2p.listen=127.0.0.1:0", "--genesis", &genesis];
    let synced = sync(other.path(), 0, &near);
    assert_eq!((&synced["height"], &synced["root"]), (&status["height"], &status["root"]));
    drop(node);
    let (_node, _) = peer(home.path(), &[]);
    let third = tempfile::tempdir().unwrap();
    let patience = ["--set", "p2p.stall_timeout_ms=1500", "--set", "p2p.request_timeout_ms=1500"];
    sync(third.path(), 16, &[&near[..], &patience].concat());
    let over_v6 = [&near[..], &["--set", "p2p.listen=[::1]:0"]].concat();
    let refused = sync(third.path(), 2, &over_v6);
    assert!(refused["error"]["message"].as_str().unwrap().contains("IPv6"), "{refused}");
}

/// A new home takes the state of a running node, certified by its producer, and is of that chain from then on.
#[test]
fn a_new_home_takes_the_state_of_a_running_node() {
    let home = busy_chain();
    let (node, address) = peer(home.path(), &[]);
    let (_, status) = node.json("/v1/status");
    let other = tempfile::tempdir().unwrap();
    let genesis = genesis(home.path());
    let synced = sync(other.path(), 0, &["--peer", &address, "--genesis", &genesis]);
    assert_eq!((&synced["height"], &synced["root"]), (&status["height"], &status["root"]));
    assert_eq!((&synced["fetched"], &synced["entries"]), (&json!(true), &status["entries"]));
    let there = expect(other.path(), 0, &["status"]);
    assert_eq!((&there["height"], &there["root"]), (&status["height"], &status["root"]));
    assert!(!other.path().join("data/joining").exists(), "what was staged is gone");

    // What one that came to its end could not remove is removed by the next, if nothing waits in it.
    fs::create_dir(other.path().join("data/joining")).unwrap();
    // Nothing to do; and once the chain has gone on, a state of one's own is not replaced unasked.
    assert_eq!(sync(other.path(), 0, &["--peer", &address])["fetched"], false);
    assert!(!other.path().join("data/joining").exists(), "what was left is gone");
    send(home.path(), 0, &json!([post("fourth")]));
    sync(other.path(), 2, &["--peer", &address]);
    assert_eq!(sync(other.path(), 0, &["--peer", &address, "--yes"])["height"], 3);
    assert_eq!(expect(other.path(), 0, &["status"])["height"], 3);

    // spec: AUDIT-10. Each state that was taken is on record, with what stood there before; what was refused is not.
    let shown = expect(other.path(), 0, &["audit", "node", "show", "--kind", "restored"]);
    let records = shown["records"].as_array().unwrap();
    let height = |when: &Value| when["height"].as_u64();
    let records: Vec<_> = records
        .iter()
        .map(|record| (record["step"].as_str().unwrap(), height(&record["before"]), height(&record["after"])))
        .collect();
    let expected =
        [("begun", None, None), ("done", None, Some(2)), ("begun", Some(2), None), ("done", Some(2), Some(3))];
    assert_eq!(records, expected);
}

/// What is not certified, by a stranger, of another chain, or not what is here, is refused with the reason, and nothing is
/// fetched of it.
#[test]
fn a_target_that_cannot_be_trusted_is_refused_with_the_reason() {
    let home = busy_chain();
    let (node, address) = peer(home.path(), &[]);
    let (_, status) = node.json("/v1/status");
    let message = |answer: Value| answer["error"]["message"].as_str().unwrap().to_owned();
    // Another chain of the same name, whose producer is somebody else.
    let foreign = chain();
    let said = message(sync(foreign.path(), 16, &["--peer", &address, "--set", "p2p.request_timeout_ms=2000"]));
    assert!(said.contains("it is of chain test"), "{said}");
    // The word of a producer that is too old.
    let other = tempfile::tempdir().unwrap();
    let genesis = genesis(home.path());
    let slow = ["--peer", &address, "--genesis", &genesis, "--set", "p2p.request_timeout_ms=2000"];
    // A root that nobody has: no peer is of use, and the sync says so.
    let wrong = "ab".repeat(32);
    let given = ["--trust-height", "2", "--trust-hash", &wrong, "--set", "p2p.stall_timeout_ms=1500"];
    let said = message(sync(other.path(), 16, &[&slow[..], &given].concat()));
    assert!(said.contains("nothing new was proven"), "{said}");
    let root = status["root"].as_str().unwrap();
    let wanted = format!("wanted is root {wrong} at height 2\n");
    assert!(said.contains(&wanted) && said.contains(&format!("it has root {root} at height 2")), "{said}");
    assert!(!other.path().join("genesis.json").exists(), "nothing was begun");
    // A root that is given needs nobody's word.
    let synced = sync(other.path(), 0, &[&slow[..], &["--trust-height", "2", "--trust-hash", root]].concat());
    assert_eq!((&synced["root"], &synced["certified_by"]), (&status["root"], &Value::Null));
    // What this home stands at is the chain's, or somebody has to find out.
    let said = message(sync(other.path(), 12, &["--peer", &address, "--trust-height", "2", "--trust-hash", &wrong]));
    assert!(said.starts_with("forked"), "{said}");
    let said = message(sync(other.path(), 2, &["--peer", &address, "--trust-height", "1", "--trust-hash", root]));
    assert!(said.starts_with("stale"), "{said}");
    sync(other.path(), 2, &["--from", "peers"]);
}

/// spec: PEER-10. A mirror has one version for good: where none has what is trusted that is said at once, and what each has. So is who is banned, where
/// nobody else is left to ask.
#[test]
fn with_nobody_left_to_ask_a_sync_ends_at_once_and_says_why() {
    let home = busy_chain();
    let root = expect(home.path(), 0, &["status"])["root"].as_str().unwrap().to_owned();
    let room = ["--set", "snapshots.reserve_percent=0"];
    expect(home.path(), 0, &[&["snapshot", "create"][..], &room].concat());
    let place = tempfile::tempdir().unwrap();
    let mirror = place.path().join("mirror");
    expect(home.path(), 0, &[&["mirror", "export", text(&mirror)][..], &room].concat());
    let (genesis, other, wrong) = (genesis(home.path()), tempfile::tempdir().unwrap(), "ab".repeat(32));
    let started = Instant::now();
    let ended = |arguments: &[&str]| {
        let said = sync(other.path(), 16, &[&["--genesis", &genesis][..], arguments].concat());
        assert!(started.elapsed() < Duration::from_secs(60), "it waited for nobody: {said}");
        said["error"]["message"].as_str().unwrap().to_owned()
    };
    for (height, trusted) in [("2", &wrong), ("1", &root)] {
        let said = ended(&["--from", text(&mirror), "--trust-height", height, "--trust-hash", trusted]);
        let has = format!("{}: it has root {root} at height 2", text(&mirror));
        let wanted = format!("wanted is root {trusted} at height {height}\n");
        assert!(said.starts_with("nobody is left to ask") && said.contains(&has) && said.contains(&wanted), "{said}");
    }

    let foreign = tempfile::tempdir().unwrap();
    expect(foreign.path(), 0, &["init", "--chain-id", "foreign"]);
    let (_node, address) = peer(foreign.path(), &[]);
    let (id, at) = address.split_once('@').unwrap();
    // Banned by its id, that is known beforehand, and where it is found out who is there.
    for named in [&address, at] {
        let said = ended(&["--peer", named, "--trust-height", "2", "--trust-hash", &root]);
        assert!(said.contains(&format!("{id}: it is banned")) && said.contains("it is of chain foreign"), "{said}");
    }
}

/// While a sync is under way nobody begins a chain in its home; what a person puts there by hand is left as it is, and the sync says that
/// it came to nothing for it.
#[test]
fn a_home_is_that_of_the_sync_that_is_under_way_there() {
    let home = large_chain();
    let (_node, address) = peer(home.path(), &["p2p.peer_bytes_per_second=1000000"]);
    let (genesis, other) = (genesis(home.path()), tempfile::tempdir().unwrap());
    let mut command = program();
    command.args(["sync", "--json", "--peer", &address, "--genesis", &genesis, "--home"]).arg(other.path());
    command.args(["--set", "snapshots.reserve_percent=0"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is under way", || other.path().join("data/joining").is_dir());
    expect(other.path(), 11, &["init", "--chain-id", "another"]);
    for name in ["genesis.json", "keelstone.toml", "keys/producer.key.json"] {
        assert!(!other.path().join(name).exists(), "{name}");
    }
    let foreign = chain();
    fs::copy(foreign.path().join("genesis.json"), other.path().join("genesis.json")).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("another genesis"), "{said}");
    assert!(!other.path().join("data/CURRENT").exists());
    let shown = expect(other.path(), 0, &["audit", "node", "show", "--kind", "restored"]);
    let steps: Vec<_> = shown["records"].as_array().unwrap().iter().map(|record| record["step"].clone()).collect();
    assert_eq!(steps, ["begun", "failed"]);
}

/// A chain whose first state has some megabytes, in chunks of 64 KiB.
fn large_chain() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    // Nothing that could be compressed.
    let mut seed = 7;
    let mut value = || (0..64).map(|_| format!("{:016x}", splitmix64(&mut seed))).collect::<String>();
    let entries = (0..12_000u32).map(|number| (format!("{number:08x}"), json!(value())));
    let bulk: serde_json::Map<String, Value> = entries.collect();
    let plain = chain();
    let mut genesis: Value = serde_json::from_slice(&fs::read(plain.path().join("genesis.json")).unwrap()).unwrap();
    genesis["state"] = json!({ "bulk": bulk });
    genesis["limits"]["snapshot_chunk_bytes"] = json!(65_536);
    let file = home.path().join("given.json");
    fs::write(&file, genesis.to_string()).unwrap();
    fs::create_dir(home.path().join("keys")).unwrap();
    fs::copy(plain.path().join("keys/producer.key.json"), home.path().join("keys/producer.key.json")).unwrap();
    expect(home.path(), 0, &["init", "--genesis", text(&file)]);
    send(home.path(), 0, &json!([register()]));
    home
}

/// S-13, over sockets: killed at several points of the way, a joiner goes on where it was: what it had proven it has, and is
/// not sent again.
#[test]
fn s13_a_joiner_that_is_killed_fetches_nothing_again_that_it_had() {
    let home = large_chain();
    // Slow enough to be killed on the way: 2 s worth at once, then so much a second.
    let (node, address) = peer(home.path(), &["p2p.peer_bytes_per_second=400000"]);
    let (_, status) = node.json("/v1/status");
    let other = tempfile::tempdir().unwrap();
    let genesis = genesis(home.path());
    let command = || {
        let mut command = program();
        command.args(["sync", "--json", "--peer", &address, "--genesis", &genesis, "--progress", "1", "--home"]);
        command.arg(other.path()).args(["--set", "snapshots.reserve_percent=0", "--set", "p2p.batch_bytes_max=65536"]);
        command
    };
    let (mut had, mut received) = (0, 0);
    for percent_to_reach in [20, 40, 60] {
        let mut child = command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut began = false;
        for line in BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok) {
            let Ok(said) = serde_json::from_str::<Value>(&line) else { continue };
            let progress = &said["progress"];
            let (Some(bytes), Some(total)) = (progress["bytes"].as_u64(), progress["bytes_total"].as_u64()) else {
                continue;
            };
            assert!(began || bytes >= had, "it begins with {bytes} bytes and had {had}");
            (began, had) = (true, bytes);
            received = progress["received_bytes"].as_u64().unwrap();
            if bytes * 100 >= total * percent_to_reach {
                child.kill().unwrap();
                break;
            }
        }
        assert!(!child.wait().unwrap().success(), "it was done before it was killed");
    }
    let synced = expect_of(command(), 0);
    assert_eq!(synced["root"], status["root"]);
    let (all, last) = (synced["bytes"].as_u64().unwrap(), synced["received_bytes"].as_u64().unwrap());
    // What is missing, with what lies between entries, and the pages.
    assert!(last <= (all - had) * 103 / 100 + all / 100, "{last} bytes for the {} that were missing", all - had);
    assert!(received > 0);
}

/// Of four peers two are killed when a part of the state has come: the others give the rest.
#[test]
fn half_of_the_peers_are_killed_and_the_others_give_the_rest() {
    let home = large_chain();
    let others = [(); 3].map(|()| tempfile::tempdir().unwrap());
    others.iter().for_each(|other| copy(home.path(), other.path()));
    // Slow enough that something is left: 2 s worth at once, then so much a second.
    let homes = others.iter().chain([&home]);
    let mut peers: Vec<_> = homes.map(|home| peer(home.path(), &["p2p.peer_bytes_per_second=300000"])).collect();
    let joiner = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["sync", "--json", "--progress", "1", "--set", "snapshots.reserve_percent=0"]);
    command.args(["--set", "p2p.batch_bytes_max=65536", "--genesis", &genesis(home.path()), "--home"]);
    command.arg(joiner.path());
    for (_, address) in &peers {
        command.args(["--peer", address]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut left = 0;
    for line in lines {
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        let number = |name: &str| said["progress"][name].as_u64();
        let (Some(bytes), Some(total)) = (number("bytes"), number("bytes_total")) else { continue };
        if peers.len() == 4 && bytes > 0 {
            peers.truncate(2);
            left = total - bytes;
        }
    }
    let output = child.wait_with_output().unwrap();
    let synced: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(peers.len() == 2 && left > 0, "they were killed on the way: {left} bytes were left");
    assert_eq!(synced["root"], peers[0].0.json("/v1/status").1["root"]);
}

/// A snapshot in static files serves like a peer: from a directory, and over HTTP; beside peers, and alone.
#[test]
fn a_mirror_serves_from_a_directory_and_over_http() {
    let home = busy_chain();
    let root = expect(home.path(), 0, &["status"])["root"].clone();
    expect(home.path(), 14, &["mirror", "export", "nowhere"]);
    expect(home.path(), 0, &["snapshot", "--set", "snapshots.reserve_percent=0", "create"]);
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("mirror");
    let exported =
        expect(home.path(), 0, &["mirror", "export", text(&directory), "--set", "snapshots.reserve_percent=0"]);
    assert_eq!((&exported["root"], &exported["certified"]), (&root, &json!(true)));
    let genesis = genesis(home.path());
    let server = serve(directory.clone());
    let web = format!("http://{server}/some/where/");
    for from in [text(&directory), &web] {
        let other = tempfile::tempdir().unwrap();
        let synced = sync(other.path(), 0, &["--from", from, "--genesis", &genesis]);
        assert_eq!((&synced["root"], &expect(other.path(), 0, &["status"])["root"]), (&root, &root));
    }
    // One mirror is gone, a peer is there: it goes on.
    let (_node, address) = peer(home.path(), &[]);
    let other = tempfile::tempdir().unwrap();
    let from = ["--from", "/nonexistent", "--from", text(&directory), "--from", "peers", "--peer", &address];
    assert_eq!(sync(other.path(), 0, &[&from[..], &["--genesis", &genesis]].concat())["root"], root);
    // A file that is changed is found.
    let chunk = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    for file in chunk.filter(|path| path.extension().is_some_and(|ending| ending == "chunk")) {
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let other = tempfile::tempdir().unwrap();
    let from = ["--from", text(&directory), "--genesis", &genesis, "--set", "p2p.stall_timeout_ms=1500"];
    sync(other.path(), 16, &from);
}

/// One prefix of a namespace is taken alone, from a mirror that has no more, in a directory and over HTTP, and from a peer:
/// into a file whose own proof holds it up. Nothing of the home changes, and a mirror of a part is of no use for more.
#[test]
fn a_part_of_the_state_is_taken_alone_with_its_proof() {
    let home = large_chain();
    let root = expect(home.path(), 0, &["status"])["root"].as_str().unwrap().to_owned();
    let room = ["--set", "snapshots.reserve_percent=0"];
    expect(home.path(), 0, &[&["snapshot", "create"], &room[..]].concat());
    let (place, genesis) = (tempfile::tempdir().unwrap(), genesis(home.path()));
    let (mirror, part) = (place.path().join("mirror"), ["--namespace", "bulk", "--prefix-hex", "000001"]);
    let export = |to: &Path, part: &[&str]| {
        expect(home.path(), 0, &[&["mirror", "export", text(to)], part, &room].concat())["bytes"].as_u64().unwrap()
    };
    let (all, some) = (export(&place.path().join("whole"), &[]), export(&mirror, &part));
    assert!(some * 10 < all, "{some} of {all} bytes");

    let (_node, peer) = peer(home.path(), &[]);
    let web = format!("http://{}/some/where", serve(mirror.clone()));
    let other = tempfile::tempdir().unwrap();
    let (directory, web, peer) = (["--from", text(&mirror)], ["--from", &web], ["--peer", &peer]);
    for (name, from) in [("directory", directory), ("web", web), ("peer", peer)] {
        let file = place.path().join(name);
        let out = ["--genesis", &genesis, "--out", text(&file)];
        let taken = sync(other.path(), 0, &[&from[..], &part, &out].concat());
        assert_eq!((&taken["entries"], &taken["root"]), (&json!(256), &json!(root)), "{name}");
        assert!(taken["received_bytes"].as_u64().unwrap() * 10 < all, "{taken}");
        let proven = expect(other.path(), 0, &["proof", "verify", text(&file), "--root", &root]);
        assert_eq!((&proven["entries"], &proven["valid"]), (&json!(256), &json!(true)), "{name}");
        sync(other.path(), 2, &[&from[..], &part, &out].concat());
    }
    assert!(
        !other.path().join("genesis.json").exists() && !other.path().join("data").exists(),
        "a home begins otherwise"
    );
    assert!(fs::read_dir(place.path()).unwrap().all(|entry| !text(&entry.unwrap().path()).ends_with(".staging")));
    // More than the mirror has.
    let file = place.path().join("more");
    let out = ["--genesis", &genesis, "--out", text(&file)];
    sync(other.path(), 14, &[&directory[..], &["--namespace", "bulk"], &out].concat());
    sync(other.path(), 14, &[&directory[..], &["--genesis", &genesis]].concat());
    assert!(!file.exists());
    assert_eq!(sync(other.path(), 0, &[&peer[..], &["--namespace", "bulk"], &out].concat())["entries"], 12_000);
}

/// A web server of files that knows nothing of what they are. It lives as long as the test process.
pub(crate) fn serve(directory: PathBuf) -> std::net::SocketAddr {
    use std::io::Write as _;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            let name = line.split(' ').nth(1).and_then(|path| path.strip_prefix("/some/where/")).unwrap_or_default();
            let _ = match fs::read(directory.join(name)) {
                Ok(bytes) => stream
                    .write_all(format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len()).as_bytes())
                    .and_then(|()| stream.write_all(&bytes)),
                Err(_) => stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n"),
            };
        }
    });
    address
}
