//! Peers that lie about snapshots, and a node that joins all the same.

use crate::harness::{ANSWERS, Network, PATIENCE};
use crate::proxy::{Hostile, Mode};
use std::time::Duration;

/// How often a node joins until it has met the hostile peer. It chooses whom to ask by chance.
const TRIES: u32 = 4;

/// One of three serving peers lies, in every way there is: bad chunks, empty ones, those of other places, none at all
/// (S-11), snapshots that do not exist, and a forged one of a true height (SS-30). The joiner syncs each time, from what
/// the others serve, and to the same root.
#[test]
fn ss55_one_hostile_of_three_serving_peers_keeps_nobody_from_joining() {
    // CometBFT asks each peer for its snapshots once, when it meets it. One that only the last of them names, because it was
    // made a moment before, is fetched from that peer alone; if that is the hostile one, CometBFT gives it up only after
    // minutes, and the others must still have the next. So a node joins where no snapshot is made while it meets its peers.
    let settings = ["--set", "snapshots.interval=30", "--set", "snapshots.keep=50"];
    let size = ["--validators", "3", "--ballast", "4000", "--chunk-bytes", "65536"];
    let Some(network) = Network::up(&[&settings[..], &size[..]].concat()) else { return };
    let hostile = Hostile::before(&network, "node2");
    network.run(&["restart", "node2", "--engine"]);
    network.until_all_at(35);
    let mut joined = false;
    for mode in [Mode::FlippedBits, Mode::Empty, Mode::WrongIndex, Mode::FalseList, Mode::Forged, Mode::Stall] {
        hostile.set(mode);
        for round in 0.. {
            assert!(round < TRIES, "in {TRIES} syncs nobody asked the hostile peer: {}", mode.name());
            network.until("a time between two snapshots", PATIENCE, |nodes| {
                nodes.iter().map(|node| node.height).max().is_some_and(|tip| (5..13).contains(&(tip % 30)))
            });
            match joined {
                false => network.run(&["join"]),
                true => network.run(&["wipe", "node3", "--state-sync"]),
            };
            joined = true;
            let tip = network.tip();
            let took = network.until(&format!("the joiner, with {}", mode.name()), PATIENCE, |nodes| {
                nodes.iter().any(|node| node.name == "node3" && node.height >= tip && !node.catching_up)
            });
            let (joiner, lies) = (network.node("node3"), hostile.lies());
            println!("{}: joined in {} ms, {lies} lies told", mode.name(), took.as_millis());
            assert!(joiner.lowest_height >= 10, "{}: it did not come from a snapshot", mode.name());
            if lies > 0 {
                break;
            }
        }
    }
    hostile.set(Mode::Honest);
    let goal = network.tip() + 3;
    network.until_all_at(goal);
    network.all_agree(goal);
}

/// The connection between an engine and its application breaks: the engine ends itself, as CometBFT does, and the node is
/// whole again as soon as it is started.
#[test]
fn a_connection_that_breaks_between_engine_and_application_costs_a_restart() {
    let Some(network) = Network::up(&["--validators", "4"]) else { return };
    let hostile = Hostile::before(&network, "node2");
    network.run(&["restart", "node2", "--engine"]);
    network.until_all_at(5);
    hostile.set(Mode::Sever);
    network.until("the engine to notice", Duration::from_secs(30), |nodes| {
        nodes.iter().any(|node| node.name == "node2" && node.engine_state == "ended")
    });
    hostile.set(Mode::Honest);
    network.run(&["restart", "node2"]);
    network.until("node2 to answer", ANSWERS, |nodes| nodes.iter().all(|node| node.answers));
    let goal = network.tip() + 2;
    network.until_all_at(goal);
    network.all_agree(goal);
}
