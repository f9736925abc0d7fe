//! The workload that stores are compared on: the same keys, values, order and mix of operations for every engine.
//!
//! Everything is a pure function of the sizes asked for. Keys and values come from SHA-256 of a counter, the order
//! from splitmix64 with fixed seeds, so two engines that run it see the same bytes and, where their roots depend on
//! contents only, a run can be repeated to the same root.
//!
//! * W1 loads `n` keys of 32 bytes with values of 100 in blocks; W2 commits blocks of updates, a root each: 80 %
//!   overwrites, 10 % inserts, 10 % deletes of distinct keys; W3 reads random keys; W4 proves present and absent keys
//!   and verifies each proof; W5 exports the state in key order and rebuilds it in an empty store.
//! * Only what the store does is timed: building and sorting batches and computing expected values are not.
//!
//! W6, which runs only if it is asked for by name, commits the blocks of W2 for as long as one says, with all that a burst is
//! over before: flushes, compaction, the log coming round.
//!
//! [`cliffs()`] runs other shapes of keys, values and blocks, each beside W2.
//!
//! [`open()`] measures how long a store takes to open after its process was killed.
//!
//! [`beside`] measures something else on the same state: how long commits take, at half the rate that can be had, while a
//! snapshot is made and while none is.
//!
//! Every line says how much memory the store may have for pages and for values.
//!
//! What each figure means, and the figures: `docs/performance.md`.
#![expect(clippy::float_arithmetic, reason = "rates for people; nothing here is state")]
#![expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]

mod cliffs;
mod open;
mod sustained;

use crate::engine::{Held, Version as _};
use crate::way::{Way, sliced, step_back};
use keelstone_codec::{ChainId, Height, Key, Namespace, Root, Value, splitmix64};
use keelstone_ledger::ChainLimits;
use keelstone_store::files::Directory;
use keelstone_store::{Options, Retention, Store, StoreError};
use keelstone_sync::library::{Library, LibraryError, Making};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{
    Answer, Blake3, Diff, Hasher as _, KeyRange, Proof, ProofError, ProofLimits, Query, Read, ReadError, Write,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) use cliffs::{CliffSizes, SHAPES, cliffs};
pub(crate) use open::{OpenSizes, open, work};

/// The namespace the workload's keys live in.
const NAMESPACE: &str = "bench";

/// How much of each workload to run.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    pub(crate) keys: u64,
    pub(crate) block: u64,
    pub(crate) update_blocks: usize,
    pub(crate) update_size: usize,
    pub(crate) reads: usize,
    pub(crate) proofs: usize,
    /// How long W6 commits.
    pub(crate) seconds: u64,
    /// Of the store.
    pub(crate) options: Options,
    /// The workloads to run after W1; all if none.
    pub(crate) only: Option<Vec<String>>,
}

impl Sizes {
    fn wants(&self, workload: &str) -> bool {
        self.only.is_none() || self.names(workload)
    }

    fn names(&self, workload: &str) -> bool {
        self.only.iter().flatten().any(|name| name == workload)
    }
}

/// One line of results. Field names are those of the other engines' lines.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) w: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) version: &'static str,
    pub(crate) n: u64,
    /// Bytes of pages and of values that the store may hold in memory.
    pub(crate) cache_bytes: u64,
    pub(crate) value_cache_bytes: u64,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

impl Line {
    fn of(w: &'static str, n: u64, options: &Options, figures: Figures) -> Self {
        let Options { cache_bytes, value_cache_bytes, .. } = *options;
        Self { w, peer: "keelstone", version: env!("CARGO_PKG_VERSION"), n, cache_bytes, value_cache_bytes, figures }
    }
}

/// The figures of a workload.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Figures {
    Info {
        hashes_keys: &'static str,
        durability: &'static str,
        import_how: &'static str,
    },
    Load {
        secs: f64,
        keys_per_s: u64,
        disk: u64,
        rss_kb: u64,
        rss0_kb: u64,
        root: Root,
    },
    Update {
        updates_per_s: u64,
        med_ms: f64,
        p99_ms: f64,
        max_ms: f64,
        written_per_block: u64,
        disk: u64,
        rss_kb: u64,
        root: Root,
    },
    Sustained {
        seconds: u64,
        updates_per_s: u64,
        /// Updates in a second: in the middle one and in the worst.
        second_med: u64,
        second_min: u64,
        med_ms: f64,
        p99_ms: f64,
        max_ms: f64,
        /// Bytes.
        written_per_update: u64,
        /// The most it took, looked at each second; and that beside the keys and values that live.
        disk: u64,
        disk_ratio: f64,
        /// The same of the second half alone, in the middle and at most, without what the heights hold that are kept besides
        /// the last: the keys and values of their writes.
        #[serde(skip_serializing_if = "Option::is_none")]
        history: Option<u64>,
        history_bytes: u64,
        steady_med_ratio: f64,
        steady_max_ratio: f64,
        compactions: u64,
        /// Commits that waited for a flush, and for a compaction.
        flush_waits: u64,
        compaction_waits: u64,
        rss_kb: u64,
        root: Root,
    },
    Read {
        reads_per_s: u64,
        first_pass_per_s: u64,
        rss_kb: u64,
    },
    Prove {
        gen_per_s: u64,
        ver_per_s: u64,
        ver_many_per_s: u64,
        mean_bytes: f64,
        rss_kb: u64,
    },
    Cliff {
        shape: &'static str,
        blocks: usize,
        upd_size: usize,
        /// Of the store the shape ran on.
        load_per_s: u64,
        updates_per_s: u64,
        med_ms: f64,
        p99_ms: f64,
        max_ms: f64,
        /// What a flush takes once the last block is committed.
        flush_ms: f64,
        /// Times what an update of the plain shape takes, what a byte of its keys and values does, and what a block does.
        #[serde(skip_serializing_if = "Option::is_none")]
        update_ratio: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        byte_ratio: Option<f64>,
        block_ratio: f64,
        /// Bytes of keys and values in a block, and bytes written for it, that flush included.
        bytes_per_block: u64,
        written_per_block: u64,
        disk: u64,
        rss_kb: u64,
        root: Root,
    },
    Open {
        kills: usize,
        med_ms: f64,
        max_ms: f64,
        replayed_bytes_max: u64,
        entries: u64,
    },
    Beside {
        saturated_per_s: f64,
        blocks_per_s: f64,
        blocks: usize,
        blocks_beside: usize,
        med_ms: f64,
        med_beside_ms: f64,
        p99_ms: f64,
        p99_beside_ms: f64,
        p99_ratio: f64,
        snapshot_s: f64,
    },
    Copy {
        out_per_s: u64,
        in_per_s: u64,
        bytes: usize,
        same_root: bool,
        rss_kb: u64,
    },
}

/// Why a benchmark stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The store answered wrongly. No figure counts after this.
    #[error("wrong answer: {0}")]
    Wrong(String),
    /// A process that works on the store ended by itself, which says why.
    #[error("the process that commits ended with {0}")]
    Worker(std::process::ExitStatus),
}

// ---- the workload ------------------------------------------------------------------------------------------------

fn key(id: u64) -> [u8; 32] {
    Sha256::new().chain_update(b"key").chain_update(id.to_le_bytes()).finalize().into()
}

/// 100 bytes that do not compress.
fn value(id: u64, version: u32) -> Vec<u8> {
    let head = Sha256::new().chain_update(b"val").chain_update(id.to_le_bytes()).chain_update(version.to_le_bytes());
    let mut out: Vec<u8> = (0..4u8).flat_map(|part| head.clone().chain_update([part]).finalize()).collect();
    out.truncate(100);
    out
}

/// The first eight bytes of a value: what reads are summed over.
fn mark(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Small and seeded.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a length fits 64 bits");
        usize::try_from(self.next() % end).expect("below a length")
    }

    fn pick<T: Copy>(&mut self, from: &[T], count: usize) -> Vec<T> {
        (0..count).map(|_| from[self.below(from.len())]).collect()
    }
}

/// Writes sorted by key, each key once; `None` deletes.
type Batch<K = [u8; 32]> = Vec<(K, Option<Vec<u8>>)>;

/// What the store should hold: the id and version of every live key, in no more memory than needs be: it counts in what a
/// run takes.
struct Model {
    live: Vec<(u32, u32)>,
    next: u64,
    random: Random,
}

impl Model {
    fn new() -> Self {
        Self { live: Vec::new(), next: 0, random: Random(7) }
    }

    fn insert(&mut self, batch: &mut Batch) {
        let id = u32::try_from(self.next).expect("no run has 2^32 keys");
        self.next += 1;
        self.live.push((id, 0));
        batch.push(written(id, 0));
    }

    fn load_block(&mut self, size: u64) -> Batch {
        let mut batch = Batch::new();
        for _ in 0..size {
            self.insert(&mut batch);
        }
        sorted(batch)
    }

    /// Of `size` distinct keys 80 % are overwritten, 10 % inserted and 10 % deleted.
    fn update_block(&mut self, size: usize) -> Batch {
        let tenth = size / 10;
        let mut batch = Batch::with_capacity(size);
        let mut touched = HashSet::with_capacity(size);
        while batch.len() < size - 2 * tenth {
            let place = self.random.below(self.live.len());
            let (id, version) = self.live[place];
            if touched.insert(id) {
                self.live[place].1 = version + 1;
                batch.push(written(id, version + 1));
            }
        }
        while batch.len() < size - tenth {
            let place = self.random.below(self.live.len());
            let (id, _) = self.live[place];
            if touched.insert(id) {
                self.live.swap_remove(place);
                batch.push((key(id.into()), None));
            }
        }
        for _ in 0..tenth {
            self.insert(&mut batch);
        }
        sorted(batch)
    }
}

fn written(id: u32, version: u32) -> ([u8; 32], Option<Vec<u8>>) {
    (key(id.into()), Some(value(id.into(), version)))
}

fn sorted(mut batch: Batch) -> Batch {
    batch.sort_unstable_by_key(|(key, _)| *key);
    batch
}

// ---- the engine under it -----------------------------------------------------------------------------------------

struct Engine {
    store: Store<Blake3>,
    namespace: Namespace,
    height: Height,
}

impl Engine {
    fn create(directory: &Path, options: Options) -> Result<Self, BenchError> {
        let store = Store::create(Arc::new(Directory::new(directory)?), options)?;
        let namespace = Namespace::new(NAMESPACE).expect("the name is a constant and valid");
        Ok(Self { store, namespace, height: Height(0) })
    }

    fn commit(&mut self, batch: Batch<impl Into<Box<[u8]>>>) -> Result<Root, BenchError> {
        let write = |(key, value): (_, Option<Vec<u8>>)| Write {
            key: Key::new(key).expect("no key of a benchmark is longer than a key may be"),
            value: value.map(|value| Value::new(value).expect("nor is a value")),
        };
        let writes: Vec<Write> = batch.into_iter().map(write).collect();
        // A namespace of a diff has a write.
        let written = if writes.is_empty() { Vec::new() } else { vec![(self.namespace.clone(), writes)] };
        let diff =
            Diff::new(written).map_err(|error| BenchError::Wrong(format!("a sorted batch was refused: {error}")))?;
        self.height = Height(self.height.0 + 1);
        Ok(self.store.commit(self.height, diff)?)
    }

    /// The same, and how long it took.
    fn timed(&mut self, batch: Batch<impl Into<Box<[u8]>>>) -> Result<(Root, Duration), BenchError> {
        let start = Instant::now();
        let root = self.commit(batch)?;
        Ok((root, start.elapsed()))
    }
}

// ---- the measurements --------------------------------------------------------------------------------------------

/// Runs the workloads in `directory`, which is emptied first, and hands out one line each.
///
/// # Errors
/// [`BenchError::Wrong`] if the store answers wrongly, else what the store or the machine says.
pub(crate) fn run(directory: &Path, sizes: &Sizes, mut tell: impl FnMut(Line)) -> Result<(), BenchError> {
    let line = |w, figures| Line::of(w, sizes.keys, &sizes.options, figures);
    let data = directory.join("db");
    fs::create_dir_all(&data)?;
    tell(line(
        "info",
        Figures::Info {
            hashes_keys: "raw keys, ordered",
            durability: "fdatasync of the diff log each commit",
            import_how: "sorted pairs built bottom-up, root checked, durable",
        },
    ));
    let idle_memory = memory_kb();
    let mut engine = Engine::create(&data, sizes.options.clone())?;
    let mut model = Model::new();
    // A vector that doubles would be the most memory there ever was.
    model.live.reserve_exact(usize::try_from(sizes.keys).unwrap_or(0));

    let mut root = engine.store.root();
    let mut busy = Duration::ZERO;
    while model.next < sizes.keys {
        let (made, took) = engine.timed(model.load_block(sizes.block.min(sizes.keys - model.next)))?;
        root = made;
        busy += took;
    }
    tell(line(
        "W1",
        Figures::Load {
            secs: round(busy.as_secs_f64(), 4),
            keys_per_s: rate(sizes.keys, busy),
            disk: disk_bytes(&data),
            rss_kb: memory_kb(),
            rss0_kb: idle_memory,
            root,
        },
    ));
    if sizes.wants("W2") {
        let (figures, last) = update(&mut engine, &mut model, sizes, &data)?;
        root = last;
        tell(line("W2", figures));
    }
    if sizes.names("W6") {
        let (size, seconds) = (sizes.update_size, sizes.seconds);
        let history = match sizes.options.history {
            Retention::All => None,
            Retention::Heights(heights) => Some(heights),
        };
        let (figures, last) = sustained::sustained(&mut engine, &mut model, size, seconds, history, &data)?;
        root = last;
        tell(line("W6", figures));
    }
    if sizes.wants("W3") {
        tell(line("W3", read(&engine, &model, sizes)?));
    }
    if sizes.wants("W4") {
        let mut random = Random(13);
        let picks = random.pick(&model.live, sizes.proofs);
        let present = picks.into_iter().map(|(id, version)| written(id, version)).collect();
        tell(line("W4", prove(&engine, root, present)?));
        let ids = 0..u64::try_from(sizes.proofs).expect("a count fits 64 bits");
        let absent = ids.map(|id| (key(1 << 40 | id), None)).collect();
        tell(line("W4x", prove(&engine, root, absent)?));
    }
    if sizes.wants("W5") {
        tell(line("W5", copy(&engine, &model, root, &directory.join("imported"), &sizes.options)?));
    }
    engine.store.close()?;
    Ok(())
}

/// How much of [`beside`] to run.
#[derive(Debug, Clone)]
pub(crate) struct BesideSizes {
    pub(crate) keys: u64,
    pub(crate) update_size: usize,
    /// Blocks that find out how many there can be a second.
    pub(crate) saturating: usize,
    /// How often to measure without a snapshot and with one.
    pub(crate) rounds: usize,
    /// Those of a node: of its store, and of the snapshots it makes.
    pub(crate) options: Options,
    pub(crate) making: Making,
}

/// Commits blocks of updates at half the rate that can be had, in turn with nothing beside them and while a snapshot of the
/// state is made as a node makes it, and hands out one line.
///
/// # Errors
/// As [`run`].
pub(crate) fn beside(directory: &Path, sizes: &BesideSizes, mut tell: impl FnMut(Line)) -> Result<(), BenchError> {
    let data = directory.join("db");
    fs::create_dir_all(&data)?;
    let way = Arc::new(Way::default());
    let files = sliced(Arc::new(Directory::new(directory.join("snapshots"))?), &way);
    let (library, _) = Library::open(Arc::new(files))?;
    let (mut engine, mut model) = (Engine::create(&data, sizes.options.clone())?, Model::new());
    while model.next < sizes.keys {
        let batch = model.load_block(10_000.min(sizes.keys - model.next));
        engine.commit(batch)?;
    }

    let mut commit = |engine: &mut Engine| {
        let batch = model.update_block(sizes.update_size);
        let start = Instant::now();
        let at_work = way.block();
        engine.commit(batch)?;
        drop(at_work);
        Ok::<_, BenchError>(start.elapsed())
    };
    let mut busy = Duration::ZERO;
    for _ in 0..sizes.saturating {
        busy += commit(&mut engine)?;
    }
    let mean = busy / u32::try_from(sizes.saturating).unwrap_or(u32::MAX).max(1);
    let every = 2 * mean;

    let (mut alone, mut with, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
    for _ in 0..sizes.rounds {
        let params = SnapshotParams {
            chain_id: ChainId::new("bench").expect("a constant"),
            hasher: Blake3::KIND,
            chunk_weight_max: ChainLimits::default().snapshot_chunk_bytes,
        };
        let held = Held { view: engine.store.view(), params, way: way.clone() };
        let (library, done) = (&library, AtomicBool::new(false));
        // As a node makes those that nobody waits for.
        let making = Making { background: false, ..sizes.making };
        let before = with.len();
        let made = std::thread::scope(|threads| {
            let made = threads.spawn(|| {
                step_back();
                let start = Instant::now();
                let made = held.snapshot(library, &making, &mut |_| ControlFlow::Continue(()));
                done.store(true, Ordering::Release);
                made.map(|_| start.elapsed())
            });
            let mut next = Instant::now();
            while !done.load(Ordering::Acquire) {
                next = paced(next, every);
                with.push(commit(&mut engine)?);
            }
            Ok::<_, BenchError>(made.join())
        })?;
        took += made.map_err(|_| BenchError::Wrong("the snapshot's thread met a bug".to_owned()))??;
        library.keep(0)?;
        let mut next = Instant::now();
        for _ in before..with.len() {
            next = paced(next, every);
            alone.push(commit(&mut engine)?);
        }
    }
    let counts = (alone.len(), with.len());
    alone.sort_unstable();
    with.sort_unstable();
    let (p99, p99_beside) = (hundredths(&alone, 99), hundredths(&with, 99));
    let rounds = u32::try_from(sizes.rounds).unwrap_or(u32::MAX).max(1);
    let figures = Figures::Beside {
        saturated_per_s: round(1.0 / mean.as_secs_f64(), 1),
        blocks_per_s: round(1.0 / every.as_secs_f64(), 1),
        blocks: counts.0,
        blocks_beside: counts.1,
        med_ms: median(&alone).map_or(0.0, ms),
        med_beside_ms: median(&with).map_or(0.0, ms),
        p99_ms: p99,
        p99_beside_ms: p99_beside,
        p99_ratio: round(p99_beside / p99, 3),
        snapshot_s: round((took / rounds).as_secs_f64(), 3),
    };
    tell(Line::of("beside", sizes.keys, &sizes.options, figures));
    engine.store.close()?;
    Ok(())
}

/// Waits for the time of the next block, and says when the one after it is due. One that comes late is not caught up.
fn paced(next: Instant, every: Duration) -> Instant {
    let now = Instant::now();
    std::thread::sleep(next.saturating_duration_since(now));
    next.max(now) + every
}

/// The time that so many hundredths of them stayed within, in milliseconds.
fn hundredths(sorted: &[Duration], share: usize) -> f64 {
    let place = (sorted.len() * share).div_ceil(100).saturating_sub(1);
    sorted.get(place).map_or(0.0, |time| ms(*time))
}

/// The middle one: of an even number the upper of two, which is what the other engines' harness takes.
fn median<T: Copy>(sorted: &[T]) -> Option<T> {
    sorted.get(sorted.len() / 2).copied()
}

/// Milliseconds, to the microsecond.
fn ms(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1e3, 3)
}

fn update(engine: &mut Engine, model: &mut Model, sizes: &Sizes, data: &Path) -> Result<(Figures, Root), BenchError> {
    let mut root = engine.store.root();
    let mut times = Vec::with_capacity(sizes.update_blocks);
    let written = written_bytes();
    for _ in 0..sizes.update_blocks {
        let (made, took) = engine.timed(model.update_block(sizes.update_size))?;
        root = made;
        times.push(took);
    }
    let written = written_bytes().saturating_sub(written);
    let busy: Duration = times.iter().sum();
    times.sort_unstable();
    let blocks = u64::try_from(sizes.update_blocks).expect("a count fits 64 bits");
    let size = u64::try_from(sizes.update_size).expect("a count fits 64 bits");
    let figures = Figures::Update {
        updates_per_s: rate(blocks * size, busy),
        med_ms: median(&times).map_or(0.0, ms),
        p99_ms: hundredths(&times, 99),
        max_ms: hundredths(&times, 100),
        written_per_block: written / blocks.max(1),
        disk: disk_bytes(data),
        rss_kb: memory_kb(),
        root,
    };
    Ok((figures, root))
}

fn read(engine: &Engine, model: &Model, sizes: &Sizes) -> Result<Figures, BenchError> {
    let picks = Random(11).pick(&model.live, sizes.reads);
    let keys: Vec<[u8; 32]> = picks.iter().map(|(id, _)| key((*id).into())).collect();
    let values = picks.iter().map(|(id, version)| value((*id).into(), *version));
    let expected = values.map(|value| mark(&value)).fold(0, u64::wrapping_add);
    let view = engine.store.view();
    let mut passes = [Duration::ZERO; 2];
    for pass in &mut passes {
        let mut found = 0u64;
        let start = Instant::now();
        for key in &keys {
            let value = view.get(&engine.namespace, key)?;
            let value = value.ok_or_else(|| BenchError::Wrong("a live key reads as absent".to_owned()))?;
            found = found.wrapping_add(mark(&value));
        }
        *pass = start.elapsed();
        if found != expected {
            return Err(BenchError::Wrong(format!("values read sum to {found}, written were {expected}")));
        }
    }
    let reads = u64::try_from(sizes.reads).expect("a count fits 64 bits");
    let [first, second] = passes;
    Ok(Figures::Read { reads_per_s: rate(reads, second), first_pass_per_s: rate(reads, first), rss_kb: memory_kb() })
}

fn copy(engine: &Engine, model: &Model, root: Root, aside: &Path, options: &Options) -> Result<Figures, BenchError> {
    let mut count = 0u64;
    let view = engine.store.view();
    let start = Instant::now();
    // What is to come is known beforehand, but for two lengths for each entry.
    let totals = view.totals();
    let bytes = totals.bytes + 2 * totals.count;
    let mut stream = Vec::with_capacity(usize::try_from(bytes).expect("what a bench loads fits memory"));
    for entry in view.scan(&engine.namespace, KeyRange::all()) {
        let (key, value) = entry?;
        for part in [&key[..], &value[..]] {
            stream.push(u8::try_from(part.len()).expect("keys have 32 bytes and values 100"));
        }
        stream.extend_from_slice(&key);
        stream.extend_from_slice(&value);
        count += 1;
    }
    let out = start.elapsed();
    if count != u64::try_from(model.live.len()).expect("a length fits 64 bits") {
        return Err(BenchError::Wrong(format!("{count} entries exported, {} are live", model.live.len())));
    }

    fs::create_dir_all(aside)?;
    let start = Instant::now();
    let files = Arc::new(Directory::new(aside)?);
    let mut building = Store::<Blake3>::build(files, options.clone(), engine.height)?;
    let mut rest = &stream[..];
    while let Some((key, value)) = next_pair(&mut rest) {
        let key = Key::new(key.as_slice()).map_err(|error| BenchError::Wrong(error.to_string()))?;
        building.push(&engine.namespace, &key, value)?;
    }
    // It would not finish with another root, so the copy is verified.
    let copied = building.finish(root)?;
    let back = start.elapsed();
    let last = copied.root();
    if copied.view().totals() != view.totals() {
        return Err(BenchError::Wrong(format!("{:?} came back of {:?}", copied.view().totals(), view.totals())));
    }
    copied.close()?;
    Ok(Figures::Copy {
        out_per_s: rate(count, out),
        in_per_s: rate(count, back),
        bytes: stream.len(),
        same_root: last == root,
        rss_kb: memory_kb(),
    })
}

fn prove(engine: &Engine, root: Root, entries: Batch<impl AsRef<[u8]>>) -> Result<Figures, BenchError> {
    let wrong = |what: String| BenchError::Wrong(what);
    let key = |key: &[u8]| Key::new(key).expect("what was committed is a key");
    let query = |bytes: &[u8]| [Query::Key(engine.namespace.clone(), key(bytes))];
    let view = engine.store.view();
    let start = Instant::now();
    let mut proofs = Vec::with_capacity(entries.len());
    for (key, _) in &entries {
        proofs.push(view.prove_bytes(&query(key.as_ref()))?);
    }
    let made = start.elapsed();

    let limits = ProofLimits::default();
    let check = |bytes: &[u8], expected: &Option<Vec<u8>>, found: Result<Answer<&[u8]>, ProofError>| {
        let answer = found.map_err(|e| wrong(format!("the proof of {} does not verify: {e}", hex::encode(bytes))))?;
        match (answer, expected) {
            (Answer::Present(found), Some(expected)) if found == expected => Ok(()),
            (Answer::Absent, None) => Ok(()),
            (answer, _) => Err(wrong(format!("the proof of {} says {answer:?}", hex::encode(bytes)))),
        }
    };
    let start = Instant::now();
    for ((bytes, expected), proof) in entries.iter().zip(&proofs) {
        let bytes = bytes.as_ref();
        let found = Proof::verify_key::<Blake3>(proof, root, &engine.namespace, &key(bytes), &limits);
        check(bytes, expected, found)?;
    }
    let checked = start.elapsed();
    let start = Instant::now();
    let keys: Vec<Key> = entries.iter().map(|(bytes, _)| key(bytes.as_ref())).collect();
    let many = proofs.iter().zip(&keys).map(|(proof, key)| (proof.as_slice(), &engine.namespace, key));
    for ((bytes, expected), found) in entries.iter().zip(Proof::verify_many::<Blake3>(many, root, &limits)) {
        check(bytes.as_ref(), expected, found)?;
    }
    let checked_many = start.elapsed();
    if let (Some(proof), Some((bytes, Some(_)))) = (proofs.first(), entries.first()) {
        let mut forged = proof.clone();
        let middle = forged.len() / 2;
        forged[middle] ^= 1;
        if Proof::verify_key::<Blake3>(&forged, root, &engine.namespace, &key(bytes.as_ref()), &limits).is_ok() {
            return Err(wrong("a forged proof verifies".to_owned()));
        }
    }
    let count = u64::try_from(entries.len()).expect("a length fits 64 bits");
    let bytes: usize = proofs.iter().map(Vec::len).sum();
    Ok(Figures::Prove {
        gen_per_s: rate(count, made),
        ver_per_s: rate(count, checked),
        ver_many_per_s: rate(count, checked_many),
        mean_bytes: round(bytes as f64 / entries.len().max(1) as f64, 1),
        rss_kb: memory_kb(),
    })
}

/// Takes one key and value off a stream of pairs.
fn next_pair<'a>(rest: &mut &'a [u8]) -> Option<([u8; 32], &'a [u8])> {
    let (&[_, value_len], after) = rest.split_first_chunk()?;
    let (key, after) = after.split_first_chunk()?;
    let (value, after) = after.split_at_checked(usize::from(value_len))?;
    *rest = after;
    Some((*key, value))
}

fn rate(count: u64, busy: Duration) -> u64 {
    let nanos = busy.as_nanos().max(1);
    u64::try_from(u128::from(count) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

fn ratio(of: u64, to: u64) -> f64 {
    round(of as f64 / to.max(1) as f64, 2)
}

fn round(number: f64, places: i32) -> f64 {
    let scale = 10f64.powi(places);
    (number * scale).round() / scale
}

/// The most memory this process has had, or 0 where the system does not say.
fn memory_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Bytes this process has caused to be written to storage, or 0 where the system does not say.
fn written_bytes() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0)
}

/// Bytes a directory takes on disk, with everything below it.
pub(crate) fn disk_bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let size = |entry: fs::DirEntry| match fs::symlink_metadata(entry.path()) {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => allocated(&metadata),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(unix)]
fn allocated(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    metadata.blocks() * 512
}
#[cfg(not(unix))]
fn allocated(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_is_the_upper_of_two() {
        assert_eq!((median(&[1, 2, 3, 4]), median(&[1, 2, 3]), median::<u8>(&[])), (Some(3), Some(2), None));
        let times = [1, 2, 3, 4].map(Duration::from_millis);
        assert_eq!((median(&times).map(ms), hundredths(&times, 99)), (Some(3.0), 4.0));
    }

    /// Two figures are comparable only if both engines saw the same bytes.
    #[test]
    fn the_workload_is_the_one_the_other_engines_run() {
        let mut model = Model::new();
        let mut digest = Sha256::new();
        for batch in [model.load_block(1000), model.update_block(100), model.update_block(100)] {
            for (key, value) in batch {
                digest.update(key);
                digest.update(value.unwrap_or_default());
            }
        }
        assert_eq!(hex::encode(digest.finalize()), "d595480f553fdd2de6db4b072d67e326743c5de9dcf73b25c5bf2acccadc895f");
    }
}
