//! Calls as people write them: a function's name and JSON arguments, turned into canonical bytes and back.
//!
//! Every registered function describes the layout of its arguments and its result as a [`Shape`], so each has JSON
//! arguments without a codec of its own. JSON is read into a [`Plain`] value of that shape, checked against its
//! bounds, and encoded; sets and maps are sorted here, so people need not know the canonical order.
//!
//! Bytes are lower-case hexadecimal, numbers JSON integers, decimals strings, options `null` or the value, a variant its name or `{"name": content}`.
//! A number may be given as a string, and is shown as one if it is beyond 2^53 - 1 on either side: many JSON tools would
//! round it. The forms are listed in `docs/cli.md`, "Arguments".

use keelstone_codec::{DEPTH_MAX, Decode, DecodeError, Fixed, Reader, Shape, put_length, unhex};
use serde_json::{Map, Number, Value, json};

/// The largest integer that every JSON tool holds: 2^53 - 1.
const EXACT_MAX: u128 = (1 << 53) - 1;

/// Why JSON does not fit a shape: where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: expected {expected}, found {found}")]
pub(crate) struct Misfit {
    path: String,
    expected: String,
    found: String,
}

/// A value of some shape. `Ord` is the order of the type that has the shape, by which sets and maps are sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Plain {
    Unit,
    Unsigned { bytes: u8, value: u128 },
    Signed { bytes: u8, value: i128 },
    Bare(Vec<u8>),
    Bytes(Vec<u8>),
    ShortBytes(Vec<u8>),
    Optional(Option<Box<Plain>>),
    Many(Vec<Plain>),
    Row(Vec<Plain>),
    Choice(u8, Box<Plain>),
}

/// The canonical bytes of JSON under a shape.
///
/// # Errors
/// [`Misfit`] names the path to what does not fit.
pub(crate) fn encode(shape: &Shape, json: &Value) -> Result<Vec<u8>, Misfit> {
    let mut out = Vec::new();
    write(&read(shape, json, "$")?, &mut out);
    Ok(out)
}

/// The canonical bytes of strict JSON text under a shape: what the command line and the API do with arguments.
///
/// # Errors
/// What is wrong with the text, for people.
pub fn arguments(shape: &Shape, text: &[u8]) -> Result<Vec<u8>, String> {
    let json: Value = crate::strict_json::parse(text).map_err(|error| error.to_string())?;
    encode(shape, &json).map_err(|misfit| misfit.to_string())
}

/// The JSON text of canonical bytes under a shape, which [`arguments`] reads back.
///
/// # Errors
/// [`DecodeError`] if the bytes do not have the shape.
pub fn shown(shape: &Shape, bytes: &[u8]) -> Result<String, DecodeError> {
    decode(shape, bytes).map(|json| json.to_string())
}

/// The JSON of canonical bytes under a shape.
///
/// # Errors
/// [`DecodeError`] if the bytes do not have the shape.
pub(crate) fn decode(shape: &Shape, bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut input = Reader::new(bytes);
    let value = show(shape, &mut input, 0)?;
    input.finish()?;
    Ok(value)
}

/// Says that bytes have a shape which this program cannot walk: a type within itself, or one with a rule of its own.
pub(crate) const UNKNOWN: DecodeError = DecodeError::Invalid { what: "shape this program does not know" };

/// What a shape looks like, for people who have to write JSON of it.
pub(crate) fn outline(shape: &Shape) -> Value {
    match shape {
        Shape::Unit => Value::Null,
        Shape::Bool => json!("true or false"),
        Shape::Unsigned(bytes) => json!(format!("unsigned integer of {} bits", u32::from(*bytes) * 8)),
        Shape::Signed(bytes) => json!(format!("signed integer of {} bits", u32::from(*bytes) * 8)),
        Shape::Decimal => json!("decimal with up to 6 places, as a string"),
        Shape::Array(len) => json!(format!("{len} bytes, hex")),
        Shape::Bytes(max) | Shape::RawBytes(max) | Shape::ShortBytes(max) => {
            json!(format!("bytes, up to {max}, hex"))
        }
        Shape::Text(max) | Shape::ShortText(max) => json!(format!("text, up to {max} bytes")),
        Shape::Optional(inner) => json!({ "null or": outline(inner) }),
        Shape::List(element, _) | Shape::Set(element, _) => json!([outline(element)]),
        Shape::Map(key, value, _) => json!([[outline(key), outline(value)]]),
        Shape::Tuple(parts) => parts.iter().map(outline).collect(),
        Shape::Record(fields) => {
            Value::Object(fields.iter().map(|(name, shape)| ((*name).to_owned(), outline(shape))).collect())
        }
        Shape::Choice(variants) => variants
            .iter()
            .map(|variant| match &variant.shape {
                Shape::Unit => json!(variant.name),
                shape => json!({ variant.name: outline(shape) }),
            })
            .collect(),
        _ => json!("hex"),
    }
}

fn read(shape: &Shape, json: &Value, path: &str) -> Result<Plain, Misfit> {
    let misfit = |expected: &str| Misfit { path: path.to_owned(), expected: expected.to_owned(), found: brief(json) };
    match shape {
        // A function without arguments reads best with nothing or an empty object.
        Shape::Unit => match json {
            Value::Null => Ok(Plain::Unit),
            Value::Object(members) if members.is_empty() => Ok(Plain::Unit),
            _ => Err(misfit("null")),
        },
        Shape::Bool => match json {
            Value::Bool(flag) => Ok(Plain::Unsigned { bytes: 1, value: u128::from(*flag) }),
            _ => Err(misfit("true or false")),
        },
        Shape::Unsigned(bytes) => {
            let max = u128::MAX >> (128 - u32::from(*bytes) * 8);
            let value = integer(json).and_then(|text| text.parse().ok()).filter(|value| *value <= max);
            let value = value.ok_or_else(|| misfit(&format!("an integer from 0 to {max}")))?;
            Ok(Plain::Unsigned { bytes: *bytes, value })
        }
        Shape::Signed(bytes) => {
            let max = i128::MAX >> (128 - u32::from(*bytes) * 8);
            let value =
                integer(json).and_then(|text| text.parse().ok()).filter(|value| (-max - 1..=max).contains(value));
            let value = value.ok_or_else(|| misfit(&format!("an integer from {} to {max}", -max - 1)))?;
            Ok(Plain::Signed { bytes: *bytes, value })
        }
        Shape::Decimal => {
            let fixed = integer(json).and_then(|text| Fixed::parse(&text).ok());
            let micros = fixed.ok_or_else(|| misfit("a decimal with up to 6 places"))?.micros();
            Ok(Plain::Signed { bytes: 8, value: i128::from(micros) })
        }
        Shape::Array(len) => {
            let bytes = json.as_str().and_then(|text| unhex(text).ok()).filter(|bytes| bytes.len() == *len);
            bytes.map(Plain::Bare).ok_or_else(|| misfit(&format!("{len} bytes as {} hexadecimal digits", len * 2)))
        }
        Shape::Bytes(max) | Shape::RawBytes(max) | Shape::ShortBytes(max) => {
            let bytes = json.as_str().and_then(|text| unhex(text).ok()).filter(|bytes| bytes.len() <= *max);
            let bytes = bytes.ok_or_else(|| misfit(&format!("up to {max} bytes in hexadecimal")))?;
            Ok(if matches!(shape, Shape::ShortBytes(_)) { Plain::ShortBytes(bytes) } else { Plain::Bytes(bytes) })
        }
        Shape::Text(max) | Shape::ShortText(max) => {
            let text = json.as_str().filter(|text| text.len() <= *max);
            let bytes = text.ok_or_else(|| misfit(&format!("text of up to {max} bytes")))?.as_bytes().to_vec();
            Ok(if matches!(shape, Shape::Text(_)) { Plain::Bytes(bytes) } else { Plain::ShortBytes(bytes) })
        }
        Shape::Optional(inner) => match json {
            Value::Null => Ok(Plain::Optional(None)),
            json => Ok(Plain::Optional(Some(Box::new(read(inner, json, path)?)))),
        },
        Shape::List(element, max) => Ok(Plain::Many(read_elements(element, json, *max, path)?)),
        Shape::Set(element, max) => {
            let mut elements = read_elements(element, json, *max, path)?;
            elements.sort();
            match elements.windows(2).all(|pair| pair[0] != pair[1]) {
                true => Ok(Plain::Many(elements)),
                false => Err(misfit("elements that differ")),
            }
        }
        Shape::Map(key, value, max) => {
            let pair = Shape::Tuple(vec![(**key).clone(), (**value).clone()]);
            let mut pairs = read_elements(&pair, json, *max, path)?;
            pairs.sort();
            let key_of = |row: &Plain| match row {
                Plain::Row(parts) => parts.first().cloned(),
                _ => None,
            };
            match pairs.windows(2).all(|pair| key_of(&pair[0]) != key_of(&pair[1])) {
                true => Ok(Plain::Many(pairs)),
                false => Err(misfit("keys that differ")),
            }
        }
        Shape::Tuple(parts) => {
            let values = json.as_array().filter(|values| values.len() == parts.len());
            let values = values.ok_or_else(|| misfit(&format!("a list of {}", parts.len())))?;
            let read = |(index, (part, value))| read(part, value, &format!("{path}[{index}]"));
            Ok(Plain::Row(parts.iter().zip(values).enumerate().map(read).collect::<Result<_, _>>()?))
        }
        Shape::Record(fields) => read_record(fields, json, path),
        Shape::Choice(variants) => {
            let (name, content) = match json {
                Value::String(name) => (name.as_str(), &Value::Null),
                Value::Object(members) if members.len() == 1 => {
                    members.iter().next().map(|(name, content)| (name.as_str(), content)).unwrap_or(("", &Value::Null))
                }
                _ => ("", &Value::Null),
            };
            let names = || variants.iter().map(|variant| variant.name).collect::<Vec<_>>().join(", ");
            let variant = variants.iter().find(|variant| variant.name == name);
            let variant = variant.ok_or_else(|| misfit(&format!("one of {}", names())))?;
            let content = read(&variant.shape, content, &format!("{path}.{name}"))?;
            Ok(Plain::Choice(variant.tag, Box::new(content)))
        }
        _ => Err(misfit("a shape this program knows")),
    }
}

fn read_elements(element: &Shape, json: &Value, max: usize, path: &str) -> Result<Vec<Plain>, Misfit> {
    let elements = json.as_array().filter(|elements| elements.len() <= max).ok_or_else(|| Misfit {
        path: path.to_owned(),
        expected: format!("a list of at most {max}"),
        found: brief(json),
    })?;
    let read = |(index, value)| read(element, value, &format!("{path}[{index}]"));
    elements.iter().enumerate().map(read).collect()
}

fn read_record(fields: &[(&'static str, Shape)], json: &Value, path: &str) -> Result<Plain, Misfit> {
    let names = || fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let misfit = |expected: String, found: String| Misfit { path: path.to_owned(), expected, found };
    let empty = Map::new();
    let members = match json {
        Value::Object(members) => members,
        Value::Null if fields.is_empty() => &empty,
        _ => return Err(misfit(format!("an object with {}", names()), brief(json))),
    };
    if let Some(unknown) = members.keys().find(|key| !fields.iter().any(|(name, _)| name == key)) {
        return Err(misfit(format!("only {}", names()), format!("the key {unknown:?}")));
    }
    let field = |(name, shape): &(&'static str, Shape)| match (members.get(*name), shape) {
        (Some(value), shape) => read(shape, value, &format!("{path}.{name}")),
        (None, Shape::Optional(_)) => Ok(Plain::Optional(None)),
        (None, _) => Err(misfit(format!("the key {name:?}"), "none".to_owned())),
    };
    Ok(Plain::Row(fields.iter().map(field).collect::<Result<_, _>>()?))
}

/// The text of a JSON number, or of a string that holds one.
fn integer(json: &Value) -> Option<String> {
    match json {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// What was found, short enough for a message.
fn brief(json: &Value) -> String {
    let text = json.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

fn write(plain: &Plain, out: &mut Vec<u8>) {
    match plain {
        Plain::Unit => {}
        Plain::Unsigned { bytes, value } => out.extend_from_slice(&value.to_le_bytes()[..usize::from(*bytes)]),
        Plain::Signed { bytes, value } => out.extend_from_slice(&value.to_le_bytes()[..usize::from(*bytes)]),
        Plain::Bare(bytes) => out.extend_from_slice(bytes),
        Plain::Bytes(bytes) => {
            put_length(out, bytes.len());
            out.extend_from_slice(bytes);
        }
        Plain::ShortBytes(bytes) => {
            out.push(u8::try_from(bytes.len()).expect("short shapes hold at most 255 bytes, checked when read"));
            out.extend_from_slice(bytes);
        }
        Plain::Optional(None) => out.push(0),
        Plain::Optional(Some(inner)) => {
            out.push(1);
            write(inner, out);
        }
        Plain::Many(elements) => {
            put_length(out, elements.len());
            elements.iter().for_each(|element| write(element, out));
        }
        Plain::Row(parts) => parts.iter().for_each(|part| write(part, out)),
        Plain::Choice(tag, content) => {
            out.push(*tag);
            write(content, out);
        }
    }
}

fn show(shape: &Shape, input: &mut Reader<'_>, depth: u32) -> Result<Value, DecodeError> {
    if depth > DEPTH_MAX {
        return Err(DecodeError::TooDeep { limit: DEPTH_MAX });
    }
    let hex = |bytes: &[u8]| Value::String(hex::encode(bytes));
    let many = |input: &mut Reader<'_>, element: &Shape, max: usize| {
        let count = input.length("list", max)?;
        let mut values = Vec::new();
        for _ in 0..count {
            let before = input.left();
            values.push(show(element, input, depth + 1)?);
            if input.left() == before {
                return Err(DecodeError::Invalid { what: "list of elements without bytes" });
            }
        }
        Ok(Value::Array(values))
    };
    Ok(match shape {
        Shape::Unit => Value::Null,
        Shape::Bool => Value::Bool(bool::decode(input)?),
        Shape::Unsigned(bytes) => {
            let mut wide = [0; 16];
            wide[..usize::from(*bytes)].copy_from_slice(input.take(usize::from(*bytes))?);
            let value = u128::from_le_bytes(wide);
            number(value, value)
        }
        Shape::Signed(bytes) => {
            let taken = input.take(usize::from(*bytes))?;
            let negative = taken.last().is_some_and(|byte| byte & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 16];
            wide[..taken.len()].copy_from_slice(taken);
            let value = i128::from_le_bytes(wide);
            number(value, value.unsigned_abs())
        }
        Shape::Decimal => Value::String(Fixed::decode(input)?.to_string()),
        Shape::Array(len) => hex(input.take(*len)?),
        Shape::Bytes(max) | Shape::RawBytes(max) => hex(input.bytes("bytes", *max)?),
        Shape::ShortBytes(_) => {
            let len = input.byte()?;
            hex(input.take(usize::from(len))?)
        }
        Shape::Text(max) => text(input.bytes("text", *max)?)?,
        Shape::ShortText(_) => {
            let len = input.byte()?;
            text(input.take(usize::from(len))?)?
        }
        Shape::Optional(inner) => match bool::decode(input)? {
            false => Value::Null,
            true => show(inner, input, depth + 1)?,
        },
        Shape::List(element, max) | Shape::Set(element, max) => many(input, element, *max)?,
        Shape::Map(key, value, max) => many(input, &Shape::Tuple(vec![(**key).clone(), (**value).clone()]), *max)?,
        Shape::Tuple(parts) => parts.iter().map(|part| show(part, input, depth + 1)).collect::<Result<_, _>>()?,
        Shape::Record(fields) => {
            let field = |(name, shape): &(&str, Shape)| Ok(((*name).to_owned(), show(shape, input, depth + 1)?));
            Value::Object(fields.iter().map(field).collect::<Result<_, DecodeError>>()?)
        }
        Shape::Choice(variants) => {
            let tag = input.byte()?;
            let variant = variants
                .iter()
                .find(|variant| variant.tag == tag)
                .ok_or(DecodeError::UnknownTag { what: "variant", found: u64::from(tag) })?;
            match &variant.shape {
                Shape::Unit => json!(variant.name),
                shape => json!({ variant.name: show(shape, input, depth + 1)? }),
            }
        }
        _ => return Err(UNKNOWN),
    })
}

fn text(bytes: &[u8]) -> Result<Value, DecodeError> {
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Invalid { what: "text that is not UTF-8" })?;
    Ok(Value::String(text.to_owned()))
}

/// An integer of this magnitude: a JSON number, or a string if it is beyond what every JSON tool holds.
fn number(value: impl ToString, magnitude: u128) -> Value {
    let digits = value.to_string();
    match magnitude <= EXACT_MAX {
        true => Value::Number(Number::from_string_unchecked(digits)),
        false => Value::String(digits),
    }
}

/// A number of 64 bits in an answer, in the form that arguments and results have.
pub(crate) mod wide {
    use super::{Value, integer, number};
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};
    use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};

    pub(crate) fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|value| number(value, value.into())).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(None),
            json => integer(&json)
                .and_then(|text| text.parse().ok())
                .map(Some)
                .ok_or_else(|| D::Error::custom("expected an integer of 64 bits")),
        }
    }

    pub(crate) fn schema() -> Object {
        ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([Type::Integer, Type::String, Type::Null]))
            .description(Some("A string above 2^53 - 1."))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::{Describe, Encode as _, Hash, Text};
    use std::collections::{BTreeMap, BTreeSet};

    type Sample = (Option<i32>, BTreeSet<i16>, Text<8>, BTreeMap<u32, bool>);

    fn sample() -> Sample {
        let text = Text::new("Kiel").expect("short");
        (Some(-3), [-2, 300, 7].into(), text, [(256, true), (1, false)].into())
    }

    #[test]
    fn json_becomes_the_bytes_of_the_type_and_comes_back() {
        let json = json!([-3, [300, "7", -2], "Kiel", [[256, true], [1, false]]]);
        let bytes = encode(&Sample::shape(), &json).expect("fits");
        assert_eq!(bytes, sample().to_bytes());
        let back = decode(&Sample::shape(), &bytes).expect("its own bytes");
        assert_eq!(encode(&Sample::shape(), &back).expect("fits"), bytes);
        assert_eq!(back.to_string(), r#"[-3,[-2,7,300],"Kiel",[[1,false],[256,true]]]"#);
    }

    #[test]
    fn what_does_not_fit_is_named_by_its_path() {
        let refused = |json: Value, says: &str| {
            let error = encode(&Sample::shape(), &json).expect_err("does not fit").to_string();
            assert!(error.contains(says), "{error} does not say {says:?}");
        };
        refused(json!([null, [], "Kielkielkiel", []]), "$[2]: expected text of up to 8 bytes");
        refused(json!([null, [40_000], "", []]), "$[1][0]: expected an integer from -32768 to 32767, found 40000");
        refused(json!([null, [1, 1], "", []]), "$[1]: expected elements that differ");
        refused(json!([null, [], "", [[1, true], [1, false]]]), "$[3]: expected keys that differ");
        refused(json!([1.5, [], "", []]), "$[0]");
        refused(json!([null, []]), "a list of 4");
        assert!(encode(&Hash::shape(), &json!("00")).is_err());
    }

    /// What a reader of JSON would round is shown as text, and read back as it was.
    #[test]
    fn no_number_is_shown_that_a_reader_of_json_would_round() {
        let (exact, beyond) = ((1u64 << 53) - 1, 1u64 << 53);
        let cases = [
            (u64::shape(), exact.to_bytes(), json!(exact)),
            (u64::shape(), beyond.to_bytes(), json!("9007199254740992")),
            (u128::shape(), u128::MAX.to_bytes(), json!("340282366920938463463374607431768211455")),
            (i64::shape(), i64::MIN.to_bytes(), json!("-9223372036854775808")),
            (i64::shape(), (-9_007_199_254_740_991i64).to_bytes(), json!(-9_007_199_254_740_991i64)),
        ];
        for (shape, bytes, json) in cases {
            assert_eq!(decode(&shape, &bytes).expect("its own bytes"), json);
            assert_eq!(encode(&shape, &json).expect("fits"), bytes);
        }
    }

    #[test]
    fn r03_numbers_beyond_their_type_are_refused() {
        for json in [json!(-1), json!("18446744073709551616"), json!(1.5), json!(null), json!("-0"), json!("1e3")] {
            assert!(encode(&u64::shape(), &json).is_err(), "{json}");
        }
        let wide: Value = serde_json::from_str("1e400").expect("a number, if a large one");
        assert!(encode(&u64::shape(), &wide).is_err());
        assert_eq!(encode(&u64::shape(), &json!(u64::MAX)).expect("fits"), [0xff; 8]);
    }
}
