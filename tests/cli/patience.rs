//! A node whose engine began state sync and then says nothing more, or never begins: how it ends, what it says, and what it leaves behind;
//! and what a node says of itself whose engine does nothing. The engine is this test, at the other end of the socket.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, expect, program, register};
use prost::Message as _;
use prost::bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci::request::Value as Ask;
use tendermint_proto::v0_38::abci::response::Value as Answer;
use tendermint_proto::v0_38::abci::response_apply_snapshot_chunk::Result as ChunkResult;
use tendermint_proto::v0_38::abci::response_offer_snapshot::Result as OfferResult;
use tendermint_proto::v0_38::abci::{self, Request, Response, Snapshot};

/// How long anything may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The chain's only validator, and the address by which engines call it.
const VALIDATOR: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
const ADDRESS: [u8; 20] = *b"\x21\xfe\x31\xdf\xa1\x54\xa2\x61\x62\x6b\xf8\x54\x04\x6f\xd2\x27\x1b\x7b\xed\x4b";
/// When the chain began, in seconds.
const BEGAN: i64 = 1_700_000_000;

/// The engine's end of a connection.
struct Engine(UnixStream);

impl Engine {
    /// Connects to the application of a home once it listens.
    fn of(home: &Path) -> Self {
        let started = Instant::now();
        loop {
            match UnixStream::connect(home.join("data/abci.sock")) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    return Self(stream);
                }
                Err(error) => assert!(started.elapsed() < PATIENCE, "nobody listens: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask(&mut self, ask: Ask) -> Answer {
        let flush = Ask::Flush(abci::RequestFlush {});
        let both = [ask, flush].map(|ask| Request { value: Some(ask) }.encode_length_delimited_to_vec());
        self.0.write_all(&both.concat()).unwrap();
        let answer = self.answer();
        assert!(matches!(self.answer(), Answer::Flush(_)), "{answer:?}");
        answer
    }

    fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while head.last().is_none_or(|byte| byte & 0x80 != 0) {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let mut body = vec![0; prost::decode_length_delimiter(head.as_slice()).unwrap()];
        self.0.read_exact(&mut body).unwrap();
        Response::decode(body.as_slice()).unwrap().value.unwrap()
    }

    /// Begins the chain at its genesis.
    fn begins(&mut self, genesis_hash: &str) {
        let begin = abci::RequestInitChain {
            time: Some(Timestamp { seconds: BEGAN, nanos: 0 }),
            chain_id: "test".to_owned(),
            app_state_bytes: format!("\"{genesis_hash}\"").into(),
            initial_height: 1,
            ..Default::default()
        };
        let Answer::InitChain(_) = self.ask(Ask::InitChain(begin)) else { panic!("the chain does not begin") };
    }

    /// Makes the next block, of no transactions; returns the app hash.
    fn makes(&mut self, height: i64) -> Bytes {
        let block = abci::RequestFinalizeBlock {
            height,
            time: Some(Timestamp { seconds: BEGAN + height, nanos: 0 }),
            proposer_address: ADDRESS.to_vec().into(),
            ..Default::default()
        };
        let Answer::FinalizeBlock(finalized) = self.ask(Ask::FinalizeBlock(block)) else { panic!("no block {height}") };
        let Answer::Commit(_) = self.ask(Ask::Commit(abci::RequestCommit {})) else { panic!("{height} not committed") };
        finalized.app_hash
    }
}

/// What state sync needs of a chain: a snapshot of several chunks, its app hash, and its first chunk.
struct Served {
    snapshot: Snapshot,
    app_hash: Bytes,
    chunk: Bytes,
}

const SETTINGS: [&str; 4] = [
    "engine.kind=cometbft",
    "engine.rpc=http://127.0.0.1:9",
    "snapshots.reserve_percent=0",
    "engine.statesync_patience_ms=1000",
];

/// The genesis of a chain with some hundred kilobytes of state.
fn genesis() -> Value {
    let value = |number: u32| -> String {
        let word = |at: u32| format!("{:08x}", number.wrapping_add(at).wrapping_mul(2_654_435_761).rotate_left(at));
        (0..40).map(word).collect()
    };
    let entries: BTreeMap<String, String> =
        (0..1_500u32).map(|number| (format!("{number:08x}"), value(number))).collect();
    json!({
        "chain_id": "test", "time": BEGAN * 1_000, "limits": { "snapshot_chunk_bytes": 65_536 },
        "validators": [{ "key": VALIDATOR, "power": 10 }], "state": { "app": entries },
    })
}

/// A home in which the chain of [`genesis`] has begun, and the hash of that.
fn begun(place: &Path, name: &str) -> (PathBuf, String) {
    let (home, file) = (place.join(name), place.join("genesis.json"));
    fs::write(&file, genesis().to_string()).unwrap();
    let said = expect(&home, 0, &["init", "--genesis", file.to_str().unwrap()]);
    (home, said["genesis_hash"].as_str().unwrap().to_owned())
}

/// Has an application make blocks and a snapshot, and serve it.
fn serve(home: &Path, genesis_hash: &str) -> Served {
    let snapshots = ["snapshots.enabled=true", "snapshots.interval=2"];
    let _node = Node::start(home, &[&SETTINGS[..], &snapshots].concat());
    let mut engine = Engine::of(home);
    engine.begins(genesis_hash);
    let started = Instant::now();
    let mut roots = BTreeMap::new();
    for height in 1.. {
        roots.insert(height, engine.makes(height));
        let Answer::ListSnapshots(list) = engine.ask(Ask::ListSnapshots(abci::RequestListSnapshots {})) else {
            panic!("no list")
        };
        if let Some(snapshot) = list.snapshots.into_iter().next() {
            let load = abci::RequestLoadSnapshotChunk { height: snapshot.height, format: snapshot.format, chunk: 0 };
            let Answer::LoadSnapshotChunk(loaded) = engine.ask(Ask::LoadSnapshotChunk(load)) else {
                panic!("no chunk")
            };
            assert!(snapshot.chunks > 1 && !loaded.chunk.is_empty(), "{snapshot:?}");
            let app_hash = roots[&i64::try_from(snapshot.height).unwrap()].clone();
            return Served { snapshot, app_hash, chunk: loaded.chunk };
        }
        assert!(started.elapsed() < PATIENCE, "no snapshot is offered at {height}");
        std::thread::sleep(Duration::from_millis(50));
    }
    unreachable!("there is no last height");
}

/// A node that is to join, with further settings.
fn joiner(home: &Path, json: bool, more: &[&str]) -> Child {
    let mut command = program();
    command.args(["node", "--set", "http.listen=127.0.0.1:0", "--set", "log.format=json", "--home"]).arg(home);
    for setting in SETTINGS.iter().chain(more) {
        command.args(["--set", setting]);
    }
    command.args(json.then_some("--json"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a process ends by itself, and kills it if it does not.
fn ended(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("it goes on: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// A node to which a snapshot was offered and no more chunks come ends by itself: with its own exit code, its reason for people and
/// for programs, and without an address at which nobody listens any more.
#[test]
fn a_node_whose_state_sync_stands_still_ends_and_says_why() {
    let place = tempfile::tempdir().unwrap();
    let (origin, hash) = begun(place.path(), "origin");
    let served = serve(&origin, &hash);
    let joining = [("people", false), ("programs", true)].map(|(name, json)| {
        let (home, _) = begun(place.path(), name);
        let child = joiner(&home, json, &[]);
        let mut engine = Engine::of(&home);
        // It listens for its engine before it says where it can be asked.
        let started = Instant::now();
        while !home.join("api.json").exists() {
            assert!(started.elapsed() < PATIENCE, "it does not say where it listens");
            std::thread::sleep(Duration::from_millis(10));
        }
        let offer =
            abci::RequestOfferSnapshot { snapshot: Some(served.snapshot.clone()), app_hash: served.app_hash.clone() };
        let Answer::OfferSnapshot(offered) = engine.ask(Ask::OfferSnapshot(offer)) else { panic!("no answer") };
        assert_eq!(offered.result(), OfferResult::Accept);
        let apply =
            abci::RequestApplySnapshotChunk { index: 0, chunk: served.chunk.clone(), sender: "peer".to_owned() };
        let Answer::ApplySnapshotChunk(applied) = engine.ask(Ask::ApplySnapshotChunk(apply)) else {
            panic!("no answer")
        };
        assert_eq!(applied.result(), ChunkResult::Accept);
        // It is connected to the end: what ends the node is silence.
        (home, json, child, engine)
    });
    for (home, json, child, _engine) in joining {
        let output = ended(child);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(16), "{text}");
        // What is logged is an object a line, too, and has no error.
        let said: Vec<&str> = text.lines().filter(|line| !line.starts_with(r#"{"timestamp""#)).collect();
        let reason = "state sync has stood still for ";
        let seconds = |said: &str| -> Option<u64> {
            let (_, rest) = said.split_once(reason)?;
            rest.split_once(" s: no good chunk came")?.0.parse().ok()
        };
        if json {
            let error = serde_json::from_str::<Value>(&said.concat()).unwrap()["error"].clone();
            assert_eq!((&error["code"], &error["exit"]), (&json!("sync_failed"), &json!(16)), "{error}");
            assert!(seconds(error["message"].as_str().unwrap()) > Some(0), "{error}");
            assert!(error["hint"].as_str().unwrap().contains("docs/cometbft.md"), "{error}");
        } else {
            assert!(said.iter().any(|line| seconds(line) > Some(0)), "{text}");
            assert!(said.iter().any(|line| line.contains("docs/cometbft.md")), "{text}");
            assert!(!said.concat().contains(['{', '\u{1b}']), "plain text: {text}");
        }
        assert!(!home.join("api.json").exists(), "nobody listens there any more");
    }
}

/// The RPC of an engine that has no block, for as long as the process lives.
fn rpc_at_nothing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let status = r#"{"result":{"sync_info":{"latest_block_height":"0"}}}"#;
            // Who asks for something else goes away before it has all of this.
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{status}");
        }
    });
    format!("engine.rpc=http://{address}")
}

/// An engine that finds no snapshot, as when the block it trusts has expired, asks for nothing for ever: the node ends. One that has
/// begun the chain may wait for its first block as long as it likes.
#[test]
fn a_node_whose_engine_finds_no_snapshot_ends_and_one_that_waits_for_a_block_does_not() {
    let place = tempfile::tempdir().unwrap();
    let rpc = rpc_at_nothing();
    let [(finds_none, _), (waits, hash)] = ["finds_none", "waits"].map(|name| begun(place.path(), name));
    let mut waiting = joiner(&waits, false, &[&rpc, "engine.statesync_patience_ms=2000"]);
    let mut beginning = Engine::of(&waits);
    beginning.begins(&hash);
    // Its patience begins when its engine connects, and is longer by more than a look: by its end the other's would have ended.
    let child = joiner(&finds_none, false, &[&rpc, "engine.statesync_patience_ms=5000"]);
    let _engine = Engine::of(&finds_none);
    let output = ended(child);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(16), "{text}");
    assert!(text.contains("is still at height 0, and has offered no good snapshot"), "{text}");
    assert!(waiting.try_wait().unwrap().is_none(), "it was ended: {:?}", waiting.wait_with_output());
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}

/// An engine's RPC: how high its peers are, and what it answers to whoever hands it a transaction; nothing, if that is nothing.
#[derive(Clone)]
struct Peers {
    height: u64,
    broadcast: String,
}

fn rpc_with(peers: &Arc<Mutex<Peers>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let peers = peers.clone();
    std::thread::spawn(move || {
        let mut hung = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 1 << 16];
            let got = stream.read(&mut request).unwrap();
            let asked = String::from_utf8_lossy(&request[..got]).into_owned();
            let Peers { height, broadcast } = peers.lock().unwrap().clone();
            let answer = if asked.starts_with("GET /dump_consensus_state ") {
                format!(r#"{{"result":{{"peers":[{{"peer_state":{{"round_state":{{"height":"{height}"}}}}}}]}}}}"#)
            } else if asked.starts_with("POST ") && broadcast.is_empty() {
                hung.push(stream);
                continue;
            } else if asked.starts_with("POST ") {
                broadcast
            } else {
                r#"{"error":{"message":"not here"}}"#.to_owned()
            };
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{answer}").and_then(|()| stream.shutdown(Shutdown::Write));
            // A connection that is closed with something unread in it takes the answer with it.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    format!("engine.rpc=http://{address}")
}

/// A node says that it is ready once its engine is there and has given it the first block, if its peers have one; and of a
/// transaction that its engine does not take why, and whose fault that is.
// spec: TX-5
#[test]
fn a_node_is_of_use_once_its_engine_is() {
    let place = tempfile::tempdir().unwrap();
    let (home, hash) = begun(place.path(), "home");
    let peers = Arc::new(Mutex::new(Peers { height: 301, broadcast: String::new() }));
    let more = [&*rpc_with(&peers), "engine.statesync_patience_ms=600000", "http.request_timeout_ms=1200"];
    let node = Node::start(&home, &[&SETTINGS[..], &more].concat());
    let is_ready = || node.get("/readyz");
    let (code, said) = is_ready();
    let address = format!("unix://{}", home.join("data/abci.sock").display());
    assert!(code == 503 && said.contains("is not connected") && said.contains(&address), "{code} {said}");
    let mut engine = Engine::of(&home);
    let asked = engine.ask(Ask::Info(abci::RequestInfo::default()));
    assert!(matches!(asked, Answer::Info(_)));
    let (code, said) = is_ready();
    assert!(code == 503 && said.contains("peers are at 301"), "{code} {said}");
    assert_eq!(node.get("/healthz").0, 200, "it is only not there yet");
    peers.lock().unwrap().height = 1;
    assert_eq!(is_ready().0, 200, "all begin together");
    peers.lock().unwrap().height = 301;
    engine.begins(&hash);
    engine.makes(1);
    assert_eq!(is_ready().0, 200);

    expect(&home, 0, &["keys", "new", "alice"]);
    let plan = place.path().join("plan.json");
    fs::write(&plan, json!({ "operations": [register()] }).to_string()).unwrap();
    let signed = expect(&home, 0, &["tx", "sign", plan.to_str().unwrap(), "--from", "alice"]);
    fs::write(&plan, signed.to_string()).unwrap();
    let send = |code: i32, answer: &str| {
        peers.lock().unwrap().broadcast = answer.to_owned();
        expect(&home, code, &["tx", "send", plan.to_str().unwrap(), "--no-wait"])["error"]["message"].clone()
    };
    let refused = |data: &str| {
        let error = format!(r#"{{"error":{{"code":-32603,"message":"Internal error","data":"{data}"}}}}"#);
        send(13, &error).as_str().unwrap().to_owned()
    };
    let large = "Tx too large. Max size is 300, but got 445";
    assert_eq!(refused(large), format!("17: CometBFT does not take it: {large}"));
    assert!(refused("not allowed with `nop` mempool").contains("17: CometBFT does not take it: not allowed"));
    let (said, id) = (send(1, ""), signed["id"].as_str().unwrap());
    let said = said.as_str().unwrap();
    let engine_said = "CometBFT does not say whether it takes the transaction: http://127.0.0.1:";
    assert!(said.contains(&format!("{id} may have been taken in or not")) && said.contains(engine_said), "{said}");

    send(0, r#"{"result":{"code":0}}"#);
    let bytes = signed["transaction"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&bytes[at..at + 2], 16).unwrap();
    let tx: Vec<u8> = (0..bytes.len()).step_by(2).map(byte).collect();
    let check = abci::RequestCheckTx { tx: tx.into(), ..Default::default() };
    let Answer::CheckTx(checked) = engine.ask(Ask::CheckTx(check)) else { panic!("no answer") };
    assert_eq!(checked.code, 0, "{checked:?}");
    let metrics = node.get("/metrics").1;
    assert!(metrics.contains("chain_transactions_total{outcome=\"accepted\"} 1\n"), "it is counted once: {metrics}");
}

/// An engine that only says that it gave up state sync, whose own files are beside it.
fn engine_that_gives_up(place: &Path, config: &str) -> [String; 3] {
    use std::os::unix::fs::PermissionsExt as _;
    let (home, program) = (place.join("engine"), place.join("cometbft.sh"));
    for part in ["config", "data"] {
        fs::create_dir_all(home.join(part)).unwrap();
    }
    fs::write(home.join("config/config.toml"), config).unwrap();
    let line = "E[now] State sync failed                            module=statesync err=\"light block not found\"";
    fs::write(&program, format!("#!/bin/sh\ntouch {}/began\necho '{line}'\nexec sleep 60\n", place.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (home, program) = (home.display(), program.display());
    ["engine.supervise=true".to_owned(), format!("engine.cometbft={program}"), format!("engine.cometbft_home={home}")]
}

/// The RPC of a node that has blocks from this one on.
fn rpc_from(first: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let info = r#""node_info":{"network":"test","id":"n","version":"0.40.0"}"#;
            let sync = format!(r#""latest_block_height":"400","earliest_block_height":"{first}","catching_up":false"#);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{{\"result\":{{{info},\"sync_info\":{{{sync}}}}}}}");
        }
    });
    format!("http://{address}")
}

/// Where every peer has forgotten the first block, fetching every block would wait for ever: the node ends and says so, and nothing is
/// emptied. That its engine looks for it elsewhere it has said before.
#[test]
fn a_supervised_node_does_not_begin_anew_where_nobody_has_the_first_block() {
    let place = tempfile::tempdir().unwrap();
    let (home, _) = begun(place.path(), "home");
    let (one, two) = (rpc_from(301), rpc_from(305));
    let config =
        format!("proxy_app = \"tcp://127.0.0.1:26658\"\n[statesync]\nenable = true\nrpc_servers = \"{one},{two}\"\n");
    let settings = engine_that_gives_up(place.path(), &config);
    let settings = settings.each_ref().map(String::as_str);
    let output = ended(joiner(&home, false, &settings));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(16), "{text}");
    let gone = format!("{one} has blocks from 301 on, {two} has blocks from 305 on, and the chain begins with 1");
    assert!(text.contains(&gone) && text.contains("light block not found"), "{text}");
    assert!(text.contains("elsewhere than this node listens") && text.contains("tcp://127.0.0.1:26658"), "{text}");
    let kept = fs::read_to_string(place.path().join("engine/config/config.toml")).unwrap();
    assert_eq!(kept, config, "state sync is what it can try again");

    // An engine of another chain never gets as far as a block.
    fs::remove_file(place.path().join("began")).unwrap();
    fs::write(place.path().join("engine/config/genesis.json"), r#"{"chain_id":"other"}"#).unwrap();
    let output = ended(joiner(&home, false, &settings));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("is of chain other, this home is of chain test"), "{text}");
    assert!(!place.path().join("began").exists(), "it was started");
}
