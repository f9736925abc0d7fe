//! Repairs that a node makes by itself have a bound: a disk that loses bytes again and again is to be looked at, not mended
//! on and on.
//!
//! Pure: the node brings the time, which is the world's, since repairs are counted over restarts, and what it has on record.
//!
//! Rule: `spec/consistency.md`, CHECK-10.

/// Repairs in a window, and then no more until it is over.
pub const REPAIRS_MAX: usize = 3;
/// Tries in a window after which what was tried in vain is not tried again until it is over. Far more than there are of snapshots and
/// peers that come one after the other while a node starts, and whoever shows up under ever new ids causes no more.
pub const TRIES_MAX: usize = 12;
/// The window, in milliseconds.
pub const REPAIR_WINDOW_MS: u64 = 3_600_000;

/// No more repairs for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{REPAIRS_MAX} repairs within an hour: the disk is not to be trusted, and no more are made before {until_ms}")]
pub struct Tripped {
    /// When there may be another, in milliseconds since 1970.
    pub until_ms: u64,
}

/// Counts repairs.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    /// When the last ones began, in milliseconds since 1970, the oldest first.
    begun: Vec<u64>,
}

impl Breaker {
    /// With what is on record: when repairs began, in any order.
    #[must_use]
    pub fn new(mut begun: Vec<u64>) -> Self {
        begun.sort_unstable();
        begun.drain(..begun.len().saturating_sub(REPAIRS_MAX));
        Self { begun }
    }

    /// Whether there may be another repair now. What began after now, by a clock that was set back since, counts as if it
    /// began now.
    ///
    /// # Errors
    /// [`Tripped`] if there were too many.
    // spec: CHECK-10
    pub fn check(&self, now_ms: u64) -> Result<(), Tripped> {
        let first = self.begun.first().filter(|_| self.begun.len() >= REPAIRS_MAX);
        match first.filter(|first| now_ms.saturating_sub(**first) < REPAIR_WINDOW_MS) {
            Some(first) => Err(Tripped { until_ms: first.saturating_add(REPAIR_WINDOW_MS) }),
            None => Ok(()),
        }
    }

    /// Counts a repair.
    ///
    /// # Errors
    /// As [`Self::check`]; it is then not counted.
    pub fn begin(&mut self, now_ms: u64) -> Result<(), Tripped> {
        self.check(now_ms)?;
        self.begun.push(now_ms);
        *self = Self::new(std::mem::take(&mut self.begun));
        Ok(())
    }
}

/// Whether what was left may be tried again now, having tried at these times, in milliseconds since 1970. What lies after now counts
/// as if it were now.
// spec: CHECK-10
#[must_use]
pub fn may_try_again(tried: &[u64], now_ms: u64) -> bool {
    tried.iter().filter(|begun| now_ms.saturating_sub(**begun) < REPAIR_WINDOW_MS).count() < TRIES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec: CHECK-10. What was left is tried again a dozen times in an hour, and no more however many come who were not asked.
    #[test]
    fn what_was_left_is_tried_again_a_bounded_number_of_times() {
        let now = 1_700_000_000_000;
        let tried = |count: u64| (0..count).map(|number| now - 60_000 * number).collect::<Vec<_>>();
        assert!(may_try_again(&[], now) && may_try_again(&tried(11), now));
        assert!(!may_try_again(&tried(12), now) && !may_try_again(&tried(30), now));
        assert!(!may_try_again(&tried(12), now - 86_400_000), "a clock that was set back");
        assert!(may_try_again(&tried(12), now + REPAIR_WINDOW_MS - 60_000 * 11));
    }

    /// spec: CHECK-10. Three repairs in an hour, and then none before somebody had the time to look; the next hour has its
    /// own. What is on record from before a restart counts as well.
    #[test]
    fn more_than_three_repairs_in_an_hour_are_not_made() {
        const NOON: u64 = 1_700_000_000_000;
        let minute = |minute: u64| NOON + minute * 60_000;
        let mut breaker = Breaker::default();
        for at in 0..3 {
            assert_eq!(breaker.begin(minute(at)), Ok(()));
        }
        for at in [3, 30, 59] {
            assert_eq!(breaker.begin(minute(at)), Err(Tripped { until_ms: minute(60) }));
            let again = Breaker::new(vec![minute(0), minute(2), minute(1), NOON - 7_200_000]);
            assert_eq!(again.check(minute(at)), Err(Tripped { until_ms: minute(60) }), "over a restart");
        }
        assert_eq!(breaker.begin(minute(60)), Ok(()));
        assert_eq!(breaker.begin(minute(60) + 1), Err(Tripped { until_ms: minute(61) }));
        // A clock that was set back lets nobody begin sooner.
        assert!(breaker.check(NOON - 86_400_000).is_err());
    }
}
