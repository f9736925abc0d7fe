//! The socket the engine connects to, and its connections.
//!
//! A connection has a thread of its own, which blocks on its socket: a call is read, answered and its answer written
//! without being handed from one thread to another, of which a block would have to wait for two dozen, nor woken for
//! anything but a call, and it may read the disk, since nobody else waits there. Calls are answered in the order they
//! came. Answers are gathered and written when the engine asks for a flush or has nothing more to say. A stop closes the
//! reading half of every connection: the call that runs is answered. It waits for that no longer than it may: an engine that
//! does not take its answers is cut off, and a call that goes on ends with the process, as a kill would end it.

use super::application::{Application, exception, refused};
use super::frame::{FrameError, Frames, check_size, is_proposal};
use crate::config::AbciAddress;
use crate::exit::{Exit, Failure};
use crate::home::Home;
use bytes::BytesMut;
use prost::Message as _;
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tendermint_proto::v0_38::abci::request::Value as Request;
use tendermint_proto::v0_38::abci::response::Value as Response;
use tendermint_proto::v0_38::abci::{Request as RequestMessage, Response as ResponseMessage};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// After so long without a word the other end of a TCP connection is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Connections at once: CometBFT opens four, and the four of one that died may not be closed yet.
const CONNECTIONS_MAX: usize = 16;
/// Bytes of answers that are gathered before they are written without being asked for.
const ANSWERS_BYTES: usize = 64 << 10;
/// Bytes read at once: what a connection holds at least.
const READ_BYTES: usize = 64 << 10;
/// How long the calls that run may take once the server stops, their answers included.
const STOP_GRACE: Duration = Duration::from_millis(1_500);
/// How long connections may take to end once they are cut off.
const CUT_GRACE: Duration = Duration::from_millis(500);
/// How long an engine that seems to be there may take to be found gone: what stands between it and here may be slower than
/// one that starts again.
const AWAY_GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The socket.
pub(crate) struct Server {
    listener: Listener,
    address: String,
}

enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Server {
    /// Listens. Must be called inside the runtime.
    pub(crate) async fn bind(address: &AbciAddress, home: &Home) -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::io(format_args!("could not listen for the engine on {address}"), &error);
        match address {
            AbciAddress::Unix(path) => {
                let path = home.path().join(path);
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(failed)?;
                }
                remove_stale(&path)?;
                let listener = UnixListener::bind(&path).map_err(failed)?;
                // The engine runs elsewhere. What is bound stays as it is: a socket's path must be short.
                let address = format!("unix://{}", std::path::absolute(&path).map_err(failed)?.display());
                Ok(Self { listener: Listener::Unix(listener, path), address })
            }
            AbciAddress::Tcp(address) => {
                if !address.ip().is_loopback() {
                    tracing::warn!(%address, "whoever reaches this address drives the chain: ABCI knows no passwords");
                }
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let address = format!("tcp://{}", listener.local_addr().map_err(failed)?);
                Ok(Self { listener: Listener::Tcp(listener), address })
            }
        }
    }

    /// What the engine's `proxy_app` must say.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Serves until told to stop. What it returns are the calls that still run, if any does.
    pub(crate) async fn serve(self, application: Arc<Application>, mut stop: watch::Receiver<bool>) -> Calls {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let open = Arc::new(Open::default());
        let mut connections = 0;
        loop {
            // Also who waits for a place hears that it is to stop: those who have them may never give one back.
            let next = async {
                let place = room.clone().acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((self.listener.accept().await?, place))
            };
            let accepted = tokio::select! {
                accepted = next => accepted,
                // An error is a sender that is gone, which is a stop too.
                _ = stop.wait_for(|stop| *stop) => break,
            };
            connections += 1;
            let started = accepted.and_then(|(stream, place)| {
                open.all().insert(connections, stream.handle()?);
                let entered = Entered { open: open.clone(), number: connections, _place: place };
                let application = application.clone();
                let thread = std::thread::Builder::new().name("abci".to_owned());
                thread.spawn(move || {
                    tracing::info!("the engine opened a connection");
                    match stream.answer(application, &entered) {
                        Ok(()) => tracing::info!("the engine closed a connection"),
                        Err(error) => tracing::warn!(%error, "a connection of the engine's was closed"),
                    }
                })
            });
            if let Err(error) = started {
                tracing::warn!(%error, "a connection of the engine's could not be accepted");
                // Out of file descriptors or threads, most likely: some may be free in a moment.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        // The call that runs is answered, so that a block being committed becomes durable.
        open.stop(Shutdown::Read);
        let calls = Calls(room);
        if tokio::time::timeout(STOP_GRACE, calls.ended()).await.is_err() {
            // One that writes to somebody who does not read would write for ever.
            open.stop(Shutdown::Both);
            if tokio::time::timeout(CUT_GRACE, calls.ended()).await.is_err() {
                tracing::warn!(
                    "a call of the engine's does not end; it ends with this process, as if that were killed"
                );
            }
        }
        if let Listener::Unix(_, path) = &self.listener {
            // Left behind, it is removed by the next start.
            let _ = std::fs::remove_file(path);
        }
        calls
    }
}

/// The calls of a server that serves no longer.
pub(crate) struct Calls(Arc<Semaphore>);

impl Calls {
    /// Waits until the last of them has ended, however long it takes: nothing changes the data from then on.
    pub(crate) async fn ended(&self) {
        let all = u32::try_from(CONNECTIONS_MAX).expect("a small constant");
        // Nobody closes the semaphore, so all places come back.
        drop(self.0.acquire_many(all).await);
    }
}

/// The connections that are open, by number: a second handle of each, to end it by and to see whether anybody holds its
/// other end.
#[derive(Default)]
struct Open {
    connections: Mutex<BTreeMap<u64, Accepted>>,
    /// The one that decides blocks.
    deciding: Mutex<Option<u64>>,
}

impl Open {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Accepted>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection decide blocks, unless another engine does. One that has died is not waited for any longer than the
    /// system needs to say so: whoever started again is let in.
    // spec: LEDGER-9
    fn decides(&self, number: u64) -> Result<(), AnotherEngine> {
        let mut patience = AWAY_GRACE;
        loop {
            let mut deciding = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
            let before = deciding.filter(|before| *before != number);
            let held = before.and_then(|before| Some(self.all().get(&before)?.held()));
            match held {
                None | Some(Held::Gone) => {
                    *deciding = Some(number);
                    return Ok(());
                }
                Some(Held::Unknown) => {}
                Some(Held::There) if patience.is_zero() => return Err(AnotherEngine),
                Some(Held::There) => patience = patience.saturating_sub(LOOK_EVERY),
            }
            drop(deciding);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Ends all of them: once the call that runs is answered, or whatever they are at.
    fn stop(&self, how: Shutdown) {
        for connection in self.all().values() {
            // One that is gone already needs no end.
            let _ = match connection {
                Accepted::Unix(stream) => stream.shutdown(how),
                Accepted::Tcp(stream) => stream.shutdown(how),
            };
        }
    }
}

/// A connection's entry among the open ones, and its place: given back however its thread ends, even if it never began.
struct Entered {
    open: Arc<Open>,
    number: u64,
    /// The last thing a connection lets go of: whoever has all places knows that nothing is held any more.
    _place: OwnedSemaphorePermit,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.open.all().remove(&self.number);
    }
}

/// A chain has one engine here. Whoever started the second has to act.
#[derive(Debug, thiserror::Error)]
#[error("another engine makes this chain's blocks here: its connection is open, and there is room for one")]
struct AnotherEngine;

/// Whether somebody holds the other end of a connection.
enum Held {
    /// Somebody does.
    There,
    /// It is closed, or so far away that a machine that is gone would look the same for minutes.
    Gone,
    /// What came last is not read yet, and hides what came after it: its call runs still.
    Unknown,
}

/// An accepted connection.
enum Accepted {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

impl Accepted {
    fn handle(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// Whether somebody holds its other end.
    fn held(&self) -> Held {
        let mut next = [0; 1];
        let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let looked = match self {
            Self::Unix(stream) => rustix::net::recv(stream, &mut next, look),
            Self::Tcp(stream) if stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback()) => {
                rustix::net::recv(stream, &mut next, look)
            }
            Self::Tcp(_) => return Held::Gone,
        };
        match looked {
            Ok((1.., _)) => Held::Unknown,
            Err(Errno::AGAIN) => Held::There,
            Ok((0, _)) | Err(_) => Held::Gone,
        }
    }

    /// Answers the connection's calls on this thread, until it ends, and lets go of the application.
    fn answer(self, application: Arc<Application>, entered: &Entered) -> Result<(), ConnectionError> {
        let decides = || entered.open.decides(entered.number).map_err(|error| error.to_string());
        match self {
            Self::Unix(stream) => connection(stream, &application, decides),
            Self::Tcp(stream) => connection(stream, &application, decides),
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(listener, _) => {
                let stream = listener.accept().await?.0.into_std()?;
                stream.set_nonblocking(false)?;
                Ok(Accepted::Unix(stream))
            }
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                // Without it an answer waits for the acknowledgement of the one before: 40 ms a call.
                stream.set_nodelay(true)?;
                // An engine whose machine is gone says nothing, and would keep its places for ever.
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                sockopt::set_tcp_keepintvl(&stream, KEEPALIVE / 3)?;
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }
}

/// Removes a socket that nobody listens on any more: a process that was killed leaves one behind.
fn remove_stale(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::FileTypeExt as _;
    let is_socket = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type().is_socket(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::io(path.display(), &error)),
    };
    if !is_socket {
        return Err(Failure::usage(format!("{} is no socket, so it is left alone", path.display())));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Failure::new(Exit::InUse, format!("another process listens on {}", path.display())));
    }
    std::fs::remove_file(path).map_err(|error| Failure::io(path.display(), &error))
}

/// Why a connection was closed before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it ended in the middle of a frame")]
    Cut,
    #[error("a call could not be answered, so the engine was told to stop")]
    Exception,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection, as long as it is answered: one that met a bug is closed, too, and no longer counts.
struct Connected<'a>(&'a Application);

impl<'a> Connected<'a> {
    fn to(application: &'a Application) -> Self {
        application.connected();
        Self(application)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.disconnected();
    }
}

/// Answers one connection's calls until it ends. `decides` lets it make blocks, or says why it may not.
pub(super) fn connection(
    mut stream: impl Read + Write,
    application: &Application,
    decides: impl Fn() -> Result<(), String>,
) -> Result<(), ConnectionError> {
    let _connected = Connected::to(application);
    let (mut frames, mut answers) = (Frames::default(), BytesMut::new());
    let mut piece = vec![0; READ_BYTES];
    loop {
        while let Some(frame) = frames.next_frame()? {
            let (flush, answer) = match check_size(&frame) {
                // A proposer's doing and not the engine's, which would end if its connection did.
                // spec: LEDGER-6
                Err(error @ FrameError::TooMany { .. }) if is_proposal(&frame) => (false, refused(&error)),
                checked => {
                    checked?;
                    let message =
                        RequestMessage::decode(frame).map_err(|error| FrameError::Malformed(error.to_string()))?;
                    let flush = matches!(message.value, Some(Request::Flush(_)));
                    let answer = match message.value.as_ref().is_some_and(is_of_consensus).then(&decides) {
                        Some(Err(why)) => {
                            tracing::error!(why, "an engine is refused");
                            exception(why)
                        }
                        Some(Ok(())) | None => call(application, message.value),
                    };
                    (flush, answer)
                }
            };
            let last = matches!(answer, Response::Exception(_));
            let message = ResponseMessage { value: Some(answer) };
            message.encode_length_delimited(&mut answers).expect("a growing buffer has room");
            if flush || last || answers.len() >= ANSWERS_BYTES {
                stream.write_all(&answers)?;
                answers.clear();
            }
            if last {
                return Err(ConnectionError::Exception);
            }
        }
        if !answers.is_empty() {
            stream.write_all(&answers)?;
            answers.clear();
        }
        match stream.read(&mut piece) {
            // Closed by the engine, or by a stop.
            Ok(0) if frames.is_between() => return Ok(()),
            Ok(0) => return Err(ConnectionError::Cut),
            Ok(read) => frames.buffer().extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a call is of the connection on which an engine makes blocks.
fn is_of_consensus(request: &Request) -> bool {
    matches!(
        request,
        Request::InitChain(_)
            | Request::PrepareProposal(_)
            | Request::ProcessProposal(_)
            | Request::ExtendVote(_)
            | Request::VerifyVoteExtension(_)
            | Request::FinalizeBlock(_)
            | Request::Commit(_)
    )
}

/// Answers one call. One that meets a bug is an exception too: the engine must not go on as if it had been answered.
fn call(application: &Application, request: Option<Request>) -> Response {
    let Some(request) = request else {
        return exception("this application does not know the call".to_owned());
    };
    // What a call left half done is behind locks that count as good and in a store that refuses what does not follow.
    std::panic::catch_unwind(AssertUnwindSafe(|| application.answer(request))).unwrap_or_else(|_| {
        tracing::error!("a call of the engine's met a bug");
        exception("the call met a bug of the application".to_owned())
    })
}
