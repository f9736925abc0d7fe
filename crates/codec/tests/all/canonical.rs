//! One value has one encoding, and every other sequence of bytes is refused.

use keelstone_codec::{
    Blob, BoundedList, BoundedSet, ChainId, Decode, DecodeError, Describe, Encode, Fixed, Hash, Height, Key, Namespace,
    Reader, Shape, StateHash, Text, Timestamp, Value,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// Everything the codec knows, in one value.
type Everything = ((bool, u8, u16, u32), (u64, u128, i64, i128), (Names, Numbers, Collections, Option<Box<u16>>));
type Names = (Key, Value, Namespace, ChainId);
type Numbers = (Fixed, Height, Timestamp, StateHash);
type Collections = (BTreeMap<String, Vec<u16>>, BTreeSet<u32>, (Text<8>, Blob<8>), (Few, Chosen));
type Few = BoundedList<Hash, 2>;
type Chosen = BoundedSet<u16, 4>;

fn names() -> impl Strategy<Value = Names> {
    let key = vec(any::<u8>(), 1..=255).prop_map(|bytes| Key::new(bytes).expect("1 to 255 bytes"));
    let value = vec(any::<u8>(), 1..300).prop_map(|bytes| Value::new(bytes).expect("at least one byte"));
    let namespace = "[a-z0-9_.-]{1,32}".prop_map(|name| Namespace::new(&name).expect("a name"));
    let chain = "[A-Za-z0-9_.-]{1,50}".prop_map(|name| ChainId::new(&name).expect("a chain id"));
    (key, value, namespace, chain)
}

fn numbers() -> impl Strategy<Value = Numbers> {
    any::<(i64, u64, u64, [u8; 32])>()
        .prop_map(|(a, b, c, d)| (Fixed::from_micros(a), Height(b), Timestamp(c), StateHash(Hash(d))))
}

fn collections() -> impl Strategy<Value = Collections> {
    let text = "[a-zä]{0,4}".prop_map(|text| Text::new(text).expect("at most eight bytes"));
    let blob = vec(any::<u8>(), 0..=8).prop_map(|bytes| Blob::new(bytes).expect("at most eight bytes"));
    let few = vec(any::<[u8; 32]>().prop_map(Hash), 0..=2).prop_map(|list| Few::new(list).expect("at most two"));
    let chosen = btree_set(any::<u16>(), 0..=4).prop_map(|set| Chosen::new(set).expect("at most four"));
    (btree_map(".{0,5}", vec(any::<u16>(), 0..4), 0..4), btree_set(any::<u32>(), 0..4), (text, blob), (few, chosen))
}

fn everything() -> impl Strategy<Value = Everything> {
    (
        any::<(bool, u8, u16, u32)>(),
        any::<(u64, u128, i64, i128)>(),
        names(),
        numbers(),
        collections(),
        any::<Option<u16>>(),
    )
        .prop_map(|(a, b, names, numbers, collections, last)| (a, b, (names, numbers, collections, last.map(Box::new))))
}

/// Whatever is accepted encodes to exactly the bytes it came from.
fn only_one_encoding<T: Encode + Decode + Debug>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = T::from_bytes(bytes) {
        prop_assert_eq!(value.to_bytes(), bytes, "{:?}", value);
    }
    Ok(())
}

/// Reads an encoding by its description alone, trusting the length prefixes.
fn walk(shape: &Shape, input: &mut Reader<'_>) -> Result<(), DecodeError> {
    match shape {
        Shape::Unit => {}
        Shape::Bool => drop(bool::decode(input)?),
        Shape::Unsigned(bytes) | Shape::Signed(bytes) => drop(input.take(usize::from(*bytes))?),
        Shape::Decimal => drop(input.take(8)?),
        Shape::Array(bytes) => drop(input.take(*bytes)?),
        Shape::Bytes(max) | Shape::Text(max) => drop(input.bytes("bytes", *max)?),
        Shape::ShortBytes(max) | Shape::ShortText(max) => {
            let len = usize::from(input.byte()?);
            assert!((1..=*max).contains(&len));
            input.take(len)?;
        }
        Shape::Optional(inner) => {
            if bool::decode(input)? {
                walk(inner, input)?;
            }
        }
        Shape::List(element, max) | Shape::Set(element, max) => {
            for _ in 0..input.length("list", *max)? {
                walk(element, input)?;
            }
        }
        Shape::Map(key, value, max) => {
            for _ in 0..input.length("map", *max)? {
                walk(key, input)?;
                walk(value, input)?;
            }
        }
        Shape::Tuple(parts) => parts.iter().try_for_each(|part| walk(part, input))?,
        Shape::Record(fields) => fields.iter().try_for_each(|(_, field)| walk(field, input))?,
        other => panic!("no value here has the shape {other:?}"),
    }
    Ok(())
}

proptest! {
    /// spec: CODEC-1. What is written reads back, and nothing may follow it.
    #[test]
    fn a_value_reads_back_and_trailing_bytes_are_refused(value in everything(), extra in any::<u8>()) {
        let mut bytes = value.to_bytes();
        let back = Everything::from_bytes(&bytes);
        prop_assert_eq!(back.as_ref(), Ok(&value));
        bytes.push(extra);
        prop_assert_eq!(Everything::from_bytes(&bytes), Err(DecodeError::Trailing { left: 1 }));
    }

    /// spec: CODEC-1. An encoding cut anywhere is refused.
    #[test]
    fn no_encoding_is_the_beginning_of_another(value in everything(), cut in any::<prop::sample::Index>()) {
        let bytes = value.to_bytes();
        prop_assert!(Everything::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
    }

    /// spec: CODEC-1. A changed encoding is refused or is the one encoding of another value.
    #[test]
    fn a_changed_byte_is_refused_or_another_value(value in everything(), at in any::<prop::sample::Index>(), with in 1u8..) {
        let mut bytes = value.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        only_one_encoding::<Everything>(&bytes)?;
        prop_assert_ne!(Everything::from_bytes(&bytes), Ok(value));
    }

    /// spec: CODEC-1. Short random bytes reach every type's refusals.
    #[test]
    fn accepted_bytes_are_canonical(bytes in vec(prop_oneof![0u8..4, any::<u8>()], 0..24)) {
        only_one_encoding::<bool>(&bytes)?;
        only_one_encoding::<String>(&bytes)?;
        only_one_encoding::<Option<Option<u8>>>(&bytes)?;
        only_one_encoding::<Vec<Vec<u8>>>(&bytes)?;
        only_one_encoding::<BTreeMap<u8, u8>>(&bytes)?;
        only_one_encoding::<BTreeSet<u16>>(&bytes)?;
        only_one_encoding::<Chosen>(&bytes)?;
        only_one_encoding::<Text<4>>(&bytes)?;
        only_one_encoding::<Key>(&bytes)?;
        only_one_encoding::<Value>(&bytes)?;
        only_one_encoding::<Namespace>(&bytes)?;
        only_one_encoding::<ChainId>(&bytes)?;
    }

    /// spec: CODEC-1. A shape describes exactly the bytes that are written.
    #[test]
    fn a_shape_is_enough_to_find_the_end_of_a_value(value in everything()) {
        let bytes = value.to_bytes();
        let mut input = Reader::new(&bytes);
        prop_assert_eq!(walk(&Everything::shape(), &mut input), Ok(()));
        prop_assert_eq!(input.left(), 0);
    }

    /// spec: CODEC-3. Every number has one varint.
    #[test]
    fn a_varint_reads_back(value in prop_oneof![any::<u64>(), 0u64..300]) {
        let mut bytes = Vec::new();
        keelstone_codec::put_varint(&mut bytes, value);
        let mut input = Reader::new(&bytes);
        prop_assert_eq!(input.varint(), Ok(value));
        prop_assert_eq!(input.left(), 0);
    }

    /// spec: CODEC-3. A varint that is accepted is the one that would be written.
    #[test]
    fn an_accepted_varint_is_minimal(bytes in vec(prop_oneof![Just(0x80u8), Just(0), Just(0xff), any::<u8>()], 1..12)) {
        let mut input = Reader::new(&bytes);
        if let Ok(value) = input.varint() {
            let mut again = Vec::new();
            keelstone_codec::put_varint(&mut again, value);
            prop_assert_eq!(&again[..], &bytes[..bytes.len() - input.left()]);
        }
    }
}

/// spec: CODEC-5. Sets and maps that descend or repeat are refused, whatever the element.
#[test]
fn sets_and_maps_strictly_ascend() {
    let pair = |a: u8, b: u8| [2, 0, 0, 0, a, b];
    assert!(BTreeSet::<u8>::from_bytes(&pair(1, 2)).is_ok());
    for (a, b) in [(2, 1), (1, 1)] {
        let refused = |result: Result<(), DecodeError>| {
            assert!(matches!(result, Err(DecodeError::NotCanonical { .. })), "{a}, {b}: {result:?}");
        };
        refused(BTreeSet::<u8>::from_bytes(&pair(a, b)).map(drop));
        refused(BoundedSet::<u8, 2>::from_bytes(&pair(a, b)).map(drop));
        refused(BTreeMap::<u8, u8>::from_bytes(&[2, 0, 0, 0, a, 9, b, 9]).map(drop));
    }
}

/// Compiles only while a type does not implement `Encode`: two candidates would make the call ambiguous.
macro_rules! has_no_encoding {
    ($($name:ty),*) => {$(
        const _: fn() = || {
            trait Unless<A> {
                fn holds() {}
            }
            struct Encodes;
            impl<T: ?Sized> Unless<()> for T {}
            impl<T: ?Sized + Encode> Unless<Encodes> for T {}
            let _ = <$name as Unless<_>>::holds;
        };
    )*};
}

/// spec: CODEC-2. D-01: no float, and nothing whose bytes depend on the machine or the process, has an encoding.
#[test]
fn d01_machine_dependent_types_do_not_encode() {
    has_no_encoding!(f32, f64, usize, isize, char);
    has_no_encoding!(std::collections::HashMap<u8, u8>, std::collections::HashSet<u8>);
    has_no_encoding!(std::time::SystemTime, std::time::Instant, std::time::Duration, std::path::PathBuf);
}
