//! What a prover asks of a tree: to open one node after another, from the root down.
//!
//! The paged tree of a store and a tree in memory differ in where their nodes are; a proof does not. This trait is all
//! that proofs, witnesses and ICS-23 conversion know of a tree. An implementation is trusted: its hashes and totals go
//! into proofs as they are, and a wrong one makes a proof that nobody accepts.

use crate::{ReadError, Totals};
use keelstone_codec::{Hash, Namespace, Value};
use std::borrow::Cow;

/// A version of the state whose nodes can be opened.
pub trait Walk {
    /// Names a node of either level, by where it is and never by its hash: equal subtrees in two namespaces are two
    /// places (spec: TREE-14).
    type Node: Clone;

    /// The top node of the state level; none if the state is empty (spec: TREE-6).
    ///
    /// # Errors
    /// [`ReadError`] if it could not be read.
    fn top(&self) -> Result<Option<Branch<Self::Node>>, ReadError>;

    /// What stands at a node.
    ///
    /// # Errors
    /// [`ReadError`] if it could not be read.
    fn open<'n>(&'n self, node: &'n Self::Node) -> Result<Opened<'n, Self::Node>, ReadError>;

    /// The value of an entry.
    ///
    /// # Errors
    /// [`ReadError`] if it could not be read.
    ///
    /// # Panics
    /// May panic for a node that is no entry.
    fn value(&self, node: &Self::Node) -> Result<Value, ReadError>;
}

/// A node as its parent knows it: enough to prove it without opening it.
#[derive(Clone, Debug)]
pub struct Branch<N> {
    /// The node.
    pub node: N,
    /// Its hash.
    pub hash: Hash,
    /// What is below it.
    pub totals: Totals,
}

/// What stands at a node (spec: TREE-3, TREE-4).
#[derive(Clone, Debug)]
pub enum Opened<'n, N> {
    /// Keys part here.
    Inner {
        /// The bit in which they differ.
        crit: u16,
        /// Those that have a 0 there.
        left: Branch<N>,
        /// Those that have a 1 there.
        right: Branch<N>,
    },
    /// An entry of a namespace.
    Entry {
        /// Its key.
        key: Cow<'n, [u8]>,
        /// The length of its value.
        value_len: u32,
        /// The hash of its value.
        value_hash: Hash,
    },
    /// A namespace.
    Namespace {
        /// Its name.
        name: Cow<'n, Namespace>,
        /// The top of its tree.
        tree: Branch<N>,
    },
}

impl<W: Walk + ?Sized> Walk for &W {
    type Node = W::Node;
    fn top(&self) -> Result<Option<Branch<Self::Node>>, ReadError> {
        (**self).top()
    }
    fn open<'n>(&'n self, node: &'n Self::Node) -> Result<Opened<'n, Self::Node>, ReadError> {
        (**self).open(node)
    }
    fn value(&self, node: &Self::Node) -> Result<Value, ReadError> {
        (**self).value(node)
    }
}
