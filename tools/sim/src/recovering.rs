//! A node whose state is damaged and that recovers: strategies in turn, what each of them builds, the checks, and the switch; from
//! snapshots, blocks and peers of which most are of no use, on a disk that fails and whose power is cut.
//!
//! What runs is the product's: [`recover`] and its report, stores, ledgers and blocks that are run again, libraries of snapshots and
//! their archives, and the machine that fetches from peers. After `keelstone-node`'s and not its own are the directories of
//! generations with the file that names the one that counts, the questions of which snapshots are worth a try, and the database
//! of blocks, which is in memory and loses nothing by itself.
//!
//! In most runs one way at least leads to the target: a whole snapshot here or elsewhere, an honest peer that has the version, or every
//! block from the genesis on. After each life what counts is what counted before, byte for byte, or all of the target.

use crate::PEERS;
use crate::blocks::{BLOCKS, Blocks, KeptBlocks};
use crate::chain::{built, options, read_all};
use crate::dice::Dice;
use crate::liar::{Manner, Node};
use crate::world::Outcome;
use keelstone_codec::{Decode as _, Encode as _, Hash, Height, Key, Namespace, Timestamp};
use keelstone_ledger::modules::standard;
use keelstone_ledger::{Bodies, Ledger, LedgerError, PoolLimits, check_fits};
use keelstone_store::files::{self, Act, Fault, FaultyFiles, File, Files, Guard, Interposed, LockError, MemoryFiles};
use keelstone_store::kv::{Batch, Kv, MemoryKv, Range};
use keelstone_store::{CheckLevel, Store};
use keelstone_sync::library::{Each, Expected, Info, Library, LibraryError, Making, Origin};
use keelstone_sync::peers::{
    Effect, Ended, EntriesError, Event, Frame, Joiner, PeerId, Request, Response, ServerLimits, Settings, Tick, Version,
};
use keelstone_sync::recovery::{
    Built, Depth, Failed, Report, SignedReport, Strategy, Target, Trust, World, by_time, causes, recover,
};
use keelstone_tree::Blake3;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Lives in which the disk fails and the power is cut; after them only the liars are left.
const STORM_LIVES: u64 = 4;
/// The last height that is recovered to.
const TARGET_MAX: u64 = 10;
/// A fetch from peers ends within this, in milliseconds, or never.
const FETCH_MS_MAX: u64 = 3_600_000;
/// How long an answer is waited for.
const PATIENCE_MS: u32 = 2_000;
/// Snapshots of one origin that are tried.
const TRIED_MAX: usize = 4;
/// The file that names the generation that counts.
const CURRENT: &str = "CURRENT";
/// Where what was fetched waits.
const STAGING: &str = "staging-";
const LIBRARY: &str = "library-";

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blunder {
    /// Nothing.
    None,
    /// What was built is taken for the target, and not looked at.
    BelievesItself,
    /// The old name goes before the new one is there.
    NamesAnew,
    /// The new name is not made durable.
    NamesInMemory,
    /// What is discarded goes also where it counts by now.
    DiscardsWhatCounts,
    /// The old state goes before the new one counts.
    ClearsFirst,
    /// What was fetched goes with what was built of it.
    ForgetsWhatItFetched,
    /// Peers that never answer are waited for, however long.
    WaitsForEver,
}

impl Blunder {
    /// All blunders; the number of a blunder is its place.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::BelievesItself,
        Self::NamesAnew,
        Self::NamesInMemory,
        Self::DiscardsWhatCounts,
        Self::ClearsFirst,
        Self::ForgetsWhatItFetched,
        Self::WaitsForEver,
    ];
}

/// The files of a disk whose names begin alike, as a directory of their own.
#[derive(Debug)]
struct Under {
    disk: Arc<dyn Files>,
    prefix: String,
}

#[derive(Debug)]
struct Unlocked;

impl Guard for Unlocked {}

impl Under {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Files for Under {
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        self.disk.create(&self.name(name), len)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.disk.open(&self.name(name))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(&self.name(from), &self.name(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(&self.name(name))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        let all = self.disk.list()?;
        Ok(all.iter().filter_map(|name| name.strip_prefix(&self.prefix)).map(str::to_owned).collect())
    }
    fn sync_directory(&self) -> io::Result<()> {
        self.disk.sync_directory()
    }
    fn lock(&self) -> Result<Box<dyn Guard>, LockError> {
        Ok(Box::new(Unlocked))
    }
}

/// What does not hold, if anything was noticed beside the work.
type Wrong = Arc<Mutex<Option<String>>>;

/// One run.
pub(crate) struct Recovering<const BLUNDER: usize> {
    dice: Dice,
    chain: &'static Blocks,
    target: Version,
    /// Whether a way that leads there is known to be.
    has_way: bool,
    now: u64,
    disk: FaultyFiles,
    /// The disk, seen through who watches what goes of what was fetched.
    watched: Arc<dyn Files>,
    /// Whether what is staged may go: the machine that fetches is at work.
    is_fetching: Arc<AtomicBool>,
    wrong: Wrong,
    nodes: Vec<Node<KeptBlocks>>,
    banned: BTreeSet<usize>,
    loss_percent: u64,
    /// A directory elsewhere with one snapshot.
    mirror: MemoryFiles,
    /// The blocks of each generation.
    blocks: BTreeMap<u32, Arc<MemoryKv>>,
    /// The old state, as it was before anybody recovered.
    old: BTreeMap<String, Vec<u8>>,
    /// What is built.
    aside: Option<u32>,
    /// Whether bytes of what is built may change on the disk.
    is_spoilt: bool,
    /// What goes wrong once it switches.
    late: Option<Fault>,
    /// Why the last attempts came to nothing.
    why: Vec<String>,
    outcome: Outcome,
}

/// The generation that a recovery is to replace.
const OLD: u32 = 1;

fn generation(number: u32) -> String {
    format!("gen-{number:06}-")
}

fn go_on(_: keelstone_sync::library::Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn machine(error: io::Error) -> Failed {
    Failed::Machine(error.to_string())
}

fn of_ledger(error: LedgerError) -> Failed {
    match error {
        LedgerError::Store(error) => error.into(),
        error => Failed::Damaged(causes(&error)),
    }
}

/// A database of the same records.
fn copy(of: &MemoryKv) -> Arc<MemoryKv> {
    let (kv, mut batch) = (MemoryKv::new(), Batch::new());
    for (key, value) in of.range(&Range::prefix(&[], usize::MAX)).expect("memory does not fail") {
        batch.put(key, value);
    }
    kv.write(batch).expect("memory does not fail");
    Arc::new(kv)
}

/// Changes a bit of a file, for good.
fn hurt(files: &dyn Files, names: &[String], dice: &mut Dice) {
    if names.is_empty() {
        return;
    }
    let name = &names[dice.place(names.len())];
    // A disk that fails may do half of it.
    let _ = files.open(name).and_then(|file| {
        let mut byte = [0];
        let at = dice.below(file.len()?);
        file.read_at(at, &mut byte)?;
        file.write_at(at, &[byte[0] ^ (1 << dice.below(8))])?;
        file.sync()
    });
}

/// Makes the snapshot of a height.
fn snapshot(library: &Library, chain: &Blocks, height: u64) {
    let (at, making) = (chain.at(height), Making { background: false, reserve_percent: 0, ..Making::default() });
    let made = library.create(&chain.view(at.height), &chain.params, at.height, at.root, &making, &mut go_on);
    made.expect("the disk does not fail yet");
}

impl<const BLUNDER: usize> Recovering<BLUNDER> {
    fn blunders(blunder: Blunder) -> bool {
        Blunder::ALL[BLUNDER] == blunder
    }

    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let number = dice.place(BLOCKS.len());
        let (chain, other) = (&BLOCKS[number], &BLOCKS[(number + 1) % BLOCKS.len()]);
        let target = chain.at(dice.between(2, TARGET_MAX));
        let height = target.height.0;
        // One of them leads to the target, whatever the others do; now and then it is not said that any does.
        let good = dice.percent(90).then(|| Strategy::ALL[dice.place(Strategy::ALL.len())]);
        let is_good = |strategy: Strategy, dice: &mut Dice| good == Some(strategy) || dice.percent(25);

        let limits = ServerLimits { zstd_level: 0, ..ServerLimits::default() };
        let honest = is_good(Strategy::PeerStateSync, &mut dice).then(|| dice.place(PEERS));
        let drawn = dice.percent(50).then(|| dice.one_of(&Manner::LIARS));
        let nodes: Vec<Node<KeptBlocks>> = (0..PEERS)
            .map(|peer| {
                let manner = match honest == Some(peer) {
                    true => Manner::Honest,
                    false => drawn.unwrap_or_else(|| dice.one_of(&Manner::LIARS)),
                };
                let newest = if honest == Some(peer) { height } else { dice.between(1, height) };
                let kept = KeptBlocks { chain, oldest: 1, newest, is_whole: true };
                Node::new(manner, kept, KeptBlocks { chain: other, oldest: 1, newest, is_whole: true }, limits)
            })
            .collect();

        let blocks = copy(&chain.kv);
        if !is_good(Strategy::BlockReplay, &mut dice) {
            let at = [&b"b"[..], &dice.between(1, height).to_be_bytes()].concat();
            let mut batch = Batch::new();
            match dice.below(3) {
                0 => drop(batch.delete(at)),
                1 => drop(batch.put(at.clone(), other.kv.get(&at).expect("memory does not fail").expect("it has it"))),
                _ => drop(batch.put(at, vec![0xff; 9])),
            }
            blocks.write(batch).expect("memory does not fail");
        }

        let disk = FaultyFiles::new(dice.roll());
        let all: Arc<dyn Files> = Arc::new(disk.clone());
        let under = |prefix: &str| Arc::new(Under { disk: all.clone(), prefix: prefix.to_owned() });
        let named = |prefix: &str| -> Vec<String> {
            let all = disk.list().expect("the disk does not fail yet");
            all.into_iter().filter(|name| name.starts_with(prefix)).collect()
        };
        let (library, _) = Library::open(under(LIBRARY)).expect("the disk does not fail yet");
        let is_whole = is_good(Strategy::LocalSnapshot, &mut dice);
        for _ in 0..dice.below(3) {
            snapshot(&library, chain, dice.between(1, height));
        }
        if !is_whole {
            hurt(&disk, &named(LIBRARY), &mut dice);
        }
        if good == Some(Strategy::LocalSnapshot) {
            snapshot(&library, chain, height);
        }
        drop(library);

        let mirror = MemoryFiles::new();
        let (elsewhere, _) = Library::open(Arc::new(MemoryFiles::new())).expect("memory does not fail");
        let is_whole = is_good(Strategy::NetworkSnapshot, &mut dice);
        let of = if is_whole || dice.percent(60) { chain } else { other };
        let at = if good == Some(Strategy::NetworkSnapshot) { height } else { dice.between(1, height) };
        snapshot(&elsewhere, of, at);
        let id = elsewhere.list()[0].id;
        elsewhere.export_directory(id, &mirror, 0, &mut go_on).expect("memory does not fail");
        if !is_whole {
            let names = mirror.list().expect("memory does not fail");
            hurt(&mirror, &names, &mut dice);
        }

        let state = chain.state(target.height);
        let entries = state.iter().map(|((name, key), value)| (name, key, &value[..]));
        built(under(&generation(OLD)), options(), entries, target).expect("the disk does not fail yet");
        for _ in 0..dice.between(1, 3) {
            hurt(&disk, &named(&generation(OLD)), &mut dice);
        }
        files::make(&disk, "CURRENT.next", CURRENT, 4, &OLD.to_le_bytes()).expect("the disk does not fail yet");
        disk.sync_directory().expect("the disk does not fail yet");

        let outcome = Outcome { manners: nodes.iter().map(|node| node.manner).collect(), ..Outcome::default() };
        let mut run = Self {
            chain,
            target,
            has_way: good.is_some(),
            now: 0,
            watched: Arc::new(disk.clone()),
            disk,
            is_fetching: Arc::default(),
            wrong: Wrong::default(),
            nodes,
            banned: BTreeSet::new(),
            loss_percent: dice.one_of(&[0, 0, 10]),
            mirror,
            blocks: BTreeMap::from([(OLD, blocks)]),
            old: BTreeMap::new(),
            aside: None,
            is_spoilt: false,
            late: None,
            why: Vec::new(),
            outcome,
            dice,
        };
        run.watch();
        run.old = run.image_of(OLD);
        run
    }

    /// From here on it is noted if something goes of what was fetched while nobody fetches.
    fn watch(&mut self) {
        let (is_fetching, wrong) = (self.is_fetching.clone(), self.wrong.clone());
        self.watched = Arc::new(Interposed::new(Arc::new(self.disk.clone()), move |name, act, go_on| {
            go_on()?;
            if matches!(act, Act::Remove) && name.starts_with(STAGING) && !is_fetching.load(Ordering::Relaxed) {
                let mut wrong = wrong.lock().expect("nobody panics holding it");
                wrong.get_or_insert_with(|| format!("{name}, which was fetched and proven, is gone"));
            }
            Ok(())
        }));
    }

    fn fail_within(&mut self, changes: u64, fault: Fault) {
        self.disk.fail_at(self.disk.changes() + self.dice.below(changes), fault);
    }

    fn noted(&self) -> Result<(), String> {
        self.wrong.lock().expect("nobody panics holding it").clone().map_or(Ok(()), Err)
    }

    fn note(&self, what: String) {
        self.wrong.lock().expect("nobody panics holding it").get_or_insert(what);
    }

    fn under(&self, prefix: &str) -> Arc<dyn Files> {
        Arc::new(Under { disk: self.watched.clone(), prefix: prefix.to_owned() })
    }

    fn image_of(&self, number: u32) -> BTreeMap<String, Vec<u8>> {
        let all = self.disk.image().into_iter();
        all.filter(|(name, _)| name.starts_with(&generation(number))).collect()
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Result<Outcome, String> {
        loop {
            let is_storm = self.outcome.lives < STORM_LIVES;
            self.outcome.lives += 1;
            self.late = None;
            let fails = is_storm && self.dice.percent(70);
            if fails {
                let fault = self.dice.one_of(&[
                    Fault::PowerCut,
                    Fault::PowerCut,
                    Fault::Io,
                    Fault::IoForever,
                    Fault::NoSpaceForever,
                    Fault::ShortWrite,
                ]);
                match self.dice.percent(40) {
                    true => self.late = Some(fault),
                    false => {
                        let within = self.dice.one_of(&[60, 400]);
                        self.fail_within(within, fault);
                    }
                }
            }
            self.is_spoilt = is_storm && self.dice.percent(30);
            if !is_storm {
                self.loss_percent = 0;
            }
            let recovered = self.live()?;
            self.noted()?;
            if recovered.is_some() || fails || self.dice.percent(50) {
                self.disk = self.disk.after_power_cut(self.dice.roll());
                self.watch();
            }
            self.disk.mend();
            let counts = self.judge()?;
            match recovered {
                Some(by) if counts == OLD => return Err(format!("what {by} had again is gone after a power cut")),
                Some(by) => {
                    (self.outcome.by, self.outcome.took_ms) = (Some(by), self.now);
                    return Ok(self.outcome);
                }
                // A switch that could not be seen through may have come as far as that: the next start finds it whole.
                None if counts != OLD => {
                    self.outcome.took_ms = self.now;
                    return Ok(self.outcome);
                }
                None if !is_storm && self.has_way => {
                    let Self { target, why, outcome, .. } = &self;
                    return Err(format!("nothing led to {target:?}: {why:#?}, {outcome:?}"));
                }
                None if !is_storm => {
                    self.outcome.took_ms = self.now;
                    return Ok(self.outcome);
                }
                None => self.outcome.rebuilt += 1,
            }
        }
    }

    /// A life: what does not count goes, and the strategies are tried in turn.
    fn live(&mut self) -> Result<Option<Strategy>, String> {
        (self.aside, self.why) = (None, Vec::new());
        let (target, depth) = (self.target, Depth::Full);
        if self.sweep().is_err() {
            return Ok(None);
        }
        let order: Vec<Strategy> = by_time(self, &target).into_iter().map(|(strategy, _)| strategy).collect();
        let began = self.now;
        let outcome = recover(&order, &target, depth, self);
        let by = outcome.recovered().map(|(strategy, _)| strategy);
        let failed = outcome.attempts.iter().filter_map(|(strategy, result)| Some((strategy, result.as_ref().err()?)));
        self.why = failed.map(|(strategy, failed)| format!("{strategy}: {failed}")).collect();
        let target = Target { height: target.height, root: target.root, trust: Trust::OwnRecord };
        let chain = (self.chain.params.chain_id.clone(), self.chain.genesis_hash());
        let report = Report::of(chain, (Timestamp(began), Timestamp(self.now)), &target, depth, &outcome);
        let signed = SignedReport { report, key: Hash::ZERO, signature: [0; 64] };
        let read = SignedReport::from_bytes(&signed.to_bytes()).map_err(|error| format!("its report: {error}"))?;
        if read.report.recovered_by() != by || read.report.attempts.len() != outcome.attempts.len() {
            return Err(format!("its report says {:?}, it was {by:?}", read.report));
        }
        if let Some((_, built)) = outcome.recovered() {
            self.outcome.amount = built.entries;
        }
        Ok(by)
    }

    /// What counts is what counted before, byte for byte, or all of the target.
    fn judge(&self) -> Result<u32, String> {
        let counts = self.current().map_err(|error| format!("nothing says what counts: {error}"))?;
        if counts == OLD {
            let same = self.image_of(OLD) == self.old;
            return if same { Ok(OLD) } else { Err("the old state still counts, and is not what it was".to_owned()) };
        }
        let files = Arc::new(Under { disk: Arc::new(self.disk.clone()), prefix: generation(counts) });
        let store = Store::<Blake3>::open(files, options()).map_err(|error| format!("what counts: {error}"))?;
        let found = (store.height(), store.root());
        if found != (Some(self.target.height), self.target.root) {
            return Err(format!("what counts is {found:?}, the target is {:?}", self.target));
        }
        let report = store.check(CheckLevel::Full, &mut |_| {}).map_err(|error| format!("what counts: {error}"))?;
        if let Some(problem) = report.problems.first() {
            return Err(format!("what counts is damaged: {problem}"));
        }
        let same = read_all(&store.view()) == self.chain.state(self.target.height);
        if same { Ok(counts) } else { Err("what counts holds something else".to_owned()) }
    }

    // ---- generations

    fn current(&self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.watched.open(CURRENT)?.read_at(0, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn remove_all(&self, of: impl Fn(&str) -> bool) -> io::Result<()> {
        for name in self.watched.list()?.iter().filter(|name| of(name)) {
            self.watched.remove(name)?;
        }
        self.sync_names()
    }

    fn sync_names(&self) -> io::Result<()> {
        if Self::blunders(Blunder::NamesInMemory) { Ok(()) } else { self.watched.sync_directory() }
    }

    /// Removes every generation but the one that counts.
    fn sweep(&self) -> io::Result<()> {
        let keep = generation(self.current()?);
        // Its name has to last before the others go.
        self.sync_names()?;
        self.remove_all(|name| name.starts_with("gen-") && !name.starts_with(&keep))
    }

    /// An empty generation to build in.
    fn fresh(&mut self) -> Result<u32, Failed> {
        let number = self.blocks.keys().last().map_or(OLD, |last| *last) + 1;
        let prefix = generation(number);
        self.remove_all(|name| name.starts_with(&prefix)).map_err(machine)?;
        self.blocks.insert(number, Arc::default());
        self.aside = Some(number);
        Ok(number)
    }

    fn switch(&self, to: u32) -> io::Result<()> {
        if Self::blunders(Blunder::ClearsFirst) {
            self.remove_all(|name| name.starts_with("gen-") && !name.starts_with(&generation(to)))?;
        }
        self.sync_names()?;
        if Self::blunders(Blunder::NamesAnew) {
            self.watched.remove(CURRENT)?;
        }
        files::make(&*self.watched, "CURRENT.next", CURRENT, 4, &to.to_le_bytes())?;
        self.sync_names()
    }

    // ---- what leads to the target

    fn bodies(&self) -> Bodies {
        Bodies::over(self.blocks[&OLD].clone())
    }

    /// Whether a version may lead to the target: it is not another than is known here, and blocks lead on from it.
    fn usable(&self, version: Version) -> Result<(), Failed> {
        let Version { height, root } = version;
        let target = self.target;
        if height > target.height || height == Height(0) {
            return Err(Failed::Unavailable(format!("it is of height {height}")));
        }
        let known = match height == target.height {
            true => Some(target.root),
            false => self.bodies().root(height).ok().flatten(),
        };
        if known.is_some_and(|known| known != root) {
            return Err(Failed::Misbehaved(format!("it says that height {height} has root {root}")));
        }
        if height < target.height {
            let bodies = self.bodies();
            let below = bodies.root(target.height.prev().expect("it is above another")).map_err(of_ledger)?;
            bodies.lead_over(height.next(), Some(root)).map_err(of_ledger)?;
            bodies.lead_over(target.height, below).map_err(of_ledger)?;
        }
        Ok(())
    }

    /// Builds a store of what `feed` hands out.
    fn store_of(
        &self,
        number: u32,
        at: Version,
        feed: &mut dyn FnMut(Each<'_>) -> Result<(), Failed>,
    ) -> Result<Store<Blake3>, Failed> {
        let mut building = Store::<Blake3>::build(self.under(&generation(number)), options(), at.height)?;
        let mut failed = None;
        let fed = feed(&mut |name: &Namespace, key: &[u8], value: &[u8]| {
            let key = Key::new(key).map_err(|error| LibraryError::Archive(error.to_string()))?;
            building.push(name, &key, value).map_err(|error| {
                failed = Some(Failed::from(error));
                LibraryError::Stopped
            })
        });
        fed.map_err(|error| failed.unwrap_or(error))?;
        Ok(building.finish(at.root)?)
    }

    /// Runs the blocks on a state, up to the target.
    fn run_on(&mut self, number: u32, store: Store<Blake3>) -> Result<Built, Failed> {
        let height = store.height().unwrap_or_default();
        let ledger = self.ledger_over(number, store)?;
        check_fits(&ledger.view(), height, Some((&self.chain.genesis.facts(), self.chain.genesis_hash())))
            .map_err(|error| Failed::Misbehaved(format!("the state is not one of this chain: {error}")))?;
        self.run_blocks(number, &ledger)
    }

    /// A ledger over a state, with the blocks below it that there are; without any, if they are damaged.
    fn ledger_over(&mut self, number: u32, store: Store<Blake3>) -> Result<Ledger<Blake3>, Failed> {
        let kv = copy(&self.blocks[&OLD]);
        self.blocks.insert(number, kv.clone());
        let store = match Ledger::open(store, kv, standard(), PoolLimits::default()) {
            Ok(ledger) => return Ok(ledger),
            Err(LedgerError::Store(error)) => return Err(error.into()),
            Err(_) => Store::open(self.under(&generation(number)), options())?,
        };
        let kv = Arc::<MemoryKv>::default();
        self.blocks.insert(number, kv.clone());
        Ledger::open(store, kv, standard(), PoolLimits::default()).map_err(of_ledger)
    }

    fn run_blocks(&mut self, number: u32, ledger: &Ledger<Blake3>) -> Result<Built, Failed> {
        let run = ledger.run_kept(&self.bodies(), self.target.height, &mut |_| ControlFlow::Continue(()));
        let blocks = run.map_err(of_ledger)?;
        ledger.store().flush()?;
        let found = Version { height: ledger.height(), root: ledger.root() };
        let at = if Self::blunders(Blunder::BelievesItself) { self.target } else { found };
        let entries = ledger.view().totals().count;
        if std::mem::take(&mut self.is_spoilt) {
            let names: Vec<String> = self.image_of(number).into_keys().collect();
            hurt(&self.disk, &names, &mut self.dice);
        }
        Ok(Built { at, entries, blocks })
    }

    /// Tries one candidate after the other until one has built the target.
    fn first_of<T>(
        &mut self,
        candidates: Vec<T>,
        mut build: impl FnMut(&mut Self, u32, &T) -> Result<Store<Blake3>, Failed>,
    ) -> Result<Built, Failed> {
        let mut why = Failed::Unavailable("there is nothing to begin with".to_owned());
        for candidate in candidates.iter().take(TRIED_MAX) {
            let number = self.fresh()?;
            match build(self, number, candidate).and_then(|store| self.run_on(number, store)) {
                Ok(built) => return Ok(built),
                Err(failed) => {
                    self.discard();
                    why = failed;
                }
            }
        }
        Err(why)
    }

    fn local_snapshot(&mut self) -> Result<Built, Failed> {
        let (library, _) = Library::inspect(self.under(LIBRARY))?;
        let version = |info: &Info| Version { height: info.id.height, root: info.root };
        let list = library.list().into_iter().filter(|info| self.usable(version(info)).is_ok()).collect();
        self.first_of(list, |run, number, info| {
            let pin = library.pin(info.id).ok_or(Failed::Unavailable("the snapshot is gone".to_owned()))?;
            let expected = Expected { params: Some(run.chain.params.clone()), root: Some(info.root) };
            run.store_of(number, version(info), &mut |each| {
                Origin::Kept(&pin).entries(&expected, each, &mut go_on)?;
                Ok(())
            })
        })
    }

    fn network_snapshot(&mut self) -> Result<Built, Failed> {
        let expected = Expected { params: Some(self.chain.params.clone()), root: None };
        let info = Origin::Directory(&self.mirror).inspect(&expected)?;
        let at = Version { height: info.id.height, root: info.root };
        self.usable(at)?;
        self.first_of(vec![at], |run, number, at| {
            let (mirror, expected) = (run.mirror.clone(), Expected { root: Some(at.root), ..expected.clone() });
            run.store_of(number, *at, &mut |each| {
                Origin::Directory(&mirror).entries(&expected, each, &mut go_on)?;
                Ok(())
            })
        })
    }

    fn block_replay(&mut self) -> Result<Built, Failed> {
        let number = self.fresh()?;
        let store = Store::<Blake3>::create(self.under(&generation(number)), options())?;
        let (kv, pool) = (self.blocks[&number].clone(), PoolLimits::default());
        let ledger = Ledger::create(store, kv, standard(), &self.chain.genesis, pool).map_err(of_ledger)?;
        self.run_blocks(number, &ledger)
    }

    fn peer_state_sync(&mut self) -> Result<Built, Failed> {
        let mut said = BTreeSet::new();
        for peer in (0..PEERS).filter(|peer| !self.banned.contains(peer)).collect::<Vec<_>>() {
            let frame = Frame { id: self.dice.roll(), body: Request::Status };
            self.outcome.requests += 1;
            let sent = self.nodes[peer].answer(Tick(self.now), &frame, u64::from(PATIENCE_MS), &mut self.dice);
            let answer = sent.first().filter(|sent| sent.delay_ms <= u64::from(PATIENCE_MS));
            if let Some(Frame { id, body: Response::Status(status) }) =
                answer.and_then(|sent| Frame::from_bytes(&sent.bytes).ok())
                && id == frame.id
                && self.usable(status.newest).is_ok()
            {
                said.insert((status.newest.height, status.newest.root));
            }
            self.now += 100;
        }
        let offers = said.into_iter().rev().map(|(height, root)| Version { height, root }).collect();
        self.first_of(offers, |run, number, at| {
            run.is_fetching.store(true, Ordering::Relaxed);
            let fetched = run.fetch(number, *at);
            run.is_fetching.store(false, Ordering::Relaxed);
            fetched
        })
    }

    /// Fetches a version from peers and builds it.
    fn fetch(&mut self, number: u32, at: Version) -> Result<Store<Blake3>, Failed> {
        let began = self.now;
        let settings = Settings {
            concurrent_requests_max: 4,
            request_timeout_ms: PATIENCE_MS,
            batch_bytes_max: 1_500,
            // spec: RECOVER-7
            stall_timeout_ms: if Self::blunders(Blunder::WaitsForEver) { u32::MAX } else { 4 * PATIENCE_MS },
            ..Settings::default()
        };
        let (params, seed) = (self.chain.params.clone(), self.dice.roll());
        let opened = Joiner::<Blake3>::open(self.under(STAGING), params, settings, at, Tick(self.now), seed);
        let mut joiner = opened.map_err(|error| Failed::Machine(error.to_string()))?;
        let mut effects = Vec::new();
        for peer in (0..PEERS).filter(|peer| !self.banned.contains(peer)) {
            effects.extend(joiner.step(Tick(self.now), Event::Connected(PeerId(peer as u64))));
        }
        let mut answers: BTreeMap<(u64, u64), (PeerId, u64, Vec<u8>)> = BTreeMap::new();
        let (mut count, mut store) = (0, None);
        loop {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Ask(peer, frame) => {
                        self.outcome.requests += 1;
                        let node = &mut self.nodes[usize::try_from(peer.0).expect("there are five")];
                        let sent = node.answer(Tick(self.now), &frame, u64::from(PATIENCE_MS), &mut self.dice);
                        for sent in sent {
                            if self.dice.percent(self.loss_percent) {
                                continue;
                            }
                            count += 1;
                            let when = self.now + sent.delay_ms + self.dice.between(2, 60);
                            answers.insert((when, count), (peer, frame.id, sent.bytes));
                        }
                    }
                    Effect::Ban(peer, why) => {
                        let peer = usize::try_from(peer.0).expect("there are five");
                        let manner = self.nodes[peer].manner;
                        if manner.is_blameless() {
                            self.note(format!("{peer} is {manner:?} and was banned: {why}"));
                        }
                        self.outcome.banned += u64::from(self.banned.insert(peer));
                    }
                    Effect::Build(version) => {
                        let mut missing = false;
                        let made = self.store_of(number, version, &mut |each| {
                            let handed = joiner.entries(|name, key, value| each(name, key, value));
                            handed.map_err(|error| match error {
                                EntriesError::Incomplete { .. } => {
                                    missing = true;
                                    Failed::Damaged("what is staged was lost".to_owned())
                                }
                                EntriesError::Ended(ended) => Failed::Machine(ended.to_string()),
                                EntriesError::Taker(error) => error.into(),
                            })
                        });
                        match made {
                            Ok(made) => {
                                store = Some(made);
                                effects.extend(joiner.step(Tick(self.now), Event::Built));
                            }
                            Err(_) if missing => {
                                let prefix = generation(number);
                                self.remove_all(|name| name.starts_with(&prefix)).map_err(machine)?;
                                effects.extend(joiner.step(Tick(self.now), Event::Tick));
                            }
                            Err(failed) => return Err(failed),
                        }
                    }
                    Effect::Switch(_) => {
                        return store.ok_or(Failed::Unavailable("it has built nothing".to_owned()));
                    }
                    Effect::End(Ended::Disk(error)) => return Err(Failed::Machine(error.to_string())),
                    Effect::End(why) => return Err(Failed::Unavailable(why.to_string())),
                    Effect::Seek(_) => {}
                }
            }
            if !effects.is_empty() {
                continue;
            }
            let wake = joiner.wakeup(Tick(self.now)).map(|wake| wake.0.max(self.now));
            let answered = answers.first_key_value().map(|((when, _), _)| *when);
            let Some(next) = wake.into_iter().chain(answered).min() else {
                self.note("it waits for nothing and has not ended".to_owned());
                return Err(Failed::Unavailable("it waits for nothing".to_owned()));
            };
            self.now = next;
            if self.now > began + FETCH_MS_MAX {
                self.note(format!("it has not ended after {FETCH_MS_MAX} ms"));
                return Err(Failed::Unavailable("it has not ended".to_owned()));
            }
            effects = match answers.first_entry().filter(|entry| entry.key().0 == next) {
                Some(entry) => {
                    let (peer, id, bytes) = entry.remove();
                    joiner.step(Tick(next), Event::Answered(peer, id, &bytes))
                }
                None => joiner.step(Tick(next), Event::Tick),
            };
        }
    }
}

impl<const BLUNDER: usize> World for Recovering<BLUNDER> {
    fn estimate_ms(&mut self, _: Strategy, _: &Version) -> Option<u64> {
        self.dice.percent(80).then(|| self.dice.below(1_000))
    }

    fn build(&mut self, strategy: Strategy, _: &Version) -> Result<Built, Failed> {
        match strategy {
            Strategy::LocalSnapshot => self.local_snapshot(),
            Strategy::PeerStateSync => self.peer_state_sync(),
            Strategy::BlockReplay => self.block_replay(),
            Strategy::NetworkSnapshot => self.network_snapshot(),
        }
    }

    fn check(&mut self, _: Depth) -> Result<Version, Failed> {
        if Self::blunders(Blunder::BelievesItself) {
            return Ok(self.target);
        }
        let number = self.aside.ok_or(Failed::Unsound("nothing was built".to_owned()))?;
        let store = Store::<Blake3>::open(self.under(&generation(number)), options())?;
        let found = store.check(CheckLevel::Full, &mut |_| {})?;
        if let Some(problem) = found.problems.first() {
            return Err(Failed::Unsound(causes(problem)));
        }
        if found.values != store.view().totals().count {
            return Err(Failed::Unsound("entries are missing".to_owned()));
        }
        let kv = self.blocks[&number].clone();
        let ledger = Ledger::open(store, kv, standard(), PoolLimits::default()).map_err(of_ledger)?;
        Ok(Version { height: ledger.height(), root: ledger.root() })
    }

    fn discard(&mut self) {
        if Self::blunders(Blunder::ForgetsWhatItFetched) {
            let _ = self.remove_all(|name| name.starts_with(STAGING));
        }
        let Some(number) = self.aside.take() else { return };
        let counts = self.current();
        let is_free = Self::blunders(Blunder::DiscardsWhatCounts) || counts.is_ok_and(|counts| counts != number);
        if is_free {
            // What cannot be removed now does not count, and goes at the next start.
            let _ = self.remove_all(|name| name.starts_with(&generation(number)));
        }
    }

    fn settle(&mut self) -> Result<(), Failed> {
        let number = self.aside.ok_or(Failed::Unsound("nothing was built".to_owned()))?;
        if let Some(fault) = self.late.take() {
            self.fail_within(8, fault);
        }
        self.switch(number).map_err(machine)?;
        self.aside = None;
        // What is left of the old one does not count, and goes at the next start.
        let _ = self.sweep();
        Ok(())
    }
}
