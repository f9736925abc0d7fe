//! Real sockets on this machine: who is honest is heard, and who is not is survived.

mod stranger;

use super::codec::PROTOCOL;
use super::network::{ANNOUNCEMENTS_MAX, Announced, KNOWN_MAX, LOOK_EVERY, NEARBY_ENOUGH, crowded_out, without_quic};
use super::*;
use crate::config::{Config, P2p};
use crate::engine::versions::{Answers, Attests, Word};
use crate::engine::{self, Engine};
use crate::exit::Failure;
use crate::home::Home;
use crate::keyfile::KeyDir;
use crate::library::snapshot_params;
use crate::metrics::Metrics;
use keelstone_codec::{
    Blob, BoundedList, ChainId, Encode as _, Fixed, Height, Key, Namespace, Root, Text, Timestamp, Value,
};
use keelstone_ledger::modules::{agents, memes, standard};
use keelstone_ledger::{Attestation, Bundle, Genesis, Mode, Operation, SecretKey, SignedAttestation, Transaction};
use keelstone_store::files::{Files, MemoryFiles};
use keelstone_store::{Options, Store, View};
use keelstone_sync::peers::{
    BLOCK_BYTES_MAX, EntriesError, Joiner, Manner as FollowManner, PeerId, Progress, RESPONSE_BYTES_MAX, Server,
    ServerLimits, Settings, Tick, Version, Versions, Why,
};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{Blake3, HashKind, ReadError};
use libp2p::futures::AsyncReadExt as _;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use stranger::{Hoarder, Stranger, Way};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A node's network on a free port of this machine.
struct Node {
    network: Network,
    home: TempDir,
    metrics: Arc<Metrics>,
}

impl Node {
    fn start(
        runtime: &Runtime,
        dialled: &[&Node],
        answering: Option<Box<dyn Answers>>,
        change: impl FnOnce(&mut P2p, &mut Setup),
    ) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self::start_in(runtime, home, dialled, answering, change)
    }

    fn start_in(
        runtime: &Runtime,
        home: TempDir,
        dialled: &[&Node],
        answering: Option<Box<dyn Answers>>,
        change: impl FnOnce(&mut P2p, &mut Setup),
    ) -> Self {
        let metrics = Arc::new(Metrics::new());
        let mut config = Config::default().p2p;
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.peers = dialled.iter().map(|node| node.address().parse().unwrap()).collect();
        let keys = KeyDir::new(home.path());
        let mut setup =
            setup(&config, &params().chain_id, &Home::new(home.path().to_owned()), &keys, metrics.clone()).unwrap();
        change(&mut config, &mut setup);
        let (network, _) = Network::start(runtime.handle(), setup, answering).unwrap();
        Self { network, home, metrics }
    }

    fn socket(&self) -> SocketAddr {
        self.network.listening().unwrap()
    }

    fn address(&self) -> String {
        format!("{}@{}", self.network.own(), self.socket())
    }

    fn id(&self) -> NodeId {
        self.network.own()
    }

    fn meets(&self, other: &Node) {
        until("two nodes meet", || self.network.connected().contains(&other.id()));
    }
}

const HEIGHT: Height = Height(7);

fn params() -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("sockets-1").unwrap(), hasher: HashKind::Blake3, chunk_weight_max: 16_000 }
}

/// A state of some 300 units.
static STATE: LazyLock<Store<Blake3>> = LazyLock::new(|| {
    let options = Options { background: false, ..Options::default() };
    let mut building = Store::<Blake3>::build(Arc::new(MemoryFiles::new()), options, HEIGHT).unwrap();
    let name = Namespace::new("entries").unwrap();
    for number in 0..6_000u32 {
        let value = [number.to_le_bytes(); 16].concat();
        building.push(&name, &Key::new(number.to_be_bytes()).unwrap(), &value).unwrap();
    }
    building.finish_as_found().unwrap()
});

fn target() -> Version {
    Version { height: HEIGHT, root: STATE.view().root() }
}

struct Kept;

impl Versions for Kept {
    type View = View<Blake3>;

    fn kept(&self) -> Option<(Version, Height)> {
        Some((target(), HEIGHT))
    }
    fn diffs_from(&self) -> Height {
        HEIGHT.next()
    }
    fn view(&self, height: Height) -> Result<Option<(Root, View<Blake3>)>, ReadError> {
        Ok((height == HEIGHT).then(|| (target().root, STATE.view())))
    }
}

/// What somebody makes of an honest answer.
type Manner = fn(&Request, Response) -> Response;

struct Somebody {
    server: Server<Kept>,
    manner: Manner,
    asked: Arc<AtomicU64>,
}

impl Answers for Somebody {
    fn answer(&mut self, now: Tick, peer: PeerId, request: &Request) -> Response {
        self.asked.fetch_add(1, Ordering::Relaxed);
        (self.manner)(request, self.server.answer(now, peer, request))
    }
    fn worked(&mut self, peer: PeerId, took: Duration) {
        self.server.worked(peer, took);
    }
    fn gone(&mut self, peer: PeerId) {
        self.server.gone(peer);
    }
}

fn somebody(manner: Manner) -> (Box<dyn Answers>, Arc<AtomicU64>) {
    somebody_within(ServerLimits { answer_bytes_max: 8_000, ..ServerLimits::default() }, manner)
}

fn somebody_within(limits: ServerLimits, manner: Manner) -> (Box<dyn Answers>, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let server = Server::new(Kept, params(), limits, Tick(0));
    (Box::new(Somebody { server, manner, asked: asked.clone() }), asked)
}

fn honest(_: &Request, answer: Response) -> Response {
    answer
}

/// As honest, slow enough that a liar beside it is asked often enough to be found out, and quick enough for what a peer may have
/// of a second's work.
fn unhurried(_: &Request, answer: Response) -> Response {
    std::thread::sleep(Duration::from_millis(5));
    answer
}

/// As honest, and each answer is work for a while.
fn sleepy(_: &Request, answer: Response) -> Response {
    std::thread::sleep(Duration::from_millis(60));
    answer
}

/// One byte of what can be proven is another.
fn lies(_: &Request, answer: Response) -> Response {
    let changed = |wire: &[u8]| {
        let mut wire = wire.to_vec();
        *wire.last_mut().unwrap() ^= 1;
        Blob::new(wire).unwrap()
    };
    match answer {
        Response::Nodes(wire) => Response::Nodes(changed(&wire)),
        Response::Chunks { units, wire } => Response::Chunks { units, wire: changed(&wire) },
        other => other,
    }
}

/// Joins over these sockets; returns what was fetched, and how.
fn join(
    runtime: &Runtime,
    network: &Network,
    files: Arc<dyn Files>,
    settings: Settings,
    tell: &mut dyn FnMut(&Progress) -> Result<(), Failure>,
) -> Result<(u64, Progress), Failure> {
    let sources = Sources { network: Some(network.clone()), ..Sources::default() };
    let mut joining = Joining::new(runtime.handle(), sources);
    let mut joiner = Joiner::<Blake3>::open(files, params(), settings, target(), joining.now(), 5).unwrap();
    let version = joining.fetch(&mut joiner, None, None, &mut |progress, _| tell(progress))?;
    assert_eq!(version, target());
    let options = Options { background: false, ..Options::default() };
    let mut building = Store::<Blake3>::build(Arc::new(MemoryFiles::new()), options, HEIGHT).unwrap();
    let mut entries = 0;
    let handed: Result<(), EntriesError<Infallible>> = joiner.entries(|name, key, value| {
        entries += 1;
        building.push(name, key, value).unwrap();
        Ok(())
    });
    handed.unwrap();
    building.finish(target().root).unwrap();
    Ok((entries, joiner.progress(joining.now())))
}

fn settings() -> Settings {
    Settings { batch_bytes_max: 8_000, request_timeout_ms: 5_000, stall_timeout_ms: 30_000, ..Settings::default() }
}

/// S-01, over sockets. Of four peers one lies: the state is the certified one, all of it, and the liar is banned, also
/// by the next life of the node.
#[test]
fn s01_of_four_peers_one_lies_and_is_banned_for_good() {
    let runtime = runtime();
    let peers: Vec<Node> = [unhurried as Manner, unhurried, lies, unhurried]
        .map(|manner| Node::start(&runtime, &[], Some(somebody(manner).0), |_, _| {}))
        .into();
    let liar = peers[2].id();
    let node = Node::start(&runtime, &peers.iter().collect::<Vec<_>>(), None, |_, _| {});
    for peer in &peers {
        node.meets(peer);
    }
    let files = Arc::new(MemoryFiles::new());
    // Who lied is left alone for a part of this time, and asked again.
    let settings = Settings { request_timeout_ms: 400, ..settings() };
    let (entries, progress) = join(&runtime, &node.network, files, settings, &mut |_| Ok(())).unwrap();
    assert_eq!((entries, progress.done_per_ten_thousand), (6_000, 10_000));
    until("the liar is disconnected", || !node.network.connected().contains(&liar));
    assert_eq!(node.metrics.peers_banned.get(), 1);
    runtime.block_on(node.network.stop());

    let again = Node::start_in(&runtime, node.home, &peers.iter().collect::<Vec<_>>(), None, |_, _| {});
    assert_eq!(again.id(), node.network.own(), "a node keeps its id");
    for peer in [&peers[0], &peers[1], &peers[3]] {
        again.meets(peer);
    }
    until("the liar is refused", || again.metrics.peer_connections_refused.get() > 0);
    assert!(!again.network.connected().contains(&liar));
}

/// A program that cannot speak it says so, and to whom it was to.
#[test]
fn without_quic_nobody_is_dialled_by_it() {
    let peers = ["127.0.0.1:8", "127.0.0.1:9/quic"].map(|peer| peer.parse::<PeerAddress>().unwrap());
    assert!(without_quic(false, &peers[..1]).is_ok());
    for (refused, what) in
        [(without_quic(true, &peers[..1]), "p2p.quic is on"), (without_quic(false, &peers), "127.0.0.1:9/quic")]
    {
        let failure = refused.unwrap_err();
        assert!(failure.message.contains(what), "{}", failure.message);
    }
}

/// spec: PEER-23. Nodes that name nobody meet by what they say on their network; one of another chain is let alone.
#[test]
fn nodes_of_a_chain_on_one_network_find_each_other() {
    let runtime = runtime();
    let near = |chain: &str| {
        let chain = ChainId::new(&format!("{chain}-{}", std::process::id())).unwrap();
        move |_: &mut P2p, setup: &mut Setup| {
            setup.nearby = Some(Nearby { interface: Ipv4Addr::LOCALHOST, chain });
        }
    };
    let other = Node::start(&runtime, &[], None, near("other"));
    let first = Node::start(&runtime, &[], None, near("near"));
    let second = Node::start(&runtime, &[], None, near("near"));
    first.meets(&second);
    // Who takes in nobody says nothing, and finds the others all the same.
    let quiet = Node::start(&runtime, &[], None, |config, setup| {
        near("near")(config, setup);
        setup.listen = None;
    });
    quiet.meets(&first);
    quiet.meets(&second);
    assert_eq!(other.network.connected(), []);
}

/// spec: PEER-23. Whoever has enough peers looks for no more nearby, until one of them goes.
#[test]
fn whoever_has_enough_peers_dials_nobody_nearby() {
    let runtime = runtime();
    let chain = ChainId::new(&format!("enough-{}", std::process::id())).unwrap();
    let near = |setup: &mut Setup| {
        setup.nearby = Some(Nearby { interface: Ipv4Addr::LOCALHOST, chain: chain.clone() });
    };
    let named: Vec<Node> = (0..NEARBY_ENOUGH).map(|_| Node::start(&runtime, &[], None, |_, _| {})).collect();
    let full = Node::start(&runtime, &named.iter().collect::<Vec<_>>(), None, |_, setup| {
        near(setup);
        setup.listen = None;
    });
    named.iter().for_each(|node| full.meets(node));
    let nearby = Node::start(&runtime, &[], None, |_, setup| near(setup));
    let lonely = Node::start(&runtime, &[], None, |_, setup| {
        near(setup);
        setup.listen = None;
    });
    // What brings these two together is said to all.
    lonely.meets(&nearby);
    std::thread::sleep(Duration::from_secs(1));
    assert!(!full.network.connected().contains(&nearby.id()), "it has {NEARBY_ENOUGH} peers");
    runtime.block_on(named[0].network.stop());
    full.meets(&nearby);
}

/// A port of UDP that is taken is told from one of TCP.
#[cfg(feature = "quic")]
#[test]
fn where_quic_cannot_listen_it_is_said() {
    let runtime = runtime();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let home = tempfile::tempdir().unwrap();
    let (config, keys) = (Config::default().p2p, KeyDir::new(home.path()));
    let mut setup =
        setup(&config, &params().chain_id, &Home::new(home.path().to_owned()), &keys, Arc::new(Metrics::new()))
            .unwrap();
    (setup.listen, setup.quic) = (taken.local_addr().ok(), true);
    let failure = Network::start(runtime.handle(), setup, None).map(drop).unwrap_err();
    assert!(failure.message.contains("for QUIC (UDP) on 127.0.0.1"), "{}", failure.message);
}

/// spec: PEER-13. S-01, Y-01, over QUIC: as over TCP, and beside it. Packets that are none cost nothing; a node that does not listen
/// for QUIC is not reached by it, also not over TCP.
#[cfg(feature = "quic")]
#[test]
fn s01_a_state_comes_over_quic_and_a_liar_is_banned() {
    let runtime = runtime();
    let quic = |_: &mut P2p, setup: &mut Setup| setup.quic = true;
    let peers: Vec<Node> = [unhurried as Manner, unhurried, lies]
        .map(|manner| Node::start(&runtime, &[], Some(somebody(manner).0), quic))
        .into();
    let deaf = Node::start(&runtime, &[], Some(somebody(honest).0), |_, _| {});
    let noise = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = 7;
    let mut shout = |peer: &Node, count: usize| {
        for number in 0..count {
            let mut packet: Vec<u8> =
                (0..1_200).map(|_| keelstone_codec::splitmix64(&mut random).to_le_bytes()[0]).collect();
            match number % 3 {
                // The head of a first packet, of this version and of another; and nothing like it.
                0 => packet[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]),
                1 => packet[..6].copy_from_slice(&[0xc3, 0xfa, 0xce, 0xb0, 0x0c, 8]),
                _ => packet.truncate(number % 1_200),
            }
            // The system may have no room for another at the moment.
            let _ = noise.send_to(&packet, peer.socket());
        }
    };
    peers.iter().for_each(|peer| shout(peer, 500));
    let node = Node::start(&runtime, &[], None, |_, setup| {
        setup.peers =
            peers.iter().chain([&deaf]).map(|peer| format!("{}/quic", peer.address()).parse().unwrap()).collect();
    });
    for peer in &peers {
        node.meets(peer);
    }
    peers.iter().for_each(|peer| shout(peer, 500));
    let settings = Settings { request_timeout_ms: 400, ..settings() };
    let files = Arc::new(MemoryFiles::new());
    let (entries, progress) = join(&runtime, &node.network, files, settings, &mut |_| Ok(())).unwrap();
    assert_eq!((entries, progress.done_per_ten_thousand), (6_000, 10_000));
    until("the liar is disconnected", || !node.network.connected().contains(&peers[2].id()));
    assert_eq!(node.metrics.peers_banned.get(), 1);
    assert!(!node.network.connected().contains(&deaf.id()));
    // Those who listen for both are reached by both.
    let other = Node::start(&runtime, &[&peers[0]], None, |_, _| {});
    other.meets(&peers[0]);
    assert!(other.network.ask(&peers[0].id(), Request::Status).is_ok());
}

/// What a crash leaves is not fetched again.
#[test]
fn s13_a_joiner_that_begins_again_fetches_only_what_is_missing() {
    let runtime = runtime();
    let peer = Node::start(&runtime, &[], Some(somebody(unhurried).0), |_, _| {});
    let node = Node::start(&runtime, &[&peer], None, |_, _| {});
    let files = MemoryFiles::new();
    let mut received = 0;
    let stopped = join(&runtime, &node.network, Arc::new(files.clone()), settings(), &mut |progress| {
        received = progress.received_bytes;
        match progress.done_per_ten_thousand >= 1 {
            true => Err(Failure::error("killed")),
            false => Ok(()),
        }
    });
    assert!(stopped.is_err() && received > 0, "{received}");
    let (entries, progress) = join(&runtime, &node.network, Arc::new(files), settings(), &mut |_| Ok(())).unwrap();
    assert_eq!(entries, 6_000);
    let bytes = progress.total.unwrap().bytes;
    assert!(progress.received_bytes + received < bytes * 105 / 100, "{received} and {progress:?} of {bytes}");
}

/// S-11: peers that never answer, and one whose answer comes a byte a second, hold up nobody who has one that answers.
#[test]
fn s11_peers_that_never_answer_hold_up_nobody() {
    /// Hears every question and answers none, until the test is over.
    struct Mute {
        asked: Arc<AtomicU64>,
        over: std::sync::mpsc::Receiver<Infallible>,
    }
    impl Answers for Mute {
        fn answer(&mut self, _: Tick, _: PeerId, _: &Request) -> Response {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let _ = self.over.recv();
            Response::Unavailable(Why::NotKept)
        }
        fn worked(&mut self, _: PeerId, _: Duration) {}
        fn gone(&mut self, _: PeerId) {}
    }
    const TIMEOUT: Duration = Duration::from_millis(500);
    let runtime = runtime();
    let (mut overs, mut counts) = (Vec::new(), Vec::new());
    let mute: Vec<Node> = (0..3)
        .map(|_| {
            let (over, asked) = (std::sync::mpsc::channel(), Arc::new(AtomicU64::new(0)));
            overs.push(over.0);
            counts.push(asked.clone());
            Node::start(&runtime, &[], Some(Box::new(Mute { asked, over: over.1 })), |_, _| {})
        })
        .collect();
    let drips = Stranger::start(&runtime, somebody(honest).0, Way::Drips);
    counts.push(drips.asked.clone());
    let peer = Node::start(&runtime, &[], Some(somebody(honest).0), |_, _| {});
    let dialled: Vec<&Node> = mute.iter().chain([&peer]).collect();
    let node = Node::start(&runtime, &dialled, None, |_, setup| setup.peers.push(drips.address().parse().unwrap()));
    until("all are connected", || node.network.connected().len() == 5);
    let (files, started) = (Arc::new(MemoryFiles::new()), Instant::now());
    let timeout_ms = u32::try_from(TIMEOUT.as_millis()).unwrap();
    let settings = Settings { request_timeout_ms: timeout_ms, ..settings() };
    assert_eq!(join(&runtime, &node.network, files, settings, &mut |_| Ok(())).unwrap().0, 6_000);
    let took = started.elapsed();
    assert!(took < TIMEOUT * 20, "it took {took:?}");
    assert!(counts.iter().all(|asked| asked.load(Ordering::Relaxed) > 0), "all were asked: {counts:?}");
    assert_eq!(node.metrics.peers_banned.get(), 0, "slowness is no crime");
}

/// What asks a peer one thing: the answer of its kind, a refusal, or why there is none.
#[test]
fn a_question_has_its_answer_or_the_reason_why_not() {
    fn confused(request: &Request, answer: Response) -> Response {
        match request {
            Request::GetRootAt { height } => Response::RootAt(Version { height: height.next(), root: target().root }),
            _ => answer,
        }
    }
    let runtime = runtime();
    let peer = Node::start(&runtime, &[], Some(somebody(confused).0), |_, _| {});
    let node = Node::start(&runtime, &[&peer], None, |_, _| {});
    node.meets(&peer);
    let ask = |request| node.network.ask(&peer.id(), request);
    let Ok(Response::Status(status)) = ask(Request::Status) else { panic!("no status") };
    assert_eq!(status.newest, target());
    assert_eq!(ask(Request::GetCertificate), Ok(Response::Unavailable(Why::NotKept)));
    assert!(matches!(ask(Request::GetRootAt { height: HEIGHT }), Err(AskError::Misbehaved(_))));
    assert_eq!(node.network.ask(&NodeId::random(), Request::Status), Err(AskError::Gone));
}

/// Whether the other end closes a connection on which somebody sent all this, or says that it wants no more of it.
fn is_ended(runtime: &Runtime, to: SocketAddr, from: &libp2p::identity::Keypair, sent: &[u8]) -> bool {
    use libp2p::futures::AsyncWriteExt as _;
    const GO_AWAY: [u8; 8] = [0, 3, 0, 0, 0, 0, 0, 0];
    runtime.block_on(async {
        let ended = async {
            let mut stream = stranger::encrypted(to, from).await;
            // It may be closed before all is sent.
            let _ = stream.write_all(sent).await;
            let _ = stream.flush().await;
            let (mut heard, mut more) = (Vec::new(), [0; 4096]);
            while let Ok(read @ 1..) = stream.read(&mut more).await {
                heard.extend_from_slice(&more[..read]);
                if heard.windows(GO_AWAY.len()).any(|head| head == GO_AWAY) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.is_ok()
    })
}

/// How a multiplexer is agreed on, before its first frame.
fn multiplexed(frames: &[u8]) -> Vec<u8> {
    [b"\x13/multistream/1.0.0\n\x0d/yamux/1.0.0\n", frames].concat()
}

/// A yamux frame's head: version, kind, flags, stream, length.
fn head(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    [&[0, kind][..], &flags.to_be_bytes(), &stream.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// Y-01: windows that overflow, bodies above the credit, streams without number, and what is no frame: the connection is of
/// no more use, the node stays and answers others.
#[test]
fn y01_a_multiplexer_that_is_abused_costs_one_connection() {
    const DATA: u8 = 0;
    const WINDOW: u8 = 1;
    const SYN: u16 = 1;
    let runtime = runtime();
    let peer = Node::start(&runtime, &[], Some(somebody(honest).0), |_, setup| setup.limits.address_max = 64);
    let overflow: Vec<u8> =
        [head(WINDOW, SYN, 1, u32::MAX), head(WINDOW, 0, 1, u32::MAX), head(WINDOW, 0, 1, u32::MAX)].concat();
    let above = [head(DATA, SYN, 1, 1 << 30), vec![7; 2 << 20]].concat();
    let many: Vec<u8> = (0..10_000u32).flat_map(|stream| head(WINDOW, SYN, 2 * stream + 1, 0)).collect();
    let none = vec![0xff; 4096];
    for (what, frames) in [("overflow", overflow), ("above the credit", above), ("no frame", none)] {
        assert!(is_ended(&runtime, peer.socket(), &stranger::pair(), &multiplexed(&frames)), "{what}");
    }
    // Streams above the limit are reset, one by one, or all with their connection.
    runtime.block_on(async {
        use libp2p::futures::AsyncWriteExt as _;
        let mut stream = stranger::encrypted(peer.socket(), &stranger::pair()).await;
        let _ = stream.write_all(&multiplexed(&many)).await;
        let _ = stream.flush().await;
    });
    let node = Node::start(&runtime, &[&peer], None, |_, _| {});
    node.meets(&peer);
    assert!(node.network.ask(&peer.id(), Request::Status).is_ok());
}

/// Y-05: a handshake that never ends, and one that is none, cost a place for a while and nothing else.
#[test]
fn y05_a_half_done_handshake_is_ended() {
    let runtime = runtime();
    let peer = Node::start(&runtime, &[], Some(somebody(honest).0), |_, setup| {
        setup.handshake_timeout = Duration::from_millis(300);
    });
    let ended = |sent: &[u8]| {
        let mut stream = TcpStream::connect(peer.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(sent);
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = stream.read_to_end(&mut rest);
    };
    let name = [&b"\x13/multistream/1.0.0\n\xff\xff\x03/"[..], &[b'n'; 64 << 10]].concat();
    let started = Instant::now();
    for sent in
        [&b""[..], b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n\0\x20", &name, &[0xff; 99]]
    {
        ended(sent);
    }
    assert!(started.elapsed() < PATIENCE);
    let node = Node::start(&runtime, &[&peer], None, |_, _| {});
    node.meets(&peer);
}

/// Y-02: what is no request is counted, and after a few the peer is banned; requests without number are told to come back.
#[test]
fn y02_a_flood_and_what_is_no_request_are_held_off() {
    const SENT: usize = 2_000;
    let runtime = runtime();
    // A peer has ten of the smallest answers in a second.
    let limits = ServerLimits { peer_bytes_per_second: 2_560, ..ServerLimits::default() };
    let peer = Node::start(&runtime, &[], Some(somebody_within(limits, honest).0), |_, _| {});
    let flood = Node::start(&runtime, &[&peer], None, |_, _| {});
    flood.meets(&peer);
    let frame = |id: u64| Frame { id, body: Request::Status }.to_bytes();
    let flooding = runtime.spawn({
        let (network, id) = (flood.network.clone(), peer.id());
        let asks = (0..).take(SENT).map(move |number| {
            let network = network.clone();
            async move { network.ask_frame(id, frame(number)).await }
        });
        libp2p::futures::future::join_all(asks)
    });
    let node = Node::start(&runtime, &[&peer], None, |_, _| {});
    node.meets(&peer);
    let status = |node: &Node| node.network.ask(&peer.id(), Request::Status);
    assert!(matches!(status(&node), Ok(Response::Status(_))), "others are answered meanwhile");
    let is_status = |bytes: &Vec<u8>| matches!(response(bytes), Some(Response::Status(_)));
    let answers = runtime.block_on(flooding).unwrap();
    let answered = answers.into_iter().flatten().filter(is_status).count();
    assert!((1..SENT / 2).contains(&answered), "{answered} of {SENT} answered");
    until("it is told to come back", || matches!(status(&flood), Ok(Response::Busy { .. })));
    assert!(matches!(status(&node), Ok(Response::Status(_))), "others are answered afterwards");

    // Too long for a request, and no frame at all.
    for bytes in [vec![0; 9_000], vec![7], vec![0xff; 100], vec![7]] {
        let _ = runtime.block_on(flood.network.ask_frame(peer.id(), bytes));
    }
    until("the flood is banned", || peer.metrics.peers_banned.get() == 1);
    until("and disconnected", || !peer.network.connected().contains(&flood.id()));
    assert!(matches!(status(&node), Ok(Response::Status(_))));
}

/// Y-02: who comes under this node's own id is let go, be it another program with its key or a node that dials itself; nobody is
/// banned for it, and others are served.
#[test]
fn y02_who_has_our_own_id_is_no_peer() {
    let runtime = runtime();
    let seed = [7; 32];
    let (peer, twin) = {
        let own = |setup: &mut Setup| setup.key = SecretKey::from_seed(&seed);
        let peer = Node::start(&runtime, &[], Some(somebody(honest).0), |_, setup| own(setup));
        let twin = Node::start(&runtime, &[&peer], Some(somebody(honest).0), |_, setup| {
            own(setup);
            // Without an id to expect, as people write it.
            setup.peers = vec![peer.socket().to_string().parse().unwrap()];
        });
        (peer, twin)
    };
    assert_eq!(peer.id(), twin.id());
    let pair = libp2p::identity::Keypair::ed25519_from_bytes(seed).unwrap();
    assert_eq!(pair.public().to_peer_id(), peer.id());
    for _ in 0..3 {
        assert!(is_ended(&runtime, peer.socket(), &pair, &multiplexed(&[])));
    }
    let node = Node::start(&runtime, &[&peer], None, |_, _| {});
    node.meets(&peer);
    assert!(matches!(node.network.ask(&peer.id(), Request::Status), Ok(Response::Status(_))));
    until("it knows whom it met", || peer.network.connected() == [node.id()]);
    assert_eq!(twin.network.connected(), []);
    assert_eq!((peer.metrics.peers_banned.get(), twin.metrics.peers_banned.get()), (0, 0));
}

/// Whether a peer says that one has had enough for now.
fn has_no_more_for(node: &Node, peer: &Node) -> bool {
    let answer = node.network.ask(&peer.id(), Request::GetNodes { at: target(), page: 0 });
    match answer {
        Ok(Response::Busy { .. }) => true,
        Ok(Response::Nodes(_)) => false,
        other => panic!("{other:?}"),
    }
}

/// spec: PEER-11. Whoever has used up what there is for a peer has no more for coming back.
#[test]
fn a_new_connection_brings_no_new_budget() {
    let runtime = runtime();
    // What one page has takes a minute to fill again.
    let limits = ServerLimits { peer_bytes_per_second: 100, ..ServerLimits::default() };
    let peer = Node::start(&runtime, &[], Some(somebody_within(limits, honest).0), |_, _| {});
    let node = Node::start(&runtime, &[&peer], None, |_, _| {});
    node.meets(&peer);
    until("it is used up", || has_no_more_for(&node, &peer));
    runtime.block_on(node.network.stop());
    until("it is gone", || !peer.network.connected().contains(&node.id()));
    let again = Node::start_in(&runtime, node.home, &[&peer], None, |_, _| {});
    again.meets(&peer);
    assert!(has_no_more_for(&again, &peer));
}

/// spec: PEER-11. Nor has whoever comes back under another id, from the same address.
#[test]
fn a_new_id_brings_no_new_budget() {
    let runtime = runtime();
    // Of bytes, and of working time: what one answer takes comes to a minute's.
    let bytes: fn(&mut Setup) = |setup| setup.address_bytes_per_second = 100;
    let work: fn(&mut Setup) = |setup| setup.address_work_ms_per_second = 1;
    for (manner, has_little) in [(honest as Manner, bytes), (sleepy, work)] {
        let peer = Node::start(&runtime, &[], Some(somebody(manner).0), |_, setup| has_little(setup));
        let node = Node::start(&runtime, &[&peer], None, |_, _| {});
        node.meets(&peer);
        until("it is used up", || has_no_more_for(&node, &peer));
        runtime.block_on(node.network.stop());
        until("it is gone", || !peer.network.connected().contains(&node.id()));
        let other = Node::start(&runtime, &[&peer], None, |_, _| {});
        other.meets(&peer);
        assert!(other.id() != node.id() && has_no_more_for(&other, &peer));
    }
}

/// Y-03: an answer that is too long, cut short, never ends, comes twice, is another's, or never comes is an error within the time a request
/// may take, and the same connection serves the next one.
#[test]
fn y03_an_answer_without_end_is_given_up() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let runtime = runtime();
    let stranger = Stranger::start(&runtime, somebody(honest).0, Way::Honest);
    let peer = Node::start(&runtime, &[], Some(somebody(honest).0), |_, _| {});
    let node = Node::start(&runtime, &[&peer], None, |_, setup| {
        setup.request_timeout = TIMEOUT;
        setup.peers.push(stranger.address().parse().unwrap());
    });
    node.meets(&peer);
    until("it meets the stranger", || node.network.connected().contains(&stranger.id()));
    let ask = |whom: &NodeId| node.network.ask(whom, Request::Status);
    let is_false: fn(&AskError) -> bool = |error| matches!(error, AskError::Misbehaved(_));
    let is_none: fn(&AskError) -> bool = |error| matches!(error, AskError::Failed(_));
    for (way, expected, says) in [
        (Way::Announces, is_false, "4294967295 bytes"),
        (Way::Holds, is_none, ""),
        (Way::CutShort, is_none, ""),
        (Way::DripsQuickly, is_none, ""),
        (Way::Twice, is_false, "bytes follow"),
        (Way::OtherId, is_false, "another question"),
    ] {
        stranger.turns(way);
        let started = Instant::now();
        let error = ask(&stranger.id()).unwrap_err();
        let took = started.elapsed();
        assert!(expected(&error) && error.to_string().contains(says), "{way:?}: {error}");
        assert!(took < TIMEOUT * 10, "{way:?}: {took:?}");
        assert!(matches!(ask(&peer.id()), Ok(Response::Status(_))), "{way:?}: others answer");
        stranger.turns(Way::Honest);
        assert!(matches!(ask(&stranger.id()), Ok(Response::Status(_))), "{way:?}: and so does who did it");
    }
    assert_eq!(stranger.met.load(Ordering::Relaxed), 1, "one connection served all of this");
}

/// Y-03, spec: PEER-24. Of what a peer asks for and does not read no more is held than its share, and nothing is made for it beyond that;
/// others of its address are answered, and once it has gone there is room again.
#[test]
fn y03_answers_that_are_not_read_are_held_up_to_a_bound() {
    fn large(_: &Request, _: Response) -> Response {
        Response::Nodes(Blob::new(vec![7; 4_000_000]).unwrap())
    }
    let page = || Request::GetNodes { at: target(), page: 0 };
    let runtime = runtime();
    let (answers, made) = somebody(large);
    let peer = Node::start(&runtime, &[], Some(answers), |_, setup| {
        (setup.address_bytes_per_second, setup.address_work_ms_per_second) = (1 << 40, 1 << 20);
    });
    for round in 1..=2 {
        let hoarder = Hoarder::start(&runtime, &peer);
        // Six are 24 MB, the last of which begins below the bound of a peer.
        (0..12).for_each(|_| hoarder.asks(page()));
        until("the rest is told to come back", || hoarder.is_told(6));
        let before = made.load(Ordering::Relaxed);
        hoarder.asks(page());
        until("so is the next", || hoarder.is_told(7));
        assert_eq!(made.load(Ordering::Relaxed), before, "round {round}: it was made for nothing");
        let node = Node::start(&runtime, &[&peer], None, |_, _| {});
        node.meets(&peer);
        assert!(matches!(node.network.ask(&peer.id(), page()), Ok(Response::Nodes(_))), "round {round}");
        drop(hoarder);
        until("it is gone", || peer.network.connected().iter().all(|known| *known == node.id()));
        runtime.block_on(node.network.stop());
    }
}

/// However many come and go between two looks, no more are known afterwards than may be: those that went first are not.
#[test]
fn peers_that_went_are_forgotten_down_to_the_limit() {
    let start = Instant::now();
    let at = |second: u64| start + Duration::from_secs(second);
    let gone = |count: u64| (0..count).rev().map(at).collect::<Vec<_>>();
    assert_eq!(crowded_out(gone(5), KNOWN_MAX), None);
    assert_eq!(crowded_out(gone(5), KNOWN_MAX + 1), Some(at(0)));
    assert_eq!(crowded_out(gone(2_000), KNOWN_MAX + 700), Some(at(699)));
    assert_eq!(crowded_out(gone(5), KNOWN_MAX + 9), Some(at(4)), "whoever is connected stays");
    assert_eq!(crowded_out(Vec::new(), KNOWN_MAX + 9), None);
}

/// Y-06: where a peer says that it is, nobody is dialled, however many places it names, neither while it is connected nor once it
/// went. The same place is dialled if it is configured.
#[test]
fn y06_addresses_that_a_peer_names_are_not_dialled() {
    use libp2p::futures::StreamExt as _;
    use libp2p::{SwarmBuilder, identify, noise, tcp, yamux};
    let runtime = runtime();
    let peer = Node::start(&runtime, &[], Some(somebody(honest).0), |_, _| {});
    let bait = TcpListener::bind("127.0.0.1:0").unwrap();
    bait.set_nonblocking(true).unwrap();
    let named = bait.local_addr().unwrap();
    let is_taken = || bait.accept().is_ok();
    let is_taken_within = |time: Duration| {
        let started = Instant::now();
        while started.elapsed() < time {
            if is_taken() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    };
    let mut swarm = {
        let _inside = runtime.enter();
        SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|pair| identify::Behaviour::new(identify::Config::new("/x/1".to_owned(), pair.public())))
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
            .build()
    };
    let id = *swarm.local_peer_id();
    let at = |address: SocketAddr| {
        libp2p::Multiaddr::from(address.ip()).with(libp2p::multiaddr::Protocol::Tcp(address.port()))
    };
    swarm.add_external_address(at(named));
    for port in 1..60 {
        swarm.add_external_address(at(SocketAddr::from(([10, 0, 0, 1], port))));
    }
    runtime.block_on(async {
        swarm.dial(at(peer.socket())).unwrap();
        let exchanged = async {
            let (mut sent, mut received) = (false, false);
            while !(sent && received) {
                match swarm.next().await.unwrap() {
                    libp2p::swarm::SwarmEvent::Behaviour(identify::Event::Sent { .. }) => sent = true,
                    libp2p::swarm::SwarmEvent::Behaviour(identify::Event::Received { .. }) => received = true,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, exchanged).await.unwrap();
    });
    let running = runtime.spawn(async move {
        loop {
            swarm.next().await;
        }
    });
    until("it is connected", || peer.network.connected().contains(&id));
    assert!(!is_taken_within(LOOK_EVERY * 3), "somebody believed it");
    running.abort();
    until("it went", || !peer.network.connected().contains(&id));
    assert!(!is_taken_within(LOOK_EVERY * 3), "somebody went to look for it");

    let node = Node::start(&runtime, &[&peer], None, |_, setup| setup.peers.push(named.to_string().parse().unwrap()));
    until("the configured place is dialled", is_taken);
    node.meets(&peer);
    assert!(node.network.ask(&peer.id(), Request::Status).is_ok());
    assert_eq!(PROTOCOL.as_ref(), "/keelstone/peers/1");
}

/// spec: PEER-21, Y-02. A flood of announcements is cut off, and who stops flooding is heard again.
#[test]
fn y02_a_flood_of_announcements_is_cut_off() {
    let start = Instant::now();
    let mut announced = Announced::new(start);
    let mut admitted = |ms: u64| {
        let now = start + Duration::from_millis(ms);
        (0..10_000).filter(|_| announced.admits(now)).count()
    };
    let most = usize::try_from(ANNOUNCEMENTS_MAX).unwrap();
    assert_eq!((admitted(0), admitted(999), admitted(1_000)), (most, 0, most));
}

/// A chain in a home of its own, made by one key.
fn chain(genesis: &Genesis) -> (Arc<dyn Engine>, TempDir) {
    let place = tempfile::tempdir().unwrap();
    let home = Home::new(place.path().to_owned());
    home.write_genesis(genesis).unwrap();
    (engine::open(&home, &Config::default(), &standard()).unwrap(), place)
}

/// A node that follows, on a thread of its own.
struct Followed {
    own: Arc<dyn Engine>,
    node: Node,
    seen: Seen,
    carried: watch::Receiver<Word>,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<Over>,
    _home: TempDir,
}

impl Followed {
    fn start(runtime: &Runtime, genesis: &Genesis, manner: FollowManner, dialled: &[&Node], timeout_ms: u64) -> Self {
        let (own, home) = chain(genesis);
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        let node = Node::start(runtime, dialled, None, |_, setup| setup.heard = Some(tell));
        let trust = Trust::of(genesis, &[], 1_000_000).unwrap();
        let (params, request_timeout) = (snapshot_params(genesis), Duration::from_millis(timeout_ms));
        let follow = Follow { params, trust, manner, request_timeout, producer_api: None };
        let (stop, stopped) = watch::channel(false);
        let (word, carried) = watch::channel(None);
        let seen = Seen::new(&follow);
        let ends = Ends { heard, stop: stopped, word, seen: seen.clone(), metrics: node.metrics.clone() };
        let (handle, network, engine) = (runtime.handle().clone(), node.network.clone(), own.clone());
        let thread = std::thread::spawn(move || {
            let mut following = Following::new(&handle, &*engine, network, follow, ends).unwrap();
            following.run(Until::Stopped { gap_ends: false })
        });
        Self { own, node, seen, carried, stop, thread, _home: home }
    }

    fn stands(&self) -> Version {
        self.own.stands().unwrap()
    }
}

/// A chain of a key, with a post in each height.
fn posts(genesis: &Genesis, key: &SecretKey, heights: u64) -> (Arc<dyn Engine>, TempDir) {
    let (made, home) = chain(genesis);
    for nonce in 0..heights {
        let operation = match nonce {
            0 => Operation::of(&agents::Register {
                name: Text::new("Ada").unwrap(),
                personality: agents::Personality::even(Fixed::from_micros(500_000)),
                traits: Default::default(),
            }),
            _ => Operation::of(&memes::Post { text: Text::new(format!("the {nonce}th")).unwrap() }),
        };
        let transaction = Transaction {
            chain_id: genesis.chain_id.clone(),
            sender: key.public(),
            nonce,
            expiry_height: Height(1_000),
            session: None,
            bundle: Bundle::new(Mode::Sync, vec![operation]).unwrap(),
        };
        made.submit(&transaction.sign(key).to_bytes()).unwrap();
        made.produce(Timestamp(nonce), key.public(), false).unwrap().unwrap();
    }
    (made, home)
}

/// Somebody who has a chain, and says of it what it wants.
struct Twists(Box<dyn Answers>, Manner);

impl Answers for Twists {
    fn answer(&mut self, now: Tick, peer: PeerId, request: &Request) -> Response {
        (self.1)(request, self.0.answer(now, peer, request))
    }
    fn worked(&mut self, peer: PeerId, took: Duration) {
        self.0.worked(peer, took);
    }
    fn gone(&mut self, peer: PeerId) {
        self.0.gone(peer);
    }
}

/// Each block has another time, and each diff a write more.
fn lies_of_heights(_: &Request, answer: Response) -> Response {
    match answer {
        Response::Blocks(blocks) => {
            let changed = |bytes: Blob<BLOCK_BYTES_MAX>| {
                let mut bytes = bytes.to_vec();
                bytes[8] ^= 1; // The time.
                Blob::new(bytes).unwrap()
            };
            Response::Blocks(BoundedList::new(blocks.into_vec().into_iter().map(changed).collect()).unwrap())
        }
        Response::Diffs(diffs) => {
            let mut diffs = diffs.into_vec();
            for found in &mut diffs {
                let more = (Namespace::new("agents").unwrap(), Key::new(*b"mine").unwrap(), Value::new(vec![7]).ok());
                found.diff = found.diff.clone().then([more].into_iter().collect());
            }
            Response::Diffs(BoundedList::new(diffs).unwrap())
        }
        other => other,
    }
}

/// spec: SNAP-11, PEER-15. S-01, over sockets: alone with one who lies of each height, in either manner, nothing is taken in,
/// and it is banned, although the word it carries is the producer's; with an honest peer the node comes to where that is.
#[test]
fn s01_who_lies_of_a_height_is_banned_and_an_honest_peer_leads_on() {
    let runtime = runtime();
    let key = SecretKey::from_seed(&[1; 32]);
    let mut genesis = Genesis::new(ChainId::new("followed-1").unwrap());
    genesis.producers = vec![key.public()];
    let (made, _home) = posts(&genesis, &key, 12);
    let answers =
        || made.clone().answers(ServerLimits::default(), Attests::Key(Arc::new(SecretKey::from_seed(&[1; 32]))));
    for manner in [FollowManner::Blocks, FollowManner::Diffs] {
        let liar = Node::start(&runtime, &[], Some(Box::new(Twists(answers(), lies_of_heights))), |_, _| {});
        let followed = Followed::start(&runtime, &genesis, manner, &[&liar], 200);
        until("the liar is banned", || followed.node.metrics.peers_banned.get() == 1);
        assert_eq!(followed.stands().height, Height(0), "{manner:?}");
        let _honest = Node::start(&runtime, &[&followed.node], Some(answers()), |_, _| {});
        until("it comes to where the producer is", || followed.stands() == made.stands().unwrap());
        for height in (1..=12).map(Height) {
            assert_eq!(followed.own.root_after(height).unwrap(), made.root_after(height).unwrap());
        }
        assert!(!followed.node.network.connected().contains(&liar.id()));
        followed.stop.send_replace(true);
        assert!(matches!(followed.thread.join(), Ok(Over::Done)));
    }
}

/// spec: PEER-21. On a chain that stands still a node that begins again, or goes on for long, still has the producer's word
/// to hand on, and a word that is said anew takes the place of the old one.
#[test]
fn the_word_for_where_a_chain_stands_still_is_handed_on_and_renewed() {
    let runtime = runtime();
    let key = SecretKey::from_seed(&[1; 32]);
    let mut genesis = Genesis::new(ChainId::new("idle-1").unwrap());
    genesis.producers = vec![key.public()];
    let (made, _home) = chain(&genesis);
    let old = {
        let said = made.attest(&key).unwrap().attestation;
        Attestation { said_at: Timestamp(said.said_at.0 - 500_000), ..said }
    };
    let (_once, certified) = watch::channel(Some(Arc::new(old.clone().sign(&key))));
    let honest = made.clone().answers(ServerLimits::default(), Attests::Carried(certified));
    let peer = Node::start(&runtime, &[], Some(honest), |_, _| {});
    let mut followed = Followed::start(&runtime, &genesis, FollowManner::Blocks, &[&peer], 5_000);
    assert_eq!(followed.stands(), made.stands().unwrap(), "there is nothing to take in");
    let said_at = |followed: &mut Followed| {
        followed.carried.borrow_and_update().as_ref().map(|signed| signed.attestation.said_at)
    };
    until("it has the word", || said_at(&mut followed) == Some(old.said_at));
    assert_eq!(followed.seen.standing().certified, Some(Height(0)));
    let announcer = Node::start(&runtime, &[&followed.node], None, |_, _| {});
    announcer.meets(&followed.node);
    let anew = made.attest(&key).unwrap();
    let request = Request::Announce { certificate: Blob::new(anew.to_bytes()).unwrap() };
    assert_eq!(announcer.network.ask(&followed.node.id(), request), Ok(Response::Heard));
    until("it has the newer word", || said_at(&mut followed) == Some(anew.attestation.said_at));
}

/// spec: PEER-21, Y-02. What is announced counts if a producer has signed it, lately and of this chain; what does not is
/// refused and counted, each with its reason, and who forges is banned.
#[test]
fn y02_announcements_are_believed_for_their_signature_and_for_nothing_else() {
    let runtime = runtime();
    let (key, stranger) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
    let mut genesis = Genesis::new(ChainId::new("announced-1").unwrap());
    genesis.producers = vec![key.public()];
    let (made, _home) = chain(&genesis);
    let produce = |height: u64| {
        while made.stands().unwrap().height.0 < height {
            made.produce(Timestamp(0), key.public(), true).unwrap();
        }
    };
    produce(3);
    // What it is asked for it certified once, and never again.
    let (_once, certified_once) = watch::channel(Some(Arc::new(made.attest(&key).unwrap())));
    let honest = made.clone().answers(ServerLimits::default(), Attests::Carried(certified_once));
    let peer = Node::start(&runtime, &[], Some(honest), |_, _| {});
    let says = |wrong: &dyn Fn(&mut Attestation), by: &SecretKey| {
        let mut said = made.attest(by).unwrap().attestation;
        wrong(&mut said);
        Request::Announce { certificate: Blob::new(said.sign(by).to_bytes()).unwrap() }
    };
    let old = says(&|_| {}, &key);

    let followed = Followed::start(&runtime, &genesis, FollowManner::Blocks, &[&peer], 5_000);
    let Followed { own, node, seen, mut carried, stop, thread, _home: _own_home } = followed;
    // It asks whoever it meets for its word.
    until("it comes to where the producer is", || own.stands().unwrap() == made.stands().unwrap());
    until("it hands on the word", || carried.borrow_and_update().is_some());
    produce(5);

    let meet = || {
        let other = Node::start(&runtime, &[&node], None, |_, _| {});
        other.meets(&node);
        other
    };
    let counted = |outcome: &str, at_least: u64| {
        let line = format!("follow_heard_words_total{{outcome=\"{outcome}\"}} ");
        let count = || node.metrics.render().lines().find_map(|found| found.strip_prefix(&line)?.parse().ok());
        until(&line, || count().is_some_and(|count: u64| count >= at_least));
    };
    let announcer = meet();
    let announce = |who: &Node, request: Request| who.network.ask(&node.id(), request);
    let mistaken = [
        says(&|_| {}, &stranger),
        says(&|said| said.said_at.0 -= 2_000_000, &key),
        says(&|said| said.said_at.0 += 2_000_000, &key),
    ];
    for request in mistaken {
        assert_eq!(announce(&announcer, request), Ok(Response::Heard));
    }
    counted("stranger", 1);
    counted("stale", 2);
    assert!(seen.standing().refused.is_some());
    // Nobody has moved it, and saying again what it knows moves nothing either.
    let taken = own.stands().unwrap();
    assert_eq!(taken.height, Height(3));
    assert_eq!(announce(&announcer, old), Ok(Response::Heard));
    counted("known", 1);
    // The word of the producer does, whoever carries it.
    assert_eq!(announce(&announcer, says(&|_| {}, &key)), Ok(Response::Heard));
    until("it comes to the announced version", || own.stands().unwrap() == made.stands().unwrap());
    assert_eq!(own.stands().unwrap().height, Height(5));
    assert_eq!(node.metrics.peers_banned.get(), 0);

    // Who forges is banned: another chain's, none, and one with another's signature.
    let forger = meet();
    let forged = [
        says(&|said| said.genesis_hash = keelstone_codec::Hash([7; 32]), &key),
        Request::Announce { certificate: Blob::new(vec![7; 90]).unwrap() },
        Request::Announce {
            certificate: {
                let honest = made.attest(&key).unwrap();
                let attestation = Attestation { height: Height(9), ..honest.attestation.clone() };
                Blob::new(SignedAttestation { attestation, ..honest }.to_bytes()).unwrap()
            },
        },
    ];
    for request in forged {
        let _ = announce(&forger, request);
    }
    until("the forger is banned", || node.metrics.peers_banned.get() == 1);
    counted("forged", 2);
    counted("foreign", 1);

    // Two words of one height and two roots: there is nobody left to believe.
    let later =
        |root: u8| says(&|said| (said.height, said.root) = (Height(8), Root(keelstone_codec::Hash([root; 32]))), &key);
    let last = meet();
    let _ = (announce(&last, later(1)), announce(&last, later(2)));
    let over = thread.join().unwrap();
    assert!(matches!(&over, Over::Diverged(failure) if failure.message.starts_with("forked")), "{over:?}");
    assert_eq!(own.stands().unwrap().height, Height(5), "nothing was built on either");
    drop(stop);
}

/// spec: PEER-21, Y-02. Who floods with announcements is told to come back later and is not banned, and keeps nobody from
/// following one who is honest.
#[test]
fn y02_a_flood_over_sockets_keeps_nobody_from_following() {
    const AT_ONCE: usize = 32;
    let runtime = runtime();
    let (key, stranger) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
    let mut genesis = Genesis::new(ChainId::new("flooded-1").unwrap());
    genesis.producers = vec![key.public()];
    let (made, _home) = chain(&genesis);
    let (tell, word) = watch::channel(None);
    let answers = made.clone().answers(ServerLimits::default(), Attests::Carried(word.clone()));
    let honest = Node::start(&runtime, &[], Some(answers), |_, _| {});
    runtime.spawn(announce(honest.network.clone(), word));
    let followed = Followed::start(&runtime, &genesis, FollowManner::Blocks, &[&honest], 5_000);
    honest.meets(&followed.node);

    let flooder = Node::start(&runtime, &[&followed.node], None, |_, _| {});
    flooder.meets(&followed.node);
    let (to, busy) = (followed.node.id(), Arc::new(AtomicU64::new(0)));
    let certificate = Blob::new(made.attest(&stranger).unwrap().to_bytes()).unwrap();
    let frame = Frame { id: 0, body: Request::Announce { certificate } }.to_bytes();
    let floods = (0..AT_ONCE).map(|_| {
        let (network, frame, busy) = (flooder.network.clone(), frame.clone(), busy.clone());
        runtime.spawn(async move {
            loop {
                let answer = network.ask_frame(to, frame.clone()).await;
                if let Some(Response::Busy { .. }) = answer.ok().and_then(|bytes| response(&bytes)) {
                    busy.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    let floods: Vec<_> = floods.collect();
    until("the flood is cut off", || busy.load(Ordering::Relaxed) > 0);
    for height in (1..=20).map(Height) {
        made.produce(Timestamp(height.0), key.public(), true).unwrap();
        tell.send_replace(Some(Arc::new(made.attest(&key).unwrap())));
        until("it follows all the same", || followed.stands() == made.stands().unwrap());
        assert_eq!(followed.stands().height, height);
    }
    assert_eq!(followed.node.metrics.peers_banned.get(), 0, "who says too much is not heard, and no more");
    assert!(followed.node.network.connected().contains(&flooder.id()));
    floods.iter().for_each(|flood| flood.abort());
    followed.stop.send_replace(true);
    assert!(matches!(followed.thread.join(), Ok(Over::Done)));
}

/// spec: PEER-21, SNAP-12. A producer's root of a height does not move: one who certifies another for a height that was reached
/// ends it, and the state that was there is kept.
#[test]
fn a_root_that_moves_ends_it_and_nothing_is_changed() {
    let runtime = runtime();
    let key = SecretKey::from_seed(&[1; 32]);
    let mut genesis = Genesis::new(ChainId::new("moved-1").unwrap());
    genesis.producers = vec![key.public()];
    let (made, _home) = posts(&genesis, &key, 6);
    let answers = made.clone().answers(ServerLimits::default(), Attests::Key(Arc::new(SecretKey::from_seed(&[1; 32]))));
    let peer = Node::start(&runtime, &[], Some(answers), |_, _| {});
    let followed = Followed::start(&runtime, &genesis, FollowManner::Diffs, &[&peer], 5_000);
    until("it comes to where the producer is", || followed.stands() == made.stands().unwrap());
    let moved = {
        let said = made.attest(&key).unwrap().attestation;
        Attestation { height: Height(4), root: Root(keelstone_codec::Hash([7; 32])), ..said }.sign(&key)
    };
    let request = Request::Announce { certificate: Blob::new(moved.to_bytes()).unwrap() };
    assert_eq!(peer.network.ask(&followed.node.id(), request), Ok(Response::Heard));
    let over = followed.thread.join().unwrap();
    let Over::Diverged(failure) = over else { panic!("{over:?}") };
    assert!(failure.message.contains("for height 4, this node has"), "{}", failure.message);
    assert_eq!(followed.own.stands().unwrap(), made.stands().unwrap());
    assert_eq!(followed.own.root_after(Height(4)).unwrap(), made.root_after(Height(4)).unwrap());
}

/// Whoever asks everybody waits for nobody once all who are dialled have answered, also if no answer was of use.
#[test]
fn nobody_is_waited_for_when_all_have_answered() {
    let runtime = runtime();
    let peers = [0; 3].map(|_| Node::start(&runtime, &[], Some(somebody(honest).0), |_, _| {}));
    let node = Node::start(&runtime, &peers.iter().collect::<Vec<_>>(), None, |_, _| {});
    let sources = Sources { network: Some(node.network.clone()), ..Sources::default() };
    for of_use in [false, true] {
        let mut answered = 0;
        // A day: it ends because all have answered, or not at all.
        ask_all(&runtime, &sources, Duration::from_secs(86_400), &Request::Status, &mut |_, answer| {
            answered += u32::from(answer.is_ok());
            of_use && answered == 3
        });
        assert_eq!(answered, 3);
    }
}
