//! Blocks as the database holds them, for a chain whose state is not at hand: what a recovery runs again.
//!
//! Every record carries a hash of its own, so damage is found; that a block is the chain's shows only when it has run,
//! by what it comes to. What is kept of a block is packed against what is known of it already, so reading its receipts takes
//! its body.
//!
//! Rules: `spec/ledger.md`, HISTORY-1, HISTORY-11; `spec/recovery.md`, RECOVER-1, RECOVER-6; `spec/snapshot.md`, SNAP-20.

use crate::block::BlockRecord;
use crate::ledger::{BODY, CERTIFICATE, CONTINUATIONS, RECEIPTS, ROOT, at, height_in};
use crate::packed::{Known, unpack};
use crate::replay::first_other;
use crate::{Block, Continuation, Ledger, LedgerError, Receipt, Refused, SignedTransaction};
use keelstone_codec::{Decode, Encode as _, Height, Root, Timestamp};
use keelstone_store::StoreError;
use keelstone_store::kv::{Kv, Range};
use keelstone_tree::Hasher;
use std::fmt;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

/// The blocks of a database.
#[derive(Clone)]
pub struct Bodies {
    kv: Arc<dyn Kv>,
}

impl fmt::Debug for Bodies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bodies")
    }
}

impl Bodies {
    /// The blocks of this database.
    pub fn over(kv: Arc<dyn Kv>) -> Self {
        Self { kv }
    }

    /// The last height there is a block of; none if there is none at all.
    ///
    /// # Errors
    /// What the database says.
    pub fn last(&self) -> Result<Option<Height>, StoreError> {
        let found = self.kv.range(&Range::prefix(&[BODY], 1).reversed())?;
        Ok(found.first().and_then(|(key, _)| height_in(key)))
    }

    /// The last height there is anything of, a block or, of one that was taken in without, its root; none if there is nothing.
    ///
    /// # Errors
    /// What the database says.
    // spec: HISTORY-1
    pub fn last_on_record(&self) -> Result<Option<Height>, StoreError> {
        let root = self.kv.range(&Range::prefix(&[ROOT], 1).reversed())?;
        Ok(self.last()?.max(root.first().and_then(|(key, _)| height_in(key))))
    }

    /// As [`Bodies::last_on_record`], also where what is there is damaged: the last height of a record, whether it can be read or
    /// not. Above every height of the chain if the database cannot even be searched.
    ///
    /// # Errors
    /// What the database says but for damage.
    pub fn last_named(&self) -> Result<Option<Height>, StoreError> {
        let is_at_or_above = |height: u64| {
            for kind in [BODY, ROOT] {
                let range = Range { start: at(kind, Height(height)), ..Range::prefix(&[kind], 1) };
                match self.kv.range(&range) {
                    Ok(found) if found.is_empty() => {}
                    Err(error) if !error.is_damage() => return Err(error),
                    _ => return Ok(true),
                }
            }
            Ok(false)
        };
        if !is_at_or_above(0)? {
            return Ok(None);
        }
        let (mut low, mut high) = (0, u64::MAX);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match is_at_or_above(middle)? {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        Ok(Some(Height(low)))
    }

    /// The block of a height, as it is kept.
    ///
    /// # Errors
    /// [`LedgerError::NoBlock`], [`LedgerError::Damaged`], or what the database says.
    pub fn block(&self, height: Height) -> Result<Block, LedgerError> {
        block_in(&*self.kv, height)
    }

    /// The root this node came to after a block; none if it is not kept.
    ///
    /// # Errors
    /// What the database says.
    // spec: RECOVER-6
    pub fn root(&self, height: Height) -> Result<Option<Root>, LedgerError> {
        root_in(&*self.kv, height)
    }

    /// Whether there is what it takes to come from the state before a height, which has a root if that is known, to the state
    /// after it: the height's block, or that the height left nothing.
    ///
    /// # Errors
    /// As [`Bodies::block`], if there is not.
    // spec: SNAP-20
    pub fn lead_over(&self, height: Height, before: Option<Root>) -> Result<(), LedgerError> {
        match self.block(height) {
            Err(LedgerError::NoBlock { .. }) if before.is_some() && self.root(height)? == before => Ok(()),
            found => found.map(|_| ()),
        }
    }

    /// What the engine certified of a height, as it is kept.
    ///
    /// # Errors
    /// What the database says.
    pub fn certificate(&self, height: Height) -> Result<Option<Vec<u8>>, StoreError> {
        self.kv.get(&at(CERTIFICATE, height))
    }

    /// The last height whose block is not after a time, above the genesis' and up to the last that is kept without a gap;
    /// none if there is none.
    ///
    /// # Errors
    /// As [`Bodies::block`]: [`LedgerError::NoBlock`] also for a time before the first block that is kept.
    pub fn at_time(&self, time: Timestamp, genesis: Height) -> Result<Option<Height>, LedgerError> {
        let Some(last) = self.last()? else { return Ok(None) };
        let found = last_by(&*self.kv, time, genesis..=last, |height| self.block(height))?;
        Ok((found > genesis).then_some(found))
    }
}

/// The root after a height as a database has it; none if it does not.
// spec: RECOVER-6
pub(crate) fn root_in(kv: &dyn Kv, height: Height) -> Result<Option<Root>, LedgerError> {
    let Some(bytes) = kv.get(&at(ROOT, height))? else { return Ok(None) };
    let what = |error| LedgerError::Damaged { height, what: format!("its root does not decode: {error}") };
    Root::from_bytes(&bytes).map(Some).map_err(what)
}

/// The block of a height as a database has it.
pub(crate) fn block_in(kv: &dyn Kv, height: Height) -> Result<Block, LedgerError> {
    Ok(body_in(kv, height)?.0)
}

/// The block of a height and its receipts, as a database has them: those are packed against it.
pub(crate) fn kept_in(kv: &dyn Kv, height: Height) -> Result<(Block, Vec<Receipt>), LedgerError> {
    let (block, body) = body_in(kv, height)?;
    let (receipts, _) = received_in(kv, height, &known_of(&block, &body))?;
    Ok((block, receipts))
}

/// What a block did for async bundles, as a database has it; none if it has nothing of it.
pub(crate) fn continuations_in(kv: &dyn Kv, height: Height) -> Result<Option<Vec<Continuation>>, LedgerError> {
    let Some(packed) = kv.get(&at(CONTINUATIONS, height))? else { return Ok(None) };
    Ok(Some(opened(height, "continuations do", &packed, &[])?.0))
}

/// What a database says of a block before its audit records, and the state's record of it: what those are packed against.
// spec: HISTORY-11
pub(crate) fn known_in(kv: &dyn Kv, height: Height, record: Option<&BlockRecord>) -> Result<Known, LedgerError> {
    let (block, body) = body_in(kv, height)?;
    let known = known_of(&block, &body);
    let (receipts, receipt_bytes) = received_in(kv, height, &known)?;
    let continuations = continuations_in(kv, height)?.unwrap_or_default();
    // A list that decoded has one encoding.
    let known = known.outcomes(&block, (&receipt_bytes, &receipts), (&continuations.to_bytes(), &continuations));
    Ok(match record {
        Some(record) => known.record(record),
        None => known,
    })
}

fn body_in(kv: &dyn Kv, height: Height) -> Result<(Block, Vec<u8>), LedgerError> {
    let packed = kv.get(&at(BODY, height))?.ok_or(LedgerError::NoBlock { height })?;
    let (block, body) = opened::<Block>(height, "body does", &packed, &[])?;
    if block.height != height {
        let what = format!("its body says height {}", block.height);
        return Err(LedgerError::Damaged { height, what });
    }
    Ok((block, body))
}

/// The height of the last block that is known up to a height: that one, or if it left nothing and was taken in without its
/// block, the one below.
// spec: SNAP-20
fn known_by(kv: &dyn Kv, height: Height) -> Result<Height, LedgerError> {
    let up_to = Range { end: Some(at(BODY, height.next())), ..Range::prefix(&[BODY], 1) };
    let found = kv.range(&up_to.reversed())?;
    let known = found.first().and_then(|(key, _)| height_in(key)).ok_or(LedgerError::NoBlock { height })?;
    if known < height {
        let root = root_in(kv, height)?;
        if root.is_none() || root_in(kv, known)? != root {
            return Err(LedgerError::NoBlock { height });
        }
    }
    Ok(known)
}

/// The first height there is a block of.
pub(crate) fn first_in(kv: &dyn Kv) -> Result<Option<Height>, StoreError> {
    let found = kv.range(&Range::prefix(&[BODY], 1))?;
    Ok(found.first().and_then(|(key, _)| height_in(key)))
}

fn received_in(kv: &dyn Kv, height: Height, known: &Known) -> Result<(Vec<Receipt>, Vec<u8>), LedgerError> {
    let packed = kv.get(&at(RECEIPTS, height))?.ok_or(LedgerError::NoBlock { height })?;
    opened(height, "receipts do", &packed, known.bytes())
}

fn known_of(block: &Block, body: &[u8]) -> Known {
    Known::body(body, block, block.transactions.iter().map(SignedTransaction::id))
}

/// What was packed of a height, decoded, and its bytes.
fn opened<T: Decode>(height: Height, what: &str, packed: &[u8], known: &[u8]) -> Result<(T, Vec<u8>), LedgerError> {
    let damaged =
        |error: &dyn fmt::Display| LedgerError::Damaged { height, what: format!("its {what} not decode: {error}") };
    let bytes = unpack(packed, known).map_err(|error| damaged(&error))?;
    let value = T::from_bytes(&bytes).map_err(|error| damaged(&error))?;
    Ok((value, bytes.into_owned()))
}

/// The last height of a range from the genesis' on whose block is not after a time; the genesis' if there is none. Bodies are
/// kept from some height on: [`LedgerError::NoBlock`] if the one asked for is below it.
pub(crate) fn last_by(
    kv: &dyn Kv,
    time: Timestamp,
    heights: RangeInclusive<Height>,
    block: impl Fn(Height) -> Result<Block, LedgerError>,
) -> Result<Height, LedgerError> {
    let (genesis, mut high) = heights.into_inner();
    // What comes before the first that is kept.
    let before = first_in(kv)?.map_or(high, |first| first.prev().unwrap_or_default().max(genesis).min(high));
    let mut low = before;
    // Times never run backwards, so the last one is found by halving.
    while low < high {
        let middle = Height(low.0 + (high.0 - low.0).div_ceil(2));
        let known = known_by(kv, middle)?;
        match block(known)?.time <= time {
            true => low = middle,
            false => high = Height(known.0 - 1),
        }
    }
    // Nothing shows that it is this one.
    if low == before && low > genesis {
        return Err(LedgerError::NoBlock { height: low });
    }
    Ok(low)
}

impl<H: Hasher> Ledger<H> {
    /// Runs the blocks of another database on this chain, up to a height, and commits each. What a block comes to is
    /// compared with what was kept of it: its receipts, and its root where that is. A height that left nothing, and whose block was
    /// never here, is taken in as such. Returns how many were run: fewer than there are up to that height if `progress` breaks it
    /// off.
    ///
    /// # Errors
    /// [`LedgerError::Differs`] at the first block that came to something else; or what running and committing say.
    // spec: RECOVER-1, SNAP-20
    pub fn run_kept(
        &self,
        bodies: &Bodies,
        to: Height,
        progress: &mut dyn FnMut(Height) -> ControlFlow<()>,
    ) -> Result<u64, LedgerError> {
        let mut blocks = 0;
        while self.height() < to {
            let height = self.height().next();
            let differs = |what: String| LedgerError::Differs { height, what };
            let kept = match kept_in(&*bodies.kv, height) {
                // With a body and no receipts there was a block.
                Err(LedgerError::NoBlock { .. })
                    if bodies.kv.get(&at(BODY, height))?.is_none() && bodies.root(height)? == Some(self.root()) =>
                {
                    None
                }
                kept => Some(kept?),
            };
            if let Some(certificate) = bodies.certificate(height)? {
                self.keep_certificate(height, certificate);
            }
            match kept {
                Some((block, receipts)) => {
                    let pending = self.run(block, Refused::Receipt)?;
                    if pending.executed().receipts != receipts {
                        let first = first_other(self.registry(), pending.executed(), &receipts);
                        return Err(differs(first.unwrap_or_else(|| "its receipts".to_owned())));
                    }
                    if bodies.root(height)?.is_some_and(|kept| kept != pending.root()) {
                        return Err(differs("run again it comes to another root".to_owned()));
                    }
                    self.commit(pending)?;
                    blocks += 1;
                }
                None => self.take_nothing(height)?,
            }
            if progress(height).is_break() {
                break;
            }
        }
        Ok(blocks)
    }
}
