//! The chain whose state is taken: a home made by the program, with as many more entries as are asked for.
//!
//! They are laid down in the home's store directly. A genesis that names millions of entries would take longer to read
//! than all that is measured.

use crate::processes::ask;
use keelstone_codec::{Height, Key, Namespace, Root, splitmix64};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Store};
use keelstone_sync::peers::Version;
use keelstone_tree::{Blake3, KeyRange, Read as _};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Most keys of a state.
pub(crate) const KEYS_MAX: u64 = 100_000_000;
/// The height of the state.
const HEIGHT: Height = Height(7);
/// The height of the version before it, which one who is stale gives.
const HEIGHT_BEFORE: Height = Height(6);
/// One entry in so many has another value there: of each chunk at least one.
const CHANGED_EVERY: u64 = 500;
/// The key of an entry, and its value, which cannot be compressed: the sizes of the store's benchmarks.
const KEY_BYTES: usize = 32;
const VALUE_BYTES: usize = 100;

/// The chain, and the home of its first node.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) home: PathBuf,
    pub(crate) root: String,
    /// Bytes of all keys and values.
    pub(crate) bytes: u64,
    /// A node that stayed behind, if there is to be one.
    pub(crate) behind: Option<Behind>,
}

/// A node that has the version before alone.
#[derive(Debug)]
pub(crate) struct Behind {
    pub(crate) home: PathBuf,
    pub(crate) version: Version,
}

impl Chain {
    /// Its genesis.
    pub(crate) fn genesis(&self) -> PathBuf {
        self.home.join("genesis.json")
    }

    /// The directory of its store, as files.
    pub(crate) fn store(&self) -> PathBuf {
        store(&self.home)
    }

    /// A copy of its home, of a node with another identity.
    pub(crate) fn copy(&self, to: &Path) -> Result<(), String> {
        copy(&self.home, to)
    }
}

fn store(home: &Path) -> PathBuf {
    home.join("data/gen-000001/state")
}

/// Makes a chain with so many entries, whose states are cut into chunks of so many bytes; with a node that stayed behind or
/// without.
pub(crate) fn make(
    program: &Path,
    place: &Path,
    keys: u64,
    chunk_bytes: u64,
    is_one_behind: bool,
) -> Result<Chain, String> {
    let (plain, home) = (place.join("plain"), place.join("chain"));
    let init = |home: &Path, more: &[&str]| {
        ask(Command::new(program).args(["init", "--json", "--home"]).arg(home).args(more)).map(drop)
    };
    init(&plain, &["--chain-id", "joins"])?;
    let failed = |error: std::io::Error| format!("the chain could not be made: {error}");
    let genesis = fs::read(plain.join("genesis.json")).map_err(failed)?;
    let mut genesis: Value = serde_json::from_slice(&genesis).map_err(|error| error.to_string())?;
    genesis["limits"]["snapshot_chunk_bytes"] = json!(chunk_bytes);
    let given = plain.join("given.json");
    fs::write(&given, genesis.to_string()).map_err(failed)?;
    init(&home, &["--genesis", given.to_str().ok_or("the directory's name is no text")?])?;
    copy(&plain.join("keys"), &home.join("keys"))?;
    let behind = if is_one_behind {
        let home_behind = place.join("behind");
        copy(&home, &home_behind)?;
        let (root, _) = lay_down(&home_behind, keys, HEIGHT_BEFORE)?;
        Some(Behind { home: home_behind, version: Version { height: HEIGHT_BEFORE, root } })
    } else {
        None
    };
    let (root, bytes) = lay_down(&home, keys, HEIGHT)?;
    Ok(Chain { home, root: root.to_string(), bytes, behind })
}

/// Puts so many more entries into the store of a home; says its root and how many bytes its entries have.
fn lay_down(home: &Path, keys: u64, height: Height) -> Result<(Root, u64), String> {
    let (first, new) = (store(home), home.join("state"));
    let laid = build(&first, &new, keys, height)?;
    fs::remove_dir_all(&first).and_then(|()| fs::rename(&new, &first)).map_err(|error| format!("{error}"))?;
    Ok(laid)
}

/// Builds a store of the entries of another and so many more.
fn build(first: &Path, new: &Path, keys: u64, height: Height) -> Result<(Root, u64), String> {
    let said = |error: &dyn std::fmt::Display| format!("the state could not be made: {error}");
    let directory = |path: &Path| Directory::new(path).map(Arc::new).map_err(|error| said(&error));
    let store = Store::<Blake3>::open(directory(first)?, Options::default()).map_err(|error| said(&error))?;
    let view = store.view();
    let bulk = Namespace::new("bulk").expect("a constant");
    let mut namespaces: Vec<Namespace> = view.namespaces().into_iter().map(|(namespace, _)| namespace).collect();
    namespaces.push(bulk.clone());
    namespaces.sort();
    let mut building =
        Store::<Blake3>::build(directory(new)?, Options::default(), height).map_err(|error| said(&error))?;
    for namespace in &namespaces {
        if *namespace == bulk {
            for number in 0..keys {
                let (key, mut value) = entry(number, keys);
                if height == HEIGHT_BEFORE && number % CHANGED_EVERY == 0 {
                    value.reverse();
                }
                building.push(namespace, &key, &value).map_err(|error| said(&error))?;
            }
            continue;
        }
        for entry in view.scan(namespace, KeyRange::default()) {
            let (key, value) = entry.map_err(|error| said(&error))?;
            building.push(namespace, &key, &value).map_err(|error| said(&error))?;
        }
    }
    let built = building.finish_as_found().map_err(|error| said(&error))?;
    let view = built.view();
    Ok((view.root(), view.totals().bytes))
}

/// An entry: keys lie as evenly as hashes do, and in order.
fn entry(number: u64, of: u64) -> (Key, Vec<u8>) {
    let mut seed = number;
    let mut noise = |bytes: usize| {
        let mut out: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| splitmix64(&mut seed).to_le_bytes()).collect();
        out.truncate(bytes);
        out
    };
    let place = (u128::from(number) << 64) / u128::from(of);
    let place = u64::try_from(place).expect("the number is below the count");
    let key = [&place.to_be_bytes()[..], &noise(KEY_BYTES - 8)].concat();
    (Key::new(key).expect("a key of 32 bytes"), noise(VALUE_BYTES))
}

/// Copies the files of a directory, and of those in it, as they are.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let copy_all = || -> std::io::Result<Vec<(PathBuf, PathBuf)>> {
        fs::create_dir_all(to)?;
        let mut inner = Vec::new();
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (path, new) = (entry.path(), to.join(entry.file_name()));
            if path.is_dir() {
                inner.push((path, new));
            } else {
                fs::copy(&path, &new)?;
            }
        }
        Ok(inner)
    };
    let inner = copy_all().map_err(|error| format!("could not copy {}: {error}", from.display()))?;
    inner.iter().try_for_each(|(from, to)| copy(from, to))
}
