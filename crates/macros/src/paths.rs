//! Where the generated code finds what it names.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use std::{env, fs, path::Path};
use syn::Ident;

/// The crate through which the code being compiled reaches the engine: the widest of those it depends on.
///
/// The facade re-exports all of them, so an application names one dependency. Each candidate has a hidden module
/// `__private` with the names the macros use.
pub(crate) fn private() -> TokenStream {
    let package = env::var("CARGO_PKG_NAME").unwrap_or_default();
    let manifest = env::var("CARGO_MANIFEST_DIR").map(|directory| Path::new(&directory).join("Cargo.toml"));
    // A manifest that cannot be read belongs to a build that is not Cargo's: assume an application.
    let manifest = manifest.ok().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let candidates = ["keelstone", "keelstone-execution", "keelstone-codec"];
    let reached = candidates.into_iter().find_map(|name| match name == package {
        true => Some(name.to_owned()),
        false => dependency(&manifest, name),
    });
    let root = reached.unwrap_or_else(|| "keelstone".to_owned());
    let root = Ident::new(&root.replace('-', "_"), Span::call_site());
    quote!(::#root::__private)
}

/// What a manifest calls the dependency `package`, be it named by a key, a dotted key or a table of its own, or called
/// something else there.
fn dependency(manifest: &str, package: &str) -> Option<String> {
    let bare = |text: &str| text.trim().trim_matches('"').to_owned();
    let mut table = None;
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            table = header.rsplit_once('.').filter(|(of, _)| of.ends_with("dependencies")).map(|(_, name)| bare(name));
            if table.as_deref() == Some(package) {
                return table;
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let name = bare(key.split('.').next().unwrap_or_default());
        // `name = { package = "..." }`, or the key `package` in a table of the dependency's own.
        let renamed = value.split_once("package").and_then(|(_, rest)| rest.trim().strip_prefix('='));
        match (renamed.and_then(|rest| rest.split('"').nth(1)), &table) {
            (Some(of), _) if of == package => return Some(name),
            (Some(_), _) => {}
            (None, Some(table)) if name == "package" && bare(value) == package => return Some(table.clone()),
            (None, _) if name == package => return Some(name),
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::dependency;

    #[test]
    fn a_dependency_is_found_however_it_is_written() {
        let found = |manifest: &str, package: &str| dependency(manifest, package);
        let own = Some("keelstone".to_owned());
        for line in ["keelstone = \"1\"", "keelstone.workspace = true", "\"keelstone\"={path=\"x\"}"] {
            assert_eq!(found(&format!("[dependencies]\n{line}\n"), "keelstone"), own, "{line}");
            assert_eq!(found(&format!("[dependencies]\n{line}\n"), "keelstone-codec"), None, "{line}");
        }
        assert_eq!(found("[dev-dependencies.keelstone]\nversion = \"1\"", "keelstone"), own);
        assert_eq!(found("[package]\nname = \"keelstone\"", "keelstone"), None);
    }

    #[test]
    fn a_dependency_that_is_called_something_else_is_found_under_that_name() {
        let manifests = [
            "[dependencies]\nengine = { version = \"1\", package = \"keelstone\" }",
            "[dependencies]\nengine = { package = \"keelstone\", path = \"x\" }\nother = \"1\"",
            "[dependencies.engine]\nversion = \"1\"\npackage = \"keelstone\"",
        ];
        for manifest in manifests {
            assert_eq!(dependency(manifest, "keelstone").as_deref(), Some("engine"), "{manifest}");
            assert_eq!(dependency(manifest, "keelstone-codec"), None, "{manifest}");
        }
        // Another package that took the name.
        assert_eq!(dependency("[dependencies]\nkeelstone = { package = \"other\" }", "keelstone"), None);
    }
}
