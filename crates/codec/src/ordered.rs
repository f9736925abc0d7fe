//! Typed keys as bytes: injective, and in the order of the type (spec: TREE-15).
//!
//! Integers are big-endian. The parts of a composite key end themselves: byte strings are escaped (00 becomes 00 FF)
//! and closed with 00 00, so ("ab", "c") and ("a", "bc") differ and sort as tuples do.

use crate::{DecodeError, Hash, Height, Text, Timestamp};

/// A type that can stand in a key, alone or as a part of one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand in a key",
    note = "derive `OrderedKey` for a type of your own"
)]
pub trait OrderedKey: Sized {
    /// Appends the key bytes. `a < b` as values exactly when the bytes of `a` sort before those of `b`.
    fn encode_key(&self, out: &mut Vec<u8>);

    /// Reads the part back.
    ///
    /// # Errors
    /// [`DecodeError`] for bytes that [`OrderedKey::encode_key`] never writes.
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError>;
}

/// A cursor over key bytes.
#[derive(Debug)]
pub struct KeyReader<'a>(crate::Reader<'a>);

impl<'a> KeyReader<'a> {
    /// A reader over a whole key.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(crate::Reader::new(bytes))
    }

    /// Takes an array of `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.0.array()
    }

    /// Takes all that is left: for a part that does not end itself, which can only be the last.
    pub fn rest(&mut self) -> &'a [u8] {
        self.0.rest()
    }

    /// Says whether everything was read.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`].
    pub fn finish(&self) -> Result<(), DecodeError> {
        self.0.finish()
    }

    fn escaped(&mut self) -> Result<Vec<u8>, DecodeError> {
        let mut out = Vec::new();
        loop {
            match self.0.byte()? {
                0 => match self.0.byte()? {
                    0 => return Ok(out),
                    0xff => out.push(0),
                    _ => return Err(DecodeError::NotCanonical { what: "escape in a key" }),
                },
                byte => out.push(byte),
            }
        }
    }
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

macro_rules! unsigned {
    ($($int:ty),*) => {$(
        impl OrderedKey for $int {
            fn encode_key(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
            fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
                Ok(<$int>::from_be_bytes(input.array()?))
            }
        }
    )*};
}
unsigned!(u8, u16, u32, u64, u128);

impl OrderedKey for Height {
    fn encode_key(&self, out: &mut Vec<u8>) {
        self.0.encode_key(out);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(u64::decode_key(input)?))
    }
}
impl OrderedKey for Timestamp {
    fn encode_key(&self, out: &mut Vec<u8>) {
        self.0.encode_key(out);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(u64::decode_key(input)?))
    }
}
impl<const N: usize> OrderedKey for [u8; N] {
    fn encode_key(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        input.array()
    }
}
impl OrderedKey for Hash {
    fn encode_key(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(input.array()?))
    }
}
impl OrderedKey for Vec<u8> {
    fn encode_key(&self, out: &mut Vec<u8>) {
        escape(self, out);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        input.escaped()
    }
}
impl OrderedKey for String {
    fn encode_key(&self, out: &mut Vec<u8>) {
        escape(self.as_bytes(), out);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        String::from_utf8(input.escaped()?).map_err(|_| DecodeError::Invalid { what: "UTF-8" })
    }
}
impl<const N: usize> OrderedKey for Text<N> {
    fn encode_key(&self, out: &mut Vec<u8>) {
        escape(self.as_bytes(), out);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        let text = String::decode_key(input)?;
        Self::new(text).map_err(|e| DecodeError::TooLarge {
            what: "text in a key",
            found: e.found as u64,
            limit: e.limit as u64,
        })
    }
}

macro_rules! tuples {
    ($(($($name:ident $index:tt),+))*) => {$(
        impl<$($name: OrderedKey),+> OrderedKey for ($($name,)+) {
            fn encode_key(&self, out: &mut Vec<u8>) {
                $(self.$index.encode_key(out);)+
            }
            fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
                Ok(($($name::decode_key(input)?,)+))
            }
        }
    )*};
}
tuples! { (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3) }
