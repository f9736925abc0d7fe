//! What the errors of the crates below come to for whoever asked: each by who has to act.

use crate::api::Refusal;
use crate::exit::{Exit, Failure, causes};
use keelstone_ledger::{
    BlockError, ForesightError, InheritError, LedgerError, PoolError, RebuildError, Refusal as TxRefusal, ReplayError,
};
use keelstone_store::StoreError;
use keelstone_sync::delta::DeltaError;
use keelstone_sync::library::LibraryError;
use keelstone_tree::ReadError;

/// What may be behind a block that comes to something else than is kept of it.
pub(crate) const ANOTHER_PROGRAM: &str = "another version of the program may have made the block, or another program; or what is kept of it \
                               is damaged: keelstone db check looks for that";

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotRetained { height, low, high } => {
                Self::Height { asked: height.0, lowest: low.0, highest: high.0 }
            }
            error if error.is_damage() => Self::Damaged(causes(&error)),
            error => Self::Failed(causes(&error)),
        }
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<LedgerError> for Refusal {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => error.into(),
            LedgerError::NoBlock { .. }
            | LedgerError::NotYet { .. }
            | LedgerError::NoRecord { .. }
            | LedgerError::NoAudit { .. } => Self::NotFound(error.to_string()),
            LedgerError::WitnessTooLarge { .. } => Self::Bad(error.to_string()),
            error if error.is_damage() => Self::Damaged(causes(&error)),
            error => Self::Failed(causes(&error)),
        }
    }
}

impl From<ForesightError> for Refusal {
    fn from(error: ForesightError) -> Self {
        match error {
            // As whoever sends it would be told.
            ForesightError::Refused(refusal) => refusal.into(),
            ForesightError::Block(error) => LedgerError::from(error).into(),
            ForesightError::Halt(halt) => LedgerError::from(BlockError::from(halt)).into(),
            error => Self::Failed(causes(&error)),
        }
    }
}

impl From<TxRefusal> for Refusal {
    fn from(refusal: TxRefusal) -> Self {
        let (code, message) = (refusal.code().to_string(), refusal.to_string());
        let refused = Self::Refused { code, message };
        match refusal {
            TxRefusal::Decode(_) => Self::Bad(refused.to_string()),
            TxRefusal::Pool(PoolError::Full { .. }) => Self::Busy(refused.to_string()),
            TxRefusal::State(error) => error.into(),
            _ => refused,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = causes(&error);
        match error {
            StoreError::InUse { .. } => {
                Self::new(Exit::InUse, message).hint("stop the node that runs there, or give another --home")
            }
            StoreError::NotRetained { .. } | StoreError::CannotRollBack { .. } | StoreError::NoDiff { .. } => {
                Self::not_found(message)
            }
            StoreError::Missing { .. } | StoreError::Empty => Self::new(Exit::NoChain, message),
            StoreError::WrongRoot { .. } => Self::integrity(message),
            error if error.is_damage() => Self::integrity(message).hint("keelstone db check names all damage"),
            _ => Self::error(message),
        }
    }
}

impl From<DeltaError> for Failure {
    fn from(error: DeltaError) -> Self {
        match error {
            DeltaError::Read(error) => error.into(),
            DeltaError::NoChange { .. } => Self::integrity(error.to_string()),
            error => Self::usage(error.to_string()),
        }
    }
}

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        let message = causes(&error);
        match error {
            LibraryError::InUse { .. } => {
                Self::new(Exit::InUse, message).hint("stop the node that runs there, or give another --home")
            }
            LibraryError::NotFound(_) => Self::not_found(message).hint("keelstone snapshot list shows what there is"),
            LibraryError::NoRoom { .. } => {
                Self::error(message).hint("free some, or set snapshots.reserve_percent lower")
            }
            LibraryError::Archive(_)
            | LibraryError::Tar(_)
            | LibraryError::Foreign { .. }
            | LibraryError::TooLarge { .. } => Self::usage(message),
            LibraryError::OtherRoot { .. } => Self::integrity(message),
            LibraryError::Read(error) => error.into(),
            error if error.is_damage() => Self::integrity(message),
            _ => Self::error(message),
        }
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        let message = causes(&error);
        match error {
            LedgerError::Store(error) => error.into(),
            LedgerError::NoBlock { .. }
            | LedgerError::NotYet { .. }
            | LedgerError::NoRecord { .. }
            | LedgerError::NoAudit { .. } => Self::not_found(message),
            LedgerError::Genesis(_) | LedgerError::Registry(_) => Self::usage(message),
            error if error.is_damage() => Self::integrity(message),
            _ => Self::error(message),
        }
    }
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Ledger(error) => error.into(),
            ReplayError::Range { .. } => Self::not_found(error.to_string()),
            ReplayError::Differs { .. } => Self::integrity(causes(&error)).hint(ANOTHER_PROGRAM),
            error => Self::integrity(causes(&error)),
        }
    }
}

impl From<RebuildError> for Failure {
    fn from(error: RebuildError) -> Self {
        match error {
            RebuildError::Ledger(error) => error.into(),
            RebuildError::Differs { .. } => Self::integrity(causes(&error)).hint(ANOTHER_PROGRAM),
            RebuildError::Missing { .. } => Self::not_found(error.to_string()).hint(
                "a node that kept the blocks from the first on can rebuild it, or restore an older snapshot first",
            ),
            error => Self::not_found(error.to_string()),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<InheritError<StoreError>> for Failure {
    fn from(error: InheritError<StoreError>) -> Self {
        match error {
            InheritError::Genesis(error) => LedgerError::from(error).into(),
            InheritError::Taker(error) => error.into(),
        }
    }
}
