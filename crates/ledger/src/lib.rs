//! Keelstone ledger.
#![forbid(unsafe_code)]

mod json;
mod keys;
pub mod xian;

pub use json::{JSON_DEPTH_MAX, Json, JsonError, JsonFault, Number};
pub use keys::{KeyError, PublicKey, SecretKey, Signature, SignatureError, verify_batch};
