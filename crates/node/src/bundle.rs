//! Transactions as people write them: a JSON file with calls by name, turned into the bytes that are signed.
//!
//! ```json
//! { "operations": [ { "call": "agents.register/1", "args": { "name": "Ada", … } } ] }
//! ```
//!
//! Chain, nonce, expiry and session may stand in the file too; what is left out is asked of the chain. The form is
//! described in `docs/cli.md`, "Transactions".

use crate::api;
use crate::call;
use crate::exit::Failure;
use keelstone_codec::{Blob, BoundedSet, ChainId, DecodeError, Encode as _, Hash, Height, StateHash, unhex};
use keelstone_execution::bundles::{BundleId, BundleRecord, Status, StopReason};
use keelstone_execution::{Batching, Bundle, FunctionHash, Mode, Operation, PublicKey, Registry, SessionId, When};
use keelstone_ledger::{
    Continuation, Failure as BundleFailure, OperationProof, OperationReceipt, Progress, Receipt, SignedTransaction,
    Transaction, Verdict,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A transaction before it is one: what is none is filled in by whoever sends it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// The network it is for.
    #[serde(default)]
    pub(crate) chain_id: Option<ChainId>,
    /// The account's place in its own order.
    #[serde(default)]
    pub(crate) nonce: Option<u64>,
    /// The last height at which it may enter a block.
    #[serde(default)]
    pub(crate) expiry_height: Option<u64>,
    /// The session it runs in, if not the account's own.
    #[serde(default)]
    pub(crate) session: Option<SessionId>,
    /// How it is cut into batches, if it is an async bundle.
    #[serde(default)]
    pub(crate) batches: Option<Batches>,
    /// What it does.
    pub(crate) operations: Vec<Call>,
}

/// What a plan says of the batches of an async bundle.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batches {
    /// The last height at which the chain goes on with it.
    #[serde(default)]
    pub(crate) last_height: Option<u64>,
    /// Whether others are kept off the keys it wrote.
    #[serde(default)]
    pub(crate) hold: bool,
    /// Operations that begin a batch.
    #[serde(default)]
    pub(crate) borders: Vec<u32>,
}

/// How many blocks beyond its entry an async bundle may take if its file does not say.
const BATCH_BLOCKS: u64 = 1_000;

impl Batches {
    fn build(&self, facts: &Facts) -> Result<Batching, Failure> {
        let borders = BoundedSet::new(self.borders.iter().copied());
        Ok(Batching {
            last_height: Height(self.last_height.unwrap_or(facts.expiry_height.saturating_add(BATCH_BLOCKS))),
            hold: self.hold,
            borders: borders.map_err(|error| Failure::usage(format!("borders: {error}")))?,
        })
    }
}

/// One operation by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    /// The function: `name/version`, or its hash.
    pub(crate) call: String,
    /// Its arguments by name.
    #[serde(default)]
    pub(crate) args: Option<Value>,
    /// Its arguments as canonical bytes in hexadecimal, for functions this program does not know.
    #[serde(default)]
    pub(crate) args_hex: Option<String>,
    /// The state hash its session must have afterwards.
    #[serde(default)]
    pub(crate) expected_diff: Option<StateHash>,
    /// The digest its own diff must have.
    #[serde(default)]
    pub(crate) expected_own_diff: Option<Hash>,
}

/// What a plan leaves open, as the chain answers it.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) chain_id: ChainId,
    pub(crate) nonce: u64,
    pub(crate) expiry_height: u64,
}

impl Plan {
    /// The transaction of this plan.
    ///
    /// # Errors
    /// A usage failure that names the operation and what about it does not fit.
    pub(crate) fn build(&self, registry: &Registry, sender: PublicKey, facts: &Facts) -> Result<Transaction, Failure> {
        let operations = self.operations(registry)?;
        let mode = match &self.batches {
            None => Mode::Sync,
            Some(batches) => Mode::Async(batches.build(facts)?),
        };
        Ok(Transaction {
            chain_id: self.chain_id.clone().unwrap_or_else(|| facts.chain_id.clone()),
            sender,
            nonce: self.nonce.unwrap_or(facts.nonce),
            expiry_height: Height(self.expiry_height.unwrap_or(facts.expiry_height)),
            session: self.session,
            bundle: Bundle::new(mode, operations).map_err(|error| Failure::usage(error.to_string()))?,
        })
    }
}

impl Plan {
    /// The operations of this plan.
    ///
    /// # Errors
    /// As [`Plan::build`].
    pub(crate) fn operations(&self, registry: &Registry) -> Result<Vec<Operation>, Failure> {
        let operation = |(index, call): (usize, &Call)| {
            call.build(registry)
                .map_err(|problem| Failure::usage(format!("operation {index}, {}: {problem}", call.call)))
                .map_err(|failure| {
                    failure.hint("keelstone query functions lists what can be called, with its arguments")
                })
        };
        self.operations.iter().enumerate().map(operation).collect()
    }
}

impl Call {
    fn build(&self, registry: &Registry) -> Result<Operation, String> {
        let known = registry.find(&self.call);
        let function = match known {
            Some(entry) => entry.hash,
            None => Hash::from_hex(&self.call).map(FunctionHash).map_err(|_| "no such function".to_owned())?,
        };
        let args = match (&self.args, &self.args_hex, known.or_else(|| registry.function(&function))) {
            (Some(_), Some(_), _) => return Err("give args or args_hex, not both".to_owned()),
            (None, Some(digits), _) => unhex(digits).map_err(|error| format!("args_hex: {error}"))?,
            (args, None, Some(entry)) => call::encode(&(entry.args)(), args.as_ref().unwrap_or(&json!({})))
                .map_err(|misfit| format!("args {misfit}"))?,
            (_, None, None) => return Err("this program does not know the function: give args_hex".to_owned()),
        };
        Ok(Operation {
            function,
            args: Blob::new(args).map_err(|error| format!("args: {error}"))?,
            expected_diff: self.expected_diff,
            expected_own_diff: self.expected_own_diff,
        })
    }
}

/// An operation's JSON, by the shape of its function; its bytes where this program does not know it.
pub(crate) fn show_operation(registry: &Registry, operation: &Operation) -> api::Operation {
    let entry = registry.function(&operation.function);
    let args = entry.and_then(|entry| call::decode(&(entry.args)(), &operation.args).ok());
    api::Operation {
        function: entry.map_or_else(|| operation.function.to_string(), keelstone_execution::Entry::label),
        args: args.unwrap_or_else(|| json!(hex::encode(&*operation.args))),
        expected_diff: operation.expected_diff.map(|hash| hash.to_string()),
        expected_own_diff: operation.expected_own_diff.map(|hash| hash.to_string()),
    }
}

/// A receipt's JSON.
pub(crate) fn show_receipt(registry: &Registry, receipt: &Receipt, height: Height, index: u32) -> api::Receipt {
    let (outcomes, failure) = match &receipt.verdict {
        Verdict::Succeeded { operations, .. } => {
            (operations.iter().map(|operation| show_outcome(registry, operation)).collect(), None)
        }
        Verdict::Failed(failed) => (Vec::new(), Some(show_failure(failed))),
        Verdict::Refused { code, reason } => {
            let (code, reason) = (*code, reason.to_string());
            (Vec::new(), Some(api::FailureText { operation: 0, code, reason, expected: None, actual: None }))
        }
        Verdict::Submitted { .. } => (Vec::new(), None),
    };
    let submitted = match &receipt.verdict {
        Verdict::Submitted { operations, .. } => Some(*operations),
        _ => None,
    };
    api::Receipt {
        id: receipt.transaction.to_string(),
        height: height.0,
        index,
        succeeded: receipt.succeeded(),
        gas_used: receipt.gas_used,
        failure,
        submitted,
        outcomes,
        receipt: None,
        place: None,
    }
}

fn show_outcome(registry: &Registry, operation: &OperationReceipt) -> api::Outcome {
    api::Outcome {
        state_hash: operation.state_hash.0.to_string(),
        diff_digest: operation.diff.digest.to_string(),
        gas_used: operation.gas_used,
        result: show_result(registry, operation),
        events: operation.events.iter().map(|event| show_event(registry, event)).collect(),
    }
}

/// A function by its name, or by its hash where this program does not know it.
pub(crate) fn label(registry: &Registry, function: &FunctionHash) -> String {
    registry.function(function).map_or_else(|| function.to_string(), keelstone_execution::Entry::label)
}

/// The JSON of an operation that is proven. Nothing is said beside what the proof says.
pub(crate) fn show_operation_proof(registry: &Registry, proof: &OperationProof) -> api::OperationAnswer {
    let function = proof.operation.function;
    api::OperationAnswer {
        chain_id: proof.chain_id.to_string(),
        bundle: proof.together.bundle().to_string(),
        hook: When::of(&proof.together.bundle()).map(|when| when.name().to_owned()),
        by: proof.together.by().map(|id| id.to_string()),
        operation: proof.index(),
        block: proof.block.0,
        function: label(registry, &function),
        args: proof.args.to_string(),
        outcome: show_outcome(registry, &proof.operation),
        session: proof.together.session().to_string(),
        sequence: proof.sequence,
        before: proof.before.0.to_string(),
        height: proof.height.0,
        root: proof.root.0.to_string(),
        hasher: proof.hasher.to_string(),
        proof: hex::encode(proof.to_bytes()),
    }
}

fn show_failure(failure: &BundleFailure) -> api::FailureText {
    api::FailureText {
        operation: failure.operation,
        code: failure.code,
        reason: failure.reason.to_string(),
        expected: failure.expected.map(|hash| hash.to_string()),
        actual: failure.actual.map(|hash| hash.to_string()),
    }
}

/// The names of what a batch of an async bundle can come to.
pub(crate) const PROGRESS_NAMES: [&str; 5] = ["advanced", "complete", "stopped", "expired", "abandoned"];

/// What a batch of an async bundle came to, in a word.
pub(crate) fn progress_name(progress: &Progress) -> &'static str {
    let [advanced, complete, stopped, expired, abandoned] = PROGRESS_NAMES;
    match progress {
        Progress::Advanced { is_complete: false, .. } => advanced,
        Progress::Advanced { is_complete: true, .. } => complete,
        Progress::Stopped(_) => stopped,
        Progress::Expired => expired,
        Progress::Abandoned => abandoned,
    }
}

/// What a bundle is called where its operations are asked for: by its identity, or, of what the chain does by itself, by when in
/// a block that is.
pub(crate) fn named(text: &str) -> Result<Hash, DecodeError> {
    match When::ALL.into_iter().find(|when| when.name() == text) {
        Some(when) => Ok(when.bundle().0),
        None => Hash::from_hex(text),
    }
}

/// The function that a block called by itself, if it was not for an async bundle.
// spec: BLOCK-8
pub(crate) fn hook_of(continuation: &Continuation) -> Option<(When, FunctionHash)> {
    let function = match &continuation.progress {
        Progress::Stopped(failure) => Some(failure.function),
        _ => continuation.operations().first().map(|operation| operation.function),
    };
    When::of(&continuation.bundle).zip(function)
}

/// The JSON of what a block did for an async bundle, or by itself.
pub(crate) fn show_continuation(registry: &Registry, continuation: &Continuation) -> api::Continuation {
    let hook = hook_of(continuation);
    let failure = match &continuation.progress {
        Progress::Stopped(failure) => Some(show_failure(failure)),
        _ => None,
    };
    api::Continuation {
        bundle: continuation.bundle.to_string(),
        hook: hook.map(|(when, _)| when.name().to_owned()),
        function: hook.map(|(_, function)| label(registry, &function)),
        by: continuation.by.map(|id| id.to_string()),
        progress: progress_name(&continuation.progress).to_owned(),
        first: continuation.first,
        operations: u32::try_from(continuation.operations().len()).unwrap_or(u32::MAX),
        state_hash: continuation.state_hash.0.to_string(),
        gas_used: continuation.gas_used,
        failure,
        events: continuation.events().map(|(_, event)| show_event(registry, event)).collect(),
    }
}

/// The JSON of an async bundle's checkpoint.
pub(crate) fn show_bundle(id: &BundleId, record: &BundleRecord) -> api::BundleStatus {
    let (status, failure) = match &record.status {
        Status::Running => ("running", None),
        Status::Stopped(StopReason::Failed(failure)) => ("stopped", Some(show_failure(failure))),
        Status::Stopped(StopReason::Expired) => {
            let (operation, reason) = (record.current_operation, "its last height went by".to_owned());
            ("stopped", Some(api::FailureText { operation, code: 0, reason, expected: None, actual: None }))
        }
        Status::Complete => ("complete", None),
        Status::RolledBack => ("rolled_back", None),
        Status::Abandoned => ("abandoned", None),
    };
    api::BundleStatus {
        id: id.to_string(),
        owner: record.owner.to_string(),
        session: record.session.to_string(),
        status: status.to_owned(),
        failure,
        current_operation: record.current_operation,
        total_operations: record.total_operations,
        is_complete: record.is_complete(),
        state_hash: record.state_hash.0.to_string(),
        operations: record.operations.to_string(),
        revision: record.revision,
        undo_entries: record.undo_entries,
        submitted_height: record.submitted.0,
        last_height: record.last_height.0,
        updated_height: record.updated.0,
    }
}

fn show_result(registry: &Registry, operation: &OperationReceipt) -> Value {
    let shape = registry.function(&operation.function).map(|entry| (entry.output)());
    let value = shape.and_then(|shape| call::decode(&shape, &operation.result).ok());
    value.unwrap_or_else(|| json!(hex::encode(&*operation.result)))
}

/// An event's JSON: its name and its fields, or its bytes where this program does not know it.
pub(crate) fn show_event(registry: &Registry, event: &keelstone_execution::Emitted) -> Value {
    let shape = registry.event_shape(&event.name);
    let fields = shape.and_then(|shape| call::decode(&shape, &event.data).ok());
    json!({ "name": event.name, "data": fields.unwrap_or_else(|| json!(hex::encode(&*event.data))) })
}

/// A signed transaction's parts for people and programs.
pub(crate) fn show_signed(registry: &Registry, signed: &SignedTransaction) -> Value {
    let transaction = &signed.transaction;
    let operations: Vec<_> =
        transaction.bundle.operations().iter().map(|operation| show_operation(registry, operation)).collect();
    json!({
        "id": signed.id(),
        "chain_id": transaction.chain_id.as_str(),
        "sender": transaction.sender,
        "nonce": transaction.nonce,
        "expiry_height": transaction.expiry_height.0,
        "session": transaction.session,
        "operations": operations,
        "transaction": hex::encode(signed.to_bytes()),
    })
}
