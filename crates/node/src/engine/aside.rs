//! States that are built beside the one that counts, and take its place once they are whole: of a snapshot, or of what is left
//! of a damaged one.

use super::store_options;
use crate::config::Config;
use crate::exit::Failure;
use crate::generations::{Generation, Generations, Replaced};
use crate::home::Home;
use keelstone_codec::{Height, Key, Namespace, Root};
use keelstone_ledger::{Genesis, Unfit, check_fits};
use keelstone_store::files::Directory;
use keelstone_store::kv::RedbKv;
use keelstone_store::{Options, Progress, RepairError, Repaired, RepairedFrom, Source, Store, StoreError, Take};
use keelstone_sync::library::{Each, LibraryError};
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256};
use std::io;
use std::path::Path;
use std::sync::Arc;

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
pub(crate) struct MadeWhole {
    pub(crate) from: RepairedFrom,
    pub(crate) height: Height,
    pub(crate) root: Root,
    /// Heights whose states are lost: from the first to before the second.
    pub(crate) lost: Option<(Height, Height)>,
}

/// Makes of the state that counts, which is damaged, a whole one aside, for as long as `go_on` says so; none if it was cut off.
pub(crate) fn repair(
    aside: &Aside,
    genesis: &Genesis,
    config: &Config,
    wholes: &[Whole<'_>],
    go_on: &mut dyn FnMut(Progress) -> bool,
) -> Result<Option<MadeWhole>, RepairError> {
    match genesis.hasher {
        HashKind::Blake3 => repair_with::<Blake3>(aside, config, wholes, go_on),
        HashKind::Sha256 => repair_with::<Sha256>(aside, config, wholes, go_on),
    }
}

fn repair_with<H: Hasher>(
    aside: &Aside,
    config: &Config,
    wholes: &[Whole<'_>],
    go_on: &mut dyn FnMut(Progress) -> bool,
) -> Result<Option<MadeWhole>, RepairError> {
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
    let repaired = Store::<H>::repair_while(damaged, into, &store_options(config), &mut sources, go_on)?;
    let Some(Repaired { store, from, lost }) = repaired else { return Ok(None) };
    let mended = MadeWhole { from, height: store.height().unwrap_or_default(), root: store.root(), lost };
    store.close()?;
    Ok(Some(mended))
}
