//! `testnet` as far as it goes without a CometBFT: what it refuses, and how a group of processes ends.

use crate::support::{Node, chain, copy, expect, expect_of, post, program, register, send};
use serde_json::json;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

fn testnet(dir: &Path, code: i32, arguments: &[&str]) -> String {
    let mut command = program();
    command.arg("testnet").args(arguments).arg("--dir").arg(dir).arg("--json");
    let said = expect_of(command, code);
    said["error"]["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn what_does_not_run_is_said_to() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for arguments in [["status"].as_slice(), &["down"], &["join"], &["kill", "node0"], &["restart", "node0"]] {
        assert!(testnet(dir.path(), 10, arguments).contains("no test network runs"), "{arguments:?}");
    }
    assert!(testnet(dir.path(), 10, &["load"]).contains("no test network in"));
    assert!(testnet(dir.path(), 10, &["down", "--remove"]).contains("no test network runs"));
}

#[test]
fn a_network_without_a_cometbft_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let net = dir.path().join("net");
    let message = testnet(&net, 2, &["up", "--cometbft", "/nonexistent/cometbft"]);
    assert!(message.contains("/nonexistent/cometbft"), "{message}");
    assert!(!net.exists(), "the directory of a network that is none");
    for wrong in [
        ["--validators", "0"],
        ["--validators", "99"],
        ["--ballast", "1000000000"],
        ["--chunk-bytes", "1"],
        ["--set", "nosuch.setting=1"],
    ] {
        testnet(&net, 2, &[&["up", "--cometbft", "/bin/true"], wrong.as_slice()].concat());
        assert!(!net.exists(), "{wrong:?} leaves a directory");
    }
    let mut command = program();
    let shell = Path::new("/bin/sh");
    command.args(["testnet", "up", "--engine-set", "nonsense", "--cometbft", "/bin/true", "--json", "--dir"]).arg(&net);
    assert!(
        shell.exists() && expect_of(command, 2)["error"]["message"].as_str().is_some_and(|m| m.contains("nonsense"))
    );
    assert!(!net.exists(), "the directory of a network that is none");
}

/// What was not compared is not agreed on: a node that gives nothing is named, and the comparison does not pass for one that held.
/// Whose history begins above what is compared has nothing to give.
#[test]
fn a_comparison_to_which_a_node_gives_nothing_is_none() {
    let origin = chain();
    for number in 0..3 {
        send(origin.path(), 0, &json!([if number == 0 { register() } else { post("more") }]));
    }
    let nobody: SocketAddr = "127.0.0.1:9".parse().expect("an address");
    let twin = tempfile::tempdir().expect("a temporary directory");
    copy(origin.path(), twin.path());
    let (archive, joined) = (origin.path().join("3.tar"), tempfile::tempdir().expect("a temporary directory"));
    let [archive, genesis] =
        [archive, origin.path().join("genesis.json")].map(|path| path.to_str().expect("UTF-8").to_owned());
    expect(origin.path(), 0, &["snapshot", "create"]);
    expect(origin.path(), 0, &["snapshot", "export", "3", &archive]);
    expect(joined.path(), 0, &["snapshot", "restore", &archive, "--genesis", &genesis]);
    copy(&origin.path().join("keys"), &joined.path().join("keys"));
    let joined = Node::start(joined.path(), &[]);
    let (first, second) = (Node::start(origin.path(), &[]), Node::start(twin.path(), &[]));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let compared = |code: i32, apis: &[SocketAddr]| {
        let node = |(index, http): (usize, &SocketAddr)| {
            json!({
                "name": format!("node{index}"), "index": index, "validator": true, "supervised": false, "node_id": "00",
                "http": http, "rpc": nobody, "p2p": nobody,
            })
        };
        let nodes: Vec<_> = apis.iter().enumerate().map(node).collect();
        let layout = json!({
            "version": 1, "chain_id": "test", "hosts": "loopback", "cometbft": "cometbft", "settings": [],
            "engine_settings": [], "nodes": nodes,
        });
        std::fs::write(dir.path().join("testnet.json"), layout.to_string()).expect("written");
        let mut command = program();
        command.args(["testnet", "compare", "--to", "3", "--json", "--dir"]).arg(dir.path());
        expect_of(command, code)
    };
    let said = compared(0, &[first.address, second.address]);
    assert_eq!(said, json!({ "heights": 3, "compared": 3, "disagreements": [], "gaps": [] }));
    assert_eq!(compared(0, &[first.address, second.address, joined.address]), said, "it came from a snapshot of 3");
    let said = compared(17, &[first.address, second.address, nobody]);
    assert_eq!(said, json!({ "heights": 3, "compared": 3, "disagreements": [], "gaps": ["node2 gave no app hash"] }));
    assert_eq!(compared(17, &[first.address])["heights"], 0, "nothing to compare with");
    let message = testnet(dir.path(), 14, &["compare", "--to", "100000000"]);
    assert!(message.contains("the highest block of any node is 3"), "{message}");
    assert!(testnet(dir.path(), 10, &["load"]).contains("no test network runs"), "what is stopped takes no load");

    // What was given for a new network changes nothing about one that is there.
    let options: [&[&str]; 4] =
        [&["--validators", "2"], &["--set", "log.level=debug"], &["--supervise"], &["--ballast", "1"]];
    for option in options {
        let message = testnet(dir.path(), 2, &[&["up"], option].concat());
        assert!(message.contains(&format!("{} is of a new network", option[0])), "{message}");
    }
}

/// What a kill while a network is made leaves is removed with it, and nothing else is.
#[test]
fn down_removes_what_an_unfinished_network_left_and_only_that() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let net = dir.path().join("net");
    for part in ["node0/keelstone/data", "node0/cometbft/config", "node1"] {
        std::fs::create_dir_all(net.join(part)).expect("made");
    }
    std::fs::write(net.join("testnet.lock"), "").expect("written");
    let message = testnet(&net, 2, &["up", "--cometbft", "/bin/true"]);
    assert!(message.contains("node0 is there already"), "{message}");
    std::fs::write(net.join("node1/notes.txt"), "mine").expect("written");
    testnet(&net, 10, &["down", "--remove"]);
    assert!(net.join("node0/keelstone").exists() && net.join("node1/notes.txt").exists());
    std::fs::remove_file(net.join("node1/notes.txt")).expect("removed");
    testnet(&net, 0, &["down", "--remove"]);
    assert!(!net.exists());
}

/// However the one that started it ends, its end of the pipe closes, and nothing of the group is left.
#[test]
fn a_group_of_processes_ends_when_its_leaders_input_does() {
    let mut command = program();
    let mut leader = command
        .args(["testnet", "reap"])
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("the program can be run");
    let group = i32::try_from(leader.id()).expect("process numbers are small");
    let member = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(group).spawn().expect("a shell can be run")
    };
    // One that does not listen to signals, and one that has stopped itself.
    let mut members = [member("trap '' INT TERM HUP; sleep 1000"), member("kill -STOP $$")];
    drop(leader.stdin.take());
    for process in members.iter_mut().chain([&mut leader]) {
        assert_eq!(process.wait().expect("it was started here").signal(), Some(9));
    }
}
