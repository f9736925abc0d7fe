//! What a chunk that expands without end costs in memory. Alone in its program, so that its memory is a whole process's.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "these are tests: what fails here fails a test")]

use keelstone_sync::snapshot::{UnpackError, unpack};
use std::fs;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

/// What the bomb expands to, 64 times what may come out and tens of thousands of times what came in.
const EXPANDED: u32 = 1 << 30;
/// The most that may come out.
const CAP: u32 = 16 << 20;
/// What may be held besides.
const BESIDES: u64 = 64_000_000;

/// A frame of zeros, made in pieces: the bomb is not to weigh what it expands to.
fn bomb() -> Vec<u8> {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::WindowLog(20)).unwrap();
    context.set_pledged_src_size(Some(EXPANDED.into())).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut frame = vec![0; 1 << 20];
    let mut output = OutBuffer::around(frame.as_mut_slice());
    for _ in 0..EXPANDED as usize / zeros.len() {
        let mut input = InBuffer::around(&zeros);
        while input.pos < zeros.len() {
            context.compress_stream(&mut output, &mut input).unwrap();
        }
    }
    while context.end_stream(&mut output).unwrap() > 0 {}
    let length = output.pos();
    frame.truncate(length);
    frame
}

fn wire(declared: u32, frame: &[u8]) -> Vec<u8> {
    [&[1], &declared.to_le_bytes()[..], frame].concat()
}

/// Bytes that are held now, or were at most, by the name Linux has for them.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

/// SS-24, S-06. Whether it says what it expands to or lies about it, the process grows by no more than what is allowed to
/// come out and a little.
#[test]
fn ss24_a_bomb_takes_no_more_memory_than_the_cap_and_64_mb() {
    let honest = bomb();
    assert!(honest.len() * 1_000 < EXPANDED as usize, "{} bytes", honest.len());
    let mut lying = honest.clone();
    let at = lying.windows(4).position(|bytes| bytes == EXPANDED.to_le_bytes()).unwrap();
    lying[at..at + 4].copy_from_slice(&CAP.to_le_bytes());
    for (declared, frame) in [(EXPANDED, &honest), (CAP, &honest), (CAP, &lying)] {
        let wire = wire(declared, frame);
        // From here on the highest is counted anew.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = memory("VmRSS");
        let error = unpack(&wire, CAP).map(|raw| raw.len()).unwrap_err();
        let grown = memory("VmHWM").saturating_sub(before);
        let refused = matches!(error, UnpackError::TooLarge { .. });
        assert_eq!(refused, declared > CAP, "{error}");
        println!("declared {declared}: refused with {grown} bytes more: {error}");
        assert!(grown < u64::from(CAP) + BESIDES, "{declared} declared: it grew by {grown} bytes");
    }
}
