//! Canonical bytes with limits, hashes, domain tags and the small types every crate shares.
//!
//! Everything that is hashed, signed or stored in Keelstone goes through [`Encode`] and [`Decode`]. One value has
//! one encoding; decoding refuses every other one, refuses trailing bytes, and never reserves memory on the word of
//! the input. Types whose bytes could differ between machines (floats, `usize`, hash maps) do not implement the
//! traits, so state that holds them does not compile.
//!
//! Nothing here does I/O. Every byte handed to a decoder is taken to come from an adversary.
//!
//! Layout and rules: `spec/codec.md`, all of CODEC. Vectors: `spec/vectors/codec.json`.
#![forbid(unsafe_code)]

mod bounded;
mod bytes;
mod fixed;
mod hash;
mod hexadecimal;
mod json;
mod ordered;
mod random;
mod shape;
mod types;

pub use bounded::{Blob, BoundedList, BoundedSet, Text, TooMany};
pub use bytes::{DEPTH_MAX, Decode, DecodeError, Encode, LIST_MAX, Reader, put_length, put_varint};
pub use fixed::Fixed;
pub use hash::{Hash, Tag, TaggedHasher, tagged};
pub use hexadecimal::{NotHex, unhex, unhex_into};
pub use ordered::{KeyEnd, KeyReader, OrderedKey};
pub use random::splitmix64;
pub use shape::{Describe, Shape, Variant};
pub use types::{
    CHAIN_ID_LEN_MAX, ChainId, Height, KEY_LEN_MAX, Key, NAMESPACE_LEN_MAX, Namespace, Root, StateHash, Timestamp,
    TypeError, VALUE_LEN_MAX, Value,
};

/// The value bytes type of the whole engine, re-exported so that callers need not name the crate behind it.
pub use ::bytes::Bytes;

/// What the macros name in a crate that has this one and not the facade. No part of the public surface.
#[doc(hidden)]
pub mod __private {
    pub use crate::{Decode, DecodeError, Describe, Encode, KeyEnd, KeyReader, OrderedKey, Reader, Shape, Variant};
}
