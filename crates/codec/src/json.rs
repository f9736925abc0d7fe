//! How the shared types look to people and programs: in JSON, TOML and whatever else speaks serde.
//!
//! Nothing here is ever hashed or signed. Hashes, keys, values and blobs are hexadecimal text, names and fixed-point
//! numbers are text, heights and times are numbers, bounded collections are arrays. Reading applies the same limits
//! as [`crate::Decode`], so that a document cannot bring in what the codec would refuse.

use crate::{Blob, BoundedList, BoundedSet, ChainId, Fixed, Hash, Height, Key, Namespace, Root, StateHash};
use crate::{Text, Timestamp, Value, unhex};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// Reads text, owned or borrowed, and hands it to a parser.
struct Parsed<T, E> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, E>,
}

impl<T, E: fmt::Display> Visitor<'_> for Parsed<T, E> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<S: Error>(self, text: &str) -> Result<T, S> {
        (self.parse)(text).map_err(S::custom)
    }
}

macro_rules! as_text {
    ($([$($generics:tt)*] $name:ty, $expected:literal, $show:expr, $parse:expr;)*) => {$(
        impl<$($generics)*> Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&$show(self))
            }
        }
        impl<'de, $($generics)*> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Parsed { expected: $expected, parse: $parse })
            }
        }
    )*};
}

as_text! {
    [] Hash, "a hash of 64 hexadecimal digits", Hash::to_string, Hash::from_hex;
    [] Root, "a root of 64 hexadecimal digits", Root::to_string, Root::from_hex;
    [] StateHash, "a state hash of 64 hexadecimal digits", StateHash::to_string, StateHash::from_hex;
    [] Namespace, "the name of a namespace", Namespace::to_string, Namespace::new;
    [] ChainId, "a chain id", ChainId::to_string, ChainId::new;
    [] Fixed, "a decimal number with at most six places, as text", Fixed::to_string, Fixed::parse;
    [] Key, "a key in hexadecimal", hex::encode, |text: &str| {
        bytes(text).and_then(|bytes| Key::new(bytes).map_err(|e| e.to_string()))
    };
    [] Value, "a value in hexadecimal", hex::encode, |text: &str| {
        bytes(text).and_then(|bytes| Value::new(bytes).map_err(|e| e.to_string()))
    };
    [const N: usize] Blob<N>, "bytes in hexadecimal", |blob: &Self| hex::encode(&**blob), |text: &str| {
        bytes(text).and_then(|bytes| Blob::new(bytes).map_err(|e| e.to_string()))
    };
    [const N: usize] Text<N>, "text", Text::<N>::to_string, |text: &str| Text::new(text);
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    unhex(text).map_err(|e| e.to_string())
}

macro_rules! as_number {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                u64::deserialize(deserializer).map(Self)
            }
        }
    )*};
}
as_number!(Height, Timestamp);

impl<T: Serialize, const N: usize> Serialize for BoundedList<T, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}
impl<T: Ord + Serialize, const N: usize> Serialize for BoundedSet<T, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// Reads an array element by element into a bounded collection, so that the bound holds while reading.
struct Elements<C, T>(PhantomData<(C, T)>);

trait Collect<T>: Default {
    fn add<E: Error>(&mut self, element: T) -> Result<(), E>;
}
impl<T, const N: usize> Collect<T> for BoundedList<T, N> {
    fn add<E: Error>(&mut self, element: T) -> Result<(), E> {
        self.push(element).map_err(E::custom)
    }
}
impl<T: Ord, const N: usize> Collect<T> for BoundedSet<T, N> {
    fn add<E: Error>(&mut self, element: T) -> Result<(), E> {
        match self.insert(element) {
            Ok(true) => Ok(()),
            Ok(false) => Err(E::custom("an element of a set stands twice")),
            Err(e) => Err(E::custom(e)),
        }
    }
}
impl<'de, T: Deserialize<'de>, C: Collect<T>> Visitor<'de> for Elements<C, T> {
    type Value = C;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<C, A::Error> {
        let mut out = C::default();
        while let Some(element) = elements.next_element()? {
            out.add(element)?;
        }
        Ok(out)
    }
}
impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for BoundedList<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}
impl<'de, T: Ord + Deserialize<'de>, const N: usize> Deserialize<'de> for BoundedSet<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}
