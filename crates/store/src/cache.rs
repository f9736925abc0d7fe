//! Blocks of values in memory, bounded in bytes.
//!
//! A block is checked once, when it is read from the disk. Which blocks go is decided by a clock: one that was used since
//! the hand last passed gets another round.

use crate::StoreError;
use crate::sector::PAYLOAD_BYTES;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use arc_swap::ArcSwapOption;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, Weak};

/// Sectors in a block: small enough to read one for a single value, large enough for a scan.
pub(crate) const BLOCK_SECTORS: u32 = 16;

/// What a block costs in the budget.
const BLOCK_COST: u64 = BLOCK_SECTORS as u64 * PAYLOAD_BYTES as u64;

/// Times a block is asked for before it is worth its memory: until then whoever wants a value of it reads that alone.
const ASKED_MIN: u8 = 4;

/// The place of a block: empty, or its payload.
#[derive(Debug, Default)]
pub(crate) struct Block {
    content: ArcSwapOption<Content>,
    /// How often it was asked for while it was not here, up to [`ASKED_MIN`].
    asked: AtomicU8,
}

#[derive(Debug)]
struct Content {
    payload: Vec<u8>,
    used: AtomicBool,
}

/// Cached blocks, by segment and number.
type Hand = VecDeque<(Weak<[Block]>, u32)>;

/// The budget that the blocks of all segments share.
#[derive(Debug)]
pub(crate) struct BlockCache {
    budget: u64,
    bytes: AtomicU64,
    /// Every cached block, in the order the hand passes them.
    hand: Mutex<Hand>,
}

impl BlockCache {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, bytes: AtomicU64::new(0), hand: Mutex::default() }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Gives the payload of block `number` to `read`, after loading it if need be. None, and nothing is loaded, if it is not
    /// here and was not asked for often enough.
    pub(crate) fn read<T>(
        &self,
        blocks: &Arc<[Block]>,
        number: u32,
        load: impl FnOnce() -> Result<Vec<u8>, StoreError>,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, StoreError> {
        let block = &blocks[number as usize];
        if let Some(content) = &*block.content.load() {
            // Stored only when it changes, so that readers of a hot block do not fight over its cache line.
            if !content.used.load(Ordering::Relaxed) {
                content.used.store(true, Ordering::Relaxed);
            }
            return Ok(Some(read(&content.payload)));
        }
        // Two that ask at once may count as one.
        let asked = block.asked.load(Ordering::Relaxed).saturating_add(1);
        if asked < ASKED_MIN {
            block.asked.store(asked, Ordering::Relaxed);
            return Ok(None);
        }
        let content = Arc::new(Content { payload: load()?, used: AtomicBool::new(true) });
        let out = read(&content.payload);
        if block.content.swap(Some(content)).is_none() {
            self.bytes.fetch_add(BLOCK_COST, Ordering::Relaxed);
            self.hand().push_back((Arc::downgrade(blocks), number));
        }
        self.shrink();
        Ok(Some(out))
    }

    /// Gives the payload of block `number` to `read` if it is in memory. That does not count as use.
    pub(crate) fn peek<T>(blocks: &[Block], number: u32, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        blocks[number as usize].content.load().as_ref().map(|content| read(&content.payload))
    }

    /// Lets blocks go until the budget is kept.
    fn shrink(&self) {
        while self.bytes() > self.budget {
            let mut hand = self.hand();
            let Some((segment, number)) = hand.pop_front() else { return };
            if let Some(blocks) = segment.upgrade() {
                let block = &blocks[number as usize];
                if block.content.load().as_ref().is_some_and(|content| content.used.swap(false, Ordering::Relaxed)) {
                    hand.push_back((segment, number));
                    continue;
                }
                block.content.store(None);
            }
            self.bytes.fetch_sub(BLOCK_COST, Ordering::Relaxed);
        }
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_its_budget_and_what_is_used() {
        let cache = BlockCache::new(BLOCK_COST * 4);
        let blocks: Arc<[Block]> = (0..32).map(|_| Block::default()).collect();
        let loads = std::cell::Cell::new(0);
        let read = |number: u32| {
            let load = || {
                loads.set(loads.get() + 1);
                Ok(number.to_le_bytes().to_vec())
            };
            let found = cache.read(&blocks, number, load, <[u8]>::to_vec).unwrap();
            assert!(cache.bytes() <= BLOCK_COST * 4);
            assert!(found.as_ref().is_none_or(|found| **found == number.to_le_bytes()));
            found.is_some()
        };
        for number in 0..32 {
            let asked = (1..ASKED_MIN).filter(|_| read(number)).count();
            assert_eq!(asked, 0, "what is asked for now and then is not loaded");
        }
        assert_eq!((loads.get(), cache.bytes()), (0, 0));
        let read = |number| assert!(read(number));
        for number in 1..32 {
            read(0);
            read(number);
        }
        assert!(loads.get() < 31 + 20, "a block in use is not loaded each time: {} loads", loads.get());
    }
}
