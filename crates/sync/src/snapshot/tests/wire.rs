//! The form in which chunks travel: bombs, lies about lengths, and frames that are more than one.

use super::*;
use zstd_safe::{CCtx, CParameter};

const ZSTD_HEAD: usize = 5;

/// A frame made with these settings.
fn frame(raw: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for parameter in parameters {
        context.set_parameter(*parameter).unwrap();
    }
    let mut out = vec![0; zstd_safe::compress_bound(raw.len())];
    let len = context.compress2(out.as_mut_slice(), raw).unwrap();
    out.truncate(len);
    out
}

fn wire(len: u32, frame: &[u8]) -> Vec<u8> {
    [&[1], &len.to_le_bytes()[..], frame].concat()
}

/// As a receiver that keeps what comes out.
fn unpack(wire: &[u8], raw_max: u32) -> Result<Vec<u8>, UnpackError> {
    super::unpack(wire, raw_max).map(std::borrow::Cow::into_owned)
}

fn text(len: usize) -> Vec<u8> {
    b"currency.balances:".iter().cycle().take(len).copied().collect()
}

#[track_caller]
fn assert_frame(found: Result<Vec<u8>, UnpackError>, word: &str) {
    let error = found.expect_err("it was unpacked");
    assert!(error.to_string().contains(word), "{error}");
}

/// spec: SNAP-3. What is packed is unpacked, at every level, and never grows by more than the form's byte.
#[test]
fn every_chunk_unpacks_to_what_was_packed() {
    let noise: Vec<u8> = (0..3000u32).flat_map(|n| HashKind::Blake3.hash(&n.to_le_bytes()).0).collect();
    for raw in [vec![], vec![0], text(10), text(100_000), noise, text(9 << 20)] {
        for level in [0, 1, 3, 9] {
            let wire = pack(&raw, level).unwrap();
            assert!(wire.len() <= raw.len() + 1);
            assert_eq!(unpack(&wire, 10 << 20).unwrap(), raw, "{} bytes at level {level}", raw.len());
        }
    }
    assert!(pack(&text(100), 1000).is_ok(), "levels beyond the last are the last");
}

/// spec: SNAP-3. One chunk after the other unpacks to what it was. Behind one that gains nothing some are left alone, unless they
/// would be too large so.
#[test]
fn chunks_are_left_alone_once_compressing_gains_nothing() {
    let noise: Vec<u8> = (0..3000u32).flat_map(|n| HashKind::Blake3.hash(&n.to_le_bytes()).0).collect();
    let large = text(WIRE_BYTES_MAX);
    let mut packer = Packer::new(1);
    let mut is_smaller = |raw: &[u8]| {
        let wire = packer.pack([&[9], raw].concat()).unwrap();
        assert_eq!(unpack(&wire, u32::MAX).unwrap(), raw);
        wire.len() < raw.len()
    };
    assert!(is_smaller(&text(1000)) && is_smaller(&text(1000)));
    assert!(!is_smaller(&noise));
    assert!((0..15).all(|_| !is_smaller(&text(1000))) && is_smaller(&text(1000)));
    assert!(!is_smaller(&noise) && is_smaller(&large) && !is_smaller(&text(1000)));
    let mut packer = Packer::new(0);
    assert!(packer.pack(text(1000)).unwrap().len() == 1000);
    assert!(matches!(packer.pack(large.repeat(2)), Err(PackError::TooLarge { .. })));
}

/// SS-23. The largest chunk passes, one byte more is not made.
#[test]
fn ss23_the_largest_chunk_passes_and_a_larger_one_is_not_made() {
    let mut raw = vec![0x5a; WIRE_BYTES_MAX - 1];
    let wire = pack(&raw, 0).unwrap();
    assert_eq!(wire.len(), 15_999_936);
    assert_eq!(unpack(&wire, u32::MAX).unwrap(), raw);
    raw.push(0);
    let limit = WIRE_BYTES_MAX;
    assert_eq!(pack(&raw, 0), Err(PackError::TooLarge { found: limit + 1, limit }));
    raw.resize(16_000_000, 0);
    assert_eq!(pack(&raw, 0), Err(PackError::TooLarge { found: 16_000_001, limit }));
    assert!(matches!(unpack(&vec![0; limit + 1], u32::MAX), Err(UnpackError::TooLarge { .. })));
}

/// spec: SNAP-3. Of a chain whose W is within its limits, every chunk fits as it is.
#[test]
fn a_chunk_of_any_allowed_weight_fits_uncompressed() {
    for weight in [64 << 10, 10 << 20] {
        // One byte more says that it is not compressed.
        assert!((super::super::cut::chunk_bytes_max(weight) as usize) < WIRE_BYTES_MAX);
    }
}

/// SS-24, S-06. What expands a thousandfold stops at what is declared, and what is declared at what is allowed.
#[test]
fn s06_a_bomb_stops_at_the_cap() {
    let bomb = frame(&vec![0; 64 << 20], &[CParameter::WindowLog(20)]);
    assert!(bomb.len() * 1000 < 64 << 20);
    let limit = 1 << 20;
    let error = unpack(&wire(64 << 20, &bomb), limit).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge { what: "a chunk", found: 67_108_864, limit: 1_048_576 }), "{error}");
    assert_frame(unpack(&wire(limit, &bomb), limit), "another size");
    // The frame lies as well: its size field now says what the chunk says.
    let mut lying = bomb.clone();
    let at = lying.windows(4).position(|bytes| bytes == (64u32 << 20).to_le_bytes()).unwrap();
    lying[at..at + 4].copy_from_slice(&limit.to_le_bytes());
    assert_frame(unpack(&wire(limit, &lying), limit), "");
}

/// SS-24, S-06: each rule for a frame, broken by itself.
#[test]
fn ss24_frames_that_break_a_rule_are_refused() {
    let raw = text(3000);
    let good = frame(&raw, &[]);
    assert_eq!(unpack(&wire(3000, &good), 4000).unwrap(), raw);
    let ok = |frame: &[u8]| unpack(&wire(3000, frame), 4000);

    // A window beyond 8 MiB.
    let long = text(20 << 20);
    let wide = frame(&long, &[CParameter::WindowLog(24)]);
    let found = unpack(&wire(20 << 20, &wide), 32 << 20);
    assert!(matches!(found, Err(UnpackError::TooLarge { what: "the window of a chunk", .. })), "{found:?}");
    // The greatest that a byte can say.
    let mut head = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1000_0000, 0xff];
    head.extend(3000u32.to_le_bytes());
    let found = ok(&head);
    assert!(matches!(found, Err(UnpackError::TooLarge { what: "the window of a chunk", .. })), "{found:?}");

    // More than one frame, also of the kind that is skipped, before and behind; and an empty one.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18], &4u32.to_le_bytes()[..], b"skip"].concat();
    assert_frame(ok(&[&good[..], &good].concat()), "is not alone");
    assert_frame(ok(&[&good[..], &skippable].concat()), "is not alone");
    assert_frame(ok(&[&good[..], &frame(b"", &[])].concat()), "is not alone");
    assert_frame(ok(&[&skippable[..], &good].concat()), "does not begin like one");
    assert_frame(ok(&skippable), "does not begin like one");
    assert_frame(ok(&[&good[..], &[0]].concat()), "is not alone");

    // No size, another size, a dictionary, reserved bits.
    assert_frame(ok(&frame(&raw, &[CParameter::ContentSizeFlag(false)])), "does not say its size");
    assert_frame(unpack(&wire(2999, &good), 4000), "another size");
    let mut wants = good.clone();
    wants[4] |= 1;
    assert_frame(ok(&wants), "dictionary");
    for bit in [3, 4] {
        let mut reserved = good.clone();
        reserved[4] |= 1 << bit;
        assert_frame(ok(&reserved), "reserved");
    }

    // A checksum is read if it is there, and has to be right.
    let mut checked = frame(&raw, &[CParameter::ChecksumFlag(true)]);
    assert_eq!(ok(&checked).unwrap(), raw);
    *checked.last_mut().unwrap() ^= 1;
    assert_frame(ok(&checked), "checksum");

    for len in 0..good.len() {
        assert!(ok(&good[..len]).is_err(), "cut at {len}");
    }
    assert!(matches!(unpack(&[2, 0], 10), Err(UnpackError::UnknownForm { found: 2 })));
    assert!(matches!(unpack(&[], 10), Err(UnpackError::Empty)));
    assert!(matches!(unpack(&[0, 1, 2], 1), Err(UnpackError::TooLarge { .. })));
}

/// A frame of the old formats, which some decoders still read.
#[test]
fn frames_of_old_formats_are_refused() {
    for magic in [[0x22u8, 0xb5, 0x2f, 0xfd], [0x27, 0xb5, 0x2f, 0xfd], [0x1e, 0xb5, 0x2f, 0xfd]] {
        assert_frame(unpack(&wire(10, &[&magic[..], &[0; 20]].concat()), 100), "does not begin like one");
    }
    assert_eq!(ZSTD_HEAD, wire(0, &[]).len());
}
