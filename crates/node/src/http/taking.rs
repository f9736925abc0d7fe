//! Answers on their way to a client: how long one may take to be taken, and how many bytes of them, and of bodies on their way
//! here, there may be.
//!
//! An answer is in memory from the moment it is made until its last byte is with the system. So a client that asks for
//! much and does not read is cut off, one that reads a little now and then too, and what all of them leave unread has a
//! bound. Event streams have rules of their own ([`super::events`]).
//!
//! A request that is refused before all of it was read is still being sent while its answer is on the way. To close then would
//! take the answer back: the other system resets a connection on which bytes come that nobody reads. So what still comes
//! is read for a while, and thrown away.

use super::error::{ApiError, Code};
use super::server::Connection;
use crate::client::BYTES_PER_SECOND_MIN;
use crate::metrics::Metrics;
use axum::body::HttpBody as _;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Bytes of an answer that is let out whatever else is: no more than a connection holds without one. Whether a node is
/// alive can be asked while others have the room.
const SMALL_BYTES: u64 = 64 << 10;
/// What room is counted in.
const UNIT: u64 = 1 << 10;

/// Bytes of a body that are let in whatever else is.
const SMALL_BODY_BYTES: u64 = SMALL_BYTES;
/// Bytes of bodies above that which may be on their way or worked on at once.
const BODIES_BYTES_MAX: u64 = 256 << 20;
/// Bytes that are read of a request whose answer is out already.
const LINGER_BYTES_MAX: u64 = 16 << 20;
/// How long.
const LINGER: Duration = Duration::from_secs(10);

/// There is no room for a body now.
#[derive(Debug, thiserror::Error)]
#[error("as much of other requests' bodies is here as may be")]
pub(super) struct Crowded;

impl Crowded {
    /// Whether this is why something else failed.
    pub(super) fn is_cause_of(error: &(dyn std::error::Error + 'static)) -> bool {
        std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<Self>())
    }
}

/// The room that answers have, or bodies.
#[derive(Debug)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    units: u32,
    metrics: Arc<Metrics>,
}

impl Room {
    pub(super) fn new(bytes_max: u64, metrics: Arc<Metrics>) -> Self {
        let most = u64::from(u32::MAX).min(Semaphore::MAX_PERMITS as u64);
        let units = u32::try_from((bytes_max / UNIT).clamp(1, most)).expect("at most that");
        Self { free: Arc::new(Semaphore::new(units as usize)), units, metrics }
    }

    /// The room of bodies, each of which has at most so many bytes.
    pub(super) fn of_bodies(body_bytes_max: usize, metrics: Arc<Metrics>) -> Self {
        Self::new(BODIES_BYTES_MAX.max(body_bytes_max as u64), metrics)
    }

    /// Makes what a body has of the room as large as so many bytes of it take.
    pub(super) fn grow(&self, held: &mut Option<Held>, bytes: u64) -> Result<(), Crowded> {
        let has = held.as_ref().map_or(0, |held| held.place.num_permits() as u64);
        let takes = bytes.saturating_sub(SMALL_BODY_BYTES).div_ceil(UNIT);
        if takes > has {
            let more = self.take((takes - has) * UNIT).ok_or(Crowded)?;
            match held {
                Some(held) => held.place.merge(more.place),
                None => *held = Some(more),
            }
        }
        Ok(())
    }

    /// A part of the room. One that is larger than all of it takes all of it: then there is no other meanwhile.
    fn take(&self, bytes: u64) -> Option<Held> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        let place = self.free.clone().try_acquire_many_owned(units).ok()?;
        Some(Held { place, left: bytes })
    }
}

/// The room an answer has until it is taken, or a body until it was worked on.
#[derive(Debug)]
pub(super) struct Held {
    place: OwnedSemaphorePermit,
    left: u64,
}

impl Held {
    /// Whether all of the answer is gone, now that so many more bytes are.
    pub(super) fn is_taken(&mut self, bytes: u64) -> bool {
        self.left = self.left.saturating_sub(bytes);
        self.left == 0
    }
}

/// Lets an answer out if there is room for it.
pub(super) async fn bound(State(room): State<Arc<Room>>, request: Request, next: Next) -> Response {
    if request.method() == Method::HEAD {
        // Nothing but the head is sent.
        return next.run(request).await;
    }
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let response = next.run(request).await;
    // Streams have no size, and no connection is a test.
    let (Some(bytes), Some(connection)) = (response.body().size_hint().exact(), connection) else { return response };
    if bytes <= SMALL_BYTES {
        return response;
    }
    match room.take(bytes) {
        Some(held) => {
            connection.hold(held);
            response
        }
        None => {
            room.metrics.refused("answers");
            let limit = u64::from(room.units) * UNIT;
            ApiError::new(Code::Busy, format!("clients are still taking answers of {limit} bytes, the limit"))
                .hint("ask again in a moment, or for less")
                .into_response()
        }
    }
}

/// A connection whose other end has to take what it asked for: something within `patience`, and all of it within that and
/// a second for each [`BYTES_PER_SECOND_MIN`] bytes it took.
pub(super) struct Paced<S> {
    stream: S,
    connection: Arc<Connection>,
    patience: Duration,
    /// When the answer began to be written.
    began: Option<Instant>,
    /// When some of it was last taken.
    moved: Instant,
    /// How much.
    written: u64,
    timer: Pin<Box<Sleep>>,
    /// Bytes that may still come now that nothing goes out any more.
    lingering: Option<u64>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>, patience: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(patience));
        Self { stream, connection, patience, began: None, moved: Instant::now(), written: 0, timer, lingering: None }
    }

    /// Keeps account of what became of a write, and ends one that waits for too long.
    fn paced<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let now = Instant::now();
        if self.began.is_none() {
            (self.began, self.moved) = (Some(now), now);
            self.connection.answers(true);
        }
        if polled.is_ready() {
            self.moved = now;
            return polled;
        }
        if self.connection.is_streaming() {
            return Poll::Pending;
        }
        let earned = Duration::from_millis(self.written.saturating_mul(1_000) / BYTES_PER_SECOND_MIN);
        let by = self.began.unwrap_or(now) + self.patience + earned;
        self.timer.as_mut().reset(by.min(self.moved + self.patience));
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the answer is not taken"))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &polled {
            self.written = self.written.saturating_add(*count as u64);
            self.connection.moves();
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        let polled = self.paced(cx, polled);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        let polled = self.paced(cx, polled);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        let polled = self.paced(cx, polled);
        if polled.is_ready() {
            // What was written is with the system; what comes next is another answer, or another piece of it.
            let written = std::mem::take(&mut self.written);
            self.connection.taken(written);
            self.connection.answers(false);
            self.began = None;
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            let polled = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.paced(cx, polled))?;
            this.connection.answers(false);
            this.timer.as_mut().reset(Instant::now() + LINGER);
            this.lingering = Some(LINGER_BYTES_MAX);
        }
        this.linger(cx).map(Ok)
    }
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Reads what still comes, until the other end has closed as well, or for as long as may be.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut piece = [MaybeUninit::uninit(); 8 << 10];
        while let Some(left @ 1..) = self.lingering {
            let mut piece = ReadBuf::uninit(&mut piece);
            if self.connection.hurries() || self.timer.as_mut().poll(cx).is_ready() {
                break;
            }
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece)) {
                Ok(()) if !piece.filled().is_empty() => {
                    self.lingering = Some(left.saturating_sub(piece.filled().len() as u64));
                }
                // It has closed, or is gone.
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, into);
        if into.filled().len() > before {
            self.connection.moves();
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::super::server::serve;
    use super::*;
    use axum::routing::get;
    use axum::{Router, middleware::from_fn_with_state};
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use tokio::sync::watch;

    /// More than both ends of a socket hold.
    const LARGE_BYTES: usize = 32 << 20;

    /// A server whose `/large` answers that many bytes, and `/small` a few.
    struct Server {
        address: SocketAddr,
        metrics: Arc<Metrics>,
        _stop: watch::Sender<bool>,
        _runtime: tokio::runtime::Runtime,
    }

    impl Server {
        fn start(patience: Duration, answers_bytes_max: u64) -> Self {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
            let address = listener.local_addr().unwrap();
            let request_timeout_ms = u64::try_from(patience.as_millis()).unwrap();
            let http = crate::config::Http { request_timeout_ms, ..crate::config::Config::default().http };
            let limits = Arc::new(Limits::new(&http, address));
            let metrics = Arc::new(Metrics::new());
            let room = Arc::new(Room::new(answers_bytes_max, metrics.clone()));
            let router = Router::new()
                .route("/large", get(|| async { vec![7; LARGE_BYTES] }))
                .route("/small", get(|| async { "small" }))
                .layer(from_fn_with_state(room, bound));
            let (stop, stopped) = watch::channel(false);
            runtime.spawn(serve(listener, router, limits, None, metrics.clone(), stopped));
            Self { address, metrics, _stop: stop, _runtime: runtime }
        }

        fn ask(&self, path: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            stream
        }

        /// The head of the answer, as text.
        fn head(stream: &mut TcpStream) -> String {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            String::from_utf8(head).unwrap()
        }

        fn wait_until(&self, what: &str, is: impl Fn(&Self) -> bool) {
            let until = Instant::now() + Duration::from_secs(30);
            while !is(self) {
                assert!(Instant::now() < until, "{what}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// whoever asks and does not read is cut off, and what was made for them is let go of.
    #[test]
    fn r02_an_answer_that_nobody_takes_is_cut_off() {
        let server = Server::start(Duration::from_millis(300), 1 << 30);
        let mut stream = server.ask("/large");
        assert!(Server::head(&mut stream).starts_with("HTTP/1.1 200"));
        server.wait_until("it waits for a reader", |server| server.metrics.connections_open.get() == 0);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < LARGE_BYTES, "all of it was taken");
    }

    /// whoever reads steadily gets all of it, though it takes longer than a request may.
    #[test]
    fn r02_a_slow_reader_that_goes_on_reading_gets_the_whole_answer() {
        let patience = Duration::from_secs(2);
        let server = Server::start(patience, 1 << 30);
        let mut stream = server.ask("/large");
        assert!(Server::head(&mut stream).starts_with("HTTP/1.1 200"));
        let (mut read, began) = (0, Instant::now());
        let mut piece = vec![0; 256 << 10];
        loop {
            match stream.read(&mut piece).unwrap() {
                0 => break,
                count => read += count,
            }
            // So that all of it takes half as long again as its patience, in pieces of whatever size.
            let share = u32::try_from(read >> 10).unwrap();
            let due = began + patience * 3 / 2 * share / u32::try_from(LARGE_BYTES >> 10).unwrap();
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        assert_eq!(read, LARGE_BYTES);
        assert!(began.elapsed() > patience);
    }

    /// answers that wait to be taken have a bound, above which others are told to come again; small ones pass.
    #[test]
    fn r02_answers_that_wait_to_be_taken_have_a_bound() {
        let server = Server::start(Duration::from_secs(60), 2 * LARGE_BYTES as u64);
        let mut waiting = [server.ask("/large"), server.ask("/large")];
        for stream in &mut waiting {
            assert!(Server::head(stream).starts_with("HTTP/1.1 200"));
        }
        for _ in 0..8 {
            let mut stream = server.ask("/large");
            assert!(Server::head(&mut stream).starts_with("HTTP/1.1 503"));
            let mut body = String::new();
            stream.read_to_string(&mut body).unwrap();
            let error: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(error["error"]["code"], "busy", "{body}");
        }
        assert!(Server::head(&mut server.ask("/small")).starts_with("HTTP/1.1 200"));
        assert!(server.metrics.render().contains("reason=\"answers\"} 8"), "{}", server.metrics.render());
        // One is taken, the other given up: both places are free.
        let [mut taken, given_up] = waiting;
        drop(given_up);
        std::io::copy(&mut taken, &mut std::io::sink()).unwrap();
        drop(taken);
        server.wait_until("its place stays taken", |server| server.metrics.connections_open.get() == 0);
        let mut both = [server.ask("/large"), server.ask("/large")];
        assert!(both.iter_mut().all(|stream| Server::head(stream).starts_with("HTTP/1.1 200")));
    }

    /// whoever asks for heads alone has no room of those who take the answers.
    #[test]
    fn r02_a_head_alone_takes_no_room() {
        let server = Server::start(Duration::from_secs(60), LARGE_BYTES as u64);
        let mut stream = TcpStream::connect(server.address).unwrap();
        for _ in 0..3 {
            write!(stream, "HEAD /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert!(Server::head(&mut stream).starts_with("HTTP/1.1 200"));
        }
        assert!(Server::head(&mut server.ask("/large")).starts_with("HTTP/1.1 200"), "the room is taken");
    }

    /// bodies on their way here have a bound together, above which they are refused; small ones pass.
    #[test]
    fn r02_bodies_that_are_on_their_way_have_a_bound() {
        let room = Room::new(1 << 20, Arc::new(Metrics::new()));
        let (mut first, mut second, mut small) = (None, None, None);
        for bytes in (0..=SMALL_BODY_BYTES + (1 << 20)).step_by(1 << 16) {
            room.grow(&mut first, bytes).expect("it fits");
        }
        assert!(room.grow(&mut second, SMALL_BODY_BYTES + 1).is_err());
        assert!(room.grow(&mut small, SMALL_BODY_BYTES).is_ok() && small.is_none());
        drop(first);
        assert!(room.grow(&mut second, SMALL_BODY_BYTES + (1 << 20)).is_ok());
    }

    /// Why a body could not be read is told apart from what its sender did wrong.
    #[test]
    fn a_body_without_room_is_known_by_its_cause() {
        use axum::body::{Body, Bytes};
        use axum::extract::FromRequest as _;
        use futures_util::FutureExt as _;
        let read = |error: axum::BoxError| {
            let body = Body::from_stream(futures_util::stream::iter([Ok(Bytes::from("a")), Err(error)]));
            let read = Bytes::from_request(Request::new(body), &()).now_or_never().expect("all of it is here");
            Crowded::is_cause_of(&read.expect_err("it ends in an error"))
        };
        assert!(read(Crowded.into()));
        assert!(!read("reset".into()));
    }

    /// An answer that is larger than all of the room is let out alone.
    #[test]
    fn an_answer_may_take_all_of_the_room() {
        let room = Room::new(1 << 20, Arc::new(Metrics::new()));
        let mut held = room.take(5 << 20).unwrap();
        assert!(room.take(SMALL_BYTES + 1).is_none());
        assert!(!held.is_taken((5 << 20) - 1));
        assert!(held.is_taken(1));
        drop(held);
        assert!(room.take(1 << 20).is_some());
    }
}
