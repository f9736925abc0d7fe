//! Keys of collections as people and programs write them, by the shape of their type.
//!
//! A key in a collection has the order of its type, an argument does not, and both have the same parts in the same order. So
//! a key is turned into the bytes an argument of its type has, and back, and is shown and read in JSON as that is.
//!
//! Rules: `spec/tree.md`, TREE-15; `spec/codec.md`, CODEC-1 to CODEC-6.

use crate::call;
use keelstone_codec::{Encode as _, KeyReader, OrderedKey, Reader, Shape};
use serde_json::Value;

/// The JSON of a key; none if its bytes do not have the shape, or the shape none that a key can have.
pub(crate) fn show(shape: &Shape, key: &[u8]) -> Option<Value> {
    let (mut rest, mut plain) = (key, Vec::new());
    to_plain(shape, &mut rest, &mut plain)?;
    if !rest.is_empty() {
        return None;
    }
    call::decode(shape, &plain).ok()
}

/// The bytes of a key that is written as [`show`] shows it; none if it is not. Quotes may be left out, and of a key with several
/// parts all but the parts, with commas between.
pub(crate) fn read(shape: &Shape, text: &str) -> Option<Vec<u8>> {
    let as_json = |json: &Value| {
        let plain = call::encode(shape, json).ok()?;
        let (mut input, mut key) = (Reader::new(&plain), Vec::new());
        from_plain(shape, &mut input, &mut key)?;
        (input.left() == 0 && show(shape, &key).is_some()).then_some(key)
    };
    let text = text.trim();
    if let Some(key) = serde_json::from_str(text).ok().and_then(|json| as_json(&json)) {
        return Some(key);
    }
    let bare = |part: &str, shape: &Shape| match shape {
        Shape::Unsigned(_) | Shape::Signed(_) | Shape::Bool => serde_json::from_str(part).unwrap_or(Value::Null),
        _ => Value::String(part.trim_matches('"').to_owned()),
    };
    let inner = text.trim_start_matches('[').trim_end_matches(']');
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    let json = match shape {
        Shape::Tuple(shapes) if parts.len() == shapes.len() => {
            parts.iter().zip(shapes).map(|(part, shape)| bare(part, shape)).collect()
        }
        Shape::Record(fields) if parts.len() == fields.len() => {
            let field = |(part, (name, shape)): (&&str, &(&str, Shape))| ((*name).to_owned(), bare(part, shape));
            Value::Object(parts.iter().zip(fields).map(field).collect())
        }
        Shape::Tuple(_) | Shape::Record(_) => return None,
        _ => bare(text, shape),
    };
    as_json(&json)
}

/// What keys begin with whose first parts are written as [`read`] takes them all; none if the text is no first parts.
pub(crate) fn read_first(shape: &Shape, text: &str) -> Option<Vec<u8>> {
    let first: Vec<Shape> = match shape {
        Shape::Tuple(parts) => (1..parts.len()).map(|count| Shape::Tuple(parts[..count].to_vec())).collect(),
        Shape::Record(fields) => (1..fields.len()).map(|count| Shape::Record(fields[..count].to_vec())).collect(),
        _ => return None,
    };
    first.iter().find_map(|parts| read(parts, text))
}

/// Takes a part of a key and writes it as an argument's.
fn to_plain(shape: &Shape, key: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    match shape {
        Shape::Bool | Shape::Array(_) => out.extend(take(key, width(shape)?)?),
        Shape::Unsigned(_) => out.extend(take(key, width(shape)?)?.iter().rev()),
        Shape::Signed(_) | Shape::Decimal => {
            let mut own = take(key, width(shape)?)?.to_vec();
            *own.first_mut()? ^= 0x80;
            out.extend(own.iter().rev());
        }
        // A raw key does not end itself: it is all that is left.
        Shape::RawBytes(_) if key.is_empty() => return None,
        Shape::RawBytes(_) => std::mem::take(key).to_vec().encode(out),
        Shape::Bytes(_) | Shape::Text(_) => unescape(key)?.encode(out),
        Shape::List(of, _) if **of == Shape::Unsigned(1) => unescape(key)?.encode(out),
        Shape::Tuple(parts) => parts.iter().try_for_each(|part| to_plain(part, key, out))?,
        Shape::Record(fields) => fields.iter().try_for_each(|(_, part)| to_plain(part, key, out))?,
        Shape::Choice(variants) => {
            let tag = *take(key, 1)?.first()?;
            out.push(tag);
            to_plain(&variants.iter().find(|variant| variant.tag == tag)?.shape, key, out)?;
        }
        Shape::Unit => {}
        _ => return None,
    }
    Some(())
}

/// Takes a part of an argument and writes it as a key's.
fn from_plain(shape: &Shape, plain: &mut Reader<'_>, out: &mut Vec<u8>) -> Option<()> {
    match shape {
        Shape::Bool | Shape::Array(_) => out.extend(plain.take(width(shape)?).ok()?),
        Shape::Unsigned(_) => out.extend(plain.take(width(shape)?).ok()?.iter().rev()),
        Shape::Signed(_) | Shape::Decimal => {
            let mut own: Vec<u8> = plain.take(width(shape)?).ok()?.iter().rev().copied().collect();
            *own.first_mut()? ^= 0x80;
            out.extend(own);
        }
        Shape::RawBytes(max) => out.extend(plain.bytes("key", *max).ok()?),
        Shape::Bytes(max) | Shape::Text(max) => escape(plain.bytes("key", *max).ok()?, out),
        Shape::List(of, max) if **of == Shape::Unsigned(1) => escape(plain.bytes("key", *max).ok()?, out),
        Shape::Tuple(parts) => parts.iter().try_for_each(|part| from_plain(part, plain, out))?,
        Shape::Record(fields) => fields.iter().try_for_each(|(_, part)| from_plain(part, plain, out))?,
        Shape::Choice(variants) => {
            let tag = plain.byte().ok()?;
            out.push(tag);
            from_plain(&variants.iter().find(|variant| variant.tag == tag)?.shape, plain, out)?;
        }
        Shape::Unit => {}
        _ => return None,
    }
    Some(())
}

/// Bytes that a part of one width takes.
fn width(shape: &Shape) -> Option<usize> {
    match shape {
        Shape::Bool => Some(1),
        Shape::Unsigned(len) | Shape::Signed(len) => Some(usize::from(*len)),
        Shape::Array(len) => Some(*len),
        Shape::Decimal => Some(8),
        _ => None,
    }
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (own, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(own)
}

// spec: TREE-15
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    bytes.to_vec().encode_key(out);
}

// spec: TREE-15
fn unescape(key: &mut &[u8]) -> Option<Vec<u8>> {
    let mut input = KeyReader::new(key);
    let bytes = Vec::<u8>::decode_key(&mut input).ok()?;
    *key = input.rest();
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::{Blob, Describe, Fixed, KEY_LEN_MAX, Text};
    use keelstone_execution::{Encode, OrderedKey, RawKey};

    fn bytes_of(key: &impl OrderedKey) -> Vec<u8> {
        let mut out = Vec::new();
        key.encode_key(&mut out);
        out
    }

    /// Shows a key and reads it again, as it is shown and without brackets and quotes.
    fn there_and_back<K: OrderedKey + Describe>(key: &K, shown: &str) {
        let (shape, bytes) = (K::shape(), bytes_of(key));
        assert_eq!(show(&shape, &bytes).map(|json| json.to_string()).as_deref(), Some(shown));
        assert_eq!(read(&shape, shown).as_ref(), Some(&bytes), "{shown}");
        let bare = shown.replace(['[', ']', '"'], "");
        assert_eq!(read(&shape, &bare).as_ref(), Some(&bytes), "{bare}");
    }

    /// spec: TREE-15. Whatever is shown as a key finds the row again.
    #[test]
    fn a_key_is_read_as_it_is_shown() {
        there_and_back(&7_u64, "7");
        there_and_back(&true, "true");
        there_and_back(&-3_i32, "-3");
        there_and_back(&(i64::MIN, 0_i8), "[\"-9223372036854775808\",0]");
        there_and_back(&Fixed::parse("-1.5").unwrap(), "\"-1.500000\"");
        there_and_back(&Blob::<8>::new([0, 1]).unwrap(), "\"0001\"");
        there_and_back(&65_535_u16, "65535");
        there_and_back(&[0xab_u8; 32], &format!("\"{}\"", "ab".repeat(32)));
        there_and_back(&[0x11_u8; 32], &format!("\"{}\"", "11".repeat(32)));
        there_and_back(&Text::<20>::new("a b").unwrap(), "\"a b\"");
        there_and_back(&Text::<20>::new("7").unwrap(), "\"7\"");
        there_and_back(&(7_u64, [9_u8; 4]), "[7,\"09090909\"]");
        there_and_back(&(Text::<20>::new("gold").unwrap(), 3_u8, 5_u32), "[\"gold\",3,5]");
    }

    /// spec: TREE-15. Bytes end themselves however many there may be; a raw key does not.
    #[test]
    fn bytes_of_any_length_are_told_from_a_raw_key() {
        there_and_back(&Blob::<KEY_LEN_MAX>::new([0, 1]).unwrap(), "\"0001\"");
        there_and_back(&(Blob::<KEY_LEN_MAX>::new([0, 1]).unwrap(), 7_u64), "[\"0001\",7]");
        there_and_back(&RawKey::new([0, 1]).unwrap(), "\"0001\"");
        there_and_back(&(7_u64, RawKey::new([0, 1]).unwrap()), "[7,\"0001\"]");
        assert_eq!(read(&RawKey::shape(), "\"\""), None, "no raw key is empty");
    }

    /// Parts with names are written as those without.
    #[test]
    fn a_key_of_named_parts_is_read_without_the_names() {
        #[derive(Encode, OrderedKey)]
        struct Seat {
            row: Text<8>,
            number: u16,
        }
        let seat = Seat { row: Text::new("a").unwrap(), number: 7 };
        let (shape, bytes) = (Seat::shape(), bytes_of(&seat));
        assert_eq!(show(&shape, &bytes).unwrap().to_string(), r#"{"row":"a","number":7}"#);
        for text in [r#"{"row":"a","number":7}"#, "a,7", "a, 7", "\"a\",7"] {
            assert_eq!(read(&shape, text).as_ref(), Some(&bytes), "{text}");
        }
        for text in ["a", "a,7,7", "7,a", ""] {
            assert_eq!(read(&shape, text), None, "{text}");
        }
    }

    /// spec: TREE-15. Keys with the same first parts lie together.
    #[test]
    fn the_first_parts_of_a_key_are_what_it_begins_with() {
        let key = (Text::<20>::new("gold").unwrap(), 3_u8, 5_u32);
        let (shape, bytes) = (<(Text<20>, u8, u32)>::shape(), bytes_of(&key));
        for (text, len) in [("gold", 6), ("\"gold\"", 6), ("[\"gold\"]", 6), ("gold,3", 7), ("[\"gold\",3]", 7)] {
            assert_eq!(read_first(&shape, text).as_deref(), bytes.get(..len), "{text}");
        }
        for text in ["gold,x", "gold,3,5", "gold,3,5,7"] {
            assert_eq!(read_first(&shape, text), None, "{text}");
        }
        assert_eq!(read_first(&Shape::Text(20), "gold"), None, "it has one part");
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let hash = Shape::Array(32);
        let pair = Shape::Tuple(vec![Shape::Unsigned(8), Shape::Array(4)]);
        for text in ["", "nobody", "[]", "-1", "[1,2]", "\"\"", "null"] {
            assert_eq!(read(&hash, text), None, "{text}");
            assert_eq!(read(&Shape::Unsigned(2), text), None, "{text}");
            assert_eq!(read(&pair, text), None, "{text}");
        }
        assert_eq!(read(&pair, "1,09090909,1"), None);
        assert_eq!(read(&Shape::Unsigned(2), "65535"), Some(vec![255, 255]));
        assert_eq!(read(&Shape::Unsigned(2), "65536"), None);
        assert_eq!(show(&Shape::Unsigned(2), &[1]), None);
        assert_eq!(show(&Shape::Unsigned(2), &[1, 2, 3]), None);
        assert_eq!(show(&Shape::Text(4), b"ab"), None, "it does not end");
        assert_eq!(show(&Shape::Optional(Box::new(Shape::Unsigned(1))), &[0]), None, "no key looks like that");
    }
}
