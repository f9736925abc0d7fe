//! Where a peer is, as people write it: `HOST:PORT`, or `ID@HOST:PORT` to speak to nobody else there; with `/quic` behind it
//! to be dialled by QUIC and not by TCP.

use crate::authority::Authority;
use std::fmt;
use std::str::FromStr;

/// Who a peer is: the hash of its key, which it has proven to hold.
pub type NodeId = libp2p::PeerId;

/// What stands behind the port of a peer that is dialled by QUIC.
const QUIC: &str = "/quic";

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transport {
    /// TCP, with Noise and yamux over it.
    Tcp,
    /// QUIC, version 1, over UDP.
    Quic,
}

/// A peer that is dialled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddress {
    id: Option<NodeId>,
    authority: Authority,
    transport: Transport,
}

impl PeerAddress {
    /// Who has to answer there; none for anybody.
    pub(crate) fn id(&self) -> Option<NodeId> {
        self.id
    }

    /// Name or address of the host, without brackets.
    pub(crate) fn host(&self) -> &str {
        self.authority.name()
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.authority.port()
    }

    /// How it is dialled.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected HOST:PORT or ID@HOST:PORT, with /quic behind it or without, found {text:?}");
        let (id, place) = match text.split_once('@') {
            Some((id, place)) => (Some(id.parse().map_err(|_| format!("{id:?} is no id of a peer"))?), place),
            None => (None, text),
        };
        let (place, transport) =
            place.strip_suffix(QUIC).map_or((place, Transport::Tcp), |place| (place, Transport::Quic));
        let authority = Authority::parse(place).ok_or_else(wrong)?;
        Ok(Self { id, authority, transport })
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = &self.id {
            write!(f, "{id}@")?;
        }
        let quic = if self.transport == Transport::Quic { QUIC } else { "" };
        write!(f, "{}{quic}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_is_written_and_others_are_none() {
        let id = NodeId::random();
        for text in ["127.0.0.1:1", "node-1.example.org:26690", &format!("{id}@[::1]:9"), &format!("{id}@[::1]:9/quic")]
        {
            let address: PeerAddress = text.parse().expect("an address");
            assert_eq!(address.to_string(), text);
            assert_eq!(address.transport() == Transport::Quic, text.ends_with("/quic"));
        }
        for text in [
            "",
            "/quic",
            "host/quic",
            "host:1/",
            "host:1/tcp",
            "host:1/quic/quic",
            "host",
            "host:0",
            "host:65536",
            ":1",
            "x@host:1",
            "::1:9",
            "[::1:9",
            "a b:1",
            "[host]:1",
        ] {
            assert!(text.parse::<PeerAddress>().is_err(), "{text:?}");
        }
        assert!(format!("{}:1", "h".repeat(254)).parse::<PeerAddress>().is_err());
    }
}
