//! The API under hostile clients.

use crate::bundles::submit;
use crate::support::{Node, answer, chain, expect, post, register, send, until};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn alive(node: &Node) {
    assert_eq!(node.get("/healthz").0, 200, "the node is not alive afterwards");
}

#[test]
fn r01_oversize_requests_are_refused_without_being_read() {
    let home = chain();
    let node = Node::start(home.path(), &["http.body_bytes_max=1048576"]);
    let host = format!("Host: {}\r\n", node.address);
    let head = format!("POST /v1/transactions HTTP/1.1\r\n{host}Content-Type: application/json\r\n");
    // One byte too many, said and sent; and so much more that it is still being sent when the answer comes.
    for bytes in [(1 << 20) + 1, 8 << 20, 8 << 20, 8 << 20] {
        let mut stream = node.connect();
        let whole = format!("{head}Connection: close\r\nContent-Length: {bytes}\r\n\r\n{}", " ".repeat(bytes));
        stream.write_all(whole.as_bytes()).expect("it is taken until the answer is read");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("the answer is not cut off");
        assert!(text.starts_with("HTTP/1.1 413") && text.contains("octet-stream"), "{text}");
    }
    // A length that lies upward: the answer comes before the body.
    assert_eq!(node.exchange(format!("{head}Content-Length: 99999999999\r\n\r\n").as_bytes()).0, 413);
    // Chunks without end.
    let mut endless = node.connect();
    let _ = endless.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes());
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..64 {
        if endless.write_all(chunk.as_bytes()).is_err() {
            break; // Refused already.
        }
    }
    let (status, _) = answer(&mut endless);
    assert!(status == 413 || status == 0, "{status}");
    // A head of 64 KB, and one of 10,000 headers.
    for bytes in [40_000, 64 << 10] {
        let wide = format!("GET /healthz HTTP/1.1\r\n{host}Connection: close\r\nX: {}\r\n\r\n", "x".repeat(bytes));
        assert_eq!(node.exchange(wide.as_bytes()).0, 431, "{bytes} bytes");
    }
    let many = format!("GET /healthz HTTP/1.1\r\n{host}{}\r\n", "X: y\r\n".repeat(10_000));
    assert_eq!(node.exchange(many.as_bytes()).0, 431);
    // Compressed bodies are not unpacked at all.
    let packed = format!("{host}Content-Type: application/json\r\nContent-Encoding: gzip\r\n");
    assert_eq!(node.post(&packed, "{}").0, 415);
    alive(&node);
}

#[test]
fn r02_slow_and_idle_clients_do_not_keep_others_out() {
    let home = chain();
    let node = Node::start(home.path(), &["http.header_timeout_ms=700", "http.connections_max=64"]);
    let mut slow = node.connect();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost:").unwrap();
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(started.elapsed() < Duration::from_secs(5), "a head that never ends is never closed");
    let idle: Vec<TcpStream> = (0..300).filter_map(|_| TcpStream::connect(node.address).ok()).collect();
    assert!(idle.len() > 200);
    let started = Instant::now();
    alive(&node);
    assert!(started.elapsed() < Duration::from_secs(5), "idle connections keep others out");
}

#[test]
fn r03_json_is_strict() {
    let home = chain();
    let node = Node::start(home.path(), &[]);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for body in [
        deep.as_str(),
        r#"{"transaction":"00","transaction":"01"}"#,
        r#"{"transaction":1e400}"#,
        r#"{"transaction":null}"#,
        r#"{"transaction":-0}"#,
        r#"{"transaction":9223372036854775808}"#,
        r#"{"transaction":1.5}"#,
        r#"{"transaction":"zz"}"#,
        r#"{"transaction":"00"}"#,
        r#"{"transaction":"00","more":1}"#,
        r#"[{"transaction":"00"}]"#,
        r#"["00"]"#,
        "",
        "\u{0}",
    ] {
        let (status, answer) = node.post_json(body);
        assert_eq!(status, 400, "{}", &body[..body.len().min(60)]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"], "bad_request");
    }
    alive(&node);
}

#[test]
fn r04_paths_have_one_reading() {
    let home = chain();
    let node = Node::start(home.path(), &[]);
    for path in [
        "/v1/..%2fstatus",
        "/v1/%00",
        "/v1/%c0%ae%c0%ae/status",
        "/metrics/../admin",
        "/./metrics",
        "//metrics",
        "/v1/blocks/%31",
        "/v1/state/agents?key=%00",
        "/v1/state/agents?key=%c0%ae",
        "/v1/state/agents?key=1&key=2",
        "/v1/state/Agents?key=1",
        "/v1/blocks/-1",
        "/v1/blocks/18446744073709551616",
        "/v1/transactions/00",
        "/admin",
        "/metrics/admin",
    ] {
        let (status, _) = node.get(path);
        assert!(status == 400 || status == 404, "{path} got {status}");
    }
    assert_eq!(node.exchange(b"GET /\xc0\xae HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").0, 400);
    assert_eq!(node.exchange(b"DELETE /v1/status HTTP/1.1\r\nConnection: close\r\n\r\n").0, 403);
    alive(&node);
}

/// Keys, bytes and numbers have one form.
#[test]
fn r04_hexadecimal_and_numbers_have_one_form() {
    let home = chain();
    send(home.path(), 0, &json!([register()]));
    let node = Node::start(home.path(), &[]);
    let key = "ab".repeat(32);
    for (one, others) in [
        ("/v1/blocks/1", &["/v1/blocks/+1", "/v1/blocks/01", "/v1/blocks/00001"][..]),
        ("/v1/state/agents?key_hex=ff", &["/v1/state/agents?key_hex=FF", "/v1/state/agents?key_hex=fF"]),
        (
            "/v1/state/agents?key=x&height=1",
            &["/v1/state/agents?key=x&height=0001", "/v1/state/agents?key=x&height=%2b1"],
        ),
        ("/v1/entries/agents?limit=5", &["/v1/entries/agents?limit=05", "/v1/entries/agents?limit=%2b5"]),
        (&format!("/v1/accounts/{key}"), &[&format!("/v1/accounts/{}", key.to_uppercase())]),
    ] {
        assert_eq!(node.get(one).0, 200, "{one}");
        for other in others {
            assert_eq!(node.get(other).0, 400, "{other}");
        }
    }
    let (status, answer) = node.post_json(&json!({ "transaction": "AB" }).to_string());
    assert!(status == 400 && answer.contains("lower-case"), "{answer}");
}

/// What became of a transaction is answered with what it takes to prove it, by nodes and by commands alike.
#[test]
fn a_receipt_comes_with_its_bytes_and_its_place() {
    let home = chain();
    let sent = send(home.path(), 0, &json!([register(), post("first")]));
    let id = sent["id"].as_str().unwrap();
    let shown = expect(home.path(), 0, &["query", "tx", id]);
    let node = Node::start(home.path(), &[]);
    let answer = node.json(&format!("/v1/transactions/{id}")).1;
    assert_eq!(shown, answer);
    let receipt = node.json(&format!("/v1/receipts/{id}")).1;
    assert_eq!(answer["receipt"], receipt);
    assert!(receipt["receipt"].as_str().unwrap().starts_with(id), "{receipt}");
    // Alone in its block: index 0 of 1, and no hashes beside its way.
    assert_eq!(
        (&receipt["place"], &answer["place"]),
        (&json!("000000000100000000000000"), &json!("000000000100000000000000"))
    );
    assert!(receipt["outcomes"][1]["gas_used"].as_u64().unwrap() > 0, "{receipt}");
}

#[test]
fn r06_pruned_and_future_heights_say_which_there_are() {
    let home = chain();
    for round in 0..6 {
        send(home.path(), 0, &json!([if round == 0 { register() } else { post("again") }]));
    }
    expect(home.path(), 0, &["db", "prune", "--before", "4", "--yes"]);
    let node = Node::start(home.path(), &[]);
    let lowest = node.json("/v1/status").1["lowest_height"].clone();
    assert_eq!(lowest, 4);
    for (height, expected) in [(1, 410), (99, 404)] {
        let (status, body) = node.json(&format!("/v1/state/agents?key=x&height={height}"));
        assert_eq!(status, expected);
        assert_eq!((&body["error"]["lowest_height"], &body["error"]["highest_height"]), (&json!(4), &json!(6)));
    }
    assert_eq!(node.get("/v1/state/agents?key=x&height=5").0, 200);
    for (path, lowest) in [("/v1/blocks/99", 1), ("/v1/history/agents?key=x&from=99", 4), ("/v1/events?from=99", 1)] {
        let (status, body) = node.json(path);
        assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")), "{path}");
        let heights = (&body["error"]["lowest_height"], &body["error"]["highest_height"]);
        assert_eq!(heights, (&json!(lowest), &json!(6)), "{path}");
    }
    // The command line says the same through the node.
    expect(home.path(), 14, &["query", "agents", "78", "--hex", "--height", "1"]);
    // The genesis never had a block: that is not one which is gone.
    let (status, body) = node.json("/v1/blocks/0");
    assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")), "{body}");
    assert_eq!((&body["error"]["lowest_height"], &body["error"]["highest_height"]), (&json!(1), &json!(6)), "{body}");
}

/// What lies at a place is asked for by the types of that place, as arguments are written, and answered so.
#[test]
fn the_state_is_asked_for_by_its_types() {
    let home = chain();
    send(home.path(), 0, &json!([register(), post("first"), post("second")]));
    let node = Node::start(home.path(), &[]);
    let key = expect(home.path(), 0, &["keys", "show", "producer"])["public"].as_str().unwrap().to_owned();
    let (status, places) = node.json("/v1/places");
    let at = |namespace: &str, place: &str| {
        let places = places.as_array().unwrap().iter();
        let found: Vec<&Value> =
            places.filter(|found| found["namespace"] == namespace && found["place"] == place).collect();
        found[0].clone()
    };
    assert_eq!(
        (status, &at("agents", "all")["kind"], &at("agents", "all")["key"]),
        (200, &json!("map"), &json!("32 bytes, hex"))
    );
    assert_eq!(at("agents", "stake_total")["key"], Value::Null, "a single value has no keys");
    assert_eq!(expect(home.path(), 0, &["query", "places"]), places);

    let get = |path: &str, expected: u16| {
        let (status, body) = node.json(path);
        assert_eq!(status, expected, "{path}: {body}");
        body
    };
    let agent = get(&format!("/v1/state/agents?place=all&key={key}&prove=true"), 200);
    assert_eq!(agent, get(&format!("/v1/state/agents?key_hex=616c6c2f{key}&prove=true"), 200));
    assert!(agent["text"].as_str().unwrap().contains("Ada"), "{agent}");
    get("/v1/state/agents?place=stake_total", 200);
    let history = get(&format!("/v1/history/agents?place=all&key={key}"), 200);
    assert_eq!(history["changes"].as_array().map(Vec::len), Some(1));
    let page = get("/v1/entries/memes?place=memes&limit=1", 200);
    assert_eq!(page["rows"][0]["value"]["text"], "first", "{page}");
    let next = page["next"].as_str().unwrap();
    let rest = get(&format!("/v1/entries/memes?place=memes&after_hex={next}"), 200);
    assert_eq!((rest["rows"].as_array().map(Vec::len), &rest["rows"][0]["value"]["text"]), (Some(1), &json!("second")));
    assert!(get("/v1/entries/memes?prefix=memes/", 200).get("rows").is_none(), "bytes are answered with bytes");

    let short = &key[1..];
    for path in [
        &format!("/v1/state/agents?place=all&key={short}")[..],
        "/v1/state/agents?place=all",
        "/v1/state/agents?place=stake_total&key=1",
        "/v1/state/agents?place=all&key_hex=00",
        "/v1/entries/agents?place=stake_total",
        "/v1/entries/agents?place=all&prefix_hex=00",
    ] {
        get(path, 400);
    }
    let none = get("/v1/state/agents?place=every&key=1", 404);
    assert!(none["error"]["message"].as_str().unwrap().contains("agents/all"), "{none}");
}

#[test]
fn r08_pages_of_foreign_origin_cannot_change_state() {
    let home = chain();
    let node = Node::start(home.path(), &[]);
    let own = format!("Host: {}\r\n", node.address);
    let port = node.address.port();
    let body = r#"{"transaction":"00"}"#;
    let kind = "Content-Type: application/json\r\n";
    let try_with = |headers: String| node.post(&headers, body).0;
    assert_eq!(try_with(format!("{own}{kind}")), 400, "an honest client gets as far as the transaction");
    assert_eq!(try_with(format!("{own}{kind}Origin: http://{}\r\n", node.address)), 400);
    assert_eq!(try_with(format!("Host: attacker.example:{port}\r\n{kind}")), 403, "DNS rebinding");
    assert_eq!(try_with(format!("{own}{kind}Origin: https://attacker.example\r\n")), 403);
    assert_eq!(try_with(format!("{own}{kind}Origin: null\r\n")), 403);
    assert_eq!(try_with(format!("{own}Content-Type: text/plain\r\n")), 415, "a form of a page");
    assert_eq!(try_with(format!("{own}Content-Type: APPLICATION/JSON; charset=utf-8\r\n")), 400);
    assert_eq!(try_with(own), 415);
}

/// Pages of a configured origin can send: browsers ask first, and are told; of others they are told nothing.
#[test]
fn r08_browsers_are_told_what_pages_of_configured_origins_may() {
    let home = chain();
    let node = Node::start(home.path(), &["http.origins=https://wallet.example", "http.read_token=true"]);
    let ask = |method: &str, path: &str, headers: &str| {
        let mut stream = node.connect();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", node.address);
        stream.write_all(format!("{head}{headers}\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.to_lowercase()
    };
    let preflight = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n";
    let told = ask("OPTIONS", "/v1/transactions", &format!("Origin: https://wallet.example\r\n{preflight}"));
    assert!(told.starts_with("http/1.1 204"), "{told}");
    for header in [
        "access-control-allow-origin: https://wallet.example\r\n",
        "access-control-allow-methods: get, post\r\n",
        "access-control-allow-headers: authorization, content-type, last-event-id\r\n",
        "vary: origin\r\n",
    ] {
        assert!(told.contains(header), "{header} is not in {told}");
    }
    // Refusals can be read as well.
    let refused = ask("GET", "/v1/status", "Origin: https://wallet.example\r\n");
    assert!(refused.starts_with("http/1.1 401"), "{refused}");
    assert!(refused.contains("access-control-allow-origin: https://wallet.example\r\n"), "{refused}");
    for origin in ["https://attacker.example", "null"] {
        let told = ask("OPTIONS", "/v1/transactions", &format!("Origin: {origin}\r\n{preflight}"));
        assert!(!told.starts_with("http/1.1 2") && !told.contains("access-control-"), "{told}");
    }
}

/// Whoever did not hear the answer sends the same bytes again, and is told the same, whether they wait or are in a block.
#[test]
fn the_same_transaction_again_is_answered_with_its_identity() {
    let home = chain();
    let file = home.path().join("plan.json");
    let signed = |nonce: u64| {
        std::fs::write(&file, json!({ "nonce": nonce, "operations": [register()] }).to_string()).unwrap();
        let built = expect(home.path(), 0, &["tx", "build", "--from", "producer", file.to_str().unwrap()]);
        std::fs::write(&file, built.to_string()).unwrap();
        let signed = expect(home.path(), 0, &["tx", "sign", "--from", "producer", file.to_str().unwrap()]);
        signed["transaction"].as_str().unwrap().to_owned()
    };
    let (first, gapped) = (signed(0), signed(5));
    let body = |transaction: &str| json!({ "transaction": transaction }).to_string();
    let sent = |node: &Node, transaction: &str| {
        let (status, answer) = node.post_json(&body(transaction));
        assert_eq!(status, 202, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let node = Node::start(home.path(), &["blocks.production=interval", "blocks.interval_ms=3600000"]);
    sent(&node, &gapped);
    let counts = |node: &Node| {
        let status = node.json("/v1/status").1;
        (status["waiting"].as_u64().unwrap(), status["ready"].as_u64().unwrap())
    };
    assert_eq!(counts(&node), (1, 0), "what waits behind a gap is not ready");
    // By its order alone an array would be read as the object.
    assert_eq!(node.post_json(&json!([first]).to_string()).0, 400);
    let id = sent(&node, &first);
    assert_eq!(sent(&node, &first), id);
    assert_eq!(counts(&node), (2, 1));
    let asked = |node: &Node, id: &str| {
        let (status, answer) = node.json(&format!("/v1/transactions/{id}"));
        (status, answer["error"]["code"].as_str().map(str::to_owned))
    };
    assert_eq!(asked(&node, &id), (404, Some("waiting".to_owned())));
    assert_eq!(asked(&node, &"ab".repeat(32)), (404, Some("not_found".to_owned())));
    drop(node);
    // What waited is gone with the process, and can be sent again.
    let node = Node::start(home.path(), &[]);
    assert_eq!(asked(&node, &id), (404, Some("not_found".to_owned())));
    assert_eq!(sent(&node, &first), id);
    until("it is in a block", || asked(&node, &id).0 == 200);
    assert_eq!(sent(&node, &first), id);
    assert_eq!(node.json("/v1/status").1["height"], 1, "it took effect once");
}

/// A parameter that nobody reads is a mistake of whoever sent it.
#[test]
fn parameters_that_a_path_does_not_have_are_refused() {
    let home = chain();
    let node = Node::start(home.path(), &[]);
    for path in ["/", "/v1/status", "/v1/blocks/latest", "/v1/bundles", "/v1/functions", "/healthz", "/metrics"] {
        assert_ne!(node.get(path).0, 400, "{path}");
        let (status, answer) = node.json(&format!("{path}?height=5"));
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("bad_request")), "{path}");
    }
    let account = format!("/v1/accounts/{}", "ab".repeat(32));
    assert_eq!((node.get(&account).0, node.get(&format!("{account}?height=5")).0), (200, 400));
}

#[test]
fn r10_the_number_of_series_does_not_grow_with_requests() {
    let home = chain();
    let node = Node::start(home.path(), &[]);
    let series = |node: &Node| node.get("/metrics").1.lines().filter(|line| !line.starts_with('#')).count();
    for path in ["/", "/v1/status", "/nowhere", "/v1/blocks/latest", "/v1/blocks/x"] {
        node.get(path);
    }
    series(&node);
    let before = series(&node);
    for index in 0..100 {
        node.get(&format!("/made-up-{index}"));
        node.get(&format!("/v1/blocks/{index}"));
        node.get(&format!("/v1/state/ns{index}?key=k{index}"));
    }
    let after = series(&node);
    let (_, text) = node.get("/metrics");
    for series in [
        "http_refused_total{reason=\"answers\"} 0",
        "certified_compared_roots_total{outcome=\"differs\"} 0",
        "store_made_mendings_total{outcome=\"left\"} 0",
    ] {
        assert!(text.contains(series), "{series} is not there before its first event");
    }
    assert!(after <= before + 4, "{before} series became {after}");
    assert!(after < 200, "{after} series");
}

#[test]
fn r11_subscriptions_are_capped_and_slow_readers_dropped() {
    let home = chain();
    let settings = ["http.client_subscriptions_max=4", "http.subscription_events_max=2"];
    let node = Node::start(home.path(), &settings);
    let subscribe = || {
        let mut stream = node.connect();
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        (stream, String::from_utf8_lossy(&first).into_owned())
    };
    let open: Vec<_> = (0..4).map(|_| subscribe()).collect();
    assert!(open.iter().all(|(_, status)| status == "HTTP/1.1 200"));
    assert_eq!(subscribe().1, "HTTP/1.1 503");
    // Nobody reads. Blocks go on, and sooner or later nobody is subscribed.
    send(home.path(), 0, &json!([register()]));
    let many: Vec<Value> = (0..60).map(|_| post(&"x".repeat(280))).collect();
    let started = Instant::now();
    while !node.get("/metrics").1.contains("http_subscriptions_dropped_total 4") {
        assert!(started.elapsed() < Duration::from_secs(60), "slow readers are kept");
        send(home.path(), 0, &json!(many));
    }
    assert!(node.get("/metrics").1.contains("http_subscriptions_open 0"));
    let (_, status) = subscribe();
    assert_eq!(status, "HTTP/1.1 200", "their places are free again");
}

/// R-07: no token, a wrong one, one in the URL, one with too small a role; guesses are told to wait, and whoever has a
/// good token is served all the same.
#[test]
fn r07_tokens_are_asked_for_and_guesses_told_to_wait() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = chain();
    let made = |name: &str, role: &str| {
        let made = expect(home.path(), 0, &["token", "new", name, "--role", role]);
        made["token"].as_str().unwrap().to_owned()
    };
    let (reader, writer) = (made("dashboard", "read"), made("wallet", "write"));
    let file = home.path().join("tokens.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(!kept.contains(&reader) && !kept.contains(&writer), "a token is kept in the clear");
    expect(home.path(), 2, &["token", "new", "wallet"]);
    let node = Node::start(home.path(), &["http.write_token=true", "http.read_token=true"]);
    let ask = |path: &str, header: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{header}\r\n", node.address);
        node.exchange(head.as_bytes()).0
    };
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let own = format!("Host: {}\r\nContent-Type: application/json\r\n", node.address);
    assert_eq!(ask("/healthz", ""), 200);
    assert_eq!(ask("/v1/status", ""), 401);
    assert_eq!(ask(&format!("/v1/status?token={writer}"), ""), 401);
    assert_eq!(ask("/v1/status", &bearer(&reader)), 200);
    assert_eq!(node.post(&own, "{}").0, 401);
    assert_eq!(node.post(&(own.clone() + &bearer(&reader)), "{}").0, 403);
    assert_eq!(node.post(&(own.clone() + &bearer(&writer)), "{}").0, 400, "let in, and no transaction");
    assert_eq!(ask(&format!("/v1/status?token={writer}"), &bearer(&writer)), 401, "in the URL as well");
    let guess = bearer(&writer.replace(&writer[10..12], "zz"));
    let answers: Vec<u16> = (0..20).map(|_| ask("/v1/status", &guess)).collect();
    assert_eq!((&answers[..10], &answers[10..]), (&[401; 10][..], &[429; 10][..]));
    let head = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{guess}\r\n", node.address);
    let mut stream = node.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.to_lowercase().contains("retry-after: "), "{text}");
    assert_eq!(ask("/v1/status", &bearer(&writer)), 200);
    // The commands of this home have a token of their own, which nobody else can read.
    send(home.path(), 0, &json!([register()]));
    let own = std::fs::metadata(home.path().join("api.token")).unwrap();
    assert_eq!(own.permissions().mode() & 0o777, 0o600);
    // A token that is removed is good for nothing at once.
    assert_eq!(expect(home.path(), 0, &["token", "remove", "wallet"])["told"], true);
    assert_eq!(ask("/v1/status", &bearer(&reader)), 200);
    assert!(matches!(ask("/v1/status", &bearer(&writer)), 401 | 429));
    let listed = expect(home.path(), 0, &["token", "list"]);
    assert_eq!(listed, json!([{ "name": "dashboard", "role": "read" }]));
}

/// What a value has that its schema does not say: types, enumerations, members that must be there and members that may.
fn unlike(document: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let referred = document.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("there is no {name}"));
        return unlike(document, referred, value, place);
    }
    let choices = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
    if let Some(choices) = choices {
        return match choices.iter().any(|choice| unlike(document, choice, value, place).is_empty()) {
            true => Vec::new(),
            false => vec![format!("{place}: {value} is none of {choices:?}")],
        };
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = match &schema["type"] {
        Value::String(said) => said == kind,
        Value::Array(said) => said.iter().any(|said| said == kind),
        _ => true,
    };
    let listed = schema["enum"].as_array().is_none_or(|listed| listed.contains(value));
    if !fits || !listed {
        return vec![format!("{place}: {value} is not {schema}")];
    }
    let mut found = Vec::new();
    for (index, element) in value.as_array().into_iter().flatten().enumerate() {
        found.extend(unlike(document, &schema["items"], element, &format!("{place}[{index}]")));
    }
    if let (Some(members), Some(said)) = (value.as_object(), schema["properties"].as_object()) {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            found.extend((!members.contains_key(name)).then(|| format!("{place} lacks {name}")));
        }
        for (name, member) in members {
            match said.get(name) {
                Some(schema) => found.extend(unlike(document, schema, member, &format!("{place}.{name}"))),
                None => found.push(format!("{place}.{name} is not described")),
            }
        }
    }
    found
}

/// What an answer has that the document does not say of an operation.
fn undescribed(document: &Value, operation: &Value, answer: &str) -> Vec<String> {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).unwrap_or_default();
    let kind = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-type: ").map(str::to_owned));
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
    let Some(content) = operation["responses"][status]["content"].get(&kind) else {
        return vec![format!("{status} of {kind} is not described")];
    };
    match serde_json::from_str(body) {
        Ok(value) if kind == "application/json" => unlike(document, &content["schema"], &value, "$"),
        _ => Vec::new(),
    }
}

/// Every path answers what the document says of it, in the types that it says.
#[test]
fn every_documented_path_answers() {
    let home = chain();
    let sent = send(home.path(), 0, &json!([register(), post("with a number as its result")]));
    let refused = json!([register()]);
    let failed = send(home.path(), 13, &refused);
    let bundle = submit(home.path(), 0, &[post("in a batch")]);
    let session = expect(home.path(), 0, &["session", "create", "--from", "producer", "--may", "memes.post"]);
    let node = Node::start(home.path(), &[]);
    let (status, document) = node.json("/openapi.json");
    assert_eq!(status, 200);
    let (id, sender) = (sent["id"].as_str().unwrap(), sent["sender"].as_str().unwrap());
    let whole = |request: &str| {
        let mut stream = node.connect();
        write!(stream, "{request}Host: {}\r\nConnection: close\r\n\r\n", node.address).unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    };
    let mut answered = 0;
    for (pattern, methods) in document["paths"].as_object().unwrap() {
        let Some(operation) = methods.get("get").filter(|_| pattern != "/v1/events") else { continue };
        let query = match pattern.as_str() {
            "/v1/state/{namespace}" => "?key=x&prove=true",
            "/v1/lookup/{index}" => "?of=Ada",
            "/v1/history/{namespace}" => "?key=x",
            "/v1/entries/{namespace}" => "?after=a",
            _ => "",
        };
        let id = match pattern.as_str() {
            "/v1/bundles/{id}" => bundle["id"].as_str().unwrap(),
            "/v1/sessions/{id}" => session["id"].as_str().unwrap(),
            _ => id,
        };
        let path = pattern.replace("{id}", id).replace("{height}", "1").replace("{key}", sender);
        // No snapshot was made, so there is no chunk of one either.
        let (index, expected) = match &path {
            path if path.starts_with("/v1/snapshots/") => ("0", 404),
            path if path.starts_with("/v1/audit/") || path.contains("/operations/") => ("0", 200),
            _ => ("name", 200),
        };
        let path = path.replace("{namespace}", "agents").replace("{index}", index) + query;
        let answer = whole(&format!("GET {path} HTTP/1.1\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{path}: {answer}");
        assert_eq!(undescribed(&document, operation, &answer), Vec::<String>::new(), "{path}");
        // What cannot be read, and what is packed.
        let path = pattern.replace(['{', '}'], "-") + "?no=parameter";
        for answer in [
            whole(&format!("GET {path} HTTP/1.1\r\n")),
            whole(&format!("GET {path} HTTP/1.1\r\nContent-Encoding: gzip\r\n")),
        ] {
            assert_eq!(undescribed(&document, operation, &answer), Vec::<String>::new(), "{path}");
        }
        answered += 1;
    }
    assert!(answered >= 10, "{answered} paths");
    // A transaction that failed; and what is sent, which is no transaction.
    let operation = &document["paths"]["/v1/transactions/{id}"]["get"];
    let answer = whole(&format!("GET /v1/transactions/{} HTTP/1.1\r\n", failed["id"].as_str().unwrap()));
    assert_eq!(undescribed(&document, operation, &answer), Vec::<String>::new());
    for path in ["/v1/transactions", "/v1/witness"] {
        let operation = &document["paths"][path]["post"];
        let answer = whole(&format!("POST {path} HTTP/1.1\r\nContent-Type: application/octet-stream\r\n"));
        assert_eq!(undescribed(&document, operation, &answer), Vec::<String>::new(), "{path}: {answer}");
        let bytes = &operation["requestBody"]["content"]["application/octet-stream"]["schema"];
        let bytes =
            document.pointer(bytes["$ref"].as_str().unwrap_or_default().trim_start_matches('#')).unwrap_or(bytes);
        assert_eq!((&bytes["type"], &bytes["format"]), (&json!("string"), &json!("binary")), "{path}");
    }
}
