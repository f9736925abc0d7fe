//! What execution promises, as claims.

mod bundles;
mod chain;
mod collections;
mod common;
mod hostile;
mod index;
mod layers;
mod macros;
mod registry;
mod sessions;
mod witness;
