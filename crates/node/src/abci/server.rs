//! The socket the engine connects to, and its connections.
//!
//! One task a connection, calls answered in the order they came, each where it may read the disk. Answers are gathered
//! and written when the engine asks for a flush or has nothing more to say. A stop lets the call that runs be answered.

use super::application::{Application, exception};
use super::frame::{FrameError, Frames, check_size};
use crate::config::AbciAddress;
use crate::exit::{Exit, Failure};
use crate::home::Home;
use bytes::BytesMut;
use prost::Message as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tendermint_proto::v0_38::abci::request::Value as Request;
use tendermint_proto::v0_38::abci::response::Value as Response;
use tendermint_proto::v0_38::abci::{Request as RequestMessage, Response as ResponseMessage};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};

/// Connections at once: CometBFT opens four, and the four of one that died may not be closed yet.
const CONNECTIONS_MAX: usize = 16;
/// Bytes of answers that are gathered before they are written without being asked for.
const ANSWERS_BYTES: usize = 64 << 10;
/// Room made for bytes to come: what a connection holds at least.
const READ_BYTES: usize = 64 << 10;

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
                let address = format!("unix://{}", path.display());
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

    /// Serves until told to stop.
    pub(crate) async fn serve(self, application: Arc<Application>, mut stop: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { break };
            let (application, stopped) = (application.clone(), stop.clone());
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                // An error is a sender that is gone, which is a stop too.
                _ = stop.wait_for(|stop| *stop) => break,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok(stream) => drop(connections.spawn(async move {
                    tracing::info!("the engine opened a connection");
                    match connection(stream, application, stopped).await {
                        Ok(()) => tracing::info!("the engine closed a connection"),
                        Err(error) => tracing::warn!(%error, "a connection of the engine's was closed"),
                    }
                    drop(place);
                })),
                Err(error) => {
                    tracing::warn!(%error, "a connection of the engine's could not be accepted");
                    // Out of file descriptors, most likely: some may be free in a moment.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
        // The call that runs is answered, so that a block being committed becomes durable.
        while connections.join_next().await.is_some() {}
        if let Listener::Unix(_, path) = &self.listener {
            // Left behind, it is removed by the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                // Without it an answer waits for the acknowledgement of the one before: 40 ms a call.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
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
enum ConnectionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it ended in the middle of a frame")]
    Cut,
    #[error("a call could not be answered, so the engine was told to stop")]
    Exception,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Answers one connection's calls until it ends.
async fn connection(
    mut stream: Box<dyn Stream>,
    application: Arc<Application>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ConnectionError> {
    let (mut frames, mut answers) = (Frames::default(), BytesMut::new());
    loop {
        while let Some(frame) = frames.next_frame()? {
            check_size(&frame)?;
            let message = RequestMessage::decode(frame).map_err(|error| FrameError::Malformed(error.to_string()))?;
            let flush = matches!(message.value, Some(Request::Flush(_)));
            let answer = call(&application, message.value).await;
            let last = matches!(answer, Response::Exception(_));
            let message = ResponseMessage { value: Some(answer) };
            message.encode_length_delimited(&mut answers).expect("a growing buffer has room");
            if flush || last || answers.len() >= ANSWERS_BYTES {
                stream.write_all(&answers).await?;
                answers.clear();
            }
            if last {
                return Err(ConnectionError::Exception);
            }
        }
        if !answers.is_empty() {
            stream.write_all(&answers).await?;
            answers.clear();
        }
        frames.buffer().reserve(READ_BYTES);
        let read = tokio::select! {
            read = stream.read_buf(frames.buffer()) => read?,
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        if read == 0 {
            return if frames.is_between() { Ok(()) } else { Err(ConnectionError::Cut) };
        }
    }
}

/// Answers one call where it may read the disk.
async fn call(application: &Arc<Application>, request: Option<Request>) -> Response {
    match request {
        None => exception("this application does not know the call".to_owned()),
        Some(request @ (Request::Echo(_) | Request::Flush(_))) => application.answer(request),
        Some(request) => {
            let application = application.clone();
            match tokio::task::spawn_blocking(move || application.answer(request)).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::error!(%error, "a call of the engine's met a bug");
                    exception("the call met a bug of the application".to_owned())
                }
            }
        }
    }
}
