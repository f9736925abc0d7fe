//! Keelstone tree.
#![forbid(unsafe_code)]

pub mod reference;
