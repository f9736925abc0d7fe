//! A list that only grows, committed to by the tops of its perfect subtrees: a Merkle mountain range.
//!
//! Whoever holds an [`Mmr`] (a count and fewer than 64 hashes) can append for ever without the items, so a log can be
//! part of a state that is taken over from a snapshot. Two kinds of proofs are checked against it: that an item stands
//! at a place ([`Mmr::includes`]), and that a later range begins with an earlier one ([`Mmr::extends_to`]). Both are
//! taken to come from an adversary. What a proof is made of is read through [`Subtrees`], so that nothing here says
//! where items are kept.
//!
//! Each log has tags of its own, by its type [`Domain`]: no item, and no proof, of one can pass for one of another.
//!
//! Layout: `spec/audit.md`, AUDIT-1 and AUDIT-2.

use keelstone_codec::{BoundedList, Decode, DecodeError, Encode, Hash, Reader, Tag, TaggedHasher};
use keelstone_macros::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::marker::PhantomData;

/// Most items of a range: fewer than 2^63, so that it has at most 63 peaks and no sum of places overflows.
pub const MMR_COUNT_MAX: u64 = (1 << 63) - 1;
/// Most hashes of a proof of inclusion: the levels below the highest peak.
pub const MMR_SIBLINGS_MAX: usize = 62;
/// Most hashes of a proof of consistency: up to the next power of two, and down again.
pub const MMR_STEPS_MAX: usize = 126;

/// A kind of log: the tags that keep its hashes apart from all others.
pub trait Domain {
    /// Of an item.
    const LEAF: Tag;
    /// Of a node over two of equal size.
    const INNER: Tag;
    /// Of the count with all peaks.
    const ROOT: Tag;
}

/// A range: how many items it has, and the tops of its perfect subtrees, the largest first.
pub struct Mmr<L> {
    count: u64,
    peaks: Vec<Hash>,
    log: PhantomData<fn() -> L>,
}

/// The place of a perfect subtree: it stands over the items from `index << level`, `1 << level` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// 0 for an item.
    pub level: u8,
    /// Counted among those of its level.
    pub index: u64,
}

impl Place {
    /// The first item below it.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.index << self.level
    }

    /// The first item behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        (self.index + 1) << self.level
    }

    /// The two halves of a place above the items.
    #[must_use]
    pub const fn halves(self) -> Option<[Self; 2]> {
        match self.level {
            0 => None,
            level => {
                let (level, index) = (level - 1, self.index << 1);
                Some([Self { level, index }, Self { level, index: index + 1 }])
            }
        }
    }

    const fn beside(self) -> Self {
        Self { level: self.level, index: self.index ^ 1 }
    }

    const fn above(self) -> Self {
        Self { level: self.level + 1, index: self.index >> 1 }
    }
}

/// Where the tops of perfect subtrees are found when something is proven.
pub trait Subtrees {
    /// Why one is not found.
    type Error;

    /// The top of the subtree at a place that is whole in the range.
    ///
    /// # Errors
    /// What keeps it from being known.
    fn top(&self, place: Place) -> Result<Hash, Self::Error>;
}

/// That an item stands at a place: the hashes beside the way up to its peak.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct MmrInclusion {
    /// Its place, from 0.
    pub index: u64,
    /// The hashes beside the way, from the bottom up.
    pub siblings: BoundedList<Hash, MMR_SIBLINGS_MAX>,
}

/// That a range begins with an earlier one: the tops of the subtrees appended since, in order, each as large as fits.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct MmrConsistency {
    /// The tops. How large each subtree is follows from the two counts.
    pub steps: BoundedList<Hash, MMR_STEPS_MAX>,
}

impl<L: Domain> Mmr<L> {
    /// A range of the given items.
    ///
    /// # Panics
    /// As [`Self::append`].
    #[must_use]
    pub fn of(items: &[Hash]) -> Self {
        let mut range = Self::default();
        items.iter().for_each(|item| range.append(item));
        range
    }

    /// The hash of an item as it stands in the range.
    // spec: AUDIT-1
    #[must_use]
    pub fn leaf(item: &Hash) -> Hash {
        TaggedHasher::new(L::LEAF).update(&item.0).finish()
    }

    /// The hash of a node over two subtrees of equal size.
    #[must_use]
    pub fn inner(left: &Hash, right: &Hash) -> Hash {
        TaggedHasher::new(L::INNER).update(&left.0).update(&right.0).finish()
    }

    /// How many items there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The tops of the perfect subtrees, the largest first.
    #[must_use]
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// One hash for all of it, the count included.
    #[must_use]
    pub fn root(&self) -> Hash {
        TaggedHasher::new(L::ROOT).update(&self.to_bytes()).finish()
    }

    /// Puts an item behind the others. Amortized two hashes.
    ///
    /// # Panics
    /// Behind [`MMR_COUNT_MAX`] items, which is more than a chain can make.
    pub fn append(&mut self, item: &Hash) {
        self.append_seen(item, |_, _| {});
    }

    /// As [`Self::append`], and shows `made` every subtree that became whole, from the item up: what a log keeps that
    /// wants to prove things later.
    ///
    /// # Panics
    /// As [`Self::append`].
    pub fn append_seen(&mut self, item: &Hash, made: impl FnMut(Place, Hash)) {
        let pushed = self.push(0, Self::leaf(item), made);
        assert!(pushed, "a log of 2^63 items");
    }

    /// The place of each peak, the largest first.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<L> {
        let count = self.count;
        (0..64u8).rev().filter(move |level| count >> level & 1 == 1).map(move |level| {
            // Before the subtree of this bit stand those of the higher bits.
            Place { level, index: (count >> level) - 1 }
        })
    }

    /// The top of the subtree at a place, if it is one of the peaks.
    #[must_use]
    pub fn peak(&self, place: Place) -> Option<Hash> {
        self.places().zip(&self.peaks).find(|(found, _)| *found == place).map(|(_, peak)| *peak)
    }

    /// The place of the peak over an item, if there is such an item.
    fn peak_over(&self, index: u64) -> Option<Place> {
        self.places().find(|peak| peak.first() <= index && index < peak.end())
    }

    /// Puts a whole subtree behind the others, and joins equal ones. False if it cannot stand there.
    fn push(&mut self, level: u8, top: Hash, mut made: impl FnMut(Place, Hash)) -> bool {
        let size = 1u64 << level;
        if !self.count.is_multiple_of(size) || self.count > MMR_COUNT_MAX - size {
            return false;
        }
        let (mut place, mut top) = (Place { level, index: self.count >> level }, top);
        made(place, top);
        while place.index & 1 == 1 {
            let left = self.peaks.pop().expect("a one bit of the count is a peak");
            (place, top) = (place.above(), Self::inner(&left, &top));
            made(place, top);
        }
        self.peaks.push(top);
        self.count += size;
        true
    }

    // ---- inclusion

    /// Proves the item at `index`; none if there is no such place.
    ///
    /// # Errors
    /// What `subtrees` says of a subtree that is needed: at most 62 are asked for.
    // spec: AUDIT-2
    pub fn prove<S: Subtrees>(&self, subtrees: &S, index: u64) -> Result<Option<MmrInclusion>, S::Error> {
        let Some(peak) = self.peak_over(index) else { return Ok(None) };
        let (mut siblings, mut place) = (Vec::new(), Place { level: 0, index });
        while place != peak {
            siblings.push(subtrees.top(place.beside())?);
            place = place.above();
        }
        let siblings = BoundedList::new(siblings).expect("the highest peak is 62 levels above its items");
        Ok(Some(MmrInclusion { index, siblings }))
    }

    /// Whether `item` stands in this range at the place the proof says.
    // spec: AUDIT-2
    #[must_use]
    pub fn includes(&self, item: &Hash, proof: &MmrInclusion) -> bool {
        let index = proof.index;
        let Some(peak) = self.peak_over(index) else { return false };
        if proof.siblings.len() != usize::from(peak.level) {
            return false;
        }
        let mut place = Place { level: 0, index };
        let mut top = Self::leaf(item);
        for beside in proof.siblings.iter() {
            top = if place.index & 1 == 1 { Self::inner(beside, &top) } else { Self::inner(&top, beside) };
            place = place.above();
        }
        self.peak(peak) == Some(top)
    }

    // ---- consistency

    /// Proves that this range begins with the first `count` items; none if it has fewer.
    ///
    /// # Errors
    /// What `subtrees` says of a subtree that is needed: at most 126 are asked for.
    // spec: AUDIT-2
    pub fn prove_since<S: Subtrees>(&self, subtrees: &S, count: u64) -> Result<Option<MmrConsistency>, S::Error> {
        if count > self.count {
            return Ok(None);
        }
        let mut steps = Vec::new();
        for place in between(count, self.count) {
            steps.push(subtrees.top(place)?);
        }
        let steps = BoundedList::new(steps).expect("up to the next power of two and down again is 126 steps");
        Ok(Some(MmrConsistency { steps }))
    }

    /// Whether `later` begins with all of this range.
    // spec: AUDIT-2
    #[must_use]
    pub fn extends_to(&self, later: &Self, proof: &MmrConsistency) -> bool {
        if self.count > later.count {
            return false;
        }
        let mut range = self.clone();
        let mut steps = proof.steps.iter();
        for place in between(self.count, later.count) {
            let Some(step) = steps.next() else { return false };
            if !range.push(place.level, *step, |_, _| {}) {
                return false;
            }
        }
        steps.next().is_none() && range == *later
    }
}

/// The largest whole subtrees that fill the places from `from` up to `to`, in order.
fn between(from: u64, to: u64) -> impl Iterator<Item = Place> {
    let mut at = from;
    std::iter::from_fn(move || {
        let left = to.checked_sub(at).filter(|left| *left > 0)?;
        let fits = u64::BITS - 1 - left.leading_zeros();
        let level = u8::try_from(at.trailing_zeros().min(fits)).expect("a bit of a u64");
        let place = Place { level, index: at >> level };
        at = place.end();
        Some(place)
    })
}

impl<L> Default for Mmr<L> {
    fn default() -> Self {
        Self { count: 0, peaks: Vec::new(), log: PhantomData }
    }
}
impl<L> Clone for Mmr<L> {
    fn clone(&self) -> Self {
        Self { count: self.count, peaks: self.peaks.clone(), log: PhantomData }
    }
}
impl<L> PartialEq for Mmr<L> {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.peaks == other.peaks
    }
}
impl<L> Eq for Mmr<L> {}
impl<L> fmt::Debug for Mmr<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mmr").field("count", &self.count).field("peaks", &self.peaks).finish()
    }
}

/// The count says how many peaks there are, so nothing else does.
// spec: AUDIT-1
impl<L> Encode for Mmr<L> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.count.encode(out);
        self.peaks.iter().for_each(|peak| peak.encode(out));
    }
}
impl<L> Decode for Mmr<L> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = u64::decode(input)?;
        if count > MMR_COUNT_MAX {
            return Err(DecodeError::TooLarge { what: "items of a range", found: count, limit: MMR_COUNT_MAX });
        }
        let peaks = (0..count.count_ones()).map(|_| Hash::decode(input)).collect::<Result<_, _>>()?;
        Ok(Self { count, peaks, log: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Test;
    impl Domain for Test {
        const LEAF: Tag = Tag::new("test/mmr-leaf");
        const INNER: Tag = Tag::new("test/mmr-inner");
        const ROOT: Tag = Tag::new("test/mmr-root");
    }

    struct All(Vec<Hash>);
    impl Subtrees for All {
        type Error = std::convert::Infallible;

        /// By its definition, from the items.
        fn top(&self, place: Place) -> Result<Hash, Self::Error> {
            Ok(match place.halves() {
                None => Mmr::<Test>::leaf(&self.0[usize::try_from(place.index).expect("few items")]),
                Some([left, right]) => Mmr::<Test>::inner(&self.top(left)?, &self.top(right)?),
            })
        }
    }

    fn items(count: u8) -> All {
        All((0..count).map(|number| Hash([number; 32])).collect())
    }

    fn range(items: &All, count: usize) -> Mmr<Test> {
        Mmr::of(&items.0[..count])
    }

    /// spec: AUDIT-1. The peaks are those of the definition, and what was seen on the way are all whole subtrees.
    #[test]
    fn peaks_are_the_tops_of_the_perfect_subtrees() {
        let items = items(70);
        let mut range = Mmr::<Test>::default();
        let mut seen = std::collections::BTreeMap::new();
        for item in &items.0 {
            range.append_seen(item, |place, top| assert_eq!(seen.insert(place, top), None));
            let Ok(expected) = range.places().map(|place| items.top(place)).collect::<Result<Vec<_>, _>>();
            assert_eq!(range.peaks(), expected);
            assert_eq!(range.places().map(|place| place.end() - place.first()).sum::<u64>(), range.count());
            assert_eq!(Mmr::from_bytes(&range.to_bytes()), Ok(range.clone()));
        }
        for (place, top) in &seen {
            let Ok(expected) = items.top(*place);
            assert_eq!(*top, expected);
        }
        assert_eq!(seen.len() as u64, (0..7).map(|level| 70u64 >> level).sum::<u64>());
    }

    /// spec: AUDIT-2. Every item of every small range is proven at its place, and nowhere else, in no other range.
    #[test]
    fn items_are_proven_at_their_place_only() {
        let items = items(34);
        for count in 0..items.0.len() {
            let range = range(&items, count);
            for index in 0..count {
                let Ok(proof) = range.prove(&items, index as u64);
                let proof = proof.expect("a place of the range");
                for (other, item) in items.0.iter().enumerate() {
                    assert_eq!(range.includes(item, &proof), other == index, "{count} items, {index} as {other}");
                }
                for moved in [index as u64 + 1, index as u64 ^ 1, u64::MAX, count as u64] {
                    let moved = MmrInclusion { index: moved, ..proof.clone() };
                    assert!(!range.includes(&items.0[index], &moved), "{count} items, {index} moved to {moved:?}");
                }
                let mut longer = proof.siblings.clone().into_vec();
                longer.push(Hash::ZERO);
                let longer = MmrInclusion { siblings: BoundedList::new(longer).unwrap(), ..proof.clone() };
                assert!(!range.includes(&items.0[index], &longer));
            }
            let Ok(none) = range.prove(&items, count as u64);
            assert_eq!(none, None);
        }
    }

    /// spec: AUDIT-2. A range begins with every shorter one, and with none in which an item was changed, dropped,
    /// swapped or repeated.
    #[test]
    fn a_later_range_begins_with_the_earlier_one_only() {
        let items = items(34);
        for later in 0..items.0.len() {
            let after = range(&items, later);
            for earlier in 0..=later {
                let before = range(&items, earlier);
                let Ok(proof) = after.prove_since(&items, earlier as u64);
                let proof = proof.expect("a shorter range");
                assert!(before.extends_to(&after, &proof), "{earlier} to {later}");
                if later > earlier {
                    assert!(!after.extends_to(&before, &proof), "backwards from {later} to {earlier}");
                    assert!(!before.extends_to(&after, &MmrConsistency { steps: BoundedList::default() }));
                }
                for other in 0..earlier {
                    let mut wrong = items.0[..earlier].to_vec();
                    wrong[other] = Hash([200; 32]);
                    assert!(!Mmr::of(&wrong).extends_to(&after, &proof), "{other} of {earlier} was edited");
                }
                let mut longer = proof.steps.into_vec();
                longer.push(Hash::ZERO);
                assert!(!before.extends_to(&after, &MmrConsistency { steps: BoundedList::new(longer).unwrap() }));
            }
            let Ok(none) = after.prove_since(&items, later as u64 + 1);
            assert_eq!(none, None);
        }
    }

    /// A count near its limit takes what is allowed of hashes, and no sum overflows.
    #[test]
    fn x07_a_range_of_two_to_the_63_items_takes_no_more() {
        let full = [MMR_COUNT_MAX.to_bytes(), vec![7; 63 * 32]].concat();
        let range = Mmr::<Test>::from_bytes(&full).expect("the largest range");
        assert_eq!(range.places().map(|place| place.end() - place.first()).sum::<u64>(), MMR_COUNT_MAX);
        assert!(!range.clone().push(0, Hash::ZERO, |_, _| {}));
        for from in [0, 1, 3, 1 << 62, (1 << 62) + 1, MMR_COUNT_MAX - 1] {
            assert!(between(from, MMR_COUNT_MAX).count() <= MMR_STEPS_MAX);
            assert_eq!(between(from, MMR_COUNT_MAX).last().map(Place::end), Some(MMR_COUNT_MAX));
        }
        let above = [(MMR_COUNT_MAX + 1).to_bytes(), vec![7; 32]].concat();
        assert!(matches!(Mmr::<Test>::from_bytes(&above), Err(DecodeError::TooLarge { .. })));
        assert!(matches!(Mmr::<Test>::from_bytes(&full[..full.len() - 1]), Err(DecodeError::Truncated { .. })));
    }
}
