//! `keelstone bundle prove-operation|verify-operation`: that one operation took effect, shown without the rest.
//!
//! The file is the answer of the API in JSON. Everything it says is in the proof it holds, is rendered from that again and
//! compared: so what a person reads is what was proven. Form and limits: `docs/bundles.md`.

use super::parsed;
use crate::api::{HookAt, OperationAnswer};
use crate::audit::decoded;
use crate::bundle::{named, show_operation_proof};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::newfile;
use crate::out::{Ink, grouped, short};
use crate::strict_json;
use clap::Subcommand;
use keelstone_codec::{Height, Root};
use keelstone_ledger::OperationProof;
use keelstone_tree::{Blake3, HashKind, Sha256};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Prove that one operation of a bundle took effect, without the rest of the bundle
    ProveOperation {
        /// The bundle's identity: that of its transaction; or `begin_block`, `end_block`, `before_transaction` or
        /// `after_transaction`, for what the chain did by itself
        id: String,
        /// The operation's index in the bundle, from 0; or of what the chain called then
        operation: u32,
        /// The block in which the chain did it by itself
        #[arg(long, value_name = "HEIGHT")]
        block: Option<u64>,
        /// The transaction around which the chain did it by itself
        #[arg(long, value_name = "ID", conflicts_with = "block")]
        transaction: Option<String>,
        /// The root you trust
        #[arg(long)]
        root: Option<String>,
        /// Where to write the proof, for somebody else
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Check such a proof, with no chain at hand
    VerifyOperation {
        /// What `prove-operation` wrote; `-` for standard input
        file: PathBuf,
        /// The root you trust; without it the one in the file is used, which proves nothing about where it is from
        #[arg(long)]
        root: Option<String>,
    },
}

impl Action {
    /// Whether a chain is asked.
    pub(super) fn asks(&self) -> bool {
        matches!(self, Self::ProveOperation { .. })
    }
}

pub(super) fn run(action: Action, context: &Context<'_>) -> Result<Exit, Failure> {
    let (answer, root, out) = match action {
        Action::ProveOperation { id, operation, block, transaction, root, out } => {
            let id = named(&id).map_err(|error| Failure::usage(format!("{id}: {error}")))?;
            let around = transaction.as_deref().map(parsed).transpose()?;
            let at = block.map(|block| HookAt::Block(Height(block))).or(around.map(HookAt::Transaction));
            let answer = context.chain()?.operation_proof(&id, operation, at)?;
            let is_asked = match at {
                Some(HookAt::Block(block)) => block.0 == answer.block,
                Some(HookAt::Transaction(id)) => answer.by.as_deref() == Some(&*id.to_string()),
                None => true,
            };
            if (&answer.bundle, answer.operation, is_asked) != (&id.to_string(), operation, true) {
                let (bundle, found, block) = (&answer.bundle, answer.operation, answer.block);
                let what = format!("the answer is of operation {found} of bundle {bundle} in block {block}");
                return Err(Failure::integrity(what));
            }
            (answer, root, out)
        }
        Action::VerifyOperation { file, root } => {
            let answer = strict_json::parse(&read_input(&file)?)
                .map_err(|error| Failure::usage(format!("{} is no proof of an operation: {error}", file.display())))?;
            (answer, root, None)
        }
    };
    let root = root.map(|root| Root::from_hex(&root)).transpose();
    let root = root.map_err(|error| Failure::usage(format!("--root: {error}")))?;
    verify(&answer, root, context)?;
    if let Some(file) = &out {
        newfile::write(file, format!("{}\n", json!(answer)).as_bytes())?;
    }
    show(&answer, root.is_some(), context);
    if let Some(file) = &out {
        context.out.row("written", file.display());
    }
    Ok(Exit::Ok)
}

/// Checks that the proof holds, and that the answer says what it proves and nothing else.
// spec: HISTORY-10
fn verify(answer: &OperationAnswer, root: Option<Root>, context: &Context<'_>) -> Result<(), Failure> {
    let proof: OperationProof = decoded("the proof", &answer.proof)?;
    if let Some(root) = root.filter(|root| *root != proof.root) {
        return Err(Failure::integrity(format!("the proof is under root {}, not under {root}", proof.root)));
    }
    let verdict = match proof.hasher {
        HashKind::Blake3 => proof.verify::<Blake3>(),
        HashKind::Sha256 => proof.verify::<Sha256>(),
    };
    verdict.map_err(|error| Failure::integrity(error.to_string()))?;
    match show_operation_proof(&context.application.registry, &proof) == *answer {
        true => Ok(()),
        false => Err(Failure::integrity("the answer says something else than what it proves")),
    }
}

fn show(answer: &OperationAnswer, root_given: bool, context: &Context<'_>) {
    let out = context.out;
    out.say(out.ink(Ink::Good, "✓ the operation took effect in the chain of this root"));
    let bundle = answer.hook.clone().unwrap_or_else(|| short(&answer.bundle).to_string());
    out.row("operation", format_args!("{} of {bundle}", grouped(u64::from(answer.operation))));
    out.row("function", &answer.function);
    out.row("block", grouped(answer.block));
    out.row("session", format_args!("{}, operation {}", short(&answer.session), grouped(answer.sequence)));
    out.row("link", format_args!("{} -> {}", short(&answer.before), short(&answer.outcome.state_hash)));
    let source = if root_given { "given" } else { "from the proof: trust it on other grounds" };
    out.row("root", format_args!("{} ({source})", answer.root));
    let mut shown = json!(answer);
    // That the root is of this height is in no proof.
    if let Some(height) = shown.as_object_mut().and_then(|members| members.shift_remove("height")) {
        shown["claimed"] = json!({ "height": height });
    }
    shown["valid"] = true.into();
    shown["root_given"] = root_given.into();
    out.emit(&shown);
}
