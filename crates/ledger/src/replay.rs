//! Running history again, to see that it comes to the same.
//!
//! A replay begins with the state before its first block, in a store of its own in memory, and runs each block of the
//! range on it. That state is copied from the store, or made anew from the genesis, which needs nothing that is kept.
//! After each, root, record and receipts must be those the chain has. The chain itself is only read, so a replay can run
//! beside a node at work.
//!
//! Rules: `spec/ledger.md`, HISTORY-4; `spec/snapshot.md`, SNAP-20.

use crate::block::{BlockRecord, OperationReceipt, Receipt, Verdict};
use crate::foresight::{BundleProofError, same_receipt};
use crate::genesis::Genesis;
use crate::ledger::{Ledger, LedgerError};
use crate::run::{self, Executed, Refused};
use crate::transition::{TransitionError, same_record};
use keelstone_codec::{Height, Root};
use keelstone_execution::Registry;
use keelstone_store::files::MemoryFiles;
use keelstone_store::{Options, Store, StoreError, View};
use keelstone_tree::{Diff, Hasher, KeyRange, Read, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What a replay went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Blocks.
    pub blocks: u64,
    /// Heights between that left nothing and were taken in without their block: there is none to run.
    pub without_block: u64,
    /// Their transactions.
    pub transactions: u64,
    /// Operations of those that succeeded.
    pub operations: u64,
    /// Heights whose root was compared, the one before the first block among them; the others are no longer kept.
    pub compared: u64,
    /// The root at the end.
    pub root: Root,
}

/// Where a replay and the chain part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The range is empty, or does not lie within the chain's blocks.
    #[error("the chain has blocks {low} to {high}: {from} to {to} cannot be replayed")]
    Range {
        /// The first of the range.
        from: Height,
        /// The last of it.
        to: Height,
        /// The chain's first block.
        low: Height,
        /// The chain's last.
        high: Height,
    },
    /// The entries of the first version do not give its root: the store is damaged.
    #[error("the entries at height {height} give root {found}, the store says {expected}")]
    Base {
        /// The height.
        height: Height,
        /// What the store says.
        expected: Root,
        /// What its entries give.
        found: Root,
    },
    /// A block came to something else. The damage, or the difference between two programs, is at this height.
    #[error("block {height} differs: {what}")]
    Differs {
        /// The height: the first at which the two part.
        height: Height,
        /// What was compared.
        what: String,
    },
    /// Something needed could not be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
impl From<StoreError> for ReplayError {
    fn from(error: StoreError) -> Self {
        Self::Ledger(error.into())
    }
}

impl<H: Hasher> Ledger<H> {
    /// Runs a range of blocks again on the state before it. `progress` hears of every block with its root.
    ///
    /// # Errors
    /// [`ReplayError::Differs`] at the first height that comes to something else; otherwise what could not be read.
    // spec: HISTORY-4
    pub fn replay(
        &self,
        range: RangeInclusive<Height>,
        progress: &mut dyn FnMut(Height, Root),
    ) -> Result<Replayed, ReplayError> {
        let (from, to) = (*range.start(), *range.end());
        let (low, high) = (self.facts().initial_height, self.height());
        let Some(base) = from.prev().filter(|_| low <= from && from <= to && to <= high) else {
            return Err(ReplayError::Range { from, to, low, high });
        };
        self.replay_on(&self.copy_of(base)?, 1, to, progress)
    }

    /// Runs all blocks up to a height again, from the genesis: also where the first states are no longer kept, unless the
    /// genesis inherits its state. Up to the height of the genesis itself there is no block to run, and only the root of
    /// its state is compared.
    ///
    /// # Errors
    /// As [`Ledger::replay`]; [`ReplayError::Base`] if the chain does not begin with this genesis.
    // spec: HISTORY-4
    pub fn replay_from_genesis(
        &self,
        genesis: &Genesis,
        to: Height,
        progress: &mut dyn FnMut(Height, Root),
    ) -> Result<Replayed, ReplayError> {
        let (base, high) = (self.genesis_height(), self.height());
        if to < base || high < to {
            let low = self.facts().initial_height;
            return Err(ReplayError::Range { from: low, to, low, high });
        }
        if genesis.inherits.is_some() {
            return self.replay_on(&self.copy_of(base)?, 1, to, progress);
        }
        let first = genesis.first_state().map_err(LedgerError::from)?;
        let scratch = Store::create(Arc::new(MemoryFiles::new()), scratch_options())?;
        let found = scratch.commit(base, first.diff)?;
        let kept = self.root_at(base)?;
        if let Some(expected) = kept.filter(|expected| *expected != found) {
            return Err(ReplayError::Base { height: base, expected, found });
        }
        self.replay_on(&scratch, u64::from(kept.is_some()), to, progress)
    }

    /// Runs the blocks above the version in `scratch`, of which `compared` roots were compared.
    fn replay_on(
        &self,
        scratch: &Store<H>,
        compared: u64,
        to: Height,
        progress: &mut dyn FnMut(Height, Root),
    ) -> Result<Replayed, ReplayError> {
        let mut replayed =
            Replayed { blocks: 0, without_block: 0, transactions: 0, operations: 0, compared, root: scratch.root() };
        let mut last = scratch.height().expect("a copy was committed at the height before the first block");
        while last < to {
            let height = last.next();
            let differs = |what: String| ReplayError::Differs { height, what };
            let changes = match self.block_to_run(height)? {
                Some(block) => {
                    let root = scratch.root();
                    let executed = run::execute(self.registry(), scratch.view(), root, block, Refused::Receipt)
                        .map_err(|error| differs(error.to_string()))?;
                    if let Some(what) = self.difference(&executed)? {
                        return Err(differs(what));
                    }
                    replayed.blocks += 1;
                    replayed.transactions += executed.receipts.len() as u64;
                    replayed.operations += executed.operations();
                    executed.changes.to_diff()
                }
                None => {
                    replayed.without_block += 1;
                    Diff::default()
                }
            };
            let found = scratch.commit(height, changes)?;
            if let Some(expected) = self.root_at(height)? {
                if expected != found {
                    return Err(differs(format!("root: replayed {found}, the store has {expected}")));
                }
                replayed.compared += 1;
            }
            replayed.root = found;
            progress(height, found);
            last = height;
        }
        Ok(replayed)
    }

    /// The first thing in which a block that was run again is not what is kept of it: record, receipts, continuations.
    // spec: HISTORY-4, HISTORY-7
    pub(crate) fn difference(&self, executed: &Executed) -> Result<Option<String>, LedgerError> {
        let height = executed.block.height;
        let expected = BlockRecord::read(&self.view(), height)?;
        if let Err(TransitionError::Record { field, expected, found }) =
            same_record(executed.record.as_ref(), expected.as_ref())
        {
            let mut what = format!("{field}: replayed {expected}, recorded {found}");
            // Roots say that something differs. What is kept says what, as far as it can be read.
            let kept = self.receipts(height).ok();
            if let Some(first) = kept.and_then(|kept| first_other(self.registry(), executed, &kept)) {
                what = format!("{what}; {first}");
            }
            return Ok(Some(what));
        }
        let kept = self.receipts(height)?;
        if executed.receipts != kept {
            let first = first_other(self.registry(), executed, &kept);
            return Ok(Some(first.unwrap_or_else(|| "its receipts".to_owned())));
        }
        let same = executed.continuations == self.continuations(height)?;
        Ok((!same).then(|| "its continuations".to_owned()))
    }

    /// A store in memory that holds the version at a height, and whose root was found again from its entries.
    fn copy_of(&self, height: Height) -> Result<Store<H>, ReplayError> {
        let view = self.view_at(height)?;
        let scratch = Store::create(Arc::new(MemoryFiles::new()), scratch_options())?;
        let found = scratch.commit(height, whole(&view)?)?;
        let expected = view.root();
        if found != expected {
            return Err(ReplayError::Base { height, expected, found });
        }
        Ok(scratch)
    }
}

/// All entries of a version, as a diff to the empty state.
pub(crate) fn whole<H: Hasher>(view: &View<H>) -> Result<Diff, LedgerError> {
    let mut parts = Vec::new();
    for (namespace, _) in view.namespaces() {
        let entries = view.scan(&namespace, KeyRange::all());
        let writes = entries.map(|entry| entry.map(|(key, value)| Write { key, value: Some(value) }));
        parts.push((namespace, writes.collect::<Result<Vec<_>, _>>()?));
    }
    Ok(Diff::new(parts).expect("a store gives namespaces and keys in order"))
}

/// The first transaction of a block that was run again whose receipt is not the one that is kept, with the operation and the
/// function in which it differs, for people; none if all are the same, or there are not as many.
// spec: HISTORY-4
pub(crate) fn first_other(registry: &Registry, executed: &Executed, kept: &[Receipt]) -> Option<String> {
    const SAID_BYTES_MAX: usize = 200;
    let (index, (found, kept)) =
        executed.receipts.iter().zip(kept).enumerate().find(|(_, (found, kept))| found != kept)?;
    let which = format!("transaction {index} ({})", found.transaction);
    let operations = executed.block.transactions.get(index).map(|signed| signed.transaction.bundle.operations());
    let operations = operations.unwrap_or_default();
    if matches!(found.verdict, Verdict::Refused { .. })
        && let Some(at) = operations.iter().position(|operation| registry.function(&operation.function).is_none())
    {
        let function = &operations[at].function;
        return Some(format!("{which}, operation {at}: this program does not have function {function}"));
    }
    let called = |at: u32| Some(operations.get(usize::try_from(at).ok()?)?.function);
    let which = match first_other_operation(found, kept).map(|at| (at, called(at))) {
        Some((at, Some(function))) => match registry.function(&function) {
            Some(entry) => format!("{which}, operation {at}, {}", entry.label()),
            None => return Some(format!("{which}, operation {at}: this program does not have function {function}")),
        },
        _ => which,
    };
    let Err(BundleProofError::Receipt { field, expected, found }) = same_receipt(found, kept) else {
        return Some(which);
    };
    let cut = |said: String| match said.len() > SAID_BYTES_MAX {
        true => format!("{}…", &said[..said.floor_char_boundary(SAID_BYTES_MAX)]),
        false => said,
    };
    Some(format!("{which}: {field}: replayed {}, recorded {}", cut(expected), cut(found)))
}

/// The first operation that came to something else, or that one of the two failed at.
fn first_other_operation(found: &Receipt, kept: &Receipt) -> Option<u32> {
    let failed_at = |receipt: &Receipt| match &receipt.verdict {
        Verdict::Failed(failure) => Some(failure.operation),
        _ => None,
    };
    let (ours, theirs): (&[OperationReceipt], _) = (found.operations(), kept.operations());
    let other = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
    other.and_then(|at| u32::try_from(at).ok()).or_else(|| failed_at(found).into_iter().chain(failed_at(kept)).min())
}

fn scratch_options() -> Options {
    Options { segment_bytes: 8 << 20, page_segment_bytes: 8 << 20, background: false, ..Options::default() }
}
