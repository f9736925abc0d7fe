//! The target `ics23_convert` of `keelstone-hostile`, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    keelstone_hostile::run("ics23_convert", input);
});
