//! What a node does only for its owner: a Unix socket in the data directory.
//!
//! Making a snapshot takes the processor and the disk for a while, and removing one cannot be undone, so neither is a
//! route of the HTTP API, which anybody on the machine, or in a browser on it, may reach. The socket can be opened by the
//! user the node runs as, and by root; its mode says so, and who came through is asked again. One line of JSON asks; lines
//! of progress follow, and the last line is what it came to. Whoever hangs up stops waiting, and nothing that has begun.

use crate::api;
use crate::check::{self, Asked};
use crate::config;
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::metrics::Metrics;
use crate::own_log::Who;
use crate::snapshots::Service;
use crate::strict_json;
use keelstone_codec::Height;
use keelstone_sync::library::{Info, LibraryError, SnapshotId, Swept};
use keelstone_sync::snapshot::FORMAT;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};

/// Requests that are served at once.
const CONNECTIONS_MAX: usize = 8;
/// Bytes of a request.
const REQUEST_BYTES_MAX: u64 = 4 << 10;
/// Bytes of a line of an answer.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// How long a request may take to be written, and a line of the answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last line may take to be taken once the node stops.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Make a snapshot of a height whose state is kept, the last if none is given.
    CreateSnapshot {
        /// The height.
        height: Option<u64>,
        /// Answer only once the snapshot is offered to others.
        until_offered: bool,
    },
    /// Remove the snapshot of a height.
    DeleteSnapshot {
        /// The height.
        height: u64,
    },
    /// Remove what no snapshot needs.
    SweepSnapshots {},
    /// Something of the checker.
    Check(Asked),
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It is being done.
    Progress(Told),
    /// It is done.
    Done(Value),
    /// It could not be done.
    Failed {
        /// The word for the exit code.
        code: String,
        message: String,
        hint: Option<String>,
    },
}

impl Answer {
    /// The last line: what it came to.
    pub(crate) fn last(result: Result<Value, Failure>) -> Self {
        match result {
            Ok(done) => Self::Done(done),
            Err(Failure { exit, message, hint }) => Self::Failed { code: exit.name().to_owned(), message, hint },
        }
    }

    pub(crate) fn line(&self) -> String {
        serde_json::to_string(self).expect("answers have text keys and no failing serializers") + "\n"
    }
}

/// How far it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// Another snapshot is being made, and this one comes after it.
    Behind(api::SnapshotProgress),
    /// It is being made.
    Making(api::SnapshotProgress),
    /// It is made, and is offered once so many blocks stand above it.
    Waiting { height: u64, offered_from: u64 },
}

/// A snapshot that was made when its owner asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Created {
    pub(crate) snapshot: api::Snapshot,
    /// Whether others can fetch it now.
    pub(crate) offered: bool,
}

// ---- the node's side ---------------------------------------------------------------------------------------------

/// Who does what is asked.
pub(crate) struct Desk {
    engine: Arc<dyn Engine>,
    metrics: Arc<Metrics>,
    home: Home,
    config: config::Snapshots,
    /// None on a node that makes and offers none by itself. Then nobody holds the library, and whoever needs it takes it
    /// for as long.
    snapshots: Option<Arc<Service>>,
    /// None on a node that does not check its state.
    checks: Option<Arc<check::Service>>,
    /// Held by whoever has the library for a while.
    borrowing: tokio::sync::Mutex<()>,
}

/// The socket.
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

fn socket(home: &Home) -> PathBuf {
    home.data().join("control.sock")
}

impl Control {
    /// Listens in a home whose data this process holds. Must be called inside the runtime.
    pub(crate) fn bind(home: &Home) -> io::Result<Self> {
        let path = socket(home);
        // Whoever left it is gone: this process holds the directory's lock.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Serves until told to stop.
    pub(crate) async fn serve(self, desk: Arc<Desk>, mut stop: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &room) => accepted,
                // An error is a sender that is gone, which is a stop too.
                _ = stop.wait_for(|stop| *stop) => break,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, place)) => {
                    let (desk, stopped) = (desk.clone(), stop.clone());
                    drop(connections.spawn(async move {
                        connection(stream, &desk, stopped).await;
                        drop(place);
                    }));
                }
                Err(error) => {
                    tracing::warn!(%error, "the owner's connection could not be accepted");
                    // Out of file descriptors, most likely: some may be free in a moment.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
        // Left behind, it is removed by the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = room.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?.0, place))
}

/// Serves one request. Whoever does not read the answer does not get it.
async fn connection(mut stream: UnixStream, desk: &Desk, mut stop: watch::Receiver<bool>) {
    let uid = stream.peer_cred().map(|peer| peer.uid());
    match uid {
        Ok(uid) if uid == rustix::process::geteuid().as_raw() || uid == 0 => {}
        other => return tracing::warn!(?other, "somebody else than the owner came to the control socket"),
    }
    let (reading, writing) = stream.split();
    let mut line = Vec::new();
    let mut reading = tokio::io::BufReader::new(reading.take(REQUEST_BYTES_MAX));
    let read = tokio::select! {
        read = tokio::time::timeout(PATIENCE, reading.read_until(b'\n', &mut line)) => read,
        // Whoever has not asked by then is not answered.
        _ = stop.wait_for(|stop| *stop) => return,
    };
    if !matches!(read, Ok(Ok(_))) {
        return;
    }
    let mut caller = Caller { reading: reading.into_inner().into_inner(), writing, deaf: false };
    let result = match parse(&line) {
        Ok(request) => {
            tracing::info!(?request, "the owner asks");
            tokio::select! {
                result = desk.answer(request, &mut caller) => result,
                _ = stop.wait_for(|stop| *stop) => Err(Failure::error("the node stops")),
            }
        }
        Err(failure) => Err(failure),
    };
    caller.part(&Answer::last(result), stop).await;
}

fn parse(line: &[u8]) -> Result<Request, Failure> {
    let whole = line.strip_suffix(b"\n");
    let line =
        whole.ok_or_else(|| Failure::usage(format!("a request is a line of at most {REQUEST_BYTES_MAX} bytes")))?;
    strict_json::parse(line).map_err(|error| Failure::usage(format!("this node does not know the request: {error}")))
}

/// Who asked, for as long as they listen.
struct Caller<'a> {
    reading: ReadHalf<'a>,
    writing: WriteHalf<'a>,
    /// Whether a line was not taken: half a line is none, so nothing may follow it.
    deaf: bool,
}

impl Caller<'_> {
    /// Waits until something has changed, or until nobody listens any more: who waits for a block may wait for ever, and
    /// there is room for a few only.
    async fn heard(&mut self, changed: &mut watch::Receiver<()>) -> Result<(), Failure> {
        let mut more = [0];
        tokio::select! {
            heard = heard(changed) => heard,
            // There is nothing more to be said, so whatever is read is the end.
            _ = self.reading.read(&mut more) => Err(Failure::error("nobody listens any more")),
        }
    }

    /// Says a line. Gone, or suspended for long, means: they do not want to know.
    async fn say(&mut self, answer: &Answer) {
        if !std::mem::replace(&mut self.deaf, true) {
            let line = answer.line();
            let said = tokio::time::timeout(PATIENCE, self.writing.write_all(line.as_bytes())).await;
            self.deaf = !matches!(said, Ok(Ok(())));
        }
    }

    /// Says the last line, which does not hold up a stop.
    async fn part(&mut self, answer: &Answer, mut stop: watch::Receiver<bool>) {
        let late = async {
            // An error is a sender that is gone, which is a stop too.
            drop(stop.wait_for(|stop| *stop).await);
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            () = self.say(answer) => {}
            () = late => {}
        }
    }

    async fn tell(&mut self, told: Told) {
        self.say(&Answer::Progress(told)).await;
    }
}

impl Desk {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        metrics: Arc<Metrics>,
        home: Home,
        config: config::Snapshots,
        snapshots: Option<Arc<Service>>,
        checks: Option<Arc<check::Service>>,
    ) -> Self {
        Self { engine, metrics, home, config, snapshots, checks, borrowing: tokio::sync::Mutex::default() }
    }

    async fn answer(&self, request: Request, caller: &mut Caller<'_>) -> Result<Value, Failure> {
        match request {
            Request::CreateSnapshot { height, until_offered } => {
                let created = self.create(height.map(Height), until_offered, caller).await?;
                Ok(json!(created))
            }
            Request::DeleteSnapshot { height } => {
                let id = SnapshotId { height: Height(height), format: FORMAT };
                self.with_library(move |service| service.delete(id, Who::Owner)).await?;
                Ok(json!({ "removed": height }))
            }
            Request::SweepSnapshots {} => Ok(swept(&self.with_library(Service::gc).await?)),
            Request::Check(asked) => {
                let checks = self.checks.clone().ok_or_else(|| {
                    Failure::usage("this node does not check its state").hint("check.enabled=true has it do so")
                })?;
                blocking(move || checks.answer(&asked)).await
            }
        }
    }

    /// The snapshots of this node; of one that has none by itself, for a while.
    async fn library(&self) -> Result<Hold<'_>, Failure> {
        if let Some(service) = &self.snapshots {
            return Ok(Hold { service: service.clone(), _guard: None });
        }
        let guard = self.borrowing.lock().await;
        let (engine, metrics) = (self.engine.clone(), self.metrics.clone());
        let (home, config) = (self.home.clone(), self.config.clone());
        let service = blocking(move || Service::beside(&*engine, config, &home, metrics)).await?;
        Ok(Hold { service: Arc::new(service), _guard: Some(guard) })
    }

    async fn with_library<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Service) -> Result<T, LibraryError> + Send + 'static,
    ) -> Result<T, Failure> {
        let hold = self.library().await?;
        let service = hold.service.clone();
        blocking(move || Ok(work(&service)?)).await
    }

    async fn create(
        &self,
        height: Option<Height>,
        until_offered: bool,
        caller: &mut Caller<'_>,
    ) -> Result<Created, Failure> {
        let offers = self.snapshots.is_some();
        if until_offered && !offers {
            return Err(Failure::usage("this node offers no snapshots").hint("keelstone node --enable-snapshots does"));
        }
        let hold = self.library().await?;
        let service = &hold.service;
        let mut changed = service.changed();
        let info = self.make(service, height, &mut changed, caller).await?;
        loop {
            let offered = offers && service.offers(info.id).ok_or(LibraryError::NotFound(info.id))?;
            if offered || !until_offered {
                return Ok(Created { snapshot: api::Snapshot::of(&info), offered });
            }
            let height = info.id.height.0;
            caller.tell(Told::Waiting { height, offered_from: Service::offered_from(info.id.height).0 }).await;
            caller.heard(&mut changed).await?;
        }
    }

    /// Makes a snapshot, after the one that is being made if there is one.
    async fn make(
        &self,
        service: &Arc<Service>,
        height: Option<Height>,
        changed: &mut watch::Receiver<()>,
        caller: &mut Caller<'_>,
    ) -> Result<Info, Failure> {
        let mut result = loop {
            let (engine, asked) = (self.engine.clone(), service.clone());
            match blocking(move || asked.make_now(|| engine.version(height))).await? {
                Some(result) => break result,
                None => {
                    if let Some(progress) = service.making() {
                        caller.tell(Told::Behind(progress)).await;
                    }
                    caller.heard(changed).await?;
                }
            }
        };
        loop {
            tokio::select! {
                made = &mut result => {
                    let made = made.map_err(|_| Failure::error("the snapshot was given up; the log says why"))?;
                    return Ok(made?);
                }
                heard = heard(changed) => if let (Ok(()), Some(progress)) = (heard, service.making()) {
                    caller.tell(Told::Making(progress)).await;
                }
            }
        }
    }
}

/// The library, for as long as this lives. The service goes before the right to open another.
struct Hold<'a> {
    service: Arc<Service>,
    _guard: Option<tokio::sync::MutexGuard<'a, ()>>,
}

/// Waits until something has changed.
async fn heard(changed: &mut watch::Receiver<()>) -> Result<(), Failure> {
    changed.changed().await.map_err(|_| Failure::error("the node stops"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    spawn_blocking(work).await.map_err(|error| Failure::io("it was given up", &error))?
}

/// What a sweep removed, as JSON.
pub(crate) fn swept(swept: &Swept) -> Value {
    json!({ "temporary": swept.temporary, "unneeded": swept.unneeded, "damaged": swept.set_aside })
}

// ---- the owner's side --------------------------------------------------------------------------------------------

/// Asks the node that runs over a home; none if none does. `listener` hears how far it is.
pub(crate) fn ask(home: &Home, request: &Request, listener: &mut dyn FnMut(Told)) -> Result<Option<Value>, Failure> {
    let path = socket(home);
    let stream = match std::os::unix::net::UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        // A path too long for a socket: no node can have one there.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
        Err(error) => {
            let failure = Failure::io(format_args!("could not reach the node at {}", path.display()), &error);
            return Err(failure.hint("only the user the node runs as may ask for this"));
        }
    };
    converse(stream, request, "the node that runs here", listener).map(Some)
}

/// Asks `whom`, and hears them out. There is no limit on the time: what is asked for takes as long as it takes, and whoever
/// dies closes their end.
pub(crate) fn converse(
    stream: std::os::unix::net::UnixStream,
    request: &impl Serialize,
    whom: &str,
    listener: &mut dyn FnMut(Told),
) -> Result<Value, Failure> {
    let failed = |error: io::Error| Failure::io(format_args!("{whom} did not answer"), &error);
    let text = serde_json::to_string(request).expect("a request has text keys and no failing serializers");
    (&stream).write_all(format!("{text}\n").as_bytes()).map_err(failed)?;
    let mut lines = BufReader::new(&stream);
    loop {
        let mut line = Vec::new();
        (&mut lines).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
        if line.pop() != Some(b'\n') {
            return Err(Failure::error(format!("{whom} hung up before it had answered")));
        }
        let answer: Answer = strict_json::parse(&line)
            .map_err(|error| Failure::error(format!("{whom} answered something else: {error}")))?;
        match answer {
            Answer::Progress(told) => listener(told),
            Answer::Done(done) => return Ok(done),
            Answer::Failed { code, message, hint } => {
                let exit = Exit::named(&code).unwrap_or(Exit::Error);
                return Err(Failure { exit, message, hint });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L-06: a command that was suspended takes no lines, and so holds up no stop.
    #[test]
    fn l06_a_caller_that_does_not_read_does_not_hold_up_a_stop() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut ours, _theirs) = UnixStream::pair().unwrap();
            // As full as it gets.
            while ours.try_write(&[b'x'; 4096]).is_ok() {}
            let (reading, writing) = ours.split();
            let mut caller = Caller { reading, writing, deaf: false };
            let (stop, stopped) = watch::channel(true);
            let done = Answer::Done(json!({}));
            let parted = caller.part(&done, stopped);
            tokio::time::timeout(Duration::from_secs(5), parted).await.expect("it waits for a reader");
            assert!(caller.deaf, "half a line may stand there, so nothing follows it");
            drop(stop);
        });
    }

    /// One line, of known words, within its bound; everything else is refused by name.
    #[test]
    fn a_request_is_one_strict_line() {
        let create = Request::CreateSnapshot { height: Some(7), until_offered: true };
        let check = Request::Check(Asked::Now { depth: check::Depth::Full });
        for request in [create, Request::DeleteSnapshot { height: u64::MAX }, Request::SweepSnapshots {}, check] {
            let line = serde_json::to_string(&request).unwrap() + "\n";
            assert_eq!(parse(line.as_bytes()).unwrap(), request, "{line}");
        }
        let long = format!("{{\"sweep_snapshots\":{{}}}}{}", " ".repeat(1 << 20));
        for line in [
            "",
            "\n",
            "{}\n",
            "[]\n",
            "{\"sweep_snapshots\":{}}",
            &long,
            "{\"sweep_snapshots\":{\"more\":1}}\n",
            "{\"delete_snapshot\":{}}\n",
            "{\"delete_snapshot\":{\"height\":-1}}\n",
            "{\"delete_snapshot\":{\"height\":1,\"height\":2}}\n",
            "{\"delete_snapshot\":{\"height\":1}}{\"sweep_snapshots\":{}}\n",
            "{\"halt\":{}}\n",
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap_err().exit, Exit::Usage, "{line:.60}");
        }
    }

    /// Progress is told, and what it came to is the last line: also what the node's exit code would have been.
    #[test]
    fn an_answer_is_read_to_its_last_line_and_no_further() {
        let answered = |text: &'static str| {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            (&theirs).write_all(text.as_bytes()).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            let mut told = Vec::new();
            let result =
                converse(ours, &Request::SweepSnapshots {}, "it", &mut |progress| told.push(format!("{progress:?}")));
            (result, told.len())
        };
        let waiting = "{\"progress\":{\"waiting\":{\"height\":3,\"offered_from\":5}}}\n";
        let text: &'static str = format!("{waiting}{waiting}{{\"done\":{{\"removed\":3}}}}\nmore").leak();
        let (result, told) = answered(text);
        assert_eq!((result.unwrap(), told), (json!({ "removed": 3 }), 2));
        let (result, _) = answered("{\"failed\":{\"code\":\"not_found\",\"message\":\"m\",\"hint\":\"h\"}}\n");
        let failure = result.unwrap_err();
        assert_eq!((failure.exit, failure.message.as_str(), failure.hint.as_deref()), (Exit::NotFound, "m", Some("h")));
        for cut in ["", waiting, "{\"done\":1}", "nonsense\n"] {
            assert_eq!(answered(cut).0.unwrap_err().exit, Exit::Error, "{cut}");
        }
    }
}
