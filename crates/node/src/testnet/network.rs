//! The owner's side of a running test network: its processes, and what can be done to them.

use super::control::Part;
use super::layout::{ASK, Layout, NODES_MAX, Node};
use super::owner::Held;
use super::watch::Known;
use crate::api::Chain as _;
use crate::client::Remote;
use crate::clock::now;
use crate::cometbft::config_file::Edit;
use crate::cometbft::home::enable;
use crate::cometbft::trust::{TRUST_PERIOD, TrustError, TrustPeriod, agree};
use crate::exit::Failure;
use crate::generations::is_kept;
use crate::newfile::empty;
use crate::processes::{Group, Process, STOP, State, last_lines};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long Keelstone may take to open its state and wait for the engine.
const START: Duration = Duration::from_secs(60);
/// How long the engine may take to notice that its application is gone. It ends itself then.
const NOTICE: Duration = Duration::from_secs(5);
/// Lines of a log that a failure quotes.
const QUOTED_LINES: usize = 5;

/// A running network.
pub(crate) struct Network {
    pub(crate) layout: Layout,
    group: Group,
    /// The program whose `node` command is run.
    program: PathBuf,
    running: BTreeMap<String, Running>,
    /// How often something was paused or cut off: what ends one of these ends no later one.
    holds: u64,
}

/// The processes of one node.
#[derive(Default)]
struct Running {
    app: Option<Process>,
    engine: Option<Process>,
    /// By the number of a process, which pause was its last.
    paused: BTreeMap<u32, u64>,
    /// Which disconnection, if it is cut off.
    cut_off: Option<u64>,
}

impl Network {
    /// Starts every node of a layout. Its directory stays held until the last of their processes has ended.
    pub(crate) fn start(layout: Layout, program: PathBuf, held: &Held) -> Result<Self, Failure> {
        // Before anything is named as this one's to remove.
        layout.hosts.check_unused(NODES_MAX)?;
        let group = Group::start(Some(held.file()))
            .map_err(|error| Failure::io("could not start the network's reaper", &error))?;
        let mut network = Self { layout, group, program, running: BTreeMap::new(), holds: 0 };
        network.register_leftovers()?;
        network.layout.hosts.set_up(NODES_MAX)?;
        for node in network.layout.nodes.clone() {
            network.layout.hosts.add(node.index)?;
            network.start_node(&node)?;
        }
        Ok(network)
    }

    /// Names what has to be removed at the end before it is made. What is named and not there costs a line in a log.
    fn register_leftovers(&mut self) -> Result<(), Failure> {
        for arguments in self.layout.hosts.leftovers(NODES_MAX) {
            self.group
                .remove_at_end(&arguments)
                .map_err(|error| Failure::io("the network's reaper does not listen", &error))?;
        }
        Ok(())
    }

    /// What is known of every node without asking it.
    pub(crate) fn known(&mut self) -> Vec<Known> {
        let running = &mut self.running;
        let state = |process: Option<&mut Process>| process.map_or(State::Off, Process::state);
        let mut known = |node: &Node| {
            let node = node.clone();
            let Some(Running { app, engine, cut_off, .. }) = running.get_mut(&node.name) else {
                return Known { node, app: State::Off, engine: State::Off, cut_off: false };
            };
            let app = state(app.as_mut());
            // One that its Keelstone runs does what that does, as far as can be told from here.
            let engine = if node.supervised { app.clone() } else { state(engine.as_mut()) };
            Known { node, app, engine, cut_off: cut_off.is_some() }
        };
        self.layout.nodes.iter().map(&mut known).collect()
    }

    /// Starts what of a node does not run.
    fn start_node(&mut self, node: &Node) -> Result<(), Failure> {
        let dir = self.layout.node_dir(node);
        let running = self.running.entry(node.name.clone()).or_default();
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |error: io::Error| Failure::io(format_args!("could not start {what}"), &error)
        };
        if !running.app.as_mut().is_some_and(Process::is_alive) {
            let socket = self.layout.abci_socket(node);
            // A killed process leaves its socket's name behind, which must not be taken for the new one's.
            let _ = fs::remove_file(&socket);
            let mut command = self.layout.hosts.command(node.index, self.program.as_os_str());
            command.arg("node").arg("--home").arg(self.layout.home(node).path());
            for setting in self.layout.settings_of(node) {
                command.args(["--set", &setting]);
            }
            let log = dir.join("keelstone.log");
            let app = self.group.spawn_logged(command, &log).map_err(failed(&self.program))?;
            wait_for(running.app.insert(app), &node.name, &socket, &log)?;
        }
        if !node.supervised && !running.engine.as_mut().is_some_and(Process::is_alive) {
            let cometbft = &self.layout.cometbft;
            let mut command = self.layout.hosts.command(node.index, cometbft.as_os_str());
            command.arg("start").arg("--home").arg(self.layout.engine_home(node));
            let engine = self.group.spawn_logged(command, &dir.join("cometbft.log")).map_err(failed(cometbft))?;
            running.engine = Some(engine);
        }
        Ok(())
    }

    /// Adds a full node and starts it. One that cannot be started is taken back: it would stand in the network for ever.
    pub(crate) fn join(&mut self, state_sync: bool, supervised: bool, settings: &[String]) -> Result<Value, Failure> {
        let mut edits = Vec::new();
        for text in settings {
            let edit = Edit::parse(text);
            edits.push(edit.ok_or_else(|| Failure::usage(format!("--engine-set {text}: expected section.key=value")))?);
        }
        let (sync, trusted) = self.sync_edits(state_sync, None)?;
        let node = self.layout.add_full_node(supervised, &[sync, edits].concat())?;
        let started = self.layout.hosts.add(node.index).and_then(|()| self.start_node(&node));
        if let Err(failure) = started {
            self.take_back(&node);
            return Err(failure);
        }
        Ok(
            json!({ "node": node.name, "trust": trusted, "api": format!("http://{}", node.http), "rpc": format!("http://{}", node.rpc) }),
        )
    }

    /// Removes a node that was just added.
    fn take_back(&mut self, node: &Node) {
        let stopped = self.stop_node(node, Part::Both);
        self.running.remove(&node.name);
        self.layout.hosts.remove(node.index);
        if let Err(failure) = stopped.and_then(|()| self.layout.forget(node)) {
            tracing::error!(%failure, node = node.name, "a node that could not be started is not all removed");
        }
    }

    /// What makes a node's engine join from a snapshot, or by fetching every block. Trust is taken from two nodes.
    fn sync_edits(&mut self, state_sync: bool, besides: Option<&str>) -> Result<(Vec<Edit>, Value), Failure> {
        if !state_sync {
            return Ok((vec![Edit::new("statesync", "enable", false)], Value::Null));
        }
        let known = self.known();
        let runs = known
            .iter()
            .filter(|known| besides != Some(known.node.name.as_str()) && matches!(known.engine, State::Running { .. }));
        let nodes: Vec<_> = runs.map(|known| known.node.rpc()).filter(|rpc| rpc.status().is_ok()).take(2).collect();
        let period: TrustPeriod = TRUST_PERIOD.parse().expect("a constant");
        let trust = agree(&nodes, None, &period, now()).map_err(no_trust)?;
        let mut edits = enable(&nodes, &trust, &period);
        // The shortest that CometBFT takes: everything is on one machine.
        edits.push(Edit::new("statesync", "discovery_time", "5s"));
        edits.push(Edit::new("statesync", "chunk_request_timeout", "5s"));
        Ok((edits, json!({ "height": trust.height, "hash": trust.block_hash })))
    }

    /// Kills what is named of a node. An engine whose application is gone ends by itself.
    pub(crate) fn kill(&mut self, name: &str, part: Part) -> Result<Value, Failure> {
        self.each(name, part, "kill", Process::kill).map(|pids| json!(pids))
    }

    /// Stops what is named of a node with SIGSTOP. Returns the processes' numbers, and which pause this is, for
    /// [`Self::resume`].
    pub(crate) fn pause(&mut self, name: &str, part: Part) -> Result<(Vec<u32>, u64), Failure> {
        let pids = self.each(name, part, "pause", Process::pause)?;
        self.holds += 1;
        let paused = &mut self.running.entry(name.to_owned()).or_default().paused;
        paused.extend(pids.iter().map(|pid| (*pid, self.holds)));
        Ok((pids, self.holds))
    }

    /// Lets processes go on that were paused, if they are still those that were and no later pause goes on.
    pub(crate) fn resume(&mut self, name: &str, pause: u64) {
        let Some(running) = self.running.get_mut(name) else { return };
        let Running { app, engine, paused, .. } = running;
        for process in [app, engine].into_iter().flatten() {
            let is_paused = paused.get(&process.id()) == Some(&pause);
            if is_paused && let Err(error) = process.resume() {
                // Killed or restarted since, which is what whoever did that wanted.
                tracing::debug!(%error, name, "not resumed");
            }
        }
        paused.retain(|_, last| *last != pause);
    }

    /// Cuts a node off. Returns which disconnection this is, for [`Self::reconnect`].
    pub(crate) fn disconnect(&mut self, name: &str) -> Result<u64, Failure> {
        self.link(name, false)?;
        self.holds += 1;
        self.running.entry(name.to_owned()).or_default().cut_off = Some(self.holds);
        Ok(self.holds)
    }

    /// Joins a node again that was cut off, unless it was cut off anew since.
    pub(crate) fn reconnect(&mut self, name: &str, disconnection: u64) -> Result<(), Failure> {
        if self.running.get(name).and_then(|running| running.cut_off) != Some(disconnection) {
            return Ok(());
        }
        self.link(name, true)?;
        self.running.entry(name.to_owned()).or_default().cut_off = None;
        Ok(())
    }

    fn link(&self, name: &str, up: bool) -> Result<(), Failure> {
        if !self.layout.hosts.link(self.layout.node(name)?.index, up)? {
            let message = "nodes on loopback share one network and cannot be cut off from each other";
            return Err(
                Failure::usage(message).hint("keelstone testnet up --namespaces gives each a network of its own")
            );
        }
        Ok(())
    }

    /// Stops what is named, and starts what does not run.
    pub(crate) fn restart(&mut self, name: &str, part: Part) -> Result<Value, Failure> {
        let node = self.layout.node(name)?.clone();
        self.stop_node(&node, part)?;
        self.start_node(&node)?;
        Ok(json!({ "node": name }))
    }

    /// Stops a node, removes its data but never the record of what its validator signed, and starts it again.
    pub(crate) fn wipe(&mut self, name: &str, part: Part, state_sync: bool) -> Result<Value, Failure> {
        let node = self.layout.node(name)?.clone();
        check_wipe(&node, part, state_sync)?;
        let (edits, trusted) = self.sync_edits(state_sync, Some(name))?;
        self.stop_node(&node, Part::Both)?;
        if part.app() {
            empty(&self.layout.home(&node).data(), is_kept)?;
        }
        if part.engine() {
            empty(&self.layout.engine_home(&node).join("data"), |name| name == "priv_validator_state.json")?;
        }
        self.layout.edit_engine(&node, &edits)?;
        self.start_node(&node)?;
        Ok(json!({ "node": name, "trust": trusted }))
    }

    /// Why a node's engine will not answer: it has ended, or whoever runs it has.
    pub(crate) fn engine_ended(&mut self, name: &str) -> Result<(), Failure> {
        let node = self.layout.node(name)?.clone();
        let dir = self.layout.node_dir(&node);
        let running = self.running.entry(node.name).or_default();
        let (process, what, log) = match node.supervised {
            true => (&mut running.app, "keelstone", "keelstone.log"),
            false => (&mut running.engine, "cometbft", "cometbft.log"),
        };
        if process.as_mut().is_some_and(Process::is_alive) {
            return Ok(());
        }
        let said = last_lines(&dir.join(log), QUOTED_LINES).unwrap_or_default();
        Err(Failure::error(format!("{what} of {name} has ended; its log ends:\n{said}")))
    }

    /// Stops everything, the engines first: an engine whose application goes first complains.
    pub(crate) fn stop(mut self) {
        let mut running: Vec<Running> = std::mem::take(&mut self.running).into_values().collect();
        for part in [|node: &mut Running| node.engine.take(), |node: &mut Running| node.app.take()] {
            let mut processes: Vec<Process> = running.iter_mut().filter_map(part).collect();
            let deadline = Instant::now() + STOP;
            for process in &mut processes {
                // One that has ended cannot be asked to; the group's end takes care of the others.
                let _ = process.ask_to_end();
            }
            for process in &mut processes {
                process.wait_until(deadline);
            }
        }
        self.group.end();
    }

    fn stop_node(&mut self, node: &Node, part: Part) -> Result<(), Failure> {
        let Some(running) = self.running.get_mut(&node.name) else { return Ok(()) };
        let failed = |error: io::Error| Failure::io(format_args!("could not stop {}", node.name), &error);
        if part.engine()
            && let Some(engine) = &mut running.engine
        {
            engine.stop().map_err(failed)?;
        }
        if part.app()
            && let Some(app) = &mut running.app
        {
            app.stop().map_err(failed)?;
            // An engine without its application ends; one that was caught at a bad moment is ended.
            if let Some(engine) = &mut running.engine
                && !engine.wait_until(Instant::now() + NOTICE)
            {
                engine.stop().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Does something to each process that is named and has not ended; fails if none has.
    fn each(
        &mut self,
        name: &str,
        part: Part,
        what: &str,
        act: impl Fn(&mut Process) -> io::Result<()>,
    ) -> Result<Vec<u32>, Failure> {
        self.layout.node(name)?;
        let running = self.running.entry(name.to_owned()).or_default();
        let app = running.app.as_mut().filter(|_| part.app());
        let engine = running.engine.as_mut().filter(|_| part.engine());
        let mut pids = Vec::new();
        for process in [app, engine].into_iter().flatten() {
            if process.is_alive() {
                act(process).map_err(|error| Failure::io(format_args!("could not {what} {name}"), &error))?;
                pids.push(process.id());
            }
        }
        match pids.is_empty() {
            true => Err(Failure::not_found(format!("nothing of {name} that is named runs"))),
            false => Ok(pids),
        }
    }
}

/// Why a node of a test network cannot join by state sync, and what can be done about it there.
fn no_trust(error: TrustError) -> Failure {
    match error {
        TrustError::TooFew { count } => {
            let message = format!("state sync needs the word of two other nodes, and {count} runs and answers");
            Failure::usage(message).hint("let it fetch every block: keelstone testnet join --from-genesis")
        }
        TrustError::Expired { .. } => {
            Failure::from(error).hint("the chain has to make a block first; or let the node fetch every block")
        }
        error => error.into(),
    }
}

/// Refuses to wipe one side of a node where it could not go on with what the other has.
fn check_wipe(node: &Node, part: Part, state_sync: bool) -> Result<(), Failure> {
    let Node { name, .. } = node;
    let both = || format!("keelstone testnet wipe {name} removes the data of both");
    match part {
        Part::Both => Ok(()),
        Part::Engine => match Remote::at(node.http, ASK).status() {
            Ok(status) if status.height == 0 => Ok(()),
            Ok(status) => {
                let message =
                    format!("Keelstone of {name} has block {}, with which no new CometBFT goes on", status.height);
                Err(Failure::usage(message).hint(both()))
            }
            Err(_) => {
                let message =
                    format!("Keelstone of {name} does not answer, and with a block no new CometBFT goes on with it");
                Err(Failure::usage(message).hint(both()))
            }
        },
        // CometBFT hands over all blocks it has, and does not state sync then.
        Part::App => match node.rpc().status() {
            Ok(status) if status.height > 0 && (state_sync || status.earliest_height > 1) => {
                let (from, to) = (status.earliest_height, status.height);
                let message =
                    format!("CometBFT of {name} has blocks {from} to {to}, which is all it gives a new Keelstone");
                Err(Failure::usage(message).hint(both()))
            }
            // One that does not answer is heard once it is started again.
            _ => Ok(()),
        },
    }
}

/// Waits until the application listens. If it ends instead, its last words are the failure.
fn wait_for(app: &mut Process, name: &str, socket: &Path, log: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + START;
    while !socket.exists() {
        let ended = !app.is_alive();
        if ended || Instant::now() >= deadline {
            let what = if ended { "ended at once" } else { "does not listen for its engine" };
            let said = last_lines(log, QUOTED_LINES).unwrap_or_default();
            return Err(Failure::error(format!("keelstone of {name} {what}; its log ends:\n{said}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
