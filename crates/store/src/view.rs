//! One version of the state, immutable, for as long as somebody holds it.

use keelstone_codec::{Height, Namespace, Root, Value};
use keelstone_tree::{Hasher, KeyRange, MemoryTree, Proof, Query, Read, ReadError, Scan, Totals};
use std::sync::Arc;

/// One version of the state. Clones share it; it can be read from any thread while commits go on.
#[derive(Debug, Clone)]
pub struct View<H: Hasher> {
    pub(crate) height: Option<Height>,
    pub(crate) root: Root,
    pub(crate) tree: Arc<MemoryTree<H>>,
}

impl<H: Hasher> View<H> {
    /// The height of this version, none before the first commit.
    #[must_use]
    pub fn height(&self) -> Option<Height> {
        self.height
    }

    /// The root of this version.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }

    /// Number and bytes of all entries.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.namespaces().into_iter().fold(Totals::default(), |sum, (_, totals)| sum + totals)
    }

    /// The namespaces that have entries, in order, with their totals.
    #[must_use]
    pub fn namespaces(&self) -> Vec<(Namespace, Totals)> {
        self.tree.namespaces()
    }

    /// A proof of what `queries` ask of this version.
    ///
    /// # Errors
    /// [`ReadError`] if a node or value could not be read.
    pub fn prove(&self, queries: &[Query]) -> Result<Proof, ReadError> {
        Ok(self.tree.prove(queries))
    }
}

impl<H: Hasher> Read for View<H> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.tree.get(namespace, key)
    }

    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        self.tree.scan(namespace, range)
    }
}
