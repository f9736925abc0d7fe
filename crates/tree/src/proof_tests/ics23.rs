//! ICS-23 conversion against the real `ics23` crate: both hashers, both levels, and the known forgeries.

use super::*;
use crate::Level;
use crate::ics23::{ConvertError, Ics23Proof, RefuseError, convert, prove_ics23, spec, verify_absent, verify_present};
use ::ics23::commitment_proof::Proof as Kind;
use ::ics23::{
    CommitmentProof, ExistenceProof, HostFunctionsManager, InnerOp, LeafOp, calculate_existence_root,
    verify_membership, verify_non_membership,
};
use proptest::prelude::*;

/// What another chain does: it knows the two specs and the state root, and nothing of this crate.
mod elsewhere {
    use super::*;

    pub(super) fn present<H: Hasher>(
        proof: &Ics23Proof,
        root: Root,
        name: &Namespace,
        key: &[u8],
        value: &[u8],
    ) -> bool {
        let [entry, namespace] = proof.proofs.as_slice() else { return false };
        let Some(Kind::Exist(exist)) = &entry.proof else { return false };
        let Ok(inside) = calculate_existence_root::<HostFunctionsManager>(exist) else { return false };
        let specs = [Level::Entries, Level::Namespaces].map(|level| spec(H::KIND, level));
        verify_membership::<HostFunctionsManager>(entry, &specs[0], &inside, key, value)
            && verify_membership::<HostFunctionsManager>(
                namespace,
                &specs[1],
                &root.0.0.to_vec(),
                name.as_bytes(),
                &inside,
            )
    }

    pub(super) fn absent<H: Hasher>(proof: &Ics23Proof, root: Root, name: &Namespace, key: &[u8]) -> bool {
        let specs = [Level::Entries, Level::Namespaces].map(|level| spec(H::KIND, level));
        let root = root.0.0.to_vec();
        match proof.proofs.as_slice() {
            [namespace] => verify_non_membership::<HostFunctionsManager>(namespace, &specs[1], &root, name.as_bytes()),
            [entry, namespace] => {
                let Some(Kind::Exist(exist)) = &namespace.proof else { return false };
                let inside = exist.value.clone();
                verify_non_membership::<HostFunctionsManager>(entry, &specs[0], &inside, key)
                    && verify_membership::<HostFunctionsManager>(namespace, &specs[1], &root, name.as_bytes(), &inside)
            }
            _ => false,
        }
    }
}

fn made<H: Hasher>(state: &State, name: &str, k: &[u8]) -> (Ics23Proof, Root) {
    let tree = Grown::new::<H>(state);
    (prove_ics23::<H, _>(&tree, &ns(name), &key(k)).unwrap(), tree.root())
}

fn exist_of(proof: &mut CommitmentProof) -> &mut ExistenceProof {
    match &mut proof.proof {
        Some(Kind::Exist(exist)) => exist,
        other => panic!("not an existence proof: {other:?}"),
    }
}

fn neighbours_of(proof: &mut CommitmentProof) -> [&mut Option<ExistenceProof>; 2] {
    match &mut proof.proof {
        Some(Kind::Nonexist(absence)) => [&mut absence.left, &mut absence.right],
        other => panic!("not an absence proof: {other:?}"),
    }
}

fn agrees<H: Hasher>(state: &State, name: &Namespace, k: &Key) {
    let tree = Grown::new::<H>(state);
    let root = tree.root();
    let proof = prove_ics23::<H, _>(&tree, name, k).unwrap();
    match state.get(name).and_then(|entries| entries.get(k)) {
        Some(value) => {
            assert_eq!(verify_present::<H>(&proof, root, name, k, value), Ok(()));
            assert!(elsewhere::present::<H>(&proof, root, name, k, value));
            assert!(verify_absent::<H>(&proof, root, name, k).is_err());
            assert!(verify_present::<H>(&proof, root, name, k, b"another value").is_err());
        }
        None => {
            assert_eq!(verify_absent::<H>(&proof, root, name, k), Ok(()), "{state:?} {name} {k:?}");
            assert!(elsewhere::absent::<H>(&proof, root, name, k));
            assert!(verify_present::<H>(&proof, root, name, k, b"v").is_err());
            assert_eq!(proof.proofs.len(), 1 + usize::from(state.contains_key(name)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(150)))]

    /// spec: TREE-13. Presence and absence at both levels under both hashers, for random states.
    #[test]
    fn the_ics23_crate_agrees_with_the_model(
        entries in prop::collection::vec((0..4usize, prop::collection::vec(any::<u8>(), 1..3)), 1..30),
        asked in prop::collection::vec((0..6usize, prop::collection::vec(any::<u8>(), 1..3)), 6),
    ) {
        let names = ["a", "ab", "b", "c", "aa", "d"];
        let mut state = State::new();
        for (name, k) in &entries {
            state.entry(ns(names[*name])).or_default().insert(key(k), value(b"v"));
        }
        for (name, k) in entries.iter().take(6).chain(&asked) {
            agrees::<Blake3>(&state, &ns(names[*name]), &key(k));
            agrees::<Sha256>(&state, &ns(names[*name]), &key(k));
        }
    }
}

/// spec: TREE-13
#[test]
fn an_absence_from_the_empty_state_cannot_be_converted() {
    let tree = Grown::new::<Blake3>(&State::new());
    let found = prove_ics23::<Blake3, _>(&tree, &ns("a"), &key(b"k"));
    assert!(matches!(found, Err(ConvertError::EmptyState)));
    let verified = verified::<Blake3>(&State::new(), &[Query::Key(ns("a"), key(b"k"))]);
    assert!(matches!(convert(&verified, &ns("a"), &key(b"k")), Err(ConvertError::EmptyState)));
}

/// spec: TREE-13. A proof made for our own verifier shows no values of neighbours: that is an error, not a bad proof.
#[test]
fn an_absence_without_its_neighbours_values_cannot_be_converted() {
    let state = state(&[("a", b"k", b"v"), ("a", b"m", b"v")]);
    let verified = verified::<Blake3>(&state, &[Query::Key(ns("a"), key(b"l"))]);
    assert!(matches!(convert(&verified, &ns("a"), &key(b"l")), Err(ConvertError::Incomplete { .. })));
    let present = super::verified::<Blake3>(&state, &[Query::Key(ns("a"), key(b"k"))]);
    let proof = convert(&present, &ns("a"), &key(b"k")).unwrap();
    assert_eq!(verify_present::<Blake3>(&proof, present.root(), &ns("a"), b"k", b"v"), Ok(()));
}

fn key_shift<H: Hasher>() {
    // With a leaf of tag, length, raw key and H(value), this key under a prefix longer by its beginning would have
    // "proven" the victim's key under the same root, with a value the forger chose.
    let victim = b"currency.balances:mallory".as_slice();
    let evil = [b"con_evil.d:\x19".as_slice(), victim].concat();
    let state = state(&[("contracts", &evil, b"1000000"), ("contracts", b"other", b"v")]);
    let (honest, root) = made::<H>(&state, "contracts", &evil);
    assert!(elsewhere::present::<H>(&honest, root, &ns("contracts"), &evil, b"1000000"));
    let head = exist_of(&mut honest.proofs[0].clone()).leaf.clone().unwrap().prefix;
    let shifts = [
        head.clone(),
        [head.as_slice(), b"con_evil.d:\x19"].concat(),
        [&[1u8], evil.as_slice()].concat(),
        [head.as_slice(), &H::hash(&evil).0].concat(),
        [head.as_slice(), &H::hash(&evil).0, &H::hash(b"1000000").0].concat(),
        vec![1],
        vec![],
    ];
    for prefix in shifts {
        let mut forged = honest.clone();
        let exist = exist_of(&mut forged.proofs[0]);
        exist.key = victim.to_vec();
        exist.leaf.as_mut().unwrap().prefix = prefix;
        assert!(!elsewhere::present::<H>(&forged, root, &ns("contracts"), victim, b"1000000"));
        assert!(verify_present::<H>(&forged, root, &ns("contracts"), victim, b"1000000").is_err());
    }
}

/// spec: TREE-4, TREE-13. The ics23 crate alone refuses it: its leaf has nothing to shift.
#[test]
fn p13_a_key_shifted_into_the_leaf_prefix_does_not_verify() {
    key_shift::<Blake3>();
    key_shift::<Sha256>();
}

/// spec: TREE-1. One-byte keys and values beside the absent key, on every side; empty values never get in.
#[test]
fn p14_absence_beside_a_one_byte_neighbour_is_provable() {
    for present in [b"k".as_slice(), b"m", b"l\0"] {
        let state = state(&[("a", present, b"\0")]);
        agrees::<Blake3>(&state, &ns("a"), &key(b"l"));
        agrees::<Sha256>(&state, &ns("a"), &key(b"l"));
    }
    let between = state(&[("a", b"\x01", b"x"), ("a", b"\x02", b"y"), ("a", b"\x04", b"z"), ("c", b"k", b"v")]);
    for absent in [b"\0".as_slice(), b"\x03", b"\x01\0", b"\xff"] {
        agrees::<Blake3>(&between, &ns("a"), &key(absent));
    }
    for name in ["a0", "b", "z", "-"] {
        agrees::<Sha256>(&between, &ns(name), &key(b"k"));
    }
    assert!(Value::new(Vec::new()).is_err());
}

fn deep<H: Hasher>() {
    let state = comb(2000);
    let tree = Grown::new::<H>(&state);
    let spine = [0u8; 255];
    let proof = prove_ics23::<H, _>(&tree, &ns("comb"), &key(&spine)).unwrap();
    let depth = exist_of(&mut proof.proofs[0].clone()).path.len();
    assert_eq!(depth, 2000);
    assert!(elsewhere::present::<H>(&proof, tree.root(), &ns("comb"), &spine, b"spine"));
    assert_eq!(verify_present::<H>(&proof, tree.root(), &ns("comb"), &spine, b"spine"), Ok(()));
    // Absent right beside the end of the spine: both neighbours are at its depth.
    let beside = [0u8; 240];
    let absence = prove_ics23::<H, _>(&tree, &ns("comb"), &key(&beside)).unwrap();
    assert!(elsewhere::absent::<H>(&absence, tree.root(), &ns("comb"), &beside));
    assert_eq!(verify_absent::<H>(&absence, tree.root(), &ns("comb"), &beside), Ok(()));
}

/// spec: TREE-12, TREE-13
#[test]
fn a_path_of_2000_levels_verifies_in_the_ics23_crate() {
    deep::<Blake3>();
    deep::<Sha256>();
}

/// spec: TREE-12. The crate looks at no depth when the least is 0, so this is ours to refuse, before any hash.
#[test]
fn p07_a_deeper_path_than_its_key_allows_is_refused_unhashed() {
    let state = state(&[("a", b"k", b"v"), ("a", b"m", b"v")]);
    let (honest, root) = made::<Blake3>(&state, "a", b"k");
    let mut deeper = honest.clone();
    let exist = exist_of(&mut deeper.proofs[0]);
    let step = exist.path[0].clone();
    exist.path = vec![step; 10_000];
    let name = ns("a");
    let refused = verify_present::<Blake3>(&deeper, root, &name, b"k", b"v");
    assert_eq!(refused, Err(RefuseError::TooDeep { found: 10_000, limit: 9 }));
    let mut absence = made::<Blake3>(&state, "a", b"l").0;
    for side in neighbours_of(&mut absence.proofs[0]) {
        let exist = side.as_mut().unwrap();
        exist.path = vec![exist.path[0].clone(); 10];
    }
    let refused = verify_absent::<Blake3>(&absence, root, &name, b"l");
    assert_eq!(refused, Err(RefuseError::TooDeep { found: 10, limit: 9 }));
}

/// spec: TREE-13
#[test]
fn p06_prefixes_and_suffixes_of_other_lengths_are_refused() {
    let state = state(&[("a", b"k", b"v"), ("a", b"m", b"v"), ("b", b"k", b"v")]);
    let (honest, root) = made::<Blake3>(&state, "a", b"k");
    let refused = |spoil: &dyn Fn(&mut ExistenceProof)| {
        for level in [0, 1] {
            let mut forged = honest.clone();
            spoil(exist_of(&mut forged.proofs[level]));
            assert_ne!(forged, honest);
            assert!(verify_present::<Blake3>(&forged, root, &ns("a"), b"k", b"v").is_err());
            assert!(!elsewhere::present::<Blake3>(&forged, root, &ns("a"), b"k", b"v"));
        }
    };
    refused(&|exist| exist.path[0].prefix.push(0));
    refused(&|exist| exist.path[0].suffix.push(0));
    refused(&|exist| exist.path[0].prefix.truncate(63));
    refused(&|exist| exist.path[0].suffix.clear());
    // The child hidden in the prefix: the step then hashes to the same node, whatever comes below.
    refused(&|exist| {
        let step = &mut exist.path[0];
        step.prefix = [step.prefix.as_slice(), &[0; 32]].concat();
        step.suffix.clear();
    });
    refused(&|exist| exist.path.insert(0, InnerOp::default()));
    refused(&|exist| exist.leaf = None);
    refused(&|exist| exist.leaf = Some(LeafOp::default()));
    refused(&|exist| exist.leaf.as_mut().unwrap().prefix.push(0));
    refused(&|exist| exist.leaf.as_mut().unwrap().length = 1);
    refused(&|exist| exist.leaf.as_mut().unwrap().prehash_key = 0);
    refused(&|exist| exist.leaf.as_mut().unwrap().prehash_value = 0);
}

/// spec: TREE-13. Every neighbour trick, with and without our own checks before the crate.
#[test]
fn p08_absence_with_the_wrong_neighbours_is_refused() {
    let state = state(&[
        ("a", b"d", b"1"),
        ("a", b"h", b"2"),
        ("a", b"l", b"3"),
        ("a", b"p", b"4"),
        ("b", b"d", b"1"),
        ("b", b"z", b"1"),
    ]);
    let tree = Grown::new::<Blake3>(&state);
    let root = tree.root();
    let exist = |name: &str, k: &[u8]| {
        let mut proof = prove_ics23::<Blake3, _>(&tree, &ns(name), &key(k)).unwrap();
        exist_of(&mut proof.proofs[0]).clone()
    };
    let honest = made::<Blake3>(&state, "a", b"j").0;
    assert_eq!(verify_absent::<Blake3>(&honest, root, &ns("a"), b"j"), Ok(()));
    let with = |left: Option<ExistenceProof>, right: Option<ExistenceProof>, asked: &[u8]| {
        let mut forged = honest.clone();
        let [l, r] = neighbours_of(&mut forged.proofs[0]);
        (*l, *r) = (left, right);
        // All else is as it should be.
        if let Some(Kind::Nonexist(absence)) = &mut forged.proofs[0].proof {
            absence.key = asked.to_vec();
        }
        verify_absent::<Blake3>(&forged, root, &ns("a"), asked)
    };
    let (d, h, l, p) = (exist("a", b"d"), exist("a", b"h"), exist("a", b"l"), exist("a", b"p"));
    assert_eq!(with(Some(h.clone()), Some(l.clone()), b"j"), Ok(()));
    // Not adjacent, so that a key between them goes unmentioned; the key itself as a neighbour.
    assert!(with(Some(d.clone()), Some(l.clone()), b"h").is_err());
    assert!(with(Some(d.clone()), Some(p.clone()), b"j").is_err());
    assert!(with(Some(h.clone()), Some(l.clone()), b"h").is_err());
    assert!(with(Some(h.clone()), Some(l.clone()), b"l").is_err());
    // Swapped, equal, one-sided where there is another side, none at all.
    assert!(with(Some(l.clone()), Some(h.clone()), b"j").is_err());
    assert!(with(Some(h.clone()), Some(h.clone()), b"j").is_err());
    assert!(with(Some(h.clone()), None, b"j").is_err());
    assert!(with(None, Some(l.clone()), b"j").is_err());
    assert!(with(None, None, b"j").is_err());
    // The edges of the tree, honestly and not.
    assert_eq!(with(None, Some(d), b"a"), Ok(()));
    assert_eq!(with(Some(p), None, b"z"), Ok(()));
    assert!(with(None, Some(h), b"a").is_err());
    assert!(with(Some(l), None, b"z").is_err());
    // Another namespace's edge, which would prove a present key absent.
    assert!(with(Some(exist("b", b"d")), Some(exist("b", b"z")), b"h").is_err());
    // A path that ends where the other goes on: the crate alone would panic.
    let mut short = exist("a", b"h");
    short.path.clear();
    assert!(with(Some(short), Some(exist("a", b"l")), b"j").is_err());
}

/// spec: TREE-13
#[test]
fn p09_a_proof_for_another_key_or_root_is_refused_in_ics23_too() {
    let old = state(&[("a", b"k", b"v"), ("a", b"m", b"v")]);
    let new = state(&[("a", b"k", b"v"), ("a", b"m", b"w")]);
    let (proof, root) = made::<Blake3>(&old, "a", b"k");
    let (_, other) = made::<Blake3>(&new, "a", b"k");
    assert_eq!(verify_present::<Blake3>(&proof, root, &ns("a"), b"k", b"v"), Ok(()));
    assert!(verify_present::<Blake3>(&proof, other, &ns("a"), b"k", b"v").is_err());
    assert!(verify_present::<Blake3>(&proof, root, &ns("a"), b"m", b"v").is_err());
    assert!(verify_present::<Blake3>(&proof, root, &ns("b"), b"k", b"v").is_err());
    assert!(verify_present::<Blake3>(&proof, root, &ns("a"), b"k", b"").is_err());
    assert!(verify_present::<Sha256>(&proof, root, &ns("a"), b"k", b"v").is_err());
    let empty = Ics23Proof { proofs: vec![] };
    assert!(verify_present::<Blake3>(&empty, root, &ns("a"), b"k", b"v").is_err());
    assert!(verify_absent::<Blake3>(&empty, root, &ns("a"), b"k").is_err());
    let unset = Ics23Proof { proofs: vec![CommitmentProof { proof: None }; 2] };
    assert!(verify_present::<Blake3>(&unset, root, &ns("a"), b"k", b"v").is_err());
    assert!(verify_absent::<Blake3>(&unset, root, &ns("a"), b"k").is_err());

    // The same neighbours stand beside both keys, but the proof says of which it speaks.
    let (mut proof, root) = made::<Blake3>(&old, "a", b"l");
    assert_eq!(verify_absent::<Blake3>(&proof, root, &ns("a"), b"l"), Ok(()));
    assert!(verify_absent::<Blake3>(&proof, root, &ns("a"), b"ll").is_err());
    for proof in &mut proof.proofs {
        if let Some(Kind::Nonexist(absence)) = &mut proof.proof {
            absence.key = b"ll".to_vec();
        }
    }
    assert!(verify_absent::<Blake3>(&proof, root, &ns("a"), b"l").is_err());
}
