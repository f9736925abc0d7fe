//! What execution promises, as claims. Rules: `spec/chain.md`.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod ahead;
mod async_bundles;
mod attempts;
mod bundles;
mod chain;
mod collections;
mod common;
mod compile;
mod hooks;
mod hostile;
mod index;
mod layers;
mod macros;
mod registry;
mod sessions;
mod witness;
