//! What one may choose about a store. Everything has a default that works.

use crate::segments::Segments;
use crate::version::Bounds;
use keelstone_tree::{Hasher, Pages};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

/// Threads that a commit is given by default, at most: what is above the subtrees is one thread's, and more find less to do.
const THREADS_MAX: NonZeroUsize = NonZeroUsize::new(4).expect("four");

/// Fewer bytes of pages are not worth a flush of their own, whatever their share of the cache.
const UNWRITTEN_MIN: u64 = 8 << 20;

/// How much history stays readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Every height since the first.
    All,
    /// The last so many heights, the current one included.
    Heights(u64),
}

/// What one may choose about a store. Sizes are in bytes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of a log or value segment, at most. In a small store they are smaller, from 4 MiB on (spec: STORE-18). A record that is
    /// larger gets a segment of its own.
    pub segment_bytes: u64,
    /// Size of a page segment, at most.
    pub page_segment_bytes: u64,
    /// Diffs in the log that the pages do not have yet: a flush starts here, and commits wait at twice this (spec: STORE-7).
    pub flush_bytes: u64,
    /// Pages of the tree kept in memory, those that no flush has written yet included (spec: STORE-7).
    pub cache_bytes: u64,
    /// Values kept in memory: for three quarters of this those that were read or written lately, by their keys, and blocks of
    /// them as they lie.
    pub value_cache_bytes: u64,
    /// How much history stays readable.
    pub history: Retention,
    /// Recent or lately used versions kept at hand, so that a view at their height costs nothing.
    pub recent_versions: usize,
    /// Views that may be open at a height other than the last (spec: STORE-6). The oldest expires.
    pub views_max: usize,
    /// Commits for which a view may be held (spec: STORE-6).
    pub view_age_max: u64,
    /// Bytes of segments that may be kept for nothing but views (spec: STORE-6). The one with the lowest height expires.
    pub view_bytes_max: u64,
    /// Garbage that may pile up, in hundredths of what lives and less `flush_bytes`, before compaction starts by itself. Commits keep
    /// step with it so that they do not let lie twice this (spec: STORE-12). Zero leaves compaction to whoever asks for it.
    pub garbage_percent: u64,
    /// Threads on which the tree of a large commit is computed. What comes out is the same, however many there are.
    pub threads: NonZeroUsize,
    /// The id of a store that is made; drawn at random if none is given.
    pub id: Option<[u8; 16]>,
    /// Whether syncs, flushes and compaction run on threads of their own. Off, commits do them in turn and everything on one
    /// thread, so that the order of I/O is always the same.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            page_segment_bytes: 64 << 20,
            flush_bytes: 24 << 20,
            cache_bytes: 2 << 30,
            value_cache_bytes: 256 << 20,
            history: Retention::All,
            recent_versions: 4,
            views_max: 1024,
            view_age_max: 1_000_000,
            view_bytes_max: 8 << 30,
            garbage_percent: 60,
            threads: thread::available_parallelism().map_or(NonZeroUsize::MIN, |count| count.min(THREADS_MAX)),
            id: None,
            background: true,
        }
    }
}

impl Options {
    /// An arena for the versions of a store.
    pub(crate) fn arena<H: Hasher>(&self, segments: &Arc<Segments>) -> Arc<Pages<H>> {
        let threads = if self.background { self.threads } else { NonZeroUsize::MIN };
        let arena = Pages::on_threads(segments.clone(), threads);
        arena.keep_within(self.page_memory());
        arena
    }

    /// Bytes of pages in memory.
    pub(crate) fn page_memory(&self) -> usize {
        usize::try_from(self.cache_bytes).unwrap_or(usize::MAX)
    }

    /// Bytes of pages that no flush has written: one starts here, and commits wait at twice this.
    // spec: STORE-7
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        UNWRITTEN_MIN.max(self.cache_bytes / 4)
    }

    /// Bytes of what was read or written lately.
    pub(crate) fn answer_bytes(&self) -> u64 {
        self.value_cache_bytes / 4 * 3
    }

    /// Bytes of blocks of values in memory.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.value_cache_bytes - self.answer_bytes()
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { recent: self.recent_versions, held: self.views_max, age: self.view_age_max }
    }
}
