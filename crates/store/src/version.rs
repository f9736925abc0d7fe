//! One version of the state inside the store, and which of them are alive.

use crate::segment::Spot;
use keelstone_codec::{Height, Root};
use keelstone_tree::Hasher;
use keelstone_tree::Tree;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// One version of the state. It lives as long as somebody holds it.
pub(crate) struct Version<H: Hasher> {
    /// None before the first commit.
    pub(crate) height: Option<Height>,
    pub(crate) epoch: u64,
    pub(crate) root: Root,
    pub(crate) tree: Tree<H>,
    /// The record of the commit that led here.
    pub(crate) record: Option<Spot>,
    /// Set when the version was held for too long (spec: STORE-6).
    expired: AtomicBool,
}

impl<H: Hasher> Version<H> {
    pub(crate) fn new(height: Option<Height>, epoch: u64, tree: Tree<H>, record: Option<Spot>) -> Arc<Self> {
        let root = tree.root();
        Arc::new(Self { height, epoch, root, tree, record, expired: AtomicBool::new(false) })
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

/// The versions that are kept at hand, and all that somebody holds.
#[derive(Debug)]
pub(crate) struct Versions<H: Hasher> {
    /// Kept at hand, the longest unused first.
    recent: VecDeque<Arc<Version<H>>>,
    recent_max: usize,
    /// Every version there may be, in the order they came.
    known: Vec<Weak<Version<H>>>,
    held_max: usize,
}

impl<H: Hasher> Versions<H> {
    pub(crate) fn new(recent_max: usize, held_max: usize) -> Self {
        Self { recent: VecDeque::new(), recent_max: recent_max.max(1), known: Vec::new(), held_max: held_max.max(1) }
    }

    /// Takes in a version and keeps it at hand; the one that was not used for longest goes.
    pub(crate) fn add(&mut self, version: &Arc<Version<H>>) {
        self.recent.push_back(Arc::clone(version));
        while self.recent.len() > self.recent_max {
            self.recent.pop_front();
        }
        self.known.push(Arc::downgrade(version));
        if self.known.len() > 2 * (self.held_max + self.recent_max) {
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

    /// Expires the oldest versions that are held beyond the bound (spec: STORE-6).
    fn expire(&mut self) {
        self.known.retain(|version| version.strong_count() > 0);
        let excess = self.known.len().saturating_sub(self.held_max + self.recent_max);
        for version in self.known.drain(..excess) {
            if let Some(version) = version.upgrade() {
                version.expired.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The lowest height of which a version is held.
    pub(crate) fn lowest(&mut self) -> Option<Height> {
        self.expire();
        self.known.iter().filter_map(Weak::upgrade).filter_map(|version| version.height).min()
    }

    /// Versions that somebody holds, those at hand included.
    pub(crate) fn held(&mut self) -> usize {
        self.expire();
        self.known.len()
    }
}
