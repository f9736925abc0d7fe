//! What can go wrong, by who has to act.
//!
//! | type | who acts |
//! | --- | --- |
//! | [`Denied`] | the caller of the transition: a rule of the application said no |
//! | [`Stop`] | a host call could not be answered; the operation is over, whatever the function makes of it |
//! | [`Failed`] | the caller of the bundle: every node finds the same, and the receipt says so |
//! | [`Halt`] | the operator of this node: the state could not be read here; no verdict about the bundle |

use crate::{BundleId, Capability, FunctionHash, SessionId};
use keelstone_codec::{DecodeError, Hash, Key, Namespace, NotHex, StateHash, Text, TooMany, TypeError};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::ReadError;
use std::fmt;

/// Longest reason in bytes; longer ones are cut at a character.
pub const REASON_BYTES_MAX: usize = 256;

/// A transition says no, and why. Nothing is kept of an operation that ends with it; of part of one, nothing where it was
/// begun by [`crate::Context::attempt`].
///
/// What stands for a value that the caller gave wrong becomes one with `?`: [`TooMany`], [`DecodeError`], [`TypeError`].
#[derive(Clone, Debug)]
pub struct Denied(Cause);

#[derive(Clone, Debug)]
enum Cause {
    Rule(String),
    Stopped(Stop),
}

impl Denied {
    /// A rule of the application says no. The reason stands in the receipt, so it must be a function of the state and
    /// the arguments; it is cut at [`REASON_BYTES_MAX`] bytes.
    #[must_use]
    pub fn because(reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        Self(Cause::Rule(reason))
    }

    /// The host's reason, if it was not the application's.
    #[must_use]
    pub fn stop(&self) -> Option<&Stop> {
        match &self.0 {
            Cause::Rule(_) => None,
            Cause::Stopped(stop) => Some(stop),
        }
    }
}
impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::Rule(reason) => f.write_str(reason),
            Cause::Stopped(stop) => stop.fmt(f),
        }
    }
}
impl std::error::Error for Denied {}
impl From<Stop> for Denied {
    fn from(stop: Stop) -> Self {
        Self(Cause::Stopped(stop))
    }
}

/// An error that says what is wrong with a value is the reason, word for word.
macro_rules! denied_for {
    ($($error:ty),+) => {$(
        impl From<$error> for Denied {
            fn from(error: $error) -> Self {
                Self::because(error.to_string())
            }
        }
    )+};
}
denied_for!(TooMany, DecodeError, TypeError, NotHex);

/// Says no with a formatted reason: `return Err(denied!("{agent} is no member"))`.
#[macro_export]
macro_rules! denied {
    ($($reason:tt)+) => { $crate::Denied::because(::std::format!($($reason)+)) };
}

/// Says no unless a condition holds: `ensure!(amount > 0, "an amount is positive, not {amount}")`.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return ::std::result::Result::Err($crate::denied!($($reason)+));
        }
    };
}

/// Why the host does not answer a call. It stays so for the rest of the operation: a function that swallows a stop and
/// goes on is stopped at its next call, and fails even if it returns a result (spec: EXEC-13, EXEC-17).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stop {
    /// The operation used up its gas (spec: EXEC-13).
    #[error("out of gas: the limit is {limit}")]
    OutOfGas {
        /// What it was allowed.
        limit: u64,
    },
    /// A named limit was passed.
    #[error("{what}: {found} is above the limit of {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// What was asked for.
        found: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A counter of the state is at the end of its numbers.
    #[error("{what} has no number left")]
    Exhausted {
        /// Which.
        what: &'static str,
    },
    /// The function asked for something of the block that it does not declare (spec: EXEC-4).
    #[error("the function reads the block's {what} and does not declare it")]
    Undeclared {
        /// `height`, `time` or `random`.
        what: &'static str,
    },
    /// A key or value that state cannot hold: empty, or too long (spec: TREE-1).
    #[error("{namespace}: {error}")]
    Type {
        /// Where it was to go.
        namespace: Namespace,
        /// The rule it breaks.
        error: TypeError,
    },
    /// What was to be kept, returned or emitted is above a limit of its own type: nobody could read it back (spec: EXEC-18).
    #[error("{what} could not be read back: {error}")]
    Unreadable {
        /// What it was.
        what: String,
        /// The limit it breaks.
        error: DecodeError,
    },
    /// A stored entry is not of the type this code reads. Its bytes are what was committed: code and state are at odds.
    #[error("{namespace}/{} is not of the type expected: {error}", key.escape_ascii())]
    Undecodable {
        /// Where.
        namespace: Namespace,
        /// The entry.
        key: Key,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// The state could not be read here. Ends in a [`Halt`], not in a verdict.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A bundle failed at an operation; nothing of it is kept (spec: EXEC-5). Every node finds the same.
#[derive(Clone, Debug, thiserror::Error)]
#[error("operation {operation} ({function}): {kind}")]
pub struct Failed {
    /// The operation's index in the bundle.
    pub operation: u32,
    /// The function it called.
    pub function: FunctionHash,
    /// Why it failed.
    pub kind: FailureKind,
    /// Gas the whole bundle had used by then.
    pub gas_used: u64,
}

/// Longest reason in a [`Failure`], in bytes.
pub const FAILURE_REASON_BYTES_MAX: usize = 512;

/// Why a bundle failed, as receipts and records of bundles say it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failure {
    /// The operation's index in the bundle.
    pub operation: u32,
    /// The function it called.
    pub function: FunctionHash,
    /// [`FailureKind::code`].
    pub code: u16,
    /// What the operation expected, if that is why.
    pub expected: Option<Hash>,
    /// What was found instead.
    pub actual: Option<Hash>,
    /// Why, for people.
    pub reason: Text<FAILURE_REASON_BYTES_MAX>,
}

impl From<&Failed> for Failure {
    fn from(failed: &Failed) -> Self {
        let (expected, actual) = match &failed.kind {
            FailureKind::UnexpectedState { expected, actual } => (Some(expected.0), Some(actual.0)),
            FailureKind::UnexpectedDiff { expected, actual } => (Some(*expected), Some(*actual)),
            _ => (None, None),
        };
        let mut reason = failed.kind.reason();
        reason.truncate(reason.floor_char_boundary(FAILURE_REASON_BYTES_MAX));
        let reason = Text::new(reason).expect("just cut");
        let (operation, function, code) = (failed.operation, failed.function, failed.kind.code());
        Self { operation, function, code, expected, actual, reason }
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FailureKind {
    /// No function has this hash.
    #[error("no function with this hash is registered")]
    UnknownFunction,
    /// The arguments are not the function's.
    #[error("arguments: {0}")]
    Arguments(DecodeError),
    /// The transition said no.
    #[error("denied: {0}")]
    Denied(String),
    /// The host stopped it. Never [`Stop::Read`].
    #[error("stopped: {0}")]
    Stopped(Stop),
    /// The function panicked. The message is for people; it is in no hash.
    #[error("the function panicked: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// The session's state hash is not the one the operation expects.
    #[error("expected state hash {expected}, found {actual}")]
    UnexpectedState {
        /// What the operation carries.
        expected: StateHash,
        /// What came out.
        actual: StateHash,
    },
    /// The operation's own diff is not the one it expects.
    #[error("expected own diff {expected}, found {actual}")]
    UnexpectedDiff {
        /// What the operation carries.
        expected: Hash,
        /// What came out.
        actual: Hash,
    },
    /// The session may not do this.
    #[error("session: {0}")]
    Session(SessionError),
    /// The bundle is an async one, which is submitted and not executed (spec: EXEC-6).
    #[error("an async bundle is submitted, not run as one")]
    NotSync,
    /// Another bundle keeps others off a key until it ends (spec: EXEC-10).
    #[error("bundle {bundle} holds {namespace}/{}", key.escape_ascii())]
    Held {
        /// The bundle.
        bundle: BundleId,
        /// Where.
        namespace: Namespace,
        /// The key.
        key: Key,
    },
}

impl FailureKind {
    /// A number that stands for the kind in receipts; numbers are never given anew.
    // spec: EXEC-5
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::UnknownFunction => 1,
            Self::Arguments(_) => 2,
            Self::Denied(_) => 3,
            Self::Stopped(Stop::OutOfGas { .. }) => 4,
            Self::Stopped(_) => 5,
            Self::Panicked { .. } => 6,
            Self::UnexpectedState { .. } => 7,
            Self::UnexpectedDiff { .. } => 8,
            Self::Session(_) => 9,
            Self::NotSync => 10,
            Self::Held { .. } => 11,
        }
    }

    /// What a receipt may say: the text, but for what may differ between machines (a panic's message).
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Panicked { .. } => "the function panicked".to_owned(),
            other => other.to_string(),
        }
    }
}

/// Why a session may not run an operation (spec: EXEC-8, EXEC-16).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There is no such session.
    #[error("{0} does not exist")]
    Unknown(SessionId),
    /// The session belongs to another key.
    #[error("{0} belongs to another key")]
    NotYours(SessionId),
    /// The session, or one it was delegated from, is closed.
    #[error("{0} is closed")]
    Closed(SessionId),
    /// The session, or one it was delegated from, is past its last height.
    #[error("{0} has expired")]
    Expired(SessionId),
    /// The session, or one it was delegated from, lacks a capability.
    #[error("{session} lacks the capability {capability}")]
    Lacks {
        /// Which session.
        session: SessionId,
        /// Which capability.
        capability: Capability,
    },
    /// More ancestors than [`crate::ANCESTORS_MAX`].
    #[error("{0} is delegated too many times over")]
    TooDeep(SessionId),
    /// The session has run 2^64 - 1 operations.
    #[error("{0} has no sequence number left")]
    Exhausted(SessionId),
}

/// This node cannot go on: the state could not be read here. Says nothing about the bundle, and nothing is kept of it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Halt {
    /// The witness does not show what the bundle reads. Ask for one that does (spec: EXEC-17).
    #[error("the witness does not show {namespace}/{}", key.escape_ascii())]
    WitnessIncomplete {
        /// Where.
        namespace: Namespace,
        /// The first key that is not shown.
        key: Vec<u8>,
    },
    /// The state is damaged, pruned, or out of reach.
    #[error(transparent)]
    Read(ReadError),
}

impl From<ReadError> for Halt {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Incomplete { namespace, key } => Self::WitnessIncomplete { namespace, key },
            other => Self::Read(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// spec: EXEC-5. The numbers in receipts are those of the spec, each with the meaning it has there.
    #[test]
    fn every_failure_has_the_number_that_the_spec_gives_it() {
        let spec = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec/chain.md")).expect("there");
        let (_, rule) = spec.split_once("**EXEC-5**").expect("the rule");
        let (rule, _) = rule.split_once("\n## ").expect("what comes behind it");
        let cells: Vec<&str> = rule
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
            .flat_map(|line| line.split(" | "))
            .collect();
        let listed: BTreeMap<u16, &str> =
            cells.chunks_exact(2).filter_map(|pair| Some((pair[0].parse().ok()?, pair[1]))).collect();
        let (link, hash) = (StateHash::default(), Hash([0; 32]));
        let (namespace, key) = (Namespace::new("bank").expect("a name"), Key::new(*b"a").expect("a key"));
        let kinds = [
            (FailureKind::UnknownFunction, "no function"),
            (FailureKind::Arguments(DecodeError::Invalid { what: "this" }), "arguments"),
            (FailureKind::Denied("no".to_owned()), "denied"),
            (FailureKind::Stopped(Stop::OutOfGas { limit: 1 }), "gas"),
            (FailureKind::Stopped(Stop::Undeclared { what: "time" }), "another limit"),
            (FailureKind::Panicked { message: String::new() }, "panicked"),
            (FailureKind::UnexpectedState { expected: link, actual: link }, "`expected_diff`"),
            (FailureKind::UnexpectedDiff { expected: hash, actual: hash }, "`expected_own_diff`"),
            (FailureKind::Session(SessionError::Unknown(SessionId(hash))), "session"),
            (FailureKind::NotSync, "async"),
            (FailureKind::Held { bundle: BundleId(hash), namespace, key }, "holds"),
        ];
        assert_eq!(listed.len(), kinds.len(), "{listed:?}");
        for (kind, word) in kinds {
            let said = listed.get(&kind.code()).expect("a number of the table");
            assert!(said.contains(word), "{kind}: {said}");
        }
    }
}
