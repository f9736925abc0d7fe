//! A swarm that speaks the frames' protocol and whatever else a test wants: somebody who is no node of ours.

use super::*;
use crate::p2p::codec::Frames;
use keelstone_codec::Decode as _;
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::core::upgrade::OutboundConnectionUpgrade as _;
use libp2p::core::{Endpoint, Transport as _};
use libp2p::futures::{AsyncWriteExt as _, StreamExt as _};
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, Message, ProtocolSupport};
use libp2p::swarm::SwarmEvent;
use libp2p::{StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use std::io;
use std::pin::Pin;
use std::sync::Mutex;

/// A connection that is encrypted and nothing more: what follows is up to the test.
pub(super) type Encrypted = Pin<Box<dyn Duplex>>;
pub(super) trait Duplex: libp2p::futures::AsyncRead + libp2p::futures::AsyncWrite + Send {}
impl<T: libp2p::futures::AsyncRead + libp2p::futures::AsyncWrite + Send> Duplex for T {}

/// A key that nobody else has.
pub(super) fn pair() -> libp2p::identity::Keypair {
    libp2p::identity::Keypair::generate_ed25519()
}

pub(super) async fn encrypted(to: SocketAddr, pair: &libp2p::identity::Keypair) -> Encrypted {
    let noise = noise::Config::new(pair).unwrap();
    let mut transport = libp2p::tcp::tokio::Transport::new(libp2p::tcp::Config::default());
    let address = libp2p::Multiaddr::from(to.ip()).with(libp2p::multiaddr::Protocol::Tcp(to.port()));
    let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let mut socket = transport.dial(address, options).unwrap().await.unwrap();
    let agreed = b"\x13/multistream/1.0.0\n\x07/noise\n";
    socket.write_all(agreed).await.unwrap();
    let mut echo = [0; 28];
    socket.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, agreed);
    let (_, stream) = noise.upgrade_outbound(socket, "/noise").await.unwrap();
    Box::pin(stream)
}

/// How a stranger answers a request, whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As anybody.
    Honest,
    /// Announces 4 GB, sends a byte of them, and holds the stream open.
    Announces,
    /// The same of as much as an answer may have.
    Holds,
    /// Announces as much as an answer may have, and sends a byte of it every second, or more quickly than a request is given up.
    Drips,
    DripsQuickly,
    /// Announces a byte more than the answer has, and closes the stream.
    CutShort,
    /// The answer, and the same again on its stream.
    Twice,
    /// The answer to a question of another number.
    OtherId,
}

impl Way {
    async fn write(self, io: &mut (impl libp2p::futures::AsyncWrite + Unpin + Send), frame: &[u8]) -> io::Result<()> {
        let most = u32::try_from(RESPONSE_BYTES_MAX).unwrap();
        let of = |len: usize| u32::try_from(len).unwrap().to_le_bytes();
        match self {
            Self::Honest | Self::OtherId => io.write_all(&[&of(frame.len())[..], frame].concat()).await?,
            Self::CutShort => io.write_all(&[&of(frame.len() + 1)[..], frame].concat()).await?,
            Self::Twice => {
                let once = [&of(frame.len())[..], frame].concat();
                io.write_all(&[&once[..], &once].concat()).await?;
            }
            Self::Announces | Self::Holds => {
                let announced = if self == Self::Holds { most } else { u32::MAX };
                io.write_all(&[&announced.to_le_bytes()[..], b"x"].concat()).await?;
                io.flush().await?;
                std::future::pending::<()>().await;
            }
            Self::Drips | Self::DripsQuickly => {
                let pause = if self == Self::Drips { Duration::from_secs(1) } else { Duration::from_millis(50) };
                io.write_all(&most.to_le_bytes()).await?;
                loop {
                    io.write_all(b"x").await?;
                    io.flush().await?;
                    tokio::time::sleep(pause).await;
                }
            }
        }
        io.close().await
    }
}

/// Frames, written in some way.
#[derive(Clone)]
struct Written(Arc<Mutex<Way>>);

impl request_response::Codec for Written {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, protocol: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: libp2p::futures::AsyncRead + Unpin + Send,
    {
        Frames.read_request(protocol, io).await
    }

    async fn read_response<T>(&mut self, protocol: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: libp2p::futures::AsyncRead + Unpin + Send,
    {
        Frames.read_response(protocol, io).await
    }

    async fn write_request<T>(&mut self, protocol: &StreamProtocol, io: &mut T, frame: Vec<u8>) -> io::Result<()>
    where
        T: libp2p::futures::AsyncWrite + Unpin + Send,
    {
        Frames.write_request(protocol, io, frame).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, frame: Vec<u8>) -> io::Result<()>
    where
        T: libp2p::futures::AsyncWrite + Unpin + Send,
    {
        let way = *self.0.lock().unwrap();
        way.write(io, &frame).await
    }
}

/// A swarm that takes in connections, hears requests as we do, and answers them in a way of its own.
pub(super) struct Stranger {
    id: NodeId,
    socket: SocketAddr,
    way: Arc<Mutex<Way>>,
    pub(super) asked: Arc<AtomicU64>,
    /// How many connections it has had.
    pub(super) met: Arc<AtomicU64>,
}

impl Stranger {
    pub(super) fn start(runtime: &Runtime, mut answers: Box<dyn Answers>, way: Way) -> Self {
        let _inside = runtime.enter();
        let way = Arc::new(Mutex::new(way));
        let config = request_response::Config::default().with_request_timeout(PATIENCE);
        let frames =
            request_response::Behaviour::with_codec(Written(way.clone()), [(PROTOCOL, ProtocolSupport::Full)], config);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| frames)
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
            .build();
        let (id, (asked, met)) = (*swarm.local_peer_id(), (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default()));
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let port = runtime.block_on(async {
            loop {
                if let SwarmEvent::NewListenAddr { address, .. } = swarm.next().await.unwrap() {
                    let port = |part| if let Protocol::Tcp(port) = part { Some(port) } else { None };
                    break address.iter().find_map(port).unwrap();
                }
            }
        });
        let stranger = Self {
            id,
            socket: SocketAddr::from(([127, 0, 0, 1], port)),
            way: way.clone(),
            asked: asked.clone(),
            met: met.clone(),
        };
        runtime.spawn(async move {
            loop {
                let event = match swarm.next().await.unwrap() {
                    SwarmEvent::ConnectionEstablished { .. } => {
                        met.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    SwarmEvent::Behaviour(request_response::Event::Message { message, .. }) => message,
                    _ => continue,
                };
                let Message::Request { request, channel, .. } = event else { continue };
                asked.fetch_add(1, Ordering::Relaxed);
                let Frame { id, body } = Frame::<Request>::from_bytes(&request).unwrap();
                let body = answers.answer(Tick(0), PeerId(0), &body);
                let id = if *way.lock().unwrap() == Way::OtherId { id.wrapping_add(1) } else { id };
                // Whoever asked may be gone.
                let _ = swarm.behaviour_mut().send_response(channel, Frame { id, body }.to_bytes());
            }
        });
        stranger
    }

    pub(super) fn id(&self) -> NodeId {
        self.id
    }

    pub(super) fn address(&self) -> String {
        format!("{}@{}", self.id, self.socket)
    }

    /// Answers in this way from now on.
    pub(super) fn turns(&self, way: Way) {
        *self.way.lock().unwrap() = way;
    }
}

/// Longer answers than this are not read.
const READ_BYTES_MAX: u32 = 1 << 16;

/// Frames, of which answers are read only if they are short.
#[derive(Clone)]
struct Unread;

impl request_response::Codec for Unread {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, protocol: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: libp2p::futures::AsyncRead + Unpin + Send,
    {
        Frames.read_request(protocol, io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: libp2p::futures::AsyncRead + Unpin + Send,
    {
        let mut length = [0; 4];
        io.read_exact(&mut length).await?;
        let length = u32::from_le_bytes(length);
        if length > READ_BYTES_MAX {
            std::future::pending::<()>().await;
        }
        let mut frame = vec![0; length as usize];
        io.read_exact(&mut frame).await?;
        Ok(frame)
    }

    async fn write_request<T>(&mut self, protocol: &StreamProtocol, io: &mut T, frame: Vec<u8>) -> io::Result<()>
    where
        T: libp2p::futures::AsyncWrite + Unpin + Send,
    {
        Frames.write_request(protocol, io, frame).await
    }

    async fn write_response<T>(&mut self, protocol: &StreamProtocol, io: &mut T, frame: Vec<u8>) -> io::Result<()>
    where
        T: libp2p::futures::AsyncWrite + Unpin + Send,
    {
        Frames.write_response(protocol, io, frame).await
    }
}

/// Somebody who asks for much and reads none of it. Its connection ends with it.
pub(super) struct Hoarder {
    asks: mpsc::UnboundedSender<Request>,
    /// How often it was told to come back.
    pub(super) busy: Arc<AtomicU64>,
}

impl Hoarder {
    pub(super) fn start(runtime: &Runtime, of: &Node) -> Self {
        let _inside = runtime.enter();
        let config = request_response::Config::default().with_request_timeout(PATIENCE);
        let protocols = [(PROTOCOL, ProtocolSupport::Full)];
        let frames = request_response::Behaviour::with_codec(Unread, protocols, config);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| frames)
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
            .build();
        let ((asks, mut asked), busy) = (mpsc::unbounded_channel(), Arc::<AtomicU64>::default());
        let (peer, told) = (of.id(), busy.clone());
        let address = libp2p::Multiaddr::from(of.socket().ip()).with(Protocol::Tcp(of.socket().port()));
        swarm.add_peer_address(peer, address);
        runtime.spawn(async move {
            for id in 0.. {
                let body: Request = loop {
                    tokio::select! {
                        asked = asked.recv() => match asked {
                            Some(body) => break body,
                            None => return,
                        },
                        event = swarm.next() => {
                            let Some(SwarmEvent::Behaviour(request_response::Event::Message {
                                message: Message::Response { response, .. },
                                ..
                            })) = event else { continue };
                            let Frame { body, .. } = Frame::<Response>::from_bytes(&response).unwrap();
                            assert!(matches!(body, Response::Busy { .. }), "{body:?}");
                            told.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                };
                swarm.behaviour_mut().send_request(&peer, Frame { id, body }.to_bytes());
            }
        });
        Self { asks, busy }
    }

    pub(super) fn asks(&self, request: Request) {
        self.asks.send(request).unwrap();
    }

    pub(super) fn is_told(&self, times: u64) -> bool {
        self.busy.load(Ordering::Relaxed) == times
    }
}
