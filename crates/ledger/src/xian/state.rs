//! How Xian's entries stand in the state: under their own names, with their values exact.
//!
//! An entry `currency.balances:<address>` is the key of those bytes in the namespace `contracts`, so that it can be
//! asked for, proven and listed by the name its network gave it. Names are UTF-8, so the byte `ff` is free for what
//! is not an entry: the rest of an imported document, and names longer than a key may be.
//!
//! Layout: `spec/ledger.md`, XIAN-1 to XIAN-3.

use crate::json::Json;
use keelstone_codec::{Describe, KEY_LEN_MAX, Key, Shape, Tag, TaggedHasher};
use keelstone_execution::RawKey;
use keelstone_macros::{Decode, Encode};
use std::fmt;

/// The namespace of entries.
pub const CONTRACTS: &str = "contracts";
/// The longest name of an entry: what Xian's own contracts allow is 1,024 bytes.
pub const NAME_LEN_MAX: usize = 4_096;

/// How much of a long name stands in its key as it is: the rest is a mark and a hash.
const LONG_PREFIX: usize = KEY_LEN_MAX - 1 - 32;
/// A byte that UTF-8 never has.
const MARK: u8 = 0xff;
const LONG_NAME: Tag = Tag::new("xian-long-name");

/// A key of the namespace `contracts`: an entry's name, or one of the module's own records.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryKey(Key);

/// Why a name cannot be that of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The empty name.
    #[error("an entry's name has at least one byte")]
    Empty,
    /// A name above [`NAME_LEN_MAX`].
    #[error("an entry's name has at most {NAME_LEN_MAX} bytes, this one has {found}")]
    TooLong {
        /// Its length.
        found: usize,
    },
}

impl EntryKey {
    /// The key of an entry.
    ///
    /// A name of at most 255 bytes is its own key. Of a longer one the first 222 bytes stay, so that it sorts and is
    /// found by prefix where it belongs; then comes `ff`, which no name has, and a hash of all of it. The record
    /// behind such a key repeats the whole name.
    ///
    /// # Errors
    /// [`NameError`].
    // spec: XIAN-3
    pub fn named(name: &str) -> Result<Self, NameError> {
        let bytes = name.as_bytes();
        match bytes.len() {
            0 => Err(NameError::Empty),
            1..=KEY_LEN_MAX => Ok(Self::raw(bytes)),
            256..=NAME_LEN_MAX => {
                let hash = TaggedHasher::new(LONG_NAME).update(bytes).finish();
                Ok(Self::raw(&[&bytes[..LONG_PREFIX], &[MARK], hash.as_bytes()].concat()))
            }
            found => Err(NameError::TooLong { found }),
        }
    }

    /// The record of what an imported document says besides its entries.
    #[must_use]
    pub fn document() -> Self {
        Self::raw(b"\xffdocument")
    }

    /// One piece of the order in which a document lists its entries or nonces.
    #[must_use]
    pub fn order(list: Listed, piece: u32) -> Self {
        let name: &[u8] = match list {
            Listed::Entries => b"\xffentries/",
            Listed::Nonces => b"\xffnonces/",
        };
        Self::raw(&[name, &piece.to_be_bytes()].concat())
    }

    /// The raw key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.0
    }

    /// The key as a typed collection takes it.
    #[must_use]
    pub fn to_raw(&self) -> RawKey {
        RawKey::new(self.0.to_vec()).expect("a key is a raw key")
    }

    /// The entry's name if the key spells it out in full.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    fn raw(bytes: &[u8]) -> Self {
        Self(Key::new(bytes).expect("the caller keeps to 1..=255 bytes"))
    }
}
impl fmt::Debug for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryKey({})", self.0.escape_ascii())
    }
}
/// What stands under a key of `contracts`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub enum Record {
    /// An entry whose key is its name.
    Entry(Json),
    /// An entry whose name is longer than a key may be.
    Long(String, Json),
    /// What a document says besides its entries.
    Document(Document),
    /// The next names in the order of a document.
    Order(Vec<String>),
}

impl Record {
    /// The record of an entry.
    #[must_use]
    pub fn entry(name: &str, value: Json) -> Self {
        if name.len() <= KEY_LEN_MAX { Self::Entry(value) } else { Self::Long(name.to_owned(), value) }
    }

    /// The value, if this is an entry of this name. A long name whose hash collides is none of ours.
    #[must_use]
    pub fn value_of(self, name: &str) -> Option<Json> {
        match self {
            Self::Entry(value) => Some(value),
            Self::Long(found, value) if found == name => Some(value),
            _ => None,
        }
    }
}

/// The two lists of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// `genesis`.
    Entries,
    /// `nonces`.
    Nonces,
}

/// An imported document without its entries and nonces, so that an export needs nothing but the state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Document {
    /// The member names that lead from the top to the object that holds the lists: none, or `abci_genesis`.
    pub path: Vec<String>,
    /// The document, with `null` where the lists stood.
    pub outer: Json,
    /// How the entries stood there.
    pub entries: Form,
    /// How the nonces stood there, if they did.
    pub nonces: Option<Form>,
}

/// How a list of names and values is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Form {
    /// `{name: value}` rather than `[{"key": name, "value": value}]`.
    pub object: bool,
    /// How many [`Record::Order`] pieces say the order; none when names ascend bytewise.
    pub pieces: u32,
}

/// A record's layout nests without end, so only its rule can say it.
impl Describe for Record {
    fn shape() -> Shape {
        Shape::Opaque("XIAN-2")
    }
}
