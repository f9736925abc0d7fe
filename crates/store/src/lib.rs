//! Keelstone store.
