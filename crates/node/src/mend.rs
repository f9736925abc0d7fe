//! Mending of a running node's state: what checks and the scrub find damaged is had again, without asking or because the
//! owner asks.
//!
//! What is lost and what it must be, the store knows ([`keelstone_store::Store::mend`]); here is where it may come from:
//! snapshots of this home, peers over libp2p, which prove what they send, and the APIs of other nodes, whose lists are offers.
//! Nothing of it is believed; what is written has the hash that stands above it under this node's own root. A node that
//! mends by itself does so only while that root is the chain's, puts on record that it begins, and stops when there is too
//! much of it.
//!
//! Rules: `spec/consistency.md`, CHECK-9 and CHECK-10.

use crate::api::Page;
use crate::client::Remote;
use crate::clock::now;
use crate::config::{self, HttpAddress, NodeId};
use crate::damage::Damage;
use crate::engine::{Engine, Mendable};
use crate::exit::{Exit, Failure};
use crate::health::Health;
use crate::home::Home;
use crate::library::{self, expected, look_into_library};
use crate::metrics::Metrics;
use crate::own_log::{MENDED_NOTHING, OwnLog, Stood, Who, standing};
use crate::p2p::Network;
use keelstone_codec::{Height, Key, Root, Value, unhex};
use keelstone_ledger::{NodeEvent, NodeStep, Standing, cut};
use keelstone_store::{Accept, Mended, StoreError, Supplier, Wanted};
use keelstone_sync::consistency::{Ask, Breaker, Certified, Due, Gave, REPAIRS_MAX, Silence, TRIES_MAX, may_try_again};
use keelstone_sync::peers::{Request, Response};
use keelstone_tree::{KeyRange, prefix_end};
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long a node may take for one page of entries.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries of one such page.
const PAGE_ENTRIES: usize = 1_000;
/// Pages of one node's list for one piece.
const PAGES_MAX: usize = 256;
/// Snapshots of this home that are looked into, the newest.
const SNAPSHOTS_MAX: usize = 8;
/// Problems that wait to be mended, at most.
const PROBLEMS_MAX: usize = 1_000;
/// Pieces that somebody may fail to answer for, one after the other: then it is asked for no other in this mending.
const SILENCES_MAX: u32 = 3;

/// Where what is lost may come from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Supply {
    /// Peers: those in `check.peers`, and those that are connected.
    Peers,
    /// All snapshots of this home.
    Snapshots,
    /// A snapshot: of this home, by its height, or an archive.
    Snapshot(String),
}

impl std::str::FromStr for Supply {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "peers" => Self::Peers,
            "snapshots" => Self::Snapshots,
            other => Self::Snapshot(other.to_owned()),
        })
    }
}

/// What a mending came to.
#[derive(Default)]
pub(crate) struct Outcome {
    mended: Mended,
    gave: Vec<(String, Gave)>,
}

impl Outcome {
    /// Whether nothing is damaged any more, as far as it was known to be.
    pub(crate) fn is_whole(&self) -> bool {
        self.mended.left.is_empty()
    }

    /// Whether nothing of what is stored was changed.
    fn is_nothing(&self) -> bool {
        let Mended { supplied_entries, kept_pieces, sectors, given_up, .. } = &self.mended;
        [supplied_entries, kept_pieces, sectors, given_up].into_iter().all(|count| *count == 0)
    }
}

/// Mends the state of a node.
pub(crate) struct Mender {
    /// It ends with the node: whoever mends last keeps no store open.
    engine: Weak<dyn Engine>,
    home: Home,
    own: OwnLog,
    peers: Vec<HttpAddress>,
    network: Option<Network>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    automatic: bool,
    /// One mending at a time.
    mending: Mutex<()>,
    known: Mutex<Known>,
    /// What could not be mended, of what was tried last.
    left: Mutex<Left>,
    /// Why nothing more is mended for now.
    stopped: Mutex<Option<String>>,
}

/// Damage that a mending left, and who could not help with it. Trying the same again would come to the same, and use up what a
/// node may try in an hour.
#[derive(Default)]
struct Left {
    problems: BTreeSet<String>,
    /// How much of it is damaged still.
    count: usize,
    places: BTreeSet<String>,
}

impl Left {
    /// Whether all of this was left before.
    fn holds(&self, problems: &[StoreError]) -> bool {
        problems.iter().all(|problem| self.problems.contains(&problem.to_string()))
    }

    /// Whether nobody is there now, either, who was not asked.
    fn covers(&self, problems: &[StoreError], places: &BTreeSet<String>) -> bool {
        places.is_subset(&self.places) && self.holds(problems)
    }
}

/// What is known to be damaged and was not tried yet.
#[derive(Default)]
struct Known {
    problems: Vec<StoreError>,
    /// Mendings so far.
    mendings: u64,
    /// How often a look has found damage.
    findings: u64,
}

/// A look at what is stored, from when it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Mendings before it.
    mendings: u64,
    /// Findings before it.
    findings: u64,
}

impl Mender {
    pub(crate) fn new(
        engine: &Arc<dyn Engine>,
        config: &config::Check,
        home: &Home,
        network: Option<Network>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            engine: Arc::downgrade(engine),
            home: home.clone(),
            own: OwnLog::of(home),
            peers: config.peers.clone(),
            network,
            metrics,
            health,
            automatic: config.auto_repair,
            mending: Mutex::default(),
            known: Mutex::default(),
            left: Mutex::default(),
            stopped: Mutex::default(),
        }
    }

    /// Taken before something is looked at, and given back with what was found.
    pub(crate) fn look(&self) -> Look {
        let known = locked(&self.known);
        Look { mendings: known.mendings, findings: known.findings }
    }

    /// A look found damage. This node says so until that is mended, or all that is stored was looked at since and is whole:
    /// whoever looks at a part says nothing of the rest.
    pub(crate) fn found_damage(&self, look: Look) {
        let mut known = locked(&self.known);
        if known.mendings == look.mendings {
            known.findings += 1;
            self.health.damaged.store(true, Ordering::Relaxed);
        }
    }

    /// A look at all that is stored found it whole.
    pub(crate) fn found_whole(&self, look: Look) {
        // What was found meanwhile may lie where it had looked already. Held, so that nothing is found in between.
        let known = locked(&self.known);
        if known.findings == look.findings {
            self.health.damaged.store(false, Ordering::Relaxed);
        }
        drop(known);
    }

    /// Whether a mending ended since a look began.
    pub(crate) fn mended_since(&self, look: Look) -> bool {
        locked(&self.known).mendings != look.mendings
    }

    /// Takes in what a look found damaged. What a mending ended behind may be whole since: it is damage if it is found again.
    // spec: CHECK-10
    pub(crate) fn learn(&self, look: Look, problems: &[StoreError]) {
        let mut known = locked(&self.known);
        if known.mendings == look.mendings {
            let room = PROBLEMS_MAX.saturating_sub(known.problems.len());
            known.problems.extend(problems.iter().filter(|problem| problem.is_damage()).take(room).cloned());
        }
    }

    /// Mends what is known to be damaged, if it may, and says whether that made all of it whole. What was tried is not tried
    /// again before it is found again, and what was left then not before there is somebody else to ask, nor too often.
    // spec: CHECK-10
    pub(crate) fn by_itself(&self) -> bool {
        let _one = locked(&self.mending);
        let Some(engine) = self.engine.upgrade().filter(|_| self.automatic) else { return false };
        let problems = locked(&self.known).problems.clone();
        let from = [Supply::Snapshots, Supply::Peers];
        if problems.is_empty() || locked(&self.left).covers(&problems, &self.places(&from)) {
            locked(&self.known).problems.clear();
            return false;
        }
        let is_again = locked(&self.left).holds(&problems);
        let may_begin = || {
            let is_too_often = is_again && !may_try_again(&self.own.tried_mending(TRIES_MAX)?, now().0);
            // What waits so is tried when there may be another try.
            if is_too_often { Ok(false) } else { self.may_begin(&*engine) }
        };
        match may_begin() {
            Ok(true) => {}
            Ok(false) => return false,
            Err(failure) => {
                tracing::error!(%failure, "stored bytes are damaged and are not mended");
                return false;
            }
        }
        match self.mend(&*engine, Who::Node, &problems, &from) {
            Ok(outcome) if outcome.is_whole() => {
                tracing::warn!(what = told(&outcome), "damage was mended");
                true
            }
            Ok(outcome) => {
                for problem in &outcome.mended.left {
                    let problem = problem.to_string();
                    tracing::error!(
                        problem,
                        "damage that could not be mended: keelstone recover, or db check --repair"
                    );
                }
                false
            }
            Err(failure) => {
                tracing::error!(%failure, "mending failed");
                false
            }
        }
    }

    /// Whether there were so many mendings of late that this node begins no other by itself, and why: as its own log has it.
    /// What there is to say of it is said once.
    fn stopped(&self) -> Result<Option<String>, Failure> {
        let breaker = Breaker::new(self.own.begun_mending(REPAIRS_MAX)?);
        let tripped = breaker.check(now().0).err().map(|tripped| tripped.to_string());
        self.health.mends_no_more.store(tripped.is_some(), Ordering::Relaxed);
        let before = std::mem::replace(&mut *locked(&self.stopped), tripped.clone());
        if let Some(why) = tripped.as_ref().filter(|_| before.is_none() && !locked(&self.known).problems.is_empty()) {
            tracing::error!(why, "stored bytes are damaged and are not mended");
            self.metrics.mended("refused");
        }
        Ok(tripped)
    }

    /// Whether this node may begin to mend by itself now.
    fn may_begin(&self, engine: &dyn Engine) -> Result<bool, Failure> {
        if self.stopped()?.is_some() {
            return Ok(false);
        }
        let due = Due { from: None, entries: 0, peers: 0, roots: 0, number: 0 };
        let picked = engine.pick(&due)?;
        is_the_chains(&picked.at.root, &picked.certified).map(|()| true)
    }

    /// Mends because the owner asks.
    pub(crate) fn asked(&self, problems: &[StoreError], from: &[Supply]) -> Result<Outcome, Failure> {
        let _one = locked(&self.mending);
        let engine = self.engine.upgrade().ok_or_else(|| Failure::error("the node is stopping"))?;
        if problems.is_empty() {
            return Ok(Outcome::default());
        }
        self.mend(&*engine, Who::Owner, problems, from)
    }

    /// Who is there to ask: the node's own snapshots, peers that are connected, and those of the configuration.
    fn places(&self, from: &[Supply]) -> BTreeSet<String> {
        let mut places = BTreeSet::new();
        for from in from {
            match from {
                // One that cannot be read is no place; a mending says why.
                Supply::Snapshots => {
                    let kept = snapshots(&self.home).unwrap_or_default();
                    places.extend(kept.iter().map(ToString::to_string));
                }
                Supply::Snapshot(text) => drop(places.insert(text.clone())),
                Supply::Peers => {
                    let connected = self.network.as_ref().map(Network::connected).unwrap_or_default();
                    places.extend(connected.iter().map(ToString::to_string));
                    places.extend(self.peers.iter().map(ToString::to_string));
                }
            }
        }
        places
    }

    fn mend(
        &self,
        engine: &dyn Engine,
        who: Who,
        problems: &[StoreError],
        from: &[Supply],
    ) -> Result<Outcome, Failure> {
        let places = self.places(from);
        let mended = mend(
            &OfEngine(engine),
            (&self.home, &self.own),
            who,
            problems,
            &Places { from, peers: &self.peers, network: self.network.as_ref(), stopping: &self.health.stopping },
        );
        let mut known = locked(&self.known);
        known.problems.clear();
        known.mendings += 1;
        drop(known);
        if let Ok(outcome) = &mended {
            let count = outcome.mended.left.len();
            let of_use = |problem: &&StoreError| count > 0 && problem.is_damage();
            let problems = problems.iter().chain(&outcome.mended.left).filter(of_use).map(ToString::to_string);
            *locked(&self.left) = Left { problems: problems.collect(), count, places };
        }
        self.metrics.mended(match &mended {
            Ok(outcome) if outcome.is_whole() => "whole",
            Ok(_) => "left",
            Err(_) => "failed",
        });
        // What a mending left is damage still, whoever found it.
        if let Ok(outcome) = &mended {
            let damaged = !outcome.is_whole() || engine.scrub_standing().problems > 0;
            self.health.damaged.store(damaged, Ordering::Relaxed);
        }
        mended
    }

    /// Where it stands, for whoever asks.
    pub(crate) fn status(&self) -> Json {
        let stopped = self.stopped().unwrap_or_else(|failure| Some(failure.message));
        let (waiting, left) = (locked(&self.known).problems.len(), locked(&self.left).count);
        json!({ "automatic": self.automatic, "waiting": waiting, "left": left, "stopped": stopped })
    }
}

/// Whether a root here is certified: to no other is anything mended.
// spec: CHECK-4
fn is_the_chains(here: &Root, certified: &Certified) -> Result<(), Failure> {
    match certified {
        Certified::Here | Certified::Given => Ok(()),
        Certified::Root(root) if root == here => Ok(()),
        Certified::Root(_) => {
            Err(Failure::integrity("the root here is not the certified one: the state is kept as it is"))
        }
        Certified::Nothing => Err(Failure::error("nothing certifies the root here yet")),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct OfEngine<'a>(&'a dyn Engine);

impl Mendable for OfEngine<'_> {
    fn stands(&self) -> Option<Standing> {
        standing(self.0)
    }

    fn mend(
        &self,
        problems: &[StoreError],
        offers: &mut dyn Supplier,
        peers: &mut [(String, &mut dyn Ask)],
    ) -> Result<(Mended, Vec<(String, Gave)>), Failure> {
        self.0.mend(problems, offers, peers)
    }
}

/// Where a mending may have things from.
pub(crate) struct Places<'a> {
    pub(crate) from: &'a [Supply],
    pub(crate) peers: &'a [HttpAddress],
    pub(crate) network: Option<&'a Network>,
    /// Nobody is asked any more once this is true.
    pub(crate) stopping: &'a AtomicBool,
}

/// Mends, between two records of the node's own log.
pub(crate) fn mend(
    state: &dyn Mendable,
    (home, own): (&Home, &OwnLog),
    who: Who,
    problems: &[StoreError],
    places: &Places<'_>,
) -> Result<Outcome, Failure> {
    let before = state.stands();
    let first = problems.first().map_or_else(String::new, |problem| format!(", the first: {problem}"));
    let event = |what: String| NodeEvent::Mended { what: cut(what) };
    let begun = event(format!("{} damaged{first}", problems.len()));
    own.note(who, begun.clone(), NodeStep::Begun, Stood { before, after: None })?;

    let mut elsewhere = Elsewhere::new(home, places);
    let mut connected: Vec<(String, Peer<'_>)> = places
        .network
        .filter(|_| places.from.contains(&Supply::Peers))
        .into_iter()
        .flat_map(|network| network.connected().into_iter().map(move |peer| (network, peer)))
        .map(|(network, peer)| (peer.to_string(), Peer { network, peer, patience: Patience::new(places.stopping) }))
        .collect();
    let mut peers: Vec<(String, &mut dyn Ask)> =
        connected.iter_mut().map(|(name, peer)| (name.clone(), peer as &mut dyn Ask)).collect();
    let mended = state.mend(problems, &mut elsewhere, &mut peers);
    let outcome = mended.map(|(mended, mut gave)| {
        gave.extend(elsewhere.gave);
        Outcome { mended, gave }
    });
    let (event, step) = match &outcome {
        Ok(outcome) if outcome.is_whole() => (event(told(outcome)), NodeStep::Done),
        Ok(outcome) if outcome.is_nothing() => {
            (event(MENDED_NOTHING.to_owned()), NodeStep::Failed { reason: cut(left(outcome)) })
        }
        Ok(outcome) => (event(told(outcome)), NodeStep::Failed { reason: cut(left(outcome)) }),
        Err(failure) => (begun, NodeStep::Failed { reason: cut(failure.message.clone()) }),
    };
    own.note(who, event, step, Stood { before, after: state.stands() })?;
    outcome
}

/// What was had again, in words.
fn told(outcome: &Outcome) -> String {
    let Mended { supplied_entries, kept_pieces, sectors, given_up, .. } = &outcome.mended;
    let from: Vec<&str> = outcome
        .gave
        .iter()
        .filter(|(_, gave)| matches!(gave, Gave::Pieces(_)))
        .map(|(name, _)| name.as_str())
        .collect();
    let from = if from.is_empty() { String::new() } else { format!(" ({})", from.join(", ")) };
    let given_up = match given_up {
        0 => String::new(),
        count => format!(", {count} given up that only old heights may need"),
    };
    format!(
        "{supplied_entries} entries from elsewhere{from}, {kept_pieces} pieces from memory, {sectors} sectors{given_up}"
    )
}

fn left(outcome: &Outcome) -> String {
    let left = &outcome.mended.left;
    let first = left.first().map_or_else(String::new, ToString::to_string);
    format!("{} damaged still, the first: {first}", left.len())
}

/// What a mending came to, for programs.
pub(crate) fn show(problems: &[StoreError], outcome: &Outcome) -> Json {
    let Mended { supplied_entries, kept_pieces, sectors, given_up, left } = &outcome.mended;
    let gave = outcome.gave.iter().map(|(peer, gave)| match gave {
        Gave::Pieces(count) => json!({ "from": peer, "said": "pieces", "pieces": count, "detail": null }),
        Gave::Nothing(why) => json!({ "from": peer, "said": "nothing", "pieces": 0, "detail": why }),
        Gave::Misbehaved(what) => json!({ "from": peer, "said": "misbehaved", "pieces": 0, "detail": what }),
    });
    json!({
        "found": problems.iter().map(Damage::of).collect::<Vec<_>>(),
        "supplied_entries": supplied_entries, "kept_pieces": kept_pieces, "sectors": sectors, "given_up": given_up,
        "left": left.iter().map(Damage::of).collect::<Vec<_>>(),
        "asked": gave.collect::<Vec<_>>(),
    })
}

/// The exit code of what [`show`] shows.
pub(crate) fn exit(shown: &Json) -> Exit {
    if shown["left"].as_array().is_some_and(Vec::is_empty) { Exit::Ok } else { Exit::Integrity }
}

// ---- who may have it

/// How long somebody is asked who does not answer. A node that stops is not held up by it.
struct Patience<'a> {
    stopping: &'a AtomicBool,
    silences: u32,
}

impl<'a> Patience<'a> {
    fn new(stopping: &'a AtomicBool) -> Self {
        Self { stopping, silences: 0 }
    }

    fn is_over(&self) -> bool {
        self.silences >= SILENCES_MAX || self.stopping.load(Ordering::Relaxed)
    }

    fn heard<T, E>(&mut self, answer: &Result<T, E>) {
        self.silences = if answer.is_ok() { 0 } else { self.silences + 1 };
    }
}

/// A peer that is connected.
struct Peer<'a> {
    network: &'a Network,
    peer: NodeId,
    patience: Patience<'a>,
}

impl Ask for Peer<'_> {
    fn ask(&mut self, request: &Request) -> Result<Response, Silence> {
        if self.patience.is_over() {
            return Err(Silence("it was asked often enough".to_owned()));
        }
        let answer = self.network.ask(&self.peer, request.clone()).map_err(|error| Silence(error.to_string()));
        self.patience.heard(&answer);
        answer
    }
}

/// Snapshots and the APIs of other nodes. What they offer is compared by whoever takes it.
struct Elsewhere<'a> {
    home: &'a Home,
    snapshots: Vec<library::Source>,
    remotes: Vec<(String, Remote, Patience<'a>)>,
    gave: Vec<(String, Gave)>,
    stopping: &'a AtomicBool,
}

impl<'a> Elsewhere<'a> {
    fn new(home: &'a Home, places: &Places<'a>) -> Self {
        let mut snapshots: Vec<library::Source> = Vec::new();
        let mut remotes = Vec::new();
        let mut gave = Vec::new();
        for from in places.from {
            match from {
                Supply::Snapshots => match self::snapshots(home) {
                    Ok(kept) => snapshots.extend(kept),
                    Err(failure) => gave.push(("the snapshots here".to_owned(), Gave::Nothing(failure.message))),
                },
                Supply::Snapshot(text) => snapshots.extend(text.parse()),
                Supply::Peers => {
                    for address in places.peers {
                        match address.resolve() {
                            Ok(found) => {
                                let remote = Remote::at(found, PEER_TIMEOUT);
                                remotes.push((address.to_string(), remote, Patience::new(places.stopping)));
                            }
                            Err(error) => gave.push((address.to_string(), Gave::Nothing(error.to_string()))),
                        }
                    }
                }
            }
        }
        Self { home, snapshots, remotes, gave, stopping: places.stopping }
    }

    fn gave(&mut self, from: &str, gave: Gave) {
        match self.gave.iter_mut().find(|(name, _)| name == from) {
            Some((_, Gave::Pieces(count))) => {
                if let Gave::Pieces(more) = gave {
                    *count += more;
                }
            }
            Some((_, before)) => *before = gave,
            None => self.gave.push((from.to_owned(), gave)),
        }
    }

    /// The entries of a piece as a snapshot has them, proven under the root it says it has.
    fn of_snapshot(&self, source: &library::Source, wanted: &Wanted) -> Result<Vec<(Key, Value)>, Failure> {
        let expected = expected(Some(&self.home.read_genesis()?), None)?;
        let prefix = prefix(&wanted.range);
        let extract = source.read(self.home, |origin| origin.extract(&expected, &wanted.namespace, &prefix))?;
        Ok(extract.entries.into_iter().filter(|(key, _)| wanted.range.contains(key)).collect())
    }
}

impl Supplier for Elsewhere<'_> {
    fn offer(&mut self, wanted: &Wanted, take: Accept<'_>) {
        for source in self.snapshots.clone() {
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let gave = match self.of_snapshot(&source, wanted) {
                Ok(entries) if take(&entries) => return self.gave(&source.to_string(), Gave::Pieces(1)),
                Ok(_) => Gave::Nothing("it has other entries there".to_owned()),
                Err(failure) => Gave::Nothing(failure.message),
            };
            self.gave(&source.to_string(), gave);
        }
        for number in 0..self.remotes.len() {
            let (name, remote, patience) = &mut self.remotes[number];
            if patience.is_over() {
                continue;
            }
            let answer = of_api(remote, wanted, take);
            patience.heard(&answer);
            let gave = match answer {
                Ok(true) => Gave::Pieces(1),
                Ok(false) => Gave::Nothing("it has other entries there".to_owned()),
                Err(why) => Gave::Nothing(why),
            };
            let (name, is_had) = (name.clone(), matches!(gave, Gave::Pieces(_)));
            self.gave(&name, gave);
            if is_had {
                return;
            }
        }
    }
}

/// The snapshots of a home that are looked into. One that cannot be read helps nobody, and hinders nobody.
fn snapshots(home: &Home) -> Result<Vec<library::Source>, Failure> {
    let kept = look_into_library(home)?.map(|(library, _)| library.list()).unwrap_or_default();
    Ok(kept.into_iter().take(SNAPSHOTS_MAX).map(|info| library::Source::Kept(info.id)).collect())
}

/// What the keys of a range begin with, as far as those are whole bytes.
fn prefix(range: &KeyRange) -> Vec<u8> {
    let holds = |prefix: &[u8]| match (prefix_end(prefix), &range.end) {
        (None, _) => true,
        (Some(end), Some(range_end)) => *range_end <= end,
        (Some(_), None) => false,
    };
    let len = (0..=range.start.len()).rev().find(|len| holds(&range.start[..*len])).unwrap_or_default();
    range.start[..len].to_vec()
}

/// Offers what another node lists: of the very height first, then of its last.
fn of_api(remote: &Remote, wanted: &Wanted, take: Accept<'_>) -> Result<bool, String> {
    let mut refused = None;
    for at in [Some(wanted.version.0), None] {
        match listed(remote, wanted, at) {
            Ok(entries) if take(&entries) => return Ok(true),
            Ok(_) => {}
            Err(why) => refused = Some(why),
        }
    }
    refused.map_or(Ok(false), Err)
}

/// The entries of a piece as another node lists them. Nothing of it is proven.
// spec: CHECK-9
fn listed(remote: &Remote, wanted: &Wanted, at: Option<Height>) -> Result<Vec<(Key, Value)>, String> {
    use crate::api::Chain as _;
    let prefix = prefix(&wanted.range);
    let mut after = below(&wanted.range.start, prefix.len());
    let (mut found, mut bytes) = (Vec::new(), 0);
    for _ in 0..PAGES_MAX {
        let page = Page { prefix: prefix.clone(), after: after.clone(), limit: PAGE_ENTRIES };
        let listed = remote.entries(&wanted.namespace, &page, at, false).map_err(|refusal| refusal.to_string())?;
        for pair in listed.entries {
            let read = |text: &str| unhex(text).map_err(|_| "its answer is no list of entries".to_owned());
            let (key, value) = (Key::new(read(&pair.key)?), Value::new(read(&pair.value)?));
            let (Ok(key), Ok(value)) = (key, value) else { return Err("its answer has no such entries".to_owned()) };
            if wanted.range.end.as_ref().is_some_and(|end| key.as_slice() >= end.as_slice()) {
                return Ok(found);
            }
            if wanted.range.contains(&key) {
                bytes += (key.len() + value.len()) as u64;
                found.push((key, value));
            }
        }
        // Many pages of what one answer may have would fill the memory, however few entries they are.
        if found.len() as u64 > wanted.totals.count || bytes > wanted.totals.bytes {
            return Err("it has more there".to_owned());
        }
        let Some(next) = listed.next else { return Ok(found) };
        after = Some(unhex(next).map_err(|_| "its answer is no list of entries".to_owned())?);
    }
    Err(format!("its list of the piece has more than {PAGES_MAX} pages"))
}

/// A key that is below `start`, and above most that are: where to ask for a list from; none if it begins with the prefix.
fn below(start: &[u8], prefix_len: usize) -> Option<Vec<u8>> {
    let (last, before) = start.split_last().filter(|_| start.len() > prefix_len)?;
    match last.checked_sub(1) {
        Some(less) => {
            let mut key = [before, &[less]].concat();
            key.resize(keelstone_codec::KEY_LEN_MAX, 0xff);
            Some(key)
        }
        None => (before.len() > prefix_len).then(|| before.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::testing::answering;
    use keelstone_codec::Namespace;
    use keelstone_tree::Totals;

    /// A state in which this much can be made good.
    struct Damaged(u64);

    impl Mendable for Damaged {
        fn stands(&self) -> Option<Standing> {
            None
        }

        fn mend(
            &self,
            problems: &[StoreError],
            _: &mut dyn Supplier,
            _: &mut [(String, &mut dyn Ask)],
        ) -> Result<(Mended, Vec<(String, Gave)>), Failure> {
            Ok((Mended { sectors: self.0, left: problems.to_vec(), ..Mended::default() }, Vec::new()))
        }
    }

    /// CHECK-10. Damage that nobody can help with, history say, is tried again at each start, and is no reason not to mend what is
    /// found later.
    #[test]
    fn a_mending_that_changes_nothing_uses_up_none_that_a_node_may_make() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        let own = OwnLog::of(&home);
        let stopping = AtomicBool::new(false);
        let places = Places { from: &[], peers: &[], network: None, stopping: &stopping };
        let problems =
            [StoreError::Damaged { file: "1.log".to_owned(), offset: 512, what: "a record of old".to_owned() }];
        let mend = |sectors| {
            let outcome = mend(&Damaged(sectors), (&home, &own), Who::Node, &problems, &places).expect("it is tried");
            assert!(!outcome.is_whole());
            own.begun_mending(REPAIRS_MAX).expect("it is on record").len()
        };
        assert_eq!([mend(0), mend(0), mend(0), mend(0)], [0; 4]);
        assert_eq!([mend(1), mend(0), mend(2), mend(0)], [1, 1, 2, 2]);
    }

    /// spec: CHECK-4. Nothing is mended to a root that is not certified to be this chain's, or is not certified at all.
    #[test]
    fn only_to_a_certified_root_is_anything_mended() {
        let [here, other] = [7, 8].map(|byte| Root(keelstone_codec::Hash([byte; 32])));
        for certified in [Certified::Here, Certified::Given, Certified::Root(here)] {
            assert!(is_the_chains(&here, &certified).is_ok(), "{certified:?}");
        }
        for (certified, exit) in [(Certified::Root(other), Exit::Integrity), (Certified::Nothing, Exit::Error)] {
            assert_eq!(is_the_chains(&here, &certified).map_err(|failure| failure.exit), Err(exit));
        }
    }

    fn lost(offset: u64) -> StoreError {
        StoreError::Damaged { file: "1.log".to_owned(), offset, what: "a record of old".to_owned() }
    }

    /// A new chain, and who mends it; nobody can be asked.
    fn mender() -> (tempfile::TempDir, Arc<dyn Engine>, Mender) {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        let genesis = keelstone_ledger::Genesis::new(keelstone_codec::ChainId::new("mended-1").expect("a name"));
        home.write_genesis(&genesis).expect("written");
        let config = config::Config::default();
        let functions = keelstone_ledger::modules::standard();
        let engine = crate::engine::open(&home, &config, &functions).expect("a new chain");
        let (metrics, health) = (Arc::new(Metrics::new()), Arc::new(Health::default()));
        let mender = Mender::new(&engine, &config.check, &home, None, metrics, health);
        (place, engine, mender)
    }

    /// spec: CHECK-10. What was looked at before a mending ended is no reason for another; nor does a look that began before damage was
    /// found say that there is none.
    #[test]
    fn a_look_from_before_says_nothing_of_what_came_since() {
        let (_place, _engine, mender) = mender();
        let waiting = || mender.status()["waiting"].as_u64().expect("a number");
        let is_damaged = || mender.health.damaged.load(Ordering::Relaxed);
        let before = mender.look();
        let _ = mender.asked(&[lost(512)], &[]);
        mender.health.damaged.store(false, Ordering::Relaxed);
        mender.learn(before, &[lost(512)]);
        mender.found_damage(before);
        assert_eq!((waiting(), is_damaged(), mender.mended_since(before)), (0, false, true));
        let since = mender.look();
        mender.learn(since, &[lost(512)]);
        mender.found_damage(since);
        assert_eq!((waiting(), is_damaged(), mender.mended_since(since)), (1, true, false));
        mender.found_whole(since);
        assert!(is_damaged(), "that look began before it was found");
        mender.found_whole(mender.look());
        assert!(!is_damaged());
    }

    /// spec: CHECK-10. What a mending left is tried a dozen times in an hour, whoever comes who was not asked, and what is found besides is
    /// tried all the same.
    #[test]
    fn what_was_left_waits_until_an_hour_is_over() {
        let (_place, _engine, mut mender) = mender();
        mender.peers = vec![std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into()];
        let stopping = AtomicBool::new(false);
        let places = Places { from: &[], peers: &[], network: None, stopping: &stopping };
        let tried = |mender: &Mender| mender.own.tried_mending(100).expect("it is on record").len();
        let by_itself = |mender: &Mender, problem: StoreError| {
            let left = BTreeSet::from([lost(512).to_string()]);
            *locked(&mender.left) = Left { problems: left, count: 1, places: BTreeSet::new() };
            mender.learn(mender.look(), &[problem]);
            mender.by_itself();
            tried(mender)
        };
        for count in 1..=11 {
            mend(&Damaged(0), (&mender.home, &mender.own), Who::Node, &[lost(512)], &places).expect("it is tried");
            assert_eq!(tried(&mender), count);
        }
        assert_eq!(by_itself(&mender, lost(512)), 12);
        assert_eq!(by_itself(&mender, lost(512)), 12, "once more within the hour");
        assert_eq!(mender.status()["waiting"], 1, "it waits for the next");
        locked(&mender.known).problems.clear();
        assert_eq!(by_itself(&mender, lost(1024)), 13, "it was not tried yet");
    }

    /// What a list is asked for misses nothing of a range, and begins near it.
    #[test]
    fn a_list_is_asked_for_from_below_the_range() {
        let range = |start: &[u8], end: Option<&[u8]>| KeyRange {
            start: start.to_vec(),
            end: end.map(<[u8]>::to_vec),
            reverse: false,
        };
        assert_eq!(prefix(&range(b"", None)), b"");
        assert_eq!(prefix(&range(b"ab", Some(b"ac"))), b"ab");
        assert_eq!(prefix(&range(b"ab\x40", Some(b"ab\x80"))), b"ab");
        assert_eq!(prefix(&range(b"ab\0", Some(b"ac"))), b"ab");
        assert_eq!(prefix(&range(b"k", Some(b"k\0"))), b"k");
        assert_eq!(below(b"ab", 2), None);
        assert_eq!(below(b"ab\0", 2), None);
        let key = below(b"ab\x40", 2).expect("there are keys below");
        assert!(key.as_slice() < &b"ab\x40"[..] && key.as_slice() > &b"ab\x3f"[..] && key.len() == 255);
    }

    /// spec: CHECK-9. A list is bounded by what is wanted, in bytes as in entries: no page is asked for once it cannot be that.
    #[test]
    fn a_list_that_is_larger_than_what_is_wanted_is_given_up() {
        let wanted = |count, bytes| Wanted {
            version: (Height(1), Root::default()),
            namespace: Namespace::new("agents").expect("a name"),
            range: KeyRange { start: Vec::new(), end: None, reverse: false },
            totals: Totals { count, bytes },
        };
        let pages = || {
            let page = |entries, next| {
                let root = "00".repeat(32);
                let listed = json!({ "height": 1, "root": root, "entries": entries, "next": next });
                &*format!("HTTP/1.1 200 OK\r\n\r\n{listed}").leak()
            };
            let first = json!([{ "key": "61", "value": "00000000" }]);
            let second = json!([{ "key": "62", "value": "0000" }]);
            let pages = vec![page(first, json!("61")), page(second, Json::Null)];
            answering(pages.leak(), PEER_TIMEOUT)
        };
        let listed = |count, bytes| listed(&pages(), &wanted(count, bytes), None).map(|found| found.len());
        assert_eq!(listed(2, 8), Ok(2));
        for (count, bytes) in [(2, 7), (1, 8), (2, 4)] {
            assert_eq!(listed(count, bytes), Err("it has more there".to_owned()), "{count} entries, {bytes} bytes");
        }
    }

    /// A library of snapshots that cannot be read helps nobody, and whoever mends hears why.
    #[test]
    fn snapshots_that_cannot_be_read_are_told_of() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        let path = home.snapshots();
        std::fs::create_dir_all(path.parent().expect("a place in the home")).expect("made");
        std::fs::write(&path, b"no directory").expect("written");
        let stopping = AtomicBool::new(false);
        let places = Places { from: &[Supply::Snapshots], peers: &[], network: None, stopping: &stopping };
        let elsewhere = Elsewhere::new(&home, &places);
        let [(from, Gave::Nothing(why))] = &elsewhere.gave[..] else { panic!("{:?}", elsewhere.gave) };
        assert!(from.contains("snapshots") && why.contains("is no directory"), "{from}: {why}");
    }
}
