//! Where a peer is, as people write it: `HOST:PORT`, or `ID@HOST:PORT` to speak to nobody else there.

use super::NodeId;
use std::fmt;
use std::str::FromStr;

/// Longest name of a host, as the domain name system has it.
const HOST_BYTES_MAX: usize = 253;

/// A peer that is dialled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddress {
    id: Option<NodeId>,
    host: String,
    port: u16,
}

impl PeerAddress {
    /// Who has to answer there; none for anybody.
    pub(crate) fn id(&self) -> Option<NodeId> {
        self.id
    }

    /// Name or address of the host, without brackets.
    pub(crate) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected HOST:PORT or ID@HOST:PORT, found {text:?}");
        let (id, place) = match text.split_once('@') {
            Some((id, place)) => (Some(id.parse().map_err(|_| format!("{id:?} is no id of a peer"))?), place),
            None => (None, text),
        };
        let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let sound = match inner {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => (1..=HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(plain),
        };
        if sound { Ok(Self { id, host: host.to_owned(), port }) } else { Err(wrong()) }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = &self.id {
            write!(f, "{id}@")?;
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_is_written_and_others_are_none() {
        let id = NodeId::random();
        for text in ["127.0.0.1:1".to_owned(), "node-1.example.org:26690".to_owned(), format!("{id}@[::1]:9")] {
            assert_eq!(text.parse::<PeerAddress>().map(|address| address.to_string()), Ok(text));
        }
        for text in ["", "host", "host:0", "host:65536", ":1", "x@host:1", "::1:9", "[::1:9", "a b:1", "[host]:1"] {
            assert!(text.parse::<PeerAddress>().is_err(), "{text:?}");
        }
        assert!(format!("{}:1", "h".repeat(254)).parse::<PeerAddress>().is_err());
    }
}
