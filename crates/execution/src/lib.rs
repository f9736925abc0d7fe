//! Keelstone execution.
