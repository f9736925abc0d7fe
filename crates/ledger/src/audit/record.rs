//! What the audit log says: a record for every operation, and for all else that a block did to what runs on the chain.
//!
//! A record of an operation holds everything that enters its link but the chain's name, so it checks itself: the state
//! hash it claims must be the hash of the rest. How records stand in the log is told in [`super`].
//!
//! Layout: `spec/audit.md`, AUDIT-3 and AUDIT-5. Vectors: `spec/vectors/audit.json`.

use crate::block::{BlockRecord, Continuation, OperationReceipt, Progress, Receipt, Verdict};
use crate::transaction::SignedTransaction;
use keelstone_codec::{
    ChainId, Decode, DecodeError, Hash, Height, Reader, Root, StateHash, Tag, Timestamp, put_varint, tagged,
};
use keelstone_execution::bundles::{Batch, BatchEnd, BundleId, RollBack, RolledBack, Submitted};
use keelstone_execution::mmr::MMR_COUNT_MAX;
use keelstone_execution::{
    Emitted, Event as _, Failed, Failure, Finished, Function as _, FunctionHash, Link, Outcome, PublicKey, SessionId,
    Summary, args_hash, result_hash,
};
use keelstone_macros::{Decode, Encode};
use std::collections::BTreeMap;

/// Most records of one block. The gas of a block keeps their number far below.
pub const AUDIT_RECORDS_MAX: usize = 1 << 24;

/// One record of the log.
// spec: AUDIT-3
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct AuditRecord {
    /// The block it happened in.
    pub height: Height,
    /// What happened.
    pub event: AuditEvent,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum AuditEvent {
    /// An operation took effect.
    Operation(AuditOperation),
    /// What an async bundle had done was taken back, by the operation whose record is the next of its bundle.
    RolledBack {
        /// Who asked for it.
        sender: PublicKey,
        /// The bundle it was asked for in: the transaction's identity.
        by: BundleId,
        /// What was taken back.
        bundle: BundleId,
        /// The session it had run in.
        session: SessionId,
        /// That session's state hash before.
        before: StateHash,
        /// Its state hash afterwards: the link of EXEC-11.
        after: StateHash,
        /// The digest of the restoring changes.
        diff: Hash,
    },
    /// A bundle's operation failed, and nothing of its bundle or batch was kept.
    Failed {
        /// Who sent the bundle.
        sender: PublicKey,
        /// The bundle: the transaction's identity.
        bundle: BundleId,
        /// The operation's index.
        operation: u32,
        /// Its function.
        function: FunctionHash,
        /// Why (spec: EXEC-5).
        code: u16,
    },
    /// An async bundle was taken in.
    Submitted {
        /// Who sent it.
        sender: PublicKey,
        /// The bundle: the transaction's identity.
        bundle: BundleId,
        /// The session it will run in.
        session: SessionId,
        /// How many operations it has.
        operations: u32,
    },
    /// Time decided over an async bundle.
    Ended {
        /// Who sent it.
        owner: PublicKey,
        /// The bundle.
        bundle: BundleId,
        /// The session it ran in.
        session: SessionId,
        /// How many of its operations took effect.
        operations: u32,
        /// It is left as it stands; otherwise its last height went by, and its owner may still decide.
        abandoned: bool,
        /// The session's state hash at its checkpoint.
        state_hash: StateHash,
    },
    /// The block itself, behind everything it did.
    Block(AuditBlock),
}

/// An operation that took effect.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct AuditOperation {
    /// Who sent its bundle.
    pub sender: PublicKey,
    /// The bundle: the transaction's identity.
    pub bundle: BundleId,
    /// Its index in the bundle.
    pub operation: u32,
    /// The session it ran in.
    pub session: SessionId,
    /// How many operations the session had run before.
    pub sequence: u64,
    /// Its function.
    pub function: FunctionHash,
    /// The hash of its arguments.
    pub args: Hash,
    /// The hash of its result.
    pub result: Hash,
    /// What it changed, by digest and sizes.
    pub diff: Summary,
    /// The session's state hash before.
    pub before: StateHash,
    /// The session's state hash afterwards.
    pub after: StateHash,
}

impl AuditOperation {
    /// The state hash that its link gives.
    #[must_use]
    pub fn link(&self, chain_id: &ChainId) -> StateHash {
        let Self { session, sequence, function, args, result, before, .. } = *self;
        Link { chain_id, session, sequence, previous: before, function, args, result, diff: self.diff.digest }
            .state_hash()
    }
}

/// A block that was not empty. The root after it is the next block's root before.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct AuditBlock {
    /// Its time.
    pub time: Timestamp,
    /// Who made it.
    pub proposer: PublicKey,
    /// The root of the state before it.
    pub before: Root,
    /// The hash of the record before its own; of the first, that of the genesis.
    pub previous_record: Hash,
    /// The root of its transactions.
    pub transactions_root: Hash,
    /// The root of its receipts.
    pub receipts_root: Hash,
    /// The root of what it did for async bundles.
    pub continuations_root: Hash,
}

impl AuditBlock {
    /// What the log says of the block with this record.
    #[must_use]
    pub fn of(record: &BlockRecord) -> Self {
        Self {
            time: record.time,
            proposer: record.proposer,
            before: record.previous_root,
            previous_record: record.previous_record,
            transactions_root: record.transactions_root,
            receipts_root: record.receipts_root,
            continuations_root: record.continuations_root,
        }
    }
}

impl AuditRecord {
    /// The hash that stands for it in the log.
    // spec: AUDIT-3
    #[must_use]
    pub fn item(&self) -> Hash {
        const RECORD: Tag = Tag::new("audit/record");
        tagged(RECORD, self)
    }

    /// The kind of the event, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.event {
            AuditEvent::Operation(_) => "operation",
            AuditEvent::RolledBack { .. } => "rolled_back",
            AuditEvent::Failed { .. } => "failed",
            AuditEvent::Submitted { .. } => "submitted",
            AuditEvent::Ended { .. } => "ended",
            AuditEvent::Block(_) => "block",
        }
    }

    /// All kinds, as [`Self::kind`] says them.
    pub const KINDS: [&'static str; 6] = ["operation", "rolled_back", "failed", "submitted", "ended", "block"];

    /// Whose doing it was; of a block, who made it.
    #[must_use]
    pub fn who(&self) -> PublicKey {
        match &self.event {
            AuditEvent::Operation(operation) => operation.sender,
            AuditEvent::RolledBack { sender, .. }
            | AuditEvent::Failed { sender, .. }
            | AuditEvent::Submitted { sender, .. } => *sender,
            AuditEvent::Ended { owner, .. } => *owner,
            AuditEvent::Block(block) => block.proposer,
        }
    }
}

// ---- what a block did, from running it

/// Collects what a block does, in order.
#[derive(Debug, Default)]
pub(crate) struct Collected(Vec<AuditEvent>);

impl Collected {
    pub(crate) fn into_events(self) -> Vec<AuditEvent> {
        self.0
    }

    /// Puts what happened after these behind them.
    pub(crate) fn append(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    fn operation(&mut self, sender: PublicKey, bundle: BundleId, session: SessionId, operation: u32, ran: &Outcome) {
        self.taken_back(sender, bundle, ran.function, &ran.events);
        self.0.push(AuditEvent::Operation(AuditOperation {
            sender,
            bundle,
            operation,
            session,
            sequence: ran.sequence,
            function: ran.function,
            args: ran.args,
            result: result_hash(&ran.result),
            diff: ran.diff,
            before: ran.previous,
            after: ran.state_hash,
        }));
    }

    /// An operation that takes a bundle back says so in its event, which no other function emits.
    fn taken_back(&mut self, sender: PublicKey, by: BundleId, function: FunctionHash, events: &[Emitted]) {
        if function != RollBack::hash() {
            return;
        }
        for event in events.iter().filter(|event| event.name == RolledBack::NAME) {
            let Ok(RolledBack { bundle, session, before, after, digest, .. }) = RolledBack::from_bytes(&event.data)
            else {
                continue;
            };
            self.0.push(AuditEvent::RolledBack { sender, by, bundle, session, before, after, diff: digest });
        }
    }

    pub(crate) fn finished(&mut self, sender: PublicKey, bundle: BundleId, finished: &Finished) {
        // There is one of these for each transaction that is run beforehand: room for four would be most of it.
        self.0.reserve_exact(finished.outcomes.len());
        for (index, outcome) in (0u32..).zip(&finished.outcomes) {
            self.operation(sender, bundle, finished.session, index, outcome);
        }
    }

    pub(crate) fn failed(&mut self, sender: PublicKey, bundle: BundleId, failed: &Failed) {
        self.failure(sender, bundle, &Failure::from(failed));
    }

    fn failure(&mut self, sender: PublicKey, bundle: BundleId, failure: &Failure) {
        let Failure { operation, function, code, .. } = *failure;
        self.0.push(AuditEvent::Failed { sender, bundle, operation, function, code });
    }

    pub(crate) fn submitted(&mut self, sender: PublicKey, submitted: &Submitted) {
        let Submitted { bundle, session, operations, .. } = *submitted;
        self.0.push(AuditEvent::Submitted { sender, bundle, session, operations });
    }

    pub(crate) fn batch(&mut self, batch: &Batch) {
        let Batch { bundle, owner, session, first, state_hash, .. } = *batch;
        match &batch.end {
            BatchEnd::Advanced { outcomes, .. } => {
                for (index, outcome) in (first..).zip(outcomes) {
                    self.operation(owner, bundle, session, index, outcome);
                }
            }
            BatchEnd::Stopped(failure) => self.failure(owner, bundle, failure),
            BatchEnd::Expired | BatchEnd::Abandoned => {
                let abandoned = matches!(batch.end, BatchEnd::Abandoned);
                self.0.push(AuditEvent::Ended { owner, bundle, session, operations: first, abandoned, state_hash });
            }
        }
    }

    pub(crate) fn block(&mut self, record: &BlockRecord) {
        self.0.push(AuditEvent::Block(AuditBlock::of(record)));
    }

    // ---- what a block did, from what is kept of it

    /// As [`Self::operation`], from a receipt. What a receipt does not say (the place in the session, the state hash
    /// before, and of a continuation the arguments) is left zero: [`AuditEvent::settled`] takes it from the record that
    /// is compared, where the link vouches for it.
    fn received(&mut self, of: &Received, operation: u32, args: Hash, ran: &OperationReceipt) {
        self.taken_back(of.sender, of.bundle, ran.function, &ran.events);
        self.0.push(AuditEvent::Operation(AuditOperation {
            sender: of.sender,
            bundle: of.bundle,
            operation,
            session: of.session,
            sequence: 0,
            function: ran.function,
            args,
            result: result_hash(&ran.result),
            diff: ran.diff,
            before: StateHash::default(),
            after: ran.state_hash,
        }));
    }

    pub(crate) fn receipt(&mut self, transaction: &SignedTransaction, receipt: &Receipt) {
        let (sender, bundle) = (transaction.transaction.sender, BundleId(receipt.transaction.0));
        match &receipt.verdict {
            Verdict::Succeeded { session, operations } => {
                let of = Received { sender, bundle, session: *session };
                let called = transaction.transaction.bundle.operations();
                for ((index, ran), called) in (0u32..).zip(operations).zip(called) {
                    self.received(&of, index, args_hash(&called.args), ran);
                }
            }
            Verdict::Failed(failure) => self.failure(sender, bundle, failure),
            Verdict::Submitted { bundle, session, operations } => {
                let (bundle, session, operations) = (*bundle, *session, *operations);
                self.0.push(AuditEvent::Submitted { sender, bundle, session, operations });
            }
            // Nothing of it was run, and its nonce is not used.
            Verdict::Refused { .. } => {}
        }
    }

    pub(crate) fn continuation(&mut self, owner: PublicKey, continuation: &Continuation) {
        let Continuation { bundle, session, first, state_hash, .. } = *continuation;
        match &continuation.progress {
            Progress::Advanced { operations, .. } => {
                let of = Received { sender: owner, bundle, session };
                for (index, ran) in (first..).zip(operations) {
                    self.received(&of, index, Hash::ZERO, ran);
                }
            }
            Progress::Stopped(failure) => self.failure(owner, bundle, failure),
            Progress::Expired | Progress::Abandoned => {
                let abandoned = matches!(continuation.progress, Progress::Abandoned);
                self.0.push(AuditEvent::Ended { owner, bundle, session, operations: first, abandoned, state_hash });
            }
        }
    }
}

struct Received {
    sender: PublicKey,
    bundle: BundleId,
    session: SessionId,
}

impl AuditEvent {
    /// What receipts say of an operation, completed by what the record that is compared says of the rest.
    pub(crate) fn settled(self, found: &Self) -> Self {
        match (self, found) {
            (Self::Operation(said), Self::Operation(found)) => {
                let args = if said.args == Hash::ZERO { found.args } else { said.args };
                Self::Operation(AuditOperation { sequence: found.sequence, before: found.before, args, ..said })
            }
            (said, _) => said,
        }
    }
}

// ---- as a block's records are kept

/// The records of one block, as they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockAudit {
    /// The block.
    pub height: Height,
    /// The place of its first record in the log.
    pub first: u64,
    /// What happened, in order.
    pub events: Vec<AuditEvent>,
}

impl BlockAudit {
    /// Its records.
    pub fn records(&self) -> impl Iterator<Item = AuditRecord> {
        self.events.iter().map(|event| AuditRecord { height: self.height, event: event.clone() })
    }

    /// The record at a place of the log; none if it is not one of these.
    #[must_use]
    pub fn record(&self, index: u64) -> Option<AuditRecord> {
        let event = self.events.get(usize::try_from(index.checked_sub(self.first)?).ok()?)?.clone();
        Some(AuditRecord { height: self.height, event })
    }

    /// The packed form: every hash is written once, and the state hash after an operation not at all, since its link
    /// gives it.
    // spec: AUDIT-5
    #[must_use]
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Packing::default();
        out.number(self.height.0);
        out.number(self.first);
        out.number(self.events.len() as u64);
        self.events.iter().for_each(|event| out.event(event));
        out.bytes
    }

    /// Reads the packed form. The chain's name enters the links.
    ///
    /// # Errors
    /// [`DecodeError`]: the input is not what [`Self::pack`] makes of any records.
    pub fn unpack(chain_id: &ChainId, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Unpacking { input: Reader::new(bytes), seen: Vec::new(), chain_id };
        let (height, first) = (Height(input.input.varint()?), input.input.varint()?);
        let count = input.input.varint()?;
        if count > AUDIT_RECORDS_MAX as u64 {
            let limit = AUDIT_RECORDS_MAX as u64;
            return Err(DecodeError::TooLarge { what: "records of a block", found: count, limit });
        }
        if first > MMR_COUNT_MAX - count {
            return Err(DecodeError::TooLarge { what: "place of a record", found: first, limit: MMR_COUNT_MAX });
        }
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(input.event()?);
        }
        input.input.finish()?;
        let found = Self { height, first, events };
        // One encoding: a hash that was written where a number should stand is found here.
        match found.pack() == bytes {
            true => Ok(found),
            false => Err(DecodeError::NotCanonical { what: "a hash of a block's records is written twice" }),
        }
    }
}

#[derive(Default)]
struct Packing {
    bytes: Vec<u8>,
    /// The number of each hash, from 1.
    seen: BTreeMap<Hash, u64>,
    /// How many numbers are given out.
    numbered: u64,
}

impl Packing {
    fn number(&mut self, number: u64) {
        put_varint(&mut self.bytes, number);
    }

    /// A new hash as 0 and the hash; a known one as its number, from 1.
    fn hash(&mut self, hash: &Hash) {
        match self.seen.get(hash) {
            Some(number) => put_varint(&mut self.bytes, *number),
            None => {
                self.give(hash);
                self.bytes.push(0);
                self.bytes.extend_from_slice(&hash.0);
            }
        }
    }

    /// Gives a hash the next number, unless it has one: the number is used up either way, so that whoever reads need
    /// not look for it.
    fn give(&mut self, hash: &Hash) {
        self.numbered += 1;
        self.seen.entry(*hash).or_insert(self.numbered);
    }

    fn key(&mut self, key: &PublicKey) {
        self.hash(&key.0);
    }

    fn summary(&mut self, summary: &Summary) {
        self.number(summary.entries);
        self.number(summary.bytes);
        self.hash(&summary.digest);
    }

    fn event(&mut self, event: &AuditEvent) {
        match event {
            AuditEvent::Operation(operation) => {
                self.bytes.push(0);
                self.key(&operation.sender);
                self.hash(&operation.bundle.0);
                self.number(operation.operation.into());
                self.hash(&operation.session.0);
                self.number(operation.sequence);
                self.hash(&operation.function.0);
                self.hash(&operation.args);
                self.hash(&operation.result);
                self.summary(&operation.diff);
                self.hash(&operation.before.0);
                // The next operation of the session stands on it.
                self.give(&operation.after.0);
            }
            AuditEvent::RolledBack { sender, by, bundle, session, before, after, diff } => {
                self.bytes.push(1);
                self.key(sender);
                [by.0, bundle.0, session.0, before.0, after.0, *diff].iter().for_each(|hash| self.hash(hash));
            }
            AuditEvent::Failed { sender, bundle, operation, function, code } => {
                self.bytes.push(2);
                self.key(sender);
                self.hash(&bundle.0);
                self.number((*operation).into());
                self.hash(&function.0);
                self.number((*code).into());
            }
            AuditEvent::Submitted { sender, bundle, session, operations } => {
                self.bytes.push(3);
                self.key(sender);
                self.hash(&bundle.0);
                self.hash(&session.0);
                self.number((*operations).into());
            }
            AuditEvent::Ended { owner, bundle, session, operations, abandoned, state_hash } => {
                self.bytes.push(4);
                self.key(owner);
                self.hash(&bundle.0);
                self.hash(&session.0);
                self.number((*operations).into());
                self.bytes.push(u8::from(*abandoned));
                self.hash(&state_hash.0);
            }
            AuditEvent::Block(block) => {
                self.bytes.push(5);
                self.number(block.time.0);
                self.key(&block.proposer);
                let AuditBlock { before, previous_record, transactions_root, receipts_root, .. } = block;
                let hashes = [&before.0, previous_record, transactions_root, receipts_root, &block.continuations_root];
                hashes.into_iter().for_each(|hash| self.hash(hash));
            }
        }
    }
}

struct Unpacking<'a> {
    input: Reader<'a>,
    seen: Vec<Hash>,
    chain_id: &'a ChainId,
}

impl Unpacking<'_> {
    fn hash(&mut self) -> Result<Hash, DecodeError> {
        let number = self.input.varint()?;
        if number == 0 {
            let hash = Hash(self.input.array()?);
            self.seen.push(hash);
            return Ok(hash);
        }
        let known = usize::try_from(number - 1).ok().and_then(|at| self.seen.get(at)).copied();
        known.ok_or(DecodeError::TooLarge { what: "number of a hash", found: number, limit: self.seen.len() as u64 })
    }

    fn key(&mut self) -> Result<PublicKey, DecodeError> {
        self.hash().map(PublicKey)
    }

    fn small<T: TryFrom<u64>>(&mut self, what: &'static str, limit: u64) -> Result<T, DecodeError> {
        let found = self.input.varint()?;
        T::try_from(found).map_err(|_| DecodeError::TooLarge { what, found, limit })
    }

    fn index(&mut self) -> Result<u32, DecodeError> {
        self.small("index of an operation", u32::MAX.into())
    }

    fn summary(&mut self) -> Result<Summary, DecodeError> {
        Ok(Summary { entries: self.input.varint()?, bytes: self.input.varint()?, digest: self.hash()? })
    }

    fn event(&mut self) -> Result<AuditEvent, DecodeError> {
        Ok(match self.input.byte()? {
            0 => {
                let mut operation = AuditOperation {
                    sender: self.key()?,
                    bundle: BundleId(self.hash()?),
                    operation: self.index()?,
                    session: SessionId(self.hash()?),
                    sequence: self.input.varint()?,
                    function: FunctionHash(self.hash()?),
                    args: self.hash()?,
                    result: self.hash()?,
                    diff: self.summary()?,
                    before: StateHash(self.hash()?),
                    after: StateHash::default(),
                };
                operation.after = operation.link(self.chain_id);
                self.seen.push(operation.after.0);
                AuditEvent::Operation(operation)
            }
            1 => AuditEvent::RolledBack {
                sender: self.key()?,
                by: BundleId(self.hash()?),
                bundle: BundleId(self.hash()?),
                session: SessionId(self.hash()?),
                before: StateHash(self.hash()?),
                after: StateHash(self.hash()?),
                diff: self.hash()?,
            },
            2 => AuditEvent::Failed {
                sender: self.key()?,
                bundle: BundleId(self.hash()?),
                operation: self.index()?,
                function: FunctionHash(self.hash()?),
                code: self.small("code of a failure", u16::MAX.into())?,
            },
            3 => AuditEvent::Submitted {
                sender: self.key()?,
                bundle: BundleId(self.hash()?),
                session: SessionId(self.hash()?),
                operations: self.index()?,
            },
            4 => AuditEvent::Ended {
                owner: self.key()?,
                bundle: BundleId(self.hash()?),
                session: SessionId(self.hash()?),
                operations: self.index()?,
                abandoned: bool::decode(&mut self.input)?,
                state_hash: StateHash(self.hash()?),
            },
            5 => AuditEvent::Block(AuditBlock {
                time: Timestamp(self.input.varint()?),
                proposer: self.key()?,
                before: Root(self.hash()?),
                previous_record: self.hash()?,
                transactions_root: self.hash()?,
                receipts_root: self.hash()?,
                continuations_root: self.hash()?,
            }),
            found => return Err(DecodeError::UnknownTag { what: "event of the audit log", found: found.into() }),
        })
    }
}
