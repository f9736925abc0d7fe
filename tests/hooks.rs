//! A chain that works by itself, on a network of real CometBFT nodes: an application with hooks in blocks and around
//! transactions, with functions that are there from a height on, and with all of a block that a hook may ask for.
//!
//! The program of the nodes is this one. Started by a test it is the application; started by `cargo test` it is the test. Without
//! a CometBFT it says so and passes, but for a CI machine.
#![forbid(unsafe_code)]

#[path = "cometbft/harness.rs"]
#[expect(dead_code, reason = "what other networks are asked is not asked of this one")]
mod harness;

use harness::{Network, PATIENCE};
use keelstone::prelude::*;
use serde_json::{Value, json};
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

/// Set where this program is the application.
const APPLICATION: &str = "TEST_APPLICATION";
/// The name of the only test here.
const TEST: &str = "hooks_under_cometbft_come_to_the_same_on_every_node";
/// From here on trees grow twice as fast, and their fruit may be picked.
const RIPE: Height = Height(30);
/// How long after it is wound up the alarm rings: some blocks later, in which nothing happens.
const RINGS_AFTER_MS: u64 = 1_500;

#[namespace("orchard")]
struct Orchard {
    trees: Map<u64, u64>,
    /// When the next tree is to be planted, and every time since.
    alarm: Item<u64>,
    planted: Log<(u64, u64)>,
    /// What the wind was like when trees grew last.
    wind: Item<Hash>,
    /// Trees that have been pruned, and how often.
    pruned: Item<u64>,
    /// How often who has come in.
    visits: Map<PublicKey, u64>,
}

#[event("orchard.planted")]
struct Planted {
    tree: u64,
}

#[transition("orchard.wind_up/1")]
struct WindUp {
    at: u64,
}

impl Transition<Orchard> for WindUp {
    type Output = ();
    fn apply(&self, orchard: &mut Draft<Orchard>, _: &mut Context) -> Result<(), Denied> {
        Ok(orchard.alarm.set(&self.at)?)
    }
}

#[transition("orchard.pick/1")]
struct Pick {
    tree: u64,
}

impl Transition<Orchard> for Pick {
    type Output = u64;
    fn apply(&self, orchard: &mut Draft<Orchard>, _: &mut Context) -> Result<u64, Denied> {
        let fruit = orchard.trees.get(&self.tree)?.ok_or_else(|| denied!("there is no such tree"))?;
        orchard.trees.insert(&self.tree, &0)?;
        Ok(fruit)
    }
}

/// Plants a tree once it is time, and no sooner: what it asks of a block decides whether it does anything.
#[transition("orchard.plant/1", context = [height, time])]
struct Plant;

impl Transition<Orchard> for Plant {
    type Output = ();
    fn apply(&self, orchard: &mut Draft<Orchard>, cx: &mut Context) -> Result<(), Denied> {
        let (height, time) = (cx.height()?.0, cx.time()?.0);
        if orchard.alarm.get()?.is_none_or(|at| time < at) {
            return Ok(());
        }
        orchard.alarm.take()?;
        orchard.trees.insert(&height, &0)?;
        orchard.planted.push(&(height, time))?;
        Ok(cx.emit(&Planted { tree: height })?)
    }
}

fn grow(orchard: &mut Draft<Orchard>, cx: &Context, by: u64) -> Result<(), Denied> {
    let trees: Vec<(u64, u64)> = orchard.trees.iter().take(100).collect::<Result<_, _>>()?;
    for (tree, fruit) in &trees {
        orchard.trees.insert(tree, &(fruit + by))?;
    }
    match trees.is_empty() {
        true => Ok(()),
        false => Ok(orchard.wind.set(&cx.random()?)?),
    }
}

#[transition("orchard.grow/1", context = random)]
struct Grow;

impl Transition<Orchard> for Grow {
    type Output = ();
    fn apply(&self, orchard: &mut Draft<Orchard>, cx: &mut Context) -> Result<(), Denied> {
        grow(orchard, cx, 1)
    }
}

#[transition("orchard.grow/2", context = random)]
struct GrowFaster;

impl Transition<Orchard> for GrowFaster {
    type Output = ();
    fn apply(&self, orchard: &mut Draft<Orchard>, cx: &mut Context) -> Result<(), Denied> {
        grow(orchard, cx, 2)
    }
}

/// Prunes every tree that can bear it: what it tried of the others is taken back.
#[transition("orchard.prune/1")]
struct Prune;

impl Transition<Orchard> for Prune {
    type Output = u64;
    fn apply(&self, orchard: &mut Draft<Orchard>, cx: &mut Context) -> Result<u64, Denied> {
        let trees: Vec<(u64, u64)> = orchard.trees.iter().take(100).collect::<Result<_, _>>()?;
        let mut pruned = 0;
        for (tree, fruit) in trees {
            let done = cx.attempt(|_| {
                orchard.trees.remove(&tree)?;
                ensure!(fruit % 5 == 0, "it bears fruit");
                Ok(orchard.trees.insert(&tree, &fruit)?)
            })?;
            pruned += u64::from(done.is_ok());
        }
        if pruned > 0 {
            let before = orchard.pruned.get_or_default()?;
            orchard.pruned.set(&(before + pruned))?;
        }
        Ok(pruned)
    }
}

/// Fails once there is a tree, in every block, and takes nothing else with it.
#[transition("orchard.fell/1")]
struct Fell;

impl Transition<Orchard> for Fell {
    type Output = ();
    fn apply(&self, orchard: &mut Draft<Orchard>, _: &mut Context) -> Result<(), Denied> {
        let Some(tree) = orchard.trees.first()? else { return Ok(()) };
        orchard.trees.remove(&tree.0)?;
        panic!("the axe broke")
    }
}

/// Lets everybody in twice.
#[transition("orchard.gate/1", gas = 100_000)]
struct Gate;

impl Transition<Orchard> for Gate {
    type Output = u64;
    fn apply(&self, orchard: &mut Draft<Orchard>, cx: &mut Context) -> Result<u64, Denied> {
        let visits = orchard.visits.get(&cx.sender())?.unwrap_or_default();
        ensure!(visits < 2, "{} was here twice", cx.sender());
        orchard.visits.insert(&cx.sender(), &(visits + 1))?;
        Ok(cx.transaction()?.bytes)
    }
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.before_transaction::<Orchard, Gate>();
    registry.register::<Orchard, WindUp>().event::<Planted>();
    registry.during(..RIPE, |registry| {
        registry.begin_block::<Orchard, Grow>();
    });
    registry.during(RIPE.., |registry| {
        registry.begin_block::<Orchard, GrowFaster>().register::<Orchard, Pick>();
    });
    registry.end_block::<Orchard, Plant>().end_block::<Orchard, Prune>().end_block::<Orchard, Fell>();
    registry
}

/// The program that the network runs, in an empty environment: this one.
fn program() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a running test has a path"));
    command.env_clear().env(APPLICATION, "1");
    command
}

fn main() -> ExitCode {
    if std::env::var_os(APPLICATION).is_some() {
        return keelstone::node::Application::new(registry()).name("orchard").main();
    }
    // As a test harness does with the names that it is given.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if std::env::args().any(|argument| argument == "--list") {
        println!("{TEST}: test");
    } else if asked.is_empty() || asked.iter().any(|name| TEST.contains(name.as_str())) {
        println!("test {TEST} ...");
        hooks_under_cometbft_come_to_the_same_on_every_node();
        println!("test result: ok. 1 passed");
    }
    ExitCode::SUCCESS
}

/// spec: EXEC-23, EXEC-24, EXEC-25, BLOCK-8, BLOCK-9, TX-10, LEDGER-1. On a network whose blocks are another engine's, work of the chain's own is the
/// same on every node, on one that was killed in the middle and on those that join by a snapshot and by running every block, also
/// where whether there is any follows from a block's time; rules change at the height that was agreed on; and what was done is
/// proven.
fn hooks_under_cometbft_come_to_the_same_on_every_node() {
    let Some(network) = Network::up(&["--validators", "2"]) else { return };
    let asked = |arguments: &[&str]| {
        let (code, said) = network.on_home("node0", arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
        said
    };
    asked(&["keys", "new", "gardener"]);
    let plan = network.dir().join("plan.json");
    let send = |call: &str, args: Value| {
        let text = json!({ "operations": [{ "call": call, "args": args }] }).to_string();
        std::fs::write(&plan, text).expect("a plan can be written");
        network.on_home("node0", &["tx", "send", plan.to_str().expect("UTF-8"), "--from", "gardener"])
    };

    // Nothing is due yet, and the state stays as it is.
    network.until_all_at(3);
    let idle = network.nodes()[0].root.clone();
    assert!(network.nodes().iter().all(|node| node.root == idle), "an idle chain");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis();
    let at = u64::try_from(now).expect("a time") + RINGS_AFTER_MS;
    let (code, said) = send("orchard.wind_up/1", json!({ "at": at }));
    assert_eq!(code, 0, "{said}");
    let wound = said["receipt"]["height"].as_u64().expect("its block");
    assert!(wound + 2 < RIPE.0, "the network was slow, {wound}");
    let (code, said) = send("orchard.pick/1", json!({ "tree": 1 }));
    assert_ne!(code, 0, "nobody has heard of it yet: {said}");

    // The first block that is not before its time plants a tree, and no other does.
    network.until("a tree", PATIENCE, |_| {
        !asked(&["query", "orchard/planted"])["rows"].as_array().expect("rows").is_empty()
    });
    let planted = asked(&["query", "orchard/planted"]);
    let row = &planted["rows"][0]["value"];
    let (tree, time) = row[0].as_u64().zip(row[1].as_u64()).unwrap_or_else(|| panic!("{planted}"));
    assert!(tree > wound && time >= at, "{planted}");
    let block = |height: u64| asked(&["query", "block", &height.to_string()]);
    assert!(block(tree - 1)["time"].as_u64() < Some(at) || tree == wound + 1, "{planted}");
    let hooks = |height: u64| -> Vec<(String, String, String)> {
        let block = block(height);
        let shown = block["continuations"].as_array().expect("a list").iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        shown.map(|one| (text(&one["hook"]), text(&one["function"]), text(&one["progress"]))).collect()
    };
    let did = |hook: &str, function: &str, progress: &str| (hook.to_owned(), function.to_owned(), progress.to_owned());
    assert!(hooks(tree).contains(&did("end_block", "orchard.plant/1", "complete")), "{:?}", hooks(tree));

    // Killed as nothing can catch, both sides of a validator: its engine has blocks run again.
    network.run(&["kill", "node1"]);
    network.run(&["restart", "node1"]);
    network.until_all_at(RIPE.0 + 2);
    let grown = |height: u64, function: &str| {
        let found = hooks(height);
        assert_eq!(found.first(), Some(&did("begin_block", function, "complete")), "{height}: {found:?}");
        assert!(found.contains(&did("end_block", "orchard.fell/1", "stopped")), "{height}: {found:?}");
    };
    grown(RIPE.0 - 1, "orchard.grow/1");
    grown(RIPE.0, "orchard.grow/2");
    let (code, said) = send("orchard.pick/1", json!({ "tree": tree }));
    assert_eq!(code, 0, "it is there by now: {said}");
    let picked = said["receipt"]["id"].as_str().expect("its id").to_owned();
    let (code, said) = send("orchard.pick/1", json!({ "tree": tree }));
    assert_eq!(code, 13, "a third time: {said}");
    assert!(said.to_string().contains("orchard.gate/1 does not let it in"), "{said}");

    // Five at once of somebody who is let in twice: whoever proposes a block has no more of them in it than that.
    asked(&["keys", "new", "crowd"]);
    let call = json!([{ "call": "orchard.pick/1", "args": { "tree": 0 } }]);
    let sent: Vec<String> = (0..5)
        .filter_map(|nonce| {
            std::fs::write(&plan, json!({ "operations": call, "nonce": nonce }).to_string())
                .expect("a plan can be written");
            let plan = plan.to_str().expect("UTF-8");
            let (code, said) = network.on_home("node0", &["tx", "send", plan, "--from", "crowd", "--no-wait"]);
            assert!(code == 0 || said.to_string().contains("does not let it in"), "{said}");
            (code == 0).then(|| said["id"].as_str().expect("its id").to_owned())
        })
        .collect();
    network.until_all_at(network.tip() + 2);
    let became: Vec<(i32, Value)> = sent.iter().map(|id| network.on_home("node0", &["query", "tx", id])).collect();
    assert!(became.iter().filter(|(code, _)| *code == 0).count() == 2, "{became:?}");
    assert!(became.iter().all(|(_, said)| !said.to_string().contains("refused")), "{became:?}");

    for joins in [&["join"][..], &["join", "--from-genesis"]] {
        network.run(joins);
    }
    network.run(&["restart", "node0", "--engine"]);
    let tip = network.tip() + 2;
    network.until("who joins to reach the tip", PATIENCE, |nodes| {
        nodes.len() == 4 && nodes.iter().all(|node| node.height >= tip && !node.catching_up)
    });
    assert!(network.node("node2").lowest_height >= 10, "it did not come from a snapshot");
    assert!(network.node("node3").lowest_height <= 1, "it was to run every block");
    network.all_agree(tip);

    // Proven by one node, checked under the root that the engine's header has by another, which was not there.
    let proof = network.dir().join("proof.json");
    let file = proof.to_str().expect("UTF-8");
    let said = asked(&["bundle", "prove-operation", "end_block", "0", "--block", &tree.to_string(), "--out", file]);
    assert_eq!((&said["hook"], &said["function"]), (&json!("end_block"), &json!("orchard.plant/1")), "{said}");
    assert_eq!(said["outcome"]["events"][0]["data"]["tree"], json!(tree), "{said}");
    let root = said["root"].as_str().expect("a root").to_owned();
    let (code, said) = network.on_home("node2", &["bundle", "verify-operation", file, "--root", &root]);
    assert_eq!((code, &said["valid"]), (0, &json!(true)), "{said}");

    let arguments = ["bundle", "prove-operation", "before_transaction", "0", "--transaction", &picked];
    let said = asked(&arguments);
    assert_eq!((&said["hook"], &said["function"]), (&json!("before_transaction"), &json!("orchard.gate/1")), "{said}");
    assert_eq!(said["by"], json!(picked), "{said}");

    // What is on record of it holds, of the node that was killed as of the one that ran it all at once.
    for name in ["node1", "node3"] {
        network.run(&["kill", name]);
        for command in [&["replay"][..], &["audit", "verify"]] {
            let (code, said) = network.on_home(name, command);
            assert_eq!(code, 0, "{name}: {command:?}: {said}");
        }
    }
}
