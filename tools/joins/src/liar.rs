//! A peer that lies, over a real socket: it stands before an honest one, hands on what it is asked, and spoils the answer.
//!
//! The catalogue is that of `tools/sim`.

use futures_util::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use keelstone_codec::{Blob, Decode as _, Encode as _, Hash, Height, Root, splitmix64};
use keelstone_sync::peers::{Frame, RESPONSE_BYTES_MAX, Request, Response, Status, Version};
use keelstone_sync::snapshot::{pack, unpack};
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, Codec, Message, OutboundRequestId, ProtocolSupport, ResponseChannel};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/keelstone/peers/1");
/// How long the honest one behind it may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often one that never ends sends a few bytes more.
const DRIP: Duration = Duration::from_millis(200);

/// How it lies, or is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// One bit of every part is wrong.
    WrongBytes,
    /// All its parts are empty, politely.
    Empty,
    /// It says that it gives all, and gives the half.
    Partial,
    /// It gives more than was asked for.
    Trailing,
    /// Its frames are announced, begun and never done.
    Endless,
    /// The parts of the version before.
    Stale,
    /// Its first part again and again.
    Replayed,
    /// It answers when it is nearly too late, or just too late.
    Slow,
    /// Its frames are above the limit.
    Oversized,
    /// What the request before asked for.
    OthersAnswer,
    /// Another root each time that it is asked where it stands, and parts of none of them.
    MovingRoot,
    /// The right answer under another number.
    WrongNumber,
    /// It never answers.
    Silent,
}

impl Manner {
    pub(crate) const ALL: [Self; 13] = [
        Self::WrongBytes,
        Self::Empty,
        Self::Partial,
        Self::Trailing,
        Self::Endless,
        Self::Stale,
        Self::Replayed,
        Self::Slow,
        Self::Oversized,
        Self::OthersAnswer,
        Self::MovingRoot,
        Self::WrongNumber,
        Self::Silent,
    ];

    /// Whether it never sends what cannot be true: such a peer must not be banned.
    pub(crate) fn is_blameless(self) -> bool {
        matches!(self, Self::Empty | Self::Endless | Self::Slow | Self::Silent)
    }
}

/// A liar that runs, until it is dropped.
pub(crate) struct Liar {
    /// How peers call it.
    pub(crate) address: String,
    lies: Arc<AtomicU32>,
    _runtime: Runtime,
}

impl Liar {
    /// Begins to lie at an address, before an honest peer and one that has another version; late is about how long a request
    /// may take.
    pub(crate) fn start(
        manner: Manner,
        at: Ipv4Addr,
        honest: &str,
        behind: (&str, Version),
        late: Duration,
    ) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| format!("a liar could not start: {error}"))?;
        let lies = Arc::new(AtomicU32::new(0));
        let task = Task::start(manner, at, honest, behind, late, lies.clone());
        let (task, address) = runtime.block_on(task)?;
        runtime.spawn(task.run());
        Ok(Self { address, lies, _runtime: runtime })
    }

    /// How many answers it has sent that cannot be true.
    pub(crate) fn lies(&self) -> u32 {
        self.lies.load(Ordering::Relaxed)
    }
}

/// What goes out on a stream.
#[derive(Debug, Clone)]
enum Sent {
    Frame(Vec<u8>),
    /// The head of a frame, and then a byte now and then.
    Endless,
}

/// Frames as bytes, whatever they say.
#[derive(Debug, Clone, Default)]
struct Frames;

impl Codec for Frames {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Sent;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Sent>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await.map(Sent::Frame)
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, frame: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &frame).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, sent: Sent) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        match sent {
            Sent::Frame(frame) => write(io, &frame).await,
            Sent::Endless => {
                let announced = u32::try_from(RESPONSE_BYTES_MAX).expect("16 MB");
                io.write_all(&announced.to_le_bytes()).await?;
                loop {
                    io.write_all(&[0; 64]).await?;
                    io.flush().await?;
                    tokio::time::sleep(DRIP).await;
                }
            }
        }
    }
}

async fn read(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Vec<u8>> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    let mut frame = Vec::new();
    io.take(u64::from(u32::from_le_bytes(head))).read_to_end(&mut frame).await?;
    Ok(frame)
}

async fn write(io: &mut (impl AsyncWrite + Unpin + Send), frame: &[u8]) -> io::Result<()> {
    let len = u32::try_from(frame.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    io.write_all(&len.to_le_bytes()).await?;
    // Whoever knows the limit hangs up before all of it is there.
    io.write_all(frame).await?;
    io.close().await
}

type Answer = (ResponseChannel<Sent>, Sent);

/// A request that somebody else is to answer.
struct HandedOn {
    /// Who waits for it.
    channel: ResponseChannel<Sent>,
    /// What it is, if it is one.
    asked: Option<Frame<Request>>,
    /// What is true, once it is known: then what comes is another version's.
    honest: Option<Response>,
}

struct Task {
    swarm: Swarm<request_response::Behaviour<Frames>>,
    spoiler: Spoiler,
    honest: PeerId,
    /// The one that has another version, and which.
    behind: (PeerId, Version),
    /// What was handed on, and who waits for it.
    handed_on: HashMap<OutboundRequestId, HandedOn>,
    late: (mpsc::UnboundedSender<Answer>, mpsc::UnboundedReceiver<Answer>),
    /// Those that are never answered: their streams stay open until whoever asked gives up.
    unanswered: Vec<ResponseChannel<Sent>>,
}

impl Task {
    async fn start(
        manner: Manner,
        at: Ipv4Addr,
        honest: &str,
        (behind, version): (&str, Version),
        late: Duration,
        lies: Arc<AtomicU32>,
    ) -> Result<(Self, String), String> {
        let said = |error: &dyn std::fmt::Display| format!("a liar could not start: {error}");
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .map_err(|error| said(&error))?
            .with_behaviour(|_| {
                let config = request_response::Config::default().with_request_timeout(PATIENCE);
                request_response::Behaviour::with_codec(Frames, [(PROTOCOL, ProtocolSupport::Full)], config)
            })
            .map_err(|error| said(&error))?
            .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
            .build();
        let place = |address: SocketAddr| Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()));
        let mut know = |peer: &str| -> Result<PeerId, String> {
            let (id, address) = peer.split_once('@').ok_or_else(|| said(&peer))?;
            let id: PeerId = id.parse().map_err(|_| said(&peer))?;
            let address: SocketAddr = address.parse().map_err(|error| said(&error))?;
            swarm.add_peer_address(id, place(address));
            Ok(id)
        };
        let (honest, behind) = (know(honest)?, know(behind)?);
        swarm.listen_on(place(SocketAddr::from((at, 0)))).map_err(|error| said(&error))?;
        let port = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                let port =
                    address.iter().find_map(|part| if let Protocol::Tcp(port) = part { Some(port) } else { None });
                break port.ok_or_else(|| said(&address))?;
            }
        };
        let own = format!("{}@{at}:{port}", swarm.local_peer_id());
        let spoiler = Spoiler { manner, late, lies, seed: 1, first: None, before: None };
        let late = mpsc::unbounded_channel();
        let (behind, handed_on) = ((behind, version), HashMap::new());
        Ok((Self { swarm, spoiler, honest, behind, handed_on, late, unanswered: Vec::new() }, own))
    }

    async fn run(mut self) {
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => {
                    if let SwarmEvent::Behaviour(request_response::Event::Message { message, .. }) = event {
                        self.on_message(message);
                    }
                }
                Some((channel, sent)) = self.late.1.recv() => {
                    // Whoever asked may be gone.
                    let _ = self.swarm.behaviour_mut().send_response(channel, sent);
                }
            }
        }
    }

    fn on_message(&mut self, message: Message<Vec<u8>, Sent>) {
        match message {
            Message::Request { request, channel, .. } => {
                let asked = Frame::<Request>::from_bytes(&request).ok();
                let id = self.swarm.behaviour_mut().send_request(&self.honest, request);
                self.handed_on.insert(id, HandedOn { channel, asked, honest: None });
            }
            Message::Response { request_id, response } => {
                let (Some(HandedOn { channel, asked: Some(asked), honest }), Sent::Frame(bytes)) =
                    (self.handed_on.remove(&request_id), response)
                else {
                    return;
                };
                let Ok(came) = Frame::<Response>::from_bytes(&bytes) else { return };
                let stale = (self.spoiler.manner == Manner::Stale && honest.is_none())
                    .then(|| of_version(&asked, self.behind.1))
                    .flatten();
                if let Some(frame) = stale {
                    let id = self.swarm.behaviour_mut().send_request(&self.behind.0, frame.to_bytes());
                    self.handed_on.insert(id, HandedOn { channel, asked: Some(asked), honest: Some(came.body) });
                    return;
                }
                let spoilt = match honest {
                    Some(honest) => Some((self.spoiler.put(&asked, &honest, came.body), Duration::ZERO)),
                    None => self.spoiler.spoil(&asked, came.body),
                };
                let Some((sent, delay)) = spoilt else {
                    self.unanswered.push(channel);
                    return;
                };
                let late = self.late.0.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    drop(late.send((channel, sent)));
                });
            }
        }
    }
}

/// Makes lies of honest answers.
struct Spoiler {
    manner: Manner,
    late: Duration,
    lies: Arc<AtomicU32>,
    seed: u64,
    first: Option<Response>,
    before: Option<Response>,
}

/// The same question for a part of another version; none if it is for no part.
fn of_version(asked: &Frame<Request>, version: Version) -> Option<Frame<Request>> {
    let mut frame = asked.clone();
    match &mut frame.body {
        Request::GetNodes { at, .. } | Request::GetChunks { at, .. } => *at = version,
        _ => return None,
    }
    Some(frame)
}

impl Spoiler {
    /// What comes in the place of the truth. Two versions share what is equal in both, and where the other has no such part,
    /// saying so is no lie.
    fn put(&self, asked: &Frame<Request>, honest: &Response, instead: Response) -> Sent {
        let is_lie = matches!(instead, Response::Nodes(_) | Response::Chunks { .. }) && instead != *honest;
        let sent = Sent::Frame(Frame { id: asked.id, body: instead }.to_bytes());
        if is_lie { self.lie(sent) } else { sent }
    }

    /// What is sent, and after how long; nothing for silence. Where it stands is told as it is, unless that is the lie.
    fn spoil(&mut self, asked: &Frame<Request>, honest: Response) -> Option<(Sent, Duration)> {
        let frame = |body: Response| Sent::Frame(Frame { id: asked.id, body }.to_bytes());
        let is_part = matches!(honest, Response::Nodes(_) | Response::Chunks { .. });
        if !is_part {
            let body = match (self.manner, honest) {
                (Manner::MovingRoot, Response::Status(status)) => {
                    let more = splitmix64(&mut self.seed);
                    let height = Height(status.newest.height.0 + 1 + more % 3);
                    let root = Root(Hash([more.to_le_bytes()[0]; 32]));
                    Response::Status(Status { newest: Version { height, root }, ..status })
                }
                (_, honest) => honest,
            };
            return Some((frame(body), Duration::ZERO));
        }
        let before = self.before.replace(honest.clone());
        let first = self.first.get_or_insert_with(|| honest.clone()).clone();
        let late = match self.manner {
            // Between the half and one and a half of the time there is.
            Manner::Slow => self.late / 2 + self.late * u32::from(splitmix64(&mut self.seed).to_le_bytes()[0]) / 255,
            _ => Duration::ZERO,
        };
        let sent = match self.manner {
            Manner::Silent => return None,
            Manner::Endless => Sent::Endless,
            Manner::Slow | Manner::Stale => frame(honest),
            Manner::Empty => match honest {
                Response::Chunks { .. } => frame(Response::Chunks { units: 0, wire: Blob::new([]).expect("nothing") }),
                // There is no empty page: it does what comes nearest without a lie.
                _ => frame(Response::Busy { retry_after_ms: 0 }),
            },
            Manner::WrongBytes => {
                let at = splitmix64(&mut self.seed);
                self.lie(frame(on_raw(&honest, |raw| {
                    let place = at % raw.len().max(1) as u64;
                    if let Some(byte) = usize::try_from(place).ok().and_then(|place| raw.get_mut(place)) {
                        *byte ^= 1;
                    }
                })))
            }
            Manner::Partial => self.lie(frame(on_raw(&honest, |raw| raw.truncate(raw.len() / 2)))),
            Manner::Trailing => self.lie(frame(on_raw(&honest, |raw| raw.extend_from_within(..raw.len().min(40))))),
            Manner::Oversized => self.lie(Sent::Frame(vec![0; RESPONSE_BYTES_MAX + 1])),
            Manner::WrongNumber => self.lie(Sent::Frame(Frame { id: asked.id ^ 1, body: honest }.to_bytes())),
            Manner::Replayed if first == honest => frame(honest),
            Manner::Replayed => self.lie(frame(first)),
            Manner::OthersAnswer | Manner::MovingRoot => match before {
                Some(before) if before != honest => self.lie(frame(before)),
                _ => frame(honest),
            },
        };
        Some((sent, late))
    }

    fn lie(&self, sent: Sent) -> Sent {
        self.lies.fetch_add(1, Ordering::Relaxed);
        sent
    }
}

/// The answer with its part changed, in a wire form that is right.
fn on_raw(response: &Response, change: impl FnOnce(&mut Vec<u8>)) -> Response {
    let changed = |wire: &[u8]| {
        let mut raw = unpack(wire, 1 << 24).expect("an honest part").into_owned();
        change(&mut raw);
        Blob::new(pack(&raw, 1).expect("a part is small")).expect("a part is small")
    };
    match response {
        Response::Nodes(wire) => Response::Nodes(changed(wire)),
        Response::Chunks { units, wire } => Response::Chunks { units: *units, wire: changed(wire) },
        other => other.clone(),
    }
}
