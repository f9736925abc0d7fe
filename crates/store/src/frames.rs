//! zstd frames, made and read within bounds: of chunks that travel, and of history that is kept.
//!
//! A frame may be made against bytes that whoever reads it will have as well: what stands there already costs a few bytes to
//! say again. Frames come from strangers and from disks: one must say how long its contents are and be alone, and nothing is
//! reserved beyond the length that the caller has allowed. What comes out is checked by its hash, elsewhere.
//!
//! Rules: `spec/snapshot.md`, SNAP-3; `spec/ledger.md`, HISTORY-11.

use std::cell::Cell;
use zstd_safe::{CCtx, CParameter, DCtx, ResetDirective};

/// Most bytes a decompressor may have to look back (spec: SNAP-3).
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;
const WINDOW_LOG_MAX: u32 = WINDOW_BYTES_MAX.trailing_zeros();
const WINDOW_LOG_MIN: u32 = 10;
/// Places that a table of the compressor has for what is known, four bytes each: no fewer than a level gives it, and one for
/// every other byte that may be looked back.
const TABLE_LOG_MIN: u32 = 17;
const TABLE_LOG_MAX: u32 = WINDOW_LOG_MAX - 1;
/// Memory that a thread keeps a compressor with: one that long frames were made with has more.
const KEPT_BYTES_MAX: usize = 1 << 20;

thread_local! {
    /// A compressor for frames against nothing. A new one has to find memory and fill it with zeros, for some 20 us; a short frame
    /// takes it 3 us.
    static KEPT: Cell<Option<CCtx<'static>>> = const { Cell::new(None) };
}

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

/// A frame of some bytes, against bytes that are known to whoever will read it. The same bytes at the same level give the same
/// frame. A thread keeps up to a mebibyte for its next one that is against nothing.
///
/// # Errors
/// [`CompressError`].
pub fn compress(raw: &[u8], known: &[u8], level: i32) -> Result<Vec<u8>, CompressError> {
    if known.is_empty() { compress_alone(raw, level) } else { compress_against(raw, known, level) }
}

fn compress_alone(raw: &[u8], level: i32) -> Result<Vec<u8>, CompressError> {
    let mut context = KEPT.take().map_or_else(compressor, Ok)?;
    set(&mut context, CParameter::CompressionLevel(level))?;
    if raw.len() as u64 > WINDOW_BYTES_MAX {
        set(&mut context, CParameter::WindowLog(WINDOW_LOG_MAX))?;
    }
    let frame = frame(&mut context, raw)?;
    if context.sizeof() <= KEPT_BYTES_MAX && context.reset(ResetDirective::SessionAndParameters).is_ok() {
        KEPT.set(Some(context));
    }
    Ok(frame)
}

fn compress_against(raw: &[u8], known: &[u8], level: i32) -> Result<Vec<u8>, CompressError> {
    let mut context = compressor()?;
    set(&mut context, CParameter::CompressionLevel(level))?;
    // Both must be in sight, as far as they may be.
    let span = raw.len() as u64 + known.len() as u64;
    let log = (u64::BITS - span.leading_zeros()).clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX);
    set(&mut context, CParameter::WindowLog(log))?;
    // A level's tables have room for what lies a little back; here all of it is to be found again.
    let table = (log - 1).min(TABLE_LOG_MAX);
    if table > TABLE_LOG_MIN {
        set(&mut context, CParameter::HashLog(table))?;
        set(&mut context, CParameter::ChainLog(table))?;
    }
    context.ref_prefix(known).map_err(failed)?;
    frame(&mut context, raw)
}

fn compressor<'a>() -> Result<CCtx<'a>, CompressError> {
    CCtx::try_create().ok_or(CompressError { what: "no memory" })
}

fn set(context: &mut CCtx<'_>, parameter: CParameter) -> Result<(), CompressError> {
    context.set_parameter(parameter).map(drop).map_err(failed)
}

fn frame(context: &mut CCtx<'_>, raw: &[u8]) -> Result<Vec<u8>, CompressError> {
    let mut out = vec![0; zstd_safe::compress_bound(raw.len())];
    let written = context.compress2(out.as_mut_slice(), raw).map_err(failed)?;
    out.truncate(written);
    Ok(out)
}

fn failed(code: zstd_safe::ErrorCode) -> CompressError {
    CompressError { what: zstd_safe::get_error_name(code) }
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

    /// A compressor that was used before makes the frames that a new one makes, and one with large tables is not kept.
    #[test]
    fn a_frame_does_not_depend_on_what_was_compressed_before() {
        let of_few_letters = |len: usize| noise(len as u64, len).iter().map(|byte| byte % 17).collect::<Vec<_>>();
        let texts = [0, 1, 300, 5_000, 131_072, 9 << 20].map(of_few_letters);
        for (raw, level) in texts.iter().flat_map(|raw| [(raw, 1), (raw, 3)]).chain([(&texts[2], 19), (&texts[3], 1)]) {
            let new = std::thread::scope(|scope| scope.spawn(|| compress(raw, &[], level)).join());
            assert_eq!(Ok(compress(raw, &[], level)), new.map_err(drop), "{} bytes at level {level}", raw.len());
        }
        let kept = KEPT.take().map(|context| context.sizeof());
        assert!(kept.is_some_and(|bytes| bytes <= KEPT_BYTES_MAX), "{kept:?} bytes");
        compress(&texts[5], &[], 9).unwrap();
        assert!(KEPT.take().is_none());
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
