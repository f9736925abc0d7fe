//! Async bundles on a chain: over crashes, rollbacks of the chain, nodes that join in the middle, and replays.

use crate::tools::*;
use keelstone_codec::{BoundedSet, Decode, Encode, Fixed, Height, Text, Timestamp, splitmix64};
use keelstone_execution::bundles::{Abandon, BundleId, Resume, RollBack, Status};
use keelstone_execution::{Batching, Bundle, Mode, Operation, SubmitError};
use keelstone_ledger::modules::{agents, contracts, standard};
use keelstone_ledger::{
    Committed, Genesis, Ledger, LedgerError, PoolLimits, Progress, Refusal, SignedTransaction, Transaction, Verdict,
    verify_transition,
};
use keelstone_store::Store;
use keelstone_store::files::{Directory, Fault, FaultyFiles, MemoryFiles};
use keelstone_store::kv::{Batch, Kv, MemoryKv, RedbKv};
use keelstone_tree::{Blake3, Diff, KeyRange, Read as _, Write};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const OPERATIONS: usize = 1_000;

/// Somebody with money, and batches that are small.
fn genesis() -> Genesis {
    let mut genesis = Genesis::new(chain_id());
    let balance = format!(r#"[{{"key":"currency.balances:{}","value":5000}}]"#, key(1).public());
    genesis.import_xian(balance.as_bytes()).unwrap();
    (genesis.limits.bundle_gas_max, genesis.limits.continuation_gas_max) = (4_000_000, 10_000_000);
    genesis
}

fn pay(to: u8, amount: u64) -> Operation {
    let to = Text::new(format!("person {to}")).unwrap();
    op(&contracts::Transfer { to, amount: Text::new(amount.to_string()).unwrap() })
}

fn batched(person: u8, nonce: u64, batching: Batching, operations: Vec<Operation>) -> SignedTransaction {
    let bundle = Bundle::new(Mode::Async(batching), operations.clone()).unwrap();
    Transaction { bundle, ..unsigned(person, nonce, operations) }.sign(&key(person))
}

/// A thousand payments to twenty people: each of them twice would be seen in a balance.
fn payments() -> SignedTransaction {
    let operations = (0..OPERATIONS).map(|n| pay(u8::try_from(n % 20).unwrap(), 1)).collect();
    batched(1, 0, Batching::until(Height(5_000)), operations)
}

fn named(transaction: &SignedTransaction) -> BundleId {
    BundleId(transaction.id().0)
}

/// Makes the next block, at a time that follows from its height alone.
fn next(chain: &Chain) -> Result<Arc<Committed>, LedgerError> {
    chain.produce(Timestamp(chain.height().0 * 1_000), proposer())
}

/// Goes on until nothing is due.
fn finish(chain: &Chain) -> Result<(), LedgerError> {
    while chain.has_due_work()? {
        next(chain)?;
    }
    Ok(())
}

fn balances(chain: &Chain) -> Vec<String> {
    let entries = chain.view();
    let space = keelstone_codec::Namespace::new("contracts").unwrap();
    let prefix = KeyRange::prefix(b"currency.balances:person ");
    entries.scan(&space, prefix).map(|entry| String::from_utf8_lossy(&entry.unwrap().1).into_owned()).collect()
}

/// The chain that nothing ever happened to.
fn undisturbed() -> Chain {
    let chain = chain_of(&genesis());
    block(&chain, &[payments()]);
    finish(&chain).unwrap();
    chain
}

/// spec: EXEC-6, EXEC-7, LEDGER-3. A chain makes blocks for a bundle in flight without any transaction, and idles again.
#[test]
fn chain_goes_on_with_a_bundle_by_itself_and_idles_again() {
    let chain = undisturbed();
    let record = chain.bundle(&named(&payments())).unwrap().unwrap();
    assert!(record.is_complete());
    assert_eq!((record.current_operation, record.total_operations), (1_000, 1_000));
    assert!(chain.height() > Height(5), "it took several blocks, and not {}", chain.height());
    assert_eq!(balances(&chain).len(), 20);
    assert!(chain.bundles().unwrap().is_empty());
    let root = chain.root();
    let empty = next(&chain).unwrap();
    assert_eq!((empty.root, &empty.record), (root, &None));
    each_operation_once(&chain);
}

/// Stops at once and stays in flight.
fn sleeper(person: u8, nonce: u64) -> SignedTransaction {
    let mood = op(&agents::SetMood { mood: Fixed::from_micros(9_000_000) });
    batched(person, nonce, Batching::until(Height(5_000)), vec![mood])
}

/// Whether another bundle of this person is taken in, by the pool and by its block.
fn takes(chain: &Chain, person: u8) -> bool {
    let nonce = chain.next_nonce(&key(person).public()).unwrap().unwrap();
    let bundle = sleeper(person, nonce);
    match chain.submit(&bundle.to_bytes()) {
        Err(Refusal::Async(SubmitError::InFlight { .. })) => false,
        taken => {
            taken.unwrap();
            next(chain).unwrap();
            chain.bundle(&named(&bundle)).unwrap().expect("it is taken in by the block as well");
            true
        }
    }
}

/// One after the other.
fn take<const N: usize>(chain: &Chain, people: [u8; N]) -> [bool; N] {
    people.map(|person| takes(chain, person))
}

/// spec: TX-9, AGENT-7. One stake has the places of one key, whether it is given on or its agent takes another key; and has them again
/// once nothing is in flight that it may have stood for.
#[test]
fn stake_that_is_passed_on_has_no_second_places() {
    let mut genesis = staked([(1, 100), (2, 0), (9, 100)]);
    genesis.limits.bundles_max = 9;
    let chain = chain_of(&genesis);
    let does = |person, operation| assert!(one(&chain, person, vec![operation]).succeeded());
    let give = |to| op(&agents::GiveStake { to: who(to), amount: 100 });
    // Five places are anybody's.
    assert_eq!(take(&chain, [5, 5, 5, 5, 6, 6]), [true, true, true, true, true, false]);
    assert_eq!(take(&chain, [1, 1]), [true, true]);
    does(1, give(2));
    assert_eq!(take(&chain, [1, 2]), [false, false]);
    does(2, give(1));
    assert_eq!(take(&chain, [1, 2, 9]), [false, false, true]);
    does(9, op(&agents::OfferKey { key: Some(key(4).public()) }));
    does(4, op(&agents::TakeKey { agent: who(9) }));
    assert_eq!(take(&chain, [9, 4]), [false, false]);
    let in_flight = chain.bundles().unwrap();
    assert_eq!(in_flight.len(), 8);
    for (bundle, record) in in_flight {
        let person = [1, 5, 6, 9].into_iter().find(|person| key(*person).public() == record.owner).unwrap();
        does(person, op(&Abandon { bundle }));
    }
    assert_eq!(take(&chain, [5, 5, 5, 5, 6, 6]), [true, true, true, true, true, false]);
    assert_eq!(take(&chain, [1, 4, 2]), [true, true, false]);
}

/// spec: TX-9, AGENT-7, EXEC-10. Stake that a bundle brought has no places as long as it may go back with that bundle to where it has some.
#[test]
fn stake_that_may_be_taken_back_has_no_places() {
    let mut genesis = staked([(1, 100), (2, 0)]);
    genesis.limits.bundles_max = 3;
    let chain = chain_of(&genesis);
    let mood = op(&agents::SetMood { mood: Fixed::from_micros(9_000_000) });
    let batching = Batching { borders: BoundedSet::new([1]).unwrap(), ..Batching::until(Height(5_000)) };
    let gives = batched(1, 0, batching, vec![op(&agents::GiveStake { to: who(2), amount: 100 }), mood]);
    block(&chain, std::slice::from_ref(&gives));
    finish(&chain).unwrap();
    assert_eq!(chain.bundle(&named(&gives)).unwrap().unwrap().current_operation, 1);
    assert_eq!(take(&chain, [5, 6, 2, 1]), [true, false, false, false]);
    assert!(one(&chain, 1, vec![op(&RollBack { bundle: named(&gives) })]).succeeded());
    assert_eq!(take(&chain, [6, 2, 1]), [true, false, true]);
}

/// spec: TX-9. Where there is stake that gives standing, keys without it take at most half of the places; where there is none, all.
#[test]
fn keys_without_standing_leave_places_to_those_with_it() {
    let refused = |chain: &Chain, transaction: SignedTransaction| {
        let found = chain.submit(&transaction.to_bytes());
        assert!(matches!(found, Err(Refusal::Async(SubmitError::InFlight { .. }))), "{found:?}");
    };
    let mut genesis = staked([(1, 100), (2, 99)]);
    genesis.limits.bundles_max = 5;
    let chain = chain_of(&genesis);
    // In one block, where each is asked for the state right before it.
    let first: Vec<_> = [2, 3, 4, 5].map(|person| sleeper(person, 0)).into();
    first.iter().for_each(|transaction| assert!(chain.submit(&transaction.to_bytes()).is_ok()));
    let made = next(&chain).unwrap();
    let taken = made.receipts.iter().filter(|receipt| matches!(receipt.verdict, Verdict::Submitted { .. })).count();
    assert_eq!(taken, 3);
    refused(&chain, sleeper(6, 0));
    for nonce in 0..2 {
        block(&chain, &[sleeper(1, nonce)]);
    }
    refused(&chain, sleeper(1, 2));
    let mut genesis = staked([(1, 99)]);
    genesis.limits.bundles_max = 5;
    let chain = chain_of(&genesis);
    block(&chain, &[1, 2, 3, 4, 5].map(|person| sleeper(person, 0)));
    refused(&chain, sleeper(6, 0));
}

/// Every operation is in exactly one continuation, in order.
fn each_operation_once(chain: &Chain) {
    let mut operation = 0;
    for height in 1..=chain.height().0 {
        for continuation in chain.continuations(Height(height)).unwrap() {
            assert_eq!((continuation.first, continuation.by), (operation, None));
            operation += u32::try_from(continuation.operations().len()).unwrap();
        }
    }
    assert_eq!(operation, 1_000);
}

/// spec: EXEC-7, HISTORY-1. The power fails at any change to the disk, 100 times: the chain that is found goes on to the
/// same state hash and root, each operation taking effect once.
#[test]
fn power_cut_in_a_bundle_loses_no_operation_and_repeats_none() {
    let undisturbed = undisturbed();
    let (root, height) = (undisturbed.root(), undisturbed.height());
    let create = |files: &FaultyFiles, kv: &Arc<MemoryKv>| -> Result<Chain, LedgerError> {
        let store = Store::create(Arc::new(files.clone()), options())?;
        Ledger::create(store, kv.clone(), standard(), &genesis(), PoolLimits::default())
    };
    let live = |chain: &Chain| -> Result<(), LedgerError> {
        if chain.height() == Height(0) {
            chain.submit(&payments().to_bytes()).expect("an empty pool takes it");
            next(chain)?;
        }
        finish(chain)
    };
    let calm = FaultyFiles::new(0);
    let kv = Arc::new(MemoryKv::new());
    let chain = create(&calm, &kv).unwrap();
    let first = calm.changes();
    live(&chain).unwrap();
    let changes = calm.changes() - first;
    for run in 0..100u64 {
        let files = FaultyFiles::new(run);
        let kv = Arc::new(MemoryKv::new());
        let chain = create(&files, &kv).unwrap();
        // Spread over the whole life, the last changes included.
        files.fail_at(files.changes() + run * changes / 100, Fault::PowerCut);
        live(&chain).unwrap_err();
        drop(chain);
        let files = files.after_power_cut(run);
        let store = Store::open(Arc::new(files), options()).unwrap();
        let chain = Ledger::open(store, kv, standard(), PoolLimits::default()).unwrap();
        live(&chain).unwrap();
        assert_eq!((chain.root(), chain.height()), (root, height), "run {run}");
    }
}

/// What the child processes of the next test run: a chain on a disk, from wherever it stands to the end.
#[test]
fn chain_is_lived_on() {
    let Some(directory) = std::env::var_os("KEELSTONE_TEST_CHAIN") else { return };
    let directory = std::path::PathBuf::from(directory);
    let files = Arc::new(Directory::new(directory.join("state")).unwrap());
    let kv = Arc::new(RedbKv::open(&directory.join("history.redb")).unwrap());
    let exists = Store::<Blake3>::exists(&*files).unwrap();
    // With the threads that a node has, so that they are killed, too.
    let options = keelstone_store::Options { background: true, ..options() };
    let store = if exists { Store::open(files, options) } else { Store::create(files, options) }.unwrap();
    let chain: Chain = match store.height() {
        None => Ledger::create(store, kv, standard(), &genesis(), PoolLimits::default()).unwrap(),
        Some(_) => Ledger::open(store, kv, standard(), PoolLimits::default()).unwrap(),
    };
    if chain.height() == Height(0) {
        chain.submit(&payments().to_bytes()).unwrap();
        println!("\nbegun {}", next(&chain).unwrap().root);
    }
    finish(&chain).unwrap();
    each_operation_once(&chain);
    println!("\n{}", end_of(&chain));
}

/// What a life comes to: height, root, and the state hash of the bundle's session.
fn end_of(chain: &Chain) -> String {
    let record = chain.bundle(&named(&payments())).unwrap().expect("it was taken in");
    assert!(record.is_complete());
    format!("end {} {} {}", chain.height(), chain.root(), record.state_hash)
}

/// A process that lives such a life, and the lines it says.
struct Life {
    child: Child,
    lines: Receiver<String>,
}

impl Life {
    fn begin(directory: &std::path::Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "async_bundles::chain_is_lived_on", "--nocapture"])
            .env("KEELSTONE_TEST_CHAIN", directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (said, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        // Ends with the process.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Self { child, lines }
    }

    /// The next line that begins so, if the process says one within so long.
    fn says(&self, start: &str, within: Duration) -> Option<String> {
        let until = Instant::now() + within;
        loop {
            let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
            if line.starts_with(start) {
                return Some(line);
            }
        }
    }
}

impl Drop for Life {
    /// SIGKILL, and nothing of it is left running.
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Much longer than a life takes on any machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// spec: EXEC-7. Processes are killed at random moments in the middle of the bundle, with the real database on a real disk:
/// whoever goes on comes to the height, root and state hash of a life that nobody disturbed, each operation having taken
/// effect once. `KEELSTONE_KILLS` says how many; `cargo xtask kills` asks for 100.
#[test]
fn kill_9_in_a_bundle_loses_no_operation_and_repeats_none() {
    let expected = end_of(&undisturbed());
    let calm = {
        let directory = tempfile::tempdir().unwrap();
        let life = Life::begin(directory.path());
        life.says("begun ", PATIENCE).expect("it begins");
        let begun = Instant::now();
        assert_eq!(life.says("end ", PATIENCE), Some(expected.clone()));
        begun.elapsed()
    };
    let runs = golden::count("KEELSTONE_KILLS", 10);
    let mut dice = 11u64;
    for run in 0..runs {
        let directory = tempfile::tempdir().unwrap();
        // Some die again while they recover, or soon after.
        let (mut kills, wanted) = (0, 1 + splitmix64(&mut dice) % 3);
        let mut longest = calm;
        while kills < wanted {
            let thousandths = u32::try_from(splitmix64(&mut dice) % 1_000).unwrap();
            let moment = longest * thousandths / 1_000;
            let life = Life::begin(directory.path());
            if kills == 0 {
                life.says("begun ", PATIENCE).expect("it begins");
            }
            match life.says("end ", moment) {
                None => kills += 1,
                // It was quicker than the first: once it has ended, there is nothing left to kill.
                Some(_) if kills > 0 => break,
                Some(_) => {
                    drop(life);
                    std::fs::remove_dir_all(directory.path()).unwrap();
                    longest /= 2;
                }
            }
        }
        let life = Life::begin(directory.path());
        assert_eq!(life.says("end ", PATIENCE), Some(expected.clone()), "run {run}, killed {kills} times");
    }
    println!("{runs} lives were killed, and each came to {expected}");
}

/// A store that holds what `chain` holds at its last height, and nothing of how it came to be.
fn taken_over(chain: &Chain) -> Chain {
    let view = chain.view();
    let mut parts = Vec::new();
    for (namespace, _) in view.namespaces() {
        let entries = view.scan(&namespace, KeyRange::all()).map(Result::unwrap);
        parts.push((namespace.clone(), entries.map(|(key, value)| Write { key, value: Some(value) }).collect()));
    }
    let store = Store::create(Arc::new(MemoryFiles::new()), options()).unwrap();
    assert_eq!(store.commit(chain.height(), Diff::new(parts).unwrap()).unwrap(), chain.root());
    Ledger::open(store, Arc::new(MemoryKv::new()), standard(), PoolLimits::default()).unwrap()
}

/// spec: EXEC-7, EXEC-9. A node that takes the state in the middle of a bundle goes on to the same roots, and takes the
/// bundle back like any other.
#[test]
fn node_that_joins_in_the_middle_goes_on_alike() {
    let undisturbed = undisturbed();
    let chain = chain_of(&genesis());
    block(&chain, &[payments()]);
    for _ in 0..3 {
        next(&chain).unwrap();
    }
    let joined = taken_over(&chain);
    finish(&joined).unwrap();
    assert_eq!((joined.root(), joined.height()), (undisturbed.root(), undisturbed.height()));

    let both = [&chain, &taken_over(&chain)];
    let roots = both.map(|chain| {
        let back = signed(1, 1, vec![op(&RollBack { bundle: named(&payments()) })]);
        let made = block(chain, &[back]);
        assert!(made.receipts[0].succeeded(), "{:?}", made.receipts);
        assert_eq!(chain.bundle(&named(&payments())).unwrap().unwrap().status, Status::RolledBack);
        assert!(balances(chain).is_empty());
        made.root
    });
    assert_eq!(roots[0], roots[1]);
}

/// spec: HISTORY-3. The chain itself is rolled back into the middle of a bundle, and comes to the same again.
#[test]
fn rollback_of_the_chain_into_a_bundle_comes_to_the_same_again() {
    let chain = undisturbed();
    let (root, height) = (chain.root(), chain.height());
    for to in [height.0 - 1, height.0 / 2, 1] {
        chain.rollback(Height(to)).unwrap();
        assert!(chain.has_due_work().unwrap());
        finish(&chain).unwrap();
        assert_eq!((chain.root(), chain.height()), (root, height));
    }
}

/// spec: HISTORY-4, HISTORY-6, BLOCK-6. A replay comes to the same, and every step verifies from its witness alone.
#[test]
fn replay_and_witnesses_cover_what_blocks_do_for_bundles() {
    let chain = chain_of(&genesis());
    block(&chain, &[payments(), signed(2, 0, vec![register("bob")])]);
    for _ in 0..3 {
        next(&chain).unwrap();
    }
    let bundle = named(&payments());
    block(&chain, &[signed(1, 1, vec![op(&Resume { bundle })])]);
    block(&chain, &[signed(1, 2, vec![op(&Abandon { bundle })])]);
    let replayed = chain.replay(Height(1)..=chain.height(), &mut |_, _| ()).unwrap();
    assert_eq!(replayed.root, chain.root());
    assert_eq!(chain.replay_from_genesis(&genesis(), chain.height(), &mut |_, _| ()).unwrap().root, chain.root());
    for height in 1..=chain.height().0 {
        let claim = chain.transition(Height(height)).unwrap();
        let executed = verify_transition::<Blake3>(chain.registry(), &claim).unwrap();
        assert_eq!(executed.continuations, chain.continuations(Height(height)).unwrap());
        let mut tampered = claim;
        if let Some(record) = &mut tampered.record {
            record.continuations += 1;
            assert!(verify_transition::<Blake3>(chain.registry(), &tampered).is_err());
        }
    }
}

/// spec: EXEC-6. A resumed bundle runs at once, beside the share, and says by whom.
#[test]
fn resume_hurries_a_bundle_beside_the_share() {
    let chain = chain_of(&genesis());
    let submitted = block(&chain, &[payments()]);
    let bundle = named(&payments());
    assert!(
        matches!(submitted.receipts[0].verdict, Verdict::Submitted { bundle: found, operations: 1_000, .. } if found == bundle)
    );
    let resume = signed(1, 1, vec![op(&Resume { bundle })]);
    let made = block(&chain, std::slice::from_ref(&resume));
    let by: Vec<_> = made.continuations.iter().map(|continuation| continuation.by).collect();
    assert_eq!(by, [None, Some(resume.id())]);
    let [first, second] = made.continuations.as_slice() else { panic!("two batches") };
    assert_eq!(second.first as usize, first.operations().len());
    assert!(matches!(second.progress, Progress::Advanced { is_complete: false, .. }));
    assert!(second.gas_used <= genesis().limits.bundle_gas_max);
    // Not somebody else's to hurry.
    let made = block(&chain, &[signed(2, 0, vec![op(&Resume { bundle })])]);
    assert!(matches!(made.receipts[0].verdict, Verdict::Failed(_)));
}

/// spec: EXEC-6. Once for a transaction, however often it says so: going on costs a node more than an operation that asks
/// for it.
#[test]
fn a_transaction_hurries_a_bundle_once() {
    let mut genesis = genesis();
    // An operation may use as much as the share: what a transaction may hurry is enough for several.
    genesis.limits.continuation_gas_max = 500_000;
    let chain = chain_of(&genesis);
    let borders = BoundedSet::new(1..20).unwrap();
    let operations = |to| vec![pay(to, 1); 20];
    let batching = Batching { borders, ..Batching::until(Height(5_000)) };
    let [first, second] = [0, 1].map(|nonce| batched(1, nonce, batching.clone(), operations(7)));
    block(&chain, &[first.clone(), second.clone()]);
    let resume = |of: &SignedTransaction| op(&Resume { bundle: named(of) });
    let made = block(&chain, &[signed(1, 2, [&second, &first, &second, &second, &first].map(resume).into())]);
    let hurried = made.continuations.iter().filter(|continuation| continuation.by.is_some());
    let hurried: Vec<_> = hurried.map(|continuation| (continuation.bundle, continuation.operations().len())).collect();
    assert_eq!(hurried, [(named(&second), 1), (named(&first), 1)]);
}

/// spec: BLOCK-2, GENESIS-1. Bundles in flight leave room for a transaction in every block, also where the undo of an operation
/// passes their share.
#[test]
fn batches_that_pass_their_share_keep_no_transaction_out() {
    let mut genesis = staked([(1, 100), (2, 100)]);
    let limits = &mut genesis.limits;
    (limits.bundle_gas_max, limits.continuation_gas_max, limits.block_gas_max) = (150_000, 150_000, 300_000);
    let chain = chain_of(&genesis);
    block(&chain, &[batched(1, 0, Batching::until(Height(50)), vec![propose("one", &[]); 3])]);
    for nonce in 0..3 {
        let made = block(&chain, &[signed(2, nonce, vec![post("here")])]);
        assert!(made.receipts[0].succeeded(), "{:?}", made.receipts);
        let [batch] = made.continuations.as_slice() else { panic!("a batch") };
        assert!(batch.gas_used > 150_000, "it passes its share: {}", batch.gas_used);
    }
}

/// spec: LEDGER-3. What time decides without a word is written down as well: a chain whose bundle stopped, and then passed its
/// last height, has nothing due after one block for it.
#[test]
fn chain_idles_again_after_what_goes_without_saying() {
    let chain = chain_of(&genesis());
    block(&chain, &[batched(1, 0, Batching::until(Height(4)), vec![pay(1, 1_000_000)])]);
    while chain.height() < Height(4) {
        next(&chain).unwrap();
    }
    let bundles = chain.bundles().unwrap();
    assert!(matches!(bundles[0].1.status, Status::Stopped(_)), "{bundles:?}");
    assert!(chain.has_due_work().unwrap());
    let made = next(&chain).unwrap();
    assert!(made.record.is_some() && made.continuations.is_empty());
    assert!(!chain.has_due_work().unwrap());
    assert_eq!(next(&chain).unwrap().record, None);
    assert_eq!(chain.replay(Height(1)..=chain.height(), &mut |_, _| ()).unwrap().root, chain.root());
}

/// spec: HISTORY-2. What the database says of batches is not believed.
#[test]
fn changed_continuations_are_damage() {
    let kv = Arc::new(MemoryKv::new());
    let chain = Ledger::create(store(), kv.clone(), standard(), &genesis(), PoolLimits::default()).unwrap();
    block(&chain, &[payments()]);
    next(&chain).unwrap();
    let place = [b"n".as_slice(), &2u64.to_be_bytes()].concat();
    let value = kv.get(&place).unwrap().unwrap();
    for at in (0..value.len()).step_by(7) {
        let mut changed = value.clone();
        changed[at] ^= 4;
        kv.write(Batch::new().put(place.clone(), changed).clone()).unwrap();
        assert!(matches!(chain.continuations(Height(2)), Err(LedgerError::Damaged { .. })), "byte {at}");
    }
    kv.write(Batch::new().delete(place.clone()).clone()).unwrap();
    assert!(matches!(chain.continuations(Height(2)), Err(LedgerError::Damaged { .. })));
    kv.write(Batch::new().put(place, value).clone()).unwrap();
    assert_eq!(chain.continuations(Height(2)).unwrap().len(), 1);
    assert!(chain.continuations(Height(1)).unwrap().is_empty());
}

/// X-03: sixty-five thousand operations and a few more, and a bundle that may not be taken in, are refused before a
/// nonce is used.
#[test]
fn x03_a_bundle_that_cannot_be_served_uses_no_nonce() {
    let chain = chain_of(&genesis());
    let borders = BoundedSet::new([1]).unwrap();
    let bytes = batched(1, 0, Batching { borders, ..Batching::until(Height(9)) }, vec![pay(1, 1); 2]).to_bytes();
    assert!(SignedTransaction::from_bytes(&bytes).is_ok());
    for batching in [Batching::until(Height(1)), Batching { hold: true, ..Batching::until(Height(50)) }] {
        let refusal = chain.submit(&batched(1, 0, batching, vec![pay(1, 1)]).to_bytes()).unwrap_err();
        assert!([12, 14].contains(&refusal.code()), "{refusal}");
    }
    assert_eq!(chain.next_nonce(&key(1).public()).unwrap(), Some(0));
}
