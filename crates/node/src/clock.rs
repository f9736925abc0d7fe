//! The machine's clock, for times that people read, for those of blocks, and for what another has certified. Waiting is
//! measured by `Instant`, which nobody sets.

use keelstone_codec::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine's clock. It enters state only as the time of a block.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
