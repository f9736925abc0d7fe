//! JSON kept exactly: numbers as their text, members in their order, nothing rounded and nothing dropped.
//!
//! Exports of other networks are data that has to come out as it went in, so the usual JSON value will not do: a
//! float would lose digits, an integer above 64 bits would become one, and the second of two equal members would
//! silently win. [`Json`] keeps the text of every number and refuses what it cannot keep. It is also the form in which
//! such values stand in state: its encoding is canonical and holds no float.
//!
//! The text is taken to come from a stranger: depth and size are bounded, and an error names line and column.
//!
//! Layout: `spec/ledger.md`, XIAN-1 and XIAN-2.

use keelstone_codec::{Decode, DecodeError, Encode, Reader, VALUE_LEN_MAX, put_length};
use std::collections::HashSet;
use std::fmt;

/// How deep lists and objects may nest in a value that enters state: below the codec's own limit of 32.
pub const JSON_DEPTH_MAX: u32 = 24;

/// A JSON value, exactly as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as its text, which follows the grammar of JSON.
    Number(Number),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object: its members in the order they were written, all names different.
    Object(Vec<(String, Json)>),
}

/// The text of a JSON number: `-12`, `0.5`, `1e400`, of any length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number(String);

impl Number {
    /// Checks a number's text.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for text that is not a number in JSON's grammar.
    pub fn new(text: impl Into<String>) -> Result<Self, DecodeError> {
        let text = text.into();
        if number_len(text.as_bytes()) == Some(text.len()) {
            Ok(Self(text))
        } else {
            Err(DecodeError::Invalid { what: "JSON number" })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the number has neither a fraction nor an exponent.
    #[must_use]
    pub fn is_integer(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit())
    }
}
impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self(number.to_string())
    }
}

/// Why text is not JSON that can be kept. Whoever wrote the file has to act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct JsonError {
    /// The line, counted from 1.
    pub line: usize,
    /// The byte within the line, counted from 1.
    pub column: usize,
    /// What is wrong there.
    pub what: JsonFault,
}

/// What is wrong at a place in a JSON text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonFault {
    /// Something else should stand here.
    #[error("expected {expected}")]
    Expected {
        /// What.
        expected: &'static str,
    },
    /// Two members of one object have one name.
    #[error("the name {name:?} stands twice in one object")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Lists and objects nest too deep.
    #[error("nested deeper than {limit} levels")]
    TooDeep {
        /// The limit.
        limit: u32,
    },
    /// A `\u` escape of half a character.
    #[error("a surrogate escape without its other half")]
    LoneSurrogate,
    /// `NaN` or an infinity, which Python writes and JSON does not know.
    #[error("NaN and infinities are not numbers that state can hold")]
    NotFinite,
    /// The text is not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// Something follows the value.
    #[error("something follows the value")]
    Trailing,
}

impl Json {
    /// Reads one JSON text whose lists and objects nest at most `depth` levels.
    ///
    /// # Errors
    /// [`JsonError`] with the place.
    pub fn parse(text: &[u8], depth: u32) -> Result<Self, JsonError> {
        let mut parser = Parser { text, at: 0, depth, depth_max: depth };
        if let Err(error) = std::str::from_utf8(text) {
            parser.at = error.valid_up_to();
            return Err(parser.fault(JsonFault::NotUtf8));
        }
        parser.space();
        let value = parser.value()?;
        parser.space();
        if parser.at < text.len() {
            return Err(parser.fault(JsonFault::Trailing));
        }
        Ok(value)
    }

    /// The member of an object with this name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.iter().find(|(found, _)| found == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The string, if this is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether two values are equal as data: the order of an object's members does not count.
    #[must_use]
    pub fn same_data(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same_data(b)),
            (Self::Object(a), Self::Object(b)) => {
                let sorted = |members: &[(String, Self)]| {
                    let mut order: Vec<usize> = (0..members.len()).collect();
                    order.sort_by(|&x, &y| members[x].0.cmp(&members[y].0));
                    order
                };
                a.len() == b.len()
                    && sorted(a).into_iter().zip(sorted(b)).all(|(x, y)| a[x].0 == b[y].0 && a[x].1.same_data(&b[y].1))
            }
            _ => self == other,
        }
    }

    /// How deep lists and objects nest; a scalar has depth 0.
    #[must_use]
    pub fn depth(&self) -> u32 {
        match self {
            Self::List(list) => 1 + list.iter().map(Self::depth).max().unwrap_or(0),
            Self::Object(members) => 1 + members.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// The value as text over several lines, indented by four spaces a level.
    #[must_use]
    pub fn to_pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Some(0));
        out
    }

    /// Writes compactly, or from an indentation on.
    fn write(&self, out: &mut String, indent: Option<usize>) {
        let line = |out: &mut String, level: Option<usize>| {
            if let Some(level) = level {
                out.push('\n');
                out.extend(std::iter::repeat_n("    ", level));
            }
        };
        let inner = indent.map(|level| level + 1);
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(true) => out.push_str("true"),
            Self::Bool(false) => out.push_str("false"),
            Self::Number(number) => out.push_str(&number.0),
            Self::Text(text) => write_text(text, out),
            Self::List(list) if list.is_empty() => out.push_str("[]"),
            Self::Object(members) if members.is_empty() => out.push_str("{}"),
            Self::List(list) => {
                for (index, value) in list.iter().enumerate() {
                    out.push(if index == 0 { '[' } else { ',' });
                    line(out, inner);
                    value.write(out, inner);
                }
                line(out, indent);
                out.push(']');
            }
            Self::Object(members) => {
                for (index, (name, value)) in members.iter().enumerate() {
                    out.push(if index == 0 { '{' } else { ',' });
                    line(out, inner);
                    write_text(name, out);
                    out.push_str(if indent.is_some() { ": " } else { ":" });
                    value.write(out, inner);
                }
                line(out, indent);
                out.push('}');
            }
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.write(&mut out, None);
        f.write_str(&out)
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            char => out.push(char),
        }
    }
    out.push('"');
}

/// The length of the number at the start of `text`, by the grammar of JSON; none if there is no number.
fn number_len(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = usize::from(text.first() == Some(&b'-'));
    at += match (text.get(at)?, digits(at)) {
        (b'0', _) => 1,
        (_, 0) => return None,
        (_, count) => count,
    };
    if text.get(at) == Some(&b'.') {
        let count = digits(at + 1);
        if count == 0 {
            return None;
        }
        at += 1 + count;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let count = digits((at + 1 + sign).min(text.len()));
        if count == 0 {
            return None;
        }
        at += 1 + sign + count;
    }
    Some(at)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    depth: u32,
    depth_max: u32,
}

impl Parser<'_> {
    fn fault(&self, what: JsonFault) -> JsonError {
        let before = &self.text[..self.at];
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        JsonError { line, column: 1 + self.at - line_start, what }
    }

    fn expected(&self, expected: &'static str) -> JsonError {
        self.fault(JsonFault::Expected { expected })
    }

    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, literal: &'static str) -> bool {
        let found = self.text[self.at..].starts_with(literal.as_bytes());
        if found {
            self.at += literal.len();
        }
        found
    }

    fn value(&mut self) -> Result<Json, JsonError> {
        match self.text.get(self.at) {
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::list),
            Some(b't') if self.eat("true") => Ok(Json::Bool(true)),
            Some(b'f') if self.eat("false") => Ok(Json::Bool(false)),
            Some(b'n') if self.eat("null") => Ok(Json::Null),
            Some(_) if self.eat("NaN") || self.eat("Infinity") || self.eat("-Infinity") => {
                Err(self.fault(JsonFault::NotFinite))
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.expected("a value")),
        }
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let len = number_len(&self.text[self.at..]).ok_or_else(|| self.expected("a number"))?;
        let text = std::str::from_utf8(&self.text[self.at..self.at + len]).expect("a number is ASCII");
        self.at += len;
        if matches!(self.text.get(self.at), Some(b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')) {
            return Err(self.expected("the end of a number"));
        }
        Ok(Json::Number(Number(text.to_owned())))
    }

    /// Reads a list or an object one level deeper.
    fn nested(&mut self, read: fn(&mut Self) -> Result<Json, JsonError>) -> Result<Json, JsonError> {
        let Some(left) = self.depth.checked_sub(1) else {
            return Err(self.fault(JsonFault::TooDeep { limit: self.depth_max }));
        };
        self.depth = left;
        self.at += 1;
        let value = read(self)?;
        self.depth = left + 1;
        Ok(value)
    }

    fn list(&mut self) -> Result<Json, JsonError> {
        let mut list = Vec::new();
        self.space();
        if self.eat("]") {
            return Ok(Json::List(list));
        }
        loop {
            self.space();
            list.push(self.value()?);
            self.space();
            if self.eat("]") {
                return Ok(Json::List(list));
            }
            if !self.eat(",") {
                return Err(self.expected("',' or ']'"));
            }
        }
    }

    fn object(&mut self) -> Result<Json, JsonError> {
        let mut members: Vec<(String, Json)> = Vec::new();
        self.space();
        if self.eat("}") {
            return Ok(Json::Object(members));
        }
        let mut names = HashSet::new();
        loop {
            self.space();
            let start = self.at;
            if self.text.get(self.at) != Some(&b'"') {
                return Err(self.expected("a name"));
            }
            let name = self.string()?;
            if !names.insert(name.clone()) {
                self.at = start;
                return Err(self.fault(JsonFault::DuplicateName { name }));
            }
            self.space();
            if !self.eat(":") {
                return Err(self.expected("':'"));
            }
            self.space();
            members.push((name, self.value()?));
            self.space();
            if self.eat("}") {
                return Ok(Json::Object(members));
            }
            if !self.eat(",") {
                return Err(self.expected("',' or '}'"));
            }
        }
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let plain = self.text[self.at..].iter().take_while(|&&b| b != b'"' && b != b'\\' && b >= 0x20).count();
            let text = std::str::from_utf8(&self.text[self.at..self.at + plain])
                .expect("the whole text is UTF-8, and an ASCII byte ends a run at the border of a character");
            out.push_str(text);
            self.at += plain;
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => out.push(self.escape()?),
                _ => return Err(self.expected("the end of a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let plain = match self.text.get(self.at + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.expected("an escape")),
        };
        self.at += 2;
        Ok(plain)
    }

    /// Reads `\uXXXX`, or the two of a surrogate pair. A lone half is no character, so it cannot be kept.
    fn unicode(&mut self) -> Result<char, JsonError> {
        let start = self.at;
        let first = self.hex_unit()?;
        let code = match first {
            0xd800..=0xdbff if self.text[self.at..].starts_with(b"\\u") => {
                let second = self.hex_unit()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    self.at = start;
                    return Err(self.fault(JsonFault::LoneSurrogate));
                }
                0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            unit => unit,
        };
        char::from_u32(code).ok_or_else(|| {
            self.at = start;
            self.fault(JsonFault::LoneSurrogate)
        })
    }

    fn hex_unit(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.get(self.at + 2..self.at + 6).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let Some(digits) = digits else {
            return Err(self.expected("four hexadecimal digits"));
        };
        let text = std::str::from_utf8(digits).expect("hexadecimal digits are ASCII");
        self.at += 6;
        Ok(u32::from_str_radix(text, 16).expect("four hexadecimal digits fit"))
    }
}

// spec: XIAN-1
impl Encode for Json {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0),
            Self::Bool(false) => out.push(1),
            Self::Bool(true) => out.push(2),
            Self::Number(number) => {
                out.push(3);
                number.0.encode(out);
            }
            Self::Text(text) => {
                out.push(4);
                text.encode(out);
            }
            Self::List(list) => {
                out.push(5);
                list.encode(out);
            }
            Self::Object(members) => {
                out.push(6);
                put_length(out, members.len());
                for (name, value) in members {
                    name.encode(out);
                    value.encode(out);
                }
            }
        }
    }
}

impl Decode for Json {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.byte()? {
            0 => Ok(Self::Null),
            1 => Ok(Self::Bool(false)),
            2 => Ok(Self::Bool(true)),
            3 => Ok(Self::Number(Number::new(String::decode(input)?)?)),
            4 => Ok(Self::Text(String::decode(input)?)),
            // A member takes at least a byte, so the value limit bounds the count too.
            5 => Ok(Self::List(input.list("list", VALUE_LEN_MAX)?)),
            6 => {
                let members: Vec<(String, Self)> = input.list("members", VALUE_LEN_MAX)?;
                let mut names = HashSet::with_capacity(members.len());
                if members.iter().all(|(name, _)| names.insert(name.as_str())) {
                    Ok(Self::Object(members))
                } else {
                    Err(DecodeError::NotCanonical { what: "an object's names must differ" })
                }
            }
            found => Err(DecodeError::UnknownTag { what: "JSON value", found: u64::from(found) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Json, JsonFault> {
        Json::parse(text.as_bytes(), JSON_DEPTH_MAX).map_err(|error| error.what)
    }

    /// Numbers keep every letter, whatever a float or an integer of 64 bits would make of them.
    #[test]
    fn numbers_keep_their_text() {
        for text in ["0", "-0", "1.10", "1e400", "1E+5", "-2.5e-300", "123456789012345678901234567890", "0.780"] {
            let value = parse(text).expect("a number");
            assert_eq!(value.to_string(), text);
            assert_eq!(Json::from_bytes(&value.to_bytes()), Ok(value));
        }
        for text in ["01", "1.", ".5", "+1", "1e", "1e+", "--1", "0x1", "1_0", "-"] {
            assert!(parse(text).is_err(), "{text} is not a number");
            assert!(Number::new(text).is_err(), "{text} is not a number");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_name() {
        assert_eq!(parse(r#"{"a":1,"a":1}"#), Err(JsonFault::DuplicateName { name: "a".to_owned() }));
        assert_eq!(parse(r#"{"a":1,"\u0061":2}"#), Err(JsonFault::DuplicateName { name: "a".to_owned() }));
        assert_eq!(parse(r#""\ud800""#), Err(JsonFault::LoneSurrogate));
        assert_eq!(parse(r#""\ud800\u0041""#), Err(JsonFault::LoneSurrogate));
        assert_eq!(parse(r#""\udc00""#), Err(JsonFault::LoneSurrogate));
        for text in ["NaN", "[Infinity]", "-Infinity"] {
            assert_eq!(parse(text), Err(JsonFault::NotFinite));
        }
        assert_eq!(parse("1 2"), Err(JsonFault::Trailing));
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(parse(&deep(24)).is_ok());
        assert_eq!(parse(&deep(25)), Err(JsonFault::TooDeep { limit: 24 }));
        assert_eq!(parse(&deep(100_000)), Err(JsonFault::TooDeep { limit: 24 }));
        let found = Json::parse(b"{\n  \"a\": tru\n}", 4).expect_err("not a value");
        assert_eq!((found.line, found.column), (2, 8));
        assert_eq!(Json::parse(b"\"\xff\"", 4).expect_err("not UTF-8").what, JsonFault::NotUtf8);
    }

    /// The deepest value the parser takes is one the codec takes as well.
    #[test]
    fn deepest_value_can_be_decoded() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let text = open.repeat(24) + "1" + &close.repeat(24);
            let value = parse(&text).expect("within the limit");
            assert_eq!(value.depth(), 24);
            assert_eq!(Json::from_bytes(&value.to_bytes()), Ok(value));
        }
    }

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?"
                .prop_map(|text| Json::Number(Number::new(text).expect("by the grammar"))),
            any::<String>().prop_map(Json::Text),
        ];
        leaf.prop_recursive(5, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Json::List),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|members| Json::Object(members.into_iter().rev().collect())),
            ]
        })
    }

    proptest! {
        /// Text and bytes both give back the value, members in their order.
        #[test]
        fn text_and_bytes_give_the_value_back(value in json()) {
            prop_assert_eq!(&Json::parse(value.to_string().as_bytes(), JSON_DEPTH_MAX).expect("own text"), &value);
            prop_assert_eq!(&Json::parse(value.to_pretty().as_bytes(), JSON_DEPTH_MAX).expect("own text"), &value);
            prop_assert_eq!(&Json::from_bytes(&value.to_bytes()).expect("own bytes"), &value);
            prop_assert!(value.same_data(&value));
        }

        /// Whatever the bytes, the parser and the decoder answer without a panic.
        #[test]
        fn hostile_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Json::parse(&bytes, JSON_DEPTH_MAX);
            if let Ok(value) = Json::from_bytes(&bytes) {
                prop_assert_eq!(value.to_bytes(), bytes);
            }
        }
    }
}
