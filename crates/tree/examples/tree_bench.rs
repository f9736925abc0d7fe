//! What an update of the tree costs in memory: no store, no disk, values hashed but kept nowhere.
//!
//! ```text
//! cargo run --release -p keelstone-tree --example tree_bench [keys] [blocks] [writes a block] [threads] [versions held]
//! ```
//!
//! Keys are 32 bytes and values 100; of the writes 80% overwrite, 10% insert and 10% delete, as in the workload W2 of
//! the peers' harness. Making the diffs is not timed. Where Linux tells, the processor's time of the first thread stands
//! beside the clock's: on a machine that does other work it is the one that can be compared.

use keelstone_codec::{Bytes, Key, Namespace, Value, splitmix64};
use keelstone_tree::{Backing, Blake3, Diff, Hasher, PageAt, Pages, Place, ReadError, Sha256, Tree, Write};
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// That of the binary: of the time a block takes much goes by in it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Nowhere;
impl Backing for Nowhere {
    fn page(&self, _: PageAt) -> Result<Bytes, ReadError> {
        Err(ReadError::damaged("nothing is ever written"))
    }
    fn value(&self, _: Place, _: u32) -> Result<Value, ReadError> {
        Err(ReadError::damaged("nothing is ever written"))
    }
}

/// A small generator, the same everywhere.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }
}

fn key(number: u64) -> Key {
    Key::new(&blake3::hash(&number.to_le_bytes()).as_bytes()[..]).expect("32 bytes")
}

fn value(random: &mut Random) -> Value {
    let bytes: Vec<u8> = (0..13).flat_map(|_| random.next().to_le_bytes()).take(100).collect();
    Value::new(bytes).expect("100 bytes")
}

fn diff(namespace: &Namespace, mut writes: Vec<Write>) -> Diff {
    writes.sort_by(|a, b| a.key.cmp(&b.key));
    writes.dedup_by(|a, b| a.key == b.key);
    Diff::new(vec![(namespace.clone(), writes)]).expect("sorted")
}

/// Time this thread has been on a processor, where the system tells.
fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default())
}

#[derive(Default)]
struct Spent {
    /// Versions before the last that are kept, as a store keeps some at hand.
    held: usize,
    processor: Duration,
    prepare: Vec<Duration>,
    commit: Vec<Duration>,
    release: Vec<Duration>,
    writes: usize,
}

impl Spent {
    fn apply<H: Hasher>(&mut self, versions: &mut VecDeque<Tree<H>>, diff: &Diff) {
        let processor = on_processor();
        let start = Instant::now();
        let draft = versions[0].prepare(diff).expect("all in memory");
        let prepared = Instant::now();
        let next = draft.commit(|index| Place(index as u64));
        let committed = Instant::now();
        versions.push_front(next);
        versions.truncate(self.held + 1);
        self.release.push(committed.elapsed());
        self.prepare.push(prepared - start);
        self.commit.push(committed - prepared);
        self.writes += diff.len();
        self.processor += on_processor() - processor;
    }

    fn print(&self, what: &str) {
        let sum = |times: &[Duration]| times.iter().sum::<Duration>();
        let each = |times: &[Duration]| sum(times).as_nanos() as usize / self.writes;
        let total = sum(&self.prepare) + sum(&self.commit) + sum(&self.release);
        let mut blocks: Vec<Duration> =
            (0..self.prepare.len()).map(|at| self.prepare[at] + self.commit[at] + self.release[at]).collect();
        blocks.sort();
        println!(
            "{what}: {} writes/s; ns a write: {} on the processor, prepare {}, commit {}, release {}; block best {:?}, median {:?}, p99 {:?}",
            self.writes as u128 * 1_000_000_000 / total.as_nanos(),
            self.processor.as_nanos() as usize / self.writes,
            each(&self.prepare),
            each(&self.commit),
            each(&self.release),
            blocks[0],
            blocks[blocks.len() / 2],
            blocks[blocks.len() * 99 / 100],
        );
    }
}

fn run<H: Hasher>(keys: u64, blocks: u64, per_block: u64, threads: NonZeroUsize, held: usize) {
    println!("{}: {keys} keys, {blocks} blocks of {per_block} writes", H::KIND);
    let namespace = Namespace::new("bench").expect("a name");
    let pages = Pages::<H>::on_threads(std::sync::Arc::new(Nowhere), threads);
    let mut versions = VecDeque::from([Tree::empty(&pages)]);
    let mut random = Random(1);
    let mut spent = Spent { held, ..Spent::default() };
    for block in 0..keys.div_ceil(10_000) {
        let numbers = block * 10_000..(block * 10_000 + 10_000).min(keys);
        let writes = numbers.map(|number| Write { key: key(number), value: Some(value(&mut random)) }).collect();
        spent.apply(&mut versions, &diff(&namespace, writes));
    }
    spent.print("load");
    let stats = pages.stats();
    println!("memory: {} bytes a key, {} keys in {} pages", stats.memory_bytes as u64 / keys, keys, stats.pages);

    let mut spent = Spent { held, ..Spent::default() };
    let mut last = keys;
    for _ in 0..blocks {
        let write = |index| match index % 10 {
            8 => {
                last += 1;
                Write { key: key(last), value: Some(value(&mut random)) }
            }
            9 => Write { key: key(random.next() % keys), value: None },
            _ => Write { key: key(random.next() % keys), value: Some(value(&mut random)) },
        };
        let diff = diff(&namespace, (0..per_block).map(write).collect());
        spent.apply(&mut versions, &diff);
    }
    spent.print("update");

    let tree = &versions[0];
    let sample: Vec<Key> = (0..200_000).map(|_| key(random.next() % keys)).collect();
    let start = Instant::now();
    let found = sample.iter().filter(|key| tree.find(&namespace, key).expect("in memory").is_some()).count();
    println!("find: {} ns ({found} found)", start.elapsed().as_nanos() as usize / sample.len());
    let start = Instant::now();
    let count = tree.entries(&namespace, keelstone_tree::KeyRange::all()).count();
    println!("iterate: {} ns an entry", start.elapsed().as_nanos() as usize / count.max(1));
}

fn main() {
    let number =
        |index, default| std::env::args().nth(index).map_or(default, |text: String| text.parse().expect("a number"));
    let (keys, blocks, per_block) = (number(1, 1_000_000), number(2, 200), number(3, 1_000));
    let threads = usize::try_from(number(4, 1)).ok().and_then(NonZeroUsize::new).expect("one or more");
    let held = usize::try_from(number(5, 3)).expect("a small number");
    run::<Blake3>(keys, blocks, per_block, threads, held);
    if std::env::args().nth(6).is_some() {
        run::<Sha256>(keys, blocks, per_block, threads, held);
    }
}
