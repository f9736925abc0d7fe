//! One value.

use super::{Collection, Site};
use crate::{Handle, Layout, Stop};
use keelstone_codec::{Decode, Describe, Encode, Namespace};
use std::marker::PhantomData;

/// One value, or none.
pub struct Item<V> {
    site: Site,
    _types: PhantomData<fn() -> V>,
}

impl<V: Encode + Decode> Item<V> {
    /// The value.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn get(&self) -> Result<Option<V>, Stop> {
        self.site.get(self.site.own_key())
    }

    /// The value, or the type's default if there is none.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn get_or_default(&self) -> Result<V, Stop>
    where
        V: Default,
    {
        Ok(self.get()?.unwrap_or_default())
    }

    /// Puts a value in the place of the one that is there.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn set(&mut self, value: &V) -> Result<(), Stop> {
        self.site.put(self.site.own_key(), value)
    }

    /// Takes the value out.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer, or what is there is no `V`: [`Item::discard`] removes that, too.
    pub fn take(&mut self) -> Result<Option<V>, Stop> {
        let value = self.get()?;
        if value.is_some() {
            self.site.delete(self.site.own_key())?;
        }
        Ok(value)
    }

    /// Removes the value unread, be it of this type or not; says whether there was one.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn discard(&mut self) -> Result<bool, Stop> {
        self.site.discard(self.site.own_key())
    }
}

impl<V: Encode + Decode + Describe> Collection for Item<V> {
    fn bind(handle: &Handle, space: &Namespace, place: &'static str) -> Self {
        Self { site: Site::new(handle, space, place), _types: PhantomData }
    }
    fn layout() -> Layout {
        Layout::Item { value: V::shape() }
    }
}
