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
}
