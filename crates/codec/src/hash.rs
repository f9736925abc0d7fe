//! 32-byte hashes and the tags that keep their uses apart.
//!
//! Everything outside the tree (links, digests, identities, records) is hashed with BLAKE3-256 under a [`Tag`]. The
//! tree brings its own hasher, chosen by the chain, and its own tags inside 128-byte preimages (`spec/tree.md`).

use crate::{Decode, DecodeError, Encode, Reader, unhex_into};
use std::fmt;
use std::str::FromStr;

/// A 32-byte hash of no particular meaning. Prefer [`crate::Root`] or [`crate::StateHash`] where one fits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Thirty-two zero bytes: "nothing before this", never the hash of anything.
    pub const ZERO: Self = Self([0; 32]);

    /// Reads 64 hexadecimal digits in lower case.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for anything else.
    pub fn from_hex(text: &str) -> Result<Self, DecodeError> {
        let mut out = [0; 32];
        match unhex_into(text, &mut out) {
            Ok(()) => Ok(Self(out)),
            Err(_) => Err(DecodeError::Invalid { what: "hash, which is 64 lower-case hexadecimal digits" }),
        }
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// As [`Hash::from_hex`].
impl FromStr for Hash {
    type Err = DecodeError;
    fn from_str(text: &str) -> Result<Self, DecodeError> {
        Self::from_hex(text)
    }
}
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        hex::encode_to_slice(self.0, &mut digits).expect("two digits a byte");
        f.write_str(str::from_utf8(&digits).expect("digits are ASCII"))
    }
}
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Encode for Hash {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}
impl Decode for Hash {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(input.array()?))
    }
}

/// The domain of a hash: a short name such as `operation` that no other use shares (spec: CODEC-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(&'static str);

impl Tag {
    /// A tag of 1 to 64 bytes, none of them zero.
    ///
    /// # Panics
    /// At compile time, for a tag that is empty, too long or holds the zero byte that ends it: tags are constants.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(!bytes.is_empty() && bytes.len() <= 64, "a tag has 1 to 64 bytes");
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] != 0, "a zero byte would end the tag early");
            at += 1;
        }
        Self(name)
    }

    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// Hashes parts under a tag. Callers see to it that the parts together are unambiguous: fixed width, or a canonical
/// encoding that carries its own lengths.
///
/// Most hashes are of some hundred bytes: the parts are gathered, and hashed at once.
#[derive(Clone, Debug)]
pub struct TaggedHasher {
    /// What is still to be hashed.
    gathered: Vec<u8>,
    /// What was before that, of more than [`GATHERED_BYTES_MAX`].
    hashed: Option<Box<blake3::Hasher>>,
}

/// Most bytes that are gathered: more than BLAKE3 needs to hash in all its lanes.
const GATHERED_BYTES_MAX: usize = 64 << 10;

impl TaggedHasher {
    /// Starts a hash with `keelstone/`, the tag and a zero byte (spec: CODEC-7).
    #[must_use]
    pub fn new(tag: Tag) -> Self {
        let mut gathered = Vec::with_capacity(256);
        gathered.extend_from_slice(b"keelstone/");
        gathered.extend_from_slice(tag.0.as_bytes());
        gathered.push(0);
        Self { gathered, hashed: None }
    }

    /// Adds raw bytes.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        if bytes.len() > GATHERED_BYTES_MAX {
            // Not copied first.
            self.hashed.get_or_insert_default().update(&self.gathered).update(bytes);
            self.gathered.clear();
            return self;
        }
        self.gathered.extend_from_slice(bytes);
        self.spill()
    }

    /// Adds the canonical encoding of a value.
    pub fn value(&mut self, value: &(impl Encode + ?Sized)) -> &mut Self {
        value.encode(&mut self.gathered);
        self.spill()
    }

    fn spill(&mut self) -> &mut Self {
        if self.gathered.len() > GATHERED_BYTES_MAX {
            self.hashed.get_or_insert_default().update(&self.gathered);
            self.gathered.clear();
        }
        self
    }

    /// The hash.
    #[must_use]
    pub fn finish(&self) -> Hash {
        let hash = match &self.hashed {
            None => blake3::hash(&self.gathered),
            Some(hashed) => hashed.clone().update(&self.gathered).finalize(),
        };
        Hash(*hash.as_bytes())
    }
}

/// The tagged BLAKE3-256 hash of one canonical encoding.
#[must_use]
pub fn tagged(tag: Tag, value: &(impl Encode + ?Sized)) -> Hash {
    TaggedHasher::new(tag).value(value).finish()
}
