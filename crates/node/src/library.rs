//! The library of snapshots of a home, for whoever is no running node: opened, held, looked into; and snapshots by the name
//! that people give them, of a library or of an archive.

use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::own_log::{OwnLog, Stood, Who};
use keelstone_codec::{Height, Root};
use keelstone_ledger::{Genesis, NodeEvent};
use keelstone_store::files::Directory;
use keelstone_sync::library::{Expected, Library, LibraryError, Origin, Pin, SnapshotId, Swept};
use keelstone_sync::snapshot::{FORMAT, SnapshotParams};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Opens the library of a home directory for this process, and says what a crash or a bad disk has left in it.
pub(crate) fn open_library(home: &Home) -> Result<Library, Failure> {
    let (library, swept) = Library::open(directory(&home.snapshots())?)?;
    log_swept(&swept);
    Ok(library)
}

/// The library of a home whose history is about to change: whoever holds it can make it fit what comes of that, and nobody is
/// kept from it by another process once it is too late.
#[derive(Debug)]
pub(crate) enum Held {
    /// There is none.
    Nothing,
    Library(Library),
    /// Its disk is bad, which is no reason not to put a whole state in a home.
    Unreadable(Failure),
}

/// Takes the library of a home.
///
/// # Errors
/// That another process holds it.
pub(crate) fn hold_library(home: &Home) -> Result<Held, Failure> {
    match home.snapshots().try_exists() {
        Ok(false) => return Ok(Held::Nothing),
        Ok(true) => {}
        Err(error) => return Ok(Held::Unreadable(Failure::io(home.snapshots().display(), &error))),
    }
    match open_library(home) {
        Ok(library) => Ok(Held::Library(library)),
        Err(failure) if failure.exit == Exit::InUse => Err(failure),
        Err(failure) => Ok(Held::Unreadable(failure)),
    }
}

/// Removes the snapshots of a history that is no more, if there are any, and lets go of the library.
pub(crate) fn forget_above(held: Held, home: &Home, height: Height) -> Result<(), Failure> {
    let library = match held {
        Held::Nothing => return Ok(()),
        Held::Library(library) => library,
        Held::Unreadable(failure) => return Err(failure),
    };
    let own = OwnLog::of(home);
    for info in library.list().iter().filter(|info| info.id.height > height) {
        library.delete(info.id)?;
        own.told(Who::User, NodeEvent::RemovedSnapshot { height: info.id.height }, Stood::default());
    }
    Ok(())
}

/// Opens the library of a home directory to look at, beside a running node; none if there is none.
pub(crate) fn look_into_library(home: &Home) -> Result<Option<(Library, Swept)>, Failure> {
    let path = home.snapshots();
    match Directory::to_read(&path) {
        Ok(directory) => Ok(Some(Library::inspect(Arc::new(directory))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Whoever may not look does not know that there is none.
        Err(error) => Err(Failure::io(path.display(), &error)),
    }
}

/// A snapshot of a home to read, beside a running node.
///
/// # Errors
/// That there is none; or that it is damaged, which is another thing.
pub(crate) fn kept(home: &Home, id: SnapshotId) -> Result<(Library, Pin), Failure> {
    let Some((library, found)) = look_into_library(home)? else { return Err(LibraryError::NotFound(id).into()) };
    match library.pin(id) {
        Some(pin) => Ok((library, pin)),
        None => Err(found
            .damaged
            .iter()
            .find(|(damaged, _)| *damaged == id)
            .map_or_else(|| LibraryError::NotFound(id).into(), |found| damaged(home, found))),
    }
}

/// Says that a snapshot of a home is damaged.
pub(crate) fn damaged(home: &Home, (id, why): &(SnapshotId, String)) -> Failure {
    let place = home.snapshots();
    let message = format!("the snapshot of height {} in {} is damaged: {why}", id.height, place.display());
    let hint = format!("keelstone snapshot create --height {} makes it anew where that state is kept", id.height);
    Failure::integrity(message).hint(hint)
}

pub(crate) fn directory(path: &Path) -> Result<Arc<Directory>, Failure> {
    let directory = Directory::new(path).map_err(|error| Failure::io(path.display(), &error))?;
    Ok(Arc::new(directory))
}

pub(crate) fn log_swept(swept: &Swept) {
    if swept.temporary + swept.unneeded > 0 {
        let (temporary, unneeded) = (swept.temporary, swept.unneeded);
        tracing::info!(temporary, unneeded, "removed what was left of snapshots that never came to be");
    }
    for (id, why) in &swept.damaged {
        tracing::error!(height = id.height.0, why, "a snapshot is damaged and no longer listed");
    }
}

/// What nodes of a chain agree on for its snapshots.
pub(crate) fn snapshot_params(genesis: &Genesis) -> SnapshotParams {
    SnapshotParams {
        chain_id: genesis.chain_id.clone(),
        hasher: genesis.hasher,
        chunk_weight_max: genesis.limits.snapshot_chunk_bytes,
    }
}

/// Where a snapshot is.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// In this home's library.
    Kept(SnapshotId),
    /// In a directory or a tar.
    Archive(PathBuf),
}

impl FromStr for Source {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.parse() {
            Ok(height) => Self::Kept(id(height)),
            Err(_) => Self::Archive(text.into()),
        })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kept(id) => write!(f, "the snapshot of height {} here", id.height),
            Self::Archive(path) => write!(f, "{}", path.display()),
        }
    }
}

pub(crate) fn id(height: u64) -> SnapshotId {
    SnapshotId { height: Height(height), format: FORMAT }
}

impl Source {
    /// Reads the snapshot; one of the library of a home without changing it.
    pub(crate) fn read<T>(
        &self,
        home: &Home,
        read: impl FnOnce(Origin<'_>) -> Result<T, LibraryError>,
    ) -> Result<T, Failure> {
        match self {
            Self::Kept(id) => {
                let (_, pin) = kept(home, *id)?;
                Ok(read(Origin::Kept(&pin)).map_err(|error| error.within(&home.snapshots()))?)
            }
            Self::Archive(path) if path.is_dir() => {
                let directory = Directory::to_read(path).map_err(|error| cannot_read(path, &error))?;
                Ok(read(Origin::Directory(&directory))?)
            }
            Self::Archive(path) => {
                let mut file = BufReader::new(File::open(path).map_err(|error| cannot_read(path, &error))?);
                Ok(read(Origin::Tar(&mut file))?)
            }
        }
    }

    pub(crate) fn is_archive(&self) -> bool {
        matches!(self, Self::Archive(_))
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::usage(format!("there is no archive {}", path.display())),
        _ => Failure::io(format_args!("could not read {}", path.display()), error),
    }
}

/// The root a caller trusts.
pub(crate) fn trusted(root: Option<&str>) -> Result<Option<Root>, Failure> {
    root.map(|text| Root::from_hex(text).map_err(|error| Failure::usage(format!("--root: {error}")))).transpose()
}

/// What a snapshot must be of: this home's chain if it has one, and the root that is trusted.
pub(crate) fn expected(genesis: Option<&Genesis>, root: Option<&str>) -> Result<Expected, Failure> {
    Ok(Expected { params: genesis.map(snapshot_params), root: trusted(root)? })
}
