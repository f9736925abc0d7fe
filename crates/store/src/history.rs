//! Earlier heights: where their records lie, and their versions, rebuilt from the nearest one at hand.

use crate::StoreError;
use crate::log;
use crate::record::Logged;
use crate::segment::Spot;
use crate::segments::Segments;
use crate::version::Version;
use keelstone_codec::{Height, Key, Namespace, Root, Value};
use keelstone_tree::{Diff, Draft, Hasher, Passed, Place, Tree, Write};
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

/// Writes gathered before they are applied, so that a long way back does not need memory for all of it at once.
const STEP_WRITES: usize = 100_000;
/// Bytes of their values, but for one write.
const STEP_BYTES: usize = 64 << 20;

/// Heads of records read in one go while the index is locked: commits wait for no more.
const STEP_HEADS: usize = 64;

/// Where a value lies, and how long it is.
pub(crate) type ValueAt = (Place, usize);

/// Who hears of the steps of a rebuild.
pub(crate) type Made<'a, H> = dyn FnMut(&Draft<H>, &[Option<ValueAt>]) + 'a;

/// Where the record of each height lies: all heights from some height to the last. Older ones are found by following
/// the records' links to their parents.
#[derive(Debug, Default)]
pub(crate) struct Index {
    low: Option<Height>,
    spots: VecDeque<Spot>,
}

impl Index {
    /// Notes the record of the height after the last.
    pub(crate) fn push(&mut self, height: Height, spot: Spot) {
        self.low.get_or_insert(height);
        self.spots.push_back(spot);
    }

    /// Forgets the heights above `height`.
    pub(crate) fn truncate(&mut self, height: Height) {
        let kept = self.low.map_or(0, |low| (height.0 + 1).saturating_sub(low.0));
        self.spots.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        if self.spots.is_empty() {
            self.low = None;
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.spots.len()
    }

    /// Lets go of the heights below `height`. Who looks for one of them finds it by the records behind it.
    pub(crate) fn forget_below(&mut self, height: Height) {
        while self.spots.len() > 1 && self.low.is_some_and(|low| low < height) {
            self.spots.pop_front();
            self.low = self.low.map(Height::next);
        }
    }

    /// Where the record of `height` lies, which is at most the height of `last`. None if that took more than
    /// [`STEP_HEADS`] reads: what was found is kept, and the next call goes on.
    pub(crate) fn find<H: Hasher>(
        &mut self,
        segments: &Segments,
        last: &Version<H>,
        height: Height,
    ) -> Result<Option<Spot>, StoreError> {
        let (Some(last_height), Some(last_record)) = (last.height, last.record) else { return Err(StoreError::Empty) };
        if self.spots.is_empty() {
            self.push(last_height, last_record);
        }
        for _ in 0..=STEP_HEADS {
            let low = self.low.expect("an index with records has a lowest height");
            if let Some(back) = height.0.checked_sub(low.0) {
                let found = usize::try_from(back).ok().and_then(|back| self.spots.get(back));
                return found.copied().map(Some).ok_or(StoreError::NotRetained { height, low, high: last_height });
            }
            let first = *self.spots.front().expect("just filled");
            let head = log::head_at(segments, first)?;
            let (Some(parent), Some(before)) = (head.parent, low.prev()) else {
                return Err(StoreError::NotRetained { height, low, high: last_height });
            };
            self.spots.push_front(parent);
            self.low = Some(before);
        }
        Ok(None)
    }
}

/// What changes in what the last version needs when commits are undone.
#[derive(Debug)]
pub(crate) struct Undone {
    pub(crate) passed: Passed,
    /// Values that live again, and their lengths.
    pub(crate) restored: Vec<(Place, u64)>,
    /// Those in whose place they are, or nothing.
    pub(crate) replaced: Vec<(Place, u64)>,
}

impl Undone {
    /// Of a step that leads back from the last version, or from where the step before it led.
    pub(crate) fn of<H: Hasher>(draft: &Draft<H>, places: &[Option<ValueAt>]) -> Self {
        let restored = places.iter().flatten().map(|(place, len)| (*place, *len as u64)).collect();
        let replaced = draft.replaced().iter().flatten();
        let replaced = replaced.map(|entry| (entry.place, u64::from(entry.value_len))).collect();
        Self { passed: draft.pass(), restored, replaced }
    }
}

/// Rebuilds the version at `height`, whose root is `expected`, from another one of the same line of history. `spot` says
/// where the record of a height on that line lies; `made` hears of each step, and where its values lie.
pub(crate) fn rebuild<H: Hasher>(
    segments: &Segments,
    base: &Version<H>,
    height: Height,
    spot: &mut dyn FnMut(Height) -> Result<Spot, StoreError>,
    expected: Root,
    made: &mut Made<'_, H>,
) -> Result<Arc<Version<H>>, StoreError> {
    let from = base.height.ok_or(StoreError::Empty)?;
    let mut tree = base.tree.clone();
    let mut steps = Steps::default();
    let backward = height < from;
    let heights: Box<dyn Iterator<Item = u64>> =
        if backward { Box::new((height.0 + 1..=from.0).rev()) } else { Box::new(from.0 + 1..=height.0) };
    for at in heights {
        let record = log::record_at(segments, spot(Height(at))?)?;
        // A record has a key once, so it can be taken in pieces, in either direction.
        for logged in record.writes {
            match backward {
                true => steps.undo(segments, logged)?,
                false => steps.redo(logged),
            }
            if steps.is_full() {
                tree = steps.apply(&tree, made)?;
            }
        }
    }
    tree = steps.apply(&tree, made)?;
    if tree.root() != expected {
        let what = format!("height {height} rebuilt from {from} has root {}, the log says {expected}", tree.root());
        return Err(StoreError::damaged("the history", 0, what));
    }
    Ok(Version::new(Some(height), base.epoch, tree, Some(spot(height)?), base.passes))
}

/// Writes of several heights put together: what each key holds afterwards, and where. As they came: of those to one key the last
/// stands.
#[derive(Default)]
pub(crate) struct Steps {
    writes: Vec<Written>,
    /// Of their values.
    bytes: usize,
}

/// What one key holds afterwards, and where.
pub(crate) struct Written {
    namespace: Namespace,
    key: Key,
    new: Option<(Place, Value)>,
}

impl Written {
    fn at(&self) -> (&Namespace, &Key) {
        (&self.namespace, &self.key)
    }
}

impl Steps {
    /// With room for so many writes.
    pub(crate) fn with_capacity(writes: usize) -> Self {
        Self { writes: Vec::with_capacity(writes), bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.writes.len() >= STEP_WRITES || self.bytes >= STEP_BYTES
    }

    fn push(&mut self, written: Written) {
        self.bytes += written.new.as_ref().map_or(0, |(_, value)| value.len());
        self.writes.push(written);
    }

    /// Adds what undoes a write of a record. Records come from the last to the first, so the oldest value stands.
    fn undo(&mut self, segments: &Segments, logged: Logged) -> Result<(), StoreError> {
        let Logged { namespace, key, old, .. } = logged;
        let new = old.map(|place| Ok::<_, StoreError>((place, segments.value_at(place)?))).transpose()?;
        self.push(Written { namespace, key, new });
        Ok(())
    }

    /// Adds a write of a record. Records come from the first to the last.
    pub(crate) fn redo(&mut self, logged: Logged) {
        let Logged { namespace, key, new, .. } = logged;
        self.push(Written { namespace, key, new });
    }

    /// Applies the writes, and is empty again.
    fn apply<H: Hasher>(&mut self, tree: &Tree<H>, made: &mut Made<'_, H>) -> Result<Tree<H>, StoreError> {
        let writes = mem::take(self).settle(&mut |_, _| {});
        let (draft, places) = prepare(tree, writes.into_iter())?;
        made(&draft, &places);
        Ok(draft.commit(|index| places[index].expect("asked only for values").0))
    }

    /// What each key holds in the end, in order. `superseded` hears of each value that a later write replaces, and of its length.
    pub(crate) fn settle(self, superseded: &mut dyn FnMut(Place, usize)) -> Vec<Written> {
        let mut all = self.writes;
        // What was written later stays behind. Each record is in order already, which such a sort makes use of.
        all.sort_by(|one, other| one.at().cmp(&other.at()));
        all.dedup_by(|later, kept| {
            let is_same = later.at() == kept.at();
            if is_same {
                mem::swap(later, kept);
                later.new.iter().for_each(|(place, value)| superseded(*place, value.len()));
            }
            is_same
        });
        all
    }
}

/// The version that settled writes lead to, and where the value of each of them lies and how long it is.
pub(crate) fn prepare<H: Hasher>(
    tree: &Tree<H>,
    writes: impl ExactSizeIterator<Item = Written>,
) -> Result<(Draft<H>, Vec<Option<ValueAt>>), StoreError> {
    let mut places = Vec::with_capacity(writes.len());
    let mut sorted = Vec::with_capacity(writes.len());
    for Written { namespace, key, new } in writes {
        places.push(new.as_ref().map(|(place, value)| (*place, value.len())));
        sorted.push((namespace, Write { key, value: new.map(|(_, value)| value) }));
    }
    let diff = Diff::from_sorted(sorted).expect("they are in order, and each key is there once");
    Ok((tree.prepare(&diff)?, places))
}
