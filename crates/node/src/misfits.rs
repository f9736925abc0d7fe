//! Entries of a state that are not of the types this program has for their places: of an earlier version of it, or of another
//! program. They are no damage, and a function that meets one fails; so they are told of, and not refused.

use crate::api::{Entries, Row};
use crate::call;
use crate::out::grouped;
use crate::world;
use keelstone_codec::{Namespace, NotHex, unhex};
use keelstone_execution::{Registry, SYSTEM_NAMESPACES, entry_prefix};
use keelstone_store::View;
use keelstone_tree::{Hasher, KeyRange, Read as _};

/// Misfits that are named; the others are counted.
const NAMED_MAX: usize = 8;
/// Entries of each collection that are looked at in a state: whoever changes a type changes it for all that are there, and a
/// state may be large.
const LOOKED_AT_MAX: usize = 100;

/// Says that a value is none of the type that the program has for its place; nothing if it is, or if the program has no such place.
pub(crate) fn of_entry(registry: &Registry, namespace: &Namespace, key: &[u8], value: &[u8]) -> Option<String> {
    let shape = registry.value_shape(namespace, key)?;
    let error = call::decode(&shape, value).err().filter(|error| *error != call::UNKNOWN)?;
    Some(format!("{namespace} {}: no value of the type that this program has there: {error}", hex::encode(key)))
}

/// The first of them, and how many more there are.
pub(crate) fn told(mut found: impl Iterator<Item = String>) -> Vec<String> {
    let mut told: Vec<_> = found.by_ref().take(NAMED_MAX).collect();
    match found.count() {
        0 => {}
        more => told.push(format!("and {} such entries more", grouped(u64::try_from(more).unwrap_or(u64::MAX)))),
    }
    told
}

/// The rows that a page of entries of a place is, and what is to be said of those that are none.
pub(crate) fn rows(
    registry: &Registry,
    namespace: &Namespace,
    place: &str,
    page: &Entries,
) -> Result<(Vec<Row>, Vec<String>), NotHex> {
    let (mut rows, mut found) = (Vec::with_capacity(page.entries.len()), Vec::new());
    for pair in &page.entries {
        let (key, value) = (unhex(&pair.key)?, unhex(&pair.value)?);
        let row = world::row(registry, namespace.as_str(), place, &key, &value);
        if row.is_none() {
            // A key that is none of this place is shown as it is, too.
            let other = || format!("{namespace} {}: no key of the type that this program has there", pair.key);
            found.push(of_entry(registry, namespace, &key, &value).unwrap_or_else(other));
        }
        rows.push(row.unwrap_or_else(|| world::as_stored(pair)));
    }
    Ok((rows, told(found.into_iter())))
}

/// What a state has that this program does not: of each collection the first entries are looked at. What is damaged is passed
/// over: checks and the scrub tell of it, and the rest is of use.
pub(crate) fn of_state<H: Hasher>(registry: &Registry, view: &View<H>) -> Vec<String> {
    let mut found = Vec::new();
    for (namespace, _) in view.namespaces() {
        let name = namespace.as_str();
        let Some(space) = registry.spaces().find(|space| space.name == name) else {
            if !SYSTEM_NAMESPACES.contains(&name) {
                found.push(format!("the state has the namespace {name}, which no function of this program has"));
            }
            continue;
        };
        for (place, _) in &space.collections {
            if !place.is_empty()
                && let Ok(Some(value)) = view.get(&namespace, place.as_bytes())
            {
                found.extend(of_entry(registry, &namespace, place.as_bytes(), &value));
            }
            for entry in view.scan(&namespace, KeyRange::prefix(&entry_prefix(place))).take(LOOKED_AT_MAX) {
                let Ok((key, value)) = entry else { break };
                if let Some(misfit) = of_entry(registry, &namespace, &key, &value) {
                    // One of a collection stands for all of it.
                    found.push(misfit);
                    break;
                }
            }
        }
    }
    told(found.into_iter())
}
