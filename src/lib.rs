//! Keelstone.
