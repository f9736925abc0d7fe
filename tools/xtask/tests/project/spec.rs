//! Every numbered rule in `spec/` is carried out by code that cites it and proven by a test that cites it, and nothing
//! cites a rule that does not exist.
//!
//! A rule is a line that begins with its id in bold: `**TREE-7** Text …`. A rule whose time has not come yet says so
//! right behind its id: `**EXEC-6** (reserved) Text …`.

use crate::{ids, tracked};
use std::collections::{BTreeMap, BTreeSet};

struct Rule {
    id: String,
    file: String,
    reserved: bool,
}

fn rules() -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for file in tracked().iter().filter(|file| file.path.starts_with("spec/") && file.path.ends_with(".md")) {
        for line in file.text.lines() {
            let line = line.trim_start_matches(['-', '*', '#', ' ']);
            let Some((id, rest)) = line.split_once("**") else { continue };
            let [(area, number)] = ids(id)[..] else { continue };
            if format!("{area}-{number}") == id {
                let reserved = rest.trim_start().starts_with("(reserved)");
                out.push(Rule { id: id.to_owned(), file: file.path.clone(), reserved });
            }
        }
    }
    out
}

fn cited<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    texts.flat_map(ids).map(|(area, number)| format!("{area}-{number}")).collect()
}

#[test]
fn every_rule_is_cited_by_code_and_by_a_test() {
    let files = tracked();
    let (code, tests) = (cited(files.iter().map(|f| f.product())), cited(files.iter().map(|f| f.tests())));
    let rules = rules();
    assert!(!rules.is_empty(), "spec/ holds no rules");
    let mut lacking = String::new();
    for rule in rules.iter().filter(|rule| !rule.reserved) {
        let lacks = match (code.contains(&rule.id), tests.contains(&rule.id)) {
            (true, true) => continue,
            (true, false) => "no test cites it",
            (false, true) => "no code cites it",
            (false, false) => "neither code nor a test cites it",
        };
        lacking += &format!("\n{} ({}): {lacks}", rule.id, rule.file);
    }
    assert!(lacking.is_empty(), "rules that are not proven:{lacking}");
}

#[test]
fn every_cited_rule_exists_and_is_written_once() {
    let mut known = BTreeMap::new();
    for rule in rules() {
        let other = known.insert(rule.id.clone(), rule.file.clone());
        assert_eq!(other, None, "{} is written in {} too", rule.id, rule.file);
    }
    let areas: BTreeSet<&str> = known.keys().flat_map(|id| ids(id)).map(|(area, _)| area).collect();
    let mut unknown = BTreeSet::new();
    for file in tracked().iter().filter(|file| !file.path.starts_with("tools/xtask/")) {
        for (area, number) in ids(&file.text) {
            if areas.contains(area) && !known.contains_key(&format!("{area}-{number}")) {
                unknown.insert(format!("{area}-{number} in {}", file.path));
            }
        }
    }
    assert!(unknown.is_empty(), "cited, but not in spec/: {unknown:#?}");
}
