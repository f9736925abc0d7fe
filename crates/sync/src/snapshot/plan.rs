//! Cutting a version of our own, and reading its chunks.
//!
//! A version is trusted: it is ours, and whatever is read of it was checked by the store. What a plan makes should be
//! checked like a stranger's before it is offered all the same; that is for whoever keeps snapshots.

use super::cut::{self, Child, Cut, Edge, Packed, Shape, TooLarge};
use super::{Metadata, SnapshotParams, body, page};
use keelstone_codec::{Hash, Height, Namespace, Root};
use keelstone_tree::{Branch, KeyRange, Level, Opened, Read, ReadError, Scan, Totals, Walk};
use std::collections::VecDeque;

/// How one version is cut into chunks. It holds the skeleton, some 130 bytes for each unit, and no entry.
#[derive(Clone, Debug)]
pub struct Plan {
    metadata: Metadata,
    root: Root,
    cut: Cut,
    packed: Packed,
}

/// Why a version could not be cut or a chunk not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// It has more of something than a snapshot can hold.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The version could not be read.
    #[error("the version could not be read")]
    Read(#[from] ReadError),
    /// What was read is not the version the plan was made from. The caller broke the contract.
    #[error("this is not the version that was planned: {what}")]
    OtherVersion {
        /// What differs.
        what: &'static str,
    },
}

impl Plan {
    /// Cuts a version. Opens the nodes above its units and no others; the cost is linear in the number of units.
    ///
    /// # Errors
    /// [`PlanError::TooLarge`] above [`super::NODES_MAX`] or [`super::CHUNKS_MAX`], [`PlanError::Read`].
    pub fn of<W: Walk>(walk: &W, params: &SnapshotParams, height: Height, root: Root) -> Result<Self, PlanError> {
        let top = walk.top()?;
        let totals = top.as_ref().map_or_else(Totals::default, |top| top.totals);
        let mut cut = Cut::new(params.chunk_weight_max, totals);
        let mut waiting: VecDeque<W::Node> = VecDeque::new();
        // spec: SNAP-5. The top is opened whatever it weighs, so that a page proves its own sums.
        if let Some(Branch { node, hash, .. }) = top {
            if hash != root.0 {
                return Err(PlanError::OtherVersion { what: "its root" });
            }
            open(walk, &mut cut, &mut waiting, None, Level::Namespaces, &node)?;
        }
        while let Some(edge) = cut.next() {
            let node = waiting.pop_front().expect("one node waits for each child to be opened");
            let (level, _) = cut.child(edge);
            open(walk, &mut cut, &mut waiting, Some(edge), level, &node)?;
        }
        let packed = cut.pack()?;
        let metadata = Metadata {
            chain_id: params.chain_id.clone(),
            height,
            chunk_weight_max: params.chunk_weight_max,
            hasher: params.hasher,
            pages: number(cut.pages()),
            chunks: number(cut.pages() + packed.chunks()),
        };
        Ok(Self { metadata, root, cut, packed })
    }

    /// What an offer of this snapshot says.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The root of the version.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }

    /// Number and bytes of all entries.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.cut.totals
    }

    /// Chunks in all, pages included.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.metadata.chunks
    }

    /// How many of the chunks are pages of the skeleton; they come first.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.metadata.pages
    }

    /// How many units the chunks hold together.
    #[must_use]
    pub fn units(&self) -> usize {
        self.packed.units.len()
    }

    /// The name of a chunk by its contents: chunks of equal names have equal bytes, whatever snapshot they are of
    /// (spec: SNAP-4).
    ///
    /// # Panics
    /// If there is no such chunk.
    #[must_use]
    pub fn name(&self, index: u32) -> Hash {
        match self.units_of(index) {
            None => page::name(&page::encode(&self.cut, index as usize)),
            Some(units) => cut::chunk_name(&self.cut, units),
        }
    }

    /// The bytes of a chunk, read from the version the plan was made from. At most W, or one larger entry.
    ///
    /// # Errors
    /// [`PlanError::Read`], [`PlanError::OtherVersion`].
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn body<V: Walk + Read>(&self, view: &V, index: u32) -> Result<Vec<u8>, PlanError> {
        match self.units_of(index) {
            None => Ok(page::encode(&self.cut, index as usize)),
            Some(units) => {
                let mut out = Vec::new();
                self.read(view, units, &mut out)?;
                Ok(out)
            }
        }
    }

    /// The bytes of a page of the skeleton; none if there is no such page. At most W.
    #[must_use]
    pub fn page(&self, page: u32) -> Option<Vec<u8>> {
        (page < self.pages()).then(|| page::encode(&self.cut, page as usize))
    }

    /// Most bytes of a unit, by its number in the order of keys; none if there is no such unit.
    #[must_use]
    pub fn unit_bytes_max(&self, unit: u32) -> Option<u64> {
        let unit = self.packed.units.get(unit as usize)?;
        let (level, child) = self.cut.child(*unit);
        Some(cut::weight(level, child.totals))
    }

    /// Puts the bytes of some units behind `out`, one behind the other, by their numbers in the order of keys, which ascend. As many as
    /// [`Plan::unit_bytes_max`] of each together, at most.
    ///
    /// # Errors
    /// [`PlanError::Read`], [`PlanError::OtherVersion`].
    ///
    /// # Panics
    /// If there is no such unit.
    pub fn unit_bodies<V: Walk + Read>(&self, view: &V, units: &[u32], out: &mut Vec<u8>) -> Result<(), PlanError> {
        // Neighbours are read as a chunk is: in one scan.
        for run in units.chunk_by(|unit, next| unit.checked_add(1) == Some(*next)) {
            let (first, len) = (run[0] as usize, run.len());
            self.read(view, &self.packed.units[first..first + len], out)?;
        }
        Ok(())
    }

    /// The bytes of units that follow one another.
    fn read<V: Walk + Read>(&self, view: &V, units: &[Edge], out: &mut Vec<u8>) -> Result<(), PlanError> {
        let sizes =
            units.iter().map(|unit| self.cut.child(*unit)).map(|(level, child)| cut::weight(level, child.totals));
        out.reserve(usize::try_from(sizes.sum::<u64>()).expect("a chunk fits in memory"));
        // Units of one namespace follow one another without a gap, so one scan gives all of a chunk.
        let mut scan: Option<(&Namespace, Scan<'_>)> = None;
        for (number, unit) in units.iter().enumerate() {
            let (level, child) = self.cut.child(*unit);
            match level {
                Level::Namespaces => {
                    scan = None;
                    let top = self.find(view, *unit, child)?;
                    put_namespaces(view, top, child.totals, out)?;
                }
                Level::Entries => {
                    let name = self.cut.namespace(*unit);
                    let scan = match &mut scan {
                        Some((of, scan)) if *of == name => scan,
                        scan => {
                            let top = self.find(view, *unit, child)?;
                            let is_of_it = |unit: &&Edge| {
                                self.cut.child(**unit).0 == Level::Entries && self.cut.namespace(**unit) == name
                            };
                            let last = units[number..].iter().take_while(is_of_it).last().unwrap_or(unit);
                            let last_top = match last == unit {
                                true => top.clone(),
                                false => self.find(view, *last, self.cut.child(*last).1)?,
                            };
                            let start = key_at_edge(view, top, Side::First)?;
                            let mut end = key_at_edge(view, last_top, Side::Last)?;
                            // A scan gathers many entries at a time: it shall not read those behind the last.
                            end.push(0);
                            let range = KeyRange { start, end: Some(end), reverse: false };
                            &mut scan.insert((name, view.scan(name, range))).1
                        }
                    };
                    put_entries(scan, child.totals, out)?;
                }
            }
        }
        Ok(())
    }

    /// The units of a chunk; none for a page.
    fn units_of(&self, index: u32) -> Option<&[Edge]> {
        assert!(index < self.chunks(), "the snapshot has {} chunks, there is no chunk {index}", self.chunks());
        index.checked_sub(self.pages()).map(|index| self.packed.chunk(index as usize))
    }

    /// The top node of a unit.
    fn find<W: Walk>(&self, walk: &W, unit: Edge, expected: Child) -> Result<W::Node, PlanError> {
        let mut at = walk.top()?.ok_or(PlanError::OtherVersion { what: "it has no entries" })?;
        for side in self.cut.path(unit) {
            at = match walk.open(&at.node)? {
                Opened::Inner { left, right, .. } => {
                    if side == 0 {
                        left
                    } else {
                        right
                    }
                }
                Opened::Namespace { tree, .. } => tree,
                Opened::Entry { .. } => return Err(PlanError::OtherVersion { what: "an entry where keys parted" }),
            };
        }
        if at.hash != expected.hash {
            return Err(PlanError::OtherVersion { what: "the hash of a unit" });
        }
        Ok(at.node)
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).expect("nodes and chunks are limited")
}

/// Opens a node, adds it to the skeleton and notes which of its children will be opened.
fn open<W: Walk>(
    walk: &W,
    cut: &mut Cut,
    waiting: &mut VecDeque<W::Node>,
    parent: Option<Edge>,
    level: Level,
    node: &W::Node,
) -> Result<(), PlanError> {
    let child = |branch: &Branch<W::Node>| Child { hash: branch.hash, totals: branch.totals };
    let (shape, branches) = match walk.open(node)? {
        Opened::Inner { crit, left, right } => {
            (Shape::Inner { crit, children: [child(&left), child(&right)] }, vec![left, right])
        }
        Opened::Namespace { name, tree } => {
            (Shape::Namespace { name: name.into_owned(), tree: child(&tree) }, vec![tree])
        }
        Opened::Entry { .. } => {
            return Err(ReadError::damaged("an entry stands where the totals speak of several").into());
        }
    };
    cut.push(parent, level, shape)?;
    let pushed = cut.nodes().last().expect("it was pushed just now");
    waiting.extend(branches.into_iter().filter(|branch| cut.opens(pushed, branch.totals)).map(|branch| branch.node));
    Ok(())
}

#[derive(Clone, Copy)]
enum Side {
    First,
    Last,
}

/// The first or the last key below a node of entries.
fn key_at_edge<W: Walk>(walk: &W, mut node: W::Node, end: Side) -> Result<Vec<u8>, PlanError> {
    loop {
        node = match walk.open(&node)? {
            Opened::Inner { left, right, .. } => match end {
                Side::First => left.node,
                Side::Last => right.node,
            },
            Opened::Entry { key, .. } => return Ok(key.into_owned()),
            Opened::Namespace { .. } => return Err(PlanError::OtherVersion { what: "a namespace among entries" }),
        };
    }
}

fn put_namespaces<V: Walk + Read>(view: &V, top: V::Node, totals: Totals, out: &mut Vec<u8>) -> Result<(), PlanError> {
    let mut found = Totals::default();
    let mut stack = vec![top];
    while let Some(node) = stack.pop() {
        match view.open(&node)? {
            Opened::Inner { left, right, .. } => stack.extend([right.node, left.node]),
            Opened::Namespace { name, tree } => {
                body::put_namespace(out, &name, tree.totals.count);
                put_entries(&mut view.scan(&name, KeyRange::all()), tree.totals, out)?;
                found += tree.totals;
            }
            Opened::Entry { .. } => return Err(PlanError::OtherVersion { what: "an entry among namespaces" }),
        }
    }
    if found == totals { Ok(()) } else { Err(PlanError::OtherVersion { what: "the totals of its namespaces" }) }
}

/// Appends as many entries as `totals` has.
fn put_entries(scan: &mut Scan<'_>, totals: Totals, out: &mut Vec<u8>) -> Result<(), PlanError> {
    let mut found = Totals::default();
    for _ in 0..totals.count {
        let (key, value) = scan.next().ok_or(PlanError::OtherVersion { what: "it has fewer entries" })??;
        let len = u32::try_from(value.len()).expect("a value has at most 8 MiB");
        found += Totals::entry(key.len(), len);
        body::put_entry(out, &key, &value);
    }
    if found == totals { Ok(()) } else { Err(PlanError::OtherVersion { what: "the bytes of its entries" }) }
}
