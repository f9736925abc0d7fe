//! Typed collections: where a transition's reads and writes turn into keys and values.
//!
//! A collection stands at a place in its namespace. Single values lie at the place itself; entries lie behind the
//! place and a slash, which no place contains, so that collections of one namespace never meet. A collection at the
//! empty place has the whole namespace, without a slash.
//!
//! What has an order has `iter`, `range` and, by the first parts of a key, `prefix`, each also backwards, and `first` and
//! `last`. Scans are lazy and charged when they are opened and by the entry. Only a [`Log`] knows how many it holds.
//!
//! Keys and rules: `spec/chain.md`, EXEC-18.

mod item;
mod log;
mod map;
mod sequence;
mod set;

pub use item::Item;
pub use log::Log;
pub use map::{Iter, Map, RawKey, StartsWith};
pub use sequence::Sequence;
pub use set::{Keys, Set};

use crate::host::{Handle, Scan};
use crate::{Layout, Stop};
use keelstone_codec::{Decode, DecodeError, Encode, Key, KeyEnd, KeyReader, Namespace, OrderedKey, Value};
use keelstone_tree::{KeyRange, prefix_end};
use std::ops::{Bound, RangeBounds};

/// Something a namespace can hold.
///
/// An index is none, so a transition cannot reach one (spec: EXEC-14).
///
/// The parts of a key end themselves but for the last, and a sequence gives out a `u64`, or a type around one:
///
/// ```
/// use keelstone_execution::{Map, RawKey, Sequence, namespace};
///
/// #[namespace("sound")]
/// struct Sound {
///     pairs: Map<(u64, RawKey), u64>,
///     ids: Sequence<u64>,
/// }
/// ```
///
/// What could not do what it is for does not compile:
///
/// ```compile_fail
/// use keelstone_execution::{Map, RawKey, namespace};
///
/// #[namespace("open")]
/// struct Open {
///     pairs: Map<(RawKey, u64), u64>,
/// }
/// ```
///
/// ```compile_fail
/// use keelstone_execution::{RawKey, Set, namespace};
///
/// #[namespace("open")]
/// struct Open {
///     triples: Set<(u8, RawKey, u64)>,
/// }
/// ```
///
/// ```compile_fail
/// use keelstone_execution::{Sequence, namespace};
///
/// #[namespace("narrow")]
/// struct Narrow {
///     ids: Sequence<u32>,
/// }
/// ```
///
/// ```compile_fail
/// use keelstone_execution::{Item, namespace};
///
/// #[namespace("nowhere")]
/// struct Nowhere {
///     #[at("")]
///     value: Item<u64>,
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand in a namespace",
    note = "a namespace holds `Item`, `Map`, `Set`, `Sequence` and `Log`; an `Index` is outside the state"
)]
pub trait Collection: Sized {
    /// Compiles if the collection can do what it is for.
    #[doc(hidden)]
    const SOUND: () = ();
    /// Whether something of it stands at the place itself, which then is a key.
    #[doc(hidden)]
    const HOLDS_ITS_PLACE: bool = true;

    /// Stands the collection at a place.
    fn bind(handle: &Handle, space: &Namespace, place: &'static str) -> Self;
    /// What it is.
    fn layout() -> Layout;
}

/// Compiles if the parts of a key end themselves but for the last.
const fn a_key(_: KeyEnd) {}

/// Compiles if a collection can have a whole namespace: at the empty place are entries alone, for no key is empty.
#[doc(hidden)]
pub const fn whole(holds_its_place: bool) {
    assert!(
        !holds_its_place,
        "at \"\" stands a `Map` or a `Set`: what keeps a value at its place needs one with a name"
    );
}

/// Where a collection stands, and the host it is bound to.
struct Site {
    handle: Handle,
    space: Namespace,
    place: &'static str,
}

/// What the keys of the entries at a place begin with (spec: EXEC-18).
#[must_use]
pub fn entry_prefix(place: &str) -> Vec<u8> {
    let mut prefix = place.as_bytes().to_vec();
    if !prefix.is_empty() {
        prefix.push(b'/');
    }
    prefix
}

impl Site {
    fn new(handle: &Handle, space: &Namespace, place: &'static str) -> Self {
        Self { handle: handle.clone(), space: space.clone(), place }
    }

    /// The key of the place itself.
    fn own_key(&self) -> Vec<u8> {
        self.place.as_bytes().to_vec()
    }

    /// What the keys of all entries begin with.
    fn prefix(&self) -> Vec<u8> {
        entry_prefix(self.place)
    }

    /// The key of an entry.
    fn key(&self, key: &impl OrderedKey) -> Vec<u8> {
        let mut out = self.prefix();
        key.encode_key(&mut out);
        out
    }

    fn get<V: Decode>(&self, key: Vec<u8>) -> Result<Option<V>, Stop> {
        let key = self.checked(key)?;
        let Some(value) = self.handle.get(&self.space, &key)? else { return Ok(None) };
        V::from_bytes(&value).map(Some).map_err(|error| self.undecodable(key, error))
    }

    fn contains(&self, key: Vec<u8>) -> Result<bool, Stop> {
        let key = self.checked(key)?;
        Ok(self.handle.get(&self.space, &key)?.is_some())
    }

    fn put<V: Encode + Decode>(&mut self, key: Vec<u8>, value: &V) -> Result<(), Stop> {
        let key = self.checked(key)?;
        let value = value.to_bytes();
        // spec: EXEC-18. Types have limits that their encoding alone does not know.
        if let Err(error) = V::from_bytes(&value) {
            let what = format!("{}/{}", self.space, key.escape_ascii());
            return Err(self.handle.stop(Stop::Unreadable { what, error }));
        }
        let value = Value::new(value);
        let value = value.map_err(|error| self.handle.stop(Stop::Type { namespace: self.space.clone(), error }))?;
        self.handle.put(&self.space, key, Some(value))
    }

    /// Deletes an entry, whatever it is; says whether there was one.
    fn discard(&mut self, key: Vec<u8>) -> Result<bool, Stop> {
        let there = self.contains(key.clone())?;
        if there {
            self.delete(key)?;
        }
        Ok(there)
    }

    fn delete(&mut self, key: Vec<u8>) -> Result<(), Stop> {
        let key = self.checked(key)?;
        self.handle.put(&self.space, key, None)
    }

    fn scan(&self, range: KeyRange) -> Scan<'_> {
        self.handle.scan(&self.space, range)
    }

    fn is_empty(&self) -> Result<bool, Stop> {
        Ok(self.scan(self.all()).next().transpose()?.is_none())
    }

    /// All entries.
    fn all(&self) -> KeyRange {
        KeyRange::prefix(&self.prefix())
    }

    /// Entries whose keys lie in a range of the key's type.
    fn range<K: OrderedKey>(&self, range: &impl RangeBounds<K>) -> KeyRange {
        // The least byte string behind k is k and a zero byte, whatever k is.
        let behind = |key: &K| {
            let mut key = self.key(key);
            key.push(0);
            key
        };
        let start = match range.start_bound() {
            Bound::Included(key) => self.key(key),
            Bound::Excluded(key) => behind(key),
            Bound::Unbounded => self.prefix(),
        };
        let end = match range.end_bound() {
            Bound::Included(key) => Some(behind(key)),
            Bound::Excluded(key) => Some(self.key(key)),
            Bound::Unbounded => prefix_end(&self.prefix()),
        };
        KeyRange { start, end, reverse: false }
    }

    /// Entries whose keys begin with the bytes of `part`.
    fn beginning(&self, part: &impl OrderedKey) -> KeyRange {
        KeyRange::prefix(&self.key(part))
    }

    /// Reads the key of an entry back.
    fn key_back<K: OrderedKey>(&self, key: &Key) -> Result<K, Stop> {
        let entry = &key[self.prefix().len()..];
        let mut input = KeyReader::new(entry);
        let read = K::decode_key(&mut input).and_then(|k| input.finish().map(|()| k));
        read.map_err(|error| self.undecodable(key.clone(), error))
    }

    fn value_back<V: Decode>(&self, key: &Key, value: &Value) -> Result<V, Stop> {
        V::from_bytes(value).map_err(|error| self.undecodable(key.clone(), error))
    }

    fn checked(&self, key: Vec<u8>) -> Result<Key, Stop> {
        Key::new(key).map_err(|error| self.handle.stop(Stop::Type { namespace: self.space.clone(), error }))
    }

    fn undecodable(&self, key: Key, error: DecodeError) -> Stop {
        self.handle.stop(Stop::Undecodable { namespace: self.space.clone(), key, error })
    }
}
