//! Keelstone ledger.
