//! A node that keeps its state whole while the disk under it loses bytes: it checks itself, asks peers what they have, and
//! has again what is lost from whoever proves it.
//!
//! In rounds, some minutes apart. In each the chain may grow, bytes of any file may change behind the store's back, the disk
//! may fail and the node may die, also while it mends. After each, whatever can be read is what the chain has at that
//! height, and what cannot is said to be damaged. When the storm is over, one honest peer of five is enough to make the state
//! whole.

use crate::PEERS;
use crate::chain::{CHAINS, Chain, Kept, STATES, State, built, options};
use crate::dice::Dice;
use crate::liar::{Manner, Node};
use crate::world::Outcome;
use keelstone_codec::{Decode as _, Height, Root, Value};
use keelstone_store::files::{Fault, FaultyFiles, Files as _, SECTOR_BYTES};
use keelstone_store::{CheckLevel, CheckReport, Mended, Options, Retention, Store, StoreError};
use keelstone_sync::consistency::{
    Ask, Asked, Breaker, Certified, Checker, Cursor, Due, Effect, Gave, REPAIR_WINDOW_MS, REPAIRS_MAX, Report, Said,
    Sample, Settings, Silence, compare, heights, sample,
};
use keelstone_sync::peers::{Frame, Request, Response, ServerLimits, Tick, Version};
use keelstone_tree::{Blake3, Diff, HashKind, KeyRange, Read as _, ReadError};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

/// Rounds in which bytes are lost and disks and nodes fail; after them only the liars are left.
const STORM_ROUNDS: u64 = 8;
/// By then the state is whole: repairs are rationed by the hour, so it may take some.
const ROUNDS_MAX: u64 = 80;
/// How long an answer is waited for.
const PATIENCE_MS: u64 = 2_000;
/// Bytes that one slice of the scrub looks at.
const SLICE_BYTES: u64 = 40_000;

/// What is tried out: how a node looks after its state, or one with a lapse.
pub trait Tends {
    /// When repairs began that a node knows of after a restart, of those on record.
    fn recalls(begun: &[u64]) -> Vec<u64> {
        begun.to_vec()
    }

    /// Whether there may be another repair, which is then counted.
    fn may_mend(breaker: &mut Breaker, now_ms: u64) -> bool {
        breaker.begin(now_ms).is_ok()
    }

    /// What follows from a check.
    fn finds(checker: &mut Checker, sample: &Sample, report: Report) -> Vec<Effect> {
        checker.found(sample, report)
    }

    /// Has again what is damaged.
    ///
    /// # Errors
    /// [`StoreError`].
    fn mends(
        store: &Store<Blake3>,
        problems: &[StoreError],
        asked: &mut Asked<'_, '_, Blake3>,
    ) -> Result<Mended, StoreError> {
        store.mend(problems, asked)
    }

    /// What else it does about what peers say.
    ///
    /// # Errors
    /// [`StoreError`].
    fn heeds(_store: &Store<Blake3>, _report: &Report) -> Result<(), StoreError> {
        Ok(())
    }
}

/// As the product does it.
#[derive(Clone, Copy, Debug)]
pub struct Careful;

impl Tends for Careful {}

/// A node while it lives.
struct Home {
    store: Store<Blake3>,
    checker: Checker,
    breaker: Breaker,
}

/// One run.
pub(crate) struct Tending<K> {
    dice: Dice,
    chain: &'static Chain,
    now: u64,
    nodes: Vec<Node<Kept>>,
    loss_percent: u64,
    settings: Settings,
    options: Options,
    disk: FaultyFiles,
    home: Option<Home>,
    /// What lies beside the store and survives: how far the checker is, and when repairs began.
    cursor: Cursor,
    begun: Vec<u64>,
    /// The last height of the chain, and the last that was acknowledged here.
    newest: u64,
    taken: u64,
    /// Whether the disk was made to fail since it was last mended.
    is_excused: bool,
    /// Whether bytes of this disk were changed: what opening has to read may be among them.
    is_hurt: bool,
    /// Whether bytes of the log, or of what names the state, were changed since the node last started: of what lies there the
    /// last may look as if it had never been written.
    is_end_hurt: bool,
    outcome: Outcome,
    _tends: PhantomData<K>,
}

/// A peer that is asked one question and waited for.
struct Peer<'a> {
    node: &'a mut Node<Kept>,
    now: u64,
    loss_percent: u64,
    dice: Dice,
    requests: &'a mut u64,
}

impl Ask for Peer<'_> {
    fn ask(&mut self, request: &Request) -> Result<Response, Silence> {
        *self.requests += 1;
        let id = self.dice.roll();
        let frame = Frame { id, body: request.clone() };
        if self.dice.percent(self.loss_percent) {
            return Err(Silence("lost on the way".to_owned()));
        }
        let sent = self.node.answer(Tick(self.now), &frame, PATIENCE_MS, &mut self.dice);
        let sent = sent.into_iter().next().filter(|sent| sent.delay_ms <= PATIENCE_MS);
        let sent = sent.ok_or_else(|| Silence("no answer in time".to_owned()))?;
        match Frame::<Response>::from_bytes(&sent.bytes) {
            Ok(frame) if frame.id == id => Ok(frame.body),
            Ok(_) => Err(Silence("an answer to another question".to_owned())),
            Err(error) => Err(Silence(error.to_string())),
        }
    }
}

impl<K: Tends> Tending<K> {
    pub(crate) fn new(seed: u64, gang: Option<Manner>) -> Self {
        let mut dice = Dice::new(seed);
        let number = dice.place(CHAINS.len());
        let (chain, other) = (&CHAINS[number], &CHAINS[(number + 1) % CHAINS.len()]);
        let newest = dice.between(2, STATES);
        let limits = ServerLimits { zstd_level: 0, ..ServerLimits::default() };
        let honest = dice.place(PEERS);
        let nodes: Vec<Node<Kept>> = (0..PEERS)
            .map(|peer| {
                let liar = gang.unwrap_or_else(|| dice.one_of(&Manner::LIARS));
                let is_honest = peer == honest || (gang.is_none() && dice.percent(25));
                let manner = if is_honest { Manner::Honest } else { liar };
                let oldest = if peer == honest { 1 } else { dice.between(1, newest) };
                Node::new(manner, Kept { chain, oldest, newest }, Kept { chain: other, oldest: 1, newest }, limits)
            })
            .collect();
        let settings = Settings {
            check_interval_ms: dice.one_of(&[60_000, 300_000, 1_500_000]),
            state_root_sample_size: u32::try_from(dice.below(4)).expect("a small number"),
            peer_sample_size: u32::try_from(dice.between(1, PEERS as u64)).expect("a small number"),
            account_sample_size: u32::try_from(dice.between(1, 100)).expect("a small number"),
            auto_repair: true,
        };
        // With nothing in memory all has to come from elsewhere.
        let cache_bytes = dice.one_of(&[0, 0, 1 << 20]);
        let options = Options {
            segment_bytes: 32 << 10,
            page_segment_bytes: 32 << 10,
            flush_bytes: dice.one_of(&[1 << 10, 16 << 10]),
            cache_bytes,
            value_cache_bytes: cache_bytes / 16,
            history: dice.one_of(&[Retention::All, Retention::Heights(3)]),
            ..options()
        };
        let disk = FaultyFiles::new(dice.roll());
        let outcome = Outcome { manners: nodes.iter().map(|node| node.manner).collect(), ..Outcome::default() };
        let mut run = Self {
            chain,
            now: 0,
            nodes,
            loss_percent: dice.one_of(&[0, 0, 10]),
            settings,
            options,
            disk,
            home: None,
            cursor: Cursor::default(),
            begun: Vec::new(),
            newest,
            taken: 0,
            is_excused: false,
            is_hurt: false,
            is_end_hurt: false,
            outcome,
            dice,
            _tends: PhantomData,
        };
        let from = run.dice.between(1, newest);
        run.found(from);
        run
    }

    /// A new disk with the state of a height, as a joiner or a recovery leaves it.
    fn found(&mut self, height: u64) {
        self.home = None;
        self.disk = FaultyFiles::new(self.dice.roll());
        let at = self.chain.at(height);
        let entries = self.chain.state(at.height).iter().map(|((name, key), value)| (name, key, &value[..]));
        built(Arc::new(self.disk.clone()), self.options.clone(), entries, at).expect("the disk does not fail yet");
        self.taken = height;
        (self.is_hurt, self.is_end_hurt, self.is_excused) = (false, false, false);
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Result<Outcome, String> {
        for round in 0..ROUNDS_MAX {
            let is_storm = round < STORM_ROUNDS;
            if !is_storm {
                self.loss_percent = 0;
                self.calm();
            }
            self.start()?;
            if is_storm {
                self.storm()?;
            }
            self.work()?;
            self.judge()?;
            if !is_storm && self.is_whole()? {
                self.outcome.took_ms = self.now;
                return Ok(self.outcome);
            }
            self.now += self.settings.check_interval_ms + 1;
        }
        Err(format!("the state is not whole after {ROUNDS_MAX} rounds: {:?}", self.outcome))
    }

    /// Nothing fails any more.
    fn calm(&mut self) {
        if self.is_excused {
            self.kill(true);
            self.disk.mend();
            self.is_excused = false;
        }
    }

    fn kill(&mut self, power: bool) {
        self.home = None;
        if power {
            self.disk = self.disk.after_power_cut(self.dice.roll());
        }
    }

    /// A life begins, from what is on the disk. What does not open is had again as a whole, which other runs are about.
    fn start(&mut self) -> Result<(), String> {
        if self.home.is_some() {
            return Ok(());
        }
        self.outcome.lives += 1;
        let store = match Store::<Blake3>::open(Arc::new(self.disk.clone()), self.options.clone()) {
            // What was read wrong, or could not be read, may be right on the disk.
            Err(_) if self.is_excused => {
                self.calm();
                Store::open(Arc::new(self.disk.clone()), self.options.clone())
            }
            opened => opened,
        };
        let store = match store {
            Ok(store) if store.height() < Some(Height(self.taken)) && self.is_end_hurt => None,
            Err(error) if error.is_damage() && self.is_hurt => None,
            Ok(store) => Some(store),
            Err(error) => return Err(format!("it could not be opened: {error}")),
        };
        let Some(store) = store else {
            self.outcome.rebuilt += 1;
            self.found(self.newest);
            return self.start();
        };
        self.is_end_hurt = false;
        let checker = Checker::new(self.settings, self.cursor.clone(), Tick(self.now));
        let breaker = Breaker::new(K::recalls(&self.begun));
        self.home = Some(Home { store, checker, breaker });
        self.judge()
    }

    /// What goes wrong in a round, before the node looks.
    fn storm(&mut self) -> Result<(), String> {
        if self.dice.percent(40) {
            self.newest += 1;
            let newest = self.newest;
            self.nodes.iter_mut().for_each(|node| node.grow(newest, u64::MAX));
        }
        while self.taken < self.newest && self.dice.percent(70) && self.home.is_some() {
            self.commit()?;
        }
        for _ in 0..self.dice.below(4) {
            self.hurt();
        }
        if self.dice.percent(20) {
            let power = self.dice.percent(50);
            self.kill(power);
            self.start()?;
        }
        if self.dice.percent(25) {
            let fault = self.dice.one_of(&[
                Fault::Io,
                Fault::IoForever,
                Fault::NoSpaceForever,
                Fault::ShortWrite,
                Fault::PowerCut,
            ]);
            self.disk.fail_at(self.disk.changes() + self.dice.below(25), fault);
            self.is_excused = true;
        }
        if self.dice.percent(15) {
            self.disk.flip_reads(self.disk.reads() + self.dice.below(40), self.dice.below(4));
            self.is_excused = true;
        }
        Ok(())
    }

    /// The next block.
    fn commit(&mut self) -> Result<(), String> {
        let Some(home) = &self.home else { return Ok(()) };
        let height = self.taken + 1;
        let diff = between(self.chain.state(Height(self.taken)), self.chain.state(Height(height)));
        match home.store.commit(Height(height), diff) {
            Ok(root) if root == self.chain.at(height).root => {
                self.taken = height;
                Ok(())
            }
            Ok(root) => Err(format!("height {height} came to {root}")),
            // What it replaces has to be read, and is damaged.
            Err(error) => self.failed("committed", &error),
        }
    }

    /// Some bytes of a file change, for good, and nobody says so.
    fn hurt(&mut self) {
        let image = self.disk.image();
        let files: Vec<(&String, &Vec<u8>)> = image.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
        let Some((name, bytes)) = (!files.is_empty()).then(|| files[self.dice.place(files.len())]) else { return };
        let at = self.dice.place(bytes.len());
        let (start, spoilt) = match self.dice.below(3) {
            0 => (at, vec![bytes[at] ^ (1 << self.dice.below(8))]),
            1 => {
                let start = at - at % SECTOR_BYTES;
                (start, vec![0; SECTOR_BYTES.min(bytes.len() - start)])
            }
            _ => {
                let len = self.dice.between(1, 64).min((bytes.len() - at) as u64);
                (at, (0..len).map(|_| self.dice.roll().to_le_bytes()[0]).collect())
            }
        };
        // A disk that fails may do half of it.
        let _ = self.disk.open(name).and_then(|file| file.write_at(start as u64, &spoilt).and_then(|()| file.sync()));
        self.is_hurt = true;
        self.is_end_hurt |= !["pages", "values"].iter().any(|kind| name.ends_with(kind));
    }

    /// Peers as they are asked in a check, others each time.
    fn peers<'a>(
        nodes: &'a mut [Node<Kept>],
        counts: &'a mut [u64],
        (now, loss_percent): (u64, u64),
        dice: &mut Dice,
    ) -> Vec<(String, Peer<'a>)> {
        let asked = nodes.iter_mut().zip(counts).enumerate();
        asked
            .map(|(peer, (node, requests))| {
                (peer.to_string(), Peer { node, now, loss_percent, dice: Dice::new(dice.roll()), requests })
            })
            .collect()
    }

    /// What a node does by itself: a check, a slice of the scrub, and what follows.
    fn work(&mut self) -> Result<(), String> {
        let Some(mut home) = self.home.take() else { return Ok(()) };
        let due = home.checker.due(Tick(self.now)).filter(|_| self.dice.percent(95));
        let mut problems: Vec<StoreError> = Vec::new();
        let mut worked = Ok(());
        if let Some(due) = due {
            worked = self.check(&mut home, &due, &mut problems);
        }
        if worked.is_ok() {
            worked = match home.store.scrub(SLICE_BYTES) {
                Ok(scrubbed) => {
                    problems.extend(scrubbed.problems.into_iter().filter(StoreError::is_damage));
                    Ok(())
                }
                Err(error) => Err(Broken::Store("scrubbed", error)),
            };
        }
        if worked.is_ok() && !problems.is_empty() && K::may_mend(&mut home.breaker, self.now) {
            self.begun.push(self.now);
            let lately = self.begun.iter().filter(|begun| self.now - **begun < REPAIR_WINDOW_MS).count();
            if lately > REPAIRS_MAX {
                return Err(format!("it mends for the {lately}th time within an hour"));
            }
            worked = self.mend(&home.store, &problems);
        }
        self.home = Some(home);
        match worked {
            Ok(()) => Ok(()),
            Err(Broken::Rule(wrong)) => Err(wrong),
            Err(Broken::Store(doing, error)) => self.failed(doing, &error),
        }
    }

    fn check(&mut self, home: &mut Home, due: &Due, problems: &mut Vec<StoreError>) -> Result<(), Broken> {
        let view = home.store.view();
        let at = Version { height: view.height().expect("it has a height"), root: view.root() };
        let names: Vec<_> = view.namespaces().into_iter().map(|(name, _)| name).collect();
        let mut picked = match sample::<Blake3>(&view, &names, due.from.as_ref(), due.entries) {
            Ok(picked) => picked,
            // A check that fails leaves nothing paused: the next one is due as ever.
            Err(_) if self.is_excused => return Ok(()),
            Err(error) => return Err(Broken::Rule(format!("it could not read: {error}"))),
        };
        let low = home.store.low().expect("it has heights");
        for height in heights(low, at.height, due.roots, due.number) {
            picked.roots.push(self.chain.at(height.0));
        }
        let certified = Certified::Root(self.chain.at(at.height.0).root);
        let mut counts = [0; PEERS];
        let mut peers = Self::peers(&mut self.nodes, &mut counts, (self.now, self.loss_percent), &mut self.dice);
        let first = usize::try_from(due.number).expect("a small number") % PEERS;
        peers.rotate_left(first);
        peers.truncate(due.peers as usize);
        let mut asked: Vec<(String, &mut dyn Ask)> =
            peers.iter_mut().map(|(name, peer)| (name.clone(), peer as &mut dyn Ask)).collect();
        let report = compare::<Blake3>(at, certified, &picked, &mut asked);
        drop(asked);
        drop(peers);
        self.outcome.requests += counts.iter().sum::<u64>();
        self.judge_report(&report, &picked)?;
        K::heeds(&home.store, &report).map_err(|error| Broken::Store("heeded", error))?;
        for effect in K::finds(&mut home.checker, &picked, report) {
            match effect {
                Effect::Save(cursor) => self.cursor = cursor,
                Effect::Alarm(_) => self.outcome.banned += 1,
                Effect::Repair(to) if to != at => {
                    return Err(Broken::Rule(format!("it would repair {at:?} to {to:?}")));
                }
                // A sample names no file: all is looked at.
                Effect::Repair(_) => problems.extend(self.look(&home.store)?.problems),
            }
        }
        Ok(())
    }

    fn look(&self, store: &Store<Blake3>) -> Result<CheckReport, Broken> {
        store.check(CheckLevel::Full, &mut |_| {}).map_err(|error| Broken::Store("looked at", error))
    }

    /// What a report says of whom.
    fn judge_report(&self, report: &Report, picked: &Sample) -> Result<(), Broken> {
        for (namespace, key, hash) in &picked.entries {
            let place = (namespace.clone(), key.clone());
            let state = self.chain.state(report.at.height);
            if state.get(&place).map(|value| HashKind::Blake3.hash(value)) != Some(*hash) {
                return Err(Broken::Rule(format!("{place:?} was read, and is not so")));
            }
        }
        for opinion in &report.peers {
            let manner = self.manner(&opinion.peer);
            let is_fair = match &opinion.said {
                Said::Misbehaved(_) => !manner.is_blameless(),
                Said::Differs(root) => *root != report.at.root && !manner.is_blameless(),
                Said::Agrees => opinion.entries_agreed as usize == picked.entries.len(),
                Said::Nothing(_) => true,
            };
            if !is_fair {
                return Err(Broken::Rule(format!("{manner:?} said {:?}", opinion.said)));
            }
        }
        Ok(())
    }

    fn manner(&self, name: &str) -> Manner {
        self.nodes[name.parse::<usize>().expect("its place")].manner
    }

    fn mend(&mut self, store: &Store<Blake3>, problems: &[StoreError]) -> Result<(), Broken> {
        let mut counts = [0; PEERS];
        let mut peers = Self::peers(&mut self.nodes, &mut counts, (self.now, self.loss_percent), &mut self.dice);
        let mut asked: Vec<(String, &mut dyn Ask)> =
            peers.iter_mut().map(|(name, peer)| (name.clone(), peer as &mut dyn Ask)).collect();
        let (chain, low) = (self.chain, store.low().unwrap_or_default());
        let mut root_at = |height: Height| -> Option<Root> { (height >= low).then(|| chain.at(height.0).root) };
        let mut asked = Asked::<Blake3>::new(&mut asked, &mut root_at);
        let mended = K::mends(store, problems, &mut asked);
        let gave: Vec<(String, Gave)> = asked.gave().map(|(name, gave)| (name.to_owned(), gave.clone())).collect();
        drop(peers);
        self.outcome.requests += counts.iter().sum::<u64>();
        for (name, gave) in gave {
            let manner = self.manner(&name);
            if matches!(gave, Gave::Misbehaved(_)) && manner.is_blameless() {
                return Err(Broken::Rule(format!("{manner:?} came to {gave:?}")));
            }
        }
        let mended = mended.map_err(|error| Broken::Store("mended", error))?;
        self.outcome.amount += mended.supplied_entries;
        Ok(())
    }

    /// A disk that was made to fail is mended, and the node starts again; damage may be met anywhere; nothing else may fail.
    fn failed(&mut self, doing: &str, error: &StoreError) -> Result<(), String> {
        match error {
            error if error.is_damage() => Ok(()),
            _ if self.is_excused => {
                self.calm();
                Ok(())
            }
            error => Err(format!("it could not be {doing}: {error}")),
        }
    }

    /// Whatever can be read is the chain's, and what was acknowledged is there.
    fn judge(&mut self) -> Result<(), String> {
        let Some(home) = &self.home else { return Ok(()) };
        let (height, root) = (home.store.height().expect("it has a height").0, home.store.root());
        // A commit that was not acknowledged may be there all the same.
        if height < self.taken || height > self.taken + 1 || height > self.newest {
            return Err(format!(
                "it stands at {height}, {} was acknowledged, the chain is at {}",
                self.taken, self.newest
            ));
        }
        if root != self.chain.at(height).root {
            return Err(format!("its root at {height} is {root}, which is not the chain's"));
        }
        self.taken = height;
        read(&home.store, self.chain.state(Height(height)), self.is_excused).map(drop)
    }

    /// Whether all can be read, also by whoever has nothing in memory.
    fn is_whole(&mut self) -> Result<bool, String> {
        let Some(home) = &self.home else { return Ok(false) };
        if home.store.flush().is_err() {
            return Ok(false);
        }
        if !read(&home.store, self.chain.state(Height(self.taken)), false)? {
            return Ok(false);
        }
        self.kill(false);
        self.start()?;
        let home = self.home.as_ref().expect("it was started");
        read(&home.store, self.chain.state(Height(self.taken)), false)
    }
}

/// Why a node came to nothing.
enum Broken {
    /// The store says so.
    Store(&'static str, StoreError),
    /// Something does not hold.
    Rule(String),
}

/// Reads all entries, one by one and in a row. Says whether all can be read.
fn read(store: &Store<Blake3>, state: &State, is_excused: bool) -> Result<bool, String> {
    let (view, mut is_whole) = (store.view(), true);
    let mut excuse = |place: &dyn std::fmt::Debug, error: ReadError| match error {
        ReadError::Damaged { .. } => {
            is_whole = false;
            Ok(())
        }
        _ if is_excused => {
            is_whole = false;
            Ok(())
        }
        error => Err(format!("{place:?} cannot be read: {error}")),
    };
    for ((name, key), value) in state {
        match view.get(name, key) {
            Ok(Some(found)) if *found == value[..] => {}
            Ok(found) => return Err(format!("{name}/{key:?} is read as {found:?}, and is {value:?}")),
            Err(error) => excuse(&key, error)?,
        }
    }
    let mut found = 0;
    for (name, _) in view.namespaces() {
        for entry in view.scan(&name, KeyRange::all()) {
            match entry {
                Ok((key, value)) if state.get(&(name.clone(), key.clone())).is_some_and(|own| *value == own[..]) => {
                    found += 1
                }
                Ok((key, _)) => return Err(format!("{name}/{key:?} is read, and is not so")),
                Err(error) => excuse(&name, error)?,
            }
        }
    }
    if is_whole && found != state.len() {
        return Err(format!("{found} entries are read of {}", state.len()));
    }
    Ok(is_whole)
}

/// What leads from one state to the other.
fn between(from: &State, to: &State) -> Diff {
    let gone = from.keys().filter(|place| !to.contains_key(*place)).map(|place| (place.clone(), None));
    let new = to.iter().filter(|(place, value)| from.get(*place) != Some(value));
    let new = new.map(|(place, value)| (place.clone(), Some(Value::new(value.clone()).expect("not empty"))));
    gone.chain(new).collect::<BTreeMap<_, _>>().into()
}
