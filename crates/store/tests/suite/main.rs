//! Tests of the store through its public face. One binary, since linking is what takes long.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise; numbers are small"
)]

mod answers;
mod build;
mod compaction;
mod damage;
mod directory;
mod faults;
mod fixture;
mod histories;
mod kv;
mod life;
mod limits;
mod memory;
mod mend;
mod places;
mod repair;
mod scrub;
mod space;
mod stress;
mod support;
mod toy;
