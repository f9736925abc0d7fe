//! One run: a joiner, five peers, a network and a disk that fail, all from one seed.

use crate::chain::{CHAINS, Chain, Kept, STATES, State, read_all};
use crate::dice::Dice;
use crate::disk::Watched;
use crate::liar::{Manner, Node};
use crate::{Beginning, Client, Gap, PEERS};
use keelstone_codec::{Key, Namespace};
use keelstone_store::files::{Fault, MemoryFiles};
use keelstone_store::{Options, Store};
use keelstone_sync::peers::{Effect, Ended, Event, Frame, PeerId, Request, ServerLimits, Settings, Tick, Version};
use keelstone_tree::Blake3;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Until then the network loses, parts and delays, disks fail and the target moves; after it, only liars are left.
const STORM_MS: u64 = 60_000;
/// By then every run has ended.
const END_MS: u64 = 3_600_000;
/// Requests a run may take: far more than any needs.
const REQUESTS_MAX: u64 = 60_000;

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When it ended, in milliseconds.
    pub took_ms: u64,
    /// Requests in all.
    pub requests: u64,
    /// Lives of the joiner.
    pub lives: u64,
    /// Liars that were banned.
    pub banned: u64,
    /// Entries of the state that came out.
    pub entries: u64,
    /// How the peers behaved.
    pub manners: Vec<Manner>,
}

enum Happening {
    Request { peer: usize, life: u64, frame: Box<Frame<Request>> },
    Response { peer: usize, life: u64, id: u64, bytes: Vec<u8> },
    Wake { life: u64 },
    Grow,
    Crash { power: bool },
    Start,
    Part { peer: usize, is_back: bool },
    DiskFault,
}

pub(crate) struct World<C> {
    dice: Dice,
    now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    number: u64,
    chain: &'static Chain,
    /// Height up to which the chain has grown.
    newest: u64,
    keep: u64,
    grow_ms: u64,
    /// Whether it grows after the storm too.
    grows_on: bool,
    nodes: Vec<Node>,
    is_away: Vec<bool>,
    banned: BTreeSet<PeerId>,
    disk: Watched,
    client: Option<C>,
    life: u64,
    next_wake: Option<u64>,
    latency_ms: u64,
    loss_percent: u64,
    settings: Settings,
    outcome: Outcome,
    done: Option<Version>,
    is_quick: bool,
}

impl<C: Client> World<C> {
    pub(crate) fn new(seed: u64, gang: Option<Manner>) -> Self {
        let mut dice = Dice::new(seed);
        let place = dice.place(CHAINS.len());
        let chain = &CHAINS[place];
        let other = &CHAINS[(place + 1) % CHAINS.len()];
        let newest = dice.between(3, STATES / 2);
        let keep = dice.between(1, 3);
        // Whoever joins a chain that never rests has to be given the time that one version takes.
        let grows_on = dice.percent(30);
        let limits = ServerLimits {
            peer_bytes_per_second: dice.one_of(&[20_000, 1 << 20]),
            answer_bytes_max: 900,
            pins_max: 3,
            pin_idle_ms: if grows_on { 60_000 } else { dice.one_of(&[3_000, 60_000]) },
            pin_age_ms_max: if grows_on { 3_600_000 } else { dice.one_of(&[20_000, 3_600_000]) },
            zstd_level: dice.one_of(&[0, 1]),
            ..ServerLimits::default()
        };
        // One of them is honest, whatever the others are; which liars there are is drawn, sometimes one kind for all.
        let honest = dice.place(PEERS);
        let drawn = dice.percent(30).then(|| dice.one_of(&Manner::LIARS));
        let nodes = (0..PEERS).map(|peer| {
            let liar = gang.or(drawn).unwrap_or_else(|| dice.one_of(&Manner::LIARS));
            let is_honest = peer == honest || (gang.is_none() && dice.percent(25));
            let manner = if is_honest { Manner::Honest } else { liar };
            let kept = Kept { chain, oldest: newest.saturating_sub(keep).max(1), newest };
            Node::new(manner, kept, other, limits)
        });
        let nodes: Vec<Node> = nodes.collect();
        let manners = nodes.iter().map(|node| node.manner).collect();
        let settings = Settings {
            concurrent_requests_max: u32::try_from(dice.between(2, 12)).expect("a small number"),
            peer_count_target: u32::try_from(dice.between(1, 6)).expect("a small number"),
            request_timeout_ms: 2_000,
            batch_bytes_max: dice.one_of(&[600, 1_500, 4_000]),
            retries_max: 3,
            stall_timeout_ms: 240_000,
            freeze_ms_max: if grows_on { 120_000 } else { dice.one_of(&[30_000, 120_000]) },
        };
        let mut world = Self {
            latency_ms: dice.one_of(&[2, 30, 200]),
            loss_percent: dice.one_of(&[0, 0, 5, 25]),
            grow_ms: dice.one_of(&[1_000, 5_000, 1_000_000]),
            grows_on,
            is_away: vec![false; PEERS],
            is_quick: dice.percent(80),
            disk: Watched::new(dice.roll(), chain),
            queue: BTreeMap::new(),
            now: 0,
            number: 0,
            chain,
            newest,
            keep,
            nodes,
            banned: BTreeSet::new(),
            client: None,
            life: 0,
            next_wake: None,
            settings,
            outcome: Outcome { manners, ..Outcome::default() },
            done: None,
            dice,
        };
        world.plan_the_storm();
        world
    }

    fn plan_the_storm(&mut self) {
        self.at(0, Happening::Start);
        let (grow_ms, end) = (self.grow_ms, STORM_MS);
        self.at(grow_ms, Happening::Grow);
        for _ in 0..self.dice.below(4) {
            let (when, power) = (self.dice.below(end / 4), self.dice.percent(50));
            self.at(when, Happening::Crash { power });
        }
        for peer in 0..PEERS {
            for _ in 0..self.dice.below(3) {
                let away = self.dice.below(end);
                let back = away + self.dice.below(20_000);
                self.at(away, Happening::Part { peer, is_back: false });
                self.at(back, Happening::Part { peer, is_back: true });
            }
        }
        if self.dice.percent(25) {
            let when = self.dice.below(end / 8);
            self.at(when, Happening::DiskFault);
        }
    }

    fn at(&mut self, when: u64, what: Happening) {
        self.number += 1;
        self.queue.insert((when, self.number), what);
    }

    fn is_storm(&self) -> bool {
        self.now < STORM_MS
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Result<Outcome, String> {
        while let Some(((when, _), what)) = self.queue.pop_first() {
            self.now = when;
            if when > END_MS {
                return Err(format!("it has not ended after {END_MS} ms: {:?}", self.outcome));
            }
            if self.outcome.requests > REQUESTS_MAX {
                return Err(format!("it has not ended after {REQUESTS_MAX} requests: {:?}", self.outcome));
            }
            self.happen(what)?;
            self.disk.verdict()?;
            if self.done.is_some() {
                self.outcome.took_ms = self.now;
                return Ok(self.outcome);
            }
        }
        Err(format!("it waits for nothing and has not ended: {:?}", self.outcome))
    }

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        match what {
            Happening::Start => self.start(),
            Happening::Wake { life } => {
                if life == self.life && self.next_wake == Some(self.now) {
                    self.next_wake = None;
                    self.step(Event::Tick)?;
                }
                Ok(())
            }
            Happening::Request { peer, life, frame } => {
                let timeout_ms = u64::from(self.settings.request_timeout_ms);
                let sent = self.nodes[peer].answer(Tick(self.now), &frame, timeout_ms, &mut self.dice);
                for sent in sent {
                    if let Some(delay) = self.travel(peer) {
                        let bytes = sent.bytes;
                        self.at(
                            self.now + sent.delay_ms + delay,
                            Happening::Response { peer, life, id: frame.id, bytes },
                        );
                    }
                }
                Ok(())
            }
            Happening::Response { peer, life, id: asked, bytes } => {
                // What was meant for a life before this one may arrive in it or not.
                if self.is_away[peer] || (life != self.life && self.dice.percent(80)) {
                    return Ok(());
                }
                self.step(Event::Answered(id(peer), asked, &bytes))
            }
            Happening::Grow => self.grow(),
            Happening::Crash { power } => {
                if self.client.take().is_some() {
                    if power {
                        let seed = self.dice.roll();
                        self.disk.cut_power(seed);
                    }
                    let pause = self.dice.below(3_000);
                    self.at(self.now + pause, Happening::Start);
                }
                Ok(())
            }
            Happening::Part { peer, is_back } => {
                self.is_away[peer] = !is_back;
                // Some are seen to go, others are just not heard of for a while.
                if is_back && !self.banned.contains(&id(peer)) {
                    self.step(Event::Connected(id(peer)))
                } else if !is_back && peer % 2 == 0 {
                    self.step(Event::Gone(id(peer)))
                } else {
                    Ok(())
                }
            }
            Happening::DiskFault => {
                let fault = self.dice.one_of(&[
                    Fault::Io,
                    Fault::IoForever,
                    Fault::NoSpace,
                    Fault::NoSpaceForever,
                    Fault::ShortWrite,
                ]);
                let disk = &self.disk.disk;
                disk.fail_at(disk.changes() + self.dice.below(6), fault);
                if self.dice.percent(50) {
                    disk.flip_reads(disk.reads() + self.dice.below(10), self.dice.below(4));
                }
                self.disk.excuse();
                Ok(())
            }
        }
    }

    fn start(&mut self) -> Result<(), String> {
        if self.client.is_some() {
            return Ok(());
        }
        self.life += 1;
        self.outcome.lives = self.life;
        self.next_wake = None;
        let (target, seed) = (self.chain.at(self.newest), self.dice.roll());
        let (files, params) = (Arc::new(self.disk.clone()), self.chain.params.clone());
        match C::open(Beginning { files, params, settings: self.settings, target, now: Tick(self.now), seed }) {
            Ok(client) => self.client = Some(client),
            Err(_) => {
                self.mend();
                return Ok(());
            }
        }
        for peer in (0..PEERS).filter(|peer| !self.is_away[*peer]).map(id).collect::<Vec<_>>() {
            if !self.banned.contains(&peer) {
                self.step(Event::Connected(peer))?;
            }
        }
        self.step(Event::Tick)
    }

    /// Somebody looks at the disk, and starts the node again.
    fn mend(&mut self) {
        self.disk.disk.mend();
        self.disk.excuse();
        self.client = None;
        self.at(self.now + 1_000, Happening::Start);
    }

    fn grow(&mut self) -> Result<(), String> {
        if !self.is_storm() && !self.grows_on {
            return Ok(());
        }
        self.newest += 1;
        for node in &mut self.nodes {
            node.grow(self.newest, self.keep);
        }
        self.at(self.now + self.grow_ms, Happening::Grow);
        let target = self.chain.at(self.newest);
        self.step(Event::Target(target))
    }

    /// How long a message takes; none if it is lost.
    fn travel(&mut self, peer: usize) -> Option<u64> {
        let is_lost = self.is_away[peer] || (self.is_storm() && self.dice.percent(self.loss_percent));
        let delay = self.latency_ms + self.dice.below(self.latency_ms * 3);
        (!is_lost).then_some(delay)
    }

    fn step(&mut self, event: Event<'_>) -> Result<(), String> {
        let now = Tick(self.now);
        let Some(client) = &mut self.client else { return Ok(()) };
        let mut effects = client.step(now, event);
        let mut asked = 0;
        while !effects.is_empty() {
            let mut next = Vec::new();
            for effect in effects {
                asked += u32::from(matches!(&effect, Effect::Ask(_, frame) if frame.body != Request::Status));
                next.extend(self.perform(effect)?);
            }
            effects = next;
        }
        if asked > self.settings.concurrent_requests_max {
            return Err(format!("{asked} requests at once, {} may be", self.settings.concurrent_requests_max));
        }
        if let Some(client) = &self.client
            && let Some(wake) = client.wakeup(now)
        {
            if wake <= now {
                return Err("it wants to be woken in the past".to_owned());
            }
            if self.next_wake.is_none_or(|next| wake.0 < next) {
                self.next_wake = Some(wake.0);
                self.at(wake.0, Happening::Wake { life: self.life });
            }
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<Vec<Effect>, String> {
        match effect {
            Effect::Ask(peer, frame) => {
                self.outcome.requests += 1;
                let place = usize::try_from(peer.0).expect("there are five");
                if self.banned.contains(&peer) {
                    return Err(format!("it asks {peer:?}, whom it has banned"));
                }
                if let Some(delay) = self.travel(place) {
                    let (life, frame) = (self.life, Box::new(frame));
                    self.at(self.now + delay, Happening::Request { peer: place, life, frame });
                }
                Ok(vec![])
            }
            Effect::Ban(peer, why) => {
                let manner = self.nodes[usize::try_from(peer.0).expect("there are five")].manner;
                if manner.is_blameless() {
                    return Err(format!("{peer:?} is {manner:?} and was banned: {why}"));
                }
                self.banned.insert(peer);
                self.outcome.banned += 1;
                Ok(vec![])
            }
            Effect::Seek(_) => Ok(vec![]),
            Effect::Build(version) => self.build(version),
            Effect::Switch(version) => {
                self.done = Some(version);
                Ok(vec![])
            }
            Effect::End(why) => {
                // A node would try again, or another way: here it tries again.
                match why {
                    Ended::Disk(_) => self.mend(),
                    Ended::Stalled { .. } if self.outcome.lives < 20 => {
                        self.client = None;
                        self.at(self.now + 1_000, Happening::Start);
                    }
                    other => return Err(format!("it gave up: {other}")),
                }
                Ok(vec![])
            }
        }
    }

    /// Builds the state from what was fetched and compares it with the truth.
    fn build(&mut self, version: Version) -> Result<Vec<Effect>, String> {
        if version.height.0 > self.newest || self.chain.at(version.height.0) != version {
            return Err(format!("it builds {version:?}, which nobody certified"));
        }
        let now = Tick(self.now);
        let client = self.client.as_mut().expect("it asked for it");
        let mut found: Vec<(Namespace, Key, Vec<u8>)> = Vec::new();
        let handed = client.entries(&mut |name, key, value| found.push((name.clone(), key.clone(), value.to_vec())));
        match handed {
            Ok(()) => {}
            Err(Gap::Missing) => return Ok(client.step(now, Event::Tick)),
            Err(Gap::Ended(reason)) => {
                if !reason.contains("staging directory") {
                    return Err(format!("it could not hand out what it fetched: {reason}"));
                }
                self.mend();
                return Ok(vec![]);
            }
        }
        let expected = self.chain.state(version.height);
        if !found
            .iter()
            .map(|(name, key, value)| ((name, key), value))
            .eq(expected.iter().map(|((name, key), value)| ((name, key), value)))
        {
            return Err(format!("what was fetched is not the state of {version:?}"));
        }
        self.outcome.entries = found.len() as u64;
        if !self.is_quick {
            built(&found, version, expected)?;
        }
        Ok(client.step(now, Event::Built))
    }
}

/// Builds a store of the entries, as a node does.
fn built(found: &[(Namespace, Key, Vec<u8>)], version: Version, expected: &State) -> Result<(), String> {
    let options =
        Options { segment_bytes: 1 << 18, page_segment_bytes: 1 << 18, background: false, ..Options::default() };
    let failed = |error: keelstone_store::StoreError| format!("the store: {error}");
    let mut building = Store::<Blake3>::build(Arc::new(MemoryFiles::new()), options, version.height).map_err(failed)?;
    for (name, key, value) in found {
        building.push(name, key, value).map_err(failed)?;
    }
    let store = building.finish(version.root).map_err(failed)?;
    if read_all(&store.view()) == *expected { Ok(()) } else { Err("the store holds something else".to_owned()) }
}

fn id(peer: usize) -> PeerId {
    PeerId(peer as u64)
}
