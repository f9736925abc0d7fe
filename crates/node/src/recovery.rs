//! Recovery of a home whose state is lost or damaged.
//!
//! What is decided stands in [`keelstone_sync::recovery`]; here are the strategies: the snapshots of this home, what
//! other nodes have, the blocks of this home, and snapshots' files from elsewhere. Each builds in a generation aside,
//! from proven chunks and from blocks that are run again; a snapshot's own root is not believed, for the blocks on it
//! have to come to the target's. Chunks that were proven wait in one staging directory for whatever strategy comes
//! next.
//!
//! Rules: `spec/recovery.md`, RECOVER-1 to RECOVER-10.

mod blocks;
mod building;
mod elsewhere;
mod here;
mod report;
mod target;

use crate::clock::now;
use crate::config::{Config, IntegrityDepth};
use crate::exit::{Failure, causes};
use crate::generations::{Generation, Generations, Replaced};
use crate::home::Home;
use crate::interrupt::Stop;
use crate::keyfile::KeyDir;
use crate::library::{forget_above, hold_library, look_into_library};
use crate::own_log::{OwnLog, Stood, Who};
use elsewhere::{Offers, Others};
use here::version_of;
use keelstone_codec::{Height, Root, Timestamp};
use keelstone_execution::Registry;
use keelstone_ledger::{Bodies, Genesis, Ledger, LedgerError, NodeEvent, NodeStep, PoolLimits, Standing, cut};
use keelstone_store::kv::RedbKv;
use keelstone_store::{CheckLevel, Store, StoreError};
use keelstone_sync::library::Pin;
use keelstone_sync::peers::Version;
use keelstone_sync::recovery::{
    Built, Depth, Failed, Outcome, Report, SignedReport, Strategy, Target, World, by_time, recover,
};
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256};
pub(crate) use report::{failure, show, verify_report};
use report::{keep, reports, sign, signer};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

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

#[cfg(test)]
mod tests;
