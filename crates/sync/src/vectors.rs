//! Golden bytes of a snapshot and a delta: `spec/vectors/snapshot.json`.

use crate::delta::Delta;
use crate::snapshot::{Metadata, Plan, SnapshotParams, pack, snapshot_hash};
use crate::testing::{State, name, state};
use keelstone_codec::{ChainId, Decode, Encode, Height, Key, Value};
use keelstone_tree::{Blake3, Grown, Hasher, Sha256};
use serde_json::{Value as Json, json};

const WEIGHT: u32 = 1200;

fn found<H: Hasher>() -> Json {
    let older = state(40);
    let mut later = older.clone();
    let key = Key::new(*b"key").unwrap();
    later.entry(name("new")).or_default().insert(key, Value::new(&b"value"[..]).unwrap());
    later.pop_first();
    let (older, later) = (Grown::new::<H>(&older), Grown::new::<H>(&later));

    let chain_id = ChainId::new("vectors-1").unwrap();
    let params = SnapshotParams { chain_id: chain_id.clone(), hasher: H::KIND, chunk_weight_max: WEIGHT };
    let (height, root) = (Height(7), older.root());
    let plan = Plan::of(&older, &params, height, root).unwrap();
    let empty = Grown::new::<H>(&State::new());
    let empty_plan = Plan::of(&empty, &params, height, empty.root()).unwrap();
    let chunk = |plan: &Plan, version: &Grown, index: u32| json!({ "name": plan.name(index).to_string(), "bytes": hex::encode(plan.body(version, index).unwrap()) });
    let delta =
        Delta::between(chain_id, H::KIND, (&older, (height, root)), (&later, (Height(9), later.root()))).unwrap();
    json!({
        "root": root.to_string(),
        "weight": WEIGHT,
        "hash": snapshot_hash(&params, height, root).to_string(),
        "metadata": hex::encode(plan.metadata().to_bytes()),
        "pages": plan.pages(),
        "chunks": (0..plan.chunks()).map(|index| chunk(&plan, &older, index)).collect::<Vec<_>>(),
        "chunk 0 in its wire form, not compressed": hex::encode(pack(&plan.body(&older, 0).unwrap(), 0).unwrap()),
        "the only chunk of an empty state": chunk(&empty_plan, &empty, 0),
        "delta to height 9": hex::encode(delta.to_bytes()),
    })
}

/// spec: SNAP-1, SNAP-2, SNAP-3, SNAP-4, SNAP-5, SNAP-6, SNAP-7, SNAP-17. The bytes are those that were released; change
/// them only with the format.
#[test]
fn golden_bytes_have_not_changed() {
    golden::check("snapshot.json", &json!({ "blake3": found::<Blake3>(), "sha256": found::<Sha256>() }));
}

#[test]
fn golden_bytes_read_back() {
    let found = found::<Blake3>();
    let bytes = |name: &str| hex::decode(found[name].as_str().unwrap()).unwrap();
    let metadata = Metadata::from_bytes(&bytes("metadata")).unwrap();
    assert_eq!((metadata.height, metadata.pages > 1), (Height(7), true));
    let delta = Delta::from_bytes(&bytes("delta to height 9")).unwrap();
    assert_eq!((delta.from.0, delta.to.0), (Height(7), Height(9)));
}
