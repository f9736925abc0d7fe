//! `keelstone node --engine follow`: real nodes that keep up with a producer over real sockets, and are killed.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, copy, expect, post, program, register, send, until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node that speaks to peers on this machine, at an address of its own or at the one it had, and how peers call it.
fn node(home: &Path, listen: &str, settings: &[&str]) -> (Node, String) {
    let mut command = program();
    command.args(["node", "--json", "--set", "http.listen=127.0.0.1:0", "--set", "p2p.enabled=true", "--home"]);
    command.arg(home).args(["--set", &format!("p2p.listen={listen}"), "--set", "p2p.request_timeout_ms=2000"]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let node = Node::run(command);
    let address = node.said["p2p"].as_str().unwrap().to_owned();
    (node, address)
}

fn producer(home: &Path) -> (Node, String) {
    node(home, "127.0.0.1:0", &[])
}

fn follower(home: &Path, peers: &str, settings: &[&str]) -> (Node, String) {
    let peers = format!("p2p.peers={peers}");
    node(home, "127.0.0.1:0", &[&["engine.kind=follow", &peers], settings].concat())
}

/// A home that has the genesis of another and nothing else.
fn empty_home(of: &Path) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::copy(of.join("genesis.json"), home.path().join("genesis.json")).unwrap();
    home
}

fn status(node: &Node) -> Value {
    node.json("/v1/status").1
}

/// Waits until a node stands where another does.
fn keeps_up(node: &Node, with: &Node) {
    let expected = status(with);
    until("a follower keeps up", || status(node)["height"] == expected["height"]);
    assert_eq!(status(node)["root"], expected["root"]);
}

/// At each height two nodes had the same root.
fn had_equal_roots(node: &Node, other: &Node) {
    for height in 1..=status(other)["height"].as_u64().unwrap() {
        let at = format!("/v1/state/chain?key=facts&height={height}");
        let (root, expected) = (node.json(&at).1["root"].clone(), other.json(&at).1["root"].clone());
        assert!(root.is_string() && root == expected, "height {height}: {root}, {expected}");
    }
}

/// Followers that run blocks and that apply what they changed keep up with a producer, one of them over the other; they
/// answer what they have with proofs, refuse what is sent to them, and live through kill -9, their own and the producer's.
#[test]
fn followers_keep_up_with_a_producer_and_live_through_kills() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("before anybody follows")]));
    let (mut made, address) = producer(home.path());
    let (executes, applies) = (empty_home(home.path()), empty_home(home.path()));
    let (mut first, first_address) = follower(executes.path(), &address, &[]);
    // The second knows nobody but the first.
    let api = format!("http://{}", made.address);
    let producer_api = format!("p2p.producer_api={api}");
    let (mut second, _) = follower(applies.path(), &first_address, &["p2p.follow=apply", &producer_api]);
    let mut told = [&first, &second].map(|node| {
        let mut stream = node.connect();
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        stream
    });
    for text in ["one", "two", "three"] {
        send(home.path(), 0, &json!([post(text)]));
        keeps_up(&first, &made);
        keeps_up(&second, &made);
    }
    // Where there are blocks a stream can be taken up again by an id; where there are none, a browser says none.
    let ids = told.each_mut().map(|stream| {
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut read = Vec::new();
        let _ = stream.read_to_end(&mut read); // It ends by the time limit.
        let text = String::from_utf8_lossy(&read).into_owned();
        text.lines().filter_map(|line| line.strip_prefix("id:")).map(|id| id.trim().to_owned()).collect::<Vec<_>>()
    });
    assert!(ids[0].len() >= 6 && ids[0].iter().all(|id| id.contains('.')), "{ids:?}");
    assert!(ids[1].len() >= 3 && ids[1].iter().all(String::is_empty), "{ids:?}");
    let figures = status(&second)["following"].clone();
    assert_eq!((&figures["manner"], &figures["certified_height"]), (&json!("apply"), &status(&made)["height"]));
    assert_eq!(figures["behind_blocks"], 0);
    assert_eq!(second.get("/readyz").0, 200);

    // Whoever runs blocks has them; whoever applies what they changed has the state and its proofs.
    assert_eq!(first.json("/v1/blocks/3"), made.json("/v1/blocks/3"));
    let (code, answer) = second.json("/v1/blocks/3");
    assert_eq!((code, &answer["error"]["code"]), (404, &json!("not_found")));
    let question = "/v1/state/chain?key=facts&prove=true";
    assert_eq!(second.json(question), made.json(question));
    let producer_key = expect(home.path(), 0, &["keys", "show", "producer"])["public"].as_str().unwrap().to_owned();
    for follower in [&first, &second] {
        let (code, answer) = follower.post_json("{\"transaction\":\"00\"}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((code, &answer["error"]["code"]), (421, &json!("follows")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(&producer_key), "{answer}");
        let api = follower.json("/v1/status").1["following"]["producer"]["api"].clone();
        assert_eq!(answer["error"]["producer"], json!({ "keys": [&producer_key], "api": api }));
    }
    assert_eq!(status(&first)["following"]["producer"]["api"], json!(null));
    assert_eq!(status(&second)["following"]["producer"]["api"], json!(api));

    // So does the command that would send to a node, and one that finds no node to send to.
    fs::create_dir_all(applies.path().join("keys")).unwrap();
    let key = "keys/producer.key.json";
    fs::copy(home.path().join(key), applies.path().join(key)).unwrap();
    let refused = send(applies.path(), 2, &json!([post("to a follower")]));
    assert!(refused["error"]["message"].as_str().unwrap().contains(&producer_key), "{refused}");
    assert!(refused["error"]["hint"].as_str().unwrap().contains(&api), "{refused}");

    // Stopped for a while, and not killed: what was announced meanwhile is lost, or waits, and either is made up for.
    second.signal("STOP");
    for text in ["four", "five", "six"] {
        send(home.path(), 0, &json!([post(text)]));
    }
    keeps_up(&first, &made);
    second.signal("CONT");
    keeps_up(&second, &made);
    until("it is ready again", || second.get("/readyz").0 == 200);

    // Killed, each goes on where it was, with what it missed.
    for (home_of, settings, killed) in
        [(&executes, &[][..], &mut first), (&applies, &["p2p.follow=apply"][..], &mut second)]
    {
        killed.child.kill().unwrap();
        killed.child.wait().unwrap();
        let stood = expect(home_of.path(), 0, &["status"])["height"].as_u64().unwrap();
        assert!(stood >= 4, "what was durable is there: {stood}");
        let peers = format!("p2p.peers={address}");
        let follows = expect(home_of.path(), 0, &["status", "--set", "engine.kind=follow", "--set", &peers]);
        assert_eq!(follows["following"]["producer"]["keys"], json!([&producer_key]), "{follows}");
        assert_eq!(follows["following"]["certified_height"], json!(null), "nobody says so while it does not run");
        send(home.path(), 0, &json!([post("while one is away")]));
        *killed = follower(home_of.path(), &address, settings).0;
        keeps_up(killed, &made);
    }

    // So does the producer, and who follows it finds it again.
    let listen = address.split_once('@').unwrap().1.to_owned();
    made.child.kill().unwrap();
    made.child.wait().unwrap();
    made = node(home.path(), &listen, &[]).0;
    send(home.path(), 0, &json!([post("after the producer's kill")]));
    for follower in [&first, &second] {
        keeps_up(follower, &made);
        had_equal_roots(follower, &made);
        follower.signal("TERM");
    }
    assert_eq!((first.wait(PATIENCE), second.wait(PATIENCE)), (Some(0), Some(0)));
    fs::write(applies.path().join("keelstone.toml"), "[engine]\nkind = \"follow\"\n").unwrap();
    let refused = send(applies.path(), 1, &json!([post("to nobody")]));
    assert!(refused["error"]["message"].as_str().unwrap().contains("follows"), "{refused}");
    for home in [&executes, &applies] {
        expect(home.path(), 0, &["db", "check"]);
    }
    expect(executes.path(), 0, &["replay"]);
}

/// A follower that was away for longer than its peers keep what changed says so and serves what it has; told to, it takes a
/// later state instead.
#[test]
fn a_follower_that_was_away_too_long_says_so_or_syncs_anew() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    let (made, address) = node(home.path(), "127.0.0.1:0", &["store.history=3"]);
    for text in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        send(home.path(), 0, &json!([post(text)]));
    }
    let own = empty_home(home.path());
    let (mut away, _) = follower(own.path(), &address, &["p2p.follow=apply"]);
    until("it says that there is a gap", || away.get("/readyz").1.contains("no peer has height 1 any more"));
    assert_eq!(away.get("/readyz").0, 503);
    let figures = status(&away)["following"].clone();
    assert_eq!((&figures["missing_height"], &status(&away)["height"]), (&json!(1), &json!(0)), "{figures}");
    assert!(figures["kept_from"].as_u64().unwrap() > 1, "{figures}");
    assert!(away.get("/metrics").1.contains("follow_gap_flag 1"));
    away.child.kill().unwrap();
    away.child.wait().unwrap();

    let settings = ["p2p.follow=apply", "p2p.follow_resync=true", "snapshots.reserve_percent=0"];
    let (again, _) = follower(own.path(), &address, &settings);
    // It becomes another process's, at another port: its home says where.
    let height = status(&made)["height"].clone();
    until("it stands where the producer does", || {
        let output = crate::support::keelstone(own.path(), &["status", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|status| status["height"] == height)
    });
    drop(again);

    // It has no blocks that would say what its state was: where that is lost, what the producer certifies is had again.
    let current = fs::read_to_string(own.path().join("data/CURRENT")).unwrap();
    let superblock = own.path().join("data").join(current.trim()).join("state/superblock");
    fs::write(superblock, "").unwrap();
    let (again, _) = follower(own.path(), &address, &settings);
    keeps_up(&again, &made);
    let reports = fs::read_dir(own.path().join("recoveries")).unwrap();
    let report =
        reports.map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some_and(|end| end == "report"));
    let verified = expect(own.path(), 0, &["recover", "verify-report", report.unwrap().to_str().unwrap()]);
    assert_eq!(verified["trust"], "producer", "{verified}");
}

/// A command that has the home open at the moment in which a follower opens it, as it does by itself for a later state, is not
/// the end of the follower.
#[test]
fn a_follower_waits_for_whoever_has_its_home_open() {
    let home = chain();
    let (mut other, address) = producer(home.path());
    let mut command = program();
    let settings = ["engine.kind=follow", &format!("p2p.peers={address}"), "http.listen=127.0.0.1:0"];
    command.arg("node").arg("--home").arg(home.path()).args(settings.iter().flat_map(|setting| ["--set", setting]));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut waits = Node { child, address: other.address, said: Value::Null };
    let mut said = BufReader::new(waits.child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("waiting for whoever has the home open")), "it did not wait");
    other.child.kill().unwrap();
    other.child.wait().unwrap();
    until("it runs", || {
        let output = crate::support::keelstone(home.path(), &["status", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|status| status["following"].is_object())
    });
}

/// Of several peers any will do: one that dies is not missed, and where the producer is gone another follower gives all of
/// its blocks, and its word.
#[test]
fn a_follower_goes_on_with_whichever_peer_is_left() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    let (mut made, address) = producer(home.path());
    let (relays, own, third) = (empty_home(home.path()), empty_home(home.path()), empty_home(home.path()));
    let (mut relay, relay_address) = follower(relays.path(), &address, &[]);
    let (node, _) = follower(own.path(), &format!("{relay_address},{address}"), &["p2p.follow=apply"]);
    send(home.path(), 0, &json!([post("both are there")]));
    keeps_up(&node, &made);
    relay.child.kill().unwrap();
    relay.child.wait().unwrap();
    send(home.path(), 0, &json!([post("one is left")]));
    keeps_up(&node, &made);

    let listen = relay_address.split_once('@').unwrap().1.to_owned();
    relay = self::node(relays.path(), &listen, &["engine.kind=follow", &format!("p2p.peers={address}")]).0;
    keeps_up(&relay, &made);
    let last = status(&made);
    made.signal("TERM");
    assert_eq!(made.wait(PATIENCE), Some(0));
    let (late, _) = follower(third.path(), &format!("{address},{relay_address}"), &[]);
    until("it has the other's blocks", || status(&late)["height"] == last["height"]);
    assert_eq!(status(&late)["root"], last["root"]);
    let figures = status(&late)["following"].clone();
    assert_eq!(figures["behind_blocks"], 0, "{figures}");
    assert!(figures["said_at"].as_u64().unwrap() > 0, "{figures}");
    assert!(late.get("/metrics").1.contains("follow_behind_blocks 0\n"));
}

/// A home that is begun to follow needs nothing else, holds no key that could make blocks, and cannot be taken for another's.
#[test]
fn a_home_is_begun_to_follow() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("ours")]));
    let (made, address) = producer(home.path());
    let own = tempfile::tempdir().unwrap();
    let genesis = home.path().join("genesis.json");
    let begin = ["init", "--genesis", genesis.to_str().unwrap(), "--follow", &address];
    expect(own.path(), 0, &begin);
    assert_eq!(expect(own.path(), 0, &["keys", "list"]), json!([]));
    let node = Node::start(own.path(), &[]);
    keeps_up(&node, &made);
    let shown = expect(own.path(), 0, &["status"]);
    assert_eq!((&shown["following"]["behind_blocks"], &shown["following"]["manner"]), (&json!(0), &json!("execute")));
    drop(node);
    // What is here already is not begun again, and no configuration is overwritten.
    expect(own.path(), 2, &begin);
    let configured = tempfile::tempdir().unwrap();
    fs::write(configured.path().join("keelstone.toml"), "").unwrap();
    let said = expect(configured.path(), 2, &begin);
    assert!(said["error"]["hint"].as_str().unwrap().contains("engine.kind"), "{said}");
    expect(own.path(), 2, &["init", "--follow", &address]);
}

/// Whoever follows is not ready before a word of its producer counts, and says which one did not.
#[test]
fn a_follower_is_ready_once_a_word_of_its_producer_counts() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    let own = empty_home(home.path());
    let (lonely, _) = follower(own.path(), "127.0.0.1:1", &[]);
    let (code, said) = lonely.get("/readyz");
    assert!(code == 503 && said.contains("nobody has certified"), "{code} {said}");
    drop(lonely);
    // A producer's node that is stopped signs nothing anew: what another carries is of long ago by now.
    let (mut made, address) = producer(home.path());
    let relays = empty_home(home.path());
    let (relay, relay_address) = follower(relays.path(), &address, &[]);
    keeps_up(&relay, &made);
    until("it is ready", || relay.get("/readyz").0 == 200);
    made.signal("TERM");
    assert_eq!(made.wait(PATIENCE), Some(0));
    std::thread::sleep(Duration::from_millis(1_100));
    let (strict, _) = follower(own.path(), &relay_address, &["p2p.trust_period_ms=1000"]);
    until("it says why", || strict.get("/readyz").1.contains("the last word was refused"));
    assert_eq!(strict.get("/readyz").0, 503);
    drop(strict);
    let (node, _) = follower(own.path(), &relay_address, &[]);
    until("it is ready", || node.get("/readyz").0 == 200);
}

/// Two nodes with one peer key never connect, and that is said.
#[test]
fn two_nodes_with_one_key_are_told_so() {
    let home = chain();
    let (made, _) = producer(home.path());
    drop(made);
    let other = tempfile::tempdir().unwrap();
    copy(home.path(), other.path());
    let (_made, address) = producer(home.path());
    let errors = other.path().join("errors");
    let mut command = program();
    command.args(["node", "--json", "--set", "http.listen=127.0.0.1:0", "--set", "p2p.enabled=true", "--home"]);
    command.arg(other.path()).args(["--set", "p2p.listen=127.0.0.1:0", "--set", &format!("p2p.peers={address}")]);
    command.stderr(fs::File::create(&errors).unwrap());
    let _node = Node::run_loud(command);
    until("it is said", || fs::read_to_string(&errors).unwrap().contains("has this node's own peer key"));
}

/// Whom nobody told to trust anybody, and who has nobody to ask, does not follow; nor does one whose state is not the chain's.
#[test]
fn following_begins_only_where_it_can_end_well() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("ours")]));
    let (made, address) = producer(home.path());
    let own = empty_home(home.path());
    let said = expect(own.path(), 2, &["node", "--engine", "follow"]);
    assert!(said["error"]["message"].as_str().unwrap().contains("nobody to follow"), "{said}");

    // The same chain, made again by its own producer: a history of its own.
    let forked = empty_home(home.path());
    fs::create_dir_all(forked.path().join("keys")).unwrap();
    let key = "keys/producer.key.json";
    fs::copy(home.path().join(key), forked.path().join(key)).unwrap();
    send(forked.path(), 0, &json!([register(), post("another's")]));
    let peers = format!("p2p.peers={address}");
    let said =
        expect(forked.path(), 12, &["node", "--engine", "follow", "--set", &peers, "--set", "http.listen=127.0.0.1:0"]);
    assert_eq!(expect(forked.path(), 0, &["status"])["height"], 1, "{said}");
    drop(made);
}
