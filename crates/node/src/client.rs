//! A chain behind the HTTP API of a node: what the command line asks while a node holds the directory.
//!
//! One request to a connection, with a bound on time and on the size of an answer. The node is this machine's own or
//! one the user named; its answers are still parsed strictly and proofs still have to verify.

use crate::api::{
    self, Account, Block, BundleStatus, Chain, Entries, Entry, Function, Page, Refusal, Reloaded, Status, Submitted,
    Transaction, Witness,
};
use crate::audit::Wanted;
use crate::strict_json;
use crate::world::By;
use keelstone_codec::{Hash, Height, Key, Namespace};
use keelstone_execution::PublicKey;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long connecting, and then each read, may take unless told otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer. The largest honest one is a proof of an 8 MiB value, in hexadecimal, with the value.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A chain behind HTTP.
pub(crate) struct Remote {
    address: SocketAddr,
    timeout: Duration,
    /// For a node that asks for one.
    token: Option<Zeroizing<String>>,
}

/// The body of every answer that is no success.
#[derive(Deserialize)]
struct Failed {
    error: FailedText,
}

#[derive(Deserialize)]
struct FailedText {
    code: String,
    message: String,
    lowest_height: Option<u64>,
    highest_height: Option<u64>,
}

impl Remote {
    /// The node that listens on `address`, if one answers there.
    pub(crate) fn connect(address: SocketAddr, token: Option<Zeroizing<String>>) -> Option<Self> {
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        Some(Self { address, timeout: TIMEOUT, token })
    }

    /// The node that may listen on `address`; asking it takes at most about `timeout`.
    pub(crate) fn at(address: SocketAddr, timeout: Duration) -> Self {
        Self { address, timeout, token: None }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refusal> {
        self.request(path, None)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, Refusal> {
        self.request(path, Some(Body { kind: "application/octet-stream", bytes }))
    }

    /// The snapshots the node serves.
    pub(crate) fn snapshots(&self) -> Result<api::Snapshots, Refusal> {
        self.get("/v1/snapshots")
    }

    /// One chunk of a snapshot as it is sent: to be proven by whoever asks.
    pub(crate) fn snapshot_chunk(&self, height: Height, index: u32) -> Result<Vec<u8>, Refusal> {
        match self.answer(&format!("/v1/snapshots/{height}/chunks/{index}"), None)? {
            (200, chunk) => Ok(chunk),
            (status, _) => Err(Refusal::NotFound(format!("chunk {index} of height {height}: it answered {status}"))),
        }
    }

    /// Has the node read again what it keeps of tokens.
    pub(crate) fn reload(&self) -> Result<Reloaded, Refusal> {
        self.post("/v1/admin/reload", &[])
    }

    fn answer(&self, path: &str, body: Option<Body<'_>>) -> Result<(u16, Vec<u8>), Refusal> {
        let host = self.address.to_string();
        let token = self.token.as_ref().map(|token| token.as_str());
        TcpStream::connect_timeout(&self.address, self.timeout)
            .and_then(|stream| {
                exchange(stream, self.timeout, &Ask { host: &host, path, body, token }, ANSWER_BYTES_MAX)
            })
            .map_err(|error| Refusal::Failed(format!("the node at http://{} did not answer: {error}", self.address)))
    }

    fn request<T: DeserializeOwned>(&self, path: &str, body: Option<Body<'_>>) -> Result<T, Refusal> {
        let (status, answer) = self.answer(path, body)?;
        let unexpected = |error| Refusal::Failed(format!("http://{}{path} answered {status}: {error}", self.address));
        if (200..300).contains(&status) {
            return strict_json::parse(&answer).map_err(unexpected);
        }
        let failed: Failed = strict_json::parse(&answer).map_err(unexpected)?;
        let FailedText { code, message, lowest_height, highest_height } = failed.error;
        Err(match (code.as_str(), lowest_height, highest_height) {
            (_, Some(lowest), Some(highest)) => {
                let asked = if code == "gone" { lowest.saturating_sub(1) } else { highest.saturating_add(1) };
                Refusal::Height { asked, lowest, highest }
            }
            ("not_found" | "gone", ..) => Refusal::NotFound(message),
            ("bad_request" | "too_large" | "forbidden" | "unsupported_media" | "unauthorized" | "too_many", ..) => {
                Refusal::Bad(message)
            }
            ("refused", ..) => {
                let (code, message) = message.split_once(": ").unwrap_or(("refused", &message));
                Refusal::Refused { code: code.to_owned(), message: message.to_owned() }
            }
            ("busy", ..) => Refusal::Busy(message),
            ("damaged", ..) => Refusal::Damaged(message),
            _ => Refusal::Failed(message),
        })
    }
}

/// What a POST carries.
pub(crate) struct Body<'a> {
    /// Its media type.
    pub(crate) kind: &'a str,
    pub(crate) bytes: &'a [u8],
}

/// What is asked of a server.
pub(crate) struct Ask<'a> {
    /// What the server is called.
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    /// With one it is a POST.
    pub(crate) body: Option<Body<'a>>,
    /// For a node that asks for one.
    pub(crate) token: Option<&'a str>,
}

/// Asks, and reads the answer to its end: its status and its body.
///
/// As HTTP/1.0, whose answers are never in pieces and end with the connection: CometBFT sends whatever is above two
/// kilobytes in pieces to those who speak 1.1.
pub(crate) fn exchange(
    mut stream: TcpStream,
    timeout: Duration,
    ask: &Ask<'_>,
    answer_bytes_max: u64,
) -> std::io::Result<(u16, Vec<u8>)> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let method = if ask.body.is_some() { "POST" } else { "GET" };
    let mut request = Zeroizing::new(format!("{method} {} HTTP/1.0\r\nHost: {}\r\n", ask.path, ask.host));
    let written = "writing to a string cannot fail";
    if let Some(token) = ask.token {
        write!(request, "Authorization: Bearer {token}\r\n").expect(written);
    }
    if let Some(Body { kind, bytes }) = &ask.body {
        write!(request, "Content-Type: {kind}\r\nContent-Length: {}\r\n", bytes.len()).expect(written);
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    if let Some(Body { bytes, .. }) = &ask.body {
        stream.write_all(bytes)?;
    }
    let mut answer = Vec::new();
    stream.take(answer_bytes_max).read_to_end(&mut answer)?;
    let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not an answer of HTTP");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(invalid)?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).map_err(|_| invalid())?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(invalid)?;
    Ok((status, body))
}

/// Text as a parameter: every byte that could mean something else is escaped.
fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let escape = |byte: u8| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") };
    text.bytes().map(escape).collect()
}

/// A path with those of its parameters that are given.
fn query<const N: usize>(path: impl std::fmt::Display, parameters: [(&str, Option<String>); N]) -> String {
    let given = parameters.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", escaped(&value?))));
    let given: Vec<String> = given.collect();
    format!("{path}?{}", given.join("&"))
}

impl Chain for Remote {
    fn status(&self) -> Result<Status, Refusal> {
        let status: Status = self.get("/v1/status")?;
        Ok(Status { api: Some(format!("http://{}", self.address)), ..status })
    }

    fn submit(&self, transaction: &[u8]) -> Result<Submitted, Refusal> {
        self.post("/v1/transactions", transaction)
    }

    fn entry(&self, namespace: &Namespace, key: &Key, height: Option<Height>, prove: bool) -> Result<Entry, Refusal> {
        let parameters = [
            ("key_hex", Some(hex::encode(key))),
            ("prove", Some(prove.to_string())),
            ("height", height.map(|height| height.to_string())),
        ];
        self.get(&query(format_args!("/v1/state/{namespace}"), parameters))
    }

    fn entries(&self, namespace: &Namespace, page: &Page, height: Option<Height>) -> Result<Entries, Refusal> {
        let parameters = [
            ("prefix_hex", Some(hex::encode(&page.prefix))),
            ("limit", Some(page.limit.to_string())),
            ("height", height.map(|height| height.to_string())),
            ("after_hex", page.after.as_ref().map(hex::encode)),
        ];
        self.get(&query(format_args!("/v1/entries/{namespace}"), parameters))
    }

    fn lookup(&self, by: By, of: &str, page: &Page) -> Result<Entries, Refusal> {
        let parameters = [
            ("of", Some(of.to_owned())),
            ("limit", Some(page.limit.to_string())),
            ("after_hex", page.after.as_ref().map(hex::encode)),
        ];
        self.get(&query(format_args!("/v1/lookup/{by}"), parameters))
    }

    fn block(&self, height: Option<Height>) -> Result<Block, Refusal> {
        let height = height.map_or_else(|| "latest".to_owned(), |height| height.to_string());
        self.get(&format!("/v1/blocks/{height}"))
    }

    fn transaction(&self, id: &Hash) -> Result<Transaction, Refusal> {
        self.get(&format!("/v1/transactions/{id}"))
    }

    fn account(&self, key: &PublicKey) -> Result<Account, Refusal> {
        self.get(&format!("/v1/accounts/{key}"))
    }

    fn bundle(&self, id: &Hash) -> Result<BundleStatus, Refusal> {
        self.get(&format!("/v1/bundles/{id}"))
    }

    fn bundles(&self) -> Result<Vec<BundleStatus>, Refusal> {
        self.get("/v1/bundles")
    }

    fn witness(&self, transaction: &[u8]) -> Result<Witness, Refusal> {
        self.post("/v1/witness", transaction)
    }

    fn audit(&self, wanted: &Wanted) -> Result<api::Audit, Refusal> {
        let parameters = [
            ("limit", Some(wanted.limit.to_string())),
            ("height", wanted.height.map(|height| height.to_string())),
            ("from", wanted.from.map(|from| from.to_string())),
            ("kind", wanted.kind.clone()),
            ("who", wanted.who.map(|who| who.to_string())),
        ];
        self.get(&query("/v1/audit", parameters))
    }

    fn audit_proof(&self, index: u64) -> Result<api::AuditAnswer, Refusal> {
        self.get(&format!("/v1/audit/{index}"))
    }

    fn audit_checkpoint(&self, since: Option<u64>) -> Result<api::AuditCheckpoint, Refusal> {
        self.get(&query("/v1/audit-log", [("since", since.map(|since| since.to_string()))]))
    }

    fn history(
        &self,
        namespace: &Namespace,
        key: &Key,
        (from, to): (Option<Height>, Option<Height>),
        limit: usize,
    ) -> Result<api::History, Refusal> {
        let parameters = [
            ("key_hex", Some(hex::encode(key))),
            ("limit", Some(limit.to_string())),
            ("from", from.map(|from| from.to_string())),
            ("to", to.map(|to| to.to_string())),
        ];
        self.get(&query(format_args!("/v1/history/{namespace}"), parameters))
    }

    fn functions(&self) -> Result<Vec<Function>, Refusal> {
        self.get("/v1/functions")
    }
}
