//! Hostile lengths, depths and numbers: refused by name, before anything is reserved.

use keelstone_codec::{
    Blob, BoundedList, BoundedSet, CHAIN_ID_LEN_MAX, ChainId, DEPTH_MAX, Decode, DecodeError, Encode, KEY_LEN_MAX, Key,
    LIST_MAX, NAMESPACE_LEN_MAX, Namespace, Reader, Text, TypeError, VALUE_LEN_MAX, Value,
};
use std::collections::{BTreeMap, BTreeSet};

fn length(n: u32) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

/// spec: CODEC-4. P-12: a length of 2^32-1 is refused by the limit it breaks, not by running out of memory.
#[test]
fn p12_a_length_above_its_limit_is_refused_by_name() {
    let huge = length(u32::MAX);
    let refused = |result: Result<(), DecodeError>, what: &str, limit: usize| {
        let found = u64::from(u32::MAX);
        match result {
            Err(DecodeError::TooLarge { what: w, found: f, limit: l }) => {
                assert_eq!((w, f, l), (what, found, limit as u64));
            }
            other => panic!("{what}: {other:?}"),
        }
    };
    refused(Vec::<u8>::from_bytes(&huge).map(drop), "list", LIST_MAX);
    refused(BTreeSet::<u8>::from_bytes(&huge).map(drop), "set", LIST_MAX);
    refused(BTreeMap::<u8, u8>::from_bytes(&huge).map(drop), "map", LIST_MAX);
    refused(String::from_bytes(&huge).map(drop), "string", VALUE_LEN_MAX);
    refused(Value::from_bytes(&huge).map(drop), "value", VALUE_LEN_MAX);
    refused(Text::<9>::from_bytes(&huge).map(drop), "text", 9);
    refused(Blob::<9>::from_bytes(&huge).map(drop), "blob", 9);
    refused(BoundedList::<u8, 9>::from_bytes(&huge).map(drop), "list", 9);
    refused(BoundedSet::<u8, 9>::from_bytes(&huge).map(drop), "set", 9);
}

/// spec: CODEC-4. A count within its limit that the input cannot hold is refused before the first element.
#[test]
fn a_count_above_what_is_left_is_refused() {
    let mut bytes = length(1000);
    bytes.extend([0; 999]);
    assert_eq!(Vec::<u8>::from_bytes(&bytes), Err(DecodeError::Truncated { needed: 1000, left: 999 }));
}

/// spec: CODEC-4. Elements without bytes would let a small input ask for endless work.
#[test]
fn a_list_of_elements_without_bytes_is_refused() {
    let mut bytes = length(4);
    bytes.extend([0; 4]);
    assert_eq!(Vec::<()>::from_bytes(&bytes), Err(DecodeError::Invalid { what: "list of elements without bytes" }));
}

/// spec: CODEC-4. The bound is part of the type on the way in too.
#[test]
fn a_bounded_collection_takes_its_bound_and_not_one_more() {
    assert!(Text::<3>::new("abc").is_ok());
    assert_eq!(Text::<3>::new("abcd").expect_err("four bytes").found, 4);
    assert!(Blob::<3>::new([0; 3]).is_ok());
    assert_eq!(Blob::<3>::new([0; 4]).expect_err("four bytes").limit, 3);
    let mut list = BoundedList::<u8, 1>::new(vec![1]).expect("one fits");
    assert!(list.push(2).is_err());
    assert_eq!(list.len(), 1);
    let mut set = BoundedSet::<u8, 1>::new([1, 1]).expect("equal elements count once");
    assert_eq!(set.insert(1).ok(), Some(false));
    assert!(set.insert(2).is_err());
    assert!(set.remove(&1));
    assert_eq!(set.insert(2).ok(), Some(true));
}

/// spec: CODEC-3. P-12: a varint that is longer than needed, or above 64 bits, is refused.
#[test]
fn p12_a_varint_is_minimal_and_at_most_64_bits() {
    let read = |bytes: &[u8]| Reader::new(bytes).varint();
    let mut most = [0xff; 10];
    most[9] = 1;
    assert_eq!(read(&most), Ok(u64::MAX));
    most[9] = 2;
    assert!(matches!(read(&most), Err(DecodeError::Invalid { .. })));
    assert!(matches!(read(&[0xff; 11]), Err(DecodeError::Invalid { .. })));
    assert!(matches!(read(&[0x80, 0x00]), Err(DecodeError::NotCanonical { .. })));
    assert!(matches!(read(&[0xff, 0x80, 0x00]), Err(DecodeError::NotCanonical { .. })));
    assert!(matches!(read(&[0x80]), Err(DecodeError::Truncated { .. })));
    assert!(matches!(read(&[]), Err(DecodeError::Truncated { .. })));
}

/// spec: CODEC-3. A varint of any length is read alike, many bytes before the end of the input or at it.
#[test]
fn a_varint_is_read_alike_whatever_follows() {
    for len in 1..=10 {
        for (fill, last) in [(0x80, 0), (0x80, 1), (0xff, 0), (0xff, 1), (0xa5, 0x25), (0xff, 0x7f)] {
            let mut bytes = vec![fill; len - 1];
            bytes.push(last);
            // The longest one has room for one bit in its last byte.
            let legal = (len == 1 || last > 0) && (len < 10 || last < 2);
            for rest in 0..12 {
                let input = [&bytes[..], &[0xff; 12][..rest]].concat();
                let mut reader = Reader::new(&input);
                let found = reader.varint();
                let sum = |sum: u64, byte: &u8| sum << 7 | u64::from(byte & 0x7f);
                let expected = bytes.iter().rev().fold(0, sum);
                match found {
                    Ok(found) => assert_eq!((found, reader.left(), legal), (expected, rest, true), "{bytes:x?}"),
                    Err(error) => assert!(!legal, "{bytes:x?} and {rest} more: {error}"),
                }
            }
        }
    }
}

/// A list in a list in a list: as deep as the input says.
#[derive(Debug)]
struct Nest(Vec<Nest>);

impl Encode for Nest {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl Decode for Nest {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(Vec::decode(input)?))
    }
}

fn nest(levels: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = (1..levels).flat_map(|_| length(1)).collect();
    bytes.extend(length(0));
    bytes
}

/// spec: CODEC-9. Values nest 32 deep and no deeper, so no input overflows the stack.
#[test]
fn values_nest_to_the_limit_and_no_deeper() {
    assert_eq!(Nest::from_bytes(&nest(DEPTH_MAX)).expect("the limit itself is allowed").to_bytes(), nest(DEPTH_MAX));
    for levels in [DEPTH_MAX + 1, 100_000] {
        let refused = Nest::from_bytes(&nest(levels)).expect_err("deeper than the limit");
        assert_eq!(refused, DecodeError::TooDeep { limit: DEPTH_MAX }, "{levels} levels");
    }
}

/// spec: CODEC-8. Names have an alphabet and a length, in every way in.
#[test]
fn names_outside_their_alphabet_or_length_are_refused() {
    for name in ["", "Social", "a b", "ü", "a/b", "a\0", &"a".repeat(NAMESPACE_LEN_MAX + 1)] {
        assert_eq!(Namespace::new(name), Err(TypeError::Namespace), "{name:?}");
        let bytes: Vec<u8> = [&[u8::try_from(name.len()).expect("short")], name.as_bytes()].concat();
        assert_eq!(Namespace::from_bytes(&bytes), Err(DecodeError::Invalid { what: "namespace" }), "{name:?}");
    }
    for name in ["", "a b", "ü", "a:b", &"a".repeat(CHAIN_ID_LEN_MAX + 1)] {
        assert_eq!(ChainId::new(name), Err(TypeError::ChainId), "{name:?}");
        let bytes: Vec<u8> = [&[u8::try_from(name.len()).expect("short")], name.as_bytes()].concat();
        assert_eq!(ChainId::from_bytes(&bytes), Err(DecodeError::Invalid { what: "chain id" }), "{name:?}");
    }
    assert!(Namespace::new(&"z".repeat(NAMESPACE_LEN_MAX)).is_ok());
    assert!(ChainId::new(&"Z".repeat(CHAIN_ID_LEN_MAX)).is_ok());
}

/// spec: TREE-1. P-10: the empty key, the empty value and the key one byte too long are refused at every door.
#[test]
fn p10_empty_and_oversized_keys_and_values_are_refused() {
    assert_eq!(Key::new([]), Err(TypeError::EmptyKey));
    assert_eq!(Key::new([0; KEY_LEN_MAX + 1]), Err(TypeError::KeyTooLong { found: KEY_LEN_MAX + 1 }));
    assert!(Key::new([0; KEY_LEN_MAX]).is_ok());
    assert_eq!(Value::new(Vec::new()), Err(TypeError::EmptyValue));
    assert_eq!(Value::new(vec![0; VALUE_LEN_MAX + 1]), Err(TypeError::ValueTooLong { found: VALUE_LEN_MAX + 1 }));
    assert!(Value::new(vec![0; VALUE_LEN_MAX]).is_ok());
    assert!(Key::from_bytes(&[0]).is_err());
    assert!(Value::from_bytes(&length(0)).is_err());
}
