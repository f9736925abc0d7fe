//! Xian's exports come in whole and go out whole.

use crate::tools::*;
use keelstone_codec::{Describe, Text};
use keelstone_execution::View;
use keelstone_ledger::modules::contracts::{self, Contracts};
use keelstone_ledger::{Genesis, Json, SecretKey, xian};
use std::path::PathBuf;
use std::time::Instant;

/// The real export, where it lies beside the repository.
fn real() -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/xian-devnet-genesis.json");
    let place = std::env::var_os("KEELSTONE_XIAN_EXPORT").map_or(path, PathBuf::from);
    let file = std::fs::read(&place).ok();
    if file.is_none() {
        println!("skipped: no export at {}", place.display());
    }
    file
}

#[test]
fn real_export_comes_in_and_goes_out_equal() {
    let Some(file) = real() else { return };
    let begun = Instant::now();
    let mut genesis = Genesis::new(chain_id());
    let import = genesis.import_xian(&file).unwrap();
    assert_eq!((import.entries().len(), import.nonces().len()), (5_278, 72));
    let chain = chain_of(&genesis);
    let exported = xian::export(&chain.view()).unwrap();
    println!("imported and exported in {:?}", begun.elapsed());
    let original = Json::parse(&file, 40).unwrap();
    assert_eq!(exported, original, "down to the order of members");
    for (name, value) in import.entries() {
        assert_eq!(xian::entry(&chain.view(), name).unwrap().as_ref(), Some(value), "{name}");
    }
    // The genesis file repeats the import whole, too.
    assert_eq!(Genesis::parse(genesis.to_json().to_pretty().as_bytes()).unwrap(), genesis);
}
