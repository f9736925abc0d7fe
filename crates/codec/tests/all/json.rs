//! The forms people and programs see.

use keelstone_codec::{
    Blob, BoundedList, BoundedSet, ChainId, Fixed, Hash, Height, Key, Namespace, Root, Text, Timestamp, Value,
};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fmt::Debug;

fn shown_as<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).expect("the shared types serialize"), json);
    assert_eq!(&serde_json::from_str::<T>(json).expect("what was written reads back"), value);
}

fn refused<T: DeserializeOwned + Debug>(json: &str) -> String {
    serde_json::from_str::<T>(json).expect_err("the limits of the codec hold in JSON too").to_string()
}

/// Hashes are hexadecimal, names are text, heights are numbers.
#[test]
fn shared_types_have_one_form_in_json() {
    let hash = Hash([0xab; 32]);
    shown_as(&hash, &format!("\"{}\"", "ab".repeat(32)));
    shown_as(&Root(hash), &format!("\"{}\"", "ab".repeat(32)));
    shown_as(&Height(u64::MAX), "18446744073709551615");
    shown_as(&Timestamp(7), "7");
    shown_as(&Namespace::new("social").expect("a name"), "\"social\"");
    shown_as(&ChainId::new("Test-1").expect("a chain id"), "\"Test-1\"");
    shown_as(&Key::new(*b"k\0").expect("a key"), "\"6b00\"");
    shown_as(&Value::new(&b"v"[..]).expect("a value"), "\"76\"");
    shown_as(&Blob::<2>::new([0, 1]).expect("two bytes fit"), "\"0001\"");
    shown_as(&Text::<4>::new("tüt").expect("four bytes fit"), "\"tüt\"");
    shown_as(&Fixed::from_micros(-1_500_000), "\"-1.500000\"");
    shown_as(&BoundedList::<u8, 3>::new(vec![3, 1, 3]).expect("three fit"), "[3,1,3]");
    shown_as(&BoundedSet::<u8, 2>::new([3, 1]).expect("two fit"), "[1,3]");
    shown_as(&BTreeMap::from([(Height(3), hash)]), &format!("{{\"3\":\"{}\"}}", "ab".repeat(32)));
}

/// A document cannot bring in what the codec would refuse.
#[test]
fn limits_hold_in_json() {
    assert!(refused::<Hash>("\"abcd\"").contains("64 lower-case hexadecimal digits"));
    assert!(refused::<Namespace>("\"Social\"").contains("a namespace is"));
    assert!(refused::<ChainId>("\"\"").contains("a chain id is"));
    assert!(refused::<Key>("\"\"").contains("at least one byte"));
    assert!(refused::<Value>("\"\"").contains("at least one byte"));
    assert!(refused::<Blob<1>>("\"0000\"").contains("2 is above the limit of 1"));
    assert!(refused::<Text<1>>("\"ab\"").contains("2 is above the limit of 1"));
    assert!(refused::<BoundedList<u8, 1>>("[1,2]").contains("2 is above the limit of 1"));
    assert!(refused::<BoundedSet<u8, 3>>("[1,1]").contains("stands twice"));
    assert!(refused::<Height>("-1").contains("invalid value"));
    assert!(refused::<Height>("1.5").contains("invalid type"));
    assert!(refused::<Fixed>("\"1e3\"").contains("fixed-point"));
    assert!(refused::<Fixed>("1").contains("invalid type"));
}
