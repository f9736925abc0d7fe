//! How long a store takes to open after its process was killed.
//!
//! A process of its own loads a state, commits updates and says the height and root of each that is acknowledged, until it is
//! killed with no warning. Then the store is opened here, and the time it takes is what is measured: that of reading the log
//! behind the last flush, whatever the size of the state. Nothing that was acknowledged may be missing, or be another state.
//!
//! The process ends with this one, however that ends: it would load on for minutes.

use super::{BenchError, Engine, Figures, Line, Model, NAMESPACE, Random, key, median, round, value};
use crate::processes::{Group, Process};
use keelstone_codec::{Height, Namespace, Root};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Store};
use keelstone_tree::Blake3;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenSizes {
    pub(crate) keys: u64,
    pub(crate) update_size: u64,
    pub(crate) kills: usize,
}

/// Blocks after which a process is killed at the latest: by then a flush is due, and commits wait for it.
const BLOCKS_MAX: usize = 400;

/// Kills a process that works in `directory` again and again, and opens what it left. `worker` starts one there, in
/// the group.
///
/// # Errors
/// [`BenchError::Wrong`] if something acknowledged is missing, else what the store or the machine says.
pub(crate) fn open(
    directory: &Path,
    sizes: OpenSizes,
    group: &Group,
    worker: impl Fn(&Path) -> Result<Command, BenchError>,
    mut tell: impl FnMut(Line),
) -> Result<(), BenchError> {
    let data = directory.join("db");
    fs::create_dir_all(&data)?;
    let options = Options::default();
    let mut random = Random(17);
    let mut took = Vec::new();
    let (mut replayed, mut most) = (0, 0);
    for _ in 0..sizes.kills {
        let acknowledged = work_until_killed(group, worker(&data)?, 1 + random.below(BLOCKS_MAX))?;
        let start = Instant::now();
        let store = Store::<Blake3>::open(Arc::new(Directory::new(&data)?), options.clone())?;
        took.push(start.elapsed());
        is_there(&store, acknowledged)?;
        most = most.max(store.stats().entries);
        replayed = replayed.max(store.stats().unflushed_bytes);
    }
    took.sort_unstable();
    let ms = |took: Option<Duration>| took.map_or(0.0, |took| round(took.as_secs_f64() * 1e3, 1));
    let figures = Figures::Open {
        kills: sizes.kills,
        med_ms: ms(median(&took)),
        max_ms: ms(took.last().copied()),
        replayed_bytes_max: replayed,
        entries: most,
    };
    tell(Line::of("open", sizes.keys, &options, figures));
    Ok(())
}

/// Whether a store has what was acknowledged.
fn is_there(store: &Store<Blake3>, (height, root): (Height, Root)) -> Result<(), BenchError> {
    let last = store.height();
    if last < Some(height) {
        return Err(BenchError::Wrong(format!("height {height} was acknowledged, {last:?} is there")));
    }
    let found = store.view_at(height)?.root();
    if found != root {
        return Err(BenchError::Wrong(format!("height {height} was acknowledged with root {root}, {found} is there")));
    }
    Ok(())
}

/// Starts a worker and kills it once it has acknowledged so many blocks. The last height it said, and its root.
fn work_until_killed(group: &Group, mut worker: Command, blocks: usize) -> Result<(Height, Root), BenchError> {
    worker.stdout(Stdio::piped());
    heard_and_killed(group.spawn(worker)?, blocks)
}

/// As [`work_until_killed`], of a worker that runs. Whatever it says, it has ended afterwards: its directory is no longer its own.
fn heard_and_killed(mut worker: Process, blocks: usize) -> Result<(Height, Root), BenchError> {
    let heard = hear(&mut worker, blocks);
    let killed = worker.kill();
    let heard = heard?;
    killed?;
    Ok(heard)
}

/// Listens until a worker has acknowledged so many blocks.
fn hear(worker: &mut Process, blocks: usize) -> Result<(Height, Root), BenchError> {
    let mut lines = BufReader::new(worker.output().expect("it is piped")).lines();
    let mut last = None;
    for _ in 0..blocks {
        let Some(line) = lines.next().transpose()? else {
            // Its end is at hand: only that closes what it says.
            return Err(BenchError::Worker(worker.wait()?));
        };
        let said = line
            .split_once(' ')
            .and_then(|(height, root)| Some((Height(height.parse().ok()?), Root::from_hex(root).ok()?)));
        last = Some(said.ok_or_else(|| BenchError::Wrong(format!("the worker said {line:?}")))?);
    }
    last.ok_or_else(|| BenchError::Wrong("there was no block to wait for".into()))
}

/// What the worker does: loads the state if it is not there, then commits updates until nobody listens or it is killed.
///
/// # Errors
/// What the store or the machine says.
pub(crate) fn work(data: &Path, sizes: OpenSizes) -> Result<(), BenchError> {
    let files = Arc::new(Directory::new(data)?);
    let mut engine = match Store::<Blake3>::exists(&*files)? {
        false => Engine::create(data, Options::default())?,
        true => {
            let store = Store::open(files, Options::default())?;
            let height = store.height().unwrap_or_default();
            Engine { store, namespace: Namespace::new(NAMESPACE).expect("the name is a constant and valid"), height }
        }
    };
    let mut model = Model::new();
    while engine.store.view().totals().count < sizes.keys {
        let batch = model.load_block(10_000.min(sizes.keys - model.next));
        engine.commit(batch)?;
    }
    let mut said = std::io::stdout();
    let mut random = Random(engine.height.0);
    loop {
        let version = u32::try_from(engine.height.0).unwrap_or(u32::MAX);
        let count = usize::try_from(sizes.keys).expect("a count of keys fits");
        let mut ids = BTreeSet::new();
        while (ids.len() as u64) < sizes.update_size.min(sizes.keys) {
            ids.insert(random.below(count) as u64);
        }
        let mut batch: Vec<_> = ids.into_iter().map(|id| (key(id), Some(value(id, version)))).collect();
        batch.sort_unstable_by_key(|(key, _)| *key);
        let root = engine.commit(batch)?;
        // Whoever does not listen any more has what was wanted.
        if writeln!(said, "{} {root}", engine.height.0).and_then(|()| said.flush()).is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_store::files::MemoryFiles;

    /// What it says is checked while it writes, and its directory goes when that fails.
    #[test]
    fn a_worker_that_says_nonsense_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg("echo $$ > pid; echo nonsense; exec sleep 60").current_dir(&directory);
        command.stdout(Stdio::piped());
        let heard = heard_and_killed(Process::alone(command).unwrap(), 3);
        assert!(matches!(&heard, Err(BenchError::Wrong(said)) if said.contains("nonsense")), "{heard:?}");
        let pid = std::fs::read_to_string(directory.path().join("pid")).unwrap();
        let lives = Command::new("kill").args(["-0", pid.trim()]).stderr(Stdio::null()).status().unwrap();
        assert!(!lives.success(), "it goes on");
    }

    /// As many heights prove nothing: each must be the one that was acknowledged.
    #[test]
    fn what_was_acknowledged_is_there_with_its_root_or_it_is_not() {
        let store = Store::<Blake3>::create(Arc::new(MemoryFiles::new()), Options::default()).unwrap();
        let namespace = Namespace::new(NAMESPACE).unwrap();
        let mut engine = Engine { store, namespace, height: Height(0) };
        let one = engine.commit(vec![(key(1), Some(value(1, 0)))]).unwrap();
        let two = engine.commit(vec![(key(1), Some(value(1, 1)))]).unwrap();
        for there in [(Height(1), one), (Height(2), two)] {
            is_there(&engine.store, there).unwrap();
        }
        for not in [(Height(1), two), (Height(2), one), (Height(3), two)] {
            assert!(matches!(is_there(&engine.store, not), Err(BenchError::Wrong(_))), "{not:?}");
        }
    }
}
