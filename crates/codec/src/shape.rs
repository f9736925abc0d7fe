//! What the bytes of a type look like, said as data, so that tools can turn JSON into canonical bytes and back.
//!
//! A program that was not compiled with a type (the command line, a wallet, an explorer) still has to write its
//! arguments and show its results. [`Shape`] is the whole layout of an encoding: walking one beside the bytes reads
//! them. It is a description only: decoding proper goes through [`crate::Decode`], which checks more.
//!
//! Layout and rules: `spec/codec.md`, CODEC-1 to CODEC-6, and CODEC-10 for shapes themselves. The shape of a type follows its
//! `Encode` by construction of the derive.

use crate::{
    Blob, BoundedList, BoundedSet, ChainId, Encode, Fixed, Hash, Height, Key, LIST_MAX, Namespace, Root, StateHash,
    Text, Timestamp, Value,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// A type that can say how it is encoded. Derived beside `Encode` and `Decode`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot say how it is encoded",
    note = "derive `Encode` for a type of your own, which derives `Describe` with it"
)]
pub trait Describe {
    /// The layout of every value's encoding.
    fn shape() -> Shape;
}

/// The layout of an encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// No bytes.
    Unit,
    /// One byte, 00 or 01.
    Bool,
    /// A little-endian unsigned integer of so many bytes.
    Unsigned(u8),
    /// A little-endian signed integer of so many bytes.
    Signed(u8),
    /// A [`Fixed`]: an `i64` count of millionths, shown as a decimal.
    Decimal,
    /// Exactly so many bytes without a length: hashes and keys.
    Array(usize),
    /// A u32 length and at most so many bytes.
    Bytes(usize),
    /// As [`Shape::Bytes`], at least one; and in a key these bytes as they are, to the key's end.
    RawBytes(usize),
    /// A u32 length and at most so many bytes of UTF-8.
    Text(usize),
    /// A length of one byte and at most so many bytes, at least one: keys.
    ShortBytes(usize),
    /// A length of one byte and at most so many bytes of UTF-8, at least one: names.
    ShortText(usize),
    /// 00, or 01 and the value.
    Optional(Box<Shape>),
    /// A count and at most so many elements.
    List(Box<Shape>, usize),
    /// A count and at most so many elements, strictly ascending.
    Set(Box<Shape>, usize),
    /// A count and at most so many keys with values, keys strictly ascending.
    Map(Box<Shape>, Box<Shape>, usize),
    /// One after another, without names.
    Tuple(Vec<Shape>),
    /// One after another, with names.
    Record(Vec<(&'static str, Shape)>),
    /// One byte that picks a variant, and what the variant holds.
    Choice(Vec<Variant>),
    /// A layout that contains itself, which only the rule of this name in `spec/`, or the type of this name, can say.
    Opaque(&'static str),
}

impl Shape {
    /// Whether every value of it is encoded as nothing at all, which no entry of a state can hold (spec: TREE-1).
    #[must_use]
    pub fn is_without_bytes(&self) -> bool {
        match self {
            Self::Unit | Self::Array(0) => true,
            Self::Tuple(parts) => parts.iter().all(Self::is_without_bytes),
            Self::Record(fields) => fields.iter().all(|(_, field)| field.is_without_bytes()),
            _ => false,
        }
    }

    /// The layout of the type of this name, which is made of those of others: what the derive calls. Where a type contains
    /// itself, the layout of it that is within is opaque: a description without end would be none.
    #[doc(hidden)]
    #[must_use]
    pub fn of_type(name: &'static str, make: impl FnOnce() -> Self) -> Self {
        thread_local! {
            /// The types whose layouts are being made, the outermost first.
            static WITHIN: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
        }
        if WITHIN.with_borrow(|within| within.contains(&name)) {
            return Self::Opaque(name);
        }
        WITHIN.with_borrow_mut(|within| within.push(name));
        let made = make();
        WITHIN.with_borrow_mut(Vec::pop);
        made
    }
}

/// For hashing alone: nothing reads it.
// spec: CODEC-10
impl Encode for Shape {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Unit => out.push(0),
            Self::Bool => out.push(1),
            Self::Unsigned(bytes) => out.extend([2, *bytes]),
            Self::Signed(bytes) => out.extend([3, *bytes]),
            Self::Decimal => out.push(4),
            Self::Array(bytes) => bounded(5, &[], *bytes, out),
            Self::Bytes(max) => bounded(6, &[], *max, out),
            Self::RawBytes(max) => bounded(7, &[], *max, out),
            Self::Text(max) => bounded(8, &[], *max, out),
            Self::ShortBytes(max) => bounded(9, &[], *max, out),
            Self::ShortText(max) => bounded(10, &[], *max, out),
            Self::Optional(value) => {
                out.push(11);
                value.encode(out);
            }
            Self::List(element, max) => bounded(12, &[element], *max, out),
            Self::Set(element, max) => bounded(13, &[element], *max, out),
            Self::Map(key, value, max) => bounded(14, &[key, value], *max, out),
            Self::Tuple(parts) => {
                out.push(15);
                parts.encode(out);
            }
            Self::Record(fields) => {
                out.push(16);
                fields.encode(out);
            }
            Self::Choice(variants) => {
                out.push(17);
                variants.encode(out);
            }
            // The name may be the compiler's, which a moved module changes.
            Self::Opaque(_) => out.push(18),
        }
    }
}

/// A kind, the shapes it is made of, and how many bytes or elements there may be.
fn bounded(kind: u8, parts: &[&Shape], max: usize, out: &mut Vec<u8>) {
    out.push(kind);
    parts.iter().for_each(|part| part.encode(out));
    u64::try_from(max).unwrap_or(u64::MAX).encode(out);
}

/// One variant of a [`Shape::Choice`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// The byte that picks it.
    pub tag: u8,
    /// Its name.
    pub name: &'static str,
    /// What follows the tag.
    pub shape: Shape,
}

impl Encode for Variant {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.tag, self.name, &self.shape).encode(out);
    }
}

macro_rules! shapes {
    ($($type:ty => $shape:expr;)*) => {$(
        impl Describe for $type {
            fn shape() -> Shape {
                $shape
            }
        }
    )*};
}
shapes! {
    () => Shape::Unit;
    bool => Shape::Bool;
    u8 => Shape::Unsigned(1);
    u16 => Shape::Unsigned(2);
    u32 => Shape::Unsigned(4);
    u64 => Shape::Unsigned(8);
    u128 => Shape::Unsigned(16);
    i8 => Shape::Signed(1);
    i16 => Shape::Signed(2);
    i32 => Shape::Signed(4);
    i64 => Shape::Signed(8);
    i128 => Shape::Signed(16);
    Fixed => Shape::Decimal;
    Hash => Shape::Array(32);
    Root => Shape::Array(32);
    StateHash => Shape::Array(32);
    Height => Shape::Unsigned(8);
    Timestamp => Shape::Unsigned(8);
    String => Shape::Text(crate::VALUE_LEN_MAX);
    Key => Shape::ShortBytes(crate::KEY_LEN_MAX);
    Value => Shape::Bytes(crate::VALUE_LEN_MAX);
    Namespace => Shape::ShortText(crate::NAMESPACE_LEN_MAX);
    ChainId => Shape::ShortText(crate::CHAIN_ID_LEN_MAX);
}

impl<const N: usize> Describe for [u8; N] {
    fn shape() -> Shape {
        Shape::Array(N)
    }
}
impl<const N: usize> Describe for Text<N> {
    fn shape() -> Shape {
        Shape::Text(N)
    }
}
impl<const N: usize> Describe for Blob<N> {
    fn shape() -> Shape {
        Shape::Bytes(N)
    }
}
impl<T: Describe> Describe for Option<T> {
    fn shape() -> Shape {
        Shape::Optional(Box::new(T::shape()))
    }
}
impl<T: Describe> Describe for Box<T> {
    fn shape() -> Shape {
        T::shape()
    }
}
impl<T: Describe> Describe for Vec<T> {
    fn shape() -> Shape {
        list(T::shape(), LIST_MAX)
    }
}
impl<T: Describe, const N: usize> Describe for BoundedList<T, N> {
    fn shape() -> Shape {
        list(T::shape(), N)
    }
}
impl<T: Describe> Describe for BTreeSet<T> {
    fn shape() -> Shape {
        Shape::Set(Box::new(T::shape()), LIST_MAX)
    }
}
impl<T: Describe + Ord, const N: usize> Describe for BoundedSet<T, N> {
    fn shape() -> Shape {
        Shape::Set(Box::new(T::shape()), N)
    }
}
impl<K: Describe, V: Describe> Describe for BTreeMap<K, V> {
    fn shape() -> Shape {
        Shape::Map(Box::new(K::shape()), Box::new(V::shape()), LIST_MAX)
    }
}

/// A list of single bytes has the encoding of a byte string, and reads better as one.
fn list(element: Shape, max: usize) -> Shape {
    if element == Shape::Unsigned(1) { Shape::Bytes(max) } else { Shape::List(Box::new(element), max) }
}

macro_rules! tuples {
    ($(($($name:ident),+))*) => {$(
        impl<$($name: Describe),+> Describe for ($($name,)+) {
            fn shape() -> Shape {
                Shape::Tuple(vec![$($name::shape()),+])
            }
        }
    )*};
}
tuples! { (A) (A, B) (A, B, C) (A, B, C, D) }
