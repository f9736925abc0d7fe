//! Reading state: the one trait through which execution sees a version of it, be it a store, a draft or a witness.

use keelstone_codec::{Key, Namespace, Value};
use std::io;
use std::sync::Arc;

/// A version of the state. Object safe; what it answers never changes.
pub trait Read {
    /// The value of a key, none if the key is absent.
    ///
    /// # Errors
    /// [`ReadError`]. A key that cannot be read is never reported as absent.
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError>;

    /// Entries of a range of keys, in the range's direction. After the first error the iterator ends.
    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a>;
}

/// What a scan gives.
pub type Scan<'a> = Box<dyn Iterator<Item = Result<(Key, Value), ReadError>> + 'a>;

impl<R: Read + ?Sized> Read for &R {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        (**self).get(namespace, key)
    }
    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        (**self).scan(namespace, range)
    }
}
impl<R: Read + ?Sized> Read for Arc<R> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        (**self).get(namespace, key)
    }
    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        (**self).scan(namespace, range)
    }
}
impl<R: Read + ?Sized> Read for Box<R> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        (**self).get(namespace, key)
    }
    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        (**self).scan(namespace, range)
    }
}

/// Keys from `start` to before `end`, in one of two directions.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyRange {
    /// The first key of the range, which need not exist. Empty: from the very first key.
    pub start: Vec<u8>,
    /// The first key behind the range; none: to the very last key.
    pub end: Option<Vec<u8>>,
    /// From the last key to the first.
    pub reverse: bool,
}

impl KeyRange {
    /// All keys.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { start: prefix.to_vec(), end: prefix_end(prefix), reverse: false }
    }

    /// Keys from `start`, which is in the range if it exists.
    #[must_use]
    pub fn from(start: &[u8]) -> Self {
        Self { start: start.to_vec(), ..Self::default() }
    }

    /// Keys from `start` to before `end`.
    #[must_use]
    pub fn between(start: &[u8], end: &[u8]) -> Self {
        Self { start: start.to_vec(), end: Some(end.to_vec()), reverse: false }
    }

    /// The same keys in the other direction.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        self.reverse = !self.reverse;
        self
    }

    /// Whether a key is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && self.end.as_deref().is_none_or(|end| key < end)
    }

    /// Whether no key can be in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start || end.is_empty())
    }
}

/// The first key behind all that begin with `prefix`; none if there is no such key (the prefix is all `ff`).
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Why state could not be read. Never a way of saying "absent".
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The witness at hand does not show this key, or a part of the range that begins with it. Ask for one that does
    /// (spec: TREE-9, EXEC-17).
    #[error("the witness does not show {namespace}/{}", key.escape_ascii())]
    Incomplete {
        /// Where.
        namespace: Namespace,
        /// The first key that is not shown.
        key: Vec<u8>,
    },
    /// The proof at hand does not show this node. Ask for one that does (spec: TREE-9).
    #[error("the proof does not show this node")]
    Unshown,
    /// This version has been given up: pruned, or expired after holding resources too long. Ask for a newer one.
    #[error("this version of the state is no longer kept: {reason}")]
    Gone {
        /// Why.
        reason: &'static str,
    },
    /// Bytes on our own disk are not what was written. Stop and repair.
    #[error("stored bytes are damaged: {what}")]
    Damaged {
        /// Which file, where, and what was compared.
        what: Arc<str>,
    },
    /// The machine failed to read.
    #[error("could not read: {0}")]
    Io(Arc<io::Error>),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl ReadError {
    /// [`ReadError::Damaged`] with a text.
    #[must_use]
    pub fn damaged(what: impl Into<Arc<str>>) -> Self {
        Self::Damaged { what: what.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_that_lacks_it() {
        assert_eq!(prefix_end(b""), None);
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert_eq!(prefix_end(b"a"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
        let range = KeyRange::prefix(b"a\xff");
        assert!(range.contains(b"a\xff") && range.contains(b"a\xff\xff\xff") && !range.contains(b"b"));
        assert!(KeyRange::between(b"b", b"a").is_empty() && !KeyRange::all().is_empty());
    }
}
