//! The strategies that need nobody else: the snapshots of this home, the state that is here taken for one, and its blocks from the
//! first on. A snapshot's own root is not believed: the blocks on it have to come to the target's.
//!
//! Rules: `spec/recovery.md`, RECOVER-1 and RECOVER-7.

use super::{Place, SNAPSHOTS_TRIED_MAX, machine, of_ledger};
use crate::library::{self, look_into_library};
use crate::room;
use keelstone_ledger::{Ledger, PoolLimits};
use keelstone_store::kv::RedbKv;
use keelstone_store::{Store, StoreError, View};
use keelstone_sync::library::{Expected, Info, Origin};
use keelstone_sync::peers::Version;
use keelstone_sync::recovery::{Built, Failed, Strategy, World as _};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{Hasher, KeyRange, Read as _};
use std::ops::ControlFlow;
use std::sync::Arc;

impl<H: Hasher> Place<'_, H> {
    /// Tries one candidate after the other until one has built the target. What the others built is removed; `none`
    /// is the reason if there are no candidates, and `name` is for the log.
    pub(super) fn first_of<T>(
        &mut self,
        candidates: impl IntoIterator<Item = T>,
        none: Failed,
        name: impl Fn(&T) -> String,
        mut build: impl FnMut(&mut Self, &T) -> Result<Built, Failed>,
    ) -> Result<Built, Failed> {
        let mut why = none;
        for candidate in candidates {
            self.wish.stop.check().map_err(machine)?;
            match build(self, &candidate) {
                Ok(built) => return Ok(built),
                Err(failed) => {
                    tracing::warn!(what = name(&candidate), %failed, "it is of no use");
                    self.discard();
                    why = failed;
                }
            }
        }
        Err(why)
    }

    pub(super) fn local_snapshot(&mut self, target: &Version) -> Result<Built, Failed> {
        let found = look_into_library(self.home).map_err(machine)?;
        let Some((library, _)) = found else {
            let none = Failed::Unavailable("there are no snapshots here".to_owned());
            return self.taken_as_it_is(target).unwrap_or(Err(none));
        };
        let below = library.list().into_iter().filter(|info| info.id.height <= target.height);
        let mut why = None;
        let usable = below.filter(|info| match self.usable(version_of(info), target) {
            Ok(()) => true,
            Err(failed) => {
                why.get_or_insert(failed);
                false
            }
        });
        let list: Vec<Info> = usable.take(SNAPSHOTS_TRIED_MAX).collect();
        let none = why.unwrap_or_else(|| {
            Failed::Unavailable(format!("there is no snapshot here of height {} or below", target.height))
        });
        let name = |info: &Info| format!("the snapshot of height {} here", info.id.height);
        let built = self.first_of(list, none, name, |place, info| {
            place.check_room(room::of(info.totals))?;
            let generation = place.fresh()?;
            let pin = library.pin(info.id).ok_or(Failed::Unavailable("the snapshot is gone".to_owned()))?;
            let expected = Expected { params: Some(place.params()), root: Some(info.root) };
            let built = place.build_store(&generation, (info.id.height, info.root), &mut |each| {
                Origin::Kept(&pin).entries(&expected, each, &mut |_| ControlFlow::Continue(()))?;
                Ok(())
            });
            if matches!(built, Err(Failed::Damaged(_))) {
                place.damaged.push(pin);
            }
            place.run_on(Strategy::LocalSnapshot, built?, &generation, target)
        });
        built.or_else(|why| self.taken_as_it_is(target).unwrap_or(Err(why)))
    }

    /// The state that counts, where it is what there is to begin with: it opens, and of the target the blocks here say nothing, since
    /// they are damaged or lost. Where they do, it is they who say that something is wrong with the state.
    // spec: RECOVER-1
    pub(super) fn as_it_is(&mut self, target: &Version) -> Option<View<H>> {
        if matches!(self.recorded(target.height), Ok(Some(_))) {
            return None;
        }
        let view = self.here().ok()?.view();
        let version = Version { height: view.height()?, root: view.root() };
        self.usable(version, target).is_ok().then_some(view)
    }

    /// Takes the state that counts for a snapshot of itself: each entry is proven as it is read, and its root computed anew. None
    /// if it is nothing to begin with.
    fn taken_as_it_is(&mut self, target: &Version) -> Option<Result<Built, Failed>> {
        let view = self.as_it_is(target)?;
        let built = self.build_of(&view, target);
        Some(built.inspect_err(|failed| {
            tracing::warn!(%failed, "the state here is of no use");
            self.discard();
        }))
    }

    fn build_of(&mut self, view: &View<H>, target: &Version) -> Result<Built, Failed> {
        self.check_room(room::of(view.totals()))?;
        let generation = self.fresh()?;
        let version = (view.height().unwrap_or_default(), view.root());
        let store = self.build_store(&generation, version, &mut |each| {
            for (namespace, _) in view.namespaces() {
                for entry in view.scan(&namespace, KeyRange::all()) {
                    let (key, value) = entry.map_err(StoreError::from)?;
                    each(&namespace, &key, &value)?;
                }
            }
            Ok(())
        })?;
        self.run_on(Strategy::LocalSnapshot, store, &generation, target)
    }

    pub(super) fn block_replay(&mut self, target: &Version) -> Result<Built, Failed> {
        let needed = target.height.0.saturating_sub(self.base().0);
        self.allow(needed)?;
        if self.genesis.inherits.is_some() {
            return Err(Failed::Unavailable(
                "the chain inherits its first state, which is not in its genesis".to_owned(),
            ));
        }
        if needed > 0 {
            self.bodies.clone()?;
        }
        self.check_room(self.state_bytes())?;
        let generation = self.fresh()?;
        let store = Store::<H>::create(Self::directory(&generation.state())?, self.options())?;
        let kv = Arc::new(RedbKv::open(&generation.blocks())?);
        let ledger = Ledger::create(store, kv, self.registry.clone(), &self.genesis, PoolLimits::default())
            .map_err(of_ledger)?;
        // Without a block to run none was taken over.
        self.left_behind = self.bodies.as_ref().err().map(ToString::to_string);
        self.run_blocks(Strategy::BlockReplay, ledger, needed, target)
    }

    pub(super) fn params(&self) -> SnapshotParams {
        library::snapshot_params(&self.genesis)
    }

    /// Whether a version can lead to a target, or why not. The blocks on the way are looked at where they begin and end; what is
    /// wrong between is found when they are run.
    // spec: RECOVER-1, RECOVER-7
    pub(super) fn usable(&self, version: Version, target: &Version) -> Result<(), Failed> {
        let Version { height, root } = version;
        if height > target.height {
            return Err(Failed::Unavailable(format!("it is of height {height}, the target is {}", target.height)));
        }
        let known = match self.recorded(height) {
            _ if height == target.height => Some(target.root),
            Ok(known) => known.map(|known| known.0),
            Err(failed @ Failed::Machine(_)) => return Err(failed),
            // The blocks from there lead to the target, or do not.
            Err(_) => None,
        };
        if let Some(known) = known.filter(|known| *known != root) {
            return Err(Failed::Misbehaved(format!("it says that height {height} has root {root}, which is {known}")));
        }
        if height == target.height {
            return Ok(());
        }
        self.allow(target.height.0 - height.0)?;
        let bodies = self.bodies.as_ref().map_err(Failed::clone)?;
        let below = target.height.prev().unwrap_or_default();
        bodies.lead_over(height.next(), Some(root)).map_err(of_ledger)?;
        bodies.lead_over(target.height, bodies.root(below).map_err(of_ledger)?).map_err(of_ledger)
    }
}

/// What a snapshot is of.
pub(super) fn version_of(snapshot: &Info) -> Version {
    Version { height: snapshot.id.height, root: snapshot.root }
}
