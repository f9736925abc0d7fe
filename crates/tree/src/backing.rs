//! Where pages and values lie when they are not in memory, in the words of whoever stores them.

use crate::ReadError;
use keelstone_codec::{Bytes, Decode, DecodeError, Encode, Reader, Value};

/// Where a value or a page lies: eight bytes that mean something to the store only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place(pub u64);

/// Where an encoded page lies: eight bytes that mean something to the store only, and its length in bytes. Pages are
/// asked for by place, never by hash: two equal pages are two (spec: TREE-14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageAt {
    /// The place.
    pub place: u64,
    /// Length of the encoding.
    pub len: u32,
}

/// Reads what is not in memory, by its place and never by its hash alone (spec: TREE-14). What it returns is not trusted:
/// the tree checks pages and values by their hashes.
pub trait Backing: Send + Sync {
    /// The bytes of a page, exactly `at.len` of them.
    ///
    /// # Errors
    /// [`ReadError`] if they cannot be read.
    fn page(&self, at: PageAt) -> Result<Bytes, ReadError>;

    /// A value of `len` bytes.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be read.
    fn value(&self, at: Place, len: u32) -> Result<Value, ReadError>;

    /// Many values, each of the length beside its place, in the order in which they are asked for. They are not asked for
    /// again soon, so they are not worth a place in a cache.
    ///
    /// # Errors
    /// [`ReadError`] if any of them cannot be read.
    fn values(&self, wanted: &[(Place, u32)]) -> Result<Vec<Value>, ReadError> {
        wanted.iter().map(|(at, len)| self.value(*at, *len)).collect()
    }
}

impl Encode for Place {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl Decode for Place {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(u64::decode(input)?))
    }
}
impl Encode for PageAt {
    fn encode(&self, out: &mut Vec<u8>) {
        self.place.encode(out);
        self.len.encode(out);
    }
}
impl Decode for PageAt {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { place: u64::decode(input)?, len: u32::decode(input)? })
    }
}
