//! A chain behind the HTTP API of a node: what the command line asks while a node holds the directory.
//!
//! One request to a connection, with a bound on the size of an answer and on the time it takes as a whole. The node is
//! this machine's own or one the user named; its answers are still parsed strictly and proofs still have to verify. Over
//! HTTPS it must be who it should be before anything is sent; over plain HTTP no token leaves this machine unless the
//! user insists.

use crate::api::{
    self, Account, Block, BundleStatus, Chain, DryRun, Entries, Entry, Function, Page, Refusal, Reloaded, Status,
    Submitted, Transaction, Witness,
};
use crate::authority::Authority;
use crate::exit::Failure;
use crate::home::{Announced, AnnouncedTls};
use crate::strict_json::{self, JsonError};
use crate::tls::{ClientTls, Fingerprint, Identity, Trust};
use keelstone_codec::{Hash, Height, Key, Namespace};
use keelstone_execution::{PublicKey, SessionId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How long connecting, then each read, and an answer without a byte may take unless told otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a node that is asked too often is left alone at least, and if it does not say.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// Bytes of an answer. The largest honest one is a proof of an 8 MiB value, in hexadecimal, with the value.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bytes that earn an answer another second: whoever sends fewer is given up, however regularly they come.
pub(crate) const BYTES_PER_SECOND_MIN: u64 = 16 << 10;

/// A chain behind HTTP.
pub(crate) struct Remote {
    /// What it is called, for messages and for the Host header.
    authority: Authority,
    /// Where that is.
    sockets: Vec<SocketAddr>,
    timeout: Duration,
    /// Until when it is asked again if it is asked too often; as long as an answer may take if nobody said.
    patient_until: OnceLock<Instant>,
    /// For a node that asks for one.
    token: Option<Zeroizing<String>>,
    /// None for plain HTTP.
    tls: Option<ClientTls>,
}

/// A node elsewhere, as the command line names it.
pub(crate) struct Elsewhere<'a> {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub(crate) url: &'a str,
    /// Whom to believe; needed for HTTPS, and for nothing else.
    pub(crate) trust: Option<Trust>,
    /// What to show where it asks for a certificate.
    pub(crate) identity: Option<Identity>,
    pub(crate) token: Option<Zeroizing<String>>,
    /// Whether a token may be sent where others could read it.
    pub(crate) insecure: bool,
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
    hint: Option<String>,
    producer: Option<api::MadeBy>,
}

impl FailedText {
    /// Why the node did not answer; `wait` is how long it wants to be left alone, if it is asked too often.
    fn refusal(self, wait: Option<Duration>) -> Refusal {
        let Self { code, message, hint, producer } = self;
        if let Some(made_by) = producer {
            return Refusal::Follows(made_by);
        }
        if let "forbidden" | "unauthorized" = code.as_str() {
            return Refusal::Forbidden { message, hint };
        }
        let said = [Some(message), hint].into_iter().flatten().collect::<Vec<_>>().join("; ");
        match code.as_str() {
            // What it says of a height names the one that was asked for, and those there are.
            "not_found" | "waiting" | "gone" => Refusal::NotFound(said),
            "bad_request" | "too_large" | "unsupported_media" => Refusal::Bad(said),
            "too_many" => Refusal::TooMany { message: said, after: wait.unwrap_or(WAIT_MIN) },
            "refused" => {
                let (code, message) = said.split_once(": ").unwrap_or(("refused", &said));
                Refusal::Refused { code: code.to_owned(), message: message.to_owned() }
            }
            "busy" => Refusal::Busy(said),
            "damaged" => Refusal::Damaged(said),
            _ => Refusal::Failed(said),
        }
    }
}

impl Remote {
    /// The node that said it runs over a home, if it answers.
    pub(crate) fn own(announced: &Announced, token: Option<Zeroizing<String>>) -> Option<Self> {
        let tls = match &announced.tls {
            None => None,
            Some(AnnouncedTls { fingerprint, certificate, key }) => {
                let trust = Trust::Pinned(Fingerprint::parse(fingerprint).ok()?);
                let identity = Identity { certificate: certificate.clone(), key: key.clone() };
                // Whoever cannot read the key is not the owner, and may ask where everybody may.
                Some(ClientTls::new(&trust, Some(&identity)).or_else(|_| ClientTls::new(&trust, None)).ok()?)
            }
        };
        TcpStream::connect_timeout(&announced.listen, Duration::from_secs(1)).ok()?;
        Some(Self { token, tls, ..Self::at(announced.listen, TIMEOUT) })
    }

    /// The node that may listen on `address`; asking it takes at most about `timeout`.
    pub(crate) fn at(address: SocketAddr, timeout: Duration) -> Self {
        let patient_until = OnceLock::new();
        Self { authority: address.into(), sockets: vec![address], timeout, patient_until, token: None, tls: None }
    }

    /// A node the user named.
    ///
    /// # Errors
    /// A usage failure for an address that is none, for HTTPS without anybody to believe, and for a token that others could
    /// read on the way.
    pub(crate) fn elsewhere(given: Elsewhere<'_>) -> Result<Self, Failure> {
        let Elsewhere { url, trust, identity, token, insecure } = given;
        let unfit = || Failure::usage(format!("--node {url}: expected http://HOST:PORT or https://HOST:PORT"));
        let (scheme, authority) = Authority::of_url(url).ok_or_else(unfit)?;
        let tls = match (scheme, trust) {
            ("http", None) if identity.is_none() => None,
            ("http", _) => return Err(Failure::usage("certificates are for --node https://…")),
            ("https", Some(trust)) => Some(ClientTls::new(&trust, identity.as_ref())?),
            ("https", None) => {
                let failure = Failure::usage(format!("--node {url}: say whom to believe"));
                return Err(failure.hint("--ca FILE for its authority, or --pin SHA256 for the certificate itself"));
            }
            _ => return Err(unfit()),
        };
        let sockets: Vec<SocketAddr> = authority
            .resolve()
            .map_err(|error| Failure::io(format_args!("could not find {}", authority.host()), &error))?
            .collect();
        let stays = sockets.iter().all(|socket| socket.ip().to_canonical().is_loopback());
        if token.is_some() && tls.is_none() && !stays && !insecure {
            let message = format!("a token sent to {url} could be read by everybody on the way");
            return Err(Failure::usage(message).hint("use https://…, or --insecure if the way is trusted"));
        }
        Ok(Self { authority, sockets, timeout: TIMEOUT, patient_until: OnceLock::new(), token, tls })
    }

    /// Its address, as people write it.
    fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
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
        self.body(&format!("/v1/snapshots/{height}/chunks/{index}"), None)
    }

    /// Has the node read again what it keeps of tokens.
    pub(crate) fn reload(&self) -> Result<Reloaded, Refusal> {
        self.post("/v1/admin/reload", &[])
    }

    /// Asks, and asks again when it is told to wait: nothing was done then. It waits no longer than for an answer, and no longer
    /// than whoever asks has time.
    fn answer(&self, path: &str, body: Option<Body<'_>>) -> Result<Answer, Refusal> {
        let host = self.authority.to_string();
        let token = self.token.as_ref().map(|token| token.as_str());
        let started = Instant::now();
        loop {
            let answer = self
                .converse(&Ask { host: &host, path, body, token })
                .map_err(|error| Refusal::Failed(format!("the node at {} did not answer: {error}", self.url())))?;
            let patience = self.patient_until.get().map(|by| by.saturating_duration_since(Instant::now()));
            let left = self.timeout.saturating_sub(started.elapsed()).min(patience.unwrap_or(Duration::MAX));
            match answer.wait() {
                Some(wait) if wait <= left => std::thread::sleep(wait),
                _ => return Ok(answer),
            }
        }
    }

    fn request<T: DeserializeOwned>(&self, path: &str, body: Option<Body<'_>>) -> Result<T, Refusal> {
        strict_json::parse(&self.body(path, body)?)
            .map_err(|error| Refusal::Failed(format!("{}{path} answered: {error}", self.url())))
    }

    /// What an answer holds that is a success.
    fn body(&self, path: &str, body: Option<Body<'_>>) -> Result<Vec<u8>, Refusal> {
        let answer = self.answer(path, body)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        let unexpected = |error| Refusal::Failed(format!("{}{path} answered {}: {error}", self.url(), answer.status));
        Err(answer.refused().map_err(unexpected)?)
    }
}

impl Remote {
    /// Asks at the first of its addresses where somebody listens.
    fn converse(&self, ask: &Ask<'_>) -> io::Result<Answer> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for socket in &self.sockets {
            match TcpStream::connect_timeout(socket, self.timeout) {
                Ok(stream) => {
                    let paced = Paced::new(stream, self.timeout)?;
                    let Some(tls) = &self.tls else { return converse(paced, ask, ANSWER_BYTES_MAX) };
                    return converse(tls.over(paced, self.authority.name())?, ask, ANSWER_BYTES_MAX);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// What a POST carries.
#[derive(Clone, Copy)]
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

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// How long it wants to be left alone, if it says so in seconds.
    retry_after: Option<Duration>,
    pub(crate) body: Vec<u8>,
}

/// Asks over plain HTTP, and reads the answer to its end. Nothing may come for `timeout`; and all of
/// it ends after that and a second for each 16 KiB that came, so whoever sends byte by byte holds up nobody.
pub(crate) fn exchange(
    stream: TcpStream,
    timeout: Duration,
    ask: &Ask<'_>,
    answer_bytes_max: u64,
) -> io::Result<Answer> {
    converse(Paced::new(stream, timeout)?, ask, answer_bytes_max)
}

/// As [`exchange`], and all of it ends by a time however much comes.
pub(crate) fn exchange_by(
    stream: TcpStream,
    timeout: Duration,
    by: Instant,
    ask: &Ask<'_>,
    answer_bytes_max: u64,
) -> io::Result<Answer> {
    converse(Paced { by, earns: false, ..Paced::new(stream, timeout)? }, ask, answer_bytes_max)
}

/// A connection that ends: after a time without a byte, and after a time as a whole.
struct Paced {
    stream: TcpStream,
    timeout: Duration,
    by: Instant,
    /// Whether each byte puts off the end.
    earns: bool,
    moved: u64,
}

impl Paced {
    fn new(stream: TcpStream, timeout: Duration) -> io::Result<Self> {
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream, timeout, by: Instant::now() + timeout, earns: true, moved: 0 })
    }

    fn left(&self) -> Duration {
        let earned = if self.earns { self.moved.saturating_mul(1000) / BYTES_PER_SECOND_MIN } else { 0 };
        (self.by + Duration::from_millis(earned)).saturating_duration_since(Instant::now())
    }

    /// Reads or writes some of it, for as long as is left.
    fn some(&mut self, turn: impl FnOnce(&mut TcpStream, Duration) -> io::Result<usize>) -> io::Result<usize> {
        let too_long = || io::Error::new(io::ErrorKind::TimedOut, "the answer takes too long");
        let left = self.left();
        if left.is_zero() {
            return Err(too_long());
        }
        match turn(&mut self.stream, left.min(self.timeout)) {
            Ok(count) => {
                self.moved = self.moved.saturating_add(count as u64);
                Ok(count)
            }
            Err(_) if self.left().is_zero() => Err(too_long()),
            // What the system calls a resource that is unavailable for a moment is a silence that was long enough.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let silence = format!("nothing came or went for {} s", self.timeout.as_secs_f64());
                Err(io::Error::new(io::ErrorKind::TimedOut, silence))
            }
            Err(error) => Err(error),
        }
    }
}

impl Read for Paced {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.some(|stream, left| {
            stream.set_read_timeout(Some(left))?;
            stream.read(into)
        })
    }
}

impl Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.some(|stream, _| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Asks, and reads the answer to its end. A longer one than `answer_bytes_max` is an error of the kind
/// [`io::ErrorKind::FileTooLarge`].
///
/// As HTTP/1.0, whose answers are never in pieces and end with the connection: CometBFT sends whatever is above two
/// kilobytes in pieces to those who speak 1.1.
fn converse(mut stream: impl Read + Write, ask: &Ask<'_>, answer_bytes_max: u64) -> io::Result<Answer> {
    let sent = send(&mut stream, ask);
    // Whoever refuses a body before all of it was read closes the connection, and has answered all the same.
    let mut bytes = Vec::new();
    let read = stream.take(answer_bytes_max.saturating_add(1)).read_to_end(&mut bytes);
    if bytes.len() as u64 > answer_bytes_max {
        let message = format!("the answer is longer than {answer_bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let answer = Answer::parse(bytes);
    match (sent, answer) {
        (Err(_), Some(answer)) => Ok(answer),
        (Err(error), None) => Err(error),
        (Ok(()), answer) => {
            read?;
            answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an answer of HTTP"))
        }
    }
}

/// Sends what is asked.
fn send(stream: &mut impl Write, ask: &Ask<'_>) -> io::Result<()> {
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
    stream.flush()
}

impl Answer {
    /// How long whoever answers so wants to be left alone.
    pub(crate) fn wait(&self) -> Option<Duration> {
        (self.status == 429).then(|| self.retry_after.unwrap_or_default().max(WAIT_MIN))
    }

    /// Why there is no better one, as the node says.
    pub(crate) fn refused(&self) -> Result<Refusal, JsonError> {
        let failed: Failed = strict_json::parse(&self.body)?;
        Ok(failed.error.refusal(self.wait()))
    }

    /// An answer as it came; none if that is none of HTTP.
    pub(crate) fn parse(mut head: Vec<u8>) -> Option<Self> {
        let end = head.windows(4).position(|window| window == b"\r\n\r\n")?;
        let body = head.split_off(end + 4);
        let head = String::from_utf8(head).ok()?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = lines.filter_map(|line| line.split_once(':'));
        let seconds = headers.find(|(name, _)| name.eq_ignore_ascii_case("retry-after"));
        let retry_after = seconds.and_then(|(_, seconds)| seconds.trim().parse().ok()).map(Duration::from_secs);
        Some(Self { status, retry_after, body })
    }
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
        Ok(Status { api: Some(self.url()), ..status })
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

    fn entries(
        &self,
        namespace: &Namespace,
        page: &Page,
        height: Option<Height>,
        prove: bool,
    ) -> Result<Entries, Refusal> {
        let parameters = [
            ("prefix_hex", Some(hex::encode(&page.prefix))),
            ("limit", Some(page.limit.to_string())),
            ("height", height.map(|height| height.to_string())),
            ("after_hex", page.after.as_ref().map(hex::encode)),
            ("prove", prove.then(|| "true".to_owned())),
        ];
        self.get(&query(format_args!("/v1/entries/{namespace}"), parameters))
    }

    fn lookup(&self, by: api::By, of: &str, page: &Page) -> Result<Entries, Refusal> {
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

    fn session(&self, id: &SessionId) -> Result<api::Session, Refusal> {
        self.get(&format!("/v1/sessions/{id}"))
    }

    fn sessions(&self, wanted: &api::SessionsWanted) -> Result<api::SessionList, Refusal> {
        let parameters = [
            ("limit", Some(wanted.limit.to_string())),
            ("of", wanted.of.map(|key| key.to_string())),
            ("below", wanted.below.clone()),
            ("after", wanted.after.clone()),
        ];
        self.get(&query("/v1/sessions", parameters))
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

    fn dry_run(&self, transaction: &[u8]) -> Result<DryRun, Refusal> {
        self.post("/v1/dry-run", transaction)
    }

    fn operation_proof(
        &self,
        bundle: &Hash,
        index: u32,
        at: Option<api::HookAt>,
    ) -> Result<api::OperationAnswer, Refusal> {
        let path = format!("/v1/bundles/{bundle}/operations/{index}");
        let (block, transaction) = match at {
            Some(api::HookAt::Block(block)) => (Some(block.to_string()), None),
            Some(api::HookAt::Transaction(id)) => (None, Some(id.to_string())),
            None => (None, None),
        };
        self.get(&query(path, [("block", block), ("transaction", transaction)]))
    }

    fn audit(&self, wanted: &api::AuditWanted) -> Result<api::Audit, Refusal> {
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

    fn hurry(&self, within: Duration) {
        // A command has one limit, which begins once.
        if let Some(by) = Instant::now().checked_add(within) {
            let _ = self.patient_until.set(by);
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::Remote;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::time::Duration;

    /// A node that gives these answers, one to a request without a body, and the last of them ever after.
    pub(crate) fn answering(answers: &'static [&'static str], timeout: Duration) -> Remote {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            let last = std::iter::repeat(answers.last().expect("an answer"));
            for (stream, answer) in listener.incoming().zip(answers.iter().chain(last)) {
                let mut stream = BufReader::new(stream.expect("a client"));
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|count| count > 2) {
                    line.clear();
                }
                stream.get_mut().write_all(answer.as_bytes()).expect("the client reads");
            }
        });
        Remote::at(address, timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::answering;
    use super::*;
    use crate::exit::Exit;
    use std::net::TcpListener;

    /// A node that refuses a body before it was read closes the connection. What it says is told, not the broken connection.
    #[test]
    fn an_answer_that_comes_before_all_was_sent_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let body = r#"{"error":{"code":"too_large","message":"bodies have at most 9 bytes"}}"#;
            // In one piece: the system throws away what it has not sent when it closes a connection on which bytes are unread.
            let answer = format!("HTTP/1.1 413 Payload Too Large\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).expect("the client is there");
        });
        let refused = Remote::at(address, TIMEOUT).submit(&vec![0; 16 << 20]).expect_err("too large");
        assert!(matches!(&refused, Refusal::Bad(message) if message == "bodies have at most 9 bytes"), "{refused:?}");
        served.join().expect("served");
    }

    /// What is told to wait is asked again after as long as was said.
    #[test]
    fn a_node_that_is_asked_too_often_is_asked_again_when_it_says() {
        let node = answering(
            &[
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n{\"error\":{\"code\":\"too_many\",\"message\":\"m\"}}",
                "HTTP/1.1 200 OK\r\n\r\n[]",
            ],
            TIMEOUT,
        );
        let started = Instant::now();
        assert!(node.bundles().expect("answered in the end").is_empty());
        assert!(started.elapsed() >= Duration::from_secs(1), "it did not wait");
    }

    /// Each failure keeps what the node said of it: the height that was asked for, the number of the rule, what to do.
    #[test]
    fn what_a_node_refuses_is_told_as_it_said_it() {
        let failure = |answer: &'static [&'static str]| {
            Failure::from(answering(answer, Duration::from_millis(300)).block(None).expect_err("refused"))
        };
        let told = failure(&["HTTP/1.1 404 Not Found\r\n\r\n{\"error\":{\"code\":\"not_found\",\"message\":\
            \"height 9999 is not kept: the lowest is 3, the highest 74\",\"lowest_height\":3,\"highest_height\":74}}"]);
        assert_eq!(told.exit, Exit::NotFound);
        assert_eq!(told.message, "height 9999 is not kept: the lowest is 3, the highest 74");
        let told =
            failure(&["HTTP/1.1 422 X\r\n\r\n{\"error\":{\"code\":\"refused\",\"message\":\"8: nonce 0 was used\"}}"]);
        assert_eq!((told.exit, told.message.as_str()), (Exit::Refused, "8: nonce 0 was used"));
        let told = failure(&[
            "HTTP/1.1 403 X\r\n\r\n{\"error\":{\"code\":\"forbidden\",\"message\":\"no\",\"hint\":\"add it\"}}",
        ]);
        assert_eq!((told.exit, told.hint.as_deref()), (Exit::Usage, Some("add it")));
        let told =
            failure(&["HTTP/1.1 429 X\r\nretry-after: 7\r\n\r\n{\"error\":{\"code\":\"too_many\",\"message\":\"m\"}}"]);
        assert_eq!((told.exit, told.hint.as_deref()), (Exit::Error, Some("ask again in 7 s")));
    }

    /// Chunks have no JSON, and their refusals do.
    #[test]
    fn why_a_chunk_is_not_given_is_told_as_of_anything_else() {
        let asked = |answer: &'static [&'static str]| {
            answering(answer, Duration::from_millis(300)).snapshot_chunk(Height(2), 0)
        };
        assert!(asked(&["HTTP/1.1 200 OK\r\n\r\n\x01{"]).is_ok_and(|chunk| chunk == b"\x01{"));
        let busy = asked(&["HTTP/1.1 503 X\r\n\r\n{\"error\":{\"code\":\"busy\",\"message\":\"m\"}}"]);
        assert!(matches!(&busy, Err(Refusal::Busy(said)) if said == "m"), "{busy:?}");
        let damaged = asked(&["HTTP/1.1 500 X\r\n\r\n{\"error\":{\"code\":\"damaged\",\"message\":\"m\"}}"]);
        assert!(matches!(damaged, Err(Refusal::Damaged(_))), "{damaged:?}");
        let denied = asked(&["HTTP/1.1 401 X\r\n\r\n{\"error\":{\"code\":\"unauthorized\",\"message\":\"m\"}}"]);
        assert!(matches!(denied, Err(Refusal::Forbidden { .. })), "{denied:?}");
        let none = asked(&["HTTP/1.1 404 X\r\n\r\n{\"error\":{\"code\":\"not_found\",\"message\":\"m\"}}"]);
        assert!(matches!(none, Err(Refusal::NotFound(_))), "{none:?}");
    }

    /// S-11: a server that sends a byte now and then keeps to every bound on a single read. It is given up all the same, and its
    /// connection closed.
    #[test]
    fn s11_a_server_that_drips_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let answer = b"HTTP/1.0 200 OK\r\n\r\n".iter().chain(std::iter::repeat(&b'x'));
            for byte in answer {
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let ask = Ask { host: "127.0.0.1", path: "/", body: None, token: None };
        let stream = TcpStream::connect(address).expect("it listens");
        let given_up = exchange(stream, Duration::from_millis(300), &ask, 1 << 30);
        assert!(given_up.is_err(), "{given_up:?}");
        served.join().expect("whoever drips finds nobody there");
    }

    /// What comes at a fair rate may take as long as it is long.
    #[test]
    fn bytes_put_off_the_end_of_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let hour = Duration::from_secs(3600);
        let mut paced = Paced::new(stream, hour).expect("a connection");
        let before = paced.left();
        paced.moved = BYTES_PER_SECOND_MIN * 1000;
        assert!(paced.left() > before.max(hour), "a thousand seconds more");
        paced.earns = false;
        assert!(paced.left() <= before);
        paced.by = Instant::now();
        assert!(paced.left().is_zero());
    }
}
