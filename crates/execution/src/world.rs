//! Worlds: the typed state that a transition sees, read-only or in draft.
//!
//! A namespace is a struct of collections, a world a struct of namespaces; both only say where things are, and are
//! bound to a host when a transition runs. A [`View`] gives the world by shared reference and collections write by
//! exclusive reference, so that `verify` cannot write, and the compiler sees to it.

use crate::host::Handle;
use crate::{Context, Denied, Function};
use keelstone_codec::{Decode, Describe, Encode, Shape};
use keelstone_tree::Read;
use std::any::{TypeId, type_name};
use std::ops::{Deref, DerefMut};

/// A struct of collections with a name in the state. Implemented by `#[namespace("name")]`.
pub trait Space: Sized + 'static {
    /// The namespace.
    const NAME: &'static str;
    /// Binds the collections.
    fn bind(handle: &Handle) -> Self;
    /// What is where, for the registry and for tools.
    fn info() -> SpaceInfo;
}

/// The state as one struct. Implemented by `#[derive(World)]`, and by `#[namespace]` for a namespace that stands alone.
///
/// Its fields are namespaces of their own; one that stands in it twice does not compile:
///
/// ```
/// use keelstone_execution::{Item, World, namespace};
///
/// #[namespace("value")]
/// struct Value {
///     value: Item<u64>,
/// }
///
/// #[derive(World)]
/// struct Once {
///     a: Value,
/// }
/// ```
///
/// ```compile_fail
/// use keelstone_execution::{Item, World, namespace};
///
/// #[namespace("value")]
/// struct Value {
///     value: Item<u64>,
/// }
///
/// #[derive(World)]
/// struct Twice {
///     a: Value,
///     b: Value,
/// }
/// ```
pub trait World: Sized + 'static {
    /// Binds the namespaces.
    fn bind(handle: &Handle) -> Self;
    /// The namespaces.
    fn spaces() -> Vec<SpaceInfo>;
}

/// Compiles for a world whose fields are namespaces of their own: two fields that are one would each see what the other
/// writes.
#[doc(hidden)]
pub const fn each_once(names: &[&str]) {
    let mut at = 0;
    while at < names.len() {
        let mut other = 0;
        while other < at {
            assert!(!is_same(names[at].as_bytes(), names[other].as_bytes()), "two fields of a world are one namespace");
            other += 1;
        }
        at += 1;
    }
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// What a namespace holds.
#[derive(Clone, Debug)]
pub struct SpaceInfo {
    /// Its name.
    pub name: &'static str,
    /// The Rust type, for people.
    pub type_name: &'static str,
    pub(crate) type_id: TypeId,
    /// Its collections: where their keys begin, and what they are.
    pub collections: Vec<(&'static str, Layout)>,
}

impl SpaceInfo {
    #[doc(hidden)]
    #[must_use]
    pub fn of<S: Space>(collections: Vec<(&'static str, Layout)>) -> Self {
        Self { name: S::NAME, type_name: type_name::<S>(), type_id: TypeId::of::<S>(), collections }
    }
}

/// What a collection is, and what its keys and values look like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// One value, at the place itself.
    Item {
        /// The value.
        value: Shape,
    },
    /// Values by key.
    Map {
        /// The key, which is an ordered key in the state.
        key: Shape,
        /// The value.
        value: Shape,
    },
    /// Keys alone.
    Set {
        /// The key, which is an ordered key in the state.
        key: Shape,
    },
    /// The number given out last, at the place itself.
    Sequence,
    /// Values by position; their number stands at the place itself.
    Log {
        /// The value.
        value: Shape,
    },
}

/// A world that can be read.
pub struct View<W> {
    world: W,
}

impl<W: World> View<W> {
    /// Looks at a version of the state from outside any block: for queries. Nothing is metered.
    #[must_use]
    pub fn over(state: impl Read + 'static) -> Self {
        Self::bind(&Handle::new(Box::new(state), None))
    }

    pub(crate) fn bind(handle: &Handle) -> Self {
        Self { world: W::bind(handle) }
    }
}
impl<W> Deref for View<W> {
    type Target = W;
    fn deref(&self) -> &W {
        &self.world
    }
}

/// A world that can be read and written. What is written is seen at once, and kept only if the whole bundle succeeds.
pub struct Draft<W> {
    world: W,
}

impl<W: World> Draft<W> {
    pub(crate) fn bind(handle: &Handle) -> Self {
        Self { world: W::bind(handle) }
    }
}
impl<W> Deref for Draft<W> {
    type Target = W;
    fn deref(&self) -> &W {
        &self.world
    }
}
impl<W> DerefMut for Draft<W> {
    fn deref_mut(&mut self) -> &mut W {
        &mut self.world
    }
}

/// A function of the chain. The implementing struct, which carries `#[transition]`, is its arguments.
///
/// There is no inverse to write: what `apply` wrote before it failed, or before a later operation of its bundle did,
/// is dropped with the draft; what was committed is taken back by [`crate::Changes::restore`].
pub trait Transition<W: World>: Function {
    /// What it returns. Its encoding enters the hash chain.
    type Output: Encode + Decode + Describe;

    /// Says whether it may run. Runs first, reads only.
    ///
    /// # Errors
    /// [`Denied`] says why not.
    fn verify(&self, world: &View<W>, cx: &Context) -> Result<(), Denied> {
        let _ = (world, cx);
        Ok(())
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`Denied`] says why not; nothing that was written is kept.
    fn apply(&self, world: &mut Draft<W>, cx: &mut Context) -> Result<Self::Output, Denied>;
}
