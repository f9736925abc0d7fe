//! Conflicts: what opens one, who may judge, how votes are counted, what is applied, and what attackers come to.

use crate::tools::*;
use crate::world::{denied, fine, pass};
use keelstone_codec::{Fixed, Hash, Height, Text};
use keelstone_execution::{Operation, SYSTEM_NAMESPACES, SessionId, View, World as _};
use keelstone_ledger::modules::agents;
use keelstone_ledger::modules::conflict::tally::{self, Lack, Outcome, Position, Strategy, Tally, VOICES_MAX, Voice};
use keelstone_ledger::modules::conflict::{self, About, Claim, ConflictId, Court, Field, Statement, Subject};
use keelstone_ledger::modules::social::{self, AllianceId};
use keelstone_ledger::{PublicKey, Verdict};

fn fixed(text: &str) -> Fixed {
    Fixed::parse(text).unwrap()
}

fn court(chain: &Chain) -> View<Court> {
    View::over(chain.view())
}

fn half() -> Fixed {
    fixed("0.5")
}

fn statement(person: u8, about: About, claim: Claim) -> Statement {
    Statement::sign(&chain_id(), who(person), about, claim, &key(person))
}

/// Two people on the mood of a third.
fn moods(first: (u8, &str), second: (u8, &str), of: u8) -> Subject {
    let about = About::Agent { agent: who(of), field: Field::Mood };
    let say = |(person, value): (u8, &str)| statement(person, about, Claim::Value(fixed(value)));
    Subject::Statements { first: say(first), second: say(second) }
}

fn open(subject: Subject, strategy: Strategy, deadline: u64) -> Operation {
    op(&conflict::Open { subject, strategy, deadline: Height(deadline), quorum: half(), participation: 3 })
}

fn opine(conflict: u64, position: Position) -> Operation {
    let reason = Text::new("so it seems to me").unwrap();
    op(&conflict::Opine { conflict: ConflictId(conflict), position, reason })
}

fn resolve(conflict: u64) -> Operation {
    op(&conflict::Resolve { conflict: ConflictId(conflict) })
}

fn ruling(chain: &Chain, conflict: u64) -> Tally {
    court(chain).conflicts.all.get(&ConflictId(conflict)).unwrap().unwrap().ruling.unwrap().tally
}

/// Ten people with 100 units each.
fn ten() -> Chain {
    chain_of(&staked((1..11).map(|person| (person, 100))))
}

fn agent(chain: &Chain, person: u8) -> agents::Agent {
    court(chain).agents.all.get(&who(person)).unwrap().unwrap()
}

/// spec: CONFLICT-1, CONFLICT-2. Nothing is opened by evidence that does not hold, nor twice about one thing.
#[test]
fn only_evidence_that_holds_opens_a_conflict() {
    let chain = ten();
    let about = About::Agent { agent: who(3), field: Field::Mood };
    let value = |text: &str| Claim::Value(fixed(text));
    let good = statement(1, about, value("0.5"));
    let pair = |second: Statement| Subject::Statements { first: good.clone(), second };
    let hash = About::Transition { session: SessionId::root(&chain_id(), &key(1).public()), sequence: 4 };
    let other_field = About::Agent { agent: who(3), field: Field::Reputation };
    let forged = Statement { claim: value("-0.5"), ..statement(2, about, value("0.1")) };
    let borrowed = Statement { by: who(2), ..statement(4, about, value("0.1")) };
    for (subject, why) in [
        (pair(forged), "the signature is not by"),
        (pair(borrowed), "the signature is not by"),
        (pair(statement(2, about, value("0.5"))), "say the same"),
        (pair(statement(2, other_field, value("0.1"))), "about two things"),
        (pair(statement(2, about, value("1.000001"))), "the value is"),
        (pair(statement(2, about, Claim::Hash(Hash::ZERO))), "a hash is claimed"),
        (pair(statement(2, hash, value("0.1"))), "a hash is claimed"),
        (pair(statement(99, about, value("0.1"))), "is no agent"),
        (Subject::Alliances { member: who(1), first: AllianceId(1), second: AllianceId(2) }, "no alliance 1"),
        (Subject::Alliances { member: who(1), first: AllianceId(2), second: AllianceId(2) }, "are two"),
    ] {
        let receipt = one(&chain, 5, vec![open(subject, Strategy::Majority, 100)]);
        assert!(denied(&receipt).contains(why), "{why}: {receipt:?}");
    }
    let other_chain = keelstone_codec::ChainId::new("test-2").unwrap();
    let elsewhere = Statement::sign(&other_chain, who(2), about, value("0.1"), &key(2));
    assert!(denied(&one(&chain, 5, vec![open(pair(elsewhere), Strategy::Majority, 100)])).contains("signature"));
    let held = || pair(statement(2, about, value("0.1")));
    fine(&one(&chain, 5, vec![open(held(), Strategy::Majority, 100)]));
    assert!(denied(&one(&chain, 6, vec![open(held(), Strategy::Influence, 100)])).contains("conflict 1 is about this"));
    let Subject::Statements { first, second } = held() else { panic!("statements") };
    let turned = Subject::Statements { first: second, second: first };
    assert!(denied(&one(&chain, 6, vec![open(turned, Strategy::Majority, 100)])).contains("conflict 1 is about this"));
    let lone = |person| statement(person, hash, Claim::Hash(Hash([person; 32])));
    let divergent = Subject::Statements { first: lone(1), second: lone(2) };
    let receipt = one(&chain, 5, vec![open(divergent.clone(), Strategy::RobustMean, 100)]);
    assert!(denied(&receipt).contains("a mean is of"));
    fine(&one(&chain, 5, vec![open(divergent, Strategy::Majority, 100)]));
}

/// spec: CONFLICT-2, AGENT-9. One agent has eight conflicts open at a time, and where all places are taken, the first whose opener has no
/// standing any more comes to nothing.
#[test]
fn no_agent_and_no_stake_takes_all_places_for_conflicts() {
    let chain = chain_of(&staked((1..10).map(|person| (person, 100)).chain([(20, 0)])));
    let opens = |person: u8, numbers: std::ops::Range<u8>| {
        let subject = |number| moods((1, &format!("0.{person:02}{number}")), (2, "-0.5"), 3);
        one(&chain, person, numbers.map(|number| open(subject(number), Strategy::Majority, 40)).collect())
    };
    fine(&opens(1, 0..8));
    assert!(denied(&opens(1, 8..9)).contains("which is the limit for one agent"));
    for person in 2..9 {
        fine(&opens(person, 0..8));
    }
    assert!(denied(&opens(9, 0..1)).contains("64 conflicts are open, the limit"));
    fine(&one(&chain, 9, vec![opine(17, Position::First)]));
    fine(&one(&chain, 3, vec![op(&agents::GiveStake { to: who(20), amount: 100 })]));
    // The same stake elsewhere: it takes a place that it had, and so does anybody.
    fine(&opens(20, 0..1));
    fine(&opens(9, 0..1));
    for conflict in [17, 18] {
        assert_eq!(ruling(&chain, conflict).outcome, Outcome::Unresolved(Lack::Moot));
    }
    let opened = || court(&chain).conflicts.open.get().unwrap();
    assert_eq!((court(&chain).conflicts.subjects.iter().count(), opened()), (64, Some(64)));
    let of = |person| court(&chain).conflicts.opened.get(&who(person)).unwrap();
    assert_eq!([of(1), of(3), of(9), of(20)], [Some(8), Some(6), Some(1), Some(1)]);
    assert!(denied(&one(&chain, 5, vec![opine(17, Position::First)])).contains("is settled"));
    pass(&chain, 9, Height(40));
    fine(&one(&chain, 5, (1..9).map(resolve).collect()));
    assert_eq!((of(1), opened()), (None, Some(56)));
}

/// spec: CONFLICT-3, CONFLICT-7. The outcome is written by the operation that counts, with everybody's voice beside it.
#[test]
fn an_agreed_value_becomes_the_agents() {
    let chain = ten();
    fine(&one(&chain, 4, vec![open(moods((1, "0.5"), (2, "-0.5"), 3), Strategy::Majority, 30)]));
    assert!(denied(&one(&chain, 4, vec![resolve(1)])).contains("are taken until 30"));
    for (person, position) in [(5, Position::First), (6, Position::First), (7, Position::Second)] {
        fine(&one(&chain, person, vec![opine(1, position)]));
    }
    for party in [1, 2, 3] {
        assert!(denied(&one(&chain, party, vec![opine(1, Position::First)])).contains("its own case"));
    }
    let value = opine(1, Position::Value(Fixed::ZERO));
    assert!(denied(&one(&chain, 8, vec![value])).contains("is one of the claims"));
    pass(&chain, 10, Height(30));
    assert!(denied(&one(&chain, 8, vec![opine(1, Position::Second)])).contains("were taken until 30"));
    let receipt = one(&chain, 99, vec![resolve(1)]);
    fine(&receipt);
    let tally = ruling(&chain, 1);
    assert_eq!((tally.outcome, tally.carried, tally.total), (Outcome::First, 2_000_000, 3_000_000));
    assert_eq!(agent(&chain, 3).mood, fixed("0.5"));
    assert_eq!((agent(&chain, 1).reputation, agent(&chain, 2).reputation), (Fixed::ZERO, fixed("-1")));
    assert!(denied(&one(&chain, 4, vec![resolve(1)])).contains("is settled"));
    // The record, with its count, is one entry of the state: whoever has the root can be shown it.
    let place = keelstone_codec::Key::new([b"all/".as_slice(), &1u64.to_be_bytes()].concat()).unwrap();
    let query = keelstone_tree::Query::Key(keelstone_codec::Namespace::new("conflict").unwrap(), place.clone());
    let proof = chain.view().prove(std::slice::from_ref(&query)).unwrap();
    let verified = proof.verify::<keelstone_tree::Blake3>(chain.root(), &[query], &Default::default()).unwrap();
    let shown = verified.get(&keelstone_codec::Namespace::new("conflict").unwrap(), &place);
    assert!(matches!(shown, keelstone_tree::Answer::Present(_)), "{shown:?}");
}

/// spec: CONFLICT-7. Whoever is in two alliances, one of them exclusive, leaves the one that loses, with its bond.
#[test]
fn a_member_leaves_the_alliance_that_lost() {
    let chain = ten();
    let found = |name: &str, exclusive| {
        let terms = social::Terms { bond: 20, exclusive, ..Default::default() };
        let (name, purpose, benefits) = (Text::new(name).unwrap(), Text::default(), Text::default());
        op(&social::ProposeAlliance { name, purpose, terms, benefits, prize: 0, invited: Default::default() })
    };
    let join = |id| op(&social::JoinAlliance { alliance: AllianceId(id) });
    let both = |second| Subject::Alliances { member: who(3), first: AllianceId(1), second: AllianceId(second) };
    fine(&one(&chain, 1, vec![found("open", false), found("as open", false)]));
    fine(&one(&chain, 2, vec![found("closed", true)]));
    fine(&one(&chain, 3, vec![join(1), join(2), join(3)]));
    assert_eq!(agent(&chain, 3).stake, 40);
    assert!(denied(&one(&chain, 4, vec![open(both(2), Strategy::Majority, 30)])).contains("neither"));
    fine(&one(&chain, 4, vec![open(both(3), Strategy::Majority, 30)]));
    for person in [5, 6, 7] {
        fine(&one(&chain, person, vec![opine(1, Position::Second)]));
    }
    pass(&chain, 10, Height(30));
    fine(&one(&chain, 4, vec![resolve(1)]));
    let held = court(&chain);
    assert!(!held.social.alliance(AllianceId(1)).unwrap().members.contains(&who(3)));
    assert!(held.social.alliance(AllianceId(3)).unwrap().members.contains(&who(3)));
    assert_eq!(agent(&chain, 3).stake, 60);
}

/// spec: CONFLICT-7. What is no longer there cannot be judged: nothing is applied, and the record says why.
#[test]
fn a_conflict_over_what_is_gone_is_moot() {
    let chain = ten();
    let terms = social::Terms { exclusive: true, ..Default::default() };
    let found = |name: &str| {
        let (name, purpose, benefits) = (Text::new(name).unwrap(), Text::default(), Text::default());
        let invited = Default::default();
        op(&social::ProposeAlliance { name, purpose, terms: terms.clone(), benefits, prize: 0, invited })
    };
    fine(&one(&chain, 3, vec![found("one"), found("two")]));
    let subject = Subject::Alliances { member: who(3), first: AllianceId(1), second: AllianceId(2) };
    fine(&one(&chain, 4, vec![open(subject, Strategy::Majority, 30)]));
    for person in [5, 6, 7] {
        fine(&one(&chain, person, vec![opine(1, Position::First)]));
    }
    fine(&one(&chain, 3, vec![op(&social::LeaveAlliance { alliance: AllianceId(2) })]));
    pass(&chain, 10, Height(30));
    fine(&one(&chain, 4, vec![resolve(1)]));
    assert_eq!(ruling(&chain, 1).outcome, Outcome::Unresolved(Lack::Moot));
    assert!(court(&chain).social.alliance(AllianceId(1)).unwrap().members.contains(&who(3)));
}

/// spec: CONFLICT-7. So it is over a member whose registration was taken back: nobody is there to be given the bond.
#[test]
fn a_conflict_over_one_who_is_no_agent_any_more_is_moot() {
    let chain = ten();
    let terms = social::Terms { exclusive: true, bond: 5, ..Default::default() };
    let found = |name: &str| {
        let (name, purpose, benefits) = (Text::new(name).unwrap(), Text::default(), Text::default());
        let invited = Default::default();
        op(&social::ProposeAlliance { name, purpose, terms: terms.clone(), benefits, prize: 0, invited })
    };
    fine(&one(&chain, 1, vec![found("one"), found("two")]));
    let join = |id| op(&social::JoinAlliance { alliance: AllianceId(id) });
    never_was(&chain, 11, 10, vec![join(1), join(2)]);
    let subject = Subject::Alliances { member: who(11), first: AllianceId(1), second: AllianceId(2) };
    fine(&one(&chain, 4, vec![open(subject, Strategy::Majority, 30)]));
    for person in [5, 6, 7] {
        fine(&one(&chain, person, vec![opine(1, Position::First)]));
    }
    pass(&chain, 10, Height(30));
    fine(&one(&chain, 4, vec![resolve(1)]));
    assert_eq!(ruling(&chain, 1).outcome, Outcome::Unresolved(Lack::Moot));
}

/// spec: CONFLICT-3. One agent speaks once: not again, not by a new key, and not through stake that it passes on.
#[test]
fn nobody_votes_twice() {
    let chain = chain_of(&staked((1..11).map(|person| (person, if person < 9 { 100 } else { 0 }))));
    fine(&one(&chain, 4, vec![open(moods((1, "0.5"), (2, "-0.5"), 3), Strategy::Majority, 40)]));
    fine(&one(&chain, 5, vec![opine(1, Position::Second)]));
    assert!(denied(&one(&chain, 5, vec![opine(1, Position::First)])).contains("already"));
    fine(&one(&chain, 5, vec![op(&agents::OfferKey { key: Some(key(55).public()) })]));
    fine(&one(&chain, 55, vec![op(&agents::TakeKey { agent: who(5) })]));
    assert!(denied(&one(&chain, 55, vec![opine(1, Position::Second)])).contains("already"));
    // 5 lends its stake to 9, which speaks, and lends it to 10, which speaks: one voice is left of three.
    let give = |to| op(&agents::GiveStake { to: who(to), amount: 100 });
    fine(&one(&chain, 55, vec![give(9)]));
    fine(&one(&chain, 9, vec![opine(1, Position::Second), give(10)]));
    fine(&one(&chain, 10, vec![opine(1, Position::Second)]));
    for person in [6, 7] {
        fine(&one(&chain, person, vec![opine(1, Position::First)]));
    }
    pass(&chain, 8, Height(40));
    fine(&one(&chain, 8, vec![resolve(1)]));
    let tally = ruling(&chain, 1);
    assert_eq!((tally.outcome, tally.counted.len(), tally.void), (Outcome::First, 3, 2));
}

/// spec: CONFLICT-3, AGENT-8. One stake of 100 that is passed through as many agents as there are places keeps none of those who
/// have more from any, and whoever weighs more takes the place of whoever weighs least.
#[test]
fn an_opinion_gives_its_place_up_to_a_heavier_one() {
    let last = u8::try_from(VOICES_MAX).unwrap() + 1;
    let honest = 100..108;
    let mut all =
        staked([(1, 0), (2, 0), (3, 0), (10, 100), (99, 100)].into_iter().chain(honest.clone().map(|p| (p, 1_000))));
    all.world.agents.extend(staked((11..11 + last).map(|person| (person, 0))).world.agents);
    let chain = chain_of(&all);
    fine(&one(&chain, 100, vec![open(moods((1, "0.5"), (2, "-0.5"), 3), Strategy::Majority, 200)]));
    let give = |to| op(&agents::GiveStake { to: who(to), amount: 100 });
    for person in 10..10 + last - 1 {
        fine(&one(&chain, person, vec![opine(1, Position::Second), give(person + 1)]));
    }
    let given = || court(&chain).conflicts.opinions.prefix(&ConflictId(1)).count();
    assert_eq!(given(), VOICES_MAX);
    for person in honest.clone() {
        fine(&one(&chain, person, vec![opine(1, Position::First)]));
    }
    // All are void but the honest ones, so one of 100 finds a place too.
    fine(&one(&chain, 99, vec![opine(1, Position::Second)]));
    assert_eq!((given(), court(&chain).conflicts.all.get(&ConflictId(1)).unwrap().unwrap().opinions), (VOICES_MAX, 64));
    pass(&chain, 99, Height(200));
    fine(&one(&chain, 99, vec![resolve(1)]));
    let tally = ruling(&chain, 1);
    assert_eq!((tally.outcome, tally.counted.len(), tally.void), (Outcome::First, 9, 55));
}

/// spec: CONFLICT-3, AGENT-8. Whoever weighs no more than any finds no place.
#[test]
fn an_opinion_gives_its_place_up_to_nobody_who_weighs_no_more() {
    let places = u8::try_from(VOICES_MAX).unwrap();
    let rest = [(1, 0), (2, 0), (3, 0), (99, 100), (100, 101)];
    let chain = chain_of(&staked((10..10 + places).map(|person| (person, 100)).chain(rest)));
    fine(&one(&chain, 99, vec![open(moods((1, "0.5"), (2, "-0.5"), 3), Strategy::Majority, 200)]));
    for person in 10..10 + places {
        fine(&one(&chain, person, vec![opine(1, Position::Second)]));
    }
    assert!(denied(&one(&chain, 99, vec![opine(1, Position::First)])).contains("none with less than 100"));
    fine(&one(&chain, 100, vec![opine(1, Position::First)]));
    let first = (10..10 + places).min_by_key(|person| who(*person)).unwrap();
    assert!(!court(&chain).conflicts.opinions.contains(&(ConflictId(1), who(first))).unwrap());
    assert!(denied(&one(&chain, first, vec![opine(1, Position::First)])).contains("none with less than 100"));
}

/// spec: CONFLICT-4, CONFLICT-7. Both claims can be wrong: then nothing is changed, and nobody pays.
#[test]
fn neither_claim_may_be_right() {
    let chain = ten();
    fine(&one(&chain, 4, vec![open(moods((1, "0.5"), (2, "-0.5"), 3), Strategy::Majority, 30)]));
    for (person, position) in [(5, Position::Neither), (6, Position::First), (7, Position::Neither)] {
        fine(&one(&chain, person, vec![opine(1, position)]));
    }
    fine(&one(&chain, 4, vec![open(moods((1, "0.25"), (2, "-0.25"), 3), Strategy::RobustMean, 30)]));
    assert!(denied(&one(&chain, 5, vec![opine(2, Position::Neither)])).contains("is a value"));
    pass(&chain, 10, Height(30));
    fine(&one(&chain, 4, vec![resolve(1)]));
    let tally = ruling(&chain, 1);
    assert_eq!((tally.outcome, tally.carried, tally.total), (Outcome::Neither, 2_000_000, 3_000_000));
    for person in 1..4 {
        assert_eq!((agent(&chain, person).mood, agent(&chain, person).reputation), (Fixed::ZERO, Fixed::ZERO));
    }
    assert!(
        denied(&one(&chain, 4, vec![open(moods((1, "0.5"), (2, "0.1"), 3), Strategy::Majority, 60)]))
            .contains("decided")
    );
}

/// spec: CONFLICT-4. The heaviest of three answers wins; where two are, none does, and what says neither counts against the
/// quorum of a claim.
#[test]
fn neither_is_an_answer_like_the_others() {
    let of = |counts: [u8; 3]| -> Vec<Voice> {
        let answers = [Position::First, Position::Second, Position::Neither].into_iter().zip(counts);
        let said = answers.flat_map(|(position, count)| (0..count).map(move |_| position));
        said.zip(0..).map(|(position, number)| voice(number, position)).collect()
    };
    let outcome = |counts, quorum| tally::count(Strategy::Majority, fixed(quorum), 3, &of(counts), 0).outcome;
    assert_eq!(outcome([3, 1, 2], "0.5"), Outcome::First);
    assert_eq!(outcome([3, 1, 2], "0.6"), Outcome::Unresolved(Lack::Quorum));
    assert_eq!(outcome([1, 2, 3], "0.5"), Outcome::Neither);
    assert_eq!(outcome([3, 1, 3], "0.5"), Outcome::Unresolved(Lack::Tie));
    assert_eq!(outcome([2, 2, 1], "0.5"), Outcome::Unresolved(Lack::Tie));
    assert_eq!(outcome([0, 0, 3], "1"), Outcome::Neither);
}

/// spec: CONFLICT-9. A statement that was decided over is evidence no more, with whichever other one and however it is signed;
/// one that came to nothing is. Of two conflicts that hold it the later one is moot.
#[test]
fn a_statement_is_decided_over_once() {
    let chain = ten();
    let court_on = |id: u64, subject: Subject, positions: [Position; 3]| {
        fine(&one(&chain, 4, vec![open(subject, Strategy::Majority, chain.height().0 + 20)]));
        for (person, position) in [5, 6, 7].into_iter().zip(positions) {
            fine(&one(&chain, person, vec![opine(id, position)]));
        }
    };
    let settle = |id| {
        let deadline = court(&chain).conflicts.all.get(&ConflictId(id)).unwrap().unwrap().deadline;
        pass(&chain, 10, deadline);
        fine(&one(&chain, 4, vec![resolve(id)]));
        ruling(&chain, id).outcome
    };
    let first_two = [Position::First, Position::First, Position::Second];
    let subject = || moods((1, "0.5"), (2, "-0.5"), 3);
    court_on(1, subject(), [Position::First, Position::Second, Position::Neither]);
    assert_eq!(settle(1), Outcome::Unresolved(Lack::Tie));
    court_on(2, subject(), first_two);
    court_on(3, moods((2, "-0.5"), (8, "0.5"), 3), [Position::Second, Position::Second, Position::Second]);
    assert_eq!(settle(2), Outcome::First);
    assert_eq!(agent(&chain, 2).reputation, fixed("-1"));
    assert_eq!(settle(3), Outcome::Unresolved(Lack::Moot));
    assert_eq!(agent(&chain, 2).reputation, fixed("-1"), "a statement is paid for once");
    for again in [subject(), moods((2, "-0.5"), (9, "0.1"), 3), moods((9, "0.1"), (1, "0.5"), 3)] {
        assert!(denied(&one(&chain, 4, vec![open(again, Strategy::Majority, 300)])).contains("was decided over"));
    }
    fine(&one(&chain, 4, vec![open(moods((8, "0.5"), (9, "0.1"), 3), Strategy::Majority, 300)]));
}

/// spec: CONFLICT-3. A thousand keys without stake are no voice.
#[test]
fn sybils_without_stake_have_no_voice() {
    let chain = ten();
    fine(&one(&chain, 4, vec![open(moods((1, "0.5"), (2, "-0.5"), 3), Strategy::Influence, 120)]));
    for sybil in 100..130 {
        fine(&one(&chain, sybil, vec![register("sybil")]));
        assert!(denied(&one(&chain, sybil, vec![opine(1, Position::Second)])).contains("standing takes 100"));
        let felt = social::Relationship { trust: Fixed::ONE, sentiment: Fixed::ONE };
        // Their trust counts for nothing either.
        fine(&one(&chain, sybil, vec![op(&social::SetRelationship { other: who(7), relationship: felt })]));
    }
    for (person, position) in [(5, Position::First), (6, Position::First), (7, Position::Second)] {
        fine(&one(&chain, person, vec![opine(1, position)]));
    }
    pass(&chain, 10, Height(120));
    fine(&one(&chain, 4, vec![resolve(1)]));
    assert_eq!((ruling(&chain, 1).outcome, ruling(&chain, 1).carried), (Outcome::First, 2_000_000));
}

/// spec: CONFLICT-8. No vote reaches what the engine certifies: the namespaces are out of reach by their types, and
/// what an outcome changes is outside them.
#[test]
fn no_vote_overrides_what_is_certified() {
    for space in Court::spaces() {
        assert!(!SYSTEM_NAMESPACES.contains(&space.name), "{}", space.name);
    }
    // All of them agree that a session came to another hash than it did.
    let chain = ten();
    let session = SessionId::root(&chain_id(), &key(3).public());
    fine(&one(&chain, 3, vec![op(&agents::SetMood { mood: Fixed::ONE })]));
    let record =
        |chain: &Chain| View::<keelstone_execution::Sessions>::over(chain.view()).records.get(&session).unwrap();
    let (before, certified) = (record(&chain).unwrap(), chain.root_at(Height(1)).unwrap());
    let about = About::Transition { session, sequence: 1 };
    let first = statement(1, about, Claim::Hash(Hash([0xee; 32])));
    let second = statement(2, about, Claim::Hash(before.state_hash.0));
    let subject = Subject::Statements { first, second };
    fine(&one(&chain, 4, vec![open(subject, Strategy::Majority, 30)]));
    for person in 5..10 {
        fine(&one(&chain, person, vec![opine(1, Position::First)]));
    }
    pass(&chain, 10, Height(30));
    let receipt = one(&chain, 4, vec![resolve(1)]);
    fine(&receipt);
    assert_eq!(ruling(&chain, 1).outcome, Outcome::First);
    assert_eq!((record(&chain).unwrap(), chain.root_at(Height(1)).unwrap()), (before, certified));
    let Verdict::Succeeded { operations, .. } = &receipt.verdict else { unreachable!("it is fine") };
    // The conflict, its subject, what is open and how much of the opener's, what is settled and its number, the loser, the drama with
    // its number, and both statements, which are no evidence any more.
    assert_eq!(operations[0].diff.entries, 11);
    assert!(chain.replay(Height(1)..=chain.height(), &mut |_, _| ()).is_ok());
}

// ---- counting

fn voice(number: u8, position: Position) -> Voice {
    let agent = agents::AgentId(PublicKey(Hash([number; 32])));
    let personality = agents::Personality::even(Fixed::ZERO);
    Voice { agent, position, personality, stake: 100, trust: Vec::new() }
}

fn parts(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// The rows of the table in `docs/conflict.md` whose head begins so.
fn table(head: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conflict.md")).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    rows.map(|line| parts(line).into_iter().map(str::to_owned).collect()).collect()
}

/// spec: CONFLICT-4, CONFLICT-5, CONFLICT-6. The table worked out by hand in the documentation.
#[test]
fn strategies_count_as_worked_out_by_hand() {
    let rows = table("| voice | stake |");
    let names: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, ["A", "B", "C", "D", "E"]);
    let voices = |numeric: bool| -> Vec<Voice> {
        let made = rows.iter().zip(1u8..).map(|(row, number)| {
            let mut trust = vec![Fixed::ZERO; names.len()];
            for part in row[4].split(", ").filter(|part| *part != "nobody") {
                let (name, value) = part.split_once(' ').unwrap();
                trust[names.iter().position(|other| *other == name).unwrap()] = fixed(value);
            }
            let position = match (numeric, row[5].as_str()) {
                (true, _) => Position::Value(fixed(&row[6])),
                (_, "first") => Position::First,
                (_, "second") => Position::Second,
                other => panic!("{other:?}"),
            };
            let mut voice = voice(number, position);
            voice.stake = row[1].parse().unwrap();
            voice.personality.openness = fixed(&row[2]);
            voice.personality.conscientiousness = fixed(&row[3]);
            Voice { trust, ..voice }
        });
        made.collect()
    };
    let expected = table("| strategy |");
    assert_eq!(expected.len(), 4);
    for row in expected {
        let strategy = match row[0].as_str() {
            "majority" => Strategy::Majority,
            "personality" => Strategy::Personality,
            "influence" => Strategy::Influence,
            "robust mean" => Strategy::RobustMean,
            other => panic!("{other}"),
        };
        let numeric = strategy == Strategy::RobustMean;
        let tally = tally::count(strategy, half(), 3, &voices(numeric), 0);
        // Stake is counted in whole units, everything else in millionths.
        let weight = |text: &str| if numeric { text.parse().unwrap() } else { fixed(text).micros().unsigned_abs() };
        let weights: Vec<u64> = tally.counted.iter().map(|voice| voice.weight).collect();
        assert_eq!(weights, row[1..6].iter().map(|text| weight(text)).collect::<Vec<_>>(), "{strategy:?}");
        assert_eq!((tally.carried, tally.total), (weight(&row[6]).into(), weight(&row[7]).into()), "{strategy:?}");
        let outcome = match row[8].as_str() {
            "first" => Outcome::First,
            "second" => Outcome::Second,
            value => Outcome::Value(fixed(value)),
        };
        assert_eq!(tally.outcome, outcome, "{strategy:?}");
        // However the voices are ordered.
        let mut turned = voices(numeric);
        turned.reverse();
        turned.iter_mut().for_each(|voice| voice.trust.reverse());
        assert_eq!(tally::count(strategy, half(), 3, &turned, 0).outcome, outcome, "{strategy:?}");
    }
}

/// spec: CONFLICT-4, CONFLICT-7. A tie, a thin majority, too few: both sides are kept.
#[test]
fn no_winner_leaves_both_sides() {
    let of = |first: u8, second: u8| -> Vec<Voice> {
        let claim = |number| if number < first { Position::First } else { Position::Second };
        (0..first + second).map(|number| voice(number, claim(number))).collect()
    };
    let outcome = |voices: &[Voice], quorum| tally::count(Strategy::Majority, fixed(quorum), 3, voices, 0).outcome;
    assert_eq!(outcome(&of(3, 3), "0.5"), Outcome::Unresolved(Lack::Tie));
    assert_eq!(outcome(&of(2, 0), "0.5"), Outcome::Unresolved(Lack::Participation), "the first yes is no quorum");
    assert_eq!(outcome(&[], "0.5"), Outcome::Unresolved(Lack::Participation));
    assert_eq!(outcome(&of(3, 2), "0.600001"), Outcome::Unresolved(Lack::Quorum));
    assert_eq!(outcome(&of(3, 2), "0.6"), Outcome::First);
    assert_eq!(outcome(&of(0, 5), "1"), Outcome::Second);
    assert_eq!(outcome(&of(1, 5), "1"), Outcome::Unresolved(Lack::Quorum));
}

/// spec: CONFLICT-4, CONFLICT-5, CONFLICT-6. Three in ten who agree on a lie do not carry it, whatever they say of
/// themselves and one another.
#[test]
fn three_in_ten_who_collude_do_not_carry() {
    for honest in 7..45usize {
        let lying = honest * 3 / 7;
        let count = honest + lying;
        let voices: Vec<Voice> = (0..count)
            .map(|number| {
                let lies = number >= honest;
                let mut voice =
                    voice(u8::try_from(number).unwrap(), if lies { Position::Second } else { Position::First });
                if lies {
                    // Perfect by their own account, and wholly devoted to one another.
                    voice.personality = agents::Personality::even(Fixed::ONE);
                    voice.trust =
                        (0..count).map(|other| if other >= honest { Fixed::ONE } else { fixed("-1") }).collect();
                }
                voice
            })
            .collect();
        for strategy in [Strategy::Majority, Strategy::Personality, Strategy::Influence] {
            let tally = tally::count(strategy, half(), 3, &voices, 0);
            assert_eq!(tally.outcome, Outcome::First, "{strategy:?}, {lying} of {count}");
        }
        // The honest say about 0.5; the others what is furthest from it, all of it on one side.
        let values: Vec<Voice> = voices
            .iter()
            .enumerate()
            .map(|(number, voice)| {
                let near = 500_000 + i64::try_from(number % 7).unwrap() * 1_000;
                let value = if number >= honest { -Fixed::SCALE } else { near };
                Voice { position: Position::Value(Fixed::from_micros(value)), ..voice.clone() }
            })
            .collect();
        let tally = tally::count(Strategy::RobustMean, half(), 3, &values, 0);
        let Outcome::Value(value) = tally.outcome else { panic!("{tally:?}") };
        assert!((fixed("0.5")..=fixed("0.506")).contains(&value), "{value}");
        assert_eq!(tally.counted.iter().filter(|voice| voice.carried).count(), honest);
    }
}

/// spec: CONFLICT-6, X-07 in spirit. Weights and values at the limits of their types are counted, and nothing panics.
#[test]
fn weights_at_their_limits_do_not_overflow() {
    let extreme = |number: u8, value: i64, stake: u64| {
        let trust = vec![Fixed::from_micros(i64::MAX); VOICES_MAX];
        let personality = agents::Personality::even(Fixed::from_micros(i64::MIN));
        let position = Position::Value(Fixed::from_micros(value));
        Voice { stake, trust, personality, ..voice(number, position) }
    };
    for (low, high) in [(i64::MIN, i64::MAX), (i64::MIN, i64::MIN), (i64::MAX, i64::MAX), (0, i64::MAX)] {
        for stake in [0, 1, u64::MAX] {
            let voices: Vec<Voice> = (0..VOICES_MAX + 9)
                .map(|number| {
                    let value = if number % 2 == 0 { low } else { high };
                    extreme(u8::try_from(number).unwrap(), value, stake)
                })
                .collect();
            for strategy in [Strategy::Majority, Strategy::Personality, Strategy::Influence, Strategy::RobustMean] {
                for quorum in [i64::MIN, 0, 500_000, 1_000_000, i64::MAX] {
                    let tally = tally::count(strategy, Fixed::from_micros(quorum), u32::MAX, &voices, u32::MAX);
                    assert_eq!(tally.outcome, Outcome::Unresolved(Lack::Participation));
                    let tally = tally::count(strategy, Fixed::from_micros(quorum), 0, &voices, 0);
                    if let Outcome::Value(value) = tally.outcome {
                        assert!((low..=high).contains(&value.micros()), "{value}");
                    }
                    assert_eq!(tally.counted.len(), VOICES_MAX);
                }
            }
        }
    }
    // Exactly: everything that there is, all at one end, and one unit at the other.
    let all = [extreme(1, i64::MIN, u64::MAX), extreme(2, i64::MIN, u64::MAX), extreme(3, i64::MAX, 1)];
    let tally = tally::count(Strategy::RobustMean, half(), 3, &all, 0);
    assert_eq!(tally.outcome, Outcome::Value(Fixed::from_micros(i64::MIN)));
}
