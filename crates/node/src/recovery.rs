//! Recovery of a home whose state is lost or damaged.
//!
//! What is decided stands in [`keelstone_sync::recovery`]; here are the strategies: the snapshots of this home, those
//! other nodes serve, the blocks of this home, and snapshots' files from elsewhere. Each builds in a generation aside,
//! from proven chunks and from blocks that are run again; a snapshot's own root is not believed, for the blocks on it
//! have to come to the target's. Chunks that were proven wait in the staging directory for whatever strategy comes
//! next.
//!
//! Rules: `spec/recovery.md`, RECOVER-1 to RECOVER-6.

use crate::abci::certified_by;
use crate::client::Remote;
use crate::commands::init::{PRODUCER, now};
use crate::config::{Config, HttpAddress, IntegrityDepth};
use crate::engine;
use crate::exit::{Exit, Failure, causes};
use crate::generations::{Generation, Generations};
use crate::home::Home;
use crate::keyfile::KeyDir;
use crate::newfile;
use crate::snapshots::look_into_library;
use keelstone_codec::{Encode as _, Hash, Height, Root, Timestamp};
use keelstone_execution::{PublicKey, Registry};
use keelstone_ledger::{Bodies, Genesis, Ledger, LedgerError, PoolLimits, SecretKey, Signature, verify};
use keelstone_store::files::Directory;
use keelstone_store::kv::RedbKv;
use keelstone_store::{CheckLevel, Options, Store};
use keelstone_sync::library::{Each, Expected, Info, LibraryError, Origin};
use keelstone_sync::peers::Version;
use keelstone_sync::recovery::{
    Built, Depth, Failed, Outcome, Report, SignedReport, Strategy, Target, Trust, World, by_time, recover,
};
use keelstone_sync::snapshot::{
    ChunkVerdict, EntriesError, FORMAT, Metadata, Offer, OfferVerdict, Restore, RestoreLimits, SnapshotParams,
};
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256};
use serde_json::{Value, json};
use std::fs;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long another node may take for one answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// Snapshots of one origin that are tried, the newest first.
const SNAPSHOTS_TRIED_MAX: usize = 4;
/// What estimates reckon with: bytes of a state built in a millisecond from this disk, and from a network.
const DISK_BYTES_PER_MS: u64 = 60_000;
const NETWORK_BYTES_PER_MS: u64 = 10_000;
/// And milliseconds a block takes.
const BLOCK_MS: u64 = 5;

/// What is to be had again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// As much as there is a trusted root for.
    Newest,
    /// A height.
    Height(Height),
    /// The last block that is not after a time.
    Time(Timestamp),
}

/// A recovery that was thought through and not begun.
pub(crate) struct Plan {
    pub(crate) target: Target,
    /// The strategies in the order in which they are tried, with what each is reckoned to take, in milliseconds.
    pub(crate) order: Vec<(Strategy, Option<u64>)>,
    pub(crate) depth: Depth,
}

/// How to recover.
pub(crate) struct Wish<'a> {
    pub(crate) wanted: Wanted,
    /// The root to trust, if the caller names one.
    pub(crate) root: Option<Root>,
    /// One strategy alone.
    pub(crate) only: Option<Strategy>,
    /// Told of what is being done.
    pub(crate) progress: &'a mut dyn FnMut(Strategy, u64, u64),
}

/// What a recovery came to.
pub(crate) struct Recovered {
    pub(crate) outcome: Outcome,
    pub(crate) signed: SignedReport,
    /// Where the report lies.
    pub(crate) path: PathBuf,
}

/// Finds out what would be done, and changes nothing.
pub(crate) fn plan<'a>(
    home: &'a Home,
    config: &'a Config,
    registry: &'a Registry,
    wish: Wish<'a>,
) -> Result<Plan, Failure> {
    let genesis = home.read_genesis()?;
    match genesis.hasher {
        HashKind::Blake3 => Place::<Blake3>::open(home, genesis, config, registry, wish)?.plan(),
        HashKind::Sha256 => Place::<Sha256>::open(home, genesis, config, registry, wish)?.plan(),
    }
}

/// Recovers the state of a home, whatever it has now. The report is written whether anything was recovered or not.
pub(crate) fn run<'a>(
    home: &'a Home,
    config: &'a Config,
    registry: &'a Registry,
    wish: Wish<'a>,
) -> Result<Recovered, Failure> {
    let genesis = home.read_genesis()?;
    match genesis.hasher {
        HashKind::Blake3 => Place::<Blake3>::open(home, genesis, config, registry, wish)?.run(),
        HashKind::Sha256 => Place::<Sha256>::open(home, genesis, config, registry, wish)?.run(),
    }
}

/// A home under repair, held by this process.
struct Place<'a, H: Hasher> {
    home: &'a Home,
    config: &'a Config,
    registry: &'a Registry,
    wish: Wish<'a>,
    genesis: Genesis,
    generations: Generations,
    current: Option<Generation>,
    /// What is built.
    aside: Option<Generation>,
    /// The blocks here; or why there are none.
    bodies: Result<Bodies, Failed>,
    _hasher: std::marker::PhantomData<fn() -> H>,
}

fn of_ledger(error: LedgerError) -> Failed {
    let what = causes(&error);
    match error {
        LedgerError::Store(error) => error.into(),
        LedgerError::NoBlock { .. } | LedgerError::NotYet { .. } => Failed::Unavailable(what),
        error if error.is_damage() => Failed::Damaged(what),
        _ => Failed::Machine(what),
    }
}

fn machine(failure: Failure) -> Failed {
    Failed::Machine(failure.message)
}

impl<'a, H: Hasher> Place<'a, H> {
    fn open(
        home: &'a Home,
        genesis: Genesis,
        config: &'a Config,
        registry: &'a Registry,
        wish: Wish<'a>,
    ) -> Result<Self, Failure> {
        let generations = Generations::open(&home.data())?;
        let current = generations.current()?;
        let bodies = match &current {
            None => Err(Failed::Unavailable("there are no blocks here".to_owned())),
            Some(current) => match RedbKv::open(&current.blocks()) {
                Ok(kv) => Ok(Bodies::over(Arc::new(kv))),
                Err(error) => Err(error.into()),
            },
        };
        Ok(Self {
            home,
            config,
            registry,
            wish,
            genesis,
            generations,
            current,
            aside: None,
            bodies,
            _hasher: std::marker::PhantomData,
        })
    }

    /// The height of the genesis.
    fn base(&self) -> Height {
        self.genesis.initial_height.prev().unwrap_or_default()
    }

    // ---- the target

    /// What is to be had again, and why its root is trusted.
    // spec: RECOVER-1
    fn target(&self) -> Result<Target, Failure> {
        let known = |height: Height| -> Option<(Root, Trust)> {
            if let Some(root) = self.wish.root {
                return Some((root, Trust::Given));
            }
            let bodies = self.bodies.as_ref().ok()?;
            match self.genesis.validators.is_empty() {
                true => Some((bodies.root(height).ok()??, Trust::OwnRecord)),
                false => Some((certified_by(&bodies.certificate(height).ok()??)?, Trust::Consensus)),
            }
        };
        let height = match self.wish.wanted {
            Wanted::Height(height) => Some(height),
            Wanted::Time(time) => {
                let bodies = self.bodies.as_ref().map_err(|failed| Failure::not_found(failed.to_string()))?;
                let found = bodies.at_time(time, self.base())?;
                Some(found.ok_or_else(|| Failure::not_found(format!("there is no block at or before {}", time.0)))?)
            }
            Wanted::Newest => None,
        };
        let last = self.bodies.as_ref().ok().and_then(|bodies| bodies.last().ok().flatten());
        let found = match (height, last) {
            (Some(height), _) => known(height).map(|(root, trust)| Target { height, root, trust }),
            (None, Some(last)) => (self.base().0 + 1..=last.0)
                .rev()
                .take(256)
                .map(Height)
                .find_map(|height| known(height).map(|(root, trust)| Target { height, root, trust })),
            (None, None) => None,
        };
        found.ok_or_else(|| {
            let message = match height {
                Some(height) => format!("nothing here says which root height {height} has"),
                None => "nothing here says which root the last height has".to_owned(),
            };
            Failure::not_found(message).hint("--to HEIGHT --root HEX names the root to trust")
        })
    }

    fn depth(&self) -> Depth {
        match self.config.recovery.integrity_check_depth {
            IntegrityDepth::Quick => Depth::Quick,
            IntegrityDepth::Full => Depth::Full,
        }
    }

    /// The order that was asked for or configured; none for the quickest first.
    fn given_order(&self) -> Option<Vec<Strategy>> {
        self.wish.only.map(|only| vec![only]).or_else(|| self.config.recovery.strategies.0.clone())
    }

    fn plan(mut self) -> Result<Plan, Failure> {
        let target = self.target()?;
        let version = target.version();
        let order = match self.given_order() {
            Some(order) => order.into_iter().map(|strategy| (strategy, self.estimate_ms(strategy, &version))).collect(),
            None => by_time(&mut self, &version),
        };
        Ok(Plan { target, order, depth: self.depth() })
    }

    fn run(mut self) -> Result<Recovered, Failure> {
        let began = now();
        let (target, depth) = (self.target()?, self.depth());
        let order = self.given_order().unwrap_or_else(|| {
            by_time(&mut self, &target.version()).into_iter().map(|(strategy, _)| strategy).collect()
        });
        let outcome = recover(&order, &target.version(), depth, &mut self);
        let genesis_hash = self.genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?.hash;
        let chain = (self.genesis.chain_id.clone(), genesis_hash);
        let report = Report::of(chain, (began, now()), &target, depth, &outcome);
        let (signed, path) = keep(self.home, report)?;
        if outcome.recovered().is_some() {
            crate::snapshots::forget_above(self.home, target.height)?;
        }
        Ok(Recovered { outcome, signed, path })
    }

    // ---- building

    fn options(&self) -> Options {
        engine::store_options(self.config)
    }

    fn directory(path: &Path) -> Result<Arc<Directory>, Failed> {
        let directory =
            Directory::new(path).map_err(|error| Failed::Machine(format!("{}: {error}", path.display())))?;
        Ok(Arc::new(directory))
    }

    /// An empty generation to build in.
    fn fresh(&mut self) -> Result<Generation, Failed> {
        let generation = self.generations.fresh().map_err(machine)?;
        self.aside = Some(generation.clone());
        Ok(generation)
    }

    /// A store of the entries that `feed` hands out.
    fn build_store(
        &self,
        generation: &Generation,
        target: (Height, Root),
        feed: &mut dyn FnMut(Each<'_>) -> Result<(), Failed>,
    ) -> Result<Store<H>, Failed> {
        engine::build_store(Self::directory(&generation.state())?, self.options(), target, feed)
    }

    /// Runs the blocks of this home on a state, up to the target.
    fn run_on(
        &mut self,
        strategy: Strategy,
        store: Store<H>,
        generation: &Generation,
        target: &Version,
    ) -> Result<Built, Failed> {
        let height = store.height().unwrap_or_default();
        let needed = target.height.0.saturating_sub(height.0);
        self.allow(needed)?;
        let ledger = self.ledger_over(store, generation)?;
        let expected = self.genesis.first_state().map_err(|error| Failed::Damaged(error.to_string()))?.hash;
        if ledger.genesis_hash() != expected {
            let found = ledger.genesis_hash();
            return Err(Failed::Misbehaved(format!(
                "the state belongs to genesis {found}, this chain's is {expected}"
            )));
        }
        self.run_blocks(strategy, ledger, needed, target)
    }

    fn allow(&self, needed: u64) -> Result<(), Failed> {
        let limit = self.config.recovery.max_block_replay;
        if needed > limit { Err(Failed::TooFar { needed, limit }) } else { Ok(()) }
    }

    fn run_blocks(
        &mut self,
        strategy: Strategy,
        ledger: Ledger<H>,
        needed: u64,
        target: &Version,
    ) -> Result<Built, Failed> {
        let blocks = match needed {
            0 => 0,
            _ => {
                let bodies = self.bodies.clone()?;
                let mut done = 0;
                ledger
                    .run_kept(&bodies, target.height, &mut |_| {
                        done += 1;
                        (self.wish.progress)(strategy, done, needed);
                    })
                    .map_err(of_ledger)?
            }
        };
        ledger.store().flush()?;
        let at = Version { height: ledger.height(), root: ledger.root() };
        Ok(Built { at, entries: ledger.view().totals().count, blocks })
    }

    /// A ledger over a state, with the blocks below it that this home has, if they can be taken over: a copy of the
    /// database gives up those above.
    fn ledger_over(&self, store: Store<H>, generation: &Generation) -> Result<Ledger<H>, Failed> {
        let fresh = |store| -> Result<Ledger<H>, Failed> {
            remove(&generation.blocks())?;
            let kv = Arc::new(RedbKv::open(&generation.blocks())?);
            Ledger::open(store, kv, self.registry.clone(), PoolLimits::default()).map_err(of_ledger)
        };
        let Some(current) = self.current.as_ref().filter(|_| self.bodies.is_ok()) else { return fresh(store) };
        if RedbKv::copy(&current.blocks(), &generation.blocks()).is_err() {
            return fresh(store);
        }
        let kv = match RedbKv::open(&generation.blocks()) {
            Ok(kv) => Arc::new(kv),
            Err(_) => return fresh(store),
        };
        match Ledger::open(store, kv, self.registry.clone(), PoolLimits::default()) {
            Ok(ledger) => Ok(ledger),
            Err(error) => {
                tracing::warn!(error = causes(&error), "the blocks below the snapshot are not taken over");
                let store = Store::open(Self::directory(&generation.state())?, self.options())?;
                fresh(store)
            }
        }
    }

    // ---- the strategies

    /// Tries one candidate after the other until one has built the target. What the others built is removed; `none`
    /// is the reason if there are no candidates, and `name` is for the log.
    fn first_of<T>(
        &mut self,
        candidates: impl IntoIterator<Item = T>,
        none: Failed,
        name: impl Fn(&T) -> String,
        mut build: impl FnMut(&mut Self, &T) -> Result<Built, Failed>,
    ) -> Result<Built, Failed> {
        let mut why = none;
        for candidate in candidates {
            match build(self, &candidate) {
                Ok(built) => return Ok(built),
                Err(failed) => {
                    tracing::warn!(what = name(&candidate), %failed, "it is of no use");
                    self.discard();
                    why = failed;
                }
            }
        }
        Err(why)
    }

    fn local_snapshot(&mut self, target: &Version) -> Result<Built, Failed> {
        let found = look_into_library(self.home).map_err(machine)?;
        let (library, _) = found.ok_or_else(|| Failed::Unavailable("there are no snapshots here".to_owned()))?;
        let usable = |info: &Info| usable(info.id.height, info.root, target);
        let list = library.list().into_iter().filter(usable).take(SNAPSHOTS_TRIED_MAX);
        let none = Failed::Unavailable(format!("there is no snapshot here of height {} or below", target.height));
        let name = |info: &Info| format!("the snapshot of height {} here", info.id.height);
        self.first_of(list, none, name, |place, info| {
            let generation = place.fresh()?;
            let pin = library.pin(info.id).ok_or(Failed::Unavailable("the snapshot is gone".to_owned()))?;
            let expected = Expected { params: Some(place.params()), root: Some(info.root) };
            let store = place.build_store(&generation, (info.id.height, info.root), &mut |each| {
                Origin::Kept(&pin).entries(&expected, each, &mut |_| ControlFlow::Continue(()))?;
                Ok(())
            })?;
            place.run_on(Strategy::LocalSnapshot, store, &generation, target)
        })
    }

    fn network_snapshot(&mut self, target: &Version) -> Result<Built, Failed> {
        let config = self.config;
        let sources = config.recovery.sources.iter().map(Path::new);
        let none = Failed::Unavailable("no source is configured (recovery.sources)".to_owned());
        let name = |source: &&Path| source.display().to_string();
        self.first_of(sources, none, name, |place, source| {
            let generation = place.fresh()?;
            let params = Expected { params: Some(place.params()), root: None };
            let info = from_archive(source, &mut |origin| origin.inspect(&params))?;
            let (height, root) = (info.id.height, info.root);
            if !usable(height, root, target) {
                return Err(Failed::Unavailable(format!(
                    "{} is of height {height} with root {root}",
                    source.display()
                )));
            }
            let expected = Expected { root: Some(root), ..params };
            let store = place.build_store(&generation, (height, root), &mut |each| {
                from_archive(source, &mut |origin| {
                    origin.entries(&expected, &mut *each, &mut |_| ControlFlow::Continue(()))
                })?;
                Ok(())
            })?;
            place.run_on(Strategy::NetworkSnapshot, store, &generation, target)
        })
    }

    fn block_replay(&mut self, target: &Version) -> Result<Built, Failed> {
        let needed = target.height.0.saturating_sub(self.base().0);
        self.allow(needed)?;
        if self.genesis.inherits.is_some() {
            return Err(Failed::Unavailable(
                "the chain inherits its first state, which is not in its genesis".to_owned(),
            ));
        }
        self.bodies.clone()?;
        let generation = self.fresh()?;
        let store = Store::<H>::create(Self::directory(&generation.state())?, self.options())?;
        let kv = Arc::new(RedbKv::open(&generation.blocks())?);
        let ledger = Ledger::create(store, kv, self.registry.clone(), &self.genesis, PoolLimits::default())
            .map_err(of_ledger)?;
        self.run_blocks(Strategy::BlockReplay, ledger, needed, target)
    }

    /// Takes the newest snapshot that other nodes serve. Each chunk is proven against the snapshot's root before it is
    /// kept, whoever sent it, and a node that sent one that is none is not asked again.
    fn peer_state_sync(&mut self, target: &Version) -> Result<Built, Failed> {
        let peers: Vec<(HttpAddress, Remote)> = self.config.check.peers.iter().filter_map(reach).collect();
        let mut offers: Vec<(Offered, Vec<usize>)> = Vec::new();
        for (at, (_, peer)) in peers.iter().enumerate() {
            for offered in offered(peer, &self.params()) {
                if !usable(offered.metadata.height, offered.root, target) {
                    continue;
                }
                match offers.iter_mut().find(|(known, _)| *known == offered) {
                    Some((_, holders)) => holders.push(at),
                    None => offers.push((offered, vec![at])),
                }
            }
        }
        offers.sort_by_key(|(offered, holders)| std::cmp::Reverse((offered.metadata.height, holders.len())));
        let none = match self.config.check.peers.is_empty() {
            true => Failed::Unavailable("no peer is configured (check.peers)".to_owned()),
            false => Failed::Unavailable(format!("no peer serves a snapshot of height {} or below", target.height)),
        };
        let name = |(offered, _): &(Offered, Vec<usize>)| {
            format!("the snapshot of height {} that peers serve", offered.metadata.height)
        };
        self.first_of(offers.into_iter().take(SNAPSHOTS_TRIED_MAX), none, name, |place, (offered, holders)| {
            let holders: Vec<&(HttpAddress, Remote)> = holders.iter().map(|at| &peers[*at]).collect();
            place.take_from_peers(offered, holders, target)
        })
    }

    fn take_from_peers(
        &mut self,
        offered: &Offered,
        mut holders: Vec<&(HttpAddress, Remote)>,
        target: &Version,
    ) -> Result<Built, Failed> {
        let staging = Self::directory(&self.home.data().join("staging"))?;
        let failed = |error: &dyn std::error::Error| Failed::Machine(causes(error));
        let mut restore =
            Restore::<H>::open(staging, self.params(), RestoreLimits::default()).map_err(|error| failed(&error))?;
        match restore.offer(&offered.offer(), offered.root.0.as_bytes()) {
            OfferVerdict::Accept => {}
            OfferVerdict::Abort { reason } => return Err(Failed::Machine(reason)),
            OfferVerdict::Reject { reason } | OfferVerdict::RejectSender { reason } => {
                return Err(Failed::Misbehaved(reason));
            }
            OfferVerdict::RejectFormat => return Err(Failed::Misbehaved("the format is another".to_owned())),
        }
        let chunks = offered.metadata.chunks;
        for index in 0..chunks {
            if restore.lacks(index) {
                fetch(&mut restore, &mut holders, offered.metadata.height, index)?;
            }
            (self.wish.progress)(Strategy::PeerStateSync, u64::from(index) + 1, u64::from(chunks));
        }
        let generation = self.fresh()?;
        let store = self.build_store(&generation, (offered.metadata.height, offered.root), &mut |each| {
            restore.entries(|namespace, key, value| each(namespace, key, value)).map_err(|error| match error {
                EntriesError::Restore(error) => Failed::Damaged(causes(&error)),
                EntriesError::Taker(error) => error.into(),
            })
        })?;
        let built = self.run_on(Strategy::PeerStateSync, store, &generation, target)?;
        if let Err(error) = restore.clear() {
            tracing::warn!(error = causes(&error), "staged chunks could not be removed");
        }
        Ok(built)
    }

    fn params(&self) -> SnapshotParams {
        engine::snapshot_params(&self.genesis)
    }
}

/// Whether a snapshot can lead to a target.
fn usable(height: Height, root: Root, target: &Version) -> bool {
    height < target.height || (height == target.height && root == target.root)
}

impl<H: Hasher> World for Place<'_, H> {
    fn estimate_ms(&mut self, strategy: Strategy, target: &Version) -> Option<u64> {
        let blocks = |from: Height| target.height.0.saturating_sub(from.0).saturating_mul(BLOCK_MS);
        match strategy {
            Strategy::LocalSnapshot => {
                let (library, _) = look_into_library(self.home).ok()??;
                let info = library.list().into_iter().find(|info| usable(info.id.height, info.root, target))?;
                Some(info.totals.bytes / DISK_BYTES_PER_MS + blocks(info.id.height))
            }
            Strategy::BlockReplay => {
                let bodies = self.bodies.as_ref().ok()?;
                bodies.block(self.base().next()).ok()?;
                Some(blocks(self.base()))
            }
            Strategy::PeerStateSync => {
                let all = self.config.check.peers.iter().filter_map(reach);
                let params = self.params();
                let offers = all.flat_map(|(_, peer)| offered(&peer, &params));
                let best = offers.filter(|offered| usable(offered.metadata.height, offered.root, target));
                let best = best.max_by_key(|offered| offered.metadata.height)?;
                Some(best.bytes / NETWORK_BYTES_PER_MS + blocks(best.metadata.height))
            }
            Strategy::NetworkSnapshot => {
                let params = Expected { params: Some(self.params()), root: None };
                let inspect =
                    |source: &String| from_archive(Path::new(source), &mut |origin| origin.inspect(&params)).ok();
                let infos = self.config.recovery.sources.iter().filter_map(inspect);
                let best =
                    infos.filter(|info| usable(info.id.height, info.root, target)).max_by_key(|info| info.id.height)?;
                Some(best.bytes / NETWORK_BYTES_PER_MS + blocks(best.id.height))
            }
        }
    }

    fn build(&mut self, strategy: Strategy, target: &Version) -> Result<Built, Failed> {
        tracing::info!(strategy = strategy.name(), height = target.height.0, "recovering");
        let built = match strategy {
            Strategy::LocalSnapshot => self.local_snapshot(target),
            Strategy::PeerStateSync => self.peer_state_sync(target),
            Strategy::BlockReplay => self.block_replay(target),
            Strategy::NetworkSnapshot => self.network_snapshot(target),
        };
        built.inspect_err(|failed| tracing::warn!(strategy = strategy.name(), %failed, "it came to nothing"))
    }

    // spec: RECOVER-3
    fn check(&mut self, depth: Depth) -> Result<Version, Failed> {
        let generation = self.aside.clone().ok_or_else(|| Failed::Unsound("nothing was built".to_owned()))?;
        let store = Store::<H>::open(Self::directory(&generation.state())?, self.options())?;
        let level = if depth == Depth::Full { CheckLevel::Full } else { CheckLevel::Quick };
        let found = store.check(level, &mut |_| {})?;
        if let Some(problem) = found.problems.first() {
            let more = found.problems.len() - 1;
            return Err(Failed::Unsound(format!("{}, and {more} more", causes(problem))));
        }
        if depth == Depth::Full && found.values != store.view().totals().count {
            let (read, said) = (found.values, store.view().totals().count);
            return Err(Failed::Unsound(format!("{read} entries were read, the root says {said}")));
        }
        let kv = Arc::new(RedbKv::open(&generation.blocks())?);
        let ledger = Ledger::open(store, kv, self.registry.clone(), PoolLimits::default()).map_err(of_ledger)?;
        Ok(Version { height: ledger.height(), root: ledger.root() })
    }

    fn discard(&mut self) {
        if let Some(aside) = self.aside.take() {
            // What cannot be removed now does not count, and is swept at the next start.
            let _ = self.generations.discard(&aside);
        }
    }

    fn settle(&mut self) -> Result<(), Failed> {
        let Some(aside) = self.aside.take() else { return Err(Failed::Unsound("nothing was built".to_owned())) };
        if let Err(failure) = self.generations.switch(&aside) {
            self.aside = Some(aside);
            return Err(machine(failure));
        }
        // The database of the old one is open still.
        self.bodies = Err(Failed::Unavailable("the recovery is over".to_owned()));
        if let Some(old) = self.current.replace(aside)
            && let Err(failure) = self.generations.discard(&old)
        {
            tracing::warn!(%failure, "the old state does not count; the next start removes it");
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), Failed> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failed::Machine(format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Reads an archive, of either form.
fn from_archive<T>(path: &Path, read: &mut dyn FnMut(Origin<'_>) -> Result<T, LibraryError>) -> Result<T, Failed> {
    let missing = |error: std::io::Error| Failed::Unavailable(format!("{}: {error}", path.display()));
    match fs::metadata(path).map_err(missing)?.is_dir() {
        true => {
            let directory = Directory::new(path).map_err(missing)?;
            Ok(read(Origin::Directory(&directory))?)
        }
        false => {
            let mut file = BufReader::new(fs::File::open(path).map_err(missing)?);
            Ok(read(Origin::Tar(&mut file))?)
        }
    }
}

// ---- peers -------------------------------------------------------------------------------------------------------

/// A snapshot that another node says it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offered {
    metadata: Metadata,
    root: Root,
    hash: Hash,
    bytes: u64,
}

impl Offered {
    fn offer(&self) -> Offer {
        Offer {
            height: self.metadata.height.0,
            format: FORMAT,
            chunks: self.metadata.chunks,
            hash: self.hash.0.to_vec(),
            metadata: self.metadata.to_bytes(),
        }
    }
}

/// What a node's list says, as far as it makes sense. A snapshot whose parameters are not the chain's has another hash.
fn offered(peer: &Remote, params: &SnapshotParams) -> Vec<Offered> {
    let one = |snapshot: &crate::api::Snapshot| {
        let own = snapshot.format == FORMAT && snapshot.chain_id == params.chain_id.as_str();
        let metadata = Metadata {
            chain_id: params.chain_id.clone(),
            height: Height(snapshot.height),
            unit_weight_max: params.unit_weight_max,
            hasher: params.hasher,
            pages: snapshot.pages,
            chunks: snapshot.chunks,
        };
        let (root, hash) = (Root::from_hex(&snapshot.root).ok()?, Hash::from_hex(&snapshot.hash).ok()?);
        own.then_some(Offered { metadata, root, hash, bytes: snapshot.bytes })
    };
    match peer.snapshots() {
        Ok(list) => list.snapshots.iter().filter_map(one).collect(),
        Err(refusal) => {
            tracing::warn!(%refusal, "a peer does not say which snapshots it serves");
            Vec::new()
        }
    }
}

fn reach(address: &HttpAddress) -> Option<(HttpAddress, Remote)> {
    let found = address.resolve().ok()?;
    Some((address.clone(), Remote::at(found, PEER_TIMEOUT)))
}

/// Has one chunk from whoever of the nodes sends what it must be. One that does not is asked for nothing more.
fn fetch<H: Hasher>(
    restore: &mut Restore<H>,
    peers: &mut Vec<&(HttpAddress, Remote)>,
    height: Height,
    index: u32,
) -> Result<(), Failed> {
    let mut why = None;
    while !peers.is_empty() {
        let at = index as usize % peers.len();
        let (address, peer) = peers[at];
        match peer.snapshot_chunk(height, index) {
            Ok(chunk) => match restore.apply(index, &chunk, &address.to_string()) {
                ChunkVerdict::Accept => return Ok(()),
                ChunkVerdict::Abort { reason } => return Err(Failed::Machine(reason)),
                ChunkVerdict::RejectSnapshot { reason } => return Err(Failed::Misbehaved(reason)),
                ChunkVerdict::Retry { reason, .. } => {
                    tracing::warn!(peer = %address, index, reason, "a chunk is none; the node is not asked again");
                    why = Some(Failed::Misbehaved(format!("{address}: {reason}")));
                    peers.remove(at);
                }
            },
            Err(refusal) => {
                why = Some(Failed::Unavailable(format!("{address}: {refusal}")));
                peers.remove(at);
            }
        }
    }
    Err(why.unwrap_or_else(|| Failed::Unavailable("no node is left to ask".to_owned())))
}

// ---- the report --------------------------------------------------------------------------------------------------

/// The key that reports are signed with: the producer's, or one of the node's own, made when it is needed first. Nobody is
/// asked for a passphrase by a node that recovers while it starts, so the producer's must be in the clear.
fn signer(home: &Home) -> Result<SecretKey, Failure> {
    const NODE: &str = "node";
    let keys = KeyDir::new(home.path());
    let producer = match keys.path(PRODUCER)?.exists() {
        true => keys.stored(PRODUCER)?.into_plain(),
        false => None,
    };
    producer.map_or_else(|| keys.load_or_make(NODE), Ok)
}

/// Signs a report and keeps it.
// spec: RECOVER-5
fn keep(home: &Home, report: Report) -> Result<(SignedReport, PathBuf), Failure> {
    let key = signer(home)?;
    let signature = key.sign(&report.sign_bytes()).0;
    let signed = SignedReport { key: key.public().0, signature, report };
    let directory = home.path().join("recoveries");
    let path = directory.join(format!("{}-{}.report", signed.report.began.0, signed.report.height));
    let written = fs::create_dir_all(&directory).and_then(|()| newfile::replace(&path, &signed.to_bytes()));
    written.map_err(|error| Failure::io(format_args!("could not write {}", path.display()), &error))?;
    Ok((signed, path))
}

/// Checks who signed a report; the key is compared with the one that is expected, if one is.
// spec: RECOVER-5
pub(crate) fn verify_report(signed: &SignedReport, expected: Option<&PublicKey>) -> Result<(), Failure> {
    let key = PublicKey(signed.key);
    if let Some(expected) = expected.filter(|expected| **expected != key) {
        return Err(Failure::integrity(format!("the report is signed by {key}, not by {expected}")));
    }
    verify(&key, &signed.report.sign_bytes(), &Signature(signed.signature))
        .map_err(|error| Failure::integrity(format!("the report: {error}")))
}

/// A report as JSON.
pub(crate) fn show(signed: &SignedReport) -> Value {
    let SignedReport { report, key, .. } = signed;
    let attempt = |attempt: &keelstone_sync::recovery::Attempt| {
        json!({
            "strategy": attempt.strategy.name(), "failed": attempt.failed.as_ref().map(ToString::to_string),
            "entries": attempt.entries, "blocks": attempt.blocks,
        })
    };
    json!({
        "chain_id": report.chain_id.to_string(),
        "genesis_hash": report.genesis_hash.to_string(),
        "began": report.began.0,
        "ended": report.ended.0,
        "height": report.height.0,
        "root": report.root.to_string(),
        "trust": report.trust.name(),
        "checked": report.depth.name(),
        "recovered_by": report.recovered_by().map(Strategy::name),
        "attempts": report.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "signed_by": PublicKey(*key).to_string(),
    })
}

/// What a node says when it could not recover by itself.
pub(crate) fn failure(recovered: &Recovered) -> Failure {
    let attempts = recovered.outcome.attempts.iter();
    let said: Vec<String> = attempts
        .filter_map(|(strategy, result)| result.as_ref().err().map(|failed| format!("{strategy}: {failed}")))
        .collect();
    Failure::new(Exit::Integrity, format!("nothing was recovered; {}", said.join("; ")))
        .hint("the old state is kept; docs/recovery.md says what else there is")
}
