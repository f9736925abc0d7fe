//! Passphrases of key files: where they come from, and how one is asked for.
//!
//! From a file or an open descriptor, from the environment, or from whoever sits at the terminal, in this order. One is
//! wiped from memory when it is dropped and appears in no message.

use crate::exit::Failure;
use crate::input;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use zeroize::{Zeroize as _, Zeroizing};

/// Bytes of the longest passphrase.
const BYTES_MAX: usize = 1_024;

/// What opens an encrypted key file: 1 to [`BYTES_MAX`] bytes.
pub(crate) struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Takes over what `source` gave.
    ///
    /// # Errors
    /// A usage failure for nothing at all and for too much.
    pub(crate) fn new(bytes: Zeroizing<Vec<u8>>, source: impl fmt::Display) -> Result<Self, Failure> {
        match bytes.len() {
            0 => Err(Failure::usage(format!("{source}: an empty passphrase"))),
            1..=BYTES_MAX => Ok(Self(bytes)),
            _ => Err(Failure::usage(format!("{source}: a passphrase has at most {BYTES_MAX} bytes"))),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

/// Where passphrases come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file that only its owner can read.
    File(PathBuf),
    /// An open descriptor of this process, read to its end.
    Descriptor(u32),
    /// What stands in a variable of the environment. Everybody who may look at this process can read it there.
    Variable(&'static str),
    /// Whoever sits at the terminal.
    Person,
}

impl Source {
    /// The first of these that is given.
    pub(crate) fn given(file: Option<&Path>, descriptor: Option<u32>, variable: &'static str) -> Self {
        match (file, descriptor) {
            (Some(file), _) => Self::File(file.to_owned()),
            (None, Some(descriptor)) => Self::Descriptor(descriptor),
            (None, None) if std::env::var_os(variable).is_some() => Self::Variable(variable),
            (None, None) => Self::Person,
        }
    }

    /// The passphrase of `what`.
    ///
    /// # Errors
    /// A usage failure if there is none, or nobody to be asked.
    pub(crate) fn passphrase(&self, what: &str) -> Result<Passphrase, Failure> {
        match self {
            Self::File(path) => {
                let text = input::read_private(path, "passphrase file", BYTES_MAX as u64 + 1)?;
                Passphrase::new(line(text), path.display())
            }
            Self::Descriptor(number) => {
                let path = PathBuf::from(format!("/dev/fd/{number}"));
                let mut text = room();
                File::open(&path)
                    .and_then(|file| file.take(BYTES_MAX as u64 + 2).read_to_end(&mut text))
                    .map_err(|error| Failure::usage(format!("descriptor {number}: {error}")))?;
                Passphrase::new(line(text), format_args!("descriptor {number}"))
            }
            Self::Variable(name) => match std::env::var(name) {
                Ok(text) => Passphrase::new(Zeroizing::new(text.into_bytes()), name),
                Err(error) => Err(Failure::usage(format!("{name}: {error}"))),
            },
            Self::Person => ask(&format!("Passphrase of {what}: "))?.ok_or_else(|| {
                Failure::usage(format!("{what} is encrypted, and there is nobody to ask for its passphrase"))
                    .hint("--passphrase-file FILE, --passphrase-fd N or KEELSTONE_PASSPHRASE give it")
            }),
        }
    }

    /// A passphrase that `what` is to have from now on. A person is asked twice: nobody sees what is typed.
    ///
    /// # Errors
    /// As [`Self::passphrase`], and if the second is not the first.
    pub(crate) fn new_passphrase(&self, what: &str) -> Result<Passphrase, Failure> {
        if *self != Self::Person {
            return self.passphrase(what);
        }
        let missing = || {
            Failure::usage(format!("there is nobody to ask for a new passphrase of {what}"))
                .hint("a file, a descriptor or the environment gives it: keelstone keys --help")
        };
        let first = ask(&format!("New passphrase of {what}: "))?.ok_or_else(missing)?;
        let second = ask("The same again: ")?.ok_or_else(missing)?;
        match first.bytes() == second.bytes() {
            true => Ok(first),
            false => Err(Failure::usage("the two passphrases differ")),
        }
    }
}

/// Room for a passphrase that is read: one that grew would leave copies behind.
fn room() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(BYTES_MAX + 64))
}

/// Without the end of the line, if there is one.
fn line(mut text: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    text
}

/// Asks whoever sits at the terminal, who does not see what is typed. None if nobody does.
fn ask(prompt: &str) -> Result<Option<Passphrase>, Failure> {
    // Where errors go to a file or a pipe nobody would see the question.
    if !io::stderr().is_terminal() {
        return Ok(None);
    }
    let Ok(mut terminal) = File::options().read(true).write(true).open("/dev/tty") else { return Ok(None) };
    let failed = |error: io::Error| Failure::io("could not ask for a passphrase", &error);
    terminal.write_all(prompt.as_bytes()).map_err(failed)?;
    let quiet = Quiet::begin(&terminal).map_err(failed)?;
    let text = read_line(&terminal).map_err(failed);
    drop(quiet);
    terminal.write_all(b"\n").map_err(failed)?;
    Passphrase::new(text?, "the terminal").map(Some)
}

/// A line, byte by byte: what a buffered reader keeps is not wiped. What is too long is read to its end, and stays so.
fn read_line(mut from: impl io::Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut text = room();
    let mut byte = [0];
    while from.read(&mut byte)? == 1 && byte[0] != b'\n' {
        if text.len() <= BYTES_MAX {
            text.push(byte[0]);
        }
    }
    byte.zeroize();
    Ok(text)
}

/// A terminal that shows nothing of what is typed, for as long as this lives.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn begin(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn private(dir: &tempfile::TempDir, text: &[u8]) -> Source {
        let path = dir.path().join("passphrase");
        let _ = std::fs::remove_file(&path);
        crate::newfile::replace_private(&path, text).expect("written");
        Source::File(path)
    }

    #[test]
    fn a_passphrase_is_a_line_of_bytes_within_its_bound() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let longest = "x".repeat(BYTES_MAX);
        for (text, found) in [
            ("correct horse", "correct horse"),
            ("correct horse\n", "correct horse"),
            (" kept as it is \n\n", " kept as it is \n"),
            (&longest, &longest),
            (&format!("{longest}\n"), &longest),
        ] {
            let read = private(&dir, text.as_bytes()).passphrase("the key").expect(text);
            assert_eq!(read.bytes(), found.as_bytes());
            assert_eq!(format!("{read:?}"), "Passphrase");
        }
        for text in ["", "\n", &format!("{longest}y"), &"x".repeat(10 * BYTES_MAX)] {
            let failure = private(&dir, text.as_bytes()).passphrase("the key").expect_err("no passphrase");
            assert_eq!(failure.exit, Exit::Usage, "{failure}");
            assert!(!failure.message.contains("xx"), "{failure} shows it");
        }
        assert_eq!(read_line(&b"typed\nmore"[..]).expect("read").as_slice(), b"typed");
        assert_eq!(read_line(&vec![b'x'; 10 * BYTES_MAX][..]).expect("read").len(), BYTES_MAX + 1);
    }

    #[cfg(unix)]
    #[test]
    fn l02_a_passphrase_file_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let source = private(&dir, b"correct horse");
        let Source::File(path) = &source else { unreachable!("it was made so") };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("set");
        let failure = source.passphrase("the key").expect_err("others can read it");
        assert!(failure.exit == Exit::Usage && failure.message.contains("644"), "{failure}");
    }
}
