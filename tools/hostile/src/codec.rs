//! Canonical bytes and typed keys.

use crate::{Target, canonical};
use keelstone_codec::{
    Blob, BoundedList, BoundedSet, ChainId, Decode, DecodeError, Encode, Fixed, Hash, Height, Key, KeyReader,
    Namespace, OrderedKey, Reader, Text, Value, put_varint,
};
use std::collections::{BTreeMap, BTreeSet};

type Mixed = ((u8, Option<u16>, Fixed), (Key, Value, Namespace), (ChainId, Text<9>, Blob<9>), Nested);
type Nested = (BTreeMap<u8, Vec<Height>>, BTreeSet<String>, BoundedList<Hash, 3>, BoundedSet<i64, 3>);

pub(crate) const VALUES: Target = Target { name: "codec", run: values, seeds: value_seeds };

fn values(input: &[u8]) -> bool {
    let mut accepted = canonical::<Mixed>(input).is_some();
    accepted |= canonical::<Nested>(input).is_some();
    accepted |= canonical::<Vec<Vec<String>>>(input).is_some();
    accepted |= canonical::<Deep>(input).is_some();
    let mut reader = Reader::new(input);
    if let Ok(number) = reader.varint() {
        let mut again = Vec::new();
        put_varint(&mut again, number);
        assert_eq!(again, input[..input.len() - reader.left()], "a second varint was accepted");
        accepted |= reader.left() == 0;
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(number) = Fixed::parse(text)
    {
        assert_eq!(Fixed::parse(&number.to_string()), Ok(number));
        accepted = true;
    }
    accepted
}

/// A list of lists without end: the reader has to end it.
struct Deep(Vec<Deep>);

impl Encode for Deep {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl Decode for Deep {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(Vec::decode(input)?))
    }
}

fn value_seeds() -> Vec<Vec<u8>> {
    let fits = "within the limits of its type";
    let nested: Nested = (
        BTreeMap::from([(1, vec![Height(2)]), (7, vec![])]),
        BTreeSet::from(["a".to_owned(), "b".to_owned()]),
        BoundedList::new(vec![Hash([3; 32])]).expect(fits),
        BoundedSet::new([-1, 1]).expect(fits),
    );
    let mixed: Mixed = (
        (1, Some(2), Fixed::ONE),
        (Key::new(*b"key").expect(fits), Value::new(&b"value"[..]).expect(fits), Namespace::new("social").expect(fits)),
        (ChainId::new("Test-1").expect(fits), Text::new("tüt").expect(fits), Blob::new([1, 2]).expect(fits)),
        nested.clone(),
    );
    let lists = vec![vec!["x".to_owned()], vec![]];
    let deep = Deep(vec![Deep(vec![]), Deep(vec![Deep(vec![])])]);
    vec![mixed.to_bytes(), nested.to_bytes(), lists.to_bytes(), deep.to_bytes(), vec![0xac, 2], b"-12.5".to_vec()]
}

pub(crate) const KEYS: Target = Target { name: "typed_key", run: keys, seeds: key_seeds };

fn keys(input: &[u8]) -> bool {
    fn one<K: OrderedKey>(input: &[u8]) -> bool {
        let mut reader = KeyReader::new(input);
        if let Ok(key) = K::decode_key(&mut reader)
            && reader.finish().is_ok()
        {
            let mut again = Vec::new();
            key.encode_key(&mut again);
            assert_eq!(again, input, "a second form of a key was accepted");
            return true;
        }
        false
    }
    let [a, b] = [one::<(u16, String, Hash)>(input), one::<(Vec<u8>, Vec<u8>, u8)>(input)];
    one::<(Text<5>, Height)>(input) || a || b
}

fn key_seeds() -> Vec<Vec<u8>> {
    fn bytes(key: &impl OrderedKey) -> Vec<u8> {
        let mut out = Vec::new();
        key.encode_key(&mut out);
        out
    }
    vec![bytes(&(1u16, "a\0b".to_owned(), Hash([1; 32]))), bytes(&(vec![0u8, 1], vec![0xffu8, 0], 9u8))]
}
