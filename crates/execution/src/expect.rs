//! Foretelling: what a bundle would come to, and a bundle that insists on it.
//!
//! Whoever holds the state, or a witness of what a bundle reads, runs it without sending it, fills in the state hash
//! after every operation, and signs that: the chain then runs the bundle to those hashes or not at all.
//!
//! Rules: `spec/chain.md`, EXEC-4, EXEC-17.

use crate::{
    BlockContext, BlockDraft, Bundle, Caller, ContextUse, Failed, Finished, FunctionHash, Halt, Limits, Registry,
};
use keelstone_codec::{Hash, StateHash};
use keelstone_tree::Read;

/// Why expectations were not filled in.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExpectError {
    /// An operation asks the block for something nobody knows beforehand; no expectation from it on can be met.
    #[error("operation {operation} ({name}) reads the block's {}: its state hash cannot be foretold", uses(context))]
    Unforeseeable {
        /// The operation's index.
        operation: u32,
        /// The function's name.
        name: &'static str,
        /// What it asks for.
        context: ContextUse,
    },
    /// No function has this hash.
    #[error("operation {operation} calls {function}, which is not registered")]
    UnknownFunction {
        /// The operation's index.
        operation: u32,
        /// The hash.
        function: FunctionHash,
    },
    /// The bundle fails.
    #[error(transparent)]
    Failed(Failed),
    /// The state could not be read here.
    #[error(transparent)]
    Halt(#[from] Halt),
}

fn uses(context: &ContextUse) -> String {
    let named = [(context.height, "height"), (context.time, "time"), (context.random, "randomness")];
    named.iter().filter(|(used, _)| *used).map(|(_, name)| *name).collect::<Vec<_>>().join(" and ")
}

/// What operations are made to expect of themselves (spec: EXEC-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The state hash of the session afterwards: all that went before in the session is bound with it.
    StateHash,
    /// Their own diff, whatever went before.
    OwnDiff,
    /// Both.
    Both,
}

impl Bundle {
    /// Says whether it depends on nothing but the state: only then can expectations be met.
    ///
    /// # Errors
    /// [`ExpectError::Unforeseeable`], [`ExpectError::UnknownFunction`].
    // spec: EXEC-4
    pub fn check_foreseeable(&self, registry: &Registry) -> Result<(), ExpectError> {
        for (operation, function) in (0u32..).zip(self.operations().iter().map(|operation| operation.function)) {
            let entry = registry.function(&function).ok_or(ExpectError::UnknownFunction { operation, function })?;
            if !entry.context.is_none() {
                let (name, context) = (entry.name, entry.context);
                return Err(ExpectError::Unforeseeable { operation, name, context });
            }
        }
        Ok(())
    }

    /// The same bundle, with every operation expecting what it came to: its state hash, the digest of its own diff, or
    /// both, in order.
    #[must_use]
    pub fn expecting(&self, meaning: Meaning, outcomes: impl IntoIterator<Item = (StateHash, Hash)>) -> Self {
        let mut expecting = self.clone();
        for (operation, (state_hash, diff)) in expecting.operations_mut().iter_mut().zip(outcomes) {
            if meaning != Meaning::OwnDiff {
                operation.expected_diff = Some(state_hash);
            }
            if meaning != Meaning::StateHash {
                operation.expected_own_diff = Some(diff);
            }
        }
        expecting
    }
}

/// Runs a bundle over a version of the state, keeping nothing of it.
///
/// An async bundle is run as one: it comes to the links of its batches, unless others write to what it reads between
/// them, or its session runs something else.
///
/// # Errors
/// [`Halt`] if the state could not be read here.
pub fn simulate(
    registry: &Registry,
    state: impl Read + 'static,
    block: BlockContext,
    caller: Caller,
    bundle: &Bundle,
    limits: Limits,
) -> Result<Result<Finished, Failed>, Halt> {
    let whole = bundle.as_one();
    BlockDraft::begin(registry, state, block).execute(caller, whole.as_ref().unwrap_or(bundle), limits)
}

/// The same bundle, with every operation expecting the state hash it comes to over this version of the state.
///
/// # Errors
/// [`ExpectError::Unforeseeable`] if an operation depends on the block (spec: EXEC-4), or what keeps the bundle from
/// succeeding.
pub fn expect(
    registry: &Registry,
    state: impl Read + 'static,
    block: BlockContext,
    caller: Caller,
    bundle: &Bundle,
    limits: Limits,
) -> Result<Bundle, ExpectError> {
    bundle.check_foreseeable(registry)?;
    let finished = simulate(registry, state, block, caller, bundle, limits)?.map_err(ExpectError::Failed)?;
    let outcomes = finished.outcomes.iter().map(|outcome| (outcome.state_hash, outcome.diff.digest));
    Ok(bundle.expecting(Meaning::StateHash, outcomes))
}
