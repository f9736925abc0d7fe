//! What a transition knows of its surroundings, and what it may say to them.
//!
//! There is no clock but the block's and no randomness but from the block. A function that asks for either declares
//! it, because its results cannot be foretold (spec: EXEC-4).

use crate::host::Handle;
use crate::{Bundle, BundleId, Denied, EVENT_BYTES_MAX, Function, FunctionHash, Mode, PublicKey, SessionId, Stop};
use keelstone_codec::{Blob, ChainId, Decode, Describe, Encode, Hash, Height, Tag, TaggedHasher, Timestamp};
use keelstone_macros::{Decode, Encode};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

const RANDOM: Tag = Tag::new("random");

/// The block that bundles run in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockContext {
    /// The network.
    pub chain_id: ChainId,
    /// The block's height.
    pub height: Height,
    /// The block's time.
    pub time: Timestamp,
    /// Who made the block.
    pub proposer: PublicKey,
    /// What randomness is drawn from. As good as whoever made it: a proposer may have tried several.
    pub seed: Hash,
}

/// What of the block a function may ask for (spec: EXEC-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ContextUse {
    /// Its height.
    pub height: bool,
    /// Its time.
    pub time: bool,
    /// Its randomness.
    pub random: bool,
}

impl ContextUse {
    /// Nothing: the results of the function can be foretold from state and arguments.
    pub const NONE: Self = Self { height: false, time: false, random: false };

    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// Something that happened, for those who watch the chain. Events are in receipts, not in state.
pub trait Event: Encode + Decode + Describe {
    /// The name, such as `social.alliance_formed`.
    const NAME: &'static str;
}

/// An event as it was emitted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Emitted {
    /// [`Event::NAME`].
    pub name: String,
    /// The event's canonical encoding.
    pub data: Blob<EVENT_BYTES_MAX>,
}

/// What a hook around a transaction hears of it.
// spec: EXEC-25
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionContext {
    /// The key that signed it.
    pub sender: PublicKey,
    /// Its bytes, signature included.
    pub bytes: u64,
    /// Operations of its bundle.
    pub operations: u32,
    /// Whether its bundle runs in batches, behind this block: then what it uses there is not known here.
    pub is_async: bool,
    /// What became of it; none before it ran.
    pub ended: Option<TransactionEnd>,
    calls: BTreeMap<FunctionHash, u32>,
}

/// What became of a transaction that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Whether it took effect, or its async bundle was taken in.
    pub succeeded: bool,
    /// Gas its bundle used; of an async one what taking it in did.
    pub gas_used: u64,
}

impl TransactionContext {
    /// Of a transaction of so many bytes that has not run. Counts the calls of its bundle.
    #[must_use]
    pub fn new(sender: PublicKey, bytes: u64, bundle: &Bundle) -> Self {
        let mut calls = BTreeMap::new();
        for operation in bundle.operations() {
            *calls.entry(operation.function).or_default() += 1;
        }
        let operations = u32::try_from(bundle.operations().len()).expect("a bundle has at most 65,535 operations");
        Self { sender, bytes, operations, is_async: *bundle.mode() != Mode::Sync, ended: None, calls }
    }

    /// How many of its operations call a function.
    #[must_use]
    pub fn calls<T: Function>(&self) -> u32 {
        self.calls.get(&T::hash()).copied().unwrap_or_default()
    }
}

/// What a transition sees beside the state.
pub struct Context {
    pub(crate) handle: Handle,
    pub(crate) uses: ContextUse,
    pub(crate) function: FunctionHash,
    /// The bundle that the operation is of.
    pub(crate) bundle: Option<BundleId>,
    pub(crate) sender: PublicKey,
    pub(crate) session: SessionId,
    pub(crate) sequence: u64,
    /// Whether anything has depended on the sequence.
    pub(crate) counted: Cell<bool>,
    pub(crate) operation: u32,
    pub(crate) drawn: Cell<u64>,
    pub(crate) events: Vec<Emitted>,
    pub(crate) transaction: Option<Arc<TransactionContext>>,
}

impl Context {
    fn block(&self) -> &crate::BlockContext {
        self.handle.block().expect("a context is made by a block draft, which has a block")
    }

    /// The network.
    #[must_use]
    pub fn chain_id(&self) -> &ChainId {
        &self.block().chain_id
    }

    /// The key that signed; of a hook that begins or ends a block [`PublicKey::CHAIN`].
    #[must_use]
    pub fn sender(&self) -> PublicKey {
        self.sender
    }

    /// The session the operation runs in.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// How many operations the session had run before this one. Unique in the session.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.counted.set(true);
        self.sequence
    }

    /// The operation's index in its bundle.
    #[must_use]
    pub fn operation(&self) -> u32 {
        self.operation
    }

    /// The block's height, for a function that declares `context = height`.
    ///
    /// # Errors
    /// [`Stop::Undeclared`].
    pub fn height(&self) -> Result<Height, Stop> {
        self.declared(self.uses.height, "height")?;
        Ok(self.block().height)
    }

    /// The block's time, for a function that declares `context = time`.
    ///
    /// # Errors
    /// [`Stop::Undeclared`].
    pub fn time(&self) -> Result<Timestamp, Stop> {
        self.declared(self.uses.time, "time")?;
        Ok(self.block().time)
    }

    /// Thirty-two bytes of the block's randomness, new ones at each call, for a function that declares
    /// `context = random`.
    ///
    /// # Errors
    /// [`Stop::Undeclared`].
    pub fn random(&self) -> Result<Hash, Stop> {
        self.declared(self.uses.random, "random")?;
        self.step(crate::meter::cost::READ)?;
        let draw = self.drawn.replace(self.drawn.get() + 1);
        let mut hasher = TaggedHasher::new(RANDOM);
        hasher.value(&self.block().seed).value(&self.session).value(&self.sequence());
        Ok(hasher.value(&self.function).value(&draw).finish())
    }

    /// The transaction around which the chain calls this function: for hooks of that kind alone.
    ///
    /// # Errors
    /// [`Stop::Undeclared`] in any other function.
    // spec: EXEC-25
    pub fn transaction(&self) -> Result<&TransactionContext, Stop> {
        self.transaction.as_deref().ok_or_else(|| self.handle.stop(Stop::Undeclared { what: "transaction" }))
    }

    /// Counts `gas` units of work that makes no host call, such as a round of a loop (spec: EXEC-13).
    ///
    /// # Errors
    /// [`Stop::OutOfGas`].
    pub fn step(&self, gas: u64) -> Result<(), Stop> {
        self.handle.metered(|meter| meter.charge(gas))
    }

    /// Tells those who watch. An operation that fails emits nothing.
    ///
    /// # Errors
    /// [`Stop::OutOfGas`], [`Stop::Limit`] for too many events or too large a one, or [`Stop::Unreadable`] for one above a
    /// limit of its type.
    pub fn emit<E: Event>(&mut self, event: &E) -> Result<(), Stop> {
        let data = event.to_bytes();
        // spec: EXEC-18
        if let Err(error) = E::from_bytes(&data) {
            return Err(self.handle.stop(Stop::Unreadable { what: format!("event {}", E::NAME), error }));
        }
        self.handle.metered(|meter| meter.event(E::NAME.len(), data.len()))?;
        let data = Blob::new(data).expect("it was counted within that limit");
        self.events.push(Emitted { name: E::NAME.to_owned(), data });
        Ok(())
    }

    /// Runs part of an operation that may be denied by itself: if it is, nothing stays of what it wrote and emitted, and the
    /// operation may go on. What it used of the limits is used, and what it drew of randomness is not drawn again.
    ///
    /// ```
    /// # use keelstone_execution::{Context, Denied, Draft, Item, ensure, namespace};
    /// # #[namespace("counter")]
    /// # struct Counter { value: Item<u64> }
    /// # fn pay(counter: &mut Draft<Counter>, _: &mut Context) -> Result<u64, Denied> {
    /// #     counter.value.set(&1)?;
    /// #     Err(Denied::because("no"))
    /// # }
    /// fn pays_if_it_can(counter: &mut Draft<Counter>, cx: &mut Context) -> Result<bool, Denied> {
    ///     match cx.attempt(|cx| pay(counter, cx))? {
    ///         Ok(_) => Ok(true),
    ///         Err(_why) => Ok(false), // What `pay` wrote before it was denied is not there.
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Stop`] if the host did not answer, here or within: the operation is over. [`Stop::Limit`] for more than
    /// [`crate::ATTEMPTS_WITHIN_MAX`] within one another.
    // spec: EXEC-24
    pub fn attempt<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, Denied>) -> Result<Result<T, Denied>, Stop> {
        self.handle.begin_attempt()?;
        let mut attempt = Attempt { events: self.events.len(), is_kept: false, cx: self };
        let result = run(attempt.cx);
        attempt.is_kept = result.is_ok();
        drop(attempt);
        self.handle.metered(|_| Ok(()))?;
        Ok(result)
    }

    /// The block's height, for what the engine notes outside every operation's diff.
    pub(crate) fn system_height(&self) -> Height {
        self.block().height
    }

    fn declared(&self, declared: bool, what: &'static str) -> Result<(), Stop> {
        if declared { Ok(()) } else { Err(self.handle.stop(Stop::Undeclared { what })) }
    }
}

/// Part of an operation under way. Unless it is kept, a panic within it leaves nothing either.
struct Attempt<'a> {
    cx: &'a mut Context,
    /// Events that were emitted before.
    events: usize,
    is_kept: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.cx.events.truncate(self.events);
        }
        self.cx.handle.end_attempt(self.is_kept);
    }
}
