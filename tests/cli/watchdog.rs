//! A node whose application has a function that never ends.

use crate::support::{Node, expect_of};
use keelstone::prelude::*;
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The variable that makes this test binary the application: its arguments, one to a line.
const ARGUMENTS: &str = "ENDLESS_ARGUMENTS";

#[namespace("endless")]
pub(crate) struct Endless {
    calls: Item<u64>,
}

/// Raises the counter, or never ends and asks its host for nothing.
#[transition("endless.spin/1")]
pub(crate) struct Spin {
    for_ever: bool,
}

impl Transition<Endless> for Spin {
    type Output = u64;

    fn apply(&self, endless: &mut Draft<Endless>, _: &mut Context) -> Result<u64, Denied> {
        while std::hint::black_box(self.for_ever) {}
        let calls = endless.calls.get_or_default()? + 1;
        endless.calls.set(&calls)?;
        Ok(calls)
    }
}

/// The application's program: this test alone, in a process of its own.
#[test]
#[ignore = "the program that another test runs"]
fn the_application() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let application = keelstone::node::Application::new(Registry::new().with::<Endless, Spin>()).name("endless");
    let exit = application.run(std::iter::once("endless").chain(arguments.lines()).map(Into::into));
    std::process::exit(i32::from(exit as u8));
}

fn application(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a running test has a path"));
    let home = ["--json", "--home", home.to_str().expect("the temporary directory has a name in UTF-8")];
    command.args(["--exact", "watchdog::the_application", "--ignored", "--nocapture", "--quiet"]);
    command.env_clear().env("HOME", "/nonexistent").env(ARGUMENTS, [arguments, &home].concat().join("\n"));
    command
}

/// X-09, spec: EXEC-13. A function that loops without asking its host for anything halts the node, which names it; what
/// was committed before is there afterwards, and the chain goes on without the transaction.
#[test]
fn x09_a_function_that_never_ends_halts_the_node_by_name() {
    let home = tempfile::tempdir().unwrap();
    let run = |code: i32, arguments: &[&str]| expect_of(application(home.path(), arguments), code);
    let file = home.path().join("bundle.json");
    let send = |code: i32, for_ever: bool, more: &[&str]| {
        let call = json!({ "call": "endless.spin/1", "args": { "for_ever": for_ever } });
        std::fs::write(&file, json!({ "operations": [call] }).to_string()).unwrap();
        run(code, &[&["tx", "send", file.to_str().unwrap(), "--from", "producer"], more].concat())
    };
    run(0, &["init", "--chain-id", "endless"]);
    let settings = ["--set", "http.listen=127.0.0.1:0", "--set", "execution.watchdog_ms=500"];
    let node = || {
        let mut command = application(home.path(), &[&["node"], settings.as_slice()].concat());
        command.stderr(Stdio::piped());
        Node::run_loud(command)
    };

    let mut first = node();
    send(0, false, &[]);
    // A node at rest is not one that hangs.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(first.json("/v1/status").1["height"], 1);
    let sent = Instant::now();
    send(0, true, &["--no-wait"]);
    assert_eq!(first.wait(Duration::from_secs(30)), Some(15));
    assert!(sent.elapsed() >= Duration::from_millis(500), "halted after {:?}", sent.elapsed());
    let said = std::io::read_to_string(first.child.stderr.take().unwrap()).unwrap();
    let error = said.lines().find_map(|line| line.strip_prefix("{\"error\":")).unwrap_or_else(|| panic!("{said}"));
    assert!(error.contains("endless.spin") && error.contains("\"halted\""), "{said}");
    assert!(said.contains("a function does not end"), "the log is silent: {said}");

    let mut second = node();
    assert_eq!(second.json("/v1/status").1["height"], 1);
    send(0, false, &[]);
    second.signal("TERM");
    assert_eq!(second.wait(Duration::from_secs(10)), Some(0));
    assert_eq!(run(0, &["replay"])["blocks"], 2);
}

/// X-09, spec: EXEC-13. Anybody may ask for a witness, unsigned: one of a function that does not end is not the end of the node,
/// which says what it is and goes on making blocks.
#[test]
fn x09_a_question_that_never_ends_is_told_and_ends_no_node() {
    let home = tempfile::tempdir().unwrap();
    let run = |code: i32, arguments: &[&str]| expect_of(application(home.path(), arguments), code);
    let file = home.path().join("bundle.json");
    let bundle = |for_ever: bool| {
        let call = json!({ "call": "endless.spin/1", "args": { "for_ever": for_ever } });
        std::fs::write(&file, json!({ "operations": [call] }).to_string()).unwrap();
    };
    run(0, &["init", "--chain-id", "endless"]);
    let settings = [
        "--set",
        "http.listen=127.0.0.1:0",
        "--set",
        "execution.watchdog_ms=500",
        "--set",
        "http.request_timeout_ms=2000",
    ];
    let mut node = Node::run(application(home.path(), &[&["node"], settings.as_slice()].concat()));
    let ask = |path: &str| {
        let built = run(0, &["tx", "build", file.to_str().unwrap(), "--from", "producer"]);
        let body = json!({ "transaction": built["unsigned"] }).to_string();
        let (host, length) = (node.address, body.len());
        let head = format!("POST {path} HTTP/1.1\r\nConnection: close\r\nHost: {host}\r\n");
        node.exchange(
            format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes(),
        )
    };
    let witness = || ask("/v1/witness");
    bundle(false);
    assert_eq!((witness().0, ask("/v1/dry-run").0), (200, 200));
    assert_eq!(node.get("/healthz"), (200, "ok\n".to_owned()));
    bundle(true);
    assert_eq!(ask("/v1/dry-run").0, 504);
    bundle(false);
    for (status, said) in [witness(), ask("/v1/dry-run")] {
        assert!(status == 503 && said.contains("endless.spin"), "{status} {said}");
    }
    let (status, health) = node.get("/healthz");
    assert!(status == 200 && health.contains("endless.spin"), "{status} {health}");
    run(0, &["tx", "send", file.to_str().unwrap(), "--from", "producer"]);
    assert_eq!(node.json("/v1/status").1["height"], 1);
    node.signal("TERM");
    assert_eq!(node.wait(Duration::from_secs(10)), Some(0));
}

/// X-09, spec: EXEC-13. Without a node the command that runs the function ends as a node would.
#[test]
fn x09_a_function_that_never_ends_ends_a_command_that_makes_a_block() {
    let home = tempfile::tempdir().unwrap();
    let run = |code: i32, arguments: &[&str]| expect_of(application(home.path(), arguments), code);
    run(0, &["init", "--chain-id", "endless"]);
    let file = home.path().join("bundle.json");
    let send = |code: i32, for_ever: bool| {
        let call = json!({ "call": "endless.spin/1", "args": { "for_ever": for_ever } });
        std::fs::write(&file, json!({ "operations": [call] }).to_string()).unwrap();
        let limit = ["--set", "execution.watchdog_ms=500"];
        run(code, &[&["tx", "send", file.to_str().unwrap(), "--from", "producer"], limit.as_slice()].concat())
    };
    let failure = send(15, true);
    assert!(failure["error"]["message"].as_str().unwrap().contains("endless.spin"), "{failure}");
    send(0, false);
    assert_eq!(run(0, &["replay"])["blocks"], 1);
}

/// X-09, spec: EXEC-13. So does one that runs a bundle over files, and one that runs a transaction dry.
#[test]
fn x09_a_function_that_never_ends_ends_a_command_that_only_looks() {
    let home = tempfile::tempdir().unwrap();
    let run = |code: i32, arguments: &[&str]| expect_of(application(home.path(), arguments), code);
    run(0, &["init", "--chain-id", "endless"]);
    let [file, witness, out] = ["bundle.json", "witness.json", "proof"].map(|name| home.path().join(name));
    let [file, witness, out] = [&file, &witness, &out].map(|path| path.to_str().unwrap());
    let bundle = |for_ever: bool| {
        let call = json!({ "call": "endless.spin/1", "args": { "for_ever": for_ever } });
        std::fs::write(file, json!({ "operations": [call] }).to_string()).unwrap();
    };
    bundle(false);
    run(0, &["bundle", "witness", file, "--from", "producer", "--out", witness]);
    let over = ["--witness", witness, "--from", "producer"];
    run(0, &[&["bundle", "simulate", file], over.as_slice()].concat());
    bundle(true);
    let limit = ["--set", "execution.watchdog_ms=500"];
    for command in [
        [&["bundle", "simulate", file], over.as_slice()].concat(),
        [&["bundle", "expect", file], over.as_slice()].concat(),
        [&["bundle", "prove", file, "--out", out], over.as_slice()].concat(),
        vec!["tx", "send", file, "--from", "producer", "--dry-run"],
    ] {
        let failure = run(15, &[command.as_slice(), limit.as_slice()].concat());
        assert!(failure["error"]["message"].as_str().unwrap().contains("endless.spin"), "{command:?}: {failure}");
    }
}
