//! How many updates a second stay durable for as long as one likes: with flushes, compaction and all else that a burst is over
//! before.
//!
//! The blocks are those of W2. Seconds are seconds of commits: what the benchmark itself takes to make a block is not
//! counted, as in the other workloads. A block counts in the second in which it was done, so a commit that is held up for
//! longer leaves seconds in which nothing was.

use super::{BenchError, Engine, Figures, Model, disk_bytes, hundredths, memory_kb, rate, ratio, written_bytes};
use keelstone_codec::Root;
use std::path::Path;
use std::time::Duration;

/// Commits blocks of `size` updates until commits have taken `seconds`.
///
/// # Errors
/// What the store says.
pub(super) fn sustained(
    engine: &mut Engine,
    model: &mut Model,
    size: usize,
    seconds: u64,
    data: &Path,
) -> Result<(Figures, Root), BenchError> {
    let until = Duration::from_secs(seconds);
    let (mut busy, mut times) = (Duration::ZERO, Vec::new());
    let mut each_second = vec![0u64; usize::try_from(seconds).expect("seconds of a benchmark are few")];
    let (mut root, mut disk) = (engine.store.root(), 0);
    let written = written_bytes();
    let updates = u64::try_from(size).expect("a count fits 64 bits");
    while busy < until {
        let (made, took) = engine.timed(model.update_block(size))?;
        root = made;
        let second = busy.as_secs();
        busy += took;
        times.push(took);
        // What was done after the end counts in no second.
        if let Some(done) = usize::try_from(busy.as_secs()).ok().and_then(|second| each_second.get_mut(second)) {
            *done += updates;
        }
        if busy.as_secs() > second {
            disk = disk.max(disk_bytes(data));
        }
    }
    let written = written_bytes().saturating_sub(written);
    let blocks = u64::try_from(times.len()).expect("a count fits 64 bits");
    times.sort_unstable();
    each_second.sort_unstable();
    let (med_ms, p99_ms) = (hundredths(&times, 50), hundredths(&times, 99));
    let second_med = each_second.get(each_second.len() / 2).copied().unwrap_or(0);
    let second_min = each_second.first().copied().unwrap_or(0);
    // 32 bytes of key and 100 of value, each.
    let entries = 132 * u64::try_from(model.live.len()).expect("a length fits 64 bits");
    let figures = Figures::Sustained {
        seconds,
        updates_per_s: rate(blocks * updates, busy),
        second_med,
        second_min,
        med_ms,
        p99_ms,
        max_ms: hundredths(&times, 100),
        written_per_update: written / (blocks * updates).max(1),
        disk,
        disk_ratio: ratio(disk, entries),
        rss_kb: memory_kb(),
        root,
    };
    Ok((figures, root))
}
