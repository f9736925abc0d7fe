//! From the configuration to what networks, servers and joiners take.

use super::network::HANDSHAKE_TIMEOUT;
use super::{Bans, ConnectionLimits, Nearby, Setup};
use crate::config::P2p;
use crate::exit::Failure;
use crate::home::Home;
use crate::keyfile::KeyDir;
use crate::metrics::Metrics;
use keelstone_codec::ChainId;
use keelstone_sync::peers::{ServerLimits, Settings};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// The name of the key by which peers know this node.
const PEER: &str = "peer";

/// Every setting that becomes a smaller number is bounded far below what that holds.
fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// What a network of this home begins with, among nodes of this chain. Makes its key the first time.
pub(crate) fn setup(
    config: &P2p,
    chain: &ChainId,
    home: &Home,
    keys: &KeyDir,
    metrics: Arc<Metrics>,
) -> Result<Setup, Failure> {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Ok(Setup {
        key: keys.load_or_make(PEER)?,
        listen: Some(config.listen),
        quic: config.quic,
        peers: config.peers.clone(),
        nearby: nearby(config, chain)?,
        address_bytes_per_second: config.address_bytes_per_second,
        address_work_ms_per_second: config.address_work_ms_per_second,
        limits: ConnectionLimits {
            inbound_max: count(config.inbound_max),
            address_max: count(config.address_inbound_max),
        },
        handshake_timeout: HANDSHAKE_TIMEOUT,
        request_timeout: Duration::from_millis(config.request_timeout_ms),
        bans: Bans::open(&home.bans())?,
        heard: None,
        metrics,
    })
}

/// Whom to look for on the network on which this node listens.
fn nearby(config: &P2p, chain: &ChainId) -> Result<Option<Nearby>, Failure> {
    if !config.mdns {
        return Ok(None);
    }
    let interface = match config.listen.ip().to_canonical() {
        IpAddr::V4(interface) => interface,
        IpAddr::V6(any) if any.is_unspecified() => Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(other) => {
            return Err(Failure::usage(format!("p2p.mdns is on, and p2p.listen names an address of IPv6, {other}"))
                .hint("peers are looked for over IPv4: name such an address, or switch p2p.mdns off"));
        }
    };
    Ok(Some(Nearby { interface, chain: chain.clone() }))
}

/// How much is given to peers.
pub(crate) fn server_limits(config: &P2p) -> ServerLimits {
    ServerLimits {
        peer_bytes_per_second: config.peer_bytes_per_second,
        bytes_per_second: config.bytes_per_second,
        peer_work_ms_per_second: small(config.peer_work_ms_per_second),
        pins_max: small(config.pins_max),
        pin_idle_ms: config.pin_idle_ms,
        pin_age_ms_max: config.pin_age_ms_max,
        ..ServerLimits::default()
    }
}

/// How much is asked of them.
pub(crate) fn joiner_settings(config: &P2p) -> Settings {
    Settings {
        concurrent_requests_max: small(config.concurrent_requests_max),
        peer_count_target: small(config.peer_count_target),
        request_timeout_ms: small(config.request_timeout_ms),
        batch_bytes_max: small(config.batch_bytes_max),
        retries_max: small(config.retries_max),
        stall_timeout_ms: small(config.stall_timeout_ms),
        ..Settings::default()
    }
}

/// What peers are chosen with.
pub(crate) fn seed() -> Result<u64, Failure> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| Failure::io("no randomness to choose peers with", &error))?;
    Ok(u64::from_le_bytes(seed))
}
