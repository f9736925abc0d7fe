//! A chunk as it travels and as it lies on a disk: as it is, or compressed.
//!
//! ```text
//! 00 bytes                    as it is
//! 01 length u32, zstd frame   compressed; the length is that of what comes out
//! ```
//!
//! Compressed bytes are never named by anything (spec: SNAP-4). They come from strangers: a frame must say how long its
//! contents are, agree with the length before it, and be alone; nothing is reserved beyond what the caller allows.
//! Rules: `spec/snapshot.md`, SNAP-3.

use keelstone_store::frames::{self, FrameError, WINDOW_BYTES_MAX};
use std::borrow::Cow;

/// Most bytes of a chunk in its wire form. CometBFT takes messages of 16,000,000 bytes; this leaves 64 for their frame
/// (spec: SNAP-3).
pub const WIRE_BYTES_MAX: usize = 15_999_936;

const RAW: u8 = 0;
const ZSTD: u8 = 1;

/// Why a chunk was not made ready for transfer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// It would be larger than what CometBFT carries. A chain whose W is within its limits never makes such a chunk.
    #[error("a chunk of {found} bytes is above the limit of {limit}")]
    TooLarge {
        /// Its bytes in the smallest form found.
        found: usize,
        /// [`WIRE_BYTES_MAX`].
        limit: usize,
    },
    /// The compressor failed: out of memory, or a level it does not know.
    #[error("zstd: {what}")]
    Compressor {
        /// What it says.
        what: &'static str,
    },
}

/// Why bytes are no chunk in wire form. Whoever sent them is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// There is nothing.
    #[error("an empty chunk")]
    Empty,
    /// It is larger, or says it is larger, than a chunk of this snapshot can be.
    #[error("{what} is {found} bytes, the limit is {limit}")]
    TooLarge {
        /// The wire form, the contents, or the window.
        what: &'static str,
        /// What was found.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A form nobody knows.
    #[error("unknown form {found} of a chunk")]
    UnknownForm {
        /// Its first byte.
        found: u8,
    },
    /// The frame breaks a rule.
    #[error("a zstd frame that {what}")]
    Frame {
        /// Which rule.
        what: &'static str,
    },
}

/// Puts a chunk into its wire form, compressed at a zstd level if that makes it smaller; level 0 leaves it as it is.
///
/// # Errors
/// [`PackError`].
pub fn pack(raw: &[u8], level: i32) -> Result<Vec<u8>, PackError> {
    let compressed = if level == 0 { None } else { compress(raw, level)? };
    let out = compressed.unwrap_or_else(|| [&[RAW], raw].concat());
    // spec: SNAP-3
    if out.len() > WIRE_BYTES_MAX {
        return Err(PackError::TooLarge { found: out.len(), limit: WIRE_BYTES_MAX });
    }
    Ok(out)
}

/// Puts one chunk of a state after the other into its wire form. Once compressing one has gained little it is left alone
/// for some: what does not compress costs as much as what does.
#[derive(Debug)]
pub struct Packer {
    level: i32,
    /// Chunks that are not compressed before the next one is tried.
    left_alone: u32,
}

/// Chunks that are left alone after one that gained little.
const LEFT_ALONE: u32 = 15;
/// What is little: one part of a chunk in so many.
const LITTLE: usize = 16;

impl Packer {
    /// At a zstd level; 0 leaves all as they are.
    #[must_use]
    pub fn new(level: i32) -> Self {
        Self { level, left_alone: 0 }
    }

    /// As [`pack`], of a chunk that stands behind one byte of any value: if it stays as it is, it stays where it is.
    ///
    /// # Errors
    /// [`PackError`].
    ///
    /// # Panics
    /// If not even that byte is there.
    pub fn pack(&mut self, mut behind: Vec<u8>) -> Result<Vec<u8>, PackError> {
        // spec: SNAP-3. What is too large as it is may still be smaller.
        if (self.level == 0 || self.left_alone > 0) && behind.len() <= WIRE_BYTES_MAX {
            self.left_alone = self.left_alone.saturating_sub(1);
            behind[0] = RAW;
            return Ok(behind);
        }
        let raw = &behind[1..];
        let packed = pack(raw, self.level)?;
        if raw.len() - raw.len() / LITTLE < packed.len() {
            self.left_alone = LEFT_ALONE;
        }
        Ok(packed)
    }
}

/// The compressed form, if it is smaller.
fn compress(raw: &[u8], level: i32) -> Result<Option<Vec<u8>>, PackError> {
    let Ok(len) = u32::try_from(raw.len()) else { return Ok(None) };
    let frame = frames::compress(raw, &[], level).map_err(|error| PackError::Compressor { what: error.what })?;
    let smaller = 1 + 4 + frame.len() <= raw.len();
    Ok(smaller.then(|| [&[ZSTD], &len.to_le_bytes()[..], &frame].concat()))
}

/// The chunk in a wire form: where it lies, if it is not compressed. Reserves no more than `raw_max` bytes.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(wire: &[u8], raw_max: u32) -> Result<Cow<'_, [u8]>, UnpackError> {
    within("the wire form of a chunk", wire.len() as u64, WIRE_BYTES_MAX as u64)?;
    let (form, rest) = wire.split_first().ok_or(UnpackError::Empty)?;
    match *form {
        RAW => {
            within("a chunk", rest.len() as u64, u64::from(raw_max))?;
            Ok(Cow::Borrowed(rest))
        }
        ZSTD => {
            let (len, frame) = rest.split_first_chunk().ok_or(UnpackError::Frame { what: "ends early" })?;
            let len = u32::from_le_bytes(*len);
            within("a chunk", u64::from(len), u64::from(raw_max))?;
            decompress(frame, len).map(Cow::Owned)
        }
        found => Err(UnpackError::UnknownForm { found }),
    }
}

fn within(what: &'static str, found: u64, limit: u64) -> Result<(), UnpackError> {
    if found > limit { Err(UnpackError::TooLarge { what, found, limit }) } else { Ok(()) }
}

fn decompress(frame: &[u8], len: u32) -> Result<Vec<u8>, UnpackError> {
    frames::decompress(frame, len, &[]).map_err(|error| match error {
        FrameError::Rule { what } => UnpackError::Frame { what },
        FrameError::Window { found } => {
            UnpackError::TooLarge { what: "the window of a chunk", found, limit: WINDOW_BYTES_MAX }
        }
    })
}
