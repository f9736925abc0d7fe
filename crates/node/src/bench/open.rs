//! How long a store takes to open after its process was killed.
//!
//! A process of its own loads a state, commits updates and says the height of each that is acknowledged, until it is killed
//! with no warning. Then the store is opened here, and the time it takes is what is measured: that of reading the log
//! behind the last flush, whatever the size of the state. Nothing that was acknowledged may be missing.

use super::{BenchError, Engine, Figures, Line, Model, NAMESPACE, Random, key, round, value};
use keelstone_codec::{Height, Namespace};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Store};
use keelstone_tree::Blake3;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenSizes {
    pub(crate) keys: u64,
    pub(crate) update_size: u64,
    pub(crate) kills: usize,
}

/// Blocks after which a process is killed at the latest: by then a flush is due, and commits wait for it.
const BLOCKS_MAX: usize = 400;

/// Kills a process that works in `directory` again and again, and opens what it left. `worker` starts one there.
///
/// # Errors
/// [`BenchError::Wrong`] if something acknowledged is missing, else what the store or the machine says.
pub(crate) fn open(
    directory: &Path,
    sizes: OpenSizes,
    worker: impl Fn(&Path) -> Result<Command, BenchError>,
    mut tell: impl FnMut(Line),
) -> Result<(), BenchError> {
    let data = directory.join("db");
    fs::create_dir_all(&data)?;
    let mut random = Random(17);
    let mut took = Vec::new();
    let (mut replayed, mut most) = (0, 0);
    for _ in 0..sizes.kills {
        let acknowledged = work_until_killed(worker(&data)?, 1 + random.below(BLOCKS_MAX))?;
        let start = Instant::now();
        let store = Store::<Blake3>::open(Arc::new(Directory::new(&data)?), Options::default())?;
        took.push(start.elapsed());
        let found = store.height();
        if found < Some(acknowledged) {
            return Err(BenchError::Wrong(format!("height {acknowledged} was acknowledged, {found:?} is there")));
        }
        most = most.max(store.stats().entries);
        replayed = replayed.max(store.stats().unflushed_bytes);
    }
    took.sort_unstable();
    let ms = |at: usize| took.get(at).map_or(0.0, |took| round(took.as_secs_f64() * 1e3, 1));
    let figures = Figures::Open {
        kills: sizes.kills,
        med_ms: ms(took.len() / 2),
        max_ms: ms(took.len().saturating_sub(1)),
        replayed_bytes_max: replayed,
        entries: most,
    };
    tell(Line { w: "open", peer: "keelstone", version: env!("CARGO_PKG_VERSION"), n: sizes.keys, figures });
    Ok(())
}

/// A process that is killed when it is let go of, whatever happens here.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself, which its silence told.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a worker and kills it once it has acknowledged so many blocks. The last height it said.
fn work_until_killed(mut worker: Command, blocks: usize) -> Result<Height, BenchError> {
    let mut worker = Killed(worker.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    let said = worker.0.stdout.take().expect("it is piped");
    let mut last = None;
    for line in BufReader::new(said).lines().take(blocks) {
        let line = line?;
        let height = line.parse().map_err(|_| BenchError::Wrong(format!("the worker said {line:?}")))?;
        last = Some(Height(height));
    }
    last.ok_or_else(|| BenchError::Wrong("the worker ended before its first block".into()))
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
        engine.commit(batch)?;
        // Whoever does not listen any more has what was wanted.
        if writeln!(said, "{}", engine.height.0).and_then(|()| said.flush()).is_err() {
            return Ok(());
        }
    }
}
