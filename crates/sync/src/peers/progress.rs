//! How far a sync is and how long it will take, in whole numbers.
//!
//! What is done and what there is to do is exact: it comes from proven totals. Rates are those of the last seconds, by
//! the clock that is passed in. How long it takes to build the state of what was fetched nobody knows before it is tried: a
//! small part is built early, and thrown away.

use super::Tick;
use keelstone_tree::Totals;
use std::collections::VecDeque;

/// How long back rates look, in milliseconds.
const WINDOW_MS: u64 = 10_000;
/// How far apart the samples are from which rates are taken, in milliseconds.
const SAMPLE_MS: u64 = 250;
/// Building is rehearsed once this part of all bytes is there, one in so many..
const REHEARSED_AT: u64 = 30;
/// ..if there are at least this many; what is smaller is over before anybody has read how long it takes.
const REHEARSED_FROM: u64 = 64 << 20;
/// What is built for it at most: one byte in so many, and so many.
const REHEARSED_PART: u64 = 32;
const REHEARSED_MAX: u64 = 64 << 20;

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
    /// How long the rest takes at this rate, and building after it if that was rehearsed; none while there is no rate.
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
    /// Bytes that were built for a rehearsal, and how many microseconds that took.
    rehearsed: Option<(u64, u64)>,
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

    /// How many bytes should be built now, of those that are there, to learn how long that takes.
    pub(super) fn to_rehearse(&self, done: u64, total: u64) -> Option<u64> {
        let is_time = self.rehearsed.is_none() && total >= REHEARSED_FROM && done >= total / REHEARSED_AT;
        is_time.then(|| (total / REHEARSED_PART).min(REHEARSED_MAX))
    }

    /// A rehearsal ended now: so many bytes more took so many microseconds more. Rates begin anew: nothing was fetched meanwhile,
    /// and before it peers were only met, which is slower than what follows.
    pub(super) fn rehearsed(&mut self, bytes: u64, took_us: u64) {
        self.rehearsed = Some((bytes.max(1), took_us));
        self.samples.clear();
    }

    /// How long it takes to fetch so many bytes, and to build all of so many.
    pub(super) fn left_ms(&self, now: Tick, to_fetch: u64, to_build: u64) -> Option<u64> {
        let (_, bytes_per_second) = self.rates(now);
        let fetching = to_fetch.saturating_mul(1000).checked_div(bytes_per_second)?;
        let building = self.rehearsed.map_or(0, |(bytes, took_us)| {
            let millis = u128::from(to_build) * u128::from(took_us) / u128::from(bytes) / 1000;
            u64::try_from(millis).unwrap_or(u64::MAX)
        });
        Some(fetching.saturating_add(building))
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

    /// Fetching at one rate, but at first nothing or a quarter of it, and building at another, with a rehearsal that takes a
    /// while: from the twentieth part on the forecast is off by less than a tenth of what is left.
    #[test]
    fn the_forecast_is_right_from_the_first_twentieth_on() {
        let (total, fetched_in_ms, built_in_us) = (1_200_000_000u64, 120_000, 90_000_000);
        for (nothing_ms, slow_ms) in [(0, 0), (2_000, 0), (0, 3_000)] {
            let (mut meter, mut now, mut told) = (Meter::default(), 0, 0);
            while meter.bytes < total {
                meter.sample(Tick(now));
                if let Some(bytes) = meter.to_rehearse(meter.bytes, total) {
                    let took_us = built_in_us * bytes / total;
                    // What is the same for any state takes its time too.
                    now += 500 + took_us / 1000;
                    meter.rehearsed(bytes, took_us);
                }
                if meter.bytes >= total / 20 {
                    let left = (total - meter.bytes) * fetched_in_ms / total + built_in_us / 1000;
                    let foretold = meter.left_ms(Tick(now), total - meter.bytes, total).unwrap();
                    assert!(left.abs_diff(foretold) < left / 10, "{foretold} ms and not {left} at {now} ms");
                    told += 1;
                }
                now += 10;
                let slower = if now < slow_ms { 4 } else { 1 };
                if now >= nothing_ms {
                    meter.bytes += total * 10 / fetched_in_ms / slower;
                }
            }
            assert!(told > 1_000);
        }
    }

    #[test]
    fn what_is_small_is_not_rehearsed() {
        let meter = Meter::default();
        assert_eq!((meter.to_rehearse(10 << 20, 20 << 20), meter.to_rehearse(2 << 20, 80 << 20)), (None, None));
        assert_eq!(meter.to_rehearse(3 << 20, 64 << 20), Some(2 << 20));
        assert_eq!(meter.to_rehearse(u64::MAX, u64::MAX), Some(64 << 20));
    }

    #[test]
    fn all_is_said_of_all_only() {
        assert_eq!(per_ten_thousand(u64::MAX - 1, u64::MAX), 9_999);
        assert_eq!(per_ten_thousand(u64::MAX, u64::MAX), 10_000);
        assert_eq!((per_ten_thousand(0, 0), per_ten_thousand(1, 3)), (10_000, 3_333));
    }
}
