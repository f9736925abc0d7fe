//! The paged tree against the naive reference: contents, order, versions, disk and damage.
#![expect(clippy::cast_possible_truncation, reason = "numbers in tests are small")]

use crate::arena::expected;
use crate::reference::{self, State};
use crate::{
    Backing, Blake3, Build, Diff, Draft, Grown, Hasher, KeyRange, Leaf, Level, PageAt, Pages, Passed, Place,
    ProofLimits, Query, Read, ReadError, Rewrite, Sha256, Stale, Top, Totals, Tree, Written, preimage, prove_bytes,
};
use keelstone_codec::{Bytes, Decode, DecodeError, Encode, Key, Namespace, Reader, Value};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Pages and values in memory, by number; what was written can be spoiled.
#[derive(Default)]
struct Disk {
    pages: Mutex<Vec<Bytes>>,
    values: Mutex<Vec<Value>>,
    /// Pages that were read.
    read: AtomicUsize,
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
        self.read.fetch_add(1, Ordering::Relaxed);
        Ok(self.pages.lock().unwrap()[at.place as usize].clone())
    }
    fn value(&self, at: Place, len: u32) -> Result<Value, ReadError> {
        let value = self.values.lock().unwrap()[at.0 as usize].clone();
        assert_eq!(value.len(), len as usize);
        Ok(value)
    }
}

fn fresh<H: Hasher>() -> (Arc<Disk>, Arc<Pages<H>>) {
    fresh_on_threads(1)
}

fn fresh_on_threads<H: Hasher>(threads: usize) -> (Arc<Disk>, Arc<Pages<H>>) {
    let disk = Arc::new(Disk::default());
    (disk.clone(), Pages::on_threads(disk, NonZeroUsize::new(threads).unwrap()))
}

fn commit<H: Hasher>(disk: &Disk, tree: &Tree<H>, diff: &Diff) -> Tree<H> {
    let draft = tree.prepare(diff).unwrap();
    let root = draft.root();
    let values: Vec<Option<Value>> = diff.iter().map(|(_, write)| write.value.clone()).collect();
    let next = draft.commit(|index| disk.put_value(values[index].as_ref().expect("only puts are asked for")));
    assert_eq!(next.root(), root);
    next
}

/// As [`commit`], to what is the last version from then on.
fn commit_last<H: Hasher>(disk: &Disk, tree: &Tree<H>, diff: &Diff, needs: &mut Needed) -> Tree<H> {
    let draft = tree.prepare(diff).unwrap();
    needs.pass(&draft);
    let values: Vec<Option<Value>> = diff.iter().map(|(_, write)| write.value.clone()).collect();
    draft.commit(|index| disk.put_value(values[index].as_ref().expect("only puts are asked for")))
}

fn flush<H: Hasher>(disk: &Disk, tree: &Tree<H>) -> Top {
    tree.flush(|_| true, |bytes| Ok::<_, ()>(disk.put_page(bytes))).unwrap().settle();
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
    /// From here on, memory of pages is bounded to so many bytes.
    Bound(usize),
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
        1 => prop::sample::select(vec![0, 3 << 10, 16 << 10, 64 << 10, usize::MAX]).prop_map(Act::Bound),
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

/// What the last version needs of the disk, as it is counted: how often each place is.
#[derive(Default)]
struct Needed {
    counts: BTreeMap<u64, i64>,
    /// Places below the first that are multiples of the second: nothing that is written from then on may stand beside them.
    gone: Vec<(u64, u64)>,
}

impl Needed {
    fn add(&mut self, pages: &[PageAt], count: i64) {
        for page in pages {
            *self.counts.entry(page.place).or_default() += count;
        }
    }

    fn is_gone(&self, place: u64) -> bool {
        self.gone.iter().any(|(end, every)| place < *end && place.is_multiple_of(*every))
    }

    /// A flush of the last version.
    fn flush<H: Hasher>(&mut self, disk: &Disk, tree: &Tree<H>) -> Top {
        let mut new = Vec::new();
        let write = |bytes: &[u8]| {
            new.push(disk.put_page(bytes));
            Ok::<_, ()>(new[new.len() - 1])
        };
        let written = tree.flush(|at| !self.is_gone(at.place), write).unwrap();
        self.add(&new, 1);
        written.unneeded().iter().for_each(|page| self.add(&[*page], -1));
        written.settle();
        tree.top().unwrap()
    }

    /// The last version is another from now on.
    fn pass<H: Hasher>(&mut self, draft: &Draft<H>) {
        let Passed { unneeded, needed } = draft.pass();
        self.add(&unneeded, -1);
        self.add(&needed, 1);
        assert_eq!(draft.pass(), Passed::default(), "pages are passed by once");
    }

    fn check<H: Hasher>(&self, tree: &Tree<H>) {
        let mut found = BTreeMap::new();
        tree.needs(|page| *found.entry(page.place).or_default() += 1).unwrap();
        let counted = self.counts.iter().filter(|(_, count)| **count != 0);
        assert!(counted.eq(&found), "counted are {:?}, needed {found:?}", self.counts);
        assert!(found.values().all(|count| *count == 1), "nothing is needed twice: {found:?}");
    }
}

/// Runs a history; all versions that are held stay what they were.
fn run<H: Hasher>(acts: Vec<Act>, threads: usize) {
    let (disk, pages) = fresh_on_threads::<H>(threads);
    let mut needs = Needed::default();
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
                tree = commit_last(&disk, &tree, &diff, &mut needs);
                apply(&mut state, &diff);
            }
            Act::Clear(space, from, to) => {
                let range = KeyRange::between(&from, &to);
                let space = name(&format!("n{space}"));
                let gone: Diff =
                    tree.scan(&space, range).map(|found| (space.clone(), found.unwrap().0, None)).collect();
                tree = commit_last(&disk, &tree, &gone, &mut needs);
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
                needs.flush(&disk, &tree);
                assert_eq!(tree.flush(|_| true, |_| Err(())).map(Written::settle), Ok(0), "nothing is written twice");
            }
            Act::Evict => drop(pages.evict(0)),
            Act::Bound(memory_bytes) => pages.keep_within(memory_bytes),
            Act::Reopen => {
                let top = needs.flush(&disk, &tree);
                let top = Top::from_bytes(&top.to_bytes()).unwrap();
                let opened = Tree::open(&pages, &top, tree.root()).unwrap();
                assert_eq!(entries_of(&opened), entries_of(&tree), "it is read as it was, places too");
                held.push((std::mem::replace(&mut tree, opened), state.clone()));
            }
            Act::Rewrite(every) => {
                let stale = |at: u64| at.is_multiple_of(u64::from(every));
                let written = disk.pages.lock().unwrap().len() as u64;
                needs.gone.push((written, u64::from(every)));
                // Whoever looks for pages alone goes by entries, and finds the same ones.
                let stale_page = |at: Place| at.0 < written && stale(at.0);
                let mut pages = (None, None);
                for most in [3, 1, 7].into_iter().cycle().map(|most| (most, u64::MAX)) {
                    let with = tree.survey(pages.0.as_ref(), most, stale_page, Some(|_| false));
                    let without = tree.survey(pages.1.as_ref(), most, stale_page, None::<fn(Place) -> bool>);
                    assert_eq!((&with.stale, &with.next), (&without.stale, &without.next));
                    assert_eq!(with.entries, without.entries);
                    pages = (with.next, without.next);
                    if pages.0.is_none() {
                        break;
                    }
                }
                let mut from = None;
                loop {
                    let survey = tree.survey(from.as_ref(), (3, 200), stale_page, Some(|at: Place| stale(at.0)));
                    assert!(survey.lost.is_empty());
                    let rewrites: Vec<Rewrite> = survey
                        .stale
                        .into_iter()
                        .map(|stale| {
                            let moved = stale.value.map(|entry| {
                                let new = loop {
                                    let new = disk.put_value(&tree.value(&entry).unwrap());
                                    if !new.0.is_multiple_of(u64::from(every)) || every == 1 {
                                        break new;
                                    }
                                };
                                (entry.place, new)
                            });
                            Rewrite { namespace: stale.namespace, key: stale.key, moved }
                        })
                        .collect();
                    let draft = tree.rewrite(&rewrites, |at| !stale_page(Place(at.place))).unwrap();
                    needs.pass(&draft);
                    tree = draft.commit(|_| panic!("nothing is put"));
                    if survey.next.is_none() {
                        break;
                    }
                    from = survey.next;
                }
                if every > 1 {
                    let all = (usize::MAX, u64::MAX);
                    let left = tree.survey(None, all, stale_page, Some(|at: Place| stale(at.0)));
                    assert_eq!(left.stale, [], "nothing stale is left");
                }
            }
            Act::Range(space, start, end, reverse) => {
                assert_range(&tree, &state, &format!("n{space}"), &KeyRange { start, end, reverse });
            }
        }
        assert_eq!(tree.root(), reference_root::<H>(&state));
    }
    needs.check(&tree);
    needs.flush(&disk, &tree);
    needs.check(&tree);
    let mut kept = needs.counts.iter().filter(|(_, count)| **count > 0);
    assert!(kept.all(|(place, _)| !needs.is_gone(*place)), "what was to go is not needed");
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

/// Every entry of a version, with where its value lies: no hash says that.
fn entries_of<H: Hasher>(tree: &Tree<H>) -> Vec<(Namespace, Key, crate::Entry)> {
    let spaces = tree.namespaces().map(|(space, ..)| space.clone());
    let entries = spaces.flat_map(|space| {
        let found = tree.entries(&space, KeyRange::all()).map(Result::unwrap).collect::<Vec<_>>();
        found.into_iter().map(move |(key, entry)| (space.clone(), key, entry))
    });
    entries.collect()
}

/// How often a property is tried: `KEELSTONE_TEST_SCALE` multiplies.
fn scale() -> u32 {
    u32::try_from(golden::count("KEELSTONE_TEST_SCALE", 1)).expect("a small number")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64 * scale()))]

    /// spec: TREE-3, TREE-6, TREE-17. Whatever happens to pages, and on however many threads, every version that is held is what the reference
    /// says, and when none is held nothing is left.
    #[test]
    fn versions_are_what_the_reference_says(acts in acts(), threads in 1..4usize) {
        run::<Blake3>(acts, threads);
    }

    /// spec: TREE-4. The same under SHA-256.
    #[test]
    fn versions_are_what_the_reference_says_under_sha256(acts in acts(), threads in 1..4usize) {
        run::<Sha256>(acts, threads);
    }
}

/// Builds a whole state in one pass.
fn build<H: Hasher>(disk: &Disk, pages: &Arc<Pages<H>>, state: &State) -> Tree<H> {
    let mut build = Build::<H>::new();
    let mut write = |bytes: &[u8]| Ok::<_, ()>(disk.put_page(bytes));
    for (space, entries) in state {
        let mut leaves = Vec::new();
        Leaf::of::<H>(entries.iter().map(|(k, v)| (k.as_slice(), v.as_slice())), &mut leaves);
        for ((k, v), leaf) in entries.iter().zip(&leaves) {
            build.push(&name(space), k, leaf, disk.put_value(&value(v)), &mut write).unwrap();
        }
    }
    let totals = build.totals();
    let top = build.finish(&mut write).unwrap();
    let tree = Tree::open(pages, &top, top.root::<H>()).unwrap();
    assert_eq!(tree.totals(), totals);
    tree
}

/// Writes: the number of a namespace, the key, and the value's byte or none.
type Writes = Vec<(u8, Vec<u8>, Option<u8>)>;

fn builds_like_commits<H: Hasher>(first: Writes, then: Vec<Writes>) {
    let mut state = State::new();
    apply(&mut state, &diff(&first));
    state.retain(|_, entries| !entries.is_empty());
    let (disk, pages) = fresh::<H>();
    let mut built = build(&disk, &pages, &state);
    assert_holds(&built, &state);
    for writes in then {
        let diff = diff(&writes);
        apply(&mut state, &diff);
        built = commit(&disk, &built, &diff);
        assert_eq!(built.root(), reference_root::<H>(&state));
    }
    assert_holds(&built, &state);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64 * scale()))]

    /// spec: TREE-3, TREE-17. A state built in one pass is the state that commits make, and goes on like it.
    #[test]
    fn a_state_built_in_one_pass_is_the_one_commits_make(
        first in writes(300),
        then in prop::collection::vec(writes(20), 0..6),
    ) {
        builds_like_commits::<Blake3>(first.clone(), then.clone());
        builds_like_commits::<Sha256>(first, then);
    }
}

/// spec: TREE-17. So many pages that they are written in several groups; all but the topmost have 8 to 32 slots, of which few are
/// of both kinds, and the root is that of commits.
#[test]
fn many_entries_are_built_in_groups_of_pages() {
    let key = |i: u32| blake3::hash(&i.to_le_bytes()).as_bytes()[..4 + (i % 8) as usize].to_vec();
    let many = (0..30_000).map(|i| (key(i), i.to_le_bytes().to_vec())).collect();
    let chain = (1..=255).map(|len| (vec![7; len], vec![1])).collect();
    let state = State::from([("a".into(), [(vec![1], vec![2])].into()), ("b".into(), many), ("c".into(), chain)]);
    let (disk, pages) = fresh::<Blake3>();
    let (other, others) = fresh::<Blake3>();
    let built = build(&disk, &pages, &state);
    let few = disk.pages.lock().unwrap().iter().filter(|page| !(8..=32).contains(&page[0])).count();
    assert!(few <= 3, "{few} pages of another size");
    // In no order of keys.
    let writes: Vec<_> = (0..30_000).map(|i| (name("b"), self::key(&key(i)), Some(value(&i.to_le_bytes())))).collect();
    let diff = |writes: &[_]| writes.iter().cloned().collect::<Diff>();
    let grown = writes.chunks(400).fold(Tree::empty(&others), |tree, writes| commit(&other, &tree, &diff(writes)));
    for (tree, by) in [(&built, "a build"), (&grown, "commits")] {
        let [leaves, inner, both] = kinds(tree);
        assert!(leaves > 1_000 && inner * 12 < leaves, "{leaves} pages of entries and {inner} above by {by}");
        assert!(both * 50 < leaves, "{both} pages of entries and of pages by {by}");
    }
    assert_eq!(built.root(), grow(&other, &others, &state, 10_000).root());
    assert_eq!(built.root(), reference_root::<Blake3>(&state));
    assert_holds(&built, &state);
}

/// spec: TREE-17. Pages of which little is left are taken in, and those beside them with them: what is left is not in as many pages as
/// there were.
#[test]
fn pages_come_together_when_entries_go() {
    let state = numbered(60_000);
    let (disk, pages) = fresh::<Blake3>();
    let mut tree = grow(&disk, &pages, &state, 5_000);
    let full: usize = kinds(&tree)[..2].iter().sum();
    for first in (0..48_000).step_by(800) {
        tree = commit(&disk, &tree, &(first..first + 800).map(|n| (name("a"), key(&state_key(n)), None)).collect());
    }
    let left: usize = kinds(&tree)[..2].iter().sum();
    assert_eq!(tree.totals().count, 12_001);
    assert!(full * 16 < 60_000 && left * 10 < 12_000, "{full} pages before, {left} since");
}

/// Pages of entries alone, all others, and those of these that have entries too.
fn kinds<H: Hasher>(tree: &Tree<H>) -> [usize; 3] {
    let [mut leaves, mut inner, mut both] = [0; 3];
    for space in tree.spaces() {
        let mut open = vec![tree.load_root(space).unwrap()];
        while let Some(page) = open.pop() {
            let below = (0..page.shape.len()).filter_map(|slot| expected(page.slot(slot), page.shape.key(slot)));
            let before = open.len();
            open.extend(below.map(|(id, expected)| tree.pages().load(id, &expected).unwrap()));
            match open.len() - before {
                0 => leaves += 1,
                below => (inner, both) = (inner + 1, both + usize::from(below < page.shape.len())),
            }
        }
    }
    [leaves, inner, both]
}

/// Puts a whole state into a fresh tree, in diffs of `batch` writes.
fn grow<H: Hasher>(disk: &Disk, pages: &Arc<Pages<H>>, state: &State, batch: usize) -> Tree<H> {
    let all: Vec<_> = state
        .iter()
        .flat_map(|(space, entries)| entries.iter().map(|(k, v)| (name(space), key(k), Some(value(v)))))
        .collect();
    all.chunks(batch).fold(Tree::empty(pages), |tree, writes| commit(disk, &tree, &writes.iter().cloned().collect()))
}

fn numbered(count: u32) -> State {
    let entry = |n: u32| (blake3::hash(&n.to_le_bytes()).as_bytes()[..12].to_vec(), n.to_le_bytes().to_vec());
    State::from([("a".to_owned(), (0..count).map(entry).collect()), ("b".to_owned(), [entry(0)].into())])
}

/// A comb of the given depth: one long key, and at each bit one that parts from it there.
fn comb(depth: usize) -> State {
    let spine = vec![0u8; 255];
    let tooth = |bit: usize| {
        let mut tooth = spine[..bit / 9].to_vec();
        tooth.extend((!bit.is_multiple_of(9)).then(|| 0x80 >> (bit % 9 - 1)));
        (tooth, bit.to_le_bytes().to_vec())
    };
    let mut entries: reference::Entries = (1..=depth).map(tooth).collect();
    entries.insert(spine, vec![1]);
    State::from([("comb".to_owned(), entries)])
}

/// spec: TREE-7. A proof is the same whether the nodes come from pages, in memory or read again, or are grown whole.
#[test]
fn proofs_do_not_depend_on_pages() {
    let (disk, pages) = fresh::<Blake3>();
    let state = numbered(500);
    let tree = grow(&disk, &pages, &state, 100);
    let plain =
        state.iter().map(|(space, entries)| (name(space), entries.iter().map(|(k, v)| (key(k), value(v))).collect()));
    let grown = Grown::new::<Blake3>(&plain.collect());
    let ask = |tree: &Tree<Blake3>| {
        let mut queries = vec![Query::Namespaces, Query::Namespace(name("b")), Query::Prefix(name("a"), vec![7])];
        for n in (0u32..500).step_by(37) {
            let k = blake3::hash(&n.to_le_bytes()).as_bytes()[..12].to_vec();
            queries.push(Query::Key(name("a"), key(&k)));
            queries.push(Query::Key(name("a"), key(&k[..5])));
        }
        for query in queries {
            let query = std::slice::from_ref(&query);
            assert_eq!(prove_bytes(tree, query).unwrap(), prove_bytes(&grown, query).unwrap());
        }
    };
    ask(&tree);
    let top = flush(&disk, &tree);
    pages.evict(0);
    ask(&tree);
    let (root, other) = (tree.root(), Pages::<Blake3>::new(disk));
    ask(&Tree::open(&other, &top, root).unwrap());
}

/// N-08 in memory. A way of 2,290 levels neither overflows a small stack nor is refused, whatever is done with it.
#[test]
fn a_comb_of_two_thousand_levels_fits_a_small_stack() {
    let work = || {
        let state = comb(2_290);
        for batch in [1_000_000, 100] {
            let (disk, pages) = fresh::<Blake3>();
            let mut tree = grow(&disk, &pages, &state, batch);
            assert_eq!(tree.namespaces().next().unwrap().2, keelstone_codec::Hash(comb_root(&state)));
            let top = flush(&disk, &tree);
            drop(tree);
            tree = Tree::open(&pages, &top, {
                let (disk, pages) = fresh::<Blake3>();
                grow(&disk, &pages, &state, 500).root()
            })
            .unwrap();
            let found: Vec<_> = tree.scan(&name("comb"), KeyRange::all()).map(|found| found.unwrap().0).collect();
            assert!(found.iter().map(|key| key.as_slice()).eq(state["comb"].keys().map(Vec::as_slice)));
            let deepest = Query::Key(name("comb"), key(&[0; 255]));
            let proof = prove_bytes(&tree, &[deepest]).unwrap();
            assert!(proof.len() > 2_290 * 32);
            // From the deepest to the topmost, so that every page is taken down by the one below it.
            let keys: Vec<Key> = found.into_iter().rev().collect();
            for gone in keys.chunks(97) {
                let gone: Diff = gone.iter().map(|key| (name("comb"), key.clone(), None)).collect();
                tree = commit(&disk, &tree, &gone);
            }
            assert_eq!(tree.root(), Tree::empty(&pages).root());
            drop(tree);
            assert_eq!((pages.stats().pages, pages.stats().versions), (0, 0));
        }
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
}

/// The reference recurses once a level, too deep for this stack: a comb's hash is a loop.
fn comb_root(state: &State) -> [u8; 32] {
    let leaf = |k: &[u8], v: &[u8]| {
        let (mut image, hash) = ([0; 128], reference::blake3);
        image[0] = 1;
        image[1..3].copy_from_slice(&(k.len() as u16).to_le_bytes());
        image[3..7].copy_from_slice(&(v.len() as u32).to_le_bytes());
        image[64..96].copy_from_slice(&hash(k));
        image[96..].copy_from_slice(&hash(v));
        (hash(&image), 1u64, (k.len() + v.len()) as u64)
    };
    let entries = &state["comb"];
    let spine = vec![0u8; 255];
    let mut node = leaf(&spine, &entries[&spine]);
    for bit in (1..entries.len()).rev() {
        let mut tooth = spine[..bit / 9].to_vec();
        tooth.extend((!bit.is_multiple_of(9)).then(|| 0x80u8 >> (bit % 9 - 1)));
        let tooth = leaf(&tooth, &entries[&tooth]);
        // A tooth that ends here is the smaller key; one with the bit set is the greater.
        let [left, right] = if bit % 9 == 0 { [tooth, node] } else { [node, tooth] };
        let mut image = [0; 128];
        image[0] = 2;
        image[1..3].copy_from_slice(&(bit as u16).to_le_bytes());
        for (at, sum) in [left.1, left.2, right.1, right.2].into_iter().enumerate() {
            image[3 + 8 * at..11 + 8 * at].copy_from_slice(&sum.to_le_bytes());
        }
        image[64..96].copy_from_slice(&left.0);
        image[96..].copy_from_slice(&right.0);
        node = (reference::blake3(&image), left.1 + right.1, left.2 + right.2);
    }
    node.0
}

/// spec: TREE-18. A page with any bit flipped is damage, and never another page.
#[test]
fn a_flipped_bit_in_a_page_is_damage() {
    let (disk, pages) = fresh::<Sha256>();
    let state = numbered(300);
    let tree = grow(&disk, &pages, &state, 64);
    let top = flush(&disk, &tree);
    let count = disk.pages.lock().unwrap().len();
    assert!(count > 10);
    let read = |what: &str| {
        let pages = Pages::<Sha256>::new(disk.clone());
        let tree = Tree::open(&pages, &top, tree.root()).unwrap();
        let all: Result<Vec<_>, _> = tree.entries(&name("a"), KeyRange::all()).collect();
        let found = tree.find(&name("b"), &state["b"].keys().next().unwrap().clone());
        assert!(
            matches!((&all, &found), (Err(ReadError::Damaged { .. }), _) | (_, Err(ReadError::Damaged { .. }))),
            "{what}"
        );
    };
    // One with entries only, and one with pages below.
    let inner = tree.top().unwrap().pages().next().unwrap().1.place as usize;
    for page in [0, inner] {
        let whole = disk.pages.lock().unwrap()[page].clone();
        for at in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1 << (at % 8);
            disk.pages.lock().unwrap()[page] = bytes.into();
            read(&format!("byte {at} of page {page}"));
        }
        for cut in [0, 1, 7, 8, 9, whole.len() / 2, whole.len() - 1] {
            disk.pages.lock().unwrap()[page] = whole.slice(..cut);
            read(&format!("page {page} cut at {cut}"));
        }
        disk.pages.lock().unwrap()[page] = whole;
    }
}

/// spec: TREE-14, TREE-18. A page that is whole in itself but not the one asked for is damage too, and nothing of a version
/// that cannot be opened is left behind.
#[test]
fn a_page_in_the_wrong_place_is_damage() {
    let (disk, pages) = fresh::<Blake3>();
    let tree = grow(&disk, &pages, &numbered(300), 64);
    let top = flush(&disk, &tree);
    disk.pages.lock().unwrap().swap(0, 1);
    let other = Pages::<Blake3>::new(disk.clone());
    let opened = Tree::open(&other, &top, tree.root()).unwrap();
    let read: Result<Vec<_>, _> = opened.entries(&name("a"), KeyRange::all()).collect();
    assert!(matches!(read, Err(ReadError::Damaged { .. })), "{read:?}");
    drop(opened);
    assert_eq!((other.stats().pages, other.stats().memory_bytes), (0, 0));
    assert!(Tree::open(&other, &top, Tree::empty(&other).root()).is_err(), "the root is part of the question");
}

/// The pages of a state of so many keys, some of which were written beside others after a change here and there.
fn written_beside(count: u32) -> (Arc<Disk>, Tree<Blake3>, State) {
    let (disk, pages) = fresh::<Blake3>();
    let mut state = numbered(count);
    let mut tree = grow(&disk, &pages, &state, 500);
    for round in 0..3u32 {
        flush(&disk, &tree);
        let some =
            (0..count / 60).map(|n| (name("a"), key(&state_key(n * 41 + round)), (n % 7 > 0).then(|| value(&[1; 4]))));
        let new = (0..count / 200).map(|n| (name("a"), key(&state_key(9_000 + n * 10 + round)), Some(value(&[2; 9]))));
        let diff: Diff = some.chain(new).collect();
        tree = commit(&disk, &tree, &diff);
        apply(&mut state, &diff);
    }
    flush(&disk, &tree);
    (disk, tree, state)
}

/// spec: TREE-20. A change here and there writes little of each page, and what it wrote says all of it.
#[test]
fn a_page_of_which_little_is_new_is_written_beside_what_is_there() {
    let (disk, tree, state) = written_beside(2_000);
    let all = disk.pages.lock().unwrap().clone();
    let (deltas, whole): (Vec<&Bytes>, Vec<&Bytes>) = all.iter().partition(|page| page[0] == 0);
    let bytes = |pages: &[&Bytes]| pages.iter().map(|page| page.len()).sum::<usize>() / pages.len();
    assert!(deltas.len() > 50, "{} deltas, {} whole", deltas.len(), whole.len());
    assert!(bytes(&deltas) * 4 < bytes(&whole), "{} bytes and {}", bytes(&deltas), bytes(&whole));
    let pages = Pages::<Blake3>::new(disk.clone());
    let opened = Tree::open(&pages, &tree.top().unwrap(), tree.root()).unwrap();
    assert_holds(&opened, &state);
    // What was read is written beside the same pages as what was in memory.
    let diff: Diff = (0..60).map(|n| (name("a"), key(&state_key(n * 29)), Some(value(&[3; 3])))).collect();
    let written = |tree: &Tree<Blake3>| {
        let next = commit(&disk, tree, &diff);
        let from = disk.pages.lock().unwrap().len();
        flush(&disk, &next);
        let lens: Vec<usize> = disk.pages.lock().unwrap()[from..].iter().map(Bytes::len).collect();
        (next.root(), lens)
    };
    assert_eq!(written(&opened), written(&tree));
}

/// spec: TREE-20. What has to be written anew is written beside what stays where it lies, and whole if that is to go too.
#[test]
fn what_is_written_anew_is_written_beside_what_stays() {
    let written = |stays: fn(bool) -> bool| {
        let (disk, tree, state) = written_beside(2_000);
        let all = disk.pages.lock().unwrap().clone();
        let is_delta = |at: PageAt| all.get(at.place as usize).is_some_and(|page| page[0] == 0);
        let stale = |at: Place| is_delta(PageAt { place: at.0, len: 0 });
        let survey = tree.survey(None, (usize::MAX, u64::MAX), stale, None::<fn(Place) -> bool>);
        assert!(survey.next.is_none() && survey.lost.is_empty() && survey.stale.len() > 20, "{}", survey.stale.len());
        let rewrite =
            |stale: &Stale| Rewrite { namespace: stale.namespace.clone(), key: stale.key.clone(), moved: None };
        let rewrites: Vec<Rewrite> = survey.stale.iter().map(rewrite).collect();
        let draft = tree.rewrite(&rewrites, |at| stays(is_delta(at))).unwrap();
        let tree = draft.commit(|_| panic!("nothing is put"));
        flush(&disk, &tree);
        let mut beside_delta = 0;
        tree.needs(|at| beside_delta += usize::from(is_delta(at))).unwrap();
        assert_eq!(beside_delta, 0, "nothing stale is needed");
        let pages = Pages::<Blake3>::new(disk.clone());
        assert_holds(&Tree::open(&pages, &tree.top().unwrap(), tree.root()).unwrap(), &state);
        let bytes: usize = disk.pages.lock().unwrap()[all.len()..].iter().map(Bytes::len).sum();
        bytes
    };
    let (beside, whole) = (written(|is_stale| !is_stale), written(|_| false));
    assert!(beside * 3 < whole, "{beside} bytes beside what stays, {whole} whole");
}

/// Whoever looks for pages alone keeps those in memory on whose way something is stale, and reads no other with what it is written
/// beside.
#[test]
fn looking_for_pages_leaves_others_where_they_are() {
    let (disk, tree, _) = written_beside(2_000);
    let pages = Pages::<Blake3>::new(disk.clone());
    let opened = Tree::open(&pages, &tree.top().unwrap(), tree.root()).unwrap();
    let look = |stale: &dyn Fn(Place) -> bool| {
        pages.evict(0);
        let survey = opened.survey(None, (usize::MAX, u64::MAX), stale, None::<fn(Place) -> bool>);
        assert!(survey.lost.is_empty());
        assert_eq!(survey.entries, opened.totals().count);
        (survey.stale.len(), pages.stats().memory_bytes)
    };
    let (none, few_kept) = look(&|_| false);
    let (all, all_kept) = look(&|_| true);
    assert!(none == 0 && all > 60, "{none} and {all} stale");
    assert!(few_kept * 8 < all_kept, "{few_kept} bytes are kept for nothing, {all_kept} for what is stale");
    // Wherever in a page it goes on, those before are not counted.
    let all: Vec<Key> = opened.entries(&name("a"), KeyRange::all()).map(|entry| entry.unwrap().0).collect();
    for at in (0..all.len()).step_by(7) {
        let from = (name("a"), all[at].clone());
        let survey = opened.survey(Some(&from), (usize::MAX, u64::MAX), |_| false, None::<fn(Place) -> bool>);
        assert_eq!(survey.entries, opened.totals().count - at as u64, "from entry {at}");
    }
    // One that is damaged is named all the same, if nobody has looked at it yet. What it is written beside is not looked at unless it
    // has to be read. Those that come last have no pages below.
    let mut needed = Vec::new();
    opened.needs(|at| needed.push(at)).unwrap();
    let delta = *needed.iter().rfind(|at| disk.pages.lock().unwrap()[at.place as usize][0] == 0).unwrap();
    let base = crate::stored::base_of(&disk.pages.lock().unwrap()[delta.place as usize]).unwrap();
    let lost = |opened: &Tree<Blake3>, damaged: PageAt, stale: &dyn Fn(Place) -> bool| {
        let whole = disk.pages.lock().unwrap()[damaged.place as usize].clone();
        let mut bytes = whole.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        disk.pages.lock().unwrap()[damaged.place as usize] = bytes.into();
        opened.pages().evict(0);
        let survey = opened.survey(None, (usize::MAX, u64::MAX), stale, None::<fn(Place) -> bool>);
        disk.pages.lock().unwrap()[damaged.place as usize] = whole;
        assert_eq!(survey.entries, opened.totals().count);
        survey.lost.iter().map(|(_, lost)| lost.at()).collect::<Vec<_>>()
    };
    let reopened = || Tree::open(&Pages::<Blake3>::new(disk.clone()), &tree.top().unwrap(), tree.root()).unwrap();
    assert_eq!(lost(&reopened(), delta, &|_| false), [delta]);
    assert_eq!(lost(&reopened(), base, &|_| false), []);
    assert_eq!(lost(&opened, delta, &|_| false), [], "it was looked at before");
    for opened in [&opened, &reopened()] {
        assert_eq!(lost(opened, delta, &|at| at.0 == delta.place), [delta]);
        assert_eq!(lost(opened, base, &|at| at.0 == delta.place), [delta]);
        assert_eq!(lost(opened, base, &|at| at.0 == base.place), [delta]);
    }
}

/// Of a page that was written or read here, or looked at, it is known where it lies and what it is written beside: whoever looks for
/// pages finds the same ones without reading it, and reads those alone that have pages below.
#[test]
fn a_page_is_looked_at_once() {
    let (disk, tree, _) = written_beside(2_000);
    let is_delta = |at: Place| disk.pages.lock().unwrap().get(at.0 as usize).is_some_and(|page| page[0] == 0);
    let find = |tree: &Tree<Blake3>, stale: &dyn Fn(Place) -> bool| {
        tree.pages().evict(0);
        let before = disk.read.load(Ordering::Relaxed);
        let survey = tree.survey(None, (usize::MAX, u64::MAX), stale, None::<fn(Place) -> bool>);
        assert!(survey.lost.is_empty() && survey.entries == tree.totals().count);
        (survey.stale, disk.read.load(Ordering::Relaxed) - before)
    };
    let opened = Tree::open(&Pages::<Blake3>::new(disk.clone()), &tree.top().unwrap(), tree.root()).unwrap();
    let (_, all) = find(&opened, &|_| false);
    let [leaves, ..] = kinds(&tree);
    for tree in [&tree, &opened] {
        let (_, again) = find(tree, &|_| false);
        assert!(all - again >= leaves, "{again} pages were read again of {all}");
    }
    // Among them those that lie beside what is stale.
    let unlooked = || Tree::open(&Pages::<Blake3>::new(disk.clone()), &tree.top().unwrap(), tree.root()).unwrap();
    let bases = needed_bases(&disk, &tree);
    assert!(bases.len() > 20);
    for stale in [&is_delta as &dyn Fn(Place) -> bool, &|at: Place| bases.contains(&at)] {
        let found = find(&unlooked(), stale).0;
        assert!(found.len() > 20);
        assert_eq!((&find(&tree, stale).0, &find(&opened, stale).0), (&found, &found));
    }
}

/// Where the pages lie that pages of a version are written beside.
fn needed_bases(disk: &Disk, tree: &Tree<Blake3>) -> Vec<Place> {
    let mut needed = Vec::new();
    tree.needs(|at| needed.push(at)).unwrap();
    let pages = disk.pages.lock().unwrap();
    let base = |at: &PageAt| crate::stored::base_of(&pages[at.place as usize]);
    needed.iter().filter_map(base).map(|base| Place(base.place)).collect()
}

/// spec: TREE-20. A flipped bit in what is written beside a page, or anywhere in the page that it is written beside, is damage,
/// and both are named.
#[test]
fn a_flipped_bit_beside_a_page_or_in_it_is_damage() {
    let (disk, tree, _) = written_beside(300);
    let all = disk.pages.lock().unwrap().clone();
    let mut needed = Vec::new();
    tree.needs(|at| needed.push(at)).unwrap();
    let delta = needed.iter().find(|at| all[at.place as usize][0] == 0).unwrap();
    let base = crate::stored::base_of(&all[delta.place as usize]).unwrap();
    let lost = || {
        let pages = Pages::<Blake3>::new(disk.clone());
        let tree = Tree::open(&pages, &tree.top().unwrap(), tree.root()).unwrap();
        let mut entries = tree.entries(&name("a"), KeyRange::all());
        let lost: Vec<_> = std::iter::from_fn(|| entries.past_damage()).filter_map(Result::err).collect();
        let [lost] = lost.try_into().unwrap();
        assert_eq!(lost.at(), *delta);
        lost
    };
    for at in [*delta, base] {
        let whole = all[at.place as usize].clone();
        for flipped in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[flipped] ^= 1 << (flipped % 8);
            disk.pages.lock().unwrap()[at.place as usize] = bytes.into();
            let lost = lost();
            assert_eq!(lost.base(), (at == base).then_some(base), "byte {flipped}");
            let beside = |_| Some(all[base.place as usize].clone());
            assert!(lost.is_filled_by::<Blake3>(&all[delta.place as usize], beside));
            assert!(!lost.is_filled_by::<Blake3>(&all[delta.place as usize], |_| None));
        }
        disk.pages.lock().unwrap()[at.place as usize] = whole;
    }
    // Another page that is whole in itself is not what it was written beside.
    let other = needed.iter().find(|at| at.len == base.len && **at != base);
    if let Some(other) = other {
        disk.pages.lock().unwrap()[base.place as usize] = all[other.place as usize].clone();
        lost();
    }
}

/// What a version alone had that was held for long goes some at a time, beside commits that were at the pages when it ended; and
/// all of it for whoever tidies up.
#[test]
fn what_was_held_for_long_goes_some_at_a_time() {
    let (disk, pages) = fresh::<Blake3>();
    let state = numbered(80_000);
    let held = grow(&disk, &pages, &state, 80_001);
    let new = state["a"].keys().map(|k| (name("a"), key(k), Some(value(b"new")))).collect();
    let mut last = commit(&disk, &held, &new);
    let one_more =
        |last: &Tree<Blake3>| commit(&disk, last, &[(name("b"), key(b"b"), Some(value(b"b")))].into_iter().collect());
    let in_use = || pages.stats().pages;
    let (both, beside) = (in_use(), pages.reading());
    drop(held);
    assert_eq!(in_use(), both, "somebody is at the pages");
    drop(beside);
    last = one_more(&last);
    let some = in_use();
    assert!(both - 2_100 < some && some < both - 2_000, "{both} pages, then {some}");
    pages.tidy();
    let all = in_use();
    assert!(all < both - both / 3, "{all} pages of {both} are left");
    last = one_more(&last);
    assert!(in_use() >= all, "nothing was left to let go of");
    drop(last);
    assert_eq!((in_use(), pages.stats().memory_bytes), (0, 0));
}

/// A page that a commit passes by while a flush writes it is garbage, once; and what the flush lets go of the commit's own page
/// still stands beside.
#[test]
fn what_is_passed_by_while_it_is_written_is_counted_once() {
    for seed in 0..40u64 {
        let mut random = seed;
        let mut below = |most: u64| keelstone_codec::splitmix64(&mut random) % most;
        let (disk, pages) = fresh::<Blake3>();
        let mut needs = Needed::default();
        let mut tree = grow(&disk, &pages, &numbered(600), 600);
        needs.flush(&disk, &tree);
        for _ in 0..4 {
            let mut diff = |most| -> Diff {
                let write = |_| (name("a"), key(&state_key(below(600) as u32)), Some(value(&[below(9) as u8; 3])));
                (0..most).map(write).collect()
            };
            let (before, beside) = (diff(60), [diff(20), diff(200)]);
            tree = commit_last(&disk, &tree, &before, &mut needs);
            // A draft made before the flush, and one made in the middle of it.
            let early = tree.prepare(&beside[0]).unwrap();
            let (mut last, mut new, mut countdown) = (None, Vec::new(), below(20));
            let mut early = Some(early);
            let written = tree.flush(
                |_| true,
                |bytes| {
                    if countdown == 0
                        && let Some(early) = early.take()
                    {
                        needs.pass(&early);
                        let middle = early.commit(|_| Place(0));
                        last = Some(commit_last(&disk, &middle, &beside[1], &mut needs));
                    }
                    countdown = countdown.saturating_sub(1);
                    let at = disk.put_page(bytes);
                    needs.add(&[at], 1);
                    new.push(at);
                    Ok::<_, ()>(at)
                },
            );
            let written = written.unwrap();
            needs.add(written.unneeded(), -1);
            written.settle();
            tree = last.unwrap_or(tree);
            needs.check(&tree);
        }
    }
}

/// A value is checked against the hash in the tree whenever it is read.
#[test]
fn a_spoiled_value_is_damage() {
    let (disk, pages) = fresh::<Blake3>();
    let tree = grow(&disk, &pages, &numbered(3), 64);
    let k = state_key(1);
    let at = tree.find(&name("a"), &k).unwrap().unwrap();
    disk.values.lock().unwrap()[at.place.0 as usize] = value(&[9; 4]);
    assert!(matches!(tree.get(&name("a"), &k), Err(ReadError::Damaged { .. })));
}

/// A scan gives everything before what cannot be read, then the error, then nothing, however many values it gathers.
#[test]
fn a_scan_ends_at_the_first_value_that_cannot_be_read() {
    let (disk, pages) = fresh::<Blake3>();
    let tree = grow(&disk, &pages, &numbered(1_500), 700);
    let entries: Vec<_> = tree.entries(&name("a"), KeyRange::all()).map(Result::unwrap).collect();
    for spoiled in [0, 1, 4, 84, 85, 86, 500, 1_499] {
        let place = entries[spoiled].1.place.0 as usize;
        let whole = std::mem::replace(&mut disk.values.lock().unwrap()[place], value(&[9; 4]));
        let mut scan = tree.scan(&name("a"), KeyRange::all());
        for (key, _) in &entries[..spoiled] {
            assert_eq!(scan.next().unwrap().unwrap().0, *key, "{spoiled}");
        }
        assert!(matches!(scan.next(), Some(Err(ReadError::Damaged { .. }))), "{spoiled}");
        assert!(scan.next().is_none() && scan.next().is_none(), "{spoiled}");
        disk.values.lock().unwrap()[place] = whole;
    }
    assert_holds(&tree, &numbered(1_500));
}

/// A long scan keeps no page it had to read, but for the few it reads before it is a long one, and takes no other's place.
#[test]
fn a_long_scan_goes_by_without_leaving_traces() {
    let (disk, pages) = fresh::<Blake3>();
    let tree = grow(&disk, &pages, &numbered(20_000), 5_000);
    let whole = pages.stats().memory_bytes;
    flush(&disk, &tree);
    let least = pages.evict(0);
    let used = tree.find(&name("a"), &state_key(77)).unwrap().unwrap();
    let before = pages.stats().memory_bytes;
    assert_eq!(tree.scan(&name("a"), KeyRange::all()).count(), 20_000);
    let after = pages.stats().memory_bytes;
    assert!(after < before + whole / 100, "{before} and then {after} of {whole}, {least} at least");
    assert_eq!(tree.entries(&name("a"), KeyRange::all()).in_passing().count(), 20_000);
    assert!(pages.stats().memory_bytes < after + whole / 100, "nor does one that is told to be");
    assert_eq!(tree.find(&name("a"), &state_key(77)).unwrap(), Some(used));
    assert!(pages.stats().memory_bytes < after + whole / 100, "what was in use is still there");
}

fn state_key(n: u32) -> Vec<u8> {
    blake3::hash(&n.to_le_bytes()).as_bytes()[..12].to_vec()
}

/// Eviction keeps to its budget, changes no answer, and leaves unwritten pages alone.
#[test]
fn eviction_changes_no_answer() {
    let (disk, pages) = fresh::<Blake3>();
    let state = numbered(5_000);
    let tree = grow(&disk, &pages, &state, 1_000);
    let before = pages.stats();
    assert_eq!(pages.evict(0), before.memory_bytes, "nothing is written, nothing can go");
    flush(&disk, &tree);
    assert_eq!(pages.evict(0), 0, "everything is written, everything can go");
    assert_holds(&tree, &state);
    assert_eq!(pages.stats().memory_bytes, before.memory_bytes, "all is back");
    assert!(pages.evict(before.memory_bytes / 2) <= before.memory_bytes / 2);
    assert_eq!(pages.stats().unwritten_pages, 0);
}

/// Whoever reads a page beyond the bound drops another, whichever way it is read; what versions share is still shared, and
/// what several pages stand on counts once.
#[test]
fn memory_stays_bounded_while_pages_are_read() {
    let (disk, pages) = fresh::<Blake3>();
    let state = numbered(20_000);
    let older = grow(&disk, &pages, &state, 5_000);
    let writes: Diff = (0..300).map(|n| (name("a"), key(&state_key(n * 7)), Some(value(b"new")))).collect();
    flush(&disk, &older);
    let whole = pages.stats().memory_bytes;
    let tree = commit(&disk, &older, &writes);
    let with_new = pages.stats();
    assert!(with_new.memory_bytes < whole + whole / 10, "{whole} and then {with_new:?}");
    assert!(with_new.memory_bytes >= with_new.unwritten_bytes.max(whole), "{whole} and then {with_new:?}");
    flush(&disk, &tree);
    let bound = whole / 20;
    pages.keep_within(bound);
    pages.evict(bound);
    let check = || {
        let memory = pages.stats().memory_bytes;
        assert!(memory <= bound, "{memory} of {bound}");
    };
    for n in 0..20_000 {
        let k = state_key(n * 3 % 20_000);
        assert!(tree.find(&name("a"), &k).unwrap().is_some() && older.find(&name("a"), &k).unwrap().is_some());
        check();
    }
    for n in 0..200 {
        let queries = [Query::Key(name("a"), key(&state_key(n * 97))), Query::Key(name("a"), key(&state_key(n)))];
        for asked in [&queries[..], &queries[..1]] {
            let proof = tree.prove(asked).unwrap();
            assert!(proof.verify::<Blake3>(tree.root(), asked, &ProofLimits::default()).is_ok());
        }
        check();
    }
    assert_eq!(tree.entries(&name("a"), KeyRange::all()).inspect(|_| check()).count(), 20_000);
    let moved =
        tree.survey(None, (usize::MAX, u64::MAX), |at| at.0 % 7 == 0, Some(|at: Place| at.0.is_multiple_of(50)));
    check();
    assert!(!moved.stale.is_empty());
    // What is new stays beyond the bound, and all others go for it.
    let new = commit(&disk, &tree, &(0..20_000).map(|n| (name("a"), key(&state_key(n)), Some(value(b"x")))).collect());
    let stats = pages.stats();
    assert!(stats.unwritten_bytes > bound && stats.memory_bytes <= stats.unwritten_bytes, "{stats:?} of {bound}");
    flush(&disk, &new);
    drop(older);
    let mut now = state;
    apply(&mut now, &writes);
    assert_holds(&tree, &now);
    check();
    drop((tree, new));
    let stats = pages.stats();
    assert_eq!((stats.pages, stats.memory_bytes, stats.unwritten_bytes), (0, 0, 0));
}

/// What a flush has written stays in memory until the flush says that it can be read, whoever wants room meanwhile.
#[test]
fn what_is_written_stays_until_it_can_be_read() {
    let (disk, pages) = fresh::<Blake3>();
    let state = numbered(2_000);
    let tree = grow(&disk, &pages, &state, 500);
    let whole = pages.stats();
    // The disk has nothing yet.
    let mut on_its_way: Vec<Bytes> = Vec::new();
    let written = tree.flush(
        |_| true,
        |bytes| {
            on_its_way.push(Bytes::copy_from_slice(bytes));
            Ok::<_, ()>(PageAt { place: on_its_way.len() as u64 - 1, len: bytes.len() as u32 })
        },
    );
    let written = written.unwrap();
    assert_eq!(written.memory_bytes(), whole.unwritten_bytes);
    pages.keep_within(0);
    assert_eq!((pages.evict(0), pages.stats().unwritten_bytes), (whole.memory_bytes, 0));
    assert_holds(&tree, &state);
    *disk.pages.lock().unwrap() = on_its_way;
    assert_eq!(written.settle(), whole.unwritten_pages);
    assert_eq!(pages.evict(0), 0);
    assert_holds(&tree, &state);
}

/// A page that was read before and is then mended may have other pages below it than it had; versions that know the old ones
/// read those, and all of it can be written anew.
#[test]
fn a_page_read_in_the_place_of_another_has_its_own_below_it() {
    let (disk, pages) = fresh::<Blake3>();
    let state = numbered(3_000);
    let older = grow(&disk, &pages, &state, 1_000);
    flush(&disk, &older);
    // One more version shares what is below the top page.
    let writes: Diff = [(name("a"), key(&state_key(5)), Some(value(b"new")))].into_iter().collect();
    let newer = commit(&disk, &older, &writes);
    flush(&disk, &newer);
    assert_eq!(pages.evict(0), 0);
    let mut now = state.clone();
    apply(&mut now, &writes);
    assert_holds(&newer, &now);
    assert_eq!(pages.evict(0), 0);
    // The same state once more, elsewhere on the same disk: its top page is put in the place of the first one's.
    let others = Pages::<Blake3>::new(disk.clone());
    let again = grow(&disk, &others, &now, 1_000);
    let tops = [newer.top().unwrap(), flush(&disk, &again)];
    let [first, second] = tops.map(|top| top.pages().next().unwrap().1.place as usize);
    let mended = disk.pages.lock().unwrap()[second].clone();
    disk.pages.lock().unwrap()[first] = mended;
    for memory_bytes in [usize::MAX, 0] {
        pages.keep_within(memory_bytes);
        assert_holds(&newer, &now);
        assert_holds(&older, &state);
        pages.evict(0);
    }
    let rewrites = now["a"].keys().map(|k| Rewrite { namespace: name("a"), key: key(k), moved: None });
    let moved = newer.rewrite(&rewrites.collect::<Vec<_>>(), |_| false).unwrap().commit(|_| panic!("nothing is put"));
    flush(&disk, &moved);
    drop(newer);
    pages.evict(0);
    assert_holds(&moved, &now);
    assert_holds(&older, &state);
}

/// Versions can be read from any thread while others are made, written, evicted and dropped.
#[test]
fn readers_see_their_version_while_others_come_and_go() {
    let (disk, pages) = fresh::<Blake3>();
    pages.keep_within(256 << 10);
    let mut state = numbered(3_000);
    let mut tree = grow(&disk, &pages, &state, 1_000);
    std::thread::scope(|scope| {
        for round in 0u32..30 {
            let (held, expected) = (tree.clone(), state.clone());
            scope.spawn(move || assert_holds(&held, &expected));
            let writes: Diff = (0..200u32)
                .map(|n| {
                    let value = (n % 5 > 0).then(|| value(&(n + round).to_le_bytes()));
                    (name("a"), key(&state_key(n * 31 + round)), value)
                })
                .collect();
            tree = commit(&disk, &tree, &writes);
            apply(&mut state, &writes);
            if round.is_multiple_of(3) {
                flush(&disk, &tree);
            }
            pages.evict(1 << 20);
        }
    });
    assert_holds(&tree, &state);
    drop(tree);
    assert_eq!((pages.stats().pages, pages.stats().memory_bytes), (0, 0));
}

/// The states whose nodes and roots are pinned: none, one entry, keys that are prefixes of keys, two namespaces, and
/// enough for several pages.
fn golden_states() -> Vec<(&'static str, State)> {
    fn entries(entries: &[(&[u8], &[u8])]) -> reference::Entries {
        entries.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
    }
    let space = |name: &str, all: &[(&[u8], &[u8])]| (name.to_owned(), entries(all));
    let prefixes: &[(&[u8], &[u8])] = &[(&[0], b"1"), (&[0, 0], b"2"), (&[0, 0x80], b"3"), (&[0xff], b"4")];
    let two: &[(&[u8], &[u8])] = &[(b"k", b"v"), (b"l", &[0x5a; 100])];
    let three = [space("a", &[(b"k", b"v")]), space("ab", &[(b"k", b"v")]), space("b.c_d-e", two)];
    vec![
        ("empty", State::new()),
        ("one entry", State::from([space("a", &[(b"key", b"value")])])),
        ("prefixes", State::from([space("a", prefixes)])),
        ("namespaces", State::from(three)),
        ("pages", numbered(100)),
    ]
}

fn golden<H: Hasher>() -> Json {
    let mut states = Vec::new();
    for (title, state) in golden_states() {
        let (disk, pages) = fresh::<H>();
        let tree = grow(&disk, &pages, &state, 1_000_000);
        assert_eq!(tree.root(), reference_root::<H>(&state));
        let top = flush(&disk, &tree).to_bytes();
        let spaces = tree.namespaces().map(|(name, totals, root)| {
            json!({"name": name.as_str(), "count": totals.count, "bytes": totals.bytes, "root": root.to_string()})
        });
        let written: Vec<String> = disk.pages.lock().unwrap().iter().map(hex::encode).collect();
        states.push(json!({
            "title": title,
            "root": tree.root().to_string(),
            "namespaces": spaces.collect::<Vec<_>>(),
            "top": hex::encode(top),
            "pages": written,
        }));
    }
    // One key of a hundred changes, one goes and one comes: three pages, and then what is new of them.
    let (disk, pages) = fresh::<H>();
    let tree = grow(&disk, &pages, &numbered(100), 1_000_000);
    flush(&disk, &tree);
    let changes = [(state_key(3), Some(value(b"new"))), (state_key(50), None), (state_key(100), Some(value(b"more")))];
    let tree = commit(&disk, &tree, &changes.map(|(k, v)| (name("a"), key(&k), v)).into_iter().collect());
    let before = disk.pages.lock().unwrap().len();
    let top = flush(&disk, &tree).to_bytes();
    let written: Vec<String> = disk.pages.lock().unwrap()[before..].iter().map(hex::encode).collect();
    let changed = json!({"root": tree.root().to_string(), "top": hex::encode(top), "pages": written});
    let totals = [Totals { count: 1, bytes: 2 }, Totals { count: 3, bytes: u64::MAX - 2 }];
    let (x, y) = (H::hash(b"x"), H::hash(b"y"));
    let node = |image: preimage::Preimage| json!([hex::encode(image), H::hash_node(&image).to_string()]);
    json!({
        "nodes": {
            "empty": node(preimage::empty()),
            "entry": node(preimage::leaf(0x1234, 0x0056_789a, &x, &y)),
            "inner of entries": node(preimage::inner(Level::Entries, 0x0708, totals, [&x, &y])),
            "namespace": node(preimage::namespace(32, totals[1], &x, &y)),
            "inner of namespaces": node(preimage::inner(Level::Namespaces, 0x0708, totals, [&x, &y])),
        },
        "states": states,
        "pages, three keys changed": changed,
    })
}

/// spec: TREE-4, TREE-6, TREE-18, TREE-19, TREE-20. `spec/vectors/tree.json` pins nodes, roots and pages under both hashers.
/// `KEELSTONE_BLESS=1` writes it anew.
#[test]
fn golden_nodes_roots_and_pages_have_not_changed() {
    let states = golden_states().into_iter().map(|(title, state)| {
        let entries = state.iter().flat_map(|(space, entries)| {
            entries.iter().map(move |(k, v)| json!([space, hex::encode(k), hex::encode(v)])).collect::<Vec<_>>()
        });
        json!({"title": title, "entries": entries.collect::<Vec<_>>()})
    });
    let diff: Diff = diff(&[(1, vec![0], None), (0, vec![1, 2], Some(3)), (0, vec![1], Some(1))]);
    let found = json!({
        "states": states.collect::<Vec<_>>(),
        "diff": hex::encode(diff.to_bytes()),
        "blake3": golden::<Blake3>(),
        "sha256": golden::<Sha256>(),
    });
    ::golden::check("tree.json", &found);
}

/// spec: TREE-16. A diff has one encoding: order, doubles, namespaces without writes and leftovers are refused.
#[test]
fn a_diff_has_one_encoding() {
    let good = diff(&[(0, vec![1], Some(1)), (0, vec![1, 0], None), (1, vec![0], Some(2))]);
    let bytes = good.to_bytes();
    assert_eq!(Diff::from_bytes(&bytes).as_ref(), Ok(&good));
    assert_eq!((good.len(), good.bytes()), (3, 1 + 2 + 2 + 1 + 3));
    for cut in 0..bytes.len() {
        assert!(Diff::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(Diff::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    let encoded = |parts: &[(&str, &[&str])]| {
        let mut out = (parts.len() as u32).to_bytes();
        for (space, keys) in parts {
            name(space).encode(&mut out);
            (keys.len() as u32).encode(&mut out);
            for k in *keys {
                key(k.as_bytes()).encode(&mut out);
                None::<Value>.encode(&mut out);
            }
        }
        Diff::from_bytes(&out).map(|_| ())
    };
    assert_eq!(encoded(&[("a", &["a", "b"]), ("b", &["a"])]), Ok(()));
    let bad: [&[(&str, &[&str])]; 5] = [
        &[("a", &["b", "a"])],
        &[("a", &["a", "a"])],
        &[("b", &["a"]), ("a", &["a"])],
        &[("a", &["a"]), ("a", &["b"])],
        &[("a", &[])],
    ];
    for bad in bad {
        assert!(matches!(encoded(bad), Err(DecodeError::NotCanonical { .. })), "{bad:?}");
    }
    // One write after another takes far more memory than bytes: who repeats one is heard no further.
    let mut many = [1u32.to_bytes(), name("a").to_bytes(), 1_000u32.to_bytes()].concat();
    many.extend(std::iter::repeat_n([key(b"k").to_bytes(), None::<Value>.to_bytes()].concat(), 1_000).flatten());
    let input = &mut Reader::new(&many);
    assert!(matches!(Diff::decode(input), Err(DecodeError::NotCanonical { .. })));
    assert_eq!(input.left(), 998 * 3);
    let twice: Diff = [(name("a"), key(b"k"), None), (name("a"), key(b"k"), Some(value(b"v")))].into_iter().collect();
    assert_eq!(twice.find(&name("a"), b"k").unwrap().value, Some(value(b"v")));
    assert_eq!(good.clone().then(Diff::default()), good);
}

/// spec: TREE-1. Keys and values at both ends of their lengths go in and come out.
#[test]
fn the_longest_and_shortest_keys_and_values_are_kept() {
    let (disk, pages) = fresh::<Blake3>();
    let long = vec![0xabu8; 255];
    let entries = [(vec![0u8], vec![1u8]), (long, vec![7; 8 << 20]), (vec![0xff], vec![1])];
    let state = State::from([("a".to_owned(), entries.into_iter().collect())]);
    let tree = grow(&disk, &pages, &state, 2);
    flush(&disk, &tree);
    pages.evict(0);
    assert_holds(&tree, &state);
}

/// Hashing runs while pages are still being built; no page may be left with what its children were before.
#[test]
fn a_batch_of_any_size_gives_the_plain_root() {
    for count in [500u32, 2_000, 20_000] {
        let entry =
            |n: u32| (name("n"), Key::new(Blake3::hash(&n.to_le_bytes()).0).unwrap(), Some(value(&[n as u8, 1])));
        let first: Diff = (0..count).map(entry).collect();
        let second: Diff = (count / 2..count * 2).map(entry).collect();
        let mut plain = crate::MemoryTree::<Blake3>::new();
        let roots = [plain.apply(&first), plain.apply(&second)];
        for threads in [1, 2, 5] {
            let (disk, pages) = fresh_on_threads::<Blake3>(threads);
            let tree = commit(&disk, &Tree::empty(&pages), &first);
            assert_eq!(tree.root(), roots[0], "{count} new keys on {threads} threads");
            let tree = commit(&disk, &tree, &second);
            assert_eq!(tree.root(), roots[1], "{count} keys and more on {threads} threads");
        }
    }
}

/// spec: TREE-14. Equal subtrees in two namespaces are two: what befalls one leaves the other alone.
#[test]
fn equal_namespaces_are_separate() {
    let (disk, pages) = fresh::<Blake3>();
    let mut state = numbered(200);
    let twin = state["a"].clone();
    state.insert("twin".to_owned(), twin);
    let mut tree = grow(&disk, &pages, &state, 64);
    flush(&disk, &tree);
    pages.evict(0);
    let gone: Diff = state["a"].keys().map(|k| (name("a"), key(k), None)).collect();
    tree = commit(&disk, &tree, &gone);
    state.remove("a");
    assert_holds(&tree, &state);
}
