//! What the ledger promises, as claims, one module for each part of `spec/ledger.md`.

mod chain;
mod genesis;
mod history;
mod hostile;
mod modules;
mod pool;
mod signatures;
mod tools;
mod xian;
