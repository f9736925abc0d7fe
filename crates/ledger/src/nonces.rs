//! The nonces of accounts: which number an account's next transaction must carry.
//!
//! An account is named by its public key in lower-case hexadecimal, as Xian names it, so an imported account counts on
//! from where its network left it. The namespace is written by the ledger alone, never by a transition.
//!
//! Layout: `spec/ledger.md`, TX-6.

use crate::json::{Json, Number};
use keelstone_codec::{Decode, Encode, Key, Namespace, Value};
use keelstone_execution::PublicKey;
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Read, ReadError};

/// The namespace of nonces.
pub const NONCES: &str = "nonces";

/// What stands under an account's name.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub(crate) enum NonceRecord {
    /// The nonce the next transaction must have. An export says one less: the last one used.
    Next(u64),
    /// Something an imported document said that is no such number. The account cannot act.
    Kept(Json),
}

impl NonceRecord {
    /// What an imported last nonce becomes.
    pub(crate) fn imported(last: Json) -> Self {
        match next_after(&last) {
            // "-0" is not parsed as a u64, so what is shown again has the same text.
            Some(next) => Self::Next(next),
            None => Self::Kept(last),
        }
    }

    /// The last nonce used, as an export says it.
    pub(crate) fn exported(self) -> Json {
        match self {
            Self::Next(next) => Json::Number(Number::from(next.saturating_sub(1))),
            Self::Kept(kept) => kept,
        }
    }
}

/// The nonce that follows the last one as a document says it; none for what is no integer from 0 to 2^64 - 2.
pub(crate) fn next_after(last: &Json) -> Option<u64> {
    match last {
        Json::Number(text) => text.as_str().parse::<u64>().ok()?.checked_add(1),
        _ => None,
    }
}

/// The nonce an account's next transaction must carry; none if the account cannot act at all.
///
/// # Errors
/// [`ReadError`]; a record that does not decode is damage.
// spec: TX-6
pub fn next_nonce(state: &dyn Read, account: &PublicKey) -> Result<Option<u64>, ReadError> {
    let (namespace, key) = nonce_place(account);
    let Some(value) = state.get(&namespace, &key)? else { return Ok(Some(0)) };
    match NonceRecord::from_bytes(&value) {
        Ok(NonceRecord::Next(next)) => Ok(Some(next)),
        Ok(NonceRecord::Kept(_)) => Ok(None),
        Err(error) => Err(ReadError::damaged(format!("the nonce of {account} does not decode: {error}"))),
    }
}

/// Where an account's nonce stands.
#[must_use]
pub fn nonce_place(account: &PublicKey) -> (Namespace, Key) {
    let namespace = Namespace::new(NONCES).expect("a constant");
    (namespace, Key::new(account.to_string().into_bytes()).expect("64 digits"))
}

/// The value that says what an account's next nonce is.
pub(crate) fn record(next: u64) -> Value {
    Value::new(NonceRecord::Next(next).to_bytes()).expect("a small record")
}
