//! JSON as it is accepted from outside: one meaning, bounded depth, no key twice.
//!
//! Two readers that pick different values for a repeated key can be played against each other, and nesting without a
//! bound is a stack overflow. So the text is scanned once, without recursion, before `serde_json` reads it.

use serde::de::DeserializeOwned;
use std::collections::BTreeSet;

/// How deep arrays and objects may nest.
pub(crate) const DEPTH_MAX: usize = 32;

/// `serde_json` smuggles numbers through an object with this key; from outside it would be a number in disguise.
const RESERVED_KEY: &str = "$serde_json::private::Number";

/// Why JSON from outside was refused. Whoever wrote it has to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JsonError {
    #[error("JSON nests deeper than {DEPTH_MAX} levels at byte {at}")]
    TooDeep { at: usize },
    #[error("the key {key:?} appears twice in one object, the second time at byte {at}")]
    DuplicateKey { key: String, at: usize },
    #[error("the key {RESERVED_KEY:?} is reserved")]
    ReservedKey,
    #[error("not JSON of the expected form: {0}")]
    Form(String),
}

/// Reads a value from strict JSON.
///
/// # Errors
/// [`JsonError`] says where the text breaks which rule.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    scan(text)?;
    serde_json::from_slice(text).map_err(|error| JsonError::Form(error.to_string()))
}

/// As [`parse`], of an object alone: `serde_json` would read the members of a struct from an array, too, by their order.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_object<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    match text.trim_ascii_start().first() {
        Some(b'{') => parse(text),
        _ => Err(JsonError::Form("an object is expected".to_owned())),
    }
}

/// Checks depth and keys. Grammar is left to `serde_json`: text it would refuse anyway may pass here.
fn scan(text: &[u8]) -> Result<(), JsonError> {
    // One set of keys for each open object, `None` for each open array.
    let mut open: Vec<Option<BTreeSet<String>>> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'{' | b'[' => {
                if open.len() == DEPTH_MAX {
                    return Err(JsonError::TooDeep { at });
                }
                open.push((byte == b'{').then(BTreeSet::new));
            }
            b'}' | b']' => drop(open.pop()),
            b'"' => {
                let end = string_end(text, at);
                let colon = text[end..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
                if let (true, Some(Some(keys))) = (colon, open.last_mut()) {
                    let key: String =
                        serde_json::from_slice(&text[at..end]).map_err(|error| JsonError::Form(error.to_string()))?;
                    if key == RESERVED_KEY {
                        return Err(JsonError::ReservedKey);
                    }
                    if !keys.insert(key.clone()) {
                        return Err(JsonError::DuplicateKey { key, at });
                    }
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The index behind the string that opens at `start`, or the end of the text if it never closes.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn r03_depth_is_bounded_without_recursion() {
        let deep = "[".repeat(10_000);
        assert_eq!(parse::<Value>(deep.as_bytes()), Err(JsonError::TooDeep { at: DEPTH_MAX }));
        let fits = format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert!(parse::<Value>(fits.as_bytes()).is_ok());
    }

    #[test]
    fn r03_a_key_cannot_appear_twice_even_when_spelled_differently() {
        let same = br#"{"a":1,"b":{"a":2},"\u0061":3}"#;
        assert_eq!(parse::<Value>(same), Err(JsonError::DuplicateKey { key: "a".to_owned(), at: 19 }));
        assert!(parse::<Value>(br#"{"a":1,"b":{"a":2},"c":["a","a"]}"#).is_ok());
    }

    #[test]
    fn r03_a_number_cannot_come_in_disguise() {
        let text = br#"{"n":{"$serde_json::private::Number":"1 }"}}"#;
        assert_eq!(parse::<Value>(text), Err(JsonError::ReservedKey));
    }

    #[test]
    fn r03_an_array_is_not_read_as_an_object() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Body {
            text: String,
        }
        assert_eq!(parse_object(b" {\"text\":\"a\"}"), Ok(Body { text: "a".to_owned() }));
        for text in [&b"[\"a\"]"[..], b" [\"a\"]", b"\"a\"", b""] {
            assert!(matches!(parse_object::<Body>(text), Err(JsonError::Form(_))), "{text:?}");
        }
    }

    #[test]
    fn r03_half_strings_and_lone_brackets_are_refused() {
        for text in [&b"\""[..], b"{\"a", b"{\"a\\", b"]", b"}", b"", b"{\"a\":}", b"\xff"] {
            assert!(matches!(parse::<Value>(text), Err(JsonError::Form(_))), "{text:?}");
        }
    }
}
