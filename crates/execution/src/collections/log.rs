//! Values in the order they came.

use super::{Collection, Site};
use crate::{Handle, Layout, Stop};
use keelstone_codec::{Decode, Describe, Encode, Namespace};
use keelstone_tree::KeyRange;
use std::marker::PhantomData;
use std::ops::RangeBounds;

/// A list that only grows. Positions count from 0.
pub struct Log<V> {
    site: Site,
    _types: PhantomData<fn() -> V>,
}

impl<V: Encode + Decode> Log<V> {
    /// How many values there are.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn len(&self) -> Result<u64, Stop> {
        Ok(self.site.get(self.site.own_key())?.unwrap_or(0))
    }

    /// Whether there are none.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn is_empty(&self) -> Result<bool, Stop> {
        Ok(self.len()? == 0)
    }

    /// Adds a value at the end; returns its position.
    ///
    /// # Errors
    /// [`Stop::Exhausted`] after 2^64 - 1 values, or [`Stop`] if the host does not answer.
    pub fn push(&mut self, value: &V) -> Result<u64, Stop> {
        let position = self.len()?;
        let Some(len) = position.checked_add(1) else {
            return Err(self.site.handle.stop(Stop::Exhausted { what: self.site.place }));
        };
        self.site.put(self.site.key(&position), value)?;
        self.site.put(self.site.own_key(), &len)?;
        Ok(position)
    }

    /// The value at a position.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn get(&self, position: u64) -> Result<Option<V>, Stop> {
        self.site.get(self.site.key(&position))
    }

    /// The value at the first position. Costs a read.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn first(&self) -> Result<Option<V>, Stop> {
        self.get(0)
    }

    /// The newest value. Costs two reads.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn last(&self) -> Result<Option<V>, Stop> {
        match self.len()?.checked_sub(1) {
            Some(position) => self.get(position),
            None => Ok(None),
        }
    }

    /// All values, in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<V, Stop>> {
        self.values(self.site.all())
    }

    /// All values, from the newest to the oldest.
    pub fn iter_back(&self) -> impl Iterator<Item = Result<V, Stop>> {
        self.values(self.site.all().reversed())
    }

    /// The values of a range of positions, in order.
    pub fn range(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = Result<V, Stop>> {
        self.values(self.site.range(&range))
    }

    /// The values of a range of positions, from the newest to the oldest.
    pub fn range_back(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = Result<V, Stop>> {
        self.values(self.site.range(&range).reversed())
    }

    fn values(&self, range: KeyRange) -> impl Iterator<Item = Result<V, Stop>> {
        self.site.scan(range).map(|entry| {
            let (key, value) = entry?;
            self.site.value_back(&key, &value)
        })
    }
}

impl<V: Encode + Decode + Describe> Collection for Log<V> {
    fn bind(handle: &Handle, space: &Namespace, place: &'static str) -> Self {
        Self { site: Site::new(handle, space, place), _types: PhantomData }
    }
    fn layout() -> Layout {
        Layout::Log { value: V::shape() }
    }
}
