//! One run: a node, five peers, a network and a disk that fail, all from one seed.

use crate::PEERS;
use crate::chain::{Keeps, STATES};
use crate::dice::Dice;
use crate::liar::{Manner, Node};
use keelstone_store::files::{Fault, FaultyFiles};
use keelstone_sync::peers::{Effect, Ended, Event, Frame, PeerId, Request, ServerLimits, Settings, Tick, Version};
use keelstone_sync::recovery::Strategy;
use std::collections::{BTreeMap, BTreeSet};

/// Until then the network loses, parts and delays, disks fail and the target moves; after it, only liars are left.
pub(crate) const STORM_MS: u64 = 60_000;
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
    /// Lives of the node.
    pub lives: u64,
    /// Of whoever tends a state, how often its store did not open and was built anew; of whoever recovers, lives that came to
    /// nothing.
    pub rebuilt: u64,
    /// Liars that were banned; for whoever tends a state, alarms.
    pub banned: u64,
    /// Entries of the state that came out; for whoever follows, heights that were taken in; for whoever tends a state, entries
    /// that were had again from peers.
    pub amount: u64,
    /// Of whoever recovers, what led to the target, unless a switch that was cut off did.
    pub by: Option<Strategy>,
    /// How the peers behaved.
    pub manners: Vec<Manner>,
}

/// Why a step came to nothing.
pub(crate) enum Trouble {
    /// The disk failed.
    Disk,
    /// Something does not hold.
    Wrong(String),
}

impl From<String> for Trouble {
    fn from(wrong: String) -> Self {
        Self::Wrong(wrong)
    }
}

/// The node that a run is about: its machine and its disk, and what they are judged by.
pub(crate) trait Life: Sized {
    /// What its peers keep.
    type Kept: Keeps;

    /// The last height of its chains.
    const HEIGHT_MAX: u64;
    /// Until when it has work to do in which it can be killed.
    const BUSY_MS: u64;
    /// Whether an answer may come that was meant for a life before.
    const HEARS_THE_PAST: bool;

    /// How many chains there are.
    fn chains() -> usize;
    /// What a peer keeps of a chain.
    fn kept(chain: usize, oldest: u64, newest: u64, is_whole: bool) -> Self::Kept;
    /// A disk, and no life yet.
    fn new(chain: usize, newest: u64, dice: &mut Dice) -> Self;
    /// The chain's version of a height.
    fn version(&self, height: u64) -> Version;
    /// A life begins, from what is on the disk.
    fn open(&mut self, settings: Settings, target: Version, now: Tick, seed: u64) -> Result<(), Trouble>;
    /// Requests for anything but a status that one step may make.
    fn asked_max(settings: &Settings) -> u32;
    fn is_alive(&self) -> bool;
    fn kill(&mut self);
    /// What was not synced may be gone.
    fn cut_power(&mut self, seed: u64);
    fn disk(&self) -> &FaultyFiles;
    /// The disk is made to fail, or was.
    fn excuse(&mut self);
    /// Takes in an event, does what is to be done on the disk and says what else is. One that is not alive does nothing.
    fn step(&mut self, now: Tick, event: Event<'_>) -> Result<Vec<Effect>, Trouble>;
    fn wakeup(&self, now: Tick) -> Option<Tick>;
    /// How much came out.
    fn amount(&self) -> u64;
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

pub(crate) struct World<L: Life> {
    dice: Dice,
    now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    number: u64,
    /// Height up to which the chain has grown.
    newest: u64,
    keep: u64,
    grow_ms: u64,
    /// Whether it grows after the storm too.
    grows_on: bool,
    nodes: Vec<Node<L::Kept>>,
    is_away: Vec<bool>,
    banned: BTreeSet<PeerId>,
    node: L,
    life: u64,
    next_wake: Option<u64>,
    latency_ms: u64,
    loss_percent: u64,
    settings: Settings,
    outcome: Outcome,
    done: Option<Version>,
}

impl<L: Life> World<L> {
    pub(crate) fn new(seed: u64, gang: Option<Manner>) -> Self {
        let mut dice = Dice::new(seed);
        let chain = dice.place(L::chains());
        let other = (chain + 1) % L::chains();
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
            let is_whole = peer == honest || peer % 2 == 0;
            let kept = L::kept(chain, newest.saturating_sub(keep).max(1), newest, is_whole);
            Node::new(manner, kept, L::kept(other, 1, newest, true), limits)
        });
        let nodes: Vec<Node<L::Kept>> = nodes.collect();
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
            node: L::new(chain, newest, &mut dice),
            queue: BTreeMap::new(),
            now: 0,
            number: 0,
            newest,
            keep,
            nodes,
            banned: BTreeSet::new(),
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
            let (when, power) = (self.dice.below(L::BUSY_MS), self.dice.percent(50));
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
            let when = self.dice.below(L::BUSY_MS / 2);
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
            if self.done.is_some() {
                (self.outcome.took_ms, self.outcome.amount) = (self.now, self.node.amount());
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
                let is_lost = life != self.life && (!L::HEARS_THE_PAST || self.dice.percent(80));
                if self.is_away[peer] || is_lost {
                    return Ok(());
                }
                self.step(Event::Answered(id(peer), asked, &bytes))
            }
            Happening::Grow => self.grow(),
            Happening::Crash { power } => {
                if self.node.is_alive() {
                    self.node.kill();
                    if power {
                        self.node.cut_power(self.dice.roll());
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
                let disk = self.node.disk();
                disk.fail_at(disk.changes() + self.dice.below(6), fault);
                if self.dice.percent(50) {
                    disk.flip_reads(disk.reads() + self.dice.below(10), self.dice.below(4));
                }
                self.node.excuse();
                Ok(())
            }
        }
    }

    fn start(&mut self) -> Result<(), String> {
        if self.node.is_alive() {
            return Ok(());
        }
        self.life += 1;
        self.outcome.lives = self.life;
        self.next_wake = None;
        let (target, seed) = (self.node.version(self.newest), self.dice.roll());
        match self.node.open(self.settings, target, Tick(self.now), seed) {
            Ok(()) => {}
            Err(Trouble::Disk) => {
                self.mend();
                return Ok(());
            }
            Err(Trouble::Wrong(wrong)) => return Err(wrong),
        }
        for peer in (0..PEERS).filter(|peer| !self.is_away[*peer]).map(id).collect::<Vec<_>>() {
            if !self.banned.contains(&peer) {
                self.step(Event::Connected(peer))?;
            }
        }
        self.step(Event::Tick)
    }

    /// Somebody looks at the disk, which may take turning everything off, and starts the node again.
    fn mend(&mut self) {
        self.node.kill();
        if self.dice.percent(50) {
            self.node.cut_power(self.dice.roll());
        }
        self.node.disk().mend();
        self.node.excuse();
        self.at(self.now + 1_000, Happening::Start);
    }

    fn grow(&mut self) -> Result<(), String> {
        if self.newest == L::HEIGHT_MAX || (!self.is_storm() && !self.grows_on) {
            return Ok(());
        }
        self.newest += 1;
        for node in &mut self.nodes {
            node.grow(self.newest, self.keep);
        }
        self.at(self.now + self.grow_ms, Happening::Grow);
        let target = self.node.version(self.newest);
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
        let effects = match self.node.step(now, event) {
            Ok(effects) => effects,
            Err(Trouble::Disk) => {
                self.mend();
                return Ok(());
            }
            Err(Trouble::Wrong(wrong)) => return Err(wrong),
        };
        let mut asked = 0;
        for effect in effects {
            asked += u32::from(matches!(&effect, Effect::Ask(_, frame) if frame.body != Request::Status));
            self.perform(effect)?;
        }
        let asked_max = L::asked_max(&self.settings);
        if asked > asked_max {
            return Err(format!("{asked} requests at once, {asked_max} may be"));
        }
        let Some(wake) = self.node.wakeup(now) else { return Ok(()) };
        if wake <= now {
            return Err("it wants to be woken in the past".to_owned());
        }
        if self.next_wake.is_none_or(|next| wake.0 < next) {
            self.next_wake = Some(wake.0);
            self.at(wake.0, Happening::Wake { life: self.life });
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), String> {
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
            }
            Effect::Ban(peer, why) => {
                let manner = self.nodes[usize::try_from(peer.0).expect("there are five")].manner;
                if manner.is_blameless() {
                    return Err(format!("{peer:?} is {manner:?} and was banned: {why}"));
                }
                self.banned.insert(peer);
                self.outcome.banned += 1;
            }
            Effect::Seek(_) => {}
            Effect::Build(version) => return Err(format!("nobody built {version:?}")),
            Effect::Switch(version) => self.done = Some(version),
            // A node would try again, or another way: here it tries again.
            Effect::End(Ended::Disk(_)) => self.mend(),
            Effect::End(Ended::Stalled { .. }) if self.outcome.lives < 20 => {
                self.node.kill();
                self.at(self.now + 1_000, Happening::Start);
            }
            Effect::End(why) => return Err(format!("it gave up: {why}")),
        }
        Ok(())
    }
}

fn id(peer: usize) -> PeerId {
    PeerId(peer as u64)
}
