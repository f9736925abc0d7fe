//! A hostile application, as a process of its own: it stands between an engine and an honest Keelstone, and changes what
//! the engine hears about snapshots. What it does is read from a file, so that a test can change its mind.
//!
//! The engine in front of it is an unmodified CometBFT, so what the joining node meets is a real peer that lies.
#![expect(clippy::unwrap_used, reason = "a hostile application that fails is of no use to its test")]

use crate::harness::Network;
use keelstone_codec::{Decode as _, Encode as _};
use keelstone_sync::snapshot::Metadata;
use prost::Message as _;
use prost::bytes::Bytes;
use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tendermint_proto::v0_38::abci::request::Value as Ask;
use tendermint_proto::v0_38::abci::response::Value as Answer;
use tendermint_proto::v0_38::abci::{Request, Response, ResponseListSnapshots, Snapshot};

/// The variable that makes this test binary the hostile application: where it listens, the application behind it, and
/// its directory, one to a line.
const ARGUMENTS: &str = "HOSTILE_ARGUMENTS";
/// No message of ABCI is longer.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// What it does to what the engine hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing.
    Honest,
    /// Flips a bit of every chunk.
    FlippedBits,
    /// Answers with no bytes.
    Empty,
    /// Answers with another chunk than was asked for.
    WrongIndex,
    /// Never answers for a chunk.
    Stall,
    /// Lists snapshots that do not exist: a height above all, metadata that is none, hashes that change with each listing.
    FalseList,
    /// Lists a snapshot of a true height that has one chunk more, and serves another height's chunks for it.
    Forged,
    /// Closes every connection, as a network does that fails.
    Sever,
    /// Never answers where its application stands once chunks went to it: the engine does not hear of its own success.
    Speechless,
}

const MODES: [(Mode, &str); 9] = [
    (Mode::Honest, "honest"),
    (Mode::FlippedBits, "flipped bits"),
    (Mode::Empty, "empty"),
    (Mode::WrongIndex, "wrong index"),
    (Mode::Stall, "stall"),
    (Mode::FalseList, "false list"),
    (Mode::Forged, "forged"),
    (Mode::Sever, "sever"),
    (Mode::Speechless, "speechless"),
];

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        MODES.iter().find(|(mode, _)| *mode == self).unwrap().1
    }

    /// What the file says now. A file that is being written says what it said before: nothing.
    fn read(dir: &Path) -> Self {
        let text = std::fs::read_to_string(dir.join("mode")).unwrap_or_default();
        MODES.iter().find(|(_, name)| *name == text).map_or(Self::Honest, |(mode, _)| *mode)
    }
}

/// The hostile application in front of a node's own. Ends when dropped.
pub(crate) struct Hostile {
    child: Child,
    dir: TempDir,
}

impl Hostile {
    /// Puts one in front of a node's application. The node's engine has to be started again to meet it.
    pub(crate) fn before(network: &Network, name: &str) -> Self {
        let hostile = Self::beside(network, name);
        let app = Self::application(network, name);
        let config = network.engine_config(name);
        let text = std::fs::read_to_string(&config).unwrap();
        let changed = text.replace(&format!("unix://{}", app.display()), &hostile.address());
        assert_ne!(changed, text, "the engine's configuration does not name its application");
        std::fs::write(&config, changed).unwrap();
        hostile
    }

    /// One for the application of a node that need not be there yet. An engine meets it if it is told its address.
    pub(crate) fn beside(network: &Network, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (socket, app) = (dir.path().join("abci.sock"), Self::application(network, name));
        let arguments = [&socket, &app, &dir.path().to_owned()].map(|path| path.to_str().unwrap().to_owned());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "proxy::the_hostile_application", "--ignored", "--nocapture", "--quiet"]);
        // Ends with this process: it reads the other end of this pipe.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).env(ARGUMENTS, arguments.join("\n"));
        let hostile = Self { child: command.spawn().unwrap(), dir };
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < Duration::from_secs(20), "the hostile application does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        hostile
    }

    /// Where it listens, as an engine's `proxy_app`.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.dir.path().join("abci.sock").display())
    }

    fn application(network: &Network, name: &str) -> PathBuf {
        network.dir().join(name).join("keelstone/data/abci.sock")
    }

    /// Changes its mind, and forgets how often it lied.
    pub(crate) fn set(&self, mode: Mode) {
        let fresh = self.dir.path().join("mode.new");
        std::fs::write(&fresh, mode.name()).unwrap();
        std::fs::rename(fresh, self.dir.path().join("mode")).unwrap();
        let _ = std::fs::remove_file(self.dir.path().join("lies"));
    }

    /// How often it lied since.
    pub(crate) fn lies(&self) -> usize {
        std::fs::read(self.dir.path().join("lies")).map_or(0, |lies| lies.len())
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself: this test alone.
#[test]
#[ignore = "the program that another test runs"]
fn the_hostile_application() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let paths: Vec<PathBuf> = arguments.lines().map(PathBuf::from).collect();
    let [socket, app, dir] = paths.as_slice() else { panic!("three paths: {arguments:?}") };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let listener = UnixListener::bind(socket).unwrap();
    for engine in listener.incoming() {
        let engine = engine.unwrap();
        // No application, or none for anybody: the engine finds a connection that is closed.
        if Mode::read(dir) == Mode::Sever {
            continue;
        }
        let Ok(app) = UnixStream::connect(app) else { continue };
        serve(engine, app, dir);
    }
}

/// Passes one connection on, in both directions.
fn serve(engine: UnixStream, app: UnixStream, dir: &Path) {
    let (asked, asks) = channel();
    let (mut engine_in, mut app_out) = (BufReader::new(engine.try_clone().unwrap()), app.try_clone().unwrap());
    let (mut app_in, mut engine_out) = (BufReader::new(app.try_clone().unwrap()), engine.try_clone().unwrap());
    let (one, other) = (dir.to_owned(), dir.to_owned());
    std::thread::spawn(move || {
        let _ = pass_asks(&mut engine_in, &mut app_out, &asked, &one);
        let _ = app_out.shutdown(std::net::Shutdown::Both);
    });
    let answers = engine_out.try_clone().unwrap();
    std::thread::spawn(move || {
        let _ = pass_answers(&mut app_in, &mut engine_out, &asks, &other);
        let _ = answers.shutdown(std::net::Shutdown::Both);
    });
    let watched = dir.to_owned();
    std::thread::spawn(move || {
        while Mode::read(&watched) != Mode::Sever {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = engine.shutdown(std::net::Shutdown::Both);
    });
}

/// What an answer will be to.
enum Kind {
    List,
    Chunk,
    Other,
}

fn pass_asks(
    engine: &mut impl std::io::Read,
    app: &mut UnixStream,
    asked: &Sender<Kind>,
    dir: &Path,
) -> std::io::Result<()> {
    loop {
        let bytes = read_message(engine)?;
        let mut request = Request::decode(bytes.as_slice()).map_err(std::io::Error::other)?;
        let kind = match &mut request.value {
            Some(Ask::ListSnapshots(_)) => Kind::List,
            Some(Ask::LoadSnapshotChunk(load)) => {
                match Mode::read(dir) {
                    Mode::WrongIndex => load.chunk ^= 1,
                    // The snapshot before this one: whole, and of another state.
                    Mode::Forged => load.height = load.height.saturating_sub(10),
                    _ => {}
                }
                Kind::Chunk
            }
            Some(Ask::ApplySnapshotChunk(_)) => {
                std::fs::write(dir.join("chunks"), "")?;
                Kind::Other
            }
            Some(Ask::Info(_)) if Mode::read(dir) == Mode::Speechless && dir.join("chunks").exists() => {
                lie(dir)?;
                // The engine has no patience to lose: it waits for as long as this connection is open.
                while Mode::read(dir) == Mode::Speechless {
                    std::thread::sleep(Duration::from_millis(50));
                }
                return Ok(());
            }
            _ => Kind::Other,
        };
        asked.send(kind).map_err(std::io::Error::other)?;
        app.write_all(&request.encode_length_delimited_to_vec())?;
    }
}

fn pass_answers(
    app: &mut impl std::io::Read,
    engine: &mut UnixStream,
    asks: &Receiver<Kind>,
    dir: &Path,
) -> std::io::Result<()> {
    let mut listings = 0u8;
    loop {
        let bytes = read_message(app)?;
        let mut response = Response::decode(bytes.as_slice()).map_err(std::io::Error::other)?;
        let mode = Mode::read(dir);
        let lied = match (asks.recv().map_err(std::io::Error::other)?, &mut response.value) {
            (Kind::Chunk, Some(Answer::LoadSnapshotChunk(load))) => match mode {
                Mode::FlippedBits if !load.chunk.is_empty() => {
                    let mut chunk = load.chunk.to_vec();
                    let middle = chunk.len() / 2;
                    chunk[middle] ^= 0x10;
                    load.chunk = chunk.into();
                    true
                }
                Mode::Empty => {
                    load.chunk = Bytes::new();
                    true
                }
                Mode::Stall => {
                    lie(dir)?;
                    std::thread::sleep(Duration::from_secs(60));
                    false
                }
                Mode::WrongIndex | Mode::Forged => true,
                _ => false,
            },
            (Kind::List, Some(Answer::ListSnapshots(list))) => {
                listings = listings.wrapping_add(1);
                falsify(list, mode, listings)
            }
            _ => false,
        };
        if lied {
            lie(dir)?;
        }
        engine.write_all(&response.encode_length_delimited_to_vec())?;
    }
}

/// Changes a list of snapshots. Says whether it did.
fn falsify(list: &mut ResponseListSnapshots, mode: Mode, listings: u8) -> bool {
    let Some(newest) = list.snapshots.iter().max_by_key(|snapshot| snapshot.height).cloned() else { return false };
    match mode {
        Mode::FalseList => {
            let hash = |byte: u8| Bytes::from(vec![byte; 32]);
            let flipped: Bytes = newest.metadata.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>().into();
            list.snapshots.extend([
                Snapshot { height: newest.height + 1_000, ..newest.clone() },
                Snapshot { height: newest.height + 1, hash: hash(1), ..newest.clone() },
                Snapshot { metadata: flipped, ..newest.clone() },
                Snapshot { metadata: vec![0xff; 10_000].into(), ..newest.clone() },
                Snapshot { hash: hash(listings), ..newest.clone() },
                Snapshot { chunks: 0, ..newest.clone() },
                Snapshot { chunks: 90_000, ..newest.clone() },
                Snapshot { format: 9_999, ..newest },
            ]);
            true
        }
        Mode::Forged => {
            let Ok(mut metadata) = Metadata::from_bytes(&newest.metadata) else { return false };
            metadata.chunks += 1;
            let (chunks, metadata) = (newest.chunks + 1, metadata.to_bytes().into());
            list.snapshots.push(Snapshot { chunks, metadata, ..newest });
            true
        }
        _ => false,
    }
}

/// Notes that it lied.
fn lie(dir: &Path) -> std::io::Result<()> {
    std::fs::OpenOptions::new().create(true).append(true).open(dir.join("lies"))?.write_all(b"x")
}

/// One message: its length as a varint, and its bytes.
fn read_message(input: &mut impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let (mut length, mut shift) = (0u64, 0);
    loop {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        length |= u64::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
        if shift > 28 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    if length > MESSAGE_BYTES_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; usize::try_from(length).unwrap()];
    input.read_exact(&mut message)?;
    Ok(message)
}
