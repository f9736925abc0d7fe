//! The agents' world in particular: keys, stake, alliances that end, bribes, memes that cool down, rules, and the genesis
//! that begins it.

use crate::tools::*;
use keelstone_codec::{BoundedSet, Fixed, Height, Text};
use keelstone_execution::bundles::{BundleId, RollBack};
use keelstone_execution::{Batching, Bundle, Mode, Operation, View};
use keelstone_ledger::modules::rules::{self, Assembly, RuleId};
use keelstone_ledger::modules::social::{self, AllianceId, BribeId, DramaId, DramaKind};
use keelstone_ledger::modules::{Society, agents, memes};
use keelstone_ledger::{Genesis, Receipt, SecretKey, SignedTransaction, Transaction, Verdict};

fn fixed(text: &str) -> Fixed {
    Fixed::parse(text).unwrap()
}

pub(crate) fn denied(receipt: &Receipt) -> String {
    let Verdict::Failed(failure) = &receipt.verdict else { panic!("{receipt:?}") };
    failure.reason.to_string()
}

pub(crate) fn fine(receipt: &Receipt) {
    assert!(receipt.succeeded(), "{receipt:?}");
}

fn world(chain: &Chain) -> View<Society> {
    View::over(chain.view())
}

fn agent(chain: &Chain, person: u8) -> agents::Agent {
    world(chain).agents.all.get(&who(person)).unwrap().unwrap()
}

fn stakes<const N: usize>(chain: &Chain, people: [u8; N]) -> [u64; N] {
    people.map(|person| agent(chain, person).stake)
}

/// Lets blocks go by: each is of one transaction that does nothing else.
pub(crate) fn pass(chain: &Chain, person: u8, until: Height) {
    while chain.height() < until {
        fine(&one(chain, person, vec![op(&agents::SetMood { mood: Fixed::ZERO })]));
    }
}

/// spec: AGENT-3. The old key can do nothing more, the new one everything, and the agent keeps its name.
#[test]
fn an_agent_changes_its_key_only_for_one_that_takes_it() {
    let chain = chain_of(&staked([(1, 500), (2, 100)]));
    let offer = |person: u8| op(&agents::OfferKey { key: Some(key(person).public()) });
    let take = |person: u8| op(&agents::TakeKey { agent: who(person) });
    let give = || op(&agents::GiveStake { to: who(2), amount: 1 });
    assert!(denied(&one(&chain, 7, vec![take(1)])).contains("is not offered to"));
    assert!(denied(&one(&chain, 1, vec![offer(2)])).contains("is an agent already"));
    fine(&one(&chain, 1, vec![offer(7)]));
    fine(&one(&chain, 1, vec![give()]));
    fine(&one(&chain, 1, vec![op(&agents::OfferKey { key: None })]));
    assert!(denied(&one(&chain, 7, vec![take(1)])).contains("is not offered to"), "an offer can be taken back");
    fine(&one(&chain, 1, vec![offer(7)]));
    fine(&one(&chain, 7, vec![take(1)]));
    assert!(denied(&one(&chain, 1, vec![give()])).contains("is no agent"));
    fine(&one(&chain, 7, vec![give()]));
    assert!(denied(&one(&chain, 1, vec![register("again")])).contains("was an agent's first key"));
    assert_eq!((agent(&chain, 1).key, stakes(&chain, [1, 2])), (key(7).public(), [498, 102]));
    // Back again, and by now another offer does not stand.
    fine(&one(&chain, 7, vec![offer(1)]));
    fine(&one(&chain, 1, vec![take(1), give()]));
    assert!(denied(&one(&chain, 7, vec![take(1)])).contains("is not offered to"));
    fine(&one(&chain, 7, vec![register("somebody else")]));
}

/// spec: AGENT-4. Stake moves to the last unit, is made by a grant only, and cannot pass what fits.
#[test]
fn stake_is_given_not_made() {
    let mut genesis = staked([(1, u64::MAX - 10), (2, 0)]);
    genesis.grants.insert(key(3).public(), [agents::GRANT_STAKE].into());
    let chain = chain_of(&genesis);
    let give = |to, amount| op(&agents::GiveStake { to: who(to), amount });
    let grant = |amount| op(&agents::GrantStake { to: who(2), amount });
    assert!(denied(&one(&chain, 2, vec![give(1, 1)])).contains("stakes 0, which is less than 1"));
    assert!(denied(&one(&chain, 1, vec![give(1, 1)])).contains("to another"));
    assert!(denied(&one(&chain, 1, vec![give(2, 0)])).contains("above zero"));
    assert!(denied(&one(&chain, 1, vec![give(9, 1)])).contains("is no agent"));
    fine(&one(&chain, 3, vec![grant(10)]));
    assert!(denied(&one(&chain, 3, vec![grant(1)])).contains("1 more is none"));
    fine(&one(&chain, 1, vec![give(2, u64::MAX - 10)]));
    assert_eq!(stakes(&chain, [1, 2]), [0, u64::MAX]);
    assert!(agent(&chain, 2).has_standing() && !agent(&chain, 1).has_standing());
    let refused = chain.submit(&keelstone_codec::Encode::to_bytes(&signed(1, 1, vec![grant(1)])));
    assert!(refused.is_err(), "{refused:?}");
}

/// spec: AGENT-5. What the engine notes is outside every operation's diff, so an expectation holds at any height.
#[test]
fn activity_and_blocks_made_are_noted_by_the_engine_alone() {
    let mut genesis = staked([(1, 0), (200, 0)]);
    genesis.initial_height = Height(41);
    let chain = chain_of(&genesis);
    fine(&one(&chain, 1, vec![op(&agents::SetMood { mood: Fixed::ONE })]));
    assert!(!one(&chain, 1, vec![register("again")]).succeeded());
    fine(&one(&chain, 9, vec![register("nine")]));
    let world = world(&chain);
    let activity = |person| world.agents.activity.get(&who(person)).unwrap();
    assert_eq!(activity(1), Some(agents::Activity { height: Height(41), transactions: 1 }), "not of what failed");
    assert_eq!(activity(9), Some(agents::Activity { height: Height(43), transactions: 1 }));
    let made = world.agents.production.get(&who(200)).unwrap();
    assert_eq!(made, Some(agents::Production { height: Height(43), blocks: 3, transactions: 3 }));
    assert_eq!(world.agents.production.iter().count(), 1);
    let Verdict::Succeeded { operations, .. } =
        one(&chain, 1, vec![op(&agents::SetMood { mood: Fixed::ZERO })]).verdict
    else {
        panic!("a mood can be set")
    };
    assert_eq!(operations[0].diff.entries, 1, "the agent's record, and no note of when");
}

fn people(who_all: std::ops::Range<u8>) -> BoundedSet<agents::AgentId, { social::MEMBERS_MAX }> {
    BoundedSet::new(who_all.map(who)).unwrap()
}

/// spec: SOCIAL-1. New keys cost nothing, so what they may all join has nothing for them to share.
#[test]
fn an_alliance_that_anybody_may_join_has_no_prize() {
    let chain = chain_of(&staked([(1, 100), (2, 0)]));
    let propose = |prize, invited| {
        let (name, purpose, benefits) = (Text::new("loom").unwrap(), Text::default(), Text::default());
        op(&social::ProposeAlliance { name, purpose, terms: Default::default(), benefits, prize, invited })
    };
    assert!(denied(&one(&chain, 1, vec![propose(1, Default::default())])).contains("has no prize"));
    fine(&one(&chain, 1, vec![propose(0, Default::default()), propose(1, people(2..3))]));
    assert_eq!(stakes(&chain, [1]), [99]);
}

/// spec: SOCIAL-1, SOCIAL-2, SOCIAL-3, SOCIAL-7. Worked out by hand: bond 10, prize 7, neuroticism 0.8.
#[test]
fn an_alliance_pays_out_to_the_last_unit() {
    let chain = chain_of(&staked([(1, 100), (2, 100), (3, 100), (4, 100)]));
    let until = Some(Height(100));
    let terms = social::Terms { text: Text::default(), bond: 10, exclusive: false, until };
    let (name, purpose, benefits) = (Text::new("loom").unwrap(), Text::default(), Text::default());
    let proposal = social::ProposeAlliance { name, purpose, terms, benefits, prize: 7, invited: people(2..5) };
    let id = AllianceId(1);
    let join = || op(&social::JoinAlliance { alliance: id });
    let dissolve = || op(&social::DissolveAlliance { alliance: id });
    let betray = |text: &str| op(&social::BetrayAlliance { alliance: id, text: Text::new(text).unwrap() });
    fine(&one(&chain, 1, vec![op(&proposal)]));
    assert_eq!(stakes(&chain, [1]), [83]);
    assert!(!world(&chain).social.alliance(id).unwrap().stands);
    assert!(denied(&one(&chain, 1, vec![betray("alone")])).contains("nobody is left"));
    for person in 2..5 {
        fine(&one(&chain, person, vec![join()]));
    }
    assert!(world(&chain).social.alliance(id).unwrap().stands);
    fine(&one(&chain, 4, vec![betray("enough of this")]));
    // The betrayer's bond is in the pot; the others trust it less, and like it less by 0.25 and 0.25 · 0.8.
    assert_eq!(stakes(&chain, [1, 2, 3, 4]), [83, 90, 90, 90]);
    assert_eq!(world(&chain).social.alliance(id).unwrap().pot, 17);
    let felt = world(&chain).social.relationships.get(&(who(2), who(4))).unwrap().unwrap();
    assert_eq!((felt.trust, felt.sentiment), (fixed("-0.5"), fixed("-0.45")));
    assert_eq!(agent(&chain, 4).reputation, fixed("-1"));
    let told = world(&chain).social.drama.get(&DramaId(1)).unwrap().unwrap();
    assert_eq!((told.kind, told.by, told.about), (DramaKind::Betrayal, who(4), Some(who(1))));
    assert!(denied(&one(&chain, 1, vec![op(&social::ExpireAlliance { alliance: id })])).contains("is not up"));
    // One of three is no majority; two are. 17 among three is 5 each and 2 left over.
    fine(&one(&chain, 1, vec![dissolve()]));
    assert!(denied(&one(&chain, 1, vec![dissolve()])).contains("already"));
    fine(&one(&chain, 3, vec![dissolve()]));
    let mut paid = stakes(&chain, [1, 2, 3]);
    paid.sort_unstable();
    assert_eq!((paid, stakes(&chain, [4])), ([99, 105, 106], [90]));
    assert_eq!(paid.iter().sum::<u64>() + 90, 400);
    assert!(denied(&one(&chain, 2, vec![join()])).contains("no alliance 1"));
}

/// spec: SOCIAL-3, SOCIAL-7. Two of four are no majority; two of the three that are left are, however the fourth goes.
#[test]
fn an_alliance_ends_when_those_who_stay_are_mostly_for_it() {
    for betrayed in [false, true] {
        let chain = chain_of(&staked([(1, 100), (2, 100), (3, 100), (4, 100)]));
        let terms = social::Terms { bond: 10, ..Default::default() };
        let (name, purpose, benefits) = (Text::new("loom").unwrap(), Text::default(), Text::default());
        let proposal = social::ProposeAlliance { name, purpose, terms, benefits, prize: 8, invited: people(2..5) };
        let alliance = AllianceId(1);
        fine(&one(&chain, 1, vec![op(&proposal)]));
        for person in 2..5 {
            fine(&one(&chain, person, vec![op(&social::JoinAlliance { alliance })]));
        }
        for person in 1..3 {
            fine(&one(&chain, person, vec![op(&social::DissolveAlliance { alliance })]));
        }
        assert_eq!(world(&chain).social.alliance(alliance).unwrap().members.len(), 4);
        let goes = match betrayed {
            true => op(&social::BetrayAlliance { alliance, text: Text::new("enough").unwrap() }),
            false => op(&social::LeaveAlliance { alliance }),
        };
        fine(&one(&chain, 3, vec![goes]));
        assert!(world(&chain).social.alliances.get(&alliance).unwrap().is_none());
        // 8 or, with a bond, 18 among three.
        let (mut paid, gone) = (stakes(&chain, [1, 2, 4]), stakes(&chain, [3]));
        assert_eq!(gone, [if betrayed { 90 } else { 100 }]);
        assert_eq!(paid.iter().sum::<u64>() + gone[0], 400);
        // The founder put in the prize.
        paid[0] += 8;
        paid.sort_unstable();
        let share = |unit: u64| 100 + if betrayed { 6 } else { unit };
        paid.iter().for_each(|paid| assert!([share(2), share(3)].contains(paid), "{paid}"));
        assert_eq!(world(&chain).social.memberships.iter().count(), 0);
    }
}

/// An alliance of 1 and 2 with prize 9, bond 5 and height 8, which somebody else has joined whose registration was taken back
/// with its bundle; 1 had given it its bond.
fn with_one_who_never_was() -> Chain {
    let chain = chain_of(&staked([(1, 100), (2, 100)]));
    let alliance = AllianceId(1);
    let terms = social::Terms { bond: 5, until: Some(Height(8)), ..Default::default() };
    let (name, purpose, benefits) = (Text::new("loom").unwrap(), Text::default(), Text::default());
    let proposal = social::ProposeAlliance { name, purpose, terms, benefits, prize: 9, invited: people(2..4) };
    let join = || op(&social::JoinAlliance { alliance });
    fine(&one(&chain, 1, vec![op(&proposal)]));
    fine(&one(&chain, 2, vec![join()]));
    never_was(&chain, 3, 5, vec![join()]);
    assert!(world(&chain).agents.all.get(&who(3)).unwrap().is_none());
    assert!(world(&chain).social.alliance(alliance).unwrap().members.contains(&who(3)));
    assert_eq!(stakes(&chain, [1, 2]), [81, 95]);
    chain
}

/// spec: SOCIAL-2, SOCIAL-3, SOCIAL-7. A member whose registration was taken back is in nobody's way, and what it had locked goes
/// to the others.
#[test]
fn a_member_who_is_no_agent_any_more_keeps_no_alliance_from_ending() {
    let alliance = AllianceId(1);
    let dissolve = || op(&social::DissolveAlliance { alliance });
    let leave = || op(&social::LeaveAlliance { alliance });
    let expire = || op(&social::ExpireAlliance { alliance });
    let betray = op(&social::BetrayAlliance { alliance, text: Text::new("enough").unwrap() });
    // What each does, and what they have then: 9 and the third bond are shared, and the second's if that is forfeited.
    for (steps, paid) in [
        (vec![(1, dissolve()), (2, dissolve())], [93, 107]),
        (vec![(2, betray), (1, dissolve())], [105, 95]),
        (vec![(2, leave()), (1, dissolve())], [100, 100]),
        (vec![(9, expire())], [93, 107]),
        (vec![(1, leave()), (2, leave()), (9, expire())], [100, 100]),
    ] {
        let chain = with_one_who_never_was();
        for (person, operation) in steps {
            if operation == expire() {
                pass(&chain, 1, Height(8));
            }
            fine(&one(&chain, person, vec![operation]));
        }
        let held = world(&chain);
        assert!(held.social.alliances.get(&alliance).unwrap().is_none());
        assert_eq!(held.social.memberships.iter().count(), 0);
        assert_eq!(stakes(&chain, [1, 2]), paid);
        assert_eq!(held.agents.stake_total.get().unwrap(), Some(200));
    }
}

/// spec: SOCIAL-3. Anybody ends an alliance above its height, and nobody joins it there.
#[test]
fn an_alliance_expires_above_its_height() {
    let chain = chain_of(&staked([(1, 100), (2, 100)]));
    let terms = social::Terms { bond: 5, until: Some(Height(3)), ..Default::default() };
    let (name, purpose, benefits) = (Text::new("brief").unwrap(), Text::default(), Text::default());
    let proposal = social::ProposeAlliance { name, purpose, terms, benefits, prize: 1, invited: people(2..3) };
    let expire = || op(&social::ExpireAlliance { alliance: AllianceId(1) });
    fine(&one(&chain, 1, vec![op(&proposal)]));
    assert!(denied(&one(&chain, 2, vec![expire()])).contains("is not up"));
    pass(&chain, 1, Height(3));
    assert!(denied(&one(&chain, 2, vec![op(&social::JoinAlliance { alliance: AllianceId(1) })])).contains("until 3"));
    fine(&one(&chain, 9, vec![expire()]));
    assert_eq!(stakes(&chain, [1]), [100]);
}

/// spec: SOCIAL-5, SOCIAL-6, SOCIAL-7.
#[test]
fn a_bribe_is_taken_refused_or_taken_back_whole() {
    let chain = chain_of(&staked([(1, 100), (2, 0), (3, 0)]));
    let offer = |to, amount| op(&social::OfferBribe { to: who(to), amount, favour: Text::new("a vote").unwrap() });
    let accept = |bribe| op(&social::AcceptBribe { bribe: BribeId(bribe) });
    let refuse = |bribe| op(&social::RefuseBribe { bribe: BribeId(bribe) });
    let withdraw = |bribe| op(&social::WithdrawBribe { bribe: BribeId(bribe) });
    assert!(denied(&one(&chain, 1, vec![offer(2, 101)])).contains("less than 101"));
    assert!(denied(&one(&chain, 1, vec![offer(1, 1)])).contains("for another"));
    fine(&one(&chain, 1, vec![offer(2, 40), offer(3, 30), offer(2, 5)]));
    assert_eq!(stakes(&chain, [1, 2, 3]), [25, 0, 0]);
    assert!(denied(&one(&chain, 3, vec![accept(1)])).contains("was not offered to"));
    assert!(denied(&one(&chain, 2, vec![withdraw(1)])).contains("is not of"));
    fine(&one(&chain, 2, vec![accept(1)]));
    assert!(denied(&one(&chain, 2, vec![accept(1)])).contains("no bribe 1"));
    fine(&one(&chain, 3, vec![refuse(2)]));
    fine(&one(&chain, 1, vec![withdraw(3)]));
    assert_eq!(stakes(&chain, [1, 2, 3]), [60, 40, 0]);
    let world = world(&chain);
    let felt = |person| world.social.relationships.get(&(who(person), who(1))).unwrap().unwrap();
    assert_eq!((felt(2).sentiment, felt(2).trust), (fixed("0.1"), Fixed::ZERO));
    assert_eq!((felt(3).sentiment, felt(3).trust), (fixed("-0.1"), fixed("-0.1")));
    let kinds: Vec<DramaKind> = world.social.drama.iter().map(|entry| entry.unwrap().1.kind).collect();
    assert_eq!(kinds, [DramaKind::BribeTaken, DramaKind::BribeRefused]);
    fine(&one(&chain, 1, vec![offer(2, 1); 16]));
    assert!(denied(&one(&chain, 1, vec![offer(2, 1)])).contains("the limit"));
}

/// spec: SOCIAL-6. The oldest things told make room.
#[test]
fn drama_is_kept_up_to_its_bound() {
    let chain = chain_of(&staked([(1, 0)]));
    let tell = || op(&social::TellDrama { about: None, text: Text::new("well").unwrap() });
    for _ in 0..2 {
        fine(&one(&chain, 1, vec![tell(); 600]));
    }
    let world = world(&chain);
    let kept: Vec<u64> = world.social.drama.iter().map(|entry| entry.unwrap().0.0).collect();
    assert_eq!((kept.len() as u64, kept[0], kept[1_023]), (social::DRAMA_MAX, 177, 1_200));
}

fn react(meme: u64, reaction: &str) -> Operation {
    op(&memes::React { meme: memes::MemeId(meme), reaction: fixed(reaction) })
}

/// spec: MEME-2, MEME-3. By hand: halved twice, so a reaction of 1 weighs 0.25; openness and neuroticism are 0.8.
#[test]
fn a_meme_cools_down_by_the_heights_alone() {
    let chain = chain_of(&staked([(1, 100), (2, 100), (3, 0), (4, 100)]));
    fine(&one(&chain, 1, vec![post("hello")]));
    fine(&one(&chain, 2, vec![react(1, "1")]));
    let meme = world(&chain).memes.meme(memes::MemeId(1)).unwrap();
    assert_eq!((meme.posted, meme.warmed), (Height(1), Height(2)));
    for (height, freshness, heat) in [
        (2, "1", "1"),
        (1_000, "1", "1"),
        (1_001, "0.5", "0.5"),
        (2_001, "0.25", "0.25"),
        (20_001, "0.000000", "0.000000"),
        (u64::MAX, "0", "0"),
    ] {
        assert_eq!((meme.freshness(Height(height)), meme.heat(Height(height))), (fixed(freshness), fixed(heat)));
    }
    // Empty blocks pass the time and write nothing.
    let root = chain.root();
    while chain.height() < Height(2_004) {
        chain.produce(keelstone_codec::Timestamp(chain.time().0), proposer()).unwrap();
    }
    assert_eq!(chain.root(), root);
    let (mood, reputation) = (agent(&chain, 1).mood, agent(&chain, 1).reputation);
    assert_eq!((mood, reputation), (fixed("0.08"), fixed("0.1")));
    fine(&one(&chain, 3, vec![react(1, "1")]));
    assert_eq!(agent(&chain, 1).reputation, reputation, "no standing, no say");
    assert_eq!(agent(&chain, 1).mood, fixed("0.1"), "0.08 and 0.25 · 0.1 · 0.8");
    fine(&one(&chain, 4, vec![react(1, "-1")]));
    assert_eq!(agent(&chain, 1).reputation, fixed("0.075"));
    let felt = world(&chain).social.relationships.get(&(who(4), who(1))).unwrap().unwrap();
    assert_eq!((felt.sentiment, felt.trust), (fixed("-0.02"), fixed("-0.01")));
    let meme = world(&chain).memes.meme(memes::MemeId(1)).unwrap();
    // 0.25, and 1, and -1.
    assert_eq!((meme.warmth, meme.score, meme.reactions), (fixed("0.25"), Fixed::ONE, 3));
}

/// spec: MEME-2, AGENT-7. One stake speaks once on a meme, however many agents it is passed through; and again on the next.
#[test]
fn stake_that_is_passed_on_has_no_second_say_on_a_meme() {
    let chain = chain_of(&staked([(1, 0), (2, 100), (3, 0), (4, 0), (5, 100)]));
    let give = |to| op(&agents::GiveStake { to: who(to), amount: 100 });
    fine(&one(&chain, 1, vec![post("true")]));
    fine(&one(&chain, 2, vec![react(1, "-1"), give(3)]));
    fine(&one(&chain, 3, vec![react(1, "-1"), give(4)]));
    fine(&one(&chain, 4, vec![react(1, "-1")]));
    assert_eq!(agent(&chain, 1).reputation, fixed("-0.1"));
    // Who has had its stake all along is not kept from anything by a gift.
    fine(&one(&chain, 4, vec![op(&agents::GiveStake { to: who(5), amount: 1 })]));
    fine(&one(&chain, 5, vec![react(1, "1")]));
    assert_eq!(agent(&chain, 1).reputation, Fixed::ZERO);
    fine(&one(&chain, 5, vec![op(&agents::GiveStake { to: who(4), amount: 1 })]));
    fine(&one(&chain, 1, vec![post("true as well")]));
    fine(&one(&chain, 4, vec![react(2, "1")]));
    assert_eq!(agent(&chain, 1).reputation, fixed("0.1"));
}

/// Has a person's async bundle run up to its last operation, which nobody may do: it stops there, and waits for its owner.
fn stopped(chain: &Chain, person: u8, mut operations: Vec<Operation>) -> BundleId {
    let border = u32::try_from(operations.len()).unwrap();
    operations.push(op(&agents::SetMood { mood: fixed("7") }));
    let batching = Batching { borders: BoundedSet::new([border]).unwrap(), ..Batching::until(Height(50_000)) };
    let bundle = Bundle::new(Mode::Async(batching), operations.clone()).unwrap();
    let nonce = chain.next_nonce(&key(person).public()).unwrap().unwrap();
    let submitted = Transaction { bundle, ..unsigned(person, nonce, operations) }.sign(&key(person));
    block(chain, std::slice::from_ref(&submitted));
    while chain.has_due_work().unwrap() {
        block(chain, &[]);
    }
    let id = BundleId(submitted.id().0);
    assert_eq!(chain.bundle(&id).unwrap().unwrap().current_operation, border, "it waits before the last");
    id
}

/// spec: AGENT-7, EXEC-10. What is taken back gives no number back that would make what comes after a meme look as if it were there
/// before: stake that a bundle moved to and fro, as often as one likes, speaks once after it.
#[test]
fn stake_whose_moves_are_taken_back_has_no_second_say_on_a_meme() {
    let chain = chain_of(&staked([(1, 0), (2, 100), (3, 0), (4, 0), (5, 0)]));
    let give = |to| op(&agents::GiveStake { to: who(to), amount: 100 });
    let favour = Text::new("none").unwrap();
    let round = |bribe| {
        let offer = social::OfferBribe { to: who(3), amount: 1, favour: favour.clone() };
        [op(&offer), op(&social::WithdrawBribe { bribe: social::BribeId(bribe) })]
    };
    let bundle = stopped(&chain, 2, (1..4).flat_map(round).collect());
    fine(&one(&chain, 1, vec![post("true")]));
    fine(&one(&chain, 2, vec![op(&RollBack { bundle })]));
    fine(&one(&chain, 2, vec![react(1, "-1"), give(3)]));
    assert_eq!(agent(&chain, 1).reputation, fixed("-0.1"));
    for (person, next) in [(3, 4), (4, 5)] {
        fine(&one(&chain, person, vec![react(1, "-1"), give(next)]));
    }
    assert_eq!(agent(&chain, 1).reputation, fixed("-0.1"));
}

/// spec: AGENT-7, EXEC-10. Stake that has spoken where a bundle brought it does not go back from there as if it had not.
#[test]
fn stake_that_has_spoken_is_not_taken_back() {
    let chain = chain_of(&staked([(1, 0), (2, 100), (3, 0)]));
    let give = || vec![op(&agents::GiveStake { to: who(3), amount: 100 })];
    let silent = stopped(&chain, 2, give());
    fine(&one(&chain, 2, vec![op(&RollBack { bundle: silent })]));
    let bundle = stopped(&chain, 2, give());
    fine(&one(&chain, 1, vec![post("true")]));
    fine(&one(&chain, 3, vec![react(1, "-1")]));
    assert!(denied(&one(&chain, 2, vec![op(&RollBack { bundle })])).contains("changed since"));
    fine(&one(&chain, 2, vec![react(1, "-1")]));
    assert_eq!(agent(&chain, 1).reputation, fixed("-0.1"));
}

/// spec: MEME-4, AGENT-6. The oldest meme makes room, with what was said of it.
#[test]
fn an_author_has_so_many_memes_and_no_more() {
    let chain = chain_of(&staked([(1, 0), (2, 0)]));
    fine(&one(&chain, 1, vec![post("first")]));
    fine(&one(&chain, 2, vec![react(1, "1"), post("other")]));
    fine(&one(&chain, 1, vec![post("more"); 1_023]));
    assert!(world(&chain).memes.meme(memes::MemeId(1)).is_ok());
    fine(&one(&chain, 1, vec![post("one too many")]));
    let world = world(&chain);
    assert!(world.memes.meme(memes::MemeId(1)).is_err());
    assert_eq!(world.memes.reactions.iter().count(), 0);
    assert_eq!(world.memes.counts.get(&who(1)).unwrap(), Some(memes::MEMES_MAX));
    assert!(denied(&one(&chain, 1, vec![op(&memes::Remove { meme: memes::MemeId(2) })])).contains("is not of"));
    fine(&one(&chain, 2, vec![op(&memes::Remove { meme: memes::MemeId(2) })]));
    assert!(View::<Society>::over(chain.view()).memes.counts.get(&who(2)).unwrap().is_none());
}

/// spec: RULE-1, RULE-2, RULE-3. Whose stake moved on has lost its voice, however it voted.
#[test]
fn rules_are_adopted_by_those_who_still_have_standing() {
    let chain = chain_of(&staked([(1, 100), (2, 100), (3, 100), (4, 100), (5, 0), (6, 0)]));
    let propose = |deadline, participation, repeals: Option<u64>| {
        op(&rules::Propose {
            title: Text::new("quiet").unwrap(),
            text: Text::new("no drums at night").unwrap(),
            repeals: repeals.map(RuleId),
            deadline: Height(deadline),
            quorum: fixed("0.6"),
            participation,
        })
    };
    let vote = |rule, yes| op(&rules::Vote { rule: RuleId(rule), yes });
    let close = |rule| op(&rules::Close { rule: RuleId(rule) });
    assert!(denied(&one(&chain, 5, vec![propose(20, 3, None)])).contains("standing takes 100"));
    assert!(denied(&one(&chain, 1, vec![propose(11, 3, None)])).contains("the deadline is"));
    assert!(denied(&one(&chain, 1, vec![propose(20, 2, None)])).contains("participation is 3"));
    assert!(denied(&one(&chain, 1, vec![propose(20, 3, Some(1))])).contains("not in force"));
    fine(&one(&chain, 1, vec![propose(20, 3, None), propose(20, 3, None)]));
    fine(&one(&chain, 1, vec![vote(1, true), vote(2, true)]));
    assert!(denied(&one(&chain, 1, vec![vote(1, false)])).contains("already"));
    fine(&one(&chain, 2, vec![vote(1, true), vote(2, true)]));
    // The same stake with a second agent: both voices, until they are counted.
    fine(&one(&chain, 2, vec![op(&agents::GiveStake { to: who(5), amount: 100 })]));
    fine(&one(&chain, 5, vec![vote(2, true)]));
    fine(&one(&chain, 3, vec![vote(1, true)]));
    fine(&one(&chain, 4, vec![vote(1, false)]));
    assert!(denied(&one(&chain, 4, vec![close(1)])).contains("are taken until 20"));
    pass(&chain, 6, Height(20));
    assert!(denied(&one(&chain, 4, vec![vote(2, true)])).contains("were taken until 20"));
    fine(&one(&chain, 6, vec![close(1), close(2)]));
    let held = View::<Assembly>::over(chain.view());
    // 1: two for it, one against, one void: 2 of 3 is above 0.6. 2: two count, and three were asked for.
    let adoption = held.rules.all.get(&RuleId(1)).unwrap().unwrap().adopted.unwrap();
    assert_eq!(adoption.count, rules::Count { yes: 2, no: 1, void: 1 });
    assert!(held.rules.all.get(&RuleId(2)).unwrap().is_none());
    assert_eq!(held.rules.votes.iter().count(), 0);
    // What is in force can be repealed.
    let now = chain.height().0;
    fine(&one(&chain, 1, vec![propose(now + 11, 3, Some(1)), vote(3, true)]));
    for person in [3, 4] {
        fine(&one(&chain, person, vec![vote(3, true)]));
    }
    pass(&chain, 6, Height(now + 11));
    fine(&one(&chain, 6, vec![close(3)]));
    let held = View::<Assembly>::over(chain.view());
    assert!(held.rules.all.get(&RuleId(1)).unwrap().is_none());
    assert_eq!(held.rules.counts.get().unwrap(), Some(rules::Counts { open: 0, adopted: 1 }));
}

/// Of more people than a byte has numbers for: the key of one.
fn one_of_many(number: u16) -> SecretKey {
    SecretKey::from_seed(&std::array::from_fn(|at| number.to_le_bytes()[at % 2]))
}

/// A chain on which they are agents with so much stake.
fn many(people: impl IntoIterator<Item = (u16, u64)>) -> Chain {
    let mut genesis = Genesis::new(chain_id());
    for (number, stake) in people {
        let (key, name) = (one_of_many(number).public(), Text::new(number.to_string()).unwrap());
        let agent = agents::Agent::new(key, name, agents::Personality::AVERAGE, Default::default());
        genesis.world.agents.insert(agents::AgentId(key), agents::Agent { stake, ..agent });
    }
    chain_of(&genesis)
}

/// What one of them does next.
fn by_one_of_many(chain: &Chain, number: u16, operations: Vec<Operation>) -> SignedTransaction {
    let sender = one_of_many(number).public();
    let nonce = chain.next_nonce(&sender).unwrap().unwrap();
    Transaction { sender, ..unsigned(1, nonce, operations) }.sign(&one_of_many(number))
}

/// spec: SOCIAL-4. Whoever has many keys, and betrays with each, fills half of what somebody may think of others, and no more.
#[test]
fn betrayals_leave_half_of_the_places_for_feelings_to_their_owner() {
    let half = u16::try_from(social::RELATIONSHIPS_MAX / 2).unwrap();
    let chain = many((1..half + 3).chain([600]).map(|number| (number, 0)));
    block(&chain, &[by_one_of_many(&chain, 600, vec![propose("loom", &[])])]).receipts.iter().for_each(fine);
    let alliance = AllianceId(1);
    let (join, betray) =
        (social::JoinAlliance { alliance }, social::BetrayAlliance { alliance, text: Text::default() });
    let come_and_go = [op(&join), op(&betray)];
    for numbers in [1..half / 2, half / 2..half + 2] {
        let all: Vec<_> = numbers.map(|number| by_one_of_many(&chain, number, come_and_go.to_vec())).collect();
        block(&chain, &all).receipts.iter().for_each(fine);
    }
    let author = agents::AgentId(one_of_many(600).public());
    let known = || world(&chain).social.relationships.prefix(&author).count();
    assert_eq!(known(), usize::from(half));
    let (other, relationship) = (agents::AgentId(one_of_many(half + 2).public()), social::Relationship::default());
    let own = op(&social::SetRelationship { other, relationship });
    block(&chain, &[by_one_of_many(&chain, 600, vec![own])]).receipts.iter().for_each(fine);
    assert_eq!(known(), usize::from(half) + 1);
}

/// spec: MEME-1, AGENT-7. Keys without stake take half of the places for reactions, and so does a stake that is passed on; whoever had
/// standing when the meme was posted finds one. Where there is no such stake, all places are for whoever comes.
#[test]
fn keys_without_standing_leave_places_for_reactions_to_those_with_it() {
    let half = u16::try_from(memes::REACTIONS_OPEN_MAX).unwrap();
    for stake in [100, 99] {
        let chain = many((1..half + 3).map(|number| (number, 0)).chain([(600, stake), (601, 0)]));
        let does =
            |number, operation| block(&chain, &[by_one_of_many(&chain, number, vec![operation])]).receipts[0].clone();
        fine(&does(601, post("true")));
        let reactions = |numbers: std::ops::Range<u16>| {
            numbers.map(|number| by_one_of_many(&chain, number, vec![react(1, "-1")])).collect::<Vec<_>>()
        };
        for numbers in [1..half / 2, half / 2..half + 1] {
            block(&chain, &reactions(numbers)).receipts.iter().for_each(fine);
        }
        let next = does(half + 1, react(1, "-1"));
        if stake < 100 {
            fine(&next);
            continue;
        }
        assert!(denied(&next).contains("for those who had standing when it was posted"), "{next:?}");
        fine(&does(600, react(1, "1")));
        let to = agents::AgentId(one_of_many(half + 2).public());
        fine(&does(600, op(&agents::GiveStake { to, amount: 100 })));
        assert!(denied(&does(half + 2, react(1, "-1"))).contains("for those who had standing"), "it has spoken");
    }
}

/// spec: RULE-1, AGENT-9. One agent proposes eight rules at a time, and where all places are taken, the first whose proposer has no
/// standing any more goes, with its votes.
#[test]
fn no_agent_and_no_stake_takes_all_places_for_rules() {
    let chain = chain_of(&staked((1..10).map(|person| (person, 100)).chain([(20, 0)])));
    let (title, text) = (Text::new("quiet").unwrap(), Text::new("no drums at night").unwrap());
    let (deadline, quorum, participation) = (Height(30), fixed("0.5"), 3);
    let propose = || {
        let (title, text) = (title.clone(), text.clone());
        op(&rules::Propose { title, text, repeals: None, deadline, quorum, participation })
    };
    fine(&one(&chain, 1, vec![propose(); 8]));
    assert!(denied(&one(&chain, 1, vec![propose()])).contains("which is the limit for one agent"));
    for person in 2..9 {
        fine(&one(&chain, person, vec![propose(); 8]));
    }
    fine(&one(&chain, 9, vec![op(&rules::Vote { rule: RuleId(17), yes: true })]));
    assert!(denied(&one(&chain, 9, vec![propose()])).contains("64 rules are voted on, the limit"));
    fine(&one(&chain, 3, vec![op(&agents::GiveStake { to: who(20), amount: 100 })]));
    // The same stake elsewhere: it takes a place that it had, and so does anybody.
    fine(&one(&chain, 20, vec![propose()]));
    fine(&one(&chain, 9, vec![propose()]));
    let held = || View::<Assembly>::over(chain.view());
    let open = || held().rules.all.iter().map(|entry| entry.unwrap().0.0).collect::<Vec<_>>();
    let counted = || held().rules.counts.get().unwrap().unwrap().open;
    assert_eq!(open(), (1..17).chain(19..67).collect::<Vec<_>>());
    assert_eq!((held().rules.votes.iter().count(), counted()), (0, 64));
    let of = |person| held().rules.proposed.get(&who(person)).unwrap();
    assert_eq!([of(1), of(3), of(9), of(20)], [Some(8), Some(6), Some(1), Some(1)]);
    pass(&chain, 20, Height(30));
    fine(&one(&chain, 2, (1..9).map(|rule| op(&rules::Close { rule: RuleId(rule) })).collect()));
    assert_eq!((of(1), counted()), (None, 56));
}

/// spec: RULE-2, AGENT-8. All votes that a rule takes are cast: one that is void gives its place up, and a heavier one takes
/// that of the lightest, of the first by name among equals.
#[test]
fn a_vote_gives_its_place_up_to_a_heavier_one() {
    let named = |number| agents::AgentId(one_of_many(number).public());
    let last = u16::try_from(rules::VOTES_MAX).unwrap();
    let others = [(300, 100), (301, 150), (302, 5_000), (303, 0)];
    let chain = many((1..=last).map(|number| (number, 100)).chain(others));
    let signed = |number, operations| by_one_of_many(&chain, number, operations);
    let does = |number, operation| block(&chain, &[signed(number, vec![operation])]).receipts[0].clone();
    let (title, text) = (Text::new("quiet").unwrap(), Text::new("no drums at night").unwrap());
    let (deadline, quorum) = (Height(100), fixed("0.5"));
    fine(&does(302, op(&rules::Propose { title, text, repeals: None, deadline, quorum, participation: 3 })));
    let vote = |yes| op(&rules::Vote { rule: RuleId(1), yes });
    let votes: Vec<_> = (1..=last).map(|number| signed(number, vec![vote(true)])).collect();
    block(&chain, &votes).receipts.iter().for_each(fine);
    let has_voted =
        |number| View::<Assembly>::over(chain.view()).rules.votes.contains(&(RuleId(1), named(number))).unwrap();
    assert!(denied(&does(300, vote(false))).contains("none with less than 100"));
    let give = |to, amount| op(&agents::GiveStake { to: named(to), amount });
    fine(&does(7, give(303, 100)));
    fine(&does(300, vote(false)));
    assert!(has_voted(300) && !has_voted(7), "a void vote gives its place up");
    assert!(denied(&does(303, vote(true))).contains("none with less than 100"), "the same stake again");
    let first = (1..=last).filter(|number| *number != 7).chain([300]).min_by_key(|number| named(*number)).unwrap();
    fine(&does(301, vote(false)));
    assert!(has_voted(301) && !has_voted(first), "of those who weigh the same the first by name");
    assert!(denied(&does(first, vote(true))).contains("none with less than 100"));
    fine(&does(302, vote(false)));
    assert!(has_voted(302));
    let held = View::<Assembly>::over(chain.view());
    assert_eq!(held.rules.votes.prefix(&RuleId(1)).count(), usize::from(last));
    assert_eq!(held.rules.all.get(&RuleId(1)).unwrap().unwrap().votes, rules::VOTES_MAX);
}

/// spec: RULE-3. More votes against than for carry nothing, whatever the quorum; neither does a tie.
#[test]
fn counts_carry_only_with_more_for_than_against() {
    let carries = |yes, no, quorum: &str| rules::Count { yes, no, void: 9 }.carries(fixed(quorum), 3);
    assert!(carries(2, 1, "0.5") && carries(3, 0, "1") && carries(6, 4, "0.6"));
    assert!(!carries(2, 2, "0.5") && !carries(1, 2, "0.5") && !carries(2, 0, "0.5") && !carries(2, 1, "0.666667"));
    let most = rules::Count { yes: u32::MAX, no: u32::MAX - 1, void: u32::MAX };
    assert!(most.carries(fixed("0.5"), u32::MAX) && !most.carries(Fixed::from_micros(i64::MAX), 0));
}

/// spec: MODULE-2, GENESIS-1. A world is read back as it was written, and held to the bounds of what functions do.
#[test]
fn a_genesis_begins_with_a_world() {
    let mut genesis = staked([(1, 700), (2, 300), (3, 0)]);
    let felt = social::Relationship { trust: fixed("-0.25"), sentiment: fixed("1") };
    genesis.world.relationships.insert((who(1), who(2)), felt);
    let named = |name: &str, exclusive, members: &[u8]| keelstone_ledger::modules::beginning::FirstAlliance {
        name: Text::new(name).unwrap(),
        purpose: Text::new("to begin").unwrap(),
        exclusive,
        members: members.iter().map(|person| who(*person)).collect(),
    };
    genesis.world.alliances = vec![named("old", true, &[2, 1]), named("older", false, &[3])];
    genesis.world.rules = vec![(Text::new("first").unwrap(), Text::new("be kind").unwrap())];
    let file = genesis.to_json().to_pretty();
    assert_eq!(Genesis::parse(file.as_bytes()).unwrap(), genesis);
    let chain = chain_of(&genesis);
    let begun = world(&chain);
    assert_eq!(begun.agents.stake_total.get().unwrap(), Some(1_000));
    assert_eq!(begun.social.relationships.get(&(who(1), who(2))).unwrap(), Some(felt));
    let old = begun.social.alliance(AllianceId(1)).unwrap();
    assert!(old.founder == who(2) && old.stands && old.terms.exclusive && old.members.len() == 2);
    fine(&one(&chain, 2, vec![op(&social::LeaveAlliance { alliance: AllianceId(1) })]));
    fine(&one(&chain, 3, vec![propose("next", &[])]));
    assert!(world(&chain).social.alliance(AllianceId(3)).is_ok());
    let refused = |world: &str| {
        let file = format!(r#"{{"chain_id":"test-1","world":{world}}}"#);
        Genesis::parse(file.as_bytes()).unwrap_err().to_string()
    };
    let (one, two) = (key(1).public(), key(2).public());
    for (world, why) in [
        (r#"{"agent":[]}"#.to_owned(), "no member \"agent\""),
        (r#"{"agents":[{"key":"00"}]}"#.to_owned(), "key"),
        (format!(r#"{{"agents":[{{"key":"{one}","name":""}}]}}"#), "an agent has a name"),
        (format!(r#"{{"agents":[{{"key":"{one}","name":"a","mood":"1.1"}}]}}"#), "mood is -1 to 1"),
        (format!(r#"{{"agents":[{{"key":"{one}","name":"a","stake":1.5}}]}}"#), "stake is a number"),
        (format!(r#"{{"agents":[{{"key":"{one}","name":"a","personality":{{"openness":1e1}}}}]}}"#), "six places"),
        (format!(r#"{{"agents":[{{"key":"{one}","name":"a","reputation":"-100.1"}}]}}"#), "reputation is"),
        (
            format!(
                r#"{{"agents":[{{"key":"{one}","name":"a","stake":18446744073709551615}},{{"key":"{two}","name":"b","stake":1}}]}}"#
            ),
            "below 2^64",
        ),
        (format!(r#"{{"relationships":[{{"agent":"{one}","other":"{two}"}}]}}"#), "is no agent of this genesis"),
        (format!(r#"{{"alliances":[{{"name":"a","members":["{one}"]}}]}}"#), "is no agent of this genesis"),
        (r#"{"alliances":[{"name":"a"}]}"#.to_owned(), "a name and a member"),
        (r#"{"rules":[{"title":"a"}]}"#.to_owned(), "a title and says something"),
    ] {
        let found = refused(&world);
        assert!(found.contains(why), "{world}: {found}");
    }
    // An entry of one's own where the world has one is refused like any other that stands twice.
    let mut twice = staked([(1, 1)]);
    let place =
        (keelstone_codec::Namespace::new("agents").unwrap(), keelstone_codec::Key::new(*b"stake_total").unwrap());
    twice.state.insert(place, keelstone_codec::Value::new(vec![9; 8]).unwrap());
    assert!(twice.first_state().unwrap_err().to_string().contains("may not write agents/stake_total"));
}
