//! Where the nodes of a test network live: on loopback with a port each, or each in a network namespace of its own.

use crate::exit::{Exit, Failure};
use crate::processes::ip;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::Command;

/// Ports are taken from below the range from which systems choose ports for outgoing connections, so that none of those
/// can take one between its choice and its use.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// How many ports are tried before it is said that none is free.
const TRIES: u32 = 2_000;

/// What connects the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Hosts {
    /// All on 127.0.0.1.
    Loopback,
    /// A network namespace for each, joined by a bridge. Linux, and needs root.
    Namespaces {
        /// What the names of bridge, links and namespaces begin with.
        name: String,
        /// The network's 256 addresses begin here.
        network: Ipv4Addr,
    },
}

impl Hosts {
    /// Namespaces under a name and a network that nobody else is likely to have.
    pub(crate) fn namespaces() -> Result<Self, Failure> {
        let [a, b, c] = random()?;
        let network = Ipv4Addr::new(10, 200 + a % 50, b, 0);
        Ok(Self::Namespaces { name: format!("ks{a:02x}{b:02x}{c:02x}"), network })
    }

    /// The address of a node.
    pub(crate) fn address(&self, index: u8) -> IpAddr {
        match self {
            Self::Loopback => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::Namespaces { network, .. } => {
                let [a, b, c, _] = network.octets();
                IpAddr::V4(Ipv4Addr::new(a, b, c, 10 + index))
            }
        }
    }

    /// A command that runs where a node lives.
    pub(crate) fn command(&self, index: u8, program: &OsStr) -> Command {
        match self {
            Self::Loopback => Command::new(program),
            Self::Namespaces { name, .. } => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &format!("{name}n{index}")]).arg(program);
                command
            }
        }
    }

    /// Refuses names under which processes run: those of another network, of whose directory this one is a copy. What is left
    /// of one that is gone has none.
    pub(crate) fn check_unused(&self, nodes: u8) -> Result<(), Failure> {
        let Self::Namespaces { name, .. } = self else { return Ok(()) };
        for space in (0..nodes).map(|index| format!("{name}n{index}")) {
            // Mostly there is none, and one that is there and cannot be looked into is named by what fails next.
            let processes = ip(&["netns", "pids", &space]).unwrap_or_default();
            if let Some(process) = processes.split_whitespace().next() {
                let message =
                    format!("process {process} runs in the network namespace {space}: another network has it");
                return Err(Failure::new(Exit::InUse, message).hint(
                    "one of two networks with the same testnet.json runs at a time; keelstone testnet down stops it",
                ));
            }
        }
        Ok(())
    }

    /// Makes what connects the nodes, in the place of what an owner that was killed may have left.
    pub(crate) fn set_up(&self, nodes: u8) -> Result<(), Failure> {
        let Self::Namespaces { name, network } = self else { return Ok(()) };
        for arguments in self.leftovers(nodes) {
            // Mostly there is none of it; what is there and stays is named by what fails next.
            let _ = ip(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let [a, b, c, _] = network.octets();
        ip(&["link", "add", &format!("{name}b"), "type", "bridge"])?;
        ip(&["addr", "add", &format!("{a}.{b}.{c}.1/24"), "dev", &format!("{name}b")])?;
        ip(&["link", "set", &format!("{name}b"), "up"]).map(drop)
    }

    /// Removes the place of a node that does not run.
    pub(crate) fn remove(&self, index: u8) {
        let Self::Namespaces { name, .. } = self else { return };
        for arguments in place(name, index) {
            // What of it was not made cannot be removed.
            let _ = ip(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }

    /// Makes a node's place.
    pub(crate) fn add(&self, index: u8) -> Result<(), Failure> {
        let Self::Namespaces { name, .. } = self else { return Ok(()) };
        let (space, outer) = (format!("{name}n{index}"), format!("{name}v{index}"));
        let address = format!("{}/24", self.address(index));
        ip(&["netns", "add", &space])?;
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
        ip(&["link", "set", &outer, "master", &format!("{name}b"), "up"])?;
        ip(&["-n", &space, "addr", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        ip(&["-n", &space, "link", "set", "lo", "up"]).map(drop)
    }

    /// Cuts a node off from the others, or joins it again. `false` if nodes share one network and cannot be cut off.
    pub(crate) fn link(&self, index: u8, up: bool) -> Result<bool, Failure> {
        let Self::Namespaces { name, .. } = self else { return Ok(false) };
        ip(&["link", "set", &format!("{name}v{index}"), if up { "up" } else { "down" }])?;
        Ok(true)
    }

    /// What has to be removed once the nodes are gone, as arguments of `ip`.
    pub(crate) fn leftovers(&self, nodes: u8) -> Vec<Vec<String>> {
        let Self::Namespaces { name, .. } = self else { return Vec::new() };
        let places = (0..nodes).flat_map(|index| place(name, index));
        places.chain([["link", "del", &format!("{name}b")].map(str::to_owned).to_vec()]).collect()
    }
}

/// What removes a node's place, as arguments of `ip`. Its link by itself: a namespace goes, and its end of the link with it,
/// only with the last process in it.
fn place(name: &str, index: u8) -> [Vec<String>; 2] {
    [["link", "del", &format!("{name}v{index}")], ["netns", "del", &format!("{name}n{index}")]]
        .map(|words| words.map(str::to_owned).to_vec())
}

/// So many free ports of an address, none of which is in `taken`.
pub(crate) fn free_ports<const N: usize>(taken: &BTreeSet<u16>) -> Result<[u16; N], Failure> {
    let mut found = [0; N];
    let mut count = 0;
    for _ in 0..TRIES {
        let [high, low] = random()?;
        let port = PORTS.start + u16::from_be_bytes([high, low]) % (PORTS.end - PORTS.start);
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if !taken.contains(&port) && !found[..count].contains(&port) && free() {
            found[count] = port;
            count += 1;
            if count == N {
                return Ok(found);
            }
        }
    }
    Err(Failure::error(format!("no {N} free ports between {} and {}", PORTS.start, PORTS.end)))
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Failure::io("no randomness to choose from", &error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    #[test]
    fn ports_are_free_and_differ() {
        let first: [u16; 8] = free_ports(&BTreeSet::new()).expect("free ports");
        let taken: BTreeSet<u16> = first.into();
        assert_eq!(taken.len(), 8);
        let second: [u16; 8] = free_ports(&taken).expect("free ports");
        assert!(second.iter().all(|port| !taken.contains(port) && PORTS.contains(port)));
    }

    /// What a network owns is removed by another that takes its names. Where this may make no namespaces, nothing is found out.
    #[test]
    fn names_under_which_processes_run_are_refused() {
        let Ok(hosts) = Hosts::namespaces() else { panic!("no randomness") };
        let Hosts::Namespaces { name, .. } = &hosts else { panic!("namespaces were asked for") };
        let space = format!("{name}n3");
        assert!(hosts.check_unused(4).is_ok(), "nothing of that name is there");
        if ip(&["netns", "add", &space]).is_err() {
            return;
        }
        let left = hosts.check_unused(4);
        let mut process = hosts.command(3, OsStr::new("cat")).stdin(Stdio::piped()).spawn().expect("ip is there");
        // It is in there before it runs anything.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut used = hosts.check_unused(4);
        while used.is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            used = hosts.check_unused(4);
        }
        let (few, _) = (hosts.check_unused(3), process.kill());
        let (_, removed) = (process.wait(), ip(&["netns", "del", &space]));
        assert!(left.is_ok(), "what is left of a network has no processes");
        let refused = used.expect_err("it is used");
        assert!(refused.exit == Exit::InUse && refused.message.contains(&space), "{refused}");
        assert!(few.is_ok() && removed.is_ok());
    }

    #[test]
    fn what_a_network_of_namespaces_leaves_behind_is_named() {
        let hosts = Hosts::Namespaces { name: "ks000102".to_owned(), network: Ipv4Addr::new(10, 201, 2, 0) };
        assert_eq!(hosts.address(3).to_string(), "10.201.2.13");
        let lines: Vec<String> = hosts.leftovers(2).iter().map(|words| words.join(" ")).collect();
        let expected = ["link del ks000102v0", "netns del ks000102n0", "link del ks000102v1", "netns del ks000102n1"];
        assert_eq!(lines, [&expected[..], &["link del ks000102b"]].concat());
        // Linux has 15 characters for the name of a link.
        assert!("ks000102v255".len() <= 15);
        assert!(Hosts::Loopback.leftovers(9).is_empty());
    }
}
