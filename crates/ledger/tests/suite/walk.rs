//! A walk through everything functions can do: any function, with any arguments of its shape, by anybody, in any state
//! that such a walk comes to.

use crate::tools::*;
use keelstone_codec::{Blob, Fixed, Hash, Height, Shape, Text, Timestamp, put_length, splitmix64};
use keelstone_execution::{BlockContext, BlockDraft, Bundle, Caller, Entry, Limits, Mode, Operation, View};
use keelstone_ledger::Genesis;
use keelstone_ledger::modules::index::Indexes;
use keelstone_ledger::modules::{Society, agents, conflict, memes, rules, social, standard};
use keelstone_tree::{Blake3, MemoryTree};
use std::collections::{BTreeMap, BTreeSet};

/// Who walks: the first six are agents with stake.
const PEOPLE: u8 = 16;

/// Small and seeded.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % end as u64).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Mostly one of those who were there from the beginning.
    fn person(&mut self) -> u8 {
        let among = if self.below(6) == 0 { PEOPLE } else { 6 };
        1 + u8::try_from(self.below(usize::from(among))).unwrap()
    }
}

/// A walk in progress.
pub(crate) struct Walk {
    dice: Dice,
    tree: MemoryTree<Blake3>,
    height: u64,
    /// Hashes that some function returned: sessions.
    seen: Vec<[u8; 32]>,
    /// Numbers that some function returned: memes, alliances and the like.
    numbers: Vec<u64>,
}

impl Walk {
    pub(crate) fn begin(seed: u64) -> Self {
        let mut tree = MemoryTree::new();
        tree.apply(&genesis().first_state().unwrap().diff);
        Self { dice: Dice(seed), tree, height: 1, seen: Vec::new(), numbers: vec![1] }
    }

    /// Bytes of a shape: mostly what means something here, now and then what is at a limit of its type.
    fn fill(&mut self, shape: &Shape, out: &mut Vec<u8>) {
        let height = self.height;
        match shape {
            Shape::Unit => {}
            Shape::Bool => out.push(u8::try_from(self.dice.below(2)).unwrap()),
            Shape::Unsigned(bytes) => {
                let near = [height, height + 9, height + 10, height + 11, height + 40];
                let value = match self.dice.below(12) {
                    0 if self.dice.below(3) == 0 => self.dice.one(&[u64::MAX, u64::MAX - 1]),
                    0..4 => self.dice.one(&near),
                    4..6 => self.dice.one(&[0, 1, 3, 100]),
                    _ => self.numbers[self.numbers.len() - 1 - self.dice.below(self.numbers.len().min(16))],
                };
                let wide = u128::from(value).to_le_bytes();
                out.extend_from_slice(&wide[..usize::from(*bytes)]);
            }
            Shape::Signed(bytes) => {
                let wide = i128::from(self.dice.one(&[0, 1, -1, i64::MAX, i64::MIN])).to_le_bytes();
                out.extend_from_slice(&wide[..usize::from(*bytes)]);
            }
            Shape::Decimal => {
                let near = i64::try_from(self.dice.roll() % 2_000_001).unwrap() - 1_000_000;
                let value = match self.dice.below(10) {
                    0 if self.dice.below(3) == 0 => self.dice.one(&[i64::MAX, i64::MIN, 1_000_001, -1_000_001]),
                    0..4 => self.dice.one(&[0, 500_000, 1_000_000, -1_000_000]),
                    4..8 => near.abs(),
                    _ => near,
                };
                out.extend_from_slice(&value.to_le_bytes());
            }
            Shape::Array(32) => {
                let known = self.seen.len();
                let bytes = match self.dice.below(10) {
                    0 => [0xab; 32],
                    1..3 if known > 0 => self.seen[known - 1 - self.dice.below(known.min(8))],
                    _ => key(self.dice.person()).public().0.0,
                };
                out.extend_from_slice(&bytes);
            }
            Shape::Array(len) => out.extend((0..*len).map(|_| 7)),
            Shape::Text(max) | Shape::ShortText(max) | Shape::Bytes(max) | Shape::ShortBytes(max) => {
                let person = key(self.dice.person()).public().to_string();
                let text = match self.dice.below(10) {
                    0 if self.dice.below(3) == 0 => String::new(),
                    1 if self.dice.below(3) == 0 => "x".repeat(*max.min(&2_000)),
                    0..4 => "1".to_owned(),
                    4..8 => person,
                    _ => "a.b".to_owned(),
                };
                let text = &text[..text.len().min(*max)];
                match shape {
                    Shape::Text(_) | Shape::Bytes(_) => put_length(out, text.len()),
                    _ => out.push(u8::try_from(text.len()).unwrap()),
                }
                out.extend_from_slice(text.as_bytes());
            }
            Shape::Optional(inner) => match self.dice.below(2) {
                0 => out.push(0),
                _ => {
                    out.push(1);
                    self.fill(inner, out);
                }
            },
            Shape::List(element, max) | Shape::Set(element, max) => {
                let mut elements: Vec<Vec<u8>> = Vec::new();
                for _ in 0..self.dice.below(3.min(max + 1)) {
                    let mut bytes = Vec::new();
                    self.fill(element, &mut bytes);
                    elements.push(bytes);
                }
                if matches!(shape, Shape::Set(..)) {
                    elements = elements.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
                }
                put_length(out, elements.len());
                out.extend(elements.into_iter().flatten());
            }
            Shape::Tuple(parts) => parts.iter().for_each(|part| self.fill(part, out)),
            Shape::Record(fields) => fields.iter().for_each(|(_, field)| self.fill(field, out)),
            Shape::Choice(variants) => {
                let variant = &variants[self.dice.below(variants.len())];
                out.push(variant.tag);
                self.fill(&variant.shape, out);
            }
            other => panic!("no function takes {other:?} yet"),
        }
    }

    /// Any function, but not too often one after which somebody can do nothing more.
    fn pick<'a>(&mut self, functions: &[&'a Entry]) -> &'a Entry {
        loop {
            let entry = functions[self.dice.below(functions.len())];
            if !matches!(entry.name, "agents.set_status" | "agents.register") || self.dice.below(8) == 0 {
                return entry;
            }
        }
    }

    /// A call of any function, and by whom, in a block of this height.
    pub(crate) fn any_call(&mut self, functions: &[&Entry], height: u64) -> (u8, Operation) {
        self.height = height;
        let entry = self.pick(functions);
        self.call(entry)
    }

    /// A call of a function, and by whom.
    fn call(&mut self, entry: &Entry) -> (u8, Operation) {
        if self.dice.below(2) == 0
            && let Some(call) = self.likely(entry.name)
        {
            return call;
        }
        let mut args = Vec::new();
        self.fill(&(entry.args)(), &mut args);
        let args = Blob::new(args).unwrap();
        (self.dice.person(), Operation { function: entry.hash, args, expected_diff: None, expected_own_diff: None })
    }

    /// A call that needs more luck than a walk has: by whoever may, of what there is.
    fn likely(&mut self, name: &str) -> Option<(u8, Operation)> {
        let person = self.dice.person();
        let by = |agent: &agents::AgentId| (1..=PEOPLE).find(|person| who(*person) == *agent);
        let text = || Text::new("so").unwrap();
        let last = |last: u64, dice: &mut Dice| (last > 0).then(|| 1 + last.saturating_sub(1 + dice.roll() % 3));
        let operation = match name {
            // Nobody guesses a signature.
            "conflict.open" => self.dispute(),
            "conflict.opine" => {
                let court = View::<conflict::Court>::over(self.tree.clone());
                let is_open = |of: &conflict::Conflict| of.ruling.is_none() && of.deadline.0 >= self.height;
                let mut all = court.conflicts.all.iter_back().map(|entry| entry.unwrap());
                let (id, of) = all.find(|(_, of)| is_open(of))?;
                let numeric = of.strategy == conflict::tally::Strategy::RobustMean;
                let claims = [conflict::tally::Position::First, conflict::tally::Position::Second];
                let value = conflict::tally::Position::Value(Fixed::from_micros(300_000));
                let position = if numeric { value } else { self.dice.one(&claims) };
                op(&conflict::Opine { conflict: id, position, reason: Text::new("so").unwrap() })
            }
            "rules.propose" => op(&rules::Propose {
                title: Text::new("so").unwrap(),
                text: Text::new("be it").unwrap(),
                repeals: None,
                deadline: Height(self.height + 12),
                quorum: Fixed::from_micros(500_000),
                participation: 3,
            }),
            "rules.vote" => {
                let assembly = View::<rules::Assembly>::over(self.tree.clone());
                let rule = rules::RuleId(last(assembly.rules.next_rule.last().unwrap(), &mut self.dice)?);
                op(&rules::Vote { rule, yes: self.dice.below(4) > 0 })
            }
            // Few are left who are no agents.
            "agents.register" => {
                let world = View::<Society>::over(self.tree.clone());
                let is_new = |person: &u8| {
                    let acts = world.agents.by_key.contains(&key(*person).public()).unwrap();
                    !acts && !world.agents.all.contains(&who(*person)).unwrap()
                };
                return Some(((1..=PEOPLE).find(is_new)?, register("so")));
            }
            "agents.take_key" => {
                let world = View::<Society>::over(self.tree.clone());
                let mut offers = world.agents.all.iter().map(|entry| entry.unwrap());
                let (agent, key_of) = offers.find_map(|(id, agent)| Some((id, agent.offered_key?)))?;
                return Some((by(&agents::AgentId(key_of))?, op(&agents::TakeKey { agent })));
            }
            "social.betray_alliance" => {
                let world = View::<Society>::over(self.tree.clone());
                let mut large = world.social.alliances.iter().map(|entry| entry.unwrap());
                let (alliance, of) = large.find(|(_, alliance)| alliance.members.len() > 1)?;
                return Some((by(of.members.iter().next()?)?, op(&social::BetrayAlliance { alliance, text: text() })));
            }
            _ => return None,
        };
        Some((person, operation))
    }

    fn dispute(&mut self) -> Operation {
        let field = self.dice.one(&[conflict::Field::Mood, conflict::Field::Reputation]);
        let about = conflict::About::Agent { agent: who(self.dice.person()), field };
        let [first, second] = [0, 1].map(|_| {
            let person = self.dice.person();
            let claim =
                conflict::Claim::Value(Fixed::from_micros(i64::try_from(self.dice.below(9)).unwrap() * 100_000));
            conflict::Statement::sign(&chain_id(), who(person), about, claim, &key(person))
        });
        use conflict::tally::Strategy::*;
        op(&conflict::Open {
            subject: conflict::Subject::Statements { first, second },
            strategy: self.dice.one(&[Majority, Personality, Influence, RobustMean]),
            deadline: Height(self.height + 30),
            quorum: Fixed::from_micros(500_000),
            participation: 3,
        })
    }

    fn context(&self) -> BlockContext {
        BlockContext {
            chain_id: chain_id(),
            height: Height(self.height),
            time: Timestamp(self.height),
            proposer: proposer(),
            seed: Hash::ZERO,
        }
    }
}

pub(crate) fn genesis() -> Genesis {
    let mut genesis = staked((1..7).map(|person| (person, 1_000)));
    let all = [agents::GRANT_STAKE, keelstone_ledger::modules::contracts::PATCH];
    genesis.grants.insert(key(1).public(), all.into());
    let balances: Vec<String> =
        (1..4).map(|number| format!(r#"{{"key":"currency.balances:{}","value":500}}"#, key(number).public())).collect();
    genesis.import_xian(format!("[{}]", balances.join(",")).as_bytes()).unwrap();
    genesis
}

/// spec: MODULE-3, SOCIAL-7. Any function with any arguments: a bundle that fails leaves the draft as it was, one that
/// succeeds can be taken back to the very root, stake is neither made nor lost, and nothing passes its bounds.
#[test]
fn whatever_is_done_can_be_taken_back_and_no_stake_is_lost() {
    let registry = standard();
    let scale = golden::count("KEELSTONE_TEST_SCALE", 1);
    let mut done: BTreeMap<String, u64> = BTreeMap::new();
    // Who votes, and what limits there are, is no part of this world: `validators.rs` and `limits.rs`.
    let mut functions = registry.functions();
    // What an owner does about async bundles has a model of its own, in the tests of execution.
    functions.retain(|entry| !entry.name.starts_with("chain.") && !entry.name.starts_with("bundles."));
    for seed in 0..3 * scale {
        let mut walk = Walk::begin(seed);
        let mut indexes = Indexes::of(&walk.tree).unwrap();
        let mut root = walk.tree.root();
        for step in 0..4_000 {
            let count = 1 + walk.dice.below(5) / 4;
            let called: Vec<&Entry> = (0..count).map(|_| walk.pick(&functions)).collect();
            let (senders, operations): (Vec<u8>, _) = called.iter().map(|entry| walk.call(entry)).unzip();
            let bundle = Bundle::new(Mode::Sync, operations).unwrap();
            let sender = key(senders[0]).public();
            let mut draft = BlockDraft::begin(&registry, walk.tree.clone(), walk.context());
            let result = draft.execute(Caller::root(sender), &bundle, Limits::default()).unwrap();
            let changes = draft.finish();
            match result {
                Err(failed) => {
                    assert!(changes.is_empty(), "seed {seed}, step {step}: {failed} left a trace");
                    assert_ne!(failed.kind.code(), 6, "seed {seed}, step {step}: {failed}");
                }
                Ok(finished) => {
                    called.iter().for_each(|entry| *done.entry(entry.label()).or_default() += 1);
                    let results = finished.outcomes.iter();
                    walk.seen.extend(results.clone().filter_map(|outcome| <[u8; 32]>::try_from(&*outcome.result).ok()));
                    let numbers = results.filter_map(|outcome| <[u8; 8]>::try_from(&*outcome.result).ok());
                    walk.numbers.extend(numbers.map(u64::from_le_bytes));
                    let after = walk.tree.apply(&changes.to_diff());
                    let mut back = walk.tree.clone();
                    let restored = back.apply(&changes.restore(&walk.tree).unwrap().to_diff());
                    assert_eq!(restored, root, "seed {seed}, step {step}: {}", called[0].label());
                    root = after;
                    indexes.apply(&changes).unwrap();
                }
            }
            if step % 50 == 0 {
                whole(&walk.tree, &format!("seed {seed}, step {step}"));
            }
            walk.height += walk.dice.roll() % 3;
        }
        kept_up(&walk.tree, &indexes);
    }
    let never: Vec<String> =
        functions.iter().map(|entry| entry.label()).filter(|label| !done.contains_key(label)).collect();
    assert!(never.is_empty(), "never succeeded, so nothing was shown of them: {never:?}; the others: {done:?}");
}

/// What must be true of any state of the world.
// spec: AGENT-6, MODULE-3, SOCIAL-7
fn whole(tree: &MemoryTree<Blake3>, at: &str) {
    let world = View::<Society>::over(tree.clone());
    let within = |value: Fixed, limit: Fixed| value.micros().unsigned_abs() <= limit.micros().unsigned_abs();
    let mut stake = 0u64;
    for entry in world.agents.all.iter() {
        let (id, agent) = entry.unwrap();
        stake += agent.stake;
        assert!(within(agent.reputation, agents::REPUTATION_MAX) && within(agent.mood, Fixed::ONE), "{at}: {id}");
        assert_eq!(world.agents.by_key.get(&agent.key).unwrap(), Some(id), "{at}: an agent acts by one key");
    }
    assert_eq!(world.agents.by_key.iter().count(), world.agents.all.iter().count(), "{at}");
    let mut memberships = 0;
    for entry in world.social.alliances.iter() {
        let (id, alliance) = entry.unwrap();
        stake += alliance.pot + alliance.terms.bond * alliance.members.len() as u64;
        assert!(!alliance.members.is_empty() && alliance.dissolving.iter().all(|one| alliance.members.contains(one)));
        for member in alliance.members.iter() {
            memberships += 1;
            assert!(world.social.memberships.contains(&(*member, id)).unwrap(), "{at}");
        }
    }
    assert_eq!(world.social.memberships.iter().count(), memberships, "{at}");
    let mut counts: BTreeMap<agents::AgentId, social::Counts> = BTreeMap::new();
    for entry in world.social.bribes.iter() {
        let (_, bribe) = entry.unwrap();
        stake += bribe.amount;
        counts.entry(bribe.from).or_default().bribes += 1;
    }
    for entry in world.social.relationships.iter() {
        let ((agent, other), felt) = entry.unwrap();
        assert!(agent != other && within(felt.trust, Fixed::ONE) && within(felt.sentiment, Fixed::ONE), "{at}");
        counts.entry(agent).or_default().relationships += 1;
    }
    let kept: BTreeMap<_, _> = world.social.counts.iter().map(Result::unwrap).collect();
    assert_eq!(kept, counts, "{at}");
    assert_eq!(world.agents.stake_total.get_or_default().unwrap(), stake, "{at}: stake was made or lost");
    assert_eq!(world.memes.memes.iter().count(), world.memes.authors.iter().count(), "{at}");
    for entry in world.memes.memes.iter() {
        let (id, meme) = entry.unwrap();
        let reactions: Vec<Fixed> = world.memes.reactions.prefix(&id).map(|entry| entry.unwrap().1).collect();
        let sum: i64 = reactions.iter().map(|reaction| reaction.micros()).sum();
        assert_eq!((meme.reactions as usize, meme.score.micros()), (reactions.len(), sum), "{at}");
    }
    let assembly = View::<rules::Assembly>::over(tree.clone());
    let all: Vec<rules::Rule> = assembly.rules.all.iter().map(|entry| entry.unwrap().1).collect();
    let adopted = all.iter().filter(|rule| rule.adopted.is_some()).count();
    let counts = assembly.rules.counts.get_or_default().unwrap();
    assert_eq!((counts.open as usize, counts.adopted as usize), (all.len() - adopted, adopted), "{at}");
    let court = View::<conflict::Court>::over(tree.clone());
    let open = court.conflicts.all.iter().filter(|entry| entry.as_ref().unwrap().1.ruling.is_none()).count();
    assert_eq!(court.conflicts.open.get_or_default().unwrap() as usize, open, "{at}");
    assert_eq!(court.conflicts.subjects.iter().count(), open, "{at}");
}

/// Indexes that were kept up through a whole walk say what indexes made anew say.
// spec: MODULE-4
fn kept_up(tree: &MemoryTree<Blake3>, kept: &Indexes) {
    let anew = Indexes::of(tree).unwrap();
    for person in 1..=PEOPLE {
        let agent = who(person);
        let memes: Vec<memes::MemeId> = anew.memes_by_author.get(&agent).unwrap();
        assert_eq!(kept.memes_by_author.get(&agent).unwrap(), memes);
        let alliances = anew.alliances_by_member.get(&agent).unwrap();
        assert_eq!(kept.alliances_by_member.get(&agent).unwrap(), alliances);
        let felt = anew.relationships_by_other.get(&agent).unwrap();
        assert_eq!(kept.relationships_by_other.get(&agent).unwrap(), felt);
        let name = Text::new(format!("agent {person}")).unwrap();
        assert_eq!(kept.agents_by_name.get(&name).unwrap(), anew.agents_by_name.get(&name).unwrap());
    }
    let sizes = |indexes: &Indexes| {
        let of = [indexes.memes_by_author.len(), indexes.alliances_by_member.len()];
        (of, indexes.relationships_by_other.len(), indexes.agents_by_name.len())
    };
    assert_eq!(sizes(kept), sizes(&anew));
}
