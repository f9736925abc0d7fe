//! A chain in this process: the ledger of a home directory, behind types that do not name its hasher.
//!
//! Opening one takes the lock of the data directory; a second process is told who holds it. What the chain is asked
//! is answered from immutable views, so questions never wait for a block that is being made. Which state that is may
//! change while the process runs: one that state sync restored takes the place of the empty one it began with.

mod checked;
mod closed;
pub(crate) mod consensus;
pub(crate) mod statesync;
pub(crate) mod versions;

use crate::api::{self, Chain, ENTRIES_BYTES_MAX, MadeBy, Page, Refusal};
use crate::audit;
use crate::bundle::{show_bundle, show_continuation, show_operation, show_operation_proof, show_receipt};
use crate::call;
use crate::config::{Config, EngineKind, History};
use crate::exit::Failure;
use crate::generations::{Generation, Generations, Replaced};
use crate::home::Home;
use crate::library::{forget_above, hold_library, look_into_library, snapshot_params};
use crate::misfits;
use crate::own_log::{OwnLog, Stood, Who};
use crate::session::Register;
use crate::telling::{Event, EventPlace, Told};
use crate::way::{Way, Yielding, Yields};
use crate::world::Kept;
pub(crate) use checked::{Checked, Parted};
pub(crate) use closed::{Mendable, MendedHere, check, mend_here};
use consensus::{Consensus, Ran};
use keelstone_codec::{ChainId, Decode as _, Encode as _, Hash, Height, Key, Namespace, Root, StateHash, Timestamp};
use keelstone_execution::{Activity, BundleId, PublicKey, Registry, Session, SessionId};
use keelstone_ledger::{
    AuditVerdict, BlockError, BlockRecord, ChangedBy, Committed, Genesis, GenesisError, Inherited, Json, KeyChange,
    KnownOfHeight, Ledger, LedgerError, LoggedRecord, NodeEvent, PoolLimits, Rebuilt, SecretKey, SignedAttestation,
    SignedTransaction, Standing, TakeError, Transaction, TxId, Unfit, Until, Witness, check_fits, xian,
};
use keelstone_store::files::Directory;
use keelstone_store::kv::RedbKv;
use keelstone_store::{
    CheckLevel, CheckReport, Compacted, Options, Progress, RepairError, Repaired, RepairedFrom, Retention,
    ScrubStanding, Scrubbed, Source, Stats, Store, StoreError, Take, View,
};
use keelstone_sync::delta::Delta;
use keelstone_sync::library::{Each, Expected, Info, Library, LibraryError, Listener as Listening, Making, Origin};
use keelstone_sync::peers::{Change, Manner, ServerLimits, Step, Version as At};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{Blake3, Diff, HashKind, Hasher, Query, Read, Sha256};
use statesync::{StateSync, Syncing};
use std::fs::File;
use std::io::{self, BufReader, Seek as _};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, TryLockError};
use versions::{Answers, Attests};

/// Bytes of a witness that is given out: in hexadecimal it has to fit into an answer.
const WITNESS_BYTES_MAX: usize = 24 << 20;

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
    /// Gives back the room of what was forgotten.
    fn compact(&self, progress: &mut dyn FnMut(Progress)) -> Result<Compacted, Failure>;
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

/// What a home beside its state says of the height its chain had: what its own log says last, or the highest of its snapshots.
///
/// # Errors
/// An integrity failure if the log is damaged: what it says then is not known.
pub(crate) fn height_on_record(home: &Home) -> Result<Option<(Height, PathBuf)>, Failure> {
    let own = OwnLog::of(home).last_height()?.map(|height| (height, home.own_log()));
    let snapshot = highest_snapshot(home)?.map(|height| (height, home.snapshots()));
    Ok(snapshot.into_iter().chain(own).max_by_key(|(height, _)| *height))
}

fn highest_snapshot(home: &Home) -> Result<Option<Height>, Failure> {
    let snapshots = look_into_library(home)?.map_or_else(Vec::new, |(library, _)| library.list());
    Ok(snapshots.first().map(|info| info.id.height))
}

/// Refuses to begin the chain of a home that had a state, and lost it: a second history of blocks made here would be one that
/// contradicts the first.
// spec: STORE-10
pub(crate) fn refuse_to_forget(home: &Home, genesis: &Genesis) -> Result<(), Failure> {
    let Some(base) = genesis.initial_height.prev().filter(|_| genesis.validators.is_empty()) else { return Ok(()) };
    let data = home.data();
    let said = OwnLog::of(home).last_height()?;
    if let Some(height) = said.filter(|height| *height > base) {
        let (data, place) = (data.display(), home.own_log());
        let message =
            format!("there is no state in {data}, and {} says that there was one of height {height}", place.display());
        let hint = "bring it back, or put one in its place: keelstone recover --to HEIGHT --root ROOT --yes, or keelstone \
                    snapshot restore HEIGHT --yes. To begin the chain anew, move data/ and audit/ away";
        return Err(Failure::integrity(message).hint(hint));
    }
    // One may be from elsewhere: that there was a state here it does not say.
    let Some(height) = highest_snapshot(home)?.filter(|height| *height > base) else { return Ok(()) };
    let (data, place) = (data.display(), home.snapshots());
    let message = format!("there is no state in {data}, and {} has a snapshot of height {height}", place.display());
    let hint = format!(
        "keelstone snapshot restore {height} --yes begins with it. To begin the chain at its genesis, move data/ away"
    );
    Err(Failure::usage(message).hint(hint))
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

/// Hands the entries of a state over to whoever wants them, in order.
pub(crate) type Feed<'a> = &'a mut dyn FnMut(Each<'_>) -> Result<(), Failure>;

/// Builds a store of a state in an empty directory. Its root is computed anew, and compared; and so is what it says of its chain
/// and its height, and of the genesis if one is expected. Gives the height of the last block in it.
// spec: SNAP-19
pub(crate) fn build_state(
    genesis: Option<&Genesis>,
    hasher: HashKind,
    directory: Arc<Directory>,
    target: (Height, Root),
    feed: Feed<'_>,
) -> Result<Option<Height>, Failure> {
    match hasher {
        HashKind::Blake3 => build_with::<Blake3>(genesis, directory, target, feed),
        HashKind::Sha256 => build_with::<Sha256>(genesis, directory, target, feed),
    }
}

/// As [`build_state`], of whatever genesis, for whoever goes on with the store.
pub(crate) fn build_store<H: Hasher, E: From<StoreError>>(
    directory: Arc<Directory>,
    options: Options,
    (height, root): (Height, Root),
    feed: &mut dyn FnMut(Each<'_>) -> Result<(), E>,
) -> Result<Store<H>, E> {
    let place = directory.path().to_owned();
    let within = |error: StoreError| error.within(&place);
    let mut building = Store::<H>::build(directory, options, height).map_err(within)?;
    let mut failed = None;
    let fed = feed(&mut |namespace: &Namespace, key: &[u8], value: &[u8]| {
        let key = Key::new(key).expect("a proven entry has a key");
        building.push(namespace, &key, value).map_err(|error| {
            failed = Some(error);
            LibraryError::Stopped
        })
    });
    if let Some(error) = failed {
        return Err(within(error).into());
    }
    fed?;
    Ok(building.finish(root).map_err(within)?)
}

fn build_with<H: Hasher>(
    genesis: Option<&Genesis>,
    directory: Arc<Directory>,
    target: (Height, Root),
    feed: Feed<'_>,
) -> Result<Option<Height>, Failure> {
    let store = build_store::<H, Failure>(directory, Options::default(), target, feed)?;
    let chain = match genesis {
        None => check_fits(&store.view(), target.0, None).map_err(unfit)?,
        Some(genesis) => check_fits_genesis(&store.view(), target.0, genesis)?,
    };
    Ok(chain.tip)
}

/// Checks that a state from elsewhere can be that of the chain of a genesis at a height.
// spec: SNAP-19
pub(crate) fn check_fits_genesis(
    state: &dyn keelstone_tree::Read,
    height: Height,
    genesis: &Genesis,
) -> Result<keelstone_ledger::Chain, Failure> {
    let hash = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?.hash;
    check_fits(state, height, Some((&genesis.facts(), hash))).map_err(unfit)
}

/// Whoever handed the state over is at fault, or gave the genesis of another chain beside it.
pub(crate) fn unfit(error: Unfit) -> Failure {
    match error {
        Unfit::NoChain | Unfit::OtherGenesis { .. } => Failure::usage(error.to_string()),
        Unfit::Read(error) => StoreError::from(error).into(),
        error => Failure::integrity(error.to_string()),
    }
}

/// Builds the first state of a chain that begins with another's, from an archive nobody has to trust: every entry is
/// proven under the root that the genesis names before it is taken, and there is no state before that is true of all.
// spec: GENESIS-4
fn inherit<H: Hasher>(
    genesis: &Genesis,
    inherited: &Inherited,
    archive: &Path,
    generation: &Generation,
    options: &Options,
) -> Result<Store<H>, Failure> {
    let mut file = match File::open(archive) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(lacks(inherited, archive)),
        Err(error) => return Err(Failure::io(format_args!("could not read {}", archive.display()), &error)),
    };
    let expected = Expected { params: None, root: Some(inherited.root) };
    let info = Origin::Tar(&mut file).inspect(&expected)?;
    for (what, found, stated) in [
        ("hasher", info.hasher.to_string(), genesis.hasher.to_string()),
        ("number of entries", info.totals.count.to_string(), inherited.entries.to_string()),
        ("bytes of entries", info.totals.bytes.to_string(), inherited.bytes.to_string()),
    ] {
        if found != stated {
            return Err(LibraryError::Foreign { what, found, expected: stated }.into());
        }
    }
    file.rewind().map_err(|error| Failure::io(format_args!("could not read {}", archive.display()), &error))?;

    let first = genesis.first_state().map_err(LedgerError::from)?;
    let directory = Directory::new(generation.state()).map_err(|error| Failure::io(archive.display(), &error))?;
    let mut building = Store::<H>::build(Arc::new(directory), options.clone(), first.height)?;
    let mut put = |namespace: &Namespace, key: &Key, value: &[u8]| building.push(namespace, key, value);
    let mut inheriting = first.inheriting();
    let mut failed = None;
    let mut each = |namespace: &Namespace, key: &[u8], value: &[u8]| {
        let key = Key::new(key).expect("a proven entry has a key");
        inheriting.entry(namespace, &key, value, &mut put).map_err(|error| {
            failed = Some(error);
            LibraryError::Stopped
        })
    };
    let read = Origin::Tar(&mut file).entries(&expected, &mut each, &mut |_| ControlFlow::Continue(()));
    if let Some(error) = failed {
        return Err(error.into());
    }
    read?;
    inheriting.finish(&mut put)?;
    Ok(building.finish_as_found()?)
}

/// What a chain that inherits a state cannot do without it.
fn lacks(inherited: &Inherited, archive: &Path) -> Failure {
    let message = format!("{}: there is no {}", GenesisError::Inherits(inherited.clone()), archive.display());
    Failure::usage(message).hint("keelstone snapshot export writes it on a node of that chain; or join by state sync")
}

/// A generation beside the one that counts, for a state to be built in.
pub(crate) struct Aside {
    generations: Generations,
    generation: Generation,
    /// What counts until then.
    replaced: Replaced,
}

impl Aside {
    /// Takes the home for this process, also one of which nobody knows what counts in it.
    pub(crate) fn of(home: &Home) -> Result<Self, Failure> {
        let (generations, replaced) = Generations::open_to_replace(&home.data())?;
        if replaced.damage.is_none() {
            generations.sweep()?;
        }
        let generation = generations.fresh()?;
        Ok(Self { generations, generation, replaced })
    }

    /// Whether there is a state whose place this would take, or was one.
    pub(crate) fn replaces(&self) -> bool {
        self.replaced.generation.is_some() || self.replaced.damage.is_some()
    }

    /// Where to build the state.
    pub(crate) fn directory(&self) -> Result<Arc<Directory>, Failure> {
        let state = self.generation.state();
        Ok(Arc::new(Directory::new(&state).map_err(|error| Failure::io(state.display(), &error))?))
    }

    /// Notes that somebody who trusts the root had this state built.
    pub(crate) fn mark_given(&self, height: Height, root: Root) -> Result<(), Failure> {
        self.generation.mark_given(height, root)
    }

    /// Removes what was built so far, to build it again.
    pub(crate) fn begin_again(&self) -> Result<(), Failure> {
        let state = self.generation.state();
        std::fs::remove_dir_all(&state).map_err(|error| Failure::io(state.display(), &error))
    }

    /// Removes what was built so far.
    pub(crate) fn give_up(&self) {
        // What cannot be removed now does not count, and is swept at the next start.
        let _ = self.generations.discard(&self.generation);
    }

    /// Takes over what lies beside the state in the generation that counts: blocks, receipts, notes.
    pub(crate) fn take_over_files(&self) -> Result<(), Failure> {
        let current = self.replaced.generation.as_ref();
        current.map_or(Ok(()), |current| self.generation.take_over_files(current))
    }

    /// As [`Self::settle`], of a state of an earlier height: snapshots above it go with the history that they are of, at the next
    /// start if whoever does this is cut off.
    // spec: STORE-5
    pub(crate) fn settle_at(self, height: Height) -> Result<Vec<String>, Failure> {
        self.generation.mark_put_back(height)?;
        self.settle()
    }

    /// Makes what was built the home's state, and removes what it replaces. Says what is to be said of that: why it could not be
    /// removed, for by then it does not count, and the next start removes it; and where blocks of it are kept.
    // spec: STORE-10, RECOVER-9
    pub(crate) fn settle(self) -> Result<Vec<String>, Failure> {
        // What counts is whole: whoever opens it has nothing to make.
        if !self.generation.has_blocks() {
            RedbKv::open(&self.generation.blocks())?;
        }
        let mut said = Vec::new();
        if self.replaced.generation.is_none() || self.replaced.damage.is_some() {
            // Nobody knows which of them counts, and so nobody gave up its blocks.
            for counted in self.generations.counted()?.iter().filter(|counted| counted.has_blocks()) {
                let kept = self.generations.keep_blocks(counted)?;
                said.push(format!("what there is of blocks and receipts is kept in {}", kept.display()));
            }
        }
        self.generations.switch(&self.generation)?;
        let left = self.generations.sweep().unwrap_or_else(Some);
        said.extend(left.map(|failure| failure.message));
        Ok(said)
    }
}

/// A state from elsewhere that a damaged one may be repaired from.
pub(crate) struct Whole<'a> {
    /// Its height.
    pub(crate) height: Height,
    /// Its root.
    pub(crate) root: Root,
    pub(crate) entries: HandOver<'a>,
}

/// Hands over the entries of a state, in order.
pub(crate) type HandOver<'a> = Box<dyn Fn(Take<'_>) -> Result<(), StoreError> + 'a>;

/// A state that was made whole.
pub(crate) struct Mended {
    pub(crate) from: RepairedFrom,
    pub(crate) height: Height,
    pub(crate) root: Root,
    /// Heights whose states are lost: from the first to before the second.
    pub(crate) lost: Option<(Height, Height)>,
}

/// Makes of the state that counts, which is damaged, a whole one aside.
pub(crate) fn repair(
    aside: &Aside,
    genesis: &Genesis,
    config: &Config,
    wholes: &[Whole<'_>],
    progress: &mut dyn FnMut(Progress),
) -> Result<Mended, RepairError> {
    match genesis.hasher {
        HashKind::Blake3 => repair_with::<Blake3>(aside, config, wholes, progress),
        HashKind::Sha256 => repair_with::<Sha256>(aside, config, wholes, progress),
    }
}

fn repair_with<H: Hasher>(
    aside: &Aside,
    config: &Config,
    wholes: &[Whole<'_>],
    progress: &mut dyn FnMut(Progress),
) -> Result<Mended, RepairError> {
    let missing = StoreError::Missing { file: "superblock" };
    let damaged = aside.replaced.generation.as_ref().ok_or(missing)?.state();
    let open = |path: &Path| {
        let io = |source: io::Error| StoreError::Io {
            doing: "open",
            file: path.display().to_string(),
            source: Arc::new(source),
        };
        Ok::<_, StoreError>(Arc::new(Directory::new(path).map_err(io)?))
    };
    let mut entries: Vec<_> = wholes.iter().map(|whole| |take: Take<'_>| (whole.entries)(take)).collect();
    let sources = wholes.iter().zip(&mut entries);
    let mut sources: Vec<Source<'_>> =
        sources.map(|(whole, entries)| Source { height: whole.height, root: whole.root, entries }).collect();
    let (damaged, into) = (open(&damaged)?, open(&aside.generation.state())?);
    let repaired = Store::<H>::repair(damaged, into, &store_options(config), &mut sources, progress)?;
    let Repaired { store, from, lost } = repaired;
    let mended = Mended { from, height: store.height().unwrap_or_default(), root: store.root(), lost };
    store.close()?;
    Ok(mended)
}

/// What says of a directory that a chain is being rebuilt in it.
const REBUILDING: &str = "rebuilding";

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

// ---- questions ---------------------------------------------------------------------------------------------------

impl<H: Hasher> Chain for Local<H> {
    fn status(&self) -> Result<api::Status, Refusal> {
        let view = self.ledger().view();
        let (totals, pool) = (view.totals(), self.ledger().pool());
        Ok(api::Status {
            chain_id: self.ledger().facts().chain_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            application: None,
            hasher: H::KIND.to_string(),
            genesis_hash: self.ledger().genesis_hash().to_string(),
            interface: self.interface.to_string(),
            height: view.height().unwrap_or_default().0,
            lowest_height: self.lowest().0,
            root: view.root().0.to_string(),
            time: self.ledger().time().0,
            entries: totals.count,
            entry_bytes: totals.bytes,
            waiting: u64::try_from(pool.count).unwrap_or(u64::MAX),
            ready: u64::try_from(pool.ready).unwrap_or(u64::MAX),
            scrub: Some(self.scrub_standing().into()),
            snapshots: None,
            failed: None,
            following: None,
            engine: None,
            api: None,
        })
    }

    fn submit(&self, transaction: &[u8]) -> Result<api::Submitted, Refusal> {
        let id = match self.take_in(transaction) {
            // Whoever did not hear the answer sends it again, and it can take effect only once.
            Err(refusal @ Refusal::Refused { .. }) => self.had(transaction)?.ok_or(refusal)?,
            taken => taken?,
        };
        Ok(api::Submitted { id: id.to_string() })
    }

    fn entry(&self, namespace: &Namespace, key: &Key, at: Option<Height>, prove: bool) -> Result<api::Entry, Refusal> {
        let view = self.view(at)?;
        let value = view.get(namespace, key)?;
        let proof = match prove {
            true => Some(view.prove(&[Query::Key(namespace.clone(), key.clone())])?),
            false => None,
        };
        Ok(api::Entry {
            namespace: namespace.to_string(),
            key: hex::encode(key),
            height: view.height().unwrap_or_default().0,
            root: view.root().0.to_string(),
            hasher: H::KIND.to_string(),
            text: value.as_ref().and_then(|value| readable(self.registry(), namespace, key, value)),
            value: value.map(|value| hex::encode(&value)),
            proof: proof.map(|proof| hex::encode(proof.as_bytes())),
        })
    }

    fn entries(
        &self,
        namespace: &Namespace,
        page: &Page,
        at: Option<Height>,
        prove: bool,
    ) -> Result<api::Entries, Refusal> {
        let view = self.view(at)?;
        let (mut entries, mut bytes, mut last, mut more) = (Vec::new(), 0, None, false);
        for found in view.scan(namespace, page.range()) {
            let (key, value) = found?;
            if entries.len() == page.limit || bytes > ENTRIES_BYTES_MAX {
                more = true;
                break;
            }
            bytes += key.len() + value.len();
            entries.push(api::Pair { key: hex::encode(&key), value: hex::encode(&value) });
            last = Some(key);
        }
        let last = last.filter(|_| more);
        let proof = match prove {
            true => {
                let range = page.range_to(last.as_deref());
                let proof = view.prove(&[Query::Range(namespace.clone(), range.clone())])?;
                Some(api::RangeProof {
                    namespace: namespace.to_string(),
                    start: hex::encode(&range.start),
                    end: range.end.map(hex::encode),
                    hasher: H::KIND.to_string(),
                    proof: hex::encode(proof.as_bytes()),
                })
            }
            false => None,
        };
        Ok(api::Entries {
            height: view.height().unwrap_or_default().0,
            root: view.root().0.to_string(),
            entries,
            rows: None,
            next: last.map(hex::encode),
            proof,
        })
    }

    fn lookup(&self, by: api::By, of: &str, page: &Page) -> Result<api::Entries, Refusal> {
        let view = self.ledger().view();
        let found = self.indexes.find(&view, view.root(), by, of, page)?;
        let (mut entries, mut bytes, mut more) = (Vec::new(), 0, found.more);
        for key in found.keys {
            if bytes > ENTRIES_BYTES_MAX {
                more = true;
                break;
            }
            let Some(value) = view.get(&found.namespace, &key)? else { continue };
            bytes += key.len() + value.len();
            entries.push(api::Pair { key: hex::encode(&key), value: hex::encode(&value) });
        }
        let next = if more { entries.last().map(|pair| pair.key.clone()) } else { None };
        let height = view.height().unwrap_or_default().0;
        Ok(api::Entries { height, root: view.root().0.to_string(), entries, rows: None, next, proof: None })
    }

    fn block(&self, height: Option<Height>) -> Result<api::Block, Refusal> {
        let height = height.unwrap_or_else(|| self.ledger().height());
        let header = self.ledger().header(height).map_err(|error| self.no_block(error))?;
        let block = self.ledger().block(height)?;
        let continuations = self.ledger().continuations(height)?;
        let record = header.record.as_ref();
        let previous_root = match record {
            Some(record) => Some(record.previous_root),
            // A block without a record changed nothing, so the root before it is the root after it.
            None => header.root,
        };
        let text = |root: Option<Root>| root.map(|root| root.0.to_string());
        Ok(api::Block {
            height: height.0,
            time: header.time.0,
            proposer: record.map(|record| record.proposer.to_string()),
            root: text(header.root),
            previous_root: text(previous_root),
            record: record.map(|record| hex::encode(record.to_bytes())),
            record_hash: record.map(|record| record.hash().to_string()),
            previous_record: record.map(|record| record.previous_record.to_string()),
            transactions_root: record.map(|record| record.transactions_root.to_string()),
            receipts_root: record.map(|record| record.receipts_root.to_string()),
            diff_digest: record.map(|record| record.diff.digest.to_string()),
            certificate: self.ledger().certificate(height)?.map(hex::encode),
            transactions: block.transactions.iter().map(|transaction| transaction.id().to_string()).collect(),
            continuations: continuations.iter().map(|c| show_continuation(self.registry(), c)).collect(),
        })
    }

    fn transaction(&self, id: &Hash) -> Result<api::Transaction, Refusal> {
        let id = TxId(*id);
        let located = match self.ledger().transaction(&id) {
            Ok(Some(located)) => located,
            // The body of a block is written before the block counts, and it may never come to that.
            Ok(None) | Err(LedgerError::NotYet { .. }) => {
                return Err(match self.ledger().waiting(&id) {
                    Some(_) => Refusal::Waiting(id.0),
                    None => Refusal::NotFound(format!("there is no transaction {id}")),
                });
            }
            Err(error) => return Err(error.into()),
        };
        let transaction = &located.transaction.transaction;
        let operations = transaction.bundle.operations();
        let (place, receipt_place) = &located.places;
        let receipt = show_receipt(self.registry(), &located.receipt, located.height, located.index);
        Ok(api::Transaction {
            id: id.to_string(),
            sender: transaction.sender.to_string(),
            nonce: transaction.nonce,
            expiry_height: transaction.expiry_height.0,
            session: transaction.session.map(|session| session.to_string()),
            operations: operations.iter().map(|operation| show_operation(self.registry(), operation)).collect(),
            transaction: hex::encode(located.transaction.to_bytes()),
            place: hex::encode(place.to_bytes()),
            receipt: api::Receipt {
                receipt: Some(hex::encode(located.receipt.to_bytes())),
                place: Some(hex::encode(receipt_place.to_bytes())),
                ..receipt
            },
        })
    }

    fn account(&self, key: &PublicKey) -> Result<api::Account, Refusal> {
        let nonce = self.ledger().next_nonce(key)?.ok_or_else(|| {
            Refusal::NotFound(format!("{key} cannot send: no nonce follows the one that was imported"))
        })?;
        let Session { state_hash, sequence, .. } = self.register().root(key)?;
        Ok(api::Account { key: key.to_string(), nonce, state_hash: state_hash.to_string(), sequence })
    }

    fn session(&self, id: &SessionId) -> Result<api::Session, Refusal> {
        self.register().find(*id)
    }

    fn sessions(&self, wanted: &api::SessionsWanted) -> Result<api::SessionList, Refusal> {
        self.register().list(wanted)
    }

    fn bundle(&self, id: &Hash) -> Result<api::BundleStatus, Refusal> {
        let id = BundleId(*id);
        let record = self.ledger().bundle(&id)?;
        let record = record.ok_or_else(|| Refusal::NotFound(format!("there is no async bundle {id}")))?;
        Ok(show_bundle(&id, &record))
    }

    fn bundles(&self) -> Result<Vec<api::BundleStatus>, Refusal> {
        Ok(self.ledger().bundles()?.iter().map(|(id, record)| show_bundle(id, record)).collect())
    }

    fn witness(&self, transaction: &[u8]) -> Result<api::Witness, Refusal> {
        let ledger = self.ledger();
        let limit = ledger.facts().limits.transaction_bytes_max as usize;
        if transaction.len() > limit {
            return Err(Refusal::Bad(format!("a transaction has at most {limit} bytes")));
        }
        let signed = SignedTransaction::from_bytes(transaction).map(|signed| signed.transaction);
        let transaction = signed
            .or_else(|_| Transaction::from_bytes(transaction))
            .map_err(|error| Refusal::Bad(format!("the bytes are no transaction: {error}")))?;
        // It costs what running the bundle costs, and nobody pays for it.
        let _one = match self.witnessing.try_lock() {
            Ok(one) => one,
            // Whoever met a bug on the way makes none any more.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Refusal::Busy("another witness is being made".to_owned())),
        };
        let Witness { setting, proof } = ledger.witness(&transaction, ledger.time())?;
        if proof.len() > WITNESS_BYTES_MAX {
            return Err(Refusal::Bad(format!(
                "its witness has {} bytes, the limit is {WITNESS_BYTES_MAX}",
                proof.len()
            )));
        }
        Ok(api::Witness {
            chain_id: ledger.facts().chain_id.to_string(),
            hasher: H::KIND.to_string(),
            root: setting.old_root.to_string(),
            height: setting.height.0,
            time: setting.time.0,
            proposer: setting.proposer.to_string(),
            proof: hex::encode(proof),
        })
    }

    fn operation_proof(&self, bundle: &Hash, index: u32) -> Result<api::OperationAnswer, Refusal> {
        let proof = self.ledger().operation_proof(&BundleId(*bundle), index)?;
        let proof = proof.ok_or_else(|| Refusal::NotFound(format!("no operation {index} of {bundle} took effect")))?;
        Ok(show_operation_proof(self.registry(), &proof))
    }

    fn audit(&self, wanted: &api::AuditWanted) -> Result<api::Audit, Refusal> {
        wanted.check().map_err(Refusal::Bad)?;
        let ledger = self.ledger();
        let kept = ledger.audit_range()?;
        let from = match (wanted.from, wanted.height) {
            (Some(from), _) => from,
            (None, Some(height)) => ledger.audit_place(height)?,
            (None, None) => kept.start,
        };
        // Behind the records of the one height that is wanted there are no more of them.
        let above = wanted.height.and_then(|height| height.0.checked_add(1)).map(Height);
        let end = above.map_or(Ok(kept.end), |above| ledger.audit_place(above))?;
        let (found, next) = match from < end {
            true => ledger.audit_records(from, wanted.limit, &|record| wanted.picks(record))?,
            false => (Vec::new(), None),
        };
        let records = found.iter().map(|logged| audit::show(self.registry(), logged)).collect();
        Ok(api::Audit { first: kept.start, count: kept.end, records, next: next.filter(|next| *next < end) })
    }

    fn audit_proof(&self, index: u64) -> Result<api::AuditAnswer, Refusal> {
        let proof = self.ledger().audit_proof(index)?;
        let proof = proof.ok_or_else(|| Refusal::NotFound(format!("there is no audit record {index} yet")))?;
        Ok(audit::show_proof(self.registry(), &proof, H::KIND))
    }

    fn audit_checkpoint(&self, since: Option<u64>) -> Result<api::AuditCheckpoint, Refusal> {
        let ledger = self.ledger();
        let (checkpoint, state) = ledger.prove_checkpoint()?;
        let fewer = |count| Refusal::NotFound(format!("the audit log has fewer than {count} records"));
        let since = match since {
            None => None,
            Some(count) => Some((count, ledger.prove_since(&checkpoint, count)?.ok_or_else(|| fewer(count))?)),
        };
        Ok(audit::show_checkpoint((&checkpoint, &state), since, H::KIND.name()))
    }

    fn history(
        &self,
        namespace: &Namespace,
        key: &Key,
        (from, to): (Option<Height>, Option<Height>),
        limit: usize,
    ) -> Result<api::History, Refusal> {
        let ledger = self.ledger();
        let from = from.unwrap_or_else(|| self.lowest());
        // A first height above the last of the chain is not the same mistake as one above the last that was given.
        let heights = from..=to.unwrap_or_else(|| ledger.height().max(from));
        if heights.is_empty() {
            return Err(Refusal::Bad(format!("{} is above {}", heights.start(), heights.end())));
        }
        let history = ledger.key_history(namespace, key, heights, limit).map_err(|error| match error {
            LedgerError::NotYet { height, last } => {
                Refusal::Height { asked: height.0, lowest: self.lowest().0, highest: last.0 }
            }
            error => error.into(),
        })?;
        let registry = self.registry();
        let change = |change: KeyChange| {
            let (by, operations) = match change.by {
                ChangedBy::Operations(operations) => ("operation", operations),
                ChangedBy::Chain => ("chain", Vec::new()),
                ChangedBy::Unknown => ("unknown", Vec::new()),
            };
            let operation = |(state_hash, logged): (StateHash, Option<LoggedRecord>)| api::ChangeOperation {
                state_hash: state_hash.0.to_string(),
                record: logged.map(|logged| audit::show(registry, &logged)),
            };
            api::Change {
                height: change.height.0,
                before: change.before.map(|before| before.to_string()),
                text: change.value.as_ref().and_then(|value| readable(registry, namespace, key, value)),
                value: change.value.map(|value| hex::encode(&value)),
                by: by.to_owned(),
                operations: operations.into_iter().map(operation).collect(),
                root: change.proof.0.0.to_string(),
                proof: hex::encode(change.proof.1),
            }
        };
        Ok(api::History {
            namespace: namespace.to_string(),
            key: hex::encode(key),
            hasher: H::KIND.to_string(),
            from: history.heights.start().0,
            to: history.heights.end().0,
            changes: history.changes.into_iter().map(change).collect(),
            next: history.next.map(|next| next.0),
        })
    }

    fn functions(&self) -> Result<Vec<api::Function>, Refusal> {
        let function = |entry: &keelstone_execution::Entry| api::Function {
            name: entry.label(),
            hash: entry.hash.to_string(),
            needs: entry.needs.iter().map(|capability| capability.as_str().to_owned()).collect(),
            args: call::outline(&(entry.args)()),
            output: call::outline(&(entry.output)()),
        };
        Ok(self.registry().functions().into_iter().map(function).collect())
    }
}

/// A value as text: an imported entry as its network writes it, an entry of a collection as JSON, else what is printable
/// text already.
fn readable(registry: &Registry, namespace: &Namespace, key: &Key, value: &[u8]) -> Option<String> {
    if namespace.as_str() == xian::CONTRACTS {
        let name = std::str::from_utf8(key).unwrap_or_default();
        return match xian::Record::from_bytes(value).ok()? {
            xian::Record::Long(_, value) => Some(value.to_pretty()),
            record => record.value_of(name).map(|value| value.to_pretty()),
        };
    }
    if let Some(shown) = registry.value_shape(namespace, key).and_then(|shape| call::shown(&shape, value).ok()) {
        return Some(shown);
    }
    let text = std::str::from_utf8(value).ok()?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

// ---- what only the owner may do ----------------------------------------------------------------------------------

impl<H: Hasher> Engine for Local<H> {
    fn chain_id(&self) -> &ChainId {
        &self.genesis.chain_id
    }

    fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    fn misfits(&self) -> Vec<String> {
        misfits::of_state(&self.registry, &self.ledger().view())
    }

    fn produce(&self, time: Timestamp, producer: PublicKey, empty: bool) -> Result<Option<Arc<Committed>>, Failure> {
        let _at_work = self.way.block();
        let ledger = self.ledger();
        Ok(match empty {
            true => Some(ledger.produce(time, producer)?),
            false => ledger.produce_if_due(time, producer)?,
        })
    }

    fn on_commit(&self, listener: Listener) {
        self.shared.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    fn events(&self, from: EventPlace, bytes_max: usize, block: &mut Option<Told>) -> Result<Vec<Event>, Refusal> {
        let height = from.height;
        if block.as_ref().is_none_or(|block| block.header.height != height) {
            let ledger = self.ledger();
            let header = match ledger.header(height) {
                Ok(header) => header,
                // Whoever read all of a height misses nothing of it.
                Err(LedgerError::NoBlock { .. }) if height > ledger.genesis_height() => {
                    let record = BlockRecord::read(&ledger.view(), height)?;
                    let last = record.map_or(0, |record| record.transactions.saturating_add(record.continuations));
                    if from.index > last {
                        return Ok(Vec::new());
                    }
                    return Err(self.no_block(LedgerError::NoBlock { height }));
                }
                Err(error) => return Err(self.no_block(error)),
            };
            let (receipts, continuations) = (ledger.receipts(height)?, ledger.continuations(height)?);
            *block = Some(Told { header, receipts, continuations });
        }
        let block = block.as_ref().expect("it was read just now");
        Ok(block.events(self.registry(), from.index, bytes_max))
    }

    fn wake_on_submit(&self, waker: SyncSender<()>) {
        // A second waker is a bug of this crate; the first keeps working.
        let _ = self.waker.set(waker);
    }

    fn forward_to(&self, forward: Forwarding) {
        // As with the waker.
        let _ = self.forward.set(Forward::To(forward));
    }

    fn activity(&self) -> Activity {
        self.shared.activity.clone()
    }

    fn way(&self) -> Arc<Way> {
        self.way.clone()
    }

    fn replay(
        &self,
        from: Option<Height>,
        to: Option<Height>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Replayed, Failure> {
        let first = self.ledger().facts().initial_height;
        let (from, to) = (from.unwrap_or(first), to.unwrap_or_else(|| self.ledger().height()));
        let total = to.0.saturating_add(1).saturating_sub(from.0);
        let mut done = 0;
        let mut progress = |_, _| {
            done += 1;
            progress(done, total);
        };
        // The genesis is at hand even where the state it gave is no longer kept.
        let replayed = match from == first {
            true => self.ledger().replay_from_genesis(&self.genesis, to, &mut progress)?,
            false => self.ledger().replay(from..=to, &mut progress)?,
        };
        Ok(Replayed { from, to, replayed })
    }

    fn verify_audit(&self, progress: &mut dyn FnMut(Height)) -> Result<AuditVerdict, Failure> {
        Ok(self.ledger().verify_audit(progress)?)
    }

    fn known_of(&self, height: Height) -> Result<KnownOfHeight, Failure> {
        Ok(self.ledger().known_of(height)?)
    }

    fn export_audit(
        &self,
        from: Option<u64>,
        to: Option<u64>,
        line: &mut dyn FnMut(&serde_json::Value) -> Result<(), Failure>,
    ) -> Result<std::ops::Range<u64>, Failure> {
        let ledger = self.ledger();
        let (kept, (checkpoint, state)) = (ledger.audit_range()?, ledger.prove_checkpoint()?);
        let range = from.unwrap_or(kept.start)..to.unwrap_or(kept.end);
        if range.start > range.end || range.end > kept.end {
            let message = format!("there are no records {} to {}: the log has {}", range.start, range.end, kept.end);
            return Err(Failure::not_found(message));
        }
        let shown = audit::show_checkpoint((&checkpoint, &state), None, H::KIND.name());
        line(&audit::export_head(&shown, range.start, range.end))?;
        ledger.export_audit(&checkpoint, range.clone(), &mut |logged, proof| {
            line(&audit::export_line(&self.registry, logged, proof))
        })?;
        Ok(range)
    }

    fn prune_audit(&self, before: Height) -> Result<u64, Failure> {
        Ok(self.ledger().prune_audit(before)?)
    }

    fn rebuild(&self, until: Until, home: &Home, progress: &mut dyn FnMut(u64, u64)) -> Result<Rebuilt, Failure> {
        let ledger = self.ledger();
        let to = ledger.height_until(until)?;
        let path = home.path();
        let failed = |error: io::Error| Failure::io(path.display(), &error);
        let begun = path.join(REBUILDING);
        let names: Vec<_> = match path.read_dir() {
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>().map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        // What one that was cut off left there is nobody's.
        let is_left = names.iter().any(|name| *name == *REBUILDING) && !home.genesis().exists();
        if !names.is_empty() && !is_left {
            return Err(Failure::usage(format!("{} is not empty", path.display())));
        }
        std::fs::create_dir_all(path).and_then(|()| std::fs::write(&begun, "")).map_err(failed)?;
        let generations = Generations::open(&home.data())?;
        let generation = generations.fresh()?;
        let (store, kv) = Live::<H>::parts(&generation, &self.options, true)?;
        let mut first = None;
        let (made, rebuilt) = ledger.rebuild(&self.genesis, to, store, kv, &mut |height, _| {
            let first = *first.get_or_insert(height.0);
            progress(height.0 - first + 1, to.0.saturating_sub(first) + 1);
        })?;
        made.store().flush()?;
        drop(made);
        // The data is whole before the home is one: without its genesis it is no chain's.
        generations.switch(&generation)?;
        if let Some(failure) = generations.sweep()? {
            return Err(failure);
        }
        home.write_genesis(&self.genesis)?;
        std::fs::remove_file(&begun).map_err(failed)?;
        Ok(rebuilt)
    }

    fn rollback(&self, to: Height) -> Result<Root, Failure> {
        let live = self.live();
        live.generation.mark_put_back(to)?;
        Ok(live.ledger.rollback(to)?)
    }

    fn export_xian(&self, at: Option<Height>) -> Result<Json, Failure> {
        let view = self.view(at)?;
        xian::export(&view).map_err(|error| match error {
            xian::ExportError::Read(error) => error.into(),
            error => Failure::integrity(error.to_string()),
        })
    }

    fn version(&self, at: Option<Height>) -> Result<Box<dyn Version>, Failure> {
        self.check_whole()?;
        Ok(Box::new(Held { view: self.view(at)?, params: snapshot_params(&self.genesis), way: self.way.clone() }))
    }

    fn delta(&self, from: Height, to: Height) -> Result<Delta, Failure> {
        let (older, later) = (self.view(Some(from))?, self.view(Some(to))?);
        let chain_id = self.genesis.chain_id.clone();
        Ok(Delta::between(chain_id, H::KIND, (&older, (from, older.root())), (&later, (to, later.root())))?)
    }

    fn answers(self: Arc<Self>, limits: ServerLimits, attests: Attests) -> Box<dyn Answers> {
        versions::answers(self, limits, attests)
    }

    fn attest(&self, key: &SecretKey) -> Option<SignedAttestation> {
        versions::attest(self, key)
    }

    fn stands(&self) -> Result<At, Failure> {
        self.check_whole()?;
        let view = self.ledger().view();
        Ok(At { height: view.height().unwrap_or_default(), root: view.root() })
    }

    fn take(&self, step: Step, manner: Manner) -> Result<(), Untaken> {
        let _at_work = self.way.block();
        let (ledger, certified) = (self.ledger(), step.certified);
        let taken = match (step.change, manner) {
            (Change::Block(block), _) => ledger.take_block(&certified, Some(block)),
            (Change::Nothing, Manner::Blocks) => ledger.take_block(&certified, None),
            (Change::Nothing, Manner::Diffs) => ledger.take_diff(&certified, &Diff::default()),
            (Change::Diff(diff), _) => ledger.take_diff(&certified, &diff),
        };
        taken.map(drop).map_err(Into::into)
    }

    fn refuse(&self, made_by: MadeBy) {
        // As with the waker.
        let _ = self.forward.set(Forward::Refused(made_by));
    }

    fn stats(&self) -> Stats {
        self.ledger().store().stats()
    }

    fn check_while(
        &self,
        level: CheckLevel,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<CheckReport>, Failure> {
        Ok(self.ledger().store().check_while(level, go_on)?)
    }

    fn scrub(&self, bytes: u64) -> Result<Scrubbed, Failure> {
        Ok(self.ledger().store().scrub(bytes)?)
    }

    fn scrub_standing(&self) -> ScrubStanding {
        self.ledger().store().scrub_standing()
    }

    fn prune(&self, before: Height) -> Result<(), Failure> {
        Ok(self.ledger().store().prune(before)?)
    }

    fn compact(&self, progress: &mut dyn FnMut(Progress)) -> Result<Compacted, Failure> {
        Ok(self.ledger().store().compact(progress)?)
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(self.ledger().store().flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_execution::bundles::Resume;
    use keelstone_execution::{Bundle, Mode, Operation};
    use keelstone_ledger::modules::standard;
    use keelstone_ledger::{ListProof, Receipt, list_root};

    /// L-06: where the chain stands is known while the last chunk becomes a state, which takes as long as it takes.
    #[test]
    fn l06_where_the_chain_stands_does_not_wait_for_a_snapshot_that_is_taken_in() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(dir.path().to_owned());
        let genesis = Genesis::new(ChainId::new("test").expect("a name"));
        let chain =
            Local::<Blake3>::open(&home, &Config::default(), &standard(), genesis, (true, None)).expect("begun");
        let chain = Arc::new(chain);
        let taken_in = chain.syncing.lock().expect("nobody's");
        let (tell, told) = std::sync::mpsc::channel();
        let asked = chain.clone();
        let asking = std::thread::spawn(move || {
            let _ = tell.send(consensus::stands_at(&*asked));
        });
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(30)), Ok(None), "it waits");
        drop(taken_in);
        asking.join().expect("it was told");
    }

    /// Behind the last height there is comes none, whoever asks for what was recorded of it.
    #[test]
    fn x07_the_audit_log_of_the_last_height_there_is_is_empty() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (home, genesis) = (Home::new(dir.path().to_owned()), Genesis::new(ChainId::new("test").expect("a name")));
        let chain =
            Local::<Blake3>::open(&home, &Config::default(), &standard(), genesis, (false, None)).expect("begun");
        for height in [u64::MAX - 1, u64::MAX] {
            let wanted = api::AuditWanted { height: Some(Height(height)), limit: 10, ..api::AuditWanted::default() };
            let found = chain.audit(&wanted).expect("an answer");
            assert!(found.records.is_empty() && found.next.is_none());
        }
    }

    fn resume(genesis: &Genesis, key: &SecretKey) -> Transaction {
        let resume = Operation::of(&Resume { bundle: BundleId(Hash([0; 32])) });
        Transaction {
            chain_id: genesis.chain_id.clone(),
            sender: key.public(),
            nonce: 0,
            expiry_height: Height(10),
            session: None,
            bundle: Bundle::new(Mode::Sync, vec![resume]).expect("a short bundle"),
        }
    }

    /// Of a block and its transactions enough is said to find the hash of its record, and the root of its transactions.
    // spec: LEDGER-2, BLOCK-3
    #[test]
    fn a_block_can_be_checked_from_what_is_answered_of_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(dir.path().to_owned());
        let genesis = Genesis::new(ChainId::new("test").expect("a name"));
        let key = SecretKey::from_seed(&[7; 32]);
        let signed = resume(&genesis, &key).sign(&key);
        let chain =
            Local::<Blake3>::open(&home, &Config::default(), &standard(), genesis, (false, None)).expect("begun");
        chain.submit(&signed.to_bytes()).expect("taken in");
        chain.produce(Timestamp(1), key.public(), false).expect("made");

        let bytes = |digits: &str| hex::decode(digits).expect("digits");
        let block = chain.block(Some(Height(1))).expect("there");
        let record = BlockRecord::from_bytes(&bytes(&block.record.expect("it changed something"))).expect("a record");
        assert_eq!(block.record_hash, Some(record.hash().to_string()));
        assert_eq!(block.proposer, Some(key.public().to_string()));
        let answer = chain.transaction(&signed.id().0).expect("in the block");
        assert_eq!(bytes(&answer.transaction), signed.to_bytes());
        let found = SignedTransaction::from_bytes(&bytes(&answer.transaction)).expect("a transaction");
        assert_eq!(list_root(&[found.list_hash()]), record.transactions_root);
        let place = |digits: &str| ListProof::from_bytes(&bytes(digits)).expect("a place");
        assert!(place(&answer.place).verify(&record.transactions_root, &found.list_hash()));
        let receipt =
            Receipt::from_bytes(&bytes(&answer.receipt.receipt.expect("it was asked for"))).expect("a receipt");
        assert_eq!((receipt.transaction, receipt.gas_used), (signed.id(), answer.receipt.gas_used));
        let stands = place(&answer.receipt.place.expect("it was asked for"));
        assert!(stands.verify(&record.receipts_root, &receipt.list_hash()), "a failure is proven as a success is");
    }

    #[test]
    fn one_witness_is_made_at_a_time_and_a_bug_in_one_does_not_keep_others_from_being_made() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(dir.path().to_owned());
        let genesis = Genesis::new(ChainId::new("test").expect("a name"));
        let transaction = resume(&genesis, &SecretKey::from_seed(&[7; 32])).to_bytes();
        let chain =
            Local::<Blake3>::open(&home, &Config::default(), &standard(), genesis, (false, None)).expect("begun");

        let one = chain.witnessing.lock().expect("nobody's");
        assert!(matches!(chain.witness(&transaction), Err(Refusal::Busy(_))));
        drop(one);
        std::thread::scope(|threads| {
            let bug = threads.spawn(|| {
                let _one = chain.witnessing.lock().expect("nobody's");
                assert!(transaction.is_empty(), "a bug while it is made");
            });
            assert!(bug.join().is_err());
        });
        chain.witness(&transaction).expect("the next one is made");
    }
}
