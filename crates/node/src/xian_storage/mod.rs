//! The storage directory of a Xian node, read as what an export of that node would say.
//!
//! ```text
//! __latest_block.json   hash and height of the last block
//! contract_state/NAME   one HDF5 file a contract; its groups are the keys
//! run_state/__n         the accounts' nonces, in the same form
//! ```
//!
//! Each file is opened by its own name and never through a link, and looked at again once all are read: a node that
//! writes meanwhile would make the state one that never was. The directory is taken to come from a stranger.
//!
//! Layout: `spec/ledger.md`, XIAN-9.

mod file;
#[cfg(test)]
mod tests;

pub use file::{At, FileError, Keys, NAMES_BYTES_MAX, READ_BYTES_MAX, keys_of_bytes};

use crate::input::FILE_BYTES_MAX;
use keelstone_ledger::{Json, JsonError, Number};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The most files of contracts.
const CONTRACTS_MAX: usize = 65_536;
/// What Xian writes about its last block is far shorter.
const BLOCK_BYTES_MAX: u64 = 4_096;

/// A node's state as its own export would write it.
pub(crate) struct Storage {
    /// The document: `hash`, `number`, `origin`, `genesis` and `nonces`.
    pub(crate) document: Json,
    /// Files of contracts.
    pub(crate) contracts: usize,
    /// Keys of compiled code, left out as an export leaves them out.
    pub(crate) compiled: u64,
}

/// Why a directory is not taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StorageError {
    /// It is not laid out as a node's storage is.
    #[error("{}: {what}", path.display())]
    Layout {
        /// Where.
        path: PathBuf,
        /// What is wrong there.
        what: &'static str,
    },
    /// A name that no contract has. It is shown with what no terminal should get escaped.
    #[error("{}: no contract is called {name:?}", directory.display())]
    Name {
        /// The directory.
        directory: PathBuf,
        /// The name.
        name: String,
    },
    /// More than can be taken in.
    #[error("{}: more than {limit} {what}", path.display())]
    TooMany {
        /// Where it was found.
        path: PathBuf,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: u64,
    },
    /// A file of keys is not taken in.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: FileError,
    },
    /// What stands about the last block is not what Xian writes.
    #[error("{}: {source}", path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: JsonError,
    },
    /// A file is not what it was when the reading began. Stop the node, or read a copy.
    #[error("{}: was changed while the state was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("could not read {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
}

impl StorageError {
    /// The machine's error, if that is what it was.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } | Self::File { source: FileError::Io(source), .. } => Some(source),
            _ => None,
        }
    }
}

/// Reads a storage directory; `done` is called after each file with how many there are.
///
/// In memory at the end: the document, of at most as many bytes as an export may have.
///
/// # Errors
/// [`StorageError`].
// spec: XIAN-9
pub(crate) fn read(directory: &Path, mut done: impl FnMut(usize)) -> Result<Storage, StorageError> {
    let contract_state = directory.join("contract_state");
    let names = contracts(&contract_state)?;
    let mut reader = Reader { seen: Vec::new(), text: 0 };
    let mut entries = Vec::new();
    let mut compiled = 0;
    for name in &names {
        let keys = reader
            .keys(&contract_state.join(name))?
            .ok_or_else(|| StorageError::Changed { path: contract_state.join(name) })?;
        compiled += keys.compiled;
        entries.extend(keys.values.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
        done(names.len());
    }
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let run_state = directory.join("run_state");
    check_directory(&run_state)?;
    let nonces_path = run_state.join("__n");
    let nonces = reader.keys(&nonces_path)?.unwrap_or_default().values;
    if nonces.iter().any(|(account, _)| account.contains(':')) {
        return Err(StorageError::Layout { path: nonces_path, what: "a group below that of an account" });
    }
    let (hash, number) = reader.block(&directory.join("__latest_block.json"))?;
    reader.look_again()?;
    if contracts(&contract_state)? != names {
        return Err(StorageError::Changed { path: contract_state });
    }
    let text = |text: &str| Json::Text(text.to_owned());
    let list = |entries: Vec<(String, Json)>| {
        let entry = |(key, value)| Json::Object(vec![("key".to_owned(), Json::Text(key)), ("value".to_owned(), value)]);
        Json::List(entries.into_iter().map(entry).collect())
    };
    let origin = Json::Object(vec![("signature".to_owned(), text("")), ("sender".to_owned(), text(""))]);
    let document = Json::Object(vec![
        ("hash".to_owned(), Json::Text(hash)),
        ("number".to_owned(), Json::Number(number)),
        ("origin".to_owned(), origin),
        ("genesis".to_owned(), list(entries)),
        ("nonces".to_owned(), list(nonces)),
    ]);
    Ok(Storage { document, contracts: names.len(), compiled })
}

/// Xian makes both directories when it starts.
fn check_directory(directory: &Path) -> Result<(), StorageError> {
    let what = match fs::symlink_metadata(directory) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => "is not a directory of its own",
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            "is not there, as it is in the storage of a Xian node"
        }
        Err(source) => return Err(StorageError::Io { path: directory.to_owned(), source }),
    };
    Err(StorageError::Layout { path: directory.to_owned(), what })
}

/// The names of the contracts that have a file, ascending.
fn contracts(directory: &Path) -> Result<Vec<String>, StorageError> {
    check_directory(directory)?;
    let failed = |source| StorageError::Io { path: directory.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // The dot ends a contract's name in a key, and names that begin with two underscores are the node's own.
        match name.to_str().filter(|name| !name.contains(['.', ':']) && !name.starts_with("__")) {
            Some(name) => names.push(name.to_owned()),
            None => {
                let name = name.to_string_lossy().chars().take(64).collect();
                return Err(StorageError::Name { directory: directory.to_owned(), name });
            }
        }
        if names.len() > CONTRACTS_MAX {
            let limit = CONTRACTS_MAX as u64;
            return Err(StorageError::TooMany { path: directory.to_owned(), what: "contracts", limit });
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens files, remembers what they were, and counts what they bring.
struct Reader {
    seen: Vec<(PathBuf, Stamp)>,
    /// Bytes of keys and values so far.
    text: u64,
}

/// What a file was when it was opened.
#[derive(PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(found: &Metadata) -> Self {
        let modified = (found.mtime(), found.mtime_nsec());
        Self { device: found.dev(), inode: found.ino(), len: found.len(), modified }
    }
}

impl Reader {
    /// The keys of a file, if it is there.
    fn keys(&mut self, path: &Path) -> Result<Option<Keys>, StorageError> {
        let Some((file, len)) = self.open(path)? else { return Ok(None) };
        let left = FILE_BYTES_MAX - self.text;
        let keys = file::keys_of_file(file, len, left);
        let keys = keys.map_err(|source| StorageError::File { path: path.to_owned(), source })?;
        self.text += keys.text;
        Ok(Some(keys))
    }

    /// Hash and height of the last block; those of no block if the node never made one.
    fn block(&mut self, path: &Path) -> Result<(String, Number), StorageError> {
        let Some((file, _)) = self.open(path)? else { return Ok((String::new(), Number::from(0))) };
        let mut text = Vec::new();
        let failed = |source| StorageError::Io { path: path.to_owned(), source };
        file.take(BLOCK_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
        let wrong = |what| StorageError::Layout { path: path.to_owned(), what };
        if text.len() as u64 > BLOCK_BYTES_MAX {
            return Err(wrong("is longer than what a node writes there"));
        }
        let json = Json::parse(&text, 1).map_err(|source| StorageError::Block { path: path.to_owned(), source })?;
        let hash = json.member("hash").and_then(Json::as_text).filter(|hash| hex::decode(hash).is_ok());
        let hash = hash.ok_or_else(|| wrong("`hash` is not hexadecimal text"))?.to_ascii_lowercase();
        match json.member("height") {
            Some(Json::Number(number)) if number.is_integer() => Ok((hash, number.clone())),
            _ => Err(wrong("`height` is not an integer")),
        }
    }

    /// Opens a file that is one: no link, no directory, nothing that waits for a writer.
    fn open(&mut self, path: &Path) -> Result<Option<(File, u64)>, StorageError> {
        let failed = |source| StorageError::Io { path: path.to_owned(), source };
        let named = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if !named.is_file() {
            return Err(StorageError::Layout { path: path.to_owned(), what: "is not a file of its own" });
        }
        let file = File::open(path).map_err(failed)?;
        let opened = Stamp::from(&file.metadata().map_err(failed)?);
        // Between the two calls a link could have been put there.
        if opened != Stamp::from(&named) {
            return Err(StorageError::Changed { path: path.to_owned() });
        }
        let len = opened.len;
        self.seen.push((path.to_owned(), opened));
        Ok(Some((file, len)))
    }

    fn look_again(&self) -> Result<(), StorageError> {
        for (path, stamp) in &self.seen {
            if fs::symlink_metadata(path).ok().is_none_or(|found| Stamp::from(&found) != *stamp) {
                return Err(StorageError::Changed { path: path.clone() });
            }
        }
        Ok(())
    }
}
