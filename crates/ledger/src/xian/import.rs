//! Reading what a network of Xian's software exports, and writing it again from the state.
//!
//! Such a file is a CometBFT genesis with the state in its member `abci_genesis`, or that member alone, or a bare list
//! of entries; the state is a list of `{"key", "value"}` and the accounts' nonces are another. [`Import`] takes any of
//! these apart into the entries of a first state; [`export`] puts the same document together again, as it stands after
//! whatever happened since. Nothing is rounded or dropped: what cannot be kept is refused by its name.
//!
//! The file is taken to come from a stranger. Layout: `spec/ledger.md`, XIAN-1 to XIAN-6.

use super::state::{CONTRACTS, Document, EntryKey, Form, Listed, NameError, Record};
use crate::json::{JSON_DEPTH_MAX, Json, JsonError};
use crate::nonces::{NONCES, NonceRecord, next_after};
use keelstone_codec::{Encode, KEY_LEN_MAX, Key, Namespace, TypeError, VALUE_LEN_MAX, Value};
use keelstone_tree::{KeyRange, Read, ReadError};
use std::collections::{BTreeMap, HashSet};

/// Where the lists may stand in a document, and how that is said.
const PLACES: [(&[&str], &str); 3] =
    [(&[], "at the top"), (&["abci_genesis"], "in \"abci_genesis\""), (&["app_state"], "in \"app_state\"")];
/// Levels a document may add around an entry's value.
const OUTER_DEPTH: u32 = 4;
/// Names in one piece of an order.
const ORDER_PIECE: usize = 1_024;

/// An export taken apart, every part checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    entries: Vec<(String, Json)>,
    nonces: Vec<(String, Json)>,
    document: Document,
}

/// Why a file is not taken in. Whoever wrote it has to act; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The text is not JSON that can be kept.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The document has no list of entries where one is looked for.
    #[error(
        "no entries found: expected a list of {{\"key\", \"value\"}}, alone or as the member \"genesis\" at the top or \
         in \"abci_genesis\""
    )]
    NoEntries,
    /// A list stands elsewhere than where the entries are taken from, so it would be left out.
    #[error("the entries stand {entries}, and {list} stands {found} as well: which is meant?")]
    Ambiguous {
        /// `genesis` or `nonces`.
        list: &'static str,
        /// Where the entries stand.
        entries: &'static str,
        /// Where the list stands as well.
        found: &'static str,
    },
    /// A list is neither a list of `{"key", "value"}` nor an object.
    #[error("{list}[{index}] is not an object of exactly \"key\" (text) and \"value\"")]
    Entry {
        /// `genesis` or `nonces`.
        list: &'static str,
        /// Its place.
        index: usize,
    },
    /// `genesis` or `nonces` is neither a list nor an object.
    #[error("{list} is neither a list nor an object")]
    List {
        /// `genesis` or `nonces`.
        list: &'static str,
    },
    /// Two entries have one name.
    #[error("{list} names {name:?} twice")]
    Duplicate {
        /// `genesis` or `nonces`.
        list: &'static str,
        /// The name.
        name: String,
    },
    /// A name that no entry can have.
    #[error("{list}, {name:?}: {source}")]
    Name {
        /// `genesis` or `nonces`.
        list: &'static str,
        /// The beginning of the name.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A value nests too deep for the state's codec.
    #[error("{name:?} nests {found} levels deep, the limit is {JSON_DEPTH_MAX}")]
    TooDeep {
        /// The entry.
        name: String,
        /// Its depth.
        found: u32,
    },
    /// A value is larger than a value of the state may be.
    #[error("{name:?} takes {found} bytes in the state, the limit is {VALUE_LEN_MAX}")]
    TooLarge {
        /// The entry.
        name: String,
        /// Its size.
        found: usize,
    },
}

impl Import {
    /// Takes an export apart.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn parse(text: &[u8]) -> Result<Self, ImportError> {
        Self::from_json(Json::parse(text, JSON_DEPTH_MAX + OUTER_DEPTH)?)
    }

    /// Takes an export apart that is JSON already.
    ///
    /// # Errors
    /// [`ImportError`].
    // spec: XIAN-5
    pub fn from_json(mut outer: Json) -> Result<Self, ImportError> {
        if matches!(outer, Json::List(_)) {
            let (entries, form) = listed("genesis", std::mem::replace(&mut outer, Json::Null))?;
            let document = Document { path: Vec::new(), outer, entries: form, nonces: None };
            return Self { entries, nonces: Vec::new(), document }.checked();
        }
        // Both lists stand in one place. One that stands in another would be left out unseen.
        let stands = |list: &'static str| {
            let found = PLACES.into_iter().filter(|(path, _)| has_list(&outer, path, list));
            found.map(move |(path, place)| (path, list, place))
        };
        let (path, _, entries) = stands("genesis").next().ok_or(ImportError::NoEntries)?;
        if let Some((_, list, found)) = stands("genesis").chain(stands("nonces")).find(|(other, ..)| *other != path) {
            return Err(ImportError::Ambiguous { list, entries, found });
        }
        let path: Vec<_> = path.iter().map(|name| (*name).to_owned()).collect();
        let holder = holder(&mut outer, &path).expect("the path was just found");
        let mut take = |list| match member_mut(holder, list) {
            Some(hole) => listed(list, std::mem::replace(hole, Json::Null)).map(Some),
            None => Ok(None),
        };
        let (entries, form) = take("genesis")?.ok_or(ImportError::NoEntries)?;
        let (nonces, nonces_form) = take("nonces")?.unzip();
        let document = Document { path, outer, entries: form, nonces: nonces_form };
        Self { entries, nonces: nonces.unwrap_or_default(), document }.checked()
    }

    /// Checks what the state's codec could not hold.
    fn checked(mut self) -> Result<Self, ImportError> {
        for (list, names) in [("genesis", &self.entries), ("nonces", &self.nonces)] {
            let mut seen = HashSet::with_capacity(names.len());
            for (name, value) in names {
                let named = match list {
                    // An account's name is a key of its own kind, and no network has a long one.
                    "nonces" if name.len() > KEY_LEN_MAX => Err(NameError::TooLong { found: name.len() }),
                    _ => EntryKey::named(name).map(|_| ()),
                };
                named.map_err(|source| {
                    let name = name.chars().take(64).collect();
                    ImportError::Name { list, name, source }
                })?;
                if !seen.insert(name) {
                    return Err(ImportError::Duplicate { list, name: name.clone() });
                }
                let found = value.depth();
                if found > JSON_DEPTH_MAX {
                    return Err(ImportError::TooDeep { name: name.clone(), found });
                }
            }
        }
        let found = self.document.outer.depth();
        if found > JSON_DEPTH_MAX {
            return Err(ImportError::TooDeep { name: "the document around the entries".to_owned(), found });
        }
        let pieces = |names: &[(String, Json)]| match names.is_sorted_by(|a, b| a.0 < b.0) {
            true => 0,
            false => names.len().div_ceil(ORDER_PIECE),
        };
        let count = |pieces: usize| u32::try_from(pieces).expect("a text has fewer than 2^32 entries");
        self.document.entries.pieces = count(pieces(&self.entries));
        if let Some(form) = &mut self.document.nonces {
            form.pieces = count(pieces(&self.nonces));
        }
        Ok(self)
    }

    /// The entries, in the order of the file.
    #[must_use]
    pub fn entries(&self) -> &[(String, Json)] {
        &self.entries
    }

    /// The accounts and their nonces, in the order of the file.
    #[must_use]
    pub fn nonces(&self) -> &[(String, Json)] {
        &self.nonces
    }

    /// The accounts that can act no more, since what stands for their last nonce is none that another follows.
    // spec: TX-6
    pub fn cannot_act(&self) -> impl Iterator<Item = &str> {
        self.nonces.iter().filter(|(_, last)| next_after(last).is_none()).map(|(name, _)| name.as_str())
    }

    /// The members at the top of the document that nothing is taken from. An export has them again.
    // spec: XIAN-5
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        let Document { path, outer, .. } = &self.document;
        let members = if let Json::Object(members) = outer { members.as_slice() } else { &[] };
        let is_taken = move |name: &str| match path.first() {
            Some(holder) => name == holder,
            None => ["genesis", "nonces"].contains(&name),
        };
        members.iter().map(|(name, _)| name.as_str()).filter(move |name| !is_taken(name))
    }

    /// The document around the lists, with `null` in their places.
    #[must_use]
    pub fn outer(&self) -> &Json {
        &self.document.outer
    }

    /// What the export becomes in the state.
    ///
    /// # Errors
    /// [`ImportError::TooLarge`] for a value that the state cannot hold.
    pub fn writes(&self) -> Result<BTreeMap<(Namespace, Key), Value>, ImportError> {
        let mut writes = BTreeMap::new();
        let mut put = |namespace: &Namespace, name: &str, key: Key, bytes: Vec<u8>| {
            let found = bytes.len();
            let value = Value::new(bytes).map_err(|error| match error {
                TypeError::ValueTooLong { .. } => ImportError::TooLarge { name: name.to_owned(), found },
                _ => unreachable!("a record begins with its tag, so it is never empty"),
            })?;
            writes.insert((namespace.clone(), key), value);
            Ok::<_, ImportError>(())
        };
        let contracts = Namespace::new(CONTRACTS).expect("a constant");
        let nonces = Namespace::new(NONCES).expect("a constant");
        let named = |name: &str| EntryKey::named(name).expect("names were checked").key().clone();
        for (name, value) in &self.entries {
            put(&contracts, name, named(name), Record::entry(name, value.clone()).to_bytes())?;
        }
        for (name, value) in &self.nonces {
            put(&nonces, name, named(name), NonceRecord::imported(value.clone()).to_bytes())?;
        }
        for (list, names, form) in [
            (Listed::Entries, &self.entries, Some(self.document.entries)),
            (Listed::Nonces, &self.nonces, self.document.nonces),
        ] {
            if form.is_none_or(|form| form.pieces == 0) {
                continue;
            }
            for (piece, names) in (0..).zip(names.chunks(ORDER_PIECE)) {
                let record = Record::Order(names.iter().map(|(name, _)| name.clone()).collect());
                put(&contracts, "order", EntryKey::order(list, piece).key().clone(), record.to_bytes())?;
            }
        }
        let document = Record::Document(self.document.clone()).to_bytes();
        put(&contracts, "document", EntryKey::document().key().clone(), document)?;
        Ok(writes)
    }
}

fn has_list(outer: &Json, path: &[&str], list: &str) -> bool {
    let found = path.iter().chain([&list]).try_fold(outer, |value, name| value.member(name));
    matches!(found, Some(Json::List(_) | Json::Object(_)))
}

fn member_mut<'a>(object: &'a mut Json, name: &str) -> Option<&'a mut Json> {
    match object {
        Json::Object(members) => members.iter_mut().find(|(found, _)| found == name).map(|(_, value)| value),
        _ => None,
    }
}

fn holder<'a>(outer: &'a mut Json, path: &[String]) -> Option<&'a mut Json> {
    path.iter().try_fold(outer, |value, name| member_mut(value, name))
}

/// Takes a list of names and values apart, in either form.
fn listed(list: &'static str, value: Json) -> Result<(Vec<(String, Json)>, Form), ImportError> {
    let (names, object) = match value {
        Json::Object(members) => (members, true),
        Json::List(values) => {
            let entries = values.into_iter().enumerate().map(|(index, value)| match value {
                Json::Object(members) => key_and_value(members).ok_or(ImportError::Entry { list, index }),
                _ => Err(ImportError::Entry { list, index }),
            });
            (entries.collect::<Result<_, _>>()?, false)
        }
        _ => return Err(ImportError::List { list }),
    };
    Ok((names, Form { object, pieces: 0 }))
}

fn key_and_value(members: Vec<(String, Json)>) -> Option<(String, Json)> {
    let [(first, a), (second, b)] = <[_; 2]>::try_from(members).ok()?;
    match (first.as_str(), a, second.as_str(), b) {
        ("key", Json::Text(name), "value", value) | ("value", value, "key", Json::Text(name)) => Some((name, value)),
        _ => None,
    }
}

/// Why a state could not be exported.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The state could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record in state does not decode: our own bytes are damaged, or another program wrote them.
    #[error("the record {key} does not decode: {source}")]
    Record {
        /// Its key.
        key: String,
        /// Why not.
        source: keelstone_codec::DecodeError,
    },
    /// The document's template has no place for the lists.
    #[error("the imported document has no place for its entries")]
    Template,
}

/// The export of a state: the document it was imported from with the entries as they stand now, or, for a state that
/// was never imported, or from a bare list since when accounts have acted, `{"genesis": […], "nonces": […]}`.
///
/// Entries keep the order of the import; what came since follows in the order of names.
///
/// # Errors
/// [`ExportError`].
// spec: XIAN-6
pub fn export(state: &dyn Read) -> Result<Json, ExportError> {
    let namespace = Namespace::new(CONTRACTS).expect("a constant");
    let mut entries = BTreeMap::new();
    let mut order = [Vec::new(), Vec::new()];
    let mut document = None;
    for found in state.scan(&namespace, KeyRange::all()) {
        let (key, value) = found?;
        match decode(&key, &value)? {
            Record::Entry(value) => {
                let name = std::str::from_utf8(&key).map_err(|_| damaged(&key))?;
                entries.insert(name.to_owned(), value);
            }
            Record::Long(name, value) => drop(entries.insert(name, value)),
            Record::Document(found) => document = Some(found),
            Record::Order(names) if key.starts_with(b"\xffentries/") => order[0].extend(names),
            Record::Order(names) => order[1].extend(names),
        }
    }
    let mut nonces = BTreeMap::new();
    for found in state.scan(&Namespace::new(NONCES).expect("a constant"), KeyRange::all()) {
        let (key, value) = found?;
        let name = std::str::from_utf8(&key).map_err(|_| damaged(&key))?;
        nonces.insert(name.to_owned(), decode::<NonceRecord>(&key, &value)?.exported());
    }
    let Document { path, mut outer, entries: form, nonces: nonces_form } = document.unwrap_or_else(|| Document {
        path: Vec::new(),
        outer: Json::Object(vec![("genesis".to_owned(), Json::Null)]),
        entries: Form { object: false, pieces: 0 },
        nonces: None,
    });
    let [entries_order, nonces_order] = order;
    let entries = written(entries, &entries_order, form);
    if outer == Json::Null {
        // A bare list has no place for nonces. Once there are any it gets one: who began again without them, under the same
        // chain id, would run every transaction again that was ever signed.
        if nonces.is_empty() {
            return Ok(entries);
        }
        outer = Json::Object(vec![("genesis".to_owned(), Json::Null)]);
    }
    let holder = holder(&mut outer, &path).ok_or(ExportError::Template)?;
    *member_mut(holder, "genesis").ok_or(ExportError::Template)? = entries;
    match (member_mut(holder, "nonces"), nonces_form) {
        (Some(hole), Some(form)) => *hole = written(nonces, &nonces_order, form),
        (None, _) if nonces.is_empty() => {}
        (None, _) => {
            // The document knew no nonces, but accounts have acted since.
            let Json::Object(members) = holder else { return Err(ExportError::Template) };
            members.push(("nonces".to_owned(), written(nonces, &[], Form { object: false, pieces: 0 })));
        }
        (Some(_), None) => return Err(ExportError::Template),
    }
    Ok(outer)
}

fn decode<T: keelstone_codec::Decode>(key: &Key, value: &Value) -> Result<T, ExportError> {
    T::from_bytes(value).map_err(|source| ExportError::Record { key: key.escape_ascii().to_string(), source })
}

fn damaged(key: &Key) -> ExportError {
    let source = keelstone_codec::DecodeError::Invalid { what: "name of an entry" };
    ExportError::Record { key: key.escape_ascii().to_string(), source }
}

/// Writes names and values in their form: first those of `order` that still exist, then the others.
fn written(mut names: BTreeMap<String, Json>, order: &[String], form: Form) -> Json {
    let mut members: Vec<(String, Json)> = order.iter().filter_map(|name| names.remove_entry(name)).collect();
    members.extend(names);
    if form.object {
        return Json::Object(members);
    }
    let entry = |(name, value)| Json::Object(vec![("key".to_owned(), Json::Text(name)), ("value".to_owned(), value)]);
    Json::List(members.into_iter().map(entry).collect())
}

/// The value of an entry by its own name.
///
/// # Errors
/// [`ExportError`] if the state cannot be read; a name that no entry can have is absent.
pub fn entry(state: &dyn Read, name: &str) -> Result<Option<Json>, ExportError> {
    let Ok(key) = EntryKey::named(name) else { return Ok(None) };
    let namespace = Namespace::new(CONTRACTS).expect("a constant");
    match state.get(&namespace, key.key())? {
        None => Ok(None),
        Some(value) => Ok(decode::<Record>(key.key(), &value)?.value_of(name)),
    }
}
