//! The first pass of applying a diff: each change is led, level by level, to the slot where it does something.
//!
//! Nothing is changed here. What comes out is which pages are met, what is done in each of them, and what stood in the
//! place of each change.

use crate::page::{Page, PageId, Slot, Spot};
use crate::tree::{entry, root_expected};
use crate::{Entry, Hasher, Place, ReadError, Tree, arena, bits};
use keelstone_codec::{Hash, Namespace};
use std::mem;
use std::ops::Range;
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

/// The first pass: which pages are met, and what happens in each.
pub(crate) struct Descent {
    /// Pages above come before pages below; those below one page stand together.
    pub(crate) visits: Vec<Visit>,
    pub(crate) edits: Vec<Edit>,
    pub(crate) replaced: Vec<Option<Entry>>,
}

pub(crate) struct Visit {
    pub(crate) id: PageId,
    pub(crate) page: Arc<Page>,
    pub(crate) above: Above,
    /// In [`Descent::edits`], by slot and then by key.
    pub(crate) edits: Range<usize>,
    /// In [`Descent::visits`], by slot.
    pub(crate) below: Range<usize>,
}

#[derive(Clone, Copy)]
pub(crate) enum Above {
    /// The top page of the namespace of this part of the diff.
    Part(usize),
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

impl Descent {
    pub(crate) fn run<H: Hasher>(
        tree: &Tree<H>,
        parts: &[(Namespace, Range<usize>)],
        changes: &[Change<'_>],
    ) -> Result<Self, ReadError> {
        let mut out = Self { visits: Vec::new(), edits: Vec::new(), replaced: vec![None; changes.len()] };
        // The changes of each visit of a level, one visit after the other.
        let (mut queue, mut next_queue) = (Vec::new(), Vec::new());
        let (mut ends, mut next_ends) = (Vec::new(), Vec::new());
        for (part, (namespace, range)) in parts.iter().enumerate() {
            if let Some(space) = tree.space(namespace) {
                let page = tree.pages().load(space.page, &root_expected(space))?;
                out.visits.push(Visit { id: space.page, page, above: Above::Part(part), edits: 0..0, below: 0..0 });
                queue.extend(range.clone().map(|change| u32::try_from(change).expect("a diff has fewer writes")));
                ends.push(queue.len());
            }
        }
        let mut routed: Vec<(u8, u32)> = Vec::new();
        let mut level = 0..out.visits.len();
        while !level.is_empty() {
            let mut start = 0;
            for (index, end) in level.clone().zip(&ends) {
                let page = out.visits[index].page.clone();
                let shape = &page.shape;
                routed.clear();
                routed.extend(
                    queue[start..*end]
                        .iter()
                        .map(|change| (Spot::Slot(shape.route(changes[*change as usize].key)).pack(), *change)),
                );
                start = *end;
                // Bits that are not critical are skipped on the way, so slots need not ascend with the keys.
                if !routed.is_sorted() {
                    routed.sort_unstable();
                }
                let (first_edit, first_below) = (out.edits.len(), out.visits.len());
                for group in routed.chunk_by(|a, b| a.0 == b.0) {
                    let slot = usize::from(group[0].0);
                    match arena::expected(&page.slots()[slot], shape.key(slot)) {
                        None => out.meet_entry(&page, group, changes),
                        Some((id, expected)) => {
                            let queued = next_queue.len();
                            out.meet_page(&page, group, changes, &mut next_queue);
                            if next_queue.len() > queued {
                                let page = tree.pages().load(id, &expected)?;
                                out.visits.push(Visit { id, page, above: Above::Slot(slot), edits: 0..0, below: 0..0 });
                                next_ends.push(next_queue.len());
                            }
                        }
                    }
                }
                out.visits[index].edits = first_edit..out.edits.len();
                out.visits[index].below = first_below..out.visits.len();
            }
            level = level.end..out.visits.len();
            mem::swap(&mut queue, &mut next_queue);
            mem::swap(&mut ends, &mut next_ends);
            next_queue.clear();
            next_ends.clear();
        }
        Ok(out)
    }

    /// Changes that were led to an entry.
    fn meet_entry(&mut self, page: &Page, group: &[(u8, u32)], changes: &[Change<'_>]) {
        for (slot, index) in group.iter().copied() {
            let change = &changes[index as usize];
            let at = usize::from(slot);
            let crit = bits::crit(change.key, page.shape.key(at));
            let found = entry(&page.slots()[at]).expect("the slot is an entry");
            let effective = match (crit, change.op) {
                (None, Op::Move { from, .. }) => found.place == from,
                (None, _) => true,
                (Some(_), op) => op.is_put(),
            };
            if crit.is_none() {
                self.replaced[index as usize] = Some(found);
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
            let Slot::Child { crit: below, .. } = page.slots()[at] else { unreachable!("the slot is a page") };
            match bits::crit(change.key, page.shape.key(at)).filter(|crit| *crit < below) {
                None => queue.push(index),
                Some(crit) if change.op.is_put() => self.edits.push(Edit { slot, change: index, crit: Some(crit) }),
                Some(_) => {}
            }
        }
    }
}
