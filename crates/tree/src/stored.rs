//! A page as bytes, for the disk (spec: TREE-17, TREE-18).
//!
//! ```text
//! page   = slots varint, cut varint, shared bytes, slot.., check (8 bytes)
//! slot   = 00, key rest (varint length, bytes), value length varint, place u64, H(value)
//!        | 01, key rest (varint length, bytes), crit u16, place u64, length varint, count varint, bytes varint, hash
//! check  = the first 8 bytes of BLAKE3 over everything before
//! ```
//!
//! `shared` is what the first `cut` bytes of all keys have in common. Critical bits follow from the keys. Hashes of inner nodes and
//! leaves are not stored: decoding computes them, up to the root, which must be the hash that whoever points to the
//! page expects. So nothing that counts is believed. What no hash covers (places, and prefixes of pages below) is proven when it is followed;
//! `check` finds damage there at once.

use crate::page::{Page, PageId, SLOTS_MAX, Shape, Slot, Spare, Spot, extend_prefix};
use crate::{Blake3, Hasher, PageAt, Place, Totals, bits, preimage};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, KEY_LEN_MAX, Reader, VALUE_LEN_MAX, put_varint};
use std::sync::Arc;

const ENTRY: u8 = 0;
const CHILD: u8 = 1;
const CHECK_LEN: usize = 8;
/// Longest page in bytes: 32 slots take at most 350 each.
const PAGE_LEN_MAX: usize = 64 << 10;

/// What whoever points to a page says of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) hash: Hash,
    pub(crate) totals: Totals,
    /// The critical bit of its root and the bits above it, unless it is the top page of a namespace.
    pub(crate) below: Option<(u16, &'a [u8])>,
}

/// Why bytes are not the page they should be: our own disk is damaged, or was written by another hand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PageError {
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("the check does not match its bytes")]
    Check,
    #[error("its hash is {found}, the page above says {expected}")]
    Hash { expected: Hash, found: Hash },
    #[error("it has {found:?}, the page above says {expected:?}")]
    Totals { expected: Totals, found: Totals },
    #[error("its root does not stand where the page above says")]
    Root,
}

/// The bytes of a page whose pages below have all been written.
pub(crate) fn encode(page: &Page, mut at: impl FnMut(PageId) -> PageAt) -> Vec<u8> {
    let shape = &page.shape;
    let shared = shared_len(shape);
    let mut out = Vec::with_capacity(64 * page.slots().len() + 64);
    put_varint(&mut out, shape.len() as u64);
    put_varint(&mut out, shared as u64);
    out.extend_from_slice(&shape.key(0)[..shared]);
    for (index, slot) in page.slots().enumerate() {
        let rest = &shape.key(index)[shared..];
        let mut key = |kind| {
            out.push(kind);
            put_varint(&mut out, rest.len() as u64);
            out.extend_from_slice(rest);
        };
        match slot {
            Slot::Entry { value_hash, place, value_len, .. } => {
                key(ENTRY);
                put_varint(&mut out, u64::from(*value_len));
                place.encode(&mut out);
                value_hash.encode(&mut out);
            }
            Slot::Child { hash, totals, id, crit } => {
                key(CHILD);
                crit.encode(&mut out);
                let at = at(*id);
                at.place.encode(&mut out);
                put_varint(&mut out, u64::from(at.len));
                put_varint(&mut out, totals.count);
                put_varint(&mut out, totals.bytes);
                hash.encode(&mut out);
            }
        }
    }
    let check = check(&out);
    out.extend_from_slice(&check);
    out
}

/// Reads a page and proves it against what is expected of it. `child` gives each page below its number.
pub(crate) fn decode<H: Hasher>(
    bytes: &[u8],
    expected: &Expected<'_>,
    child: impl FnMut(PageAt) -> PageId,
) -> Result<Page, PageError> {
    let Some((body, found)) = bytes.split_last_chunk::<CHECK_LEN>() else {
        return Err(DecodeError::Truncated { needed: CHECK_LEN as u64, left: bytes.len() as u64 }.into());
    };
    if check(body) != *found {
        return Err(PageError::Check);
    }
    let mut page = parse(body, child)?;
    if let Some((crit, prefix)) = expected.below {
        let mut found = Vec::new();
        if page.shape.root_crit() == Some(crit) {
            extend_prefix(&mut found, page.shape.key(0), crit);
        }
        if found != prefix || page.shape.root_crit() != Some(crit) {
            return Err(PageError::Root);
        }
    }
    hash_all::<H>(&mut page)?;
    let found = page.top();
    if found.totals != expected.totals {
        return Err(PageError::Totals { expected: expected.totals, found: found.totals });
    }
    if found.hash != expected.hash {
        return Err(PageError::Hash { expected: expected.hash, found: found.hash });
    }
    Ok(page)
}

/// Reads what stands before the check, hashes still to be computed.
fn parse(body: &[u8], mut child: impl FnMut(PageAt) -> PageId) -> Result<Page, DecodeError> {
    let input = &mut Reader::new(body);
    let count = bounded(input, "slots", 1, SLOTS_MAX)?;
    let cut = bounded(input, "shared key bytes", 0, KEY_LEN_MAX)?;
    let shared = input.take(cut)?;

    let mut slots = Vec::with_capacity(count);
    // Each key begins where the one before it ends.
    let mut bytes: Vec<u8> = Vec::with_capacity(body.len());
    let (mut ends, mut below) = ([0; SLOTS_MAX], [None; SLOTS_MAX]);
    let mut prefix = Vec::new();
    for slot in 0..count {
        let kind = input.byte()?;
        let rest = bounded(input, "key length", 0, KEY_LEN_MAX - cut)?;
        let start = bytes.len();
        bytes.extend_from_slice(shared);
        bytes.extend_from_slice(input.take(rest)?);
        let key = &bytes[start..];
        below[slot] = match kind {
            ENTRY => {
                let value_len = bounded(input, "value length", 1, VALUE_LEN_MAX)?;
                let value_len = u32::try_from(value_len).expect("at most 8 MiB");
                let (place, value_hash) = (Place::decode(input)?, Hash::decode(input)?);
                if key.is_empty() {
                    return Err(DecodeError::Invalid { what: "empty key" });
                }
                slots.push(Slot::Entry { hash: Hash::ZERO, value_hash, place, value_len });
                None
            }
            CHILD => {
                let crit = u16::decode(input)?;
                let place = u64::decode(input)?;
                let len = bounded(input, "page length", 1, PAGE_LEN_MAX)?;
                let len = u32::try_from(len).expect("at most 64 KiB");
                let totals = Totals { count: input.varint()?, bytes: input.varint()? };
                let hash = Hash::decode(input)?;
                // An empty key would equal an empty prefix: its length is looked at by itself.
                let whole = key.len() == usize::from(crit).div_ceil(9);
                prefix.clear();
                if whole {
                    extend_prefix(&mut prefix, key, crit);
                }
                if !whole || prefix != key || place == u64::MAX || totals.count < 2 {
                    return Err(DecodeError::Invalid { what: "page below" });
                }
                slots.push(Slot::Child { hash, totals, id: child(PageAt { place, len }), crit });
                Some(crit)
            }
            found => return Err(DecodeError::UnknownTag { what: "slot", found: u64::from(found) }),
        };
        ends[slot] = bytes.len();
    }
    input.finish()?;
    let key = |slot: usize| &bytes[slot.checked_sub(1).map_or(0, |before| ends[before])..ends[slot]];

    // Sorted keys say the critical bits (spec: TREE-3); a page below must part after its place has been told apart.
    let mut crits = [0; SLOTS_MAX];
    for slot in 1..count {
        let (left, right) = (key(slot - 1), key(slot));
        let crit = bits::crit(left, right).filter(|crit| bits::bit(right, *crit));
        let crit = crit.ok_or(DecodeError::NotCanonical { what: "keys of a page must strictly ascend" })?;
        if below[slot - 1..=slot].iter().flatten().any(|below| *below <= crit) {
            return Err(DecodeError::Invalid { what: "page below" });
        }
        crits[slot - 1] = crit;
    }
    let shape = Shape::new(&crits[..count - 1], (0..count).map(|slot| (key(slot), below[slot])));
    if shared_len(&shape) != cut {
        return Err(DecodeError::NotCanonical { what: "shared key bytes" });
    }
    Ok(Page::new(Arc::new(shape), slots.into_iter(), std::iter::empty(), &mut Spare::default()))
}

/// What [`crate::hostile::page`] does.
pub(crate) fn survive(body: &[u8]) -> bool {
    let mut below = Vec::new();
    let number = |below: &mut Vec<PageAt>, at| {
        below.push(at);
        PageId(u32::try_from(below.len() - 1).expect("at most 32 pages are below a page"))
    };
    let mut expected = Expected { hash: Hash::ZERO, totals: Totals::default(), below: None };
    assert!(decode::<Blake3>(body, &expected, |at| number(&mut below, at)).is_err(), "nothing hashes to zero");
    below.clear();
    let Ok(mut page) = parse(body, |at| number(&mut below, at)) else { return false };
    if hash_all::<Blake3>(&mut page).is_err() {
        return false;
    }
    let bytes = encode(&page, |id| below[id.0 as usize]);
    assert_eq!(bytes[..bytes.len() - CHECK_LEN], *body, "a second encoding was accepted");

    let top = page.top();
    (expected.hash, expected.totals) = (top.hash, top.totals);
    let again = decode::<Blake3>(&bytes, &expected, |_| PageId(0)).expect("it is the page that is expected");
    assert_eq!(again.top().hash, expected.hash);
    expected.hash.0[31] ^= 1;
    let other = decode::<Blake3>(&bytes, &expected, |_| PageId(0));
    assert!(matches!(other, Err(PageError::Hash { .. })), "a page of another hash was accepted");
    true
}

/// Computes all hashes and totals of a page whose entries have value hashes and whose children have theirs.
fn hash_all<H: Hasher>(page: &mut Page) -> Result<(), DecodeError> {
    let shape = page.shape.clone();
    let mut preimages = Vec::with_capacity(SLOTS_MAX);
    let [mut hashes, mut key_hashes] = [[Hash::ZERO; SLOTS_MAX]; 2];
    let mut keys = [&[][..]; SLOTS_MAX];
    let mut count = 0;
    for (index, _) in page.slots().enumerate().filter(|(_, slot)| slot.below().is_none()) {
        keys[count] = shape.key(index);
        count += 1;
    }
    H::hash_many(&keys[..count], &mut key_hashes[..count]);
    let mut hashed = keys.iter().zip(&key_hashes);
    for slot in page.slots() {
        if let Slot::Entry { value_hash, value_len, .. } = slot {
            let (key, key_hash) = hashed.next().expect("one for each entry");
            preimages.push(preimage::leaf(preimage::short_len(key), *value_len, key_hash, value_hash));
        }
    }
    H::hash_nodes(&preimages, &mut hashes[..preimages.len()]);
    let mut leaves = hashes.iter();
    for index in 0..shape.len() {
        let slot = page.slot_mut(index);
        if slot.below().is_none() {
            slot.set_hash(*leaves.next().expect("one for each entry"));
        }
    }

    // Nodes in lanes, one height after the other.
    let mut heights = [0u8; SLOTS_MAX];
    let mut highest = 0;
    for node in shape.order().iter().map(|node| usize::from(*node)) {
        let [left, right] = shape.children(node);
        let height = |spot| match spot {
            Spot::Slot(_) => 0,
            Spot::Node(node) => heights[node],
        };
        heights[node] = 1 + height(left).max(height(right));
        highest = highest.max(heights[node]);
        let totals = page.at(left).totals.checked_add(page.at(right).totals);
        page.node_mut(node).totals = totals.ok_or(DecodeError::Invalid { what: "sum of totals" })?;
    }
    for height in 1..=highest {
        let nodes = || (0..shape.len() - 1).filter(|node| heights[*node] == height);
        preimages.clear();
        preimages.extend(nodes().map(|node| page.preimage(node)));
        H::hash_nodes(&preimages, &mut hashes[..preimages.len()]);
        nodes().zip(&hashes).for_each(|(node, hash)| page.node_mut(node).hash = *hash);
    }
    Ok(())
}

/// Bytes that all keys of a shape begin with: those above the least critical bit, as far as they are whole.
fn shared_len(shape: &Shape) -> usize {
    shape.root_crit().map_or(0, |crit| usize::from(crit / 9))
}

fn check(body: &[u8]) -> [u8; CHECK_LEN] {
    let hash = blake3::hash(body);
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

fn bounded(input: &mut Reader<'_>, what: &'static str, least: usize, most: usize) -> Result<usize, DecodeError> {
    let found = input.varint()?;
    match usize::try_from(found) {
        Ok(small) if small < least => Err(DecodeError::Invalid { what }),
        Ok(small) if small <= most => Ok(small),
        _ => Err(DecodeError::TooLarge { what, found, limit: most as u64 }),
    }
}
