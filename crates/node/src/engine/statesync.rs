//! State sync: a snapshot that other nodes offer becomes the state of this one.
//!
//! The engine verifies a header and says its app hash; it hands over offers and chunks and believes nothing of them, and
//! neither does this. Chunks are proven against that root as they come and wait in a staging directory. Once all are
//! there, a state is built of them in a generation aside, its root is computed anew and compared, and one rename makes
//! it the state that counts, before the last chunk is accepted: an engine that hears of success finds it.
//!
//! Such a state is *unconfirmed* until a block is made on it. The engine may still fail on its own side and begin again,
//! so while a state is unconfirmed offers are taken; from the first block on none is, whatever it says.
//!
//! Rules: `spec/snapshot.md`, SNAP-9 and SNAP-13 to SNAP-16.

use super::{Live, Local};
use crate::exit::{Failure, causes};
use crate::generations::Generation;
use crate::library::snapshot_params;
use crate::own_log::{Stood, Who};
use crate::room;
use keelstone_codec::{Height, Key, Namespace, Root};
use keelstone_ledger::{NodeEvent, Standing, check_fits, cut};
use keelstone_store::files::Directory;
use keelstone_store::{Store, StoreError};
use keelstone_sync::snapshot::{
    ChunkVerdict, EntriesError, Offer, OfferVerdict, Restore, RestoreLimits, RestoreProgress,
};
use keelstone_tree::Hasher;
use std::fs;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

/// What state sync is at.
#[derive(Default)]
pub(crate) enum Syncing<H: Hasher> {
    /// Nothing was offered.
    #[default]
    Idle,
    /// Chunks are coming.
    Receiving(Box<Receiving<H>>),
    /// The state is whole: whatever chunks still come change nothing.
    Whole,
    /// A block was made, and no snapshot is taken any more.
    Over,
}

/// A snapshot whose chunks are coming.
pub(crate) struct Receiving<H: Hasher> {
    restore: Restore<H>,
    /// Whether the disk is known to have room for all of it.
    has_room: bool,
}

/// Where state sync stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncStanding {
    /// Nothing was offered, and the state is none that a snapshot alone speaks for.
    Idle,
    /// Chunks are coming.
    Receiving { height: Height, progress: RestoreProgress },
    /// A restored state counts, of this run or of one before.
    Whole {
        /// Whether no block was made on it yet.
        unconfirmed: bool,
    },
}

/// What an engine asks of a chain that joins others.
pub(crate) trait StateSync {
    /// Judges a snapshot that is offered for a root the engine has verified.
    fn offer_snapshot(&self, offer: &Offer, app_hash: &[u8]) -> OfferVerdict;
    /// Takes a chunk in. The one that makes the snapshot whole makes it the state that counts.
    fn apply_chunk(&self, index: u32, chunk: &[u8], sender: &str) -> ChunkVerdict;
    /// Where state sync stands. Waits for the chunk that is being taken in, which may be the last: then a state is built.
    fn sync_standing(&self) -> SyncStanding;
    /// Whether nothing but a snapshot speaks for the state. Waits for nobody.
    fn is_unconfirmed(&self) -> bool;
}

impl<H: Hasher> StateSync for Local<H> {
    fn offer_snapshot(&self, offer: &Offer, app_hash: &[u8]) -> OfferVerdict {
        let mut syncing = self.syncing();
        let reject = |reason: String| OfferVerdict::Reject { reason };
        let live = self.live();
        let height = live.ledger.height();
        // spec: SNAP-9
        if height > live.ledger.genesis_height() {
            match live.generation.unconfirmed() {
                Ok(Some(restored)) if restored == height => {}
                Ok(_) => return reject(format!("this node has a state at height {height}, which stands")),
                Err(failure) => return OfferVerdict::Abort { reason: failure.message },
            }
            if offer.height == height.0 && app_hash == live.ledger.root().0.as_bytes() {
                *syncing = Syncing::Whole;
                return OfferVerdict::Accept;
            }
        }
        if !matches!(*syncing, Syncing::Receiving(_)) {
            match self.restore() {
                Ok(restore) => *syncing = Syncing::Receiving(Box::new(Receiving { restore, has_room: false })),
                Err(failure) => return OfferVerdict::Abort { reason: failure.message },
            }
        }
        let Syncing::Receiving(receiving) = &mut *syncing else { unreachable!("it was put there") };
        let verdict = receiving.restore.offer(offer, app_hash);
        if verdict != OfferVerdict::Accept {
            return verdict;
        }
        receiving.has_room = false;
        let discarded = if height > live.ledger.genesis_height() { self.discard(&live) } else { Ok(()) };
        // What a crash left of it may say by now how much it is.
        match discarded.and_then(|()| self.check_room(receiving)) {
            Ok(()) => OfferVerdict::Accept,
            Err(failure) => OfferVerdict::Abort { reason: failure.message },
        }
    }

    fn apply_chunk(&self, index: u32, chunk: &[u8], sender: &str) -> ChunkVerdict {
        let mut syncing = self.syncing();
        let receiving = match &mut *syncing {
            Syncing::Whole => return ChunkVerdict::Accept,
            Syncing::Idle | Syncing::Over => {
                return ChunkVerdict::Abort { reason: "no snapshot was accepted".to_owned() };
            }
            Syncing::Receiving(receiving) => receiving,
        };
        let verdict = receiving.restore.apply(index, chunk, sender);
        if verdict != ChunkVerdict::Accept {
            return verdict;
        }
        if let Err(failure) = self.check_room(receiving) {
            return ChunkVerdict::Abort { reason: failure.message };
        }
        if !receiving.restore.is_complete() {
            return verdict;
        }
        match self.settle(&mut receiving.restore) {
            Ok(()) => {
                *syncing = Syncing::Whole;
                ChunkVerdict::Accept
            }
            Err(verdict) => {
                if matches!(verdict, ChunkVerdict::RejectSnapshot { .. }) {
                    // Offered again it would be whole at once, and as wrong.
                    *syncing = Syncing::Idle;
                }
                verdict
            }
        }
    }

    fn sync_standing(&self) -> SyncStanding {
        match &*self.syncing() {
            // After a restart too: what is unconfirmed is so on the disk.
            Syncing::Idle if self.is_unconfirmed() => SyncStanding::Whole { unconfirmed: true },
            Syncing::Idle | Syncing::Over => SyncStanding::Idle,
            Syncing::Receiving(receiving) => match receiving.restore.target() {
                Some((height, _)) => SyncStanding::Receiving { height, progress: receiving.restore.progress() },
                None => SyncStanding::Idle,
            },
            Syncing::Whole => SyncStanding::Whole { unconfirmed: self.is_unconfirmed() },
        }
    }

    fn is_unconfirmed(&self) -> bool {
        let live = self.live();
        // A note that cannot be read confirms nothing and denies nothing: whoever needs to know reads it again.
        live.generation.unconfirmed().ok().flatten() == Some(live.ledger.height())
    }
}

impl<H: Hasher> Local<H> {
    fn syncing(&self) -> MutexGuard<'_, Syncing<H>> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a block was made on the state, if nothing but a snapshot spoke for it until now, and removes what was
    /// staged of others: none is taken any more.
    // spec: SNAP-9
    pub(crate) fn confirmed(&self, generation: &Generation) -> Result<(), Failure> {
        let mut syncing = self.syncing();
        if generation.unconfirmed()?.is_some() {
            generation.confirm()?;
            tracing::info!("a block was made on the restored state: it is confirmed");
        }
        if !matches!(std::mem::replace(&mut *syncing, Syncing::Over), Syncing::Over) {
            let staging = self.staging();
            match fs::remove_dir_all(&staging) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // It is in nobody's way, and the first block after the next start tries again.
                    tracing::warn!(%error, "{} could not be removed", staging.display());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses a snapshot that the disk has no room for, once it is known how much it is: before most of it is staged.
    // spec: SNAP-16
    fn check_room(&self, receiving: &mut Receiving<H>) -> Result<(), Failure> {
        let progress = receiving.restore.progress();
        if let (Some(total), false) = (progress.total, receiving.has_room) {
            let staging = self.staging();
            let directory = Directory::new(&staging).map_err(|error| Failure::io(staging.display(), &error))?;
            room::check(&directory, room::of_the_rest(total, progress.done), self.reserve_percent)?;
            receiving.has_room = true;
        }
        Ok(())
    }

    /// Takes over what a crash left of a restore, if anything.
    fn restore(&self) -> Result<Restore<H>, Failure> {
        let staging = self.staging();
        let failed = |error: &dyn std::error::Error| Failure::io(staging.display(), error);
        let directory = Directory::new(&staging).map_err(|error| failed(&error))?;
        let (params, limits) = (snapshot_params(&self.genesis), RestoreLimits::default());
        Restore::open(Arc::new(directory), params, limits).map_err(|error| failed(&error))
    }

    /// Begins anew, as if no snapshot had ever been restored.
    // spec: SNAP-9
    fn discard(&self, unconfirmed: &Live<H>) -> Result<(), Failure> {
        tracing::warn!(height = %unconfirmed.ledger.height(), "another snapshot takes the place of the restored state");
        let fresh = self.begun_anew(self.generations.fresh()?)?;
        self.replace(fresh)
    }

    /// Makes another generation the one that counts.
    fn replace(&self, by: Live<H>) -> Result<(), Failure> {
        self.generations.switch(&by.generation)?;
        let before = {
            let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *live, by)
        };
        // Whoever still reads it keeps its files open. Left behind it is in nobody's way, and the next start removes it:
        // no reason to take back what counts by now.
        if let Err(failure) = self.generations.discard(&before.generation) {
            tracing::warn!(%failure, "the state before could not be removed");
        }
        Ok(())
    }

    /// Builds a state of all chunks and makes it the one that counts.
    // spec: SNAP-9, STORE-10
    fn settle(&self, restore: &mut Restore<H>) -> Result<(), ChunkVerdict> {
        let abort = |failure: Failure| ChunkVerdict::Abort { reason: failure.message };
        let (height, root) = restore.target().ok_or_else(|| abort(Failure::error("there is no target")))?;
        let before = Some(Standing { height: self.ledger().height(), root: self.ledger().root() });
        let generation = self.generations.fresh().map_err(abort)?;
        let built = self.build(restore, &generation, height, root);
        let settled = built.and_then(|store| {
            let live = self.over(generation.clone(), store).map_err(abort)?;
            let ours = self.ledger();
            // spec: SNAP-19. The root is verified: what does not fit is our own genesis.json.
            check_fits(&live.ledger.view(), height, Some((ours.facts(), ours.genesis_hash()))).map_err(|error| {
                ChunkVerdict::Abort { reason: format!("genesis.json is of another chain: {error}") }
            })?;
            live.generation.mark_unconfirmed(height).map_err(abort)?;
            self.replace(live).map_err(abort)
        });
        match settled {
            Ok(()) => {
                let event = NodeEvent::Restored { source: cut("state sync over ABCI".to_owned()) };
                let after = Some(Standing { height, root });
                self.own_log().told(Who::Node, event, Stood { before, after });
                if let Err(error) = restore.clear() {
                    // The state stands; the next start clears what is left.
                    tracing::warn!(error = causes(&error), "staged chunks could not be removed");
                }
                Ok(())
            }
            Err(verdict) => {
                if let Err(failure) = self.generations.discard_unless_current(&generation) {
                    tracing::warn!(%failure, "a state that is not taken could not be removed");
                }
                Err(verdict)
            }
        }
    }

    fn build(
        &self,
        restore: &mut Restore<H>,
        generation: &Generation,
        height: Height,
        root: Root,
    ) -> Result<Store<H>, ChunkVerdict> {
        // Only our own machine can fail here: every entry is proven.
        let failed = |error: &StoreError| ChunkVerdict::Abort { reason: causes(error) };
        let path = generation.state();
        let directory = Directory::new(&path)
            .map_err(|error| ChunkVerdict::Abort { reason: format!("{}: {error}", path.display()) })?;
        let mut building =
            Store::<H>::build(Arc::new(directory), self.options.clone(), height).map_err(|error| failed(&error))?;
        let push = |namespace: &Namespace, key: &Key, value: &[u8]| building.push(namespace, key, value);
        restore.entries(push).map_err(|error| match error {
            EntriesError::Restore(error) => error.verdict(),
            EntriesError::Taker(error) => failed(&error),
        })?;
        building.finish(root).map_err(|error| match error {
            // All chunks are proven and still it is not the root: it is of no tree.
            StoreError::WrongRoot { .. } => ChunkVerdict::RejectSnapshot { reason: error.to_string() },
            error => failed(&error),
        })
    }
}
