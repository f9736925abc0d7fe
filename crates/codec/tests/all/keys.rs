//! Typed keys: different values have different bytes, in the order of the values. spec: TREE-15.

use keelstone_codec::{Blob, DecodeError, Fixed, Hash, Height, KeyEnd, KeyReader, OrderedKey, Text, Timestamp};
use proptest::collection::vec;
use proptest::prelude::*;
use std::fmt::Debug;

fn bytes_of(key: &impl OrderedKey) -> Vec<u8> {
    let mut out = Vec::new();
    key.encode_key(&mut out);
    out
}

fn reads_back_in_order<K: OrderedKey + Ord + Debug>(a: &K, b: &K) -> Result<(), TestCaseError> {
    let (left, right) = (bytes_of(a), bytes_of(b));
    prop_assert_eq!(a.cmp(b), left.cmp(&right), "{:?} and {:?}", a, b);
    let mut input = KeyReader::new(&left);
    prop_assert_eq!(&K::decode_key(&mut input).map_err(|e| TestCaseError::fail(e.to_string()))?, a);
    prop_assert_eq!(input.finish(), Ok(()));
    Ok(())
}

/// Byte strings with many zeros, ends and near misses of the escape.
fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// spec: TREE-15. The order of the bytes is the order of the values, so no two values share bytes.
    #[test]
    fn keys_sort_as_their_values(
        numbers in any::<[(u8, u16, u32, u64); 2]>(),
        wide in any::<[u128; 2]>(),
        a in (text(), text(), 0u64..3),
        b in (text(), text(), 0u64..3),
    ) {
        reads_back_in_order(&numbers[0], &numbers[1])?;
        reads_back_in_order(&wide[0], &wide[1])?;
        reads_back_in_order(&Height(numbers[0].3), &Height(numbers[1].3))?;
        reads_back_in_order(&Timestamp(numbers[0].3), &Timestamp(numbers[1].3))?;
        reads_back_in_order(&a.0, &b.0)?;
        reads_back_in_order(&a, &b)?;
        reads_back_in_order(&(a.2, a.0.clone()), &(b.2, b.0.clone()))?;
        reads_back_in_order(&[numbers[0].0, 1], &[numbers[1].0, 0])?;
    }

    /// spec: TREE-15. What is below zero comes first; what is not is as wide as before.
    #[test]
    fn signed_keys_sort_by_number(
        a in any::<(i8, i16, i32, i64, bool)>(),
        b in any::<(i8, i16, i32, i64, bool)>(),
        wide in any::<[i128; 2]>(),
        blobs in (text(), text()),
    ) {
        reads_back_in_order(&(a.0, a.1, a.2, a.3), &(b.0, b.1, b.2, b.3))?;
        reads_back_in_order(&a.3, &b.3)?;
        reads_back_in_order(&(a.4, a.0), &(b.4, b.0))?;
        reads_back_in_order(&wide[0], &wide[1])?;
        reads_back_in_order(&Fixed::from_micros(a.3), &Fixed::from_micros(b.3))?;
        let blob = |bytes: &Vec<u8>| Blob::<8>::new(bytes.clone()).expect("at most eight bytes");
        reads_back_in_order(&(blob(&blobs.0), 1u8), &(blob(&blobs.1), 1u8))?;
        let refused = Blob::<1>::decode_key(&mut KeyReader::new(&bytes_of(&blobs.0)));
        prop_assert_eq!(refused.is_ok(), blobs.0.len() <= 1);
    }

    /// spec: TREE-15. Text sorts by its bytes, and a bound holds on the way back too.
    #[test]
    fn text_keys_sort_as_text(a in "[\0ab\u{ff}]{0,4}", b in "[\0ab\u{ff}]{0,4}") {
        reads_back_in_order(&a, &b)?;
        let bounded = |text: &String| Text::<8>::new(text.as_str()).expect("at most eight bytes");
        reads_back_in_order(&(bounded(&a), 1u8), &(bounded(&b), 1u8))?;
        let refused = Text::<1>::decode_key(&mut KeyReader::new(&bytes_of(&a)));
        prop_assert_eq!(refused.is_ok(), a.len() <= 1);
    }

    /// spec: TREE-15. Bytes that are accepted are the ones that would be written.
    #[test]
    fn accepted_key_bytes_are_canonical(bytes in vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..8)) {
        let mut input = KeyReader::new(&bytes);
        if let Ok(key) = <(Vec<u8>, u8)>::decode_key(&mut input)
            && input.finish().is_ok()
        {
            prop_assert_eq!(bytes_of(&key), bytes);
        }
    }
}

/// spec: TREE-15. Parts end themselves: moving a byte from one part to the next changes the key.
#[test]
fn parts_of_a_composite_key_do_not_run_together() {
    let pair = |a: &str, b: &str| bytes_of(&(a.to_owned(), b.to_owned()));
    assert_ne!(pair("ab", "c"), pair("a", "bc"));
    assert_eq!(pair("a\0", ""), [b'a', 0, 0xff, 0, 0, 0, 0]);
    let escape = <Vec<u8>>::decode_key(&mut KeyReader::new(&[b'a', 0, 7]));
    assert_eq!(escape, Err(DecodeError::NotCanonical { what: "escape in a key" }));
    let open = Hash::decode_key(&mut KeyReader::new(&[0; 31]));
    assert_eq!(open, Err(DecodeError::Truncated { needed: 32, left: 31 }));
}

/// spec: TREE-15. The ends of numbers, and of what a key can be used for.
#[test]
fn signed_keys_at_their_ends() {
    assert_eq!(bytes_of(&i16::MIN), [0, 0]);
    assert_eq!(bytes_of(&-1i16), [0x7f, 0xff]);
    assert_eq!(bytes_of(&0i16), [0x80, 0]);
    assert_eq!(bytes_of(&i16::MAX), [0xff, 0xff]);
    assert!(matches!(bool::decode_key(&mut KeyReader::new(&[2])), Err(DecodeError::UnknownTag { found: 2, .. })));
    assert_eq!(
        (u64::END, Height::END, i64::END, <(u8, u64)>::END),
        (KeyEnd::Number, KeyEnd::Number, KeyEnd::Itself, KeyEnd::Itself)
    );
}
