//! Syncing under a header of a real network, followed by a light client from one that is trusted; and its servers lying.

use crate::harness::{Network, get, keelstone};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;

/// The result of what an engine answers to a path.
fn result(base: &str, path: &str) -> Value {
    let text = get(base, path).unwrap_or_else(|| panic!("{base}{path} did not answer"));
    let value: Value = serde_json::from_str(&text).expect("JSON");
    value["result"].clone()
}

/// A server in front of an engine's RPC, for as long as the test process lives. It passes on what it hears, but for the
/// app hash of every header it does not have to be honest about.
fn liar(rpc: &str, honest_at: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (address, rpc) = (listener.local_addr().expect("bound"), rpc.to_owned());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            BufReader::new(stream.try_clone().expect("a socket")).read_line(&mut line).expect("a request");
            let path = line.split(' ').nth(1).unwrap_or_default();
            let mut answer = get(&rpc, path).unwrap_or_default();
            if path.starts_with("/commit") && !path.ends_with(&format!("height={honest_at}")) {
                let mut value: Value = serde_json::from_str(&answer).expect("JSON");
                value["result"]["signed_header"]["header"]["app_hash"] = "AB".repeat(32).into();
                answer = value.to_string();
            }
            // Whoever asked may have gone.
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{answer}");
        }
    });
    format!("http://{address}")
}

/// A new home takes a state of a running network from a peer and from a mirror, and what makes it the chain's is a header
/// that the validators voted for. Where a server lies, or trust is over, it is refused with the reason and nothing is
/// written.
#[test]
fn c03_a_home_is_synced_under_a_header_that_the_validators_voted_for() {
    let settings = ["--set", "p2p.enabled=true", "--set", "p2p.listen=127.0.0.1:0"];
    let Some(network) = Network::up(&[&["--validators", "2", "--ballast", "500"], &settings[..]].concat()) else {
        return;
    };
    network.until_all_at(14);
    let [first, second] = ["node0", "node1"].map(|name| network.node(name).rpc);
    let trusted = result(&first, "/commit?height=2")["signed_header"]["commit"]["block_id"]["hash"].clone();
    let trusted = trusted.as_str().expect("a hash").to_owned();
    let genesis = network.dir().join("node0/keelstone/genesis.json");
    let home = tempfile::tempdir().expect("a directory");
    let mirror = home.path().join("mirror");
    let (code, said) = network.on_home("node0", &["mirror", "export", mirror.to_str().expect("text")]);
    assert_eq!(code, 0, "{said}");

    let sync = |home: &Path, from: &[&str], rpc: [&str; 2], hash: &str, more: &[&str]| {
        let light =
            ["--light", "--light-height", "2", "--light-hash", hash, "--light-rpc", rpc[0], "--light-rpc", rpc[1]];
        let given = ["sync", "--genesis", genesis.to_str().expect("text"), "--set", "snapshots.reserve_percent=0"];
        keelstone(home, &[&given[..], &light, from, more].concat())
    };
    let synced = |name: &str, from: &[&str]| {
        let home = home.path().join(name);
        let (code, said) = sync(&home, from, [&first, &second], &trusted, &[]);
        assert_eq!(code, 0, "{said}");
        let height = said["height"].as_u64().expect("a height");
        let header = &result(&first, &format!("/header?height={}", height + 1))["header"];
        let certified = header["app_hash"].as_str().expect("a hash").to_lowercase();
        assert_eq!(said["root"], Value::from(certified), "{said}");
        assert_eq!(said["certified_by_header"], Value::from(height + 1), "{said}");
        let (code, status) = keelstone(&home, &["status"]);
        assert_eq!((code, &status["height"], &status["root"]), (0, &said["height"], &said["root"]), "{status}");
        height
    };
    let from_mirror = ["--from", mirror.to_str().expect("text")];
    assert!(synced("by-mirror", &from_mirror) >= 10);
    // Its log says under which address peers reach it.
    let log = network.log("node0", "keelstone");
    let peer = log.split(|c: char| c.is_whitespace() || c == '"').find(|word| word.contains("@127.0.0.1:"));
    assert!(synced("by-peer", &["--peer", peer.expect("an address")]) >= 14);

    let refused = |rpc: [&str; 2], hash: &str, more: &[&str], expected: i32| {
        let home = home.path().join("refused");
        let (code, said) = sync(&home, &from_mirror, rpc, hash, more);
        assert_eq!(code, expected, "{said}");
        assert!(!home.join("genesis.json").exists(), "nothing was begun");
        said["error"]["message"].as_str().expect("a message").to_owned()
    };
    let lies = liar(&second, 2);
    let said = refused([&lies, &first], &trusted, &[], 12);
    assert!(said.contains(&lies) && said.contains("the votes are for"), "{said}");
    let said = refused([&first, &lies], &trusted, &[], 12);
    assert!(said.starts_with("forked") && said.contains(&first) && said.contains(&lies), "{said}");
    let said = refused([&first, &second], &"AB".repeat(32), &[], 12);
    assert!(said.contains("is to be trusted"), "{said}");
    let said = refused([&first, &second], &trusted, &["--set", "light.trust_period_ms=1000"], 2);
    assert!(said.starts_with("expired"), "{said}");
    let said = refused([&first, &first], &trusted, &[], 2);
    assert!(said.contains("are one node"), "{said}");
    let said = refused([&first, "http://127.0.0.1:9"], &trusted, &[], 16);
    assert!(said.contains("nobody confirms") && said.contains("127.0.0.1:9"), "{said}");
}
