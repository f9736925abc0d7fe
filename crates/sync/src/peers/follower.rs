//! Keeping up with a chain whose blocks others make: which heights are missing, what is certified of each, and what each
//! changed.
//!
//! The caller says up to which version, whose height and root are certified. Under that root peers prove the records of the
//! heights below, and each record says which root the state had before its block. So of every height it is known what it
//! must come to before anything of it is used. What it changed comes as a diff, or as the block that is to be run;
//! whoever takes it in compares the root, and only when it is durable the next one is handed out. Events come in, effects
//! go out, and there is no clock but the one passed in.
//!
//! Rules: `spec/peers.md`, PEER-15; `spec/snapshot.md`, SNAP-11.

use super::standing::{BAD_ANSWERS_MAX, Peer};
use super::{Frame, Heights, Misconduct, PeerId, Request, Response, Status, Tick, Version, header_query};
use crate::snapshot::SnapshotParams;
use keelstone_codec::{Decode as _, Height, Root};
use keelstone_ledger::{Block, BlockRecord, Certified};
use keelstone_tree::{Blake3, Diff, HashKind, Hasher, Proof, ProofLimits, Query, RangeAnswer, Sha256, Verified};
use std::collections::{BTreeMap, BTreeSet};

/// Records that are known ahead, about.
pub(super) const RECORDS_MAX: usize = 1024;
/// Heights whose changes are held ahead, at most.
pub(super) const AHEAD_MAX: u64 = 1024;
/// Bytes of changes that are held ahead; above it nothing more is asked for but the next height, alone.
pub(super) const AHEAD_BYTES_MAX: u64 = 8 << 20;
/// Peers that are known at once.
pub(super) const PEERS_MAX: usize = 256;
/// So many questions in a row without an answer, and a peer is not counted on (spec: PEER-7).
const UNANSWERED_MAX: u32 = 3;
/// A request is asked of a second peer too after this part of the time it may take.
const HEDGE_PART: u64 = 8;
/// How often a peer is asked anew where it stands, in request timeouts.
const STATUS_TIMEOUTS: u64 = 4;

/// How heights are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// What each changed, without its block.
    Diffs,
    /// The block, which is run; what each changed where no peer has the block any more.
    Blocks,
}

/// What happened.
#[derive(Debug)]
pub enum FollowEvent<'a> {
    /// Nothing but that time passed.
    Tick,
    /// A peer can be asked from now on.
    Connected(PeerId),
    /// A peer cannot be asked any more.
    Gone(PeerId),
    /// A peer sent a frame in answer to the request of this number.
    Answered(PeerId, u64, &'a [u8]),
    /// There will be no answer to the request of this number.
    Failed(PeerId, u64),
    /// A later version is certified.
    Target(Version),
    /// The height that was handed out is durable.
    Taken,
    /// What was handed out is not what its height is certified to have changed. Nothing of it was used.
    Refused(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowEffect {
    /// Send a peer a request.
    Ask(PeerId, Frame<Request>),
    /// Have nothing to do with a peer any more, also over restarts.
    Ban(PeerId, Misconduct),
    /// Take in the next height and say [`FollowEvent::Taken`] or [`FollowEvent::Refused`].
    Take(Box<Step>),
    /// The state here is not the chain's. Nothing more is handed out.
    Stop(Diverged),
}

/// The next height.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is certified of it.
    pub certified: Certified,
    /// What changed it.
    pub change: Change,
}

/// What changed a height. A claim, but that it is the block its record names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it has no record.
    Nothing,
    /// What it changed.
    Diff(Diff),
    /// The block that changed it.
    Block(Block),
}

/// The state here is not the one that is certified. Somebody has to find out why before anything is built on either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Diverged {
    /// Another root is certified.
    #[error("height {height} is certified with root {certified}, this node has {own}")]
    Root {
        /// The height.
        height: Height,
        /// The root that is certified.
        certified: Root,
        /// The one here.
        own: Root,
    },
    /// The certified state has a record that is none.
    #[error("the record of height {height} under root {root} is none: {what}")]
    Record {
        /// The height.
        height: Height,
        /// The root it stands under.
        root: Root,
        /// What is wrong.
        what: String,
    },
}

/// A height that no peer has any more: nothing leads from here to the target but a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The height that is missing.
    pub missing: Height,
    /// The first height whose diff some peer says it has.
    pub kept_from: Height,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Status,
    Records,
    Diffs,
    Blocks,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    peer: PeerId,
    subject: Subject,
    /// Of records, under which version.
    at: Version,
    /// None for a status.
    heights: Option<Heights>,
    since: Tick,
}

/// What we know of a peer.
#[derive(Debug, Default)]
struct Known {
    standing: Peer,
    /// When its status came; none while it has to be asked for.
    told: Option<Tick>,
    /// Whether the status that is asked for is to explain what it does not have.
    explains: bool,
    /// The version under which it could not prove records.
    no_version: Option<Version>,
    /// The height whose diff it does not have.
    no_diff: Option<Height>,
    /// The height whose block it does not have.
    no_block: Option<Height>,
    /// How often in a row it did not say where it stands.
    silences: u32,
    /// Questions about heights in a row that it did not answer.
    unanswered: u32,
}

impl Known {
    /// Whether what it may have is waited for. One that has failed is asked all the same, and counts again once it answers.
    fn is_counted_on(&self) -> bool {
        self.silences.max(self.unanswered) < UNANSWERED_MAX
    }

    fn failed(&mut self, now: Tick, subject: Subject, timeout_ms: u64) {
        self.standing.failed(now, timeout_ms, 0);
        self.did_not_answer(subject);
    }

    fn did_not_answer(&mut self, subject: Subject) {
        let count = if subject == Subject::Status { &mut self.silences } else { &mut self.unanswered };
        *count = count.saturating_add(1);
    }

    fn is_behind(&self, height: Height) -> bool {
        self.standing.status.as_ref().is_some_and(|status| status.newest.height < height)
    }

    fn lacks_diff(&self, height: Height) -> bool {
        self.no_diff == Some(height) || self.standing.status.as_ref().is_some_and(|status| status.diffs_from > height)
    }
}

/// Follows a chain. In memory are some thousand records at most, and some megabytes of changes.
#[derive(Debug)]
pub struct Follower {
    params: SnapshotParams,
    manner: Manner,
    timeout_ms: u64,
    /// What is durable here.
    own: Version,
    /// The newest version that is certified.
    target: Version,
    /// Up to which height records are known.
    scanned: Height,
    records: BTreeMap<Height, BlockRecord>,
    /// What changed heights, and who says so.
    changes: BTreeMap<Height, (PeerId, Change, u64)>,
    /// What was handed out, and who sent it.
    taking: Option<(Version, Option<PeerId>)>,
    peers: BTreeMap<PeerId, Known>,
    banned: BTreeSet<PeerId>,
    asked: BTreeMap<u64, Asked>,
    next_id: u64,
    is_over: bool,
}

impl Follower {
    /// Begins where the state here stands. A request may take `request_timeout_ms`.
    #[must_use]
    pub fn new(params: SnapshotParams, manner: Manner, own: Version, request_timeout_ms: u32) -> Self {
        Self {
            params,
            manner,
            timeout_ms: u64::from(request_timeout_ms),
            own,
            target: own,
            scanned: own.height,
            records: BTreeMap::new(),
            changes: BTreeMap::new(),
            taking: None,
            peers: BTreeMap::new(),
            banned: BTreeSet::new(),
            asked: BTreeMap::new(),
            next_id: 0,
            is_over: false,
        }
    }

    /// What is durable here, as it was told.
    #[must_use]
    pub fn own(&self) -> Version {
        self.own
    }

    /// The newest version that is certified.
    #[must_use]
    pub fn target(&self) -> Version {
        self.target
    }

    /// What no peer has any more, if every one that could have it says so.
    // spec: PEER-15
    #[must_use]
    pub fn gap(&self) -> Option<Gap> {
        let missing = self.own.height.next();
        if self.target.height < missing || self.changes.contains_key(&missing) || self.is_empty(missing) {
            return None;
        }
        let mut kept_from = None;
        for known in self.peers.values().filter(|known| known.is_counted_on()) {
            let status = known.standing.status.as_ref()?;
            if known.is_behind(missing) {
                continue;
            }
            let lacks_block = self.manner == Manner::Diffs || known.no_block == Some(missing);
            if !known.lacks_diff(missing) || !lacks_block {
                return None;
            }
            kept_from = Some(kept_from.map_or(status.diffs_from, |from: Height| from.min(status.diffs_from)));
        }
        Some(Gap { missing, kept_from: kept_from? })
    }

    /// Takes in one event and says what should happen next. `now` never goes back.
    pub fn step(&mut self, now: Tick, event: FollowEvent<'_>) -> Vec<FollowEffect> {
        let mut out = Vec::new();
        if self.is_over {
            return out;
        }
        match event {
            FollowEvent::Tick => {}
            FollowEvent::Connected(peer) => {
                if self.peers.len() < PEERS_MAX && !self.banned.contains(&peer) {
                    self.peers.entry(peer).or_default();
                }
            }
            FollowEvent::Gone(peer) => self.forget(peer),
            FollowEvent::Answered(peer, id, frame) => self.on_answer(now, peer, id, frame, &mut out),
            FollowEvent::Failed(peer, id) => {
                if let Some(asked) = self.asked.remove(&id).filter(|asked| asked.peer == peer) {
                    self.failed(now, peer, asked.subject);
                }
            }
            FollowEvent::Target(version) => self.on_target(version),
            FollowEvent::Taken => {
                if let Some((version, _)) = self.taking.take() {
                    self.own = version;
                    self.scanned = self.scanned.max(version.height);
                    self.records = self.records.split_off(&version.height.next());
                    self.changes = self.changes.split_off(&version.height.next());
                }
            }
            FollowEvent::Refused(what) => {
                if let Some((_, Some(peer))) = self.taking {
                    self.taking = None;
                    self.lied(peer, what, &mut out);
                }
            }
        }
        self.go_on(now, &mut out);
        out
    }

    fn on_target(&mut self, version: Version) {
        if version.height > self.target.height {
            self.target = version;
            // Whoever was behind may have it by now.
            for known in self.peers.values_mut() {
                (known.no_version, known.no_diff, known.no_block) = (None, None, None);
            }
        }
    }

    fn forget(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
        self.asked.retain(|_, asked| asked.peer != peer);
    }

    fn failed(&mut self, now: Tick, peer: PeerId, subject: Subject) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.failed(now, subject, self.timeout_ms);
        }
    }

    // spec: PEER-7
    fn lied(&mut self, peer: PeerId, last: String, out: &mut Vec<FollowEffect>) {
        self.changes.retain(|_, (from, ..)| *from != peer);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.standing.lied(0) {
            self.ban(peer, Misconduct::FalseAnswers { times: BAD_ANSWERS_MAX, last }, out);
        }
    }

    fn ban(&mut self, peer: PeerId, why: Misconduct, out: &mut Vec<FollowEffect>) {
        self.forget(peer);
        self.banned.insert(peer);
        out.push(FollowEffect::Ban(peer, why));
    }

    /// Whether it is known that a height changed nothing.
    fn is_empty(&self, height: Height) -> bool {
        height <= self.scanned && !self.records.contains_key(&height)
    }

    /// The root the state has after a height, which is not below our own; none if it is not known yet. Between two records
    /// it stays as it is (spec: LEDGER-3).
    fn root_after(&self, height: Height) -> Option<Root> {
        match self.records.range(height.next()..).next() {
            Some((_, later)) => Some(later.previous_root),
            None => (self.scanned.max(height) == self.target.height).then_some(self.target.root),
        }
    }

    // ---- answers

    fn on_answer(&mut self, now: Tick, peer: PeerId, id: u64, frame: &[u8], out: &mut Vec<FollowEffect>) {
        // Late: it was asked of another since. Slowness is no crime.
        let Some(asked) = self.asked.get(&id).copied().filter(|asked| asked.peer == peer) else { return };
        self.asked.remove(&id);
        let taken = match Frame::<Response>::from_bytes(frame) {
            Ok(frame) if frame.id == id => self.take_in(now, &asked, frame.body, out),
            Ok(_) => Err("an answer to another question".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match taken {
            Ok(true) => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.standing.helped(now, asked.since, frame.len() as u64, u64::MAX >> 1);
                    let count =
                        if asked.subject == Subject::Status { &mut known.silences } else { &mut known.unanswered };
                    *count = 0;
                }
            }
            Ok(false) => {}
            Err(what) => self.lied(peer, what, out),
        }
    }

    /// Says whether it was of use; or what about it cannot be true.
    fn take_in(
        &mut self,
        now: Tick,
        asked: &Asked,
        response: Response,
        out: &mut Vec<FollowEffect>,
    ) -> Result<bool, String> {
        let timeout_ms = self.timeout_ms;
        let Some(known) = self.peers.get_mut(&asked.peer) else { return Ok(false) };
        match (asked.subject, asked.heights, response) {
            (subject, _, Response::Busy { retry_after_ms }) => {
                let before = known.standing.failures;
                known.standing.is_busy(now, u64::from(retry_after_ms), timeout_ms, 0);
                if known.standing.failures > before {
                    known.did_not_answer(subject);
                }
                Ok(false)
            }
            (subject, heights, Response::Unavailable(_)) => {
                let first = heights.map(Heights::first);
                match subject {
                    Subject::Status => known.failed(now, subject, timeout_ms),
                    Subject::Records => known.no_version = Some(asked.at),
                    Subject::Diffs => known.no_diff = first,
                    Subject::Blocks => known.no_block = first,
                }
                if subject != Subject::Status {
                    known.unanswered = 0;
                }
                (known.told, known.explains) = (None, true);
                Ok(false)
            }
            (Subject::Status, _, Response::Status(status)) => {
                self.on_status(now, asked.peer, status, out);
                Ok(true)
            }
            (Subject::Records, Some(heights), Response::Header(proof)) => {
                self.on_records(asked.at, heights, &proof, out)?;
                Ok(true)
            }
            (Subject::Diffs, Some(heights), Response::Diffs(diffs)) => {
                let mut changes = Vec::new();
                for found in diffs.into_vec() {
                    let bytes = found.diff.bytes();
                    changes.push((found.height, Change::Diff(found.diff), bytes));
                }
                self.on_changes(now, asked, heights, changes)
            }
            (Subject::Blocks, Some(heights), Response::Blocks(blocks)) => {
                let mut changes = Vec::new();
                for bytes in blocks.into_vec() {
                    let block = Block::from_bytes(&bytes).map_err(|error| format!("a block that is none: {error}"))?;
                    changes.push((block.height, Change::Block(block), bytes.len() as u64));
                }
                self.on_changes(now, asked, heights, changes)
            }
            _ => Err("an answer to another question".to_owned()),
        }
    }

    fn on_status(&mut self, now: Tick, peer: PeerId, status: Status, out: &mut Vec<FollowEffect>) {
        let text =
            |chain: &dyn std::fmt::Display, hasher: HashKind, weight: u32| format!("{chain}, {hasher}, W {weight}");
        let found = text(&status.chain_id, status.hasher, status.chunk_weight_max);
        let ours = text(&self.params.chain_id, self.params.hasher, self.params.chunk_weight_max);
        if found != ours {
            return self.ban(peer, Misconduct::OtherChain { found, ours }, out);
        }
        let missing = self.own.height.next();
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let was_behind = known.is_behind(missing);
        known.standing.status = Some(status);
        known.told = Some(now);
        // What it said it lacks it lacks, if it has come that far. Else it is asked again once it has.
        if !known.explains || (was_behind && !known.is_behind(missing)) {
            (known.no_version, known.no_diff, known.no_block) = (None, None, None);
        }
        known.explains = false;
    }

    // spec: SNAP-11, LEDGER-2
    fn on_records(
        &mut self,
        at: Version,
        heights: Heights,
        proof: &[u8],
        out: &mut Vec<FollowEffect>,
    ) -> Result<(), String> {
        let found = match self.params.hasher {
            HashKind::Blake3 => records::<Blake3>(at, heights, proof)?,
            HashKind::Sha256 => records::<Sha256>(at, heights, proof)?,
        };
        if heights.first() != self.scanned.next() {
            return Ok(()); // Another answer came before.
        }
        for (height, record) in found {
            match record {
                Ok(record) => drop(self.records.insert(height, record)),
                Err(what) => {
                    self.stop(Diverged::Record { height, root: at.root, what }, out);
                    return Ok(());
                }
            }
        }
        self.scanned = heights.last();
        Ok(())
    }

    /// Changes of the first of the heights that were asked for, without a gap (spec: PEER-4).
    fn on_changes(
        &mut self,
        now: Tick,
        asked: &Asked,
        heights: Heights,
        changes: Vec<(Height, Change, u64)>,
    ) -> Result<bool, String> {
        let mut expected = heights.first();
        if changes.is_empty() {
            self.failed(now, asked.peer, asked.subject);
            return Ok(false);
        }
        for (height, change, bytes) in changes {
            if height != expected || height > heights.last() {
                return Err(format!("height {height} in the place of {expected}"));
            }
            expected = height.next();
            if height > self.own.height && !self.changes.contains_key(&height) {
                self.changes.insert(height, (asked.peer, change, bytes));
            }
        }
        Ok(true)
    }

    // ---- what is next

    fn stop(&mut self, why: Diverged, out: &mut Vec<FollowEffect>) {
        self.is_over = true;
        out.push(FollowEffect::Stop(why));
    }

    fn go_on(&mut self, now: Tick, out: &mut Vec<FollowEffect>) {
        if self.is_over {
            return;
        }
        let is_late = |asked: &Asked| now.0.saturating_sub(asked.since.0) >= self.timeout_ms;
        let late: Vec<u64> = self.asked.iter().filter(|(_, asked)| is_late(asked)).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(asked) = self.asked.remove(&id) {
                self.failed(now, asked.peer, asked.subject);
            }
        }
        let own = self.own;
        if let Some(certified) = self.root_after(own.height).filter(|root| *root != own.root) {
            return self.stop(Diverged::Root { height: own.height, certified, own: own.root }, out);
        }
        self.hand_out(out);
        self.ask_statuses(now, out);
        if self.target.height <= self.own.height {
            return;
        }
        if self.scanned < self.target.height
            && (self.records.len() < RECORDS_MAX || self.root_after(self.own.height.next()).is_none())
        {
            let heights = Heights::new(self.scanned.next(), self.target.height).expect("it is below the target");
            self.ask(now, Subject::Records, heights, out);
        }
        if let Some(heights) = self.missing() {
            let first = heights.first();
            let subject = match self.manner {
                Manner::Blocks if !self.nobody_has_block(first) => Subject::Blocks,
                Manner::Blocks | Manner::Diffs => Subject::Diffs,
            };
            self.ask(now, subject, heights, out);
        }
    }

    /// Hands out the next height, if all that is needed is known.
    fn hand_out(&mut self, out: &mut Vec<FollowEffect>) {
        let height = self.own.height.next();
        if self.taking.is_some() || height > self.scanned || height > self.target.height {
            return;
        }
        let Some(root) = self.root_after(height) else { return };
        let record = self.records.get(&height).cloned();
        let (from, change) = match (&record, self.changes.get(&height)) {
            (None, _) => (None, Change::Nothing),
            (Some(_), None) => return,
            (Some(record), Some((peer, Change::Block(block), _))) if !record.is_of(block) => {
                let what = format!("another block {height} than its record names");
                return self.lied(*peer, what, out);
            }
            (Some(_), Some((peer, change, _))) => (Some(*peer), change.clone()),
        };
        self.taking = Some((Version { height, root }, from));
        out.push(FollowEffect::Take(Box::new(Step { certified: Certified { height, record, root }, change })));
    }

    /// The first heights of which it is not known what changed them.
    fn missing(&self) -> Option<Heights> {
        let last = self.target.height.0.min(self.own.height.0.saturating_add(AHEAD_MAX));
        let is_missing = |height: &Height| !self.changes.contains_key(height) && !self.is_empty(*height);
        let first = (self.own.height.0 + 1..=last).map(Height).find(is_missing)?;
        let bytes: u64 = self.changes.values().map(|(_, _, bytes)| bytes).sum();
        let last = match bytes < AHEAD_BYTES_MAX {
            true => (first.0..=last).map(Height).take_while(is_missing).last()?,
            // What came of it was thrown away, and without it nothing of what is held is ever taken in.
            false if first == self.own.height.next() => first,
            false => return None,
        };
        Heights::new(first, last)
    }

    /// Whether every peer that is counted on and has come to a height says that it does not have its block, and there is
    /// one.
    fn nobody_has_block(&self, height: Height) -> bool {
        let is_there = |known: &&Known| known.is_counted_on() && !known.is_behind(height);
        let mut there = self.peers.values().filter(is_there).peekable();
        there.peek().is_some() && there.all(|known| known.no_block == Some(height))
    }

    // spec: PEER-5
    fn ask(&mut self, now: Tick, subject: Subject, heights: Heights, out: &mut Vec<FollowEffect>) {
        let is_content = |subject| matches!(subject, Subject::Diffs | Subject::Blocks);
        let same = |asked: &&Asked| asked.subject == subject || (is_content(asked.subject) && is_content(subject));
        let under_way: Vec<Asked> = self.asked.values().filter(same).copied().collect();
        let is_slow = |asked: &Asked| now.0.saturating_sub(asked.since.0) >= self.timeout_ms / HEDGE_PART;
        if under_way.len() >= 2 || under_way.first().is_some_and(|first| !is_slow(first)) {
            return;
        }
        let (first, at) = (heights.first(), self.target);
        let can = |(peer, known): &(&PeerId, &Known)| {
            let lacks = match subject {
                Subject::Status => false,
                Subject::Records => known.no_version == Some(at),
                Subject::Diffs => known.lacks_diff(first),
                Subject::Blocks => known.no_block == Some(first),
            };
            known.standing.status.is_some()
                && known.standing.is_ready(now)
                && !lacks
                && under_way.iter().all(|asked| asked.peer != **peer)
        };
        let best = self.peers.iter().filter(can).max_by_key(|(_, known)| known.standing.rank());
        let Some(peer) = best.map(|(peer, _)| *peer) else { return };
        let body = match subject {
            Subject::Status => Request::Status,
            Subject::Records => Request::GetHeader { at, heights },
            Subject::Diffs => Request::GetDiffs { heights },
            Subject::Blocks => Request::GetBlocks { heights },
        };
        self.send(now, peer, subject, Some(heights), body, out);
    }

    /// Asks where they stand those who have not said it, or not lately, or whose answers it has to explain.
    fn ask_statuses(&mut self, now: Tick, out: &mut Vec<FollowEffect>) {
        let missing = self.own.height.next();
        let wanted = |(peer, known): &(&PeerId, &Known)| {
            let again = match known.is_behind(missing) && self.target.height >= missing {
                true => self.timeout_ms / HEDGE_PART,
                false => self.timeout_ms * STATUS_TIMEOUTS,
            };
            known.told.is_none_or(|told| now.0.saturating_sub(told.0) >= again)
                && known.standing.is_ready(now)
                && !self.asked.values().any(|asked| asked.peer == **peer && asked.subject == Subject::Status)
        };
        let wanted: Vec<PeerId> = self.peers.iter().filter(wanted).map(|(peer, _)| *peer).collect();
        for peer in wanted {
            self.send(now, peer, Subject::Status, None, Request::Status, out);
        }
    }

    fn send(
        &mut self,
        now: Tick,
        peer: PeerId,
        subject: Subject,
        heights: Option<Heights>,
        body: Request,
        out: &mut Vec<FollowEffect>,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        self.asked.insert(id, Asked { peer, subject, at: self.target, heights, since: now });
        out.push(FollowEffect::Ask(peer, Frame { id, body }));
    }
}

type Found = Vec<(Height, Result<BlockRecord, String>)>;

/// The records of some heights, as a proof shows them: all there are.
fn records<H: Hasher>(at: Version, heights: Heights, proof: &[u8]) -> Result<Found, String> {
    let query = header_query(heights.first(), heights.last());
    let verified: Verified<H> = Proof::decode(proof)
        .and_then(|proof| proof.verify(at.root, std::slice::from_ref(&query), &ProofLimits::default()))
        .map_err(|error| format!("records that are not proven: {error}"))?;
    let Query::Range(namespace, range) = query else { unreachable!("records are asked for as a range") };
    let RangeAnswer::Complete(entries) = verified.range(&namespace, &range) else {
        return Err("not all records are shown".to_owned());
    };
    let one = |(key, value): (keelstone_codec::Key, keelstone_codec::Value)| {
        let height = <[u8; 8]>::try_from(key.as_slice()).map(u64::from_be_bytes).map(Height).unwrap_or_default();
        let record = match BlockRecord::from_bytes(&value) {
            Ok(record) if record.height == height => Ok(record),
            Ok(record) => Err(format!("it is of height {}", record.height)),
            Err(error) => Err(error.to_string()),
        };
        (height, record)
    };
    Ok(entries.into_iter().map(one).collect())
}
