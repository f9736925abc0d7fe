//! The agents' world for those who ask: its tables, and what they are looked up by beside their keys.
//!
//! Tables are maps of the state, shown with keys and values by field. Indexes lie outside the state: they are made when
//! somebody first asks, for the very root that is asked about, kept up with each block, and made anew whenever the root
//! under them is another than expected: after a rollback, a restore or a start.
//!
//! Rules: `spec/modules.md`, MODULE-4.

use crate::api::{Page, Refusal};
use crate::{call, typed_key};
use keelstone_codec::{Key, Namespace, OrderedKey, Root, Shape, Text};
use keelstone_execution::{IndexError, Layout, PublicKey, Registry, entry_prefix};
use keelstone_ledger::Committed;
use keelstone_ledger::modules::agents::AgentId;
use keelstone_ledger::modules::index::Indexes;
use keelstone_tree::Read;
use serde_json::{Value, json};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A table by the name people know it by: its namespace, its place, and what it can be looked up by.
pub(crate) const TABLES: [(&str, &str, &str, Option<By>); 14] = [
    ("activity", "agents", "activity", None),
    ("agents", "agents", "all", Some(By::Name)),
    ("alliances", "social", "alliances", Some(By::Member)),
    ("bribes", "social", "bribes", None),
    ("conflicts", "conflict", "all", None),
    ("drama", "social", "drama", None),
    ("memes", "memes", "memes", Some(By::Author)),
    ("opinions", "conflict", "opinions", None),
    ("production", "agents", "production", None),
    ("reactions", "memes", "reactions", None),
    ("relationships", "social", "relationships", Some(By::Other)),
    ("rules", "rules", "all", None),
    ("sessions", "sessions", "records", None),
    ("votes", "rules", "votes", None),
];

/// A collection of the state that is asked for by its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a> {
    /// Its namespace.
    pub(crate) space: &'a str,
    /// Its place in it.
    pub(crate) place: &'a str,
    /// What its rows can be looked up by beside their keys.
    pub(crate) by: Option<By>,
}

impl Table<'_> {
    /// What the keys of its rows begin with.
    pub(crate) fn prefix(&self) -> Vec<u8> {
        entry_prefix(self.place)
    }
}

/// The table of a name: one of [`TABLES`], unless this chain has none or a namespace of its own of that name; or
/// `NAMESPACE/PLACE`, any collection of rows that this program knows.
pub(crate) fn table<'a>(registry: &'a Registry, name: &'a str) -> Option<Table<'a>> {
    let found = match TABLES.into_iter().find(|(table, ..)| *table == name) {
        Some((_, space, place, by)) => {
            let is_own = space == name || !registry.spaces().any(|space| space.name == name);
            is_own.then_some(Table { space, place, by })?
        }
        None => {
            let (space, place) = name.split_once('/')?;
            Table { space, place, by: None }
        }
    };
    rows_of(layout(registry, found.space, found.place)?).is_some().then_some(found)
}

/// The namespace and the key of what is a single value: `NAMESPACE/PLACE` of an item or a sequence that this program knows.
pub(crate) fn single<'a>(registry: &Registry, name: &'a str) -> Option<(&'a str, &'a str)> {
    let (space, place) = name.split_once('/')?;
    matches!(layout(registry, space, place)?, Layout::Item { .. } | Layout::Sequence).then_some((space, place))
}

/// The names of the collections of a namespace, as [`table`] and [`single`] take them.
pub(crate) fn collections(registry: &Registry, space: &str) -> Vec<String> {
    let found = registry.spaces().find(|found| found.name == space);
    let places = found.into_iter().flat_map(|space| &space.collections);
    places.map(|(place, _)| format!("{space}/{place}")).collect()
}

/// The shape of the keys of rows and that of their values, if it is a collection of rows.
fn rows_of(layout: &Layout) -> Option<(Shape, Option<&Shape>)> {
    match layout {
        Layout::Map { key, value } => Some((key.clone(), Some(value))),
        Layout::Set { key } => Some((key.clone(), None)),
        Layout::Log { value } => Some((Shape::Unsigned(8), Some(value))),
        _ => None,
    }
}

/// What entries are looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Agents, by what they are called.
    Name,
    /// Memes, by who posted them.
    Author,
    /// Alliances, by who is in them.
    Member,
    /// Relationships, by whom they are about.
    Other,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Author => "author",
            Self::Member => "member",
            Self::Other => "other",
        })
    }
}

impl FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Name, Self::Author, Self::Member, Self::Other];
        all.into_iter()
            .find(|by| by.to_string() == text)
            .ok_or_else(|| format!("there is no index {text:?}; there are name, author, member and other"))
    }
}

/// The indexes of one root, if anybody has asked yet.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Option<(Root, Indexes)>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Option<(Root, Indexes)>> {
        // What is kept is checked by its root, so a panic leaves nothing that could mislead.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps up with a block. What does not follow is forgotten, and made anew when somebody asks.
    pub(crate) fn follow(&self, committed: &Committed) {
        let Some(record) = &committed.record else { return };
        let mut kept = self.lock();
        if let Some((root, mut indexes)) = kept.take()
            && root == record.previous_root
            && indexes.apply(&committed.changes).is_ok()
        {
            *kept = Some((committed.root, indexes));
        }
    }

    /// The keys that stand under a value in the state of this root, a page of them; and whether there are more.
    pub(crate) fn find(&self, state: &dyn Read, root: Root, by: By, of: &str, page: &Page) -> Result<Found, Refusal> {
        let made = |error: IndexError| match error {
            IndexError::Read(error) => error.into(),
            error => Refusal::Failed(error.to_string()),
        };
        if self.lock().as_ref().is_none_or(|(kept, _)| *kept != root) {
            // Without the lock: a block that is made meanwhile does not wait, and what is made here is then forgotten.
            let indexes = Indexes::of(state).map_err(made)?;
            let found = look(&indexes, by, of, page)?;
            *self.lock() = Some((root, indexes));
            return Ok(found);
        }
        match &*self.lock() {
            Some((kept, indexes)) if *kept == root => look(indexes, by, of, page),
            _ => look(&Indexes::of(state).map_err(made)?, by, of, page),
        }
    }
}

/// What a lookup found.
pub(crate) struct Found {
    pub(crate) namespace: Namespace,
    pub(crate) keys: Vec<Key>,
    pub(crate) more: bool,
}

fn look(indexes: &Indexes, by: By, of: &str, page: &Page) -> Result<Found, Refusal> {
    let bad = |error: String| Refusal::Bad(format!("of: {error}"));
    let agent = || PublicKey::from_hex(of).map(AgentId).map_err(|error| bad(error.to_string()));
    let damaged = |error: keelstone_codec::DecodeError| Refusal::Failed(error.to_string());
    let (namespace, place, ends): (_, _, Vec<Vec<u8>>) = match by {
        By::Name => {
            let name = Text::new(of).map_err(|error| bad(error.to_string()))?;
            ("agents", "all", encoded(indexes.agents_by_name.get(&name).map_err(damaged)?))
        }
        By::Author => ("memes", "memes", encoded(indexes.memes_by_author.get(&agent()?).map_err(damaged)?)),
        By::Member => ("social", "alliances", encoded(indexes.alliances_by_member.get(&agent()?).map_err(damaged)?)),
        By::Other => {
            let found = indexes.relationships_by_other.get(&agent()?).map_err(damaged)?;
            ("social", "relationships", encoded(found))
        }
    };
    let failed = |error: keelstone_codec::TypeError| Refusal::Failed(error.to_string());
    let (mut keys, mut more) = (Vec::new(), false);
    for end in ends {
        let key = Key::new([entry_prefix(place), end].concat()).map_err(failed)?;
        if page.after.as_ref().is_some_and(|after| key.as_slice() <= after.as_slice()) {
            continue;
        }
        if keys.len() == page.limit {
            more = true;
            break;
        }
        keys.push(key);
    }
    Ok(Found { namespace: Namespace::new(namespace).map_err(failed)?, keys, more })
}

fn encoded<K: OrderedKey>(keys: Vec<K>) -> Vec<Vec<u8>> {
    let encode = |key: K| {
        let mut out = Vec::new();
        key.encode_key(&mut out);
        out
    };
    keys.into_iter().map(encode).collect()
}

/// How the entries at a place look, if this program knows it.
fn layout<'a>(registry: &'a Registry, namespace: &str, place: &str) -> Option<&'a Layout> {
    let space = registry.spaces().find(|space| space.name == namespace)?;
    space.collections.iter().find(|(at, _)| *at == place).map(|(_, layout)| layout)
}

/// A row of a table by field, or nothing if this program does not know the table.
pub(crate) fn row(registry: &Registry, namespace: &str, place: &str, key: &[u8], value: &[u8]) -> Option<Value> {
    let (key_shape, value_shape) = rows_of(layout(registry, namespace, place)?)?;
    let own = key.strip_prefix(&entry_prefix(place)[..])?;
    let key = typed_key::show(&key_shape, own)?;
    let value = match value_shape {
        Some(shape) => call::decode(shape, value).ok()?,
        None => Value::Null,
    };
    Some(json!({ "key": key, "value": value }))
}

/// The key of a row of a table, as [`row`] shows it; nothing if it is not one.
pub(crate) fn key(registry: &Registry, namespace: &str, place: &str, shown: &str) -> Option<Vec<u8>> {
    let (shape, _) = rows_of(layout(registry, namespace, place)?)?;
    Some([entry_prefix(place), typed_key::read(&shape, shown)?].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_ledger::modules::standard;

    /// spec: EXEC-18. At the empty place nothing stands before the keys of rows.
    #[test]
    fn rows_at_the_empty_place_are_found_by_their_keys_alone() {
        let registry = standard();
        let table = table(&registry, "contracts/").expect("the entries of contracts");
        assert_eq!(table.prefix(), b"");
        let name = b"currency.balances:alice";
        let digits = hex::encode(name);
        assert_eq!(key(&registry, table.space, table.place, &digits).as_deref(), Some(&name[..]));
        let (shape, _) = layout(&registry, "contracts", "").and_then(rows_of).expect("rows");
        assert_eq!(typed_key::show(&shape, name), Some(json!(digits)));
        let agents = super::table(&registry, "agents").expect("a table");
        assert_eq!(agents.prefix(), b"all/");
    }
}
