//! The entries of one namespace, or of one prefix of its keys, with a proof that these are all of them.
//!
//! Only the skeleton and the chunks that hold them are read. What comes out is what the proof shows: it was verified
//! against the snapshot's root before it is handed on, and whoever holds that root can verify it again with nothing else.

use super::archive::{Expected, Origin, Source};
use super::index::Index;
use super::{Info, LibraryError};
use crate::snapshot::{Part, Skeleton, unpack};
use keelstone_codec::{Key, Namespace, Value};
use keelstone_tree::{
    Answer, Blake3, HashKind, Hasher, Proof, ProofLimits, Query, RangeAnswer, ReadError, Sha256, Totals, prove,
};
use std::borrow::Cow;
use std::cell::RefCell;

/// Most bytes of keys and values that are taken out at once: a proof is held in memory. For more, ask for longer
/// prefixes.
pub const EXTRACT_BYTES_MAX: u64 = 8 << 20;

/// How much of a proof of so many bytes is looked at.
const LIMITS: ProofLimits = ProofLimits { bytes: 512 << 20, nodes: 1 << 25 };

/// A part of a state.
#[derive(Debug, Clone)]
pub struct Extract {
    /// The snapshot it is of.
    pub info: Info,
    /// All entries of the prefix, in order.
    pub entries: Vec<(Key, Value)>,
    /// The proof of that under the snapshot's root, which answers [`Query::Prefix`].
    pub proof: Vec<u8>,
    /// Units that were read, of all there are.
    pub units_read: usize,
}

impl Origin<'_> {
    /// Takes out the entries of a namespace whose keys begin with `prefix`; all if it is empty.
    ///
    /// # Errors
    /// [`LibraryError::TooLarge`] above [`EXTRACT_BYTES_MAX`], and as [`Self::verify`].
    pub fn extract(self, expected: &Expected, namespace: &Namespace, prefix: &[u8]) -> Result<Extract, LibraryError> {
        let source = &mut *self.source();
        let index = super::archive::open(source, expected)?;
        match index.metadata.hasher {
            HashKind::Blake3 => extract::<Blake3>(source, &index, namespace, prefix),
            HashKind::Sha256 => extract::<Sha256>(source, &index, namespace, prefix),
        }
    }
}

// spec: LIB-9
fn extract<H: Hasher>(
    source: &mut dyn Source,
    index: &Index,
    namespace: &Namespace,
    prefix: &[u8],
) -> Result<Extract, LibraryError> {
    let mut skeleton = Skeleton::<H>::new(index.root, &index.metadata);
    let raw_max = skeleton.chunk_bytes_max();
    let read = |source: &mut dyn Source, number: u32| {
        let wire = source.part(number, &index.chunks[number as usize])?;
        let raw = unpack(&wire, raw_max).map(Cow::into_owned);
        raw.map_err(|error| LibraryError::Unproven { index: number, what: error.to_string() })
    };
    for page in 0..index.metadata.pages {
        let raw = read(source, page)?;
        skeleton.add_page(&raw).map_err(|error| LibraryError::Unproven { index: page, what: error.to_string() })?;
    }
    let source = RefCell::new(source);
    // The prover knows only that something could not be read; why is said here.
    let failure = RefCell::new(None);
    let fetch = |number: u32| {
        read(&mut **source.borrow_mut(), number).map_err(|error| {
            let what = ReadError::damaged(error.to_string());
            failure.replace(Some(error));
            what
        })
    };
    let part = Part::new(&skeleton, &fetch);
    let ask = |query: Query| {
        let proof: Proof = prove(&part, std::slice::from_ref(&query))
            .map_err(|error| failure.take().unwrap_or(LibraryError::Read(error)))?;
        let bytes = proof.encode();
        let verified = proof.verify::<H>(index.root, &[query], &LIMITS);
        let unproven = |what: String| LibraryError::Unproven { index: index.metadata.pages, what };
        verified.map(|verified| (verified, bytes)).map_err(|error| unproven(error.to_string()))
    };
    let (claimed, _) = ask(Query::PrefixTotals(namespace.clone(), prefix.to_vec()))?;
    if let Answer::Present(Totals { bytes: found, .. }) = claimed.prefix_totals(namespace, prefix)
        && found > EXTRACT_BYTES_MAX
    {
        let file = format!("{namespace}/{}", prefix.escape_ascii());
        return Err(LibraryError::TooLarge { file, found, limit: EXTRACT_BYTES_MAX });
    }
    let (verified, proof) = ask(Query::Prefix(namespace.clone(), prefix.to_vec()))?;
    match verified.prefix(namespace, prefix) {
        RangeAnswer::Complete(entries) => {
            Ok(Extract { info: Info::of(index), entries, proof, units_read: part.units_read() })
        }
        RangeAnswer::Incomplete { .. } => unreachable!("a proof that verifies for a question answers it"),
    }
}
