//! Building aside, whatever strategy it is for: room on the disk, a store of entries that are handed out one by one, and the blocks
//! of this home that are run on it.
//!
//! Rules: `spec/recovery.md`, RECOVER-7 and RECOVER-8.

use super::{Place, machine, of_ledger};
use crate::engine;
use crate::generations::Generation;
use crate::room;
use keelstone_codec::{Height, Namespace, Root};
use keelstone_ledger::{Ledger, Unfit, check_fits};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Store};
use keelstone_sync::library::{Each, LibraryError};
use keelstone_sync::peers::Version;
use keelstone_sync::recovery::{Built, Failed, Strategy};
use keelstone_tree::{Hasher, ReadError};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

impl<H: Hasher> Place<'_, H> {
    pub(super) fn options(&self) -> Options {
        engine::store_options(self.config)
    }

    pub(super) fn directory(path: &Path) -> Result<Arc<Directory>, Failed> {
        let directory =
            Directory::new(path).map_err(|error| Failed::Machine(format!("{}: {error}", path.display())))?;
        Ok(Arc::new(directory))
    }

    /// An empty generation to build in.
    pub(super) fn fresh(&mut self) -> Result<Generation, Failed> {
        let generation = self.generations.fresh().map_err(machine)?;
        self.aside = Some(generation.clone());
        Ok(generation)
    }

    /// Refuses what the disk has no room for: so many bytes, and the blocks that are taken over. What it replaces is removed
    /// when it counts, so nothing is kept back.
    // spec: RECOVER-8
    pub(super) fn check_room(&self, state_bytes: u64) -> Result<(), Failed> {
        let blocks = self.replaced.generation.as_ref().map_or(0, |current| bytes_of(&current.blocks()));
        let data = Self::directory(&self.home.data())?;
        Ok(room::check(&data, state_bytes.saturating_add(blocks), 0)?)
    }

    /// A store of the entries that `feed` hands out.
    pub(super) fn build_store(
        &self,
        generation: &Generation,
        target: (Height, Root),
        feed: &mut dyn FnMut(Each<'_>) -> Result<(), Failed>,
    ) -> Result<Store<H>, Failed> {
        engine::build_store(Self::directory(&generation.state())?, self.options(), target, &mut |each| {
            feed(&mut |namespace: &Namespace, key: &[u8], value: &[u8]| match self.wish.stop.is_asked() {
                true => Err(LibraryError::Stopped),
                false => each(namespace, key, value),
            })
        })
    }

    /// Runs the blocks of this home on a state, up to the target.
    pub(super) fn run_on(
        &mut self,
        strategy: Strategy,
        store: Store<H>,
        generation: &Generation,
        target: &Version,
    ) -> Result<Built, Failed> {
        let height = store.height().unwrap_or_default();
        let needed = target.height.0.saturating_sub(height.0);
        let ledger = self.ledger_over(store, generation)?;
        let expected = self.genesis.first_state().map_err(|error| Failed::Damaged(error.to_string()))?.hash;
        // spec: SNAP-19
        check_fits(&ledger.view(), height, Some((&self.genesis.facts(), expected))).map_err(|error| match error {
            Unfit::Read(error) if !matches!(error, ReadError::Damaged { .. }) => Failed::Machine(error.to_string()),
            error => Failed::Misbehaved(format!("the state is not one of this chain: {error}")),
        })?;
        self.run_blocks(strategy, ledger, needed, target)
    }

    pub(super) fn allow(&self, needed: u64) -> Result<(), Failed> {
        let limit = self.config.recovery.max_block_replay;
        if needed > limit { Err(Failed::TooFar { needed, limit }) } else { Ok(()) }
    }

    pub(super) fn run_blocks(
        &mut self,
        strategy: Strategy,
        ledger: Ledger<H>,
        needed: u64,
        target: &Version,
    ) -> Result<Built, Failed> {
        let blocks = match needed {
            0 => 0,
            _ => {
                let bodies = self.bodies.clone()?;
                let mut done = 0;
                let run = ledger.run_kept(&bodies, target.height, &mut |_| {
                    done += 1;
                    (self.wish.progress)(strategy, done, needed);
                    match self.wish.stop.is_asked() {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                });
                run.map_err(of_ledger)?
            }
        };
        self.wish.stop.check().map_err(machine)?;
        ledger.store().flush()?;
        let at = Version { height: ledger.height(), root: ledger.root() };
        Ok(Built { at, entries: ledger.view().totals().count, blocks })
    }

    /// Bytes of the state that counts, as it lies on the disk: about what another takes.
    pub(super) fn state_bytes(&self) -> u64 {
        self.replaced.generation.as_ref().map_or(0, |current| bytes_of(&current.state()))
    }
}

/// Bytes of a file, or of the files of a directory; what cannot be looked at counts as none.
fn bytes_of(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return fs::metadata(path).map_or(0, |metadata| metadata.len()) };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum()
}
