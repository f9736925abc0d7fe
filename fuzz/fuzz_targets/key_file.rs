//! The target `key_file` of `keelstone-hostile`, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    keelstone_hostile::run("key_file", input);
});
