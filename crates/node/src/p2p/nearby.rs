//! Peers on the same network, by multicast DNS: this node asks who is there, says that it is, and hears others do so.
//!
//! Nothing that comes is trusted: a packet is at most a reason to dial the address that it came from, and who answers there
//! shows its id and proves what it says like any other peer. Names are RFC 6762's and 6763's, read and written by
//! `simple_dns`; what is read has a few bounds before it gets there.
//!
//! Rules: `spec/peers.md`, PEER-23.

use super::NodeId;
use crate::exit::Failure;
use keelstone_codec::ChainId;
use simple_dns::rdata::{PTR, RData, SRV, TXT};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, ResourceRecord, TYPE};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;

/// The service, as RFC 6763 names them.
const SERVICE: &str = "_keelstone._udp.local";
/// Where multicast DNS is spoken (RFC 6762, section 3).
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353);
/// How long a record counts, in seconds. Nobody keeps them here.
const TTL_S: u32 = 120;
/// Bytes of a packet; a larger one is cut and so is none. What is said here has some 300.
pub(super) const PACKET_BYTES_MAX: usize = 1_500;
/// Questions and records of a packet, of each kind.
const RECORDS_MAX: u16 = 32;
/// Packets that are looked at in a second; the rest waits, and what finds no room with the system is lost.
const PACKETS_MAX: u32 = 32;
/// How often it is asked who is there: at first, and, twice as long each time, at last.
const ASK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often it is said who is here, at most (RFC 6762, section 6).
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Peers that one address may name in [`WINDOW`].
const PEERS_MAX: usize = 8;
/// How often it may name each of them.
const AGAIN: Duration = Duration::from_secs(5);
/// Over how long they are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted at once; above it nobody new is heard until the window ends.
const ADDRESSES_MAX: usize = 256;

/// Whom to look for, and how.
#[derive(Debug, Clone)]
pub(crate) struct Nearby {
    /// An address of the network to look on; unspecified for the one where the system sends multicast.
    pub(crate) interface: Ipv4Addr,
    /// The chain whose nodes are of use.
    pub(crate) chain: ChainId,
}

/// Somebody who said that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) peer: NodeId,
    pub(super) port: u16,
}

/// What a packet is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Somebody asks who is there.
    Question,
    /// Somebody is there.
    There(Seen),
    /// Nothing for us.
    Nothing,
}

/// How many packets were looked at in this second.
struct Pace {
    second: Instant,
    looked: u32,
}

impl Pace {
    /// One more is looked at. Returns what has to be waited before the next.
    fn looks(&mut self, now: Instant) -> Option<Duration> {
        let over = Duration::from_secs(1);
        if now.duration_since(self.second) >= over {
            (self.second, self.looked) = (now, 0);
        }
        self.looked += 1;
        (self.looked >= PACKETS_MAX).then_some(over)
    }
}

/// Looks on one network.
pub(super) struct Lookout {
    socket: UdpSocket,
    nearby: Nearby,
    own: NodeId,
    /// Where this node listens; none if it takes in nobody, and so has nothing to say.
    port: Option<u16>,
    said: Option<Instant>,
    /// Since when whom which address named.
    named: (Instant, BTreeMap<Ipv4Addr, BTreeMap<NodeId, Instant>>),
}

impl Lookout {
    /// Joins the group. Must be called inside the runtime.
    ///
    /// # Errors
    /// If the system has no multicast there.
    pub(super) fn open(nearby: Nearby, own: NodeId, port: Option<u16>) -> Result<Self, Failure> {
        let socket = socket(nearby.interface).map_err(|error| {
            Failure::io(format_args!("could not look for peers by multicast DNS on {}", nearby.interface), &error)
                .hint("p2p.listen says on which network; p2p.mdns = false does without")
        })?;
        let named = (Instant::now(), BTreeMap::new());
        Ok(Self { socket, nearby, own, port, said: None, named })
    }

    /// Asks, answers and listens, without end. `found` is told who may be where.
    pub(super) async fn run(mut self, mut found: impl FnMut(NodeId, SocketAddrV4)) {
        let mut packet = [0; PACKET_BYTES_MAX];
        let (mut pause, mut next) = (ASK_EVERY.0, tokio::time::Instant::now());
        let mut pace = Pace { second: Instant::now(), looked: 0 };
        self.say(Instant::now()).await;
        loop {
            let received = tokio::select! {
                received = self.socket.recv_from(&mut packet) => received,
                () = tokio::time::sleep_until(next) => {
                    self.send(question()).await;
                    next = tokio::time::Instant::now() + pause;
                    pause = (pause * 2).min(ASK_EVERY.1);
                    continue;
                }
            };
            let now = Instant::now();
            if let Some(pause) = pace.looks(now) {
                tokio::time::sleep(pause).await;
            }
            let Ok((length, SocketAddr::V4(from))) = received else { continue };
            match self.hear(&packet[..length], from, now) {
                Heard::Question => self.say(now).await,
                Heard::There(Seen { peer, port }) => found(peer, SocketAddrV4::new(*from.ip(), port)),
                Heard::Nothing => {}
            }
        }
    }

    /// What a packet is to this node.
    // spec: PEER-23
    fn hear(&mut self, packet: &[u8], from: SocketAddrV4, now: Instant) -> Heard {
        let ip = from.ip();
        // From beyond the network nobody speaks to it, and nobody but a responder answers.
        if !(ip.is_private() || ip.is_link_local() || ip.is_loopback()) || from.port() != GROUP.port() {
            return Heard::Nothing;
        }
        let heard = read(packet, &self.nearby.chain);
        let Heard::There(seen) = heard else { return heard };
        if seen.peer == self.own || !self.counts(seen.peer, *ip, now) { Heard::Nothing } else { heard }
    }

    /// Whether an address may name this peer now.
    fn counts(&mut self, peer: NodeId, ip: Ipv4Addr, now: Instant) -> bool {
        let (since, addresses) = &mut self.named;
        if now.duration_since(*since) >= WINDOW {
            (*since, *addresses) = (now, BTreeMap::new());
        }
        if addresses.len() >= ADDRESSES_MAX && !addresses.contains_key(&ip) {
            return false;
        }
        let named = addresses.entry(ip).or_default();
        let is_too_much = match named.get(&peer) {
            Some(last) => now.duration_since(*last) < AGAIN,
            None => named.len() >= PEERS_MAX,
        };
        if !is_too_much {
            named.insert(peer, now);
        }
        !is_too_much
    }

    async fn say(&mut self, now: Instant) {
        let is_early = self.said.is_some_and(|said| now.duration_since(said) < SAY_EVERY);
        let Some(port) = self.port.filter(|_| !is_early) else { return };
        self.said = Some(now);
        self.send(here(&self.own, port, &self.nearby.chain)).await;
    }

    async fn send(&self, packet: Vec<u8>) {
        // A network that is gone for now may be back when it is asked next.
        if let Err(error) = self.socket.send_to(&packet, SocketAddr::V4(GROUP)).await {
            tracing::debug!(%error, "nothing can be said by multicast DNS");
        }
    }
}

/// A socket of the group alone: what is sent to this host's own addresses does not reach it.
fn socket(interface: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // Others on this machine speak multicast DNS as well.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::V4(GROUP).into())?;
    socket.join_multicast_v4(GROUP.ip(), &interface)?;
    socket.set_multicast_if_v4(&interface)?;
    socket.set_multicast_loop_v4(true)?;
    socket.set_multicast_ttl_v4(255)?;
    UdpSocket::from_std(socket.into())
}

fn service() -> Name<'static> {
    Name::new_unchecked(SERVICE)
}

fn bytes(packet: &Packet<'_>) -> Vec<u8> {
    packet.build_bytes_vec().expect("names and texts of a few bytes")
}

/// Who is there?
pub(super) fn question() -> Vec<u8> {
    let mut packet = Packet::new_query(0);
    packet.questions.push(Question::new(service(), TYPE::PTR.into(), CLASS::IN.into(), false));
    bytes(&packet)
}

/// This node is.
pub(super) fn here(own: &NodeId, port: u16, chain: &ChainId) -> Vec<u8> {
    let (instance, host) = (format!("{own}.{SERVICE}"), format!("{own}.local"));
    let (instance, host) = (Name::new_unchecked(&instance), Name::new_unchecked(&host));
    let text = format!("chain={chain}");
    let text = TXT::new().with_string(&text).expect("a chain's name is short");
    let record = |name: &Name<'_>, data| ResourceRecord::new(name.clone().into_owned(), CLASS::IN, TTL_S, data);
    let mut packet = Packet::new_reply(0);
    packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    packet.answers.push(record(&service(), RData::PTR(PTR(instance.clone()))));
    packet.additional_records = vec![
        record(&instance, RData::SRV(SRV { priority: 0, weight: 0, port, target: host })),
        record(&instance, RData::TXT(text)),
    ];
    bytes(&packet)
}

/// What a packet says of nodes of a chain.
pub(super) fn read(packet: &[u8], chain: &ChainId) -> Heard {
    // Room is made for as many as the head says: that has to be few.
    let counts = packet.get(4..12).unwrap_or_default().chunks_exact(2);
    if counts.map(|count| u16::from_be_bytes([count[0], count[1]])).any(|count| count > RECORDS_MAX) {
        return Heard::Nothing;
    }
    let Ok(packet) = Packet::parse(packet) else { return Heard::Nothing };
    if !packet.has_flags(PacketFlag::RESPONSE) {
        let asks = |question: &Question<'_>| question.qname == service();
        return if packet.questions.iter().any(asks) { Heard::Question } else { Heard::Nothing };
    }
    let records = || packet.answers.iter().chain(&packet.additional_records);
    let port = records().find_map(|record| match &record.rdata {
        RData::SRV(place) if place.port > 0 => Some((&record.name, place.port)),
        _ => None,
    });
    let Some((name, port)) = port else { return Heard::Nothing };
    let wanted = format!("chain={chain}");
    let is_ours = |text: &TXT<'_>| {
        text.iter_raw().any(|(key, value)| [key, b"=", value.unwrap_or_default()].concat() == wanted.as_bytes())
    };
    let of_chain = |record: &ResourceRecord<'_>| {
        record.name == *name && matches!(&record.rdata, RData::TXT(text) if is_ours(text))
    };
    let peer = name.without(&service()).and_then(|peer| peer.to_string().parse().ok());
    match peer {
        Some(peer) if records().any(of_chain) => Heard::There(Seen { peer, port }),
        _ => Heard::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5353);

    fn chain(name: &str) -> ChainId {
        ChainId::new(name).expect("a name")
    }

    fn lookout() -> Lookout {
        let nearby = Nearby { interface: Ipv4Addr::LOCALHOST, chain: chain("near-1") };
        Lookout::open(nearby, NodeId::random(), None).expect("loopback has multicast")
    }

    /// spec: PEER-23.
    #[test]
    fn what_a_node_says_is_read_by_those_of_its_chain_alone() {
        let (peer, port) = (NodeId::random(), 26_690);
        // A key of ed25519 is written out in its id, which is the longest there is.
        let own = libp2p::identity::Keypair::generate_ed25519().public().to_peer_id();
        for id in [peer, own] {
            let said = here(&id, port, &chain("near-1"));
            assert!(said.len() <= PACKET_BYTES_MAX / 4, "{}", said.len());
            assert_eq!(read(&said, &chain("near-1")), Heard::There(Seen { peer: id, port }));
            assert_eq!(read(&said, &chain("near-2")), Heard::Nothing);
        }
        assert_eq!(read(&question(), &chain("near-1")), Heard::Question);
        assert_eq!(read(&here(&peer, 0, &chain("near-1")), &chain("near-1")), Heard::Nothing);
        let longest = chain(&"c".repeat(50));
        assert_eq!(read(&here(&own, port, &longest), &longest), Heard::There(Seen { peer: own, port }));
    }

    /// A head that promises more than there may be is not believed, and no room is made for it.
    #[test]
    fn packets_that_promise_too_much_are_nothing() {
        for at in [4, 6, 8, 10] {
            let mut promises = question();
            promises[at..at + 2].copy_from_slice(&u16::MAX.to_be_bytes());
            assert_eq!(read(&promises, &chain("near-1")), Heard::Nothing, "at {at}");
        }
    }

    /// spec: PEER-23. Y-04: whoever shouts without end is heard so often in a second, and whoever speaks now and then at once.
    #[test]
    fn y04_so_many_packets_are_looked_at_in_a_second() {
        let began = Instant::now();
        let heard = |every: Duration| {
            let (mut pace, mut now, mut looked) = (Pace { second: began, looked: 0 }, began, 0);
            let mut waited = Duration::ZERO;
            while now < began + Duration::from_secs(60) {
                let pause = pace.looks(now).unwrap_or_default();
                waited += pause;
                now += pause + every;
                looked += 1;
            }
            (looked, waited)
        };
        let (looked, _) = heard(Duration::from_micros(3));
        assert!((59 * PACKETS_MAX..=60 * PACKETS_MAX).contains(&looked), "{looked}");
        assert_eq!(heard(Duration::from_millis(100)), (600, Duration::ZERO));
    }

    /// spec: PEER-23. Y-04: neither somebody beyond the network nor one address that names as many as it likes is dialled for it.
    #[tokio::test]
    async fn y04_one_address_names_few_and_none_from_beyond_the_network_is_heard() {
        let mut lookout = lookout();
        let now = Instant::now();
        let said = || here(&NodeId::random(), 9, &chain("near-1"));
        let mut heard = |from: SocketAddrV4, now| matches!(lookout.hear(&said(), from, now), Heard::There(_));
        assert_eq!((0..100).filter(|_| heard(LOOPBACK, now)).count(), PEERS_MAX);
        assert_eq!((0..100).filter(|_| heard(LOOPBACK, now + WINDOW)).count(), PEERS_MAX);
        let later = now + WINDOW * 2;
        let named = (0..1_000u32).map(|number| Ipv4Addr::from_bits(0x0a00_0000 | number));
        assert_eq!(named.filter(|ip| heard(SocketAddrV4::new(*ip, 5353), later)).count(), ADDRESSES_MAX);
        assert!(!heard(SocketAddrV4::new(Ipv4Addr::new(8, 8, 8, 8), 5353), now + WINDOW * 3));
        assert!(!heard(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5354), now + WINDOW * 3));
        let (own, other) = (lookout.own, NodeId::random());
        let mut is_heard = |peer, after| {
            let packet = here(&peer, 9, &chain("near-1"));
            lookout.hear(&packet, LOOPBACK, now + WINDOW * 4 + after) != Heard::Nothing
        };
        assert!(!is_heard(own, Duration::ZERO));
        assert_eq!([Duration::ZERO, AGAIN / 2, AGAIN].map(|after| is_heard(other, after)), [true, false, true]);
    }
}
