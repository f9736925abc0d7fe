//! Indexes: the entries of a map by something else than their key, for queries.
//!
//! An index is no part of the state. It is made from a map, kept up with the net changes of each block, and made anew
//! whenever it is lost; nothing commits to it and no transition can see it, because it cannot stand in a namespace
//! (spec: EXEC-14).

use crate::collections::{Collection, Map, entry_prefix};
use crate::{Changes, Layout, Space};
use keelstone_codec::{Decode, DecodeError, Describe, Encode, Key, KeyReader, Namespace, OrderedKey, TypeError, Value};
use keelstone_tree::{KeyRange, Read, ReadError};
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

/// The keys of a map `K -> V`, by what a function makes of each entry.
pub struct Index<K, V, I> {
    space: Namespace,
    prefix: Vec<u8>,
    by: fn(&K, &V) -> Vec<I>,
    entries: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
    _types: PhantomData<fn() -> I>,
}

/// Why an index is not one, or not up to date. It is then to be made anew.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// There is no map of these types at this place. The program's to mend.
    #[error("{space} has no map of these types at {place:?}")]
    NoSuchMap {
        /// The namespace.
        space: &'static str,
        /// The place.
        place: String,
    },
    /// The name of the namespace is none.
    #[error(transparent)]
    Name(#[from] TypeError),
    /// An entry is not of the map's types.
    #[error("entry {} of the indexed map: {error}", key.escape_ascii())]
    Entry {
        /// The entry.
        key: Key,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// The state could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl<K, V, I> Index<K, V, I>
where
    K: OrderedKey + Describe,
    V: Encode + Decode + Describe,
    I: OrderedKey,
{
    /// An empty index of the map at `place` in the namespace `S`, by what `by` makes of each entry.
    ///
    /// # Errors
    /// [`IndexError::NoSuchMap`] if there is no map of these types.
    pub fn of<S: Space>(place: &str, by: fn(&K, &V) -> Vec<I>) -> Result<Self, IndexError> {
        let layout: Layout = Map::<K, V>::layout();
        if !S::info().collections.iter().any(|(at, held)| *at == place && *held == layout) {
            return Err(IndexError::NoSuchMap { space: S::NAME, place: place.to_owned() });
        }
        let space = Namespace::new(S::NAME)?;
        Ok(Self { space, prefix: entry_prefix(place), by, entries: BTreeMap::new(), _types: PhantomData })
    }

    /// Makes the index anew from a version of the state.
    ///
    /// # Errors
    /// [`IndexError`]; the index is then empty or partial.
    pub fn rebuild(&mut self, state: &dyn Read) -> Result<(), IndexError> {
        self.entries.clear();
        let range = KeyRange::prefix(&self.prefix);
        for entry in state.scan(&self.space.clone(), range) {
            let (key, value) = entry?;
            self.place(&key, None, Some(&value))?;
        }
        Ok(())
    }

    /// Keeps the index up with the net changes of a block.
    ///
    /// # Errors
    /// [`IndexError::Entry`]; the index is then partial.
    pub fn apply(&mut self, changes: &Changes) -> Result<(), IndexError> {
        let space = self.space.clone();
        for (_, key, change) in changes.iter().filter(|(namespace, ..)| **namespace == space) {
            if key.starts_with(&self.prefix) {
                self.place(key, change.before.as_ref(), change.after.as_ref())?;
            }
        }
        Ok(())
    }

    /// The keys of the entries that stand under `value`, in order.
    ///
    /// # Errors
    /// [`DecodeError`] never, as long as the keys' encoding is their decoding's inverse.
    pub fn get(&self, value: &I) -> Result<Vec<K>, DecodeError> {
        let mut under = Vec::new();
        value.encode_key(&mut under);
        self.entries.get(&under).into_iter().flatten().map(|key| read_key(key)).collect()
    }

    /// How many values have entries under them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Moves one entry from where it stood to where it stands.
    fn place(&mut self, key: &Key, before: Option<&Value>, after: Option<&Value>) -> Result<(), IndexError> {
        let own = key[self.prefix.len()..].to_vec();
        let wrong = |error| IndexError::Entry { key: key.clone(), error };
        let typed: K = read_key(&own).map_err(wrong)?;
        let under = |value: Option<&Value>| {
            let Some(value) = value else { return Ok(Vec::new()) };
            let value = V::from_bytes(value).map_err(wrong)?;
            let encoded = (self.by)(&typed, &value).into_iter().map(|value| {
                let mut out = Vec::new();
                value.encode_key(&mut out);
                out
            });
            Ok::<Vec<Vec<u8>>, IndexError>(encoded.collect())
        };
        let (left, entered) = (under(before)?, under(after)?);
        for value in left {
            if let Some(keys) = self.entries.get_mut(&value) {
                keys.remove(&own);
                if keys.is_empty() {
                    self.entries.remove(&value);
                }
            }
        }
        for value in entered {
            self.entries.entry(value).or_default().insert(own.clone());
        }
        Ok(())
    }
}

fn read_key<K: OrderedKey>(bytes: &[u8]) -> Result<K, DecodeError> {
    let mut input = KeyReader::new(bytes);
    let key = K::decode_key(&mut input)?;
    input.finish()?;
    Ok(key)
}
