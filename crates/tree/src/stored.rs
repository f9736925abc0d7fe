//! A page as bytes, for the disk (spec: TREE-17, TREE-18, TREE-20).
//!
//! ```text
//! page   = slots varint, cut varint, shared bytes, slot.., check (8 bytes)
//! delta  = 00, base place u64, base length varint, kept u32, cut varint, new.., check (8 bytes)
//! new    = slot | 02, slot of the base, the rest of an entry | 03, slot of the base, the rest of a child
//! slot   = 00, key rest (varint length, bytes), value length varint, place u64, H(value)
//!        | 01, key rest (varint length, bytes), crit u16, place u64, length varint, count varint, bytes varint, hash
//! check  = the first 8 bytes of BLAKE3 over everything before
//! ```
//!
//! `shared` is what the first `cut` bytes of all keys have in common. Critical bits follow from the keys. Hashes of inner nodes and
//! leaves are not stored: decoding computes them, up to the root, which must be the hash that whoever points to the
//! page expects. So nothing that counts is believed. What no hash covers (places, and prefixes of pages below) is proven when it is followed;
//! `check` finds damage there at once.
//!
//! A delta says what a page has that another, its base, which lies there whole, has not. Reading one puts the bytes of the
//! whole page together, and from there on it is a page as any: the same decoder, the same hash that is expected.

use crate::page::{Base, Page, PageId, SLOTS_MAX, Shape, Slot, Spare, Spot, each, extend_prefix};
use crate::{Backing, Blake3, Hasher, PageAt, Place, ReadError, Totals, bits, preimage};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, KEY_LEN_MAX, Reader, VALUE_LEN_MAX, put_varint};
use std::cmp::Ordering;
use std::sync::Arc;

const ENTRY: u8 = 0;
const CHILD: u8 = 1;
/// Beside one of these, in a delta: the key is that of a slot of the base, which has the same kind.
const FOLLOWS: u8 = 2;
const FOLLOWS_ENTRY: u8 = ENTRY | FOLLOWS;
const FOLLOWS_CHILD: u8 = CHILD | FOLLOWS;
const CHECK_LEN: usize = 8;
/// Longest page in bytes: 32 slots take at most 350 each.
pub(crate) const PAGE_LEN_MAX: usize = u16::MAX as usize;
/// A slot says this much besides its key at the least: an entry, of a value shorter than 128 bytes.
const CONTENT_MIN: usize = 1 + 8 + 32;
/// What a delta begins with. A page has at least one slot.
const DELTA: u8 = 0;
/// A delta is written if it has at most this part of the whole page's bytes. What is new since the base was written is written
/// again each time. Of a page of twenty slots of 75 bytes, of which one more has something new each time, in 45 bytes, a third comes to
/// 384 bytes a time, a quarter to 367 and a fifth to 371.
const DELTA_PART: usize = 4;

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
    #[error("of its base: {0}")]
    Base(Box<PageError>),
}

/// The bytes of a page whose pages below have all been written.
pub(crate) fn encode(page: &Page, at: impl FnMut(PageId) -> PageAt) -> Vec<u8> {
    sealed(encode_body(page, at))
}

/// The bytes of a page as what is new since its base was written, if that is worth it, and else whole; and whether they are
/// whole.
// spec: TREE-20
pub(crate) fn encode_beside(page: &Page, base: &Base, mut at: impl FnMut(PageId) -> PageAt) -> (Vec<u8>, bool) {
    let shared = shared_len(&page.shape);
    let mut delta = Vec::with_capacity(80 * base.new.count_ones() as usize + 40);
    delta.push(DELTA);
    base.at().place.encode(&mut delta);
    put_varint(&mut delta, u64::from(base.at().len));
    base.kept.encode(&mut delta);
    put_varint(&mut delta, shared as u64);
    for slot in each(base.new) {
        if base.added >> slot & 1 == 1 {
            put_slot(&mut delta, page, slot, shared, &mut at);
        } else {
            delta.push(kind(page.slot(slot)) | FOLLOWS);
            delta.push(u8::try_from(base.of(slot)).expect("a page has 32 slots"));
            put_content(&mut delta, page.slot(slot), &mut at);
        }
    }
    let is_enough = |whole: usize| base.kept != 0 && is_worth_it(delta.len(), whole);
    // Most slots are in no cache, and of most pages so little is new that none of the others need be looked at.
    if is_enough(least_len(&page.shape, shared)) {
        return (sealed(delta), false);
    }
    let whole = encode_body(page, &mut at);
    let is_whole = !is_enough(whole.len());
    (sealed(if is_whole { whole } else { delta }), is_whole)
}

/// Bytes that [`encode_body`] comes to at the least, as far as the keys alone say.
fn least_len(shape: &Shape, shared: usize) -> usize {
    let count = shape.len();
    // The number of slots and of shared bytes; of each slot what it is, the length of its rest and what it says.
    2 + shared + count * (2 + CONTENT_MIN) + shape.keys_len() - count * shared
}

/// Whether so many bytes are worth writing in the place of so many of the whole page, neither with its check.
fn is_worth_it(delta: usize, whole: usize) -> bool {
    (delta + CHECK_LEN) * DELTA_PART <= whole + CHECK_LEN
}

fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let check = check(&body);
    body.extend_from_slice(&check);
    body
}

fn encode_body(page: &Page, mut at: impl FnMut(PageId) -> PageAt) -> Vec<u8> {
    let shape = &page.shape;
    let shared = shared_len(shape);
    let mut out = Vec::with_capacity(80 * shape.len() + 64);
    put_varint(&mut out, shape.len() as u64);
    put_varint(&mut out, shared as u64);
    out.extend_from_slice(&shape.key(0)[..shared]);
    (0..shape.len()).for_each(|slot| put_slot(&mut out, page, slot, shared, &mut at));
    out
}

/// Appends a slot; the first `shared` bytes of its key are known.
fn put_slot(out: &mut Vec<u8>, page: &Page, slot: usize, shared: usize, at: &mut impl FnMut(PageId) -> PageAt) {
    let rest = &page.shape.key(slot)[shared..];
    out.push(kind(page.slot(slot)));
    put_varint(out, rest.len() as u64);
    out.extend_from_slice(rest);
    put_content(out, page.slot(slot), at);
}

fn kind(slot: &Slot) -> u8 {
    match slot {
        Slot::Entry { .. } => ENTRY,
        Slot::Child { .. } => CHILD,
    }
}

/// Appends what a slot says besides its key.
fn put_content(out: &mut Vec<u8>, slot: &Slot, at: &mut impl FnMut(PageId) -> PageAt) {
    match slot {
        Slot::Entry { value_hash, place, value_len, .. } => {
            put_varint(out, u64::from(*value_len));
            place.encode(out);
            value_hash.encode(out);
        }
        Slot::Child { hash, totals, id, crit } => {
            crit.encode(out);
            let at = at(*id);
            at.place.encode(out);
            put_varint(out, u64::from(at.len));
            put_varint(out, totals.count);
            put_varint(out, totals.bytes);
            hash.encode(out);
        }
    }
}

/// Reads a page, and what it is written beside, and proves it against what is expected of it. `child` gives each page below
/// its number.
pub(crate) fn read<H: Hasher>(
    backing: &dyn Backing,
    at: PageAt,
    expected: &Expected<'_>,
    child: impl FnMut(PageAt) -> PageId,
) -> Result<Page, ReadError> {
    let bytes = backing.page(at)?;
    let base = base_of(&bytes);
    let beside = base.map(|base| backing.page(base)).transpose()?;
    decode::<H>(&bytes, beside.as_deref(), expected, child).map_err(|error| {
        let beside = base.map_or(String::new(), |base| format!(" beside one of {} at {:#x}", base.len, base.place));
        ReadError::damaged(format!("page of {} bytes at {:#x}{beside}: {error}", at.len, at.place))
    })
}

/// How many slots the page has that lies there, and where its base lies, if it is written beside one. Nothing is proven, and of the base
/// nothing is read.
pub(crate) fn glance(backing: &dyn Backing, at: PageAt) -> Result<(usize, Option<PageAt>), ReadError> {
    let bytes = backing.page(at)?;
    let look = || {
        let body = checked(&bytes)?;
        Ok::<_, PageError>(match Delta::parse(body)? {
            Some(delta) => (delta.kept.count_ones() as usize + delta.slots.len(), Some(delta.base)),
            None => (bounded(&mut Reader::new(body), "slots", 1, SLOTS_MAX)?, None),
        })
    };
    look().map_err(|error| ReadError::damaged(format!("page of {} bytes at {:#x}: {error}", at.len, at.place)))
}

/// Where the base lies that bytes are written beside; none if they are a whole page, or nothing that can be read.
pub(crate) fn base_of(bytes: &[u8]) -> Option<PageAt> {
    // The check of a whole page need not be computed for this.
    let delta = bytes.first().is_some_and(|first| *first == DELTA);
    let body = delta.then(|| checked(bytes).ok())??;
    Delta::parse(body).ok()?.map(|delta| delta.base)
}

/// Reads a page and proves it against what is expected of it. `base`: the bytes of what [`base_of`] names. `child` gives each
/// page below its number.
pub(crate) fn decode<H: Hasher>(
    bytes: &[u8],
    base: Option<&[u8]>,
    expected: &Expected<'_>,
    child: impl FnMut(PageAt) -> PageId,
) -> Result<Page, PageError> {
    let mut page = parse_either(checked(bytes)?, || checked(base.unwrap_or_default()), child)?;
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

/// What stands before the check, if that holds.
fn checked(bytes: &[u8]) -> Result<&[u8], PageError> {
    let Some((body, found)) = bytes.split_last_chunk::<CHECK_LEN>() else {
        return Err(DecodeError::Truncated { needed: CHECK_LEN as u64, left: bytes.len() as u64 }.into());
    };
    if check(body) == *found { Ok(body) } else { Err(PageError::Check) }
}

/// Reads what stands before the check of a page or of a delta, hashes still to be computed.
fn parse_either<'b>(
    body: &[u8],
    base: impl FnOnce() -> Result<&'b [u8], PageError>,
    child: impl FnMut(PageAt) -> PageId,
) -> Result<Page, PageError> {
    let Some(delta) = Delta::parse(body)? else { return Ok(parse(body, child)?) };
    let base = base().map_err(|error| PageError::Base(Box::new(error)))?;
    let (whole, of_base) = delta.beside(base)?;
    // spec: TREE-20
    if !is_worth_it(body.len(), whole.len()) {
        return Err(DecodeError::NotCanonical { what: "a delta of a page that is written whole" }.into());
    }
    let mut page = parse(&whole, child)?;
    page.base = of_base;
    Ok(page)
}

/// A slot as it is written, not looked into.
#[derive(Clone, Copy)]
struct Raw<'b> {
    kind: u8,
    /// The key but for what all keys share.
    rest: &'b [u8],
    content: &'b [u8],
}

impl<'b> Raw<'b> {
    fn read(input: &mut Reader<'b>, cut: usize) -> Result<Self, DecodeError> {
        let kind = input.byte()?;
        let len = bounded(input, "key length", 0, KEY_LEN_MAX - cut)?;
        let rest = input.take(len)?;
        Ok(Self { kind, rest, content: content(input, kind)? })
    }
}

/// What a slot of this kind says besides its key.
fn content<'b>(input: &mut Reader<'b>, kind: u8) -> Result<&'b [u8], DecodeError> {
    let mut behind = input.clone();
    match kind {
        ENTRY => {
            input.varint()?;
            input.take(8 + 32)?;
        }
        CHILD => {
            input.take(2 + 8)?;
            for _ in 0..3 {
                input.varint()?;
            }
            input.take(32)?;
        }
        found => return Err(DecodeError::UnknownTag { what: "slot", found: u64::from(found) }),
    }
    behind.take(behind.left() - input.left())
}

/// A slot of a delta.
enum New<'b> {
    Added(Raw<'b>),
    /// Its key is that of a slot of the base.
    Follows {
        kind: u8,
        of: u8,
        content: &'b [u8],
    },
}

impl<'b> New<'b> {
    fn read(input: &mut Reader<'b>, cut: usize) -> Result<Self, DecodeError> {
        let mut ahead = input.clone();
        let kind @ (FOLLOWS_ENTRY | FOLLOWS_CHILD) = ahead.byte()? else {
            return Ok(Self::Added(Raw::read(input, cut)?));
        };
        *input = ahead;
        let (kind, of) = (kind & !FOLLOWS, input.byte()?);
        Ok(Self::Follows { kind, of, content: content(input, kind)? })
    }
}

/// A delta whose base was not read yet.
struct Delta<'b> {
    base: PageAt,
    kept: u32,
    cut: usize,
    slots: Vec<New<'b>>,
}

impl<'b> Delta<'b> {
    /// None if it is a whole page.
    fn parse(body: &'b [u8]) -> Result<Option<Self>, DecodeError> {
        let Some((&DELTA, body)) = body.split_first() else { return Ok(None) };
        let input = &mut Reader::new(body);
        let place = u64::decode(input)?;
        let len = bounded(input, "page length", 1, PAGE_LEN_MAX)?;
        let len = u32::try_from(len).expect("below 64 KiB");
        let kept = u32::decode(input)?;
        if place == u64::MAX || kept == 0 {
            return Err(DecodeError::Invalid { what: "base" });
        }
        let cut = bounded(input, "shared key bytes", 0, KEY_LEN_MAX)?;
        let mut slots = Vec::new();
        while input.left() > 0 {
            if slots.len() + kept.count_ones() as usize == SLOTS_MAX {
                let found = SLOTS_MAX as u64 + 1;
                return Err(DecodeError::TooLarge { what: "slots", found, limit: SLOTS_MAX as u64 });
            }
            slots.push(New::read(input, cut)?);
        }
        Ok(Some(Self { base: PageAt { place, len }, kept, cut, slots }))
    }

    /// The whole page, without its check, and what it has of its base. Whether it is a page is not looked at: only the order of
    /// slots is kept.
    fn beside<'p>(&'p self, base: &'p [u8]) -> Result<(Vec<u8>, Option<Base>), PageError> {
        let of_base = |error: DecodeError| PageError::Base(Box::new(error.into()));
        if base.len() + CHECK_LEN != self.base.len as usize {
            let (needed, left) = (u64::from(self.base.len), (base.len() + CHECK_LEN) as u64);
            return Err(of_base(DecodeError::Truncated { needed, left }));
        }
        let input = &mut Reader::new(base);
        // A delta begins with a zero, and so is no base.
        let count = bounded(input, "slots", 1, SLOTS_MAX).map_err(of_base)?;
        let base_cut = bounded(input, "shared key bytes", 0, KEY_LEN_MAX).map_err(of_base)?;
        let base_shared = input.take(base_cut).map_err(of_base)?;
        let olds = (0..count).map(|_| Raw::read(input, base_cut)).collect::<Result<Vec<_>, _>>().map_err(of_base)?;
        input.finish().map_err(of_base)?;
        if self.kept >> (count - 1) > 1 {
            return Err(DecodeError::Invalid { what: "slots kept of a base" }.into());
        }
        let first = &olds[self.kept.trailing_zeros() as usize];
        let first = [base_shared, first.rest].concat();
        let shared = first.get(..self.cut).ok_or(DecodeError::Invalid { what: "shared key bytes" })?;
        // A key of the base, behind what all keys of the page share.
        let (in_both, further) = shared.split_at(self.cut.min(base_cut));
        let base_rest = base_shared.strip_prefix(in_both);
        let rest = |old: &Raw<'p>| {
            let rest = base_rest.zip(old.rest.strip_prefix(further));
            rest.map(|(head, tail)| Rest { head, tail }).ok_or(DecodeError::Invalid { what: "shared key bytes" })
        };
        let keep = |of: usize| {
            let Raw { kind, content, .. } = olds[of];
            Ok::<_, DecodeError>(Part { kind, rest: rest(&olds[of])?, content, of: Some(of) })
        };
        let kept = each(self.kept).map(keep).collect::<Result<Vec<_>, _>>()?;
        let part = |new: &New<'p>| match *new {
            New::Added(Raw { kind, rest, content }) => {
                Ok(Part { kind, rest: Rest { head: &[], tail: rest }, content, of: None })
            }
            New::Follows { kind, of, content } => {
                let of = usize::from(of);
                let old = olds.get(of).filter(|old| old.kind == kind && self.kept >> of & 1 == 0);
                let old = old.ok_or(DecodeError::Invalid { what: "slot of a base" })?;
                Ok(Part { kind, rest: rest(old)?, content, of: Some(of) })
            }
        };
        let news = self.slots.iter().map(part).collect::<Result<Vec<_>, DecodeError>>()?;

        let total = kept.len() + news.len();
        let mut out = Vec::with_capacity(base.len() + 128 * news.len());
        put_varint(&mut out, total as u64);
        put_varint(&mut out, self.cut as u64);
        out.extend_from_slice(shared);
        let [mut followed, mut new, mut added] = [0u32; 3];
        // The base's slots are not looked at as a page's are. Which slot follows which is told by their order from here on.
        let mut last_of = None;
        let (mut kept, mut news) = (kept.into_iter().peekable(), news.into_iter().peekable());
        for slot in 0..total {
            let is_new = match (kept.peek(), news.peek()) {
                (Some(old), Some(new)) => match new.rest.cmp(&old.rest) {
                    Ordering::Equal => {
                        return Err(DecodeError::NotCanonical { what: "a slot is kept and new" }.into());
                    }
                    order => order.is_lt(),
                },
                (None, new) => new.is_some(),
                (Some(_), None) => false,
            };
            let part = if is_new { news.next() } else { kept.next() }.expect("as many as there are");
            new |= u32::from(is_new) << slot;
            match part.of {
                Some(of) if last_of >= Some(of) => {
                    return Err(DecodeError::NotCanonical { what: "slots of a base must strictly ascend" }.into());
                }
                Some(of) => {
                    followed |= 1 << of;
                    last_of = Some(of);
                }
                None => added |= 1 << slot,
            }
            out.push(part.kind);
            let Rest { head, tail } = part.rest;
            put_varint(&mut out, (head.len() + tail.len()) as u64);
            out.extend_from_slice(head);
            out.extend_from_slice(tail);
            out.extend_from_slice(part.content);
        }
        Ok((out, Base::new(self.base, [followed, self.kept], [new, added])))
    }
}

/// A slot of a page that is put together.
struct Part<'p> {
    kind: u8,
    rest: Rest<'p>,
    content: &'p [u8],
    /// The slot of the base that it is or follows.
    of: Option<usize>,
}

/// A key but for what all keys of a page share, where it is: in two pieces.
#[derive(Clone, Copy)]
struct Rest<'p> {
    head: &'p [u8],
    tail: &'p [u8],
}

impl Rest<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let bytes = |rest: &Self| rest.head.iter().chain(rest.tail);
        bytes(self).cmp(bytes(other))
    }
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
                let len = u32::try_from(len).expect("below 64 KiB");
                let totals = Totals { count: input.varint()?, bytes: input.varint()? };
                let hash = Hash::decode(input)?;
                // An empty key would equal an empty prefix: its length is looked at by itself. A page of one slot has an entry.
                let whole = count > 1 && key.len() == usize::from(crit).div_ceil(9);
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

/// What [`crate::hostile::page`] and [`crate::hostile::page_delta`] do. Without a base, the body is taken for a whole page.
pub(crate) fn survive(body: &[u8], base: Option<&[u8]>) -> bool {
    let mut below = Vec::new();
    let number = |below: &mut Vec<PageAt>, at| {
        below.push(at);
        PageId(u32::try_from(below.len() - 1).expect("at most 32 pages are below a page"))
    };
    let base_bytes = base.map(|base| sealed(base.to_vec()));
    let mut expected = Expected { hash: Hash::ZERO, totals: Totals::default(), below: None };
    let any = decode::<Blake3>(&sealed(body.to_vec()), base_bytes.as_deref(), &expected, |at| number(&mut below, at));
    assert!(any.is_err(), "nothing hashes to zero");
    below.clear();
    let parsed = parse_either(body, || base.ok_or(PageError::Root), |at| number(&mut below, at));
    let Ok(mut page) = parsed else { return false };
    if hash_all::<Blake3>(&mut page).is_err() {
        return false;
    }
    let bytes = match page.base {
        Some(base) => encode_beside(&page, &base, |id| below[id.0 as usize]).0,
        None => encode(&page, |id| below[id.0 as usize]),
    };
    assert_eq!(bytes[..bytes.len() - CHECK_LEN], *body, "a second encoding was accepted");
    assert_eq!(page.base.map(|base| base.at()), base_of(&bytes));

    let top = page.top();
    (expected.hash, expected.totals) = (top.hash, top.totals);
    let again = decode::<Blake3>(&bytes, base_bytes.as_deref(), &expected, |_| PageId(0));
    let again = again.expect("it is the page that is expected");
    assert_eq!((again.top().hash, again.base), (expected.hash, page.base));
    let whole = encode(&page, |id| below[id.0 as usize]);
    let whole = decode::<Blake3>(&whole, None, &expected, |_| PageId(0)).expect("the same page, written whole");
    assert_eq!(whole.top().hash, expected.hash);
    expected.hash.0[31] ^= 1;
    let other = decode::<Blake3>(&bytes, base_bytes.as_deref(), &expected, |_| PageId(0));
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
