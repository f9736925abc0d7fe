//! What becomes of a node whose engine loses its application.

use crate::harness::{ANSWERS, Network};
use crate::proxy::{Hostile, Mode};
use std::time::Duration;

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
