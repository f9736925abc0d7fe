//! The records of the log as they are kept beside the bodies, what is proven of them, and whether they are whole.
//!
//! | key | value |
//! | --- | --- |
//! | `a`, height | the place of a block's first record, and its records (spec: AUDIT-5), packed (spec: HISTORY-11) |
//! | `i`, place of a record | the height of the block whose first record it is |
//! | `m`, level, index | the top of a whole subtree of 256 records or more |
//! | `A` | the height from which on records are kept, and the log before it |
//!
//! Nothing read here is believed: a proof is checked against the state before it leaves, and [`Ledger::verify_audit`]
//! compares every record with what the block's certified receipts say.

use super::record::Collected;
use super::{
    Appended, AuditEvent, AuditLog, AuditProof, AuditRecord, BlockAudit, Checkpoint, KEPT_LEVEL, log_place, read_log,
};
use crate::block::{BlockRecord, Continuation, Verdict};
use crate::bodies::known_in;
use crate::ledger::{Ledger, LedgerError, at};
use crate::packed::{Known, pack, unpack};
use keelstone_codec::{Blob, Decode, DecodeError, Encode, Hash, Height, Reader, Root, put_varint};
use keelstone_execution::mmr::{Mmr, MmrConsistency, MmrInclusion, Place, Subtrees};
use keelstone_execution::{PublicKey, When};
use keelstone_macros::{Decode, Encode};
use keelstone_store::kv::{Batch, Kv, Range};
use keelstone_store::{StoreError, View};
use keelstone_tree::{Hasher, Query};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

const RECORDS: u8 = b'a';
const PLACES: u8 = b'i';
const TOPS: u8 = b'm';
const KEPT: &[u8] = b"A";

/// Most records that one listing looks at.
const SCAN_MAX: u64 = 100_000;

/// From where on records are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub(crate) struct Kept {
    /// The first height.
    pub(crate) height: Height,
    /// The log before it.
    pub(crate) log: Mmr<AuditLog>,
}

/// A record with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRecord {
    /// Its place in the log.
    pub index: u64,
    /// The record.
    pub record: AuditRecord,
}

/// What a node knows of an earlier height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownOfHeight {
    /// The root after it, from the version that is kept or from the next block's record.
    pub root: Option<Root>,
    /// How many records the log had, if those are kept that say so.
    pub count: Option<u64>,
}

/// What a verification of the whole log found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditVerdict {
    /// The first record that is kept.
    pub first: u64,
    /// How many records the log has, by the state.
    pub count: u64,
    /// How many were found to be right.
    pub verified: u64,
    /// The first that is not.
    pub fault: Option<AuditFault>,
}

/// The first record that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFault {
    /// Its place.
    pub index: u64,
    /// The block it belongs to, or should.
    pub height: Height,
    /// What is wrong.
    pub what: String,
}

fn place_key(first: u64) -> Vec<u8> {
    [&[PLACES], first.to_be_bytes().as_slice()].concat()
}

fn top_key(place: Place) -> Vec<u8> {
    [&[TOPS, place.level], place.index.to_be_bytes().as_slice()].concat()
}

/// The place of a block's first record, and its records, packed.
fn first_of(kept: &[u8]) -> Result<(u64, &[u8]), DecodeError> {
    let mut input = Reader::new(kept);
    let first = input.varint()?;
    Ok((first, input.rest()))
}

/// From where on records are kept; none while there is none.
fn kept_in(kv: &dyn Kv) -> Result<Option<Result<Kept, DecodeError>>, StoreError> {
    Ok(kv.get(KEPT)?.map(|bytes| Kept::from_bytes(&bytes)))
}

/// Writes a block's records. What was kept of a block of this height before is gone by then. Where it cannot be read from
/// where on records are kept, that stays as it is: written anew it would hide that earlier records were kept.
pub(crate) fn keep_audit(kv: &dyn Kv, batch: &mut Batch, appended: &Appended, known: &Known) -> Result<(), StoreError> {
    let BlockAudit { height, first, .. } = appended.records;
    if kept_in(kv)?.is_none_or(|kept| kept.is_ok_and(|kept| kept.height >= height)) {
        batch.put(KEPT, Kept { height, log: appended.before.clone() }.to_bytes());
    }
    // Where they begin is read without the rest of the block.
    let mut records = Vec::new();
    put_varint(&mut records, first);
    records.extend(pack(&appended.records.pack(), known.bytes()));
    batch.put(at(RECORDS, height), records).put(place_key(first), height.to_bytes());
    for (place, top) in &appended.tops {
        batch.put(top_key(*place), top.to_bytes());
    }
    Ok(())
}

/// Takes a block's records out. Tops above them may stay: they are written anew when their subtree is whole again, and
/// nobody asks for one before.
pub(crate) fn forget_audit(kv: &dyn Kv, batch: &mut Batch, height: Height) -> Result<(), StoreError> {
    let Some(packed) = kv.get(&at(RECORDS, height))? else { return Ok(()) };
    if let Ok((first, _)) = first_of(&packed) {
        batch.delete(place_key(first));
    }
    batch.delete(at(RECORDS, height));
    if kept_in(kv)?.is_some_and(|kept| kept.is_ok_and(|kept| kept.height >= height)) {
        batch.delete(KEPT);
    }
    Ok(())
}

/// Lets records count from the next block on that has some: those of a block between are not known here.
pub(crate) fn interrupt_audit(batch: &mut Batch) {
    batch.delete(KEPT);
}

impl<H: Hasher> Ledger<H> {
    /// Where the log stands now, for an outsider to keep once it is signed.
    ///
    /// # Errors
    /// What reading the state says.
    // spec: AUDIT-7
    pub fn audit_checkpoint(&self) -> Result<Checkpoint, LedgerError> {
        self.checkpoint_of(&self.view())
    }

    fn checkpoint_of(&self, view: &View<H>) -> Result<Checkpoint, LedgerError> {
        Ok(Checkpoint {
            chain_id: self.facts().chain_id.clone(),
            genesis_hash: self.genesis_hash(),
            height: view.height().unwrap_or_else(|| self.genesis_height()),
            root: view.root(),
            log: read_log(view)?,
        })
    }

    /// As [`Ledger::audit_checkpoint`], with the proof that its state says all that.
    ///
    /// # Errors
    /// What reading the state says.
    // spec: AUDIT-14
    pub fn prove_checkpoint(&self) -> Result<(Checkpoint, Vec<u8>), LedgerError> {
        let view = self.view();
        let checkpoint = self.checkpoint_of(&view)?;
        let queries = Checkpoint::places().map(|(namespace, key)| Query::Key(namespace, key));
        let proof = view.prove(&queries)?.encode();
        match checkpoint.verify_state::<H>(&proof) {
            Ok(_) => Ok((checkpoint, proof)),
            Err(error) => Err(LedgerError::Damaged { height: checkpoint.height, what: error.to_string() }),
        }
    }

    /// What is known here of an earlier height, to compare a checkpoint with that was kept: of the last one everything, of others
    /// what versions and records say.
    ///
    /// # Errors
    /// [`LedgerError::NotYet`], [`LedgerError::Damaged`], or what the database says.
    // spec: AUDIT-7
    pub fn known_of(&self, height: Height) -> Result<KnownOfHeight, LedgerError> {
        let last = self.height();
        if height > last {
            return Err(LedgerError::NotYet { height, last });
        }
        let (range, mut root) = (self.audit_range()?, self.root_at(height)?);
        if height == last {
            return Ok(KnownOfHeight { root, count: Some(range.end) });
        }
        if self.audit_kept()?.is_none_or(|kept| height.next() < kept.height) {
            return Ok(KnownOfHeight { root, count: None });
        }
        let count = self.audit_place(height.next())?;
        if root.is_none() {
            // Before the next block that changed anything it is the same.
            root = match count < range.end {
                true => self.block_with(count)?.events.iter().find_map(|event| match event {
                    AuditEvent::Block(block) => Some(block.before),
                    _ => None,
                }),
                false => Some(self.root()),
            };
        }
        Ok(KnownOfHeight { root, count: Some(count) })
    }

    /// Where records begin to be kept here; none while there is none.
    fn audit_kept(&self) -> Result<Option<Kept>, LedgerError> {
        let damaged = |error| LedgerError::Damaged {
            height: self.genesis_height(),
            what: format!("what says from where on audit records are kept does not decode: {error}"),
        };
        kept_in(&*self.kv)?.transpose().map_err(damaged)
    }

    /// The place of the first record that is kept, and of the one behind the last.
    ///
    /// # Errors
    /// What reading says.
    pub fn audit_range(&self) -> Result<std::ops::Range<u64>, LedgerError> {
        let count = read_log(&self.view())?.count();
        Ok(self.audit_kept()?.map_or(count, |kept| kept.log.count())..count)
    }

    /// The records of a block; none if it was empty, or its records are not kept. They are as the database has them.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`], or what the database says.
    pub fn block_audit(&self, height: Height) -> Result<Option<BlockAudit>, LedgerError> {
        let Some(kept) = self.kv.get(&at(RECORDS, height))? else { return Ok(None) };
        let damaged = |what: String| LedgerError::Damaged { height, what };
        let undecodable = |error: &dyn fmt::Display| damaged(format!("its audit records do not decode: {error}"));
        let (first, packed) = first_of(&kept).map_err(|error| undecodable(&error))?;
        let known = known_in(&*self.kv, height, BlockRecord::read(&self.view(), height)?.as_ref())?;
        let bytes = unpack(packed, known.bytes()).map_err(|error| undecodable(&error))?;
        let found = BlockAudit::unpack(&self.facts().chain_id, &bytes).map_err(|error| undecodable(&error))?;
        if found.height != height {
            return Err(damaged(format!("its audit records are of height {}", found.height)));
        }
        if found.first != first {
            let what =
                format!("its audit records begin with record {}, and are said to begin with {first}", found.first);
            return Err(damaged(what));
        }
        Ok(Some(found))
    }

    /// The records of the block that a record belongs to.
    fn block_with(&self, index: u64) -> Result<BlockAudit, LedgerError> {
        let range = Range { start: vec![PLACES], end: Some(place_key(index + 1)), reverse: true, limit: 1 };
        let found = self.kv.range(&range)?.pop().and_then(|(_, height)| Height::from_bytes(&height).ok());
        let first = self.audit_range()?.start;
        let height = found.filter(|_| index >= first).ok_or(LedgerError::NoRecord { index, first })?;
        let block = self.block_audit(height)?;
        block.filter(|block| block.record(index).is_some()).ok_or_else(|| LedgerError::Damaged {
            height,
            what: format!("its audit records do not hold record {index}, which the index says they do"),
        })
    }

    /// Records from a place on: at most `limit` of those that `wanted` picks, and where to go on. One call looks at
    /// 100,000 records and the rest of a block at most.
    ///
    /// # Errors
    /// [`LedgerError::NoRecord`] below the first that is kept, [`LedgerError::Damaged`], or what the database says.
    pub fn audit_records(
        &self,
        from: u64,
        limit: usize,
        wanted: &dyn Fn(&AuditRecord) -> bool,
    ) -> Result<(Vec<LoggedRecord>, Option<u64>), LedgerError> {
        let (count, mut index, mut out) = (self.audit_range()?.end, from, Vec::new());
        while index < count && index - from < SCAN_MAX {
            let block = self.block_with(index)?;
            let start = index;
            for (at, record) in (block.first..).zip(block.records()).skip_while(|(at, _)| *at < start) {
                if out.len() == limit {
                    return Ok((out, Some(at)));
                }
                if wanted(&record) {
                    out.push(LoggedRecord { index: at, record });
                }
                index = at + 1;
            }
        }
        Ok((out, (index < count).then_some(index)))
    }

    /// The place of the first record of a height, or of the first height above it that has any.
    ///
    /// # Errors
    /// What the database says.
    pub fn audit_place(&self, height: Height) -> Result<u64, LedgerError> {
        let range = Range { start: at(RECORDS, height), ..Range::prefix(&[RECORDS], 1) };
        match self.kv.range(&range)?.pop() {
            Some((_, kept)) => first_of(&kept).map(|(first, _)| first).map_err(|error| LedgerError::Damaged {
                height,
                what: format!("its audit records do not decode: {error}"),
            }),
            None => Ok(self.audit_range()?.end),
        }
    }

    /// Proves a record, in the log of the last state; none if the log is not that long. It was verified.
    ///
    /// # Errors
    /// [`LedgerError::NoRecord`], [`LedgerError::Damaged`] if what is kept does not lead to the state's log.
    // spec: AUDIT-8
    pub fn audit_proof(&self, index: u64) -> Result<Option<AuditProof>, LedgerError> {
        let view = self.view();
        let log = read_log(&view)?;
        if index >= log.count() {
            return Ok(None);
        }
        let tops = Tops::of(self)?;
        let block = self.block_with(index)?;
        let record = block.record(index).expect("a block that holds the record");
        let (namespace, key) = log_place();
        let state = view.prove(&[Query::Key(namespace, key)])?.encode();
        let inclusion = log.prove(&tops, index)?.expect("a place of the log");
        let proof = AuditProof {
            record,
            inclusion,
            log,
            height: view.height().unwrap_or_default(),
            root: view.root(),
            state: Blob::new(state).expect("the proof of a key with a small value"),
        };
        match proof.verify::<H>() {
            Ok(()) => Ok(Some(proof)),
            Err(error) => Err(LedgerError::Damaged { height: block.height, what: error.to_string() }),
        }
    }

    /// Hands out the records of a range, each with the proof of its place in the log of `checkpoint`, which must be of
    /// this chain. Amortized a few hashes and a read of a block's records each.
    ///
    /// # Errors
    /// As [`Ledger::audit_proof`]; what `each` says, which ends it.
    // spec: AUDIT-2
    pub fn export_audit<E: From<LedgerError>>(
        &self,
        checkpoint: &Checkpoint,
        range: std::ops::Range<u64>,
        each: &mut dyn FnMut(&LoggedRecord, &MmrInclusion) -> Result<(), E>,
    ) -> Result<(), E> {
        let (log, tops) = (&checkpoint.log, Tops::of(self)?);
        let mut index = range.start;
        while index < range.end.min(log.count()) {
            let block = self.block_with(index)?;
            let start = index;
            for (at, record) in (block.first..range.end).zip(block.records()).skip_while(|(at, _)| *at < start) {
                let damaged = || LedgerError::Damaged {
                    height: block.height,
                    what: format!("audit record {at} is not in the log that the state holds"),
                };
                let proof = log.prove(&tops, at)?.ok_or_else(damaged)?;
                if !log.includes(&record.item(), &proof) {
                    return Err(damaged().into());
                }
                each(&LoggedRecord { index: at, record }, &proof)?;
                index = at + 1;
            }
        }
        Ok(())
    }

    /// Proves that the log goes on from its first `count` records up to a checkpoint of this chain; none if that has fewer.
    ///
    /// # Errors
    /// As [`Ledger::audit_proof`].
    // spec: AUDIT-2
    pub fn prove_since(&self, checkpoint: &Checkpoint, count: u64) -> Result<Option<MmrConsistency>, LedgerError> {
        checkpoint.log.prove_since(&Tops::of(self)?, count)
    }

    /// Compares every record that is kept with what its block's receipts say, which the state certifies, and the whole
    /// with the log in the state. `progress` hears of every height.
    ///
    /// # Errors
    /// What keeps it from being known. A record that is wrong is in the verdict.
    // spec: AUDIT-6
    pub fn verify_audit(&self, progress: &mut dyn FnMut(Height)) -> Result<AuditVerdict, LedgerError> {
        let view = self.view();
        let (last, log) = (view.height().unwrap_or_else(|| self.genesis_height()), read_log(&view)?);
        let kept = match self.audit_kept() {
            Ok(kept) => kept,
            Err(LedgerError::Damaged { height, what }) => {
                let fault = Some(AuditFault { index: 0, height, what });
                return Ok(AuditVerdict { first: 0, count: log.count(), verified: 0, fault });
            }
            Err(error) => return Err(error),
        };
        let Kept { height: from, log: mut grown } = kept.unwrap_or(Kept { height: last.next(), log: log.clone() });
        let first = grown.count();
        let fault = |index, height, what: String| {
            let fault = Some(AuditFault { index, height, what });
            Ok(AuditVerdict { first, count: log.count(), verified: index.saturating_sub(first), fault })
        };
        for height in (from.0..=last.0).map(Height) {
            let index = grown.count();
            // First what the records are packed against: damage of that is no fault of theirs.
            let said = self.audit_said(height)?;
            let found = match self.block_audit(height) {
                Ok(found) => found,
                Err(LedgerError::Damaged { what, .. }) => return fault(index, height, what),
                Err(error) => return Err(error),
            };
            let (said, found) = match (said, found) {
                (None, None) => {
                    progress(height);
                    continue;
                }
                (Some(_), None) => return fault(index, height, "the block's records are absent".to_owned()),
                (None, Some(_)) => return fault(index, height, "an empty block has records".to_owned()),
                (Some(said), Some(found)) => (said, found),
            };
            if found.first != index {
                let what = format!("the block's first record is said to be {}, it is {index}", found.first);
                return fault(index, height, what);
            }
            let mut all = said.into_iter();
            for event in &found.events {
                let index = grown.count();
                let Some(said) = all.next() else {
                    return fault(index, height, "the block has no such record".to_owned());
                };
                let said = said.settled(event);
                if said != *event {
                    return fault(index, height, format!("the block says {said:?}, the record {event:?}"));
                }
                grown.append(&AuditRecord { height, event: event.clone() }.item());
            }
            if let Some(said) = all.next() {
                return fault(grown.count(), height, format!("the record is absent; the block says {said:?}"));
            }
            progress(height);
        }
        match grown == log {
            true => Ok(AuditVerdict { first, count: log.count(), verified: log.count() - first, fault: None }),
            // Every record is right by its block, so it is what they stand on.
            false => fault(0, from, "what is kept of the records before these is not what the log was then".to_owned()),
        }
    }

    /// What the log must say of a height, but for what only running it again would show; none if it was empty.
    fn audit_said(&self, height: Height) -> Result<Option<Vec<AuditEvent>>, LedgerError> {
        let Some(record) = BlockRecord::read(&self.view(), height)? else { return Ok(None) };
        let (block, receipts) = (self.block(height)?, self.receipts(height)?);
        let mut said = Collected::default();
        let continuations = self.continuations(height)?;
        let owned = |said: &mut Collected, is_it: &dyn Fn(&Continuation) -> bool| -> Result<(), LedgerError> {
            for continuation in continuations.iter().filter(|continuation| is_it(continuation)) {
                let owner = match When::of(&continuation.bundle) {
                    Some(_) => PublicKey::CHAIN,
                    None => {
                        let bundle = self.bundle(&continuation.bundle)?;
                        let absent = || LedgerError::Damaged {
                            height,
                            what: format!("the state has no record of bundle {}", continuation.bundle),
                        };
                        bundle.ok_or_else(absent)?.owner
                    }
                };
                said.continuation(owner, continuation);
            }
            Ok(())
        };
        // spec: BLOCK-8
        let (end, before) = (When::EndBlock.bundle(), When::BeforeTransaction.bundle());
        owned(&mut said, &|one| one.by.is_none() && one.bundle != end)?;
        for (transaction, receipt) in block.transactions.iter().zip(&receipts) {
            // A block may hold a transaction again, or once more with a bad signature: of one identity (TX-2) at most one is
            // not refused, and nothing is there for the sake of another.
            let is_let_in = !matches!(receipt.verdict, Verdict::Refused { .. });
            let of_it = |one: &Continuation| is_let_in && one.by == Some(receipt.transaction);
            // spec: BLOCK-9
            owned(&mut said, &|one| of_it(one) && one.bundle == before)?;
            said.receipt(transaction, receipt);
            owned(&mut said, &|one| of_it(one) && one.bundle != before)?;
        }
        owned(&mut said, &|one| one.bundle == end)?;
        said.block(&record);
        Ok(Some(said.into_events()))
    }

    /// Gives up the records of all blocks below a height. What remains is verified against the state first, and is still
    /// proven afterwards. Gives the place of the first record that is kept.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`] if the log does not verify: nothing is given up then.
    // spec: AUDIT-9
    pub fn prune_audit(&self, before: Height) -> Result<u64, LedgerError> {
        let verdict = self.verify_audit(&mut |_| {})?;
        if let Some(AuditFault { height, index, what }) = verdict.fault {
            return Err(LedgerError::Damaged { height, what: format!("audit record {index}: {what}") });
        }
        let Some(mut kept) = self.audit_kept()? else { return Ok(verdict.count) };
        let mut gone = Vec::new();
        // The last block's records stay, so that there is a height from which on they are kept.
        let before = before.min(self.height());
        while kept.height < before {
            if let Some(block) = self.block_audit(kept.height)? {
                block.records().for_each(|record| kept.log.append(&record.item()));
                gone.extend([at(RECORDS, kept.height), place_key(block.first)]);
            }
            kept.height = kept.height.next();
        }
        let mut batch = Batch::new();
        batch.put(KEPT, kept.to_bytes());
        for key in gone {
            batch.delete(key);
        }
        self.drop_tops_below(kept.log.count(), &mut batch)?;
        self.kv.write(batch)?;
        Ok(kept.log.count())
    }

    /// Tops of subtrees that lie wholly below a record: the peaks kept in their place are all that is asked for.
    fn drop_tops_below(&self, count: u64, batch: &mut Batch) -> Result<(), LedgerError> {
        for level in KEPT_LEVEL..64 {
            let end = top_key(Place { level, index: count >> level });
            let range = Range { start: vec![TOPS, level], end: Some(end), reverse: false, limit: usize::MAX };
            for (key, _) in self.kv.range(&range)? {
                batch.delete(key);
            }
        }
        Ok(())
    }
}

/// Tops of subtrees: from what is kept of them, and below that from the records.
struct Tops<'a, H: Hasher> {
    ledger: &'a Ledger<H>,
    before: Mmr<AuditLog>,
    /// The last block that was looked at.
    block: RefCell<Option<BlockAudit>>,
    /// Tops that were found again: those beside one record are most of those beside the next.
    found: RefCell<BTreeMap<Place, Hash>>,
}

/// Most tops that are remembered.
const TOPS_MAX: usize = 4_096;

impl<'a, H: Hasher> Tops<'a, H> {
    fn of(ledger: &'a Ledger<H>) -> Result<Self, LedgerError> {
        let before = ledger.audit_kept()?.unwrap_or_default().log;
        Ok(Self { ledger, before, block: RefCell::default(), found: RefCell::default() })
    }

    fn item(&self, index: u64) -> Result<Hash, LedgerError> {
        if let Some(record) = self.block.borrow().as_ref().and_then(|block| block.record(index)) {
            return Ok(record.item());
        }
        let block = self.ledger.block_with(index)?;
        let record = block.record(index).expect("a block that holds the record");
        *self.block.borrow_mut() = Some(block);
        Ok(record.item())
    }
}

impl<H: Hasher> Subtrees for Tops<'_, H> {
    type Error = LedgerError;

    fn top(&self, place: Place) -> Result<Hash, LedgerError> {
        if let Some(peak) = self.before.peak(place) {
            return Ok(peak);
        }
        let first = self.before.count();
        if place.end() <= first {
            return Err(LedgerError::NoRecord { index: place.first(), first });
        }
        if place.level >= KEPT_LEVEL
            && let Some(top) = self.ledger.kv.get(&top_key(place))?
        {
            let damaged = |_| LedgerError::Damaged {
                height: self.ledger.height(),
                what: format!("the top over audit records {} to {} is no hash", place.first(), place.end()),
            };
            return Hash::from_bytes(&top).map_err(damaged);
        }
        if let Some(found) = self.found.borrow().get(&place) {
            return Ok(*found);
        }
        let top = match place.halves() {
            None => Mmr::<AuditLog>::leaf(&self.item(place.index)?),
            Some([left, right]) => Mmr::<AuditLog>::inner(&self.top(left)?, &self.top(right)?),
        };
        let mut found = self.found.borrow_mut();
        if found.len() == TOPS_MAX {
            found.pop_first();
        }
        found.insert(place, top);
        Ok(top)
    }
}
