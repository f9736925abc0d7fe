//! What stands twice in the state stands at two places of the store.

use crate::support::{Model, TestStore, apply, contents, namespace, root_of, small};
use keelstone_codec::{Height, Key, Value};
use keelstone_store::files::MemoryFiles;
use keelstone_tree::Diff;
use std::sync::Arc;

/// spec: TREE-14. Two namespaces with the same entries have equal subtrees with equal hashes. What happens to the one
/// does not happen to the other: nothing is found, kept or dropped by a bare hash.
#[test]
fn equal_subtrees_in_two_namespaces_are_two() {
    let files = Arc::new(MemoryFiles::new());
    let store = TestStore::create(files.clone(), small()).unwrap();
    let mut model = Model::new();
    let entries = |name: &'static str, value: Option<&'static [u8]>| {
        (0..200u8).map(move |n| {
            let key = Key::new([n, n / 3]).unwrap();
            (namespace(name), key, value.map(|value| Value::new(value).unwrap()))
        })
    };
    let steps: [Diff; 3] = [
        entries("a", Some(b"same")).chain(entries("b", Some(b"same"))).collect(),
        entries("a", None).take(150).collect(),
        entries("a", None).collect(),
    ];
    for (height, diff) in (1..).zip(steps) {
        apply(&mut model, &diff);
        let root = store.commit(Height(height), diff).unwrap();
        store.flush().unwrap();
        assert_eq!(root, root_of(&model));
    }
    store.prune(Height(3)).unwrap();
    drop(store);
    let view = TestStore::open(files, small()).unwrap().view();
    assert_eq!(contents(&view), model);
    assert_eq!(model["b"].len(), 200);
}
