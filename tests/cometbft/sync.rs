//! Nodes that come back from snapshots, and chains that idle.

use crate::harness::{Network, PATIENCE, cometbft, get, metric};
use crate::proxy::{Hostile, Mode};
use serde_json::Value;
use std::time::Duration;

/// What an engine answers to a path.
fn rpc(base: &str, path: &str) -> Value {
    let text = get(base, path).unwrap_or_else(|| panic!("{base}{path} did not answer"));
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{base}{path}: {error}"));
    value["result"].clone()
}

/// A validator loses all its data but the record of what it has signed, comes back from a snapshot and signs again.
/// Nobody finds it to have signed anything twice.
#[test]
fn ss54_a_wiped_validator_state_syncs_and_signs_again_without_signing_twice() {
    let Some(network) = Network::up(&["--validators", "4"]) else { return };
    network.until_all_at(25);
    let key = std::fs::read(network.dir().join("node1/cometbft/config/priv_validator_key.json")).expect("readable");
    let key: Value = serde_json::from_slice(&key).expect("JSON");
    let address = key["address"].as_str().expect("text");
    let state = network.dir().join("node1/cometbft/data/priv_validator_state.json");
    let signed = || {
        let state: Value = serde_json::from_slice(&std::fs::read(&state).expect("readable")).expect("JSON");
        state["height"].as_str().and_then(|height| height.parse::<u64>().ok()).expect("a height")
    };
    let before = signed();
    assert!(before >= 20, "{before}");
    network.run(&["wipe", "node1", "--state-sync"]);
    assert!(signed() >= before, "what was signed is never forgotten");

    let tip = network.tip();
    network.until("the validator to come back", PATIENCE, |nodes| {
        nodes.iter().any(|node| node.name == "node1" && node.height > tip && !node.catching_up)
    });
    assert!(network.node("node1").lowest_height >= 10, "it did not come from a snapshot");
    let other = network.node("node0").rpc;
    let signs = |height: u64| {
        let commit = rpc(&other, &format!("/commit?height={height}"));
        let signatures = commit["signed_header"]["commit"]["signatures"].as_array().cloned().unwrap_or_default();
        signatures.iter().any(|one| one["validator_address"] == address && one["block_id_flag"] == 2)
    };
    let from = network.tip();
    network.until("it to sign again", PATIENCE, |_| (from..network.tip()).any(signs));
    let tip = network.tip();
    for height in before..tip {
        let block = rpc(&other, &format!("/block?height={height}"));
        let evidence = &block["block"]["evidence"]["evidence"];
        assert!(evidence.as_array().is_none_or(Vec::is_empty), "height {height}: {evidence}");
    }
    network.all_agree(tip - 1);
}

/// Without transactions an idle chain makes no blocks, and its app hash stays.
#[test]
fn ss64_an_idle_chain_without_empty_blocks_stays_as_it_is() {
    let options = ["--validators", "1", "--engine-set", "consensus.create_empty_blocks=false"];
    let Some(network) = Network::up(&options) else { return };
    // Blocks that prove the first state come first. Then it waits for a transaction, in the second step of the next height.
    network.until("it to rest", PATIENCE, |nodes| {
        let state = rpc(&nodes[0].rpc, "/consensus_state");
        state["round_state"]["height/round/step"] == format!("{}/0/2", nodes[0].height + 1)
    });
    let before = network.node("node0");
    std::thread::sleep(Duration::from_secs(5));
    let after = network.node("node0");
    assert_eq!((after.height, after.engine_height), (before.height, before.engine_height));
    assert_eq!(after.root, before.root);
    assert!(after.height <= 2, "{after:?}");
    network.run(&["load", "--rate", "5", "--seconds", "1"]);
    let busy = network.node("node0");
    assert!(busy.height > after.height && busy.root != after.root, "a transaction wakes it");
}

/// What is synced is counted exactly: the metrics end where they said they would.
#[test]
fn ss62_a_larger_state_is_synced_whole_and_counted_exactly() {
    let Some(network) = Network::up(&["--validators", "2", "--ballast", "40000", "--chunk-bytes", "65536"]) else {
        return;
    };
    network.until_all_at(15);
    network.run(&["join"]);
    let tip = network.tip();
    let took = network.until("the joiner to reach the tip", PATIENCE, |nodes| {
        nodes.iter().any(|node| node.name == "node2" && node.height >= tip && !node.catching_up)
    });
    let joiner = network.node("node2");
    println!("40,000 entries joined in {} ms", took.as_millis());
    let done = metric(&joiner, "statesync_done_chunks");
    assert!(done > Some(50), "{done:?} chunks");
    assert_eq!(done, metric(&joiner, "statesync_total_chunks"));
    let entries = metric(&joiner, "statesync_done_entries");
    assert!(entries > Some(40_000), "{entries:?} entries");
    assert_eq!(entries, metric(&joiner, "statesync_total_entries"));
    assert_eq!(metric(&joiner, "statesync_phase_number"), Some(3), "it is done");
    network.all_agree(tip);
}

/// Killed in the middle of a restore, Keelstone is started again, starts CometBFT again, and the node syncs.
#[test]
fn ss58_an_application_killed_in_the_middle_of_a_restore_syncs_when_it_is_started_again() {
    let Some(network) = Network::up(&["--validators", "2", "--ballast", "20000", "--chunk-bytes", "65536"]) else {
        return;
    };
    network.until_all_at(15);
    // Slow enough to be caught in the middle.
    network.run(&["join", "--supervise", "--engine-set", "p2p.recv_rate=400000"]);
    network.until("half of the chunks", PATIENCE, |nodes| {
        let joiner = nodes.iter().find(|node| node.name == "node2").expect("it was started");
        let (done, all) = (metric(joiner, "statesync_done_chunks"), metric(joiner, "statesync_total_chunks"));
        done.zip(all).is_some_and(|(done, all)| all > 0 && done * 2 >= all)
    });
    network.run(&["kill", "node2"]);
    network.run(&["restart", "node2"]);
    let tip = network.tip();
    network.until("the joiner to reach the tip", PATIENCE, |nodes| {
        nodes.iter().any(|node| node.name == "node2" && node.height >= tip && !node.catching_up)
    });
    assert!(network.node("node2").lowest_height >= 10, "it did not come from a snapshot");
    network.all_agree(tip);
}

/// CometBFT gives up state sync, here because it is told to trust a block that does not exist. Its supervisor lets it
/// fetch every block instead, by itself.
#[test]
fn a_supervised_engine_that_gives_up_state_sync_fetches_every_block() {
    let Some(network) = Network::up(&["--validators", "2", "--supervise"]) else { return };
    network.until_all_at(12);
    let wrong = format!("statesync.trust_hash={}", "AB".repeat(32));
    network.run(&["join", "--supervise", "--engine-set", &wrong]);
    let tip = network.tip();
    network.until("the joiner to reach the tip", PATIENCE, |nodes| {
        nodes.iter().any(|node| node.name == "node2" && node.height >= tip && !node.catching_up)
    });
    assert!(network.node("node2").lowest_height <= 1, "it was to fetch every block");
    assert!(
        network.log("node2", "keelstone").contains("state sync failed; CometBFT and this node begin anew"),
        "its log says what happened"
    );
    network.all_agree(tip);
    // The engine of a supervised node is no process of the network's, and still ends and comes back with it.
    network.run(&["kill", "node2"]);
    network.run(&["restart", "node2"]);
    let goal = network.tip() + 3;
    network.until_all_at(goal);
}

/// A node that is killed between its restored state and the first block on it, and whose engine then gives up, fetches
/// every block all the same: nothing but a snapshot speaks for what it holds.
#[test]
fn a_supervised_node_restarted_over_an_unconfirmed_state_falls_back_too() {
    let Some(network) = Network::up(&["--validators", "2"]) else { return };
    network.until_all_at(15);
    let silent = Hostile::beside(&network, "node2");
    silent.set(Mode::Speechless);
    network.run(&["join", "--supervise", "--engine-set", &format!("proxy_app={}", silent.address())]);
    network.until("a restored state", PATIENCE, |nodes| {
        let joiner = nodes.iter().find(|node| node.name == "node2").expect("it was started");
        silent.lies() > 0 && metric(joiner, "statesync_phase_number") == Some(3)
    });
    network.run(&["kill", "node2"]);
    let data = network.dir().join("node2/keelstone/data");
    let generation = std::fs::read_to_string(data.join("CURRENT")).expect("readable");
    assert!(data.join(generation.trim()).join("unconfirmed").exists(), "no block was made on it");

    silent.set(Mode::Honest);
    let config = network.engine_config("node2");
    let text = std::fs::read_to_string(&config).expect("readable");
    let wrong = |line: &str| match line.starts_with("trust_hash") {
        true => format!("trust_hash = \"{}\"", "AB".repeat(32)),
        false => line.to_owned(),
    };
    let changed: Vec<String> = text.lines().map(wrong).collect();
    std::fs::write(&config, changed.join("\n") + "\n").expect("written");
    network.run(&["restart", "node2"]);
    let tip = network.tip();
    network.until("the joiner to reach the tip", PATIENCE, |nodes| {
        nodes.iter().any(|node| node.name == "node2" && node.height >= tip && !node.catching_up)
    });
    assert!(network.node("node2").lowest_height <= 1, "it was to fetch every block");
    let log = network.log("node2", "keelstone");
    assert!(log.contains("state sync failed; CometBFT and this node begin anew"), "its log says what happened");
    network.all_agree(tip);
}

/// `status` says where the engine stands, and `rollback` goes back as far as the engine went and no further; then both
/// go on together.
#[test]
fn status_shows_the_engine_and_rollback_keeps_in_step_with_it() {
    let Some(network) = Network::up(&["--validators", "1"]) else { return };
    // What would leave a dead node is refused, and leaves the network as it was.
    assert!(network.refused(&["join"]).contains("two other nodes, and 1 runs"));
    assert!(network.refused(&["join", "--from-genesis", "--engine-set", "p2p=5"]).contains("p2p"));
    assert!(network.refused(&["wipe", "node0", "--engine"]).contains("Keelstone of node0 has block"));
    assert_eq!(network.nodes().len(), 1);
    network.run(&["join", "--from-genesis"]);
    network.until("both to be at the tip", PATIENCE, |nodes| {
        nodes.iter().all(|node| node.height >= 12 && node.answers && !node.catching_up)
    });
    let (code, status) = network.on_home("node1", &["status"]);
    let engine = &status["engine"];
    assert_eq!((code, &engine["earliest_height"], &engine["error"]), (0, &Value::from(1), &Value::Null), "{status}");
    assert!(engine["height"].as_u64() >= Some(12) && engine["catching_up"] == false, "{status}");
    assert_eq!(engine["rpc"], Value::from(network.node("node1").rpc), "{status}");

    network.run(&["kill", "node1"]);
    let (code, status) = network.on_home("node1", &["status"]);
    assert!(code == 0 && status["engine"]["error"].is_string(), "an engine that is gone is no failure: {status}");
    let height = status["height"].as_u64().expect("a height");
    let (code, said) = network.on_home("node1", &["rollback", &(height - 1).to_string(), "--yes"]);
    assert!(code == 2 && said.to_string().contains("--engine-height"), "its height must be said: {code} {said}");

    let home = network.dir().join("node1/cometbft");
    let mut rollback = std::process::Command::new(cometbft().expect("it runs"));
    let rolled = rollback.args(["rollback", "--hard", "--home"]).arg(home).output().expect("started");
    let said = String::from_utf8_lossy(&rolled.stdout).into_owned();
    assert!(rolled.status.success(), "{said} {}", String::from_utf8_lossy(&rolled.stderr));
    let mut words = said.split_whitespace().skip_while(|word| *word != "height");
    let engine: u64 = words.nth(1).and_then(|word| word.parse().ok()).expect("it prints a height");
    let at = engine.to_string();
    let to =
        |height: u64| network.on_home("node1", &["rollback", &height.to_string(), "--yes", "--engine-height", &at]);
    let (code, said) = to(engine - 2);
    assert!(code == 2 && said.to_string().contains("one below"), "further than the engine replays: {code} {said}");
    let (code, said) = to(engine);
    assert_eq!((code, &said["height"]), (0, &Value::from(engine)), "{said}");

    network.run(&["restart", "node1"]);
    let goal = network.tip() + 3;
    network.until_all_at(goal);
    network.all_agree(goal);
}
