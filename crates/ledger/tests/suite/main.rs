//! What the ledger promises, as claims, one module for each part of `spec/ledger.md`.

mod chain;
mod history;
mod hostile;
mod signatures;
mod tools;
mod xian;
