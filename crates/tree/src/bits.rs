//! Keys as strings of bits: nine to a byte, a one that says "there is a byte" and the byte itself (spec: TREE-2).
//!
//! The leading one makes a key that is a prefix of another differ from it, so keys need no terminator, and bits in
//! order are bytes in order.

/// Bit `i` of `key` (spec: TREE-2). Beyond the end of the key all bits are 0.
#[must_use]
#[inline]
pub fn bit(key: &[u8], i: u16) -> bool {
    let (position, within) = (usize::from(i / 9), i % 9);
    match key.get(position) {
        None => false,
        Some(_) if within == 0 => true,
        Some(byte) => byte >> (8 - within) & 1 == 1,
    }
}

/// The least bit in which two keys differ; none if they are equal (spec: TREE-2).
///
/// # Panics
/// For keys that share more than 7,281 bytes, the limit of the format (spec: TREE-1).
#[must_use]
#[inline]
pub fn crit(a: &[u8], b: &[u8]) -> Option<u16> {
    let shared = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let within = match (a.get(shared), b.get(shared)) {
        (None, None) => return None,
        (Some(a), Some(b)) => 1 + (a ^ b).leading_zeros(),
        _ => 0,
    };
    Some(u16::try_from(shared * 9 + within as usize).expect("a key has at most 7,281 bytes"))
}

/// The least key whose bits before `crit` are those of `sample` and whose bit there is `side`; or, if those bits end inside a
/// byte, the one with zeros in the rest of it. With its bits every way down goes to the first key of those.
#[must_use]
pub fn least(sample: &[u8], crit: u16, side: bool) -> Vec<u8> {
    let (position, within) = (usize::from(crit / 9), crit % 9);
    let mut key = sample[..position.min(sample.len())].to_vec();
    let known = sample.get(position).copied().unwrap_or(0);
    match (within, side) {
        (0, false) => {}
        (0, true) => key.push(0),
        (bit, side) => {
            let above = if bit == 1 { 0 } else { known & (0xff << (9 - bit)) };
            key.push(above | u8::from(side) << (8 - bit));
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(0x80), Just(0xff), any::<u8>()], 0..6)
    }

    proptest! {
        /// spec: TREE-2. The critical bit is the least bit that differs, and it orders the keys.
        #[test]
        fn crit_is_the_least_bit_that_differs(a in keys(), b in keys()) {
            let naive = (0..9 * 8).find(|&i| bit(&a, i) != bit(&b, i));
            prop_assert_eq!(crit(&a, &b), naive);
            match naive {
                None => prop_assert_eq!(a, b),
                Some(i) => prop_assert_eq!(a < b, bit(&b, i)),
            }
        }
    }
}
