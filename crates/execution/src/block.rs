//! Running bundles: a block's draft, the bundles in it, and their operations.
//!
//! A [`BlockDraft`] stands over one version of the state. A bundle runs in a layer of its own on top of it, each
//! operation in another; what fails is dropped with its layer, and nobody sees it (spec: EXEC-5). Nothing is durable
//! here: the caller takes the block's net changes to the store.
//!
//! Functions are trusted code, but not trusted to be free of bugs: a panic ends its bundle and nothing else.
//!
//! Rules: `spec/chain.md`, EXEC-1 to EXEC-5, EXEC-8, EXEC-13, EXEC-16, EXEC-17.

use crate::ahead::{Ahead, Called, Coming, OperationsAhead, Window};
use crate::bundles::Forget;
use crate::chain::{Link, args_hash, result_hash};
use crate::changes::{Changes, Summary};
use crate::host::Handle;
use crate::meter::{Limits, cost};
use crate::registry::{Entry, Refusal};
use crate::world::World;
use crate::{
    Activity, BlockContext, Bundle, BundleId, Context, Emitted, Failed, FailureKind, FunctionHash, Halt, Mode,
    Operation, PublicKey, Recorder, Registry, SYSTEM_NAMESPACES, Session, SessionError, SessionId, Sessions, Stop,
    TransactionContext,
};
use keelstone_codec::{Decode, Encode, Hash, Key, Namespace, StateHash, Value};
use keelstone_tree::{KeyRange, Read, ReadError, Scan};
use std::any::Any;
use std::cell::{Cell, RefCell, RefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Who runs a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The key that signed.
    pub sender: PublicKey,
    /// The session to act in; none for the sender's root session.
    pub session: Option<SessionId>,
    /// What the bundle is called where it says who changed a key: the ledger gives its transaction's identity.
    pub bundle: Option<BundleId>,
}

impl Caller {
    /// A key in its root session.
    #[must_use]
    pub fn root(sender: PublicKey) -> Self {
        Self { sender, session: None, bundle: None }
    }
}

/// What one operation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The function it called.
    pub function: FunctionHash,
    /// How many operations the session had run before.
    pub sequence: u64,
    /// The session's state hash before: with what follows, all that enters the link but the chain and the session.
    pub previous: StateHash,
    /// [`crate::args_hash`] of the arguments.
    pub args: Hash,
    /// The result's canonical encoding.
    pub result: Vec<u8>,
    /// Its net change in application namespaces, by digest and size (spec: EXEC-2, EXEC-3).
    pub diff: Summary,
    /// The session's state hash afterwards (spec: EXEC-1).
    pub state_hash: StateHash,
    /// What it emitted.
    pub events: Vec<Emitted>,
    /// Gas it used.
    pub gas_used: u64,
}

/// A bundle that succeeded. Its changes are in the block's draft by now.
#[derive(Clone, Debug)]
pub struct Finished {
    /// One for each operation, in order.
    pub outcomes: Vec<Outcome>,
    /// Net changes of the whole bundle, system namespaces included.
    pub changes: Changes,
    /// The session it ran in.
    pub session: SessionId,
    /// The session's record afterwards.
    pub record: Session,
    /// Gas it used.
    pub gas_used: u64,
}

/// An execution in progress: reads see the parent state and what the block wrote so far; writes collect.
pub struct BlockDraft<'a> {
    registry: &'a Registry,
    handle: Handle,
    activity: Activity,
    noted: Option<Noted>,
    ahead: Option<&'a dyn Ahead>,
    window: RefCell<Window>,
    /// What of bundles that ended may still be forgotten in this block, beside what transactions pay for.
    forgets: Cell<Forget>,
}

/// A key somebody wants to know the writers of, and the state hashes after the operations that wrote it.
struct Noted {
    namespace: Namespace,
    key: Key,
    writers: RefCell<Vec<StateHash>>,
}

impl Noted {
    /// Takes note of the operation after which the session had this state hash, if it changed the key.
    fn changed_by(&self, changes: &Changes, after: StateHash) {
        if changes.find(&self.namespace, &self.key).is_some() {
            self.writers.borrow_mut().push(after);
        }
    }
}

/// An operation that is to be called.
pub(crate) struct Begun<'a> {
    entry: &'a Entry,
    cx: Context,
    /// The session's record before it.
    pub(crate) record: Session,
}

impl Called {
    fn outcome(self, previous: StateHash, record: &Session, gas_used: u64) -> Outcome {
        let Self { function, sequence, args, result, diff, events, .. } = self;
        Outcome { function, sequence, previous, args, result, diff, state_hash: record.state_hash, events, gas_used }
    }
}

impl<'a> BlockDraft<'a> {
    /// Begins a block over a version of the state: a store's view, a tree in memory, or a witness.
    #[must_use]
    pub fn begin(registry: &'a Registry, state: impl Read + 'static, block: BlockContext) -> Self {
        Self::over(registry, state, block, vec![Arc::default()])
    }

    /// As [`Self::begin`], on layers of another draft.
    pub(crate) fn over(
        registry: &'a Registry,
        state: impl Read + 'static,
        block: BlockContext,
        layers: Vec<Arc<Changes>>,
    ) -> Self {
        let handle = Handle::over(Box::new(state), Some(block), layers);
        let (activity, window) = (registry.activity().clone(), RefCell::default());
        Self { registry, handle, activity, noted: None, ahead: None, window, forgets: Cell::default() }
    }

    /// The same draft, which has operations run beforehand where that is worth it (spec: EXEC-15).
    #[must_use]
    pub fn ahead(mut self, ahead: Option<&'a dyn Ahead>) -> Self {
        self.ahead = ahead;
        self
    }

    /// How many operations were run beforehand so far.
    #[must_use]
    pub fn operations_ahead(&self) -> OperationsAhead {
        self.window.borrow().figures()
    }

    /// The same draft, which tells `activity` the function at work, for a watchdog (spec: EXEC-13), and not the registry's.
    #[must_use]
    pub fn watched(mut self, activity: &Activity) -> Self {
        self.activity = activity.clone();
        self
    }

    /// The same draft, which notes the operations that change a key, for [`Self::noted`].
    #[must_use]
    pub fn noting(mut self, namespace: Namespace, key: Key) -> Self {
        self.noted = Some(Noted { namespace, key, writers: RefCell::default() });
        self
    }

    /// The state hashes after the operations that changed the key of [`Self::noting`], in order: also after those that
    /// were dropped with their bundle.
    #[must_use]
    pub fn noted(&self) -> Vec<StateHash> {
        self.noted.as_ref().map(|noted| noted.writers.borrow().clone()).unwrap_or_default()
    }

    /// The same draft, which tells the recorder it stands on also what is read of the block's own changes: so that what it
    /// notes is all that a run in [`BlockDraft::apart`] depends on (spec: EXEC-15).
    #[must_use]
    pub fn recorded_in(self, recorder: &Recorder) -> Self {
        self.noting_reads(recorder, 1)
    }

    /// As [`Self::recorded_in`], of what is read of the lowest `layers`.
    pub(crate) fn noting_reads(self, recorder: &Recorder, layers: usize) -> Self {
        self.handle.note_in(recorder.clone(), layers);
        self
    }

    /// The block.
    ///
    /// # Panics
    /// Never: a draft is begun with one.
    #[must_use]
    pub fn context(&self) -> &BlockContext {
        self.handle.block().expect("a block draft is begun with a block")
    }

    /// Runs a sync bundle. It succeeds or fails as one, and a failure is an answer, the same on every node.
    ///
    /// # Errors
    /// [`Halt`] if this node could not read the state; the draft is then as before the call.
    pub fn execute(
        &mut self,
        caller: Caller,
        bundle: &Bundle,
        limits: Limits,
    ) -> Result<Result<Finished, Failed>, Halt> {
        self.handle.set_meter(limits);
        self.handle.push();
        let result = self.run(caller, bundle);
        match result {
            Ok(finished) => {
                self.handle.merge();
                Ok(Ok(finished))
            }
            Err((operation, kind)) => {
                // spec: EXEC-5. Dropping the layer is all there is to undo.
                self.handle.pop();
                match kind {
                    FailureKind::Stopped(Stop::Read(error)) => Err(error.into()),
                    kind => {
                        let function = bundle.operations()[operation].function;
                        let operation = u32::try_from(operation).expect("a bundle has at most 65,535 operations");
                        Ok(Err(Failed { operation, function, kind, gas_used: self.handle.meter().used() }))
                    }
                }
            }
        }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn forgets(&self) -> &Cell<Forget> {
        &self.forgets
    }

    /// Counts what the operation in the topmost layer changed, whoever wrote it. Gives the bytes.
    // spec: EXEC-13
    pub(crate) fn count_changes(&self) -> Result<u64, FailureKind> {
        let bytes = self.handle.top().bytes();
        self.charged(|meter| meter.changed(bytes))?;
        Ok(bytes)
    }

    pub(crate) fn registry(&self) -> &'a Registry {
        self.registry
    }

    fn run(&mut self, caller: Caller, bundle: &Bundle) -> Result<Finished, (usize, FailureKind)> {
        if *bundle.mode() != Mode::Sync {
            return Err((0, FailureKind::NotSync));
        }
        let chain_id = &self.context().chain_id;
        let session = caller.session.unwrap_or_else(|| SessionId::root(chain_id, &caller.sender));
        let caller = Caller { session: Some(session), ..caller };
        let count = bundle.operations().len();
        let mut outcomes = Vec::with_capacity(count);
        let (mut record, mut in_flight) = (None, None);
        for (index, coming) in Coming::of(chain_id, &caller, bundle).enumerate() {
            self.look_ahead(&coming, count - index, |wanted| {
                Coming::of(chain_id, &caller, bundle).skip(index).take(wanted).collect()
            });
            self.handle.push();
            let ran = self.operation(&coming).and_then(|ran| {
                // Asked once: while a bundle runs, none is submitted.
                let in_flight = match in_flight {
                    Some(known) => known,
                    None => *in_flight.insert(self.others_in_flight()?),
                };
                if in_flight > 0 {
                    let noted = self.note_writes(caller.bundle, None)?;
                    self.charged(|meter| meter.charge(noted))?;
                }
                self.count_changes()?;
                Ok(ran)
            });
            match ran {
                Ok((outcome, after)) => {
                    self.handle.merge();
                    outcomes.push(outcome);
                    record = Some(after);
                }
                Err(kind) => {
                    self.handle.pop();
                    return Err((index, kind));
                }
            }
        }
        let session = caller.session.expect("set above");
        let record = record.expect("a bundle has at least one operation");
        let (changes, gas_used) = (self.handle.top().clone(), self.handle.meter().used());
        Ok(Finished { outcomes, changes, session, record, gas_used })
    }

    /// Runs one operation in the topmost layer, or takes what it came to beforehand.
    pub(crate) fn operation(&self, coming: &Coming<'_>) -> Result<(Outcome, Session), FailureKind> {
        let before = self.handle.meter().used();
        let taken = self.take_operation(coming);
        let is_taken = taken.is_some();
        let done = taken.map_or_else(|| self.run_operation(coming), Ok);
        if self.ahead.is_some() {
            self.window.borrow_mut().was_run(self.handle.meter().used() - before, is_taken);
        }
        done
    }

    fn run_operation(&self, coming: &Coming<'_>) -> Result<(Outcome, Session), FailureKind> {
        let before = self.handle.meter().used();
        let begun = self.begin_operation(coming)?;
        let called = self.call_operation(coming, begun)?;
        self.finish_operation(coming, called, before)
    }

    /// What follows the call: its link, and the session's record. `before` is the gas that was used before the operation.
    pub(crate) fn finish_operation(
        &self,
        coming: &Coming<'_>,
        called: Called,
        before: u64,
    ) -> Result<(Outcome, Session), FailureKind> {
        let mut record = self.record_now(coming)?;
        let previous = record.state_hash;
        self.link(coming, &called, &mut record)?;
        if let Some(noted) = &self.noted {
            noted.changed_by(&self.handle.top(), record.state_hash);
        }
        self.write_record(coming, &record)?;
        Ok((called.outcome(previous, &record, self.handle.meter().used() - before), record))
    }

    /// Takes what the operation came to beforehand, if it is what it comes to now; as if it had been run.
    // spec: EXEC-15
    fn take_operation(&self, coming: &Coming<'_>) -> Option<(Outcome, Session)> {
        let foretold = *self.window.borrow_mut().of(coming)?;
        // A place says where an operation stands, and what stands there can be replaced (EXEC-12).
        let (run, operation) = (&foretold.called, coming.operation);
        if run.function != operation.function || run.args != args_hash(&operation.args) {
            return None;
        }
        let (sessions, own) = (self.handle.space(Session::SPACE), coming.session.record_key());
        // What cannot be read here is told of where the operation is run.
        let held = self.handle.peek(&sessions, &own).ok()?;
        let found = held.as_ref().map(|value| Session::from_bytes(value)).transpose().ok()?;
        if found.is_some() != foretold.is_there || self.handle.has_touched(&foretold.reads) {
            return None;
        }
        let mut record = found.unwrap_or_else(|| foretold.record.clone());
        let mut called = foretold.called;
        if !record.is_like(&foretold.record) || (called.counted && called.sequence != record.sequence) {
            return None;
        }
        called.sequence = record.sequence;
        let previous = record.state_hash;
        self.link(coming, &called, &mut record).ok()?;
        if !self.handle.meter().take(called.gas_max, foretold.gas, &foretold.made) {
            return None;
        }
        if let Some(noted) = &self.noted {
            noted.changed_by(&foretold.changes, record.state_hash);
        }
        self.handle.adopt_marked(foretold.changes, &foretold.writes);
        let value = Value::new(record.to_bytes()).expect("a session's record is small");
        self.handle.write(&sessions, own, held, Some(value));
        Some((called.outcome(previous, &record, foretold.gas), record))
    }

    /// Up to the call: whether there is such a function, and the session may call it.
    pub(crate) fn begin_operation(&self, coming: &Coming<'_>) -> Result<Begun<'a>, FailureKind> {
        let Coming { sender, session, operation, .. } = *coming;
        let entry = self.registry.function_at(&operation.function, self.context().height);
        let entry = entry.ok_or(FailureKind::UnknownFunction)?;
        self.charge_call(entry, operation)?;

        // spec: EXEC-8. Asked anew before every operation: one before it may have changed the answer.
        let record = self.authorized(&Sessions::bind(&self.handle), sender, session, entry)?;
        Ok(self.begun(entry, coming, record))
    }

    /// As [`Self::begin_operation`], of a function that the chain calls by itself: no session has to hold what it needs.
    // spec: EXEC-23, EXEC-25
    pub(crate) fn begin_hook(
        &self,
        entry: &'a Entry,
        coming: &Coming<'_>,
        transaction: Option<&Arc<TransactionContext>>,
    ) -> Result<Begun<'a>, FailureKind> {
        self.charge_call(entry, coming.operation)?;
        let record = self.record_now(coming)?;
        let mut begun = self.begun(entry, coming, record);
        begun.cx.transaction = transaction.cloned();
        Ok(begun)
    }

    fn charge_call(&self, entry: &Entry, operation: &Operation) -> Result<(), FailureKind> {
        self.handle.meter().begin(entry.gas_max);
        self.charged(|meter| meter.charge_bytes(cost::OPERATION, cost::ARGS_BYTE, operation.args.len()))
    }

    fn begun(&self, entry: &'a Entry, coming: &Coming<'_>, record: Session) -> Begun<'a> {
        let Coming { bundle, sender, session, index, .. } = *coming;
        let cx = Context {
            handle: self.handle.clone(),
            uses: entry.context,
            function: entry.hash,
            bundle,
            sender,
            session,
            sequence: record.sequence,
            counted: Cell::new(false),
            operation: index,
            drawn: Cell::new(0),
            events: Vec::new(),
            transaction: None,
        };
        Begun { entry, cx, record }
    }

    /// The call, and what enters the link of it.
    pub(crate) fn call_operation(&self, coming: &Coming<'_>, begun: Begun<'a>) -> Result<Called, FailureKind> {
        let Begun { entry, mut cx, record } = begun;
        let args = &coming.operation.args;
        let result = self.call(entry, &mut cx, args)?;
        self.charged(|meter| meter.result(result.len()))?;
        // spec: EXEC-2. Taken before the session's own record is written: that is a system write.
        let diff = self.handle.top().summary_of(is_application);
        Ok(Called {
            function: entry.hash,
            gas_max: entry.gas_max,
            sequence: record.sequence,
            counted: cx.counted.get(),
            args: args_hash(args),
            result_hash: result_hash(&result),
            result,
            diff,
            events: cx.events,
        })
    }

    /// The session's record as it is now: a transition may have closed or changed the session it runs in.
    pub(crate) fn record_now(&self, coming: &Coming<'_>) -> Result<Session, FailureKind> {
        let found = Sessions::bind(&self.handle).find(&self.context().chain_id, &coming.session, &coming.sender);
        found.map_err(|stop| self.stopped(stop))?.ok_or(FailureKind::Session(SessionError::Unknown(coming.session)))
    }

    /// Extends the session's chain, if that is what the operation expects.
    fn link(&self, coming: &Coming<'_>, called: &Called, record: &mut Session) -> Result<(), FailureKind> {
        let Coming { session, operation, .. } = *coming;
        let sequence = called.sequence;
        record.sequence = sequence.checked_add(1).ok_or(FailureKind::Session(SessionError::Exhausted(session)))?;
        record.state_hash = Link {
            chain_id: &self.context().chain_id,
            session,
            sequence,
            previous: record.state_hash,
            function: called.function,
            args: called.args,
            result: called.result_hash,
            diff: called.diff.digest,
        }
        .state_hash();

        // spec: EXEC-4
        let (actual, own) = (record.state_hash, called.diff.digest);
        match (operation.expected_diff, operation.expected_own_diff) {
            (Some(expected), _) if expected != actual => Err(FailureKind::UnexpectedState { expected, actual }),
            (_, Some(expected)) if expected != own => Err(FailureKind::UnexpectedDiff { expected, actual: own }),
            _ => Ok(()),
        }
    }

    /// Writes the session's record: a system write (spec: EXEC-2) that the operation pays for.
    pub(crate) fn write_record(&self, coming: &Coming<'_>, record: &Session) -> Result<(), FailureKind> {
        let mut sessions = Sessions::bind(&self.handle);
        sessions.records.insert(&coming.session, record).map_err(|stop| self.stopped(stop))
    }

    /// The record of a session, on nobody's account; the outer none if it cannot be read.
    pub(crate) fn record_of(&self, session: SessionId) -> Option<Option<Session>> {
        let found = self.handle.unmetered(|| Sessions::bind(&self.handle).records.get(&session));
        self.handle.take_stop();
        found.ok()
    }

    pub(crate) fn runs_ahead(&self) -> Option<&'a dyn Ahead> {
        self.ahead
    }

    pub(crate) fn window(&self) -> RefMut<'_, Window> {
        self.window.borrow_mut()
    }

    /// The session's record, if the session may call the function now.
    fn authorized(
        &self,
        sessions: &Sessions,
        sender: PublicKey,
        id: SessionId,
        entry: &Entry,
    ) -> Result<Session, FailureKind> {
        let block = self.context();
        let found = sessions.find(&block.chain_id, &id, &sender).map_err(|stop| self.stopped(stop))?;
        let record = found.ok_or(FailureKind::Session(SessionError::Unknown(id)))?;
        if record.owner != sender {
            return Err(FailureKind::Session(SessionError::NotYours(id)));
        }
        let verdict = sessions.authorize(id, &record, &entry.needs, self.registry, block.height);
        verdict.map_err(|stop| self.stopped(stop))?.map_err(FailureKind::Session)?;
        Ok(record)
    }

    /// Calls the function: with its panics caught, and with a stop of the host standing over whatever it returns.
    fn call(&self, entry: &Entry, cx: &mut Context, args: &[u8]) -> Result<Vec<u8>, FailureKind> {
        let depth = self.handle.depth();
        let call = self.activity.enter(entry.name);
        // Nothing behind the handle is left half changed by a panic: a host call finishes before the function's own
        // code goes on, and the operation's layer is dropped.
        let outer = RUNS.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| (entry.run)(&self.handle, cx, args)));
        RUNS.set(outer);
        self.activity.leave(call);
        assert_eq!(depth, self.handle.depth(), "a function cannot reach the layers");
        // spec: EXEC-13, EXEC-17. A function that swallows a stop does not get away with it.
        if let Some(stop) = self.handle.take_stop() {
            return Err(FailureKind::Stopped(stop));
        }
        match result {
            Ok(result) => result.map_err(Refusal::into),
            Err(panic) => Err(FailureKind::Panicked { message: message(&*panic) }),
        }
    }

    pub(crate) fn charged(
        &self,
        charge: impl FnOnce(&crate::meter::Meter) -> Result<(), Stop>,
    ) -> Result<(), FailureKind> {
        self.handle.metered(charge).map_err(|stop| self.stopped(stop))
    }

    fn stopped(&self, stop: Stop) -> FailureKind {
        self.handle.take_stop();
        FailureKind::Stopped(stop)
    }

    // ---- the engine's own reads and writes

    /// What a key holds in the draft. Not metered: for the engine itself.
    ///
    /// # Errors
    /// [`ReadError`] of the state below.
    pub fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.handle.peek(namespace, key)
    }

    /// A system write: outside every operation's diff, inside the block's (spec: EXEC-2).
    ///
    /// # Errors
    /// [`ReadError`] of the state below, which is asked what the key held.
    pub fn put(&mut self, namespace: &Namespace, key: Key, value: Option<Value>) -> Result<(), ReadError> {
        self.handle.poke(namespace, key, value)
    }

    /// The engine's own view of a world in the draft, without limits.
    ///
    /// Meant for system writes through typed collections: genesis, grants, records of modules.
    ///
    /// # Errors
    /// What `edit` says; nothing it wrote is kept then.
    pub fn edit<W: World, T>(&mut self, edit: impl FnOnce(&mut W) -> Result<T, Stop>) -> Result<T, Stop> {
        self.handle.set_meter(Limits { gas_max: u64::MAX, write_bytes_max: u64::MAX, ..Limits::default() });
        self.handle.push();
        let result = edit(&mut W::bind(&self.handle));
        match self.handle.take_stop() {
            None if result.is_ok() => self.handle.merge(),
            _ => drop(self.handle.pop()),
        }
        result
    }

    /// Runs part of the block in a layer of its own, and takes what the part changed out of the draft again.
    pub fn apart<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> (T, Changes) {
        self.handle.push();
        let out = run(self);
        (out, self.handle.pop())
    }

    /// Takes over what part of the block changed, be it in another draft. It is then the caller who knows that nothing has changed of
    /// what the part read there (spec: EXEC-15).
    pub fn adopt(&mut self, changes: Changes) {
        self.handle.adopt(changes);
    }

    /// Net changes of the block so far, system writes included.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.handle.top().clone()
    }

    /// Looks at the net changes of the block so far where they lie.
    pub fn look<T>(&self, look: impl FnOnce(&Changes) -> T) -> T {
        look(&self.handle.top())
    }

    /// Ends the block: its net changes, for the store.
    #[must_use]
    pub fn finish(self) -> Changes {
        self.handle.take_top()
    }
}

/// A block's draft can be read like the version of the state it would become.
impl Read for BlockDraft<'_> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.handle.peek(namespace, key)
    }

    fn scan<'s>(&'s self, namespace: &Namespace, range: KeyRange) -> Scan<'s> {
        self.handle.scan_free(namespace, range)
    }
}

/// Whether a namespace counts in an operation's diff (spec: EXEC-2).
#[must_use]
pub fn is_application(namespace: &Namespace) -> bool {
    !SYSTEM_NAMESPACES.contains(&namespace.as_str())
}

thread_local! {
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs a function of a chain, whose panic is caught and becomes the failure of its bundle: for a panic hook,
/// which has little to say of those.
#[must_use]
pub fn runs_function() -> bool {
    RUNS.get()
}

/// What a panic says. Bounded: it is shown, never hashed.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let mut text = text.unwrap_or("no message").to_owned();
    text.truncate(text.floor_char_boundary(crate::REASON_BYTES_MAX));
    text
}
