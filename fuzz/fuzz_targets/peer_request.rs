//! The target `peer_request` of `keelstone-hostile`, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    keelstone_hostile::run("peer_request", input);
});
