//! A node whose engine began state sync and then says nothing more, or never begins: how it ends, what it says, and what it leaves behind. The
//! engine is this test, at the other end of the socket.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, expect, program};
use prost::Message as _;
use prost::bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Output, Stdio};
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
    let file = place.path().join("genesis.json");
    fs::write(&file, genesis().to_string()).unwrap();
    let begun = |name: &str| {
        let home = place.path().join(name);
        let said = expect(&home, 0, &["init", "--genesis", file.to_str().unwrap()]);
        (home, said["genesis_hash"].as_str().unwrap().to_owned())
    };
    let (origin, hash) = begun("origin");
    let served = serve(&origin, &hash);
    let joining = [("people", false), ("programs", true)].map(|(name, json)| {
        let (home, _) = begun(name);
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
    let file = place.path().join("genesis.json");
    fs::write(&file, genesis().to_string()).unwrap();
    let rpc = rpc_at_nothing();
    let [finds_none, waits] = ["finds_none", "waits"].map(|name| {
        let home = place.path().join(name);
        let said = expect(&home, 0, &["init", "--genesis", file.to_str().unwrap()]);
        let hash = said["genesis_hash"].as_str().unwrap().to_owned();
        let child = joiner(&home, false, &[&rpc]);
        (Engine::of(&home), hash, child)
    });
    let (mut engine, hash, mut waiting) = waits;
    engine.begins(&hash);
    let (_engine, _, child) = finds_none;
    let output = ended(child);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(16), "{text}");
    assert!(text.contains("is still at height 0, and has offered no good snapshot"), "{text}");
    // As long again as the other took.
    std::thread::sleep(Duration::from_secs(3));
    assert!(waiting.try_wait().unwrap().is_none(), "it was ended: {:?}", waiting.wait_with_output());
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}
