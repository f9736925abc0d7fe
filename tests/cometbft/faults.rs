//! Networks under load, and under everything that happens to processes.

use crate::harness::{ANSWERS, Network, PATIENCE, metric, report};
use std::process::Command;
use std::time::{Duration, Instant};

/// Blocks a node that joined must follow.
const FOLLOW: u64 = 100;

/// A node that was hurt answers again on both sides within the time that is promised, and catches up.
fn recovers(network: &Network, name: &str, what: &str) {
    let took = network
        .until(&format!("{name} to answer after {what}"), ANSWERS, |nodes| nodes.iter().all(|node| node.answers));
    println!("{name} after {what}: every node answers within {} ms", took.as_millis());
    let goal = network.tip() + 2;
    network.until_all_at(goal);
}

/// What happens to processes.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Killed as nothing can catch, and started again.
    Kill,
    /// Stopped for ten seconds.
    Pause,
    /// Ended as it likes, and started again.
    Restart,
}

/// Each kind of fault, to each part of a node: of validators, and of one that joined.
const FAULTS: [(Fault, &str, &str); 8] = [
    (Fault::Kill, "--app", "node1"),
    (Fault::Kill, "--engine", "node1"),
    (Fault::Kill, "--app", "node4"),
    (Fault::Kill, "--engine", "node4"),
    (Fault::Pause, "--app", "node2"),
    (Fault::Pause, "--engine", "node2"),
    (Fault::Restart, "--app", "node3"),
    (Fault::Restart, "--engine", "node0"),
];

/// Four validators and a fifth node recover from all of [`FAULTS`], one after another.
fn survives_every_fault(network: &Network) {
    for (fault, part, name) in FAULTS {
        match fault {
            Fault::Kill => {
                network.run(&["kill", name, part]);
                network.run(&["restart", name]);
            }
            Fault::Pause => {
                network.run(&["pause", name, part, "--seconds", "10"]);
                std::thread::sleep(Duration::from_secs(10));
            }
            Fault::Restart => drop(network.run(&["restart", name, part])),
        }
        recovers(network, name, &format!("{fault:?} {part}"));
    }
}

/// Four validators under load; a fifth node joins by state sync, reaches the tip and follows; then every kind of fault.
#[test]
fn ss53_a_fifth_node_joins_by_state_sync_and_every_node_survives_every_fault() {
    let Some(network) = Network::up(&["--validators", "4", "--ballast", "500"]) else { return };
    let load = network.start(&["load", "--rate", "8", "--seconds", "60"]);
    network.until_all_at(25);

    let joined = network.run(&["join"]);
    assert_eq!(joined["node"], "node4");
    let tip = network.tip();
    let took = network.until("the joiner to reach the tip", PATIENCE, |nodes| {
        nodes.iter().any(|node| node.name == "node4" && node.height >= tip && !node.catching_up)
    });
    let joiner = network.node("node4");
    println!("joined at {} within {} ms, from a snapshot at {}", joiner.height, took.as_millis(), joiner.lowest_height);
    assert!(joiner.lowest_height >= 10, "it did not come from a snapshot: {joiner:?}");
    let began = Instant::now();
    let goal = joiner.height + FOLLOW;
    network.until_all_at(goal);
    println!("followed {FOLLOW} blocks in {} ms", began.elapsed().as_millis());
    for node in network.nodes() {
        let certified = || metric(&node, "certified_height_blocks");
        network.until("every root to be certified", ANSWERS, |_| certified() >= Some(goal - 2));
    }

    survives_every_fault(&network);
    let report = report(load);
    println!("load: {report}");
    assert!(report["committed"].as_u64() > Some(0), "{report}");
    assert_eq!(report["receipts_failed"], 0, "{report}");
    network.all_agree(network.nodes().iter().map(|node| node.height).min().unwrap_or(0));
}

/// The same faults with a network namespace for every host, where hosts can be cut off besides.
#[test]
fn hosts_in_namespaces_are_cut_off_and_come_back() {
    if !may_make_namespaces() {
        assert!(std::env::var_os("CI").is_none(), "network namespaces cannot be made on a CI machine");
        eprintln!("left out: making network namespaces needs root and iproute2");
        return;
    }
    let Some(network) = Network::up(&["--validators", "4", "--namespaces"]) else { return };
    let load = network.start(&["load", "--rate", "5", "--seconds", "60"]);
    network.until_all_at(25);
    network.run(&["join"]);
    let tip = network.tip();
    network.until_all_at(tip + 20);
    assert!(network.node("node4").lowest_height >= 10, "it did not come from a snapshot");
    for name in ["node1", "node4"] {
        network.run(&["disconnect", name, "--seconds", "10"]);
        let tip = network.tip();
        std::thread::sleep(Duration::from_secs(10));
        assert!(network.tip() > tip + 3, "three of four validators go on");
        recovers(&network, name, "10 s without a network");
    }
    survives_every_fault(&network);
    assert_eq!(report(load)["receipts_failed"], 0);
    network.all_agree(network.nodes().iter().map(|node| node.height).min().unwrap_or(0));
}

fn may_make_namespaces() -> bool {
    let name = format!("kstest{}", std::process::id());
    let ip =
        |arguments: &[&str]| Command::new("ip").args(arguments).output().is_ok_and(|output| output.status.success());
    ip(&["netns", "add", &name]) && ip(&["netns", "del", &name])
}

/// Whatever the network started ends with its owner, also when that is killed as nothing can catch.
#[test]
fn what_a_network_starts_ends_with_it() {
    let Some(mut network) = Network::up(&["--validators", "1"]) else { return };
    let owner = network.process_id();
    let children = |of: u32| {
        let pids = std::fs::read_dir("/proc").expect("/proc is mounted").filter_map(Result::ok);
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| status_of(*pid).is_some_and(|(_, parent)| parent == of)).collect::<Vec<u32>>()
    };
    let started = children(owner);
    assert!(started.len() >= 3, "a reaper, Keelstone and CometBFT: {started:?}");
    // One of them cannot even be asked to end: also not once an earlier, shorter pause is over.
    network.run(&["pause", "node0", "--engine", "--seconds", "1"]);
    network.run(&["pause", "node0", "--engine", "--seconds", "3600"]);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(network.node("node0").engine_state, "paused", "the first pause has ended the second");
    network.kill_owner();
    let began = Instant::now();
    // Dead ones that whoever inherited them has not taken note of yet are dead.
    let is_alive = |pid: &u32| status_of(*pid).is_some_and(|(state, _)| state != 'Z');
    while started.iter().any(is_alive) {
        assert!(began.elapsed() < Duration::from_secs(20), "left behind: {started:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a process is doing, by its letter, and its parent.
fn status_of(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
