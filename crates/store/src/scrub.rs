//! The scrub: all that is stored is looked at again, a slice at a time, while the store is at work.
//!
//! A disk loses bytes that nobody reads, and says so only when they are needed. So whoever runs a store looks at it all,
//! round and round: at every sector that will not change any more, then at every entry of the flushed version by its way
//! from the root. A pass is cut into slices; when there is time for one is the caller's to know, since there is no clock here.
//!
//! Where a pass stands is kept in a file of its own that is never synced: nothing depends on it, and one that is damaged,
//! lost or of another store only means that a pass begins anew. What it also keeps is that damage was found, until a whole
//! pass has found none; so a restart forgets no damage.
//!
//! Layout and rules: `spec/store.md`, STORE-13.

use crate::StoreError;
use crate::files::{File, Files, SECTOR_BYTES, remove_if_there};
use crate::look::{self, Before};
use crate::recover::open_aside;
use crate::sector::{Found, PAYLOAD_BYTES, Seal, Stamp, StoreId};
use crate::segment::{FORMAT, Segment, SegmentId};
use crate::segments::Segments;
use crate::shared::Shared;
use crate::sync::{Mutex, MutexGuard};
use keelstone_codec::{Decode, DecodeError, Encode, Key, Namespace, Reader};
use keelstone_tree::Hasher;
use std::sync::{Arc, PoisonError};

/// The file that says where a pass stands.
pub(crate) const FILE: &str = "scrub";

const MAGIC: [u8; 8] = *b"keelscrb";

/// Problems listed of one slice; beyond, there is no use in more.
const PROBLEMS_MAX: usize = 64;

/// Blocks of values that a slice keeps in memory, in bytes.
const CACHE_BYTES: u64 = 1 << 20;

/// What a slice of a scrub came to.
#[derive(Debug, Clone, Default)]
pub struct Scrubbed {
    /// Bytes looked at, about.
    pub bytes: u64,
    /// What is wrong, at most the first 64 of this slice and of what compactions could not read since the last one.
    pub problems: Vec<StoreError>,
    /// Whether a pass ended with it.
    pub is_pass_done: bool,
}

/// Where the scrub stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubStanding {
    /// Passes over the whole store that came to their end.
    pub passes: u64,
    /// Bytes the present pass has looked at.
    pub done_bytes: u64,
    /// Bytes it will have looked at in the end, as the store is now.
    pub total_bytes: u64,
    /// Problems found by the last whole pass or by this one, or by a compaction since, whichever found more. Zero once a
    /// whole pass found none.
    pub problems: u64,
}

/// The most that is believed of what a cursor counts: half of what it can be counted to.
const COUNT_MAX: u64 = 1 << 63;

/// Where a pass stands, as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    passes: u64,
    /// Problems the last pass found.
    found_before: u64,
    /// Problems this one found so far.
    found: u64,
    done: u64,
    at: At,
}

/// What is looked at next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum At {
    /// The superblock, and then all segments.
    #[default]
    Start,
    /// A segment, from this sector on.
    Sectors(SegmentId, u32, Before),
    /// The flushed version, behind this entry.
    Entries(Option<(Namespace, Key)>),
}

impl Encode for Cursor {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        FORMAT.encode(out);
        (self.passes, self.found_before).encode(out);
        (self.found, self.done).encode(out);
        match &self.at {
            At::Start => out.push(0),
            At::Sectors(segment, sector, before) => {
                out.push(1);
                (segment.code(), *sector).encode(out);
                before.encode(out);
            }
            At::Entries(after) => {
                out.push(2);
                after.encode(out);
            }
        }
    }
}

impl Decode for Cursor {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if input.array::<8>()? != MAGIC || u32::decode(input)? != FORMAT {
            return Err(DecodeError::Invalid { what: "scrub" });
        }
        let ((passes, found_before), (found, done)) = Decode::decode(input)?;
        let at = match input.byte()? {
            0 => At::Start,
            1 => {
                let (code, sector) = Decode::decode(input)?;
                let segment = SegmentId::from_code(code).ok_or(DecodeError::Invalid { what: "segment" })?;
                At::Sectors(segment, sector, Before::decode(input)?)
            }
            2 => At::Entries(Decode::decode(input)?),
            found => return Err(DecodeError::UnknownTag { what: "scrub", found: u64::from(found) }),
        };
        let cursor = Self { passes, found_before, found, done, at };
        match passes.max(found_before).max(found).max(done) <= COUNT_MAX {
            true => Ok(cursor),
            false => Err(DecodeError::Invalid { what: "count" }),
        }
    }
}

/// The seal of the cursor's only sector.
pub(crate) fn seal(store: &StoreId) -> Seal {
    Seal::new(store, u64::MAX - 1)
}

impl Cursor {
    /// The one sector it is kept in.
    pub(crate) fn to_sector(&self, store: &StoreId) -> Vec<u8> {
        let payload = self.to_bytes();
        assert!(payload.len() <= PAYLOAD_BYTES, "a name of 32 bytes and a key of 255 fit in a sector");
        let mut sector = Vec::new();
        seal(store).write(0, 0, false, &payload, &mut sector);
        sector
    }

    /// What a sector says, if it says anything.
    // spec: STORE-13
    pub(crate) fn of_sector(store: &StoreId, sector: &[u8; SECTOR_BYTES]) -> Option<Self> {
        let Found::Valid(Stamp { generation: 0, starts: false }) = seal(store).check(0, sector) else { return None };
        let mut input = Reader::new(&sector[..PAYLOAD_BYTES]);
        let cursor = Self::decode(&mut input).ok()?;
        input.rest().iter().all(|byte| *byte == 0).then_some(cursor)
    }
}

/// The scrub of a store that is open.
#[derive(Debug)]
pub(crate) struct Scrub {
    cursor: Cursor,
    /// None until something is to be kept.
    file: Option<Arc<dyn File>>,
}

impl Scrub {
    /// Takes up the pass that was under way. Damage that is known is looked for from the start, so that it is named again.
    pub(crate) fn resume(files: &dyn Files, store: &StoreId) -> Self {
        let file = files.open(FILE).ok().filter(|file| file.len().is_ok_and(|len| len == SECTOR_BYTES as u64));
        let mut sector = [0; SECTOR_BYTES];
        let read = file.as_ref().filter(|file| file.read_at(0, &mut sector).is_ok());
        let cursor = read.and_then(|_| Cursor::of_sector(store, &sector)).unwrap_or_default();
        let known = cursor.found.max(cursor.found_before);
        let cursor = match known {
            0 => cursor,
            known => Cursor { passes: cursor.passes, found_before: known, ..Cursor::default() },
        };
        Self { cursor, file }
    }

    fn keep(&mut self, files: &dyn Files, store: &StoreId) -> Result<(), StoreError> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => {
                remove_if_there(files, FILE).map_err(StoreError::io("remove", FILE))?;
                files.create(FILE, SECTOR_BYTES as u64).map_err(StoreError::io("create", FILE))?
            }
        };
        file.write_at(0, &self.cursor.to_sector(store)).map_err(StoreError::io("write", FILE))?;
        self.file = Some(file);
        Ok(())
    }
}

/// A slice that is being looked at.
#[derive(Default)]
struct Slice {
    scrubbed: Scrubbed,
    found: u64,
    /// What was lacking to look, if anything was: then the slice says nothing.
    shortage: Option<StoreError>,
}

impl Slice {
    fn problem(&mut self, problem: StoreError) {
        if problem.is_shortage() {
            self.shortage.get_or_insert(problem);
            return;
        }
        self.found += 1;
        if self.scrubbed.problems.len() < PROBLEMS_MAX {
            self.scrubbed.problems.push(problem);
        }
    }
}

impl<H: Hasher> Shared<H> {
    fn scrubbing(&self) -> MutexGuard<'_, Scrub> {
        self.scrub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the next slice of about so many bytes, at least one sector or entry. For want of descriptors or memory a
    /// slice fails and is looked at again by the next call.
    // spec: STORE-13
    pub(crate) fn scrub(&self, bytes: u64) -> Result<Scrubbed, StoreError> {
        let mut scrub = self.scrubbing();
        let mut slice = Slice::default();
        let at = match scrub.cursor.at.clone() {
            At::Start => {
                let checked = self.upkeep().file.check();
                checked.into_iter().for_each(|problem| slice.problem(problem));
                slice.scrubbed.bytes = SECTOR_BYTES as u64;
                self.segment_from(None)
            }
            At::Sectors(segment, sector, before) => self.scrub_sectors((segment, sector, before), bytes, &mut slice),
            At::Entries(after) => self.scrub_entries(after, bytes, &mut slice),
        };
        if let Some(shortage) = slice.shortage {
            return Err(shortage);
        }
        let unreadable = std::mem::take(&mut *self.unreadable());
        unreadable.iter().cloned().for_each(|problem| slice.problem(problem));
        let before = scrub.cursor.clone();
        let cursor = &mut scrub.cursor;
        cursor.found += slice.found;
        cursor.done += slice.scrubbed.bytes;
        cursor.at = at;
        if cursor.at == At::Start {
            let (passes, found_before) = (cursor.passes + 1, cursor.found);
            *cursor = Cursor { passes, found_before, ..Cursor::default() };
            slice.scrubbed.is_pass_done = true;
        }
        if let Err(error) = scrub.keep(self.segments.files(), self.segments.store()) {
            // It is looked at again. What was found is told all the same: if this is for good, there is no later.
            scrub.cursor = Cursor { found: before.found.max(slice.found), ..before };
            let mut since = self.unreadable();
            if since.is_empty() {
                *since = unreadable;
            }
            slice.scrubbed.is_pass_done = false;
            return if slice.found > 0 { Ok(slice.scrubbed) } else { Err(error) };
        }
        Ok(slice.scrubbed)
    }

    /// Begins a pass anew, with nothing known to be damaged: what was, is mended.
    // spec: STORE-16
    pub(crate) fn scrub_anew(&self) -> Result<(), StoreError> {
        let mut scrub = self.scrubbing();
        self.unreadable().clear();
        scrub.cursor = Cursor { passes: scrub.cursor.passes, ..Cursor::default() };
        scrub.keep(self.segments.files(), self.segments.store())
    }

    /// Where the scrub stands.
    pub(crate) fn scrub_standing(&self) -> ScrubStanding {
        let totals = self.current().tree.totals();
        let Cursor { passes, found_before, found, done, .. } = self.scrubbing().cursor;
        let unreadable = self.unreadable().len() as u64;
        // What was written since it was counted, or looked at and removed since, is no reason to be beyond the end.
        let total_bytes = (self.segments.bytes() + totals.bytes + totals.count * look::ENTRY_BYTES).max(done);
        ScrubStanding { passes, done_bytes: done, total_bytes, problems: found.max(found_before).max(unreadable) }
    }

    /// The segment behind one, or the first; behind the last, the entries.
    fn segment_from(&self, last: Option<SegmentId>) -> At {
        let next = self.segments.all().iter().map(|segment| segment.id()).find(|id| last.is_none_or(|last| *id > last));
        next.map_or(At::Entries(None), |id| At::Sectors(id, 0, Before::default()))
    }

    fn scrub_sectors(&self, (id, sector, mut before): (SegmentId, u32, Before), bytes: u64, slice: &mut Slice) -> At {
        // What is gone needs no look, and its number is given to no other.
        let Some(segment) = self.segments.find(id) else { return self.segment_from(Some(id)) };
        // Opened anew: a file that is held can be read long after its name is gone.
        match Segment::open(self.segments.files(), self.segments.store(), id) {
            Err(_) if self.segments.find(id).is_none() => return self.segment_from(Some(id)),
            Err(error) => {
                slice.problem(error);
                return self.segment_from(Some(id));
            }
            Ok(_) => {}
        }
        let end = segment.settled().min(segment.sectors());
        let count = u32::try_from(bytes / SECTOR_BYTES as u64).unwrap_or(u32::MAX).max(1);
        let to = end.min(sector.saturating_add(count));
        let looked =
            look::sectors(&segment, &segment, (sector, to), &mut before, &mut |problem| slice.problem(problem));
        if let Err(error) = looked {
            slice.problem(error);
        }
        slice.scrubbed.bytes += u64::from(to.saturating_sub(sector)) * SECTOR_BYTES as u64;
        if to < end {
            return At::Sectors(id, to, before);
        }
        // What is not written yet counts as looked at, or there would never be an end to the sum.
        slice.scrubbed.bytes += u64::from(segment.sectors() - end) * SECTOR_BYTES as u64;
        self.segment_from(Some(id))
    }

    fn scrub_entries(&self, after: Option<(Namespace, Key)>, bytes: u64, slice: &mut Slice) -> At {
        // Neither flush nor removal meanwhile: what the superblock names stays. A slice is short.
        let upkeep = self.upkeep();
        let fresh = Segments::new(Arc::clone(self.segments.files_shared()), *self.segments.store(), CACHE_BYTES);
        let fresh = Arc::new(fresh);
        let looked = match open_aside::<H>(&fresh, &upkeep.superblock.flushed) {
            Ok(tree) => look::entries(&tree, after.as_ref(), bytes, &mut |problem| slice.problem(problem)),
            Err(error) => {
                slice.problem(error);
                look::Looked::default()
            }
        };
        slice.scrubbed.bytes += looked.bytes;
        looked.last.map_or(At::Start, |last| At::Entries(Some(last)))
    }
}

/// A scrub that nobody has begun.
pub(crate) fn resumed(segments: &Segments) -> Mutex<Scrub> {
    Mutex::new(Scrub::resume(segments.files(), segments.store()))
}

/// Cursors for the golden vectors: in a segment, or among the entries.
#[cfg(test)]
pub(crate) fn golden(segment: Option<SegmentId>) -> Cursor {
    let entry = (Namespace::new("agents").expect("a name"), Key::new(&b"a"[..]).expect("a key"));
    let at = match segment {
        Some(id) => At::Sectors(id, 9, Before::behind_the_end()),
        None => At::Entries(Some(entry)),
    };
    Cursor { passes: 3, found_before: 2, found: 1, done: 4096, at }
}
