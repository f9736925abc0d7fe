//! Keelstone node.
