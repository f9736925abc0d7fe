//! Running the program, a node of it, and speaking HTTP to that by hand.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The program under test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelstone"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
    command
}

/// Copies the files of a directory, and of those in it, as they are.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else if path.is_file() {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

/// What the program says to arguments, in a home directory.
pub(crate) fn keelstone(home: &Path, arguments: &[&str]) -> Output {
    program().args(arguments).arg("--home").arg(home).stdin(Stdio::null()).output().unwrap()
}

/// As [`keelstone`], with an expected exit code; JSON of standard output, or of standard error if there is none.
pub(crate) fn expect(home: &Path, code: i32, arguments: &[&str]) -> Value {
    let mut command = program();
    command.args(arguments).arg("--json").arg("--home").arg(home);
    expect_of(command, code)
}

/// As [`expect`], of a command of one's own.
pub(crate) fn expect_of(mut command: Command, code: i32) -> Value {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{stdout}\n{stderr}");
    // A test binary that plays a program says so first.
    let stdout = stdout.trim_start().trim_start_matches("running 1 test");
    let text = if stdout.trim().is_empty() { &stderr } else { stdout };
    serde_json::from_str(text.trim()).unwrap_or(Value::Null)
}

/// Waits until something is so, a minute at most.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A home directory with a fresh chain.
pub(crate) fn chain() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    expect(home.path(), 0, &["init", "--chain-id", "test"]);
    home
}

/// Sends a bundle of calls, signed by the producer's key.
pub(crate) fn send(home: &Path, code: i32, calls: &Value) -> Value {
    let file = home.join("bundle.json");
    std::fs::write(&file, json!({ "operations": calls }).to_string()).unwrap();
    expect(home, code, &["tx", "send", file.to_str().unwrap(), "--from", "producer"])
}

/// A call that registers the sender as an agent.
pub(crate) fn register() -> Value {
    let half = "0.5";
    json!({ "call": "agents.register/1", "args": { "name": "Ada", "traits": ["b", "a"], "personality": {
        "openness": half, "conscientiousness": half, "extraversion": half, "agreeableness": half, "neuroticism": half,
    } } })
}

/// A call that posts a meme.
pub(crate) fn post(text: &str) -> Value {
    json!({ "call": "memes.post/1", "args": { "text": text } })
}

/// A running node; killed when dropped.
pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    /// What it said when it began.
    pub(crate) said: Value,
}

impl Node {
    /// Starts a node on a free port, with further settings.
    pub(crate) fn start(home: &Path, settings: &[&str]) -> Self {
        let mut command = program();
        command.args(["node", "--json", "--set", "http.listen=127.0.0.1:0", "--home"]).arg(home);
        for setting in settings {
            command.args(["--set", setting]);
        }
        Self::run(command)
    }

    /// Runs a command that becomes a node.
    pub(crate) fn run(mut command: Command) -> Self {
        let errors = tempfile::tempfile().unwrap();
        command.stderr(errors.try_clone().unwrap());
        Self::begin(command, Some(errors))
    }

    /// As [`Node::run`], with standard error as the command has it.
    pub(crate) fn run_loud(command: Command) -> Self {
        Self::begin(command, None)
    }

    fn begin(mut command: Command, errors: Option<std::fs::File>) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.starts_with('{')).unwrap_or_default();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            let mut text = String::new();
            errors.into_iter().for_each(|mut errors| {
                errors.rewind().unwrap();
                errors.read_to_string(&mut text).unwrap();
            });
            panic!("the node said {line:?} and ended with {:?}: {text}", child.wait())
        });
        let (_, address) = said["api"].as_str().unwrap().split_once("://").unwrap();
        Self { child, address: address.parse().unwrap(), said: said.clone() }
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the process to end, at most so long.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<i32> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// A connection to its API.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes and reads the answer's status and body. The node may close before all bytes are sent.
    pub(crate) fn exchange(&self, request: &[u8]) -> (u16, String) {
        let mut stream = self.connect();
        let _ = stream.write_all(request);
        answer(&mut stream)
    }

    /// A GET request.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).as_bytes())
    }

    /// A GET request whose answer is JSON.
    pub(crate) fn json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.get(path);
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// A POST of a transaction with headers of one's own.
    pub(crate) fn post(&self, headers: &str, body: &str) -> (u16, String) {
        let head = format!("POST /v1/transactions HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        self.exchange(format!("{head}{headers}\r\n{body}").as_bytes())
    }

    /// A POST of JSON from this machine.
    pub(crate) fn post_json(&self, body: &str) -> (u16, String) {
        self.post(&format!("Host: {}\r\nContent-Type: application/json\r\n", self.address), body)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads one answer to the end of the connection.
pub(crate) fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    // A reset after the answer is how a server refuses to read the rest of a request.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned());
    (status, body)
}
