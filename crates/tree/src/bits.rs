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
