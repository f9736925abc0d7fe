//! What each address is given. Ids are free, and whoever changes its own has no more for it.
//!
//! A peer's budgets go with its id and are kept by the server, also while the peer is gone for a while. Beside them the address
//! that peers come from has one of bytes and one of working time for all of them, whatever their ids, and they outlive every
//! connection. What was given flows off as time passes.
//!
//! Rules: `spec/peers.md`, PEER-11.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

/// An address may be given at once what flows off in so many seconds.
const SECONDS: u64 = 2;
/// Addresses that are counted at once; above it the one that was given least is forgotten.
const ADDRESSES_MAX: usize = 1024;

/// What addresses were given lately: bytes, or microseconds of work.
#[derive(Debug)]
pub(super) struct Shares {
    per_second: u64,
    given: BTreeMap<IpAddr, Given>,
}

#[derive(Debug, Clone, Copy)]
struct Given {
    amount: u64,
    since: Instant,
}

impl Shares {
    pub(super) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), given: BTreeMap::new() }
    }

    /// What has not flowed off.
    fn rest(&self, given: Given, now: Instant) -> u64 {
        let flowed = now.saturating_duration_since(given.since).as_millis() * u128::from(self.per_second) / 1000;
        given.amount.saturating_sub(u64::try_from(flowed).unwrap_or(u64::MAX))
    }

    /// In how many milliseconds an address may be given more; none if it may be now.
    // spec: PEER-11
    pub(super) fn wait_ms(&self, address: IpAddr, now: Instant) -> Option<u32> {
        let rest = self.given.get(&address).map_or(0, |given| self.rest(*given, now));
        let above = rest.checked_sub(self.per_second.saturating_mul(SECONDS)).filter(|above| *above > 0)?;
        Some(u32::try_from(above.saturating_mul(1000).div_ceil(self.per_second)).unwrap_or(u32::MAX))
    }

    /// An address was given so much.
    pub(super) fn give(&mut self, address: IpAddr, amount: u64, now: Instant) {
        let rest = self.given.get(&address).map_or(0, |given| self.rest(*given, now));
        self.given.insert(address, Given { amount: rest.saturating_add(amount), since: now });
        if self.given.len() > ADDRESSES_MAX {
            let least = self.given.iter().min_by_key(|(_, given)| self.rest(**given, now)).map(|(address, _)| *address);
            least.map(|least| self.given.remove(&least));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, u8::from(last == 0), last])
    }

    /// spec: PEER-11.
    #[test]
    fn an_address_waits_for_what_it_had_too_much() {
        let start = Instant::now();
        let mut shares = Shares::new(1_000);
        assert_eq!(shares.wait_ms(address(1), start), None);
        shares.give(address(1), 2_000, start);
        assert_eq!(shares.wait_ms(address(1), start), None);
        shares.give(address(1), 3_000, start);
        assert_eq!((shares.wait_ms(address(1), start), shares.wait_ms(address(2), start)), (Some(3_000), None));
        assert_eq!(shares.wait_ms(address(1), start + Duration::from_secs(1)), Some(2_000));
        shares.give(address(1), 500, start + Duration::from_secs(1));
        assert_eq!(shares.wait_ms(address(1), start + Duration::from_millis(2_500)), Some(1_000));
        assert_eq!(shares.wait_ms(address(1), start + Duration::from_secs(4)), None);
    }

    /// spec: PEER-11. Of working time, counted as bytes are, an address with eight ids of which each may have 500 ms in a second has
    /// 750 ms in all, and another is not held up by it.
    #[test]
    fn many_ids_of_an_address_have_its_working_time() {
        let start = Instant::now();
        let mut shares = Shares::new(750 * 1_000);
        let mut worked = 0;
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            // Whichever id asks: the thread is at work for a millisecond whenever it is let.
            if shares.wait_ms(address(1), now).is_none() {
                shares.give(address(1), 1_000, now);
                worked += 1;
            }
            assert_eq!(shares.wait_ms(address(2), now), None);
        }
        // What flows off in ten seconds, and the two that may be had at once.
        assert!((8_900..=9_010).contains(&worked), "{worked} ms of 10,000");
    }

    /// However many addresses come, no more are counted than may be, and those that had most stay.
    #[test]
    fn a_crowd_of_addresses_makes_nobody_forgotten_who_had_much() {
        let start = Instant::now();
        let mut shares = Shares::new(1_000);
        shares.give(address(1), 9_000, start);
        for number in 0..3_000u32 {
            shares.give(IpAddr::from(number.to_be_bytes()), 10, start);
        }
        assert_eq!(shares.given.len(), ADDRESSES_MAX);
        assert_eq!(shares.wait_ms(address(1), start), Some(7_000));
    }
}
