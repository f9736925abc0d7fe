//! Random histories: whatever is done to a store, its answers are those of a plain map and the naive reference.

use crate::support::{Model, Random, TestStore, apply, assert_view, count, push_all, random_diff, root_of, small};
use keelstone_codec::Height;
use keelstone_store::files::MemoryFiles;
use keelstone_store::{CheckLevel, Options, Retention, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A store and what it should say.
struct Pair {
    files: MemoryFiles,
    options: Options,
    store: Option<TestStore>,
    /// The state at every height kept.
    states: BTreeMap<u64, Model>,
    height: Option<u64>,
    random: Random,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let files = MemoryFiles::new();
        let history = match random.below(3) {
            0 => Retention::Heights(1 + random.below(12)),
            _ => Retention::All,
        };
        let options = Options { history, flush_bytes: 2 << 10 << random.below(4), ..small() };
        let shared: Arc<MemoryFiles> = Arc::new(files.clone());
        if random.below(4) == 0 {
            // As after a restore: the history begins with a whole state.
            let mut state = Model::new();
            (0..random.below(60)).for_each(|_| apply(&mut state, &random_diff(&mut random)));
            let height = random.below(1000);
            let mut building = TestStore::build(shared, options.clone(), Height(height)).unwrap();
            push_all(&mut building, &state).unwrap();
            let store = building.finish(root_of(&state)).unwrap();
            let states = BTreeMap::from([(height, state)]);
            return Self { files, options, store: Some(store), states, height: Some(height), random };
        }
        let store = Some(TestStore::create(shared, options.clone()).unwrap());
        Self { files, options, store, states: BTreeMap::new(), height: None, random }
    }

    fn store(&self) -> &TestStore {
        self.store.as_ref().unwrap()
    }

    fn state(&self) -> Model {
        self.height.map_or_else(Model::new, |height| self.states[&height].clone())
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..65 => self.commit(),
            65..70 => self.reopen(),
            70..74 => self.store().flush().unwrap(),
            74..78 => self.roll_back(),
            78..81 => self.prune(),
            81..84 => drop(self.store().compact(&mut |_| {}).unwrap()),
            84..88 => self.prepare_and_drop(),
            88..90 => self.refused(),
            90..92 => self.diff_at(),
            _ => self.look_back(),
        }
    }

    fn commit(&mut self) {
        let diff = random_diff(&mut self.random);
        let mut state = self.state();
        apply(&mut state, &diff);
        let height = self.height.map_or_else(|| self.random.below(1000), |height| height + 1);
        let root = if self.random.below(4) == 0 {
            let prepared = self.store().prepare(diff).unwrap();
            if self.random.below(3) == 0 {
                // Compaction may move values between the two.
                self.store().compact(&mut |_| {}).unwrap();
            }
            self.store().commit_prepared(Height(height), prepared).unwrap()
        } else {
            self.store().commit(Height(height), diff).unwrap()
        };
        assert_eq!(root, root_of(&state));
        self.states.insert(height, state);
        self.height = Some(height);
        if let Retention::Heights(kept) = self.options.history {
            let low = (height + 1).saturating_sub(kept);
            if self.store().low() == Some(Height(low)) {
                self.states = self.states.split_off(&low);
            }
        }
    }

    fn reopen(&mut self) {
        let store = self.store.take().unwrap();
        let low = store.low();
        if self.random.below(2) == 0 {
            store.close().unwrap()
        } else {
            drop(store)
        }
        let store = TestStore::open(Arc::new(self.files.clone()), self.options.clone()).unwrap();
        assert_eq!(store.height().map(|height| height.0), self.height);
        assert_eq!(store.root(), root_of(&self.state()));
        // What was given up may come back after a crash if its segments are still there, but not the reverse.
        assert!(store.low() <= low);
        self.store = Some(store);
        assert_view(&self.store().view(), &self.state(), &mut self.random);
    }

    fn low(&self) -> Option<u64> {
        self.states.keys().next().copied()
    }

    fn roll_back(&mut self) {
        let (Some(low), Some(height)) = (self.low(), self.height) else { return };
        let to = low + self.random.below(height - low + 1);
        let epoch = self.store().epoch();
        let root = self.store().rollback(Height(to)).unwrap();
        assert_eq!(self.store().epoch(), epoch + 1);
        assert_eq!(root, root_of(&self.states[&to]));
        self.states.split_off(&(to + 1));
        self.height = Some(to);
    }

    fn prune(&mut self) {
        let (Some(low), Some(height)) = (self.low(), self.height) else { return };
        let before = low + self.random.below(height - low + 1);
        self.store().prune(Height(before)).unwrap();
        self.states = self.states.split_off(&before);
        assert_eq!(self.store().low(), Some(Height(before)));
        if before > 0 {
            let refused = self.store().view_at(Height(before - 1));
            assert!(matches!(refused, Err(StoreError::NotRetained { .. })));
        }
    }

    fn prepare_and_drop(&mut self) {
        let diff = random_diff(&mut self.random);
        let mut state = self.state();
        apply(&mut state, &diff);
        let (first, second) = (self.store().prepare(diff.clone()).unwrap(), self.store().prepare(diff).unwrap());
        assert_eq!((first.root(), second.root()), (root_of(&state), root_of(&state)));
    }

    fn refused(&mut self) {
        let Some(height) = self.height else { return };
        let diff = random_diff(&mut self.random);
        let wrong = self.store().commit(Height(height + 2), diff);
        assert!(matches!(wrong, Err(StoreError::WrongHeight { .. })));
        assert!(matches!(self.store().view_at(Height(height + 1)), Err(StoreError::NotRetained { .. })));
    }

    fn look_back(&mut self) {
        let (Some(low), Some(height)) = (self.low(), self.height) else { return };
        let at = low + self.random.below(height - low + 1);
        let view = self.store().view_at(Height(at)).unwrap();
        assert_view(&view, &self.states[&at].clone(), &mut self.random);
    }

    fn diff_at(&mut self) {
        let (Some(low), Some(height)) = (self.low(), self.height) else { return };
        let at = low + 1 + self.random.below(height - low + 1);
        let (Some(before), Some(after)) = (self.states.get(&(at - 1)), self.states.get(&at)) else { return };
        let diff = self.store().diff_at(Height(at)).unwrap();
        assert_eq!(diff.root_before, root_of(before));
        let mut state = before.clone();
        for change in &diff.changes {
            let old = before.get(change.namespace.as_str()).and_then(|entries| entries.get(change.key.as_slice()));
            assert_eq!(change.old, old.map(|value| keelstone_codec::Hash(keelstone_tree::reference::blake3(value))));
        }
        apply(&mut state, &diff.diff());
        assert_eq!(state, *after);
    }

    fn finish(&mut self) {
        let report = self.store().check(CheckLevel::Full, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{:?}", report.problems);
        self.reopen();
        for at in self.states.keys().copied().collect::<Vec<_>>() {
            let view = self.store().view_at(Height(at)).unwrap();
            assert_eq!(view.root(), root_of(&self.states[&at]));
        }
    }
}

fn run(seed: u64) {
    let mut pair = Pair::new(seed);
    for _ in 0..200 {
        pair.step();
    }
    pair.finish();
}

/// spec: STORE-3, STORE-5, STORE-6, STORE-9, STORE-11. Roots of the store, of the reference, after reopening and after rebuilding
/// from the log are the same, whatever happened before.
#[test]
fn every_history_reads_as_the_reference_says() {
    let histories = count("KEELSTONE_HISTORIES", 5000);
    let first = count("KEELSTONE_SEED", 1);
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = first + next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + histories || failed.load(Ordering::Relaxed) != u64::MAX {
                        return;
                    }
                    if std::panic::catch_unwind(|| run(seed)).is_err() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert_eq!(failed, u64::MAX, "run again with KEELSTONE_SEED={failed} KEELSTONE_HISTORIES=1");
}
