//! Indexes of snapshots, and archives that strangers bring. The seeds are the golden vectors.

use crate::{Target, canonical};
use keelstone_ledger::{JSON_DEPTH_MAX, Json};
use keelstone_sync::library::{Expected, Index, Origin};
use std::ops::ControlFlow;

fn vector(name: &str) -> Vec<Vec<u8>> {
    let vectors =
        Json::parse(include_bytes!("../../../spec/vectors/library.json"), JSON_DEPTH_MAX).expect("valid JSON");
    let hex = vectors.member(name).and_then(Json::as_text).expect("a golden vector of this name");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    vec![(0..hex.len()).step_by(2).map(byte).collect()]
}

pub(crate) const INDEX: Target = Target { name: "snapshot_index", run: index, seeds: indexes };

fn index(input: &[u8]) -> bool {
    canonical::<Index>(input).is_some()
}

fn indexes() -> Vec<Vec<u8>> {
    vector("index of the empty state (LIB-2)")
}

pub(crate) const ARCHIVE: Target = Target { name: "snapshot_archive", run: archive, seeds: archives };

/// A tar that is accepted is proven, and is the only tar of its snapshot.
fn archive(input: &[u8]) -> bool {
    let mut entries = 0;
    let mut each = |_: &_, _: &[u8], _: &[u8]| {
        entries += 1;
        Ok(())
    };
    let read = Origin::Tar(&mut std::io::Cursor::new(input))
        .entries(&Expected::default(), &mut each, &mut |_| ControlFlow::Continue(()));
    match read {
        Ok(info) => {
            assert_eq!(info.totals.count, entries, "entries that were not proven");
            true
        }
        Err(_) => false,
    }
}

fn archives() -> Vec<Vec<u8>> {
    vector("tar of the empty state (LIB-7)")
}
