//! Secret keys on disk: one small JSON file each, readable by its owner only.
//!
//! A key file that others can read has to be taken as known to others, so it is refused, not repaired. Files are
//! written to a new name with mode 0600 from the first byte and renamed into place; an existing key is never
//! overwritten. Secrets are wiped from memory when dropped and appear in no message.
//!
//! Format: `docs/cli.md`, "Key files".

use crate::exit::{Exit, Failure};
use crate::strict_json;
use keelstone_execution::PublicKey;
use keelstone_ledger::SecretKey;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use zeroize::{Zeroize as _, Zeroizing};

/// The version of the file format this program writes and reads.
const VERSION: u32 = 1;
/// No honest key file is longer.
const FILE_BYTES_MAX: u64 = 4096;
/// What key files end in.
const EXTENSION: &str = "key.json";

/// A directory of key files.
#[derive(Debug)]
pub(crate) struct KeyDir(PathBuf);

/// What stands in a key file. No `Debug`: it holds the secret in the clear.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    algorithm: String,
    public: String,
    secret: String,
}
impl Drop for KeyFile {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// Whether a name is 1 to 64 of A-Z, a-z, 0-9, `_` and `-`, so that it cannot leave a directory or hide in it.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// Refuses a name that is not plain, as whatever it should be one of.
pub(crate) fn check_plain(name: &str, what: &str) -> Result<(), Failure> {
    match is_plain(name) {
        true => Ok(()),
        false => Err(Failure::usage(format!("{name:?} is no {what}: use 1 to 64 of A-Z, a-z, 0-9, '_' and '-'"))),
    }
}

impl KeyDir {
    pub(crate) fn new(home: &Path) -> Self {
        Self(home.join("keys"))
    }

    /// Where the key of this name is.
    ///
    /// # Errors
    /// A usage failure if the name could leave the directory or hide in it.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf, Failure> {
        check_plain(name, "key name")?;
        Ok(self.0.join(format!("{name}.{EXTENSION}")))
    }

    /// The names of all keys, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, Failure> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Failure::io(format_args!("could not list {}", self.0.display()), &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry =
                entry.map_err(|error| Failure::io(format_args!("could not list {}", self.0.display()), &error))?;
            let file_name = entry.file_name();
            if let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(EXTENSION)?.strip_suffix('.')) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads the key of this name.
    pub(crate) fn load(&self, name: &str) -> Result<SecretKey, Failure> {
        load(&self.path(name)?)
    }

    /// Writes a key under a name that must be free.
    pub(crate) fn save(&self, name: &str, key: &SecretKey) -> Result<PathBuf, Failure> {
        let path = self.path(name)?;
        let failed = |error: &io::Error| Failure::io(format_args!("could not write {}", path.display()), error);
        create_private_dir(&self.0).map_err(|error| failed(&error))?;
        if path.exists() {
            return Err(Failure::usage(format!("{} exists already; keys are never overwritten", path.display())));
        }
        write(&path, key).map_err(|error| failed(&error))?;
        Ok(path)
    }
}

/// Reads a key file after checking that only its owner can.
///
/// # Errors
/// [`Exit::NotFound`] if there is none; [`Exit::Usage`] with what is wrong if it is not a private, whole key file.
pub(crate) fn load(path: &Path) -> Result<SecretKey, Failure> {
    let text = read_private(path, "key file", FILE_BYTES_MAX).map_err(|failure| match failure.exit {
        Exit::NotFound => failure.hint("keelstone keys list shows the keys, keelstone keys new NAME makes one"),
        _ => failure,
    })?;
    parse(&text).map_err(|problem| Failure::usage(format!("{} is no key file: {problem}", path.display())))
}

/// Reads a file that holds a secret, after checking that only its owner can.
///
/// # Errors
/// As [`load`].
pub(crate) fn read_private(path: &Path, what: &str, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::new(Exit::NotFound, format!("there is no {what} {shown}")),
        _ => Failure::io(format_args!("could not open {shown}"), &error),
    })?;
    let metadata = file.metadata().map_err(|error| Failure::io(format_args!("could not look at {shown}"), &error))?;
    if !metadata.is_file() {
        return Err(Failure::usage(format!("{shown} is not a file")));
    }
    check_private(path, &metadata)?;
    if metadata.len() > bytes_max {
        let bytes = metadata.len();
        return Err(Failure::usage(format!("{shown} has {bytes} bytes, a {what} at most {bytes_max}")));
    }
    let mut text = Zeroizing::new(Vec::new());
    file.take(bytes_max)
        .read_to_end(&mut text)
        .map_err(|error| Failure::io(format_args!("could not read {shown}"), &error))?;
    Ok(text)
}

/// The key in a file's text. Errors say what is wrong and never show what stood there.
fn parse(text: &[u8]) -> Result<SecretKey, String> {
    // The message of the JSON reader could quote the secret; where it stopped is enough.
    let file: KeyFile = strict_json::parse(text).map_err(|_| "not the JSON of a key, or cut short".to_owned())?;
    if file.version != VERSION {
        return Err(format!("version {}, this program knows {VERSION}", file.version));
    }
    if file.algorithm != "ed25519" {
        return Err(format!("algorithm {:?}, expected \"ed25519\"", file.algorithm));
    }
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(&file.secret, seed.as_mut())
        .map_err(|_| format!("the secret has {} characters, expected 64 hexadecimal digits", file.secret.len()))?;
    let key = SecretKey::from_seed(&seed);
    let public = PublicKey::from_hex(&file.public).map_err(|error| format!("public key: {error}"))?;
    if key.public() != public {
        return Err(format!("the secret belongs to {}, the file says {public}", key.public()));
    }
    Ok(key)
}

/// Writes a key file that nobody else can read at any moment.
pub(crate) fn write(path: &Path, key: &SecretKey) -> io::Result<()> {
    let file = KeyFile {
        version: VERSION,
        algorithm: "ed25519".to_owned(),
        public: key.public().to_string(),
        secret: hex::encode(key.seed().as_ref()),
    };
    let mut text = Zeroizing::new(serde_json::to_vec_pretty(&file).map_err(io::Error::other)?);
    text.push(b'\n');
    write_private(path, &text)
}

/// Writes a file that nobody else can read at any moment, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut out = private_options().write(true).create_new(true).open(&fresh)?;
    let written = out.write_all(text).and_then(|()| out.sync_all()).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // The half-written file is of no use; if it cannot be removed either, the first error says more.
        let _ = fs::remove_file(fresh);
    }
    written
}

#[cfg(unix)]
fn private_options() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}
#[cfg(not(unix))]
fn private_options() -> OpenOptions {
    OpenOptions::new()
}

#[cfg(unix)]
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
#[cfg(not(unix))]
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

#[cfg(unix)]
fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Failure::usage(format!("{} has mode {mode:03o}: others can read it", path.display()))
        .hint(format!("if nobody did: chmod 600 {}", path.display())))
}
#[cfg(not(unix))]
fn check_private(_: &Path, _: &fs::Metadata) -> Result<(), Failure> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SecretKey {
        SecretKey::from_seed(&[7; 32])
    }

    #[test]
    fn a_key_comes_back_and_is_not_overwritten() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let keys = KeyDir::new(home.path());
        keys.save("alice", &key()).expect("saved");
        assert_eq!(keys.load("alice").expect("loaded").public(), key().public());
        assert_eq!(keys.names().expect("listed"), ["alice"]);
        assert_eq!(keys.save("alice", &key()).expect_err("taken").exit, Exit::Usage);
        assert_eq!(keys.load("../alice").expect_err("no name").exit, Exit::Usage);
    }

    #[cfg(unix)]
    #[test]
    fn l02_a_key_file_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = KeyDir::new(home.path()).save("alice", &key()).expect("saved");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o644, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            let error = load(&path).expect_err("others can read it");
            assert_eq!(error.exit, Exit::Usage);
            assert!(error.message.contains(&format!("{mode:03o}")), "{error}");
        }
    }

    #[test]
    fn l02_broken_key_files_are_refused_without_showing_the_secret() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = KeyDir::new(home.path()).save("alice", &key()).expect("saved");
        let whole = fs::read_to_string(&path).expect("readable");
        let secret = hex::encode([7; 32]);
        let other = SecretKey::from_seed(&[8; 32]).public().to_string();
        for (text, says) in [
            (String::new(), "cut short"),
            (whole[..whole.len() / 2].to_owned(), "cut short"),
            (whole.replace(&secret, &secret[2..]), "62 characters"),
            (whole.replace(&key().public().to_string(), &other), "the secret belongs to"),
            (whole.replace("ed25519", "rsa"), "algorithm"),
            (whole.replace("\"version\": 1", "\"version\": 2"), "version 2"),
            (" ".repeat(5000), "at most"),
        ] {
            fs::write(&path, &text).expect("written");
            let error = load(&path).expect_err(&text);
            assert!(error.message.contains(says), "{error} does not say {says:?}");
            assert!(!error.message.contains(&secret[..16]), "{error} shows the secret");
        }
        assert_eq!(load(home.path()).expect_err("a directory").exit, Exit::Usage);
        assert_eq!(load(&home.path().join("no")).expect_err("missing").exit, Exit::NotFound);
        assert!(!format!("{:?}", key()).contains(&secret[..16]), "Debug shows the secret");
    }
}
