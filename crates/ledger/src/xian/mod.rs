//! Xian's state.

mod decimal;

pub use decimal::{DIGITS_MAX, Decimal, DecimalError};
