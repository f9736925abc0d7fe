//! Versions of a small state, libraries of them, and what stands in their files.

use keelstone_codec::{ChainId, Height, Key, Namespace, Root, Value};
use keelstone_store::files::Files;
use keelstone_sync::library::{Info, Library, LibraryError, Making, Progress, SnapshotId};
use keelstone_sync::snapshot::{FORMAT, SnapshotParams};
use keelstone_tree::{
    Blake3, Branch, Diff, Grown, HashKind, KeyRange, MemoryTree, Opened, Read, ReadError, Scan, Walk,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

pub(crate) type State = BTreeMap<Namespace, BTreeMap<Key, Value>>;

/// A version of a state, which can be read and walked.
pub(crate) struct Version {
    tree: MemoryTree<Blake3>,
    grown: Grown,
}

impl Version {
    pub(crate) fn of(state: State) -> Self {
        let grown = Grown::new::<Blake3>(&state);
        let mut tree = MemoryTree::new();
        let write = |(name, entries): (&Namespace, &BTreeMap<Key, Value>)| {
            let name = name.clone();
            let entries = entries.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
            entries.map(move |(key, value)| (name.clone(), key, value)).collect::<Vec<_>>()
        };
        let diff: Diff = state.iter().flat_map(write).collect();
        tree.apply(&diff);
        Self { tree, grown }
    }

    pub(crate) fn root(&self) -> Root {
        self.grown.root()
    }
}

impl Walk for Version {
    type Node = u32;
    fn top(&self) -> Result<Option<Branch<u32>>, ReadError> {
        self.grown.top()
    }
    fn open<'n>(&'n self, node: &'n u32) -> Result<Opened<'n, u32>, ReadError> {
        self.grown.open(node)
    }
    fn value(&self, node: &u32) -> Result<Value, ReadError> {
        self.grown.value(node)
    }
}

impl Read for Version {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.tree.get(namespace, key)
    }
    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        self.tree.scan(namespace, range)
    }
}

/// `count` entries in two namespaces; `seed` changes the values of the first `changed`.
pub(crate) fn version(count: u32, changed: u32, seed: u8) -> Version {
    let mut state = State::new();
    for number in 0..count {
        let name = Namespace::new(if number % 3 == 0 { "agents" } else { "social" }).unwrap();
        let byte = if number < changed { seed } else { 0 };
        let key = Key::new(format!("key-{number:06}").into_bytes()).unwrap();
        let value = Value::new([&number.to_be_bytes(), &[byte; 60][..]].concat()).unwrap();
        state.entry(name).or_default().insert(key, value);
    }
    Version::of(state)
}

pub(crate) fn params() -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("test-1").unwrap(), hasher: HashKind::Blake3, unit_weight_max: 2048 }
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

pub(crate) fn create(library: &Library, version: &Version, height: u64) -> Result<Info, LibraryError> {
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
