//! Operations and bundles: what a client asks for.
//!
//! A function is known by the hash of its name and version, never by a position or an address, so that a bundle means
//! the same on every node and for ever. Bytes of a bundle are taken to come from an adversary.
//!
//! Layout and rules: `spec/chain.md`, EXEC-1, EXEC-4 and EXEC-19. Vectors: `spec/vectors/chain.json`.

use crate::{Capability, ContextUse};
use keelstone_codec::{Blob, Decode, DecodeError, Describe, Encode, Hash, Reader, StateHash, Tag, TaggedHasher};
use keelstone_macros::{Decode, Encode, OrderedKey};
use serde::{Deserialize, Serialize};
use std::fmt;

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

    /// The same operation that must leave the session at `state`.
    #[must_use]
    pub fn expecting(mut self, state: StateHash) -> Self {
        self.expected_diff = Some(state);
        self
    }
}

/// How a bundle is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One atom: all operations take effect in one block, or none does.
    #[default]
    Sync,
    /// In batches over several blocks, from checkpoint to checkpoint. Its place in the format is kept; running one is
    /// refused with [`crate::FailureKind::AsyncNotSupported`] (spec: EXEC-6 to EXEC-12, reserved).
    Async,
}

/// An ordered list of 1 to [`OPERATIONS_MAX`] operations that succeeds or fails as one.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
#[codec(shapeless)]
pub struct Bundle {
    mode: Mode,
    operations: Vec<Operation>,
}

/// Why operations are not a bundle. The caller broke the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a bundle has 1 to {OPERATIONS_MAX} operations, not {found}")]
pub struct BundleSize {
    /// How many there were.
    pub found: usize,
}

impl Bundle {
    /// A bundle of these operations.
    ///
    /// # Errors
    /// [`BundleSize`] for none, or more than [`OPERATIONS_MAX`].
    pub fn new(mode: Mode, operations: Vec<Operation>) -> Result<Self, BundleSize> {
        match operations.len() {
            1..=OPERATIONS_MAX => Ok(Self { mode, operations }),
            found => Err(BundleSize { found }),
        }
    }

    /// A sync bundle of one operation.
    #[must_use]
    pub fn one(operation: Operation) -> Self {
        Self { mode: Mode::Sync, operations: vec![operation] }
    }

    /// How it is run.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its operations, in order.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
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
        Self::new(mode, operations).map_err(|_| DecodeError::Invalid { what: "bundle without operations" })
    }
}
