//! What the ledger promises, as claims, one module for each part of `spec/ledger.md`.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod async_bundles;
mod audit;
mod chain;
mod conflict;
mod determinism;
mod foresight;
mod genesis;
mod history;
mod hooks;
mod hostile;
mod limits;
mod modules;
mod node_log;
mod operation_proof;
mod parallel;
mod pool;
mod recovery;
mod sessions;
mod signatures;
mod tools;
mod transaction_hooks;
mod validators;
mod vectors;
mod walk;
mod world;
mod xian;
