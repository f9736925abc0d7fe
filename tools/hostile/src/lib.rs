//! What every decoder and verifier must survive: one function for each, from any bytes.
//!
//! A target takes bytes as an adversary would send them and panics if a promise is broken: a decoder that accepts a second
//! encoding, a verifier that believes a changed proof, arithmetic that overflows. `fuzz/` calls the targets under
//! libFuzzer; the tests of this crate call them with their seeds, mutated seeds and noise (docs/decisions/0007).
#![forbid(unsafe_code)]

mod chain;
mod codec;
mod execution;
mod ics23;
mod ledger;
mod node;
mod snapshot_library;
mod store;
mod sync;
mod tree;
mod xian_storage;

use keelstone_codec::{Decode, Encode};

/// One decoder or verifier.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, also that of the file in `fuzz/fuzz_targets/`.
    pub name: &'static str,
    /// Feeds it and says whether it accepted the input. Panics when a promise is broken.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that it accepts, for mutation to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    codec::VALUES,
    codec::KEYS,
    tree::DIFF,
    tree::PROOF,
    tree::FORGED,
    tree::WITNESS,
    tree::PAGE,
    tree::PAGE_DELTA,
    tree::TOP,
    ics23::CONVERT,
    ics23::VERIFY,
    store::LOG_RECORD,
    store::SECTOR,
    store::SUPERBLOCK,
    store::SCRUB,
    store::KV_WAL,
    store::TABLE,
    snapshot_library::INDEX,
    snapshot_library::ARCHIVE,
    execution::BUNDLE,
    execution::IN_FLIGHT,
    execution::SESSION,
    chain::TRANSACTION,
    chain::BUNDLE_PROOF,
    chain::OPERATION_PROOF,
    chain::BLOCK,
    chain::LIST_PROOF,
    chain::RANGE_PROOF,
    chain::AUDIT,
    chain::NODE_LOG,
    chain::GENESIS,
    chain::XIAN,
    xian_storage::FILE,
    node::ARGUMENTS,
    node::CONFIG,
    node::ABCI_FRAMES,
    node::KEY_FILE,
    node::ABCI_REQUEST,
    node::ENGINE_HEADER,
    node::LIGHT_BLOCK,
    node::NEARBY_PACKET,
    node::PEER_FRAME,
    node::HTTP_ANSWER,
    node::AUDIT_EXPORT,
    node::NODE_LOG_EXPORT,
    ledger::JSON,
    ledger::DECIMAL,
    ledger::SIGNATURE,
    ledger::PACKED,
    sync::METADATA,
    sync::PAGE,
    sync::CHUNK,
    sync::WIRE,
    sync::DELTA,
    sync::MIRROR,
    chain::ATTESTATION,
    sync::PEER_REQUEST,
    sync::PEER_RESPONSE,
    sync::CHECK_CURSOR,
    sync::RECOVERY_REPORT,
];

/// Runs the target of a name, all that a file in `fuzz/fuzz_targets/` does, and says whether it accepted the input.
///
/// # Panics
/// If there is no such target, or the target finds a broken promise.
pub fn run(name: &str, input: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("no target is called {name}")).run)(input)
}

/// Decodes, and sees to it that what was accepted is the one encoding (spec: CODEC-1).
fn canonical<T: Encode + Decode>(input: &[u8]) -> Option<T> {
    let value = T::from_bytes(input).ok()?;
    assert_eq!(value.to_bytes(), input, "a second encoding was accepted");
    Some(value)
}
