//! One namespace or one prefix alone, with its proof.

use crate::support::{create, go_on, id, open, params, version};
use keelstone_codec::{Key, Namespace, Value};
use keelstone_store::files::MemoryFiles;
use keelstone_sync::library::{EXTRACT_BYTES_MAX, Expected, Extract, Library, LibraryError, Origin};
use keelstone_tree::{Blake3, Grown, KeyRange, Proof, ProofLimits, Query, Read, prove};
use std::collections::BTreeMap;
use std::io::Cursor;

fn name(text: &str) -> Namespace {
    Namespace::new(text).unwrap()
}

fn extract(library: &Library, height: u64, namespace: &Namespace, prefix: &[u8]) -> Result<Extract, LibraryError> {
    let pin = library.pin(id(height)).unwrap();
    Origin::Kept(&pin).extract(&Expected::default(), namespace, prefix)
}

/// spec: LIB-9. What comes out is what the state has, with the very proof the whole state gives, from a library, a
/// directory and a tar alike; and it takes only the chunks it is about.
#[test]
fn a_part_of_a_snapshot_is_proven_and_takes_only_its_own_chunks() {
    let files = MemoryFiles::new();
    let library = open(&files);
    let state = version(600, 0, 0);
    let info = create(&library, &state, 5).unwrap();
    let (mut tar, directory) = (Vec::new(), MemoryFiles::new());
    library.export_tar(id(5), &mut tar, &mut go_on).unwrap();
    library.export_directory(id(5), &directory, 0, &mut go_on).unwrap();
    let units = extract(&library, 5, &name("social"), b"").unwrap().units_read;
    for (space, prefix) in [
        ("agents", &b""[..]),
        ("social", b""),
        ("agents", b"key-0003"),
        ("social", b"key-00059"),
        ("agents", b"key-000597"),
        ("agents", b"zzz"),
        ("social", b"\xff\xff"),
        ("nobody", b""),
        ("nobody", b"x"),
    ] {
        let namespace = name(space);
        let found = extract(&library, 5, &namespace, prefix).unwrap();
        let expected: Vec<_> = state.scan(&namespace, KeyRange::prefix(prefix)).map(|entry| entry.unwrap()).collect();
        assert_eq!((found.entries, &found.info), (expected.clone(), &info), "{space}/{}", prefix.escape_ascii());
        let query = [Query::Prefix(namespace.clone(), prefix.to_vec())];
        assert_eq!(found.proof, prove(&state, &query).unwrap().encode(), "{space}/{}", prefix.escape_ascii());
        let proof = Proof::decode(&found.proof).unwrap();
        proof.verify::<Blake3>(state.root(), &query, &ProofLimits::default()).unwrap();
        if !prefix.is_empty() {
            assert!(
                found.units_read * 4 < units,
                "{} of {units} units for {}",
                found.units_read,
                prefix.escape_ascii()
            );
        }
        let again = Origin::Directory(&directory).extract(&Expected::default(), &namespace, prefix).unwrap();
        assert_eq!((&again.entries, &again.proof), (&expected, &found.proof));
        let again = Origin::Tar(&mut Cursor::new(&tar)).extract(&Expected::default(), &namespace, prefix).unwrap();
        assert_eq!((&again.entries, &again.proof), (&expected, &found.proof));
    }
}

/// States whose units are whole namespaces, single entries, or nothing.
#[test]
fn parts_of_odd_states_are_proven_too() {
    let value = |len: usize| Value::new(vec![7; len]).unwrap();
    let key = |number: u32| Key::new(format!("{number:04}").into_bytes()).unwrap();
    let spaces = |count: u32, entries: u32, len: usize| {
        let space = |number: u32| {
            let entries = (0..entries).map(|number| (key(number), value(len)));
            (name(&format!("space-{number:03}")), entries.collect::<BTreeMap<_, _>>())
        };
        Grown::new::<Blake3>(&(0..count).map(space).collect())
    };
    for state in [spaces(0, 0, 0), spaces(1, 1, 1), spaces(200, 1, 3), spaces(3, 9, 5_000), spaces(1, 40, 200)] {
        let files = MemoryFiles::new();
        let library = open(&files);
        create(&library, &state, 1).unwrap();
        for (space, prefix) in [("space-000", &b""[..]), ("space-000", b"000"), ("space-002", b"0008"), ("x", b"")] {
            let found = extract(&library, 1, &name(space), prefix).unwrap();
            let query = [Query::Prefix(name(space), prefix.to_vec())];
            assert_eq!(found.proof, prove(&state, &query).unwrap().encode(), "{space}");
        }
    }
}

/// What is too much to hold is refused by its limit before it is read; a damaged chunk is named.
#[test]
fn a_part_that_is_too_large_or_damaged_is_refused() {
    let value = Value::new(vec![1; 1 << 20]).unwrap();
    let entries = (0..9u8).map(|number| (Key::new(vec![b'a', number]).unwrap(), value.clone()));
    let state = Grown::new::<Blake3>(&[(name("big"), entries.collect())].into());
    let files = MemoryFiles::new();
    let library = open(&files);
    create(&library, &state, 1).unwrap();
    let error = extract(&library, 1, &name("big"), b"a").unwrap_err();
    assert!(matches!(error, LibraryError::TooLarge { limit: EXTRACT_BYTES_MAX, .. }), "{error}");
    assert_eq!(extract(&library, 1, &name("big"), &[b'a', 3]).unwrap().entries.len(), 1);
    let index = library.pin(id(1)).unwrap().index().clone();
    let last = index.chunks.last().unwrap();
    crate::support::flip(&files, &format!("{}.chunk", last.name), 3);
    let error = extract(&library, 1, &name("big"), &[b'a', 8]).unwrap_err();
    assert!(matches!(error, LibraryError::Damaged { .. }), "{error}");
    assert_eq!(params().chunk_weight_max, 2048, "the entries above are units of their own");
}
