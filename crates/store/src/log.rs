//! The log: the end of it, where records are appended, and reading it back after a crash.
//!
//! One record is in flight at a time, and it is synced before the next is written. So at most the last record can be
//! torn, and a record that begins behind a torn one is damage. A torn record is cut by writing over it; the sectors it
//! may have left behind are known by their older session (spec: STORE-2).

use crate::StoreError;
use crate::files::SECTOR_BYTES;
use crate::record::{self, Head, Record, SMALL_BYTES, Step};
use crate::sector::{Found, PAYLOAD_BYTES, Sector, Stamp};
use crate::segment::{Kind, SEGMENT_BYTES_MAX, Segment, SegmentId, Spot, sectors_of};
use crate::segments::Segments;
use keelstone_codec::{Decode, Hash, Height, Reader, Root};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The end of the log.
#[derive(Debug)]
pub(crate) struct Log {
    segments: Arc<Segments>,
    segment: Arc<Segment>,
    /// The sector the next record begins in.
    next: u32,
    /// The hash of the last record.
    hash: Hash,
    generation: u32,
    /// Bytes of the last record.
    last_bytes: u64,
    /// Of a segment, at most, but for a record that is larger.
    segment_bytes: u64,
}

/// Records like the last one that a segment has room for, if so many are not too much for one.
const RECORDS_EACH: u64 = 8;

/// A record on its way to the disk.
#[derive(Debug)]
pub(crate) struct Append {
    segments: Arc<Segments>,
    segment: Arc<Segment>,
    first: u32,
    generation: u32,
    record: Vec<u8>,
}

/// A record that is durable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appended {
    pub(crate) start: Spot,
    pub(crate) hash: Hash,
    pub(crate) bytes: u64,
    end: u32,
}

impl Append {
    /// Writes and syncs the record.
    // spec: STORE-3
    pub(crate) fn run(mut self) -> Result<Appended, StoreError> {
        let hash = record::finish(self.segments.store(), &mut self.record);
        let raw = self.segment.seal(self.first, self.generation, true, &self.record);
        self.segment.write(self.first, &raw)?;
        self.segment.sync()?;
        self.segments.count_written(raw.len());
        let end = self.first + sectors_of(self.record.len());
        Ok(Appended { start: Spot::of_sector(self.segment.id(), self.first), hash, bytes: raw.len() as u64, end })
    }
}

impl Log {
    /// The log of a new store.
    pub(crate) fn create(segments: Arc<Segments>, segment_bytes: u64) -> Result<Self, StoreError> {
        let generation = 1;
        let size = segments.fitting(segment_bytes);
        let segment = segments.create(SegmentId::first(Kind::Log), generation, size)?;
        Ok(Self { segments, segment, next: 1, hash: Hash::ZERO, generation, last_bytes: 0, segment_bytes })
    }

    /// The log as it was found.
    pub(crate) fn resume(segments: Arc<Segments>, tail: Tail, generation: u32, segment_bytes: u64) -> Self {
        let Tail { segment, next, hash, .. } = tail;
        segments.settle_log(segment.id());
        segment.settle(next);
        Self { segments, segment, next, hash, generation, last_bytes: 0, segment_bytes }
    }

    /// Where the next record begins if the segment does not change.
    pub(crate) fn end(&self) -> Spot {
        Spot::of_sector(self.segment.id(), self.next)
    }

    /// The hash of the last record.
    pub(crate) fn hash(&self) -> Hash {
        self.hash
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether a record of `len` bytes fits here with one sector to spare, in which the log can be continued elsewhere.
    fn fits(&self, len: u64) -> bool {
        u64::from(self.next) + len.div_ceil(PAYLOAD_BYTES as u64) < u64::from(self.segment.sectors())
    }

    /// Makes room for a record of `len` bytes, in a new segment if need be. A segment too small for the record is
    /// followed by one that is large enough.
    ///
    /// That the log goes on is durable before the next segment is used, so the end of the log is never in doubt.
    pub(crate) fn make_room(&mut self, len: u64, epoch: u64, height: Height, root: Root) -> Result<(), StoreError> {
        if self.fits(len) {
            return Ok(());
        }
        let needed = (len.div_ceil(PAYLOAD_BYTES as u64) + 2) * SECTOR_BYTES as u64;
        assert!(needed <= SEGMENT_BYTES_MAX, "records are below the size of the largest segment");
        let id = self.segment.id().next();
        let next = self.segments.obtain(id, self.generation, self.segment_bytes(needed))?;
        next.settle(1);
        let step = Step::Continue;
        let head = Head { len: 0, step, epoch, height, root_before: root, previous: self.hash, parent: None };
        let appended = self.append(record::encode_small(head, root)).run()?;
        self.advance(&appended);
        self.segment.settle(u32::MAX);
        if let Some(usage) = self.segments.usage().get_mut(&self.segment.id()) {
            usage.last_height = Some(height);
        }
        (self.segment, self.next) = (next, 1);
        Ok(())
    }

    /// The segment that will be needed next and how large it should be, if it is time to make it: half of this one is used up.
    pub(crate) fn foresee(&self) -> Option<(SegmentId, u64)> {
        let id = self.segment.id().next();
        let is_time = self.next > self.segment.sectors() / 2 && self.segments.find(id).is_none();
        is_time.then(|| (id, self.segment_bytes(self.last_bytes)))
    }

    /// How large a segment should be that is to have room for so many bytes: what does not fit at its end is lost, so it is to
    /// have room for some records like that.
    fn segment_bytes(&self, needed: u64) -> u64 {
        let several = needed.saturating_mul(RECORDS_EACH).min(self.segment_bytes);
        self.segments.fitting(self.segment_bytes).max(several).max(needed)
    }

    /// Hands out the append of a record, its hash still missing. [`Self::make_room`] comes first, [`Self::advance`] after.
    pub(crate) fn append(&self, record: Vec<u8>) -> Append {
        let (segments, segment) = (Arc::clone(&self.segments), Arc::clone(&self.segment));
        Append { segments, segment, first: self.next, generation: self.generation, record }
    }

    /// Notes behind the last record that it is durable and which root it led to, and does not sync: an acknowledged
    /// record that later reads as never written is then found out, unless the disk has lost the note with it.
    // spec: STORE-2
    pub(crate) fn mark(&self, epoch: u64, height: Height, root: Root) -> Result<(), StoreError> {
        let step = Step::Mark;
        let head = Head { len: 0, step, epoch, height, root_before: root, previous: self.hash, parent: None };
        let mut record = record::encode_small(head, root);
        record::finish(self.segments.store(), &mut record);
        let raw = self.segment.seal(self.next, self.generation, true, &record);
        self.segments.count_written(raw.len());
        self.segment.write(self.next, &raw)
    }

    /// Writes over the head of a record that was cut, durably: the mark of the record before it, or nothing where there is none. Behind
    /// that head, what of the next record reaches the disk before its first sector would not be what a torn record can have left.
    // spec: STORE-2
    pub(crate) fn cut(&self, last: Option<(u64, Height, Root)>) -> Result<(), StoreError> {
        match last {
            Some((epoch, height, root)) => self.mark(epoch, height, root)?,
            None => self.segment.write(self.next, &[0; SECTOR_BYTES])?,
        }
        self.segment.sync()
    }

    /// Moves the end behind a record that is durable.
    pub(crate) fn advance(&mut self, appended: &Appended) {
        assert_eq!(appended.start, self.end(), "records are appended one after the other");
        (self.hash, self.next, self.last_bytes) = (appended.hash, appended.end, appended.bytes);
        self.segment.settle(self.next);
    }
}

/// The end of the log as reading it found it.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) segment: Arc<Segment>,
    pub(crate) next: u32,
    pub(crate) hash: Hash,
    /// The highest session that wrote to the part that was read.
    pub(crate) generation: u32,
    /// Whether a record was cut that was never acknowledged.
    pub(crate) torn: bool,
    /// The root that the last record led to, if its mark is there.
    pub(crate) marked: Option<Root>,
    /// The last whole record: its segment, its first sector, and the one after its last.
    last: Option<(Arc<Segment>, u32, u32)>,
    /// What it is a record of.
    step: Option<Step>,
}

impl Tail {
    /// Whether the last record is of a commit that nothing says was acknowledged: a mark, or a record begun behind it.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.step == Some(Step::Commit) && self.marked.is_none() && !self.torn
    }

    /// Writes the last record anew, as it is. If its sync failed, it can be read and may yet be nowhere on the disk, and no
    /// later sync would bring it there. All before it were synced, or nothing would have been written behind them.
    // spec: STORE-8
    pub(crate) fn make_durable(&self) -> Result<(), StoreError> {
        let Some((segment, first, end)) = &self.last else { return Ok(()) };
        segment.rewrite(*first, *end)?;
        segment.sync()
    }
}

/// Reads the log from `start`, which follows the record with hash `previous`, and calls `visit` with each record.
///
/// # Errors
/// Damage, wherever it is: nothing but a torn tail is cut.
pub(crate) fn replay(
    segments: &Segments,
    start: Spot,
    previous: Hash,
    visit: &mut dyn FnMut(Spot, Record) -> Result<(), StoreError>,
) -> Result<Tail, StoreError> {
    let segment = segments.open(start.segment)?;
    let before = start.sector().saturating_sub(1);
    let (found, _) = segment.sector(before)?;
    let Found::Valid(Stamp { generation, .. }) = found else {
        return Err(segment.bad_sector(before, found));
    };
    let mut tail = Tail {
        segment,
        next: start.sector(),
        hash: previous,
        generation,
        torn: false,
        marked: None,
        last: None,
        step: None,
    };
    // The session of the last whole record: what is older behind it was left over and never counted. A header is no record, and one
    // that a later session has written anew (STORE-16) is of that; behind it lies nothing that could have been left over.
    let mut floor = if before == 0 { 0 } else { generation };
    loop {
        let at = Spot::of_sector(tail.segment.id(), tail.next);
        let whole = match read_record(segments, &tail.segment, tail.next, floor)? {
            Next::Record(record, stamp) => (record, stamp),
            Next::End { torn } => {
                tail.torn = torn.is_some();
                check_end(segments, &tail.segment, tail.next, floor, torn.as_ref())?;
                return Ok(tail);
            }
        };
        let (record, stamp) = whole;
        if record.head.step == Step::Mark && record.head.previous == tail.hash {
            tail.marked = record.root;
            check_end(segments, &tail.segment, tail.next, floor, None)?;
            return Ok(tail);
        }
        if record.head.previous != tail.hash {
            let what = format!("the record follows {}, not {}", record.head.previous, tail.hash);
            return Err(StoreError::damaged(tail.segment.name(), offset(tail.next), what));
        }
        floor = stamp.generation;
        tail.generation = tail.generation.max(floor);
        tail.hash = record.hash;
        let first = tail.next;
        tail.next += sectors_of(usize::try_from(record.head.len).expect("it is in memory"));
        tail.last = Some((Arc::clone(&tail.segment), first, tail.next));
        tail.step = Some(record.head.step);
        if record.head.step == Step::Continue {
            if let Some(usage) = segments.usage().get_mut(&tail.segment.id()) {
                usage.last_height = Some(record.head.height);
            }
            tail.segment = segments.open(tail.segment.id().next())?;
            tail.next = 1;
        } else {
            visit(at, record)?;
        }
    }
}

/// What stands at a sector where a record may begin.
enum Next {
    Record(Record, Stamp),
    /// The end, and what was not written whole of a record that began here.
    End {
        torn: Option<Torn>,
    },
}

/// A record that was not written whole.
struct Torn {
    /// Sectors it claims.
    count: u32,
    /// The session that began it, which found the end of the log here.
    generation: u32,
}

fn offset(sector: u32) -> u64 {
    u64::from(sector) * SECTOR_BYTES as u64
}

/// Reads the record that begins in a sector, or finds that none does.
// spec: STORE-2
fn read_record(segments: &Segments, segment: &Segment, at: u32, floor: u32) -> Result<Next, StoreError> {
    if at >= segment.sectors() {
        return Ok(Next::End { torn: None });
    }
    let damaged = |what: &str| Err(StoreError::damaged(segment.name(), offset(at), what));
    let (found, first) = segment.sector(at)?;
    let stamp = match found {
        Found::Zero => return Ok(Next::End { torn: None }),
        Found::Valid(stamp) if stamp.generation < floor => return Ok(Next::End { torn: None }),
        Found::Valid(stamp) if stamp.starts => stamp,
        Found::Valid(_) => return damaged("the middle of a record stands where one must begin"),
        Found::Damaged => return Err(segment.bad_sector(at, found)),
    };
    let head = match Head::decode(&mut Reader::new(&first)) {
        Ok(head) if head.len >= SMALL_BYTES as u64 - 32 => head,
        _ => return damaged("a record's head makes no sense"),
    };
    let count = sectors_of(usize::try_from(head.len).unwrap_or(usize::MAX));
    if count > segment.sectors() - at {
        return damaged("a record is longer than its segment");
    }
    let mut payload = Vec::with_capacity(count as usize * PAYLOAD_BYTES);
    let mut torn = false;
    segment.scan(at, at + count, &mut |number, found, bytes| {
        match found {
            Found::Valid(part) if part.generation == stamp.generation && part.starts == (number == at) => {
                payload.extend_from_slice(bytes);
            }
            Found::Zero => torn = true,
            Found::Valid(part) if part.generation < stamp.generation => torn = true,
            found => return Err(segment.bad_sector(number, found)),
        }
        Ok(())
    })?;
    if torn {
        return Ok(Next::End { torn: Some(Torn { count, generation: stamp.generation }) });
    }
    payload.truncate(usize::try_from(head.len).expect("it is in memory"));
    let start = Spot::of_sector(segment.id(), at);
    match Record::decode(segments.store(), start, &payload.into()) {
        Ok(record) => Ok(Next::Record(record, stamp)),
        Err(error) => damaged(&error.to_string()),
    }
}

/// The whole record that begins in a sector, a mark included, and its session; none if there is none, or a torn one.
pub(crate) fn whole_record(
    segments: &Segments,
    segment: &Segment,
    at: u32,
    floor: u32,
) -> Result<Option<(Record, u32)>, StoreError> {
    match read_record(segments, segment, at, floor)? {
        Next::Record(record, stamp) => Ok(Some((record, stamp.generation))),
        Next::End { .. } => Ok(None),
    }
}

/// The first sector from `from` on in which a record begins that is of no older session; none if that cannot be read.
pub(crate) fn next_start(segment: &Segment, from: u32, floor: u32) -> Option<u32> {
    (from..segment.sectors()).find(|number| match segment.sector(*number) {
        Ok((Found::Valid(stamp), _)) => stamp.starts && stamp.generation >= floor,
        _ => false,
    })
}

/// Reads one whole record that must be there.
pub(crate) fn record_at(segments: &Segments, at: Spot) -> Result<Record, StoreError> {
    let segment = segments.open(at.segment)?;
    match read_record(segments, &segment, at.sector(), 0)? {
        Next::Record(record, _) if record.head.step != Step::Mark => Ok(record),
        Next::Record(..) | Next::End { .. } => {
            Err(StoreError::damaged(segment.name(), offset(at.sector()), "a record of the history is not there"))
        }
    }
}

/// What a sector is, with its payload.
type Read<'a> = &'a dyn Fn(u32) -> Result<(Found, [u8; PAYLOAD_BYTES]), StoreError>;

/// The last record that begins in a sector before `number`, or in it, and the sectors it takes: of what it says, nothing is
/// proven. None if a damaged sector stands between.
fn begins_before(number: u32, read: Read<'_>) -> Option<(u32, Stamp, Head, u32)> {
    for at in (1..=number).rev() {
        let (found, payload) = read(at).ok()?;
        match found {
            Found::Valid(stamp) if stamp.starts => {
                let head = Head::decode(&mut Reader::new(&payload)).ok()?;
                let count = sectors_of(usize::try_from(head.len).ok()?);
                return Some((at, stamp, head, count));
            }
            Found::Damaged if at != number => return None,
            _ => {}
        }
    }
    None
}

/// Whether a damaged sector lies where nothing counts: behind the record that says that the log goes on elsewhere.
pub(crate) fn is_left_over(segments: &Segments, segment: &Segment, number: u32) -> bool {
    let Some((at, _, head, count)) = begins_before(number, &|at| segment.sector(at)) else { return false };
    let whole = || matches!(whole_record(segments, segment, at, 0), Ok(Some(_)));
    head.step == Step::Continue && number >= at + count && whole()
}

/// Whether a record of the log is whole with `candidate` in the place of a damaged sector of it, and with each other that is
/// damaged as `told` has it: its hash says so.
// spec: STORE-16
pub(crate) fn proves(
    segments: &Segments,
    segment: &Segment,
    (number, candidate): (u32, &Sector),
    told: &BTreeMap<u32, Sector>,
) -> bool {
    let read = |at: u32| match told.get(&at) {
        _ if at == number => Ok(segment.read_as(number, candidate)),
        Some(other) => Ok(segment.read_as(at, other)),
        None => segment.sector(at),
    };
    let Some((at, stamp, head, count)) = begins_before(number, &read) else { return false };
    if !(at..at.saturating_add(count)).contains(&number) || count > segment.sectors() - at {
        return false;
    }
    let mut payload = Vec::with_capacity(count as usize * PAYLOAD_BYTES);
    for sector in at..at + count {
        match read(sector) {
            Ok((Found::Valid(part), bytes)) if part == (Stamp { starts: sector == at, ..stamp }) => {
                payload.extend_from_slice(&bytes);
            }
            _ => return false,
        }
    }
    payload.truncate(usize::try_from(head.len).expect("it is in memory"));
    Record::decode(segments.store(), Spot::of_sector(segment.id(), at), &payload.into()).is_ok()
}

/// Where the record after `record` begins, and whether the record follows the one with hash `previous`.
pub(crate) fn follow(at: Spot, record: &Record, previous: Hash) -> (Spot, bool) {
    let count = sectors_of(usize::try_from(record.head.len).expect("it was in memory"));
    let next = match record.head.step {
        Step::Continue => Spot::of_sector(at.segment.next(), 1),
        _ => Spot::of_sector(at.segment, at.sector() + count),
    };
    (next, record.head.previous == previous)
}

/// Reads the head of a record that must be there, without its body.
pub(crate) fn head_at(segments: &Segments, at: Spot) -> Result<Head, StoreError> {
    let segment = segments.open(at.segment)?;
    let (found, first) = segment.sector(at.sector())?;
    match found {
        Found::Valid(Stamp { starts: true, .. }) => Head::decode(&mut Reader::new(&first))
            .map_err(|error| StoreError::damaged(segment.name(), offset(at.sector()), error.to_string())),
        found => Err(segment.bad_sector(at.sector(), found)),
    }
}

/// Sectors never written after which nothing is looked for behind the end of the log: 4 MiB. So opening takes time for
/// what the log holds, not for what its last segment has room for.
const LOOK_AHEAD_SECTORS: u32 = 8192;

/// Checks that behind the end there is nothing but what a torn record can have left (spec: STORE-2).
fn check_end(
    segments: &Segments,
    segment: &Segment,
    end: u32,
    floor: u32,
    torn: Option<&Torn>,
) -> Result<(), StoreError> {
    let torn_end = torn.map(|torn| end + torn.count);
    // The session of a torn record found the end of the log here. What is older than it behind there is what another session, whose
    // record was longer and torn as well, has left.
    let floor = torn.map_or(floor, |torn| torn.generation);
    let (mut from, mut written) = (end, torn_end.unwrap_or(end));
    // A step at a time, until so much was never written that nothing can be expected any more.
    while from < segment.sectors() && from.saturating_sub(written) < LOOK_AHEAD_SECTORS {
        let to = segment.sectors().min(from.saturating_add(LOOK_AHEAD_SECTORS / 8));
        segment.scan(from, to, &mut |number, found, _| match found {
            Found::Damaged => Err(segment.bad_sector(number, found)),
            Found::Valid(stamp) if stamp.generation >= floor && number > end => {
                written = number;
                let stray = stamp.starts || torn_end.is_some_and(|torn_end| number >= torn_end);
                if stray {
                    let what = "a record stands behind the end of the log, so something before it was lost";
                    return Err(StoreError::damaged(segment.name(), offset(number), what));
                }
                Ok(())
            }
            _ => Ok(()),
        })?;
        from = to;
    }
    // The next segment may have been made, but nothing can have been written to it.
    let next = segment.id().next();
    match segments.open(next) {
        Err(StoreError::Lost { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(unused) => unused.scan(1, unused.sectors().min(LOOK_AHEAD_SECTORS), &mut |number, found, _| match found {
            Found::Zero => Ok(()),
            found => Err(unused.bad_sector(number, found)),
        }),
    }
}
