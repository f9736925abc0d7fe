//! Applying a sorted diff to a version: one descent, new pages for what changed, hashes in lanes.
//!
//! Three passes, none of which recurses:
//!
//! 1. *Descend*, level by level, all namespaces at once. Each write is led to the slot its bits lead to. If that is an
//!    entry, the write replaces it, deletes it or stands beside it; if it is a page below, the write goes down, unless
//!    its key parts from the page's prefix, so that it belongs beside that page.
//! 2. *Build*, from the lowest pages up. A page whose slots stay the same is copied and patched. One that gains or
//!    loses slots is put together anew: too many slots become pages of their own, and where few are left these move up
//!    into the page above. Every node that has to be hashed is noted under its height.
//! 3. *Hash*, for one group of new pages after another, height by height over the pages of a group, so that lanes are
//!    full and the pages still in a near cache.
//!
//! Many changes are divided where they have spread over enough pages: the subtrees below, the *limbs*, are descended and
//! built by several threads, and what is above them when they are done. What comes out is the same, however many there are.
//!
//! Until it is committed a [`Draft`] is nobody's: dropping it leaves no trace.

use crate::arena::{APART_AHEAD, Pages};
use crate::descent::{Above, Change, Descent, Edit, Op, TOGETHER, Told, Visit};
use crate::fresh::{NewPage, NewPages, State};
use crate::page::{Base, Node, Origin, Page, PageId, SLOTS_MAX, Shape, Slot};
use crate::state::{Space, StateTree};
use crate::{Diff, Entry, Hasher, PageAt, Place, ReadError, Totals, Tree, bits};
use keelstone_codec::{Hash, Key, Namespace, Root};
use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// A subtree with at least so many slots is worth a page; what is left of a changed page that is not moves into the page above
/// (spec: TREE-17).
const SMALL: usize = 8;
/// Empty lists kept to be used again: about as many as are open at a time.
const SCRATCH_MAX: usize = 128;
/// Limbs for each thread, so that nobody waits for long for the one whose limb takes longest.
const LIMBS_EACH: usize = 4;
/// Numbers for new pages taken at a time.
const RESERVED: usize = 64;

/// The version a diff leads to, not yet one: its root is known, and nothing is shared or kept before
/// [`Draft::commit`].
pub struct Draft<H: Hasher> {
    base: Tree<H>,
    spaces: Vec<Space>,
    state: StateTree,
    /// Of each who built some.
    pages: Vec<Vec<NewPage>>,
    retired: Vec<Retired>,
    replaced: Vec<Option<Entry>>,
    moved: Vec<Moved>,
    value_hashes: Vec<Option<Hash>>,
}

/// A value that a rewrite notes at another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where it was.
    pub from: Place,
    /// Where it is noted.
    pub to: Place,
    /// Bytes of the value.
    pub len: u32,
}

/// A page that the new version does without.
struct Retired {
    id: PageId,
    /// What it can be written beside, or was.
    base: Option<PageAt>,
    /// What the page in its place can be written beside.
    heir: Option<PageAt>,
}

/// What changes in what the last version needs of the disk, when another becomes the last.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Passed {
    /// Pages that are garbage from now on.
    pub unneeded: Vec<PageAt>,
    /// Pages that are not, although a flush beside has just let go of them ([`crate::Written::unneeded`]).
    pub needed: Vec<PageAt>,
}

impl<H: Hasher> Draft<H> {
    /// The root after the diff.
    #[must_use]
    pub fn root(&self) -> Root {
        self.state.root()
    }

    /// Entries and bytes after the diff.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.state.totals()
    }

    /// The version the diff was applied to.
    #[must_use]
    pub fn base(&self) -> &Tree<H> {
        &self.base
    }

    /// What each write of the diff found in place, in the order of [`Diff::iter`]; none where the key was absent.
    #[must_use]
    pub fn replaced(&self) -> &[Option<Entry>] {
        &self.replaced
    }

    /// The values that [`Tree::rewrite`] notes at other places: those of the rewrites whose values were still where they should move from.
    #[must_use]
    pub fn moved(&self) -> &[Moved] {
        &self.moved
    }

    /// Says that this becomes the last version, in the place of the one it was applied to; what that one needed of the disk
    /// and this one does not becomes garbage. A page is needed by who stands beside it too (spec: TREE-20). Each page is passed
    /// by once: if the version before is the last again later, its pages have been counted.
    #[must_use]
    pub fn pass(&self) -> Passed {
        let reading = self.base.pages().reading();
        let mut passed = Passed::default();
        let told = reading.pass(self.retired.iter().map(|retired| retired.id));
        for (Retired { base, heir, .. }, told) in self.retired.iter().zip(told) {
            let Some(written) = told else { continue };
            let is_beside = written.is_none_or(|(_, is_whole)| !is_whole);
            let mut heir = *heir;
            for needed in [written.map(|(at, _)| at), base.filter(|_| is_beside)].into_iter().flatten() {
                match heir {
                    Some(at) if at == needed => heir = None,
                    _ => passed.unneeded.push(needed),
                }
            }
            passed.needed.extend(heir);
        }
        passed
    }

    /// The hash of each value the diff writes, in the order of [`Diff::iter`]; none for deletions.
    #[must_use]
    pub fn value_hashes(&self) -> &[Option<Hash>] {
        &self.value_hashes
    }

    /// Makes it a version. `place` says where the value of each write is, by the write's index in [`Diff::iter`]; it
    /// is asked only for writes that put a value.
    #[must_use]
    pub fn commit(mut self, mut place: impl FnMut(usize) -> Place) -> Tree<H> {
        let pages = self.base.pages().clone();
        let roots = self.spaces.iter().map(|space| space.page).collect();
        let hashes = self.value_hashes.iter().enumerate();
        let places: Vec<Place> = hashes.map(|(index, hash)| hash.map_or(Place(0), |_| place(index))).collect();
        let new = mem::take(&mut self.pages);
        let retired = self.retired.iter().map(|retired| retired.id).collect();
        let number = pages.publish(Some(self.base.number()), roots, retired, new, &places);
        Tree::assemble(pages, number, mem::take(&mut self.spaces), mem::take(&mut self.state))
    }
}

impl<H: Hasher> Drop for Draft<H> {
    fn drop(&mut self) {
        self.base.pages().give_back(self.pages.iter().flatten().map(|new| new.id));
    }
}
impl<H: Hasher> fmt::Debug for Draft<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft")
            .field("root", &self.root())
            .field("pages", &self.pages.iter().flatten().count())
            .finish_non_exhaustive()
    }
}

/// One thing to write anew where it is; see [`Tree::rewrite`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Where.
    pub namespace: Namespace,
    /// The key.
    pub key: Key,
    /// The old and the new place of its value; without one, only the pages on its way are made anew.
    pub moved: Option<(Place, Place)>,
}

impl<H: Hasher> Tree<H> {
    /// Applies a diff to this version. Repeatable, and nothing is shared before [`Draft::commit`].
    ///
    /// # Errors
    /// [`ReadError`] if a page on the way of a write could not be read.
    pub fn prepare(&self, diff: &Diff) -> Result<Draft<H>, ReadError> {
        self.prepare_with(diff, |_| {})
    }

    /// As [`Tree::prepare`]. `found` hears what each write finds in place (see [`Draft::replaced`]) as soon as that is
    /// known, before the nodes are hashed, so that a store can write its log meanwhile.
    ///
    /// # Errors
    /// As [`Tree::prepare`]; after `found` was called there are none.
    pub fn prepare_with(&self, diff: &Diff, found: impl FnOnce(&[Option<Entry>])) -> Result<Draft<H>, ReadError> {
        let mut changes = Vec::with_capacity(diff.len());
        let mut value_hashes = Vec::with_capacity(diff.len());
        let mut parts = Vec::with_capacity(diff.parts().len());
        for (namespace, writes) in diff.parts() {
            let start = changes.len();
            let values: Vec<&[u8]> = writes.iter().filter_map(|write| write.value.as_deref()).collect();
            let mut hashes = vec![Hash::ZERO; values.len()];
            H::hash_many(&values, &mut hashes);
            let mut hashes = hashes.into_iter();
            for write in writes {
                let hash = write.value.as_ref().and_then(|_| hashes.next());
                let op = match (&write.value, hash) {
                    (Some(value), Some(value_hash)) => {
                        Op::Put { value_len: u32::try_from(value.len()).expect("at most 8 MiB"), value_hash }
                    }
                    _ => Op::Delete,
                };
                value_hashes.push(hash);
                changes.push(Change { key: &write.key, op });
            }
            parts.push((namespace.clone(), start..changes.len()));
        }
        self.apply(&parts, &changes, value_hashes, &|_| true, found)
    }

    /// Makes a version of the same root in which values are noted at new places, and all pages on the way to the given
    /// keys are new and so unwritten. Of two rewrites of one key the one with a move stands; a value that is no longer
    /// at the place it should move from stays where it is. [`Draft::commit`] asks for no places. Nothing is written beside a page
    /// unless `stays` says that it is to stay where it lies.
    ///
    /// # Errors
    /// [`ReadError`] if a page on the way could not be read.
    pub fn rewrite(&self, rewrites: &[Rewrite], stays: impl Fn(PageAt) -> bool + Sync) -> Result<Draft<H>, ReadError> {
        let mut sorted: BTreeMap<(&Namespace, &Key), Option<(Place, Place)>> = BTreeMap::new();
        for Rewrite { namespace, key, moved } in rewrites {
            let known = sorted.entry((namespace, key)).or_default();
            *known = moved.or(*known);
        }
        let mut changes = Vec::with_capacity(sorted.len());
        let mut parts: Vec<(Namespace, Range<usize>)> = Vec::new();
        for ((namespace, key), moved) in sorted {
            let op = moved.map_or(Op::Touch, |(from, to)| Op::Move { from, to });
            changes.push(Change { key, op });
            match parts.last_mut() {
                Some((last, range)) if last == namespace => range.end += 1,
                _ => parts.push((namespace.clone(), changes.len() - 1..changes.len())),
            }
        }
        let mut draft = self.apply(&parts, &changes, Vec::new(), &stays, |_| {})?;
        assert_eq!(draft.root(), self.root(), "rewriting changes no content");
        let moved = changes.iter().zip(&draft.replaced).filter_map(|(change, found)| match (change.op, found) {
            (Op::Move { from, to }, Some(Entry { place, value_len: len, .. })) if *place == from => {
                Some(Moved { from, to, len: *len })
            }
            _ => None,
        });
        draft.moved = moved.collect();
        Ok(draft)
    }

    fn apply(
        &self,
        parts: &[(Namespace, Range<usize>)],
        changes: &[Change<'_>],
        value_hashes: Vec<Option<Hash>>,
        stays: &Stays<'_>,
        found: impl FnOnce(&[Option<Entry>]),
    ) -> Result<Draft<H>, ReadError> {
        let (pages, hands) = (self.pages(), self.pages().hands());
        let reading = pages.reading();
        let wanted = if hands.threads() > 1 { hands.threads() * LIMBS_EACH } else { 1 };
        let (mut descent, limbs) = Descent::run(self, &reading, parts, changes, wanted)?;
        let descents: Vec<OnceLock<Descent<'_>>> = limbs.iter().map(|_| OnceLock::new()).collect();
        let mut failed = None;
        let grown = hands.relay(
            limbs.into_iter().zip(&descents).collect(),
            |(limb, place)| match Descent::go_on(self, &reading, limb, changes) {
                Ok(mut limb) => (Ok(limb.tell()), Some(place.get_or_init(|| limb))),
                Err(error) => (Err(error), None),
            },
            |told: Vec<Result<Told, ReadError>>| {
                let learned = told.into_iter().try_for_each(|told| told.map(|told| descent.learn(told)));
                match learned {
                    Ok(()) => found(&descent.replaced),
                    Err(error) => failed = Some(error),
                }
            },
            |limb: Option<&Descent<'_>>| limb.map(|limb| Builder::new(changes, limb, pages, stays).limb()),
            // Pages that are gone are taken apart by whoever is done first.
            || pages.take_apart(APART_AHEAD),
        );
        let (mut built, mut outcomes): (Vec<Built>, Vec<Outcome<'_>>) = (Vec::new(), Vec::new());
        for limb in grown.into_iter().flatten() {
            built.push(limb.built);
            outcomes.extend(limb.outcomes);
        }
        if let Some(error) = failed {
            pages.give_back(built.iter().flat_map(|built| &built.new).map(|new| new.id));
            return Err(error);
        }
        let mut builder = Builder::new(changes, &descent, pages, stays);
        let tops = builder.run(parts, outcomes);
        let Built { new, retired } = builder.finish();

        let mut spaces = Vec::with_capacity(self.spaces().len() + parts.len());
        let mut changed = Vec::new();
        let mut old = self.spaces().iter().peekable();
        for ((namespace, _), top) in parts.iter().zip(tops) {
            while let Some(space) = old.next_if(|space| space.name < *namespace) {
                spaces.push(space.clone());
            }
            let before = old.next_if(|space| space.name == *namespace);
            match top {
                Top::Same => spaces.extend(before.cloned()),
                // spec: TREE-6
                Top::Gone => {}
                Top::Old { .. } | Top::New(_) => {
                    let (page, Node { hash, totals }) = match top {
                        Top::New(index) => (new[index].id, new[index].page.top()),
                        Top::Old { page, node } => (page, node),
                        Top::Same | Top::Gone => unreachable!("handled above"),
                    };
                    changed.push(spaces.len());
                    spaces.push(Space { name: namespace.clone(), totals, hash, page, leaf: Hash::ZERO });
                }
            }
        }
        spaces.extend(old.cloned());

        changed.into_iter().for_each(|index| spaces[index].seal::<H>());
        let state = StateTree::new::<H>(&spaces);
        built.push(Built { new, retired });
        let (pages, retired): (Vec<Vec<NewPage>>, Vec<Vec<Retired>>) =
            built.into_iter().map(|Built { new, retired }| (new, retired)).unzip();
        let (retired, replaced) = (retired.into_iter().flatten().collect(), descent.replaced);
        Ok(Draft { base: self.clone(), spaces, state, pages, retired, replaced, moved: Vec::new(), value_hashes })
    }
}

/// What becomes of a namespace's top page.
enum Top {
    Same,
    Gone,
    /// A page that was there before, further down, or that was made by who built a limb.
    Old {
        page: PageId,
        node: Node,
    },
    New(usize),
}

/// What becomes of a page.
enum Outcome<'a> {
    Same,
    /// A new page in the same place, with its root at the same critical bit.
    Page(usize),
    /// Such a page, made and hashed by who built a limb: the slot for it, and whether its hash is another than before.
    Made(Box<(Slot, bool)>),
    /// These slots, which may be none, one, or a few that want to move up.
    Pieces(Pieces<'a>),
}

/// Slots in order, and the nodes between them.
#[derive(Default)]
struct Pieces<'a> {
    slots: Vec<Piece<'a>>,
    gaps: Vec<Gap>,
}

#[derive(Clone, Copy)]
struct Piece<'a> {
    /// The key of an entry; of a page below, any bytes that begin with its prefix.
    key: &'a [u8],
    slot: Slot,
    state: State,
    /// The slot of the page that it follows, if it does.
    from: Option<Origin>,
}

#[derive(Clone, Copy)]
struct Gap {
    crit: u16,
    /// The node as it was, if it is the same node.
    node: Option<Node>,
}

/// What was built, all of it hashed.
struct Built {
    new: Vec<NewPage>,
    retired: Vec<Retired>,
}

/// What was built of a limb, and what becomes of each page it began with.
struct Limb<'a> {
    built: Built,
    outcomes: Vec<Outcome<'a>>,
}

/// Whether a page is to stay where it lies, so that others may be written beside it.
type Stays<'a> = dyn Fn(PageAt) -> bool + Sync + 'a;

/// A subtree that is not a page yet.
#[derive(Clone, Copy)]
pub(crate) struct Subtree {
    pub(crate) slots: usize,
    /// How high it stands above its entries, in pages: the highest of its slots. What is below pages that were there is not known.
    pub(crate) level: u16,
}

impl Subtree {
    /// Whether it becomes a page where it comes together with another: if one page has no room for both, or if the other stands higher,
    /// so that what is above pages is pages, and ways to entries are short.
    // spec: TREE-17
    pub(crate) fn becomes_page(self, beside: Self) -> bool {
        self.slots >= SMALL && (self.slots + beside.slots > SLOTS_MAX || self.level < beside.level)
    }

    /// It as a page.
    pub(crate) fn page(self) -> Self {
        Self { slots: 1, level: self.level + 1 }
    }

    /// Both, come together.
    pub(crate) fn with(self, other: Self) -> Self {
        Self { slots: self.slots + other.slots, level: self.level.max(other.level) }
    }
}

/// The second pass.
struct Builder<'a, H> {
    changes: &'a [Change<'a>],
    descent: &'a Descent<'a>,
    arena: &'a Pages<H>,
    new: NewPages,
    /// Numbers for new pages.
    ids: Vec<PageId>,
    retired: Vec<Retired>,
    /// Whether new pages may be written beside what lies there: a page in whose place one comes, or what that was written beside.
    stays: &'a Stays<'a>,
    /// What the page that was built last can be written beside.
    heir: Option<PageAt>,
    /// Empty lists to be used again.
    scratch: Vec<Pieces<'a>>,
}

impl<'a, H: Hasher> Builder<'a, H> {
    fn new(changes: &'a [Change<'a>], descent: &'a Descent<'a>, arena: &'a Pages<H>, stays: &'a Stays<'a>) -> Self {
        let (new, ids, retired) = (NewPages::new(arena.spare()), Vec::new(), Vec::new());
        Self { changes, descent, arena, new, ids, retired, stays, heir: None, scratch: Vec::new() }
    }

    /// Builds all new pages and says what becomes of each part's namespace. `open` is what became of the pages that limbs
    /// began with.
    fn run(&mut self, parts: &[(Namespace, Range<usize>)], open: Vec<Outcome<'a>>) -> Vec<Top> {
        let mut tops: Vec<Option<Top>> = parts.iter().map(|_| None).collect();
        self.climb(open, |builder, part, outcome| tops[part] = Some(builder.top(outcome)));
        let found = |(top, (_, range)): (Option<Top>, &(Namespace, Range<usize>))| match top {
            Some(top) => top,
            None => self.found(range.clone()),
        };
        tops.into_iter().zip(parts).map(found).collect()
    }

    /// Builds all new pages of a limb.
    fn limb(mut self) -> Limb<'a> {
        let mut outcomes = Vec::new();
        self.climb(Vec::new(), |_, _, outcome| outcomes.push(outcome));
        self.new.hash::<H>();
        for outcome in &mut outcomes {
            match outcome {
                Outcome::Page(new) => {
                    let (slot, state) = self.new.child(*new);
                    *outcome = Outcome::Made(Box::new((slot, state != State::Clean)));
                }
                Outcome::Pieces(pieces) => {
                    for piece in &mut pieces.slots {
                        if let State::New(new) = piece.state {
                            (piece.slot, piece.state) = (self.new.child(new).0, State::Touched);
                        }
                    }
                }
                Outcome::Same | Outcome::Made(_) => {}
            }
        }
        Limb { built: self.finish(), outcomes }
    }

    /// Hashes what is left to hash.
    fn finish(mut self) -> Built {
        self.new.hash::<H>();
        let (new, spare) = self.new.into_parts();
        self.arena.give_back_spare(spare);
        self.arena.give_back(self.ids);
        Built { new, retired: self.retired }
    }

    /// The slot for a page below that is new, and its state.
    fn made(&self, outcome: &Outcome<'a>) -> Option<(Slot, State)> {
        match outcome {
            Outcome::Page(new) => Some(self.new.child(*new)),
            Outcome::Made(made) => Some((made.0, if made.1 { State::Touched } else { State::Clean })),
            Outcome::Same | Outcome::Pieces(_) => None,
        }
    }

    /// Goes through the pages that were met and tells what becomes of each one the descent began with; `open` has what
    /// became of those it did not go into.
    fn climb(&mut self, open: Vec<Outcome<'a>>, mut top: impl FnMut(&mut Self, usize, Outcome<'a>)) {
        let Descent { visits, open: stopped, .. } = self.descent;
        let mut outcomes: Vec<Outcome<'a>> = Vec::new();
        outcomes.resize_with(*stopped, || Outcome::Same);
        outcomes.extend(open);
        assert_eq!(outcomes.len(), visits.len(), "what a descent left open was built by others");
        // From the lowest level up, and on each level some pages together, so that their waits are one.
        let mut end = visits.len();
        while end > 0 {
            let start = end.saturating_sub(TOGETHER);
            black_box(visits[start..end].iter().fold(0, |sum, visit| sum ^ visit.page.touch()));
            for (index, visit) in visits[start..end].iter().enumerate().rev() {
                let index = start + index;
                if index < *stopped {
                    let outcome = self.visit(visit, &mut outcomes[visit.below.clone()]);
                    if !matches!(outcome, Outcome::Same) {
                        let (base, heir) = (visit.page.base.map(|base| base.at()), self.heir.take());
                        self.retired.push(Retired { id: visit.id, base, heir });
                    }
                    outcomes[index] = outcome;
                }
            }
            end = start;
        }
        for (visit, outcome) in visits.iter().zip(&mut outcomes) {
            let Above::Nothing(number) = visit.above else { break };
            top(self, number, mem::replace(outcome, Outcome::Same));
        }
    }

    /// A number for a new page.
    fn id(&mut self) -> PageId {
        if self.ids.is_empty() {
            self.arena.reserve_many(RESERVED, &mut self.ids);
        }
        self.ids.pop().expect("some were just reserved")
    }

    /// The top page of a namespace that did not exist.
    fn found(&mut self, range: Range<usize>) -> Top {
        let mut pieces = Pieces::default();
        for change in range.filter(|change| self.changes[*change].op.is_put()) {
            let piece = self.fresh(change);
            if let Some(last) = pieces.slots.last() {
                let crit = bits::crit(last.key, piece.key).expect("keys strictly ascend");
                pieces.gaps.push(Gap { crit, node: None });
            }
            pieces.slots.push(piece);
        }
        let pieces = self.carve(pieces);
        self.top(Outcome::Pieces(pieces))
    }

    fn top(&mut self, outcome: Outcome<'a>) -> Top {
        match outcome {
            Outcome::Same => Top::Same,
            Outcome::Page(new) => Top::New(new),
            Outcome::Made(made) => match made.0 {
                Slot::Child { hash, totals, id, .. } => Top::Old { page: id, node: Node { hash, totals } },
                Slot::Entry { .. } => unreachable!("a page stands in the slot of one"),
            },
            Outcome::Pieces(pieces) => match pieces.slots[..] {
                [] => Top::Gone,
                [Piece { state: State::New(new), .. }] => Top::New(new),
                [Piece { slot: Slot::Child { hash, totals, id, .. }, .. }] => {
                    // It may still be a new page, if all that is in it only moved, or if it was made in a limb.
                    Top::Old { page: id, node: Node { hash, totals } }
                }
                _ => Top::New(self.wrap(pieces, None).0),
            },
        }
    }

    fn visit(&mut self, visit: &'a Visit<'a>, below: &mut [Outcome<'a>]) -> Outcome<'a> {
        let edits = &self.descent.edits[visit.edits.clone()];
        if edits.is_empty() && below.iter().all(|outcome| matches!(outcome, Outcome::Same)) {
            return Outcome::Same;
        }
        let changes_shape =
            |edit: &Edit| edit.crit.is_some() || matches!(self.changes[edit.change as usize].op, Op::Delete);
        if !edits.iter().any(changes_shape) && !below.iter().any(|outcome| matches!(outcome, Outcome::Pieces(_))) {
            return Outcome::Page(self.patch(visit, below));
        }
        let pieces = self.put_together(visit, below);
        // Of one that was divided at its root a page is left, and what is not worth one, or two pages.
        let few = if pieces.slots.len() > SLOTS_MAX { SMALL } else { SMALL - 1 };
        let pieces = self.carve(pieces);
        if pieces.slots.len() <= few {
            return Outcome::Pieces(pieces);
        }
        // Of several pages that come in the place of one, only one is written beside it: so what stands beside a page is one.
        let base = self.base(visit).and_then(|base| base.followed(pieces.slots.iter().map(|piece| piece.from)));
        let (new, piece) = self.wrap(pieces, base);
        let page = self.new.page(new);
        if page.shape.root_crit() == visit.page.shape.root_crit() {
            return Outcome::Page(new);
        }
        Outcome::Pieces(Pieces { slots: vec![piece], gaps: Vec::new() })
    }

    /// What the page in the place of this one can be written beside, if nothing changes.
    fn base(&self, visit: &Visit<'_>) -> Option<Base> {
        visit.lies.base(&visit.page).filter(|base| (self.stays)(base.at()))
    }

    /// The page with the same slots, some of them changed.
    fn patch(&mut self, visit: &Visit<'_>, below: &[Outcome<'a>]) -> usize {
        let old = &visit.page;
        let (edits, visits) = (&self.descent.edits[visit.edits.clone()], &self.descent.visits[visit.below.clone()]);
        let (mut changed, mut moved) = (0, 0);
        for edit in edits {
            match self.changes[edit.change as usize].op {
                Op::Put { .. } => changed |= 1 << edit.slot,
                Op::Move { .. } => moved |= 1 << edit.slot,
                Op::Touch => {}
                Op::Delete => unreachable!("a deletion changes the shape"),
            }
        }
        let mut states = [State::Clean; SLOTS_MAX];
        for (outcome, visit) in below.iter().zip(visits) {
            if let (Above::Slot(slot), Some((_, state))) = (visit.above, self.made(outcome)) {
                states[slot] = state;
                *if state == State::Clean { &mut moved } else { &mut changed } |= 1 << slot;
            }
        }
        let mut page = old.copy(changed, moved, &mut self.new.spare);
        page.base = self.base(visit).map(|base| base.renewed(changed | moved)).filter(|base| base.kept != 0);
        self.heir = page.base.map(|base| base.at());
        for (outcome, visit) in below.iter().zip(visits) {
            if let (Above::Slot(slot), Some((child, _))) = (visit.above, self.made(outcome)) {
                *page.slot_mut(slot) = child;
            }
        }
        for edit in edits {
            let slot = usize::from(edit.slot);
            match self.changes[edit.change as usize].op {
                Op::Put { .. } => {
                    *page.slot_mut(slot) = self.fresh(edit.change as usize).slot;
                    states[slot] = State::Fresh;
                }
                Op::Move { to, .. } => {
                    let Slot::Entry { place, .. } = page.slot_mut(slot) else { unreachable!("only entries move") };
                    *place = to;
                }
                Op::Touch | Op::Delete => {}
            }
        }
        let id = self.id();
        self.new.settle::<H>(id, page, &states[..old.shape.len()], |_| false)
    }

    /// All slots of the page after its changes, in order; there may be too many.
    fn put_together(&mut self, visit: &'a Visit<'a>, below: &mut [Outcome<'a>]) -> Pieces<'a> {
        let page: &'a Page = &visit.page;
        let shape = &page.shape;
        let edits = &self.descent.edits[visit.edits.clone()];

        // New keys, by the slot they come before.
        let mut inserts: Vec<(u32, Insert)> = Vec::new();
        for edit in edits {
            if let Some(crit) = edit.crit {
                let (first, last) = shape.span(usize::from(edit.slot), crit);
                let after = bits::bit(self.changes[edit.change as usize].key, crit);
                inserts.push((edit.change, Insert { before: if after { last + 1 } else { first }, after, crit }));
            }
        }
        inserts.sort_unstable_by_key(|(change, _)| *change);
        let mut inserts = inserts.into_iter().peekable();
        let mut own = edits.iter().filter(|edit| edit.crit.is_none()).peekable();
        let mut below = below.iter_mut().zip(&self.descent.visits[visit.below.clone()]).peekable();

        let mut out = Joiner { pieces: self.pieces(), gap: None, lost: false };
        for slot in 0..=shape.len() {
            // The node between this slot and the one before, or what is left of it between new keys.
            let old_gap = slot.checked_sub(1).filter(|gap| *gap < shape.crits().len());
            let old_gap = old_gap.map(|gap| Gap { crit: shape.crits()[gap], node: Some(*page.node(gap)) });
            let mut gap = old_gap;
            let mut last: Option<&[u8]> = None;
            while let Some((change, insert)) = inserts.next_if(|(_, insert)| insert.before == slot) {
                let piece = self.fresh(change as usize);
                let crit = match last {
                    Some(last) => Some(bits::crit(last, piece.key).expect("keys strictly ascend")),
                    None if insert.after => Some(insert.crit),
                    None => old_gap.map(|gap| gap.crit),
                };
                out.piece(crit.map(|crit| Gap { crit, node: None }), piece);
                last = Some(piece.key);
                let crit = if insert.after { old_gap.map(|gap| gap.crit) } else { Some(insert.crit) };
                gap = crit.map(|crit| Gap { crit, node: None });
            }
            if slot == shape.len() {
                break;
            }
            let same = Origin { slot: u8::try_from(slot).expect("a page has 32 slots"), same: true };
            let (from, renewed) = (Some(same), Some(Origin { same: false, ..same }));
            let mut piece = Piece { key: shape.key(slot), slot: *page.slot(slot), state: State::Clean, from };
            if let Some(edit) = own.next_if(|edit| usize::from(edit.slot) == slot) {
                match self.changes[edit.change as usize].op {
                    Op::Put { .. } => piece = Piece { from: renewed, ..self.fresh(edit.change as usize) },
                    Op::Move { to, .. } => {
                        if let Slot::Entry { place, .. } = &mut piece.slot {
                            *place = to;
                        }
                        piece.from = renewed;
                    }
                    Op::Touch => {}
                    Op::Delete => {
                        out.gone(gap);
                        continue;
                    }
                }
            }
            let met = below.next_if(|(_, visit)| matches!(visit.above, Above::Slot(at) if at == slot));
            match met.map(|(outcome, _)| mem::replace(outcome, Outcome::Same)) {
                None | Some(Outcome::Same) => out.piece(gap, piece),
                Some(made @ (Outcome::Page(_) | Outcome::Made(_))) => {
                    (piece.slot, piece.state) = self.made(&made).expect("it is a new page");
                    piece.from = renewed;
                    out.piece(gap, piece);
                }
                Some(Outcome::Pieces(pieces)) => match pieces.slots.len() {
                    0 => out.gone(gap),
                    _ => {
                        let gaps = [gap].into_iter().chain(pieces.gaps.into_iter().map(Some));
                        // Their page was another.
                        let slots = pieces.slots.into_iter().map(|piece| Piece { from: None, ..piece });
                        gaps.zip(slots).for_each(|(gap, piece)| out.piece(gap, piece));
                    }
                },
            }
        }
        debug_assert!(
            inserts.peek().is_none() && own.peek().is_none() && below.peek().is_none(),
            "all changes were met"
        );
        out.pieces
    }

    /// Takes subtrees out into pages of their own, so that at most [`SLOTS_MAX`] slots are left, and few where entries alone were too many.
    // spec: TREE-17
    fn carve(&mut self, pieces: Pieces<'a>) -> Pieces<'a> {
        if pieces.slots.len() <= SLOTS_MAX {
            return pieces;
        }
        // Nodes whose right side is still coming, and what is on their left.
        let mut waiting: Vec<(u16, Subtree)> = Vec::new();
        let mut out = self.pieces();
        let mut gaps = pieces.gaps.iter().copied();
        for piece in pieces.slots.iter().copied() {
            out.slots.push(piece);
            let mut last = Subtree { slots: 1, level: piece.slot.below().is_some().into() };
            let next = gaps.next();
            while let Some((_, left)) = waiting.pop_if(|(crit, _)| next.is_none_or(|next| next.crit < *crit)) {
                let start = out.slots.len() - last.slots;
                let mut sides = [left, last];
                if last.becomes_page(left) {
                    self.take_out(&mut out, start..start + last.slots);
                    sides[1] = last.page();
                }
                if left.becomes_page(last) {
                    self.take_out(&mut out, start - left.slots..start);
                    sides[0] = left.page();
                }
                last = sides[0].with(sides[1]);
            }
            if let Some(next) = next {
                out.gaps.push(next);
                waiting.push((next.crit, last));
            }
        }
        self.reuse(pieces);
        out
    }

    /// Makes a page of a subtree; it takes its place.
    fn take_out(&mut self, pieces: &mut Pieces<'a>, subtree: Range<usize>) {
        let mut page = self.pieces();
        page.gaps.extend(pieces.gaps.drain(subtree.start..subtree.end - 1));
        page.slots.extend(pieces.slots.drain(subtree.clone()));
        pieces.slots.insert(subtree.start, self.wrap(page, None).1);
    }

    /// Makes a page of slots, which can be written beside `base`, and the slot that stands for it in the page above.
    fn wrap(&mut self, pieces: Pieces<'a>, base: Option<Base>) -> (usize, Piece<'a>) {
        let Pieces { slots: pieces, gaps } = pieces;
        let mut crits = [0; SLOTS_MAX - 1];
        crits.iter_mut().zip(&gaps).for_each(|(crit, gap)| *crit = gap.crit);
        let keys = pieces.iter().map(|piece| match piece.slot {
            Slot::Entry { .. } => (piece.key, None),
            Slot::Child { crit, .. } => (piece.key, Some(crit)),
        });
        let shape = Arc::new(Shape::new(&crits[..gaps.len()], keys));
        let mut states = [State::Clean; SLOTS_MAX];
        states.iter_mut().zip(&pieces).for_each(|(state, piece)| *state = piece.state);
        let nodes = gaps.iter().map(|gap| gap.node.unwrap_or_default());
        let slots = pieces.iter().map(|piece| piece.slot);
        let mut page = Page::new(shape, slots, nodes, &mut self.new.spare);
        page.base = base;
        self.heir = base.map(|base| base.at());
        let lost = |node: usize| gaps[node].node.is_none();
        let id = self.id();
        let new = self.new.settle::<H>(id, page, &states[..pieces.len()], lost);
        let (slot, state) = self.new.child(new);
        let piece = Piece { key: pieces[0].key, slot, state, from: None };
        self.reuse(Pieces { slots: pieces, gaps });
        (new, piece)
    }

    fn pieces(&mut self) -> Pieces<'a> {
        self.scratch.pop().unwrap_or_default()
    }

    fn reuse(&mut self, mut pieces: Pieces<'a>) {
        pieces.slots.clear();
        pieces.gaps.clear();
        if self.scratch.len() < SCRATCH_MAX {
            self.scratch.push(pieces);
        }
    }

    /// The entry a change writes.
    fn fresh(&self, change: usize) -> Piece<'a> {
        let Change { key, op: Op::Put { value_len, value_hash } } = self.changes[change] else {
            unreachable!("only a put writes an entry");
        };
        let slot = Slot::Entry { hash: Hash::ZERO, value_hash, place: Place(change as u64), value_len };
        Piece { key, slot, state: State::Fresh, from: None }
    }
}

/// A new key in a page.
struct Insert {
    /// The slot it comes before.
    before: usize,
    /// Whether it parts from the slot before it, rather than from the one behind it.
    after: bool,
    /// At which bit.
    crit: u16,
}

/// Joins slots in order, over those that are gone.
struct Joiner<'a> {
    pieces: Pieces<'a>,
    /// The node between the last slot and the next: of several that fell together, the uppermost is left.
    gap: Option<Gap>,
    /// Whether a slot went since the last.
    lost: bool,
}

impl<'a> Joiner<'a> {
    fn between(&mut self, gap: Option<Gap>) {
        if let (Some(gap), false) = (gap, self.pieces.slots.is_empty()) {
            self.gap = Some(match self.gap {
                None => gap,
                Some(before) => Gap { crit: before.crit.min(gap.crit), node: None },
            });
        }
    }

    fn piece(&mut self, gap: Option<Gap>, mut piece: Piece<'a>) {
        self.between(gap);
        if mem::take(&mut self.lost) {
            touch(&mut piece);
        }
        if !self.pieces.slots.is_empty() {
            self.pieces.gaps.push(self.gap.take().expect("a node stands between two slots"));
        }
        self.pieces.slots.push(piece);
    }

    fn gone(&mut self, gap: Option<Gap>) {
        self.between(gap);
        self.lost = true;
        if let Some(last) = self.pieces.slots.last_mut() {
            touch(last);
        }
    }
}

fn touch(piece: &mut Piece<'_>) {
    if piece.state == State::Clean {
        piece.state = State::Touched;
    }
}
