//! How commands reach the owner of a network: one line of JSON there and one back, over a Unix socket that only the
//! network's directory's owner can open.

use crate::control::{Answer, converse};
use crate::exit::{Exit, Failure};
use crate::strict_json;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a request.
const REQUEST_BYTES_MAX: u64 = 1024 * 1024;
/// How long a request may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What the owner of a network is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
pub(crate) enum Request {
    /// Say how every node stands.
    Status,
    /// Add a full node.
    Join {
        /// From a snapshot, rather than by fetching every block.
        state_sync: bool,
        /// Whether its Keelstone runs its CometBFT.
        supervised: bool,
        /// Settings of its CometBFT besides those of the network.
        engine_settings: Vec<String>,
    },
    /// Kill with SIGKILL.
    Kill {
        /// Which node.
        node: String,
        /// Which of its processes.
        part: Part,
    },
    /// Stop with SIGSTOP, and let go on after so long.
    Pause {
        /// Which node.
        node: String,
        /// Which of its processes.
        part: Part,
        /// For how long.
        millis: u64,
    },
    /// Cut a node off from the others, and join it again after so long.
    Disconnect {
        /// Which node.
        node: String,
        /// For how long.
        millis: u64,
    },
    /// Stop what runs of a part, and start everything of the node that does not run.
    Restart {
        /// Which node.
        node: String,
        /// Which of its processes.
        part: Part,
    },
    /// Stop a node, remove its data, and start it again.
    Wipe {
        /// Which node.
        node: String,
        /// Whose data.
        part: Part,
        /// Come back from a snapshot.
        state_sync: bool,
    },
    /// Stop everything.
    Down,
}

/// The processes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// Both.
    Both,
    /// Keelstone.
    App,
    /// CometBFT.
    Engine,
}

impl Part {
    pub(crate) fn app(self) -> bool {
        self != Self::Engine
    }

    pub(crate) fn engine(self) -> bool {
        self != Self::App
    }
}

/// Where the owner of the network in a directory listens.
pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// Asks the owner of a network, and waits for its answer.
///
/// # Errors
/// [`Exit::NoChain`] if no network runs there, else what the owner answers.
pub(crate) fn ask(dir: &Path, request: &Request) -> Result<Value, Failure> {
    let path = socket(dir);
    let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Failure::new(Exit::NoChain, format!("no test network runs in {}", dir.display()))
                .hint("keelstone testnet up starts it")
        }
        _ => Failure::io(format_args!("could not reach {}", path.display()), &error),
    })?;
    converse(stream, request, "the owner of the test network", &mut |_| ())
}

/// Reads the one request of a connection.
pub(crate) fn read(stream: &UnixStream) -> Result<Request, Failure> {
    let failed = |error: io::Error| Failure::io("a request was cut short", &error);
    stream.set_read_timeout(Some(READ_TIMEOUT)).map_err(failed)?;
    let mut line = String::new();
    BufReader::new(stream).take(REQUEST_BYTES_MAX).read_line(&mut line).map_err(failed)?;
    strict_json::parse(line.as_bytes()).map_err(|error| Failure::usage(error.to_string()))
}

/// Answers a request. Whoever asked may be gone; that is theirs to know.
pub(crate) fn answer(mut stream: &UnixStream, result: Result<Value, Failure>) {
    let _ = stream.write_all(Answer::last(result).line().as_bytes());
}

/// Listens where the owner of a network listens. The caller holds the directory's lock, so a socket that is there
/// already is a dead owner's.
pub(crate) fn listen(dir: &Path) -> Result<UnixListener, Failure> {
    let path = socket(dir);
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(&path)
        .map_err(|error| Failure::io(format_args!("could not listen on {}", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_reaches_the_owner_and_its_answer_comes_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(ask(dir.path(), &Request::Status).expect_err("nobody there").exit, Exit::NoChain);
        let listener = listen(dir.path()).expect("bound");
        let owner = std::thread::spawn(move || {
            for result in [Ok(json!({ "a": 1 })), Err(Failure::not_found("no such node").hint("look"))] {
                let (stream, _) = listener.accept().expect("a client");
                let request = read(&stream).expect("a request");
                assert_eq!(request, Request::Kill { node: "node0".to_owned(), part: Part::App });
                answer(&stream, result);
            }
            drop(listener.accept().expect("a client"));
        });
        let kill = Request::Kill { node: "node0".to_owned(), part: Part::App };
        assert_eq!(ask(dir.path(), &kill).expect("an answer"), json!({ "a": 1 }));
        let failure = ask(dir.path(), &kill).expect_err("refused");
        assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::NotFound, Some("look")));
        // Closed before or after the request arrived: the owner gave no answer.
        assert!(ask(dir.path(), &kill).expect_err("cut off").message.contains("answer"));
        owner.join().expect("the owner's claims held");
        assert_eq!(ask(dir.path(), &Request::Status).expect_err("gone").exit, Exit::NoChain);
    }
}
