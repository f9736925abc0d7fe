//! Units one by one: for those who take from a version only the parts they lack.
//!
//! A chunk is a run of units; whoever has some of a chunk's units from another version asks for the others alone. Each
//! is proven like a chunk of its own. Where two units meet is proven when all of them are there, in order.
//!
//! Rules: `spec/snapshot.md`, SNAP-1 and SNAP-7; `spec/peers.md`.

use super::cut::{self, Child};
use super::skeleton::{CheckedChunk, Fault, Place, Skeleton};
use keelstone_codec::{Hash, Namespace, Reader};
use keelstone_tree::{Bulk, Hasher, Level, Totals};
use std::ops::Range;

/// What a unit is, whatever version it is in: units of equal names have equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitName {
    /// Whether it is of namespaces; if not, of entries.
    pub of_namespaces: bool,
    /// Its hash.
    pub hash: Hash,
}

/// What the skeleton proves of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: UnitName,
    /// Number and bytes of its entries.
    pub totals: Totals,
    /// Most bytes it can have, which is its weight (spec: SNAP-1).
    pub bytes_max: u64,
}

/// Why bytes are not the units they should be. Whoever sent them is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unit {unit}: {fault}")]
pub struct UnitError {
    /// Which unit, by its number.
    pub unit: u32,
    /// What is wrong with it.
    pub fault: Fault,
}

impl<H: Hasher> Skeleton<H> {
    /// How many units there are.
    ///
    /// # Panics
    /// As all of these do, if not all pages are proven.
    #[must_use]
    pub fn unit_count(&self) -> u32 {
        u32::try_from(self.whole().1.len()).expect("units are limited as nodes are")
    }

    /// How many nodes are proven so far, those of no unit.
    #[must_use]
    pub fn nodes_done(&self) -> u64 {
        self.opened() as u64
    }

    /// What is proven of a unit.
    ///
    /// # Panics
    /// If there is no such unit.
    #[must_use]
    pub fn unit(&self, unit: u32) -> Unit {
        let (cut, units) = self.whole();
        let (level, Child { hash, totals }) = cut.child(units[unit as usize]);
        let of_namespaces = matches!(level, Level::Namespaces);
        Unit { name: UnitName { of_namespaces, hash }, totals, bytes_max: cut::weight(level, totals) }
    }

    /// The units of a chunk, none of a page.
    ///
    /// # Panics
    /// If there is no such chunk.
    #[must_use]
    pub fn chunk_units(&self, index: u32) -> Range<u32> {
        let Some(chunk) = index.checked_sub(self.pages()) else { return 0..0 };
        self.packed_chunk(chunk)
    }

    /// Proves that bytes are these units, one behind the other, and says where each of them is. Costs one pass over
    /// their entries, and about 70 bytes of memory for each entry of one unit.
    ///
    /// # Errors
    /// [`UnitError`].
    ///
    /// # Panics
    /// If there is no such unit, or none at all is named.
    pub fn check_units(&self, units: &[u32], raw: &[u8]) -> Result<Vec<Range<usize>>, UnitError> {
        let (_, edges) = self.whole();
        let mut bulk = [Level::Namespaces, Level::Entries].map(Bulk::<H>::new);
        let mut input = Reader::new(raw);
        let mut out = Vec::with_capacity(units.len());
        for unit in units {
            let first = raw.len() - input.left();
            let checked = self.check_unit(edges[*unit as usize], &mut input, &mut bulk);
            checked.map_err(|fault| UnitError { unit: *unit, fault })?;
            out.push(first..raw.len() - input.left());
        }
        let last = *units.last().expect("some units are named");
        input.finish().map_err(|error| UnitError { unit: last, fault: error.into() })?;
        Ok(out)
    }

    /// Hands out the entries of a unit that these bytes were proven to be.
    pub(crate) fn unit_entries<E>(
        &self,
        unit: u32,
        raw: &[u8],
        each: impl FnMut(&Namespace, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (cut, edges) = self.whole();
        CheckedChunk { cut, units: std::slice::from_ref(&edges[unit as usize]), raw }.entries(each)
    }

    /// Checks that a unit's first entry parts from the last one before it where the skeleton says they do.
    pub(crate) fn check_unit_border(&self, unit: u32, last: Place<'_>, first: Place<'_>) -> Result<(), Fault> {
        self.check_border(self.whole().1[unit as usize], last, first)
    }
}
