//! One version of the state, immutable, for as long as somebody holds it.

use crate::version::Version;
use keelstone_codec::{Height, Namespace, Root, Value};
use keelstone_tree::{Branch, Hasher, KeyRange, Opened, PagedNode, Proof, Query, Read, ReadError, Scan, Totals, Walk};
use std::sync::Arc;

/// One version of the state. Clones share it; it can be read from any thread while commits go on.
///
/// A view that is held while very many newer versions come expires: it then answers [`ReadError::Gone`] (spec: STORE-6).
#[derive(Debug)]
pub struct View<H: Hasher> {
    version: Arc<Version<H>>,
}

impl<H: Hasher> Clone for View<H> {
    fn clone(&self) -> Self {
        Self { version: Arc::clone(&self.version) }
    }
}

impl<H: Hasher> View<H> {
    pub(crate) fn new(version: Arc<Version<H>>) -> Self {
        Self { version }
    }

    /// The height of this version, none before the first commit.
    #[must_use]
    pub fn height(&self) -> Option<Height> {
        self.version.height
    }

    /// The root of this version.
    #[must_use]
    pub fn root(&self) -> Root {
        self.version.root
    }

    /// Number and bytes of all entries.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.version.tree.totals()
    }

    /// The namespaces that have entries, in order, with their totals.
    #[must_use]
    pub fn namespaces(&self) -> Vec<(Namespace, Totals)> {
        self.version.tree.namespaces().map(|(name, totals, _)| (name.clone(), totals)).collect()
    }

    /// A proof of what `queries` ask of this version.
    ///
    /// # Errors
    /// [`ReadError`] if a node or value could not be read.
    pub fn prove(&self, queries: &[Query]) -> Result<Proof, ReadError> {
        self.check()?;
        self.blame(self.version.tree.prove(queries))
    }

    /// What a version that expired while it was read misses is not damage.
    fn blame<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        read.or_else(|error| self.check().and(Err(error)))
    }

    /// As [`Self::prove`], but only the bytes: for those who send a proof and have no questions to it.
    ///
    /// # Errors
    /// As [`Self::prove`].
    pub fn prove_bytes(&self, queries: &[Query]) -> Result<Vec<u8>, ReadError> {
        self.check()?;
        self.blame(self.version.tree.prove_bytes(queries))
    }

    fn check(&self) -> Result<(), ReadError> {
        if self.version.is_expired() {
            return Err(ReadError::Gone { reason: "it was held while too many newer versions came" });
        }
        Ok(())
    }
}

impl<H: Hasher> Read for View<H> {
    fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.check()?;
        self.blame(self.version.get(namespace, key))
    }

    fn scan<'a>(&'a self, namespace: &Namespace, range: KeyRange) -> Scan<'a> {
        match self.check() {
            Ok(()) => Box::new(self.version.tree.scan(namespace, range).map(|entry| self.blame(entry))),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }
}

/// The nodes of this version, for whoever cuts it into parts or compares it with another.
impl<H: Hasher> Walk for View<H> {
    type Node = PagedNode;

    fn top(&self) -> Result<Option<Branch<PagedNode>>, ReadError> {
        self.check()?;
        self.blame(Walk::top(&self.version.tree))
    }

    fn open<'n>(&'n self, node: &'n PagedNode) -> Result<Opened<'n, PagedNode>, ReadError> {
        self.check()?;
        self.blame(self.version.tree.open(node))
    }

    fn value(&self, node: &PagedNode) -> Result<Value, ReadError> {
        self.check()?;
        self.blame(Walk::value(&self.version.tree, node))
    }
}
