//! Where the time goes while a node joins a test network, seen from outside: by its metrics, and by where the others stand.
//!
//! Nothing here is part of joining. What a node says of itself is looked at often and each step is timed when it is first
//! seen, so a step is off by one look at most.

use super::layout::{ASK, Layout, Node};
use super::load::millis;
use crate::client::{Ask, exchange};
use crate::exit::Failure;
use crate::processes::State;
use serde::Serialize;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How often a joining node is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often it is looked whether its processes still run.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// How long a node may take to join before nobody waits any more.
const WAIT: Duration = Duration::from_secs(3_600);
/// Bytes of the answer to a question for metrics.
const METRICS_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes a second to and from one peer that CometBFT allows unless told otherwise.
const RATE: u64 = 5_120_000;

/// How a node joined. Times are milliseconds for each step, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Joined {
    /// Its processes started and its state was opened.
    pub(crate) started_ms: u64,
    /// CometBFT looked for snapshots until one was accepted; none if it fetched every block.
    pub(crate) discovered_ms: Option<u64>,
    /// Chunks came and were proven.
    pub(crate) received_ms: Option<u64>,
    /// The state was built of them and its root compared.
    pub(crate) built_ms: Option<u64>,
    /// From then on until the first block was made on it; or from the start, if it fetched every block.
    pub(crate) first_block_ms: u64,
    /// From then on until it stood where the others stand.
    pub(crate) caught_up_ms: u64,
    /// All of it.
    pub(crate) total_ms: u64,
    /// The height of the restored state.
    pub(crate) snapshot_height: Option<u64>,
    /// Where it stood at the end.
    pub(crate) height: u64,
    /// Chunks of the snapshot.
    pub(crate) chunks: u64,
    /// Entries of the state.
    pub(crate) entries: u64,
    /// Bytes of chunks that came in.
    pub(crate) received_bytes: u64,
    /// The same, a second of the time in which they came.
    pub(crate) received_bytes_per_second: u64,
    /// The most that may come in a second: from each peer what both sides' CometBFT allow, times its peers.
    pub(crate) link_bytes_per_second: u64,
    /// What of that came, in hundredths.
    pub(crate) link_percent: u64,
}

/// What a joining node says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Look {
    phase: u64,
    height: u64,
    chunks: u64,
    entries: u64,
    received_bytes: u64,
}

/// Its state is being built.
const BUILDING: u64 = 2;
/// Its state is whole.
const WHOLE: u64 = 3;

/// Waits until a node that was just added stands where the others stand. `began` is when it was asked for; `states` says
/// what its processes do.
pub(crate) fn wait(
    layout: &Layout,
    node: &Node,
    began: Instant,
    state_sync: bool,
    states: impl Fn() -> Result<[State; 2], Failure>,
) -> Result<Joined, Failure> {
    let mut steps = Steps { began, last: began, joined: Joined::default() };
    steps.joined.started_ms = steps.lap();
    let mut looked = Instant::now();
    let mut reached: Option<u64> = None;
    loop {
        if looked.elapsed() >= ALIVE_EVERY {
            looked = Instant::now();
            for state in states()? {
                if let State::Ended { code, signal } = state {
                    let how = code.map_or_else(|| format!("signal {signal:?}"), |code| format!("code {code}"));
                    let message = format!("a process of {} ended with {how} before it had joined", node.name);
                    return Err(Failure::error(message).hint(format!("see {}", layout.node_dir(node).display())));
                }
            }
        }
        if began.elapsed() > WAIT {
            return Err(Failure::error(format!("{} has not joined within {} s", node.name, WAIT.as_secs())));
        }
        if let Some(look) = look(node) {
            if state_sync {
                steps.take_in(&look);
            }
            let whole = !state_sync || steps.joined.snapshot_height.is_some();
            if whole && look.height > steps.joined.snapshot_height.unwrap_or(0) {
                if reached.is_none() {
                    steps.joined.first_block_ms = steps.lap();
                    reached = Some(look.height);
                }
                // One below the others is where they stand too: they make blocks while they are asked.
                if is_following(node) && look.height + 1 >= tip(layout, node) {
                    steps.joined.caught_up_ms = steps.lap();
                    steps.joined.height = look.height;
                    return Ok(steps.finish(link(layout, node)));
                }
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

struct Steps {
    began: Instant,
    last: Instant,
    joined: Joined,
}

impl Steps {
    /// Milliseconds since the last step.
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        millis(now - std::mem::replace(&mut self.last, now))
    }

    /// Notes the steps of state sync that were taken since the last look. One that was too quick to be seen took no time.
    fn take_in(&mut self, look: &Look) {
        if look.phase >= 1 && self.joined.discovered_ms.is_none() {
            self.joined.discovered_ms = Some(self.lap());
        }
        if look.phase >= BUILDING && self.joined.received_ms.is_none() {
            self.joined.received_ms = Some(self.lap());
        }
        if look.phase >= WHOLE && self.joined.built_ms.is_none() {
            self.joined.built_ms = Some(self.lap());
            let Look { chunks, entries, received_bytes, height, .. } = *look;
            self.joined =
                Joined { chunks, entries, received_bytes, snapshot_height: Some(height), ..self.joined.clone() };
        }
    }

    fn finish(self, link: u64) -> Joined {
        let received_ms = self.joined.received_ms.unwrap_or(0).max(1);
        let rate = self.joined.received_bytes.saturating_mul(1_000) / received_ms;
        Joined {
            total_ms: millis(self.last - self.began),
            received_bytes_per_second: rate,
            link_bytes_per_second: link,
            link_percent: rate.saturating_mul(100) / link.max(1),
            ..self.joined
        }
    }
}

/// What a node's metrics say; none while it does not answer.
fn look(node: &Node) -> Option<Look> {
    let stream = TcpStream::connect_timeout(&node.http, ASK).ok()?;
    let host = node.http.to_string();
    let ask = Ask { host: &host, path: "/metrics", body: None, token: None };
    let answer = exchange(stream, ASK, &ask, METRICS_BYTES_MAX).ok()?;
    (answer.status == 200).then(|| Look::read(&String::from_utf8_lossy(&answer.body)))
}

impl Look {
    fn read(metrics: &str) -> Self {
        let number = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        Self {
            phase: number("statesync_phase_number"),
            height: number("chain_height_blocks"),
            chunks: number("statesync_total_chunks"),
            entries: number("statesync_total_entries"),
            received_bytes: number("statesync_received_bytes_total"),
        }
    }
}

fn is_following(node: &Node) -> bool {
    node.rpc().status().is_ok_and(|status| !status.catching_up)
}

/// The highest block that another node has.
fn tip(layout: &Layout, besides: &Node) -> u64 {
    let others = layout.nodes.iter().filter(|other| other.name != besides.name);
    others.filter_map(|other| other.rpc().height().ok()).max().unwrap_or(u64::MAX)
}

/// What may come in a second: from each peer the lesser of what it may send and what the node may take.
fn link(layout: &Layout, node: &Node) -> u64 {
    let takes = layout.engine_number(node, "p2p", "recv_rate").unwrap_or(RATE);
    let others = layout.nodes.iter().filter(|other| other.name != node.name);
    others.map(|other| layout.engine_number(other, "p2p", "send_rate").unwrap_or(RATE).min(takes)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_their_whole_names() {
        let text = "# TYPE statesync_phase_number gauge\nstatesync_phase_number 2\nchain_height_blocks 7\n\
                    statesync_total_chunks 34\nstatesync_total_entries 1000003\nstatesync_received_bytes_total 12\n";
        let expected = Look { phase: 2, height: 7, chunks: 34, entries: 1_000_003, received_bytes: 12 };
        assert_eq!(Look::read(text), expected);
        assert_eq!(Look::read("statesync_phase_numbers 2\n"), Look::default());
    }

    /// However few looks there were, every step is there once the state is whole.
    #[test]
    fn steps_that_were_not_seen_took_no_time() {
        let began = Instant::now();
        let mut steps = Steps { began, last: began, joined: Joined::default() };
        steps.take_in(&Look::default());
        assert_eq!(steps.joined, Joined::default());
        let whole = Look { phase: WHOLE, height: 20, chunks: 3, entries: 4, received_bytes: 5_000 };
        steps.take_in(&whole);
        steps.take_in(&Look { height: 21, ..whole });
        let joined = steps.finish(1_000_000);
        assert!(joined.discovered_ms.is_some() && joined.received_ms.is_some() && joined.built_ms.is_some());
        assert_eq!((joined.snapshot_height, joined.chunks, joined.entries), (Some(20), 3, 4));
        assert_eq!(joined.received_bytes, 5_000);
        assert!(joined.link_percent > 0 || joined.received_ms > Some(500));
    }
}
