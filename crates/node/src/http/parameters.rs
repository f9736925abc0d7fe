//! What stands behind `?` in a request, and in its path: read strictly, as the type that it should be.

use super::error::{ApiError, Code};
use super::routes::route;
use crate::api::decimal;
use crate::world;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use keelstone_codec::{Height, Key, Namespace, unhex};
use keelstone_execution::Registry;

/// The most entries one listing returns.
const ENTRIES_MAX: usize = 1_000;

/// Text of a request as the type it should be.
pub(super) fn parsed<T, E: std::fmt::Display>(
    what: &str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, ApiError> {
    parse(text).map_err(|error| ApiError::new(Code::BadRequest, format!("{what}: {error}")))
}

/// The parameters after `?`: each at most once, only known ones, escapes decoded.
#[derive(Clone)]
pub(super) struct Parameters(Vec<(String, String)>);

/// Reads the parameters for whoever answers, and refuses those that nobody there would read.
pub(super) async fn read_parameters(mut request: Request, next: Next) -> Result<Response, ApiError> {
    let matched = request.extensions().get::<MatchedPath>().and_then(|path| route(path.as_str()));
    if let Some(route) = matched {
        let parameters = Parameters::parse(request.uri().query(), route.parameters)?;
        request.extensions_mut().insert(parameters);
    }
    Ok(next.run(request).await)
}

impl Parameters {
    fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let mut found: Vec<(String, String)> = Vec::new();
        for part in query.unwrap_or("").split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if !known.contains(&name) {
                let there_are = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let message = format!("unknown parameter {name:?}; there are {there_are}");
                return Err(ApiError::new(Code::BadRequest, message));
            }
            if found.iter().any(|(other, _)| other == name) {
                return Err(ApiError::new(Code::BadRequest, format!("the parameter {name:?} appears twice")));
            }
            found.push((name.to_owned(), unescape(value)?));
        }
        Ok(Self(found))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        self.get(name).map(|text| parsed(name, text, decimal)).transpose()
    }

    pub(super) fn height(&self, name: &str) -> Result<Option<Height>, ApiError> {
        Ok(self.number(name)?.map(Height))
    }

    /// How many entries at most.
    pub(super) fn limit(&self) -> Result<usize, ApiError> {
        let limit = self.get("limit").map_or(Ok(100), |text| parsed("limit", text, decimal::<usize>))?;
        if !(1..=ENTRIES_MAX).contains(&limit) {
            return Err(ApiError::new(Code::BadRequest, format!("limit: expected 1 to {ENTRIES_MAX}, found {limit}")));
        }
        Ok(limit)
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(other) => {
                Err(ApiError::new(Code::BadRequest, format!("{name}: expected true or false, found {other:?}")))
            }
        }
    }

    /// The key of an entry: by its bytes, or with `place` as the types of that place say, where a single value has none.
    pub(super) fn key(&self, registry: &Registry, namespace: &Namespace) -> Result<Key, ApiError> {
        let key = match self.get("place") {
            Some(_) if self.get("key_hex").is_some() => {
                return Err(ApiError::new(Code::BadRequest, "key_hex is all bytes of a key: leave place out"));
            }
            Some(place) => world::asked_key(registry, namespace.as_str(), place, self.get("key"))?,
            None => self.bytes("key", "key_hex")?.ok_or_else(|| {
                let message =
                    "give the bytes of the key as key=text or key_hex=digits, or place= and the key at that place";
                ApiError::new(Code::BadRequest, message).hint("/v1/places lists them")
            })?,
        };
        Key::new(key).map_err(|error| ApiError::new(Code::BadRequest, format!("key: {error}")))
    }

    /// Bytes given as text (`key=…`) or in hexadecimal (`key_hex=…`).
    pub(super) fn bytes(&self, text: &str, hexadecimal: &str) -> Result<Option<Vec<u8>>, ApiError> {
        match (self.get(text), self.get(hexadecimal)) {
            (Some(text), None) => Ok(Some(text.as_bytes().to_vec())),
            (None, Some(digits)) => parsed(hexadecimal, digits, |digits| unhex(digits)).map(Some),
            (None, None) => Ok(None),
            (Some(_), Some(_)) => {
                Err(ApiError::new(Code::BadRequest, format!("give {text} or {hexadecimal}, not both")))
            }
        }
    }
}

/// Percent escapes as bytes; the whole must be UTF-8 without NUL.
fn unescape(text: &str) -> Result<String, ApiError> {
    let bad = || ApiError::new(Code::BadRequest, "parameters are UTF-8 with valid percent escapes and no NUL");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next().ok_or_else(bad)?, bytes.next().ok_or_else(bad)?];
                out.extend(hex::decode(digits).map_err(|_| bad())?);
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok().filter(|text| !text.contains('\0')).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r04_parameters_have_one_reading() {
        let parse = |query: &str| Parameters::parse(Some(query), &["key", "prove"]);
        assert_eq!(parse("key=a%3Ab+c").expect("valid").get("key"), Some("a:b c"));
        for query in ["key=%00", "key=%c0%af", "key=%", "key=%zz", "key=1&key=2", "other=1"] {
            assert!(parse(query).is_err(), "{query}");
        }
    }
}
