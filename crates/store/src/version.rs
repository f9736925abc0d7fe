//! One version of the state inside the store, and which of them are alive.

use crate::answers::OnLine;
use crate::segment::Spot;
use crate::sync::atomic::{AtomicBool, Ordering};
use keelstone_codec::{Height, Namespace, Root, Value};
use keelstone_tree::{Hasher, Read, ReadError, Tree};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

/// One version of the state. It lives as long as somebody holds it.
pub(crate) struct Version<H: Hasher> {
    /// None before the first commit.
    pub(crate) height: Option<Height>,
    pub(crate) epoch: u64,
    pub(crate) root: Root,
    pub(crate) tree: Tree<H>,
    /// The record of the commit that led here.
    pub(crate) record: Option<Spot>,
    /// Passes of compactions, and walks of flushes, that were over when it, or what it is made of, became a version: nothing it
    /// needs lies where one of them found nothing. Heights do not tell, since a rollback begins them again.
    pub(crate) passes: u64,
    /// Where it stands on the line of versions that answers are kept for; never set for one rebuilt from history.
    on_line: OnceLock<OnLine>,
    /// Set when the version was held for too long (spec: STORE-6).
    expired: AtomicBool,
}

impl<H: Hasher> Version<H> {
    pub(crate) fn new(
        height: Option<Height>,
        epoch: u64,
        tree: Tree<H>,
        record: Option<Spot>,
        passes: u64,
    ) -> Arc<Self> {
        let root = tree.root();
        let (on_line, expired) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { height, epoch, root, tree, record, passes, on_line, expired })
    }

    /// Says where on the line of versions it stands, once, before others see it.
    pub(crate) fn join_line(&self, on_line: Option<OnLine>) {
        if let Some(on_line) = on_line {
            self.on_line.set(on_line).expect("a version joins a line once");
        }
    }

    pub(crate) fn on_line(&self) -> Option<&OnLine> {
        self.on_line.get()
    }

    /// The value of a key: as it was read lately, or through the tree.
    pub(crate) fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        let read = || self.tree.get(namespace, key);
        match self.on_line() {
            Some(on_line) => on_line.get(namespace, key, read),
            None => read(),
        }
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }
}

impl<H: Hasher> fmt::Debug for Version<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {:?} with root {}", self.height, self.root)
    }
}

/// What bounds the versions that are held (spec: STORE-6).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Versions kept at hand.
    pub(crate) recent: usize,
    /// Versions held by others.
    pub(crate) held: usize,
    /// Commits for which one may be held.
    pub(crate) age: u64,
}

/// The versions that are kept at hand, and all that somebody holds.
#[derive(Debug)]
pub(crate) struct Versions<H: Hasher> {
    /// Recent or lately used ones, the oldest first.
    recent: VecDeque<Arc<Version<H>>>,
    /// All that may be alive, in the order they were handed out, each with the count of commits then.
    known: VecDeque<(u64, Weak<Version<H>>)>,
    /// Heights that are being looked into, though nobody holds a version of them yet.
    pinned: BTreeMap<Height, usize>,
    /// Commits so far.
    commits: u64,
    /// The last version, which is everybody's and never expires.
    last: Weak<Version<H>>,
    bounds: Bounds,
}

impl<H: Hasher> Versions<H> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let bounds = Bounds { recent: bounds.recent.max(1), held: bounds.held.max(1), age: bounds.age.max(1) };
        let (recent, known) = (VecDeque::new(), VecDeque::new());
        Self { recent, known, pinned: BTreeMap::new(), commits: 0, last: Weak::new(), bounds }
    }

    /// Takes in the version of a commit.
    pub(crate) fn commit(&mut self, version: &Arc<Version<H>>) {
        self.commits += 1;
        self.replace_last(version);
    }

    /// Takes in a version that is the last from now on, without a commit.
    pub(crate) fn replace_last(&mut self, version: &Arc<Version<H>>) {
        self.last = Arc::downgrade(version);
        self.add(version);
    }

    /// Takes in a version and keeps it at hand; the one that was not used for longest goes.
    pub(crate) fn add(&mut self, version: &Arc<Version<H>>) {
        // The same state with other places, moved by a compaction: one of it is enough, and what only the other needs can go.
        self.recent.retain(|other| other.height != version.height);
        self.recent.push_back(Arc::clone(version));
        while self.recent.len() > self.bounds.recent {
            self.recent.pop_front();
        }
        self.known.push_back((self.commits, Arc::downgrade(version)));
        let aged = self.known.front().is_some_and(|(since, _)| self.commits - since > self.bounds.age);
        if aged || self.known.len() > 2 * (self.bounds.held + self.bounds.recent) {
            self.expire();
        }
    }

    /// A version kept at hand, which is then the last to go.
    pub(crate) fn find(&mut self, height: Height) -> Option<Arc<Version<H>>> {
        let index = self.recent.iter().rposition(|version| version.height == Some(height))?;
        let version = self.recent.remove(index).expect("it was just found");
        self.recent.push_back(Arc::clone(&version));
        Some(version)
    }

    /// The version at hand that is nearest to a height.
    pub(crate) fn nearest(&self, height: Height) -> Option<Arc<Version<H>>> {
        let distance = |version: &&Arc<Version<H>>| version.height.map(|at| at.0.abs_diff(height.0));
        self.recent.iter().filter(|version| version.height.is_some()).min_by_key(distance).cloned()
    }

    /// Lets go of the versions at hand that `keep` does not want.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Version<H>) -> bool) {
        self.recent.retain(|version| keep(version));
    }

    /// Keeps a height from being removed until [`Self::unpin`].
    pub(crate) fn pin(&mut self, height: Height) {
        *self.pinned.entry(height).or_default() += 1;
    }

    pub(crate) fn unpin(&mut self, height: Height) {
        if let Some(count) = self.pinned.get_mut(&height) {
            *count -= 1;
            if *count == 0 {
                self.pinned.remove(&height);
            }
        }
    }

    /// Expires the oldest versions that are held beyond the bounds (spec: STORE-6).
    fn expire(&mut self) {
        self.known.retain(|(_, version)| version.strong_count() > 0);
        let excess = self.known.len().saturating_sub(self.bounds.held + self.bounds.recent);
        let aged = self.known.partition_point(|(since, _)| self.commits - since > self.bounds.age);
        let mut last = None;
        for (since, version) in self.known.drain(..excess.max(aged)) {
            if version.ptr_eq(&self.last) {
                last = Some((since, version));
            } else if let Some(version) = version.upgrade() {
                version.expired.store(true, Ordering::Relaxed);
            }
        }
        self.known.extend(last);
        // Nor is one of these at hand any more: whoever asks for its height again gets a version that holds.
        self.recent.retain(|version| !version.is_expired());
    }

    /// Expires the version with the lowest height that is held, of those below `below` and those made before so many passes were
    /// over. Says whether there was one.
    pub(crate) fn expire_lowest(&mut self, below: Height, passes: u64) -> bool {
        let others = self.known.iter().filter(|(_, version)| !version.ptr_eq(&self.last));
        let others = others.filter_map(|(_, version)| version.upgrade());
        let is_old = |version: &Arc<Version<H>>| version.height < Some(below) || version.passes < passes;
        let Some(lowest) = others.filter(is_old).min_by_key(|version| version.height) else { return false };
        lowest.expired.store(true, Ordering::Relaxed);
        self.recent.retain(|version| !Arc::ptr_eq(version, &lowest));
        self.known.retain(|(_, version)| version.as_ptr() != Arc::as_ptr(&lowest));
        true
    }

    /// The lowest height of which a version is held, or is being made.
    pub(crate) fn lowest(&mut self) -> Option<Height> {
        self.expire();
        let held = self.known.iter().filter_map(|(_, version)| version.upgrade()).filter_map(|version| version.height);
        held.chain(self.pinned.keys().copied()).min()
    }

    /// The fewest passes that were over when a version was made that is held and is not `but`.
    pub(crate) fn fewest_passes(&mut self, but: Option<&Arc<Version<H>>>) -> Option<u64> {
        self.expire();
        let held = self.known.iter().filter_map(|(_, version)| version.upgrade());
        held.filter(|version| but.is_none_or(|but| !Arc::ptr_eq(version, but))).map(|version| version.passes).min()
    }

    /// Versions that somebody holds, those at hand included.
    pub(crate) fn held(&mut self) -> usize {
        self.expire();
        self.known.len()
    }
}
