//! What names a snapshot, and the few facts that travel with an offer of one.
//!
//! None of it is proof of anything: a receiver recomputes the hash, and finds the numbers of chunks again in the
//! skeleton (spec: SNAP-4, SNAP-6).

use keelstone_codec::{ChainId, Decode, DecodeError, Encode, Hash, Height, Reader, Root, Tag, TaggedHasher};
use keelstone_ledger::SNAPSHOT_CHUNK_BYTES;
use keelstone_tree::HashKind;

/// The one format of snapshots there is.
pub const FORMAT: u32 = 1;

/// Most bytes of encoded metadata (spec: SNAP-6).
pub const METADATA_BYTES_MAX: usize = 256;

/// The largest W a chain can have (spec: SNAP-3). What memory a chunk may take follows from it.
pub(super) const CHUNK_WEIGHT_MAX: u32 = *SNAPSHOT_CHUNK_BYTES.end();

/// What a chain has agreed on and both sides know before the first byte: whoever knows the chain knows these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotParams {
    /// The chain.
    pub chain_id: ChainId,
    /// The hasher of its tree.
    pub hasher: HashKind,
    /// W: most weight of a parcel and of a chunk (spec: SNAP-3).
    pub chunk_weight_max: u32,
}

/// What an offer says of a snapshot besides its hash (spec: SNAP-6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The chain.
    pub chain_id: ChainId,
    /// The height whose state it is.
    pub height: Height,
    /// W (spec: SNAP-3).
    pub chunk_weight_max: u32,
    /// The hasher of the tree.
    pub hasher: HashKind,
    /// k: how many of the chunks are pages of the skeleton. They come first.
    pub pages: u32,
    /// n: chunks in all.
    pub chunks: u32,
}

// spec: SNAP-6
impl Encode for Metadata {
    fn encode(&self, out: &mut Vec<u8>) {
        FORMAT.encode(out);
        self.chain_id.encode(out);
        self.height.encode(out);
        self.chunk_weight_max.encode(out);
        self.hasher.encode(out);
        self.pages.encode(out);
        self.chunks.encode(out);
    }
}
impl Decode for Metadata {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u32::decode(input)? {
            FORMAT => {}
            found => return Err(DecodeError::UnknownTag { what: "format of a snapshot", found: u64::from(found) }),
        }
        let (chain_id, height) = (ChainId::decode(input)?, Height::decode(input)?);
        if height.0 == u64::MAX {
            return Err(DecodeError::Invalid { what: "height of a snapshot: none can follow it" });
        }
        let chunk_weight_max = u32::decode(input)?;
        if chunk_weight_max > CHUNK_WEIGHT_MAX {
            let (found, limit) = (u64::from(chunk_weight_max), u64::from(CHUNK_WEIGHT_MAX));
            return Err(DecodeError::TooLarge { what: "weight of a chunk", found, limit });
        }
        let hasher = HashKind::decode(input)?;
        let (pages, chunks) = (u32::decode(input)?, u32::decode(input)?);
        if pages == 0 || pages > chunks {
            return Err(DecodeError::Invalid { what: "numbers of pages and chunks of a snapshot" });
        }
        Ok(Self { chain_id, height, chunk_weight_max, hasher, pages, chunks })
    }
}

const SNAPSHOT: Tag = Tag::new("snapshot");

/// The hash that names the snapshot of a version: it follows from what is agreed, and covers no byte of a chunk
/// (spec: SNAP-4).
#[must_use]
pub fn snapshot_hash(params: &SnapshotParams, height: Height, root: Root) -> Hash {
    let mut hasher = TaggedHasher::new(SNAPSHOT);
    hasher.value(&FORMAT).value(&params.chain_id).value(&height).value(&root).value(&params.chunk_weight_max);
    hasher.finish()
}
