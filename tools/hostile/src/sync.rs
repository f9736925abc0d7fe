//! Snapshots, deltas and the messages of peers as strangers would send them.

use crate::tree::{KNOWN, name};
use crate::{Target, canonical};
use keelstone_codec::{
    Blob, BoundedList, BoundedSet, ChainId, Decode, Encode, Hash, Height, Key, Namespace, Root, Text, Timestamp, Value,
};
use keelstone_sync::consistency::Cursor;
use keelstone_sync::delta::{ApplyError, Delta, DeltaError};
use keelstone_sync::mirror::Head;
use keelstone_sync::peers::{Frame, HeightDiff, Heights, Request, Response, Status, Version as At, Why};
use keelstone_sync::recovery::{Attempt, Depth, Report, SignedReport, Strategy, Trust};
use keelstone_sync::snapshot::{Metadata, PartOf, Plan, Skeleton, SnapshotParams, pack, unpack};
use keelstone_tree::{Blake3, Grown, HashKind};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::LazyLock;

type State = BTreeMap<Namespace, BTreeMap<Key, Value>>;

fn chain() -> ChainId {
    ChainId::new("hostile-1").expect("a name of our own")
}

/// The known state's snapshot: several pages, units of entries and of namespaces.
struct Snapshot {
    plan: Plan,
    chunks: Vec<Vec<u8>>,
    skeleton: Skeleton<Blake3>,
}

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let version = &KNOWN.tree;
    let params = SnapshotParams { chain_id: chain(), hasher: HashKind::Blake3, chunk_weight_max: 1600 };
    let plan = Plan::of(version, &params, Height(5), KNOWN.tree.root()).expect("all is in memory");
    let chunks: Vec<Vec<u8>> =
        (0..plan.chunks()).map(|index| plan.body(version, index).expect("all is in memory")).collect();
    let mut skeleton = Skeleton::new(plan.root(), plan.metadata());
    for page in &chunks[..plan.pages() as usize] {
        skeleton.add_page(page).expect("an honest page");
    }
    Snapshot { plan, chunks, skeleton }
});

pub(crate) const METADATA: Target = Target { name: "snapshot_metadata", run: metadata, seeds: metadata_seeds };

fn metadata(input: &[u8]) -> bool {
    canonical::<Metadata>(input).is_some()
}

fn metadata_seeds() -> Vec<Vec<u8>> {
    vec![SNAPSHOT.plan.metadata().to_bytes()]
}

pub(crate) const PAGE: Target = Target { name: "snapshot_page", run: page, seeds: pages };

/// A page, taken for each that could come next: none but the honest one is.
fn page(input: &[u8]) -> bool {
    let mut skeleton = Skeleton::<Blake3>::new(SNAPSHOT.plan.root(), SNAPSHOT.plan.metadata());
    let mut taken = false;
    for honest in &SNAPSHOT.chunks[..SNAPSHOT.plan.pages() as usize] {
        if skeleton.clone().add_page(input).is_ok() {
            assert_eq!(input, honest, "a page that is not the known state's");
            taken = true;
        }
        skeleton.add_page(honest).expect("a refused page leaves no trace");
    }
    taken
}

fn pages() -> Vec<Vec<u8>> {
    SNAPSHOT.chunks[..SNAPSHOT.plan.pages() as usize].to_vec()
}

pub(crate) const CHUNK: Target = Target { name: "snapshot_chunk", run: chunk, seeds: chunks };

/// A chunk behind its number: whatever is taken is the honest one, and says no more than its totals.
fn chunk(input: &[u8]) -> bool {
    let Some((index, raw)) = input.split_first() else { return false };
    let Ok(checked) = SNAPSHOT.skeleton.check(u32::from(*index), raw) else { return false };
    assert_eq!(raw, SNAPSHOT.chunks[usize::from(*index)], "a chunk that is not the known state's");
    let mut count = 0;
    let all = checked.entries(|namespace, key, value| {
        assert_eq!(KNOWN.state[namespace][key].as_slice(), value);
        count += 1;
        Ok::<_, Infallible>(())
    });
    all.expect("nothing refuses");
    assert_eq!(count, checked.totals().count);
    true
}

fn chunks() -> Vec<Vec<u8>> {
    (0..).zip(&SNAPSHOT.chunks).map(|(index, raw)| [&[index], raw.as_slice()].concat()).collect()
}

pub(crate) const WIRE: Target = Target { name: "snapshot_wire", run: wire, seeds: wires };

const RAW_MAX: u32 = 1 << 20;

/// What unpacks is within its limit and packs again.
fn wire(input: &[u8]) -> bool {
    let Ok(raw) = unpack(input, RAW_MAX) else { return false };
    assert!(raw.len() <= RAW_MAX as usize, "beyond the cap");
    let again = pack(&raw, 1).expect("a small chunk");
    assert_eq!(unpack(&again, RAW_MAX).as_ref(), Ok(&raw));
    true
}

fn wires() -> Vec<Vec<u8>> {
    let text = b"currency.balances:".repeat(200);
    [0, 1, 9].map(|level| pack(&text, level).expect("a small chunk")).to_vec()
}

pub(crate) const MIRROR: Target = Target { name: "mirror_head", run: mirror, seeds: mirrors };

/// What a mirror says of itself has one encoding.
fn mirror(input: &[u8]) -> bool {
    canonical::<Head>(input).is_some()
}

fn mirrors() -> Vec<Vec<u8>> {
    let part = PartOf { namespace: Namespace::new("n1").expect("a name"), prefix: b"ab".to_vec() };
    let head = |certificate: &[u8], part| {
        Head { height: Height(5), certificate: Blob::new(certificate).expect("short"), part }.to_bytes()
    };
    vec![head(b"", None), head(b"certificate", None), head(b"", Some(part))]
}

pub(crate) const DELTA: Target = Target { name: "delta", run: delta, seeds: deltas };

/// The known state with something added, changed and taken away.
fn later() -> State {
    let mut later = KNOWN.state.clone();
    let value = |byte| Value::new(vec![byte; 3]).expect("not empty");
    let key = Key::new([7, 7]).expect("two bytes");
    later.entry(name("new")).or_default().insert(key.clone(), value(1));
    later.entry(name("social")).or_default().insert(key, value(2));
    later.remove(&name("memes"));
    later
}

fn root_of(state: &State) -> Root {
    Grown::new::<Blake3>(state).root()
}

/// A delta that says it leads from the known state to a later one: whatever comes to that root is that state.
fn delta(input: &[u8]) -> bool {
    let Some(delta) = canonical::<Delta>(input) else { return false };
    let later = later();
    let mut found = State::new();
    let all = delta.entries(&KNOWN.tree, |namespace, key, value| {
        let value = Value::new(value.to_vec()).expect("values are not empty");
        found.entry(namespace.clone()).or_default().insert(key.clone(), value);
        Ok::<_, Infallible>(())
    });
    match all {
        Ok(()) if root_of(&found) == root_of(&later) => assert_eq!(found, later),
        Ok(()) | Err(ApplyError::Delta(DeltaError::NoChange { .. })) => {}
        Err(error) => panic!("a delta over a state in memory fails with {error}"),
    }
    true
}

fn deltas() -> Vec<Vec<u8>> {
    let (older, later) = (&KNOWN.tree, Grown::new::<Blake3>(&later()));
    let (from, to) = ((Height(5), older.root()), (Height(9), later.root()));
    let delta = Delta::between(chain(), HashKind::Blake3, (older, from), (&later, to));
    let delta = delta.expect("all is in memory");
    assert_eq!(Delta::from_bytes(&delta.to_bytes()).as_ref(), Ok(&delta));
    vec![delta.to_bytes()]
}

pub(crate) const PEER_REQUEST: Target = Target { name: "peer_request", run: request, seeds: requests };
pub(crate) const PEER_RESPONSE: Target = Target { name: "peer_response", run: response, seeds: responses };

fn request(input: &[u8]) -> bool {
    canonical::<Frame<Request>>(input).is_some()
}

fn response(input: &[u8]) -> bool {
    canonical::<Frame<Response>>(input).is_some()
}

fn at() -> At {
    At { height: Height(5), root: KNOWN.tree.root() }
}

fn requests() -> Vec<Vec<u8>> {
    let heights = Heights::new(Height(1), Height(5)).expect("it ends where it begins or later");
    let (namespace, key) = (name("social"), Key::new([7]).expect("a byte"));
    let units = BoundedSet::new([0, 1, 5]).expect("three units");
    let start = Blob::new([1]).expect("a byte");
    let bodies = [
        Request::Status,
        Request::GetHeader { at: at(), heights },
        Request::GetNodes { at: at(), page: 1 },
        Request::GetChunks { at: at(), units },
        Request::GetDiffs { heights },
        Request::GetRange { at: at(), namespace: namespace.clone(), start, end: None },
        Request::GetRootAt { height: Height(5) },
        Request::GetEntry { at: at(), namespace, key },
        Request::GetCertificate,
        Request::GetBlocks { heights },
        Request::Announce { certificate: Blob::new([7]).expect("a byte") },
    ];
    bodies.into_iter().map(|body| Frame { id: 1, body }.to_bytes()).collect()
}

fn responses() -> Vec<Vec<u8>> {
    let status = Status {
        chain_id: chain(),
        hasher: HashKind::Blake3,
        chunk_weight_max: 400,
        newest: at(),
        oldest: Height(2),
        diffs_from: Height(2),
    };
    let wire = Blob::new(pack(&SNAPSHOT.chunks[0], 1).expect("a small page")).expect("a small page");
    let proof = Blob::new([0]).expect("a byte");
    let changes = [(name("new"), Key::new([7]).expect("a byte"), Value::new(vec![1]).ok())];
    let diffs = vec![HeightDiff { height: Height(5), diff: changes.into_iter().collect() }];
    let bodies = [
        Response::Status(status),
        Response::Header(proof.clone()),
        Response::Nodes(wire.clone()),
        Response::Chunks { units: 2, wire },
        Response::Diffs(BoundedList::new(diffs).expect("one height")),
        Response::Range { next: Key::new([7]).ok(), proof: proof.clone() },
        Response::RootAt(at()),
        Response::Entry(proof),
        Response::Certificate(Blob::new([7]).expect("a byte")),
        Response::Unavailable(Why::NotKept),
        Response::Busy { retry_after_ms: 5 },
        Response::Blocks(BoundedList::new(vec![Blob::new([7]).expect("a byte"); 2]).expect("two heights")),
        Response::Heard,
    ];
    bodies.into_iter().map(|body| Frame { id: 1, body }.to_bytes()).collect()
}

pub(crate) const CHECK_CURSOR: Target = Target { name: "check_cursor", run: cursor, seeds: cursors };

fn cursor(input: &[u8]) -> bool {
    canonical::<Cursor>(input).is_some()
}

fn cursors() -> Vec<Vec<u8>> {
    let next = Some((name("social"), Key::new([7]).expect("a byte")));
    [Cursor::default(), Cursor { passes: 3, entries: 70, next }].map(|cursor| cursor.to_bytes()).to_vec()
}

pub(crate) const RECOVERY_REPORT: Target = Target { name: "recovery_report", run: report, seeds: reports };

fn report(input: &[u8]) -> bool {
    canonical::<SignedReport>(input).is_some()
}

fn reports() -> Vec<Vec<u8>> {
    let failed = Text::new("the disk is full").expect("a short text");
    let attempts = vec![
        Attempt { strategy: Strategy::LocalSnapshot, failed: Some(failed), entries: 0, blocks: 0 },
        Attempt { strategy: Strategy::BlockReplay, failed: None, entries: 70, blocks: 5 },
    ];
    let report = Report {
        version: Report::VERSION,
        chain_id: chain(),
        genesis_hash: Hash([1; 32]),
        began: Timestamp(5),
        ended: Timestamp(9),
        height: Height(5),
        root: KNOWN.tree.root(),
        trust: Trust::Consensus,
        depth: Depth::Full,
        attempts: BoundedList::new(attempts).expect("two"),
    };
    vec![SignedReport { report, key: Hash([2; 32]), signature: [3; 64] }.to_bytes()]
}
