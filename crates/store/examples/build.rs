//! Builds a store of entries that follow from a number, in a process that does nothing else, and says how fast and in how
//! much memory.
//!
//! ```text
//! cargo run --release -p keelstone-store --example build -- DIRECTORY [ENTRIES]
//! ```
//!
//! Keys have 32 bytes and are spread evenly, values have 100 that do not compress. The state is built twice: first for its
//! root alone, where the wrong root that is expected makes the building fail in its last step.
#![expect(clippy::print_stdout, reason = "an example tells what it found")]

use keelstone_codec::{Height, Key, Namespace, Root};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Store, StoreError};
use keelstone_tree::Blake3;
use std::sync::Arc;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("which directory?")?;
    let entries: u64 = arguments.next().map_or(Ok(1_000_000), |count| count.parse())?;

    let files = Arc::new(Directory::new(directory)?);
    let Err(StoreError::WrongRoot { found, .. }) = build(&files, entries, Root::default()) else {
        return Err("nothing hashes to zero".into());
    };
    let start = Instant::now();
    let store = build(&files, entries, found)?;
    let taken = start.elapsed();
    println!("{entries} entries, durable and with root {}, in {taken:.2?}", store.root());
    println!("{} entries a second", u128::from(entries) * 1_000_000_000 / taken.as_nanos().max(1));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(line) = status.lines().find(|line| line.starts_with("VmHWM")) {
        println!("memory at its highest: {}", line.trim_start_matches("VmHWM:").trim());
    }
    Ok(store.close()?)
}

fn build(files: &Arc<Directory>, entries: u64, expected: Root) -> Result<Store<Blake3>, StoreError> {
    let namespace = Namespace::new("bench").expect("a good name");
    let mut building = Store::build(files.clone(), Options::default(), Height(1))?;
    let step = u64::MAX / entries.max(1);
    let mut random = 7u64;
    for at in 0..entries {
        let mut bytes = [0; 132];
        bytes[..8].copy_from_slice(&(at * step).to_be_bytes());
        for word in bytes[8..].as_chunks_mut::<8>().0 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            *word = (random ^ random >> 29).to_le_bytes();
        }
        let key = Key::new(&bytes[..32]).expect("32 bytes are a key");
        building.push(&namespace, &key, &bytes[32..])?;
    }
    building.finish(expected)
}
