//! Links, digests and identities: their bytes, and that no two things share them.

use crate::common::*;
use keelstone_codec::{Encode, Hash, Height, Key, StateHash, Value};
use keelstone_execution::bundles::{
    Before, BundleId, BundleRecord, Changer, Piece, Status, StopReason, Writer, Written, key_hash,
};
use keelstone_execution::{
    Batching, Bundle, Change, Changes, Failure, FunctionHash, Link, Mode, Operation, PublicKey, Registry, SessionId,
    When, args_hash, first_link, result_hash, rollback_link, value_hash,
};
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;

fn hash(byte: u8) -> Hash {
    Hash([byte; 32])
}

/// H-01: two operations are not one with the concatenated bytes; an operation without arguments still moves the chain.
#[test]
fn h01_operations_do_not_run_together() {
    let echo = |bytes: &[u8]| op(&Echo { bytes: bytes.to_vec() });
    let last =
        |operations: Vec<Operation>| run(&State::new(), operations).0.unwrap().outcomes.last().unwrap().state_hash;
    let states = [
        last(vec![echo(b"ab"), echo(b"c")]),
        last(vec![echo(b"a"), echo(b"bc")]),
        last(vec![echo(b"abc")]),
        last(vec![echo(b"abc"), op(&Nothing)]),
        last(vec![op(&Nothing), echo(b"abc")]),
        last(vec![op(&Nothing)]),
        last(vec![op(&Nothing), op(&Nothing)]),
        first_link(&chain_id(), &SessionId::root(&chain_id(), &key(1)), &StateHash::default()),
    ];
    assert_eq!(BTreeSet::from(states).len(), states.len());
    // The same bytes as arguments and as a result are two hashes, and so are they as a value.
    let shared = [args_hash(b"x"), result_hash(b"x"), value_hash(&Value::new(&b"x"[..]).unwrap())];
    assert_eq!(BTreeSet::from(shared).len(), 3);
}

/// H-03: a hundred thousand pairs that differ in one interior byte, anywhere in what a link commits to.
#[test]
fn h03_one_interior_byte_changes_the_link() {
    let chain_id = chain_id();
    let link_of = |fields: &[[u8; 32]; 6], sequence: u64| {
        let [session, previous, function, args, result, diff] = fields.map(Hash);
        Link {
            chain_id: &chain_id,
            session: SessionId(session),
            sequence,
            previous: StateHash(previous),
            function: FunctionHash(function),
            args,
            result,
            diff,
        }
        .state_hash()
    };
    // A small generator, so that a failure can be repeated: xorshift with a fixed seed.
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..100_000u32 {
        let mut fields = [[0u8; 32]; 6];
        for byte in fields.iter_mut().flatten() {
            *byte = draw().to_le_bytes()[3];
        }
        let sequence = draw();
        let (field, place) = ((draw() % 6) as usize, 1 + (draw() % 30) as usize);
        let flip = (draw() % 255) as u8 + 1;
        let mut other = fields;
        other[field][place] ^= flip;
        assert_ne!(link_of(&fields, sequence), link_of(&other, sequence), "round {round}");
        let mut args = draw().to_le_bytes().to_vec();
        args.extend(draw().to_le_bytes());
        let whole = args_hash(&args);
        args[place % 14 + 1] ^= flip;
        assert_ne!(whole, args_hash(&args), "round {round}");
    }
}

fn samples() -> Vec<(&'static str, &'static str, Json, String)> {
    let chain_id = chain_id();
    let session = SessionId(hash(1));
    let link = Link {
        chain_id: &chain_id,
        session,
        sequence: 5,
        previous: StateHash(hash(2)),
        function: FunctionHash::of("bank.mint", 1),
        args: args_hash(b"args"),
        result: result_hash(b"result"),
        diff: hash(3),
    };
    let value = |text: &str| Some(Value::new(text.as_bytes().to_vec()).unwrap());
    let change = |namespace: &str, key: &str, before, after| {
        (space(namespace), Key::new(key.as_bytes()).unwrap(), Change { before, after })
    };
    let changes: Changes = [
        change("bank", "a", None, value("1")),
        change("bank", "b", value("1"), value("22")),
        change("social", "c", value("3"), None),
    ]
    .into_iter()
    .collect();
    let summary = |changes: &Changes| hex(&changes.summary().to_bytes());
    let operation = Operation {
        function: FunctionHash::of("bank.echo", 1),
        args: keelstone_codec::Blob::new(vec![1, 2, 3]).unwrap(),
        expected_diff: Some(StateHash(hash(4))),
        expected_own_diff: None,
    };
    let of = |parts: Json| parts;
    vec![
        ("EXEC-1", "first link", of(json!({"chain_id": "test-1", "session": session, "init": hash(9)})), {
            first_link(&chain_id, &session, &StateHash(hash(9))).to_string()
        }),
        (
            "EXEC-1",
            "link",
            json!({
                "chain_id": "test-1", "session": session, "sequence": 5, "previous": hash(2),
                "function": link.function, "args_bytes": hex(b"args"), "result_bytes": hex(b"result"), "diff": hash(3),
            }),
            link.state_hash().to_string(),
        ),
        ("EXEC-1", "args hash", json!({"bytes": hex(b"args")}), args_hash(b"args").to_string()),
        ("EXEC-1", "result hash", json!({"bytes": hex(b"result")}), result_hash(b"result").to_string()),
        ("EXEC-3", "value hash", json!({"bytes": hex(b"22")}), {
            value_hash(&Value::new(&b"22"[..]).unwrap()).to_string()
        }),
        ("EXEC-3", "summary of no change", json!({"changes": []}), summary(&Changes::default())),
        (
            "EXEC-3",
            "summary",
            json!({"changes": [
                {"namespace": "bank", "key": "a", "before": null, "after": "1"},
                {"namespace": "bank", "key": "b", "before": "1", "after": "22"},
                {"namespace": "social", "key": "c", "before": "3", "after": null},
            ]}),
            summary(&changes),
        ),
        ("EXEC-11", "rollback link", json!({"previous": hash(2), "bundle": hash(5), "restoring": hash(6)}), {
            rollback_link(&StateHash(hash(2)), &hash(5), &hash(6)).to_string()
        }),
        ("EXEC-19", "function hash", json!({"name": "bank.mint", "version": 1}), {
            FunctionHash::of("bank.mint", 1).to_string()
        }),
        (
            "EXEC-19",
            "operation",
            json!({"function": "bank.echo/1", "args": "010203", "expected_diff": hash(4), "expected_own_diff": null}),
            hex(&operation.to_bytes()),
        ),
        ("EXEC-19", "bundle", json!({"mode": "sync", "operations": ["the operation above, twice"]}), {
            hex(&bundle(vec![operation.clone(), operation.clone()]).to_bytes())
        }),
        (
            "EXEC-19",
            "async bundle",
            json!({"last_height": 9, "hold": true, "borders": [1], "operations": ["the operation above, twice"]}),
            hex(&Bundle::new(batching(), vec![operation.clone(), operation.clone()]).unwrap().to_bytes()),
        ),
        ("EXEC-19", "operation in its list", json!({"operation": "the operation above"}), {
            operation.list_hash().to_string()
        }),
        ("EXEC-20", "root session", json!({"chain_id": "test-1", "owner": key(7)}), {
            SessionId::root(&chain_id, &key(7)).to_string()
        }),
        ("EXEC-20", "child session", json!({"chain_id": "test-1", "parent": session, "sequence": 5}), {
            SessionId::child(&chain_id, &session, 5).to_string()
        }),
        ("EXEC-20", "record of a root session", json!({"chain_id": "test-1", "owner": key(7)}), {
            hex(&keelstone_execution::Session::root(&chain_id, key(7)).to_bytes())
        }),
        ("EXEC-21", "written key", json!({"namespace": "bank", "key": "a"}), {
            key_hash(&space("bank"), &Key::new(*b"a").unwrap()).to_string()
        }),
        ("EXEC-21", "record of a running bundle", json!({"numbers": "1 to 11, in order"}), {
            hex(&record(Status::Running).to_bytes())
        }),
        ("EXEC-21", "record of a bundle past its last height", json!({}), {
            hex(&record(Status::Stopped(StopReason::Expired)).to_bytes())
        }),
        ("EXEC-21", "record of a bundle that failed", json!({"operation": 2, "code": 3, "reason": "no"}), {
            let (function, reason) = (FunctionHash::of("bank.echo", 1), keelstone_codec::Text::new("no").unwrap());
            let failure = Failure { operation: 2, function, code: 3, expected: Some(hash(1)), actual: None, reason };
            hex(&record(Status::Stopped(StopReason::Failed(failure))).to_bytes())
        }),
        ("EXEC-21", "piece", json!({"borders": [1], "operations": ["the operation above, twice"]}), {
            hex(&Piece { borders: vec![1], operations: vec![operation.clone(), operation] }.to_bytes())
        }),
        ("EXEC-21", "before", json!({"namespace": "bank", "key": "a", "value": "1"}), {
            let key = Key::new(*b"a").unwrap();
            hex(&Before { namespace: space("bank"), key, value: value("1") }.to_bytes())
        }),
        ("EXEC-21", "written", json!({"bundle": hash(8), "changed": {"height": 3, "bundle": hash(9)}}), {
            let changed = Some(Changer { height: Height(3), bundle: Some(BundleId(hash(9))) });
            let (after, bundle) = (Some(hash(2)), BundleId(hash(8)));
            let writer = Writer { bundle, entry: 4, after, hold: false, changed, overlaid: true };
            let writers = keelstone_codec::BoundedList::new(vec![writer]).unwrap();
            hex(&Written { writers }.to_bytes())
        }),
        (
            "EXEC-22",
            "interface",
            json!({"functions": "those of bundles alone"}),
            Registry::new().interface().to_string(),
        ),
        ("EXEC-23", "begin block", json!({}), When::BeginBlock.bundle().to_string()),
        ("EXEC-23", "end block", json!({}), When::EndBlock.bundle().to_string()),
        ("EXEC-25", "before a transaction", json!({}), When::BeforeTransaction.bundle().to_string()),
        ("EXEC-25", "after a transaction", json!({}), When::AfterTransaction.bundle().to_string()),
        (
            "EXEC-25",
            "the chain's session for an account",
            json!({"chain_id": "test-1", "account": key(7)}),
            SessionId::of_hooks(&chain_id, &key(7)).to_string(),
        ),
        (
            "EXEC-23",
            "the chain's session",
            json!({"chain_id": "test-1"}),
            SessionId::root(&chain_id, &PublicKey::CHAIN).to_string(),
        ),
    ]
}

fn batching() -> Mode {
    let borders = keelstone_codec::BoundedSet::new([1]).unwrap();
    Mode::Async(Batching { hold: true, borders, ..Batching::until(Height(9)) })
}

fn record(status: Status) -> BundleRecord {
    BundleRecord {
        owner: key(7),
        session: SessionId::root(&chain_id(), &key(7)),
        status,
        current_operation: 1,
        total_operations: 2,
        state_hash: StateHash(hash(3)),
        operations: hash(4),
        revision: 3,
        hold: true,
        piece: 4,
        bytes: 5,
        room: 6,
        undo_entries: 7,
        undo_bytes: 8,
        submitted: Height(9),
        last_height: Height(10),
        updated: Height(11),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of `spec/vectors/chain.json` (spec: EXEC-1, EXEC-3, EXEC-11, EXEC-19, EXEC-20, EXEC-21, EXEC-22, EXEC-23). Written anew only
/// with `KEELSTONE_BLESS=1`.
#[test]
fn bytes_are_those_of_the_golden_vectors() {
    let found = json!({
        "chain": samples().into_iter().map(|(rule, what, input, output)| {
            json!({"rule": rule, "what": what, "input": input, "output": output})
        }).collect::<Vec<_>>()
    });
    golden::check("chain.json", &found);
}
