//! Keys under a passphrase.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, expect, expect_of, program, register};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

/// Writes a file that only its owner can read.
fn private(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A key that is made encrypted signs with its passphrase, wherever that comes from, and with no other.
#[test]
fn an_encrypted_key_signs_for_whoever_knows_its_passphrase() {
    let home = chain();
    let (old, new, wrong) = (
        private(home.path(), "old", "correct horse\n"),
        private(home.path(), "new", "battery staple"),
        private(home.path(), "wrong", "correct"),
    );
    let made = expect(home.path(), 0, &["keys", "new", "ada", "--encrypt", "--passphrase-file", &old]);
    assert_eq!(made["encrypted"], true);
    let file = fs::read_to_string(home.path().join("keys/ada.key.json")).unwrap();
    assert!(file.contains("argon2id") && !file.contains("\"secret\""), "{file}");
    // What needs the public half alone asks nobody.
    assert_eq!(expect(home.path(), 0, &["keys", "show", "ada"])["public"], made["public"]);
    assert_eq!(expect(home.path(), 0, &["keys", "list"])[0]["encrypted"], true);
    let bundle = home.path().join("bundle.json");
    fs::write(&bundle, json!({ "operations": [register()] }).to_string()).unwrap();
    let bundle = bundle.to_str().unwrap();
    expect(home.path(), 0, &["tx", "build", bundle, "--from", "ada"]);

    let sign = |code: i32, options: &[&str]| {
        expect(home.path(), code, &[&["tx", "sign", bundle, "--from", "ada"], options].concat())
    };
    let message = |said: &Value| said["error"]["message"].as_str().unwrap().to_owned();
    assert!(message(&sign(2, &[])).contains("nobody to ask"));
    assert!(message(&sign(2, &["--passphrase-file", &wrong])).contains("does not open it"));
    assert_eq!(sign(0, &["--passphrase-file", &old])["sender"], made["public"]);
    let by_variable = |name: &str, value: &str| {
        let mut command = program();
        command.env(name, value).args(["tx", "sign", bundle, "--from", "ada", "--json", "--home"]).arg(home.path());
        command
    };
    expect_of(by_variable("KEELSTONE_PASSPHRASE", "correct horse"), 0);
    expect_of(by_variable("KEELSTONE_PASSPHRASE_FILE", &old), 0);
    let mut by_descriptor = program();
    by_descriptor
        .args(["tx", "sign", bundle, "--from", "ada", "--passphrase-fd", "0", "--json", "--home"])
        .arg(home.path());
    let given = by_descriptor.stdin(Stdio::from(fs::File::open(&old).unwrap())).output().unwrap();
    assert_eq!(given.status.code(), Some(0), "{}", String::from_utf8_lossy(&given.stderr));

    // Another passphrase, none, and one again.
    let passwd = ["keys", "passwd", "ada", "--passphrase-file"];
    let change = |code, rest: &[&str]| expect(home.path(), code, &[&passwd, rest].concat());
    change(2, &[&wrong, "--new-passphrase-file", &new]);
    change(0, &[&old, "--new-passphrase-file", &new]);
    sign(2, &["--passphrase-file", &old]);
    sign(0, &["--passphrase-file", &new]);
    assert_eq!(change(0, &[&new, "--decrypt"])["encrypted"], false);
    sign(0, &[]);
    assert_eq!(expect(home.path(), 0, &["keys", "passwd", "ada", "--new-passphrase-file", &old])["encrypted"], true);
    let mode = fs::metadata(home.path().join("keys/ada.key.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // It moves as it is.
    let moved = home.path().join("moved.json");
    expect(home.path(), 0, &["keys", "export", "ada", moved.to_str().unwrap()]);
    let other = tempfile::tempdir().unwrap();
    assert_eq!(expect(other.path(), 0, &["keys", "import", "eve", moved.to_str().unwrap()])["encrypted"], true);
}

/// The key a node makes blocks with can be encrypted: the node names its public half and signs nothing.
#[test]
fn a_node_runs_with_an_encrypted_key() {
    let home = chain();
    let file = private(home.path(), "passphrase", "correct horse");
    expect(home.path(), 0, &["keys", "passwd", "producer", "--new-passphrase-file", &file]);
    let node = Node::start(home.path(), &[]);
    let bundle = home.path().join("bundle.json");
    fs::write(&bundle, json!({ "operations": [register()] }).to_string()).unwrap();
    let sent = ["tx", "send", bundle.to_str().unwrap(), "--from", "producer", "--passphrase-file", &file];
    assert_eq!(expect(home.path(), 0, &sent)["receipt"]["succeeded"], true);
    drop(node);
    expect(home.path(), 0, &["tx", "sign", sent[2], "--from", "producer", "--passphrase-file", &file]);
}

/// L-02: a key file of a stranger cannot make a command reserve what it asks for.
#[test]
fn l02_a_hostile_key_file_is_refused_before_memory_is_reserved() {
    let home = chain();
    let file = private(home.path(), "passphrase", "x");
    expect(home.path(), 0, &["keys", "new", "ada", "--encrypt", "--passphrase-file", &file]);
    let path = home.path().join("keys/ada.key.json");
    let text = fs::read_to_string(&path).unwrap();
    for (from, to) in [("65536", "4294967295"), ("65536", "262145"), ("\"passes\": 3", "\"passes\": 17")] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        fs::write(&path, changed).unwrap();
        let said = expect(home.path(), 2, &["keys", "show", "ada"]);
        assert!(said["error"]["message"].as_str().unwrap().contains("it asks for"), "{said}");
    }
}
