//! What the codec promises, from outside. Rules: `spec/codec.md`.
#![forbid(unsafe_code)]

mod json;
