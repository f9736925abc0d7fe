//! What the store reads back from its files. The seeds are the golden vectors.

use crate::{Target, tree};
use keelstone_codec::{Encode, Height};
use keelstone_ledger::{JSON_DEPTH_MAX, Json};
use keelstone_store::hostile;

/// Bytes of a record's hash and of a sector's checksum, which the targets put in place themselves.
const HASH_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;
const PAYLOAD_BYTES: usize = 504;

fn vector(name: &str) -> Vec<u8> {
    let vectors = Json::parse(include_bytes!("../../../spec/vectors/store.json"), JSON_DEPTH_MAX).expect("valid JSON");
    let hex = vectors.member(name).and_then(Json::as_text).expect("a golden vector of this name");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn without(mut bytes: Vec<u8>, tail: usize) -> Vec<u8> {
    bytes.truncate(bytes.len() - tail);
    bytes
}

pub(crate) const LOG_RECORD: Target = Target { name: "log_record", run: hostile::log_record, seeds: log_record_seeds };

fn log_record_seeds() -> Vec<Vec<u8>> {
    ["commit record", "rollback record"].map(|name| without(vector(name), HASH_BYTES)).to_vec()
}

pub(crate) const SECTOR: Target = Target { name: "sector", run: hostile::sector, seeds: sector_seeds };

fn sector_seeds() -> Vec<Vec<u8>> {
    let sector = vector("sector 1 of log segment 1 with the commit record, session 3");
    vec![sector.clone(), without(sector, CHECKSUM_BYTES)]
}

pub(crate) const SUPERBLOCK: Target = Target { name: "superblock", run: hostile::superblock, seeds: superblock_seeds };

fn superblock_seeds() -> Vec<Vec<u8>> {
    let mut covered = vector("superblock");
    covered.resize(PAYLOAD_BYTES, 0);
    // The stamp: session 3, and no record starts here.
    covered.extend_from_slice(&(3u32 << 1).to_le_bytes());
    vec![covered]
}

pub(crate) const SCRUB: Target = Target { name: "scrub", run: hostile::scrub, seeds: scrub_seeds };

fn scrub_seeds() -> Vec<Vec<u8>> {
    ["scrub, in the log", "scrub, in the entries"].map(vector).to_vec()
}

pub(crate) const KV_WAL: Target = Target { name: "kv_wal", run: hostile::kv_wal, seeds: kv_wal_seeds };

/// The vector without what is computed: its length and hash.
fn kv_wal_seeds() -> Vec<Vec<u8>> {
    let record = vector("record of the log in front of a database");
    vec![[&record[..4], &record[40..]].concat(), vec![0; 8]]
}

pub(crate) const TABLE: Target = Target { name: "table", run: hostile::table, seeds: table_seeds };

/// A top, and how two segments are used.
fn table_seeds() -> Vec<Vec<u8>> {
    let used = (4096u64, 1000u64);
    let segments = vec![((1u8, 1u32), used, (Some(Height(7)), None)), ((2, 1), used, (None, Some(Height(5))))];
    tree::top_seeds().into_iter().map(|top| [top, segments.to_bytes()].concat()).collect()
}
