//! Xian's state: read from its networks' exports, kept exact, counted as Xian counts, and written again.
//!
//! Rules: `spec/ledger.md`, XIAN-1 to XIAN-8.

mod amount;
mod decimal;
mod import;
mod state;

pub use amount::{Amount, AmountError};
pub use decimal::{DIGITS_MAX, Decimal, DecimalError};
pub use import::{ExportError, Import, ImportError, entry, export};
pub use state::{CONTRACTS, Document, EntryKey, Form, Listed, NAME_LEN_MAX, NameError, Record};
