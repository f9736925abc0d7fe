//! Blocks on several threads: whatever stands in each other's way, they come to what they come to in order.

use crate::tools::*;
use crate::walk::{self, Walk};
use keelstone_codec::{BoundedList, BoundedSet, Fixed, Height, Text, Timestamp, splitmix64};
use keelstone_execution::bundles::{BundleId, Resume, Retry, RollBack};
use keelstone_execution::{Batching, Bundle, Mode, Operation, list_root};
use keelstone_ledger::modules::{contracts, memes, rules, social};
use keelstone_ledger::{
    Beforehand, Block, Executed, Genesis, Receipt, Refused, Signature, SignedTransaction, Verdict, execute,
};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        splitmix64(&mut self.0) % end
    }

    fn person(&mut self, among: u64) -> u8 {
        u8::try_from(1 + self.below(among)).unwrap()
    }

    /// The next nonce, or once in so many times the one before, and as often the one after.
    fn nonce(&mut self, next: &mut u64, times: u64) -> u64 {
        match self.below(times) {
            0 => next.saturating_sub(1),
            1 => *next + 1,
            _ => {
                *next += 1;
                *next - 1
            }
        }
    }
}

/// The agents of a walk, all of them with money.
fn genesis() -> Genesis {
    let mut genesis = walk::genesis();
    let account = |person: u8| format!(r#"{{"key":"currency.balances:{}","value":500}}"#, key(person).public());
    let accounts: Vec<String> = (1..=60).map(account).collect();
    genesis.import_xian(format!("[{}]", accounts.join(",")).as_bytes()).unwrap();
    (genesis.limits.bundle_gas_max, genesis.limits.continuation_gas_max) = (4_000_000, 10_000_000);
    genesis
}

fn pay(to: u8, amount: u64) -> Operation {
    let to = Text::new(key(to).public().to_string()).unwrap();
    op(&contracts::Transfer { to, amount: Text::new(amount.to_string()).unwrap() })
}

/// Everything by which a run of a block differs from another.
fn told(executed: &Executed) -> String {
    let Executed { block, receipts, continuations, changes, record, refused, validators, nonces, .. } = executed;
    format!("{block:?}{receipts:?}{continuations:?}{changes:?}{record:?}{refused:?}{validators:?}{nonces:?}")
}

/// Runs a block in order and on 1, 2 and 8 threads, compares, and commits it. What was run beforehand on two.
fn compared(chain: Chain, block: Block, refused: Refused, what: &str) -> (Chain, Vec<Receipt>, Beforehand) {
    let view = chain.view();
    let expected = execute(chain.registry(), view.clone(), view.root(), block.clone(), refused).unwrap();
    assert_eq!(expected.beforehand, Beforehand::default());
    let (mut chain, mut beforehand, mut last) = (chain, Beforehand::default(), None);
    for threads in [1, 8, 2] {
        chain = chain.on_threads(NonZeroUsize::new(threads).unwrap());
        let pending = last.insert(chain.run(block.clone(), refused).unwrap());
        assert_eq!(told(pending.executed()), told(&expected), "{what}, {threads} threads");
        if threads > 1 {
            let found = pending.executed().beforehand;
            assert!(threads == 8 || found == beforehand, "{what}: {found:?} and {beforehand:?}");
            beforehand = found;
        }
    }
    chain.commit(last.unwrap()).unwrap();
    (chain, expected.receipts, beforehand)
}

/// spec: EXEC-15. Blocks of anything by anybody, in each other's way or not: calls of every function, payments between
/// few, bundles in flight that are hurried and taken back, nonces that were used or leave a gap, signatures that are not
/// good, blocks that have no gas left. Results, gas, events, errors and their order are those of a run in order.
#[test]
fn d03_blocks_on_several_threads_are_blocks_in_order() {
    let (mut taken, mut again, mut failed, mut refusals) = (0, 0, 0, BTreeMap::<u16, u32>::new());
    for seed in 0..4u64 {
        let (mut dice, mut walk) = (Dice(seed), Walk::begin(seed));
        let mut genesis = genesis();
        if seed % 3 == 2 {
            genesis.limits.block_gas_max = 5_000_000;
            genesis.limits.continuation_gas_max = 1_000_000;
        }
        let mut chain = chain_of(&genesis);
        let mut bundles: Vec<(u8, BundleId)> = Vec::new();
        for height in 1..=6u64 {
            let functions = chain.registry().functions();
            let people = [6, 16, 60][usize::try_from(dice.below(3)).unwrap()];
            let mut nonces: BTreeMap<u8, u64> = BTreeMap::new();
            let mut transactions: Vec<SignedTransaction> = Vec::new();
            for _ in 0..dice.below(70) {
                let mut person = dice.person(people);
                let operations: Vec<Operation> = match dice.below(8) {
                    0..3 => (0..=dice.below(3)).map(|_| pay(dice.person(people), 1 + dice.below(200))).collect(),
                    3 => vec![post("one"), post("two")],
                    4 if !bundles.is_empty() => {
                        let (owner, bundle) = bundles[usize::try_from(dice.below(bundles.len() as u64)).unwrap()];
                        person = owner;
                        vec![if dice.below(3) > 0 { op(&Resume { bundle }) } else { op(&RollBack { bundle }) }]
                    }
                    _ => {
                        let (caller, operation) = walk.any_call(&functions, height);
                        person = caller;
                        vec![operation]
                    }
                };
                let next =
                    nonces.entry(person).or_insert_with(|| chain.next_nonce(&key(person).public()).unwrap().unwrap());
                let nonce = dice.nonce(next, 20);
                let mut transaction = unsigned(person, nonce, operations.clone());
                if dice.below(12) == 0 {
                    let borders = BoundedSet::new((1..u32::try_from(operations.len()).unwrap()).step_by(2)).unwrap();
                    let batching = Batching { borders, ..Batching::until(Height(height + 4)) };
                    transaction.bundle = Bundle::new(Mode::Async(batching), operations).unwrap();
                }
                let mut signed = transaction.sign(&key(person));
                if *signed.transaction.bundle.mode() != Mode::Sync {
                    bundles.push((person, BundleId(signed.id().0)));
                }
                if dice.below(40) == 0 {
                    signed.signature = Signature([7; 64]);
                }
                transactions.push(signed);
            }
            let block =
                Block { height: Height(height), time: Timestamp(height * 1_000), proposer: proposer(), transactions };
            let refused = if height % 3 == 0 { Refused::LeaveOut } else { Refused::Receipt };
            let (next, receipts, beforehand) = compared(chain, block, refused, &format!("seed {seed}, block {height}"));
            chain = next;
            taken += beforehand.taken;
            again += beforehand.transactions - beforehand.taken;
            for receipt in receipts {
                match receipt.verdict {
                    Verdict::Failed(_) => failed += 1,
                    Verdict::Refused { code, .. } => *refusals.entry(code).or_default() += 1,
                    _ => {}
                }
            }
        }
    }
    assert!(taken > 100 && again > 50 && failed > 50, "{taken} taken, {again} again, {failed} failed");
    assert!([5, 8, 9, 16].iter().all(|code| refusals.contains_key(code)), "{refusals:?}");
}

fn of(transactions: Vec<SignedTransaction>) -> Block {
    Block { height: Height(1), time: Timestamp(1_000), proposer: proposer(), transactions }
}

/// spec: EXEC-13, EXEC-15. A scan is charged beforehand what it is charged in order: a key that a batch of the block changed,
/// and the account's first transaction changed back, is passed by its second as it stands in the state, or not at all.
#[test]
fn d03_a_scan_passes_what_it_passes_in_order() {
    for was_in in [false, true] {
        let alliance = social::AllianceId(1);
        let (join, leave) = (op(&social::JoinAlliance { alliance }), op(&social::LeaveAlliance { alliance }));
        let mut first = vec![signed(2, 0, vec![propose("first", &[])])];
        if was_in {
            first.push(signed(1, 0, vec![join.clone()]));
        }
        let (batched, back) = if was_in { (leave, join) } else { (join, leave) };
        let (chain, receipts, _) = compared(chain_of(&genesis()), of(first), Refused::Receipt, "proposed");
        assert!(receipts.iter().all(Receipt::succeeded));
        let next = chain.next_nonce(&key(1).public()).unwrap().unwrap();
        let mut submitted = unsigned(1, next, vec![batched.clone()]);
        submitted.bundle = Bundle::new(Mode::Async(Batching::until(Height(50))), vec![batched]).unwrap();
        let block = |height, transactions| Block { height: Height(height), ..of(transactions) };
        let (chain, ..) = compared(chain, block(2, vec![submitted.sign(&key(1))]), Refused::Receipt, "submitted");
        let mut all = vec![signed(1, next + 1, vec![back]), signed(1, next + 2, vec![propose("second", &[])])];
        all.extend((3..=10).map(|person| signed(person, 0, vec![pay(person, 1)])));
        let (_, receipts, beforehand) = compared(chain, block(3, all), Refused::Receipt, "changed back");
        assert!(receipts.iter().all(Receipt::succeeded), "{receipts:?}");
        assert_eq!(beforehand, Beforehand { transactions: 10, taken: 10, ..Beforehand::default() });
    }
}

/// What scans, or changes what is scanned: of one's neighbour's alliance mostly, so that few are in each other's way.
fn of_scans(dice: &mut Dice, person: u8, height: u64) -> Operation {
    let number = if dice.below(8) == 0 { 1 + dice.below(8) } else { 1 + u64::from(person) % 6 };
    let alliance = social::AllianceId(number);
    let meme = memes::MemeId(1 + dice.below(12));
    let rule = rules::RuleId(1 + dice.below(4));
    match dice.below(24) {
        0..7 => op(&social::JoinAlliance { alliance }),
        7..14 => op(&social::LeaveAlliance { alliance }),
        14 => propose("another", &[]),
        15 => post("so"),
        16 => op(&memes::React { meme, reaction: Fixed::from_micros(500_000) }),
        17..20 => op(&memes::Remove { meme }),
        20 => op(&rules::Propose {
            title: Text::new("so").unwrap(),
            text: Text::new("be it").unwrap(),
            repeals: None,
            deadline: Height(height + 12),
            quorum: Fixed::from_micros(500_000),
            participation: 3,
        }),
        21 => op(&rules::Vote { rule, yes: dice.below(4) > 0 }),
        _ => op(&rules::Close { rule }),
    }
}

/// spec: EXEC-15. Whatever batches have changed below them and transactions change back: alliances, memes and votes that are
/// scanned beforehand cost what they cost in order.
#[test]
fn d03_blocks_of_scans_on_several_threads_are_blocks_in_order() {
    let mut all = Beforehand::default();
    for seed in 0..3u64 {
        let mut dice = Dice(90 + seed);
        let first = (1..=6).flat_map(|person| {
            [signed(person, 0, vec![propose("one", &[])]), signed(person, 1, vec![post("one"), post("two")])]
        });
        let (mut chain, ..) = compared(chain_of(&genesis()), of(first.collect()), Refused::Receipt, "first");
        for height in 2..=18u64 {
            let mut nonces: BTreeMap<u8, u64> = BTreeMap::new();
            let mut transactions: Vec<SignedTransaction> = Vec::new();
            for _ in 0..8 + dice.below(20) {
                let person = dice.person(12);
                let mut operations: Vec<Operation> =
                    (0..=dice.below(2)).map(|_| of_scans(&mut dice, person, height)).collect();
                if person > 6 {
                    operations = vec![pay(person, 1)];
                }
                let next =
                    nonces.entry(person).or_insert_with(|| chain.next_nonce(&key(person).public()).unwrap().unwrap());
                let mut transaction = unsigned(person, *next, operations.clone());
                *next += 1;
                if person <= 6 && dice.below(3) == 0 {
                    transaction.bundle =
                        Bundle::new(Mode::Async(Batching::until(Height(height + 4))), operations).unwrap();
                }
                transactions.push(transaction.sign(&key(person)));
            }
            let block = Block { height: Height(height), ..of(transactions) };
            let (next, _, beforehand) =
                compared(chain, block, Refused::Receipt, &format!("seed {seed}, block {height}"));
            chain = next;
            all.transactions += beforehand.transactions;
            all.taken += beforehand.taken;
        }
    }
    assert!(all.taken > 100 && all.transactions - all.taken > 50, "{all:?}");
}

/// spec: EXEC-15. What is in nobody's way is run once, also the second transaction of an account; what all want is run
/// in order after all.
#[test]
fn what_is_in_nobodys_way_is_run_once() {
    let apart: Vec<_> = (0..120u8).map(|n| signed(1 + n / 2, u64::from(n % 2), vec![pay(1 + n / 2, 1)])).collect();
    let (_, receipts, beforehand) = compared(chain_of(&genesis()), of(apart), Refused::Receipt, "apart");
    assert!(receipts.iter().all(Receipt::succeeded));
    assert_eq!(beforehand, Beforehand { transactions: 120, taken: 120, ..Beforehand::default() });
    let same: Vec<_> = (1..=60).map(|person| signed(person, 0, vec![pay(61, 1)])).collect();
    let (_, receipts, beforehand) = compared(chain_of(&genesis()), of(same), Refused::Receipt, "all the same");
    assert!(receipts.iter().all(Receipt::succeeded));
    assert_eq!(beforehand, Beforehand { transactions: 60, taken: 1, ..Beforehand::default() });
}

/// Sets an entry, in three copies with long names and comments: that is enough work to be handed on.
fn patch(entry: u64, amount: u64) -> Operation {
    let copy = |copy: u64| contracts::PatchEntry {
        key: Text::new(format!("con_{}.of:{copy}:{entry}", "x".repeat(225))).unwrap(),
        value: Some(Text::new(amount.to_string()).unwrap()),
        comment: Text::new("x".repeat(256)).unwrap(),
    };
    op(&contracts::Patch { entries: BoundedList::new((0..3).map(copy).collect()).unwrap() })
}

/// spec: EXEC-15. So are blocks that one account has most of, in many bundles or in large ones: of operations that stand in
/// each other's way and of others, that fail, that use a nonce twice or leave a gap; and bundles in flight of it.
#[test]
fn d03_blocks_of_one_account_are_blocks_in_order() {
    let (mut all, mut failed) = (Beforehand::default(), 0);
    for seed in 0..4u64 {
        let (mut dice, mut walk) = (Dice(50 + seed), Walk::begin(seed));
        let mut genesis = genesis();
        // One bundle of the largest uses more than the least of these.
        genesis.limits.bundle_gas_max = [8_000_000, 200_000_000][usize::try_from(seed % 2).unwrap()];
        genesis.limits.continuation_gas_max = 60_000_000;
        let mut chain = chain_of(&genesis);
        for height in 1..=5u64 {
            let functions = chain.registry().functions();
            let entries = [5, 300, 1 << 40][usize::try_from(dice.below(3)).unwrap()];
            let mut nonces: BTreeMap<u8, u64> = BTreeMap::new();
            let mut transactions: Vec<SignedTransaction> = Vec::new();
            for _ in 0..[3, 40, 120][usize::try_from(dice.below(3)).unwrap()] {
                let mut person = if dice.below(10) < 8 { 1 } else { dice.person(60) };
                let operations: Vec<Operation> = match dice.below(12) {
                    0 => vec![pay(dice.person(60), 1 + dice.below(20)), pay(dice.person(60), dice.below(3))],
                    1 => {
                        let (caller, operation) = walk.any_call(&functions, height);
                        person = caller;
                        vec![operation]
                    }
                    2 => (0..200 + dice.below(300)).map(|_| patch(dice.below(entries), dice.below(100))).collect(),
                    _ => (0..=dice.below(12)).map(|_| patch(dice.below(entries), dice.below(100))).collect(),
                };
                let next =
                    nonces.entry(person).or_insert_with(|| chain.next_nonce(&key(person).public()).unwrap().unwrap());
                let nonce = dice.nonce(next, 30);
                let mut transaction = unsigned(person, nonce, operations.clone());
                if operations.len() > 100 && dice.below(3) == 0 {
                    transaction.bundle =
                        Bundle::new(Mode::Async(Batching::until(Height(height + 4))), operations).unwrap();
                }
                let mut signed = transaction.sign(&key(person));
                if dice.below(40) == 0 {
                    signed.signature = Signature([7; 64]);
                }
                transactions.push(signed);
            }
            let block =
                Block { height: Height(height), time: Timestamp(height * 1_000), proposer: proposer(), transactions };
            let refused = if height % 3 == 0 { Refused::LeaveOut } else { Refused::Receipt };
            let (next, receipts, beforehand) = compared(chain, block, refused, &format!("seed {seed}, block {height}"));
            chain = next;
            all.operations += beforehand.operations;
            all.operations_taken += beforehand.operations_taken;
            failed += receipts.iter().filter(|receipt| matches!(receipt.verdict, Verdict::Failed(_))).count();
        }
    }
    assert!(all.operations_taken > 2_000 && all.operations - all.operations_taken > 300, "{all:?}");
    assert!(failed > 5, "{failed} failed");
}

/// spec: EXEC-15. The nonce, and the state hash that one bundle leaves to the next, are in the way of no operation.
#[test]
fn bundles_of_one_account_in_nobodys_way_are_run_once() {
    let mut genesis = genesis();
    genesis.limits.bundle_gas_max = 40_000_000;
    let of_ten = |n: u64| signed(1, n, (0..10).map(|at| patch(n * 10 + at, 1)).collect());
    let (chain, receipts, beforehand) =
        compared(chain_of(&genesis), of((0..60).map(of_ten).collect()), Refused::Receipt, "of ten");
    assert!(receipts.iter().all(Receipt::succeeded));
    // The first operation says what one is like.
    assert_eq!(beforehand, Beforehand { operations: 590, operations_taken: 590, ..Beforehand::default() });
    let whole = signed(1, 60, (0..100).map(|at| patch(1_000 + at, 1)).collect());
    let block = Block { height: Height(2), ..of(vec![whole]) };
    let (_, receipts, beforehand) = compared(chain, block, Refused::Receipt, "one bundle");
    assert!(receipts.iter().all(Receipt::succeeded));
    assert_eq!(beforehand, Beforehand { operations: 99, operations_taken: 99, ..Beforehand::default() });
}

/// spec: EXEC-12, EXEC-15. In one block a bundle in flight has its batch, its owner replaces the operation behind that, which
/// was run beforehand with the batch, and resumes it: what runs is the replacement, on any number of threads.
#[test]
fn an_operation_replaced_behind_its_batch_is_the_replacement_on_all_threads() {
    let operations: Vec<Operation> = (0..200).map(|n| patch(n, 1)).collect();
    let mut submitted = unsigned(1, 0, operations.clone());
    submitted.bundle = Bundle::new(Mode::Async(Batching::until(Height(50))), operations.clone()).unwrap();
    let submitted = submitted.sign(&key(1));
    let bundle = BundleId(submitted.id().0);
    let (chain, ..) = compared(chain_of(&genesis()), of(vec![submitted]), Refused::Receipt, "submitted");
    let block = |transactions| Block { height: Height(2), ..of(transactions) };
    let batch = chain.run(block(vec![]), Refused::Receipt).unwrap().executed().continuations[0].operations().len();
    assert!(batch > 2);
    let mut corrected = operations;
    corrected[batch] = patch(9_999, 7);
    let retry = Retry {
        bundle,
        operation: u32::try_from(batch).unwrap(),
        replacement: corrected[batch].clone(),
        revision: 1,
        operations: list_root(&corrected.iter().map(Operation::list_hash).collect::<Vec<_>>()),
    };
    let transactions = vec![signed(1, 1, vec![op(&retry)]), signed(1, 2, vec![op(&Resume { bundle })])];
    let (chain, receipts, beforehand) = compared(chain, block(transactions), Refused::Receipt, "corrected");
    assert!(receipts.iter().all(Receipt::succeeded), "{receipts:?}");
    assert!(beforehand.operations > beforehand.operations_taken + 1, "{beforehand:?}");
    let hurried = &chain.continuations(Height(2)).unwrap()[1];
    assert_eq!((hurried.first, hurried.operations().len()), (retry.operation, 1));
}
