//! zstd frames, made and read within bounds: of chunks that travel, and of history that is kept.
//!
//! A frame may be made against bytes that whoever reads it will have as well: what stands there already costs a few bytes to
//! say again. Frames come from strangers and from disks: one must say how long its contents are and be alone, and nothing is
//! reserved beyond the length that the caller has allowed. What comes out is checked by its hash, elsewhere.
//!
//! Rules: `spec/snapshot.md`, SNAP-3; `spec/ledger.md`, HISTORY-11.

use zstd_safe::{CCtx, CParameter, DCtx};

/// Most bytes a decompressor may have to look back (spec: SNAP-3).
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;
const WINDOW_LOG_MAX: u32 = WINDOW_BYTES_MAX.trailing_zeros();
const WINDOW_LOG_MIN: u32 = 10;
/// Places that a table of the compressor has for what is known, four bytes each: no fewer than a level gives it, and one for
/// every other byte that may be looked back.
const TABLE_LOG_MIN: u32 = 17;
const TABLE_LOG_MAX: u32 = WINDOW_LOG_MAX - 1;

/// Why bytes are no frame of what they are said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame breaks a rule.
    #[error("a zstd frame that {what}")]
    Rule {
        /// Which.
        what: &'static str,
    },
    /// Reading it would take a larger window than is given.
    #[error("the window of a frame is {found} bytes, the limit is {WINDOW_BYTES_MAX}")]
    Window {
        /// Its bytes.
        found: u64,
    },
}

/// Why nothing could be compressed: no memory, or a level that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("zstd: {what}")]
pub struct CompressError {
    /// What it says.
    pub what: &'static str,
}

/// A frame of some bytes, against bytes that are known to whoever will read it.
///
/// # Errors
/// [`CompressError`].
pub fn compress(raw: &[u8], known: &[u8], level: i32) -> Result<Vec<u8>, CompressError> {
    let failed = |code| CompressError { what: zstd_safe::get_error_name(code) };
    let mut context = CCtx::try_create().ok_or(CompressError { what: "no memory" })?;
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    let span = raw.len() as u64 + known.len() as u64;
    if !known.is_empty() {
        // Both must be in sight, as far as they may be.
        let log = (u64::BITS - span.leading_zeros()).clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX);
        context.set_parameter(CParameter::WindowLog(log)).map_err(failed)?;
        // A level's tables have room for what lies a little back; here all of it is to be found again.
        let table = (log - 1).min(TABLE_LOG_MAX);
        if table > TABLE_LOG_MIN {
            context.set_parameter(CParameter::HashLog(table)).map_err(failed)?;
            context.set_parameter(CParameter::ChainLog(table)).map_err(failed)?;
        }
        context.ref_prefix(known).map_err(failed)?;
    } else if span > WINDOW_BYTES_MAX {
        context.set_parameter(CParameter::WindowLog(WINDOW_LOG_MAX)).map_err(failed)?;
    }
    let mut out = vec![0; zstd_safe::compress_bound(raw.len())];
    let written = context.compress2(out.as_mut_slice(), raw).map_err(failed)?;
    out.truncate(written);
    Ok(out)
}

/// The contents of a frame of exactly `len` bytes, made against the same known bytes. Reserves `len` bytes.
///
/// # Errors
/// [`FrameError`].
pub fn decompress(frame: &[u8], len: u32, known: &[u8]) -> Result<Vec<u8>, FrameError> {
    let rule = |what| FrameError::Rule { what };
    check_header(frame, len)?;
    // spec: SNAP-3. Exactly one frame: neither a second nor bytes that decoders skip.
    match zstd_safe::find_frame_compressed_size(frame) {
        Ok(size) if size == frame.len() => {}
        Ok(_) => return Err(rule("is not alone")),
        Err(code) => return Err(rule(zstd_safe::get_error_name(code))),
    }
    let mut out = vec![0; len as usize];
    let mut context = DCtx::try_create().ok_or(rule("finds no memory"))?;
    if !known.is_empty() {
        context.ref_prefix(known).map_err(|code| rule(zstd_safe::get_error_name(code)))?;
    }
    match context.decompress(out.as_mut_slice(), frame) {
        Ok(written) if written == out.len() => Ok(out),
        Ok(_) => Err(rule("holds less than it says")),
        Err(code) => Err(rule(zstd_safe::get_error_name(code))),
    }
}

/// The head of a frame (RFC 8878, 3.1.1), read before anything else looks at it.
fn check_header(frame: &[u8], len: u32) -> Result<(), FrameError> {
    let bad = |what| Err(FrameError::Rule { what });
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
        return bad("has another size than is said");
    }
    match window.unwrap_or(size) {
        found if found > WINDOW_BYTES_MAX => Err(FrameError::Window { found }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::splitmix64;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        std::iter::repeat_with(|| splitmix64(&mut state).to_le_bytes()).flatten().take(len).collect()
    }

    /// What is known already is not said again, and without it, or with other bytes in its place, nothing false comes out
    /// that has the right length unless it is told by a hash: it is refused, or it is not what was packed.
    #[test]
    fn what_is_known_already_costs_next_to_nothing() {
        let known = noise(1, 300_000);
        for (from, to) in [(0, 300_000), (100_000, 130_000), (299_000, 300_000)] {
            let raw = [&known[from..to], b"and more"].concat();
            let len = u32::try_from(raw.len()).expect("short");
            let frame = compress(&raw, &known, 3).expect("compressed");
            assert!(frame.len() < 200, "{} bytes of {len}", frame.len());
            assert_eq!(decompress(&frame, len, &known), Ok(raw.clone()));
            for other in [Vec::new(), noise(2, 300_000), known[..200].to_vec()] {
                assert_ne!(decompress(&frame, len, &other).ok(), Some(raw.clone()));
            }
        }
        // Also what lies megabytes back.
        let known = noise(5, 4 << 20);
        let raw = [&known[100..], b"and more", &known[..100_000]].concat();
        let frame = compress(&raw, &known, 3).expect("compressed");
        assert!(frame.len() * 500 < raw.len(), "{} bytes of {}", frame.len(), raw.len());
        assert_eq!(decompress(&frame, u32::try_from(raw.len()).expect("short"), &known), Ok(raw));
        for known in [vec![], vec![7], noise(3, 9 << 20)] {
            for len in [0usize, 1, 100, 70_000] {
                let raw = noise(4, len);
                let frame = compress(&raw, &known, 3).expect("compressed");
                assert_eq!(decompress(&frame, u32::try_from(len).expect("short"), &known), Ok(raw));
            }
        }
    }
}
