//! What the project promises about itself: which crate may use which, that every rule of the specification and every
//! hostile input is proven by a test, and what may not stand in tracked files.
//!
//! Plain text scans without dependencies. They are meant to catch slips, not to resist someone who wants around them.
#![forbid(unsafe_code)]

mod hostile;
mod sources;
mod spec;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A tracked text file.
struct File {
    /// From the root, with forward slashes.
    path: String,
    text: String,
    /// Whether it is a module that is only built for tests.
    only_tests: bool,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The part of the file that is built into the product: what stands before its unit tests, none of a test file.
    fn product(&self) -> &str {
        let in_src = self.path.starts_with("src/") || self.path.contains("/src/") || self.path.starts_with("examples/");
        if !self.is_rust() || !in_src || self.only_tests || self.path.starts_with("tools/") {
            return "";
        }
        let blocks = self.text.match_indices("#[cfg(test)]\nmod ");
        let mut inline = blocks.filter(|(at, head)| {
            let rest = &self.text[at + head.len()..];
            rest.lines().next().is_some_and(|line| line.ends_with('{'))
        });
        &self.text[..inline.next().map_or(self.text.len(), |(at, _)| at)]
    }

    /// The files of modules that this file declares for tests only, without their endings.
    fn test_modules(&self) -> Vec<String> {
        let (directory, file) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let directory = match file {
            "lib.rs" | "main.rs" | "mod.rs" => directory.to_owned(),
            other => format!("{directory}/{}", other.trim_end_matches(".rs")),
        };
        let declared = self.text.split("#[cfg(test)]\nmod ").skip(1).filter_map(|rest| rest.split_once(';'));
        let names = declared.map(|(name, _)| name).filter(|name| !name.contains(char::is_whitespace));
        names.map(|name| format!("{directory}/{name}")).collect()
    }

    /// The part of the file that only tests see.
    fn tests(&self) -> &str {
        if self.is_rust() { &self.text[self.product().len()..] } else { "" }
    }
}

/// All tracked files that are text.
///
/// # Panics
/// Outside a git checkout: what is tracked cannot be told there.
fn tracked() -> Vec<File> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().expect("git is installed");
    assert!(listed.status.success(), "not a git checkout: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("tracked names are UTF-8");
    let read = |path: &str| {
        let text = String::from_utf8(fs::read(root().join(path)).ok()?).ok()?;
        Some(File { path: path.to_owned(), text, only_tests: false })
    };
    let mut files: Vec<File> = names.split('\0').filter(|name| !name.is_empty()).filter_map(read).collect();
    let test_modules: Vec<String> = files.iter().filter(|file| file.is_rust()).flat_map(File::test_modules).collect();
    for file in &mut files {
        file.only_tests = test_modules.iter().any(|module| {
            let rest = file.path.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        });
    }
    files
}

/// All ids such as `TREE-7` or `P-01` in a text, with leading zeros kept.
fn ids(text: &str) -> Vec<(&str, &str)> {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let is_word = |at: usize| bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    for (dash, _) in text.match_indices('-') {
        let start = bytes[..dash].iter().rposition(|b| !b.is_ascii_uppercase()).map_or(0, |at| at + 1);
        let digits = bytes[dash + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        let bounded = (start == 0 || !is_word(start - 1)) && !is_word(dash + 1 + digits);
        if start < dash && digits > 0 && bounded {
            out.push((&text[start..dash], &text[dash + 1..dash + 1 + digits]));
        }
    }
    out
}

#[test]
fn ids_are_found_where_they_stand_alone() {
    let found = ids("spec: TREE-7, P-01 (CODEC-9). Not x86-64, UTF-8a, a-1, sha-256 or XTREE_A-1");
    assert_eq!(found, [("TREE", "7"), ("P", "01"), ("CODEC", "9")]);
}
