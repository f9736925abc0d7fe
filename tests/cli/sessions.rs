//! What keys hand to other keys and to lines of their own, from the command line and over HTTP.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, expect, register, send};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

struct Village {
    home: TempDir,
}

impl Village {
    /// Three keys beside the producer's.
    fn new() -> Self {
        let home = chain();
        for name in ["alice", "bob", "carol"] {
            expect(home.path(), 0, &["keys", "new", name]);
        }
        Self { home }
    }

    fn say(&self, code: i32, line: &str) -> Value {
        expect(self.home.path(), code, &line.split_whitespace().collect::<Vec<_>>())
    }

    fn public(&self, name: &str) -> String {
        self.say(0, &format!("keys show {name}"))["public"].as_str().unwrap().to_owned()
    }

    /// Runs an operation in a session.
    fn act(&self, code: i32, who: &str, session: &Value, call: &str, args: &Value) -> Value {
        let file = self.home.path().join("act.json");
        let operations = json!([{ "call": call, "args": args }]);
        fs::write(&file, json!({ "session": session["id"], "operations": operations }).to_string()).unwrap();
        expect(self.home.path(), code, &["tx", "send", file.to_str().unwrap(), "--from", who])
    }
}

fn story(village: &Village) {
    let line = "session create defi --from alice --may social.ally,sessions.delegate,sessions.notes";
    let defi = village.say(0, line);
    assert_eq!((&defi["name"], &defi["status"]), (&json!("defi"), &json!("open")));
    assert_eq!(defi["owner"], village.public("alice"));
    let init = "07".repeat(32);
    let lending = village.say(
        0,
        &format!("session delegate defi/lending --in defi --from alice --to bob --may sessions.notes,memes.post --init {init}"),
    );
    assert_eq!((&lending["parent"], &lending["owner"]), (&defi["id"], &json!(village.public("bob"))));
    // What the session above does not hold, one below does not either.
    let shown = village.say(0, "session show defi/lending --of alice");
    assert_eq!(shown["capabilities"], json!(["memes.post", "sessions.notes"]));
    assert_eq!(shown["holds"], json!(["sessions.notes"]));
    assert_ne!(shown["state_hash"], village.say(0, "session show defi --of alice")["state_hash"]);
    let post = json!({ "text": "hello" });
    assert_eq!(village.act(13, "bob", &lending, "memes.post/1", &post)["error"]["code"], "refused");
    let note = json!({ "key": "debt", "value": "0102" });
    village.act(0, "bob", &lending, "sessions.note/1", &note);
    // A parent reads what its child keeps, and never the reverse.
    let of = |session: &Value| json!({ "session": session["id"], "key": "debt" });
    let read = village.act(0, "alice", &defi, "sessions.read/1", &of(&lending));
    assert_eq!(read["receipt"]["outcomes"][0]["result"], "0102");
    village.act(13, "bob", &lending, "sessions.read/1", &of(&defi));
    assert_eq!(village.say(0, "session show defi/lending --of alice")["notes"], 1);

    // Names are a directory: in order, from a path on, in pages.
    village.say(0, "session create defi-x --from alice --may memes.post");
    village.say(0, "session create --from alice --may memes.post");
    let names = |line: &str| {
        let found = village.say(0, line);
        let names = found["sessions"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
        (names.collect::<Vec<_>>(), found["next"].clone())
    };
    assert_eq!(names("session list --of alice").0, ["defi", "defi-x", "defi/lending"]);
    assert_eq!(
        names("session list --of alice --below defi"),
        (vec!["defi".into(), "defi/lending".into()], Value::Null)
    );
    assert_eq!(names("session list --of alice --below defi --limit 1"), (vec!["defi".into()], json!("defi")));
    let rest = names("session list --of alice --below defi --limit 1 --after defi");
    assert_eq!(rest, (vec!["defi/lending".into()], Value::Null));
    assert_eq!(names("session list --of bob"), (vec![], Value::Null));
    let all = village.say(0, "session list")["sessions"].as_array().unwrap().len();
    let page = village.say(0, "session list --limit 2");
    let rest = village.say(0, &format!("session list --after {}", page["next"].as_str().unwrap()));
    assert_eq!(page["sessions"].as_array().unwrap().len() + rest["sessions"].as_array().unwrap().len(), all);

    // Each ends what it may end, and what is above ends what is below.
    village.say(2, "session close defi/lending --from alice");
    village.say(2, "session revoke defi --from alice");
    village.say(13, &format!("session revoke {} --from carol", lending["id"].as_str().unwrap()));
    assert_eq!(village.say(0, "session close defi --from alice")["status"], "closed");
    let below = village.say(0, "session show defi/lending --of alice");
    assert_eq!((&below["status"], &below["because"]), (&json!("closed"), &defi["id"]));
    village.act(13, "bob", &lending, "sessions.note/1", &note);
    village.say(14, "session show defi/other --of alice");
    village.say(14, &format!("session show {}", "09".repeat(32)));
    village.say(2, "session show defi");
    village.say(2, "session create Defi/ --from alice --may Memes.Post");
}

/// spec: MODULE-8, MODULE-9, EXEC-8, EXEC-16. Sessions are made, used, listed and ended from the command line.
#[test]
fn sessions_are_handed_out_and_taken_back() {
    story(&Village::new());
}

#[test]
fn sessions_are_handed_out_and_taken_back_through_a_node() {
    let village = Village::new();
    let node = Node::start(village.home.path(), &[]);
    story(&village);
    let of = village.public("alice");
    let (status, listed) = node.json(&format!("/v1/sessions?of={of}&below=defi&limit=1"));
    assert_eq!((status, &listed["next"]), (200, &json!("defi")));
    let id = listed["sessions"][0]["id"].as_str().unwrap();
    assert_eq!(node.json(&format!("/v1/sessions/{id}")).1["name"], "defi");
    let unknown = "09".repeat(32);
    for (path, code) in [
        (format!("/v1/sessions/{unknown}"), 404),
        ("/v1/sessions/09".to_owned(), 400),
        ("/v1/sessions?below=defi".to_owned(), 400),
        ("/v1/sessions?of=09".to_owned(), 400),
        ("/v1/sessions?after=defi".to_owned(), 400),
        (format!("/v1/sessions?of={of}&below={}", "x".repeat(65)), 400),
        ("/v1/sessions?limit=1001".to_owned(), 400),
    ] {
        assert_eq!(node.get(&path).0, code, "{path}");
    }
}

/// spec: MODULE-10. A session that is past its last height gives its name up to whoever asks for it next.
#[test]
fn a_name_is_taken_over_from_a_session_that_is_past_its_last_height() {
    let village = Village::new();
    let height = village.say(0, "status")["height"].as_u64().unwrap();
    let over =
        village.say(0, &format!("session create defi --from alice --may memes.post --last-height {}", height + 2));
    assert_eq!(over["status"], "open");
    let taken = village.say(13, "session create defi --from alice --may memes.post");
    assert!(taken["error"]["message"].as_str().unwrap().contains("has this name"), "{taken}");
    send(village.home.path(), 0, &json!([register()]));
    assert_eq!(village.say(0, "session show defi --of alice")["status"], "expired");
    let again = village.say(0, "session create defi --from alice --may memes.post");
    assert_eq!((&again["name"], &again["status"]), (&json!("defi"), &json!("open")));
    assert_ne!(again["id"], over["id"]);
    let before = village.say(0, &format!("session show {}", over["id"].as_str().unwrap()));
    assert_eq!(before["status"], "closed");
}

/// A plan is made with no chain at hand, and is what `tx` takes.
#[test]
fn a_session_can_be_planned_offline() {
    let village = Village::new();
    let (bob, parent) = (village.public("bob"), "09".repeat(32));
    let elsewhere = tempfile::tempdir().unwrap();
    let line = format!("session delegate defi/x --in {parent} --from {bob} --to {bob} --may memes.post --plan");
    let plan = expect(elsewhere.path(), 0, &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!((&plan["session"], &plan["operations"][0]["args"]["name"]), (&json!(parent), &json!("defi/x")));
    let plan = village.say(0, "session create defi --from bob --may memes.post --plan");
    let file = village.home.path().join("plan.json");
    fs::write(&file, plan.to_string()).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(village.say(0, &format!("tx send {file} --from bob"))["receipt"]["succeeded"], true);
    assert_eq!(village.say(0, "session show defi --of bob")["status"], "open");
    let plan = village.say(0, &format!("session close {parent} --from bob --plan"));
    assert_eq!(plan["operations"][0]["call"], "sessions.close/1");
}
