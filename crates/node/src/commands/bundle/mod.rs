//! `keelstone bundle submit|status|list|resume|retry|cancel`: bundles that run in batches over several blocks; and what is
//! done with any bundle where no store is at hand.

mod offline;
mod operation;

use super::tx::{self, Patience, settle, sign};
use crate::api::{BundleStatus, Chain};
use crate::bundle::{Batches, Plan};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::out::{Ink, Out, grouped, short};
use crate::strict_json;
use clap::{Args, Subcommand};
use keelstone_codec::Hash;
use keelstone_execution::bundles::{Abandon, BundleId, Resume, Retry, RollBack};
use keelstone_execution::{Function, Mode, Operation, list_root};
use keelstone_ledger::{SecretKey, SignedTransaction, TxId};
use offline::Source;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Build bundles and foresee what they come to; submit async ones and decide over those in flight
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Offline(offline::Action),
    #[command(flatten)]
    Operation(operation::Action),
    /// Submit the operations of a JSON file in batches, or a bundle as it was built, and wait for its end
    Submit {
        /// The file, as `tx send` takes it, or what `build` and `expect` wrote; `-` for standard input
        file: PathBuf,
        #[command(flatten)]
        sender: Sender,
        /// The last height at which the chain goes on with it
        #[arg(long)]
        last_height: Option<u64>,
        /// Keep others off the keys it writes; takes the capability bundles.hold
        #[arg(long)]
        hold: bool,
        /// Return once it is submitted
        #[arg(long)]
        no_wait: bool,
    },
    /// Show where a bundle stands
    Status {
        /// Its identity: that of the transaction which submitted it
        id: String,
    },
    /// List the bundles in flight
    List,
    /// Let a stopped bundle go on, or hurry one that runs
    Resume {
        /// Its identity
        id: String,
        #[command(flatten)]
        sender: Sender,
    },
    /// Replace an operation that did not take effect, and go on
    Retry {
        /// Its identity
        id: String,
        /// All operations as they are to be: the submitted file with one of them corrected
        file: PathBuf,
        /// The index of the corrected operation
        #[arg(long)]
        operation: u32,
        #[command(flatten)]
        sender: Sender,
    },
    /// Take back what a bundle did; refused if others changed its keys since
    Cancel {
        /// Its identity
        id: String,
        /// End it and leave what it did
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        sender: Sender,
    },
}

#[derive(Debug, Args)]
struct Sender {
    /// The name of the key to sign with
    #[arg(long)]
    from: String,
    /// Seconds to wait
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

impl Sender {
    fn key(&self, context: &Context<'_>) -> Result<SecretKey, Failure> {
        context.keys().load(&self.from)
    }
}

impl Options {
    /// Whether a chain may be asked.
    pub(crate) fn asks(&self) -> bool {
        match &self.action {
            Action::Offline(action) => action.asks(),
            Action::Operation(action) => action.asks(),
            Action::Submit { .. }
            | Action::Status { .. }
            | Action::List
            | Action::Resume { .. }
            | Action::Retry { .. }
            | Action::Cancel { .. } => true,
        }
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    match options.action {
        Action::Offline(action) => offline::run(action, context),
        Action::Operation(action) => operation::run(action, context),
        Action::Submit { file, sender, last_height, hold, no_wait } => match Source::parse(&read_input(&file)?)? {
            Source::Plan(mut plan) => {
                let batches = plan.batches.get_or_insert_with(Batches::default);
                batches.last_height = last_height.or(batches.last_height);
                batches.hold |= hold;
                submit(&plan, &sender, no_wait, context)
            }
            _ if last_height.is_some() || hold => {
                Err(Failure::usage("the file says already how it is run: no --last-height, no --hold"))
            }
            Source::Signed(signed) => submit_built(&signed, &sender, no_wait, context),
            Source::Unsigned(transaction) => {
                let signed = tx::signed_with(transaction, &sender.key(context)?, &sender.from)?;
                submit_built(&signed, &sender, no_wait, context)
            }
        },
        Action::Status { id } => {
            let status = context.chain()?.bundle(&parsed(&id)?)?;
            show(&status, context.out);
            context.out.emit(&status);
            Ok(Exit::Ok)
        }
        Action::List => {
            let all = context.chain()?.bundles()?;
            for status in &all {
                let (done, total) = (grouped(u64::from(status.current_operation)), status.total_operations);
                let of = format_args!("{} {done} of {}", status.status, grouped(u64::from(total))).to_string();
                context.out.row(&status.id, of);
            }
            context.out.emit(&all);
            Ok(Exit::Ok)
        }
        Action::Resume { id, sender } => call(&id, |bundle| Operation::of(&Resume { bundle }), &sender, context),
        Action::Retry { id, file, operation, sender } => retry(&id, &file, operation, &sender, context),
        Action::Cancel { id, keep: false, sender } => {
            call(&id, |bundle| Operation::of(&RollBack { bundle }), &sender, context)
        }
        Action::Cancel { id, keep: true, sender } => {
            call(&id, |bundle| Operation::of(&Abandon { bundle }), &sender, context)
        }
    }
}

fn plan(file: &Path) -> Result<Plan, Failure> {
    strict_json::parse(&read_input(file)?).map_err(|error| Failure::usage(format!("the bundle: {error}")))
}

fn parsed(id: &str) -> Result<Hash, Failure> {
    Hash::from_hex(id).map_err(|error| Failure::usage(format!("{id}: {error}")))
}

fn submit(plan: &Plan, sender: &Sender, no_wait: bool, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain = context.chain()?;
    let key = sender.key(context)?;
    let transaction = tx::filled(plan, key.public(), Some(&*chain), context)?;
    sent(&*chain, &transaction.sign(&key), no_wait, Duration::from_secs(sender.timeout), context)
}

/// Sends a bundle as it was built.
fn submit_built(
    signed: &SignedTransaction,
    sender: &Sender,
    no_wait: bool,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let (chain, limit) = (context.chain()?, Duration::from_secs(sender.timeout));
    if *signed.transaction.bundle.mode() == Mode::Sync {
        return tx::submit(&*chain, signed, (!no_wait).then_some(limit), context);
    }
    sent(&*chain, signed, no_wait, limit, context)
}

/// Sends a signed async bundle, and shows where it stands.
fn sent(
    chain: &dyn Chain,
    signed: &SignedTransaction,
    no_wait: bool,
    limit: Duration,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let id = signed.id();
    settle(chain, signed, limit)?;
    let status = match no_wait {
        true => chain.bundle(&id.0).map_err(|refusal| tx::unknown(&id, refusal))?,
        false => settled(chain, &id, limit)?,
    };
    show(&status, context.out);
    context.out.emit(&status);
    Ok(if status.status == "stopped" { Exit::Refused } else { Exit::Ok })
}

/// Asks until the bundle of a transaction no longer runs.
fn settled(chain: &dyn Chain, id: &TxId, limit: Duration) -> Result<BundleStatus, Failure> {
    let mut patience = Patience::new(limit);
    loop {
        match chain.bundle(&id.0) {
            Ok(status) if status.status != "running" => return Ok(status),
            Ok(_) if patience.waits(Duration::ZERO) => {}
            Ok(status) => {
                let (done, total) = (status.current_operation, status.total_operations);
                let message = format!("bundle {id} runs on: {done} of {total} operations after {} s", limit.as_secs());
                return Err(Failure::error(message).hint("keelstone bundle status ID shows how far it is"));
            }
            Err(refusal) if patience.bears(&refusal) => {}
            Err(refusal) => return Err(tx::unknown(id, refusal)),
        }
    }
}

/// Runs one function over a bundle in a transaction of its own, and shows where the bundle stands then.
fn call(
    id: &str,
    operation: impl FnOnce(BundleId) -> Operation,
    sender: &Sender,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let id = parsed(id)?;
    let chain = context.chain()?;
    let operation = operation(BundleId(id));
    // A retry is of the session that the bundle runs in.
    let session = match operation.function == Retry::hash() {
        true => Some(chain.bundle(&id)?.session),
        false => None,
    };
    let plan = json!({
        "session": session,
        "operations": [{ "call": operation.function.to_string(), "args_hex": hex::encode(&*operation.args) }],
    });
    let signed = sign(plan.to_string().as_bytes(), &sender.from, Some(&*chain), context)?;
    let transaction = settle(&*chain, &signed, Duration::from_secs(sender.timeout))?;
    if let Some(failure) = &transaction.receipt.failure {
        return Err(tx::failed(failure));
    }
    let status = chain.bundle(&id).map_err(|refusal| tx::unknown(&signed.id(), refusal))?;
    show(&status, context.out);
    context.out.emit(&status);
    Ok(Exit::Ok)
}

fn retry(id: &str, file: &Path, at: u32, sender: &Sender, context: &Context<'_>) -> Result<Exit, Failure> {
    let operations = plan(file)?.operations(&context.application.registry)?;
    let replacement = operations.get(at as usize).cloned();
    let replacement = replacement.ok_or_else(|| Failure::usage(format!("the file has no operation {at}")))?;
    let root = list_root(&operations.iter().map(Operation::list_hash).collect::<Vec<_>>());
    let revision = context.chain()?.bundle(&parsed(id)?)?.revision.saturating_add(1);
    let retry = |bundle| Operation::of(&Retry { bundle, operation: at, replacement, revision, operations: root });
    call(id, retry, sender, context)
}

fn show(status: &BundleStatus, out: &Out) {
    out.row("bundle", &status.id);
    let ink = if status.status == "stopped" { Ink::Bad } else { Ink::Good };
    out.row("status", out.ink(ink, &status.status));
    let (done, total) = (grouped(u64::from(status.current_operation)), grouped(u64::from(status.total_operations)));
    out.row("operations", format_args!("{done} of {total}"));
    out.row("link", short(&status.state_hash));
    out.row("last height", grouped(status.last_height));
    if let Some(failure) = &status.failure {
        out.row("stopped at", format_args!("operation {}: {}", failure.operation, failure.reason));
    }
}
