//! Heights taken in from other nodes of the chain: what a block changed without the block, or the block itself.
//!
//! Whoever takes one in knows what is certified of it: its record, or that it has none, and the root the state must come
//! to. The record's digest says whether a diff is the one the block made, so a wrong one is its sender's fault; a right one
//! that leads elsewhere shows that the state here is not the chain's. Either is found before anything is written.
//!
//! Rules: `spec/snapshot.md`, SNAP-11, SNAP-20; `spec/ledger.md`, HISTORY-1.

use crate::audit::interrupt_audit;
use crate::block::{Block, BlockRecord};
use crate::chain::Chain;
use crate::ledger::{Committed, Ledger, LedgerError, ROOT, at};
use crate::run::Refused;
use keelstone_codec::{Encode as _, Hash, Height, Root};
use keelstone_execution::{Change, Changes, Entry, PublicKey};
use keelstone_store::kv::Batch;
use keelstone_store::{StoreError, View};
use keelstone_tree::{Diff, Hasher, Read as _};
use std::sync::Arc;

/// What is certified of a height.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The height.
    pub height: Height,
    /// Its record; none for a height that changed nothing.
    pub record: Option<BlockRecord>,
    /// The root of the state after it.
    pub root: Root,
}

/// Why a height was not taken in. Nothing of it was written, unless the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// It is not what is certified. Whoever sent it has to act; another may have the right one.
    #[error("what came for height {height} is not what is certified: {what}")]
    NotIt {
        /// The height.
        height: Height,
        /// What was compared.
        what: String,
    },
    /// It is what is certified, and it leads to another root here. This node's state is not the chain's: stop.
    #[error("height {height} is certified with root {certified}, this node comes to {own}")]
    Differs {
        /// The height.
        height: Height,
        /// The root that is certified.
        certified: Root,
        /// The one it comes to here.
        own: Root,
    },
    /// It could not be taken in.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<StoreError> for TakeError {
    fn from(error: StoreError) -> Self {
        Self::Ledger(error.into())
    }
}

impl<H: Hasher> Ledger<H> {
    /// Takes in what the next height changed. When this returns, it is durable, and the height has no body here.
    ///
    /// # Errors
    /// [`TakeError`].
    // spec: SNAP-11
    pub fn take_diff(&self, certified: &Certified, diff: &Diff) -> Result<Arc<Committed>, TakeError> {
        let height = certified.height;
        let before = self.stands_below(certified)?;
        let not_it = |what: &str| TakeError::NotIt { height, what: what.to_owned() };
        let changed = |(namespace, write): (_, &keelstone_tree::Write)| {
            let before = before.get(namespace, &write.key)?;
            let change = Change { before, after: write.value.clone() };
            Ok((Clone::clone(namespace), write.key.clone(), change))
        };
        let changes: Changes = diff.iter().map(changed).collect::<Result<_, LedgerError>>()?;
        if changes.len() != diff.len() {
            return Err(not_it("it writes what is there already"));
        }
        match &certified.record {
            None if diff.is_empty() => {}
            None => return Err(not_it("the height changed nothing, the diff does")),
            Some(record) => {
                let (namespace, key) = BlockRecord::place(height);
                let own = changes.find(&namespace, &key).and_then(|change| change.after.clone());
                if own.is_none_or(|found| *found != *record.to_bytes()) {
                    return Err(not_it("it does not write the record of its block"));
                }
                let is_other = |(name, at, _): &(&_, &_, &Change)| (*name, *at) != (&namespace, &key);
                let others = changes.iter().filter(is_other);
                let others: Changes =
                    others.map(|(name, key, change)| (name.clone(), key.clone(), change.clone())).collect();
                let found = others.summary();
                if found != record.diff {
                    let (digest, entries, bytes) = (found.digest, found.entries, found.bytes);
                    let expected = &record.diff;
                    return Err(not_it(&format!(
                        "{entries} entries, {bytes} bytes, digest {digest}; the record says {}, {}, {}",
                        expected.entries, expected.bytes, expected.digest
                    )));
                }
            }
        }
        let prepared = self.store().prepare(diff.clone())?;
        let own = prepared.root();
        if own != certified.root {
            return Err(TakeError::Differs { height, certified: certified.root, own });
        }
        let (time, proposer) = match &certified.record {
            Some(record) => (record.time, record.proposer),
            None => (self.time(), self.last_proposer()?),
        };
        let noted = || {
            let mut batch = Batch::new();
            batch.put(at(ROOT, height), own.to_bytes());
            if certified.record.is_some() {
                interrupt_audit(&mut batch);
            }
            self.kv.write(batch)
        };
        let block = Block { height, time, proposer, transactions: Vec::new() };
        let _writing = self.writer();
        let root = self.put_in_place(height, time, prepared, noted)?;
        let record = certified.record.clone();
        let committed =
            Committed { block, is_kept: false, root, record, receipts: vec![], continuations: vec![], changes };
        Ok(self.tell(committed))
    }

    /// Takes in a height that left nothing, and of whose block nothing else is known.
    // spec: SNAP-20
    pub(crate) fn take_nothing(&self, height: Height) -> Result<(), LedgerError> {
        let certified = Certified { height, record: None, root: self.root() };
        match self.take_diff(&certified, &Diff::default()) {
            Ok(_) => Ok(()),
            Err(TakeError::Ledger(error)) => Err(error),
            Err(error) => unreachable!("an empty diff leaves the root as it is: {error}"),
        }
    }

    /// Runs the next block and commits it, if it comes to what is certified. None for a height that changed nothing:
    /// nothing is known of its block but that. What is run for it has the time of the last one; where a hook asks for that, and so
    /// does something, the height is taken in as by [`Ledger::take_diff`].
    ///
    /// # Errors
    /// [`TakeError`].
    // spec: SNAP-11
    pub fn take_block(&self, certified: &Certified, block: Option<Block>) -> Result<Arc<Committed>, TakeError> {
        let height = certified.height;
        self.stands_below(certified)?;
        let block = match (block, &certified.record) {
            (Some(block), Some(record)) => {
                if !record.is_of(&block) {
                    return Err(TakeError::NotIt {
                        height,
                        what: "it is another block than its record names".to_owned(),
                    });
                }
                block
            }
            (None, Some(_)) => {
                return Err(TakeError::NotIt { height, what: "there is a record and no block".to_owned() });
            }
            (_, None) => Block { height, time: self.time(), proposer: self.last_proposer()?, transactions: Vec::new() },
        };
        let pending = self.run(block, Refused::Receipt)?;
        let own = pending.root();
        if own == certified.root {
            return Ok(self.commit(pending)?);
        }
        // spec: SNAP-11
        let asks = |entry: &Entry| entry.context.time || entry.context.random;
        match certified.record.is_none() && self.registry().hooks_at(height).any(|(_, entry)| asks(entry)) {
            true => self.take_diff(certified, &Diff::default()),
            false => Err(TakeError::Differs { height, certified: certified.root, own }),
        }
    }

    /// The state before a height, if it is the next one and its record stands on that state.
    fn stands_below(&self, certified: &Certified) -> Result<View<H>, TakeError> {
        let expected = self.height().next();
        if certified.height != expected {
            return Err(LedgerError::NotNext { expected, found: certified.height }.into());
        }
        let view = self.view();
        let (height, own) = (self.height(), view.root());
        let before = certified.record.as_ref().map_or(certified.root, |record| record.previous_root);
        match before == own {
            true => Ok(view),
            false => Err(TakeError::Differs { height, certified: before, own }),
        }
    }

    /// Who made the last block that changed anything, or may make the next: in whose name a height stands of whose block
    /// nothing is known.
    fn last_proposer(&self) -> Result<PublicKey, LedgerError> {
        let view = self.view();
        let tip = Chain::read(&view)?.ok_or(LedgerError::NoGenesis)?.tip;
        let record = tip.map_or(Ok(None), |tip| BlockRecord::read(&view, tip))?;
        let proposer = record.map(|record| record.proposer).or_else(|| self.facts().producers.first().copied());
        Ok(proposer.unwrap_or(PublicKey(Hash::ZERO)))
    }
}
