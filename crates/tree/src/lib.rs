//! The authenticated tree as a pure function: a diff goes in, a root comes out; proofs of what stands under a root.
//!
//! State is a set of namespaces, each an ordered map from raw keys to values. Both levels are compressed binary radix
//! Merkle trees, so a root depends on the contents only, never on how they got there. Nothing in this crate does I/O:
//! pages that are not in memory come through [`Backing`], and are proven by their hash before anything of them is used.
//!
//! Formats and rules: `spec/tree.md`, all of TREE. Vectors: `spec/vectors/tree.json`.
#![forbid(unsafe_code)]

mod apply;
mod arena;
mod backing;
pub mod bits;
mod build;
mod bulk;
mod descent;
mod diff;
mod entries;
mod fresh;
mod grown;
mod hasher;
#[doc(hidden)]
pub mod hostile;
pub mod ics23;
mod lanes;
mod memory;
mod page;
mod paged;
pub mod preimage;
mod proof;
#[cfg(test)]
mod proof_tests;
mod prove;
mod query;
mod read;
pub mod reference;
mod spread;
mod state;
mod stored;
mod sync;
mod tree;
#[cfg(test)]
mod tree_tests;
mod verifier;
mod verify;
mod walk;
mod way;
mod witness;

pub use apply::{Draft, Moved, Passed, Rewrite};
pub use arena::{Pages, PagesStats, Written};
pub use backing::{Backing, PageAt, Place};
pub use build::{Build, Leaf};
pub use bulk::{Bulk, OutOfOrder, Subtree};
pub use diff::{DIFF_BYTES_MAX, Diff, DiffError, Totals, Write};
pub use entries::{Entries, Lost};
pub use grown::Grown;
pub use hasher::{Blake3, Half, HashKind, Hasher, NODE_LEN, Sha256, Sha256Mid, UnknownHasher};
pub use memory::MemoryTree;
pub use paged::PagedNode;
pub use preimage::{Level, Preimage};
pub use proof::{Proof, ProofError, ProofLimits};
pub use prove::{prove, prove_bytes};
pub use query::Query;
pub use read::{KeyRange, Read, ReadError, Scan, prefix_end};
pub use tree::{Entry, Stale, Survey, Top, Tree};
pub use verifier::Verifier;
pub use verify::{Answer, NamespaceTop, RangeAnswer, Verified};
pub use walk::{Branch, Opened, Walk};
pub use witness::WitnessError;
