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
    let reached = candidates.into_iter().find(|name| *name == package || depends_on(&manifest, name));
    let root = reached.unwrap_or("keelstone");
    let root = Ident::new(&root.replace('-', "_"), Span::call_site());
    quote!(::#root::__private)
}

/// Whether a manifest names `package` as a dependency, be it by a key, a dotted key or a table of its own.
fn depends_on(manifest: &str, package: &str) -> bool {
    manifest.lines().map(str::trim).any(|line| {
        let name = line.split(['=', '.']).next().unwrap_or_default().trim().trim_matches('"');
        name == package || (line.starts_with('[') && line.ends_with(&format!("dependencies.{package}]")))
    })
}

#[cfg(test)]
mod tests {
    use super::depends_on;

    #[test]
    fn a_dependency_is_found_however_it_is_written() {
        for line in ["keelstone = \"1\"", "keelstone.workspace = true", "\"keelstone\"={path=\"x\"}"] {
            assert!(depends_on(&format!("[dependencies]\n{line}\n"), "keelstone"), "{line}");
            assert!(!depends_on(&format!("[dependencies]\n{line}\n"), "keelstone-codec"), "{line}");
        }
        assert!(depends_on("[dev-dependencies.keelstone]\nversion = \"1\"", "keelstone"));
        assert!(!depends_on("[package]\nname = \"keelstone\"", "keelstone"));
    }
}
