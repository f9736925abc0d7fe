//! The hash chain: one link for every operation a session runs.
//!
//! A link binds the chain, the session, the operation's place in it, the link before, the function, arguments, result
//! and net change. Arguments, result and change enter by hash, so history can drop them and still be proven. Pure
//! functions; nothing here reads state.
//!
//! Layout and rules: `spec/chain.md`, EXEC-1 and EXEC-11. Vectors: `spec/vectors/chain.json`.

use crate::{FunctionHash, SessionId};
use keelstone_codec::{ChainId, Hash, StateHash, Tag, TaggedHasher};

const FIRST: Tag = Tag::new("chain/first");
const LINK: Tag = Tag::new("chain/link");
const ROLLBACK: Tag = Tag::new("chain/rollback");
const ARGS: Tag = Tag::new("chain/args");
const RESULT: Tag = Tag::new("chain/result");

/// The state hash a session begins with (spec: EXEC-1).
#[must_use]
pub fn first_link(chain_id: &ChainId, session: &SessionId, init: &StateHash) -> StateHash {
    StateHash(TaggedHasher::new(FIRST).value(chain_id).value(session).value(init).finish())
}

/// What one operation adds to the chain of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link<'a> {
    /// The network.
    pub chain_id: &'a ChainId,
    /// The session that ran the operation.
    pub session: SessionId,
    /// How many operations the session had run before this one.
    pub sequence: u64,
    /// The session's state hash before.
    pub previous: StateHash,
    /// The function.
    pub function: FunctionHash,
    /// [`args_hash`] of the arguments.
    pub args: Hash,
    /// [`result_hash`] of the result.
    pub result: Hash,
    /// The digest of the operation's net change in application namespaces ([`crate::Summary::digest`]).
    pub diff: Hash,
}

impl Link<'_> {
    /// The session's state hash afterwards.
    ///
    /// Only the chain id has a length of its own, and it carries it; all else is of fixed width, so no two links
    /// share a preimage (spec: EXEC-1).
    #[must_use]
    pub fn state_hash(&self) -> StateHash {
        let mut hasher = TaggedHasher::new(LINK);
        hasher.value(self.chain_id).value(&self.session).value(&self.sequence).value(&self.previous);
        hasher.value(&self.function).value(&self.args).value(&self.result).value(&self.diff);
        StateHash(hasher.finish())
    }
}

/// The link a rollback adds: the chain goes on, it never goes back (spec: EXEC-11).
#[must_use]
pub fn rollback_link(previous: &StateHash, bundle: &Hash, restoring: &Hash) -> StateHash {
    StateHash(TaggedHasher::new(ROLLBACK).value(previous).value(bundle).value(restoring).finish())
}

/// The hash by which arguments enter a link.
#[must_use]
pub fn args_hash(args: &[u8]) -> Hash {
    TaggedHasher::new(ARGS).update(args).finish()
}

/// The hash by which a result enters a link.
#[must_use]
pub fn result_hash(result: &[u8]) -> Hash {
    TaggedHasher::new(RESULT).update(result).finish()
}
