//! Operations and bundles: what a client asks for.
//!
//! A function is known by the hash of its name and version, never by a position or an address, so that a bundle means
//! the same on every node and for ever. Bytes of a bundle are taken to come from an adversary.
//!
//! Layout and rules: `spec/chain.md`, EXEC-1, EXEC-4 and EXEC-19. Vectors: `spec/vectors/chain.json`.

use crate::{Capability, ContextUse};
use keelstone_codec::{
    Blob, BoundedSet, Decode, DecodeError, Describe, Encode, Hash, Height, Reader, StateHash, Tag, TaggedHasher,
};
use keelstone_macros::{Decode, Encode, OrderedKey};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Most bytes of one operation's arguments (spec: EXEC-19).
pub const ARGS_BYTES_MAX: usize = 1 << 20;
/// Most operations of one bundle (spec: EXEC-19).
pub const OPERATIONS_MAX: usize = 65_535;

const FUNCTION: Tag = Tag::new("function");

/// The identity of a function: the hash of its name and version (spec: EXEC-19).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, OrderedKey, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FunctionHash(pub Hash);

impl FunctionHash {
    /// The identity of `name/version`.
    #[must_use]
    pub fn of(name: &str, version: u32) -> Self {
        Self(TaggedHasher::new(FUNCTION).value(name).value(&version).finish())
    }
}
impl FromStr for FunctionHash {
    type Err = DecodeError;
    fn from_str(text: &str) -> Result<Self, DecodeError> {
        text.parse().map(Self)
    }
}
impl fmt::Display for FunctionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for FunctionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FunctionHash({})", self.0)
    }
}

/// How the crate of a function was built, as far as its results depend on it (spec: EXEC-13). The macro makes it, in that
/// crate.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// Whether a panic can be caught.
    pub unwinds: bool,
    /// Adds as all arithmetic of the crate does.
    pub add: fn(u8, u8) -> u8,
}

/// What `#[transition]` says of the struct it stands on: the arguments of a function, and what the function is.
pub trait Function: Encode + Decode + Describe {
    /// The name, such as `social.form_alliance`.
    const NAME: &'static str;
    /// The version, which every change of behaviour raises.
    const VERSION: u32;
    /// What of the block the function may ask for (spec: EXEC-4).
    const CONTEXT: ContextUse;
    /// The most gas one call may use.
    const GAS_MAX: u64;
    /// How the crate that declares it was built.
    #[doc(hidden)]
    const BUILT: Built;

    /// The capabilities a session must hold to call it.
    fn needs() -> Vec<Capability>;

    /// The identity.
    #[must_use]
    fn hash() -> FunctionHash {
        FunctionHash::of(Self::NAME, Self::VERSION)
    }
}

/// One step: a function, its arguments, and what the caller expects of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Operation {
    /// Which function.
    pub function: FunctionHash,
    /// Its arguments, in their canonical encoding.
    pub args: Blob<ARGS_BYTES_MAX>,
    /// The state hash the session must have afterwards. It binds all that went before in the session (spec: EXEC-4).
    pub expected_diff: Option<StateHash>,
    /// The digest this operation's own diff must have, whatever went before.
    pub expected_own_diff: Option<Hash>,
}

impl Operation {
    /// A call of the function whose arguments these are, without expectations.
    ///
    /// # Panics
    /// If the arguments take more than [`ARGS_BYTES_MAX`] bytes, which only arguments without bounds of their own can.
    #[must_use]
    pub fn of<F: Function>(arguments: &F) -> Self {
        let args = Blob::new(arguments.to_bytes()).expect("arguments with bounds stay below a mebibyte");
        Self { function: F::hash(), args, expected_diff: None, expected_own_diff: None }
    }

    /// How many bytes its encoding has (spec: EXEC-19), without making it.
    #[must_use]
    pub fn encoded_len(&self) -> u64 {
        let expected = [self.expected_diff.is_some(), self.expected_own_diff.is_some()];
        let expected: u64 = expected.into_iter().map(|is_some| if is_some { 33 } else { 1 }).sum();
        32 + 4 + self.args.len() as u64 + expected
    }

    /// The hash under which the operation stands in the list of its bundle (spec: EXEC-19).
    #[must_use]
    pub fn list_hash(&self) -> Hash {
        const LISTED: Tag = Tag::new("bundle/operation");
        TaggedHasher::new(LISTED).value(self).finish()
    }

    /// The same operation that must leave the session at `state`.
    #[must_use]
    pub fn expecting(mut self, state: StateHash) -> Self {
        self.expected_diff = Some(state);
        self
    }
}

/// How a bundle is run.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub enum Mode {
    /// One atom: all operations take effect in one block, or none does.
    #[default]
    Sync,
    /// In batches over several blocks, from checkpoint to checkpoint (spec: EXEC-6 to EXEC-12). Others see what the
    /// batches left as they finish: there is no isolation.
    Async(Batching),
}

/// What the author of an async bundle says of its batches.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Batching {
    /// The last height at which the chain goes on with it. After that it is stopped, and can only be taken back.
    pub last_height: Height,
    /// Keeps every other writer off the keys it wrote until it ends. Takes the capability `bundles.hold`.
    pub hold: bool,
    /// Operations that begin a batch, by index: natural borders of the work. The budget may add more.
    pub borders: BoundedSet<u32, OPERATIONS_MAX>,
}

impl Batching {
    /// Batches as large as the budget allows, up to a height.
    #[must_use]
    pub fn until(last_height: Height) -> Self {
        Self { last_height, hold: false, borders: BoundedSet::default() }
    }
}

/// An ordered list of 1 to [`OPERATIONS_MAX`] operations. A sync bundle succeeds or fails as one.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
#[codec(shapeless)]
pub struct Bundle {
    mode: Mode,
    operations: Vec<Operation>,
}

/// Why operations are not a bundle. The caller broke the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// None, or more than the format has numbers for.
    #[error("a bundle has 1 to {OPERATIONS_MAX} operations, not {found}")]
    Size {
        /// How many there were.
        found: usize,
    },
    /// A border that parts nothing.
    #[error("a batch cannot begin with operation {border} of {operations}: borders lie between operations")]
    Border {
        /// The border.
        border: u32,
        /// How many operations there are.
        operations: usize,
    },
}

impl Bundle {
    /// A bundle of these operations.
    ///
    /// # Errors
    /// [`BundleError`] for none, for more than [`OPERATIONS_MAX`], and for borders that lie outside.
    // spec: EXEC-19
    pub fn new(mode: Mode, operations: Vec<Operation>) -> Result<Self, BundleError> {
        if !(1..=OPERATIONS_MAX).contains(&operations.len()) {
            return Err(BundleError::Size { found: operations.len() });
        }
        if let Mode::Async(batching) = &mode {
            let outside = |border: &&u32| **border == 0 || **border as usize >= operations.len();
            if let Some(border) = batching.borders.iter().find(outside) {
                return Err(BundleError::Border { border: *border, operations: operations.len() });
            }
        }
        Ok(Self { mode, operations })
    }

    /// A sync bundle of one operation.
    #[must_use]
    pub fn one(operation: Operation) -> Self {
        Self { mode: Mode::Sync, operations: vec![operation] }
    }

    /// How it is run.
    #[must_use]
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Its operations, in order.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The same operations as one atom, if this is an async bundle.
    #[must_use]
    pub fn as_one(&self) -> Option<Self> {
        let is_async = self.mode != Mode::Sync;
        is_async.then(|| Self { mode: Mode::Sync, operations: self.operations.clone() })
    }

    pub(crate) fn operations_mut(&mut self) -> &mut [Operation] {
        &mut self.operations
    }
}

// spec: EXEC-19
impl Decode for Bundle {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mode = Mode::decode(input)?;
        let operations = input.list("operations of a bundle", OPERATIONS_MAX)?;
        Self::new(mode, operations).map_err(|error| match error {
            BundleError::Size { .. } => DecodeError::Invalid { what: "bundle without operations" },
            BundleError::Border { .. } => DecodeError::Invalid { what: "border outside the operations of a bundle" },
        })
    }
}
