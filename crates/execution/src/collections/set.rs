//! Keys alone.

use super::{Collection, Site, StartsWith};
use crate::host::Scan;
use crate::{Handle, Layout, Stop};
use keelstone_codec::{Describe, Namespace, OrderedKey};
use std::marker::PhantomData;
use std::ops::RangeBounds;

/// The value of every member: state knows no empty value (spec: TREE-1).
const MEMBER: u8 = 1;

/// An ordered set. How many there are is not kept: whoever needs it keeps it in an [`crate::Item`].
pub struct Set<K> {
    site: Site,
    _types: PhantomData<fn() -> K>,
}

impl<K: OrderedKey> Set<K> {
    /// Whether a key is in the set.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn contains(&self, key: &K) -> Result<bool, Stop> {
        self.site.contains(self.site.key(key))
    }

    /// Adds a key; says whether it was new.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn insert(&mut self, key: &K) -> Result<bool, Stop> {
        let new = !self.contains(key)?;
        if new {
            self.site.put(self.site.key(key), &MEMBER)?;
        }
        Ok(new)
    }

    /// Removes a key; says whether it was there.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn remove(&mut self, key: &K) -> Result<bool, Stop> {
        self.site.discard(self.site.key(key))
    }

    /// All keys, in order.
    #[must_use]
    pub fn iter(&self) -> Keys<'_, K> {
        Keys { scan: self.site.scan(self.site.all()), set: self }
    }

    /// All keys, from the last to the first.
    #[must_use]
    pub fn iter_back(&self) -> Keys<'_, K> {
        Keys { scan: self.site.scan(self.site.all().reversed()), set: self }
    }

    /// The keys of a range, in order.
    #[must_use]
    pub fn range(&self, range: impl RangeBounds<K>) -> Keys<'_, K> {
        Keys { scan: self.site.scan(self.site.range(&range)), set: self }
    }

    /// The keys of a range, from the last to the first.
    #[must_use]
    pub fn range_back(&self, range: impl RangeBounds<K>) -> Keys<'_, K> {
        Keys { scan: self.site.scan(self.site.range(&range).reversed()), set: self }
    }

    /// The keys that begin with `part`, in order: of a set of `(A, B)`, those of one `A`.
    #[must_use]
    pub fn prefix<P: OrderedKey>(&self, part: &P) -> Keys<'_, K>
    where
        K: StartsWith<P>,
    {
        Keys { scan: self.site.scan(self.site.beginning(part)), set: self }
    }

    /// The keys that begin with `part`, from the last to the first.
    #[must_use]
    pub fn prefix_back<P: OrderedKey>(&self, part: &P) -> Keys<'_, K>
    where
        K: StartsWith<P>,
    {
        Keys { scan: self.site.scan(self.site.beginning(part).reversed()), set: self }
    }

    /// The first key. Costs a scan of one entry.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn first(&self) -> Result<Option<K>, Stop> {
        self.iter().next().transpose()
    }

    /// The last key. Costs a scan of one entry.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn last(&self) -> Result<Option<K>, Stop> {
        self.iter_back().next().transpose()
    }

    /// Whether there are no keys. Costs a scan of one entry.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn is_empty(&self) -> Result<bool, Stop> {
        self.site.is_empty()
    }
}

/// Keys of a [`Set`]. After the first error it ends.
pub struct Keys<'a, K> {
    scan: Scan<'a>,
    set: &'a Set<K>,
}

impl<K: OrderedKey> Iterator for Keys<'_, K> {
    type Item = Result<K, Stop>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.scan.next()?;
        Some(entry.and_then(|(key, _)| self.set.site.key_back(&key)))
    }
}

impl<K: OrderedKey + Describe> Collection for Set<K> {
    const SOUND: () = super::a_key(K::END);
    const HOLDS_ITS_PLACE: bool = false;

    fn bind(handle: &Handle, space: &Namespace, place: &'static str) -> Self {
        Self { site: Site::new(handle, space, place), _types: PhantomData }
    }
    fn layout() -> Layout {
        Layout::Set { key: K::shape() }
    }
}
