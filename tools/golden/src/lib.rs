//! What the tests of every crate share: the golden vectors, and how much of them the environment asks for.
//!
//! `spec/vectors` says what bytes the code must make.
//!
//! The files are the format. They are written anew by `cargo xtask bless` alone, which sets `KEELSTONE_BLESS`, and a change
//! of one is a change of what has been released.
#![forbid(unsafe_code)]

use serde_json::Value;
use std::path::PathBuf;
use std::{env, fs};

/// `spec/vectors` of the checkout that the test runs in. Checkouts may share a directory of builds, so where this was built
/// says nothing.
fn vectors() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let package = package.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", package.display()));
    let found = package.ancestors().map(|above| above.join("spec/vectors")).find(|vectors| vectors.is_dir());
    found.unwrap_or_else(|| panic!("there is no spec/vectors above {}", package.display()))
}

/// Compares `found` with the file `spec/vectors/NAME`, whole, and hands out what the file says. Writes the file first where
/// that is asked for.
///
/// # Panics
/// If they differ, naming the first part that does; if there is no such file, or no JSON in it.
#[track_caller]
pub fn check(name: &str, found: &Value) -> Value {
    let file = vectors().join(name);
    let path = file.display();
    let found_text = format!("{found:#}\n");
    if env::var_os("KEELSTONE_BLESS").is_some() {
        fs::write(&file, &found_text).unwrap_or_else(|error| panic!("{path} cannot be written: {error}"));
    }
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path} cannot be read: {error}"));
    let golden: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path} is no JSON: {error}"));
    let parts = |of: &Value| of.as_object().map_or_else(Vec::new, |parts| parts.keys().cloned().collect());
    for part in parts(&golden).iter().chain(&parts(found)) {
        assert_eq!(found.get(part), golden.get(part), "{part} of {name}: only a change of the format may bless this");
    }
    assert!(text == found_text, "{name} is not what is written now: only a change of the format may bless this");
    golden
}

/// A count from the environment, so that long runs need no other code; `default` where none is asked for.
///
/// # Panics
/// If something is asked for that is no number: a run of the default would pass for the one that was meant.
#[track_caller]
#[must_use]
pub fn count(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Err(env::VarError::NotPresent) => default,
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{name} is {text:?}: {error}")),
        Err(error) => panic!("{name}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{check, count};
    use serde_json::{Value, json};
    use std::panic::catch_unwind;

    fn golden() -> Value {
        serde_json::from_str(include_str!("../../../spec/vectors/codec.json")).unwrap()
    }

    #[test]
    fn what_the_file_says_passes_and_anything_else_does_not() {
        assert_eq!(check("codec.json", &golden()), golden());
        let (mut added, mut without, mut changed) = (golden(), golden(), golden());
        added["one more"] = json!(1);
        let first = without.as_object().unwrap().keys().next().unwrap().clone();
        without.as_object_mut().unwrap().remove(&first);
        changed[&first] = json!("another");
        for other in [added, without, changed, json!([])] {
            assert!(catch_unwind(|| check("codec.json", &other)).is_err());
        }
        assert!(catch_unwind(|| check("of-nothing.json", &json!({}))).is_err());
    }

    /// What the tests are run with for sure is no number.
    #[test]
    fn what_is_asked_for_and_is_no_number_fails() {
        assert_eq!(count("KEELSTONE_NOBODY_ASKS", 7), 7);
        assert!(catch_unwind(|| count("CARGO_MANIFEST_DIR", 7)).is_err());
    }
}
