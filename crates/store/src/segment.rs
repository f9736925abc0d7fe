//! The segment: a file of fixed size, preallocated, made of sectors. The log, moved values and pages lie in segments.
//!
//! A segment comes into being whole: made under another name, its header written and synced, then renamed. So a file
//! under its real name always has its header and its size, and anything else is damage (spec: STORE-1).
//!
//! Bytes are addressed by payload: the payloads of all sectors put together, the header's among them.

use crate::StoreError;
use crate::cache::{BLOCK_SECTORS, Block, BlockCache};
use crate::files::{self, File, Files, SECTOR_BYTES};
use crate::sector::{Found, PAYLOAD, PAYLOAD_BYTES, Seal, Sector, Stamp, StoreId};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard};
use keelstone_codec::{Bytes, Decode, DecodeError, Encode, Reader};
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock, PoisonError};

/// The format of everything in a store's directory. A store of a newer one is refused (spec: STORE-4).
pub(crate) const FORMAT: u32 = 0;

/// Segments are below 2 GiB of payload, so that a place fits in eight bytes.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 2 << 30;

const MAGIC: [u8; 8] = *b"keelseg\0";

/// The highest number of a segment that is believed where it is read: half of what places have room for, so that whoever goes on from
/// there has room.
const NUMBER_MAX: u32 = 1 << 29;

/// What lies in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Records of the log, and with them the values as they were first written.
    Log,
    /// Values moved by compaction.
    Values,
    /// Pages of the tree.
    Pages,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Log, Self::Values, Self::Pages];

    fn extension(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Values => "values",
            Self::Pages => "pages",
        }
    }
}
impl Encode for Kind {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
}
impl Decode for Kind {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let found = input.byte()?;
        let known = Self::ALL.into_iter().find(|kind| *kind as u8 == found);
        known.ok_or(DecodeError::UnknownTag { what: "kind of segment", found: u64::from(found) })
    }
}

/// Which segment of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentId {
    pub(crate) kind: Kind,
    /// Counted from one, for each kind on its own.
    pub(crate) number: u32,
}

impl SegmentId {
    /// The first segment of a kind.
    pub(crate) const fn first(kind: Kind) -> Self {
        Self { kind, number: 1 }
    }

    /// The segment after this one.
    pub(crate) fn next(self) -> Self {
        let number = self.number.checked_add(1).filter(|number| *number < 1 << 30);
        Self { number: number.expect("a store has fewer than 2^30 segments of a kind"), ..self }
    }

    /// The id as one number: what checksums cover and places carry.
    pub(crate) fn code(self) -> u64 {
        (self.kind as u64) << 30 | u64::from(self.number)
    }

    pub(crate) fn from_code(code: u64) -> Option<Self> {
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u64 == code >> 30)?;
        let number = u32::try_from(code & ((1 << 30) - 1)).ok()?;
        Some(Self { kind, number }).filter(|id| id.is_known())
    }

    /// The name of its file, which begins with the store's id so that files of two stores cannot mix (spec: STORE-10).
    pub(crate) fn file_name(self, store: &StoreId) -> String {
        format!("{}-{:010}.{}", short(store), self.number, self.kind.extension())
    }

    /// The segment a file name of this store stands for.
    pub(crate) fn of_file_name(store: &StoreId, name: &str) -> Option<Self> {
        let (number, extension) = name.strip_prefix(&short(store))?.strip_prefix('-')?.split_once('.')?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.extension() == extension)?;
        let id = Self { kind, number: number.parse().ok()? };
        (id.is_known() && id.file_name(store) == name).then_some(id)
    }

    /// Whether it is one that a store can have got to.
    fn is_known(self) -> bool {
        (1..=NUMBER_MAX).contains(&self.number)
    }
}
impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} segment {}", self.kind.extension(), self.number)
    }
}
impl Encode for SegmentId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.kind.encode(out);
        self.number.encode(out);
    }
}
impl Decode for SegmentId {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = Self { kind: Kind::decode(input)?, number: u32::decode(input)? };
        if id.is_known() { Ok(id) } else { Err(DecodeError::Invalid { what: "number of a segment" }) }
    }
}

/// The beginning of a store's id as it stands in file names.
pub(crate) fn short(store: &StoreId) -> String {
    store[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where bytes lie: a segment and an offset in its payload. As eight bytes it is never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
}

impl Spot {
    pub(crate) fn to_u64(self) -> u64 {
        self.segment.code() << 32 | u64::from(self.offset)
    }

    pub(crate) fn from_u64(place: u64) -> Result<Self, StoreError> {
        let offset = u32::try_from(place & u64::from(u32::MAX)).expect("masked to 32 bits");
        let segment = SegmentId::from_code(place >> 32);
        let segment = segment.ok_or_else(|| StoreError::damaged("a place", 0, format!("{place:#x} is no place")))?;
        Ok(Self { segment, offset })
    }

    /// The sector the bytes begin in.
    pub(crate) fn sector(self) -> u32 {
        self.offset / PAYLOAD
    }

    /// The first byte of a sector.
    pub(crate) fn of_sector(segment: SegmentId, sector: u32) -> Self {
        Self { segment, offset: sector * PAYLOAD }
    }
}

/// Number of sectors that `bytes` of payload take.
pub(crate) fn sectors_of(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PAYLOAD_BYTES)).expect("a segment has fewer than 2^32 sectors")
}

/// Payload of a block.
const BLOCK_PAYLOAD: u32 = BLOCK_SECTORS * PAYLOAD;

/// The block that one who goes by read last, so that what lies in it next to each other is read once.
#[derive(Debug, Default)]
pub(crate) struct Passing {
    block: Option<(SegmentId, u32)>,
    payload: Vec<u8>,
}

/// What is told of each sector: its number, what it is, and its payload.
pub(crate) type Visit<'a> = dyn FnMut(u32, Found, &[u8]) -> Result<(), StoreError> + 'a;

/// What a header says that is not believed yet: of which store and which segment it is.
pub(crate) fn header_says(payload: &[u8]) -> Option<(StoreId, SegmentId)> {
    let mut header = Reader::new(payload);
    if header.array::<8>().ok()? != MAGIC || u32::decode(&mut header).ok()? > FORMAT {
        return None;
    }
    <(StoreId, SegmentId)>::decode(&mut header).ok()
}

/// The first sector of a segment.
// spec: STORE-1
fn header(seal: Seal, store: &StoreId, id: SegmentId, generation: u32, bytes: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend_from_slice(&MAGIC);
    FORMAT.encode(&mut header);
    store.encode(&mut header);
    id.encode(&mut header);
    bytes.encode(&mut header);
    let mut sector = Vec::new();
    seal.write(0, generation, false, &header, &mut sector);
    sector
}

/// An open segment.
pub(crate) struct Segment {
    id: SegmentId,
    name: String,
    file: Arc<dyn File>,
    seal: Seal,
    sectors: u32,
    /// Sectors before this one are final: only their blocks may be cached.
    settled: AtomicU32,
    /// Held while something is written, for whoever has to tell that from damage.
    writing: Mutex<()>,
    /// Places for its blocks in the cache, made when the first is asked for: a slice of the scrub opens all segments and reads a
    /// few values of each, and took twenty times as long when it made all places and dropped them again.
    blocks: OnceLock<Arc<[Block]>>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} sectors", self.id, self.sectors)
    }
}

impl Segment {
    /// Makes a segment of at least `bytes`, durably.
    // spec: STORE-1
    pub(crate) fn create(
        files: &dyn Files,
        store: &StoreId,
        id: SegmentId,
        generation: u32,
        bytes: u64,
    ) -> Result<Self, StoreError> {
        assert!(bytes <= SEGMENT_BYTES_MAX, "callers keep segments below the limit");
        let bytes = bytes.next_multiple_of(SECTOR_BYTES as u64);
        let name = id.file_name(store);
        let building = format!("{name}.new");
        let seal = Seal::new(store, id.code());
        let sector = header(seal, store, id, generation, bytes);
        let file = files::make(files, &building, &name, bytes, &sector).map_err(StoreError::io("create", &name))?;
        files.sync_directory().map_err(StoreError::io("sync", "the directory"))?;
        Ok(Self::with(id, name, file, seal, bytes, 1))
    }

    /// Opens a segment whose size and header must be what they were made as.
    pub(crate) fn open(files: &dyn Files, store: &StoreId, id: SegmentId) -> Result<Self, StoreError> {
        let name = id.file_name(store);
        let file = files.open(&name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Lost { file: name.clone(), what: format!("the store has a {id}") },
            _ => StoreError::io("open", &name)(error),
        })?;
        let len = file.len().map_err(StoreError::io("open", &name))?;
        if len < SECTOR_BYTES as u64 || len > SEGMENT_BYTES_MAX || !len.is_multiple_of(SECTOR_BYTES as u64) {
            return Err(StoreError::damaged(name, len, format!("{len} bytes are no segment")));
        }
        // Whether a segment of the log will be written to again is known once the log's end is found.
        let settled = if id.kind == Kind::Log { 1 } else { u32::MAX };
        let segment = Self::with(id, name, file, Seal::new(store, id.code()), len, settled);
        let mut sector = vec![0; SECTOR_BYTES];
        segment.read_raw(0, &mut sector)?;
        let Found::Valid(_) = segment.seal.check(0, &sector) else {
            return Err(StoreError::damaged(&segment.name, 0, "the header's checksum does not match"));
        };
        let wrong = |what: String| StoreError::damaged(&segment.name, 0, what);
        let mut header = Reader::new(&sector[..PAYLOAD_BYTES]);
        let decode = |error: DecodeError| wrong(error.to_string());
        if header.array::<8>().map_err(decode)? != MAGIC {
            return Err(wrong("this is no segment".into()));
        }
        let format = u32::decode(&mut header).map_err(decode)?;
        if format > FORMAT {
            return Err(StoreError::Unsupported { found: format, known: FORMAT });
        }
        let found = <(StoreId, SegmentId, u64)>::decode(&mut header).map_err(decode)?;
        if found != (*store, id, len) {
            return Err(wrong(format!("the header says {} of {} bytes, the file is {id} of {len}", found.1, found.2)));
        }
        Ok(segment)
    }

    fn with(id: SegmentId, name: String, file: Arc<dyn File>, seal: Seal, bytes: u64, settled: u32) -> Self {
        let sectors = u32::try_from(bytes / SECTOR_BYTES as u64).expect("segments are below 2^32 sectors");
        let (settled, writing, blocks) = (AtomicU32::new(settled), Mutex::default(), OnceLock::new());
        Self { id, name, file, seal, sectors, settled, writing, blocks }
    }

    /// Blocks that may be in the cache: none of a segment of pages.
    fn blocks(&self) -> u32 {
        if self.id.kind == Kind::Pages { 0 } else { self.sectors.div_ceil(BLOCK_SECTORS) }
    }

    #[cfg(test)]
    pub(crate) fn has_places(&self) -> bool {
        self.blocks.get().is_some()
    }

    pub(crate) fn id(&self) -> SegmentId {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Number of sectors, the header's included.
    pub(crate) fn sectors(&self) -> u32 {
        self.sectors
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.sectors) * SECTOR_BYTES as u64
    }

    /// Says that sectors before `sector` will not change any more.
    pub(crate) fn settle(&self, sector: u32) {
        self.settled.store(sector, Ordering::Release);
    }

    /// The sector before which nothing will change any more.
    pub(crate) fn settled(&self) -> u32 {
        self.settled.load(Ordering::Acquire)
    }

    /// The sectors of a payload, as they are to be written from `first` on.
    pub(crate) fn seal(&self, first: u32, generation: u32, starts: bool, payload: &[u8]) -> Vec<u8> {
        let mut raw = Vec::new();
        self.seal.write(first, generation, starts, payload, &mut raw);
        raw
    }

    /// Writes whole sectors. They are durable after [`Self::sync`].
    pub(crate) fn write(&self, first: u32, raw: &[u8]) -> Result<(), StoreError> {
        let end = u64::from(first) + (raw.len() / SECTOR_BYTES) as u64;
        assert!(
            first > 0 && raw.len().is_multiple_of(SECTOR_BYTES) && end <= u64::from(self.sectors),
            "whole sectors, inside"
        );
        let offset = u64::from(first) * SECTOR_BYTES as u64;
        let _writing = self.writing();
        self.file.write_at(offset, raw).map_err(StoreError::io("write", &self.name))
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the sectors from `first` to before `end` as they are, every one checked.
    pub(crate) fn rewrite(&self, first: u32, end: u32) -> Result<(), StoreError> {
        const STEP: u32 = 2048;
        for from in (first..end).step_by(STEP as usize) {
            let to = end.min(from + STEP);
            let mut raw = vec![0; (to - from) as usize * SECTOR_BYTES];
            self.read_raw(from, &mut raw)?;
            for (number, sector) in (from..).zip(raw.chunks_exact(SECTOR_BYTES)) {
                match self.seal.check(number, sector) {
                    Found::Valid(_) => {}
                    found => return Err(self.bad_sector(number, found)),
                }
            }
            self.write(from, &raw)?;
        }
        Ok(())
    }

    /// Its first sector, as it has to be.
    pub(crate) fn header(&self, store: &StoreId, generation: u32) -> Vec<u8> {
        header(self.seal, store, self.id, generation, self.bytes())
    }

    /// Writes one sector over a damaged one, durably. A sector is written whole or not at all, so a crash leaves the damage
    /// or what is right.
    pub(crate) fn put_right(&self, number: u32, sector: &[u8]) -> Result<(), StoreError> {
        assert!(number < self.sectors && sector.len() == SECTOR_BYTES, "one sector, inside");
        let offset = u64::from(number) * SECTOR_BYTES as u64;
        let _writing = self.writing();
        self.file.write_at(offset, sector).map_err(StoreError::io("write", &self.name))?;
        self.sync()
    }

    /// What a damaged sector may have been before one byte of it changed; see [`Seal::one_byte_off`].
    pub(crate) fn one_byte_off(&self, number: u32) -> Result<Vec<Sector>, StoreError> {
        let mut raw = [0; SECTOR_BYTES];
        self.read_raw(number, &mut raw)?;
        Ok(self.seal.one_byte_off(number, &raw))
    }

    /// As [`Self::read`], with another sector in the place of one.
    pub(crate) fn read_with(&self, offset: u32, len: usize, other: (u32, &Sector)) -> Result<Bytes, StoreError> {
        let (first, skip) = (offset / PAYLOAD, (offset % PAYLOAD) as usize);
        let end = first + sectors_of(skip + len);
        let mut payload = Vec::with_capacity((end - first) as usize * PAYLOAD_BYTES);
        let (number, sector) = other;
        self.read_sectors(first, number.min(end), &mut payload)?;
        if (first..end).contains(&number) {
            payload.extend_from_slice(&sector[..PAYLOAD_BYTES]);
            self.read_sectors(number + 1, end, &mut payload)?;
        }
        Ok(Bytes::from(payload).slice(skip..skip + len))
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync().map_err(StoreError::io("sync", &self.name))
    }

    /// Lets the system forget what is settled, as far as it is synced.
    pub(crate) fn evict(&self) {
        self.file.evict(u64::from(self.settled()) * SECTOR_BYTES as u64);
    }

    /// Reads raw sectors from `first` on.
    fn read_raw(&self, first: u32, out: &mut [u8]) -> Result<(), StoreError> {
        let offset = u64::from(first) * SECTOR_BYTES as u64;
        // One more try: a single failed read says little about the disk; a second one is final (HOSTILE: W-06).
        let read = self.file.read_at(offset, out).or_else(|_| self.file.read_at(offset, out));
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => StoreError::damaged(&self.name, offset, "the file ends early"),
            _ => StoreError::io("read", &self.name)(error),
        })
    }

    /// Calls `visit` with what each sector from `first` to before `end` is, and its payload.
    pub(crate) fn scan(&self, first: u32, end: u32, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        const STEP: u32 = 256;
        let mut raw = vec![0; STEP.min(end.saturating_sub(first)) as usize * SECTOR_BYTES];
        for from in (first..end).step_by(STEP as usize) {
            let count = STEP.min(end - from);
            let raw = &mut raw[..count as usize * SECTOR_BYTES];
            self.read_raw(from, raw)?;
            for (number, sector) in (from..).zip(raw.chunks_exact(SECTOR_BYTES)) {
                visit(number, self.seal.check(number, sector), &sector[..PAYLOAD_BYTES])?;
            }
        }
        Ok(())
    }

    /// What one sector is, with its payload.
    pub(crate) fn sector(&self, number: u32) -> Result<(Found, [u8; PAYLOAD_BYTES]), StoreError> {
        let mut raw = [0; SECTOR_BYTES];
        self.read_raw(number, &mut raw)?;
        let payload = *raw.first_chunk().expect("a sector is longer than its payload");
        Ok((self.seal.check(number, &raw), payload))
    }

    /// As [`Self::sector`], while nobody writes to the segment through this: a sector that is being written can be read as half
    /// of it.
    pub(crate) fn sector_at_rest(&self, number: u32) -> Result<(Found, [u8; PAYLOAD_BYTES]), StoreError> {
        let _writing = self.writing();
        self.sector(number)
    }

    /// What a sector would be with these bytes, with its payload.
    pub(crate) fn read_as(&self, number: u32, raw: &Sector) -> (Found, [u8; PAYLOAD_BYTES]) {
        let payload = *raw.first_chunk().expect("a sector is longer than its payload");
        (self.seal.check(number, raw), payload)
    }

    /// An error for a sector that must be valid and is not.
    pub(crate) fn bad_sector(&self, number: u32, found: Found) -> StoreError {
        let what = match found {
            Found::Zero => "the sector is empty, but something was written there".to_owned(),
            Found::Damaged => "the sector's checksum does not match".to_owned(),
            Found::Valid(Stamp { generation, .. }) => format!("the sector is of session {generation}"),
        };
        StoreError::damaged(&self.name, u64::from(number) * SECTOR_BYTES as u64, what)
    }

    /// Appends the payload of sectors `first` to before `end` to `out`, every one checked.
    fn read_sectors(&self, first: u32, end: u32, out: &mut Vec<u8>) -> Result<(), StoreError> {
        if end > self.sectors {
            let what = format!("sectors {first} to {end} of {} were asked for", self.sectors);
            return Err(StoreError::damaged(&self.name, self.bytes(), what));
        }
        out.reserve((end - first) as usize * PAYLOAD_BYTES);
        self.scan(first, end, &mut |number, found, payload| match found {
            Found::Valid(_) => {
                out.extend_from_slice(payload);
                Ok(())
            }
            found => Err(self.bad_sector(number, found)),
        })
    }

    /// Reads `len` bytes of payload from `offset`, past the cache.
    pub(crate) fn read(&self, offset: u32, len: usize) -> Result<Bytes, StoreError> {
        let first = offset / PAYLOAD;
        let skip = (offset % PAYLOAD) as usize;
        let end = u64::from(first) + (skip + len).div_ceil(PAYLOAD_BYTES) as u64;
        let end = u32::try_from(end).unwrap_or(u32::MAX);
        let mut payload = Vec::new();
        self.read_sectors(first, end, &mut payload)?;
        Ok(Bytes::from(payload).slice(skip..skip + len))
    }

    /// Reads `len` bytes of payload from `offset` into `out`, through the cache of blocks.
    pub(crate) fn read_cached(
        &self,
        cache: &BlockCache,
        offset: u32,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let mut offset = offset;
        let mut left = len;
        while left > 0 {
            let number = offset / BLOCK_PAYLOAD;
            let skip = (offset % BLOCK_PAYLOAD) as usize;
            let take = left.min(BLOCK_PAYLOAD as usize - skip);
            let (first, end) = self.block(number);
            let settled = end <= self.settled.load(Ordering::Acquire);
            let mut done = false;
            if settled && number < self.blocks() {
                let load = || {
                    let mut payload = Vec::new();
                    self.read_settled(first, end, &mut payload).map(|()| payload)
                };
                let blocks = self.blocks.get_or_init(|| (0..self.blocks()).map(|_| Block::default()).collect());
                let cached = cache.read(blocks, number, load, |payload| match payload.get(skip..skip + take) {
                    Some(bytes) => {
                        out.extend_from_slice(bytes);
                        Ok(())
                    }
                    None => Err(StoreError::damaged(&self.name, self.bytes(), "a value ends behind the file")),
                });
                match cached {
                    Ok(Some(found)) => {
                        found?;
                        done = true;
                    }
                    Ok(None) => {}
                    // What is damaged in a block costs only what lies there.
                    Err(error) if error.is_damage() => {}
                    Err(error) => return Err(error),
                }
            }
            if !done {
                out.extend_from_slice(&self.read(offset, take)?);
            }
            offset += u32::try_from(take).expect("less than a block");
            left -= take;
        }
        Ok(())
    }

    /// Fills `out` with payload from `offset`, from blocks in the cache or past it.
    pub(crate) fn read_passing(&self, passing: &mut Passing, offset: u32, out: &mut [u8]) -> Result<(), StoreError> {
        let mut offset = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let number = offset / BLOCK_PAYLOAD;
            let skip = (offset % BLOCK_PAYLOAD) as usize;
            let (part, after) = rest.split_at_mut(rest.len().min(BLOCK_PAYLOAD as usize - skip));
            rest = after;
            self.read_block_part(passing, number, skip, part)?;
            offset += u32::try_from(part.len()).expect("less than a block");
        }
        Ok(())
    }

    fn read_block_part(
        &self,
        passing: &mut Passing,
        number: u32,
        skip: usize,
        out: &mut [u8],
    ) -> Result<(), StoreError> {
        let copy = |payload: &[u8], out: &mut [u8]| match payload.get(skip..skip + out.len()) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(StoreError::damaged(&self.name, self.bytes(), "a value ends behind the file")),
        };
        let (first, end) = self.block(number);
        if passing.block != Some((self.id, number)) {
            if let Some(blocks) = self.blocks.get()
                && number < self.blocks()
                && let Some(found) = BlockCache::peek(blocks, number, |payload| copy(payload, out))
            {
                return found;
            }
            // The block at the end of what was written may be added to: it is read, but not as a block.
            if end > self.settled.load(Ordering::Acquire) {
                let offset = number * BLOCK_PAYLOAD + u32::try_from(skip).expect("less than a block");
                out.copy_from_slice(&self.read(offset, out.len())?);
                return Ok(());
            }
            passing.block = None;
            passing.payload.clear();
            match self.read_settled(first, end, &mut passing.payload) {
                Ok(()) => passing.block = Some((self.id, number)),
                // What is damaged in a block costs only what lies there.
                Err(error) if error.is_damage() => {
                    let offset = number * BLOCK_PAYLOAD + u32::try_from(skip).expect("less than a block");
                    out.copy_from_slice(&self.read(offset, out.len())?);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        copy(&passing.payload, out)
    }

    /// The sectors of a block: the first, and the one behind the last.
    fn block(&self, number: u32) -> (u32, u32) {
        let first = number * BLOCK_SECTORS;
        (first, (first + BLOCK_SECTORS).min(self.sectors))
    }

    /// As [`Self::read_sectors`], but sectors never written read as zeros: a block may reach over the end of what was
    /// written in the segment.
    fn read_settled(&self, first: u32, end: u32, out: &mut Vec<u8>) -> Result<(), StoreError> {
        self.scan(first, end, &mut |number, found, payload| match found {
            Found::Valid(_) | Found::Zero => {
                out.extend_from_slice(payload);
                Ok(())
            }
            found => Err(self.bad_sector(number, found)),
        })
    }
}
