//! A network under test, and what may be asked of it.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take that has no claim of its own: machines that test are often busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// How soon a node answers again after a fault.
pub(crate) const ANSWERS: Duration = Duration::from_secs(10);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What every network is started with: quick blocks, frequent snapshots.
const QUICK: [&str; 2] = ["--engine-set", "consensus.timeout_commit=150ms"];

/// Held by a network that starts: ports are found to be free a moment before they are taken.
static STARTING: Mutex<()> = Mutex::new(());

/// The CometBFT to test with, or none after a line that says so.
///
/// # Panics
/// On a CI machine without one: nothing may be left out there.
pub(crate) fn cometbft() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("tools/bin/cometbft-0.40.0");
    let named = std::env::var_os("KEELSTONE_COMETBFT").map(PathBuf::from);
    let found = [named, Some(installed), Some("cometbft".into())]
        .into_iter()
        .flatten()
        .find(|path| Command::new(path).arg("version").output().is_ok_and(|output| output.status.success()));
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no CometBFT on a CI machine: cargo xtask test installs it");
        eprintln!("left out: there is no CometBFT; cargo xtask test installs one if there is Go");
    }
    found
}

/// The program under test, with an environment of its own.
fn program() -> Command {
    let mut command = crate::program();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
    command
}

/// Runs a command of the program on a home: its exit code, and what it said, in JSON where it can.
pub(crate) fn keelstone(home: &Path, arguments: &[&str]) -> (i32, Value) {
    let mut command = program();
    command.arg("--home").arg(home).arg("--json").args(arguments);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = if output.status.success() { output.stdout } else { output.stderr };
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    (output.status.code().unwrap(), serde_json::from_str(&said).unwrap_or(Value::String(said)))
}

/// A running network. It ends when dropped, and when this process dies: its owner's input ends then.
pub(crate) struct Network {
    child: Child,
    alive: Option<ChildStdin>,
    dir: TempDir,
}

/// How one node stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) height: u64,
    pub(crate) lowest_height: u64,
    pub(crate) root: String,
    pub(crate) engine_height: u64,
    pub(crate) catching_up: bool,
    pub(crate) api: String,
    pub(crate) rpc: String,
    /// Whether both of its sides answered.
    pub(crate) answers: bool,
    /// What its engine's process does.
    pub(crate) engine_state: String,
}

impl Network {
    /// Starts a network with further options. None, after a line that says why, if there is no CometBFT.
    pub(crate) fn up(options: &[&str]) -> Option<Self> {
        let cometbft = cometbft()?;
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let mut command = program();
        command.args(["testnet", "up", "--until-input-ends", "--json", "--cometbft"]).arg(cometbft).args(QUICK);
        command.args(["--set", "snapshots.interval=10"]);
        command.arg("--dir").arg(dir.path().join("net")).args(options);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let alive = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let network = Self { child, alive, dir };
        let said: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
        assert!(said["nodes"].is_array(), "the network did not come up, it said {line:?}{}", network.logs());
        Some(network)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().join("net")
    }

    /// Does something to the network; fails if that fails.
    pub(crate) fn run(&self, arguments: &[&str]) -> Value {
        let mut command = program();
        command.arg("testnet").args(arguments).arg("--json").arg("--dir").arg(self.dir());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}\n{stdout}\n{stderr}{}", self.logs());
        serde_json::from_str(stdout.trim()).unwrap()
    }

    /// Asks for something that is refused as it was asked for; returns why.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let mut command = program();
        command.arg("testnet").args(arguments).arg("--json").arg("--dir").arg(self.dir());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        let said: Value = serde_json::from_str(said.trim()).unwrap();
        said["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Runs a command of the program on the home of one node, as [`keelstone`].
    pub(crate) fn on_home(&self, name: &str, arguments: &[&str]) -> (i32, Value) {
        keelstone(&self.dir().join(name).join("keelstone"), arguments)
    }

    /// Starts something that goes on beside the test, such as a load.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = program();
        command.arg("testnet").args(arguments).arg("--json").arg("--dir").arg(self.dir());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        let said = self.run(&["status"]);
        said["nodes"].as_array().unwrap().iter().map(Node::read).collect()
    }

    pub(crate) fn node(&self, name: &str) -> Node {
        self.nodes().into_iter().find(|node| node.name == name).unwrap()
    }

    /// The highest block any node has.
    pub(crate) fn tip(&self) -> u64 {
        self.nodes().iter().map(|node| node.height).max().unwrap_or(0)
    }

    /// Waits until something holds of the nodes, and returns how long that took.
    pub(crate) fn until(&self, what: &str, limit: Duration, holds: impl Fn(&[Node]) -> bool) -> Duration {
        let started = Instant::now();
        loop {
            let nodes = self.nodes();
            if holds(&nodes) {
                return started.elapsed();
            }
            assert!(started.elapsed() < limit, "waited {limit:?} for {what}: {nodes:#?}{}", self.logs());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until every node has a block of this height.
    pub(crate) fn until_all_at(&self, height: u64) {
        self.until(&format!("all nodes at {height}"), PATIENCE, |nodes| nodes.iter().all(|node| node.height >= height));
    }

    /// Every node has the app hash of every block above the first state it keeps, up to this height, and all agree with one another
    /// and with the engine's headers.
    pub(crate) fn all_agree(&self, to: u64) {
        self.until(&format!("all nodes at {to} and a header above it"), PATIENCE, |nodes| {
            nodes.iter().all(|node| node.height >= to) && nodes.iter().any(|node| node.engine_height > to)
        });
        // Before, for a node that is asked is one that answers.
        let lowest: Vec<u64> = self.nodes().iter().map(|node| node.lowest_height).collect();
        let said = self.run(&["compare", "--to", &to.to_string()]);
        assert_eq!(said["disagreements"], serde_json::json!([]), "app hashes differ");
        assert_eq!(said["gaps"], serde_json::json!([]), "app hashes are missing");
        // Of those that give one for a height, and the engine's header, each but the first is compared with that.
        let compared: u64 = lowest.into_iter().map(|lowest| to.saturating_sub(lowest)).sum();
        assert_eq!((said["heights"].as_u64(), said["compared"].as_u64()), (Some(to), Some(compared)), "{said}");
    }

    /// The file of a node's engine that this test changes.
    pub(crate) fn engine_config(&self, name: &str) -> PathBuf {
        self.dir().join(name).join("cometbft/config/config.toml")
    }

    /// A file's text.
    pub(crate) fn log(&self, name: &str, process: &str) -> String {
        std::fs::read_to_string(self.dir().join(name).join(format!("{process}.log"))).unwrap_or_default()
    }

    /// The last lines of every log, for a failure.
    fn logs(&self) -> String {
        let mut text = String::new();
        for index in 0..8 {
            for process in ["keelstone", "cometbft"] {
                let log = self.log(&format!("node{index}"), process);
                let lines: Vec<&str> = log.lines().rev().take(12).collect();
                if !lines.is_empty() {
                    let lines: Vec<&str> = lines.into_iter().rev().collect();
                    text.push_str(&format!("\n--- node{index} {process}\n{}", lines.join("\n")));
                }
            }
        }
        text
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the owner, as nothing can catch.
    pub(crate) fn kill_owner(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.alive = None;
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    fn read(said: &Value) -> Self {
        let number = |name: &str| said[name].as_u64().unwrap_or(0);
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        Self {
            name: text("name"),
            height: number("height"),
            lowest_height: number("lowest_height"),
            root: text("root"),
            engine_height: number("engine_height"),
            catching_up: said["catching_up"].as_bool().unwrap_or(true),
            api: text("api"),
            rpc: text("rpc"),
            answers: said["height"].is_u64() && said["engine_height"].is_u64(),
            engine_state: said["engine"]["state"].as_str().unwrap_or_default().to_owned(),
        }
    }
}

/// What an HTTP server answers to a path, if it does within a few seconds.
pub(crate) fn get(base: &str, path: &str) -> Option<String> {
    let address: SocketAddr = base.strip_prefix("http://")?.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

/// The number in a metric without labels.
pub(crate) fn metric(node: &Node, name: &str) -> Option<u64> {
    let text = get(&node.api, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// What a load came to, once it has ended.
pub(crate) fn report(load: Child) -> Value {
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success(), "the load failed");
    serde_json::from_str(String::from_utf8_lossy(&output.stdout).trim()).unwrap()
}
