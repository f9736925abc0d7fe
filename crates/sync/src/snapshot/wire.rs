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

use std::borrow::Cow;
use zstd_safe::{CCtx, CParameter, DCtx};

/// Most bytes of a chunk in its wire form. CometBFT takes messages of 16,000,000 bytes; this leaves 64 for their frame
/// (spec: SNAP-3).
pub const WIRE_BYTES_MAX: usize = 15_999_936;

/// Most bytes a decompressor may have to look back (spec: SNAP-3).
const WINDOW_BYTES_MAX: u64 = 8 << 20;
const WINDOW_LOG_MAX: u32 = WINDOW_BYTES_MAX.trailing_zeros();

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

/// The compressed form, if it is smaller.
fn compress(raw: &[u8], level: i32) -> Result<Option<Vec<u8>>, PackError> {
    let Ok(len) = u32::try_from(raw.len()) else { return Ok(None) };
    let failed = |code| PackError::Compressor { what: zstd_safe::get_error_name(code) };
    let mut context = CCtx::try_create().ok_or(PackError::Compressor { what: "no memory" })?;
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    if raw.len() as u64 > WINDOW_BYTES_MAX {
        context.set_parameter(CParameter::WindowLog(WINDOW_LOG_MAX)).map_err(failed)?;
    }
    let mut out = vec![0; zstd_safe::compress_bound(raw.len())];
    let written = context.compress2(out.as_mut_slice(), raw).map_err(failed)?;
    if 1 + 4 + written > raw.len() {
        return Ok(None);
    }
    out.truncate(written);
    Ok(Some([&[ZSTD], &len.to_le_bytes()[..], &out].concat()))
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
    check_header(frame, len)?;
    // spec: SNAP-3. Exactly one frame: neither a second nor bytes that decoders skip.
    match zstd_safe::find_frame_compressed_size(frame) {
        Ok(size) if size == frame.len() => {}
        Ok(_) => return Err(UnpackError::Frame { what: "is not alone" }),
        Err(code) => return Err(UnpackError::Frame { what: zstd_safe::get_error_name(code) }),
    }
    let mut out = vec![0; len as usize];
    let mut context = DCtx::try_create().ok_or(UnpackError::Frame { what: "finds no memory" })?;
    match context.decompress(out.as_mut_slice(), frame) {
        Ok(written) if written == out.len() => Ok(out),
        Ok(_) => Err(UnpackError::Frame { what: "holds less than it says" }),
        Err(code) => Err(UnpackError::Frame { what: zstd_safe::get_error_name(code) }),
    }
}

/// The head of a frame (RFC 8878, 3.1.1), read before anything else looks at it.
fn check_header(frame: &[u8], len: u32) -> Result<(), UnpackError> {
    let bad = |what| Err(UnpackError::Frame { what });
    let Some((&[0x28, 0xb5, 0x2f, 0xfd, descriptor], mut rest)) = frame.split_first_chunk::<5>() else {
        return bad("does not begin like one");
    };
    let (size_flag, single_segment) = (descriptor >> 6, descriptor & 0x20 != 0);
    if descriptor & 0b0001_1000 != 0 {
        return bad("sets reserved bits");
    }
    if descriptor & 0b11 != 0 {
        return bad("wants a dictionary");
    }
    let mut window = None;
    if !single_segment {
        let Some((byte, after)) = rest.split_first() else { return bad("ends early") };
        let base = 1u64 << (10 + (byte >> 3));
        window = Some(base + base / 8 * u64::from(byte & 7));
        rest = after;
    }
    let size_bytes = match (size_flag, single_segment) {
        (0, false) => return bad("does not say its size"),
        (flag, _) => 1usize << flag,
    };
    let Some(size) = rest.get(..size_bytes) else { return bad("ends early") };
    let mut wide = [0; 8];
    wide[..size_bytes].copy_from_slice(size);
    let size = u64::from_le_bytes(wide) + if size_bytes == 2 { 256 } else { 0 };
    if size != u64::from(len) {
        return bad("has another size than the chunk says");
    }
    within("the window of a chunk", window.unwrap_or(size), WINDOW_BYTES_MAX)
}
