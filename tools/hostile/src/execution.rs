//! Bundles as clients send them, and sessions as the state holds them.

use crate::{Target, canonical};
use keelstone_codec::{Blob, BoundedList, BoundedSet, ChainId, Encode, Hash, Height, Key, Namespace, StateHash, Value};
use keelstone_execution::bundles::{Before, BundleRecord, Changer, Piece, Status, StopReason, Writer, Written};
use keelstone_execution::{
    Batching, Bundle, BundleId, Capabilities, Capability, FunctionHash, Mode, Operation, PublicKey, Session, SessionId,
};

pub(crate) const BUNDLE: Target = Target { name: "bundle", run: bundle, seeds: bundles };

fn bundle(input: &[u8]) -> bool {
    let Some(bundle) = canonical::<Bundle>(input) else { return canonical::<Operation>(input).is_some() };
    let (mode, operations) = (bundle.mode().clone(), bundle.operations().to_vec());
    assert_eq!(Bundle::new(mode, operations).as_ref(), Ok(&bundle), "an accepted bundle breaks its own rule");
    true
}

fn bundles() -> Vec<Vec<u8>> {
    let plain = Operation {
        function: FunctionHash::of("social.form_alliance", 1),
        args: Blob::new(*b"arguments").expect("short"),
        expected_diff: None,
        expected_own_diff: None,
    };
    let expecting =
        Operation { expected_own_diff: Some(Hash([2; 32])), ..plain.clone() }.expecting(StateHash::default());
    let bundle = |mode, operations| Bundle::new(mode, operations).expect("one or two operations").to_bytes();
    let borders = BoundedSet::new([1]).expect("one");
    let batches = Mode::Async(Batching { hold: true, borders, ..Batching::until(Height(9)) });
    vec![
        plain.to_bytes(),
        bundle(Mode::Sync, vec![plain.clone(), expecting.clone()]),
        bundle(batches, vec![plain, expecting]),
    ]
}

pub(crate) const IN_FLIGHT: Target = Target { name: "in_flight", run: in_flight, seeds: in_flights };

/// What the state holds of bundles in flight.
fn in_flight(input: &[u8]) -> bool {
    let record = canonical::<BundleRecord>(input).is_some();
    let (piece, before) = (canonical::<Piece>(input).is_some(), canonical::<Before>(input).is_some());
    canonical::<Written>(input).is_some() || record || piece || before
}

fn in_flights() -> Vec<Vec<u8>> {
    let (owner, session) = (PublicKey(Hash([7; 32])), SessionId(Hash([8; 32])));
    let record = BundleRecord {
        owner,
        session,
        status: Status::Stopped(StopReason::Expired),
        current_operation: 1,
        total_operations: 2,
        state_hash: StateHash::default(),
        operations: Hash([3; 32]),
        revision: 0,
        hold: false,
        piece: 0,
        bytes: 90,
        room: 900,
        undo_entries: 1,
        undo_bytes: 150,
        submitted: Height(4),
        last_height: Height(9),
        updated: Height(5),
    };
    let (namespace, key) = (Namespace::new("bank").expect("a name"), Key::new(*b"k").expect("one byte"));
    let before = Before { namespace, key, value: Some(Value::new(vec![1]).expect("one byte")) };
    let changed = Some(Changer { height: Height(6), bundle: Some(BundleId(Hash([2; 32]))) });
    let bundle = BundleId(Hash([1; 32]));
    let writer = Writer { bundle, entry: 0, after: Some(Hash([9; 32])), hold: false, changed, overlaid: false };
    let written = Written { writers: BoundedList::new(vec![writer]).expect("one") };
    let operation = Operation {
        function: FunctionHash::of("social.form_alliance", 1),
        args: Blob::new(*b"arguments").expect("short"),
        expected_diff: None,
        expected_own_diff: None,
    };
    let piece = Piece { borders: vec![1], operations: vec![operation] };
    vec![record.to_bytes(), before.to_bytes(), written.to_bytes(), piece.to_bytes()]
}

pub(crate) const SESSION: Target = Target { name: "session", run: session, seeds: sessions };

fn session(input: &[u8]) -> bool {
    canonical::<Session>(input).is_some()
}

fn sessions() -> Vec<Vec<u8>> {
    let chain = ChainId::new("Test-1").expect("a chain id");
    let root = Session::root(&chain, PublicKey(Hash([7; 32])));
    let capabilities = Capabilities::only([Capability::new("ally"), Capability::new("post")]).expect("two");
    let other = Session { capabilities, expires: Some(Height(9)), closed: true, ..root.clone() };
    vec![root.to_bytes(), other.to_bytes()]
}
