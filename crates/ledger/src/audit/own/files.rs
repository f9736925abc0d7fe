//! Where a node's own log lies: segments of fixed size in a directory of its own, and beside them how long the log is.
//!
//! ```text
//! LOCK                        held while something is appended
//! HEAD                        where the log stands, signed: what was acknowledged
//! <number>.audit              records from this one on, behind where the log stood then, signed
//! *.new                       being written; removed by the next append
//! ```
//!
//! An append is acknowledged once the record and then `HEAD` are durable. So a record that `HEAD` counts and that is not
//! there is damage; and what lies behind those it counts is one whole record, which is kept, or what a crash left of one,
//! which is cut, and the log says so. Nothing in the middle is ever passed over.
//!
//! Layout and rules: `spec/audit.md`, AUDIT-12 and AUDIT-13.

use super::{NodeCheckpoint, NodeEvent, NodeLogState, NodeRecord, NodeStep, NodeWalk, SignedNodeRecord, cut};
use crate::keys::SecretKey;
use keelstone_codec::{Decode, Encode};
use keelstone_execution::PublicKey;
use keelstone_store::files::{self, File, Files, Guard, LockError};
use std::io;
use std::sync::Arc;

const HEAD: &str = "HEAD";
const HEAD_NEW: &str = "HEAD.new";
const SEGMENT: &str = ".audit";
const SEGMENT_NEW: &str = "next.new";

/// Most bytes of a record or a checkpoint in a file. The longest of either has fewer.
const FRAME_BYTES_MAX: usize = 8 << 10;
/// Most bytes of a segment that is read: what a disk says of a file is not believed.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// How much of the log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLogLimits {
    /// Bytes of a segment, at least 32 KiB and at most 16 MiB.
    pub segment_bytes: u32,
    /// Most segments: when another begins, the oldest goes.
    pub segments_max: u32,
}

impl Default for NodeLogLimits {
    /// 16 MiB in all, some 60,000 records.
    fn default() -> Self {
        Self { segment_bytes: 256 << 10, segments_max: 64 }
    }
}

/// Why the log was not appended to, or not read. Each variant says who has to act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeLogError {
    /// Another process appends at this moment. Try again.
    #[error("the node's audit log is in use{}", .pid.map_or_else(String::new, |pid| format!(" by pid {pid}")))]
    InUse {
        /// The holder, if it left its number.
        pid: Option<u32>,
    },
    /// The log is not what was written. Verify it, and move it out of the way to begin another.
    #[error("record {index} of the node's audit log is damaged: {what}")]
    Damaged {
        /// The first record that is not right.
        index: u64,
        /// What is wrong.
        what: String,
    },
    /// The log was signed with another key. Bring the key back, or move the log out of the way to begin another.
    #[error("the node's audit log is signed by {found}, the key at hand is {expected}")]
    OtherKey {
        /// The key at hand.
        expected: PublicKey,
        /// The log's.
        found: PublicKey,
    },
    /// The machine failed.
    #[error("could not {doing} {file}: {source}")]
    Io {
        /// The action.
        doing: &'static str,
        /// The file.
        file: String,
        /// What the machine said.
        source: io::Error,
    },
}

/// What reading the whole log found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeVerdict {
    /// Who signed it; none if there is no log.
    pub key: Option<PublicKey>,
    /// The first record that is kept.
    pub first: u64,
    /// How many records there are, by what was acknowledged or is there, whichever is more.
    pub count: u64,
    /// How many were found to be right.
    pub verified: u64,
    /// The first that is not, and what is wrong with it.
    pub fault: Option<(u64, String)>,
    /// Bytes behind the last record that a crash left of one that was never acknowledged.
    pub torn: u64,
}

/// A node's own log in a directory.
#[derive(Clone, Debug)]
pub struct NodeLog {
    files: Arc<dyn Files>,
    limits: NodeLogLimits,
}

fn failed(doing: &'static str, file: &str) -> impl Fn(io::Error) -> NodeLogError {
    let file = file.to_owned();
    move |source| NodeLogError::Io { doing, file: file.clone(), source }
}

fn damaged(index: u64, what: impl Into<String>) -> NodeLogError {
    NodeLogError::Damaged { index, what: what.into() }
}

fn segment_name(first: u64) -> String {
    format!("{first:020}{SEGMENT}")
}

/// What stands in a file for a value: its length and its encoding.
fn frame(value: &impl Encode) -> Vec<u8> {
    let bytes = value.to_bytes();
    let len = u32::try_from(bytes.len()).expect("a record is short");
    [&len.to_le_bytes()[..], &bytes].concat()
}

/// What a frame holds: nothing, a value with the bytes it takes, or neither.
enum Framed<T> {
    None,
    Some(T, usize),
    Bad(String),
}

fn framed<T: Decode>(bytes: &[u8]) -> Framed<T> {
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return Framed::None };
    let len = u32::from_le_bytes(*len) as usize;
    if len == 0 {
        return Framed::None;
    }
    if len > FRAME_BYTES_MAX {
        return Framed::Bad(format!("it would have {len} bytes, the limit is {FRAME_BYTES_MAX}"));
    }
    match rest.get(..len).map(T::from_bytes) {
        Some(Ok(value)) => Framed::Some(value, 4 + len),
        Some(Err(error)) => Framed::Bad(format!("it does not decode: {error}")),
        None => Framed::Bad("its segment ends within it".to_owned()),
    }
}

/// Where the log stood before a segment, and where the segment's records begin. `index` is what is damaged if it does not
/// say.
fn beginning(index: u64, bytes: &[u8]) -> Result<(NodeCheckpoint, usize), NodeLogError> {
    match framed(bytes) {
        Framed::Some(start, len) => Ok((start, len)),
        Framed::None => Err(damaged(index, "its segment has no beginning")),
        Framed::Bad(what) => Err(damaged(index, format!("the beginning of its segment: {what}"))),
    }
}

/// As [`beginning`], with the signature verified.
fn begun(index: u64, bytes: &[u8]) -> Result<(NodeWalk, usize), NodeLogError> {
    let (start, len) = beginning(index, bytes)?;
    let walk = NodeWalk::begin(&start);
    let walk = walk.map_err(|error| damaged(index, format!("what its segment begins with: {error}")))?;
    Ok((walk, len))
}

/// How many bytes there are up to the last that is not zero.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

/// A segment that was read.
struct Segment {
    file: Arc<dyn File>,
    bytes: Vec<u8>,
}

/// Where something is appended.
struct Open {
    file: Arc<dyn File>,
    bytes: u64,
    offset: u64,
    state: NodeLogState,
}

impl NodeLog {
    /// The log in a directory. Nothing is read yet.
    ///
    /// # Panics
    /// If the limits are none: a segment holds two of the longest records, and there are two segments at least.
    #[must_use]
    pub fn new(files: Arc<dyn Files>, limits: NodeLogLimits) -> Self {
        let bytes = u64::from(limits.segment_bytes);
        assert!((32 << 10..=SEGMENT_BYTES_MAX).contains(&bytes) && limits.segments_max >= 2, "{limits:?}");
        Self { files, limits }
    }

    // ---- appending

    /// Appends a record. It is durable when this returns, and so is all before it. Gives its place.
    ///
    /// Costs two files' syncs and one of the directory, and reading the last segment.
    ///
    /// # Errors
    /// [`NodeLogError`]. A log that is damaged is not appended to.
    // spec: AUDIT-12
    pub fn append(&self, key: &SecretKey, record: &NodeRecord) -> Result<u64, NodeLogError> {
        let _guard = self.lock()?;
        let mut open = self.open(key, record)?;
        self.put(&mut open, key, record)?;
        Ok(open.state.log.count() - 1)
    }

    /// Keeps others from appending for as long as it lives.
    ///
    /// # Errors
    /// [`NodeLogError::InUse`], or what the disk says.
    pub fn lock(&self) -> Result<Box<dyn Guard>, NodeLogError> {
        self.files.lock().map_err(|error| match error {
            LockError::InUse { pid } => NodeLogError::InUse { pid },
            LockError::Io(source) => NodeLogError::Io { doing: "lock", file: "the directory".to_owned(), source },
        })
    }

    /// Finds the end, and mends what a crash left there. `next` is what will be appended: whose time and name the log's own
    /// records take.
    fn open(&self, key: &SecretKey, next: &NodeRecord) -> Result<Open, NodeLogError> {
        for name in [HEAD_NEW, SEGMENT_NEW] {
            match self.files.remove(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", name)(error)),
                _ => {}
            }
        }
        let head = self.head()?;
        let acknowledged = head.as_ref().map_or(0, |head| head.state.log.count());
        let Some(first) = self.segments()?.pop() else {
            if acknowledged > 0 {
                return Err(damaged(0, "there is no segment"));
            }
            return self.begin(key, NodeLogState::default());
        };
        let Segment { file, bytes } = self.read(first)?;
        let (mut walk, mut offset) = begun(first, &bytes)?;
        if walk.key() != key.public() {
            return Err(NodeLogError::OtherKey { expected: key.public(), found: walk.key() });
        }
        if walk.count() != first {
            return Err(damaged(first, format!("its segment begins with record {}", walk.count())));
        }
        let mut last = offset;
        let torn = loop {
            match framed::<SignedNodeRecord>(&bytes[offset..]) {
                Framed::None => break None,
                Framed::Bad(what) => break Some(what),
                // Up to what was acknowledged one signature covers all.
                Framed::Some(next, len) if walk.count() < acknowledged => {
                    walk.follow(&next);
                    (last, offset) = (offset, offset + len);
                    if walk.count() == acknowledged && head.as_ref().is_none_or(|head| head.state != *walk.state()) {
                        return Err(self.first_fault(acknowledged - 1));
                    }
                }
                Framed::Some(next, len) => match walk.take(&next) {
                    Err(error) => break Some(format!("it is not the next one: {error}")),
                    Ok(()) => (last, offset) = (offset, offset + len),
                },
            }
        };
        let count = walk.count();
        if count < acknowledged {
            return Err(damaged(count, torn.unwrap_or_else(|| "it is absent".to_owned())));
        }
        let name = segment_name(first);
        let mut open = Open { file, bytes: bytes.len() as u64, offset: offset as u64, state: walk.state().clone() };
        if count > acknowledged {
            // It can be read, which does not say that it is on the disk.
            let write = |at: usize, end: usize| open.file.write_at(at as u64, &bytes[at..end]);
            write(last, offset).and_then(|()| open.file.sync()).map_err(failed("write", &name))?;
            self.acknowledge(&open.state, key)?;
        }
        let rest = used(&bytes[offset..]);
        if rest > 0 {
            let zeros = vec![0; rest];
            open.file.write_at(open.offset, &zeros).and_then(|()| open.file.sync()).map_err(failed("write", &name))?;
            let event = NodeEvent::CutTail { bytes: rest as u64 };
            self.put(&mut open, key, &own(next, event))?;
        }
        Ok(open)
    }

    /// Which record keeps the log from being what was acknowledged, which it is not up to `last`.
    fn first_fault(&self, last: u64) -> NodeLogError {
        let (index, what) = match self.verify(None, &mut |_, _| {}) {
            Ok(NodeVerdict { fault: Some(fault), .. }) => fault,
            Ok(_) => (last, "it is not the one that was acknowledged".to_owned()),
            Err(error) => return error,
        };
        damaged(index, what)
    }

    /// Makes a file that is whole and durable once it has its name.
    fn make(&self, building: &str, name: &str, len: u64, bytes: &[u8]) -> io::Result<Arc<dyn File>> {
        let file = files::make(&*self.files, building, name, len, bytes)?;
        self.files.sync_directory()?;
        Ok(file)
    }

    /// Begins a segment where the log stands.
    fn begin(&self, key: &SecretKey, state: NodeLogState) -> Result<Open, NodeLogError> {
        let (name, start) = (segment_name(state.log.count()), frame(&state.clone().signed(key)));
        let bytes = u64::from(self.limits.segment_bytes);
        let file = self.make(SEGMENT_NEW, &name, bytes, &start).map_err(failed("create", &name))?;
        Ok(Open { file, bytes, offset: start.len() as u64, state })
    }

    /// Writes a record at the end, in a new segment if it does not fit, and acknowledges it.
    fn put(&self, open: &mut Open, key: &SecretKey, record: &NodeRecord) -> Result<(), NodeLogError> {
        let signed = |before: &NodeLogState| {
            let state = before.after(record);
            let bytes = frame(&SignedNodeRecord { record: record.clone(), signature: state.sign(key) });
            (state, bytes)
        };
        let (mut state, mut bytes) = signed(&open.state);
        if open.offset + bytes.len() as u64 > open.bytes {
            *open = self.begin(key, open.state.clone())?;
            self.forget(open, key, record)?;
            (state, bytes) = signed(&open.state);
        }
        let written = open.file.write_at(open.offset, &bytes).and_then(|()| open.file.sync());
        written.map_err(failed("append to", "the node's audit log"))?;
        self.acknowledge(&state, key)?;
        (open.offset, open.state) = (open.offset + bytes.len() as u64, state);
        Ok(())
    }

    /// Lets the oldest segments go if there are too many: the log says so first.
    fn forget(&self, open: &mut Open, key: &SecretKey, next: &NodeRecord) -> Result<(), NodeLogError> {
        let segments = self.segments()?;
        let gone = segments.len().saturating_sub(self.limits.segments_max as usize);
        let (gone, kept) = segments.split_at(gone);
        let (Some(first), false) = (kept.first(), gone.is_empty()) else { return Ok(()) };
        self.put(open, key, &own(next, NodeEvent::Forgot { first: *first }))?;
        for first in gone {
            let name = segment_name(*first);
            self.files.remove(&name).map_err(failed("remove", &name))?;
        }
        self.files.sync_directory().map_err(failed("remove", "old segments"))
    }

    /// Says durably where the log stands.
    fn acknowledge(&self, state: &NodeLogState, key: &SecretKey) -> Result<(), NodeLogError> {
        let bytes = frame(&state.clone().signed(key));
        self.make(HEAD_NEW, HEAD, bytes.len() as u64, &bytes).map(drop).map_err(failed("write", HEAD))
    }

    // ---- reading

    /// The first record of each segment, in order.
    fn segments(&self) -> Result<Vec<u64>, NodeLogError> {
        let names = self.files.list().map_err(failed("list", "the directory"))?;
        // Twenty digits, so that names are in the order of numbers.
        let number = |name: &String| name.strip_suffix(SEGMENT).filter(|digits| digits.len() == 20)?.parse().ok();
        Ok(names.iter().filter_map(number).collect())
    }

    fn read(&self, first: u64) -> Result<Segment, NodeLogError> {
        let name = segment_name(first);
        let file = self.files.open(&name).map_err(failed("open", &name))?;
        let len = file.len().map_err(failed("read", &name))?;
        if len > SEGMENT_BYTES_MAX {
            return Err(damaged(first, format!("its segment has {len} bytes, the limit is {SEGMENT_BYTES_MAX}")));
        }
        let mut bytes = vec![0; usize::try_from(len).expect("bounded")];
        file.read_at(0, &mut bytes).map_err(failed("read", &name))?;
        Ok(Segment { file, bytes })
    }

    /// What was acknowledged; none before the first record.
    fn head(&self) -> Result<Option<NodeCheckpoint>, NodeLogError> {
        let file = match self.files.open(HEAD) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", HEAD)(error)),
        };
        let damaged = |what: String| damaged(0, format!("{HEAD}: {what}"));
        let len = file.len().map_err(failed("read", HEAD))?;
        if len > FRAME_BYTES_MAX as u64 + 4 {
            return Err(damaged(format!("it has {len} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(len).expect("bounded")];
        file.read_at(0, &mut bytes).map_err(failed("read", HEAD))?;
        match framed::<NodeCheckpoint>(&bytes) {
            Framed::Some(head, len) if len == bytes.len() => {
                head.verify().map_err(|error| damaged(error.to_string()))?;
                Ok(Some(head))
            }
            Framed::Bad(what) => Err(damaged(what)),
            _ => Err(damaged("it is no checkpoint".to_owned())),
        }
    }

    /// Whether there is anything of a log: its head, or records.
    ///
    /// # Errors
    /// [`NodeLogError::Io`].
    pub fn is_begun(&self) -> Result<bool, NodeLogError> {
        let names = self.files.list().map_err(failed("list", "the directory"))?;
        Ok(names.iter().any(|name| name == HEAD || name.ends_with(SEGMENT)))
    }

    /// Where the log stands, signed by the node: for somebody else to keep. None if there is no log.
    ///
    /// # Errors
    /// [`NodeLogError`].
    pub fn checkpoint(&self) -> Result<Option<NodeCheckpoint>, NodeLogError> {
        self.head()
    }

    /// Where the first record that is kept stands; none if there is no log.
    ///
    /// # Errors
    /// [`NodeLogError`].
    pub fn start(&self) -> Result<Option<NodeCheckpoint>, NodeLogError> {
        let Some(first) = self.segments()?.first().copied() else { return Ok(None) };
        let (start, _) = beginning(first, &self.read(first)?.bytes)?;
        Ok(Some(start))
    }

    /// The last record of the wanted kind that is kept. Nothing of it is verified: for whoever only wants to know whether
    /// there is something to say.
    ///
    /// # Errors
    /// [`NodeLogError::Io`].
    pub fn last(&self, wanted: &dyn Fn(&NodeEvent) -> bool) -> Result<Option<NodeRecord>, NodeLogError> {
        for first in self.segments()?.into_iter().rev() {
            let bytes = self.read(first)?.bytes;
            let Framed::Some(NodeCheckpoint { .. }, mut offset) = framed(&bytes) else { continue };
            let mut found = None;
            while let Framed::Some(SignedNodeRecord { record, .. }, len) = framed(&bytes[offset..]) {
                offset += len;
                if wanted(&record.event) {
                    found = Some(record);
                }
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The last records that are wanted, at most `count`, the oldest first. Reads back through the log until there are so many.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn last_of(&self, count: usize, wanted: &dyn Fn(&NodeRecord) -> bool) -> Result<Vec<NodeRecord>, NodeLogError> {
        let mut found: Vec<NodeRecord> = Vec::new();
        for first in self.segments()?.into_iter().rev() {
            let bytes = self.read(first)?.bytes;
            let Framed::Some(NodeCheckpoint { .. }, mut offset) = framed(&bytes) else { continue };
            let mut here = Vec::new();
            while let Framed::Some(SignedNodeRecord { record, .. }, len) = framed(&bytes[offset..]) {
                offset += len;
                here.extend(Some(record).filter(wanted));
            }
            here.append(&mut found);
            here.drain(..here.len().saturating_sub(count));
            found = here;
            if found.len() >= count {
                break;
            }
        }
        Ok(found)
    }

    /// Verifies the whole log, and shows `each` record that is right. `key` is who must have signed it, if that is known.
    /// Changes nothing, and needs no lock: what is appended meanwhile may or may not be seen.
    ///
    /// # Errors
    /// What keeps it from being known. What is wrong with the log is in the verdict.
    // spec: AUDIT-13
    pub fn verify(
        &self,
        key: Option<PublicKey>,
        each: &mut dyn FnMut(u64, &SignedNodeRecord),
    ) -> Result<NodeVerdict, NodeLogError> {
        let mut verdict = NodeVerdict { key: None, first: 0, count: 0, verified: 0, fault: None, torn: 0 };
        match self.walk(key, &mut verdict, each) {
            Ok(()) => {}
            Err(NodeLogError::Damaged { index, what }) => verdict.fault = Some((index, what)),
            Err(error) => return Err(error),
        }
        Ok(verdict)
    }

    fn walk(
        &self,
        key: Option<PublicKey>,
        verdict: &mut NodeVerdict,
        each: &mut dyn FnMut(u64, &SignedNodeRecord),
    ) -> Result<(), NodeLogError> {
        let head = self.head()?;
        let acknowledged = head.as_ref().map_or(0, |head| head.state.log.count());
        verdict.count = acknowledged;
        let segments = self.segments()?;
        let (mut walk, mut forgotten): (Option<NodeWalk>, u64) = (None, 0);
        for (place, first) in segments.iter().copied().enumerate() {
            let bytes = self.read(first)?.bytes;
            let at = walk.as_ref().map_or(first, NodeWalk::count);
            let (next, mut offset) = begun(at, &bytes)?;
            match &walk {
                Some(walk) if (walk.key(), walk.state()) == (next.key(), next.state()) => {}
                Some(_) => return Err(damaged(at, format!("the next segment does not go on from here: {first}"))),
                None if next.count() != first => {
                    return Err(damaged(first, format!("its segment begins with record {}", next.count())));
                }
                None => {
                    verdict.first = first;
                    if let Some(key) = key.filter(|key| *key != next.key()) {
                        return Err(damaged(first, format!("the log is signed by {}, not by {key}", next.key())));
                    }
                    if let Some(head) = head.as_ref().filter(|head| head.key != next.key()) {
                        return Err(damaged(
                            first,
                            format!("the log is signed by {}, {HEAD} by {}", next.key(), head.key),
                        ));
                    }
                    verdict.key = Some(next.key());
                }
            }
            let walk = walk.insert(next);
            loop {
                let index = walk.count();
                let bad = match framed::<SignedNodeRecord>(&bytes[offset..]) {
                    Framed::None => break,
                    Framed::Bad(what) => what,
                    Framed::Some(next, len) => match walk.take(&next) {
                        Err(error) => format!("it is not the next one: {error}"),
                        Ok(()) => {
                            if let NodeEvent::Forgot { first } = next.record.event {
                                forgotten = forgotten.max(first);
                            }
                            each(index, &next);
                            offset += len;
                            verdict.verified += 1;
                            verdict.count = verdict.count.max(index + 1);
                            if let Some(head) = head.as_ref().filter(|head| head.state.log.count() == index + 1)
                                && head.state != *walk.state()
                            {
                                return Err(damaged(index, "it is not the one that was acknowledged"));
                            }
                            continue;
                        }
                    },
                };
                if index < acknowledged || place + 1 < segments.len() {
                    return Err(damaged(index, bad));
                }
                break;
            }
            if place + 1 == segments.len() {
                verdict.torn = used(&bytes[offset..]) as u64;
            }
        }
        let count = walk.as_ref().map_or(0, NodeWalk::count);
        if count < acknowledged {
            return Err(damaged(count, format!("it is absent, and {acknowledged} were acknowledged")));
        }
        // One record may be there that was not acknowledged: the last.
        if count > acknowledged + 1 {
            return Err(damaged(acknowledged, format!("{count} records are there, {acknowledged} were acknowledged")));
        }
        if verdict.first > forgotten {
            return Err(damaged(forgotten, format!("it is absent: the log begins with {}", verdict.first)));
        }
        Ok(())
    }
}

/// A record that the log makes of itself, when something is appended.
fn own(next: &NodeRecord, event: NodeEvent) -> NodeRecord {
    NodeRecord {
        time: next.time,
        who: cut("the log".to_owned()),
        event,
        step: NodeStep::Done,
        before: None,
        after: None,
    }
}
