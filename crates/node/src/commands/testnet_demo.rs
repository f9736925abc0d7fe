//! `keelstone testnet demo`: a network from its first block to a node that joined it, with faults in between.
//!
//! Each claim is a check on what the nodes themselves answer, and the exit code is 0 only if every one of them held. The
//! network lives in a directory of its own that is removed at the end if all went well, and kept for a look if not.

use super::testnet::{find_cometbft, program, settings, show_load, stands};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::out::{Ink, Out, grouped};
use crate::testnet::control::{Part, Request};
use crate::testnet::hosts::Hosts;
use crate::testnet::layout::{Layout, Wish};
use crate::testnet::load;
use crate::testnet::network::Network;
use crate::testnet::owner::{Held, Owner};
use crate::testnet::watch::{self, NodeStatus};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Validators of the demonstration.
const VALIDATORS: u8 = 4;
/// Bundles a second, for as long as the demonstration goes on.
const RATE: u32 = 10;
/// Blocks that are made before anything happens, enough for snapshots.
const FIRST_BLOCKS: u64 = 30;
/// How long nodes may take to get anywhere. On a busy machine most of it is waiting for the processor.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Entries the chain begins with, for the joiner to fetch.
const BALLAST: u32 = 2_000;
/// What makes blocks quick: there is no network in between.
const ENGINE_SETTINGS: [&str; 1] = ["consensus.timeout_commit=200ms"];

struct Demo<'a> {
    out: &'a Out,
    owner: Owner,
    checks: Vec<(String, bool)>,
}

/// Runs it in a new directory, or in this one.
pub(crate) fn run(
    dir: Option<PathBuf>,
    cometbft: Option<PathBuf>,
    follow: u64,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    context.takes("the load of the demo", load::TAKES)?;
    let out = context.out;
    let began = Instant::now();
    // Before the directory is made: what cannot be run leaves none.
    let cometbft = find_cometbft(cometbft)?;
    let dir = match dir {
        Some(dir) => new_directory(dir)?,
        None => super::demo::fresh_directory()?,
    };
    let held = Held::take(&dir)?;
    let layout = Layout::create(
        &dir,
        &Wish {
            chain_id: "keelstone-demo".to_owned(),
            validators: VALIDATORS,
            hosts: Hosts::Loopback,
            cometbft,
            settings: settings(context),
            engine_settings: ENGINE_SETTINGS.map(str::to_owned).to_vec(),
            ballast: BALLAST,
            chunk_bytes: None,
            supervised: false,
        },
    )?;
    out.say(out.ink(Ink::Title, "Keelstone under CometBFT") + ": validators, faults, and a node that joins");
    out.say(out.ink(Ink::Quiet, format_args!("everything is in {}", dir.display())));
    let (owner, _) = Owner::new(Network::start(layout.clone(), program()?, &held)?);
    let mut demo = Demo { out, owner: owner.clone(), checks: Vec::new() };

    let enough = AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                // Until the first node answers there is nobody to send to.
                if let Ok(report) = load::run(&layout, RATE, load::SECONDS_MAX, &enough) {
                    return Some(report);
                }
                std::thread::sleep(LOOK_EVERY);
            }
            None
        });
        let told = demo.tell(follow);
        enough.store(true, Ordering::Relaxed);
        let report = load.join().expect("the load does not panic");
        if let (Ok(()), Some(report)) = (&told, &report) {
            demo.heading("The load, from the first block to the last");
            show_load(report, out);
            let whole = report.committed == report.sent && report.sent > 0;
            demo.check("every bundle that a node took in is in a block", whole);
            demo.check("none of those looked at has failed", report.receipts_failed == 0);
        }
        told.map(|()| report)
    });
    owner.stop();
    let report = told.map_err(|failure| failure.hint(format!("the nodes' logs are in {}", dir.display())))?;
    demo.finish(&dir, &held, &json!(report), began)
}

/// The directory that was named, in which nothing may be: all of it is removed at the end.
fn new_directory(dir: PathBuf) -> Result<PathBuf, Failure> {
    let failed = |error: std::io::Error| Failure::io(dir.display(), &error);
    std::fs::create_dir_all(&dir).map_err(failed)?;
    if std::fs::read_dir(&dir).map_err(failed)?.next().is_some() {
        return Err(Failure::usage(format!("--dir {}: something is in it already", dir.display())));
    }
    std::path::absolute(&dir).map_err(failed)
}

impl Demo<'_> {
    fn heading(&self, text: &str) {
        self.out.say("");
        self.out.say(self.out.ink(Ink::Title, text));
    }

    fn check(&mut self, claim: impl Into<String>, held: bool) {
        let claim = claim.into();
        let mark = if held { self.out.ink(Ink::Good, "✓") } else { self.out.ink(Ink::Bad, "✗") };
        self.out.say(format_args!("  {mark} {claim}"));
        self.checks.push((claim, held));
    }

    fn tell(&mut self, follow: u64) -> Result<(), Failure> {
        self.heading("Four validators make blocks");
        self.until("the first blocks", |nodes| all_at(nodes, FIRST_BLOCKS))?;
        self.check(format!("all stand at block {FIRST_BLOCKS} or above"), true);

        self.heading("Faults, one after the other");
        let faults = [
            ("killed, both processes", Request::Kill { node: "node1".to_owned(), part: Part::Both }, "node1"),
            ("its application killed", Request::Kill { node: "node2".to_owned(), part: Part::App }, "node2"),
            ("stood still", Request::Pause { node: "node3".to_owned(), part: Part::Engine, millis: 5_000 }, "node3"),
        ];
        for (what, fault, name) in faults {
            let paused = matches!(fault, Request::Pause { .. });
            self.owner.handle(fault)?;
            let before = self.highest()?;
            self.until("the others to go on", |nodes| highest(nodes) > before + 3)?;
            if !paused {
                self.owner.handle(Request::Restart { node: name.to_owned(), part: Part::Both })?;
            }
            let goal = self.highest()?;
            self.until("it to catch up", |nodes| all_at(nodes, goal))?;
            self.check(format!("{name} {what}: the others went on, and it caught up"), true);
        }

        self.heading("A fifth node joins by state sync");
        let joined =
            self.owner.handle(Request::Join { state_sync: true, supervised: false, engine_settings: Vec::new() })?;
        let name = joined.get("node").and_then(Value::as_str).unwrap_or_default().to_owned();
        self.out.row("trust", joined.get("trust").map(ToString::to_string).unwrap_or_default());
        let tip = self.highest()?;
        let nodes = self.until("it to reach the tip", |nodes| all_at(nodes, tip))?;
        let joiner = nodes.iter().find(|node| node.name == name);
        let lowest = joiner.and_then(|node| node.lowest_height).unwrap_or(0);
        self.out.row("joined", joiner.map(stands).unwrap_or_default());
        self.check(format!("its state begins at a snapshot, block {}", grouped(lowest)), lowest > 1);
        let goal = self.highest()? + follow;
        self.until("it to follow", |nodes| all_at(nodes, goal))?;
        self.check(format!("it followed {follow} further blocks"), true);

        self.heading("Every app hash, of every node, at every height");
        let layout = self.owner.with(|network| Ok(network.layout.clone()))?;
        let agreement = watch::compare(&layout, 1, goal);
        let (heights, compared) = (grouped(agreement.heights), grouped(agreement.compared));
        self.out.row("compared", format_args!("{compared} app hashes at {heights} heights"));
        for problem in agreement.disagreements.iter().chain(&agreement.gaps) {
            self.out.say(self.out.ink(Ink::Bad, problem));
        }
        self.check("all agree", agreement.disagreements.is_empty() && agreement.heights >= goal - 1);
        self.check("each node has each height since its first", agreement.gaps.is_empty());
        Ok(())
    }

    fn highest(&self) -> Result<u64, Failure> {
        Ok(highest(&self.owner.status()?))
    }

    /// Waits until something holds of the nodes.
    fn until(&self, what: &str, holds: impl Fn(&[NodeStatus]) -> bool) -> Result<Vec<NodeStatus>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let nodes = self.owner.status()?;
            if holds(&nodes) {
                return Ok(nodes);
            }
            if Instant::now() > deadline {
                let stood: Vec<String> = nodes.iter().map(stands).collect();
                let seconds = PATIENCE.as_secs();
                return Err(Failure::error(format!("waited {seconds} s for {what}: {}", stood.join("; "))));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn finish(self, dir: &std::path::Path, _held: &Held, load: &Value, began: Instant) -> Result<Exit, Failure> {
        let Self { out, checks, .. } = self;
        let held = checks.iter().filter(|(_, held)| *held).count();
        let all = held == checks.len();
        let summary = format!("{held} of {} checks held, in {} s", checks.len(), began.elapsed().as_secs());
        out.say("");
        out.say(out.ink(if all { Ink::Good } else { Ink::Bad }, summary));
        let shown: Vec<_> = checks.iter().map(|(claim, held)| json!({ "claim": claim, "held": held })).collect();
        out.emit(&json!({ "all_held": all, "checks": shown, "load": load }));
        if all {
            std::fs::remove_dir_all(dir)
                .map_err(|error| Failure::io(format_args!("could not remove {}", dir.display()), &error))?;
            Ok(Exit::Ok)
        } else {
            out.say(format_args!("everything is kept in {}", dir.display()));
            Ok(Exit::Integrity)
        }
    }
}

fn highest(nodes: &[NodeStatus]) -> u64 {
    nodes.iter().filter_map(|node| node.height).max().unwrap_or(0)
}

fn all_at(nodes: &[NodeStatus], height: u64) -> bool {
    nodes.iter().all(|node| node.height >= Some(height))
}
