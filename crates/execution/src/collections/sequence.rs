//! Numbers given out once each.

use super::{Collection, Site};
use crate::{Handle, Layout, Stop};
use keelstone_codec::{KeyEnd, KeyReader, Namespace, OrderedKey};
use std::marker::PhantomData;

/// Gives out 1, 2, 3, … as keys. `K` is a `u64`, or a newtype of one that derives `OrderedKey`.
pub struct Sequence<K> {
    site: Site,
    _types: PhantomData<fn() -> K>,
}

impl<K: OrderedKey> Sequence<K> {
    /// The next number, which is given out again only if what gave it out is taken back, and with it all that has the number.
    ///
    /// # Errors
    /// [`Stop::Exhausted`] after 2^64 - 1, or [`Stop`] if the host does not answer.
    // `next` is the word for it; it is no iterator, since it takes part in the state's errors.
    #[expect(clippy::should_implement_trait, reason = "returns a Result of one number, not an iterator's item")]
    pub fn next(&mut self) -> Result<K, Stop> {
        let Some(next) = self.last()?.checked_add(1) else {
            return Err(self.site.handle.stop(Stop::Exhausted { what: self.site.place }));
        };
        self.site.put(self.site.own_key(), &next)?;
        let bytes = next.to_be_bytes();
        let mut input = KeyReader::new(&bytes);
        let key = K::decode_key(&mut input).and_then(|key| input.finish().map(|()| key));
        let place = self.site.own_key();
        match (key, self.site.checked(place)) {
            (Ok(key), _) => Ok(key),
            (Err(error), Ok(key)) => Err(self.site.undecodable(key, error)),
            (Err(_), Err(stop)) => Err(stop),
        }
    }

    /// How many numbers were given out, which is the last of them.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn last(&self) -> Result<u64, Stop> {
        Ok(self.site.get(self.site.own_key())?.unwrap_or(0))
    }
}

impl<K: OrderedKey> Collection for Sequence<K> {
    const SOUND: () = assert!(matches!(K::END, KeyEnd::Number), "a sequence gives out a `u64`, or a type around one");

    fn bind(handle: &Handle, space: &Namespace, place: &'static str) -> Self {
        Self { site: Site::new(handle, space, place), _types: PhantomData }
    }
    fn layout() -> Layout {
        Layout::Sequence
    }
}
