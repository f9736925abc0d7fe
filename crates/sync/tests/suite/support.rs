//! Versions of a small state, libraries of them, and what stands in their files.

use keelstone_codec::{ChainId, Height, Key, Namespace, Value};
use keelstone_store::files::Files;
use keelstone_sync::library::{Info, Library, LibraryError, Making, Progress, SnapshotId};
use keelstone_sync::snapshot::{FORMAT, SnapshotParams};
use keelstone_tree::{Blake3, Grown, HashKind};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

pub(crate) type State = BTreeMap<Namespace, BTreeMap<Key, Value>>;

/// `count` entries in two namespaces; `seed` changes the values of the first `changed`.
pub(crate) fn version(count: u32, changed: u32, seed: u8) -> Grown {
    let mut state = State::new();
    for number in 0..count {
        let name = Namespace::new(if number % 3 == 0 { "agents" } else { "social" }).unwrap();
        let byte = if number < changed { seed } else { 0 };
        let key = Key::new(format!("key-{number:06}").into_bytes()).unwrap();
        let value = Value::new([&number.to_be_bytes(), &[byte; 60][..]].concat()).unwrap();
        state.entry(name).or_default().insert(key, value);
    }
    Grown::new::<Blake3>(&state)
}

pub(crate) fn params() -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("test-1").unwrap(), hasher: HashKind::Blake3, chunk_weight_max: 2048 }
}

pub(crate) fn id(height: u64) -> SnapshotId {
    SnapshotId { height: Height(height), format: FORMAT }
}

pub(crate) fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn open(files: &(impl Files + Clone + 'static)) -> Library {
    Library::open(Arc::new(files.clone())).unwrap().0
}

pub(crate) fn create(library: &Library, version: &Grown, height: u64) -> Result<Info, LibraryError> {
    library.create(version, &params(), Height(height), version.root(), &Making::default(), &mut go_on)
}

pub(crate) fn heights(library: &Library) -> Vec<u64> {
    library.list().iter().map(|info| info.id.height.0).collect()
}

/// All files but the lock, by name.
pub(crate) fn names(files: &dyn Files) -> Vec<String> {
    files.list().unwrap().into_iter().filter(|name| name != "LOCK").collect()
}

/// Changes one byte of a file.
pub(crate) fn flip(files: &dyn Files, name: &str, at: u64) {
    let file = files.open(name).unwrap();
    let mut byte = [0];
    file.read_at(at, &mut byte).unwrap();
    file.write_at(at, &[byte[0] ^ 1]).unwrap();
}

/// The content of a file.
pub(crate) fn content(files: &dyn Files, name: &str) -> Vec<u8> {
    let file = files.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}
