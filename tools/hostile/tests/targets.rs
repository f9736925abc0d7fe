//! Every fuzz target, run with what it accepts, with small changes of that, and with noise.
#![forbid(unsafe_code)]

use keelstone_codec::splitmix64;
use keelstone_hostile::{TARGETS, Target};
use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;

/// Changed inputs per target; `KEELSTONE_TEST_SCALE` multiplies it.
const CASES: u64 = 2_000;

/// A small generator, so that a case can be run again from its number alone.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    /// A number below `n`, or zero.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() >> 32).expect("32 bits") % n.max(1)
    }

    fn byte(&mut self) -> u8 {
        const LIKELY: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xff, 0x20, 0x30];
        if self.below(2) == 0 { LIKELY[self.below(8)] } else { self.roll().to_le_bytes()[0] }
    }
}

/// A seed with a few changes, or noise.
fn case(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut dice = Dice(number);
    let mut bytes = if seeds.is_empty() || dice.below(8) == 0 {
        let len = dice.below(64);
        (0..len).map(|_| dice.byte()).collect()
    } else {
        seeds[dice.below(seeds.len())].clone()
    };
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, dice.byte()),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            4 => {
                let from = dice.below(bytes.len() + 1);
                let piece = bytes[from..bytes.len().min(from + dice.below(40))].to_vec();
                bytes.splice(at..at, piece);
            }
            _ if at < bytes.len() => bytes[at] = dice.byte(),
            _ => {}
        }
    }
    bytes
}

/// Whether the target accepted the input.
fn survives(target: &Target, input: &[u8], from: &str) -> bool {
    catch_unwind(|| (target.run)(input)).unwrap_or_else(|_| {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{} breaks on {from}: {hex}", target.name)
    })
}

/// No target breaks on an input near to one it accepts, nor on noise.
#[test]
fn every_decoder_and_verifier_survives_hostile_input() {
    let scale = golden::count("KEELSTONE_TEST_SCALE", 1);
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        survives(target, &[], "nothing");
        for (number, seed) in seeds.iter().enumerate() {
            assert!(survives(target, seed, "a seed"), "{} refuses its seed {number}", target.name);
        }
        for number in 0..CASES * scale {
            survives(target, &case(&seeds, number), &format!("case {number}"));
        }
    }
}

/// Each target has its file for the fuzzer, and no file is left without one.
#[test]
fn every_target_can_be_fuzzed() {
    let fuzz = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
    let names: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), TARGETS.len(), "two targets share a name");
    let manifest = fs::read_to_string(format!("{fuzz}/Cargo.toml")).expect("fuzz/Cargo.toml is there");
    for name in &names {
        let file = fs::read_to_string(format!("{fuzz}/fuzz_targets/{name}.rs")).unwrap_or_default();
        assert!(file.contains(&format!("run(\"{name}\", input)")), "fuzz_targets/{name}.rs does not run it");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml does not list {name}");
    }
    for entry in fs::read_dir(format!("{fuzz}/fuzz_targets")).expect("fuzz/fuzz_targets is there") {
        let path = entry.expect("it can be listed").path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        assert!(names.contains(name.as_str()), "fuzz_targets/{name}.rs runs no target");
    }
}
