//! ICS-23: proofs turned into its form, and proofs in its form as an adversary would send them.

use crate::Target;
use crate::tree::{KNOWN, name, proofs};
use ics23::commitment_proof::Proof as Kind;
use ics23::{CommitmentProof, HostFunctionsManager, calculate_existence_root};
use keelstone_codec::{Hash, Key, Namespace, Root};
use keelstone_tree::ics23::{Ics23Proof, convert, prove_ics23, verify_absent, verify_present};
use keelstone_tree::{Blake3, Proof, ProofLimits, Query, Sha256, prove};
use prost::Message;

fn key(byte: u8, len: usize) -> Key {
    Key::new(vec![byte; len]).expect("short")
}

/// Keys that the known state has, and keys and namespaces that it has not.
fn asked() -> Vec<(Namespace, Key)> {
    vec![
        (name("agents"), key(37, 2)),
        (name("agents"), key(38, 2)),
        (name("agents"), key(0xff, 1)),
        (name("memes"), key(0, 1)),
        (name("social"), key(0, 1)),
        (name("absent"), key(7, 1)),
        (name("zzz"), key(7, 1)),
    ]
}

pub(crate) const CONVERT: Target = Target { name: "ics23_convert", run: converted, seeds: conversions };

/// What a proof that holds is turned into holds too.
fn converted(input: &[u8]) -> bool {
    let Ok(proof) = Proof::decode(input) else { return false };
    let root = KNOWN.tree.root();
    let Ok(verified) = proof.verify_unasked::<Blake3>(root, &ProofLimits::default()) else { return false };
    for (namespace, key) in asked() {
        let Ok(proof) = convert(&verified, &namespace, &key) else { continue };
        let held = match KNOWN.state.get(&namespace).and_then(|entries| entries.get(&key)) {
            Some(value) => verify_present::<Blake3>(&proof, root, &namespace, &key, value),
            None => verify_absent::<Blake3>(&proof, root, &namespace, &key),
        };
        assert_eq!(held, Ok(()), "{key:?} of {namespace}");
    }
    true
}

/// The tree's own proofs, and one of the whole state, which converts to an answer for every key.
fn conversions() -> Vec<Vec<u8>> {
    let all: Vec<Query> = KNOWN.state.keys().cloned().map(Query::Namespace).collect();
    let whole = prove(&KNOWN.tree, &all).expect("all is in memory").encode();
    proofs().into_iter().chain([whole]).collect()
}

pub(crate) const VERIFY: Target = Target { name: "ics23", run: verified, seeds };

/// Proofs in protobuf, each after its length (two bytes): under the known root they say only what is true of the known
/// state, and under the root they lead to they may say anything, but nothing may break.
fn verified(mut input: &[u8]) -> bool {
    let mut proof = Ics23Proof { proofs: Vec::new() };
    while let Some((len, rest)) = input.split_first_chunk::<2>() {
        let Some((one, rest)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))) else { return false };
        let Ok(one) = CommitmentProof::decode(one) else { return false };
        proof.proofs.push(one);
        input = rest;
    }
    let mut said = false;
    for (namespace, key) in asked() {
        let root = KNOWN.tree.root();
        let value = KNOWN.state.get(&namespace).and_then(|entries| entries.get(&key));
        if verify_absent::<Blake3>(&proof, root, &namespace, &key).is_ok() {
            assert_eq!(value, None, "{key:?} of {namespace} is said to be absent");
            said = true;
        }
        for claimed in [leaf_value(&proof), value.map(|value| value.to_vec()), Some(vec![1])].into_iter().flatten() {
            if verify_present::<Blake3>(&proof, root, &namespace, &key, &claimed).is_ok() {
                assert_eq!(value.map(|value| value.to_vec()), Some(claimed), "{key:?} of {namespace}");
                said = true;
            }
        }
        if let Some(root) = own_root(&proof) {
            let _ = verify_absent::<Blake3>(&proof, root, &namespace, &key);
            let _ = verify_absent::<Sha256>(&proof, root, &namespace, &key);
            let claimed = leaf_value(&proof).unwrap_or_default();
            let _ = verify_present::<Blake3>(&proof, root, &namespace, &key, &claimed);
        }
    }
    said
}

/// The value that the first proof claims, if it is one of existence.
fn leaf_value(proof: &Ics23Proof) -> Option<Vec<u8>> {
    match proof.proofs.first()?.proof.as_ref()? {
        Kind::Exist(exist) => Some(exist.value.clone()),
        _ => None,
    }
}

/// The root that the last proof leads to, so that its hashes hold.
fn own_root(proof: &Ics23Proof) -> Option<Root> {
    let exist = match proof.proofs.last()?.proof.as_ref()? {
        Kind::Exist(exist) => exist,
        Kind::Nonexist(absent) => absent.left.as_ref().or(absent.right.as_ref())?,
        _ => return None,
    };
    let root = calculate_existence_root::<HostFunctionsManager>(exist).ok()?;
    Some(Root(Hash(root.try_into().ok()?)))
}

fn seeds() -> Vec<Vec<u8>> {
    let prove = |(namespace, key)| {
        let proof = prove_ics23::<Blake3, _>(&KNOWN.tree, &namespace, &key).expect("the state is not empty");
        let mut out = Vec::new();
        for one in proof.proofs {
            let bytes = one.encode_to_vec();
            out.extend_from_slice(&u16::try_from(bytes.len()).expect("a short path").to_le_bytes());
            out.extend_from_slice(&bytes);
        }
        out
    };
    asked().into_iter().map(prove).collect()
}
