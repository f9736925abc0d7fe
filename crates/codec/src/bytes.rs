//! The two traits, the reader they share, and what can be wrong with input.

use std::collections::{BTreeMap, BTreeSet};

/// How deep values may nest while decoding. A stack overflow cannot be caught, so depth is counted (spec: CODEC-9).
pub const DEPTH_MAX: u32 = 32;

/// The most elements a `Vec`, `BTreeMap` or `BTreeSet` without a bound of its own may have (spec: CODEC-4).
pub const LIST_MAX: usize = 65_536;

/// Writes the one canonical encoding of a value.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no canonical encoding",
    note = "derive `Encode` and `Decode` for a type of your own",
    note = "floats, `usize`, hash maps and clocks differ between machines: use `Fixed`, `u64`, `BTreeMap`, `Timestamp`"
)]
pub trait Encode {
    /// Appends the encoding to `out`. Cost is linear in the size of the value.
    fn encode(&self, out: &mut Vec<u8>);

    /// The encoding as a fresh buffer.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

/// Reads a value from its canonical encoding and refuses every other (spec: CODEC-1).
pub trait Decode: Sized {
    /// Reads one value and leaves the reader behind it.
    ///
    /// # Errors
    /// [`DecodeError`] names the limit or the rule the input broke. Memory reserved is bounded by the input's length.
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// Reads a value that must take up all of `bytes`.
    ///
    /// # Errors
    /// As [`Decode::decode`], and [`DecodeError::Trailing`] if bytes are left over.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let value = Self::decode(&mut input)?;
        input.finish()?;
        Ok(value)
    }
}

/// What is wrong with some input. All variants mean: whoever made these bytes has to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The input ends before the value does.
    #[error("input ends early: {needed} more bytes needed, {left} left")]
    Truncated {
        /// Bytes the value still needed.
        needed: u64,
        /// Bytes that were left.
        left: u64,
    },
    /// Bytes follow the value.
    #[error("{left} bytes follow the value")]
    Trailing {
        /// How many.
        left: u64,
    },
    /// A count or length is above its limit.
    #[error("{what} is {found}, the limit is {limit}")]
    TooLarge {
        /// The field.
        what: &'static str,
        /// What the input said.
        found: u64,
        /// What is allowed.
        limit: u64,
    },
    /// An enum tag or discriminant that does not exist.
    #[error("unknown tag {found} for {what}")]
    UnknownTag {
        /// The type.
        what: &'static str,
        /// The tag.
        found: u64,
    },
    /// A second encoding of a value that has another, canonical one.
    #[error("not canonical: {what}")]
    NotCanonical {
        /// The rule.
        what: &'static str,
    },
    /// Bytes that no value of the type has.
    #[error("invalid {what}")]
    Invalid {
        /// The type or field.
        what: &'static str,
    },
    /// Nesting deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {limit} levels")]
    TooDeep {
        /// The limit.
        limit: u32,
    },
}

/// A cursor over untrusted bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    depth: u32,
}

impl<'a> Reader<'a> {
    /// A reader over all of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, depth: 0 }
    }

    /// Bytes not read yet.
    #[must_use]
    #[inline]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Takes exactly `len` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return Err(DecodeError::Truncated { needed: len as u64, left: self.rest.len() as u64 });
        };
        self.rest = rest;
        Ok(head)
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Takes an array of `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated { needed: N as u64, left: self.rest.len() as u64 });
        };
        self.rest = rest;
        Ok(*head)
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes a minimal LEB128 integer of at most 64 bits (spec: CODEC-3).
    ///
    /// # Errors
    /// [`DecodeError::NotCanonical`] for a longer form than needed, [`DecodeError::Invalid`] above 64 bits.
    #[inline(always)]
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        // Most are small, and proofs are made of them.
        if let [byte @ 0..=0x7f, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        // Those of up to eight bytes are taken at once, where there are eight: no loop whose end has to be guessed.
        if let Some(chunk) = self.rest.first_chunk::<8>() {
            let word = u64::from_le_bytes(*chunk);
            let ends = !word & 0x8080_8080_8080_8080;
            if ends != 0 {
                let bits = ends.trailing_zeros() + 1;
                let groups = word & (u64::MAX >> (64 - bits)) & 0x7f7f_7f7f_7f7f_7f7f;
                if groups >> (bits - 8) == 0 {
                    return Err(DecodeError::NotCanonical { what: "varint with a trailing zero group" });
                }
                self.rest = &self.rest[bits as usize / 8..];
                // Pairs of groups, pairs of pairs, pairs of those.
                let pairs = groups & 0x007f_007f_007f_007f | (groups & 0x7f00_7f00_7f00_7f00) >> 1;
                let fours = pairs & 0x0000_3fff_0000_3fff | (pairs & 0x3fff_0000_3fff_0000) >> 2;
                return Ok(fours & 0x0fff_ffff | (fours & 0x0fff_ffff_0000_0000) >> 4);
            }
        }
        self.long_varint()
    }

    #[cold]
    fn long_varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Invalid { what: "varint above 64 bits" });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(DecodeError::NotCanonical { what: "varint with a trailing zero group" });
                }
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid { what: "varint above 64 bits" })
    }

    /// Takes a u32 length that is at most `limit`.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] names `what`.
    pub fn length(&mut self, what: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let found = u32::decode(self)?;
        if u64::from(found) > limit as u64 {
            return Err(DecodeError::TooLarge { what, found: u64::from(found), limit: limit as u64 });
        }
        Ok(found as usize)
    }

    /// Takes a length-prefixed byte string of at most `limit` bytes.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] before anything is reserved.
    pub fn bytes(&mut self, what: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.length(what, limit)?;
        self.take(len)
    }

    /// Takes a counted list of at most `limit` elements. Every element must take at least one byte, so a count can
    /// never cost more work than the input has bytes.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`], [`DecodeError::Truncated`], or what an element says.
    pub fn list<T: Decode>(&mut self, what: &'static str, limit: usize) -> Result<Vec<T>, DecodeError> {
        let count = self.length(what, limit)?;
        if count > self.left() {
            return Err(DecodeError::Truncated { needed: count as u64, left: self.left() as u64 });
        }
        self.nested(|input| {
            // The bound comes with the read: capacity follows what is there, not what is claimed.
            let mut out = Vec::with_capacity(count.min(1024));
            for _ in 0..count {
                let before = input.left();
                out.push(T::decode(input)?);
                if input.left() == before {
                    return Err(DecodeError::Invalid { what: "list of elements without bytes" });
                }
            }
            Ok(out)
        })
    }

    /// Runs `read` one level deeper.
    ///
    /// # Errors
    /// [`DecodeError::TooDeep`] past [`DEPTH_MAX`], or what `read` says.
    pub fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, DecodeError>) -> Result<T, DecodeError> {
        if self.depth == DEPTH_MAX {
            return Err(DecodeError::TooDeep { limit: DEPTH_MAX });
        }
        self.depth += 1;
        let out = read(self);
        self.depth -= 1;
        out
    }

    /// Says whether everything was read.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`].
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { left: self.rest.len() as u64 }) }
    }
}

/// Appends a minimal LEB128 integer (spec: CODEC-3).
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Appends a u32 length. Lengths above it cannot be encoded; every type that gets here is bounded far below.
pub fn put_length(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("every encodable collection is bounded below 2^32 by its type");
    len.encode(out);
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Encode for $int {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
        impl Decode for $int {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(<$int>::from_le_bytes(input.array()?))
            }
        }
    )*};
}
// No usize or isize: their width depends on the machine. No floats (spec: CODEC-2).
integers!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}
impl Decode for bool {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(DecodeError::UnknownTag { what: "bool", found: u64::from(found) }),
        }
    }
}

impl Encode for () {
    fn encode(&self, _: &mut Vec<u8>) {}
}
impl Decode for () {
    fn decode(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(())
    }
}

impl<const N: usize> Encode for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}
impl<const N: usize> Decode for [u8; N] {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        input.array()
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                value.encode(out);
            }
        }
    }
}
impl<T: Decode> Decode for Option<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.byte()? {
            0 => Ok(None),
            1 => input.nested(|input| Ok(Some(T::decode(input)?))),
            found => Err(DecodeError::UnknownTag { what: "option", found: u64::from(found) }),
        }
    }
}

impl<T: Encode> Encode for [T] {
    fn encode(&self, out: &mut Vec<u8>) {
        put_length(out, self.len());
        for value in self {
            value.encode(out);
        }
    }
}
impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}
impl<T: Decode> Decode for Vec<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        input.list("list", LIST_MAX)
    }
}

impl Encode for str {
    fn encode(&self, out: &mut Vec<u8>) {
        put_length(out, self.len());
        out.extend_from_slice(self.as_bytes());
    }
}
impl Encode for String {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}
impl Decode for String {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = input.bytes("string", crate::VALUE_LEN_MAX)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(DecodeError::Invalid { what: "UTF-8" }),
        }
    }
}

impl<T: Encode + ?Sized> Encode for &T {
    fn encode(&self, out: &mut Vec<u8>) {
        (**self).encode(out);
    }
}
impl<T: Encode + ?Sized> Encode for Box<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        (**self).encode(out);
    }
}
impl<T: Decode> Decode for Box<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        input.nested(|input| Ok(Box::new(T::decode(input)?)))
    }
}

impl<K: Encode, V: Encode> Encode for BTreeMap<K, V> {
    fn encode(&self, out: &mut Vec<u8>) {
        put_length(out, self.len());
        for (key, value) in self {
            key.encode(out);
            value.encode(out);
        }
    }
}
impl<K: Decode + Ord, V: Decode> Decode for BTreeMap<K, V> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let entries: Vec<(K, V)> = input.list("map", LIST_MAX)?;
        // One encoding per map: keys strictly ascend (spec: CODEC-5).
        if !entries.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(DecodeError::NotCanonical { what: "map keys must strictly ascend" });
        }
        Ok(entries.into_iter().collect())
    }
}

impl<T: Encode> Encode for BTreeSet<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        put_length(out, self.len());
        for value in self {
            value.encode(out);
        }
    }
}
impl<T: Decode + Ord> Decode for BTreeSet<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let entries: Vec<T> = input.list("set", LIST_MAX)?;
        if !entries.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(DecodeError::NotCanonical { what: "set elements must strictly ascend" });
        }
        Ok(entries.into_iter().collect())
    }
}

macro_rules! tuples {
    ($(($($name:ident $index:tt),+))*) => {$(
        impl<$($name: Encode),+> Encode for ($($name,)+) {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$index.encode(out);)+
            }
        }
        impl<$($name: Decode),+> Decode for ($($name,)+) {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(($($name::decode(input)?,)+))
            }
        }
    )*};
}
tuples! { (A 0) (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3) }
