//! Simulated seeds of the machines that join, that follow, that tend a state and that recover one, and clients whose planted bugs they find.
//!
//! A failure says its seed. `KEELSTONE_SIM_FROM=seed KEELSTONE_SIM_SEEDS=1 cargo test -p keelstone-sim every_seed` runs it
//! again; `cargo xtask sim N` runs many.
#![forbid(unsafe_code)]

use keelstone_sim::careless::{Careless, Slip};
use keelstone_sim::neglect::{Lapse, Neglectful};
use keelstone_sim::toy::{Bug, Toy};
use keelstone_sim::{
    Blunder, Careful, Manner, Outcome, follow, follow_among, recover, run, run_among, tend, tend_among,
};
use keelstone_sync::peers::{Follower, Joiner};
use keelstone_sync::recovery::Strategy;
use keelstone_tree::Blake3;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

type Machine = Joiner<Blake3>;

/// Seeds of a node that joins in the tests, of one that follows, of one that tends its state, and of one that recovers it.
const SEEDS: u64 = 5_000;
const FOLLOWED_SEEDS: u64 = 500;
const TENDED_SEEDS: u64 = 100;
const RECOVERED_SEEDS: u64 = 200;

/// What a seed comes to, or what is wrong, with the seed.
fn judge(
    seed: u64,
    run: impl Fn(u64) -> Result<Outcome, String> + std::panic::RefUnwindSafe,
) -> Result<Outcome, String> {
    match std::panic::catch_unwind(|| run(seed)) {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(wrong)) => Err(format!("seed {seed}: {wrong}")),
        Err(_) => Err(format!("seed {seed} panics")),
    }
}

/// What many seeds come to, all together.
struct Storm {
    count: u64,
    lives: u64,
    rebuilt: u64,
    banned: u64,
    amount: u64,
    /// How often each strategy of a recovery led to the target.
    by: BTreeMap<Strategy, u64>,
}

impl Storm {
    /// So many seeds, unless the environment says which.
    fn of(default: u64, run: fn(u64) -> Result<Outcome, String>) -> Self {
        let (first, count) = (golden::count("KEELSTONE_SIM_FROM", 0), golden::count("KEELSTONE_SIM_SEEDS", default));
        let next = AtomicU64::new(first);
        let threads = thread::available_parallelism().map_or(2, |threads| threads.get().min(64));
        let (mut wrong, mut lives, mut rebuilt, mut banned, mut requests, mut amount) = (Vec::new(), 0, 0, 0, 0, 0);
        let mut by = BTreeMap::new();
        thread::scope(|scope| {
            let work = || {
                let mut outcomes = Vec::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return outcomes;
                    }
                    let outcome = judge(seed, run);
                    let is_wrong = outcome.is_err();
                    outcomes.push(outcome);
                    if is_wrong {
                        return outcomes;
                    }
                }
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for outcome in workers.into_iter().flat_map(|worker| worker.join().expect("it catches panics")) {
                match outcome {
                    Ok(outcome) => {
                        banned += outcome.banned;
                        lives += outcome.lives;
                        rebuilt += outcome.rebuilt;
                        requests += outcome.requests;
                        amount += outcome.amount;
                        outcome.by.into_iter().for_each(|strategy| *by.entry(strategy).or_default() += 1);
                    }
                    Err(error) => wrong.push(error),
                }
            }
        });
        println!(
            "{count} seeds from {first}: {lives} lives, {requests} requests, {banned} bans, {rebuilt} built anew, {amount} in all, {by:?}"
        );
        assert!(wrong.is_empty(), "{wrong:#?}");
        Self { count, lives, rebuilt, banned, amount, by }
    }

    /// Enough nodes died, and of few the store did not open; enough liars were found out, and there was enough to do: so much
    /// in each run.
    fn assert_it_was_one(&self, each: u64) {
        let Self { count, lives, rebuilt, banned, amount, .. } = *self;
        let is_one = banned > count / 2 && lives > count && 3 * rebuilt < lives && amount > each * count;
        assert!(
            count < 100 || is_one,
            "the storm is not what it should be: {banned} bans, {lives} lives, {rebuilt}, {amount}"
        );
    }
}

/// spec: PEER-5, PEER-6, PEER-7, PEER-8, PEER-9, PEER-10. Whatever network, disk and peers do: nothing unproven is written,
/// nothing staged is staged again, nobody is banned who did not lie, and the certified state comes out.
#[test]
fn every_seed_ends_with_the_certified_state() {
    Storm::of(SEEDS, run::<Machine>).assert_it_was_one(10);
}

/// spec: PEER-7, PEER-15, SNAP-11. Whatever network, disk and peers do: after each height that whoever follows takes in, and
/// after each crash, its root is the chain's and nothing that was taken in is lost; nobody is banned who did not lie, and
/// it comes to the last height that is certified.
#[test]
fn every_seed_of_a_follower_comes_to_the_last_height() {
    Storm::of(FOLLOWED_SEEDS, follow::<Follower>).assert_it_was_one(10);
}

/// A seed is a run: twice the same.
#[test]
fn a_seed_gives_the_same_run_each_time() {
    for seed in 0..40 {
        assert_eq!(judge(seed, run::<Machine>), judge(seed, run::<Machine>));
        assert_eq!(judge(seed, follow::<Follower>), judge(seed, follow::<Follower>));
        assert_eq!(judge(seed, tend::<Careful>), judge(seed, tend::<Careful>));
        assert_eq!(judge(seed, recover::<0>), judge(seed, recover::<0>));
    }
}

fn toy<const BUG: usize>() -> Option<String> {
    let seeds = if BUG == 0 { 300 } else { 1_500 };
    (0..seeds).find_map(|seed| judge(seed, run::<Toy<BUG>>).err())
}

/// These runs find what is wrong with whoever joins: a toy that does it right passes, one with any of many planted bugs
/// does not.
#[test]
fn a_sound_toy_passes_and_each_planted_bug_is_found() {
    assert_eq!(toy::<0>(), None, "the sound toy");
    let found = [
        toy::<1>(),
        toy::<2>(),
        toy::<3>(),
        toy::<4>(),
        toy::<5>(),
        toy::<6>(),
        toy::<7>(),
        toy::<8>(),
        toy::<9>(),
        toy::<10>(),
        toy::<11>(),
        toy::<12>(),
    ];
    assert_eq!(found.len() + 1, Bug::ALL.len());
    for (bug, found) in Bug::ALL[1..].iter().zip(found) {
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not noticed"));
        println!("{bug:?}: {}", found.chars().take(160).collect::<String>());
        // Nothing is wrong with each of its steps: only that there is no end of them.
        assert!(*bug != Bug::StartsOver || found.contains("it has not ended after"), "{found}");
    }
}

fn slip<const SLIP: usize>() -> Option<String> {
    let seeds = if SLIP == 0 { 100 } else { 1_000 };
    (0..seeds).find_map(|seed| judge(seed, follow::<Careless<SLIP>>).err())
}

/// These runs find what is wrong with whoever follows, too.
#[test]
fn a_careful_follower_passes_and_each_slip_is_found() {
    assert_eq!(slip::<0>(), None, "the careful one");
    let found =
        [slip::<1>(), slip::<2>(), slip::<3>(), slip::<4>(), slip::<5>(), slip::<6>(), slip::<7>(), slip::<8>()];
    assert_eq!(found.len() + 1, Slip::ALL.len());
    for (slip, found) in Slip::ALL[1..].iter().zip(found) {
        let found = found.unwrap_or_else(|| panic!("{slip:?} was not noticed"));
        println!("{slip:?}: {}", found.chars().take(160).collect::<String>());
    }
}

/// One honest peer among four of a kind: the sync ends with the certified state, in each of so many seeds. Returns how many
/// of the four were banned, over all.
fn ends_among(liars: Manner) -> u64 {
    const SEEDS: u64 = 40;
    let outcome = |seed| {
        judge(seed, |seed| run_among::<Machine>(seed, liars)).unwrap_or_else(|wrong| panic!("{liars:?}: {wrong}"))
    };
    (0..SEEDS).map(|seed| outcome(seed).banned).sum()
}

/// S-01: wrong bytes are never written, and who sends them is banned after three times.
#[test]
fn s01_peers_that_send_wrong_bytes_are_banned_and_the_sync_ends() {
    assert!(ends_among(Manner::WrongBytes) > 20);
    assert!(ends_among(Manner::SometimesWrong) > 0);
    assert!(ends_among(Manner::Truncated) > 20);
    assert!(ends_among(Manner::OthersAnswer) > 0);
    assert!(ends_among(Manner::Replayed) > 0);
}

/// S-02: what was not asked for is not taken.
#[test]
fn s02_units_that_nobody_asked_for_are_not_taken() {
    assert!(ends_among(Manner::Trailing) > 20);
    assert!(ends_among(Manner::WrongNumber) > 20);
}

/// S-03: nothing, however politely said, is a failed try, and the sync goes on with others.
#[test]
fn s03_empty_answers_hold_nobody_up_and_are_no_lie() {
    assert_eq!(ends_among(Manner::Empty), 0);
    assert_eq!(ends_among(Manner::Stingy), 0);
    assert_eq!(ends_among(Manner::NotKept), 0);
    assert_eq!(ends_among(Manner::Busy), 0);
}

/// S-04: answers without end, or larger than what was asked for can be, are bounded by what is proven. Who sends on and on is
/// banned: some of it comes before its answer does, and is of another question.
#[test]
fn s04_answers_without_end_are_bounded() {
    assert!(ends_among(Manner::Endless) > 20);
    assert!(ends_among(Manner::Oversized) > 20);
    assert!(ends_among(Manner::Noise) > 0);
}

/// S-11: an answer that never comes, or comes too late, is asked of others, and slowness is no crime.
#[test]
fn s11_answers_that_never_come_are_asked_of_others() {
    assert_eq!(ends_among(Manner::Silent), 0);
    assert_eq!(ends_among(Manner::Slow), 0);
}

/// S-12: four of five peers with a whole state of another root: not a byte of it is written, those who send it are banned,
/// and the one true peer is enough.
#[test]
fn s12_a_majority_with_another_root_is_not_followed() {
    assert!(ends_among(Manner::MovingRoot) > 20);
    assert!(ends_among(Manner::Stale) > 20);
    assert!(ends_among(Manner::OtherChain) > 100);
}

/// S-01, S-02, S-03, S-04, S-11, S-12 of whoever follows: with one honest peer among four of any kind it comes to the last
/// height; who sends what cannot be true is banned, and who sends nothing, little or late is not.
#[test]
fn a_follower_among_four_of_a_kind_bans_those_who_lie_and_comes_to_the_last_height() {
    for liars in Manner::LIARS {
        let outcome = |seed| {
            judge(seed, |seed| follow_among::<Follower>(seed, liars))
                .unwrap_or_else(|wrong| panic!("{liars:?}: {wrong}"))
        };
        let banned: u64 = (0..20).map(|seed| outcome(seed).banned).sum();
        assert!(if liars.is_blameless() { banned == 0 } else { banned > 10 }, "{liars:?}: {banned} were banned");
    }
}

/// spec: CHECK-3, CHECK-4, CHECK-8, CHECK-9, CHECK-10, STORE-16. Whatever disk and peers do: what can be read is the chain's, what
/// cannot is said to be damaged, nothing is repaired to another root or more often than it may be, only those who lie are said
/// to, and all of the state can be read in the end.
#[test]
fn every_seed_of_a_node_that_tends_its_state_ends_with_all_of_it() {
    Storm::of(TENDED_SEEDS, tend::<Careful>).assert_it_was_one(4);
}

fn lapse<const LAPSE: usize>() -> Option<String> {
    let seeds = if LAPSE == 0 { 50 } else { 1_000 };
    (0..seeds).find_map(|seed| judge(seed, tend::<Neglectful<LAPSE>>).err())
}

/// These runs find what is wrong with whoever tends a state, too.
#[test]
fn a_careful_keeper_passes_and_each_lapse_is_found() {
    assert_eq!(lapse::<0>(), None, "the careful one");
    let found = [lapse::<1>(), lapse::<2>(), lapse::<3>(), lapse::<4>(), lapse::<5>(), lapse::<6>(), lapse::<7>()];
    assert_eq!(found.len() + 1, Lapse::ALL.len());
    for (lapse, found) in Lapse::ALL[1..].iter().zip(found) {
        let found = found.unwrap_or_else(|| panic!("{lapse:?} was not noticed"));
        println!("{lapse:?}: {}", found.chars().take(160).collect::<String>());
    }
}

/// C-03: with one honest peer among four of any kind, of another chain too, the state stays the certified one and is whole in the
/// end.
#[test]
fn a_node_that_tends_its_state_among_four_of_a_kind_keeps_it_and_has_it_whole() {
    for liars in Manner::LIARS {
        for seed in 0..2 {
            judge(seed, |seed| tend_among::<Careful>(seed, liars)).unwrap_or_else(|wrong| panic!("{liars:?}: {wrong}"));
        }
    }
}

/// spec: RECOVER-1, RECOVER-2, RECOVER-3, RECOVER-4, RECOVER-7, RECOVER-9, SNAP-19. Whatever disk, snapshots, blocks and peers do: what
/// counts is what counted before or all of the target, what was fetched stays until it is built, nobody is banned who did not
/// lie, and with one way that leads there the target is had again.
#[test]
fn every_seed_of_a_recovery_ends_with_the_target() {
    let storm = Storm::of(RECOVERED_SEEDS, recover::<0>);
    let Storm { count, lives, rebuilt, banned, .. } = storm;
    let each = Strategy::ALL.iter().all(|strategy| storm.by.get(strategy).is_some_and(|times| times * 20 > count));
    let is_one = each && banned > count / 10 && 5 * lives > 6 * count && 4 * rebuilt > count;
    assert!(
        count < 100 || is_one,
        "the storm is not what it should be: {banned} bans, {lives} lives, {rebuilt} in vain"
    );
}

fn blunder<const BLUNDER: usize>() -> Option<String> {
    let seeds = if BLUNDER == 0 { 50 } else { 1_000 };
    (0..seeds).find_map(|seed| judge(seed, recover::<BLUNDER>).err())
}

/// These runs find what is wrong with whoever recovers, too.
#[test]
fn a_sound_recovery_passes_and_each_blunder_is_found() {
    assert_eq!(blunder::<0>(), None, "the sound one");
    let found = [
        blunder::<1>(),
        blunder::<2>(),
        blunder::<3>(),
        blunder::<4>(),
        blunder::<5>(),
        blunder::<6>(),
        blunder::<7>(),
    ];
    assert_eq!(found.len() + 1, Blunder::ALL.len());
    for (blunder, found) in Blunder::ALL[1..].iter().zip(found) {
        let found = found.unwrap_or_else(|| panic!("{blunder:?} was not noticed"));
        println!("{blunder:?}: {}", found.chars().take(160).collect::<String>());
    }
}
