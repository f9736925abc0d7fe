//! The audit log, the history of an entry, and a chain made anew as it was, from the command line and over HTTP.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::bundles::submit;
use crate::support::{Node, chain, expect, keelstone, post, register, send};
use keelstone::codec::{Decode as _, Encode as _, Hash, Height, Key, Namespace, Root, Value as Bytes};
use keelstone::execution::mmr::Mmr;
use keelstone::ledger::{AuditEvent, AuditLog, AuditRecord, Checkpoint, Genesis, SecretKey, SignedCheckpoint};
use keelstone::tree::{Blake3, MemoryTree, Query};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

fn bytes(digits: &Value) -> Vec<u8> {
    let digits = digits.as_str().unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A chain with blocks of operations, and an async bundle.
fn lived() -> TempDir {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("one")]));
    submit(home.path(), 0, &[post("two"), post("three")]);
    send(home.path(), 13, &json!([post("four"), register()]));
    home
}

fn show(home: &Path, arguments: &[&str]) -> Value {
    expect(home, 0, &[&["audit", "show"], arguments].concat())
}

/// spec: AUDIT-8. Records are listed by height, kind and key, a page at a time, and each is proven; a running node answers
/// the same.
#[test]
fn records_are_listed_and_proven_with_and_without_a_node() {
    let home = lived();
    let all = show(home.path(), &[]);
    let records = all["records"].as_array().unwrap();
    assert_eq!(all["count"].as_u64(), Some(records.len() as u64));
    let of = |kind: &str| records.iter().filter(|record| record["kind"] == kind).count();
    assert_eq!((of("operation"), of("submitted"), of("failed")), (4, 1, 1), "{all}");
    let by_kind = show(home.path(), &["--kind", "operation"]);
    assert_eq!(by_kind["records"].as_array().unwrap().len(), 4);
    assert!(by_kind["records"][0]["said"]["function"].as_str().unwrap().starts_with("agents.register"), "{by_kind}");
    assert_eq!(show(home.path(), &["--height", "1"])["records"].as_array().unwrap().len(), 3);
    let who = records[0]["who"].as_str().unwrap();
    assert_eq!(show(home.path(), &["--who", who])["records"].as_array().unwrap().len(), records.len());
    let page = show(home.path(), &["--limit", "2"]);
    assert_eq!((page["records"].as_array().unwrap().len(), page["next"].as_u64()), (2, Some(2)));
    assert_eq!(show(home.path(), &["--from", "2"])["records"].as_array().unwrap().len(), records.len() - 2);
    expect(home.path(), 2, &["audit", "show", "--kind", "nonsense"]);
    expect(home.path(), 14, &["audit", "proof", "10000"]);
    let proven = expect(home.path(), 0, &["audit", "proof", "1"]);
    assert_eq!(proven["entry"], records[1]);
    expect(home.path(), 0, &["audit", "proof", "1", "--root", proven["root"].as_str().unwrap()]);
    expect(home.path(), 12, &["audit", "proof", "1", "--root", &"11".repeat(32)]);

    let node = Node::start(home.path(), &[]);
    assert_eq!(show(home.path(), &[]), all);
    assert_eq!(expect(home.path(), 0, &["audit", "proof", "1"]), proven);
    let path = format!("/v1/audit?kind=block&who={who}&limit=1");
    assert_eq!(node.json(&path).1["records"].as_array().unwrap().len(), 1);
    for path in ["/v1/audit?kind=x", "/v1/audit?limit=0", "/v1/audit?from=-1", "/v1/audit/x", "/v1/audit-log?since=x"] {
        assert_eq!(node.get(path).0, 400, "{path}");
    }
    for path in ["/v1/audit/10000", "/v1/audit-log?since=10000"] {
        assert_eq!(node.get(path).0, 404, "{path}");
    }
}

/// spec: AUDIT-7. A checkpoint that was kept tells a log that was only added to from one that was cut.
#[test]
fn a_kept_checkpoint_finds_a_log_that_was_cut() {
    let home = lived();
    let file = home.path().join("kept.json");
    let file = file.to_str().unwrap();
    expect(home.path(), 0, &["audit", "checkpoint", "--out", file]);
    let verify = ["audit", "verify", "--checkpoint", file];
    assert_eq!(expect(home.path(), 0, &verify)["valid"], true);
    send(home.path(), 0, &json!([post("later")]));
    let height = expect(home.path(), 0, &["status"])["height"].as_u64().unwrap();
    assert_eq!(expect(home.path(), 0, &verify)["checkpoint"], true);
    // Back below the checkpoint, and as far again with other records.
    expect(home.path(), 0, &["rollback", &(height - 2).to_string(), "--yes"]);
    assert_eq!(expect(home.path(), 0, &["audit", "verify"])["valid"], true);
    expect(home.path(), 12, &verify);
    for text in ["a", "b", "c"] {
        send(home.path(), 0, &json!([post(text)]));
    }
    expect(home.path(), 12, &verify);
    // A file that says something else than was signed is no checkpoint.
    let forged = std::fs::read_to_string(file).unwrap().replacen("\"height\":", "\"height\":1", 1);
    std::fs::write(file, forged).unwrap();
    expect(home.path(), 12, &verify);
}

/// spec: AUDIT-2. An export verifies with no chain at hand; a line that is edited, dropped, swapped or repeated is named.
#[test]
fn an_export_is_verified_by_an_outsider() {
    let home = lived();
    let (file, kept) = (home.path().join("log.jsonl"), home.path().join("kept.json"));
    let (path, kept) = (file.to_str().unwrap(), kept.to_str().unwrap());
    expect(home.path(), 0, &["audit", "checkpoint", "--out", kept]);
    send(home.path(), 0, &json!([post("after the checkpoint")]));
    expect(home.path(), 0, &["audit", "export", "--out", path]);
    expect(home.path(), 2, &["audit", "export", "--out", path]);
    let elsewhere = tempfile::tempdir().unwrap();
    let verify = ["audit", "verify", "--export", path, "--checkpoint", kept];
    let verdict = expect(elsewhere.path(), 0, &verify);
    assert_eq!((verdict["valid"].as_bool(), verdict["checkpoint"].as_bool()), (Some(true), Some(true)));
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let records = lines.len() - 1;
    assert!(lines[1..].iter().all(|line| line.len() < 2_000), "docs/audit.md says about 1.5 kB");
    for at in 0..records - 1 {
        let mut edited: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        edited[at + 1] = edited[at + 1].replacen("\"height\":", "\"height\":1", 1);
        let mut dropped = lines.clone();
        dropped.remove(at + 1);
        let mut swapped = lines.clone();
        swapped.swap(at + 1, at + 2);
        let mut repeated = lines.clone();
        repeated.insert(at + 1, lines[at + 1]);
        let bad_at = [edited.join("\n"), dropped.join("\n"), swapped.join("\n"), repeated.join("\n")];
        for (tampered, bad) in bad_at.into_iter().zip([at, at, at, at + 1]) {
            std::fs::write(&file, tampered + "\n").unwrap();
            let verdict = expect(elsewhere.path(), 12, &["audit", "verify", "--export", path]);
            assert_eq!(verdict["bad_record"].as_u64(), Some(bad as u64), "{verdict}");
        }
    }
    std::fs::write(&file, lines[..records].join("\n") + "\n").unwrap();
    let verdict = expect(elsewhere.path(), 12, &["audit", "verify", "--export", path]);
    assert_eq!(verdict["bad_record"].as_u64(), Some(records as u64 - 1), "the end was cut off");
}

/// An export of these lines, with its log and all proofs made anew: in a state of our own, so that its root is another. A head
/// that is given is kept.
fn forged(home: &Path, head: &Value, lines: &[Value], keeps_state: bool) -> String {
    let records: Vec<_> =
        lines.iter().map(|line| AuditRecord::from_bytes(&bytes(&line["entry"]["record"])).unwrap()).collect();
    let items: Vec<Hash> = records.iter().map(AuditRecord::item).collect();
    let log = Mmr::<AuditLog>::of(&items);
    let mut head = head.clone();
    (head["to"], head["checkpoint"]["count"]) = (json!(items.len()), json!(items.len()));
    head["checkpoint"]["log"] = json!(digits(&log.to_bytes()));
    if !keeps_state {
        let genesis = Genesis::parse(&std::fs::read(home.join("genesis.json")).unwrap()).unwrap();
        let hash = genesis.first_state().unwrap().hash;
        let tip = records.iter().map(|record| record.height).max().unwrap();
        let entries = [("audit", "log", log.to_bytes()), ("chain", "facts", genesis.facts().to_bytes())];
        let more = [("chain", "genesis_hash", hash.to_bytes()), ("chain", "tip", tip.to_bytes())];
        let entries = entries.into_iter().chain(more).map(|(namespace, key, value)| {
            (Namespace::new(namespace).unwrap(), Key::new(key.as_bytes()).unwrap(), Some(Bytes::new(value).unwrap()))
        });
        let entries: Vec<_> = entries.collect();
        let queries: Vec<_> = entries.iter().map(|(name, key, _)| Query::Key(name.clone(), key.clone())).collect();
        let mut tree = MemoryTree::<Blake3>::new();
        let root = tree.apply(&entries.into_iter().collect());
        head["checkpoint"]["root"] = json!(root.0.to_string());
        head["checkpoint"]["state_proof"] = json!(digits(&tree.prove(&queries).encode()));
    }
    let mut text = format!("{head}\n");
    for (index, line) in (0u64..).zip(lines) {
        let mut line = line.clone();
        line["entry"]["index"] = json!(index);
        let top = |place: keelstone::execution::mmr::Place| -> Result<Hash, std::convert::Infallible> {
            fn top(items: &[Hash], place: keelstone::execution::mmr::Place) -> Hash {
                match place.halves() {
                    None => Mmr::<AuditLog>::leaf(&items[usize::try_from(place.index).unwrap()]),
                    Some([left, right]) => Mmr::<AuditLog>::inner(&top(items, left), &top(items, right)),
                }
            }
            Ok(top(&items, place))
        };
        struct Tops<F>(F);
        impl<F: Fn(keelstone::execution::mmr::Place) -> Result<Hash, std::convert::Infallible>>
            keelstone::execution::mmr::Subtrees for Tops<F>
        {
            type Error = std::convert::Infallible;
            fn top(&self, place: keelstone::execution::mmr::Place) -> Result<Hash, Self::Error> {
                (self.0)(place)
            }
        }
        let Ok(proof) = log.prove(&Tops(top), index);
        line["proof"] = json!(digits(&proof.unwrap().to_bytes()));
        text.push_str(&format!("{line}\n"));
    }
    text
}

/// The first line of an export, and the others.
fn parsed(text: &str) -> (Value, Vec<Value>) {
    let mut lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (lines.next().unwrap(), lines.collect())
}

/// spec: AUDIT-14, AUDIT-15. An export shows that its log is in the state of its root: what its head says is compared with that,
/// and a log that was made up is found under a root that is trusted, and under another as far as no chain could have written it.
#[test]
fn a_log_that_was_made_up_is_no_export_of_a_chain() {
    let home = lived();
    let file = home.path().join("log.jsonl");
    let path = file.to_str().unwrap();
    expect(home.path(), 0, &["audit", "export", "--out", path]);
    let status = expect(home.path(), 0, &["status"]);
    let root = status["root"].as_str().unwrap();
    let verify = ["audit", "verify", "--export", path];
    let rooted = ["audit", "verify", "--export", path, "--root", root];
    let elsewhere = tempfile::tempdir().unwrap();
    let found = expect(elsewhere.path(), 0, &rooted);
    assert_eq!((&found["root"], &found["root_given"]), (&json!(root), &json!(true)));
    assert_eq!((&found["chain_id"], &found["last_block"]), (&json!("test"), &status["height"]));
    assert_eq!(expect(elsewhere.path(), 0, &verify)["root_given"], false);
    let zeros = "00".repeat(32);
    expect(elsewhere.path(), 12, &["audit", "verify", "--export", path, "--root", &zeros]);

    // The head alone.
    let text = std::fs::read_to_string(&file).unwrap();
    let (head, lines) = parsed(&text);
    let rest = text.split_once('\n').unwrap().1.to_owned();
    let edits: [(&str, Value); 7] = [
        ("height", json!(1)),
        ("root", json!(zeros)),
        ("hasher", json!("sha256")),
        ("chain_id", json!("other")),
        ("genesis_hash", json!("01".repeat(32))),
        ("count", json!(1)),
        ("unknown", json!(1)),
    ];
    for (member, value) in edits {
        let mut other = head.clone();
        other["checkpoint"][member] = value;
        std::fs::write(&file, format!("{other}\n{rest}")).unwrap();
        expect(elsewhere.path(), 12, &verify);
    }
    // A height above the last record is a claim, and is called one.
    let mut other = head.clone();
    other["checkpoint"]["height"] = json!(1_000_000);
    std::fs::write(&file, format!("{other}\n{rest}")).unwrap();
    let found = expect(elsewhere.path(), 0, &rooted);
    assert_eq!((&found["claimed"]["height"], &found["last_block"]), (&json!(1_000_000), &status["height"]));

    // Other records, in a log and a state of their own.
    std::fs::write(&file, forged(home.path(), &head, &lines, false)).unwrap();
    assert_eq!(expect(elsewhere.path(), 0, &verify)["valid"], true, "it is forged well enough");
    expect(elsewhere.path(), 12, &rooted);
    let mut edited = lines.clone();
    let mut record = AuditRecord::from_bytes(&bytes(&edited[0]["entry"]["record"])).unwrap();
    let AuditEvent::Operation(operation) = &mut record.event else { panic!("{record:?}") };
    operation.args.0[0] ^= 1;
    edited[0]["entry"]["said"]["args"] = json!(operation.args.to_string());
    edited[0]["entry"]["record"] = json!(digits(&record.to_bytes()));
    let first_block = lines.iter().position(|line| line["entry"]["kind"] == "block").unwrap() + 1;
    let second_block =
        first_block + lines[first_block..].iter().position(|line| line["entry"]["kind"] == "block").unwrap() + 1;
    let swapped = [&lines[first_block..second_block], &lines[..first_block], &lines[second_block..]].concat();
    let repeated = [&lines[..1], &lines[..]].concat();
    let cut = lines[..lines.len() - 1].to_vec();
    let left_out = lines[1..].to_vec();
    for (what, made_up) in
        [("edited", edited), ("swapped", swapped), ("repeated", repeated), ("cut", cut), ("left out", left_out)]
    {
        for keeps_state in [false, true] {
            std::fs::write(&file, forged(home.path(), &head, &made_up, keeps_state)).unwrap();
            let found = expect(elsewhere.path(), 12, &verify);
            assert_ne!(found["valid"], true, "{what}");
        }
    }
}

/// A checkpoint that somebody signed, as a file.
fn write_signed(path: &Path, checkpoint: Checkpoint) {
    let signed = checkpoint.sign(&SecretKey::from_seed(&[7; 32]));
    let checkpoint = &signed.checkpoint;
    let text = json!({
        "chain_id": checkpoint.chain_id.to_string(), "genesis_hash": checkpoint.genesis_hash.to_string(),
        "height": checkpoint.height.0, "root": checkpoint.root.0.to_string(), "count": checkpoint.log.count(),
        "log_root": checkpoint.log.root().to_string(), "signer": signed.signer.to_string(),
        "checkpoint": digits(&signed.to_bytes()),
    });
    std::fs::write(path, text.to_string()).unwrap();
}

/// spec: AUDIT-7. A checkpoint is compared in all that it says: another root of its height, or another height, is another chain.
#[test]
fn a_checkpoint_with_another_root_or_height_is_not_of_this_chain() {
    let home = lived();
    let (kept, other) = (home.path().join("kept.json"), home.path().join("other.json"));
    let (path, changed) = (kept.to_str().unwrap(), other.to_str().unwrap());
    let export = home.path().join("log.jsonl");
    let export = export.to_str().unwrap();
    let signer = expect(home.path(), 0, &["audit", "checkpoint", "--out", path])["signer"].clone();
    for round in 0..2 {
        if round == 1 {
            send(home.path(), 0, &json!([post("after the checkpoint")]));
        }
        let _ = std::fs::remove_file(export);
        expect(home.path(), 0, &["audit", "export", "--out", export]);
        let here = ["audit", "verify", "--checkpoint", path];
        let found = expect(home.path(), 0, &here);
        assert_eq!((&found["checkpoint_root_compared"], &found["checkpoint_signer"]), (&json!(true), &signer));
        let found = expect(home.path(), 0, &["audit", "verify", "--export", export, "--checkpoint", path]);
        assert_eq!((&found["checkpoint"], &found["checkpoint_signer"]), (&json!(true), &signer));
        let text: Value = serde_json::from_str(&std::fs::read_to_string(&kept).unwrap()).unwrap();
        let honest = SignedCheckpoint::from_bytes(&bytes(&text["checkpoint"])).unwrap().checkpoint;
        write_signed(&other, honest.clone());
        expect(home.path(), 0, &["audit", "verify", "--checkpoint", changed]);
        let wrong = [
            ("root", Checkpoint { root: Root(Hash([7; 32])), ..honest.clone() }),
            ("lower", Checkpoint { height: honest.height.prev().unwrap(), ..honest.clone() }),
            ("higher", Checkpoint { height: Height(9_999), ..honest.clone() }),
        ];
        for (what, checkpoint) in wrong {
            write_signed(&other, checkpoint);
            expect(home.path(), 12, &["audit", "verify", "--checkpoint", changed]);
            // The height of an export is a claim: whether one above it is true cannot be told.
            let code = if what == "higher" && round == 0 { 2 } else { 12 };
            expect(home.path(), code, &["audit", "verify", "--export", export, "--checkpoint", changed]);
        }
    }
}

/// Every change of an entry, with the operation that made it; proofs are verified on the way.
#[test]
fn history_of_an_entry_names_the_operations_that_changed_it() {
    let home = lived();
    let entries = expect(home.path(), 0, &["query", "list", "agents", "all/"]);
    let key = entries["entries"][0]["key"].as_str().unwrap();
    let history = expect(home.path(), 0, &["history", "agents", key, "--hex"]);
    let changes = history["changes"].as_array().unwrap();
    assert_eq!((changes[0]["height"].as_u64(), changes[0]["before"].as_str()), (Some(1), None));
    assert_eq!(changes[0]["by"], "operation");
    let record = &changes[0]["operations"][0]["record"];
    assert_eq!((record["index"].as_u64(), record["kind"].as_str()), (Some(0), Some("operation")));
    // "nobody", which is no key that the table shows.
    let nobody = "6e6f626f6479";
    let none = expect(home.path(), 14, &["history", "agents", nobody, "--hex", "--from", "1", "--to", "2"]);
    assert_eq!((none["changes"].as_array().map(Vec::len), none["to"].as_u64()), (Some(0), Some(2)));
    expect(home.path(), 2, &["history", "agents", nobody, "--hex", "--from", "2", "--to", "1"]);
    expect(home.path(), 2, &["history", "agents", "nobody"]);
    // What stands for longer than is asked about has not changed, and is there.
    let still = expect(home.path(), 0, &["history", "agents", key, "--hex", "--from", "3"]);
    assert_eq!(still["changes"], json!([]), "{still}");
    let told = keelstone(home.path(), &["history", "agents", key, "--hex"]);
    let told = String::from_utf8(told.stdout).unwrap();
    let held = changes[0]["text"].as_str().unwrap();
    assert!(held.len() > 60 && told.contains(held), "{told}");
    // Heights that are not reached yet are named, and not said to have been looked at.
    for range in [&["--from", "100", "--to", "2000"][..], &["--from", "100"]] {
        let above = expect(home.path(), 14, &[&["history", "agents", key, "--hex"], range].concat());
        let message = above["error"]["message"].as_str().unwrap();
        assert!(message.contains("height 100 is not kept") && message.contains("the highest"), "{above}");
    }
    // A key is written as `query` takes it, so also the name of a contract's entry that is longer than a key.
    let name = format!("currency.balances:{}", "a".repeat(300));
    assert_eq!(expect(home.path(), 14, &["history", "contracts", &name])["changes"], json!([]));
    let node = Node::start(home.path(), &[]);
    assert_eq!(expect(home.path(), 0, &["history", "agents", key, "--hex"]), history);
    assert_eq!(node.get("/v1/history/agents?key=x&limit=1001").0, 400);
}

/// spec: HISTORY-7. The chain as it was stands in a home of its own, by height, time or operation, and works.
#[test]
fn a_chain_is_rebuilt_in_a_home_of_its_own() {
    let home = lived();
    let out = tempfile::tempdir().unwrap();
    let into = |name: &str| out.path().join(name).to_str().unwrap().to_owned();
    let block = expect(home.path(), 0, &["query", "block", "2"]);
    let (a, b, c) = (into("a"), into("b"), into("c"));
    let rebuilt = expect(home.path(), 0, &["rebuild", "--to-height", "2", "--out", &a]);
    assert_eq!((rebuilt["height"].as_u64(), &rebuilt["root"]), (Some(2), &block["root"]));
    expect(home.path(), 2, &["rebuild", "--to-height", "2", "--out", &a]);
    let id = block["transactions"][0].as_str().unwrap();
    assert_eq!(expect(home.path(), 0, &["rebuild", "--to-operation", id, "--out", &b])["root"], block["root"]);
    let time = block["time"].to_string();
    let by_time = expect(home.path(), 0, &["rebuild", "--to-time", &time, "--out", &c]);
    assert!(by_time["height"].as_u64() >= Some(2), "{by_time}");
    assert_eq!(expect(home.path(), 0, &["rebuild", "--to-operation", "0", "--out", &into("d")])["height"], 1);
    let status = expect(Path::new(&a), 0, &["status"]);
    assert_eq!((status["height"].as_u64(), &status["root"]), (Some(2), &block["root"]));
    assert_eq!(expect(Path::new(&a), 0, &["audit", "verify"])["valid"], true);
    assert_eq!(expect(Path::new(&a), 0, &["replay"])["height"], 2);
    for (code, what) in [(14, ["--to-height", "999"]), (14, ["--to-time", "0"]), (2, ["--to-operation", "x"])] {
        let e = into("e");
        expect(home.path(), code, &["rebuild", what[0], what[1], "--out", &e]);
    }
}

/// spec: HISTORY-7. A rebuilding that was cut off is begun again in the same place; what is anybody's is left alone.
#[test]
fn a_rebuilding_that_was_cut_off_is_begun_again() {
    let home = lived();
    let out = tempfile::tempdir().unwrap();
    let into = out.path().join("then");
    let rebuild = |code| expect(home.path(), code, &["rebuild", "--to-height", "2", "--out", into.to_str().unwrap()]);
    let rebuilt = rebuild(0);
    assert!(!into.join("rebuilding").exists());
    let generation = into.join("data/gen-000001");
    // Before the home was one: the data counted already, or did not yet.
    for cut in [&["genesis.json"][..], &["genesis.json", "data/CURRENT", "data/gen-000001/counted"]] {
        rebuild(2);
        for name in ["keelstone.toml"].iter().chain(cut) {
            let _ = std::fs::remove_file(into.join(name));
        }
        rebuild(2);
        std::fs::write(into.join("rebuilding"), "").unwrap();
        assert_eq!(rebuild(0)["root"], rebuilt["root"]);
        let there = std::fs::read_dir(into.join("data")).unwrap().map(|entry| entry.unwrap().file_name());
        let generations = there.filter(|name| name.to_string_lossy().starts_with("gen-")).count();
        assert_eq!((generations, into.join("rebuilding").exists()), (1, false));
        assert_eq!(expect(&into, 0, &["replay"])["height"], 2);
        // The next turn finds it under its first name.
        std::fs::remove_dir_all(&into).unwrap();
        rebuild(0);
        assert!(generation.exists());
    }
}

/// spec: AUDIT-9. Records are given up with a yes, and what remains still verifies.
#[test]
fn pruned_records_are_gone_and_the_rest_verifies() {
    let home = lived();
    expect(home.path(), 2, &["audit", "prune", "--before", "3"]);
    // As `db prune`: what is above the last height was not meant.
    let all = show(home.path(), &[]);
    expect(home.path(), 14, &["audit", "prune", "--before", "99999", "--yes"]);
    assert_eq!(show(home.path(), &[]), all);
    let first = expect(home.path(), 0, &["audit", "prune", "--before", "3", "--yes"])["first"].as_u64().unwrap();
    assert!(first > 0);
    assert_eq!(show(home.path(), &[])["first"].as_u64(), Some(first));
    assert_eq!(expect(home.path(), 0, &["audit", "verify"])["first"].as_u64(), Some(first));
    expect(home.path(), 14, &["audit", "show", "--from", "0"]);
    let file = home.path().join("log.jsonl");
    expect(home.path(), 14, &["audit", "export", "--from", "0", "--out", file.to_str().unwrap()]);
    assert!(!file.exists(), "the head of an export without its records");
    expect(home.path(), 0, &["audit", "proof", &first.to_string()]);
}

/// spec: AUDIT-8. What is no export, or cannot be compared with a checkpoint, is told for what it is.
#[test]
fn what_is_no_export_or_cannot_be_compared_is_told() {
    let home = lived();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (whole, file, kept) = (path("whole.jsonl"), path("file.jsonl"), path("kept.json"));
    expect(home.path(), 0, &["audit", "checkpoint", "--out", &kept]);
    send(home.path(), 0, &json!([post("after the checkpoint")]));
    expect(home.path(), 0, &["audit", "export", "--out", &whole]);
    let text = std::fs::read_to_string(&whole).unwrap();
    let (head, rest) = text.split_once('\n').unwrap();
    let (records, last) = (rest.lines().count(), rest.lines().last().unwrap());
    let headed = |at: &str, value: u64| {
        let mut changed: Value = serde_json::from_str(head).unwrap();
        *changed.pointer_mut(at).unwrap() = json!(value);
        format!("{changed}\n{rest}")
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let told = |code: i32, more: &[&str]| {
        let told = expect(elsewhere.path(), code, &[&["audit", "verify", "--export", &file], more].concat());
        told["error"]["message"].as_str().or(told["what"].as_str()).unwrap_or_else(|| panic!("{told}")).to_owned()
    };
    for (text, says) in [
        (String::new(), "the export is empty"),
        ("{}\n".to_owned(), "not the head of an export"),
        ("{\n".to_owned(), "line 1"),
        (headed("/audit_export", 1), "has form 1, this program reads 2: export it anew"),
        (headed("/to", records as u64 + 1), "of "),
        (headed("/from", records as u64 + 1), "of "),
        (headed("/checkpoint/count", 1), "records, not 1"),
        (text.trim_end().to_owned(), "a line ends early"),
        (format!("{head}\n{}\n", " ".repeat(256 * 1024)), "longer than 262144 bytes"),
        (format!("{text}{last}\n"), "a line follows the last record"),
        (format!("{head}\n{{\n"), "is no JSON"),
        (format!("{head}\n{{}}\n"), "holds no record and proof"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let told = told(12, &[]);
        assert!(told.contains(says), "{told} does not say {says:?}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(told(2, &[]).contains("there is no file"));
    // Records from the second on say nothing of a log that ended in between.
    expect(home.path(), 0, &["audit", "export", "--from", "1", "--out", &file]);
    assert!(told(2, &["--checkpoint", &kept]).contains("cannot be compared"));
    let other = chain();
    expect(other.path(), 0, &["audit", "checkpoint", "--out", &path("other.json")]);
    assert!(told(12, &["--checkpoint", &path("other.json")]).contains("another chain"));
    expect(home.path(), 12, &["audit", "verify", "--checkpoint", &path("other.json")]);
}

fn own(home: &Path, code: i32, arguments: &[&str]) -> Value {
    expect(home, code, &[&["audit", "node"], arguments].concat())
}

/// The kinds and steps of what a node put on record.
fn on_record(home: &Path) -> Vec<(String, String)> {
    let shown = own(home, 0, &["show"]);
    let part = |record: &Value, name: &str| record[name].as_str().unwrap().to_owned();
    shown["records"].as_array().unwrap().iter().map(|record| (part(record, "kind"), part(record, "step"))).collect()
}

/// spec: AUDIT-10, AUDIT-13. What a node does by itself is on record, with where the state stood before and after: rollback,
/// pruning, snapshots, restoring, rebuilding, and other settings than before.
#[test]
fn what_a_node_does_by_itself_is_on_record() {
    let home = lived();
    let path = home.path();
    own(path, 14, &["show"]);
    own(path, 14, &["verify"]);
    let last = show(path, &[])["records"].as_array().unwrap().last().unwrap()["height"].as_u64().unwrap();

    expect(path, 2, &["rollback", "3"]);
    own(path, 14, &["show"]);
    expect(path, 0, &["rollback", "3", "--yes"]);
    expect(path, 14, &["rollback", "9999", "--yes"]);
    // However full the disk is that this runs on.
    let full = ["--set", "snapshots.reserve_percent=0"];
    let archive = path.join("three.tar");
    expect(path, 0, &[&["snapshot", "create"], &full[..]].concat());
    expect(path, 0, &["snapshot", "export", "3", archive.to_str().unwrap()]);
    expect(path, 0, &[&["snapshot", "restore", archive.to_str().unwrap(), "--yes"], &full[..]].concat());
    expect(path, 0, &["snapshot", "delete", "3", "--yes"]);
    // Records begin anew with the next block: until then there is nothing to be found right or wrong.
    let verdict = expect(path, 17, &["audit", "verify"]);
    assert_eq!((&verdict["valid"], &verdict["verified"]), (&Value::Null, &json!(0)));
    send(path, 0, &json!([post("more")]));
    assert_eq!(expect(path, 0, &["audit", "verify"])["valid"], true);
    expect(path, 0, &["db", "prune", "--before", "4", "--yes"]);
    expect(path, 0, &["audit", "prune", "--before", "4", "--yes"]);
    let pair = |kind: &str, step: &str| (kind.to_owned(), step.to_owned());
    let expected = [
        pair("rolled_back", "begun"),
        pair("rolled_back", "done"),
        pair("rolled_back", "begun"),
        pair("rolled_back", "failed"),
        pair("made_snapshot", "done"),
        pair("restored", "begun"),
        pair("restored", "done"),
        pair("removed_snapshot", "done"),
        pair("pruned_states", "begun"),
        pair("pruned_states", "done"),
        pair("pruned_audit", "begun"),
        pair("pruned_audit", "done"),
    ];
    assert_eq!(on_record(path), expected);
    let rolled = own(path, 0, &["show", "--kind", "rolled_back", "--limit", "1", "--from", "1"]);
    let rolled = &rolled["records"][0];
    assert_eq!((rolled["before"]["height"].as_u64(), rolled["after"]["height"].as_u64()), (Some(last), Some(3)));
    assert!(rolled["who"].as_str().unwrap().starts_with("uid ") && rolled["said"]["to"] == 3, "{rolled}");
    own(path, 2, &["show", "--kind", "nonsense"]);

    // A running node says what it runs with, and what it makes for its owner.
    let node = Node::start(path, &["snapshots.keep=3", full[1]]);
    expect(path, 0, &["snapshot", "create"]);
    drop(node);
    drop(Node::start(path, &["snapshots.keep=3", full[1]]));
    drop(Node::start(path, &["snapshots.keep=4", full[1]]));
    let later: Vec<_> = on_record(path)[expected.len()..].iter().map(|(kind, _)| kind.clone()).collect();
    assert_eq!(later, ["configured", "made_snapshot", "configured"]);
    let settings = own(path, 0, &["show", "--kind", "configured"])["records"].as_array().unwrap().clone();
    assert_eq!(settings[0]["said"]["after"], settings[1]["said"]["before"]);
    assert!(settings[1]["said"]["settings"].to_string().contains("snapshots.keep = 4"), "{}", settings[1]);
}

/// spec: AUDIT-11, AUDIT-13. Whoever changes a node's own log, a copy that was handed on, or what stands beside it is found out,
/// with the first bad record; and a log that was set back is by a checkpoint that was kept.
#[test]
fn a_changed_log_of_a_node_is_found_out() {
    let home = lived();
    let path = home.path();
    for height in ["4", "3"] {
        expect(path, 0, &["rollback", height, "--yes"]);
    }
    let before = home.path().join("audit.before");
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    copy(&path.join("audit"), &before);
    expect(path, 0, &["rollback", "2", "--yes"]);
    let verified = own(path, 0, &["verify"]);
    assert_eq!((&verified["valid"], &verified["count"], &verified["torn"]), (&json!(true), &json!(6), &json!(0)));
    let key = verified["key"].as_str().unwrap();
    own(path, 0, &["verify", "--key", key]);
    assert_eq!(own(path, 12, &["verify", "--key", &"11".repeat(32)])["bad_record"], 0);

    let elsewhere = tempfile::tempdir().unwrap();
    let file = |name: &str| elsewhere.path().join(name).to_str().unwrap().to_owned();
    let (kept, log) = (file("kept.json"), file("log.jsonl"));
    own(path, 0, &["checkpoint", "--out", &kept]);
    own(path, 0, &["export", "--out", &log]);
    let outside = |code, more: &[&str]| own(elsewhere.path(), code, &[&["verify", "--export", &log], more].concat());
    assert_eq!(outside(0, &["--checkpoint", &kept])["verified"], 6);
    let honest = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = honest.lines().collect();
    let written = |lines: Vec<String>| std::fs::write(&log, lines.join("\n") + "\n").unwrap();
    let changed = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        change(&mut lines);
        written(lines);
        outside(12, &[])["bad_record"].as_u64().unwrap()
    };
    assert_eq!(changed(&|lines| lines[3] = lines[3].replace("\"step\":\"begun\"", "\"step\":\"done\"")), 2);
    assert_eq!(changed(&|lines| drop(lines.remove(2))), 1);
    assert_eq!(changed(&|lines| lines.swap(4, 5)), 3);
    assert_eq!(changed(&|lines| lines.insert(6, lines[6].clone())), 6);
    assert_eq!(changed(&|lines| drop(lines.pop())), 6);
    written(vec!["{}".to_owned()]);
    outside(12, &[]);

    // The log of before takes the place of this one: it is whole, and still not what was kept.
    std::fs::remove_dir_all(path.join("audit")).unwrap();
    copy(&before, &path.join("audit"));
    own(path, 0, &["verify"]);
    own(path, 12, &["verify", "--checkpoint", &kept]);

    let segment = path.join("audit").join(format!("{:020}.audit", 0));
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == b"uid ").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    assert_eq!(own(path, 12, &["verify"])["bad_record"], 0);
    expect(path, 12, &["rollback", "1", "--yes"]);
    assert_eq!(expect(path, 0, &["status"])["height"], 2, "nothing was done that could not be put on record");
}
