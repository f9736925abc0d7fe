//! The listening socket: accepts connections within limits, and stops within seconds.
//!
//! What a client may do before it has sent a whole request is bounded here: how long it may take for the head, how
//! large the head may be, how many connections there are. At the bound the connection on which nothing has moved for longest makes
//! room, unless this end is at work for it, so that a thousand sockets that say nothing, or half of a request, cannot keep out one
//! that does. A handshake of TLS counts as idling and has the time of a head. What it leaves unread of an answer is bounded too ([`super::taking`]). Running out of file
//! descriptors is survived: accepting pauses, what is open is served.

use super::limits::Limits;
use super::taking::{Held, Paced, Room};
use crate::metrics::Metrics;
use crate::tls::ServerTls;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::{BoxError, Router};
use hyper::body::Body as _;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

/// Bytes of a request's head. Larger ones get 431, here if they come in pieces, or else from [`super::limits::guard`].
pub(super) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Headers of a request. More get 431.
const HEADERS_MAX: usize = 64;
/// How long accepting pauses after it failed, so that a lack of descriptors is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long open requests may take to end once the server stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// One open connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: SocketAddr,
    /// Whether nobody on the way can read along: it is encrypted, or never leaves this machine.
    private: bool,
    born: Instant,
    /// Requests being answered: 0 or 1, since there is no pipelining beyond one.
    busy: AtomicUsize,
    /// The body of one has not come yet: so far it is the client who takes time.
    receiving: AtomicBool,
    /// An answer is on its way.
    answering: AtomicBool,
    /// When a byte last went in either direction, or a request ended, in milliseconds since `born`.
    moved: AtomicU64,
    /// An event stream runs on it, which is bounded on its own.
    streaming: AtomicBool,
    /// The room that the answer on its way has, if it is a large one.
    answer: Mutex<Option<Held>>,
    /// The room that the body of the request that is worked on has, if it is a large one.
    body: Mutex<Option<Held>>,
    /// The server stops: nothing is waited for that need not be.
    hurries: AtomicBool,
    close: Notify,
}

impl Connection {
    pub(super) fn new(peer: SocketAddr, encrypted: bool) -> Self {
        Self {
            peer,
            private: encrypted || peer.ip().to_canonical().is_loopback(),
            born: Instant::now(),
            busy: AtomicUsize::new(0),
            receiving: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            streaming: AtomicBool::new(false),
            answer: Mutex::default(),
            body: Mutex::default(),
            hurries: AtomicBool::new(false),
            close: Notify::new(),
        }
    }

    /// The client's address.
    pub(crate) fn client(&self) -> IpAddr {
        self.peer.ip()
    }

    /// Whether nobody on the way can read along.
    pub(crate) fn is_private(&self) -> bool {
        self.private
    }

    /// Says whether an event stream runs here from now on.
    pub(crate) fn set_streaming(&self, is_streaming: bool) {
        self.streaming.store(is_streaming, Ordering::Relaxed);
    }

    /// Whether one does.
    pub(super) fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed)
    }

    /// Holds room for the answer that is written next, until it is taken or the connection ends.
    pub(super) fn hold(&self, held: Held) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// Says that so many more bytes are with the system.
    pub(super) fn taken(&self, bytes: u64) {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.as_mut().is_some_and(|held| held.is_taken(bytes)) {
            *answer = None;
        }
    }

    /// Whether the server stops.
    pub(super) fn hurries(&self) -> bool {
        self.hurries.load(Ordering::Relaxed)
    }

    /// Closes the connection, whatever it is doing.
    pub(crate) fn close(&self) {
        self.close.notify_one();
    }

    /// Says that a byte went in or out.
    pub(super) fn moves(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
    }

    /// Says whether an answer is on its way from now on.
    pub(super) fn answers(&self, is_on_its_way: bool) {
        self.answering.store(is_on_its_way, Ordering::Relaxed);
    }

    /// Whether something is under way, and since when nothing has gone in or out, unless it is this end that is at work: on a request
    /// that came whole, or a stream. What orders first makes room first.
    fn idle_from(&self) -> Option<(bool, Instant)> {
        let receiving = self.receiving.load(Ordering::Relaxed);
        let works = self.busy.load(Ordering::Relaxed) > 0 && !receiving;
        let under_way = receiving || self.answering.load(Ordering::Relaxed);
        let since = || self.born + Duration::from_millis(self.moved.load(Ordering::Relaxed));
        (!works && !self.is_streaming()).then(|| (under_way, since()))
    }

    fn request_begins(&self, has_body: bool) {
        self.receiving.store(has_body, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    fn request_ended(&self) {
        self.moves();
        *self.body.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a request, which says when it is there, and takes room for what of it is.
struct Arriving {
    body: hyper::body::Incoming,
    /// How much of it is there.
    bytes: u64,
    room: Arc<Room>,
    connection: Arc<Connection>,
}

impl Arriving {
    fn is_there(&self) {
        self.connection.receiving.store(false, Ordering::Relaxed);
    }
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.is_there();
        }
        let Some(frame) = ready!(polled).transpose()? else { return Poll::Ready(None) };
        self.bytes += frame.data_ref().map_or(0, |piece| piece.len() as u64);
        let mut held = self.connection.body.lock().unwrap_or_else(PoisonError::into_inner);
        self.room.grow(&mut held, self.bytes)?;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // Whoever lets go of it waits for no more.
        self.is_there();
    }
}

/// The open connections.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: BTreeMap<u64, Arc<Connection>>,
}

impl Open {
    /// Takes a connection in; at the limit the longest idle one is closed for it. `None` if none is idle.
    fn admit(&mut self, connection: Connection, limit: usize) -> Option<(u64, Arc<Connection>)> {
        if self.connections.len() >= limit {
            let idle = self.connections.iter().filter_map(|(id, connection)| Some((connection.idle_from()?, *id)));
            let (_, id) = idle.min()?;
            self.connections.remove(&id)?.close();
        }
        let id = self.next;
        self.next += 1;
        let connection = Arc::new(connection);
        self.connections.insert(id, connection.clone());
        Some((id, connection))
    }
}

/// Serves `router` on `listener` until `stop` turns true, then lets open requests end for a moment.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Arc<Limits>,
    tls: Option<Arc<ServerTls>>,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let open = Arc::new(Mutex::new(Open::default()));
    let bodies = Arc::new(Room::of_bodies(limits.body_bytes_max, metrics.clone()));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
            Some(_) = tasks.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                metrics.accept_failed();
                warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = Connection::new(peer, tls.is_some());
        let admitted = open.lock().unwrap_or_else(PoisonError::into_inner).admit(connection, limits.connections_max);
        let Some((id, connection)) = admitted else {
            metrics.refused("connections");
            continue; // Dropping the stream closes it.
        };
        let (open, router, limits) = (open.clone(), router.clone(), limits.clone());
        let (tls, metrics, stop, bodies) = (tls.clone(), metrics.clone(), stop.clone(), bodies.clone());
        tasks.spawn(async move {
            metrics.connections_open.inc();
            // Small answers must not wait for the next packet.
            let _ = stream.set_nodelay(true);
            match tls {
                None => answer(stream, connection, router, &limits, bodies, stop).await,
                Some(tls) => match shake_hands(stream, &connection, &tls, &limits, stop.clone()).await {
                    Ok(stream) => answer(stream, connection, router, &limits, bodies, stop).await,
                    Err(error) => {
                        metrics.refused("handshake");
                        debug!(%error, %peer, "no connection under TLS");
                    }
                },
            }
            metrics.connections_open.dec();
            open.lock().unwrap_or_else(PoisonError::into_inner).connections.remove(&id);
        });
    }
    drop(listener);
    let ended = tokio::time::timeout(STOP_GRACE, async { while tasks.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tasks.shutdown().await;
    }
}

/// Begins TLS on a connection, within the time of a head.
async fn shake_hands(
    stream: TcpStream,
    connection: &Connection,
    tls: &ServerTls,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> io::Result<TlsStream<TcpStream>> {
    let ended = |why: &str| Err(io::Error::new(io::ErrorKind::TimedOut, why));
    tokio::select! {
        shaken = tokio::time::timeout(limits.header_timeout, tls.acceptor().accept(stream)) => {
            shaken.unwrap_or_else(|_| ended("the handshake took too long"))
        }
        () = connection.close.notified() => ended("closed for another"),
        () = stopped(&mut stop) => ended("the server stops"),
    }
}

/// Answers the requests of one connection until it ends, is closed, or the server stops.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: Arc<Connection>,
    router: Router,
    limits: &Limits,
    bodies: Arc<Room>,
    mut stop: watch::Receiver<bool>,
) {
    let stream = Paced::new(stream, connection.clone(), limits.request_timeout);
    let service = TowerToHyperService::new(router);
    let of_connection = connection.clone();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (service, connection, room) = (service.clone(), of_connection.clone(), bodies.clone());
        connection.request_begins(!request.body().is_end_stream());
        async move {
            let body = |body| Body::new(Arriving { body, bytes: 0, room, connection: connection.clone() });
            let mut request: Request = request.map(body);
            request.extensions_mut().insert(connection.clone());
            let response = service.call(request).await;
            connection.request_ended();
            response
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = connection.close.notified() => return,
        () = stopped(&mut stop) => {
            connection.hurries.store(true, Ordering::Relaxed);
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, peer = %connection.peer, "connection ended");
    }
}

/// Waits until the server stops. A sender that is gone means the same.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r02_at_the_limit_the_longest_idle_connection_makes_room() {
        let mut open = Open::default();
        let peer = || Connection::new(SocketAddr::from(([127, 0, 0, 1], 1)), false);
        let (first, _) = open.admit(peer(), 2).expect("room");
        let (second, busy) = open.admit(peer(), 2).expect("room");
        busy.busy.store(1, Ordering::Relaxed);
        let (third, streaming) = open.admit(peer(), 2).expect("the first is idle");
        assert_eq!(open.connections.keys().copied().collect::<Vec<_>>(), [second, third]);
        assert_ne!(first, second);
        streaming.set_streaming(true);
        assert!(open.admit(peer(), 2).is_none(), "one is busy, one streams: nobody can make room");
        busy.receiving.store(true, Ordering::Relaxed);
        assert!(open.admit(peer(), 2).is_some(), "half of a request is none");
    }

    /// requests whose bodies do not come keep nobody out; nor do sockets that say nothing cut off whoever reads.
    #[test]
    fn r02_half_requests_and_silent_sockets_harm_nobody() {
        use std::io::{Read as _, Write as _};
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let http = crate::config::Http { connections_max: 2, ..crate::config::Config::default().http };
        let limits = Arc::new(Limits::new(&http, address));
        let router = Router::new()
            .route("/sent", axum::routing::post(|body: Bytes| async move { body.len().to_string() }))
            .route("/large", axum::routing::get(|| async { vec![7; 8 << 20] }))
            .route("/small", axum::routing::get(|| async { "small" }));
        let (_stop, stopped) = watch::channel(false);
        runtime.spawn(serve(listener, router, limits, None, Arc::new(Metrics::new()), stopped));
        let connect = || {
            // Accepting them in this order takes a moment.
            std::thread::sleep(Duration::from_millis(20));
            std::net::TcpStream::connect(address).unwrap()
        };
        let half = || {
            let mut stream = connect();
            write!(stream, "POST /sent HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").unwrap();
            stream
        };
        let ask = |path: &str| {
            let mut stream = connect();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            stream
        };
        let whole = |mut stream: std::net::TcpStream| {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer.len()
        };
        let _halves = [half(), half()];
        assert!(whole(ask("/small")) > 0, "two halves keep it out");

        let mut reader = ask("/large");
        let mut silent = Vec::new();
        let mut read = 0;
        let mut piece = vec![0; 64 << 10];
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => break,
                count => read += count,
            }
            if silent.len() < 6 {
                silent.push(connect());
            }
        }
        assert!(read > 8 << 20, "{read} bytes came of it");
    }

    #[test]
    fn a_connection_is_private_if_it_is_encrypted_or_stays_on_this_machine() {
        for (peer, encrypted, private) in [
            ("127.0.0.1:1", false, true),
            ("[::1]:1", false, true),
            ("[::ffff:127.0.0.1]:1", false, true),
            ("192.0.2.1:1", false, false),
            ("192.0.2.1:1", true, true),
        ] {
            assert_eq!(Connection::new(peer.parse().expect("an address"), encrypted).is_private(), private, "{peer}");
        }
    }
}
