//! Taking a version of the state from many peers, none of which is trusted.
//!
//! The caller says which version: its height and root are certified, and nothing else is believed. First the skeleton is
//! fetched page by page, each proven before the next is asked for; then units, from all peers at once, each proven in
//! memory before it is written. When all are there the caller builds a store from them beside whatever it has, and
//! switches to it. Events come in, effects go out, and there is no clock but the one passed in; the only thing
//! touched is the staging directory.
//!
//! A target that moves does not move the fetch: the version begun with is frozen for as long as somebody serves it. If
//! nobody does any more, the fetch goes over to the newest target and keeps every unit the two share.
//!
//! Rules: `spec/peers.md`, PEER-5 to PEER-10.

use super::jobs::{JobId, Jobs, units_of};
use super::progress::{self, Meter};
use super::standing::Peer;
use super::{Frame, Progress, Request, Response, Staging, StagingError, Status, Version, Why};
use crate::library::{TakeError, Taken, take};
use crate::snapshot::{PageError, PartOf, Place, Skeleton, SnapshotParams, TooLarge, hand_on, unpack};
use keelstone_codec::{BoundedSet, Decode, Key, Namespace, splitmix64};
use keelstone_store::files::Files;
use keelstone_tree::{Hasher, ReadError, Totals};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Milliseconds since some moment the caller chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

/// Names a peer for as long as it is connected, and after a ban for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerId(pub u64);

/// What one may choose about a sync. Everything has a default that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Requests for parts under way at once, to all peers together. Times the largest batch, this is the memory that
    /// answers take.
    pub concurrent_requests_max: u32,
    /// How many peers are worked with at once; as long as fewer can help, more are looked for.
    pub peer_count_target: u32,
    /// How long an answer may take, in milliseconds.
    pub request_timeout_ms: u32,
    /// Bytes of units that one request asks for, at most; a larger unit is asked for alone. Near peers are asked for a 32nd
    /// of it, or a 16,384th of the state, since what is under way comes again if the joiner dies.
    pub batch_bytes_max: u32,
    /// Failures in a row after which a peer is not counted on any more: it is asked once in a while.
    pub retries_max: u32,
    /// The sync ends if so long nothing new was proven, in milliseconds.
    pub stall_timeout_ms: u32,
    /// How long a version is kept to while a newer target is known, in milliseconds.
    pub freeze_ms_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrent_requests_max: 16,
            peer_count_target: 8,
            request_timeout_ms: 15_000,
            batch_bytes_max: 4 << 20,
            retries_max: 3,
            stall_timeout_ms: 300_000,
            freeze_ms_max: 600_000,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// Nothing but that time passed.
    Tick,
    /// A peer can be asked from now on.
    Connected(PeerId),
    /// A mirror can be asked from now on: a peer in all but that whole chunks cost it no more than parts of them.
    Mirror(PeerId),
    /// A peer cannot be asked any more.
    Gone(PeerId),
    /// What a peer answered to the request with this number, whatever it is. The number is of the transport's own knowledge
    /// and not what the peer says.
    Answered(PeerId, u64, &'a [u8]),
    /// Consensus has certified a later version.
    Target(Version),
    /// The entries were handed out, and what was built of them has the root of the target.
    Built,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a peer a request.
    Ask(PeerId, Frame<Request>),
    /// Have nothing to do with a peer any more, also over restarts.
    Ban(PeerId, Misconduct),
    /// Look for so many more peers.
    Seek(u32),
    /// Everything is there: build a store from [`Joiner::entries`] and say [`Event::Built`].
    Build(Version),
    /// Put what was built in the place of what there was. The sync is done.
    Switch(Version),
    /// The sync ended without success. What is staged stays for the next one.
    End(Ended),
}

/// Why a peer is banned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misconduct {
    /// It sent what cannot be true, the last time this.
    #[error("{times} answers that cannot be true, the last one: {last}")]
    FalseAnswers {
        /// How often.
        times: u32,
        /// What was wrong with the last.
        last: String,
    },
    /// It is of another chain, or cuts versions otherwise.
    #[error("it is of {found}, we are of {ours}")]
    OtherChain {
        /// Its chain, hasher and W.
        found: String,
        /// Ours.
        ours: String,
    },
}

/// Why a sync ended without success. Each variant says who has to act.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Ended {
    /// For a long time nobody sent anything of use. Try other peers, or another way.
    #[error("nothing new was proven for {for_ms} ms, of {peers} peers")]
    Stalled {
        /// How long.
        for_ms: u64,
        /// How many peers were connected.
        peers: u32,
    },
    /// Our own disk failed. Look at it; nobody else is to blame.
    #[error(transparent)]
    Disk(#[from] StagingError),
    /// The version is too large for a skeleton. Take another way.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// All units are proven, yet keys do not stand where the tree would have put them: the root itself is of no tree.
    /// Stop and ask who certified it.
    #[error("unit {unit} does not follow the one before: {what}")]
    FalseRoot {
        /// Which unit.
        unit: u32,
        /// What is wrong.
        what: String,
    },
}

impl PartialEq for Ended {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}
impl Eq for Ended {}

/// Why the entries were not all handed out.
#[derive(Debug, thiserror::Error)]
pub enum EntriesError<E> {
    /// Not all are there. Go on with [`Joiner::step`]: what was lost on our own disk is fetched again.
    #[error("{missing} units are missing")]
    Incomplete {
        /// How many.
        missing: u32,
    },
    /// The sync has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// Whoever took them said so.
    #[error("{0}")]
    Taker(E),
}

/// A source of numbers that look random, from a seed: the same run again is the same.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            let other = self.roll() % (last as u64 + 1);
            list.swap(last, usize::try_from(other).expect("it is below the length"));
        }
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Status,
    Page(u32),
    Job(JobId),
}

#[derive(Clone, Debug)]
struct Asked {
    peer: PeerId,
    subject: Subject,
    since: Tick,
    until: Tick,
    bytes: u64,
    units: Vec<u32>,
}

enum Phase<H> {
    /// Pages come one by one.
    Skeleton(Skeleton<H>),
    /// Units come from everywhere.
    Units(Jobs<H>),
    /// All is there.
    Building(Jobs<H>),
    /// It is over, one way or the other.
    Over,
}

/// Most peers that are known at once.
pub(super) const PEERS_MAX: usize = 256;
/// After so many times the usual time another peer is asked too.
const HEDGE_TIMES: u64 = 4;
/// Parts that are asked for in any case: one that is proven, one on its way, and one that is being read.
const PARTS_LEAST: usize = 3;
/// How often a status is asked for again, in request timeouts.
const STATUS_TIMEOUTS: u64 = 4;

/// Fetches one version. The skeleton is in memory, some 200 bytes a unit, and the answers under way; the rest is in the
/// staging directory.
pub struct Joiner<H> {
    params: SnapshotParams,
    settings: Settings,
    dice: Dice,
    staging: Staging,
    /// What is fetched.
    target: Version,
    /// Of which no more is wanted than this.
    part: Option<PartOf>,
    frozen_since: Tick,
    /// The newest version that is certified.
    newest: Version,
    phase: Phase<H>,
    peers: BTreeMap<PeerId, Peer>,
    banned: BTreeSet<PeerId>,
    asked: BTreeMap<u64, Asked>,
    next_id: u64,
    /// When something was last proven.
    proven_at: Tick,
    /// The time of the last step.
    stepped: Tick,
    /// Since when we read, prove or build what is on our own disk, which takes as long as it takes.
    own_since: Option<Tick>,
    sought: Option<(Tick, u32)>,
    meter: Meter,
}

impl<H: Hasher> Joiner<H> {
    /// Begins, or goes on after a crash: takes over the staging directory, which nobody else may use, and reads what is
    /// there. Units that are still of use are proven again before they count. `seed` should differ from node to node.
    ///
    /// # Errors
    /// [`StagingError`].
    ///
    /// # Panics
    /// If the chain has another hasher.
    pub fn open(
        files: Arc<dyn Files>,
        params: SnapshotParams,
        settings: Settings,
        target: Version,
        now: Tick,
        seed: u64,
    ) -> Result<Self, StagingError> {
        let staging = Staging::open(files)?;
        let skeleton = proven_pages(&staging, Skeleton::without_offer(target.root, &params))?;
        let mut dice = Dice(seed);
        Ok(Self {
            params,
            settings,
            staging,
            target,
            part: None,
            frozen_since: now,
            newest: target,
            phase: Phase::Skeleton(skeleton),
            peers: BTreeMap::new(),
            banned: BTreeSet::new(),
            asked: BTreeMap::new(),
            // Answers to a life before this one find nothing.
            next_id: dice.roll() >> 1,
            dice,
            proven_at: now,
            stepped: now,
            // What is staged was read just now.
            own_since: Some(now),
            sought: None,
            meter: Meter::default(),
        })
    }

    /// Fetches no more of the version than the chunks that hold a part of it (spec: PEER-20).
    #[must_use]
    pub fn only(self, part: PartOf) -> Self {
        Self { part: Some(part), ..self }
    }

    /// The version that is being fetched.
    #[must_use]
    pub fn target(&self) -> Version {
        self.target
    }

    /// Everybody who can be asked, and where they say they stand; none of who has not said it yet.
    pub fn offers(&self) -> impl Iterator<Item = (PeerId, Option<&Status>)> {
        self.peers.iter().map(|(id, peer)| (*id, peer.status.as_ref()))
    }

    /// Takes in one event and says what should happen next. Proves what came, and writes what was proven to the staging
    /// directory. `now` never goes back.
    pub fn step(&mut self, now: Tick, event: Event<'_>) -> Vec<Effect> {
        let mut out = Vec::new();
        if matches!(self.phase, Phase::Over) {
            return out;
        }
        self.leave_out_own_time(now);
        match event {
            Event::Tick => {}
            Event::Connected(peer) => self.meet(peer, Peer::new),
            Event::Mirror(peer) => self.meet(peer, Peer::mirror),
            Event::Gone(peer) => self.forget_peer(peer),
            Event::Answered(peer, id, bytes) => self.on_answer(now, peer, id, bytes, &mut out),
            Event::Target(version) => {
                if version.height > self.newest.height {
                    self.newest = version;
                }
            }
            Event::Built => return self.on_built(),
        }
        self.go_on(now, &mut out);
        out
    }

    /// The time that our own disk took is no silence of others: neither the requests under way nor the sync are the older for it.
    // spec: PEER-10
    fn leave_out_own_time(&mut self, now: Tick) {
        self.stepped = now;
        // What is being built may still turn out to lack something.
        if matches!(self.phase, Phase::Building(_)) {
            return;
        }
        let Some(since) = self.own_since.take() else { return };
        let own_ms = now.0.saturating_sub(since.0);
        self.proven_at.0 += own_ms;
        for asked in self.asked.values_mut() {
            asked.since.0 += own_ms;
            asked.until.0 += own_ms;
        }
    }

    /// When to call [`Joiner::step`] again if nothing happens before; none if there is nothing to wait for.
    #[must_use]
    pub fn wakeup(&self, now: Tick) -> Option<Tick> {
        if matches!(self.phase, Phase::Over | Phase::Building(_)) {
            return None;
        }
        if self.own_since.is_some() {
            // Time counts from the next step on.
            return Some(Tick(now.0 + 1));
        }
        let (page, job) = (self.page_hedge_ms(), self.job_hedge_ms());
        let hedge = |asked: &Asked| if let Subject::Page(_) = asked.subject { page } else { job };
        let asked = self.asked.values().flat_map(|asked| [asked.until.0, asked.since.0 + hedge(asked)]);
        let peers = self.peers.values().flat_map(|peer| [peer.silent_until().0, self.status_due(peer).0]);
        let stalled = self.proven_at.0 + u64::from(self.settings.stall_timeout_ms);
        let next = asked.chain(peers).filter(|at| *at > now.0).min().unwrap_or(stalled);
        Some(Tick(next.min(stalled).max(now.0 + 1)))
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self, now: Tick) -> Progress {
        let (done, total, opened) = match &self.phase {
            Phase::Skeleton(skeleton) => {
                // How much a part has is seen when all pages are there.
                let total = skeleton.totals().filter(|_| self.part.is_none());
                (Totals::default(), total, skeleton.nodes_done())
            }
            Phase::Units(jobs) | Phase::Building(jobs) => (jobs.done(), Some(jobs.total()), jobs.skeleton.nodes_done()),
            Phase::Over => (Totals::default(), None, 0),
        };
        let (nodes_per_second, bytes_per_second) = self.meter.rates(now);
        let left_ms = total.and_then(|total| self.meter.left_ms(now, total.bytes - done.bytes, total.bytes));
        Progress {
            nodes: opened + (2 * done.count).saturating_sub(1),
            done,
            total,
            received_bytes: self.meter.received_bytes,
            nodes_per_second,
            bytes_per_second,
            done_per_ten_thousand: total.map_or(0, |total| progress::per_ten_thousand(done.bytes, total.bytes)),
            left_ms,
            peers: u32::try_from(self.peers.len()).expect("peers are limited"),
            requests: u32::try_from(self.asked.len()).expect("requests are limited"),
        }
    }

    /// How many bytes of what is there should be built now, to learn how long building takes: once, early, unless all of it is
    /// small.
    #[must_use]
    pub fn to_rehearse(&self) -> Option<u64> {
        let Phase::Units(jobs) = &self.phase else { return None };
        self.meter.to_rehearse(jobs.done().bytes, jobs.total().bytes).filter(|_| self.part.is_none())
    }

    /// Hands out some of the entries that are there, in order, to be built and thrown away: about so many bytes. Tell
    /// [`Joiner::rehearsed`] how long that took. Returns how many bytes they have.
    ///
    /// # Errors
    /// [`EntriesError`]. What is lost on our own disk is found when all is there, and left out here.
    pub fn rehearse<E>(
        &mut self,
        bytes_max: u64,
        mut each: impl FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>,
    ) -> Result<u64, EntriesError<E>> {
        let Self { phase: Phase::Units(jobs), staging, .. } = self else { return Ok(0) };
        let mut bytes = 0;
        for unit in jobs.units().filter(|unit| jobs.has(*unit)) {
            if bytes >= bytes_max {
                break;
            }
            let Some(body) = staging.read(&jobs.skeleton.unit(unit).name).map_err(Ended::Disk)? else { continue };
            let take = |name: &Namespace, key: &Key, value: &[u8]| {
                bytes += (key.len() + value.len()) as u64;
                each(name, key, value).map_err(EntriesError::Taker)
            };
            let handed: Result<(), EntriesError<E>> =
                jobs.skeleton.unit_entries(unit, &body, hand_on(&mut None, |_, _| Ok(()), take));
            handed?;
        }
        Ok(bytes)
    }

    /// Building so many bytes more took so many microseconds more, and nothing was fetched meanwhile. From here on the forecast
    /// has building in it.
    pub fn rehearsed(&mut self, bytes: u64, took_us: u64) {
        self.own_since.get_or_insert(self.stepped);
        self.meter.rehearsed(bytes, took_us);
    }

    /// Reads all entries back from the staging directory and hands them out in order. Each unit is what was proven, and
    /// where units meet, their keys part as the skeleton says.
    ///
    /// # Errors
    /// [`EntriesError`]. What is lost is forgotten and fetched again.
    pub fn entries<E>(
        &mut self,
        mut each: impl FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>,
    ) -> Result<(), EntriesError<E>> {
        let jobs = match &mut self.phase {
            Phase::Building(jobs) => jobs,
            Phase::Units(jobs) => return Err(EntriesError::Incomplete { missing: jobs.missing() }),
            Phase::Skeleton(_) | Phase::Over => return Err(EntriesError::Incomplete { missing: 0 }),
        };
        let mut last: Option<(Namespace, Key)> = None;
        for unit in jobs.units() {
            let body = match self.staging.read(&jobs.skeleton.unit(unit).name) {
                Ok(Some(body)) => body,
                Ok(None) => return Err(self.lost()),
                Err(error) => {
                    self.phase = Phase::Over;
                    return Err(Ended::Disk(error).into());
                }
            };
            let skeleton = &jobs.skeleton;
            let border = |last: Place<'_>, first: Place<'_>| {
                let border = skeleton.check_unit_border(unit, last, first);
                border.map_err(|fault| Ended::FalseRoot { unit, what: fault.to_string() }.into())
            };
            let take = |name: &Namespace, key: &Key, value: &[u8]| each(name, key, value).map_err(EntriesError::Taker);
            let handed: Result<(), EntriesError<E>> =
                skeleton.unit_entries(unit, &body, hand_on(&mut last, border, take));
            if let Err(error) = handed {
                if matches!(error, EntriesError::Ended(_)) {
                    self.phase = Phase::Over;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes out the part that was fetched, with the proof that it is all of it.
    ///
    /// # Errors
    /// [`EntriesError`]; what is lost is forgotten and fetched again. [`EntriesError::Taker`] if it is larger than
    /// [`crate::library::EXTRACT_BYTES_MAX`].
    ///
    /// # Panics
    /// If all of the version is fetched.
    // spec: PEER-20
    pub fn part(&mut self) -> Result<Taken, EntriesError<TakeError>> {
        let part = self.part.clone().expect("a joiner of a part");
        let Phase::Building(jobs) = &self.phase else { return Err(EntriesError::Incomplete { missing: 0 }) };
        let staging = RefCell::new(&mut self.staging);
        let lost = RefCell::new(None);
        let fetch = |chunk: u32| {
            let mut raw = Vec::new();
            for unit in jobs.skeleton.chunk_units(chunk) {
                let body = staging.borrow_mut().read(&jobs.skeleton.unit(unit).name);
                match body {
                    Ok(Some(body)) => raw.extend_from_slice(&body),
                    other => {
                        lost.replace(Some(other.err()));
                        return Err(ReadError::damaged("a part that was staged"));
                    }
                }
            }
            Ok(raw)
        };
        let taken = take(&jobs.skeleton, &fetch, &part);
        match (taken, lost.into_inner()) {
            (Ok(taken), _) => Ok(taken),
            (Err(_), Some(None)) => Err(self.lost()),
            (Err(_), Some(Some(error))) => {
                self.phase = Phase::Over;
                Err(Ended::Disk(error).into())
            }
            (Err(error), None) => Err(EntriesError::Taker(error)),
        }
    }

    /// Goes back to fetching after units were lost on our own disk.
    fn lost<E>(&mut self) -> EntriesError<E> {
        let Phase::Building(jobs) = std::mem::replace(&mut self.phase, Phase::Over) else {
            unreachable!("only what is complete can lose something");
        };
        EntriesError::Incomplete { missing: self.fetch_missing(jobs.skeleton) }
    }

    /// Goes on with the units that are not staged. Returns how many there are.
    fn fetch_missing(&mut self, skeleton: Skeleton<H>) -> u32 {
        let batch_bytes_max = u64::from(self.settings.batch_bytes_max);
        let wanted = wanted(&skeleton, self.part.as_ref());
        let jobs = Jobs::new(skeleton, wanted, |name| self.staging.has(name), batch_bytes_max, &mut self.dice);
        let missing = jobs.missing();
        // Jobs have new numbers.
        for peer in self.peers.values_mut() {
            peer.forget_jobs();
        }
        self.phase = Phase::Units(jobs);
        missing
    }

    fn on_built(&mut self) -> Vec<Effect> {
        let Phase::Building(_) = self.phase else { return vec![] };
        self.phase = Phase::Over;
        // The store has it all now. What cannot be removed is in nobody's way: the next sync does it.
        let _ = self.staging.clear();
        vec![Effect::Switch(self.target)]
    }

    // spec: PEER-7
    fn on_answer(&mut self, now: Tick, peer: PeerId, id: u64, bytes: &[u8], out: &mut Vec<Effect>) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        self.meter.received_bytes += bytes.len() as u64;
        // Late: it was asked of another since. Slowness is no crime.
        let is_awaited = self.asked.get(&id).is_some_and(|asked| asked.peer == peer);
        let Some(asked) = is_awaited.then(|| self.take_back(id)).flatten() else { return };
        let frame = Frame::<Response>::from_bytes(bytes);
        match frame {
            Err(error) => self.on_lie(&asked, error.to_string(), out),
            Ok(frame) if frame.id != id => self.on_lie(&asked, "an answer to another question".to_owned(), out),
            Ok(Frame { body: Response::Busy { retry_after_ms }, .. }) => {
                let (timeout, window) = self.patience();
                self.give_back(&asked, false);
                let known = self.peers.get_mut(&peer).expect("it was there just now");
                known.is_busy(now, u64::from(retry_after_ms), timeout, window);
            }
            Ok(Frame { body: Response::Unavailable(why), .. }) => self.on_unavailable(now, &asked, why),
            Ok(Frame { body, .. }) => match (asked.subject, body) {
                (Subject::Status, Response::Status(status)) => self.on_status(now, &asked, status, out),
                (Subject::Page(page), Response::Nodes(wire)) => self.on_page(now, &asked, page, &wire, out),
                (Subject::Job(job), Response::Chunks { units, wire }) => {
                    self.on_units(now, &asked, job, units as usize, &wire, out);
                }
                _ => self.on_lie(&asked, "an answer to another question".to_owned(), out),
            },
        }
    }

    fn on_status(&mut self, now: Tick, asked: &Asked, status: Status, out: &mut Vec<Effect>) {
        let SnapshotParams { chain_id, hasher, chunk_weight_max } = &self.params;
        if (&status.chain_id, status.hasher, status.chunk_weight_max) != (chain_id, *hasher, *chunk_weight_max) {
            let text = |chain: &_, hasher, weight| format!("chain {chain} hashed with {hasher} in chunks of {weight}");
            let found = text(&status.chain_id, status.hasher, status.chunk_weight_max);
            let ours = text(chain_id, *hasher, *chunk_weight_max);
            return self.ban(asked.peer, Misconduct::OtherChain { found, ours }, out);
        }
        let known = self.peers.get_mut(&asked.peer).expect("it was there just now");
        known.says(status, now.0 - asked.since.0);
    }

    fn on_unavailable(&mut self, now: Tick, asked: &Asked, why: Why) {
        self.give_back(asked, true);
        let known = self.peers.get_mut(&asked.peer).expect("it was there just now");
        let is_its_right = match (why, asked.subject) {
            // It said that it has it. Once may be bad luck; one that says so again and again gives way to others.
            (Why::NotKept | Why::OtherRoot, Subject::Page(_) | Subject::Job(_)) => known.refuses(self.target),
            (_, Subject::Job(job)) => known.could_not_help(job, self.target),
            _ => false,
        };
        if !is_its_right {
            self.on_failure(now, asked.peer);
        }
    }

    fn on_page(&mut self, now: Tick, asked: &Asked, page: u32, wire: &[u8], out: &mut Vec<Effect>) {
        let Phase::Skeleton(skeleton) = &mut self.phase else { return };
        // Another peer was quicker.
        if page != skeleton.pages_done() || skeleton.is_complete() {
            return;
        }
        let before = skeleton.nodes_done();
        let raw = match unpack(wire, skeleton.chunk_bytes_max()) {
            Ok(raw) => raw,
            Err(error) => return self.on_lie(asked, error.to_string(), out),
        };
        match skeleton.add_page(&raw) {
            Ok(()) => {
                self.meter.nodes += skeleton.nodes_done() - before;
                self.on_help(now, asked, wire.len() as u64);
                if let Err(error) = self.staging.write_page(page, &raw) {
                    self.end(error.into(), out);
                }
            }
            Err(error @ PageError::Forged { .. }) => self.on_lie(asked, error.to_string(), out),
            Err(PageError::TooLarge(error)) => self.end(error.into(), out),
            Err(PageError::Counts { .. }) => unreachable!("nobody offered counts"),
        }
    }

    /// Proves units in memory, and only then writes them (spec: PEER-6).
    fn on_units(&mut self, now: Tick, asked: &Asked, job: JobId, count: usize, wire: &[u8], out: &mut Vec<Effect>) {
        let Phase::Units(jobs) = &mut self.phase else { return };
        if count == 0 {
            // spec: PEER-7. Nothing is a failed try, however politely it is said.
            self.give_back(asked, false);
            return self.on_failure(now, asked.peer);
        }
        let Some(units) = asked.units.get(..count) else {
            return self.on_lie(asked, format!("{count} units where {} were asked for", asked.units.len()), out);
        };
        // What was asked for bounds what is unpacked, not what the answer says.
        let raw_max: u64 = units.iter().map(|unit| jobs.skeleton.unit(*unit).bytes_max).sum();
        let raw_max = u32::try_from(raw_max).unwrap_or(u32::MAX).min(jobs.skeleton.chunk_bytes_max());
        let raw = match unpack(wire, raw_max) {
            Ok(raw) => raw,
            Err(error) => return self.on_lie(asked, error.to_string(), out),
        };
        let places = match jobs.skeleton.check_units(units, &raw) {
            Ok(places) => places,
            Err(error) => return self.on_lie(asked, error.to_string(), out),
        };
        let mut batch = Vec::new();
        let mut seen = BTreeSet::new();
        for (unit, place) in units.iter().zip(places) {
            let name = jobs.skeleton.unit(*unit).name;
            // Two places of one version can have equal units; they are staged once.
            if !self.staging.has(&name) && seen.insert(name) {
                batch.push((name, &raw[place]));
            }
        }
        if !batch.is_empty()
            && let Err(error) = self.staging.write(&batch)
        {
            return self.end(error.into(), out);
        }
        for unit in units {
            if jobs.found(*unit) {
                let totals = jobs.skeleton.unit(*unit).totals;
                self.meter.nodes += 2 * totals.count - 1;
                self.meter.bytes += totals.bytes;
            }
        }
        jobs.answered(job);
        self.on_help(now, asked, wire.len() as u64);
    }

    fn on_help(&mut self, now: Tick, asked: &Asked, bytes: u64) {
        self.proven_at = now;
        let window_max = u64::from(self.settings.concurrent_requests_max) * u64::from(self.settings.batch_bytes_max);
        if let Some(peer) = self.peers.get_mut(&asked.peer) {
            peer.helped(now, asked.since, bytes, window_max);
            peer.gives(self.target);
        }
    }

    fn on_failure(&mut self, now: Tick, peer: PeerId) {
        let (timeout, window) = self.patience();
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.failed(now, timeout, window);
        }
    }

    // spec: PEER-7
    fn on_lie(&mut self, asked: &Asked, what: String, out: &mut Vec<Effect>) {
        self.give_back(asked, false);
        let (_, window) = self.patience();
        let Some(peer) = self.peers.get_mut(&asked.peer) else { return };
        if peer.lied(window) {
            let last = what.chars().take(200).collect();
            let times = super::standing::BAD_ANSWERS_MAX;
            self.ban(asked.peer, Misconduct::FalseAnswers { times, last }, out);
        }
    }

    fn ban(&mut self, peer: PeerId, why: Misconduct, out: &mut Vec<Effect>) {
        self.forget_peer(peer);
        self.banned.insert(peer);
        out.push(Effect::Ban(peer, why));
    }

    fn meet(&mut self, peer: PeerId, new: impl FnOnce(u64) -> Peer) {
        if self.peers.len() < PEERS_MAX && !self.banned.contains(&peer) {
            let window = u64::from(self.settings.batch_bytes_max);
            let met = self.peers.entry(peer).or_insert_with(|| new(window));
            if !self.staging.is_empty() {
                // It may be who gave that, and keep the version for us below what it says of itself (spec: PEER-2).
                met.gives(self.target);
            }
        }
    }

    fn forget_peer(&mut self, peer: PeerId) {
        let ids: Vec<u64> = self.asked.iter().filter(|(_, asked)| asked.peer == peer).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(asked) = self.take_back(id) {
                self.give_back(&asked, false);
            }
        }
        self.peers.remove(&peer);
    }

    fn end(&mut self, why: Ended, out: &mut Vec<Effect>) {
        self.phase = Phase::Over;
        out.push(Effect::End(why));
    }

    /// How long an answer may take, and the least that a window shrinks to.
    fn patience(&self) -> (u64, u64) {
        (u64::from(self.settings.request_timeout_ms), u64::from(self.settings.batch_bytes_max) / 8)
    }

    /// Takes a request off the list.
    fn take_back(&mut self, id: u64) -> Option<Asked> {
        let asked = self.asked.remove(&id)?;
        if let Some(peer) = self.peers.get_mut(&asked.peer) {
            peer.requests -= 1;
            peer.parts -= u32::from(asked.subject != Subject::Status);
            peer.bytes_asked -= asked.bytes;
        }
        Some(asked)
    }

    /// What was asked for waits again.
    fn give_back(&mut self, asked: &Asked, refused: bool) {
        if let (Phase::Units(jobs), Subject::Job(job)) = (&mut self.phase, asked.subject) {
            jobs.give_back(job, refused);
        }
    }

    /// What time brings, and then whatever there is to ask.
    fn go_on(&mut self, now: Tick, out: &mut Vec<Effect>) {
        self.meter.sample(now);
        self.give_up_overdue(now);
        if let Err(error) = self.follow_target(now).and_then(|()| self.turn_page()) {
            self.end(error.into(), out);
        }
        match &self.phase {
            Phase::Units(jobs) if jobs.is_complete() => {
                let Phase::Units(jobs) = std::mem::replace(&mut self.phase, Phase::Over) else { return };
                self.phase = Phase::Building(jobs);
                self.own_since = Some(now);
                self.give_up_all();
                out.push(Effect::Build(self.target));
            }
            Phase::Skeleton(_) | Phase::Units(_) => {
                let for_ms = now.0 - self.proven_at.0;
                if for_ms >= u64::from(self.settings.stall_timeout_ms) {
                    let peers = u32::try_from(self.peers.len()).expect("peers are limited");
                    return self.end(Ended::Stalled { for_ms, peers }, out);
                }
                self.ask_statuses(now, out);
                self.ask_parts(now, out);
                self.seek(now, out);
            }
            Phase::Building(_) | Phase::Over => {}
        }
    }

    fn give_up_overdue(&mut self, now: Tick) {
        let overdue: Vec<u64> = self.asked.iter().filter(|(_, asked)| asked.until <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            if let Some(asked) = self.take_back(id) {
                self.give_back(&asked, false);
                self.on_failure(now, asked.peer);
            }
        }
    }

    fn give_up_all(&mut self) {
        let ids: Vec<u64> = self.asked.keys().copied().collect();
        for id in ids {
            self.take_back(id);
        }
    }

    /// Goes over to the newest version if the one at hand is served by nobody any more, or was kept to for too long
    /// (spec: PEER-8).
    fn follow_target(&mut self, now: Tick) -> Result<(), StagingError> {
        let fetching = matches!(self.phase, Phase::Skeleton(_) | Phase::Units(_));
        if !fetching || self.newest.height <= self.target.height {
            return Ok(());
        }
        let counted_on = |version: &Version| {
            let retries_max = self.settings.retries_max;
            self.peers.values().any(|peer| peer.is_counted_on(retries_max) && peer.claims(version))
        };
        let frozen_for = now.0 - self.frozen_since.0;
        let is_thawed = frozen_for >= u64::from(self.settings.freeze_ms_max);
        if counted_on(&self.newest) && (is_thawed || !counted_on(&self.target)) {
            self.give_up_all();
            self.target = self.newest;
            self.frozen_since = now;
            self.phase = Phase::Skeleton(Skeleton::without_offer(self.target.root, &self.params));
            self.staging.forget_pages(0)?;
        }
        Ok(())
    }

    /// Once the skeleton is whole: looks which units are staged already, and makes jobs of the rest.
    fn turn_page(&mut self) -> Result<(), StagingError> {
        if !matches!(&self.phase, Phase::Skeleton(skeleton) if skeleton.is_complete()) {
            return Ok(());
        }
        let Phase::Skeleton(skeleton) = std::mem::replace(&mut self.phase, Phase::Over) else { return Ok(()) };
        let mut names = BTreeSet::new();
        for unit in units_of(&skeleton, &wanted(&skeleton, self.part.as_ref())) {
            let name = skeleton.unit(unit).name;
            names.insert(name);
            // spec: PEER-9. What a crash left is proven again.
            if !self.staging.is_proven(&name)
                && let Some(body) = self.staging.read(&name)?
            {
                self.own_since = Some(self.stepped);
                if skeleton.check_units(&[unit], &body).is_err() {
                    self.staging.forget_unit(&name)?;
                }
            }
        }
        self.staging.keep(|name| names.contains(name))?;
        self.fetch_missing(skeleton);
        Ok(())
    }

    /// When to ask a peer again where it stands: sooner if it does not have what we want.
    fn status_due(&self, peer: &Peer) -> Tick {
        let again_ms = STATUS_TIMEOUTS * u64::from(self.settings.request_timeout_ms);
        let again_ms = if peer.claims(&self.target) { again_ms } else { again_ms / 8 };
        peer.status_asked.map_or(Tick(0), |asked| Tick(asked.0 + again_ms))
    }

    fn ask_statuses(&mut self, now: Tick, out: &mut Vec<Effect>) {
        let due = self.peers.iter().filter(|(_, peer)| peer.is_ready(now) && self.status_due(peer) <= now);
        let due: Vec<PeerId> = due.map(|(id, _)| *id).collect();
        for peer in due {
            self.peers.get_mut(&peer).expect("it was there just now").status_asked = Some(now);
            self.ask(now, peer, Subject::Status, Vec::new(), 0, Request::Status, out);
        }
    }

    /// The peers that can be asked about the target now and may help, best first.
    fn ready(&self, now: Tick, may_help: impl Fn(&Peer) -> bool) -> Vec<PeerId> {
        let of_use = self.peers.iter().filter(|(_, peer)| peer.claims(&self.target));
        let mut ready: Vec<(PeerId, _)> = of_use.map(|(id, peer)| (*id, peer.rank())).collect();
        ready.sort_by_key(|(_, rank)| std::cmp::Reverse(*rank));
        // Those that are silent for a while, or have nothing of what is wanted, give their place to others.
        let can = |id: &PeerId| self.peers[id].is_ready(now) && may_help(&self.peers[id]);
        let ready = ready.into_iter().map(|(id, _)| id).filter(can);
        ready.take(self.settings.peer_count_target.max(1) as usize).collect()
    }

    /// After how long another peer is asked for a page too: some times what the quickest usually takes, since all else
    /// waits for it (spec: PEER-5).
    fn page_hedge_ms(&self) -> u64 {
        let usual = |peer: &Peer| if peer.latency_ms > 0 { peer.latency_ms } else { peer.reply_ms };
        self.hedge_after(self.peers.values().map(usual).filter(|usual| *usual > 0).min())
    }

    /// The same for units: some times what they usually take. Much of that is waiting, for each other and for us, so it is
    /// the usual peer that counts and not the quickest: whatever is asked of a second one comes twice.
    fn job_hedge_ms(&self) -> u64 {
        let mut usual: Vec<u64> = self.peers.values().map(|peer| peer.latency_ms).filter(|usual| *usual > 0).collect();
        usual.sort_unstable();
        self.hedge_after(usual.get(usual.len().saturating_sub(1) / 2).copied())
    }

    fn hedge_after(&self, usual_ms: Option<u64>) -> u64 {
        let most = u64::from(self.settings.request_timeout_ms) / 2;
        usual_ms.map_or(most, |usual| (usual * HEDGE_TIMES).clamp(1, most.max(1)))
    }

    // spec: PEER-5
    fn ask_parts(&mut self, now: Tick, out: &mut Vec<Effect>) {
        loop {
            // Whoever does not say where it stands holds up nobody else.
            let parts = self.asked.values().filter(|asked| asked.subject != Subject::Status).count();
            if parts >= self.settings.concurrent_requests_max as usize {
                return;
            }
            let next = match &self.phase {
                Phase::Skeleton(skeleton) => self.next_page(now, skeleton.pages_done()),
                Phase::Units(jobs) => self.next_job(now, jobs, parts).or_else(|| self.next_hedge(now, jobs)),
                Phase::Building(_) | Phase::Over => None,
            };
            let Some((peer, subject)) = next else { return };
            match (subject, &mut self.phase) {
                (Subject::Job(id), Phase::Units(jobs)) => {
                    let bytes_max =
                        self.peers[&peer].request_bytes(self.settings.batch_bytes_max.into(), jobs.total().bytes);
                    let id = jobs.take(id, bytes_max);
                    let (subject, job) = (Subject::Job(id), jobs.ask(id));
                    let (units, bytes) = (job.units.clone(), job.bytes_max);
                    let set = BoundedSet::new(units.iter().copied()).expect("a job has no more units");
                    let request = Request::GetChunks { at: self.target, units: set };
                    self.ask(now, peer, subject, units, bytes, request, out);
                }
                (Subject::Page(page), _) => {
                    let request = Request::GetNodes { at: self.target, page };
                    self.ask(now, peer, subject, Vec::new(), 0, request, out);
                }
                _ => return,
            }
        }
    }

    /// Whom to ask for a page: somebody, and after a while somebody else too.
    fn next_page(&self, now: Tick, page: u32) -> Option<(PeerId, Subject)> {
        let subject = Subject::Page(page);
        let asked: Vec<&Asked> = self.asked.values().filter(|asked| asked.subject == subject).collect();
        let hedge = self.page_hedge_ms();
        if asked.len() >= 2 || asked.iter().any(|asked| now.0 < asked.since.0 + hedge) {
            return None;
        }
        let peer = self.ready(now, |_| true).into_iter().find(|peer| asked.iter().all(|asked| asked.peer != *peer))?;
        Some((peer, subject))
    }

    /// The next job, for the peer that has the least to do of those that can take one. More is under way than the links need
    /// only as long as it is next to nothing.
    fn next_job(&self, now: Tick, jobs: &Jobs<H>, parts: usize) -> Option<(PeerId, Subject)> {
        let job_for = |peer: &Peer| jobs.waiting(peer.gives_whole_chunks).find(|job| peer.may_help(*job));
        let mut ready = self.ready(now, |peer| job_for(peer).is_some());
        ready.sort_by_key(|peer| self.peers[peer].requests);
        ready.into_iter().find_map(|id| {
            let peer = &self.peers[&id];
            if peer.parts >= peer.parts_max() && parts >= PARTS_LEAST {
                return None;
            }
            let job = job_for(peer)?;
            let bytes_max = peer.request_bytes(self.settings.batch_bytes_max.into(), jobs.total().bytes);
            let bytes = jobs.job(job)?.bytes_max.min(bytes_max);
            peer.has_room(bytes).then_some((id, Subject::Job(job)))
        })
    }

    /// Nothing waits any more: what takes long is asked of another peer too.
    fn next_hedge(&self, now: Tick, jobs: &Jobs<H>) -> Option<(PeerId, Subject)> {
        if jobs.waiting(false).next().is_some() {
            return None;
        }
        let hedge = self.job_hedge_ms();
        self.asked.values().filter(|asked| asked.since.0 + hedge <= now.0).find_map(|asked| {
            let Subject::Job(id) = asked.subject else { return None };
            if !jobs.may_double(id) {
                return None;
            }
            let mut ready = self.ready(now, |peer| peer.may_help(id)).into_iter();
            Some((ready.find(|peer| *peer != asked.peer)?, asked.subject))
        })
    }

    #[expect(clippy::too_many_arguments, reason = "they are what a request is")]
    fn ask(
        &mut self,
        now: Tick,
        peer: PeerId,
        subject: Subject,
        units: Vec<u32>,
        bytes: u64,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        let until = Tick(now.0 + u64::from(self.settings.request_timeout_ms));
        self.asked.insert(id, Asked { peer, subject, since: now, until, bytes, units });
        let known = self.peers.get_mut(&peer).expect("only those that are there are asked");
        known.requests += 1;
        known.parts += u32::from(subject != Subject::Status);
        known.bytes_asked += bytes;
        out.push(Effect::Ask(peer, Frame { id, body: request }));
    }

    /// Says how many more peers are wanted, when that changes or a timeout has passed.
    fn seek(&mut self, now: Tick, out: &mut Vec<Effect>) {
        let retries_max = self.settings.retries_max;
        let of_use =
            |peer: &&Peer| peer.is_counted_on(retries_max) && (peer.status.is_none() || peer.claims(&self.target));
        let found = u32::try_from(self.peers.values().filter(of_use).count()).expect("peers are limited");
        let wanted = self.settings.peer_count_target.saturating_sub(found);
        let again_at = |since: Tick| since.0 + u64::from(self.settings.request_timeout_ms);
        if self.sought.is_some_and(|(since, count)| count == wanted && now.0 < again_at(since)) {
            return;
        }
        self.sought = Some((now, wanted));
        if wanted > 0 {
            out.push(Effect::Seek(wanted));
        }
    }
}

/// Goes on with the pages that a life before left, as far as they are of this version.
// spec: PEER-9
fn proven_pages<H: Hasher>(staging: &Staging, mut skeleton: Skeleton<H>) -> Result<Skeleton<H>, StagingError> {
    while !skeleton.is_complete() {
        let (page, bytes_max) = (skeleton.pages_done(), skeleton.chunk_bytes_max());
        let is_of_it = staging.page(page, bytes_max)?.is_some_and(|raw| skeleton.add_page(&raw).is_ok());
        if !is_of_it {
            staging.forget_pages(page)?;
            break;
        }
    }
    Ok(skeleton)
}

/// The chunks that are wanted of a version: all that hold entries, or a part.
fn wanted<H: Hasher>(skeleton: &Skeleton<H>, part: Option<&PartOf>) -> Range<u32> {
    part.map_or_else(|| skeleton.pages()..skeleton.chunks(), |part| skeleton.chunks_of(part))
}

impl<H> fmt::Debug for Joiner<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joiner").field("target", &self.target).field("newest", &self.newest).finish_non_exhaustive()
    }
}
