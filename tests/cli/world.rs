//! The agents' world from the command line: tables, lookups, and a conflict from its first claim to its ruling.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, expect, keelstone, post};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const PEOPLE: [&str; 6] = ["ada", "bram", "cleo", "dov", "edda", "femi"];

/// A chain on which all of them are agents with standing.
fn village() -> (TempDir, Vec<String>) {
    let home = tempfile::tempdir().unwrap();
    let made = |name: &str| expect(home.path(), 0, &["keys", "new", name])["public"].as_str().unwrap().to_owned();
    made("producer");
    let keys: Vec<String> = PEOPLE.iter().map(|name| made(name)).collect();
    let agents: Vec<Value> =
        keys.iter().zip(PEOPLE).map(|(key, name)| json!({ "key": key, "name": name, "stake": 100 })).collect();
    let genesis = json!({ "chain_id": "village", "world": {
        "agents": agents,
        "relationships": [{ "agent": keys[1], "other": keys[0], "trust": "0.5" }],
        "alliances": [{ "name": "Harbour", "members": [keys[0], keys[1]] }],
        "rules": [{ "title": "Quiet", "text": "No drums at night." }],
    } });
    let file = home.path().join("village.json");
    std::fs::write(&file, genesis.to_string()).unwrap();
    expect(home.path(), 0, &["init", "--genesis", file.to_str().unwrap()]);
    (home, keys)
}

fn send(home: &Path, from: &str, code: i32, calls: &Value) -> Value {
    let file = home.join("bundle.json");
    std::fs::write(&file, json!({ "operations": calls }).to_string()).unwrap();
    expect(home, code, &["tx", "send", file.to_str().unwrap(), "--from", from])
}

fn rows(answer: &Value) -> Vec<(Value, Value)> {
    answer["rows"].as_array().unwrap().iter().map(|row| (row["key"].clone(), row["value"].clone())).collect()
}

/// What is asked of a directory and what is asked of a node over it have the same answers; spec: MODULE-4.
#[test]
fn tables_and_lookups_are_answered_with_and_without_a_node() {
    let (home, keys) = village();
    let ask = |arguments: &[&str]| rows(&expect(home.path(), 0, &[&["query"], arguments].concat()));
    let look = || {
        let agents = ask(&["agents"]);
        let named: Vec<&str> = agents.iter().map(|(_, agent)| agent["name"].as_str().unwrap()).collect();
        assert_eq!(named.len(), 6);
        let ada = ask(&["agents", "--of", "ada"]);
        assert_eq!((ada.len(), &ada[0].0, &ada[0].1["stake"]), (1, &json!(keys[0]), &json!(100)));
        assert!(ask(&["agents", "--of", "nobody"]).is_empty());
        let trusted = ask(&["relationships", "--of", &keys[0]]);
        assert_eq!(trusted[0].0, json!([keys[1], keys[0]]));
        assert_eq!(trusted[0].1["trust"], "0.500000");
        assert_eq!(ask(&["alliances", "--of", &keys[1]])[0].1["name"], "Harbour");
        assert_eq!(ask(&["rules"])[0].1["title"], "Quiet");
        let page = expect(home.path(), 0, &["query", "agents", "--limit", "4"]);
        let rest = ask(&["agents", "--limit", "4", "--after", page["next"].as_str().unwrap()]);
        assert_eq!((rows(&page).len(), rest.len()), (4, 2));
        assert_eq!(ask(&["agents/all"]), agents, "any collection is a table");
        agents
    };
    let alone = look();
    expect(home.path(), 2, &["query", "drama", "--of", "ada"]);
    expect(home.path(), 2, &["query", "memes", "--of", "nobody"]);
    send(home.path(), "ada", 0, &json!([post("from the directory")]));
    let node = Node::start(home.path(), &[]);
    let memes = |count: usize| assert_eq!(ask(&["memes", "--of", &keys[0]]).len(), count);
    memes(1);
    send(home.path(), "ada", 0, &json!([post("to the node"), post("and again")]));
    memes(3);
    assert_eq!(look(), alone, "what nobody changed is what it was");
    assert_eq!(ask(&["activity"])[0].1["transactions"], 2);
    drop(node);
    memes(3);
}

/// spec: CONFLICT-1, CONFLICT-7. From two claims to a value that the state holds.
#[test]
fn a_conflict_goes_from_claims_to_a_ruling() {
    let (home, keys) = village();
    let run = |code: i32, arguments: &[&str]| expect(home.path(), code, &[&["conflict"], arguments].concat());
    let claim = |from: &str, value: &str| {
        let said = run(0, &["claim", "--from", from, "--agent", &keys[2], "--field", "mood", "--value", value]);
        let file = home.path().join(format!("{from}.json"));
        std::fs::write(&file, said.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    };
    run(14, &["claim", "--from", "producer", "--agent", &keys[2], "--field", "mood", "--value", "1"]);
    let (first, second) = (claim("ada", "0.5"), claim("bram", "-0.5"));
    let open = |code, first: &str, second: &str| {
        run(code, &["open", "--from", "cleo", "--blocks", "12", "--statements", first, second])
    };
    open(13, &first, &first);
    let opened = open(0, &first, &second);
    assert_eq!(opened["receipt"]["outcomes"][0]["result"], 1);
    let id = opened["id"].as_str().unwrap();
    let told = String::from_utf8(keelstone(home.path(), &["query", "tx", id]).stdout).unwrap();
    let says = |what: &str| told.lines().any(|line| line.trim_start().starts_with(what));
    assert!(says("result             1") && says("event "), "people are told what it is called: {told}");
    for (from, position) in [("dov", "first"), ("edda", "first"), ("femi", "second")] {
        run(0, &["opine", "1", position, "--reason", "I was there", "--from", from]);
    }
    run(13, &["opine", "1", "second", "--reason", "again", "--from", "dov"]);
    run(13, &["resolve", "1", "--from", "dov"]);
    let status = run(0, &["status", "1"]);
    assert_eq!((status["opinions"].as_array().unwrap().len(), &status["record"]["ruling"]), (3, &Value::Null));
    while expect(home.path(), 0, &["status"])["height"].as_u64() <= status["record"]["deadline"].as_u64() {
        send(home.path(), "ada", 0, &json!([post("time goes by")]));
    }
    run(0, &["resolve", "1", "--from", "producer"]);
    let status = run(0, &["status", "1"]);
    let tally = &status["record"]["ruling"]["tally"];
    assert_eq!((&tally["outcome"], tally["counted"].as_array().map(Vec::len)), (&json!("First"), Some(3)));
    let cleo = rows(&expect(home.path(), 0, &["query", "agents", "--of", "cleo"]));
    assert_eq!(cleo[0].1["mood"], "0.500000");
    run(14, &["status", "2"]);
}

/// A key of a table is written as the table shows it, for one entry, its proof and its history alike; what is not found
/// says what there is.
#[test]
fn an_entry_of_a_table_is_asked_for_by_the_key_that_the_table_shows() {
    let (home, keys) = village();
    let ask = |code: i32, arguments: &[&str]| expect(home.path(), code, arguments);
    // "all/", and the key.
    let raw = format!("616c6c2f{}", keys[0]);
    let ada = ask(0, &["query", "agents", &keys[0]]);
    assert_eq!((&ada["key"], &ada["namespace"]), (&json!(raw), &json!("agents")));
    assert!(ada["text"].as_str().unwrap().contains("ada"), "{ada}");
    assert_eq!(ask(0, &["query", "agents", &raw, "--hex"]), ada);
    let proven = ask(0, &["query", "agents", &keys[0], "--prove"]);
    let claim = home.path().join("claim.json");
    std::fs::write(&claim, proven.to_string()).unwrap();
    assert_eq!(ask(0, &["proof", "verify", claim.to_str().unwrap()])["present"], true);
    let history = ask(0, &["history", "agents", &keys[0]]);
    assert_eq!((&history["key"], history["changes"].as_array().map(Vec::len)), (&json!(raw), Some(1)), "{history}");
    // A pair, and a number; with the brackets and quotes of the table, or bare.
    let shown = rows(&ask(0, &["query", "relationships"]))[0].0.to_string();
    for pair in [shown, format!("{},{}", keys[1], keys[0])] {
        let trust = ask(0, &["query", "relationships", &pair]);
        assert!(trust["namespace"] == "social" && trust["text"].as_str().unwrap().contains("0.5"), "{pair}: {trust}");
    }
    let rule = rows(&ask(0, &["query", "rules"]))[0].0.to_string();
    assert!(ask(0, &["query", "rules", &rule])["text"].as_str().unwrap().contains("drums"));
    assert_eq!(ask(14, &["query", "agents", &"ab".repeat(32), "--prove"])["value"], Value::Null);
    let message = |answer: Value| answer["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message(ask(2, &["query", "relationships", "nobody"])).contains("no key of the table"));
    assert_eq!(ask(0, &["query", "rules/all", &rule]), ask(0, &["query", "rules", &rule]));
    assert!(message(ask(2, &["query", "social/alliances", "nobody"])).contains("no key of the table"));
    assert!(
        ask(0, &["query", "agents/stake_total", "--prove"])["text"]
            .as_str()
            .is_some_and(|total| total.parse::<u64>().is_ok())
    );
    assert!(message(ask(14, &["query", "social/nothing"])).contains("no table"));

    let told = |arguments: &[&str]| String::from_utf8(keelstone(home.path(), arguments).stdout).unwrap();
    assert!(told(&["query", "agents", "6e6f626f6479", "--hex"]).contains("query list agents"));
    assert!(told(&["query", "nonsense", "nobody"]).contains("the tables activity, agents"));
    assert!(told(&["history", "agents", "6e6f626f6479", "--hex"]).contains("query list agents"));
    for command in ["query", "history"] {
        assert!(message(ask(2, &[command, "agents", "nobody"])).contains("no key of the table agents"));
    }
    // The first part of a pair stands for all rows that begin with it.
    assert_eq!(rows(&ask(0, &["query", "relationships", &keys[1]])), rows(&ask(0, &["query", "relationships"])));
    assert!(rows(&ask(0, &["query", "relationships", &keys[0], "--limit", "5"])).is_empty());
    ask(2, &["query", "rules", &rule, "--limit", "5"]);
    assert!(message(ask(14, &["query", "nonsense"])).contains("there are activity, agents"));

    // An account is called as a session's key is, and a block as over HTTP.
    assert_eq!(ask(0, &["query", "account", "ada"])["key"], json!(keys[0]));
    ask(14, &["query", "account", "nobody"]);
    send(home.path(), "ada", 0, &json!([post("a first block")]));
    assert_eq!(ask(0, &["query", "block", "latest"]), ask(0, &["query", "block"]));
    ask(2, &["query", "block", "newest"]);
}
