//! All segments of a store that are open, how much of each still lives, and reading by place.

use crate::StoreError;
use crate::cache::BlockCache;
use crate::files::Files;
use crate::history::Undone;
use crate::sector::StoreId;
use crate::segment::{Kind, Passing, Segment, SegmentId, Spot};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, thread};
use arc_swap::ArcSwap;
use bytes::Buf;
use keelstone_codec::{Bytes, Decode, DecodeError, Encode, Height, Reader, Value};
use keelstone_tree::Entry;
use keelstone_tree::{Backing, Moved, PageAt, Passed, Place, ReadError};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::slice;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Of all that lies on the disk, a segment that is made now is to be one such part: enough of them that what is garbage can be had
/// without moving much, and few files.
const SEGMENTS: u64 = 64;

/// The smallest segment worth a file and the syncs that make it, unless the largest is smaller still.
const SEGMENT_BYTES_MIN: u64 = 4 << 20;

/// A segment is worth emptying when at most this many hundredths of it live.
const LIVE_PERCENT_MAX: u64 = 60;

/// For how long files that cannot be made for want of descriptors or memory are tried again, all of them together, until one can be
/// made. Whoever closes the store meanwhile waits as long.
const SHORTAGE: Duration = Duration::from_millis(3_600);
/// What is waited before one is tried again, at first and at most; it is twice as long each time.
const SHORTAGE_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// How a segment is used. The byte counts say what compaction is worth; only [`Usage::emptied`] says what may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes of values or pages ever written to it.
    pub(crate) written: u64,
    /// Of those, bytes that the last version needs, as far as counted.
    pub(crate) live: u64,
    /// The last height whose record lies here.
    pub(crate) last_height: Option<Height>,
    /// The height at which a whole pass over the state found nothing here any more.
    pub(crate) emptied: Option<Height>,
    /// Which pass that was, of those since the store was opened. Not written: nobody holds a version from before.
    pub(crate) pass: u64,
}

impl Usage {
    /// Bytes that the last version does not need, as far as counted.
    pub(crate) fn garbage(&self) -> u64 {
        self.written.saturating_sub(self.live)
    }

    /// Whether it is mostly garbage.
    pub(crate) fn is_worth_emptying(&self) -> bool {
        self.live * 100 <= self.written * LIVE_PERCENT_MAX
    }
}

impl Encode for Usage {
    fn encode(&self, out: &mut Vec<u8>) {
        self.written.encode(out);
        self.live.encode(out);
        self.last_height.encode(out);
        self.emptied.encode(out);
    }
}
impl Decode for Usage {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (written, live) = Decode::decode(input)?;
        let (last_height, emptied) = Decode::decode(input)?;
        Ok(Self { written, live, last_height, emptied, pass: 0 })
    }
}

/// What changes in the counts of segments: bytes that were written, that live again, and that no longer live.
#[derive(Default)]
struct Changes(BTreeMap<SegmentId, Change>);

#[derive(Default)]
struct Change {
    written: u64,
    restored: u64,
    dead: u64,
}

impl Changes {
    /// Counts a value as one of them; of one that was moved, the length before it is counted too.
    fn add(&mut self, (place, len): (Place, u64), count: impl Fn(&mut Change) -> &mut u64) {
        // Places that make no sense are found where they are read; counting is no place to fail.
        if let Ok(Spot { segment, .. }) = Spot::from_u64(place.0) {
            *count(self.0.entry(segment).or_default()) += if segment.kind == Kind::Values { len + 4 } else { len };
        }
    }
}

/// Segments in which pages stay.
pub(crate) struct Staying(BTreeSet<SegmentId>);

impl Staying {
    /// Whether a page lies in one of them.
    pub(crate) fn has(&self, page: PageAt) -> bool {
        Spot::from_u64(page.place).is_ok_and(|spot| self.0.contains(&spot.segment))
    }
}

/// All open segments. Shared by the store, its trees and its views.
pub(crate) struct Segments {
    files: Arc<dyn Files>,
    store: StoreId,
    open: ArcSwap<BTreeMap<SegmentId, Arc<Segment>>>,
    /// Pages that are read in the place of damaged ones, while these are mended.
    patches: ArcSwap<BTreeMap<PageAt, Bytes>>,
    usage: Mutex<BTreeMap<SegmentId, Usage>>,
    /// Segments that a compaction moves everything out of.
    emptying: Mutex<BTreeSet<SegmentId>>,
    cache: BlockCache,
    written: AtomicU64,
    /// The highest number of a log segment made in this session. Held while one is made, since a commit and the thread
    /// that makes them in good time may both want to.
    making: Mutex<u32>,
    /// What was waited since files cannot be made for want of descriptors or memory. Held while it is waited: who lacks them at the
    /// same time waits in turn, and what is counted is what went by.
    lacking: Mutex<Duration>,
    /// The highest number of each kind that was ever open in this session.
    highest: [AtomicU32; Kind::ALL.len()],
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} segments", self.open.load().len())
    }
}

impl Segments {
    pub(crate) fn new(files: Arc<dyn Files>, store: StoreId, cache_bytes: u64) -> Self {
        let cache = BlockCache::new(cache_bytes);
        let (open, usage, emptying) = (ArcSwap::default(), Mutex::default(), Mutex::default());
        let (making, lacking) = (Mutex::default(), Mutex::default());
        let (patches, written, highest) = (ArcSwap::default(), AtomicU64::new(0), Default::default());
        Self { files, store, open, patches, usage, emptying, cache, written, making, lacking, highest }
    }

    pub(crate) fn store(&self) -> &StoreId {
        &self.store
    }

    pub(crate) fn files(&self) -> &dyn Files {
        &*self.files
    }

    pub(crate) fn files_shared(&self) -> &Arc<dyn Files> {
        &self.files
    }

    pub(crate) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// From now on these pages are read in the place of what lies there, and no others. They are proven as any.
    pub(crate) fn patch(&self, pages: BTreeMap<PageAt, Bytes>) {
        self.patches.store(Arc::new(pages));
    }

    /// Makes a new segment of `bytes`, durably, and opens it. A lack of file descriptors is waited out for a while: nothing was
    /// written for want of one, and a failure here would end all writing.
    // spec: STORE-8
    pub(crate) fn create(&self, id: SegmentId, generation: u32, bytes: u64) -> Result<Arc<Segment>, StoreError> {
        let mut pause = SHORTAGE_PAUSE.0;
        loop {
            match self.try_create(id, generation, bytes) {
                Err(error) if error.is_shortage() => {
                    let mut waited = self.lacking();
                    if *waited >= SHORTAGE {
                        return Err(error);
                    }
                    thread::sleep(pause);
                    *waited += pause;
                    pause = (pause * 2).min(SHORTAGE_PAUSE.1);
                }
                made => {
                    *self.lacking() = Duration::ZERO;
                    return made;
                }
            }
        }
    }

    fn try_create(&self, id: SegmentId, generation: u32, bytes: u64) -> Result<Arc<Segment>, StoreError> {
        let segment = Arc::new(Segment::create(&*self.files, &self.store, id, generation, bytes)?);
        self.insert(slice::from_ref(&segment));
        Ok(segment)
    }

    fn lacking(&self) -> MutexGuard<'_, Duration> {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment with room for `bytes` in which nothing was written yet: the one that was made in good time, or a new one
    /// in its place.
    pub(crate) fn obtain(&self, id: SegmentId, generation: u32, bytes: u64) -> Result<Arc<Segment>, StoreError> {
        let mut made = self.making();
        let segment = match self.find(id) {
            Some(segment) if segment.bytes() >= bytes => segment,
            _ => self.create(id, generation, bytes)?,
        };
        *made = made.max(id.number);
        Ok(segment)
    }

    /// Makes a segment for a later [`Self::obtain`], unless that has come already. A lack of descriptors is not waited out: whoever
    /// needs the segment will.
    pub(crate) fn prepare(&self, id: SegmentId, generation: u32, bytes: u64) -> Result<(), StoreError> {
        let mut made = self.making();
        if *made < id.number && self.find(id).is_none() {
            self.try_create(id, generation, bytes)?;
            *made = id.number;
        }
        Ok(())
    }

    fn making(&self) -> MutexGuard<'_, u32> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all segments, whether or not anything was written to them.
    pub(crate) fn bytes(&self) -> u64 {
        self.open.load().values().map(|segment| segment.bytes()).sum()
    }

    /// How large a segment that is made now should be, of at most so many bytes.
    // spec: STORE-18
    pub(crate) fn fitting(&self, most: u64) -> u64 {
        let share = self.bytes() / SEGMENTS;
        let share = if share < SEGMENT_BYTES_MIN { SEGMENT_BYTES_MIN } else { 1 << share.ilog2() };
        share.min(most)
    }

    /// Opens a segment that must exist.
    pub(crate) fn open(&self, id: SegmentId) -> Result<Arc<Segment>, StoreError> {
        if let Some(segment) = self.find(id) {
            return Ok(segment);
        }
        let segment = Arc::new(Segment::open(&*self.files, &self.store, id)?);
        self.insert(slice::from_ref(&segment));
        Ok(segment)
    }

    /// Opens the segments of a table, which must exist, and takes over how they are used.
    pub(crate) fn open_all(&self, table: Vec<(SegmentId, Usage)>) -> Result<(), StoreError> {
        let new = table.iter().map(|(id, _)| *id).filter(|id| self.find(*id).is_none());
        let opened = new.map(|id| Segment::open(&*self.files, &self.store, id).map(Arc::new));
        let opened = opened.collect::<Result<Vec<_>, _>>()?;
        self.insert(&opened);
        self.usage().extend(table);
        Ok(())
    }

    fn insert(&self, segments: &[Arc<Segment>]) {
        for SegmentId { kind, number } in segments.iter().map(|segment| segment.id()) {
            self.highest[kind as usize].fetch_max(number, Ordering::Relaxed);
        }
        let mut usage = self.usage();
        for segment in segments {
            usage.entry(segment.id()).or_default();
        }
        drop(usage);
        self.open.rcu(|open| {
            let mut open = BTreeMap::clone(open);
            open.extend(segments.iter().map(|segment| (segment.id(), Arc::clone(segment))));
            open
        });
    }

    /// Removes a segment and its file. Readers that hold it go on reading it.
    pub(crate) fn remove(&self, id: SegmentId) -> Result<(), StoreError> {
        self.open.rcu(|open| {
            let mut open = BTreeMap::clone(open);
            open.remove(&id);
            open
        });
        self.usage().remove(&id);
        let name = id.file_name(&self.store);
        self.files.remove(&name).map_err(StoreError::io("remove", name))
    }

    pub(crate) fn find(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.open.load().get(&id).cloned()
    }

    /// Every open segment, in order.
    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.open.load().values().cloned().collect()
    }

    /// Says that no segment of the log before `end` will change any more.
    pub(crate) fn settle_log(&self, end: SegmentId) {
        let open = self.open.load();
        let done = open.values().filter(|segment| segment.id().kind == Kind::Log && segment.id() < end);
        done.for_each(|segment| segment.settle(u32::MAX));
    }

    /// The id of a segment that is to be made, of a kind of which nobody else makes one meanwhile. No number is used twice in a
    /// session: the last segment may be on its way out, and who removes it would remove its namesake.
    pub(crate) fn next(&self, kind: Kind) -> SegmentId {
        SegmentId { kind, number: self.highest[kind as usize].load(Ordering::Relaxed) }.next()
    }

    pub(crate) fn usage(&self) -> MutexGuard<'_, BTreeMap<SegmentId, Usage>> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what a commit's new values add and what the values it replaced were worth.
    pub(crate) fn count_commit(
        &self,
        new: impl Iterator<Item = Option<(Place, usize)>>,
        old: &[Option<Entry>],
        height: Height,
    ) {
        self.count(new, old.iter().flatten().map(|entry| (entry.place, u64::from(entry.value_len))), height);
    }

    /// As [`Self::count_commit`], where of what was replaced only places and lengths are known.
    pub(crate) fn count(
        &self,
        new: impl Iterator<Item = Option<(Place, usize)>>,
        old: impl Iterator<Item = (Place, u64)>,
        height: Height,
    ) {
        let mut change = Changes::default();
        new.flatten().for_each(|(place, len)| change.add((place, len as u64), |change| &mut change.written));
        old.for_each(|old| change.add(old, |change| &mut change.dead));
        self.count_changes(change, Some(height));
    }

    /// Counts values that no longer live, of which places and lengths are known.
    pub(crate) fn count_dead(&self, values: impl Iterator<Item = (Place, u64)>) {
        self.count(std::iter::empty(), values, Height(0));
    }

    /// Counts what changes when commits are undone.
    pub(crate) fn count_undone(&self, Undone { passed, restored, replaced }: &Undone) {
        let mut change = Changes::default();
        restored.iter().for_each(|value| change.add(*value, |change| &mut change.restored));
        replaced.iter().for_each(|value| change.add(*value, |change| &mut change.dead));
        self.count_changes(change, None);
        self.count_passed(passed);
    }

    fn count_changes(&self, change: Changes, height: Option<Height>) {
        let mut usage = self.usage();
        for (id, Change { written, restored, dead }) in change.0 {
            if let Some(usage) = usage.get_mut(&id) {
                usage.written += written;
                usage.live = (usage.live + written + restored).saturating_sub(dead);
                if written > 0 {
                    usage.last_height = usage.last_height.max(height);
                }
            }
        }
    }

    /// Counts what was appended to a segment, and whether it lives.
    pub(crate) fn count_appended(&self, id: SegmentId, bytes: usize, lives: bool) {
        if let Some(usage) = self.usage().get_mut(&id) {
            usage.written += bytes as u64;
            usage.live += if lives { bytes as u64 } else { 0 };
        }
    }

    /// Counts values that are needed where they were copied to, and no more where they were.
    pub(crate) fn count_moved(&self, moved: &[Moved]) {
        let mut change = Changes::default();
        for Moved { from, to, len } in moved {
            change.add((*from, u64::from(*len)), |change| &mut change.dead);
            change.add((*to, u64::from(*len)), |change| &mut change.restored);
        }
        self.count_changes(change, None);
    }

    /// Counts what changes when a version takes the place of the last.
    pub(crate) fn count_passed(&self, passed: &Passed) {
        self.count_needed(&passed.needed);
        self.count_unneeded(&passed.unneeded);
    }

    /// Counts pages that the last version no longer needs.
    pub(crate) fn count_unneeded(&self, pages: &[PageAt]) {
        self.count_pages(pages, |usage, bytes| usage.live = usage.live.saturating_sub(bytes));
    }

    /// Counts pages that the last version needs although they were counted as unneeded.
    fn count_needed(&self, pages: &[PageAt]) {
        self.count_pages(pages, |usage, bytes| usage.live += bytes);
    }

    fn count_pages(&self, pages: &[PageAt], count: impl Fn(&mut Usage, u64)) {
        let mut sums: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for page in pages {
            if let Ok(spot) = Spot::from_u64(page.place) {
                *sums.entry(spot.segment).or_default() += u64::from(page.len);
            }
        }
        if sums.is_empty() {
            return;
        }
        let mut usage = self.usage();
        for (id, bytes) in sums {
            if let Some(usage) = usage.get_mut(&id) {
                count(usage, bytes);
            }
        }
    }

    /// Says that nothing that is written from now on may refer to what lies in these segments: they are being emptied.
    pub(crate) fn be_emptied(&self, victims: &BTreeSet<SegmentId>) {
        self.emptying().clone_from(victims);
    }

    /// The segments in which pages stay for as long as one that is written now: they are neither emptied nor being emptied. Asked
    /// while nobody else can begin to empty one; it holds until somebody does.
    // spec: STORE-4
    pub(crate) fn staying(&self) -> Staying {
        let emptying = self.emptying();
        let usage = self.usage();
        let stays = |(id, usage): &(&SegmentId, &Usage)| usage.emptied.is_none() && !emptying.contains(id);
        Staying(usage.iter().filter(stays).map(|(id, _)| *id).collect())
    }

    fn emptying(&self) -> MutexGuard<'_, BTreeSet<SegmentId>> {
        self.emptying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a pass found nothing in these segments that the version of a height needs. Returns how many of them there are.
    pub(crate) fn mark_emptied<'a>(
        &self,
        emptied: impl Iterator<Item = &'a SegmentId>,
        height: Option<Height>,
        pass: u64,
    ) -> u64 {
        let mut usage = self.usage();
        let mut count = 0;
        for id in emptied {
            if let Some(usage) = usage.get_mut(id) {
                (usage.emptied, usage.pass, usage.live) = (height, pass, 0);
                count += 1;
            }
        }
        count
    }

    /// Segments of pages before `open`, to which they are written, in which nothing lives, as counted, bytes of garbage in
    /// them, and bytes that live in all others.
    pub(crate) fn dead_pages(&self, open: Option<SegmentId>) -> (BTreeSet<SegmentId>, u64, u64) {
        let usage = self.usage();
        let pages = usage.iter().filter(|(id, _)| id.kind == Kind::Pages);
        let live = pages.clone().map(|(_, usage)| usage.live).sum();
        let dead = pages.filter(|(id, usage)| Some(**id) < open && usage.live == 0 && usage.emptied.is_none());
        let bytes = dead.clone().map(|(_, usage)| usage.garbage()).sum();
        (dead.map(|(id, _)| *id).collect(), bytes, live)
    }

    /// Takes back what was found of emptied segments above a height: a rollback may have given them life again.
    pub(crate) fn forget_emptied(&self, above: Height) {
        for usage in self.usage().values_mut() {
            usage.emptied = usage.emptied.filter(|emptied| *emptied <= above);
        }
    }

    /// Counts bytes written to files, for the figures.
    pub(crate) fn count_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn at(&self, place: u64) -> Result<(Arc<Segment>, u32), StoreError> {
        let spot = Spot::from_u64(place)?;
        match self.open.load().get(&spot.segment) {
            Some(segment) => Ok((Arc::clone(segment), spot.offset)),
            None => {
                let file = spot.segment.file_name(&self.store);
                Err(StoreError::Lost { file, what: "something the state refers to lies in it".into() })
            }
        }
    }

    /// Reads `len` bytes at a place, each sector checked, past the cache.
    pub(crate) fn read(&self, place: u64, len: usize) -> Result<Bytes, StoreError> {
        let (segment, offset) = self.at(place)?;
        segment.read(offset, len)
    }

    /// Reads a value whose length only its place knows.
    pub(crate) fn value_at(&self, place: Place) -> Result<Value, StoreError> {
        let field = self.read(place.0, 4)?;
        let len = u32::from_bytes(&field).expect("four bytes are a number");
        self.stored_value(place, len)
    }

    /// Reads many values of known lengths, as they lie, past the cache. They share one piece of memory.
    fn stored_values(&self, wanted: &[(Place, u32)]) -> Result<Vec<Value>, StoreError> {
        let mut order: Vec<(Place, u32, usize)> = Vec::with_capacity(wanted.len());
        let mut end = 0;
        for (place, len) in wanted {
            order.push((*place, *len, end));
            end += 4 + (*len as usize).min(keelstone_codec::VALUE_LEN_MAX);
        }
        let starts: Vec<usize> = order.iter().map(|(.., start)| *start).collect();
        order.sort_unstable();
        let mut fields = vec![0; end];
        let mut passing = Passing::default();
        for (place, len, start) in order {
            let (segment, offset) = self.at(place.0)?;
            let field = fields.get_mut(start..).and_then(|field| field.get_mut(..4 + len as usize));
            let Some(field) = field else {
                return Err(StoreError::damaged(segment.name(), u64::from(offset), format!("a value of {len} bytes")));
            };
            segment.read_passing(&mut passing, offset, field)?;
            check_length(&segment, offset, len, field)?;
        }
        let fields = Bytes::from(fields);
        let value = |((_, len), start): (&(Place, u32), usize)| {
            let value = Value::new(fields.slice(start + 4..start + 4 + *len as usize));
            value.map_err(|error| StoreError::damaged("a value", 0, error.to_string()))
        };
        wanted.iter().zip(starts).map(value).collect()
    }

    /// Reads a value of known length; its stored length must be the same.
    pub(crate) fn stored_value(&self, place: Place, len: u32) -> Result<Value, StoreError> {
        let (segment, offset) = self.at(place.0)?;
        if len as usize > keelstone_codec::VALUE_LEN_MAX {
            return Err(StoreError::damaged(segment.name(), u64::from(offset), format!("a value of {len} bytes")));
        }
        let mut field = Vec::with_capacity(4 + len as usize);
        segment.read_cached(&self.cache, offset, 4 + len as usize, &mut field)?;
        check_length(&segment, offset, len, &field)?;
        let mut bytes = Bytes::from(field);
        bytes.advance(4);
        Value::new(bytes).map_err(|error| StoreError::damaged(segment.name(), u64::from(offset), error.to_string()))
    }
}

/// Checks that a value has the length before it that it is expected to have.
fn check_length(segment: &Segment, offset: u32, len: u32, field: &[u8]) -> Result<(), StoreError> {
    if field[..4] == len.to_le_bytes() {
        return Ok(());
    }
    let what = format!("a value of {len} bytes is expected, {:?} is its stored length", &field[..4]);
    Err(StoreError::damaged(segment.name(), u64::from(offset), what))
}

impl Backing for Segments {
    fn page(&self, at: PageAt) -> Result<Bytes, ReadError> {
        match self.patches.load().get(&at) {
            Some(page) => Ok(page.clone()),
            None => Ok(self.read(at.place, at.len as usize)?),
        }
    }

    fn value(&self, at: Place, len: u32) -> Result<Value, ReadError> {
        Ok(self.stored_value(at, len)?)
    }

    fn values(&self, wanted: &[(Place, u32)]) -> Result<Vec<Value>, ReadError> {
        Ok(self.stored_values(wanted)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::MemoryFiles;
    use crate::sector::{PAYLOAD, PAYLOAD_BYTES};

    /// spec: STORE-4. Also if it was the last that was removed.
    #[test]
    fn no_number_is_used_twice() {
        let segments = Segments::new(Arc::new(MemoryFiles::new()), [7; 16], 0);
        for number in 1..5 {
            let id = segments.next(Kind::Values);
            assert_eq!(id, SegmentId { kind: Kind::Values, number });
            segments.create(id, 1, 1 << 20).unwrap();
            segments.remove(id).unwrap();
        }
        assert_eq!(segments.next(Kind::Pages), SegmentId::first(Kind::Pages));
    }

    /// spec: STORE-18
    #[test]
    fn a_segment_that_is_made_fits_the_store() {
        let segments = Segments::new(Arc::new(MemoryFiles::new()), [7; 16], 0);
        let most = 64 << 20;
        assert_eq!((segments.fitting(most), segments.fitting(16 << 10)), (4 << 20, 16 << 10));
        let mut id = SegmentId::first(Kind::Values);
        let mut grow = |megabytes: u64| {
            segments.create(id, 1, megabytes << 20).unwrap();
            id = id.next();
            segments.fitting(most) >> 20
        };
        assert_eq!([511, 1, 511, 1].map(&mut grow), [4, 8, 8, 16]);
        assert_eq!([1024, 2048, 2048].map(&mut grow), [32, 64, 64]);
    }

    /// The scrub opens all segments for each of its slices, and reads few values of each.
    #[test]
    fn a_segment_has_places_for_blocks_once_one_is_asked_for() {
        let files = Arc::new(MemoryFiles::new());
        let id = SegmentId::first(Kind::Values);
        let made = Segments::new(files.clone(), [7; 16], 0).create(id, 1, 1 << 20).unwrap();
        made.write(1, &made.seal(1, 1, true, &[0; PAYLOAD_BYTES])).unwrap();
        let segments = Segments::new(files, [7; 16], 1 << 20);
        segments.open_all(vec![(id, Usage::default())]).unwrap();
        let segment = segments.find(id).unwrap();
        assert!(!segment.has_places(), "opened");
        let (mut value, offset) = (Vec::new(), PAYLOAD);
        segment.read_passing(&mut Passing::default(), offset, &mut [0; 9]).unwrap();
        assert!(!segment.has_places(), "read past the cache");
        segment.read_cached(segments.cache(), offset, 9, &mut value).unwrap();
        assert_eq!((segment.has_places(), value), (true, vec![0; 9]));
    }
}
