//! Signed transactions, blocks, history, and the modules every chain has.
//!
//! A [`Ledger`] is a chain over a store: it takes transactions in, makes or runs blocks, commits them, and answers for
//! every height what happened there. It has no clock, no thread and no socket. Everything a block does is a pure
//! function of the state before it ([`execute`]), so that a replay, another node, or a verifier with nothing but a
//! witness ([`verify_transition`]) comes to the same bytes.
//!
//! | to | see |
//! | --- | --- |
//! | run a chain | [`Genesis`], [`Ledger::create`], [`Ledger::submit`], [`Ledger::produce`] |
//! | run one under another engine | [`Ledger::propose`], [`Ledger::judge`], [`Ledger::run`], [`Ledger::commit`] |
//! | keep up with one that others make | [`Ledger::take_diff`], [`Ledger::take_block`] |
//! | ask what happened | [`Ledger::block`], [`Ledger::transaction`], [`Ledger::list_proofs`], [`Ledger::on_commit`] |
//! | check it | [`Ledger::replay`], [`Ledger::transition`], [`verify_transition`], [`Ledger::verify_audit`] |
//! | prove one operation from a root | [`Ledger::operation_proof`], [`OperationProof`] |
//! | put on record what a node does by itself | [`NodeLog`] |
//! | go back in it | [`Ledger::key_history`], [`Ledger::rebuild`] |
//! | know what a bundle will come to, with no store, and prove it | [`Ledger::witness`], [`foresee`], [`BundleProof`] |
//! | sign | [`SecretKey`], [`Transaction::sign`], [`Attestation::sign`] |
//! | take over a network of Xian's software | [`Genesis::import_xian`], [`xian::export`], [`modules::contracts`] |
//!
//! Rules: `spec/ledger.md`. Vectors: `spec/vectors/ledger.json`.
#![forbid(unsafe_code)]

mod attestation;
mod audit;
mod block;
mod bodies;
mod chain;
mod check;
mod foresight;
mod genesis;
#[doc(hidden)]
pub mod hostile;
mod inherit;
mod json;
mod key_history;
mod keys;
mod ledger;
mod limits;
mod mempool;
pub mod modules;
mod nonces;
mod operation_proof;
mod packed;
mod parallel;
mod rebuild;
mod replay;
mod run;
mod taken;
mod transaction;
mod transition;
mod validators;
mod vouched;
pub mod xian;

pub use attestation::{Attestation, SignedAttestation};
pub use audit::{
    AUDIT, AUDIT_RECORDS_MAX, Appended, AuditBlock, AuditEvent, AuditFault, AuditLog, AuditOperation, AuditProof,
    AuditProofError, AuditRecord, AuditVerdict, AuditWalk, BlockAudit, Checkpoint, KnownOfHeight, LoggedRecord,
    NODE_SETTINGS_BYTES_MAX, NODE_TEXT_BYTES_MAX, NODE_WHO_BYTES_MAX, NodeAudit, NodeCheckpoint, NodeEvent, NodeLog,
    NodeLogError, NodeLogLimits, NodeLogState, NodeRecord, NodeStep, NodeVerdict, NodeWalk, SignedCheckpoint,
    SignedNodeRecord, Standing, cut, log_place, read_log,
};
pub use block::{Block, BlockRecord, Continuation, OperationReceipt, Progress, REASON_BYTES_MAX, Receipt, Verdict};
pub use bodies::Bodies;
pub use chain::{BLOCKS, CHAIN, Chain, ChainFacts, HEIGHTS_MAX, SCHEMA, Unfit, check_fits};
pub use check::Refusal;
pub use foresight::{BundleProof, BundleProofError, Foreseen, ForesightError, Setting, Witness, foresee};
pub use genesis::{FirstState, Genesis, GenesisError, KEYS_MAX as GENESIS_KEYS_MAX};
pub use inherit::{InheritError, Inherited, Inheriting, Put};
pub use json::{JSON_DEPTH_MAX, Json, JsonError, JsonFault, Number};
pub use keelstone_execution::{
    Bundle, Failure, LIST_COUNT_MAX, ListProof, Mode, Operation, PublicKey, RESULT_BYTES_MAX, list_root,
};
pub use key_history::{ChangedBy, KEY_HISTORY_HEIGHTS_MAX, KeyChange, KeyHistory};
pub use keys::{KeyError, SecretKey, Signature, SignatureError, check_key, verify, verify_batch};
pub use ledger::{Committed, Header, Ledger, LedgerError, Located, Pending, PoolStatus, ProposalError};
pub use limits::{BLOCK_BYTES_MAX, BUNDLE_BLOCKS_MAX, ChainLimits, LimitsError, SNAPSHOT_CHUNK_BYTES};
pub use mempool::{Mempool, PoolError, PoolLimits};
pub use nonces::{NONCES, next_nonce, nonce_place};
pub use operation_proof::{OperationProof, OperationProofError, Together};
pub use parallel::Beforehand;
pub use rebuild::{RebuildError, Rebuilt, Until};
pub use replay::{ReplayError, Replayed};
pub use run::{BlockError, Executed, Refused, execute};
pub use taken::{Certified, TakeError};
pub use transaction::{SignedTransaction, Transaction, TxId};
pub use transition::{TransitionError, TransitionProof, WITNESS_BYTES_MAX, verify_transition, witness};
pub use validators::{POWER_MAX, VALIDATORS_MAX, Validator, Validators, ValidatorsError};
