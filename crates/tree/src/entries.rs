//! Entries of a version in order, with and without their values.
//!
//! Values lie where they were written, not in the order of their keys. So a scan that has gone on for a while gathers
//! entries and asks for their values many at a time, which lets whoever stores them read what lies together at once. It
//! then goes by without leaving traces, since what it reads is not read again soon: neither pages nor values that others
//! use have to make room for it.

use crate::arena::expected;
use crate::page::{Page, PageId, Slot};
use crate::stored::{self, Expected};
use crate::tree::{Tree, entry, root_expected};
use crate::{Entry, Hasher, KeyRange, PageAt, Place, ReadError, Totals, bits, prefix_end};
use keelstone_codec::{Bytes, Hash, Key, Namespace, Value};
use std::sync::Arc;
use std::{mem, vec};

/// Values a scan asks for at a time, in the end; it begins with one, and takes four times as many each time. The more, the
/// fewer sectors are read again for each that lies in them.
const VALUES_MAX: usize = 4096;
/// From this many on, a scan is a long one.
const VALUES_MANY: usize = 64;
/// Bytes of values a scan gathers at a time, but for the last of them.
const VALUES_BYTES: u64 = 1 << 20;

/// Entries in order; see [`Tree::entries`]. After the first error it ends, unless it is asked by [`Entries::past_damage`].
pub struct Entries<H: Hasher> {
    tree: Tree<H>,
    range: KeyRange,
    path: Vec<Step>,
    failed: Option<Lost>,
    /// Whether it goes by without leaving traces: pages it meets do not count as used, and those it has to read are not
    /// kept.
    passing: bool,
    /// Whether it looks at pages before it steps into them.
    glancing: bool,
}

/// A piece of a version whose page cannot be read: every entry whose key begins with so many bits.
#[derive(Clone, Debug)]
pub struct Lost {
    /// What all its keys begin with, as far as those are whole bytes; empty for a whole namespace.
    pub prefix: Vec<u8>,
    /// What is in it.
    pub totals: Totals,
    /// Why it cannot be read.
    pub error: ReadError,
    /// The hash of the page's root.
    hash: Hash,
    /// The critical bit of that root, unless it is the top page of a namespace.
    crit: Option<u16>,
    at: PageAt,
    base: Option<PageAt>,
}

impl Lost {
    fn new<H: Hasher>(tree: &Tree<H>, id: PageId, expected: &Expected<'_>, error: ReadError) -> Self {
        let at = tree.pages().at(id).expect("a page that is not in memory was written");
        let Expected { hash, totals, below } = *expected;
        let (crit, prefix) = below.unzip();
        // If the page itself can be read, it is its base that cannot be.
        let base = tree.pages().backing().page(at).ok().and_then(|page| stored::base_of(&page));
        Self { prefix: prefix.unwrap_or_default().to_vec(), totals, error, hash, crit, at, base }
    }

    /// Where the page lies that cannot be read.
    #[must_use]
    pub fn at(&self) -> PageAt {
        self.at
    }

    /// Where the page lies that it is written beside, if it is and says so: the one or the other is damaged.
    #[must_use]
    pub fn base(&self) -> Option<PageAt> {
        self.base
    }

    /// All keys that an entry of the piece can have. No other entry of the version has one of them.
    #[must_use]
    pub fn range(&self) -> KeyRange {
        let Some(crit) = self.crit else { return KeyRange::all() };
        // The last prefix that the same bits above the critical one begin: bits of its last byte that nobody knows are set.
        let (whole, within) = (usize::from(crit / 9), u32::from(crit % 9));
        let mut last = self.prefix.clone();
        match (within, last.last_mut()) {
            (1, _) => last.truncate(whole),
            (2.., Some(byte)) => *byte |= 0xff >> (within - 1),
            _ => {}
        }
        KeyRange { start: self.prefix.clone(), end: prefix_end(&last), reverse: false }
    }

    /// Whether these bytes are a page that can stand in the place of the one that cannot be read: it is proven as when it
    /// is read, by the hash that the page above holds (spec: TREE-18). Where values and pages below lie is not looked at.
    /// `base` is asked for the page beside which this one is written, if it is.
    #[must_use]
    pub fn is_filled_by<H: Hasher>(&self, page: &[u8], base: impl FnOnce(PageAt) -> Option<Bytes>) -> bool {
        let below = self.crit.map(|crit| (crit, &*self.prefix));
        let expected = Expected { hash: self.hash, totals: self.totals, below };
        let base = stored::base_of(page).and_then(base);
        stored::decode::<H>(page, base.as_deref(), &expected, |_| PageId(0)).is_ok()
    }
}

/// A page on the way to the current entry.
struct Step {
    page: Arc<Page>,
    /// Slots not visited yet: from the front, or for a reverse range from the back.
    next: usize,
    /// Keys before the range may be below the next slot.
    at_edge: bool,
}

/// What a walk over entries meets.
pub(crate) enum Met<'a> {
    /// A page, before it steps into it.
    Page(&'a Glance),
    Entry(&'a Entry),
}

/// What is known of a page at first sight.
pub(crate) struct Glance {
    /// Where it is written and what it is written beside, as far as it is.
    pub(crate) needs: [Option<Place>; 2],
    /// Entries in it and below.
    pub(crate) entries: u64,
    /// No page is below it, and no entry before the range is in it.
    pub(crate) can_go_by: bool,
    /// The page itself, if it is in memory. It does not count as used.
    pub(crate) page: Option<Arc<Page>>,
}

impl<H: Hasher> Entries<H> {
    pub(crate) fn new(tree: &Tree<H>, namespace: &Namespace, range: KeyRange) -> Self {
        let mut entries =
            Self { tree: tree.clone(), range, path: Vec::new(), failed: None, passing: false, glancing: false };
        if let Some(space) = tree.space(namespace).filter(|_| !entries.range.is_empty()) {
            match tree.load_root(space) {
                Ok(page) => entries.enter(page, true),
                Err(error) => entries.failed = Some(Lost::new(tree, space.page, &root_expected(space), error)),
            }
        }
        entries
    }

    /// Steps into a page, to the first slot that can have keys of the range. `at_edge`: there may be keys before the range in it.
    fn enter(&mut self, page: Arc<Page>, at_edge: bool) {
        let next = match (&self.range.end, self.range.reverse) {
            (Some(end), true) if at_edge => first_reaching(&page, end, true),
            (_, true) => page.shape.len(),
            (_, false) if at_edge => first_reaching(&page, &self.range.start, false),
            (_, false) => 0,
        };
        self.path.push(Step { page, next, at_edge });
    }

    /// From here on, pages that have to be read are not kept in memory, and none that is there counts as used: for whoever
    /// looks at everything, and leaves memory to those who come back.
    #[must_use]
    pub fn in_passing(mut self) -> Self {
        self.passing = true;
        self
    }

    /// From here on each page below the first is shown to whoever asks by [`Self::advance`], and goes by as by
    /// [`Self::in_passing`] unless the answer is yes.
    pub(crate) fn glancing(mut self) -> Self {
        self.glancing = true;
        self
    }

    /// The next entry, or the next piece that cannot be read, behind which it goes on: for whoever wants to know all that
    /// is lost, and all that is not.
    pub fn past_damage(&mut self) -> Option<Result<(Key, Entry), Lost>> {
        self.advance(&mut |_| true)
    }

    /// As [`Self::past_damage`], and shows what it meets: each entry, which it goes by if the answer is no; and, if it is
    /// [`Self::glancing`], each page, which it goes by if the answer is no and it can ([`Glance::can_go_by`]). Such a page is not read whole.
    pub(crate) fn advance(
        &mut self,
        is_wanted: &mut impl FnMut(Met<'_>) -> bool,
    ) -> Option<Result<(Key, Entry), Lost>> {
        if let Some(lost) = self.failed.take() {
            return Some(Err(lost));
        }
        loop {
            let step = self.path.last_mut()?;
            let slot = if self.range.reverse { step.next.checked_sub(1) } else { Some(step.next) };
            let Some(slot) = slot.filter(|slot| *slot < step.page.shape.len()) else {
                self.path.pop();
                continue;
            };
            step.next = if self.range.reverse { slot } else { slot + 1 };
            let at_edge = mem::take(&mut step.at_edge);
            let (found, key) = (step.page.slot(slot), step.page.shape.key(slot));
            let Some((id, expected)) = expected(found, key) else {
                if !self.range.contains(key) {
                    self.path.clear();
                    return None;
                }
                let entry = entry(found).expect("not a child");
                if !is_wanted(Met::Entry(&entry)) {
                    continue;
                }
                let key = Key::new(key).expect("keys in the tree are keys");
                return Some(Ok((key, entry)));
            };
            let pages = self.tree.pages();
            let (mut passing, mut met) = (self.passing, None);
            if self.glancing {
                match pages.glance(id, expected.totals) {
                    Ok(mut glance) => {
                        glance.can_go_by &= !at_edge;
                        passing = !is_wanted(Met::Page(&glance));
                        if passing && glance.can_go_by {
                            continue;
                        }
                        met = glance.page;
                    }
                    Err(error) => return Some(Err(Lost::new(&self.tree, id, &expected, error))),
                }
            }
            let below = match met {
                Some(page) => Ok(page),
                None if passing => pages.load_in_passing(id, &expected),
                None => pages.load(id, &expected),
            };
            match below {
                Ok(page) => self.enter(page, at_edge),
                Err(error) => return Some(Err(Lost::new(&self.tree, id, &expected, error))),
            }
        }
    }
}

impl<H: Hasher> Iterator for Entries<H> {
    type Item = Result<(Key, Entry), ReadError>;
    fn next(&mut self) -> Option<Self::Item> {
        let found = self.past_damage()?;
        if found.is_err() {
            self.path.clear();
        }
        Some(found.map_err(|lost| lost.error))
    }
}

/// The first slot that has keys at or above `bound`, or may have; with `whole`, the first that has no others.
fn first_reaching(page: &Page, bound: &[u8], whole: bool) -> usize {
    let below = |slot: usize| match (page.slot(slot), bits::crit(bound, page.shape.key(slot))) {
        (Slot::Child { crit, .. }, Some(found)) if found >= *crit => whole,
        (Slot::Child { .. }, None) => whole,
        (_, Some(found)) => bits::bit(bound, found),
        (Slot::Entry { .. }, None) => false,
    };
    let (mut low, mut high) = (0, page.shape.len());
    while low < high {
        let middle = (low + high) / 2;
        if below(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// Entries in order, with their values. After the first error it ends.
pub(crate) struct ScanValues<'a, H: Hasher> {
    tree: &'a Tree<H>,
    entries: Entries<H>,
    /// Values gathered next time.
    count: usize,
    ready: vec::IntoIter<(Key, Value)>,
    /// What comes behind those that are ready, if no more entries do.
    end: Option<Result<(), ReadError>>,
}

impl<'a, H: Hasher> ScanValues<'a, H> {
    pub(crate) fn new(tree: &'a Tree<H>, entries: Entries<H>) -> Self {
        Self { tree, entries, count: 1, ready: Vec::new().into_iter(), end: None }
    }

    /// Gathers the next entries and their values.
    fn gather(&mut self) {
        let mut keys = Vec::with_capacity(self.count);
        let mut found: Vec<Entry> = Vec::with_capacity(self.count);
        let mut bytes = 0;
        while found.len() < self.count && bytes < VALUES_BYTES {
            match self.entries.next() {
                Some(Ok((key, entry))) => {
                    bytes += u64::from(entry.value_len);
                    keys.push(key);
                    found.push(entry);
                }
                Some(Err(error)) => self.end = Some(Err(error)),
                None => self.end = Some(Ok(())),
            }
            if self.end.is_some() {
                break;
            }
        }
        self.count = VALUES_MAX.min(self.count * 4);
        self.entries.passing = self.count > VALUES_MANY;
        let many = if found.len() >= VALUES_MANY { self.tree.values(&found) } else { None };
        let values = many.unwrap_or_else(|| self.one_by_one(&found));
        self.ready = keys.into_iter().zip(values).collect::<Vec<_>>().into_iter();
    }

    /// The values up to the first that cannot be read, which ends the scan.
    fn one_by_one(&mut self, entries: &[Entry]) -> Vec<Value> {
        let mut values = Vec::with_capacity(entries.len());
        for entry in entries {
            match self.tree.value(entry) {
                Ok(value) => values.push(value),
                Err(error) => {
                    self.end = Some(Err(error));
                    break;
                }
            }
        }
        values
    }
}

impl<H: Hasher> Iterator for ScanValues<'_, H> {
    type Item = Result<(Key, Value), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(next) = self.ready.next() {
                return Some(Ok(next));
            }
            match &mut self.end {
                None => self.gather(),
                Some(end) => return mem::replace(end, Ok(())).err().map(Err),
            }
        }
    }
}
