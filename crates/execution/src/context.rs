//! What a transition knows of its surroundings, and what it may say to them.
//!
//! There is no clock but the block's and no randomness but from the block. A function that asks for either declares
//! it, because its results cannot be foretold (spec: EXEC-4).

use crate::host::Handle;
use crate::{BundleId, EVENT_BYTES_MAX, FunctionHash, PublicKey, SessionId, Stop};
use keelstone_codec::{Blob, ChainId, Decode, Describe, Encode, Hash, Height, Tag, TaggedHasher, Timestamp};
use keelstone_macros::{Decode, Encode};
use std::cell::Cell;

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

    /// The key that signed.
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

    /// The block's height, for what the engine notes outside every operation's diff.
    pub(crate) fn system_height(&self) -> Height {
        self.block().height
    }

    fn declared(&self, declared: bool, what: &'static str) -> Result<(), Stop> {
        if declared { Ok(()) } else { Err(self.handle.stop(Stop::Undeclared { what })) }
    }
}
