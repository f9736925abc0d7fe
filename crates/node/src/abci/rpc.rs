//! The engine's RPC, as far as it is needed: JSON-RPC over HTTP, on this machine or one the operator named.
//!
//! One connection to a request, with a bound on time and on the size of an answer. Nothing that comes back is believed
//! without a proof of its own.

use crate::api::{EngineStanding, Refusal};
use crate::client::{Body, TIMEOUT, exchange};
use crate::config::HttpAddress;
use crate::strict_json;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::TcpStream;

/// Bytes of an answer. The largest honest one is a commit of 10,000 signatures.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// The engine's RPC.
#[derive(Debug, Clone)]
pub(crate) struct Rpc {
    address: HttpAddress,
}

/// Why the engine's RPC did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RpcError {
    /// It did not answer, or not as such an RPC does.
    #[error("the engine's RPC at {address} did not answer: {what}")]
    Unreachable {
        /// Where.
        address: HttpAddress,
        /// Why.
        what: String,
    },
    /// It answered no.
    #[error("the engine answered: {0}")]
    Refused(String),
}

/// What the engine says of a transaction it was given.
#[derive(Debug, Deserialize)]
struct Broadcast {
    code: u32,
    #[serde(default)]
    log: String,
}

impl Rpc {
    pub(crate) fn new(address: HttpAddress) -> Self {
        Self { address }
    }

    /// Calls a method.
    pub(crate) fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let unreachable = |what: String| RpcError::Unreachable { address: self.address.clone(), what };
        let host = format!("{}:{}", self.address.host(), self.address.port());
        let body = Body { kind: "application/json", bytes: body.as_bytes() };
        let address = self.address.resolve().map_err(|error| unreachable(error.to_string()))?;
        let (status, answer) = TcpStream::connect_timeout(&address, TIMEOUT)
            .and_then(|stream| exchange(stream, TIMEOUT, &host, "/", Some(body), ANSWER_BYTES_MAX))
            .map_err(|error| unreachable(error.to_string()))?;
        let mut answer: Value = strict_json::parse(&answer)
            .map_err(|error| unreachable(format!("status {status}, and no JSON: {error}")))?;
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            let text = |name| error.get(name).and_then(Value::as_str).unwrap_or_default();
            return Err(RpcError::Refused(format!("{} {}", text("message"), text("data"))));
        }
        match answer.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(unreachable(format!("status {status}, without a result"))),
        }
    }

    /// The engine's last block.
    pub(crate) fn height(&self) -> Result<u64, RpcError> {
        number(&self.sync_info()?, "latest_block_height").ok_or_else(|| {
            let what = "its status names no height".to_owned();
            RpcError::Unreachable { address: self.address.clone(), what }
        })
    }

    /// Where the engine stands, for people and programs.
    pub(crate) fn standing(&self) -> EngineStanding {
        let (rpc, info) = (self.address.to_string(), self.sync_info());
        match info {
            Ok(info) => EngineStanding {
                rpc,
                error: None,
                height: number(&info, "latest_block_height"),
                earliest_height: number(&info, "earliest_block_height"),
                catching_up: info.get("catching_up").and_then(Value::as_bool),
            },
            Err(error) => EngineStanding {
                rpc,
                error: Some(error.to_string()),
                height: None,
                earliest_height: None,
                catching_up: None,
            },
        }
    }

    fn sync_info(&self) -> Result<Value, RpcError> {
        Ok(self.call("status", json!({}))?.get_mut("sync_info").map(Value::take).unwrap_or_default())
    }

    /// Hands a transaction to the engine's pool.
    pub(crate) fn broadcast(&self, transaction: &[u8]) -> Result<(), Refusal> {
        let answer = match self.call("broadcast_tx_sync", json!({ "tx": base64(transaction) })) {
            Ok(answer) => answer,
            // It has the transaction, so what was asked for is done.
            Err(RpcError::Refused(message)) if message.contains("tx already exists in cache") => return Ok(()),
            Err(RpcError::Refused(message)) if message.contains("mempool is full") => {
                return Err(Refusal::Busy(message));
            }
            Err(error) => return Err(Refusal::Failed(error.to_string())),
        };
        let answer: Broadcast = serde_json::from_value(answer)
            .map_err(|error| Refusal::Failed(format!("the engine's answer to a transaction: {error}")))?;
        match answer.code {
            0 => Ok(()),
            code => Err(Refusal::Refused { code: code.to_string(), message: answer.log }),
        }
    }
}

/// A number, which the RPC writes as text.
fn number(object: &Value, name: &str) -> Option<u64> {
    object.get(name)?.as_str()?.parse().ok()
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes as the RPC writes them.
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// Bytes from what [`base64`] writes; nothing else is taken.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0u32;
        for digit in four {
            let value = DIGITS.iter().position(|known| known == digit)?;
            bits = bits << 6 | u32::try_from(value).ok()?;
        }
        let bytes = (bits << (6 * (4 - four.len()))).to_be_bytes();
        out.extend_from_slice(&bytes[1..four.len()]);
    }
    (base64(&out) == text).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
        }
        for text in ["Z", "Zg", "Zg=", "Zh==", "Zm9=", "Zg==Zg==", "====", "Z===", "Zm9v\n", "Zm-v"] {
            assert_eq!(from_base64(text), None, "{text:?}");
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
