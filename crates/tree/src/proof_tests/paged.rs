//! The paged tree gives the very proofs that the nodes in memory give, from memory or from disk.

use super::*;
use crate::{Backing, PageAt, Pages, Place, ReadError, Tree};
use keelstone_codec::Bytes;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// Pages and values, by number.
#[derive(Default)]
struct Disk {
    pages: Mutex<Vec<Bytes>>,
    values: Mutex<Vec<Value>>,
}

impl Backing for Disk {
    fn page(&self, at: PageAt) -> Result<Bytes, ReadError> {
        Ok(self.pages.lock().unwrap()[at.place as usize].clone())
    }
    fn value(&self, at: Place, _: u32) -> Result<Value, ReadError> {
        let values = self.values.lock().unwrap();
        values.get(at.0 as usize).cloned().ok_or_else(|| ReadError::damaged("no such place"))
    }
}

fn paged<H: Hasher>(state: &State, disk: &Arc<Disk>) -> Tree<H> {
    let writes = state.iter().flat_map(|(name, entries)| {
        entries.iter().map(|(key, value)| (name.clone(), key.clone(), Some(value.clone())))
    });
    let diff: Diff = writes.collect();
    let all: Vec<Value> = diff.iter().filter_map(|(_, write)| write.value.clone()).collect();
    let tree = Tree::empty(&Pages::<H>::new(disk.clone()));
    tree.prepare(&diff).unwrap().commit(|write| {
        let mut values = disk.values.lock().unwrap();
        values.push(all[write].clone());
        Place(values.len() as u64 - 1)
    })
}

/// The same version, with nothing of it in memory.
fn reopened<H: Hasher>(tree: &Tree<H>, disk: &Arc<Disk>) -> Tree<H> {
    let write = |bytes: &[u8]| {
        let mut pages = disk.pages.lock().unwrap();
        pages.push(Bytes::copy_from_slice(bytes));
        Ok::<_, ()>(PageAt { place: pages.len() as u64 - 1, len: bytes.len() as u32 })
    };
    tree.flush(|_| true, write).unwrap().settle();
    Tree::open(&Pages::new(disk.clone()), &tree.top().unwrap(), tree.root()).unwrap()
}

fn questions(state: &State, picks: &[prop::sample::Index]) -> Vec<Query> {
    let all: Vec<_> = state.iter().flat_map(|(name, e)| e.keys().map(move |key| (name.clone(), key.clone()))).collect();
    let mut queries = Vec::new();
    for pick in picks {
        let (name, found) = all[pick.index(all.len())].clone();
        let absent = key(&[&found[..found.len().min(250)], b"?"].concat());
        queries.extend([
            Query::Key(name.clone(), absent),
            Query::Prefix(name.clone(), found[..1].to_vec()),
            Query::PrefixTotals(name.clone(), found[..found.len().min(2)].to_vec()),
            Query::Write(name.clone(), found.clone()),
            Query::Key(ns("aa"), found.clone()),
            Query::Write(ns("zz"), found.clone()),
            Query::Key(name, found),
        ]);
    }
    queries
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(40)))]

    /// spec: TREE-7. For a state and a set of questions there is one proof, wherever the nodes are.
    #[test]
    fn pages_give_the_proofs_that_nodes_in_memory_give(
        keys in prop::collection::vec((0..3usize, prop::collection::vec(any::<u8>(), 1..6)), 1..300),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
    ) {
        let mut state = State::new();
        for (name, k) in keys {
            state.entry(ns(["a", "b", "c"][name])).or_default().insert(key(&k), value(&k));
        }
        let grown = Grown::new::<Blake3>(&state);
        let disk = Arc::new(Disk::default());
        let in_memory = paged::<Blake3>(&state, &disk);
        prop_assert_eq!(in_memory.root(), grown.root());
        let on_disk = reopened(&in_memory, &disk);
        let queries = questions(&state, &picks);
        for queries in queries.chunks(1).chain([queries.as_slice()]) {
            let expected = prove(&grown, queries).unwrap().encode();
            prop_assert_eq!(in_memory.prove(queries).unwrap().encode(), expected.clone());
            prop_assert_eq!(on_disk.prove(queries).unwrap().encode(), expected.clone());
            let verified = verify::<Blake3>(&expected, grown.root(), queries);
            prop_assert!(verified.is_ok(), "{:?}", verified.err());
        }
    }
}

/// A page or value that is damaged makes a proof fail, and never makes a wrong one.
#[test]
fn n01_a_damaged_page_or_value_gives_no_proof() {
    let entries = (0..400u32).map(|i| (key(&Blake3::hash(&i.to_le_bytes()).0[..8]), value(&i.to_le_bytes()))).collect();
    let state = State::from([(ns("a"), entries)]);
    let queries = [Query::Range(ns("a"), KeyRange::all())];
    let expected = prove(&Grown::new::<Blake3>(&state), &queries).unwrap().encode();
    let disk = Arc::new(Disk::default());
    let tree = paged::<Blake3>(&state, &disk);
    let whole = reopened(&tree, &disk);
    assert_eq!(whole.prove(&queries).unwrap().encode(), expected);
    let pages = disk.pages.lock().unwrap().clone();
    for (number, page) in pages.iter().enumerate() {
        for at in (0..page.len()).step_by(7) {
            let mut damaged = page.to_vec();
            damaged[at] ^= 0x10;
            disk.pages.lock().unwrap()[number] = damaged.into();
            let tree = Tree::open(&Pages::<Blake3>::new(disk.clone()), &whole.top().unwrap(), whole.root()).unwrap();
            // A flipped place leads to another value, which is then not the one the page commits to.
            let found = tree.prove(&queries);
            assert!(matches!(found, Err(ReadError::Damaged { .. })), "page {number}, byte {at}: {found:?}");
        }
        disk.pages.lock().unwrap()[number] = page.clone();
    }
}

/// spec: TREE-12
#[test]
fn a_path_of_2000_levels_is_proven_from_pages() {
    let state = comb(2000);
    let disk = Arc::new(Disk::default());
    let tree = paged::<Blake3>(&state, &disk);
    let on_disk = reopened(&tree, &disk);
    let queries = [Query::Key(ns("comb"), key(&[0; 255]))];
    let expected = prove(&Grown::new::<Blake3>(&state), &queries).unwrap().encode();
    assert_eq!(on_disk.prove(&queries).unwrap().encode(), expected);
    assert!(verify::<Blake3>(&expected, tree.root(), &queries).is_ok());
}
