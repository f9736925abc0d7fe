//! `statesync configure`: what it writes, and what it refuses to believe.

use crate::support::expect;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

/// The address of a node that says this of itself, for as long as the process lives.
fn node(id: &'static str, hash: char) -> String {
    node_of(id, hash, "2100-01-01T00:00:00Z")
}

/// The same, whose blocks are of this time.
fn node_of(id: &'static str, hash: char, time: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let mut request = [0; 4096];
            let got = stream.read(&mut request).expect("a request");
            let path = String::from_utf8_lossy(&request[..got]).into_owned();
            let hash = hash.to_string().repeat(64);
            let result = match path.split("height=").nth(1).and_then(|rest| rest.split(' ').next()) {
                None => format!(
                    r#"{{"node_info":{{"network":"test","id":"{id}","version":"0.40.0"}},"sync_info":{{"latest_block_height":"5000","earliest_block_height":"1","catching_up":false}}}}"#
                ),
                Some(height) => format!(
                    r#"{{"signed_header":{{"header":{{"chain_id":"test","height":"{height}","app_hash":"00","time":"{time}"}},"commit":{{"block_id":{{"hash":"{hash}"}}}}}}}}"#
                ),
            };
            // A client that went away is the test's own.
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{{\"jsonrpc\":\"2.0\",\"id\":-1,\"result\":{result}}}");
        }
    });
    format!("http://{address}")
}

fn configure(home: &Path, code: i32, nodes: &[&str]) -> serde_json::Value {
    let cometbft = home.to_str().expect("UTF-8");
    let rpc = nodes.iter().flat_map(|node| ["--rpc", node]);
    expect(home, code, &[&["statesync", "configure", "--cometbft-home", cometbft], &*rpc.collect::<Vec<_>>()].concat())
}

#[test]
fn configure_writes_what_two_nodes_agree_on_and_keeps_the_rest() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let config = home.path().join("config/config.toml");
    std::fs::create_dir(home.path().join("config")).expect("made");
    let before = "# mine\nmoniker = 'x' # too\n[p2p]\nsend_rate = 5120000\n\n[statesync]\nenable = false\n";
    std::fs::write(&config, before).expect("written");
    let (one, two) = (node("n1", 'a'), node("n2", 'a'));

    let said = configure(home.path(), 0, &[&one, &two]);
    assert_eq!((said["trust_height"].as_u64(), said["changed"].as_bool()), (Some(3_000), Some(true)));
    let text = std::fs::read_to_string(&config).expect("readable");
    assert!(text.starts_with("# mine\nmoniker = 'x' # too\n[p2p]\nsend_rate = 51200000\nrecv_rate = 51200000\n\n[statesync]\nenable = true\n"), "{text}");
    assert!(text.contains(&format!("rpc_servers = \"{one},{two}\"\ntrust_height = 3000\n")), "{text}");
    assert!(text.contains(&format!("trust_hash = \"{}\"", "A".repeat(64))), "{text}");
    assert_eq!(configure(home.path(), 0, &[&one, &two])["changed"], false, "once is enough");
    assert_eq!(std::fs::read_to_string(&config).expect("readable"), text);
}

#[test]
fn configure_refuses_nodes_that_disagree_and_changes_nothing() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let config = home.path().join("config/config.toml");
    std::fs::create_dir(home.path().join("config")).expect("made");
    std::fs::write(&config, "[statesync]\nenable = false\n").expect("written");
    let (one, two, same) = (node("n1", 'a'), node("n2", 'b'), node("n1", 'a'));
    let message = |said: &serde_json::Value| said["error"]["message"].as_str().unwrap_or_default().to_owned();

    let said = message(&configure(home.path(), 12, &[&one, &two]));
    assert!(said.contains(&"A".repeat(64)) && said.contains(&"B".repeat(64)), "{said}");
    assert!(message(&configure(home.path(), 2, &[&one, &same])).contains("are one node"));
    assert!(message(&configure(home.path(), 2, &[&one])).contains("at least two"));
    assert!(message(&configure(home.path(), 1, &[&one, "http://127.0.0.1:1"])).contains("did not answer"));
    std::fs::write(home.path().join("config/genesis.json"), r#"{"chain_id":"other"}"#).expect("written");
    let agreed = node("n3", 'a');
    assert!(message(&configure(home.path(), 2, &[&one, &agreed])).contains("is of chain other"));
    // CometBFT would look for a snapshot for ever.
    std::fs::remove_file(home.path().join("config/genesis.json")).expect("removed");
    let old = ["n4", "n5"].map(|id| node_of(id, 'a', "2000-01-01T00:00:00Z"));
    assert!(message(&configure(home.path(), 2, &[&old[0], &old[1]])).contains("block 5000 is "));
    assert_eq!(std::fs::read_to_string(&config).expect("readable"), "[statesync]\nenable = false\n");
}
