//! Snapshots of states in memory.

use super::*;
use keelstone_codec::{ChainId, Decode, Encode, Height, Key, Namespace, Root, Value};
use keelstone_tree::{Blake3, Branch, Diff, Grown, Hasher, KeyRange, MemoryTree, Opened, Read, ReadError, Scan, Walk};
use std::collections::BTreeMap;

type State = BTreeMap<Namespace, BTreeMap<Key, Value>>;

/// A version in memory that can be read and walked.
pub(super) struct Version<H> {
    pub(super) tree: MemoryTree<H>,
    grown: Grown,
}

impl<H: Hasher> Version<H> {
    pub(super) fn new(state: &State) -> Self {
        let mut tree = MemoryTree::new();
        let writes = state.iter().flat_map(|(name, entries)| {
            entries.iter().map(move |(key, value)| (name.clone(), key.clone(), Some(value.clone())))
        });
        tree.apply(&writes.collect::<Diff>());
        Self { tree, grown: Grown::new::<H>(state) }
    }

    pub(super) fn root(&self) -> Root {
        self.grown.root()
    }
}

impl<H: Hasher> Read for Version<H> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.tree.get(namespace, key)
    }
    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        self.tree.scan(namespace, range)
    }
}

impl<H: Hasher> Walk for Version<H> {
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

pub(super) fn params<H: Hasher>(unit_weight_max: u32) -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("test-1").unwrap(), hasher: H::KIND, unit_weight_max }
}

/// Namespaces of very different sizes.
pub(super) fn state(count: u32) -> State {
    let mut state = State::new();
    for number in 0..count {
        let hash = keelstone_tree::HashKind::Blake3.hash(&number.to_le_bytes());
        let name = Namespace::new(&format!("n{}", u32::from(hash.0[0]).pow(2) / 4096)).unwrap();
        let (key, value) =
            (hash.0[1..3 + usize::from(hash.0[3] % 20)].to_vec(), vec![hash.0[4]; 1 + number as usize % 90]);
        state.entry(name).or_default().insert(Key::new(key).unwrap(), Value::new(value).unwrap());
    }
    state
}

/// spec: SNAP-1. No chunk has more bytes than W, however the state is cut, and larger entries stand alone.
#[test]
fn no_chunk_has_more_bytes_than_its_weight() {
    for w in [64, 300, 1000, 5000, 1 << 20] {
        let version = Version::<Blake3>::new(&state(700));
        let plan = Plan::of(&version, &params::<Blake3>(w), Height(7), version.root()).unwrap();
        for index in 0..plan.chunks() {
            let body = plan.body(&version, index).unwrap();
            assert!(
                body.len() <= w.max(96 + 20) as usize || index >= plan.pages() && body.len() < 200,
                "{}",
                body.len()
            );
            assert_eq!(unpack(&pack(&body, 3).unwrap(), 1 << 20).unwrap(), body);
        }
    }
}

/// spec: SNAP-6. Metadata has one encoding, and stays within its limit for the longest chain id.
#[test]
fn metadata_has_one_encoding_within_its_limit() {
    let version = Version::<Blake3>::new(&state(100));
    let long = ChainId::new(&"c".repeat(50)).unwrap();
    let params = SnapshotParams { chain_id: long, ..params::<Blake3>(200) };
    let plan = Plan::of(&version, &params, Height(7), version.root()).unwrap();
    let bytes = plan.metadata().to_bytes();
    assert!(bytes.len() <= METADATA_BYTES_MAX);
    assert_eq!(Metadata::from_bytes(&bytes).as_ref(), Ok(plan.metadata()));
}
