//! Running a block's transactions on several threads, to exactly what they come to in order.
//!
//! Before a block's transactions are run in order, each is run *beforehand*, on the state before all of them, with a
//! note of everything it reads. Transactions of one account are run after one another, because each takes the nonce that
//! the one before it leaves; accounts are divided among threads. Then the block is run in order, and what was found
//! beforehand is taken for a transaction if nothing that it read was changed by a transaction before it. Otherwise it is
//! run again, once, where it stands.
//!
//! Of an account with more than half of a block's operations, and of blocks of few transactions, single operations are run
//! beforehand instead if they are large, those of one bundle and of those behind it: they wait neither for the nonce nor for
//! the state hash that the one before them leaves. How that is done, and how much: [`keelstone_execution::Ahead`].
//!
//! So what a block comes to does not depend on how many threads there were, how fast they were, or whether there were
//! any: which transactions have to be run again follows from the block and the state. A scan is charged for what the block
//! has changed beside what the state holds, and a key that is back where it was before the block is not changed. So what an
//! account's transactions change beforehand is put among the changes of the block, as in order, and not into a layer above,
//! where such a key would still stand; and it is taken out again before the next account's.
//!
//! Rules: `spec/chain.md`, EXEC-15.

use crate::check::Refusal;
use crate::keys::SignatureError;
use crate::run::{self, KnownBy, Left, Ran, Run, Way};
use crate::transaction::SignedTransaction;
use crate::vouched::Vouched;
use keelstone_codec::{Key, Namespace};
use keelstone_execution::bundles::Resume;
use keelstone_execution::{
    Activity, Ahead, BlockDraft, Changes, Coming, Foretold, Function, Job, Mode, PublicKey, ReadSet, Recorder,
};
use keelstone_tree::Read;
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Blocks of fewer transactions are run in order: starting threads would cost more than they save.
const TRANSACTIONS_MIN: usize = 8;
/// Operations that use less in the mean are run in order, for to hand one on costs about five microseconds: an approval uses
/// some 50,000, and runs for as long.
const OPERATION_GAS_MIN: u64 = 100_000;
/// Fewer hashes are worked out where they are needed, for the same reason.
const EACH_MIN: usize = 512;
/// The stack of a thread that runs functions: that of a process's first one.
const STACK_BYTES: usize = 8 << 20;
/// Most blocks that are run in order before another try, when most of what was run beforehand had to be run again.
const PAUSE_BLOCKS_MAX: u32 = 64;

/// How much of a block was run beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beforehand {
    /// Transactions that were run beforehand.
    pub transactions: usize,
    /// Those of them of which that was of use: the others were run again.
    pub taken: usize,
    /// Single operations that were run beforehand, of transactions that were not.
    pub operations: usize,
    /// Those of them of which that was of use.
    pub operations_taken: usize,
}

/// What was found beforehand, and what has been changed since.
#[derive(Default)]
pub(crate) struct Oracle {
    /// By transaction.
    found: Vec<Option<Found>>,
    /// The group of each transaction: those of one account.
    groups: Vec<usize>,
    /// Groups of which something did not come to what was found beforehand, or stands on what another changed: what they
    /// found after that is worth nothing.
    stale: Vec<bool>,
    written: BTreeMap<Namespace, BTreeMap<Key, Writer>>,
    figures: Beforehand,
    /// The transactions of which single operations may be run beforehand, from the next on.
    by_operation: VecDeque<usize>,
    /// How many operations they have.
    operations: usize,
}

/// A transaction, run beforehand.
struct Found {
    ran: Result<Ran, Refusal>,
    /// What it read, also of what its own group had changed.
    reads: ReadSet,
    changes: Changes,
}

/// Whose transactions have changed a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    Group(usize),
    Several,
}

impl Oracle {
    /// What was found beforehand for the transaction at `index`, if it would be found now: it counts as run then.
    ///
    /// Asked for each transaction that is run, in order.
    // spec: EXEC-15
    pub(crate) fn of(&mut self, index: usize) -> Option<(Result<Ran, Refusal>, Changes)> {
        let found = self.found.get_mut(index)?.take();
        let group = self.groups[index];
        match found.filter(|found| !self.stale[group] && !self.touches(&found.reads, group)) {
            Some(found) => {
                self.note(group, &found.changes);
                self.figures.taken += 1;
                Some((found.ran, found.changes))
            }
            None => {
                self.stale[group] = true;
                None
            }
        }
    }

    /// The transaction at `index` was run in order, and changed this.
    pub(crate) fn was_run(&mut self, index: usize, changes: &Changes) {
        if let Some(group) = self.groups.get(index) {
            self.note(*group, changes);
        }
    }

    /// The transaction at `index` was not run at all.
    pub(crate) fn was_not_run(&mut self, index: usize) {
        if let Some(group) = self.groups.get(index) {
            self.stale[*group] = true;
        }
    }

    /// The transaction at `index` is run in order now: it, and those that are run so after it, may have operations run
    /// beforehand.
    pub(crate) fn look_ahead(
        &mut self,
        draft: &BlockDraft<'_>,
        index: usize,
        transactions: &[SignedTransaction],
        known: &[KnownBy],
    ) {
        let operations = |at: usize| transactions[at].transaction.bundle.operations().len();
        while let Some(next) = self.by_operation.front().filter(|next| **next < index) {
            self.operations -= operations(*next);
            self.by_operation.pop_front();
        }
        if self.by_operation.front() != Some(&index) {
            return;
        }
        let chain_id = &draft.context().chain_id;
        let coming = |at: usize| {
            let signed = &transactions[at];
            Coming::of(chain_id, &run::caller(signed, known[at].id), &signed.transaction.bundle)
        };
        let Some(first) = coming(index).next() else { return };
        draft.look_ahead(&first, self.operations, |wanted| {
            let mut out = Vec::with_capacity(wanted);
            for at in &self.by_operation {
                // A bundle is not cut, unless it is more than is wanted by itself.
                if !out.is_empty() && out.len() + operations(*at) > wanted {
                    break;
                }
                out.extend(coming(*at).take(wanted));
            }
            out
        });
    }

    /// How much was of use.
    pub(crate) fn figures(&self) -> Beforehand {
        self.figures
    }

    fn note(&mut self, group: usize, changes: &Changes) {
        for (namespace, key, _) in changes.iter() {
            let keys = match self.written.get_mut(namespace) {
                Some(keys) => keys,
                None => self.written.entry(namespace.clone()).or_default(),
            };
            match keys.get_mut(key) {
                None => drop(keys.insert(key.clone(), Writer::Group(group))),
                Some(Writer::Group(other)) if *other == group => {}
                Some(writer) => {
                    // The other group goes on from what it wrote itself, and does not read it from below.
                    if let Writer::Group(other) = *writer {
                        self.stale[other] = true;
                    }
                    *writer = Writer::Several;
                }
            }
        }
    }

    /// Whether something of what was read has been changed by another group.
    fn touches(&self, reads: &ReadSet, group: usize) -> bool {
        let is_other = |writer: &Writer| *writer != Writer::Group(group);
        let key = |(namespace, key): &(Namespace, Vec<u8>)| {
            self.written.get(namespace).and_then(|keys| keys.get(key.as_slice())).is_some_and(is_other)
        };
        let range = |(namespace, start, end): &(Namespace, Vec<u8>, Option<Vec<u8>>)| {
            let Some(keys) = self.written.get(namespace) else { return false };
            if end.as_ref().is_some_and(|end| end <= start) {
                return false;
            }
            let bounds = (Bound::Included(start.as_slice()), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
            keys.range::<[u8], _>(bounds).any(|(_, writer)| is_other(writer))
        };
        reads.keys.iter().any(key) || reads.ranges.iter().any(range)
    }
}

/// Several threads: how many, and when not.
#[derive(Debug)]
pub(crate) struct Threads {
    count: NonZeroUsize,
    transactions: Pause,
    operations: Pause,
}

impl Threads {
    pub(crate) fn new(count: NonZeroUsize) -> Self {
        Self { count, transactions: Pause::default(), operations: Pause::default() }
    }

    /// Takes in how much of a block was of use. Where most was not, the next ones are run in order: twice as many each time.
    pub(crate) fn learn(&self, beforehand: &Beforehand) {
        self.transactions.learn(beforehand.transactions, beforehand.taken);
        self.operations.learn(beforehand.operations, beforehand.operations_taken);
    }

    fn rest(&self) -> bool {
        self.count.get() == 1 || self.transactions.lasts()
    }
}

/// When nothing of a kind is run beforehand.
#[derive(Debug, Default)]
struct Pause {
    /// Blocks that are still to be run in order.
    left: AtomicU32,
    /// How long the last one was.
    last: AtomicU32,
}

impl Pause {
    /// Takes in what was run beforehand in a block, and how much of it was of use: it paid if at least half of it was.
    fn learn(&self, run: usize, taken: usize) {
        if run == 0 {
            let waited = |left: u32| left.checked_sub(1);
            // Refused means that there was no pause.
            let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, waited);
            return;
        }
        let pause = match taken * 2 >= run {
            true => 0,
            false => (self.last.load(Ordering::Relaxed) * 2).clamp(1, PAUSE_BLOCKS_MAX),
        };
        self.last.store(pause, Ordering::Relaxed);
        self.left.store(pause, Ordering::Relaxed);
    }

    fn lasts(&self) -> bool {
        self.left.load(Ordering::Relaxed) > 0
    }
}

/// Transactions run beforehand on several threads, over a state that threads can share.
pub(crate) struct InParallel<'a, S> {
    pub(crate) state: S,
    pub(crate) activity: &'a Activity,
    pub(crate) threads: &'a Threads,
    pub(crate) vouched: &'a Mutex<Vouched>,
}

impl<S: Read + Clone + Send + Sync + 'static> Ahead for InParallel<'_, S> {
    fn run(&self, job: &Job<'_>) -> Vec<Option<Box<Foretold>>> {
        let begin = || job.begin(self.state.clone(), self.activity);
        on_threads(self.threads.count.get(), job.count(), begin, |worker, at| worker.run(at))
    }

    fn operation_gas_min(&self) -> u64 {
        OPERATION_GAS_MIN
    }
}

impl<S: Read + Clone + Send + Sync + 'static> Way for InParallel<'_, S> {
    fn activity(&self) -> Option<&Activity> {
        Some(self.activity)
    }

    fn ahead(&self) -> Option<&dyn Ahead> {
        (self.threads.count.get() > 1 && !self.threads.operations.lasts()).then_some(self)
    }

    fn each<T: Send>(&self, count: usize, of: impl Fn(usize) -> T + Sync) -> Vec<T> {
        if self.threads.count.get() == 1 || count < EACH_MIN {
            return (0..count).map(of).collect();
        }
        // A few parts for each thread, so that one which is held up does not hold up all.
        let part = count.div_ceil(self.threads.count.get() * 4);
        let parts = count.div_ceil(part);
        let of = &of;
        let found = on_threads(
            self.threads.count.get(),
            parts,
            || (),
            |(), at| (at * part..count.min((at + 1) * part)).map(of).collect::<Vec<_>>(),
        );
        found.into_iter().flatten().collect()
    }

    fn signatures(&self, transactions: &[SignedTransaction], known: &[KnownBy]) -> Vec<Result<(), SignatureError>> {
        let unknown: Vec<&SignedTransaction> = {
            let vouched = self.vouched.lock().unwrap_or_else(PoisonError::into_inner);
            let unknown =
                transactions.iter().zip(known).filter(|(signed, known)| !vouched.is_good(&known.id, &signed.signature));
            unknown.map(|(signed, _)| signed).collect()
        };
        let count = if unknown.len() < TRANSACTIONS_MIN { 1 } else { self.threads.count.get() };
        // A batch has the verdict of its signatures one by one, however they are divided (spec: TX-4).
        let parts: Vec<_> = unknown.chunks(unknown.len().div_ceil(count).max(1)).collect();
        let found = on_threads(count, parts.len(), || (), |(), part| run::signatures(parts[part]));
        let mut verdicts = unknown.iter().zip(found.into_iter().flatten()).peekable();
        let verdict = |signed: &SignedTransaction| match verdicts.next_if(|(next, _)| std::ptr::eq(**next, signed)) {
            Some((_, verdict)) => verdict,
            None => Ok(()),
        };
        transactions.iter().map(verdict).collect()
    }

    fn foretell(
        &self,
        run: &Run<'_>,
        before: &BlockDraft<'_>,
        transactions: &[SignedTransaction],
        known: &[KnownBy],
        signatures: &[Result<(), SignatureError>],
    ) -> Oracle {
        if self.threads.rest() {
            return Oracle::default();
        }
        let operations = |at: &usize| transactions[*at].transaction.bundle.operations().len();
        let (groups, mut members) = by_account(transactions);
        let all = (0..transactions.len()).map(|at| operations(&at)).sum::<usize>();
        let is_most = |group: &Vec<usize>| group.iter().map(operations).sum::<usize>() * 2 > all;
        let is_few = transactions.len() < TRANSACTIONS_MIN;
        // Those that would be run on one thread after all others had ended.
        let mut by_operation: VecDeque<usize> = match members.iter_mut().find(|group| is_most(group)) {
            _ if is_few => std::mem::take(&mut members).into_iter().flatten().collect(),
            Some(most) => std::mem::take(most).into(),
            None => VecDeque::new(),
        };
        by_operation.make_contiguous().sort_unstable();
        by_operation.retain(|at| signatures[*at].is_ok() && is_plain(&transactions[*at]));
        let operations = by_operation.iter().map(operations).sum();
        if members.iter().filter(|group| !group.is_empty()).count() < 2 {
            return Oracle { by_operation, operations, ..Oracle::default() };
        }
        let (context, before) = (before.context(), before.changes());
        let begin = || {
            let recorder = Recorder::new(self.state.clone());
            let draft = BlockDraft::begin(run.registry, recorder.clone(), context.clone());
            let mut draft = draft.recorded_in(&recorder).watched(self.activity);
            draft.adopt(before.clone());
            (recorder, draft)
        };
        let group = |(recorder, draft): &mut (Recorder, BlockDraft<'_>), group: usize| {
            let mut out: Vec<(usize, Found)> = Vec::with_capacity(members[group].len());
            for index in &members[group] {
                let transaction = &transactions[*index];
                if signatures[*index].is_err() {
                    continue; // It will not be run.
                }
                // What it hurries depends on the gas that the block has left then.
                if resumes(transaction) {
                    break;
                }
                drop(recorder.take());
                let (ran, changes) =
                    draft.apart(|draft| run.transaction(draft, transaction, known[*index].id, Left::default()));
                // A state that cannot be read is told of where the block is run in order.
                let Ok(ran) = ran else { break };
                draft.adopt(changes.clone());
                out.push((*index, Found { ran, reads: recorder.take(), changes }));
            }
            // Nothing of a group is seen by the next: the block's changes are those before it again.
            out.iter().rev().for_each(|(_, found)| draft.adopt(found.changes.inverse()));
            out
        };
        let done = on_threads(self.threads.count.get(), members.len(), begin, group);
        let mut found: Vec<Option<Found>> = transactions.iter().map(|_| None).collect();
        let mut figures = Beforehand::default();
        for (index, ran) in done.into_iter().flatten() {
            found[index] = Some(ran);
            figures.transactions += 1;
        }
        let (stale, written) = (vec![false; members.len()], BTreeMap::new());
        Oracle { found, groups, stale, written, figures, by_operation, operations }
    }
}

/// Whether a transaction runs its operations, and nothing else.
fn is_plain(transaction: &SignedTransaction) -> bool {
    *transaction.transaction.bundle.mode() == Mode::Sync && !resumes(transaction)
}

/// Whether a transaction may hurry a bundle in flight.
fn resumes(transaction: &SignedTransaction) -> bool {
    transaction.transaction.bundle.operations().iter().any(|operation| operation.function == Resume::hash())
}

/// The group of every transaction, and the transactions of every group, in order: a group for each account.
fn by_account(transactions: &[SignedTransaction]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut accounts: BTreeMap<PublicKey, usize> = BTreeMap::new();
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut groups = Vec::with_capacity(transactions.len());
    for (index, transaction) in transactions.iter().enumerate() {
        let group = *accounts.entry(transaction.transaction.sender).or_insert(members.len());
        if group == members.len() {
            members.push(Vec::new());
        }
        members[group].push(index);
        groups.push(group);
    }
    (groups, members)
}

/// Does pieces of work on several threads, each of which begins with something of its own. The results are in the order
/// of the pieces, whoever did them.
fn on_threads<T: Send, B>(
    count: usize,
    pieces: usize,
    begin: impl Fn() -> B + Sync,
    piece: impl Fn(&mut B, usize) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut own, mut done) = (begin(), Vec::new());
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= pieces {
                return done;
            }
            done.push((at, piece(&mut own, at)));
        }
    };
    let mut done = thread::scope(|scope| {
        let others: Vec<_> = (1..count.min(pieces))
            .filter_map(|_| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).ok())
            .collect();
        // Also where no further thread can be had.
        let mut done = work();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads() -> Threads {
        Threads::new(NonZeroUsize::new(2).expect("two"))
    }

    /// Work whose pieces stand in each other's way is tried again ever less often, and at once where it paid.
    #[test]
    fn a_load_of_conflicts_is_run_in_order_for_longer_and_longer() {
        let threads = threads();
        let (none, useless, useful) = (
            Beforehand::default(),
            Beforehand { transactions: 10, taken: 1, ..Beforehand::default() },
            Beforehand { transactions: 10, taken: 9, ..Beforehand::default() },
        );
        for pause in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert!(!threads.rest());
            threads.learn(&useless);
            for _ in 0..pause {
                assert!(threads.rest());
                threads.learn(&none);
            }
        }
        threads.learn(&useful);
        assert!(!threads.rest());
        threads.learn(&useless);
        threads.learn(&none);
        assert!(!threads.rest(), "after what paid, a pause is short again");
    }

    fn at(group: usize, reads: ReadSet, keys: &[&str]) -> (usize, Found) {
        let ran = Err(Refusal::NoNonce);
        let name = Namespace::new("app").expect("a name");
        let value = keelstone_codec::Value::new(vec![1]).expect("a value");
        let change = |key: &&str| {
            let key = Key::new(key.as_bytes()).expect("a key");
            (name.clone(), key, keelstone_execution::Change { before: None, after: Some(value.clone()) })
        };
        (group, Found { ran, reads, changes: keys.iter().map(change).collect() })
    }

    fn key(key: &str) -> ReadSet {
        let name = Namespace::new("app").expect("a name");
        ReadSet { keys: [(name, key.as_bytes().to_vec())].into(), ..ReadSet::default() }
    }

    fn range(start: &str, end: Option<&str>) -> ReadSet {
        let (name, end) = (Namespace::new("app").expect("a name"), end.map(|end| end.as_bytes().to_vec()));
        ReadSet { ranges: [(name, start.as_bytes().to_vec(), end)].into(), ..ReadSet::default() }
    }

    /// Which of these are taken, one transaction after the other.
    fn taken(found: Vec<(usize, Found)>) -> Vec<bool> {
        let (groups, found): (Vec<_>, Vec<_>) = found.into_iter().map(|(group, found)| (group, Some(found))).unzip();
        let mut oracle = Oracle { found, stale: vec![false; groups.len()], groups, ..Oracle::default() };
        let count = oracle.groups.len();
        let take = |at: usize| {
            let changes = oracle.found[at].as_ref().map(|found| found.changes.clone()).unwrap_or_default();
            let taken = oracle.of(at).is_some();
            if !taken {
                oracle.was_run(at, &changes);
            }
            taken
        };
        (0..count).map(take).collect()
    }

    /// spec: EXEC-15. A read set holds keys, also absent ones, and ranges: what another puts into one, where nothing was
    /// (a phantom), is in the way, and what lies beside it is not.
    #[test]
    fn what_was_read_and_changed_since_is_not_taken() {
        let none = ReadSet::default;
        assert_eq!(taken(vec![at(0, none(), &["b"]), at(1, key("a"), &[]), at(2, key("b"), &[])]), [true, true, false]);
        for (reads, good) in [
            (range("a", Some("b")), true),
            (range("b", Some("b\0")), false),
            (range("a", None), false),
            (range("b\0", None), true),
            (range("c", Some("a")), true),
            (range("", Some("z")), false),
        ] {
            assert_eq!(taken(vec![at(0, none(), &["b"]), at(1, reads.clone(), &[])]), [true, good], "{reads:?}");
        }
        // What an account changed itself is in nobody's way but the others'.
        assert_eq!(
            taken(vec![at(0, none(), &["b"]), at(0, key("b"), &["b"]), at(0, range("a", None), &[])]),
            [true; 3]
        );
    }

    /// spec: EXEC-15. An account whose transaction was run again goes on from something else than what was foreseen; so
    /// does one that had changed, itself, what another changed after it.
    #[test]
    fn what_stands_on_something_that_is_not_taken_is_not_taken() {
        let none = ReadSet::default;
        let after = vec![at(0, none(), &["a"]), at(1, key("a"), &["b"]), at(1, none(), &["c"]), at(2, key("z"), &[])];
        assert_eq!(taken(after), [true, false, false, true]);
        let over = vec![at(0, none(), &["a"]), at(1, key("a"), &["a"]), at(0, none(), &["d"])];
        assert_eq!(taken(over), [true, false, false]);
    }

    #[test]
    fn results_stand_in_the_order_of_the_pieces() {
        for count in [1, 2, 8, 40] {
            let squares = on_threads(count, 20, || (), |(), at| at * at);
            assert_eq!(squares, (0..20).map(|at| at * at).collect::<Vec<_>>(), "{count} threads");
        }
        assert!(on_threads(2, 0, || (), |(), at| at).is_empty());
    }
}
