//! The table of contents of a snapshot on a disk: which chunks it has, and which bytes hold them.
//!
//! A snapshot exists once its index does; the index is written last. What an index says of chunks is checked in two ways.
//! The digest of each chunk's file finds what a disk has damaged, at the cost of one hash. What the chunks mean is
//! proven against the root, by the verifier that checks chunks of strangers; an index that was brought from elsewhere
//! is believed in nothing before.
//!
//! Layout and rules: `spec/library.md`, LIB-2. Vectors: `spec/vectors/library.json`.

use super::SnapshotId;
use crate::snapshot::{
    CHUNKS_MAX, FORMAT, METADATA_BYTES_MAX, Metadata, SnapshotParams, WIRE_BYTES_MAX, snapshot_hash,
};
use keelstone_codec::{Decode, DecodeError, Encode, Hash, Reader, Root, Tag, TaggedHasher};
use keelstone_tree::Totals;

/// The first bytes of an index.
const MAGIC: [u8; 8] = *b"keelsnap";
/// The layout of an index.
const VERSION: u32 = 1;
/// Bytes of a chunk in an index.
const CHUNK_BYTES: usize = 32 + 4 + 32;
/// Most bytes of an index. A longer file is refused before it is read.
pub const INDEX_BYTES_MAX: u64 =
    (8 + 4 + 4 + 4 + METADATA_BYTES_MAX + 32 + 16 + 4 + CHUNKS_MAX as usize * CHUNK_BYTES + 32) as u64;
/// Most bytes of a chunk's file.
pub(super) const FILE_BYTES_MAX: u32 = 15_999_936;
const _: () = assert!(FILE_BYTES_MAX as usize == WIRE_BYTES_MAX, "a file holds a chunk as it is sent");

/// What is on the disk of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// What is agreed of the snapshot: chain, height, cut.
    pub metadata: Metadata,
    /// The root of the state at that height.
    pub root: Root,
    /// Number and bytes of its entries.
    pub totals: Totals,
    /// Its chunks, in order.
    pub chunks: Vec<Stored>,
}

/// A chunk as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its content name, which names its file. Equal names, equal contents.
    pub name: Hash,
    /// The bytes of its file.
    pub bytes: u32,
    /// The digest of its file.
    pub digest: Hash,
}

/// The digest of a chunk's file. It says nothing of what the bytes mean: that is what names and roots are for.
pub(super) fn digest(wire: &[u8]) -> Hash {
    const FILE: Tag = Tag::new("library-chunk");
    TaggedHasher::new(FILE).update(wire).finish()
}

fn checksum(covered: &[u8]) -> Hash {
    const INDEX: Tag = Tag::new("library-index");
    TaggedHasher::new(INDEX).update(covered).finish()
}

impl Index {
    /// Which snapshot it is of.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        SnapshotId { height: self.metadata.height, format: FORMAT }
    }

    /// What its chain has agreed on.
    #[must_use]
    pub fn params(&self) -> SnapshotParams {
        let Metadata { chain_id, hasher, chunk_weight_max, .. } = self.metadata.clone();
        SnapshotParams { chain_id, hasher, chunk_weight_max }
    }

    /// The hash that names the snapshot.
    #[must_use]
    pub fn hash(&self) -> Hash {
        snapshot_hash(&self.params(), self.metadata.height, self.root)
    }

    /// Bytes of all chunk files, each counted once however often it is used.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files().iter().map(|chunk| u64::from(chunk.bytes)).sum()
    }

    /// The chunks by file: each name once, in the order of first use.
    #[must_use]
    pub fn files(&self) -> Vec<Stored> {
        let mut seen = std::collections::BTreeSet::new();
        self.chunks.iter().filter(|chunk| seen.insert(chunk.name)).copied().collect()
    }
}

impl Encode for Stored {
    fn encode(&self, out: &mut Vec<u8>) {
        self.name.encode(out);
        self.bytes.encode(out);
        self.digest.encode(out);
    }
}
impl Decode for Stored {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (name, bytes, digest) = (Hash::decode(input)?, u32::decode(input)?, Hash::decode(input)?);
        match bytes {
            1..=FILE_BYTES_MAX => Ok(Self { name, bytes, digest }),
            0 => Err(DecodeError::Invalid { what: "chunk without bytes" }),
            _ => {
                let (found, limit) = (u64::from(bytes), u64::from(FILE_BYTES_MAX));
                Err(DecodeError::TooLarge { what: "chunk", found, limit })
            }
        }
    }
}

// spec: LIB-2
impl Encode for Index {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        MAGIC.encode(out);
        VERSION.encode(out);
        FORMAT.encode(out);
        self.metadata.to_bytes().encode(out);
        self.root.encode(out);
        self.totals.count.encode(out);
        self.totals.bytes.encode(out);
        self.chunks.encode(out);
        let checksum = checksum(&out[start..]);
        checksum.encode(out);
    }
}
impl Decode for Index {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let all = input.clone().rest();
        if input.array()? != MAGIC {
            return Err(DecodeError::Invalid { what: "index: it does not begin as one" });
        }
        for (what, known) in [("version of an index", VERSION), ("snapshot format", FORMAT)] {
            let found = u32::decode(input)?;
            if found != known {
                return Err(DecodeError::UnknownTag { what, found: u64::from(found) });
            }
        }
        let metadata = Metadata::from_bytes(input.bytes("metadata", METADATA_BYTES_MAX)?)?;
        let root = Root::decode(input)?;
        let totals = Totals { count: u64::decode(input)?, bytes: u64::decode(input)? };
        let chunks: Vec<Stored> = input.list("chunks", CHUNKS_MAX as usize)?;
        // What is decoded is all that the checksum covers; a value inside another has its own end.
        let covered = &all[..all.len() - input.left()];
        if Hash::decode(input)? != checksum(covered) {
            return Err(DecodeError::Invalid { what: "index: its checksum does not match" });
        }
        let index = Self { metadata, root, totals, chunks };
        index.check()?;
        Ok(index)
    }
}

impl Index {
    /// What the parts of an index must be to one another.
    fn check(&self) -> Result<(), DecodeError> {
        if u32::try_from(self.chunks.len()) != Ok(self.metadata.chunks) {
            return Err(DecodeError::Invalid { what: "index: its chunks are not as many as its metadata says" });
        }
        // One file cannot have two sizes or digests.
        let mut files = std::collections::BTreeMap::new();
        for chunk in &self.chunks {
            if files.insert(chunk.name, chunk).is_some_and(|other| other != chunk) {
                return Err(DecodeError::Invalid { what: "index: one chunk with two files" });
            }
        }
        Ok(())
    }
}
