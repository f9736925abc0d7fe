//! What becomes of the blocks and receipts of this home: copied beside what is built, or left behind where they are damaged, kept
//! then for whoever wants to look, and said.
//!
//! Rules: `spec/recovery.md`, RECOVER-9.

use super::{Place, Wanted, machine, of_blocks, of_ledger};
use crate::exit::{Failure, causes};
use crate::generations::Generation;
use keelstone_codec::Height;
use keelstone_ledger::{Bodies, Ledger, LedgerError, PoolLimits};
use keelstone_store::Store;
use keelstone_store::kv::RedbKv;
use keelstone_sync::recovery::Failed;
use keelstone_tree::Hasher;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What is said where the blocks of the old state cannot be taken over.
pub(super) const LEFT_BEHIND: &str =
    "the blocks and receipts below the snapshot are lost or damaged, and not taken over";

impl<H: Hasher> Place<'_, H> {
    /// A ledger over a state, with the blocks below it that this home has: a copy of the database gives up those above. Only what
    /// is damaged is left behind; what the machine could not read or write may be whole, and this home has no other copy of it.
    // spec: RECOVER-9
    pub(super) fn ledger_over(&mut self, store: Store<H>, generation: &Generation) -> Result<Ledger<H>, Failed> {
        self.left_behind = None;
        let Some(current) = &self.replaced.generation else {
            self.left_behind = self.replaced.damage.as_ref().map(|failure| failure.message.clone());
            return self.ledger_without_blocks(store, generation);
        };
        let from = current.blocks();
        let copied = |error: io::Error| Failed::Machine(format!("could not copy {}: {error}", from.display()));
        let taken = self.bodies.clone().and_then(|_| {
            RedbKv::copy(&from, &generation.blocks()).map_err(copied)?;
            RedbKv::open(&generation.blocks()).map_err(of_blocks)
        });
        let (store, why) = match taken {
            Ok(kv) => match self.ledger_of(store, Arc::new(kv)) {
                Ok(ledger) => return Ok(ledger),
                Err(LedgerError::Store(error)) if matches!(of_blocks(error.clone()), Failed::Machine(_)) => {
                    return Err(of_blocks(error));
                }
                Err(error) => (Store::open(Self::directory(&generation.state())?, self.options())?, causes(&error)),
            },
            Err(failed @ Failed::Machine(_)) => return Err(failed),
            Err(failed) => (store, failed.to_string()),
        };
        tracing::error!(why, "{LEFT_BEHIND}");
        self.left_behind = Some(why);
        self.ledger_without_blocks(store, generation)
    }

    /// What the result lacks of the blocks that were here, or must have been.
    // spec: RECOVER-9
    pub(super) fn look_for_lost(&mut self, ledger: &Ledger<H>, kv: Arc<RedbKv>) -> Result<(), Failed> {
        (self.above, self.lost) = (None, Vec::new());
        let (height, last) = (ledger.height(), self.last().ok().flatten());
        if self.left_behind.is_some() {
            return Ok(());
        }
        let newest = self.wish.wanted == Wanted::Newest;
        // Of the last one an engine of validators certifies the root one height later, and brings it again.
        let is_uncertified = |above: Height| !self.genesis.validators.is_empty() && above == height.next();
        if let Some(last) = last.filter(|last| newest && *last > height && !is_uncertified(*last)) {
            self.above = Some(height.next()..=last);
        }
        let base = self.base();
        let had = last.is_some() || self.here().ok().and_then(Store::height).is_some_and(|height| height > base);
        let first = Bodies::over(kv).last_on_record().map_err(of_blocks)?.unwrap_or(base).next();
        if had && first <= height {
            self.lost.push(format!("there is nothing here any more of blocks {first} to {height}"));
        }
        Ok(())
    }

    /// Keeps what there is of blocks that are not taken over, and says so. Done last, so that whoever fails before leaves nothing.
    // spec: RECOVER-9
    pub(super) fn keep_blocks(&mut self) -> Result<(), Failed> {
        let left = match (&self.left_behind, &self.above) {
            (Some(why), _) => format!("{LEFT_BEHIND}: {why}"),
            (None, Some(above)) => {
                let (first, last) = (above.start(), above.end());
                let last = if last.0 == u64::MAX { "the last".to_owned() } else { last.to_string() };
                format!("of blocks {first} to {last} no root can be read, and they are not taken over")
            }
            (None, None) => return Ok(()),
        };
        let of = match &self.replaced.generation {
            Some(current) => vec![current.clone()],
            None => self.generations.counted().map_err(machine)?,
        };
        let kept: Vec<_> = of
            .iter()
            .filter(|generation| generation.has_blocks())
            .map(|generation| Ok(self.generations.keep_blocks(generation)?.display().to_string()))
            .collect::<Result<_, Failure>>()
            .map_err(machine)?;
        let kept = if kept.is_empty() {
            String::new()
        } else {
            format!("; what there is of them is kept in {}", kept.join(", "))
        };
        self.lost.push(left + &kept);
        Ok(())
    }

    /// A ledger over a state and blocks whose last ones can be read.
    fn ledger_of(&self, store: Store<H>, kv: Arc<RedbKv>) -> Result<Ledger<H>, LedgerError> {
        let ledger = Ledger::open(store, kv.clone(), self.registry.clone(), PoolLimits::default())?;
        Bodies::over(kv).last_on_record()?;
        Ok(ledger)
    }

    fn ledger_without_blocks(&self, store: Store<H>, generation: &Generation) -> Result<Ledger<H>, Failed> {
        // The log that was copied beside it is of the other one.
        remove(&generation.blocks())?;
        remove(&generation.blocks().with_extension("wal"))?;
        let kv = Arc::new(RedbKv::open(&generation.blocks())?);
        Ledger::open(store, kv, self.registry.clone(), PoolLimits::default()).map_err(of_ledger)
    }
}

fn remove(path: &Path) -> Result<(), Failed> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failed::Machine(format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}
