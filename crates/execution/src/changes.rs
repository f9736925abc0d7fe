//! Net changes: for every key that holds something else afterwards, what it held and what it holds.
//!
//! Drafts collect changes, the chain commits to their digest, the store takes their writes, and rollback turns them
//! round. A key written back to what it held before is not in here at all.
//!
//! Layout of the digest and rules: `spec/chain.md`, EXEC-2, EXEC-3 and EXEC-10. Vectors: `spec/vectors/chain.json`.

use keelstone_codec::{Hash, Key, Namespace, Tag, TaggedHasher, Value};
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Diff, KeyRange, Read, ReadError, Write};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

const DIFF: Tag = Tag::new("diff");
const VALUE: Tag = Tag::new("value");

/// What one key held and holds. The two differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The value before, none if the key was absent.
    pub before: Option<Value>,
    /// The value now, none if the key is gone.
    pub after: Option<Value>,
}

/// The net changes of an operation, a bundle or a block, in order of namespace and key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(BTreeMap<Namespace, BTreeMap<Key, Change>>);

/// The digest of changes with what a receiver needs to cap them before reading (spec: EXEC-3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Summary {
    /// How many keys changed.
    pub entries: u64,
    /// Bytes of their keys and of the values they now hold.
    pub bytes: u64,
    /// Commits to every key and to the hashes of both values, counts first.
    pub digest: Hash,
}

/// Why changes cannot be taken back.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Someone changed a key since; undoing would undo that too. Nothing was restored.
    #[error("{namespace}/{} has changed since: expected {expected:?}, found {found:?}", key.escape_ascii())]
    Changed {
        /// Where.
        namespace: Namespace,
        /// The first such key.
        key: Key,
        /// The value these changes left there.
        expected: Option<Value>,
        /// The value that is there.
        found: Option<Value>,
    },
    /// The state could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Changes {
    /// All changes, in order of namespace and key.
    pub fn iter(&self) -> impl Iterator<Item = (&Namespace, &Key, &Change)> {
        self.0.iter().flat_map(|(namespace, keys)| keys.iter().map(move |(key, change)| (namespace, key, change)))
    }

    /// Number of keys that changed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of the changed keys and of the values they now hold. Costs a walk over all of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let after = |change: &Change| change.after.as_ref().map_or(0, |value| value.len());
        self.iter().map(|(_, key, change)| (key.len() + after(change)) as u64).sum()
    }

    /// The change of one key.
    #[must_use]
    pub fn find(&self, namespace: &Namespace, key: &[u8]) -> Option<&Change> {
        self.0.get(namespace)?.get(key)
    }

    /// The first changed key of `range` behind `cursor`, in the direction of the range.
    pub(crate) fn step(
        &self,
        namespace: &Namespace,
        range: &KeyRange,
        cursor: Option<&Key>,
    ) -> Option<(&Key, &Change)> {
        let keys = self.0.get(namespace)?;
        let mut low = Bound::Included(range.start.as_slice());
        let mut high = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        match (cursor, range.reverse) {
            (Some(cursor), false) => low = Bound::Excluded(cursor.as_slice()),
            (Some(cursor), true) => high = Bound::Excluded(cursor.as_slice()),
            (None, _) => {}
        }
        // BTreeMap::range panics at an interval that is turned round; such a range is merely empty here. A cursor
        // stands inside the range, so it cannot turn it round.
        if range.is_empty() {
            return None;
        }
        let mut found = keys.range::<[u8], _>((low, high));
        if range.reverse { found.next_back() } else { found.next() }
    }

    /// Notes that a key that held `before` now holds `after`; keeps the first `before` of a key changed twice and
    /// forgets a key that is back where it was (spec: EXEC-2).
    pub(crate) fn write(&mut self, namespace: &Namespace, key: Key, before: Option<Value>, after: Option<Value>) {
        let keys = match self.0.get_mut(namespace) {
            Some(keys) => keys,
            None => self.0.entry(namespace.clone()).or_default(),
        };
        match keys.entry(key) {
            Entry::Occupied(mut held) if held.get().before != after => held.get_mut().after = after,
            Entry::Occupied(held) => drop(held.remove()),
            Entry::Vacant(place) if before != after => drop(place.insert(Change { before, after })),
            Entry::Vacant(_) => {}
        }
        if keys.is_empty() {
            self.0.remove(namespace);
        }
    }

    /// Puts later changes on top of these.
    pub(crate) fn merge(&mut self, later: Self) {
        for (namespace, keys) in later.0 {
            let namespace = match self.0.entry(namespace) {
                // Where there is nothing yet, nothing can be back where it was.
                Entry::Vacant(place) => {
                    place.insert(keys);
                    continue;
                }
                Entry::Occupied(held) => held.key().clone(),
            };
            for (key, change) in keys {
                self.write(&namespace, key, change.before, change.after);
            }
        }
    }

    /// Leaves the change of one key out.
    pub(crate) fn leave_out(&mut self, namespace: &Namespace, key: &[u8]) {
        let Some(keys) = self.0.get_mut(namespace) else { return };
        keys.remove(key);
        if keys.is_empty() {
            self.0.remove(namespace);
        }
    }

    /// The digest and sizes of the changes in the namespaces that `include` picks (spec: EXEC-3).
    #[must_use]
    pub fn summary_of(&self, include: impl Fn(&Namespace) -> bool) -> Summary {
        let picked = self.iter().filter(|(namespace, ..)| include(namespace));
        let picked: Vec<_> = picked.map(|change| (change, change.2.hashes())).collect();
        summary(&picked)
    }

    /// The digest and sizes of all changes (spec: EXEC-3). `each` works out something of each of so many, in order: on
    /// several threads, if it likes.
    #[must_use]
    pub fn summary_by(
        &self,
        each: impl FnOnce(usize, &(dyn Fn(usize) -> ValueHashes + Sync)) -> Vec<ValueHashes>,
    ) -> Summary {
        let all: Vec<_> = self.iter().collect();
        let hashes = each(all.len(), &|at| all[at].2.hashes());
        summary(&all.into_iter().zip(hashes).collect::<Vec<_>>())
    }

    /// The digest and sizes of all changes (spec: EXEC-3).
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary_of(|_| true)
    }

    /// The writes, for the store.
    #[must_use]
    pub fn to_diff(&self) -> Diff {
        let write = |(key, change): (&Key, &Change)| Write { key: key.clone(), value: change.after.clone() };
        let parts = self.0.iter().map(|(namespace, keys)| (namespace.clone(), keys.iter().map(write).collect()));
        Diff::new(parts.collect()).expect("an ordered map gives ordered namespaces and keys, none of them empty")
    }

    /// The same changes, backwards.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let turn = |change: &Change| Change { before: change.after.clone(), after: change.before.clone() };
        let turn_all = |keys: &BTreeMap<Key, Change>| keys.iter().map(|(key, c)| (key.clone(), turn(c))).collect();
        Self(self.0.iter().map(|(namespace, keys)| (namespace.clone(), turn_all(keys))).collect())
    }

    /// The changes that take these back: allowed only while every key still holds what these left (spec: EXEC-10).
    ///
    /// # Errors
    /// [`RestoreError::Changed`] names the first key that was changed since; nothing is restored then.
    pub fn restore(&self, state: &dyn Read) -> Result<Self, RestoreError> {
        for (namespace, key, change) in self.iter() {
            let found = state.get(namespace, key)?;
            if found != change.after {
                let (namespace, key, expected) = (namespace.clone(), key.clone(), change.after.clone());
                return Err(RestoreError::Changed { namespace, key, expected, found });
            }
        }
        Ok(self.inverse())
    }
}

/// The hashes of a value before and of the one since, as they enter a digest.
pub type ValueHashes = [Option<Hash>; 2];

impl Change {
    fn hashes(&self) -> ValueHashes {
        [&self.before, &self.after].map(|value| value.as_ref().map(value_hash))
    }
}

fn summary(changes: &[((&Namespace, &Key, &Change), ValueHashes)]) -> Summary {
    let length = |value: &Option<Value>| value.as_ref().map_or(0, |value| value.len() as u64);
    let entries = changes.len() as u64;
    let bytes = changes.iter().map(|((_, key, change), _)| key.len() as u64 + length(&change.after)).sum();
    let mut hasher = TaggedHasher::new(DIFF);
    hasher.value(&entries).value(&bytes);
    for ((namespace, key, _), [before, after]) in changes {
        hasher.value(*namespace).value(*key).value(before).value(after);
    }
    Summary { entries, bytes, digest: hasher.finish() }
}

/// Collects changes in any order. A key given twice keeps its first `before` and its last `after`.
impl FromIterator<(Namespace, Key, Change)> for Changes {
    fn from_iter<I: IntoIterator<Item = (Namespace, Key, Change)>>(changes: I) -> Self {
        let mut out = Self::default();
        for (namespace, key, change) in changes {
            out.write(&namespace, key, change.before, change.after);
        }
        out
    }
}

/// The hash of a value in a digest: whoever holds the digest's preimage checks it without the values.
#[must_use]
pub fn value_hash(value: &Value) -> Hash {
    TaggedHasher::new(VALUE).update(value).finish()
}
