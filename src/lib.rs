//! Keelstone: a verifiable state engine for replicated ledgers.
//!
//! An application is a few typed state transitions; the engine executes bundles of them, extends a hash chain with
//! every one, commits to the state with an ordered Merkle tree, and proves any entry of it. This crate is the facade:
//! it re-exports the crates of the engine, and [`prelude`] is all that an application needs.
//!
//! ```
//! use keelstone::prelude::*;
//!
//! #[namespace("counter")]
//! pub struct Counter {
//!     value: Item<u64>,
//! }
//!
//! #[transition("counter.add/1")]
//! pub struct Add {
//!     by: u64,
//! }
//!
//! impl Transition<Counter> for Add {
//!     type Output = u64;
//!
//!     fn apply(&self, counter: &mut Draft<Counter>, _: &mut Context) -> Result<u64, Denied> {
//!         let value = counter.value.get_or_default()?;
//!         let sum = value.checked_add(self.by).ok_or(denied!("{value} + {} is too large", self.by))?;
//!         counter.value.set(&sum)?;
//!         Ok(sum)
//!     }
//! }
//!
//! let registry = Registry::new().with::<Counter, Add>();
//! assert!(registry.check().is_ok());
//! ```
//!
//! `examples/counter` is the same as a chain that runs; `examples/state_sync` is how its state travels.
#![forbid(unsafe_code)]

pub use keelstone_codec as codec;
pub use keelstone_execution as execution;
pub use keelstone_ledger as ledger;
pub use keelstone_node as node;
pub use keelstone_store as store;
pub use keelstone_sync as sync;
pub use keelstone_tree as tree;

/// All that functions and what is stored of an application are written with: `use keelstone::prelude::*`. What only the program
/// around them and its tests use (genesis, keys, drafts of blocks) stands in [`execution`] and [`ledger`].
pub mod prelude {
    pub use keelstone_codec::{
        Blob, BoundedList, BoundedSet, ChainId, Decode, DecodeError, Encode, Fixed, Hash, Height, OrderedKey, Root,
        StateHash, Text, Timestamp, TooMany,
    };
    pub use keelstone_execution::{
        Bundle, Capability, Context, Denied, Draft, Event, Function, Index, Item, Log, Map, Mode, Operation, PublicKey,
        RawKey, Registry, Sequence, SessionId, Set, Space, StartsWith, Stop, Transition, View, World, denied, ensure,
    };
    pub use keelstone_execution::{event, namespace, transition};
    pub use keelstone_macros::{Decode, Encode, OrderedKey};
}

#[doc(hidden)]
pub use keelstone_execution::__private;

/// The application in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So does what `docs/applications.md` says of testing one, and it holds.
#[cfg(doctest)]
#[doc = include_str!("../docs/applications.md")]
struct Applications;
