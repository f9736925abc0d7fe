//! Exit codes, and the one error type of the command line.
//!
//! A code says who has to act; it never changes its meaning. The table is in `docs/cli.md`.

pub(crate) use keelstone_sync::recovery::causes;
use std::fmt;
use std::process::ExitCode;

/// What a command ended with. Each code has one meaning on every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything that was asked for was done, and every check held.
    Ok = 0,
    /// The machine or another program failed: disk, network, a node that does not answer.
    Error = 1,
    /// The command line, the configuration or an input file is wrong. Nothing was changed.
    Usage = 2,
    /// There is no chain in this home directory.
    NoChain = 10,
    /// Another process uses this home directory.
    InUse = 11,
    /// Bytes on disk, a root or a proof are not what they must be.
    Integrity = 12,
    /// The rules of the chain refused a transaction, or its bundle failed.
    Refused = 13,
    /// The height, block, transaction or entry asked for is not kept or does not exist.
    NotFound = 14,
    /// A function of the application ran for longer than a node lets it, and the node ended itself.
    Halted = 15,
    /// State sync did not come to its end: the engine gave up, or nobody sends what is missing.
    SyncFailed = 16,
    /// Whether the state is the chain's is not known: nothing certifies it yet, and no peer could say; or of several that were to
    /// be compared one gave nothing, or there was nothing to verify.
    Unknown = 17,
}

impl Exit {
    /// The word for the code in `--json` output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Usage => "usage",
            Self::NoChain => "no_chain",
            Self::InUse => "in_use",
            Self::Integrity => "integrity",
            Self::Refused => "refused",
            Self::NotFound => "not_found",
            Self::Halted => "halted",
            Self::SyncFailed => "sync_failed",
            Self::Unknown => "unknown",
        }
    }
}

impl Exit {
    const ALL: [Self; 11] = [
        Self::Ok,
        Self::Error,
        Self::Usage,
        Self::NoChain,
        Self::InUse,
        Self::Integrity,
        Self::Refused,
        Self::NotFound,
        Self::Halted,
        Self::SyncFailed,
        Self::Unknown,
    ];

    /// The code of a word, as another process of this program wrote it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.name() == name)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    /// What the process ends with.
    pub exit: Exit,
    /// What happened, with the values that were compared.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with an exit code of its own.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// The machine failed.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Exit::Error, message)
    }

    /// The caller has to change the command line, the configuration or an input file.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something stored or proven is not what it must be.
    pub fn integrity(message: impl Into<String>) -> Self {
        Self::new(Exit::Integrity, message)
    }

    /// Something asked for is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The machine failed while `doing` something; the causes follow.
    pub fn io(doing: impl fmt::Display, source: &dyn std::error::Error) -> Self {
        Self::error(format!("{doing}: {}", causes(source)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Failure {}
