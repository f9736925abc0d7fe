//! Keelstone ledger.
#![forbid(unsafe_code)]

mod block;
mod chain;
mod check;
mod genesis;
mod json;
mod keys;
mod ledger;
mod mempool;
mod merkle;
pub mod modules;
mod nonces;
mod replay;
mod transaction;
mod transition;
pub mod xian;

pub use block::{
    Block, BlockError, BlockRecord, Executed, Failure, OperationReceipt, REASON_BYTES_MAX, RESULT_BYTES_MAX, Receipt,
    Refused, Verdict, execute,
};
pub use check::Refusal;
pub use chain::{BLOCKS, CHAIN, Chain, ChainFacts, ChainLimits, SCHEMA};
pub use genesis::{FirstState, Genesis, GenesisError};
pub use json::{JSON_DEPTH_MAX, Json, JsonError, JsonFault, Number};
pub use keys::{KeyError, SecretKey, Signature, SignatureError, check_key, verify, verify_batch};
pub use keelstone_execution::PublicKey;
pub use ledger::{Committed, Header, Ledger, LedgerError, Located, Pending, PoolStatus};
pub use mempool::{Mempool, PoolError, PoolLimits};
pub use merkle::{LIST_COUNT_MAX, ListProof, list_root};
pub use nonces::{NONCES, next_nonce, nonce_place};
pub use replay::{ReplayError, Replayed};
pub use transition::{TransitionError, TransitionProof, WITNESS_BYTES_MAX, verify_transition};
pub use transaction::{SignedTransaction, Transaction, TxId};
