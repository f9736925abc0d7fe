//! A node's life: started, stopped, killed, starved of descriptors, and in the way of another.

use crate::support::{Node, answer, chain, expect, expect_of, keelstone, post, program, register, send};
use serde_json::json;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a clean stop may take.
const STOP: Duration = Duration::from_secs(5);

#[test]
fn l06_sigterm_and_sigint_stop_cleanly_while_transactions_come_in() {
    for name in ["TERM", "INT"] {
        let home = chain();
        let mut node = Node::start(home.path(), &[]);
        send(home.path(), 0, &json!([register()]));
        let stream = node.connect(); // An idle connection must not hold up the stop.
        node.signal("HUP");
        send(home.path(), 0, &json!([post("after a SIGHUP")]));
        let asked = Instant::now();
        node.signal(name);
        assert_eq!(node.wait(STOP), Some(0), "SIG{name}: no clean stop within {STOP:?}");
        assert!(asked.elapsed() < STOP);
        drop(stream);
        assert_eq!(expect(home.path(), 0, &["status"])["height"], 2);
    }
}

/// Whoever opened the owner's socket and says nothing does not hold up a stop.
#[test]
fn l06_an_owner_who_asks_nothing_does_not_hold_up_a_stop() {
    let home = chain();
    let mut node = Node::start(home.path(), &[]);
    let silent = std::os::unix::net::UnixStream::connect(home.path().join("data/control.sock")).unwrap();
    // Taken in by then: the one that comes after it is answered.
    expect(home.path(), 0, &["snapshot", "gc"]);
    node.signal("TERM");
    assert_eq!(node.wait(STOP), Some(0), "no clean stop within {STOP:?}");
    drop(silent);
}

#[test]
fn kill_9_loses_no_acknowledged_transaction() {
    let home = chain();
    let mut height = 0;
    for round in 0..3 {
        let mut node = Node::start(home.path(), &[]);
        let first = if round == 0 { register() } else { post("again") };
        let sent = send(home.path(), 0, &json!([first, post("acknowledged")]));
        height += 1;
        node.child.kill().unwrap();
        node.wait(STOP);
        let found = expect(home.path(), 0, &["query", "tx", sent["id"].as_str().unwrap()]);
        assert_eq!(found["receipt"], sent["receipt"], "round {round}");
        assert_eq!(expect(home.path(), 0, &["status"])["height"], height);
    }
    expect(home.path(), 0, &["replay"]);
}

#[test]
fn l03_a_second_process_is_told_who_has_the_directory() {
    let home = chain();
    let node = Node::start(home.path(), &[]);
    for command in [["db", "stats"].as_slice(), &["node", "--set", "http.listen=127.0.0.1:0"], &["replay"]] {
        let error = expect(home.path(), 11, command);
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(&format!("pid {}", node.child.id())), "{message}");
    }
    // What inspects goes through the node.
    assert!(expect(home.path(), 0, &["status"])["api"].is_string());
}

#[test]
fn l03_the_lock_of_a_dead_process_is_none() {
    let home = chain();
    let mut node = Node::start(home.path(), &[]);
    node.child.kill().unwrap();
    node.wait(STOP);
    let mut again = Node::start(home.path(), &[]);
    again.signal("TERM");
    assert_eq!(again.wait(STOP), Some(0));
}

#[test]
fn l07_destructive_commands_are_refused_on_a_live_directory() {
    let home = chain();
    let _node = Node::start(home.path(), &[]);
    expect(home.path(), 11, &["rollback", "0", "--yes"]);
    expect(home.path(), 11, &["db", "prune", "--before", "1", "--yes"]);
    expect(home.path(), 11, &["db", "compact"]);
}

#[test]
fn l06_running_out_of_descriptors_is_survived() {
    let home = chain();
    let mut shell = std::process::Command::new("sh");
    let line = format!(
        "ulimit -n 64; exec {} node --json --set http.listen=127.0.0.1:0 --home {}",
        program().get_program().display(),
        home.path().display()
    );
    shell.args(["-c", &line]);
    let mut node = Node::run(shell);
    let idle: Vec<_> = (0..120).filter_map(|_| std::net::TcpStream::connect(node.address).ok()).collect();
    std::thread::sleep(Duration::from_millis(500));
    assert!(node.child.try_wait().unwrap().is_none(), "the node died for want of descriptors");
    drop(idle);
    let started = Instant::now();
    loop {
        let (status, body) = node.get("/healthz");
        if status == 200 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "the node does not serve again: {status} {body}");
    }
    node.signal("TERM");
    assert_eq!(node.wait(STOP), Some(0));
}

/// Once a write has failed nothing more is committed: whoever sends is refused with the reason, and so is whoever asks for a
/// transaction that waits; the status names it. What was acknowledged is there when the node is started again.
#[test]
fn after_a_failed_write_nothing_is_taken_in_and_everybody_is_told() {
    let home = chain();
    let mut command = Command::new("sh");
    // Files of 12 KiB at most, above which a write fails: the log comes to that within some blocks.
    let line = format!(
        "trap '' XFSZ; ulimit -f 24; exec {} node --json --set http.listen=127.0.0.1:0 --home {}",
        program().get_program().to_str().unwrap(),
        home.path().display()
    );
    command.args(["-c", &line]);
    let node = Node::run(command);
    let file = home.path().join("bundle.json");
    let sent = |text: &str| {
        fs::write(&file, json!({ "operations": [post(text)] }).to_string()).unwrap();
        keelstone(home.path(), &["tx", "send", file.to_str().unwrap(), "--from", "producer"])
    };
    send(home.path(), 0, &json!([register()]));
    let since = Instant::now();
    let first = (0..100).map(|number| sent(&format!("{number}"))).find(|sent| !sent.status.success());
    let what = "a write failed";
    let refused = first.expect("a write fails");
    assert!(String::from_utf8_lossy(&refused.stderr).contains(what), "{refused:?}");
    assert!(since.elapsed() < Duration::from_secs(25), "the one that it failed for was waited for");
    let height = node.json("/v1/status").1["height"].as_u64().unwrap();
    for (status, body) in [node.get("/healthz"), node.get("/readyz"), node.post_json("{\"transaction\":\"00\"}")] {
        assert!(status == 503 && body.contains("write_failed") && body.contains(what), "{status} {body}");
    }
    let status = expect(home.path(), 0, &["status"]);
    assert!(status["failed"].as_str().unwrap().contains(what), "{status}");
    drop(node);
    let status = expect(home.path(), 0, &["status"]);
    assert!(status["height"] == height && status["failed"].is_null(), "{status}");
}

#[test]
fn blocks_come_by_the_clock_if_asked() {
    let home = chain();
    let node = Node::start(home.path(), &["blocks.production=interval", "blocks.interval_ms=20"]);
    let started = Instant::now();
    while node.json("/v1/status").1["height"].as_u64() < Some(5) {
        assert!(started.elapsed() < Duration::from_secs(20), "no five blocks in 20 s");
    }
    let status = node.json("/v1/status").1;
    let block = node.json("/v1/blocks/3").1;
    assert_eq!(block["record_hash"], serde_json::Value::Null, "an empty block writes nothing");
    assert_eq!(block["root"], status["root"], "an idle chain stays at its root");
}

/// What `/v1/events` answers first: the status, and after that the ids of what comes within a moment.
fn first_events(node: &Node, query: &str, header: &str) -> (String, Vec<String>) {
    let mut stream = node.connect();
    stream.set_read_timeout(Some(Duration::from_millis(700))).expect("set");
    write!(stream, "GET /v1/events{query} HTTP/1.1\r\nHost: x\r\n{header}\r\n").expect("sent");
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read); // It ends by the time limit.
    let text = String::from_utf8_lossy(&read).into_owned();
    let ids = text.lines().filter_map(|line| line.strip_prefix("id:")).map(|id| id.trim().to_owned()).collect();
    (text.split(' ').nth(1).unwrap_or_default().to_owned(), ids)
}

/// An id is whatever a client says: one behind all events of a height is read on from the next.
#[test]
fn an_id_with_any_index_is_taken_or_refused_without_a_bug() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    send(home.path(), 0, &json!([post("second")]));
    let node = Node::start(home.path(), &[]);
    for index in [u32::MAX, u32::MAX - 1, 7, 1] {
        let (status, ids) = first_events(&node, "", &format!("Last-Event-ID: 1.{index}\r\n"));
        assert_eq!((status.as_str(), ids), ("200", vec!["2.0".to_owned(), "2.1".to_owned()]), "{index}");
        let (status, ids) = first_events(&node, "", &format!("Last-Event-ID: 2.{index}\r\n"));
        assert_eq!((status.as_str(), ids), ("200", vec![]), "{index}");
    }
    for id in ["2.4294967296", "+1.0", "1.+0", "01.0", "1.00"] {
        assert_eq!(first_events(&node, "", &format!("Last-Event-ID: {id}\r\n")).0, "400", "{id}");
    }
    // A browser that was told of something that has no id says none.
    assert_eq!(first_events(&node, "", "Last-Event-ID: \r\n").0, "200");
}

/// Blocks of an earlier day under a later state: a reader is told with a status what it cannot have, and one that has read all there
/// was misses nothing.
#[test]
fn a_reader_that_comes_to_missing_blocks_is_told_so_and_one_behind_them_goes_on() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    send(home.path(), 0, &json!([post("second")]));
    let blocks = home.path().join("data/gen-000001/blocks.redb");
    let earlier = ["redb", "wal"].map(|end| std::fs::read(blocks.with_extension(end)).unwrap());
    send(home.path(), 0, &json!([post("third")]));
    send(home.path(), 0, &json!([post("fourth")]));
    for (end, bytes) in ["redb", "wal"].iter().zip(earlier) {
        std::fs::write(blocks.with_extension(end), bytes).unwrap();
    }
    expect(home.path(), 0, &["recover", "--yes"]);
    let node = Node::start(home.path(), &[]);
    let after = |id: &str| first_events(&node, "", &format!("Last-Event-ID: {id}\r\n"));
    assert_eq!(after("1.1"), ("200".to_owned(), vec!["2.0".to_owned(), "2.1".to_owned()]), "block 3 is not there");
    for id in ["2.1", "3.0", "3.1", "4.0"] {
        assert_eq!(after(id).0, "404", "behind {id} something is missing");
    }
    assert_eq!(after("4.1"), ("200".to_owned(), vec![]), "that was the last event there is");
    send(home.path(), 0, &json!([post("fifth")]));
    assert_eq!(after("4.1"), ("200".to_owned(), vec!["5.0".to_owned(), "5.1".to_owned()]));
}

/// Where blocks were left behind there are none: those before are gone, and there is no lowest.
#[test]
fn blocks_that_were_left_behind_are_gone() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    send(home.path(), 0, &json!([post("second")]));
    let blocks = home.path().join("data/gen-000001/blocks.redb");
    let mut file = std::fs::OpenOptions::new().write(true).open(blocks).unwrap();
    file.write_all(&[0x5a; 20]).unwrap();
    expect(home.path(), 0, &["recover", "--yes"]);
    let node = Node::start(home.path(), &[]);
    let (status, body) = node.json("/v1/blocks/2");
    assert_eq!((status, &body["error"]["code"]), (410, &json!("gone")), "{body}");
    assert_eq!((&body["error"]["lowest_height"], &body["error"]["highest_height"]), (&json!(3), &json!(2)));
    let (status, body) = node.json("/v1/blocks/3");
    assert!(
        body["error"]["message"].as_str().unwrap().contains("there is none here yet, the next is 3"),
        "{status} {body}"
    );
    // Whoever has read all there was misses nothing.
    assert_eq!(first_events(&node, "", "Last-Event-ID: 2.1\r\n").0, "200");
    assert_eq!(first_events(&node, "", "Last-Event-ID: 2.0\r\n").0, "410");
    // Nobody is told that what ran there never did.
    let unknown = format!("/v1/transactions/{}", "0".repeat(64));
    let told = |of: &str| {
        let (status, body) = node.json(&unknown);
        assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")), "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(of), "{body}");
    };
    told("this node has no blocks");
    send(home.path(), 0, &json!([post("third")]));
    told("in the blocks of this node, which begin at 3");
}

/// A block is told of later as it was when it came, also where its state is no longer kept.
#[test]
fn a_block_keeps_its_root_when_its_state_is_gone() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    let root = expect(home.path(), 0, &["status"])["root"].clone();
    send(home.path(), 0, &json!([post("second")]));
    send(home.path(), 0, &json!([post("third")]));
    expect(home.path(), 0, &["db", "prune", "--before", "3", "--yes"]);
    let node = Node::start(home.path(), &[]);
    assert_eq!(node.json("/v1/blocks/1").1["root"], root);
    assert_eq!(node.get("/v1/state/chain?key=facts&height=1").0, 410, "the state is not kept");
}

#[test]
fn a_node_needs_its_port() {
    let home = chain();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("http.listen={}", taken.local_addr().unwrap());
    let output = keelstone(home.path(), &["node", "--set", &listen]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("could not listen"));
}

#[test]
fn events_are_streamed_as_they_happen() {
    let home = chain();
    let mut node = Node::start(home.path(), &[]);
    let mut stream = node.connect();
    write!(stream, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // Whoever is answered is listening.
    stream.peek(&mut [0]).unwrap();
    send(home.path(), 0, &json!([register()]));
    node.signal("TERM");
    assert_eq!(node.wait(STOP), Some(0), "an open stream holds up the stop");
    let (status, body) = answer(&mut stream);
    assert_eq!(status, 200);
    assert!(body.contains("event: transaction") && body.contains("agents.registered"), "{body}");
    assert!(body.contains("event: block"), "{body}");
}

/// A reader that comes back says what it read last and misses nothing; one that begins names a height.
#[test]
fn events_go_on_where_a_reader_left_off() {
    let home = chain();
    for text in ["one", "two"] {
        send(home.path(), 0, &json!([if text == "one" { register() } else { post(text) }]));
    }
    let mut node = Node::start(home.path(), &[]);
    let subscribe = |query: &str, header: &str| {
        let mut stream = node.connect();
        write!(stream, "GET /v1/events{query} HTTP/1.1\r\nHost: x\r\n{header}\r\n").unwrap();
        stream
    };
    let mut streams = [
        (subscribe("?from=1", ""), vec!["1.0", "1.1", "2.0", "2.1", "3.0", "3.1"]),
        (subscribe("", "Last-Event-ID: 1.0\r\n"), vec!["1.1", "2.0", "2.1", "3.0", "3.1"]),
        (subscribe("?from=1", "Last-Event-ID: 2.1\r\n"), vec!["3.0", "3.1"]),
        (subscribe("?from=3", ""), vec!["3.0", "3.1"]),
        (subscribe("", ""), vec!["3.0", "3.1"]),
    ];
    // Whoever is answered is listening.
    for (stream, _) in &streams {
        stream.peek(&mut [0]).unwrap();
    }
    send(home.path(), 0, &json!([post("three")]));
    let refused = |query: &str, header: &str| {
        let mut stream = subscribe(query, &format!("Connection: close\r\n{header}"));
        answer(&mut stream).0
    };
    assert_eq!(refused("", "Last-Event-ID: 9.0\r\n"), 404, "no such height yet");
    assert_eq!(refused("", "Last-Event-ID: 2\r\n"), 400);
    assert_eq!(refused("?since=2", ""), 400);
    node.signal("TERM");
    assert_eq!(node.wait(STOP), Some(0), "open streams hold up the stop");
    for (stream, expected) in &mut streams {
        let (status, body) = answer(stream);
        assert_eq!(status, 200);
        let ids: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
        assert_eq!(ids, *expected, "{body}");
        let kinds: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!(kinds[kinds.len() - 2..], ["transaction", "block"]);
        // Each says of which height it is.
        let told = body.lines().filter_map(|line| line.strip_prefix("data: "));
        let heights = told.map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap()["height"].to_string());
        assert!(heights.eq(ids.iter().map(|id| id.split('.').next().unwrap().to_owned())), "{body}");
    }
}

#[test]
fn a_node_whose_key_may_not_make_blocks_does_not_start() {
    let (home, other) = (chain(), chain());
    let key = "keys/producer.key.json";
    std::fs::copy(other.path().join(key), home.path().join(key)).unwrap();
    let error = expect(home.path(), 2, &["node"]);
    assert!(error["error"]["message"].as_str().unwrap().contains("no producer"), "{error}");
}

/// Log lines in a file have no colours, and at the default level they are the node's own.
#[test]
fn a_log_in_a_file_is_plain_text_of_the_node_alone() {
    let home = chain();
    let log = home.path().join("log.txt");
    for json in [false, true] {
        let mut command = program();
        command.args(["node", "--set", "http.listen=127.0.0.1:0", "--set", "p2p.enabled=true"]);
        command.args(["--set", "p2p.listen=127.0.0.1:0", "--home"]).arg(home.path());
        if json {
            command.arg("--json");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.next().is_some(), "the node says where it listens");
        // The owner's request is a line of the log.
        expect(home.path(), 0, &["snapshot", "gc"]);
        child.kill().unwrap();
        child.wait().unwrap();
        let logged = std::fs::read_to_string(&log).unwrap();
        assert!(logged.contains("the owner asks"), "{logged}");
        assert!(!logged.contains('\x1b') && !logged.contains("libp2p_swarm"), "{logged}");
    }
}

/// Where CometBFT is to connect is said so that it can, wherever it runs.
#[test]
fn the_engines_socket_is_named_by_its_whole_path() {
    let place = tempfile::tempdir().unwrap();
    let validator = format!("{}=1", expect(place.path(), 0, &["keys", "new", "validator"])["public"].as_str().unwrap());
    let there = |arguments: &[&str]| {
        let mut command = program();
        command.current_dir(place.path()).args(arguments).args(["--home", "k", "--json"]);
        command
    };
    let said = expect_of(there(&["init", "--validator", &validator]), 0);
    // Enough to put into the genesis of an engine: the same chain, from the same moment on, and its validators.
    let engine = &said["engine_genesis"];
    assert_eq!((&engine["app_state"], &engine["chain_id"]), (&said["genesis_hash"], &said["chain_id"]));
    assert_eq!((&engine["initial_height"], &engine["app_hash"]), (&json!("1"), &json!("")));
    assert_eq!((&engine["validators"][0]["power"], engine["genesis_time"].as_str().unwrap().len()), (&json!("1"), 24));
    let node = Node::run(there(&["node", "--set", "http.listen=127.0.0.1:0"]));
    let absolute = place.path().canonicalize().unwrap().join("k/data/abci.sock");
    assert_eq!(node.said["abci"], format!("unix://{}", absolute.display()));
}
