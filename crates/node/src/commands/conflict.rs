//! `keelstone conflict claim|open|opine|status|resolve`: two claims that cannot both be right, judged by agents.
//!
//! `claim` signs a statement and needs the chain only to be told what it is called and which agent acts by the key.
//! All others but `status` send a transaction, signed with a key of this home.

use super::tx;
use crate::api::{Chain, Page, Row};
use crate::call;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::input::read_input;
use crate::out::Ink;
use crate::strict_json;
use crate::world;
use clap::{Args, Subcommand, ValueEnum};
use keelstone_codec::{ChainId, Decode as _, Describe as _, Encode as _, Fixed, Hash, Key, Namespace, unhex};
use keelstone_execution::{PublicKey, SessionId};
use keelstone_ledger::modules::agents::AgentId;
use keelstone_ledger::modules::conflict::{About, Claim, Field, Statement};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Open, judge and settle conflicts between claims
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Sign a statement that can be evidence, about an agent or about a transition
    Claim {
        /// The name of the key to sign with
        #[arg(long)]
        from: String,
        /// The agent it is about
        #[arg(long, requires_all = ["field", "value"], required_unless_present = "session")]
        agent: Option<String>,
        /// What of the agent
        #[arg(long)]
        field: Option<FieldName>,
        /// What it is said to be
        #[arg(long, allow_hyphen_values = true)]
        value: Option<String>,
        /// The session it is about
        #[arg(long, requires_all = ["sequence", "hash"], conflicts_with = "agent")]
        session: Option<String>,
        /// After how many of the session's operations
        #[arg(long)]
        sequence: Option<u64>,
        /// What its state hash is said to be
        #[arg(long)]
        hash: Option<String>,
    },
    /// Open a conflict between two statements, or between two alliances of one member
    Open {
        /// The name of the key to sign with
        #[arg(long)]
        from: String,
        /// Two files with what `claim --json` printed
        #[arg(long, num_args = 2, value_names = ["FIRST", "SECOND"], required_unless_present = "alliances")]
        statements: Vec<PathBuf>,
        /// Two alliances by their numbers, the lower first
        #[arg(long, num_args = 2, value_names = ["FIRST", "SECOND"], requires = "member", conflicts_with = "statements")]
        alliances: Vec<u64>,
        /// The agent that is in both
        #[arg(long)]
        member: Option<String>,
        /// How opinions are weighed
        #[arg(long, default_value = "majority")]
        strategy: StrategyName,
        /// For how many blocks opinions are taken
        #[arg(long, default_value_t = 100)]
        blocks: u64,
        /// The share of all weight that decides
        #[arg(long, default_value = "0.5")]
        quorum: String,
        /// How many opinions must count
        #[arg(long, default_value_t = 3)]
        participation: u32,
    },
    /// Give an opinion
    Opine {
        /// The conflict
        conflict: u64,
        /// `first`, `second`, `neither`, or a number for a robust mean
        #[arg(allow_hyphen_values = true)]
        position: String,
        /// Why
        #[arg(long)]
        reason: String,
        /// The name of the key to sign with
        #[arg(long)]
        from: String,
    },
    /// Show a conflict with its opinions and, once it is settled, how they were counted
    Status {
        /// The conflict
        conflict: u64,
    },
    /// Have the opinions counted once the deadline has passed
    Resolve {
        /// The conflict
        conflict: u64,
        /// The name of the key to sign with
        #[arg(long)]
        from: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FieldName {
    Reputation,
    Mood,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StrategyName {
    Majority,
    Personality,
    Influence,
    RobustMean,
}

pub(crate) fn run(options: Options, context: &Context<'_>) -> Result<Exit, Failure> {
    context.takes("a conflict", "conflict.open/1")?;
    let chain = context.chain()?;
    let chain = &*chain;
    match options.action {
        Action::Claim { from, agent, field, value, session, sequence, hash } => {
            let (about, claim) = match (agent, field, value, session, sequence, hash) {
                (Some(agent), Some(field), Some(value), ..) => {
                    let field = match field {
                        FieldName::Reputation => Field::Reputation,
                        FieldName::Mood => Field::Mood,
                    };
                    let about = About::Agent { agent: AgentId(public(&agent)?), field };
                    (about, Claim::Value(decimal(&value)?))
                }
                (.., Some(session), Some(sequence), Some(hash)) => {
                    let hashed = |what: &str, text: &str| {
                        Hash::from_hex(text).map_err(|error| Failure::usage(format!("{what}: {error}")))
                    };
                    let about = About::Transition { session: SessionId(hashed("--session", &session)?), sequence };
                    (about, Claim::Hash(hashed("--hash", &hash)?))
                }
                _ => {
                    return Err(Failure::usage(
                        "give --agent, --field and --value, or --session, --sequence and --hash",
                    ));
                }
            };
            sign(&from, about, claim, chain, context)
        }
        Action::Open { from, statements, alliances, member, strategy, blocks, quorum, participation } => {
            let subject = match (&statements[..], &alliances[..], member) {
                ([first, second], [], _) => {
                    json!({ "Statements": { "first": statement(first)?, "second": statement(second)? } })
                }
                ([], [first, second], Some(member)) => {
                    json!({ "Alliances": { "member": public(&member)?, "first": first, "second": second } })
                }
                _ => return Err(Failure::usage("give --statements, or --alliances and --member")),
            };
            let deadline = chain.status()?.height.saturating_add(blocks);
            let args = json!({
                "subject": subject, "strategy": format!("{strategy:?}"), "deadline": deadline,
                "quorum": quorum, "participation": participation,
            });
            tx::call(json!([{ "call": "conflict.open/1", "args": args }]), &from, chain, context)
        }
        Action::Opine { conflict, position, reason, from } => {
            let position = match position.as_str() {
                "first" => json!("First"),
                "second" => json!("Second"),
                "neither" => json!("Neither"),
                value => json!({ "Value": decimal(value)?.to_string() }),
            };
            let args = json!({ "conflict": conflict, "position": position, "reason": reason });
            tx::call(json!([{ "call": "conflict.opine/1", "args": args }]), &from, chain, context)
        }
        Action::Status { conflict } => status(conflict, chain, context),
        Action::Resolve { conflict, from } => {
            let args = json!({ "conflict": conflict });
            tx::call(json!([{ "call": "conflict.resolve/1", "args": args }]), &from, chain, context)
        }
    }
}

fn public(text: &str) -> Result<PublicKey, Failure> {
    PublicKey::from_hex(text).map_err(|error| Failure::usage(format!("{text:?} is no agent: {error}")))
}

fn decimal(text: &str) -> Result<Fixed, Failure> {
    Fixed::parse(text).map_err(|_| Failure::usage(format!("{text:?} is no number with up to six places")))
}

/// The statement in a file, as `claim --json` printed it.
fn statement(file: &std::path::Path) -> Result<Value, Failure> {
    strict_json::parse(&read_input(file)?).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))
}

fn namespace(name: &str) -> Result<Namespace, Failure> {
    Namespace::new(name).map_err(|error| Failure::error(error.to_string()))
}

fn key(bytes: Vec<u8>) -> Result<Key, Failure> {
    Key::new(bytes).map_err(|error| Failure::error(error.to_string()))
}

fn sign(from: &str, about: About, claim: Claim, chain: &dyn Chain, context: &Context<'_>) -> Result<Exit, Failure> {
    let secret = context.keys().load(from)?;
    let chain_id = ChainId::new(&chain.status()?.chain_id).map_err(|error| Failure::error(error.to_string()))?;
    let place = key([b"by_key/".as_slice(), &secret.public().0.0].concat())?;
    let found = chain.entry(&namespace("agents")?, &place, None, false)?.value;
    let digits = found.ok_or_else(|| Failure::not_found(format!("no agent acts by {}", secret.public())))?;
    let by = unhex(digits).ok().and_then(|bytes| AgentId::from_bytes(&bytes).ok());
    let by = by.ok_or_else(|| Failure::error("the chain does not keep agents as this program does"))?;
    let statement = Statement::sign(&chain_id, by, about, claim, &secret);
    let shown = call::decode(&Statement::shape(), &statement.to_bytes());
    let shown = shown.map_err(|error| Failure::error(error.to_string()))?;
    context.out.say(&shown);
    context.out.emit(&shown);
    Ok(Exit::Ok)
}

fn status(conflict: u64, chain: &dyn Chain, context: &Context<'_>) -> Result<Exit, Failure> {
    let space = namespace("conflict")?;
    let rows = |place: &str| -> Result<Vec<Row>, Failure> {
        let prefix = [place.as_bytes(), b"/", &conflict.to_be_bytes()].concat();
        // A conflict has one record, and fewer opinions than this.
        let found = chain.entries(&space, &Page { prefix, after: None, limit: 1_000 }, None, false)?;
        let bytes = |digits: &str| unhex(digits).map_err(|error| Failure::error(format!("the answer: {error}")));
        let registry = &context.application.registry;
        let mut rows = Vec::new();
        for pair in &found.entries {
            let row = world::row(registry, "conflict", place, &bytes(&pair.key)?, &bytes(&pair.value)?);
            rows.push(row.ok_or_else(|| Failure::error("this program does not know the chain's conflicts"))?);
        }
        Ok(rows)
    };
    let record = rows("all")?.pop().ok_or_else(|| Failure::not_found(format!("there is no conflict {conflict}")))?;
    let record = &record.value;
    let opinions: Vec<Value> = rows("opinions")?
        .into_iter()
        .map(|row| json!({ "agent": row.key[1], "position": row.value["position"], "reason": row.value["reason"] }))
        .collect();
    let out = context.out;
    out.row("conflict", conflict);
    out.row("subject", &record["subject"]);
    out.row("strategy", &record["strategy"]);
    out.row("deadline", &record["deadline"]);
    for opinion in &opinions {
        let said = format_args!("{} {}", opinion["position"], out.ink(Ink::Quiet, &opinion["reason"])).to_string();
        out.row("opinion", format_args!("{} {said}", opinion["agent"].as_str().unwrap_or_default()));
    }
    match &record["ruling"] {
        Value::Null => out.row("outcome", "open"),
        ruling => {
            let tally = &ruling["tally"];
            out.row("carried", format_args!("{} of {}", tally["carried"], tally["total"]));
            out.row("outcome", out.ink(Ink::Title, &tally["outcome"]));
        }
    }
    out.emit(&json!({ "conflict": conflict, "record": record, "opinions": opinions }));
    Ok(Exit::Ok)
}
