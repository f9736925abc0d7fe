//! Figures as people read them, in whole numbers.

use std::time::Duration;

/// A number in groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{} MiB", grouped(bytes >> 20))
}

/// A time in seconds, to the tenth.
pub(crate) fn seconds(time: Duration) -> String {
    let tenths = time.as_millis() / 100;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// MiB in a second.
pub(crate) fn mib_per_second(bytes: u64, time: Duration) -> u64 {
    let per_second = u128::from(bytes) * 1000 / time.as_millis().max(1);
    u64::try_from(per_second >> 20).unwrap_or(u64::MAX)
}

/// Ten-thousandths that a part is of a whole.
pub(crate) fn share(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * 10_000 / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// A share as a percentage.
pub(crate) fn percent(share: u64) -> String {
    format!("{}.{:02} %", share / 100, share % 100)
}

/// A share as a factor.
pub(crate) fn times(share: u64) -> String {
    format!("{}.{:03}", share / 10_000, share % 10_000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!((grouped(1_234_567), grouped(12), grouped(123)), ("1,234,567".into(), "12".into(), "123".into()));
        assert_eq!((mib(3 << 20), seconds(Duration::from_millis(8_460))), ("3 MiB".into(), "8.4 s".into()));
        assert_eq!(mib_per_second(300 << 20, Duration::from_secs(2)), 150);
        assert_eq!((percent(share(1, 400)), times(share(1_034, 1_000))), ("0.25 %".into(), "1.034".into()));
    }
}
