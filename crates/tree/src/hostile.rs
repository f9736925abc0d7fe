//! For fuzzing only: what nobody outside the crate can reach, fed with any bytes. Not part of the interface.
//!
//! Trusts nothing and panics when a promise is broken. Called by `tools/hostile` (docs/decisions/0007).

use crate::stored;

/// Reads the bytes of a page, but for its check, which a fuzzer could not guess, and says whether they are one. The
/// hash that is expected is the one the page turns out to have (spec: TREE-17, TREE-18).
///
/// # Panics
/// If a page is accepted that has another encoding, or under another hash.
#[must_use]
pub fn page(body: &[u8]) -> bool {
    stored::survive(body, None)
}

/// Reads the bytes of a page that is written beside another: the length of the other one's as two bytes, the other's, and then
/// its own, both but for their checks (spec: TREE-20).
///
/// # Panics
/// As [`page`].
#[must_use]
pub fn page_delta(input: &[u8]) -> bool {
    let Some((len, rest)) = input.split_first_chunk::<2>() else { return false };
    let Some((base, body)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))) else { return false };
    stored::survive(body, Some(base))
}

#[cfg(test)]
mod tests {
    /// spec: TREE-18. Whatever critical bit it is said to have, a page below is never read beyond its key.
    #[test]
    fn a_page_below_with_too_short_a_key_is_refused() {
        for crit in [1u8, 5, 8, 9, 10, 200] {
            let slot = [&[1, 0, crit, 0][..], &[0; 8], &[1, 2, 2], &[7; 32]].concat();
            assert!(!super::page(&[&[1, 0][..], &slot].concat()), "critical bit {crit}");
        }
    }

    fn entry(rest: &[u8], value: u8) -> Vec<u8> {
        let len = u8::try_from(rest.len()).unwrap();
        [&[0, len], rest, &[value], &[0; 8], &[7; 32]].concat()
    }

    /// spec: TREE-17. One slot is an entry: above a page below there is something to part from.
    #[test]
    fn a_page_of_nothing_but_a_page_below_is_refused() {
        // 0x60 is the first five bits of a key, each behind a bit that says that it goes on.
        let below = |prefix: u8| [&[1, 1, prefix, 5, 0][..], &[0; 8], &[1, 2, 4], &[7; 32]].concat();
        let with = |count: u8, slots: &[Vec<u8>]| [&[count, 0][..], &slots.concat()].concat();
        let legal = (0..=255).find(|prefix| super::page(&with(2, &[below(*prefix), entry(b"\xff", 1)])));
        let prefix = legal.expect("beside an entry it may stand");
        assert!(!super::page(&with(1, &[below(prefix)])));
    }

    /// spec: TREE-20. What is kept of a base, and what follows it, stands in the base's order: which slot is which is told by that.
    #[test]
    fn a_base_whose_slots_do_not_ascend_is_refused() {
        let input = |keys: &[&[u8]]| {
            let slots: Vec<u8> = keys.iter().flat_map(|key| entry(key, 1)).collect();
            let base = [&[u8::try_from(keys.len()).unwrap(), 0][..], &slots].concat();
            let base_len = u16::try_from(base.len() + 8).unwrap();
            let length = [u8::try_from(base_len & 0x7f).unwrap() | 0x80, u8::try_from(base_len >> 7).unwrap()];
            // All are kept but the last, which has a new value.
            let kept = (1u32 << (keys.len() - 1)) - 1;
            let last = u8::try_from(keys.len() - 1).unwrap();
            let new = [&[2, last, 9][..], &[0; 8], &[8; 32]].concat();
            let delta = [&[0][..], &[0; 8], &length, &kept.to_le_bytes(), &[0], &new].concat();
            [&u16::try_from(base.len()).unwrap().to_le_bytes()[..], &base, &delta].concat()
        };
        let keys: Vec<[u8; 2]> = (0..20u8).map(|number| [number * 12, 1]).collect();
        let mut keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        assert!(super::page_delta(&input(&keys)));
        keys.rotate_left(1);
        assert!(!super::page_delta(&input(&keys)));
    }
}
