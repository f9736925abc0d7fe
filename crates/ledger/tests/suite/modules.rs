//! What agents, their society, their memes and sessions may and may not do.

use crate::tools::*;
use keelstone_codec::{BoundedSet, Decode, Fixed, Height, Shape, StateHash, Text, Variant};
use keelstone_execution::{Capability, ContextUse, Operation, Registry, SessionId, Sessions, View};
use keelstone_ledger::modules::{Society, agents, limits, memes, sessions, social, standard, validators};
use keelstone_ledger::{PublicKey, Receipt, Refusal, Transaction, Verdict};

fn fixed(text: &str) -> Fixed {
    Fixed::parse(text).unwrap()
}

fn denied(receipt: &Receipt) -> String {
    let Verdict::Failed(failure) = &receipt.verdict else { panic!("{receipt:?}") };
    failure.reason.to_string()
}

/// A chain on which people 1, 2 and 3 are agents, and 2 has standing.
fn society() -> Chain {
    let chain = chain_of(&staked([(2, 100)]));
    block(&chain, &[1, 3].map(|person| signed(person, 0, vec![register(&format!("agent {person}"))])));
    chain
}

fn world(chain: &Chain) -> View<Society> {
    View::over(chain.view())
}

/// spec: MODULE-1. The functions are the documented ones, with the documented capabilities.
#[test]
fn functions_are_those_of_the_spec() {
    let registry = standard();
    assert!(registry.check().is_ok());
    let spec = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec/modules.md")).unwrap();
    for function in registry.functions() {
        let line = spec.lines().find(|line| line.contains(&format!("`{}`", function.label())));
        let line = line.unwrap_or_else(|| panic!("{} is not in the spec", function.label()));
        for capability in &function.needs {
            assert!(
                line.contains(&format!("[`{capability}`")) || line.contains(&format!("[`{capability}`,")),
                "{line}"
            );
        }
        let height = line.contains(&format!("`{}` *h*", function.label()));
        assert_eq!(function.context, ContextUse { height, ..ContextUse::NONE }, "{line}");
    }
    assert_eq!(registry.functions().len(), 45);
}

/// A layout in the words of `spec/modules.md`.
fn said(shape: &Shape) -> String {
    let all = |shapes: &mut dyn Iterator<Item = String>| shapes.collect::<Vec<_>>().join(", ");
    let named = |name: &str, shape: &Shape| match said(shape) {
        empty if empty.is_empty() => name.to_owned(),
        layout => format!("{name} {layout}"),
    };
    match shape {
        Shape::Unit => String::new(),
        Shape::Bool => "bool".to_owned(),
        Shape::Unsigned(bytes) => format!("u{}", u32::from(*bytes) * 8),
        Shape::Signed(bytes) => format!("i{}", u32::from(*bytes) * 8),
        Shape::Decimal => "fixed".to_owned(),
        Shape::Array(bytes) => format!("{bytes} bytes"),
        Shape::Bytes(most) => format!("bytes to {most}"),
        Shape::Text(most) => format!("text to {most}"),
        Shape::Optional(value) => format!("option of {}", said(value)),
        Shape::List(element, most) => format!("list to {most} of {}", said(element)),
        Shape::Set(element, most) => format!("set to {most} of {}", said(element)),
        Shape::Tuple(parts) => format!("({})", all(&mut parts.iter().map(said))),
        Shape::Record(fields) if fields.is_empty() => String::new(),
        Shape::Record(fields) => format!("({})", all(&mut fields.iter().map(|(name, field)| named(name, field)))),
        Shape::Choice(variants) => {
            let variant = |one: &Variant| named(&format!("{:02x} {}", one.tag, one.name), &one.shape);
            format!("one of ({})", all(&mut variants.iter().map(variant)))
        }
        other => panic!("the spec has no word for {other:?}"),
    }
}

/// spec: MODULE-11. What every function takes and gives, byte for byte, stands in the spec.
#[test]
fn arguments_and_results_are_those_of_the_spec() {
    let spec = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec/modules.md")).unwrap();
    let mut lacking = String::new();
    for function in standard().functions() {
        let [args, output] = [(function.args)(), (function.output)()].map(|shape| match said(&shape) {
            empty if empty.is_empty() => "nothing".to_owned(),
            layout => layout,
        });
        let row = format!("| `{}` | {args} | {output} |", function.label());
        if !spec.lines().any(|line| line == row) {
            lacking += &format!("{row}\n");
        }
    }
    assert!(lacking.is_empty(), "spec/modules.md lacks these rows under MODULE-11:\n{lacking}");
}

/// A chain of one's own takes the functions of sessions, of validators and of limits without the others.
#[test]
fn sessions_validators_and_limits_can_be_had_alone() {
    let mut registry = Registry::new();
    limits::register(validators::register(sessions::register(&mut registry))).check().unwrap();
    let standard = standard();
    let of = |registry: &Registry, module: &str| -> Vec<String> {
        let labels = registry.functions().into_iter().map(|function| function.label());
        labels.filter(|label| label.starts_with(module)).collect()
    };
    for module in ["sessions.", "chain.", "bundles."] {
        assert!(!of(&registry, module).is_empty());
        assert_eq!(of(&registry, module), of(&standard, module));
    }
    assert_eq!(of(&registry, "").len(), 11);
    assert!(registry.reserved().contains(&validators::SET_VALIDATOR));
    assert!(registry.reserved().contains(&limits::SET_LIMITS));
}

/// spec: AGENT-1, AGENT-2.
#[test]
fn agents_are_bounded_and_their_own() {
    let chain = society();
    let too_open = agents::Personality { openness: fixed("1.000001"), ..agents::Personality::AVERAGE };
    let update = |personality| op(&agents::Update { name: None, personality: Some(personality), traits: None });
    assert!(denied(&one(&chain, 1, vec![update(too_open)])).contains("openness is 0 to 1"));
    let shy = agents::Personality { extraversion: Fixed::ZERO, ..agents::Personality::AVERAGE };
    assert!(one(&chain, 1, vec![update(shy)]).succeeded());
    assert_eq!(world(&chain).agents.all.get(&who(1)).unwrap().unwrap().personality, shy);
    assert!(denied(&one(&chain, 9, vec![update(shy)])).contains("is no agent"));
    assert!(denied(&one(&chain, 9, vec![register("")])).contains("has a name"));
    let status = |status| op(&agents::SetStatus { status });
    assert!(one(&chain, 1, vec![status(agents::Status::Retired)]).succeeded());
    assert!(denied(&one(&chain, 1, vec![update(shy)])).contains("has retired"));
    assert!(one(&chain, 1, vec![status(agents::Status::Active), update(shy)]).succeeded());
}

/// spec: SOCIAL-1, SOCIAL-4, AGENT-6.
#[test]
fn alliances_take_in_whom_they_invite_and_end_with_their_last_member() {
    let chain = society();
    let form = |invited: &[u8]| propose("loom", invited);
    let join = |id| op(&social::JoinAlliance { alliance: social::AllianceId(id) });
    let leave = |id| op(&social::LeaveAlliance { alliance: social::AllianceId(id) });
    assert!(one(&chain, 1, vec![form(&[2])]).succeeded());
    assert!(denied(&one(&chain, 3, vec![join(1)])).contains("is not invited"));
    assert!(one(&chain, 2, vec![join(1)]).succeeded());
    assert!(denied(&one(&chain, 2, vec![join(1)])).contains("already"));
    assert!(denied(&one(&chain, 3, vec![leave(1)])).contains("is not in alliance 1"));
    assert!(one(&chain, 1, vec![leave(1)]).succeeded());
    assert!(one(&chain, 1, vec![join(1)]).succeeded(), "a founder may come back");
    assert!(one(&chain, 1, vec![leave(1)]).succeeded());
    assert!(one(&chain, 2, vec![leave(1)]).succeeded());
    assert!(world(&chain).social.alliances.get(&social::AllianceId(1)).unwrap().is_none());
    assert!(denied(&one(&chain, 1, vec![join(1)])).contains("no alliance 1"));
    // The last one within the bound, and the first beyond it.
    assert!(one(&chain, 3, vec![form(&[]); 32]).succeeded());
    assert!(denied(&one(&chain, 3, vec![form(&[])])).contains("the limit"));
    let relate = |other, trust: &str| {
        let relationship = social::Relationship { trust: fixed(trust), sentiment: Fixed::ZERO };
        op(&social::SetRelationship { other, relationship })
    };
    assert!(one(&chain, 1, vec![relate(who(2), "-1")]).succeeded());
    assert!(denied(&one(&chain, 1, vec![relate(who(2), "-1.000001")])).contains("-1 to 1"));
    assert!(denied(&one(&chain, 1, vec![relate(who(1), "1")])).contains("with another"));
    assert!(denied(&one(&chain, 1, vec![relate(who(9), "1")])).contains("is no agent"));
    let world = world(&chain);
    assert!(world.social.relationships.get(&(who(2), who(1))).unwrap().is_none(), "one-sided");
}

/// spec: MEME-1, MEME-2. The numbers are worked out by hand: openness 0.8, reaction -0.5.
#[test]
fn reactions_move_feelings_and_standing_by_exact_steps() {
    let chain = society();
    let post = op(&memes::Post { text: Text::new("hello").unwrap() });
    let react = |meme, reaction: &str| op(&memes::React { meme: memes::MemeId(meme), reaction: fixed(reaction) });
    assert!(one(&chain, 1, vec![post.clone(), post]).succeeded());
    assert!(one(&chain, 2, vec![react(1, "-0.5")]).succeeded());
    assert!(denied(&one(&chain, 2, vec![react(1, "-0.5")])).contains("already"));
    assert!(denied(&one(&chain, 1, vec![react(1, "1")])).contains("of its own"));
    assert!(denied(&one(&chain, 2, vec![react(3, "1")])).contains("no meme 3"));
    assert!(denied(&one(&chain, 2, vec![react(2, "1.000001")])).contains("-1 to 1"));
    assert!(one(&chain, 2, vec![react(2, "0.000003")]).succeeded());
    let world = world(&chain);
    let felt = world.social.relationships.get(&(who(2), who(1))).unwrap().unwrap();
    // -0.5 · 0.8 · 0.1 = -0.04 and half of that; 0.000003 · 0.8 is 0.000002, and a tenth of it nothing.
    assert_eq!((felt.sentiment, felt.trust), (fixed("-0.04"), fixed("-0.02")));
    assert_eq!(world.agents.all.get(&who(1)).unwrap().unwrap().reputation, fixed("-0.05"));
    assert_eq!(world.memes.memes.get(&memes::MemeId(1)).unwrap().unwrap().score, fixed("-0.5"));
}

/// spec: MODULE-5. Whatever fails last, nothing before it stays.
#[test]
fn failed_bundles_leave_no_trace() {
    let chain = society();
    let post = op(&memes::Post { text: Text::new("hello").unwrap() });
    let before = world(&chain).memes.next_meme.last().unwrap();
    let receipt = one(&chain, 1, vec![post.clone(), post, register("again")]);
    assert!(!receipt.succeeded());
    let world = world(&chain);
    assert_eq!(world.memes.next_meme.last().unwrap(), before);
    assert_eq!(world.memes.memes.iter().count(), 0);
}

fn delegate(owner: PublicKey, names: &[&'static str], expires: Option<Height>) -> Operation {
    let capabilities = BoundedSet::new(names.iter().map(|name| Capability::new(name))).unwrap();
    op(&sessions::Delegate { owner, name: Text::default(), capabilities, expires, init: StateHash::default() })
}

fn session_of(receipt: &Receipt) -> SessionId {
    let Verdict::Succeeded { operations, .. } = &receipt.verdict else { panic!("{receipt:?}") };
    SessionId::from_bytes(&operations[0].result).unwrap()
}

fn within(session: SessionId, person: u8, chain: &Chain, operations: Vec<Operation>) -> Result<Receipt, Refusal> {
    let nonce = chain.next_nonce(&key(person).public()).unwrap().unwrap();
    let transaction = Transaction { session: Some(session), ..unsigned(person, nonce, operations) };
    chain.submit(&keelstone_codec::Encode::to_bytes(&transaction.sign(&key(person))))?;
    Ok(chain.produce(chain.time(), proposer()).unwrap().receipts[0].clone())
}

/// spec: MODULE-6. A session does what was delegated to it, and nothing once it, or what it came from, is closed.
#[test]
fn sessions_hold_what_they_were_given_until_they_are_closed() {
    let chain = society();
    let post = || vec![op(&memes::Post { text: Text::new("hello").unwrap() })];
    let react = || vec![op(&memes::React { meme: memes::MemeId(1), reaction: Fixed::ONE })];
    let close = |session| vec![op(&sessions::Close { session })];
    let first =
        session_of(&one(&chain, 1, vec![delegate(key(2).public(), &["memes.post", "sessions.delegate"], None)]));
    assert!(within(first, 2, &chain, post()).unwrap().succeeded());
    assert!(matches!(within(first, 2, &chain, react()), Err(Refusal::Session(_))), "not delegated");
    assert!(matches!(within(first, 1, &chain, post()), Err(Refusal::Session(_))), "another's");
    // More than the parent holds is promised, and of no use.
    let delegated =
        within(first, 2, &chain, vec![delegate(key(3).public(), &["memes.post", "memes.react"], None)]).unwrap();
    let second = session_of(&delegated);
    assert!(within(second, 3, &chain, post()).unwrap().succeeded());
    assert!(matches!(within(second, 3, &chain, react()), Err(Refusal::Session(_))));
    // Only whose it is, or who stands above, may close it.
    let closed = one(&chain, 3, close(first));
    assert!(denied(&closed).contains("not yours"), "{closed:?}");
    assert!(one(&chain, 1, close(first)).succeeded());
    assert!(matches!(within(first, 2, &chain, post()), Err(Refusal::Session(_))));
    assert!(matches!(within(second, 3, &chain, post()), Err(Refusal::Session(_))), "its parent is closed");
    assert!(denied(&one(&chain, 1, close(first))).contains("is closed"));
    let root = SessionId::root(&chain_id(), &key(1).public());
    assert!(denied(&one(&chain, 1, close(root))).contains("root session"));
    // A session that ends by itself.
    let until = Height(chain.height().0 + 2);
    let third = session_of(&one(&chain, 1, vec![delegate(key(1).public(), &["memes.post"], Some(until))]));
    assert!(within(third, 1, &chain, post()).unwrap().succeeded());
    assert!(matches!(within(third, 1, &chain, post()), Err(Refusal::Session(_))));
    assert!(denied(&one(&chain, 1, vec![delegate(key(1).public(), &[], None)])).contains("may do something"));
    let sessions = View::<Sessions>::over(chain.view());
    assert_eq!(sessions.records.get(&third).unwrap().unwrap().sequence, 1);
}

/// A delegation that could never be used for depth is not made.
#[test]
fn sessions_are_delegated_eight_levels_deep_at_most() {
    let chain = society();
    let names = ["sessions.delegate"];
    let mut session = session_of(&one(&chain, 1, vec![delegate(key(1).public(), &names, None)]));
    for _ in 0..6 {
        session = session_of(&within(session, 1, &chain, vec![delegate(key(1).public(), &names, None)]).unwrap());
    }
    let receipt = within(session, 1, &chain, vec![delegate(key(1).public(), &names, None)]).unwrap();
    assert!(denied(&receipt).contains("delegated at most"), "{receipt:?}");
}
