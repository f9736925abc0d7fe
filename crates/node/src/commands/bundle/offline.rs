//! `keelstone bundle build|witness|simulate|expect|prove|verify`: what a bundle comes to, with no store at hand.
//!
//! One question to the chain gives a witness; everything after it needs only files and this program's functions. Files are
//! those of `docs/bundles.md`: a plan in JSON, or a transaction's canonical bytes, signed or not.

use super::super::tx;
use crate::api;
use crate::bundle::{Facts, Plan, show_receipt, show_signed};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::out::{Ink, Out, bytes, grouped, short};
use crate::strict_json;
use clap::{Args, Subcommand, ValueEnum};
use keelstone_codec::{Blob, ChainId, Decode as _, Encode as _, Height, Root, Timestamp, unhex};
use keelstone_execution::{Meaning, PublicKey};
use keelstone_ledger::{
    BundleProof, BundleProofError, Foreseen, ForesightError, Setting, SignedTransaction, Transaction, Verdict, foresee,
    next_nonce, witness,
};
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256, Verified};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Turn a JSON file into a transaction's canonical bytes, to be signed
    Build {
        #[command(flatten)]
        bundle: Given,
        /// Where to write them; without it they are printed in hexadecimal
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Ask the chain for a witness: all it takes to run the bundle with no store
    Witness {
        #[command(flatten)]
        bundle: Given,
        /// Where to write it; without it, it is printed
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Run the bundle over a witness, and show every hash it comes to
    Simulate {
        #[command(flatten)]
        bundle: Given,
        /// What `witness` wrote
        #[arg(long)]
        witness: PathBuf,
    },
    /// Run the bundle over a witness, and make each operation insist on what it came to
    Expect {
        #[command(flatten)]
        bundle: Given,
        /// What `witness` wrote
        #[arg(long)]
        witness: PathBuf,
        /// What is insisted on
        #[arg(long, value_enum, default_value_t = Expectation::State)]
        meaning: Expectation,
        /// Where to write the unsigned transaction; without it, it is printed in hexadecimal
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Run the signed bundle over a witness, and write a proof of what it comes to
    Prove {
        #[command(flatten)]
        bundle: Given,
        /// What `witness` wrote
        #[arg(long)]
        witness: PathBuf,
        /// Where to write the proof
        #[arg(long)]
        out: PathBuf,
    },
    /// Check a proof: old root, bundle, witness and signature against receipt and new root
    Verify {
        /// What `prove` wrote
        file: PathBuf,
        /// The root you trust; without it the one in the file is used, which proves nothing about where it is from
        #[arg(long)]
        old_root: Option<String>,
        /// The root it is to lead to
        #[arg(long)]
        new_root: Option<String>,
    },
}

/// A bundle in a file.
#[derive(Debug, Args)]
pub(super) struct Given {
    /// The file, as JSON or canonical bytes; `-` for standard input
    file: PathBuf,
    /// The sender's public key, or the name of a key here: if the file does not say
    #[arg(long)]
    from: Option<String>,
}

/// What operations are made to insist on.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Expectation {
    /// The state hash of the session after each operation: binds all that went before in it
    State,
    /// Each operation's own changes, whatever went before
    Own,
    /// Both
    Both,
}

impl Action {
    /// Whether a chain may be asked; what is done over a witness asks nobody.
    pub(super) fn asks(&self) -> bool {
        matches!(self, Self::Build { .. } | Self::Witness { .. })
    }
}

pub(super) fn run(action: Action, context: &Context<'_>) -> Result<Exit, Failure> {
    // spec: EXEC-13. What is run over files asks no chain that would be watched: until this returns.
    let _watchdog = context.watch(&context.config()?.0, context.application.registry.activity())?;
    match action {
        Action::Build { bundle, out } => {
            let transaction = match bundle.read()?.built() {
                Ok(transaction) => transaction,
                Err(plan) => tx::filled(&plan, bundle.sender(context)?, None, context)?,
            };
            write_transaction(&transaction, out.as_deref(), context)
        }
        Action::Witness { bundle, out } => ask(&bundle, out.as_deref(), context),
        Action::Simulate { bundle, witness } => {
            let claim = Claim::read(&witness)?;
            match claim.hasher {
                HashKind::Blake3 => simulate::<Blake3>(&claim, &bundle, context),
                HashKind::Sha256 => simulate::<Sha256>(&claim, &bundle, context),
            }
        }
        Action::Expect { bundle, witness, meaning, out } => {
            let claim = Claim::read(&witness)?;
            let meaning = match meaning {
                Expectation::State => Meaning::StateHash,
                Expectation::Own => Meaning::OwnDiff,
                Expectation::Both => Meaning::Both,
            };
            match claim.hasher {
                HashKind::Blake3 => expect::<Blake3>(&claim, &bundle, meaning, out.as_deref(), context),
                HashKind::Sha256 => expect::<Sha256>(&claim, &bundle, meaning, out.as_deref(), context),
            }
        }
        Action::Prove { bundle, witness, out } => {
            let claim = Claim::read(&witness)?;
            match claim.hasher {
                HashKind::Blake3 => prove::<Blake3>(&claim, &bundle, &out, context),
                HashKind::Sha256 => prove::<Sha256>(&claim, &bundle, &out, context),
            }
        }
        Action::Verify { file, old_root, new_root } => verify(&file, old_root, new_root, context),
    }
}

// ---- files

/// What a file holds.
pub(super) enum Source {
    Plan(Plan),
    Unsigned(Transaction),
    Signed(SignedTransaction),
}

impl Source {
    /// Reads a plan in JSON, what `tx build` or `tx sign` print, or canonical bytes.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Failure> {
        // The canonical bytes begin with the length of a chain's name, and no name is as long as a brace's number.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Self::decode(text);
        }
        let value: Value = strict_json::parse(text).map_err(|error| Failure::usage(format!("the bundle: {error}")))?;
        for name in ["transaction", "unsigned"] {
            if let Some(digits) = value.get(name).and_then(Value::as_str) {
                let bytes = unhex(digits).map_err(|error| Failure::usage(format!("{name}: {error}")))?;
                return Self::decode(&bytes);
            }
        }
        let plan = strict_json::parse(text).map_err(|error| Failure::usage(format!("the bundle: {error}")))?;
        Ok(Self::Plan(plan))
    }

    fn decode(bytes: &[u8]) -> Result<Self, Failure> {
        if let Ok(signed) = SignedTransaction::from_bytes(bytes) {
            return Ok(Self::Signed(signed));
        }
        let unsigned = Transaction::from_bytes(bytes);
        unsigned.map(Self::Unsigned).map_err(|error| {
            let failure = Failure::usage(format!("the bundle is no transaction: {error}"));
            failure
                .hint("a file has JSON, or what --out wrote: what is printed for people is neither, with --json it is")
        })
    }

    /// The transaction, if it is one already.
    fn built(self) -> Result<Transaction, Box<Plan>> {
        match self {
            Self::Signed(signed) => Ok(signed.transaction),
            Self::Unsigned(transaction) => Ok(transaction),
            Self::Plan(plan) => Err(Box::new(plan)),
        }
    }
}

impl Given {
    fn read(&self) -> Result<Source, Failure> {
        Source::parse(&read_input(&self.file)?)
    }

    fn sender(&self, context: &Context<'_>) -> Result<PublicKey, Failure> {
        let from = self.from.as_ref().ok_or_else(|| {
            Failure::usage("the file does not say whose bundle it is").hint("give --from: a public key, or a key here")
        })?;
        tx::sender(from, context)
    }
}

/// A witness that was read from a file. Nothing of it is checked yet.
struct Claim {
    hasher: HashKind,
    chain_id: ChainId,
    setting: Setting,
    proof: Vec<u8>,
}

impl Claim {
    fn read(file: &Path) -> Result<Self, Failure> {
        let wrong = |what: &str, error: &dyn std::fmt::Display| {
            Failure::usage(format!("{}: {what}: {error}", file.display()))
                .hint("keelstone bundle witness FILE --out WITNESS writes one")
        };
        let said: api::Witness =
            strict_json::parse(&read_input(file)?).map_err(|error| wrong("the witness", &error))?;
        Ok(Self {
            hasher: said.hasher.parse().map_err(|error| wrong("the hasher", &error))?,
            chain_id: ChainId::new(&said.chain_id).map_err(|error| wrong("the chain", &error))?,
            setting: Setting {
                old_root: Root::from_hex(&said.root).map_err(|error| wrong("the root", &error))?,
                height: Height(said.height),
                time: Timestamp(said.time),
                proposer: PublicKey::from_hex(&said.proposer).map_err(|error| wrong("the proposer", &error))?,
            },
            proof: unhex(&said.proof).map_err(|error| wrong("the proof", &error))?,
        })
    }

    fn state<H: Hasher>(&self) -> Result<Verified<H>, Failure> {
        witness::<H>(&self.proof, self.setting.old_root)
            .map_err(|error| Failure::integrity(format!("the witness does not hold: {error}")))
    }

    /// The transaction in a file, with what it leaves open taken from the witness.
    fn transaction<H: Hasher>(
        &self,
        source: Source,
        given: &Given,
        context: &Context<'_>,
    ) -> Result<(Transaction, Verified<H>), Failure> {
        let state = self.state::<H>()?;
        let plan = match source.built() {
            Ok(transaction) => return Ok((transaction, state)),
            Err(plan) => plan,
        };
        let sender = given.sender(context)?;
        let nonce = next_nonce(&state, &sender)
            .map_err(|_| Failure::usage("the witness is not of this sender: it does not show the account's nonce"))?;
        let nonce = nonce.ok_or_else(|| Failure::usage("the account has no next nonce"))?;
        let expiry_height = self.setting.height.0.saturating_add(tx::EXPIRY_BLOCKS);
        let facts = Facts { chain_id: self.chain_id.clone(), nonce, expiry_height };
        let transaction = plan.build(&context.application.registry, sender, &facts)?;
        Ok((transaction, state))
    }
}

fn write(file: &Path, content: &[u8]) -> Result<(), Failure> {
    std::fs::write(file, content)
        .map_err(|error| Failure::io(format_args!("could not write {}", file.display()), &error))
}

fn write_transaction(transaction: &Transaction, file: Option<&Path>, context: &Context<'_>) -> Result<Exit, Failure> {
    let unsigned = transaction.to_bytes();
    context.out.row("transaction", transaction.id());
    context.out.row("operations", grouped(transaction.bundle.operations().len() as u64));
    match file {
        Some(file) => {
            write(file, &unsigned)?;
            context.out.row("written", format_args!("{}, {}", file.display(), bytes(unsigned.len() as u64)));
        }
        None => context.out.row("unsigned", hex::encode(&unsigned)),
    }
    context.out.emit(&json!({ "id": transaction.id(), "unsigned": hex::encode(&unsigned) }));
    Ok(Exit::Ok)
}

// ---- commands

fn ask(bundle: &Given, file: Option<&Path>, context: &Context<'_>) -> Result<Exit, Failure> {
    let chain = context.chain()?;
    let transaction = match bundle.read()?.built() {
        Ok(transaction) => transaction,
        Err(plan) => tx::filled(&plan, bundle.sender(context)?, Some(&*chain), context)?,
    };
    let said = chain.witness(&transaction.to_bytes())?;
    let out = context.out;
    out.row("transaction", transaction.id());
    out.row("root", short(&said.root));
    out.row("witness", bytes(said.proof.len() as u64 / 2));
    match file {
        Some(file) => {
            write(file, json!(said).to_string().as_bytes())?;
            out.row("written", file.display());
        }
        None => out.row("proof", &said.proof),
    }
    out.emit(&said);
    Ok(Exit::Ok)
}

/// Why a bundle cannot be run over what is at hand, for whoever has to act.
fn unforeseen(error: ForesightError) -> Failure {
    let failure = match &error {
        ForesightError::Refused(_) => Failure::new(Exit::Refused, error.to_string()),
        ForesightError::Halt(_) => Failure::integrity(error.to_string()),
        _ => Failure::usage(error.to_string()),
    };
    match error {
        ForesightError::Incomplete { .. } => failure.hint("keelstone bundle witness makes one of this very bundle"),
        _ => failure,
    }
}

fn simulate<H: Hasher>(claim: &Claim, bundle: &Given, context: &Context<'_>) -> Result<Exit, Failure> {
    let (transaction, state) = claim.transaction::<H>(bundle.read()?, bundle, context)?;
    let registry = &context.application.registry;
    let foreseen = foresee(registry, state.clone(), &claim.setting, &transaction).map_err(unforeseen)?;
    let new_root = state.apply(&foreseen.changes.to_diff()).map_err(|error| Failure::usage(error.to_string()))?;
    let exit = show(&foreseen, new_root, &claim.setting, context.out);
    let mut shown = shown(&foreseen, new_root, &claim.setting, context);
    shown["unsigned"] = hex::encode(transaction.to_bytes()).into();
    context.out.emit(&shown);
    Ok(exit)
}

fn show(foreseen: &Foreseen, new_root: Root, setting: &Setting, out: &Out) -> Exit {
    out.row("transaction", foreseen.receipt.transaction);
    out.row("old root", format_args!("{}, before block {}", short(setting.old_root), grouped(setting.height.0)));
    let exit = match &foreseen.receipt.verdict {
        Verdict::Failed(failure) => {
            let text = format!("fails at operation {}: {}", failure.operation, failure.reason);
            out.row("outcome", out.ink(Ink::Bad, text));
            Exit::Refused
        }
        Verdict::Succeeded { operations, .. } => {
            for operation in operations {
                out.row("link", short(operation.state_hash));
            }
            out.row("outcome", out.ink(Ink::Good, "succeeds"));
            Exit::Ok
        }
        Verdict::Refused { .. } | Verdict::Submitted { .. } => Exit::Ok,
    };
    out.row("gas", grouped(foreseen.receipt.gas_used));
    out.row("new root", short(new_root));
    exit
}

fn shown(foreseen: &Foreseen, new_root: Root, setting: &Setting, context: &Context<'_>) -> Value {
    json!({
        "old_root": setting.old_root,
        "new_root": new_root,
        "height": setting.height,
        "receipt": show_receipt(&context.application.registry, &foreseen.receipt, setting.height, 0),
    })
}

fn expect<H: Hasher>(
    claim: &Claim,
    bundle: &Given,
    meaning: Meaning,
    out: Option<&Path>,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let (transaction, state) = claim.transaction::<H>(bundle.read()?, bundle, context)?;
    let registry = &context.application.registry;
    let unforeseeable = |error: keelstone_execution::ExpectError| Failure::usage(error.to_string());
    transaction.bundle.check_foreseeable(registry).map_err(unforeseeable)?;
    let foreseen = foresee(registry, state, &claim.setting, &transaction).map_err(unforeseen)?;
    let operations = match &foreseen.receipt.verdict {
        Verdict::Succeeded { operations, .. } => operations,
        Verdict::Failed(failure) => {
            let message = format!("the bundle fails at operation {}: {}", failure.operation, failure.reason);
            return Err(Failure::new(Exit::Refused, message));
        }
        _ => return Err(Failure::error("the bundle came to nothing that could be expected")),
    };
    let hashes = operations.iter().map(|operation| (operation.state_hash, operation.diff.digest));
    let bundle = transaction.bundle.expecting(meaning, hashes);
    write_transaction(&Transaction { bundle, ..transaction }, out, context)
}

fn prove<H: Hasher>(claim: &Claim, bundle: &Given, file: &Path, context: &Context<'_>) -> Result<Exit, Failure> {
    let signed = match bundle.read()? {
        Source::Signed(signed) => signed,
        source @ (Source::Unsigned(_) | Source::Plan(_)) => {
            let from = bundle.from.as_ref();
            let from = from.ok_or_else(|| Failure::usage("the file is not signed: give --from KEY"))?;
            let key = context.keys().load(from)?;
            let transaction = claim.transaction::<H>(source, bundle, context)?.0;
            tx::signed_with(transaction, &key, from)?
        }
    };
    let witness = Blob::new(claim.proof.clone()).map_err(|error| Failure::usage(format!("the witness: {error}")))?;
    let registry = &context.application.registry;
    let proof = BundleProof::make::<H>(registry, claim.setting, signed, witness).map_err(|error| match error {
        BundleProofError::Foresight(error) => unforeseen(error),
        error => Failure::integrity(error.to_string()),
    })?;
    let encoded = proof.to_bytes();
    write(file, &encoded)?;
    let out = context.out;
    out.row("transaction", proof.transaction.id());
    out.row("old root", short(proof.setting.old_root));
    out.row("new root", short(proof.new_root));
    out.row("written", format_args!("{}, {}", file.display(), bytes(encoded.len() as u64)));
    out.emit(&json!({
        "id": proof.transaction.id(), "old_root": proof.setting.old_root, "new_root": proof.new_root,
        "bytes": encoded.len(), "transaction": hex::encode(proof.transaction.to_bytes()),
    }));
    Ok(Exit::Ok)
}

fn verify(
    file: &Path,
    old_root: Option<String>,
    new_root: Option<String>,
    context: &Context<'_>,
) -> Result<Exit, Failure> {
    let root = |name: &str, text: Option<String>| {
        let parse = |text: String| Root::from_hex(&text).map_err(|error| Failure::usage(format!("{name}: {error}")));
        text.map(parse).transpose()
    };
    let (old_root, new_root) = (root("--old-root", old_root)?, root("--new-root", new_root)?);
    let encoded = read_input(file)?;
    let proof = BundleProof::from_bytes(&encoded).map_err(|error| {
        let message = format!("{} is no bundle proof: {error}", file.display());
        // What begins as a proof, with its hasher, was one; anything else was given by mistake.
        match encoded.first().is_some_and(|first| HashKind::from_bytes(&[*first]).is_ok()) {
            true => Failure::integrity(message),
            false => Failure::usage(message),
        }
    })?;
    for (name, trusted, said) in [("old", old_root, proof.setting.old_root), ("new", new_root, proof.new_root)] {
        if let Some(trusted) = trusted.filter(|trusted| *trusted != said) {
            return Err(Failure::integrity(format!("the proof is of the {name} root {said}, not of {trusted}")));
        }
    }
    let registry = &context.application.registry;
    let verified = match proof.hasher {
        HashKind::Blake3 => proof.verify::<Blake3>(registry),
        HashKind::Sha256 => proof.verify::<Sha256>(registry),
    };
    let foreseen = verified.map_err(|error| Failure::integrity(error.to_string()))?;
    let out = context.out;
    out.say(format_args!("{} {}", out.ink(Ink::Good, "✓"), out.ink(Ink::Good, "the proof holds")));
    out.row("sender", proof.transaction.transaction.sender);
    show(&foreseen, proof.new_root, &proof.setting, out);
    let source = if old_root.is_some() { "given" } else { "from the file: trust it on other grounds" };
    out.row("trusted", format_args!("the old root ({source})"));
    let mut shown = shown(&foreseen, proof.new_root, &proof.setting, context);
    shown["valid"] = true.into();
    shown["root_given"] = old_root.is_some().into();
    shown["transaction"] = show_signed(registry, &proof.transaction);
    out.emit(&shown);
    Ok(Exit::Ok)
}
