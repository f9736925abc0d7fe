//! Every input of the catalogue of hostile inputs has a test that carries its id, once there is a surface it could
//! reach, and so has every case of state sync. The ids are in `spec/hostile-ids.txt`; the catalogues stand beside the
//! repository, `../shared/HOSTILE.md` and `../shared/STATE_SYNC_CASES.md`, and where they are, they have the same.
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

/// All ids that are to be carried by a test.
fn known() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("spec/hostile-ids.txt")).expect("spec/hostile-ids.txt is tracked");
    let known = text.lines().filter(|line| !line.starts_with('#')).flat_map(ids);
    known.map(|(area, number)| format!("{area}-{number}")).collect()
}

/// The ids that tests carry in a text: in a test's name (`p01_…`, `ss16_p01_…`), or in the comment right above it (`P-01`). A mention
/// anywhere else proves nothing.
fn carried(text: &str) -> BTreeSet<String> {
    let mut carried = BTreeSet::new();
    let (mut comment, mut is_test) = (String::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(said) = line.strip_prefix("///") {
            comment.push_str(said);
            comment.push('\n');
        } else if line.starts_with("#[") {
            is_test |= line == "#[test]";
        } else {
            if let (true, Some((_, rest))) = (is_test, line.split_once("fn ")) {
                let name = rest.split('(').next().unwrap_or_default();
                carried.extend(name.split('_').map_while(id_of_word));
                carried.extend(ids(&comment).iter().map(|(area, number)| format!("{area}-{number}")));
            }
            (comment, is_test) = (String::new(), false);
        }
    }
    carried
}

/// The id that a word of a test's name is, such as `p01`.
fn id_of_word(word: &str) -> Option<String> {
    let (area, number) = word.split_at(word.find(|c: char| c.is_ascii_digit())?);
    let is_id = (1..=2).contains(&area.len()) && number.len() == 2 && number.bytes().all(|byte| byte.is_ascii_digit());
    is_id.then(|| format!("{}-{number}", area.to_ascii_uppercase()))
}

#[test]
fn a_test_carries_the_ids_of_its_name_and_of_the_comment_above_it() {
    let text = "/// P-01, and so on.\n/// S-02.\n#[cfg(unix)]\n#[test]\nfn ss16_s03_what_h05_is() {\n    // S-04\n}\n\
        /// S-06\nfn of_no_test() {}\n/// S-07\n\n#[test]\nfn s1_and_sha256() {}\n// S-08\nstatic S: &str = \"S-09\";";
    assert_eq!(carried(text).into_iter().collect::<Vec<_>>(), ["P-01", "S-02", "S-03", "SS-16"]);
}

/// The files of these checks name ids as examples.
fn explains_ids(path: &str) -> bool {
    path.ends_with("project/hostile.rs") || path.ends_with("project/main.rs")
}

/// A catalogue that stands beside the repository, and the ids of its rows; none, after a line that says so, if it is not there.
fn catalogue(file: &str, area_len: usize) -> Option<BTreeSet<String>> {
    let Ok(text) = fs::read_to_string(root().join("../shared").join(file)) else {
        println!("../shared/{file} is not there: spec/hostile-ids.txt is not compared with it");
        return None;
    };
    let found = ids(&text).into_iter().filter(|(area, number)| area.len() == area_len && number.len() == 2);
    let known: BTreeSet<String> = found.map(|(area, number)| format!("{area}-{number}")).collect();
    assert!(known.len() > 50, "{file} reads as {known:?}");
    Some(known)
}

#[test]
fn every_hostile_input_with_a_surface_and_every_case_of_state_sync_has_a_test() {
    let files = tracked();
    let texts = files.iter().filter(|file| !explains_ids(&file.path)).map(|file| file.tests());
    let carried: BTreeSet<String> = texts.flat_map(carried).collect();
    let later = later();
    let early: Vec<&String> = later.keys().filter(|id| carried.contains(*id)).collect();
    assert!(early.is_empty(), "in spec/hostile-later.txt, yet tested: {early:?}");

    let known = known();
    let stray: Vec<&String> = later.keys().filter(|id| !known.contains(*id)).collect();
    assert!(stray.is_empty(), "in spec/hostile-later.txt, but not in spec/hostile-ids.txt: {stray:?}");
    let missing: Vec<&String> = known.iter().filter(|id| !later.contains_key(*id) && !carried.contains(*id)).collect();
    assert!(missing.is_empty(), "hostile inputs and cases of state sync without a test: {missing:?}");
}

/// What is looked for does not depend on what stands beside a checkout, and is all there is.
#[test]
fn the_ids_are_those_of_the_catalogues() {
    let known = known();
    for (file, area_len) in [("HOSTILE.md", 1), ("STATE_SYNC_CASES.md", 2)] {
        let ours: BTreeSet<String> = known.iter().filter(|id| id.find('-') == Some(area_len)).cloned().collect();
        assert!(ours.len() > 50, "spec/hostile-ids.txt has {ours:?} of {file}");
        if let Some(theirs) = catalogue(file, area_len) {
            let differ: Vec<&String> = theirs.symmetric_difference(&ours).collect();
            assert!(differ.is_empty(), "{file} and spec/hostile-ids.txt differ in {differ:?}");
        }
    }
}
