//! A chain in this process: the ledger of a home directory, behind types that do not name its hasher.
//!
//! Opening one takes the lock of the data directory; a second process is told who holds it. What the chain is asked
//! is answered from immutable views, so questions never wait for a block that is being made. Which state that is may
//! change while the process runs: one that state sync restored takes the place of the empty one it began with.

mod aside;
mod beginning;
mod checked;
mod closed;
pub(crate) mod consensus;
mod inherit;
mod owner;
mod questions;
pub(crate) mod statesync;
pub(crate) mod versions;

use crate::api::{Chain, MadeBy, Refusal};
use crate::config::{Config, EngineKind, History};
use crate::exit::Failure;
use crate::generations::{Generation, Generations};
use crate::home::Home;
use crate::library::{forget_above, hold_library};
use crate::own_log::{OwnLog, Stood, Who};
use crate::session::Register;
use crate::telling::{Event, EventPlace, Told};
use crate::way::{Way, Yielding, Yields};
use crate::world::Kept;
pub(crate) use aside::{Aside, Whole, build_state, build_store, check_fits_genesis, repair, unfit};
pub(crate) use beginning::{height_on_record, refuse_to_forget};
pub(crate) use checked::{Checked, Parted};
pub(crate) use closed::{Mendable, MendedHere, check, mend_here};
use consensus::{Consensus, Ran};
use inherit::{inherit, lacks};
use keelstone_codec::{ChainId, Decode as _, Hash, Height, Root, Timestamp};
use keelstone_execution::{Activity, PublicKey, Registry};
use keelstone_ledger::{
    AuditVerdict, BlockError, Committed, Genesis, Json, KnownOfHeight, Ledger, LedgerError, NodeEvent, PoolLimits,
    Rebuilt, SecretKey, SignedAttestation, SignedTransaction, Standing, TakeError, TxId, Until,
};
use keelstone_store::files::Directory;
use keelstone_store::kv::RedbKv;
use keelstone_store::{
    CheckLevel, CheckReport, Compacted, Options, Progress, Retention, ScrubStanding, Scrubbed, Stats, Store,
    StoreError, View,
};
use keelstone_sync::delta::Delta;
use keelstone_sync::library::{Info, Library, LibraryError, Listener as Listening, Making};
use keelstone_sync::peers::{Manner, ServerLimits, Step, Version as At};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256};
use statesync::{StateSync, Syncing};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use versions::{Answers, Attests};

/// What is called with every block once it is durable.
pub(crate) type Listener = Box<dyn Fn(&Arc<Committed>) + Send + Sync>;
type Listeners = Arc<RwLock<Vec<Listener>>>;
/// What is done with a transaction that passed the checks, on a chain whose blocks another engine makes.
pub(crate) type Forwarding = Box<dyn Fn(&[u8]) -> Result<(), Refusal> + Send + Sync>;

/// What becomes of a transaction on a chain whose blocks are made elsewhere.
enum Forward {
    /// It is handed on.
    To(Forwarding),
    /// It is refused: somebody else makes the blocks.
    Refused(MadeBy),
}

/// A chain in this process, with everything its owner may do to it.
pub(crate) trait Engine: Chain + Checked + Consensus + StateSync {
    /// The name of the chain.
    fn chain_id(&self) -> &ChainId;
    /// What it began with.
    fn genesis(&self) -> &Genesis;
    /// What the last state has at places of this program that is of another type, and of namespaces it does not have.
    fn misfits(&self) -> Vec<String>;
    /// Makes the next block of what waits and is due. With neither, an empty one or none, as asked.
    fn produce(&self, time: Timestamp, producer: PublicKey, empty: bool) -> Result<Option<Arc<Committed>>, Failure>;
    /// Calls `listener` with every block once it is durable.
    fn on_commit(&self, listener: Listener);
    /// What is told of a block that is kept, from an event of its on, until that has about so many bytes. Nothing if it is behind
    /// the last of them. Unless `block` is the one, it is read, and left there for who goes on with it.
    fn events(&self, from: EventPlace, bytes_max: usize, block: &mut Option<Told>) -> Result<Vec<Event>, Refusal>;
    /// Wakes `waker` whenever a transaction was taken in. May be set once.
    fn wake_on_submit(&self, waker: SyncSender<()>);
    /// Hands what is submitted on to another engine, instead of letting it wait here. May be set once.
    fn forward_to(&self, forward: Forwarding);
    /// Which function is at work in a block that is being made.
    fn activity(&self) -> Activity;
    /// Whether a block is being made, for what gives way to it.
    fn way(&self) -> Arc<Way>;
    /// Runs blocks again, all unless told otherwise, and compares every root that is kept.
    fn replay(
        &self,
        from: Option<Height>,
        to: Option<Height>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Replayed, Failure>;
    /// Compares every record of the audit log that is kept with its block, and the whole with the state.
    fn verify_audit(&self, progress: &mut dyn FnMut(Height)) -> Result<AuditVerdict, Failure>;
    /// What is known here of an earlier height, to compare a kept checkpoint of the audit log with.
    fn known_of(&self, height: Height) -> Result<KnownOfHeight, Failure>;
    /// Hands out records of the audit log as lines, the first of which says where the log stands.
    fn export_audit(
        &self,
        from: Option<u64>,
        to: Option<u64>,
        line: &mut dyn FnMut(&serde_json::Value) -> Result<(), Failure>,
    ) -> Result<std::ops::Range<u64>, Failure>;
    /// Forgets the records of the audit log below a height; gives the place of the first that is kept.
    fn prune_audit(&self, before: Height) -> Result<u64, Failure>;
    /// Makes the chain as it was in a home of its own.
    fn rebuild(&self, until: Until, home: &Home, progress: &mut dyn FnMut(u64, u64)) -> Result<Rebuilt, Failure>;
    /// Makes an earlier height the last one again.
    fn rollback(&self, to: Height) -> Result<Root, Failure>;
    /// The imported network's state, in its own form.
    fn export_xian(&self, at: Option<Height>) -> Result<Json, Failure>;
    /// A version of the state to make a snapshot of. It stays as it is for as long as it is held.
    fn version(&self, at: Option<Height>) -> Result<Box<dyn Version>, Failure>;
    /// What changed between two heights whose states are kept.
    fn delta(&self, from: Height, to: Height) -> Result<Delta, Failure>;
    /// Figures of the store.
    fn stats(&self) -> Stats;
    /// Checks what is stored, for as long as it is to go on; none if it was not.
    fn check_while(
        &self,
        level: CheckLevel,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<CheckReport>, Failure>;
    /// Looks again at the next slice of what is stored.
    fn scrub(&self, bytes: u64) -> Result<Scrubbed, Failure>;
    /// Where that stands.
    fn scrub_standing(&self) -> ScrubStanding;
    /// Forgets the states below a height.
    fn prune(&self, before: Height) -> Result<(), Failure>;
    /// Gives back the room of what was forgotten, for as long as it is to go on.
    fn compact_while(&self, go_on: &mut dyn FnMut(Progress) -> bool) -> Result<Compacted, Failure>;
    /// Writes out what is only in the log, so that the next start is quick.
    fn flush(&self) -> Result<(), Failure>;
    /// Whoever answers peers that ask for the state.
    fn answers(self: Arc<Self>, limits: ServerLimits, attests: Attests) -> Box<dyn Answers>;
    /// A producer's word for the newest version.
    fn attest(&self, key: &SecretKey) -> Option<SignedAttestation>;
    /// Which version is the newest.
    fn stands(&self) -> Result<At, Failure>;
    /// Takes in the next height of a chain that others make. When this returns, it is durable.
    fn take(&self, step: Step, manner: Manner) -> Result<(), Untaken>;
    /// Refuses whatever is submitted: somebody else makes the blocks. May be set once, and not beside [`Engine::forward_to`].
    fn refuse(&self, made_by: MadeBy);
}

/// Why a height was not taken in.
#[derive(Debug)]
pub(crate) enum Untaken {
    /// It is not what is certified: whoever sent it is at fault.
    NotIt(String),
    /// What is certified leads elsewhere here: this state is not the chain's.
    Diverged(String),
    /// It could not be: this machine failed.
    Failed(Failure),
}

impl From<TakeError> for Untaken {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::NotIt { .. } => Self::NotIt(error.to_string()),
            TakeError::Differs { .. } => Self::Diverged(error.to_string()),
            // What is certified cannot be run: this program, or this state, is not the chain's.
            TakeError::Ledger(LedgerError::Block(error)) if !matches!(error, BlockError::Halt(_)) => {
                Self::Diverged(format!("a block that is certified cannot be run here: {error}"))
            }
            TakeError::Ledger(error) => Self::Failed(error.into()),
            error => Self::Failed(Failure::error(error.to_string())),
        }
    }
}

/// A version of the state, whatever its hasher.
pub(crate) trait Version: Send {
    /// Its height.
    fn height(&self) -> Height;
    /// Makes a snapshot of it.
    fn snapshot(&self, library: &Library, making: &Making, listener: Listening<'_>) -> Result<Info, LibraryError>;
}

/// A version that is held, whose snapshot gives way to blocks.
pub(crate) struct Held<H: Hasher> {
    pub(crate) view: View<H>,
    pub(crate) params: SnapshotParams,
    pub(crate) way: Arc<Way>,
}

impl<H: Hasher> Version for Held<H> {
    fn height(&self) -> Height {
        self.view.height().unwrap_or_default()
    }

    fn snapshot(&self, library: &Library, making: &Making, listener: Listening<'_>) -> Result<Info, LibraryError> {
        let yielding = Yielding::to(&self.way);
        let view = Yields { view: &self.view, yielding: &yielding };
        let mut listener = |progress| {
            yielding.step();
            listener(progress)
        };
        library.create(&view, &self.params, self.height(), self.view.root(), making, &mut listener)
    }
}

/// Opens the database of blocks of a generation that counts. None there is damage, as it is of a state: it was made before the
/// generation was named, and one that is made anew looks whole.
// spec: STORE-10, HISTORY-1
fn open_counted_blocks(generation: &Generation) -> Result<RedbKv, StoreError> {
    if generation.has_blocks() {
        return RedbKv::open(&generation.blocks());
    }
    let what = "the blocks and receipts of the state that counts were there".to_owned();
    Err(StoreError::Lost { file: generation.blocks().display().to_string(), what })
}

/// Opens the store of a generation that counts. None there, or one without a height, is damage: what counts had one.
pub(crate) fn open_counted<H: Hasher>(path: &Path, options: Options) -> Result<Store<H>, StoreError> {
    let file = path.display().to_string();
    let lost = |what: String| StoreError::Lost { file: file.clone(), what };
    let directory = Directory::existing(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => lost("the state that counts was there".to_owned()),
        _ => StoreError::Io { doing: "open", file: file.clone(), source: Arc::new(error) },
    })?;
    let store = match Store::open(Arc::new(directory), options) {
        Err(error @ (StoreError::Missing { .. } | StoreError::Empty)) => return Err(lost(error.to_string())),
        opened => opened.map_err(|error| error.within(path))?,
    };
    if let Some(what) = store.superblock_repaired() {
        tracing::error!(%what, place = file, "a slot of the superblock was damaged, and was written anew from the other");
    }
    Ok(store)
}

/// What a replay came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replayed {
    /// The first height.
    pub(crate) from: Height,
    /// The last height.
    pub(crate) to: Height,
    /// What lay between, both included.
    pub(crate) replayed: keelstone_ledger::Replayed,
}

/// Opens the chain of a home directory, or begins it if it has a genesis and no data.
pub(crate) fn open(home: &Home, config: &Config, registry: &Registry) -> Result<Arc<dyn Engine>, Failure> {
    open_as(home, config, registry, (false, None))
}

/// As [`open`], by whoever holds the home already.
pub(crate) fn open_held(
    held: Generations,
    home: &Home,
    config: &Config,
    registry: &Registry,
) -> Result<Arc<dyn Engine>, Failure> {
    open_as(home, config, registry, (false, Some(held)))
}

/// As [`open`], for an engine that may have the chain's state from its peers: one that inherits a state can be opened
/// without it, and then does nothing but join.
pub(crate) fn open_to_join(home: &Home, config: &Config, registry: &Registry) -> Result<Arc<dyn Engine>, Failure> {
    open_as(home, config, registry, (true, None))
}

/// Whether it is opened to join, and the home, if it is held.
type As = (bool, Option<Generations>);

fn open_as(home: &Home, config: &Config, registry: &Registry, how: As) -> Result<Arc<dyn Engine>, Failure> {
    let genesis = home.read_genesis()?;
    match genesis.hasher {
        HashKind::Blake3 => Ok(Arc::new(Local::<Blake3>::open(home, config, registry, genesis, how)?)),
        HashKind::Sha256 => Ok(Arc::new(Local::<Sha256>::open(home, config, registry, genesis, how)?)),
    }
}

/// What a chain is begun from.
struct Origins<'a> {
    home: &'a Home,
    genesis: &'a Genesis,
    /// Whether a chain that inherits a state may do without it for now.
    joining: bool,
}

impl Origins<'_> {
    /// Whether the state that is inherited is not here, and need not be.
    fn is_hollow(&self) -> bool {
        self.joining && self.genesis.inherits.is_some() && !self.home.inherited().exists()
    }
}

/// The chain of a home directory.
pub(crate) struct Local<H: Hasher> {
    /// The state that counts. Replaced as a whole when a restored one takes its place.
    pub(crate) live: RwLock<Live<H>>,
    pub(crate) generations: Generations,
    pub(crate) genesis: Genesis,
    registry: Registry,
    /// [`Registry::interface`].
    interface: Hash,
    pub(crate) options: Options,
    joining: bool,
    pool: PoolLimits,
    shared: Shared,
    /// The right to run a bundle that nobody sent.
    witnessing: Mutex<()>,
    waker: OnceLock<SyncSender<()>>,
    forward: OnceLock<Forward>,
    /// The block an engine has decided and not yet committed.
    pub(crate) ran: Mutex<Option<Ran<H>>>,
    /// Blocks go first.
    pub(crate) way: Arc<Way>,
    /// What state sync is at.
    pub(crate) syncing: Mutex<Syncing<H>>,
    /// Percent of the disk that stay free when a snapshot is taken over.
    pub(crate) reserve_percent: u64,
    home: Home,
    /// What queries look the world up by: of the root they belong to, whichever generation that is in.
    indexes: Arc<Kept>,
}

/// What one ledger after the other has from its node.
#[derive(Clone)]
struct Shared {
    activity: Activity,
    listeners: Listeners,
    threads: NonZeroUsize,
}

/// A generation and the ledger over it.
pub(crate) struct Live<H: Hasher> {
    pub(crate) generation: Generation,
    pub(crate) ledger: Arc<Ledger<H>>,
}

impl<H: Hasher> Drop for Local<H> {
    fn drop(&mut self) {
        self.own_log().stands_at(self.ledger().height());
    }
}

impl<H: Hasher> Local<H> {
    fn open(
        home: &Home,
        config: &Config,
        registry: &Registry,
        genesis: Genesis,
        (joining, held): As,
    ) -> Result<Self, Failure> {
        let expected = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?.hash;
        let options = store_options(config);
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let pool = PoolLimits {
            count_max: count(config.mempool.transactions_max),
            bytes_max: count(config.mempool.bytes_max),
            per_sender_max: count(config.mempool.sender_transactions_max),
        };
        // Its lock is the one that tells who holds the directory.
        let generations = held.map_or_else(|| Generations::open(&home.data()), Ok)?;
        let shared = Shared {
            activity: Activity::default(),
            listeners: Arc::new(RwLock::default()),
            threads: threads(config.execution.threads),
        };
        let origins = Origins { home, genesis: &genesis, joining };
        let live = match generations.current()? {
            Some(generation) if !generation.is_hollow() || origins.is_hollow() => {
                Live::open(generation, registry, &options, pool, &shared)?
            }
            // None yet, or one that has to be whole now.
            hollow => {
                if hollow.is_none() && config.engine.kind == EngineKind::Solo {
                    refuse_to_forget(home, &genesis)?;
                }
                let generation = generations.fresh()?;
                let live = Live::create(generation, registry, &origins, &options, pool, &shared)?;
                generations.switch(&live.generation)?;
                hollow.map_or(Ok(()), |hollow| generations.discard(&hollow))?;
                live
            }
        };
        if live.ledger.genesis_hash() != expected {
            let found = live.ledger.genesis_hash();
            let message = format!("genesis.json has hash {expected}, the data belongs to {found}");
            return Err(Failure::usage(message));
        }
        // It is in nobody's way but that of whoever takes a snapshot for the chain's, and tried again at the next start.
        if let Err(failure) = live.forget_what_was_above(home) {
            tracing::warn!(%failure, "snapshots of a history that is no more could not be removed");
        }
        if let Some(height) = live.ledger.taken_back() {
            let after = Some(Standing { height: live.ledger.height(), root: live.ledger.root() });
            OwnLog::of(home).told(Who::Node, NodeEvent::TookBack { height }, Stood { before: None, after });
        }
        let indexes = Arc::new(Kept::default());
        let following = indexes.clone();
        let follow: Listener = Box::new(move |committed| following.follow(committed));
        shared.listeners.write().unwrap_or_else(PoisonError::into_inner).push(follow);
        // On record beside the data before there is a block that could be lost with it.
        let own = OwnLog::of(home);
        own.stands_at(live.ledger.height());
        let (first, base) = (AtomicBool::new(true), live.ledger.height());
        let note_first: Listener = Box::new(move |committed| {
            let height = committed.block.height;
            if first.swap(false, Ordering::Relaxed) && height > base {
                own.stands_at(height);
            }
        });
        shared.listeners.write().unwrap_or_else(PoisonError::into_inner).push(note_first);
        Ok(Self {
            live: RwLock::new(live),
            generations,
            genesis,
            registry: registry.clone(),
            interface: registry.interface(),
            options,
            joining,
            pool,
            shared,
            witnessing: Mutex::new(()),
            waker: OnceLock::new(),
            forward: OnceLock::new(),
            ran: Mutex::new(None),
            way: Arc::default(),
            syncing: Mutex::default(),
            reserve_percent: config.snapshots.reserve_percent,
            home: home.clone(),
            indexes,
        })
    }

    /// The node's own audit log.
    pub(crate) fn own_log(&self) -> OwnLog {
        OwnLog::of(&self.home)
    }

    /// The state that counts at this moment.
    pub(crate) fn live(&self) -> Live<H> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where chunks wait until a snapshot is whole.
    pub(crate) fn staging(&self) -> PathBuf {
        self.home.data().join("staging")
    }

    /// The ledger over a store that was built in a generation.
    pub(crate) fn over(&self, generation: Generation, store: Store<H>) -> Result<Live<H>, Failure> {
        let kv = Arc::new(RedbKv::open(&generation.blocks())?);
        let ledger = Ledger::open(store, kv, self.registry.clone(), self.pool)?;
        Ok(Live::over(generation, ledger, &self.shared))
    }

    /// The chain of the genesis in a generation of its own.
    pub(crate) fn begun_anew(&self, generation: Generation) -> Result<Live<H>, Failure> {
        Live::create(
            generation,
            &self.registry,
            &Origins { home: &self.home, genesis: &self.genesis, joining: self.joining },
            &self.options,
            self.pool,
            &self.shared,
        )
    }

    /// Refuses what a state that lacks the inherited one cannot be asked for.
    pub(crate) fn check_whole(&self) -> Result<(), Failure> {
        match &self.genesis.inherits {
            Some(inherited) if self.live().generation.is_hollow() => Err(lacks(inherited, &self.home.inherited())),
            _ => Ok(()),
        }
    }

    /// The ledger that counts at this moment.
    pub(crate) fn ledger(&self) -> Arc<Ledger<H>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).ledger.clone()
    }

    fn view(&self, at: Option<Height>) -> Result<keelstone_store::View<H>, Refusal> {
        match at {
            None => Ok(self.ledger().view()),
            Some(height) => Ok(self.ledger().view_at(height)?),
        }
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The sessions of the last state.
    fn register(&self) -> Register<'_> {
        let ledger = self.ledger();
        let view = ledger.view();
        let height = view.height().unwrap_or_default();
        Register::of(view, self.registry(), ledger.facts().chain_id.clone(), height)
    }

    fn lowest(&self) -> Height {
        self.ledger().store().low().unwrap_or_default()
    }

    /// Lets a transaction wait for a block, or hands it on to who makes them.
    fn take_in(&self, transaction: &[u8]) -> Result<TxId, Refusal> {
        match self.forward.get() {
            None => {}
            Some(Forward::Refused(made_by)) => return Err(Refusal::Follows(made_by.clone())),
            Some(Forward::To(forward)) => {
                let id = self.ledger().check(transaction)?.id();
                forward(transaction)?;
                return Ok(id);
            }
        }
        let id = self.ledger().submit(transaction)?;
        if let Some(waker) = self.waker.get() {
            // Full means: already woken.
            let _ = waker.try_send(());
        }
        Ok(id)
    }

    /// Whether these very bytes wait for a block, or are in one: then they have an identity here.
    fn had(&self, transaction: &[u8]) -> Result<Option<TxId>, Refusal> {
        let Ok(signed) = SignedTransaction::from_bytes(transaction) else { return Ok(None) };
        let (ledger, id) = (self.ledger(), signed.id());
        // In this order: it is in the block before it waits no longer.
        let found = match ledger.waiting(&id) {
            Some(waiting) => Some(waiting),
            None => ledger.transaction(&id)?.map(|located| located.transaction),
        };
        Ok(found.filter(|found| *found == signed).map(|_| id))
    }

    /// What is said of a transaction of which nothing is known here: not that there is none, if there are blocks that this node does
    /// not have.
    // spec: SNAP-13
    fn no_transaction(&self, id: &TxId) -> Result<String, Refusal> {
        let ledger = self.ledger();
        let first = ledger.facts().initial_height;
        Ok(match ledger.lowest_block()? {
            Some(lowest) if lowest > first => format!(
                "there is no transaction {id} in the blocks of this node, which begin at {lowest}; \
                 a node that has those from {first} on knows of all"
            ),
            None if ledger.height() >= first => format!(
                "this node has no blocks, so it does not know of transaction {id}; a node that has those from {first} on does"
            ),
            _ => format!("there is no transaction {id}"),
        })
    }

    /// Why there is no block of a height: with the heights of which there are, if it is above or below those.
    fn no_block(&self, error: LedgerError) -> Refusal {
        let (LedgerError::NoBlock { height } | LedgerError::NotYet { height, .. }) = error else { return error.into() };
        let ledger = self.ledger();
        let highest = ledger.height();
        let first = match ledger.lowest_block() {
            Ok(first) => first,
            Err(error) => return error.into(),
        };
        // A node that takes heights in without their blocks knows their roots and has no block at all.
        let never_had = match (first, self.ledger().root_on_record(height)) {
            (_, Err(error)) => return error.into(),
            (Some(first), _) => first <= height && height <= highest,
            (None, Ok(root)) => root.is_some(),
        };
        if never_had && height > ledger.genesis_height() {
            return error.into();
        }
        let lowest = first.unwrap_or_else(|| highest.next());
        match height <= ledger.genesis_height() {
            true => Refusal::NoBlock { asked: height.0, lowest: lowest.0, highest: highest.0 },
            false => Refusal::Height { asked: height.0, lowest: lowest.0, highest: highest.0 },
        }
    }
}

/// What a configuration says of the store.
pub(crate) fn store_options(config: &Config) -> Options {
    Options {
        cache_bytes: config.store.cache_bytes,
        history: match config.store.history {
            History::All => Retention::All,
            History::Heights(heights) => Retention::Heights(heights),
        },
        ..Options::default()
    }
}

/// How many threads run functions: as configured, or one for each processor.
fn threads(configured: u64) -> NonZeroUsize {
    let configured = usize::try_from(configured).ok().and_then(NonZeroUsize::new);
    configured.unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

impl<H: Hasher> Clone for Live<H> {
    fn clone(&self) -> Self {
        Self { generation: self.generation.clone(), ledger: self.ledger.clone() }
    }
}

impl<H: Hasher> Live<H> {
    /// Removes the snapshots above the height that the state was put back to, where whoever put it back was cut off before that.
    // spec: STORE-5
    fn forget_what_was_above(&self, home: &Home) -> Result<(), Failure> {
        let Some(height) = self.generation.put_back()? else { return Ok(()) };
        if self.ledger.height() == height {
            forget_above(hold_library(home)?, home, height)?;
        }
        self.generation.settle_put_back()
    }

    /// Begins the chain of a genesis in an empty generation.
    fn create(
        generation: Generation,
        registry: &Registry,
        origins: &Origins<'_>,
        options: &Options,
        pool: PoolLimits,
        shared: &Shared,
    ) -> Result<Self, Failure> {
        let Origins { home, genesis, .. } = origins;
        let ledger = match &genesis.inherits {
            Some(_) if origins.is_hollow() => {
                generation.mark_hollow()?;
                let (store, kv) = Self::parts(&generation, options, true)?;
                let own = genesis.first_state().map_err(LedgerError::from)?;
                store.commit(own.height, own.diff)?;
                Ledger::open(store, kv, registry.clone(), pool)?
            }
            None => {
                let (store, kv) = Self::parts(&generation, options, true)?;
                Ledger::create(store, kv, registry.clone(), genesis, pool)?
            }
            Some(inherited) => {
                let store = inherit::<H>(genesis, inherited, &home.inherited(), &generation, options)?;
                Ledger::open(store, Arc::new(RedbKv::open(&generation.blocks())?), registry.clone(), pool)?
            }
        };
        Ok(Self::over(generation, ledger, shared))
    }

    /// Opens what a generation holds.
    fn open(
        generation: Generation,
        registry: &Registry,
        options: &Options,
        pool: PoolLimits,
        shared: &Shared,
    ) -> Result<Self, Failure> {
        let (store, kv) = Self::parts(&generation, options, false)?;
        let ledger = Ledger::open(store, kv, registry.clone(), pool)?;
        Ok(Self::over(generation, ledger, shared))
    }

    fn parts(generation: &Generation, options: &Options, fresh: bool) -> Result<(Store<H>, Arc<RedbKv>), Failure> {
        let state = generation.state();
        let (store, blocks) = match fresh {
            true => {
                let directory = Directory::new(&state).map_err(|error| Failure::io(state.display(), &error))?;
                (Store::create(Arc::new(directory), options.clone())?, RedbKv::open(&generation.blocks())?)
            }
            false => (open_counted(&state, options.clone())?, open_counted_blocks(generation)?),
        };
        Ok((store, Arc::new(blocks)))
    }

    fn over(generation: Generation, ledger: Ledger<H>, shared: &Shared) -> Self {
        let ledger = ledger.watched(&shared.activity).on_threads(shared.threads);
        let listeners = shared.listeners.clone();
        if let Some(height) = ledger.taken_back() {
            tracing::warn!(%height, "the last block was not whole when the power or the process went, so it is taken back");
        }
        ledger.on_commit(move |committed| {
            for listener in listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
                listener(committed);
            }
        });
        Self { generation, ledger: Arc::new(ledger) }
    }
}

#[cfg(test)]
mod tests;
