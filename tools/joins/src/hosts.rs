//! Where the nodes live: on loopback, or each in a network namespace of its own, as on several machines.

use crate::processes::Group;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// The first three numbers of the addresses of namespaces; the fourth is 10 and the node's number.
const NETWORK: [u8; 3] = [10, 197, 83];

/// What connects the nodes. What was made for it goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Hosts {
    /// What the names of bridge, links and namespaces begin with; none on loopback.
    name: Option<String>,
    /// What all nodes run in.
    group: Arc<Group>,
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.name.is_some() { "network namespaces" } else { "loopback" })
    }
}

impl Hosts {
    /// All on 127.0.0.1.
    pub(crate) fn loopback(group: Arc<Group>) -> Self {
        Self { name: None, group }
    }

    /// A namespace for each of [`crate::shows::NODES`] nodes, joined by a bridge. Linux, and needs root.
    pub(crate) fn namespaces(group: Arc<Group>) -> Result<Self, String> {
        let name = format!("kj{:x}", std::process::id() & 0xff_ffff);
        let [a, b, c] = NETWORK;
        let bridge = format!("{name}b");
        // From here on whatever fails is taken down again.
        let hosts = Self { name: Some(name.clone()), group };
        for node in 0..crate::shows::NODES {
            hosts.group.remove_at_end(&format!("netns del {name}n{node}"))?;
        }
        hosts.group.remove_at_end(&format!("link del {bridge}"))?;
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{a}.{b}.{c}.1/24"), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for node in 0..crate::shows::NODES {
            let (space, outer) = (format!("{name}n{node}"), format!("{name}v{node}"));
            ip(&["netns", "add", &space])?;
            ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["link", "set", &outer, "master", &bridge, "up"])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/24", hosts.address(node)), "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(hosts)
    }

    /// The address of a node.
    pub(crate) fn address(&self, node: u8) -> Ipv4Addr {
        let [a, b, c] = NETWORK;
        match self.name {
            None => Ipv4Addr::LOCALHOST,
            Some(_) => Ipv4Addr::new(a, b, c, 10 + node),
        }
    }

    /// The address of this process, where nodes can reach it.
    pub(crate) fn own_address(&self) -> Ipv4Addr {
        let [a, b, c] = NETWORK;
        if self.name.is_some() { Ipv4Addr::new(a, b, c, 1) } else { Ipv4Addr::LOCALHOST }
    }

    /// A command where a node lives.
    pub(crate) fn command(&self, node: u8, program: &Path) -> Command {
        let mut command = match &self.name {
            None => Command::new(program),
            Some(name) => {
                // It becomes the program: a signal to it is one to that.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &format!("{name}n{node}")]).arg(program);
                command
            }
        };
        command.process_group(self.group.leader());
        command
    }

    /// Bytes that have come to a node over its link, with all that carries them; none on loopback, which is everybody's.
    pub(crate) fn received(&self, node: u8) -> Option<u64> {
        let name = self.name.as_ref()?;
        // What the outer end has sent.
        let counter = format!("/sys/class/net/{name}v{node}/statistics/tx_bytes");
        std::fs::read_to_string(counter).ok()?.trim().parse().ok()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let Some(name) = &self.name else { return };
        // What was not made yet cannot be removed, and need not be.
        for node in 0..crate::shows::NODES {
            let _ = ip(&["netns", "del", &format!("{name}n{node}")]);
        }
        let _ = ip(&["link", "del", &format!("{name}b")]);
    }
}

/// Runs `ip`, and fails with what it said.
fn ip(arguments: &[&str]) -> Result<(), String> {
    let shown = format!("ip {}", arguments.join(" "));
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("could not run {shown}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{shown}: {said} (network namespaces need root and iproute2)"))
}
