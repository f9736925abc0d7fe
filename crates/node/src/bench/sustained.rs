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

use super::{
    BenchError, Engine, Figures, Model, disk_bytes, hundredths, median, memory_kb, ms, rate, ratio, written_bytes,
};
use keelstone_codec::Root;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

/// What was on the disk at one moment, and how much of it was history then.
#[derive(Debug, Clone, Copy)]
struct Looked {
    disk: u64,
    history: u64,
}

/// What the second half of them had on the disk without the history of that moment, sorted.
fn steady(looked: &[Looked]) -> Vec<u64> {
    let half = &looked[looked.len() / 2..];
    let mut bytes: Vec<u64> = half.iter().map(|looked| looked.disk.saturating_sub(looked.history)).collect();
    bytes.sort_unstable();
    bytes
}

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
    // Bytes of the keys and values of each height that is kept, and of all of them.
    let (mut kept, mut history_bytes) = (VecDeque::new(), 0);
    let written = written_bytes();
    let updates = u64::try_from(size).expect("a count fits 64 bits");
    while busy < until {
        let batch = model.update_block(size);
        if let Some(history) = history {
            let lens = batch.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
            let bytes = lens.sum::<usize>() as u64;
            kept.push_back(bytes);
            history_bytes += bytes;
            if kept.len() as u64 > history {
                history_bytes -= kept.pop_front().unwrap_or(0);
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
            disks.push(Looked { disk: disk_bytes(data), history: history_bytes });
        }
    }
    let written = written_bytes().saturating_sub(written);
    let blocks = u64::try_from(times.len()).expect("a count fits 64 bits");
    times.sort_unstable();
    each_second.sort_unstable();
    let (med_ms, p99_ms) = (median(&times).map_or(0.0, ms), hundredths(&times, 99));
    let second_med = median(&each_second).unwrap_or(0);
    let second_min = each_second.first().copied().unwrap_or(0);
    // 32 bytes of key and 100 of value, each.
    let entries = 132 * u64::try_from(model.live.len()).expect("a length fits 64 bits");
    let disk = disks.iter().map(|looked| looked.disk).max().unwrap_or(0);
    let steady = steady(&disks);
    let beside = |disk: Option<u64>| ratio(disk.unwrap_or(0), entries);
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
        steady_med_ratio: beside(median(&steady)),
        steady_max_ratio: beside(steady.last().copied()),
        compactions: stats.compactions,
        flush_waits: stats.flush_waits,
        compaction_waits: stats.compaction_waits,
        rss_kb: memory_kb(),
        root,
    };
    Ok((figures, root))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// History grows until as many heights are kept as may be: what was looked at before has less of it taken off.
    #[test]
    fn history_is_taken_off_as_it_was_when_it_was_looked_at() {
        let looked = [(900, 0), (500, 100), (700, 200), (1_000, 600)];
        assert_eq!(steady(&looked.map(|(disk, history)| Looked { disk, history })), [400, 500]);
        assert!(steady(&[]).is_empty());
    }
}
