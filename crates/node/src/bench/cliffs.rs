//! Shapes of keys, values and blocks other than those of W2, each beside W2 as it is: where a store falls off a cliff, if it does.
//!
//! What is compared went through one process in one run. The shapes of W2's own keys and values run one after the other on
//! one store, W2 itself first and once more at the end, so that what the machine did meanwhile can be told from what a shape
//! costs. Every other form of keys and values has a store of its own, loaded with as many keys. Before a shape begins, what
//! the one before it left is flushed; what a flush at its own end takes is a figure of its own.
//!
//! After each shape the number of entries, some of the values that live, some keys that were deleted, and proofs of both are compared with
//! what was written.

use super::{
    BenchError, Engine, Figures, Line, Random, disk_bytes, hundredths, key, median, memory_kb, ms, prove, rate, round,
    value, written_bytes,
};
use keelstone_codec::Root;
use keelstone_store::Options;
use keelstone_tree::Read as _;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How much of each shape to run.
#[derive(Debug, Clone)]
pub(crate) struct CliffSizes {
    /// Keys that each store is loaded with.
    pub(crate) keys: u64,
    /// Blocks of a shape; a tenth as many of large ones.
    pub(crate) blocks: usize,
    /// Updates in a block, where the shape says nothing else; a large one has a hundred times as many.
    pub(crate) size: usize,
    /// The shapes to run beside the plain one; all if none.
    pub(crate) only: Option<Vec<String>>,
}

/// The names of the shapes.
pub(crate) const SHAPES: [&str; 11] = [
    "skewed",
    "inserts",
    "deletes",
    "empty",
    "ones",
    "large",
    "again",
    "keys-8",
    "keys-200",
    "prefixes",
    "values-4096",
];

/// Entries of each kind that are read, and proven, after a shape.
const READ_AFTER: usize = 1_000;
const PROVEN_AFTER: usize = 50;

/// Keys that share all but their last bytes, in one form.
const FAMILY: u64 = 16;

/// What keys and values look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Those of W2: 32 bytes and 100.
    Plain,
    /// Keys of so many bytes, all of them random.
    Keys(usize),
    /// Keys of 200 bytes: all share the first 100, and [`FAMILY`] of them all but the last 8.
    Prefixes { families: u64 },
    /// Values of so many bytes.
    Values(usize),
}

impl Form {
    fn key(self, id: u64) -> Vec<u8> {
        match self {
            Self::Plain | Self::Values(_) => key(id).to_vec(),
            Self::Keys(len) => {
                let mut out = key(id).to_vec();
                filled(&mut out, len, id);
                out
            }
            Self::Prefixes { families } => {
                let mut out = vec![b'p'; 100];
                out.extend_from_slice(&key(id % families));
                out.resize(192, b'p');
                out.extend_from_slice(&(id / families).to_be_bytes());
                out
            }
        }
    }

    fn value(self, id: u64, version: u32) -> Vec<u8> {
        let mut out = value(id, version);
        if let Self::Values(len) = self {
            filled(&mut out, len, id ^ u64::from(version) << 40);
        }
        out
    }
}

/// Cuts it, or fills it up with what does not compress.
fn filled(out: &mut Vec<u8>, len: usize, seed: u64) {
    let mut random = Random(seed);
    while out.len() < len {
        out.extend_from_slice(&random.next().to_le_bytes());
    }
    out.truncate(len);
}

/// What a block does with distinct keys, in hundredths; the rest is overwritten.
#[derive(Debug, Clone, Copy)]
struct Mix {
    inserts: usize,
    deletes: usize,
    /// Nine of ten keys are of a hundredth of all.
    skewed: bool,
}

const AS_W2: Mix = Mix { inserts: 10, deletes: 10, skewed: false };

/// One shape: so many blocks of so many updates.
#[derive(Debug, Clone, Copy)]
struct Shape {
    name: &'static str,
    mix: Mix,
    blocks: usize,
    size: usize,
}

/// What a store should hold: the id and version of every live key.
struct State {
    form: Form,
    live: Vec<(u64, u32)>,
    /// What the shape at work has deleted.
    gone: Vec<u64>,
    next: u64,
    random: Random,
}

type Batch = super::Batch<Vec<u8>>;

impl State {
    fn new(form: Form) -> Self {
        Self { form, live: Vec::new(), gone: Vec::new(), next: 0, random: Random(7) }
    }

    fn write(&self, id: u64, version: u32) -> (Vec<u8>, Option<Vec<u8>>) {
        (self.form.key(id), Some(self.form.value(id, version)))
    }

    fn insert(&mut self, batch: &mut Batch) {
        let id = self.next;
        self.next += 1;
        self.live.push((id, 0));
        batch.push(self.write(id, 0));
    }

    fn load_block(&mut self, size: u64) -> Batch {
        let mut batch = Batch::new();
        for _ in 0..size {
            self.insert(&mut batch);
        }
        batch.sort_unstable();
        batch
    }

    fn place(&mut self, size: usize, skewed: bool) -> usize {
        // A block must find enough distinct keys there.
        let hot = (self.live.len() / 100).max(2 * size).min(self.live.len());
        let end = if skewed && self.random.below(10) < 9 { hot } else { self.live.len() };
        self.random.below(end)
    }

    fn block(&mut self, size: usize, mix: Mix) -> Batch {
        let (inserts, deletes) = (size * mix.inserts / 100, size * mix.deletes / 100);
        let mut batch = Batch::with_capacity(size);
        let mut touched = HashSet::with_capacity(size);
        while batch.len() < size - inserts - deletes {
            let place = self.place(size, mix.skewed);
            let (id, version) = self.live[place];
            if touched.insert(id) {
                self.live[place].1 = version + 1;
                batch.push(self.write(id, version + 1));
            }
        }
        while batch.len() < size - inserts {
            let place = self.place(size, mix.skewed);
            let (id, _) = self.live[place];
            if touched.insert(id) {
                self.live.swap_remove(place);
                self.gone.push(id);
                batch.push((self.form.key(id), None));
            }
        }
        for _ in 0..inserts {
            self.insert(&mut batch);
        }
        batch.sort_unstable();
        batch
    }

    /// Compares what the store answers with what it should hold.
    fn check(&mut self, engine: &Engine, root: Root) -> Result<(), BenchError> {
        let wrong = |what: String| Err(BenchError::Wrong(what));
        let view = engine.store.view();
        let (found, expected) = (view.totals().count, self.live.len() as u64);
        if found != expected {
            return wrong(format!("{found} entries are there, {expected} are live"));
        }
        let live = self.random.pick(&self.live, READ_AFTER);
        let gone = if self.gone.is_empty() { Vec::new() } else { self.random.pick(&self.gone, READ_AFTER) };
        let live = live.into_iter().map(|(id, version)| self.write(id, version));
        let mut entries: Batch = live.collect();
        let absent = entries.len();
        entries.extend(gone.into_iter().map(|id| (self.form.key(id), None)));
        for (key, expected) in &entries {
            let found = view.get(&engine.namespace, key)?;
            if found.as_deref() != expected.as_deref() {
                return wrong(format!("the value of {} is not the one written last", hex::encode(key)));
            }
        }
        let proven = |from: &[_]| from.iter().take(PROVEN_AFTER).cloned().collect::<Batch>();
        prove(engine, root, proven(&entries[..absent]))?;
        prove(engine, root, proven(&entries[absent..]))?;
        Ok(())
    }
}

/// What a shape came to, to compare others with.
#[derive(Debug, Clone, Copy)]
struct Cost {
    update_us: f64,
    byte_ns: f64,
    block_ms: f64,
}

/// Runs the shapes in `directory`, which is emptied as it goes on, and hands out one line each.
///
/// # Errors
/// [`BenchError::Wrong`] if the store answers wrongly, else what the store or the machine says.
pub(crate) fn cliffs(directory: &Path, sizes: &CliffSizes, mut tell: impl FnMut(Line)) -> Result<(), BenchError> {
    let CliffSizes { keys, blocks, size, .. } = *sizes;
    let quarter = usize::try_from(keys / 4).unwrap_or(usize::MAX);
    let plain = Shape { name: "plain", mix: AS_W2, blocks, size };
    let all = |inserts, deletes| Mix { inserts, deletes, skewed: false };
    let on_one_store = [
        plain,
        Shape { name: "skewed", mix: Mix { skewed: true, ..AS_W2 }, ..plain },
        Shape { name: "inserts", mix: all(100, 0), ..plain },
        // Most of the state stays.
        Shape { name: "deletes", mix: all(0, 100), blocks: blocks.min(quarter / size).max(1), ..plain },
        Shape { name: "empty", size: 0, ..plain },
        Shape { name: "ones", size: 1, ..plain },
        Shape { name: "large", size: (100 * size).min(quarter), blocks: blocks.div_ceil(10), ..plain },
        Shape { name: "again", ..plain },
    ];
    let forms = [
        ("keys-8", Form::Keys(8)),
        ("keys-200", Form::Keys(200)),
        ("prefixes", Form::Prefixes { families: keys.div_ceil(FAMILY) }),
        ("values-4096", Form::Values(4096)),
    ];
    let wanted = |name: &str| sizes.only.as_ref().is_none_or(|only| only.iter().any(|one| one == name));
    let mut plain_cost = None;
    let shapes = on_one_store.into_iter().filter(|shape| shape.name == plain.name || wanted(shape.name)).collect();
    run_on_one(directory, keys, Form::Plain, shapes, &mut plain_cost, &mut tell)?;
    for (name, form) in forms.into_iter().filter(|(name, _)| wanted(name)) {
        run_on_one(directory, keys, form, vec![Shape { name, ..plain }], &mut plain_cost, &mut tell)?;
    }
    Ok(())
}

/// Loads a store and runs shapes on it. The first that ever runs is what the others are compared with.
fn run_on_one(
    directory: &Path,
    keys: u64,
    form: Form,
    shapes: Vec<Shape>,
    plain: &mut Option<Cost>,
    tell: &mut impl FnMut(Line),
) -> Result<(), BenchError> {
    let data = directory.join("db");
    fs::create_dir_all(&data)?;
    let options = Options::default();
    let mut engine = Engine::create(&data, options.clone())?;
    let mut state = State::new(form);
    // As many bytes in a block as that of W1 has, or memory would hold a hundredth of the state at once.
    let block = if form == Form::Values(4096) { 1_000 } else { 10_000 };
    let mut loading = Duration::ZERO;
    while state.next < keys {
        let batch = state.load_block(block.min(keys - state.next));
        loading += engine.timed(batch)?.1;
    }
    for shape in shapes {
        engine.store.flush()?;
        let figures = run_shape(&mut engine, &mut state, shape, rate(keys, loading), plain, &data)?;
        tell(Line::of("cliff", keys, &options, figures));
    }
    engine.store.close()?;
    fs::remove_dir_all(&data)?;
    Ok(())
}

fn run_shape(
    engine: &mut Engine,
    state: &mut State,
    shape: Shape,
    load_per_s: u64,
    plain: &mut Option<Cost>,
    data: &Path,
) -> Result<Figures, BenchError> {
    state.gone.clear();
    let (mut root, mut bytes, written) = (engine.store.root(), 0u64, written_bytes());
    let mut times = Vec::with_capacity(shape.blocks);
    for _ in 0..shape.blocks {
        let batch = state.block(shape.size, shape.mix);
        let lens = batch.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
        bytes += lens.sum::<usize>() as u64;
        let (made, took) = engine.timed(batch)?;
        root = made;
        times.push(took);
    }
    let start = Instant::now();
    engine.store.flush()?;
    let flush = start.elapsed();
    let written = written_bytes().saturating_sub(written);
    state.check(engine, root)?;

    let busy: Duration = times.iter().sum();
    times.sort_unstable();
    let updates = (shape.blocks * shape.size) as u64;
    let cost = Cost {
        update_us: busy.as_secs_f64() * 1e6 / updates.max(1) as f64,
        byte_ns: busy.as_secs_f64() * 1e9 / bytes.max(1) as f64,
        block_ms: median(&times).map_or(0.0, ms),
    };
    let beside = *plain.get_or_insert(cost);
    let of_updates = |ratio: f64| (updates > 0).then(|| round(ratio, 2));
    Ok(Figures::Cliff {
        shape: shape.name,
        blocks: shape.blocks,
        upd_size: shape.size,
        load_per_s,
        updates_per_s: rate(updates, busy),
        med_ms: cost.block_ms,
        p99_ms: hundredths(&times, 99),
        max_ms: hundredths(&times, 100),
        flush_ms: round(flush.as_secs_f64() * 1e3, 1),
        update_ratio: of_updates(cost.update_us / beside.update_us),
        byte_ratio: of_updates(cost.byte_ns / beside.byte_ns),
        block_ratio: round(cost.block_ms / beside.block_ms.max(f64::MIN_POSITIVE), 2),
        bytes_per_block: bytes / shape.blocks.max(1) as u64,
        written_per_block: written / shape.blocks.max(1) as u64,
        disk: disk_bytes(data),
        rss_kb: memory_kb(),
        root,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a form promises of its keys and values is so.
    #[test]
    fn keys_and_values_have_the_form_they_are_said_to_have() {
        let prefixes = Form::Prefixes { families: 100 };
        let lens = |form: Form| (form.key(3).len(), form.value(3, 1).len());
        assert_eq!(
            [Form::Plain, Form::Keys(8), Form::Keys(200), prefixes, Form::Values(4096)].map(lens),
            [(32, 100), (8, 100), (200, 100), (200, 100), (32, 4096)]
        );
        assert_eq!(prefixes.key(3)[..100], prefixes.key(4)[..100]);
        assert_eq!(prefixes.key(3)[..192], prefixes.key(103)[..192]);
        for form in [Form::Keys(8), Form::Keys(200), prefixes] {
            let keys: HashSet<Vec<u8>> = (0..10_000).map(|id| form.key(id)).collect();
            assert_eq!(keys.len(), 10_000, "{form:?}");
        }
    }

    /// Blocks have the writes their mix says, of distinct keys, and nine tenths of skewed ones are of a hundredth.
    #[test]
    fn blocks_have_the_mix_they_are_said_to_have() {
        let mut state = State::new(Form::Plain);
        state.load_block(100_000);
        let mut count = |mix| {
            let batch = state.block(100, mix);
            let keys: HashSet<&Vec<u8>> = batch.iter().map(|(key, _)| key).collect();
            let hot: HashSet<Vec<u8>> = (0..1_000).map(key).map(Vec::from).collect();
            let deletes = batch.iter().filter(|(_, value)| value.is_none()).count();
            (keys.len(), deletes, batch.iter().filter(|(key, _)| hot.contains(key)).count())
        };
        let skewed = Mix { inserts: 0, deletes: 0, skewed: true };
        let (all, _, hot) = count(skewed);
        assert!(all == 100 && hot > 70, "{hot} of {all} are of the first hundredth");
        assert_eq!(count(Mix { inserts: 0, deletes: 100, skewed: false }).1, 100);
        assert_eq!(count(AS_W2).1, 10);
    }
}
