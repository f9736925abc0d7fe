//! Keelstone tree.
