//! Diffs, and proofs as an adversary would send them.

use crate::{Target, canonical};
use keelstone_codec::{Bytes, Decode, Encode, Hash, Key, Namespace, Root, Value};
use keelstone_tree::{
    Answer, Backing, Blake3, Diff, Grown, KeyRange, PageAt, Pages, Place, Proof, ProofLimits, Query, RangeAnswer,
    ReadError, Top, Tree, Write, prove,
};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

pub(crate) const DIFF: Target = Target { name: "diff", run: diff, seeds: diff_seeds };

fn diff(input: &[u8]) -> bool {
    let Some(diff) = canonical::<Diff>(input) else { return false };
    let again = Diff::new(diff.parts().to_vec()).expect("an accepted diff holds its own rules");
    assert_eq!(again, diff);
    true
}

fn diff_seeds() -> Vec<Vec<u8>> {
    let write = |byte: u8, value: Option<&'static [u8]>| Write {
        key: Key::new([byte, 1]).expect("two bytes"),
        value: value.map(|value| Value::new(value).expect("not empty")),
    };
    let parts = vec![
        (name("contracts"), vec![write(1, Some(b"one")), write(2, None)]),
        (name("social"), vec![write(1, Some(b"two"))]),
    ];
    vec![Diff::new(Vec::new()).expect("empty").to_bytes(), Diff::new(parts).expect("sorted").to_bytes()]
}

pub(crate) fn name(name: &str) -> Namespace {
    Namespace::new(name).expect("a name of our own")
}

/// A small state with keys that are prefixes of others, and the questions whose proofs are the seeds.
pub(crate) struct Known {
    pub(crate) state: BTreeMap<Namespace, BTreeMap<Key, Value>>,
    pub(crate) tree: Grown,
    queries: Vec<Vec<Query>>,
}

pub(crate) static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let mut state: BTreeMap<Namespace, BTreeMap<Key, Value>> = BTreeMap::new();
    for (namespace, count) in [("agents", 40u8), ("memes", 1), ("social", 7)] {
        for n in 0..count {
            let key = Key::new(vec![n.wrapping_mul(37); usize::from(n % 5) + 1]).expect("1 to 5 bytes");
            let value = Value::new(vec![n; usize::from(n) + 1]).expect("not empty");
            state.entry(name(namespace)).or_default().insert(key, value);
        }
    }
    let key = |byte: u8, len| Key::new(vec![byte; len]).expect("short");
    let queries = vec![
        vec![],
        vec![Query::Namespaces],
        vec![Query::Key(name("agents"), key(37, 2)), Query::Key(name("agents"), key(38, 2))],
        vec![Query::Key(name("absent"), key(0, 1)), Query::Write(name("social"), key(0, 1))],
        vec![Query::Prefix(name("agents"), vec![74]), Query::PrefixTotals(name("agents"), vec![0])],
        vec![Query::Range(name("social"), KeyRange::all()), Query::Namespace(name("memes"))],
    ];
    Known { tree: Grown::new::<Blake3>(&state), state, queries }
});

pub(crate) fn proofs() -> Vec<Vec<u8>> {
    KNOWN.queries.iter().map(|queries| prove(&KNOWN.tree, queries).expect("all is in memory").encode()).collect()
}

pub(crate) const PROOF: Target = Target { name: "proof", run: proof, seeds: proofs };

/// Whatever verifies under the known root says only what is true of the known state.
fn proof(input: &[u8]) -> bool {
    let Ok(proof) = Proof::decode(input) else { return false };
    assert_eq!(proof.encode(), input, "a second encoding was accepted");
    for queries in &KNOWN.queries {
        if proof.clone().verify::<Blake3>(KNOWN.tree.root(), queries, &ProofLimits::default()).is_ok() {
            let honest = prove(&KNOWN.tree, queries).expect("all is in memory").encode();
            assert!(input.len() <= honest.len(), "a proof with more than was asked for");
        }
    }
    let Ok(verified) = proof.verify_unasked::<Blake3>(KNOWN.tree.root(), &ProofLimits::default()) else { return false };
    for (namespace, entries) in &KNOWN.state {
        for (key, value) in entries {
            match verified.get(namespace, key) {
                Answer::Present(found) => assert_eq!(&found, value),
                Answer::Absent => panic!("{key:?} of {namespace} is said to be absent"),
                Answer::Unknown => {}
            }
        }
        if let RangeAnswer::Complete(found) = verified.range(namespace, &KeyRange::all()) {
            assert!(found.iter().map(|(key, value)| (key, value)).eq(entries), "{namespace} is said to hold {found:?}");
        }
    }
    for absent in [name("absent"), name("zzz")] {
        let key = Key::new([7]).expect("one byte");
        assert!(!matches!(verified.get(&absent, &key), Answer::Present(_)), "{absent} is said to exist");
    }
    true
}

pub(crate) const FORGED: Target = Target { name: "forged_proof", run: forged, seeds: forgeries };

/// A proof under a root of the adversary's own making, the first 32 bytes: it may say anything, but nothing may break.
fn forged(input: &[u8]) -> bool {
    let Some((root, bytes)) = input.split_first_chunk::<32>() else { return false };
    let Ok(proof) = Proof::decode(bytes) else { return false };
    let key = Key::new([7]).expect("one byte");
    let queries = [Query::Namespaces, Query::Key(name("agents"), key.clone())];
    let root = Root(keelstone_codec::Hash(*root));
    let _ = proof.clone().verify::<keelstone_tree::Sha256>(root, &queries, &ProofLimits::default());
    let Ok(verified) = proof.verify_unasked::<Blake3>(root, &ProofLimits::default()) else { return false };
    let _ = (verified.namespaces(), verified.get(&name("agents"), &key));
    let _ = (verified.range(&name("agents"), &KeyRange::all()), verified.prefix_totals(&name("agents"), &[0]));
    true
}

fn forgeries() -> Vec<Vec<u8>> {
    let root = KNOWN.tree.root();
    proofs().into_iter().map(|proof| [root.as_bytes().as_slice(), &proof].concat()).collect()
}

pub(crate) const WITNESS: Target = Target { name: "witness", run: witness, seeds: witnesses };

/// A diff (its length first, two bytes) and a witness: the new root that follows is the one of the naive tree, or none.
fn witness(input: &[u8]) -> bool {
    let Some((len, rest)) = input.split_first_chunk::<2>() else { return false };
    let Some((diff, proof)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))) else { return false };
    let Ok(diff) = Diff::from_bytes(diff) else { return false };
    let Ok(proof) = Proof::decode(proof) else { return false };
    let Ok(witness) = proof.verify_unasked::<Blake3>(KNOWN.tree.root(), &ProofLimits::default()) else { return false };
    let Ok(found) = witness.apply(&diff) else { return false };
    let mut state = KNOWN.state.clone();
    for (namespace, write) in diff.iter() {
        let entries = state.entry(namespace.clone()).or_default();
        match &write.value {
            Some(value) => drop(entries.insert(write.key.clone(), value.clone())),
            None => drop(entries.remove(&write.key)),
        }
    }
    assert_eq!(found, Grown::new::<Blake3>(&state).root(), "a witness leads to a root that is not the tree's");
    true
}

fn witnesses() -> Vec<Vec<u8>> {
    let write = |byte: u8, len, value: Option<&'static [u8]>| Write {
        key: Key::new(vec![byte; len]).expect("short"),
        value: value.map(|value| Value::new(value).expect("not empty")),
    };
    let emptied = (name("memes"), vec![write(0, 1, None)]);
    let changed = (name("agents"), vec![write(37, 2, None), write(38, 1, Some(b"new"))]);
    let made = (name("new"), vec![write(1, 1, Some(b"x"))]);
    let diffs = [vec![emptied.clone()], vec![changed.clone(), made.clone()], vec![changed, emptied, made]];
    let input = |parts: Vec<(Namespace, Vec<Write>)>| {
        let diff = Diff::new(parts).expect("sorted");
        let proof = prove(&KNOWN.tree, &diff.queries()).expect("all is in memory").encode();
        let bytes = diff.to_bytes();
        let len = u16::try_from(bytes.len()).expect("a few writes");
        [&len.to_le_bytes()[..], &bytes, &proof].concat()
    };
    diffs.map(input).into_iter().collect()
}

pub(crate) const PAGE: Target = Target { name: "page", run: keelstone_tree::hostile::page, seeds: page_seeds };

/// A disk without pages or values: what points at it is read no further.
struct Nothing;

impl Backing for Nothing {
    fn page(&self, at: PageAt) -> Result<Bytes, ReadError> {
        Err(ReadError::damaged(format!("{at:?} is not there")))
    }
    fn value(&self, at: Place, _: u32) -> Result<Value, ReadError> {
        Err(ReadError::damaged(format!("{at:?} is not there")))
    }
}

/// The known state, one namespace of it grown beyond a page: all pages as they are written, and the top above them. The last are
/// written after three changes more, beside those before.
fn written() -> (Vec<Vec<u8>>, Top) {
    let mut state = KNOWN.state.clone();
    for n in 0..100u8 {
        let key = Key::new([n.wrapping_mul(89), n % 3]).expect("two bytes");
        state.entry(name("social")).or_default().insert(key, Value::new(vec![1; 9]).expect("not empty"));
    }
    let entries = state
        .into_iter()
        .flat_map(|(name, entries)| entries.into_iter().map(move |(key, value)| (name.clone(), key, Some(value))));
    let diff: Diff = entries.collect();
    let tree = Tree::empty(&Pages::<Blake3>::new(Arc::new(Nothing)));
    let draft = tree.prepare(&diff).expect("all is in memory");
    let tree = draft.commit(|index| Place(index as u64 + 1));
    let mut pages = Vec::new();
    let mut write = |bytes: &[u8]| {
        pages.push(bytes.to_vec());
        let len = u32::try_from(bytes.len()).expect("a page is small");
        Ok::<_, ReadError>(PageAt { place: pages.len() as u64, len })
    };
    tree.flush(|_| true, &mut write).expect("writing to memory does not fail").settle();
    let key = |n: u8| Key::new([n.wrapping_mul(89), n % 3]).expect("two bytes");
    let value = || Some(Value::new(vec![2; 5]).expect("not empty"));
    let inserted = Key::new([89, 1, 1]).expect("three bytes");
    let changes = [(key(3), value()), (key(50), None), (inserted, value())];
    let diff: Diff = changes.into_iter().map(|(key, value)| (name("social"), key, value)).collect();
    let draft = tree.prepare(&diff).expect("all is in memory");
    let tree = draft.commit(|index| Place(index as u64 + 1_000));
    tree.flush(|_| true, &mut write).expect("writing to memory does not fail").settle();
    (pages, tree.top().expect("all pages are written"))
}

/// Pages without the eight bytes of their check, those that are written whole.
fn page_seeds() -> Vec<Vec<u8>> {
    let whole = written().0.into_iter().filter(|page| page[0] > 0);
    whole.map(|page| page[..page.len() - 8].to_vec()).collect()
}

pub(crate) const PAGE_DELTA: Target =
    Target { name: "page_delta", run: keelstone_tree::hostile::page_delta, seeds: page_delta_seeds };

/// Pages that are written beside others, behind those.
fn page_delta_seeds() -> Vec<Vec<u8>> {
    let pages = written().0;
    let body = |page: &[u8]| page[..page.len() - 8].to_vec();
    let seed = |page: &Vec<u8>| {
        let place = u64::from_le_bytes(*page[1..].first_chunk().expect("a place has eight bytes"));
        let base = body(&pages[usize::try_from(place).expect("a few pages") - 1]);
        let len = u16::try_from(base.len()).expect("a page is small");
        [&len.to_le_bytes()[..], &base, &body(page)].concat()
    };
    let seeds: Vec<Vec<u8>> = pages.iter().filter(|page| page[0] == 0).map(seed).collect();
    assert!(seeds.len() > 1, "a few changes are written beside what is there");
    seeds
}

pub(crate) const TOP: Target = Target { name: "top", run: top, seeds: top_seeds };

/// A top opens under its own root only.
fn top(input: &[u8]) -> bool {
    let Some(top) = canonical::<Top>(input) else { return false };
    let pages = Pages::<Blake3>::new(Arc::new(Nothing));
    assert!(Tree::open(&pages, &top, Root(Hash::ZERO)).is_err(), "no state has a root of zeros");
    true
}

pub(crate) fn top_seeds() -> Vec<Vec<u8>> {
    let empty = Tree::empty(&Pages::<Blake3>::new(Arc::new(Nothing))).top().expect("nothing to write");
    vec![empty.to_bytes(), written().1.to_bytes()]
}
