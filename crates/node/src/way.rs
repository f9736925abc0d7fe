//! Blocks go first: what is done in the background gives way to the block that is at work.
//!
//! A snapshot reads, packs and writes a whole state. A block that comes meanwhile would share the processor's caches with
//! it, and its sync would stand in the disk's queue behind megabytes. So whoever makes a snapshot looks every few reads,
//! and before each slice that it writes, whether a block is at work, and waits for its end. It waits for no more than
//! [`WAIT_SHARE`] times what it worked: on a chain that never pauses a snapshot takes long, and still comes to be.

use keelstone_codec::{Namespace, Value};
use keelstone_store::files::{Act, Files, Interposed};
use keelstone_tree::{Branch, KeyRange, Opened, Read, ReadError, Scan, Walk};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the background may wait for blocks, in times what it worked.
const WAIT_SHARE: u32 = 7;
/// The most it may wait at a time.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Reads between two looks: some dozen microseconds of work.
const READS: u32 = 32;
/// Bytes that are written and synced at a time: what a block's sync waits for at most.
const SLICE_BYTES: usize = 256 << 10;
/// How much less of a processor the background gets where it is wanted by others too.
const NICE: i32 = 10;

/// Whether a block is at work.
#[derive(Debug, Default)]
pub(crate) struct Way {
    blocks: Mutex<u32>,
    clear: Condvar,
}

/// A block is at work for as long as this lives.
#[derive(Debug)]
pub(crate) struct AtWork<'a>(&'a Way);

impl Way {
    fn blocks(&self) -> MutexGuard<'_, u32> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block is at work until what this returns is dropped.
    pub(crate) fn block(&self) -> AtWork<'_> {
        *self.blocks() += 1;
        AtWork(self)
    }

    /// Waits until no block is at work, and no longer than that. How long it waited.
    fn wait(&self, at_most: Duration) -> Duration {
        let mut blocks = self.blocks();
        if *blocks == 0 {
            return Duration::ZERO;
        }
        let since = Instant::now();
        while *blocks > 0 {
            let Some(left) = at_most.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else { break };
            blocks = self.clear.wait_timeout(blocks, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        since.elapsed()
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut blocks = self.0.blocks();
        *blocks -= 1;
        if *blocks == 0 {
            self.0.clear.notify_all();
        }
    }
}

/// A piece of work that gives way.
#[derive(Debug)]
pub(crate) struct Yielding {
    way: Arc<Way>,
    reads: AtomicU32,
    pace: Mutex<Pace>,
}

#[derive(Debug)]
struct Pace {
    /// When it last began to work.
    since: Instant,
    /// For how long it may wait.
    allowed: Duration,
}

impl Yielding {
    pub(crate) fn to(way: &Arc<Way>) -> Self {
        let pace = Pace { since: Instant::now(), allowed: WAIT_MAX };
        Self { way: way.clone(), reads: AtomicU32::new(0), pace: Mutex::new(pace) }
    }

    /// Gives way now, if a block is at work.
    pub(crate) fn step(&self) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = pace.allowed.saturating_add(pace.since.elapsed() * WAIT_SHARE).min(WAIT_MAX);
        pace.allowed = allowed.saturating_sub(self.way.wait(allowed));
        pace.since = Instant::now();
    }

    fn read(&self) {
        if self.reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(READS) {
            self.step();
        }
    }
}

/// Lets everybody else's threads go first where processors are scarce. Of the thread that calls this, where the system
/// knows that of threads.
pub(crate) fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "the thread that makes snapshots keeps its priority");
    }
}

/// A version whose reader gives way.
#[derive(Debug)]
pub(crate) struct Yields<'a, V> {
    pub(crate) view: &'a V,
    pub(crate) yielding: &'a Yielding,
}

impl<V: Walk> Walk for Yields<'_, V> {
    type Node = V::Node;

    fn top(&self) -> Result<Option<Branch<V::Node>>, ReadError> {
        self.view.top()
    }

    fn open<'n>(&'n self, node: &'n V::Node) -> Result<Opened<'n, V::Node>, ReadError> {
        self.yielding.read();
        self.view.open(node)
    }

    fn value(&self, node: &V::Node) -> Result<Value, ReadError> {
        self.yielding.read();
        self.view.value(node)
    }
}

impl<V: Read> Read for Yields<'_, V> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.yielding.read();
        self.view.get(namespace, key)
    }

    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        let found = self.view.scan(namespace, range);
        Box::new(found.inspect(|_| self.yielding.read()))
    }
}

/// Files whose writer gives way, and writes what is large in slices, each durable before the next.
pub(crate) fn sliced(files: Arc<dyn Files>, way: &Arc<Way>) -> Interposed {
    let yielding = Yielding::to(way);
    Interposed::new(files, move |_, act, go_on| match act {
        Act::Write { file, offset, bytes } => {
            let mut at = offset;
            for slice in bytes.chunks(SLICE_BYTES) {
                yielding.step();
                file.write_at(at, slice)?;
                if bytes.len() > SLICE_BYTES {
                    file.sync()?;
                }
                at += slice.len() as u64;
            }
            Ok(())
        }
        Act::Create | Act::Sync | Act::SyncDirectory => {
            yielding.step();
            go_on()
        }
        _ => go_on(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_store::files::MemoryFiles;
    use std::sync::mpsc::channel;

    /// While a block is at work nothing is written; as soon as it is done, everything is. What is large comes in slices, and
    /// reads as it was written.
    #[test]
    fn the_background_waits_for_the_block_that_is_at_work() {
        let (way, files) = (Arc::new(Way::default()), MemoryFiles::new());
        let sliced = sliced(Arc::new(files.clone()), &way);
        let bytes: Vec<u8> = (0..=250).cycle().take(SLICE_BYTES * 2 + 5).collect();
        let block = way.block();
        let second = way.block();
        let (tell, told) = channel();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                // For far longer than this test takes: the first step may wait for a second only.
                way.wait(Duration::from_secs(3_600));
                let file = sliced.create("chunk", bytes.len() as u64).unwrap();
                file.write_at(0, &bytes).unwrap();
                file.sync().unwrap();
                tell.send(()).unwrap();
            });
            drop(block);
            assert!(told.try_recv().is_err() && files.list().unwrap().is_empty(), "another is at work still");
            drop(second);
            told.recv().unwrap();
        });
        let mut found = vec![0; bytes.len()];
        sliced.open("chunk").unwrap().read_at(0, &mut found).unwrap();
        assert!(found == bytes);
    }

    /// A chain that never pauses holds the background up and does not stop it.
    #[test]
    fn what_was_waited_for_long_enough_goes_on() {
        let way = Arc::new(Way::default());
        let yielding = Yielding::to(&way);
        yielding.pace.lock().unwrap().allowed = Duration::ZERO;
        let _block = way.block();
        // Each step waits for a few times what was worked since the last, which is next to nothing.
        (0..100).for_each(|_| yielding.step());
        assert!(yielding.pace.lock().unwrap().allowed < WAIT_MAX);
    }
}
