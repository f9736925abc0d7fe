//! A version of which only those parts are read that somebody asks about.
//!
//! A proven skeleton knows every node above the units; what is below a unit comes from its chunk, which is fetched and
//! proven when a node of it is opened for the first time. So a proof about one namespace, or a few keys, takes the chunks
//! it is about and no others, and is the same proof that the whole version would give.
//!
//! Rules: `spec/snapshot.md`, SNAP-5 to SNAP-7; `spec/tree.md`, TREE-7.

use super::Skeleton;
use super::cut::{Child, Edge, Shape};
use keelstone_codec::{Key, Namespace, Value};
use keelstone_tree::{Branch, Grown, Hasher, Level, Opened, ReadError, Walk};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

/// Fetches the raw bytes of a chunk, unpacked and not proven.
pub type Fetch<'a> = &'a dyn Fn(u32) -> Result<Vec<u8>, ReadError>;

/// A version behind a proven skeleton. It holds what was opened of it, and some 40 bytes for each unit.
pub struct Part<'a, H> {
    skeleton: &'a Skeleton<H>,
    fetch: Fetch<'a>,
    /// What hangs below each opened node.
    below: Vec<[Below; 2]>,
    units: Vec<OnceLock<Box<Unit>>>,
}

/// What hangs below an opened node, by number; a namespace has one child only.
#[derive(Clone, Copy, Debug)]
enum Below {
    Opened(u32),
    Unit(u32),
}

/// The nodes of a unit that was read, and which of them is its top.
struct Unit {
    nodes: Grown,
    top: u32,
}

/// A node of a [`Part`].
#[derive(Clone, Debug)]
pub struct PartNode(At);

#[derive(Clone, Copy, Debug)]
enum At {
    Opened(u32),
    /// The top of a unit, which may not be read yet.
    Top(u32),
    /// A node of a unit.
    Inside(u32, u32),
}

impl<H> fmt::Debug for Part<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({} units)", self.units.len())
    }
}

impl<'a, H: Hasher> Part<'a, H> {
    /// Nothing is read yet.
    ///
    /// # Panics
    /// If not all pages of the skeleton are proven.
    #[must_use]
    pub fn new(skeleton: &'a Skeleton<H>, fetch: Fetch<'a>) -> Self {
        let (cut, units) = skeleton.whole();
        let mut below = vec![[Below::Opened(0); 2]; cut.nodes().len()];
        for (number, node) in (0u32..).zip(cut.nodes()) {
            if let Some(Edge { node, side }) = node.parent {
                below[node as usize][usize::from(side)] = Below::Opened(number);
            }
        }
        for (number, Edge { node, side }) in (0u32..).zip(units) {
            below[*node as usize][usize::from(*side)] = Below::Unit(number);
        }
        Self { skeleton, fetch, below, units: units.iter().map(|_| OnceLock::new()).collect() }
    }

    /// How many chunks of entries were read.
    #[must_use]
    pub fn units_read(&self) -> usize {
        self.units.iter().filter(|unit| unit.get().is_some()).count()
    }

    fn branch(&self, node: u32, side: usize, child: &Child) -> Branch<PartNode> {
        let at = match self.below[node as usize][side] {
            Below::Opened(node) => At::Opened(node),
            Below::Unit(unit) => At::Top(unit),
        };
        Branch { node: PartNode(at), hash: child.hash, totals: child.totals }
    }

    /// A unit, which is read with its whole chunk if it was not yet.
    fn unit(&self, unit: u32) -> Result<&Unit, ReadError> {
        let place = &self.units[unit as usize];
        if let Some(read) = place.get() {
            return Ok(read);
        }
        let (index, first) = self.skeleton.chunk_of(unit);
        let raw = (self.fetch)(index)?;
        let chunk =
            self.skeleton.check(index, &raw).map_err(|error| ReadError::damaged(format!("a snapshot's {error}")))?;
        let (cut, edges) = self.skeleton.whole();
        let mut unit = first;
        let mut state = State::new();
        let mut count = 0;
        chunk.entries(|namespace, key, value| {
            let key = Key::new(key).map_err(|error| ReadError::damaged(error.to_string()))?;
            let value = Value::new(value.to_vec()).map_err(|error| ReadError::damaged(error.to_string()))?;
            state.entry(namespace.clone()).or_default().insert(key, value);
            count += 1;
            let (level, child) = cut.child(edges[unit as usize]);
            if count == child.totals.count {
                let nodes = Grown::new::<H>(&std::mem::take(&mut state));
                let top = top(&nodes, level)?;
                // Another thread may have read the same chunk meanwhile, to the same end.
                let _ = self.units[unit as usize].set(Box::new(Unit { nodes, top }));
                unit += 1;
                count = 0;
            }
            Ok::<(), ReadError>(())
        })?;
        place.get().map(AsRef::as_ref).ok_or_else(|| ReadError::damaged("a chunk lacks one of its units"))
    }
}

type State = BTreeMap<Namespace, BTreeMap<Key, Value>>;

/// The top of a unit among nodes that were grown as a state of their own.
fn top(nodes: &Grown, level: Level) -> Result<u32, ReadError> {
    let none = || ReadError::damaged("a unit without entries");
    let top = nodes.top()?.ok_or_else(none)?.node;
    match (level, nodes.open(&top)?) {
        (Level::Entries, Opened::Namespace { tree, .. }) => Ok(tree.node),
        (Level::Entries, _) => Err(none()),
        (Level::Namespaces, _) => Ok(top),
    }
}

/// A node of a unit as a node of the part.
fn inside(unit: u32, opened: Opened<'_, u32>) -> Opened<'_, PartNode> {
    let branch = |branch: Branch<u32>| Branch {
        node: PartNode(At::Inside(unit, branch.node)),
        hash: branch.hash,
        totals: branch.totals,
    };
    match opened {
        Opened::Inner { crit, left, right } => Opened::Inner { crit, left: branch(left), right: branch(right) },
        Opened::Entry { key, value_len, value_hash } => Opened::Entry { key, value_len, value_hash },
        Opened::Namespace { name, tree } => Opened::Namespace { name, tree: branch(tree) },
    }
}

impl<H: Hasher> Walk for Part<'_, H> {
    type Node = PartNode;

    fn top(&self) -> Result<Option<Branch<PartNode>>, ReadError> {
        let (cut, _) = self.skeleton.whole();
        let top = Branch { node: PartNode(At::Opened(0)), hash: self.skeleton.root().0, totals: cut.totals };
        Ok((!cut.nodes().is_empty()).then_some(top))
    }

    fn open<'n>(&'n self, node: &'n PartNode) -> Result<Opened<'n, PartNode>, ReadError> {
        let node = match &node.0 {
            At::Opened(node) => *node,
            At::Top(unit) => {
                let read = self.unit(*unit)?;
                return Ok(inside(*unit, read.nodes.open(&read.top)?));
            }
            At::Inside(unit, node) => return Ok(inside(*unit, self.unit(*unit)?.nodes.open(node)?)),
        };
        let (cut, _) = self.skeleton.whole();
        Ok(match &cut.nodes()[node as usize].shape {
            Shape::Inner { crit, children: [left, right] } => {
                Opened::Inner { crit: *crit, left: self.branch(node, 0, left), right: self.branch(node, 1, right) }
            }
            Shape::Namespace { name, tree } => {
                Opened::Namespace { name: Cow::Borrowed(name), tree: self.branch(node, 0, tree) }
            }
        })
    }

    fn value(&self, node: &PartNode) -> Result<Value, ReadError> {
        match node.0 {
            At::Top(unit) => {
                let read = self.unit(unit)?;
                read.nodes.value(&read.top)
            }
            At::Inside(unit, node) => self.unit(unit)?.nodes.value(&node),
            At::Opened(_) => panic!("only entries have values"),
        }
    }
}
