//! The target `ics23` of `keelstone-hostile`, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    keelstone_hostile::run("ics23", input);
});
