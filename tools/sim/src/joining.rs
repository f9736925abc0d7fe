//! A node that joins: its machine, its staging directory under watch, and the state that has to come out.

use crate::chain::{CHAINS, Chain, Kept, built, options, read_all};
use crate::dice::Dice;
use crate::disk::Watched;
use crate::world::{Life, STORM_MS, Trouble};
use crate::{Beginning, Client, Gap};
use keelstone_codec::{Key, Namespace};
use keelstone_store::files::{FaultyFiles, MemoryFiles};
use keelstone_sync::peers::{Effect, Event, Settings, Tick, Version};
use std::sync::Arc;

/// A node that joins.
pub(crate) struct Joining<C> {
    chain: &'static Chain,
    disk: Watched,
    client: Option<C>,
    /// The last height that it was told of.
    newest: u64,
    /// Whether no store is built of what comes out.
    is_quick: bool,
    entries: u64,
}

impl<C: Client> Life for Joining<C> {
    type Kept = Kept;

    const HEIGHT_MAX: u64 = u64::MAX;
    const BUSY_MS: u64 = STORM_MS / 4;
    /// It draws the numbers of its requests, so what was meant for a life before is known.
    const HEARS_THE_PAST: bool = true;

    fn chains() -> usize {
        CHAINS.len()
    }

    fn kept(chain: usize, oldest: u64, newest: u64, _is_whole: bool) -> Kept {
        Kept { chain: &CHAINS[chain], oldest, newest }
    }

    fn new(chain: usize, newest: u64, dice: &mut Dice) -> Self {
        let (chain, is_quick) = (&CHAINS[chain], dice.percent(80));
        Self { chain, disk: Watched::new(dice.roll(), chain), client: None, newest, is_quick, entries: 0 }
    }

    fn version(&self, height: u64) -> Version {
        self.chain.at(height)
    }

    fn open(&mut self, settings: Settings, target: Version, now: Tick, seed: u64) -> Result<(), Trouble> {
        self.newest = target.height.0;
        let (files, params) = (self.disk.files(), self.chain.params.clone());
        let opened = C::open(Beginning { files, params, settings, target, now, seed });
        self.client = Some(opened.map_err(|_| Trouble::Disk)?);
        Ok(())
    }

    fn asked_max(settings: &Settings) -> u32 {
        settings.concurrent_requests_max
    }

    fn is_alive(&self) -> bool {
        self.client.is_some()
    }

    fn kill(&mut self) {
        self.client = None;
    }

    fn cut_power(&mut self, seed: u64) {
        self.disk.cut_power(seed);
    }

    fn disk(&self) -> &FaultyFiles {
        &self.disk.disk
    }

    fn excuse(&mut self) {
        self.disk.excuse();
    }

    fn step(&mut self, now: Tick, event: Event<'_>) -> Result<Vec<Effect>, Trouble> {
        if let Event::Target(version) = event {
            self.newest = version.height.0;
        }
        let Some(client) = &mut self.client else { return Ok(vec![]) };
        let (mut effects, mut out) = (client.step(now, event), Vec::new());
        while !effects.is_empty() {
            let mut next = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Build(version) => next.extend(self.build(now, version)?),
                    other => out.push(other),
                }
            }
            effects = next;
        }
        self.disk.verdict()?;
        Ok(out)
    }

    fn wakeup(&self, now: Tick) -> Option<Tick> {
        self.client.as_ref().and_then(|client| client.wakeup(now))
    }

    fn amount(&self) -> u64 {
        self.entries
    }
}

impl<C: Client> Joining<C> {
    /// Builds the state from what was fetched and compares it with the truth.
    fn build(&mut self, now: Tick, version: Version) -> Result<Vec<Effect>, Trouble> {
        if version.height.0 > self.newest || self.chain.at(version.height.0) != version {
            return Err(format!("it builds {version:?}, which nobody certified").into());
        }
        let client = self.client.as_mut().expect("it asked for it");
        let mut found: Vec<(Namespace, Key, Vec<u8>)> = Vec::new();
        let handed = client.entries(&mut |name, key, value| found.push((name.clone(), key.clone(), value.to_vec())));
        match handed {
            Ok(()) => {}
            Err(Gap::Missing) => return Ok(client.step(now, Event::Tick)),
            Err(Gap::Ended(reason)) if reason.contains("staging directory") => return Err(Trouble::Disk),
            Err(Gap::Ended(reason)) => return Err(format!("it could not hand out what it fetched: {reason}").into()),
        }
        let found = || found.iter().map(|(name, key, value)| (name, key, &value[..]));
        let expected = self.chain.state(version.height);
        if !found().eq(expected.iter().map(|((name, key), value)| (name, key, &value[..]))) {
            return Err(format!("what was fetched is not the state of {version:?}").into());
        }
        self.entries = expected.len() as u64;
        if !self.is_quick {
            let store = built(Arc::new(MemoryFiles::new()), options(), found(), version)
                .map_err(|error| format!("the store: {error}"))?;
            if read_all(&store.view()) != *expected {
                return Err("the store holds something else".to_owned().into());
            }
        }
        Ok(client.step(now, Event::Built))
    }
}
