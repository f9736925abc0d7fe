//! Recovery of a home whose state is lost or damaged.
//!
//! What is decided stands in [`keelstone_sync::recovery`]; here are the strategies: the snapshots of this home, what
//! other nodes have, the blocks of this home, and snapshots' files from elsewhere. Each builds in a generation aside,
//! from proven chunks and from blocks that are run again; a snapshot's own root is not believed, for the blocks on it
//! have to come to the target's. Chunks that were proven wait in one staging directory for whatever strategy comes
//! next.
//!
//! Rules: `spec/recovery.md`, RECOVER-1 to RECOVER-10.

mod elsewhere;
mod report;

use crate::clock::now;
use crate::cometbft::certificate::certified_by;
use crate::config::{Config, EngineKind, IntegrityDepth};
use crate::engine;
use crate::exit::{Exit, Failure, causes};
use crate::generations::{Generation, Generations, Replaced};
use crate::home::Home;
use crate::interrupt::Stop;
use crate::keyfile::KeyDir;
use crate::library;
use crate::library::{forget_above, hold_library, look_into_library};
use crate::own_log::{OwnLog, Stood, Who};
use crate::p2p::{self, Sources, attested};
use crate::room;
use elsewhere::{Offers, Others};
use keelstone_codec::{Height, Namespace, Root, Timestamp};
use keelstone_execution::Registry;
use keelstone_ledger::{
    Bodies, Genesis, Ledger, LedgerError, NodeEvent, NodeStep, PoolLimits, Standing, Unfit, check_fits, cut,
};
use keelstone_store::files::Directory;
use keelstone_store::kv::RedbKv;
use keelstone_store::{CheckLevel, Options, Store, StoreError, View};
use keelstone_sync::library::{Each, Expected, Info, LibraryError, Origin, Pin};
use keelstone_sync::peers::Version;
use keelstone_sync::recovery::{
    Built, Depth, Failed, Outcome, Report, SignedReport, Strategy, Target, Trust, World, by_time, recover,
};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{Blake3, HashKind, Hasher, KeyRange, MemoryTree, Read as _, ReadError, Sha256};
pub(crate) use report::{failure, show, verify_report};
use report::{keep, reports, sign, signer};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Snapshots of one origin that are tried, the newest first.
const SNAPSHOTS_TRIED_MAX: usize = 4;
/// Heights below the last whose roots are looked for.
const ROOTS_LOOKED_AT_MAX: usize = 256;
/// What estimates reckon with: bytes of a state built in a millisecond from this disk, and from a network.
const DISK_BYTES_PER_MS: u64 = 60_000;
const NETWORK_BYTES_PER_MS: u64 = 10_000;
/// And milliseconds a block takes.
const BLOCK_MS: u64 = 5;
/// What is said where the blocks of the old state cannot be taken over.
const LEFT_BEHIND: &str = "the blocks and receipts below the snapshot are lost or damaged, and not taken over";

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
    /// Where the key is by which peers know this node.
    pub(crate) keys: &'a KeyDir,
    /// Who wants it, for the record.
    pub(crate) who: Who,
    /// Once this is asked nothing more is tried: the old state stays, and so does what was fetched.
    pub(crate) stop: Stop,
    /// Told of what is being done.
    pub(crate) progress: &'a mut dyn FnMut(Strategy, u64, u64),
}

/// What a recovery came to.
pub(crate) struct Recovered {
    pub(crate) outcome: Outcome,
    pub(crate) signed: SignedReport,
    /// Where the report lies, or would, if it could not be written.
    pub(crate) path: PathBuf,
    /// What went wrong beside it: the state is had again all the same.
    pub(crate) warnings: Vec<String>,
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
    replaced: Replaced,
    /// What is built.
    aside: Option<Generation>,
    /// What was built there, once it was checked.
    checked: Option<Version>,
    /// The blocks here; or why there are none.
    bodies: Result<Bodies, Failed>,
    /// Whoever can be asked, once somebody was.
    others: Option<Others>,
    /// What others were found to have.
    offers: BTreeMap<Strategy, Offers>,
    /// Snapshots here that are damaged: what is whole of them need not come from elsewhere.
    damaged: Vec<Pin>,
    /// The state that counts, if it opens; or why not. Looked at when it is asked for first.
    here: Option<Result<Store<H>, Failed>>,
    /// Why what is built has none of the blocks and receipts below it that were here.
    left_behind: Option<String>,
    /// Heights above what is built that there is a block of here.
    above: Option<RangeInclusive<Height>>,
    /// What is lost with what is built: said once it counts.
    lost: Vec<String>,
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

/// Why the database of blocks cannot be used. What the operating system says is no word about what the database holds: a disk
/// that is full or does not answer now may have it whole.
fn of_blocks(error: StoreError) -> Failed {
    match error {
        StoreError::Io { ref source, .. } if source.raw_os_error().is_none() => Failed::Damaged(causes(&error)),
        error => error.into(),
    }
}

/// What a recovery that cannot begin ends with: whoever has to act is told by the code.
fn of_failed(failed: &Failed) -> Failure {
    match failed {
        Failed::Unavailable(what) => Failure::not_found(what.clone()),
        Failed::Machine(_) | Failed::NoRoom { .. } => Failure::error(failed.to_string()),
        _ => Failure::integrity(failed.to_string()),
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
        let (generations, replaced) = Generations::open_to_replace(&home.data())?;
        let bodies = match &replaced.generation {
            None => Err(match &replaced.damage {
                Some(damage) => Failed::Damaged(format!("nothing says whose blocks count: {}", damage.message)),
                None => Failed::Unavailable("there are no blocks here".to_owned()),
            }),
            // Opening them would make them anew.
            Some(current) if !current.blocks().exists() => Err(Failed::Damaged("the blocks are gone".to_owned())),
            Some(current) => match RedbKv::open(&current.blocks()) {
                Ok(kv) => Ok(Bodies::over(Arc::new(kv))),
                Err(error) => Err(of_blocks(error)),
            },
        };
        Ok(Self {
            home,
            config,
            registry,
            wish,
            genesis,
            generations,
            replaced,
            aside: None,
            checked: None,
            bodies,
            others: None,
            offers: BTreeMap::new(),
            damaged: Vec::new(),
            here: None,
            left_behind: None,
            above: None,
            lost: Vec::new(),
        })
    }

    /// The height of the genesis.
    fn base(&self) -> Height {
        self.genesis.initial_height.prev().unwrap_or_default()
    }

    // ---- the target

    /// The root of a height as this home has it on record, and why it counts; none if no record says it, or there are no blocks to
    /// ask.
    fn recorded(&self, height: Height) -> Result<Option<(Root, Trust)>, Failed> {
        let Ok(bodies) = self.bodies.as_ref() else { return Ok(None) };
        let found = match self.genesis.validators.is_empty() {
            true => bodies
                .root(height)
                .map_err(|error| match error {
                    LedgerError::Store(error) => of_blocks(error),
                    error => of_ledger(error),
                })?
                .map(|root| (root, Trust::OwnRecord)),
            false => {
                let certificate = bodies.certificate(height).map_err(of_blocks)?;
                certificate.and_then(|bytes| certified_by(&bytes)).map(|root| (root, Trust::Consensus))
            }
        };
        Ok(found)
    }

    /// The last height that the blocks here have a record of, also of one that is damaged.
    fn last(&self) -> Result<Option<Height>, Failed> {
        self.bodies.as_ref().map_err(Failed::clone)?.last_named().map_err(of_blocks)
    }

    /// What is to be had again, and why its root is trusted.
    // spec: RECOVER-1
    fn target(&mut self) -> Result<Target, Failure> {
        if let (Wanted::Height(height), Some(root)) = (self.wish.wanted, self.wish.root) {
            return Ok(Target { height, root, trust: Trust::Given });
        }
        // What the machine cannot read now says more than whatever else there is: nothing is begun without it.
        if let Err(failed @ Failed::Machine(_)) = &self.bodies {
            return Err(of_failed(failed));
        }
        let asked = match self.wish.wanted {
            Wanted::Newest => None,
            Wanted::Height(height) => Some(height),
            Wanted::Time(time) => {
                let bodies = self.bodies.as_ref().map_err(of_failed)?;
                let found = bodies.at_time(time, self.base())?;
                Some(found.ok_or_else(|| Failure::not_found(format!("there is no block at or before {}", time.0)))?)
            }
        };
        let found = match asked {
            Some(height) => self.known(height)?,
            None => self.newest()?,
        };
        found.ok_or_else(|| self.unknown(asked, self.bodies.as_ref().err()))
    }

    /// That no root is known of what was asked for, and what is wrong with what would say it.
    fn unknown(&self, asked: Option<Height>, why: Option<&Failed>) -> Failure {
        let asked = asked.map_or_else(|| "the last height".to_owned(), |height| format!("height {height}"));
        let exit = why.map_or(Exit::NotFound, |failed| of_failed(failed).exit);
        let why = why.map_or_else(String::new, |failed| format!(": {failed}"));
        let hint = match self.genesis.validators.is_empty() {
            true => "--to HEIGHT --root HEX names the root to trust",
            false => {
                "--to HEIGHT --root HEX names the root to trust: the one in the header of the height after, app_hash"
            }
        };
        Failure::new(exit, format!("nothing here says which root {asked} has{why}")).hint(hint)
    }

    /// A height, if its root is known.
    fn known(&mut self, height: Height) -> Result<Option<Target>, Failure> {
        let unread = match self.recorded(height) {
            Ok(Some((root, trust))) => return Ok(Some(Target { height, root, trust })),
            Ok(None) => None,
            Err(failed @ Failed::Machine(_)) => return Err(of_failed(&failed)),
            Err(failed) => Some(failed),
        };
        match self.state_here().filter(|state| state.height == height) {
            Some(Version { root, .. }) => Ok(Some(Target { height, root, trust: Trust::OwnRecord })),
            None if height == self.base() => self.beginning().map(Some),
            None => unread.map_or(Ok(None), |failed| Err(self.unknown(Some(height), Some(&failed)))),
        }
    }

    /// As much as there is a root for: the last height on record beside the blocks that can be read, or the state that is here, if it
    /// came further than they, which have lost some then. Else what a producer certifies, for a node that follows one; and last the
    /// genesis, for a chain of which it is certain that it never had a block.
    // spec: RECOVER-10
    fn newest(&mut self) -> Result<Option<Target>, Failure> {
        let base = self.base();
        let last = self.last();
        if let Err(failed @ Failed::Machine(_)) = &last {
            return Err(of_failed(failed));
        }
        let named = last.as_ref().ok().copied().flatten();
        let (mut recorded, mut unread) = (None, None);
        for height in (base.0 + 1..=named.unwrap_or(base).0).rev().take(ROOTS_LOOKED_AT_MAX).map(Height) {
            match self.recorded(height) {
                Ok(Some((root, trust))) => {
                    recorded = Some(Target { height, root, trust });
                    break;
                }
                Ok(None) => {}
                Err(failed @ Failed::Machine(_)) => return Err(of_failed(&failed)),
                Err(failed) => drop(unread.get_or_insert(failed)),
            }
        }
        let further =
            self.state_here().filter(|state| recorded.as_ref().is_none_or(|known| known.height < state.height));
        if let Some(Version { height, root }) = further {
            return Ok(Some(Target { height, root, trust: Trust::OwnRecord }));
        }
        if let Some(recorded) = recorded {
            return match unread {
                // A second block of a height that was acknowledged is made by nobody who was not told to.
                Some(unread) if self.wish.who == Who::Node && self.config.engine.kind == EngineKind::Solo => {
                    let ways = "keelstone db check --repair may make the state whole; keelstone recover --yes goes back to that \
                                height, and keeps what there is of the blocks above";
                    let height = recorded.height;
                    Err(Failure::integrity(format!(
                        "{unread}; the last root that can be read is of height {height}. {ways}"
                    )))
                }
                _ => Ok(Some(recorded)),
            };
        }
        let certified = self.certified();
        if let Ok(Some(certified)) = certified {
            return Ok(Some(certified));
        }
        if let Some(unread) = unread {
            return Err(self.unknown(None, Some(&unread)));
        }
        // Blocks that are gone or damaged, or a state that is here or once was, are no chain that never began.
        if last != Ok(None) {
            return certified;
        }
        let stands = self.here().ok().and_then(Store::height).map(|height| (height, self.home.data()));
        match stands.into_iter().chain(engine::height_on_record(self.home)?).find(|(height, _)| *height > base) {
            None => self.beginning().map(Some),
            Some((height, place)) => {
                let what = format!("{} says that the chain came to height {height}", place.display());
                Err(self.unknown(None, Some(&Failed::Damaged(format!("the blocks here have none, and {what}")))))
            }
        }
    }

    /// The state that counts, as far as it was acknowledged, on a chain whose roots nobody votes for. It is proven as it is taken.
    // spec: RECOVER-1, HISTORY-1
    fn state_here(&mut self) -> Option<Version> {
        if !self.genesis.validators.is_empty() {
            return None;
        }
        let last = self.bodies.as_ref().ok().map(Bodies::last_on_record);
        let store = self.here().ok()?;
        let version = Version { height: store.height()?, root: store.root() };
        // Where blocks can be read and have none of it, it was never acknowledged, and is taken back by whoever opens the chain. Where
        // they cannot, it may have been: to keep one that was not does no harm, to take one back that was loses it.
        let is_whole = store.in_doubt().is_none_or(|doubtful| match last {
            Some(Ok(last)) => last.is_some_and(|last| last >= doubtful),
            _ => true,
        });
        is_whole.then_some(version)
    }

    fn here(&mut self) -> Result<&Store<H>, Failed> {
        if self.here.is_none() {
            let opened = match &self.replaced.generation {
                None => Err(Failed::Unavailable("there is no state here".to_owned())),
                Some(current) => engine::open_counted(&current.state(), self.options()).map_err(Failed::from),
            };
            self.here = Some(opened);
        }
        self.here.as_ref().expect("it was looked at just now").as_ref().map_err(Failed::clone)
    }

    /// What a producer certifies to this node, which follows one. Whoever makes blocks itself goes on from its own record alone: what
    /// others have last of it may be less than it made.
    // spec: SNAP-12
    fn certified(&mut self) -> Result<Option<Target>, Failure> {
        let p2p = &self.config.p2p;
        if self.config.engine.kind != EngineKind::Follow || p2p.dials_nobody() {
            return Ok(None);
        }
        let trust = p2p::Trust::of(&self.genesis, &p2p.trust_keys, p2p.trust_period_ms)?;
        if trust.keys.is_empty() {
            return Ok(None);
        }
        let patience = Duration::from_millis(p2p.request_timeout_ms);
        let network = self.meet().map_err(|failed| of_failed(&failed))?;
        let sources = Sources { network: Some(network), mirrors: Vec::new(), stop: self.wish.stop.clone() };
        let runtime = self.others().map_err(|failed| of_failed(&failed))?.runtime();
        let (version, producer) = attested(runtime, &sources, patience, &trust)?;
        tracing::info!(height = %version.height, %producer, "nothing here says what is to be had: a producer does");
        Ok(Some(Target { height: version.height, root: version.root, trust: Trust::Producer }))
    }

    /// The state that the chain began with.
    fn beginning(&self) -> Result<Target, Failure> {
        let first = self.genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
        if self.genesis.inherits.is_some() {
            let message = "the chain inherits its first state, which is not in its genesis";
            return Err(Failure::not_found(message).hint("--to HEIGHT --root HEX names the root to trust"));
        }
        let root = MemoryTree::<H>::new().apply(&first.diff);
        Ok(Target { height: first.height, root, trust: Trust::OwnRecord })
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
        let target = self.target();
        // Whoever is asked no more has no say in it.
        self.wish.stop.check()?;
        let (target, depth) = (target?, self.depth());
        if self.replaced.damage.is_none() {
            self.generations.sweep()?;
        }
        let order = self.given_order().unwrap_or_else(|| {
            by_time(&mut self, &target.version()).into_iter().map(|(strategy, _)| strategy).collect()
        });
        // What a report takes is had before anything is replaced: afterwards it is too late to fail for want of it.
        let key = signer(self.home)?;
        let directory = reports(self.home)?;
        let genesis_hash = self.genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?.hash;
        let chain = (self.genesis.chain_id.clone(), genesis_hash);
        // What takes the place of a state is on record before it is begun.
        let (own, who) = (OwnLog::of(self.home), self.wish.who);
        let names = order.iter().map(|strategy| strategy.name()).collect::<Vec<_>>().join(", ");
        let event = |how: String| NodeEvent::Recovered { how: cut(how) };
        let begun = event(format!("to height {} by {names}", target.height));
        own.note_of(who, begun, NodeStep::Begun, Stood::default())?;
        let outcome = recover(&order, &target.version(), depth, &mut self);
        let signed = sign(&key, Report::of(chain, (began, now()), &target, depth, &outcome));
        let path = directory.join(format!("{}-{}.report", signed.report.began.0, signed.report.height));
        let recovered = outcome.recovered();
        let (by, step, after) = match recovered {
            Some((strategy, built)) => {
                let after = Standing { height: built.at.height, root: built.at.root };
                (strategy.name(), NodeStep::Done, Some(after))
            }
            None => {
                let reason = self.wish.stop.check().map_or_else(|stopped| stopped.message, |()| names);
                ("nothing that was tried", NodeStep::Failed { reason: cut(reason) }, None)
            }
        };
        let mut warnings = std::mem::take(&mut self.lost);
        let without: String = warnings.iter().map(|lost| format!("; {lost}")).collect();
        let told = event(format!("by {by}, report {}{without}", path.display()));
        let mut done = vec![keep(&path, &signed), own.note_of(who, told, step, Stood { before: None, after })];
        if recovered.is_some() {
            let held = hold_library(self.home);
            let forgotten = held.and_then(|held| forget_above(held, self.home, target.height));
            let current = self.replaced.generation.as_ref();
            done.push(forgotten.and_then(|()| current.map_or(Ok(()), Generation::settle_put_back)));
        }
        for failure in done.into_iter().filter_map(Result::err) {
            // Once another state counts nothing that fails here undoes that.
            match recovered {
                Some(_) => warnings.push(failure.message),
                None => return Err(failure),
            }
        }
        for warning in &warnings {
            tracing::warn!(warning, "the state is had again, but for this");
        }
        Ok(Recovered { outcome, signed, path, warnings })
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

    /// Refuses what the disk has no room for: so many bytes, and the blocks that are taken over. What it replaces is removed
    /// when it counts, so nothing is kept back.
    // spec: RECOVER-8
    fn check_room(&self, state_bytes: u64) -> Result<(), Failed> {
        let blocks = self.replaced.generation.as_ref().map_or(0, |current| bytes_of(&current.blocks()));
        let data = Self::directory(&self.home.data())?;
        Ok(room::check(&data, state_bytes.saturating_add(blocks), 0)?)
    }

    /// A store of the entries that `feed` hands out.
    fn build_store(
        &self,
        generation: &Generation,
        target: (Height, Root),
        feed: &mut dyn FnMut(Each<'_>) -> Result<(), Failed>,
    ) -> Result<Store<H>, Failed> {
        engine::build_store(Self::directory(&generation.state())?, self.options(), target, &mut |each| {
            feed(&mut |namespace: &Namespace, key: &[u8], value: &[u8]| match self.wish.stop.is_asked() {
                true => Err(LibraryError::Stopped),
                false => each(namespace, key, value),
            })
        })
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
        let ledger = self.ledger_over(store, generation)?;
        let expected = self.genesis.first_state().map_err(|error| Failed::Damaged(error.to_string()))?.hash;
        // spec: SNAP-19
        check_fits(&ledger.view(), height, Some((&self.genesis.facts(), expected))).map_err(|error| match error {
            Unfit::Read(error) if !matches!(error, ReadError::Damaged { .. }) => Failed::Machine(error.to_string()),
            error => Failed::Misbehaved(format!("the state is not one of this chain: {error}")),
        })?;
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
                let run = ledger.run_kept(&bodies, target.height, &mut |_| {
                    done += 1;
                    (self.wish.progress)(strategy, done, needed);
                    match self.wish.stop.is_asked() {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                });
                run.map_err(of_ledger)?
            }
        };
        self.wish.stop.check().map_err(machine)?;
        ledger.store().flush()?;
        let at = Version { height: ledger.height(), root: ledger.root() };
        Ok(Built { at, entries: ledger.view().totals().count, blocks })
    }

    /// A ledger over a state, with the blocks below it that this home has: a copy of the database gives up those above. Only what
    /// is damaged is left behind; what the machine could not read or write may be whole, and this home has no other copy of it.
    // spec: RECOVER-9
    fn ledger_over(&mut self, store: Store<H>, generation: &Generation) -> Result<Ledger<H>, Failed> {
        self.left_behind = None;
        let Some(current) = &self.replaced.generation else {
            self.left_behind = self.replaced.damage.as_ref().map(|failure| failure.message.clone());
            return self.ledger_without_blocks(store, generation);
        };
        let from = current.blocks();
        let copied = |error: io::Error| Failed::Machine(format!("could not copy {}: {error}", from.display()));
        let taken = self.bodies.clone().and_then(|_| {
            RedbKv::copy(&from, &generation.blocks()).map_err(copied)?;
            RedbKv::open(&generation.blocks()).map_err(of_blocks)
        });
        let (store, why) = match taken {
            Ok(kv) => match self.ledger_of(store, Arc::new(kv)) {
                Ok(ledger) => return Ok(ledger),
                Err(LedgerError::Store(error)) if matches!(of_blocks(error.clone()), Failed::Machine(_)) => {
                    return Err(of_blocks(error));
                }
                Err(error) => (Store::open(Self::directory(&generation.state())?, self.options())?, causes(&error)),
            },
            Err(failed @ Failed::Machine(_)) => return Err(failed),
            Err(failed) => (store, failed.to_string()),
        };
        tracing::error!(why, "{LEFT_BEHIND}");
        self.left_behind = Some(why);
        self.ledger_without_blocks(store, generation)
    }

    /// What the result lacks of the blocks that were here, or must have been.
    // spec: RECOVER-9
    fn look_for_lost(&mut self, ledger: &Ledger<H>, kv: Arc<RedbKv>) -> Result<(), Failed> {
        (self.above, self.lost) = (None, Vec::new());
        let (height, last) = (ledger.height(), self.last().ok().flatten());
        if self.left_behind.is_some() {
            return Ok(());
        }
        let newest = self.wish.wanted == Wanted::Newest;
        // Of the last one an engine of validators certifies the root one height later, and brings it again.
        let is_uncertified = |above: Height| !self.genesis.validators.is_empty() && above == height.next();
        if let Some(last) = last.filter(|last| newest && *last > height && !is_uncertified(*last)) {
            self.above = Some(height.next()..=last);
        }
        let base = self.base();
        let had = last.is_some() || self.here().ok().and_then(Store::height).is_some_and(|height| height > base);
        let first = Bodies::over(kv).last_on_record().map_err(of_blocks)?.unwrap_or(base).next();
        if had && first <= height {
            self.lost.push(format!("there is nothing here any more of blocks {first} to {height}"));
        }
        Ok(())
    }

    /// Keeps what there is of blocks that are not taken over, and says so. Done last, so that whoever fails before leaves nothing.
    // spec: RECOVER-9
    fn keep_blocks(&mut self) -> Result<(), Failed> {
        let left = match (&self.left_behind, &self.above) {
            (Some(why), _) => format!("{LEFT_BEHIND}: {why}"),
            (None, Some(above)) => {
                let (first, last) = (above.start(), above.end());
                let last = if last.0 == u64::MAX { "the last".to_owned() } else { last.to_string() };
                format!("of blocks {first} to {last} no root can be read, and they are not taken over")
            }
            (None, None) => return Ok(()),
        };
        let of = match &self.replaced.generation {
            Some(current) => vec![current.clone()],
            None => self.generations.counted().map_err(machine)?,
        };
        let kept: Vec<_> = of
            .iter()
            .filter(|generation| generation.has_blocks())
            .map(|generation| Ok(self.generations.keep_blocks(generation)?.display().to_string()))
            .collect::<Result<_, Failure>>()
            .map_err(machine)?;
        let kept = if kept.is_empty() {
            String::new()
        } else {
            format!("; what there is of them is kept in {}", kept.join(", "))
        };
        self.lost.push(left + &kept);
        Ok(())
    }

    /// A ledger over a state and blocks whose last ones can be read.
    fn ledger_of(&self, store: Store<H>, kv: Arc<RedbKv>) -> Result<Ledger<H>, LedgerError> {
        let ledger = Ledger::open(store, kv.clone(), self.registry.clone(), PoolLimits::default())?;
        Bodies::over(kv).last_on_record()?;
        Ok(ledger)
    }

    fn ledger_without_blocks(&self, store: Store<H>, generation: &Generation) -> Result<Ledger<H>, Failed> {
        // The log that was copied beside it is of the other one.
        remove(&generation.blocks())?;
        remove(&generation.blocks().with_extension("wal"))?;
        let kv = Arc::new(RedbKv::open(&generation.blocks())?);
        Ledger::open(store, kv, self.registry.clone(), PoolLimits::default()).map_err(of_ledger)
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
            self.wish.stop.check().map_err(machine)?;
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
        let Some((library, _)) = found else {
            let none = Failed::Unavailable("there are no snapshots here".to_owned());
            return self.taken_as_it_is(target).unwrap_or(Err(none));
        };
        let below = library.list().into_iter().filter(|info| info.id.height <= target.height);
        let mut why = None;
        let usable = below.filter(|info| match self.usable(version_of(info), target) {
            Ok(()) => true,
            Err(failed) => {
                why.get_or_insert(failed);
                false
            }
        });
        let list: Vec<Info> = usable.take(SNAPSHOTS_TRIED_MAX).collect();
        let none = why.unwrap_or_else(|| {
            Failed::Unavailable(format!("there is no snapshot here of height {} or below", target.height))
        });
        let name = |info: &Info| format!("the snapshot of height {} here", info.id.height);
        let built = self.first_of(list, none, name, |place, info| {
            place.check_room(room::of(info.totals))?;
            let generation = place.fresh()?;
            let pin = library.pin(info.id).ok_or(Failed::Unavailable("the snapshot is gone".to_owned()))?;
            let expected = Expected { params: Some(place.params()), root: Some(info.root) };
            let built = place.build_store(&generation, (info.id.height, info.root), &mut |each| {
                Origin::Kept(&pin).entries(&expected, each, &mut |_| ControlFlow::Continue(()))?;
                Ok(())
            });
            if matches!(built, Err(Failed::Damaged(_))) {
                place.damaged.push(pin);
            }
            place.run_on(Strategy::LocalSnapshot, built?, &generation, target)
        });
        built.or_else(|why| self.taken_as_it_is(target).unwrap_or(Err(why)))
    }

    /// The state that counts, where it is what there is to begin with: it opens, and of the target the blocks here say nothing, since
    /// they are damaged or lost. Where they do, it is they who say that something is wrong with the state.
    // spec: RECOVER-1
    fn as_it_is(&mut self, target: &Version) -> Option<View<H>> {
        if matches!(self.recorded(target.height), Ok(Some(_))) {
            return None;
        }
        let view = self.here().ok()?.view();
        let version = Version { height: view.height()?, root: view.root() };
        self.usable(version, target).is_ok().then_some(view)
    }

    /// Takes the state that counts for a snapshot of itself: each entry is proven as it is read, and its root computed anew. None
    /// if it is nothing to begin with.
    fn taken_as_it_is(&mut self, target: &Version) -> Option<Result<Built, Failed>> {
        let view = self.as_it_is(target)?;
        let built = self.build_of(&view, target);
        Some(built.inspect_err(|failed| {
            tracing::warn!(%failed, "the state here is of no use");
            self.discard();
        }))
    }

    fn build_of(&mut self, view: &View<H>, target: &Version) -> Result<Built, Failed> {
        self.check_room(room::of(view.totals()))?;
        let generation = self.fresh()?;
        let version = (view.height().unwrap_or_default(), view.root());
        let store = self.build_store(&generation, version, &mut |each| {
            for (namespace, _) in view.namespaces() {
                for entry in view.scan(&namespace, KeyRange::all()) {
                    let (key, value) = entry.map_err(StoreError::from)?;
                    each(&namespace, &key, &value)?;
                }
            }
            Ok(())
        })?;
        self.run_on(Strategy::LocalSnapshot, store, &generation, target)
    }

    fn block_replay(&mut self, target: &Version) -> Result<Built, Failed> {
        let needed = target.height.0.saturating_sub(self.base().0);
        self.allow(needed)?;
        if self.genesis.inherits.is_some() {
            return Err(Failed::Unavailable(
                "the chain inherits its first state, which is not in its genesis".to_owned(),
            ));
        }
        if needed > 0 {
            self.bodies.clone()?;
        }
        self.check_room(self.state_bytes())?;
        let generation = self.fresh()?;
        let store = Store::<H>::create(Self::directory(&generation.state())?, self.options())?;
        let kv = Arc::new(RedbKv::open(&generation.blocks())?);
        let ledger = Ledger::create(store, kv, self.registry.clone(), &self.genesis, PoolLimits::default())
            .map_err(of_ledger)?;
        // Without a block to run none was taken over.
        self.left_behind = self.bodies.as_ref().err().map(ToString::to_string);
        self.run_blocks(Strategy::BlockReplay, ledger, needed, target)
    }

    fn params(&self) -> SnapshotParams {
        library::snapshot_params(&self.genesis)
    }

    /// Bytes of the state that counts, as it lies on the disk: about what another takes.
    fn state_bytes(&self) -> u64 {
        self.replaced.generation.as_ref().map_or(0, |current| bytes_of(&current.state()))
    }

    /// Whether a version can lead to a target, or why not. The blocks on the way are looked at where they begin and end; what is
    /// wrong between is found when they are run.
    // spec: RECOVER-1, RECOVER-7
    fn usable(&self, version: Version, target: &Version) -> Result<(), Failed> {
        let Version { height, root } = version;
        if height > target.height {
            return Err(Failed::Unavailable(format!("it is of height {height}, the target is {}", target.height)));
        }
        let known = match self.recorded(height) {
            _ if height == target.height => Some(target.root),
            Ok(known) => known.map(|known| known.0),
            Err(failed @ Failed::Machine(_)) => return Err(failed),
            // The blocks from there lead to the target, or do not.
            Err(_) => None,
        };
        if let Some(known) = known.filter(|known| *known != root) {
            return Err(Failed::Misbehaved(format!("it says that height {height} has root {root}, which is {known}")));
        }
        if height == target.height {
            return Ok(());
        }
        self.allow(target.height.0 - height.0)?;
        let bodies = self.bodies.as_ref().map_err(Failed::clone)?;
        let below = target.height.prev().unwrap_or_default();
        bodies.lead_over(height.next(), Some(root)).map_err(of_ledger)?;
        bodies.lead_over(target.height, bodies.root(below).map_err(of_ledger)?).map_err(of_ledger)
    }
}

/// What a snapshot is of.
fn version_of(snapshot: &Info) -> Version {
    Version { height: snapshot.id.height, root: snapshot.root }
}

/// Bytes of a file, or of the files of a directory; what cannot be looked at counts as none.
fn bytes_of(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return fs::metadata(path).map_or(0, |metadata| metadata.len()) };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum()
}

impl<H: Hasher> World for Place<'_, H> {
    fn estimate_ms(&mut self, strategy: Strategy, target: &Version) -> Option<u64> {
        let blocks = |from: Height| target.height.0.saturating_sub(from.0).saturating_mul(BLOCK_MS);
        match strategy {
            Strategy::LocalSnapshot => {
                let library = look_into_library(self.home).ok()?;
                let list = library.map_or_else(Vec::new, |(library, _)| library.list());
                let usable = list.into_iter().find(|info| self.usable(version_of(info), target).is_ok());
                let (height, bytes) = match usable {
                    Some(info) => (info.id.height, info.totals.bytes),
                    None => {
                        let view = self.as_it_is(target)?;
                        (view.height()?, view.totals().bytes)
                    }
                };
                Some(bytes / DISK_BYTES_PER_MS + blocks(height))
            }
            Strategy::BlockReplay => {
                if target.height > self.base() {
                    let (bodies, base) = (self.bodies.as_ref().ok()?, self.base());
                    bodies.lead_over(base.next(), bodies.root(base).ok()?).ok()?;
                }
                Some(blocks(self.base()))
            }
            Strategy::PeerStateSync | Strategy::NetworkSnapshot => {
                let (height, bytes) = self.best_offer(strategy, target)?;
                Some(bytes / NETWORK_BYTES_PER_MS + blocks(height))
            }
        }
    }

    fn build(&mut self, strategy: Strategy, target: &Version) -> Result<Built, Failed> {
        self.wish.stop.check().map_err(machine)?;
        tracing::info!(strategy = strategy.name(), height = target.height.0, "recovering");
        self.left_behind = None;
        let built = match strategy {
            Strategy::LocalSnapshot => self.local_snapshot(target),
            Strategy::BlockReplay => self.block_replay(target),
            Strategy::PeerStateSync | Strategy::NetworkSnapshot => self.had_elsewhere(strategy, target),
        };
        built.inspect_err(|failed| tracing::warn!(strategy = strategy.name(), %failed, "it came to nothing"))
    }

    // spec: RECOVER-3
    fn check(&mut self, depth: Depth) -> Result<Version, Failed> {
        self.wish.stop.check().map_err(machine)?;
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
        let ledger =
            Ledger::open(store, kv.clone(), self.registry.clone(), PoolLimits::default()).map_err(of_ledger)?;
        self.look_for_lost(&ledger, kv)?;
        let version = Version { height: ledger.height(), root: ledger.root() };
        self.checked = Some(version);
        Ok(version)
    }

    fn discard(&mut self) {
        self.lost.clear();
        if let Some(aside) = self.aside.take() {
            // What cannot be removed now does not count, and is swept at the next start. What a switch that failed came as far as
            // naming may count, and stays beside the old one.
            let _ = self.generations.discard_unless_current(&aside);
        }
    }

    fn settle(&mut self) -> Result<(), Failed> {
        // From here on it takes no longer than a stop may.
        self.wish.stop.check().map_err(machine)?;
        let Some(aside) = self.aside.take() else { return Err(Failed::Unsound("nothing was built".to_owned())) };
        // What it came to was compared with the target, whose root is trusted.
        let noted = self.checked.take().map_or(Ok(()), |Version { height, root }| {
            aside.mark_given(height, root)?;
            aside.mark_put_back(height)
        });
        let kept = noted.map_err(machine).and_then(|()| self.keep_blocks());
        if let Err(failed) = kept.and_then(|()| self.generations.switch(&aside).map_err(machine)) {
            self.aside = Some(aside);
            return Err(failed);
        }
        if let Some(left) = self.home.clear_joining() {
            tracing::warn!("{left}");
        }
        // The database of the old one is open still, and may be its state.
        self.bodies = Err(Failed::Unavailable("the recovery is over".to_owned()));
        self.here = None;
        self.replaced = Replaced { generation: Some(aside), damage: None };
        if let Some(failure) = self.generations.sweep().unwrap_or_else(Some) {
            tracing::warn!(%failure, "the old state does not count; the next start removes it");
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), Failed> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failed::Machine(format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generations::Fault;
    use crate::keyfile::PRODUCER;
    use crate::library::open_library;
    use crate::snapshots::making;
    use keelstone_codec::{Blob, ChainId, Encode as _};
    use keelstone_ledger::SecretKey;
    use keelstone_ledger::modules::standard;
    use keelstone_sync::mirror::{HEAD_FILE, Head};
    use std::io::Write as _;
    use tempfile::TempDir;

    /// A home whose chain is at height 3, with a snapshot of that height, and the name of its generation.
    fn chain() -> (TempDir, Home, Config, String) {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        let mut config = Config::default();
        config.snapshots.reserve_percent = 0;
        home.write_genesis(&Genesis::new(ChainId::new("recovered-1").expect("a name"))).expect("written");
        let engine = engine::open(&home, &config, &standard()).expect("a new chain");
        let producer = SecretKey::from_seed(&[7; 32]).public();
        for time in 1..=3 {
            engine.produce(Timestamp(time), producer, true).expect("a block");
        }
        let library = open_library(&home).expect("a library");
        let version = engine.version(None).expect("the last");
        version.snapshot(&library, &making(&config.snapshots), &mut |_| ControlFlow::Continue(())).expect("a snapshot");
        drop((version, engine));
        let current = named(&home);
        (place, home, config, current)
    }

    /// The generation that counts.
    fn named(home: &Home) -> String {
        fs::read_to_string(home.data().join("CURRENT")).expect("one counts")
    }

    /// Recovers with one strategy, after `spoil` had the database of blocks that counts, with `progress` told.
    fn recovered_by(
        only: Strategy,
        (home, config): (&Home, &Config),
        spoil: &dyn Fn(&Path),
        progress: &mut dyn FnMut(Strategy, u64, u64),
    ) -> Result<Recovered, Failure> {
        let (registry, keys) = (standard(), KeyDir::new(home.path()));
        let stop = Stop::default();
        let wish =
            Wish { wanted: Wanted::Newest, root: None, only: Some(only), keys: &keys, who: Who::User, stop, progress };
        let genesis = home.read_genesis().expect("it was written");
        let place = Place::<Blake3>::open(home, genesis, config, &registry, wish).expect("nobody uses it");
        spoil(&place.replaced.generation.as_ref().expect("there is a state").blocks());
        place.run()
    }

    /// spec: RECOVER-1, RECOVER-7. A version from which more blocks would be run than may be, or from which none leads on, is neither
    /// reckoned with nor fetched.
    #[test]
    fn a_version_that_leads_nowhere_is_left_where_it_is() {
        let (_place, home, mut config, _) = chain();
        let engine = engine::open(&home, &config, &standard()).expect("it opens");
        for time in 4..=6 {
            engine.produce(Timestamp(time), SecretKey::from_seed(&[7; 32]).public(), true).expect("a block");
        }
        drop(engine);
        let library = open_library(&home).expect("a library");
        let id = library.list().first().expect("a snapshot").id;
        let mirror = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::new(mirror.path()).expect("it is there");
        library.export_directory(id, &directory, 0, &mut |_| ControlFlow::Continue(())).expect("copied");
        let head = Head { height: id.height, certificate: Blob::new([]).expect("it is short"), part: None };
        fs::write(mirror.path().join(HEAD_FILE), head.to_bytes()).expect("written");
        drop(library);

        config.recovery.sources = vec![crate::config::Place::Directory(mirror.path().to_owned())];
        let (registry, keys) = (standard(), KeyDir::new(home.path()));
        let tried = |config: &Config, only: Strategy, (wanted, root): (Wanted, Option<Root>)| {
            let progress = &mut |_: Strategy, _: u64, _: u64| {};
            let stop = Stop::default();
            let wish = Wish { wanted, root, only: Some(only), keys: &keys, who: Who::User, stop, progress };
            let genesis = home.read_genesis().expect("it was written");
            let mut place = Place::<Blake3>::open(&home, genesis, config, &registry, wish).expect("nobody uses it");
            let target = place.target().expect("a root is known").version();
            assert_eq!((target.height, place.estimate_ms(only, &target)), (Height(6), None));
            let failed = place.build(only, &target).expect_err("it leads nowhere");
            assert!(!home.joining().exists(), "nothing is fetched");
            (failed, target, place.replaced.generation.as_ref().expect("there is a state").blocks())
        };
        config.recovery.max_block_replay = 1;
        let (failed, target, blocks) = tried(&config, Strategy::LocalSnapshot, (Wanted::Newest, None));
        assert_eq!(failed, Failed::TooFar { needed: 3, limit: 1 });
        let (failed, ..) = tried(&config, Strategy::NetworkSnapshot, (Wanted::Newest, None));
        assert!(failed.to_string().contains("takes 3 blocks, the limit is 1"), "{failed}");

        config.recovery.max_block_replay = 100;
        fs::remove_file(&blocks).expect("it is there");
        fs::remove_file(blocks.with_file_name("state").join("superblock")).expect("it is there");
        for only in [Strategy::LocalSnapshot, Strategy::NetworkSnapshot] {
            let (failed, ..) = tried(&config, only, (Wanted::Height(target.height), Some(target.root)));
            assert!(failed.to_string().contains("the blocks are gone"), "{failed}");
        }
    }

    /// spec: RECOVER-9. Blocks that the machine could not copy may be whole, and are nowhere else: that strategy fails, and the
    /// old state stays with them.
    #[test]
    fn blocks_that_could_not_be_copied_are_not_given_up() {
        let (_place, home, config, before) = chain();
        let unreadable = |blocks: &Path| {
            let log = blocks.with_extension("wal");
            fs::remove_file(&log).expect("it is there");
            fs::create_dir(&log).expect("free");
        };
        let found = recovered_by(Strategy::LocalSnapshot, (&home, &config), &unreadable, &mut |_, _, _| {});
        let found = found.expect("it is reported");
        let [(_, Err(Failed::Machine(why)))] = &found.outcome.attempts[..] else {
            panic!("{:?}", found.outcome.attempts)
        };
        assert!(why.contains("could not copy"), "{why}");
        let said = failure(&found, &Stop::default());
        assert!(said.exit == Exit::Error && said.message.contains(why.as_str()), "{said}");
        assert_eq!((named(&home), found.warnings), (before, vec![]));
    }

    /// Told to stop on the way it ends where it is: the state that counts is the one that did, nothing is left of what was built, and both are
    /// on record.
    #[test]
    fn what_is_told_to_stop_keeps_the_state_that_counts() {
        let (_place, home, config, before) = chain();
        let (registry, keys, stop) = (standard(), KeyDir::new(home.path()), Stop::default());
        let progress = &mut |_: Strategy, _: u64, _: u64| stop.ask();
        let (wanted, only, who) = (Wanted::Newest, Some(Strategy::BlockReplay), Who::User);
        let wish = Wish { wanted, root: None, only, keys: &keys, who, stop: stop.clone(), progress };
        let found = run(&home, &config, &registry, wish).expect("it is reported");
        let said = failure(&found, &stop);
        assert!(found.outcome.recovered().is_none() && said.exit == Exit::Error, "{said}");
        let left =
            fs::read_dir(home.data()).expect("there").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        assert_eq!(left.filter(|name| name.starts_with("gen-")).collect::<Vec<_>>(), [before.trim()]);
        assert_eq!(engine::open(&home, &config, &registry).expect("it opens").status().expect("it stands").height, 3);
    }

    /// spec: RECOVER-9. Blocks that are damaged hinder nobody: the state is had again without them, and that is said.
    #[test]
    fn blocks_that_are_damaged_are_left_behind_and_that_is_said() {
        let (_place, home, config, before) = chain();
        let damage = |blocks: &Path| {
            let mut file = fs::OpenOptions::new().write(true).open(blocks).expect("it is there");
            file.write_all(&[0x5a; 4096]).expect("written");
        };
        let found = recovered_by(Strategy::LocalSnapshot, (&home, &config), &damage, &mut |_, _, _| {});
        let found = found.expect("it is reported");
        assert!(found.outcome.recovered().is_some() && named(&home) != before, "{:?}", found.outcome.attempts);
        assert!(matches!(&found.warnings[..], [warning] if warning.starts_with(LEFT_BEHIND)), "{:?}", found.warnings);
        let kept = home.data().join(format!("blocks-of-{}", before.trim()));
        let bytes = fs::read(kept.join("blocks.redb")).expect("what there is of them is kept");
        // All but its header, which redb writes as it closes.
        assert!(bytes[512..4096].iter().all(|byte| *byte == 0x5a));
        assert!(found.warnings[0].contains(&kept.display().to_string()) && kept.join("blocks.wal").exists());
        let engine = engine::open(&home, &config, &standard()).expect("it opens");
        engine.produce(Timestamp(9), SecretKey::from_seed(&[7; 32]).public(), true).expect("it goes on");
    }

    /// spec: RECOVER-3, STORE-10. A switch that failed may have come as far as the name: what it names stays, and the old state stays
    /// beside it. Whichever of the names a restart finds, it leads to a state that is whole.
    #[test]
    fn what_a_failed_switch_names_is_not_removed() {
        for only in [Strategy::BlockReplay, Strategy::LocalSnapshot] {
            let (_place, home, config, before) = chain();
            fs::write(Fault::Switch.file(&home.data()), "").expect("written");
            let found = recovered_by(only, (&home, &config), &|_| {}, &mut |_, _, _| {}).expect("it is reported");
            assert!(found.outcome.recovered().is_none(), "{:?}", found.outcome.attempts);
            let after = named(&home);
            assert_ne!(after, before, "it came as far as the name");
            fs::remove_file(Fault::Switch.file(&home.data())).expect("it was written");
            for name in [before, after] {
                let restarted = tempfile::tempdir().expect("a temporary directory");
                copy(home.path(), restarted.path());
                let home = Home::new(restarted.path().to_owned());
                fs::write(home.data().join("CURRENT"), name).expect("written");
                let engine = engine::open(&home, &config, &standard()).expect("it opens");
                assert_eq!(engine.status().expect("it stands").height, 3);
                assert!(engine.block(Some(Height(1))).is_ok(), "its blocks are there");
            }
        }
    }

    /// Copies a directory.
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("made");
        for entry in fs::read_dir(from).expect("there") {
            let path = entry.expect("there").path();
            let to = to.join(path.file_name().expect("a name"));
            if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, &to).map(drop).expect("copied") }
        }
    }

    /// A database that the machine cannot read now is what there is to say, and not that nothing here says anything; of one that is
    /// damaged that it is.
    #[test]
    fn what_keeps_the_target_from_being_known_is_said() {
        for (spoil, exit) in [("a directory", Exit::Error), ("nothing", Exit::Integrity)] {
            let (_place, home, config, current) = chain();
            let generation = home.data().join(current.trim());
            fs::remove_file(generation.join("state/superblock")).expect("it is there");
            let blocks = generation.join("blocks.redb");
            fs::remove_file(&blocks).expect("it is there");
            match spoil {
                "nothing" => fs::write(&blocks, "nothing").expect("written"),
                _ => fs::create_dir(&blocks).expect("made"),
            }
            let failure = recovered_by(Strategy::LocalSnapshot, (&home, &config), &|_| {}, &mut |_, _, _| {}).err();
            let failure = failure.expect("nothing is known");
            assert!(failure.exit == exit && failure.message.contains("blocks.redb"), "{spoil}: {failure}");
        }
    }

    /// What a node does by itself it does all the same where its own audit log cannot be written, and where the producer's key cannot
    /// be read; what a user does is not begun without a record.
    #[test]
    fn a_node_recovers_without_a_record_and_without_its_producers_key() {
        let (_place, home, config, before) = chain();
        fs::remove_file(home.data().join(before.trim()).join("state/superblock")).expect("it is there");
        OwnLog::of(&home).told(Who::Node, NodeEvent::TookBack { height: Height(4) }, Stood::default());
        fs::write(home.own_log().join("HEAD"), "damaged").expect("written");
        fs::create_dir_all(home.path().join("keys")).expect("made");
        fs::write(KeyDir::new(home.path()).path(PRODUCER).expect("a name"), "damaged").expect("written");
        let (registry, keys) = (standard(), KeyDir::new(home.path()));
        let run_as = |who: Who| {
            let progress = &mut |_: Strategy, _: u64, _: u64| {};
            let stop = Stop::default();
            let wish = Wish { wanted: Wanted::Newest, root: None, only: None, keys: &keys, who, stop, progress };
            run(&home, &config, &registry, wish)
        };
        let failure = run_as(Who::User).err().expect("there is no record of it");
        assert!(failure.exit == Exit::Integrity && named(&home) == before, "{failure}");
        let found = run_as(Who::Node).expect("it is done all the same");
        assert!(found.outcome.recovered().is_some() && named(&home) != before, "{:?}", found.outcome.attempts);
    }

    /// spec: RECOVER-9. Where no report can be kept nothing is begun; where that turns out when another state counts already, it
    /// counts, and what failed is said beside it.
    #[test]
    fn a_report_that_cannot_be_kept_makes_no_recovery_a_failure() {
        let (_place, home, config, before) = chain();
        let reports = home.path().join("recoveries");
        fs::write(&reports, "in the way").expect("written");
        let replay = |progress: &mut dyn FnMut(Strategy, u64, u64)| {
            recovered_by(Strategy::BlockReplay, (&home, &config), &|_| {}, progress)
        };
        let failure = replay(&mut |_, _, _| panic!("nothing is run")).err().expect("no report can be kept");
        assert!(failure.message.contains("recoveries") && named(&home) == before, "{failure}");

        fs::remove_file(&reports).expect("it was written");
        let in_the_way = &mut |_, _, _| {
            if reports.is_dir() {
                fs::remove_dir_all(&reports).expect("it was made");
                fs::write(&reports, "in the way").expect("written");
            }
        };
        let found = replay(in_the_way).expect("another state counts");
        assert!(found.outcome.recovered().is_some() && named(&home) != before, "{:?}", found.outcome.attempts);
        assert!(
            matches!(&found.warnings[..], [warning] if warning.contains("could not write")),
            "{:?}",
            found.warnings
        );
    }
}
