//! What a test network's nodes say of themselves, asked of all of them at once.

use super::layout::{ASK, Layout, Node};
use crate::api::Chain as _;
use crate::client::Remote;
use crate::out::{Ink, Out, grouped, short};
use crate::processes::State;
use keelstone_codec::Height;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// How one node stands. What a node did not answer is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is a validator from the beginning.
    pub(crate) validator: bool,
    /// Its Keelstone process.
    pub(crate) app: State,
    /// Its CometBFT process.
    pub(crate) engine: State,
    /// Whether it was cut off from the others.
    pub(crate) cut_off: bool,
    /// The height of the state.
    pub(crate) height: Option<u64>,
    /// The root of the state: the app hash.
    pub(crate) root: Option<String>,
    /// The lowest height whose state is kept.
    pub(crate) lowest_height: Option<u64>,
    /// The last block the engine has.
    pub(crate) engine_height: Option<u64>,
    /// How many peers the engine has.
    pub(crate) peers: Option<u64>,
    /// Whether the engine is catching up.
    pub(crate) catching_up: Option<bool>,
    /// Keelstone's API.
    pub(crate) api: String,
    /// CometBFT's RPC.
    pub(crate) rpc: String,
}

/// A node and what the owner knows of its processes.
pub(crate) struct Known {
    pub(crate) node: Node,
    pub(crate) app: State,
    pub(crate) engine: State,
    pub(crate) cut_off: bool,
}

/// Asks every node, each for at most a few seconds.
pub(crate) fn observe(known: Vec<Known>) -> Vec<NodeStatus> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = known.into_iter().map(|known| scope.spawn(move || observe_one(known))).collect();
        asked.into_iter().map(|asked| asked.join().expect("asking a node does not panic")).collect()
    })
}

fn observe_one(known: Known) -> NodeStatus {
    let Known { node, app, engine, cut_off } = known;
    let is_running = |state: &State| matches!(state, State::Running { .. });
    let said = is_running(&app).then(|| Remote::at(node.http, ASK).status().ok()).flatten();
    let rpc = node.rpc();
    let engine_said = is_running(&engine).then(|| rpc.status().ok()).flatten();
    let peers = engine_said.as_ref().and_then(|_| rpc.peers().ok());
    NodeStatus {
        name: node.name,
        validator: node.validator,
        cut_off,
        height: said.as_ref().map(|said| said.height),
        root: said.as_ref().map(|said| said.root.clone()),
        lowest_height: said.as_ref().map(|said| said.lowest_height),
        engine_height: engine_said.as_ref().map(|said| said.height),
        catching_up: engine_said.as_ref().map(|said| said.catching_up),
        peers,
        api: format!("http://{}", node.http),
        rpc: format!("http://{}", node.rpc),
        app,
        engine,
    }
}

/// The nodes as a table for people.
pub(crate) fn table(nodes: &[NodeStatus], out: &Out) -> String {
    let mut text = String::new();
    let head = format!(
        "{:<8} {:>9}  {:<14} {:>9} {:>6}  {:<12} {}",
        "node", "height", "app hash", "engine", "peers", "sync", "processes"
    );
    writeln!(text, "  {}", out.ink(Ink::Quiet, head)).expect("writing to a string cannot fail");
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), grouped);
    for node in nodes {
        let sync = match (node.cut_off, node.catching_up) {
            (true, _) => "cut off",
            (_, Some(true)) => "catching up",
            (_, Some(false)) => "at the tip",
            (_, None) => "no answer",
        };
        let state = |name: &str, state: &State| match state {
            State::Running { .. } => String::new(),
            State::Paused { .. } => format!("{name} paused "),
            State::Off => format!("{name} off "),
            State::Ended { code: Some(code), .. } => format!("{name} ended with {code} "),
            State::Ended { signal, .. } => format!("{name} ended by signal {} ", signal.unwrap_or_default()),
        };
        let mut processes = state("keelstone", &node.app) + &state("cometbft", &node.engine);
        if processes.is_empty() {
            processes = "running".to_owned();
        }
        let root = node.root.as_ref().map_or_else(|| "-".to_owned(), short);
        let good = matches!(sync, "at the tip") && processes == "running";
        writeln!(
            text,
            "  {:<8} {:>9}  {:<14} {:>9} {:>6}  {} {}",
            node.name,
            number(node.height),
            root,
            number(node.engine_height),
            number(node.peers),
            out.ink(if good { Ink::Good } else { Ink::Bad }, format_args!("{sync:<12}")),
            processes.trim_end(),
        )
        .expect("writing to a string cannot fail");
    }
    text
}

/// What a comparison of app hashes came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Agreement {
    /// Heights at which at least two nodes were compared.
    pub(crate) heights: u64,
    /// Pairs of app hashes that were compared.
    pub(crate) compared: u64,
    /// Where two nodes differ, with both values.
    pub(crate) disagreements: Vec<String>,
    /// Nodes that did not give what they should have: none at all, or not each height from the first they gave on.
    pub(crate) gaps: Vec<String>,
}

/// The highest block of any node; none if none answers.
pub(crate) fn tip(layout: &Layout) -> Option<u64> {
    let height = |node: &Node| Some(Remote::at(node.http, ASK).status().ok()?.height);
    layout.nodes.iter().filter_map(height).max()
}

/// A node, or an engine, is asked so often for what it should have.
const TRIES: usize = 3;

/// Compares the app hashes of all nodes at every height from `from` to `to`, and with what the engine's headers say: the
/// header above a block carries the hash of the state after it. A node whose history begins later is left out of what is below, be it
/// of all; what it lacks otherwise is a gap.
pub(crate) fn compare(layout: &Layout, from: u64, to: u64) -> Agreement {
    let mut agreement = Agreement::default();
    let mut given: Vec<Given<'_>> = layout.nodes.iter().map(|node| Given::by(&node.name)).collect();
    // Of the height of the first state that is kept there is no block.
    let lowest = |node: &Node| Some(Remote::at(node.http, ASK).status().ok()?.lowest_height);
    let begins: Vec<Option<u64>> = layout.nodes.iter().map(lowest).collect();
    for height in from..=to {
        let mut first: Option<(String, String)> = None;
        let roots = layout.nodes.iter().zip(&mut given).zip(&begins).filter_map(|((node, given), begins)| {
            let ask = || Remote::at(node.http, ASK).block(Some(Height(height))).ok()?.root;
            // Asked again, if it should have it: it may be busy.
            let has = given.first.is_some() || begins.is_some_and(|lowest| height > lowest);
            let tries = if has { TRIES } else { 1 };
            let root = (0..tries).find_map(|_| ask());
            given.note(height, root.is_some());
            Some((node.name.clone(), root?))
        });
        let headers =
            || layout.nodes.iter().find_map(|node| Some((node.name.clone(), node.rpc().commit(height + 1).ok()?)));
        let header = (0..TRIES).find_map(|_| headers());
        let header = header.map(|(name, commit)| (format!("the engine of {name}"), commit.app_hash));
        let mut more_than_one = false;
        for (name, root) in roots.chain(header) {
            match &first {
                None => first = Some((name, root)),
                Some((other, expected)) => {
                    more_than_one = true;
                    agreement.compared += 1;
                    if *expected != root {
                        let text = format!("height {height}: {other} has {expected}, {name} has {root}");
                        agreement.disagreements.push(text);
                    }
                }
            }
        }
        agreement.heights += u64::from(more_than_one);
    }
    let begins_above = |node: &Node| lowest(node).is_some_and(|lowest| lowest >= to);
    let all = layout.nodes.iter().zip(&given);
    agreement.gaps = all.filter_map(|(node, given)| given.gap(|| begins_above(node))).collect();
    agreement
}

/// What a node gave of a range of heights.
struct Given<'a> {
    name: &'a str,
    first: Option<u64>,
    /// Of those behind the first, how many it did not, and the first of these.
    lacks: Option<(u64, u64)>,
}

impl<'a> Given<'a> {
    fn by(name: &'a str) -> Self {
        Self { name, first: None, lacks: None }
    }

    fn note(&mut self, height: u64, is_given: bool) {
        if is_given {
            self.first.get_or_insert(height);
        } else if self.first.is_some() {
            self.lacks.get_or_insert((0, height)).0 += 1;
        }
    }

    /// What it lacks. Who gave nothing at all lacks nothing if its history begins above the range.
    fn gap(&self, begins_above: impl FnOnce() -> bool) -> Option<String> {
        let Self { name, .. } = self;
        match (self.first, self.lacks) {
            (None, _) if begins_above() => None,
            (None, _) => Some(format!("{name} gave no app hash")),
            (Some(first), Some((count, from))) => Some(format!(
                "{name} gave app hashes from height {first} on, but for {count}, the first of them at {from}"
            )),
            (Some(_), None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_gives_nothing_or_not_all_is_told() {
        let gap = |given: &[bool]| {
            let mut node = Given::by("node-1");
            (5..).zip(given).for_each(|(height, is_given)| node.note(height, *is_given));
            node.gap(|| false)
        };
        assert_eq!(gap(&[true, true, true]), None);
        assert_eq!(gap(&[false, false, true, true]), None, "its history begins later");
        assert_eq!(gap(&[false, false]).as_deref(), Some("node-1 gave no app hash"));
        assert_eq!(Given::by("node-1").gap(|| true), None, "its history begins above all of them");
        let lacks = "node-1 gave app hashes from height 6 on, but for 2, the first of them at 7";
        assert_eq!(gap(&[false, true, false, true, false]).as_deref(), Some(lacks));
    }
}
