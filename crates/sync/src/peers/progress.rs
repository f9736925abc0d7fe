//! How far a sync is and how long it will take, in whole numbers.
//!
//! What is done and what there is to do is exact: it comes from proven totals. Rates are those of the last seconds, by
//! the clock that is passed in.

use super::Tick;
use keelstone_tree::Totals;
use std::collections::VecDeque;

/// How long back rates look, in milliseconds.
const WINDOW_MS: u64 = 10_000;
/// How far apart the samples are from which rates are taken, in milliseconds.
const SAMPLE_MS: u64 = 250;

/// How far a sync is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Nodes of the tree that are proven, those of units included.
    pub nodes: u64,
    /// Entries that are proven and staged.
    pub done: Totals,
    /// Entries in all; none before the first page.
    pub total: Option<Totals>,
    /// Bytes that peers sent, as they came.
    pub received_bytes: u64,
    /// Nodes proven in a second, lately.
    pub nodes_per_second: u64,
    /// Bytes of entries proven in a second, lately.
    pub bytes_per_second: u64,
    /// Hundredths of a percent of the bytes of all entries; 10,000 if and only if all are there.
    pub done_per_ten_thousand: u32,
    /// How long the rest takes at this rate; none while there is no rate.
    pub left_ms: Option<u64>,
    /// Peers that are connected.
    pub peers: u32,
    /// Requests under way.
    pub requests: u32,
}

/// Counts what was proven, and when.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) nodes: u64,
    pub(super) bytes: u64,
    pub(super) received_bytes: u64,
    samples: VecDeque<(Tick, u64, u64)>,
}

impl Meter {
    /// Takes a sample, if it is time for one.
    pub(super) fn sample(&mut self, now: Tick) {
        if self.samples.back().is_some_and(|(last, ..)| now.0 < last.0 + SAMPLE_MS) {
            return;
        }
        // The time before the first entries says nothing about how long the rest takes.
        if self.bytes == 0 {
            self.samples.clear();
        }
        self.samples.push_back((now, self.nodes, self.bytes));
        while self.samples.get(1).is_some_and(|(next, ..)| next.0 + WINDOW_MS <= now.0) {
            self.samples.pop_front();
        }
    }

    /// Nodes and bytes in a second.
    pub(super) fn rates(&self, now: Tick) -> (u64, u64) {
        let Some((then, nodes, bytes)) = self.samples.front().filter(|(then, ..)| then.0 < now.0) else {
            return (0, 0);
        };
        let per_second = |count: u64| count.saturating_mul(1000) / (now.0 - then.0);
        (per_second(self.nodes - nodes), per_second(self.bytes - bytes))
    }
}

/// Hundredths of a percent, rounded down, so that all is only said of all.
pub(super) fn per_ten_thousand(done: u64, total: u64) -> u32 {
    if total == 0 {
        return 10_000;
    }
    let share = u128::from(done.min(total)) * 10_000 / u128::from(total);
    u32::try_from(share).expect("at most 10,000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let mut meter = Meter::default();
        for tick in 0..400u64 {
            meter.sample(Tick(tick * 100));
            // 10 nodes in a second at first, 100 for the last twenty seconds.
            meter.nodes += if tick < 200 { 1 } else { 10 };
            meter.bytes += 1000;
        }
        assert_eq!(meter.rates(Tick(40_000)), (100, 10_000));
        assert_eq!(Meter::default().rates(Tick(5)), (0, 0));
    }

    #[test]
    fn all_is_said_of_all_only() {
        assert_eq!(per_ten_thousand(u64::MAX - 1, u64::MAX), 9_999);
        assert_eq!(per_ten_thousand(u64::MAX, u64::MAX), 10_000);
        assert_eq!((per_ten_thousand(0, 0), per_ten_thousand(1, 3)), (10_000, 3_333));
    }
}
