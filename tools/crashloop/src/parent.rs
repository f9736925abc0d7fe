//! The parent: starts children, kills them, and knows what must be there.

use crate::child::ARGUMENT;
use crate::model::{KEPT, Random, apply, diff_of, open};
use keelstone_codec::{Height, Root};
use keelstone_crashloop::life::{Life, PATIENCE, Running, in_time};
use keelstone_store::{CheckLevel, Store};
use keelstone_tree::{Blake3, KeyRange, Read, reference};
use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Children killed before the store is looked at, at most: each but the first is killed over what another left.
const KILLS_MAX: u64 = 4;
/// Looks after which one is thorough: a full check, and every height that is kept.
const THOROUGH: u64 = 64;

/// How often it says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Heights whose states are remembered: more than the store keeps, so also more than a child rolls back.
const REMEMBERED: usize = 64;

/// A line of history: the epoch it is in, the height that comes next, and the states of the last heights.
#[derive(Debug, Clone, Default)]
struct Line {
    epoch: u64,
    next: u64,
    /// The lowest height that must be kept: none was pruned from here on, and so many are kept of the highest there ever was.
    low: u64,
    states: VecDeque<Rc<reference::State>>,
}

impl Line {
    fn last(&self) -> Rc<reference::State> {
        self.states.back().cloned().unwrap_or_default()
    }

    fn push(&mut self, state: reference::State) {
        self.next += 1;
        self.low = self.low.max(self.next.saturating_sub(KEPT));
        self.states.push_back(Rc::new(state));
        if self.states.len() > REMEMBERED {
            self.states.pop_front();
        }
    }

    fn roll_back(&mut self, to: u64, epoch: u64) {
        let gone = self.next.saturating_sub(to + 1);
        self.states.truncate(self.states.len().saturating_sub(usize::try_from(gone).unwrap_or(usize::MAX)));
        (self.next, self.epoch) = (to + 1, epoch);
    }

    fn is_at(&self, next: u64, epoch: u64) -> bool {
        (self.next, self.epoch) == (next, epoch)
    }
}

/// What a whole loop came to.
#[derive(Debug)]
pub(crate) struct Done {
    cycles: u64,
    acknowledged: u64,
    looks: u64,
    took: Duration,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cycles, acknowledged, looks, took } = self;
        write!(f, "{cycles} kills, {acknowledged} steps acknowledged, {looks} looks in {took:.1?}: nothing was lost")
    }
}

/// What must be there: what was acknowledged, and perhaps the step that was under way.
pub(crate) struct Promise {
    seed: u64,
    line: Line,
    pending: Option<Line>,
    acknowledged: u64,
}

impl Promise {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, line: Line::default(), pending: None, acknowledged: 0 }
    }

    /// Of the diffs.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Takes in a line of a child.
    pub(crate) fn hear(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        match (words[0], number(1), number(2)) {
            ("opened", Some(next), Some(epoch)) => self.settle(next, epoch),
            ("commit", Some(height), Some(epoch)) => {
                let mut state = (*self.line.last()).clone();
                apply(&mut state, &diff_of(self.seed, epoch, height));
                let mut pending = self.line.clone();
                pending.push(state);
                self.pending = Some(pending);
                Ok(())
            }
            ("rollback", Some(to), Some(epoch)) => {
                let mut pending = self.line.clone();
                pending.roll_back(to, epoch);
                self.pending = Some(pending);
                Ok(())
            }
            // From now on they may be gone: whether they are is not known before it is looked.
            ("prune", Some(before), _) => {
                self.line.low = self.line.low.max(before);
                Ok(())
            }
            ("done", ..) => {
                self.line = self.pending.take().ok_or("an acknowledgement of nothing")?;
                self.acknowledged += 1;
                Ok(())
            }
            _ => Err(format!("the child said: {line}")),
        }
    }

    /// A store was found at this height: that decides whether the step under way took effect.
    fn settle(&mut self, next: u64, epoch: u64) -> Result<(), String> {
        let found = std::iter::once(&self.line).chain(&self.pending).find(|line| line.is_at(next, epoch));
        let Some(found) = found else {
            let (promised, at) = (self.line.next, self.line.epoch);
            return Err(format!(
                "{promised} heights of epoch {at} were acknowledged, {next} of epoch {epoch} are there"
            ));
        };
        self.line = found.clone();
        self.pending = None;
        Ok(())
    }
}

pub(crate) fn run(path: &Path, seed: u64, cycles: u64, running: &Running) -> Result<Done, String> {
    let start = Instant::now();
    let mut random = Random(seed);
    let mut promise = Promise::new(seed);
    let (mut cycle, mut looks, mut told) = (0, 0, start);
    while cycle < cycles {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let left = start.elapsed().as_secs() * (cycles - cycle) / cycle.max(1);
            let acknowledged = promise.acknowledged;
            eprintln!("{cycle} of {cycles} kills, {acknowledged} steps acknowledged, about {left} s left");
        }
        for _ in 0..(1 + random.below(KILLS_MAX)).min(cycles - cycle) {
            kill_one(path, &mut random, &mut promise, running).map_err(|wrong| format!("cycle {cycle}: {wrong}"))?;
            cycle += 1;
        }
        looks += 1;
        look(path, &mut promise, looks % THOROUGH == 0).map_err(|wrong| format!("after cycle {cycle}: {wrong}"))?;
    }
    Ok(Done { cycles, acknowledged: promise.acknowledged, looks, took: start.elapsed() })
}

/// Starts a child, lets it get somewhere, and kills it.
fn kill_one(path: &Path, random: &mut Random, promise: &mut Promise, running: &Running) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg(ARGUMENT).arg(path).args([promise.seed.to_string(), random.next().to_string()]);
    let life = Life::start(&mut command, running)?;
    // The moment is random twice over: after so many lines, and so much later. Sometimes before the first.
    let heard = match random.below(8) {
        0 => 0,
        1..5 => 1 + random.below(12),
        _ => 1 + random.below(120),
    };
    let said = life.hear(usize::try_from(heard).unwrap_or(0), PATIENCE)?;
    std::thread::sleep(Duration::from_micros(random.below(if heard == 0 { 4000 } else { 400 })));
    let ended = life.kill().map_err(|wrong| format!("{wrong}, after {:?}", said.last()))?;
    said.iter().chain(&ended.said).try_for_each(|line| promise.hear(line))
}

/// Opens what is left, and compares.
pub(crate) fn look(path: &Path, promise: &mut Promise, thorough: bool) -> Result<(), String> {
    let what = format!("seed {}: a look at {}", promise.seed, path.display());
    in_time(what, || compare(path, promise, thorough))
}

fn compare(path: &Path, promise: &mut Promise, thorough: bool) -> Result<(), String> {
    let store = open(path, true).map_err(|error| format!("it does not open: {error}"))?;
    promise.settle(store.height().map_or(0, |height| height.0 + 1), store.epoch())?;
    let Line { next, states, low, .. } = &promise.line;
    let root = |state: &reference::State| -> Root { reference::root_with(reference::blake3, state) };
    let expected = promise.line.last();
    if store.root() != root(&expected) {
        return Err(format!("the root is {}, not {}", store.root(), root(&expected)));
    }
    if contents(&store)? != *expected {
        return Err("an entry is wrong or missing".into());
    }
    let kept_from = store.low().map_or(*next, |low| low.0);
    if kept_from > *low {
        return Err(format!("history begins with height {kept_from}, nobody gave up {low}"));
    }
    if thorough {
        let report = store.check(CheckLevel::Full, &mut |_| {}).map_err(|error| error.to_string())?;
        if let Some(problem) = report.problems.first() {
            return Err(format!("a check found: {problem}"));
        }
        let kept = next - kept_from;
        for (height, state) in (0..*next).rev().zip(states.iter().rev()).take(usize::try_from(kept).unwrap_or(0)) {
            let view = store.view_at(Height(height)).map_err(|error| format!("height {height}: {error}"))?;
            if view.root() != root(state) {
                return Err(format!("height {height} has root {}", view.root()));
            }
        }
    }
    Ok(())
}

fn contents(store: &Store<Blake3>) -> Result<reference::State, String> {
    let view = store.view();
    let mut state = reference::State::new();
    for (name, _) in view.namespaces() {
        let entries = view.scan(&name, KeyRange::all()).map(|entry| {
            let (key, value) = entry.map_err(|error| format!("reading: {error}"))?;
            Ok::<_, String>((key.to_vec(), value.to_vec()))
        });
        state.insert(name.as_str().to_owned(), entries.collect::<Result<_, _>>()?);
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that gives up history nobody told it to give up is found, however it describes what it has.
    #[test]
    fn history_that_nobody_gave_up_is_missed() {
        let directory = tempfile::tempdir().unwrap();
        let (mut promise, store) = (Promise::new(1), open(directory.path(), false).unwrap());
        for height in 0..KEPT + 10 {
            promise.hear(&format!("commit {height} 0")).unwrap();
            store.commit(Height(height), diff_of(1, 0, height)).unwrap();
            promise.hear("done").unwrap();
        }
        store.close().unwrap();
        look(directory.path(), &mut promise, true).unwrap();
        let store = open(directory.path(), false).unwrap();
        store.prune(Height(12)).unwrap();
        store.close().unwrap();
        let told = look(directory.path(), &mut promise, false).unwrap_err();
        assert_eq!(told, "history begins with height 12, nobody gave up 10");
        promise.hear("prune 12").unwrap();
        look(directory.path(), &mut promise, true).unwrap();
    }
}
