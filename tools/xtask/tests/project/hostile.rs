//! Every input of the catalogue of hostile inputs has a test that carries its id, once there is a surface it could
//! reach. The catalogue stands beside the repository, `../shared/HOSTILE.md`; without it the check says so and passes.
//! Ids whose surface does not exist yet are listed in `spec/hostile-later.txt`, each with the reason.

use crate::{ids, root, tracked};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Ids that wait for their surface, with the reason.
fn later() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("spec/hostile-later.txt")).expect("spec/hostile-later.txt is tracked");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (id, reason) = line.split_once(' ').unwrap_or_else(|| panic!("no reason given: {line}"));
            (id.to_owned(), reason.trim().to_owned())
        })
        .collect()
}

/// Whether a test is named after the id (`p01_…`), or says the id in its text (`P-01`).
fn tested(id: &str, texts: &[&str]) -> bool {
    let name = format!("fn {}_", id.replace('-', "").to_ascii_lowercase());
    texts.iter().any(|text| text.contains(&name) || ids(text).iter().any(|(area, n)| format!("{area}-{n}") == id))
}

/// The files of these checks name ids as examples.
fn explains_ids(path: &str) -> bool {
    path.ends_with("project/hostile.rs") || path.ends_with("project/main.rs")
}

#[test]
fn every_hostile_input_with_a_surface_has_a_test() {
    let files = tracked();
    let texts: Vec<&str> = files.iter().filter(|file| !explains_ids(&file.path)).map(|file| file.tests()).collect();
    let later = later();
    let early: Vec<&String> = later.keys().filter(|id| tested(id, &texts)).collect();
    assert!(early.is_empty(), "in spec/hostile-later.txt, yet tested: {early:?}");

    let Ok(catalogue) = fs::read_to_string(root().join("../shared/HOSTILE.md")) else {
        println!("../shared/HOSTILE.md is not there: hostile inputs are not checked against the catalogue");
        return;
    };
    let known: BTreeSet<String> = ids(&catalogue)
        .iter()
        .filter(|(area, number)| area.len() == 1 && number.len() == 2)
        .map(|(area, number)| format!("{area}-{number}"))
        .collect();
    assert!(known.len() > 50, "the catalogue reads as {known:?}");
    let stray: Vec<&String> = later.keys().filter(|id| !known.contains(*id)).collect();
    assert!(stray.is_empty(), "in spec/hostile-later.txt, but not in the catalogue: {stray:?}");
    let missing: Vec<&String> = known.iter().filter(|id| !later.contains_key(*id) && !tested(id, &texts)).collect();
    assert!(missing.is_empty(), "hostile inputs without a test: {missing:?}");
}
