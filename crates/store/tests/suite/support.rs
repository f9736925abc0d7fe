//! What the tests share: seeded randomness, a model of the state, and small stores.

use keelstone_codec::{Height, Key, Namespace, Root, Value, splitmix64};
use keelstone_store::files::{Act, Interposed, MemoryFiles};
use keelstone_store::{Building, Options, Store, StoreError, View};
use keelstone_tree::{Blake3, Diff, Hasher, KeyRange, Read, ReadError, reference};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The store under test.
pub(crate) type TestStore = Store<Blake3>;

/// Small and seeded.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub(crate) use golden::count;

/// The state as it should be.
pub(crate) type Model = reference::State;

pub(crate) fn root_of(model: &Model) -> Root {
    reference::root_with(reference::blake3, model)
}

pub(crate) fn namespace(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

/// Small segments and caches, and no threads: everything happens often and in order.
pub(crate) fn small() -> Options {
    Options {
        segment_bytes: 8 << 10,
        page_segment_bytes: 8 << 10,
        flush_bytes: 8 << 10,
        cache_bytes: 4 << 10,
        value_cache_bytes: 32 << 10,
        recent_versions: 3,
        id: Some([7; 16]),
        background: false,
        ..Options::default()
    }
}

/// A few writes to a few keys, some of them prefixes of others.
pub(crate) fn random_diff(random: &mut Random) -> Diff {
    let names = ["a", "b", "cc"];
    let writes = 1 + random.below(4);
    (0..writes)
        .map(|_| {
            let name = names[random.below(3) as usize];
            let key: Vec<u8> =
                (0..1 + random.below(3)).map(|_| [0, 0x41, 0x80, 0xff][random.below(4) as usize]).collect();
            let value = (random.below(10) < 7).then(|| {
                let len = if random.below(20) == 0 { 600 + random.below(3000) } else { 1 + random.below(40) };
                vec![random.below(256) as u8; len as usize]
            });
            (namespace(name), Key::new(key).unwrap(), value.map(|value| Value::new(value).unwrap()))
        })
        .collect()
}

pub(crate) fn apply(model: &mut Model, diff: &Diff) {
    for (name, write) in diff.iter() {
        let entries = model.entry(name.as_str().to_owned()).or_default();
        match &write.value {
            Some(value) => drop(entries.insert(write.key.to_vec(), value.to_vec())),
            None => drop(entries.remove(write.key.as_slice())),
        }
    }
    model.retain(|_, entries| !entries.is_empty());
}

/// Pushes a whole state into a store that is being built.
pub(crate) fn push_all<H: Hasher>(building: &mut Building<H>, model: &Model) -> Result<(), StoreError> {
    for (name, entries) in model {
        for (key, value) in entries {
            building.push(&namespace(name), &Key::new(key.as_slice()).unwrap(), value)?;
        }
    }
    Ok(())
}

/// Everything a view of a sound store holds, read by scanning.
pub(crate) fn contents<H: Hasher>(view: &View<H>) -> Model {
    try_contents(view).expect("a sound store can be scanned")
}

/// Everything a view holds, read by scanning, or the first thing that cannot be read.
pub(crate) fn try_contents<H: Hasher>(view: &View<H>) -> Result<Model, ReadError> {
    let mut model = Model::new();
    for (name, totals) in view.namespaces() {
        let scanned = view.scan(&name, KeyRange::all());
        let entries: BTreeMap<_, _> =
            scanned.map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect::<Result<_, _>>()?;
        assert_eq!(totals.count, entries.len() as u64);
        model.insert(name.as_str().to_owned(), entries);
    }
    Ok(model)
}

/// A store's answers about a state are those of the model: root, contents, single reads and absences.
pub(crate) fn assert_view(view: &View<Blake3>, model: &Model, random: &mut Random) {
    assert_eq!(view.root(), root_of(model));
    assert_eq!(contents(view), *model);
    for _ in 0..3 {
        let key = [[0, 0x41, 0x80, 0xff][random.below(4) as usize]];
        let found = view.get(&namespace("a"), &key).unwrap().map(|value| value.to_vec());
        assert_eq!(found, model.get("a").and_then(|entries| entries.get(&key[..])).cloned());
    }
}

/// One commit that changes `key` in namespace `a`.
pub(crate) fn put(store: &TestStore, height: u64, key: &str, value: &[u8]) -> Root {
    let value = Some(Value::new(value.to_vec()).unwrap());
    let diff = [(namespace("a"), Key::new(key.as_bytes()).unwrap(), value)].into_iter().collect();
    store.commit(Height(height), diff).unwrap()
}

/// A quick disk on which somebody hears of what is done to files, by the names these end up with, before it is done.
pub(crate) fn watched(files: MemoryFiles, watch: impl Fn(&str, Act<'_>) + Send + Sync + 'static) -> Interposed {
    Interposed::new(Arc::new(files), move |name, act, go_on| {
        watch(name.strip_suffix(".new").unwrap_or(name), act);
        go_on()
    })
}
