//! Exit codes, configuration, keys and proofs.

use crate::support::{Node, chain, expect, expect_of, keelstone, post, program, register, send, until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn exit_codes_mean_what_the_table_says() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(keelstone(empty.path(), &["no-such-command"]).status.code(), Some(2));
    assert_eq!(keelstone(empty.path(), &["--version"]).status.code(), Some(0));
    let error = expect(empty.path(), 10, &["status"]);
    assert_eq!((&error["error"]["code"], &error["error"]["exit"]), (&json!("no_chain"), &json!(10)));
    let home = chain();
    expect(home.path(), 2, &["init"]);
    let nobody = "ab".repeat(32);
    expect(home.path(), 14, &["query", "agents", &nobody]);
    expect(home.path(), 14, &["query", "block", "7"]);
    expect(home.path(), 14, &["query", "agents", &nobody, "--height", "7"]);
    // A digit is missing: of another key nothing is said.
    let error = expect(home.path(), 2, &["query", "agents", &nobody[1..]]);
    assert!(error["error"]["message"].as_str().unwrap().contains("no key of the table agents"), "{error}");
    let refused = send(home.path(), 13, &json!([post("not registered yet")]));
    assert_eq!(refused["receipt"]["failure"]["operation"], 0);
}

#[test]
fn a_chain_can_be_used_without_a_node() {
    let home = chain();
    let sent = send(home.path(), 0, &json!([register(), post("first")]));
    assert_eq!(sent["receipt"]["outcomes"].as_array().map(Vec::len), Some(2));
    assert_eq!(sent["operations"][0]["args"]["traits"], json!(["a", "b"]), "sets are sorted for people");
    let id = sent["id"].as_str().unwrap();
    assert_eq!(expect(home.path(), 0, &["query", "tx", id])["receipt"]["height"], 1);
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 1);
    let replayed = expect(home.path(), 0, &["replay"]);
    assert_eq!((&replayed["blocks"], &replayed["roots_compared"]), (&json!(1), &json!(2)));
    assert_eq!(expect(home.path(), 0, &["db", "check"])["sound"], true);
    let functions = expect(home.path(), 0, &["query", "functions"]);
    assert!(functions.as_array().unwrap().iter().any(|function| function["name"] == "memes.post/1"));
}

/// spec: HISTORY-8. What a transaction would come to is what it comes to, asked of a home and of a node, signed or not; and
/// nothing is taken in.
#[test]
fn a_transaction_is_run_dry_before_it_is_sent() {
    let home = chain();
    let file = home.path().join("bundle.json");
    let dry = |code: i32, plan: &Value, from: &str| {
        fs::write(&file, plan.to_string()).unwrap();
        expect(home.path(), code, &["tx", "send", file.to_str().unwrap(), "--from", from, "--dry-run"])
    };
    let plan = json!({ "operations": [register(), post("first")] });
    let key = expect(home.path(), 0, &["keys", "list"])[0]["public"].as_str().unwrap().to_owned();
    let alone = dry(0, &plan, "producer");
    assert_eq!((&alone["receipt"]["succeeded"], &alone["receipt"]["height"]), (&json!(true), &json!(1)));
    assert!(alone["entries_changed"].as_u64() > Some(3) && alone["bytes_changed"].as_u64() > Some(100), "{alone}");
    assert!(alone["receipt"]["outcomes"][1]["events"].as_array().is_some_and(|events| !events.is_empty()), "{alone}");
    let failing = json!({ "operations": [post("not registered yet")] });
    assert_eq!(dry(13, &failing, &key)["receipt"]["failure"]["operation"], 0);
    let stale = json!({ "nonce": 7, "operations": [register()] });
    let refused = dry(13, &stale, &key);
    assert_eq!(refused["error"]["code"], "refused", "{refused}");
    expect(home.path(), 2, &["tx", "send", file.to_str().unwrap(), "--dry-run"]);
    expect(home.path(), 2, &["tx", "send", file.to_str().unwrap(), "--dry-run", "--no-wait", "--from", "producer"]);

    let node = Node::start(home.path(), &[]);
    let asked = dry(0, &plan, &key);
    for same in ["root", "entries_changed", "bytes_changed", "receipt"] {
        assert_eq!(asked[same], alone[same], "{same}");
    }
    assert_eq!(dry(13, &stale, &key)["error"], refused["error"]);
    let status = node.json("/v1/status").1;
    assert_eq!((&status["height"], &status["waiting"]), (&json!(0), &json!(0)), "{status}");
    let mut sent = send(home.path(), 0, &plan["operations"]);
    let mut foreseen = asked["receipt"].clone();
    for receipt in [&mut sent["receipt"], &mut foreseen] {
        // Its expiry is in its identity, and it was sent at another height or not.
        let receipt = receipt.as_object_mut().unwrap();
        ["id", "receipt", "place"].into_iter().for_each(|name| drop(receipt.remove(name)));
    }
    assert_eq!(sent["receipt"], foreseen);
}

#[test]
fn transactions_can_be_built_signed_and_sent_in_steps() {
    let home = chain();
    let plan = home.path().join("plan.json");
    fs::write(&plan, json!({ "operations": [register()] }).to_string()).unwrap();
    let step = |arguments: &[&str], file: &str, into: &str| {
        let output = keelstone(home.path(), &[&["tx"], arguments, &[file, "--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        fs::write(home.path().join(into), &output.stdout).unwrap();
        home.path().join(into).to_str().unwrap().to_owned()
    };
    let built = step(&["build", "--from", "producer"], plan.to_str().unwrap(), "built.json");
    let signed = step(&["sign", "--from", "producer"], &built, "signed.json");
    expect(home.path(), 0, &["tx", "show", &signed]);
    let sent = expect(home.path(), 0, &["tx", "send", &signed]);
    // The same transaction again is a replay: it takes effect no more, and what became of it is told again.
    assert_eq!(expect(home.path(), 0, &["tx", "send", &signed]), sent);
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 1);
}

/// Has an answer with a proof checked where there is no store: by a home that does not exist.
fn check_claim(home: &Path, claim: &Value, code: i32, more: &[&str]) -> Value {
    let file = home.join("claim.json");
    fs::write(&file, claim.to_string()).expect("written");
    expect(&home.join("nowhere"), code, &[&["proof", "verify", file.to_str().expect("text")], more].concat())
}

#[test]
fn p09_a_proof_holds_for_its_own_entry_and_root_only() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first")]));
    let listed = expect(home.path(), 0, &["query", "list", "memes"]);
    let keys: Vec<&str> = listed["entries"].as_array().unwrap().iter().map(|e| e["key"].as_str().unwrap()).collect();
    let proven = expect(home.path(), 0, &["query", "memes", keys[0], "--hex", "--prove"]);
    let check = |claim: &Value, code: i32, more: &[&str]| check_claim(home.path(), claim, code, more);
    check(&proven, 0, &[]);
    check(&proven, 0, &["--root", proven["root"].as_str().unwrap()]);
    check(&proven, 12, &["--root", &"ab".repeat(32)]);
    let with = |name: &str, value: &str| {
        let mut claim = proven.clone();
        claim[name] = json!(value);
        claim
    };
    check(&with("key", keys[1]), 12, &[]);
    check(&with("namespace", "agents"), 12, &[]);
    check(&with("value", "00"), 12, &[]);
    check(&with("proof", "00"), 12, &[]);
    check(&with("hasher", "sha256"), 12, &[]);
    check(&with("proof", "zz"), 2, &[]);
    let digits = proven["proof"].as_str().unwrap();
    check(&with("proof", &digits[..digits.len() - 2]), 12, &[]);
    // Of which height a root is, no proof says: it is shown as what the file claims.
    let mut other = proven.clone();
    other["height"] = json!(9);
    let shown = check(&other, 0, &[]);
    assert_eq!((&shown["claimed"], &shown["height"]), (&json!({ "height": 9 }), &Value::Null));
    // A file that says another root than the one that is trusted is of another state.
    check(&with("root", &"ab".repeat(32)), 12, &["--root", proven["root"].as_str().unwrap()]);
    // There is one way to write each claim, and none to claim an absence by saying nothing.
    check(&with("more", "1"), 2, &[]);
    check(&with("proof", &digits.to_uppercase()), 2, &[]);
    let mut silent = proven.clone();
    silent.as_object_mut().unwrap().remove("value");
    check(&silent, 2, &[]);
    let absent = expect(home.path(), 14, &["query", "memes", "6e6f7468696e67", "--hex", "--prove"]);
    assert_eq!(absent["value"], Value::Null);
    check(&absent, 0, &[]);
}

/// spec: TREE-10. Pages prove that they leave nothing out, here and from a node that runs; the ranges of all of them are the
/// whole.
#[test]
fn p09_a_page_is_all_there_is_in_its_range() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first"), post("second")]));
    let all = expect(home.path(), 0, &["query", "list", "memes", "--prove"]);
    assert_eq!((&all["next"], &all["proof"]["start"], &all["proof"]["end"]), (&Value::Null, &json!(""), &Value::Null));
    let table = expect(home.path(), 0, &["query", "memes", "--prove"]);
    assert!(table["rows"].as_array().unwrap().len() == 2 && table["proof"]["proof"].is_string(), "{table}");
    // It is checked as it was printed, rows and all.
    let file = home.path().join("rows.json");
    let verify = |code: i32, claim: &Value| {
        std::fs::write(&file, claim.to_string()).unwrap();
        expect(home.path(), code, &["proof", "verify", file.to_str().unwrap()])
    };
    assert_eq!(verify(0, &table)["rows_checked"], true);
    let mut lie = table.clone();
    lie["rows"][0]["value"]["text"] = json!("never said");
    assert!(
        verify(12, &lie)["error"]["message"].as_str().unwrap().contains("rows"),
        "what was not proven is not believed"
    );
    lie["rows"] = json!([]);
    verify(12, &lie);
    let other = expect(home.path(), 0, &["query", "memes/memes", "--prove"]);
    assert_eq!(verify(0, &other)["rows_checked"], true);

    let node = Node::start(home.path(), &[]);
    let (mut entries, mut start, mut after) = (Vec::new(), json!(""), None::<String>);
    loop {
        let more = after.as_ref().map_or(vec![], |after| vec!["--after", after]);
        let page =
            expect(home.path(), 0, &[&["query", "list", "memes", "--limit", "2", "--prove"], &more[..]].concat());
        check_claim(home.path(), &page, 0, &["--root", page["root"].as_str().unwrap()]);
        assert_eq!(page["proof"]["start"], start);
        start = page["proof"]["end"].clone();
        entries.extend(page["entries"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        after = Some(next.to_owned());
    }
    assert!(start == Value::Null && entries.len() > 4, "{entries:?}");
    assert_eq!(json!(entries), all["entries"]);
    let (status, none) = node.json("/v1/entries/memes?prefix=a&after=zz&limit=5&prove=true");
    assert!(status == 200 && none["entries"] == json!([]), "{none}");
    check_claim(home.path(), &none, 0, &[]);

    let with = |change: fn(&mut Value)| {
        let mut claim = all.clone();
        change(&mut claim);
        check_claim(home.path(), &claim, 12, &[]);
    };
    with(|claim| drop(claim["entries"].as_array_mut().unwrap().remove(1)));
    with(|claim| claim["entries"][0]["value"] = json!("00"));
    with(|claim| claim["entries"] = json!([]));
    with(|claim| claim["proof"]["namespace"] = json!("agents"));
    with(|claim| claim["proof"]["hasher"] = json!("sha256"));
    with(|claim| claim["root"] = json!("ab".repeat(32)));
    with(|claim| claim["proof"]["end"] = claim["entries"][1]["key"].clone());
}

#[test]
fn l01_bad_configuration_is_named_with_line_and_key_by_check_and_by_node() {
    let home = chain();
    let file = home.path().join("keelstone.toml");
    let long = format!("# {}\n", "x".repeat(10 << 20));
    for (text, line, key) in [
        ("[http]\nlisen = \"127.0.0.1:1\"\n", "line 2", "http.lisen"),
        ("[blocks]\ninterval_ms = \"1s\"\n", "line 2", "blocks.interval_ms"),
        ("[blocks]\ninterval_ms = -1\n", "line 2", "blocks.interval_ms"),
        ("[blocks]\n\ninterval_ms = 0\n", "line 3", "blocks.interval_ms"),
        ("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", "line 3", "log.level"),
        ("\u{feff}[log]\n", "line 1", "byte order mark"),
        ("[log]\r\nlevel = \"info\"\r\n", "line 1", "CR LF"),
        (&long, "keelstone.toml", "longer than"),
    ] {
        fs::write(&file, text).unwrap();
        let said: Vec<String> = [["config", "check"].as_slice(), &["node"]]
            .iter()
            .map(|command| expect(home.path(), 2, command)["error"]["message"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(said[0], said[1], "config check says the same as node");
        assert!(said[0].contains(line) && said[0].contains(key), "{:?} does not name {line}, {key}", said[0]);
    }
}

#[test]
fn l01_a_path_that_is_not_text_is_refused() {
    let home = std::ffi::OsStr::from_bytes(b"/tmp/keelstone-\xff");
    let output = program().arg("status").arg("--home").arg(home).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn settings_come_from_file_environment_and_command_line_in_this_order() {
    let home = chain();
    fs::write(home.path().join("keelstone.toml"), "[http]\nconnections_max = 7\n").unwrap();
    let value = |command: &mut std::process::Command| {
        let output = command.args(["config", "show", "--json", "--home"]).arg(home.path()).output().unwrap();
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["key"] == "http.connections_max").unwrap().clone();
        row["value"].clone()
    };
    assert_eq!(value(&mut program()), 7);
    assert_eq!(value(program().env("KEELSTONE_HTTP_CONNECTIONS_MAX", "8")), 8);
    let both = &mut program();
    both.env("KEELSTONE_HTTP_CONNECTIONS_MAX", "8").args(["--set", "http.connections_max=9"]);
    assert_eq!(value(both), 9);
    let misspelt = program().env("KEELSTONE_HTTP_CONECTIONS", "8").args(["config", "check"]).output().unwrap();
    assert_eq!(misspelt.status.code(), Some(2));
}

/// Wherever a setting stands on the command line it counts, and of two the later one.
#[test]
fn settings_count_before_a_command_and_after_it() {
    let home = chain();
    let shown = |arguments: &[&str]| -> Value {
        let mut command = program();
        command.args(arguments).arg("--home").arg(home.path());
        let rows = expect_of(command, 0);
        let value = |key: &str| rows.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap()["value"].clone();
        json!([value("http.connections_max"), value("log.level"), value("check.enabled")])
    };
    let before = ["--json", "--set", "http.connections_max=9", "--set", "check.enabled=true"];
    let said = |after: &[&str]| shown(&[&before[..], after].concat());
    assert_eq!(said(&["config", "show"]), json!([9, "info", true]));
    assert_eq!(said(&["config", "show", "--set", "log.level=debug"]), json!([9, "debug", true]));
    let twice = ["config", "--set", "check.enabled=false", "show", "--set", "http.connections_max=10"];
    assert_eq!(said(&twice), json!([10, "info", false]));
}

#[test]
fn l02_a_node_does_not_start_with_a_key_others_can_read() {
    let home = chain();
    let key = home.path().join("keys/producer.key.json");
    let secret = fs::read_to_string(&key).unwrap();
    let secret: Value = serde_json::from_str(&secret).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let output = keelstone(home.path(), &["node"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("644"), "{said}");
    assert!(!said.contains(secret["secret"].as_str().unwrap()), "the secret is printed");
    fs::remove_file(&key).unwrap();
    expect(home.path(), 14, &["node"]);
    fs::create_dir(&key).unwrap();
    expect(home.path(), 2, &["node"]);
}

#[test]
fn keys_move_between_homes_and_are_not_overwritten() {
    let (home, other) = (chain(), tempfile::tempdir().unwrap());
    let made = expect(home.path(), 0, &["keys", "new", "alice"]);
    expect(home.path(), 2, &["keys", "new", "alice"]);
    let file = other.path().join("moved.json");
    expect(home.path(), 0, &["keys", "export", "alice", file.to_str().unwrap()]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let taken = expect(other.path(), 0, &["keys", "import", "bob", file.to_str().unwrap()]);
    assert_eq!(made["public"], taken["public"]);
    assert_eq!(expect(home.path(), 0, &["keys", "list"]).as_array().map(Vec::len), Some(2));
}

#[test]
fn l04_a_data_directory_that_is_none_is_a_named_error() {
    let home = chain();
    fs::remove_dir_all(home.path().join("data")).unwrap();
    fs::write(home.path().join("data"), "").unwrap();
    let error = expect(home.path(), 1, &["status"]);
    assert!(error["error"]["message"].as_str().unwrap().contains("data"), "{error}");
}

#[test]
fn l06_a_reader_that_goes_away_is_no_panic() {
    let mut child =
        program().args(["config", "default"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn l07_what_destroys_needs_a_yes() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    send(home.path(), 0, &json!([post("second")]));
    expect(home.path(), 2, &["rollback", "1"]);
    expect(home.path(), 14, &["rollback", "100"]);
    expect(home.path(), 2, &["db", "prune", "--before", "1"]);
    assert_eq!(expect(home.path(), 0, &["status"])["height"], 2);
    let root = expect(home.path(), 0, &["query", "block", "1"])["root"].clone();
    let back = expect(home.path(), 0, &["rollback", "1", "--yes"]);
    assert_eq!((&back["height"], &back["root"]), (&json!(1), &root));
    expect(home.path(), 14, &["query", "block", "2"]);
    send(home.path(), 0, &json!([post("another second")]));
}

/// spec: HISTORY-4. Any range can be run again; heights that are not there, or are no longer kept, are named.
#[test]
fn replay_takes_any_range_that_is_kept() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    for text in ["two", "three", "four"] {
        send(home.path(), 0, &json!([post(text)]));
    }
    let root = |height: &str| expect(home.path(), 0, &["query", "block", height])["root"].clone();
    let roots = ["2", "3", "4"].map(root);
    let replay = |code: i32, arguments: &[&str]| expect(home.path(), code, &[&["replay"], arguments].concat());
    let came_to = |arguments: &[&str]| {
        let said = replay(0, arguments);
        ["from", "height", "blocks", "roots_compared", "root"].map(|name| said[name].clone())
    };
    assert_eq!(came_to(&[]), [json!(1), json!(4), json!(4), json!(5), roots[2].clone()]);
    assert_eq!(came_to(&["--to", "3"]), [json!(1), json!(3), json!(3), json!(4), roots[1].clone()]);
    assert_eq!(came_to(&["--from", "3"]), [json!(3), json!(4), json!(2), json!(3), roots[2].clone()]);
    assert_eq!(came_to(&["--from", "2", "--to", "2"]), [json!(2), json!(2), json!(1), json!(2), roots[0].clone()]);
    let said = |code: i32, arguments: &[&str]| replay(code, arguments)["error"]["message"].as_str().unwrap().to_owned();
    assert!(said(14, &["--to", "5"]).contains("1 to 4"));
    assert!(said(14, &["--from", "0"]).contains("1 to 4"));
    assert!(said(2, &["--from", "3", "--to", "2"]).contains("--from 3"));

    // The state before block 2 is forgotten; the genesis is not, and neither are the blocks.
    expect(home.path(), 0, &["db", "prune", "--before", "3", "--yes"]);
    assert!(said(14, &["--from", "2"]).contains('3'));
    assert_eq!(came_to(&[]), [json!(1), json!(4), json!(4), json!(2), roots[2].clone()]);
    assert_eq!(came_to(&["--from", "4"]), [json!(4), json!(4), json!(1), json!(2), roots[2].clone()]);
}

#[test]
fn completions_and_help_name_every_command() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = keelstone(home.path(), &["completions", shell]);
        assert!(String::from_utf8_lossy(&script.stdout).contains("rollback"), "{shell}");
    }
}

#[test]
fn the_bench_prints_the_lines_of_the_other_engines() {
    let home = tempfile::tempdir().unwrap();
    let sizes = ["--n", "2000", "--upd-blocks", "3", "--upd-size", "100", "--reads", "500", "--proofs", "50"];
    let output = keelstone(home.path(), &[&["bench", "store", "--json"], sizes.as_slice()].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line["w"].as_str().unwrap()).collect();
    assert_eq!(names, ["info", "W1", "W2", "W3", "W4", "W4x", "W5"]);
    assert!(lines.iter().all(|line| line["peer"] == "keelstone" && line["n"] == 2000));
    assert_eq!(lines[6]["same_root"], true);
    // Figures are of so much memory, which is said: the defaults that the help names.
    let told = json!({ "cache_bytes": lines[0]["cache_bytes"], "value_cache_bytes": lines[0]["value_cache_bytes"] });
    let help = String::from_utf8(keelstone(home.path(), &["bench", "store", "--help"]).stdout).unwrap();
    for name in ["cache_bytes", "value_cache_bytes"] {
        assert!(help.contains(&format!("[default: {}]", told[name])), "{told}: {help}");
    }
}

/// What is measured as a node does it has the settings of a node.
#[test]
fn a_bench_of_snapshots_has_the_memory_of_a_node() {
    let home = tempfile::tempdir().unwrap();
    let sizes = ["--n", "2000", "--upd-size", "10", "--saturating", "5", "--rounds", "1"];
    for (settings, cache) in [([].as_slice(), 268_435_456), (&["--set", "store.cache_bytes=1048576"], 1_048_576)] {
        let told = expect(home.path(), 0, &[&["bench", "snapshot"], sizes.as_slice(), settings].concat());
        assert_eq!((&told["w"], &told["cache_bytes"]), (&json!("beside"), &json!(cache)), "{told}");
    }
    expect(home.path(), 2, &[&["bench", "snapshot"], sizes.as_slice(), &["--set", "store.cache_bytes=1"]].concat());
}

/// What cannot be run, or would be told as measured although nothing was, is refused before anything is done; and so is a
/// setting where none has a say.
#[test]
fn a_bench_refuses_what_it_cannot_measure() {
    let home = tempfile::tempdir().unwrap();
    let most = u64::MAX.to_string();
    for arguments in [
        ["store", "--reads", "0"],
        ["store", "--reads", &most],
        ["store", "--proofs", "0"],
        ["store", "--proofs", &most],
        ["store", "--upd-blocks", "0"],
        ["store", "--upd-blocks", &most],
        ["store", "--upd-size", "9"],
        ["store", "--upd-size", "9223372036854775808"],
        ["store", "--cache-bytes", &most],
        ["store", "--value-cache-bytes", &most],
        ["store", "--n", "1000000001"],
        ["store", "--block", &most],
        ["cliffs", "--upd-blocks", "0"],
        ["cliffs", "--upd-size", "9223372036854775808"],
        ["cliffs", "--n", &most],
        ["open", "--kills", "0"],
        ["open", "--n", &most],
        ["open", "--upd-size", &most],
        ["snapshot", "--saturating", "0"],
        ["snapshot", "--rounds", &most],
        ["snapshot", "--upd-size", "9223372036854775808"],
        ["store", "--set", "store.cache_bytes=1048576"],
        ["cliffs", "--set", "nothing.of_that_kind=1"],
        ["open", "--set", "store.cache_bytes=1048576"],
        ["snapshot", "--set", "nothing.of_that_kind=1"],
    ] {
        // Were it not refused, it would be over soon.
        let small = ["--dir", "/dev/null/no-directory"];
        expect(home.path(), 2, &[&["bench"], arguments.as_slice(), small.as_slice()].concat());
    }
    expect(
        home.path(),
        2,
        &["bench", "store", "--n", "1000000000", "--upd-blocks", "1000000", "--upd-size", "1000000"],
    );
}

/// However a bench ends, no process goes on without it; if it is asked to end, nothing stays on the disk either.
#[test]
fn a_bench_that_is_ended_leaves_no_process_and_one_that_is_asked_to_end_no_directory() {
    for (what, signal, left) in
        [("store", "INT", 0), ("cliffs", "HUP", 0), ("open", "INT", 0), ("open", "TERM", 0), ("open", "KILL", 1)]
    {
        let (place, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = place.path().canonicalize().unwrap();
        let mut command = program();
        command.args(["bench", what, "--n", "100000000", "--home"]).arg(home.path()).env("TMPDIR", &place);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut bench = command.spawn().unwrap();
        let loads = || fs::read_dir(&place).unwrap().flatten().any(|own| own.path().join("db").is_dir());
        until("it loads", loads);
        let workers = || at_work(place.to_str().unwrap());
        if what == "open" {
            until("a process works", || workers() > 0);
        }
        let pid = bench.id().to_string();
        assert!(std::process::Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        assert!(!bench.wait().unwrap().success());
        until("no process works", || workers() == 0);
        assert_eq!(fs::read_dir(&place).unwrap().count(), left, "bench {what} after {signal}");
    }
}

/// Processes whose command line names this.
fn at_work(name: &str) -> usize {
    let commands = fs::read_dir("/proc")
        .expect("there are processes")
        .flatten()
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    commands.filter(|command| String::from_utf8_lossy(command).contains(name)).count()
}

/// The workload that lasts runs when it is named, for as long as is said, and no update is told that was not made.
#[test]
fn updates_go_on_for_as_long_as_is_said() {
    let home = tempfile::tempdir().unwrap();
    let sizes = ["--n", "2000", "--upd-size", "100", "--only", "W6", "--seconds", "1"];
    let output = keelstone(home.path(), &[&["bench", "store", "--json"], sizes.as_slice()].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_str(String::from_utf8_lossy(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!((&told["w"], &told["seconds"]), (&json!("W6"), &json!(1)), "{told}");
    assert!(told["updates_per_s"].as_u64() > Some(0), "{told}");
    assert!(told["second_min"].as_u64() <= told["second_med"].as_u64() && told["disk"].as_u64() > Some(0), "{told}");
}

/// Of a store that keeps few heights, what they hold is told, and stands beside what the rest takes.
#[test]
fn what_the_kept_heights_hold_is_told_apart() {
    let home = tempfile::tempdir().unwrap();
    let sizes = ["--n", "2000", "--upd-size", "100", "--only", "W6", "--seconds", "1", "--history", "5"];
    let caches = ["--cache-bytes", "1048576", "--value-cache-bytes", "1048576"];
    let output = keelstone(home.path(), &[&["bench", "store", "--json"], sizes.as_slice(), caches.as_slice()].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_str(String::from_utf8_lossy(&output.stdout).lines().last().unwrap()).unwrap();
    // 90 keys of 32 bytes with values of 100 and 10 keys without, five times.
    assert_eq!((&told["history"], &told["history_bytes"]), (&json!(5), &json!(5 * (90 * 132 + 10 * 32))), "{told}");
    assert!(told["steady_med_ratio"].as_f64() <= told["steady_max_ratio"].as_f64(), "{told}");
}

/// Every shape is measured, beside the plain one, which comes first; the store answers for each of them what was written.
#[test]
fn every_shape_is_measured_beside_the_plain_one() {
    let home = tempfile::tempdir().unwrap();
    let sizes = ["--n", "4000", "--upd-blocks", "3", "--upd-size", "20"];
    let output = keelstone(home.path(), &[&["bench", "cliffs", "--json"], sizes.as_slice()].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shapes: Vec<&str> = lines.iter().map(|line| line["shape"].as_str().unwrap()).collect();
    let on_one_store = ["plain", "skewed", "inserts", "deletes", "empty", "ones", "large", "again"];
    assert_eq!(shapes, [on_one_store.as_slice(), &["keys-8", "keys-200", "prefixes", "values-4096"]].concat());
    assert!(lines.iter().all(|line| line["n"] == 4000 && line["block_ratio"].as_f64() > Some(0.0)), "{lines:?}");
    assert_eq!(lines[0]["update_ratio"], 1.0);
    assert_eq!((&lines[4]["update_ratio"], &lines[6]["upd_size"]), (&json!(null), &json!(1000)), "{lines:?}");

    let output = keelstone(home.path(), &[&["bench", "cliffs", "--only", "empty"], sizes.as_slice()].concat());
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.lines().count() == 2 && told.contains("\nempty"), "{told}");
}

/// Nothing that the killed process acknowledged is missing, and the state has all its keys.
#[test]
fn a_store_whose_process_was_killed_is_opened_and_the_time_is_told() {
    let home = tempfile::tempdir().unwrap();
    let told = expect(home.path(), 0, &["bench", "open", "--n", "500", "--upd-size", "10", "--kills", "2"]);
    assert_eq!((&told["w"], &told["kills"], &told["entries"]), (&json!("open"), &json!(2), &json!(500)), "{told}");
    assert!(told["replayed_bytes_max"].as_u64() > Some(0), "{told}");
}

/// Every bundle that the benchmark submits is in a durable block, and none fails.
#[test]
fn bundles_are_measured_from_submission_to_the_durable_block() {
    let home = tempfile::tempdir().unwrap();
    let arguments = ["bench", "bundles", "--bundles", "300", "--operations", "2", "--accounts", "20"];
    let told = expect(home.path(), 0, &arguments);
    assert_eq!((&told["bundles"], &told["operations"]), (&json!(300), &json!(600)), "{told}");
    assert!(told["blocks"].as_u64() > Some(0) && told["operations_per_s"].as_u64() > Some(0), "{told}");
}

#[test]
fn the_demo_holds_every_check_it_makes() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("demo");
    let told = expect(&dir, 0, &["demo", "--once"]);
    assert_eq!(told["all_held"], true, "{told}");
    assert!(told["checks"].as_array().unwrap().len() >= 10);
    // A directory that was asked for stays, and is nobody else's to begin in.
    assert_eq!(told["home"], json!(dir));
    let taken = expect(&dir, 2, &["demo", "--once"]);
    assert!(taken["error"]["hint"].as_str().is_some_and(|hint| hint.contains("--home")), "{taken}");
}

/// A demo that ends by itself, or is interrupted, leaves nothing, and has nothing to do with the chain of the environment.
#[test]
fn a_demo_that_ends_by_itself_leaves_nothing_behind() {
    let (place, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let left = || fs::read_dir(place.path()).unwrap().count() + fs::read_dir(home.path()).unwrap().count();
    let demo = || {
        let mut command = program();
        command.args(["demo", "--once"]).current_dir(place.path()).env("KEELSTONE_HOME", home.path());
        command.stdin(Stdio::null());
        command
    };
    let done = demo().output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(left(), 0);
    let mut interrupted = demo().stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(interrupted.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(told.any(|line| line.contains("A story")), "it has not begun");
    assert_eq!(left(), 1);
    let pid = interrupted.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    assert_ne!(interrupted.wait().unwrap().code(), Some(0));
    assert_eq!(left(), 0);
}

/// With no node to let it wait, a transaction that leaves a gap is refused at once, and is not said to be taken in.
#[test]
fn a_transaction_that_leaves_a_gap_is_refused_where_no_node_runs() {
    let home = chain();
    let file = home.path().join("ahead.json");
    fs::write(&file, json!({ "nonce": 5, "operations": [register()] }).to_string()).unwrap();
    let started = Instant::now();
    for more in [&[][..], &["--no-wait"]] {
        let sent = [&["tx", "send", file.to_str().unwrap(), "--from", "producer"], more].concat();
        let refused = expect(home.path(), 13, &sent);
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("nonce 5") && message.contains("next is 0"), "{refused}");
    }
    assert!(started.elapsed() < Duration::from_secs(25), "it waited for a block that nobody makes");
    // What comes in its turn still does.
    send(home.path(), 0, &json!([register()]));
}

/// The same mistake is told by the same exit code, whichever command it is made with.
#[test]
fn a_file_of_another_kind_is_the_callers_mistake_everywhere() {
    let home = chain();
    let (directory, path) = (home.path().to_str().unwrap(), |name: &str| home.path().join(name));
    let (genesis, nowhere) = (path("genesis.json"), path("nowhere"));
    let (genesis, nowhere) = (genesis.to_str().unwrap(), nowhere.to_str().unwrap());
    let fresh = tempfile::tempdir().unwrap();
    expect(&fresh.path().join("new"), 2, &["init", "--genesis", directory]);
    for command in [
        ["proof", "verify", directory].as_slice(),
        &["recover", "verify-report", genesis],
        &["recover", "verify-report", nowhere],
        &["recover", "verify-report", directory],
        &["bundle", "verify", genesis],
        &["sync", "--from", nowhere],
    ] {
        expect(home.path(), 2, command);
    }
    // A home that is a file.
    for command in [["status"].as_slice(), &["init"], &["config", "check"]] {
        let error = expect(&path("genesis.json"), 2, command);
        assert!(error["error"]["message"].as_str().unwrap().contains("is a file"), "{error}");
    }
}

/// A home as `init` makes it has no setting that is not the default.
#[test]
fn settings_that_are_written_down_are_not_therefore_changed() {
    let home = chain();
    assert_eq!(expect(home.path(), 0, &["config", "check"])["changed"], 0);
    let one = expect(home.path(), 0, &["config", "check", "--set", "http.connections_max=7"]);
    assert_eq!(one["changed"], 1);
}

/// What is to be done next is said so that it can be done; what changes nothing, or has been done, is said too.
#[test]
fn what_is_said_can_be_followed() {
    let home = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str]| {
        let output = keelstone(home.path(), arguments);
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap(), output.status.code())
    };
    let at = format!("--home {}", home.path().display());
    assert!(said(&["status"]).1.contains(&format!("keelstone init {at}")));
    assert!(said(&["init"]).0.contains(&format!("next: keelstone node {at}")));
    send(home.path(), 0, &json!([register()]));
    let (nothing, _, code) = said(&["rollback", "1"]);
    assert!(code == Some(0) && nothing.contains("nothing to take back"), "{nothing}");
    said(&["token", "new", "wallet"]);
    assert!(said(&["token", "remove", "wallet"]).0.contains("wallet"));
}

#[test]
fn another_networks_state_comes_in_is_proven_by_name_and_goes_out_equal() {
    let home = tempfile::tempdir().unwrap();
    let export = json!({
        "genesis": [
            { "key": "currency.balances:alice", "value": { "__fixed__": "99.5" } },
            { "key": "currency.metadata:tags", "value": ["a", { "b": [1, null, true] }] },
            { "key": "con_long.data:big", "value": { "__big_int__": "123456789012345678901234567890" } },
        ],
        "nonces": [{ "key": "ab".repeat(32), "value": 7 }],
    });
    let (file, out) = (home.path().join("in.json"), home.path().join("out.json"));
    fs::write(&file, export.to_string()).unwrap();
    expect(home.path(), 0, &["import", "xian", file.to_str().unwrap()]);
    let proven = expect(home.path(), 0, &["query", "currency.balances:alice", "--prove"]);
    assert!(proven["text"].as_str().unwrap().contains("99.5") && proven["proof"].is_string(), "{proven}");
    expect(home.path(), 14, &["query", "currency.balances:mallory", "--prove"]);
    expect(home.path(), 0, &["export", "xian", out.to_str().unwrap()]);
    let back: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(back, export);
    expect(home.path(), 2, &["export", "xian", out.to_str().unwrap()]);
    expect(home.path(), 2, &["import", "xian", file.to_str().unwrap()]);
}

/// spec: XIAN-5, TX-6. What was a chain under CometBFT goes on as one: with validators, a height and grants of its own. What is
/// taken from nothing of the document, and whom its nonces leave unable to act, is told.
#[test]
fn another_networks_state_becomes_a_chain_under_cometbft() {
    let home = tempfile::tempdir().unwrap();
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let nonces =
        [("aa", json!("5")), ("bb", json!(5)), ("cc", json!(u64::MAX)), ("dd", json!(-1)), ("ee", json!(null))];
    let nonces = nonces.map(|(name, value)| json!({ "key": name.repeat(32), "value": value }));
    let export = json!({
        "chain_id": "xian-1", "genesis_time": "2024-01-01T00:00:00Z", "initial_height": "2449",
        "validators": [{ "power": "10" }],
        "abci_genesis": { "genesis": [{ "key": "con.a:b", "value": 1 }], "nonces": nonces, "origin": {} },
    });
    let file = home.path().join("in.json");
    fs::write(&file, export.to_string()).unwrap();
    let (validator, grant) = (format!("{key}=10"), format!("{key}=contracts.patch"));
    let import = ["import", "xian", file.to_str().unwrap(), "--validator", &validator, "--initial-height", "2450"];
    for wrong in [["--grant", "contracts.patch"], ["--grant", "00=contracts.patch"], ["--initial-height", "0"]] {
        expect(home.path(), 2, &[&import[..5], &wrong].concat());
        assert!(!home.path().join("genesis.json").exists(), "{wrong:?}");
    }
    let said = expect(home.path(), 0, &[&import[..], &["--grant", &grant, "--chain-id", "xian-2"]].concat());
    let warnings = said["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap());
    let warnings: Vec<&str> = warnings.collect();
    assert!(warnings[0].ends_with(": chain_id, genesis_time, initial_height, validators"), "{warnings:?}");
    let cannot = ["aa", "cc", "dd", "ee"].map(|name| name.repeat(32)).join(", ");
    assert!(warnings[1].ends_with(&format!(": 4: {cannot}")), "{warnings:?}");
    let engine = &said["engine_genesis"];
    assert_eq!((&engine["chain_id"], &engine["initial_height"]), (&json!("xian-2"), &json!("2450")));
    let genesis: Value = serde_json::from_slice(&fs::read(home.path().join("genesis.json")).unwrap()).unwrap();
    assert_eq!(genesis["validators"], json!([{ "key": key, "power": 10 }]));
    assert_eq!(genesis["grants"], json!({ key: ["contracts.patch"] }));
    let kind = fs::read_to_string(home.path().join("keelstone.toml")).unwrap();
    assert!(kind.contains("kind = \"cometbft\""), "{kind}");
    assert!(!home.path().join("keys/producer.key.json").exists(), "CometBFT makes its blocks");
    let out = home.path().join("out.json");
    expect(home.path(), 0, &["export", "xian", out.to_str().unwrap()]);
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(&out).unwrap()).unwrap(), export);
}

/// The storage of a node of that network is the same chain as its export, and is refused in a sentence if it is not one.
#[test]
#[cfg(feature = "hdf5")]
fn another_networks_storage_directory_is_the_state_of_its_export() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/node/tests/data/xian-storage");
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let from = ["export.json", "earliest", "latest"].map(|name| data.join(name));
    let export: Value = serde_json::from_str(&fs::read_to_string(&from[0]).unwrap()).unwrap();
    let mut entries = Vec::new();
    for (home, from) in homes.iter().zip(&from) {
        let made = expect(home.path(), 0, &["import", "xian", from.to_str().unwrap()]);
        entries.push(made["entries"].clone());
        let proven = expect(home.path(), 0, &["query", "con_odd.ключ:鍵:🔑", "--prove"]);
        assert!(proven["text"].as_str().unwrap().contains("値"), "{proven}");
        let out = home.path().join("out.json");
        expect(home.path(), 0, &["export", "xian", out.to_str().unwrap()]);
        let back: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
        assert_eq!(back, export);
    }
    assert!(entries.iter().all(|found| *found == entries[0]), "{entries:?}");

    let home = tempfile::tempdir().unwrap();
    let told = keelstone(home.path(), &["import", "xian", data.join("hostile").to_str().unwrap(), "--json"]);
    assert_eq!(told.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&told.stderr).contains("contract_state"), "{told:?}");
    assert!(!home.path().join("genesis.json").exists(), "nothing was begun");
}

/// What is printed for people is no file of a transaction, and whoever takes it for one is told how to have one.
#[test]
fn what_is_printed_for_people_is_told_from_a_file() {
    let home = chain();
    let file = home.path().join("bundle.json");
    fs::write(&file, json!({ "operations": [register()] }).to_string()).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let told = home.path().join("told");
    for build in [["tx", "build"], ["bundle", "build"]] {
        let printed = keelstone(home.path(), &[build[0], build[1], &file, "--from", "producer"]);
        fs::write(&told, printed.stdout).unwrap();
        for read in [["tx", "sign"], ["tx", "send"], ["bundle", "submit"]] {
            let error = expect(home.path(), 2, &[read[0], read[1], told.to_str().unwrap(), "--from", "producer"]);
            assert!(error["error"]["hint"].as_str().is_some_and(|hint| hint.contains("--json")), "{read:?}: {error}");
        }
    }
}

#[test]
fn the_documentation_lists_every_setting_as_the_program_does() {
    let documented = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let printed = String::from_utf8(keelstone(home.path(), &["config", "default"]).stdout).unwrap();
    assert!(documented.contains(&printed), "docs/configuration.md is not what `keelstone config default` prints");
    let commands = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md")).unwrap();
    let help = String::from_utf8(keelstone(home.path(), &["--help"]).stdout).unwrap();
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    for line in listed.take_while(|line| !line.trim().is_empty()) {
        let name = line.split_whitespace().next().unwrap();
        assert!(commands.contains(&format!("`{name}")), "docs/cli.md does not name {name}");
    }
}
