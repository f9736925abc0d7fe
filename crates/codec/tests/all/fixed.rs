//! Fixed-point numbers: exact, checked, and read from text in one way. spec: CODEC-6.

use keelstone_codec::{Decode, Encode, Fixed};
use proptest::prelude::*;

proptest! {
    /// spec: CODEC-6. What is shown reads back, over the whole range.
    #[test]
    fn a_shown_number_reads_back(micros in prop_oneof![any::<i64>(), -3_000_000i64..3_000_000]) {
        let number = Fixed::from_micros(micros);
        prop_assert_eq!(Fixed::parse(&number.to_string()), Ok(number));
        prop_assert_eq!(Fixed::from_bytes(&number.to_bytes()), Ok(number));
    }

    /// spec: CODEC-6. Products and quotients are the exact ones, cut off toward zero, or none if they do not fit.
    #[test]
    fn arithmetic_is_exact_or_absent(a in any::<i64>(), b in prop_oneof![any::<i64>(), -9i64..9]) {
        let (x, y) = (Fixed::from_micros(a), Fixed::from_micros(b));
        let exact = |wide: i128| i64::try_from(wide).ok().map(Fixed::from_micros);
        prop_assert_eq!(x.checked_add(y), exact(i128::from(a) + i128::from(b)));
        prop_assert_eq!(x.checked_sub(y), exact(i128::from(a) - i128::from(b)));
        prop_assert_eq!(x.checked_mul(y), exact(i128::from(a) * i128::from(b) / 1_000_000));
        let quotient = if b == 0 { None } else { exact(i128::from(a) * 1_000_000 / i128::from(b)) };
        prop_assert_eq!(x.checked_div(y), quotient);
    }
}

/// spec: CODEC-6. D-01: what only a float could be has no fixed-point form; minus zero is zero.
#[test]
fn d01_float_spellings_are_refused() {
    for text in
        ["NaN", "inf", "-inf", "1e308", "1E3", "5e-324", "+1", "1.", ".5", "", "-", "--1", "1.0000000", "1,5", " 1"]
    {
        assert!(Fixed::parse(text).is_err(), "{text:?}");
    }
    assert_eq!(Fixed::parse("-0.0"), Ok(Fixed::ZERO));
    assert_eq!(Fixed::parse("-0.000001"), Ok(Fixed::from_micros(-1)));
    assert_eq!(Fixed::parse("007.5"), Ok(Fixed::from_micros(7_500_000)));
}

/// spec: CODEC-6. The ends of the range read back; one step beyond is refused, not wrapped.
#[test]
fn the_range_ends_where_it_says() {
    assert_eq!(Fixed::parse("9223372036854.775807"), Ok(Fixed::from_micros(i64::MAX)));
    assert_eq!(Fixed::parse("-9223372036854.775808"), Ok(Fixed::from_micros(i64::MIN)));
    assert!(Fixed::parse("9223372036854.775808").is_err());
    assert!(Fixed::parse("-9223372036854.775809").is_err());
    assert_eq!(Fixed::from_int(i64::MAX), None);
    assert_eq!(Fixed::from_int(-3), Some(Fixed::from_micros(-3_000_000)));
    assert_eq!(Fixed::from_micros(i64::MIN).to_string(), "-9223372036854.775808");
}
