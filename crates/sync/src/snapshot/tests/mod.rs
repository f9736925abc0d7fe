//! Snapshots of states in memory, honest and forged.

mod apply;
mod faults;
pub(crate) mod forged;
mod offers;
mod properties;
mod scale;
mod wire;

use super::*;
use crate::testing::{State, name, state, states};
use keelstone_codec::{ChainId, Encode, Height, Key, Namespace, Root, Value};
use keelstone_store::files::{Files, MemoryFiles};
use keelstone_tree::{Blake3, Diff, Grown, HashKind, Hasher, KeyRange, MemoryTree, Read};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

const HEIGHT: Height = Height(7);

fn params<H: Hasher>(chunk_weight_max: u32) -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("test-1").unwrap(), hasher: H::KIND, chunk_weight_max }
}

/// A state, its snapshot as an honest peer has it, and what an engine would offer.
struct Made {
    state: State,
    params: SnapshotParams,
    root: Root,
    plan: Plan,
    raw: Vec<Vec<u8>>,
    offer: Offer,
}

impl Made {
    fn new<H: Hasher>(state: State, chunk_weight_max: u32) -> Self {
        let (version, params) = (Grown::new::<H>(&state), params::<H>(chunk_weight_max));
        let root = version.root();
        let plan = Plan::of(&version, &params, HEIGHT, root).unwrap();
        let raw = (0..plan.chunks()).map(|index| plan.body(&version, index).unwrap()).collect();
        let offer = offer(&params, plan.metadata(), root);
        Self { state, params, root, plan, raw, offer }
    }

    fn wire(&self, index: u32) -> Vec<u8> {
        pack(&self.raw[index as usize], 0).unwrap()
    }

    fn restore<H: Hasher>(&self, files: &(impl Files + Clone + 'static)) -> Restore<H> {
        Restore::open(Arc::new(files.clone()), self.params.clone(), RestoreLimits::default()).unwrap()
    }

    /// A restore that has accepted the offer.
    fn accepted<H: Hasher>(&self, files: &(impl Files + Clone + 'static)) -> Restore<H> {
        let mut restore = self.restore(files);
        assert_eq!(restore.offer(&self.offer, self.root.as_bytes()), OfferVerdict::Accept);
        restore
    }

    /// One that has all chunks but from `end` on.
    fn with_chunks<H: Hasher>(&self, files: &MemoryFiles, end: u32) -> Restore<H> {
        let mut restore = self.accepted(files);
        for index in 0..end {
            assert_eq!(restore.apply(index, &self.wire(index), "honest"), ChunkVerdict::Accept, "chunk {index}");
        }
        restore
    }

    fn skeleton<H: Hasher>(&self) -> Skeleton<H> {
        let mut skeleton = Skeleton::new(self.root, self.plan.metadata());
        for page in &self.raw[..self.plan.pages() as usize] {
            skeleton.add_page(page).unwrap();
        }
        skeleton
    }
}

fn offer(params: &SnapshotParams, metadata: &Metadata, root: Root) -> Offer {
    Offer {
        height: metadata.height.0,
        format: FORMAT,
        chunks: metadata.chunks,
        hash: snapshot_hash(params, metadata.height, root).as_bytes().to_vec(),
        metadata: metadata.to_bytes(),
    }
}

/// Everything a complete restore hands out.
fn received<H: Hasher>(restore: &mut Restore<H>) -> State {
    let mut state = State::new();
    let mut last = None;
    let each = |namespace: &Namespace, key: &Key, value: &[u8]| {
        let this = Some((namespace.clone(), key.clone()));
        assert!(last < this, "entries come in order");
        last = this;
        state.entry(namespace.clone()).or_default().insert(key.clone(), Value::new(value.to_vec()).unwrap());
        Ok::<_, Infallible>(())
    };
    restore.entries(each).unwrap();
    state
}

/// Asserts that a chunk was refused and its sender with it, and is asked for again.
#[track_caller]
fn assert_bad(verdict: &ChunkVerdict, index: u32, sender: &str) {
    match verdict {
        ChunkVerdict::Retry { refetch, reject_senders, .. } => {
            assert_eq!((refetch.as_slice(), reject_senders.as_slice()), (&[index][..], &[sender.to_owned()][..]));
        }
        other => panic!("chunk {index}: {other:?}"),
    }
}
