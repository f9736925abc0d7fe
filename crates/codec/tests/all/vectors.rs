//! The golden bytes: `spec/vectors/codec.json`. Rewritten only with `cargo xtask bless`.

use keelstone_codec::{
    Blob, BoundedList, BoundedSet, ChainId, Decode, Describe, Encode, Fixed, Hash, Height, Key, Namespace, OrderedKey,
    Reader, Shape, Tag, TaggedHasher, Text, Timestamp, Value, Variant, put_varint, tagged,
};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};

const TAG: Tag = Tag::new("example");

fn encoded(rule: &str, what: &str, value: &impl Encode) -> Json {
    json!({ "rule": rule, "value": what, "bytes": hex(&value.to_bytes()) })
}

fn key(what: &str, value: &impl OrderedKey) -> Json {
    let mut out = Vec::new();
    value.encode_key(&mut out);
    json!({ "rule": "TREE-15", "value": what, "bytes": hex(&out) })
}

fn shape<T: Describe>(what: &str) -> Json {
    encoded("CODEC-10", &format!("shape of {what}"), &T::shape())
}

fn varint(value: u64) -> Json {
    let mut out = Vec::new();
    put_varint(&mut out, value);
    json!({ "rule": "CODEC-3", "value": format!("varint {value}"), "bytes": hex(&out) })
}

fn refused<T: Decode>(rule: &str, what: &str, bytes: &[u8]) -> Json {
    let error = T::from_bytes(bytes).err().unwrap_or_else(|| panic!("{what} is accepted"));
    json!({ "rule": rule, "type": what, "bytes": hex(bytes), "error": error.to_string() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A varint read on its own, so that its refusals stand among the others.
struct Varint;
impl Decode for Varint {
    fn decode(input: &mut Reader<'_>) -> Result<Self, keelstone_codec::DecodeError> {
        input.varint().map(|_| Self)
    }
}

fn vectors() -> Json {
    let name = |name: &str| Namespace::new(name).expect("a name");
    json!({
        "encodings": [
            encoded("CODEC-1", "u8 7", &7u8),
            encoded("CODEC-1", "u16 258", &258u16),
            encoded("CODEC-1", "u32 1", &1u32),
            encoded("CODEC-1", "u64 max", &u64::MAX),
            encoded("CODEC-1", "u128 1", &1u128),
            encoded("CODEC-1", "i64 -2", &-2i64),
            encoded("CODEC-1", "true", &true),
            encoded("CODEC-1", "unit", &()),
            encoded("CODEC-1", "none of u8", &None::<u8>),
            encoded("CODEC-1", "some u8 7", &Some(7u8)),
            encoded("CODEC-1", "tuple (u8 1, u16 2)", &(1u8, 2u16)),
            encoded("CODEC-1", "[u8; 3] 1 2 3", &[1u8, 2, 3]),
            encoded("CODEC-1", "list of u16: 1, 2", &vec![1u16, 2]),
            encoded("CODEC-1", "text \"tüt\"", &"tüt".to_owned()),
            encoded("CODEC-1", "bounded text \"abc\"", &Text::<8>::new("abc").expect("fits")),
            encoded("CODEC-1", "blob 00 ff", &Blob::<8>::new([0, 0xff]).expect("fits")),
            encoded("CODEC-1", "hash of 32 times ab", &Hash([0xab; 32])),
            encoded("CODEC-1", "height 7", &Height(7)),
            encoded("CODEC-1", "timestamp 1 day", &Timestamp(86_400_000)),
            encoded("CODEC-5", "set of u16: 1, 2", &BTreeSet::from([2u16, 1])),
            encoded("CODEC-5", "bounded set of u8: 1, 9", &BoundedSet::<u8, 4>::new([9, 1]).expect("fits")),
            encoded("CODEC-5", "map of u8 to bool: 1 true, 2 false", &BTreeMap::from([(2u8, false), (1, true)])),
            encoded("CODEC-6", "fixed 1.5", &Fixed::parse("1.5").expect("a number")),
            encoded("CODEC-6", "fixed -0.000001", &Fixed::parse("-0.000001").expect("a number")),
            encoded("CODEC-8", "key 6b 00", &Key::new(*b"k\0").expect("a key")),
            encoded("CODEC-8", "value 76", &Value::new(&b"v"[..]).expect("a value")),
            encoded("CODEC-8", "namespace social", &name("social")),
            encoded("CODEC-8", "chain id Test-1", &ChainId::new("Test-1").expect("a chain id")),
            shape::<(u16, i64, bool)>("(u16, i64, bool)"),
            shape::<Option<Fixed>>("option of fixed"),
            shape::<BTreeMap<Key, Text<8>>>("map of key to text of at most 8 bytes"),
            shape::<BoundedList<Hash, 4>>("list of at most 4 hashes"),
            varint(0), varint(127), varint(128), varint(300), varint(u64::MAX),
        ],
        "keys": [
            key("u8 7", &7u8),
            key("u64 258", &258u64),
            key("i16 -2", &-2i16),
            key("i16 2", &2i16),
            key("true", &true),
            key("fixed -0.000001", &Fixed::parse("-0.000001").expect("a number")),
            key("blob 00 ff", &Blob::<8>::new([0, 0xff]).expect("fits")),
            key("bytes 61 00", &b"a\0".to_vec()),
            key("tuple of bytes 61 62 and 63", &(b"ab".to_vec(), b"c".to_vec())),
            key("tuple of bytes 61 and 62 63", &(b"a".to_vec(), b"bc".to_vec())),
            key("tuple of u32 1 and text \"x\"", &(1u32, "x".to_owned())),
        ],
        "refused": [
            refused::<u8>("CODEC-1", "u8, one byte too many", &[7, 0]),
            refused::<u32>("CODEC-1", "u32, cut", &[1, 0, 0]),
            refused::<bool>("CODEC-1", "bool", &[2]),
            refused::<Option<u8>>("CODEC-1", "option of u8", &[2, 7]),
            refused::<String>("CODEC-1", "text, not UTF-8", &[1, 0, 0, 0, 0xff]),
            refused::<Varint>("CODEC-3", "varint, longer than needed", &[0x80, 0]),
            refused::<Varint>("CODEC-3", "varint, above 64 bits", &[0xff; 10]),
            refused::<Vec<u8>>("CODEC-4", "list of u8, count above the limit", &[0xff; 4]),
            refused::<Vec<()>>("CODEC-4", "list of units", &[1, 0, 0, 0, 0]),
            refused::<BTreeSet<u8>>("CODEC-5", "set of u8, descending", &[2, 0, 0, 0, 2, 1]),
            refused::<BTreeMap<u8, u8>>("CODEC-5", "map of u8 to u8, repeated key", &[2, 0, 0, 0, 1, 0, 1, 0]),
            refused::<Key>("CODEC-8", "key, empty", &[0]),
            refused::<Value>("CODEC-8", "value, empty", &[0; 4]),
            refused::<Namespace>("CODEC-8", "namespace, upper case", b"\x01A"),
            refused::<ChainId>("CODEC-8", "chain id, with a space", b"\x01 "),
        ],
        "tagged": [
            { "rule": "CODEC-7", "tag": "example", "parts": "", "hash": TaggedHasher::new(TAG).finish().to_string() },
            { "rule": "CODEC-7", "tag": "example", "parts": "u64 7", "hash": tagged(TAG, &7u64).to_string() },
        ],
    })
}

/// spec: CODEC-1. The bytes of every type are the ones written down.
#[test]
fn the_bytes_are_the_ones_in_the_golden_file() {
    golden::check("codec.json", &vectors());
}

/// spec: CODEC-7. A tagged hash is BLAKE3 over the project's name, the tag, a zero byte and the parts.
#[test]
fn a_tag_keeps_uses_of_a_hash_apart() {
    let by_hand = blake3::hash(b"keelstone/example\x00\x07\0\0\0\0\0\0\0");
    assert_eq!(tagged(TAG, &7u64), Hash(*by_hand.as_bytes()));
    assert_ne!(tagged(TAG, &7u64), tagged(Tag::new("example2"), &7u64));
    assert_ne!(TaggedHasher::new(TAG).finish(), Hash(*blake3::hash(b"").as_bytes()));
}

/// spec: CODEC-10. Each kind of shape has the tag of the table, and what is named there behind it.
#[test]
fn a_shape_is_encoded_as_its_table_says() {
    let unit = || Box::new(Shape::Unit);
    let bound = [9, 0, 0, 0, 0, 0, 0, 0];
    let name = [1, 0, 0, 0, b'a'];
    let one = [1, 0, 0, 0];
    let table: [(Shape, &[&[u8]]); 19] = [
        (Shape::Unit, &[]),
        (Shape::Bool, &[]),
        (Shape::Unsigned(8), &[&[8]]),
        (Shape::Signed(16), &[&[16]]),
        (Shape::Decimal, &[]),
        (Shape::Array(9), &[&bound]),
        (Shape::Bytes(9), &[&bound]),
        (Shape::RawBytes(9), &[&bound]),
        (Shape::Text(9), &[&bound]),
        (Shape::ShortBytes(9), &[&bound]),
        (Shape::ShortText(9), &[&bound]),
        (Shape::Optional(unit()), &[&[0]]),
        (Shape::List(unit(), 9), &[&[0], &bound]),
        (Shape::Set(unit(), 9), &[&[0], &bound]),
        (Shape::Map(unit(), Box::new(Shape::Bool), 9), &[&[0, 1], &bound]),
        (Shape::Tuple(vec![Shape::Bool]), &[&one, &[1]]),
        (Shape::Record(vec![("a", Shape::Bool)]), &[&one, &name, &[1]]),
        (Shape::Choice(vec![Variant { tag: 7, name: "a", shape: Shape::Bool }]), &[&one, &[7], &name, &[1]]),
        (Shape::Opaque("a"), &[]),
    ];
    for (tag, (shape, then)) in (0u8..).zip(table) {
        assert_eq!(shape.to_bytes(), [&[tag][..], &then.concat()].concat(), "{shape:?}");
    }
}
