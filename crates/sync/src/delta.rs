//! What changed between two heights, for whoever has the one and wants the other.
//!
//! A delta is found by walking two versions at once and stepping over every subtree they share, so it costs what changed
//! and not what there is, and it is the same whichever blocks lay between. It is applied by reading the older version in
//! order with the changes in their places; whoever builds from that finds out by the root whether all of it was true.
//! Until then nothing in it is believed.
//!
//! Rules: `spec/snapshot.md`, SNAP-17.

use keelstone_codec::{ChainId, Decode, DecodeError, Encode, Height, Key, Namespace, Reader, Root, Value};
use keelstone_tree::{Branch, DIFF_BYTES_MAX, Diff, HashKind, KeyRange, Opened, Read, ReadError, Walk, Write, bits};
use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;

/// The one format of deltas there is.
pub const DELTA_FORMAT: u32 = 1;

/// Most weight of a delta: bytes of its keys and values, and 16 for each write (spec: SNAP-17).
pub const DELTA_WEIGHT_MAX: u64 = DIFF_BYTES_MAX;

/// The net change from one height of a chain to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The chain.
    pub chain_id: ChainId,
    /// The hasher of its tree.
    pub hasher: HashKind,
    /// The version it applies to.
    pub from: (Height, Root),
    /// The version it leads to.
    pub to: (Height, Root),
    /// Every key that differs, with what it holds at the later height.
    pub diff: Diff,
}

/// Why a delta was not made or not applied. Each variant says who has to act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// Too much changed. Take a snapshot instead.
    #[error("the change weighs more than {limit} bytes")]
    TooLarge {
        /// [`DELTA_WEIGHT_MAX`].
        limit: u64,
    },
    /// It leads nowhere: the later height is not the later one. The caller broke the contract.
    #[error("no delta leads from height {from} to {to}")]
    Heights {
        /// The older height.
        from: Height,
        /// The later height.
        to: Height,
    },
    /// It is of something else. Ask for the one that fits.
    #[error("the delta is {what} {found}, not {expected}")]
    Other {
        /// Chain, hasher, from or to.
        what: &'static str,
        /// What the delta says.
        found: String,
        /// What was wanted.
        expected: String,
    },
    /// It writes what is there already or deletes what is not. Whoever made it is to blame.
    #[error("the delta changes nothing at {namespace}/{}", .key.escape_ascii())]
    NoChange {
        /// Where.
        namespace: Namespace,
        /// The key.
        key: Key,
    },
    /// A version could not be read.
    #[error("a version could not be read")]
    Read(#[from] ReadError),
}

/// Why the entries of the later version were not all handed out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError<E> {
    /// The delta does not fit, or the older version could not be read.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// Whoever took them said so.
    #[error("{0}")]
    Taker(E),
}

impl Delta {
    /// Finds what changed between two versions. Opens the nodes in which they differ and no others.
    ///
    /// # Errors
    /// [`DeltaError::TooLarge`], [`DeltaError::Heights`], [`DeltaError::Read`].
    pub fn between<V: Walk, W: Walk>(
        chain_id: ChainId,
        hasher: HashKind,
        (older, from): (&V, (Height, Root)),
        (later, to): (&W, (Height, Root)),
    ) -> Result<Self, DeltaError> {
        check_heights(from.0, to.0)?;
        let mut found = Changes::default();
        let mut stack = vec![Pair { namespace: None, older: older.top()?, later: later.top()? }];
        while let Some(pair) = stack.pop() {
            compare(older, later, pair, &mut stack, &mut found)?;
        }
        found.into_delta(chain_id, hasher, from, to)
    }

    /// Checks that it applies to the version at hand and leads to one that is trusted.
    ///
    /// # Errors
    /// [`DeltaError::Other`].
    pub fn check(
        &self,
        chain_id: &ChainId,
        hasher: HashKind,
        from: (Height, Root),
        to: (Height, Root),
    ) -> Result<(), DeltaError> {
        let pair = |(height, root): (Height, Root)| format!("height {height} with root {root}");
        for (what, found, expected) in [
            ("of chain", self.chain_id.to_string(), chain_id.to_string()),
            ("hashed with", self.hasher.to_string(), hasher.to_string()),
            ("from", pair(self.from), pair(from)),
            ("to", pair(self.to), pair(to)),
        ] {
            if found != expected {
                return Err(DeltaError::Other { what, found, expected });
            }
        }
        Ok(())
    }

    /// Hands out all entries of the later version in order: those of `older` with the changes in their places. What they
    /// come to is not known before the last; compare their root with [`Delta::to`], as a store that is built from them
    /// does.
    ///
    /// # Errors
    /// [`ApplyError`]. [`DeltaError::NoChange`] shows that the delta was not made from these two versions.
    pub fn entries<V: Walk + Read, E>(
        &self,
        older: &V,
        mut each: impl FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>,
    ) -> Result<(), ApplyError<E>> {
        let mut applying = self.apply();
        for name in namespaces(older)? {
            for entry in older.scan(&name, KeyRange::all()) {
                let (key, value) = entry.map_err(DeltaError::Read)?;
                applying.entry(&name, &key, &value, &mut each)?;
            }
        }
        applying.finish(&mut each)
    }

    /// The same for an older version whose entries come from somewhere else, in order: from a snapshot, say.
    #[must_use]
    pub fn apply(&self) -> Applying<'_> {
        let writes = self.diff.parts().iter().flat_map(|(name, writes)| writes.iter().map(move |write| (name, write)));
        let writes: Box<dyn Iterator<Item = _>> = Box::new(writes);
        Applying { writes: writes.peekable() }
    }
}

/// Puts the changes of a delta in their places among the entries of the older version.
pub struct Applying<'d> {
    /// Those that are still to come.
    writes: Peekable<Box<dyn Iterator<Item = (&'d Namespace, &'d Write)> + 'd>>,
}

impl Applying<'_> {
    /// Takes the next entry of the older version, and hands out what the later one has up to there.
    ///
    /// # Errors
    /// [`DeltaError::NoChange`], or what `each` says.
    pub fn entry<E>(
        &mut self,
        namespace: &Namespace,
        key: &Key,
        value: &[u8],
        each: &mut impl FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>,
    ) -> Result<(), ApplyError<E>> {
        while let Some((name, write)) = self.writes.next_if(|(name, write)| (*name, &write.key) < (namespace, key)) {
            put(name, write, None, each)?;
        }
        match self.writes.next_if(|(name, write)| (*name, &write.key) == (namespace, key)) {
            Some((name, write)) => put(name, write, Some(value), each),
            None => each(namespace, key, value).map_err(ApplyError::Taker),
        }
    }

    /// Hands out what comes behind the last entry of the older version.
    ///
    /// # Errors
    /// [`DeltaError::NoChange`], or what `each` says.
    pub fn finish<E>(
        self,
        each: &mut impl FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>,
    ) -> Result<(), ApplyError<E>> {
        for (name, write) in self.writes {
            put(name, write, None, each)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Applying<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applying").finish_non_exhaustive()
    }
}

/// Hands out what a key holds from now on, which must not be what it held before (spec: SNAP-17).
fn put<E>(
    namespace: &Namespace,
    write: &Write,
    old: Option<&[u8]>,
    each: &mut impl FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>,
) -> Result<(), ApplyError<E>> {
    match write.value.as_deref() {
        value if value == old => {
            Err(DeltaError::NoChange { namespace: namespace.clone(), key: write.key.clone() }.into())
        }
        Some(value) => each(namespace, &write.key, value).map_err(ApplyError::Taker),
        None => Ok(()),
    }
}

/// The names of the namespaces of a version, in order.
fn namespaces<W: Walk>(walk: &W) -> Result<Vec<Namespace>, DeltaError> {
    let mut names = Vec::new();
    let mut stack: Vec<W::Node> = walk.top()?.into_iter().map(|top| top.node).collect();
    while let Some(node) = stack.pop() {
        match walk.open(&node)? {
            Opened::Inner { left, right, .. } => stack.extend([right.node, left.node]),
            Opened::Namespace { name, .. } => names.push(name.into_owned()),
            Opened::Entry { .. } => return Err(ReadError::damaged("an entry among namespaces").into()),
        }
    }
    Ok(names)
}

/// Two subtrees between which all keys of one part of the tree lie, or only one of them, or none.
struct Pair<V, W> {
    /// None for the level of namespaces.
    namespace: Option<Namespace>,
    older: Option<Branch<V>>,
    later: Option<Branch<W>>,
}

/// Changes that were found between two versions, in whatever way.
#[derive(Debug, Default)]
pub struct Changes {
    writes: BTreeMap<(Namespace, Key), Option<Value>>,
    weight: u64,
}

fn check_heights(from: Height, to: Height) -> Result<(), DeltaError> {
    if from < to { Ok(()) } else { Err(DeltaError::Heights { from, to }) }
}

impl Changes {
    /// The delta that they are.
    ///
    /// # Errors
    /// [`DeltaError::Heights`].
    pub fn into_delta(
        self,
        chain_id: ChainId,
        hasher: HashKind,
        from: (Height, Root),
        to: (Height, Root),
    ) -> Result<Delta, DeltaError> {
        check_heights(from.0, to.0)?;
        Ok(Delta { chain_id, hasher, from, to, diff: self.writes.into() })
    }

    /// Notes what a key that differs holds in the later version; none if it holds nothing there.
    ///
    /// # Errors
    /// [`DeltaError::TooLarge`].
    pub fn add(&mut self, namespace: &Namespace, key: Key, value: Option<Value>) -> Result<(), DeltaError> {
        self.weight += (key.len() + value.as_ref().map_or(0, |value| value.len()) + 16) as u64;
        if self.weight > DELTA_WEIGHT_MAX {
            return Err(DeltaError::TooLarge { limit: DELTA_WEIGHT_MAX });
        }
        self.writes.insert((namespace.clone(), key), value);
        Ok(())
    }
}

/// A node as a comparison needs it.
enum Side<N> {
    None,
    Inner { crit: u16, below: [Branch<N>; 2] },
    Entry { key: Key, node: N },
    Namespace { name: Namespace, tree: Branch<N> },
}

fn side<W: Walk>(walk: &W, branch: Option<Branch<W::Node>>) -> Result<Side<W::Node>, ReadError> {
    let Some(Branch { node, .. }) = branch else { return Ok(Side::None) };
    let found = match walk.open(&node)? {
        Opened::Inner { crit, left, right } => Side::Inner { crit, below: [left, right] },
        Opened::Namespace { name, tree } => Side::Namespace { name: name.into_owned(), tree },
        Opened::Entry { key, .. } => {
            let key = Key::new(key.as_ref()).map_err(|error| ReadError::damaged(error.to_string()))?;
            Side::Entry { key, node: node.clone() }
        }
    };
    Ok(found)
}

/// Any key below a node; all of them have the same bits before its critical bit.
fn sample<W: Walk>(walk: &W, side: &Side<W::Node>) -> Result<Vec<u8>, ReadError> {
    let mut at = match side {
        Side::None => return Ok(Vec::new()),
        Side::Entry { key, .. } => return Ok(key.to_vec()),
        Side::Namespace { name, .. } => return Ok(name.as_bytes().to_vec()),
        Side::Inner { below, .. } => below[0].node.clone(),
    };
    loop {
        at = match walk.open(&at)? {
            Opened::Inner { left, .. } => left.node,
            Opened::Entry { key, .. } => return Ok(key.into_owned()),
            Opened::Namespace { name, .. } => return Ok(name.as_bytes().to_vec()),
        };
    }
}

/// The critical bit of a node; a leaf parts nothing, so it comes below every other.
fn crit<N>(side: &Side<N>) -> u16 {
    match side {
        Side::Inner { crit, .. } => *crit,
        Side::None | Side::Entry { .. } | Side::Namespace { .. } => u16::MAX,
    }
}

/// Compares two subtrees: notes what differs, or splits both at the same bit.
///
/// A key that is in both is on the same side of every bit, so nothing is missed or noted twice, whatever else the two
/// have in common.
fn compare<V: Walk, W: Walk>(
    older_walk: &V,
    later_walk: &W,
    Pair { namespace, older, later }: Pair<V::Node, W::Node>,
    stack: &mut Vec<Pair<V::Node, W::Node>>,
    found: &mut Changes,
) -> Result<(), DeltaError> {
    if let (Some(older), Some(later)) = (&older, &later)
        && older.hash == later.hash
    {
        return Ok(());
    }
    // A subtree that has to be split where the other one is whole is needed again as it was.
    let whole = (older.clone(), later.clone());
    let sides = (side(older_walk, older)?, side(later_walk, later)?);
    let cut = crit(&sides.0).min(crit(&sides.1));
    if cut < u16::MAX {
        let [older_left, older_right] = match sides.0 {
            Side::Inner { crit, below: [left, right] } if crit == cut => [Some(left), Some(right)],
            other => on_its_side(whole.0, bits::bit(&sample(older_walk, &other)?, cut)),
        };
        let [later_left, later_right] = match sides.1 {
            Side::Inner { crit, below: [left, right] } if crit == cut => [Some(left), Some(right)],
            other => on_its_side(whole.1, bits::bit(&sample(later_walk, &other)?, cut)),
        };
        let right = Pair { namespace: namespace.clone(), older: older_right, later: later_right };
        stack.extend([right, Pair { namespace, older: older_left, later: later_left }]);
        return Ok(());
    }
    match (namespace, sides) {
        (None, (older, later)) => {
            for (name, older, later) in match (older, later) {
                (Side::Namespace { name, tree: older }, Side::Namespace { name: other, tree: later })
                    if name == other =>
                {
                    vec![(name, Some(older), Some(later))]
                }
                (older, later) => [space(older).map(|(name, tree)| (name, Some(tree), None))]
                    .into_iter()
                    .chain([space(later).map(|(name, tree)| (name, None, Some(tree)))])
                    .flatten()
                    .collect(),
            } {
                stack.push(Pair { namespace: Some(name), older, later });
            }
            Ok(())
        }
        (Some(namespace), (older, later)) => {
            let later = match later {
                Side::Entry { key, node, .. } => Some((key, later_walk.value(&node)?)),
                _ => None,
            };
            if let Side::Entry { key, .. } = older
                && later.as_ref().is_none_or(|(new, _)| key != *new)
            {
                found.add(&namespace, key, None)?;
            }
            later.map_or(Ok(()), |(key, value)| found.add(&namespace, key, Some(value)))
        }
    }
}

fn on_its_side<N>(whole: Option<Branch<N>>, right: bool) -> [Option<Branch<N>>; 2] {
    if right { [None, whole] } else { [whole, None] }
}

fn space<N>(side: Side<N>) -> Option<(Namespace, Branch<N>)> {
    match side {
        Side::Namespace { name, tree } => Some((name, tree)),
        Side::None | Side::Inner { .. } | Side::Entry { .. } => None,
    }
}

// spec: SNAP-17
impl Encode for Delta {
    fn encode(&self, out: &mut Vec<u8>) {
        DELTA_FORMAT.encode(out);
        self.chain_id.encode(out);
        self.hasher.encode(out);
        for (height, root) in [self.from, self.to] {
            height.encode(out);
            root.encode(out);
        }
        self.diff.encode(out);
    }
}
impl Decode for Delta {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u32::decode(input)? {
            DELTA_FORMAT => {}
            found => return Err(DecodeError::UnknownTag { what: "format of a delta", found: u64::from(found) }),
        }
        let (chain_id, hasher) = (ChainId::decode(input)?, HashKind::decode(input)?);
        let from = (Height::decode(input)?, Root::decode(input)?);
        let to = (Height::decode(input)?, Root::decode(input)?);
        if to.0 == Height(u64::MAX) {
            return Err(DecodeError::Invalid { what: "heights of a delta: no chain comes to the last there is" });
        }
        if from.0 >= to.0 {
            return Err(DecodeError::Invalid { what: "heights of a delta: it leads backwards" });
        }
        let diff = Diff::decode(input)?;
        let weight = diff.bytes() + 16 * diff.len() as u64;
        if weight > DELTA_WEIGHT_MAX {
            return Err(DecodeError::TooLarge { what: "weight of a delta", found: weight, limit: DELTA_WEIGHT_MAX });
        }
        Ok(Self { chain_id, hasher, from, to, diff })
    }
}
