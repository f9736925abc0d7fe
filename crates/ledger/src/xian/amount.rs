//! What Xian's currency is counted in: integers and decimals, each kept as what it is.
//!
//! A contract's balance may be a Python integer or a decimal, and the result of counting with two integers is an
//! integer again. Which of the two a value is decides how it is written, so an amount carries it along.
//!
//! Rules: `spec/ledger.md`, XIAN-4 and XIAN-7.

use super::decimal::{Decimal, DecimalError};
use crate::json::{Json, Number};
use num_bigint::BigInt;
use std::str::FromStr;

/// Digits behind the point that Xian keeps.
const PLACES_MAX: u32 = 30;

/// An amount of currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amount {
    value: Decimal,
    integer: bool,
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        Self::parse(text)
    }
}

/// Why a value is no amount, or a result none that Xian could hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AmountError {
    /// Text that is no decimal number.
    #[error(transparent)]
    Decimal(#[from] DecimalError),
    /// A stored value that is neither a number nor one of Xian's forms of one.
    #[error("the value is not an amount: {found}")]
    NotAnAmount {
        /// The beginning of the value.
        found: String,
    },
    /// More digits behind the point than Xian keeps. It would round them off; nothing here is rounded.
    #[error("an amount has at most {PLACES_MAX} digits behind the point, this one has {found}")]
    Places {
        /// How many.
        found: u32,
    },
    /// A decimal above what Xian can hold. It would cut it off there; nothing here is cut.
    #[error("the result {found} is above 1E+29, the largest decimal")]
    TooLarge {
        /// The result.
        found: Decimal,
    },
}

impl Amount {
    /// Reads an amount as a person writes it: digits alone are an integer, anything with a point or exponent a decimal.
    ///
    /// # Errors
    /// [`AmountError::Decimal`], [`AmountError::Places`].
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        let value = Decimal::parse(text)?;
        if value.places() > PLACES_MAX {
            return Err(AmountError::Places { found: value.places() });
        }
        Ok(Self { value, integer: !text.contains(['.', 'e', 'E']) })
    }

    /// Reads a stored value. An absent balance is the integer 0, as the contract's default is.
    ///
    /// # Errors
    /// [`AmountError::NotAnAmount`], [`AmountError::Decimal`].
    // spec: XIAN-7
    pub fn from_value(value: Option<&Json>) -> Result<Self, AmountError> {
        let not = |value: &Json| AmountError::NotAnAmount { found: value.to_string().chars().take(64).collect() };
        let (text, integer) = match value {
            None | Some(Json::Null) => ("0", true),
            Some(Json::Number(number)) => (number.as_str(), number.is_integer()),
            Some(value @ Json::Object(members)) => match members.as_slice() {
                [(name, Json::Text(text))] if name == "__fixed__" => (text.as_str(), false),
                [(name, Json::Text(text))] if name == "__big_int__" => (text.as_str(), true),
                _ => return Err(not(value)),
            },
            Some(value) => return Err(not(value)),
        };
        let value = Decimal::parse(text)?;
        Ok(Self { integer: integer && value.to_int().is_some(), value })
    }

    /// The value as Xian stores it: `{"__fixed__": …}` for a decimal, a number for an integer, and `{"__big_int__": …}`
    /// for one beyond 64 bits.
    #[must_use]
    pub fn to_value(&self) -> Json {
        let wrapped = |name: &str, text: String| Json::Object(vec![(name.to_owned(), Json::Text(text))]);
        match self.value.to_int().filter(|_| self.integer) {
            None => wrapped("__fixed__", self.value.to_string()),
            // Xian's own bounds, exclusive on both sides.
            Some(int) if int > BigInt::from(i64::MIN) && int < BigInt::from(i64::MAX) => {
                Json::Number(Number::new(int.to_string()).expect("an integer's digits are a number"))
            }
            Some(int) => wrapped("__big_int__", int.to_string()),
        }
    }

    /// The number.
    #[must_use]
    pub fn value(&self) -> &Decimal {
        &self.value
    }

    /// `self + other`.
    ///
    /// # Errors
    /// [`AmountError::TooLarge`], [`AmountError::Decimal`].
    pub fn add(&self, other: &Self) -> Result<Self, AmountError> {
        self.checked(self.value.add(&other.value)?, other)
    }

    /// `self - other`.
    ///
    /// # Errors
    /// As [`Amount::add`].
    pub fn sub(&self, other: &Self) -> Result<Self, AmountError> {
        self.checked(self.value.sub(&other.value)?, other)
    }

    fn checked(&self, value: Decimal, other: &Self) -> Result<Self, AmountError> {
        let integer = self.integer && other.integer;
        let largest = Decimal::parse("1E+29").expect("a constant");
        if !integer && value > largest {
            return Err(AmountError::TooLarge { found: value });
        }
        Ok(Self { value, integer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::JSON_DEPTH_MAX;

    fn stored(text: &str) -> Result<Amount, AmountError> {
        Amount::from_value(Some(&Json::parse(text.as_bytes(), JSON_DEPTH_MAX).expect("JSON")))
    }

    /// spec: XIAN-7. What is added is written as Python would write it: integers stay integers.
    #[test]
    fn sums_are_written_as_xian_writes_them() {
        for (held, added, sum) in [
            ("1", "2", "3"),
            ("1", "0.5", r#"{"__fixed__":"1.5"}"#),
            (r#"{"__fixed__":"7.6E+20"}"#, "1", r#"{"__fixed__":"760000000000000000001"}"#),
            (r#"{"__fixed__":"19.5"}"#, "0.5", r#"{"__fixed__":"2E+1"}"#),
            ("0.78", "0.22", r#"{"__fixed__":"1"}"#),
            ("9223372036854775806", "1", r#"{"__big_int__":"9223372036854775807"}"#),
            (r#"{"__big_int__":"47265433000000000000000000"}"#, "1", r#"{"__big_int__":"47265433000000000000000001"}"#),
            (
                r#"{"__fixed__":"94999974349996522999.556539949361195554455946912575"}"#,
                "0.000000000000000000000000000001",
                r#"{"__fixed__":"94999974349996522999.556539949361195554455946912576"}"#,
            ),
        ] {
            let found = stored(held).and_then(|held| held.add(&Amount::parse(added)?)).expect("a sum");
            assert_eq!(found.to_value().to_string(), sum, "{held} + {added}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["true", "[]", r#""5""#, r#"{"__time__":[2024,1,1]}"#, r#"{"__fixed__":"x"}"#, r#"{"__fixed__":1}"#]
        {
            assert!(stored(text).is_err(), "{text}");
        }
        assert_eq!(Amount::parse("1e-31"), Err(AmountError::Places { found: 31 }));
        assert_eq!("1e-31".parse::<Amount>(), Err(AmountError::Places { found: 31 }));
        let largest = stored(r#"{"__fixed__":"1E+29"}"#).expect("an amount");
        let more = Amount::parse("1").expect("an amount");
        assert!(matches!(largest.add(&more), Err(AmountError::TooLarge { .. })));
    }
}
