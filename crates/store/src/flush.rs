//! Flushing: the pages of a version go to page segments, then a superblock names it.
//!
//! A flush takes a version as it is and writes it while newer ones are committed. Until the superblock is synced nothing
//! refers to what it wrote, so a crash at any moment leaves the state before the flush.
//!
//! Rules: `spec/store.md`, STORE-4.

use crate::StoreError;
use crate::appender::Appender;
use crate::segment::{Kind, SegmentId, Spot};
use crate::segments::{Segments, Usage};
use crate::shared::Shared;
use crate::superblock::{Flushed, Superblock, SuperblockFile};
use crate::sync::atomic::Ordering;
use crate::version::Version;
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Height, Reader, Tag, TaggedHasher};
use keelstone_tree::Top;
use keelstone_tree::{Hasher, PageAt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// So many walks over all pages may come to what a pass over the state does: they move nothing and meet no entries.
const SWEEPS: u64 = 4;

/// A walk over all pages may go over so many times what the flush has written, and costs little beside it then. In a large state, of
/// which a flush writes little, few segments die as a whole, and a pass has them for nothing.
const WALK: u64 = 2;

/// Segments that a table may name. A store that keeps all history lets go of none of its log. So many of the largest are a pebibyte, and
/// the table of them is below the size of a segment.
const SEGMENTS_MAX: usize = 1 << 24;

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
    /// What the last flush since the store was opened has written.
    pub(crate) written: Option<Written>,
}

/// A version that a flush has written.
#[derive(Debug)]
pub(crate) struct Written {
    /// What its superblock points at.
    table: Table,
    passes: Passes,
}

/// Of passes, those that a version that was written knows of.
#[derive(Debug, Clone, Copy)]
struct Passes {
    /// So many were over when it was made.
    over: u64,
    /// And it was looked through by this one.
    own: u64,
}

impl Passes {
    /// Whether the version was made, or looked through, after what that pass has found.
    fn know(self, pass: u64) -> bool {
        pass <= self.over || pass == self.own
    }
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
        Ok(Self { top: Top::decode(input)?, segments: input.list("segments", SEGMENTS_MAX)? })
    }
}

impl Table {
    pub(crate) fn hash(bytes: &[u8]) -> Hash {
        TaggedHasher::new(TABLE).update(bytes).finish()
    }

    /// Appends it, makes everything appended durable, and says what a superblock says of it.
    pub(crate) fn write(&self, segments: &Segments, pages: &mut Appender) -> Result<(Spot, u32, Hash), StoreError> {
        let bytes = self.to_bytes();
        let len = u32::try_from(bytes.len()).expect("a table is below the size of a segment");
        let spot = pages.append(&[&bytes])?;
        pages.sync()?;
        // No page, and no part of any version.
        segments.count_unneeded(&[PageAt { place: spot.to_u64(), len }]);
        Ok((spot, len, Self::hash(&bytes)))
    }
}

/// From when on things are kept.
#[derive(Debug, Clone, Copy)]
struct KeptFrom {
    /// The lowest height of which the record is.
    records: Height,
    /// The height that is being written.
    pages: Height,
    /// What the version that is written knows of.
    written: Passes,
    /// The fewest passes that were over when another version was made that is held.
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
        let (version, pass, log, log_hash, flushing, unwritten, counted) = {
            let writer = self.sound_writer()?;
            let version = self.current();
            let unwritten = version.tree.pages().unwritten_bytes();
            // Versions from here on are known by it: they are made of this one.
            let counted = self.segments.usage().clone();
            (version, self.pass_ends(), writer.log.end(), writer.log.hash(), writer.unflushed, unwritten, counted)
        };

        // What is written from here on lies in this segment, or in later ones.
        let open = upkeep.pages.end().map(|spot| spot.segment);
        let mut put = 0;
        let write = |page: &[u8]| {
            let spot = upkeep.pages.append(&[page])?;
            put += page.len() as u64;
            // A commit beside may count it as garbage as soon as it has its place.
            upkeep.pages.count();
            let len = u32::try_from(page.len()).expect("pages are small");
            Ok::<_, StoreError>(PageAt { place: spot.to_u64(), len })
        };
        // Whoever begins to empty a segment has the upkeep meanwhile.
        let staying = self.segments.staying();
        let written = version.tree.flush(|base| staying.has(base), write)?;
        self.segments.count_unneeded(written.unneeded());
        self.sweep(&version, pass, put, open);
        // Only what no version needs from here on may be left out of the table.
        let passes = Passes { over: version.passes, own: pass };
        let gone = self.unneeded(version.height, passes, Some(&version), log.segment);
        let top = version.tree.top().expect("every page has just been written");
        let table = Table { top, segments: self.usage_without(&gone, &counted) };
        let place = table.write(&self.segments, &mut upkeep.pages)?;
        upkeep.written = Some(Written { table, passes });
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
        let (gone, retired) = gone.into_iter().partition(|id| upkeep.retired.contains(id));
        upkeep.retired = retired;
        self.remove_segments(gone)?;
        self.flushed(version.height, flushing, left);
        self.recount();
        let pages = version.tree.pages().clone();
        // Commits beside have passed it by: what it alone had is let go of here, as far as none is at it.
        drop(version);
        pages.evict(self.options.page_memory());
        pages.tidy();
        Ok(())
    }

    /// As [`Self::flush`], and removes at once what it let go of: the other slot says the same then.
    // spec: STORE-4
    pub(crate) fn flush_and_remove(&self, upkeep: &mut Upkeep) -> Result<(), StoreError> {
        self.flush(upkeep)?;
        if upkeep.retired.is_empty() {
            return Ok(());
        }
        let Superblock { flushed, epoch, .. } = upkeep.superblock;
        let retired = std::mem::take(&mut upkeep.retired);
        self.poisoning(|| self.write_superblock(upkeep, flushed, epoch).and_then(|()| self.remove_segments(retired)))
    }

    /// Lets go of what history has gone past by now, of all that was emptied before a pass was over. If the last flush has written a
    /// version from after it, that is a table and two slots; else another flush.
    // spec: STORE-4
    pub(crate) fn let_go(&self, upkeep: &mut Upkeep, pass: u64) -> Result<(), StoreError> {
        self.check_poison()?;
        if !upkeep.written.as_ref().is_some_and(|written| written.passes.know(pass)) {
            return self.flush_and_remove(upkeep);
        }
        self.poisoning(|| self.write_without(upkeep))?;
        self.recount();
        Ok(())
    }

    /// Writes the last superblock again, in both slots, without the segments that nothing needs any more, and removes them.
    fn write_without(&self, upkeep: &mut Upkeep) -> Result<(), StoreError> {
        let Superblock { flushed, epoch, .. } = upkeep.superblock;
        let Some(Written { table, passes }) = &mut upkeep.written else { return Ok(()) };
        let gone = self.unneeded(flushed.height, *passes, None, flushed.log.segment);
        if gone.is_empty() {
            return Ok(());
        }
        table.segments.retain(|(id, _)| !gone.contains(id));
        let place = table.write(&self.segments, &mut upkeep.pages)?;
        let flushed = Flushed { table: Some(place), pages: upkeep.pages.end(), ..flushed };
        for _ in 0..2 {
            self.write_superblock(upkeep, flushed, epoch)?;
        }
        upkeep.retired.retain(|id| !gone.contains(id));
        self.remove_segments(gone)
    }

    /// Writes the superblock slot whose turn it is.
    pub(crate) fn write_superblock(&self, upkeep: &mut Upkeep, flushed: Flushed, epoch: u64) -> Result<(), StoreError> {
        // One that failed meanwhile ends what is under way, too.
        self.check_poison()?;
        let before = upkeep.superblock;
        let superblock = Superblock { sequence: before.sequence + 1, epoch, low: self.low(), flushed, ..before };
        upkeep.file.write(&superblock)?;
        upkeep.superblock = superblock;
        Ok(())
    }

    /// Marks segments of pages in which nothing lives any more, as counted: what a flush writes anew leaves such behind, and nothing
    /// of them has to be moved. So it is enough that no page of the version that was just written lies there, nor stands beside one.
    /// Versions made since it was taken have what it has, or what is in memory. Reads every page, if there is enough to be had
    /// and the flush has written (`put`) enough of them.
    // spec: STORE-4
    fn sweep(&self, version: &Version<H>, pass: u64, put: u64, open: Option<SegmentId>) {
        let (mut dead, bytes, live) = self.segments.dead_pages(open);
        if bytes == 0 || bytes < self.compact_at() / SWEEPS || put < live / WALK {
            return;
        }
        let mut found: BTreeMap<SegmentId, u64> = BTreeMap::new();
        let walked = version.tree.needs(|page| match Spot::from_u64(page.place) {
            Ok(spot) if dead.contains(&spot.segment) => *found.entry(spot.segment).or_default() += u64::from(page.len),
            _ => {}
        });
        if walked.is_err() {
            // Who cannot look everywhere cannot say of anything that nothing needs it. A compaction names what it is.
            return;
        }
        for (id, live) in found {
            // It was counted wrongly, so it is not asked about again.
            dead.remove(&id);
            if let Some(usage) = self.segments.usage().get_mut(&id) {
                usage.live = live;
            }
        }
        let _writer = self.writer();
        if self.current().epoch == version.epoch {
            self.segments.mark_emptied(dead.iter(), version.height, pass);
        }
    }

    /// Segments that nothing that is kept needs, once a superblock names the version of that height; `version` is that one where it
    /// is being written, and does not count as held then. What is kept for views alone is bounded: beyond, the view with the
    /// lowest height expires.
    // spec: STORE-6
    fn unneeded(
        &self,
        height: Option<Height>,
        written: Passes,
        version: Option<&Arc<Version<H>>>,
        log: SegmentId,
    ) -> Vec<SegmentId> {
        let (Some(height), Some(low)) = (height, self.low()) else { return Vec::new() };
        // The last version is everybody's: it keeps what it needs, until the next commit is in its place.
        let current = self.current();
        let is_written = version.is_some_and(|version| Arc::ptr_eq(&current, version));
        let passes = if is_written { written.own } else { current.passes };
        let from = KeptFrom { records: low.min(height), pages: height, written, passes };
        let without_views = self.removable(log, from);
        loop {
            let (held, passes) = self.lowest_held(version);
            let held = KeptFrom {
                records: from.records.min(held.unwrap_or(from.records)),
                passes: from.passes.min(passes.unwrap_or(from.passes)),
                ..from
            };
            let removable = self.removable(log, held);
            let only_views = without_views.iter().filter(|id| !removable.contains(id));
            let bytes = only_views.filter_map(|id| self.segments.find(*id)).map(|segment| segment.bytes()).sum();
            self.counts().view_bytes.store(bytes, Ordering::Relaxed);
            if bytes <= self.options.view_bytes_max || !self.expire_lowest(from.records, from.passes) {
                return removable;
            }
        }
    }

    /// Segments that nobody needs: neither the records that are kept, nor whoever opens the store at the version that is written,
    /// whose log goes on in `log`, nor a version that is held.
    fn removable(&self, log: SegmentId, from: KeptFrom) -> Vec<SegmentId> {
        let gone = |(id, usage): (&SegmentId, &Usage)| {
            let unneeded = usage.emptied.is_some_and(|emptied| match id.kind {
                // History is rebuilt from records and the values that they name, without pages of its own. Whoever marks a segment
                // has the upkeep, so this version is none from before.
                Kind::Pages => emptied <= from.pages,
                Kind::Log | Kind::Values => emptied < from.records,
            });
            let recorded = usage.last_height.is_none_or(|last| last < from.records);
            let open = id.kind == Kind::Log && *id >= log;
            let is_held = usage.pass > from.passes || !from.written.know(usage.pass);
            (unneeded && !is_held && recorded && !open).then_some(*id)
        };
        self.segments.usage().iter().filter_map(gone).collect()
    }

    /// Segments that go on, with what of them lives in the version that was written. Of values that is what was counted when it was
    /// taken: what was committed and moved since is counted again by whoever opens the store at it.
    fn usage_without(&self, retired: &[SegmentId], counted: &BTreeMap<SegmentId, Usage>) -> Vec<(SegmentId, Usage)> {
        let usage = self.segments.usage();
        let of_version = |(id, usage): (&SegmentId, &Usage)| {
            let Usage { written, live, .. } = counted.get(id).copied().unwrap_or_default();
            match id.kind {
                Kind::Log | Kind::Values => (*id, Usage { written, live, ..*usage }),
                Kind::Pages => (*id, *usage),
            }
        };
        usage.iter().filter(|(id, _)| !retired.contains(id)).map(of_version).collect()
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

    /// spec: STORE-4. A store that keeps all history has a segment of the log for each 64 MiB that it ever took.
    #[test]
    fn a_table_of_very_many_segments_can_be_read() {
        let segment = |number| (SegmentId { kind: Kind::Log, number }, Usage::default());
        let table = Table { top: Top::default(), segments: (1..200_000).map(segment).collect() };
        assert_eq!(Table::from_bytes(&table.to_bytes()).unwrap().segments, table.segments);
    }

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

    /// Pages that take a segment each, on which a pass would be worth its while only late.
    fn small() -> Options {
        Options {
            page_segment_bytes: 16 << 10,
            segment_bytes: 64 << 10,
            cache_bytes: 0,
            recent_versions: 1,
            background: false,
            ..Options::default()
        }
    }

    fn all(byte: u8) -> Diff {
        let write = |number: u32| {
            let key = Key::new(number.to_be_bytes().to_vec()).unwrap();
            (Namespace::new("a").unwrap(), key, Some(Value::new(vec![byte; 8]).unwrap()))
        };
        (0..2_000).map(write).collect()
    }

    fn page_segments(shared: &Shared<Blake3>) -> usize {
        shared.segments.all().iter().filter(|segment| segment.id().kind == Kind::Pages).count()
    }

    /// spec: STORE-4. What a flush leaves behind goes without a compaction, unless a version needs it that somebody holds.
    #[test]
    fn segments_of_pages_that_are_dead_go_with_a_flush() {
        let files = MemoryFiles::new();
        let shared = Shared::<Blake3>::create(Arc::new(files.clone()), small()).unwrap();
        let mut height = 0;
        let mut flushes = |count: u8| {
            for _ in 0..count {
                shared.commit(Height(height), &all(u8::try_from(height).unwrap()), || Ok(())).unwrap();
                shared.flush_and_remove(&mut shared.upkeep()).unwrap();
                height += 1;
            }
            shared.commit(Height(height), &Diff::default(), || Ok(())).unwrap();
            height += 1;
        };
        flushes(1);
        let one = page_segments(&shared);
        assert!(one > 4, "{one} segments");
        flushes(20);
        assert!(page_segments(&shared) <= 3 * one, "{} segments for {one} that live", page_segments(&shared));
        let held = shared.current();
        let value = held.tree.get(&Namespace::new("a").unwrap(), &7u32.to_be_bytes()).unwrap();
        flushes(20);
        assert!(page_segments(&shared) > 15 * one, "who holds a version can read it");
        let mut found = 0;
        for entry in held.tree.scan(&Namespace::new("a").unwrap(), keelstone_tree::KeyRange::all()) {
            assert_eq!(Some(entry.unwrap().1), value);
            found += 1;
        }
        assert_eq!(found, 2_000);
        drop(held);
        flushes(4);
        assert!(page_segments(&shared) <= 3 * one, "{} segments for {one} that live", page_segments(&shared));
        assert_eq!(shared.counts().compactions.load(Ordering::Relaxed), 0);
        let root = shared.current().root;
        drop(shared);
        let shared = Shared::<Blake3>::open(Arc::new(files), small()).unwrap();
        assert_eq!(shared.current().root, root);
        assert!(shared.check(crate::CheckLevel::Full, &mut |_| true).unwrap().unwrap().is_sound());
    }

    /// spec: STORE-4. Counts only say where to look: a segment that is counted as dead and is not stays, and is counted right.
    #[test]
    fn a_wrong_count_costs_no_page() {
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), small()).unwrap();
        for height in 0..3 {
            let diff = if height == 0 { all(1) } else { Diff::default() };
            shared.commit(Height(height), &diff, || Ok(())).unwrap();
            shared.flush_and_remove(&mut shared.upkeep()).unwrap();
        }
        let before = shared.segments.usage().clone();
        let is_page = |id: &SegmentId| id.kind == Kind::Pages;
        shared.segments.usage().iter_mut().filter(|(id, _)| is_page(id)).for_each(|(_, usage)| usage.live = 0);
        for height in 3..9 {
            shared.commit(Height(height), &Diff::default(), || Ok(())).unwrap();
            shared.flush_and_remove(&mut shared.upkeep()).unwrap();
        }
        let after = shared.segments.usage().clone();
        let lives = |(id, usage): (&SegmentId, &Usage)| (is_page(id) && usage.live > 0).then_some((*id, usage.live));
        let (before, after): (Vec<_>, Vec<_>) =
            (before.iter().filter_map(lives).collect(), after.iter().filter_map(lives).collect());
        assert!(before.len() > 4);
        assert_eq!(before[..before.len() - 1], after[..before.len() - 1], "the last was not closed");
        assert!(shared.check(crate::CheckLevel::Full, &mut |_| true).unwrap().unwrap().is_sound());
    }

    /// spec: STORE-12. A flush that wrote little looks at no more than that.
    #[test]
    fn a_small_flush_walks_over_no_large_state() {
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), small()).unwrap();
        let mut height = 0;
        let mut flush = |diff: &Diff| {
            shared.commit(Height(height), diff, || Ok(())).unwrap();
            shared.flush_and_remove(&mut shared.upkeep()).unwrap();
            height += 1;
        };
        (0..3).for_each(|number| flush(&if number == 0 { all(1) } else { Diff::default() }));
        let lives = |usage: &Usage| usage.live > 0 && usage.emptied.is_none();
        let pages = |(id, usage): (&SegmentId, &Usage)| (id.kind == Kind::Pages && lives(usage)).then_some(*id);
        let wrong: Vec<SegmentId> = shared.segments.usage().iter().filter_map(pages).take(2).collect();
        assert_eq!(wrong.len(), 2);
        wrong.iter().for_each(|id| shared.segments.usage().get_mut(id).unwrap().live = 0);
        let is_dead = |id: &&SegmentId| shared.segments.usage().get(id).is_some_and(|usage| usage.live == 0);
        let counted_as_dead = || wrong.iter().filter(is_dead).count();
        (0..4).for_each(|_| flush(&Diff::default()));
        assert_eq!(counted_as_dead(), wrong.len(), "nothing was looked at");
        let one = all(2).iter().next().map(|(space, write)| (space.clone(), write.key.clone(), write.value.clone()));
        flush(&one.into_iter().collect());
        assert_eq!(counted_as_dead(), wrong.len());
        assert_eq!(shared.counts().compactions.load(Ordering::Relaxed), 0);
        // More than half of the state.
        let half = all(3);
        let half =
            half.iter().take(1_200).map(|(space, write)| (space.clone(), write.key.clone(), write.value.clone()));
        flush(&half.collect());
        assert!(counted_as_dead() < wrong.len(), "all was looked at");
        assert!(shared.check(crate::CheckLevel::Full, &mut |_| true).unwrap().unwrap().is_sound());
    }
}
