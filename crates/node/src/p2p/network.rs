//! The connections to peers: a task that dials those of the configuration, takes in others, carries requests both ways, and
//! keeps to its limits.
//!
//! What it knows of a peer is its id and whether it is connected; what frames hold is looked at by whoever asked, and of
//! requests by the thread that answers ([`super::serving`]).

use super::bans::write_down;
use super::codec::{Frames, PROTOCOL};
use super::gate::{Gate, machine};
use super::nearby::{Lookout, Nearby};
use super::serving::Serving;
use super::shares::Shares;
use super::ways::Ways;
use super::{AskError, Bans, ConnectionLimits, Heard, NodeId, PeerAddress, Transport, answers};
use crate::engine::versions::Answers;
use crate::exit::Failure;
use crate::metrics::Metrics;
use futures_util::StreamExt as _;
use keelstone_codec::{Decode as _, Encode as _};
use keelstone_ledger::SecretKey;
use keelstone_sync::peers::{Frame, PeerId, Request, Response};
use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
#[cfg(feature = "quic")]
use libp2p::quic;
use libp2p::request_response::{
    self, InboundFailure, InboundRequestId, Message, OutboundFailure, OutboundRequestId, ProtocolSupport,
    ResponseChannel,
};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, ListenError, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder, identify, noise, tcp, yamux};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// How long a connection may take until both ends know each other, unless told otherwise.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept on which nobody asks anything.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a connection over QUIC is kept on which nothing comes at all.
#[cfg(feature = "quic")]
const QUIC_SILENCE_MS_MAX: u32 = 30_000;
/// Bytes that may come on one stream of QUIC and are not read yet, and on all of a connection: with a hundred milliseconds from one
/// end to the other and back, 20 and 40 MB/s. As many connections as others may open (64) hold 256 MiB at the worst.
#[cfg(feature = "quic")]
const QUIC_WINDOWS: (u32, u32) = (2 << 20, 4 << 20);
/// Requests of one connection that are answered at once.
const CONNECTION_REQUESTS_MAX: usize = 16;
/// In how many milliseconds to come back if they are too many.
const COME_BACK_MS: u32 = 500;
/// Announcements that a peer may make in a second. An honest one makes half as many.
pub(super) const ANNOUNCEMENTS_MAX: u32 = 200;
/// In how many milliseconds to come back above that.
const ANNOUNCE_AGAIN_MS: u32 = 1_000;
/// So many requests that are none, and a peer is banned.
const BAD_REQUESTS_MAX: u32 = 3;
/// What may wait for the task.
const COMMANDS_MAX: usize = 1024;
/// How often it is looked who has to be dialled.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long until somebody who could not be reached is dialled again, at first and at most.
const DIAL_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a peer that went is known, so that coming back brings no new budget.
const KNOWN_FOR: Duration = Duration::from_secs(120);
/// Whoever has so many peers connected looks for no more of them nearby.
pub(super) const NEARBY_ENOUGH: usize = 16;
/// Peers that are known at once; above it those that went first are forgotten.
pub(super) const KNOWN_MAX: usize = 1024;

/// What a network begins with.
pub(crate) struct Setup {
    /// The key by which others know this node.
    pub(crate) key: SecretKey,
    /// Where to listen; none to take in nobody.
    pub(crate) listen: Option<SocketAddr>,
    /// Whether to listen for QUIC, too, where it listens for TCP.
    pub(crate) quic: bool,
    /// Whom to dial.
    pub(crate) peers: Vec<PeerAddress>,
    /// Whom to look for on the same network; none to look for nobody.
    pub(crate) nearby: Option<Nearby>,
    pub(crate) limits: ConnectionLimits,
    /// Bytes of answers in a second for all peers of one address.
    pub(crate) address_bytes_per_second: u64,
    /// Milliseconds of work in a second for them.
    pub(crate) address_work_ms_per_second: u64,
    /// How long a request may take.
    pub(crate) request_timeout: Duration,
    /// How long a connection may take until both ends know each other.
    pub(crate) handshake_timeout: Duration,
    pub(crate) bans: Bans,
    /// Where announcements go; none if nobody follows.
    pub(crate) heard: Option<mpsc::Sender<Heard>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Everybody who is connected, and what the machines call each.
pub(crate) type Everybody = Arc<BTreeMap<NodeId, PeerId>>;

/// Connections to peers. Clones are of the same.
#[derive(Clone)]
pub(crate) struct Network {
    own: NodeId,
    listening: Option<SocketAddr>,
    dialled: usize,
    commands: mpsc::Sender<Command>,
    everybody: watch::Receiver<Everybody>,
    next_id: Arc<AtomicU64>,
    banned_all: Arc<AtomicBool>,
}

enum Command {
    Ask {
        peer: NodeId,
        frame: Vec<u8>,
        answer: oneshot::Sender<Result<Vec<u8>, AskError>>,
    },
    Ban {
        peer: NodeId,
        why: String,
    },
    Blame {
        peer: NodeId,
        what: String,
    },
    /// Where a peer of the configuration is, by its place there.
    Found {
        place: usize,
        addresses: Vec<SocketAddr>,
    },
    /// A peer that said on the same network that it is there.
    Nearby {
        peer: NodeId,
        address: SocketAddr,
    },
    Stop,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    // The gate comes first: whom it refuses the others never see.
    gate: Gate,
    frames: request_response::Behaviour<Frames>,
    identify: identify::Behaviour,
}

impl Network {
    /// Listens, dials, and answers if there is somebody who does. The task ends when told to stop.
    pub(crate) fn start(
        runtime: &Handle,
        setup: Setup,
        answering: Option<Box<dyn Answers>>,
    ) -> Result<(Self, JoinHandle<()>), Failure> {
        let _inside = runtime.enter();
        let Setup { key, listen, quic, peers, nearby, limits, .. } = setup;
        let Setup { address_bytes_per_second, address_work_ms_per_second, .. } = setup;
        let Setup { request_timeout, handshake_timeout, bans, heard, metrics, .. } = setup;
        if cfg!(not(feature = "quic")) {
            without_quic(quic, &peers)?;
        }
        let pair = libp2p::identity::Keypair::ed25519_from_bytes(key.seed())
            .map_err(|error| Failure::io("the key of this node is none", &error))?;
        let own = pair.public().to_peer_id();
        let bans = Arc::new(Mutex::new(bans));
        let behaviour = |pair: &libp2p::identity::Keypair| {
            let agent = format!("keelstone/{}", env!("CARGO_PKG_VERSION"));
            // spec: PEER-13. Where a peer says that it is, nobody is dialled.
            let identify = identify::Config::new("/keelstone/1".to_owned(), pair.public())
                .with_agent_version(agent)
                .with_cache_size(0);
            let frames = request_response::Config::default()
                .with_request_timeout(request_timeout)
                .with_max_concurrent_streams(CONNECTION_REQUESTS_MAX);
            Behaviour {
                gate: Gate::new(limits, bans.clone()),
                frames: request_response::Behaviour::with_codec(Frames, [(PROTOCOL, ProtocolSupport::Full)], frames),
                identify: identify::Behaviour::new(identify),
            }
        };
        let builder = SwarmBuilder::with_existing_identity(pair)
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .map_err(|error| Failure::io("no encryption for connections", &error))?;
        #[cfg(feature = "quic")]
        let builder = builder.with_quic_config(|config| quic_config(config, handshake_timeout));
        let mut swarm = builder
            .with_behaviour(behaviour)
            .expect("making a behaviour cannot fail")
            .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
            .with_connection_timeout(handshake_timeout)
            .build();
        let listening = match listen {
            None => None,
            Some(address) => {
                let found = runtime.block_on(bind(&mut swarm, address, Transport::Tcp))?;
                if quic {
                    runtime.block_on(bind(&mut swarm, found, Transport::Quic))?;
                }
                Some(found)
            }
        };
        let serving = answering.map(Serving::start).transpose();
        let serving = serving.map_err(|error| Failure::io("could not start answering peers", &error))?;
        let (commands, incoming) = mpsc::channel(COMMANDS_MAX);
        let (answered, answered_frames) = mpsc::unbounded_channel();
        let banned_all = Arc::new(AtomicBool::new(false));
        // Of those nearby nobody knows how many there are, nor who else may come in.
        let takes_others = nearby.is_some() || listening.is_some();
        let dialled_count = if nearby.is_some() { usize::MAX } else { peers.len() };
        if let Some(nearby) = nearby {
            let lookout = Lookout::open(nearby, own, listening.map(|address| address.port()))?;
            let (commands, ended) = (commands.clone(), commands.clone());
            // What finds no room comes again with the next question.
            let looking = lookout.run(move |peer, address| {
                let _ = commands.try_send(Command::Nearby { peer, address: address.into() });
            });
            runtime.spawn(async move {
                tokio::select! {
                    () = looking => {}
                    () = ended.closed() => {}
                }
            });
        }
        let (tell, everybody) = watch::channel(Everybody::default());
        let (banned, told) = watch::channel(());
        let writing = runtime.spawn(write_down(bans.clone(), told));
        let now = Instant::now();
        let dialled = peers.into_iter().map(|address| Dialled::new(address, now)).collect();
        let task = Task {
            swarm,
            serving,
            bans,
            banned,
            writing,
            heard,
            metrics,
            commands: commands.clone(),
            answered,
            tell,
            dialled,
            takes_others,
            banned_all: banned_all.clone(),
            meets_itself: false,
            known: BTreeMap::new(),
            shares: Shares::new(address_bytes_per_second),
            work_us: Shares::new(address_work_ms_per_second.saturating_mul(1_000)),
            next_number: 0,
            asked: HashMap::new(),
            answers: Ways::default(),
        };
        let handle = runtime.spawn(task.run(incoming, answered_frames));
        let next_id = Arc::default();
        let network = Self { own, listening, dialled: dialled_count, commands, everybody, next_id, banned_all };
        Ok((network, handle))
    }

    /// The id of this node.
    pub(crate) fn own(&self) -> NodeId {
        self.own
    }

    /// Where this node listens.
    pub(crate) fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// How many are dialled at most, as they were named: two of them may be one.
    pub(crate) fn dialled(&self) -> usize {
        self.dialled
    }

    /// Whether there is nobody who may be spoken to: everybody who is to be dialled is banned, and nobody else comes.
    pub(crate) fn is_banned_all(&self) -> bool {
        self.banned_all.load(Ordering::Relaxed)
    }

    /// Who is connected, now and whenever that changes.
    pub(crate) fn everybody(&self) -> watch::Receiver<Everybody> {
        self.everybody.clone()
    }

    /// Sends a peer the frame of a request and waits for that of its answer, which is not looked at.
    pub(crate) async fn ask_frame(&self, peer: NodeId, frame: Vec<u8>) -> Result<Vec<u8>, AskError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Ask { peer, frame, answer }).await.map_err(|_| AskError::Gone)?;
        answered.await.map_err(|_| AskError::Gone)?
    }

    /// Has nothing to do with a peer any more, also over restarts.
    pub(crate) async fn ban(&self, peer: NodeId, why: String) {
        // A network that has ended speaks to nobody.
        let _ = self.commands.send(Command::Ban { peer, why }).await;
    }

    /// Says that what a peer sent, and was read elsewhere, was none. A few times, and it is banned.
    pub(crate) async fn blame(&self, peer: NodeId, what: String) {
        // As with a ban.
        let _ = self.commands.send(Command::Blame { peer, what }).await;
    }

    /// Closes all connections, and waits until that is done and bans are written.
    pub(crate) async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
        self.commands.closed().await;
    }

    /// Who can be asked now.
    pub(crate) fn connected(&self) -> Vec<NodeId> {
        self.everybody.borrow().keys().copied().collect()
    }

    /// Sends a peer a request and waits for its answer, at most the configured time. The answer is of the kind that was
    /// asked for, or says why there is none; beyond that it is a claim, and whoever asked proves it. Must not be called
    /// on a thread of the runtime.
    ///
    /// # Errors
    /// [`AskError`].
    pub(crate) fn ask(&self, peer: &NodeId, request: Request) -> Result<Response, AskError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = Frame { id, body: request };
        let (answer, answered) = oneshot::channel();
        let command = Command::Ask { peer: *peer, frame: frame.to_bytes(), answer };
        self.commands.blocking_send(command).map_err(|_| AskError::Gone)?;
        let bytes = answered.blocking_recv().map_err(|_| AskError::Gone)??;
        let response =
            Frame::<Response>::from_bytes(&bytes).map_err(|error| AskError::Misbehaved(error.to_string()))?;
        if response.id != id || !answers(&frame.body, &response.body) {
            return Err(AskError::Misbehaved("an answer to another question".to_owned()));
        }
        Ok(response.body)
    }
}

/// Until when whoever went is forgotten because of the crowd, of all that went when, and of so many that are known; none
/// if there is room for all.
pub(super) fn crowded_out(mut gone: Vec<Instant>, known: usize) -> Option<Instant> {
    gone.sort_unstable();
    gone.truncate(known.saturating_sub(KNOWN_MAX));
    gone.pop()
}

/// Refuses what a program cannot do that was built without QUIC: to listen for it, or to dial one of these peers by it.
pub(super) fn without_quic(listens: bool, peers: &[PeerAddress]) -> Result<(), Failure> {
    let what = match peers.iter().find(|peer| peer.transport() == Transport::Quic) {
        Some(peer) => format!("{peer} is to be dialled by it"),
        None if listens => "p2p.quic is on".to_owned(),
        None => return Ok(()),
    };
    Err(Failure::usage(format!("this program was built without QUIC, and {what}"))
        .hint("build it with `--features quic`, or reach peers over TCP"))
}

/// Listens, and says where.
async fn bind(swarm: &mut Swarm<Behaviour>, address: SocketAddr, transport: Transport) -> Result<SocketAddr, Failure> {
    let failed = |error: &dyn std::error::Error| {
        let over = if transport == Transport::Quic { "for QUIC (UDP) " } else { "" };
        Failure::io(format_args!("could not listen {over}on {address}"), error)
    };
    let listener = swarm.listen_on(multiaddr(address, transport)).map_err(|error| failed(&error))?;
    loop {
        match swarm.next().await {
            Some(SwarmEvent::NewListenAddr { listener_id, address: found }) if listener_id == listener => {
                let port = found.iter().find_map(|part| match part {
                    Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
                    _ => None,
                });
                return Ok(SocketAddr::new(address.ip(), port.unwrap_or(address.port())));
            }
            Some(SwarmEvent::ListenerClosed { reason: Err(error), .. } | SwarmEvent::ListenerError { error, .. }) => {
                return Err(failed(&error));
            }
            Some(_) => {}
            None => unreachable!("a swarm has no end"),
        }
    }
}

fn multiaddr(address: SocketAddr, transport: Transport) -> Multiaddr {
    let host = Multiaddr::from(address.ip());
    match transport {
        Transport::Tcp => host.with(Protocol::Tcp(address.port())),
        Transport::Quic => host.with(Protocol::Udp(address.port())).with(Protocol::QuicV1),
    }
}

/// Bounds of QUIC: how long, and how much that nobody has read.
#[cfg(feature = "quic")]
fn quic_config(mut config: quic::Config, handshake_timeout: Duration) -> quic::Config {
    config.handshake_timeout = handshake_timeout;
    config.max_idle_timeout = QUIC_SILENCE_MS_MAX;
    // Each request has a stream, and so has what the ends tell each other of themselves.
    config.max_concurrent_stream_limit = u32::try_from(CONNECTION_REQUESTS_MAX * 2).expect("few");
    (config.max_stream_data, config.max_connection_data) = QUIC_WINDOWS;
    config
}

/// A peer of the configuration.
struct Dialled {
    address: PeerAddress,
    /// Who was found there.
    peer: Option<NodeId>,
    attempt: Option<ConnectionId>,
    next: Instant,
    pause: Duration,
}

impl Dialled {
    fn new(address: PeerAddress, now: Instant) -> Self {
        Self { peer: address.id(), address, attempt: None, next: now, pause: DIAL_PAUSE.0 }
    }
}

/// A peer that is connected, or was lately.
struct Known {
    number: PeerId,
    /// Requests that were none.
    bad: u32,
    /// Where it came from last.
    address: Option<IpAddr>,
    /// Since when it is gone; none while it is connected.
    gone: Option<Instant>,
    announced: Announced,
}

/// How many announcements a peer made in this second.
#[derive(Debug)]
pub(super) struct Announced {
    since: Instant,
    count: u32,
}

impl Announced {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, count: 0 }
    }

    /// Whether one more is within what a peer may make.
    // spec: PEER-21
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        self.count = self.count.saturating_add(1);
        self.count <= ANNOUNCEMENTS_MAX
    }
}

/// An answer whose way back is known.
struct Answered {
    request: InboundRequestId,
    channel: ResponseChannel<Vec<u8>>,
    /// The id of the request's frame.
    id: u64,
    frame: Vec<u8>,
    /// How long it took to make.
    took: Duration,
    address: Option<IpAddr>,
}

/// What whoever finds no room is told.
fn come_back(id: u64) -> Vec<u8> {
    Frame { id, body: Response::Busy { retry_after_ms: COME_BACK_MS } }.to_bytes()
}

struct Task {
    swarm: Swarm<Behaviour>,
    serving: Option<Serving>,
    bans: Arc<Mutex<Bans>>,
    /// Says that there are bans to be written to whoever does that.
    banned: watch::Sender<()>,
    writing: JoinHandle<()>,
    heard: Option<mpsc::Sender<Heard>>,
    metrics: Arc<Metrics>,
    commands: mpsc::Sender<Command>,
    /// Bounded by the requests that are being answered, and those by the streams of each connection.
    answered: mpsc::UnboundedSender<Answered>,
    tell: watch::Sender<Everybody>,
    dialled: Vec<Dialled>,
    /// Whether others may be met than those who are dialled.
    takes_others: bool,
    /// [`Network::is_banned_all`].
    banned_all: Arc<AtomicBool>,
    /// Whether it was said that somebody has this node's own key.
    meets_itself: bool,
    known: BTreeMap<NodeId, Known>,
    shares: Shares,
    work_us: Shares,
    next_number: u64,
    /// Who waits for which answer.
    asked: HashMap<OutboundRequestId, oneshot::Sender<Result<Vec<u8>, AskError>>>,
    answers: Ways<InboundRequestId>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut answered: mpsc::UnboundedReceiver<Answered>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                event = self.swarm.next() => match event {
                    Some(event) => self.on_event(event),
                    None => break,
                },
                Some(answered) = answered.recv() => self.on_answered(answered),
                command = commands.recv() => match command {
                    Some(Command::Stop) | None => break,
                    Some(command) => self.on_command(command),
                },
                _ = look.tick() => self.look(Instant::now()),
            }
        }
        // Nobody is banned any more: what is not written yet is written, and that is all.
        drop(self.banned);
        let _ = self.writing.await;
        if let Some(serving) = self.serving {
            // Reads of the store that are under way come to their end.
            let _ = tokio::task::spawn_blocking(|| serving.stop()).await;
        }
    }

    fn bans(&self) -> MutexGuard<'_, Bans> {
        self.bans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Ask { peer, frame, answer } => {
                if !self.swarm.is_connected(&peer) {
                    // Whoever asked may be gone as well.
                    let _ = answer.send(Err(AskError::Gone));
                    return;
                }
                // Whoever does not wait any more takes no place.
                self.asked.retain(|_, answer| !answer.is_closed());
                let id = self.swarm.behaviour_mut().frames.send_request(&peer, frame);
                self.asked.insert(id, answer);
            }
            Command::Ban { peer, why } => self.ban(peer, &why),
            Command::Blame { peer, what } => self.on_bad_request(peer, &what),
            Command::Found { place, addresses } => self.dial(place, &addresses),
            Command::Nearby { peer, address } => self.dial_nearby(peer, address),
            Command::Stop => {}
        }
    }

    fn ban(&mut self, peer: NodeId, why: &str) {
        tracing::warn!(%peer, why, "a peer is banned");
        self.metrics.peers_banned.inc();
        if self.bans().add(peer, why) {
            self.banned.send_replace(());
        }
        // One that is gone already is disconnected.
        let _ = self.swarm.disconnect_peer_id(peer);
        self.note_bans();
    }

    fn note_bans(&self) {
        let bans = self.bans();
        let is_banned = |dialled: &Dialled| dialled.peer.is_some_and(|peer| bans.has(&peer));
        let all = !self.takes_others && !self.dialled.is_empty() && self.dialled.iter().all(is_banned);
        self.banned_all.store(all, Ordering::Relaxed);
    }

    /// Says once that whoever is at an address has the key of this node: those two never connect.
    fn on_own_key(&mut self, address: &Multiaddr) {
        if !std::mem::replace(&mut self.meets_itself, true) {
            let own = self.swarm.local_peer_id();
            tracing::warn!(
                %own, %address,
                "whoever is there has this node's own peer key: it is this node itself, or runs on a copy of its home, and nodes with one \
                 key never connect; keys/peer.key.json is to be removed from one of them, which makes another when it starts"
            );
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Frames(event)) => self.on_frames(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                if let Some(known) = self.known.get_mut(&peer_id) {
                    known.gone = Some(Instant::now());
                }
                self.tell_everybody();
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, peer_id, .. } => {
                let banned = peer_id.filter(|peer| self.bans().has(peer));
                if let Some(dialled) = self.dialled.iter_mut().find(|dialled| dialled.attempt == Some(connection_id)) {
                    dialled.attempt = None;
                    // Who it is was not known before the gate refused it.
                    dialled.peer = banned.or(dialled.peer);
                    tracing::debug!(peer = %dialled.address, %error, "a peer could not be reached");
                }
                if let DialError::LocalPeerId { address } = &error {
                    self.on_own_key(address);
                }
                self.note_bans();
            }
            SwarmEvent::IncomingConnectionError { error: ListenError::LocalPeerId { address }, .. } => {
                self.on_own_key(&address);
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: NodeId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        if let Some(dialled) = self.dialled.iter_mut().find(|dialled| dialled.attempt == Some(connection)) {
            (dialled.peer, dialled.attempt, dialled.pause) = (Some(peer), None, DIAL_PAUSE.0);
        }
        let number = PeerId(self.next_number);
        let is_new = self.known.get(&peer).is_none_or(|known| known.gone.is_some());
        let known = self.known.entry(peer).or_insert_with(|| {
            self.next_number += 1;
            Known { number, bad: 0, address: None, gone: None, announced: Announced::new(Instant::now()) }
        });
        (known.gone, known.address) = (None, machine(endpoint.get_remote_address()));
        if is_new {
            tracing::info!(%peer, address = %endpoint.get_remote_address(), "connected to a peer");
        }
        self.tell_everybody();
    }

    fn tell_everybody(&self) {
        let connected = self.known.iter().filter(|(_, known)| known.gone.is_none());
        let everybody: BTreeMap<NodeId, PeerId> = connected.map(|(peer, known)| (*peer, known.number)).collect();
        self.metrics.peers.set(i64::try_from(everybody.len()).unwrap_or(i64::MAX));
        // Nobody may be left who wants to know.
        let _ = self.tell.send(Arc::new(everybody));
    }

    fn on_frames(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        match event {
            request_response::Event::Message {
                peer,
                message: Message::Request { request_id, request, channel },
                ..
            } => {
                self.on_request(peer, request_id, &request, channel);
            }
            request_response::Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(answer) = self.asked.remove(&request_id) {
                    let _ = answer.send(Ok(response));
                }
            }
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                if let Some(answer) = self.asked.remove(&request_id) {
                    let what = error.to_string();
                    let is_false = matches!(
                        error,
                        OutboundFailure::Io(error) if error.kind() == io::ErrorKind::InvalidData
                    );
                    let _ =
                        answer.send(Err(if is_false { AskError::Misbehaved(what) } else { AskError::Failed(what) }));
                }
            }
            request_response::Event::InboundFailure { peer, request_id, error, .. } => {
                self.answers.ended(&request_id);
                if matches!(&error, InboundFailure::Io(error) if error.kind() == io::ErrorKind::InvalidData) {
                    self.on_bad_request(peer, &error.to_string());
                }
            }
            request_response::Event::ResponseSent { request_id, .. } => {
                let bytes = self.answers.ended(&request_id);
                self.metrics.peer_bytes_served.inc_by(bytes as u64);
            }
        }
    }

    fn on_request(&mut self, peer: NodeId, request: InboundRequestId, bytes: &[u8], channel: ResponseChannel<Vec<u8>>) {
        // Dropping the channel closes the stream: that is the answer to what is no request.
        let frame = match Frame::<Request>::from_bytes(bytes) {
            Ok(frame) => frame,
            Err(error) => return self.on_bad_request(peer, &error.to_string()),
        };
        let frame = match frame {
            Frame { id, body: Request::Announce { certificate } } => {
                let body = self.on_announced((peer, certificate));
                // Whoever went meanwhile needs no answer.
                let _ = self.swarm.behaviour_mut().frames.send_response(channel, Frame { id, body }.to_bytes());
                return;
            }
            frame => frame,
        };
        let (Some(serving), Some(known)) = (&self.serving, self.known.get(&peer)) else { return };
        let address = known.address;
        // spec: PEER-24
        if !self.answers.has_room(&peer, address, 0) {
            let _ = self.swarm.behaviour_mut().frames.send_response(channel, come_back(frame.id));
            return;
        }
        // spec: PEER-11
        let now = Instant::now();
        let waits = address.map(|address| [&self.shares, &self.work_us].map(|shares| shares.wait_ms(address, now)));
        if let Some(retry_after_ms) = waits.into_iter().flatten().flatten().max() {
            let busy = Frame { id: frame.id, body: Response::Busy { retry_after_ms } }.to_bytes();
            let _ = self.swarm.behaviour_mut().frames.send_response(channel, busy);
            return;
        }
        self.answers.begin(request, peer, address);
        let (answered, id) = (self.answered.clone(), frame.id);
        let reply = Box::new(move |frame, took| {
            drop(answered.send(Answered { request, channel, id, frame, took, address }));
        });
        serving.answer(known.number, frame, reply);
    }

    /// Hands an announcement to whoever follows, unless there are more than anybody needs to make.
    // spec: PEER-21
    fn on_announced(&mut self, heard: Heard) -> Response {
        let again = Response::Busy { retry_after_ms: ANNOUNCE_AGAIN_MS };
        let Some(known) = self.known.get_mut(&heard.0) else { return again };
        let too_many = !known.announced.admits(Instant::now());
        // Nobody who follows is told from one who has no time: an announcement is lost, and he asks.
        let is_lost = |to: &mpsc::Sender<Heard>| to.try_send(heard).is_err();
        if too_many || self.heard.as_ref().is_some_and(is_lost) {
            self.metrics.announced("too_many");
            return again;
        }
        Response::Heard
    }

    fn on_answered(&mut self, answered: Answered) {
        let Answered { request, channel, id, mut frame, took, address } = answered;
        // Also for who has gone meanwhile: it was made for that address all the same.
        // spec: PEER-11
        if let Some(address) = address {
            let now = Instant::now();
            self.shares.give(address, frame.len() as u64, now);
            self.work_us.give(address, u64::try_from(took.as_micros()).unwrap_or(u64::MAX), now);
        }
        // Many may have been asked for before the first was made.
        // spec: PEER-24
        if !self.answers.is_made(&request, frame.len()) {
            frame = come_back(id);
        }
        if self.swarm.behaviour_mut().frames.send_response(channel, frame).is_err() {
            self.answers.ended(&request);
        }
    }

    fn on_bad_request(&mut self, peer: NodeId, what: &str) {
        self.metrics.peer_requests_refused.inc();
        let Some(known) = self.known.get_mut(&peer) else { return };
        known.bad += 1;
        if known.bad == BAD_REQUESTS_MAX {
            self.ban(peer, &format!("{BAD_REQUESTS_MAX} requests that are none, the last one: {what}"));
        }
    }

    /// What time brings: whoever is missing is dialled, whoever went long ago is forgotten.
    fn look(&mut self, now: Instant) {
        self.note_bans();
        self.metrics.peer_connections_refused.inc_by(self.swarm.behaviour_mut().gate.take_refused());
        let gone = self.known.values().filter_map(|known| known.gone).collect();
        let crowded_out = crowded_out(gone, self.known.len());
        let is_over =
            |gone: Instant| now.duration_since(gone) >= KNOWN_FOR || crowded_out.is_some_and(|last| gone <= last);
        let serving = &self.serving;
        self.known.retain(|_, known| {
            let forget = known.gone.is_some_and(is_over);
            !(forget && serving.as_ref().is_none_or(|serving| serving.gone(known.number)))
        });
        for (place, dialled) in self.dialled.iter_mut().enumerate() {
            let connected = dialled.peer.is_some_and(|peer| self.swarm.is_connected(&peer));
            if connected || dialled.attempt.is_some() || now < dialled.next {
                continue;
            }
            dialled.next = now + dialled.pause;
            dialled.pause = (dialled.pause * 2).min(DIAL_PAUSE.1);
            let (host, port) = (dialled.address.host().to_owned(), dialled.address.port());
            let commands = self.commands.clone();
            tokio::spawn(async move {
                let found = tokio::net::lookup_host((host.as_str(), port)).await;
                let addresses = found.map(|found| found.take(8).collect()).unwrap_or_default();
                // A full queue is no place to wait for: the next look tries again.
                let _ = commands.try_send(Command::Found { place, addresses });
            });
        }
    }

    fn dial(&mut self, place: usize, addresses: &[SocketAddr]) {
        let Some(dialled) = self.dialled.get_mut(place) else { return };
        let Some(first) = addresses.first() else { return };
        let at = |address: &SocketAddr| multiaddr(*address, dialled.address.transport());
        let options = match dialled.address.id() {
            Some(peer) => DialOpts::peer_id(peer).addresses(addresses.iter().map(at).collect()).build(),
            None => DialOpts::unknown_peer_id().address(at(first)).build(),
        };
        let attempt = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => dialled.attempt = Some(attempt),
            Err(error) => tracing::debug!(peer = %dialled.address, %error, "a peer could not be dialled"),
        }
    }

    // spec: PEER-23
    fn dial_nearby(&mut self, peer: NodeId, address: SocketAddr) {
        if self.tell.borrow().len() >= NEARBY_ENOUGH || self.bans().has(&peer) {
            return;
        }
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(vec![multiaddr(address, Transport::Tcp)])
            .build();
        if let Err(error) = self.swarm.dial(options) {
            tracing::debug!(%peer, %address, %error, "a peer nearby was not dialled");
        }
    }
}
