//! A chain as the checker and the mender see it: what is compared of it, what certifies that, and what mends it.
//!
//! What comes of a comparison is decided in [`keelstone_sync::consistency`]. Rules: `spec/consistency.md`, CHECK-1 to CHECK-9.

use super::Local;
use super::consensus::{Consensus, certified_root};
use crate::exit::{Exit, Failure, causes};
use crate::way::{Yielding, Yields};
use keelstone_codec::{Height, Key, Namespace};
use keelstone_store::{Mended, StoreError, Supplier, Wanted};
use keelstone_sync::consistency::{
    Ask, Asked as Peers, Certified, DivergeError, Divergence, Due, Gave, Parting, Report, Sample, compare,
    first_difference, first_height, heights, sample,
};
use keelstone_sync::peers::Version;
use keelstone_tree::Hasher;

/// The version that is compared stands so many blocks below the last: the header that certifies a root is in the next
/// block, and peers may be a block behind.
const BLOCKS_BELOW: u64 = 2;

/// A version to be compared, and what was read of it here.
pub(crate) struct Picked {
    pub(crate) at: Version,
    pub(crate) certified: Certified,
    pub(crate) sample: Sample,
}

/// Where a peer parts from this node.
#[derive(Debug)]
pub(crate) struct Parted {
    pub(crate) height: Parting,
    pub(crate) entry: Divergence,
    /// Questions that finding it took.
    pub(crate) questions: u32,
}

/// What a check asks of the chain in this process.
pub(crate) trait Checked {
    /// Reads what is due, of the version that is compared now.
    fn pick(&self, due: &Due) -> Result<Picked, Failure>;
    /// Compares it.
    fn compare_picked(&self, picked: &Picked, peers: &mut [(String, &mut dyn Ask)]) -> Report;
    /// Finds the first height and the first key in which a peer differs.
    fn part(&self, peer: &mut dyn Ask) -> Result<Parted, DivergeError>;
    /// Mends what is damaged of the state; `offers` are asked first. What came of asking each peer comes with it.
    fn mend(
        &self,
        problems: &[StoreError],
        offers: &mut dyn Supplier,
        peers: &mut [(String, &mut dyn Ask)],
    ) -> Result<(Mended, Vec<(String, Gave)>), Failure>;
}

impl<H: Hasher> Local<H> {
    /// What says that a root is the chain's where blocks are made without another engine: that blocks were made, or taken in,
    /// here, or that whoever had the state put here trusted it. A state that merely lies here says nothing.
    // spec: CHECK-1
    fn certified_here(&self, at: Version) -> Result<Certified, Failure> {
        let live = self.live();
        if at.height <= live.ledger.genesis_height() || live.ledger.went_through(at.height)? {
            return Ok(Certified::Here);
        }
        match live.generation.given()? == Some((at.height, at.root)) {
            true => Ok(Certified::Given),
            false => Ok(Certified::Nothing),
        }
    }
}

/// One after the other.
struct Both<'a>(&'a mut dyn Supplier, &'a mut dyn Supplier);

impl Supplier for Both<'_> {
    fn offer(&mut self, wanted: &Wanted, take: &mut dyn FnMut(&[(Key, keelstone_codec::Value)]) -> bool) {
        let mut taken = false;
        let mut once = |offered: &[(Key, keelstone_codec::Value)]| {
            taken = taken || take(offered);
            taken
        };
        self.0.offer(wanted, &mut once);
        if !taken {
            self.1.offer(wanted, take);
        }
    }
}

impl<H: Hasher> Checked for Local<H> {
    // spec: CHECK-2
    fn pick(&self, due: &Due) -> Result<Picked, Failure> {
        let ledger = self.ledger();
        let low = ledger.store().low().unwrap_or_default();
        let height = Height(ledger.height().0.saturating_sub(BLOCKS_BELOW)).max(low);
        // What cannot be read for damage is what is looked for: the last version is at hand in any case.
        let (view, unread) = match ledger.view_at(height) {
            Ok(view) => (view, None),
            Err(error) if error.is_damage() => (ledger.view(), Some(causes(&error))),
            Err(error) => return Err(error.into()),
        };
        let height = view.height().unwrap_or_default();
        let at = Version { height, root: view.root() };
        let yielding = Yielding::to(&self.way);
        let yields = Yields { view: &view, yielding: &yielding };
        let namespaces: Vec<Namespace> = view.namespaces().into_iter().map(|(name, _)| name).collect();
        let mut picked = sample::<H>(&yields, &namespaces, due.from.as_ref(), due.entries)?;
        picked.damaged.extend(unread);
        for height in heights(low, height, due.roots, due.number) {
            match ledger.root_at(height) {
                Ok(root) => picked.roots.extend(root.map(|root| Version { height, root })),
                Err(error) if error.is_damage() => picked.damaged.push(causes(&error)),
                Err(error) => return Err(error.into()),
            }
        }
        let certified = match self.genesis.validators.is_empty() {
            true => self.certified_here(at)?,
            false => match certified_root(self as &dyn Consensus, &ledger.facts().chain_id, height) {
                Ok(root) => root.map_or(Certified::Nothing, Certified::Root),
                Err(failure) if failure.exit == Exit::Integrity => {
                    picked.damaged.push(failure.message);
                    Certified::Nothing
                }
                Err(failure) => return Err(failure),
            },
        };
        Ok(Picked { at, certified, sample: picked })
    }

    fn compare_picked(&self, picked: &Picked, peers: &mut [(String, &mut dyn Ask)]) -> Report {
        compare::<H>(picked.at, picked.certified, &picked.sample, peers)
    }

    // spec: CHECK-5, CHECK-6
    fn part(&self, peer: &mut dyn Ask) -> Result<Parted, DivergeError> {
        let ledger = self.ledger();
        let kept = (ledger.store().low().unwrap_or_default(), ledger.height());
        let unread = |error: keelstone_ledger::LedgerError| keelstone_tree::ReadError::damaged(causes(&error));
        let mut own = |height| ledger.root_at(height).map_err(unread);
        let (height, asked) = first_height(kept, &mut own, peer)?;
        let view = ledger.view_at(height.ours.height).map_err(keelstone_tree::ReadError::from)?;
        let theirs = Version { height: height.ours.height, root: height.theirs };
        let (entry, more) = first_difference::<H, _>(&view, theirs, peer)?;
        Ok(Parted { height, entry, questions: asked + more })
    }

    // spec: CHECK-9
    fn mend(
        &self,
        problems: &[StoreError],
        offers: &mut dyn Supplier,
        peers: &mut [(String, &mut dyn Ask)],
    ) -> Result<(Mended, Vec<(String, Gave)>), Failure> {
        let ledger = self.ledger();
        let mut root_at = |height| ledger.root_at(height).ok().flatten();
        let mut asked = Peers::<H>::new(peers, &mut root_at);
        let mended = ledger.store().mend(problems, &mut Both(offers, &mut asked))?;
        let gave = asked.gave().map(|(peer, gave)| (peer.to_owned(), gave.clone())).collect();
        Ok((mended, gave))
    }
}
