//! `keelstone testnet`: a whole network of CometBFT and Keelstone nodes on this machine.

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::interrupt::wait_for_signals;
use crate::out::{Ink, Out, grouped, short};
use crate::processes::reap;
use crate::testnet::control::{Part, Request, ask};
use crate::testnet::hosts::Hosts;
use crate::testnet::joining::{self, Joined};
use crate::testnet::layout::{BALLAST_MAX, LOCK, Layout, NODES_MAX, Wish, remove_dir};
use crate::testnet::load::{self, Report};
use crate::testnet::network::Network;
use crate::testnet::owner::{Held, Owner};
use crate::testnet::watch::{self, NodeStatus, table};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long a network may take to make its first block.
const FIRST_BLOCK: Duration = Duration::from_secs(120);
/// How long what a network was made of may take to end once nobody owns it any more.
const ENDING: Duration = Duration::from_secs(10);
/// Where a network is unless told otherwise.
const DIR: &str = "keelstone-testnet";
/// The name and the validators of a new network unless told otherwise.
const CHAIN_ID: &str = "keelstone-testnet";
const VALIDATORS: u8 = 4;
/// How often the table is drawn anew.
const TABLE_EVERY: Duration = Duration::from_secs(1);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What every node of a test network is set to, before what the caller sets.
const SETTINGS: [&str; 2] = ["snapshots.enabled=true", "snapshots.interval=20"];

/// Run a network of CometBFT and Keelstone nodes on this machine
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory of the network [default: keelstone-testnet; of `demo` a new one]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a network, or take up one that was made, and run it until Ctrl-C or `down`
    Up(Up),
    /// Add a full node, by state sync
    Join {
        /// Let it fetch every block instead
        #[arg(long)]
        from_genesis: bool,
        /// Let its Keelstone run its CometBFT
        #[arg(long)]
        supervise: bool,
        /// A setting of its CometBFT, as section.key=value; may be repeated
        #[arg(long = "engine-set", value_name = "SETTING")]
        engine_settings: Vec<String>,
        /// Wait until it stands where the others stand, and say where the time went
        #[arg(long)]
        wait: bool,
    },
    /// Send signed bundles, and report what was committed and how quickly
    Load {
        /// Bundles a second
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=i64::from(load::RATE_MAX)))]
        rate: u32,
        /// For so many seconds
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=load::SECONDS_MAX))]
        seconds: u64,
    },
    /// Kill a node's processes with SIGKILL
    Kill(Named),
    /// Stop a node's processes with SIGSTOP for a while
    Pause {
        #[command(flatten)]
        named: Named,
        /// Seconds
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        seconds: u64,
    },
    /// Cut a node off from the others for a while (--namespaces only)
    Disconnect {
        /// The node
        node: String,
        /// Seconds
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        seconds: u64,
    },
    /// Stop what is named, and start everything of the node that does not run
    Restart(Named),
    /// Remove a node's data, but not what its validator has signed, and start it again
    Wipe {
        #[command(flatten)]
        named: Named,
        /// Come back from a snapshot, rather than by fetching every block
        #[arg(long)]
        state_sync: bool,
    },
    /// Show how every node stands
    Status,
    /// Compare the app hashes of all nodes at every height
    Compare {
        /// The first height
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// The last height [default: the lowest tip]
        #[arg(long)]
        to: Option<u64>,
    },
    /// Stop the network
    Down {
        /// Remove its directory too
        #[arg(long)]
        remove: bool,
    },
    /// Show all of it: validators under load, faults, and a node that joins by state sync and follows
    Demo {
        /// The CometBFT to run [default: as of `up`]
        #[arg(long, value_name = "PATH", env = "KEELSTONE_COMETBFT")]
        cometbft: Option<PathBuf>,
        /// Blocks the joiner must follow
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
        follow: u64,
    },
    /// Wait for the end of input, then end the process group
    #[command(hide = true)]
    Reap,
}

#[derive(Debug, Args)]
struct Up {
    /// Validators of a new network [default: 4]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    validators: Option<u8>,
    /// The name of a new network [default: keelstone-testnet]
    #[arg(long)]
    chain_id: Option<String>,
    /// The CometBFT to run, from now on also of a network that is there [default: of a new one
    /// target/tools/bin/cometbft-0.40.0 if there, else cometbft]
    #[arg(long, value_name = "PATH", env = "KEELSTONE_COMETBFT")]
    cometbft: Option<PathBuf>,
    /// A setting of every CometBFT of a new network, as section.key=value; may be repeated
    #[arg(long = "engine-set", value_name = "SETTING")]
    engine_settings: Vec<String>,
    /// Entries of 100 bytes that a new chain begins with, so that there is something to sync [default: 0]
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=i64::from(BALLAST_MAX)))]
    ballast: Option<u32>,
    /// The weight of a chunk of a new chain's snapshots, in bytes
    #[arg(long, value_name = "BYTES")]
    chunk_bytes: Option<u32>,
    /// Let every Keelstone of a new network run its CometBFT
    #[arg(long)]
    supervise: bool,
    /// Give every node of a new network a network namespace of its own (Linux, root)
    #[arg(long)]
    namespaces: bool,
    /// End when standard input ends, so that the network ends with whoever started it
    #[arg(long)]
    until_input_ends: bool,
}

impl Up {
    /// The first option that was given and is of a new network.
    fn of_a_new_network(&self, context: &Context<'_>) -> Option<&'static str> {
        let given = [
            ("--validators", self.validators.is_some()),
            ("--chain-id", self.chain_id.is_some()),
            ("--engine-set", !self.engine_settings.is_empty()),
            ("--set", !context.settings().is_empty()),
            ("--ballast", self.ballast.is_some()),
            ("--chunk-bytes", self.chunk_bytes.is_some()),
            ("--supervise", self.supervise),
            ("--namespaces", self.namespaces),
        ];
        given.into_iter().find_map(|(name, is_given)| is_given.then_some(name))
    }
}

/// A node and which of its processes.
#[derive(Debug, Args)]
struct Named {
    /// The node, such as node0
    node: String,
    /// Keelstone only
    #[arg(long, conflicts_with = "engine")]
    app: bool,
    /// CometBFT only
    #[arg(long)]
    engine: bool,
}

impl Named {
    fn part(&self) -> Part {
        match (self.app, self.engine) {
            (true, _) => Part::App,
            (_, true) => Part::Engine,
            _ => Part::Both,
        }
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    let (given, out) = (options.dir, context.out);
    let dir = given.as_deref().unwrap_or(Path::new(DIR));
    let (node, request, done) = match options.action {
        Action::Up(up) => return run_up(up, dir, context),
        Action::Demo { cometbft, follow } => return super::testnet_demo::run(given, cometbft, follow, context),
        Action::Reap => return Err(reap()),
        Action::Load { rate, seconds } => {
            context.takes("the load", load::TAKES)?;
            let layout = Layout::read(dir)?;
            ask(dir, &Request::Status)?;
            let report = load::run(&layout, rate, seconds, &AtomicBool::new(false))?;
            show_load(&report, out);
            out.emit(&report);
            return Ok(if report.committed == 0 { Exit::Error } else { Exit::Ok });
        }
        Action::Status => {
            let nodes = nodes_of(&ask(dir, &Request::Status)?)?;
            out.say(table(&nodes, out).trim_end());
            out.emit(&json!({ "nodes": nodes }));
            return Ok(Exit::Ok);
        }
        Action::Compare { from, to } => return compare(dir, from, to, context),
        Action::Down { remove } => return down(dir, remove, out),
        Action::Join { from_genesis, supervise: supervised, engine_settings, wait } => {
            let request = Request::Join { state_sync: !from_genesis, supervised, engine_settings };
            if wait {
                return join_and_wait(dir, &request, !from_genesis, out);
            }
            (None, request, "started")
        }
        Action::Kill(named) => {
            let part = named.part();
            (Some(named.node.clone()), Request::Kill { node: named.node, part }, "killed")
        }
        Action::Pause { named, seconds } => {
            let (part, millis) = (named.part(), seconds * 1_000);
            (Some(named.node.clone()), Request::Pause { node: named.node, part, millis }, "paused")
        }
        Action::Disconnect { node, seconds } => {
            (Some(node.clone()), Request::Disconnect { node, millis: seconds * 1_000 }, "cut off")
        }
        Action::Restart(named) => {
            let part = named.part();
            (Some(named.node.clone()), Request::Restart { node: named.node, part }, "restarted")
        }
        Action::Wipe { named, state_sync } => {
            let part = named.part();
            (Some(named.node.clone()), Request::Wipe { node: named.node, part, state_sync }, "wiped and started")
        }
    };
    let answer = ask(dir, &request)?;
    let joined = answer.get("node").and_then(Value::as_str).map(str::to_owned);
    let node = node.or(joined).unwrap_or_default();
    out.say(format_args!("{node} {done}"));
    out.emit(&json!({ "node": node, "done": done, "answer": answer }));
    Ok(Exit::Ok)
}

/// Adds a node and waits until it has joined.
fn join_and_wait(dir: &Path, request: &Request, state_sync: bool, out: &Out) -> Result<Exit, Failure> {
    let began = Instant::now();
    let answer = ask(dir, request)?;
    let name = answer.get("node").and_then(Value::as_str).unwrap_or_default();
    let layout = Layout::read(dir)?;
    let states = || {
        let nodes = nodes_of(&ask(dir, &Request::Status)?)?;
        let node = nodes.into_iter().find(|node| node.name == name);
        node.map(|node| [node.app, node.engine]).ok_or_else(|| Failure::not_found(format!("{name} is gone")))
    };
    let joined = joining::wait(&layout, layout.node(name)?, began, state_sync, states)?;
    show_joined(name, &joined, out);
    out.emit(&json!({ "node": name, "done": "joined", "answer": answer, "joined": joined }));
    Ok(Exit::Ok)
}

/// Says how a node joined.
fn show_joined(name: &str, joined: &Joined, out: &Out) {
    let seconds = |millis: u64| format!("{}.{} s", grouped(millis / 1_000), millis / 100 % 10);
    let megabytes = |bytes: u64| format!("{}.{} MB", grouped(bytes / 1_000_000), bytes / 100_000 % 10);
    out.row("joined", format_args!("{name} at {} within {}", grouped(joined.height), seconds(joined.total_ms)));
    out.row("started", seconds(joined.started_ms));
    if let (Some(discovered), Some(received), Some(built)) = (joined.discovered_ms, joined.received_ms, joined.built_ms)
    {
        out.row("discovered", seconds(discovered));
        let came = format_args!(
            "{}: {} entries in {} chunks, {}",
            seconds(received),
            grouped(joined.entries),
            grouped(joined.chunks),
            megabytes(joined.received_bytes)
        );
        out.row("received", came);
        let (rate, link) = (megabytes(joined.received_bytes_per_second), megabytes(joined.link_bytes_per_second));
        out.row("of the link", format_args!("{} %: {rate}/s of {link}/s", joined.link_percent));
        out.row("built", seconds(built));
    }
    out.row("first block", seconds(joined.first_block_ms));
    out.row("caught up", seconds(joined.caught_up_ms));
}

/// The nodes in the owner's answer.
fn nodes_of(answer: &Value) -> Result<Vec<NodeStatus>, Failure> {
    let nodes = answer.get("nodes").cloned().unwrap_or_default();
    serde_json::from_value(nodes).map_err(|error| Failure::error(format!("the owner answered something else: {error}")))
}

fn run_up(up: Up, dir: &Path, context: &Context<'_>) -> Result<Exit, Failure> {
    let out = context.out;
    // Before the directory is made: what cannot be run leaves none.
    let (wish, cometbft) = match Layout::exists(dir) {
        true => {
            if let Some(option) = up.of_a_new_network(context) {
                let message = format!("{option} is of a new network, and there is one in {}", dir.display());
                return Err(Failure::usage(message).hint(format!("leave it out, or {}", removes(dir))));
            }
            (None, up.cometbft.map(|named| find_cometbft(Some(named))).transpose()?)
        }
        false => (
            Some(Wish {
                chain_id: up.chain_id.unwrap_or_else(|| CHAIN_ID.to_owned()),
                validators: up.validators.unwrap_or(VALIDATORS),
                hosts: if up.namespaces { Hosts::namespaces()? } else { Hosts::Loopback },
                cometbft: find_cometbft(up.cometbft)?,
                settings: settings(context),
                engine_settings: up.engine_settings,
                ballast: up.ballast.unwrap_or(0),
                chunk_bytes: up.chunk_bytes,
                supervised: up.supervise,
            }),
            None,
        ),
    };
    if let Some(wish) = &wish {
        Layout::check(dir, wish)?;
    }
    // From here on a signal ends the network in good order, also one that is being made.
    let stop = wait_for_signals()?;
    let held = take(dir, || ask(dir, &Request::Status).is_err())?;
    let is_new = wish.is_some();
    let mut layout = match &wish {
        // Nobody else has made one meanwhile.
        Some(wish) if !Layout::exists(dir) => Layout::create(dir, wish)?,
        _ => Layout::read(dir)?,
    };
    if let Some(cometbft) = cometbft {
        layout.use_cometbft(cometbft)?;
    }
    let dir = layout.dir().to_owned();
    out.row("network", format_args!("{} in {}", layout.chain_id, dir.display()));
    out.row("cometbft", layout.cometbft.display());
    if stop.try_recv().is_ok() {
        out.say("stopped before it was started");
        return Ok(Exit::Ok);
    }
    // What did not come up once will not with the same settings, and those stay.
    let hinted = |failure: Failure| match (is_new, &failure.hint) {
        (true, None) => failure.hint(removes(&dir)),
        (true, Some(hint)) => {
            let hint = format!("{hint}; {}", removes(&dir));
            failure.hint(hint)
        }
        (false, _) => failure,
    };
    let (owner, stopped) = Owner::new(Network::start(layout, program()?, &held).map_err(hinted)?);
    let result = watch_over(&owner, &dir, up.until_input_ends, &stop, &stopped, out).map_err(hinted);
    out.say("stopping");
    owner.stop();
    drop(held);
    result?;
    out.say("stopped");
    Ok(Exit::Ok)
}

/// How to be rid of a network.
fn removes(dir: &Path) -> String {
    format!("keelstone testnet down --remove --dir {} removes the network", dir.display())
}

/// Takes a directory. What held it may be about to end: then that is waited for, if `ends` says so.
fn take(dir: &Path, ends: impl Fn() -> bool) -> Result<Held, Failure> {
    let deadline = Instant::now() + ENDING;
    loop {
        match Held::take(dir) {
            Err(failure) if failure.exit == Exit::InUse && Instant::now() < deadline && ends() => {
                std::thread::sleep(LOOK_EVERY);
            }
            held => return held,
        }
    }
}

/// Waits for the first blocks, then serves commands until somebody says that it is enough.
fn watch_over(
    owner: &Owner,
    dir: &Path,
    until_input_ends: bool,
    stop: &Receiver<()>,
    stopped: &Receiver<()>,
    out: &Out,
) -> Result<(), Failure> {
    owner.serve(dir)?;
    let ended = until_input_ends.then(input_ends).transpose()?;
    let is_over = || {
        let told = |receiver: &Receiver<()>| receiver.try_recv().is_ok();
        told(stop) || told(stopped) || ended.as_ref().is_some_and(told)
    };
    let deadline = Instant::now() + FIRST_BLOCK;
    let nodes = loop {
        if is_over() {
            return Ok(());
        }
        let nodes = owner.status()?;
        // A network that was stopped has its blocks before any engine answers.
        let is_there = |node: &NodeStatus| node.height > Some(0) && node.engine_height > Some(0);
        if nodes.iter().all(is_there) {
            break nodes;
        }
        if Instant::now() > deadline {
            let waiting = nodes.iter().filter(|node| !is_there(node));
            let names: Vec<String> = waiting.map(|node| node.name.clone()).collect();
            let message = format!("{} had no block within {} s", names.join(", "), FIRST_BLOCK.as_secs());
            return Err(Failure::error(message).hint(format!("their logs are in {}", dir.display())));
        }
        std::thread::sleep(LOOK_EVERY);
    };
    out.emit(&json!({ "dir": dir, "nodes": nodes }));
    out.say("");
    let mut drawn = draw(&nodes, 0, out);
    let does = out.called("Ctrl-C stops it; keelstone testnet join, load, kill, pause, … do things to it.");
    out.say(out.ink(Ink::Quiet, does));
    drawn += 1;
    while !is_over() {
        match stopped.recv_timeout(TABLE_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        if out.is_live()
            && let Ok(nodes) = owner.status()
        {
            drawn = draw(&nodes, drawn, out);
        }
    }
    Ok(())
}

/// Draws the table over the one drawn before, and says how many lines it has.
fn draw(nodes: &[NodeStatus], drawn: usize, out: &Out) -> usize {
    let text = table(nodes, out);
    if drawn > 0 {
        out.say(format_args!("\x1b[{drawn}A\x1b[J{}", text.trim_end()));
    } else {
        out.say(text.trim_end());
    }
    text.lines().count()
}

/// Is told once standard input has ended.
fn input_ends() -> Result<Receiver<()>, Failure> {
    let (told, receiver) = std::sync::mpsc::channel();
    let wait = move || {
        let mut buffer = [0; 256];
        while std::io::stdin().lock().read(&mut buffer).is_ok_and(|read| read > 0) {}
        // As for signals.
        let _ = told.send(());
    };
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(wait)
        .map_err(|error| Failure::io("could not watch standard input", &error))?;
    Ok(receiver)
}

fn down(dir: &Path, remove: bool, out: &Out) -> Result<Exit, Failure> {
    match ask(dir, &Request::Down) {
        Ok(_) => {}
        // What does not run is down; its directory may still be removed.
        Err(failure)
            if failure.exit == Exit::NoChain
                && remove
                && (Layout::exists(dir) || Layout::unfinished(dir).is_some()) => {}
        Err(failure) => return Err(failure),
    }
    // The owner holds the directory until it has ended.
    let held = take(dir, || true)?;
    if remove {
        let failed = |error: std::io::Error| Failure::io(format_args!("could not remove {}", dir.display()), &error);
        // Only what a network consists of: the directory may have been given by mistake.
        let left = match Layout::exists(dir) {
            true => {
                let layout = Layout::read(dir)?;
                layout.nodes.iter().map(|node| layout.node_dir(node)).collect()
            }
            false => Layout::unfinished(dir).unwrap_or_default(),
        };
        for path in left {
            if path.is_file() {
                std::fs::remove_file(&path).map_err(failed)?;
            } else {
                remove_dir(&path)?;
            }
        }
        for file in ["control.sock", "testnet.json", LOCK] {
            match std::fs::remove_file(dir.join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        // Left if something else is in it.
        let _ = std::fs::remove_dir(dir);
    }
    drop(held);
    out.say(if remove { "stopped and removed" } else { "stopped" });
    out.emit(&json!({ "stopped": true, "removed": remove }));
    Ok(Exit::Ok)
}

fn compare(dir: &Path, from: u64, to: Option<u64>, context: &Context<'_>) -> Result<Exit, Failure> {
    let layout = Layout::read(dir)?;
    let to = match to {
        Some(to) => {
            // Each height above it would be asked of every node in vain.
            let tip =
                watch::tip(&layout).ok_or_else(|| Failure::new(Exit::Unknown, "no node of the network answers"))?;
            if to > tip {
                return Err(Failure::not_found(format!("--to {to}: the highest block of any node is {tip}")));
            }
            to
        }
        None => {
            let nodes = nodes_of(&ask(dir, &Request::Status)?)?;
            last_of_all(nodes.iter().map(|node| node.height), from)
        }
    };
    let agreement = watch::compare(&layout, from, to);
    let out = context.out;
    out.row("heights", format_args!("{} from {from} to {to}", grouped(agreement.heights)));
    out.row("compared", grouped(agreement.compared));
    for disagreement in &agreement.disagreements {
        out.say(out.ink(Ink::Bad, disagreement));
    }
    for gap in &agreement.gaps {
        out.say(out.ink(Ink::Bad, gap));
    }
    out.emit(&agreement);
    Ok(match agreement.disagreements.is_empty() {
        false => Exit::Integrity,
        true if agreement.heights == 0 || !agreement.gaps.is_empty() => Exit::Unknown,
        true => Exit::Ok,
    })
}

/// The last height that can be asked of all nodes from a first one on. A node that is not there yet, as one that is joining, has
/// none of these: it is named for what it does not give, and keeps nobody from comparing the others.
fn last_of_all(heights: impl Iterator<Item = Option<u64>>, from: u64) -> u64 {
    heights.flatten().filter(|height| *height >= from).min().unwrap_or(from)
}

/// Says what a load came to.
pub(crate) fn show_load(report: &Report, out: &Out) {
    let hundredths = |number: u64| format!("{}.{:02}", grouped(number / 100), number % 100);
    out.row("sent", format_args!("{}, {} refused", grouped(report.sent), grouped(report.refused)));
    if let Some(refusal) = &report.first_refusal {
        out.row("first refusal", refusal);
    }
    if report.held_back > 0 {
        out.row("held back", format_args!("{}: all senders waited for a block", grouped(report.held_back)));
    }
    out.row("committed", format_args!("{} in {} blocks", grouped(report.committed), grouped(report.blocks)));
    out.row("rate", format_args!("{} bundles/s", hundredths(report.per_second_hundredths)));
    out.row(
        "latency",
        format_args!(
            "median {} ms, p99 {} ms, longest {} ms",
            report.latency_p50_ms, report.latency_p99_ms, report.latency_max_ms
        ),
    );
    if report.receipts_failed > 0 {
        out.row("failed", format_args!("{} of {} receipts read", report.receipts_failed, report.receipts_read));
    }
}

/// What every Keelstone of a network is set to: the network's own, then the caller's.
pub(crate) fn settings(context: &Context<'_>) -> Vec<String> {
    SETTINGS.iter().map(|setting| (*setting).to_owned()).chain(context.settings().iter().cloned()).collect()
}

/// This program, which is also every node's.
pub(crate) fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::io("this program does not know where it is", &error))
}

/// The CometBFT to run: as named, or as the tests install it here, or as the shell would find it.
pub(crate) fn find_cometbft(named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let installed = PathBuf::from("target/tools/bin/cometbft-0.40.0");
    let path = match named {
        Some(path) => path,
        None if installed.exists() => installed,
        None => PathBuf::from("cometbft"),
    };
    // With a directory in it a path is looked up from here, by processes that may run elsewhere.
    let path = match path.components().count() {
        1 => path,
        _ => std::path::absolute(&path).map_err(|error| Failure::io("no current directory", &error))?,
    };
    let said = Command::new(&path).arg("version").stdin(Stdio::null()).output();
    match said {
        Ok(output) if output.status.success() => Ok(path),
        Ok(output) => Err(Failure::usage(format!("{} version failed: {}", path.display(), output.status))),
        Err(error) => Err(Failure::usage(format!("could not run {} version: {error}", path.display())).hint(
            "go install github.com/cometbft/cometbft/cmd/cometbft@v0.40.0 makes one; --cometbft names another place",
        )),
    }
}

/// A height and root for people.
pub(crate) fn stands(node: &NodeStatus) -> String {
    let root = node.root.as_ref().map_or_else(|| "-".to_owned(), short);
    format!("{} at {} with {root}", node.name, node.height.map_or_else(|| "-".to_owned(), grouped))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that has just joined stands at nothing: the others are compared, and it is named.
    #[test]
    fn a_node_that_is_not_there_yet_does_not_end_a_comparison_before_it_begins() {
        let last = |heights: &[Option<u64>]| last_of_all(heights.iter().copied(), 3);
        assert_eq!(last(&[Some(9), Some(8), Some(0), None]), 8);
        assert_eq!(last(&[Some(9), Some(3)]), 3);
        assert_eq!(last(&[Some(2), None]), 3, "none of them has it, and each says so");
    }
}
