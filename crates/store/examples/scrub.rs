//! Scrubs a whole store, slice after slice as a node does but without its pauses, and says what a slice takes.
//!
//! ```text
//! cargo run --release -p keelstone-store --example build -- DIRECTORY [ENTRIES]
//! cargo run --release -p keelstone-store --example scrub -- DIRECTORY
//! ```
//!
//! Sectors come first, then entries; a slice is of 256 KiB, which a node by default looks at sixteen times a second.
#![expect(clippy::print_stdout, reason = "an example tells what it found")]

use keelstone_store::files::Directory;
use keelstone_store::{Options, Store};
use keelstone_tree::Blake3;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SLICE_BYTES: u64 = 256 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("which directory?")?;
    let store = Store::<Blake3>::open(Arc::new(Directory::new(directory)?), Options::default())?;
    let disk = store.stats().disk_bytes;
    let (mut sectors, mut entries) = (Vec::new(), Vec::new());
    loop {
        // A pass that somebody began goes on where it stood.
        let of = if store.scrub_standing().done_bytes < disk { &mut sectors } else { &mut entries };
        let begun = Instant::now();
        let slice = store.scrub(SLICE_BYTES)?;
        of.push(begun.elapsed());
        if let Some(problem) = slice.problems.first() {
            return Err(problem.to_string().into());
        }
        if slice.is_pass_done {
            break;
        }
    }
    for (what, times) in [("sectors", &mut sectors), ("entries", &mut entries)] {
        times.sort_unstable();
        let (half, most) = (times.get(times.len() / 2), times.last());
        let all: Duration = times.iter().sum();
        println!(
            "{what}: {} slices in {all:.2?}; one in {:.2?}, {:.2?} at most",
            times.len(),
            half.unwrap_or(&all),
            most.unwrap_or(&all)
        );
    }
    Ok(store.close()?)
}
