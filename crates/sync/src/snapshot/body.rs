//! The bytes of a chunk of entries.
//!
//! ```text
//! chunk    unit..
//! unit     entry..                                    of entries; its namespace is in the skeleton
//!          (name, count varint, entry..)..            of namespaces
//! entry    key length u8, key, value length varint, value
//! ```
//!
//! How many entries a unit has is in the skeleton, so nothing says where one ends. A chunk never has more bytes than the
//! weight of its units (spec: SNAP-1). Layout: `spec/snapshot.md`, SNAP-7.

use keelstone_codec::{Decode, DecodeError, Encode, KEY_LEN_MAX, Namespace, Reader, VALUE_LEN_MAX, put_varint};

/// Appends the head of a namespace of a unit.
pub(super) fn put_namespace(out: &mut Vec<u8>, name: &Namespace, count: u64) {
    name.encode(out);
    put_varint(out, count);
}

/// Appends an entry.
pub(super) fn put_entry(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    debug_assert!((1..=KEY_LEN_MAX).contains(&key.len()) && (1..=VALUE_LEN_MAX).contains(&value.len()));
    key.len().try_into().map(|len: u8| out.push(len)).expect("a key has at most 255 bytes");
    out.extend_from_slice(key);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Reads the head of a namespace that can have at most `count_max` entries: its name where it lies, and its count.
pub(super) fn namespace<'a>(input: &mut Reader<'a>, count_max: u64) -> Result<(&'a [u8], u64), DecodeError> {
    let name = Namespace::decode(&mut input.clone())?;
    let name = &input.take(1 + name.as_bytes().len())?[1..];
    let count = input.varint()?;
    match count {
        0 => Err(DecodeError::Invalid { what: "namespace without entries" }),
        _ if count > count_max => {
            Err(DecodeError::TooLarge { what: "entries of a namespace", found: count, limit: count_max })
        }
        _ => Ok((name, count)),
    }
}

/// Reads an entry where it lies.
pub(super) fn entry<'a>(input: &mut Reader<'a>) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
    let key_len = usize::from(input.byte()?);
    if key_len == 0 {
        return Err(DecodeError::Invalid { what: "empty key" });
    }
    let key = input.take(key_len)?;
    let value_len = match input.varint()? {
        0 => return Err(DecodeError::Invalid { what: "empty value" }),
        found if found > VALUE_LEN_MAX as u64 => {
            return Err(DecodeError::TooLarge { what: "value", found, limit: VALUE_LEN_MAX as u64 });
        }
        len => usize::try_from(len).expect("at most 8 MiB"),
    };
    Ok((key, input.take(value_len)?))
}
