//! What the ledger promises, as claims, one module for each part of `spec/ledger.md`.

mod chain;
mod history;
mod tools;
mod xian;
