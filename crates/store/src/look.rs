//! Looking at stored bytes again: sectors by their checksums and order, a version's entries by their way from the root.
//!
//! What checks and scrubs have in common. Nothing here changes anything, and nothing that is damaged ends it: whoever
//! looks wants to know all of it.
//!
//! Rules: `spec/store.md`, STORE-1 to STORE-4.

use crate::StoreError;
use crate::record::{Head, Step};
use crate::sector::Found;
use crate::segment::{Kind, Segment};
use keelstone_codec::{Decode, DecodeError, Encode, Key, Namespace, Reader};
use keelstone_tree::{Entry, Hasher, KeyRange, Tree};

/// Entries whose values are read together.
const BATCH_ENTRIES: usize = 1024;
/// Bytes of values after which a batch is read in any case.
const BATCH_BYTES: u64 = 1 << 20;

/// What a look at a segment of the log has to know of the sectors before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Before {
    /// The session of the last sector. Later ones are of no older one.
    generation: u32,
    /// The log went on elsewhere: what follows may be what a crash left behind.
    left: bool,
}

impl Before {
    /// Where nothing follows from what is before.
    pub(crate) fn behind_the_end() -> Self {
        Self { generation: 0, left: true }
    }
}

impl Encode for Before {
    fn encode(&self, out: &mut Vec<u8>) {
        self.generation.encode(out);
        self.left.encode(out);
    }
}
impl Decode for Before {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { generation: Decode::decode(input)?, left: Decode::decode(input)? })
    }
}

/// Looks at the sectors from `from` to before `to`. Those of the log up to where it goes on elsewhere were all written, in
/// this order; of any other it can only be said that it was written whole or not at all. Returns how many hold. `open` is the same
/// segment as the store has it open: where it may be written to meanwhile, what is not whole is looked at again while it is not.
// spec: STORE-1, STORE-2
pub(crate) fn sectors(
    segment: &Segment,
    open: &Segment,
    (from, to): (u32, u32),
    before: &mut Before,
    problem: &mut dyn FnMut(StoreError),
) -> Result<u64, StoreError> {
    let mut held = 0;
    let in_log = segment.id().kind == Kind::Log;
    // Asked before anything is read: what is written by then is as it will be.
    let settled = open.settled();
    segment.scan(from, to, &mut |number, found, payload| {
        let again = (found == Found::Damaged && number >= settled).then(|| open.sector_at_rest(number)).transpose()?;
        let (found, payload) = again.as_ref().map_or((found, payload), |(found, payload)| (*found, payload));
        let in_order = !in_log || before.left || number == 0;
        match found {
            Found::Valid(stamp) if in_order || stamp.generation >= before.generation => {
                held += 1;
                if !in_order {
                    before.generation = stamp.generation;
                    let head = Head::decode(&mut Reader::new(payload));
                    before.left = stamp.starts && head.is_ok_and(|head| head.step == Step::Continue);
                }
            }
            Found::Zero if in_order => held += 1,
            found => problem(segment.bad_sector(number, found)),
        }
        Ok(())
    })?;
    Ok(held)
}

/// What a look at entries came to.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Entries that are as they should be.
    pub(crate) entries: u64,
    /// Bytes read for them, about: keys, values, and a sector each.
    pub(crate) bytes: u64,
    /// The last one, if there are more.
    pub(crate) last: Option<(Namespace, Key)>,
}

/// What is read for an entry besides its key and value: a sector, most often.
pub(crate) const ENTRY_BYTES: u64 = 512;

/// Looks at the entries behind `after`, each by its way from the root and its value by its hash, until about `budget` bytes
/// were read.
pub(crate) fn entries<H: Hasher>(
    tree: &Tree<H>,
    after: Option<&(Namespace, Key)>,
    budget: u64,
    problem: &mut dyn FnMut(StoreError),
) -> Looked {
    let mut looked = Looked::default();
    let names = tree.namespaces().map(|(name, ..)| name).filter(|name| after.is_none_or(|(from, _)| from <= *name));
    for name in names {
        // The first key above another is that one with a zero byte behind it.
        let start = after.filter(|(from, _)| from == name).map(|(_, key)| [key.as_slice(), &[0]].concat());
        let mut entries = tree.entries(name, KeyRange::from(&start.unwrap_or_default())).in_passing();
        let mut batch: Vec<(Key, Entry)> = Vec::new();
        let mut bytes = 0;
        loop {
            let next = entries.past_damage();
            let is_end = next.is_none();
            match next {
                Some(Ok((key, entry))) => {
                    bytes += u64::from(entry.value_len);
                    looked.bytes += ENTRY_BYTES + key.len() as u64 + u64::from(entry.value_len);
                    batch.push((key, entry));
                }
                Some(Err(lost)) => {
                    let (at, entries) = (lost.prefix, lost.totals.count);
                    problem(StoreError::Unreadable { namespace: name.clone(), at, entries, source: lost.error });
                }
                None => {}
            }
            let is_over = looked.bytes >= budget;
            if is_end || is_over || batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
                looked.entries += values(tree, name, &batch, problem);
                if is_over && let Some((key, _)) = batch.pop() {
                    looked.last = Some((name.clone(), key));
                    return looked;
                }
                batch.clear();
                bytes = 0;
            }
            if is_end {
                break;
            }
        }
    }
    looked
}

/// Looks at the values of some entries. Returns how many are as they should be.
fn values<H: Hasher>(
    tree: &Tree<H>,
    namespace: &Namespace,
    batch: &[(Key, Entry)],
    problem: &mut dyn FnMut(StoreError),
) -> u64 {
    let together: Vec<Entry> = batch.iter().map(|(_, entry)| *entry).collect();
    if tree.values(&together).is_some() {
        return batch.len() as u64;
    }
    let mut sound = 0;
    for (key, entry) in batch {
        match tree.value(entry) {
            Ok(_) => sound += 1,
            Err(source) => {
                let (namespace, at) = (namespace.clone(), key.to_vec());
                problem(StoreError::Unreadable { namespace, at, entries: 1, source });
            }
        }
    }
    sound
}
