//! A toy that joins as plainly as can be, one request at a time, and may have one of many bugs that such code has had:
//! to show that the simulator finds them.

use crate::disk::units;
use crate::{Beginning, Client, Gap};
use keelstone_codec::{BoundedSet, Decode, Encode, Key, Namespace};
use keelstone_store::files::Files;
use keelstone_sync::peers::{
    Effect, Ended, Event, Frame, Misconduct, PeerId, Request, Response, Settings, StagingError, Tick, Version,
};
use keelstone_sync::snapshot::{Skeleton, SnapshotParams, UnitName, unpack};
use keelstone_tree::Blake3;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is wrong with a toy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Nothing.
    None,
    /// What peers send is stored without hashing it.
    StoresUnproven,
    /// An empty answer is asked for again at once, of the same peer, for ever.
    LoopsOnEmpty,
    /// What peers say is their newest root becomes the target.
    FollowsPeers,
    /// A late answer counts as a lie.
    BansLate,
    /// A timeout counts as a lie.
    BansSlow,
    /// It waits for every answer, however long.
    NeverTimesOut,
    /// After a crash it fetches again what is there.
    ForgetsStaged,
    /// After a crash it believes what is there.
    TrustsStaged,
    /// When the target moves, units keep their numbers.
    KeepsByNumber,
    /// It asks everybody for everything.
    Floods,
    /// It goes on asking whom it has banned.
    AsksBanned,
    /// Whenever the target moves it throws away what it has.
    StartsOver,
}

impl Bug {
    /// All bugs; the number of a bug is its place.
    pub const ALL: [Self; 13] = [
        Self::None,
        Self::StoresUnproven,
        Self::LoopsOnEmpty,
        Self::FollowsPeers,
        Self::BansLate,
        Self::BansSlow,
        Self::NeverTimesOut,
        Self::ForgetsStaged,
        Self::TrustsStaged,
        Self::KeepsByNumber,
        Self::Floods,
        Self::AsksBanned,
        Self::StartsOver,
    ];
}

struct Asked {
    id: u64,
    peer: PeerId,
    until: u64,
    units: Vec<u32>,
}

/// A toy with the bug of a number.
pub struct Toy<const BUG: usize> {
    files: Arc<dyn Files>,
    params: SnapshotParams,
    settings: Settings,
    target: Version,
    newest: Version,
    since: u64,
    skeleton: Skeleton<Blake3>,
    /// Proven units of any version.
    have: BTreeMap<UnitName, Vec<u8>>,
    /// What a crash left, not proven yet.
    old: BTreeMap<UnitName, Vec<u8>>,
    /// Units of the last version by number; only one toy looks there.
    numbered: Vec<Option<Vec<u8>>>,
    next_file: u64,
    peers: Vec<PeerId>,
    banned: BTreeSet<PeerId>,
    strikes: BTreeMap<PeerId, u32>,
    turn: usize,
    failures: u64,
    not_before: u64,
    asked: Option<Asked>,
    next_id: u64,
    is_building: bool,
    is_over: bool,
}

impl<const BUG: usize> Toy<BUG> {
    fn has(bug: Bug) -> bool {
        Bug::ALL[BUG] == bug
    }

    fn retarget(&mut self, now: u64, to: Version) {
        if Self::has(Bug::KeepsByNumber) && self.skeleton.is_complete() {
            let names = (0..self.skeleton.unit_count()).map(|unit| self.skeleton.unit(unit).name);
            self.numbered = names.map(|name| self.have.get(&name).cloned()).collect();
        }
        (self.target, self.since, self.asked) = (to, now, None);
        self.skeleton = Skeleton::without_offer(to.root, &self.params);
    }

    fn start_over(&mut self, now: u64) {
        for file in self.files.list().unwrap_or_default() {
            // What a failing disk keeps is found again later.
            let _ = self.files.remove(&file);
        }
        self.have.clear();
        self.old.clear();
        self.retarget(now, self.newest);
    }

    /// The next one, and not at once.
    fn pass_on(&mut self, now: u64) {
        self.turn += 1;
        self.failures += 1;
        let round = self.failures / (self.peers.len().max(1) as u64);
        self.not_before = now + 50 * round.min(60);
    }

    fn strike(&mut self, now: u64, peer: PeerId, out: &mut Vec<Effect>) {
        self.pass_on(now);
        let strikes = self.strikes.entry(peer).or_default();
        *strikes += 1;
        if *strikes == 3 {
            let why = Misconduct::FalseAnswers { times: 3, last: "a toy does not say".to_owned() };
            out.push(Effect::Ban(peer, why));
            self.banned.insert(peer);
            if !Self::has(Bug::AsksBanned) {
                self.peers.retain(|known| *known != peer);
            }
        }
    }

    fn on_answer(&mut self, now: u64, peer: PeerId, id: u64, bytes: &[u8], out: &mut Vec<Effect>) {
        let is_known = self.peers.contains(&peer);
        let Some(asked) = self.asked.take_if(|asked| asked.id == id && asked.peer == peer) else {
            if Self::has(Bug::BansLate) && is_known {
                self.strike(now, peer, out);
            }
            return;
        };
        let Ok(Frame { body, .. }) = Frame::<Response>::from_bytes(bytes) else { return self.strike(now, peer, out) };
        match body {
            Response::Busy { .. } | Response::Unavailable(_) => self.pass_on(now),
            Response::Status(status) if Self::has(Bug::FollowsPeers) => self.retarget(now, status.newest),
            Response::Nodes(wire) if asked.units.is_empty() => {
                let page = unpack(&wire, 1 << 20).ok();
                match page.map(|raw| self.skeleton.add_page(&raw)) {
                    Some(Ok(())) => {
                        self.failures = 0;
                        if self.skeleton.is_complete() {
                            self.prove_old();
                        }
                    }
                    _ => self.strike(now, peer, out),
                }
            }
            Response::Chunks { units: 0, .. } => {
                if !Self::has(Bug::LoopsOnEmpty) {
                    self.pass_on(now);
                }
            }
            Response::Chunks { units, wire } if units as usize <= asked.units.len() => {
                let units = &asked.units[..units as usize];
                let Ok(raw) = unpack(&wire, 1 << 20) else { return self.strike(now, peer, out) };
                let places = if Self::has(Bug::StoresUnproven) {
                    std::iter::once(0..raw.len()).collect()
                } else {
                    match self.skeleton.check_units(units, &raw) {
                        Ok(places) => places,
                        Err(_) => return self.strike(now, peer, out),
                    }
                };
                let mut batch: BTreeMap<UnitName, Vec<u8>> = BTreeMap::new();
                for (unit, place) in units.iter().zip(places) {
                    batch.entry(self.skeleton.unit(*unit).name).or_insert_with(|| raw[place].to_vec());
                }
                self.failures = 0;
                if let Err(error) = self.write(batch) {
                    self.is_over = true;
                    out.push(Effect::End(Ended::Disk(error)));
                }
            }
            _ => self.strike(now, peer, out),
        }
    }

    fn write(&mut self, batch: BTreeMap<UnitName, Vec<u8>>) -> Result<(), StagingError> {
        let mut bytes = vec![0; 32 + 4];
        u32::try_from(batch.len()).expect("a few").encode(&mut bytes);
        for (name, body) in &batch {
            name.of_namespaces.encode(&mut bytes);
            name.hash.encode(&mut bytes);
            u32::try_from(body.len()).expect("a small unit").encode(&mut bytes);
        }
        batch.values().for_each(|body| bytes.extend_from_slice(body));
        let len = u32::try_from(bytes.len() - 36).expect("a few small units");
        bytes[32..36].copy_from_slice(&len.to_le_bytes());
        let file = format!("units-{:012}", self.next_file);
        self.next_file += 1;
        let write = || self.files.create(&file, bytes.len() as u64)?.write_at(0, &bytes);
        write().map_err(|error| StagingError { doing: "write", file, source: Arc::new(error) })?;
        self.have.extend(batch);
        Ok(())
    }

    /// Proves what a crash left, as far as this version has it.
    fn prove_old(&mut self) {
        for unit in 0..self.skeleton.unit_count() {
            let name = self.skeleton.unit(unit).name;
            if let Some(body) = self.old.remove(&name)
                && (Self::has(Bug::TrustsStaged) || self.skeleton.check_units(&[unit], &body).is_ok())
            {
                self.have.insert(name, body);
            }
            // None but with the bug of that name: what was this number of the last version.
            if let Some(Some(body)) = self.numbered.get_mut(unit as usize).map(Option::take) {
                self.have.entry(name).or_insert(body);
            }
        }
    }

    fn missing(&self) -> Vec<u32> {
        let mut names = BTreeSet::new();
        let units = 0..self.skeleton.unit_count();
        units
            .filter(|unit| {
                let name = self.skeleton.unit(*unit).name;
                !self.have.contains_key(&name) && names.insert(name)
            })
            .take(2)
            .collect()
    }

    fn go_on(&mut self, now: u64, out: &mut Vec<Effect>) {
        if let Some(asked) = self.asked.take_if(|asked| asked.until <= now && !Self::has(Bug::NeverTimesOut)) {
            if Self::has(Bug::BansSlow) {
                self.strike(now, asked.peer, out);
            } else {
                self.pass_on(now);
            }
        }
        let is_stuck =
            self.failures > 2 * self.peers.len() as u64 || now - self.since > u64::from(self.settings.freeze_ms_max);
        // Nothing of it is there yet: then a newer one is sooner found.
        let is_idle = self.asked.is_none() && self.skeleton.pages_done() == 0;
        if self.newest.height > self.target.height && (is_stuck || is_idle) {
            self.retarget(now, self.newest);
        }
        if self.asked.is_some() || self.peers.is_empty() || self.not_before > now {
            return;
        }
        let peer = self.peers[self.turn % self.peers.len()];
        let at = self.target;
        let (body, units) = if Self::has(Bug::FollowsPeers) && self.turn == 0 {
            self.turn = 1;
            (Request::Status, vec![])
        } else if self.skeleton.is_complete() {
            let units = self.missing();
            if units.is_empty() {
                self.is_building = true;
                return out.push(Effect::Build(self.target));
            }
            let set = BoundedSet::new(units.iter().copied()).expect("two units");
            (Request::GetChunks { at, units: set }, units)
        } else {
            (Request::GetNodes { at, page: self.skeleton.pages_done() }, vec![])
        };
        let times = if Self::has(Bug::Floods) { self.settings.concurrent_requests_max + 1 } else { 1 };
        for _ in 0..times {
            self.next_id += 1;
            out.push(Effect::Ask(peer, Frame { id: self.next_id, body: body.clone() }));
        }
        let until = now + u64::from(self.settings.request_timeout_ms);
        self.asked = Some(Asked { id: self.next_id, peer, until, units });
    }
}

impl<const BUG: usize> Client for Toy<BUG> {
    fn open(Beginning { files, params, settings, target, now, seed }: Beginning) -> Result<Self, String> {
        let failed = |error: std::io::Error| error.to_string();
        let (mut old, mut next_file) = (BTreeMap::new(), 0);
        for file in files.list().map_err(failed)? {
            let Some(number) = file.strip_prefix("units-").and_then(|number| number.parse::<u64>().ok()) else {
                continue;
            };
            next_file = next_file.max(number + 1);
            let read = || -> std::io::Result<Vec<u8>> {
                let open = files.open(&file)?;
                let mut bytes = vec![0; usize::try_from(open.len()?).expect("a small file")];
                open.read_at(0, &mut bytes)?;
                Ok(bytes)
            };
            let bytes = read().map_err(failed)?;
            match units(&bytes) {
                Ok(units) if !Self::has(Bug::ForgetsStaged) => {
                    old.extend(units.into_iter().map(|(name, body)| (name, body.to_vec())));
                }
                Ok(_) => {}
                Err(_) => files.remove(&file).map_err(failed)?,
            }
        }
        Ok(Self {
            skeleton: Skeleton::without_offer(target.root, &params),
            files,
            params,
            settings,
            target,
            newest: target,
            since: now.0,
            have: BTreeMap::new(),
            old,
            numbered: vec![],
            next_file,
            peers: vec![],
            banned: BTreeSet::new(),
            strikes: BTreeMap::new(),
            turn: 0,
            failures: 0,
            not_before: 0,
            asked: None,
            next_id: seed >> 1,
            is_building: false,
            is_over: false,
        })
    }

    fn step(&mut self, now: Tick, event: Event<'_>) -> Vec<Effect> {
        let (now, mut out) = (now.0, vec![]);
        if self.is_over {
            return out;
        }
        match event {
            Event::Tick => self.is_building = false,
            Event::Connected(peer) | Event::Mirror(peer) => {
                if !self.peers.contains(&peer) && !self.banned.contains(&peer) {
                    self.peers.push(peer);
                }
            }
            Event::Gone(peer) => {
                self.peers.retain(|known| *known != peer);
                self.asked.take_if(|asked| asked.peer == peer);
            }
            Event::Answered(peer, id, bytes) => self.on_answer(now, peer, id, bytes, &mut out),
            Event::Target(version) => {
                self.newest = version;
                if Self::has(Bug::StartsOver) {
                    self.start_over(now);
                }
            }
            Event::Built => {
                self.is_over = true;
                return vec![Effect::Switch(self.target)];
            }
        }
        if !self.is_building && !self.is_over {
            self.go_on(now, &mut out);
        }
        out
    }

    fn wakeup(&self, now: Tick) -> Option<Tick> {
        let next = self.asked.as_ref().map_or(self.not_before.max(now.0 + 1), |asked| asked.until.max(now.0 + 1));
        let next = if self.peers.is_empty() { now.0 + 10_000 } else { next };
        (!self.is_over && !self.is_building).then_some(Tick(next))
    }

    fn entries(&mut self, each: &mut dyn FnMut(&Namespace, &Key, &[u8])) -> Result<(), Gap> {
        for chunk in self.skeleton.pages()..self.skeleton.chunks() {
            let units = self.skeleton.chunk_units(chunk);
            let raw: Vec<u8> = units.flat_map(|unit| self.have[&self.skeleton.unit(unit).name].clone()).collect();
            let checked = self.skeleton.check(chunk, &raw).map_err(|error| Gap::Ended(error.to_string()))?;
            let handed = checked.entries(|name, key, value| {
                each(name, &Key::new(key).expect("it was proven"), value);
                Ok::<_, std::convert::Infallible>(())
            });
            handed.expect("nothing refuses");
        }
        Ok(())
    }
}
