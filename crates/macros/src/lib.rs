//! Keelstone macros.
