//! Async bundles: long lists of operations that run in batches over several blocks, from checkpoint to checkpoint.
//!
//! All there is to know of a bundle in flight is state, in the namespace `bundles`: its operations, written once in
//! pieces; its [`BundleRecord`], which every batch rewrites; and what its keys held before it first wrote them. What a
//! block does for bundles is a function of that state and nothing else, so any node goes on with them, after a crash,
//! after a rollback of the chain, or after it took the state from another: each operation takes effect exactly once.
//!
//! A bundle that fails stops at its last checkpoint with the reason on record. Its owner resumes it, replaces an
//! operation and tries again, leaves it as it stands, or has it taken back: only if nobody wrote to its keys since,
//! and by a link that extends the session's chain. Operations are an adversary's, and so is the choice of everything
//! an author may choose; every number here has a limit.
//!
//! Rules: `spec/chain.md`, EXEC-6 to EXEC-12. Vectors: `spec/vectors/chain.json`.

mod engine;
mod functions;
mod record;

pub(crate) use engine::Forget;
pub use engine::{Batch, BatchEnd, BundleLimits, FORGET_BYTES_MAX, SubmitError, Submitted, check_submission};
pub(crate) use functions::register;
pub use functions::{Abandon, Abandoned, Resume, Resumed, Retry, RollBack, RolledBack};
pub use record::{
    Before, BundleId, BundleRecord, Bundles, Changer, HOLD, IN_FLIGHT_MAX, MANAGE, PIECE_BYTES, Piece, Status,
    StopReason, Totals, UNDO_VALUE_BYTES_MAX, Writer, Written, key_hash,
};
