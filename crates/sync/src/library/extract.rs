//! The entries of one namespace, or of one prefix of its keys, with a proof that these are all of them.
//!
//! Only the skeleton and the chunks that hold them are read. What comes out is what the proof shows: it was verified
//! against the snapshot's root before it is handed on, and whoever holds that root can verify it again with nothing else.

use super::archive::{Expected, Origin, Source};
use super::index::Index;
use super::{Info, LibraryError};
use crate::snapshot::{Fetch, Part, PartOf, Skeleton, unpack};
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

/// What was taken out of a state, and the proof that it is all there is of it.
#[derive(Debug, Clone)]
pub struct Taken {
    /// All entries of the part, in order.
    pub entries: Vec<(Key, Value)>,
    /// The proof of that under the root, which answers [`Query::Prefix`].
    pub proof: Vec<u8>,
    /// Units that were read.
    pub units_read: usize,
}

/// Why a part could not be taken out.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is larger than what is taken out at once.
    #[error("{part} has {found} bytes, {EXTRACT_BYTES_MAX} is the limit")]
    TooLarge {
        /// What.
        part: String,
        /// Its bytes.
        found: u64,
    },
    /// What was read does not prove it.
    #[error("what was read does not prove it: {0}")]
    Unproven(String),
    /// A chunk could not be read.
    #[error("a chunk could not be read")]
    Read(#[from] ReadError),
}

/// Takes a part out of a state. Of its chunks only those are read that hold the part.
///
/// # Errors
/// [`TakeError`].
///
/// # Panics
/// If not all pages of the skeleton are proven.
pub fn take<H: Hasher>(skeleton: &Skeleton<H>, fetch: Fetch<'_>, of: &PartOf) -> Result<Taken, TakeError> {
    let PartOf { namespace, prefix } = of;
    let part = Part::new(skeleton, fetch);
    let ask = |query: Query| {
        let proof: Proof = prove(&part, std::slice::from_ref(&query))?;
        let bytes = proof.encode();
        let verified = proof.verify::<H>(skeleton.root(), &[query], &LIMITS);
        verified.map(|verified| (verified, bytes)).map_err(|error| TakeError::Unproven(error.to_string()))
    };
    let (claimed, _) = ask(Query::PrefixTotals(namespace.clone(), prefix.clone()))?;
    if let Answer::Present(Totals { bytes: found, .. }) = claimed.prefix_totals(namespace, prefix)
        && found > EXTRACT_BYTES_MAX
    {
        return Err(TakeError::TooLarge { part: of.to_string(), found });
    }
    let (verified, proof) = ask(Query::Prefix(namespace.clone(), prefix.clone()))?;
    match verified.prefix(namespace, prefix) {
        RangeAnswer::Complete(entries) => Ok(Taken { entries, proof, units_read: part.units_read() }),
        RangeAnswer::Incomplete { .. } => unreachable!("a proof that verifies for a question answers it"),
    }
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

/// A chunk, unpacked.
fn read(source: &mut dyn Source, index: &Index, raw_max: u32, number: u32) -> Result<Vec<u8>, LibraryError> {
    let wire = source.part(number, &index.chunks[number as usize])?;
    let raw = unpack(&wire, raw_max).map(Cow::into_owned);
    raw.map_err(|error| LibraryError::Unproven { index: number, what: error.to_string() })
}

/// The skeleton of a snapshot, proven from its pages.
pub(super) fn skeleton<H: Hasher>(source: &mut dyn Source, index: &Index) -> Result<Skeleton<H>, LibraryError> {
    let mut skeleton = Skeleton::<H>::new(index.root, &index.metadata);
    let raw_max = skeleton.chunk_bytes_max();
    for page in 0..index.metadata.pages {
        let raw = read(source, index, raw_max, page)?;
        skeleton.add_page(&raw).map_err(|error| LibraryError::Unproven { index: page, what: error.to_string() })?;
    }
    Ok(skeleton)
}

// spec: LIB-9
fn extract<H: Hasher>(
    source: &mut dyn Source,
    index: &Index,
    namespace: &Namespace,
    prefix: &[u8],
) -> Result<Extract, LibraryError> {
    let skeleton = skeleton::<H>(source, index)?;
    let raw_max = skeleton.chunk_bytes_max();
    let source = RefCell::new(source);
    // The prover knows only that something could not be read; why is said here.
    let failure = RefCell::new(None);
    let fetch = |number: u32| {
        read(&mut **source.borrow_mut(), index, raw_max, number).map_err(|error| {
            let what = ReadError::damaged(error.to_string());
            failure.replace(Some(error));
            what
        })
    };
    let of = PartOf { namespace: namespace.clone(), prefix: prefix.to_vec() };
    match take(&skeleton, &fetch, &of) {
        Ok(Taken { entries, proof, units_read }) => Ok(Extract { info: Info::of(index), entries, proof, units_read }),
        Err(TakeError::TooLarge { part, found }) => {
            Err(LibraryError::TooLarge { file: part, found, limit: EXTRACT_BYTES_MAX })
        }
        Err(TakeError::Unproven(what)) => Err(LibraryError::Unproven { index: index.metadata.pages, what }),
        Err(TakeError::Read(error)) => Err(failure.take().unwrap_or(LibraryError::Read(error))),
    }
}
