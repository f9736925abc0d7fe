//! `keelstone node`: runs the chain of the home directory until told to stop: makes blocks, has CometBFT make them, or
//! follows a producer elsewhere; and serves the HTTP API.

use super::sync;
use crate::abci::{self, Application, Certifier};
use crate::bundle::{hook_of, label, progress_name};
use crate::check;
use crate::client;
use crate::cometbft::home::check_genesis;
use crate::cometbft::rpc::Rpc;
use crate::config::{Config, EngineKind, Log, LogFormat};
use crate::context::Context;
use crate::control::{Control, Desk};
use crate::descriptors;
use crate::engine::Engine;
use crate::engine::consensus::stands_at;
use crate::engine::versions::{Attests, Word};
use crate::exit::{Exit, Failure};
use crate::follower::{Follower, follow};
use crate::health::Health;
use crate::home::Home;
use crate::http::{Access, Attached, Hub, Limits, Reload, Served, router, serve};
use crate::interrupt::Stop;
use crate::keyfile::PRODUCER;
use crate::mend::Mender;
use crate::metrics::Metrics;
use crate::out::{Out, end, grouped, short};
use crate::own_log::{OwnLog, Who};
use crate::p2p::{self, Ends, Follow, HEARD_MAX, Heard, Network, Over, Seen};
use crate::producer::Producer;
use crate::recovery::{self, Wanted, Wish};
use crate::scrub::{Scrubber, Tell};
use crate::snapshots::Service;
use crate::supervise::{Ended, Supervised, Supervisor, connects_elsewhere, fall_back, first_block_is_gone};
use crate::telling::Telling;
use crate::tls::ServerTls;
use crate::watchdog::{Look, Watchdog, endless};
use clap::Args;
use keelstone_codec::Height;
use keelstone_execution::{Activity, PublicKey, Registry};
use keelstone_ledger::{Committed, Progress, Verdict};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How often figures of the store are taken over into the metrics.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
/// How often it is asked whether state sync will come to its end.
const SYNC_LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a node that follows waits for whoever else has its home open, and how often it looks.
const IN_USE_PATIENCE: Duration = Duration::from_secs(5);
const IN_USE_PAUSE: Duration = Duration::from_millis(50);
/// How long the engine may be silent that is asked how high its peers are: whoever wants to know whether this node is ready waits.
const PEERS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long requests that read the store may hold up a stop.
const BLOCKING_GRACE: Duration = Duration::from_secs(1);

/// Run the chain: make blocks, have CometBFT make them, or follow who does; and serve the HTTP API
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Who makes blocks, over the setting engine.kind: solo, cometbft, or follow for a producer elsewhere
    #[arg(long, value_name = "KIND")]
    engine: Option<String>,
    /// Make snapshots and serve them, as snapshots.enabled=true does
    #[arg(long)]
    enable_snapshots: bool,
    /// Run CometBFT as a process of this node's own, over the setting engine.supervise
    #[arg(long)]
    supervise: bool,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let kind = options.engine.map(|kind| format!("engine.kind={kind}"));
    let settings = kind.into_iter().chain(options.supervise.then(|| "engine.supervise=true".to_owned()));
    let (mut config, _) = context.config_with(settings)?;
    config.snapshots.enabled |= options.enable_snapshots;
    log_to_stderr(&config.log, context.out);
    descriptors::take_all();
    let maker = match config.engine.kind {
        EngineKind::Solo => Maker::Solo(producer(context)?),
        EngineKind::CometBft => Maker::CometBft,
        EngineKind::Follow => Maker::Elsewhere(follow(&context.home.read_genesis()?, &config)?),
    };
    let open = || match maker {
        Maker::Solo(_) => context.open_to_run(&config),
        Maker::Elsewhere(_) => patiently(|| context.open_to_run(&config)),
        Maker::CometBft => context.open_to_join(&config),
    };
    let mut stop = None;
    let engine = match open() {
        Err(failure) if failure.exit == Exit::Integrity && config.recovery.automatic => {
            let stop = stop.insert(Stop::on_signal()?);
            let recovered = recovered(failure, &config, context, stop);
            if stop.is_asked() {
                recovered.unwrap_or_else(|failure| tracing::warn!(%failure, "stopped"));
                return stopped(context);
            }
            recovered?;
            open()?
        }
        opened => opened?,
    };
    let mut warnings: Vec<String> = context.of_another_program().into_iter().collect();
    if let Some(unknown) = context.of_an_unknown_program(&*engine) {
        warnings.push(unknown);
        context.note_program();
    }
    warnings.extend(engine.misfits());
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    // Left by one that was killed: until this one listens nobody is to be led to where that did.
    context.home.withdraw_api();
    if matches!(maker, Maker::CometBft) {
        engine.validators()?; // A chain without any is refused before the engine finds out.
        if config.engine.supervise {
            // A block of another chain's that has the same validators would be run here before the engine finds out.
            let own = supervised(&config, &context.home).home;
            check_genesis(&own, engine.chain_id().as_str(), "this home is")?;
        }
    }
    let rows = config.rows().into_iter().zip(Config::default().rows());
    let changed: Vec<_> =
        rows.filter(|(row, default)| row.value != default.value).map(|(row, _)| (row.key, row.value)).collect();
    if let Err(failure) = OwnLog::of(&context.home).configured(&changed) {
        tracing::error!(%failure, "the node's audit log does not say with what settings this node runs");
    }
    let follows = if let Maker::Elsewhere(follow) = &maker { Some(follow.made_by()) } else { None };
    let node = Node::start(engine, &config, &context.home, maker, context)?;
    // From here on the node hears signals itself.
    if stop.is_some_and(|stop| stop.is_asked()) {
        node.stop(false)?;
        return stopped(context);
    }

    let status = node.engine.status()?;
    let out = context.out;
    out.row("chain", &status.chain_id);
    out.row("height", grouped(status.height));
    out.row("root", short(&status.root));
    out.row("api", node.url());
    let certificate = node.reload.tls.as_ref().map(|tls| tls.fingerprint().to_string());
    if let Some(certificate) = &certificate {
        out.row("certificate", certificate);
    }
    if let Some(abci) = &node.abci {
        out.row("abci", abci);
    }
    let peers = node.peers.as_ref().and_then(|(network, _)| Some((network.own(), network.listening()?)));
    let peers = peers.map(|(own, address)| format!("{own}@{address}"));
    if let Some(peers) = &peers {
        out.row("peers", peers);
    }
    if let Some(made_by) = &follows {
        out.row("follows", made_by.who());
    }
    out.warn(&warnings);
    out.emit(&json!({
        "chain_id": status.chain_id, "height": status.height, "root": status.root,
        "api": node.url(), "certificate": certificate, "abci": node.abci, "p2p": peers,
        "follows": follows, "warnings": warnings,
    }));
    let ended = node.run_until_signal()?;
    match ended {
        None => stopped(context),
        Some((Ended::SyncGivenUp { said }, stood)) => begin_anew(&said, &config, stood, context),
        Some((Ended::TooOften { ends, said }, _)) => {
            let message = format!("CometBFT ended {ends} times in a row; it said last:\n{said}");
            Err(Failure::error(message).hint("its own configuration, keys or data are at fault, or its port is taken"))
        }
        Some((Ended::LeftBehind { missing, kept_from }, _)) => sync_anew(missing, kept_from, context),
        Some((Ended::NotStarted { why }, _)) => {
            Err(Failure::usage(format!("could not start CometBFT: {why}")).hint("engine.cometbft says where it is"))
        }
    }
}

/// What a node ends with that was told to.
#[expect(clippy::unnecessary_wraps, reason = "it is what a command ends with")]
fn stopped(context: &Context<'_>) -> Result<Exit, Failure> {
    context.out.say("stopped");
    Ok(Exit::Ok)
}

/// Has the state again that is too damaged to be opened, and says so. Without success the node does not start, for the
/// reason it had before.
// spec: RECOVER-1
fn recovered(failure: Failure, config: &Config, context: &Context<'_>, stop: &Stop) -> Result<(), Failure> {
    tracing::error!(%failure, "the state is damaged; the node recovers it");
    let registry = &context.application.registry;
    let keys = context.keys();
    // Nobody asks anything yet: what runs are blocks.
    let _watched = context.watch(config, registry.activity())?;
    let progress = &mut |_, _, _| {};
    let (who, stop) = (Who::Node, stop.clone());
    let wish = Wish { wanted: Wanted::Newest, root: None, only: None, keys: &keys, who, stop: stop.clone(), progress };
    let tried = recovery::run(&context.home, config, registry, wish);
    let why = match tried {
        Ok(found) => match found.outcome.recovered() {
            Some((strategy, built)) => {
                let (height, report) = (built.at.height.0, found.path.display().to_string());
                tracing::warn!(strategy = strategy.name(), height, report, "the state was recovered");
                return Ok(());
            }
            None => recovery::failure(&found, &stop).message,
        },
        Err(failure) => failure.message,
    };
    Err(Failure::integrity(format!("{}; {why}", failure.message))
        .hint("the damaged state is kept; see docs/recovery.md"))
}

/// The CometBFT that a node runs itself.
fn supervised(config: &Config, home: &Home) -> Supervised {
    let engine = &config.engine;
    Supervised { cometbft: engine.cometbft.clone().into(), home: home.path().join(&engine.cometbft_home) }
}

/// Lets the engine that gave up state sync fetch every block instead. This process becomes the node that does.
fn begin_anew(said: &str, config: &Config, stood: Option<Height>, context: &Context<'_>) -> Result<Exit, Failure> {
    let diagnosis = format!("state sync failed: {said}");
    if let Some(height) = stood {
        let message = format!("{diagnosis}\nthis node stands at block {height}, so its data is kept");
        return Err(Failure::new(Exit::SyncFailed, message).hint("turn state sync off in CometBFT's config.toml"));
    }
    let engine = supervised(config, &context.home);
    if let Some(gone) = first_block_is_gone(&engine, context.home.read_genesis()?.initial_height) {
        let message = format!("{diagnosis}\nnor can every block be fetched instead: {gone}");
        return Err(Failure::new(Exit::SyncFailed, message).hint(
            "begin trust anew with keelstone statesync configure, or take the state with keelstone sync --light",
        ));
    }
    tracing::warn!(said, "state sync failed; CometBFT and this node begin anew, from the first block");
    fall_back(&engine, &context.home.data())?;
    Err(started_again())
}

/// Takes a later state, for one from which nothing leads to the newest any more. This process becomes the node that goes
/// on from there; or that tries again, if nobody gave a state.
fn sync_anew(missing: Height, kept_from: Height, context: &Context<'_>) -> Result<Exit, Failure> {
    tracing::warn!(%missing, %kept_from, "no peer has the next height any more; a later state is taken");
    let stop = Stop::on_signal()?;
    let synced = patiently(|| sync::run_until(sync::Options::anew(), context, &stop));
    match synced {
        Ok(_) | Err(_) if stop.is_asked() => {
            synced.map_or_else(|failure| tracing::warn!(%failure, "stopped"), drop);
            stopped(context)
        }
        Ok(_) => Err(started_again()),
        Err(failure) if failure.exit == Exit::SyncFailed => {
            tracing::error!(%failure, "no later state was taken; the node goes on with the one it has");
            Err(started_again())
        }
        Err(failure) => Err(failure),
    }
}

/// Waits a while for another process that has the home open: a node that follows opens it again by itself, and a command
/// that looks at it at that moment must not be the end of it.
fn patiently<T>(mut open: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut waited = Duration::ZERO;
    loop {
        match open() {
            Err(failure) if failure.exit == Exit::InUse && waited < IN_USE_PATIENCE => {
                if waited.is_zero() {
                    tracing::warn!(%failure, "waiting for whoever has the home open");
                }
                std::thread::sleep(IN_USE_PAUSE);
                waited += IN_USE_PAUSE;
            }
            done => return done,
        }
    }
}

/// Becomes the same command anew; returns only if that fails.
fn started_again() -> Failure {
    use std::os::unix::process::CommandExt as _;
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Failure::io("this program does not know where it is", &error),
    };
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    Failure::io("could not begin anew", &error)
}

/// The key this node makes blocks with.
fn producer(context: &Context<'_>) -> Result<PublicKey, Failure> {
    let genesis = context.home.read_genesis()?;
    if !genesis.validators.is_empty() {
        let message = "this chain has validators: its blocks are made by CometBFT";
        return Err(Failure::usage(message).hint("keelstone node --engine cometbft"));
    }
    // Its public half alone: blocks name who made them, and nothing is signed.
    let key = context.keys().public(PRODUCER)?;
    // Found out at the first block, this would stop a node that looked sound.
    if !genesis.producers.is_empty() && !genesis.producers.contains(&key) {
        let message = format!("the key {PRODUCER:?} here is {key}, which is no producer of this chain");
        return Err(Failure::usage(message)
            .hint("keelstone keys import producer FILE brings in one that is; keelstone node --engine follow keeps up with its node"));
    }
    Ok(key)
}

/// What is said at a level. The library of the peers says at each start what the node says itself; and what strangers can have it
/// say as often as they like, of each stream above those that a connection may have, would fill a disk. Both are heard where the
/// level is a filter, or lower.
fn directives(level: &str) -> String {
    match level.parse() {
        Ok(LevelFilter::INFO) => format!("{level},libp2p_swarm=warn,{STRANGERS}"),
        Ok(LevelFilter::WARN) => format!("{level},{STRANGERS}"),
        _ => level.to_owned(),
    }
}

/// What says something of each stream that others open.
const STRANGERS: &str = "libp2p_request_response=error,libp2p_yamux=error";

/// Log lines go to standard error, so that standard output stays what was asked for.
fn log_to_stderr(log: &Log, out: &Out) {
    let filter = EnvFilter::try_new(directives(&log.level.0)).unwrap_or_default();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let lines = lines.with_ansi(out.has_colour_on_stderr());
    // A subscriber that is set already is the embedding program's own.
    let _ = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}

/// Who makes blocks.
pub(crate) enum Maker {
    /// This node, with this key.
    Solo(PublicKey),
    /// CometBFT, which connects to this node.
    CometBft,
    /// A producer elsewhere, whom this node follows.
    Elsewhere(Follow),
}

/// What makes blocks while the node runs.
enum Running {
    Solo(Producer),
    /// The server that the engine calls, who compares roots with what it certifies, and the engine if it is this node's
    /// own.
    CometBft(tokio::task::JoinHandle<abci::Calls>, Certifier, Option<Supervisor>),
    /// Who keeps this node up with the one that does.
    Elsewhere(Follower),
}

/// A running node.
pub(crate) struct Node {
    pub(crate) engine: Arc<dyn Engine>,
    /// Where the API listens, and what is read again there.
    reload: Arc<Reload>,
    /// Where another engine connects, if one makes the blocks.
    abci: Option<String>,
    home: Home,
    runtime: Runtime,
    running: Running,
    /// Told if the engine, this node's own, runs no longer although nobody asked for it.
    ended: mpsc::Receiver<Ended>,
    /// One over blocks, one over what is run for questions.
    watchdogs: [Watchdog; 2],
    scrub: Option<Scrubber>,
    health: Arc<Health>,
    hub: Arc<Hub>,
    snapshots: Option<Arc<Service>>,
    checks: Option<Arc<check::Service>>,
    /// The connections to peers, and their task.
    peers: Option<(Network, tokio::task::JoinHandle<()>)>,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
    control: Option<tokio::task::JoinHandle<()>>,
    signals: Signals,
}

/// The signals a node answers. Listened to before the node says that it runs: whoever reads that may stop it at once.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Must be called inside the runtime.
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGINT or SIGTERM; with each SIGHUP reads again what is read while a node runs.
    async fn stop(&mut self, reload: &Arc<Reload>) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hangup.recv() => {
                    let reload = reload.clone();
                    // Beside this: whatever it waits for, a signal to end is heard.
                    tokio::task::spawn_blocking(move || match reload.all() {
                        Ok(reloaded) => tracing::info!(?reloaded, "SIGHUP: tokens and certificate are read again"),
                        Err(failure) => tracing::error!(%failure, "SIGHUP: what was there before holds on"),
                    });
                }
            }
        }
    }
}

impl Node {
    /// Where the API is, as people write it.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.reload.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.reload.address)
    }

    /// Starts making blocks, or waiting for the engine that does, and serving the API.
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        config: &Config,
        home: &Home,
        maker: Maker,
        context: &Context<'_>,
    ) -> Result<Self, Failure> {
        let (runtime, signals) = threads()?;
        let (listener, address) = listen(&runtime, config.http.listen)?;
        let metrics = Arc::new(Metrics::new());
        let (hub, health) = (Hub::new(metrics.clone()), Arc::new(Health::default()));
        let starting = Starting { engine, config, home, context, metrics, hub, health, runtime };

        let limits = Arc::new(Limits::new(&config.http, address));
        let (access, reload) = starting.access(address)?;
        starting.observe();
        // Before the first block: the one that reaches the interval may be the next.
        let snapshots = starting.snapshots()?;
        let mut peering = starting.peers(&maker)?;
        let watchdogs = starting.watchdogs()?;
        let (mender, scrub) = starting.upkeep(&peering)?;
        let (stop, stopped) = watch::channel(false);
        let (tell, ended) = mpsc::channel(1);
        let mut attached = None;
        let running = match maker {
            Maker::Solo(key) => starting.make_blocks(key)?,
            Maker::Elsewhere(follow) => starting.follow(follow, &mut peering, tell)?,
            Maker::CometBft => {
                let (running, engine) = starting.wait_for_engine(snapshots.as_ref(), tell, &stopped)?;
                attached = Some(engine);
                running
            }
        };
        let abci = attached.as_ref().map(|engine| engine.address.clone());
        let served = Served {
            chain: starting.engine.clone(),
            application: Arc::new(context.application.clone()),
            hub: starting.hub.clone(),
            metrics: starting.metrics.clone(),
            limits: limits.clone(),
            access,
            reload: reload.clone(),
            health: starting.health.clone(),
            snapshots: snapshots.clone(),
            following: peering.seen,
            attached,
            behind_max: config.p2p.follow_behind_max,
        };
        let Starting { engine, metrics, runtime, .. } = &starting;
        runtime.spawn(take_figures(engine.clone(), metrics.clone()));
        let checks = starting.checks(mender)?;
        let control = starting.control(snapshots.as_ref(), checks.as_ref(), &stopped);
        let (tls, metrics) = (reload.tls.clone(), metrics.clone());
        let server = runtime.spawn(serve(listener, router(served), limits, tls, metrics, stopped));
        reload.announce()?;
        let Starting { engine, runtime, health, hub, .. } = starting;
        Ok(Self {
            engine,
            reload,
            abci,
            home: home.clone(),
            runtime,
            running,
            ended,
            watchdogs,
            scrub,
            health,
            hub,
            snapshots,
            checks,
            peers: peering.network,
            stop,
            server,
            control,
            signals,
        })
    }

    /// Runs until SIGINT or SIGTERM, then stops; or until its own engine runs no longer, and says why and at which block the
    /// chain stood. With SIGHUP tokens and certificate are read again.
    pub(crate) fn run_until_signal(mut self) -> Result<Option<(Ended, Option<Height>)>, Failure> {
        let ended = self.runtime.block_on(async {
            tokio::select! {
                () = self.signals.stop(&self.reload) => None,
                ended = self.ended.recv(), if !self.ended.is_closed() => ended,
            }
        });
        // While the state is the one it ended with: a stop changes nothing about that.
        let ended = ended.map(|ended| (ended, stands_at(&*self.engine)));
        // The data of one that begins anew is removed: nothing may be at it any more.
        self.stop(ended.is_some()).map(|()| ended)
    }

    /// Stops within seconds: no new requests, the block being made becomes durable, streams end. `all_of_it` waits for a
    /// call of the engine's that takes longer, such as the last chunk of a snapshot.
    fn stop(self, all_of_it: bool) -> Result<(), Failure> {
        self.health.stopping.store(true, Ordering::Relaxed);
        self.home.withdraw_api();
        // Nobody listens once the receivers are gone, which is what is wanted.
        let _ = self.stop.send(true);
        self.hub.close();
        match self.running {
            Running::Solo(producer) => producer.stop(),
            Running::Elsewhere(follower) => follower.stop(),
            Running::CometBft(server, certifier, own) => {
                // The engine first: one whose application goes first complains.
                if let Some(own) = own {
                    own.stop();
                }
                self.runtime.block_on(async {
                    // A panic of the task was reported when it happened.
                    if let Ok(calls) = server.await
                        && all_of_it
                    {
                        calls.ended().await;
                    }
                });
                certifier.stop();
                if let Err(failure) = self.engine.write_certificates() {
                    tracing::warn!(%failure, "certificates of the last blocks were not written; the next start asks for them");
                }
            }
        }
        if let Some((network, task)) = self.peers {
            self.runtime.block_on(async {
                network.stop().await;
                // As with the server of the engine.
                drop(task.await);
            });
        }
        if let Some(snapshots) = &self.snapshots {
            snapshots.stop();
        }
        if let Some(checks) = &self.checks {
            checks.stop();
        }
        if let Some(scrub) = self.scrub {
            scrub.stop();
        }
        if let Some(control) = self.control {
            // As with the server of the engine.
            drop(self.runtime.block_on(control));
        }
        // After whoever makes blocks: a function that never ends would hold up the stop for ever.
        self.watchdogs.into_iter().for_each(Watchdog::stop);
        // The server ends by itself within its own grace.
        let _ = self.runtime.block_on(self.server);
        self.runtime.shutdown_timeout(BLOCKING_GRACE);
        match self.health.failed.load(Ordering::Relaxed) {
            true => Err(Failure::error("a block could not be committed; the log says why")),
            false => self.engine.flush(),
        }
    }
}

/// The threads of a node, and the signals that it answers from here on.
fn threads() -> Result<(Runtime, Signals), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("could not start the node's threads", &error))?;
    let signals = runtime
        .block_on(async { Signals::listen() })
        .map_err(|error| Failure::io("could not listen to signals", &error))?;
    Ok((runtime, signals))
}

/// Where the API listens.
fn listen(runtime: &Runtime, listen: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = runtime
        .block_on(TcpListener::bind(listen))
        .map_err(|error| Failure::io(format_args!("could not listen on {listen}"), &error))?;
    let address = listener.local_addr().map_err(|error| Failure::io("could not listen", &error))?;
    Ok((listener, address))
}

/// A node that starts: what each of its parts is given.
struct Starting<'a> {
    engine: Arc<dyn Engine>,
    config: &'a Config,
    home: &'a Home,
    context: &'a Context<'a>,
    metrics: Arc<Metrics>,
    hub: Arc<Hub>,
    health: Arc<Health>,
    /// The last to go, where a later part does not start.
    runtime: Runtime,
}

/// What a node has of its peers.
struct Peering {
    /// The connections, and their task.
    network: Option<(Network, tokio::task::JoinHandle<()>)>,
    /// What is announced to them, until somebody has it who says what that is.
    word: Option<watch::Sender<Word>>,
    /// What they announce.
    heard: Option<mpsc::Receiver<Heard>>,
    /// What is seen of the producer that is followed.
    seen: Option<Seen>,
}

impl Starting<'_> {
    /// Who may ask what, and what of that is read again while the node runs.
    fn access(&self, address: SocketAddr) -> Result<(Arc<Access>, Arc<Reload>), Failure> {
        let http = &self.config.http;
        let tls = ServerTls::open(self.home, http)?.map(Arc::new);
        let access = Arc::new(Access::open(self.home, http, self.metrics.clone())?);
        if (http.write_token || http.read_token) && tls.is_none() && !address.ip().is_loopback() {
            let taken = http.plain_tokens;
            tracing::warn!(%address, taken, "tokens over plain HTTP can be read on the way: http.tls_certificate");
        }
        let reload = Reload { home: self.home.clone(), address, access: access.clone(), tls };
        Ok((access, Arc::new(reload)))
    }

    /// Tells streams and metrics of every block.
    fn observe(&self) {
        let registry = self.context.application.registry.clone();
        observe(&*self.engine, self.hub.clone(), self.metrics.clone(), registry);
    }

    /// The snapshots that are made of it, if any are.
    fn snapshots(&self) -> Result<Option<Arc<Service>>, Failure> {
        match self.config.snapshots.enabled {
            true => Ok(Some(Service::start(&self.engine, self.config, self.home, self.metrics.clone())?)),
            false => Ok(None),
        }
    }

    /// The peers: those who are answered, and those who are followed.
    fn peers(&self, maker: &Maker) -> Result<Peering, Failure> {
        let (config, context) = (self.config, self.context);
        let (carry, carried) = watch::channel(None);
        let (tell_heard, heard) = mpsc::channel(HEARD_MAX);
        let seen = match maker {
            Maker::Elsewhere(follow) => Some(Seen::new(follow)),
            Maker::Solo(_) | Maker::CometBft => None,
        };
        let mut peering = Peering { network: None, word: Some(carry), heard: Some(heard), seen };
        if !config.p2p.enabled && peering.seen.is_none() {
            return Ok(peering);
        }
        let engine = &self.engine;
        let mut setup = p2p::setup(&config.p2p, engine.chain_id(), self.home, &context.keys(), self.metrics.clone())?;
        // Who only follows needs nobody to come in.
        setup.listen = setup.listen.filter(|_| config.p2p.enabled);
        let attests = match maker {
            Maker::Solo(_) => Attests::Key(Arc::new(context.keys().load(PRODUCER)?)),
            Maker::CometBft => Attests::Nobody,
            Maker::Elsewhere(_) => {
                setup.heard = Some(tell_heard);
                Attests::Carried(carried.clone())
            }
        };
        if let Attests::Key(key) = &attests {
            let (made, tip) = watch::channel(Height::default());
            engine.on_commit(Box::new(move |committed| {
                made.send_replace(committed.block.height);
            }));
            let word = peering.word.take().expect("nobody else signs");
            self.runtime.spawn(p2p::sign_each(engine.clone(), key.clone(), tip, word));
        }
        let answers = engine.clone().answers(p2p::server_limits(&config.p2p), attests);
        let (network, task) = Network::start(self.runtime.handle(), setup, Some(answers))?;
        self.runtime.spawn(p2p::announce(network.clone(), carried));
        peering.network = Some((network, task));
        Ok(peering)
    }

    /// One over blocks, one over what is run for questions.
    fn watchdogs(&self) -> Result<[Watchdog; 2], Failure> {
        let questions = self.context.application.registry.activity();
        watch(&*self.engine, self.config, self.home, self.metrics.clone(), self.context.out.is_json())
            .and_then(|blocks| Ok([blocks, watch_questions(questions, self.config, self.health.clone())?]))
            .map_err(|error| Failure::io("could not start the watchdog", &error))
    }

    /// Who mends what is damaged, and who looks for that all the time.
    fn upkeep(&self, peering: &Peering) -> Result<(Arc<Mender>, Option<Scrubber>), Failure> {
        let (metrics, health) = (self.metrics.clone(), self.health.clone());
        let network = peering.network.as_ref().map(|(network, _)| network.clone());
        let mender = Mender::new(&self.engine, &self.config.check, self.home, network, metrics.clone(), health.clone());
        let mender = Arc::new(mender);
        let tell = Tell { metrics, hub: self.hub.clone(), health, mender: mender.clone() };
        Ok((mender, Scrubber::start(&self.engine, &self.config.store, tell)?))
    }

    /// Makes the blocks here.
    fn make_blocks(&self, key: PublicKey) -> Result<Running, Failure> {
        let (failing, gauge) = (self.health.clone(), self.metrics.clone());
        let (blocks, metrics) = (&self.config.blocks, self.metrics.clone());
        let producer = Producer::start(self.engine.clone(), key, blocks, metrics, move || {
            failing.failed.store(true, Ordering::Relaxed);
            gauge.store_failed.set(1);
        });
        Ok(Running::Solo(producer.map_err(|error| Failure::io("could not start making blocks", &error))?))
    }

    /// Follows who makes the blocks. `tell` hears that a later state has to be taken.
    fn follow(&self, follow: Follow, peering: &mut Peering, tell: mpsc::Sender<Ended>) -> Result<Running, Failure> {
        self.engine.refuse(follow.made_by());
        let (network, _) = peering.network.as_ref().expect("whoever follows has peers");
        let (word, seen) = peering.word.take().zip(peering.seen.clone()).expect("nobody else follows");
        let heard = peering.heard.take().expect("nobody else listens");
        let metrics = self.metrics.clone();
        let ends = |stop| Ends { heard, stop, word, seen, metrics };
        let (failing, gauge) = (self.health.clone(), self.metrics.clone());
        let (home, json) = (self.home.clone(), self.context.out.is_json());
        let over = move |over| match over {
            Over::Done => {}
            // Full or gone means: the node ends already.
            Over::Gap(gap) => {
                let left_behind = Ended::LeftBehind { missing: gap.missing, kept_from: gap.kept_from };
                drop(tell.try_send(left_behind));
            }
            Over::Failed(failure) => {
                tracing::error!(%failure, "a block could not be taken in; restart the node");
                failing.failed.store(true, Ordering::Relaxed);
                gauge.store_failed.set(1);
            }
            Over::Diverged(failure) => {
                tracing::error!(%failure, "this node's state is not the chain's; the node halts");
                end(&Out::new(json), &failure, || home.withdraw_api());
            }
        };
        let (runtime, gap_ends) = (self.runtime.handle(), self.config.p2p.follow_resync);
        let (engine, network) = (self.engine.clone(), network.clone());
        Ok(Running::Elsewhere(Follower::start(runtime, engine, network, follow, ends, gap_ends, over)?))
    }

    /// Listens for the engine that makes the blocks, and starts it if it is this node's own. `tell` hears of the end of that one.
    fn wait_for_engine(
        &self,
        snapshots: Option<&Arc<Service>>,
        tell: mpsc::Sender<Ended>,
        stopped: &watch::Receiver<bool>,
    ) -> Result<(Running, Attached), Failure> {
        let Self { engine, config, home, context, metrics, health, runtime, .. } = self;
        // Before the request that it came with is given up: who sent it is to hear that it was the engine.
        let patience = Duration::from_millis(config.http.request_timeout_ms) * 5 / 6;
        let rpc = Rpc::at(&config.engine.rpc).timeout(patience.min(client::TIMEOUT));
        engine.forward_to(Box::new(move |transaction| Ok(rpc.broadcast(transaction)?)));
        let socket = runtime.block_on(abci::Server::bind(&config.engine.abci, home))?;
        let address = socket.address().to_owned();
        if config.engine.supervise
            && let Some(proxy_app) = connects_elsewhere(&supervised(config, home), &address)
        {
            tracing::warn!(
                proxy_app,
                address,
                "CometBFT's config.toml has it look for its application elsewhere than this node listens"
            );
        }
        let application = Arc::new(Application::new(
            engine.clone(),
            metrics.clone(),
            health.clone(),
            snapshots.cloned(),
            config.engine.retain_blocks,
        ));
        let rpc = Rpc::at(&config.engine.rpc).timeout(PEERS_TIMEOUT);
        let attached = Attached { application: application.clone(), rpc, address };
        let own = config.engine.supervise.then(|| tell.clone());
        runtime.spawn(watch_sync(application.clone(), config, home, own, context.out.is_json()));
        let certifier = certify(engine, config, home, metrics.clone(), context.out.is_json())
            .map_err(|error| Failure::io("could not start comparing roots", &error))?;
        let server = runtime.spawn(socket.serve(application, stopped.clone()));
        // Full or gone means: the node ends already.
        let told = move |ended| drop(tell.try_send(ended));
        let chain = engine.clone();
        let joins = move || stands_at(&*chain).is_none();
        let own = config.engine.supervise.then(|| Supervisor::start(supervised(config, home), joins, told));
        Ok((Running::CometBft(server, certifier, own.transpose()?), attached))
    }

    /// Who compares the state with its peers' now and then, if anybody does.
    fn checks(&self, mender: Arc<Mender>) -> Result<Option<Arc<check::Service>>, Failure> {
        if !self.config.check.enabled {
            return Ok(None);
        }
        let (engine, metrics, health) = (self.engine.clone(), self.metrics.clone(), self.health.clone());
        let begun = check::Service::start(engine, &self.config.check, self.home, metrics, health, mender)?;
        Ok(Some(Arc::new(begun)))
    }

    /// What commands of the owner's ask; nothing where there can be no socket.
    fn control(
        &self,
        snapshots: Option<&Arc<Service>>,
        checks: Option<&Arc<check::Service>>,
        stopped: &watch::Receiver<bool>,
    ) -> Option<tokio::task::JoinHandle<()>> {
        let desk = Arc::new(Desk::new(
            self.engine.clone(),
            self.metrics.clone(),
            self.home.clone(),
            self.config.snapshots.clone(),
            snapshots.cloned(),
            checks.cloned(),
        ));
        match self.runtime.block_on(async { Control::bind(self.home) }) {
            Ok(control) => Some(self.runtime.spawn(control.serve(desk, stopped.clone()))),
            Err(error) => {
                tracing::warn!(%error, "there is no control socket: commands that change snapshots need this node stopped");
                None
            }
        }
    }
}

/// Ends the process when one operation of a block runs for too long.
fn watch(
    engine: &dyn Engine,
    config: &Config,
    home: &Home,
    metrics: Arc<Metrics>,
    json: bool,
) -> std::io::Result<Watchdog> {
    let limit = Duration::from_millis(config.execution.watchdog_ms);
    let home = home.clone();
    Watchdog::start(engine.activity(), limit, move |Look { ran, over }| {
        let ran_ms = ran.as_millis();
        metrics.execution_running_ms.set(i64::try_from(ran_ms).unwrap_or(i64::MAX));
        if let Some(function) = over {
            tracing::error!(function, ran_ms, "a function does not end; the node halts");
            end(&Out::new(json), &endless("node", function, ran), || home.withdraw_api());
        }
    })
}

/// Notes when a function that is run for a question, such as a witness, runs for too long. Whoever asks signs nothing and pays
/// nothing, so the node goes on: it has one thread less, and runs nothing more for a question meanwhile.
// spec: EXEC-13
fn watch_questions(questions: &Activity, config: &Config, health: Arc<Health>) -> std::io::Result<Watchdog> {
    let limit = Duration::from_millis(config.execution.watchdog_ms);
    Watchdog::start(questions.clone(), limit, move |Look { ran, over }| {
        if health.note_endless(over)
            && let Some(function) = over
        {
            let ran_ms = ran.as_millis();
            tracing::error!(
                function,
                ran_ms,
                "a function does not end that somebody asked about; nothing more is run for a question"
            );
        }
    })
}

/// Ends the process when the engine certifies another root than this node has: its state is not the chain's.
// spec: LEDGER-7
fn certify(
    engine: &Arc<dyn Engine>,
    config: &Config,
    home: &Home,
    metrics: Arc<Metrics>,
    json: bool,
) -> std::io::Result<Certifier> {
    let (rpc, home) = (Rpc::of_engine(&config.engine.rpc), home.clone());
    Certifier::start(engine, rpc, metrics, move |differs| {
        tracing::error!(%differs, "this node's state is not the chain's; the node halts");
        let hint = "keep the data for whoever looks into it, and join anew in an empty home";
        end(&Out::new(json), &Failure::integrity(differs.to_string()).hint(hint), || home.withdraw_api());
    })
}

/// Ends the process when state sync will not come to its end: CometBFT would idle at height 0 for ever and only its own
/// log would say so. If the engine is this node's own, tells it to begin anew instead.
fn watch_sync(
    application: Arc<Application>,
    config: &Config,
    home: &Home,
    own: Option<mpsc::Sender<Ended>>,
    json: bool,
) -> impl Future<Output = ()> + Send + 'static {
    let patience = Duration::from_millis(config.engine.statesync_patience_ms);
    let (rpc, home) = (Rpc::of_engine(&config.engine.rpc), home.clone());
    async move {
        loop {
            tokio::time::sleep(SYNC_LOOK_EVERY).await;
            let (application, rpc) = (application.clone(), rpc.clone());
            let look = move || application.gave_up(patience, || rpc.height().ok());
            let Ok(Some(why)) = tokio::task::spawn_blocking(look).await else { continue };
            if let Some(own) = own {
                // Full or gone means: the node ends already.
                let _ = own.try_send(Ended::SyncGivenUp { said: why });
                return;
            }
            tracing::error!(why, "state sync failed; the node ends");
            let hint =
                "docs/cometbft.md says what to look at; to begin again, empty the engine's data and this home's data";
            end(&Out::new(json), &Failure::new(Exit::SyncFailed, why).hint(hint), || home.withdraw_api());
        }
    }
}

/// Tells streams and metrics of every block.
fn observe(engine: &dyn Engine, hub: Arc<Hub>, metrics: Arc<Metrics>, registry: Registry) {
    let status = engine.status();
    metrics.height.set(status.map_or(0, |status| i64::try_from(status.height).unwrap_or(i64::MAX)));
    engine.on_commit(Box::new(move |committed: &Arc<Committed>| {
        let height = committed.block.height;
        metrics.height.set(i64::try_from(height.0).unwrap_or(i64::MAX));
        for receipt in &committed.receipts {
            // A block of an engine's may hold what is refused, which ran nothing.
            metrics.transaction(match &receipt.verdict {
                Verdict::Refused { .. } => "refused",
                _ if receipt.succeeded() => "succeeded",
                _ => "failed",
            });
        }
        tracing::debug!(%height, receipts = committed.receipts.len(), root = %committed.root, "block");
        for continuation in &committed.continuations {
            let Some((when, function)) = hook_of(continuation) else {
                metrics.continuation(progress_name(&continuation.progress));
                continue;
            };
            let failure = match &continuation.progress {
                Progress::Stopped(failure) => Some(failure),
                _ => None,
            };
            metrics.hook(failure.is_none());
            if let Some(failure) = failure {
                let (function, reason) = (label(&registry, &function), &*failure.reason);
                tracing::warn!(%height, hook = when.name(), function, reason, "what the chain does by itself failed");
            }
        }
        let telling = Telling {
            registry: &registry,
            height,
            time: committed.block.time,
            root: Some(committed.root),
            is_kept: committed.is_kept,
            record: committed.record.as_ref(),
            receipts: &committed.receipts,
            continuations: &committed.continuations,
        };
        hub.tell(Some(height), || telling.events(0, usize::MAX));
    }));
}

/// Takes figures of store and pool over into the metrics, for as long as the node runs.
async fn take_figures(engine: Arc<dyn Engine>, metrics: Arc<Metrics>) {
    let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    loop {
        let asked = engine.clone();
        let figures = tokio::task::spawn_blocking(move || (asked.stats(), asked.status())).await;
        if let Ok((stats, Ok(status))) = figures {
            metrics.store_entries.set(gauge(stats.entries));
            metrics.store_disk_bytes.set(gauge(stats.disk_bytes));
            metrics.store_garbage_bytes.set(gauge(stats.garbage_bytes));
            metrics.store_view_bytes.set(gauge(stats.view_bytes));
            metrics.store_flush_waits.set(gauge(stats.flush_waits));
            metrics.store_compaction_waits.set(gauge(stats.compaction_waits));
            metrics.waiting.set(gauge(status.waiting));
            metrics.ready.set(gauge(status.ready));
        }
        tokio::time::sleep(FIGURES_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::{Level, enabled};

    /// Y-02: what strangers have the libraries of the peers say, as often as they like, fills no disk.
    #[test]
    fn y02_streams_above_the_limit_are_no_log_lines() {
        for (level, is_heard) in [("info", false), ("WARN", false), ("debug", true), ("info,libp2p_yamux=warn", true)] {
            let filter = EnvFilter::try_new(directives(level)).expect("valid");
            let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::sink).finish();
            let found = tracing::subscriber::with_default(lines, || {
                [
                    enabled!(target: "libp2p_yamux", Level::WARN),
                    enabled!(target: "libp2p_request_response::handler", Level::WARN),
                    enabled!(target: "keelstone_node::p2p", Level::WARN),
                ]
            });
            assert_eq!(found, [is_heard, is_heard, true], "{level}");
        }
    }
}
