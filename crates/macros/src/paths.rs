//! Where the generated code finds what it names.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use std::{env, fs, path::Path};
use syn::Ident;

/// The crates of the engine with a hidden module `__private` that has the names the macros use, the widest first: each has
/// those of the ones behind it. The facade re-exports all of them, so an application names one dependency.
const ENGINE: [&str; 3] = ["keelstone", "keelstone-execution", "keelstone-codec"];

/// The tables of a manifest that name dependencies, the first of them that names one counts: what only tests can reach is of
/// no use to a library, what a library can reach its tests can, too.
const TABLES: [&str; 5] =
    ["dependencies", "dev-dependencies", "dev_dependencies", "build-dependencies", "build_dependencies"];

/// The names of the codec, by way of the crate through which the code being compiled reaches the engine.
pub(crate) fn private() -> TokenStream {
    through(&ENGINE)
}

/// As [`private`], the names of namespaces and transitions with them, which the codec does not have.
pub(crate) fn execution() -> TokenStream {
    through(&ENGINE[..2])
}

fn through(engine: &[&str]) -> TokenStream {
    let package = env::var("CARGO_PKG_NAME").unwrap_or_default();
    let root = match engine.contains(&package.as_str()) {
        true => Some(package),
        false => env::var("CARGO_MANIFEST_DIR").ok().and_then(|directory| {
            let directory = Path::new(&directory);
            let own = read(directory)?;
            dependency(&own, || workspace(directory, &own), engine)
        }),
    };
    // A manifest that cannot be read belongs to a build that is not Cargo's: assume an application.
    let root = root.unwrap_or_else(|| "keelstone".to_owned());
    let root = Ident::new(&root.replace('-', "_"), Span::call_site());
    quote!(::#root::__private)
}

/// What a manifest calls the first of these packages that it depends on. `workspace` is the manifest it inherits from.
fn dependency(own: &Manifest, workspace: impl FnOnce() -> Option<Manifest>, packages: &[&str]) -> Option<String> {
    // What is said of the dependencies of each table: of which, under which key, and what.
    let mut said = Vec::new();
    for (path, value) in &own.0 {
        let path = match &path[..] {
            [target, _, rest @ ..] if target == "target" => rest,
            rest => rest,
        };
        if let [table, name, rest @ ..] = path
            && let Some(table) = TABLES.iter().position(|one| table == one)
        {
            said.push((table, name.as_str(), rest.first().map_or("", String::as_str), value.as_str()));
        }
    }
    let inherits = said.iter().any(|(_, _, key, _)| *key == "workspace");
    let workspace = inherits.then(workspace).flatten().unwrap_or_default();
    let package = |table: usize, name: &str| {
        let of = |wanted: &str| said.iter().find(|(at, of, key, _)| (*at, *of, *key) == (table, name, wanted));
        match (of("package"), of("workspace")) {
            (Some((.., package)), _) => Some(*package),
            (None, Some(_)) => workspace.value(&["workspace", "dependencies", name, "package"]),
            (None, None) => None,
        }
    };
    let called = |table: usize, wanted: &str| {
        let mut names = said.iter().filter(|(at, ..)| *at == table).map(|(_, name, ..)| *name);
        names.find(|name| package(table, name).unwrap_or(name) == wanted).map(str::to_owned)
    };
    (0..TABLES.len()).find_map(|table| packages.iter().find_map(|wanted| called(table, wanted)))
}

/// The manifest of a directory.
fn read(directory: &Path) -> Option<Manifest> {
    fs::read_to_string(directory.join("Cargo.toml")).ok().map(|text| Manifest::parse(&text))
}

/// The manifest of the workspace that the package of a directory is in: the one it names, or the next above it that is one's.
fn workspace(directory: &Path, own: &Manifest) -> Option<Manifest> {
    match own.value(&["package", "workspace"]) {
        Some(named) => read(&directory.join(named)),
        None => {
            let is_one =
                |found: &Manifest| found.0.iter().any(|(path, _)| path.first().is_some_and(|of| of == "workspace"));
            directory.ancestors().filter_map(read).find(is_one)
        }
    }
}

/// A manifest without its form: every value that is no table, with all keys on the way to it, be they in a header, in dots or
/// in braces. Tables stand in it for themselves, with no value.
#[derive(Default)]
struct Manifest(Vec<(Vec<String>, String)>);

impl Manifest {
    fn parse(text: &str) -> Self {
        let mut toml = Toml { rest: text.trim_start_matches('\u{feff}') };
        let (mut out, mut table) = (Vec::new(), Vec::new());
        // Cargo has read it before: where it cannot be read on, it ends.
        while toml.line(&mut table, &mut out).is_some() {}
        Self(out)
    }

    fn value(&self, path: &[&str]) -> Option<&str> {
        self.0.iter().find(|(at, _)| at == path).map(|(_, value)| value.as_str())
    }
}

/// As much of TOML as finds the keys. Line ends are blanks to it, for no value needs one to end.
struct Toml<'a> {
    rest: &'a str,
}

impl<'a> Toml<'a> {
    /// Reads a header or a key with its value.
    fn line(&mut self, table: &mut Vec<String>, out: &mut Vec<(Vec<String>, String)>) -> Option<()> {
        if self.eat("[") {
            let is_list = self.eat("[");
            *table = self.key()?;
            out.push((table.clone(), String::new()));
            return (self.eat("]") && (!is_list || self.eat("]"))).then_some(());
        }
        let key = self.key()?;
        if !self.eat("=") {
            return None;
        }
        self.value([&table[..], &key].concat(), out)
    }

    fn value(&mut self, at: Vec<String>, out: &mut Vec<(Vec<String>, String)>) -> Option<()> {
        if self.eat("{") {
            while !self.eat("}") {
                let key = self.key()?;
                if !self.eat("=") {
                    return None;
                }
                self.value([&at[..], &key].concat(), out)?;
                self.eat(",");
            }
        } else if self.eat("[") {
            while !self.eat("]") {
                self.value(at.clone(), out)?;
                self.eat(",");
            }
        } else {
            let value = match self.quoted() {
                Some(text) => text,
                None => self.while_not(|c| matches!(c, ',' | ']' | '}' | '#' | '\n'))?.trim_end(),
            };
            out.push((at, value.to_owned()));
        }
        Some(())
    }

    fn key(&mut self) -> Option<Vec<String>> {
        let mut parts = Vec::new();
        loop {
            self.skip();
            let part = match self.quoted() {
                Some(text) => text,
                None => self.while_not(|c| !c.is_ascii_alphanumeric() && c != '-' && c != '_')?,
            };
            parts.push(part.to_owned());
            if !self.eat(".") {
                return Some(parts);
            }
        }
    }

    /// Text in quotes of any kind, as it stands there: what is looked for has nothing in it to escape.
    fn quoted(&mut self) -> Option<&'a str> {
        let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| self.rest.starts_with(quote))?;
        let inner = &self.rest[quote.len()..];
        let mut end = 0;
        while !inner[end..].starts_with(quote) {
            let mut next = inner[end..].chars();
            let is_escape = next.next()? == '\\' && quote.starts_with('"');
            if is_escape {
                next.next()?;
            }
            end = inner.len() - next.as_str().len();
        }
        self.rest = &inner[end + quote.len()..];
        if quote.len() == 3 {
            // Up to two quotes may stand before those that close.
            self.rest = self.rest.trim_start_matches(&quote[..1]);
        }
        Some(&inner[..end])
    }

    /// What stands before the first of some characters, if anything does.
    fn while_not(&mut self, ends: impl Fn(char) -> bool) -> Option<&'a str> {
        let (found, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        (!found.is_empty()).then_some(found)
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Steps over blanks, line ends and comments.
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
        while let Some(comment) = self.rest.strip_prefix('#') {
            self.rest = comment.find('\n').map_or("", |end| comment[end..].trim_start());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How what is written there reaches these packages, in a workspace if there is one.
    fn found(own: &str, workspace: Option<&str>, packages: &[&str]) -> Option<String> {
        dependency(&Manifest::parse(own), || workspace.map(Manifest::parse), packages)
    }

    #[test]
    fn a_dependency_is_found_however_it_is_written() {
        let own = Some("keelstone".to_owned());
        for line in ["keelstone = \"1\"", "keelstone.workspace = true", "\"keelstone\"={path=\"x\"}"] {
            let manifest = format!("[dependencies]\n{line}\n");
            assert_eq!(found(&manifest, None, &["keelstone"]), own, "{line}");
            assert_eq!(found(&manifest, None, &["keelstone-codec"]), None, "{line}");
        }
        for manifest in [
            "[dev-dependencies.keelstone]\nversion = \"1\"",
            "[target.'cfg(unix)'.dependencies]\nkeelstone = \"1\"",
            "dependencies = { other = \"1\", keelstone = { version = \"1\" } }",
            "dependencies.keelstone.version = '1'",
            "[package] # of a\ndescription = \"\"\"\n[dependencies]\n\\\"\"\"\"\"\n[ dependencies ]\nkeelstone = \"1\"",
            "[dependencies]\nother = { features = [\n  \"a\", # and\n  \"b\",\n] }\nkeelstone = \"1\"",
        ] {
            assert_eq!(found(manifest, None, &["keelstone"]), own, "{manifest}");
        }
        for manifest in [
            "[package]\nname = \"keelstone\"",
            "[package]\ndescription = '''\n[dependencies]\nkeelstone = \"1\"\n'''",
            "[dependencies]\n# keelstone = \"1\"\nother = { path = \"keelstone\" }",
            "[features]\nkeelstone = []",
        ] {
            assert_eq!(found(manifest, None, &["keelstone"]), None, "{manifest}");
        }
    }

    #[test]
    fn a_dependency_that_is_called_something_else_is_found_under_that_name() {
        let manifests = [
            "[dependencies]\nengine = { version = \"1\", package = \"keelstone\" }",
            "[dependencies]\nengine = { package = \"keelstone\", path = \"x\" }\nother = \"1\"",
            "[dependencies]\nengine = { path = \"../packages/keelstone\", package = \"keelstone\" }",
            "[dependencies.engine]\nversion = \"1\"\npackage = \"keelstone\"",
            "[dependencies]\nengine.package = \"keelstone\"\nengine.version = \"1\"",
        ];
        for manifest in manifests {
            assert_eq!(found(manifest, None, &["keelstone"]).as_deref(), Some("engine"), "{manifest}");
            assert_eq!(found(manifest, None, &["keelstone-codec"]), None, "{manifest}");
        }
        // Another package that took the name.
        assert_eq!(found("[dependencies]\nkeelstone = { package = \"other\" }", None, &["keelstone"]), None);
    }

    #[test]
    fn a_name_that_the_workspace_gave_is_looked_up_there() {
        let workspace = "[workspace]\nmembers = [\"a\"]\n[workspace.dependencies]\n\
                         engine = { path = \"x\", package = \"keelstone\" }\nkeelstone-codec = \"1\"";
        for own in ["[dependencies]\nengine.workspace = true", "[dependencies]\nengine = { workspace = true }"] {
            assert_eq!(found(own, Some(workspace), &ENGINE).as_deref(), Some("engine"), "{own}");
        }
        let both = format!("{workspace}\n[dependencies]\nkeelstone-codec.workspace = true");
        assert_eq!(found(&both, Some(&both), &ENGINE).as_deref(), Some("keelstone-codec"), "a list is no dependency");
    }

    /// What a library is compiled with is what its own dependencies are, whatever its tests reach besides.
    #[test]
    fn what_only_tests_reach_is_taken_where_nothing_else_is() {
        let own = |narrow: &str| format!("[dev-dependencies]\nkeelstone = \"1\"\n[dependencies]\n{narrow} = \"1\"");
        let execution = own("keelstone-execution");
        assert_eq!(found(&execution, None, &ENGINE).as_deref(), Some("keelstone-execution"));
        let codec = own("keelstone-codec");
        assert_eq!(found(&codec, None, &ENGINE).as_deref(), Some("keelstone-codec"));
        assert_eq!(found(&codec, None, &ENGINE[..2]).as_deref(), Some("keelstone"), "the codec has no namespaces");
    }

    #[test]
    fn the_workspace_of_a_package_is_the_next_above_it() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
        let own = read(directory).expect("this crate's");
        let found = workspace(directory, &own).expect("it is in one");
        assert!(found.value(&["workspace", "dependencies", "keelstone-macros", "path"]).is_some());
    }
}
