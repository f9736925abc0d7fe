//! The record: what one step of the history is in the log.
//!
//! A record says what it follows twice: by the hash of the record before it in the log, so that nothing can be taken out
//! or put in between; and by the place of the record before it in the history, which differs after a rollback. It
//! carries the root before it: its own root is confirmed by the next record, so the log can be synced while the new root
//! is still being hashed.
//!
//! Where a key's old value lies is written beside its new one, so history can be undone without storing a value twice.
//!
//! Layout and rules: `spec/store.md`, STORE-3 and STORE-5.

use crate::StoreError;
use crate::sector::StoreId;
use crate::segment::Spot;
use keelstone_codec::{
    Bytes, Decode, DecodeError, Encode, Hash, Height, Key, Namespace, Reader, Root, Tag, TaggedHasher, VALUE_LEN_MAX,
    Value, put_length,
};
use keelstone_tree::{Diff, Place};

const RECORD: Tag = Tag::new("store-record");

/// Bytes of a record before its body.
const HEAD_BYTES: usize = 8 + 1 + 8 + 8 + 32 + 32 + 8;
const HASH_BYTES: usize = 32;

/// The longest record: a diff at the limit of STORE-7, and what is written around each of its writes.
pub(crate) const RECORD_BYTES_MAX: u64 = 1 << 30;

/// Bytes of the longest record without a diff. It always fits in one sector.
pub(crate) const SMALL_BYTES: usize = HEAD_BYTES + 32 + HASH_BYTES;

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Commits the diff in its body.
    Commit,
    /// Makes an earlier height the last one again.
    Rollback,
    /// The log goes on in the next segment.
    Continue,
    /// The history begins here with a state that was built as a whole.
    Base,
    /// The record before it was acknowledged. It is no record of the history: the next one is written over it.
    Mark,
}

/// The part of a record that stands before its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes of the whole record, hash included.
    pub(crate) len: u64,
    pub(crate) step: Step,
    pub(crate) epoch: u64,
    /// The height this record leads to.
    pub(crate) height: Height,
    /// The root before it.
    pub(crate) root_before: Root,
    /// The hash of the record before it in the log.
    pub(crate) previous: Hash,
    /// Where the record before it in the history lies, none for the first.
    pub(crate) parent: Option<Spot>,
}

impl Encode for Head {
    fn encode(&self, out: &mut Vec<u8>) {
        self.len.encode(out);
        out.push(match self.step {
            Step::Commit => 1,
            Step::Rollback => 2,
            Step::Continue => 3,
            Step::Base => 4,
            Step::Mark => 5,
        });
        self.epoch.encode(out);
        self.height.encode(out);
        self.root_before.encode(out);
        self.previous.encode(out);
        self.parent.map_or(0, Spot::to_u64).encode(out);
    }
}

impl Decode for Head {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = u64::decode(input)?;
        if len > RECORD_BYTES_MAX {
            return Err(DecodeError::TooLarge { what: "record", found: len, limit: RECORD_BYTES_MAX });
        }
        let step = match input.byte()? {
            1 => Step::Commit,
            2 => Step::Rollback,
            3 => Step::Continue,
            4 => Step::Base,
            5 => Step::Mark,
            found => return Err(DecodeError::UnknownTag { what: "record", found: u64::from(found) }),
        };
        let (epoch, height) = Decode::decode(input)?;
        let (root_before, previous) = Decode::decode(input)?;
        let parent = match u64::decode(input)? {
            0 => None,
            place => Some(Spot::from_u64(place).map_err(|_| DecodeError::Invalid { what: "place of the parent" })?),
        };
        Ok(Self { len, step, epoch, height, root_before, previous, parent })
    }
}

/// The record of a diff, laid out before the places of old values are known. The layout fixes where new values will lie.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Offset of each write's value field in the record, in the diff's order; none for a deletion.
    pub(crate) values: Vec<Option<u32>>,
    /// Bytes of the whole record.
    pub(crate) len: u64,
}

/// Bytes of a write besides its namespace and the value's own: key length, old place, value length.
const WRITE_BYTES: u64 = 1 + 8 + 4;

impl Layout {
    // spec: STORE-3, STORE-7
    pub(crate) fn of(diff: &Diff) -> Result<Self, StoreError> {
        let found = diff.bytes();
        let too_large = |found, limit| StoreError::TooLarge { what: "a diff", found, limit };
        if found > keelstone_tree::DIFF_BYTES_MAX {
            return Err(too_large(found, keelstone_tree::DIFF_BYTES_MAX));
        }
        let mut at = HEAD_BYTES as u64 + 4;
        let mut values = Vec::with_capacity(diff.len());
        for (namespace, writes) in diff.parts() {
            at += 1 + namespace.as_bytes().len() as u64 + 4;
            for write in writes {
                at += WRITE_BYTES + write.key.len() as u64;
                // The place of a value is that of its length, so that one who knows only the place can read it.
                let field = u32::try_from(at - 4).map_err(|_| too_large(at, RECORD_BYTES_MAX))?;
                values.push(write.value.as_ref().map(|_| field));
                at += write.value.as_ref().map_or(0, |value| value.len() as u64);
            }
        }
        let len = at + HASH_BYTES as u64;
        if len > RECORD_BYTES_MAX { Err(too_large(len, RECORD_BYTES_MAX)) } else { Ok(Self { values, len }) }
    }

    /// The places new values will have in a record that begins at `start`.
    pub(crate) fn places(&self, start: Spot) -> impl Iterator<Item = Option<Place>> {
        let at = move |field: &u32| Place(Spot { offset: start.offset + field, ..start }.to_u64());
        self.values.iter().map(move |field| field.as_ref().map(at))
    }
}

/// Encodes the record of a diff, its hash still missing. `olds` are the places of the values it replaces, in the diff's
/// order.
pub(crate) fn encode_commit(head: &Head, diff: &Diff, olds: &[Option<Place>]) -> Vec<u8> {
    let len = usize::try_from(head.len).expect("a record fits in memory");
    let mut out = Vec::with_capacity(len);
    head.encode(&mut out);
    put_length(&mut out, diff.parts().len());
    let mut olds = olds.iter();
    for (namespace, writes) in diff.parts() {
        namespace.encode(&mut out);
        put_length(&mut out, writes.len());
        for write in writes {
            write.key.encode(&mut out);
            let old = olds.next().expect("one old place for each write");
            old.map_or(0, |place| place.0).encode(&mut out);
            // A value is never empty, so length zero says that the key is deleted.
            put_length(&mut out, write.value.as_ref().map_or(0, |value| value.len()));
            out.extend_from_slice(write.value.as_deref().unwrap_or_default());
        }
    }
    assert_eq!(out.len() + HASH_BYTES, len, "the layout foretells the record's length");
    out
}

/// Encodes a record without a diff, its hash still missing. `root` is the root it leads to.
pub(crate) fn encode_small(head: Head, root: Root) -> Vec<u8> {
    let head = Head { len: SMALL_BYTES as u64, ..head };
    let mut out = Vec::with_capacity(SMALL_BYTES);
    head.encode(&mut out);
    root.encode(&mut out);
    out
}

/// Appends the record's hash and returns it.
pub(crate) fn finish(store: &StoreId, record: &mut Vec<u8>) -> Hash {
    let hash = hash(store, record);
    hash.encode(record);
    hash
}

fn hash(store: &StoreId, record: &[u8]) -> Hash {
    let mut hasher = TaggedHasher::new(RECORD);
    hasher.update(store).update(record);
    hasher.finish()
}

/// One write as a record tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) namespace: Namespace,
    pub(crate) key: Key,
    /// Where the value lay that it replaced.
    pub(crate) old: Option<Place>,
    /// The new value and where it lies; none if the key was deleted.
    pub(crate) new: Option<(Place, Value)>,
}

/// A whole record, read back.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) head: Head,
    pub(crate) hash: Hash,
    /// The writes of a commit.
    pub(crate) writes: Vec<Logged>,
    /// The root that a record without a diff leads to.
    pub(crate) root: Option<Root>,
}

impl Record {
    /// Reads a record that lies at `start`, and checks its hash.
    pub(crate) fn decode(store: &StoreId, start: Spot, bytes: &Bytes) -> Result<Self, DecodeError> {
        let (covered, tail) =
            bytes.split_at_checked(bytes.len().saturating_sub(HASH_BYTES)).expect("saturated within the length");
        let found = Hash::from_bytes(tail)?;
        if found != hash(store, covered) {
            return Err(DecodeError::Invalid { what: "record: its hash does not match" });
        }
        let mut input = Reader::new(covered);
        let head = Head::decode(&mut input)?;
        if head.len != bytes.len() as u64 {
            return Err(DecodeError::Invalid { what: "record: its length does not match" });
        }
        let mut record = Self { head, hash: found, writes: Vec::new(), root: None };
        match head.step {
            Step::Commit => record.writes = decode_writes(start, bytes, covered.len(), &mut input)?,
            Step::Rollback | Step::Continue | Step::Base | Step::Mark => record.root = Some(Root::decode(&mut input)?),
        }
        input.finish()?;
        Ok(record)
    }

    /// The writes as a diff.
    pub(crate) fn diff(&self) -> Diff {
        let value = |logged: &Logged| logged.new.as_ref().map(|(_, value)| value.clone());
        self.writes.iter().map(|logged| (logged.namespace.clone(), logged.key.clone(), value(logged))).collect()
    }
}

fn decode_writes(
    start: Spot,
    bytes: &Bytes,
    covered: usize,
    input: &mut Reader<'_>,
) -> Result<Vec<Logged>, DecodeError> {
    let unsorted = |what| Err(DecodeError::NotCanonical { what });
    let mut writes: Vec<Logged> = Vec::new();
    for _ in 0..u32::decode(input)? {
        let namespace = Namespace::decode(input)?;
        if writes.last().is_some_and(|last| last.namespace >= namespace) {
            return unsorted("namespaces of a record must strictly ascend");
        }
        let count = u32::decode(input)?;
        if count == 0 {
            return Err(DecodeError::Invalid { what: "namespace of a record without writes" });
        }
        let first = writes.len();
        for _ in 0..count {
            let key = Key::decode(input)?;
            if writes[first..].last().is_some_and(|last| last.key >= key) {
                return unsorted("keys of a record must strictly ascend");
            }
            let old = u64::decode(input)?;
            let field = covered - input.left();
            let len = input.length("value", VALUE_LEN_MAX)?;
            let from = covered - input.left();
            input.take(len)?;
            let place = |field: usize| -> Result<Place, DecodeError> {
                let offset = u32::try_from(field).ok().and_then(|field| start.offset.checked_add(field));
                let offset = offset.ok_or(DecodeError::Invalid { what: "place of a value" })?;
                Ok(Place(Spot { offset, ..start }.to_u64()))
            };
            let new = match len {
                0 => None,
                len => {
                    let value = Value::new(bytes.slice(from..from + len));
                    Some((place(field)?, value.map_err(|_| DecodeError::Invalid { what: "value" })?))
                }
            };
            writes.push(Logged { namespace: namespace.clone(), key, old: (old != 0).then_some(Place(old)), new });
        }
    }
    Ok(writes)
}
