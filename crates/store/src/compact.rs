//! Compaction: what lives is moved out of segments that are mostly garbage, in key order and in bounded slices.
//!
//! A slice looks at a part of the last version, copies the values of it that lie in a segment to be emptied, syncs the
//! copies, and then, in the place of a commit, lets the tree point at them. The root does not change and nothing is
//! logged: after a crash the old places are still true, since a segment goes only once no superblock needs it. When a
//! whole pass has found nothing more in a segment, it is marked, and a later flush removes it (spec: STORE-4).
//!
//! What cannot be read is left where it is, and so is every segment in which it may lie. It is told to whoever asked, and to
//! the scrub. Nothing was written that is not good, so the store goes on, and once it is mended the next compaction takes up
//! what this one left out (spec: STORE-17).

use crate::appender::Appender;
use crate::flush::Upkeep;
use crate::segment::{Kind, SegmentId, Spot};
use crate::segments::Usage;
use crate::shared::Shared;
use crate::store::Progress;
use crate::sync::atomic::Ordering;
use crate::version::Version;
use crate::{Retention, StoreError};
use keelstone_codec::{Encode, Key, Namespace};
use keelstone_tree::{Entry, Hasher, PageAt, Place, ReadError};
use keelstone_tree::{Moved, Rewrite, Stale};
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// Pages looked at in one go. Nobody waits for that.
const LOOK_PAGES: usize = 64;

/// Keys that a slice writes anew, but for those of the last look. Commits wait for that: for one slice at most.
const SLICE_KEYS: usize = 2048;

/// Bytes of values copied in one slice, but for the last of them: what one sync has to do.
const SLICE_BYTES: u64 = 2 << 20;

/// Pieces that cannot be read and are named, of one compaction. There may be more.
const LEFT_MAX: usize = 64;

/// What a compaction did.
#[derive(Debug, Clone, Default)]
pub struct Compacted {
    /// Values moved.
    pub values_moved: u64,
    /// Pages written again, or at least keys below them.
    pub pages_moved: u64,
    /// Segments that were emptied. A flush removes them once nothing that is kept needs them.
    pub segments_emptied: u64,
    /// Bytes of segments removed.
    pub bytes_freed: u64,
    /// What it had to leave where it is, since it cannot be read: the first 64 pieces. [`crate::Store::mend`] has them again;
    /// then the next compaction empties what this one could not.
    pub left: Vec<StoreError>,
}

/// What a pass over the state could not read.
#[derive(Default)]
struct Left {
    pieces: Vec<StoreError>,
    /// Segments in which values lie that could not be moved.
    segments: BTreeSet<SegmentId>,
    /// Something could not be looked at: what lies below it may be in any segment.
    anywhere: bool,
}

/// What is done in the place of one commit.
#[derive(Default)]
struct Slice {
    stale: Vec<Stale>,
    /// Of the values among it.
    bytes: u64,
}

impl Slice {
    fn is_full(&self) -> bool {
        self.stale.len() >= SLICE_KEYS || self.bytes >= SLICE_BYTES
    }
}

impl Left {
    fn name(&mut self, piece: StoreError) {
        if self.pieces.len() < LEFT_MAX {
            self.pieces.push(piece);
        }
    }

    /// A piece of the tree.
    fn piece(&mut self, namespace: &Namespace, at: &[u8], entries: u64, source: ReadError) {
        self.anywhere = true;
        self.name(StoreError::Unreadable { namespace: namespace.clone(), at: at.to_vec(), entries, source });
    }

    /// The value of an entry.
    fn value(&mut self, namespace: &Namespace, key: &Key, entry: &Entry, source: ReadError) {
        match Spot::from_u64(entry.place.0) {
            Ok(spot) => drop(self.segments.insert(spot.segment)),
            Err(_) => self.anywhere = true,
        }
        self.name(StoreError::Unreadable { namespace: namespace.clone(), at: key.to_vec(), entries: 1, source });
    }

    /// Whether everything that lives was moved out of a segment.
    fn is_free(&self, id: SegmentId) -> bool {
        !self.anywhere && !self.segments.contains(&id)
    }
}

/// Whether a segment that is free to be emptied is mostly garbage, and none that pages are still written to.
fn is_worth_emptying(upkeep: &Upkeep, id: SegmentId, usage: &Usage) -> bool {
    upkeep.pages.end().map(|spot| spot.segment) != Some(id) && usage.is_worth_emptying()
}

impl<H: Hasher> Shared<H> {
    /// Empties what is worth it, or, of that, as much as has so many bytes of garbage, beginning where least lives.
    pub(crate) fn compact(
        &self,
        enough: Option<u64>,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Compacted, StoreError> {
        self.check_poison()?;
        let _compacting = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        self.counts().compactions.fetch_add(1, Ordering::Relaxed);
        let before = self.segments.bytes();
        if enough.is_none() {
            // What only the way from the superblock needs is garbage then, too.
            self.flush(&mut self.upkeep())?;
        }
        let (victims, beyond_reach) = {
            let upkeep = self.upkeep();
            (self.victims(&upkeep, enough), self.garbage_beyond_reach(&upkeep))
        };
        self.leave(beyond_reach);
        let mut done = Compacted::default();
        let mut pass = None;
        if !victims.is_empty() {
            pass = self.empty(&victims, &mut done, go_on)?;
            self.note_unreadable(&done.left);
        }
        if self.is_closing() {
            return Ok(done);
        }
        self.leave(beyond_reach + self.garbage_still_in(&victims));
        match self.options.history {
            // Whoever did not ask does not wait for what goes.
            Retention::Heights(count) if enough.is_some() => self.let_go_after(count, pass),
            Retention::Heights(_) | Retention::All => self.flush_and_remove(&mut self.upkeep())?,
        }
        done.bytes_freed = before.saturating_sub(self.segments.bytes());
        Ok(done)
    }

    /// The segments that are worth emptying: those that can be, and are mostly garbage; beginning where least lives, until `enough`
    /// of it has come together. From here on nothing is written beside what lies in them. No flush may be under way: one that began
    /// another segment after it was asked which is open would have it emptied, and removed, while it is written; and it may have
    /// found a page there that stays.
    // spec: STORE-4
    pub(crate) fn victims(&self, upkeep: &Upkeep, enough: Option<u64>) -> BTreeSet<SegmentId> {
        let free = self.free_to_empty().into_iter();
        let mut worth: Vec<_> = free.filter(|(id, usage)| is_worth_emptying(upkeep, *id, usage)).collect();
        worth.sort_by(|(_, one), (_, other)| {
            let lives = |usage: &Usage, of: &Usage| u128::from(usage.live) * u128::from(of.written.max(1));
            lives(one, other).cmp(&lives(other, one))
        });
        let mut garbage = 0;
        let victims = worth.into_iter().take_while(|(_, usage)| {
            let is_wanted = enough.is_none_or(|enough| garbage < enough);
            garbage += usage.garbage();
            is_wanted
        });
        let victims = victims.map(|(id, _)| id).collect();
        self.segments.be_emptied(&victims);
        victims
    }

    /// The segments that can be emptied: not written to any more, not kept for their records, and not emptied yet.
    fn free_to_empty(&self) -> Vec<(SegmentId, Usage)> {
        let (Some(low), Some(open_log)) = (self.low(), self.open_log()) else { return Vec::new() };
        let free = |id: &SegmentId, usage: &Usage| match id.kind {
            // A record that history needs keeps its segment whatever else lies there.
            Kind::Log => *id < open_log && usage.last_height.is_none_or(|last| last < low),
            Kind::Values | Kind::Pages => true,
        };
        let usage = self.segments.usage();
        let found = usage.iter().filter(|(id, usage)| usage.emptied.is_none() && free(id, usage));
        found.map(|(id, usage)| (*id, *usage)).collect()
    }

    /// Bytes of garbage in segments that can be emptied, and bytes that live in all.
    pub(crate) fn reclaimable(&self) -> (u64, u64) {
        let sum = self.free_to_empty().iter().map(|(_, usage)| usage.garbage()).sum();
        (sum, self.segments.usage().values().map(|usage| usage.live).sum())
    }

    /// Of that garbage, what no compaction gets for now: it lies where too much lives, or where pages are being written.
    fn garbage_beyond_reach(&self, upkeep: &Upkeep) -> u64 {
        let free = self.free_to_empty().into_iter();
        free.filter(|(id, usage)| !is_worth_emptying(upkeep, *id, usage)).map(|(_, usage)| usage.garbage()).sum()
    }

    /// Garbage in those of the given segments that were not emptied.
    fn garbage_still_in(&self, victims: &BTreeSet<SegmentId>) -> u64 {
        let usage = self.segments.usage();
        let still = victims.iter().filter_map(|id| usage.get(id)).filter(|usage| usage.emptied.is_none());
        still.map(Usage::garbage).sum()
    }

    /// Moves everything that lives out of the given segments. Returns which pass it was, if it found them empty.
    pub(crate) fn empty(
        &self,
        victims: &BTreeSet<SegmentId>,
        done: &mut Compacted,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<u64>, StoreError> {
        let epoch = self.current().epoch;
        let generation = self.writer().log.generation();
        let size = self.options.segment_bytes.min(self.bytes_to_move(victims));
        let new = || Appender::new(self.segments.clone(), Kind::Values, None, generation, size);
        let mut values = self.poisoning(new)?.of_copies();
        let mut from: Option<(Namespace, Key)> = None;
        let total = self.current().tree.totals().count;
        let (mut left, mut slice, mut passed) = (Left::default(), Slice::default(), 0);
        self.pass_begins(total);
        loop {
            let (entries, next) = self.look(from.as_ref(), victims, &mut slice, &mut left);
            if slice.is_full() || next.is_none() {
                self.wait_for_pages()?;
                self.move_slice(std::mem::take(&mut slice), &mut values, &mut left, done)?;
            }
            passed += entries;
            self.passed(passed);
            let goes_on = go_on(Progress { done: passed.min(total), total, what: "entries gone through" });
            match next {
                // Nothing is marked as emptied, so what was moved is all that was done.
                Some(_) if !goes_on || self.is_closing() => return Ok(None),
                Some(next) => from = Some(next),
                None => break,
            }
        }
        // A flush under way writes a version from before: it must not say that nothing of it lies here.
        let _upkeep = self.upkeep();
        let _writer = self.writer();
        let (version, mut pass) = (self.current(), None);
        if version.epoch == epoch {
            // Versions at hand still point into the emptied segments; without them the segments can go sooner.
            self.drop_recent();
            // spec: STORE-17
            let emptied = victims.iter().filter(|id| left.is_free(**id));
            let number = self.pass_ends();
            done.segments_emptied += self.segments.mark_emptied(emptied, version.height, number);
            pass = Some(number);
        }
        done.left = left.pieces;
        Ok(pass)
    }

    fn bytes_to_move(&self, victims: &BTreeSet<SegmentId>) -> u64 {
        let usage = self.segments.usage();
        let live: u64 = victims.iter().filter_map(|id| usage.get(id)).map(|usage| usage.live).sum();
        // Lengths before the values and checksums of the sectors; too little only means another segment.
        (live + live / 8).max(1 << 16)
    }

    /// Adds what the next pages have for a slice. Returns the entries that were gone by, and where to go on; nowhere at the end of
    /// the state.
    fn look(
        &self,
        from: Option<&(Namespace, Key)>,
        victims: &BTreeSet<SegmentId>,
        slice: &mut Slice,
        left: &mut Left,
    ) -> (u64, Option<(Namespace, Key)>) {
        let victim = |place: Place| Spot::from_u64(place.0).is_ok_and(|spot| victims.contains(&spot.segment));
        let most = (LOOK_PAGES, SLICE_BYTES.saturating_sub(slice.bytes));
        let tree = &self.current().tree;
        // Of segments of pages alone no value has to move.
        let moves_values = victims.iter().any(|id| id.kind != Kind::Pages);
        let survey = tree.survey(from, most, victim, moves_values.then_some(victim));
        for (namespace, lost) in &survey.lost {
            left.piece(namespace, &lost.prefix, lost.totals.count, lost.error.clone());
        }
        let values = survey.stale.iter().filter_map(|stale| stale.value.as_ref());
        slice.bytes += values.map(|entry| u64::from(entry.value_len)).sum::<u64>();
        slice.stale.extend(survey.stale);
        (survey.entries, survey.next)
    }

    /// Copies the values of a slice, then lets the tree point at the copies. What cannot be read is left as it is.
    fn move_slice(
        &self,
        slice: Slice,
        values: &mut Appender,
        left: &mut Left,
        done: &mut Compacted,
    ) -> Result<(), StoreError> {
        if slice.stale.is_empty() {
            return Ok(());
        }
        self.check_poison()?;
        let tree = &self.current().tree;
        let wanted: Vec<Entry> = slice.stale.iter().filter_map(|stale| stale.value).collect();
        let mut together = tree.values(&wanted).map(Vec::into_iter);
        let mut rewrites = Vec::with_capacity(slice.stale.len());
        for Stale { namespace, key, value: entry } in slice.stale {
            let mut moved = None;
            if let Some(entry) = entry {
                let value = match &mut together {
                    Some(read) => Ok(read.next().expect("one for each that is wanted")),
                    None => tree.value(&entry),
                };
                match value {
                    Ok(value) => {
                        let spot = self.poisoning(|| values.append(&[&entry.value_len.to_bytes(), &value]))?;
                        moved = Some((entry.place, Place(spot.to_u64())));
                    }
                    Err(error) => left.value(&namespace, &key, &entry, error),
                }
            }
            // Also without its value: pages on its way may be stale.
            rewrites.push(Rewrite { namespace, key, moved });
        }
        // Durable before anything can point at it: a record of the next commit may name these places.
        if !wanted.is_empty() {
            self.poisoning(|| values.sync())?;
        }
        self.give_way();
        // Of the pages on the way most lie where they can stay. Nobody else begins to empty what they lie in.
        let staying = self.segments.staying();
        let stays = |page| staying.has(page);
        let count = |moved: &[Moved]| self.segments.count_moved(moved);
        if self.point_at(&rewrites, stays, count).is_err() {
            // What could be read a moment ago cannot be now. Those whose way is whole still go.
            let tree = &self.current().tree;
            rewrites.retain(|Rewrite { namespace, key, .. }| match tree.find(namespace, key) {
                Ok(_) => true,
                Err(error) => {
                    left.piece(namespace, key, 1, error);
                    false
                }
            });
            if let Err(error) = self.point_at(&rewrites, stays, count) {
                left.anywhere = true;
                left.name(error.into());
                return Ok(());
            }
        }
        done.values_moved += rewrites.iter().filter(|rewrite| rewrite.moved.is_some()).count() as u64;
        done.pages_moved += rewrites.iter().filter(|rewrite| rewrite.moved.is_none()).count() as u64;
        Ok(())
    }

    /// Lets the last version point at what was copied, in the place of a commit. Its root is the same. What is written anew is written
    /// whole, or beside what stays. `count` hears what moved while nobody else has the writer.
    pub(crate) fn point_at(
        &self,
        rewrites: &[Rewrite],
        stays: impl Fn(PageAt) -> bool + Sync,
        count: impl FnOnce(&[Moved]),
    ) -> Result<(), ReadError> {
        let mut writer = self.writer();
        let _poisoned = self.poisoned_by_panic();
        let version = self.current();
        // Keys that were written since they were looked at lie elsewhere already; the tree leaves them as they are.
        let draft = version.tree.rewrite(rewrites, stays)?;
        self.segments.count_passed(&draft.pass());
        count(draft.moved());
        let tree = draft.commit(|_| unreachable!("a rewrite writes no values"));
        assert_eq!(tree.root(), version.root, "moving values changes no root");
        self.replace(&mut writer, Version::new(version.height, version.epoch, tree, version.record, self.passes()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use crate::files::{Act, FaultyFiles, Interposed, MemoryFiles};
    use keelstone_codec::{Height, Value};
    use keelstone_tree::{Blake3, Diff};
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    fn some(count: u32, len: usize) -> Diff {
        let key = |number: u32| Key::new(number.to_be_bytes()).unwrap();
        let write = |number| (Namespace::new("a").unwrap(), key(number), Some(Value::new(vec![1; len]).unwrap()));
        (0..count).map(write).collect()
    }

    /// spec: STORE-17. However large values are, and however small, a slice has so much to write anew and to copy.
    #[test]
    fn a_slice_is_bounded_in_keys_and_in_bytes() {
        for (count, len, slices) in [(2_000, 4 << 10, 4..6), (5, 3 << 20, 5..6), (20_000, 10, 5..12)] {
            let options = Options { background: false, garbage_percent: 0, ..Options::default() };
            let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
            shared.commit(Height(0), &some(count, len), || Ok(())).unwrap();
            shared.flush(&mut shared.upkeep()).unwrap();
            let all = shared.segments.all().iter().map(|segment| segment.id()).collect();
            let (mut from, mut slice, mut found, mut values) = (None, Slice::default(), 0, 0);
            loop {
                (_, from) = shared.look(from.as_ref(), &all, &mut slice, &mut Left::default());
                if from.is_some() && !slice.is_full() {
                    continue;
                }
                let slice = std::mem::take(&mut slice);
                let moved: Vec<Entry> = slice.stale.iter().filter_map(|stale| stale.value).collect();
                let bytes: u64 = moved.iter().map(|entry| u64::from(entry.value_len)).sum();
                assert_eq!(slice.bytes, bytes);
                assert!(bytes < SLICE_BYTES + len as u64, "{bytes} bytes of values of {len}");
                // A page has 32 slots, and the pages above those that were looked at are on the way.
                assert!(moved.len() < SLICE_KEYS + (LOOK_PAGES + 1) * 32, "{} values of {len}", moved.len());
                (found, values) = (found + 1, values + moved.len());
                if from.is_none() {
                    break;
                }
            }
            assert_eq!(values, count as usize);
            assert!(slices.contains(&found), "{found} slices of values of {len} bytes");
        }
    }

    /// spec: STORE-8. A write that fails while a compaction is under way ends it: no other slice is copied.
    #[test]
    fn a_compaction_writes_nothing_behind_a_write_that_failed() {
        let options = Options { background: false, garbage_percent: 0, ..Options::default() };
        let files = FaultyFiles::new(1);
        let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options).unwrap();
        shared.commit(Height(0), &some(20_000, 10), || Ok(())).unwrap();
        shared.flush(&mut shared.upkeep()).unwrap();
        let all: BTreeSet<SegmentId> = shared.segments.all().iter().map(|segment| segment.id()).collect();
        let (mut done, mut changes) = (Compacted::default(), None);
        let emptied = shared.empty(&all, &mut done, &mut |_| {
            changes.get_or_insert_with(|| {
                shared.poisoning(|| Err::<(), _>(StoreError::Empty)).unwrap_err();
                files.changes()
            });
            true
        });
        assert!(matches!(emptied, Err(StoreError::Poisoned { .. })), "{emptied:?}");
        assert_eq!((changes, done.values_moved), (Some(files.changes()), 0));
    }

    /// spec: STORE-4. A diff that was prepared before a flush may go beside pages that the flush was the last to need. If they
    /// are emptied before it is committed, it is written whole.
    #[test]
    fn nothing_is_written_beside_what_was_emptied() {
        let options = Options { page_segment_bytes: 16 << 10, background: false, ..Options::default() };
        let files = MemoryFiles::new();
        let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options.clone()).unwrap();
        shared.commit(Height(0), &some(2_000, 40), || Ok(())).unwrap();
        shared.flush(&mut shared.upkeep()).unwrap();
        // Of each page every other key, in two steps: what is prepared between them stands beside the first pages still.
        let every = |step: usize, from: usize| -> Diff {
            let all = some(2_000, 41);
            let writes = all.iter().skip(from).step_by(step);
            writes.map(|(space, write)| (space.clone(), write.key.clone(), write.value.clone())).collect()
        };
        shared.commit(Height(1), &every(2, 0), || Ok(())).unwrap();
        let prepared = shared.prepare(every(30, 1)).unwrap();
        shared.flush(&mut shared.upkeep()).unwrap();
        let mut victims = shared.victims(&shared.upkeep(), None);
        victims.retain(|id| shared.segments.usage()[id].live == 0);
        assert!(victims.len() > 2, "{victims:?}");
        let mut done = Compacted::default();
        shared.empty(&victims, &mut done, &mut |_| true).unwrap();
        assert_eq!((done.segments_emptied, done.pages_moved), (victims.len() as u64, 0));
        let turn = shared.writer().turn;
        let root = shared.commit_prepared(Height(2), prepared, || Ok(())).unwrap();
        assert_eq!(shared.writer().turn, turn + 1, "it was not prepared anew");
        let needed_of = |shared: &Shared<Blake3>| {
            let mut needed = Vec::new();
            shared.current().tree.needs(|page| needed.push(Spot::from_u64(page.place).unwrap().segment)).unwrap();
            BTreeSet::from_iter(needed)
        };
        assert!(!needed_of(&shared).is_disjoint(&victims), "what was prepared could stand beside what was emptied");
        shared.flush(&mut shared.upkeep()).unwrap();
        assert!(needed_of(&shared).is_disjoint(&victims), "it does not");
        shared.prune(Height(2)).unwrap();
        for height in 3..8u8 {
            let (height, from) = (u64::from(height), usize::from(height));
            shared.commit(Height(height), &every(1_999, from), || Ok(())).unwrap();
            shared.flush(&mut shared.upkeep()).unwrap();
            shared.prune(Height(height)).unwrap();
        }
        assert!(victims.iter().all(|id| shared.segments.find(*id).is_none()), "the segments are gone");
        drop(shared);
        let shared = Shared::<Blake3>::open(Arc::new(files), options).unwrap();
        let name = Namespace::new("a").unwrap();
        let tree = &shared.current().tree;
        assert_ne!(tree.root(), root);
        assert_eq!(tree.entries(&name, keelstone_tree::KeyRange::all()).filter(Result::is_ok).count(), 2_000);
    }

    /// spec: STORE-12. Where pages are being written nothing can be emptied. Were what lies there a reason to compact all the same, one
    /// compaction that gets nothing would follow another until the next flush.
    #[test]
    fn garbage_beside_pages_that_are_being_written_is_beyond_reach() {
        let options = Options { garbage_percent: 1, flush_bytes: 1, segment_bytes: 1 << 16, ..Options::default() };
        let options = Options { page_segment_bytes: 1 << 20, background: false, ..options };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        for height in 0..6 {
            shared.commit(Height(height), &some(2_000, 1 + usize::try_from(height).unwrap()), || Ok(())).unwrap();
            shared.flush(&mut shared.upkeep()).unwrap();
            let pages = shared.segments.all().iter().filter(|segment| segment.id().kind == Kind::Pages).count();
            assert_eq!(pages, 1, "all of it lies where the next flush goes on");
        }
        let (garbage, _) = shared.reclaimable();
        let upkeep = shared.upkeep();
        assert!(garbage > 0 && shared.victims(&upkeep, None).is_empty());
        assert!(shared.free_to_empty().iter().any(|(_, usage)| usage.is_worth_emptying()), "but for that");
        assert_eq!(shared.garbage_beyond_reach(&upkeep), garbage);
    }

    /// spec: STORE-4. However much history is kept, pages that the last version does without are not: what was before is made again
    /// of what is, by records and by the values that they name.
    #[test]
    fn history_keeps_no_pages() {
        let small =
            Options { page_segment_bytes: 16 << 10, background: false, garbage_percent: 0, ..Options::default() };
        let options = Options { history: Retention::All, recent_versions: 1, ..small };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        let (name, key) = (Namespace::new("a").unwrap(), |number: u64| Key::new(number.to_be_bytes()).unwrap());
        let value = |height: u64| Value::new(height.to_be_bytes().to_vec()).unwrap();
        for height in 0..40u64 {
            let written = (0..2_000).filter(|number| height == 0 || number % 7 == height % 7);
            let diff: Diff = written.map(|number| (name.clone(), key(number), Some(value(height)))).collect();
            shared.commit(Height(height), &diff, || Ok(())).unwrap();
            shared.flush(&mut shared.upkeep()).unwrap();
        }
        let pages = || shared.segments.all().iter().filter(|segment| segment.id().kind == Kind::Pages).count();
        let before = pages();
        for height in 40..44 {
            drop(shared.compact(None, &mut |_| true).unwrap());
            let diff: Diff = [(name.clone(), key(0), Some(value(height)))].into_iter().collect();
            shared.commit(Height(height), &diff, || Ok(())).unwrap();
        }
        assert!(pages() * 4 < before, "{} segments of pages of {before} are left", pages());
        for height in (0..40).step_by(3) {
            let version = shared.version_at(Height(height)).unwrap();
            for number in 0..2_000 {
                let last = (1..=height).rev().find(|height| number % 7 == height % 7).unwrap_or(0);
                assert_eq!(version.get(&name, &key(number)).unwrap(), Some(value(last)), "key {number} at {height}");
            }
        }
    }

    fn commit(shared: &Shared<Blake3>, height: u64) {
        let diff = if height == 0 { some(200, 40) } else { some(1, 500) };
        shared.commit(Height(height), &diff, || Ok(())).unwrap();
    }

    /// A store of ten heights, at height 59 of which a compaction that nobody asked for has emptied segments, and which.
    fn emptied(files: &MemoryFiles) -> (Shared<Blake3>, BTreeSet<SegmentId>) {
        let small = Options { segment_bytes: 8 << 10, page_segment_bytes: 8 << 10, ..Options::default() };
        let once = Options { flush_bytes: u64::MAX / 2, garbage_percent: 0, background: false, ..small };
        let options = Options { history: Retention::Heights(10), ..once };
        let shared = Shared::<Blake3>::create(Arc::new(files.clone()), options).unwrap();
        (0..60).for_each(|height| commit(&shared, height));
        shared.flush(&mut shared.upkeep()).unwrap();
        assert!(shared.compact(Some(u64::MAX), &mut |_| true).unwrap().segments_emptied > 2);
        let emptied = |(id, usage): (&SegmentId, &Usage)| usage.emptied.map(|_| *id);
        let emptied = shared.segments.usage().iter().filter_map(emptied).collect();
        (shared, emptied)
    }

    fn are_there(shared: &Shared<Blake3>, segments: &BTreeSet<SegmentId>) -> usize {
        segments.iter().filter(|id| shared.segments.find(**id).is_some()).count()
    }

    fn slots_written(shared: &Shared<Blake3>) -> u64 {
        shared.upkeep().superblock.sequence
    }

    /// The same, with a flush at height 64, and how many of the segments wait for history then.
    fn emptied_and_flushed(files: &MemoryFiles) -> (Shared<Blake3>, BTreeSet<SegmentId>, usize) {
        let (shared, emptied) = emptied(files);
        (60..65).for_each(|height| commit(&shared, height));
        shared.flush_and_remove(&mut shared.upkeep()).unwrap();
        let left = are_there(&shared, &emptied);
        assert!(left > 2, "{left} segments wait for history");
        (shared, emptied, left)
    }

    /// What a store is that is opened at what another has on its disk.
    fn opened_again(files: &MemoryFiles, shared: &Shared<Blake3>) -> (Option<Height>, Vec<(Key, Value)>) {
        let image = MemoryFiles::from_image(&files.image());
        let again = Shared::<Blake3>::open(Arc::new(image), shared.options.clone()).unwrap();
        assert_eq!(again.current().root, shared.current().root);
        let space = Namespace::new("a").unwrap();
        let tree = &again.current().tree;
        let value = |(key, entry)| (key, tree.value(&entry).unwrap());
        let entries = tree.entries(&space, keelstone_tree::KeyRange::all()).map(|entry| value(entry.unwrap()));
        (again.current().height, entries.collect())
    }

    /// spec: STORE-7. What a compaction emptied that nobody asked for goes with one flush, once history needs nothing of it.
    #[test]
    fn what_was_emptied_goes_when_history_lets_go() {
        let files = MemoryFiles::new();
        let (shared, emptied) = emptied(&files);
        let before = slots_written(&shared);
        (60..70).for_each(|height| commit(&shared, height));
        let found = (are_there(&shared, &emptied), slots_written(&shared));
        assert_eq!(found, (emptied.len(), before), "ten heights are kept, and 59 was the last then");
        commit(&shared, 70);
        assert_eq!((are_there(&shared, &emptied), slots_written(&shared)), (0, before + 2), "one flush, in both slots");
        (71..100).for_each(|height| commit(&shared, height));
        assert_eq!(slots_written(&shared), before + 2);
    }

    /// spec: STORE-7. Where a flush came meanwhile, it takes a table and two slots for that, and no page.
    #[test]
    fn what_was_emptied_before_a_flush_goes_without_another() {
        let files = MemoryFiles::new();
        let (shared, emptied, left) = emptied_and_flushed(&files);
        let before = slots_written(&shared);
        (65..70).for_each(|height| commit(&shared, height));
        assert_eq!((are_there(&shared, &emptied), slots_written(&shared)), (left, before));
        let unflushed = shared.stats().unflushed_bytes;
        commit(&shared, 70);
        assert_eq!((are_there(&shared, &emptied), slots_written(&shared)), (0, before + 2));
        assert!(shared.stats().unflushed_bytes > unflushed, "nothing was flushed");
        assert_eq!(shared.upkeep().superblock.flushed.height, Some(Height(64)));
        let (height, entries) = opened_again(&files, &shared);
        assert_eq!((height, entries.len()), (Some(Height(70)), 200));
        assert!(entries.iter().all(|(key, value)| value.len() == if key.as_slice() == [0; 4] { 500 } else { 40 }));
    }

    /// spec: STORE-4. A rollback may need again what was emptied above the height it goes to, so that stays.
    #[test]
    fn what_a_rollback_needs_again_does_not_go() {
        let files = MemoryFiles::new();
        let (shared, emptied, left) = emptied_and_flushed(&files);
        shared.rollback(Height(57)).unwrap();
        (58..90).for_each(|height| commit(&shared, height));
        assert_eq!(are_there(&shared, &emptied), left);
        assert_eq!(opened_again(&files, &shared).1.len(), 200);
    }

    /// However a store goes on, goes back, and is opened again, what is counted as living of a segment is what the last version needs
    /// of it.
    #[test]
    fn what_is_counted_as_living_is_what_the_last_version_needs() {
        for seed in 0..12u64 {
            let mut random = seed;
            let mut below = |most: u64| keelstone_codec::splitmix64(&mut random) % most;
            let options = Options {
                segment_bytes: 16 << 10,
                page_segment_bytes: 16 << 10,
                flush_bytes: u64::MAX / 2,
                garbage_percent: 0,
                cache_bytes: (20 << 10) * below(3),
                background: false,
                ..Options::default()
            };
            let mut files = MemoryFiles::new();
            let mut shared = Shared::<Blake3>::create(Arc::new(files.clone()), options.clone()).unwrap();
            let mut height = 0;
            for _ in 0..60 {
                match below(11) {
                    0..5 => {
                        let most = 1 + below(3) * below(3) * 50;
                        let write = |_| {
                            let key = Key::new(below(700).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).unwrap();
                            let value = (below(8) > 0).then(|| Value::new(below(9).to_be_bytes().to_vec()).unwrap());
                            (Namespace::new("a").unwrap(), key, value)
                        };
                        let diff: Diff = (0..most).map(write).collect();
                        shared.commit(Height(height), &diff, || Ok(())).unwrap();
                        height += 1;
                    }
                    5..8 => shared.flush(&mut shared.upkeep()).unwrap(),
                    8 if height > 0 => {
                        shared.prune(Height(height - 1)).unwrap();
                        drop(shared.compact(None, &mut |_| true).unwrap());
                    }
                    9 if height > 0 => {
                        let to = shared.low().unwrap().0.max((height - 1).saturating_sub(below(4)));
                        shared.rollback(Height(to)).unwrap();
                        height = to + 1;
                    }
                    _ => {
                        let image = files.image();
                        drop(shared);
                        files = MemoryFiles::from_image(&image);
                        shared = Shared::open(Arc::new(files.clone()), options.clone()).unwrap();
                    }
                }
                assert_counts(&shared, true, &format!("seed {seed}, height {height}"));
            }
        }
    }

    /// What is counted as living of each segment is what the last version needs of it.
    fn assert_counts(shared: &Shared<Blake3>, of_pages: bool, when: &str) {
        let mut needed = std::collections::BTreeMap::<SegmentId, u64>::new();
        let mut note = |place: u64, len: u32| {
            let segment = Spot::from_u64(place).unwrap().segment;
            // With the length before it, if it is a value that was moved.
            let len = len + if segment.kind == Kind::Values { 4 } else { 0 };
            *needed.entry(segment).or_default() += u64::from(len);
        };
        let tree = &shared.current().tree;
        tree.needs(|page| note(page.place, page.len)).unwrap();
        for entry in tree.entries(&Namespace::new("a").unwrap(), keelstone_tree::KeyRange::all()) {
            let (_, entry) = entry.unwrap();
            note(entry.place.0, entry.value_len);
        }
        let usage = shared.segments.usage();
        for (id, usage) in usage.iter().filter(|(id, _)| of_pages || id.kind != Kind::Pages) {
            let needed = needed.remove(id).unwrap_or_default();
            if usage.emptied.is_some() {
                assert!(id.kind == Kind::Pages || needed == 0, "{id} is not empty, {when}");
                assert_eq!(usage.live, 0, "{id}, {when}");
            } else {
                assert_eq!(usage.live, needed, "{id}, {when}");
            }
            assert!(usage.live <= usage.written, "{id}, {when}");
        }
    }

    type Once = Box<dyn FnOnce() + Send>;

    /// A flush writes a version, and beside it commits go on and a compaction moves values. Whoever opens the store at that version
    /// counts what came since once.
    #[test]
    fn what_came_beside_a_flush_is_counted_once() {
        let options = Options {
            segment_bytes: 8 << 10,
            page_segment_bytes: 8 << 10,
            flush_bytes: u64::MAX / 2,
            garbage_percent: 0,
            background: false,
            ..Options::default()
        };
        // When a segment of pages has been made, something is done once.
        let (memory, once) = (MemoryFiles::new(), Arc::new(Mutex::<Option<Once>>::default()));
        let files = {
            let once = once.clone();
            Interposed::new(Arc::new(memory.clone()), move |_, act, go_on| {
                go_on()?;
                if let Act::Rename(to) = act {
                    let beside = once.lock().unwrap().take_if(|_| to.ends_with(".pages"));
                    beside.into_iter().for_each(|beside| beside());
                }
                Ok(())
            })
        };
        let shared = Arc::new(Shared::<Blake3>::create(Arc::new(files), options.clone()).unwrap());
        let commit = |shared: &Shared<Blake3>, height: u64, every: usize| {
            let all = some(2_000, 41 + usize::try_from(height).unwrap());
            let writes = all.iter().step_by(every);
            let diff = writes.map(|(space, write)| (space.clone(), write.key.clone(), write.value.clone())).collect();
            shared.commit(Height(height), &diff, || Ok(())).unwrap();
        };
        commit(&shared, 0, 1);
        shared.flush(&mut shared.upkeep()).unwrap();
        commit(&shared, 1, 2);
        shared.prune(Height(1)).unwrap();
        let victims = shared.victims(&shared.upkeep(), None);
        assert!(victims.iter().any(|id| id.kind == Kind::Log), "{victims:?}");
        let (tell, told) = channel();
        *once.lock().unwrap() = Some(Box::new({
            let shared = Arc::downgrade(&shared);
            move || {
                let shared = shared.upgrade().unwrap();
                commit(&shared, 2, 5);
                let new = Appender::new(shared.segments.clone(), Kind::Values, None, 1, 8 << 10);
                let (mut slice, mut left, mut done) = (Slice::default(), Left::default(), Compacted::default());
                shared.look(None, &victims, &mut slice, &mut left);
                shared.move_slice(slice, &mut new.unwrap().of_copies(), &mut left, &mut done).unwrap();
                commit(&shared, 3, 7);
                tell.send(done.values_moved).unwrap();
            }
        }));
        shared.flush(&mut shared.upkeep()).unwrap();
        assert!(told.try_recv().unwrap() > 100, "values moved");
        assert_counts(&shared, false, "before");
        drop(shared);
        let opened = Shared::<Blake3>::open(Arc::new(memory), options).unwrap();
        assert_eq!(opened.current().height, Some(Height(3)));
        assert_counts(&opened, false, "opened again");
    }

    /// What a flush writes is a version from before it began. So while it is at work nothing is marked as emptied, or the
    /// superblock would say that nothing lies where this version's values lie.
    #[test]
    fn nothing_is_marked_as_emptied_while_a_flush_is_at_work() {
        let options = Options { segment_bytes: 8 << 10, background: false, ..Options::default() };
        let shared = Shared::<Blake3>::create(Arc::new(MemoryFiles::new()), options).unwrap();
        for height in 0..40 {
            let key = if height == 0 { "kept" } else { "changing" };
            let key = Key::new(key.as_bytes()).unwrap();
            let value = Value::new(vec![1; 500]).unwrap();
            let diff: Diff = [(Namespace::new("a").unwrap(), key, Some(value))].into_iter().collect();
            shared.commit(Height(height), &diff, || Ok(())).unwrap();
        }
        shared.prune(Height(39)).unwrap();
        let victims = shared.victims(&shared.upkeep(), None);
        assert!(!victims.is_empty());
        let marked = || victims.iter().filter(|id| shared.segments.usage()[id].emptied.is_some()).count();
        let (tell, told) = channel();
        std::thread::scope(|threads| {
            let flushing = shared.upkeep();
            let compaction = threads.spawn(|| {
                let mut done = Compacted::default();
                shared.empty(&victims, &mut done, &mut |_| true).unwrap();
                tell.send(()).unwrap();
                done
            });
            assert_eq!(told.recv_timeout(Duration::from_millis(200)), Err(RecvTimeoutError::Timeout));
            assert_eq!(marked(), 0);
            drop(flushing);
            assert_eq!(compaction.join().unwrap().segments_emptied, victims.len() as u64);
        });
        assert_eq!(marked(), victims.len());
    }
}
