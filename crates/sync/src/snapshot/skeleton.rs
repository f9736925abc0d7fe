//! Proving a snapshot's chunks against a root, one by one.
//!
//! The first chunks are pages of the skeleton: the nodes above the units, breadth first. Each node is checked against what
//! an already proven node says of it, the first against the root, so a page is proven when it is read and nothing of a
//! bad one stays. Once all are there it is known what each further chunk must come to, and whether the numbers of the
//! offer were true. Every byte is taken to come from an adversary; nothing recurses; nothing is reserved for a count that
//! was not proven.
//!
//! Rules: `spec/snapshot.md`, SNAP-5 to SNAP-7.

use super::cut::{self, Child, Cut, Edge, Packed, Shape, TooLarge};
use super::{Metadata, SnapshotParams, body, page};
use keelstone_codec::{DecodeError, Hash, KEY_LEN_MAX, Key, NAMESPACE_LEN_MAX, Namespace, Reader, Root};
use keelstone_tree::{Bulk, Hasher, Level, OutOfOrder, Subtree, Totals, bits, preimage};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

/// A part of a state: what a namespace has under keys that begin with some bytes; all of it if there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartOf {
    /// The namespace.
    pub namespace: Namespace,
    /// What the keys begin with.
    pub prefix: Vec<u8>,
}

impl PartOf {
    /// Whether all of another part is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.namespace == other.namespace && other.prefix.starts_with(&self.prefix)
    }
}
impl fmt::Display for PartOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.prefix.escape_ascii())
    }
}

/// What is proven of a snapshot so far, and what its chunks are checked against. It holds some 130 bytes for each unit.
#[derive(Clone, Debug)]
pub struct Skeleton<H> {
    root: Root,
    /// k and n as the offer has them; if nobody offered, zero until they are known.
    pages: u32,
    chunks: u32,
    offered: bool,
    cut: Cut,
    pages_done: u32,
    /// Known once all pages are.
    packed: Option<Packed>,
    _hasher: PhantomData<H>,
}

/// Why a page was not taken. The variants differ in who is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// These bytes are not this page of any snapshot of this root. Whoever sent them is to blame.
    #[error("page {page}: {fault}")]
    Forged {
        /// Which page.
        page: u32,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The pages are proven, but what the offer said of them is not true. The offer is to blame.
    #[error("the snapshot has {found} {what}, its offer says {stated}")]
    Counts {
        /// Pages or chunks.
        what: &'static str,
        /// What the offer says.
        stated: u32,
        /// What is true; of pages, as many at least.
        found: u32,
    },
    /// No snapshot may be so large.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// Why bytes are not the chunk they should be. Whoever sent them is to blame, unless the variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chunk {index}: {fault}")]
pub struct ChunkError {
    /// Which chunk.
    pub index: u32,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a page or a chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It does not come to the hash that is proven.
    #[error("it comes to {found}, {expected} is proven")]
    Hash {
        /// What is proven.
        expected: Hash,
        /// What was found.
        found: Hash,
    },
    /// Its entries are not as many, or not as large, as is proven.
    #[error("it has {} entries of {} bytes, {} of {} are proven", .found.count, .found.bytes, .expected.count, .expected.bytes)]
    Totals {
        /// What is proven.
        expected: Totals,
        /// What was found.
        found: Totals,
    },
    /// Totals that no tree has (TREE-5).
    #[error("{} entries of {} bytes: {what}", .totals.count, .totals.bytes)]
    ImpossibleTotals {
        /// The rule.
        what: &'static str,
        /// The totals.
        totals: Totals,
    },
    /// A critical bit where none can be (TREE-5).
    #[error("critical bit {found} is not {what} {limit}")]
    CriticalBit {
        /// The rule.
        what: &'static str,
        /// The bit.
        found: u16,
        /// What it was compared with.
        limit: u16,
    },
    /// Keys or names do not ascend.
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    /// A key or name stands where the tree would not have put it (TREE-8).
    #[error("{} stands outside the interval of its unit", .key.escape_ascii())]
    Misplaced {
        /// Which.
        key: Vec<u8>,
    },
    /// It is not the page that was proven before.
    #[error("it differs from the page that is proven")]
    OtherPage,
    /// There is no such chunk, or what it is checked against is not known yet. The caller broke the contract.
    #[error("the snapshot has {chunks} chunks, and {pages} of its {pages_all} pages are known")]
    OutOfReach {
        /// Chunks in all.
        chunks: u32,
        /// Pages known.
        pages: u32,
        /// Pages in all.
        pages_all: u32,
    },
}

impl<H: Hasher> Skeleton<H> {
    /// Nothing is proven yet but that the version has this root.
    ///
    /// # Panics
    /// If the metadata is of a chain with another hasher.
    #[must_use]
    pub fn new(root: Root, metadata: &Metadata) -> Self {
        assert_eq!(metadata.hasher, H::KIND, "the hasher of the chain");
        Self {
            root,
            pages: metadata.pages,
            chunks: metadata.chunks,
            offered: true,
            cut: Cut::new(metadata.chunk_weight_max, Totals::default()),
            pages_done: 0,
            packed: None,
            _hasher: PhantomData,
        }
    }

    /// Nothing is proven yet but that the version has this root, and nobody said how many pages and chunks it has: the
    /// pages themselves show which of them is the last.
    ///
    /// # Panics
    /// If the chain has another hasher.
    #[must_use]
    pub fn without_offer(root: Root, params: &SnapshotParams) -> Self {
        assert_eq!(params.hasher, H::KIND, "the hasher of the chain");
        let cut = Cut::new(params.chunk_weight_max, Totals::default());
        Self { root, pages: 0, chunks: 0, offered: false, cut, pages_done: 0, packed: None, _hasher: PhantomData }
    }

    /// Whether all pages are proven, and with them the numbers of pages and chunks.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.packed.is_some()
    }

    /// How many pages are proven.
    #[must_use]
    pub fn pages_done(&self) -> u32 {
        self.pages_done
    }

    /// How many chunks are pages, as the offer said. Without one, zero until all are proven.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Chunks in all, as the offer said. Without one, zero until all pages are proven.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Number and bytes of all entries; none before the first page.
    #[must_use]
    pub fn totals(&self) -> Option<Totals> {
        (self.pages_done > 0).then_some(self.cut.totals)
    }

    /// Most bytes a chunk can have once unpacked.
    #[must_use]
    pub fn chunk_bytes_max(&self) -> u32 {
        cut::chunk_bytes_max(self.cut.chunk_weight_max())
    }

    /// Number and bytes of a chunk's entries, none of a page's.
    ///
    /// # Panics
    /// If there is no such chunk, or not all pages are proven.
    #[must_use]
    pub fn chunk_totals(&self, index: u32) -> Totals {
        let units = self.units(index).expect("a chunk of a whole skeleton");
        units.iter().map(|unit| self.cut.child(*unit).1.totals).fold(Totals::default(), |sum, unit| sum + unit)
    }

    /// The name of a chunk by its contents, as [`super::Plan::name`].
    ///
    /// # Panics
    /// If there is no such chunk, or not all pages are proven.
    #[must_use]
    pub fn name(&self, index: u32) -> Hash {
        match self.units(index).expect("a chunk of a whole skeleton") {
            [] => page::name(&page::encode(&self.cut, index as usize)),
            units => cut::chunk_name(&self.cut, units),
        }
    }

    /// Proves the next page. A page that is refused leaves everything as it was.
    ///
    /// # Errors
    /// [`PageError`].
    ///
    /// # Panics
    /// If the skeleton is whole.
    pub fn add_page(&mut self, raw: &[u8]) -> Result<(), PageError> {
        assert!(!self.is_complete(), "no page follows the last");
        let (before, totals) = (self.cut.nodes().len(), self.cut.totals);
        let packed = self.read_page(raw).and_then(|()| self.check_counts());
        match packed {
            Ok(packed) => {
                self.pages_done += 1;
                if let Some(packed) = &packed {
                    self.pages = self.pages_done;
                    self.chunks = self.pages + number(packed.chunks());
                }
                self.packed = packed;
                Ok(())
            }
            Err(error) => {
                self.cut.truncate(before);
                self.cut.totals = totals;
                Err(error)
            }
        }
    }

    /// What the offer said is recomputed, not believed (spec: SNAP-5). Returns the packing with the last page.
    fn check_counts(&self) -> Result<Option<Packed>, PageError> {
        let (done, whole) = (self.pages_done + 1, self.cut.next().is_none());
        if self.offered && whole != (done == self.pages) {
            return Err(PageError::Counts { what: "pages", stated: self.pages, found: done + u32::from(!whole) });
        }
        if !whole {
            return Ok(None);
        }
        let packed = self.cut.pack()?;
        let found = done + number(packed.chunks());
        if self.offered && found != self.chunks {
            return Err(PageError::Counts { what: "chunks", stated: self.chunks, found });
        }
        Ok(Some(packed))
    }

    fn read_page(&mut self, raw: &[u8]) -> Result<(), PageError> {
        let page = self.pages_done;
        let forged = |fault: Fault| PageError::Forged { page, fault };
        let mut input = Reader::new(raw);
        if page == 0 {
            self.cut.totals = page::totals(&mut input).map_err(|error| forged(error.into()))?;
            check_totals(self.cut.totals, true).map_err(forged)?;
            if self.cut.totals.count == 0 {
                check_hash(self.root.0, H::hash_node(&preimage::empty())).map_err(forged)?;
            }
        }
        let mut lanes = Lanes::<H>::new();
        for _ in 0..self.cut.page_nodes() {
            let parent = self.cut.next();
            let (level, expected) = match parent {
                Some(edge) => self.cut.child(edge),
                None if self.cut.nodes().is_empty() && self.cut.totals.count > 0 => {
                    (Level::Namespaces, Child { hash: self.root.0, totals: self.cut.totals })
                }
                None => break,
            };
            let shape = page::node(&mut input, level, expected.totals).map_err(|error| forged(error.into()))?;
            self.check_node(parent, level, &shape).map_err(forged)?;
            lanes.push(level, &shape, expected.hash).map_err(forged)?;
            // The root first: a page of another state is not worth a second hash.
            if parent.is_none() {
                lanes.finish().map_err(forged)?;
            }
            self.cut.push(parent, level, shape)?;
        }
        lanes.finish().map_err(forged)?;
        input.finish().map_err(|error| forged(error.into()))
    }

    /// What TREE-5 and TREE-8 ask of a node below what is proven.
    fn check_node(&self, parent: Option<Edge>, level: Level, shape: &Shape) -> Result<(), Fault> {
        let above = parent.and_then(|edge| self.crit_above(edge));
        match shape {
            Shape::Inner { crit, children } => {
                let key_len_max = match level {
                    Level::Entries => KEY_LEN_MAX,
                    Level::Namespaces => NAMESPACE_LEN_MAX,
                };
                let limit = 9 * u16::try_from(key_len_max).expect("a key has at most 255 bytes");
                if *crit == 0 || *crit >= limit {
                    return Err(Fault::CriticalBit { what: "above 0 and below", found: *crit, limit });
                }
                check_below(above, *crit)?;
                children.iter().try_for_each(|child| check_totals(child.totals, false))
            }
            Shape::Namespace { name, .. } => match parent {
                Some(edge) => self.check_turns(edge, name.as_bytes()),
                None => Ok(()),
            },
        }
    }

    /// The critical bit of the node a child hangs on, if that is of the child's level.
    fn crit_above(&self, edge: Edge) -> Option<u16> {
        match self.cut.nodes()[edge.node as usize].shape {
            Shape::Inner { crit, .. } => Some(crit),
            Shape::Namespace { .. } => None,
        }
    }

    /// The bits of a first key are the turns that lead to where it stands, up to the node that has something left of it.
    /// From there on they are those of its neighbour, from which it parts at that node's bit ([`Self::check_border`]): so
    /// every node is looked at once, however deep it stands.
    fn check_turns(&self, mut edge: Edge, key: &[u8]) -> Result<(), Fault> {
        // A key parts from longer ones where it ends, and from no one behind that.
        if let Some(above) = self.crit_above(edge)
            && usize::from(above) > 9 * key.len()
        {
            return Err(Fault::Misplaced { key: key.to_vec() });
        }
        loop {
            let node = &self.cut.nodes()[edge.node as usize];
            let Shape::Inner { crit, .. } = node.shape else { return Ok(()) };
            if bits::bit(key, crit) != (edge.side == 1) {
                return Err(Fault::Misplaced { key: key.to_vec() });
            }
            match node.parent {
                Some(parent) if edge.side == 0 => edge = parent,
                _ => return Ok(()),
            }
        }
    }

    /// The chunks in which all is that a namespace has under keys which begin with `prefix`; none if nothing can be. Costs one
    /// look at each node.
    ///
    /// # Panics
    /// If not all pages are proven.
    #[must_use]
    pub fn chunks_of(&self, part: &PartOf) -> Range<u32> {
        let packed = self.packed.as_ref().expect("a whole skeleton");
        // Parents stand before their children. Where a way to the part ends at a unit, that unit is all there can be.
        let mut meets: Vec<bool> = Vec::with_capacity(self.cut.nodes().len());
        for node in self.cut.nodes() {
            meets.push(node.parent.is_none_or(|edge| meets[edge.node as usize] && self.leads_to(edge, part)));
        }
        let found = |unit: &&Edge| meets[unit.node as usize] && self.leads_to(**unit, part);
        let first = packed.units.iter().position(|unit| found(&unit)).map(number);
        let last = packed.units.iter().rposition(|unit| found(&unit)).map(number);
        match (first, last) {
            (Some(first), Some(last)) => self.chunk_of(first).0..self.chunk_of(last).0 + 1,
            _ => 0..0,
        }
    }

    /// Whether something of the part can be below a child of a node on the way to it.
    fn leads_to(&self, edge: Edge, part: &PartOf) -> bool {
        let node = &self.cut.nodes()[edge.node as usize];
        let turn = |key: &[u8], crit: u16| bits::bit(key, crit) == (edge.side == 1);
        match (&node.shape, node.level) {
            (Shape::Namespace { name, .. }, _) => *name == part.namespace,
            (Shape::Inner { crit, .. }, Level::Namespaces) => turn(part.namespace.as_bytes(), *crit),
            // Behind the prefix keys may part as they like.
            (Shape::Inner { crit, .. }, Level::Entries) => {
                usize::from(*crit) >= 9 * part.prefix.len() || turn(&part.prefix, *crit)
            }
        }
    }

    /// The root everything is proven against.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }

    /// All opened nodes, and all units in the order of their keys. Not all pages may be proven if it panics.
    pub(super) fn whole(&self) -> (&Cut, &[Edge]) {
        (&self.cut, &self.packed.as_ref().expect("a whole skeleton").units)
    }

    /// How many nodes are proven.
    pub(super) fn opened(&self) -> usize {
        self.cut.nodes().len()
    }

    /// The numbers of the units of a chunk; pages are not counted.
    pub(super) fn packed_chunk(&self, chunk: u32) -> Range<u32> {
        self.packed.as_ref().expect("a whole skeleton").range(chunk as usize)
    }

    /// The chunk a unit is in, and the first unit of that chunk.
    pub(crate) fn chunk_of(&self, unit: u32) -> (u32, u32) {
        let (chunk, first) = self.packed.as_ref().expect("a whole skeleton").chunk_of(unit);
        (self.pages + chunk, first)
    }

    /// The units of a chunk, none of a page; nothing if it cannot be told.
    fn units(&self, index: u32) -> Option<&[Edge]> {
        let packed = self.packed.as_ref().filter(|_| index < self.chunks)?;
        Some(index.checked_sub(self.pages).map_or(&[], |index| packed.chunk(index as usize)))
    }

    /// Proves that bytes are a chunk of this snapshot. Costs one pass over its entries, and about 70 bytes of memory for
    /// each entry of one unit.
    ///
    /// # Errors
    /// [`ChunkError`].
    pub fn check<'a>(&'a self, index: u32, raw: &'a [u8]) -> Result<CheckedChunk<'a>, ChunkError> {
        let failed = |fault| ChunkError { index, fault };
        let Some(units) = self.units(index) else {
            let (chunks, pages, pages_all) = (self.chunks, self.pages_done, self.pages);
            return Err(failed(Fault::OutOfReach { chunks, pages, pages_all }));
        };
        if index < self.pages && page::encode(&self.cut, index as usize) != raw {
            return Err(failed(Fault::OtherPage));
        }
        let mut bulk = [Level::Namespaces, Level::Entries].map(Bulk::<H>::new);
        let mut input = Reader::new(if units.is_empty() { &[] } else { raw });
        let mut last: Option<Place<'_>> = None;
        for unit in units {
            let [first, end] = self.check_unit(*unit, &mut input, &mut bulk).map_err(failed)?;
            if let Some(last) = last {
                self.check_border(*unit, last, first).map_err(failed)?;
            }
            last = Some(end);
        }
        input.finish().map_err(|error| failed(error.into()))?;
        Ok(CheckedChunk { cut: &self.cut, units, raw })
    }

    /// The chunk that these bytes were proven to be before.
    pub(super) fn proven<'a>(&'a self, index: u32, raw: &'a [u8]) -> CheckedChunk<'a> {
        CheckedChunk { cut: &self.cut, units: self.units(index).expect("a chunk of a whole skeleton"), raw }
    }

    /// Returns the first and last place of a unit (spec: SNAP-7).
    pub(super) fn check_unit<'a>(
        &'a self,
        unit: Edge,
        input: &mut Reader<'a>,
        bulk: &mut [Bulk<H>; 2],
    ) -> Result<[Place<'a>; 2], Fault> {
        const COUNTED: &str = "counts are proven or checked to be above zero";
        let (level, expected) = self.cut.child(unit);
        let [names, entries] = bulk;
        let (found, places) = match level {
            Level::Entries => {
                let name = self.cut.namespace(unit).as_bytes();
                let keys = check_entries(input, expected.totals.count, entries)?;
                (entries.finish(), keys.map(|key| Place { name, key }))
            }
            Level::Namespaces => {
                let mut places: Option<[Place<'a>; 2]> = None;
                let mut rest = expected.totals.count;
                while rest > 0 {
                    let (name, count) = body::namespace(input, rest)?;
                    let [first, last] = check_entries(input, count, entries)?.map(|key| Place { name, key });
                    names.namespace(name, &entries.finish().expect(COUNTED))?;
                    places = Some([places.map_or(first, |[first, _]| first), last]);
                    rest -= count;
                }
                (names.finish(), places.expect(COUNTED))
            }
        };
        let Subtree { hash, totals, crit } = found.expect(COUNTED);
        if totals != expected.totals {
            return Err(Fault::Totals { expected: expected.totals, found: totals });
        }
        check_hash(expected.hash, hash)?;
        if let Some(crit) = crit {
            check_below(self.crit_above(unit), crit)?;
        }
        self.check_turns(unit, places[0].at(level))?;
        Ok(places)
    }

    /// Checks that a chunk's first entry parts from the last one of the chunk before where the skeleton says they do.
    /// That and [`Skeleton::check`] of every chunk is all there is to prove (spec: SNAP-7).
    pub(crate) fn check_chunk_border(&self, index: u32, last: Place<'_>, first: Place<'_>) -> Result<(), Fault> {
        let unit = self.units(index).and_then(<[Edge]>::first).expect("a chunk of entries");
        self.check_border(*unit, last, first)
    }

    /// Checks that a unit's first place parts from the one before as the node between them says.
    pub(super) fn check_border(&self, unit: Edge, last: Place<'_>, first: Place<'_>) -> Result<(), Fault> {
        let mut edge = unit;
        loop {
            let node = &self.cut.nodes()[edge.node as usize];
            match node.shape {
                Shape::Inner { crit, .. } if edge.side == 1 => {
                    let (before, after) = (last.at(node.level), first.at(node.level));
                    return match bits::crit(before, after) {
                        Some(found) if found == crit => Ok(()),
                        _ => Err(Fault::Misplaced { key: after.to_vec() }),
                    };
                }
                _ => edge = node.parent.expect("something stands before every unit but the first"),
            }
        }
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).expect("the number of chunks is limited")
}

/// Where an entry stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) key: &'a [u8],
}

impl<'a> Place<'a> {
    /// What stands for it at a level.
    fn at(self, level: Level) -> &'a [u8] {
        match level {
            Level::Entries => self.key,
            Level::Namespaces => self.name,
        }
    }
}

/// Hands entries on. The first must part from the last one before it as `border` says; `last` becomes the last of them.
pub(crate) fn hand_on<E>(
    last: &mut Option<(Namespace, Key)>,
    border: impl Fn(Place<'_>, Place<'_>) -> Result<(), E>,
    mut each: impl FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>,
) -> impl FnMut(&Namespace, &[u8], &[u8]) -> Result<(), E> {
    let mut first = true;
    move |name, key, value| {
        if let (true, Some((last_name, last_key))) = (std::mem::take(&mut first), &*last) {
            let before = Place { name: last_name.as_bytes(), key: last_key };
            border(before, Place { name: name.as_bytes(), key })?;
        }
        let key = Key::new(key).expect("it was proven to decode");
        each(name, &key, value)?;
        match &mut *last {
            Some((namespace, last)) if namespace == name => *last = key,
            last => *last = Some((name.clone(), key)),
        }
        Ok(())
    }
}

/// Entries and nodes handed to the hasher at a time.
const LANES: usize = 64;

/// Reads so many entries, at least one, and returns the first key and the last.
fn check_entries<'a, H: Hasher>(
    input: &mut Reader<'a>,
    count: u64,
    bulk: &mut Bulk<H>,
) -> Result<[&'a [u8]; 2], Fault> {
    let mut keys: Option<[&[u8]; 2]> = None;
    let mut batch = [(&[][..], &[][..]); LANES];
    let mut rest = count;
    while rest > 0 {
        let len = usize::try_from(rest).unwrap_or(LANES).min(LANES);
        for entry in &mut batch[..len] {
            *entry = body::entry(input)?;
        }
        bulk.entries(&batch[..len])?;
        keys = Some([keys.map_or(batch[0].0, |[first, _]| first), batch[len - 1].0]);
        rest -= len as u64;
    }
    Ok(keys.expect("counts are above zero"))
}

fn check_hash(expected: Hash, found: Hash) -> Result<(), Fault> {
    if found == expected { Ok(()) } else { Err(Fault::Hash { expected, found }) }
}

fn check_below(above: Option<u16>, crit: u16) -> Result<(), Fault> {
    match above {
        Some(limit) if crit <= limit => Err(Fault::CriticalBit { what: "above its parent's", found: crit, limit }),
        _ => Ok(()),
    }
}

fn check_totals(totals: Totals, may_be_empty: bool) -> Result<(), Fault> {
    let impossible = |what| Err(Fault::ImpossibleTotals { what, totals });
    match totals {
        Totals { count: 0, bytes: 0 } if may_be_empty => Ok(()),
        Totals { count: 0, .. } => impossible("every subtree has an entry"),
        Totals { count, bytes } if count.checked_mul(2).is_none_or(|least| bytes < least) => {
            impossible("an entry has two bytes or more")
        }
        _ => Ok(()),
    }
}

/// Nodes on their way to the hasher, many at a time.
struct Lanes<H> {
    images: Vec<preimage::Preimage>,
    expected: Vec<Hash>,
    _hasher: PhantomData<H>,
}

impl<H: Hasher> Lanes<H> {
    fn new() -> Self {
        let (images, expected) = (Vec::with_capacity(LANES), Vec::with_capacity(LANES));
        Self { images, expected, _hasher: PhantomData }
    }

    fn push(&mut self, level: Level, shape: &Shape, expected: Hash) -> Result<(), Fault> {
        self.images.push(match shape {
            Shape::Inner { crit, children: [left, right] } => {
                preimage::inner(level, *crit, [left.totals, right.totals], [&left.hash, &right.hash])
            }
            Shape::Namespace { name, tree } => {
                let len = u16::try_from(name.as_bytes().len()).expect("a name has at most 32 bytes");
                preimage::namespace(len, tree.totals, &H::hash(name.as_bytes()), &H::hash(&tree.hash.0))
            }
        });
        self.expected.push(expected);
        if self.images.len() == LANES { self.finish() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), Fault> {
        let mut found = [Hash::ZERO; LANES];
        let found = &mut found[..self.images.len()];
        H::hash_nodes(&self.images, found);
        self.images.clear();
        self.expected.drain(..).zip(found).try_for_each(|(expected, found)| check_hash(expected, *found))
    }
}

/// A chunk that was proven, with its bytes where they lie.
pub struct CheckedChunk<'a> {
    pub(super) cut: &'a Cut,
    pub(super) units: &'a [Edge],
    pub(super) raw: &'a [u8],
}

impl fmt::Debug for CheckedChunk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckedChunk({} bytes: {:?})", self.raw.len(), self.totals())
    }
}

impl<'a> CheckedChunk<'a> {
    /// Number and bytes of its entries; none for a page.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.units.iter().map(|unit| self.cut.child(*unit).1.totals).fold(Totals::default(), |sum, unit| sum + unit)
    }

    /// Hands out its entries in order. A page has none.
    ///
    /// # Errors
    /// Whatever `each` says; then it ends.
    pub fn entries<E>(&self, mut each: impl FnMut(&Namespace, &'a [u8], &'a [u8]) -> Result<(), E>) -> Result<(), E> {
        const PROVEN: &str = "the chunk was proven to decode";
        let mut input = Reader::new(if self.units.is_empty() { &[] } else { self.raw });
        for unit in self.units {
            let (level, Child { totals, .. }) = self.cut.child(*unit);
            let mut rest = totals.count;
            while rest > 0 {
                let (name, count) = match level {
                    Level::Entries => (self.cut.namespace(*unit).clone(), rest),
                    Level::Namespaces => {
                        let (name, count) = body::namespace(&mut input, rest).expect(PROVEN);
                        let name = str::from_utf8(name).ok().and_then(|name| Namespace::new(name).ok());
                        (name.expect(PROVEN), count)
                    }
                };
                for _ in 0..count {
                    let (key, value) = body::entry(&mut input).expect(PROVEN);
                    each(&name, key, value)?;
                }
                rest -= count;
            }
        }
        Ok(())
    }
}
