//! What a home does when part of it is gone, when another listens where its node did, and when a command is meant for a
//! node elsewhere.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, copy, expect, expect_of, keelstone, post, program, register, send};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;

const ROOMY: [&str; 2] = ["--set", "snapshots.reserve_percent=0"];

/// A chain at height 3, with a snapshot of height 2, and the root of that.
fn busy_chain() -> (TempDir, String) {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    send(home.path(), 0, &json!([post("second")]));
    let root = expect(home.path(), 0, &["status"])["root"].as_str().unwrap().to_owned();
    expect(home.path(), 0, &[&["snapshot", "create"][..], &ROOMY].concat());
    send(home.path(), 0, &json!([post("third")]));
    (home, root)
}

/// spec: STORE-10. A home that lost its name and its generations does not begin another history as long as its snapshots, or its
/// own log, say that there was one.
#[test]
fn a_chain_that_was_lost_is_not_begun_anew() {
    let (home, root) = busy_chain();
    let data = home.path().join("data");
    let lose = || {
        for entry in fs::read_dir(&data).unwrap() {
            let path = entry.unwrap().path();
            match path.file_name().unwrap().to_str().unwrap() {
                "snapshots" | "LOCK" => {}
                _ if path.is_dir() => fs::remove_dir_all(path).unwrap(),
                _ => fs::remove_file(path).unwrap(),
            }
        }
    };
    lose();
    let failure = expect(home.path(), 12, &["status"]);
    assert!(failure["error"]["message"].as_str().unwrap().contains("there was one of height 3"), "{failure}");
    assert!(!data.join("CURRENT").exists());
    expect(home.path(), 14, &["recover", "--yes"]);
    expect(home.path(), 0, &[&["snapshot", "restore", "2", "--yes"][..], &ROOMY].concat());
    assert_eq!(expect(home.path(), 0, &["status"])["root"], json!(root));
    // The own log says it alone.
    lose();
    fs::remove_dir_all(data.join("snapshots")).unwrap();
    expect(home.path(), 12, &["status"]);
    let genesis = fs::read(home.path().join("genesis.json")).unwrap();
    fs::remove_file(home.path().join("genesis.json")).unwrap();
    expect(home.path(), 12, &["init"]);
    assert!(!home.path().join("genesis.json").exists(), "nor does another");
    fs::write(home.path().join("genesis.json"), genesis).unwrap();
    fs::rename(home.path().join("audit"), home.path().join("audit.before")).unwrap();
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 0);
}

/// spec: STORE-10, AUDIT-16. Where all of the data is gone, the height is on record beside it, with no setting at all; and where what
/// says it is damaged, it is not known that there was none.
#[test]
fn a_home_without_its_data_does_not_begin_anew() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    fs::remove_dir_all(home.path().join("data")).unwrap();
    let failure = expect(home.path(), 12, &["status"]);
    assert!(failure["error"]["message"].as_str().unwrap().contains("there was one of height 1"), "{failure}");
    fs::write(home.path().join("audit/HEIGHT"), "").unwrap();
    expect(home.path(), 12, &["status"]);
    fs::rename(home.path().join("audit"), home.path().join("audit.before")).unwrap();
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 0);

    // A node that is killed has it on record from its first block on.
    let home = chain();
    let mut node = Node::start(home.path(), &[]);
    send(home.path(), 0, &json!([register(), post("first")]));
    node.signal("KILL");
    node.wait(std::time::Duration::from_secs(30));
    drop(node);
    fs::remove_dir_all(home.path().join("data")).unwrap();
    fs::remove_file(home.path().join("api.json")).unwrap();
    expect(home.path(), 12, &["status"]);
}

/// spec: STORE-10. What a damaged log of the node's own says is not known: a chain is not begun anew on its word.
#[test]
fn a_damaged_log_of_its_own_lets_no_home_begin_anew() {
    type Spoil = fn(&Path);
    let ways: [Spoil; 3] = [
        |log| {
            let mut bytes = fs::read(log).unwrap();
            bytes[300] ^= 1;
            fs::write(log, bytes).unwrap();
        },
        |log| fs::write(log, "").unwrap(),
        |log| fs::remove_file(log).unwrap(),
    ];
    let (home, _) = busy_chain();
    fs::remove_dir_all(home.path().join("data")).unwrap();
    let _ = fs::remove_file(home.path().join("audit/HEIGHT"));
    expect(home.path(), 12, &["status"]);
    for spoil in ways {
        let place = tempfile::tempdir().unwrap();
        copy(home.path(), place.path());
        let _ = fs::remove_dir_all(place.path().join("data"));
        let mut logs = fs::read_dir(place.path().join("audit")).unwrap().map(|entry| entry.unwrap().path());
        spoil(&logs.find(|path| path.extension().is_some_and(|ending| ending == "audit")).unwrap());
        expect(place.path(), 12, &["status"]);
        assert!(!place.path().join("data/CURRENT").exists());
    }
}

/// A snapshot from elsewhere does not say that a home had a state: nothing is damaged, and how to begin with it is said.
#[test]
fn a_snapshot_that_was_imported_makes_no_home_damaged() {
    let (home, root) = busy_chain();
    let place = tempfile::tempdir().unwrap();
    let (fresh, tar) = (place.path().join("home"), place.path().join("state.tar"));
    expect(home.path(), 0, &[&["snapshot", "export", "2", tar.to_str().unwrap()][..], &ROOMY].concat());
    for name in ["genesis.json", "keelstone.toml", "keys"] {
        let (from, to) = (home.path().join(name), fresh.join(name));
        fs::create_dir_all(&fresh).unwrap();
        if from.is_dir() {
            copy(&from, &to);
        } else if from.exists() {
            fs::copy(&from, &to).unwrap();
        }
    }
    fs::set_permissions(fresh.join("keys"), fs::metadata(home.path().join("keys")).unwrap().permissions()).unwrap();
    expect(&fresh, 0, &[&["snapshot", "import", tar.to_str().unwrap()][..], &ROOMY].concat());
    let failure = expect(&fresh, 2, &["status"]);
    assert!(failure["error"]["message"].as_str().unwrap().contains("has a snapshot of height 2"), "{failure}");
    expect(&fresh, 0, &[&["snapshot", "restore", "2", "--yes"][..], &ROOMY].concat());
    assert_eq!(expect(&fresh, 0, &["status"])["root"], json!(root));
}

/// spec: STORE-10, HISTORY-1. Blocks that are gone where a state counts are damage to whoever opens or checks it, and are not made
/// anew; the state is had again without them, and that is said. So are those of a database that has none.
#[test]
fn blocks_that_are_gone_are_damage() {
    let (home, _) = busy_chain();
    let before = expect(home.path(), 0, &["status"]);
    let blocks = home.path().join("data/gen-000001/blocks.redb");
    let other = chain();
    expect(other.path(), 0, &["status"]);
    for end in ["redb", "wal"] {
        let empty = other.path().join("data/gen-000001/blocks.redb").with_extension(end);
        let (kept, here) = (home.path().join(end), blocks.with_extension(end));
        fs::rename(&here, &kept).unwrap();
        fs::copy(empty, here).unwrap();
    }
    let found = expect(home.path(), 12, &["db", "check"]);
    assert!(found["problems"].to_string().contains("there are no blocks here"), "{found}");
    for end in ["redb", "wal"] {
        fs::remove_file(blocks.with_extension(end)).unwrap();
    }
    let found = expect(home.path(), 12, &["db", "check"]);
    assert!(found["problems"].to_string().contains("blocks.redb"), "{found}");
    expect(home.path(), 12, &["status"]);
    assert!(!blocks.exists(), "who looks makes none");
    let report = expect(home.path(), 0, &["recover", "--yes"]);
    assert_eq!((&report["height"], &report["root"]), (&before["height"], &before["root"]), "{report}");
    assert!(report["warnings"].to_string().contains("the blocks are gone"), "{report}");
    expect(home.path(), 0, &["db", "check"]);
    send(home.path(), 0, &json!([post("it goes on")]));
}

/// spec: RECOVER-9. Where nobody knows which generation counts, the blocks of each that did are kept by whoever replaces them.
#[test]
fn blocks_of_which_nobody_knows_whether_they_count_are_kept() {
    let (home, root) = busy_chain();
    let recover: &[&str] = &["recover", "--to", "2", "--root", &root, "--yes"];
    for command in [recover, &["snapshot", "restore", "2", "--yes", "--set", "snapshots.reserve_percent=0"]] {
        let place = tempfile::tempdir().unwrap();
        copy(home.path(), place.path());
        let data = place.path().join("data");
        copy(&data.join("gen-000001"), &data.join("gen-000002"));
        fs::write(data.join("CURRENT"), "xx").unwrap();
        let said = expect(place.path(), 12, &["recover", "--yes"]);
        assert!(said["error"]["message"].as_str().unwrap().contains("nothing says whose blocks count"), "{said}");
        let done = expect(place.path(), 0, command);
        for name in ["gen-000001", "gen-000002"] {
            let kept = data.join(format!("blocks-of-{name}"));
            let whole = fs::read(home.path().join("data/gen-000001/blocks.redb")).unwrap();
            assert!(fs::read(kept.join("blocks.redb")).unwrap() == whole, "{command:?}");
            assert!(done["warnings"].to_string().contains(kept.to_str().unwrap()), "{done}");
        }
    }
}

/// spec: SNAP-12. A producer's key certifies roots of this home's own chain alone: a snapshot of another history, which lies here
/// all the same, is not signed, and of what is no longer on record nothing is said.
#[test]
fn a_mirror_of_another_history_is_not_certified() {
    let home = chain();
    let other = tempfile::tempdir().unwrap();
    copy(home.path(), other.path());
    for (path, text) in [(home.path(), "ours"), (other.path(), "another's")] {
        send(path, 0, &json!([register(), post(text)]));
    }
    expect(other.path(), 0, &[&["snapshot", "create"][..], &ROOMY].concat());
    copy(&other.path().join("data/snapshots"), &home.path().join("data/snapshots"));
    let place = tempfile::tempdir().unwrap();
    let mirror = |home: &Path, code: i32, name: &str| {
        let to = place.path().join(name);
        let export = ["mirror", "export", to.to_str().unwrap(), "--height", "1"];
        (expect(home, code, &[&export[..], &ROOMY].concat()), to)
    };
    let (failure, to) = mirror(home.path(), 12, "ours");
    assert!(failure["error"]["message"].as_str().unwrap().contains("this chain has"), "{failure}");
    assert!(!to.exists(), "nothing is written");
    assert_eq!(mirror(other.path(), 0, "theirs").0["certified"], true);
    // Below the last height its block says it.
    send(other.path(), 0, &json!([post("more")]));
    assert_eq!(mirror(other.path(), 0, "again").0["certified"], true);
}

/// Every file of a home but for locks, with its content.
fn files(home: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut left = vec![home.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.is_file() && !path.ends_with("LOCK") {
                files.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// What it is called, and what does it.
type Damage = (&'static str, fn(&Path));

/// Ways in which nobody knows any more what counts.
fn damages() -> [Damage; 5] {
    fn generation(home: &Path) -> PathBuf {
        home.join("data").join(fs::read_to_string(home.join("data/CURRENT")).unwrap().trim())
    }
    [
        ("no name", |home| fs::remove_file(home.join("data/CURRENT")).unwrap()),
        ("an empty name", |home| fs::write(home.join("data/CURRENT"), "").unwrap()),
        ("no text", |home| fs::write(home.join("data/CURRENT"), b"\xff\xfe\n").unwrap()),
        ("another name", |home| fs::write(home.join("data/CURRENT"), "gen-000003\n").unwrap()),
        ("no generation", |home| fs::remove_dir_all(generation(home)).unwrap()),
    ]
}

/// spec: STORE-10, RECOVER-1, RECOVER-9. What tells which state counts is lost: nothing begins anew and nothing is removed, and a snapshot
/// puts a state in its place, by hand or by a recovery.
#[test]
fn a_home_that_does_not_say_what_counts_is_damaged_and_can_be_had_again() {
    let (home, root) = busy_chain();
    for (damage, spoil) in damages() {
        let spoiled = || {
            let place = tempfile::tempdir().unwrap();
            copy(home.path(), place.path());
            spoil(place.path());
            place
        };
        let place = spoiled();
        let before = files(place.path());
        let commands: [&[&str]; 3] = [&["status"], &["check"], &["node", "--set", "recovery.automatic=false"]];
        for command in commands {
            assert_eq!(keelstone(place.path(), command).status.code(), Some(12), "{damage}: {command:?}");
        }
        assert_eq!(files(place.path()), before, "{damage}: nothing was removed");
        let restore = |yes: &[&'static str]| [&["snapshot", "restore", "2", "--root", &root], yes, &ROOMY].concat();
        expect(place.path(), 2, &restore(&[]));
        let restored = expect(place.path(), 0, &restore(&["--yes"]));
        let is_lost = damage == "no generation";
        // What may have counted was not known when it was given up.
        assert_eq!(restored["warnings"].as_array().unwrap().len(), usize::from(!is_lost), "{damage}: {restored}");
        assert_eq!(place.path().join("data/blocks-of-gen-000001/blocks.redb").exists(), !is_lost, "{damage}");
        let status = expect(place.path(), 0, &["status"]);
        assert_eq!((&status["height"], &status["root"]), (&json!(2), &json!(root)), "{damage}");

        let place = spoiled();
        let recovered = expect(place.path(), 0, &["recover", "--to", "2", "--root", &root, "--yes"]);
        assert_eq!(recovered["warnings"].as_array().unwrap().len(), usize::from(is_lost), "{damage}: {recovered}");
        let status = expect(place.path(), 0, &["status"]);
        assert_eq!((&status["height"], &status["root"]), (&json!(2), &json!(root)), "{damage}");
        send(place.path(), 0, &json!([post("it goes on")]));
        if !is_lost {
            // The blocks of the only generation that counted are there, and say what was last.
            let place = spoiled();
            let recovered = expect(place.path(), 0, &["recover", "--yes"]);
            assert_eq!(recovered["height"], 3, "{damage}");
            expect(place.path(), 0, &["query", "block", "1"]);
        }
    }
}

/// spec: RECOVER-9. Blocks that are gone are not made anew to look whole: whoever only looks makes nothing, and a recovery says
/// what is missing.
#[test]
fn a_recovery_over_blocks_that_are_gone_says_so() {
    let (home, root) = busy_chain();
    let data = home.path().join("data");
    fs::remove_file(data.join("gen-000001/blocks.redb")).unwrap();
    fs::remove_file(data.join("gen-000001/blocks.wal")).unwrap();
    fs::create_dir(data.join("gen-000007")).unwrap();
    let before = files(home.path());
    let recover = ["recover", "--to", "2", "--root", &root];
    expect(home.path(), 0, &[&recover[..], &["--dry-run"]].concat());
    assert_eq!(files(home.path()), before);
    assert!(data.join("gen-000007").is_dir(), "swept by who only looks");
    let recovered = expect(home.path(), 0, &[&recover[..], &["--yes"]].concat());
    let warnings = recovered["warnings"].as_array().unwrap();
    assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains("the blocks are gone"), "{recovered}");
}

/// spec: STORE-5. Snapshots of a history that is given up go with it: where another holds them, nothing is begun.
#[test]
fn a_state_is_not_replaced_while_another_holds_the_snapshots() {
    let (home, second) = busy_chain();
    let place = tempfile::tempdir().unwrap();
    copy(home.path(), place.path());
    send(home.path(), 0, &json!([post("fourth")]));
    expect(home.path(), 0, &[&["snapshot", "create"][..], &ROOMY].concat());
    let mirrored = tempfile::tempdir().unwrap();
    let mirror = mirrored.path().join("mirror");
    let mirror = mirror.to_str().unwrap();
    expect(home.path(), 0, &[&["mirror", "export", mirror][..], &ROOMY].concat());
    let root = expect(home.path(), 0, &["status"])["root"].as_str().unwrap().to_owned();

    let before = expect(place.path(), 0, &["status"]);
    let held = fs::File::options().write(true).open(place.path().join("data/snapshots/LOCK")).unwrap();
    held.lock().unwrap();
    let sync = ["sync", "--from", mirror, "--yes", "--trust-hash", &root, "--trust-height", "4"];
    let restore = ["snapshot", "restore", "2", "--root", &second, "--yes"];
    let all: [&[&str]; 3] = [&["rollback", "2", "--yes"], &restore, &sync];
    for command in all {
        expect(place.path(), 11, &[command, &ROOMY].concat());
        let after = expect(place.path(), 0, &["status"]);
        assert_eq!((&after["height"], &after["root"]), (&before["height"], &before["root"]), "{command:?}");
    }
    drop(held);
    for command in all {
        let done = expect(place.path(), 0, &[command, &ROOMY].concat());
        assert_eq!(done["warnings"], json!([]), "{command:?}");
    }
}

/// Where a node listened that was killed somebody else may listen now: the commands of its home ask the home, and it alone.
#[test]
fn who_listens_where_a_killed_node_did_is_not_taken_for_it() {
    let (home, other) = (chain(), tempfile::tempdir().unwrap());
    expect(other.path(), 0, &["init", "--chain-id", "other"]);
    let mut killed = Node::start(home.path(), &[]);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let left: Value = serde_json::from_slice(&fs::read(home.path().join("api.json")).unwrap()).unwrap();
    let listens_at = |address: SocketAddr| {
        let mut left = left.clone();
        left["listen"] = json!(address.to_string());
        fs::write(home.path().join("api.json"), left.to_string()).unwrap();
    };
    let node = Node::start(other.path(), &[]);
    listens_at(node.address);
    assert_eq!(expect(home.path(), 0, &["status"])["chain_id"], "test");
    send(home.path(), 0, &json!([register()]));
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 1);
    assert_eq!(expect(other.path(), 0, &["status"])["height"], 0);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listens_at(listener.local_addr().unwrap());
    let status = expect(home.path(), 0, &["status"]);
    assert_eq!((&status["chain_id"], &status["height"]), (&json!("test"), &json!(1)));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "it was spoken to");

    // Nor if another process holds the home by now.
    listens_at(node.address);
    let held = hold(home.path());
    expect(home.path(), 11, &["status"]);
    drop(held);
}

/// Holds the data of a home as this process.
fn hold(home: &Path) -> fs::File {
    let mut held = fs::File::options().write(true).truncate(true).open(home.join("data/LOCK")).unwrap();
    held.lock().unwrap();
    write!(held, "{}", std::process::id()).unwrap();
    held
}

/// A home that another holds is left as it is by whoever would begin a chain there, which says who has it.
#[test]
fn no_chain_is_begun_in_a_home_that_another_holds() {
    let (home, other) = (tempfile::tempdir().unwrap(), chain());
    fs::create_dir(home.path().join("data")).unwrap();
    fs::write(home.path().join("data/LOCK"), "").unwrap();
    let held = hold(home.path());
    let before = files(home.path());
    let genesis = other.path().join("genesis.json");
    let genesis = genesis.to_str().unwrap();
    let commands: [&[&str]; 3] = [
        &["init", "--chain-id", "another"],
        &["init", "--genesis", genesis, "--follow", "127.0.0.1:1"],
        &["init", "--genesis", genesis],
    ];
    for command in commands {
        let said = expect(home.path(), 11, command);
        assert!(said["error"]["message"].as_str().unwrap().contains("in use"), "{said}");
        assert_eq!(files(home.path()), before, "{command:?}");
    }
    drop(held);
    expect(home.path(), 0, commands[0]);
}

/// A token is shown once: also where the node that runs there cannot be told of it.
#[test]
fn a_token_is_shown_though_the_node_cannot_be_told() {
    let home = chain();
    expect(home.path(), 0, &["status"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let announced = json!({ "listen": listener.local_addr().unwrap().to_string(), "pid": std::process::id() });
    fs::write(home.path().join("api.json"), announced.to_string()).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let _held = hold(home.path());
    let made = expect(home.path(), 0, &["token", "new", "reader"]);
    assert!(made["token"].as_str().unwrap().starts_with("ks_"), "{made}");
    assert_eq!(made["told"], false);
    assert!(made["warning"].as_str().unwrap().contains("was not told"), "{made}");
}

/// What works on the home itself does nothing where a node elsewhere was named, nor with what is for such a node alone.
#[test]
fn what_works_on_a_home_refuses_a_node_elsewhere() {
    let (home, root) = busy_chain();
    let out = home.path().join("out");
    let out = out.to_str().unwrap();
    let commands: &[&[&str]] = &[
        &["audit", "export"],
        &["audit", "node", "show"],
        &["audit", "prune", "--before", "2", "--yes"],
        &["audit", "verify"],
        &["bench", "store", "--seconds", "1"],
        &["bundle", "verify", out],
        &["bundle", "verify-operation", out],
        &["check"],
        &["check", "status"],
        &["completions", "bash"],
        &["config", "show"],
        &["testnet", "status"],
        &["db", "check"],
        &["db", "compact"],
        &["db", "prune", "--before", "2", "--yes"],
        &["db", "stats"],
        &["demo"],
        &["export", "xian", out],
        &["import", "xian", out],
        &["init"],
        &["keys", "list"],
        &["keys", "new", "ada"],
        &["mirror", "export", out],
        &["node"],
        &["proof", "verify", out],
        &["rebuild", "--out", out, "--to-height", "2"],
        &["recover", "--yes"],
        &["recover", "--to", "2", "--root", &root, "--yes"],
        &["replay"],
        &["rollback", "1", "--yes"],
        &["snapshot", "create"],
        &["snapshot", "delete", "2", "--yes"],
        &["snapshot", "delta", "1", "2", "--out", out],
        &["snapshot", "diff", "1", "2"],
        &["snapshot", "export", "2", out],
        &["snapshot", "extract", "2", "agents", "--out", out],
        &["snapshot", "gc"],
        &["snapshot", "import", out],
        &["snapshot", "inspect", "2"],
        &["snapshot", "list"],
        &["snapshot", "restore", "2", "--yes"],
        &["snapshot", "to-genesis", "2", "--chain-id", "next", "--out", out],
        &["snapshot", "verify", "2"],
        &["sync", "--from", out, "--yes"],
        &["token", "list"],
        &["token", "new", "reader"],
        &["token", "remove", "reader"],
        &["tx", "show", out],
    ];
    let before = files(home.path());
    for command in commands {
        for elsewhere in [["--node", "http://127.0.0.1:1"], ["--token-file", out]] {
            let failure = expect(home.path(), 2, &[*command, &elsewhere].concat());
            let message = failure["error"]["message"].as_str().unwrap();
            let why = ["cannot be asked", "is for --node URL"];
            assert!(why.iter().any(|why| message.contains(why)), "{command:?}: {message}");
        }
    }
    assert_eq!(files(home.path()), before);
}

/// Answers every request with one body.
fn answering(body: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}");
        }
    });
    address
}

/// What a node elsewhere answers is shown however large its numbers are, and nothing of this home beside it.
#[test]
fn the_status_of_a_node_elsewhere_is_its_own_and_may_say_anything() {
    let home = chain();
    let mut status = expect(home.path(), 0, &["status"]);
    let most = u64::MAX;
    status["scrub"] = json!({ "passes": most, "done_bytes": most, "total_bytes": 1, "problems": most });
    let url = format!("http://{}", answering(status.to_string()));
    let engine = ["--set", "engine.kind=cometbft", "--set", "engine.rpc=http://127.0.0.1:1"];
    let shown = expect(home.path(), 0, &[&["status", "--node", &url][..], &engine].concat());
    assert_eq!(shown["scrub"]["done_bytes"], most);
    assert_eq!(shown["engine"], Value::Null, "that is of this home");
    let text = keelstone(home.path(), &["status", "--node", &url]);
    assert_eq!(text.status.code(), Some(0), "{}", String::from_utf8_lossy(&text.stderr));
}

/// A reader that has seen enough is no error, and a checkpoint takes the place of no other file.
#[test]
fn what_is_exported_is_written_to_who_reads_and_over_nothing() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    let mut command = program();
    command.args(["audit", "export", "--home"]).arg(home.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut export = command.spawn().unwrap();
    drop(export.stdout.take());
    let ended = export.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));

    let kept = home.path().join("kept.json");
    fs::write(&kept, "of somebody else").unwrap();
    expect(home.path(), 2, &["audit", "checkpoint", "--out", kept.to_str().unwrap()]);
    assert_eq!(fs::read(&kept).unwrap(), b"of somebody else");
}

/// A key that cannot be opened is no reason to write a mirror that is none.
#[test]
fn a_mirror_is_not_begun_without_the_key_that_certifies_it() {
    let (home, _) = busy_chain();
    let (secret, none) = (home.path().join("passphrase"), home.path().join("mirror"));
    fs::write(&secret, "a long passphrase\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.to_str().unwrap();
    expect(home.path(), 0, &["keys", "passwd", "producer", "--new-passphrase-file", secret]);
    let export = [&["mirror", "export", none.to_str().unwrap()][..], &ROOMY].concat();
    expect(home.path(), 2, &export);
    assert!(!none.exists(), "it was begun");
    expect(home.path(), 0, &[&export[..], &["--passphrase-file", secret]].concat());
}

/// What a rehearsal left that was killed is removed by the next one, and none is begun that the disk has no room for.
#[test]
fn a_rehearsal_leaves_nothing_and_keeps_the_reserve() {
    let (home, _) = busy_chain();
    let data = home.path().join("data");
    let [left, alive, own] = ["rehearsal-7", "rehearsal-0", "rehearsal-of-mine"].map(|name| data.join(name));
    for directory in [&left, &alive, &own] {
        fs::create_dir(directory).unwrap();
    }
    let held = fs::File::create(alive.join("LOCK")).unwrap();
    held.lock().unwrap();
    let verify = |reserve: &str| {
        let mut command = program();
        command.args(["snapshot", "verify", "2", "--restore", "--json", "--home"]).arg(home.path());
        command.args(["--set", &format!("snapshots.reserve_percent={reserve}")]);
        command
    };
    expect_of(verify("0"), 0);
    assert!(!left.exists() && alive.exists() && own.exists(), "one nobody holds, another somebody, the last is none");
    let refused = expect_of(verify("90"), 1);
    assert!(refused["error"]["message"].as_str().unwrap().contains("free"), "{refused}");
    assert!(fs::read_dir(&data).unwrap().all(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        !name.starts_with("rehearsal-") || alive.ends_with(&name) || own.ends_with(&name)
    }));
}
