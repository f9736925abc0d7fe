//! A piece of life that is lived on a disk that fails, and what must be true afterwards. The store and the toy that is
//! broken on purpose live the same life and are judged by the same judge.

use crate::support::{Model, Random, TestStore, apply, random_diff, root_of, small, try_contents};
use keelstone_codec::{Height, Root};
use keelstone_store::files::{Fault, FaultyFiles, Journal};
use keelstone_store::{Options, Retention, StoreError};
use keelstone_tree::Diff;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One step of a life.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The next height.
    Commit(Diff),
    Rollback(u64),
    Prune(u64),
    Compact,
    Flush,
    /// Let go without a word, and open again.
    Reopen,
}

/// Why a store could not do something.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There is none.
    Missing,
    /// It says that bytes are not what they were.
    Damage(String),
    /// The machine failed, and it says so.
    Machine(String),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "there is no store"),
            Self::Damage(what) => write!(f, "damage: {what}"),
            Self::Machine(what) => write!(f, "the machine failed: {what}"),
            Self::Other(what) => write!(f, "{what}"),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        use keelstone_tree::ReadError;
        match error {
            StoreError::Missing { .. } => Self::Missing,
            error if error.is_damage() => Self::Damage(error.to_string()),
            StoreError::Io { .. } | StoreError::Poisoned { .. } | StoreError::Read(ReadError::Io(_)) => {
                Self::Machine(error.to_string())
            }
            error => Self::Other(error.to_string()),
        }
    }
}

/// How a kind of store is made and opened.
pub(crate) trait Kind: Sync {
    type Store: Subject;
    fn create(&self, files: &FaultyFiles) -> Result<Self::Store, Failure>;
    fn open(&self, files: &FaultyFiles) -> Result<Self::Store, Failure>;
}

/// What a store does, and what it says of itself.
pub(crate) trait Subject {
    /// Does a step; it is acknowledged if this returns well.
    fn step(&mut self, height: u64, step: &Step) -> Result<(), Failure>;
    fn height(&self) -> Option<u64>;
    fn low(&self) -> Option<u64>;
    /// The last state, read entry by entry.
    fn state(&self) -> Result<Model, Failure>;
    fn root_at(&self, height: u64) -> Result<Root, Failure>;
}

/// The store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Real;

impl Real {
    pub(crate) fn options() -> Options {
        Options {
            segment_bytes: 4 << 10,
            page_segment_bytes: 6 << 10,
            flush_bytes: 3 << 10,
            history: Retention::Heights(24),
            ..small()
        }
    }
}

impl Kind for Real {
    type Store = TestStore;

    fn create(&self, files: &FaultyFiles) -> Result<TestStore, Failure> {
        Ok(TestStore::create(Arc::new(files.clone()), Self::options())?)
    }

    fn open(&self, files: &FaultyFiles) -> Result<TestStore, Failure> {
        Ok(TestStore::open(Arc::new(files.clone()), Self::options())?)
    }
}

impl Subject for TestStore {
    fn step(&mut self, height: u64, step: &Step) -> Result<(), Failure> {
        match step {
            Step::Commit(diff) => drop(self.commit(Height(height), diff.clone())?),
            Step::Rollback(to) => drop(self.rollback(Height(*to))?),
            Step::Prune(before) => self.prune(Height(*before))?,
            Step::Compact => drop(self.compact(&mut |_| {})?),
            Step::Flush => self.flush()?,
            Step::Reopen => unreachable!("whoever holds the store lets go of it"),
        }
        Ok(())
    }

    fn height(&self) -> Option<u64> {
        self.height().map(|height| height.0)
    }

    fn low(&self) -> Option<u64> {
        self.low().map(|height| height.0)
    }

    fn state(&self) -> Result<Model, Failure> {
        try_contents(&self.view()).map_err(|error| StoreError::from(error).into())
    }

    fn root_at(&self, height: u64) -> Result<Root, Failure> {
        Ok(self.view_at(Height(height))?.root())
    }
}

/// A state and its root by the naive reference.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) model: Model,
    pub(crate) root: Root,
}

/// The state at each height, the last one last.
pub(crate) type Line = Vec<Arc<State>>;

/// A life from a seed, and what is true after each of its steps.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) steps: Vec<Step>,
    /// Before each step, and after the last.
    lines: Vec<Line>,
    /// The lowest height that was promised, beside each line.
    lows: Vec<u64>,
}

impl Script {
    pub(crate) fn new(seed: u64, len: usize) -> Self {
        let mut random = Random(seed);
        let (mut line, mut low) = (Line::new(), 0);
        let mut script = Self { seed, steps: Vec::new(), lines: vec![line.clone()], lows: vec![low] };
        for _ in 0..len {
            let height = line.len() as u64;
            let step = match random.below(20) {
                _ if height < 4 => Step::Commit(random_diff(&mut random)),
                0 => Step::Rollback((height - 1).saturating_sub(1 + random.below(4)).max(low)),
                1 => Step::Prune(low + random.below(height - low)),
                2 => Step::Compact,
                3 => Step::Flush,
                4 => Step::Reopen,
                _ => Step::Commit(random_diff(&mut random)),
            };
            match &step {
                Step::Commit(diff) => {
                    let mut model = line.last().map(|state| state.model.clone()).unwrap_or_default();
                    apply(&mut model, diff);
                    let root = root_of(&model);
                    line.push(Arc::new(State { model, root }));
                    if let Retention::Heights(kept) = Real::options().history {
                        low = low.max((line.len() as u64).saturating_sub(kept));
                    }
                }
                Step::Rollback(to) => line.truncate(*to as usize + 1),
                Step::Prune(before) => low = low.max(*before),
                Step::Compact | Step::Flush | Step::Reopen => {}
            }
            script.steps.push(step);
            script.lines.push(line.clone());
            script.lows.push(low);
        }
        script
    }

    /// Lives it until something fails. `done` is called with the number of steps acknowledged: first once the store is
    /// made, then after each step.
    pub(crate) fn live<K: Kind>(
        &self,
        kind: &K,
        files: &FaultyFiles,
        done: &mut dyn FnMut(usize),
    ) -> Result<K::Store, (Option<K::Store>, Failure)> {
        let mut store = kind.create(files).map_err(|failure| (None, failure))?;
        done(0);
        for (index, step) in self.steps.iter().enumerate() {
            if matches!(step, Step::Reopen) {
                drop(store);
                store = kind.open(files).map_err(|failure| (None, failure))?;
            } else if let Err(failure) = store.step(self.lines[index].len() as u64, step) {
                return Err((Some(store), failure));
            }
            done(index + 1);
        }
        Ok(store)
    }

    /// What is there is what was acknowledged, or that and the step under way. `thorough`: every height that is kept is
    /// looked at, and life goes on.
    pub(crate) fn judge<S: Subject>(&self, store: &mut S, acknowledged: usize, thorough: bool) -> Result<(), String> {
        let after = (acknowledged + 1).min(self.lines.len() - 1);
        let (height, state) = (store.height(), store.state().map_err(|failure| format!("reading: {failure}"))?);
        let none = Model::new();
        let matches = |line: &&Line| {
            height == (line.len() as u64).checked_sub(1) && *line.last().map_or(&none, |state| &state.model) == state
        };
        let Some(line) = [&self.lines[acknowledged], &self.lines[after]].into_iter().find(matches) else {
            let promised = self.lines[acknowledged].len() as u64;
            return Err(format!("height {height:?} is there, {promised} heights were promised, or its state is wrong"));
        };
        let Some(height) = height else { return Ok(()) };
        let low = store.low().unwrap_or(0);
        if low > self.lows[acknowledged].max(self.lows[after]) {
            return Err(format!("history begins at {low}, later than promised"));
        }
        let looked = if thorough { low } else { height };
        for at in looked..=height {
            match store.root_at(at) {
                Ok(root) if root == line[at as usize].root => {}
                other => return Err(format!("height {at}: {other:?}")),
            }
        }
        if thorough {
            let diff = random_diff(&mut Random(self.seed ^ height));
            let mut model = state;
            apply(&mut model, &diff);
            store.step(height + 1, &Step::Commit(diff)).map_err(|failure| format!("life goes on: {failure}"))?;
            let root = store.root_at(height + 1).map_err(|failure| format!("life goes on: {failure}"))?;
            if root != root_of(&model) {
                return Err("the commit after has a wrong root".into());
            }
        }
        Ok(())
    }
}

/// A life that was lived on a sound disk, with all that it changed there.
#[derive(Debug)]
pub(crate) struct Lived {
    script: Script,
    journal: Journal,
    /// How many changes there had been when the store was made and when each step was acknowledged.
    marks: Vec<u64>,
}

impl Lived {
    pub(crate) fn new<K: Kind>(kind: &K, script: Script) -> Self {
        let files = FaultyFiles::recorded(script.seed);
        let mut marks = Vec::new();
        if let Err((_, failure)) = script.live(kind, &files, &mut |_| marks.push(files.changes())) {
            panic!("seed {}: a sound disk, yet {failure}", script.seed);
        }
        Self { journal: files.journal(), marks, script }
    }

    pub(crate) fn changes(&self) -> u64 {
        *self.marks.last().expect("it was lived")
    }

    /// Steps acknowledged when the power failed during this change; none if the store was not even made.
    fn acknowledged(&self, change: u64) -> Option<usize> {
        self.marks.partition_point(|mark| *mark <= change).checked_sub(1)
    }

    /// Cuts the power once at every change, with a second cut for two of five, one during recovery and one in the commit behind
    /// it, and looks at what comes back. `round` chooses which of the unsynced sectors do. Returns the number of cuts.
    pub(crate) fn cut_everywhere<K: Kind>(&self, kind: &K, round: u64, cuts_max: u64) -> Result<u64, String> {
        let mut journal = self.journal.clone();
        let mut cuts = 0;
        while cuts < cuts_max {
            let change = journal.next();
            let seed = (self.script.seed << 32 | change << 12) ^ round.wrapping_mul(0x9e37_79b9);
            let what = format!("life {} cut at change {change} round {round}", self.script.seed);
            let mut files = journal.cut(seed);
            let mut random = Random(seed);
            let mut acknowledged = self.acknowledged(change);
            match random.below(5) {
                0 => {
                    files.fail_at(random.below(12), Fault::PowerCut);
                    drop(kind.open(&files));
                    files = files.after_power_cut(seed ^ 5);
                }
                1 => (files, acknowledged) = self.cut_again(kind, files, acknowledged, &mut random),
                _ => {}
            }
            let looked = self.look(kind, &files, acknowledged, random.below(16) == 0);
            looked.map_err(|error| format!("{what}: {error}"))?;
            cuts += 1;
            if !journal.advance() {
                break;
            }
        }
        Ok(cuts)
    }

    /// Opens what a cut has left, goes on with the commit that was under way, if it is not there, and cuts the power in that too. Says
    /// what was acknowledged then.
    fn cut_again<K: Kind>(
        &self,
        kind: &K,
        files: FaultyFiles,
        acknowledged: Option<usize>,
        random: &mut Random,
    ) -> (FaultyFiles, Option<usize>) {
        /// Changes of a commit of a few sectors in the segment it begins in, and some more.
        const CHANGES: u64 = 5;
        let (Some(done), Ok(mut store)) = (acknowledged, kind.open(&files)) else { return (files, acknowledged) };
        let height = self.script.lines[done].len() as u64;
        let is_behind = store.height() == height.checked_sub(1);
        let Some(step @ Step::Commit(_)) = self.script.steps.get(done).filter(|_| is_behind) else {
            return (files, acknowledged);
        };
        files.fail_at(files.changes() + random.below(CHANGES), Fault::PowerCut);
        let goes_on = store.step(height, step);
        drop(store);
        (files.after_power_cut(random.0), acknowledged.map(|done| done + usize::from(goes_on.is_ok())))
    }

    fn look<K: Kind>(
        &self,
        kind: &K,
        files: &FaultyFiles,
        acknowledged: Option<usize>,
        thorough: bool,
    ) -> Result<(), String> {
        match (kind.open(files), acknowledged) {
            (Ok(mut store), _) => {
                self.script.judge(&mut store, acknowledged.unwrap_or(0), thorough)?;
                if !thorough {
                    return Ok(());
                }
                // What was written over what the cut left behind can be read again.
                let (height, state) = (store.height(), store.state());
                drop(store);
                match kind.open(files) {
                    Ok(store) if store.height() == height && store.state().ok() == state.ok() => Ok(()),
                    Ok(store) => Err(format!("{height:?} was there, then {:?}", store.height())),
                    Err(failure) => Err(format!("it does not open a second time: {failure}")),
                }
            }
            (Err(Failure::Missing), None) => Ok(()),
            (Err(failure), _) => Err(format!("it does not open: {failure}")),
        }
    }
}

/// Cuts the power `cuts` times in lives of `len` steps from `first` on, on all processors. The first thing that is wrong
/// is returned.
pub(crate) fn cut_power<K: Kind>(kind: &K, first: u64, len: usize, cuts: u64) -> Result<u64, String> {
    /// Times each change of one life is cut, with other sectors lost each time.
    const ROUNDS: u64 = 6;
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let work = || -> Result<(), String> {
        while done.load(Ordering::Relaxed) < cuts {
            let lived = Lived::new(kind, Script::new(next.fetch_add(1, Ordering::Relaxed), len));
            for round in 0..ROUNDS {
                let left = cuts.saturating_sub(done.load(Ordering::Relaxed));
                done.fetch_add(lived.cut_everywhere(kind, round, left)?, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a panic".to_owned())?)
    })?;
    Ok(done.into_inner())
}

/// Lets every `stride`-th change of a life go wrong in one way, and looks at the store that lived on, at the one opened
/// after, and at what is left when the power fails soon after that. Returns how often.
pub(crate) fn fail_changes<K: Kind>(
    kind: &K,
    script: &Script,
    fault: Fault,
    first: u64,
    stride: u64,
) -> Result<u64, String> {
    let changes = {
        let files = FaultyFiles::new(script.seed);
        script.live(kind, &files, &mut |_| {}).map_err(|(_, failure)| format!("a sound disk, yet {failure}"))?;
        files.changes()
    };
    let mut tried = 0;
    for at in (first..changes).step_by(stride as usize) {
        let files = FaultyFiles::new(script.seed);
        files.fail_at(at, fault);
        let mut acknowledged = None;
        let lived = script.live(kind, &files, &mut |done| acknowledged = Some(done));
        let what = |error: String| format!("life {} {fault:?} at change {at}: {error}", script.seed);
        match lived {
            // Whoever lived to the end was never told of the fault, so nothing may be missing.
            Ok(mut store) => script.judge(&mut store, script.steps.len(), false).map_err(what)?,
            Err((store, Failure::Machine(_))) => {
                if let Some(mut store) = store {
                    let done = acknowledged.expect("a store was made");
                    // Reads go on, from the state that was acknowledged.
                    script.judge(&mut store, done, false).map_err(|error| what(format!("poisoned: {error}")))?;
                    // It acknowledges nothing more until it is opened again.
                    let height = script.lines[done].len() as u64;
                    if store.step(height, &Step::Commit(random_diff(&mut Random(at)))).is_ok() {
                        return Err(what("a commit was acknowledged after a failure".into()));
                    }
                }
            }
            Err((_, failure)) => return Err(what(format!("{failure}"))),
        }
        files.mend();
        let judge = |files: &FaultyFiles, thorough: bool| match (kind.open(files), acknowledged) {
            (Ok(mut store), done) => script.judge(&mut store, done.unwrap_or(0), thorough),
            (Err(Failure::Missing), None) => Ok(()),
            (Err(failure), _) => Err(format!("it does not open: {failure}")),
        };
        // The power fails right after the fault, or after the store was opened again and went on.
        judge(&files.after_power_cut(at), false).map_err(|error| what(format!("power cut after it: {error}")))?;
        judge(&files, true).map_err(|error| what(format!("opened after it: {error}")))?;
        let mut store = match kind.open(&files) {
            Ok(store) => store,
            Err(Failure::Missing) if acknowledged.is_none() => continue,
            Err(failure) => return Err(what(format!("opened twice: {failure}"))),
        };
        let (height, state) = (store.height(), store.state().map_err(|failure| what(format!("{failure}")))?);
        store.step(0, &Step::Flush).map_err(|failure| what(format!("flush after it: {failure}")))?;
        drop(store);
        match kind.open(&files.after_power_cut(at ^ 1)) {
            Ok(store) if store.height() == height && store.state().is_ok_and(|found| found == state) => {}
            Ok(store) => return Err(what(format!("{height:?} was there, then {:?}", store.height()))),
            Err(failure) => return Err(what(format!("power cut after going on: {failure}"))),
        }
        tried += 1;
    }
    Ok(tried)
}

/// Lets reads of an opening and of all reading after it go wrong: a read that fails for ever, and one that flips a bit.
/// What is answered must be right.
pub(crate) fn fail_reads<K: Kind>(kind: &K, script: &Script, flips: bool) -> Result<u64, String> {
    let files = FaultyFiles::new(script.seed);
    script.live(kind, &files, &mut |_| {}).map_err(|(_, failure)| format!("a sound disk, yet {failure}"))?;
    let line = script.lines.last().expect("a line after every step");
    let (expected, height) = (&line.last().expect("a life commits").model, line.len() as u64 - 1);
    let reads = {
        let files = files.after_power_cut(1);
        drop(kind.open(&files).map(|store| store.state()));
        files.reads()
    };
    /// Bits tried in each read.
    const BITS: u64 = 8;
    let tries = if flips { BITS } else { 1 };
    for (at, bit) in (0..reads).flat_map(|at| (0..tries).map(move |bit| (at, bit))) {
        let files = files.after_power_cut(at * BITS + bit);
        if flips {
            files.flip_reads(at, 1)
        } else {
            files.fail_reads(at, u64::MAX - at)
        }
        let what = format!("life {} read {at}", script.seed);
        match kind.open(&files) {
            Ok(store) => match store.state() {
                Ok(state) if state == *expected && store.height() == Some(height) => {}
                Ok(_) => return Err(format!("{what}: a wrong state at {:?}", store.height())),
                Err(Failure::Damage(_) | Failure::Machine(_)) => {}
                Err(failure) => return Err(format!("{what}: {failure}")),
            },
            Err(Failure::Damage(_) | Failure::Machine(_)) => {}
            Err(failure) => return Err(format!("{what}: {failure}")),
        }
    }
    Ok(reads * tries)
}
