//! Questions to a CometBFT node over its RPC: plain HTTP, one request to a connection, bounded in time and size.
//!
//! An answer is a stranger's word, also that of the engine this node works for. What is to be trusted (a block's hash,
//! say) is asked of two nodes and compared, comes with signatures, or is checked against what this node computed itself.

use super::base64::base64;
use crate::api::{EngineStanding, Refusal};
use crate::authority::Authority;
use crate::client::{self, Ask, Body, exchange_by};
use crate::config::HttpAddress;
use crate::exit::causes;
use crate::strict_json;
use keelstone_codec::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};
use tendermint::Time;

/// How long connecting, and then each read, may take unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many times as long a whole answer may take: one that comes byte by byte ends too.
const ANSWER_TIMEOUTS: u32 = 3;
/// Bytes of an answer. The largest honest one is a commit of 10,000 signatures.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;
const BROADCAST: &str = "/broadcast_tx_sync";
/// What CometBFT (0.38 to 0.40) says of a transaction that its pool will never take.
const NEVER_TAKEN: [&str; 2] = ["Tx too large", "not allowed with `nop` mempool"];
/// The number of that reason (spec: TX-5).
const POOL_CODE: &str = "17";

/// The RPC of one node.
#[derive(Debug, Clone)]
pub(crate) struct Rpc {
    authority: String,
    timeout: Duration,
}

/// Why a node was of no help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RpcError {
    /// Whoever wrote the address has to act.
    #[error("{address:?} is no RPC address: {problem}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nobody answered: down, or not listening there.
    #[error("http://{authority} did not answer")]
    Unreachable {
        /// The address.
        authority: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its answer goes on and on.
    #[error("http://{authority}{path} answered more than {limit} bytes")]
    TooLarge {
        /// The address.
        authority: String,
        /// What was asked.
        path: String,
        /// How many are read.
        limit: u64,
    },
    /// It answered that it will not.
    #[error("http://{authority}{path} answered: {message}")]
    Refused {
        /// The address.
        authority: String,
        /// What was asked.
        path: String,
        /// What it said.
        message: String,
    },
    /// It answered something else than CometBFT would.
    #[error("http://{authority}{path} answered no JSON of CometBFT: {problem}")]
    Form {
        /// The address.
        authority: String,
        /// What was asked.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Its application does not take a transaction. Whoever sent it has to act.
    #[error("http://{authority} refused the transaction with code {code}: {log}")]
    Transaction {
        /// The address.
        authority: String,
        /// The number of the reason (spec: TX-5).
        code: u64,
        /// What the application said.
        log: String,
    },
}

impl From<RpcError> for Refusal {
    fn from(error: RpcError) -> Self {
        match error {
            RpcError::Transaction { code, log, .. } => Self::Refused { code: code.to_string(), message: log },
            RpcError::Refused { message, .. } if message.contains("mempool is full") => Self::Busy(message),
            // What it answers of its own accord it calls an internal error, whatever it is; sent again, it answers the same.
            // spec: TX-5
            RpcError::Refused { message, .. } if NEVER_TAKEN.iter().any(|why| message.contains(why)) => {
                let why = message.strip_prefix("Internal error").unwrap_or(&message).trim();
                Self::Refused { code: POOL_CODE.to_owned(), message: format!("CometBFT does not take it: {why}") }
            }
            RpcError::Unreachable { ref source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                Self::Failed(format!("CometBFT does not say whether it takes the transaction: {}", causes(&error)))
            }
            error => Self::Failed(causes(&error)),
        }
    }
}

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EngineStatus {
    /// The network's name.
    pub(crate) chain_id: String,
    /// The node's id.
    pub(crate) node_id: String,
    /// The version of CometBFT it says it is.
    pub(crate) version: String,
    /// The last block it has.
    pub(crate) height: u64,
    /// The first block it has.
    pub(crate) earliest_height: u64,
    /// Whether it is still catching up.
    pub(crate) catching_up: bool,
}

/// What a node says a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    /// The network's name in the block's header.
    pub(crate) chain_id: String,
    /// The height.
    pub(crate) height: u64,
    /// The block's hash, upper case.
    pub(crate) block_hash: String,
    /// The app hash in the header: the state before this block, lower case.
    pub(crate) app_hash: String,
    /// When it was agreed on, by its voters' clocks.
    pub(crate) time: Timestamp,
}

impl Rpc {
    /// The RPC at `http://HOST:PORT`, `tcp://HOST:PORT` or `HOST:PORT`.
    ///
    /// # Errors
    /// [`RpcError::Address`] if that is none of these.
    pub(crate) fn new(address: &str) -> Result<Self, RpcError> {
        let fail = |problem| RpcError::Address { address: address.to_owned(), problem };
        let (scheme, authority) = match address.split_once("://") {
            Some((scheme, _)) => (scheme, Authority::of_url(address).map(|(_, authority)| authority)),
            None => ("http", Authority::parse(address)),
        };
        match (scheme, authority) {
            ("http" | "tcp", Some(authority)) => Ok(Self { authority: authority.to_string(), timeout: TIMEOUT }),
            ("https", _) => Err(fail("https is not spoken here; ask the node itself, or through a tunnel")),
            _ => Err(fail("expected http://HOST:PORT")),
        }
    }

    /// The RPC at an address that was read already.
    pub(crate) fn at(address: &HttpAddress) -> Self {
        Self { authority: address.authority().to_string(), timeout: TIMEOUT }
    }

    /// The RPC of the engine this node works for, which may wait for this node before it answers.
    pub(crate) fn of_engine(address: &HttpAddress) -> Self {
        Self::at(address).timeout(client::TIMEOUT)
    }

    /// The same, with another limit on connecting and on each read.
    pub(crate) fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// What the node answers to a path: the `result` of its JSON.
    pub(crate) fn get(&self, path: &str) -> Result<Value, RpcError> {
        self.get_within(path, ANSWER_BYTES_MAX)
    }

    /// The same, of an answer with at most so many bytes.
    ///
    /// # Errors
    /// [`RpcError::TooLarge`] above it.
    pub(crate) fn get_within(&self, path: &str, bytes_max: u64) -> Result<Value, RpcError> {
        self.result(path, self.parsed(path, path, None, bytes_max)?)
    }

    /// What the node answers to `/commit` of each of these heights, in one exchange, which costs it far less than one for
    /// each. A height it does not have costs the others nothing.
    ///
    /// # Errors
    /// Of the exchange as a whole. CometBFT refuses more than ten heights unless it is configured otherwise.
    pub(crate) fn commits(&self, heights: &[u64]) -> Result<Vec<Result<Value, RpcError>>, RpcError> {
        let path = "/commit";
        let call = |height: &u64| {
            let params = json!({ "height": height.to_string() });
            json!({ "jsonrpc": "2.0", "id": height, "method": "commit", "params": params })
        };
        let calls: Vec<Value> = heights.iter().map(call).collect();
        let answers = match self.parsed(path, "/", Some(&Value::Array(calls).to_string()), ANSWER_BYTES_MAX)? {
            Value::Array(answers) => answers,
            // One answer stands alone, and so does the refusal of all.
            answer => vec![answer],
        };
        let mut of: BTreeMap<u64, Value> = BTreeMap::new();
        for answer in answers {
            match answer.get("id").and_then(Value::as_u64) {
                Some(id) => drop(of.insert(id, answer)),
                None => drop(self.result(path, answer)?),
            }
        }
        let missing = || Err(self.form(path, "no answer to one of the calls".to_owned()));
        Ok(heights
            .iter()
            .map(|height| of.remove(height).map_or_else(missing, |answer| self.result(path, answer)))
            .collect())
    }

    /// Asks for `path`, with a body if there is one; errors say `what` was asked.
    fn parsed(&self, what: &str, path: &str, body: Option<&str>, bytes_max: u64) -> Result<Value, RpcError> {
        let answer = self.exchange(path, body, bytes_max).map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge => {
                RpcError::TooLarge { authority: self.authority.clone(), path: what.to_owned(), limit: bytes_max }
            }
            _ => RpcError::Unreachable { authority: self.authority.clone(), source },
        })?;
        strict_json::parse(&answer).map_err(|error| self.form(what, error.to_string()))
    }

    /// The result in an answer.
    fn result(&self, what: &str, mut value: Value) -> Result<Value, RpcError> {
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            let said = |name| error.get(name).and_then(Value::as_str).unwrap_or_default();
            let message = format!("{} {}", said("message"), said("data")).trim().to_owned();
            return Err(RpcError::Refused { authority: self.authority.clone(), path: what.to_owned(), message });
        }
        match value.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(self.form(what, "neither a result nor an error".to_owned())),
        }
    }

    /// Where the node stands.
    pub(crate) fn status(&self) -> Result<EngineStatus, RpcError> {
        let path = "/status";
        let result = self.get(path)?;
        let text = |at| self.text(path, &result, at);
        Ok(EngineStatus {
            chain_id: text("/node_info/network")?,
            node_id: text("/node_info/id")?,
            version: text("/node_info/version")?,
            height: self.number(path, &result, "/sync_info/latest_block_height")?,
            earliest_height: self.number(path, &result, "/sync_info/earliest_block_height")?,
            catching_up: result.pointer("/sync_info/catching_up").and_then(Value::as_bool).unwrap_or(true),
        })
    }

    /// How many peers the node has.
    pub(crate) fn peers(&self) -> Result<u64, RpcError> {
        let path = "/net_info";
        let result = self.get(path)?;
        self.number(path, &result, "/n_peers")
    }

    /// The height that the highest of the node's peers makes, or has made last; 0 if none has said so.
    pub(crate) fn peers_height(&self) -> Result<u64, RpcError> {
        let path = "/dump_consensus_state";
        let result = self.get(path)?;
        let peers = result.get("peers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let height = |peer| self.number(path, peer, "/peer_state/round_state/height");
        peers.iter().try_fold(0, |highest, peer| Ok(height(peer)?.max(highest)))
    }

    /// The block of a height, as far as its commit tells.
    pub(crate) fn commit(&self, height: u64) -> Result<Commit, RpcError> {
        let path = format!("/commit?height={height}");
        let result = self.get(&path)?;
        let text = |at| self.text(&path, &result, at);
        let commit = Commit {
            chain_id: text("/signed_header/header/chain_id")?,
            height: self.number(&path, &result, "/signed_header/header/height")?,
            block_hash: text("/signed_header/commit/block_id/hash")?.to_uppercase(),
            app_hash: text("/signed_header/header/app_hash")?.to_lowercase(),
            time: self.time(&path, &result, "/signed_header/header/time")?,
        };
        let is_hash = commit.block_hash.len() == 64 && commit.block_hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if commit.height != height || !is_hash {
            return Err(self.form(&path, format!("height {} and hash {:?}", commit.height, commit.block_hash)));
        }
        Ok(commit)
    }

    /// The node's last block.
    pub(crate) fn height(&self) -> Result<u64, RpcError> {
        let path = "/status";
        self.number(path, &self.get(path)?, "/sync_info/latest_block_height")
    }

    /// Where the node stands, for people and programs.
    pub(crate) fn standing(&self) -> EngineStanding {
        let (rpc, status) = (format!("http://{}", self.authority), self.status());
        let (status, error) = match status {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(causes(&error))),
        };
        EngineStanding {
            rpc,
            error,
            height: status.as_ref().map(|status| status.height),
            earliest_height: status.as_ref().map(|status| status.earliest_height),
            catching_up: status.map(|status| status.catching_up),
        }
    }

    /// Hands a transaction to the node, which answers once its application has checked it. One that it has already is no
    /// error: what was asked for is done.
    ///
    /// # Errors
    /// [`RpcError::Transaction`] with what the application said, if it refused it.
    pub(crate) fn broadcast(&self, transaction: &[u8]) -> Result<(), RpcError> {
        let params = json!({ "tx": base64(transaction) });
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": params }).to_string();
        let answer = self.parsed(BROADCAST, "/", Some(&call), ANSWER_BYTES_MAX);
        let answer = match answer.and_then(|answer| self.result(BROADCAST, answer)) {
            Err(RpcError::Refused { message, .. }) if message.contains("tx already exists in cache") => return Ok(()),
            answer => answer?,
        };
        match answer.get("code").and_then(Value::as_u64) {
            Some(0) => Ok(()),
            Some(code) => Err(RpcError::Transaction {
                authority: self.authority.clone(),
                code,
                log: answer.get("log").and_then(Value::as_str).unwrap_or_default().to_owned(),
            }),
            None => Err(self.form(BROADCAST, "no code".to_owned())),
        }
    }

    fn form(&self, path: &str, problem: String) -> RpcError {
        RpcError::Form { authority: self.authority.clone(), path: path.to_owned(), problem }
    }

    fn text(&self, path: &str, value: &Value, at: &str) -> Result<String, RpcError> {
        let found = value.pointer(at).and_then(Value::as_str);
        found.map(str::to_owned).ok_or_else(|| self.form(path, format!("no text at {at}")))
    }

    /// CometBFT writes 64-bit numbers as texts.
    fn number(&self, path: &str, value: &Value, at: &str) -> Result<u64, RpcError> {
        let text = self.text(path, value, at)?;
        text.parse().map_err(|_| self.form(path, format!("{text:?} at {at} is no height")))
    }

    /// A time before 1970 is 0.
    fn time(&self, path: &str, value: &Value, at: &str) -> Result<Timestamp, RpcError> {
        let text = self.text(path, value, at)?;
        let time =
            Time::parse_from_rfc3339(&text).map_err(|_| self.form(path, format!("{text:?} at {at} is no time")))?;
        Ok(Timestamp(u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)))
    }

    /// Sends a request and reads the answer's body.
    fn exchange(&self, path: &str, body: Option<&str>, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.authority.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.timeout) {
                Ok(stream) => {
                    let body = body.map(|text| Body { kind: "application/json", bytes: text.as_bytes() });
                    let ask = Ask { host: &self.authority, path, body, token: None };
                    let by = Instant::now() + self.timeout * ANSWER_TIMEOUTS;
                    return exchange_by(stream, self.timeout, by, &ask, bytes_max).map(|answer| answer.body);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener};

    /// A node that answers one request with these bytes.
    fn node(answer: &'static str) -> (Rpc, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).expect("a request");
            stream
                .write_all(b"HTTP/1.0 200 OK\r\n\r\n")
                .and_then(|()| stream.write_all(answer.as_bytes()))
                .and_then(|()| stream.shutdown(Shutdown::Write))
                .expect("sent");
            // A connection that is closed with something unread in it takes the answer with it: the request comes in pieces.
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        (Rpc::new(&address).expect("an address"), served)
    }

    #[test]
    fn addresses_are_read_strictly() {
        for good in ["http://127.0.0.1:26657", "tcp://127.0.0.1:26657", "node-1.example:80", "[::1]:26657"] {
            assert!(Rpc::new(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1", "http://:1", "https://a:1", "ftp://a:1", "a:70000", "a b:1", "http://a:1/path"] {
            assert!(matches!(Rpc::new(bad), Err(RpcError::Address { .. })), "{bad}");
        }
    }

    #[test]
    fn what_a_stranger_answers_is_never_taken_for_a_commit() {
        let commit = |answer| {
            let (rpc, served) = node(answer);
            let result = rpc.commit(5);
            served.join().expect("served");
            result
        };
        for answer in [
            "",
            "{}",
            "[]",
            r#"{"result":{}}"#,
            r#"{"result":{"signed_header":{"header":{"chain_id":"c","height":"5","app_hash":"","time":"2026-01-01T00:00:00Z"},"commit":{"block_id":{"hash":"00"}}}}}"#,
            r#"{"result":{"signed_header":{"header":{"chain_id":"c","height":"5","app_hash":"","time":"today"},"commit":{"block_id":{"hash":"0000000000000000000000000000000000000000000000000000000000000000"}}}}}"#,
            r#"{"result":1,"result":2}"#,
        ] {
            assert!(matches!(commit(answer), Err(RpcError::Form { .. })), "{answer}");
        }
        let refused = commit(r#"{"error":{"code":-32603,"message":"Internal error","data":"height must be less"}}"#);
        assert!(refused.expect_err("an error").to_string().ends_with("Internal error height must be less"));
    }

    /// Answers belong to heights by their numbers, whatever their order; what is missing or refused is so alone.
    #[test]
    fn answers_to_several_calls_belong_to_their_heights() {
        let commits = |answer| {
            let (rpc, served) = node(answer);
            let result = rpc.commits(&[7, 8, 9]);
            served.join().expect("served");
            result.map(|all| all.into_iter().map(|one| one.ok().and_then(|one| one.as_u64())).collect::<Vec<_>>())
        };
        let several = r#"[{"id":9,"result":99},{"id":8,"error":{"message":"no such height"}},{"id":7,"result":77}]"#;
        assert_eq!(commits(several).expect("answers"), [Some(77), None, Some(99)]);
        assert_eq!(commits(r#"{"id":8,"result":88}"#).expect("answers"), [None, Some(88), None]);
        assert_eq!(commits("[]").expect("answers"), [None; 3]);
        let refused = commits(r#"{"id":-1,"error":{"message":"batch request exceeds maximum"}}"#).expect_err("all");
        assert!(refused.to_string().ends_with("exceeds maximum"), "{refused}");
        for none in [r#"[{"result":1}]"#, "[1]", "1", "{}"] {
            assert!(!commits(none).is_ok_and(|all| all.iter().any(Option::is_some)), "{none}");
        }
    }

    /// What a pool has already is done, a full one is asked again, and a refusal keeps its number.
    #[test]
    fn what_became_of_a_transaction_is_told_apart() {
        let broadcast = |answer| {
            let (rpc, served) = node(answer);
            let result = rpc.broadcast(&[1, 2, 3]);
            served.join().expect("served");
            result
        };
        let error = |data| format!(r#"{{"error":{{"code":-32603,"message":"Internal error","data":"{data}"}}}}"#);
        let known: &'static str = error("tx already exists in cache").leak();
        assert!(broadcast(known).is_ok());
        assert!(broadcast(r#"{"error":null,"result":{"code":0,"log":""}}"#).is_ok());
        let full = broadcast(error("mempool is full: 5000 txs").leak()).expect_err("full");
        assert!(matches!(Refusal::from(full), Refusal::Busy(_)));
        for (data, why) in [
            ("Tx too large. Max size is 300, but got 445", "Tx too large. Max size is 300, but got 445"),
            ("not allowed with `nop` mempool", "not allowed with `nop` mempool"),
        ] {
            let never = broadcast(error(data).leak()).expect_err(data);
            let Refusal::Refused { code, message } = Refusal::from(never) else { panic!("a refusal") };
            assert_eq!((code.as_str(), message), ("17", format!("CometBFT does not take it: {why}")));
        }
        let refused = broadcast(r#"{"result":{"code":8,"log":"the nonce was used"}}"#).expect_err("refused");
        let Refusal::Refused { code, message } = Refusal::from(refused) else { panic!("a refusal") };
        assert_eq!((code.as_str(), message.as_str()), ("8", "the nonce was used"));
        assert!(matches!(broadcast(r#"{"result":{}}"#), Err(RpcError::Form { .. })));
    }

    /// An engine that hangs takes connections and says nothing: that is called what it is, and a transaction may be with it.
    #[test]
    fn an_engine_that_hangs_is_said_to_say_nothing() {
        let hangs = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = hangs.local_addr().expect("bound").to_string();
        let rpc = Rpc::new(&address).expect("an address").timeout(Duration::from_millis(50));
        let said = rpc.standing().error.expect("no answer");
        assert!(said.ends_with("did not answer: nothing came or went for 0.05 s"), "{said}");
        let Refusal::Failed(said) = Refusal::from(rpc.broadcast(&[1]).expect_err("no answer")) else {
            panic!("failed")
        };
        assert!(said.starts_with("CometBFT does not say whether it takes the transaction: http://"), "{said}");
    }

    /// What an engine's peers are at, as CometBFT 0.40 writes it.
    #[test]
    fn the_highest_peer_is_found_and_nobody_is_at_nothing() {
        let height = |answer| {
            let (rpc, served) = node(answer);
            let found = rpc.peers_height();
            served.join().expect("served");
            found
        };
        let two = r#"{"result":{"round_state":{},"peers":[{"node_address":"a@b:1","peer_state":{"round_state":{"height":"11","round":0}}},{"node_address":"c@d:1","peer_state":{"round_state":{"height":"300","round":-1}}}]}}"#;
        assert_eq!(height(two).expect("an answer"), 300);
        assert_eq!(height(r#"{"result":{"round_state":{},"peers":[]}}"#).expect("an answer"), 0);
        assert!(matches!(height(r#"{"result":{"peers":[{}]}}"#), Err(RpcError::Form { .. })));
    }

    #[test]
    fn a_commit_of_another_height_is_refused() {
        let (rpc, served) = node(
            r#"{"result":{"signed_header":{"header":{"chain_id":"c","height":"6","app_hash":"AB","time":"2026-01-01T00:00:00Z"},"commit":{"block_id":{"hash":"0000000000000000000000000000000000000000000000000000000000000000"}}}}}"#,
        );
        assert!(matches!(rpc.commit(5), Err(RpcError::Form { .. })));
        served.join().expect("served");
    }
}
