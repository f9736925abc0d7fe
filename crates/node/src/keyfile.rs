//! Secret keys on disk: one small JSON file each, readable by its owner only, encrypted if the owner so wishes.
//!
//! A key file that others can read has to be taken as known to others, so it is refused, not repaired. Files are
//! written to a new name with mode 0600 from the first byte and renamed into place; an existing key is never
//! overwritten, but by itself under another passphrase. Secrets are wiped from memory when dropped and appear in no
//! message. A file may be a stranger's: what opening it may cost is bounded before it is begun.
//!
//! Format and rules: `spec/keys.md`, KEY-1 to KEY-5. Vectors: `spec/vectors/keys.json`.

use crate::exit::{Exit, Failure};
use crate::input::read_private;
use crate::newfile;
use crate::passphrase::{Passphrase, Source};
use crate::strict_json;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use keelstone_codec::unhex_into;
use keelstone_execution::PublicKey;
use keelstone_ledger::SecretKey;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use zeroize::{Zeroize as _, Zeroizing};

/// The name of the key that makes blocks.
pub(crate) const PRODUCER: &str = "producer";
/// The version of the file format this program writes and reads.
const VERSION: u32 = 1;
/// No honest key file is longer.
const FILE_BYTES_MAX: u64 = 4096;
/// What key files end in.
const EXTENSION: &str = "key.json";
/// The kind of key.
const ALGORITHM: &str = "ed25519";
/// How a passphrase becomes a key.
const KDF: &str = "argon2id";
/// How that key seals a secret.
const CIPHER: &str = "xchacha20-poly1305";
/// Memory a file may ask for, in KiB.
const MEMORY_KIB: RangeInclusive<u32> = 16 * 1024..=256 * 1024;
/// Passes over it a file may ask for.
const PASSES: RangeInclusive<u32> = 1..=16;
/// KiB of memory times passes.
const WORK_MAX: u32 = 1024 * 1024;
/// Bytes of a seed, of a public key, and of what a passphrase becomes.
const SECRET_LEN: usize = 32;
/// Bytes of a sealed secret's tag.
const TAG_LEN: usize = 16;

/// A directory of key files.
#[derive(Debug)]
pub(crate) struct KeyDir {
    dir: PathBuf,
    unlock: Source,
}

/// What stands in a key file. No `Debug`: it may hold the secret in the clear.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    algorithm: String,
    public: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    encryption: Option<Encryption>,
}
impl Drop for KeyFile {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// How the secret of a key file is sealed, as it stands there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encryption {
    kdf: String,
    memory_kib: u32,
    passes: u32,
    salt: String,
    cipher: String,
    nonce: String,
    sealed: String,
}

/// Why a key file gives no key. Whoever gave the file, or the passphrase, has to act.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyFileError {
    /// The message of a reader could quote the secret; that it is none is enough.
    #[error("not the JSON of a key, or cut short")]
    Form,
    #[error("version {found}, this program knows {VERSION}")]
    Version { found: u32 },
    #[error("{what} {found:?}, expected {expected:?}")]
    Unknown { what: &'static str, found: String, expected: &'static str },
    #[error("{what} has {found} characters, expected {expected} lower-case hexadecimal digits")]
    Digits { what: &'static str, found: usize, expected: usize },
    #[error("expected one of \"secret\" and \"encryption\"")]
    Secret,
    #[error(
        "it asks for {memory_kib} KiB and {passes} passes; {} to {} KiB, {} to {} passes and a product of at most \
         {WORK_MAX} are allowed",
        MEMORY_KIB.start(), MEMORY_KIB.end(), PASSES.start(), PASSES.end()
    )]
    Costs { memory_kib: u32, passes: u32 },
    #[error("the passphrase does not open it, or it was changed")]
    Passphrase,
    #[error("the secret belongs to {found}, the file says {stated}")]
    OtherKey { found: PublicKey, stated: PublicKey },
    #[error("opening it takes {memory_kib} KiB of memory, which are not there")]
    Memory { memory_kib: u32 },
}

impl KeyFileError {
    fn at(self, path: &Path) -> Failure {
        let shown = path.display();
        match self {
            Self::Passphrase => Failure::usage(format!("{shown}: {self}")),
            Self::Memory { .. } => Failure::error(format!("{shown}: {self}")),
            problem => Failure::usage(format!("{shown} is no key file: {problem}")),
        }
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
    /// The keys of a home. Whoever sits at the terminal is asked for passphrases.
    pub(crate) fn new(home: &Path) -> Self {
        Self { dir: home.join("keys"), unlock: Source::Person }
    }

    /// The same, with passphrases from elsewhere.
    pub(crate) fn unlocked_by(self, unlock: Source) -> Self {
        Self { unlock, ..self }
    }

    /// Where passphrases come from.
    pub(crate) fn unlock(&self) -> &Source {
        &self.unlock
    }

    /// Where the key of this name is.
    ///
    /// # Errors
    /// A usage failure if the name could leave the directory or hide in it.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf, Failure> {
        check_plain(name, "key name")?;
        Ok(self.dir.join(format!("{name}.{EXTENSION}")))
    }

    /// The names of all keys, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, Failure> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Failure::io(format_args!("could not list {}", self.dir.display()), &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry =
                entry.map_err(|error| Failure::io(format_args!("could not list {}", self.dir.display()), &error))?;
            let file_name = entry.file_name();
            if let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(EXTENSION)?.strip_suffix('.')) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads the key of this name, and asks for its passphrase if it has one.
    pub(crate) fn load(&self, name: &str) -> Result<SecretKey, Failure> {
        let path = self.path(name)?;
        let passphrase = || self.unlock.passphrase(&format!("the key {name}"));
        match read(&path)?.secret {
            Secret::Plain(key) => Ok(key),
            Secret::Sealed(sealed) => sealed.open(passphrase()?.bytes()).map_err(|error| error.at(&path)),
        }
    }

    /// As [`Self::load`], of a key of the node's own, which is made in the clear if there is none.
    pub(crate) fn load_or_make(&self, name: &str) -> Result<SecretKey, Failure> {
        if self.path(name)?.exists() {
            return self.load(name);
        }
        let key = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
        self.save(name, &key)?;
        Ok(key)
    }

    /// The public half of the key of this name. It takes no passphrase.
    pub(crate) fn public(&self, name: &str) -> Result<PublicKey, Failure> {
        Ok(read(&self.path(name)?)?.public())
    }

    /// What stands in the file of the key of this name.
    pub(crate) fn stored(&self, name: &str) -> Result<Stored, Failure> {
        read(&self.path(name)?)
    }

    /// Writes a key under a name that must be free.
    pub(crate) fn save(&self, name: &str, key: &SecretKey) -> Result<PathBuf, Failure> {
        self.add(name, &Stored::plain(key))
    }

    /// As [`Self::save`], of what stands in a key file.
    pub(crate) fn add(&self, name: &str, stored: &Stored) -> Result<PathBuf, Failure> {
        let path = self.path(name)?;
        let failed = |error: &io::Error| Failure::io(format_args!("could not write {}", path.display()), error);
        newfile::create_private_dir(&self.dir).map_err(|error| failed(&error))?;
        let taken = || Failure::usage(format!("{} exists already; keys are never overwritten", path.display()));
        if path.exists() {
            return Err(taken());
        }
        match write_new(&path, stored) {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(taken()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Writes the key of this name in another form.
    ///
    /// # Errors
    /// A usage failure if the file has another key by now.
    // spec: KEY-2
    pub(crate) fn rewrite(&self, name: &str, stored: &Stored) -> Result<PathBuf, Failure> {
        let (path, found) = (self.path(name)?, self.public(name)?);
        if found != stored.public() {
            return Err(KeyFileError::OtherKey { found: stored.public(), stated: found }.at(&path));
        }
        write(&path, stored)
            .map_err(|error| Failure::io(format_args!("could not write {}", path.display()), &error))?;
        Ok(path)
    }
}

/// What stands in a key file, in a form that is right.
pub(crate) struct Stored {
    secret: Secret,
}

enum Secret {
    Plain(SecretKey),
    Sealed(Sealed),
}

/// A secret that takes a passphrase.
struct Sealed {
    public: PublicKey,
    costs: Costs,
    salt: [u8; 16],
    nonce: [u8; 24],
    sealed: [u8; SECRET_LEN + TAG_LEN],
}

/// What turning a passphrase into a key costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Costs {
    memory_kib: u32,
    passes: u32,
}

impl Costs {
    /// Of files that are written now: the second choice of RFC 9106, with one lane in the place of four.
    pub(crate) const NOW: Self = Self { memory_kib: 64 * 1024, passes: 3 };
    /// The least a file may have.
    #[cfg(test)]
    pub(crate) const LEAST: Self = Self { memory_kib: *MEMORY_KIB.start(), passes: *PASSES.start() };

    // spec: KEY-4
    fn new(memory_kib: u32, passes: u32) -> Result<Self, KeyFileError> {
        let within = MEMORY_KIB.contains(&memory_kib) && PASSES.contains(&passes);
        match within && memory_kib.saturating_mul(passes) <= WORK_MAX {
            true => Ok(Self { memory_kib, passes }),
            false => Err(KeyFileError::Costs { memory_kib, passes }),
        }
    }

    /// The key that a passphrase becomes.
    // spec: KEY-3
    fn derive(self, passphrase: &[u8], salt: &[u8]) -> Result<Zeroizing<[u8; SECRET_LEN]>, KeyFileError> {
        let params = Params::new(self.memory_kib, self.passes, 1, Some(SECRET_LEN)).expect("costs within their bounds");
        let mut blocks: Vec<Block> = Vec::new();
        // Within its bound, and yet more than some machines have to give.
        let room = blocks.try_reserve_exact(params.block_count());
        room.map_err(|_| KeyFileError::Memory { memory_kib: self.memory_kib })?;
        blocks.resize(params.block_count(), Block::default());
        let mut key = Zeroizing::new([0; SECRET_LEN]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(passphrase, salt, key.as_mut(), &mut blocks)
            .expect("a passphrase and a salt of lengths that are allowed, and as many blocks as asked for");
        blocks.zeroize();
        Ok(key)
    }
}

impl Stored {
    /// A key in the clear.
    pub(crate) fn plain(key: &SecretKey) -> Self {
        Self { secret: Secret::Plain(SecretKey::from_seed(&key.seed())) }
    }

    /// A key under a passphrase, with a salt and a nonce of the system's randomness.
    pub(crate) fn sealed(key: &SecretKey, passphrase: &Passphrase, costs: Costs) -> Result<Self, Failure> {
        let (mut salt, mut nonce) = ([0; 16], [0; 24]);
        for bytes in [salt.as_mut_slice(), nonce.as_mut_slice()] {
            getrandom::fill(bytes).map_err(|error| Failure::io("no randomness for a key file", &error))?;
        }
        let sealed = Sealed::seal(key, passphrase.bytes(), costs, salt, nonce);
        Ok(Self { secret: Secret::Sealed(sealed.map_err(|error| Failure::error(error.to_string()))?) })
    }

    pub(crate) fn public(&self) -> PublicKey {
        match &self.secret {
            Secret::Plain(key) => key.public(),
            Secret::Sealed(sealed) => sealed.public,
        }
    }

    /// The key, if it takes no passphrase.
    pub(crate) fn into_plain(self) -> Option<SecretKey> {
        match self.secret {
            Secret::Plain(key) => Some(key),
            Secret::Sealed(_) => None,
        }
    }

    /// Whether it takes a passphrase.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.secret, Secret::Sealed(_))
    }

    /// What stands in a file's text. Errors say what is wrong and never show what stood there.
    // spec: KEY-1
    fn parse(text: &[u8]) -> Result<Self, KeyFileError> {
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(KeyFileError::Form);
        }
        let file: KeyFile = strict_json::parse(text).map_err(|_| KeyFileError::Form)?;
        if file.version != VERSION {
            return Err(KeyFileError::Version { found: file.version });
        }
        known("algorithm", &file.algorithm, ALGORITHM)?;
        let public = PublicKey(keelstone_codec::Hash(digits("public key", &file.public)?));
        let secret = match (&file.secret, &file.encryption) {
            (Some(secret), None) => {
                let seed = Zeroizing::new(digits("the secret", secret)?);
                Secret::Plain(owned(&seed, public)?)
            }
            (None, Some(encryption)) => Secret::Sealed(Sealed::parse(encryption, public)?),
            _ => return Err(KeyFileError::Secret),
        };
        Ok(Self { secret })
    }

    fn text(&self) -> Zeroizing<Vec<u8>> {
        let (secret, encryption) = match &self.secret {
            Secret::Plain(key) => (Some(hex::encode(key.seed().as_ref())), None),
            Secret::Sealed(sealed) => (None, Some(sealed.show())),
        };
        let (algorithm, public) = (ALGORITHM.to_owned(), self.public().to_string());
        let file = KeyFile { version: VERSION, algorithm, public, secret, encryption };
        // With room for all of it: text that grew would leave copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(1024));
        serde_json::to_writer_pretty(&mut *text, &file).expect("a key file has text keys and is written to memory");
        text.push(b'\n');
        text
    }
}

impl Sealed {
    // spec: KEY-3
    fn seal(
        key: &SecretKey,
        passphrase: &[u8],
        costs: Costs,
        salt: [u8; 16],
        nonce: [u8; 24],
    ) -> Result<Self, KeyFileError> {
        let mut out = Self { public: key.public(), costs, salt, nonce, sealed: [0; SECRET_LEN + TAG_LEN] };
        let cipher = XChaCha20Poly1305::new(&(*costs.derive(passphrase, &salt)?).into());
        let bound = out.bound();
        let (secret, tag) = out.sealed.split_at_mut(SECRET_LEN);
        secret.copy_from_slice(key.seed().as_ref());
        let made = cipher.encrypt_inout_detached(&XNonce::from(nonce), &bound, secret.into());
        tag.copy_from_slice(&made.expect("a secret is short enough to be sealed"));
        Ok(out)
    }

    /// The key, if this is its passphrase.
    // spec: KEY-5
    fn open(&self, passphrase: &[u8]) -> Result<SecretKey, KeyFileError> {
        let cipher = XChaCha20Poly1305::new(&(*self.costs.derive(passphrase, &self.salt)?).into());
        let (sealed, tag) = self.sealed.split_at(SECRET_LEN);
        let mut seed = Zeroizing::new([0; SECRET_LEN]);
        seed.copy_from_slice(sealed);
        let tag = Tag::try_from(tag).expect("what stands behind the secret is a tag");
        cipher
            .decrypt_inout_detached(&XNonce::from(self.nonce), &self.bound(), seed.as_mut_slice().into(), &tag)
            .map_err(|_| KeyFileError::Passphrase)?;
        owned(&seed, self.public)
    }

    /// What the seal binds beside the secret.
    fn bound(&self) -> Vec<u8> {
        let Costs { memory_kib, passes } = self.costs;
        let mut bytes = b"keelstone/key-file\0".to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(self.public.as_bytes());
        bytes.extend_from_slice(&memory_kib.to_le_bytes());
        bytes.extend_from_slice(&passes.to_le_bytes());
        bytes.extend_from_slice(&self.salt);
        bytes
    }

    fn parse(stated: &Encryption, public: PublicKey) -> Result<Self, KeyFileError> {
        known("key derivation", &stated.kdf, KDF)?;
        known("cipher", &stated.cipher, CIPHER)?;
        Ok(Self {
            public,
            costs: Costs::new(stated.memory_kib, stated.passes)?,
            salt: digits("the salt", &stated.salt)?,
            nonce: digits("the nonce", &stated.nonce)?,
            sealed: digits("the sealed secret", &stated.sealed)?,
        })
    }

    fn show(&self) -> Encryption {
        Encryption {
            kdf: KDF.to_owned(),
            memory_kib: self.costs.memory_kib,
            passes: self.costs.passes,
            salt: hex::encode(self.salt),
            cipher: CIPHER.to_owned(),
            nonce: hex::encode(self.nonce),
            sealed: hex::encode(self.sealed),
        }
    }
}

fn known(what: &'static str, found: &str, expected: &'static str) -> Result<(), KeyFileError> {
    match found == expected {
        true => Ok(()),
        false => Err(KeyFileError::Unknown { what, found: found.chars().take(32).collect(), expected }),
    }
}

/// Bytes as lower-case hexadecimal digits, of which there is one form.
fn digits<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], KeyFileError> {
    let mut bytes = [0; N];
    match unhex_into(text, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(KeyFileError::Digits { what, found: text.len(), expected: 2 * N }),
    }
}

/// The key of a seed, which must have this public half.
// spec: KEY-2
fn owned(seed: &[u8; SECRET_LEN], stated: PublicKey) -> Result<SecretKey, KeyFileError> {
    let key = SecretKey::from_seed(seed);
    match key.public() {
        found if found == stated => Ok(key),
        found => Err(KeyFileError::OtherKey { found, stated }),
    }
}

/// Reads the form of a key file, without opening it, and gives the text that would be written of it.
///
/// # Errors
/// A [`Failure`] that says why it is none.
pub fn key_file(text: &[u8]) -> Result<Vec<u8>, Failure> {
    Stored::parse(text).map(|stored| stored.text().to_vec()).map_err(|error| Failure::usage(error.to_string()))
}

/// Reads a key file after checking that only its owner can.
///
/// # Errors
/// [`Exit::NotFound`] if there is none; [`Exit::Usage`] with what is wrong if it is not a private, whole key file.
pub(crate) fn read(path: &Path) -> Result<Stored, Failure> {
    let text = read_private(path, "key file", FILE_BYTES_MAX).map_err(|failure| match failure.exit {
        Exit::NotFound => failure.hint("keelstone keys list shows the keys, keelstone keys new NAME makes one"),
        _ => failure,
    })?;
    Stored::parse(&text).map_err(|error| error.at(path))
}

/// Writes a key file that nobody else can read at any moment.
pub(crate) fn write(path: &Path, stored: &Stored) -> io::Result<()> {
    newfile::replace_private(path, &stored.text())
}

/// As [`write`], where there is no such file.
pub(crate) fn write_new(path: &Path, stored: &Stored) -> io::Result<()> {
    newfile::create_private(path, &stored.text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn key() -> SecretKey {
        SecretKey::from_seed(&[7; 32])
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.as_bytes().to_vec()), "the test").expect("short")
    }

    /// With fixed salt and nonce, so that it is the same each time.
    fn sealed() -> Stored {
        let sealed = Sealed::seal(&key(), b"correct horse", Costs::LEAST, [1; 16], [2; 24]).expect("sealed");
        Stored { secret: Secret::Sealed(sealed) }
    }

    fn problem(text: &[u8]) -> KeyFileError {
        Stored::parse(text).err().expect("no key file")
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

    /// A crash between writing a file and naming it costs nobody the name, and writing one touches no other.
    #[test]
    fn what_a_crash_left_of_a_key_is_not_in_the_way_of_the_next() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let keys = KeyDir::new(home.path());
        let path = keys.save("alice", &key()).expect("saved");
        let own = path.with_extension("new");
        fs::rename(&path, &own).expect("a file of somebody's");
        keys.save("alice", &key()).expect("saved again");
        assert_eq!(keys.load("alice").expect("loaded").public(), key().public());
        assert!(own.exists());
        let names = fs::read_dir(path.parent().expect("a directory")).expect("read");
        assert_eq!(names.count(), 2, "nothing else is left");
    }

    /// Of several that make a key of one name at once, one does, and the others hear of it.
    #[test]
    fn a_key_that_is_made_by_several_is_made_once() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let made: Vec<_> = std::thread::scope(|scope| {
            let make = || {
                let key = SecretKey::generate().expect("randomness");
                KeyDir::new(home.path()).save("alice", &key).ok().map(|_| key.public())
            };
            let all: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            all.into_iter().filter_map(|one| one.join().expect("no panic")).collect()
        });
        let [made] = made[..] else { panic!("{} say that they made it", made.len()) };
        assert_eq!(KeyDir::new(home.path()).public("alice").expect("read"), made);
    }

    /// spec: KEY-2, KEY-5. Only its passphrase opens it, its public half is known without, and it changes its form in place.
    #[test]
    fn an_encrypted_key_takes_its_passphrase_and_nothing_else() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let with = |text: &str| {
            let file = home.path().join("passphrase");
            let _ = fs::remove_file(&file);
            newfile::replace_private(&file, text.as_bytes()).expect("written");
            KeyDir::new(home.path()).unlocked_by(Source::File(file))
        };
        let stored = Stored::sealed(&key(), &passphrase("correct horse"), Costs::LEAST).expect("sealed");
        let path = with("").add("alice", &stored).expect("saved");
        assert_eq!(with("").public("alice").expect("known without"), key().public());
        assert!(with("").stored("alice").expect("read").is_encrypted());
        assert_eq!(with("correct horse\n").load("alice").expect("opened").public(), key().public());
        for wrong in ["correct", "correct horse ", "Correct horse", "x"] {
            let failure = with(wrong).load("alice").expect_err(wrong);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains("does not open it"), "{failure}");
        }
        let text = fs::read_to_string(&path).expect("readable");
        assert!(!text.contains(&hex::encode([7; 32])), "the secret stands in the clear");
        // Nobody is asked where nobody can answer.
        let nobody = KeyDir::new(home.path()).load("alice").expect_err("nobody to ask");
        assert!(nobody.message.contains("nobody to ask"), "{nobody}");
        // Another key does not take its place; the same one in the clear does.
        let other = Stored::plain(&SecretKey::from_seed(&[8; 32]));
        assert_eq!(with("").rewrite("alice", &other).expect_err("another").exit, Exit::Usage);
        with("").rewrite("alice", &Stored::plain(&key())).expect("rewritten");
        assert_eq!(with("").load("alice").expect("in the clear").public(), key().public());
    }

    /// spec: KEY-3, KEY-5. Each part of a file is bound: whichever is changed, it does not open.
    #[test]
    fn a_sealed_key_that_was_changed_does_not_open() {
        let Secret::Sealed(whole) = sealed().secret else { unreachable!("it was sealed") };
        assert_eq!(whole.open(b"correct horse").expect("whole").public(), key().public());
        let changed = |change: &dyn Fn(&mut Sealed)| {
            let Secret::Sealed(mut sealed) = sealed().secret else { unreachable!("it was sealed") };
            change(&mut sealed);
            assert_eq!(sealed.open(b"correct horse").err(), Some(KeyFileError::Passphrase));
        };
        changed(&|sealed| sealed.public = SecretKey::from_seed(&[8; 32]).public());
        changed(&|sealed| sealed.costs.passes += 1);
        changed(&|sealed| sealed.costs.memory_kib += 1);
        changed(&|sealed| sealed.salt[15] ^= 1);
        changed(&|sealed| sealed.nonce[23] ^= 1);
        changed(&|sealed| sealed.sealed[0] ^= 1);
        changed(&|sealed| sealed.sealed[SECRET_LEN + TAG_LEN - 1] ^= 0x80);
    }

    /// spec: KEY-4. A file that asks for too much, or promises too little, is refused before anything is done for it.
    #[test]
    fn l02_a_hostile_key_file_cannot_ask_for_more_than_is_allowed() {
        let whole: Value = serde_json::from_slice(&sealed().text()).expect("JSON");
        for (memory, passes, allowed) in [
            (16_384, 1, true),
            (262_144, 4, true),
            (65_536, 16, true),
            (262_144, 5, false),
            (65_537, 16, false),
            (262_145, 1, false),
            (u32::MAX, 1, false),
            (u32::MAX, u32::MAX, false),
            (16_383, 3, false),
            (0, 0, false),
            (16_384, 0, false),
            (16_384, 17, false),
        ] {
            let mut file = whole.clone();
            (file["encryption"]["memory_kib"], file["encryption"]["passes"]) = (json!(memory), json!(passes));
            let parsed = Stored::parse(file.to_string().as_bytes()).err();
            let refused = KeyFileError::Costs { memory_kib: memory, passes };
            assert_eq!(parsed, (!allowed).then_some(refused), "{memory} KiB, {passes} passes");
        }
    }

    #[cfg(unix)]
    #[test]
    fn l02_a_key_file_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().expect("a temporary directory");
        for (name, stored) in [("alice", Stored::plain(&key())), ("bob", sealed())] {
            let path = KeyDir::new(home.path()).add(name, &stored).expect("saved");
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
            for mode in [0o640, 0o604, 0o644, 0o666] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
                let error = read(&path).err().expect("others can read it");
                assert_eq!(error.exit, Exit::Usage);
                assert!(error.message.contains(&format!("{mode:03o}")), "{error}");
            }
        }
    }

    /// spec: KEY-1.
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
            (whole.replace(&key().public().to_string(), &key().public().to_string().to_uppercase()), "lower-case"),
            (whole.replace("ed25519", "rsa"), "algorithm"),
            (whole.replace("\"version\": 1", "\"version\": 2"), "version 2"),
            (whole.replace("\"secret\"", "\"encryption\""), "cut short"),
            (whole.replace(&format!(",\n  \"secret\": \"{secret}\""), ""), "expected one of"),
            (" ".repeat(5000), "at most"),
        ] {
            fs::write(&path, &text).expect("written");
            let error = read(&path).err().expect(&text);
            assert!(error.message.contains(says), "{error} does not say {says:?}");
            assert!(!error.message.contains(&secret[..16]), "{error} shows the secret");
        }
        assert_eq!(read(home.path()).err().expect("a directory").exit, Exit::Usage);
        assert_eq!(read(&home.path().join("no")).err().expect("missing").exit, Exit::NotFound);
        assert!(!format!("{:?}", key()).contains(&secret[..16]), "Debug shows the secret");
    }

    /// spec: KEY-1, KEY-3. An encrypted file has one form too.
    #[test]
    fn l02_broken_encrypted_key_files_are_refused_by_what_is_wrong() {
        let whole: Value = serde_json::from_slice(&sealed().text()).expect("JSON");
        let broken = |change: &dyn Fn(&mut Value)| {
            let mut file = whole.clone();
            change(&mut file);
            problem(file.to_string().as_bytes())
        };
        let unknown = |what, found: &str, expected| KeyFileError::Unknown { what, found: found.to_owned(), expected };
        assert_eq!(
            broken(&|file| file["encryption"]["kdf"] = json!("scrypt")),
            unknown("key derivation", "scrypt", KDF)
        );
        assert_eq!(broken(&|file| file["encryption"]["cipher"] = json!("none")), unknown("cipher", "none", CIPHER));
        let digits = |what, found, expected| KeyFileError::Digits { what, found, expected };
        assert_eq!(broken(&|file| file["encryption"]["salt"] = json!("00")), digits("the salt", 2, 32));
        assert_eq!(broken(&|file| file["encryption"]["nonce"] = json!("AA".repeat(24))), digits("the nonce", 48, 48));
        assert_eq!(broken(&|file| file["encryption"]["sealed"] = json!("")), digits("the sealed secret", 0, 96));
        assert_eq!(broken(&|file| file["encryption"]["lanes"] = json!(1)), KeyFileError::Form);
        assert_eq!(broken(&|file| file["encryption"]["passes"] = json!(-1)), KeyFileError::Form);
        assert_eq!(broken(&|file| file["secret"] = json!("00".repeat(32))), KeyFileError::Secret);
    }

    /// spec: KEY-1, KEY-3. The bytes of the vectors are what is written, and are read back.
    #[test]
    fn key_files_are_those_of_the_vectors() {
        let text = |stored: &Stored| -> Value { serde_json::from_slice(&stored.text()).expect("JSON") };
        let found = json!({
            "seed": hex::encode([7; 32]),
            "passphrase": "correct horse",
            "plain": text(&Stored::plain(&key())),
            "encrypted": text(&sealed()),
        });
        let golden = golden::check("keys.json", &found);
        let stored = Stored::parse(golden["encrypted"].to_string().as_bytes()).expect("a key file");
        let Secret::Sealed(sealed) = stored.secret else { panic!("it is encrypted") };
        assert_eq!(sealed.open(b"correct horse").expect("opened").seed().as_ref(), &[7; 32]);
        assert!(Stored::parse(golden["plain"].to_string().as_bytes()).is_ok());
    }
}
