//! Numbers that look random, from a seed: the same everywhere, so that what was done with them can be done again.
//!
//! For simulated disks, the order in which peers are asked, tests and benches. Whoever knows one number knows all that
//! follow, so nothing secret may come from here.

/// The next number, by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014; constants
/// as in Vigna's reference). Any seed is a good one; the numbers repeat after 2^64. Costs two multiplications.
#[must_use]
pub const fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::splitmix64;

    /// The first numbers of the reference implementation for its customary seed.
    #[test]
    fn numbers_are_those_of_the_reference() {
        let mut state = 1_234_567;
        let found = [(); 5].map(|()| splitmix64(&mut state));
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(found, expected);
    }
}
