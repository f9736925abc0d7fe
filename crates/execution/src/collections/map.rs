//! Values by key.

use super::{Collection, Site};
use crate::host::Scan;
use crate::{Handle, Layout, Stop};
use keelstone_codec::{
    Decode, DecodeError, Describe, Encode, KEY_LEN_MAX, KeyEnd, KeyReader, Namespace, OrderedKey, Shape, TypeError,
};
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeBounds;

/// An ordered map. Its order is that of the keys' bytes, which is that of the keys. How many entries there are is not kept:
/// whoever needs it keeps it in an [`crate::Item`].
pub struct Map<K, V> {
    site: Site,
    _types: PhantomData<fn() -> (K, V)>,
}

impl<K: OrderedKey, V: Encode + Decode> Map<K, V> {
    /// The value of a key.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn get(&self, key: &K) -> Result<Option<V>, Stop> {
        self.site.get(self.site.key(key))
    }

    /// The value of a key, or the type's default if it has none.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn get_or_default(&self, key: &K) -> Result<V, Stop>
    where
        V: Default,
    {
        Ok(self.get(key)?.unwrap_or_default())
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn contains(&self, key: &K) -> Result<bool, Stop> {
        self.site.contains(self.site.key(key))
    }

    /// Charges for what is to be done with what was read, as a function does itself (`cx.step`).
    pub(crate) fn step(&self, gas: u64) -> Result<(), Stop> {
        self.site.handle.metered(|meter| meter.charge(gas))
    }

    /// Gives a key a value, in the place of the one it has.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn insert(&mut self, key: &K, value: &V) -> Result<(), Stop> {
        self.site.put(self.site.key(key), value)
    }

    /// Takes a key's value out.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer, or what is there is no `V`: [`Map::discard`] removes that, too.
    pub fn remove(&mut self, key: &K) -> Result<Option<V>, Stop> {
        let value = self.get(key)?;
        if value.is_some() {
            self.site.delete(self.site.key(key))?;
        }
        Ok(value)
    }

    /// Removes a key's value unread, be it of this type or not; says whether there was one.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn discard(&mut self, key: &K) -> Result<bool, Stop> {
        self.site.discard(self.site.key(key))
    }

    /// All entries, in order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { scan: self.site.scan(self.site.all()), map: self }
    }

    /// All entries, from the last to the first.
    #[must_use]
    pub fn iter_back(&self) -> Iter<'_, K, V> {
        Iter { scan: self.site.scan(self.site.all().reversed()), map: self }
    }

    /// The entries of a range of keys, in order.
    #[must_use]
    pub fn range(&self, range: impl RangeBounds<K>) -> Iter<'_, K, V> {
        Iter { scan: self.site.scan(self.site.range(&range)), map: self }
    }

    /// The entries of a range of keys, from the last to the first.
    #[must_use]
    pub fn range_back(&self, range: impl RangeBounds<K>) -> Iter<'_, K, V> {
        Iter { scan: self.site.scan(self.site.range(&range).reversed()), map: self }
    }

    /// The entries whose keys begin with `part`, in order: of a map by `(A, B)`, those of one `A`.
    #[must_use]
    pub fn prefix<P: OrderedKey>(&self, part: &P) -> Iter<'_, K, V>
    where
        K: StartsWith<P>,
    {
        Iter { scan: self.site.scan(self.site.beginning(part)), map: self }
    }

    /// The entries whose keys begin with `part`, from the last to the first.
    #[must_use]
    pub fn prefix_back<P: OrderedKey>(&self, part: &P) -> Iter<'_, K, V>
    where
        K: StartsWith<P>,
    {
        Iter { scan: self.site.scan(self.site.beginning(part).reversed()), map: self }
    }

    /// The first entry. Costs a scan of one entry.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn first(&self) -> Result<Option<(K, V)>, Stop> {
        self.iter().next().transpose()
    }

    /// The last entry. Costs a scan of one entry.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn last(&self) -> Result<Option<(K, V)>, Stop> {
        self.iter_back().next().transpose()
    }

    /// Whether there are no entries. Costs a scan of one entry.
    ///
    /// # Errors
    /// [`Stop`] if the host does not answer.
    pub fn is_empty(&self) -> Result<bool, Stop> {
        self.site.is_empty()
    }
}

/// Entries of a [`Map`]. After the first error it ends.
pub struct Iter<'a, K, V> {
    scan: Scan<'a>,
    map: &'a Map<K, V>,
}

impl<K: OrderedKey, V: Decode> Iterator for Iter<'_, K, V> {
    type Item = Result<(K, V), Stop>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.scan.next()?;
        let site = &self.map.site;
        Some(entry.and_then(|(key, value)| Ok((site.key_back(&key)?, site.value_back(&key, &value)?))))
    }
}

impl<K: OrderedKey + Describe, V: Encode + Decode + Describe> Collection for Map<K, V> {
    const SOUND: () = super::a_key(K::END);
    const HOLDS_ITS_PLACE: bool = false;

    fn bind(handle: &Handle, space: &Namespace, place: &'static str) -> Self {
        Self { site: Site::new(handle, space, place), _types: PhantomData }
    }
    fn layout() -> Layout {
        Layout::Map { key: K::shape(), value: V::shape() }
    }
}

/// A composite key whose bytes begin with those of a `P`.
pub trait StartsWith<P> {}
impl<A, B> StartsWith<A> for (A, B) {}
impl<A, B, C> StartsWith<A> for (A, B, C) {}
impl<A, B, C> StartsWith<(A, B)> for (A, B, C) {}
impl<A, B, C, D> StartsWith<A> for (A, B, C, D) {}
impl<A, B, C, D> StartsWith<(A, B)> for (A, B, C, D) {}
impl<A, B, C, D> StartsWith<(A, B, C)> for (A, B, C, D) {}
impl StartsWith<Self> for RawKey {}

/// Key bytes as they are, for state whose keys come from elsewhere. It does not end itself: it stands alone in a key,
/// or last.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawKey(Vec<u8>);

impl RawKey {
    /// Checks and takes over key bytes.
    ///
    /// # Errors
    /// [`TypeError::EmptyKey`], [`TypeError::KeyTooLong`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, TypeError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(TypeError::EmptyKey),
            1..=KEY_LEN_MAX => Ok(Self(bytes)),
            found => Err(TypeError::KeyTooLong { found }),
        }
    }
}
impl std::ops::Deref for RawKey {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
impl fmt::Debug for RawKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawKey({})", self.0.escape_ascii())
    }
}
impl OrderedKey for RawKey {
    const END: KeyEnd = KeyEnd::Open;

    fn encode_key(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
    fn decode_key(input: &mut KeyReader<'_>) -> Result<Self, DecodeError> {
        Self::new(input.rest()).map_err(|_| DecodeError::Invalid { what: "empty key" })
    }
}
impl Describe for RawKey {
    fn shape() -> Shape {
        Shape::RawBytes(KEY_LEN_MAX)
    }
}
impl Encode for RawKey {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl Decode for RawKey {
    fn decode(input: &mut keelstone_codec::Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = input.bytes("raw key", KEY_LEN_MAX)?;
        Self::new(bytes).map_err(|_| DecodeError::Invalid { what: "empty key" })
    }
}
