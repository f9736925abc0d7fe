//! The one verifier, held to a snapshot's chunks in their order.

use super::LibraryError;
use super::index::{Index, Stored};
use crate::snapshot::{Place, Skeleton, unpack};
use keelstone_codec::{Hash, Namespace};
use keelstone_tree::{Blake3, HashKind, Hasher, Sha256, Totals};

/// Is handed every entry in order, each proven to be in the state.
pub type Each<'a> = &'a mut dyn FnMut(&Namespace, &[u8], &[u8]) -> Result<(), LibraryError>;

/// What is proven of a snapshot so far.
pub(super) struct Verifying(Box<dyn Prove>);

impl Verifying {
    /// Nothing is proven yet: the index says which root.
    pub(super) fn begin(index: &Index) -> Self {
        match index.metadata.hasher {
            HashKind::Blake3 => Self(Box::new(Proving::<Blake3>::new(index))),
            HashKind::Sha256 => Self(Box::new(Proving::<Sha256>::new(index))),
        }
    }

    /// Proves the next chunk, and hands out its entries if somebody wants them.
    pub(super) fn take(&mut self, stored: &Stored, wire: &[u8], each: Option<Each<'_>>) -> Result<(), LibraryError> {
        self.0.take(stored, wire, each)
    }
}

trait Prove: Send {
    fn take(&mut self, stored: &Stored, wire: &[u8], each: Option<Each<'_>>) -> Result<(), LibraryError>;
}

struct Proving<H> {
    skeleton: Skeleton<H>,
    /// What the index says of the whole, compared once it is proven.
    totals: Totals,
    /// The names the index gives the pages, for the same.
    names: Vec<Hash>,
    /// Chunks that are proven.
    done: u32,
    /// The last entry of the chunk before.
    last: Option<(Namespace, Vec<u8>)>,
}

impl<H: Hasher> Proving<H> {
    fn new(index: &Index) -> Self {
        let skeleton = Skeleton::new(index.root, &index.metadata);
        Self { skeleton, totals: index.totals, names: Vec::new(), done: 0, last: None }
    }

    /// With the last page it is known what the index should have said.
    fn check_index(&self) -> Result<(), (u32, String)> {
        for (number, stated) in (0u32..).zip(&self.names) {
            check_name(*stated, self.skeleton.name(number)).map_err(|what| (number, what))?;
        }
        match self.skeleton.totals() {
            Some(totals) if totals != self.totals => Err((
                0,
                format!("the state has {} entries, the index says {}", describe(&totals), describe(&self.totals)),
            )),
            _ => Ok(()),
        }
    }
}

fn describe(totals: &Totals) -> String {
    format!("{} of {} bytes", totals.count, totals.bytes)
}

fn check_name(stated: Hash, found: Hash) -> Result<(), String> {
    if stated == found { Ok(()) } else { Err(format!("the index names it {stated}, what it holds {found}")) }
}

impl<H: Hasher> Prove for Proving<H> {
    fn take(&mut self, stored: &Stored, wire: &[u8], mut each: Option<Each<'_>>) -> Result<(), LibraryError> {
        let index = self.done;
        let unproven = |what: String| LibraryError::Unproven { index, what };
        let raw = unpack(wire, self.skeleton.chunk_bytes_max()).map_err(|error| unproven(error.to_string()))?;
        self.done += 1;
        if !self.skeleton.is_complete() {
            self.skeleton.add_page(&raw).map_err(|error| unproven(error.to_string()))?;
            self.names.push(stored.name);
            if self.skeleton.is_complete() {
                self.check_index().map_err(|(index, what)| LibraryError::Unproven { index, what })?;
            }
            return Ok(());
        }
        check_name(stored.name, self.skeleton.name(index)).map_err(unproven)?;
        let chunk = self.skeleton.check(index, &raw).map_err(|error| unproven(error.fault.to_string()))?;
        // A first key stands where the tree would have put it if it parts there from the last of the chunk before.
        let before = self.last.take();
        let mut last: Option<(Namespace, &[u8])> = None;
        chunk.entries(|name, key, value| {
            if let (None, Some((before, before_key))) = (&last, &before) {
                let before = Place { name: before.as_bytes(), key: before_key };
                let border = self.skeleton.check_chunk_border(index, before, Place { name: name.as_bytes(), key });
                border.map_err(|fault| unproven(fault.to_string()))?;
            }
            match &mut last {
                Some((namespace, last)) if namespace == name => *last = key,
                last => *last = Some((name.clone(), key)),
            }
            match &mut each {
                Some(each) => each(name, key, value),
                None => Ok(()),
            }
        })?;
        self.last = last.map(|(name, key)| (name, key.to_vec()));
        Ok(())
    }
}
