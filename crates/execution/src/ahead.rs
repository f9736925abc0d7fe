//! Operations run beforehand, on several threads, and taken in their turn where that is what they come to.
//!
//! A draft that knows which operations it will run hands some of them out ([`Coming`]), each is run on what stands before
//! all of them, with a note of everything it reads, and meanwhile nothing is written. Then they are run in order, and for
//! each is asked whether it may be *taken*: whether nothing that it read has been written since, by whomever; whether its
//! session may do what it could then; and whether what it used fits the limits at that place. What is then left to do for
//! it is its link, whose previous state hash nobody knew before. Otherwise it is run where it stands. So is every one that
//! fails: only success is ever taken.
//!
//! What the engine itself reads of an operation's session is no part of its read set: that record changes with every
//! operation, and is foreseen. An operation that reads it itself is not foreseen.
//!
//! How much is handed out follows from gas and from nothing else, so it is the same however many threads there are, and a
//! bundle cannot have more work done for nothing than a few times what it was charged for.
//!
//! Rules: `spec/chain.md`, EXEC-15.

use crate::changes::{Changes, Summary};
use crate::meter::Made;
use crate::recorder::{Marks, mark};
use crate::{
    Activity, BlockContext, BlockDraft, Bundle, BundleId, Caller, Emitted, FunctionHash, Limits, Operation, PublicKey,
    Recorder, Registry, Session, SessionId,
};
use keelstone_codec::{ChainId, Encode, Hash, Key, Namespace, Value};
use keelstone_tree::Read;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Bound;
use std::sync::Arc;

/// Less is run in order: starting threads would cost more than they save.
const WORTH_GAS: u64 = 2_500_000;
/// The first hand-out of a block; each that was of use doubles the next.
const FIRST_GAS: u64 = 10_000_000;
/// How many times the mean of those before it an operation may use beforehand.
const MEANS_MAX: u64 = 4;

/// An operation that will be run, if nothing before it fails.
#[derive(Clone, Copy, Debug)]
pub struct Coming<'a> {
    /// What the bundle is called. One without a name is not run beforehand.
    pub bundle: Option<BundleId>,
    /// The key that signed.
    pub sender: PublicKey,
    /// The session it runs in.
    pub session: SessionId,
    /// Its place in the bundle.
    pub index: u32,
    /// The operation.
    pub operation: &'a Operation,
}

impl<'a> Coming<'a> {
    /// The operations of a bundle, in order.
    pub fn of(chain_id: &ChainId, caller: &Caller, bundle: &'a Bundle) -> impl Iterator<Item = Self> + use<'a> {
        let Caller { sender, bundle: id, session } = *caller;
        let session = session.unwrap_or_else(|| SessionId::root(chain_id, &sender));
        let operations = (0u32..).zip(bundle.operations());
        operations.map(move |(index, operation)| Self { bundle: id, sender, session, index, operation })
    }

    fn place(&self) -> Option<Place> {
        self.bundle.map(|bundle| (bundle, self.index))
    }
}

/// Bundle, and index in it.
type Place = (BundleId, u32);

/// Whoever runs operations beforehand: on several threads, over a state that threads can share.
pub trait Ahead {
    /// Runs each operation of a job on one of as many [`Worker`]s as it likes. What came of them, in their order.
    fn run(&self, job: &Job<'_>) -> Vec<Option<Box<Foretold>>>;

    /// What an operation has to use in the mean for its run beforehand to save more than handing it on costs.
    fn operation_gas_min(&self) -> u64;
}

/// Operations to be run beforehand, and all they stand on but the state below the block.
pub struct Job<'a> {
    registry: &'a Registry,
    block: &'a BlockContext,
    layers: Vec<Arc<Changes>>,
    operations: Vec<Posed<'a>>,
    /// What each may use.
    gas_max: u64,
}

/// An operation, and the record that its session will have.
struct Posed<'a> {
    coming: Coming<'a>,
    /// Whether there is a record.
    is_there: bool,
    /// The record, if it is not the one that is there now.
    foreseen: Option<Session>,
}

impl<'a> Job<'a> {
    /// How many operations there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.operations.len()
    }

    /// Somebody who runs them, one after the other, over the state below the block.
    #[must_use]
    pub fn begin(&'a self, state: impl Read + 'static, activity: &Activity) -> Worker<'a> {
        let recorder = Recorder::brief(state);
        let draft = BlockDraft::over(self.registry, recorder.clone(), self.block.clone(), self.layers.clone());
        // The layer of the record that is foreseen is above those.
        let draft = draft.watched(activity).noting_reads(&recorder, self.layers.len() + 1);
        Worker { job: self, draft, recorder }
    }
}

/// Runs operations beforehand, on one thread.
pub struct Worker<'a> {
    job: &'a Job<'a>,
    draft: BlockDraft<'a>,
    recorder: Recorder,
}

impl Worker<'_> {
    /// Runs the operation of this place. None if it has to be run in its turn: it failed, or used too much, or looked at
    /// what cannot be foreseen.
    ///
    /// # Panics
    /// For a place that is none.
    pub fn run(&mut self, at: usize) -> Option<Box<Foretold>> {
        let posed = &self.job.operations[at];
        let handle = self.draft.handle();
        handle.set_meter(Limits { gas_max: self.job.gas_max, ..Limits::default() });
        handle.push();
        let own = posed.coming.session.record_key();
        let sessions = handle.space(Session::SPACE);
        let found = posed.foreseen.as_ref().map_or(Ok(()), |record| {
            let value = Value::new(record.to_bytes()).expect("a session's record is small");
            handle.poke(&sessions, own.clone(), Some(value))
        });
        handle.push();
        let run = found.ok().and_then(|()| self.run_above(posed, &sessions, &own));
        // Also after a failure, which leaves both layers.
        let mut changes = handle.pop();
        handle.pop();
        handle.take_stop();
        changes.leave_out(&sessions, &own);
        let writes = changes.iter().map(|(namespace, key, _)| mark(namespace, key)).collect();
        // Boxed, for it is handed on a few times before it is taken.
        run.map(|foretold| Box::new(Foretold { changes, writes, ..foretold }))
    }

    fn run_above(&self, posed: &Posed<'_>, sessions: &Namespace, own: &Key) -> Option<Foretold> {
        let (handle, coming) = (self.draft.handle(), &posed.coming);
        drop(self.recorder.take_marks());
        self.recorder.pass_over(Some((sessions.clone(), own.clone())));
        let begun = self.draft.begin_operation(coming);
        self.recorder.pass_over(None);
        let begun = begun.ok()?;
        let mut reads = self.recorder.take_marks();
        let record = begun.record.clone();
        let called = self.draft.call_operation(coming, begun).ok()?;
        let of_call = self.recorder.take_marks();
        // What the function saw there was made up.
        if posed.foreseen.is_some() && of_call.hold(sessions, own) {
            return None;
        }
        reads.keys.extend(of_call.keys);
        reads.ranges.extend(of_call.ranges);
        let after = self.draft.record_now(coming).ok()?;
        if handle.top().find(sessions, own).is_some() {
            return None; // The session itself was changed.
        }
        // As long as the one that will be written, so it costs the same.
        self.draft.write_record(coming, &after).ok()?;
        let (gas, made) = (handle.meter().used(), handle.meter().made());
        let is_there = posed.is_there;
        Some(Foretold { is_there, record, called, reads, changes: Changes::default(), writes: Vec::new(), gas, made })
    }
}

/// What an operation came to beforehand.
pub struct Foretold {
    /// Whether its session had a record.
    pub(crate) is_there: bool,
    /// The record, or the one of a root session that has run nothing.
    pub(crate) record: Session,
    pub(crate) called: Called,
    pub(crate) reads: Marks,
    /// All that it wrote, but for its session's record.
    pub(crate) changes: Changes,
    /// The marks of those keys.
    pub(crate) writes: Vec<u64>,
    pub(crate) gas: u64,
    pub(crate) made: Made,
}

/// What a call of a function came to, before it is linked.
pub(crate) struct Called {
    pub(crate) function: FunctionHash,
    /// What one call of it may use.
    pub(crate) gas_max: u64,
    /// How many operations the session had run before.
    pub(crate) sequence: u64,
    /// Whether it asked for that.
    pub(crate) counted: bool,
    pub(crate) args: Hash,
    pub(crate) result: Vec<u8>,
    pub(crate) result_hash: Hash,
    pub(crate) diff: Summary,
    pub(crate) events: Vec<Emitted>,
}

/// How many operations of a block were run beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationsAhead {
    /// Handed out.
    pub run: usize,
    /// Those of them that were taken.
    pub taken: usize,
}

/// What was handed out last, and how much is to be next.
pub(crate) struct Window {
    found: BTreeMap<Place, Option<Box<Foretold>>>,
    figures: OperationsAhead,
    /// Of the hand-out at work.
    run: usize,
    taken: usize,
    /// Operations run in this draft, and their gas.
    operations: u64,
    gas: u64,
    /// How much the next hand-out may come to.
    next_gas: u64,
    /// How much is still run in order, and how much was last time.
    rest: u64,
    rested: u64,
}

impl Default for Window {
    fn default() -> Self {
        let (found, figures) = (BTreeMap::new(), OperationsAhead::default());
        let (next_gas, rested) = (FIRST_GAS, FIRST_GAS);
        Self { found, figures, run: 0, taken: 0, operations: 0, gas: 0, next_gas, rest: 0, rested }
    }
}

impl Window {
    pub(crate) fn figures(&self) -> OperationsAhead {
        self.figures
    }

    /// An operation was run here, or taken.
    pub(crate) fn was_run(&mut self, gas: u64, taken: bool) {
        self.operations += 1;
        self.gas = self.gas.saturating_add(gas);
        self.rest = self.rest.saturating_sub(gas);
        if taken {
            self.taken += 1;
            self.figures.taken += 1;
        }
    }

    /// What was found for an operation, once.
    pub(crate) fn of(&mut self, coming: &Coming<'_>) -> Option<Box<Foretold>> {
        if self.found.is_empty() {
            return None;
        }
        self.found.remove(&coming.place()?)?
    }

    /// How many of the `left` operations that come now, beginning with this one, are worth to be handed out, and what each
    /// may use; none if it was handed out already.
    pub(crate) fn next(&mut self, coming: &Coming<'_>, left: usize, gas_min: u64) -> Option<(usize, u64)> {
        let place = coming.place()?;
        // The first of a block says what one is like.
        let mean = self.gas.checked_div(self.operations)?.max(1);
        if left < 2 || mean < gas_min || mean.saturating_mul(left as u64) < WORTH_GAS || self.found.contains_key(&place)
        {
            return None;
        }
        self.judge();
        if self.rest > 0 {
            return None;
        }
        let count = usize::try_from(self.next_gas / mean).unwrap_or(usize::MAX).clamp(2, left);
        Some((count, mean.saturating_mul(MEANS_MAX)))
    }

    /// Whether nothing is left of what was handed out.
    fn is_done(&self) -> bool {
        self.found.is_empty()
    }

    /// Forgets what was handed out of this bundle, which has come to the end of a batch. Gives whether nothing is left.
    fn leave(&mut self, bundle: BundleId) -> bool {
        // One hand-out is at work at a time, and that of a batch is of one bundle.
        if self.found.range((bundle, 0)..=(bundle, u32::MAX)).next().is_some() {
            self.judge();
        }
        self.is_done()
    }

    /// Of what was handed out last nothing more is taken: was it of use?
    fn judge(&mut self) {
        if self.run == 0 {
            return;
        }
        if self.taken * 2 >= self.run {
            (self.next_gas, self.rested) = (self.next_gas.saturating_mul(2), FIRST_GAS);
        } else {
            self.rest = self.rested.saturating_mul(2);
            (self.next_gas, self.rested) = (FIRST_GAS, self.rest);
        }
        self.found.clear();
        (self.run, self.taken) = (0, 0);
    }

    fn fill(&mut self, coming: &[Coming<'_>], found: Vec<Option<Box<Foretold>>>) {
        self.run = coming.len();
        self.figures.run += self.run;
        let places = coming.iter().zip(found).filter_map(|(coming, found)| Some((coming.place()?, found)));
        self.found = places.collect();
    }
}

impl BlockDraft<'_> {
    /// Hands out operations to be run beforehand, if that is worth it: `coming` gives about so many of those that come now,
    /// of which there are `left`, beginning with `first`.
    ///
    /// Does nothing for a draft without [`BlockDraft::ahead`]. What is found is taken, or not, when they are run.
    // spec: EXEC-15
    pub fn look_ahead<'c>(&self, first: &Coming<'_>, left: usize, coming: impl FnOnce(usize) -> Vec<Coming<'c>>) {
        let Some(ahead) = self.runs_ahead() else { return };
        let next = self.window().next(first, left, ahead.operation_gas_min());
        let Some((count, gas_max)) = next else {
            if self.window().is_done() {
                self.handle().note_touched(None);
            }
            return;
        };
        let coming = coming(count);
        // A state that cannot be read is told of where the operation is run in its turn.
        let Some(operations) = self.posed(&coming) else { return };
        let (registry, block) = (self.registry(), self.context());
        let layers = self.handle().layers();
        let found = ahead.run(&Job { registry, block, layers, operations, gas_max });
        let ranges = found.iter().flatten().any(|foretold| !foretold.reads.ranges.is_empty());
        self.handle().note_touched(Some(Touched::new(ranges)));
        self.window().fill(&coming, found);
    }

    /// Drops what was handed out of a bundle's batch and not reached. The same places come again if the bundle is resumed
    /// in this block, and by then another operation may stand there; nor did anything happen of what those saw that were
    /// handed out in the middle of a batch that failed.
    // spec: EXEC-15
    pub(crate) fn drop_ahead(&self, bundle: BundleId) {
        if self.runs_ahead().is_some() && self.window().leave(bundle) {
            self.handle().note_touched(None);
        }
    }

    /// What records the sessions will have, if everything before succeeds.
    fn posed<'c>(&self, coming: &[Coming<'c>]) -> Option<Vec<Posed<'c>>> {
        let chain_id = &self.context().chain_id;
        let mut sessions: BTreeMap<SessionId, (Option<Session>, u64)> = BTreeMap::new();
        let pose = |coming: &Coming<'c>| {
            let (found, before) = match sessions.get_mut(&coming.session) {
                Some(known) => known,
                None => sessions.entry(coming.session).or_insert((self.record_of(coming.session)?, 0)),
            };
            let foreseen = (*before > 0).then(|| {
                let record = found.clone().unwrap_or_else(|| Session::root(chain_id, coming.sender));
                Session { sequence: record.sequence.saturating_add(*before), ..record }
            });
            *before += 1;
            Some(Posed { coming: *coming, is_there: found.is_some() || foreseen.is_some(), foreseen })
        };
        coming.iter().map(pose).collect()
    }
}

/// Keys that were written.
#[derive(Default)]
pub(crate) struct Touched {
    marks: HashSet<u64, BuildHasherDefault<AsIs>>,
    /// The keys themselves, where ranges are asked for.
    keys: Option<BTreeMap<Namespace, BTreeSet<Key>>>,
}

/// A mark is a hash already.
#[derive(Default)]
pub(crate) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        unreachable!("a mark is a u64, not {} bytes", bytes.len())
    }

    fn write_u64(&mut self, mark: u64) {
        self.0 = mark;
    }
}

impl Touched {
    /// Begins to note; also for ranges, or for keys alone.
    pub(crate) fn new(ranges: bool) -> Self {
        Self { keys: ranges.then(BTreeMap::default), ..Self::default() }
    }

    pub(crate) fn note(&mut self, namespace: &Namespace, key: &Key) {
        self.marks.insert(mark(namespace, key));
        self.note_key(namespace, key);
    }

    /// Notes all keys of changes, whose marks are known.
    pub(crate) fn note_all(&mut self, changes: &Changes, marks: &[u64]) {
        self.marks.extend(marks);
        if self.keys.is_some() {
            changes.iter().for_each(|(namespace, key, _)| self.note_key(namespace, key));
        }
    }

    fn note_key(&mut self, namespace: &Namespace, key: &Key) {
        let Some(spaces) = &mut self.keys else { return };
        let keys = match spaces.get_mut(namespace) {
            Some(keys) => keys,
            None => spaces.entry(namespace.clone()).or_default(),
        };
        if !keys.contains(key) {
            keys.insert(key.clone());
        }
    }

    /// Whether one of them was read.
    pub(crate) fn meets(&self, reads: &Marks) -> bool {
        let range = |(namespace, start, end): &(Namespace, Vec<u8>, Option<Vec<u8>>)| {
            let Some(keys) = self.keys.as_ref().and_then(|spaces| spaces.get(namespace)) else { return false };
            if end.as_ref().is_some_and(|end| end <= start) {
                return false;
            }
            let bounds = (Bound::Included(start.as_slice()), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
            keys.range::<[u8], _>(bounds).next().is_some()
        };
        reads.keys.iter().any(|key| self.marks.contains(key)) || reads.ranges.iter().any(range)
    }
}
