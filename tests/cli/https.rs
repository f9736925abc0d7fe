//! The API under TLS: who is believed, who is let in, and clients that never get so far.
#![expect(clippy::unwrap_used, reason = "these are parts of tests: what fails here fails a test")]

use crate::support::{Node, chain, expect, keelstone, program, register, send};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SETTINGS: [&str; 2] = ["http.tls_certificate=node.pem", "http.tls_key=node.key"];

/// Puts a certificate of the tests, and its key if it has one, into a directory under another name.
fn put(directory: &Path, name: &str, to: &str) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/tls");
    for end in ["pem", "key"].into_iter().filter(|end| from.join(format!("{name}.{end}")).exists()) {
        let to = directory.join(format!("{to}.{end}"));
        fs::copy(from.join(format!("{name}.{end}")), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(if end == "key" { 0o600 } else { 0o644 })).unwrap();
    }
}

/// A home with a chain and a certificate for its node.
fn home() -> TempDir {
    let home = chain();
    put(home.path(), "node", "node");
    put(home.path(), "authority", "authority");
    home
}

/// Somewhere else: certificates to believe and to show, and no chain.
fn elsewhere() -> TempDir {
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["authority", "stranger", "client", "intruder"] {
        put(elsewhere.path(), name, name);
    }
    elsewhere
}

/// `status` of a node elsewhere, with options that name files of a directory; the exit code and what it said.
fn status(directory: &Path, url: &str, options: &[&str]) -> (i32, Value) {
    let mut command = program();
    command.current_dir(directory).args(["status", "--json", "--node", url, "--home", "."]).args(options);
    let output = command.output().unwrap();
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    (output.status.code().unwrap(), serde_json::from_slice(&text).unwrap_or(Value::Null))
}

#[test]
fn a_node_under_tls_is_believed_by_its_authority_or_its_fingerprint_alone() {
    let (home, elsewhere) = (home(), elsewhere());
    let node = Node::start(home.path(), &SETTINGS);
    let pin = node.said["certificate"].as_str().unwrap();
    let (address, port) = (node.address, node.address.port());
    let [by_address, by_name] = [format!("https://{address}"), format!("https://localhost:{port}")];
    assert_eq!(node.said["api"], by_address);
    // The commands of its own home know it.
    assert_eq!(expect(home.path(), 0, &["status"])["api"], by_address);
    let ask = |url: &str, options: &[&str]| status(elsewhere.path(), url, options);
    for url in [&by_address, &by_name] {
        assert_eq!(ask(url, &["--ca", "authority.pem"]).0, 0, "{url}");
        assert_eq!(ask(url, &["--pin", pin]).0, 0, "{url}");
    }
    let colons: Vec<&str> = (0..32).map(|at| &pin[2 * at..2 * at + 2]).collect();
    assert_eq!(ask(&by_address, &["--pin", &colons.join(":").to_uppercase()]).0, 0);
    for (options, code, says) in [
        (&["--ca", "stranger.pem"][..], 1, "UnknownIssuer"),
        (&["--pin", &"00".repeat(32)], 1, pin),
        (&[], 2, "whom to believe"),
        (&["--pin", "00"], 2, "no fingerprint"),
        (&["--ca", "client.key"], 2, "no certificate"),
        (&["--ca", "nowhere.pem"], 2, "nowhere.pem"),
        (&["--ca", "authority.pem", "--pin", pin], 2, "not both"),
    ] {
        let (found, said) = ask(&by_address, options);
        assert_eq!(found, code, "{options:?}: {said}");
        assert!(said["error"]["message"].as_str().unwrap().contains(says), "{options:?}: {said}");
    }
    // There is no plain HTTP on this port.
    assert_eq!(ask(&format!("http://{address}"), &[]).0, 1);
    assert_ne!(node.get("/healthz").0, 200);
    // Keys are those of where the command runs; only the chain is elsewhere.
    expect(elsewhere.path(), 0, &["keys", "new", "ada"]);
    let file = elsewhere.path().join("bundle.json");
    fs::write(&file, json!({ "operations": [register()] }).to_string()).unwrap();
    let sent = ["tx", "send", file.to_str().unwrap(), "--from", "ada", "--node", &by_name, "--pin", pin];
    assert_eq!(expect(elsewhere.path(), 0, &sent)["receipt"]["succeeded"], true);
    // What only the directory can answer is not asked of another.
    expect(elsewhere.path(), 2, &["db", "stats", "--node", &by_name, "--pin", pin]);
}

#[test]
fn a_node_that_asks_for_certificates_lets_in_clients_of_its_authority_and_its_owner() {
    let (home, elsewhere) = (home(), elsewhere());
    let node = Node::start(home.path(), &[SETTINGS[0], SETTINGS[1], "http.tls_client_ca=authority.pem"]);
    let url = format!("https://{}", node.address);
    let ask = |options: &[&str]| status(elsewhere.path(), &url, &[&["--ca", "authority.pem"], options].concat());
    let shown = |name: &str| {
        ["--client-certificate".to_owned(), format!("{name}.pem"), "--client-key".to_owned(), format!("{name}.key")]
    };
    let [client, intruder] = ["client", "intruder"].map(shown);
    let (client, intruder) = (client.each_ref().map(String::as_str), intruder.each_ref().map(String::as_str));
    assert_eq!(ask(&client).0, 0);
    assert_eq!(ask(&[]).0, 1);
    assert_eq!(ask(&intruder).0, 1);
    assert_eq!(ask(&client[..2]).0, 2);
    let mixed = ["--client-certificate", "client.pem", "--client-key", "intruder.key"];
    assert_eq!(ask(&mixed).0, 2, "a key that is another certificate's");
    // Its owner is who can read the key of its own certificate.
    assert_eq!(expect(home.path(), 0, &["token", "new", "wallet"])["told"], true);
    send(home.path(), 0, &json!([register()]));
}

#[test]
fn renewed_certificates_are_taken_while_the_node_runs() {
    let (home, elsewhere) = (home(), elsewhere());
    let node = Node::start(home.path(), &SETTINGS);
    let (url, before) = (format!("https://{}", node.address), node.said["certificate"].as_str().unwrap().to_owned());
    let ask = |pin: &str| status(elsewhere.path(), &url, &["--pin", pin]).0;
    assert_eq!(ask(&before), 0);
    put(home.path(), "renewed", "node");
    node.signal("HUP");
    // The commands of the home are told of the new one.
    let started = Instant::now();
    let announced = || -> String {
        let text = fs::read(home.path().join("api.json")).unwrap();
        let api: Value = serde_json::from_slice(&text).unwrap();
        api["tls"]["fingerprint"].as_str().unwrap().to_owned()
    };
    while announced() == before {
        assert!(started.elapsed() < Duration::from_secs(20), "SIGHUP changed nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    let renewed = announced();
    assert_eq!((ask(&before), ask(&renewed)), (1, 0));
    // What does not fit changes nothing, and is named.
    fs::write(home.path().join("node.key"), "no key").unwrap();
    let made = expect(home.path(), 0, &["token", "new", "wallet"]);
    assert!(made["warning"].as_str().unwrap().contains("node.key") && made["told"] == false, "{made}");
    let refused = expect(home.path(), 1, &["token", "remove", "wallet"]);
    assert!(refused["error"]["message"].as_str().unwrap().contains("node.key"), "{refused}");
    assert_eq!(ask(&renewed), 0);
    put(home.path(), "node", "node");
    // Nor does what the commands of the home cannot be told of: they would meet a node that they do not know.
    fs::create_dir(home.path().join("api.new")).unwrap();
    let made = expect(home.path(), 0, &["token", "new", "untold"]);
    assert!(made["warning"].as_str().unwrap().contains("api.json") && made["told"] == false, "{made}");
    assert_eq!((announced() == renewed, ask(&before), ask(&renewed)), (true, 1, 0));
    fs::remove_dir(home.path().join("api.new")).unwrap();
    assert_eq!(expect(home.path(), 0, &["token", "new", "another"])["told"], true);
    assert_eq!((ask(&before), ask(&renewed)), (0, 1));
}

/// L-02: the key of a certificate is a secret like any other.
#[test]
fn l02_a_node_does_not_start_with_a_certificate_that_does_not_fit() {
    let refused = |change: &dyn Fn(&Path), settings: &[&str], says: &str| {
        let home = home();
        change(home.path());
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let output = keelstone(home.path(), &[&["node", "--set", "http.listen=127.0.0.1:0"], &settings[..]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{said} does not say {says:?}");
        assert!(!said.contains("PRIVATE KEY"), "the secret is printed: {said}");
    };
    let readable = |home: &Path| fs::set_permissions(home.join("node.key"), fs::Permissions::from_mode(0o644)).unwrap();
    refused(&readable, &SETTINGS, "644");
    refused(&|home| fs::remove_file(home.join("node.pem")).unwrap(), &SETTINGS, "node.pem");
    refused(
        &|home| fs::copy(home.join("node.key"), home.join("node.pem")).map(drop).unwrap(),
        &SETTINGS,
        "no certificate",
    );
    refused(&|home| fs::write(home.join("node.key"), "x".repeat(100_000)).unwrap(), &SETTINGS, "at most 65536");
    let others = |home: &Path| {
        put(home, "renewed", "other");
        fs::copy(home.join("other.key"), home.join("node.key")).unwrap();
    };
    refused(&others, &SETTINGS, "node.key");
    refused(&|_| (), &SETTINGS[..1], "stands without http.tls_key");
    refused(&|_| (), &[SETTINGS[0], SETTINGS[1], "http.tls_client_ca=node.key"], "no certificate");
}

/// handshakes that are never done, and idle sockets, keep nobody out.
#[test]
fn r02_handshakes_that_never_end_are_closed_and_make_room() {
    let (home, elsewhere) = (home(), elsewhere());
    let limits = ["http.header_timeout_ms=700", "http.connections_max=64"];
    let node = Node::start(home.path(), &[&SETTINGS[..], &limits].concat());
    let (url, pin) = (format!("https://{}", node.address), node.said["certificate"].as_str().unwrap());
    // A record of 512 bytes is promised, and a few come.
    for begun in [&b""[..], &[22], &[22, 3, 1, 2, 0, 1, 0, 1, 252], b"GET /healthz HTTP/1.1\r\nHost:"] {
        let mut slow = node.connect();
        slow.write_all(begun).unwrap();
        let started = Instant::now();
        let _ = slow.read_to_end(&mut Vec::new());
        assert!(started.elapsed() < Duration::from_secs(5), "{begun:?} is never closed");
    }
    let idle: Vec<TcpStream> = (0..300).filter_map(|_| TcpStream::connect(node.address).ok()).collect();
    assert!(idle.len() > 200);
    assert_eq!(status(elsewhere.path(), &url, &["--pin", pin]).0, 0, "idle connections keep others out");
    // Noise that is no handshake is closed at once, and counted.
    let mut noise = node.connect();
    let _ = noise.write_all(&[0xff; 4096]);
    let _ = noise.read_to_end(&mut Vec::new());
    assert_eq!(status(elsewhere.path(), &url, &["--pin", pin]).0, 0, "the node is not alive afterwards");
}

/// a token goes nowhere where others could read it on the way.
#[test]
fn r07_a_token_is_not_sent_over_plain_http_to_another_machine() {
    let (home, elsewhere) = (chain(), elsewhere());
    let token = expect(home.path(), 0, &["token", "new", "wallet", "--role", "read"])["token"].clone();
    let file = elsewhere.path().join("token");
    fs::write(&file, token.as_str().unwrap().to_owned() + "\n").unwrap();
    let read = |url: &str| status(elsewhere.path(), url, &["--token-file", "token"]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(read("http://127.0.0.1:1").0, 2, "others can read it");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    // An address of documentation: if anything were sent there, this would wait for it.
    let started = Instant::now();
    let (code, said) = read("http://192.0.2.1:26680");
    assert_eq!(code, 2);
    assert!(said["error"]["hint"].as_str().unwrap().contains("--insecure"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(20));
    let node = Node::start(home.path(), &["http.read_token=true"]);
    let url = format!("http://{}", node.address);
    assert_eq!(status(elsewhere.path(), &url, &[]).0, 2);
    assert_eq!(read(&url).0, 0, "this machine is no way to read along on");
    fs::write(&file, "a secret that is none").unwrap();
    let (code, said) = read(&url);
    assert!(code == 2 && !said.to_string().contains("secret that"), "{said}");
    expect(home.path(), 2, &["status", "--insecure"]);
}
