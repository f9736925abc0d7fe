//! Hosts and ports, as people write them: on the command line, in the configuration, in what clients send.
//!
//! A host is a name or an address, one of IPv6 in brackets; a port is 1 to 65535 in digits. What is an address in one place is one
//! in every other.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};

/// Longest name of a host, as the domain name system has it.
const HOST_BYTES_MAX: usize = 253;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Authority {
    host: String,
    port: u16,
}

impl Authority {
    /// Reads `HOST:PORT`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = split(text)?;
        Some(Self { host: host.to_owned(), port: port? })
    }

    /// Reads `SCHEME://HOST:PORT`, with a slash behind it or without, and says which scheme that is.
    pub(crate) fn of_url(text: &str) -> Option<(&str, Self)> {
        let (scheme, rest) = text.split_once("://")?;
        Some((scheme, Self::parse(rest.strip_suffix('/').unwrap_or(rest))?))
    }

    /// The host, an address of IPv6 in brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The host without brackets, by which it is looked up.
    pub(crate) fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where it leads.
    pub(crate) fn resolve(&self) -> io::Result<impl Iterator<Item = SocketAddr>> {
        (self.name(), self.port).to_socket_addrs()
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl From<SocketAddr> for Authority {
    fn from(socket: SocketAddr) -> Self {
        let host = match socket.ip() {
            IpAddr::V6(address) => format!("[{address}]"),
            address => address.to_string(),
        };
        Self { host, port: socket.port() }
    }
}

/// A host, and the port behind it if there is one; none if it is no host, or no port.
pub(crate) fn split(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        // In brackets there are colons of the address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(read_port(port)?)),
        _ => (text, None),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => (1..=HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(plain),
    };
    is_host.then_some((host, port))
}

/// Nobody can be reached at port 0.
fn read_port(digits: &str) -> Option<u16> {
    let port = digits.parse().ok().filter(|port| *port > 0)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Elsewhere, Remote};
    use crate::cometbft::rpc::Rpc;
    use crate::config::{Config, HttpAddress};
    use crate::config::{PeerAddress, Place};

    /// Whether each that reads an address takes this one.
    fn taken(host_and_port: &str) -> Vec<(&'static str, bool)> {
        let url = format!("http://{host_and_port}");
        let producer = format!("[p2p]\nproducer_api = \"{url}\"\n");
        vec![
            ("--rpc", Rpc::new(&url).is_ok()),
            ("settings", HttpAddress::parse(&url).is_ok()),
            ("p2p.producer_api", Config::parse(producer.as_bytes()).is_ok()),
            ("mirrors", url.parse::<Place>().is_ok()),
            ("p2p.peers", host_and_port.parse::<PeerAddress>().is_ok()),
        ]
    }

    /// As [`taken`], of what looks names up at once.
    fn node_takes(host_and_port: &str) -> bool {
        let url = format!("http://{host_and_port}/");
        Remote::elsewhere(Elsewhere { url: &url, trust: None, identity: None, token: None, insecure: false }).is_ok()
    }

    /// Whatever asks for an address takes the same ones.
    #[test]
    fn an_address_is_one_wherever_it_stands() {
        for good in ["127.0.0.1:1", "[::1]:65535", "localhost:80", "a_b:80", "node-1.example.org:26690"] {
            assert_eq!(Authority::parse(good).map(|authority| authority.to_string()), Some(good.to_owned()));
            for (place, taken) in taken(good) {
                assert!(taken, "{place} refuses {good}");
            }
        }
        assert!(node_takes("127.0.0.1:1") && node_takes("[::1]:65535"));
        let long = format!("{}:1", "h".repeat(HOST_BYTES_MAX + 1));
        for bad in [
            "",
            ":1",
            "host:",
            "host:0",
            "host:65536",
            "host:+80",
            "::1:9",
            "[::1:9",
            "[]:9",
            "[host]:1",
            "a b:1",
            "a@b:1",
            "a%b:1",
            "h\u{f6}st:1",
            &long,
        ] {
            assert_eq!(Authority::parse(bad), None, "{bad}");
            for (place, taken) in taken(bad).into_iter().chain([("--node", node_takes(bad))]) {
                assert!(!taken, "{place} takes {bad}");
            }
        }
    }

    /// Of what may stand behind an address of HTTP there is one slash, which says nothing.
    #[test]
    fn a_url_may_end_in_one_slash() {
        let read = |text| Authority::of_url(text).map(|(scheme, authority)| format!("{scheme} {authority}"));
        assert_eq!(read("https://a:1/").as_deref(), Some("https a:1"));
        for text in ["a:1", "http:a:1", "http://a", "http://a:1//", "http://a:1/x", "http://a:1?x", "http://b@a:1"] {
            assert_eq!(read(text), None, "{text}");
        }
        for text in ["http://a:1//", "http://a:1/x"] {
            assert!(Rpc::new(text).is_err() && HttpAddress::parse(text).is_err(), "{text}");
        }
    }
}
