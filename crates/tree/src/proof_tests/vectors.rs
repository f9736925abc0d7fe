//! Golden proofs: `spec/vectors/proof.json` pins their bytes. `KEELSTONE_BLESS=1` writes it anew.

use super::*;
use crate::ics23::prove_ics23;
use ::ics23::commitment_proof::Proof as Kind;
use serde_json::{Map, Value as Json, json};

/// One state, with prefixes of prefixes and three namespaces, and the questions whose proofs are pinned.
fn golden_state() -> State {
    state(&[
        ("a", &[0], b"zero"),
        ("a", &[0, 0], b"zeros"),
        ("a", b"k", b"v"),
        ("a", b"key", b"value"),
        ("a", &[0xff; 32], b"all ones"),
        ("b.c", b"only", &[0x5a; 100]),
        ("b_d", b"x", b"y"),
    ])
}

fn questions() -> Vec<(&'static str, Vec<Query>)> {
    let a = ns("a");
    vec![
        ("nothing", vec![]),
        ("present", vec![Query::Key(a.clone(), key(b"key"))]),
        ("absent", vec![Query::Key(a.clone(), key(b"kez"))]),
        ("absent namespace", vec![Query::Key(ns("b"), key(b"key"))]),
        ("write", vec![Query::Write(a.clone(), key(&[0, 0]))]),
        ("range", vec![Query::Range(a.clone(), KeyRange::between(b"k", b"l"))]),
        ("prefix", vec![Query::Prefix(a.clone(), vec![0])]),
        ("prefix totals", vec![Query::PrefixTotals(a.clone(), b"k".to_vec())]),
        ("namespace", vec![Query::Namespace(ns("b.c"))]),
        ("namespaces", vec![Query::Namespaces]),
        ("keys of two namespaces", vec![Query::Key(a, key(b"k")), Query::Key(ns("b_d"), key(b"x"))]),
    ]
}

fn steps(proof: &::ics23::ExistenceProof) -> Json {
    let path = proof.path.iter().map(|step| json!([hex::encode(&step.prefix), hex::encode(&step.suffix)]));
    json!({
        "key": hex::encode(&proof.key),
        "value": hex::encode(&proof.value),
        "leaf prefix": hex::encode(&proof.leaf.as_ref().unwrap().prefix),
        "path": path.collect::<Vec<_>>(),
    })
}

fn golden<H: Hasher>() -> Json {
    let state = golden_state();
    let tree = Grown::new::<H>(&state);
    assert_eq!(tree.root(), reference_root::<H>(&state));
    let mut proofs = Map::new();
    for (name, queries) in questions() {
        let bytes = prove(&tree, &queries).unwrap().encode();
        assert!(verify::<H>(&bytes, tree.root(), &queries).is_ok());
        proofs.insert(name.to_owned(), hex::encode(bytes).into());
    }
    let mut converted = Map::new();
    for (name, space, k) in
        [("present", "a", b"k".as_slice()), ("absent", "a", b"kez"), ("absent namespace", "b", b"k")]
    {
        let proof = prove_ics23::<H, _>(&tree, &ns(space), &key(k)).unwrap();
        let levels = proof.proofs.iter().map(|proof| match proof.proof.as_ref().unwrap() {
            Kind::Exist(exist) => json!({ "exist": steps(exist) }),
            Kind::Nonexist(absence) => json!({
                "left": absence.left.as_ref().map(steps),
                "right": absence.right.as_ref().map(steps),
            }),
            other => panic!("not a plain proof: {other:?}"),
        });
        converted.insert(name.to_owned(), levels.collect());
    }
    // A diff that adds, changes, deletes, empties a namespace and founds another.
    let diff: Diff = [
        (ns("a"), key(&[0]), None),
        (ns("a"), key(b"k"), Some(value(b"w"))),
        (ns("a"), key(b"l"), Some(value(b"new"))),
        (ns("b_d"), key(b"x"), None),
        (ns("z"), key(b"first"), Some(value(b"entry"))),
    ]
    .into_iter()
    .collect();
    let witness = verified::<H>(&state, &diff.queries());
    json!({
        "root": tree.root().to_string(),
        "proofs": proofs,
        "ics23": converted,
        "witness": {
            "proof": hex::encode(witness.proof().as_bytes()),
            "diff": hex::encode(keelstone_codec::Encode::to_bytes(&diff)),
            "new root": witness.apply(&diff).unwrap().to_string(),
        },
    })
}

/// spec: TREE-7, TREE-11, TREE-13
#[test]
fn golden_proofs_have_not_changed() {
    let state = golden_state();
    let entries = state.iter().flat_map(|(name, entries)| {
        let entry = move |(key, value): (&Key, &Value)| json!([name.as_str(), hex::encode(key), hex::encode(value)]);
        entries.iter().map(entry).collect::<Vec<_>>()
    });
    let found = json!({
        "state": entries.collect::<Vec<_>>(),
        "blake3": golden::<Blake3>(),
        "sha256": golden::<Sha256>(),
    });
    ::golden::check("proof.json", &found);
}
