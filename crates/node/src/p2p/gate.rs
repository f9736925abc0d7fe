//! Who may connect: limits on connections, in all, of one address and of one peer, and bans.
//!
//! It looks at a connection before its handshake, when only its address is known, and once more when the peer has shown
//! who it is. Connections that this node opens itself have places of their own, which nobody who comes in can take.
//!
//! Over UDP anybody can write any address on what it sends: until the handshake is done, that it came from there is a claim. So
//! handshakes over QUIC take places of those over QUIC alone, also of the address that they name.

use super::bans::Bans;
use super::{NodeId, Transport};
use crate::origin::counted_as;
use libp2p::Multiaddr;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Connections of one peer, at most: both ends may have opened one at the same moment.
const PEER_CONNECTIONS_MAX: usize = 2;
/// Handshakes under way at once that others began, over each transport.
const HANDSHAKES_MAX: usize = 64;
/// Over how long connections of one address are counted.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// So many times the open connections an address may have, it may open in that time.
const RATE_TIMES: usize = 4;
/// Addresses that are counted at once; above it the oldest count is forgotten.
const ADDRESSES_MAX: usize = 1024;

/// Limits on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// That others opened, in all.
    pub(crate) inbound_max: usize,
    /// That one address opened.
    pub(crate) address_max: usize,
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the peer is banned")]
    Banned,
    #[error("all places are taken")]
    Full,
    #[error("this address has too many connections, or makes them too fast")]
    Address,
    #[error("this peer is connected already")]
    Twice,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    machine: Option<IpAddr>,
    transport: Transport,
}

impl Source {
    fn of(address: &Multiaddr) -> Self {
        let is_udp = address.iter().any(|part| matches!(part, Protocol::Udp(_)));
        let transport = if is_udp { Transport::Quic } else { Transport::Tcp };
        Self { machine: machine(address), transport }
    }
}

/// A connection, from its first byte on.
#[derive(Debug)]
struct Known {
    /// From where and over what, if the other end opened it.
    inbound: Option<Source>,
    /// Once it has shown who it is.
    peer: Option<NodeId>,
}

/// The gate.
pub(super) struct Gate {
    limits: ConnectionLimits,
    bans: Arc<Mutex<Bans>>,
    connections: BTreeMap<ConnectionId, Known>,
    /// When which address came lately.
    lately: VecDeque<(Instant, Source)>,
    refused: u64,
}

impl Gate {
    pub(super) fn new(limits: ConnectionLimits, bans: Arc<Mutex<Bans>>) -> Self {
        Self { limits, bans, connections: BTreeMap::new(), lately: VecDeque::new(), refused: 0 }
    }

    /// How many connections were refused since this was asked last.
    pub(super) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    fn refuse(&mut self, why: Refused) -> ConnectionDenied {
        self.refused += 1;
        ConnectionDenied::new(why)
    }

    // spec: PEER-22
    fn admit(&mut self, from: Source, now: Instant) -> Result<(), Refused> {
        while self.lately.front().is_some_and(|(then, _)| now.duration_since(*then) > RATE_WINDOW)
            || self.lately.len() >= ADDRESSES_MAX
        {
            self.lately.pop_front();
        }
        let handshakes =
            || self.connections.values().filter(|known| known.peer.is_none()).filter_map(|known| known.inbound);
        let beside = handshakes().filter(|other| other.transport == from.transport).count();
        if beside >= HANDSHAKES_MAX {
            return Err(Refused::Full);
        }
        self.look_for_room(from, beside, handshakes().filter(|other| *other == from).count())?;
        let came = self.lately.iter().filter(|(_, other)| *other == from).count();
        if came >= self.limits.address_max * RATE_TIMES {
            return Err(Refused::Address);
        }
        self.lately.push_back((now, from));
        Ok(())
    }

    /// Whether there is room for one more from there, beside connections that have shown who they are and so many handshakes, in all
    /// and of that address.
    fn look_for_room(&self, from: Source, handshakes: usize, of_address: usize) -> Result<(), Refused> {
        let met = || self.connections.values().filter(|known| known.peer.is_some()).filter_map(|known| known.inbound);
        if met().count() + handshakes >= self.limits.inbound_max {
            return Err(Refused::Full);
        }
        let open = met().filter(|other| other.machine == from.machine).count();
        if open + of_address >= self.limits.address_max { Err(Refused::Address) } else { Ok(()) }
    }

    fn meet(&mut self, connection: ConnectionId, peer: NodeId) -> Result<(), Refused> {
        if self.bans.lock().unwrap_or_else(PoisonError::into_inner).has(&peer) {
            return Err(Refused::Banned);
        }
        if self.connections.values().filter(|known| known.peer == Some(peer)).count() >= PEER_CONNECTIONS_MAX {
            return Err(Refused::Twice);
        }
        // Handshakes over the other transport may have taken the last place since it was admitted.
        if let Some(from) = self.connections.get(&connection).and_then(|known| known.inbound) {
            self.look_for_room(from, 0, 0)?;
        }
        self.connections.entry(connection).or_insert(Known { inbound: None, peer: None }).peer = Some(peer);
        Ok(())
    }
}

/// The machine behind an address, as it is counted.
pub(super) fn machine(address: &Multiaddr) -> Option<IpAddr> {
    let found = address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    });
    found.map(counted_as)
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let from = Source::of(remote);
        self.admit(from, Instant::now()).map_err(|why| self.refuse(why))?;
        self.connections.insert(connection, Known { inbound: Some(from), peer: None });
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: NodeId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.meet(connection, peer).map_err(|why| self.refuse(why))?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: NodeId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.meet(connection, peer).map_err(|why| self.refuse(why))?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(closed) => drop(self.connections.remove(&closed.connection_id)),
            FromSwarm::ListenFailure(failed) => drop(self.connections.remove(&failed.connection_id)),
            FromSwarm::DialFailure(failed) => drop(self.connections.remove(&failed.connection_id)),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: NodeId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(inbound_max: usize, address_max: usize) -> (Gate, tempfile::TempDir) {
        let home = tempfile::tempdir().expect("a temporary directory");
        let bans = Bans::open(&home.path().join("bans.json")).expect("none yet");
        (Gate::new(ConnectionLimits { inbound_max, address_max }, Arc::new(Mutex::new(bans))), home)
    }

    fn from(last: u8) -> Multiaddr {
        format!("/ip4/10.0.0.{last}/tcp/9").parse().expect("an address")
    }

    fn over_quic([net, last]: [u8; 2]) -> Multiaddr {
        format!("/ip4/10.0.{net}.{last}/udp/9/quic-v1").parse().expect("an address")
    }

    fn come(gate: &mut Gate, number: usize, address: &Multiaddr) -> bool {
        gate.handle_pending_inbound_connection(ConnectionId::new_unchecked(number), &from(0), address).is_ok()
    }

    /// Y-04: one address has a few places, whatever ids it makes up, and one peer has two; who this node dials needs none of them.
    #[test]
    fn y04_one_address_cannot_take_all_places() {
        let (mut gate, _home) = gate(10, 3);
        let taken = (0..1000).filter(|number| come(&mut gate, *number, &from(1))).count();
        assert_eq!(taken, 3);
        let others = (0..50u8).filter(|last| come(&mut gate, 1000 + usize::from(*last), &from(100 + last))).count();
        assert_eq!((others, gate.take_refused()), (7, 997 + 43));
        let peer = NodeId::random();
        let dialled = (0..3).map(|number| {
            let connection = ConnectionId::new_unchecked(2000 + number);
            gate.handle_established_outbound_connection(connection, peer, &from(9), Endpoint::Dialer, PortUse::New)
                .is_ok()
        });
        assert_eq!(dialled.collect::<Vec<_>>(), [true, true, false]);
    }

    /// Y-04: whoever connects again and again is held off for a while.
    #[test]
    fn y04_an_address_that_comes_and_goes_is_held_off() {
        let (mut gate, _home) = gate(10, 3);
        let start = Instant::now();
        let nowhere = Source { machine: None, transport: Transport::Tcp };
        let came = (0..1000).filter(|_| gate.admit(nowhere, start).is_ok()).count();
        assert_eq!(came, 12);
        assert!(gate.admit(nowhere, start + RATE_WINDOW * 2).is_ok());
    }

    /// spec: PEER-22. Y-04: handshakes over UDP that name addresses of others, as many as one likes, keep nobody from connecting over
    /// TCP, not even from an address they name; and what was admitted over both in the same moment keeps to the limits in the end.
    #[test]
    fn y04_addresses_that_are_made_up_take_no_places_of_others() {
        let (mut gate, _home) = gate(100, 3);
        let made_up = |number: u16| over_quic(number.to_be_bytes());
        let taken = (0..5_000u16).filter(|number| come(&mut gate, usize::from(*number), &made_up(*number))).count();
        assert_eq!(taken, HANDSHAKES_MAX);
        let others = (0..60u8).filter(|last| come(&mut gate, 10_000 + usize::from(*last), &from(*last))).count();
        assert_eq!(others, 60);
        // One of these addresses comes again, as often as it may.
        let more = (0..9).filter(|number| come(&mut gate, 20_000 + number, &from(7))).count();
        assert_eq!(more, 2);
        let all: Vec<ConnectionId> = gate.connections.keys().copied().collect();
        let met = |gate: &mut Gate, connection| gate.meet(connection, NodeId::random());
        let outcomes: Vec<_> = all.into_iter().map(|connection| met(&mut gate, connection)).collect();
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 100);
        assert_eq!(
            outcomes.iter().filter(|outcome| **outcome == Err(Refused::Full)).count(),
            HANDSHAKES_MAX + 62 - 100
        );
        assert!(!come(&mut gate, 30_000, &from(200)), "all places are taken");
    }

    /// spec: PEER-22. Y-04: who comes over both transports at once has no more connections in the end than over one.
    #[test]
    fn y04_an_address_over_both_transports_keeps_to_its_limit() {
        let (mut gate, _home) = gate(100, 3);
        let came = (0..3).filter(|number| come(&mut gate, *number, &from(1))).count();
        let came = came + (3..6).filter(|number| come(&mut gate, *number, &over_quic([0, 1]))).count();
        assert_eq!(came, 6);
        let mut meet = |number| gate.meet(ConnectionId::new_unchecked(number), NodeId::random());
        let met: Vec<_> = (0..6).map(&mut meet).collect();
        assert_eq!(met, [[Ok(()); 3], [Err(Refused::Address); 3]].concat());
    }

    #[test]
    fn a_banned_peer_is_refused_once_it_says_who_it_is() {
        let (mut gate, _home) = gate(10, 3);
        let peer = NodeId::random();
        assert!(gate.bans.lock().expect("nobody panicked").add(peer, "lied"));
        assert_eq!(gate.meet(ConnectionId::new_unchecked(1), peer), Err(Refused::Banned));
    }
}
