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
use keelstone_codec::{Blob, ChainId, Encode as _, Hash, Height, StateHash};
use keelstone_execution::{Bundle, FunctionHash, Mode, Operation, PublicKey, Registry, SessionId};
use keelstone_ledger::{Receipt, SignedTransaction, Transaction, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A transaction before it is one: what is none is filled in by whoever sends it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// What it does.
    pub(crate) operations: Vec<Call>,
}

/// One operation by name.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
        let operation = |(index, call): (usize, &Call)| {
            call.build(registry)
                .map_err(|problem| Failure::usage(format!("operation {index}, {}: {problem}", call.call)))
        };
        let operations = self.operations.iter().enumerate().map(operation).collect::<Result<Vec<_>, _>>()?;
        Ok(Transaction {
            chain_id: self.chain_id.clone().unwrap_or_else(|| facts.chain_id.clone()),
            sender,
            nonce: self.nonce.unwrap_or(facts.nonce),
            expiry_height: Height(self.expiry_height.unwrap_or(facts.expiry_height)),
            session: self.session,
            bundle: Bundle::new(Mode::Sync, operations).map_err(|error| Failure::usage(error.to_string()))?,
        })
    }
}

impl Call {
    fn build(&self, registry: &Registry) -> Result<Operation, String> {
        let known = registry.find(&self.call);
        let function = match known {
            Some(entry) => entry.hash,
            None => Hash::from_hex(&self.call)
                .map(FunctionHash)
                .map_err(|_| "no such function; keelstone query functions lists them".to_owned())?,
        };
        let args = match (&self.args, &self.args_hex, known.or_else(|| registry.function(&function))) {
            (Some(_), Some(_), _) => return Err("give args or args_hex, not both".to_owned()),
            (None, Some(digits), _) => hex::decode(digits).map_err(|error| format!("args_hex: {error}"))?,
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
    }
}

/// A receipt's JSON.
pub(crate) fn show_receipt(registry: &Registry, receipt: &Receipt, height: Height, index: u32) -> api::Receipt {
    let failure = |operation, code, reason: &str, expected: Option<Hash>, actual: Option<Hash>| api::FailureText {
        operation,
        code,
        reason: reason.to_owned(),
        expected: expected.map(|hash| hash.to_string()),
        actual: actual.map(|hash| hash.to_string()),
    };
    let (outcomes, failure) = match &receipt.verdict {
        Verdict::Succeeded { operations, .. } => {
            let outcome = |operation: &keelstone_ledger::OperationReceipt| api::Outcome {
                state_hash: operation.state_hash.0.to_string(),
                diff_digest: operation.diff.digest.to_string(),
                result: show_result(registry, operation),
                events: operation.events.iter().map(|event| show_event(registry, event)).collect(),
            };
            (operations.iter().map(outcome).collect(), None)
        }
        Verdict::Failed(failed) => {
            let failed = failure(failed.operation, failed.code, &failed.reason, failed.expected, failed.actual);
            (Vec::new(), Some(failed))
        }
        Verdict::Refused { code, reason } => (Vec::new(), Some(failure(0, *code, reason, None, None))),
    };
    api::Receipt {
        id: receipt.transaction.to_string(),
        height: height.0,
        index,
        succeeded: receipt.succeeded(),
        gas_used: receipt.gas_used,
        failure,
        outcomes,
    }
}

fn show_result(registry: &Registry, operation: &keelstone_ledger::OperationReceipt) -> Value {
    let shape = registry.function(&operation.function).map(|entry| (entry.output)());
    let value = shape.and_then(|shape| call::decode(&shape, &operation.result).ok());
    value.unwrap_or_else(|| json!(hex::encode(&*operation.result)))
}

/// An event's JSON: its name and its fields, or its bytes where this program does not know it.
pub(crate) fn show_event(registry: &Registry, event: &keelstone_execution::Emitted) -> Value {
    let shape = registry.event_shape(&event.name);
    let fields = shape.and_then(|shape| call::decode(&shape, &event.data).ok());
    json!({ "name": event.name, "data": fields.unwrap_or_else(|| json!(hex::encode(&event.data))) })
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
