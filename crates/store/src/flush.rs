//! Flushing: the pages of a version go to page segments, then a superblock names it.
//!
//! A flush takes a version as it is and writes it while newer ones are committed. Until the superblock is synced nothing
//! refers to what it wrote, so a crash at any moment leaves the state before the flush.
//!
//! Rules: `spec/store.md`, STORE-4.

use crate::StoreError;
use crate::appender::Appender;
use crate::segment::{Kind, SegmentId, Spot};
use crate::segments::Usage;
use crate::store::Shared;
use crate::superblock::{Flushed, Superblock, SuperblockFile};
use crate::sync::atomic::Ordering;
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Height, LIST_MAX, Reader, Tag, TaggedHasher};
use keelstone_tree::Top;
use keelstone_tree::{Hasher, PageAt};

const TABLE: Tag = Tag::new("store-table");

/// What the store does to its files besides committing. Whoever holds it is the only one.
#[derive(Debug)]
pub(crate) struct Upkeep {
    pub(crate) file: SuperblockFile,
    /// What was written last.
    pub(crate) superblock: Superblock,
    pub(crate) pages: Appender,
    /// Segments that the last superblock does without. The one before still needs them.
    pub(crate) retired: Vec<SegmentId>,
}

/// What a superblock points at: where the tree begins, and which segments there are.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// Where the tree's own pages begin.
    pub(crate) top: Top,
    pub(crate) segments: Vec<(SegmentId, Usage)>,
}

impl Encode for Table {
    fn encode(&self, out: &mut Vec<u8>) {
        self.top.encode(out);
        self.segments.encode(out);
    }
}
impl Decode for Table {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { top: Top::decode(input)?, segments: input.list("segments", LIST_MAX)? })
    }
}

impl Table {
    pub(crate) fn hash(bytes: &[u8]) -> Hash {
        TaggedHasher::new(TABLE).update(bytes).finish()
    }

    /// Appends it, and says what a superblock says of it.
    pub(crate) fn append(&self, pages: &mut Appender) -> Result<(Spot, u32, Hash), StoreError> {
        let bytes = self.to_bytes();
        let len = u32::try_from(bytes.len()).expect("a table is below the size of a segment");
        Ok((pages.append(&[&bytes])?, len, Self::hash(&bytes)))
    }
}

/// From when on things are kept.
#[derive(Debug, Clone, Copy)]
struct KeptFrom {
    /// The lowest height of which the record is.
    records: Height,
    /// The lowest that a superblock, or the last version, is at.
    pages: Height,
    /// The fewest passes that were over when a version was made.
    passes: u64,
}

impl<H: Hasher> Shared<H> {
    /// Writes the last version's pages and a superblock that names it.
    // spec: STORE-4
    pub(crate) fn flush(&self, upkeep: &mut Upkeep) -> Result<(), StoreError> {
        self.check_poison()?;
        self.poisoning(|| self.flush_version(upkeep))
    }

    fn flush_version(&self, upkeep: &mut Upkeep) -> Result<(), StoreError> {
        let (version, log, log_hash, flushing, unwritten) = {
            let writer = self.writer();
            let version = self.current();
            let unwritten = version.tree.pages().unwritten_bytes();
            (version, writer.log.end(), writer.log.hash(), writer.unflushed, unwritten)
        };
        // Only what no version needs from here on may be left out of the table.
        let retired = self.unneeded(&upkeep.superblock.flushed, version.height);

        let write = |page: &[u8]| {
            let spot = upkeep.pages.append(&[page])?;
            // A commit beside may count it as garbage as soon as it has its place.
            upkeep.pages.count();
            let len = u32::try_from(page.len()).expect("pages are small");
            Ok::<_, StoreError>(PageAt { place: spot.to_u64(), len })
        };
        // Whoever begins to empty a segment has the upkeep meanwhile.
        let written = version.tree.flush(|base| self.segments.stays(base), write)?;
        self.segments.count_unneeded(written.unneeded());
        let top = version.tree.top().expect("every page has just been written");
        let table = Table { top, segments: self.usage_without(&retired) };
        let place = table.append(&mut upkeep.pages)?;
        upkeep.pages.sync()?;
        // No page, and no part of any version.
        self.segments.count_unneeded(&[PageAt { place: place.0.to_u64(), len: place.1 }]);
        let left = unwritten.saturating_sub(written.memory_bytes());
        written.settle();

        let flushed = Flushed {
            height: version.height,
            root: version.root,
            table: Some(place),
            record: version.record,
            log_hash,
            log,
            pages: upkeep.pages.end(),
        };
        self.write_superblock(upkeep, flushed, version.epoch)?;
        // The slot that was just written over was the last to need these.
        let (gone, retired) = retired.into_iter().partition(|id| upkeep.retired.contains(id));
        upkeep.retired = retired;
        self.remove_segments(gone)?;
        self.flushed(flushing, left);
        self.recount();
        let pages = version.tree.pages().clone();
        // Commits beside have passed it by: what it alone had is let go of here, as far as none is at it.
        drop(version);
        pages.evict(self.options.page_memory());
        pages.tidy();
        Ok(())
    }

    /// Writes the superblock slot whose turn it is.
    pub(crate) fn write_superblock(&self, upkeep: &mut Upkeep, flushed: Flushed, epoch: u64) -> Result<(), StoreError> {
        let before = upkeep.superblock;
        let superblock = Superblock { sequence: before.sequence + 1, epoch, low: self.low(), flushed, ..before };
        upkeep.file.write(&superblock)?;
        upkeep.superblock = superblock;
        Ok(())
    }

    /// Segments that nothing that is kept needs. What is kept for views alone is bounded: beyond, the view with the lowest
    /// height expires.
    // spec: STORE-6
    fn unneeded(&self, last: &Flushed, height: Option<Height>) -> Vec<SegmentId> {
        let (Some(height), Some(low), Some(last_height)) = (height, self.low(), last.height) else { return Vec::new() };
        let pages = height.min(last_height);
        // The last version is everybody's: it keeps what it needs, until the next commit is in its place.
        let from = KeptFrom { records: low.min(pages), pages, passes: self.current().passes };
        let without_views = self.removable(last, from);
        loop {
            let (held, passes) = self.lowest_held();
            let held = KeptFrom {
                records: from.records.min(held.unwrap_or(from.records)),
                passes: from.passes.min(passes.unwrap_or(from.passes)),
                ..from
            };
            let removable = self.removable(last, held);
            let only_views = without_views.iter().filter(|id| !removable.contains(id));
            let bytes = only_views.filter_map(|id| self.segments.find(*id)).map(|segment| segment.bytes()).sum();
            self.counts().view_bytes.store(bytes, Ordering::Relaxed);
            if bytes <= self.options.view_bytes_max || !self.expire_lowest(from.records, from.passes) {
                return removable;
            }
        }
    }

    /// Segments that nobody needs: neither the records that are kept, nor the way from the last superblock, nor a version.
    fn removable(&self, last: &Flushed, from: KeptFrom) -> Vec<SegmentId> {
        let gone = |(id, usage): (&SegmentId, &Usage)| {
            // History is rebuilt from records and the values that they name, without pages of its own.
            let needed_from = if id.kind == Kind::Pages { from.pages } else { from.records };
            let unneeded = usage.emptied.is_some_and(|emptied| emptied < needed_from) && usage.pass <= from.passes;
            let recorded = usage.last_height.is_none_or(|last| last < from.records);
            let open = id.kind == Kind::Log && *id >= last.log.segment;
            (unneeded && recorded && !open).then_some(*id)
        };
        self.segments.usage().iter().filter_map(gone).collect()
    }

    fn usage_without(&self, retired: &[SegmentId]) -> Vec<(SegmentId, Usage)> {
        let usage = self.segments.usage();
        usage.iter().filter(|(id, _)| !retired.contains(id)).map(|(id, usage)| (*id, *usage)).collect()
    }

    fn remove_segments(&self, gone: Vec<SegmentId>) -> Result<(), StoreError> {
        if gone.is_empty() {
            return Ok(());
        }
        gone.into_iter().try_for_each(|id| self.segments.remove(id))?;
        self.segments.files().sync_directory().map_err(StoreError::io("sync", "the directory"))
    }
}

/// The place a table names, with the length it has.
pub(crate) fn table_place(flushed: &Flushed) -> Option<(Spot, usize, Hash)> {
    flushed.table.map(|(spot, len, hash)| (spot, len as usize, hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use crate::files::MemoryFiles;
    use keelstone_codec::{Key, Namespace, Value};
    use keelstone_tree::{Blake3, Diff, Read as _};
    use std::sync::Arc;

    /// A page has its place before it is there: until a flush has written it, it is in memory alone.
    #[test]
    fn a_commit_beside_a_flush_lets_go_of_no_page_that_is_on_its_way() {
        let options = Options { cache_bytes: 0, background: false, ..Options::default() };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        let space = Namespace::new("a").unwrap();
        let key = |number: u32| Key::new(number.to_be_bytes().to_vec()).unwrap();
        let write = |number| (space.clone(), key(number), Some(Value::new(vec![7; 40]).unwrap()));
        shared.commit(Height(0), &(0..2_000).map(write).collect::<Diff>(), || Ok(())).unwrap();
        let mut upkeep = shared.upkeep();
        let put = |page: &[u8]| {
            let spot = upkeep.pages.append(&[page])?;
            Ok::<_, StoreError>(PageAt { place: spot.to_u64(), len: u32::try_from(page.len()).unwrap() })
        };
        let flushed = shared.current().tree.flush(|_| true, put);
        let on_its_way = flushed.unwrap();
        for height in 1..20 {
            shared.commit(Height(height), &[write(0)].into_iter().collect::<Diff>(), || Ok(())).unwrap();
        }
        let version = shared.current();
        for number in 0..2_000 {
            assert!(version.tree.get(&space, &key(number)).unwrap().is_some());
        }
        upkeep.pages.sync().unwrap();
        on_its_way.settle();
        let stats = shared.current().tree.pages().stats();
        assert!(stats.memory_bytes > 5 * stats.unwritten_bytes, "{stats:?}");
        shared.commit(Height(20), &[write(0)].into_iter().collect::<Diff>(), || Ok(())).unwrap();
        let stats = shared.current().tree.pages().stats();
        assert!(stats.memory_bytes <= stats.unwritten_bytes, "all that was written can go by now: {stats:?}");
        for number in 0..2_000 {
            assert!(version.tree.get(&space, &key(number)).unwrap().is_some());
        }
    }
}
