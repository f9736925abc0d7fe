//! Operations, sessions, bundles and the chain of state hashes: typed state transitions over any version of the state.
//!
//! A client asks for a [`Bundle`] of [`Operation`]s. A [`BlockDraft`] runs it over anything that implements
//! [`keelstone_tree::Read`] (a store's view, a tree in memory, a witness), extends the session's hash chain by one
//! link for every operation, and collects net [`Changes`]. Nothing here does I/O, reads a clock, or knows a signature;
//! everything a bundle carries is taken to come from an adversary, and the functions it calls from a colleague.
//!
//! | to | see |
//! | --- | --- |
//! | write a function of the chain | [`Transition`], [`Map`] and its siblings, [`Context`] |
//! | run bundles | [`Registry`], [`BlockDraft`], [`Limits`] |
//! | run long ones over several blocks | [`bundles`], [`Batching`] |
//! | have the chain call functions by itself | [`Registry::begin_block`], [`Registry::before_transaction`], [`When`] |
//! | check what they came to | [`Link`], [`Summary`], [`Recorder`] |
//!
//! Rules: `spec/chain.md`, all of EXEC. Vectors: `spec/vectors/chain.json`.
#![forbid(unsafe_code)]

// The macros' paths lead through this crate, also when it is this crate that is compiled.
extern crate self as keelstone_execution;

mod activity;
mod ahead;
mod block;
pub mod bundles;
mod chain;
mod changes;
mod collections;
mod context;
mod error;
mod expect;
mod hooks;
mod host;
mod index;
mod interface;
mod merkle;
mod meter;
pub mod mmr;
mod newtype;
mod operation;
mod recorder;
mod registry;
mod session;
mod world;

pub use activity::Activity;
pub use ahead::{Ahead, Coming, Foretold, Job, OperationsAhead, Worker};
pub use block::{BlockDraft, Caller, Finished, Outcome, is_application, runs_function};
pub use bundles::{Batch, BatchEnd, BundleId, BundleLimits, BundleRecord, Bundles, SubmitError};
pub use chain::{Link, args_hash, first_link, result_hash, rollback_link};
pub use changes::{Change, Changes, RestoreError, Summary, ValueHashes, value_hash};
pub use collections::{Collection, Item, Iter, Keys, Log, Map, RawKey, Sequence, Set, StartsWith, entry_prefix};
pub use context::{BlockContext, Context, ContextUse, Emitted, Event, TransactionContext, TransactionEnd};
pub use error::{
    Denied, FAILURE_REASON_BYTES_MAX, Failed, Failure, FailureKind, Halt, REASON_BYTES_MAX, SessionError, Stop,
};
pub use expect::{ExpectError, Meaning, expect, simulate};
pub use hooks::{HOOKS_CHANGE_BYTES_MAX, TRANSACTION_HOOK_GAS_MAX, When};
pub use host::Handle;
pub use index::{Index, IndexError};
pub use merkle::{LIST_COUNT_MAX, ListProof, list_root};
pub use meter::{ATTEMPTS_WITHIN_MAX, CHANGE_BYTES_MAX, EVENT_BYTES_MAX, Limits, RESULT_BYTES_MAX, cost, given_weight};
pub use operation::{
    ARGS_BYTES_MAX, Batching, Bundle, BundleError, Function, FunctionHash, Mode, OPERATIONS_MAX, Operation,
};
pub use recorder::{ReadSet, Recorder};
pub use registry::{Entry, Registry, RegistryError, SYSTEM_NAMESPACES};
pub use session::{
    ANCESTORS_MAX, CAPABILITIES_MAX, CAPABILITY_LEN_MAX, Capabilities, Capability, PublicKey, Session, SessionId,
    Sessions,
};
pub use world::{Draft, Layout, Space, SpaceInfo, Transition, View, World};

pub use keelstone_macros::{Decode, Encode, OrderedKey, World, event, namespace, transition};

/// What the macros name. No part of the public surface.
#[doc(hidden)]
pub mod __private {
    pub use crate::collections::whole;
    pub use crate::operation::Built;
    pub use crate::world::each_once;
    pub use crate::{Capability, Collection, ContextUse, Event, Function, Handle, Space, SpaceInfo, World};
    pub use keelstone_codec::{
        Decode, DecodeError, Describe, Encode, KeyEnd, KeyReader, OrderedKey, Reader, Shape, Variant,
    };
}
