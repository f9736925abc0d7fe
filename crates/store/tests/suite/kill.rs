//! Real kills: a child process commits and says so; the parent kills it and opens what it left.

use crate::support::{Model, Random, TestStore, apply, contents, count, random_diff, root_of};
use keelstone_codec::Height;
use keelstone_store::Options;
use keelstone_store::files::Directory;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Set for the child: the directory it works in.
const CHILD: &str = "KEELSTONE_KILL_CHILD";

fn options() -> Options {
    Options {
        segment_bytes: 32 << 10,
        page_segment_bytes: 32 << 10,
        flush_bytes: 16 << 10,
        cache_bytes: 64 << 10,
        value_cache_bytes: 64 << 10,
        ..Options::default()
    }
}

fn open(path: &Path) -> TestStore {
    let files = Arc::new(Directory::new(path).unwrap());
    if TestStore::exists(&*files).unwrap() {
        TestStore::open(files, options()).unwrap_or_else(|error| panic!("a killed store must open: {error}"))
    } else {
        TestStore::create(files, options()).unwrap()
    }
}

/// The diff of a height is always the same, so the state at a height is known to both.
fn diff_of(height: u64) -> keelstone_tree::Diff {
    random_diff(&mut Random(height.wrapping_mul(77)))
}

/// Not a test by itself: the child's work, when the parent below starts this binary again.
#[test]
fn the_child_commits_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = open(Path::new(&path));
    let mut height = store.height().map_or(0, |height| height.0 + 1);
    let mut out = std::io::stderr();
    loop {
        store.commit(Height(height), diff_of(height)).unwrap();
        writeln!(out, "ack {height}").unwrap();
        height += 1;
        if height.is_multiple_of(97) {
            store.prune(Height(height - 40)).unwrap();
            store.compact(&mut |_| {}).unwrap();
        }
    }
}

/// spec: STORE-3, STORE-4. Killed at any moment and opened again: every acknowledged commit is there.
#[test]
fn no_acknowledged_commit_is_lost_to_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(count("KEELSTONE_SEED", 1));
    let (mut model, mut modelled) = (Model::new(), 0u64);
    for cycle in 0..count("KEELSTONE_KILLS", 40) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::the_child_commits_until_it_is_killed", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = BufReader::new(child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            let acks =
                pipe.lines().map_while(Result::ok).filter_map(|line| line.strip_prefix("ack ")?.parse::<u64>().ok());
            acks.last()
        });
        std::thread::sleep(Duration::from_micros(15_000 + random.below(120_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged = reader.join().unwrap();

        let store = open(directory.path());
        let height = store.height().map(|height| height.0);
        assert!(height >= acknowledged, "cycle {cycle}: {acknowledged:?} was acknowledged, {height:?} is there");
        while height.is_some_and(|height| modelled <= height) {
            apply(&mut model, &diff_of(modelled));
            modelled += 1;
        }
        assert_eq!(store.root(), root_of(&model), "cycle {cycle}");
        assert_eq!(contents(&store.view()), model, "cycle {cycle}");
    }
    assert!(modelled > 0, "the child committed something");
}
