//! `keelstone tx build|sign|send|show`: transactions from JSON files with calls by name.

use super::query::show_outcomes;
use crate::api::{self, Chain, FailureText, Refusal};
use crate::bundle::{Facts, Plan, show_signed};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::out::{Ink, Out, bytes, grouped, short};
use crate::strict_json::{self, JsonError};
use clap::{Args, Subcommand};
use keelstone_codec::{ChainId, Decode as _, Encode as _, unhex};
use keelstone_execution::PublicKey;
use keelstone_ledger::{SecretKey, SignedTransaction, Transaction, TxId};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How many blocks ahead a transaction expires if its file does not say.
pub(super) const EXPIRY_BLOCKS: u64 = 100;
/// How long a command that sends a transaction waits for its block.
const WAIT: Duration = Duration::from_secs(30);
/// How long it waits before it asks again, at first. Each time it is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// And at most.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Build, sign and send transactions
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Turn a JSON file into the bytes to be signed
    Build {
        /// The file; `-` for standard input
        file: PathBuf,
        /// The sender's public key, or the name of a key here
        #[arg(long)]
        from: String,
    },
    /// Turn a JSON file, or what `build` printed, into a signed transaction
    Sign {
        /// The file; `-` for standard input
        file: PathBuf,
        /// The name of the key to sign with
        #[arg(long)]
        from: String,
    },
    /// Send what `sign` printed, or sign and send a JSON file
    Send {
        /// The file; `-` for standard input
        file: PathBuf,
        /// The name of the key to sign with, if the file is not signed
        #[arg(long)]
        from: Option<String>,
        /// Return once it is taken in, without waiting for its block
        #[arg(long)]
        no_wait: bool,
        /// Seconds to wait for its block
        #[arg(long, default_value_t = 30)]
        timeout: u64,
        /// Send nothing: show what it would come to if it came now. Takes no passphrase; `--from` may also be a public key
        #[arg(long, conflicts_with_all = ["no_wait", "timeout"])]
        dry_run: bool,
    },
    /// Show what a signed transaction says
    Show {
        /// The file; `-` for standard input
        file: PathBuf,
    },
}

impl Options {
    /// Whether a chain may be asked. One that was signed is shown as it is.
    pub(crate) fn asks(&self) -> bool {
        !matches!(self.action, Action::Show { .. })
    }
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    match options.action {
        Action::Build { file, from } => build(&file, &from, context),
        Action::Sign { file, from } => {
            let signed = sign(&read_input(&file)?, &from, None, context)?;
            print(&signed, context);
            Ok(Exit::Ok)
        }
        Action::Send { file, from, dry_run: true, .. } => dry_run(&file, from.as_deref(), context),
        Action::Send { file, from, no_wait, timeout, dry_run: false } => {
            let limit = (!no_wait).then(|| Duration::from_secs(timeout));
            send(&file, from.as_deref(), limit, context)
        }
        Action::Show { file } => {
            let signed = signed(&read_input(&file)?)?
                .ok_or_else(|| Failure::usage("this is not a signed transaction: no \"transaction\" in it"))?;
            signed.verify().map_err(|error| Failure::integrity(error.to_string()))?;
            print(&signed, context);
            Ok(Exit::Ok)
        }
    }
}

fn build(file: &Path, from: &str, context: &Context<'_>) -> Result<Exit, Failure> {
    let transaction = plan(&read_input(file)?, sender(from, context)?, None, context)?;
    let unsigned = hex::encode(transaction.to_bytes());
    context.out.row("transaction", transaction.id());
    context.out.row("unsigned", &unsigned);
    context.out.emit(&json!({ "id": transaction.id(), "unsigned": unsigned }));
    Ok(Exit::Ok)
}

/// Whose a transaction is to be: a public key, or the name of a key here.
pub(super) fn sender(from: &str, context: &Context<'_>) -> Result<PublicKey, Failure> {
    match PublicKey::from_hex(from) {
        Ok(key) => Ok(key),
        Err(_) => Ok(context.keys().public(from)?),
    }
}

/// The transaction a JSON file plans. What it leaves open is asked of `chain`, which is opened only if needed.
fn plan(
    text: &[u8],
    sender: PublicKey,
    chain: Option<&dyn Chain>,
    context: &Context<'_>,
) -> Result<Transaction, Failure> {
    let plan: Plan = strict_json::parse(text).map_err(|error| unread(&error, text))?;
    filled(&plan, sender, chain, context)
}

/// The transaction of a plan. What it leaves open is asked of `chain`, which is opened only if needed.
pub(super) fn filled(
    plan: &Plan,
    sender: PublicKey,
    chain: Option<&dyn Chain>,
    context: &Context<'_>,
) -> Result<Transaction, Failure> {
    let registry = &context.application.registry;
    if let (Some(chain_id), Some(nonce), Some(expiry_height)) = (&plan.chain_id, plan.nonce, plan.expiry_height) {
        return plan.build(registry, sender, &Facts { chain_id: chain_id.clone(), nonce, expiry_height });
    }
    let opened;
    let chain = match chain {
        Some(chain) => chain,
        None => {
            opened = context.chain()?;
            &*opened
        }
    };
    let (status, account) = (chain.status()?, chain.account(&sender)?);
    context.warn_of_another_interface(&status);
    let chain_id = ChainId::new(&status.chain_id).map_err(|error| Failure::error(error.to_string()))?;
    let expiry_height = status.height.saturating_add(EXPIRY_BLOCKS);
    plan.build(registry, sender, &Facts { chain_id, nonce: account.nonce, expiry_height })
}

/// Signs a plan, or what `build` printed.
pub(super) fn sign(
    text: &[u8],
    from: &str,
    chain: Option<&dyn Chain>,
    context: &Context<'_>,
) -> Result<SignedTransaction, Failure> {
    let key = context.keys().load(from)?;
    let transaction = match member(text, "unsigned")? {
        Some(bytes) => unsigned(&bytes)?,
        None => plan(text, key.public(), chain, context)?,
    };
    signed_with(transaction, &key, from)
}

fn unsigned(bytes: &[u8]) -> Result<Transaction, Failure> {
    Transaction::from_bytes(bytes).map_err(|error| Failure::usage(format!("unsigned: {error}")))
}

/// Signs a transaction with the key of its sender, which is called `name` here.
pub(super) fn signed_with(transaction: Transaction, key: &SecretKey, name: &str) -> Result<SignedTransaction, Failure> {
    if transaction.sender != key.public() {
        let message = format!("the transaction is of {}, the key {name} is {}", transaction.sender, key.public());
        return Err(Failure::usage(message));
    }
    Ok(transaction.sign(key))
}

/// The signed transaction in a text, if it holds one.
fn signed(text: &[u8]) -> Result<Option<SignedTransaction>, Failure> {
    let Some(bytes) = member(text, "transaction")? else { return Ok(None) };
    let signed = SignedTransaction::from_bytes(&bytes);
    signed.map(Some).map_err(|error| Failure::usage(format!("transaction: {error}")))
}

/// Why a file is none that `tx` takes. What commands print for people is told from it, since people are led to hand it on.
fn unread(error: &JsonError, text: &[u8]) -> Failure {
    let failure = Failure::usage(format!("the transaction: {error}"));
    match text.trim_ascii_start().starts_with(b"{") {
        true => failure,
        false => failure.hint(
            "a file has the JSON of a transaction, or what tx build, tx sign or bundle build print with --json: without it \
             they print for people",
        ),
    }
}

/// The bytes of a hexadecimal member of a JSON object.
fn member(text: &[u8], name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let value: Value = strict_json::parse(text).map_err(|error| unread(&error, text))?;
    let digits = value.get(name).and_then(Value::as_str);
    digits.map(|digits| unhex(digits).map_err(|error| Failure::usage(format!("{name}: {error}")))).transpose()
}

fn print(signed: &SignedTransaction, context: &Context<'_>) {
    let shown = show_signed(&context.application.registry, signed);
    context.out.row("transaction", signed.id());
    context.out.row("sender", signed.transaction.sender);
    context.out.row("nonce", signed.transaction.nonce);
    for operation in shown["operations"].as_array().into_iter().flatten() {
        let name = operation["function"].as_str().unwrap_or_default();
        context.out.row("operation", format_args!("{} {}", context.out.ink(Ink::Value, name), operation["args"]));
    }
    context.out.row("signed", shown["transaction"].as_str().unwrap_or_default());
    context.out.emit(&shown);
}

fn send(file: &Path, from: Option<&str>, wait: Option<Duration>, context: &Context<'_>) -> Result<Exit, Failure> {
    let text = read_input(file)?;
    let chain = context.chain()?;
    let signed = match (signed(&text)?, from) {
        (Some(signed), _) => signed,
        (None, Some(from)) => sign(&text, from, Some(&*chain), context)?,
        (None, None) => return Err(Failure::usage("the file is not signed: give --from KEY")),
    };
    submit(&*chain, &signed, wait, context)
}

/// Shows what a transaction would come to if it were sent now.
fn dry_run(file: &Path, from: Option<&str>, context: &Context<'_>) -> Result<Exit, Failure> {
    let text = read_input(file)?;
    let chain = context.chain()?;
    let transaction = match (signed(&text)?, member(&text, "unsigned")?, from) {
        (Some(signed), ..) => signed.transaction,
        (None, Some(bytes), _) => unsigned(&bytes)?,
        (None, None, Some(from)) => plan(&text, sender(from, context)?, Some(&*chain), context)?,
        (None, None, None) => {
            return Err(Failure::usage("the file does not say who sends it: give --from KEY"));
        }
    };
    let said = chain.dry_run(&transaction.to_bytes())?;
    let (receipt, out) = (&said.receipt, context.out);
    out.row("transaction", &receipt.id);
    out.row("block", format_args!("{}, if it comes next", grouped(receipt.height)));
    show_outcomes(receipt, out);
    for continuation in &said.continuations {
        let (Some(hook), Some(function)) = (&continuation.hook, &continuation.function) else { continue };
        let failed = continuation.failure.as_ref().map_or_else(String::new, |failure| format!(": {}", failure.reason));
        out.row(hook, format_args!("{function}, gas {}{failed}", grouped(continuation.gas_used)));
    }
    out.row("gas", grouped(receipt.gas_used));
    out.row("changes", format_args!("{} entries, {}", grouped(said.entries_changed), bytes(said.bytes_changed)));
    let exit = show_end(receipt.failure.as_ref(), ["would succeed", "would fail"], "; nothing was sent", out);
    out.emit(&said);
    Ok(exit)
}

/// Shows how a bundle ended, or would, and says what that is for whoever asked.
fn show_end(failure: Option<&FailureText>, [good, bad]: [&str; 2], more: &str, out: &Out) -> Exit {
    match failure {
        None => {
            out.row("outcome", out.ink(Ink::Good, format_args!("{good}{more}")));
            Exit::Ok
        }
        Some(FailureText { operation, reason, .. }) => {
            out.row("outcome", out.ink(Ink::Bad, format_args!("{bad} at operation {operation}: {reason}{more}")));
            Exit::Refused
        }
    }
}

/// Signs calls with a key of this home, sends them as one bundle, and says what became of it.
pub(super) fn call(calls: Value, from: &str, chain: &dyn Chain, context: &Context<'_>) -> Result<Exit, Failure> {
    let text = json!({ "operations": calls }).to_string();
    let signed = sign(text.as_bytes(), from, Some(chain), context)?;
    submit(chain, &signed, Some(WAIT), context)
}

/// Sends a transaction, and waits for its block if so asked.
pub(super) fn submit(
    chain: &dyn Chain,
    signed: &SignedTransaction,
    wait: Option<Duration>,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let id = signed.id();
    let out = context.out;
    if let Some(wait) = wait {
        chain.hurry(wait);
    }
    hand_in(chain, signed)?;
    out.row("transaction", id);
    let Some(wait) = wait else {
        out.row("outcome", "taken in");
        out.emit(&json!({ "id": id }));
        return Ok(Exit::Ok);
    };
    let transaction = wait_for(chain, &id, wait)?;
    let receipt = &transaction.receipt;
    out.row("block", grouped(receipt.height));
    for outcome in &receipt.outcomes {
        out.row("link", short(&outcome.state_hash));
    }
    show_outcomes(receipt, out);
    let exit = show_end(receipt.failure.as_ref(), ["succeeded", "failed"], "", out);
    out.emit(&transaction);
    Ok(exit)
}

/// Has the chain take in a transaction, and asks until it is in a block.
///
/// # Errors
/// Once it is taken in no failure says that nothing was changed, and each names the transaction.
pub(super) fn settle(
    chain: &dyn Chain,
    signed: &SignedTransaction,
    limit: Duration,
) -> Result<api::Transaction, Failure> {
    chain.hurry(limit);
    hand_in(chain, signed)?;
    wait_for(chain, &signed.id(), limit)
}

/// Has the chain take in a transaction. Who fails to say whether it did may have it all the same.
fn hand_in(chain: &dyn Chain, signed: &SignedTransaction) -> Result<(), Failure> {
    let id = signed.id();
    chain.submit(&signed.to_bytes()).map(drop).map_err(|refusal| match refusal {
        Refusal::Failed(why) => Failure::error(format!("{id} may have been taken in or not: {why}"))
            .hint(format!("keelstone query tx {id}")),
        refusal => refusal.into(),
    })
}

/// Asks until a transaction that was taken in is in a block.
fn wait_for(chain: &dyn Chain, id: &TxId, limit: Duration) -> Result<api::Transaction, Failure> {
    let mut patience = Patience::new(limit);
    loop {
        match chain.transaction(&id.0) {
            Ok(transaction) => return Ok(transaction),
            Err(refusal) if patience.bears(&refusal) => {}
            Err(Refusal::NotFound(_)) => {
                let message = format!("{id} was taken in, but is in no block after {} s", limit.as_secs());
                return Err(Failure::error(message).hint(format!("keelstone query tx {id}")));
            }
            Err(refusal) => return Err(unknown(id, refusal)),
        }
    }
}

/// How long is asked what became of something: ever less often, and not for ever.
pub(super) struct Patience {
    started: Instant,
    limit: Duration,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { started: Instant::now(), limit, pause: PAUSE_MIN }
    }

    /// Waits, at least so long. False if there is no time left for it.
    pub(super) fn waits(&mut self, at_least: Duration) -> bool {
        let left = self.limit.saturating_sub(self.started.elapsed());
        std::thread::sleep(self.pause.max(at_least).min(left));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        !left.is_zero()
    }

    /// Waits if what was refused now may be answered later. False if not, or if there is no time left.
    pub(super) fn bears(&mut self, refusal: &Refusal) -> bool {
        match refusal {
            Refusal::NotFound(_) | Refusal::Busy(_) => self.waits(Duration::ZERO),
            Refusal::TooMany { after, .. } => self.waits(*after),
            _ => false,
        }
    }
}

/// Why it is not known what became of a transaction that was taken in.
pub(super) fn unknown(id: &TxId, refusal: Refusal) -> Failure {
    let exit = if matches!(refusal, Refusal::Damaged(_)) { Exit::Integrity } else { Exit::Error };
    let message = format!("{id} was taken in, but what became of it could not be asked: {refusal}");
    Failure::new(exit, message).hint(format!("keelstone query tx {id}"))
}

/// Why the bundle of a transaction failed, as what a command ends with.
pub(super) fn failed(failure: &FailureText) -> Failure {
    let FailureText { operation, code, reason, .. } = failure;
    Failure::new(Exit::Refused, format!("failed at operation {operation}: {reason} (code {code})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::testing::answering;
    use keelstone_codec::Hash;

    /// A transaction that was taken in may be in a block by now, whatever the node says to those who ask for it.
    #[test]
    fn no_failure_says_that_a_transaction_that_was_taken_in_changed_nothing() {
        let id = TxId(Hash([7; 32]));
        let wait = |answers| {
            let node = answering(answers, Duration::from_millis(200));
            wait_for(&node, &id, Duration::from_millis(100)).expect_err("it is never found")
        };
        for answers in [
            &["HTTP/1.1 429 X\r\nRetry-After: 1\r\n\r\n{\"error\":{\"code\":\"too_many\",\"message\":\"m\"}}"][..],
            &["HTTP/1.1 401 X\r\n\r\n{\"error\":{\"code\":\"unauthorized\",\"message\":\"m\"}}"],
            &["HTTP/1.1 400 X\r\n\r\n{\"error\":{\"code\":\"bad_request\",\"message\":\"m\"}}"],
            &["HTTP/1.1 404 X\r\n\r\n{\"error\":{\"code\":\"not_found\",\"message\":\"m\"}}"],
        ] {
            let failure = wait(answers);
            assert_eq!(failure.exit, Exit::Error, "{failure}");
            assert!(failure.message.starts_with(&format!("{id} was taken in")), "{failure}");
        }
    }

    /// A limit is one on all of the wait: on what a node asks for, too.
    #[test]
    fn a_node_that_wants_to_be_left_alone_for_longer_is_not_waited_for() {
        let node = answering(
            &["HTTP/1.1 429 X\r\nRetry-After: 20\r\n\r\n{\"error\":{\"code\":\"too_many\",\"message\":\"m\"}}"],
            Duration::from_secs(30),
        );
        let (started, limit) = (Instant::now(), Duration::from_secs(1));
        node.hurry(limit);
        wait_for(&node, &TxId(Hash([7; 32])), limit).expect_err("it is never answered");
        assert!(started.elapsed() < Duration::from_secs(10), "it waited for {:?}", started.elapsed());
    }

    /// A node that is asked too often is asked again.
    #[test]
    fn being_told_to_wait_does_not_end_the_wait_for_a_block() {
        let node = answering(
            &[
                "HTTP/1.1 429 X\r\n\r\n{\"error\":{\"code\":\"too_many\",\"message\":\"m\"}}",
                "HTTP/1.1 200 OK\r\n\r\n{\"id\":\"a\",\"sender\":\"b\",\"nonce\":0,\"expiry_height\":9,\"session\":null,\"operations\":[],\
                 \"transaction\":\"00\",\"place\":\"00\",\"receipt\":{\"id\":\"a\",\"height\":5,\"index\":0,\"succeeded\":true,\"gas_used\":1,\"outcomes\":[]}}",
            ],
            Duration::from_millis(200),
        );
        let found = wait_for(&node, &TxId(Hash([7; 32])), Duration::from_secs(20)).expect("found in the end");
        assert_eq!(found.receipt.height, 5);
    }
}
