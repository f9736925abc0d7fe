//! What a block does for bundles in flight: taking them in, going on with them, ending them.

use super::record::{
    Before, BundleId, BundleRecord, Bundles, Changer, HOLD, PIECE_BYTES, Piece, Status, StopReason, Totals,
    UNDO_VALUE_BYTES_MAX, Writer, key_hash,
};
use crate::ahead::Coming;
use crate::block::is_application;
use crate::host::Handle;
use crate::merkle::list_root;
use crate::meter::{Limits, Made, cost, given_weight};
use crate::world::World;
use crate::{
    Batching, BlockDraft, Bundle, Caller, Failed, Failure, FailureKind, FunctionHash, Halt, Mode, Operation, Outcome,
    PublicKey, Registry, SessionError, SessionId, Sessions, Stop,
};
use keelstone_codec::{BoundedList, Encode, Hash, Height, Key, Namespace, StateHash, Value};
use keelstone_tree::ReadError;

/// Keys of ended bundles that are forgotten at a time: a quarter of a second's work.
pub(super) const FORGET_ENTRIES_MAX: u64 = 65_536;
/// Bytes that forgetting may change at a time. A key is forgotten for others with the list of those that wrote it, which is
/// written anew without the one that ended.
pub const FORGET_BYTES_MAX: u64 = 8 << 20;

/// Bytes of the two keys under which a key is known to a bundle: `undo/`, identity, number; `written/`, hash.
const FORGOTTEN_KEYS_BYTES: usize = 81;
/// Bytes of what is said of a key beside its value, counted as undo.
const UNDO_ENTRY_BYTES: u64 = 128;

/// What bundles in flight may take of a chain.
// spec: EXEC-6, EXEC-7
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleLimits {
    /// Bundles in flight.
    pub in_flight_max: u32,
    /// Bundles of one key in flight.
    pub per_key_max: u32,
    /// Bytes of all stored operations.
    pub bytes_max: u64,
    /// Keys that one bundle may write, as long as it can be taken back.
    pub undo_entries_max: u32,
    /// Bytes of what those keys held before, with the keys.
    pub undo_bytes_max: u64,
    /// How many blocks a bundle may be in flight, and then wait for its owner's decision.
    pub blocks_max: u64,
    /// Gas of one operation.
    pub operation_gas_max: u64,
    /// Gas of all batches of a block.
    pub share_gas_max: u64,
    /// Bytes that batches of a block may have changed when another operation begins.
    pub share_change_bytes_max: u64,
}

impl BundleLimits {
    /// The most gas one call of a function may use here; the error is what it declares, if that is more than fits.
    fn gas_of(&self, declared: u64) -> Result<u64, u64> {
        let limit = self.operation_gas_max.min(self.share_gas_max);
        match declared {
            // It declares nothing: it gets what there is.
            u64::MAX => Ok(limit),
            declared if declared > limit => Err(declared),
            declared => Ok(declared),
        }
    }
}

/// Why a bundle is not taken in. Its author has to act, or to wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The author has as many in flight as a key may.
    #[error("the key has {limit} bundles in flight, which is the limit")]
    OfKey {
        /// The limit.
        limit: u32,
    },
    /// As many are in flight as the chain takes.
    #[error("{limit} bundles are in flight, which is the limit")]
    InFlight {
        /// The limit.
        limit: u32,
    },
    /// The operations in flight would be too many bytes.
    #[error("the operations in flight would have {found} bytes, the limit is {limit}")]
    Bytes {
        /// What it would be.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Its last height is not ahead, or too far ahead.
    #[error("the bundle's last height is {found}, it must be {low} to {high}")]
    LastHeight {
        /// The bundle's.
        found: Height,
        /// The least allowed.
        low: Height,
        /// The most allowed.
        high: Height,
    },
    /// An operation may use more gas than the share that batches have of a block.
    #[error("operation {operation} ({name}) may use {found} gas, a batch has {limit}")]
    Gas {
        /// The operation's index.
        operation: u32,
        /// The function's name.
        name: &'static str,
        /// What it declares.
        found: u64,
        /// What there is.
        limit: u64,
    },
    /// No function has this hash.
    #[error("operation {operation} calls {function}, which is not registered")]
    UnknownFunction {
        /// The operation's index.
        operation: u32,
        /// The hash.
        function: FunctionHash,
    },
    /// The session may not keep others off.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A bundle of this identity was submitted before.
    #[error("bundle {0} was submitted before")]
    Known(BundleId),
    /// The bundle is a sync one.
    #[error("a sync bundle is run, not submitted")]
    Sync,
}

/// A bundle that was taken in. Nothing of it has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Its identity.
    pub bundle: BundleId,
    /// The session it will run in.
    pub session: SessionId,
    /// How many operations it has.
    pub operations: u32,
    /// Gas that storing it took.
    pub gas_used: u64,
}

/// What a block did for one bundle.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The bundle.
    pub bundle: BundleId,
    /// Who submitted it.
    pub owner: PublicKey,
    /// The session it runs in.
    pub session: SessionId,
    /// The first operation that the batch was to run.
    pub first: u32,
    /// The bundle's state hash afterwards.
    pub state_hash: StateHash,
    /// Gas of the batch, that of undo included; also of a batch that failed.
    pub gas_used: u64,
    /// Bytes that its operations changed, each by itself, and what their results and events weigh beside them (BLOCK-7); none of a
    /// batch that failed.
    pub changed_bytes: u64,
    /// What it came to.
    pub end: BatchEnd,
}

/// What a batch came to.
#[derive(Clone, Debug)]
pub enum BatchEnd {
    /// Operations took effect.
    Advanced {
        /// One for each.
        outcomes: Vec<Outcome>,
        /// They were the last.
        is_complete: bool,
    },
    /// An operation failed; nothing of the batch was kept.
    Stopped(Failure),
    /// Its last height went by.
    Expired,
    /// Nobody decided over it in time; it is left as it stands.
    Abandoned,
}

/// Says whether a bundle could be submitted now. Looks and changes nothing.
///
/// # Errors
/// The outer one if the state does not answer; the inner one is the verdict.
// spec: EXEC-6, EXEC-7
pub fn check_submission(
    bundles: &Bundles,
    registry: &Registry,
    id: BundleId,
    owner: &PublicKey,
    bundle: &Bundle,
    height: Height,
    limits: &BundleLimits,
) -> Result<Result<(), SubmitError>, Stop> {
    let Mode::Async(batching) = bundle.mode() else { return Ok(Err(SubmitError::Sync)) };
    // It is due at the height above its last one, so there is one.
    let high = Height(height.0.saturating_add(limits.blocks_max).min(u64::MAX - 1));
    let low = height.next();
    if !(low..=high).contains(&batching.last_height) {
        return Ok(Err(SubmitError::LastHeight { found: batching.last_height, low, high }));
    }
    for (operation, function) in (0u32..).zip(bundle.operations().iter().map(|operation| operation.function)) {
        let Some(entry) = registry.function_at(&function, height) else {
            return Ok(Err(SubmitError::UnknownFunction { operation, function }));
        };
        if let Err(found) = limits.gas_of(entry.gas_max) {
            let limit = limits.operation_gas_max.min(limits.share_gas_max);
            return Ok(Err(SubmitError::Gas { operation, name: entry.name, found, limit }));
        }
    }
    if bundles.records.contains(&id)? {
        return Ok(Err(SubmitError::Known(id)));
    }
    if bundles.owners.get(owner)?.unwrap_or(0) >= limits.per_key_max {
        return Ok(Err(SubmitError::OfKey { limit: limits.per_key_max }));
    }
    let totals = bundles.totals.get_or_default()?;
    if totals.in_flight >= limits.in_flight_max {
        return Ok(Err(SubmitError::InFlight { limit: limits.in_flight_max }));
    }
    let bytes: u64 = bundle.operations().iter().map(Operation::encoded_len).sum();
    let found = totals.bytes.saturating_add(room(bytes));
    if found > limits.bytes_max {
        return Ok(Err(SubmitError::Bytes { found, limit: limits.bytes_max }));
    }
    Ok(Ok(()))
}

/// The operations cut into pieces, each with the index of its first, and the bytes of all.
fn pieces(batching: &Batching, operations: &[Operation]) -> (Vec<(u32, Piece)>, u64) {
    let (mut out, mut piece, mut first, mut filled, mut bytes) = (Vec::new(), Piece::default(), 0u32, 0u64, 0u64);
    for (index, operation) in (0u32..).zip(operations) {
        if filled >= PIECE_BYTES as u64 {
            out.push((first, std::mem::take(&mut piece)));
            (first, filled) = (index, 0);
        }
        if batching.borders.contains(&index) {
            piece.borders.push(index);
        }
        let length = operation.encoded_len();
        filled = filled.saturating_add(length);
        bytes += length;
        piece.operations.push(operation.clone());
    }
    out.push((first, piece));
    (out, bytes)
}

/// What operations of so many bytes are counted as: some room to replace one by a longer one.
fn room(bytes: u64) -> u64 {
    bytes.saturating_add(PIECE_BYTES as u64)
}

/// What the state says that this engine could not have written is damage.
fn halted(stop: Stop) -> Halt {
    match stop {
        Stop::Read(error) => error.into(),
        stop => ReadError::damaged(format!("bundles: {stop}")).into(),
    }
}

fn missing(id: &BundleId, what: &str) -> Halt {
    ReadError::damaged(format!("bundle {id}: {what} is absent")).into()
}

impl BlockDraft<'_> {
    /// The engine's reads and writes of the namespace, in the topmost layer.
    fn bundles<T>(&self, run: impl FnOnce(&mut Bundles) -> Result<T, Stop>) -> Result<T, Halt> {
        let handle = self.handle();
        let result = handle.unmetered(|| run(&mut Bundles::bind(handle)));
        handle.take_stop();
        result.map_err(halted)
    }

    /// Takes in an async bundle. Nothing of it runs before the next block.
    ///
    /// # Errors
    /// The outer one if the state could not be read; the inner one says why it is not taken, and the draft is
    /// unchanged.
    // spec: EXEC-7
    pub fn submit(
        &mut self,
        id: BundleId,
        caller: Caller,
        bundle: &Bundle,
        limits: &BundleLimits,
    ) -> Result<Result<Submitted, SubmitError>, Halt> {
        let block = self.context().clone();
        let owner = caller.sender;
        let session = caller.session.unwrap_or_else(|| SessionId::root(&block.chain_id, &owner));
        let registry = self.registry();
        let verdict =
            self.bundles(|bundles| check_submission(bundles, registry, id, &owner, bundle, block.height, limits))?;
        let Mode::Async(batching) = bundle.mode() else { return Ok(Err(SubmitError::Sync)) };
        if let Err(error) = verdict {
            return Ok(Err(error));
        }
        let handle = self.handle();
        let record = handle.unmetered(|| {
            let sessions = Sessions::bind(handle);
            let Some(record) = sessions.find(&block.chain_id, &session, &owner)? else {
                return Ok(Err(SessionError::Unknown(session)));
            };
            if record.owner != owner {
                return Ok(Err(SessionError::NotYours(session)));
            }
            let needs: &[_] = if batching.hold { &[HOLD] } else { &[] };
            let verdict = sessions.authorize(session, &record, needs, registry, block.height)?;
            Ok(verdict.map(|()| record))
        });
        handle.take_stop();
        let record = match record.map_err(halted)? {
            Ok(record) => record,
            Err(error) => return Ok(Err(error.into())),
        };
        let (pieces, bytes) = pieces(batching, bundle.operations());
        let hashes: Vec<Hash> = bundle.operations().iter().map(Operation::list_hash).collect();
        let operations = u32::try_from(hashes.len()).expect("a bundle has at most 65,535 operations");
        let stored = cost::WRITE_VALUE_BYTE.saturating_mul(bytes);
        let listed = cost::LISTED.saturating_mul(u64::from(operations));
        let gas_used =
            stored.saturating_add(listed).saturating_add(cost::OPERATION + cost::WRITE * pieces.len() as u64);
        let record = BundleRecord {
            owner,
            session,
            status: Status::Running,
            current_operation: 0,
            total_operations: operations,
            state_hash: record.state_hash,
            operations: list_root(&hashes),
            revision: 0,
            hold: batching.hold,
            piece: 0,
            bytes,
            room: room(bytes),
            undo_entries: 0,
            undo_bytes: 0,
            submitted: block.height,
            last_height: batching.last_height,
            updated: block.height,
        };
        self.bundles(|bundles| {
            for (first, piece) in &pieces {
                bundles.operations.insert(&(id, *first), piece)?;
            }
            bundles.records.insert(&id, &record)?;
            bundles.queue.insert(&id)?;
            bundles.due.insert(&(record.last_height.next(), id))?;
            let totals = bundles.totals.get_or_default()?;
            let (in_flight, bytes) = (totals.in_flight + 1, totals.bytes + record.room);
            bundles.totals.set(&Totals { in_flight, bytes })?;
            let of_key = bundles.owners.get(&owner)?.unwrap_or(0);
            bundles.owners.insert(&owner, &(of_key + 1))
        })?;
        Ok(Ok(Submitted { bundle: id, session, operations, gas_used }))
    }

    /// How many bundles are in flight.
    ///
    /// # Errors
    /// [`Halt`] if the state could not be read.
    pub fn bundles_in_flight(&self) -> Result<u32, Halt> {
        Ok(self.bundles(|bundles| bundles.totals.get())?.map_or(0, |totals| totals.in_flight))
    }

    /// What time decides over bundles, and going on with forgetting those that ended: first in a block. Bounded by the number
    /// in flight, and by how many keys are forgotten at a time: what is left is due in the next block.
    ///
    /// # Errors
    /// [`Halt`] if the state could not be read.
    // spec: EXEC-6, EXEC-9
    pub fn expire_bundles(&mut self, limits: &BundleLimits) -> Result<Vec<Batch>, Halt> {
        let height = self.context().height;
        let mut out = Vec::new();
        if self.bundles_in_flight()? == 0 {
            return Ok(out);
        }
        let due = self.bundles(|bundles| {
            let due = bundles.due.iter().take_while(|due| due.as_ref().map_or(true, |(at, _)| *at <= height));
            due.collect::<Result<Vec<_>, _>>()
        })?;
        for (at, id) in due {
            let mut record = self.record(&id)?;
            if !record.is_in_flight() {
                self.forgetting(|bundles, left| {
                    bundles.due.remove(&(at, id))?;
                    forget(bundles, id, &record, height, left)
                })?;
                continue;
            }
            record.updated = height;
            let (bundle, owner, session) = (id, record.owner, record.session);
            let (first, state_hash) = (record.current_operation, record.state_hash);
            let end = if at <= record.last_height.next() {
                let decided = Height(at.0.saturating_add(limits.blocks_max));
                self.bundles(|bundles| {
                    bundles.due.remove(&(at, id))?;
                    bundles.due.insert(&(decided, id))
                })?;
                if record.status != Status::Running {
                    continue; // It stopped before; its owner has still to decide.
                }
                record.status = Status::Stopped(StopReason::Expired);
                self.bundles(|bundles| {
                    bundles.queue.remove(&id)?;
                    bundles.records.insert(&id, &record)
                })?;
                BatchEnd::Expired
            } else {
                self.forgetting(|bundles, left| end(bundles, id, &mut record, Status::Abandoned, left))?;
                BatchEnd::Abandoned
            };
            out.push(Batch { bundle, owner, session, first, state_hash, gas_used: 0, changed_bytes: 0, end });
        }
        Ok(out)
    }

    /// As [`Self::bundles`], with what may still be forgotten in this block.
    fn forgetting(&self, run: impl FnOnce(&mut Bundles, &mut Forget) -> Result<(), Stop>) -> Result<(), Halt> {
        let mut left = self.forgets().get();
        self.bundles(|bundles| run(bundles, &mut left))?;
        self.forgets().set(left);
        Ok(())
    }

    /// Goes on with the bundles that run: one batch each, round robin from where the last block left off, as far as
    /// the share goes.
    ///
    /// # Errors
    /// [`Halt`] if the state could not be read.
    // spec: EXEC-6
    pub fn continue_bundles(&mut self, limits: &BundleLimits) -> Result<Vec<Batch>, Halt> {
        let mut out = Vec::new();
        if self.bundles_in_flight()? == 0 {
            return Ok(out);
        }
        let (mut ring, cursor) = self.bundles(|bundles| {
            let ring = bundles.queue.iter().collect::<Result<Vec<_>, _>>()?;
            Ok((ring, bundles.cursor.get()?))
        })?;
        let served = cursor.map_or(0, |cursor| ring.partition_point(|id| *id <= cursor));
        ring.rotate_left(served);
        let (mut left, mut changed) = (limits.share_gas_max, self.look(|changes| changes.bytes()));
        for (position, id) in ring.iter().enumerate() {
            // One before it in the ring may have ended it.
            if !self.runs(id)? {
                continue;
            }
            // What the bundles before it left is shared by the rest, so that a long queue does not mean a long wait.
            let allotted = left / (ring.len() - position) as u64;
            let room = limits.share_change_bytes_max.saturating_sub(changed);
            let Some(batch) = self.batch(*id, allotted, left, room, limits)? else { break };
            left = left.saturating_sub(batch.gas_used);
            changed = changed.saturating_add(batch.changed_bytes);
            out.push(batch);
        }
        // With the last bundle in flight the cursor ended, too.
        if let Some(last) = out.last()
            && self.bundles_in_flight()? > 0
        {
            self.bundles(|bundles| bundles.cursor.set(&last.bundle))?;
        }
        Ok(out)
    }

    /// Goes on with one bundle for as much gas as is given, beside the share, and for as many changed bytes as `limits` say.
    /// None if it does not run, or if its next operation may use more than that.
    ///
    /// # Errors
    /// [`Halt`] if the state could not be read.
    pub fn continue_bundle(&mut self, id: BundleId, gas: u64, limits: &BundleLimits) -> Result<Option<Batch>, Halt> {
        if self.runs(&id)? { self.batch(id, gas, gas, limits.share_change_bytes_max, limits) } else { Ok(None) }
    }

    fn runs(&self, id: &BundleId) -> Result<bool, Halt> {
        self.bundles(|bundles| bundles.queue.contains(id))
    }

    fn record(&self, id: &BundleId) -> Result<BundleRecord, Halt> {
        self.bundles(|bundles| bundles.records.get(id))?.ok_or_else(|| missing(id, "its record"))
    }

    /// Runs operations of a bundle that runs until `allotted` gas is used, a border comes, or the next may use more than is
    /// `left`, or `room` bytes are changed. None if not even the first fits.
    fn batch(
        &self,
        id: BundleId,
        allotted: u64,
        left: u64,
        room: u64,
        limits: &BundleLimits,
    ) -> Result<Option<Batch>, Halt> {
        let before = self.record(&id)?;
        let handle = self.handle();
        handle.push();
        let mut record = before.clone();
        let run = self.run_batch(id, &mut record, [allotted, left, room], limits);
        self.drop_ahead(id);
        let height = self.context().height;
        let (bundle, owner, session, first) = (id, before.owner, before.session, before.current_operation);
        match run {
            Ok(None) => {
                handle.pop();
                Ok(None)
            }
            Ok(Some(Ran { outcomes, gas_used, changed_bytes })) => {
                record.updated = height;
                let is_complete = record.current_operation == record.total_operations;
                self.forgetting(|bundles, left| match is_complete {
                    true => end(bundles, id, &mut record, Status::Complete, left),
                    false => bundles.records.insert(&id, &record),
                })?;
                handle.merge();
                let (state_hash, end) = (record.state_hash, BatchEnd::Advanced { outcomes, is_complete });
                Ok(Some(Batch { bundle, owner, session, first, state_hash, gas_used, changed_bytes, end }))
            }
            Err(failed) => {
                // spec: EXEC-7. Back to the checkpoint: nothing of the batch is kept.
                handle.pop();
                if let FailureKind::Stopped(Stop::Read(error)) = failed.kind {
                    return Err(error.into());
                }
                let failure = Failure::from(&failed);
                let status = Status::Stopped(StopReason::Failed(failure.clone()));
                let (state_hash, gas_used) = (before.state_hash, failed.gas_used);
                let record = BundleRecord { status, updated: height, ..before };
                self.bundles(|bundles| {
                    bundles.queue.remove(&id)?;
                    bundles.records.insert(&id, &record)
                })?;
                let end = BatchEnd::Stopped(failure);
                Ok(Some(Batch { bundle, owner, session, first, state_hash, gas_used, changed_bytes: 0, end }))
            }
        }
    }

    /// The operations of a batch, each in a layer of its own, and what they used.
    fn run_batch(
        &self,
        id: BundleId,
        record: &mut BundleRecord,
        [allotted, left, room]: [u64; 3],
        limits: &BundleLimits,
    ) -> Result<Option<Ran>, Failed> {
        let handle = self.handle();
        let (mut outcomes, mut used, mut changed, mut made) = (Vec::new(), 0u64, 0u64, Made::default());
        let mut piece = Piece::default();
        let mut loaded = false;
        let one = Limits::default();
        while record.current_operation < record.total_operations {
            let next = record.current_operation;
            if !loaded {
                piece = self.piece(id, record.piece).map_err(|halt| unread(next, halt))?;
                loaded = true;
            }
            let at = (next - record.piece) as usize;
            let Some(operation) = piece.operations.get(at) else {
                // The piece is at its end: the next one begins here.
                record.piece = next;
                loaded = false;
                if at == 0 {
                    return Err(unread(next, missing(&id, "a piece of its operations")));
                }
                continue;
            };
            // spec: EXEC-6, EXEC-8
            let border = piece.borders.contains(&next);
            if !outcomes.is_empty() && (border || used >= allotted || made.reaches(&one)) {
                break;
            }
            let failed = |kind, gas_used| Failed { operation: next, function: operation.function, kind, gas_used };
            let entry = self.registry().function_at(&operation.function, self.context().height);
            let declared = entry.map_or(u64::MAX, |entry| entry.gas_max);
            let gas_max = limits.gas_of(declared).map_err(|found| {
                let (what, limit) =
                    ("gas that an operation may use", limits.operation_gas_max.min(limits.share_gas_max));
                failed(FailureKind::Stopped(Stop::Limit { what, found, limit }), used)
            })?;
            if gas_max > left.saturating_sub(used) || changed >= room {
                // Not begun at all, or a border that the budget adds.
                let ran = Ran { outcomes, gas_used: used, changed_bytes: changed };
                return Ok((!ran.outcomes.is_empty()).then_some(ran));
            }
            // What an operation may use does not depend on its batch: who else runs, and how the budget cut, must not
            // decide whether it succeeds.
            let coming = |index: u32, operation| Coming {
                bundle: Some(id),
                sender: record.owner,
                session: record.session,
                index,
                operation,
            };
            // As many as the batch will have, if the others are like those it had.
            let more = used.checked_div(outcomes.len() as u64).map_or(0, |mean| (allotted - used) / mean.max(1) + 1);
            let border =
                piece.borders.iter().find(|border| **border > next).map_or(u64::MAX, |at| u64::from(at - next));
            let more = usize::try_from(more.min(border)).unwrap_or(usize::MAX).min(piece.operations.len() - at);
            self.look_ahead(&coming(next, operation), more, |wanted| {
                (next..)
                    .zip(&piece.operations[at..at + wanted])
                    .map(|(index, operation)| coming(index, operation))
                    .collect()
            });
            let coming = coming(next, operation);
            handle.set_meter(Limits { gas_max, ..one });
            handle.push();
            let ran = self.operation(&coming);
            let ran = ran.and_then(|(outcome, after)| {
                let undo = self.note_writes(Some(id), Some((id, record, limits)))?;
                Ok((outcome, after, undo, self.count_changes()?))
            });
            match ran {
                Ok((outcome, after, undo, bytes)) => {
                    handle.merge();
                    let given = given_weight(&outcome.result, &outcome.events);
                    changed = changed.saturating_add(bytes).saturating_add(given);
                    used = used.saturating_add(outcome.gas_used).saturating_add(undo);
                    made.add(handle.meter().made());
                    record.state_hash = after.state_hash;
                    record.current_operation += 1;
                    outcomes.push(outcome);
                }
                Err(kind) => {
                    handle.pop();
                    return Err(failed(kind, used.saturating_add(handle.meter().used())));
                }
            }
        }
        Ok(Some(Ran { outcomes, gas_used: used, changed_bytes: changed }))
    }

    fn piece(&self, id: BundleId, first: u32) -> Result<Piece, Halt> {
        let piece = self.bundles(|bundles| bundles.operations.get(&(id, first)))?;
        piece.ok_or_else(|| missing(&id, "a piece of its operations"))
    }

    /// How many bundles are in flight, asked while one runs.
    pub(crate) fn others_in_flight(&self) -> Result<u32, FailureKind> {
        self.bundles_in_flight().map_err(|halt| FailureKind::Stopped(Stop::Read(read_error(halt))))
    }

    /// Takes note of what the operation in the topmost layer wrote, for the sake of bundles in flight: others learn
    /// that their keys were changed, and by whom; the bundle it belongs to keeps what was there. Gives the gas of that.
    // spec: EXEC-9, EXEC-10
    pub(crate) fn note_writes(
        &self,
        by: Option<BundleId>,
        mut own: Option<(BundleId, &mut BundleRecord, &BundleLimits)>,
    ) -> Result<u64, FailureKind> {
        let stopped = |halt| FailureKind::Stopped(Stop::Read(read_error(halt)));
        type Write = (Namespace, Key, Option<Value>, Option<Value>);
        let changed: Vec<Write> = (self.handle().top().iter())
            .filter(|(namespace, ..)| is_application(namespace))
            .map(|(space, key, change)| (space.clone(), key.clone(), change.before.clone(), change.after.clone()))
            .collect();
        let changer = Changer { height: self.context().height, bundle: by };
        let (mut gas, mut noted) = (0u64, 0u64);
        for (namespace, key, before, after) in changed {
            let place = key_hash(&namespace, &key);
            let found = self.bundles(|bundles| bundles.written.get(&place)).map_err(stopped)?;
            let mut writers = found.clone().unwrap_or_default().writers.into_vec();
            let own_id = own.as_ref().map(|(id, ..)| *id);
            for writer in writers.iter_mut().filter(|writer| Some(writer.bundle) != own_id) {
                // One that ended holds nothing, though not all of it may be forgotten yet.
                if writer.hold && self.record(&writer.bundle).map_err(stopped)?.is_in_flight() {
                    return Err(FailureKind::Held { bundle: writer.bundle, namespace, key });
                }
                writer.changed = Some(changer);
            }
            let hash = |value: &Option<Value>| value.as_ref().map(crate::value_hash);
            if let Some((id, record, limits)) = &mut own {
                match writers.iter_mut().find(|writer| writer.bundle == *id) {
                    Some(writer) => {
                        // Also where it was changed back: what stands there is the other's then. The chain itself leaves
                        // no name, so the value is compared as well.
                        writer.overlaid |= writer.changed.is_some() || hash(&before) != writer.after;
                        writer.after = hash(&after);
                        gas = gas.saturating_add(cost::UNDO_AGAIN);
                    }
                    None => {
                        let bytes = undo_bytes(&namespace, &key, before.as_ref());
                        keep(record, bytes, before.as_ref(), limits)?;
                        gas = gas.saturating_add(cost::UNDO + cost::UNDO_BYTE.saturating_mul(bytes));
                        let entry = record.undo_entries - 1;
                        noted = noted.saturating_add(bytes - UNDO_ENTRY_BYTES);
                        let kept = Before { namespace, key, value: before };
                        self.bundles(|bundles| bundles.undo.insert(&(*id, entry), &kept)).map_err(stopped)?;
                        let (after, hold) = (hash(&after), record.hold);
                        writers.push(Writer { bundle: *id, entry, after, hold, changed: None, overlaid: false });
                    }
                }
            } else if found.is_none() {
                continue;
            }
            let listed = found.as_ref().map_or(0, |found| found.writers.len() as u64);
            gas = gas.saturating_add(cost::WRITER.saturating_mul(listed));
            let writers = BoundedList::new(writers).expect("as many bundles write a key as are in flight");
            let written = super::Written { writers };
            // All of it is counted with the rest of what the operation changes. Where that will be too much for this alone, it
            // is not held in memory first.
            if found.as_ref() != Some(&written) {
                noted = noted.saturating_add(written.to_bytes().len() as u64);
                self.charged(|meter| meter.may_change(noted))?;
            }
            self.bundles(|bundles| bundles.written.insert(&place, &written)).map_err(stopped)?;
        }
        Ok(gas)
    }
}

/// Counts one more key, if the bundle may write one more.
fn keep(
    record: &mut BundleRecord,
    bytes: u64,
    before: Option<&Value>,
    limits: &BundleLimits,
) -> Result<(), FailureKind> {
    let total = record.undo_bytes.saturating_add(bytes);
    let length = before.map_or(0, |value| value.len());
    for (what, found, limit) in [
        ("keys that a bundle wrote", u64::from(record.undo_entries) + 1, u64::from(limits.undo_entries_max)),
        ("bytes kept to undo a bundle", total, limits.undo_bytes_max),
        ("bytes of a value kept to undo a bundle", length as u64, UNDO_VALUE_BYTES_MAX as u64),
    ] {
        if found > limit {
            return Err(FailureKind::Stopped(Stop::Limit { what, found, limit }));
        }
    }
    record.undo_entries += 1;
    record.undo_bytes = total;
    Ok(())
}

fn undo_bytes(namespace: &Namespace, key: &Key, before: Option<&Value>) -> u64 {
    let bytes = namespace.as_str().len() + key.len() + before.map_or(0, |value| value.len());
    UNDO_ENTRY_BYTES + bytes as u64
}

fn read_error(halt: Halt) -> ReadError {
    match halt {
        Halt::WitnessIncomplete { namespace, key } => ReadError::Incomplete { namespace, key },
        Halt::Read(error) => error,
    }
}

/// A batch that could not be read on: no verdict.
fn unread(operation: u32, halt: Halt) -> Failed {
    let (function, gas_used) = (FunctionHash(Hash::ZERO), 0);
    Failed { operation, function, kind: FailureKind::Stopped(Stop::Read(read_error(halt))), gas_used }
}

/// What a batch did.
struct Ran {
    outcomes: Vec<Outcome>,
    gas_used: u64,
    changed_bytes: u64,
}

/// How much of what was kept of bundles may be forgotten at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forget {
    entries: u64,
    bytes: u64,
}

impl Default for Forget {
    fn default() -> Self {
        Self { entries: FORGET_ENTRIES_MAX, bytes: FORGET_BYTES_MAX }
    }
}

impl Forget {
    fn is_used_up(&self) -> bool {
        self.entries == 0 || self.bytes == 0
    }

    /// One more key, for which so many bytes were changed.
    fn count(&mut self, bytes: usize) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// Ends a bundle: it is what `status` says at once, and all that was kept of it goes but its record. What its batches did
/// stays.
// spec: EXEC-9
pub(super) fn end(
    bundles: &mut Bundles,
    id: BundleId,
    record: &mut BundleRecord,
    status: Status,
    left: &mut Forget,
) -> Result<(), Stop> {
    let pieces = bundles.operations.prefix(&id).map(|piece| piece.map(|(place, _)| place));
    for place in pieces.collect::<Result<Vec<_>, _>>()? {
        bundles.operations.remove(&place)?;
    }
    bundles.queue.remove(&id)?;
    // Time has one say over it, at one of two heights.
    let due: Vec<_> = bundles.due.iter().collect::<Result<_, _>>()?;
    for place in due.into_iter().filter(|(_, of)| *of == id) {
        bundles.due.remove(&place)?;
    }
    record.status = status;
    bundles.records.insert(&id, record)?;
    forget(bundles, id, record, record.updated, left)
}

/// Forgets what was kept of a bundle that ended, as far as may be now; its place among those in flight is free once nothing
/// is left. What is left is due in the next block.
fn forget(
    bundles: &mut Bundles,
    id: BundleId,
    record: &BundleRecord,
    height: Height,
    left: &mut Forget,
) -> Result<(), Stop> {
    let first = bundles.undo.prefix(&id).next().transpose()?.map_or(record.undo_entries, |((_, entry), _)| entry);
    for entry in first..record.undo_entries {
        if left.is_used_up() {
            return bundles.due.insert(&(height.next(), id)).map(drop);
        }
        let Some(before) = bundles.undo.remove(&(id, entry))? else { continue };
        let place = key_hash(&before.namespace, &before.key);
        let Some(written) = bundles.written.get(&place)? else { continue };
        let mut writers = written.writers.into_vec();
        writers.retain(|writer| writer.bundle != id);
        let mut bytes = FORGOTTEN_KEYS_BYTES;
        match writers.is_empty() {
            true => drop(bundles.written.remove(&place)?),
            false => {
                let writers = BoundedList::new(writers).expect("fewer than before");
                let written = super::Written { writers };
                bytes += written.to_bytes().len();
                bundles.written.insert(&place, &written)?;
            }
        }
        left.count(bytes);
    }
    let totals = bundles.totals.get_or_default()?;
    let in_flight = totals.in_flight.saturating_sub(1);
    match in_flight {
        0 => {
            bundles.totals.take()?;
            bundles.cursor.take()?;
        }
        _ => bundles.totals.set(&Totals { in_flight, bytes: totals.bytes.saturating_sub(record.room) })?,
    }
    match bundles.owners.get(&record.owner)?.unwrap_or(0) {
        0 | 1 => bundles.owners.remove(&record.owner).map(drop),
        more => bundles.owners.insert(&record.owner, &(more - 1)),
    }
}

impl Handle {
    /// As [`BlockDraft::bundles`], for the functions that manage bundles: what they do here is paid for otherwise.
    pub(super) fn bundles<T>(&self, run: impl FnOnce(&mut Bundles) -> Result<T, Stop>) -> Result<T, Stop> {
        self.unmetered(|| run(&mut Bundles::bind(self)))
    }
}
