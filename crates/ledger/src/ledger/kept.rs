//! What a ledger has on record: blocks, receipts, what was done for async bundles, roots and certificates of heights that were.
//!
//! Nothing that is read from the database is believed: it is checked against the record in the state.
//!
//! Rules: `spec/ledger.md`, HISTORY-1 to HISTORY-3.

use super::error::LedgerError;
use super::{BODY, CERTIFICATE, CONTINUATIONS, Header, INDEX, Ledger, Located, ROOT, at, height_in};
use crate::block::{self, Block, BlockRecord, Continuation, Receipt};
use crate::bodies::{block_in, continuations_in, first_in, kept_in, root_in};
use crate::transaction::{SignedTransaction, TxId};
use keelstone_codec::{Decode as _, Hash, Height, Root};
use keelstone_execution::{BundleId, BundleRecord, Bundles, ListProof, Stop, list_root};
use keelstone_store::StoreError;
use keelstone_store::kv::Range;
use keelstone_tree::{Hasher, ReadError};

impl<H: Hasher> Ledger<H> {
    /// The header of a height; the genesis has none.
    ///
    /// # Errors
    /// [`LedgerError::NotYet`], [`LedgerError::NoBlock`], [`LedgerError::Damaged`].
    pub fn header(&self, height: Height) -> Result<Header, LedgerError> {
        let block = self.block(height)?;
        let record = BlockRecord::read(&self.view(), height)?;
        let root = match self.root_at(height)? {
            Some(root) => Some(root),
            None => self.root_on_record(height)?,
        };
        Ok(Header { height, time: block.time, proposer: block.proposer, root, record })
    }

    /// The block of a height, checked against its record.
    ///
    /// # Errors
    /// [`LedgerError::NotYet`], [`LedgerError::NoBlock`], [`LedgerError::Damaged`].
    // spec: HISTORY-2
    pub fn block(&self, height: Height) -> Result<Block, LedgerError> {
        self.check_reached(height)?;
        let block = block_in(&*self.kv, height)?;
        check_block(&block, BlockRecord::read(&self.view(), height)?.as_ref())?;
        Ok(block)
    }

    /// The block of a height, to run it again; none of a height that left nothing and was taken in without its block, which
    /// nobody can run.
    ///
    /// # Errors
    /// As [`Ledger::block`].
    // spec: SNAP-20
    pub(crate) fn block_to_run(&self, height: Height) -> Result<Option<Block>, LedgerError> {
        match self.block(height) {
            Err(LedgerError::NoBlock { .. })
                if self.root_on_record(height)?.is_some() && BlockRecord::read(&self.view(), height)?.is_none() =>
            {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// The lowest height there is a block of here; none if there is none at all.
    ///
    /// # Errors
    /// What the database says.
    pub fn lowest_block(&self) -> Result<Option<Height>, StoreError> {
        first_in(&*self.kv)
    }

    /// The receipts of a height, checked against its record.
    ///
    /// # Errors
    /// As [`Ledger::block`].
    // spec: HISTORY-2
    pub fn receipts(&self, height: Height) -> Result<Vec<Receipt>, LedgerError> {
        self.check_reached(height)?;
        let (_, receipts) = kept_in(&*self.kv, height)?;
        check_receipts(height, &receipts, BlockRecord::read(&self.view(), height)?.as_ref())?;
        Ok(receipts)
    }

    /// Both, read once.
    fn block_and_receipts(&self, height: Height) -> Result<(Block, Vec<Receipt>), LedgerError> {
        self.check_reached(height)?;
        let (block, receipts) = kept_in(&*self.kv, height)?;
        let record = BlockRecord::read(&self.view(), height)?;
        check_block(&block, record.as_ref())?;
        check_receipts(height, &receipts, record.as_ref())?;
        Ok((block, receipts))
    }

    fn check_reached(&self, height: Height) -> Result<(), LedgerError> {
        let last = self.height();
        if height > last {
            return Err(LedgerError::NotYet { height, last });
        }
        Ok(())
    }

    /// What a height's block did for async bundles, checked against its record.
    ///
    /// # Errors
    /// As [`Ledger::block`].
    // spec: HISTORY-2, BLOCK-6
    pub fn continuations(&self, height: Height) -> Result<Vec<Continuation>, LedgerError> {
        self.check_reached(height)?;
        let damaged = |what: String| LedgerError::Damaged { height, what };
        let record = BlockRecord::read(&self.view(), height)?;
        let expected = record.map_or(block::continuations_root(&[]), |record| record.continuations_root);
        let continuations = match continuations_in(&*self.kv, height)? {
            Some(continuations) => continuations,
            // A height that is not here at all has none to show; one that is has none if its record says so.
            None if self.kv.get(&at(BODY, height))?.is_none() => return Err(LedgerError::NoBlock { height }),
            None => Vec::new(),
        };
        let found = block::continuations_root(&continuations);
        if found != expected {
            return Err(damaged(format!("its continuations have root {found}, the record says {expected}")));
        }
        Ok(continuations)
    }

    /// The first height between two, both included, at which a block did something for async bundles.
    pub(crate) fn first_with_continuations(&self, from: Height, to: Height) -> Result<Option<Height>, LedgerError> {
        let (start, end) = (at(CONTINUATIONS, from), Some(at(CONTINUATIONS, to.next())));
        let found = self.kv.range(&Range { start, end, reverse: false, limit: 1 })?.pop();
        Ok(found.and_then(|(key, _)| height_in(&key)))
    }

    /// The checkpoint of an async bundle, also of one that ended; none if there was no such bundle.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn bundle(&self, id: &BundleId) -> Result<Option<BundleRecord>, ReadError> {
        let bundles = keelstone_execution::View::<Bundles>::over(self.view());
        bundles.records.get(id).map_err(unreadable)
    }

    /// The async bundles in flight, by identity.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn bundles(&self) -> Result<Vec<(BundleId, BundleRecord)>, ReadError> {
        let bundles = keelstone_execution::View::<Bundles>::over(self.view());
        let mut ids = Vec::new();
        for due in bundles.due.iter() {
            ids.push(due.map_err(unreadable)?.1);
        }
        ids.sort_unstable();
        let mut out = Vec::with_capacity(ids.len());
        for id in ids {
            let record = bundles.records.get(&id).map_err(unreadable)?;
            // One that ended is due for as long as not all of it is forgotten.
            out.extend(record.filter(BundleRecord::is_in_flight).map(|record| (id, record)));
        }
        Ok(out)
    }

    /// Whether the next block has work beside transactions: a bundle that runs, or one over which time decides.
    ///
    /// # Errors
    /// [`ReadError`].
    // spec: LEDGER-3
    pub fn has_due_work(&self) -> Result<bool, ReadError> {
        let bundles = keelstone_execution::View::<Bundles>::over(self.view());
        if bundles.queue.iter().next().transpose().map_err(unreadable)?.is_some() {
            return Ok(true);
        }
        let due = bundles.due.iter().next().transpose().map_err(unreadable)?;
        Ok(due.is_some_and(|(at, _)| at <= self.height().next()))
    }

    /// A transaction that was run, with its receipt; none if this node knows of none.
    ///
    /// # Errors
    /// As [`Ledger::block`].
    pub fn transaction(&self, id: &TxId) -> Result<Option<Located>, LedgerError> {
        let Some(bytes) = self.kv.get(&indexed(id))? else { return Ok(None) };
        let height = self.height();
        let damaged = |height, what: &str| LedgerError::Damaged { height, what: format!("transaction {id}: {what}") };
        let (height, index) =
            <(Height, u32)>::from_bytes(&bytes).map_err(|_| damaged(height, "its index entry does not decode"))?;
        let (Block { mut transactions, .. }, mut receipts) = self.block_and_receipts(height)?;
        let place = index as usize;
        if transactions.get(place).map(SignedTransaction::id) != Some(*id) || place >= receipts.len() {
            return Err(damaged(height, "another transaction stands where the index says"));
        }
        let places = places(&transactions, &receipts, index);
        let places = places.ok_or_else(|| damaged(height, "its block has another number of receipts"))?;
        let (transaction, receipt) = (transactions.swap_remove(place), receipts.swap_remove(place));
        Ok(Some(Located { height, index, transaction, receipt, places }))
    }

    /// That a transaction, and that its receipt, stands at its place under the roots in its block's record.
    ///
    /// # Errors
    /// As [`Ledger::block`].
    // spec: BLOCK-3
    pub fn list_proofs(&self, height: Height, index: u32) -> Result<Option<(ListProof, ListProof)>, LedgerError> {
        let (block, receipts) = self.block_and_receipts(height)?;
        Ok(places(&block.transactions, &receipts, index))
    }

    /// What was kept of a height, if anything.
    ///
    /// # Errors
    /// What the database says.
    pub fn certificate(&self, height: Height) -> Result<Option<Vec<u8>>, StoreError> {
        let waiting = self.certificates().get(&height).cloned();
        match waiting {
            Some(certificate) => Ok(Some(certificate)),
            None => self.kv.get(&at(CERTIFICATE, height)),
        }
    }

    /// Whether this node committed a block, or took a height in from others, at this height or above: then the database says so.
    ///
    /// # Errors
    /// What the database says.
    // spec: CHECK-4, RECOVER-6
    pub fn went_through(&self, height: Height) -> Result<bool, StoreError> {
        let range = Range { start: at(ROOT, height), ..Range::prefix(&[ROOT], 1) };
        Ok(!self.kv.range(&range)?.is_empty())
    }

    /// The root after a height; none if that version is no longer kept.
    ///
    /// # Errors
    /// What the store says beside that.
    pub fn root_at(&self, height: Height) -> Result<Option<Root>, LedgerError> {
        match self.store.view_at(height) {
            Ok(view) => Ok(Some(view.root())),
            Err(StoreError::NotRetained { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The root that this node came to at a height, as the database keeps it, whether or not that version is; none if it is not
    /// there.
    ///
    /// # Errors
    /// What the database says; [`LedgerError::Damaged`].
    // spec: RECOVER-6
    pub fn root_on_record(&self, height: Height) -> Result<Option<Root>, LedgerError> {
        root_in(&*self.kv, height)
    }
}

/// Whether a body is the one its record names, or empty where there is none.
fn check_block(block: &Block, record: Option<&BlockRecord>) -> Result<(), LedgerError> {
    let damaged = |what: String| LedgerError::Damaged { height: block.height, what };
    match record {
        None if block.transactions.is_empty() => Ok(()),
        None => Err(damaged("its body has transactions, its height has no record".to_owned())),
        Some(record) if record.is_of(block) => Ok(()),
        Some(record) => {
            let found = block.transactions_root();
            Err(damaged(format!(
                "its body has transactions root {found}, time {}, proposer {}; the record says {}, {}, {}",
                block.time, block.proposer, record.transactions_root, record.time, record.proposer
            )))
        }
    }
}

/// Whether receipts are those that the record names, or none where there is no record.
fn check_receipts(height: Height, receipts: &[Receipt], record: Option<&BlockRecord>) -> Result<(), LedgerError> {
    let found = list_root(&receipts.iter().map(Receipt::list_hash).collect::<Vec<_>>());
    let expected = record.map_or(list_root(&[]), |record| record.receipts_root);
    if found != expected {
        let what = format!("its receipts have root {found}, the record says {expected}");
        return Err(LedgerError::Damaged { height, what });
    }
    Ok(())
}

pub(super) fn indexed(id: &TxId) -> Vec<u8> {
    [&[INDEX], id.0.as_bytes().as_slice()].concat()
}

/// Where a transaction and its receipt stand among those of their block; none if there are not as many.
// spec: BLOCK-3
fn places(transactions: &[SignedTransaction], receipts: &[Receipt], index: u32) -> Option<(ListProof, ListProof)> {
    let transactions: Vec<Hash> = transactions.iter().map(SignedTransaction::list_hash).collect();
    let receipts: Vec<Hash> = receipts.iter().map(Receipt::list_hash).collect();
    ListProof::of(&transactions, index as usize).zip(ListProof::of(&receipts, index as usize))
}

fn unreadable(stop: Stop) -> ReadError {
    match stop {
        Stop::Read(error) => error,
        stop => ReadError::damaged(format!("bundles: {stop}")),
    }
}
