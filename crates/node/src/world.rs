//! The agents' world for those who ask: its tables, and what they are looked up by beside their keys.
//!
//! Tables are maps of the state, shown with keys and values by field. Indexes lie outside the state: they are made when
//! somebody first asks, for the very root that is asked about, kept up with each block, and made anew whenever the root
//! under them is another than expected: after a rollback, a restore or a start.
//!
//! Rules: `spec/modules.md`, MODULE-4.

use crate::api::{self, By, Entries, Page, Refusal};
use crate::call;
use crate::typed_key;
use keelstone_codec::{Describe as _, Key, Namespace, NotHex, OrderedKey, Root, Shape, Text, unhex};
use keelstone_execution::{IndexError, Layout, PublicKey, Registry, SYSTEM_NAMESPACES, entry_prefix};
use keelstone_ledger::Committed;
use keelstone_ledger::modules::agents::AgentId;
use keelstone_ledger::modules::index::Indexes;
use keelstone_tree::Read;
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

/// The tables of [`TABLES`] that this program has.
pub(crate) fn tables(registry: &Registry) -> impl Iterator<Item = (&'static str, Table<'_>)> {
    TABLES.into_iter().filter_map(move |(name, ..)| Some((name, table(registry, name)?)))
}

/// What [`table`] and [`single`] take that is for people: the tables, and the places of namespaces in which none of these lies and
/// which are not the engine's own.
pub(crate) fn names(registry: &Registry) -> Vec<String> {
    let tables: Vec<(&str, Table<'_>)> = tables(registry).collect();
    let is_own =
        |space: &str| !SYSTEM_NAMESPACES.contains(&space) && tables.iter().all(|(_, table)| table.space != space);
    let own = registry.spaces().filter(|space| is_own(space.name)).flat_map(|space| collections(registry, space.name));
    tables.iter().map(|(name, _)| (*name).to_owned()).chain(own).collect()
}

/// What lies where in the state of this program, with the form of keys and values.
pub(crate) fn places(registry: &Registry) -> Vec<api::Place> {
    let place = |namespace: &str, (place, layout): &(&'static str, Layout)| {
        let (kind, key, value) = match layout {
            Layout::Item { value } => ("item", None, value.clone()),
            Layout::Map { key, value } => ("map", Some(key.clone()), value.clone()),
            Layout::Set { key } => ("set", Some(key.clone()), u8::shape()),
            Layout::Sequence => ("sequence", None, u64::shape()),
            Layout::Log { value } => ("log", Some(u64::shape()), value.clone()),
            // There are no others.
            _ => return None,
        };
        Some(api::Place {
            namespace: namespace.to_owned(),
            place: (*place).to_owned(),
            kind: kind.to_owned(),
            key: key.map(|shape| call::outline(&shape)),
            value: call::outline(&value),
        })
    };
    registry.spaces().flat_map(|space| space.collections.iter().filter_map(move |at| place(space.name, at))).collect()
}

/// The names of the collections of a namespace, as [`table`] and [`single`] take them.
pub(crate) fn collections(registry: &Registry, space: &str) -> Vec<String> {
    let found = registry.spaces().find(|found| found.name == space);
    let places = found.into_iter().flat_map(|space| &space.collections);
    places.map(|(place, _)| format!("{space}/{place}")).collect()
}

/// The shape of the keys of rows and that of their values, if it is a collection of rows.
fn rows_of(layout: &Layout) -> Option<(Shape, Shape)> {
    match layout {
        Layout::Map { key, value } => Some((key.clone(), value.clone())),
        // A member of a set has a value, too: that it is one.
        Layout::Set { key } => Some((key.clone(), u8::shape())),
        Layout::Log { value } => Some((u64::shape(), value.clone())),
        _ => None,
    }
}

impl By {
    /// Refuses to look for what a program without the built-in module never keeps.
    pub(crate) fn check(self, registry: &Registry) -> Result<(), Refusal> {
        let Some((table, space, ..)) = TABLES.into_iter().find(|(.., by)| *by == Some(self)) else { return Ok(()) };
        match tables(registry).any(|(name, _)| name == table) {
            true => Ok(()),
            false => Err(Refusal::NotFound(format!(
                "{self} looks up {table}, which are of the built-in module {space:?}: this program lacks it"
            ))),
        }
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

/// As [`layout`], for whoever asks over the network.
fn asked_layout<'a>(registry: &'a Registry, namespace: &str, place: &str) -> Result<&'a Layout, Refusal> {
    layout(registry, namespace, place).ok_or_else(|| no_place(registry, namespace, place))
}

/// A row of a table by field, or nothing if this program does not know the table.
pub(crate) fn row(registry: &Registry, namespace: &str, place: &str, key: &[u8], value: &[u8]) -> Option<api::Row> {
    let (key_shape, value_shape) = rows_of(layout(registry, namespace, place)?)?;
    let own = key.strip_prefix(&entry_prefix(place)[..])?;
    Some(api::Row { key: typed_key::show(&key_shape, own)?, value: call::decode(&value_shape, value).ok()? })
}

/// An entry that is shown as a row as it is stored.
pub(crate) fn as_stored(pair: &api::Pair) -> api::Row {
    api::Row { key: pair.key.clone().into(), value: pair.value.clone().into() }
}

/// The rows that entries of a place are, in their order: by field as [`row`] shows them, or as they are stored where this program
/// does not know them.
pub(crate) fn rows(
    registry: &Registry,
    namespace: &str,
    place: &str,
    found: &Entries,
) -> Result<Vec<api::Row>, NotHex> {
    let shown = |pair: &api::Pair| {
        let row = row(registry, namespace, place, &unhex(&pair.key)?, &unhex(&pair.value)?);
        Ok(row.unwrap_or_else(|| as_stored(pair)))
    };
    found.entries.iter().map(shown).collect()
}

/// The place in a namespace that a key belongs to, if this program knows one.
pub(crate) fn place_of(registry: &Registry, namespace: &str, key: &[u8]) -> Option<&'static str> {
    let collections = &registry.spaces().find(|space| space.name == namespace)?.collections;
    let is_of = |place: &str, layout: &Layout| match rows_of(layout) {
        Some((shape, _))
            if key.strip_prefix(&entry_prefix(place)[..]).is_some_and(|own| typed_key::show(&shape, own).is_some()) =>
        {
            true
        }
        Some(_) if !matches!(layout, Layout::Log { .. }) => false,
        // That of what is a single value, and of how long a log is.
        _ => key == place.as_bytes(),
    };
    collections.iter().find(|(place, layout)| is_of(place, layout)).map(|(place, _)| *place)
}

/// The key of a row of a table, as [`row`] shows it; nothing if it is not one.
pub(crate) fn key(registry: &Registry, namespace: &str, place: &str, shown: &str) -> Option<Vec<u8>> {
    let (shape, _) = rows_of(layout(registry, namespace, place)?)?;
    Some([entry_prefix(place), typed_key::read(&shape, shown)?].concat())
}

/// What the keys of rows begin with of which only the first parts are given; nothing if these are none.
pub(crate) fn beginning(registry: &Registry, namespace: &str, place: &str, shown: &str) -> Option<Vec<u8>> {
    let (shape, _) = rows_of(layout(registry, namespace, place)?)?;
    Some([entry_prefix(place), typed_key::read_first(&shape, shown)?].concat())
}

/// The key of an entry at a place, for whoever asks over the network: of a collection of rows the key as [`row`] shows it, of a
/// single value none.
pub(crate) fn asked_key(
    registry: &Registry,
    namespace: &str,
    place: &str,
    shown: Option<&str>,
) -> Result<Vec<u8>, Refusal> {
    let layout = asked_layout(registry, namespace, place)?;
    match (rows_of(layout), shown) {
        (Some(_), Some(shown)) => {
            key(registry, namespace, place, shown).ok_or_else(|| no_key(namespace, place, layout, shown))
        }
        (None, None) => Ok(place.as_bytes().to_vec()),
        (Some(_), None) => Err(Refusal::Bad(format!("{namespace}/{place} has rows: give the key of one"))),
        (None, Some(_)) => Err(Refusal::Bad(format!("{namespace}/{place} is a single value: it has no keys"))),
    }
}

/// What the keys of rows at a place begin with: with the parts that are given, or all of them.
pub(crate) fn asked_beginning(
    registry: &Registry,
    namespace: &str,
    place: &str,
    shown: Option<&str>,
) -> Result<Vec<u8>, Refusal> {
    let layout = asked_layout(registry, namespace, place)?;
    if rows_of(layout).is_none() {
        return Err(Refusal::Bad(format!("{namespace}/{place} is a single value: it has no rows")));
    }
    let Some(shown) = shown else { return Ok(entry_prefix(place)) };
    let whole = key(registry, namespace, place, shown);
    whole
        .or_else(|| beginning(registry, namespace, place, shown))
        .ok_or_else(|| no_key(namespace, place, layout, shown))
}

fn no_place(registry: &Registry, namespace: &str, place: &str) -> Refusal {
    let there = match &collections(registry, namespace)[..] {
        [] => "this program knows none in it".to_owned(),
        there => format!("there are {}", there.join(", ")),
    };
    Refusal::NotFound(format!("there is no place {place:?} in the namespace {namespace}; {there}"))
}

fn no_key(namespace: &str, place: &str, layout: &Layout, shown: &str) -> Refusal {
    let form = rows_of(layout).map(|(shape, _)| call::outline(&shape)).unwrap_or_default();
    Refusal::Bad(format!("{shown:?} is no key of {namespace}/{place}; keys are {form}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_execution::{Item, Log, Map, Set, namespace};
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
        assert_eq!(typed_key::show(&shape, name), Some(digits.into()));
        let agents = super::table(&registry, "agents").expect("a table");
        assert_eq!(agents.prefix(), b"all/");
    }

    #[namespace("shop")]
    struct Shop {
        #[expect(dead_code, reason = "the declaration is what is asked")]
        stock: Map<Text<8>, u64>,
        #[expect(dead_code, reason = "the declaration is what is asked")]
        by_price: Set<(Text<8>, u64, u64)>,
        #[expect(dead_code, reason = "the declaration is what is asked")]
        owner: Item<u64>,
        #[expect(dead_code, reason = "the declaration is what is asked")]
        sales: Log<u64>,
    }

    fn shop() -> Registry {
        let mut registry = Registry::new();
        registry.declare::<Shop>();
        registry
    }

    /// A program without the built-in modules has none of their tables, and its own places are named.
    #[test]
    fn what_there_is_is_what_the_program_has() {
        assert_eq!(names(&shop()), ["shop/stock", "shop/by_price", "shop/owner", "shop/sales"]);
        assert!(names(&standard()).starts_with(&["activity".to_owned(), "agents".to_owned()]));
        assert!(By::Author.check(&shop()).expect_err("no memes").to_string().contains("memes"));
        assert!(By::Author.check(&standard()).is_ok());
        let places = places(&shop());
        let stock = places.iter().find(|place| place.place == "stock").expect("it is there");
        assert_eq!((stock.namespace.as_str(), stock.kind.as_str()), ("shop", "map"));
        assert_eq!(stock.key, Some("text, up to 8 bytes".into()));
        assert_eq!(places.iter().find(|place| place.place == "owner").and_then(|place| place.key.clone()), None);
    }

    /// Text in a key ends itself, so the bytes that people would guess are another key.
    #[test]
    fn a_key_that_is_asked_for_by_its_type_is_found_where_it_lies() {
        let registry = shop();
        let ask = |place, key| asked_key(&registry, "shop", place, key);
        let gold = ask("stock", Some("gold")).expect("a key");
        assert_eq!(gold, b"stock/gold\0\0");
        assert_eq!(place_of(&registry, "shop", &gold), Some("stock"));
        assert_eq!(place_of(&registry, "shop", b"stock/gold"), None);
        assert_eq!(ask("owner", None).expect("a single value"), b"owner");
        for (place, key) in [("stock", None), ("stock", Some("more than eight")), ("owner", Some("1"))] {
            assert!(matches!(ask(place, key), Err(Refusal::Bad(_))), "{place} {key:?}");
        }
        let none = ask("stok", Some("gold")).expect_err("no such place").to_string();
        assert!(none.contains("shop/stock"), "{none}");

        let begins = |with| asked_beginning(&registry, "shop", "by_price", with);
        let all = begins(None).expect("all");
        let of_gold = begins(Some("gold")).expect("one part");
        let of_seven = begins(Some("gold,7")).expect("two parts");
        let whole = begins(Some("gold,7,9")).expect("all parts");
        assert!(whole.starts_with(&of_seven) && of_seven.starts_with(&of_gold) && of_gold.starts_with(&all));
        assert_eq!(place_of(&registry, "shop", &whole), Some("by_price"));
        assert!(begins(Some("gold,x")).is_err() && begins(Some("1,2,3,4")).is_err());
        let row = row(&registry, "shop", "by_price", &whole, &[1]).expect("a row");
        assert_eq!((row.key.to_string(), row.value.to_string()), ("[\"gold\",7,9]".to_owned(), "1".to_owned()));
    }
}
