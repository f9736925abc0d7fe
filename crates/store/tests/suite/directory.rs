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

/// A file system of two megabytes that is taken down in the end.
#[cfg(target_os = "linux")]
struct Tmpfs(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl Tmpfs {
    fn new() -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(directory.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Ok(Self(directory)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

/// What nobody can write to can be read by who says that it only reads. Whoever means to write is told so when a file is opened.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_nobody_can_write_to_can_be_read() {
    let read = |files: &dyn Files| {
        let file = files.open("plain").unwrap();
        let mut bytes = [0; 5];
        file.read_at(0, &mut bytes).unwrap();
        assert_eq!((&bytes, file.len().unwrap(), files.list().unwrap()), (b"bytes", 5, vec!["plain".to_owned()]));
        assert!(file.write_at(0, b"other").is_err(), "it was opened only to read");
    };
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("plain"), "bytes").unwrap();
    read(&Directory::to_read(directory.path()).unwrap());
    assert_eq!(Directory::to_read(directory.path().join("absent")).unwrap_err().kind(), std::io::ErrorKind::NotFound);

    let disk = match Tmpfs::new() {
        Ok(disk) => disk,
        Err(reason) => return println!("no disk was made read-only, for want of a file system to mount: {reason}"),
    };
    std::fs::write(disk.0.path().join("plain"), "bytes").unwrap();
    let remounted = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(disk.0.path()).status().unwrap();
    assert!(remounted.success());
    read(&Directory::to_read(disk.0.path()).unwrap());
    let refused = Directory::existing(disk.0.path()).unwrap().open("plain").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

/// spec: STORE-8. A disk that fills up, at each of many moments: the commit that found no room says so, reads go on,
/// nothing acknowledged is missing, and with room again the store goes on. Whoever may not mount one does it in a namespace of
/// mounts of their own. Where that cannot be had either it is left out; on a CI machine, if `.ci/run` found that too.
#[cfg(target_os = "linux")]
#[test]
fn w06_l04_a_full_disk_stops_commits_and_loses_nothing() {
    let reason = match Tmpfs::new() {
        Ok(disk) => return fills_up(&disk),
        Err(reason) => reason,
    };
    assert!(std::env::var_os(INSIDE).is_none(), "in a namespace of its own: {reason}");
    let probe = tempfile::tempdir().unwrap();
    let unshare = |command: &std::ffi::OsStr, arguments: &[&std::ffi::OsStr]| {
        std::process::Command::new("unshare").arg("-Urm").arg(command).args(arguments).env(INSIDE, "1").output()
    };
    let tmpfs = ["-t", "tmpfs", "tmpfs"].map(std::ffi::OsStr::new);
    let mounted = unshare("mount".as_ref(), &[&tmpfs[..], &[probe.path().as_os_str()]].concat());
    if !mounted.is_ok_and(|output| output.status.success()) {
        let excused = std::env::var("TESTS_LEFT_OUT").is_ok_and(|what| what.split(' ').any(|word| word == "mount"));
        assert!(excused || std::env::var_os("CI").is_none(), "no disk was filled up on a CI machine: {reason}");
        return eprintln!("left out, no disk was filled up, for want of a file system to mount: {reason}");
    }
    let test = ["--exact", "directory::w06_l04_a_full_disk_stops_commits_and_loses_nothing"].map(std::ffi::OsStr::new);
    let output = unshare(std::env::current_exe().unwrap().as_os_str(), &test).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Set in the process that has a namespace of its own.
#[cfg(target_os = "linux")]
const INSIDE: &str = "KEELSTONE_TEST_MAY_MOUNT";

#[cfg(target_os = "linux")]
fn fills_up(disk: &Tmpfs) {
    let (path, ballast) = (disk.0.path().join("store"), disk.0.path().join("ballast"));
    for round in 0..12u64 {
        std::fs::write(&ballast, vec![1; 1_100_000 + 40_000 * round as usize]).unwrap();
        let store = TestStore::create(files(&path), small()).unwrap();
        let mut state = crate::support::Model::new();
        let failure = (0..).find_map(|height| {
            let diff = crate::support::random_diff(&mut crate::support::Random(height ^ round << 32));
            let committed = store.commit(Height(height), diff.clone());
            if committed.is_ok() {
                crate::support::apply(&mut state, &diff);
            }
            committed.err()
        });
        let full = |error: &StoreError| matches!(error, StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull);
        assert!(failure.as_ref().is_some_and(full), "round {round}: {failure:?}");
        assert_eq!(crate::support::contents(&store.view()), state);
        let height = store.height().unwrap();
        assert!(matches!(store.flush(), Err(StoreError::Poisoned { .. })));
        drop(store);
        std::fs::remove_file(&ballast).unwrap();
        let store = TestStore::open(files(&path), small()).unwrap();
        assert_eq!(store.height(), Some(height), "round {round}");
        assert_eq!(crate::support::contents(&store.view()), state);
        put(&store, height.0 + 1, "key", b"value");
        drop(store);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
