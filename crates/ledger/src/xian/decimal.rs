//! Exact decimals, with the text Xian gives them.
//!
//! Xian's contracts count with Python's `Decimal` and store what `str` of a normalized one says: `0.00001`, `2E+1`,
//! `7.6E+20`. [`Decimal`] reads any such text, adds and subtracts exactly, and writes the same text for the result.
//! There is no rounding here at all: what would need it is refused.
//!
//! Rules: `spec/ledger.md`, XIAN-4.

use num_bigint::BigInt;
use std::cmp::Ordering;
use std::fmt;

/// The most digits and the largest exponent a decimal may have, either way. Xian's own stay below 60.
pub const DIGITS_MAX: usize = 128;

/// A decimal number: `coefficient · 10^exponent`, without trailing zeros in the coefficient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    coefficient: BigInt,
    exponent: i32,
}

/// Why text is no decimal that can be counted with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecimalError {
    /// The text does not follow the grammar: a sign, digits, a fraction, an exponent.
    #[error("{text:?} is not a decimal number")]
    Grammar {
        /// The text.
        text: String,
    },
    /// More digits or a larger exponent than [`DIGITS_MAX`].
    #[error("a decimal has at most {DIGITS_MAX} digits and exponents within ±{DIGITS_MAX}")]
    TooLarge,
}

impl Decimal {
    /// Zero.
    #[must_use]
    pub fn zero() -> Self {
        Self { coefficient: BigInt::ZERO, exponent: 0 }
    }

    /// Reads what Python's `Decimal` writes, and JSON numbers.
    ///
    /// # Errors
    /// [`DecimalError`]: infinities and NaN are no numbers here.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        let grammar = || DecimalError::Grammar { text: text.chars().take(64).collect() };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            None => (text, 0),
            Some((mantissa, exponent)) => {
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(grammar());
                }
                if digits.len() > 4 {
                    return Err(DecimalError::TooLarge);
                }
                (mantissa, exponent.parse().map_err(|_| grammar())?)
            }
        };
        let unsigned = mantissa.strip_prefix(['+', '-']).unwrap_or(mantissa);
        let (whole, places) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        if whole.len() + places.len() == 0 || !whole.bytes().chain(places.bytes()).all(|byte| byte.is_ascii_digit()) {
            return Err(grammar());
        }
        if whole.len() + places.len() > DIGITS_MAX {
            return Err(DecimalError::TooLarge);
        }
        let digits: BigInt = format!("{whole}{places}").parse().map_err(|_| grammar())?;
        let places = i32::try_from(places.len()).map_err(|_| DecimalError::TooLarge)?;
        let coefficient = if mantissa.starts_with('-') { -digits } else { digits };
        Self::normal(coefficient, exponent - places)
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`DecimalError::TooLarge`].
    pub fn from_int(int: BigInt) -> Result<Self, DecimalError> {
        Self::normal(int, 0)
    }

    /// Strips trailing zeros and checks the bounds, so that one number has one form.
    fn normal(mut coefficient: BigInt, mut exponent: i32) -> Result<Self, DecimalError> {
        if coefficient == BigInt::ZERO {
            return Ok(Self::zero());
        }
        // All zeros at once: a division for each would be most of what an amount costs.
        let text = coefficient.magnitude().to_string();
        let digits = text.trim_end_matches('0').len();
        let zeros = u32::try_from(text.len() - digits).map_err(|_| DecimalError::TooLarge)?;
        if zeros > 0 {
            coefficient /= BigInt::from(10).pow(zeros);
            exponent = i32::try_from(zeros)
                .ok()
                .and_then(|zeros| exponent.checked_add(zeros))
                .ok_or(DecimalError::TooLarge)?;
        }
        let limit = i32::try_from(DIGITS_MAX).expect("the limit is small");
        if digits > DIGITS_MAX || !(-limit..=limit).contains(&exponent) {
            return Err(DecimalError::TooLarge);
        }
        Ok(Self { coefficient, exponent })
    }

    /// The digits of the coefficient, without sign.
    fn digits(&self) -> String {
        self.coefficient.magnitude().to_string()
    }

    /// Both coefficients at the smaller exponent. At most 3 · [`DIGITS_MAX`] digits come of it.
    fn aligned(&self, other: &Self) -> (BigInt, BigInt, i32) {
        let exponent = self.exponent.min(other.exponent);
        let scaled = |number: &Self| {
            let zeros = u32::try_from(number.exponent - exponent).expect("the smaller exponent was taken off");
            &number.coefficient * BigInt::from(10).pow(zeros)
        };
        (scaled(self), scaled(other), exponent)
    }

    /// `self + other`, exactly.
    ///
    /// # Errors
    /// [`DecimalError::TooLarge`] when the result has too many digits.
    pub fn add(&self, other: &Self) -> Result<Self, DecimalError> {
        let (a, b, exponent) = self.aligned(other);
        Self::normal(a + b, exponent)
    }

    /// `self - other`, exactly.
    ///
    /// # Errors
    /// As [`Decimal::add`].
    pub fn sub(&self, other: &Self) -> Result<Self, DecimalError> {
        let (a, b, exponent) = self.aligned(other);
        Self::normal(a - b, exponent)
    }

    /// How many digits stand behind the point.
    #[must_use]
    pub fn places(&self) -> u32 {
        self.exponent.min(0).unsigned_abs()
    }

    /// Whether the number is above zero.
    #[must_use]
    pub fn is_positive(&self) -> bool {
        self.coefficient > BigInt::ZERO
    }

    /// Whether the number is below zero.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.coefficient < BigInt::ZERO
    }

    /// The number as an integer, if it is one.
    #[must_use]
    pub fn to_int(&self) -> Option<BigInt> {
        let zeros = u32::try_from(self.exponent).ok()?;
        Some(&self.coefficient * BigInt::from(10).pow(zeros))
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b, _) = self.aligned(other);
        a.cmp(&b)
    }
}

impl fmt::Display for Decimal {
    /// What Python's `str(Decimal.normalize())` writes: plain while the exponent is at most zero and fewer than six
    /// zeros follow the point, scientific otherwise. // spec: XIAN-4
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.digits();
        let sign = if self.is_negative() { "-" } else { "" };
        let count = i32::try_from(digits.len()).expect("digits are bounded");
        let left = self.exponent + count;
        if self.exponent > 0 || left <= -6 {
            let (first, rest) = digits.split_at(1);
            let point = if rest.is_empty() { "" } else { "." };
            return write!(f, "{sign}{first}{point}{rest}E{:+}", left - 1);
        }
        match usize::try_from(left) {
            Err(_) | Ok(0) => {
                let zeros = "0".repeat(usize::try_from(-left).expect("left is at most zero here"));
                write!(f, "{sign}0.{zeros}{digits}")
            }
            Ok(left) if left == digits.len() => write!(f, "{sign}{digits}"),
            Ok(left) => write!(f, "{sign}{}.{}", &digits[..left], &digits[left..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).expect("a decimal")
    }

    /// The right column is what Python 3 prints for `str(Decimal(left).normalize())`.
    #[test]
    fn text_is_that_of_python() {
        for (given, python) in [
            ("0", "0"),
            ("0.000", "0"),
            ("20", "2E+1"),
            ("760000000000000000000", "7.6E+20"),
            ("7.6E+20", "7.6E+20"),
            ("0.00001", "0.00001"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1E-7"),
            ("0.00000012", "1.2E-7"),
            ("11111111.10", "11111111.1"),
            ("-0.5", "-0.5"),
            ("123", "123"),
            ("1e-30", "1E-30"),
            ("100.010", "100.01"),
        ] {
            assert_eq!(decimal(given).to_string(), python, "{given}");
        }
    }

    #[test]
    fn text_that_is_no_number_is_refused() {
        for text in ["", "-", ".", "1e", "1e+", "NaN", "Infinity", "1_000", "0x10", " 1", "1 ", "1.2.3", "e5", "1e5.0"]
        {
            assert!(matches!(Decimal::parse(text), Err(DecimalError::Grammar { .. })), "{text:?}");
        }
        for text in ["1e129", "1e-129", "1e99999", &"9".repeat(129)] {
            assert_eq!(Decimal::parse(text), Err(DecimalError::TooLarge), "{text}");
        }
    }

    proptest! {
        /// Sums of millionths are what integers say they are.
        #[test]
        fn sums_are_exact(a in -1i64 << 60..1 << 60, b in -1i64 << 60..1 << 60) {
            let text = |micros: i64| {
                let size = micros.unsigned_abs();
                format!("{}{}.{:06}", if micros < 0 { "-" } else { "" }, size / 1_000_000, size % 1_000_000)
            };
            let (x, y) = (decimal(&text(a)), decimal(&text(b)));
            prop_assert_eq!(x.add(&y), Ok(decimal(&text(a + b))));
            prop_assert_eq!(x.sub(&y), Ok(decimal(&text(a - b))));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        /// A number's own text is read back as the number.
        #[test]
        fn text_gives_the_number_back(text in "-?[0-9]{1,40}(\\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?") {
            if let Ok(number) = Decimal::parse(&text) {
                prop_assert_eq!(Decimal::parse(&number.to_string()), Ok(number));
            }
        }
    }
}
