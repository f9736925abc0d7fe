//! An application: a chain with its functions, under a name of its own.

use crate::api::Named;
use crate::out::NAME;
use keelstone_execution::Registry;

/// A chain with its functions, and the command line around it.
///
/// ```no_run
/// # use keelstone_execution::Registry;
/// let registry = Registry::new(); // with the functions of one's own
/// let _ = keelstone_node::Application::new(registry).name("my-chain").main();
/// ```
#[derive(Debug, Clone)]
pub struct Application {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    pub(crate) registry: Registry,
}

impl Application {
    /// A chain with the functions of this registry.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { name: NAME.to_owned(), version: None, registry }
    }

    /// The name of the program, in its help and completions; and of the directory in the user's own that its chain lives in if
    /// nobody names another: `.NAME`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The version of the program, which is shown beside Keelstone's: `env!("CARGO_PKG_VERSION")` in its own crate.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// The program and its version, if it says one.
    pub(crate) fn named(&self) -> Option<Named> {
        let version = self.version.clone()?;
        Some(Named { name: self.name.clone(), version })
    }

    /// How this program is called, for what to try next.
    pub(crate) fn program(&self) -> String {
        std::env::args().next().unwrap_or_else(|| self.name.clone())
    }
}
