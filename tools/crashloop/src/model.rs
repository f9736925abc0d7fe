//! What parent and child agree on: how the store is opened, and which diff comes next.

use keelstone_codec::{Key, Namespace, Value, splitmix64};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Retention, Store, StoreError};
use keelstone_tree::{Blake3, Diff, reference};
use std::path::Path;
use std::sync::Arc;

/// Small and seeded.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Heights that the store keeps.
pub(crate) const KEPT: u64 = 40;

/// Everything small, so that everything happens often. `background`: with threads, as in earnest.
fn options(background: bool) -> Options {
    Options {
        background,
        segment_bytes: 16 << 10,
        page_segment_bytes: 16 << 10,
        flush_bytes: 8 << 10,
        cache_bytes: 64 << 10,
        value_cache_bytes: 64 << 10,
        history: Retention::Heights(KEPT),
        ..Options::default()
    }
}

/// Opens the store of a directory, or makes it if none has come to be yet.
pub(crate) fn open(path: &Path, background: bool) -> Result<Store<Blake3>, StoreError> {
    let files = Arc::new(Directory::new(path).map_err(|source| StoreError::Io {
        doing: "open",
        file: path.display().to_string(),
        source: Arc::new(source),
    })?);
    if Store::<Blake3>::exists(&*files)? {
        Store::open(files, options(background))
    } else {
        Store::create(files, options(background))
    }
}

/// The diff of a height in an epoch is always the same, so both know the state at every height.
pub(crate) fn diff_of(seed: u64, epoch: u64, height: u64) -> Diff {
    let mut random = Random(seed ^ height.wrapping_mul(77) ^ epoch << 40);
    let names = ["a", "b", "cc"].map(|name| Namespace::new(name).expect("a name"));
    let writes = 1 + random.below(5);
    (0..writes)
        .map(|_| {
            let name = names[usize::try_from(random.below(3)).expect("small")].clone();
            let key: Vec<u8> = (0..1 + random.below(3))
                .map(|_| [0, 0x41, 0x80, 0xff][usize::try_from(random.below(4)).expect("small")])
                .collect();
            let value = (random.below(10) < 7).then(|| {
                let len = if random.below(20) == 0 { 600 + random.below(3000) } else { 1 + random.below(60) };
                Value::new(vec![u8::try_from(random.below(256)).expect("a byte"); usize::try_from(len).expect("small")])
            });
            let value = value.map(|value| value.expect("1 to 3,600 bytes"));
            (name, Key::new(key).expect("1 to 3 bytes"), value)
        })
        .collect()
}

/// What a state becomes.
pub(crate) fn apply(state: &mut reference::State, diff: &Diff) {
    for (name, write) in diff.iter() {
        let entries = state.entry(name.as_str().to_owned()).or_default();
        match &write.value {
            Some(value) => drop(entries.insert(write.key.to_vec(), value.to_vec())),
            None => drop(entries.remove(write.key.as_slice())),
        }
    }
    state.retain(|_, entries| !entries.is_empty());
}
