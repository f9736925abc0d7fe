//! The node's snapshots: made in the background at an interval, kept, and served to whoever joins.
//!
//! A commit that reaches the interval hands its version to a worker and goes on: a version never changes, so blocks are
//! made and old states forgotten while a snapshot of exactly that height comes to be. If the worker is still at the
//! last one, this one is skipped and counted; nothing waits in a queue. The owner may ask for one in between
//! ([`crate::control`]), which comes as soon as the worker is free. Serving reads no state, only files of the
//! library, by at most [`READERS_MAX`] at once, and that a chunk cannot be had is the end of nothing: whoever asks for what is not
//! here may be wrong, late, or hostile.

use crate::api::{self, Refusal};
use crate::config::{self, Config};
use crate::engine::{Engine, Version};
use crate::exit::{Failure, causes};
use crate::home::Home;
use crate::library::{directory, log_swept};
use crate::metrics::Metrics;
use crate::own_log::{OwnLog, Stood, Who};
use crate::way::{sliced, step_back};
use keelstone_codec::Height;
use keelstone_ledger::NodeEvent;
use keelstone_sync::library::{Info, Library, LibraryError, Making, Phase, Pin, Progress, SnapshotId, Swept};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Chunks that are read at once. Each is up to 16 MB in memory.
const READERS_MAX: usize = 4;
/// Requests that wait for one of them to be done; more are not answered.
const WAITING_MAX: usize = 64;
/// How long a snapshot stays, though newer ones took its place, after its last chunk was asked for.
const LEASE: Duration = Duration::from_secs(600);
/// How long it stays at most once newer ones took its place, however often it is asked for: the blocks above it stay as long,
/// and a chunk every ten minutes costs a stranger nothing. At 5 MB a second 108 GB are fetched in that time.
const LEASE_MAX: Duration = Duration::from_secs(6 * 3_600);
/// Snapshots that stay for that reason, besides those that are kept: so asking cannot fill the disk.
const LEASES_MAX: usize = 2;
/// How many blocks must stand above a snapshot before it is offered: a joiner needs the next header, which holds this
/// height's root, and the commit for that one.
const BLOCKS_ABOVE: u64 = 2;

/// The snapshots of a running node.
#[derive(Debug)]
pub(crate) struct Service {
    inner: Arc<Inner>,
    jobs: SyncSender<Job>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// What the worker is told.
enum Job {
    /// To make a snapshot, and keep the newest so many.
    Due(Box<dyn Version>),
    /// To make one that was asked for, and say what came of it. It takes no other's place.
    Asked(Box<dyn Version>, oneshot::Sender<Made>),
    Stop,
}

/// What came of a snapshot that was asked for.
pub(crate) type Made = Result<Info, LibraryError>;

#[derive(Debug)]
struct Inner {
    library: Library,
    config: config::Snapshots,
    metrics: Arc<Metrics>,
    /// Where it is put on record what is made and removed.
    own: OwnLog,
    /// The height of the last block.
    tip: AtomicU64,
    /// Set from the moment a version is handed over until its snapshot is done.
    busy: AtomicBool,
    stopping: AtomicBool,
    making: Mutex<Option<(Height, Progress)>>,
    /// Told of every block, of progress, and of the end of each snapshot.
    changed: watch::Sender<()>,
    leases: Mutex<Vec<Lease>>,
    readers: Readers,
}

/// A snapshot that somebody fetches, and that stays for it.
#[derive(Debug)]
struct Lease {
    pin: Pin,
    /// When its last chunk was asked for.
    used: Instant,
    /// Since when it stays for that alone.
    replaced: Option<Instant>,
}

impl Service {
    /// Opens the library and begins to make snapshots as `config` says.
    pub(crate) fn start(
        engine: &Arc<dyn Engine>,
        config: &Config,
        home: &Home,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, Failure> {
        metrics.snapshot_interval.set(i64::try_from(config.snapshots.interval).unwrap_or(i64::MAX));
        let service = Arc::new(Self::beside(&**engine, config.snapshots.clone(), home, metrics)?);
        let tip = service.inner.tip.load(Ordering::Relaxed);
        for info in service.inner.library.list().iter().filter(|info| info.id.height.0 > tip) {
            tracing::warn!(height = info.id.height.0, tip, "removed a snapshot of a height that was rolled back");
            service.delete(info.id, Who::Node)?;
        }
        // The engine keeps its listeners: a strong reference to it in one would keep both for ever.
        let (asked, told) = (Arc::downgrade(engine), service.clone());
        engine.on_commit(Box::new(move |committed| {
            let height = committed.block.height;
            let engine = || asked.upgrade().ok_or_else(|| Failure::error("the chain is closed"));
            told.committed(height, || engine()?.version(Some(height)));
        }));
        Ok(service)
    }

    /// Opens the library beside a chain whose blocks go first, to make what is asked for. It hears of no blocks.
    pub(crate) fn beside(
        engine: &dyn Engine,
        config: config::Snapshots,
        home: &Home,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Failure> {
        let files = sliced(directory(&home.snapshots())?, &engine.way());
        let (library, swept) = Library::open(Arc::new(files))?;
        log_swept(&swept);
        Self::over(library, config, metrics, engine.status()?.height, OwnLog::of(home))
    }

    /// Starts the worker over a library.
    fn over(
        library: Library,
        config: config::Snapshots,
        metrics: Arc<Metrics>,
        tip: u64,
        own: OwnLog,
    ) -> Result<Self, Failure> {
        let inner = Arc::new(Inner {
            library,
            config,
            metrics,
            own,
            tip: AtomicU64::new(tip),
            busy: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            making: Mutex::default(),
            changed: watch::Sender::default(),
            leases: Mutex::default(),
            readers: Readers::default(),
        });
        inner.show_kept();
        // One to be made, and the word to stop.
        let (jobs, given) = sync_channel(2);
        let worker = {
            let inner = inner.clone();
            let thread = std::thread::Builder::new().name("snapshots".to_owned());
            thread
                .spawn(move || {
                    step_back();
                    inner.work(&given);
                })
                .map_err(|error| Failure::io("could not start making snapshots", &error))?
        };
        Ok(Self { inner, jobs, worker: Mutex::new(Some(worker)) })
    }

    /// Hears of a block that is durable, and hands its version over to the worker if a snapshot is due. Runs on the thread
    /// that commits, so it does next to nothing.
    fn committed(&self, height: Height, version: impl FnOnce() -> Result<Box<dyn Version>, Failure>) {
        let inner = &*self.inner;
        inner.tip.store(height.0, Ordering::Relaxed);
        inner.changed.send_replace(());
        if !height.0.is_multiple_of(inner.config.interval) || inner.stopping.load(Ordering::Relaxed) {
            return;
        }
        if inner.busy.swap(true, Ordering::AcqRel) {
            inner.metrics.snapshots_skipped.inc();
            tracing::warn!(height = height.0, "skipped a snapshot: the one before is still being made");
            return;
        }
        let given = version().and_then(|version| {
            // The worker takes one at a time, and is not busy: there is room unless it is gone.
            self.jobs.try_send(Job::Due(version)).map_err(|_| Failure::error("nothing makes snapshots any more"))
        });
        if let Err(failure) = given {
            inner.rest();
            inner.metrics.snapshot_failed("state");
            tracing::error!(height = height.0, error = %failure, "there is no state to make a snapshot of");
        }
    }

    /// Has the worker make a snapshot that was asked for; none if it is at another, whose end [`Self::changed`] tells. Asks
    /// for the version only if it is free.
    pub(crate) fn make_now(
        &self,
        version: impl FnOnce() -> Result<Box<dyn Version>, Failure>,
    ) -> Result<Option<oneshot::Receiver<Made>>, Failure> {
        let inner = &*self.inner;
        if inner.stopping.load(Ordering::Relaxed) {
            return Err(Failure::error("the node stops"));
        }
        if inner.busy.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        let (tell, made) = oneshot::channel();
        let given = version().and_then(|version| {
            // The worker takes one at a time, and is not busy: there is room unless it is gone.
            self.jobs.try_send(Job::Asked(version, tell)).map_err(|_| Failure::error("the node stops"))
        });
        given.inspect_err(|_| inner.rest()).map(|()| Some(made))
    }

    /// Told of every block, of progress, and of the end of each snapshot.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// What is being made.
    pub(crate) fn making(&self) -> Option<api::SnapshotProgress> {
        let making = *self.inner.making();
        making.map(|(height, progress)| api::SnapshotProgress {
            height: height.0,
            phase: phase(progress.phase).to_owned(),
            chunks_done: progress.done,
            chunks: progress.total,
        })
    }

    /// The last block there must be for a snapshot to be offered.
    pub(crate) fn offered_from(height: Height) -> Height {
        Height(height.0.saturating_add(BLOCKS_ABOVE))
    }

    /// Whether a snapshot can be offered; none if it is gone.
    pub(crate) fn offers(&self, id: SnapshotId) -> Option<bool> {
        let there = self.inner.library.list().iter().any(|info| info.id == id);
        there.then(|| Self::offered_from(id.height).0 <= self.inner.tip.load(Ordering::Relaxed))
    }

    /// Removes a snapshot because the owner wants it so: also one that was fetched a moment ago.
    pub(crate) fn delete(&self, id: SnapshotId, who: Who) -> Result<(), LibraryError> {
        self.inner.leases().retain(|lease| lease.pin.info().id != id);
        self.inner.library.delete(id)?;
        self.inner.own.told(who, NodeEvent::RemovedSnapshot { height: id.height }, Stood::default());
        self.inner.show_kept();
        Ok(())
    }

    /// Removes what no snapshot needs.
    pub(crate) fn gc(&self) -> Result<Swept, LibraryError> {
        self.inner.library.gc()
    }

    /// Stops making snapshots. One that is being made is given up; nothing of it stays.
    pub(crate) fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(worker) = worker {
            let _ = self.jobs.try_send(Job::Stop);
            // A panic of the thread was reported when it happened.
            let _ = worker.join();
        }
    }

    /// The snapshots that can be offered, the newest first: those with two blocks above them (SS-40).
    pub(crate) fn listed(&self) -> Vec<Info> {
        let tip = self.inner.tip.load(Ordering::Relaxed);
        let mut list = self.inner.library.list();
        list.retain(|info| Self::offered_from(info.id.height).0 <= tip);
        list
    }

    /// A chunk as it is sent.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] for whatever is not here, [`Refusal::Busy`] for more requests than can be served,
    /// [`Refusal::Damaged`] and [`Refusal::Failed`] if it could not be read.
    pub(crate) fn chunk(&self, height: u64, format: u32, index: u32) -> Result<Vec<u8>, Refusal> {
        let inner = &*self.inner;
        let refused = |reason: &'static str, refusal: Refusal| {
            inner.metrics.snapshot_refused(reason);
            refusal
        };
        let unknown = || {
            let message = format!("no chunk {index} of a snapshot of height {height}");
            refused("unknown", Refusal::NotFound(message))
        };
        let Some(_reader) = inner.readers.enter() else {
            return Err(refused("busy", Refusal::Busy("as many chunks as may be are being read".to_owned())));
        };
        let id = SnapshotId { height: Height(height), format };
        let pin = inner.library.pin(id).ok_or_else(unknown)?;
        match pin.chunk(index) {
            Ok(Some(chunk)) => {
                inner.lease(pin, Instant::now());
                inner.metrics.snapshot_served(chunk.len());
                Ok(chunk)
            }
            Ok(None) => Err(unknown()),
            Err(error) => {
                let (damaged, error) = (error.is_damage(), causes(&error));
                tracing::error!(height, index, error, damaged, "a chunk could not be served");
                if damaged {
                    inner.metrics.snapshots_damaged.inc();
                    inner.show_kept();
                    return Err(refused("damaged", Refusal::Damaged(error)));
                }
                Err(refused("failed", Refusal::Failed(error)))
            }
        }
    }

    /// The height of the oldest snapshot there is: blocks above it are what a joiner needs next.
    pub(crate) fn oldest_listed(&self) -> Option<Height> {
        self.inner.library.list().last().map(|info| info.id.height)
    }

    /// What there is and what is being done, for people and programs.
    pub(crate) fn report(&self) -> api::Snapshots {
        let inner = &*self.inner;
        api::Snapshots {
            enabled: true,
            interval: Some(inner.config.interval),
            keep: Some(inner.config.keep),
            oldest_height: self.oldest_listed().map(|height| height.0),
            making: self.making(),
            snapshots: self.listed().iter().map(api::Snapshot::of).collect(),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How the configuration wants snapshots to be made.
pub(crate) fn making(config: &config::Snapshots) -> Making {
    Making {
        level: i32::try_from(config.zstd_level).unwrap_or(i32::MAX),
        reserve_percent: u8::try_from(config.reserve_percent).unwrap_or(100),
        ..Making::default()
    }
}

pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Making => "making",
        Phase::Proving => "proving",
        Phase::Copying => "copying",
    }
}

impl Inner {
    fn making(&self) -> MutexGuard<'_, Option<(Height, Progress)>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's life: one snapshot after another, until it is told to stop.
    fn work(&self, given: &Receiver<Job>) {
        while let Ok(job) = given.recv() {
            let (version, asked) = match job {
                Job::Due(version) => (version, None),
                Job::Asked(version, tell) => (version, Some(tell)),
                Job::Stop => return,
            };
            let made = self.make(&*version);
            if let Ok(info) = &made {
                let who = if asked.is_some() { Who::Owner } else { Who::Node };
                self.own.told(who, NodeEvent::MadeSnapshot { height: info.id.height }, Stood::default());
            }
            match asked {
                // What went wrong was logged and counted.
                None => self.keep_the_newest(Instant::now()),
                // If nobody waits for it any more, it is made all the same.
                Some(tell) => drop(tell.send(made)),
            }
            *self.making() = None;
            self.metrics.snapshot_progress(None);
            self.rest();
        }
    }

    /// The worker is free.
    fn rest(&self) {
        self.busy.store(false, Ordering::Release);
        self.changed.send_replace(());
    }

    fn make(&self, version: &dyn Version) -> Made {
        let (started, height) = (Instant::now(), version.height());
        // Blocks go first: a snapshot that nobody waits for takes no more than one processor from them.
        let making = Making { background: false, ..making(&self.config) };
        let mut listener = |progress: Progress| {
            *self.making() = Some((height, progress));
            self.metrics.snapshot_progress(Some(progress));
            self.changed.send_replace(());
            match self.stopping.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let seconds = |started: Instant| started.elapsed().as_secs_f64();
        let made = version.snapshot(&self.library, &making, &mut listener);
        match &made {
            Ok(info) => {
                let took = seconds(started);
                self.metrics.snapshot_created(info, took);
                let (chunks, bytes, entries) = (info.chunks, info.bytes, info.totals.count);
                tracing::info!(height = height.0, chunks, bytes, entries, seconds = took, "Created state snapshot");
            }
            Err(LibraryError::Stopped) => tracing::info!(height = height.0, "gave up a snapshot: the node stops"),
            Err(error) => {
                self.metrics.snapshot_failed(reason(error));
                tracing::error!(height = height.0, error = causes(error), "could not create a state snapshot");
            }
        }
        self.show_kept();
        made
    }

    /// Removes the snapshots that newer ones took the place of.
    fn keep_the_newest(&self, now: Instant) {
        self.let_go_of_old_leases(now);
        match self.library.keep(self.config.keep) {
            Ok(removed) => {
                for id in removed {
                    tracing::debug!(height = id.height.0, "removed a snapshot");
                    self.own.told(Who::Node, NodeEvent::RemovedSnapshot { height: id.height }, Stood::default());
                }
            }
            Err(error) => tracing::error!(error = causes(&error), "could not remove old snapshots"),
        }
        self.show_kept();
    }

    fn leases(&self) -> MutexGuard<'_, Vec<Lease>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a snapshot from being removed while somebody fetches it. One that newer ones took the place of gets no lease any
    /// more: whoever is at it has one, and it is not to begin anew when that is at its end.
    fn lease(&self, pin: Pin, now: Instant) {
        let id = pin.info().id;
        let is_newest = self.newest().contains(&id);
        let mut leases = self.leases();
        let before = leases.iter().position(|lease| lease.pin.info().id == id).map(|at| leases.remove(at));
        if before.is_some() || is_newest {
            let replaced = before.and_then(|lease| lease.replaced);
            leases.push(Lease { pin, used: now, replaced });
        }
        if leases.len() > LEASES_MAX {
            leases.remove(0);
        }
    }

    fn let_go_of_old_leases(&self, now: Instant) {
        let newest = self.newest();
        self.leases().retain_mut(|lease| {
            if newest.contains(&lease.pin.info().id) {
                lease.replaced = None;
            } else {
                lease.replaced.get_or_insert(now);
            }
            let passed = |since: Instant| now.saturating_duration_since(since);
            passed(lease.used) < LEASE && lease.replaced.is_none_or(|since| passed(since) < LEASE_MAX)
        });
    }

    /// The snapshots that are kept whoever asks for them.
    fn newest(&self) -> Vec<SnapshotId> {
        let keep = usize::try_from(self.config.keep).unwrap_or(usize::MAX);
        self.library.list().iter().take(keep).map(|info| info.id).collect()
    }

    fn show_kept(&self) {
        let list = self.library.list();
        self.metrics.snapshots_kept(&list);
    }
}

/// Why a snapshot was not made, as a label.
fn reason(error: &LibraryError) -> &'static str {
    match error {
        LibraryError::NoRoom { .. } => "room",
        LibraryError::Io { .. } => "disk",
        LibraryError::Read(_) | LibraryError::Plan(_) => "state",
        LibraryError::Unproven { .. } | LibraryError::Damaged { .. } => "unproven",
        _ => "other",
    }
}

/// A bound on how many read at once, and on how many wait for that.
#[derive(Debug, Default)]
struct Readers {
    /// How many read, and how many wait.
    state: Mutex<(usize, usize)>,
    left: Condvar,
}

/// The right to read, until dropped.
struct Reader<'a>(&'a Readers);

impl Readers {
    fn state(&self) -> MutexGuard<'_, (usize, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the right to read; none if too many wait already.
    fn enter(&self) -> Option<Reader<'_>> {
        let mut state = self.state();
        if state.0 == READERS_MAX {
            if state.1 == WAITING_MAX {
                return None;
            }
            state.1 += 1;
            while state.0 == READERS_MAX {
                state = self.left.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.1 -= 1;
        }
        state.0 += 1;
        Some(Reader(self))
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.state().0 -= 1;
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::{ChainId, Key, Namespace, Root, Value};
    use keelstone_store::files::{Act, Files as _, Interposed, MemoryFiles};
    use keelstone_store::{Options, Store, View};
    use keelstone_sync::library::Listener;
    use keelstone_sync::snapshot::{FORMAT, SnapshotParams};
    use keelstone_tree::{Blake3, Diff, HashKind};
    use std::sync::mpsc::{Sender, channel};

    /// A version whose snapshot begins when the test lets it, and that says when the worker is done with it.
    struct Gated {
        view: View<Blake3>,
        begin: Receiver<()>,
        _done: Sender<()>,
    }

    impl Version for Gated {
        fn height(&self) -> Height {
            self.view.height().unwrap()
        }
        fn snapshot(&self, library: &Library, making: &Making, listener: Listener<'_>) -> Result<Info, LibraryError> {
            self.begin.recv().unwrap();
            let chain_id = ChainId::new("test").unwrap();
            let params = SnapshotParams { chain_id, hasher: HashKind::Blake3, chunk_weight_max: 4096 };
            library.create(&self.view, &params, self.height(), self.view.root(), making, listener)
        }
    }

    /// Whoever reads a file stands still before it while it is shut.
    #[derive(Debug, Clone, Default)]
    struct Door {
        /// Whether it is shut, and how many stand there.
        state: Arc<(Mutex<(bool, usize)>, Condvar)>,
    }

    impl Door {
        fn set(&self, shut: bool) {
            self.state.0.lock().unwrap().0 = shut;
            self.state.1.notify_all();
        }

        fn pass(&self) {
            let (state, changed) = &*self.state;
            let mut state = state.lock().unwrap();
            state.1 += 1;
            changed.notify_all();
            while state.0 {
                state = changed.wait(state).unwrap();
            }
            state.1 -= 1;
        }

        fn wait_for(&self, count: usize) {
            let (state, changed) = &*self.state;
            drop(changed.wait_while(state.lock().unwrap(), |state| state.1 < count).unwrap());
        }

        fn standing(&self) -> usize {
            self.state.0.lock().unwrap().1
        }
    }

    struct Bench {
        store: Store<Blake3>,
        files: MemoryFiles,
        service: Service,
        metrics: Arc<Metrics>,
        /// Where the service keeps its records.
        _home: tempfile::TempDir,
    }

    impl Bench {
        fn new(interval: u64, keep: u64) -> Self {
            Self::behind(&Door::default(), interval, keep)
        }

        fn behind(door: &Door, interval: u64, keep: u64) -> Self {
            let files = MemoryFiles::new();
            let door = door.clone();
            let behind = Interposed::new(Arc::new(files.clone()), move |_, act, go_on| {
                if matches!(act, Act::Read) {
                    door.pass();
                }
                go_on()
            });
            let library = Library::open(Arc::new(behind)).unwrap().0;
            let store = Store::create(Arc::new(MemoryFiles::new()), Options::default()).unwrap();
            let config = config::Snapshots { interval, keep, reserve_percent: 0, ..Config::default().snapshots };
            let metrics = Arc::new(Metrics::new());
            let home = tempfile::tempdir().unwrap();
            let own = OwnLog::of(&Home::new(home.path().to_owned()));
            let service = Service::over(library, config, metrics.clone(), 0, own).unwrap();
            Self { store, files, service, metrics, _home: home }
        }

        /// Commits a block that changes every entry, and tells the service. The version waits for the sender's word; the
        /// receiver hears of nothing more once the worker is done with it, or was not given it.
        fn commit(&self, height: u64) -> (Root, Sender<()>, Receiver<()>) {
            let value = Value::new([height.to_be_bytes(); 30].concat()).unwrap();
            let write = |n: u32| {
                let key = Key::new(n.to_be_bytes().to_vec()).unwrap();
                (Namespace::new("agents").unwrap(), key, Some(value.clone()))
            };
            let diff: Diff = (0..100).map(write).collect();
            let root = self.store.commit(Height(height), diff).unwrap();
            let (begin, begun) = channel();
            let (done, ended) = channel();
            let view = self.store.view();
            self.service.committed(Height(height), || Ok(Box::new(Gated { view, begin: begun, _done: done })));
            (root, begin, ended)
        }

        fn make(&self, height: u64) -> Root {
            let (root, begin, ended) = self.commit(height);
            begin.send(()).unwrap();
            assert!(ended.recv().is_err(), "the worker is done with it");
            root
        }

        fn counts(&self, line: &str) -> bool {
            self.metrics.render().lines().any(|found| found == line)
        }

        fn heights(&self) -> Vec<u64> {
            self.service.inner.library.list().iter().map(|info| info.id.height.0).collect()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.service.stop();
        }
    }

    /// SS-48, SS-49, SS-50: blocks are made while a snapshot is, its own height is forgotten, and what it holds is exactly
    /// that height. The next that is due is skipped and counted, and does not wait.
    #[test]
    fn ss48_ss49_ss50_a_snapshot_is_of_its_height_whatever_happens_meanwhile() {
        let bench = Bench::new(10, 5);
        let (root, begin, ended) = bench.commit(10);
        for height in 11..=25 {
            drop(bench.commit(height));
        }
        bench.store.prune(Height(25)).unwrap();
        bench.store.compact(&mut |_| ()).unwrap();
        assert!(bench.counts("snapshot_skipped_snapshots_total 1"), "{}", bench.metrics.render());
        begin.send(()).unwrap();
        assert!(ended.recv().is_err());
        let [info] = &bench.service.listed()[..] else { panic!("{:?}", bench.service.listed()) };
        assert_eq!((info.id.height, info.root), (Height(10), root));
        assert!(bench.counts("snapshot_created_snapshots_total 1"));
        assert!(bench.counts("snapshot_phase_number 0"));
        // And the one after is made again.
        for height in 26..30 {
            drop(bench.commit(height));
        }
        bench.make(30);
        assert_eq!(bench.heights(), [30, 10]);
    }

    /// One that is asked for waits until the worker is free, is of the height that is asked for then, and takes no other's
    /// place; one that is due meanwhile is skipped.
    #[test]
    fn a_snapshot_that_is_asked_for_comes_after_the_one_that_is_made() {
        let bench = Bench::new(10, 1);
        let service = &bench.service;
        let gated = |view: View<Blake3>| {
            let (begin, begun) = channel();
            let (_done, _) = channel();
            (begin, Box::new(Gated { view, begin: begun, _done }) as Box<dyn Version>)
        };
        let (_, begin, ended) = bench.commit(10);
        let mut changed = service.changed();
        changed.mark_unchanged();
        assert!(service.make_now(|| unreachable!("the worker is not free")).unwrap().is_none());
        begin.send(()).unwrap();
        assert!(ended.recv().is_err());
        drop(bench.commit(11));
        let (begin, mut asked) = loop {
            let (begin, version) = gated(bench.store.view());
            match service.make_now(|| Ok(version)).unwrap() {
                Some(made) => break (begin, made),
                // The end of the one before is told a moment after its version is let go.
                None => std::thread::yield_now(),
            }
        };
        assert!(changed.has_changed().unwrap());
        for height in 12..=20 {
            drop(bench.commit(height));
        }
        assert!(bench.counts("snapshot_skipped_snapshots_total 1"));
        assert!(asked.try_recv().is_err());
        begin.send(()).unwrap();
        let info = asked.blocking_recv().unwrap().unwrap();
        assert_eq!((info.id.height, service.offers(info.id)), (Height(11), Some(true)));
        assert_eq!(bench.heights(), [11, 10], "it takes no other's place");
        // What cannot be had leaves the worker free.
        while service.make_now(|| Err(Failure::not_found("that height is not kept"))).is_ok() {
            std::thread::yield_now();
        }
        // The owner's word counts more than a lease.
        assert!(service.chunk(11, FORMAT, 0).is_ok());
        service.delete(info.id, Who::Owner).unwrap();
        assert_eq!((bench.heights(), service.offers(info.id)), (vec![10], None));
    }

    /// SS-40: hidden at its own height and at the next, offered at the one after.
    #[test]
    fn ss40_a_snapshot_is_offered_two_blocks_later() {
        let bench = Bench::new(1_000, 5);
        for height in 998..1_000 {
            drop(bench.commit(height));
        }
        bench.make(1_000);
        assert_eq!((bench.heights(), bench.service.listed()), (vec![1_000], vec![]));
        drop(bench.commit(1_001));
        assert_eq!(bench.service.listed(), []);
        drop(bench.commit(1_002));
        assert_eq!(bench.service.listed().len(), 1);
        assert_eq!(bench.service.oldest_listed(), Some(Height(1_000)));
    }

    /// S-15, SS-43: unknown heights, formats and indexes are no answer, by however many they are asked for at once.
    #[test]
    fn s15_ss43_what_is_not_here_is_no_answer_and_counted() {
        let bench = Bench::new(1, 5);
        bench.make(1);
        let service = &bench.service;
        let chunks = service.inner.library.list()[0].chunks;
        let (served, refused) = std::thread::scope(|scope| {
            let ask = |thread: u32| {
                let ask = |n: u32| match (thread + n) % 5 {
                    0 => service.chunk(1, FORMAT, n % chunks),
                    1 => service.chunk(1, FORMAT, u32::MAX),
                    2 => service.chunk(2, FORMAT, 0),
                    3 => service.chunk(1, 9_999, 0),
                    _ => service.chunk(u64::MAX, 0, chunks),
                };
                (0..500).filter(|n| ask(*n).is_ok()).count()
            };
            let threads: Vec<_> = (0..20).map(|thread| scope.spawn(move || ask(thread))).collect();
            let served: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            (served, 10_000 - served)
        });
        assert_eq!((served, refused), (2_000, 8_000));
        assert!(bench.counts("snapshot_served_chunks_total 2000"));
        assert!(bench.counts("snapshot_refused_chunks_total{reason=\"unknown\"} 8000"));
    }

    /// S-15: readers are bounded, and so are those who wait; the one beyond is turned away at once.
    #[test]
    fn s15_readers_and_those_who_wait_are_bounded() {
        let readers = Readers::default();
        let held: Vec<_> = (0..READERS_MAX).map(|_| readers.enter().unwrap()).collect();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..WAITING_MAX).map(|_| scope.spawn(|| readers.enter().is_some())).collect();
            while readers.state().1 < WAITING_MAX {
                std::thread::yield_now();
            }
            assert!(readers.enter().is_none());
            drop(held);
            assert!(waiting.into_iter().all(|thread| thread.join().unwrap()));
        });
        assert_eq!(*readers.state(), (0, 0));
    }

    /// SS-46: 50 fetch chunks from a disk that does not answer, 1,000 lists are asked for meanwhile: blocks are committed as ever,
    /// since they take nothing that a reader holds; no more than four read at once; and every answer is right.
    #[test]
    fn ss46_readers_and_lists_hold_up_no_commit() {
        const FETCHING: u32 = 50;
        let door = Door::default();
        let bench = Bench::behind(&door, 1_000, 5);
        bench.make(1_000);
        bench.commit(1_001);
        bench.commit(1_002);
        let listed = bench.service.listed();
        let chunks = listed[0].chunks;
        let expected: Vec<_> = (0..chunks).map(|index| bench.service.chunk(1_000, FORMAT, index).unwrap()).collect();
        door.set(true);
        std::thread::scope(|threads| {
            let fetching: Vec<_> = (0..FETCHING)
                .map(|number| {
                    let service = &bench.service;
                    threads.spawn(move || service.chunk(1_000, FORMAT, number % chunks))
                })
                .collect();
            door.wait_for(READERS_MAX);
            for height in 1_003..1_053 {
                bench.commit(height);
                for _ in 0..20 {
                    assert_eq!(bench.service.listed(), listed);
                }
            }
            assert_eq!(bench.store.height(), Some(Height(1_052)));
            assert_eq!(door.standing(), READERS_MAX, "more wait, and read nothing yet");
            door.set(false);
            for (number, fetched) in (0..FETCHING).zip(fetching) {
                let chunk = fetched.join().unwrap().expect("so few may wait");
                assert!(chunk == expected[usize::try_from(number % chunks).unwrap()], "chunk {}", number % chunks);
            }
        });
    }

    /// SS-41: a chunk that changed on the disk is not served, the snapshot is off the list, and the alarm rises.
    #[test]
    fn ss41_a_damaged_chunk_is_not_served_and_raises_the_alarm() {
        let bench = Bench::new(1, 5);
        bench.make(1);
        let pin = bench.service.inner.library.pin(SnapshotId { height: Height(1), format: FORMAT }).unwrap();
        let name = format!("{}.chunk", pin.index().chunks[1].name);
        drop(pin);
        let file = bench.files.open(&name).unwrap();
        let mut byte = [0];
        file.read_at(7, &mut byte).unwrap();
        file.write_at(7, &[byte[0] ^ 1]).unwrap();
        assert!(bench.service.chunk(1, FORMAT, 0).is_ok());
        assert!(matches!(bench.service.chunk(1, FORMAT, 1), Err(Refusal::Damaged(_))));
        assert!(matches!(bench.service.chunk(1, FORMAT, 0), Err(Refusal::NotFound(_))));
        assert_eq!(bench.heights(), [0; 0]);
        assert!(bench.counts("snapshot_damaged_snapshots_total 1"));
        assert!(bench.counts("snapshot_refused_chunks_total{reason=\"damaged\"} 1"));
    }

    /// What is being fetched stays, though newer ones take its place; and asking for many keeps no more than a few.
    #[test]
    fn a_snapshot_that_is_being_fetched_stays() {
        let bench = Bench::new(1, 1);
        bench.make(1);
        assert!(bench.service.chunk(1, FORMAT, 0).is_ok());
        bench.make(2);
        assert_eq!(bench.heights(), [2, 1]);
        for height in 3..10 {
            assert!(bench.service.chunk(height - 1, FORMAT, 0).is_ok());
            bench.make(height);
        }
        assert_eq!(bench.heights(), [9, 8, 7]);
    }

    /// Whoever asks for a chunk now and then holds an old snapshot, and the blocks above it, for hours and not for ever. The
    /// newest can be fetched for as long as they are the newest.
    #[test]
    fn a_snapshot_that_is_always_asked_for_goes_in_the_end() {
        let bench = Bench::new(1, 1);
        bench.make(10);
        let inner = &bench.service.inner;
        let ask = |height, now| inner.lease(inner.library.pin(id(height)).unwrap(), now);
        let minutes = |from: Instant, count: u32| from + Duration::from_secs(60) * count;
        // For a day it is the newest, and nobody minds.
        let start = Instant::now();
        for at in (0..24 * 60).step_by(5) {
            ask(10, minutes(start, at));
            inner.keep_the_newest(minutes(start, at));
        }
        bench.make(11);
        let replaced = Instant::now();
        let most = u32::try_from(LEASE_MAX.as_secs() / 60).unwrap();
        for at in (0..most).step_by(5) {
            ask(10, minutes(replaced, at));
            inner.keep_the_newest(minutes(replaced, at));
            assert_eq!((bench.heights(), bench.service.oldest_listed()), (vec![11, 10], Some(Height(10))));
        }
        // Also if it is read at that very moment.
        let being_read = inner.library.pin(id(10)).unwrap();
        inner.keep_the_newest(minutes(replaced, most));
        assert_eq!(bench.heights(), [11, 10]);
        inner.lease(being_read, minutes(replaced, most));
        inner.keep_the_newest(minutes(replaced, most));
        assert_eq!((bench.heights(), bench.service.oldest_listed()), (vec![11], Some(Height(11))));
        // What nobody asks for any more goes sooner.
        let last = Instant::now();
        ask(11, last);
        bench.make(12);
        inner.keep_the_newest(minutes(last, 9));
        assert_eq!(bench.heights(), [12, 11]);
        inner.keep_the_newest(minutes(last, 10));
        assert_eq!(bench.heights(), [12]);
    }

    fn id(height: u64) -> SnapshotId {
        SnapshotId { height: Height(height), format: FORMAT }
    }

    /// A worker that is told to stop gives up what it is making, and nothing of it stays.
    #[test]
    fn a_stop_gives_up_what_is_being_made() {
        let bench = Bench::new(1, 5);
        let (_, begin, ended) = bench.commit(1);
        bench.service.inner.stopping.store(true, Ordering::Relaxed);
        begin.send(()).unwrap();
        bench.service.stop();
        assert!(ended.recv().is_err());
        assert_eq!(bench.files.list().unwrap().into_iter().filter(|name| name != "LOCK").count(), 0);
    }
}
