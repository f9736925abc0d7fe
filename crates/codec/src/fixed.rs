//! Fixed-point numbers, because a float has no place in state (spec: CODEC-6).

use crate::{Decode, DecodeError, Encode, Reader};
use std::fmt;
use std::str::FromStr;

/// A signed decimal number with six places: an `i64` count of millionths. About ±9.2 · 10^12.
///
/// All arithmetic is checked: `None` means the result does not fit. Multiplication and division go through 128 bits
/// and truncate toward zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Fixed(i64);

impl Fixed {
    /// Millionths in one.
    pub const SCALE: i64 = 1_000_000;
    /// 0.
    pub const ZERO: Self = Self(0);
    /// 1.
    pub const ONE: Self = Self(Self::SCALE);

    /// A number from its millionths.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The number as millionths.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// A whole number.
    #[must_use]
    pub const fn from_int(int: i64) -> Option<Self> {
        match int.checked_mul(Self::SCALE) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    /// `self + other`.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    /// `self - other`.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    /// `self · other`, truncated toward zero.
    #[must_use]
    pub fn checked_mul(self, other: Self) -> Option<Self> {
        let wide = i128::from(self.0) * i128::from(other.0) / i128::from(Self::SCALE);
        i64::try_from(wide).ok().map(Self)
    }

    /// `self / other`, truncated toward zero; `None` also for division by zero.
    #[must_use]
    pub fn checked_div(self, other: Self) -> Option<Self> {
        let wide = (i128::from(self.0) * i128::from(Self::SCALE)).checked_div(i128::from(other.0))?;
        i64::try_from(wide).ok().map(Self)
    }

    /// Reads `-12.345678`: an optional sign, digits, and at most six places. The one conversion from text.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for anything else, also exponents, infinities and more than six places.
    pub fn parse(text: &str) -> Result<Self, DecodeError> {
        let invalid = DecodeError::Invalid { what: "fixed-point number" };
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, places) = digits.split_once('.').unwrap_or((digits, "0"));
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !plain(whole) || !plain(places) || places.len() > 6 || whole.len() > 13 {
            return Err(invalid);
        }
        let whole: i128 = whole.parse().map_err(|_| invalid.clone())?;
        let micros: i128 = format!("{places:0<6}").parse().map_err(|_| invalid.clone())?;
        // Wider than the result, or the least number could be shown but not read back.
        let size = whole * i128::from(Self::SCALE) + micros;
        i64::try_from(if negative { -size } else { size }).map(Self).map_err(|_| invalid)
    }
}

/// As [`Fixed::parse`].
impl FromStr for Fixed {
    type Err = DecodeError;
    fn from_str(text: &str) -> Result<Self, DecodeError> {
        Self::parse(text)
    }
}
impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let scale = Self::SCALE.unsigned_abs();
        write!(f, "{sign}{}.{:06}", size / scale, size % scale)
    }
}
impl fmt::Debug for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Encode for Fixed {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl Decode for Fixed {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(i64::decode(input)?))
    }
}
