//! The paged tree against the naive reference: contents, order, versions, disk and damage.

use crate::reference::{self, State};
use crate::{
    Backing, Blake3, Diff, Hasher, KeyRange, PageAt, Pages, Place, Read, ReadError, Rewrite, Sha256, Top, Tree,
};
use keelstone_codec::{Bytes, Decode, Encode, Key, Namespace, Value};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// Pages and values in memory, by number; what was written can be spoiled.
#[derive(Default)]
struct Disk {
    pages: Mutex<Vec<Bytes>>,
    values: Mutex<Vec<Value>>,
}

impl Disk {
    fn put_page(&self, bytes: &[u8]) -> PageAt {
        let mut pages = self.pages.lock().unwrap();
        pages.push(Bytes::copy_from_slice(bytes));
        PageAt { place: pages.len() as u64 - 1, len: bytes.len() as u32 }
    }

    fn put_value(&self, value: &Value) -> Place {
        let mut values = self.values.lock().unwrap();
        values.push(value.clone());
        Place(values.len() as u64 - 1)
    }
}
impl Backing for Disk {
    fn page(&self, at: PageAt) -> Result<Bytes, ReadError> {
        Ok(self.pages.lock().unwrap()[at.place as usize].clone())
    }
    fn value(&self, at: Place, len: u32) -> Result<Value, ReadError> {
        let value = self.values.lock().unwrap()[at.0 as usize].clone();
        assert_eq!(value.len(), len as usize);
        Ok(value)
    }
}

fn fresh<H: Hasher>() -> (Arc<Disk>, Arc<Pages<H>>) {
    let disk = Arc::new(Disk::default());
    (disk.clone(), Pages::new(disk))
}

fn commit<H: Hasher>(disk: &Disk, tree: &Tree<H>, diff: &Diff) -> Tree<H> {
    let draft = tree.prepare(diff).unwrap();
    let root = draft.root();
    let values: Vec<Option<Value>> = diff.iter().map(|(_, write)| write.value.clone()).collect();
    let next = draft.commit(|index| disk.put_value(values[index].as_ref().expect("only puts are asked for")));
    assert_eq!(next.root(), root);
    next
}

fn flush<H: Hasher>(disk: &Disk, tree: &Tree<H>) -> Top {
    tree.flush(|bytes| Ok::<_, ()>(disk.put_page(bytes))).unwrap();
    tree.top().unwrap()
}

fn name(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}
fn key(bytes: &[u8]) -> Key {
    Key::new(bytes).unwrap()
}
fn value(bytes: &[u8]) -> Value {
    Value::new(bytes.to_vec()).unwrap()
}

fn apply(state: &mut State, diff: &Diff) {
    for (namespace, write) in diff.iter() {
        let entries = state.entry(namespace.as_str().to_owned()).or_default();
        match &write.value {
            Some(value) => drop(entries.insert(write.key.to_vec(), value.to_vec())),
            None => drop(entries.remove(write.key.as_slice())),
        }
    }
}

fn reference_root<H: Hasher>(state: &State) -> keelstone_codec::Root {
    match H::KIND {
        crate::HashKind::Blake3 => reference::root_with(reference::blake3, state),
        crate::HashKind::Sha256 => reference::root_with(reference::sha256, state),
    }
}

/// Everything the tree says of its contents is what the map says.
fn assert_holds<H: Hasher>(tree: &Tree<H>, state: &State) {
    assert_eq!(tree.root(), reference_root::<H>(state));
    let spaces: Vec<_> = state.iter().filter(|(_, entries)| !entries.is_empty()).collect();
    assert_eq!(tree.namespaces().len(), spaces.len());
    for ((found, totals, _), (space, entries)) in tree.namespaces().zip(&spaces) {
        assert_eq!(found.as_str(), space.as_str());
        assert_eq!(totals.count as usize, entries.len());
        assert_eq!(totals.bytes as usize, entries.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>());
        let expected: Vec<_> = entries.iter().map(|(k, v)| (key(k), value(v))).collect();
        let all: Result<Vec<_>, _> = tree.scan(found, KeyRange::all()).collect();
        assert_eq!(all.unwrap(), expected);
        let back: Result<Vec<_>, _> = tree.scan(found, KeyRange::all().reversed()).collect();
        assert!(back.unwrap().iter().eq(expected.iter().rev()));
        for (k, v) in expected {
            assert_eq!(tree.get(found, &k).unwrap(), Some(v));
        }
    }
}

fn assert_range<H: Hasher>(tree: &Tree<H>, state: &State, space: &str, range: &KeyRange) {
    let found: Result<Vec<_>, _> = tree.scan(&name(space), range.clone()).collect();
    let mut expected: Vec<_> = state.get(space).into_iter().flatten().filter(|(k, _)| range.contains(k)).collect();
    if range.reverse {
        expected.reverse();
    }
    let expected: Vec<_> = expected.into_iter().map(|(k, v)| (key(k), value(v))).collect();
    assert_eq!(found.unwrap(), expected, "{range:?}");
}

/// Keys that share prefixes and are prefixes of one another, among short random ones.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => Just(0u8), 1 => Just(0x80), 1 => Just(0xff), 3 => any::<u8>()];
    prop_oneof![
        prop::collection::vec(byte.clone(), 1..4),
        prop::collection::vec(byte, 1..9),
        any::<u16>().prop_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..8].to_vec()),
        (1usize..200).prop_map(|len| vec![7; len]),
    ]
}

#[derive(Clone, Debug)]
enum Act {
    Commit(Vec<(u8, Vec<u8>, Option<u8>)>),
    /// Deletes every key from the first to before the second.
    Clear(u8, Vec<u8>, Vec<u8>),
    Draft(Vec<(u8, Vec<u8>, Option<u8>)>),
    Branch(usize, Vec<(u8, Vec<u8>, Option<u8>)>),
    Drop(usize),
    Flush,
    Evict,
    Reopen,
    Rewrite(u8),
    Range(u8, Vec<u8>, Option<Vec<u8>>, bool),
}

fn writes(most: usize) -> impl Strategy<Value = Vec<(u8, Vec<u8>, Option<u8>)>> {
    prop::collection::vec((0..2u8, keys(), prop::option::weighted(0.75, any::<u8>())), 0..most)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => writes(20).prop_map(Act::Commit),
        2 => writes(300).prop_map(Act::Commit),
        1 => (0..2u8, keys(), keys()).prop_map(|(s, a, b)| Act::Clear(s, a.clone().min(b.clone()), a.max(b))),
        1 => writes(20).prop_map(Act::Draft),
        2 => (0..8usize, writes(20)).prop_map(|(at, writes)| Act::Branch(at, writes)),
        4 => (0..8usize).prop_map(Act::Drop),
        2 => Just(Act::Flush),
        2 => Just(Act::Evict),
        1 => Just(Act::Reopen),
        2 => (1..5u8).prop_map(Act::Rewrite),
        2 => (0..2u8, keys(), prop::option::of(keys()), any::<bool>()).prop_map(|(s, a, b, r)| Act::Range(s, a, b, r)),
    ];
    prop::collection::vec(act, 1..40)
}

fn diff(writes: &[(u8, Vec<u8>, Option<u8>)]) -> Diff {
    let write = |(space, k, v): &(u8, Vec<u8>, Option<u8>)| {
        (name(&format!("n{space}")), key(k), v.map(|byte| value(&vec![byte; usize::from(byte) % 40 + 1])))
    };
    writes.iter().map(write).collect()
}

/// Runs a history; all versions that are held stay what they were.
fn run<H: Hasher>(acts: Vec<Act>) {
    let (disk, pages) = fresh::<H>();
    let mut tree = Tree::empty(&pages);
    let mut state = State::new();
    let mut held: Vec<(Tree<H>, State)> = Vec::new();
    for act in acts {
        match act {
            Act::Commit(writes) => {
                held.push((tree.clone(), state.clone()));
                let diff = diff(&writes);
                let draft = tree.prepare(&diff).unwrap();
                for ((found, (space, write)), hash) in
                    draft.replaced().iter().zip(diff.iter()).zip(draft.value_hashes())
                {
                    assert_eq!(*found, tree.find(space, &write.key).unwrap());
                    assert_eq!(*hash, write.value.as_ref().map(|value| H::hash(value)));
                }
                drop(draft);
                tree = commit(&disk, &tree, &diff);
                apply(&mut state, &diff);
            }
            Act::Clear(space, from, to) => {
                let range = KeyRange::between(&from, &to);
                let space = name(&format!("n{space}"));
                let gone: Diff =
                    tree.scan(&space, range).map(|found| (space.clone(), found.unwrap().0, None)).collect();
                tree = commit(&disk, &tree, &gone);
                apply(&mut state, &gone);
            }
            Act::Draft(writes) => {
                let diff = diff(&writes);
                let (one, two) = (tree.prepare(&diff).unwrap(), tree.prepare(&diff).unwrap());
                assert_eq!(one.root(), two.root());
            }
            Act::Branch(at, writes) => {
                if let Some((old, old_state)) = held.get(at) {
                    let (diff, mut state) = (diff(&writes), old_state.clone());
                    let branch = commit(&disk, old, &diff);
                    apply(&mut state, &diff);
                    held.push((branch, state));
                }
            }
            Act::Drop(at) => {
                if at < held.len() {
                    held.swap_remove(at);
                }
            }
            Act::Flush => {
                flush(&disk, &tree);
                assert_eq!(tree.flush(|_| Err(())), Ok(0), "nothing is written twice");
            }
            Act::Evict => drop(pages.evict(0)),
            Act::Reopen => {
                let top = flush(&disk, &tree);
                let top = Top::from_bytes(&top.to_bytes()).unwrap();
                let opened = Tree::open(&pages, &top, tree.root()).unwrap();
                held.push((std::mem::replace(&mut tree, opened), state.clone()));
            }
            Act::Rewrite(every) => {
                let stale = |at: u64| at % u64::from(every) == 0;
                let written = disk.pages.lock().unwrap().len() as u64;
                let mut from = None;
                loop {
                    let survey = tree
                        .survey(from.as_ref(), 3, |at| at.place < written && stale(at.place), |at| stale(at.0))
                        .unwrap();
                    let rewrites: Vec<Rewrite> = survey
                        .stale
                        .into_iter()
                        .map(|stale| {
                            let moved = stale.value.map(|entry| {
                                let new = loop {
                                    let new = disk.put_value(&tree.value(&entry).unwrap());
                                    if new.0 % u64::from(every) != 0 || every == 1 {
                                        break new;
                                    }
                                };
                                (entry.place, new)
                            });
                            Rewrite { namespace: stale.namespace, key: stale.key, moved }
                        })
                        .collect();
                    tree = tree.rewrite(&rewrites).unwrap().commit(|_| panic!("nothing is put"));
                    if survey.next.is_none() {
                        break;
                    }
                    from = survey.next;
                }
                if every > 1 {
                    let left =
                        tree.survey(None, usize::MAX, |at| at.place < written && stale(at.place), |at| stale(at.0));
                    assert_eq!(left.unwrap().stale, [], "nothing stale is left");
                }
            }
            Act::Range(space, start, end, reverse) => {
                assert_range(&tree, &state, &format!("n{space}"), &KeyRange { start, end, reverse });
            }
        }
        assert_eq!(tree.root(), reference_root::<H>(&state));
    }
    assert_holds(&tree, &state);
    for (tree, state) in &held {
        assert_holds(tree, state);
    }
    drop(tree);
    while !held.is_empty() {
        held.swap_remove(held.len() / 2);
        if let Some((tree, state)) = held.first() {
            assert_holds(tree, state);
        }
    }
    let stats = pages.stats();
    assert_eq!((stats.pages, stats.memory_bytes, stats.unwritten_pages, stats.versions), (0, 0, 0, 0), "all is freed");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// spec: TREE-3, TREE-6, TREE-17. Whatever happens to pages, every version that is held is what the reference
    /// says, and when none is held nothing is left.
    #[test]
    fn versions_are_what_the_reference_says(acts in acts()) {
        run::<Blake3>(acts);
    }

    /// spec: TREE-4. The same under SHA-256.
    #[test]
    fn versions_are_what_the_reference_says_under_sha256(acts in acts()) {
        run::<Sha256>(acts);
    }
}
