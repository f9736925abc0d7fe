//! Typed keys as bytes: injective, and in the order of the type (spec: TREE-15).
//!
//! Integers are big-endian, signed ones with their sign bit turned over. The parts of a composite key end themselves: byte
//! strings are escaped (00 becomes 00 FF) and closed with 00 00, so ("ab", "c") and ("a", "bc") differ and sort as tuples do.

use crate::{Blob, DecodeError, Fixed, Hash, Height, Text, Timestamp};

/// A type that can stand in a key, alone or as a part of one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand in a key",
    note = "derive `OrderedKey` for a type of your own"
)]
pub trait OrderedKey: Sized {
    /// How its bytes end.
    const END: KeyEnd = KeyEnd::Itself;

    /// Appends the key bytes. `a < b` as values exactly when the bytes of `a` sort before those of `b`.
    fn encode_key(&self, out: &mut Vec<u8>);

    /// Reads the part back.
    ///
    /// # Errors
    /// [`DecodeError`] for bytes that [`OrderedKey::encode_key`] never writes.
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError>;
}

/// How the bytes of a part of a key end, which decides what it can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEnd {
    /// After eight bytes: the part is a `u64`, or a type of its own around one.
    Number,
    /// Where they say themselves: another part may follow.
    Itself,
    /// Where the key does: the part stands last.
    Open,
}

impl KeyEnd {
    /// Of parts one after another.
    ///
    /// # Panics
    /// At compile time, for a part that does not end itself before the last.
    #[must_use]
    pub const fn of_parts(parts: &[Self]) -> Self {
        let mut index = 0;
        while index + 1 < parts.len() {
            assert!(!matches!(parts[index], Self::Open), "a part of a key that does not end itself stands last");
            index += 1;
        }
        match parts {
            [only] => *only,
            [.., Self::Open] => Self::Open,
            _ => Self::Itself,
        }
    }

    /// Of variants behind a tag.
    #[must_use]
    pub const fn of_variants(variants: &[Self]) -> Self {
        let mut index = 0;
        while index < variants.len() {
            if matches!(variants[index], Self::Open) {
                return Self::Open;
            }
            index += 1;
        }
        Self::Itself
    }
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
    ($($int:ty, $end:ident;)*) => {$(
        impl OrderedKey for $int {
            const END: KeyEnd = KeyEnd::$end;
            fn encode_key(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
            fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
                Ok(<$int>::from_be_bytes(input.array()?))
            }
        }
    )*};
}
unsigned! { u8, Itself; u16, Itself; u32, Itself; u64, Number; u128, Itself; }

macro_rules! signed {
    ($($int:ty as $unsigned:ty),*) => {$(
        // With the sign bit turned over, negative numbers come before the others, and each in their order.
        impl OrderedKey for $int {
            fn encode_key(&self, out: &mut Vec<u8>) {
                (self.cast_unsigned() ^ <$int>::MIN.cast_unsigned()).encode_key(out);
            }
            fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
                Ok((<$unsigned>::decode_key(input)? ^ <$int>::MIN.cast_unsigned()).cast_signed())
            }
        }
    )*};
}
signed!(i8 as u8, i16 as u16, i32 as u32, i64 as u64, i128 as u128);

impl OrderedKey for bool {
    fn encode_key(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        match input.0.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(DecodeError::UnknownTag { what: "bool", found: u64::from(found) }),
        }
    }
}
impl OrderedKey for Fixed {
    fn encode_key(&self, out: &mut Vec<u8>) {
        self.micros().encode_key(out);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self::from_micros(i64::decode_key(input)?))
    }
}
impl OrderedKey for Height {
    const END: KeyEnd = KeyEnd::Number;
    fn encode_key(&self, out: &mut Vec<u8>) {
        self.0.encode_key(out);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(u64::decode_key(input)?))
    }
}
impl OrderedKey for Timestamp {
    const END: KeyEnd = KeyEnd::Number;
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
impl<const N: usize> OrderedKey for Blob<N> {
    fn encode_key(&self, out: &mut Vec<u8>) {
        escape(self, out);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Self::new(input.escaped()?).map_err(|e| DecodeError::TooLarge {
            what: "blob in a key",
            found: e.found as u64,
            limit: e.limit as u64,
        })
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
            const END: KeyEnd = KeyEnd::of_parts(&[$($name::END),+]);

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
