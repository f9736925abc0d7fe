//! One HDF5 file of a Xian node's storage, taken apart.
//!
//! The file is taken to come from a stranger. What reads the format is the library `hdf5-pure`; what bounds it is
//! [`Guard`], through which it gets each byte: so much in one read, so much for one group, so much for the file. That
//! ends a walk that fans out without end and a list that claims more than the file could hold, whatever the library itself
//! would do. A group has one name; a second one, above all of a group above it, is refused. Links that name another place, in this file or
//! elsewhere, are never followed.
//!
//! Layout: `spec/ledger.md`, XIAN-9.

use crate::input::FILE_BYTES_MAX;
use hdf5_pure::{AttrValue, Datatype, File, FormatError, Group, Source};
use keelstone_ledger::xian::NAME_LEN_MAX;
use keelstone_ledger::{JSON_DEPTH_MAX, Json, JsonError};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

/// The most bytes that one read may ask for, and that the values of one group may come to. A value of the state has at
/// most 8 MiB, and its JSON says each of them with at most six.
pub const READ_BYTES_MAX: u64 = 48 << 20;
/// How many times the bytes of a file may be read. Xian's own files come to less than ten.
const READS_OF_FILE: u64 = 256;
/// The same for listing the children of one group, which reads each byte once.
const READS_OF_GROUP: u64 = 8;
/// What any file may cost: a short one is read in pieces that each count for more than they are.
const READ_BYTES_FLOOR: u64 = 1 << 20;
/// What a read counts for at least.
const READ_BYTES_LEAST: u64 = 64;
/// The children of one group, each taken for as long as the longest of their names. The library keeps a copy of a name
/// for each child, and nothing keeps a file from giving one name to many.
pub const NAMES_BYTES_MAX: u64 = 1 << 30;

/// The attribute that holds a key's value, as JSON.
const VALUE: &str = "value";
/// The attribute that says when the value was written.
const BLOCK: &str = "block";
/// The group of a contract's compiled code, which Xian makes anew from its source.
const COMPILED: &str = "__compiled__";

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys {
    /// The keys below the file's own name, with `:` between the groups, ascending, and their values.
    pub values: Vec<(String, Json)>,
    /// How many keys of compiled code were left out.
    pub compiled: u64,
    /// Bytes of those keys and values, as they stand in the file.
    pub text: u64,
}

/// Why a file is not taken in. Whoever wrote it has to act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The bytes are not those of an HDF5 file, cut short, or damaged.
    #[error("{at}: not HDF5 that can be read: {source}")]
    Damaged {
        /// The group at which it was found, or the file.
        at: At,
        /// What the library says.
        source: hdf5_pure::Error,
    },
    /// A group has a second name: that of a group above it, or any other. Xian gives each key a group of its own.
    #[error("{at}: the group has another name besides")]
    LinkedTwice {
        /// The second name.
        at: At,
    },
    /// A group above names two groups alike.
    #[error("{at}: the key stands there twice")]
    KeyTwice {
        /// The key.
        at: At,
    },
    /// Reading it takes more than a file of its size can hold: what lists its groups names one thing over and over.
    #[error("{at}: its groups cannot be listed within {limit} bytes of reading")]
    Endless {
        /// Where the walk ended.
        at: At,
        /// How much reading a file of this size may cost.
        limit: u64,
    },
    /// One read would be larger than any value may be.
    #[error("{at}: a piece of {found} bytes, the limit is {READ_BYTES_MAX}")]
    TooLarge {
        /// The group.
        at: At,
        /// How many bytes.
        found: u64,
    },
    /// Keys and values come to more than an export may have.
    #[error("{at}: its keys and values come to more than {limit} bytes")]
    TooMuch {
        /// Where the limit was passed.
        at: At,
        /// How many bytes were left for this file.
        limit: u64,
    },
    /// More children, or longer names, than are held at a time.
    #[error(
        "{at}: {children} children with names of up to {longest} bytes, the limit of both together is {NAMES_BYTES_MAX}"
    )]
    Names {
        /// The group.
        at: At,
        /// How many children were listed.
        children: u64,
        /// The longest run of bytes that could be a name.
        longest: u64,
    },
    /// A key longer than an entry's name may be. Groups nested without end are found here.
    #[error("{at}: a key of {found} bytes, the limit is {NAME_LEN_MAX}")]
    KeyTooLong {
        /// The beginning of the key.
        at: At,
        /// Its length.
        found: usize,
    },
    /// A name of a group that Xian's software cannot have written.
    #[error("{at}: a group is called {name:?}, and no part of a Xian key can be: {why}")]
    Name {
        /// The group above.
        at: At,
        /// The beginning of the name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something that is no group.
    #[error("{at}: {name:?} is a {what}, and a contract's file holds groups alone")]
    NotAGroup {
        /// The group above.
        at: At,
        /// Its name.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// An attribute that Xian's software does not write, or one of another type than it writes.
    #[error("{at}: the attribute {name:?} is {found}, expected {expected}")]
    Attribute {
        /// The group.
        at: At,
        /// The attribute.
        name: String,
        /// What was found.
        found: String,
        /// What Xian writes.
        expected: &'static str,
    },
    /// A value is not JSON that can be kept.
    #[error("{at}: the value is not JSON that can be kept: {source}")]
    Value {
        /// The group.
        at: At,
        /// Why not.
        source: JsonError,
    },
    /// The disk failed.
    #[error("could not be read: {0}")]
    Io(io::Error),
}

/// A place in a file, as its key is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At(String);

impl At {
    /// Characters of a key that an error shows.
    const SHOWN: usize = 64;

    fn key(key: &str) -> Self {
        Self(key.chars().take(Self::SHOWN).collect())
    }
}
impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { f.write_str("the file") } else { write!(f, "{:?}", self.0) }
    }
}

/// Takes the bytes of a file apart.
///
/// # Errors
/// [`FileError`].
pub fn keys_of_bytes(bytes: Vec<u8>) -> Result<Keys, FileError> {
    let len = bytes.len() as u64;
    keys(Bytes::Memory(bytes), len, FILE_BYTES_MAX)
}

/// Takes an open file of `len` bytes apart, whose keys and values may come to `text_max`. Beside those, the names of the
/// groups that wait are in memory.
///
/// # Errors
/// [`FileError`].
pub(super) fn keys_of_file(file: fs::File, len: u64, text_max: u64) -> Result<Keys, FileError> {
    keys(Bytes::File(file), len, text_max)
}

/// What waits to be looked at.
struct Waiting {
    group: Group,
    key: String,
}

// spec: XIAN-9
fn keys(bytes: Bytes, len: u64, text_max: u64) -> Result<Keys, FileError> {
    let guard = Arc::new(Guard { bytes, len, spent: Mutex::new(Spent::default()) });
    let reading = Reading { guard: Arc::clone(&guard) };
    let top = At::key("");
    let file = reading.values(&top, || File::from_source(Shared(guard)))?;
    let mut keys = Keys::default();
    let mut seen = HashSet::new();
    // A stack of its own: how deep groups nest is the file's word.
    let mut waiting = vec![Waiting { group: file.root(), key: String::new() }];
    while let Some(Waiting { group, key }) = waiting.pop() {
        let at = At::key(&key);
        let (types, address) = reading.types(&group, &at)?;
        if !seen.insert(address) {
            return Err(FileError::LinkedTwice { at });
        }
        if key.split('.').next() == Some(COMPILED) {
            keys.compiled += u64::from(types.contains_key(VALUE));
        } else if let Some((value, len)) = reading.value(&group, types, &at)? {
            keys.text = keys.text.saturating_add(key.len() as u64).saturating_add(len);
            if keys.text > text_max {
                return Err(FileError::TooMuch { at, limit: text_max });
            }
            keys.values.push((key.clone(), value));
        }
        for (name, child) in reading.children(&group, &at)? {
            check_name(&name, &at)?;
            let key = if key.is_empty() { name } else { format!("{key}:{name}") };
            if key.len() > NAME_LEN_MAX {
                return Err(FileError::KeyTooLong { at, found: key.len() });
            }
            waiting.push(Waiting { group: child, key });
        }
    }
    keys.values.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    match keys.values.windows(2).find(|two| two[0].0 == two[1].0) {
        Some(two) => Err(FileError::KeyTwice { at: At::key(&two[0].0) }),
        None => Ok(keys),
    }
}

/// Xian splits its keys at `:` and makes a group of each part. HDF5 drops empty parts and `.`.
fn check_name(name: &str, at: &At) -> Result<(), FileError> {
    let why = match name {
        "" | "." => "HDF5 takes it for no part of a path",
        // What the library puts in the place of bytes that are no text.
        _ if name.contains('\u{fffd}') => "it is not UTF-8",
        _ if name.contains(':') => "Xian ends a part there",
        _ if name.contains(['/', '\0']) => "HDF5 ends a name there",
        _ => return Ok(()),
    };
    let name = name.chars().take(At::SHOWN).collect();
    Err(FileError::Name { at: at.clone(), name, why })
}

/// What the library is asked, each time with so much reading as the question may cost.
struct Reading {
    guard: Arc<Guard>,
}

impl Reading {
    /// The attributes of a group by name and type, and where the group lies. That the library does not say, but it has to
    /// read the group's head first.
    fn types(&self, group: &Group, at: &At) -> Result<(HashMap<String, Datatype>, u64), FileError> {
        let types = self.values(at, || group.attr_datatypes())?;
        Ok((types, self.guard.spent().question.first.expect("a group is read to say what its attributes are")))
    }

    fn children(&self, group: &Group, at: &At) -> Result<Vec<(String, Group)>, FileError> {
        let datasets = self.walk(at, || group.datasets())?;
        let datatypes = self.walk(at, || group.named_datatypes())?;
        for (what, names) in [("dataset", datasets), ("named datatype", datatypes)] {
            if let Some(name) = names.into_iter().next() {
                let name = name.chars().take(At::SHOWN).collect();
                return Err(FileError::NotAGroup { at: at.clone(), name, what });
            }
        }
        self.walk(at, || group.iter_groups()).map(Iterator::collect)
    }

    /// The value of a group and the length of its text, if it has one: a key that was deleted has none, and neither has a
    /// group that is only a part of other keys.
    fn value(
        &self,
        group: &Group,
        types: HashMap<String, Datatype>,
        at: &At,
    ) -> Result<Option<(Json, u64)>, FileError> {
        let mut values = self.values(at, || group.attrs())?;
        let mut value = None;
        let mut names: Vec<(String, Datatype)> = types.into_iter().collect();
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (name, datatype) in names {
            let wrong = |found: &dyn std::fmt::Display, expected| {
                let name = name.chars().take(At::SHOWN).collect();
                Err(FileError::Attribute { at: at.clone(), name, found: found.to_string(), expected })
            };
            // What cannot be read the library leaves out.
            let found = values.remove(&name);
            match (name.as_str(), found) {
                (VALUE, Some(AttrValue::VarLenString(text) | AttrValue::VarLenAsciiString(text)))
                | (VALUE, Some(AttrValue::String(text) | AttrValue::AsciiString(text))) => {
                    // Xian writes ASCII alone, so this stands for bytes that are no text.
                    if text.contains('\u{fffd}') {
                        return wrong(&"not UTF-8", "JSON text");
                    }
                    let json = Json::parse(text.as_bytes(), JSON_DEPTH_MAX);
                    let json = json.map_err(|source| FileError::Value { at: at.clone(), source })?;
                    // Xian reads a value of `null` as no value.
                    value = Some((json, text.len() as u64)).filter(|(json, _)| *json != Json::Null);
                }
                (VALUE, None) => return wrong(&"not to be read", "JSON text"),
                (VALUE, Some(found)) if found.as_strings().is_some() => return wrong(&"a list", "JSON text"),
                (VALUE, Some(_)) => return wrong(&kind(&datatype), "JSON text"),
                (BLOCK, Some(AttrValue::I64(_) | AttrValue::I32(_) | AttrValue::U64(_) | AttrValue::U32(_))) => {}
                (BLOCK, Some(found)) if found.to_i64s().is_some() => return wrong(&"a list", "an integer"),
                (BLOCK, _) => return wrong(&kind(&datatype), "an integer"),
                (_, _) => return wrong(&kind(&datatype), "no attribute but `value` and `block`"),
            }
        }
        Ok(value)
    }

    fn walk<T>(&self, at: &At, ask: impl FnOnce() -> Result<T, hdf5_pure::Error>) -> Result<T, FileError> {
        let limit = self.guard.len.saturating_mul(READS_OF_GROUP).saturating_add(READ_BYTES_FLOOR);
        self.ask(at, limit, true, ask)
    }

    fn values<T>(&self, at: &At, ask: impl FnOnce() -> Result<T, hdf5_pure::Error>) -> Result<T, FileError> {
        self.ask(at, READ_BYTES_MAX, false, ask)
    }

    fn ask<T>(
        &self,
        at: &At,
        limit: u64,
        names: bool,
        ask: impl FnOnce() -> Result<T, hdf5_pure::Error>,
    ) -> Result<T, FileError> {
        self.guard.spent().question = Question { limit, names, ..Question::default() };
        let answer = ask();
        let at = || at.clone();
        match (self.guard.spent().question.refused.take(), answer) {
            (Some(Refused::Endless { limit }), _) => Err(FileError::Endless { at: at(), limit }),
            (Some(Refused::TooLarge { found }), _) => Err(FileError::TooLarge { at: at(), found }),
            (Some(Refused::Names { children, longest }), _) => Err(FileError::Names { at: at(), children, longest }),
            (Some(Refused::Io(error)), _) => Err(FileError::Io(error)),
            (None, Err(source)) => Err(FileError::Damaged { at: at(), source }),
            (None, Ok(found)) => Ok(found),
        }
    }
}

fn kind(datatype: &Datatype) -> &'static str {
    match datatype {
        Datatype::FixedPoint { .. } => "an integer",
        Datatype::FloatingPoint { .. } => "a float",
        Datatype::String { .. } => "text",
        Datatype::VariableLength { .. } => "of variable length",
        Datatype::Enumeration { .. } => "an enumeration",
        Datatype::Compound { .. } => "compound",
        Datatype::Array { .. } => "an array",
        _ => "of another type",
    }
}

enum Bytes {
    Memory(Vec<u8>),
    File(fs::File),
}

/// The bytes of a file, and how much of them was asked for.
struct Guard {
    bytes: Bytes,
    len: u64,
    spent: Mutex<Spent>,
}

#[derive(Default)]
struct Spent {
    /// Bytes read since the file was opened.
    file: u64,
    question: Question,
}

/// What one question to the library has cost.
#[derive(Default)]
struct Question {
    /// Bytes it may read.
    limit: u64,
    /// Whether it lists names.
    names: bool,
    read: u64,
    /// Where it read first.
    first: Option<u64>,
    /// Children listed so far.
    children: u64,
    /// The longest run without a zero: no name is longer.
    longest: u64,
    refused: Option<Refused>,
}

enum Refused {
    Endless { limit: u64 },
    TooLarge { found: u64 },
    Names { children: u64, longest: u64 },
    Io(io::Error),
}

impl Question {
    /// Counts a read before anything is reserved for it.
    fn charge(&mut self, len: u64) -> Result<(), Refused> {
        if len > READ_BYTES_MAX {
            return Err(Refused::TooLarge { found: len });
        }
        self.read = self.read.saturating_add(len.max(READ_BYTES_LEAST));
        match self.read > self.limit {
            true if self.names => Err(Refused::Endless { limit: self.limit }),
            true => Err(Refused::TooLarge { found: self.read }),
            false => Ok(()),
        }
    }

    /// Looks at what a list of children is made of: a symbol table node or a leaf of link names says how many, and a
    /// name ends at a zero or with its message.
    fn notice(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        if !self.names {
            return Ok(());
        }
        self.children += match bytes {
            [b'S', b'N', b'O', b'D', _, _, low, high, ..] => u64::from(u16::from_le_bytes([*low, *high])),
            // A record of a link's name: a hash of four bytes and a heap id of seven.
            [b'B', b'T', b'L', b'F', ..] => bytes.len() as u64 / 11,
            _ => 0,
        };
        let longest = bytes.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0);
        self.longest = self.longest.max(longest as u64);
        let (children, longest) = (self.children, self.longest);
        match children.saturating_mul(longest) > NAMES_BYTES_MAX {
            true => Err(Refused::Names { children, longest }),
            false => Ok(()),
        }
    }
}

impl Guard {
    fn spent(&self) -> std::sync::MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn charge(&self, offset: u64, len: u64) -> Result<(), Refused> {
        let mut spent = self.spent();
        let limit = self.len.saturating_mul(READS_OF_FILE).saturating_add(READ_BYTES_FLOOR);
        spent.file = spent.file.saturating_add(len.max(READ_BYTES_LEAST));
        if spent.file > limit {
            return Err(Refused::Endless { limit });
        }
        spent.question.first.get_or_insert(offset);
        spent.question.charge(len)
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        match &self.bytes {
            Bytes::Memory(bytes) => {
                let from = usize::try_from(offset).expect("within the length, which is that of a vector");
                buf.copy_from_slice(&bytes[from..from + buf.len()]);
            }
            Bytes::File(file) => file.read_exact_at(buf, offset).map_err(Refused::Io)?,
        }
        self.spent().question.notice(buf)
    }
}

/// What the library reads from.
struct Shared(Arc<Guard>);

impl Shared {
    /// Keeps why a read was refused, because the library may put another error in its place, or leave out what failed.
    fn refuse(&self, refused: Refused) -> FormatError {
        let found = FormatError::UnexpectedEof { expected: usize::MAX, available: 0 };
        self.0.spent().question.refused.get_or_insert(refused);
        found
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), FormatError> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.0.len) {
            let available = usize::try_from(self.0.len).unwrap_or(usize::MAX);
            let expected = end.and_then(|end| usize::try_from(end).ok()).unwrap_or(usize::MAX);
            return Err(FormatError::UnexpectedEof { expected, available });
        }
        self.0.charge(offset, len as u64).map_err(|refused| self.refuse(refused))
    }
}

impl Source for Shared {
    fn len(&self) -> u64 {
        self.0.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FormatError> {
        self.check(offset, buf.len())?;
        self.0.fill(offset, buf).map_err(|refused| self.refuse(refused))
    }

    fn read_exact_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, FormatError> {
        // Bounded before anything is reserved; `read_at` would count it only afterwards.
        self.check(offset, len)?;
        let mut buf = vec![0; len];
        self.0.fill(offset, &mut buf).map_err(|refused| self.refuse(refused))?;
        Ok(buf)
    }
}
