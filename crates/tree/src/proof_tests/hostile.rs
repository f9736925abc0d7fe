//! Bytes and proofs made to do harm.

use super::*;
use crate::{Answer, Branch, Opened, RangeAnswer, Read, ReadError, Walk};
use keelstone_codec::{DecodeError, Hash, put_varint};

fn refused(bytes: &[u8]) -> ProofError {
    Proof::decode(bytes).expect_err("these bytes are no proof")
}

fn small() -> State {
    state(&[("a", b"k", b"v1"), ("a", b"kk", b"v2"), ("a", b"q", b"v3"), ("b", b"k", b"v4"), ("c", b"k", b"v5")])
}

fn sent(state: &State, queries: &[Query]) -> (Vec<u8>, Root) {
    let tree = Grown::new::<Blake3>(state);
    (prove(&tree, queries).unwrap().encode(), tree.root())
}

#[test]
fn p01_empty_tiny_and_huge_input_is_refused_before_any_hashing() {
    assert!(matches!(refused(&[]), ProofError::Malformed(DecodeError::Truncated { .. })));
    assert!(matches!(refused(&[0]), ProofError::Malformed(DecodeError::Truncated { .. })));
    let huge = vec![0xff; 10_000_000];
    assert_eq!(refused(&huge), ProofError::TooLarge { what: "bytes", found: 10_000_000, limit: 9 << 20 });
    // Inner nodes for ever: 10 MB are refused by their size alone, 9 MB by the number of nodes.
    let endless: Vec<u8> = [0].into_iter().chain([1, 9, 1, 2, 1, 2].into_iter().cycle()).take(10_000_000).collect();
    assert!(matches!(refused(&endless), ProofError::TooLarge { what: "bytes", .. }));
    assert!(matches!(refused(&endless[..9_000_000]), ProofError::TooLarge { what: "nodes", .. }));
}

#[test]
fn p02_bytes_behind_a_proof_are_refused() {
    let (mut bytes, _) = sent(&small(), &[Query::Key(ns("a"), key(b"k"))]);
    bytes.push(0);
    assert_eq!(refused(&bytes), ProofError::Malformed(DecodeError::Trailing { left: 1 }));
    for end in 0..bytes.len() - 1 {
        assert!(matches!(refused(&bytes[..end]), ProofError::Malformed(DecodeError::Truncated { .. })), "cut at {end}");
    }
}

/// spec: TREE-7. An inner node says which one child is opaque; with both or neither there is no way to write it.
#[test]
fn p04_an_inner_node_with_both_children_opaque_cannot_be_written() {
    let opaque = [&[0u8], [7; 32].as_slice()].concat();
    let inner = |tag: u8| [0, tag, 9, 1, 2, 1, 2];
    for tag in 1..=3 {
        let hash = if tag == 1 { vec![] } else { vec![7; 32] };
        let bytes = [inner(tag).as_slice(), &hash, &opaque, &opaque].concat();
        assert!(matches!(refused(&bytes), ProofError::Malformed(DecodeError::Invalid { .. })), "tag {tag}");
    }
}

#[test]
fn p05_a_leaf_cannot_stand_for_an_inner_node_nor_the_reverse() {
    // A value that is the two hashes of an inner node, under any key and length, is still hashed as a leaf.
    let other = small();
    let tree = Grown::new::<Blake3>(&other);
    let hashes = match tree.open(&tree.top().unwrap().unwrap().node).unwrap() {
        Opened::Inner { left, right, .. } => [left.hash.0, right.hash.0].concat(),
        other => panic!("three namespaces have an inner node: {other:?}"),
    };
    let state = state(&[("a", b"k", &hashes), ("a", b"m", b"v")]);
    let queries = [Query::Key(ns("a"), key(b"k"))];
    let (bytes, root) = sent(&state, &queries);
    assert_eq!(verify::<Blake3>(&bytes, root, &queries).unwrap().get(&ns("a"), b"k"), Answer::Present(value(&hashes)));
    // Every node written as every other kind.
    for at in 0..bytes.len() {
        for tag in (0..=8).filter(|tag| *tag != bytes[at]) {
            let mut forged = bytes.clone();
            forged[at] = tag;
            assert!(verify::<Blake3>(&forged, root, &queries).is_err(), "byte {at} as {tag}");
        }
    }
    // An entry where a namespace belongs, and a namespace among entries.
    let leaf = [0, 4, 1, b'k', 1, b'v'];
    assert!(matches!(refused(&leaf), ProofError::Malformed(DecodeError::Invalid { .. })));
    let nested = [&[0, 6, 1, b'a', 1, 2, 6, 1, b'a', 1, 2, 0], [7; 32].as_slice()].concat();
    assert!(matches!(refused(&nested), ProofError::Malformed(DecodeError::Invalid { .. })));
}

/// spec: TREE-12
#[test]
fn p07_depth_is_bounded_before_hashing_and_2000_honest_levels_verify() {
    // Critical bits must grow and stay below nine a byte, so 10,000 levels cannot be written; nothing recurses.
    let mut bytes = vec![0, 6, 1, b'a', 1, 2];
    for level in 0..10_000u64 {
        bytes.push(3);
        put_varint(&mut bytes, 1 + level % 9 * 250);
        bytes.extend([1, 2, 1, 2]);
        bytes.extend([7; 32]);
    }
    bytes.extend([4, 1, b'k', 1, b'v']);
    let found = Proof::decode(&bytes).unwrap().verify::<Blake3>(Root(Hash::ZERO), &[], &ProofLimits::default());
    let refused = found.unwrap_err();
    assert!(matches!(refused, ProofError::CriticalBit { .. } | ProofError::Sums { .. }), "{refused}");

    let state = comb(2000);
    let spine = key(&[0; 255]);
    for queries in [
        vec![Query::Key(ns("comb"), spine.clone())],
        vec![Query::Range(ns("comb"), KeyRange::all())],
        vec![Query::PrefixTotals(ns("comb"), vec![0; 200])],
    ] {
        let state = state.clone();
        let spine = spine.clone();
        let run = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            let witness = verified::<Blake3>(&state, &queries);
            if !matches!(queries[0], Query::PrefixTotals(..)) {
                assert_eq!(witness.get(&ns("comb"), &spine), Answer::Present(value(b"spine")));
            }
            let delete: Diff = [(ns("comb"), spine.clone(), None)].into_iter().collect();
            let mut new = state.clone();
            apply_plainly(&mut new, &delete);
            if let Ok(root) = witness.apply(&delete) {
                assert_eq!(root, Grown::new::<Blake3>(&new).root());
            }
        });
        run.unwrap().join().expect("deep proofs need little stack");
    }
}

#[test]
fn p09_a_proof_of_another_key_height_or_store_is_refused_and_says_what_differs() {
    let asked = [Query::Key(ns("a"), key(b"k"))];
    let (bytes, root) = sent(&small(), &asked);
    let mut later = small();
    later.get_mut(&ns("c")).unwrap().insert(key(b"k"), value(b"v6"));
    let newer = Grown::new::<Blake3>(&later).root();
    let found = verify::<Blake3>(&bytes, newer, &asked).unwrap_err();
    assert_eq!(found, ProofError::WrongRoot { expected: newer, found: root });
    assert!(found.to_string().contains(&root.to_string()) && found.to_string().contains(&newer.to_string()));
    // The same under the other hasher: another store altogether.
    assert!(matches!(verify::<Sha256>(&bytes, root, &asked), Err(ProofError::WrongRoot { .. })));
    // Another key: what is shown was not asked for, and what was asked for is not shown.
    for other in [Query::Key(ns("a"), key(b"q")), Query::Key(ns("b"), key(b"k")), Query::Write(ns("a"), key(b"k"))] {
        let found = verify::<Blake3>(&bytes, root, &[other]).unwrap_err();
        assert!(matches!(found, ProofError::Bloated { .. }), "{found}");
    }
    let unasked = Proof::decode(&bytes).unwrap().verify_unasked::<Blake3>(root, &ProofLimits::default()).unwrap();
    assert_eq!(unasked.get(&ns("a"), b"q"), Answer::Unknown);
    assert_eq!(unasked.get(&ns("b"), b"k"), Answer::Unknown);
}

#[test]
fn p10_empty_and_overlong_keys_and_values_are_refused() {
    let entry = |body: &[u8]| [&[0, 6, 1, b'a', 1, 2], body].concat();
    assert!(Proof::decode(&entry(&[4, 1, b'k', 1, b'v'])).is_ok());
    for body in [
        [&[4, 0, 1], b"v".as_slice()].concat(),
        [&[5, 0, 1], [7; 32].as_slice()].concat(),
        [&[4, 1, b'k', 0], b"".as_slice()].concat(),
        [&[5, 1, b'k', 0], [7; 32].as_slice()].concat(),
    ] {
        assert!(matches!(refused(&entry(&body)), ProofError::Malformed(DecodeError::Invalid { .. })));
    }
    let long_key = [&[4, 0x80, 2], [b'k'; 256].as_slice(), &[1, b'v']].concat();
    let long_value = [&[5, 1, b'k', 0x81, 0x80, 0x80, 4], [7; 32].as_slice()].concat();
    for body in [long_key, long_value] {
        assert!(matches!(refused(&entry(&body)), ProofError::Malformed(DecodeError::TooLarge { .. })));
    }
    // An absent key and a key with some value are different answers; an empty value does not exist.
    let verified = verified::<Blake3>(&small(), &[Query::Key(ns("a"), key(b"j"))]);
    assert_eq!(verified.get(&ns("a"), b"j"), Answer::Absent);
    assert_eq!(verified.get(&ns("a"), b""), Answer::Absent);
    assert!(Key::new(Vec::new()).is_err() && Key::new(vec![0; 256]).is_err() && Value::new(Vec::new()).is_err());
}

#[test]
fn p12_lengths_that_lie_are_refused_without_reserving_memory() {
    let entry = |body: &[u8]| [&[0, 6, 1, b'a', 1, 2], body].concat();
    let lengths: [&[u8]; 6] = [
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0x80, 0x00],
        &[0x81, 0x00],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    ];
    for length in lengths {
        for body in [
            [&[4], length, b"k"].concat(),
            [&[4, 1, b'k'], length, b"v"].concat(),
            [&[5, 1, b'k'], length, &[7; 32]].concat(),
            [&[1], length, &[1, 2, 1, 2]].concat(),
        ] {
            assert!(Proof::decode(&entry(&body)).is_err(), "{length:?} in {body:?}");
        }
        assert!(Proof::decode(&[&[0, 6], length, b"a"].concat()).is_err());
    }
    // A long but true length with nothing behind it.
    let absent = entry(&[4, 1, b'k', 0x80, 0x80, 0x80, 4]);
    assert!(matches!(refused(&absent), ProofError::Malformed(DecodeError::Truncated { .. })));
}

/// spec: TREE-14. Two namespaces with equal entries have equal roots and are two places: what is shown of one says
/// nothing of the other, and a write to one leaves the other as it was.
#[test]
fn equal_subtrees_in_two_namespaces_are_two_places() {
    let both = state(&[("a", b"k", b"v"), ("a", b"m", b"v"), ("b", b"k", b"v"), ("b", b"m", b"v")]);
    let queries = [Query::Write(ns("a"), key(b"k")), Query::Namespaces];
    let witness = verified::<Blake3>(&both, &queries);
    let [a, b] = ["a", "b"].map(|name| witness.namespace(&ns(name)));
    assert!(a == b && a != Answer::Unknown);
    assert_eq!(witness.value_len(&ns("a"), b"k"), Answer::Present(1));
    assert_eq!(witness.value_len(&ns("b"), b"k"), Answer::Unknown);
    let delete: Diff = [(ns("a"), key(b"k"), None)].into_iter().collect();
    let mut new = both.clone();
    apply_plainly(&mut new, &delete);
    assert_eq!(witness.apply(&delete), Ok(reference_root::<Blake3>(&new)));
}

#[test]
fn n01_a_node_that_is_not_its_hash_is_refused() {
    let asked = [Query::Key(ns("a"), key(b"k"))];
    let (bytes, root) = sent(&small(), &asked);
    let value_at = bytes.windows(2).position(|two| two == b"v1").unwrap();
    let mut other = bytes.clone();
    other[value_at] = b'w';
    assert!(matches!(verify::<Blake3>(&other, root, &asked), Err(ProofError::WrongRoot { .. })));
}

#[test]
fn n03_unknown_formats_and_nodes_say_what_is_known() {
    let (mut bytes, _) = sent(&small(), &[Query::Namespaces]);
    bytes[0] = 9;
    assert_eq!(refused(&bytes), ProofError::Unsupported { what: "proof format", found: 9, known: 0 });
    assert_eq!(refused(&[0, 8]), ProofError::Unsupported { what: "proof node", found: 8, known: 7 });
}

/// A tree in which some nodes cannot be read.
struct Holed<'t>(&'t Grown, u32);

impl Walk for Holed<'_> {
    type Node = u32;
    fn top(&self) -> Result<Option<Branch<u32>>, ReadError> {
        self.0.top()
    }
    fn open<'n>(&'n self, node: &'n u32) -> Result<Opened<'n, u32>, ReadError> {
        if *node == self.1 { Err(ReadError::damaged("a hole")) } else { self.0.open(node) }
    }
    fn value(&self, node: &u32) -> Result<Value, ReadError> {
        if *node == self.1 { Err(ReadError::damaged("a hole")) } else { self.0.value(node) }
    }
}

/// spec: TREE-9
#[test]
fn n04_a_node_that_is_missing_is_never_an_absence() {
    let tree = Grown::new::<Blake3>(&small());
    let queries = [Query::Range(ns("a"), KeyRange::all()), Query::Key(ns("zz"), key(b"k"))];
    let complete = prove(&tree, &queries).unwrap().encode();
    let mut failed = 0;
    for hole in 0..16 {
        match prove(&Holed(&tree, hole), &queries) {
            Ok(proof) => assert_eq!(proof.encode(), complete),
            Err(error) => {
                assert!(matches!(error, ReadError::Damaged { .. }));
                failed += 1;
            }
        }
    }
    assert!(failed > 4, "{failed}");
    // In a proof: what is not shown is unknown, and reading it is an error.
    let witness = verified::<Blake3>(&small(), &[Query::Key(ns("a"), key(b"k"))]);
    assert_eq!(witness.get(&ns("a"), b"q"), Answer::Unknown);
    let range = witness.range(&ns("a"), &KeyRange::all());
    assert_eq!(range, RangeAnswer::Incomplete { shown: vec![(key(b"k"), value(b"v1"))], unknown: b"k\0".to_vec() });
    let read = Read::get(&witness, &ns("a"), b"q");
    assert!(matches!(read, Err(ReadError::Incomplete { key, .. }) if key == b"q"));
    assert_eq!(witness.namespaces(), None);
}

/// Every byte of a valid proof, changed to any other value, makes it refused.
#[test]
fn every_single_byte_change_of_a_proof_is_refused() {
    fn check<H: Hasher>(state: &State, queries: &[Query]) {
        let tree = Grown::new::<H>(state);
        let bytes = prove(&tree, queries).unwrap().encode();
        assert!(verify::<H>(&bytes, tree.root(), queries).is_ok());
        for at in 0..bytes.len() {
            for change in 1..=255u8 {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                // Refused by the bytes alone, before a question is looked at.
                let verdict = Proof::decode(&changed)
                    .and_then(|proof| proof.verify_unasked::<H>(tree.root(), &ProofLimits::default()));
                assert!(verdict.is_err(), "{queries:?}: byte {at} of {} ^ {change:02x}", bytes.len());
            }
        }
    }
    let state = small();
    for queries in [
        vec![Query::Key(ns("a"), key(b"kk"))],
        vec![Query::Key(ns("a"), key(b"absent"))],
        vec![Query::Key(ns("absent"), key(b"k"))],
        vec![Query::Write(ns("a"), key(b"q")), Query::Write(ns("b"), key(b"k"))],
        vec![Query::Range(ns("a"), KeyRange::all()), Query::Namespaces],
        vec![Query::PrefixTotals(ns("a"), b"k".to_vec())],
        vec![],
    ] {
        check::<Blake3>(&state, &queries);
        check::<Sha256>(&state, &queries);
        check::<Blake3>(&State::new(), &queries);
    }
}

/// Reads arbitrary bytes as a proof and, if they are one, verifies it under the root it leads to, asks it questions and
/// applies a diff. Nothing of it may panic.
fn fuzz_proof(bytes: &[u8]) {
    type H = crate::Blake3;
    let limits = ProofLimits { bytes: 1 << 20, nodes: 1 << 14 };
    let Ok(proof) = Proof::decode_within(bytes, &limits) else { return };
    assert_eq!(proof.as_bytes(), bytes, "one encoding");
    let root = match proof.clone().verify_unasked::<H>(Root(Hash::ZERO), &limits) {
        Err(ProofError::WrongRoot { found, .. }) => found,
        Err(_) => return,
        Ok(_) => unreachable!("nothing hashes to zeros"),
    };
    let Ok(verified) = proof.clone().verify_unasked::<H>(root, &limits) else { return };
    let names: Vec<Namespace> = ["a", "b", "zz"].iter().map(|name| ns(name)).collect();
    for name in &names {
        for key in [b"k".as_slice(), b"", b"\0\0", &[0xff; 255]] {
            let _ = (verified.get(name, key), verified.value_len(name, key), verified.prefix_totals(name, key));
            let _ = (verified.prefix(name, key), verified.range(name, &KeyRange::from(key).reversed()));
            let Ok(key) = Key::new(key) else { continue };
            let _ = proof.clone().verify::<H>(root, &[Query::Key(name.clone(), key.clone())], &limits);
            let _ = crate::ics23::convert(&verified, name, &key);
            for value in [None, Value::new(b"v".as_slice()).ok()] {
                let _ = verified.apply(&[(name.clone(), key.clone(), value)].into_iter().collect());
            }
        }
        let _ = verified.namespace(name);
    }
    let _ = verified.namespaces();
}

/// Whatever the bytes, reading, verifying, asking and applying end in an answer or an error.
#[test]
fn arbitrary_and_mutated_bytes_never_panic() {
    use proptest::test_runner::{Config, TestRunner};
    let valid: Vec<Vec<u8>> = [
        vec![Query::Range(ns("a"), KeyRange::all())],
        vec![Query::Key(ns("a"), key(b"x")), Query::Key(ns("b"), key(b"k"))],
        vec![Query::Namespaces],
    ]
    .iter()
    .map(|queries| sent(&small(), queries).0)
    .collect();
    let strategy = (
        proptest::sample::select(valid),
        proptest::collection::vec((proptest::arbitrary::any::<proptest::sample::Index>(), 0u8..=255), 0..4),
    );
    let mut runner = TestRunner::new(Config::with_cases(cases(3_000)));
    let run = runner.run(&strategy, |(mut bytes, changes)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz_proof(&bytes);
        Ok(())
    });
    run.unwrap();
    runner
        .run(&proptest::collection::vec(0u8..10, 0..80), |bytes| {
            fuzz_proof(&bytes);
            Ok(())
        })
        .unwrap();
}
