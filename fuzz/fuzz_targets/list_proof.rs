//! The target `list_proof` of `keelstone-hostile`, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    keelstone_hostile::run("list_proof", input);
});
