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
