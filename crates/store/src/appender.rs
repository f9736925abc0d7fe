//! Appending pages and moved values to segments: buffered, in large slices, synced at the end.

use crate::StoreError;
use crate::files::SECTOR_BYTES;
use crate::sector::PAYLOAD_BYTES;
use crate::segment::{Kind, Segment, Spot, sectors_of};
use crate::segments::Segments;
use crate::sync::mpsc;
use crate::sync::thread::{self, JoinHandle};
use std::sync::Arc;

/// Payload gathered before it is written. A slice is synced by itself, so that no sync has much to do and commits do
/// not wait long behind one.
const SLICE_BYTES: usize = PAYLOAD_BYTES * 4096;

/// Slices on their way to be synced while more is written: what is written ahead of the syncs is bounded by this.
const SLICES_AHEAD: usize = 4;

/// Appends things of one kind, each in one piece, in one segment.
#[derive(Debug)]
pub(crate) struct Appender {
    segments: Arc<Segments>,
    kind: Kind,
    /// Of a segment, at most, but for one thing that is larger.
    segment_bytes: u64,
    /// The size of the next segment, where each is twice the one before; else one that fits the store.
    doubling: Option<u64>,
    generation: u32,
    segment: Option<Arc<Segment>>,
    /// The sector the buffer begins in.
    next: u32,
    buffer: Vec<u8>,
    /// Bytes at the beginning of the buffer that are counted already.
    counted: usize,
    /// What is appended counts as living. Otherwise it does when something points at it, and whoever lets it counts it.
    lives: bool,
    /// Where slices are synced; none: at once.
    ahead: Option<mpsc::SyncSender<Arc<Segment>>>,
}

impl Appender {
    /// Appends from `start`, or in a new segment.
    pub(crate) fn new(
        segments: Arc<Segments>,
        kind: Kind,
        start: Option<Spot>,
        generation: u32,
        segment_bytes: u64,
    ) -> Result<Self, StoreError> {
        let segment = start.map(|spot| segments.open(spot.segment)).transpose()?;
        let next = start.map_or(0, Spot::sector);
        if let Some(segment) = &segment {
            segment.settle(next);
        }
        Ok(Self {
            segments,
            kind,
            segment_bytes,
            doubling: None,
            generation,
            segment,
            next,
            buffer: Vec::new(),
            counted: 0,
            lives: true,
            ahead: None,
        })
    }

    /// For copies, which nobody needs before something points at them.
    pub(crate) fn of_copies(self) -> Self {
        Self { lives: false, ..self }
    }

    /// Lets slices be synced by another thread, or by nobody else. Whoever started it waits for it in the end.
    pub(crate) fn syncing_with(self, syncs: Option<&SyncAhead>) -> Self {
        Self { ahead: syncs.and_then(|syncs| syncs.jobs.clone()), ..self }
    }

    /// Where the next thing will lie if it still fits in the segment.
    pub(crate) fn end(&self) -> Option<Spot> {
        assert!(self.buffer.is_empty(), "asked between flushes only");
        self.segment.as_ref().map(|segment| Spot::of_sector(segment.id(), self.next))
    }

    /// Appends a thing and says where it will lie once [`Self::sync`] is done.
    pub(crate) fn append(&mut self, thing: &[&[u8]]) -> Result<Spot, StoreError> {
        let len = thing.iter().map(|part| part.len()).sum::<usize>();
        let segment = match &self.segment {
            Some(segment) if self.next + sectors_of(self.buffer.len() + len) <= segment.sectors() => {
                Arc::clone(segment)
            }
            _ => self.open_next(len)?,
        };
        let start = Spot::of_sector(segment.id(), self.next);
        let buffered = u32::try_from(self.buffer.len()).expect("the buffer is smaller than a segment");
        let spot = Spot { offset: start.offset + buffered, ..start };
        thing.iter().for_each(|part| self.buffer.extend_from_slice(part));
        if self.buffer.len() >= SLICE_BYTES {
            self.write(self.buffer.len() / PAYLOAD_BYTES * PAYLOAD_BYTES)?;
            self.sync_slice(segment)?;
        }
        Ok(spot)
    }

    /// Counts everything appended so far as written, and as living: most is counted only when it is on its way to the disk.
    pub(crate) fn count(&mut self) {
        if let Some(segment) = &self.segment {
            self.segments.count_appended(segment.id(), self.buffer.len() - self.counted, self.lives);
        }
        self.counted = self.buffer.len();
    }

    /// Writes what is left and makes everything appended durable. The next thing begins a new sector.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        self.write(self.buffer.len())?;
        match &self.segment {
            Some(segment) => segment.sync(),
            None => Ok(()),
        }
    }

    fn sync_slice(&self, segment: Arc<Segment>) -> Result<(), StoreError> {
        match &self.ahead {
            // Whoever waits for the thread in the end hears why it stopped.
            Some(jobs) => jobs.send(segment).map_err(|_| stopped()),
            None => segment.sync(),
        }
    }

    /// For a store that is being built, which has little at first and soon much: from a small segment on, each has twice the size of
    /// the one before.
    pub(crate) fn doubling(mut self) -> Self {
        self.doubling = Some(self.segments.fitting(self.segment_bytes));
        self
    }

    /// For a store that was built: from here on segments fit it.
    pub(crate) fn built(self) -> Self {
        Self { doubling: None, ..self }
    }

    /// How large the next segment should be that is to have room for so many bytes.
    fn segment_bytes(&mut self, needed: u64) -> u64 {
        let size = match &mut self.doubling {
            Some(next) => std::mem::replace(next, (*next * 2).min(self.segment_bytes)),
            None => self.segments.fitting(self.segment_bytes),
        };
        size.max(needed)
    }

    fn open_next(&mut self, len: usize) -> Result<Arc<Segment>, StoreError> {
        self.write(self.buffer.len())?;
        if let Some(segment) = self.segment.take() {
            self.sync_slice(segment)?;
        }
        let id = self.segments.next(self.kind);
        let needed = (u64::from(sectors_of(len)) + 1) * SECTOR_BYTES as u64;
        let size = self.segment_bytes(needed);
        let segment = self.segments.create(id, self.generation, size)?;
        self.segment = Some(Arc::clone(&segment));
        self.next = 1;
        Ok(segment)
    }

    fn write(&mut self, len: usize) -> Result<(), StoreError> {
        let Some(segment) = self.segment.as_ref().filter(|_| len > 0) else { return Ok(()) };
        let raw = segment.seal(self.next, self.generation, false, &self.buffer[..len]);
        segment.write(self.next, &raw)?;
        self.segments.count_written(raw.len());
        self.next += sectors_of(len);
        segment.settle(self.next);
        self.segments.count_appended(segment.id(), len.saturating_sub(self.counted), self.lives);
        self.counted = self.counted.saturating_sub(len);
        self.buffer.drain(..len);
        Ok(())
    }
}

/// A thread that syncs slices while more is written. No sync then has much to do, and nobody waits for one.
///
/// Values that are synced are evicted from the system's memory: it would fill with what nobody reads before all is written, and
/// each slice would take more of it, which can cost more than all else that is done for the slice (`docs/performance-steps.md`). Pages
/// stay: whoever opens the store reads those first.
#[derive(Debug)]
pub(crate) struct SyncAhead {
    jobs: Option<mpsc::SyncSender<Arc<Segment>>>,
    thread: Option<JoinHandle<Result<(), StoreError>>>,
}

impl SyncAhead {
    pub(crate) fn start() -> Self {
        let (jobs, inbox) = mpsc::sync_channel::<Arc<Segment>>(SLICES_AHEAD);
        let thread = thread::spawn(move || {
            inbox.into_iter().try_for_each(|segment| {
                segment.sync()?;
                if segment.id().kind == Kind::Values {
                    segment.evict();
                }
                Ok(())
            })
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Waits until everything is synced. Appenders must have let go of it.
    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
        self.jobs = None;
        let thread = self.thread.take().expect("it is taken once");
        thread.join().unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> StoreError {
    StoreError::io("sync", "a slice")(std::io::Error::other("the syncing thread stopped"))
}
