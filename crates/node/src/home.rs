//! The home directory of a chain: what lies where in it.
//!
//! ```text
//! keelstone.toml   configuration, optional
//! genesis.json     what the chain began with
//! genesis.tar      the state it inherited, if its genesis says so
//! program.json     which program made the last blocks here
//! keys/            secret keys, each readable by its owner only
//! data/            state, blocks and receipts, in generations; locked by the process that uses them
//! data/snapshots/  snapshots, under a lock of their own
//! audit/           what this node did to its state and settings: its own audit log, with the key that signs it; and in HEIGHT
//!                  where the state last stood
//! api.json         where the API of the running node listens
//! tokens.json      hashes of tokens for the API, readable by its owner only
//! tokens.lock      locked by the process that changes them
//! api.token        the token for this home's own commands, while a node runs
//! bans.json        peers that are not spoken to any more
//! recoveries/      what recoveries did: their signed reports
//! ```

use crate::exit::{Exit, Failure};
use crate::newfile;
use crate::strict_json;
use keelstone_ledger::Genesis;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A home directory.
#[derive(Debug, Clone)]
pub(crate) struct Home(PathBuf);

impl Home {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("keelstone.toml")
    }

    pub(crate) fn genesis(&self) -> PathBuf {
        self.0.join("genesis.json")
    }

    /// The archive of the state that the genesis inherits.
    pub(crate) fn inherited(&self) -> PathBuf {
        self.0.join("genesis.tar")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Where the node's own audit log is, with the key that signs it.
    pub(crate) fn own_log(&self) -> PathBuf {
        self.0.join("audit")
    }

    /// Where snapshots are kept.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.data().join("snapshots")
    }

    /// Where parts of a state wait that is taken from peers.
    pub(crate) fn joining(&self) -> PathBuf {
        self.data().join("joining")
    }

    /// Removes what waited there, which has served. Why it could not be, for whoever has to: it is in nobody's way.
    pub(crate) fn clear_joining(&self) -> Option<String> {
        let place = self.joining();
        match std::fs::remove_dir_all(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Some(format!(
                "what was fetched has served and could not be removed: {}: {error}; remove it",
                place.display()
            )),
            _ => None,
        }
    }

    fn program_file(&self) -> PathBuf {
        self.0.join("program.json")
    }

    /// The program that made the last blocks here, if one has said so.
    pub(crate) fn program(&self) -> Option<Program> {
        strict_json::parse(&fs::read(self.program_file()).ok()?).ok()
    }

    /// Notes which program makes the blocks here from now on.
    pub(crate) fn note_program(&self, program: &Program) -> io::Result<()> {
        if self.program().as_ref() == Some(program) {
            return Ok(());
        }
        newfile::replace(&self.program_file(), format!("{}\n", serde_json::json!(program)).as_bytes())
    }

    fn api(&self) -> PathBuf {
        self.0.join("api.json")
    }

    /// Refuses a home without a chain. Its genesis may be large, and most commands need nothing of it.
    pub(crate) fn check_chain(&self) -> Result<(), Failure> {
        match fs::metadata(self.genesis()) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.no_genesis(&error)),
        }
    }

    fn no_genesis(&self, error: &io::Error) -> Failure {
        if error.kind() != io::ErrorKind::NotFound {
            return Failure::io(format_args!("could not read {}", self.genesis().display()), error);
        }
        let message = format!("there is no chain in {}", self.0.display());
        Failure::new(Exit::NoChain, message).hint(format!("keelstone init --home {} makes one", self.0.display()))
    }

    /// The genesis of the chain that lives here.
    pub(crate) fn read_genesis(&self) -> Result<Genesis, Failure> {
        let path = self.genesis();
        let text = fs::read(&path).map_err(|error| self.no_genesis(&error))?;
        Genesis::parse(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
    }

    /// Why no chain can begin in a home that has one.
    pub(crate) fn is_taken(&self) -> Failure {
        let message = format!("there is a chain in {} already", self.0.display());
        Failure::usage(message).hint("--home DIR names a directory without one")
    }

    /// Writes the genesis of a new chain, which must be the first here.
    pub(crate) fn write_genesis(&self, genesis: &Genesis) -> Result<(), Failure> {
        let path = self.genesis();
        let failed = |error: io::Error| Failure::io(format_args!("could not write {}", path.display()), &error);
        newfile::create_dir(&self.0).map_err(failed)?;
        if path.exists() {
            return Err(self.is_taken());
        }
        // Written aside first: a genesis cut short by a full disk must not look like a chain.
        newfile::replace(&path, (genesis.to_json().to_pretty() + "\n").as_bytes()).map_err(failed)
    }

    /// Says where the API of the node that now runs here listens.
    pub(crate) fn announce_api(&self, announced: &Announced) -> Result<(), Failure> {
        let path = self.api();
        let failed = |error: io::Error| Failure::io("could not write api.json", &error);
        // A command may read it at any time.
        newfile::replace(&path, format!("{}\n", serde_json::json!(announced)).as_bytes()).map_err(failed)
    }

    /// Where hashes of tokens for the API are kept.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.0.join("tokens.json")
    }

    /// What a process locks while it changes them.
    pub(crate) fn tokens_lock(&self) -> PathBuf {
        self.0.join("tokens.lock")
    }

    /// Where the token for the commands of this home is while a node runs.
    pub(crate) fn own_token(&self) -> PathBuf {
        self.0.join("api.token")
    }

    /// Where it is kept who is not spoken to any more.
    pub(crate) fn bans(&self) -> PathBuf {
        self.0.join("bans.json")
    }

    /// Takes the announcement back.
    pub(crate) fn withdraw_api(&self) {
        let _ = fs::remove_file(self.own_token());
        // A stale announcement costs a failed connection; it is no reason to fail a clean stop.
        let _ = fs::remove_file(self.api());
    }

    /// Where a node said it listens, if one did. It may be gone since.
    pub(crate) fn announced_api(&self) -> Option<Announced> {
        strict_json::parse(&fs::read(self.api()).ok()?).ok()
    }
}

/// A program that made blocks of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Program {
    /// What it is called.
    pub(crate) name: String,
    /// Its interface.
    // spec: EXEC-22
    pub(crate) interface: String,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (interface {})", self.name, self.interface)
    }
}

/// Where the API of a node listens, for the commands of its home.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Announced {
    pub(crate) listen: SocketAddr,
    pub(crate) pid: u32,
    /// How to know it, and be known to it, if it speaks HTTPS.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) tls: Option<AnnouncedTls>,
}

/// How the commands of a home know its node, and how it knows them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnnouncedTls {
    /// SHA-256 of the certificate it shows.
    pub(crate) fingerprint: String,
    /// Where that certificate is.
    pub(crate) certificate: PathBuf,
    /// Where its key is, for a node that asks its clients for a certificate.
    pub(crate) key: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cannot be removed is told, with where it is; what is not there is no failure.
    #[test]
    fn what_was_fetched_is_removed_or_told() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(place.path().to_owned());
        assert_eq!(home.clear_joining(), None);
        std::fs::create_dir_all(home.joining().join("units")).expect("made");
        assert_eq!(home.clear_joining(), None);
        assert!(!home.joining().exists());
        std::fs::write(home.joining(), "no directory").expect("written");
        let told = home.clear_joining().expect("it is told");
        assert!(told.contains(&home.joining().display().to_string()), "{told}");
    }
}
