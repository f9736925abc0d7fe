//! The nouns every crate shares, each with its own type so that a height cannot be read as a length.

use crate::{Bytes, Decode, DecodeError, Encode, Hash, Reader};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest key in bytes (spec: TREE-1).
pub const KEY_LEN_MAX: usize = 255;
/// Longest namespace name in bytes (spec: TREE-1).
pub const NAMESPACE_LEN_MAX: usize = 32;
/// Longest value in bytes: 8 MiB (spec: TREE-1).
pub const VALUE_LEN_MAX: usize = 8 << 20;
/// Longest chain id in bytes: CometBFT allows 50 (spec: CODEC-8).
pub const CHAIN_ID_LEN_MAX: usize = 50;

/// Why bytes are not a key, a value, a name. The caller broke the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TypeError {
    /// A key without bytes.
    #[error("a key has at least one byte")]
    EmptyKey,
    /// A key above [`KEY_LEN_MAX`].
    #[error("a key has at most {KEY_LEN_MAX} bytes, this one has {found}")]
    KeyTooLong {
        /// Its length.
        found: usize,
    },
    /// A value without bytes: it could not be told from absence in an ICS-23 proof (spec: TREE-1).
    #[error("a value has at least one byte; delete the key to make it absent")]
    EmptyValue,
    /// A value above [`VALUE_LEN_MAX`].
    #[error("a value has at most {VALUE_LEN_MAX} bytes, this one has {found}")]
    ValueTooLong {
        /// Its length.
        found: usize,
    },
    /// A namespace name that is not 1 to 32 of `[a-z0-9_.-]`.
    #[error("a namespace is 1 to {NAMESPACE_LEN_MAX} of a-z, 0-9, '_', '.' and '-'")]
    Namespace,
    /// A chain id that is not 1 to 50 of `[A-Za-z0-9_.-]`.
    #[error("a chain id is 1 to {CHAIN_ID_LEN_MAX} of A-Z, a-z, 0-9, '_', '.' and '-'")]
    ChainId,
}

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub Hash);

        impl $name {
            /// Reads 64 hexadecimal digits.
            ///
            /// # Errors
            /// [`DecodeError::Invalid`] for anything else.
            pub fn from_hex(text: &str) -> Result<Self, DecodeError> {
                Hash::from_hex(text).map(Self)
            }
            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }
        }
        impl FromStr for $name {
            type Err = DecodeError;
            fn from_str(text: &str) -> Result<Self, DecodeError> {
                Self::from_hex(text)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }
        impl Decode for $name {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self(Hash::decode(input)?))
            }
        }
    };
}
hash_type! {
    /// The Merkle commitment to the whole state at a height.
    Root
}
hash_type! {
    /// One link of the execution hash chain. Never a root.
    StateHash
}

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        pub struct $name(pub u64);
        /// As it is shown: digits alone, the first of them no zero unless it is the only one.
        impl FromStr for $name {
            type Err = DecodeError;
            fn from_str(text: &str) -> Result<Self, DecodeError> {
                let one_form = text == "0" || text.starts_with(|first| matches!(first, '1'..='9'));
                let read = text.parse().ok().filter(|_| one_form);
                read.map(Self).ok_or(DecodeError::Invalid { what: concat!(stringify!($name), ", which is digits alone") })
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }
        impl Decode for $name {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self(u64::decode(input)?))
            }
        }
    };
}
number_type! {
    /// A block height. Genesis is the height before the first block.
    Height
}
number_type! {
    /// Milliseconds since 1970-01-01 UTC. It enters state only from a block, never from a clock.
    Timestamp
}

impl Height {
    /// The height after this one.
    ///
    /// # Panics
    /// At `u64::MAX`, which no chain reaches.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.0.checked_add(1) {
            Some(next) => Self(next),
            None => panic!("a chain has fewer than 2^64 blocks"),
        }
    }

    /// The height before this one, none before zero.
    #[must_use]
    pub const fn prev(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(prev) => Some(Self(prev)),
            None => None,
        }
    }
}

/// The raw bytes of a key inside a namespace: 1 to 255 bytes, ordered bytewise (spec: TREE-1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Checks and takes over key bytes.
    ///
    /// # Errors
    /// [`TypeError::EmptyKey`], [`TypeError::KeyTooLong`].
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Self, TypeError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(TypeError::EmptyKey),
            1..=KEY_LEN_MAX => Ok(Self(bytes)),
            found => Err(TypeError::KeyTooLong { found }),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}
impl std::ops::Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}
impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0.escape_ascii())
    }
}
impl Encode for Key {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.len().try_into().map(|len: u8| out.push(len)).expect("a key has at most 255 bytes");
        out.extend_from_slice(&self.0);
    }
}
impl Decode for Key {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = usize::from(input.byte()?);
        Self::new(input.take(len)?).map_err(|_| DecodeError::Invalid { what: "empty key" })
    }
}

/// The bytes stored under a key: 1 byte to 8 MiB, never empty (spec: TREE-1). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Bytes);

impl Value {
    /// Checks and takes over value bytes.
    ///
    /// # Errors
    /// [`TypeError::EmptyValue`], [`TypeError::ValueTooLong`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, TypeError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(TypeError::EmptyValue),
            1..=VALUE_LEN_MAX => Ok(Self(bytes)),
            found => Err(TypeError::ValueTooLong { found }),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The shared buffer behind the value.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}
impl std::ops::Deref for Value {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(64)];
        write!(f, "Value({} bytes: {})", self.0.len(), shown.escape_ascii())
    }
}
impl Encode for Value {
    fn encode(&self, out: &mut Vec<u8>) {
        crate::bytes::put_length(out, self.0.len());
        out.extend_from_slice(&self.0);
    }
}
impl Decode for Value {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = input.bytes("value", VALUE_LEN_MAX)?;
        Self::new(Bytes::copy_from_slice(bytes)).map_err(|_| DecodeError::Invalid { what: "empty value" })
    }
}

/// The name of a region of the state: 1 to 32 of `[a-z0-9_.-]` (spec: TREE-1, CODEC-8). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Checks a name.
    ///
    /// # Errors
    /// [`TypeError::Namespace`].
    pub fn new(name: &str) -> Result<Self, TypeError> {
        let fits = (1..=NAMESPACE_LEN_MAX).contains(&name.len());
        let plain = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'));
        if fits && plain { Ok(Self(name.into())) } else { Err(TypeError::Namespace) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name's bytes, which are the key of the namespace in the state tree.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}
impl Borrow<str> for Namespace {
    fn borrow(&self) -> &str {
        &self.0
    }
}
impl FromStr for Namespace {
    type Err = TypeError;
    fn from_str(name: &str) -> Result<Self, TypeError> {
        Self::new(name)
    }
}
impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({})", self.0)
    }
}
impl Encode for Namespace {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.len().try_into().map(|len: u8| out.push(len)).expect("a name has at most 32 bytes");
        out.extend_from_slice(self.0.as_bytes());
    }
}
impl Decode for Namespace {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let invalid = DecodeError::Invalid { what: "namespace" };
        let len = usize::from(input.byte()?);
        let text = std::str::from_utf8(input.take(len)?).map_err(|_| invalid.clone())?;
        Self::new(text).map_err(|_| invalid)
    }
}

/// The name of a network: 1 to 50 of `[A-Za-z0-9_.-]`. It is in everything signed and every chain link.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(Arc<str>);

impl ChainId {
    /// Checks a chain id.
    ///
    /// # Errors
    /// [`TypeError::ChainId`].
    pub fn new(name: &str) -> Result<Self, TypeError> {
        let fits = (1..=CHAIN_ID_LEN_MAX).contains(&name.len());
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if fits && plain { Ok(Self(name.into())) } else { Err(TypeError::ChainId) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for ChainId {
    type Err = TypeError;
    fn from_str(name: &str) -> Result<Self, TypeError> {
        Self::new(name)
    }
}
impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainId({})", self.0)
    }
}
impl Encode for ChainId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.len().try_into().map(|len: u8| out.push(len)).expect("a chain id has at most 50 bytes");
        out.extend_from_slice(self.0.as_bytes());
    }
}
impl Decode for ChainId {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let invalid = DecodeError::Invalid { what: "chain id" };
        let len = usize::from(input.byte()?);
        let text = std::str::from_utf8(input.take(len)?).map_err(|_| invalid.clone())?;
        Self::new(text).map_err(|_| invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fixed, Text};
    use std::fmt::{Debug, Display};

    fn is_read_back<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(values: impl IntoIterator<Item = T>) {
        for value in values {
            assert_eq!(value.to_string().parse::<T>().expect("what was shown"), value);
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        is_read_back([Hash([0xab; 32]), Hash::ZERO]);
        is_read_back([Root(Hash([1; 32]))]);
        is_read_back([StateHash(Hash([2; 32]))]);
        is_read_back([0, 1, 10, u64::MAX].map(Height));
        is_read_back([0, u64::MAX].map(Timestamp));
        is_read_back([0, -1, 1, i64::MIN, i64::MAX, 1_500_000].map(Fixed::from_micros));
        is_read_back(["", " a ", "ä\n"].map(|text| Text::<4>::new(text).expect("short")));
        is_read_back([Namespace::new("a.b-c_1").expect("a name")]);
        is_read_back([ChainId::new("Test-1").expect("a name")]);
    }

    #[test]
    fn what_is_never_shown_is_not_read() {
        for text in ["", "+1", "01", "00", " 1", "1 ", "-1", "0x1", "18446744073709551616"] {
            assert!(text.parse::<Height>().is_err(), "{text:?}");
        }
        assert!("AB".repeat(32).parse::<Hash>().is_err() && "1e3".parse::<Fixed>().is_err());
        assert!("abcde".parse::<Text<4>>().is_err() && "A".parse::<Namespace>().is_err());
        assert!("a b".parse::<ChainId>().is_err() && "0".repeat(63).parse::<Root>().is_err());
    }
}
