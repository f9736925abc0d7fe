//! A chain that begins with the state of another: its first state, out of an archive that nobody has to trust.

use crate::exit::Failure;
use crate::generations::Generation;
use keelstone_codec::{Key, Namespace};
use keelstone_ledger::{Genesis, GenesisError, Inherited, LedgerError};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Store};
use keelstone_sync::library::{Expected, LibraryError, Origin};
use keelstone_tree::Hasher;
use std::fs::File;
use std::io::{self, BufReader, Seek as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Builds the first state of a chain that begins with another's, from an archive nobody has to trust: every entry is
/// proven under the root that the genesis names before it is taken, and there is no state before that is true of all.
// spec: GENESIS-4
pub(super) fn inherit<H: Hasher>(
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
pub(super) fn lacks(inherited: &Inherited, archive: &Path) -> Failure {
    let message = format!("{}: there is no {}", GenesisError::Inherits(inherited.clone()), archive.display());
    Failure::usage(message).hint("keelstone snapshot export writes it on a node of that chain; or join by state sync")
}
