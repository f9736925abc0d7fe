//! The first pass of applying a diff: each change is led, level by level, to the slot where it does something.
//!
//! Nothing is changed here. What comes out is which pages are met, what is done in each of them, and what stood in the
//! place of each change.

use crate::arena::{Lies, Pages, Reading};
use crate::page::{Page, PageId, Slot, Spot};
use crate::stored::Expected;
use crate::tree::{entry, root_expected};
use crate::{Entry, Hasher, Place, ReadError, Tree, arena, bits};
use keelstone_codec::{Hash, Namespace};
use std::hint::black_box;
use std::mem;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// One change of one key.
pub(crate) struct Change<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) op: Op,
}

#[derive(Clone, Copy)]
pub(crate) enum Op {
    Put { value_len: u32, value_hash: Hash },
    Delete,
    Move { from: Place, to: Place },
    Touch,
}

impl Op {
    pub(crate) fn is_put(&self) -> bool {
        matches!(self, Self::Put { .. })
    }
}

/// Pages that are gone through together: enough that their waits are one, few enough that what was touched is still in
/// the nearest cache.
pub(crate) const TOGETHER: usize = 16;
/// Fewer changes are led down in one go: waking a thread costs as much as some ten of them. Tests divide few as well.
const SPREAD_MIN: usize = if cfg!(test) { 8 } else { 256 };
/// A descent divides at a level with this many pages for each limb, so that limbs come out alike.
const LIMB_PAGES: usize = if cfg!(test) { 1 } else { 2 };

/// The first pass: which pages are met, and what happens in each.
pub(crate) struct Descent<'r> {
    /// Pages above come before pages below; those below one page stand together.
    pub(crate) visits: Vec<Visit<'r>>,
    pub(crate) edits: Vec<Edit>,
    /// What stood in the place of the changes from `first` on.
    pub(crate) replaced: Vec<Option<Entry>>,
    first: usize,
    /// Visits from here on were not gone into: they are parts of limbs.
    pub(crate) open: usize,
}

pub(crate) struct Visit<'r> {
    pub(crate) id: PageId,
    pub(crate) page: Met<'r>,
    pub(crate) lies: Lies,
    pub(crate) above: Above,
    /// In [`Descent::edits`], by slot and then by key.
    pub(crate) edits: Range<usize>,
    /// In [`Descent::visits`], by slot.
    pub(crate) below: Range<usize>,
}

/// A page on the way down.
#[derive(Clone)]
pub(crate) enum Met<'r> {
    /// It was in memory and stays there.
    Here(&'r Arc<Page>),
    /// It had to be read.
    Read(Arc<Page>),
}

impl<'r> Met<'r> {
    fn at<'e, H: Hasher>(
        pages: &Pages<H>,
        reading: &'r Reading<'_>,
        id: PageId,
        expected: impl FnOnce() -> Expected<'e>,
    ) -> Result<(Self, Lies), ReadError> {
        match reading.touch(id) {
            Some(page) => Ok((Self::Here(page), reading.lies(id))),
            None => Ok((Self::Read(pages.load(id, &expected())?), pages.lies(id))),
        }
    }
}

impl Deref for Met<'_> {
    type Target = Arc<Page>;
    fn deref(&self) -> &Arc<Page> {
        match self {
            Self::Here(page) => page,
            Self::Read(page) => page,
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Above {
    /// Nothing: the descent began here. Of which part of the diff it is the top page, or the how manieth of a limb.
    Nothing(usize),
    /// A page in this slot of the page above.
    Slot(usize),
}

/// What a change does at a slot.
#[derive(Clone, Copy)]
pub(crate) struct Edit {
    pub(crate) slot: u8,
    pub(crate) change: u32,
    /// The bit at which a new key parts from the slot; none if the change is to the slot's own key.
    pub(crate) crit: Option<u16>,
}

/// What a descent found in the place of the changes from `first` on.
pub(crate) struct Told {
    first: usize,
    replaced: Vec<Option<Entry>>,
}

/// Pages next to one another at which a descent goes on, and the changes it takes there. Limbs of one descent have no
/// page and no change in common.
pub(crate) struct Limb<'r> {
    pages: Vec<(PageId, Met<'r>, Lies)>,
    front: Front,
}

/// The changes of each visit of a level, one visit after the other.
#[derive(Default)]
struct Front {
    queue: Vec<u32>,
    /// Where in the queue the changes of each visit end.
    ends: Vec<usize>,
}

impl<'r> Descent<'r> {
    fn new(changes: Range<usize>) -> Self {
        Self {
            visits: Vec::new(),
            edits: Vec::new(),
            replaced: vec![None; changes.len()],
            first: changes.start,
            open: 0,
        }
    }

    /// Descends from the top. If changes are many, it stops where they have spread over enough pages to go on with in
    /// so many limbs.
    pub(crate) fn run<H: Hasher>(
        tree: &Tree<H>,
        reading: &'r Reading<'_>,
        parts: &[(Namespace, Range<usize>)],
        changes: &[Change<'_>],
        limbs: usize,
    ) -> Result<(Self, Vec<Limb<'r>>), ReadError> {
        let mut out = Self::new(0..changes.len());
        let mut front = Front::default();
        for (part, (namespace, range)) in parts.iter().enumerate() {
            if let Some(space) = tree.space(namespace) {
                let (page, lies) = Met::at(tree.pages(), reading, space.page, || root_expected(space))?;
                let above = Above::Nothing(part);
                out.visits.push(Visit { id: space.page, page, lies, above, edits: 0..0, below: 0..0 });
                front.queue.extend(range.clone().map(|change| u32::try_from(change).expect("a diff has fewer writes")));
                front.ends.push(front.queue.len());
            }
        }
        let stop = if limbs > 1 && changes.len() >= SPREAD_MIN { limbs * LIMB_PAGES } else { usize::MAX };
        let front = out.go_down(tree.pages(), reading, changes, front, stop)?;
        let limbs = front.divide(&out.visits[out.open..], limbs);
        Ok((out, limbs))
    }

    /// Goes on where another stopped.
    pub(crate) fn go_on<H: Hasher>(
        tree: &Tree<H>,
        reading: &'r Reading<'_>,
        limb: Limb<'r>,
        changes: &[Change<'_>],
    ) -> Result<Self, ReadError> {
        let Limb { pages, front } = limb;
        // Its changes lie together, but for those that found their place further up.
        let first = front.queue.iter().min().map_or(0, |change| *change as usize);
        let end = front.queue.iter().max().map_or(0, |change| *change as usize + 1);
        let mut out = Self::new(first..end);
        out.visits.extend(pages.into_iter().enumerate().map(|(number, (id, page, lies))| Visit {
            id,
            page,
            lies,
            above: Above::Nothing(number),
            edits: 0..0,
            below: 0..0,
        }));
        out.go_down(tree.pages(), reading, changes, front, usize::MAX)?;
        Ok(out)
    }

    /// Says what it found in the place of its changes.
    pub(crate) fn tell(&mut self) -> Told {
        Told { first: self.first, replaced: mem::take(&mut self.replaced) }
    }

    /// Takes in what a limb found.
    pub(crate) fn learn(&mut self, told: Told) {
        for (to, from) in self.replaced[told.first - self.first..].iter_mut().zip(told.replaced) {
            *to = to.or(from);
        }
    }

    /// Goes down level by level, to the end or to a level of at least `stop` visits, and says what is left to do there.
    ///
    /// Far down every page is in no cache. So it is done in steps, each for some pages together, and before each step all
    /// it will look at is touched: then these waits are one.
    fn go_down<H: Hasher>(
        &mut self,
        pages: &Pages<H>,
        reading: &'r Reading<'_>,
        changes: &[Change<'_>],
        mut front: Front,
        stop: usize,
    ) -> Result<Front, ReadError> {
        let mut next = Front::default();
        let mut routed: Vec<(u8, u32)> = Vec::new();
        let mut ends: Vec<usize> = Vec::with_capacity(TOGETHER);
        let mut level = 0..self.visits.len();
        while !level.is_empty() && level.len() < stop {
            let mut start = 0;
            for first in level.clone().step_by(TOGETHER) {
                let visits = first..level.end.min(first + TOGETHER);
                black_box(self.visits[visits.clone()].iter().fold(0, |sum, visit| sum ^ visit.page.shape.touch()));
                routed.clear();
                ends.clear();
                for index in visits.clone() {
                    let shape = &self.visits[index].page.shape;
                    let end = front.ends[index - level.start];
                    let own = routed.len();
                    routed.extend(
                        front.queue[start..end]
                            .iter()
                            .map(|change| (Spot::Slot(shape.route(changes[*change as usize].key)).pack(), *change)),
                    );
                    start = end;
                    // Bits that are not critical are skipped on the way, so slots need not ascend with the keys.
                    if !routed[own..].is_sorted() {
                        routed[own..].sort_unstable();
                    }
                    ends.push(routed.len());
                }
                self.touch(reading, &visits, &routed, &ends);
                let mut at = 0;
                for (index, end) in visits.zip(&ends) {
                    let page = self.visits[index].page.clone();
                    let (first_edit, first_below) = (self.edits.len(), self.visits.len());
                    for group in routed[at..*end].chunk_by(|a, b| a.0 == b.0) {
                        let slot = usize::from(group[0].0);
                        let Some(id) = page.slot(slot).below() else {
                            self.meet_entry(&page, group, changes);
                            continue;
                        };
                        let queued = next.queue.len();
                        self.meet_page(&page, group, changes, &mut next.queue);
                        if next.queue.len() > queued {
                            let expected = || {
                                let expected = arena::expected(page.slot(slot), page.shape.key(slot));
                                expected.expect("the slot is a page").1
                            };
                            let (page, lies) = Met::at(pages, reading, id, expected)?;
                            let above = Above::Slot(slot);
                            self.visits.push(Visit { id, page, lies, above, edits: 0..0, below: 0..0 });
                            next.ends.push(next.queue.len());
                        }
                    }
                    self.visits[index].edits = first_edit..self.edits.len();
                    self.visits[index].below = first_below..self.visits.len();
                    at = *end;
                }
            }
            level = level.end..self.visits.len();
            mem::swap(&mut front, &mut next);
            next.queue.clear();
            next.ends.clear();
        }
        self.open = level.start;
        Ok(front)
    }

    /// Touches the slots that changes were routed to, their keys, and the pages behind them. `ends` says where in `routed`
    /// those of each visit end.
    fn touch(&self, reading: &Reading<'_>, visits: &Range<usize>, routed: &[(u8, u32)], ends: &[usize]) {
        let mut at = 0;
        let mut sum = 0;
        let mut below = [PageId(0); TOGETHER];
        let mut count = 0;
        for (visit, end) in self.visits[visits.clone()].iter().zip(ends) {
            for (slot, _) in &routed[at..*end] {
                let slot = usize::from(*slot);
                sum ^= visit.page.shape.key(slot).first().copied().unwrap_or_default();
                if let (Some(id), true) = (visit.page.slot(slot).below(), count < TOGETHER) {
                    below[count] = id;
                    count += 1;
                }
            }
            at = *end;
        }
        // First where the pages are, then the pages.
        sum ^= below[..count].iter().fold(0, |sum, id| sum ^ u8::from(reading.is_used(*id)));
        let pages = below[..count].iter().filter_map(|id| reading.touch(*id));
        black_box(pages.fold(sum, |sum, page| sum ^ u8::from(page.memory() == 0)));
    }

    /// Changes that were led to an entry.
    fn meet_entry(&mut self, page: &Page, group: &[(u8, u32)], changes: &[Change<'_>]) {
        for (slot, index) in group.iter().copied() {
            let change = &changes[index as usize];
            let at = usize::from(slot);
            let crit = bits::crit(change.key, page.shape.key(at));
            let found = entry(page.slot(at)).expect("the slot is an entry");
            let effective = match (crit, change.op) {
                (None, Op::Move { from, .. }) => found.place == from,
                (None, _) => true,
                (Some(_), op) => op.is_put(),
            };
            if crit.is_none() {
                self.replaced[index as usize - self.first] = Some(found);
            }
            if effective {
                self.edits.push(Edit { slot, change: index, crit });
            }
        }
    }

    /// Changes that were led to a page below: they go on there, or part from all its keys.
    fn meet_page(&mut self, page: &Page, group: &[(u8, u32)], changes: &[Change<'_>], queue: &mut Vec<u32>) {
        for (slot, index) in group.iter().copied() {
            let change = &changes[index as usize];
            let at = usize::from(slot);
            let Slot::Child { crit: below, .. } = *page.slot(at) else { unreachable!("the slot is a page") };
            match bits::crit(change.key, page.shape.key(at)).filter(|crit| *crit < below) {
                None => queue.push(index),
                Some(crit) if change.op.is_put() => self.edits.push(Edit { slot, change: index, crit: Some(crit) }),
                Some(_) => {}
            }
        }
    }
}

impl Front {
    /// Divides what is left to do at `visits` into at most so many limbs, each with about as many changes.
    fn divide<'r>(self, visits: &[Visit<'r>], limbs: usize) -> Vec<Limb<'r>> {
        let mut out: Vec<Limb<'r>> = Vec::new();
        let (mut start, mut full) = (0, 0);
        for (visit, end) in visits.iter().zip(&self.ends) {
            if start >= full {
                full = self.queue.len() * (out.len() + 1) / limbs;
                out.push(Limb { pages: Vec::new(), front: Self::default() });
            }
            let Limb { pages, front } = out.last_mut().expect("there is one by now");
            pages.push((visit.id, visit.page.clone(), visit.lies));
            front.queue.extend_from_slice(&self.queue[start..*end]);
            front.ends.push(front.queue.len());
            start = *end;
        }
        out
    }
}
