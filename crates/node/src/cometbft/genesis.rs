//! What the genesis of CometBFT says of a chain: the same as that of Keelstone, whose hash it names.
//!
//! An engine that begins otherwise is refused when the chain begins (`docs/cometbft.md`).

use super::keys::{address, public_json};
use keelstone_codec::{Hash, Timestamp};
use keelstone_ledger::Genesis;
use serde_json::{Value, json};

/// What must stand in CometBFT's genesis for the chain of a genesis with this hash. Validators have these names, as far as there are
/// any.
pub(crate) fn engine_genesis(genesis: &Genesis, hash: Hash, names: &[&str]) -> Value {
    let names = names.iter().copied().chain(std::iter::repeat(""));
    let validators = genesis.validators.iter().zip(names).map(|(validator, name)| {
        let (key, power) = (&validator.key, validator.power.to_string());
        json!({ "address": address(key), "pub_key": public_json(key), "power": power, "name": name })
    });
    json!({
        "genesis_time": rfc3339(genesis.time), "chain_id": genesis.chain_id.as_str(),
        "initial_height": genesis.initial_height.to_string(), "validators": validators.collect::<Vec<_>>(),
        // What the state comes to is told when the chain begins.
        "app_hash": "", "app_state": hash,
    })
}

/// A time as CometBFT's genesis writes it.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    let (seconds, millis) = (time.0 / 1_000, time.0 % 1_000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar from days since 1970, in eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp(951_868_799_999)), "2000-02-29T23:59:59.999Z");
        assert_eq!(rfc3339(Timestamp(1_795_708_800_001)), "2026-11-26T16:00:00.001Z");
    }
}
