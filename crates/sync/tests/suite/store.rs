//! Snapshots and deltas of a real store: however its state came about, and while it goes on.

use keelstone_codec::{ChainId, Encode, Height, Key, Namespace, Value};
use keelstone_store::files::MemoryFiles;
use keelstone_store::{Options, Store, View};
use keelstone_sync::delta::Delta;
use keelstone_sync::snapshot::{
    ChunkVerdict, FORMAT, Offer, OfferVerdict, Plan, Restore, RestoreLimits, SnapshotParams, pack, snapshot_hash,
};
use keelstone_tree::{Blake3, Diff, HashKind, KeyRange, Read};
use std::sync::Arc;

const WEIGHT: u32 = 2000;

fn params() -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("test-1").unwrap(), hasher: HashKind::Blake3, chunk_weight_max: WEIGHT }
}

fn options() -> Options {
    Options { segment_bytes: 1 << 20, page_segment_bytes: 1 << 20, background: false, ..Options::default() }
}

/// What one of many writes leaves: keys come again, some go, and namespaces are of very different sizes.
fn write(number: u32, round: u32) -> (Namespace, Key, Option<Value>) {
    let hash = HashKind::Blake3.hash(&number.to_le_bytes());
    let name = format!("n{}", u32::from(hash.0[0]).pow(2) / 8192);
    let value = (!(number + round).is_multiple_of(7)).then(|| vec![hash.0[4]; 1 + (number + round) as usize % 120]);
    let key = Key::new(&hash.0[1..3 + usize::from(hash.0[3] % 20)]).unwrap();
    (Namespace::new(&name).unwrap(), key, value.map(|value| Value::new(value).unwrap()))
}

/// Commits `rounds` rounds of writes in blocks of `per_block` writes, up to a height all histories can reach.
fn grown(store: &Store<Blake3>, per_block: u32, to: Height) {
    let all: Vec<_> = (0..3u32).flat_map(|round| (0..1500).map(move |number| write(number, round))).collect();
    let mut height = Height(0);
    for block in all.chunks(per_block as usize) {
        height = height.next();
        store.commit(height, block.iter().cloned().collect()).unwrap();
    }
    while height < to {
        height = height.next();
        store.commit(height, Diff::default()).unwrap();
    }
}

fn chunks(view: &View<Blake3>, height: Height) -> (Plan, Vec<Vec<u8>>) {
    let plan = Plan::of(view, &params(), height, view.root()).unwrap();
    let chunks = (0..plan.chunks()).map(|index| plan.body(view, index).unwrap()).collect();
    (plan, chunks)
}

fn offer(plan: &Plan) -> Offer {
    let metadata = plan.metadata();
    Offer {
        height: metadata.height.0,
        format: FORMAT,
        chunks: metadata.chunks,
        hash: snapshot_hash(&params(), metadata.height, plan.root()).as_bytes().to_vec(),
        metadata: metadata.to_bytes(),
    }
}

/// SS-51, D-02: stores of one state have one snapshot, every byte of it, whatever blocks they committed and however
/// often they flushed, compacted, were opened again or are themselves restored.
#[test]
fn ss51_stores_of_one_state_have_one_snapshot() {
    let end = Height(90);
    let plain = Store::<Blake3>::create(Arc::new(MemoryFiles::new()), options()).unwrap();
    grown(&plain, 50, end);
    let (plan, expected) = chunks(&plain.view(), end);
    assert!(plan.pages() > 1 && plan.chunks() > 20);

    let files = MemoryFiles::new();
    let other = Store::<Blake3>::create(Arc::new(files.clone()), options()).unwrap();
    grown(&other, 997, end);
    other.flush().unwrap();
    other.compact(&mut |_| {}).unwrap();
    other.close().unwrap();
    // Most of its pages are on the disk now.
    let cold = Options { cache_bytes: 1 << 16, ..options() };
    let other = Store::<Blake3>::open(Arc::new(files), cold).unwrap();
    assert_eq!(chunks(&other.view(), end).1, expected);

    let mut restore =
        Restore::<Blake3>::open(Arc::new(MemoryFiles::new()), params(), RestoreLimits::default()).unwrap();
    assert_eq!(restore.offer(&offer(&plan), plan.root().as_bytes()), OfferVerdict::Accept);
    for (index, raw) in (0..).zip(&expected) {
        assert_eq!(restore.apply(index, &pack(raw, 1).unwrap(), "peer"), ChunkVerdict::Accept);
    }
    let mut building = Store::<Blake3>::build(Arc::new(MemoryFiles::new()), options(), end).unwrap();
    restore.entries(|namespace, key, value| building.push(namespace, key, value)).unwrap();
    let restored = building.finish(plan.root()).unwrap();
    assert_eq!(chunks(&restored.view(), end).1, expected);
    // It goes on from there like any other.
    let next: Diff = [write(1, 9), write(5000, 9)].into_iter().collect();
    assert_eq!(restored.commit(end.next(), next.clone()).unwrap(), plain.commit(end.next(), next).unwrap());
}

/// SS-49: blocks committed while a snapshot is read are not in it.
#[test]
fn ss49_blocks_committed_meanwhile_are_not_in_the_snapshot() {
    let store = Store::<Blake3>::create(Arc::new(MemoryFiles::new()), options()).unwrap();
    grown(&store, 300, Height(15));
    let view = store.view();
    let (plan, expected) = chunks(&view, Height(15));
    for index in 0..plan.chunks() {
        let height = Height(16 + u64::from(index));
        store.commit(height, (0..40).map(|number| write(number * 31 + index, index)).collect()).unwrap();
        store.prune(height).unwrap();
        assert_eq!(plan.body(&view, index).unwrap(), expected[index as usize], "chunk {index}");
    }
    assert_ne!(store.view().root(), plan.root());
}

/// spec: SNAP-17. The delta between two retained heights is what their blocks left, without what they took back, and
/// turns the one state into the other.
#[test]
fn a_delta_between_heights_is_what_their_blocks_left() {
    let store = Store::<Blake3>::create(Arc::new(MemoryFiles::new()), options()).unwrap();
    grown(&store, 100, Height(45));
    for (from, to) in [(1, 45), (10, 11), (20, 40), (44, 45)] {
        let [from, to] = [from, to].map(Height);
        let (older, later) = (store.view_at(from).unwrap(), store.view_at(to).unwrap());
        let ends = ((from, older.root()), (to, later.root()));
        let chain = params().chain_id;
        let delta = Delta::between(chain.clone(), HashKind::Blake3, (&older, ends.0), (&later, ends.1)).unwrap();
        delta.check(&chain, HashKind::Blake3, ends.0, ends.1).unwrap();

        let blocks = (from.0 + 1..=to.0).map(|height| store.diff_at(Height(height)).unwrap().diff());
        let all = blocks.fold(Diff::default(), Diff::then);
        for (namespace, write) in all.iter() {
            let old = older.get(namespace, &write.key).unwrap();
            match delta.diff.find(namespace, &write.key) {
                Some(found) => assert_eq!(found, write),
                None => assert_eq!(old, write.value, "{namespace}/{:?} is taken back or never was", write.key),
            }
        }
        assert!(delta.diff.iter().all(|(namespace, write)| all.find(namespace, &write.key).is_some()));

        let mut building = Store::<Blake3>::build(Arc::new(MemoryFiles::new()), options(), to).unwrap();
        delta.entries(&older, |namespace, key, value| building.push(namespace, key, value)).unwrap();
        let built = building.finish(later.root()).unwrap();
        for (name, _) in later.namespaces() {
            let entries =
                |view: &View<Blake3>| view.scan(&name, KeyRange::all()).map(Result::unwrap).collect::<Vec<_>>();
            assert_eq!(entries(&built.view()), entries(&later));
        }
    }
}
