//! Giving versions to peers, without letting any of them take more than its share.
//!
//! Every peer has a budget of bytes and of working time that fills again as time passes, and there is one for all
//! together; who has used it up is told when to come back. Answers are bounded, and each costs work in proportion to
//! its bytes. A version that is being served is pinned: its view and its cut are kept for as long as somebody asks about
//! it, a peer has at most one pin, and a pin ends with age whatever is asked.
//!
//! Rules: `spec/peers.md`, PEER-11 and PEER-12.

use super::{
    BLOCK_BYTES_MAX, CERTIFICATE_BYTES_MAX, HeightDiff, PeerId, ProofBytes, RESPONSE_BYTES_MAX, Request, Response,
    Status, Tick, UNITS_MAX, Version, Why,
};
use crate::snapshot::{PackError, Packer, Plan, PlanError, SnapshotParams, WIRE_BYTES_MAX, pack};
use keelstone_codec::{Blob, BoundedList, BoundedSet, Encode, Height, Key, Namespace, OrderedKey, Root};
use keelstone_tree::{Diff, KeyRange, Query, Read, ReadError, Walk, prove_bytes};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// What a node can serve: its versions and what each height changed. Our own, so it is trusted.
pub trait Versions {
    /// A version that can be walked and read. It may expire; then reading it says so.
    type View: Walk + Read;

    /// The newest version and the oldest height that is kept; none before the first.
    fn kept(&self) -> Option<(Version, Height)>;

    /// The first height whose diff is kept.
    fn diffs_from(&self) -> Height;

    /// The root and a view of a height; none if it is not kept.
    ///
    /// # Errors
    /// [`ReadError`].
    fn view(&self, height: Height) -> Result<Option<(Root, Self::View)>, ReadError>;

    /// What a height changed; none if it is not kept, as by default none is.
    ///
    /// # Errors
    /// [`ReadError`].
    fn diff(&self, _height: Height) -> Result<Option<Diff>, ReadError> {
        Ok(None)
    }

    /// The block of a height, encoded; none if it is not kept, as by default none is.
    ///
    /// # Errors
    /// [`ReadError`].
    fn block(&self, _height: Height) -> Result<Option<Vec<u8>>, ReadError> {
        Ok(None)
    }

    /// What certifies the newest version that can be certified; by default nothing does.
    fn certificate(&self) -> Option<Blob<CERTIFICATE_BYTES_MAX>> {
        None
    }
}

/// What bounds a server's generosity. Everything has a default that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Bytes of answers in a second for one peer.
    pub peer_bytes_per_second: u64,
    /// Bytes of answers in a second for all together.
    pub bytes_per_second: u64,
    /// Milliseconds of work in a second for one peer, as [`Server::worked`] reports it.
    pub peer_work_ms_per_second: u32,
    /// Bytes of one answer before compression, at most; a single larger part is sent alone.
    pub answer_bytes_max: u32,
    /// Versions that are pinned at once.
    pub pins_max: u32,
    /// How long a pin is kept that nobody asks about, in milliseconds.
    pub pin_idle_ms: u64,
    /// How long a pin is kept at most, in milliseconds.
    pub pin_age_ms_max: u64,
    /// The zstd level of what is sent; zero for none.
    pub zstd_level: i32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            peer_bytes_per_second: 64 << 20,
            bytes_per_second: 256 << 20,
            peer_work_ms_per_second: 500,
            answer_bytes_max: 4 << 20,
            pins_max: 4,
            pin_idle_ms: 60_000,
            pin_age_ms_max: 3_600_000,
            zstd_level: 1,
        }
    }
}

/// Most peers that a server keeps accounts of; others are told to come back.
pub(super) const PEERS_MAX: usize = 1024;
/// What a request costs, however small its answer, in bytes.
const REQUEST_BYTES: u64 = 256;
/// What cutting a version costs, in bytes a unit.
const PLAN_BYTES: u64 = 128;
/// A budget holds what comes in so many seconds.
const BUDGET_SECONDS: u64 = 2;
/// Where all places are taken, how long a pin is kept for others that nobody asks about: whoever takes a version asks without end.
const PIN_QUIET_MS: u64 = 5_000;
/// And how long one whose version is kept anyway, whoever asks: it can be pinned again, for the price of cutting it.
const PIN_TURN_MS: u64 = 10_000;

/// What may still be spent. It goes below zero by at most one answer.
#[derive(Clone, Copy, Debug)]
struct Budget {
    left: i64,
    filled: Tick,
    per_second: u64,
}

impl Budget {
    fn new(now: Tick, per_second: u64) -> Self {
        Self { left: Self::full(per_second), filled: now, per_second }
    }

    fn full(per_second: u64) -> i64 {
        i64::try_from(per_second.saturating_mul(BUDGET_SECONDS)).unwrap_or(i64::MAX)
    }

    fn fill(&mut self, now: Tick) {
        let since = now.0.saturating_sub(self.filled.0);
        let more = u128::from(since) * u128::from(self.per_second) / 1000;
        if more > 0 {
            let more = i64::try_from(more).unwrap_or(i64::MAX);
            self.left = self.left.saturating_add(more).min(Self::full(self.per_second));
            self.filled = now;
        }
    }

    fn spend(&mut self, amount: u64) {
        self.left = self.left.saturating_sub(i64::try_from(amount).unwrap_or(i64::MAX));
    }

    /// In how many milliseconds there is something to spend; none if there is now.
    fn wait_ms(&self) -> Option<u64> {
        let lacking = u64::try_from(-self.left.min(0)).unwrap_or(0) + 1;
        (self.left <= 0).then(|| lacking.saturating_mul(1000).div_ceil(self.per_second.max(1)))
    }
}

#[derive(Debug)]
struct Account {
    bytes: Budget,
    /// In microseconds: most answers take less than a millisecond, and many of them are work all the same.
    work_us: Budget,
}

struct Pin<V> {
    at: Version,
    view: V,
    /// How it is cut; made when a page or unit of it is asked for.
    plan: Option<Plan>,
    since: Tick,
    used: Tick,
    users: BTreeSet<PeerId>,
}

/// Answers requests. It holds the pins, some 130 bytes for each unit of each, and a few numbers a peer.
pub struct Server<V: Versions> {
    versions: V,
    params: SnapshotParams,
    limits: ServerLimits,
    pins: Vec<Pin<V::View>>,
    accounts: BTreeMap<PeerId, Account>,
    all: Budget,
    packer: Packer,
}

/// Why there is no answer but this one.
enum Refusal {
    Unavailable(Why),
    Busy(u64),
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        Self::Unavailable(match error {
            ReadError::Gone { .. } => Why::NotKept,
            _ => Why::Unreadable,
        })
    }
}
impl From<PlanError> for Refusal {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Read(error) => error.into(),
            PlanError::TooLarge(_) => Self::Unavailable(Why::TooLarge),
            PlanError::OtherVersion { .. } => Self::Unavailable(Why::Unreadable),
        }
    }
}

impl<V: Versions> Server<V> {
    /// Serves these versions.
    pub fn new(versions: V, params: SnapshotParams, limits: ServerLimits, now: Tick) -> Self {
        let all = Budget::new(now, limits.bytes_per_second);
        let packer = Packer::new(limits.zstd_level);
        Self { versions, params, limits, pins: Vec::new(), accounts: BTreeMap::new(), all, packer }
    }

    /// What is served.
    #[must_use]
    pub fn versions(&mut self) -> &mut V {
        &mut self.versions
    }

    /// How many versions are pinned.
    #[must_use]
    pub fn pins(&self) -> usize {
        self.pins.len()
    }

    /// Answers one request. Reads and compresses what it sends, at most a little more than
    /// [`ServerLimits::answer_bytes_max`] or one larger part, so it may take tens of milliseconds; tell
    /// [`Server::worked`] how long it took.
    pub fn answer(&mut self, now: Tick, peer: PeerId, request: &Request) -> Response {
        self.expire(now);
        let response = match self.admit(now, peer).and_then(|()| self.part(now, peer, request)) {
            Ok(response) => response,
            Err(Refusal::Unavailable(why)) => Response::Unavailable(why),
            Err(Refusal::Busy(wait_ms)) => {
                return Response::Busy { retry_after_ms: u32::try_from(wait_ms).unwrap_or(u32::MAX) };
            }
        };
        self.spend(peer, REQUEST_BYTES + size(&response));
        response
    }

    /// Charges a peer for the time its request took.
    pub fn worked(&mut self, peer: PeerId, took: Duration) {
        if let Some(account) = self.accounts.get_mut(&peer) {
            account.work_us.spend(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// Forgets a peer that is gone. What it has spent is forgotten with it, so callers bound how often it may come back.
    pub fn gone(&mut self, peer: PeerId) {
        self.accounts.remove(&peer);
        for pin in &mut self.pins {
            pin.users.remove(&peer);
        }
    }

    // spec: PEER-11
    fn admit(&mut self, now: Tick, peer: PeerId) -> Result<(), Refusal> {
        let ServerLimits { peer_bytes_per_second, peer_work_ms_per_second, .. } = self.limits;
        if !self.accounts.contains_key(&peer) && self.accounts.len() >= PEERS_MAX {
            return Err(Refusal::Busy(1000));
        }
        let account = self.accounts.entry(peer).or_insert_with(|| Account {
            bytes: Budget::new(now, peer_bytes_per_second),
            work_us: Budget::new(now, u64::from(peer_work_ms_per_second) * 1_000),
        });
        let budgets = [&mut account.bytes, &mut account.work_us, &mut self.all];
        let waits = budgets.map(|budget| {
            budget.fill(now);
            budget.wait_ms()
        });
        waits.into_iter().flatten().max().map_or(Ok(()), |wait_ms| Err(Refusal::Busy(wait_ms)))
    }

    fn spend(&mut self, peer: PeerId, bytes: u64) {
        self.all.spend(bytes);
        if let Some(account) = self.accounts.get_mut(&peer) {
            account.bytes.spend(bytes);
        }
    }

    fn part(&mut self, now: Tick, peer: PeerId, request: &Request) -> Result<Response, Refusal> {
        match request {
            Request::Status => self.status(),
            Request::GetRootAt { height } => {
                let (root, _) = self.versions.view(*height)?.ok_or(Refusal::Unavailable(Why::NotKept))?;
                Ok(Response::RootAt(Version { height: *height, root }))
            }
            Request::GetDiffs { heights } => self.diffs(heights.first(), heights.last()),
            Request::GetNodes { at, page } => {
                let level = self.limits.zstd_level;
                let (_, plan) = self.planned(now, peer, at)?;
                let raw = plan.page(*page).ok_or(Refusal::Unavailable(Why::NoSuchPart))?;
                Ok(Response::Nodes(wire(pack(&raw, level))?))
            }
            Request::GetChunks { at, units } => self.chunks(now, peer, at, units),
            Request::GetCertificate => {
                let certificate = self.versions.certificate();
                Ok(Response::Certificate(certificate.ok_or(Refusal::Unavailable(Why::NotKept))?))
            }
            Request::GetHeader { at, heights } => {
                let query = header_query(heights.first(), heights.last());
                Ok(Response::Header(self.unpinned(at, |view| proof(view, query))?))
            }
            Request::GetBlocks { heights } => self.blocks(heights.first(), heights.last()),
            // Whoever listens heard it before this.
            Request::Announce { .. } => Ok(Response::Heard),
            Request::GetRange { at, namespace, start, end } => {
                let range =
                    KeyRange { start: start.to_vec(), end: end.as_ref().map(|end| end.to_vec()), reverse: false };
                self.unpinned(at, |view| self.range(view, namespace, range))
            }
            Request::GetEntry { at, namespace, key } => {
                let query = Query::Key(namespace.clone(), key.clone());
                Ok(Response::Entry(self.unpinned(at, |view| proof(view, query))?))
            }
        }
    }

    fn status(&self) -> Result<Response, Refusal> {
        // What is pinned below them says nothing of the heights between, and is known to whoever asks about it.
        let (newest, oldest) = self.versions.kept().ok_or(Refusal::Unavailable(Why::NotKept))?;
        Ok(Response::Status(Status {
            chain_id: self.params.chain_id.clone(),
            hasher: self.params.hasher,
            chunk_weight_max: self.params.chunk_weight_max,
            newest,
            oldest,
            diffs_from: self.versions.diffs_from(),
        }))
    }

    fn diffs(&self, first: Height, last: Height) -> Result<Response, Refusal> {
        let mut out = Vec::new();
        let mut bytes = 0;
        for height in first.0..=last.0 {
            let height = Height(height);
            let Some(diff) = self.versions.diff(height)? else { break };
            bytes += 16 + diff.bytes() + 16 * diff.len() as u64;
            if bytes > u64::from(self.limits.answer_bytes_max) && !out.is_empty() {
                break;
            }
            out.push(HeightDiff { height, diff });
        }
        if out.is_empty() {
            return Err(Refusal::Unavailable(Why::NotKept));
        }
        let response = Response::Diffs(BoundedList::new(out).expect("no more heights are asked for at once"));
        let too_large = bytes > RESPONSE_BYTES_MAX as u64 / 2 && response.to_bytes().len() + 8 > RESPONSE_BYTES_MAX;
        if too_large { Err(Refusal::Unavailable(Why::TooLarge)) } else { Ok(response) }
    }

    // spec: PEER-15
    fn blocks(&self, first: Height, last: Height) -> Result<Response, Refusal> {
        let mut out = Vec::new();
        let mut bytes = 0;
        for height in first.0..=last.0 {
            let Some(block) = self.versions.block(Height(height))? else { break };
            bytes += 16 + block.len() as u64;
            if bytes > u64::from(self.limits.answer_bytes_max) && !out.is_empty() {
                break;
            }
            if bytes > BLOCK_BYTES_MAX as u64 {
                return Err(Refusal::Unavailable(Why::TooLarge));
            }
            out.push(Blob::new(block).expect("its size was looked at"));
        }
        match out.is_empty() {
            true => Err(Refusal::Unavailable(Why::NotKept)),
            false => Ok(Response::Blocks(BoundedList::new(out).expect("no more heights are asked for at once"))),
        }
    }

    /// Reads a version for one answer, which costs no pin: whoever follows or compares asks about another version each time, and
    /// a question that is one answer needs nothing kept for the next.
    // spec: PEER-12
    fn unpinned<T>(&self, at: &Version, read: impl FnOnce(&V::View) -> Result<T, Refusal>) -> Result<T, Refusal> {
        if let Some(pin) = self.pins.iter().find(|pin| pin.at == *at) {
            return read(&pin.view);
        }
        let (root, view) = self.versions.view(at.height)?.ok_or(Refusal::Unavailable(Why::NotKept))?;
        if root != at.root {
            return Err(Refusal::Unavailable(Why::OtherRoot));
        }
        read(&view)
    }

    fn chunks(
        &mut self,
        now: Tick,
        peer: PeerId,
        at: &Version,
        units: &BoundedSet<u32, UNITS_MAX>,
    ) -> Result<Response, Refusal> {
        let answer_bytes_max = u64::from(self.limits.answer_bytes_max);
        let (view, plan) = self.planned(now, peer, at)?;
        let mut given = Vec::new();
        let mut bytes = 0;
        for unit in units.iter() {
            bytes += plan.unit_bytes_max(*unit).ok_or(Refusal::Unavailable(Why::NoSuchPart))?;
            if bytes > answer_bytes_max && !given.is_empty() {
                break;
            }
            given.push(*unit);
        }
        if given.is_empty() {
            return Err(Refusal::Unavailable(Why::NoSuchPart));
        }
        // Behind one byte for its form.
        let mut raw = vec![0];
        plan.unit_bodies(view, &given, &mut raw)?;
        let units = u32::try_from(given.len()).expect("no more units are asked for at once");
        Ok(Response::Chunks { units, wire: wire(self.packer.pack(raw))? })
    }

    /// As many entries of a range as one answer may have, with the proof that there are no others.
    fn range(&self, view: &V::View, namespace: &Namespace, mut range: KeyRange) -> Result<Response, Refusal> {
        let answer_bytes_max = u64::from(self.limits.answer_bytes_max);
        let mut next: Option<Key> = None;
        let mut bytes = 0;
        for (before, entry) in view.scan(namespace, range.clone()).enumerate() {
            let (key, value) = entry?;
            // An entry brings along a node above it.
            bytes += (key.len() + value.len() + 96) as u64;
            if bytes > answer_bytes_max && before > 0 {
                next = Some(key);
                break;
            }
        }
        if let Some(next) = &next {
            range.end = Some(next.to_vec());
        }
        Ok(Response::Range { next, proof: proof(view, Query::Range(namespace.clone(), range))? })
    }

    /// Ends pins that nobody asked about for a while, or that are too old (spec: PEER-12).
    fn expire(&mut self, now: Tick) {
        let ServerLimits { pin_idle_ms, pin_age_ms_max, .. } = self.limits;
        self.pins.retain(|pin| {
            now.0.saturating_sub(pin.used.0) < pin_idle_ms && now.0.saturating_sub(pin.since.0) < pin_age_ms_max
        });
    }

    /// The pin of a version, made if need be. A peer leaves the one it had.
    // spec: PEER-12
    fn pin(&mut self, now: Tick, peer: PeerId, at: &Version) -> Result<&mut Pin<V::View>, Refusal> {
        let place = match self.pins.iter().position(|pin| pin.at == *at) {
            Some(place) => place,
            None => {
                let (root, view) = self.versions.view(at.height)?.ok_or(Refusal::Unavailable(Why::NotKept))?;
                if root != at.root {
                    return Err(Refusal::Unavailable(Why::OtherRoot));
                }
                if self.pins.len() >= self.limits.pins_max as usize {
                    let (place, wait_ms) = self.place_to_take(now, peer);
                    if wait_ms > 0 {
                        return Err(Refusal::Busy(wait_ms));
                    }
                    self.pins.swap_remove(place);
                }
                let users = BTreeSet::new();
                self.pins.push(Pin { at: *at, view, plan: None, since: now, used: now, users });
                self.pins.len() - 1
            }
        };
        for pin in self.pins.iter_mut().filter(|pin| pin.at != *at) {
            pin.users.remove(&peer);
        }
        let pin = &mut self.pins[place];
        pin.used = now;
        pin.users.insert(peer);
        Ok(pin)
    }

    /// The pin that gives its place away soonest, and in how many milliseconds: one that nobody but this peer asks about at once,
    /// one that is quiet, or whose version is kept anyway and had its turn. So nobody holds all places with a question now and
    /// then, and more versions than there are places for are served in turns.
    // spec: PEER-12
    fn place_to_take(&self, now: Tick, peer: PeerId) -> (usize, u64) {
        let kept_from = self.versions.kept().map(|(_, oldest)| oldest);
        let waits = self.pins.iter().map(|pin| {
            if pin.users.iter().all(|user| *user == peer) {
                return 0;
            }
            let quiet = (pin.used.0 + PIN_QUIET_MS).saturating_sub(now.0);
            let turn = (pin.since.0 + PIN_TURN_MS).saturating_sub(now.0);
            let wait_ms = if kept_from.is_some_and(|from| from <= pin.at.height) { quiet.min(turn) } else { quiet };
            wait_ms.min(self.limits.pin_idle_ms)
        });
        let soonest = waits.enumerate().min_by_key(|(place, wait_ms)| (*wait_ms, self.pins[*place].since, *place));
        soonest.unwrap_or((0, self.limits.pin_idle_ms))
    }

    /// A version and how it is cut. Cutting costs the peer that asks first.
    fn planned(&mut self, now: Tick, peer: PeerId, at: &Version) -> Result<(&V::View, &Plan), Refusal> {
        let params = self.params.clone();
        let pin = self.pin(now, peer, at)?;
        let mut cost = 0;
        if pin.plan.is_none() {
            let plan = Plan::of(&pin.view, &params, at.height, at.root)?;
            cost = PLAN_BYTES * plan.units() as u64;
            pin.plan = Some(plan);
        }
        self.spend(peer, cost);
        let pin = self.pins.iter().find(|pin| pin.at == *at).expect("it was pinned just now");
        Ok((&pin.view, pin.plan.as_ref().expect("it was cut just now")))
    }
}

impl<V: Versions> fmt::Debug for Server<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} pins, {} peers)", self.pins.len(), self.accounts.len())
    }
}

/// The question that a header's proof answers: the records of these heights (spec: PEER-4).
#[must_use]
pub fn header_query(first: Height, last: Height) -> Query {
    let key = |height: Height| {
        let mut key = Vec::with_capacity(8);
        height.encode_key(&mut key);
        key
    };
    let end = last.0.checked_add(1).map(|end| key(Height(end)));
    let namespace = Namespace::new("blocks").expect("a constant");
    Query::Range(namespace, KeyRange { start: key(first), end, reverse: false })
}

/// The proof that answers a question.
fn proof(view: &impl Walk, query: Query) -> Result<ProofBytes, Refusal> {
    Blob::new(prove_bytes(view, &[query])?).map_err(|_| Refusal::Unavailable(Why::TooLarge))
}

fn wire(packed: Result<Vec<u8>, PackError>) -> Result<Blob<WIRE_BYTES_MAX>, Refusal> {
    let too_large = || Refusal::Unavailable(Why::TooLarge);
    Blob::new(packed.map_err(|_| too_large())?).map_err(|_| too_large())
}

/// Bytes of an answer, as good as.
fn size(response: &Response) -> u64 {
    match response {
        Response::Header(proof) | Response::Entry(proof) | Response::Range { proof, .. } => proof.len() as u64,
        Response::Nodes(wire) | Response::Chunks { wire, .. } => wire.len() as u64,
        Response::Diffs(diffs) => diffs.iter().map(|diff| 16 + diff.diff.bytes()).sum(),
        Response::Certificate(certificate) => certificate.len() as u64,
        Response::Blocks(blocks) => blocks.iter().map(|block| 16 + block.len() as u64).sum(),
        Response::Status(_)
        | Response::RootAt(_)
        | Response::Unavailable(_)
        | Response::Busy { .. }
        | Response::Heard => 0,
    }
}
