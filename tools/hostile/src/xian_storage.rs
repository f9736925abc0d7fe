//! The files of a Xian node's storage, which a library of others reads.

use crate::Target;
use keelstone_node::keys_of_bytes;

pub(crate) const FILE: Target = Target { name: "xian_storage", run: file, seeds: files };

/// A file gives its keys in order, each once, or an error. Whatever the library does with the bytes, it does not panic
/// and comes to an end.
fn file(input: &[u8]) -> bool {
    let Ok(keys) = keys_of_bytes(input.to_vec()) else { return false };
    assert!(keys.values.is_sorted_by(|a, b| a.0 < b.0), "a key twice, or out of order");
    let text: u64 = keys.values.iter().map(|(key, _)| key.len() as u64).sum();
    assert!(text <= keys.text && keys.text <= 64 << 20);
    true
}

fn files() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../crates/node/tests/data/xian-storage/earliest/contract_state/currency").to_vec(),
        include_bytes!("../../../crates/node/tests/data/xian-storage/earliest/run_state/__n").to_vec(),
        include_bytes!("../../../crates/node/tests/data/xian-storage/latest/contract_state/currency").to_vec(),
        include_bytes!("../../../crates/node/tests/data/xian-storage/latest/run_state/__n").to_vec(),
    ]
}
