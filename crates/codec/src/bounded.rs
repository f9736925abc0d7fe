//! Collections whose bound is part of their type, for arguments and records that strangers fill in.

use crate::{Decode, DecodeError, Encode, Reader};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

/// More elements or bytes than the type allows: the caller's to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{found} is above the limit of {limit}")]
pub struct TooMany {
    /// How many there were.
    pub found: usize,
    /// How many there may be.
    pub limit: usize,
}

/// UTF-8 text of at most `N` bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text<const N: usize>(String);

impl<const N: usize> Text<N> {
    /// Checks and takes over text.
    ///
    /// # Errors
    /// [`TooMany`] above `N` bytes.
    pub fn new(text: impl Into<String>) -> Result<Self, TooMany> {
        let text = text.into();
        if text.len() > N { Err(TooMany { found: text.len(), limit: N }) } else { Ok(Self(text)) }
    }
}
impl<const N: usize> FromStr for Text<N> {
    type Err = TooMany;
    fn from_str(text: &str) -> Result<Self, TooMany> {
        Self::new(text)
    }
}
impl<const N: usize> Deref for Text<N> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}
impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
impl<const N: usize> Encode for Text<N> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl<const N: usize> Decode for Text<N> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = input.bytes("text", N)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self(text.to_owned())),
            Err(_) => Err(DecodeError::Invalid { what: "UTF-8" }),
        }
    }
}

/// A byte string of at most `N` bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Blob<const N: usize>(Vec<u8>);

impl<const N: usize> Blob<N> {
    /// Checks and takes over bytes.
    ///
    /// # Errors
    /// [`TooMany`] above `N` bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, TooMany> {
        let bytes = bytes.into();
        if bytes.len() > N { Err(TooMany { found: bytes.len(), limit: N }) } else { Ok(Self(bytes)) }
    }

    /// The bytes, by value.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}
impl<const N: usize> Deref for Blob<N> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
impl<const N: usize> fmt::Debug for Blob<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}
impl<const N: usize> Encode for Blob<N> {
    fn encode(&self, out: &mut Vec<u8>) {
        crate::bytes::put_length(out, self.0.len());
        out.extend_from_slice(&self.0);
    }
}
impl<const N: usize> Decode for Blob<N> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(input.bytes("blob", N)?.to_vec()))
    }
}

/// A list of at most `N` elements.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BoundedList<T, const N: usize>(Vec<T>);

impl<T, const N: usize> Default for BoundedList<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}
impl<T, const N: usize> BoundedList<T, N> {
    /// Checks and takes over a list.
    ///
    /// # Errors
    /// [`TooMany`] above `N` elements.
    pub fn new(list: Vec<T>) -> Result<Self, TooMany> {
        if list.len() > N { Err(TooMany { found: list.len(), limit: N }) } else { Ok(Self(list)) }
    }

    /// Adds an element at the end.
    ///
    /// # Errors
    /// [`TooMany`] when the list is full; it is unchanged.
    pub fn push(&mut self, value: T) -> Result<(), TooMany> {
        if self.0.len() >= N {
            return Err(TooMany { found: self.0.len() + 1, limit: N });
        }
        self.0.push(value);
        Ok(())
    }

    /// The list, by value.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}
impl<T, const N: usize> Deref for BoundedList<T, N> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}
impl<T: Encode, const N: usize> Encode for BoundedList<T, N> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl<T: Decode, const N: usize> Decode for BoundedList<T, N> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(input.list("list", N)?))
    }
}

/// An ordered set of at most `N` elements; its encoding is strictly ascending.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BoundedSet<T: Ord, const N: usize>(BTreeSet<T>);

impl<T: Ord, const N: usize> Default for BoundedSet<T, N> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}
impl<T: Ord, const N: usize> BoundedSet<T, N> {
    /// Collects a set; equal elements count once.
    ///
    /// # Errors
    /// [`TooMany`] above `N` different elements.
    pub fn new(elements: impl IntoIterator<Item = T>) -> Result<Self, TooMany> {
        let mut set = Self::default();
        for element in elements {
            set.insert(element)?;
        }
        Ok(set)
    }

    /// Adds an element; says whether it was new.
    ///
    /// # Errors
    /// [`TooMany`] when the set is full; it is unchanged.
    pub fn insert(&mut self, element: T) -> Result<bool, TooMany> {
        if self.0.contains(&element) {
            return Ok(false);
        }
        if self.0.len() >= N {
            return Err(TooMany { found: self.0.len() + 1, limit: N });
        }
        Ok(self.0.insert(element))
    }

    /// Removes an element; says whether it was there.
    pub fn remove(&mut self, element: &T) -> bool {
        self.0.remove(element)
    }
}
impl<T: Ord, const N: usize> Deref for BoundedSet<T, N> {
    type Target = BTreeSet<T>;
    fn deref(&self) -> &BTreeSet<T> {
        &self.0
    }
}
impl<T: Ord + Encode, const N: usize> Encode for BoundedSet<T, N> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl<T: Ord + Decode, const N: usize> Decode for BoundedSet<T, N> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let list: Vec<T> = input.list("set", N)?;
        if !list.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(DecodeError::NotCanonical { what: "set elements must strictly ascend" });
        }
        Ok(Self(list.into_iter().collect()))
    }
}
