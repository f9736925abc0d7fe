//! `keelstone session create|delegate|revoke|close|list|show`: what a key hands to other keys and to lines of its own.
//!
//! A session is called by its identity, or by its name below the root session of a key. What makes or ends one is a
//! transaction like any other: with `--plan` it is printed as the file that `tx` and `bundle` take, and nothing is sent.

use super::tx::{self, settle, sign};
use crate::api::{Chain, Refusal, Session, SessionsWanted};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::out::{Ink, grouped, short};
use clap::{Args, Subcommand};
use keelstone_codec::{DecodeError, StateHash};
use keelstone_execution::{ANCESTORS_MAX, Capability, PublicKey, SessionId};
use keelstone_ledger::TxId;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Hand out what a key may do, and take it back
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a session for the key itself: a line of its own, with a chain and capabilities of its own
    Create {
        #[command(flatten)]
        made: Made,
        #[command(flatten)]
        sender: Sender,
    },
    /// Make a session for another key, with a part of what this one may do
    Delegate {
        /// Whose it is: a public key, or the name of a key here
        #[arg(long)]
        to: String,
        #[command(flatten)]
        made: Made,
        #[command(flatten)]
        sender: Sender,
    },
    /// Take back a session that was made from one of the key's own, and all that was made from it
    Revoke {
        /// Its identity, or its name
        session: String,
        /// The key below whose root session it has that name [default: the one that signs]
        #[arg(long)]
        of: Option<String>,
        #[command(flatten)]
        sender: Sender,
    },
    /// End a session of the key's own, and all that was made from it
    Close {
        /// Its identity, or its name
        session: String,
        /// The key below whose root session it has that name [default: the one that signs]
        #[arg(long)]
        of: Option<String>,
        #[command(flatten)]
        sender: Sender,
    },
    /// List sessions: those with a name below a key's root session, or all
    List {
        /// The key: public, or the name of one here
        #[arg(long)]
        of: Option<String>,
        /// Only the one of this name and those below it
        #[arg(long, requires = "of")]
        below: Option<String>,
        /// How many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Go on after what the last answer gave as next
        #[arg(long)]
        after: Option<String>,
    },
    /// Show a session, and what it may do now
    Show {
        /// Its identity, or its name
        session: String,
        /// The key below whose root session it has that name
        #[arg(long)]
        of: Option<String>,
    },
}

/// A session to be made.
#[derive(Debug, Args)]
struct Made {
    /// What it is called: a path, such as defi/lending/alice; without one it has no name
    name: Option<String>,
    /// What it may do; may be repeated, or separated by commas
    #[arg(long, required = true, value_delimiter = ',', value_name = "CAPABILITY")]
    may: Vec<String>,
    /// The session it is made from, by identity or name [default: the key's root session]
    #[arg(long = "in", value_name = "SESSION")]
    parent: Option<String>,
    /// The key below whose root session that has its name [default: the one that signs]
    #[arg(long, requires = "parent")]
    of: Option<String>,
    /// The last height at which it may act
    #[arg(long)]
    last_height: Option<u64>,
    /// The state hash its chain begins with [default: zeros]
    #[arg(long, value_name = "HASH")]
    init: Option<String>,
}

#[derive(Debug, Args)]
struct Sender {
    /// The name of the key to sign with
    #[arg(long)]
    from: String,
    /// Print the transaction's file, for tx and bundle, and send nothing
    #[arg(long)]
    plan: bool,
    /// Seconds to wait for its block
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    match options.action {
        Action::Create { made, sender } => {
            context.takes("a session", "sessions.delegate/1")?;
            let owner = tx::sender(&sender.from, context)?;
            make(&made, owner, &sender, context)
        }
        Action::Delegate { to, made, sender } => {
            context.takes("a session", "sessions.delegate/1")?;
            make(&made, tx::sender(&to, context)?, &sender, context)
        }
        Action::Revoke { session, of, sender } => end(&session, of.as_deref(), false, &sender, context),
        Action::Close { session, of, sender } => end(&session, of.as_deref(), true, &sender, context),
        Action::List { of, below, limit, after } => {
            let of = of.map(|of| tx::sender(&of, context)).transpose()?;
            list(&SessionsWanted { of, below, after, limit: usize::from(limit) }, context)
        }
        Action::Show { session, of } => {
            let chain = context.chain()?;
            let session = match (SessionId::from_hex(&session), of) {
                (Ok(id), _) => chain.session(&id)?,
                (Err(_), Some(of)) => named(&*chain, &session, &tx::sender(&of, context)?)?,
                (Err(_), None) => {
                    let message = format!("{session} is no identity; a name is one below the root session of a key");
                    return Err(Failure::usage(message).hint("--of KEY says of which"));
                }
            };
            show(&session, context);
            context.out.emit(&session);
            Ok(Exit::Ok)
        }
    }
}

/// The session of a name below a key's root session.
fn named(chain: &dyn Chain, name: &str, of: &PublicKey) -> Result<Session, Failure> {
    let found = holder(chain, name, of)?;
    let found = found
        .ok_or_else(|| Failure::not_found(format!("no session below the root session of {of} is called {name}")))?;
    // Of one in a list it is not said what it holds.
    let id = SessionId::from_hex(&found.id).map_err(|error| Failure::error(error.to_string()))?;
    Ok(chain.session(&id)?)
}

/// Who took a name last, if somebody did. It may be closed since.
fn holder(chain: &dyn Chain, name: &str, of: &PublicKey) -> Result<Option<Session>, Failure> {
    let wanted = SessionsWanted { of: Some(*of), below: Some(name.to_owned()), after: None, limit: 1 };
    Ok(chain.sessions(&wanted)?.sessions.into_iter().find(|session| session.name == name))
}

/// What is asked of the chain only if something has to be.
struct Lazy<'a, 'b> {
    context: &'a Context<'b>,
    sender: PublicKey,
    of: Option<&'a str>,
}

impl Lazy<'_, '_> {
    fn find(&self, session: &str) -> Result<Session, Failure> {
        let chain = self.context.chain()?;
        match SessionId::from_hex(session) {
            Ok(id) => Ok(chain.session(&id)?),
            Err(_) => named(&*chain, session, &self.root_key()?),
        }
    }

    /// The identity alone, which is known without asking if it is what was given.
    fn id(&self, session: &str) -> Result<String, Failure> {
        match SessionId::from_hex(session) {
            Ok(id) => Ok(id.to_string()),
            Err(_) => Ok(self.find(session)?.id),
        }
    }

    fn root_key(&self) -> Result<PublicKey, Failure> {
        self.of.map_or(Ok(self.sender), |of| tx::sender(of, self.context))
    }
}

fn make(made: &Made, owner: PublicKey, sender: &Sender, context: &Context<'_>) -> Result<Exit, Failure> {
    let signer = tx::sender(&sender.from, context)?;
    let lazy = Lazy { context, sender: signer, of: made.of.as_deref() };
    let parent = made.parent.as_deref().map(|parent| lazy.id(parent)).transpose()?;
    let wrong = |what: &str, error: DecodeError| Failure::usage(format!("{what}: {error}"));
    for name in &made.may {
        Capability::parse(name).map_err(|error| wrong(name, error))?;
    }
    let init = made.init.as_deref().map_or(Ok(StateHash::default()), StateHash::from_hex);
    let name = made.name.clone().unwrap_or_default();
    let args = json!({
        "owner": owner, "name": name, "capabilities": made.may, "expires": made.last_height,
        "init": init.map_err(|error| wrong("--init", error))?,
    });
    let mut calls = vec![json!({ "call": "sessions.delegate/1", "args": args })];
    if !sender.plan && !name.is_empty() {
        calls.splice(0..0, cleared(&name, parent.as_deref(), &signer, context)?);
    }
    let plan = json!({ "session": parent, "operations": calls });
    let Some(sent) = sent(&plan, sender, context)? else { return Ok(Exit::Ok) };
    let id = sent.result.as_str().and_then(|digits| SessionId::from_hex(digits).ok());
    let id = id.ok_or_else(|| Failure::error("the chain does not make sessions as this program does"))?;
    let session = sent.session(&id)?;
    show(&session, context);
    context.out.emit(&session);
    Ok(Exit::Ok)
}

/// What has to be done for a name to be free: whoever has it may be past its last height, and then nobody has closed it.
// spec: MODULE-10
fn cleared(
    name: &str,
    parent: Option<&str>,
    signer: &PublicKey,
    context: &Context<'_>,
) -> Result<Option<Value>, Failure> {
    let chain = context.chain()?;
    let (mut root, mut next) = (*signer, parent.map(str::to_owned));
    for _ in 0..=ANCESTORS_MAX {
        let Some(id) = next else { break };
        let id = SessionId::from_hex(&id).map_err(|error| Failure::error(error.to_string()))?;
        let above = match chain.session(&id) {
            // A root session that has run nothing yet is its signer's, or the chain will say so.
            Err(Refusal::NotFound(_)) => break,
            above => above?,
        };
        root = PublicKey::from_hex(&above.owner).map_err(|error| Failure::error(error.to_string()))?;
        next = above.parent;
    }
    let over = holder(&*chain, name, &root)?.filter(|holder| holder.status == "expired");
    Ok(over.map(|holder| json!({ "call": "sessions.expire/1", "args": { "session": holder.because } })))
}

fn end(session: &str, of: Option<&str>, own: bool, sender: &Sender, context: &Context<'_>) -> Result<Exit, Failure> {
    context.takes("a session", "sessions.close/1")?;
    let signer = tx::sender(&sender.from, context)?;
    let lazy = Lazy { context, sender: signer, of };
    let id = match sender.plan {
        true => lazy.id(session)?,
        false => {
            let found = lazy.find(session)?;
            let (owner, id) = (&found.owner, &found.id);
            match (*owner == signer.to_string(), own) {
                (false, true) => {
                    let message = format!("session {id} is of {owner}, not of {}", sender.from);
                    return Err(Failure::usage(message).hint("keelstone session revoke takes back what was delegated"));
                }
                (true, false) => {
                    let message = format!("session {id} is of {} itself", sender.from);
                    return Err(Failure::usage(message).hint("keelstone session close ends one's own"));
                }
                _ => found.id,
            }
        }
    };
    let plan = json!({ "operations": [{ "call": "sessions.close/1", "args": { "session": id } }] });
    let Some(sent) = sent(&plan, sender, context)? else { return Ok(Exit::Ok) };
    let id = SessionId::from_hex(&id).map_err(|error| Failure::error(error.to_string()))?;
    let session = sent.session(&id)?;
    show(&session, context);
    context.out.emit(&session);
    Ok(Exit::Ok)
}

/// What was sent to a chain, and took effect.
struct Sent {
    chain: Arc<dyn Chain>,
    id: TxId,
    /// What the last operation of it came to.
    result: Value,
}

impl Sent {
    /// How a session stands since.
    fn session(&self, id: &SessionId) -> Result<Session, Failure> {
        self.chain.session(id).map_err(|refusal| tx::unknown(&self.id, refusal))
    }
}

/// Prints a plan if that is asked for; else sends it.
fn sent(plan: &Value, sender: &Sender, context: &Context<'_>) -> Result<Option<Sent>, Failure> {
    if sender.plan {
        context.out.write(&format!("{plan:#}\n"));
        return Ok(None);
    }
    let chain = context.chain()?;
    let signed = sign(plan.to_string().as_bytes(), &sender.from, Some(&*chain), context)?;
    let receipt = settle(&*chain, &signed, Duration::from_secs(sender.timeout))?.receipt;
    if let Some(failure) = &receipt.failure {
        return Err(tx::failed(failure));
    }
    let result = receipt.outcomes.last().map(|outcome| outcome.result.clone());
    Ok(Some(Sent { chain, id: signed.id(), result: result.unwrap_or_default() }))
}

fn list(wanted: &SessionsWanted, context: &Context<'_>) -> Result<Exit, Failure> {
    let found = context.chain()?.sessions(wanted)?;
    let out = context.out;
    for session in &found.sessions {
        let name = if session.name.is_empty() { "-" } else { &session.name };
        let may = session.capabilities.as_ref().map_or_else(|| "root".to_owned(), |names| names.join(","));
        let said = format_args!("{} of {} {may}", session.id, short(&session.owner)).to_string();
        out.say(format_args!("{:<8} {} {}", session.status, out.ink(Ink::Value, name), out.ink(Ink::Quiet, said)));
        if out.is_broken() {
            break;
        }
    }
    if let Some(next) = &found.next {
        out.say(out.ink(Ink::Quiet, format_args!("there is more: --after {next}")));
    }
    out.emit(&found);
    Ok(Exit::Ok)
}

fn show(session: &Session, context: &Context<'_>) {
    let out = context.out;
    out.row("session", &session.id);
    if !session.name.is_empty() {
        out.row("name", &session.name);
    }
    out.row("owner", &session.owner);
    out.row("made from", session.parent.as_deref().unwrap_or("nothing: it is a root session"));
    let (ink, open) = if session.status == "open" { (Ink::Good, true) } else { (Ink::Bad, false) };
    let because = session.because.as_ref().filter(|because| **because != session.id);
    let because = because.map_or_else(String::new, |above| format!(", because {above} is"));
    out.row("status", out.ink(ink, format_args!("{}{because}", session.status)));
    match &session.capabilities {
        None => out.row("may", "all that the chain does not reserve"),
        Some(names) => {
            for name in names {
                let holds = session.holds.as_ref().is_some_and(|holds| holds.contains(name));
                let lacks = if open && !holds { " (not held by all above it)" } else { "" };
                out.row("may", format_args!("{name}{lacks}"));
            }
        }
    }
    if let Some(last) = session.last_height {
        out.row("last height", grouped(last));
    }
    out.row("operations", grouped(session.sequence));
    out.row("state hash", &session.state_hash);
    out.row("notes", session.notes);
}
