//! The node looks after its own state: in the background, at an interval, and when its owner asks.
//!
//! What is compared, and what it comes to, is decided in [`keelstone_sync::consistency`]; here are the thread that
//! begins a check when one is due, the peers it asks, the file that keeps how far it has read, and what others hear of
//! it: the log, metrics, `/readyz` and `keelstone check status`. A check that fails is logged and the next one is due
//! as ever.
//!
//! Rules: `spec/consistency.md`, CHECK-1 to CHECK-10.

use crate::api::{Chain as _, Refusal};
use crate::client::Remote;
use crate::config::{self, HttpAddress};
use crate::engine::{Engine, Parted};
use crate::exit::{Failure, causes};
use crate::health::Health;
use crate::home::Home;
use crate::mend::{self, Mender};
use crate::metrics::Metrics;
use crate::newfile;
use crate::way::step_back;
use keelstone_codec::{Blob, ChainId, Decode as _, Encode as _, Hash, Height, Key, Namespace, Root, unhex};
use keelstone_store::{CheckLevel, CheckReport, Progress};
use keelstone_sync::consistency::{
    Ask, CURSOR_BYTES_MAX, Certified, Checker, Cursor, Discrepancy, DivergeError, Due, Effect, Opinion, Report, Said,
    Sample, Settings, Silence,
};
use keelstone_sync::peers::{Request, Response, Status, Tick, Version, Why};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a peer may take to answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of a check is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Depth {
    /// The store's superblocks, segment headers and unflushed log, and the certified root.
    Quick,
    /// Peers' roots and a sample of entries.
    Peers,
    /// Both of these.
    Usual,
    /// Every stored byte, every page and value by its hash, and the peers.
    Full,
}

/// What can be asked of the checker of a running node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Asked {
    /// Make a check now.
    Now {
        /// How much of one.
        depth: Depth,
    },
    /// Where does it stand?
    Status {},
    /// Make no checks without being asked, or do so again.
    Pause {
        /// Whether to pause.
        paused: bool,
    },
    /// Find where another node parts from this one.
    Diverge {
        /// The address of its API.
        with: String,
    },
    /// Look at every stored byte, and mend what is damaged.
    Repair {
        /// Where from, besides memory.
        from: Vec<mend::Supply>,
    },
}

impl Depth {
    fn of_store(self) -> Option<CheckLevel> {
        match self {
            Self::Quick | Self::Usual => Some(CheckLevel::Quick),
            Self::Full => Some(CheckLevel::Full),
            Self::Peers => None,
        }
    }
}

// ---- peers -------------------------------------------------------------------------------------------------------

/// A peer behind its HTTP API, which answers what a check asks.
pub(crate) struct HttpPeer(Remote);

impl HttpPeer {
    /// The peer at an address.
    ///
    /// # Errors
    /// [`Silence`] if its name leads nowhere.
    pub(crate) fn at(address: &HttpAddress) -> Result<Self, Silence> {
        let found = address.resolve().map_err(|error| Silence(format!("{address}: {error}")))?;
        Ok(Self(Remote::at(found, PEER_TIMEOUT)))
    }

    fn answer(&self, request: &Request) -> Result<Response, Refusal> {
        let strange = |what: &str| Refusal::Failed(format!("its answer has no {what}"));
        match request {
            Request::Status => {
                let status = self.0.status()?;
                Ok(Response::Status(Status {
                    chain_id: ChainId::new(&status.chain_id).map_err(|_| strange("chain"))?,
                    hasher: status.hasher.parse().map_err(|_| strange("hasher"))?,
                    chunk_weight_max: 0,
                    newest: Version { height: Height(status.height), root: root(&status.root)? },
                    oldest: Height(status.lowest_height),
                    diffs_from: Height(u64::MAX),
                }))
            }
            Request::GetRootAt { height } => {
                let page = crate::api::Page { limit: 1, ..crate::api::Page::default() };
                let name = Namespace::new("chain").expect("a constant");
                let found = self.0.entries(&name, &page, Some(*height), false)?;
                Ok(Response::RootAt(Version { height: Height(found.height), root: root(&found.root)? }))
            }
            Request::GetEntry { at, namespace, key } => {
                let found = self.0.entry(namespace, key, Some(at.height), true)?;
                if root(&found.root)? != at.root {
                    return Ok(Response::Unavailable(Why::OtherRoot));
                }
                let proof = found.proof.ok_or_else(|| strange("proof"))?;
                let proof = unhex(proof).map_err(|_| strange("proof"))?;
                Ok(Response::Entry(Blob::new(proof).map_err(|_| strange("proof of a size that is allowed"))?))
            }
            _ => Err(Refusal::Bad("the HTTP API has no such question".to_owned())),
        }
    }
}

fn root(text: &str) -> Result<Root, Refusal> {
    Root::from_hex(text).map_err(|_| Refusal::Failed("its answer has no root".to_owned()))
}

impl Ask for HttpPeer {
    fn ask(&mut self, request: &Request) -> Result<Response, Silence> {
        match self.answer(request) {
            Ok(response) => Ok(response),
            Err(Refusal::NotFound(_)) => Ok(Response::Unavailable(Why::NotKept)),
            Err(Refusal::Busy(_) | Refusal::TooMany { .. }) => Ok(Response::Busy { retry_after_ms: 1_000 }),
            Err(Refusal::Damaged(_)) => Ok(Response::Unavailable(Why::Unreadable)),
            Err(refusal) => Err(Silence(refusal.to_string())),
        }
    }
}

/// A peer that cannot be reached at all.
struct Unreachable(Silence);

impl Ask for Unreachable {
    fn ask(&mut self, _: &Request) -> Result<Response, Silence> {
        Err(self.0.clone())
    }
}

/// Up to `count` of the peers, others in each check.
fn choose(all: &[HttpAddress], count: u32, number: u64) -> Vec<(String, Box<dyn Ask>)> {
    let count = all.len().min(count as usize);
    let first = usize::try_from(number).unwrap_or_default().wrapping_mul(count.max(1)) % all.len().max(1);
    let chosen = all.iter().cycle().skip(first).take(count);
    let reach = |address: &HttpAddress| -> Box<dyn Ask> {
        match HttpPeer::at(address) {
            Ok(peer) => Box::new(peer),
            Err(silence) => Box::new(Unreachable(silence)),
        }
    };
    chosen.map(|address| (address.to_string(), reach(address))).collect()
}

// ---- one check ---------------------------------------------------------------------------------------------------

/// Makes one check, for as long as it is to go on. What the store finds damaged is told beside what the sample met, and what was
/// `met` when it was opened.
pub(crate) fn check(
    engine: &dyn Engine,
    due: &Due,
    depth: Depth,
    peers: &[HttpAddress],
    met: Option<String>,
    go_on: &mut dyn FnMut(Progress) -> bool,
) -> Result<(Sample, Report), Failure> {
    let due = match depth {
        Depth::Quick => Due { entries: 0, roots: 0, peers: 0, ..due.clone() },
        _ => due.clone(),
    };
    let mut picked = engine.pick(&due)?;
    picked.sample.damaged.extend(met);
    if let Some(level) = depth.of_store() {
        let found = engine.check_while(level, go_on)?.ok_or_else(ended)?;
        picked.sample.damaged.extend(found.problems.iter().map(|problem| causes(problem)));
    }
    let mut chosen = choose(peers, due.peers, due.number);
    let mut asked: Vec<(String, &mut dyn Ask)> =
        chosen.iter_mut().map(|(name, peer)| (name.clone(), &mut **peer as &mut dyn Ask)).collect();
    let report = engine.compare_picked(&picked, &mut asked);
    if depth == Depth::Quick {
        // Nothing was read of the state, so the cursor stays where it is.
        picked.sample.next = due.from;
    }
    Ok((picked.sample, report))
}

/// What a check of everything says beside its verdict: the state may be whole and the chain's, and of another program's types.
pub(crate) fn warnings(engine: &dyn Engine, depth: Depth) -> Value {
    if depth == Depth::Full { json!(engine.misfits()) } else { json!([]) }
}

/// Somebody did not want to wait for the end of a check.
fn ended() -> Failure {
    Failure::error("the check was ended before it was done: the checker was paused, or the node stops")
}

/// What a check is to look at as the configuration says.
pub(crate) fn settings(config: &config::Check) -> Settings {
    let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Settings {
        check_interval_ms: config.check_interval.saturating_mul(1000),
        state_root_sample_size: count(config.state_root_sample_size),
        peer_sample_size: count(config.peer_sample_size),
        account_sample_size: count(config.account_sample_size),
        auto_repair: config.auto_repair,
    }
}

// ---- the cursor --------------------------------------------------------------------------------------------------

fn cursor_path(home: &Home) -> PathBuf {
    home.data().join("check.cursor")
}

/// The cursor of a home; the first one if there is none, or none that can be read.
// spec: CHECK-7
pub(crate) fn read_cursor(home: &Home) -> Cursor {
    let path = cursor_path(home);
    let read = fs::metadata(&path).and_then(|found| match found.len() <= CURSOR_BYTES_MAX as u64 {
        true => fs::read(&path),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long")),
    });
    match read.map(|bytes| Cursor::from_bytes(&bytes)) {
        Ok(Ok(cursor)) => cursor,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the cursor of the checker cannot be read: the state is read from its beginning");
            Cursor::default()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Cursor::default(),
        Err(error) => {
            tracing::warn!(%error, "the cursor of the checker cannot be read: the state is read from its beginning");
            Cursor::default()
        }
    }
}

/// Keeps the cursor. Whole or not at all: what is lost by a crash is a few entries that are read again.
pub(crate) fn write_cursor(home: &Home, cursor: &Cursor) -> Result<(), Failure> {
    let path = cursor_path(home);
    newfile::replace(&path, &cursor.to_bytes()).map_err(|error| Failure::io(path.display(), &error))
}

// ---- the service -------------------------------------------------------------------------------------------------

/// The checker of a running node.
pub(crate) struct Service {
    inner: Arc<Inner>,
    wake: SyncSender<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    home: Home,
    peers: Vec<HttpAddress>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    mender: Arc<Mender>,
    since: Instant,
    stopping: AtomicBool,
    /// How often checks were told to end.
    ends: AtomicU64,
    checker: Mutex<Checker>,
    /// One check at a time.
    checking: Mutex<()>,
}

impl Service {
    /// Begins to check as `config` says, on a thread of its own.
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        config: &config::Check,
        home: &Home,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        mender: Arc<Mender>,
    ) -> Result<Self, Failure> {
        let checker = Checker::new(settings(config), read_cursor(home), Tick(0));
        let inner = Arc::new(Inner {
            engine,
            home: home.clone(),
            peers: config.peers.clone(),
            metrics,
            health,
            mender,
            since: Instant::now(),
            stopping: AtomicBool::new(false),
            ends: AtomicU64::new(0),
            checker: Mutex::new(checker),
            checking: Mutex::new(()),
        });
        let (wake, woken) = sync_channel(1);
        let working = inner.clone();
        let thread = std::thread::Builder::new().name("checker".to_owned());
        let thread = thread
            .spawn(move || {
                step_back();
                working.work(&woken);
            })
            .map_err(|error| Failure::io("could not start checking", &error))?;
        Ok(Self { inner, wake, thread: Mutex::new(Some(thread)) })
    }

    /// Does what its owner asks of the checker of a running node.
    pub(crate) fn answer(&self, asked: &Asked) -> Result<Value, Failure> {
        match asked {
            Asked::Now { depth } => self.check(*depth),
            Asked::Status {} => Ok(self.status()),
            Asked::Pause { paused } => Ok(self.pause(*paused)),
            Asked::Diverge { with } => {
                let peer = HttpAddress::parse(with).map_err(|why| Failure::usage(format!("--with: {why}")))?;
                part(&*self.inner.engine, &peer)
            }
            Asked::Repair { from } => self.repair(from),
        }
    }

    /// Makes a check now.
    fn check(&self, depth: Depth) -> Result<Value, Failure> {
        let report = self.inner.check(depth, None)?;
        let mut shown = show_checked(&report, depth, self.inner.checker().cursor());
        shown["warnings"] = warnings(&*self.inner.engine, depth);
        Ok(shown)
    }

    /// Looks at all of it, and mends what is damaged.
    fn repair(&self, from: &[mend::Supply]) -> Result<Value, Failure> {
        let inner = &*self.inner;
        let _one = inner.checking.lock().unwrap_or_else(PoisonError::into_inner);
        let look = inner.mender.look();
        let problems = inner.all_of_it()?.ok_or_else(ended)?.problems;
        match problems.is_empty() {
            true => inner.mender.found_whole(look),
            false => inner.mender.found_damage(look),
        }
        let outcome = inner.mender.asked(&problems, from)?;
        let was_ours = inner.checker().last().is_some_and(is_ours);
        if outcome.is_whole() && was_ours {
            inner.look(Depth::Usual, None)?;
        }
        Ok(mend::show(&problems, &outcome))
    }

    /// Makes no checks by itself, or does again. One that is being made ends where it is.
    fn pause(&self, paused: bool) -> Value {
        self.inner.checker().pause(paused);
        self.inner.ends.fetch_add(u64::from(paused), Ordering::Relaxed);
        let _ = self.wake.try_send(());
        self.status()
    }

    /// Where the checker stands.
    fn status(&self) -> Value {
        let inner = &*self.inner;
        let checker = inner.checker();
        let waits = checker.waits_ms(inner.now());
        json!({
            "running": true,
            "paused": checker.is_paused(),
            "checks": checker.checks(),
            "next_in_ms": waits,
            "cursor": show_cursor(checker.cursor()),
            "alarm": checker.alarmed(),
            "repairs": inner.mender.status(),
            "last": checker.last().map(|report| show(report, checker.cursor())),
        })
    }

    /// Checks no longer. A check that is being made ends where it is.
    pub(crate) fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.inner.ends.fetch_add(1, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        let _ = self.wake.try_send(());
        // A panic of the thread was reported when it happened.
        let _ = thread.join();
    }
}

impl Inner {
    fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Tick {
        Tick(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether a check that begins now is to go on, for as long as it is asked.
    fn goes_on(&self) -> impl FnMut(Progress) -> bool {
        let before = self.ends.load(Ordering::Relaxed);
        move |_| self.ends.load(Ordering::Relaxed) == before
    }

    /// Looks at every stored byte; none if it was told to end.
    fn all_of_it(&self) -> Result<Option<CheckReport>, Failure> {
        self.engine.check_while(CheckLevel::Full, &mut self.goes_on())
    }

    /// Waits until a check is due, and makes it, until the node stops.
    fn work(&self, woken: &Receiver<()>) {
        loop {
            let waits = self.checker().waits_ms(self.now());
            let woken = match waits {
                Some(waits) => woken.recv_timeout(Duration::from_millis(waits)),
                None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if woken == Err(RecvTimeoutError::Disconnected) || self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let due = self.checker().due(self.now());
            let Some(due) = due else { continue };
            if let Err(failure) = self.check(Depth::Usual, Some(due)) {
                tracing::warn!(%failure, "a check of the state failed; the next one is due as ever");
            }
        }
    }

    /// Makes a check; without one that is due, one that somebody asked for.
    fn check(&self, depth: Depth, due: Option<Due>) -> Result<Report, Failure> {
        let _one = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        let report = self.look(depth, due)?;
        if self.mender.by_itself() && is_ours(&report) {
            // What is said of this node from here on is what it is now.
            self.look(Depth::Usual, None)?;
        }
        Ok(report)
    }

    /// Looks, and says what is found. Whoever calls it holds `checking`.
    fn look(&self, depth: Depth, due: Option<Due>) -> Result<Report, Failure> {
        let due = due.unwrap_or_else(|| self.checker().take(self.now()));
        let look = self.mender.look();
        let checked = check(&*self.engine, &due, depth, &self.peers, None, &mut self.goes_on());
        let (sample, report) = checked.inspect_err(|_| self.metrics.checked("failed"))?;
        self.metrics.checked(report.verdict.name());
        self.metrics.check_read_entries.inc_by(u64::from(report.entries_read));
        self.metrics.check_discrepancies.set(i64::try_from(report.discrepancies.len()).unwrap_or(i64::MAX));
        let is_storage = |found: &Discrepancy| matches!(found, Discrepancy::Storage { .. });
        match report.discrepancies.iter().any(is_storage) {
            true => self.mender.found_damage(look),
            // All else are samples, and say nothing of what they did not read.
            false if depth == Depth::Full => self.mender.found_whole(look),
            false => {}
        }
        let not_certified = |found: &Discrepancy| matches!(found, Discrepancy::NotCertified { .. });
        let contradicted = report.discrepancies.iter().any(not_certified);
        if contradicted || report.certified != Certified::Nothing {
            self.health.inconsistent.store(contradicted, Ordering::Relaxed);
        }
        let effects = match depth {
            Depth::Quick => self.checker().glanced(report.clone()),
            _ => self.checker().found(&sample, report.clone()),
        };
        for effect in effects {
            match effect {
                Effect::Save(cursor) => {
                    self.metrics.check_passes.set(i64::try_from(cursor.passes).unwrap_or(i64::MAX));
                    if let Err(failure) = write_cursor(&self.home, &cursor) {
                        tracing::warn!(%failure, "the cursor of the checker was not written");
                    }
                }
                Effect::Alarm(what) => {
                    self.metrics.check_alarms.inc();
                    tracing::error!(what, "the check of the state is an alarm; keelstone check status says more");
                }
                // A sample names no file: all is looked at, so that all is known that is damaged.
                Effect::Repair(_) => {
                    let look = self.mender.look();
                    match self.all_of_it() {
                        Ok(Some(found)) if found.problems.is_empty() => self.mender.found_whole(look),
                        Ok(Some(found)) => self.mender.learn(look, &found.problems),
                        Ok(None) => tracing::info!("damage was to be located, and that was ended"),
                        Err(failure) => tracing::warn!(%failure, "damage that a check found could not be located"),
                    }
                }
            }
        }
        Ok(report)
    }
}

/// Whether it is this node's own state that is not what it must be. What peers say of theirs is no reason to take a
/// node out of service: four of five may be wrong.
fn is_ours(report: &Report) -> bool {
    let ours = |found: &Discrepancy| matches!(found, Discrepancy::Storage { .. } | Discrepancy::NotCertified { .. });
    report.discrepancies.iter().any(ours)
}

/// Finds where a peer parts from a chain, as JSON.
pub(crate) fn part(engine: &dyn Engine, peer: &HttpAddress) -> Result<Value, Failure> {
    let mut asked = HttpPeer::at(peer).map_err(|silence| Failure::error(silence.to_string()))?;
    match engine.part(&mut asked) {
        Ok(parted) => Ok(show_parted(&parted, &peer.to_string())),
        Err(DivergeError::Same) => Ok(json!({ "with": peer.to_string(), "differs": false })),
        Err(error @ DivergeError::Own(_)) => Err(Failure::integrity(causes(&error))),
        Err(error @ (DivergeError::Unavailable(_) | DivergeError::NothingInCommon { .. })) => {
            Err(Failure::not_found(error.to_string()))
        }
        Err(error) => Err(Failure::error(error.to_string())),
    }
}

// ---- shown -------------------------------------------------------------------------------------------------------

/// A report as JSON.
pub(crate) fn show(report: &Report, cursor: &Cursor) -> Value {
    let certified = match report.certified {
        Certified::Root(root) => json!({ "by": "consensus", "root": root.to_string() }),
        Certified::Here => json!({ "by": "own_blocks", "root": report.at.root.to_string() }),
        Certified::Given => json!({ "by": "given", "root": report.at.root.to_string() }),
        Certified::Nothing => Value::Null,
    };
    json!({
        "verdict": report.verdict.name(),
        "height": report.at.height.0,
        "root": report.at.root.to_string(),
        "certified": certified,
        "entries_read": report.entries_read,
        "whole_state": false,
        "discrepancies": report.discrepancies.iter().map(show_discrepancy).collect::<Vec<_>>(),
        "peers": report.peers.iter().map(show_opinion).collect::<Vec<_>>(),
        "cursor": show_cursor(cursor),
    })
}

/// As [`show`], of a check that was made now: whether every stored value was read beside the sample.
pub(crate) fn show_checked(report: &Report, depth: Depth, cursor: &Cursor) -> Value {
    let mut shown = show(report, cursor);
    shown["every_value_read"] = (depth == Depth::Full).into();
    shown
}

/// A cursor as JSON.
pub(crate) fn show_cursor(cursor: &Cursor) -> Value {
    let next = cursor
        .next
        .as_ref()
        .map(|(namespace, key)| json!({ "namespace": namespace.to_string(), "key": hex::encode(key) }));
    json!({ "passes": cursor.passes, "entries": cursor.entries, "next": next })
}

fn show_discrepancy(found: &Discrepancy) -> Value {
    let hash = |hash: &Option<Hash>| hash.map(|hash| hash.to_string());
    match found {
        Discrepancy::NotCertified { certified, ours } => {
            json!({ "kind": "not_certified", "certified": certified.to_string(), "ours": ours.to_string() })
        }
        Discrepancy::StateRoot { peer, ours, theirs } => json!({
            "kind": "state_root", "peer": peer, "height": ours.height.0, "ours": ours.root.to_string(),
            "theirs": theirs.to_string(),
        }),
        Discrepancy::Entry { peer, namespace, key, ours, theirs } => {
            let kind = match (ours, theirs) {
                (None, _) => "missing_here",
                (_, None) => "missing_there",
                _ => "entry",
            };
            json!({
                "kind": kind, "peer": peer, "namespace": namespace.to_string(), "key": hex::encode(key),
                "ours": hash(ours), "theirs": hash(theirs),
            })
        }
        Discrepancy::Storage { what } => json!({ "kind": "storage", "what": what }),
    }
}

fn show_opinion(opinion: &Opinion) -> Value {
    let (said, detail) = match &opinion.said {
        Said::Agrees => ("agrees", None),
        Said::Differs(root) => ("differs", Some(root.to_string())),
        Said::Nothing(why) => ("nothing", Some(why.clone())),
        Said::Misbehaved(what) => ("misbehaved", Some(what.clone())),
    };
    json!({ "peer": opinion.peer, "said": said, "detail": detail, "entries_agreed": opinion.entries_agreed })
}

fn show_parted(parted: &Parted, with: &str) -> Value {
    let Parted { height, entry, questions } = parted;
    let hash = |hash: Option<Hash>| hash.map(|hash| hash.to_string());
    json!({
        "with": with,
        "differs": true,
        "last_same_height": height.last_same.map(|version| version.height.0),
        "height": height.ours.height.0,
        "ours": height.ours.root.to_string(),
        "theirs": height.theirs.to_string(),
        "namespace": entry.namespace.to_string(),
        "key": hex::encode(&entry.key),
        "our_value": hash(entry.ours),
        "their_value": hash(entry.theirs),
        "questions": questions,
    })
}

/// A place as text, for people.
pub(crate) fn place(namespace: &str, key: &str) -> String {
    let shown = unhex(key).ok().and_then(|bytes| Key::new(bytes).ok());
    shown.map_or_else(|| format!("{namespace}/{key}"), |key| format!("{namespace}/{}", key.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::engine;
    use keelstone_codec::ChainId;
    use keelstone_ledger::Genesis;
    use keelstone_ledger::modules::standard;

    /// A pause ends a check of every byte where it is, says so, and leaves what the checker knew as it was; none begins by itself until
    /// that is asked for, but whoever asks for one has it.
    #[test]
    fn a_full_check_that_is_paused_ends_where_it_is() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        let config = Config::default();
        home.write_genesis(&Genesis::new(ChainId::new("paused-1").expect("a name"))).expect("written");
        let engine = engine::open(&home, &config, &standard()).expect("a new chain");
        let (metrics, health) = (Arc::new(Metrics::new()), Arc::new(Health::default()));
        let mender = Arc::new(Mender::new(&engine, &config.check, &home, None, metrics.clone(), health.clone()));
        let service = Service::start(engine, &config.check, &home, metrics.clone(), health, mender).expect("a thread");
        let checked = service.answer(&Asked::Now { depth: Depth::Full }).expect("nothing is in its way");
        assert_eq!(checked["verdict"], "consistent");
        let before = service.status();

        // Each check meets the pause at some other place: before it begins, which does not end it, or in the middle.
        let (mut made, ended) = (0, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    assert_eq!(service.answer(&Asked::Pause { paused: true }).expect("paused")["paused"], true);
                }
            });
            let began = Instant::now();
            let mut failure = None;
            while failure.is_none() && began.elapsed() < Duration::from_secs(60) {
                made += 1;
                failure = service.answer(&Asked::Now { depth: Depth::Full }).err();
            }
            ended.store(true, Ordering::Relaxed);
            let message = failure.map(|failure| failure.message);
            let is_told = message.as_ref().is_some_and(|message| message.contains("the checker was paused"));
            assert!(is_told, "{message:?} after {made} checks");
        });
        let paused = service.status();
        assert_eq!((&paused["paused"], &paused["next_in_ms"]), (&json!(true), &Value::Null));
        assert_eq!(paused["last"]["verdict"], before["last"]["verdict"]);
        assert_eq!(metrics.render().matches("check_made_checks_total{outcome=\"failed\"} 1").count(), 1);

        let checked = service.answer(&Asked::Now { depth: Depth::Full }).expect("who asks has a check all the same");
        assert_eq!(checked["verdict"], "consistent");
        let resumed = service.answer(&Asked::Pause { paused: false }).expect("resumed");
        assert_eq!((&resumed["paused"], resumed["next_in_ms"].is_u64()), (&json!(false), true));
        service.stop();
    }

    /// spec: CHECK-2. Damage that was found is known until all that is stored was looked at and is whole: a check that looks at
    /// less, and a mending that left some of it, make nothing good.
    #[test]
    fn damage_is_known_until_all_of_it_is_whole() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        let mut config = Config::default();
        config.check.auto_repair = false;
        home.write_genesis(&Genesis::new(ChainId::new("known-1").expect("a name"))).expect("written");
        let engine = engine::open(&home, &config, &standard()).expect("a new chain");
        let producer = keelstone_ledger::SecretKey::from_seed(&[7; 32]).public();
        for time in 1..=4 {
            engine.produce(keelstone_codec::Timestamp(time), producer, true).expect("a block");
        }
        engine.flush().expect("it is written");
        let (metrics, health) = (Arc::new(Metrics::new()), Arc::new(Health::default()));
        let mender = Arc::new(Mender::new(&engine, &config.check, &home, None, metrics.clone(), health.clone()));
        let service = Service::start(engine, &config.check, &home, metrics, health.clone(), mender).expect("a thread");
        let checked = |depth| {
            service.answer(&Asked::Now { depth }).expect("nothing is in its way");
            health.damaged.load(Ordering::Relaxed)
        };
        assert!(!checked(Depth::Full));

        // More of a sector than its checksum can give back.
        let state = fs::read_dir(home.data().join("gen-000001/state")).expect("it is there");
        let is_log = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "log");
        let log = state.filter_map(|entry| Some(entry.ok()?.path())).find(is_log).expect("a log");
        let right = fs::read(&log).expect("read");
        let mut wrong = right.clone();
        wrong[700..720].iter_mut().for_each(|byte| *byte ^= 0x5a);
        let write = |bytes: &[u8]| {
            use std::io::Write as _;
            fs::OpenOptions::new().write(true).open(&log).and_then(|mut file| file.write_all(bytes)).expect("written");
        };
        write(&wrong);
        assert!(checked(Depth::Full), "every byte is read");
        for depth in [Depth::Peers, Depth::Quick, Depth::Usual] {
            assert!(checked(depth), "{depth:?} does not read it");
        }
        let repaired = service.answer(&Asked::Repair { from: Vec::new() }).expect("it is tried");
        assert_ne!(repaired["left"], json!([]), "{repaired}");
        assert!(health.damaged.load(Ordering::Relaxed), "it is damaged still");
        write(&right);
        assert!(checked(Depth::Peers) && !checked(Depth::Full));
        service.stop();
    }
}
