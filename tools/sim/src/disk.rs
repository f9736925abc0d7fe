//! A disk that looks at what is staged the moment it is written.

use crate::chain::Chain;
use keelstone_codec::{Decode, DecodeError, Hash, Reader};
use keelstone_store::files::{Act, FaultyFiles, Files, Interposed};
use keelstone_sync::snapshot::UnitName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was found wrong, and which units lie in which file.
#[derive(Debug, Default)]
struct Found {
    wrong: Option<String>,
    staged: BTreeMap<String, BTreeSet<UnitName>>,
}

/// A simulated disk under watch: bytes that are no unit of the chain, and units that are there already, are noted.
#[derive(Clone)]
pub(crate) struct Watched {
    pub(crate) disk: FaultyFiles,
    chain: &'static Chain,
    found: Arc<Mutex<Found>>,
}

impl Watched {
    pub(crate) fn new(seed: u64, chain: &'static Chain) -> Self {
        Self { disk: FaultyFiles::new(seed), chain, found: Arc::default() }
    }

    /// The disk as a node has it.
    pub(crate) fn files(&self) -> Arc<dyn Files> {
        let watch = self.clone();
        Arc::new(Interposed::new(Arc::new(self.disk.clone()), move |name, act, go_on| {
            go_on()?;
            match act {
                Act::Write { bytes, .. } => {
                    let looked = watch.look_at(name, bytes);
                    let mut found = watch.found();
                    match looked {
                        Ok(names) => found.staged.entry(name.to_owned()).or_default().extend(names),
                        Err(wrong) => drop(found.wrong.get_or_insert(wrong)),
                    }
                }
                Act::Remove => drop(watch.found().staged.remove(name)),
                _ => {}
            }
            Ok(())
        }))
    }

    /// What is wrong, if anything was.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        self.found().wrong.clone().map_or(Ok(()), Err)
    }

    /// The power fails: what was not synced may be gone.
    pub(crate) fn cut_power(&mut self, seed: u64) {
        self.disk = self.disk.after_power_cut(seed);
        self.excuse();
    }

    /// Something on the disk can no longer be trusted to be read: nothing may be held against whoever fetches again.
    pub(crate) fn excuse(&self) {
        self.found().staged.clear();
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_at(&self, name: &str, bytes: &[u8]) -> Result<BTreeSet<UnitName>, String> {
        if let Some(number) = name.strip_prefix("page-").and_then(|number| number.parse().ok()) {
            let is_page = self.chain.has_page(number, bytes);
            return if is_page { Ok(BTreeSet::new()) } else { Err(format!("{name} holds a page that nobody proved")) };
        }
        let units = units(bytes).map_err(|error| format!("{name} is no batch: {error}"))?;
        let mut names = BTreeSet::new();
        for (unit, body) in units {
            if !self.chain.has_unit(&unit, body) {
                return Err(format!("{name} holds bytes that nobody proved"));
            }
            if !names.insert(unit) || self.found().staged.values().any(|staged| staged.contains(&unit)) {
                return Err(format!("{name} holds a unit that is staged already"));
            }
        }
        Ok(names)
    }
}

/// The units of a batch, by the layout of PEER-9, whether or not its digest is right.
pub(crate) fn units(bytes: &[u8]) -> Result<Vec<(UnitName, &[u8])>, DecodeError> {
    let mut input = Reader::new(bytes);
    input.take(32)?;
    let len = u32::decode(&mut input)?;
    let mut input = Reader::new(input.take(len as usize)?);
    let count = u32::decode(&mut input)?;
    let mut heads = Vec::new();
    for _ in 0..count {
        let name = UnitName { of_namespaces: bool::decode(&mut input)?, hash: Hash::decode(&mut input)? };
        heads.push((name, u32::decode(&mut input)?));
    }
    let mut out = Vec::new();
    for (name, len) in heads {
        out.push((name, input.take(len as usize)?));
    }
    input.finish()?;
    Ok(out)
}
