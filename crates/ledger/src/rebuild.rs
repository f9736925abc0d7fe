//! Recovery of an earlier state: a second chain, in a store of its own, as this one was at a height.
//!
//! It is made by running the blocks again, from the genesis or from the lowest state that is kept. After each, record,
//! receipts, continuations, audit records and every root that is still kept are compared with the chain's, so what comes
//! out is the chain's state at that height or an error that names the first height at which it is not. This chain is only
//! read.
//!
//! Rules: `spec/ledger.md`, HISTORY-7; `spec/snapshot.md`, SNAP-20.

use crate::bodies::last_by;
use crate::genesis::Genesis;
use crate::ledger::{Ledger, LedgerError};
use crate::mempool::PoolLimits;
use crate::replay::whole;
use crate::run::Refused;
use crate::transaction::TxId;
use keelstone_codec::{Height, Root, Timestamp};
use keelstone_store::kv::Kv;
use keelstone_store::{Store, StoreError};
use keelstone_tree::Hasher;
use std::sync::Arc;

/// Up to where a chain is rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// A height.
    Height(Height),
    /// The last block whose time is not after this.
    Time(Timestamp),
    /// The block that holds this record of the audit log.
    Record(u64),
    /// The block that ran this transaction.
    Transaction(TxId),
}

/// What a rebuild went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// The height it began with: the genesis', or that of the lowest state that is kept.
    pub from: Height,
    /// The height it came to.
    pub height: Height,
    /// Its root.
    pub root: Root,
    /// Blocks that were run.
    pub blocks: u64,
    /// Heights between that left nothing and were taken in without their block: they are again.
    pub without_block: u64,
    /// Operations of those that took effect, each with the state hash it had.
    pub operations: u64,
    /// Heights whose root was compared; those of the others are no longer kept.
    pub roots_compared: u64,
}

/// Why a chain was not rebuilt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// What it takes is not kept here: neither the blocks from the first on, nor a state at or below the height. Another
    /// node, or a snapshot, may have it.
    #[error("height {to} cannot be rebuilt here: block {missing} is not kept, and the lowest state is of height {low}")]
    Missing {
        /// The height that was asked for.
        to: Height,
        /// The first block that is not kept.
        missing: Height,
        /// The lowest height whose state is kept.
        low: Height,
    },
    /// There is no block so early.
    #[error("the chain begins at {first}: there is no block at or before {found}")]
    TooEarly {
        /// The time of the genesis.
        first: Timestamp,
        /// What was asked for.
        found: Timestamp,
    },
    /// There is no such transaction in a block that is kept.
    #[error("there is no transaction {0} in a block that is kept")]
    NoTransaction(TxId),
    /// A height came to something else. The damage, or the difference between two programs, is there.
    #[error("height {height} differs: {what}")]
    Differs {
        /// The height: the first at which the two part.
        height: Height,
        /// What was compared.
        what: String,
    },
    /// Something needed could not be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
impl From<StoreError> for RebuildError {
    fn from(error: StoreError) -> Self {
        Self::Ledger(error.into())
    }
}

impl<H: Hasher> Ledger<H> {
    /// The height that is meant.
    ///
    /// # Errors
    /// [`LedgerError::NotYet`], [`LedgerError::NoRecord`], [`RebuildError::TooEarly`],
    /// [`RebuildError::NoTransaction`].
    pub fn height_until(&self, until: Until) -> Result<Height, RebuildError> {
        let last = self.height();
        match until {
            Until::Height(height) if height > last => Err(LedgerError::NotYet { height, last }.into()),
            Until::Height(height) => Ok(height),
            Until::Transaction(id) => {
                self.transaction(&id)?.map(|located| located.height).ok_or(RebuildError::NoTransaction(id))
            }
            Until::Record(index) => {
                let (found, _) = self.audit_records(index, 1, &|_| true)?;
                let first = self.audit_range()?.start;
                Ok(found.first().ok_or(LedgerError::NoRecord { index, first })?.record.height)
            }
            Until::Time(time) => {
                let first = self.facts().genesis_time;
                if time < first {
                    return Err(RebuildError::TooEarly { first, found: time });
                }
                Ok(last_by(&*self.kv, time, self.genesis_height()..=last, |height| self.block(height))?)
            }
        }
    }

    /// Makes this chain, as it was at a height, anew in an empty store and database. `progress` hears of every height with
    /// its root.
    ///
    /// # Errors
    /// [`RebuildError`]. What the store and the database hold then is no chain's.
    // spec: HISTORY-7
    pub fn rebuild(
        &self,
        genesis: &Genesis,
        to: Height,
        store: Store<H>,
        kv: Arc<dyn Kv>,
        progress: &mut dyn FnMut(Height, Root),
    ) -> Result<(Self, Rebuilt), RebuildError> {
        let base = self.genesis_height();
        if to < base || to > self.height() {
            return Err(LedgerError::NotYet { height: to, last: self.height() }.into());
        }
        let (registry, pool) = (self.registry().clone(), PoolLimits::default());
        // The first state of a chain that inherits another's takes that one; here it may be kept.
        let missing = match self.first_missing(to)?.or(genesis.inherits.as_ref().map(|_| base)) {
            Some(missing) => missing,
            None => {
                let made = Self::create(store, kv, registry, genesis, pool)?;
                let (expected, found) = (self.genesis_hash(), made.genesis_hash());
                if expected != found {
                    let what = format!("the genesis has hash {found}, the chain's has {expected}");
                    return Err(RebuildError::Differs { height: base, what });
                }
                let rebuilt = self.run_on(&made, to, progress)?;
                return Ok((made, rebuilt));
            }
        };
        let low = self.store().low().unwrap_or_default();
        if low > to {
            return Err(RebuildError::Missing { to, missing, low });
        }
        let view = self.view_at(low)?;
        let (expected, found) = (view.root(), store.commit(low, whole(&view)?)?);
        if expected != found {
            let what = format!("its entries give root {found}, the store says {expected}");
            return Err(RebuildError::Differs { height: low, what });
        }
        let made = Self::open(store, kv, registry, pool)?;
        let rebuilt = self.run_on(&made, to, progress)?;
        Ok((made, rebuilt))
    }

    /// The first block up to a height whose body is not kept. Bodies are kept from some height on.
    fn first_missing(&self, to: Height) -> Result<Option<Height>, RebuildError> {
        let first = self.facts().initial_height;
        if to < first {
            return Ok(None);
        }
        match self.block_to_run(first) {
            Ok(_) => Ok(None),
            Err(LedgerError::NoBlock { height }) => Ok(Some(height)),
            Err(error) => Err(error.into()),
        }
    }

    fn run_on(&self, made: &Self, to: Height, progress: &mut dyn FnMut(Height, Root)) -> Result<Rebuilt, RebuildError> {
        let from = made.height();
        let mut rebuilt = Rebuilt {
            from,
            height: from,
            root: made.root(),
            blocks: 0,
            without_block: 0,
            operations: 0,
            roots_compared: 0,
        };
        let compare = |height: Height, found: Root, rebuilt: &mut Rebuilt| match self.root_at(height)? {
            Some(expected) if expected != found => {
                let what = format!("the root is {found}, the chain's was {expected}");
                Err(RebuildError::Differs { height, what })
            }
            kept => {
                rebuilt.roots_compared += u64::from(kept.is_some());
                Ok(())
            }
        };
        compare(from, made.root(), &mut rebuilt)?;
        while rebuilt.height < to {
            let height = rebuilt.height.next();
            let differs = |what: String| RebuildError::Differs { height, what };
            if let Some(certificate) = self.certificate(height)? {
                made.keep_certificate(height, certificate);
            }
            match self.block_to_run(height)? {
                Some(block) => {
                    let pending = made.run(block, Refused::Receipt).map_err(|error| differs(error.to_string()))?;
                    let executed = pending.executed();
                    if let Some(what) = self.difference(executed)? {
                        return Err(differs(what));
                    }
                    if let Some(audit) = self.block_audit(height)?
                        && executed.audit.as_ref().map(|appended| &appended.records) != Some(&audit)
                    {
                        return Err(differs("its audit records".to_owned()));
                    }
                    rebuilt.operations += executed.operations();
                    compare(height, pending.root(), &mut rebuilt)?;
                    made.commit(pending)?;
                    rebuilt.blocks += 1;
                }
                None => {
                    compare(height, made.root(), &mut rebuilt)?;
                    made.take_nothing(height)?;
                    rebuilt.without_block += 1;
                }
            }
            (rebuilt.height, rebuilt.root) = (height, made.root());
            progress(height, rebuilt.root);
        }
        Ok(rebuilt)
    }
}
