//! Real directories: locks, links, and what happens when one goes away.

use crate::support::{TestStore, put, small};
use keelstone_codec::Height;
use keelstone_store::StoreError;
use keelstone_store::files::{Directory, Files};
use std::sync::Arc;

fn files(path: &std::path::Path) -> Arc<dyn Files> {
    Arc::new(Directory::new(path).unwrap())
}

#[test]
fn l03_a_second_opener_is_refused_with_the_pid_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = TestStore::create(files(directory.path()), small()).unwrap();
    put(&store, 1, "key", b"value");
    let error = TestStore::open(files(directory.path()), small()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { pid: Some(pid) } if pid == std::process::id()), "{error}");
    assert_eq!(error.to_string(), format!("the store is in use by pid {}", std::process::id()));
    drop(store);
    // A lock file that was left behind holds nobody up: the lock is the operating system's.
    std::fs::write(directory.path().join("LOCK"), "4711").unwrap();
    let store = TestStore::open(files(directory.path()), small()).unwrap();
    assert_eq!(store.height(), Some(Height(1)));
}

#[test]
fn l04_a_missing_directory_a_file_in_its_place_and_an_empty_one_are_named() {
    let directory = tempfile::tempdir().unwrap();
    assert!(Directory::existing(directory.path().join("none")).is_err());
    let file = directory.path().join("file");
    std::fs::write(&file, "text").unwrap();
    assert!(Directory::existing(&file).is_err() && Directory::new(&file).is_err());
    let error = TestStore::open(files(&directory.path().join("empty")), small()).unwrap_err();
    assert!(matches!(error, StoreError::Missing { file: "superblock" }), "{error}");
    assert!(matches!(TestStore::open(files(directory.path()), small()), Err(StoreError::Missing { .. })));
}

#[cfg(unix)]
#[test]
fn l04_a_linked_directory_is_one_store_and_a_removed_one_fails_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let store = TestStore::create(files(&link), small()).unwrap();
    assert!(matches!(TestStore::open(files(&real), small()), Err(StoreError::InUse { .. })));
    std::fs::remove_dir_all(&real).unwrap();
    // What is open goes on; the first new segment cannot be made, says so, and the store stops.
    let mut failure = None;
    for height in 1..200 {
        let diff = crate::support::random_diff(&mut crate::support::Random(height));
        if let Err(error) = store.commit(Height(height), diff) {
            failure = Some(error);
            break;
        }
    }
    assert!(matches!(failure, Some(StoreError::Io { .. })), "{failure:?}");
    assert!(matches!(store.flush(), Err(StoreError::Poisoned { .. })));
}

/// spec: STORE-10. Files of another store in the same directory are not this store's.
#[test]
fn files_of_two_stores_cannot_mix() {
    let directory = tempfile::tempdir().unwrap();
    let store = TestStore::create(files(directory.path()), small()).unwrap();
    let root = put(&store, 1, "key", b"value");
    drop(store);
    let other = directory.path().join("01020304-0000000002.log");
    std::fs::write(&other, vec![0xaa; 8192]).unwrap();
    let store = TestStore::open(files(directory.path()), small()).unwrap();
    assert_eq!(store.root(), root);
    assert!(matches!(TestStore::create(files(directory.path()), small()), Err(StoreError::InUse { .. })));
    drop(store);
    assert!(matches!(TestStore::create(files(directory.path()), small()), Err(StoreError::Exists)));
}

/// What is no regular file is not listed, and whoever must know of it can ask.
#[cfg(unix)]
#[test]
fn a_directory_names_what_it_does_not_list() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(directory.path());
    std::fs::write(directory.path().join("plain"), "x").unwrap();
    assert_eq!((files.list().unwrap(), files.stranger().unwrap()), (vec!["plain".to_owned()], None));
    std::os::unix::fs::symlink("plain", directory.path().join("link")).unwrap();
    assert_eq!((files.list().unwrap(), files.stranger().unwrap()), (vec!["plain".to_owned()], Some("link".to_owned())));
    let room = files.room().unwrap();
    assert!(room.total_bytes > 0 && room.free_bytes <= room.total_bytes, "{room:?}");
}
