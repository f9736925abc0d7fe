//! What the codec promises, from outside. Rules: `spec/codec.md`.
#![forbid(unsafe_code)]

mod canonical;
mod fixed;
mod json;
mod keys;
mod limits;
mod vectors;
