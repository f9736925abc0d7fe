//! What stands, and what may not stand, in the sources.

use crate::{File, root, tracked};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The crates in the order data flows: each may use what stands before it.
const FLOW: [&str; 7] = ["codec", "tree", "store", "execution", "ledger", "sync", "node"];

/// The crates of the project that a crate's manifest names in one of its dependency tables.
fn uses(manifest: &str) -> BTreeSet<String> {
    let mut in_dependencies = false;
    let mut out = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.trim_end().ends_with("dependencies]");
        } else if in_dependencies && let Some(rest) = line.strip_prefix("keelstone-") {
            out.insert(rest.chars().take_while(char::is_ascii_lowercase).collect());
        }
    }
    out
}

#[test]
fn a_crate_uses_only_what_stands_to_its_left() {
    let place = |name: &str| FLOW.iter().position(|known| *known == name);
    for entry in fs::read_dir(root().join("crates")).expect("crates/ is there") {
        let directory = entry.expect("crates/ can be listed").path();
        let Ok(manifest) = fs::read_to_string(directory.join("Cargo.toml")) else { continue };
        let name = directory.file_name().and_then(|name| name.to_str()).expect("crate names are UTF-8").to_owned();
        let uses = uses(&manifest);
        if name == "macros" {
            assert!(uses.is_empty(), "macros write code for others and use nothing: {uses:?}");
            continue;
        }
        let own = place(&name).unwrap_or_else(|| panic!("crates/{name} has no place in the order of data"));
        for other in uses.iter().filter(|other| *other != "macros") {
            let other_place = place(other).unwrap_or_else(|| panic!("{name} uses {other}, which has no place"));
            assert!(other_place < own, "crates/{name} uses {other}, which stands to its right");
        }
        // Transitions run over a proof as well as over a store, so execution may not know what a store is.
        assert!(name != "execution" || !uses.contains("store"), "execution needs only tree::Read, not the store");
    }
}

/// The modules of `node` in the order that `ARCHITECTURE.md` gives them: each may use what stands before it.
fn modules_of_node() -> Vec<String> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let section = text.split("## Inside `node`").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = section.expect("it has the order").lines().filter_map(|line| line.strip_prefix('|')?.split('|').nth(1));
    rows.flat_map(|names| names.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The modules that stand behind `crate::` in code.
fn modules_used(code: &str) -> impl Iterator<Item = &str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.split("crate::").skip(1).map(move |rest| rest.split(|c| !is_name(c)).next().unwrap_or_default())
}

#[test]
fn a_module_of_node_uses_only_what_stands_before_it() {
    let order = modules_of_node();
    let place = |name: &str| order.iter().position(|known| known == name);
    let mut seen = BTreeSet::new();
    for file in tracked() {
        let Some(path) = file.path.strip_prefix("crates/node/src/").filter(|path| *path != "lib.rs") else { continue };
        let own = path.split(['/', '.']).next().unwrap_or_default();
        let own_place = place(own).unwrap_or_else(|| panic!("{own} has no place in the order of ARCHITECTURE.md"));
        seen.insert(own.to_owned());
        for line in file.product().lines().map(code) {
            for used in modules_used(&line).filter(|used| *used != own) {
                assert!(!used.is_empty(), "{path}: a line to each module that is used, as in: {line}");
                let used_place = place(used).unwrap_or_else(|| panic!("{path} uses {used}, which has no place"));
                assert!(used_place < own_place, "{path} uses {used}, which stands behind {own}");
            }
        }
    }
    let gone: Vec<&String> = order.iter().filter(|name| !seen.contains(*name)).collect();
    assert!(gone.is_empty(), "in the order of ARCHITECTURE.md, and not in node: {gone:?}");
}

/// The binary's allocator alone has an unsafe call, which sets an option of it.
#[test]
fn no_crate_has_unsafe_code() {
    for file in tracked().iter().filter(|file| {
        let is_root = file.path.ends_with("/lib.rs") || file.path.ends_with("/main.rs");
        file.is_rust() && is_root && file.path.matches("src/").count() == 1 && !file.path.contains("/bin/")
    }) {
        let is_crate_root = ["src/lib.rs", "src/main.rs"].iter().any(|end| file.path.ends_with(end));
        let said = if file.path == "src/main.rs" { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
        assert!(!is_crate_root || file.text.contains(said), "{} allows unsafe code", file.path);
    }
    let is_unsafe =
        |line: &&str| code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
    for file in tracked().iter().filter(|file| file.is_rust()) {
        let found = file.product().lines().filter(is_unsafe).count();
        assert_eq!(found, usize::from(file.path == "src/allocator.rs"), "{} has unsafe code", file.path);
    }
}

/// A line without its comment and without what stands in quotes.
fn code(line: &str) -> String {
    let line = line.split("//").next().unwrap_or("");
    line.split('"').step_by(2).collect()
}

/// The lines of code of the crates that make, read or hash state, in which one of these words stands.
fn state_code_with(words: &[&str]) -> Vec<String> {
    let state = ["codec", "tree", "store", "execution", "ledger", "sync"].map(|name| format!("crates/{name}/src/"));
    let mut found = Vec::new();
    for file in tracked().iter().filter(|file| state.iter().any(|start| file.path.starts_with(start))) {
        for (number, line) in file.product().lines().enumerate() {
            let code = code(line);
            if code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| words.contains(&word)) {
                found.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    found
}

/// D-01: no float type is named where state is made, read or hashed.
#[test]
fn d01_no_float_is_named_in_a_state_crate() {
    let found = state_code_with(&["f32", "f64"]);
    assert!(found.is_empty(), "floats: {found:#?}");
}

/// D-05: nothing that differs between two runs is at hand where state is made: no clock, no environment, no randomness
/// but for new secret keys, no address of this machine.
#[test]
fn d05_no_state_crate_asks_the_machine() {
    let mut found =
        state_code_with(&["SystemTime", "Instant", "env", "hostname", "RandomState", "rand", "getrandom", "UdpSocket"]);
    // Secret keys and the ids of stores are made of randomness. Neither is ever part of the state.
    found.retain(|line| {
        !["crates/ledger/src/keys.rs:", "crates/store/src/recover.rs:"].iter().any(|at| line.starts_with(at))
    });
    assert!(found.is_empty(), "questions to the machine: {found:#?}");
}

#[test]
fn the_reference_tree_stays_naive() {
    let text = fs::read_to_string(root().join("crates/tree/src/reference.rs")).expect("the reference is there");
    let lines = text.lines().count();
    assert!(lines <= 300, "the reference has {lines} lines; what is judged by it must be simpler than that");
    for other in ["crate::", "super::"] {
        let shared: Vec<&str> = text.lines().filter(|line| line.starts_with("use ") && line.contains(other)).collect();
        assert!(shared.is_empty(), "the reference shares code with the fast tree: {shared:?}");
    }
}

/// Two uses of one tag would let a hash of the one pass for the other. spec: CODEC-7.
#[test]
fn no_two_uses_of_a_hash_share_a_tag() {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for file in tracked().iter().filter(|file| file.is_rust()) {
        for rest in file.product().split("Tag::new(\"").skip(1) {
            let tag = rest.split('"').next().unwrap_or("").to_owned();
            if let Some(other) = seen.insert(tag.clone(), file.path.clone()) {
                panic!("the tag {tag} stands in {other} and in {}", file.path);
            }
        }
    }
}

#[test]
fn no_tracked_file_names_a_path_of_one_machine() {
    let homes = ["home", "root", "work", "farm", "Users"].map(|name| format!("/{name}/"));
    for File { path, text, .. } in tracked().iter().filter(|file| !file.path.ends_with(".lock")) {
        for (number, line) in text.lines().enumerate() {
            for home in &homes {
                let at = line.match_indices(home.as_str()).map(|(at, _)| at);
                let mut opened = at.filter(|at| *at > 0 && b"\"' =(`".contains(&line.as_bytes()[at - 1]));
                assert!(opened.next().is_none(), "{path}:{}: {line}", number + 1);
            }
        }
    }
}

/// A lockfile written behind a mirror would name it, and nobody else could build.
#[test]
fn the_lockfile_names_no_source_but_crates_io() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock is committed");
    let sources: BTreeSet<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    assert_eq!(sources, BTreeSet::from(["\"registry+https://github.com/rust-lang/crates.io-index\""]));
}

/// A dependency without a reason is a dependency nobody decided on.
#[test]
fn every_dependency_has_its_line_in_dependencies_md() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml is there");
    let listed = fs::read_to_string(root().join("DEPENDENCIES.md")).expect("DEPENDENCIES.md is there");
    let table = manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    let names = table.expect("the workspace lists its dependencies").lines().filter_map(|line| line.split_once(" = "));
    let missing: Vec<&str> = names
        .map(|(name, _)| name.trim())
        .filter(|name| !name.starts_with('#') && !name.starts_with("keelstone-"))
        .filter(|name| !listed.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "dependencies without a reason in DEPENDENCIES.md: {missing:?}");
}

/// Relative links in the documents lead somewhere.
#[test]
fn links_between_documents_lead_somewhere() {
    for file in tracked().iter().filter(|file| file.path.ends_with(".md")) {
        let directory = root().join(&file.path).parent().expect("a file has a directory").to_owned();
        for rest in file.text.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or("");
            let elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            assert!(elsewhere || directory.join(target).exists(), "{} links to {target}", file.path);
        }
    }
}
