//! How many updates a second stay durable for as long as one likes: with flushes, compaction and all else that a burst is over
//! before.
//!
//! The blocks are those of W2. Seconds are seconds of commits: what the benchmark itself takes to make a block is not
//! counted, as in the other workloads. A block counts in the second in which it was done, so a commit that is held up for
//! longer leaves seconds in which nothing was.
//!
//! What the store takes on the disk is looked at each second. How much of it is history can be said only if its heights are
//! bounded: then it is the keys and values of the writes of those that are kept, each beside the state that has it too or
//! has it no more.

use super::{BenchError, Engine, Figures, Model, disk_bytes, hundredths, memory_kb, rate, ratio, written_bytes};
use keelstone_codec::Root;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

/// Commits blocks of `size` updates until commits have taken `seconds`. The store keeps so many heights of `history`, or all.
///
/// # Errors
/// What the store says.
pub(super) fn sustained(
    engine: &mut Engine,
    model: &mut Model,
    size: usize,
    seconds: u64,
    history: Option<u64>,
    data: &Path,
) -> Result<(Figures, Root), BenchError> {
    let until = Duration::from_secs(seconds);
    let (mut busy, mut times) = (Duration::ZERO, Vec::new());
    let mut each_second = vec![0u64; usize::try_from(seconds).expect("seconds of a benchmark are few")];
    let (mut root, mut disks) = (engine.store.root(), Vec::new());
    // Bytes of the keys and values of each height that is kept.
    let mut kept = VecDeque::new();
    let written = written_bytes();
    let updates = u64::try_from(size).expect("a count fits 64 bits");
    while busy < until {
        let batch = model.update_block(size);
        if let Some(history) = history {
            let lens = batch.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
            kept.push_back(lens.sum::<usize>() as u64);
            if kept.len() as u64 > history {
                kept.pop_front();
            }
        }
        let (made, took) = engine.timed(batch)?;
        root = made;
        let second = busy.as_secs();
        busy += took;
        times.push(took);
        // What was done after the end counts in no second.
        if let Some(done) = usize::try_from(busy.as_secs()).ok().and_then(|second| each_second.get_mut(second)) {
            *done += updates;
        }
        if busy.as_secs() > second {
            disks.push(disk_bytes(data));
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
    let history_bytes = kept.iter().sum::<u64>();
    let disk = disks.iter().copied().max().unwrap_or(0);
    let mut steady: Vec<u64> = disks.split_off(disks.len() / 2);
    steady.sort_unstable();
    let beside = |disk: Option<&u64>| ratio(disk.map_or(0, |disk| disk.saturating_sub(history_bytes)), entries);
    let stats = engine.store.stats();
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
        history,
        history_bytes,
        steady_med_ratio: beside(steady.get(steady.len() / 2)),
        steady_max_ratio: beside(steady.last()),
        compactions: stats.compactions,
        flush_waits: stats.flush_waits,
        compaction_waits: stats.compaction_waits,
        rss_kb: memory_kb(),
        root,
    };
    Ok((figures, root))
}
